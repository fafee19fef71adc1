"""The quickest of the programs that XLA makes from a function with several options.

`torch.compile(mode="max-autotune")` does this for kernels, this module for whole programs. Which of XLA's libraries for
CPUs is faster depends on the network, the batch and the mode, and XLA itself does not try. Any program can use the same
options: `jax.jit(step, compiler_options={...})`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import jax
from jax.stages import Lowered, Wrapped
from jaxtyping import PyTree

TIMES = 3  # that each is timed, in turn; the least counts


@dataclass(frozen=True, eq=False)
class Contender:
    """Options of XLA."""

    options: Mapping[str, str]

    def __str__(self) -> str:
        return " ".join(f"--{name}={value}" for name, value in self.options.items()) or "XLA's defaults"

    def jit(self, function: Callable[..., PyTree], donate_argnums: Sequence[int] = ()) -> Wrapped:
        return jax.jit(function, compiler_options=dict(self.options), donate_argnums=donate_argnums)


# The options to try, by device; the first is XLA's default. YNNPACK computes convolutions and products of matrices
# on CPUs; without it Eigen does.
EIGEN = {"xla_cpu_experimental_ynn_fusion_type": ""}
CANDIDATES = {"cpu": (Contender({}), Contender(EIGEN)), "gpu": (Contender({}),)}


class Quickest:
    """`jax.jit` of a function, which compiles and times every candidate at the first call and keeps one.

    No argument may be donated if there is more than one candidate.
    """

    def __init__(self, function: Callable[..., PyTree], device: str, donate_argnums: Sequence[int] = ()) -> None:
        self.programs = {candidate: candidate.jit(function, donate_argnums) for candidate in CANDIDATES[device]}

    def __call__(self, *arguments: PyTree) -> PyTree:
        if len(self.programs) > 1:
            kept = quickest(self.programs, arguments)
            self.programs = {kept: self.programs[kept]}
        return next(iter(self.programs.values()))(*arguments)

    def lower(self, *arguments: PyTree) -> Lowered:
        return next(iter(self.programs.values())).lower(*arguments)

    @property
    def kept(self) -> str:
        return str(next(iter(self.programs)))


def quickest(programs: Mapping[Contender, Callable[..., PyTree]], arguments: tuple[PyTree, ...]) -> Contender:
    """The candidate whose best call is quickest; they take turns, so that a slow moment affects all of them."""
    for program in programs.values():
        seconds(program, arguments)  # compiles
    times = [{candidate: seconds(program, arguments) for candidate, program in programs.items()} for _ in range(TIMES)]
    return min(programs, key=lambda candidate: min(turn[candidate] for turn in times))


def seconds(program: Callable[..., PyTree], arguments: tuple[PyTree, ...]) -> float:
    """Seconds of one call, after one that is not timed, because another program had used the memory."""
    jax.block_until_ready(program(*arguments))
    begin = time.perf_counter()
    jax.block_until_ready(program(*arguments))
    return time.perf_counter() - begin
