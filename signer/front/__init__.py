"""Who may ask, and how: the agents' API and its server, the admin socket, limits, the audit log, gRPC's codes.

In it: every gRPC door of the signer.
Never in it: decisions of attestation, policy or minting: they are called, in order, in one place.
Through it goes: one call: its `PodClaim`, then `AttestedPod`, then `Entitlement`, then the answer and its audit line.
"""
