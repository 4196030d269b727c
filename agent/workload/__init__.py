"""One workload's life: its feed, minting for it, its files, its renewal; and the registry of all of them.

In it: `Workload` owns a life, `Issuer` mints and checks for it, `WorkloadRegistry` holds them and runs the loops.
Never in it: gRPC, mounts, and which kind of authority there is.
Through it goes: `Issued` from the mint, then `WorkloadIdentity` in the feed, then `Contents` in the files.
"""
