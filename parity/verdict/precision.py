"""Measures what the networks compute in working precision, float32 and bfloat16, without a verdict.

Every side, PyTorch and each Flax port, runs in the type, on the same weights and inputs rounded to it, and is compared
with PyTorch in float64. The effect of rounding alone is measured on the same side: it runs again in that type, with
weights and inputs moved by one unit in the last place of that type (`bounds.perturbed`). An error of a few times this
response comes from the type; an error of hundreds of times comes from a part that computes in a narrower type, or from
a mistake.

Policies. In float32 everything is float32, except layers that the model itself sets to another type, which therefore
show. In bfloat16 weights, activations and gradients are bfloat16. BatchNorm's parameters and statistics are float32; so
are all parameters of Flax networks that `ports.create` builds, whose layers round them at each use. Every library layer
of anybody's Flax model gets `dtype=bfloat16`. The loss is computed in float32 from the network's output.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import torch
from torch import nn
from torch.utils._pytree import tree_map

from parity.numerics import bounds
from parity.numerics.bounds import Responses
from parity.numerics.layouts import Tensors, default_layout, leaves, mapped, rebuilt
from parity.numerics.quantities import Loss, Observation, Probe, Training
from parity.reports.report import Precision
from parity.running import flax as run_flax
from parity.running import memory
from parity.running import pytorch as run_pytorch
from parity.running.device import TF32_UNITS, Crossing
from parity.running.flax import Functional
from parity.running.subject import Progress, Subject
from parity.running.taps import Tap
from parity.verdict import flips
from ports import UserError, weights

DTYPES: dict[str, Any] = {"float32": np.float32, "bfloat16": ml_dtypes.bfloat16}
TORCH = {"float32": torch.float32, "bfloat16": torch.bfloat16}

POLICIES = {"float32": "float32", "bfloat16": "bfloat16 but for BatchNorm and the loss"}

QUANTITIES = ("output.eval", "output.train", "loss", "gradient.parameter", "gradient.input", "statistics")

# Runs with moved weights and inputs; the response is the root mean square of their distances.
DRAWS = 3

# The exceptions of a side in a type that it was not written for.
RAISED = (UserError, TypeError, ValueError, RuntimeError, IndexError)

ONCE = Training(0, dict, None)  # one pass, no step

# Takes a type and weights in the torch form, and gives a Flax network in that type.
Build = Callable[[str, Mapping[str, np.ndarray]], Functional]
# Takes weights and a probe, and gives a side's results, and which of its ReLUs are on.
Side = Callable[[Mapping[str, np.ndarray], Probe], tuple[Observation, Sequence[Any] | None]]


@dataclass(frozen=True)
class Policy:
    """The working precisions that are measured.

    Attributes:
        dtypes: `float32`, `bfloat16`, without repetition.
        tf32: with True, inputs and weights of float32 are moved by one unit in the last place of TF32.
        matmul: JAX's precision of products as the caller set it; `tf32` takes precedence.
        decide: whether the verdict is no parity if a port is less precise than PyTorch.

    Raises:
        UserError: an unknown type.
    """

    dtypes: tuple[str, ...] = ()
    tf32: bool | None = None
    matmul: str | None = None
    decide: bool = False

    def __post_init__(self) -> None:
        if unknown := [dtype for dtype in self.dtypes if dtype not in DTYPES]:
            expected = " or ".join(DTYPES)
            raise UserError(f"dtype: got {unknown[0]!r}, expected {expected} (the verdict is float64's at all times)")

    @property
    def products(self) -> Callable[[], AbstractContextManager[Any]]:
        """A context that sets JAX's precision of products."""
        return nullcontext if self.tf32 is not None else partial(jax.default_matmul_precision, self.matmul)


def measure(subject: Subject, policy: Policy, progress: Progress) -> tuple[Precision, ...]:
    """Return the errors of every side in every type against the reference, which is in float64."""
    if not policy.dtypes:
        return ()
    reference, fed = subject.reference, subject.probe
    progress("working precision: the reference in float64")
    parameters = {name: p.detach() for name, p in run_pytorch.parameters(reference, fed).items()}
    exact, on = _pytorch(reference)({}, fed)
    assert on is not None
    sizes = Responses(exact, {}).sizes
    rows = []
    for dtype in policy.dtypes:
        net = cast(reference, dtype, subject.types)
        state, probe = weights.read(net), fed_in(fed, dtype)
        units = TF32_UNITS if policy.tf32 and dtype == "float32" else 1
        moved = [bounds.perturbed(state, probe, subject.seed * DRAWS + draw, units) for draw in range(DRAWS)]
        for tensors, _ in moved:
            tensors |= {name: tensors[first] for name, first in run_pytorch.tied(net).items()}
        for side in ("pytorch", *subject.candidates):
            progress(f"working precision: {side} in {dtype}")
            try:
                flax = partial(_flax, dtype=dtype, exact=exact, parameters=list(parameters), products=policy.products)
                run = _pytorch(net) if side == "pytorch" else flax(subject.candidates[side].in_type)
                first, theirs = run(state, probe)
                responses = Responses(_at_least(dtype, first), {name: state[name] for name in parameters})
                for draw in moved:
                    responses.add(run(*draw)[0].items())
            except RAISED as error:  # the verdict stands
                rows.append(
                    Precision(side, dtype, "(none)", f"({does_not_run(error)})", np.inf, 0.0, np.inf, np.inf, None, 0)
                )
                continue
            changed, total = flips.count(on, theirs)
            rows += [
                Precision(side, dtype, quantity, *_worst(quantity, first, exact, responses, sizes), changed, total)
                for quantity in QUANTITIES
                if exact[quantity]
            ]
            del run, first, responses
            memory.release()
    return tuple(rows)


