"""What another product's configuration becomes here, and what of it cannot: objects and values to look at and apply.

In it: readers of foreign objects, their translation, a report of each difference.
Never in it: anything that asks a cluster or changes one; a policy that is for one pod more than what it was made of.
Through it goes: documents of files in, objects (`Written`) and findings (`Finding`) out.
"""
