"""Known mistakes in moving a tensor: what is planted in PyTorch's, or how the port's is related to it."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np

Forms = np.ndarray | list[np.ndarray] | None


@dataclass(frozen=True)
class WeightTrap:
    """One known mistake in moving a tensor.

    Attributes:
        kinds: of the layers where it can be made (groups in `ports.weights.layers.kinds`); any where there is none.
        plant: makes it in a tensor of PyTorch's layout: one form, or a list of them; None where the tensor cannot have
            it.
        related: tells from PyTorch's and the port's tensor, where what is planted would depend on the port.
    """

    name: str
    kinds: tuple[str, ...]
    plant: Callable[[np.ndarray], Forms] | None
    text: str
    mend: str
    related: Callable[[np.ndarray, np.ndarray], bool] | None = None

    def explains(self, mine: np.ndarray, theirs: np.ndarray) -> bool:
        """Whether the port's tensor is PyTorch's with this mistake."""
        if self.related is not None:
            return self.related(mine, theirs)
        forms = self.plant(mine) if self.plant else None
        forms = forms if isinstance(forms, list) else [] if forms is None else [forms]
        return any(_equal(form, theirs, mine) for form in forms if form.shape == theirs.shape)


def _equal(form: np.ndarray, theirs: np.ndarray, mine: np.ndarray) -> bool:
    """Equal, or equal in float32, in which most ports hold their weights, and other than PyTorch's there."""
    if np.array_equal(form, theirs):
        return True
    rounded = form.astype(np.float32)
    return np.array_equal(rounded, theirs.astype(np.float32)) and not np.array_equal(rounded, mine.astype(np.float32))


def _transposed(w: np.ndarray) -> np.ndarray | None:
    return w.swapaxes(0, 1) if w.ndim > 1 else None


def _flipped(w: np.ndarray) -> np.ndarray | None:
    return np.flip(w, tuple(range(2, w.ndim))) if w.ndim > 2 else None


def _turned(w: np.ndarray) -> np.ndarray | None:
    return w.swapaxes(2, 3) if w.ndim == 4 else None


def _reshaped(w: np.ndarray) -> np.ndarray | None:
    """A (out, in, *window) tensor whose numbers were put into (*window, in, out) without moving axes."""
    if w.ndim < 2:
        return None
    moved = np.moveaxis(w, (0, 1), (-1, -2))
    return np.moveaxis(w.reshape(moved.shape), (-1, -2), (0, 1))


def _through(dtype: Any) -> Callable[[np.ndarray], np.ndarray | None]:
    return lambda w: w.astype(np.float32).astype(dtype).astype(np.float64)


def _gates(order: tuple[int, ...]) -> Callable[[np.ndarray], np.ndarray | None]:
    def plant(w: np.ndarray) -> np.ndarray | None:
        if len(w) % len(order):
            return None
        parts = np.split(w, len(order))
        return np.concatenate([parts[i] for i in order])

    return plant


def _divisors(n: int) -> Iterator[int]:
    return (d for d in range(2, n) if n % d == 0)


