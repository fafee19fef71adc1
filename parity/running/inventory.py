"""The layers with tensors of somebody's model, in each framework, as `pairing.matching` wants them."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from typing import Any

import flax.linen
import flax.nnx
import jax
import numpy as np
import torch
from torch import nn

from parity.numerics.pins import Pins
from parity.numerics.quantities import Probe
from parity.running import flax as run_flax
from parity.running import linen as run_linen
from parity.running import nnx as run_nnx
from parity.running import pytorch as run_pytorch
from parity.running.lifted_flax import shapes, trace
from parity.running.model_layers import ModelLayer
from parity.running.raised import raising
from parity.running.taps import Recorder, layer_of
from ports.family import Shape
from ports.weights.layers.kinds import has_counterpart, kind_of
from ports.weights.live import linen, nnx
from ports.weights.live.flax import Place

OWN = "own"


def of_torch(net: nn.Module, probe: Probe, state: Mapping[str, np.ndarray]) -> list[ModelLayer]:
    """PyTorch's layers with tensors.

    Args:
        state: the tensors by name; names that share a tensor in the model share an array.
    """
    layers: list[ModelLayer] = []
    inside: list[str] = []
    for name, module in net.named_modules():
        if any(name.startswith(f"{outer}.") for outer in inside):
            continue
        row = kind_of(module)
        if row is None:
            for own, tensor in (*module.named_parameters(recurse=False), *_buffers(module)):
                full = f"{name}.{own}" if name else own
                layers.append(ModelLayer(full, OWN, {"value": full}, {"value": state[full]}, trained=_trains(tensor)))
            continue
        inside.append(name)
        tensors = [*module.state_dict()]
        if isinstance(module, nn.RNNBase):
            layers += _recurrent(name, row.pairs_as, tensors, state)
        elif tensors:
            whole = {n: f"{name}.{n}" if name else n for n in tensors}
            values = {n: state[full] for n, full in whole.items()}
            frozen = isinstance(module, nn.Embedding) and not _trains(module.weight)
            layers.append(ModelLayer(name, row.pairs_as, whole, values, trained=not frozen))
    record = Recorder(inputs=True)
    names = {module_of(layer.name) for layer in layers}
    names |= {outer for layer in layers if layer.kind == OWN for outer in _prefixes(layer.name) if outer}
    with torch.no_grad(), run_pytorch.tapped(net.eval(), record, names), run_pytorch.Used() as used:
        run_pytorch.run(net, probe, run_pytorch.inputs_of(probe))
    ranks = _ranks(record, names)
    parameters = dict(net.named_parameters(remove_duplicate=False))
    tensors = {layer.name: [parameters[n] for n in layer.tensors.values() if n in parameters] for layer in layers}
    # If several layers share a tensor, those that are called use it.
    called = {id(p) for layer in layers if module_of(layer.name) in ranks for p in tensors[layer.name]}

    def uses(layer: ModelLayer) -> bool:
        some = tensors[layer.name]
        return (layer.kind == OWN and not some) or any(p in used and id(p) not in called for p in some)

    _ranked(layers, {layer.name: ranks.get(module_of(layer.name)) for layer in layers}, len(ranks), uses)
    _owned(layers, ranks)
    return layers


def _ranked(
    layers: Sequence[ModelLayer], at: Mapping[str, int | None], last: int, uses: Callable[[ModelLayer], bool]
) -> None:
    """Set when each layer is called.

    It is unknown when a module's own tensors are used, or when another module uses the tensors of a layer that is never
    called: these come after all others, in the modules' order.

    Args:
        at: when each layer is called; None if no call is seen.
        last: behind all calls.
        uses: whether the tensors of a layer are used.
    """
    for i, layer in enumerate(layers):
        number = at[layer.name]
        layer.seen = layer.kind == OWN or number is not None
        used = number is not None or uses(layer)
        layer.rank = 1000 * (last if number is None else number) + i if used else None


def _trains(tensor: torch.Tensor) -> bool:
    return isinstance(tensor, nn.Parameter) and tensor.requires_grad


def _ranks(record: Recorder, modules: Container[str]) -> dict[str, int]:
    """Return when each module is called first, also inside an opaque transformation."""
    calls = [*record.called, *record.inputs, *record.outputs]
    names = (call if call in modules else layer_of(call) for call in calls)
    return {name: i for i, name in enumerate(dict.fromkeys(names))}


def _owned(layers: Iterable[ModelLayer], ranks: Mapping[str, int]) -> None:
    """Set, for each module's own parameter, the module that it belongs to, and when that module is called."""
    for layer in layers:
        if layer.kind == OWN and layer.tensors.keys() == {"value"}:
            layer.owner = next((outer for outer in _prefixes(layer.name) if outer in ranks), "")
            layer.leaf = layer.name.removeprefix(f"{layer.owner}.") if layer.owner else layer.name
            layer.owner_rank = ranks.get(layer.owner, len(ranks))
            inside = f"{layer.owner}." if layer.owner else ""
            layer.placed = not any(name.startswith(inside) and name != layer.owner for name in ranks)


