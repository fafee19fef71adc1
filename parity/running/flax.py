"""Runs a Flax network, NNX or Linen, and records every quantity in PyTorch's names and layouts.

`nnx.py` and `linen.py` give a network as pure functions (`Functional`); this module runs them.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import PyTree

from parity.numerics.calls import Call
from parity.numerics.layouts import (
    Tensors,
    aligned,
    broadcast,
    default_layout,
    first,
    layout_of,
    leaves,
    mapped,
    rebuilt,
    to_flax,
    to_reference,
    wide,
    with_first,
)
from parity.numerics.pins import Pins
from parity.numerics.quantities import Observation, Probe, Training, after
from parity.running.lifted_flax import pinned, program
from parity.running.raised import OF_GRADIENTS, raising
from parity.running.taps import Calls, Recorder, Tap
from ports.optim import State
from ports.optimizers import OPTIMIZERS
from ports.weights.live.flax import Part, Place

TRANSFORM = "the optax transform"


@dataclass(frozen=True)
class Functional:
    """A network as pure functions.

    Attributes:
        params: the tree of parameters.
        stats: the tree of everything else, such as running statistics.
        forward: (params, stats, inputs, call, train, tap) to (output, new stats).
        to_torch: (params, stats) to the torch form; gradients may take the place of the parameters.
    """

    params: PyTree
    stats: PyTree
    forward: Callable[[PyTree, PyTree, PyTree, Call, bool, Tap], tuple[PyTree, PyTree]]
    to_torch: Callable[[PyTree, PyTree], dict[str, np.ndarray]]


def placed(arrays: PyTree) -> PyTree:
    """Move JAX's arrays to the device of the check (`running.device`)."""
    config: Any = jax.config
    return jax.device_put(arrays, config.jax_default_device)


class Listener:
    """Reports the calls of layers to a tap, for one run.

    It skips layers inside an inner transformation (`jit`, `vmap`), whose values cannot leave it.
    """

    def __init__(self, tap: Tap) -> None:
        self.tap, self.calls, self.trace = tap, Calls(), _trace()
        self.counts: Counter[tuple[str, ...]] = Counter()

    def around(
        self, names: tuple[str, ...], call: Callable[..., Any], args: tuple[Any, ...], kw: Mapping[str, Any]
    ) -> Any:
        """Call a layer.

        Args:
            names: the layer's name; for a stack, the names of all layers, which are called in turn. An empty name is
                not recorded.
        """
        if _trace() != self.trace:
            self.tap.passed(names)
            return call(*args, **kw)
        name = names[self.counts[names] % len(names)]
        self.tap.passed((name,))
        self.counts[names] += 1
        if not name:
            return call(*args, **kw)
        name = self.calls.next(name)
        if (x := first(args)) is not None:
            new = self.tap.enter(name, x)
            args = tuple(new if arg is x else arg for arg in args)
        output = call(*args, **kw)
        if (y := first(output)) is None:
            return output
        new = self.tap.leave(name, y)
        return output if new is y else with_first(output, new)


def by_module(names: Mapping[str, str], places: Iterable[Place[Any]]) -> dict[str, tuple[str, ...]]:
    """Return the names under which a module's calls are recorded: several if it holds a stack of layers.

    Args:
        names: by the port's names of layers and of modules around them.
        places: of all tensors of the port.
    """
    stacks = _stacks(places)
    sizes = Counter(module for module, _ in stacks.values())
    found: dict[str, list[str]] = {}
    for own, name in names.items():
        module, number = stacks.get(own, (own, 0))
        found.setdefault(module, [""] * max(sizes[module], 1))[number] = name
    return {module: tuple(names) for module, names in found.items()}


def _stacks(places: Iterable[Place[Any]]) -> dict[str, tuple[str, int]]:
    """Return the module and the number of each layer of a stack, and of each module around such layers."""
    found: dict[str, tuple[str, tuple[int, ...]]] = {}
    for place in places:
        if place.layer == place.module:
            continue
        parts, left = place.layer.split("."), place.module.split(".") if place.module else []
        module: list[str] = []
        at: tuple[int, ...] = ()
        for i, part in enumerate(parts):
            if left[len(module) : len(module) + 1] == [part]:
                module.append(part)
            else:
                at = (*at, int(part))
            if at:
                found[".".join(parts[: i + 1])] = (".".join(module), at)
    orders = {module: sorted({at for other, at in found.values() if other == module}) for module, _ in found.values()}
    return {name: (module, orders[module].index(at)) for name, (module, at) in found.items()}


def layer_names(modules: Iterable[str], places: Iterable[Place[Any]]) -> dict[str, str]:
    """Return every single name under which calls can be recorded; for a stack, those of its layers."""
    stacks = _stacks(places)
    whole = {module for module, _ in stacks.values()}
    return {name: name for name in (*modules, *stacks) if name and name not in whole}


