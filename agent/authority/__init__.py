"""Where SVIDs come from: one protocol; the CA on this node, from files or of its own; the signer's client.

In it: every kind of authority, and what each of them keeps.
Never in it: volumes, files of pods, sockets of pods: an authority does not know what becomes of what it mints.
Through it goes: `MintRequest` goes in, `Minted` comes out, which whoever asked checks; `Trust` in a feed of its own.
"""
