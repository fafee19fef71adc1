"""Models of random layers, written in PyTorch, NNX and Linen under shuffled names: `python tests/generated.py 1000`.

Each is moved rightly or refused. What is right is known: the models are written from one list of steps.
"""

from __future__ import annotations

import argparse
import random
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from flax import linen, nnx

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import parity
from ports import UserError

SIZE = 4
LEAVES = ("scale", "bias", "offset", "weight", "gamma_1", "gamma2", "table", "mean")


@dataclass(frozen=True)
class Step:
    """One step of a network.

    Attributes:
        kind: `linear`, `own` (x a + b, of a module's own parameters), `gate` (two layers on one input), `attention`
            (three), `root` (a parameter of the whole model).
        mine, theirs: the names of its module or parameter in PyTorch and in Flax.
        leaves, their_leaves: the names of its own parameters.
        order: in which Flax calls its layers.
    """

    kind: str
    mine: str
    theirs: str
    leaves: tuple[str, ...] = ()
    their_leaves: tuple[str, ...] = ()
    order: tuple[int, ...] = ()


def program(seed: int) -> list[Step]:
    """Return the steps of one model."""
    rng = random.Random(seed)
    kinds = [rng.choice(("linear", "own", "own", "gate", "attention", "root")) for _ in range(rng.randint(2, 5))]
    alike = rng.random() < 0.3  # the same names in both models
    names = rng.sample([f"m{i}" for i in range(20)], 2 * len(kinds))
    steps = []
    for i, kind in enumerate(kinds):
        count = {"own": 2, "gate": 2, "attention": 3}.get(kind, 1)
        leaves = tuple(rng.sample(LEAVES, count))
        how = rng.random()
        others = tuple(rng.sample([leaf for leaf in LEAVES if leaf not in leaves], count))
        theirs = leaves if how < 0.6 else others if how < 0.8 else (*leaves[1:], "other")
        order = tuple(rng.sample(range(count), count))
        other = names[2 * i] if alike else names[2 * i + 1]
        steps.append(Step(kind, names[2 * i], other, leaves, theirs, order))
    return steps


def attention(q: Any, k: Any, v: Any, softmax: Any) -> Any:
    return v * softmax(q * 3 + k * k) - q