def stack_lengths(places: Iterable[Place[Any]]) -> set[int]:
    """Return how many layers the stacks of a port have."""
    lengths: set[int] = set()
    for slot in (slot for place in places for slot in place.slots if isinstance(slot, Part)):
        shape = list(slot.slot.shape)
        lengths |= {shape.pop(axis) for axis, _ in slot.at}
    return lengths


def _trace() -> Any:
    return jax.extend.core.get_opaque_trace_state(convention="nnx")


@contextmanager
def float64_attention() -> Iterator[None]:
    """Make this thread's calls of `jax.nn.dot_product_attention` compute their softmax in float64, not in float32.

    NNX's attention calls it. Other threads share the module, and get what JAX computes.
    """
    original, thread = jax.nn.dot_product_attention, threading.get_ident()

    def chosen(query: jax.Array, *args: Any, **kw: Any) -> jax.Array:
        ours = query.dtype == jnp.float64 and threading.get_ident() == thread
        return (attention if ours else original)(query, *args, **kw)

    jax.nn.dot_product_attention = chosen
    try:
        yield
    finally:
        jax.nn.dot_product_attention = original


def attention(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    bias: jax.Array | None = None,
    mask: jax.Array | None = None,
    *,
    scale: float | None = None,
    is_causal: bool = False,
    **_: object,
) -> jax.Array:
    """Attention (batch, length, heads, depth) in the type of the inputs; a mask is true where a query may see a key."""
    groups = query.shape[-2] // key.shape[-2]
    key, value = (jnp.repeat(a, groups, axis=-2) for a in (key, value))
    scores = jnp.einsum("...qhd,...khd->...hqk", query, key) * (query.shape[-1] ** -0.5 if scale is None else scale)
    scores = scores if bias is None else scores + bias
    allowed = jnp.tril(jnp.ones(scores.shape[-2:], bool)) if is_causal else jnp.ones((), bool)
    allowed = allowed if mask is None else allowed & mask
    scores = jnp.where(allowed, scores, jnp.finfo(scores.dtype).min)
    return jnp.einsum("...hqk,...khd->...qhd", jax.nn.softmax(scores, axis=-1), value)


def inputs_of(probe: Probe) -> tuple[PyTree, Call]:
    """Return the probe's inputs in Flax's layouts, and the call with all arguments by name."""

    def change(name: str, array: np.ndarray) -> jax.Array:
        return jnp.array(to_flax(array, probe.layouts.get(name) or default_layout(array)))

    both = mapped(dict(probe.keywords), change, "keyword")
    alone = rebuilt(dict(probe.flax_call.keywords), lambda _, array: jnp.array(array))
    return mapped(probe.inputs, change), replace(probe.flax_call, keywords={**both, **alone})


def moving(inputs: PyTree) -> dict[str, jax.Array]:
    """Return the floating arrays of the inputs by name: gradients reach these.

    JAX sorts the keys of a dict, and Python keeps their order, so arrays pass through JAX by name.
    """
    return {name: a for name, a in leaves(inputs, "input") if jnp.issubdtype(a.dtype, jnp.floating)}


def with_moving(inputs: PyTree, arrays: Mapping[str, jax.Array]) -> PyTree:
    """Return the original inputs, with these arrays in the places of the same names."""
    return mapped(inputs, lambda name, a: arrays.get(name, a))


def input_gradients(probe: Probe, gradients: Mapping[str, jax.Array]) -> Tensors:
    """Return the gradients of the inputs by name, in the layouts of the reference."""

    def back(name: str, gradient: jax.Array) -> np.ndarray:
        return to_reference(np.asarray(gradient), probe.layouts.get(name) or default_layout(gradient))

    return {name: back(name, gradient) for name, gradient in gradients.items()}


def outputs(values: PyTree, expected: Tensors) -> Tensors:
    return {name: aligned(value, expected.get(name)) for name, value in leaves(values, "output")}


def records(record: Mapping[str, jax.Array], expected: Tensors, probe: Probe) -> Tensors:
    """Return the outputs of layers, in the layouts of the reference, at the positions that count."""
    arrays = {
        name: broadcast(aligned(value, expected.get(name), cuts=True), expected.get(name))
        for name, value in record.items()
    }
    return {name: probe.counted(array) for name, array in arrays.items()}


def output_layouts(values: PyTree, expected: Tensors) -> dict[str, str]:
    """The layout of every output."""
    return {
        name: (layout_of(value, expected[name]) if name in expected else None) or "same"
        for name, value in leaves(values, "output")
    }


