"""A sample of the faithful runs: random small networks that must pass."""

from __future__ import annotations

import pytest
from meta import faithful

# A run of every kind of network and of every type of weights.
SEEDS = {0: ("resnet", "float32"), 56: ("unet", "float64"), 64: ("encoder", "bfloat16"), 73: ("lstm", "bfloat16")}


@pytest.mark.parametrize("seed", SEEDS)
def test_faithful_run_passes(seed: int) -> None:
    (result,) = faithful.runs(1, seed)
    assert result.ok, result
    assert (result.network, result.dtype) == SEEDS[seed]


def test_runs_are_reproducible_and_differ() -> None:
    assert faithful.network(3) == faithful.network(3)
    assert len({faithful.network(seed)[0].block for seed in range(200)}) > 50
