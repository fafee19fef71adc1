"""Formats of files: every bit and name both ways, the same bytes twice; other libraries read what is written."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import flax.serialization
import ml_dtypes
import numpy as np
import orbax.checkpoint as ocp
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from ports.weights import WeightsError, load, save
from ports.weights.files import formats
from ports.weights.files.atomic import publish
from ports.weights.files.formats import EXTENDED, FORMATS, Content

Tensors = dict[str, np.ndarray]

NUMBERS = ["float16", "float32", "float64", "complex64", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32"]
NUMBERS += ["uint64", "bool", "bfloat16", "float8_e4m3fn", "float8_e5m2"]
FLAT = [row for row in FORMATS.values() if row.name != "orbax"]


def suffix(row: formats.Format) -> str:
    return row.suffixes[0] if row.suffixes else ""


def random_bits(dtype: str, shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    """NaN payloads, infinities, subnormals and negative zeros among them."""
    kind = formats.dtype_of(dtype)
    count = int(np.prod(shape))
    bits = np.random.default_rng(seed).bytes(count * kind.itemsize)
    array = np.frombuffer(bits, np.uint8)
    array = (array % 2).astype(bool) if dtype == "bool" else array.view(kind)
    if kind.kind == "f" and count:
        array = array.copy()
        array[:1] = -0.0
    return array.reshape(shape).copy()


TENSORS: Tensors = {f"a.{dtype}": random_bits(dtype, (2, 3, 4)) for dtype in NUMBERS}
SHAPES: Tensors = {
    "scalar": random_bits("float32", ()),
    "whole": np.array(2**62, np.int64),
    "empty": np.zeros((0, 3), np.float16),
    "view": random_bits("float64", (3, 4)).T,
    "every.other": random_bits("float32", (8, 4))[::2, ::-1],
}
NAMES: Tensors = {
    name: np.full(2, i, np.float32)
    for i, name in enumerate(
        ["", " ", ".", "..", "../up", "a/b", "a\\b", "é\n", "日本", "x" * 300, "a.npy", "_", "0", "%"]
    )
}
# Without dots in the wrong places: Orbax joins the parts of a name with dots.
CONTENTS = {"types": TENSORS, "shapes": SHAPES, "names": NAMES}


def same(a: Any, b: Tensors) -> bool:
    """Names in any order, types, shapes and bits."""
    return a.keys() == b.keys() and all(
        (a[n].dtype, a[n].shape, np.asarray(a[n]).tobytes()) == (b[n].dtype, b[n].shape, np.asarray(b[n]).tobytes())
        for n in a
    )


def digest(path: Path) -> str:
    files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    return hashlib.sha256(b"".join(p.relative_to(path).as_posix().encode() + p.read_bytes() for p in files)).hexdigest()


def written(path: Path, tensors: Tensors, row: formats.Format, metadata: dict[str, str] | None = None) -> Path:
    with publish(path) as partial:
        formats.write(partial, Content(tensors, metadata or {}), row)
    return path


@pytest.mark.parametrize("content", CONTENTS)
@pytest.mark.parametrize("row", FORMATS.values(), ids=FORMATS)
def test_every_bit_and_every_name(row: formats.Format, content: str, tmp_path: Path) -> None:
    path = written(tmp_path / f"w{suffix(row)}", CONTENTS[content], row)
    assert same(formats.read(path, row.name).tree, CONTENTS[content])


@pytest.mark.parametrize("row", FORMATS.values(), ids=FORMATS)
def test_two_runs_give_the_same_bytes(row: formats.Format, tmp_path: Path) -> None:
    about = {"source": "a.pth", "tool": "é"}
    paths = [written(tmp_path / f"{name}{suffix(row)}", TENSORS | SHAPES, row, about) for name in ("one", "two")]
    assert digest(paths[0]) == digest(paths[1])


@pytest.mark.parametrize("row", FORMATS.values(), ids=FORMATS)
def test_metadata_travel_where_there_is_room(row: formats.Format, tmp_path: Path) -> None:
    about = {"source": "a.pth", "tool": "é \n"}
    path = written(tmp_path / f"w{suffix(row)}", TENSORS, row, about)
    assert formats.read(path, row.name).metadata == ({} if row.name == "msgpack" else about)


@pytest.mark.parametrize("row", FORMATS.values(), ids=FORMATS)
def test_save_and_load(row: formats.Format, tmp_path: Path) -> None:
    path = tmp_path / f"w{suffix(row)}"
    save(path, TENSORS, format=row.name)
    found = load(path, format=row.name)
    assert same(found, TENSORS)
    found["a.float32"][...] = 7  # a copy: the file stays
    assert same(load(path, format=row.name), TENSORS)
    with pytest.raises(WeightsError, match="exists"):
        save(path, TENSORS, format=row.name)
    save(path, SHAPES, format=row.name, force=True)
    assert same(load(path, format=row.name), SHAPES)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_others_read_what_is_written(tmp_path: Path) -> None:
    kept = {name: array for name, array in TENSORS.items() if array.dtype.name != "uint16"}
    paths = {name: written(tmp_path / f"w{suffix(row)}{name}", kept, row) for name, row in FORMATS.items()}
    plain = {name: array for name, array in kept.items() if array.dtype.name not in EXTENDED}
    for found in (torch.load(paths["torch"], weights_only=True), load_file(paths["safetensors"])):
        assert found.keys() == kept.keys()
        assert all(np.array_equal(found[n].numpy().view(np.uint8), plain[n].view(np.uint8)) for n in plain)
        assert found["a.bfloat16"].dtype == torch.bfloat16
    with np.load(paths["npz"]) as found:
        assert all(found[n].tobytes() == array.tobytes() for n, array in kept.items())
    assert same(flax.serialization.msgpack_restore(paths["msgpack"].read_bytes()), kept)
    with ocp.StandardCheckpointer() as checkpointer:
        assert same(checkpointer.restore(paths["orbax"]), kept)


def test_what_others_wrote_is_read(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", **{"x.y": np.ones(3), "f": np.asfortranarray(np.arange(6.0).reshape(2, 3))})
    np.savez_compressed(tmp_path / "b.npz", **{"x.y": np.zeros(3000), "big": np.arange(3, dtype=">i4")})
    assert load(tmp_path / "a.npz")["f"].tolist() == [[0, 1, 2], [3, 4, 5]]
    assert load(tmp_path / "b.npz")["big"].tolist() == [0, 1, 2]
    (tmp_path / "c.msgpack").write_bytes(flax.serialization.msgpack_serialize(TENSORS))
    assert same(load(tmp_path / "c.msgpack"), TENSORS)
    with ocp.StandardCheckpointer() as checkpointer:  # with Orbax's defaults
        checkpointer.save(tmp_path / "d", {"a": {"b": TENSORS["a.bfloat16"]}, "list": [np.ones(2), np.zeros(3)]})
    found = load(tmp_path / "d")
    assert list(found) == ["a.b", "list.0", "list.1"]
    assert found["a.b"].tobytes() == TENSORS["a.bfloat16"].tobytes()


def test_msgpack_in_chunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Flax splits arrays above 2**30 bytes."""
    from ports.weights.files.formats import msgpack

    monkeypatch.setattr(msgpack, "CHUNK", 16)
    monkeypatch.setattr(flax.serialization, "MAX_CHUNK_SIZE", 16)
    path = written(tmp_path / "w.msgpack", TENSORS, FORMATS["msgpack"])
    assert same(formats.read(path).tree, TENSORS)
    assert same(flax.serialization.msgpack_restore(path.read_bytes()), TENSORS)