class PortRuns:
    """Runs of one port, compiled once: as it is, and with other weights and inputs of the same shapes."""

    def __init__(
        self,
        net: Functional,
        probe: Probe,
        training: Training,
        parameters: list[str],
        reference: Observation,
        pins: Pins,
    ) -> None:
        """Prepare the programs.

        Args:
            parameters: the PyTorch names of the trained tensors; the rest are statistics.
            reference: PyTorch's results, whose layouts the port's results get.
            pins: gets the places where the port's code fixes a type.
        """
        self.net, self.probe, self.training = net, probe, training
        self.parameters, self.reference = parameters, reference
        self.inputs, self.call = inputs_of(probe)
        self.pins = pins
        self.evaluate = jax.jit(program(self._evaluate, self.pins))
        self.update = self._updates_of(training.transform)
        self.gradient: Callable[..., Any] | None = None
        self.trains_frozen: list[str] = []

    def _evaluate(self, params: PyTree, stats: PyTree, arrays: dict[str, jax.Array]) -> PyTree:
        record = Recorder()
        whole = with_moving(self.inputs, arrays)
        values, _ = self.net.forward(params, stats, whole, self.call, False, record)
        return values, record.outputs

    def _gradient_of(self, loss_of: Callable[[PyTree], jax.Array]) -> Callable[..., Any]:
        def objective(params: PyTree, arrays: dict[str, jax.Array], stats: PyTree) -> tuple[jax.Array, PyTree]:
            record = Recorder()
            whole = with_moving(self.inputs, arrays)
            values, stats = self.net.forward(params, stats, whole, self.call, True, record)
            return loss_of(values), (values, record.outputs, stats)

        return jax.jit(jax.value_and_grad(program(objective, self.pins), argnums=(0, 1), has_aux=True))

    def _updates_of(self, transform: Any) -> Callable[..., Any]:
        """Return the transform's update, lifted if it computes in a narrower type, as schedules that count do."""
        chosen: list[Callable[..., Any]] = []

        def update(grads: Any, state: Any, params: Any) -> Any:
            with raising(TRANSFORM, expected=OF_GRADIENTS):
                if not chosen:
                    lifts = pinned(transform.update, (grads, state, params))
                    chosen.append(program(transform.update, self.pins) if lifts else transform.update)
                return chosen[0](grads, state, params)

        return update

    def observe(self, net: Functional | None = None, probe: Probe | None = None) -> Iterator[tuple[str, Tensors]]:
        """All quantities of `numerics.quantities.QUANTITIES`, one after the other; those of training in several parts.

        Args:
            net: the network with other weights; by default the network itself.
            probe: the probe with other inputs; by default the probe itself.
        """
        net, arrays = net or self.net, moving(self.inputs if probe is None else inputs_of(probe)[0])
        training, reference = self.training, self.reference
        values, record = self.evaluate(net.params, net.stats, arrays)
        yield "output.eval", outputs(values, reference["output.eval"])
        yield "layer.eval", records(record, reference["layer.eval"], self.probe)
        if self.gradient is None:
            self.gradient = self._gradient_of(self.probe.loss.flax(output_layouts(values, reference["output.eval"])))
        del values, record
        tx, start, params, stats = training.transform, net.params, net.params, net.stats
        with raising(TRANSFORM, expected=OF_GRADIENTS):
            state = tx.init(start) if training.steps else None
        # PyTorch's optimizers leave a parameter without a gradient as it is. So does the check's own training here; a
        # transform of the caller's is judged by what it does.
        named = () if training.own else self.probe.idle
        idle, frozen = (
            set() if not names else _leaves_of(net, names)
            for names in ((*named, *self.probe.folded), (*(named and self.probe.frozen), *self.probe.folded))
        )
        for number in range(training.passes):
            (loss, (values, record, stats)), (grads, input_grads) = self.gradient(params, arrays, stats)
            grads = jax.tree.map(as_in_pytorch, grads)
            if number == 0:
                yield "output.train", outputs(values, reference["output.train"])
                yield "layer.train", records(record, reference["layer.train"], self.probe)
                yield "loss", {"loss": np.asarray(loss)}
            del values, record
            if number == 0:
                yield from self._gradients(net, (params, stats), (grads, input_grads))
            if not training.steps:
                break
            grads = _stopped(frozen, grads)
            changes, state = self.update(grads, state, params)
            params = optax.apply_updates(params, _without(idle, changes, grads))
            del grads, changes
            if step := training.done(number):
                yield from self._trained(net, params, state, step)

    def _gradients(
        self, net: Functional, held: tuple[PyTree, PyTree], gradients: tuple[PyTree, dict[str, jax.Array]]
    ) -> Iterator[tuple[str, Tensors]]:
        """Yield the quantities that are compared after the first backward pass."""
        (params, stats), (grads, input_grads), probe = held, gradients, self.probe
        torch_form = net.to_torch(grads, stats)
        self.trains_frozen = [name for name in probe.frozen if name in torch_form and torch_form[name].any()]
        trained = (name for name in self.parameters if name in torch_form and name not in probe.fixed)
        yield "gradient.parameter", {name: torch_form[name] for name in trained}
        del torch_form
        yield "gradient.input", input_gradients(probe, input_grads)
        torch_form = net.to_torch(params, stats)
        wanted = {*torch_form} if probe.tensors is None else {*probe.tensors}
        yield "statistics", {name: a for name, a in torch_form.items() if name in wanted - {*self.parameters}}

    def _trained(self, net: Functional, params: PyTree, state: PyTree, step: int) -> Iterator[tuple[str, Tensors]]:
        """Yield the quantities that are compared after a step of training."""
        probe = self.probe
        old, new = net.to_torch(net.params, net.stats), net.to_torch(params, net.stats)
        updates = {name: np.asarray(new[name] - old[name]) for name in (*self.parameters, *probe.idle) if name in new}
        del old, new
        yield "training.parameter", after(step, updates)
        del updates
        held = optimizer_tensors(state, lambda tree: net.to_torch(tree, net.stats), jax.tree.structure(params))
        both = {*self.parameters} - {*probe.fixed, *probe.idle}
        yield "training.state", after(step, {n: t for n, t in held.items() if n.partition("/")[2] in both})