def _forget(w: np.ndarray) -> np.ndarray | None:
    """A forget gate whose bias is one more."""
    if w.ndim != 1 or len(w) % 4:
        return None
    return w + np.repeat([0.0, 1.0, 0.0, 0.0], len(w) // 4)


def _thirds(w: np.ndarray) -> Forms:
    if len(w) % 3:
        return None
    return [np.concatenate(parts) for parts in itertools.permutations(np.split(w, 3))][1:]


def _heads(w: np.ndarray) -> Forms:
    """The features of a head far apart, where PyTorch has them side by side."""

    def split(part: np.ndarray, heads: int) -> np.ndarray:
        return part.reshape(-1, heads, *part.shape[1:]).swapaxes(0, 1).reshape(part.shape)

    width = w.shape[-1] if w.ndim > 1 else len(w) // 3
    parts = np.split(w, max(1, len(w) // max(width, 1)))
    return [np.concatenate([split(p, heads) for p in parts]) for heads in _divisors(len(parts[0]))]


def _groups(w: np.ndarray) -> Forms:
    return [w.reshape(g, -1, *w.shape[1:]).swapaxes(0, 1).reshape(w.shape) for g in _divisors(len(w))]


def _deviation(w: np.ndarray) -> Forms:
    return [np.sqrt(w), 1 / np.sqrt(w + 1e-5)] if (w > 0).all() else None


def _scaled(mine: np.ndarray, theirs: np.ndarray) -> bool:
    """A factor other than one and zero."""
    at = int(np.argmax(np.abs(mine)))
    factor = theirs.flat[at] / mine.flat[at] if mine.size > 1 and mine.flat[at] else 0.0
    return factor != 0 and abs(factor - 1) > 1e-3 and np.allclose(factor * mine, theirs, rtol=1e-6, atol=0)


def _permuted(axis: int) -> Callable[[np.ndarray, np.ndarray], bool]:
    """The same slices in another order."""

    def slices(w: np.ndarray) -> list[bytes]:
        return sorted(np.ascontiguousarray(part).tobytes() for part in np.moveaxis(w, axis, 0))

    return lambda mine, theirs: mine.ndim > axis and np.ptp(mine) > 0 and slices(mine) == slices(theirs)


def _one_row(mine: np.ndarray, theirs: np.ndarray) -> bool:
    """One row of zeros that the port does not have."""
    rows = [i for i in range(len(mine)) if not np.array_equal(mine[i], theirs[i])]
    return len(rows) == 1 and not mine[rows[0]].any()


CONV, LINEAR, DENSE = ("conv", "conv_transpose"), ("linear",), ("conv", "conv_transpose", "linear", "attention")
KERNEL = "PyTorch has (out, in, height, width), Flax (height, width, in, out): kernel = weight.transpose(2, 3, 1, 0)"
MATRIX = "PyTorch has (out, in), Flax (in, out): kernel = weight.T"
TRAPS = (
    WeightTrap("kernel-in-out-exchanged", CONV, _transposed, "in and out channels of the kernel are exchanged", KERNEL),
    WeightTrap("linear-transposed", LINEAR, _transposed, "the matrix is not transposed", MATRIX),
    WeightTrap("kernel-flipped", CONV, _flipped, "the kernel is flipped", KERNEL),
    WeightTrap("kernel-transposed", CONV, _turned, "height and width of the kernel are exchanged", KERNEL),
    WeightTrap("kernel-reshaped", DENSE, _reshaped, "the kernel was reshaped where its axes had to move", KERNEL),
    WeightTrap(
        "lstm-gates-ifog", ("lstm",), _gates((0, 1, 3, 2)), "the gates stand as i f o g", "take them as i f g o"
    ),
    WeightTrap(
        "lstm-gates-igfo", ("lstm",), _gates((0, 2, 1, 3)), "the gates stand as i g f o", "take them as i f g o"
    ),
    WeightTrap("gru-gates-zrn", ("gru",), _gates((1, 0, 2)), "the gates stand as z r n", "take them as r z n"),
    WeightTrap("weight-lost", (), np.zeros_like, "the tensor is zero", "write PyTorch's"),
    WeightTrap(
        "weights-through-float16", (), _through(np.float16), "the numbers went through float16", "keep their type"
    ),
    WeightTrap(
        "weights-through-bfloat16",
        (),
        _through(ml_dtypes.bfloat16),
        "the numbers went through bfloat16",
        "keep their type",
    ),
    WeightTrap(
        "lstm-gates-iofg", ("lstm",), _gates((0, 3, 1, 2)), "the gates stand as i o f g", "take them as i f g o"
    ),
    WeightTrap(
        "lstm-forget-bias-added",
        ("lstm",),
        _forget,
        "the forget gate's bias is one more than PyTorch's",
        "PyTorch adds nothing to it",
    ),
    WeightTrap(
        "attention-qkv-order",
        ("attention",),
        _thirds,
        "query, key and value stand in another order",
        "PyTorch packs query, key, value",
    ),
    WeightTrap(
        "attention-heads-interleaved",
        ("attention",),
        _heads,
        "the heads were split the other way: depth before heads",
        "reshape to (in, heads, depth)",
    ),
    WeightTrap(
        "kernel-groups-shuffled",
        CONV,
        _groups,
        "the output channels stand group by group otherwise",
        "keep their order",
    ),
    WeightTrap(
        "norm-scale-off-by-one",
        ("affine", "batch_norm"),
        lambda w: [w + 1, w - 1],
        "the scale is one off, as where a layer multiplies by 1 + scale",
        "write PyTorch's weight as it is",
    ),
    WeightTrap(
        "bn-variance-is-deviation",
        ("batch_norm",),
        _deviation,
        "the variance was stored as a standard deviation, or as its inverse",
        "write running_var as it is",
    ),
    WeightTrap(
        "embedding-padding-row",
        ("embedding",),
        None,
        "the row of padding is not zero",
        "write PyTorch's, with the row of padding_idx zero",
        _one_row,
    ),
    WeightTrap("weight-scaled", (), None, "the tensor is a multiple of PyTorch's", "write it unscaled", _scaled),
    WeightTrap("rows-permuted", (), None, "outputs stand in another order", "keep PyTorch's order", _permuted(0)),
    WeightTrap(
        "columns-permuted",
        (),
        None,
        "inputs stand in another order, as where a flatten goes channels last",
        "keep PyTorch's order, and transpose before the flatten",
        _permuted(1),
    ),
)

STRUCTURE, NOT_MOVED, EXCHANGED = "weights-do-not-fit", "weights-not-moved", "weights-exchanged"
BIAS, SORTED, UNTIED, SECOND_BIAS = "bias-missing", "layers-in-sorted-order", "weights-not-tied", "recurrent-bias-lost"

# What several tensors tell together: by what the two exchanged ones are in their layer, or in all layers.
TOGETHER = (
    WeightTrap(STRUCTURE, (), None, "tensors of other shapes, or too few", "build the layer as PyTorch's is built"),
    WeightTrap(BIAS, (), None, "the layer has no bias", "use_bias=True"),
    WeightTrap(NOT_MOVED, (), None, "other weights altogether", "parity.move"),
    WeightTrap(EXCHANGED, (), None, "two tensors were exchanged", "write each to its own place"),
    WeightTrap(
        "bn-mean-variance-exchanged",
        ("batch_norm",),
        None,
        "the running mean and variance were exchanged",
        "running_mean is `mean`, running_var is `var`",
    ),
    WeightTrap(
        "norm-scale-bias-exchanged",
        ("batch_norm", "affine"),
        None,
        "scale and bias were exchanged",
        "weight is `scale`, bias is `bias`",
    ),
    WeightTrap(
        SORTED,
        (),
        None,
        "the layers were taken in the order of their sorted names, layers_10 before layers_2",
        "go by names, or sort by number",
    ),
    WeightTrap(UNTIED, (), None, "two tensors where PyTorch has one that both layers share", "use one variable"),
    WeightTrap(
        SECOND_BIAS,
        ("lstm", "gru"),
        None,
        "one of PyTorch's two biases was dropped",
        "add them: ports.weights.fold_recurrent_biases",
    ),
)

# By the two tensors of a layer that were exchanged.
PAIRS = {
    frozenset(("running_mean", "running_var")): "bn-mean-variance-exchanged",
    frozenset(("weight", "bias")): "norm-scale-bias-exchanged",
}
