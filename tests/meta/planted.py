"""Small pairs of networks in which a mistake is planted in the Flax port, as a porter would write it.

`between`, `sequence` and `layer` put a right PyTorch part and a wrong Flax part into the same surroundings; `tampered`
changes a weight after it was moved. What they return makes `(torch_model, flax_model, *inputs)`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np
from flax import linen, nnx
from torch import nn

Make = Callable[[], tuple[Any, ...]]


@dataclass(frozen=True)
class Case:
    """One mistake in one network.

    Attributes:
        trap: the name that the check must give.
        make: (torch_model, flax_model, *inputs), the mistake in the Flax model.
        layer: where it must be found, by PyTorch's name.
        options: of `parity.check`.
        also: other mistakes that this one consists of, by their names.
    """

    trap: str
    make: Make
    layer: str
    options: Mapping[str, Any] = field(default_factory=dict)
    also: tuple[str, ...] = ()


def images(*shape: int, scale: float = 1.0) -> np.ndarray:
    return scale * np.random.default_rng(0).standard_normal(shape or (2, 3, 9, 6))


def moved(model: nn.Module, flax: Any, *inputs: Any, options: Mapping[str, Any] | None = None) -> tuple[Any, ...]:
    """The pair with PyTorch's weights in both."""
    import parity

    asked: dict[str, Any] = {**(options or {})}
    return model, parity.move(model, flax, *inputs, **asked), *inputs


def variables(module: linen.Module, *inputs: Any) -> tuple[linen.Module, Any]:
    """Linen's `(module, variables)`."""
    return module, module.init(jax.random.key(0), *inputs)


class Block(nn.Module):
    """A part, what stands between, a part."""

    def __init__(self, first: nn.Module, operation: Callable[[Any], Any], second: nn.Module) -> None:
        super().__init__()
        self.first, self.operation, self.second = first, operation, second

    def forward(self, x: Any) -> Any:
        return self.second(self.operation(self.first(x)))


class Whole(nn.Module):
    """A block and a linear layer behind its mean over all axes but batch and channels.

    The mean hides the order of what it sums. With `squared` it is the mean of squares, which does not.
    """

    def __init__(self, block: nn.Module, head: nn.Module, axes: tuple[int, ...], squared: bool = False) -> None:
        super().__init__()
        self.block, self.head, self.axes, self.power = block, head, axes, 2 if squared else 1

    def forward(self, x: Any) -> Any:
        return self.head((self.block(x) ** self.power).mean(self.axes))


class NNXBlock(nnx.Module):
    """`Block` in NNX."""

    def __init__(self, first: Any, operation: Callable[[Any], Any], second: Any) -> None:
        self.first, self.operation, self.second = first, operation, second

    def __call__(self, x: Any) -> Any:
        return self.second(self.operation(self.first(x)))


class NNXWhole(nnx.Module):
    """`Whole` in NNX."""

    def __init__(self, block: Any, head: Any, axes: tuple[int, ...], squared: bool = False) -> None:
        self.block, self.head, self.axes, self.power = block, head, axes, 2 if squared else 1

    def __call__(self, x: Any) -> Any:
        return self.head((self.block(x) ** self.power).mean(self.axes))


class LinenBlock(linen.Module):
    """`Block` in Linen, of dense layers or of convolutions."""

    operation: Callable[[Any], Any]
    dense: bool
    width: int

    @linen.compact
    def __call__(self, x: Any) -> Any:
        first, second = (
            linen.Dense(self.width, name=name)
            if self.dense
            else linen.Conv(self.width, (3, 3), padding=1, use_bias=self.width != 3, name=name)
            for name in ("first", "second")
        )
        return second(self.operation(first(x)))


class LinenWhole(linen.Module):
    """`Whole` in Linen."""

    operation: Callable[[Any], Any]
    dense: bool
    width: int
    axes: tuple[int, ...]

    @linen.compact
    def __call__(self, x: Any) -> Any:
        block = LinenBlock(self.operation, self.dense, self.width, name="block")
        return linen.Dense(3, name="head")(block(x).mean(self.axes))


def between(
    right: Callable[[Any], Any],
    wrong: Callable[[Any], Any],
    *,
    inner: int = 4,
    width: int = 4,
    size: tuple[int, int] = (9, 6),
    scale: float = 1.0,
    bias: bool = True,
    change: Callable[[np.ndarray], np.ndarray] = lambda x: x,
    port: str = "nnx",
) -> Make:
    """conv, operation, conv, global mean, linear: the operation on NCHW in PyTorch, on NHWC in Flax.

    Args:
        inner: channels behind the operation.
        scale: of the inputs, where the operation must see large numbers.
        change: of the inputs.
    """

    def make() -> tuple[Any, ...]:
        x, rngs = change(images(2, 3, *size, scale=scale)), nnx.Rngs(0)
        block = Block(nn.Conv2d(3, width, 3, padding=1, bias=bias), right, nn.Conv2d(inner, 4, 3, padding=1))
        model = Whole(block, nn.Linear(4, 3), (2, 3))
        if port == "linen":
            module = LinenWhole(wrong, False, 4, (1, 2))
            return moved(model, variables(module, x.transpose(0, 2, 3, 1)), x)
        first = nnx.Conv(3, width, (3, 3), padding=1, use_bias=bias, rngs=rngs)
        flax = NNXBlock(first, wrong, nnx.Conv(inner, 4, (3, 3), padding=1, rngs=rngs))
        return moved(model, NNXWhole(flax, nnx.Linear(4, 3, rngs=rngs), (1, 2)), x)

    return make


