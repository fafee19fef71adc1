"""The inputs of the networks: photographs, and weights that hide no mistake.

Photographs are resized to the network's height and an odd width (224x193, 32x27) with Pillow's bilinear filter, which
averages when it shrinks, and normalised with ImageNet's mean and standard deviation: an even and an odd side show
both kinds of padding mistakes, a non-square image shows exchanged axes.
"""

from __future__ import annotations

import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError

from parity.numerics.calls import Call
from parity.numerics.layouts import LAYOUTS, leaves, mapped, rebuilt
from parity.numerics.quantities import Loss, Probe
from parity.options import CallOptions
from parity.running import losses
from ports import families
from ports.errors import UserError

MEAN = np.array([0.485, 0.456, 0.406])
STD = np.array([0.229, 0.224, 0.225])
BRANCH = 0.25

PHOTOGRAPHS = Path(__file__).resolve().parents[1] / "photographs"
SUFFIXES = {".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"}


def default_size(spec: Any) -> tuple[int, ...]:
    """Return the size of the probe: the network's own size; for images an odd width, if it takes any size."""
    size, step = families.example_size(spec), families.size_step(spec)
    if not (families.takes_images(spec) and families.takes_any_size(spec)):
        return size
    narrower = size[0] * 6 // 7
    return size[0], (narrower | 1 if step == 1 else max(step, narrower // step * step))


def photographs(path: str | Path | None = None) -> list[Image.Image]:
    """Return the photographs of a file or of a folder (by name), or the two of this package.

    Raises:
        UserError: no such path, a file that is not an image, a folder without images.
    """
    path = PHOTOGRAPHS if path is None else Path(path)
    try:
        folder = stat.S_ISDIR(path.stat().st_mode)
        files = sorted(p for p in path.iterdir() if p.suffix.lower() in SUFFIXES) if folder else [path]
    except FileNotFoundError:
        raise UserError(f"images {path}: no such file or folder") from None
    except (OSError, ValueError) as error:  # a name that is too long, or holds a NUL; a folder without permission
        raise UserError(f"images {path}: {getattr(error, 'strerror', None) or error}") from None
    if not files:
        raise UserError(
            f"images {path}: no image in this folder; expected files ending in {' '.join(sorted(SUFFIXES))}"
        )
    return [_open(file) for file in files]


def _open(file: Path) -> Image.Image:
    try:
        with Image.open(file) as image:
            return image.convert("RGB")
    except UnidentifiedImageError:
        raise UserError(f"images {file}: not an image that Pillow can read") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(f"images {file}: cannot be read: {error}") from None


def of_spec(spec: Any, *, batch: int, size: tuple[int, ...], seed: int, images: str | Path | None = None) -> Probe:
    """Return a batch for a described network: photographs if it takes images, otherwise random inputs; random targets.

    Args:
        images: a file or a folder of photographs; by default two of this package.

    Raises:
        UserError: photographs that cannot be read.
    """
    rng = np.random.default_rng([seed, 2])
    if families.takes_images(spec):
        height, width = size
        inputs = (_crops(photographs(images), batch, (height, width), spec.in_channels, rng),)
    else:
        inputs = tuple(one.draw(rng) for one in families.inputs_of(spec, batch, size))
    targets = families.targets_of(spec, batch, size).draw(rng)
    return Probe(inputs, losses.of_family(families.objective_of(spec), targets))


def _crops(
    images: list[Image.Image], batch: int, size: tuple[int, int], channels: int, rng: np.random.Generator
) -> np.ndarray:
    """Return photographs, NCHW. If the batch is larger than their number, random crops of them follow."""
    arrays = []
    for i in range(batch):
        image = images[i % len(images)].convert("L" if channels == 1 else "RGB")
        box = None
        if i >= len(images):
            width, height = image.size
            left, top = rng.uniform(0, 0.5, 2) * (width, height)
            box = (left, top, left + width / 2, top + height / 2)
        arrays.append(np.asarray(image.resize((size[1], size[0]), Image.Resampling.BILINEAR, box), np.float64))
    pixels = np.stack(arrays).reshape(batch, *size, channels) / 255
    mean, std = (MEAN, STD) if channels == 3 else (MEAN.mean(), STD.mean())
    return np.ascontiguousarray(((pixels - mean) / std).transpose(0, 3, 1, 2))


def given(inputs: Sequence[Any], options: CallOptions, loss: Loss) -> Probe:
    """Return somebody's inputs as numpy arrays, with floating numbers in float64.

    Raises:
        UserError: no input, an input that is not numeric or not finite, two inputs with one name, an unknown layout.
    """

    def array(name: str, value: Any) -> np.ndarray:
        if str(value.dtype).startswith("key<"):
            raise UserError(f"{name}: got a key of JAX's, which PyTorch cannot take; pass it in flax_keywords")
        value = value.detach().cpu().numpy() if isinstance(value, torch.Tensor) else np.asarray(value)
        if value.dtype.kind not in "biuf" and value.dtype.name != "bfloat16":
            raise UserError(f"{name}: got an array of {value.dtype}, expected numbers")
        if value.dtype.kind not in "biu":
            value = value.astype(np.float64)
            if count := int((~np.isfinite(value)).sum()):
                raise UserError(f"{name}: {count} of {value.size} numbers are NaN or infinite, expected none")
        return value

    keywords, layouts = options.keywords, options.layouts
    alone = {"torch": dict(options.torch_keywords or {}), "flax": dict(options.flax_keywords or {})}
    if not inputs and not keywords and not (alone["torch"] and alone["flax"]):
        raise UserError("got two models and no inputs; expected inputs after them, in PyTorch's layout")
    arrays = mapped(tuple(inputs), array)
    named = mapped(dict(keywords or {}), array, "keyword")
    known = [n for n, _ in (*leaves(arrays, "input"), *leaves(named, "keyword"))]
    if twice := sorted({name for name in known if known.count(name) > 1}):
        raise UserError(
            f"inputs: two arrays are called {twice[0]}, expected one; rename a key that holds a dot or number"
        )
    for name, layout in (layouts or {}).items():
        if name not in known:
            raise UserError(f"layouts: no input is called {name!r}; expected one of {', '.join(known)}")
        if layout not in LAYOUTS:
            raise UserError(f"layouts: {name}: got {layout!r}, expected one of {', '.join(LAYOUTS)}")

    def own_array(name: str, value: Any) -> Any:
        return value if name.startswith("flax") and str(value.dtype).startswith("key<") else array(name, value)

    calls = {
        side: Call(side, keywords={n: rebuilt(value, own_array, f"{side}_keywords.{n}") for n, value in own.items()})
        for side, own in alone.items()
    }
    return Probe(arrays, loss, dict(layouts or {}), named, calls["torch"], calls["flax"])


def randomised(
    weights: dict[str, np.ndarray], statistics: dict[str, np.ndarray], ends: set[str], seed: int
) -> dict[str, np.ndarray]:
    """The weights of a fresh network with random BatchNorm parameters and statistics.

    A fresh network hides mistakes: every BatchNorm is the identity, or zero, which removes a residual branch.

    Args:
        statistics: the running statistics that the network has on the probe; the random ones are drawn around them.
        ends: the last BatchNorm of every residual branch. They are `BRANCH` times smaller than the others: branches as
            strong as their shortcuts let rounding grow from block to block (in ResNet-152, beyond what can be decided).
    """
    rng = np.random.default_rng([seed, 3])
    result = dict(weights)
    for mean in (name for name in weights if name.endswith("running_mean")):
        layer, channels = mean.removesuffix("running_mean"), weights[mean].shape
        var = statistics[f"{layer}running_var"]
        gain = BRANCH if layer.removesuffix(".") in ends else 1.0
        result[f"{layer}weight"] = gain * rng.uniform(0.5, 1.5, channels)
        result[f"{layer}bias"] = gain * rng.normal(0, 0.3, channels)
        result[mean] = statistics[mean] + rng.normal(0, 0.3, channels) * np.sqrt(var)
        result[f"{layer}running_var"] = var * rng.uniform(0.5, 1.5, channels)
    return result


def varied(state: dict[str, np.ndarray], names: set[str], seed: int) -> dict[str, np.ndarray]:
    """Return weights that hide no mistake: tensors whose numbers are all equal, as in fresh norms, get random numbers.

    A scale of ones hides a missing scale, a bias of zeros hides a missing bias, and a variance of ones makes a wrong
    epsilon harder to see. Tensors that share an array still share one.

    Args:
        names: of the tensors that may change: those that both models have.
    """
    rng, done = np.random.default_rng([seed, 5]), {}
    for name, array in state.items():
        if name not in names or id(array) in done or array.dtype.kind != "f" or array.size < 2 or np.ptp(array) > 0:
            continue
        value = float(array.flat[0])
        spread = rng.uniform(0.75, 1.25, array.shape) * value if value else rng.normal(0, 0.1, array.shape)
        done[id(array)] = spread
    return {name: done.get(id(array), array) for name, array in state.items()}
