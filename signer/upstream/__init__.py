"""Who certifies the authorities: themselves, or a CA above, from files or elsewhere.

In it: every kind of CA above.
Never in it: a Kubernetes client of its own (cert-manager is asked through `KubeApi`), agents, pods.
Through it goes: a new key goes in; a certified `X509Authority` comes out, or an error that changes nothing.
"""
