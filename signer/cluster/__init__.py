"""The Kubernetes API: clients, mirrors of objects, the lease, events, taints.

In it: the only imports of the `kubernetes` package.
Never in it: identities, keys, policies: what is read is handed on as plain objects.
Through it goes: `Object` (a JSON object) from `KubeApi`, and what a `Mirror`'s reader makes of it.
"""