def sequence(
    right: Callable[[Any], Any],
    wrong: Callable[[Any], Any],
    *,
    inner: int = 6,
    width: int = 6,
    scale: float = 1.0,
    vector: bool = False,
    port: str = "nnx",
) -> Make:
    """linear, operation, linear, mean over time, linear, on (batch, time, features).

    Args:
        inner: features behind the operation.
        vector: whether the operation leaves (batch, features).
    """

    def make() -> tuple[Any, ...]:
        x, rngs = images(2, 5, 3, scale=scale), nnx.Rngs(0)
        axes = () if vector else (1,)
        model = Whole(Block(nn.Linear(3, width), right, nn.Linear(inner, 6)), nn.Linear(6, 3), axes or (0, 1)[:0])
        if vector:
            model = Block(nn.Linear(3, width), right, nn.Linear(inner, 6))
            flax = NNXBlock(nnx.Linear(3, width, rngs=rngs), wrong, nnx.Linear(inner, 6, rngs=rngs))
            return moved(model, flax, x)
        if port == "linen":
            return moved(model, variables(LinenWhole(wrong, True, 6, (1,)), x), x)
        flax = NNXBlock(nnx.Linear(3, width, rngs=rngs), wrong, nnx.Linear(inner, 6, rngs=rngs))
        return moved(model, NNXWhole(flax, nnx.Linear(6, 3, rngs=rngs), (1,)), x)

    return make


def layer(
    right: Callable[[], nn.Module],
    wrong: Callable[[nnx.Rngs], Any],
    *,
    channels: int = 4,
    out: int | None = None,
    size: tuple[int, ...] = (9, 6),
    scale: float = 1.0,
    squared: bool = False,
) -> Make:
    """conv, the layer, global mean, linear; with one size (batch, time, features) and a linear layer in front.

    The layer's name is `block.second`.

    Args:
        squared: the mean is of squares.
    """

    def make() -> tuple[Any, ...]:
        rngs, flat = nnx.Rngs(0), len(size) == 1
        x = images(2, *size, 3, scale=scale) if flat else images(2, 3, *size, scale=scale)
        window, axes = (3,) * len(size), tuple(range(2, 2 + len(size)))
        conv = nn.Conv2d if len(size) == 2 else nn.Conv3d
        first = nn.Linear(3, channels) if flat else conv(3, channels, 3, padding=1)
        head, axes = nn.Linear(out or channels, 3), (1,) if flat else axes
        model = Whole(Block(first, lambda x: x, right()), head, axes, squared)
        begin = nnx.Linear(3, channels, rngs=rngs) if flat else nnx.Conv(3, channels, window, padding=1, rngs=rngs)
        flax = NNXBlock(begin, lambda x: x, wrong(rngs))
        where = axes if flat else tuple(axis - 1 for axis in axes)
        return moved(model, NNXWhole(flax, nnx.Linear(out or channels, 3, rngs=rngs), where, squared), x)

    return make


def tampered(make: Make, path: str, change: Callable[[Any], Any]) -> Make:
    """The network with another value in one variable of the NNX model."""

    def tampering() -> tuple[Any, ...]:
        model, flax, *inputs = make()
        node = flax
        for part in path.split("."):
            node = getattr(node, part)
        with jax.enable_x64(True):
            node.set_value(jax.numpy.array(change(np.array(node.get_value())), node.get_value().dtype))
        return model, flax, *inputs

    return tampering


def reading(cls: Any, **changes: Callable[[Any], Any]) -> Any:
    """A Flax layer class whose code reads its variables wrongly."""

    class Reading(cls):
        def __call__(self, *args: Any, **kw: Any) -> Any:
            before = {name: getattr(self, name).get_value() for name in changes}
            for name, change in changes.items():
                getattr(self, name).set_value(change(before[name]))
            try:
                return super().__call__(*args, **kw)
            finally:
                for name, value in before.items():
                    getattr(self, name).set_value(value)

    Reading.__name__ = cls.__name__
    return Reading


def returning(cls: Any, before: Callable[[Any], Any] = lambda x: x, after: Callable[[Any], Any] = lambda y: y) -> Any:
    """A Flax layer class that does something else with its input or its output."""

    class Returning(cls):
        def __call__(self, x: Any, *args: Any, **kw: Any) -> Any:
            return after(super().__call__(before(x), *args, **kw))

    Returning.__name__ = cls.__name__
    return Returning
