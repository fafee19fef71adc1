"""Isolate a check from its process: one check at a time, in known settings, which are restored afterwards.

One check. Parts of a check change what all threads share (`__call__` of NNX classes, PyTorch's deterministic mode). A
second check in another thread waits until the first has ended. A check that is called inside a check, by a model or by
a loss, could only wait for itself: it is refused. A model that starts a check in another thread must not wait for it.

Known settings. `TORCH` and `JAX` list the settings that a caller may have changed, with the values that the check
needs: a check in `torch.no_grad()` or `jax.debug_nans` gives the same verdict as outside. PyTorch's default type may be
float64, the type of the verdict; a narrower one becomes float32. If the caller turns a warning into an error, the check
only shows the warning.

Put back. The settings, the warning filters and the states of the global random generators are the caller's again after
a verdict, an exception or an interrupt.

Other threads may run PyTorch, JAX and Flax meanwhile, on any model that the check does not get. They keep their grad
mode, autocast, default device and JAX settings, which belong to a thread. Five settings belong to the process, so other
threads see them change: PyTorch's deterministic mode (on, with warnings), its default type and its anomaly mode if the
caller changed them, warning filters, and JAX's folder of compiled programs (`compiled`). Numbers that other threads
draw from global generators may be drawn again after the check.
"""

from __future__ import annotations

import random
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from typing import Any

import jax
import numpy as np
import torch

from parity.running import compiled
from parity.running import device as devices
from ports.errors import UserError

AUTOCAST = ("cpu", "cuda", "mps", "xpu")

# PyTorch settings that a caller may have changed, with the values that the check needs.
TORCH: tuple[Callable[[], AbstractContextManager[Any]], ...] = (
    partial(torch.inference_mode, False),
    torch.enable_grad,
)
# The same for JAX. All of these settings belong to a thread.
JAX: tuple[tuple[Callable[[Any], AbstractContextManager[Any]], Any], ...] = (
    (jax.enable_x64, True),
    (jax.disable_jit, False),
    (jax.debug_nans, False),
    (jax.debug_infs, False),
    (jax.debug_key_reuse, False),
    (jax.check_tracer_leaks, False),
    (jax.numpy_dtype_promotion, "standard"),
    (jax.numpy_rank_promotion, "allow"),
    (jax.transfer_guard, "allow"),
    (jax.default_matmul_precision, None),
)
# What numpy starts with.
NUMPY: dict[str, Any] = {"divide": "warn", "over": "warn", "under": "ignore", "invalid": "warn"}

WAITING = "waiting for another check in this process"


def matmul_precision() -> str | None:
    """Return JAX's precision of products as the caller set it; a check in float64 needs JAX's own."""
    config: Any = jax.config
    return config.jax_default_matmul_precision


class _Turn:
    """The lock of the process, and the thread that has it."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.owner: int | None = None


_TURN = _Turn()


@contextmanager
def isolated(
    device: str = "cpu", tf32: bool | None = None, progress: Callable[[str], None] = lambda _: None
) -> Iterator[None]:
    """Run the block alone in this process, on this device and in known settings, and restore every setting.

    Raises:
        UserError: the thread runs a check already.
    """
    with _alone(progress), _restored(), ExitStack() as stack:
        stack.enter_context(_lenient())
        for plain in TORCH:
            stack.enter_context(plain())
        for kind in filter(torch.is_autocast_enabled, AUTOCAST):
            stack.enter_context(torch.autocast(kind, enabled=False))
        for setting, value in JAX:
            stack.enter_context(setting(value))
        stack.enter_context(np.errstate(**NUMPY))
        stack.enter_context(devices.using(device, tf32))
        stack.enter_context(compiled.kept())
        torch.set_deterministic_debug_mode("warn")
        torch.autograd.set_detect_anomaly(False)
        if torch.get_default_dtype() != torch.float64:
            torch.set_default_dtype(torch.float32)
        yield


@contextmanager
def _alone(progress: Callable[[str], None]) -> Iterator[None]:
    """Wait until no other thread runs a check.

    Raises:
        UserError: this thread runs one, and would wait for itself.
    """
    if _TURN.owner == threading.get_ident():
        raise UserError(
            "parity: got a check inside a check: a model, a loss, an optimizer or `progress` called it; "
            "expected one at a time: call it after the first has ended"
        )
    if _TURN.lock.locked():
        progress(WAITING)
    with _TURN.lock:
        try:
            _TURN.owner = threading.get_ident()
            yield
        finally:
            _TURN.owner = None


# Settings of the process without a context manager that puts them back: how to read one, and how to write it.
PROCESS: tuple[tuple[Callable[[], Any], Callable[[Any], Any]], ...] = (
    (torch.get_default_dtype, torch.set_default_dtype),
    (torch.get_deterministic_debug_mode, torch.set_deterministic_debug_mode),
    (
        lambda: (torch.is_anomaly_enabled(), torch.is_anomaly_check_nan_enabled()),
        lambda value: torch.autograd.set_detect_anomaly(*value),
    ),
    (torch.get_rng_state, torch.set_rng_state),
    (
        lambda: torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else [],
        lambda states: torch.cuda.set_rng_state_all(states) if states else None,
    ),
    (random.getstate, random.setstate),
    (np.random.get_state, np.random.set_state),
)


@contextmanager
def _restored() -> Iterator[None]:
    """Restore the settings of `PROCESS` at the end of the block."""
    before = [read() for read, _ in PROCESS]
    try:
        yield
    finally:
        for (_, write), value in zip(PROCESS, before, strict=True):
            write(value)


@contextmanager
def _lenient() -> Iterator[None]:
    """Show warnings that the caller's filters turn into errors: a warning inside a check is not a verdict."""
    with warnings.catch_warnings():
        rules: Any = warnings.filters
        rules[:] = [("default" if action == "error" else action, *rest) for action, *rest in rules]
        yield
