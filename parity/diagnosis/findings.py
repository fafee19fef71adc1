"""Make findings of all that is wrong by itself, and name the known mistakes behind them."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np
from torch import nn

from parity.diagnosis import exchanged, hypotheses, layers, losses, operations
from parity.diagnosis.localise import LOSS, NETWORK, VALUES, Deviation, ForcedRuns, behind_of
from parity.numerics.pins import LIBRARIES
from parity.numerics.quantities import Probe
from parity.reports.report import Finding, Fix
from parity.running.taps import layer_of
from parity.traps.arguments import Mend, mended, mended_call
from parity.traps.operations.order import LAYER_AFTER, LAYER_BEFORE
from parity.traps.trap import Trap
from ports.weights.layers.kinds import kind_of

# The aspects of a deviation between layers.
BETWEEN = ("between", "gradient between")

# If at least this many places in a module are wrong, and no place is right, the module is built differently.
PARTS = 3

# The text about a module of a user's own class in which no other module is recorded, wherever the module is.
OF_CLASS = "what this {} makes of right values is another output in {} mode"

NUMBER = re.compile(r"\d+")
# The number in place of PyTorch's: layers show it more or less exactly.
FITTED = re.compile(r"(?<=computed with )\S+(?= instead of \S+ in `)")
# The text about another constant in a function, which one file of PyTorch's code calls.
CONSTANT = re.compile(r"computed with (\S+) instead of (\S+) in (`[^`]+`) \((.+):\d+\)")
# The text about one change of one operation, with the line of PyTorch's code that calls it.
LINE = re.compile(r"PyTorch's value computed .*`[^`]+` \(.+:\d+\).*$")


def findings(port: str, reference: nn.Module, fed: Probe, cases: Mapping[bool, ForcedRuns]) -> list[Finding]:
    """One finding per mistake, in execution order; of several in one module, the largest first.

    Args:
        cases: by mode, train or not.
    """
    groups: dict[str, list[Deviation]] = {}
    for train in (False, True):
        for deviation in cases[train].deviations:
            groups.setdefault(deviation.lead, []).append(deviation)
    names = {layer_of(call) for case in cases.values() for call in case.reference.outputs}
    network = operations.ReferenceNetwork(reference, fed, names, {t: case.reference for t, case in cases.items()})
    found: list[Finding] = []
    unknown: dict[str, list[Deviation]] = {}
    moved = exchanged.explain(network, [d for case in cases.values() for d in case.deviations], cases)
    for lead, deviations in groups.items():
        first = deviations[0]
        if exchanges := [one for one in moved if lead in one.leads]:
            for one in exchanges:
                if one.lead == lead:
                    text = f"{_where(first)}: {one.said}"
                    found.append(Finding(port, first.layer, one.trap(reference), text, size=first.size))
            continue
        traps = _traps(network, deviations, cases)
        where = f"{_where(first)}: " if first.aspect in BETWEEN else ""
        texts: list[tuple[str | None, str, tuple[Fix, ...]]] = [
            (trap.name, f"{where}{trap.text}; {trap.mend}", fix) for trap, fix in traps
        ]
        if not traps:
            supposed = _supposed(first, network, cases)
            if not LINE.search(supposed):
                unknown.setdefault(first.layer, []).extend(deviations)
            texts = [(None, _said(first, network, cases) + supposed, ())]
        for name, text, fix in texts:
            found.append(Finding(port, first.layer, name, text, size=first.size, fix=fix))
    for layer, deviations in unknown.items():
        if parts := _built_otherwise(layer, deviations, cases):
            found = _as_one(found, layer, OTHERWISE.format(", ".join(parts)))
    return together(_largest_first(found))


CELLS = nn.RNNBase, nn.RNNCellBase

# A known mistake, and the arguments that mend it.
Mended = tuple[Trap, tuple[Fix, ...]]


def fix_of(module: str, mend: Mend) -> Fix:
    """Return the argument that mends a mistake, for the report."""
    return Fix(module, mend.argument, mend.got, mend.expected, mend.function)


def _traps(
    network: operations.ReferenceNetwork, deviations: Sequence[Deviation], cases: Mapping[bool, ForcedRuns]
) -> list[Mended]:
    """Return the known mistakes behind deviations with one cause."""
    layer, aspect = deviations[0].layer, deviations[0].aspect
    if layer == LOSS:
        return _in_calls(layer, losses.explain(network.net, network.probe, cases[True].port.loss))
    if aspect in BETWEEN:
        return _in_calls(layer, _operation(network, deviations, cases))
    traps = layers.explain(layer, network.net, network.probe, cases, aspect == "gradient")
    own = network.net.get_submodule(layer)
    if traps or (kind_of(own) is not None and not isinstance(own, CELLS)):
        return [(trap, tuple(fix_of(layer, mend) for mend in mended(trap, own))) for trap in traps]
    # Inside a module of the user's own; a recurrent layer of PyTorch's may be one in the port.
    return _in_calls(layer, _operation(network, deviations, cases))


def _in_calls(layer: str, found: Sequence[operations.Named]) -> list[Mended]:
    """Return mistakes in calls of functions with the arguments that mend them."""
    return [(one.trap, tuple(fix_of(layer, mend) for mend in mended_call(one.trap, one.calls))) for one in found]


def _as_one(found: Sequence[Finding], layer: str, text: str) -> list[Finding]:
    """Return the findings, with a layer's findings without a name merged into one, at the place of the first."""
    nameless = [finding for finding in found if finding.layer == layer and finding.trap is None]
    one = replace(max(nameless, key=_size), text=text)
    rest = {id(finding) for finding in nameless[1:]}
    return [one if finding is nameless[0] else finding for finding in found if id(finding) not in rest]


OTHERWISE = (
    "nothing that arrives at {} is what it should be, and each of these is right by itself: the module calls them in "
    "another order, or on other inputs; compare its forward with the port's"
)


def _built_otherwise(layer: str, deviations: Sequence[Deviation], cases: Mapping[bool, ForcedRuns]) -> list[str]:
    """Return a module's parts if all their inputs and the module's output are wrong, each in its own way."""
    module = "" if layer == NETWORK else layer
    train = deviations[0].train
    here = cases[train].within.get(module, frozenset())
    if len(here) < PARTS or not here <= {(d.side, d.call) for d in deviations if d.train is train}:
        return []
    calls = [call for event, call, _ in cases[train].reference.events if event == "enter" and (event, call) in here]
    return [call.removeprefix(f"{module}.") for call in calls]


def _largest_first(found: Sequence[Finding]) -> list[Finding]:
    """Return the findings in their order, but sort those of one module by size."""
    sizes = {f.layer: sorted((g for g in found if g.layer == f.layer), key=_size, reverse=True) for f in found}
    return [sizes[finding.layer].pop(0) for finding in found]


def _size(finding: Finding) -> float:
    return finding.size or 0.0


def together(found: Sequence[Finding]) -> list[Finding]:
    """Return one finding for each mistake that occurs in several places.

    These are places with the same known mistake, places where one line of PyTorch's code has the same change, places
    whose texts differ only in numbers, and modules of one class.
    """
    groups: dict[tuple[str, str], list[Finding]] = {}
    for finding in found:
        line = LINE.search(finding.text)
        changed = line.group() if line else NUMBER.sub("#", f"{finding.layer} {finding.text}")
        # One change of one line of PyTorch's code is one mistake, whichever layers run that line.
        said = finding.trap or (FITTED.sub("#", changed) if line else changed)
        if finding.trap in (LAYER_AFTER, LAYER_BEFORE):  # of which layer, and which operation?
            said = NUMBER.sub("#", f"{finding.trap} {finding.text.partition(': ')[2]}")
        said = finding.text if finding.text.startswith(OF_CLASS.partition("{")[0]) else said
        groups.setdefault((finding.port, said), []).append(finding)
    return [
        replace(
            first,
            also=tuple(dict.fromkeys(f.layer for f in rest if f.layer != first.layer)),
            fix=_agreeing(fix for f in (first, *rest) for fix in f.fix),
        )
        for first, *rest in _of_one_constant(groups.values())
    ]


def _of_one_constant(groups: Iterable[list[Finding]]) -> list[list[Finding]]:
    """Return groups of findings, with those together in which one function has one other constant in several lines."""
    found: dict[object, list[Finding]] = {}
    for group in groups:
        constant = CONSTANT.search(group[0].text) if group[0].trap is None else None
        found.setdefault((group[0].port, *constant.groups()) if constant else id(group[0]), []).extend(group)
    return [*found.values()]


