"""Rules: which Flax variables of a layer are which PyTorch tensors, and in which layout.

A rule takes the layer (an NNX module, or an unbound Linen module, of which it only reads settings) and gives its
leaves. It never looks at a tensor's rank, or at shapes that happen to fit. `kinds.py` says which layer type has which
rule.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, runtime_checkable

import numpy as np

from ports.family import COUNTER

Arrays = tuple[np.ndarray, ...]


@dataclass(frozen=True)
class Leaf:
    """One PyTorch tensor of a layer.

    Attributes:
        torch: its PyTorch name within the layer.
        flax: the Flax variables that hold it, as paths within the layer (`kernel`, `query.kernel`).
        to_flax, to_torch: convert the PyTorch tensor to the values of those variables, and back; views where possible.
        dtype: PyTorch's type, if it is fixed.
        collection: Linen's collection.
        like: if `flax` is empty: the Flax variable whose type the tensor has. Such a tensor has one value only.
        axes: how many axes each of the Flax variables has in one layer; a stack of layers has more.
        reshaped: whether the arrays of `to_flax` have the variables' numbers in order, in another shape.
    """

    torch: str
    flax: tuple[str, ...]
    to_flax: Callable[[np.ndarray], Arrays] = lambda a: (a,)
    to_torch: Callable[[Arrays], np.ndarray] = lambda arrays: arrays[0]
    dtype: str | None = None
    collection: str = "params"
    like: str | None = None
    axes: int | None = None
    reshaped: bool = False


@runtime_checkable
class HasHeads(Protocol):
    """A layer of attention, as its rule reads it."""

    num_heads: int


@runtime_checkable
class HasTranspose(Protocol):
    """A transposed convolution, as its rule reads it."""

    transpose_kernel: bool


LayerRule = Callable[[Any], tuple[Leaf, ...]]


def same(
    torch_name: str, flax: str, *, dtype: str | None = None, collection: str = "params", axes: int | None = 1
) -> Leaf:
    """A tensor with the same layout in both frameworks."""
    return Leaf(torch_name, (flax,), dtype=dtype, collection=collection, axes=axes)


def tensor(_: object) -> tuple[Leaf, ...]:
    """A tensor that belongs to no layer: the layer's name is its whole name."""
    return (same("", "", axes=None),)


def _count(setting: object) -> int | None:
    """Return how many numbers a setting has; None if the layer has no such setting."""
    if isinstance(setting, int):
        return 1
    return len(setting) if isinstance(setting, Sequence) else None


def conv(layer: object) -> tuple[Leaf, ...]:
    """(out, in / groups, *window) and (*window, in / groups, out)."""
    window = _count(getattr(layer, "kernel_size", None))
    return (
        Leaf(
            "weight",
            ("kernel",),
            to_flax=lambda w: (np.moveaxis(w, (0, 1), (-1, -2)),),
            to_torch=lambda k: np.moveaxis(k[0], (-1, -2), (0, 1)),
            axes=None if window is None else window + 2,
        ),
        same("bias", "bias"),
    )


def conv_transpose(layer: HasTranspose) -> tuple[Leaf, ...]:
    """(in, out, *window) and (*window, out, in) with `transpose_kernel`, or else (*window, in, out), flipped."""
    if layer.transpose_kernel:
        return conv(layer)

    def flip(a: np.ndarray, axes: range) -> np.ndarray:
        return np.flip(a, tuple(axes))

    return (
        Leaf(
            "weight",
            ("kernel",),
            to_flax=lambda w: (np.moveaxis(flip(w, range(2, w.ndim)), (0, 1), (-2, -1)),),
            to_torch=lambda k: np.moveaxis(flip(k[0], range(k[0].ndim - 2)), (-2, -1), (0, 1)),
            axes=conv(layer)[0].axes,
        ),
        same("bias", "bias"),
    )


def linear(_: object) -> tuple[Leaf, ...]:
    """(out, in) and (in, out)."""
    return (
        Leaf("weight", ("kernel",), to_flax=lambda w: (w.T,), to_torch=lambda k: k[0].T, axes=2),
        same("bias", "bias"),
    )


