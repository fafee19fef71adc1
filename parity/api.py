"""What a user calls: `check`, `check_network`, `assert_parity` and `move`."""

from __future__ import annotations

import datetime
import functools
import importlib.metadata
import os
import platform
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, TypeVar, Unpack

import torch

from parity import moving, pipeline, subjects
from parity.diagnosis import weights as weights_diagnosis
from parity.numerics.bounds import MULTIPLE
from parity.options import (
    LIVE,
    NAMED,
    PAIR,
    MoveSettings,
    NetworkOptions,
    NetworkSettings,
    Options,
    PairOptions,
    PairSettings,
    move_record,
    record,
)
from parity.pairing.models import PairedModels
from parity.reports.report import Model, Report
from parity.running import calling, isolation, losses, memory, objects
from parity.running import device as devices
from parity.running.flax_ports import is_flax
from parity.verdict import precision, transfer
from parity.verdict.precision import Policy
from ports.errors import UserError
from ports.weights.layers.kinds import composed_apart

T = TypeVar("T")

# Options with which a pair can be called even if no inputs follow it.
CALLED = ("keywords", "torch_keywords", "flax_keywords")


def check(torch_model: Any, flax_model: Any = None, *inputs: Any, **options: Unpack[PairSettings]) -> Report:
    """Prove in float64 that a Flax model computes what a PyTorch model computes, or name the first layer that does not.

    `check(torch_model, flax_model, *inputs)` takes anybody's models. The check compares the weights first, as they are.
    Then it runs both with PyTorch's weights. Tensors whose numbers are all equal get random numbers, because equal
    numbers hide mistakes. Networks of this package need no inputs; see `check_network`.

    The settings of the caller (`torch.no_grad()`, `jax.debug_nans`, …) do not change the verdict, and the check puts
    all of them back. One check runs at a time: a second one, in another thread, waits. `running.isolation` says what
    other threads may do meanwhile.

    Args:
        torch_model: the reference.
        flax_model: the port: an `nnx.Module`, Linen's `(module, variables)`, or an object of a library that holds a
            Linen `module` and its `params` (`transformers.FlaxBertModel`): it is called as a user calls it.
        inputs: what both are called with, in PyTorch's layout: arrays, tensors, or nested tuples and dicts of them.
        options: the fields of `parity.PairOptions`, as keywords.

    Returns: A report that is true if everything agrees.

    Raises:
        UserError: the check cannot run: an option that this kind of check does not use, weights that hold NaN, layers
            that cannot be paired, a model that raises, a missing device, a check inside a check.
    """
    live = () if flax_model is None else (flax_model, *inputs)
    own = isinstance(torch_model, torch.nn.Module)
    if not own or not ((inputs and not is_flax(inputs[0])) or any(options.get(name) for name in CALLED)):
        return _check_network(torch_model, live, options)
    asked = record(PAIR, PairOptions, options)
    if flax_model is None:
        raise UserError("got a PyTorch model alone, expected a Flax model and inputs after it")
    return _report(asked, lambda policy: _check_pair(torch_model, flax_model, inputs, asked, policy))


def check_network(network: Any, *live: Any, **options: Unpack[NetworkSettings]) -> Report:
    """Prove in float64 that networks of this package are the same in PyTorch and in Flax.

    `check_network("resnet50")` builds a named network in every port, from one set of weights.
    `check_network(torch_net, nnx_net)` takes live networks of `ports.create`.

    Args:
        network: a name, a description, or a live PyTorch network.
        live: Flax networks, where the first argument is a live PyTorch network.
        options: the fields of `parity.NetworkOptions`, as keywords.

    Returns: A report that is true if everything agrees.

    Raises:
        UserError: the question cannot be put: an unknown name, an option that this kind of check does not use, an
            unreadable file, weights that do not fit or hold NaN, no memory for it, a batch with one value a channel.
    """
    return _check_network(network, live, options)


def assert_parity(torch_model: Any, flax_model: Any = None, *inputs: Any, **options: Unpack[PairSettings]) -> None:
    """Run `check`, for tests.

    Raises:
        AssertionError: the models differ, or the check cannot tell; the message is the table.
        UserError: the question cannot be put.
    """
    __tracebackhide__ = True
    report = check(torch_model, flax_model, *inputs, **options)
    if not report:
        raise AssertionError(report.failure())


