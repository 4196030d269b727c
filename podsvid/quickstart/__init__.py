"""`podsvid quickstart`: an agent as a child, a stand-in for the kubelet, and what they show.

In it: one stand-in kubelet for quickstart, tests and benchmarks.
Never in it: the agent's own rooms: it is a child process, met over kubelet's sockets like any other.
Through it goes: `Pod` and `PodVolume` go in; what is read from the mounted volume is shown.
"""