def linear_alike(_: object) -> tuple[Leaf, ...]:
    """(in, out) in both."""
    return (same("weight", "kernel", axes=2), same("bias", "bias"))


def linear_general(layer: object) -> tuple[Leaf, ...]:
    """(out, in) and (*in, *out), if the inputs or the outputs have several axes, such as heads and depth.

    A layer with batch axes is many linear layers, so its tensors are taken as they are.
    """
    features = getattr(layer, "features", None) or getattr(layer, "out_features", None)
    many, inputs = _count(features), _count(getattr(layer, "axis", None))
    if many is None or inputs is None or getattr(layer, "batch_axis", ()) or getattr(layer, "batch_dims", ()):
        return ()
    return (
        Leaf(
            "weight",
            ("kernel",),
            to_flax=lambda w: (w.T,),
            to_torch=lambda k: k[0].reshape(-1, math.prod(k[0].shape[-many:])).T,
            axes=inputs + many,
            reshaped=True,
        ),
        Leaf("bias", ("bias",), to_torch=lambda b: b[0].reshape(-1), axes=many, reshaped=True),
    )


def affine(layer: object) -> tuple[Leaf, ...]:
    """LayerNorm, GroupNorm, InstanceNorm, RMSNorm."""
    axes = _count(getattr(layer, "feature_axes", -1))
    return (same("weight", "scale", axes=axes), same("bias", "bias", axes=axes))


def batch_norm(layer: object) -> tuple[Leaf, ...]:
    """The counter is a variable only in our own ports; for Flax's layers, `nnx.py` and `linen.py` find a place."""
    return (
        *affine(layer),
        same("running_mean", "mean", collection="batch_stats"),
        same("running_var", "var", collection="batch_stats"),
        same(COUNTER, COUNTER, dtype="int64", collection="batch_stats", axes=0),
    )


def embedding(_: object) -> tuple[Leaf, ...]:
    return (same("weight", "embedding", axes=2),)


def attention(layer: HasHeads) -> tuple[Leaf, ...]:
    """torch.nn.MultiheadAttention packs query, key and value: (3 x width, width) and three (width, heads, depth)."""
    names, heads = ("query", "key", "value"), layer.num_heads
    return (
        Leaf(
            "in_proj_weight",
            tuple(f"{n}.kernel" for n in names),
            to_flax=lambda w: tuple(part.T.reshape(part.shape[1], heads, -1) for part in np.split(w, 3)),
            to_torch=lambda kernels: np.concatenate([k.reshape(k.shape[0], -1).T for k in kernels]),
            axes=3,
        ),
        Leaf(
            "in_proj_bias",
            tuple(f"{n}.bias" for n in names),
            to_flax=lambda b: tuple(part.reshape(heads, -1) for part in np.split(b, 3)),
            to_torch=lambda biases: np.concatenate([b.reshape(-1) for b in biases]),
            axes=2,
        ),
        Leaf(
            "out_proj.weight",
            ("out.kernel",),
            to_flax=lambda w: (w.T.reshape(heads, -1, w.shape[0]),),
            to_torch=lambda k: k[0].reshape(-1, k[0].shape[-1]).T,
            axes=3,
        ),
        same("out_proj.bias", "out.bias"),
    )


def gates(torch_name: str, kernels: tuple[str, ...]) -> Leaf:
    """The kernels of a cell's gates, (in, hidden) each, as PyTorch stacks them: (gates x hidden, in)."""
    return Leaf(
        torch_name,
        kernels,
        to_flax=lambda w: tuple(part.T for part in np.split(w, len(kernels))),
        to_torch=lambda parts: np.concatenate([k.T for k in parts]),
        axes=2,
    )


def gate_biases(torch_name: str, biases: tuple[str, ...]) -> Leaf:
    return Leaf(torch_name, biases, to_flax=lambda b: tuple(np.split(b, len(biases))), to_torch=np.concatenate, axes=1)


