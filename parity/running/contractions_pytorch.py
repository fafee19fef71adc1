"""Follows identities of numbers through a PyTorch model. See `contractions.py`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from parity.running.contractions import MOVED, Factor, Use, repeated, richest, uses

# Operations that move numbers, and compute nothing.
MOVES = {
    *("_reshape_alias", "_to_copy", "_unsafe_view", "alias", "as_strided", "cat", "chunk", "clone", "contiguous"),
    *("detach", "diagonal", "embedding", "expand", "flip", "gather", "index", "index_select", "lift_fresh", "movedim"),
    *("narrow", "permute", "pixel_shuffle", "pixel_unshuffle", "repeat", "repeat_interleave", "reshape", "roll"),
    *("select", "slice", "split", "split_with_sizes", "squeeze", "stack", "swapaxes", "t", "tile", "transpose"),
    *("unbind", "unflatten", "unfold", "unsqueeze", "view", "constant_pad_nd", "masked_fill", "tril", "triu"),
}
SUMS = {"sum", "mean", "nansum"}
# Operations that multiply by a tensor; norms multiply by their scale.
FACTORS = {
    *("mul", "mm", "addmm", "bmm", "baddbmm", "mv", "addmv", "convolution", "native_layer_norm", "native_group_norm"),
    *("native_batch_norm", "_native_batch_norm_legit", "_native_batch_norm_legit_no_training", "_fused_rms_norm"),
}


@dataclass(frozen=True)
class Numbers:
    """Identities of an array's numbers.

    Attributes:
        array: the identities, in the shape of the array.
        direct: whether they are the numbers themselves.
        fed: whether something that is computed from the inputs went into them.
    """

    array: Tensor
    direct: bool = True
    fed: bool = False


class TorchDependences(TorchDispatchMode):
    """Collects what some tensors are multiplied with: each time the tensors from which the other factor is computed.

    Args:
        tensors: those that are followed; they are known by their places in this list.
        still: all tensors that do not depend on the inputs.
    """

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # otherwise PyTorch imports `torch.compile` here (1.5 s)

    def __init__(self, tensors: Sequence[Tensor], still: Sequence[Tensor]) -> None:
        super().__init__()
        self.factors: list[Factor] = []
        self.places = {_place(tensor): i for i, tensor in enumerate(tensors)}
        self.behind: dict[int, frozenset[int]] = {}
        self.still = {id(tensor) for tensor in still}
        self.addresses = {tensor.data_ptr() for tensor in still if tensor.numel()}
        self.held: list[Any] = [*still]  # so that no address is used again

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        given = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        results = [x for x in tree_leaves(result) if isinstance(x, Tensor)]
        self.held.append(results)
        if behind := self._behind(given):
            self.behind |= {id(x): behind | self.behind.get(id(x), frozenset()) for x in results}
            if func.overloadpacket.__name__ in FACTORS:
                self._multiplies(given[1:] if "add" in func.overloadpacket.__name__ else given)
        if all(map(self._still, given)):
            self.still |= {id(x) for x in results}
        self._follow(func, args, kwargs, given, result)
        return result

    def _multiplies(self, given: Sequence[Tensor]) -> None:
        """Note the factors of a product that do not depend on the inputs."""
        still = [tensor for tensor in given if self._still(tensor)]
        others = self._behind([tensor for tensor in given if not self._still(tensor)])
        if len(still) < len(given):
            self.factors += [(own, others) for tensor in still if (own := self._behind([tensor]))]

    def _follow(self, func: Any, args: Any, kwargs: Any, given: Sequence[Tensor], result: Any) -> None:
        """Look at an operation, after it was computed."""

    def _still(self, tensor: Tensor) -> bool:
        return id(tensor) in self.still or (tensor.numel() > 0 and tensor.data_ptr() in self.addresses)

    def _behind(self, tensors: Sequence[Tensor]) -> frozenset[int]:
        """Return the followed tensors from which some tensors are computed."""
        some = [self.behind.get(id(tensor), frozenset()) for tensor in tensors]
        own = (self.places[place] for tensor in tensors if (place := _place(tensor)) in self.places)
        return frozenset(own).union(*some)


class TorchUses(TorchDependences):
    """Collects the uses of some tensors.

    Args:
        numbers: the identities of their numbers, in float64.
        still: all tensors that do not depend on the inputs.
    """

    def __init__(self, numbers: Sequence[tuple[Tensor, Tensor]], still: Sequence[Tensor]) -> None:
        super().__init__([tensor for tensor, _ in numbers], still)
        self.found: list[Use] = []
        self.by_place = {_place(tensor): array for tensor, array in numbers}
        self.known: dict[int, Numbers] = {}

    def _numbers(self, tensor: Any) -> Numbers | None:
        if not isinstance(tensor, Tensor):
            return None
        if id(tensor) in self.known:
            return self.known[id(tensor)]
        array = self.by_place.get(_place(tensor))
        return None if array is None else Numbers(array)

    def _follow(self, func: Any, args: Any, kwargs: Any, given: Sequence[Tensor], result: Any) -> None:
        if all(self._numbers(x) is None for x in given):
            return
        name = func.overloadpacket.__name__
        if name in PRODUCT_AXES:
            self._multiplied(name, args)
        elif name == "convolution":
            self._convolved(args)
        elif name in SUMS:
            self._summed(given[0], kwargs.get("dim", args[1] if len(args) > 1 else None))
        elif name in MOVES:
            self._moved(func, args, kwargs, given, result)
        elif isinstance(result, Tensor) and torch.Tag.pointwise in func.tags:
            self._computed(given, result)

    def _multiplied(self, name: str, args: Sequence[Any]) -> None:
        first = len(args) - 2 if name in ("addmm", "baddbmm", "addmv") else 0
        for i, (summed, each) in enumerate(PRODUCT_AXES[name]):
            mine, other = args[first + i], args[first + 1 - i]
            numbers = self._numbers(mine)
            if numbers is not None and (numbers.fed or not self._still(other)):
                behind = self._behind([other]) - self._behind([mine])
                self.found += uses(numbers.array.numpy(), summed, each, direct=numbers.direct, behind=behind)

    def _convolved(self, args: Sequence[Any]) -> None:
        numbers, turned, groups = self._numbers(args[1]), args[6], args[8]
        if numbers is None or (self._still(args[0]) and not numbers.fed):
            return
        array = numbers.array.numpy()
        if turned and groups > 1:  # (in, out of a group, …)
            return
        behind, places = self._behind(args[:1]) - self._behind(args[1:2]), range(2, array.ndim)
        self.found += uses(array, [0 if turned else 1], places=places, direct=numbers.direct, behind=behind)

    def _summed(self, tensor: Tensor, axes: Any) -> None:
        numbers = self._numbers(tensor)
        if numbers is None or not numbers.fed:
            return
        array = numbers.array.numpy()
        axes = range(array.ndim) if axes is None or axes == [] else [axes] if isinstance(axes, int) else axes
        self.found += uses(repeated(array), [axis % array.ndim for axis in axes], direct=numbers.direct)

    def _moved(self, func: Any, args: Any, kwargs: Any, given: Sequence[Tensor], result: Any) -> None:
        some = [n for n in map(self._numbers, given) if n is not None]

        def moving(x: Any) -> Any:
            if not isinstance(x, Tensor):
                return x
            numbers = self._numbers(x)
            if numbers is not None:
                return numbers.array
            return torch.full(x.shape, MOVED, dtype=torch.float64) if x.is_floating_point() else x

        name = func.overloadpacket.__name__
        if name in ("_to_copy", "lift_fresh", "masked_fill"):
            moved: Any = moving(args[0])
        elif name == "constant_pad_nd":
            moved = func(moving(args[0]), args[1], MOVED)
        else:
            moved = func(*tree_map(moving, args), **tree_map(moving, kwargs))
        fed = any(n.fed for n in some) or (name == "cat" and not all(map(self._still, given)))
        flags = replace(some[0], direct=all(n.direct for n in some), fed=fed)
        for old, new in zip(tree_leaves(result), tree_leaves(moved), strict=True):
            if isinstance(old, Tensor) and old.shape == new.shape:
                self.known[id(old)] = replace(flags, array=new)

    def _computed(self, given: Sequence[Tensor], result: Tensor) -> None:
        some = [n for n in map(self._numbers, given) if n is not None]
        chosen = richest([n for n in some if n.array.dim() <= result.dim()], lambda n: n.array.numpy())
        if chosen is not None:
            fed = chosen.fed or not all(map(self._still, given))
            self.known[id(result)] = Numbers(chosen.array.expand(result.shape), False, fed)


def _place(tensor: Tensor) -> tuple[int, ...]:
    """Return where a tensor's numbers are: the models hold some tensors as other objects."""
    return tensor.data_ptr(), *tensor.shape, *tensor.stride()


# For both operands of a product: the axes that are summed, and those along which each part has its own product.
PRODUCT_AXES: dict[str, tuple[tuple[Sequence[int], Sequence[int]], ...]] = {
    "mm": (([1], []), ([0], [])),
    "addmm": (([1], []), ([0], [])),
    "bmm": (([2], [0]), ([1], [0])),
    "baddbmm": (([2], [0]), ([1], [0])),
    "mv": (([1], []), ([0], [])),
    "addmv": (([1], []), ([0], [])),
    "dot": (([0], []), ([0], [])),
    "linear": (([-1], []), ([1], [])),
}
