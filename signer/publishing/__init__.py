"""Trust bundles out to the cluster: ConfigMaps and ClusterTrustBundles.

In it: what is written for verifiers that never acknowledge.
Never in it: authorities and their keys: a bundle is all that comes here.
Through it goes: `TrustBundle`, the own trust domain's first.
"""