def no_bias(torch_name: str, like: str, size: int, kept: tuple[str, ...] = ()) -> Leaf:
    """PyTorch's second bias, of which Flax has only the last part (`kept`) or nothing: the rest must be zero."""

    def to_flax(b: np.ndarray) -> Arrays:
        rest = b[: len(b) - size // 3] if kept else b
        if rest.any():
            raise ValueError(
                "Flax has one bias where PyTorch adds two: fold them first with ports.weights.fold_recurrent_biases"
            )
        return (b[len(rest) :],) if kept else ()

    def to_torch(parts: Arrays) -> np.ndarray:
        return np.concatenate([np.zeros(2 * len(parts[0]), parts[0].dtype), parts[0]]) if kept else np.zeros(size)

    return Leaf(torch_name, kept, to_flax, to_torch, like=like)


def lstm(cell: object) -> tuple[Leaf, ...]:
    """Gates input, forget, cell, output; Flax has one bias, at the hidden state."""
    if hasattr(cell, "dense_i"):
        biases = same("bias_ih", "dense_h.bias")
        weights = (
            Leaf("weight_ih", ("dense_i.kernel",), lambda w: (w.T,), lambda k: k[0].T, axes=2),
            Leaf("weight_hh", ("dense_h.kernel",), lambda w: (w.T,), lambda k: k[0].T, axes=2),
        )
        like = "dense_h.bias"
    else:
        underscore = "_" if hasattr(cell, "if_") else ""
        inputs = tuple(f"i{gate}{underscore if gate == 'f' else ''}.kernel" for gate in "ifgo")
        weights = (gates("weight_ih", inputs), gates("weight_hh", tuple(f"h{gate}.kernel" for gate in "ifgo")))
        biases, like = gate_biases("bias_ih", tuple(f"h{gate}.bias" for gate in "ifgo")), "hi.bias"
    return (*weights, biases, no_bias("bias_hh", like, 4 * _hidden(cell)))


def gru(cell: Any) -> tuple[Leaf, ...]:
    """Gates reset, update, new. Linen's cell has a bias of the new gate at the hidden state, NNX's does not."""
    if hasattr(cell, "dense_i"):
        return (
            Leaf("weight_ih", ("dense_i.kernel",), lambda w: (w.T,), lambda k: k[0].T, axes=2),
            Leaf("weight_hh", ("dense_h.kernel",), lambda w: (w.T,), lambda k: k[0].T, axes=2),
            same("bias_ih", "dense_i.bias"),
            same("bias_hh", "dense_h.bias")
            if getattr(cell.dense_h, "use_bias", False)
            else no_bias("bias_hh", "dense_i.bias", 3 * _hidden(cell)),
        )
    return (
        gates("weight_ih", ("ir.kernel", "iz.kernel", "in.kernel")),
        gates("weight_hh", ("hr.kernel", "hz.kernel", "hn.kernel")),
        gate_biases("bias_ih", ("ir.bias", "iz.bias", "in.bias")),
        no_bias("bias_hh", "hn.bias", 3 * _hidden(cell), kept=("hn.bias",)),
    )


def two_biases(_: object) -> tuple[Leaf, ...]:
    """A cell that has PyTorch's two biases and its order of gates: two linear layers."""
    return (
        Leaf("weight_ih", ("dense_i.kernel",), lambda w: (w.T,), lambda k: k[0].T, axes=2),
        Leaf("weight_hh", ("dense_h.kernel",), lambda w: (w.T,), lambda k: k[0].T, axes=2),
        same("bias_ih", "dense_i.bias"),
        same("bias_hh", "dense_h.bias"),
    )


def recurrent_layer(layer: object) -> tuple[Leaf, ...]:
    """A layer of one level, in one direction or in both, of cells with two biases."""
    return tuple(
        replace(leaf, torch=f"{leaf.torch}_{end}", flax=tuple(f"{rnn}.cell.{name}" for name in leaf.flax))
        for end, rnn in (("l0", "forward_rnn"), ("l0_reverse", "backward_rnn"))
        for leaf in two_biases(layer)
    )


def _hidden(cell: Any) -> int:
    return cell.hidden_features if hasattr(cell, "hidden_features") else cell.features
