"""Orbax folders: what `orbax.checkpoint.StandardCheckpointer().restore(path)` gives as a nested dict of arrays.

Arrays are written as plain zarr, one folder per array, because Orbax's default (OCDBT) names its files at random. OCDBT
is used if an array's name cannot be a folder's name. Orbax has no empty arrays, so they are kept in the metadata. The
times in Orbax's metadata are set to zero, so that the same weights give the same bytes. A missing piece of an array
would be read as zeros, so it is looked for first. Arrays are read without Orbax, one by one, because Orbax trusts the
claims of the files.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from ports.weights.files import destination
from ports.weights.files.formats import SUM, Content, Tree, checked, checksum, dtype_of, flat, nested
from ports.weights.files.formats.jsons import table
from ports.weights.files.formats.ocdbt import MANIFEST as OCDBT
from ports.weights.files.formats.ocdbt import is_unicode, opened
from ports.weights.files.formats.zarr import Get, Reader
from ports.weights.files.source import OpenFile, Source
from ports.weights.form.lazy import is_array
from ports.weights.form.torch_form import WeightsError

ABOUT, TREE = "_CHECKPOINT_METADATA", "_METADATA"
TIMES = ("init_timestamp_nsecs", "commit_timestamp_nsecs")
OWN, EMPTY = "ports", "empty"
DONE = "commit_success.txt"
LONGEST = 200
STRINGS = "_strings.json"
ARRAYS = ("np.ndarray", "jax.Array", "scalar")
TABLES = ("Dict", "List", "Tuple", "NamedTuple")
DEEPEST = 100  # tables within tables

# Files that Orbax writes into a folder besides a folder for each array, and files within such a folder.
WRITTEN = re.compile(
    r"_METADATA|_CHECKPOINT_METADATA|_sharding|_strings\.json|descriptor/[\w.]+|commit_success\.txt|array_metadatas(/process_\d+)?"
    r"|(ocdbt\.process_\d+/)?(manifest\.ocdbt|d/[0-9a-f]{32})"
)
PIECES = re.compile(r"\.zarray|\.zattrs|zarr\.json|c|(c/)?\d+([./]\d+)*")


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence Orbax, which warns about harmless things, and logs whole tracebacks of its errors."""
    logger = logging.getLogger("absl")
    before = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(before)


def read(source: Source, check: bool = True) -> Content:
    path = source.path
    if not source.folder:
        raise WeightsError(f"weights {path}: is a file, expected a folder that Orbax wrote")
    files = {file.relative_to(path).as_posix(): file for file in source.listing()}
    if TREE not in files:
        inner = sorted(name.removesuffix(f"/{TREE}") for name in files if re.fullmatch(f"[^/]*/{TREE}", name))
        hint = f"; it is in {path / inner[0]}" if inner else ""
        raise WeightsError(f"weights {path}: no {TREE}: not a finished Orbax checkpoint{hint}")

    def get(name: str) -> bytes | None:
        return bytes((file := OpenFile(files[name])).read(0, file.size)) if name in files else None

    tree = nested(_leaves(source, get))
    about = get(ABOUT)
    own = _own(table(about, source.budget, ABOUT)) if about else {}
    _put_empty(tree, own.get(EMPTY, {}))
    if not tree:
        raise WeightsError(f"weights {path}: holds no tensors")
    metadata = {key: value for key, value in own.items() if isinstance(value, str)}
    leaves = [(".".join(at), array) for at, array in flat(tree)]
    return Content(tree, checked(metadata, leaves, check))


def _own(about: dict[str, Any]) -> dict[str, Any]:
    """Return what this package wrote into Orbax's metadata."""
    custom = about.get("custom_metadata") or {}
    own = custom.get(OWN) or {} if isinstance(custom, dict) else None
    if not isinstance(own, dict):
        raise ValueError(f"{ABOUT} is damaged")
    return own


