"""What every podsvid process stands on: settings, logs, traces, HTTP, time, feeds, threads for blocking work.

In it: what agent and signer would otherwise both write.
Never in it: anything of pods, volumes or who gets which identity; gRPC of our own, Kubernetes.
Through it goes: `Feed`: the newest value of anything, and who waits for it.
"""
