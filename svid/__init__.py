"""The SPIFFE core: IDs, X.509- and JWT-SVIDs, trust bundles, and the authorities that issue them.

In it: values that are checked when they are made, and functions of them.
Never in it: I/O, a clock of its own, randomness but for keys, serials and signatures, gRPC, Kubernetes.
Through it goes: `WorkloadIdentity`: SVIDs, and the `TrustBundle` that verifies them; `Trust` when only bundles
    change.
"""