def _buffers(module: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    yield from ((n, b) for n, b in module.named_buffers(recurse=False) if n not in module._non_persistent_buffers_set)


def _recurrent(name: str, kind: str, tensors: Iterable[str], state: Mapping[str, np.ndarray]) -> list[ModelLayer]:
    """One layer for each level and direction: `lstm@l0`, `lstm@l0_reverse`; `lstm` if there is only one."""
    levels: dict[str, ModelLayer] = {}
    for tensor in tensors:
        match = re.fullmatch(r"(\w+?)_(l\d+(?:_reverse)?)", tensor)
        leaf, level = match.groups() if match else (tensor, "")
        layer = levels.setdefault(level, ModelLayer(f"{name}@{level}", kind))
        layer.tensors[leaf] = f"{name}.{tensor}" if name else tensor
        layer.values[leaf] = state[layer.tensors[leaf]]
    if len(levels) == 1:
        next(iter(levels.values())).name = name
    return [*levels.values()]


def module_of(name: str) -> str:
    """Return the PyTorch module of a layer; for a level of an LSTM (`lstm@l0`), the LSTM."""
    return re.sub(r"@l\d+(_reverse)?$", "", name)


def of_nnx(net: Any, probe: Probe) -> list[ModelLayer]:
    """NNX's layers with tensors; a layer under two names has its first, as in PyTorch's `named_modules`."""
    modules, others, seen = {}, set(), set()
    for name, module in nnx.modules(net).items():
        if id(module) in seen:
            others.add(name)
        else:
            seen.add(id(module))
            modules[name] = module
    record = Recorder(inputs=True)
    places = {name: place for name, place in nnx.places(net, bare=True).items() if place.module not in others}
    unused = _trace(run_nnx.functional(net, tensors={name: name for name in places}), probe, record)
    cells = {name: f"{name}.cell" for name, m in modules.items() if isinstance(m, flax.nnx.RNN)}
    return _of_flax(modules, places, record, cells, unused)


def nnx_types(net: Any, probe: Probe) -> list[Any]:
    """Return the types that the layers of an NNX model are set to, and those of its parameters."""
    arrays = jax.tree.leaves(flax.nnx.state(net, flax.nnx.Param))
    return [getattr(m, "dtype", None) for _, m in flax.nnx.iter_modules(net)] + [a.dtype for a in arrays]


def linen_types(net: run_linen.Net, probe: Probe) -> list[Any]:
    """Return the types that the layers of a Linen model are set to, and those of its parameters."""
    module, variables = net
    found = [a.dtype for a in jax.tree.leaves(variables.get("params", {}))]

    def seen(call: Any, args: Any, kw: Any, context: Any) -> Any:
        found.append(getattr(context.module, "dtype", None))
        return call(*args, **kw)

    inputs, how = run_flax.inputs_of(probe)
    keywords = how.arguments(module, inputs, False)
    with flax.linen.intercept_methods(seen), raising(), jax.disable_jit(run_linen.jitted([module])):
        shapes(lambda v: run_linen.evaluated(module, v, lambda bound: how(bound, inputs, keywords))[0], dict(variables))
    return found


def linen_layers(net: run_linen.Net, probe: Probe) -> run_linen.Layers:
    """Linen's modules under the names of their scopes, found by a run, including those made in `nn.compact`."""
    module, variables = net
    found: dict[tuple[str, ...], flax.linen.Module] = {}

    def seen(call: Any, args: Any, kw: Any, context: Any) -> Any:
        run_linen.plain(context.module)
        if isinstance(context.module, flax.linen.RNN):
            run_linen.plain(context.module.cell)
        if context.module.scope is not None:
            found.setdefault(tuple(context.module.path), context.module)
        return call(*args, **kw)

    inputs, how = run_flax.inputs_of(probe)
    keywords = how.arguments(module, inputs, False)

    kept: list[bool] = []

    def forward(variables: Any) -> Any:
        values, keeps = run_linen.evaluated(module, variables, lambda bound: how(bound, inputs, keywords))
        kept.append(keeps)
        return values

    def run() -> None:
        shapes(forward, dict(variables))

    with flax.linen.intercept_methods(seen), raising():
        run()
        if run_linen.jitted(found.values()):
            with jax.disable_jit():
                run()
    for other in linen.modules(net).values():
        if other.scope is not None:
            found.setdefault(tuple(other.path), other)
    ruled = [path for path, m in found.items() if kind_of(m)]
    layers = run_linen.Layers(
        (".".join(path), m)
        for path, m in found.items()
        if not any(path[: len(outer)] == outer and path != outer for outer in ruled)
    )
    layers.keeps_state = all(kept)
    return layers


def of_linen(net: run_linen.Net, probe: Probe, layers: Mapping[str, flax.linen.Module]) -> list[ModelLayer]:
    """Linen's layers with tensors."""
    record = Recorder(inputs=True)
    places = linen.places(net, layers)
    unused = _trace(run_linen.functional(net, None, {name: name for name in places}, layers), probe, record)
    cells = {
        name: ".".join(m.cell.path) for name, m in layers.items() if isinstance(m, flax.linen.RNN) and m.cell.scope
    }
    return _of_flax(layers, places, record, cells, unused)


def _trace(functional: run_flax.Functional, probe: Probe, record: Recorder) -> set[str]:
    """Run a Flax model without numbers, to see its calls; return the parameter tensors that it does not use."""
    inputs, call = run_flax.inputs_of(probe)

    def forward(params: Any, stats: Any) -> None:
        functional.forward(params, stats, inputs, call, False, record)

    with raising():
        program, _ = trace(forward, (functional.params, functional.stats), Pins(""))
    read = {id(v) for equation in program.jaxpr.eqns for v in equation.invars}
    used = {i for i, v in enumerate(program.jaxpr.invars) if id(v) in read}
    return {name for name, leaves in run_flax.parameter_leaves(functional).items() if not leaves & used}


def _of_flax(
    modules: Mapping[str, Any],
    places: Mapping[str, Place[Any]],
    record: Recorder,
    cells: Mapping[str, str],
    unused: Container[str],
) -> list[ModelLayer]:
    """Layers in the order of their modules.

    Args:
        cells: the names of recurrent cells by the names of the layers that run them.
        unused: the names of parameters that the model does not use.
    """
    layers: dict[str, ModelLayer] = {}
    for own, place in places.items():
        row = None if place.own else kind_of(modules[place.module])
        if row is None or not has_counterpart(row):  # PyTorch's class is not known: the tensors pair one by one
            trained = place.leaf.collection == "params"
            values = {"value": place.read()}
            layers[own] = ModelLayer(own, OWN, {"value": own}, values, trained=trained, ruled=row is not None)
            continue
        layer = layers.setdefault(place.layer, ModelLayer(place.layer, row.pairs_as))
        leaf, value = place.leaf.torch, place.read()
        layer.tensors[leaf], layer.values[leaf] = own, value
        if heads := _heads([slot.shape for slot in place.slots], value):
            layer.heads[leaf] = heads
    names = {*modules, *(outer for place in places.values() for outer in (place.layer, *_prefixes(place.layer)))}
    ranks = _ranks(record, names)
    for runner, cell in cells.items():
        if runner in ranks:
            ranks.setdefault(cell, ranks[runner])

    def uses(layer: ModelLayer) -> bool:
        return any(name not in unused for name in layer.tensors.values())

    _ranked([*layers.values()], {name: ranks.get(name) for name in layers}, len(ranks), uses)
    _owned(layers.values(), ranks)
    return [*layers.values()]


def _heads(shapes: Sequence[Shape], value: np.ndarray) -> int:
    """Return how many heads a variable has: the first of its last axes that are together PyTorch's first; else 0."""
    if len(shapes) != 1 or not value.ndim:
        return 0
    (shape,) = shapes
    cut = next((shape[i:] for i in range(len(shape) - 1) if math.prod(shape[i:]) == len(value)), ())
    return cut[0] if cut else 0


def _prefixes(name: str) -> Iterator[str]:
    """The longest first: `a.b.weight` belongs to `a.b`, or to `a`, or to the network itself."""
    parts = name.split(".")
    for i in range(len(parts) - 1, -1, -1):
        yield ".".join(parts[:i])


OF: dict[str, Callable[..., list[ModelLayer]]] = {"nnx": of_nnx, "linen": of_linen}