class TorchOwn(torch.nn.Module):
    def __init__(self, leaves: tuple[str, ...]) -> None:
        super().__init__()
        self.leaves = leaves
        for leaf in leaves:
            setattr(self, leaf, torch.nn.Parameter(torch.randn(SIZE)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        a, b = (getattr(self, leaf) for leaf in self.leaves)
        return x * a + b


class TorchSeveral(torch.nn.Module):
    def __init__(self, leaves: tuple[str, ...]) -> None:
        super().__init__()
        self.leaves = leaves
        for leaf in leaves:
            setattr(self, leaf, torch.nn.Linear(SIZE, SIZE))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        ys = [getattr(self, leaf)(x) for leaf in self.leaves]
        if len(ys) == 2:
            return ys[0] * torch.sigmoid(ys[1])
        q, k, v = ys
        return attention(q, k, v, lambda a: torch.softmax(a, -1))


class TorchModel(torch.nn.Module):
    def __init__(self, steps: list[Step]) -> None:
        super().__init__()
        self.steps = steps
        for step in steps:
            if step.kind == "root":
                setattr(self, step.mine, torch.nn.Parameter(torch.randn(SIZE)))
            elif step.kind == "linear":
                setattr(self, step.mine, torch.nn.Linear(SIZE, SIZE))
            else:
                setattr(self, step.mine, (TorchOwn if step.kind == "own" else TorchSeveral)(step.leaves))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for step in self.steps:
            module = getattr(self, step.mine)
            x = torch.tanh(x + module if step.kind == "root" else module(x))
        return x


class LinenOwn(linen.Module):
    leaves: tuple[str, ...]

    @linen.compact
    def __call__(self, x: Any) -> Any:
        a, b = (self.param(leaf, linen.initializers.normal(), (SIZE,)) for leaf in self.leaves)
        return x * a + b


class LinenSeveral(linen.Module):
    leaves: tuple[str, ...]
    order: tuple[int, ...]

    @linen.compact
    def __call__(self, x: Any) -> Any:
        ys = {i: linen.Dense(SIZE, name=f"d_{self.leaves[i]}")(x) for i in self.order}
        if len(ys) == 2:
            return ys[0] * jax.nn.sigmoid(ys[1])
        return attention(ys[0], ys[1], ys[2], jax.nn.softmax)


class LinenModel(linen.Module):
    steps: tuple[Step, ...]

    @linen.compact
    def __call__(self, x: Any) -> Any:
        for step in self.steps:
            if step.kind == "root":
                y = x + self.param(step.theirs, linen.initializers.normal(), (SIZE,))
            elif step.kind == "linear":
                y = linen.Dense(SIZE, name=step.theirs)(x)
            elif step.kind == "own":
                y = LinenOwn(step.their_leaves, name=step.theirs)(x)
            else:
                y = LinenSeveral(step.their_leaves, step.order, name=step.theirs)(x)
            x = jnp.tanh(y)
        return x


class NnxOwn(nnx.Module):
    def __init__(self, leaves: tuple[str, ...], rngs: nnx.Rngs) -> None:
        self.leaves = leaves
        for leaf in leaves:
            setattr(self, leaf, nnx.Param(jax.random.normal(rngs.params(), (SIZE,))))

    def __call__(self, x: Any) -> Any:
        a, b = (getattr(self, leaf)[...] for leaf in self.leaves)
        return x * a + b


class NnxSeveral(nnx.Module):
    def __init__(self, leaves: tuple[str, ...], order: tuple[int, ...], rngs: nnx.Rngs) -> None:
        self.order = order
        self.parts = nnx.List([nnx.Linear(SIZE, SIZE, rngs=rngs) for _ in order])

    def __call__(self, x: Any) -> Any:
        ys = {i: layer(x) for i, layer in zip(self.order, self.parts, strict=True)}
        return ys[0] * jax.nn.sigmoid(ys[1]) if len(ys) == 2 else attention(ys[0], ys[1], ys[2], jax.nn.softmax)


class NnxModel(nnx.Module):
    def __init__(self, steps: list[Step], rngs: nnx.Rngs) -> None:
        self.steps = tuple(steps)
        for step in steps:
            if step.kind == "root":
                module: Any = nnx.Param(jax.random.normal(rngs.params(), (SIZE,)))
            elif step.kind == "linear":
                module = nnx.Linear(SIZE, SIZE, rngs=rngs)
            elif step.kind == "own":
                module = NnxOwn(step.their_leaves, rngs)
            else:
                module = NnxSeveral(step.their_leaves, step.order, rngs)
            setattr(self, step.theirs, module)

    def __call__(self, x: Any) -> Any:
        for step in self.steps:
            module = getattr(self, step.theirs)
            x = jnp.tanh(x + module[...] if step.kind == "root" else module(x))
        return x


def verdict(seed: int) -> str:
    """Move the weights of one model: `right`, `refused`, or `WRONG` where the outputs are not PyTorch's."""
    steps = program(seed)
    torch.manual_seed(seed)
    model = TorchModel(steps)
    x = np.random.default_rng(seed).standard_normal((5, SIZE)).astype(np.float32)
    port: Any = NnxModel(steps, nnx.Rngs(seed))
    if seed % 2:
        module = LinenModel(tuple(steps))
        port = (module, module.init(jax.random.key(seed), x))
    try:
        moved = parity.move(model, port, x)
    except UserError:
        return "refused"
    got = moved[0].apply(moved[1], x) if seed % 2 else moved(jnp.asarray(x))
    expected = model(torch.tensor(x)).detach().numpy()
    return "right" if np.allclose(got, expected, atol=1e-5) else "WRONG"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", type=int)
    parser.add_argument("--first", type=int, default=0, help="seed of the first model")
    arguments = parser.parse_args()
    seeds = range(arguments.first, arguments.first + arguments.models)
    found = {seed: verdict(seed) for seed in seeds}
    print(dict(Counter(found.values())), "wrong:", [seed for seed, said in found.items() if said == "WRONG"])


if __name__ == "__main__":
    main()
