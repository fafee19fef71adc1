"""Models of random layers, written in PyTorch, NNX and Linen under shuffled names: `python tests/generated.py 1000`.

Each is moved rightly or refused. What is right is known: the models are written from one list of steps. Some ports hold
a mistake, which is taken out again once the weights are moved.
"""

from __future__ import annotations

import argparse
import random
import sys
from collections import Counter
from collections.abc import Mapping
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
KINDS = ("linear", "linear", "own", "own", "gate", "attention", "towers", "root")
COUNTS = {"own": 2, "gate": 2, "attention": 3, "towers": 4}
# Orders in which Flax calls the layers of two towers, 0 and 1, 2 and 3.
CALLS = ((0, 1, 2, 3), (2, 3, 0, 1), (0, 2, 1, 3), (2, 0, 3, 1))
LEAVES = ("scale", "bias", "offset", "weight", "gamma_1", "gamma2", "table", "mean")


@dataclass(frozen=True)
class Step:
    """One step of a network.

    Attributes:
        kind: `linear`, `own` (x a + b, of a module's own parameters), `gate` (two layers on one input), `attention`
            (three), `towers` (two chains of two layers on one input), `root` (a parameter of the whole model).
        mine, theirs: the names of its module or parameter in PyTorch and in Flax.
        leaves, their_leaves: the names of its own parameters or layers.
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
    kinds = [rng.choice(KINDS) for _ in range(rng.randint(2, 5))]
    crossing = rng.random() < 0.4
    mine, theirs = _names(rng, len(kinds), crossing)
    steps = []
    for i, kind in enumerate(kinds):
        count = COUNTS.get(kind, 1)
        leaves = tuple(rng.sample(LEAVES, count))
        how = rng.random()
        others = tuple(f"their_{leaf}" for leaf in leaves)
        named = leaves if how < 0.6 else others if how < 0.8 or crossing else (*leaves[1:], "other")
        order = rng.choice(CALLS) if kind == "towers" else tuple(rng.sample(range(count), count))
        steps.append(Step(kind, mine[i], theirs[i], leaves, named, order))
    return steps


def _names(rng: random.Random, count: int, crossing: bool) -> tuple[list[str], list[str]]:
    """Names of a model's modules in PyTorch and in Flax: of their own, the same, under other numbers, or shifted."""
    names = rng.sample([f"m{i}" for i in range(20)], 2 * count)
    mine, others = names[:count], names[count:]
    step, first = rng.randint(1, 2), rng.randint(0, 2)
    theirs = {
        "own": others,
        "same": mine,
        "shifted": [*mine[1:], others[0]],
        "numbers": [f"fc{first + i}" for i in range(count)],
    }
    how = "shifted" if crossing else rng.choice(["own", "same", "numbers"])
    return ([f"fc{step * i}" for i in range(count)] if how == "numbers" else mine), theirs[how]


def combined(ys: Mapping[int, Any], softmax: Any, sigmoid: Any) -> Any:
    """What comes of the layers of a gate, an attention or two towers."""
    if len(ys) == 2:
        return ys[0] * sigmoid(ys[1])
    if len(ys) == 3:
        return ys[2] * softmax(ys[0] * 3 + ys[1] * ys[1]) - ys[0]
    return ys[1] * sigmoid(ys[3]) + ys[1]


def called(layers: Mapping[int, Any], x: Any, tanh: Any) -> dict[int, Any]:
    """What the layers give, called in this order; the second and the last of four get what the one before gives."""
    ys: dict[int, Any] = {}
    for i, layer in layers.items():
        ys[i] = layer(tanh(ys[i - 1]) if len(layers) == 4 and i % 2 else x)
    return ys


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
        ys = called({i: getattr(self, leaf) for i, leaf in enumerate(self.leaves)}, x, torch.tanh)
        return combined(ys, lambda a: torch.softmax(a, -1), torch.sigmoid)


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
        layers = {i: linen.Dense(SIZE, name=self.leaves[i]) for i in self.order}
        return combined(called(layers, x, jnp.tanh), jax.nn.softmax, jax.nn.sigmoid)


class LinenModel(linen.Module):
    steps: tuple[Step, ...]
    mistake: int = -1

    @linen.compact
    def __call__(self, x: Any) -> Any:
        for i, step in enumerate(self.steps):
            if i == self.mistake:
                x = x * 1.25 + 0.25
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
        ys = called(dict(zip(self.order, self.parts, strict=True)), x, jnp.tanh)
        return combined(ys, jax.nn.softmax, jax.nn.sigmoid)


class NnxModel(nnx.Module):
    def __init__(self, steps: list[Step], rngs: nnx.Rngs, mistake: int = -1) -> None:
        self.steps, self.mistake = tuple(steps), mistake
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
        for i, step in enumerate(self.steps):
            if i == self.mistake:
                x = x * 1.25 + 0.25
            module = getattr(self, step.theirs)
            x = jnp.tanh(x + module[...] if step.kind == "root" else module(x))
        return x


def crossed(steps: list[Step]) -> bool:
    """Whether a name means one thing in PyTorch and another in Flax: that is told by a faithful port alone."""
    pairs = [(step.mine, step.theirs) for step in steps]
    pairs += [pair for step in steps for pair in zip(step.leaves, step.their_leaves, strict=True)]
    return any(a != b and b in {mine for mine, _ in pairs} for a, b in pairs)


def verdict(seed: int) -> str:
    """Move the weights of one model: `right`, `refused`, or `WRONG` where the outputs are not PyTorch's."""
    steps = program(seed)
    torch.manual_seed(seed)
    model = TorchModel(steps)
    x = np.random.default_rng(seed).standard_normal((5, SIZE)).astype(np.float32)
    mistake = seed % len(steps) if seed % 5 > 2 and not crossed(steps) else -1
    port: Any = NnxModel(steps, nnx.Rngs(seed), mistake)
    if seed % 2:
        module = LinenModel(tuple(steps), mistake)
        port = (module, module.init(jax.random.key(seed), x))
    try:
        moved = parity.move(model, port, x)
    except UserError:
        return "refused"
    if seed % 2:
        got: Any = LinenModel(tuple(steps)).apply(moved[1], x)
    else:
        moved.mistake = -1
        got = moved(jnp.asarray(x))
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
