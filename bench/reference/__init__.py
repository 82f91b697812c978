"""The same work by hand, on the plain driver: raw clients and minimal loops, at most 60 lines each.

Nothing here imports duly.  A loop counts as a reference only where it reaches a stated share of the
raw client in the same run.
"""
