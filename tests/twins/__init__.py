"""Twins: networks that other people published in PyTorch and in Flax, and what the check must say of each.

The rows are in `text.py`, `causal.py`, `translating.py`, `images.py` and `diffusion.py`; `verdicts.json` holds what was
measured last, and `docs/twins.md` shows it. They need an environment of their own (`make twins`): transformers 4.57 is
the last release with Flax classes.
"""
