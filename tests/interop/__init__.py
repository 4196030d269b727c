"""Peers that others wrote and that take long to build, or come as wheels and archives, against podsvid as it is.

Each folder below is a suite: `suite.toml` says what it shows and pins the peer, the rest are ordinary pytest files.
`make test` does not collect them. What each run found stands in docs/interop.md.
"""
