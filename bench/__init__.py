"""Measurements of the main job, each beside the same work written by hand: ``python -m bench``.

Owns nothing of the product.  ``measure`` alternates the sides of a row and computes its figures,
``rows`` prepares the load and says which sides there are, ``ours`` and ``reference`` hold the
programs that are measured, each run in a process of its own by ``process``.  Invariant: no absolute
time is an aim without a reference that was measured beside it in the same run.
"""
