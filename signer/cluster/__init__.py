"""The Kubernetes API: clients, mirrors of objects, the lease, events, taints.

In it: the only imports of the `kubernetes` package, and what is kept of each kind of object.
Never in it: identities, keys, policies: what is read is handed on as it is.
Through it goes: an `Item` (what is kept of an object) from `KubeApi`, and what a `Mirror`'s reader makes of it;
`Object` (a JSON object) is what is written.
"""
