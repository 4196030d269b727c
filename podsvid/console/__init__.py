"""`podsvid console`: what the commands tell about identities, as a page in a browser on the same machine.

In it: a server on loopback for whoever has the URL, its page, and where what it shows comes from.
Never in it: a request that changes anything; anything that the commands do not tell, or that another right would take.
Through it goes: `Picture`, made of the documents that `-o json` prints; one pod's explanation.
"""
