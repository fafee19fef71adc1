"""Finds what is wrong by itself, and the known mistake behind it.

`forced_runs.py` runs the models, `localise.py` finds what deviates, and `findings.py` reports it. `search.py` is the
search for known mistakes; `layers.py`, `operations.py`, `losses.py`, `training.py` and `weights.py` make its
experiments.
"""