def _agreeing(fixes: Iterable[Fix]) -> tuple[Fix, ...]:
    """Return each fix once, without fixes that give one argument two values: then two calls in one module need both."""
    found = [*dict.fromkeys(fixes)]
    said = Counter((fix.module, fix.function, fix.argument) for fix in found)
    return tuple(fix for fix in found if said[fix.module, fix.function, fix.argument] == 1)


def _operation(
    network: operations.ReferenceNetwork, deviations: Sequence[Deviation], cases: Mapping[bool, ForcedRuns]
) -> tuple[operations.Named, ...]:
    """The known mistake between layers that gives the port's values wherever they differ here."""
    places = []
    for d in deviations:
        if d.aspect in ("between", "output"):
            run = cases[d.train].port
            places.append(operations.DifferingPlace(d.side, d.call, d.train, run.seen_at(d.side)[d.call]))
        elif d.aspect == "gradient between" and d.call in cases[d.train].port.output_gradients and not places:
            places = [
                operations.DifferingPlace("gradient", d.call, d.train, cases[d.train].port.output_gradients[d.call])
            ]
            break
    found = operations.explain(network, places) if places else ()
    # A difference after the first place may have an additional cause of its own.
    return found or (operations.explain(network, places[:1]) if len(places) > 1 else ())


def _supposed(deviation: Deviation, network: operations.ReferenceNetwork, cases: Mapping[bool, ForcedRuns]) -> str:
    """Return the port's value there in terms of PyTorch's, if one simple change explains it."""
    if deviation.aspect not in VALUES:
        return ""
    got = cases[deviation.train].port.seen_at(deviation.side)[deviation.call]
    place = operations.DifferingPlace(deviation.side, deviation.call, deviation.train, got)
    change = hypotheses.explain(network, place)
    return f"; there the port has {change}" if change else ""


def _where(deviation: Deviation) -> str:
    behind = deviation.after or behind_of(deviation)
    return f"between {deviation.before or 'the input'} and {behind}"


def _mode(deviation: Deviation) -> str:
    return "train" if deviation.train else "eval"


def _own_class(network: operations.ReferenceNetwork, layer: str) -> str:
    """Return the class of a user's own module in which no layer is recorded; otherwise an empty text."""
    if layer == NETWORK or any(name.startswith(f"{layer}.") for name in network.names):
        return ""
    module = network.net.get_submodule(layer)
    library = type(module).__module__.partition(".")[0] in LIBRARIES
    return "" if library else type(module).__name__


def _indices(deviation: Deviation, cases: Mapping[bool, ForcedRuns]) -> str:
    """Return the text about a layer that gets other indices; an empty text if its input is not indices."""
    case = cases[deviation.train]
    if deviation.aspect != "between" or deviation.side != "enter":
        return ""
    expected, got = case.reference.inputs[deviation.call], case.port.inputs[deviation.call]
    if expected.dtype.kind not in "iu" or expected.shape != got.shape:
        return ""
    at = tuple(int(i) for i in np.argwhere(expected != got)[0])
    return f"{deviation.call} gets other indices: at {at} the port's is {got[at]}, PyTorch's is {expected[at]}"


def _said(deviation: Deviation, network: operations.ReferenceNetwork, cases: Mapping[bool, ForcedRuns]) -> str:
    mode = _mode(deviation)
    if indices := _indices(deviation, cases):
        return indices
    if deviation.aspect in VALUES and (own := _own_class(network, deviation.layer)):
        return OF_CLASS.format(own, mode)
    if deviation.aspect == "output" and cases[deviation.train].flow.takes_more(deviation.call):
        return (
            f"on the reference's first input the layer gives another output in {mode} mode: it computes otherwise, or "
            "one of its other inputs is wrong (a memory, a mask, a state)"
        )
    return {
        "output": f"on the reference's input the layer gives another output in {mode} mode",
        "between": f"all layers are right, but the value {_where(deviation)} "
        f"is wrong in {mode} mode (an activation, a pool, a sum, or their order)",
        "statistics": "the output is right, and the running statistics after it are not",
        "gradient": "the output is right, and the layer's gradients are not",
        "loss": "the outputs are right, and the loss of them is not",
        "gradient between": f"the outputs are right, and the gradient that comes back to {deviation.call} is not",
    }[deviation.aspect]