def move(
    torch_model: torch.nn.Module,
    flax_model: Any,
    *inputs: Any,
    **options: Unpack[MoveSettings],
) -> Any:
    """Move the weights and statistics of anybody's PyTorch model into their Flax model, layer by paired layer.

    The arguments are those of `check`. Both models run in float64, to see which layer is which (`pairing.ordering`).
    The second bias of PyTorch's recurrent layers is folded into the first, in PyTorch's type. The Flax model keeps its
    own types: a number that one of them cannot hold is refused, never rounded. Like a check, it waits for one that runs
    in another thread, and puts all settings back.

    Args:
        torch_model: PyTorch's model.
        flax_model: the Flax model, as `check` takes it.
        inputs: what both are called with, in PyTorch's layout.
        options: the fields of `parity.MoveOptions`, as keywords.

    Returns:
        the NNX model, changed in place; Linen's `(module, new variables)`; a copy of a model object.

    Raises:
        UserError: an unknown option; layers that cannot be paired, or whose names say one thing and whose use says
            another; tensors that do not fit in shape or type. Nothing was written then.
    """
    asked = move_record(options)
    with isolation.isolated(), composed_apart(torch_model.modules()):
        other = objects.opened(flax_model)
        fed = calling.prepared(torch_model, other, inputs, asked, losses.projection(0))
        return other.written(moving.moved(torch_model, other.net, fed, asked.names))


def paired(
    torch_model: torch.nn.Module, flax_model: Any, *inputs: Any, read: Callable[[PairedModels], T], **options: Any
) -> T:
    """Return what a function reads from a pair, once values or computing have confirmed which tensor is which.

    Args:
        read: runs in the settings of the check.
        options: the fields of `parity.MoveOptions`, as keywords.

    Raises:
        UserError: as `move`.
    """
    asked = move_record(options)
    with isolation.isolated(), composed_apart(torch_model.modules()):
        other = objects.opened(flax_model)
        fed = calling.prepared(torch_model, other, inputs, asked, losses.projection(0))
        return read(moving.settled(torch_model, other.net, fed, asked.names))


def _check_network(network: Any, live: tuple[Any, ...], options: Mapping[str, Any]) -> Report:
    kind = LIVE if isinstance(network, torch.nn.Module) else NAMED
    asked = record(kind, NetworkOptions, options)

    def found(policy: Policy) -> Model:
        return pipeline.run(subjects.of_network(network, live, asked), policy, asked.progress)

    return _report(asked, found)


def _check_pair(
    torch_model: torch.nn.Module, flax_model: Any, inputs: tuple[Any, ...], options: PairOptions, policy: Policy
) -> Model:
    with composed_apart(torch_model.modules()):
        return _checked(subjects.own_pair(torch_model, flax_model, inputs, options), options, policy)


def _checked(own: subjects.OwnPair, options: PairOptions, policy: Policy) -> Model:
    pairing = own.both.pairing
    judged = transfer.judge(own.both.port, pairing, own.trained_biases)
    told = weights_diagnosis.findings(own.both.port, pairing, judged, own.given)
    lines = tuple(str(pairing).splitlines())
    if judged.misfits:
        return Model(own.title, (judged.row,), findings=tuple(told), pairing=lines)
    found = pipeline.run(subjects.of_pair(own, options), policy, options.progress)
    ports_names = {name: own_name for own_name, name in own.both.blocks.items()}
    ports_names |= {pair.torch.name: pair.flax.name for pair in pairing.pairs}
    more = (
        replace(f, fix=tuple(replace(fix, module=ports_names.get(fix.module, fix.module)) for fix in f.fix))
        for f in found.findings
        if f.trap or f.layer not in judged.tied
    )
    return replace(found, rows=(judged.row, *found.rows), findings=(*told, *more), pairing=lines)


def _report(options: Options, found: Callable[[Policy], Model]) -> Report:
    """Return the report of one check, which runs alone and in known settings."""
    policy = Policy(options.types, options.tf32, isolation.matmul_precision(), options.decide)
    devices.require(options.device, options.tf32, policy.dtypes)
    subjects.plan(options)
    with isolation.isolated(options.device, options.tf32, options.progress):
        begin = time.monotonic()
        model = found(policy)
        seconds = round(time.monotonic() - begin, 2)
    memory.release()
    model = replace(model, seconds=seconds, note=model.note + _noted(policy, options.device))
    return Report((model,), environment(options.device))


def _noted(policy: Policy, device: str) -> str:
    """Return what a report's note says of the working precisions and of the device."""
    done = "judged" if policy.decide else "measured"
    said = [f"{done} in {precision.POLICIES[dtype]}" for dtype in policy.dtypes]
    said += [] if policy.tf32 is None else [f"TF32 {'on' if policy.tf32 else 'off'}"]
    said += ["on the GPU"] if device == "gpu" else []
    return "".join(f", {text}" for text in said)


@functools.cache
def _versions() -> dict[str, str]:
    packages = ("torch", "jax", "jaxlib", "flax", "optax", "numpy")
    return {name: importlib.metadata.version(name) for name in packages}


def environment(device: str = "cpu") -> dict[str, Any]:
    """Return what the check ran on."""
    return {
        **_versions(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "device": devices.described(device),
        "multiple": MULTIPLE,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }
