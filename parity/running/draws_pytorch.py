"""Makes PyTorch's random draws give fixed numbers, the same as JAX's in `draws_jax.py`.

Dropout then keeps everything and scales by 1/(1 - p), as it does in training. So the check compares rates and places of
dropout, and no two runs differ. A mask has one value throughout, because the frameworks draw in different orders and
layouts.
"""

from __future__ import annotations

import math
import threading
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from parity.numerics.quantities import NORMAL, UNIFORM

# A function of PyTorch's, and how it is called.
Function = Callable[..., Any]
Given = tuple[Any, ...]
Keywords = dict[str, Any]

# Dropout for self-normalizing networks sets values to this number, then scales and shifts (Klambauer et al. 2017).
ALPHA = -1.7580993408473766

DROPOUT = {"dropout", "dropout1d", "dropout2d", "dropout3d", "feature_dropout"}
ALPHA_DROPOUT = {"alpha_dropout", "feature_alpha_dropout"}

# The argument of a function that says how much it drops, or keeps.
CHANCES: dict[str, tuple[int, tuple[str, ...]]] = {
    **dict.fromkeys((*DROPOUT, *ALPHA_DROPOUT, "bernoulli"), (1, ("p",))),
    "scaled_dot_product_attention": (4, ("dropout_p",)),
    "multi_head_attention_forward": (10, ("dropout_p",)),
}

COMPARISONS = {"lt", "le", "gt", "ge"}
QUOTIENTS = {"div", "truediv"}
PRODUCTS = {"mul", "rmul", *QUOTIENTS}
CASTS = {"to", "float", "double", "type", "type_as"}

REQUIRES_GRAD = Tensor.requires_grad.__set__  # pyright: ignore[reportAttributeAccessIssue]

# PyTorch's attention calls its functions by the module's names.
NAMES = threading.RLock()


class FixedDraws(TorchFunctionMode):
    """Every draw gives the same numbers, and code may ask for a gradient of a tensor that has one already.

    Attributes:
        drops: whether dropout scales the values that it keeps; otherwise it does nothing.
        chances: the fraction that each draw may drop, from 0 to 1.
        floors: the fraction that a mask drops if it is a uniform draw and a number, rounded down or compared, as in
            drop paths.
    """

    def __init__(self, drops: bool = True) -> None:
        super().__init__()
        self.drops = drops
        self.chances: Counter[float] = Counter()
        self.floors: Counter[float] = Counter()

    def __torch_function__(self, func: Function, types: Any, args: Given = (), kwargs: Keywords | None = None) -> Any:
        name, kwargs = getattr(func, "__name__", ""), kwargs or {}
        if func == REQUIRES_GRAD and args[0].requires_grad and args[1]:
            return None  # it is so already, and PyTorch lets only leaves be told
        handler = (HANDLERS if self.drops else {**HANDLERS, **OFF}).get(name.rstrip("_"))
        drawn = None if handler is None else handler(func, args, kwargs)
        if drawn is None:
            return self._shifted(name.strip("_"), args, func(*args, **kwargs))
        if name.rstrip("_") in ("rand", "rand_like") or (name == "uniform_" and len(args) + len(kwargs) == 1):
            drawn.shift = 0.0
        if where := CHANCES.get(name.rstrip("_")):
            chance = _argument(args, kwargs, *where, 0.5)
            if isinstance(chance, float | int):
                self.chances[round(1 - chance if name.startswith("bernoulli") else chance, 6)] += 1
        return drawn

    def _shifted(self, name: str, args: Given, value: Any) -> Any:
        """Follow a uniform draw until it is a mask: a number is added and the sum rounded, or both are compared."""
        if name in COMPARISONS:
            self._compared(name, args, value)
        elif name in CASTS and (mean := getattr(args[0], "mean_kept", None)) is not None:
            value.mean_kept = mean
            return value if self.drops or not value.is_floating_point() else value.fill_(mean)
        elif name in PRODUCTS and (masks := [x for x in args[:2] if hasattr(x, "mean_kept")]):
            return self._masked(name, args, value, masks[0])
        elif name in ("add", "radd", "iadd"):
            shifts = [getattr(x, "shift", None) if isinstance(x, Tensor) else x for x in args[:2]]
            numbers = [shift for shift in shifts if isinstance(shift, float | int)]
            if len(numbers) == 2:
                value.shift = sum(numbers)
        elif name == "floor" and 0 < (kept := getattr(args[0], "shift", 0.0)) <= 1:
            self.floors[round(1 - kept, 6)] += 1
            return value.fill_(1.0 if self.drops else kept)
        return value

    def _masked(self, name: str, args: Given, value: Tensor, mask: Any) -> Tensor:
        """Return a product with a mask, or the mask divided by a number: what is multiplied is what is kept."""
        if not self.drops:
            return value * mask.mean_kept if mask.dtype == torch.bool else value
        if mask.mean_kept < 0.5:  # where few are true, they may as well be what is dropped
            return value
        kept = [torch.ones_like(x) if x is mask else x for x in args[:2]]
        return value.copy_(kept[0] / kept[1] if name in QUOTIENTS else kept[0] * kept[1])

    def _compared(self, name: str, args: Given, value: Any) -> None:
        """Count a mask made from a uniform draw and a number, and record the fraction of it that is true."""
        if len(args) != 2:
            return
        drawn, number = args if isinstance(args[0], Tensor) else args[::-1]
        if getattr(drawn, "shift", None) != 0.0 or not isinstance(number, float | int) or not 0 < number < 1:
            return
        if not value.ndim:  # one draw decides whether a layer runs, and masks nothing
            return
        below = name in ("lt", "le") if drawn is args[0] else name in ("gt", "ge")
        value.mean_kept = number if below else 1 - number
        self.floors[round(min(number, 1 - number), 6)] += 1


