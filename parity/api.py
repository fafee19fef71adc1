"""The check: runs a reference and its ports in float64 and holds every tensor against its derived bound."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

import ports as networks
from parity.numerics.bounds import MULTIPLE
from parity.numerics.quantities import Probe
from parity.pairing import pairs
from parity.reports.report import Model, Report
from parity.running import device as devices
from parity.running import isolation, memory, training
from parity.running import probes as probe
from parity.running import pytorch as run_pytorch
from parity.running.flax_ports import FLAX_PORTS, is_flax, port_of
from parity.verdict import precision
from parity.verdict.compare import Progress, compare
from ports import families
from ports.errors import UserError

PORTS, BATCH = ("nnx", "linen"), 2

# The kinds of check, as messages call them, and the options that not all of them use.
NAMED, LIVE, PAIR = "a named network", "live networks of this package", "two live models with inputs behind them"
USED = {
    **dict.fromkeys(("ports", "weights"), (NAMED,)),
    **dict.fromkeys(("images", "image_size", "batch"), (NAMED, LIVE)),
    **dict.fromkeys(("names", "loss", "layouts", "keywords", "accept"), (PAIR,)),
}

# Height and width of an image: what Pillow's formats can hold.
LARGEST = 65535


def check(
    model: str | Any | torch.nn.Module,
    *candidates: Any,
    ports: Sequence[str] | None = None,
    images: str | Path | None = None,
    image_size: tuple[int, int] | None = None,
    batch: int | None = None,
    steps: int = 3,
    seed: int = 0,
    weights: str | Path | Mapping[str, np.ndarray] | None = None,
    names: Mapping[str, str] | None = None,
    loss: tuple[Callable[[Any], Any], Callable[[Any], Any]] | None = None,
    layouts: Mapping[str, str] | None = None,
    keywords: Mapping[str, Any] | None = None,
    accept: Sequence[str] = (),
    optimizer: str | Callable[..., Any] = "sgd",
    tx: Any = None,
    clip_grad_norm: float | None = None,
    accumulate: int = 1,
    dtypes: Sequence[str] = (),
    tf32: bool | None = None,
    device: str = "cpu",
    progress: Progress = lambda _: None,
) -> Report:
    """Proves in float64 that Flax networks are the same as a PyTorch network, or names the first layer that is not.

    `check(torch_model, flax_model, *inputs)` takes anybody's models: an `nnx.Module` or Linen's `(module, variables)`,
    with the inputs in PyTorch's layout. `check("resnet50")` builds a named network of this package in every port, from
    one set of weights. `check(torch_net, nnx_net)` takes live networks of this package without inputs.

    Of anybody's models the weights are compared first, as they are. Then all that is run is compared with PyTorch's
    weights in both, and random numbers in tensors whose numbers are all equal, for these hide mistakes.

    The settings of the caller (`torch.no_grad()`, `jax.debug_nans`, …) do not change the verdict, and the check puts
    all of them back. One check runs at a time: a second one, in another thread, waits. `running.isolation` says what
    other threads may do meanwhile.

    Args:
        model: a named network, a description, or a live PyTorch model.
        candidates: one live Flax model and the inputs; or live Flax networks of this package.
        ports: which ports of a named network; by default NNX and Linen.
        images: a file or a folder of photographs; by default two of this package.
        image_size: height and width; by default the network's height and an odd width (224x193, 32x27).
        batch: number of images; by default 2.
        steps: of training.
        seed: of initial weights, labels and the signs of the perturbation.
        weights: the torch form, or a file of them; by default initial weights with random BatchNorm parameters and
            statistics. (Given weights are used as they are.)
        names: Flax's layer names by PyTorch's, where they cannot be paired with certainty (`pairing.matching.pair`).
        loss: what is differentiated, in PyTorch and in JAX: two functions from a model's output to a number. By default
            the mean of every output times fixed random numbers.
        layouts: by the name of an input (`input`; of several `input.0`, `input.key`) how Flax holds it:
            `channels_last` (the default from four dimensions on), `same` or `batch_second`.
        keywords: what is passed by name to both models.
        accept: names of `parity.traps.catalogue.LAYERS`: differences that are meant.
        optimizer: a name of `running.training.OPTIMIZERS` (SGD with momentum and weight decay, Adam, …); or one's own,
            a function from PyTorch's parameters to an optimizer of `torch.optim`, or to (optimizer, scheduler).
        tx: the optax transform that the ports train with, to hold one's own against PyTorch's optimizer; by default
            that of `ports.optim` which computes the same.
        clip_grad_norm: PyTorch clips its gradients to this norm (`torch.nn.utils.clip_grad_norm_`) before a step.
        accumulate: PyTorch sums the gradients of so many passes before a step.
        dtypes: working precisions, `float32` and `bfloat16`, in which every side is measured against float64 besides
            (`verdict.precision` has the policies). They decide nothing.
        tf32: whether float32's products are rounded to TF32, in both frameworks; by default as each has it. NVIDIA's
            GPUs only.
        device: `cpu` or `gpu`: where both frameworks run.
        progress: told what is about to be done.

    Returns:
        A report that is true where everything agrees.

    Raises:
        UserError: the question cannot be put: an unknown name, an option that this kind of check does not use
            (`USED`), an unreadable file, weights that do not fit or hold NaN, no memory for it, a batch with one value
            a channel, layers that cannot be paired, a model that raises,
            a device that is not there, a check inside a check.
    """
    dtypes = tuple(dict.fromkeys([dtypes] if isinstance(dtypes, str) else dtypes))
    kind = _kind(model, candidates, keywords)
    given = {"ports": ports, "images": images, "image_size": image_size, "batch": batch, "weights": weights}
    given |= {"names": names, "loss": loss, "layouts": layouts, "keywords": keywords, "accept": accept}
    _require_used(kind, given)
    ports, batch = PORTS if ports is None else ports, BATCH if batch is None else batch
    require(ports, batch, steps, seed)
    precision.require(dtypes)
    devices.require(device, tf32, dtypes)
    matmul = isolation.matmul_precision()
    working = partial(precision.measure, dtypes=dtypes, seed=seed, tf32=tf32, matmul=matmul, progress=progress)
    training.require(optimizer, tx)
    train = partial(
        training.make, steps=steps, optimizer=optimizer, tx=tx, clip_grad_norm=clip_grad_norm, accumulate=accumulate
    )
    with isolation.isolated(device, tf32, progress):
        if kind == PAIR:
            if not candidates:
                raise UserError("got a PyTorch model alone, expected a Flax model and inputs behind it")
            assert isinstance(model, torch.nn.Module)
            found = pairs.check(
                model,
                candidates[0],
                candidates[1:],
                port=port_of(candidates[0]),
                names=names,
                loss=loss,
                layouts=layouts,
                keywords=keywords,
                accept=accept,
                train=train,
                seed=seed,
                working=working,
                progress=progress,
            )
        else:
            found = _named(model, candidates, ports, images, image_size, batch, seed, weights, train, working, progress)
    memory.release()
    return Report((replace(found, note=found.note + noted(dtypes, tf32, device)),), environment(device))


def _kind(model: Any, candidates: Sequence[Any], keywords: Any) -> str:
    """Return which kind of check the arguments ask for."""
    if not isinstance(model, torch.nn.Module):
        return NAMED
    return PAIR if (len(candidates) > 1 and not is_flax(candidates[1])) or keywords else LIVE


def _require_used(kind: str, given: Mapping[str, Any]) -> None:
    """Raise where an option is given that this kind of check does not use.

    Raises:
        UserError: all such options, and what each is for.
    """
    unused: dict[str, list[str]] = {}
    for name, value in given.items():
        # Empty `names` ask for nothing; empty `weights` would be weights.
        is_given = bool(value) if USED[name] == (PAIR,) else value is not None
        if is_given and kind not in USED[name]:
            unused.setdefault(" or ".join(USED[name]), []).append(name)
    if unused:
        said = "; ".join(f"{', '.join(names)}: only for {kinds}" for kinds, names in unused.items())
        raise UserError(f"got {kind}: {said}")


def noted(dtypes: Sequence[str], tf32: bool | None, device: str) -> str:
    """What a report's note says of the policies of working precision and of the device."""
    said = [f"measured in {precision.POLICIES[dtype]}" for dtype in dtypes]
    said += [] if tf32 is None else [f"TF32 {'on' if tf32 else 'off'}"]
    said += ["on the GPU"] if device == "gpu" else []
    return "".join(f", {text}" for text in said)


