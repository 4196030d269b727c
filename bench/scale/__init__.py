"""One signer replica at the size of a large cluster, and what that costs it: `python -m bench.scale`.

The signer is the daemon itself in a process of its own; the API server (api.py) and the agents (fleet.py) are others,
so that nothing of theirs counts as the signer's.
"""
