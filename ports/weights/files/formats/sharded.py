"""A folder as Hugging Face's libraries write it: safetensors files with `model.safetensors.index.json`, or one without.

The index is checked like any input: a shard is a file in its folder, never a path, and its table must match the
contents of the shards.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

from ports.weights.files import destination
from ports.weights.files.budget import JSON
from ports.weights.files.formats import INDEX, SUFFIXES, WHOLE, Content, arrays, guarded, safetensors, unique
from ports.weights.files.source import Source
from ports.weights.form.torch_form import WeightsError, describe

SHARD_SIZE = 5 * 10**9
NAME = "model.safetensors"
LONGEST = 255  # bytes of a file name
SHARD = re.compile(r"-\d+-of-\d+\.")


def index_of(path: Path) -> Path:
    """Return the file that a folder is read from: its index, or its only file of weights; a file is returned as it is.

    Raises:
        WeightsError: the folder has several indices; or it has none, and no file of weights, several files, or one
            shard of many.
    """
    if not path.is_dir():
        return path
    found: list[Path] = []
    for pattern in (f"*{INDEX}", *WHOLE):
        found = sorted(path.glob(pattern))
        if len(found) == 1 and not SHARD.search(found[0].name):
            return found[0]
        if found:
            break
    names = describe(file.name for file in found) or "no such file"
    raise WeightsError(f"weights {path}: got {names}, expected one *{INDEX}; name the one that is meant")


def weight_map(source: Source, present: bool = True) -> dict[str, str]:
    """Return the shard of each tensor.

    Args:
        source: the index file.
        present: whether the shards must exist.

    Raises:
        WeightsError: all that is wrong with the index.
    """
    index = source.path
    source.budget.take(JSON * source.file.size, "its index")
    text = source.file.read(0, source.file.size).decode("utf-8")
    try:
        content = json.loads(text, object_pairs_hook=unique)
    except RecursionError:
        raise ValueError("the index is nested too deeply") from None
    table = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(table, dict) or not table or not all(isinstance(file, str) for file in table.values()):
        raise WeightsError(f"weights {index}: expected weight_map, a table of tensors to files")
    problems = []
    for file in dict.fromkeys(table.values()):
        if Path(file).name != file or file in ("", ".", "..") or "\\" in file or "\0" in file:
            problems.append(
                f"weights {index}: shard {file[:80]!r} is not the plain name of a file in the folder of the index"
            )
        elif len(os.fsencode(file)) > LONGEST:
            problems.append(f"weights {index}: shard {file[:80]!r}… is longer than a file's name can be")
        elif present and not (index.parent / file).is_file():
            problems.append(f"weights {index.parent / file}: no such file, which {index.name} lists; fetch it too")
    if problems:
        raise WeightsError(problems)
    return table


def read(source: Source, check: bool = True) -> Content:
    """Return the tensors of all shards, or of a folder's only file if it has no index.

    A shard may be a link out of the folder, as in download caches. A note says where it leads.
    """
    index = index_of(source.path)
    if not index.name.endswith(INDEX):
        return _part(source, index, check)
    table = weight_map(source.part(index))
    tree, metadata, problems = {}, {}, []
    for file in dict.fromkeys(table.values()):
        if Path(file).suffix.lower() not in SUFFIXES:
            raise WeightsError(f"weights {index}: shard {file}: unknown format; expected {' '.join(SUFFIXES)}")
        shard = _part(source, index.parent / file, check)
        metadata |= shard.metadata
        for name, array in shard.tree.items():
            if name in tree:
                problems.append(f"{name}: is in two shards, the second is {file}")
            elif table.get(name) != file:
                problems.append(f"{name}: is in {file}, the index says {table.get(name, 'nothing about it')}")
            tree[name] = array
    problems += [
        f"{name}: missing from {file}, where the index says it is" for name, file in table.items() if name not in tree
    ]
    if problems:
        raise WeightsError(problems)
    return Content({name: tree[name] for name in table}, metadata)


def _part(source: Source, path: Path, check: bool) -> Content:
    """Return the tensors of one file of a folder."""
    row = SUFFIXES[path.suffix.lower()]
    _noted(source, path)
    return guarded(path, row.module, "read", source.part(path), *((check,) if row.sums else ()))


def foreign(folder: Path) -> list[str]:
    """Return what a folder holds besides one index and the shards that it lists."""
    indices = sorted(folder.glob(f"*{INDEX}"))
    try:
        listed = weight_map(Source(indices[0]), present=False).values() if len(indices) == 1 else ()
    except (WeightsError, ValueError):
        listed = ()
    shards = [file for file in listed if Path(file).suffix.lower() in SUFFIXES]
    known = (*shards, *(index.name for index in indices)) if shards else ()
    return destination.unexplained(folder, lambda _: False, known)


def _noted(source: Source, shard: Path) -> None:
    if shard.is_symlink():
        real = Path(os.path.realpath(shard))
        if not real.is_relative_to(os.path.realpath(shard.parent)):
            source.notes.append(f"{shard.name} is a link that leaves the folder; {real} was read")


def write(path: Path, content: Content, shard_size: int | None = None) -> None:
    """Group tensors in order; a shard takes as many as fit into `shard_size` bytes, but at least one."""
    tensors, limit = arrays(content.tree), shard_size or SHARD_SIZE
    shards: list[dict] = [{}]
    full = 0
    for name, array in tensors.items():
        if shards[-1] and full + array.nbytes > limit:
            shards.append({})
            full = 0
        shards[-1][name] = array
        full += array.nbytes
    path.mkdir()
    table = {}
    for i, shard in enumerate(shards, 1):
        file = f"model-{i:05}-of-{len(shards):05}.safetensors"
        safetensors.write(path / file, Content(shard, content.metadata))
        table |= dict.fromkeys(shard, file)
    total = sum(array.nbytes for array in tensors.values())
    text = json.dumps({"metadata": {"total_size": total}, "weight_map": table}, indent=1, ensure_ascii=False)
    (path / f"{NAME}{INDEX}").write_text(text + "\n", encoding="utf-8")