def move(
    torch_model: torch.nn.Module,
    flax_model: Any,
    *inputs: Any,
    names: Mapping[str, str] | None = None,
    layouts: Mapping[str, str] | None = None,
    keywords: Mapping[str, Any] | None = None,
) -> Any:
    """Move the weights and statistics of anybody's PyTorch model into their Flax model, layer by paired layer.

    The arguments are those of `check`. Both models run in float64, to see which layer is which (`pairing.ordering`).
    The second bias of PyTorch's recurrent layers is folded into the first, in PyTorch's type. The Flax model keeps its
    own types: a number that one of them cannot hold is refused, never rounded. Like a check, it waits for one that runs
    in another thread, and puts all settings back.

    Returns:
        the NNX model, changed in place, or Linen's `(module, new variables)`.

    Raises:
        UserError: layers that cannot be paired, or whose names say one thing and whose use says another; tensors that
            do not fit in shape or type. Nothing was written then.
    """
    with isolation.isolated():
        return pairs.move(torch_model, flax_model, inputs, port_of(flax_model), names, layouts, keywords)


def _named(
    model: str | Any | torch.nn.Module,
    candidates: Sequence[Any],
    ports: Sequence[str],
    images: str | Path | None,
    image_size: tuple[int, int] | None,
    batch: int,
    seed: int,
    weights: str | Path | Mapping[str, np.ndarray] | None,
    train: training.Maker,
    working: Callable[..., Any],
    progress: Progress,
) -> Model:
    """The check of networks of this package."""
    begin = time.monotonic()
    spec = _spec(model)
    size = _size(spec, images, image_size)
    memory.require(spec, batch, size)
    reference, live = _networks(model, spec, candidates, ports, seed, weights)
    fed = probe.of_spec(spec, batch=batch, size=size, seed=seed, images=images)
    # This package's networks, as they are created here, change nothing in place; a live one may have been changed.
    fed = replace(fed, in_place=isinstance(model, torch.nn.Module))
    if not isinstance(model, torch.nn.Module) and weights is None:
        progress("random BatchNorm parameters and statistics")
        randomise(reference, fed, seed)
    state = networks.weights.read(reference)
    _finite(state)
    builders = live or {port: partial(_built, spec, port, state) for port in dict.fromkeys(ports)}
    result = compare(reference, builders, fed, train(reference, fed), seed=seed, progress=progress)
    if live:
        in_type = {port_of(net): partial(_live, net) for net in candidates}
    else:
        in_type = {port: lambda dtype, state, port=port: _built(spec, port, state, dtype) for port in builders}
    result["precision"] = working(reference, in_type, fed)
    what, of = ("image" if families.takes_images(spec) else "input"), "x".join(map(str, size))
    note = f"{batch} {what}{'s' if batch > 1 else ''} of {of}, seed {seed}"
    return Model(spec.name, note=note, seconds=round(time.monotonic() - begin, 2), **result)


