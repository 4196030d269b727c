"""`podsvid doctor`: what is wrong with podsvid in a cluster, as far as whoever asks may look.

In it: what is read, the rules by which it is wrong, what each reason means and what to do.
Never in it: a request that changes anything; one volume's or pod's state, which `node ls` and `explain` tell.
Through it goes: `Seen`, in which each part is there, absent or not to be had; findings (`Finding`) out.
"""
