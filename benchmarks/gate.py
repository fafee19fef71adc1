"""What may be timed: a subject whose numbers, in the very configuration that is timed, are PyTorch's.

One process makes what all subjects of a network are fed with, and what they must give: the weights, images, and from
PyTorch's eager network in float64 the logits of inference, or the loss and the change of all parameters in one step of
training. The bound is not picked: the same network is run in the working precision on weights and images moved by
`UNITS` units in the last place, and the farthest of its draws is the bound; or twice the distance of the network itself
in the working precision, where that is more (a step that changes most weights by less than they are rounded to, as an
embedding's rows that no token names, is as far off in every right subject). Steps over a ReLU's kink, which move a
gradient more than rounding does, are in it; they are few and of all sizes, so parameters are held together and not
one by one. What such a bound cannot see the check in float64 does: `parity check`.
"""

from __future__ import annotations

import json
import sys
import traceback
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.cases import Case, Numbers
from benchmarks.settings import SETS, UNITS, Setting
from parity.bounds import distance, norm, one_ulp
from ports import families
from ports.families import layers
from ports.weights.known.fold import fold
from ports.weights.layers.leaves import COUNTER

DRAWS = 4
BOUNDS = "bounds.json"  # is written last
STATISTICS = ("running_mean", "running_var", COUNTER)


@dataclass(frozen=True)
class Verdict:
    """How a subject stands: its worst tensor in units of the bound, and what it is."""

    ok: bool
    worst: float
    tensor: str
    distance: float
    bound: float

    def __str__(self) -> str:
        sign = "within" if self.ok else "beyond"
        return f"{self.tensor}: {self.distance:.1e} off PyTorch in float64, {sign} its bound {self.bound:.1e}"


def judge(found: Mapping[str, np.ndarray], expected: Mapping[str, np.ndarray], bounds: Mapping[str, float]) -> Verdict:
    """A subject's numbers against those expected; distances are relative L2."""
    worst = Verdict(True, -1.0, "", 0.0, 0.0)
    for name, value in expected.items():
        size = norm(value)
        far = distance(found[name], value) / size if name in found and size else float("inf")
        bound = bounds[name]
        times = far / bound if bound else (0.0 if far == 0 else float("inf"))
        if not times <= worst.worst:
            worst = Verdict(bool(times <= 1), times, name, far, bound)
    return worst


def place_of(setting: Setting, changes: Mapping[str, Any], folder: Path) -> Path:
    """Where that of a setting stands, for a network that has something otherwise."""
    return folder / "-".join([setting.name, *(f"{name}={value}" for name, value in changes.items())])


def is_prepared(place: Path) -> bool:
    """Return whether `prepare` has finished there."""
    return (place / BOUNDS).exists()


def prepare(setting: Setting, changes: Mapping[str, Any], folder: Path, seed: int = 0) -> None:
    """Writes what the subjects are fed with and what they must give, if it is not there yet."""
    import torch

    import ports
    from parity import probe
    from parity.checker import randomise

    spec, place = families.get(setting.network, **changes), place_of(setting, changes, folder)
    if is_prepared(place):
        return
    place.mkdir(parents=True, exist_ok=True)
    images = input_sets(setting, spec, folder, seed)
    labels = np.stack(
        [np.random.default_rng([seed, i]).integers(0, spec.num_classes, setting.batch) for i in range(SETS)]
    )
    weights_file = folder / f"{setting.network}.npz"
    if not weights_file.exists():
        net = ports.create(spec, "pytorch", seed=seed, dtype="float64")
        small = probe.of_spec(spec, batch=2, size=setting.size, seed=seed)
        with torch.no_grad():
            randomise(net, small, seed)
        weights = {n: a.astype(np.float32) if a.dtype == np.float64 else a for n, a in ports.weights.read(net).items()}
        whole(weights_file, weights)
    weights = dict(np.load(weights_file))
    np.save(place / "labels.npy", labels)
    expected = exact(spec, setting, weights, images[0], labels[0], exact_file(setting, changes, folder))
    rng = np.random.default_rng([seed, 9])
    own = distances(run(spec, setting, weights, images[0], labels[0], setting.precision), expected)
    bounds = {name: 2 * far for name, far in own.items()}
    for _ in range(DRAWS):
        moved = {n: one_ulp(a, rng, UNITS[setting.precision]) for n, a in weights.items()}
        fed = one_ulp(images[0], rng, UNITS[setting.precision])
        drawn = distances(run(spec, setting, moved, fed, labels[0], setting.precision), expected)
        bounds = {name: max(bounds[name], far) for name, far in drawn.items()}
    np.savez(place / "expected.npz", **expected)  # pyright: ignore[reportArgumentType]
    (place / BOUNDS).write_text(json.dumps(bounds))


