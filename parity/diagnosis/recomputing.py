"""Compute the calls of a run of PyTorch's again with other values in them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor

from parity.traps.operations.parts import Call, call_of

# New results of calls, by their numbers; new tensors in place of others, by their `id`.
Results = Mapping[int, Any]
Tensors = Mapping[int, Tensor]

LONGEST = 40  # how many calls that take a tensor are followed


def anew(value: Any, results: Results, tensors: Tensors) -> Any:
    """Return a value with new results of calls, also inside lists; the value itself if nothing in it is new."""
    if isinstance(value, list | tuple):
        parts = [anew(item, results, tensors) for item in value]
        if all(a is b for a, b in zip(parts, value, strict=True)):
            return value
        return parts if isinstance(value, list) else tuple(parts)
    if isinstance(value, Tensor) and id(value) in tensors:
        return tensors[id(value)]
    call = call_of(value)
    if call is None or call.number not in results:
        return value
    return results[call.number] if call.part is None else results[call.number][call.part]


def given_anew(call: Call, results: Results, tensors: Tensors) -> tuple[Any, dict[str, Any]] | None:
    """Return the new arguments of a call, by position and by name; None if none of them is new."""
    args = anew(call.args, results, tensors)
    kw = {name: anew(value, results, tensors) for name, value in call.kw.items()}
    same = all(a is b for a, b in zip((*args, *kw.values()), (*call.args, *call.kw.values()), strict=True))
    return None if same else (args, kw)


def replaced(value: Any, calls: Sequence[Call], results: Results, tensors: Tensors) -> Any:
    """Return what a value becomes if calls give other results, and tensors are exchanged; None if that is impossible.

    Args:
        calls: all calls that computed the value, in order.
    """
    new: dict[int, Any] = {}
    for call in calls:
        if call.number in results:
            new[call.number] = results[call.number]
        elif (given := given_anew(call, new, tensors)) is not None:
            if call.changing:
                return None
            new[call.number] = call.function(*given[0], **given[1])
    return anew(value, new, tensors)


def behind(calls: Sequence[Call], start: Tensor, x: Tensor) -> Iterator[tuple[Call, Any]]:
    """Yield the calls that take a tensor, with their results for another tensor in its place."""
    new: dict[int, Any] = {}
    for call in calls:
        if (given := given_anew(call, new, {id(start): x})) is None:
            continue
        if call.changing or len(new) > LONGEST:
            return
        value = call.function(*given[0], **given[1])
        if isinstance(value, Tensor | tuple | list):  # and no dtype, which the code may ask for
            new[call.number] = value
            yield call, value
