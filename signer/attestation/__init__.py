"""Who calls, and for which live pod: tokens, pods, and the checks in their order.

In it: every check that stands between a claim and an attested pod.
Never in it: which identity the pod gets, keys, and anything that signs.
Through it goes: `PodClaim` goes in, `AttestedPod` comes out, or `Refused` with its reason.
"""