def distances(found: Numbers, expected: Numbers) -> dict[str, float]:
    """Return how far each result is from the expected one, relative to its size (L2)."""
    sizes = {name: norm(value) for name, value in expected.items()}
    return {n: distance(found[n], value) / sizes[n] if sizes[n] else 0.0 for n, value in expected.items()}


def input_sets(setting: Setting, spec: Any, folder: Path, seed: int) -> np.ndarray:
    """Return the input sets (sets, batch, …): photographs, or what else the network takes.

    All modes and precisions have the same.
    """
    from parity import probe

    file = images_file(setting, spec, folder)
    if file.exists():
        return np.load(file)

    def one(number: int) -> np.ndarray:
        (array,) = probe.of_spec(spec, batch=setting.batch, size=setting.size, seed=seed + number).inputs
        return array.astype(np.float32) if array.dtype.kind == "f" else array

    with ThreadPoolExecutor(SETS) as pool:  # 1,024 photographs take a while
        images = np.stack([*pool.map(one, range(SETS))])
    unfinished = file.with_suffix(".part.npy")
    np.save(unfinished, images)
    unfinished.rename(file)
    return images


def images_file(setting: Setting, spec: Any, folder: Path) -> Path:
    """Return where the input sets of a setting are."""
    inputs = families.inputs_of(spec, setting.batch, setting.size)
    shapes = "-".join("x".join(map(str, one.shape)) for one in inputs)
    return folder / f"images-{shapes}-{spec.num_classes}.npy"


def exact_file(setting: Setting, changes: Mapping[str, Any], folder: Path) -> Path:
    """Return where the numbers in float64 are; those of all precisions are the same."""
    return place_of(replace(setting, precision="float64"), changes, folder).with_suffix(".npz")


def exact(spec: Any, setting: Setting, weights: Numbers, images: np.ndarray, labels: np.ndarray, file: Path) -> Numbers:
    """Return what PyTorch gives in float64; on the CPU where the GPU's memory does not suffice."""
    import torch

    if file.exists():
        return dict(np.load(file))
    found: Numbers | None = None
    try:
        found = run(spec, setting, weights, images, labels, "float64")
    except torch.OutOfMemoryError:
        traceback.clear_frames(sys.exc_info()[2])  # they hold the tensors
    if found is None:
        torch.cuda.empty_cache()
        found = run(spec, replace(setting, device="cpu"), weights, images, labels, "float64")
    if torch.cuda.is_initialized():  # PyTorch would keep what float64 took
        torch.cuda.empty_cache()
    whole(file, found)
    return found


def whole(file: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write a file that appears whole or not at all: a run may be killed at any time, and the folder is kept."""
    unfinished = file.with_name(f"{file.name}.part.npz")
    np.savez(unfinished, **arrays)  # pyright: ignore[reportArgumentType]
    unfinished.rename(file)


def run(
    spec: Any, setting: Setting, weights: Numbers, images: np.ndarray, labels: np.ndarray, precision: str
) -> Numbers:
    """What PyTorch's eager network gives: logits; or the loss, and by parameter its change in one step."""
    import torch

    import ports
    from benchmarks import torch_steps

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
                return {"logits": net.eval()(x).double().cpu().numpy()}
        step = torch_steps.training_step(net.train(), net.parameters())
        loss = step(x, torch.from_numpy(labels).to(device))
    return {"loss": loss.double().cpu().numpy(), **changes(ports.weights.read(net), weights)}


def changes(after: Mapping[str, np.ndarray], before: Mapping[str, np.ndarray]) -> Numbers:
    """How much the parameters have changed, one after another."""
    names = [name for name in before if not name.endswith(STATISTICS)]
    moved = [(after[name].astype(np.float64) - before[name]).ravel() for name in names]
    return {"parameters' change": np.concatenate(moved)}


def case(setting: Setting, changes: Mapping[str, Any], folder: Path, folded: bool = False) -> Case:
    """What `prepare` wrote; `folded` gives network and weights without the BatchNorms behind convolutions."""
    place = place_of(setting, changes, folder)
    spec, weights = families.get(setting.network, **changes), dict(np.load(folder / f"{setting.network}.npz"))
    if folded:
        spec, weights = families.get(spec, folded=True), fold(weights, layers(spec))[0]
    return Case(
        setting,
        spec,
        weights,
        np.load(images_file(setting, spec, folder)),
        np.load(place / "labels.npy"),
        dict(np.load(place / "expected.npz")),
        json.loads((place / BOUNDS).read_text()),
        place,
    )
