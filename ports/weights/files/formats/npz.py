"""NumPy's `.npz`: a zip of `.npy` files. Never unpickled; sizes are counted before anything is inflated.

Types that numpy has only through ml_dtypes are written as plain bytes (`V2`); their names, and the metadata, are in the
zip's comment, which numpy ignores.
"""

from __future__ import annotations

import io
import json
import math
import tokenize
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format as npy

from ports.weights.files.formats import EXTENDED, Content, arrays, dtype_of
from ports.weights.files.formats.zips import Archive
from ports.weights.files.source import Source
from ports.weights.form.torch_form import WeightsError

SUFFIX = ".npy"
LARGEST_COMMENT = 65535
HEADERS = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
LONGEST_HEADER = 1 << 16


def read(source: Source) -> Content:
    archive = Archive(source)
    source.budget.take(sum(member.size for member in archive.members.values()))
    about = _comment(archive.comment)
    tree: dict[str, Any] = {}
    for member in archive.members.values():
        name = member.name.removesuffix(SUFFIX)
        if name in tree:
            raise ValueError(f"{name[:80]!r} stands there twice")
        tree[name] = _array(source, archive.read(member), name, about.get("dtypes", {}))
    if not tree:
        raise WeightsError(f"weights {source.path}: holds no tensors")
    return Content(tree, {str(key): str(value) for key, value in about.get("metadata", {}).items()})


def _comment(comment: bytes) -> dict[str, Any]:
    try:
        about = json.loads(comment) if comment else {}
    except ValueError:
        return {}
    about = about if isinstance(about, dict) else {}
    return {key: value for key, value in about.items() if isinstance(value, dict)}


def _array(source: Source, content: bytearray, name: str, dtypes: dict[str, str]) -> np.ndarray:
    """Return the tensor of a whole `.npy` file; it keeps the file's bytes."""
    shape, fortran, dtype, begin = _header(bytes(content[:LONGEST_HEADER]), name)
    if dtype.kind == "V" and name in dtypes:
        dtype = dtype_of(str(dtypes[name]))
    elif dtype.kind not in "biufc":
        raise ValueError(f"{name[:80]!r}: type {str(dtype)[:80]} is not a number")
    size = math.prod(shape) * dtype.itemsize
    if min(shape, default=0) < 0 or size + begin != len(content):
        got = len(content) - begin
        raise ValueError(f"{name[:80]!r}: {dtype} {str(shape)[:80]} takes {size:,} bytes, the file has {got:,}")
    array = np.frombuffer(content, dtype, offset=begin).reshape(shape, order="F" if fortran else "C")
    if array.flags.aligned and dtype.isnative:
        return array
    source.budget.take(size)
    return array.astype(dtype.newbyteorder("=")) if dtype.kind != "V" else array.copy()


def _header(content: bytes, name: str) -> tuple[tuple[int, ...], bool, np.dtype, int]:
    """Return shape, order, type, and the position where the numbers begin."""
    file = io.BytesIO(content)
    version = npy.read_magic(file)
    if version not in HEADERS:
        raise ValueError(f"{name[:80]!r}: unknown version {version} of npy")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # numpy prints advice about files of Python 2
            return *HEADERS[version](file), file.tell()
    except (
        RecursionError,
        MemoryError,
        SyntaxError,
        TypeError,
        tokenize.TokenError,
    ):  # numpy parses it as a Python expression
        raise ValueError(f"{name[:80]!r}: the header of npy is damaged") from None


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
                raise WeightsError(f"{name[:80]!r}: is not valid Unicode, which a zip cannot hold") from None
