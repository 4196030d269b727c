"""The privileged side of pods' sockets: starts the exposed process, watches it, and tells it what to serve.

In it: the only hands that the exposed process has: sockets taken into volumes, tokens minted for it within bounds, its
    counts and its log, each checked.
Never in it: what a pod sends; agent/socket and agent/exposed are never loaded here.
Through it goes: a workload's feed, outwards as snapshots; what comes back is believed only as far as it is bounded.
"""
