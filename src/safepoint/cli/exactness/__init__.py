"""`safepoint verify-resume`: the runs of a script, what is recorded in them, and what the records say.

Invariant: `child`, `recorder`, `places` and `variables` run inside the script's process; the rest never does.
"""
