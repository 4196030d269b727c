"""The authorities' state and their life: the steps, the store, rotation, trust for agents, acknowledgements.

In it: what all replicas sign and publish by, and how it changes: by compare and swap.
Never in it: pods and policies: an authority does not know for whom it signs.
Through it goes: `AuthorityState`, replaced as a whole; `Broadcast` is what agents are told of it.
"""
