"""Moves weights into ports of random structure: rightly, or not at all.

    python -m tests.meta.moves --pairs 1000 --json benchmarks/results/moves-cpu.json

A PyTorch network of residual blocks (attention, an MLP or experts, norms) gets a port that holds the same tensors in
other layers: under other names, in another order, projections fused or separate in any order, kernels transposed, lists
of blocks in one array, norms and dense layers of the library's or of its own. `parity.move` must give a port with
PyTorch's outputs, or refuse.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import random
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from flax import nnx
from torch import nn

import parity
from parity import api
from ports import UserError

WIDTH, HEADS, HIDDEN = 4, 2, 6
AGREES = 1e-4  # of float32's outputs, relative; a tensor in a wrong place moves them by far more

# What the parts of a block are called, in one of these ways.
NAMES = {
    "norm": ("norm1", "ln_1", "input_layernorm", "pre"),
    "norm2": ("norm2", "ln_2", "post_layernorm", "mid"),
    "q": ("q_proj", "query", "wq", "to_q"),
    "k": ("k_proj", "key", "wk", "to_k"),
    "v": ("v_proj", "value", "wv", "to_v"),
    "o": ("o_proj", "out", "wo", "to_out"),
    "qkv": ("qkv", "c_attn", "in_proj", "to_qkv"),
    "up": ("fc1", "up", "w1", "c_fc"),
    "down": ("fc2", "down", "w2", "c_proj"),
    "blocks": ("layers", "h", "blocks", "stack"),
    "head": ("head", "classifier", "lm_head", "final"),
}


@dataclasses.dataclass(frozen=True)
class Choices:
    """How one pair is built.

    Attributes:
        fused: whether PyTorch's, and the port's, attention has one projection of query, key and value.
        style: which names each side takes; `None` for names that say nothing.
        dense: how the port holds a linear layer: `library`, `own` (in, out), or `as-in-torch` (out, in).
        stacked: whether the port's blocks are one array for each tensor.
        order: of the parts of the port's fused projection.
    """

    blocks: int
    fused: tuple[bool, bool]
    style: tuple[int, int | None]
    dense: str
    norm: str
    stacked: bool
    order: tuple[int, ...]
    bias: bool
    shuffled: int

    @classmethod
    def drawn(cls, seed: int) -> Choices:
        """Return random choices."""
        rng = random.Random(seed)
        fused = rng.random() < 0.5, rng.random() < 0.5
        return cls(
            rng.choice((1, 2, 3)),
            fused,
            (rng.randrange(4), rng.choice((0, 1, 2, 3, 3, None))),
            rng.choice(("library", "own", "as-in-torch")),
            rng.choice(("library", "own")),
            rng.random() < 0.4,
            (0, 1, 2) if all(fused) else tuple(rng.sample(range(3), 3)),  # the same tensor is read in one order
            rng.random() < 0.7,
            rng.randrange(100),
        )


def named(part: str, style: int | None) -> str:
    """Return what a side calls a part."""
    return f"m{[*NAMES].index(part) * 7 % 11}" if style is None else NAMES[part][style]


class TorchBlock(nn.Module):
    def __init__(self, how: Choices) -> None:
        super().__init__()
        self.how = how
        parts: dict[str, nn.Module] = {"norm": nn.LayerNorm(WIDTH), "norm2": nn.LayerNorm(WIDTH)}
        for part, (ins, outs) in shapes(how.fused[0]).items():
            parts[part] = nn.Linear(ins, outs, bias=how.bias)
        for part, layer in parts.items():
            self.add_module(named(part, how.style[0]), layer)

    def part(self, part: str) -> Any:
        return getattr(self, named(part, self.how.style[0]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.part("norm")(x)
        fused = self.how.fused[0]
        parts = self.part("qkv")(y).chunk(3, -1) if fused else [self.part(part)(y) for part in "qkv"]
        q, k, v = (part.unflatten(-1, (HEADS, -1)).transpose(1, 2) for part in parts)
        y = (q @ k.transpose(-1, -2)).softmax(-1) @ v
        x = x + self.part("o")(y.transpose(1, 2).flatten(-2))
        return x + self.part("down")(torch.tanh(self.part("up")(self.part("norm2")(x))))


class TorchNet(nn.Module):
    def __init__(self, how: Choices) -> None:
        super().__init__()
        self.names = named("blocks", how.style[0]), named("head", how.style[0])
        self.add_module(self.names[0], nn.ModuleList(TorchBlock(how) for _ in range(how.blocks)))
        self.add_module(self.names[1], nn.Linear(WIDTH, 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in getattr(self, self.names[0]):
            x = block(x)
        return getattr(self, self.names[1])(x)


def shapes(fused: bool) -> dict[str, tuple[int, int]]:
    """Return inputs and outputs of the linear layers of a block."""
    attention = {"qkv": (WIDTH, 3 * WIDTH)} if fused else dict.fromkeys("qkv", (WIDTH, WIDTH))
    return {**attention, "o": (WIDTH, WIDTH), "up": (WIDTH, HIDDEN), "down": (HIDDEN, WIDTH)}


class OwnDense(nnx.Module):
    def __init__(self, ins: int, outs: int, bias: bool, transposed: bool, rngs: nnx.Rngs) -> None:
        self.name = "weight" if transposed else "kernel"
        setattr(
            self, self.name, nnx.Param(jax.random.normal(rngs.params(), (outs, ins) if transposed else (ins, outs)))
        )
        self.bias = nnx.Param(jnp.zeros(outs)) if bias else None

    def __call__(self, x: jax.Array) -> jax.Array:
        kernel = getattr(self, self.name)[...]
        y = x @ (kernel.T if self.name == "weight" else kernel)
        return y if self.bias is None else y + self.bias[...]


class OwnNorm(nnx.Module):
    def __init__(self) -> None:
        self.gamma, self.beta = nnx.Param(jnp.ones(WIDTH)), nnx.Param(jnp.zeros(WIDTH))

    def __call__(self, x: jax.Array) -> jax.Array:
        return (x - x.mean(-1, keepdims=True)) / jnp.sqrt(x.var(-1, keepdims=True) + 1e-5) * self.gamma + self.beta


class Block(nnx.Module):
    def __init__(self, how: Choices, rngs: nnx.Rngs) -> None:
        self.how = how
        makers: dict[str, Callable[[], nnx.Module]] = {}
        for part in ("norm", "norm2"):
            makers[part] = OwnNorm if how.norm == "own" else lambda: nnx.LayerNorm(WIDTH, epsilon=1e-5, rngs=rngs)
        for part, (ins, outs) in shapes(how.fused[1]).items():
            makers[part] = lambda ins=ins, outs=outs: dense(how, ins, outs, rngs)
        parts = [*makers]
        random.Random(how.shuffled).shuffle(parts)
        for part in parts:
            setattr(self, named(part, how.style[1]), makers[part]())

    def part(self, part: str) -> Any:
        return getattr(self, named(part, self.how.style[1]))

    def __call__(self, x: jax.Array) -> jax.Array:
        y = self.part("norm")(x)
        if self.how.fused[1]:
            some = jnp.split(self.part("qkv")(y), 3, -1)
            parts = [some[self.how.order.index(i)] for i in range(3)]
        else:
            parts = [self.part(part)(y) for part in "qkv"]
        q, k, v = (part.reshape(*part.shape[:2], HEADS, -1) for part in parts)
        weights = jax.nn.softmax(jnp.einsum("bqhd,bkhd->bhqk", q, k))
        y = jnp.einsum("bhqk,bkhd->bqhd", weights, v)
        x = x + self.part("o")(y.reshape(x.shape))
        return x + self.part("down")(jnp.tanh(self.part("up")(self.part("norm2")(x))))


def dense(how: Choices, ins: int, outs: int, rngs: nnx.Rngs) -> nnx.Module:
    """Return a linear layer of the port."""
    if how.dense == "library":
        return nnx.Linear(ins, outs, use_bias=how.bias, rngs=rngs)
    return OwnDense(ins, outs, how.bias, how.dense == "as-in-torch", rngs)


class Net(nnx.Module):
    def __init__(self, how: Choices) -> None:
        rngs, self.how = nnx.Rngs(0), how
        if how.stacked:

            @nnx.split_rngs(splits=how.blocks)
            @nnx.vmap(in_axes=(0,), out_axes=0)
            def made(rngs: nnx.Rngs) -> Block:
                return Block(how, rngs)

            blocks: Any = made(rngs)
        else:
            blocks = nnx.List([Block(how, rngs) for _ in range(how.blocks)])
        setattr(self, named("blocks", how.style[1]), blocks)
        setattr(self, named("head", how.style[1]), nnx.Linear(WIDTH, 3, rngs=rngs))

    def __call__(self, x: jax.Array) -> jax.Array:
        blocks = getattr(self, named("blocks", self.how.style[1]))
        if self.how.stacked:

            @nnx.scan(in_axes=(0, nnx.Carry), out_axes=nnx.Carry)
            def run(block: Block, x: jax.Array) -> jax.Array:
                return block(x)

            x = run(blocks, x)
        else:
            for block in blocks:
                x = block(x)
        return getattr(self, named("head", self.how.style[1]))(x)


def outcome(seed: int) -> str:
    """Return `right`, `refused: …` or `wrong: …` of one pair."""
    how = Choices.drawn(seed)
    torch.manual_seed(seed)
    ours = TorchNet(how).eval()
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape))
    x = np.random.default_rng(seed).standard_normal((2, 3, WIDTH)).astype(np.float32)
    expected = ours(torch.tensor(x)).detach().numpy()
    try:
        port = parity.move(ours, Net(how), x)
    except UserError as error:
        return f"refused: {' | '.join(str(error).splitlines())[:300]}"
    far = np.abs(np.asarray(port(jnp.asarray(x))) - expected).max() / np.abs(expected).max()
    return "right" if far < AGREES else f"wrong: outputs are {far:.1e} off, {how}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="write the counts to this file")
    asked = parser.parse_args()
    counts = {"right": 0, "refused": 0, "wrong": 0}
    for seed in range(asked.seed, asked.seed + asked.pairs):
        said = outcome(seed)
        counts[said.partition(":")[0]] += 1
        if said != "right":
            print(f"{seed}: {said}", flush=True)
    print(", ".join(f"{count} {name}" for name, count in counts.items()), f"of {asked.pairs}")
    if asked.json:
        found = {"schema": 1, "pairs": asked.pairs, "first": asked.seed, **counts, "environment": api.environment()}
        asked.json.write_text(f"{json.dumps(found, indent=1)}\n")
    return 1 if counts["wrong"] else 0


if __name__ == "__main__":
    sys.exit(main())
