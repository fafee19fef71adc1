"""The score: every entry of the catalogue planted in a Flax port, and what the check makes of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import jax
import torch

from parity import catalogue
from parity.planted import Case
from parity.planted_between import BETWEEN
from parity.planted_layers import LAYERS
from parity.planted_weights import WEIGHTS
from ports.errors import UserError

# By family; a family of the catalogue is a table of its own.
CASES: dict[str, tuple[Case, ...]] = {"weight": WEIGHTS, "layer": LAYERS, "between": BETWEEN}

# The parts of all cases that must be caught, found at the right layer, and called by the right name.
TARGETS = {"caught": 1.0, "layer": 0.95, "name": 0.95}


@dataclass(frozen=True)
class Result:
    """What the check made of one planted mistake.

    Attributes:
        caught: the check ends with exit code 1.
        layer: a finding stands at the layer of the mistake, and the first of all does.
        name: that finding has its name, and no finding has a name that is not part of the mistake.
        said: every finding, layer and name; or the error.
    """

    family: str
    trap: str
    caught: bool
    layer: bool
    name: bool
    said: str
    seconds: float

    @property
    def ok(self) -> bool:
        return self.caught and self.layer and self.name


@contextmanager
def quick() -> Any:
    """XLA without its optimisations, for programs that run once."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    try:
        yield
    finally:
        jax.config.update("jax_disable_most_optimizations", before)


def run(family: str, case: Case) -> Result:
    """Plants and checks."""
    import parity

    begin = time.monotonic()
    torch.manual_seed(0)
    try:
        with quick():
            report = parity.check(*case.make(), **{"steps": 1, **case.options})
    except UserError as error:
        return Result(family, case.trap, False, False, False, str(error), round(time.monotonic() - begin, 2))
    findings = report.models[0].findings
    found = [f.trap for f in findings if f.layer == case.layer]
    names = {f.trap for f in findings}
    return Result(
        family,
        case.trap,
        caught=report.exit_code == 1,
        layer=bool(findings) and findings[0].layer == case.layer,
        name=case.trap in found and names <= {case.trap, *case.also},
        said="; ".join(f"{f.layer} [{f.trap}]" for f in findings),
        seconds=round(time.monotonic() - begin, 2),
    )


def without_case() -> list[str]:
    """The entries of the catalogue that no case plants."""
    planted = {(family, case.trap) for family, cases in CASES.items() for case in cases}
    return [f"{e.family}: {e.name}" for e in catalogue.entries() if (e.family, e.name) not in planted]


def sample(cases: Mapping[str, Sequence[Case]], count: int) -> dict[str, tuple[Case, ...]]:
    """About so many cases, evenly over the tables."""
    total = sum(map(len, cases.values()))
    every = max(1, round(total / count))
    return {family: tuple(some[::every]) for family, some in cases.items()}


def detect(cases: Mapping[str, Iterable[Case]], progress: Callable[[Result], None] = lambda _: None) -> list[Result]:
    """The results of all these cases, in order."""
    results = []
    for family, some in cases.items():
        for case in some:
            results.append(run(family, case))
            progress(results[-1])
    return results


def met(results: Sequence[Result]) -> bool:
    """Whether the targets are met by these results."""
    return bool(results) and all(
        sum(getattr(r, what) for r in results) >= part * len(results) for what, part in TARGETS.items()
    )


def to_json(results: Sequence[Result]) -> list[dict[str, Any]]:
    return [asdict(result) for result in results]
