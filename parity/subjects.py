"""Makes the subject of a check: from networks of this package, or from somebody's own pair."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch

import ports
from parity.numerics import masking
from parity.numerics.layouts import LAYOUTS, axes, counterparts, cut, leaves, named, rebuilt
from parity.numerics.quantities import Probe
from parity.options import LARGEST, NetworkOptions, Options, PairOptions
from parity.pairing import choosing
from parity.pairing.models import PairedModels, building, pair_models
from parity.pairing.trials import Trial
from parity.running import biases, calling, lifted_flax, losses, memory, objects, packed, probes, training, unexercised
from parity.running import flax as run_flax
from parity.running import pytorch as run_pytorch
from parity.running.draws_jax import UNKNOWN, counted, undropped
from parity.running.flax import Functional
from parity.running.flax_ports import FLAX_PORTS, port_of
from parity.running.nnx import OWN_TYPES
from parity.running.subject import Candidate, Subject
from parity.running.taps import Recorder, Tap, layer_of
from parity.running.training import TrainingPlan
from parity.traps.accepting import accepted
from parity.verdict import roles
from ports import families, weights
from ports.errors import UserError
from ports.family import Description

Network = str | Description | torch.nn.Module


def of_network(network: Network, live: Sequence[object], options: NetworkOptions) -> Subject:
    """Return the subject of a named or described network, or of live networks of this package.

    Args:
        live: Flax networks, where `network` is a live PyTorch network.

    Raises:
        UserError: an unknown name, a probe that does not fit, no memory for it, weights that do not fit or hold NaN.
    """
    whole = _spec(network)
    spec = families.reduced(whole) if options.reduced else whole
    size = _size(spec, options)
    memory.require(spec, options.batch, size)
    reference = _reference(network, spec, live, options)
    fed = probes.of_spec(spec, batch=options.batch, size=size, seed=options.seed, images=options.images)
    # Networks that are created here change nothing in place; a live network may have been changed by its owner.
    fed = replace(fed, in_place=isinstance(network, torch.nn.Module))
    if not isinstance(network, torch.nn.Module) and options.weights is None:
        options.progress("random BatchNorm parameters and statistics")
        randomise(reference, fed, options.seed)
    state = weights.read(reference)
    _finite(state)
    if tied := run_pytorch.tied(reference):  # the second name of a tensor is not a separate tensor
        fed = replace(fed, tensors=frozenset(state) - frozenset(tied))
    fed = replace(fed, packed=_packed(reference, fed))
    names = _recorded(reference, spec)
    if live:
        candidates = {
            port_of(net): Candidate(partial(_promoted, net, names=names), partial(_live, net, names=names))
            for net in live
        }
    else:
        candidates = {port: _created(spec, port, state, names) for port in dict.fromkeys(options.ports)}
    what, of = ("image" if families.takes_images(spec) else "input"), "x".join(map(str, size))
    note = f"{options.batch} {what}{'s' if options.batch > 1 else ''} of {of}, seed {options.seed}"
    return Subject(
        spec.name,
        reference,
        candidates,
        fed,
        training.make(reference, fed, plan(options)),
        options.seed,
        names=names,
        note=note + _left_out(whole, spec),
    )


def plan(options: Options) -> TrainingPlan:
    """Return the training that the options describe.

    Raises:
        UserError: an unknown optimizer, a custom optimizer without `tx`, an option out of range.
    """
    return TrainingPlan(options.steps, options.optimizer, options.tx, options.clip_grad_norm, options.accumulate)


def _spec(network: Network) -> Any:
    if not isinstance(network, torch.nn.Module):
        return families.get(network)
    spec = getattr(network, "spec", None)
    if not families.is_description(spec):
        text = "expected inputs after the two models, or a network of ports.create, or its name"
        raise UserError(f"got {type(network).__name__} without inputs, {text}")
    return spec


def _size(spec: Any, options: NetworkOptions) -> tuple[int, ...]:
    """Return the size of the probe.

    Raises:
        UserError: an image that is too small or too large; images for a network that takes none, or with other
            channels.
    """
    size = options.image_size or probes.default_size(spec)
    if not families.takes_images(spec):
        if options.images is not None or options.image_size is not None:
            raise UserError(f"{spec.name}: takes no images; leave out images and image_size")
        return size
    if min(size) < 1 or max(size) > LARGEST:
        raise UserError(f"image size: got {size[0]}x{size[1]}, expected 1 to {LARGEST} pixels")
    if spec.in_channels not in (1, 3):
        raise UserError(f"{spec.name}: photographs have 1 or 3 channels, the network takes {spec.in_channels}")
    return size


def _reference(network: Network, spec: Any, live: Sequence[object], options: NetworkOptions) -> torch.nn.Module:
    """Return the reference in float64."""
    if isinstance(network, torch.nn.Module):
        if not live:
            raise UserError("got a PyTorch network alone, expected one or more Flax networks after it")
        return run_pytorch.promote(network)
    if live:
        raise UserError("got the name of a network and live networks; expected a live PyTorch network first")
    reference = ports.create(spec, "pytorch", seed=options.seed, dtype="float64")
    if options.weights is not None:
        given = options.weights if isinstance(options.weights, Mapping) else weights.load(options.weights)
        weights.write(reference, dict(given))
    return run_pytorch.promote(reference)


def _left_out(whole: Any, spec: Any) -> str:
    """Return the note about a network that is not checked whole: `, depth 2 of 24`."""
    own, its = _settings(spec), _settings(whole)
    return "".join(f", {name} {own[name]} of {its[name]}" for name in its if own[name] != its[name])


def _settings(spec: Any) -> dict[str, Any]:
    """Return the fields of a description; those of its stages as a tuple each: `blocks: (3, 4, 6, 3)`."""
    found: dict[str, Any] = {}
    for setting in fields(spec):
        value = getattr(spec, setting.name)
        stages = value if isinstance(value, tuple) and value and is_dataclass(value[0]) else ()
        inner = fields(stages[0]) if stages else ()
        found |= {part.name: tuple(getattr(stage, part.name) for stage in stages) for part in inner}
        found |= {} if stages else {setting.name: value}
    return found


def _recorded(reference: torch.nn.Module, spec: Any) -> list[str] | None:
    """Return the modules to record if a layer has two names: under its first name. Otherwise None, for the default."""
    second = {layer.torch for layer in families.layers(spec) if layer.tied}
    return [name for name in run_pytorch.with_parameters(reference) if name not in second] if second else None


def _packed(reference: torch.nn.Module, fed: Probe) -> np.ndarray | None:
    """Return the positions of the texts that PyTorch packs."""
    copy = run_pytorch.promote(reference).eval()
    return packed.real_steps(copy, lambda net: run_pytorch.run(net, fed, run_pytorch.inputs_of(fed)))


def _by_name(names: Collection[str] | None) -> dict[str, str] | None:
    return None if names is None else {name: name for name in names}


def _created(spec: Any, port: str, state: Mapping[str, np.ndarray], names: Collection[str] | None) -> Candidate:
    """Return a network of this package in a port, with weights from `ports.weights`."""
    return Candidate(
        lambda: built(spec, port, state, names=names),
        lambda dtype, state: built(spec, port, state, dtype, names=names),
    )


def built(
    spec: Any,
    port: str,
    state: Mapping[str, np.ndarray],
    dtype: str = "float64",
    *,
    names: Collection[str] | None = None,
) -> Functional:
    """Create a network with these weights in a type.

    Args:
        names: the modules that are recorded; by default all.
    """
    net: Any = ports.create(spec, port, seed=None, dtype=dtype)
    variables = weights.write(net, dict(state))
    net = net if variables is None else (net[0], variables)
    return FLAX_PORTS[port].functional(net, _by_name(names), dtype=dtype)


def _live(net: Any, dtype: str, state: Mapping[str, np.ndarray], *, names: Collection[str] | None) -> Functional:
    """Return a live network in a working precision, with these weights."""
    port = port_of(net)
    net = FLAX_PORTS[port].promote(net, dtype)
    variables = weights.write(net, dict(state))
    return FLAX_PORTS[port].functional(net if variables is None else (net[0], variables), _by_name(names), dtype=dtype)


def _promoted(net: Any, *, names: Collection[str] | None) -> Functional:
    port = FLAX_PORTS[port_of(net)]
    return port.functional(port.promote(net), _by_name(names))


def randomise(net: Any, fed: Probe, seed: int) -> None:
    """Give every BatchNorm random parameters, and random statistics around those that it has on the probe.

    Other tensors whose numbers are all equal, such as those of a fresh LayerNorm, get random numbers (`probes.varied`).
    """
    ends = {layer.torch for layer in families.layers(net.spec) if layer.ends_branch}
    seen = run_pytorch.promote(net)
    for module in seen.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 1.0
    run_pytorch.statistics(seen, fed)
    statistics = {name: buffer.numpy() for name, buffer in seen.named_buffers()}
    state = probes.randomised(weights.read(net), statistics, ends, seed)
    weights.write(net, probes.varied(state, set(state), seed))


def _finite(state: Mapping[str, np.ndarray]) -> None:
    """Raise if a weight is not finite: its rounding response cannot be measured."""
    for name, array in state.items():
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            count = int((~np.isfinite(array)).sum())
            raise UserError(
                f"weights: {name} has {count} of {array.size} numbers that are NaN or infinite, expected none"
            )


@dataclass(frozen=True)
class OwnPair:
    """Somebody's own models, paired, with what is known about them before they run.

    Attributes:
        title: their name in the report.
        both: the models in float64, layer by layer.
        other: the Flax model as it was given, or the one inside a model object.
        fed: the probe: the inputs, and how the models are called.
        given: PyTorch's tensors as they are, before recurrent biases are folded.
        unexercised: the arguments that are left at their defaults.
        layouts: the layouts of inputs that the check chose because the port raises in the default ones.
        trained_biases: PyTorch's layers without a bias whose counterpart has one that training would move.
        tables: as in `Subject`.
    """

    title: str
    both: PairedModels
    other: Any
    fed: Probe
    given: Mapping[str, np.ndarray]
    unexercised: tuple[str, ...] = ()
    layouts: Mapping[str, str] = field(default_factory=dict)
    trained_biases: Sequence[str] = ()
    tables: tuple[str, ...] = ()


def own_pair(model: torch.nn.Module, other: object, inputs: Sequence[object], options: PairOptions) -> OwnPair:
    """Pair somebody's own models layer by layer.

    Raises:
        UserError: inputs that are not numbers, layers that cannot be paired, a model that raises or is random.
    """
    loss = losses.given(*options.loss) if options.loss else losses.projection(options.seed)
    opened = objects.opened(other)
    fed = calling.prepared(model, opened, inputs, options, loss)
    options.progress("pairing layers")
    both = pair_models(model, opened.net, fed, options.names)
    chosen = {name: layout for name, layout in both.fed.layouts.items() if name not in fed.layouts}
    fed = both.fed
    _repeatable(both.reference, fed)
    fed = replace(fed, packed=_packed(both.reference, fed))
    both = _formed(both, fed, options)
    if options.mask is not None:
        fed = replace(fed, mask=masking.positions(options.mask))
    called = FLAX_PORTS[port_of(opened.net)].called(opened.net)
    idle = (
        *unexercised.arguments(fed.torch_call, model, fed),
        *unexercised.arguments(fed.flax_call, called, fed),
    )
    more = biases.acting(both.reference, fed, both.biased) if both.biased else ()
    tables = run_pytorch.rounded_tables(model, {*both.tensors.values()})
    return OwnPair(type(model).__name__, both, opened.net, fed, weights.read(model), idle, chosen, more, tables)


def _formed(both: PairedModels, fed: Probe, options: PairOptions) -> PairedModels:
    """Return the pair with a form chosen for each tensor; a wrong form shows as a difference of the weights."""
    own = both.own_values
    both = replace(both, pairing=choosing.by_values(both.pairing, own, both.state))
    if not both.pairing.choices:
        return both
    state = probes.varied(both.state, {*both.tensors.values()}, options.seed)
    weights.write(both.reference, dict(state))
    trial = Trial(building(both, state), both.reference, fed)
    return replace(both, pairing=choosing.by_computing(both.pairing, trial, strict=False).reading(own))


def of_pair(own: OwnPair, options: PairOptions) -> Subject:
    """Return the subject of somebody's own pair, with PyTorch's weights in both models.

    Tensors whose numbers are all equal get random numbers, because equal numbers hide mistakes.

    Raises:
        UserError: `accept` names no trap, or one that no layer can have; an option of training out of range; a mask
            that fits no output.
    """
    both = own.both
    state = probes.varied(both.state, {*both.tensors.values()}, options.seed)
    weights.write(both.reference, dict(state))
    accepted(both.reference, options.accept)
    in_port = run_flax.parameter_leaves(both.functional(state, {}))
    fed = roles.assigned(both.reference, own.fed, {*both.tensors.values()}, in_port)
    how = training.make(both.reference, fed, plan(options))
    if not how.own and not run_pytorch.parameters(both.reference, fed):
        # Everything is frozen: PyTorch has no training to compare with.
        how = replace(how, steps=0)
    renamed, fed, masks, differing = _outputs(both, state, fed, own_loss=options.loss is not None)
    dropped, floors = run_pytorch.chances(both.reference, fed)
    theirs = _chances(both.functional(state, {}), fed) if dropped or floors else Counter()
    # A port that also draws uniform numbers may round them down to the same masks.
    unknown = theirs.pop(UNKNOWN, 0)
    dropped = dropped if unknown else dropped + floors
    # If a port drops values as often as PyTorch, or differently, it is compared with dropout. If it only lacks some
    # of PyTorch's, both are compared without dropout.
    lacking = dropped.total() > theirs.total() + unknown and theirs <= dropped and not (floors and unknown)
    fed = replace(fed, drops=not lacking)
    comparable = _comparable(both, both.names | both.blocks, state, fed)
    used = {own: name for own, name in comparable.items() if own in both.names}

    def with_blocks(blocks: Collection[str]) -> Functional:
        return adapted(both.functional(state, {n: t for n, t in comparable.items() if n in used or t in blocks}))

    def in_type(dtype: str, state: Mapping[str, np.ndarray]) -> Functional:
        port = FLAX_PORTS[both.port]
        chosen = OWN_TYPES if dtype == "bfloat16" and port.is_narrow(own.other, own.fed) else dtype
        return replace(both, flax=port.promote(own.other, chosen), dtype=chosen).functional(state, used)

    def adapted(net: Functional) -> Functional:
        net = replace(net, forward=_masking(net.forward, masks)) if masks else net
        net = replace(net, forward=_renaming(net.forward, renamed)) if renamed else net
        return replace(net, forward=undropped(net.forward)) if lacking else net

    candidate = Candidate(lambda: adapted(both.functional(state, used)), lambda *a: adapted(in_type(*a)), with_blocks)
    lacked = [NO_DROPOUT.format(dropped.total(), theirs.total())] if lacking else []
    if not lacking and not unknown and dropped - theirs and theirs - dropped:
        lacked = [OTHER_RATES.format(_rates(dropped), _rates(theirs))]
    note = f"{len(both.pairing.pairs)} layers paired, seed {options.seed}" + roles.note(both.reference, fed) + differing
    note += "".join(f", the port takes {name} as {SAID[layout]}" for name, layout in own.layouts.items())
    return Subject(
        own.title,
        both.reference,
        {both.port: candidate},
        fed,
        how,
        options.seed,
        names=[name for name in both.names.values() if name in used.values()],
        types=_types(own.given),
        tables=own.tables,
        unexercised=unexercised.layers((pair.torch for pair in both.pairing.pairs), {*fed.idle} - {*fed.frozen})
        + own.unexercised
        + (_branches(both, state, fed) if options.branches else ()),
        blocks=[name for own, name in comparable.items() if own not in used],
        note=note + "".join(f", accepted: {name}" for name in options.accept),
        advice=tuple(f"{both.port}: {line}" for line in (*lacked, *_computed(both.computed), *_biased(own))),
    )


def _rates(drawn: Counter[float]) -> str:
    """Return the fractions that dropout masks drop, and how many masks drop each."""
    return ", ".join(f"{rate:g} ({count} mask{'s' if count > 1 else ''})" for rate, count in sorted(drawn.items()))


def _biased(own: OwnPair) -> list[str]:
    """Return advice about biases that the port does not need."""
    names = [name for name in own.both.biased if name not in own.trained_biases]
    if not names:
        return []
    more = len(names) - 1
    said = names[0] + (f" and {more} more layer{'s' if more > 1 else ''}" if more else "")
    return [
        f"the port has a bias where PyTorch has none: {said}. Training gives it no gradient, so it stays zero; it may "
        "not where part of the network is frozen or in eval mode"
    ]


def _computed(names: Sequence[str]) -> list[str]:
    """Return advice about what is not compared for weights that PyTorch computes from other parameters."""
    if not names:
        return []
    said = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
    return [
        f"PyTorch computes {said} of other parameters (a parametrization), and the port holds the result; the check "
        "compares the result and its gradient, and trains it as it is. How PyTorch trains its parts is not compared"
    ]


def _branches(both: PairedModels, state: Mapping[str, np.ndarray], fed: Probe) -> tuple[str, ...]:
    """Return the branches of both models' code that neither eval nor train mode takes."""
    net = both.functional(state, {})
    inputs, call = run_flax.inputs_of(fed)

    def reference(train: bool) -> None:
        copy = run_pytorch.promote(both.reference).train(train)
        with torch.no_grad(), run_pytorch.tapped(copy, Tap(), ()):
            run_pytorch.run(copy, fed, run_pytorch.inputs_of(fed))

    def port(train: bool) -> None:
        forward = lambda params, stats: net.forward(params, stats, inputs, call, train, Tap())[0]  # noqa: E731
        lifted_flax.shapes(forward, net.params, net.stats)

    return unexercised.branches([partial(run, train) for run in (reference, port) for train in (False, True)])


