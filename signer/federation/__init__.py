"""Other trust domains: which there are, by objects of the cluster, and where their bundles come from.

In it: what a FederatedTrustDomain says, the bundle endpoints that it names, and what every replica has of each. Polled
while leading; nothing here is waited for by a mint.
Never in it: the own authorities and their keys: of the own trust domain its bundle comes here, to tell others from it.
Through it goes: `Relation`, and the `TrustBundle` that is in force of it.
"""
