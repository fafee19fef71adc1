"""Runs in which every layer gets a given value, in PyTorch and in Flax, and which record what each layer makes of it.

A softmax counts as a layer, wherever it is called: its input is given, and its output is recorded.
"""

from __future__ import annotations

import copy
import inspect
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from jax.core import Tracer
from torch import nn
from torch.overrides import TorchFunctionMode

from parity.numerics.layouts import fitting, leaves, to_flax, to_reference
from parity.numerics.quantities import Probe
from parity.running import flax as run_flax
from parity.running import pytorch as run_pytorch
from parity.running.device import Crossing
from parity.running.flax import Functional
from parity.running.taps import Calls, Tap, layer_of
from ports.weights.live.pytorch import to_numpy

# Where a value is seen: entering a layer, leaving it, or at the end of the network; and which call.
Key = tuple[str, str]
Values = dict[Key, np.ndarray]

# The name for calls of a softmax, and JAX's names of the functions that such a call goes through.
SOFTMAX, RULES = "(softmax)", ("_softmax", "_softmax_deprecated")


class Forcing(Tap):
    """Records the input and output of every layer, and replaces them by other values.

    `running` has the modules that run, from the outside in, if they are reported (`_running`).

    Args:
        values: in PyTorch's layout; nothing is replaced elsewhere.
        put: gives a framework's array from a key, a value and the array that it replaces; None if the shapes do not
            fit.
    """

    def __init__(self, values: Values, put: Callable[[Key, np.ndarray, Any], Any]) -> None:
        self.values, self.put, self.calls = values, put, Calls()
        self.seen: dict[Key, Any] = {}
        self.within: dict[Key, str] = {}
        self.running: list[str] = []
        self.makers: dict[int, tuple[str, Any]] = {}

    def enter(self, name: str, x: Any) -> Any:
        maker = self.makers[id(x)][0] if id(x) in self.makers else self.running[-1] if self.running else ""
        return self._at(("enter", name), x, maker)

    def leave(self, name: str, y: Any) -> Any:
        return self._at(("leave", name), y, self.makers[id(y)][0] if id(y) in self.makers else name)

    def softmax(self, original: Callable[..., Any], x: Any, *args: Any, **kw: Any) -> Any:
        """Call a softmax: its input is forced, and its output recorded."""
        name, around = self.calls.next(SOFTMAX), self.running[-1] if self.running else ""
        y = self.seen["leave", name] = original(self._at(("enter", name), x, around), *args, **kw)
        self.within["leave", name] = around
        return y

    def _at(self, key: Key, value: Any, maker: str) -> Any:
        """Record a value and return its replacement. Its module is the innermost one that returned it."""
        self.seen[key], self.within[key] = value, maker
        new = None if key not in self.values else self.put(key, self.values[key], value)
        new = value if new is None else new
        self.makers |= {id(held): (maker, held) for held in (value, new)}
        return new


@contextmanager
def _running(net: nn.Module, tap: Forcing) -> Iterator[None]:
    """Tell a tap which modules run, also those that are called only with keywords, after it has seen their inputs."""
    hooks = []

    def left(*_: object) -> None:
        tap.running.pop()

    for name, module in net.named_modules():
        hooks.append(module.register_forward_pre_hook(lambda *_, name=name: tap.running.append(name)))
        hooks.append(module.register_forward_hook(left))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


class _Softmaxes(TorchFunctionMode):
    """Reports the calls of a softmax to a tap, except those inside PyTorch's own Python functions."""

    FUNCTIONS = (torch.softmax, torch.Tensor.softmax, torch.nn.functional.softmax, torch.special.softmax)

    def __init__(self, tap: Forcing) -> None:
        super().__init__()
        self.tap = tap

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        return self.tap.softmax(func, *args, **kwargs) if func in self.FUNCTIONS and args else func(*args, **kwargs)


