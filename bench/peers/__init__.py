"""podsvid beside SPIRE on one machine: `python -m bench.peers` (see `__main__`)."""
