"""A sample of the faithful runs: random small networks that must pass."""

from __future__ import annotations

import pytest
from meta import faithful
from meta.random_modules import programs
from meta.random_modules.choices import ACTIVATIONS
from meta.random_modules.networks import BLOCKS, INPUTS
from meta.random_modules.norms import NORMS

# A run of every kind of network and of every type of weights.
SEEDS = {
    0: ("resnet", "float32"),
    56: ("unet", "float64"),
    64: ("encoder", "bfloat16"),
    73: ("lstm", "bfloat16"),
    96: ("generated", "float32"),  # Linen, patches: attention with RMSNorm
    128: ("generated", "float64"),  # Linen, images: a strided convolution with instance norm
    144: ("generated", "float32"),  # NNX, tokens: experts and an LSTM
}


@pytest.mark.parametrize("seed", SEEDS)
def test_faithful_run_passes(seed: int) -> None:
    (result,) = faithful.runs(1, seed)
    assert result.ok, result
    assert (result.network, result.dtype) == SEEDS[seed]


def test_runs_are_reproducible_and_differ() -> None:
    assert faithful.network(3) == faithful.network(3)
    assert len({faithful.network(seed)[0].block for seed in range(200)}) > 50
    assert programs.program(3) == programs.program(3)
    assert len({programs.program(seed) for seed in range(200)}) == 200


def test_programs_have_every_block_norm_and_activation_in_both_ports() -> None:
    drawn = [programs.program(seed) for seed in range(600)]
    for port in ("nnx", "linen"):
        blocks = [block for program in drawn if program.port == port for block in program.blocks]
        assert {block.block for block in blocks} == {n for n, row in BLOCKS.items() if getattr(row, port) is not None}
        assert {block.norm for block in blocks} == {"", *NORMS}
        assert {block.act for block in blocks} == {*ACTIVATIONS}
        assert {block.pinned for block in blocks} == {(a, b) for a in (False, True) for b in (False, True)}
        assert {program.inputs for program in drawn if program.port == port} == {*INPUTS}