def _types(given: Mapping[str, np.ndarray]) -> dict[str, str]:
    """Return the types of a model's tensors if one is narrower than float32; otherwise nothing."""
    types = {name: array.dtype.name for name, array in given.items()}
    return types if {*types.values()} & {"bfloat16", "float16"} else {}


# Words for a layout that the check chose.
SAID = {
    "same": "PyTorch does (channels first)",
    "channels_last": "channels last",
    "frames_first": "frames first, channels last",
}

NO_DROPOUT = (
    "PyTorch draws {} dropout masks in a training step, the port {}; the check switched dropout off in both. "
    "To train alike, add the missing dropout to the port (nnx.Dropout, nn.Dropout)"
)

OTHER_RATES = (
    "in a training step PyTorch's dropout drops {}, the port's {}. Give the port's dropout PyTorch's rates: "
    "nnx.Dropout takes the part that is dropped, jax.random.bernoulli the part that is kept"
)


def _outputs(
    both: PairedModels, state: Mapping[str, np.ndarray], fed: Probe, own_loss: bool
) -> tuple[dict[str, str], Probe, dict[str, np.ndarray], str]:
    """Return the names of the port's outputs, the probe without PyTorch's other outputs, masks, and a note.

    The names are PyTorch's; they are empty if a loss of the caller's takes the outputs. The masks are those of the
    port's outputs, if some positions do not count.

    Raises:
        UserError: the models have no output in common; no output has the axes of the mask.
    """
    copy = run_pytorch.promote(both.reference).eval()
    with torch.no_grad(), run_pytorch.tapped(copy, Tap(), ()):
        ours = run_pytorch.outputs(run_pytorch.run(copy, fed, run_pytorch.inputs_of(fed)))
    net, kept = both.functional(state, {}), {}
    inputs, call = run_flax.inputs_of(fed)

    def forward(params: Any, stats: Any) -> None:
        values, _ = net.forward(params, stats, inputs, call, False, Tap())
        kept.update((name, jax.ShapeDtypeStruct(a.shape, a.dtype)) for name, a in leaves(values, "output"))

    lifted_flax.shapes(forward, net.params, net.stats)
    names = counterparts(kept, ours)
    if not names:
        said = f"PyTorch gives {_listed(ours)}, the port {_listed(kept)}"
        raise UserError(f"outputs: {said}; expected one at least that both give")
    masks = masking.masks(fed.mask, ours, kept, names)
    note = _masked(fed.mask, [names[name] for name in masks])
    if own_loss:
        return {}, fed, masks, note
    alone = [name for name in ours if name not in names.values()]
    theirs = [name for name in kept if name not in names]
    note += "".join(
        f", only {side} gives {', '.join(left)}" for side, left in (("PyTorch", alone), ("the port", theirs)) if left
    )
    return names, replace(fed, alone=frozenset(alone)), masks, note


