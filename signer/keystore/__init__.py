"""Where the authorities' private keys are, if not in the signer's memory: a store that makes them, and signs.

In it: the interface to such a store, a PKCS#11 token and a cloud's KMS, and the order in which signatures are made.
Never in it: what is signed, or for whom; the authorities' state.
Through it goes: a private key that stays where it is, as `svid` takes it; a `KeyRef` is what the state keeps of it.
"""
