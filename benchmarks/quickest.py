"""The program that runs quickest of those that XLA makes of a function under several of its options.

What `torch.compile(mode="max-autotune")` does for kernels, for whole programs: which of XLA's libraries for CPUs is the
faster one goes by the network, the batch and the mode, and XLA does not try. Anybody's program can be given the same:
`jax.jit(step, compiler_options={...})`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import jax

# By device, what is tried; the first is what XLA does by itself. YNNPACK computes convolutions and products of matrices
# on CPUs; without it Eigen does.
OPTIONS: dict[str, tuple[Mapping[str, str], ...]] = {
    "cpu": ({}, {"xla_cpu_experimental_ynn_fusion_type": ""}),
    "gpu": ({},),
}
TIMES = 2  # that each is timed; the least counts


class Quickest:
    """`jax.jit` of a function, which compiles and times every candidate at the first call and keeps one.

    No argument may be donated where there is more than one candidate.
    """

    def __init__(self, function: Callable[..., Any], device: str, **how: Any) -> None:
        self.programs = [
            (options, jax.jit(function, compiler_options=dict(options), **how)) for options in OPTIONS[device]
        ]

    def __call__(self, *arguments: Any) -> Any:
        if len(self.programs) > 1:
            self.programs = [min(self.programs, key=lambda candidate: seconds(candidate[1], arguments))]
        return self.programs[0][1](*arguments)

    def lower(self, *arguments: Any) -> Any:
        return self.programs[0][1].lower(*arguments)

    @property
    def options(self) -> str:
        """Those that were kept, as flags."""
        return " ".join(f"--{name}={value}" for name, value in self.programs[0][0].items()) or "XLA's defaults"


def seconds(program: Callable[..., Any], arguments: tuple[Any, ...]) -> float:
    """The least time of a call, when it is compiled."""
    jax.block_until_ready(program(*arguments))
    times = []
    for _ in range(TIMES):
        begin = time.perf_counter()
        jax.block_until_ready(program(*arguments))
        times.append(time.perf_counter() - begin)
    return min(times)
