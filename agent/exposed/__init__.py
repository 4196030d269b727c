"""The exposed process: serves pods' sockets with all that agent/socket answers, and can do nothing else.

In it: giving up every privilege, and the exposed end of the channel: sockets as they are ordered, feeds filled from
    snapshots.
Never in it: authorities, tokens of the agent or of pods, volumes' files, the journal, mounts.
Through it goes: a `Snapshot` from the channel becomes an `UnreadIdentity` in the feed of its socket.
"""