def test_shards(tmp_path: Path) -> None:
    tensors = {f"t{i}": np.full(100, i, np.float32) for i in range(5)} | {"large": np.zeros(1000, np.float32)}
    with publish(tmp_path / "w") as partial:
        formats.write(partial, Content(tensors), FORMATS["sharded"], shard_size=900)
    files = sorted(p.name for p in (tmp_path / "w").iterdir())
    assert files[:4] == [f"model-{i:05}-of-00004.safetensors" for i in range(1, 5)]
    assert same(load(tmp_path / "w"), tensors)
    assert same(load(tmp_path / "w" / "model.safetensors.index.json"), tensors)
    index = json.loads((tmp_path / "w" / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(a.nbytes for a in tensors.values())


def test_shards_of_pytorch(tmp_path: Path) -> None:
    for i, name in enumerate("ab"):
        torch.save({name: torch.full((2,), i)}, tmp_path / f"{name}.bin")
    table = {"weight_map": {"a": "a.bin", "b": "b.bin"}}
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps(table))
    assert {n: a.tolist() for n, a in load(tmp_path).items()} == {"a": [0, 0], "b": [1, 1]}


def test_shared_storages_and_views_of_pytorch(tmp_path: Path) -> None:
    whole = torch.arange(12.0)
    torch.save(
        {"a": whole[2:8].view(2, 3), "b": whole[::2], "tied": whole, "again": whole, "wide": whole[:1].expand(4)},
        tmp_path / "w.pt",
    )
    found = load(tmp_path / "w.pt")
    assert found["a"].tolist() == [[2, 3, 4], [5, 6, 7]]
    assert found["b"].tolist() == [0, 2, 4, 6, 8, 10]
    assert found["tied"].tolist() == found["again"].tolist() == list(range(12))
    assert found["wide"].tolist() == [0] * 4


def test_what_a_format_cannot_hold_is_said(tmp_path: Path) -> None:
    for name, tensors, said in (
        ("w.safetensors", {"c": np.ones(1, np.complex128)}, "no type complex128"),
        ("w.safetensors", {"__metadata__": np.ones(1)}, "keeps for itself"),
        ("w.npz", {"a\0b": np.ones(1)}, "zip"),
        ("w.safetensors", {"\ud800": np.ones(1)}, "Unicode"),
        ("w.npz", {"\ud800": np.ones(1)}, "Unicode"),
        ("w.msgpack", {"\ud800": np.ones(1)}, "Unicode"),
        ("w.pt", {"e": np.ones(1, formats.dtype_of("float8_e3m4"))}, "no type float8_e3m4"),
        ("w", {"only": np.zeros(0)}, "empty"),
        ("w.pt", {}, "no tensors"),
    ):
        with pytest.raises(WeightsError, match=said):
            save(tmp_path / name, tensors)
    assert list(tmp_path.iterdir()) == []


names = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20)
arrays: Any = st.builds(
    lambda dtype, shape, seed: random_bits(dtype, tuple(shape), seed),
    st.sampled_from(NUMBERS),
    st.lists(st.integers(0, 3), max_size=3),
    st.integers(0, 2**16),
)