def _size(spec: Any, images: Any, image_size: tuple[int, int] | None) -> tuple[int, ...]:
    """Return the size of the probe.

    Raises:
        UserError: an image that is too small or too large; images for a network that takes none, or of other channels.
    """
    size = image_size or probe.default_size(spec)
    if not families.takes_images(spec):
        if images is not None or image_size is not None:
            raise UserError(f"{spec.name}: takes no images; leave out images and image_size")
        return size
    if min(size) < 1 or max(size) > LARGEST:
        raise UserError(f"image size: got {size[0]}x{size[1]}, expected 1 to {LARGEST} pixels")
    if spec.in_channels not in (1, 3):
        raise UserError(f"{spec.name}: photographs have 1 or 3 channels, the network takes {spec.in_channels}")
    return size


def require(ports: Sequence[str], batch: int, steps: int, seed: int) -> None:
    """Raises where options cannot be right for any network.

    Raises:
        UserError: an unknown port or none, a number that is out of range.
    """
    if unknown := [port for port in ports if port not in FLAX_PORTS]:
        raise UserError(f"unknown port {unknown[0]!r}; expected {' or '.join(FLAX_PORTS)}")
    if not ports:
        raise UserError(f"ports: got none, expected {' or '.join(FLAX_PORTS)}")
    for name, value, least in (("batch", batch, 1), ("steps", steps, 0), ("seed", seed, 0)):
        if not isinstance(value, int) or not least <= value < 2**63:
            raise UserError(f"{name}: got {value!r}, expected a whole number from {least}")


