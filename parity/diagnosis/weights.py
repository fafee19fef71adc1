"""Make findings of weights that are not PyTorch's, and name the known mistakes of a conversion behind them.

The experiment: a trap is planted in PyTorch's tensor, and the result compared with the port's.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from parity.diagnosis.localise import NETWORK
from parity.diagnosis.search import search
from parity.pairing.pairs import Pairing
from parity.reports.report import Finding, Fix
from parity.traps.trap import Trap
from parity.traps.weights import (
    BIAS,
    EXCHANGED,
    EXTRA_BIAS,
    NOT_MOVED,
    PAIRS,
    SECOND_BIAS,
    SEVERAL_TENSORS,
    SORTED,
    STRUCTURE,
    TENSORS,
    UNTIED,
)
from parity.verdict.transfer import BiasedLayer, DifferingTensor, MisfittingLayer, WeightsVerdict

NOT_FINITE = "NaN or infinite"
LOST = "weight-lost"
FEW = 2  # up to this many layers with other weights get their own finding
BY_NAME = {trap.name: trap for trap in SEVERAL_TENSORS}
Arrays = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class TensorTable:
    """PyTorch's tensors by their names.

    Attributes:
        folded: in float64, recurrent biases folded.
        given: as they were before that.
    """

    folded: Arrays
    given: Arrays


@dataclass(frozen=True)
class TensorExplanation:
    """The known mistake of a tensor.

    Attributes:
        trap: None where no known mistake explains the tensor.
        other: PyTorch's tensor that it was exchanged with, where that is one of another layer.
    """

    trap: Trap | None
    other: str = ""


def findings(port: str, pairing: Pairing, verdict: WeightsVerdict, given: Arrays | None = None) -> list[Finding]:
    """Return a finding for every layer whose weights are not PyTorch's.

    Args:
        given: PyTorch's tensors before recurrent biases were folded.
    """
    folded = {n: v for p in pairing.pairs for leaf, v in p.torch.values.items() if (n := p.torch.tensors[leaf])}
    tensors = TensorTable(folded, given or {})
    untied = BY_NAME[UNTIED]
    found = []
    for u in verdict.untied:
        text = f"{u.second.torch.tensors[u.leaf]}: {untied.text} ({u.first.torch.name}); {untied.mend}"
        found.append(Finding(port, u.second.torch.name, UNTIED, text))
    exchanged: dict[str, str] = {}
    unknown = 0  # layers that hold other numbers, without a mistake that explains them
    for layer in verdict.layers:
        if isinstance(layer, MisfittingLayer):
            trap = BIAS if layer.lacks_bias else STRUCTURE
            fix = (Fix(layer.pair.flax.name, "use_bias", False, True),) if layer.lacks_bias else ()
            found.append(Finding(port, layer.pair.torch.name, trap, layer.text, fix=fix))
        elif isinstance(layer, BiasedLayer):
            trap = BY_NAME[EXTRA_BIAS]
            fix = (Fix(layer.pair.flax.name, "use_bias", True, False),)
            found.append(Finding(port, layer.pair.torch.name, EXTRA_BIAS, f"{trap.text}; {trap.mend}", fix=fix))
        else:
            explained = explain(layer, tensors) if np.isfinite(layer.theirs).all() else TensorExplanation(None)
            if explained.other:
                exchanged[layer.pair.torch.tensors[layer.leaf]] = explained.other
            found.append(_of_tensor(port, layer, explained))
            unknown += found[-1].trap is None and bool(np.isfinite(layer.theirs).all())
    # Fresh norms are equal in any model: among many layers, only those with individual numbers are informative.
    telling = sum(any((v != v.flat[0]).any() for v in p.torch.values.values() if v.size) for p in pairing.pairs)
    if unknown > len(pairing.pairs) / 3 or unknown > max(FEW, telling / 3):
        text = f"{unknown} of {len(pairing.pairs)} layers hold other weights; move PyTorch's over first: parity.move"
        # A fresh layer that starts at zero, as a classifier often does, has lost nothing.
        told = (f for f in found if (f.trap and f.trap != LOST) or NOT_FINITE in f.text)
        found = [Finding(port, NETWORK, NOT_MOVED, text), *told]
    return _sorted(found, exchanged, tensors)


def _of_tensor(port: str, tensor: DifferingTensor, explained: TensorExplanation) -> Finding:
    """Return the finding of a tensor that holds other numbers."""
    layer, name, theirs = tensor.pair.torch.name, tensor.pair.torch.tensors[tensor.leaf], tensor.theirs
    if count := int((~np.isfinite(theirs)).sum()):
        text = f"{name}: {count} of {theirs.size} numbers are {NOT_FINITE}; write PyTorch's, which are finite"
        return Finding(port, layer, None, text)
    if explained.other:
        return Finding(port, layer, EXCHANGED, f"{name} holds the values of {explained.other}; the two were exchanged")
    if trap := explained.trap:
        return Finding(port, layer, trap.name, f"{name}: {trap.text}; {trap.mend}")
    text = f"{name} holds other values (distance {tensor.distance:.1e} of its size); "
    return Finding(port, layer, None, f"{text}move PyTorch's over first (parity.move)")


def explain(tensor: DifferingTensor, tensors: TensorTable) -> TensorExplanation:
    """Return the known mistake that makes PyTorch's tensor what the port's is."""
    pair, leaf = tensor.pair, tensor.leaf
    mine, name = pair.torch.values[leaf], pair.torch.tensors[leaf]
    halves = (name, name.replace("bias_ih", "bias_hh")) if leaf == "bias_ih" else ()
    both = [tensors.given[half] for half in halves if half in tensors.given]
    if any(np.array_equal(half.astype(np.float64), tensor.theirs) for half in both):
        return TensorExplanation(BY_NAME[SECOND_BIAS])

    def differing(traps: tuple[Trap, ...]) -> set[str] | None:
        (trap,) = traps
        return _differing(trap, name, mine, tensor.theirs)

    fitting = [t for t in TENSORS if not t.names or pair.torch.kind in t.names]
    if found := search([t for t in fitting if t.plant], differing):
        return TensorExplanation(found[0])
    if found := _exchanged(tensor, tensors):
        return found
    return TensorExplanation(next(iter(search([t for t in fitting if t.related], differing)), None))


def _differing(trap: Trap, name: str, mine: np.ndarray, theirs: np.ndarray) -> set[str] | None:
    """Return the tensor's name where it is not the port's with this mistake; None where it cannot have it."""
    if trap.related is not None:
        return set() if trap.related(mine, theirs) else {name}
    forms = trap.plant(mine) if trap.plant else None
    if forms is None:
        return None
    forms = forms if isinstance(forms, list) else [forms]
    fits = any(_equal(form, theirs, mine) for form in forms if form.shape == theirs.shape)
    return set() if fits else {name}


def _equal(form: np.ndarray, theirs: np.ndarray, mine: np.ndarray) -> bool:
    """Equal, or equal in float32, in which most ports hold their weights, and other than PyTorch's there."""
    if np.array_equal(form, theirs):
        return True
    rounded = form.astype(np.float32)
    return np.array_equal(rounded, theirs.astype(np.float32)) and not np.array_equal(rounded, mine.astype(np.float32))


def _exchanged(tensor: DifferingTensor, tensors: TensorTable) -> TensorExplanation | None:
    """Return the mistake of a tensor that holds the values of another one; None where it does not."""
    pair, leaf, theirs = tensor.pair, tensor.leaf, tensor.theirs
    mine = pair.torch.values[leaf]
    for other, array in tensors.folded.items():
        if array.shape == theirs.shape and array is not mine and np.array_equal(array, theirs) and np.ptp(array):
            own = {name: leaf for leaf, name in pair.torch.tensors.items()}
            within = PAIRS.get(frozenset((leaf, own.get(other, ""))))
            if within and pair.torch.kind in BY_NAME[within].names:
                return TensorExplanation(BY_NAME[within])
            return TensorExplanation(BY_NAME[EXCHANGED], other)
    return None


def _sorted(found: list[Finding], exchanged: Mapping[str, str], tensors: TensorTable) -> list[Finding]:
    """Rename findings where the exchanges are those of layers in the order of their sorted names."""
    groups: dict[str, list[str]] = defaultdict(list)
    for name in tensors.folded:
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
