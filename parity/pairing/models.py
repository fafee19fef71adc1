"""Pairs a PyTorch model and a Flax model layer by layer, both in float64."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from flax import linen

from parity.numerics.layouts import Tensors, otherwise, wide
from parity.numerics.quantities import Probe
from parity.numerics.tables import recomputed
from parity.pairing.blocks import blocks
from parity.pairing.matching import OpenError, pair
from parity.pairing.pairs import Pairing, Unpaired, expanded
from parity.pairing.trials import Build, module
from parity.running import biases, inventory
from parity.running import pytorch as run_pytorch
from parity.running.flax import Functional
from parity.running.flax_ports import FLAX_PORTS, port_of
from parity.running.model_layers import OPTIONAL, SECOND
from parity.running.parametrized import effective, hooks_only
from parity.running.raised import RaisesError, raising
from ports import weights
from ports.errors import UserError

WEIGHT, BIAS = "weight", "bias"
RECURRENT = torch.nn.RNNBase, torch.nn.RNNCellBase


@dataclass(frozen=True)
class PairedModels:
    """A PyTorch model and a Flax model in float64, layer by layer.

    Attributes:
        reference: PyTorch's; the caller's own is left as it is.
        port: `nnx` or `linen`.
        state: PyTorch's tensors as they were given, recurrent biases folded, in float64.
        layers: Linen's modules by the names of their scopes.
        dtype: the type that the Flax model computes in.
        fed: what both are fed, in the layouts that the port takes.
        computed: PyTorch's tensors that it computes of others, as under weight norm, and the port holds as they are.
        biased: PyTorch's layers that have no bias and got one of zeros, for the port's have one.
    """

    reference: torch.nn.Module
    flax: Any
    port: str
    state: dict[str, np.ndarray]
    pairing: Pairing
    layers: dict[str, linen.Module] | None
    fed: Probe
    dtype: str = "float64"
    computed: tuple[str, ...] = ()
    biased: tuple[str, ...] = ()

    @property
    def tensors(self) -> dict[str, str]:
        """PyTorch's names of the tensors that are compared, by Flax's."""
        return {
            p.flax.tensors[leaf]: p.torch.tensors[leaf]
            for p in self.pairing.pairs
            for leaf in p.torch.tensors
            if leaf in p.flax.tensors and leaf not in OPTIONAL
        }

    @property
    def names(self) -> dict[str, str]:
        """PyTorch's names of the layers that are recorded, by Flax's: a module of the user's own with all its tensors.

        A layer inside a recurrent layer, a module of which another one has a part, and a table that the port has in the
        module that uses it, are not recorded.
        """
        found = {}
        for p in self.pairing.pairs:
            if p.torch.kind != inventory.OWN and inventory.module_of(p.torch.name) == p.torch.name:
                found[p.flax.name] = p.torch.name
        # Tensors of several modules are together one of PyTorch's: none of those modules gives what that one gives.
        parted = {
            name
            for view in self.pairing.views
            if len({held.rpartition(".")[0] for held in view.held}) > 1
            for name in view.names
        }
        own = [
            p
            for p in self.pairing.pairs
            if p.torch.leaf and p.flax.leaf and p.torch.placed == p.flax.placed
            if parted.isdisjoint(p.flax.tensors.values())
        ]
        owners = {(module(p.torch), module(p.flax)) for p in own}
        mine, theirs = (Counter(names) for names in zip(*owners, strict=True)) if owners else (Counter(), Counter())
        for ours, own in owners:
            if ours and own and mine[ours] == theirs[own] == 1 and own not in found and ours not in found.values():
                found[own] = ours
        return found

    @property
    def blocks(self) -> dict[str, str]:
        """PyTorch's names of modules around layers, by Flax's: where to look for a mistake. They decide nothing."""
        modules = self.reference.named_modules()
        return blocks(self.pairing, {n for n, m in modules if type(m).forward is not torch.nn.Module.forward})

    @property
    def second(self) -> dict[str, str]:
        """PyTorch's names, by Flax's, of second biases of recurrent layers: what is left of them when they are folded.

        The check does not compare them as tensors of their own.
        """
        both = (p for p in self.pairing.pairs if SECOND in p.torch.tensors and SECOND in p.flax.tensors)
        return {p.flax.tensors[SECOND]: p.torch.tensors[SECOND] for p in both}

    @property
    def own_values(self) -> dict[str, np.ndarray]:
        """The port's tensors by their own names."""
        return {name: place.read() for name, place in FLAX_PORTS[self.port].places(self.flax, self.layers).items()}

    def moved(self, state: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Return what is written into the Flax model when it is given PyTorch's weights."""
        own = {own: state[torch_name] for own, torch_name in (self.tensors | self.second).items()}
        return expanded(self.pairing.views, own)

    def functional(self, state: Mapping[str, np.ndarray], names: Mapping[str, str], second: bool = False) -> Functional:
        """The Flax model with these weights.

        Args:
            second: whether what is left of second biases is written where the port has no place for it, too.
        """
        tensors, views = self.tensors, self.pairing.views
        port = FLAX_PORTS[self.port]
        places = port.places(self.flax, self.layers)
        left = {own: name for own, name in self.second.items() if second or places[own].slots}
        own = expanded(views, {own: state[torch_name] for own, torch_name in (tensors | left).items()})
        new = port.written(port.copied(self.flax), own, self.layers)
        net = port.functional(new, names, {name: name for name in (*own, *self.second)}, self.layers, self.dtype)

        def to_torch(params: Any, stats: Any) -> dict[str, np.ndarray]:
            values = net.to_torch(params, stats)
            for view in views:
                if all(name in values for name in view.held):
                    values |= view.read(values)
            return {torch_name: values[own] for own, torch_name in (tensors | self.second).items() if own in values}

        return replace(net, to_torch=to_torch)


def pair_models(
    model: torch.nn.Module,
    other: object,
    fed: Probe,
    names: Mapping[str, str | None] | None = None,
    confirmed: bool = False,
) -> PairedModels:
    """Return both models in float64, and which layer is which.

    A port that raises in the default layouts of its inputs gets them in others.

    Args:
        confirmed: whether the caller confirms the pairing by computing, so that layers which nothing else tells may be
            taken in the order of calls, though the two models call others between them.

    Raises:
        UserError: a model that does not run on the inputs, a layer without a rule, layers that cannot be paired.
    """
    try:
        return _computed(model, other, fed, names, confirmed)
    except RaisesError:
        for layouts in otherwise(fed.inputs, fed.keywords, fed.layouts):
            with suppress(RaisesError):
                return _computed(model, other, replace(fed, layouts=layouts), names, confirmed)
        raise


def _computed(
    model: torch.nn.Module, other: object, fed: Probe, names: Mapping[str, str | None] | None, confirmed: bool
) -> PairedModels:
    """Return both models in float64, and which layer is which.

    Where the port has no parameters for those that PyTorch computes a weight of, it holds the weight.
    """
    plain, computed = effective(model)
    if computed and not hooks_only(model):
        with suppress(UserError):
            both = _pair(model, other, fed, names, confirmed)
            if all(p.torch.shapes == p.flax.shapes for p in both.pairing.pairs):
                return both
    both = _biased(plain, other, fed, names, confirmed)
    if not computed:
        return both
    notes = (
        Unpaired(name, "PyTorch computes it of other parameters, whose training is not compared") for name in computed
    )
    return replace(both, pairing=replace(both.pairing, unused=(*both.pairing.unused, *notes)), computed=computed)


def _biased(
    model: torch.nn.Module, other: object, fed: Probe, names: Mapping[str, str | None] | None, confirmed: bool
) -> PairedModels:
    """Return both models and which layer is which, with biases in PyTorch's where the port alone has one."""
    both, raised = None, None
    try:
        both = _pair(model, other, fed, names, confirmed)
        some = [p.torch.name for p in both.pairing.pairs if BIAS in p.flax.values and BIAS not in p.torch.values]
    except OpenError as error:
        with_bias = {(x.kind, x.values[WEIGHT].shape) for x in error.flax if {WEIGHT, BIAS} <= x.values.keys()}
        some = [x.name for x in error.torch if (x.kind, getattr(x.values.get(WEIGHT), "shape", None)) in with_bias]
        raised = error
    modules = dict(model.named_modules())
    some = [name for name in some if name in modules and biases.shape(modules[name]) is not None]
    if some:
        with suppress(OpenError):
            return replace(_pair(biases.with_zeros(model, some), other, fed, names, confirmed), biased=tuple(some))
    if both is None:
        assert raised is not None
        raise raised
    return both


def _pair(
    model: torch.nn.Module, other: object, fed: Probe, names: Mapping[str, str | None] | None, confirmed: bool
) -> PairedModels:
    """Return both models and which layer is which.

    Flax's recurrent cells have one bias where PyTorch's have two, which are folded; a port's own cell may have both.
    """
    try:
        return _with_biases(model, other, fed, names, confirmed, folded=True)
    except OpenError:
        if any(isinstance(module, RECURRENT) for module in model.modules()):
            with suppress(OpenError):
                return _with_biases(model, other, fed, names, confirmed, folded=False)
        raise


def _with_biases(
    model: torch.nn.Module,
    other: object,
    fed: Probe,
    names: Mapping[str, str | None] | None,
    confirmed: bool,
    folded: bool,
) -> PairedModels:
    port = port_of(other)
    reference = run_pytorch.promote(model)
    state = _state(model, folded)
    weights.write(reference, dict(state))
    with raising("the PyTorch model"):
        ours = inventory.of_torch(reference, fed, state)
    if not folded:
        ours = [layer.requiring(SECOND) for layer in ours]
    with raising():
        flax = FLAX_PORTS[port].promote(other)
    layers = FLAX_PORTS[port].modules(flax, fed)
    theirs = FLAX_PORTS[port].inventory(flax, fed, layers)
    pairing = pair(ours, theirs, names, port, confirmed)
    state |= _tables(reference, state, pairing)
    return PairedModels(reference, flax, port, state, pairing, layers, fed)


def _tables(reference: torch.nn.Module, state: Mapping[str, np.ndarray], pairing: Pairing) -> Tensors:
    """Return what PyTorch alone has, is not trained and holds a known table rounded to float32, in float64."""
    paired = {name for p in pairing.pairs for name in p.torch.tensors.values()}
    frozen = (name for name, parameter in reference.named_parameters() if not parameter.requires_grad)
    alone = {*frozen, *(name for name, _ in reference.named_buffers())} & {*state} - paired
    found = {name: recomputed(state[name]) for name in alone if state[name].dtype == np.float64}
    return {name: table for name, table in found.items() if table is not None}


def _state(model: torch.nn.Module, folded: bool) -> dict[str, np.ndarray]:
    """The tensors in float64; tied tensors are one array.

    Args:
        folded: whether the biases of PyTorch's recurrent layers are folded, in their own type.
    """
    given = weights.read(model)
    layers = [name for name, m in model.named_modules() if folded and isinstance(m, RECURRENT)]
    given |= weights.fold_recurrent_biases({n: a for n, a in given.items() if n.rpartition(".")[0] in layers})
    state: dict[str, np.ndarray] = {}
    seen: dict[object, str] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        array = given[name]
        if array.dtype.kind in "fc" or array.dtype.name == "bfloat16":
            array = wide(array)
            if count := int((~np.isfinite(array)).sum()):
                raise UserError(f"weights: {name}: {count} of {array.size} numbers are NaN or infinite, expected none")
        first = seen.setdefault((tensor.data_ptr(), tensor.shape) if tensor.numel() else name, name)
        state[name] = state.get(first, array)
    return state


def building(both: PairedModels, state: Mapping[str, np.ndarray], second: bool = False) -> Build:
    """Return what gives the Flax model with these weights under a pairing.

    Args:
        second: as in `PairedModels.functional`.
    """

    def build(pairing: Pairing, names: Mapping[str, str], other: Mapping[str, np.ndarray] | None) -> Functional:
        return replace(both, pairing=pairing).functional(state if other is None else other, names, second)

    return build
