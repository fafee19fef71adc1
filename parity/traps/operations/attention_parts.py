"""Recognises an attention, written as operations or called as one function.

It follows the calls from the softmax backwards to the scores of queries and keys, and collects the steps that change
the scores.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from parity.traps.operations.parts import Call, made, name_of, number, orders, read_once, scaled, through
from parity.traps.planting import Values

# Numbers up to this one count as minus infinity in masks: Swin's windows use -100.
MASKED = -100.0


@dataclass(frozen=True)
class Step:
    """One step that changes the scores.

    Attributes:
        kind: `scale`, `mask`, `bias`, `cap`.
        value: the factor, the mask, the bias or the cap.
        fill: the number in place of masked scores.
    """

    kind: str
    value: Any
    fill: float = float("-inf")

    def __call__(self, scores: Tensor) -> Tensor:
        match self.kind:
            case "scale":
                return scores * self.value
            case "mask":
                return torch.where(self.value, scores, self.fill)
            case "cap":
                return torch.tanh(scores / self.value) * self.value
        return scores + self.value


@dataclass(frozen=True)
class Attention:
    """One attention.

    Attributes:
        scores: (..., queries, keys), the products of queries and keys.
        depth: of a head.
        steps: the changes of the scores, in order.
        values: the values of the keys; None if the call gives the weights.
        dim: of the softmax.
    """

    scores: Tensor
    depth: int
    steps: tuple[Step, ...]
    values: Tensor | None = None
    dim: int = -1

    def value(self, weights: Tensor | None = None) -> Tensor:
        """The result of the call, or with other weights if they are given."""
        weights = self.weights() if weights is None else weights
        return weights if self.values is None else weights @ self.values

    def logits(self, *without: str) -> Tensor:
        """The input of the softmax, without some kinds of steps."""
        scores = self.scores
        for step in self.steps:
            scores = scores if step.kind in without else step(scores)
        return scores

    def weights(self) -> Tensor:
        """The softmax."""
        return torch.softmax(self.logits(), self.dim)

    @property
    def kept(self) -> Tensor | None:
        """The product of all masks, for every query and key; None without a mask."""
        masks = [step.value for step in self.steps if step.kind == "mask"]
        if not masks:
            return None
        kept = masks[0]
        for mask in masks[1:]:
            kept = kept & mask
        return kept.expand(torch.broadcast_shapes(kept.shape, self.scores.shape[-2:]))

    @property
    def fill(self) -> float:
        """The number in place of masked scores."""
        return next((step.fill for step in self.steps if step.kind == "mask"), float("-inf"))

    def masked(self, kept: Tensor | None, fill: float | None = None) -> Attention:
        """The attention with another mask, in the place of the first; None for no mask."""
        steps: list[Step] = []
        for step in self.steps:
            if step.kind != "mask":
                steps.append(step)
            elif kept is not None:
                steps.append(replace(step, value=kept, fill=step.fill if fill is None else fill))
                kept = None
        return replace(self, steps=tuple(steps))

    def with_step(self, kind: str, change: Callable[[Step], Step | None]) -> Attention | None:
        """The attention with steps of a kind changed, or left out; None if there are none."""
        if not any(step.kind == kind for step in self.steps):
            return None
        steps = (change(step) if step.kind == kind else step for step in self.steps)
        return replace(self, steps=tuple(step for step in steps if step is not None))


def _bias(x: Tensor) -> Step:
    """A step that adds numbers: it is a mask if they are all zero or minus infinity (or a stand-in for it)."""
    if x.dtype == torch.bool:
        return Step("bias", x)
    low = x <= MASKED
    if low.any() and not x[~low].any():
        return Step("mask", ~low, float(x[low].flatten()[0]))
    return Step("bias", x)


def _capped(x: Any) -> tuple[Tensor, float] | None:
    """The scores of which `x` is cap · tanh(scores / cap)."""
    outer = scaled(x)
    tanh = outer and made(outer[0], "tanh")
    inner = scaled(tanh[0]) if tanh else None
    if outer is None or inner is None or abs(inner[1] * outer[1] - 1) > 1e-9:
        return None
    return inner[0], outer[1]


def _masked(call: Call) -> tuple[Tensor, Step] | None:
    """The scores that a call masks."""
    if call.name == "masked_fill":
        mask, fill = call.argument(1, "mask"), number(call.argument(2, "value"))
        return None if fill is None or fill > MASKED else (call[0], Step("mask", ~mask, fill))
    kept, a, b = call[0], call.argument(1, "input"), call.argument(2, "other")
    low = {i: n for i, x in enumerate((a, b)) if (n := number(x)) is not None and n <= MASKED}
    if len(low) != 1:
        return None
    (i, fill), *_ = low.items()
    return (b, Step("mask", ~kept, fill)) if i == 0 else (a, Step("mask", kept, fill))


def _step(x: Any) -> tuple[Tensor, Step] | None:
    """The scores before the last step, and that step."""
    if (capped := _capped(x)) is not None:
        return capped[0], Step("cap", capped[1])
    if (factor := scaled(x)) is not None:
        return factor[0], Step("scale", factor[1])
    call = made(x, "masked_fill", "where", "add")
    if call is None:
        return None
    if call.name != "add":
        return _masked(call)
    for scores, other in orders(call):
        if isinstance(other, Tensor) and isinstance(scores, Tensor) and _product(scores) is not None:
            return scores, _bias(other)
    return None


def _product(x: Any) -> tuple[Tensor, int, tuple[Step, ...]] | None:
    """The product of queries and keys from which `x` was made, the depth, and the steps."""
    call = made(x, "matmul", "einsum", "baddbmm")
    if call is not None and call.name != "baddbmm":
        queries = call[0] if call.name == "matmul" else next(iter(call.tensors))
        factors = [f for t in call.tensors if (f := scaled(t)) is not None]
        steps = tuple(Step("scale", f[1]) for f in factors)
        total = 1.0
        for f in factors:
            total *= f[1]
        return (through(x) / total if factors else through(x)), queries.shape[-1], steps
    if (cut := made(x, "reshape")) is not None:
        return _cut_otherwise(_product(cut[0]), x)
    found = _step(x)
    inner = None if found is None else _product(found[0])
    return None if found is None or inner is None else (inner[0], inner[1], (*inner[2], found[1]))


def _cut_otherwise(
    found: tuple[Tensor, int, tuple[Step, ...]] | None, x: Tensor
) -> tuple[Tensor, int, tuple[Step, ...]] | None:
    """Return a product with the leading axes of `x`: windows separate from images, to add a mask to each."""
    if found is None or found[0].ndim < 2 or found[0].shape[-2:] != x.shape[-2:]:
        return None
    scores, depth, steps = found

    def cut(value: Any) -> Any:
        if not isinstance(value, Tensor) or not value.ndim:
            return value
        return value.expand(torch.broadcast_shapes(value.shape, scores.shape)).reshape(x.shape)

    return scores.reshape(x.shape), depth, tuple(replace(step, value=cut(step.value)) for step in steps)


def _function(call: Call) -> Attention:
    """PyTorch's function."""
    q, k, v = call.args[:3]
    if q.shape[-3] != k.shape[-3] and q.ndim > 3:
        k, v = (t.repeat_interleave(q.shape[-3] // k.shape[-3], -3) for t in (k, v))
    factor = call.argument(6, "scale") or q.shape[-1] ** -0.5
    steps, mask = [Step("scale", factor)], call.argument(3, "attn_mask")
    if call.argument(5, "is_causal", False):
        steps.append(Step("mask", torch.ones(q.shape[-2], k.shape[-2], dtype=torch.bool).tril()))
    if mask is not None:
        steps.append(Step("mask", mask) if mask.dtype == torch.bool else _bias(mask))
    return Attention(q @ k.transpose(-2, -1), q.shape[-1], tuple(steps), v)


@read_once
def attention_of(function: Any, args: Values, kw: dict[str, Any]) -> Attention | None:
    """Return the attention that ends at this call; None if there is none."""
    call = Call(name_of(function), function, args, kw)
    if call.name == "scaled_dot_product_attention":
        return _function(call)
    x, dim = call.argument(0, "input"), call.argument(1, "dim")
    if x.ndim < 3 or dim not in (-1, x.ndim - 1) or (found := _product(x)) is None:
        return None
    return Attention(*found)
