"""Finds what is wrong by itself, and the known mistake behind it.

`forced_runs.py` runs, `localise.py` says what deviates, and `findings.py` tells it. `search.py` is the search for known
mistakes; `layers.py`, `operations.py`, `losses.py`, `training.py` and `weights.py` make its experiments.
"""
