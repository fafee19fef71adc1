"""Whether the weights of two models are the same, and which known mistake of a conversion explains it where not."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from parity.numerics import bounds
from parity.pairing.matching import Pair, Pairing
from parity.reports.report import Finding, Row
from parity.running.model_layers import OPTIONAL
from parity.traps.weights import (
    BIAS,
    EXCHANGED,
    NOT_MOVED,
    PAIRS,
    SECOND_BIAS,
    SORTED,
    STRUCTURE,
    TOGETHER,
    TRAPS,
    UNTIED,
    WeightTrap,
)

NOT_FINITE = "NaN or infinite"
BY_NAME = {trap.name: trap for trap in TOGETHER}
Arrays = Mapping[str, np.ndarray]


def judge(port: str, pairing: Pairing, given: Arrays | None = None) -> tuple[Row, list[Finding]]:
    """The row `weights`, and a finding for every layer whose weights are not PyTorch's.

    Args:
        given: PyTorch's tensors before recurrent biases were folded.
    """
    found: list[Finding] = _untied(port, pairing)
    exchanged: dict[str, str] = {}
    unknown = 0  # layers that hold other numbers, and no mistake explains them
    worst = ("", 0.0, 0.0)
    others = {n: v for p in pairing.pairs for leaf, v in p.torch.values.items() if (n := p.torch.tensors[leaf])}
    for p in pairing.pairs:
        if text := _misfit(p):
            found.append(Finding(port, p.torch.name, BIAS if _lacks_bias(p) else STRUCTURE, text))
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
                found.append(_explained(port, p, leaf, theirs, others, far, given or {}, exchanged))
                unknown += found[-1].trap is None and np.isfinite(theirs).all()
    if unknown > len(pairing.pairs) / 3:
        text = f"{unknown} of {len(pairing.pairs)} layers hold other weights; move PyTorch's over first: parity.move"
        found = [Finding(port, "(the network)", NOT_MOVED, text), *(f for f in found if f.trap or NOT_FINITE in f.text)]
    found = _sorted(found, exchanged, list(others))
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


def _lacks_bias(p: Pair) -> bool:
    mine, theirs = ({n: v.shape for n, v in side.values.items() if n not in OPTIONAL} for side in (p.torch, p.flax))
    return mine != theirs and {n: s for n, s in mine.items() if n != "bias"} == theirs


def shared(pairing: Pairing) -> list[tuple[Pair, Pair, str]]:
    """Layers of the port that have a tensor each where PyTorch's have one together."""
    found, first = [], {}
    for p in pairing.pairs:
        for leaf, mine in p.torch.values.items():
            if leaf in p.flax.values and mine.size > 1 and first.setdefault(id(mine), p) is not p:
                found.append((first[id(mine)], p, leaf))
    return found


def _untied(port: str, pairing: Pairing) -> list[Finding]:
    trap = BY_NAME[UNTIED]
    return [
        Finding(port, b.torch.name, UNTIED, f"{b.torch.tensors[leaf]}: {trap.text} ({a.torch.name}); {trap.mend}")
        for a, b, leaf in shared(pairing)
    ]


def _sorted(found: list[Finding], exchanged: Mapping[str, str], names: list[str]) -> list[Finding]:
    """Findings with another name where the exchanges are those of layers in the order of their sorted names."""
    groups: dict[str, list[str]] = defaultdict(list)
    for name in names:
        groups[re.sub(r"\d+", "*", name)].append(name)
    moved: set[str] = set()
    for group in groups.values():
        natural = sorted(group, key=lambda name: [int(n) for n in re.findall(r"\d+", name)])
        holds = {a: b for a, b in zip(natural, sorted(group), strict=True) if a != b}
        if holds and all(exchanged.get(a) == b for a, b in holds.items() if a in exchanged) and {*holds} & {*exchanged}:
            moved |= {*holds}
    text = f"{BY_NAME[SORTED].text}; {BY_NAME[SORTED].mend}"
    return [
        replace(f, trap=SORTED, text=f"{f.text.partition(':')[0]}: {text}")
        if f.trap == EXCHANGED and f.text.partition(" ")[0] in moved
        else f
        for f in found
    ]


def _explained(
    port: str,
    p: Pair,
    leaf: str,
    theirs: np.ndarray,
    others: Arrays,
    far: float,
    given: Arrays,
    exchanged: dict[str, str],
) -> Finding:
    mine, name, layer = p.torch.values[leaf], p.torch.tensors[leaf], p.torch.name

    def said(trap: WeightTrap) -> Finding:
        return Finding(port, layer, trap.name, f"{name}: {trap.text}; {trap.mend}")

    if count := int((~np.isfinite(theirs)).sum()):
        text = f"{name}: {count} of {theirs.size} numbers are {NOT_FINITE}; write PyTorch's, which are finite"
        return Finding(port, layer, None, text)
    halves = (given.get(name), given.get(name.replace("bias_ih", "bias_hh"))) if leaf == "bias_ih" else ()
    if any(half is not None and np.array_equal(half.astype(np.float64), theirs) for half in halves):
        return said(BY_NAME[SECOND_BIAS])
    fitting = [t for t in TRAPS if not t.kinds or p.torch.kind in t.kinds]
    for trap in (t for t in fitting if t.plant):
        if trap.explains(mine, theirs):
            return said(trap)
    for other, array in others.items():
        if array.shape == theirs.shape and array is not mine and np.array_equal(array, theirs) and np.ptp(array):
            own = {tensor: leaf for leaf, tensor in p.torch.tensors.items()}
            within = PAIRS.get(frozenset((leaf, own.get(other, ""))))
            if within and p.torch.kind in BY_NAME[within].kinds:
                return said(BY_NAME[within])
            exchanged[name] = other
            return Finding(port, layer, EXCHANGED, f"{name} holds the values of {other}; the two were exchanged")
    for trap in (t for t in fitting if t.related):
        if trap.explains(mine, theirs):
            return said(trap)
    text = f"{name} holds other values (distance {far:.1e} of its size); move PyTorch's over first (parity.move)"
    return Finding(port, layer, None, text)
