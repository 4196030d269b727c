"""Private keys in clouds' KMS: this process has their public halves, and asks for signatures.

In it: AWS KMS and Google Cloud KMS, and where in them a key is.
Never in it: what is signed, or for whom; a cloud's library.
Through it goes: what is to be signed, and a signature, which is verified before anybody gets it.
"""
