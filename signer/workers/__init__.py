"""Processes that serve agents beside the signer's own, where it is given more processors than one.

In it: TLS, HTTP/2 and gRPC of the connections that the door hands each of them, and the channel by which they pass
    calls on; keeping them running.
Never in it: who may come in, who calls, what is decided or signed: all of that, and each bound, stays in the one
    process that has the mirrors, the keys and the audit log.
Through it goes: a call: its `Begun`, one `Said` for each message that is asked for, `Answer`s, and its end.
"""
