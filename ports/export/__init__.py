"""A live network as one file for deployment: inference only, the weights inside, none of this package's source needed.

    ports.export.save(net, "resnet50.pt2", (224, 224))  # a torch.nn.Module; Flax: "resnet50.stablehlo"
    run = ports.export.load("resnet50.pt2")             # images to logits, any batch
    ports.export.save(net, "eight.pt2", (224, 224), batch=8)

| network                       | file         | what else reads it                                                |
|-------------------------------|--------------|-------------------------------------------------------------------|
| `torch.nn.Module`             | `.pt2`       | `torch.export.load(path).module()`                                |
| `nnx.Module`, or Linen's pair | `.stablehlo` | `jax.export.deserialize(bytearray(Path(path).read_bytes())).call` |

Layouts are the network's own: NCHW in PyTorch, NHWC in Flax. A `.stablehlo` file holds a program for every platform of
`platforms` (by default `cpu` and `cuda`); none of these devices is needed to save it. PyTorch's reader may unpickle,
which can run code: load files from those you trust.

Importing this module loads neither torch nor jax.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ports.errors import UserError, require_positive
from ports.frameworks import PORTS, Net, port_of
from ports.weights.files.atomic import publish

SUFFIXES = {port.name: port.suffix for port in PORTS.values()}


def save(
    net: Net,
    path: str | Path,
    size: Sequence[int],
    *,
    batch: int | None = None,
    channels: int = 3,
    platforms: Sequence[str] = ("cpu", "cuda"),
    force: bool = False,
) -> None:
    """Write inference with the current weights; the file appears whole or not at all.

    The network is left unchanged, with the mode of each of its layers. It takes images (batch, channels, height, width)
    in PyTorch and (batch, height, width, channels) in Flax, in the type of its first parameter.

    Args:
        net: a `torch.nn.Module`, an `nnx.Module` or Linen's `(module, variables)`; Flax needs the package flatbuffers.
        path: ends in `.pt2` for PyTorch, in `.stablehlo` for Flax.
        size: height and width of the images.
        batch: the only number of images that the file accepts; None for any number.
        channels: of the images, for a network without `spec.in_channels`.
        platforms: of a Flax network, where the file is to run: `cpu`, `cuda`, `rocm`, `tpu`.
        force: replace an existing file.

    Raises:
        UserError: `net` is not a network, a suffix of another framework, an invalid size or batch, an unknown
            platform, flatbuffers is missing, the output exists and `force` is not set, no such folder, no
            permission, a full disk.
    """
    path, port = Path(path), port_of(net)
    if path.suffix != port.suffix:
        raise UserError(f"output {path}: got a network of {port.name}, expected a name that ends in {port.suffix}")
    if not isinstance(size, Sequence) or len(size) != 2:
        raise UserError(f"export: size: got {size!r}, expected height and width, such as (224, 224)")
    channels = getattr(getattr(port.owner(net), "spec", None), "in_channels", channels)
    height, width = size
    require_positive("export: ", height=height, width=width, channels=channels, batch=1 if batch is None else batch)
    port.exporter.check(platforms)
    with publish(path, force=force) as partial:
        port.exporter.save(net, partial, batch, (channels, height, width), platforms)


def load(path: str | Path) -> Callable[[Any], Any]:
    """Return a function from images to logits, as the saved network computed them in eval mode.

    It takes and returns a `torch.Tensor` (without gradients) for `.pt2`, and a `jax.Array` for `.stablehlo`, which is
    compiled at the first call with each shape. For other shapes than the saved ones the framework raises an error.

    Raises:
        UserError: an unknown suffix, no such file, a file of another kind or a truncated one, flatbuffers is missing.
            Other damage to a `.stablehlo` file is JAX's error at the first call, if it is seen at all.
    """
    path = Path(path)
    if path.suffix not in SUFFIXES.values():
        raise UserError(f"file {path}: got the suffix {path.suffix!r}, expected .pt2 (PyTorch) or .stablehlo (Flax)")
    if not os.path.isfile(path):  # noqa: PTH113 - False for a name that no file can have
        raise UserError(f"file {path}: no such file; ports.export.save writes one")
    port = next(port for port in PORTS.values() if port.suffix == path.suffix)
    try:
        return port.loader.load(path)
    except UserError:
        raise
    except Exception as error:  # for bytes of another kind the readers may raise anything
        why = f"{type(error).__name__}: {str(error).strip()}".splitlines()[0]
        expected = "jax.export" if port.is_flax else "torch.export.save"
        raise UserError(
            f"file {path}: got no program that can be read ({why}), expected one of {expected}; save it again"
        ) from error
