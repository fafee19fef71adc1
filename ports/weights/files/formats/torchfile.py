"""PyTorch's files: this module reads them without PyTorch and without running their code; PyTorch writes them.

A file is a pickle of tables and tensors, and the storages that the tensors are views of: a zip archive since PyTorch
1.6, before that one pickle and one storage after another. The metadata is a separate record in the zip
(`archive/extra/…`, where PyTorch keeps extra files), so the file is still the plain state_dict that `torch.load`
expects.

Source: `torch/serialization.py` (`_load`, `_legacy_load`).
"""

from __future__ import annotations

import io
import json
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ports.weights.files.formats import Content, dtype_of
from ports.weights.files.formats.jsons import table
from ports.weights.files.formats.pickles import Machine
from ports.weights.files.formats.torchcalls import CALLS, NAMES, Storage, View, storage
from ports.weights.files.formats.torchtree import Builder, TreePlan
from ports.weights.files.formats.zips import Archive, Member, is_zip
from ports.weights.files.source import Source
from ports.weights.form.lazy import is_array
from ports.weights.form.torch_form import WeightsError

EXTRA = "archive/extra/ports.json"
MAGIC, PROTOCOL = 0x1950A86A20F9469CFC6C, 1001


def read(source: Source) -> Content:
    file = _Zipped(source) if is_zip(source.file) else _Legacy(source)
    content = file.content
    if not isinstance(content, Mapping) or not content:
        kind = "Tensor" if isinstance(content, View) else type(content).__name__
        raise WeightsError(f"weights {source.path}: got {kind}, expected a state_dict")
    plan = TreePlan(source, file.big)
    plan.check(content)
    file.check(plan.storages)
    plan.take()
    tree = Builder(file.load, file.big).build(content)
    file.rest()
    return Content(tree, file.metadata)


class _Zipped:
    """A zip archive: `NAME/data.pkl`, and a storage in each `NAME/data/KEY`."""

    def __init__(self, source: Source) -> None:
        self._archive, self._source = Archive(source), source
        members = self._archive.members
        name = next(iter(members), "").partition("/")[0]  # as PyTorch takes it
        self._name, self._read = name, set[str]()
        if f"{name}/constants.pkl" in members:
            raise WeightsError(
                f"weights {source.path}: is a TorchScript program, expected a state_dict; "
                "torch.save(torch.jit.load(PATH).state_dict(), OTHER) writes one"
            )
        # PyTorch's own reader ignores case, and treats both kinds of slashes alike.
        if len({key.lower().replace("\\", "/") for key in members}) != len(members):
            raise ValueError("two members have one name for PyTorch")
        if f"{name}/data.pkl" not in members:
            raise ValueError(f"no {name[:80]!r}/data.pkl in the archive")
        pickle = io.BytesIO(self._bytes(members[f"{name}/data.pkl"], "its pickle"))
        self.content = Machine(source, CALLS, NAMES, storage).load(pickle)
        order = members.get(f"{name}/byteorder")
        order = bytes(self._bytes(order, "its byte order")) if order else b"little"
        if order not in (b"little", b"big"):
            raise ValueError("an unknown byte order")
        self.big = order == b"big"
        self.metadata = self._metadata(members.get(f"{name}/extra/ports.json"))

    def _bytes(self, member: Member, what: str) -> bytearray:
        self._source.budget.take(member.size, what)
        self._read.add(member.name)
        return self._archive.read(member)

    def _metadata(self, member: Member | None) -> dict[str, str]:
        if member is None:
            return {}
        found = table(self._bytes(member, "its metadata"), self._source.budget, "its metadata")
        return {key: str(value) for key, value in found.items()}

    def _member(self, key: str) -> Member:
        return self._archive.members[f"{self._name}/data/{key}"]

    def check(self, storages: Mapping[str, Storage]) -> None:
        """Compare the pickle's data about its storages with the archive."""
        for key, one in storages.items():
            if f"{self._name}/data/{key}" not in self._archive.members:
                raise ValueError(f"the storage {key[:80]!r} is missing")
            if (size := nbytes(one)) > (got := self._member(key).size):
                raise ValueError(f"the storage {key[:80]!r} has {got:,} bytes, expected {size:,}")

    def load(self, key: str) -> bytearray:
        self._read.add((member := self._member(key)).name)
        return self._archive.read(member)  # its size is counted: `TreePlan.take`

    def rest(self) -> None:
        """Compare the members that were not read with their checksums."""
        for name, member in self._archive.members.items():
            if name not in self._read:
                self._archive.check(member)