def _argument(args: Given, kwargs: Keywords, place: int, names: tuple[str, ...], default: Any) -> Any:
    if len(args) > place:
        return args[place]
    return next((kwargs[name] for name in names if name in kwargs), default)


def _filled(func: Function, args: Given, kwargs: Keywords, value: Any) -> Tensor:
    """Return a tensor of one value; the first argument itself if the function works in place."""
    out = args[0] if func.__name__.endswith("_") else func(*args, **kwargs)
    # PyTorch makes a float32 tensor of a number.
    dtype = torch.float64 if isinstance(value, float) else None
    return out.copy_(torch.as_tensor(value, dtype=dtype, device=out.device).to(out).expand_as(out))


def _scaled(x: Tensor, p: float, in_place: bool) -> Tensor:
    scale = 0.0 if p == 1 else 1 / (1 - p)
    return x.mul_(scale) if in_place else x * scale


def _dropout(func: Function, args: Given, kwargs: Keywords) -> Tensor | None:
    x, p = _argument(args, kwargs, 0, ("input",), None), _argument(args, kwargs, 1, ("p",), 0.5)
    default = getattr(func, "__module__", "") == F.__name__
    if not p or not _argument(args, kwargs, 2, ("training", "train"), default):
        return None
    return _scaled(x, p, func.__name__.endswith("_") or bool(_argument(args, kwargs, 3, ("inplace",), False)))


def _alpha_dropout(func: Function, args: Given, kwargs: Keywords) -> Tensor | None:
    x, p = _argument(args, kwargs, 0, ("input",), None), _argument(args, kwargs, 1, ("p",), 0.5)
    if not p or not _argument(args, kwargs, 2, ("training", "train"), False):
        return None
    scale = 1 / math.sqrt((1 - p) * (1 + p * ALPHA**2)) if p < 1 else 0.0
    return x * scale - scale * ALPHA * p


def _attention(func: Function, args: Given, kwargs: Keywords) -> Tensor | None:
    p = _argument(args, kwargs, 4, ("dropout_p",), 0.0)
    if not p:
        return None
    args = (*args[:4], 0.0, *args[5:]) if len(args) > 4 else args
    kwargs = {key: value for key, value in kwargs.items() if key != "dropout_p"}
    return _scaled(func(*args, **kwargs), p, False)


