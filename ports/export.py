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

import importlib.util
import inspect
import os
import warnings
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ports.errors import UserError, require_positive
from ports.frameworks import framework_of
from ports.weights.files.atomic import publish

SUFFIXES = {"pytorch": ".pt2", "nnx": ".stablehlo", "linen": ".stablehlo"}

PLATFORMS = ("cpu", "cuda", "rocm", "tpu")  # JAX's names

# What a Flax network's call is told so that it is inference, where it has such a parameter.
EVAL = {"train": False, "training": False, "is_training": False, "deterministic": True, "use_running_average": True}

SOURCES = "jax_hlo_source_file_canonicalization_regex"  # the part of source files' names that JAX leaves out


def save(
    net: Any,
    path: str | Path,
    size: Sequence[int],
    *,
    batch: int | None = None,
    channels: int = 3,
    platforms: Sequence[str] = ("cpu", "cuda"),
    force: bool = False,
) -> None:
    """Writes inference with the weights as they are now; the file appears whole or not at all.

    The network is left as it was, with the mode of each of its layers. It takes images (batch, channels, height, width)
    in PyTorch and (batch, height, width, channels) in Flax, in the type of its first parameter.

    Args:
        net: a `torch.nn.Module`, an `nnx.Module` or Linen's `(module, variables)`; Flax needs the package flatbuffers.
        path: ends in `.pt2` for PyTorch, in `.stablehlo` for Flax.
        size: height and width of the images.
        batch: the one number of images that the file takes; None for any.
        channels: of the images, for a network without a `spec.in_channels`.
        platforms: of a Flax network, where the file is to run: `cpu`, `cuda`, `rocm`, `tpu`.
        force: replaces a file that is there.

    Raises:
        UserError: `net` is not a network, a suffix of another framework, an invalid size or batch, an unknown
            platform, flatbuffers is missing, there is such an output and `force` is not set, no such folder, no
            permission, a full disk.
    """
    path, port = Path(path), framework_of(net)
    if path.suffix != SUFFIXES[port]:
        raise UserError(f"output {path}: got a network of {port}, expected a name that ends in {SUFFIXES[port]}")
    if not isinstance(size, Sequence) or len(size) != 2:
        raise UserError(f"export: size: got {size!r}, expected height and width, such as (224, 224)")
    owner = net[0] if port == "linen" else net
    channels = getattr(getattr(owner, "spec", None), "in_channels", channels)
    height, width = size
    require_positive("export: ", height=height, width=width, channels=channels, batch=1 if batch is None else batch)
    if port != "pytorch":
        _need_flatbuffers()
        if not platforms or not set(platforms) <= set(PLATFORMS):
            got = ", ".join(platforms) or "none"
            raise UserError(f"export: platforms: got {got}, expected some of {', '.join(PLATFORMS)}")
    with publish(path, force=force) as partial:
        if port == "pytorch":
            _save_pytorch(net, partial, batch, (channels, height, width))
        else:
            partial.write_bytes(_stablehlo(net, port, batch, (height, width, channels), tuple(platforms)))


def load(path: str | Path) -> Callable[[Any], Any]:
    """A function from images to logits, as the saved network computed them in eval mode.

    It takes and gives a `torch.Tensor` (without gradients) for `.pt2`, a `jax.Array` for `.stablehlo`, which is
    compiled at the first call with a shape. Other shapes than those saved for are the framework's errors.

    Raises:
        UserError: an unknown suffix, no such file, a file of another kind or one that is cut off, flatbuffers is
            missing. Other damage to a `.stablehlo` file is JAX's error at the first call, if it is seen at all.
    """
    path = Path(path)
    if path.suffix not in SUFFIXES.values():
        raise UserError(f"file {path}: got the suffix {path.suffix!r}, expected .pt2 (PyTorch) or .stablehlo (Flax)")
    if not os.path.isfile(path):  # noqa: PTH113 - False for a name that no file can have
        raise UserError(f"file {path}: no such file; ports.export.save writes one")
    if path.suffix == ".stablehlo":
        _need_flatbuffers()
    try:
        return _load_pytorch(path) if path.suffix == ".pt2" else _load_flax(path)
    except Exception as error:  # what the readers raise on bytes that are something else is not to be listed
        kind = "torch.export.save" if path.suffix == ".pt2" else "jax.export"
        why = f"{type(error).__name__}: {str(error).strip()}".splitlines()[0]
        raise UserError(
            f"file {path}: got no program that can be read ({why}), expected one of {kind}; save it again"
        ) from error


def _save_pytorch(net: Any, path: Path, batch: int | None, shape: tuple[int, ...]) -> None:
    import torch

    first = next(net.parameters(), torch.zeros(()))
    images = torch.zeros((2 if batch is None else batch, *shape), dtype=first.dtype, device=first.device)
    dynamic = ({0: torch.export.Dim("batch")},) if batch is None else None
    modes = [(module, module.training) for module in net.modules()]
    try:
        exported = torch.export.export(net.eval(), (images,), dynamic_shapes=dynamic)
    finally:
        for module, training in modes:
            module.training = training
    exported.example_inputs = None  # they would be stored, and no more than their shape counts
    for node in exported.graph.nodes:
        node.meta.pop("stack_trace", None)  # names of folders on this machine
    with path.open("wb") as file:  # by its temporary name PyTorch would warn about the suffix
        torch.export.save(exported, file)


def _load_pytorch(path: Path) -> Callable[[Any], Any]:
    import torch

    with zipfile.ZipFile(path) as archive:
        if not any(name.endswith("/models/model.json") for name in archive.namelist()):
            raise ValueError("a zip without models/model.json")
    with warnings.catch_warnings():  # PyTorch 2.11 warns of its own reader
        warnings.filterwarnings("ignore", "The given buffer is not writable", UserWarning)
        module = torch.export.load(path).module()

    def run(images: Any) -> Any:
        with torch.no_grad():
            return module(images)

    return run


def _stablehlo(net: Any, port: str, batch: int | None, shape: tuple[int, ...], platforms: tuple[str, ...]) -> bytearray:
    """The program with the weights as its constants."""
    import jax

    infer, params = _flax(net, port)
    count = jax.export.symbolic_shape("batch")[0] if batch is None else batch
    dtype = next((leaf.dtype for leaf in jax.tree.leaves(params)), "float32")
    before = getattr(jax.config, SOURCES)
    jax.config.update(SOURCES, ".*")  # or the file would name folders of this machine
    try:
        images = jax.ShapeDtypeStruct((count, *shape), dtype)
        return jax.export.export(jax.jit(infer), platforms=platforms)(images).serialize()
    finally:
        jax.config.update(SOURCES, before)


def _flax(net: Any, port: str) -> tuple[Callable[[Any], Any], Any]:
    """A network of Flax as a function of images alone, in eval mode, and its parameters."""
    call = type(net[0] if port == "linen" else net).__call__
    keywords = {name: value for name, value in EVAL.items() if name in inspect.signature(call).parameters}
    if port == "linen":
        module, variables = net
        return lambda images: module.apply(variables, images, **keywords), variables.get("params", {})
    from flax import nnx

    twin = nnx.clone(net)  # of its own mode; the arrays are the same
    twin.eval()
    return lambda images: twin(images, **keywords), nnx.state(net, nnx.Param)


def _load_flax(path: Path) -> Callable[[Any], Any]:
    import jax

    return jax.jit(jax.export.deserialize(bytearray(path.read_bytes())).call)


def _need_flatbuffers() -> None:
    if importlib.util.find_spec("flatbuffers") is None:
        raise UserError("export of Flax networks: the package flatbuffers is not installed: pip install flatbuffers")