@settings(max_examples=40)
@given(st.dictionaries(names, arrays, min_size=1, max_size=4), st.sampled_from([row.name for row in FLAT]))
def test_anything_round_trips(tmp_path_factory: pytest.TempPathFactory, tensors: Tensors, name: str) -> None:
    if name in ("safetensors", "sharded") and "__metadata__" in tensors:
        return
    path = written(tmp_path_factory.mktemp("any") / "w", tensors, FORMATS[name])
    assert same(formats.read(path, name).tree, tensors)


@pytest.mark.parametrize("row", FORMATS.values(), ids=FORMATS)
def test_numbers_in_the_byte_order_of_another_machine(row: formats.Format, tmp_path: Path) -> None:
    """Msgpack took the bytes as they were under the type's name, which has no order: other numbers came back."""
    tensors: Tensors = {"a": np.arange(3, dtype=">f8"), "b": np.array(7, ">i2"), "c": np.zeros((0, 2), ">c8")}
    path = tmp_path / f"w{suffix(row)}"
    save(path, tensors, format=row.name)
    assert same(load(path, format=row.name), {n: a.astype(a.dtype.newbyteorder("=")) for n, a in tensors.items()})


@pytest.mark.parametrize(
    "array",
    [np.array("text"), np.array([b"x"]), np.array([None]), np.zeros(2, "datetime64[s]"), np.zeros(2, "f4,f4"),
     np.zeros(2, ml_dtypes.int4)],
    ids=lambda array: str(array.dtype),
)  # fmt: skip
@pytest.mark.parametrize("row", FORMATS.values(), ids=FORMATS)
def test_what_is_no_number_is_not_written(row: formats.Format, array: np.ndarray, tmp_path: Path) -> None:
    """It was, and the file could not be read."""
    with pytest.raises(WeightsError, match=r"t: is of type .*, expected numbers"):
        save(tmp_path / f"w{suffix(row)}", {"a": np.ones(2), "t": array}, format=row.name)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("row", FORMATS.values(), ids=FORMATS)
def test_truth_values_of_other_bytes(row: formats.Format, tmp_path: Path) -> None:
    """Some files hold a 5 for true: Orbax wrote it, and did not read it."""
    array = np.array([0, 1, 5, 178], np.uint8).view(bool)
    for name, bits in (("flat", array), ("square", array.reshape(2, 2).T), ("one", array[2:3].reshape(()))):
        path = tmp_path / f"{name}{suffix(row)}"
        save(path, {"a": bits}, format=row.name)
        found = load(path, format=row.name)["a"]
        assert found.tobytes() == (bits.copy().view(np.uint8) != 0).tobytes()
        assert np.array_equal(found, bits.view(np.uint8) != 0)
