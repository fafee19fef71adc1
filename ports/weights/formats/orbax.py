"""Orbax folders: what `orbax.checkpoint.StandardCheckpointer().restore(path)` gives as a nested dict of arrays.

Written as plain zarr, one folder an array, for Orbax's default (OCDBT) names its files at random; a name that cannot be
that of a folder takes OCDBT. Orbax has no empty arrays: they stand in the metadata. The times in Orbax's metadata are
set to zero, so that the same weights give the same bytes. A missing piece of a zarr array would be read as zeros: it is
looked for first.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import logging
import math
import os
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from ports.weights import destination
from ports.weights.formats import SUM, Content, Tree, checked, checksum, dtype_of, flat, nested
from ports.weights.hub import WeightsError
from ports.weights.lazy import is_array
from ports.weights.source import Source

ABOUT, TREE = "_CHECKPOINT_METADATA", "_METADATA"
TIMES = ("init_timestamp_nsecs", "commit_timestamp_nsecs")
OWN, EMPTY = "ports", "empty"
DONE = "commit_success.txt"
LONGEST = 200
OCDBT = "manifest.ocdbt"
ARRAYS = ("np.ndarray", "jax.Array")

# What Orbax writes into a folder besides a folder for each array, and what is within one of those.
WRITTEN = re.compile(
    r"_METADATA|_CHECKPOINT_METADATA|_sharding|_strings\.json|descriptor/[\w.]+|commit_success\.txt|array_metadatas(/process_\d+)?"
    r"|(ocdbt\.process_\d+/)?(manifest\.ocdbt|d/[0-9a-f]{32})"
)
PIECES = re.compile(r"\.zarray|\.zattrs|zarr\.json|c|(c/)?\d+([./]\d+)*")


@contextmanager
def _quiet() -> Iterator[None]:
    """Orbax warns of what is no trouble here, and logs whole tracebacks of what it raises."""
    logger = logging.getLogger("absl")
    before = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(before)


def read(source: Source, check: bool = True) -> Content:
    path = source.path
    if not path.is_dir():
        raise WeightsError(f"weights {path}: is a file, expected a folder that Orbax wrote")
    if not (path / TREE).is_file():
        inner = [p.parent.name for p in sorted(path.glob(f"*/{TREE}"))]
        hint = f"; it is in {path / inner[0]}" if inner else ""
        raise WeightsError(f"weights {path}: no {TREE}: not a finished Orbax checkpoint{hint}")
    source.listing()
    _whole(source)
    found = _plain_zarr(path)
    if found is None:
        import orbax.checkpoint as ocp

        with _quiet(), ocp.StandardCheckpointer() as checkpointer:
            found = checkpointer.restore(path.absolute())
    about = json.loads((path / ABOUT).read_text()) if (path / ABOUT).is_file() else {}
    own = (about.get("custom_metadata") or {}).get(OWN) or {}
    tree = _plain(found)
    for name, (at, shape, dtype) in own.get(EMPTY, {}).items():
        node = tree
        for key in at[:-1]:
            node = node.setdefault(key, {})
        if 0 not in shape:
            raise ValueError(f"{name}: {shape} is not empty")
        node[at[-1]] = np.zeros(shape, dtype_of(dtype))
    if not tree:
        raise WeightsError(f"weights {path}: holds no tensors")
    metadata = {key: value for key, value in own.items() if isinstance(value, str)}
    leaves = [(".".join(at), array) for at, array in flat(tree)]
    return Content(tree, checked(metadata, leaves, check))


def _plain_zarr(path: Path) -> Tree | None:
    """The arrays of a folder as it is written here, one after another; None where it is of another kind.

    Where one of several that it reads at once fails, Orbax complains of the others behind one's back.
    """
    import tensorstore as ts

    table = json.loads((path / TREE).read_text())
    if (path / OCDBT).exists() or table.get("use_zarr3"):
        return None
    leaves = []
    for entry in table["tree_metadata"].values():
        if entry["value_metadata"]["value_type"] not in ARRAYS:
            return None
        at = tuple(str(part["key"]) for part in entry["key_metadata"])
        place = path / ".".join(at)
        if place.parent != path or not (place / ".zarray").is_file():
            raise ValueError(f"{place.name}: no such array")
        spec = {"driver": "zarr", "kvstore": {"driver": "file", "path": f"{place.absolute()}/"}}
        leaves.append((at, ts.open(spec, read=True, open=True).result().read().result()))
    return nested(leaves)


def _plain(node: Any) -> Any:
    """Dicts of text and numpy arrays; positions in a list become text, nothing (None) is left out."""
    if isinstance(node, list | tuple):
        node = dict(enumerate(node))
    if isinstance(node, dict):
        return {str(key): _plain(value) for key, value in node.items() if value is not None}
    return np.asarray(node)


def _whole(source: Source) -> None:
    """Raises where a plain zarr array lacks a piece, or where all arrays together are more than fits in memory."""
    total = 0
    for file in source.path.glob("**/.zarray"):
        about = json.loads(file.read_text())
        shape, chunks, separator = about["shape"], about["chunks"], about.get("dimension_separator", ".")
        if min(shape, default=1) < 0 or min(chunks, default=1) < 1:
            raise ValueError(f"{file.parent.name}: shape {shape} in pieces of {chunks}")
        total += math.prod(shape) * dtype_of(str(about["dtype"])).itemsize
        counts = [-(-n // c) for n, c in zip(shape, chunks, strict=True)]
        if math.prod(counts) > 10**6:
            raise ValueError(f"{file.parent.name}: {math.prod(counts):,} pieces")
        for at in itertools.product(*map(range, counts)):
            piece = separator.join(map(str, at)) or "0"
            if not (file.parent / piece).is_file():
                raise ValueError(f"{file.parent.name}: the piece {piece} is missing")
    source.budget.take(total)


def foreign(folder: Path) -> list[str]:
    """Return what a folder holds besides an Orbax checkpoint."""
    if not any((folder / name).is_file() for name in (TREE, ABOUT)):
        return destination.everything(folder)
    arrays = set()
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        table = json.loads((folder / TREE).read_text() if (folder / TREE).is_file() else "{}")["tree_metadata"]
        arrays = {".".join(str(part["key"]) for part in entry["key_metadata"]) for entry in table.values()}

    def explained(path: str) -> bool:
        array, _, piece = path.partition("/")
        return bool(PIECES.fullmatch(piece) and array in arrays) or bool(WRITTEN.fullmatch(path))

    return destination.unexplained(folder, explained)


def _handler(ocdbt: bool) -> Any:
    """Return what writes the arrays: Orbax's own, except that all of them have ended when one has failed.

    Orbax leaves at the first error, and each of the others then prints a traceback and makes files in a folder that is
    being removed.
    """
    import orbax.checkpoint as ocp

    class Arrays(ocp.type_handlers.NumpyHandler):
        def __init__(self) -> None:
            super().__init__()
            self.writing: list[asyncio.Future[Any]] = []

        async def _open_and_write(self, *args: Any, **options: Any) -> None:
            one = asyncio.ensure_future(super()._open_and_write(*args, **options))
            self.writing.append(one)
            try:
                await one
            except BaseException:
                await asyncio.wait(self.writing)
                raise

    registry = ocp.type_handlers.create_type_handler_registry((np.ndarray, Arrays()))
    return ocp.PyTreeCheckpointHandler(use_ocdbt=ocdbt, type_handler_registry=registry)


def _system_error(error: Exception) -> OSError:
    """Return what the system said, as TensorStore tells it."""
    text = str(error)
    code = re.search(r"os_error_code='(\d+)'", text)
    return OSError(int(code[1]), os.strerror(int(code[1]))) if code else OSError(text.partition("[")[0].strip()[:200])


def write(path: Path, content: Content) -> None:
    import orbax.checkpoint as ocp

    full: list[tuple[tuple[str, ...], Any]] = []
    empty: dict[str, Any] = {}
    seen: set[str] = set()
    for at, array in flat(content.tree):
        name = ".".join(at)
        if not is_array(array):
            raise WeightsError(f"{name} ({type(array).__name__}) is no tensor, which Orbax cannot hold")
        if not _valid(name):
            raise WeightsError(f"{name!r}: is not valid Unicode, and Orbax cannot hold such a name")
        if name in seen:
            raise WeightsError(f"{name}: two tensors that Orbax would keep under one name")
        seen.add(name)
        if array.size:
            full.append((at, array))
        else:
            empty[name] = (at, array.shape, array.dtype.name)
    if not full:
        raise WeightsError("orbax: no tensor that is not empty")
    leaves = [(".".join(at), array) for at, array in flat(content.tree)]
    own = {**content.metadata, SUM: checksum(leaves), **({EMPTY: empty} if empty else {})}
    tree = _trees(full)
    with _quiet(), ocp.Checkpointer(_handler(ocdbt=any(map(_unfit, seen)))) as checkpointer:
        # In a thread of its own, which an interruption of this one waits for: Orbax would go on behind its back.
        try:
            with ThreadPoolExecutor(1) as pool:
                pool.submit(checkpointer.save, path.absolute(), tree, custom_metadata={OWN: own}).result()
        except (ValueError, RuntimeError) as error:
            raise _system_error(error) from None
    about = json.loads((path / ABOUT).read_text())
    about |= {time: 0 for time in TIMES if time in about}
    (path / ABOUT).write_text(json.dumps(about, sort_keys=True))
    if (path / DONE).is_file():  # it names the folder that it was written in
        (path / DONE).write_text("Checkpoint commit was successful")


def _trees(leaves: list[tuple[tuple[str, ...], Any]]) -> Tree:
    return nested((at, np.ascontiguousarray(np.asarray(array)).reshape(array.shape)) for at, array in leaves)


def _valid(name: str) -> bool:
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _unfit(name: str) -> bool:
    """Whether a file system, or TensorStore's paths, may not hold a folder of this name within another."""
    return (
        name.startswith((".", "_"))
        or any(sign in name for sign in "/\\")
        or not name.isprintable()
        or len(name.encode("utf-8")) > LONGEST
        or name in ("", ABOUT, TREE)
    )
