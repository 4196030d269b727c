"""What a pod's socket answers: the relay, the endpoint and its limits, the Workload API, SDS, health, reflection.

In it: everything that parses what a pod sends.
Never in it: authorities, tokens, the files of a volume: an answer is made of the feed, or asked of a `JwtSource`.
Through it goes: an `Identity`, read from the workload's feed; never changed here.
"""