def _leaves(source: Source, get: Get) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Return what the checkpoint holds, with the paths in its tree."""
    about = table(get(TREE) or b"", source.budget, TREE)
    entries = _entries(about)
    database = get(OCDBT) is not None
    find = opened(source) if database else get
    # Before Orbax noted it, pieces that hold the fill value alone were left out of the database.
    missing = (database or bool(about.get("use_zarr3"))) and not about.get("store_array_data_equal_to_fill_value")
    reader = Reader(source.budget)
    for at, kind in entries:
        name = ".".join(at)
        if kind in ARRAYS:
            place = _place(name)
            try:
                yield at, reader.read(lambda file, place=place: find(place + file), missing)
            except WeightsError:
                raise
            except ValueError as error:
                raise ValueError(f"{name[:80]}: {error}") from None
        elif kind == "string":
            strings = table(get(STRINGS) or b"{}", source.budget, STRINGS)
            if not isinstance(text := strings.get(name), str):
                raise ValueError(f"{name[:80]}: its text is missing")
            yield at, np.asarray(text)
        elif kind in TABLES:
            yield at, {}
        elif kind != "None":
            raise WeightsError(
                f"weights {source.path}: {name}: is of Orbax's type {str(kind)[:40]!r}, expected an array"
            )


def _entries(about: dict[str, Any]) -> list[tuple[tuple[str, ...], str]]:
    """Return path and type of each value in the checkpoint's own list."""
    entries = []
    try:
        for entry in about["tree_metadata"].values():
            at = tuple(str(part["key"]) for part in entry["key_metadata"])
            entries.append((at, entry["value_metadata"]["value_type"]))
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{TREE} is damaged ({type(error).__name__}: {str(error)[:60]})") from None
    if any(not at or len(at) > DEEPEST for at, _ in entries):
        raise ValueError(f"{TREE} is damaged: a name of no parts, or of more than {DEEPEST}")
    if len({".".join(at) for at, _ in entries}) != len(entries):
        raise ValueError(f"{TREE} lists two tensors under one name")
    return entries


def _put_empty(tree: Tree, empty: Any) -> None:
    """Put empty tensors into the tree; Orbax has no empty tensors, so the metadata keep them."""
    try:
        for name, (at, shape, dtype) in empty.items():
            node = tree
            for key in at[:-1]:
                node = node.setdefault(key, {})
            if 0 not in shape or at[-1] in node:
                raise ValueError(f"{name[:80]}: shape {str(shape)[:60]} is not empty, or it is there twice")
            node[at[-1]] = np.zeros(shape, dtype_of(dtype))
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise ValueError(f"{ABOUT} is damaged ({type(error).__name__})") from None


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
    """Return the function that writes the arrays: Orbax's own, but it waits for all writes after one has failed.

    Orbax returns at the first error, while the other writes print tracebacks and make files in a folder that is being
    removed.
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
    """Return the system's error from TensorStore's message."""
    text = str(error)
    code = re.search(r"os_error_code='(\d+)'", text)
    return OSError(int(code[1]), os.strerror(int(code[1]))) if code else OSError(text.partition("[")[0].strip()[:200])


def write(path: Path, content: Content) -> None:
    import orbax.checkpoint as ocp

    if not is_unicode(str(path.absolute())):
        raise WeightsError("orbax: the output's place has a name that is not valid Unicode, where Orbax cannot write")
    full: list[tuple[tuple[str, ...], Any]] = []
    empty: dict[str, Any] = {}
    seen: set[str] = set()
    places: set[str] = set()
    for at, array in flat(content.tree):
        name = ".".join(at)
        if not is_array(array):
            raise WeightsError(f"{name} ({type(array).__name__}) is not a tensor, which Orbax cannot hold")
        if not is_unicode(name):
            raise WeightsError(f"{name!r}: is not valid Unicode, and Orbax cannot hold such a name")
        if _place(name) in places:
            raise WeightsError(f"{name}: two tensors that Orbax would keep under one name")
        places.add(_place(name))
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
        # Run it in a separate thread, and wait for that thread even after an interrupt: otherwise Orbax would go on
        # unnoticed.
        try:
            with ThreadPoolExecutor(1) as pool:
                pool.submit(checkpointer.save, path.absolute(), tree, custom_metadata={OWN: own}).result()
        except (ValueError, RuntimeError) as error:
            raise _system_error(error) from None
    about = json.loads((path / ABOUT).read_text())
    about |= {time: 0 for time in TIMES if time in about}
    (path / ABOUT).write_text(json.dumps(about, sort_keys=True))
    if (path / DONE).is_file():  # it contains the name of the folder that it was written in
        (path / DONE).write_text("Checkpoint commit was successful")


def _place(name: str) -> str:
    """Return the prefix of the keys of a tensor's parts, as TensorStore forms them."""
    return "" if name in ("", "/") else name if name.endswith("/") else f"{name}/"


def _trees(leaves: list[tuple[tuple[str, ...], Any]]) -> Tree:
    return nested((at, np.ascontiguousarray(np.asarray(array)).reshape(array.shape)) for at, array in leaves)


def _unfit(name: str) -> bool:
    """Whether a file system, or a path of TensorStore, may refuse a nested folder of this name."""
    return (
        name.startswith((".", "_"))
        or any(sign in name for sign in "/\\")
        or not name.isprintable()
        or len(name.encode("utf-8")) > LONGEST
        or name in ("", ABOUT, TREE)
    )
