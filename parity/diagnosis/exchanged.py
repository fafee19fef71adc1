"""Recognise a layer that the port calls after an operation and PyTorch before it, or the other way round.

In a forced run every layer hands on PyTorch's output, so such a mistake shows at two places: in what arrives at the
layer, and in what the port computes with its output. To a layer that comes too late the port gives the operation's
result on the layer's input, and behind the layer the operation is missing. To a layer that comes too early the port
gives a value from before the operation, and behind the layer the port does the operation once more. Both places must
have all of the port's numbers, up to rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from parity.diagnosis.localise import FORWARD, Deviation, ForcedRuns
from parity.diagnosis.operations import DifferingPlace, ReferenceNetwork, WayTo
from parity.diagnosis.recomputing import behind, replaced
from parity.diagnosis.rewired import called
from parity.numerics import bounds
from parity.running.taps import layer_of
from parity.traps.operations.order import LAYER_AFTER, LAYER_BEFORE, ROTARY_BEFORE_NORM
from parity.traps.operations.parts import RANDOM, TRANSPARENT, Call, call_of
from parity.traps.operations.rotary_parts import FORMS, rotation_of

# Calls that change where numbers stand, and no number.
LAYOUT = TRANSPARENT | {"reshape", "transpose", "permute", "flatten", "movedim", "squeeze", "unsqueeze", "T", "mT"}
ERRORS = (Exception,)  # of a changed computation: the model's code may raise anything
NEAR = 40  # calls before a layer among which the operation is
MOST = 40  # places, each of which takes a run of PyTorch's model


@dataclass(frozen=True)
class Move:
    """A layer that stands elsewhere.

    Attributes:
        seen: where what arrives at the layer differs.
        after: whether the port calls the layer after the operation.
        operation: the last call of the operation.
        new: what the call gives in the port's order; if the layer comes too early, what the layer hands on.
    """

    seen: Deviation
    after: bool
    operation: Call
    new: Tensor


@dataclass(frozen=True)
class Exchange:
    """One mistake: layers that all stand on the wrong side of an operation.

    Attributes:
        moves: one for each layer, in execution order.
        leads: of all deviations that it explains.
    """

    moves: tuple[Move, ...]
    leads: frozenset[str]

    def trap(self, net: nn.Module) -> str:
        """Return the name of the known mistake."""
        first = self.moves[0]
        if not first.after:
            return LAYER_BEFORE
        norms = all("norm" in type(net.get_submodule(layer_of(move.seen.call))).__name__.lower() for move in self.moves)
        return ROTARY_BEFORE_NORM if norms and _rotates(first.operation) else LAYER_AFTER

    @property
    def lead(self) -> str:
        """The lead of the deviation that shows it first."""
        return self.moves[0].seen.lead

    @property
    def said(self) -> str:
        """Return what the port does, and how to mend it."""
        names = [*dict.fromkeys(layer_of(move.seen.call) for move in self.moves)]
        listed = names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
        comes, them = ("comes", "it") if len(names) == 1 else ("come", "them")
        ours, theirs, when = ("after", "before", "first") if self.moves[0].after else ("before", "after", "afterwards")
        operation = called(self.moves[0].operation).rstrip(",")
        told = f"{listed} {comes} {ours} {operation}; PyTorch's model calls {them} {when}"
        return f"{told}; call {them} {theirs} the operation"


def explain(
    network: ReferenceNetwork, deviations: Sequence[Deviation], cases: Mapping[bool, ForcedRuns]
) -> list[Exchange]:
    """Return the layers on the wrong side of an operation that together explain at least two deviations.

    Args:
        deviations: of both modes, in execution order.
    """
    found: list[Exchange] = []
    for train in (False, True):
        here = [d for d in deviations if d.aspect == "between" and d.train is train][:MOST]
        if len(here) < 2:
            continue
        ways = [_way(network, d, cases[train]) for d in here]
        moves: list[Move] = []
        for d, way in zip(here, ways, strict=True):
            x = torch.tensor(cases[train].reference.inputs.get(d.call, way.place.got))
            move = _moved(d, way, x)
            # Behind another layer that comes too late its operation is missing here, too.
            for chosen, value in () if move else _under(way, moves):
                if move := _moved(d, way, value):
                    found.append(Exchange(tuple(chosen), frozenset({d.lead, *(one.seen.lead for one in chosen)})))
                    break
            moves += [move] if move else []
        for d, way in zip(here, ways, strict=True):
            others = [move for move in moves if move.seen is not d]
            if others and (chosen := _behind_them(way, others)):
                found.append(Exchange(tuple(chosen), frozenset({d.lead, *(move.seen.lead for move in chosen)})))
    return _joined(found)


def _joined(found: Sequence[Exchange]) -> list[Exchange]:
    """Return exchanges that share a layer as one."""
    joined: list[Exchange] = []
    for one in found:
        calls = {move.seen.call for move in one.moves}
        same = [other for other in joined if any(move.seen.call in calls for move in other.moves)]
        moves = {move.seen.call: move for other in (*same, one) for move in other.moves}
        leads = one.leads.union(*(other.leads for other in same))
        joined = [*(other for other in joined if other not in same), Exchange((*moves.values(),), leads)]
    return joined


def _way(network: ReferenceNetwork, d: Deviation, case: ForcedRuns) -> WayTo:
    got = case.port.seen_at(d.side)[d.call]
    return network.on_the_way_to(DifferingPlace(d.side, d.call, d.train, got), keep=True)


def _same(a: Any, b: Any) -> bool:
    """Return whether two tensors have the same numbers, up to rounding."""
    if not (isinstance(a, Tensor) and isinstance(b, Tensor)) or a.shape != b.shape or a.is_complex() or b.is_complex():
        return False
    ours, theirs = a.detach().double().numpy(), b.detach().double().numpy()
    return bool(bounds.distance(ours, theirs) <= FORWARD * (bounds.norm(theirs) or 1.0))


def _moved(d: Deviation, way: WayTo, x: Tensor) -> Move | None:
    """Return how the layer at a place stands elsewhere, if it does.

    Args:
        x: what PyTorch gives the layer.
    """
    handed = way.handed.get(d.call)
    if d.side != "enter" or handed is None or way.value is None or not handed.is_floating_point():
        return None
    got = torch.tensor(way.place.got)
    rows: tuple[Callable[[], Iterator[Move]], ...] = (
        lambda: _later(d, way, handed, x, got),
        lambda: _earlier(d, way, handed, got),
    )
    for row in rows:
        try:
            with torch.no_grad():
                move = next(row(), None)
        except ERRORS:
            continue
        if move is not None:
            return move
    return None


def _later(d: Deviation, way: WayTo, handed: Tensor, x: Tensor, got: Tensor) -> Iterator[Move]:
    """Yield the operations behind a layer that give the port's value if they take the layer's input."""
    followed = (behind(way.run, handed, start) for start in (x, got, handed.clone()))
    # The port's value, and the layer's output, in all layouts that they have on the way to the operation.
    layouts, arranging = [(got, handed)], set[int]()
    for (call, ours), (_, theirs), (_, given) in zip(*followed, strict=False):
        makers = {maker.number for t in call.tensors if (maker := call_of(t)) is not None}
        first = call.args[0] if call.args else None
        if call.name in LAYOUT and (first is handed or (makers and makers <= arranging)):
            arranging.add(call.number)
            layouts.append((theirs, given))
            continue
        for seen, output in layouts:
            if _same(ours, seen):
                yield Move(d, True, call, output)


def _earlier(d: Deviation, way: WayTo, handed: Tensor, got: Tensor) -> Iterator[Move]:
    """Yield the operations in front of a layer that the port's value has not gone through yet."""
    last = next((call for call in reversed(way.calls) if call.name not in LAYOUT), None)
    for call in [*reversed(way.calls)][:NEAR]:
        for given in call.tensors:
            if last is not None and given.shape == handed.shape and _same(given, got):
                new = replaced(way.value, way.calls, {}, {id(given): handed})
                if isinstance(new, Tensor) and not _same(new, handed):
                    yield Move(d, False, last, new)


