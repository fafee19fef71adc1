"""Prove your own pair of models equal, then time both.

python examples/time_your_pair.py

It runs `python -m benchmarks examples/time_your_pair.py:make`, with less effort. Put your models in place of these.
"""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import jax
import numpy as np
import torch
from flax import nnx

import parity


class Mlp(nnx.Module):
    """The port of `torch.nn.Sequential(Linear, GELU, Linear)`."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.up, self.down = nnx.Linear(64, 256, rngs=rngs), nnx.Linear(256, 64, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.down(nnx.gelu(self.up(x), approximate=False))


def make() -> tuple[Any, ...]:
    """Return both models with the same weights, and inputs of the batch that is to be timed."""
    torch.manual_seed(0)
    torch_model = torch.nn.Sequential(torch.nn.Linear(64, 256), torch.nn.GELU(), torch.nn.Linear(256, 64))
    x = np.random.default_rng(0).standard_normal((32, 64))
    return torch_model, parity.move(torch_model, Mlp(nnx.Rngs(0)), x), x


if __name__ == "__main__":
    # The benchmark first checks the pair as `parity check` does, training included. It times no pair that differs.
    # Without these options it starts every process five times, for five rounds of a second.
    little = ["--mode", "inference", "--subjects", "own-pytorch,own-flax", "--starts", "1", "--rounds", "2"]
    command = [sys.executable, "-m", "benchmarks", f"{__file__}:make", *little, "--seconds", "0.1"]
    sys.exit(subprocess.run(command, check=False).returncode)

# `…` stands for the figures of your machine. Where something else runs beside it, the last line says so.
# It prints:
#
#     …/time_your_pair.py:make, inference
#     subject … parity, of its bound  ms a step (quartiles)  times eager [95 %]  host ms  first step s  GB  …
#     own-…
#     own-…
#       fastest Flax port (own-flax) is … times as fast as the fastest PyTorch port (own-pytorch)
#     …
#     Measured on …
#     1 start of each process, 2 rounds of 0.1 s in each, in turn; medians; intervals are the bootstrap's over starts
#       and rounds.
#     …
