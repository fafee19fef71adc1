"""Mistakes planted in modules of random structure: `python -m tests.meta.random_modules.mistakes --each 3`.

A mistake is another choice for one block of the port. The check must catch it, and its first finding must stand at this
block. Which program and which block has it follows from a seed.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch

import parity
from benchmarks.reporting import intervals

from .. import faithful
from . import programs
from .choices import Choices
from .networks import Program

# Blocks that have an activation.
ACTING = ("mlp", "gated mlp", "mixer", "experts", "convolution", "separable convolution", "ConvNeXt", "conformer")
EPSILON_NORMS = ("layer norm", "layer norm of its own", "RMSNorm", "RMSNorm of its own", "group norm", "batch norm")


@dataclass(frozen=True)
class Mistake:
    """Another choice for a block of the port; None where the block cannot have it."""

    name: str
    change: Callable[[Choices], Choices | None]


def _act(of: tuple[str, ...], other: str) -> Callable[[Choices], Choices | None]:
    return lambda s: replace(s, act=other) if s.block in ACTING and s.act in of else None


def _epsilon(s: Choices) -> Choices | None:
    return replace(s, epsilon=1e-6) if s.norm in EPSILON_NORMS and s.epsilon == 1e-5 else None


def _residual(s: Choices) -> Choices | None:
    return replace(s, residual=False) if s.residual else None


def _order(s: Choices) -> Choices | None:
    return replace(s, before=not s.before) if s.norm and s.residual else None


def _rate(s: Choices) -> Choices | None:
    drops = ("mlp", "conformer", "attention of the library")
    return replace(s, rate=0.3) if s.block in drops and s.rate else None


def _path(s: Choices) -> Choices | None:
    return replace(s, path=s.path / 2) if s.path and s.residual else None


def _future(s: Choices) -> Choices | None:
    return replace(s, causal=False) if s.causal and s.block.startswith("attention") else None


def _turns(s: Choices) -> Choices | None:
    return replace(s, rotary=False) if s.block == "attention" and s.rotary and s.depth % 2 == 0 else None


MISTAKES = (
    Mistake("the tanh form of GELU", _act(("gelu", "gelu, a function"), "gelu of tanh")),
    Mistake("GELU where PyTorch has its tanh form", _act(("gelu of tanh",), "gelu")),
    Mistake("ReLU where PyTorch has SiLU", _act(("silu", "silu, a function"), "relu")),
    Mistake("SiLU where PyTorch has ReLU", _act(("relu", "relu in place", "relu, a function"), "silu")),
    Mistake("the default epsilon of Flax", _epsilon),
    Mistake("no residual", _residual),
    Mistake("the norm on the other side of the sum", _order),
    Mistake("another rate of dropout", _rate),
    Mistake("half the rate of stochastic depth", _path),
    Mistake("attention sees the future", _future),
    Mistake("no rotary embedding", _turns),
)


@dataclass(frozen=True)
class Planted:
    """A program, and the same with a mistake in one of its blocks."""

    mistake: Mistake
    seed: int
    right: Program
    wrong: Program
    block: int

    @property
    def layer(self) -> str:
        """The block's name in PyTorch."""
        return f"blocks.{self.block}"


@dataclass(frozen=True)
class Result:
    """What the check made of one.

    Attributes:
        caught: it ends with exit code 1.
        placed: its first finding stands at the block or inside of it.
    """

    mistake: str
    seed: int
    caught: bool
    placed: bool
    said: str


def planted(mistake: Mistake, first: int = 0) -> Iterator[Planted]:
    """Yield programs with this mistake, by their seeds."""
    for seed in range(first, first + 10_000):
        right = programs.program(seed)
        for i, block in enumerate(right.blocks):
            if (other := mistake.change(block)) is not None:
                blocks = (*right.blocks[:i], other, *right.blocks[i + 1 :])
                yield Planted(mistake, seed, right, replace(right, blocks=blocks), i)
                break


def run(case: Planted) -> Result:
    """Plant and check. The weights move into the right port first, for some mistakes need them to be paired."""
    torch.manual_seed(case.seed)
    x = programs.inputs_of(case.right, case.seed)
    model = programs.reference_of(case.right)
    normed = any(isinstance(module, faithful.BATCH_NORM) for module in model.modules())
    options: dict[str, Any] = {"accept": ["bn-running-var"]} if normed else {}
    try:
        flax = programs.with_program(parity.move(model, programs.port_of(case.right, x), x), case.wrong)
        report = parity.check(model, flax, x, steps=1, **options)
    except Exception as error:  # whatever the check raises, the mistake was not found
        return Result(case.mistake.name, case.seed, False, False, f"{type(error).__name__}: {error}")
    findings = report.models[0].findings
    where = findings[0].layer if findings else ""
    return Result(
        case.mistake.name,
        case.seed,
        report.exit_code == 1,
        f"{where}.".startswith(f"{case.layer}."),
        "; ".join(f"{f.layer} [{f.trap}]" for f in findings[:3]) + f" (planted in {case.layer})",
    )


def main(arguments: list[str] | None = None) -> int:
    """Plant some of each; exit 0 where all are caught at their blocks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--each", type=int, default=3, help="programs for each mistake")
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    asked = parser.parse_args(arguments)
    found = []
    with faithful.compiled_once():
        for mistake in MISTAKES:
            for case in (case for case, _ in zip(planted(mistake, asked.first), range(asked.each), strict=False)):
                found.append(result := run(case))
                good = "ok" if result.caught and result.placed else "NOT " + ("placed" if result.caught else "caught")
                print(f"{mistake.name}, seed {case.seed}: {good}: {result.said}", flush=True)
    caught, placed = (sum(getattr(r, what) for r in found) for what in ("caught", "placed"))
    print(f"caught {caught} of {len(found)} ({intervals.said(caught, len(found))}), {placed} at their block")
    return 0 if placed == caught == len(found) else 1


if __name__ == "__main__":
    sys.exit(main())