def _behind_them(way: WayTo, moves: Sequence[Move]) -> list[Move]:
    """Return the moves that give the port's value at a place together, or one that does alone."""
    got = torch.tensor(way.place.got)
    return next((chosen for chosen, value in _under(way, moves) if _same(value, got)), [])


def _under(way: WayTo, moves: Sequence[Move]) -> Iterator[tuple[list[Move], Tensor]]:
    """Yield PyTorch's values at a place under all moves that reach it, and under each of them alone."""
    if way.value is None or any(word in call.name for call in way.calls for word in RANDOM):
        return
    numbers = {call.number for call in way.calls}
    used = {id(t) for call in way.calls for t in call.tensors} | {id(way.value)}
    near = [m for m in moves if (m.operation.number in numbers if m.after else id(way.handed.get(m.seen.call)) in used)]
    # Of two layers that take one value, both are tried.
    for chosen in (near, *([move] for move in near if len(near) > 1)):
        results = {move.operation.number: move.new for move in chosen if move.after}
        tensors = {id(way.handed[move.seen.call]): move.new for move in chosen if not move.after}
        try:
            with torch.no_grad():
                value = replaced(way.value, way.calls, results, tensors)
        except ERRORS:
            continue
        if chosen and isinstance(value, Tensor):
            yield chosen, value


def _rotates(call: Call) -> bool:
    return call.name in FORMS and rotation_of(call.function, call.args, call.kw) is not None
