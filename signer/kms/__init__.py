"""Private keys that stay where they are: this process has their public halves, and asks for signatures.

In it: such a key as `svid` takes one, and clouds' KMS: AWS KMS and Google Cloud KMS.
Never in it: what is signed, or for whom; a cloud's library.
Through it goes: what is to be signed, and a signature, which is verified before anybody gets it.
"""
