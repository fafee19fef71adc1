"""Export networks of Flax as `jax.export`'s program: what NNX and Linen have in common."""

from __future__ import annotations

import importlib.util
import inspect
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from ports.errors import UserError

PLATFORMS = ("cpu", "cuda", "rocm", "tpu")  # JAX's names

# The arguments that switch a Flax network's call to inference, if it has such a parameter.
EVAL = {"train": False, "training": False, "is_training": False, "deterministic": True, "use_running_average": True}

SOURCES = "jax_hlo_source_file_canonicalization_regex"  # the part of source file names that JAX removes

Inference = Callable[[jax.Array], Any]  # from images to what the network gives


def check(platforms: Sequence[str]) -> None:
    """Raise if such a file cannot be written.

    Raises:
        UserError: flatbuffers is missing, an unknown platform.
    """
    require_flatbuffers()
    if not platforms or not set(platforms) <= set(PLATFORMS):
        got = ", ".join(platforms) or "none"
        raise UserError(f"export: platforms: got {got}, expected some of {', '.join(PLATFORMS)}")


def eval_keywords(module: object) -> dict[str, Any]:
    """Return the arguments that switch the call of a module to inference."""
    return {name: value for name, value in EVAL.items() if name in inspect.signature(type(module).__call__).parameters}


def save_inference(
    infer: Inference,
    params: Mapping[str, object],
    path: Path,
    batch: int | None,
    size: tuple[int, int, int],
    platforms: Sequence[str],
) -> None:
    """Write a function of images alone, with the weights as its constants."""
    channels, height, width = size
    count = jax.export.symbolic_shape("batch")[0] if batch is None else batch
    dtype = next((leaf.dtype for leaf in jax.tree.leaves(params)), "float32")
    before = getattr(jax.config, SOURCES)
    jax.config.update(SOURCES, ".*")  # otherwise the file would name folders of this machine
    try:
        images = jax.ShapeDtypeStruct((count, height, width, channels), dtype)
        program = jax.export.export(jax.jit(infer), platforms=tuple(platforms))(images)
        path.write_bytes(program.serialize())
    finally:
        jax.config.update(SOURCES, before)


def load(path: Path) -> Inference:
    require_flatbuffers()
    return jax.jit(jax.export.deserialize(bytearray(path.read_bytes())).call)


def require_flatbuffers() -> None:
    if importlib.util.find_spec("flatbuffers") is None:
        raise UserError("export of Flax networks: the package flatbuffers is not installed: pip install flatbuffers")
