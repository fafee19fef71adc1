"""Known mistakes in positions: buckets of relative ones, tables of absolute ones. A new mistake is a new row."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from parity.traps.operations.parts import Call, made, orders
from parity.traps.planting import Values
from parity.traps.trap import Trap

# The numbers of buckets and the largest distances in T5 and its successors.
BUCKETS, FARTHEST = (32, 64, 16, 8, 320), (128, 64, 256, 32, 800)


def bucket(relative: Tensor, buckets: int, farthest: int, both: bool) -> Tensor:
    """The bucket of a key's position minus the query's, as in T5: half of the buckets are for later keys, or none."""
    offset = torch.zeros_like(relative)
    if both:
        buckets //= 2
        offset, distance = (relative > 0).long() * buckets, relative.abs()
    else:
        distance = (-relative).clamp(0)
    exact = buckets // 2
    part = torch.log(distance.clamp(1).double() / exact) / math.log(farthest / exact)
    far = (exact + (part * (buckets - exact)).long()).clamp(max=buckets - 1)
    return offset + torch.where(distance < exact, distance, far)


def _other_direction(both: bool) -> Callable[..., Any]:
    """Buckets of both directions instead of one, or the other way round."""

    def plant(function: Any, args: Values, kw: dict[str, Any]) -> Tensor | None:
        if any(isinstance(a, Tensor) and a.dtype not in (torch.int64, torch.bool) for a in args):
            return None
        value = function(*args, **kw)
        if not isinstance(value, Tensor) or value.dtype != torch.int64 or value.ndim < 2:
            return None
        n, m = value.shape[-2:]
        if min(n, m) < 2 or value.numel() != n * m:
            return None
        relative = torch.arange(m) - torch.arange(n)[:, None]
        for buckets in BUCKETS:
            for farthest in FARTHEST:
                if farthest <= buckets // 2:
                    continue
                if torch.equal(value.reshape(n, m), bucket(relative, buckets, farthest, not both)):
                    return bucket(relative, buckets, farthest, both).reshape(value.shape)
        return None

    return plant


def _class_token_without_position(function: Any, args: Values, kw: dict[str, Any]) -> Tensor | None:
    """The sum of tokens and a table of positions, where tokens that are joined at an end get no position."""
    for x, table in orders(Call("add", function, args, kw)):
        joined = made(x, "cat")
        if joined is None or not isinstance(table, Tensor) or not table.is_floating_point() or made(table, "cat"):
            continue
        parts, dim = joined.argument(0, "tensors"), joined.argument(1, "dim", 0)
        if x.ndim != 3 or dim not in (1, -2) or len(parts) != 2 or table.shape[-2:] != x.shape[-2:]:
            continue
        first, last = (part.shape[1] for part in parts)
        if first != last:
            table = table.expand_as(x).clone()
            table[:, slice(0, first) if first < last else slice(first, None)] = 0
            return x + table
    return None


POSITIONS = (
    Trap(
        "relative-buckets-one-sided",
        "between",
        ("add", "__add__", "__radd__"),
        _other_direction(both=False),
        "the buckets of relative positions are those of a causal decoder, which does not distinguish later keys; "
        "PyTorch's model has buckets for both directions",
        "pass bidirectional=True",
        "lucidrains/x-transformers#10",
    ),
    Trap(
        "relative-buckets-both-sided",
        "between",
        ("add", "where", "__add__", "__radd__"),
        _other_direction(both=True),
        "the buckets of relative positions are those of both directions; PyTorch's model has those of a causal decoder",
        "pass bidirectional=False",
        "Raffel et al. 2020",
    ),
    Trap(
        "position-of-class-token-missing",
        "between",
        ("add",),
        _class_token_without_position,
        "positions are added before the class token is joined, which gets none",
        "join the class token first, then add the table to all tokens",
        "labmlai/annotated_deep_learning_paper_implementations#221",
    ),
)
