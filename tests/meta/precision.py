"""Faithful runs in working precision: how far right ports are from PyTorch, and the limits that follow.

`python -m tests.meta.precision` draws weights and inputs of small networks, with the precision idioms that real models
use, and measures every place of each by `parity.diagnosis.rounding`.
"""
from __future__ import annotations
