"""What the agent and the exposed process say to each other: messages, snapshots of identities, frames on a socket pair.

In it: the only words that cross between the two. Every field has a bound, and is checked before anybody looks at it.
Never in it: what is done about them; gRPC.
Through it goes: a `Snapshot` of a `WorkloadIdentity` outwards, a `Wanted` token inwards.
"""
