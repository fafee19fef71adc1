"""The mapping of a pair as rows of a rules file: what was proved becomes the conversion.

PyTorch's model gets weights in which each number is another one. Moved into the port, they tell where every number of
each variable comes from. The rearrangement that explains all of them is looked for, and written down.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from parity.pairing.models import PairedModels
from parity.running.flax_ports import FLAX_PORTS
from parity.running.model_layers import SECOND
from ports.errors import UserError
from ports.weights.form.rearrangement import Layout, Rearrangement
from ports.weights.form.traced import traced
from ports.weights.layers.leaves import COUNTER
from ports.weights.live.flax import Part
from ports.weights.rules.tensors import TensorRow

Arrays = Mapping[str, np.ndarray]
NO_LAYOUT = Layout((), (), (), ())


def rules(both: PairedModels) -> str:
    """Return the text of a rules file for a pair.

    Raises:
        UserError: a variable that no rearrangement gives: the folded bias of a recurrent layer.
    """
    found = rows(both)
    taken = {name for row in found for name in row.torch}
    left = [name for name in both.state if name not in taken]
    lines = [f'source = "torch"\ntarget = "{both.port}"', "[names]\n" + "\n".join(_names(both))]
    lines += [row.toml() for row in found]
    lines += [f'[[ignore]]\npattern = {json.dumps(name)}\nwhy = "the port has no such tensor"' for name in left]
    return "\n\n".join(lines) + "\n"


def _names(both: PairedModels) -> list[str]:
    """Return what `names` must say for the same pairing."""
    pairing = both.pairing
    viewed = {name: view for view in pairing.views for name in view.names}
    said: dict[str, str] = {}
    for p in pairing.pairs:
        if not any(name in viewed for name in p.flax.tensors.values()):
            said[p.torch.name] = p.flax.name
    torch_names = {own: name for own, name in both.tensors.items() if own in viewed}
    for view in pairing.views:
        said[" + ".join(torch_names[name] for name in view.names)] = f"{' + '.join(view.held)}: {view.form}"
    said |= {one.name: "" for one in (*pairing.unused, *pairing.spare) if one.why.startswith("given")}
    return [f"{json.dumps(ours)} = {json.dumps(other)}" for ours, other in said.items()]


def rows(both: PairedModels) -> list[TensorRow]:
    """Return how each variable of the port is made of PyTorch's tensors.

    Raises:
        UserError: a variable that no rearrangement gives.
    """
    if both.biased:
        raise UserError(
            f"{both.biased[0]}: the port has a bias, PyTorch's checkpoint has none; a mapping takes every tensor from "
            "the checkpoint"
        )
    if both.computed:
        raise UserError(
            f"{both.computed[0]}: PyTorch's checkpoint holds other parameters, of which it computes this weight; a "
            "conversion computes nothing. Move the weights with parity.move, or call "
            "torch.nn.utils.parametrize.remove_parametrizations on PyTorch's layers first"
        )
    if folded := [p.torch.tensors[SECOND] for p in both.pairing.pairs if SECOND in p.torch.tensors]:
        raise UserError(
            f"{folded[0]}: the port holds the sum of PyTorch's two biases; a sum is no rearrangement. Move the weights "
            "with parity.move"
        )
    marks = _marks(both)
    variables = _variables(both, marks)
    found = []
    for ours, theirs in _together(marks, variables):
        form = traced([marks[name] for name in ours], [variables[name] for name in theirs])
        if form is None:
            raise UserError(f"{', '.join(theirs)}: no rearrangement of {', '.join(ours)}; write the conversion by hand")
        found.append(TensorRow(tuple(ours), tuple(theirs), form, not _statistics(ours)))
    taken = {name for row in found for name in row.torch}
    counters = sorted(name for name in both.state if name.endswith(COUNTER) and name not in taken)
    return [*found, *(TensorRow((name,), (), Rearrangement(NO_LAYOUT), trained=False) for name in counters)]


def tied(both: PairedModels) -> dict[str, str]:
    """Return the first names of PyTorch's tensors that have several, by the others that no layer of the port has."""
    first = {id(both.state[name]): name for name in both.tensors.values()}
    paired = {*both.tensors.values()}
    return {n: first[id(a)] for n, a in both.state.items() if n not in paired and id(a) in first}


def _statistics(names: Sequence[str]) -> bool:
    return all(name.rpartition(".")[2] in ("running_mean", "running_var", COUNTER) for name in names)


def _marks(both: PairedModels) -> dict[str, np.ndarray]:
    """Return arrays like PyTorch's paired tensors, in which each number is another one, from 1."""
    start, found = 1, {}
    for name in both.tensors.values():
        shape = both.state[name].shape
        count = math.prod(shape)
        found[name] = np.arange(start, start + count, dtype=np.float64).reshape(shape)
        start += count
    return found


def _variables(both: PairedModels, marks: Arrays) -> dict[str, np.ndarray]:
    """Return the port's whole variables that hold marks, by the names that a checkpoint has."""
    port = FLAX_PORTS[both.port]
    written = both.moved({**both.state, **marks})
    net = port.written(port.copied(both.flax), written, both.layers)
    name_of = port.variable_names(net)
    found: dict[str, np.ndarray] = {}
    for own, place in port.places(net, both.layers).items():
        if own in written and not own.endswith(COUNTER):
            for slot in place.slots:
                whole = slot.slot if isinstance(slot, Part) else slot
                found[name_of(whole)] = np.real(whole.get())
    return found


def _together(marks: Arrays, variables: Arrays) -> Iterator[tuple[list[str], list[str]]]:
    """Yield the tensors and the variables that hold one another's numbers."""
    names = [*marks]
    ends = np.cumsum([marks[name].size for name in names])
    held = {
        own: {names[i] for i in np.flatnonzero(np.bincount(np.searchsorted(ends, array.reshape(-1), "left")))}
        for own, array in variables.items()
    }
    open_ = dict(held)
    while open_:
        first = next(iter(open_))
        ours, theirs = set(open_[first]), {first}
        while more := {own for own, some in open_.items() if some & ours} - theirs:
            theirs |= more
            ours |= {name for own in more for name in open_[own]}
        open_ = {own: some for own, some in open_.items() if own not in theirs}
        yield sorted(ours, key=_natural), sorted(theirs, key=_natural)


def _natural(name: str) -> list[object]:
    return [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in re.split(r"(\d+)", name)]
