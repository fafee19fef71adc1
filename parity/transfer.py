"""Whether the weights of two models are the same, and which known mistake of a conversion explains it where not."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np

from parity import bounds
from parity.pairing import OPTIONAL, Pair, Pairing
from parity.report import Finding, Row

STRUCTURE, NOT_MOVED = "weights-do-not-fit", "weights-not-moved"


@dataclass(frozen=True)
class WeightTrap:
    """One known mistake in moving a tensor.

    Attributes:
        plant: makes it in a tensor of PyTorch's layout; None where the tensor cannot have it.
    """

    name: str
    kinds: tuple[str, ...]
    plant: Callable[[np.ndarray], np.ndarray | None]
    text: str
    mend: str


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
)


def judge(port: str, pairing: Pairing) -> tuple[Row, list[Finding]]:
    """The row `weights`, and a finding for every layer whose weights are not PyTorch's."""
    found: list[Finding] = []
    unknown = 0
    worst = ("", 0.0, 0.0)
    others = {n: v for p in pairing.pairs for leaf, v in p.torch.values.items() if (n := p.torch.tensors[leaf])}
    for p in pairing.pairs:
        if text := _misfit(p):
            found.append(Finding(port, p.torch.name, STRUCTURE, text))
            worst = (p.torch.name, np.inf, 0.0)
            continue
        said = False
        for leaf, mine in p.torch.values.items():
            if leaf in OPTIONAL or leaf not in p.flax.values:
                continue
            theirs = np.asarray(p.flax.values[leaf], np.float64)
            far = bounds.distance(theirs, mine) / (bounds.norm(mine) or 1.0)
            if far > worst[1] and far > 0:
                worst = (p.torch.tensors[leaf], far, 0.0)
            if far > 0 and not said:
                said = True
                found.append(_explained(port, p, leaf, mine, theirs, others, far))
                unknown += found[-1].trap is None
    if unknown > len(pairing.pairs) / 3:
        text = f"{unknown} of {len(pairing.pairs)} layers hold other weights; move PyTorch's over first: parity.move"
        found = [Finding(port, "(the network)", NOT_MOVED, text), *(f for f in found if f.trap)]
    name, far, bound = worst
    return Row(port, "weights", name or "all", far, bound, ok=not found), found


def _misfit(p: Pair) -> str | None:
    """Tensors that one side lacks or has in another shape."""
    mine, theirs = ({n: v.shape for n, v in side.values.items() if n not in OPTIONAL} for side in (p.torch, p.flax))
    if mine == theirs:
        return None
    parts = [f"{n} {s} is missing" for n, s in mine.items() if n not in theirs]
    parts += [f"{n} {s} is more than PyTorch has" for n, s in theirs.items() if n not in mine]
    parts += [f"{n} is {theirs[n]}, PyTorch's is {s}" for n, s in mine.items() if theirs.get(n, s) != s]
    return f"{p.flax.name} in PyTorch's layout: {'; '.join(parts)}; build the layer as PyTorch's is built"


def _explained(
    port: str,
    p: Pair,
    leaf: str,
    mine: np.ndarray,
    theirs: np.ndarray,
    others: Mapping[str, np.ndarray],
    far: float,
) -> Finding:
    for trap in TRAPS:
        if trap.kinds and p.torch.kind not in trap.kinds:
            continue
        planted = trap.plant(mine)
        if planted is not None and planted.shape == theirs.shape and np.array_equal(planted, theirs):
            return Finding(port, p.torch.name, trap.name, f"{p.torch.tensors[leaf]}: {trap.text}; {trap.mend}")
    for name, array in others.items():
        if array.shape == theirs.shape and array is not mine and np.array_equal(array, theirs) and np.ptp(array):
            text = f"{p.torch.tensors[leaf]} holds the values of {name}; the two were exchanged"
            return Finding(port, p.torch.name, "weights-exchanged", text)
    name = p.torch.tensors[leaf]
    text = f"{name} holds other values (distance {far:.1e} of its size); move PyTorch's over first (parity.move)"
    return Finding(port, p.torch.name, None, text)
