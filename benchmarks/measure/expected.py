"""The inputs of a subject and its expected results, with the bounds of the gate.

One process makes the inputs of all subjects of a network, and their expected results: the weights, the images, and,
from PyTorch's eager network in float64, the logits of inference, or the loss and the change of all parameters in one
step of training. The bound is measured. The same network runs in the working precision on weights and images moved by
`UNITS` units in the last place, and the largest distance of these draws is the bound. If twice the distance of the
network itself in the working precision is larger, that is the bound. (A step that changes most weights by less than
their rounding, such as the rows of an embedding that no token names, is equally far off in every right subject.) The
bound includes ReLUs whose input changes sign, which move a gradient more than rounding does. They are few and of all
sizes, so the gate compares all parameters together, not one by one.
"""

from __future__ import annotations

import json
import sys
import traceback
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.measure.gate import parameter_change
from benchmarks.subjects.case import NetworkCase, Numbers
from benchmarks.subjects.settings import RESULT, SETS, UNITS, Setting
from parity.numerics.bounds import distance, norm, one_ulp
from ports import families
from ports.families import layers
from ports.family import Description
from ports.weights.known.fold import fold

DRAWS = 4
BOUNDS = "bounds.json"  # is written last


def place_of(setting: Setting, changes: Mapping[str, Any], folder: Path) -> Path:
    """Return the folder of a setting, for a network that has these `changes`."""
    return folder / "-".join([setting.name, *(f"{name}={value}" for name, value in changes.items())])


def is_prepared(place: Path) -> bool:
    """Return whether `prepare` has finished in a folder."""
    return (place / BOUNDS).exists()


def prepare(setting: Setting, changes: Mapping[str, Any], folder: Path, seed: int = 0) -> None:
    """Write the inputs of the subjects and their expected results, unless they exist already."""
    spec, place = families.get(setting.network, **changes), place_of(setting, changes, folder)
    if is_prepared(place):
        return
    place.mkdir(parents=True, exist_ok=True)
    images, labels = input_sets(setting, spec, folder, seed), target_sets(setting, spec, seed)
    weights = initial_weights(setting, spec, folder, seed)
    np.save(place / "labels.npy", labels)
    expected = exact(spec, setting, weights, images[0], labels[0], exact_file(setting, changes, folder))

    def off(weights: Numbers, images: np.ndarray) -> dict[str, float]:
        """Return how far the working precision is from float64, on these weights and images."""
        return distances(run(spec, setting, weights, images, labels[0], setting.precision), expected)

    # If a step changes most weights by less than their rounding, every right subject is equally far off.
    bounds = {name: 2 * far for name, far in off(weights, images[0]).items()}
    rng, units = np.random.default_rng([seed, 9]), UNITS[setting.precision]
    for _ in range(DRAWS):
        moved = {name: one_ulp(array, rng, units) for name, array in weights.items()}
        moved |= {name: moved[first] for name, first in families.second_names(spec).items()}
        drawn = off(moved, one_ulp(images[0], rng, units))
        bounds = {name: max(bounds[name], far) for name, far in drawn.items()}
    np.savez(place / "expected.npz", **expected)  # pyright: ignore[reportArgumentType]
    (place / BOUNDS).write_text(json.dumps(bounds))


def target_sets(setting: Setting, spec: Description, seed: int) -> np.ndarray:
    """Draw the targets of all input sets: (sets, batch, …)."""
    draws = (np.random.default_rng([seed, number]) for number in range(SETS))
    one = families.targets_of(spec, setting.batch, setting.size)
    return np.stack([one.draw(rng) for rng in draws])


def initial_weights(setting: Setting, spec: Description, folder: Path, seed: int) -> Numbers:
    """Return a network's weights in the torch form; all settings of the network have the same."""
    import torch

    import ports
    from parity.running import probes as probe
    from parity.subjects import randomise

    file = folder / f"{setting.network}.npz"
    if not file.exists():
        net = ports.create(spec, "pytorch", seed=seed, dtype="float64")
        small = probe.of_spec(spec, batch=2, size=setting.size, seed=seed)
        with torch.no_grad():
            randomise(net, small, seed)
        weights = ports.weights.read(net)
        whole(file, {n: a.astype(np.float32) if a.dtype == np.float64 else a for n, a in weights.items()})
    return dict(np.load(file))


def distances(found: Numbers, expected: Numbers) -> dict[str, float]:
    """Return how far each result is from the expected one, relative to its size (L2)."""
    sizes = {name: norm(value) for name, value in expected.items()}
    return {n: distance(found[n], value) / sizes[n] if sizes[n] else 0.0 for n, value in expected.items()}


