"""A sample of the faithful runs of `faithful.py`: random small networks that must pass."""

from __future__ import annotations

import pytest
from faithful import network, run


# Seed 3 holds a gradient whose difference is the order of summation alone.
@pytest.mark.parametrize("seed", [1, 3, 4, 7, 12])
def test_faithful_run_passes(seed: int) -> None:
    result = run(seed)
    assert result["ok"], result


def test_runs_are_reproducible_and_differ() -> None:
    assert network(3) == network(3)
    assert len({network(seed)[0].block for seed in range(200)}) > 50