def assert_parity(model: Any, *candidates: Any, **options: Any) -> None:
    """`check`, for tests.

    Raises:
        AssertionError: the networks differ, or the check cannot tell; the message is the table.
        UserError: the question cannot be put.
    """
    __tracebackhide__ = True
    report = check(model, *candidates, **options)
    if not report:
        raise AssertionError(report.failure())


def _spec(model: str | Any | torch.nn.Module) -> Any:
    if not isinstance(model, torch.nn.Module):
        return families.get(model)
    spec = getattr(model, "spec", None)
    if not families.is_description(spec):
        text = "expected inputs behind the two models, or a network of ports.create, or its name"
        raise UserError(f"got {type(model).__name__} without inputs, {text}")
    return spec


def _networks(
    model: str | Any | torch.nn.Module,
    spec: Any,
    candidates: Sequence[Any],
    ports: Sequence[str],
    seed: int,
    weights: str | Path | Mapping[str, np.ndarray] | None,
) -> tuple[torch.nn.Module, dict[str, Callable[[], Any]]]:
    """The reference in float64, and what promotes the live networks, by port."""
    if isinstance(model, torch.nn.Module):
        if not candidates:
            raise UserError("got a PyTorch network alone, expected one or more Flax networks behind it")
        builders = {port_of(net): partial(_promoted, net) for net in candidates}
        return run_pytorch.promote(model), builders
    if candidates:
        raise UserError("got the name of a network and live networks; expected a live PyTorch network first")
    reference = networks.create(spec, "pytorch", seed=seed, dtype="float64")
    if weights is not None:
        given = networks.weights.load(weights) if isinstance(weights, str | Path) else weights
        networks.weights.write(reference, dict(given))
    return run_pytorch.promote(reference), {}


def _built(spec: Any, port: str, state: Mapping[str, np.ndarray], dtype: str = "float64") -> Any:
    net = networks.create(spec, port, seed=None, dtype=dtype)
    variables = networks.weights.write(net, dict(state))
    return FLAX_PORTS[port].functional(net if variables is None else (net[0], variables), dtype=dtype)


def _live(net: Any, dtype: str, state: Mapping[str, np.ndarray]) -> Any:
    """A live network in a working precision, with these weights."""
    port = port_of(net)
    net = FLAX_PORTS[port].promote(net, dtype)
    variables = networks.weights.write(net, dict(state))
    return FLAX_PORTS[port].functional(net if variables is None else (net[0], variables), dtype=dtype)


def _promoted(net: Any) -> Any:
    port = FLAX_PORTS[port_of(net)]
    return port.functional(port.promote(net))


def randomise(net: Any, fed: Probe, seed: int) -> None:
    """Give every BatchNorm random parameters, and random statistics around those that it has on the probe.

    Other tensors whose numbers are all equal, as those of a fresh LayerNorm, get random ones (`probe.varied`).
    """
    ends = {layer.torch for layer in families.layers(net.spec) if layer.ends_branch}
    seen = run_pytorch.promote(net)
    for module in seen.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 1.0
    run_pytorch.statistics(seen, fed)
    statistics = {name: buffer.numpy() for name, buffer in seen.named_buffers()}
    state = probe.randomised(networks.weights.read(net), statistics, ends, seed)
    networks.weights.write(net, probe.varied(state, set(state), seed))


def _finite(state: Mapping[str, np.ndarray]) -> None:
    """Raises where a weight is not finite: rounding has no response to measure there."""
    for name, array in state.items():
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            count = int((~np.isfinite(array)).sum())
            raise UserError(
                f"weights: {name} has {count} of {array.size} numbers that are NaN or infinite, expected none"
            )


def environment(device: str = "cpu") -> dict[str, Any]:
    """What the check ran on."""
    packages = ("torch", "jax", "jaxlib", "flax", "optax", "numpy")
    return {
        **{name: importlib.metadata.version(name) for name in packages},
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "device": devices.described(device),
        "multiple": MULTIPLE,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }
