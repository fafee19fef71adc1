"""Draws programs from seeds, and builds the pairs."""

from __future__ import annotations

import math
import random
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from flax import nnx
from torch import nn

from .choices import Choices, Shape, drawn
from .networks import BLOCKS, FEATURES, HEADS, INPUTS, WORDS, LinenNetwork, NnxNetwork, Program, TorchNetwork
from .norms import NORMS


def program(seed: int, port: str | None = None) -> Program:
    """Return the program of a seed.

    Args:
        port: draw for this port; by default `nnx` or `linen` by the seed.
    """
    rng = random.Random(seed)
    port = port or rng.choice(("nnx", "linen"))
    while not _runs(p := _drawn(rng, port)):
        pass
    return replace(p, features=_flat(p)) if p.head == "flat" else p


def _drawn(rng: random.Random, port: str) -> Program:
    inputs = rng.choice([*INPUTS])
    kind, width = INPUTS[inputs], rng.choice((4, 8, 12))
    size: tuple[int, ...] = (rng.randint(3, 6),)
    if inputs in ("patches", "images"):
        size = (rng.randint(3, 4) * 2, rng.randint(3, 4) * 2) if inputs == "patches" else (rng.randint(5, 8), 6)
    length = {"vector": 0, "image": 0, "sequence": size[0]}[kind]
    if inputs == "patches":
        length = math.prod(size) // 4
    shape = Shape(kind, width, length)
    norms = tuple(name for name, row in NORMS.items() if row.fits(kind, length, port))
    names = [name for name, row in BLOCKS.items() if row.fits(kind, length, port)]
    blocks = tuple(_block(rng, rng.choice(names), shape, norms) for _ in range(rng.randint(1, 3)))
    last = drawn(rng, "", shape, norms)
    p = Program(
        port,
        inputs,
        shape,
        size,
        rng.randint(2, 4),
        blocks,
        norm=last if last.norm else None,
        head=rng.choice(HEADS[kind]),
        classes=rng.randint(2, 5),
        positions=kind == "sequence" and rng.random() < 0.5,
    )
    return replace(p, head="flat") if p.head == "mean" and _levelled(p) else p


def _runs(p: Program) -> bool:
    """Return whether PyTorch trains the blocks: images may become too small, and a view may be changed in place."""
    x = torch.as_tensor(inputs_of(p, 0))
    with torch.random.fork_rng():
        try:
            TorchNetwork(p).train().trunk(x.float() if x.is_floating_point() else x).sum().backward()
        except (RuntimeError, ValueError):
            return False
    return True


def _levelled(p: Program) -> bool:
    """Return whether every channel has the same mean for every image, so that a mean of its pixels tells nothing."""
    last = p.blocks[-1]
    norm = p.norm.norm if p.norm else "" if last.before else last.norm
    return norm == "instance norm"


def _block(rng: random.Random, name: str, shape: Shape, norms: tuple[str, ...]) -> Choices:
    s = drawn(rng, name, shape, norms)
    return replace(s, residual=False, path=0.0) if BLOCKS[name].reshapes else s


def _flat(p: Program) -> int:
    """Return how many numbers leave the blocks of each example."""
    with torch.no_grad():
        return TorchNetwork(p).eval().trunk(torch.zeros(1, FEATURES, *p.size)).flatten(1).shape[1]


def inputs_of(p: Program, seed: int) -> np.ndarray:
    """Return a batch in PyTorch's layout."""
    rng = np.random.default_rng(seed)
    if p.inputs == "tokens":
        return rng.integers(0, WORDS, (p.batch, *p.size))
    shapes = {"series": (*p.size, FEATURES), "features": (FEATURES,)}
    return rng.standard_normal((p.batch, *shapes.get(p.inputs, (FEATURES, *p.size))))


def reference_of(p: Program) -> nn.Module:
    """Return the PyTorch model of a program, with random weights."""
    return TorchNetwork(p)


def port_of(p: Program, x: np.ndarray) -> Any:
    """Return the Flax model of a program: an NNX model, or Linen's module and variables.

    Linen's variables are drawn without compiling `init`, which would take as long as a check. A check moves PyTorch's
    weights into them anyway.
    """
    if p.port == "nnx":
        return NnxNetwork(p, nnx.Rngs(0))
    module = LinenNetwork(p)
    fed = jnp.asarray(x.transpose(0, 2, 3, 1) if x.ndim == 4 else x, None if x.dtype.kind == "i" else jnp.float32)
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(module.init, jax.random.key(0), fed)
    return module, jax.tree.map(lambda leaf: jnp.asarray(rng.standard_normal(leaf.shape), leaf.dtype), shapes)


def with_program(flax: Any, p: Program) -> Any:
    """Return a Flax model that computes another program with the tensors of this one."""
    if p.port == "linen":
        return LinenNetwork(p), flax[1]
    other = NnxNetwork(p, nnx.Rngs(0))
    nnx.update(other, nnx.state(flax, (nnx.Param, nnx.BatchStat)))
    return other
