"""Clouds' own libraries, each in a process of its own: what hangs there, or answers a byte at a time, is ended there.

In it: AWS' and Google's libraries, and how they are asked.
Never in it: what is asked for, and what an answer means.
Through it goes: the name of a method and its parameters; what the cloud answers, or how it failed.
"""