def input_sets(setting: Setting, spec: Description, folder: Path, seed: int) -> np.ndarray:
    """Return the input sets (sets, batch, …): photographs, or other inputs that the network takes.

    All modes and precisions share them.
    """
    from parity.running import probes as probe

    file = images_file(setting, spec, folder)
    if file.exists():
        return np.load(file)

    def one(number: int) -> np.ndarray:
        (array,) = probe.of_spec(spec, batch=setting.batch, size=setting.size, seed=seed + number).inputs
        return array.astype(np.float32) if array.dtype.kind == "f" else array

    with ThreadPoolExecutor(SETS) as pool:  # 1,024 photographs take a while
        images = np.stack([*pool.map(one, range(SETS))])
    # The file appears whole or not at all: a run may be killed while it writes.
    unfinished = file.with_suffix(".part.npy")
    np.save(unfinished, images)
    unfinished.rename(file)
    return images


def images_file(setting: Setting, spec: Description, folder: Path) -> Path:
    """Return where the input sets of a setting are."""
    inputs = families.inputs_of(spec, setting.batch, setting.size)
    shapes = "-".join("x".join(map(str, one.shape)) for one in inputs)
    return folder / f"images-{shapes}-{spec.num_classes}.npy"


def exact_file(setting: Setting, changes: Mapping[str, Any], folder: Path) -> Path:
    """Return where the float64 numbers are; all precisions share them."""
    return place_of(replace(setting, precision="float64"), changes, folder).with_suffix(".npz")


def exact(
    spec: Description, setting: Setting, weights: Numbers, images: np.ndarray, labels: np.ndarray, file: Path
) -> Numbers:
    """Return PyTorch's results in float64; computed on the CPU if the GPU's memory is too small."""
    import torch

    if file.exists():
        return dict(np.load(file))
    found: Numbers | None = None
    try:
        found = run(spec, setting, weights, images, labels, "float64")
    except torch.OutOfMemoryError:
        traceback.clear_frames(sys.exc_info()[2])  # they hold the tensors
    if found is None:  # outside of `except`, where the exception still keeps the GPU's tensors alive
        torch.cuda.empty_cache()
        found = run(spec, replace(setting, device="cpu"), weights, images, labels, "float64")
    if torch.cuda.is_initialized():  # PyTorch would keep the memory that float64 took
        torch.cuda.empty_cache()
    whole(file, found)
    return found


def whole(file: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write a file that appears whole or not at all: a run may be killed at any time, and the folder is kept."""
    unfinished = file.with_name(f"{file.name}.part.npz")
    np.savez(unfinished, **arrays)  # pyright: ignore[reportArgumentType]
    unfinished.rename(file)


def run(
    spec: Description, setting: Setting, weights: Numbers, images: np.ndarray, labels: np.ndarray, precision: str
) -> Numbers:
    """Return what PyTorch's eager network gives: logits; or the loss, and the parameters' change in one step."""
    import torch

    import ports
    from benchmarks.subjects import torch_steps

    dtype = "float64" if precision == "float64" else "float32"
    net = ports.create(spec, "pytorch", seed=None, dtype=dtype)
    ports.weights.write(net, weights)
    device = torch_steps.device(setting.device)
    net = net.to(device)
    x = torch.from_numpy(images).to(device)
    x = x.to(getattr(torch, dtype)) if x.is_floating_point() else x
    with torch_steps.policy(precision, setting.device):
        if setting.mode == "inference":
            with torch.no_grad():
                return torch_steps.numbers(net.eval()(x), RESULT[setting.mode])
        step = torch_steps.training_step(net.train(), net.parameters(), families.objective_of(spec).in_torch())
        loss = step(x, torch.from_numpy(labels).to(device))
    return {"loss": loss.double().cpu().numpy(), **parameter_change(ports.weights.read(net), weights)}


def read_case(setting: Setting, changes: Mapping[str, Any], folder: Path, folded: bool = False) -> NetworkCase:
    """Read what `prepare` wrote; `folded` gives network and weights without the BatchNorms after convolutions."""
    place = place_of(setting, changes, folder)
    spec, weights = families.get(setting.network, **changes), dict(np.load(folder / f"{setting.network}.npz"))
    if folded:
        spec, weights = families.get(spec, folded=True), fold(weights, layers(spec))[0]
    return NetworkCase(
        setting,
        dict(np.load(place / "expected.npz")),
        json.loads((place / BOUNDS).read_text()),
        place,
        spec,
        weights,
        np.load(images_file(setting, spec, folder)),
        np.load(place / "labels.npy"),
    )