class _Legacy:
    """A file as PyTorch wrote it before 1.6: five pickles, then the storages in the order of the fifth."""

    def __init__(self, source: Source) -> None:
        self._file = source.file
        self._seen: dict[str, Storage] = {}
        machine = Machine(source, CALLS, NAMES, self._noted)
        with self._file.stream() as stream:
            if (machine.load(stream), machine.load(stream)) != (MAGIC, PROTOCOL):
                raise ValueError("is a pickle that torch.save did not write")
            machine.load(stream)  # sizes of the machine that wrote it; storages are little-endian on every machine
            self.content, self._keys = machine.load(stream), machine.load(stream)
            self._at = stream.tell()
        self.big, self.metadata, self._places = False, {}, dict[str, tuple[int, int]]()

    def _noted(self, which: object) -> Storage:
        one = storage(which)
        first = self._seen.setdefault(one.key, one)
        if (first.dtype, first.whole) != (one.dtype, one.whole):
            raise ValueError(f"the storage {one.key[:80]!r} has two types or sizes")
        return one

    def check(self, storages: Mapping[str, Storage]) -> None:
        """Find the storages in the file."""
        keys, at = self._keys, self._at
        if type(keys) is not list or len(keys) != len(self._seen) or set(keys) != set(self._seen):
            raise ValueError("its list of storages is not that of its tensors")
        for key in keys:
            size = nbytes(self._seen[key])
            if at + 8 + size > self._file.size:
                raise ValueError(f"ends within the storage {key[:80]!r}")
            if (count := struct.unpack("<q", self._file.read(at, 8))[0]) != self._seen[key].whole:
                raise ValueError(f"the storage {key[:80]!r} has {count:,} numbers, expected {self._seen[key].whole:,}")
            self._places[key] = at + 8, size
            at += 8 + size
        if at != self._file.size:
            raise ValueError(f"{self._file.size - at:,} bytes follow the last tensor")

    def load(self, key: str) -> bytearray:
        return self._file.read(*self._places[key])

    def rest(self) -> None:
        """There are no checksums."""


def nbytes(one: Storage) -> int:
    """Return the bytes of a whole storage in the file."""
    return one.whole * dtype_of(one.dtype).itemsize


def write(path: Path, content: Content) -> None:
    import torch

    whole = _to_torch(content.tree, "")
    with path.open("wb") as file:  # pass a file, not its name: the name would become part of the content
        try:
            torch.save(whole, file)
        except RuntimeError as error:  # PyTorch's writer hides the system's error behind its own
            raise error.__context__ if isinstance(error.__context__, OSError) else OSError(str(error)) from None
    if content.metadata:
        with zipfile.ZipFile(path, "a") as archive:
            archive.writestr(zipfile.ZipInfo(EXTRA), json.dumps(content.metadata, sort_keys=True))


def _to_torch(node: Any, name: str) -> Any:
    from ports.weights.live.pytorch import to_torch

    if is_array(node):
        try:
            return to_torch(np.asarray(node))
        except TypeError:
            raise WeightsError(f"{name}: PyTorch has no type {node.dtype}") from None
    if isinstance(node, dict):
        return {key: _to_torch(value, f"{name}.{key}" if name else str(key)) for key, value in node.items()}
    if isinstance(node, list):
        return [_to_torch(value, f"{name}.{i}") for i, value in enumerate(node)]
    return node