def does_not_run(error: Exception) -> str:
    """Return the text about a side that raises in a type."""
    cause = error.__cause__ or error  # for a user's code, the exception that it raised
    said = str(cause).strip().partition("\n")[0]
    return f"does not run: {type(cause).__name__}: {said}"


def _worst(
    quantity: str,
    got: Observation,
    exact: Observation,
    responses: Responses,
    sizes: Callable[[str], dict[str, float]],
) -> tuple[str, float, float, float, float]:
    """The tensor whose error is the largest multiple of its response, as in `Precision`, and the largest error."""
    worst: tuple[str, float, float, float] = ("(none)", 0.0, 0.0, -1.0)
    size, largest = sizes(quantity), 0.0
    for name, expected in exact[quantity].items():
        if name not in got[quantity]:
            return f"{name} (absent)", np.inf, 0.0, np.inf, np.inf
        far, response = bounds.distance(got[quantity][name], expected), responses.response(quantity, name)
        multiple = far / response if response and np.isfinite(far) else (np.inf if far else 0.0)
        scale = size[name] or 1.0
        largest = max(largest, far / scale)
        worst = max(worst, (name, far / scale, response / scale, multiple), key=lambda w: w[3])
    name, error, response, multiple = worst
    return name, error, response, multiple, largest


def _at_least(dtype: str, run: Observation) -> Observation:
    """Convert to at least the type that was asked for, so that the unit in the last place is that of this type."""

    def widened(array: np.ndarray) -> np.ndarray:
        narrow = bounds.floating(array) and array.dtype.itemsize < np.dtype(DTYPES[dtype]).itemsize
        return array.astype(DTYPES[dtype]) if narrow else array

    return {q: {name: widened(array) for name, array in tensors.items()} for q, tensors in run.items()}


def cast(reference: nn.Module, dtype: str, types: Mapping[str, str] | None = None) -> nn.Module:
    """A copy of a PyTorch network in this type; BatchNorm's parameters and statistics are float32.

    So are buffers that no checkpoint has, such as tables: a model that is loaded in bfloat16 computes them in float32.

    Args:
        types: of its tensors, if the network has its own policy for bfloat16.
    """
    net = copy.deepcopy(reference)
    for module in net.modules():
        own = torch.float32 if isinstance(module, nn.modules.batchnorm._BatchNorm) else TORCH[dtype]
        tables = {name: module._buffers[name] for name in module._non_persistent_buffers_set}
        module._apply(lambda t, own=own: t.to(own) if t.is_floating_point() else t, recurse=False)
        module._buffers |= {n: t.float() if t is not None and t.is_floating_point() else t for n, t in tables.items()}
    if types and dtype == "bfloat16":
        exact = {**dict(reference.named_parameters()), **dict(reference.named_buffers())}
        for name, tensor in (*net.named_parameters(), *net.named_buffers()):
            if name in types and tensor.is_floating_point():
                tensor.data = exact[name].data.to(getattr(torch, types[name]))
    return net


def fed_in(fed: Probe, dtype: str) -> Probe:
    """The probe with its inputs rounded to a type, and a loss that is computed in float32 at least."""

    def rounded(_: str, array: np.ndarray) -> np.ndarray:
        return array.astype(DTYPES[dtype]) if array.dtype.kind == "f" else array

    held = (*leaves(fed.inputs, "input"), *leaves(dict(fed.keywords), "keyword"))
    return replace(
        fed,
        inputs=mapped(fed.inputs, rounded),
        keywords=mapped(dict(fed.keywords), rounded, "keyword"),
        torch_call=replace(fed.torch_call, keywords=rebuilt(dict(fed.torch_call.keywords), rounded)),
        flax_call=replace(fed.flax_call, keywords=rebuilt(dict(fed.flax_call.keywords), rounded)),
        pins=None,
        layouts={**{name: default_layout(array) for name, array in held}, **fed.layouts},
        loss=Loss(
            lambda values: fed.loss.torch(tree_map(_widened_torch, values)),
            lambda layouts: lambda values: fed.loss.flax(layouts)(jax.tree.map(_widened_jax, values)),
        ),
    )