@contextmanager
def _jax_softmaxes(tap: Forcing) -> Iterator[None]:
    """Report this thread's calls of `jax.nn.softmax` to a tap, under any imported name: it calls one of `RULES`."""
    module, thread = inspect.unwrap(jax.nn.softmax).__globals__, threading.get_ident()
    originals = {name: module[name] for name in RULES if name in module}

    def told(original: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kw: Any) -> Any:
            # Inside a transformation, such as `jax.vmap`, there are no numbers to be seen.
            ours = threading.get_ident() == thread and not any(isinstance(arg, Tracer) for arg in args)
            return tap.softmax(original, *args, **kw) if ours else original(*args, **kw)

        return call

    module.update({name: told(original) for name, original in originals.items()})
    try:
        yield
    finally:
        module.update(originals)


def is_softmax(key: Key) -> bool:
    return layer_of(key[1]) == SOFTMAX


def _into_torch(key: Key, array: np.ndarray, old: torch.Tensor) -> torch.Tensor | None:
    if tuple(old.shape) != array.shape or not old.is_floating_point():
        return None
    return torch.as_tensor(array.astype(np.float64), device=old.device).to(old.dtype)


def _layout(key: Key, expected: np.ndarray, got: jax.Array) -> str | None:
    """Return the layout in which a port holds an array; None if it holds a different array. Scores have no channels."""
    if expected.ndim != got.ndim or not jnp.issubdtype(got.dtype, jnp.floating):
        return None
    if is_softmax(key):
        return "same" if expected.shape == got.shape else None
    return fitting(expected.shape, got.shape)


def _into_jax(key: Key, array: np.ndarray, old: jax.Array) -> jax.Array | None:
    """Return a value in the type of the array that it replaces, or in the reference's type if that is wider.

    So the check finds the layer that gives a narrower type, and not the layers after it. For a softmax its own type
    counts.
    """
    layout = _layout(key, array, old)
    dtype = old.dtype if is_softmax(key) else jnp.promote_types(old.dtype, array.dtype)
    return None if layout is None else jnp.asarray(to_flax(array, layout), dtype)


def of_torch(net: nn.Module, fed: Probe, values: Values, train: bool) -> tuple[Values, dict[Key, str]]:
    """Return a PyTorch network's values at its modules and its end, in its types, and the module that made each."""
    net, tap = (copy.deepcopy(net) if train else net).train(train), Forcing(values, _into_torch)
    names = [name for name, _ in net.named_modules() if name]
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # one kernel for a whole layer has no parts to be seen
    try:
        with torch.no_grad(), Crossing(), run_pytorch.tapped(net, tap, names), _running(net, tap), _Softmaxes(tap):
            result = run_pytorch.run(net, fed, run_pytorch.inputs_of(fed))
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
    tap.seen |= {("end", name): value for name, value in leaves(result, "output") if isinstance(value, torch.Tensor)}
    found = {key: to_numpy(value) for key, value in tap.seen.items() if value.is_floating_point()}
    return {key: fed.counted(array) if array.ndim else array for key, array in found.items()}, tap.within


def of_flax(net: Functional, fed: Probe, values: Values, train: bool) -> Values:
    """Return a port's values there, in PyTorch's layout, run one operation after the other."""
    tap = Forcing({key: array for key, array in values.items() if key[0] != "end"}, _into_jax)
    result = _run(net, fed, train, tap)
    found = {}
    for key, value in (tap.seen | {("end", name): value for name, value in leaves(result, "output")}).items():
        layout = None if key not in values else _layout(key, values[key], value)
        found |= {} if layout is None else {key: fed.counted(to_reference(np.asarray(value), layout))}
    return found


def keys_of(net: Functional, fed: Probe, train: bool) -> set[Key]:
    """Return where a port can be given values."""
    tap = Forcing({}, lambda *_: None)
    _run(net, fed, train, tap)
    return set(tap.seen)


def _run(net: Functional, fed: Probe, train: bool, tap: Forcing) -> Any:
    """Return a port's results, run one operation after the other."""
    with jax.enable_x64(False), jax.disable_jit(), _jax_softmaxes(tap):
        inputs, call = run_flax.inputs_of(fed)
        return net.forward(net.params, net.stats, inputs, call, train, tap)[0]
