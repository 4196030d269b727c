"""The SPIFFE core: IDs, X.509-SVIDs, trust bundles and the authority that issues them. No I/O, no clock."""
