"""The program that runs quickest of those that XLA makes of a function under several of its options.

What `torch.compile(mode="max-autotune")` does for kernels, for whole programs: which of XLA's libraries for CPUs is the
faster one goes by the network, the batch and the mode, and XLA does not try. Anybody's program can be given the same:
`jax.jit(step, compiler_options={...})`.
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


# By device, what is tried; the first is what XLA does by itself. YNNPACK computes convolutions and products of matrices
# on CPUs; without it Eigen does.
EIGEN = {"xla_cpu_experimental_ynn_fusion_type": ""}
CANDIDATES = {"cpu": (Contender({}), Contender(EIGEN)), "gpu": (Contender({}),)}


class Quickest:
    """`jax.jit` of a function, which compiles and times every candidate at the first call and keeps one.

    No argument may be donated where there is more than one candidate.
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
    """That whose best call takes the least time; they take turns, so that a slow moment is nobody's alone."""
    for program in programs.values():
        seconds(program, arguments)  # compiles
    times = [{candidate: seconds(program, arguments) for candidate, program in programs.items()} for _ in range(TIMES)]
    return min(programs, key=lambda candidate: min(turn[candidate] for turn in times))


def seconds(program: Callable[..., PyTree], arguments: tuple[PyTree, ...]) -> float:
    """Of one call until its results are there, after one that is not timed: memory was another program's."""
    jax.block_until_ready(program(*arguments))
    begin = time.perf_counter()
    jax.block_until_ready(program(*arguments))
    return time.perf_counter() - begin
