"""A conversion as a script of its own, which needs NumPy and nothing of this package."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from ports.weights.form.rearrangement import Gathering, Layout
from ports.weights.rules.tensors import TensorRow

TEMPLATE = '''"""Converts checkpoints of one model between PyTorch and Flax, bit for bit, with NumPy alone.

    python {name} to-flax  model.safetensors flax.safetensors
    python {name} to-torch flax.safetensors  model.safetensors

The files are safetensors. `parity export-mapping` wrote this from a pair of models. No number is computed: each is
moved to its place.
"""

import json
import os
import sys

import numpy as np

# Of each row: the tensors of PyTorch, the variables of Flax, and how the ones become the others.
ROWS = json.loads(r"""
{rows}
""")
# Tensors that Flax does not have. They are kept in the metadata of its files, so that the way back gives them again.
ALONE = json.loads(r"""
{alone}
""")
# PyTorch's second names of tensors, and the first ones. The way back gives those that the file had.
TIED = json.loads(r"""
{tied}
""")
UNSIGNED = {{1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}}
SIZES = {{"BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "I16": 2, "U16": 2, "F16": 2, "BF16": 2}}
SIZES |= {{"I32": 4, "U32": 4, "F32": 4, "I64": 8, "U64": 8, "F64": 8, "C64": 8}}


def read(path):
    """Return the tensors of a file, as unsigned integers of their size, with their types; and the metadata."""
    with open(path, "rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        data = file.read()
    tensors = {{}}
    for name, about in header.items():
        if name != "__metadata__":
            start, end = about["data_offsets"]
            array = np.frombuffer(data[start:end], UNSIGNED[SIZES[about["dtype"]]]).reshape(about["shape"])
            tensors[name] = about["dtype"], array
    return tensors, header.get("__metadata__", {{}})


def write(path, tensors, metadata):
    """Write a file whole, or not at all."""
    header, start = {{"__metadata__": metadata}} if metadata else {{}}, 0
    for name, (kind, array) in tensors.items():
        header[name] = {{"dtype": kind, "shape": list(array.shape), "data_offsets": [start, start + array.nbytes]}}
        start += array.nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path + ".part", "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for _, array in tensors.values():
            file.write(np.ascontiguousarray(array).tobytes())
    os.replace(path + ".part", path)


def together(arrays, how):
    if how is None:
        return arrays[0]
    arrays = [forth(array, part) for array, part in zip(arrays, how["parts"])] if how["parts"] else arrays
    inside = [arrays[i] for i in how["order"]]
    return np.stack(inside) if how["stacked"] else np.concatenate(inside)


def apart(array, how):
    if how is None:
        return [array]
    sizes = [how["sizes"][i] for i in how["order"]]
    inside = list(array) if how["stacked"] else np.split(array, np.cumsum(sizes)[:-1])
    arrays = [inside[how["order"].index(i)] for i in range(len(inside))]
    return [back(array, part) for array, part in zip(arrays, how["parts"])] if how["parts"] else arrays


def forth(array, row):
    new = array.reshape(row["cut"]).transpose(row["transpose"]).reshape(row["reshape"])
    return np.flip(new, row["flip"]) if row["flip"] else new


def back(array, row):
    array = np.flip(array, row["flip"]) if row["flip"] else array
    cut = [row["cut"][i] for i in row["transpose"]]
    return array.reshape(cut).transpose(np.argsort(row["transpose"])).reshape(row["shape"])


def moved(given, here, there, change, dropped):
    """Return the tensors under their other names. Each is read once, and each is written once."""
    found, used = {{}}, set(dropped)
    for row in ROWS:
        absent = [name for name in row[here] if name not in given]
        if absent:
            sys.exit(f"{{absent[0]}}: is not in the file; expected a checkpoint of the model that this script is for")
        kinds = {{given[name][0] for name in row[here]}}
        if len(kinds) > 1:
            sys.exit(f"{{', '.join(row[here])}}: have the types {{', '.join(sorted(kinds))}}; expected one")
        used |= set(row[here])
        arrays = change([given[name][1] for name in row[here]], row)
        found |= {{name: (kinds.copy().pop(), array) for name, array in zip(row[there], arrays)}}
    left = sorted(set(given) - used)
    if left:
        sys.exit(f"{{', '.join(left[:5])}}: nothing says where this goes; expected a checkpoint of the model")
    return found


def main():
    if len(sys.argv) != 4 or sys.argv[1] not in ("to-flax", "to-torch"):
        sys.exit(__doc__)
    way, source, target = sys.argv[1:]
    given, metadata = read(source)
    if way == "to-flax":
        tied = [name for name in TIED if name in given]
        for name in tied:
            if not np.array_equal(given[name][1], given[TIED[name]][1]):
                sys.exit(f"{{name}}: differs from {{TIED[name]}}; expected one tensor, as in the model")
        kept = {{name: given[name] for name in ALONE if name in given}}
        found = moved(
            given,
            "torch",
            "flax",
            lambda a, row: apart(forth(together(a, row["gather"]), row), row["spread"]),
            [*ALONE, *tied],
        )
        held = {{name: [kind, list(a.shape), a.tobytes().hex()] for name, (kind, a) in kept.items()}}
        more = {{"kept": json.dumps(held)}} if held else {{}}
        more |= {{"tied": json.dumps(tied)}} if tied else {{}}
        write(target, found, {{**metadata, **more}})
    else:
        found = moved(
            given, "flax", "torch", lambda a, row: apart(back(together(a, row["spread"]), row), row["gather"]), ()
        )
        for name, (kind, shape, data) in json.loads(metadata.pop("kept", "{{}}")).items():
            found[name] = kind, np.frombuffer(bytes.fromhex(data), UNSIGNED[SIZES[kind]]).reshape(shape)
        found |= {{name: found[TIED[name]] for name in json.loads(metadata.pop("tied", "[]"))}}
        write(target, found, metadata)
    print(f"written {{target}}: {{len(found)}} tensors")


if __name__ == "__main__":
    main()
'''


def text(rows: Sequence[TensorRow], alone: Sequence[str], name: str, tied: Mapping[str, str] | None = None) -> str:
    """Return the script.

    Args:
        alone: PyTorch's tensors that Flax does not have.
        name: of the script.
        tied: the first names of tensors of PyTorch's, by their second ones.
    """
    found: list[dict[str, Any]] = []
    for row in (row for row in rows if row.flax):
        form, names = row.form, {"torch": row.torch, "flax": row.flax}
        both = {"gather": _gathering(form.gathering), "spread": _gathering(form.spreading)}
        found.append({**names, **both, **_steps(form.layout)})
    dropped = [*alone, *(name for row in rows if not row.flax for name in row.torch)]
    listed = ",\n".join(json.dumps(row) for row in found)
    return TEMPLATE.format(name=name, rows=f"[\n{listed}\n]", alone=json.dumps(dropped), tied=json.dumps(tied or {}))


def _gathering(how: Gathering | None) -> dict[str, Any] | None:
    if how is None:
        return None
    parts = [_steps(layout) for layout in how.layouts]
    return {"sizes": how.sizes, "stacked": how.stacked, "order": how.order, "parts": parts}


def _steps(layout: Layout) -> dict[str, Any]:
    steps = {"shape": layout.old, "cut": layout.fine, "transpose": layout.order, "reshape": layout.shape}
    return {**steps, "flip": layout.flip}
