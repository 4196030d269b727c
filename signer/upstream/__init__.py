"""Who certifies the authorities: themselves, or a CA above, from files.

In it: every kind of CA above.
Never in it: the Kubernetes API, agents, pods.
Through it goes: a new key goes in; a certified `X509Authority` comes out, or an error that changes nothing.
"""
