"""NumPy's `.npz`: a zip of `.npy` files. Never unpickled; sizes are checked before anything is inflated.

Types that numpy has from ml_dtypes only are written as plain bytes (`V2`); their names, and the metadata, stand in the
zip's comment, which numpy ignores.
"""

from __future__ import annotations

import json
import math
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format as npy

from ports.weights.formats import EXTENDED, Content, arrays, dtype_of
from ports.weights.hub import WeightsError
from ports.weights.source import Source

SUFFIX = ".npy"
LARGEST_COMMENT = 65535
HEADERS = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}


def read(source: Source) -> Content:
    path = source.path
    with source.file.stream() as file, zipfile.ZipFile(file) as archive:
        members = archive.infolist()
        source.budget.take(sum(member.file_size for member in members))
        about = _comment(archive.comment)
        tree: dict[str, Any] = {}
        for member in members:
            name = member.filename.removesuffix(SUFFIX)
            if name in tree:
                raise ValueError(f"{name[:80]!r} stands there twice")
            tree[name] = _member(archive, member, name, about.get("dtypes", {}))
    if not tree:
        raise WeightsError(f"weights {path}: holds no tensors")
    return Content(tree, {str(key): str(value) for key, value in about.get("metadata", {}).items()})


def _comment(comment: bytes) -> dict[str, Any]:
    try:
        about = json.loads(comment) if comment else {}
    except ValueError:
        return {}
    about = about if isinstance(about, dict) else {}
    return {key: value for key, value in about.items() if isinstance(value, dict)}


def _member(archive: zipfile.ZipFile, member: zipfile.ZipInfo, name: str, dtypes: dict[str, str]) -> np.ndarray:
    with archive.open(member) as file:
        version = npy.read_magic(file)
        if version not in HEADERS:
            raise ValueError(f"{name[:80]!r}: unknown version {version} of npy")
        shape, fortran, dtype = HEADERS[version](file)
        if dtype.kind == "V" and name in dtypes:
            dtype = dtype_of(str(dtypes[name]))
        elif dtype.kind not in "biufc":
            raise ValueError(f"{name[:80]!r}: type {dtype} is no number")
        size = math.prod(shape) * dtype.itemsize
        if min(shape, default=0) < 0 or size + file.tell() != member.file_size:
            raise ValueError(f"{name[:80]!r}: {dtype} {shape} takes {size:,} bytes, the file has {member.file_size:,}")
        content = bytearray(file.read(size))
        if len(content) != size or file.read(1):
            raise ValueError(f"{name[:80]!r}: is not as long as its header says")
    array = np.frombuffer(content, dtype).reshape(shape, order="F" if fortran else "C")
    return array if dtype.isnative else array.astype(dtype.newbyteorder("="))


def write(path: Path, content: Content) -> None:
    tensors = arrays(content.tree)
    dtypes = {name: array.dtype.name for name, array in tensors.items() if array.dtype.name in EXTENDED}
    about = {**({"dtypes": dtypes} if dtypes else {}), **({"metadata": content.metadata} if content.metadata else {})}
    comment = json.dumps(about, sort_keys=True).encode() if about else b""
    if len(comment) > LARGEST_COMMENT:
        comment = json.dumps({"dtypes": dtypes}, sort_keys=True).encode() if dtypes else b""
        if len(comment) > LARGEST_COMMENT:
            raise WeightsError(f"npz: no room for the types of {len(dtypes)} tensors ({next(iter(dtypes.values()))})")
    with zipfile.ZipFile(path, "w") as archive:
        archive.comment = comment
        for name, array in tensors.items():
            if "\0" in name or len(name.encode("utf-8", "surrogatepass")) > 65000:
                raise WeightsError(f"{name[:80]!r}: a zip cannot hold such a name")
            array = np.asarray(array)
            bare = array.view(f"V{array.dtype.itemsize}") if name in dtypes else array
            try:
                with archive.open(zipfile.ZipInfo(name + SUFFIX), "w", force_zip64=True) as file:
                    npy.write_array(file, np.asarray(bare, order="C"), version=None, allow_pickle=False)
            except UnicodeEncodeError:
                raise WeightsError(f"{name[:80]!r}: is no valid Unicode, which a zip cannot hold") from None
