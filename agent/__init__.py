"""The node daemon: identities and their rotation, the Workload API, the command line."""
