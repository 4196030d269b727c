"""The kubelet's side: registration, the CSI Identity and Node services, the tmpfs volume and its files, the journal.

In it: what kubelet's requests mean, and what is on the node's disk for them.
Never in it: where an identity comes from (`ports.py` says what is asked of whoever knows), the signer, Kubernetes'
    API.
Through it goes: `Volume`: one publish request, checked, without its secrets; `Contents`: what its files are made of.
"""