def parameter_leaves(net: Functional) -> dict[str, set[int]]:
    """Return the places, among the leaves of the parameters, that make up each tensor; by name, parameters only."""
    leaves, tree = jax.tree.flatten(net.params)
    # In numpy: JAX would compile two programs for each shape.
    marks = [np.full(leaf.shape, i, leaf.dtype) for i, leaf in enumerate(leaves, 1)]
    zeros = [np.zeros_like(mark) for mark in marks]
    marked, blank = (net.to_torch(tree.unflatten(new), net.stats) for new in (marks, zeros))
    found = {
        name: np.flatnonzero(np.bincount((np.real(wide(a)) - np.real(wide(blank[name]))).astype(int).ravel()))
        for name, a in marked.items()
    }
    return {name: {int(i) - 1 for i in places if i} for name, places in found.items() if places.any()}


def as_in_pytorch(gradient: jax.Array) -> jax.Array:
    """Return PyTorch's gradient: for complex numbers JAX gives the conjugate."""
    return gradient.conj() if jnp.iscomplexobj(gradient) else gradient


def _leaves_of(net: Functional, names: Collection[str]) -> set[int]:
    """Return the places of the parameters that make up these tensors and no others."""
    leaves = parameter_leaves(net)
    others = {i for name, places in leaves.items() if name not in names for i in places}
    return {i for name in names for i in leaves.get(name, ())} - others


def _stopped(frozen: Collection[int], grads: PyTree) -> PyTree:
    """Return the gradients with zeros in the frozen places, which must not add to a norm."""
    if not frozen:
        return grads
    slopes, tree = jax.tree.flatten(grads)
    return tree.unflatten([jnp.zeros_like(g) if i in frozen else g for i, g in enumerate(slopes)])


def _without(idle: Collection[int], changes: PyTree, grads: PyTree) -> PyTree:
    """Return the changes with zeros in the idle places whose gradient is zero: decay must not move these tensors."""
    if not idle:
        return changes
    new, tree = jax.tree.flatten(changes)
    slopes = tree.flatten_up_to(grads)
    stay = (i in idle and not jnp.any(slope) for i, slope in enumerate(slopes))
    return tree.unflatten([jnp.zeros_like(c) if still else c for c, still in zip(new, stay, strict=True)])


# PyTorch's names for the tensors of optax's states, by class and field.
STATES = {
    (node.name.removeprefix("optax."), field): name
    for row in OPTIMIZERS
    for node in row.nodes
    for field, name in node.tensors.items()
    if not node.scaled
}


def optimizer_tensors(state: PyTree, to_torch: Callable[[PyTree], Tensors], structure: object) -> Tensors:
    """The tensors of an optax state that have a name in PyTorch, by that name: `exp_avg/conv1.weight`."""
    found: Tensors = {}
    if isinstance(state, State):
        trees = state.tensors
    elif isinstance(state, tuple):
        fields = zip(getattr(state, "_fields", range(len(state))), state, strict=True)
        trees = {}
        for field, value in fields:
            if name := STATES.get((type(state).__name__, str(field))):
                trees[name] = value
            else:
                found |= optimizer_tensors(value, to_torch, structure)
    else:
        return found
    for name, tree in trees.items():
        if jax.tree.structure(tree) == structure:
            found |= {f"{name}/{parameter}": array for parameter, array in to_torch(tree).items()}
    return found