def widened(fed: Probe) -> Probe:
    """Return a probe with the same numbers in float64."""

    def wide(_: str, array: np.ndarray) -> np.ndarray:
        return array.astype(np.float64) if bounds.floating(array) else array

    return replace(
        fed,
        inputs=mapped(fed.inputs, wide),
        keywords=mapped(dict(fed.keywords), wide, "keyword"),
        torch_call=replace(fed.torch_call, keywords=rebuilt(dict(fed.torch_call.keywords), wide)),
    )


def _widened_torch(value: Any) -> Any:
    return value.float() if isinstance(value, torch.Tensor) and value.dtype == torch.bfloat16 else value


def _widened_jax(value: Any) -> Any:
    return value.astype(jnp.float32) if getattr(value, "dtype", None) == jnp.bfloat16 else value


def _pytorch(net: nn.Module) -> Side:
    """A network in its current type. Weights, if there are any, are written into it."""

    def side(state: Mapping[str, np.ndarray], fed: Probe) -> tuple[Observation, Sequence[Any] | None]:
        if state:
            weights.write(net, dict(state))
        found: Observation = {}
        with Crossing():
            run = run_pytorch.observe(net, fed, ONCE, ())
            for quantity, tensors in run:
                found[quantity] = tensors
                if quantity == "layer.eval":
                    break
            with flips.InPyTorch() as relus:  # what follows is in train mode
                found.update(_kept(run))
        return {quantity: found[quantity] for quantity in QUANTITIES}, relus.on

    return side


def _kept(run: Iterator[tuple[str, Tensors]]) -> Iterator[tuple[str, Tensors]]:
    return ((quantity, tensors) for quantity, tensors in run if quantity in QUANTITIES)


def _flax(
    build: Build,
    dtype: str,
    exact: Observation,
    parameters: Sequence[str],
    products: Callable[[], AbstractContextManager[Any]],
) -> Side:
    """Return a network that is compiled at its first run, without JAX's x64 mode, as in normal use.

    Args:
        products: sets the precision of products.
    """
    compiled: list[Callable[..., tuple[Observation, Sequence[Any] | None]]] = []

    def side(state: Mapping[str, np.ndarray], fed: Probe) -> tuple[Observation, Sequence[Any] | None]:
        with jax.enable_x64(False), products():
            net = build(dtype, state)
            if not compiled:
                compiled.append(_compiled(net, fed, exact, parameters))
            return compiled[0](net, fed)

    return side


def _compiled(net: Functional, fed: Probe, exact: Observation, parameters: Sequence[str]) -> Callable[..., Any]:
    (given, call), lost = run_flax.inputs_of(fed), []

    @jax.jit
    def evaluate(params: Any, stats: Any, arrays: Any) -> Any:
        return net.forward(params, stats, run_flax.with_moving(given, arrays), call, False, Tap())[0]

    values = evaluate(net.params, net.stats, run_flax.moving(given))
    loss_of = fed.loss.flax(run_flax.output_layouts(values, exact["output.eval"]))

    def objective(params: Any, arrays: Any, stats: Any) -> Any:
        whole = run_flax.with_moving(given, arrays)
        with flips.in_jax() as relus:
            values, stats = net.forward(params, stats, whole, call, True, Tap())
        lost.append(relus.lost)
        return loss_of(values), (values, relus.on, stats)

    gradient = jax.jit(jax.value_and_grad(objective, argnums=(0, 1), has_aux=True))

    def run(net: Functional, fed: Probe) -> tuple[Observation, Sequence[Any] | None]:
        arrays = run_flax.moving(run_flax.inputs_of(fed)[0])
        found = {"output.eval": run_flax.outputs(evaluate(net.params, net.stats, arrays), exact["output.eval"])}
        (loss, (values, on, stats)), (grads, input_grads) = gradient(net.params, arrays, net.stats)
        torch_form = net.to_torch(jax.tree.map(run_flax.as_in_pytorch, grads), stats)
        found["output.train"] = run_flax.outputs(values, exact["output.train"])
        found["loss"] = {"loss": np.asarray(loss)}
        found["gradient.parameter"] = {name: torch_form[name] for name in parameters if name in torch_form}
        found["gradient.input"] = run_flax.input_gradients(fed, input_grads)
        torch_form = net.to_torch(net.params, stats)
        found["statistics"] = {name: array for name, array in torch_form.items() if name in exact["statistics"]}
        return found, None if any(lost) else [np.asarray(part) for part in on]

    return run
