"""What anybody may fetch: the trust bundle and OpenID Connect's documents over HTTPS, off unless it is switched on.

In it: certificates for it, and a process of its own, which has nothing but these and the documents: bytes of strangers,
    and TLS with them, come nowhere near the authorities' keys, nor into the event loop that agents wait for.
Never in it: requests that decide anything: what is served is made at each change of trust, and a request chooses one.
Through it goes: `Shown`: for each listener its certificate and its pages.
"""