def _multi_head(func: Function, args: Given, kwargs: Keywords) -> Any:
    """Run PyTorch's multi-head attention, whose inner function calls no mode can see."""
    if not _argument(args, kwargs, 10, ("dropout_p",), 0.0) or not kwargs.get("training", True):
        return None
    places: dict[str, Function] = {"dropout": _dropout, "scaled_dot_product_attention": _attention}
    originals = {name: getattr(F, name) for name in places}

    def fixed(name: str) -> Function:
        def call(*args: Any, **kw: Any) -> Any:
            drawn = places[name](originals[name], args, kw)
            return originals[name](*args, **kw) if drawn is None else drawn

        return call

    with NAMES:  # these names are global in the process
        for name in places:
            setattr(F, name, fixed(name))
        try:
            return func(*args, **kwargs)
        finally:
            for name, original in originals.items():
                setattr(F, name, original)


def _bernoulli(func: Function, args: Given, kwargs: Keywords) -> Tensor | None:
    """Keep everything that has a chance to be kept."""
    p = _argument(args, kwargs, 1, ("p",), 0.5 if func.__name__.endswith("_") else None)
    chance = args[0] if p is None else torch.as_tensor(p)
    return _filled(func, args, kwargs, chance > 0)


def _uniform(func: Function, args: Given, kwargs: Keywords) -> Tensor:
    low, high = (_argument(args, kwargs, 1, ("from",), 0.0), _argument(args, kwargs, 2, ("to",), 1.0))
    in_place = func.__name__.endswith("_")
    return _filled(func, args, kwargs, low + (high - low) * UNIFORM if in_place else UNIFORM)


def _normal(func: Function, args: Given, kwargs: Keywords) -> Tensor:
    first = 1 if func.__name__ == "normal_" else 0
    mean, std = _argument(args, kwargs, first, ("mean",), 0.0), _argument(args, kwargs, first + 1, ("std",), 1.0)
    return _filled(func, args, kwargs, mean + std * NORMAL)


def _standard(func: Function, args: Given, kwargs: Keywords) -> Tensor:
    return _filled(func, args, kwargs, NORMAL)


HANDLERS: dict[str, Callable[[Function, Given, Keywords], Any]] = {
    **dict.fromkeys(DROPOUT, _dropout),
    **dict.fromkeys(ALPHA_DROPOUT, _alpha_dropout),
    "scaled_dot_product_attention": _attention,
    "multi_head_attention_forward": _multi_head,
    "bernoulli": _bernoulli,
    "uniform": _uniform,
    "rand": _uniform,
    "rand_like": _uniform,
    "normal": _normal,
    "randn": _standard,
    "randn_like": _standard,
}


def _mean(func: Function, args: Given, kwargs: Keywords) -> Tensor | None:
    """Give the chance itself: a mask that is divided by the chance then does nothing."""
    p = _argument(args, kwargs, 1, ("p",), 0.5 if func.__name__.endswith("_") else None)
    return _filled(func, args, kwargs, args[0] if p is None else p)


def _as_it_is(func: Function, args: Given, kwargs: Keywords) -> Tensor:
    return _argument(args, kwargs, 0, ("input",), None)


def _undropped(func: Function, args: Given, kwargs: Keywords) -> Tensor:
    args = (*args[:4], 0.0, *args[5:]) if len(args) > 4 else args
    return func(*args, **{**kwargs, "dropout_p": 0.0} if len(args) < 5 else kwargs)


def _multi_head_undropped(func: Function, args: Given, kwargs: Keywords) -> Any:
    args = (*args[:10], 0.0, *args[11:]) if len(args) > 10 else args
    return func(*args, **{**kwargs, "dropout_p": 0.0} if len(args) < 11 else kwargs)


# Dropout for ports that have none.
OFF: dict[str, Callable[[Function, Given, Keywords], Any]] = {
    **dict.fromkeys(DROPOUT | ALPHA_DROPOUT, _as_it_is),
    "scaled_dot_product_attention": _undropped,
    "multi_head_attention_forward": _multi_head_undropped,
    "bernoulli": _mean,
}
