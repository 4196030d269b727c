"""Which identity a pod gets: WorkloadIdentity objects, their templates, and the decision.

In it: what a policy's author may write, what it means for a live pod, and what its status says.
Never in it: keys, certificates, tokens, and who asks.
Through it goes: `LivePod` goes in, `Entitlement` comes out, or `Refused` with its reason.
"""
