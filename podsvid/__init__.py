"""The `podsvid` command, which puts agent and signer together."""