def _masked(mask: np.ndarray | None, names: Sequence[str]) -> str:
    """Return the note about the positions that are not compared."""
    if mask is None:
        return ""
    return f", {int(mask.sum())} of {mask.size} positions compared of {', '.join(names)}"


def _masking(forward: Callable[..., Any], masks: Mapping[str, np.ndarray]) -> Callable[..., Any]:
    """Return a network's function whose outputs are zeros at the positions that do not count."""

    def counted(name: str, value: jax.Array) -> jax.Array:
        return jnp.where(masks[name], value, jnp.zeros_like(value)) if name in masks else value

    def run(*args: Any) -> Any:
        values, stats = forward(*args)
        return rebuilt(values, counted), stats

    return run


def _listed(arrays: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {tuple(array.shape)}" for name, array in arrays.items()) or "no array"


def _renaming(forward: Callable[..., Any], names: Mapping[str, str]) -> Callable[..., Any]:
    """Return a network's function that gives its outputs under other names, and no others."""

    def run(*args: Any) -> Any:
        values, stats = forward(*args)
        return named({names[name]: array for name, array in leaves(values, "output") if name in names}), stats

    return run


def _chances(net: Functional, fed: Probe) -> Counter[float]:
    """Return how often a port drops values in train mode, by the fraction that it drops."""
    inputs, call = run_flax.inputs_of(fed)

    def forward(params: Any, stats: Any) -> None:
        found.clear()  # run a program again that cannot be traced with lifted casts
        net.forward(params, stats, inputs, call, True, Tap())

    with counted() as found:
        lifted_flax.shapes(forward, net.params, net.stats)
    return found


def _repeatable(net: torch.nn.Module, fed: Probe) -> None:
    """Raise if a second run gives other outputs: nothing could be compared with them."""
    for train in (False, True):
        runs = []
        for _ in range(2):
            copy = run_pytorch.promote(net).train(train)
            with torch.no_grad(), run_pytorch.tapped(copy, run_pytorch.Tap(), ()):
                runs.append(run_pytorch.outputs(run_pytorch.run(copy, fed, run_pytorch.inputs_of(fed))))
        for name, array in runs[0].items():
            if not np.array_equal(array, runs[1][name], equal_nan=True):
                mode = "train" if train else "eval"
                raise UserError(
                    f"the PyTorch model is random in {mode} mode: two runs on the same input differ in {name}; "
                    "expected none but dropout; draw random numbers outside and pass them as inputs"
                )


def _comparable(
    both: PairedModels, names: Mapping[str, str], state: Mapping[str, np.ndarray], fed: Probe
) -> dict[str, str]:
    """Return the modules of `names` that both models call equally often, with outputs of the same shape but for layout.

    A layer that one of the models calls on a reshaped input is judged by what follows from it.

    Args:
        names: PyTorch's names, by Flax's.
    """
    record = Recorder()
    copy = run_pytorch.promote(both.reference).eval()
    with torch.no_grad(), run_pytorch.tapped(copy, record, names.values()):
        run_pytorch.run(copy, fed, run_pytorch.inputs_of(fed))
    ours = {name: tuple(y.shape) for name, y in record.outputs.items()}
    net, record = both.functional(state, names), Recorder()
    inputs, call = run_flax.inputs_of(fed)

    def forward(params: Any, stats: Any) -> None:
        net.forward(params, stats, inputs, call, False, record)

    lifted_flax.shapes(forward, net.params, net.stats)
    theirs = {name: tuple(y.shape) for name, y in record.outputs.items()}

    def fits(call: str) -> bool:
        if call not in ours or call not in theirs:
            return False
        a, b = ours[call], theirs[call]
        if cut(a, b):
            return True
        if len(a) == len(b) and a != b and all(n == m or 1 in (n, m) for n, m in zip(a, b, strict=True)):
            return False  # one model computes once what the other computes for every sample
        reshaped = np.prod(a) == np.prod(b) and not any(
            len(a) == len(b) and tuple(a[i] for i in axes(layout, len(a))) == b for layout in LAYOUTS
        )
        return not reshaped

    unfit = {layer_of(call) for call in {*ours, *theirs} if not fits(call)}
    return {own: name for own, name in names.items() if name not in unfit}
