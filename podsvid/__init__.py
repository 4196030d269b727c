"""What a person runs: every command.

In it: arguments, what is printed, exit codes.
Never in it: anything that a daemon would need: it lives in agent/ or signer/ then.
Through it goes: parsed arguments; answers of the admin sockets, of the Workload API, of the cluster.
"""
