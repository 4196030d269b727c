"""A real single-node Kubernetes cluster on this host, and the tests that need one."""
