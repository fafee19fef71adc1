"""Trees of PyTorch's files: from the content of the pickle to dicts of arrays, with the memory counted in between.

One table may occur in many places of a tree: a file of 2 kB can describe more places than there are atoms. A shared
object is examined once and built once, but counted as often as it occurs, because a walk through the tree meets it that
often. Tensors are views of their storages; no number is copied.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from ports.weights.files.formats import dtype_of
from ports.weights.files.formats.pickles import OBJECT, PAIR, SLOT, Name
from ports.weights.files.formats.torchcalls import Made, Storage, Unknown, View
from ports.weights.files.source import Source
from ports.weights.form.torch_form import WeightsError

DEEPEST = 100  # tables within tables
DIMENSIONS = 64  # what numpy allows
PROBLEMS = 20
MOST = 1 << 62
Path = tuple[Any, ...]


class TreePlan:
    """The memory of a tree, and whether its tensors lie within their storages.

    Attributes:
        storages: the storages of its tensors, by key.
    """

    def __init__(self, source: Source, big: bool) -> None:
        self._source, self._big = source, big
        self.storages: dict[str, Storage] = {}
        self._known: dict[int, tuple[int, int]] = {}
        self._above: set[int] = set()
        self._problems: list[str] = []
        self._weight = 0

    def check(self, content: object) -> None:
        """Examine every table and tensor once.

        Raises:
            ValueError: a tensor lies outside of its storage, or a table within itself.
            WeightsError: it holds a tensor of a kind that cannot be read.
        """
        self._weight, _ = self._weigh(content, ())
        if self._problems:
            raise WeightsError(self._problems[:PROBLEMS])

    def take(self) -> None:
        """Count the tables, and the tensors as often as they occur in the tree; views of all numbers cost nothing more.

        Raises:
            WeightsError: this is more memory than the file may take.
        """
        whole = sum(one.whole * dtype_of(one.dtype).itemsize for one in self.storages.values())
        self._source.budget.take(whole)
        self._source.budget.take(self._weight if self._big else max(self._weight - whole, 0))

    def _weigh(self, node: object, path: Path) -> tuple[int, int]:
        """Return the bytes of a node with its contents, and how deeply tables are nested in it."""
        if isinstance(node, View):
            return self._tensor(node), 0
        if isinstance(node, Storage):
            return self._tensor(whole(node)), 0
        if isinstance(node, Unknown):
            self._refuse(node, path)
        if not isinstance(node, dict | list | tuple):
            return SLOT, 0
        if id(node) in self._above:
            raise ValueError("a table within itself")
        if len(self._above) + self._known.get(id(node), (0, 0))[1] >= DEEPEST:
            raise ValueError(f"more than {DEEPEST} tables within one another")
        if id(node) not in self._known:
            self._above.add(id(node))
            self._known[id(node)] = self._sum(node, path)
            self._above.remove(id(node))
        return self._known[id(node)]

    def _sum(self, node: object, path: Path) -> tuple[int, int]:
        total, height, each = OBJECT, 0, PAIR if isinstance(node, dict) else SLOT
        for key, value in _items(node):
            weight, below = self._weigh(value, (*path, key))
            total, height = min(total + each + weight, MOST), max(height, below)
        return total, height + 1

    def _refuse(self, node: Unknown, path: Path) -> None:
        if len(self._problems) < PROBLEMS:
            name = ".".join(map(str, path))[:200]
            self._problems.append(
                f"weights {self._source.path}: {name}: is {node.kind}, expected a plain tensor; save {node.mend}"
            )

    def _tensor(self, view: View) -> int:
        dtype, part = dtype_of(view.dtype), dtype_of(view.storage.dtype).itemsize
        first = self.storages.setdefault(view.storage.key, view.storage)
        if (first.dtype, first.whole) != (view.storage.dtype, view.storage.whole):
            raise ValueError(f"the storage {first.key[:80]!r} has two types or sizes")
        if len(view.shape) > DIMENSIONS or max((*view.shape, *view.strides, view.offset), default=0) > MOST:
            raise ValueError("a tensor with too many dimensions, or too large")
        if view.storage.first + view.storage.count > view.storage.whole or view.storage.first * part % dtype.itemsize:
            raise ValueError("a view that lies outside of its storage")
        if 0 in view.shape:
            return OBJECT
        end = view.offset + sum((n - 1) * stride for n, stride in zip(view.shape, view.strides, strict=True)) + 1
        if end * dtype.itemsize > view.storage.count * part:
            raise ValueError(
                f"a tensor {view.dtype} {str(view.shape)[:60]} goes to byte {end * dtype.itemsize:,}, "
                f"its storage has {view.storage.count * part:,}"
            )
        return math.prod(view.shape) * dtype.itemsize + OBJECT


def whole(storage: Storage) -> View:
    """Return a storage as a tensor of one dimension."""
    return View(storage, storage.dtype, 0, (storage.count,), (1,))


def _items(node: Any) -> Iterable[tuple[Any, Any]]:
    return node.items() if isinstance(node, dict) else enumerate(node)


class Builder:
    """Makes the tree that a plan has checked: dicts, lists and arrays. A shared object stays one object."""

    def __init__(self, load: Callable[[str], bytearray], big: bool) -> None:
        self._load, self._big = load, big
        self._bytes: dict[str, bytearray] = {}
        self._arrays: dict[View, np.ndarray] = {}
        self._known: dict[int, Any] = {}

    def build(self, node: object) -> Any:
        """Return the object for a node."""
        if isinstance(node, View | Storage):
            return self._array(node if isinstance(node, View) else whole(node))
        if isinstance(node, Name | Made):
            return _of_torch(node)
        if not isinstance(node, dict | list | tuple):
            return node
        if id(node) not in self._known:
            if isinstance(node, dict):
                built: Any = {
                    self.build(key) if isinstance(key, Name) else key: self.build(v) for key, v in node.items()
                }
            else:
                built = [self.build(value) for value in node]
            self._known[id(node)] = built
        return self._known[id(node)]

    def _array(self, view: View) -> np.ndarray:
        if view not in self._arrays:
            array = self._view(view)
            self._arrays[view] = _swapped(array) if self._big else array
        return self._arrays[view]

    def _view(self, view: View) -> np.ndarray:
        dtype, part = dtype_of(view.dtype), dtype_of(view.storage.dtype).itemsize
        if 0 in view.shape:
            return np.zeros(view.shape, dtype)
        if view.storage.key not in self._bytes:
            self._bytes[view.storage.key] = self._load(view.storage.key)
        at = view.storage.first * part + view.offset * dtype.itemsize
        numbers = np.frombuffer(self._bytes[view.storage.key], np.uint8)[at:]
        strides = tuple(
            stride * dtype.itemsize if n > 1 else 0 for n, stride in zip(view.shape, view.strides, strict=True)
        )
        flat = numbers[: len(numbers) // dtype.itemsize * dtype.itemsize].view(dtype)
        if view.strides == _contiguous(view.shape):
            return flat[: math.prod(view.shape)].reshape(view.shape)
        return np.lib.stride_tricks.as_strided(flat, view.shape, strides)


def _contiguous(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(math.prod(shape[i + 1 :]) for i in range(len(shape)))


def _swapped(array: np.ndarray) -> np.ndarray:
    """Return a tensor that another kind of machine wrote, in this machine's form."""
    size = array.dtype.itemsize // (2 if array.dtype.kind == "c" else 1)
    flat = np.array(array, order="C").reshape(-1).view(f"u{size}").byteswap()
    return flat.view(array.dtype).reshape(array.shape)


def _of_torch(node: Name | Made) -> Any:
    """Return PyTorch's own value, which is a type, a device or a layout."""
    import torch

    value: Any = torch
    for part in node.name.split(".")[1:]:
        value = getattr(value, part, None)
    if value is None:
        raise ValueError(f"{node.name[:80]} is unknown to this PyTorch")
    try:
        return value if isinstance(node, Name) else value(*node.args)
    except (RuntimeError, KeyError, TypeError) as error:
        raise ValueError(f"{node.name}: {str(error)[:80]}") from None
