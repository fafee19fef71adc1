"""Orbax folders of every kind that Orbax and others write, read without Orbax, bit by bit."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
import tensorstore as ts
from test_formats import random_bits, same, written

from parity.commands.cli import main
from ports import weights
from ports.weights import WeightsError
from ports.weights.files import formats
from ports.weights.files.formats import FORMATS, flat
from ports.weights.files.formats.compressed import most

KINDS: dict[str, dict[str, Any]] = {
    "database": {},
    "zarr": {"use_ocdbt": False},
    "zarr3": {"use_ocdbt": False, "use_zarr3": True},
    "database of zarr3": {"use_zarr3": True},
}
TREE: dict[str, Any] = {
    "a": {"w": random_bits("float32", (3, 4)), "k": jnp.ones(3, jnp.bfloat16)},
    "types": {name: random_bits(name, (5,)) for name in ("float16", "int64", "uint8", "bool", "complex64")},
    "list": [np.ones(2), np.zeros(3)],
    "tuple": (np.ones(1),),
    "whole": 3,
    "fraction": 2.5,
    "table": {},
    "empty": [],
    "none": None,
    "zero": np.zeros((40, 50)),
}


def save(path: Path, tree: Any, kind: str) -> Path:
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler(**KINDS[kind])) as checkpointer:
        checkpointer.save(path, tree)
    return path


def leaves(tree: Any) -> dict[str, np.ndarray]:
    """Return the arrays of a tree as Orbax restores it."""

    def plain(node: Any) -> Any:
        node = dict(enumerate(node)) if isinstance(node, list | tuple) else node
        return {str(k): plain(v) for k, v in node.items() if v is not None} if isinstance(node, dict) else node

    return {".".join(at): np.asarray(leaf) for at, leaf in flat(plain(tree))}


@pytest.mark.parametrize("kind", KINDS)
def test_what_orbax_restores(kind: str, tmp_path: Path) -> None:
    path = save(tmp_path / "w", TREE, kind)
    got = formats.read(path, "orbax").tree
    with ocp.StandardCheckpointer() as checkpointer:
        assert same(leaves(got), leaves(checkpointer.restore(path)))
    assert got["table"] == got["empty"] == {}


def test_text(tmp_path: Path) -> None:
    path = save(tmp_path / "w", {"text": "hello", "x": np.ones(1)}, "database")
    assert formats.read(path, "orbax").tree["text"] == np.asarray("hello")
    (path / "_strings.json").unlink()
    with pytest.raises(WeightsError, match="its text is missing"):
        formats.read(path, "orbax")


@pytest.mark.parametrize("kind", KINDS)
def test_missing_pieces_are_not_taken_for_zeros(kind: str, tmp_path: Path) -> None:
    path = save(tmp_path / "w", {"a": np.ones((3, 4)), "b": np.ones(2)}, kind)
    if kind.startswith("database"):
        store: Any = ts.KvStore.open({"driver": "ocdbt", "base": {"driver": "file", "path": f"{path}/"}}).result()
        store.delete_range(ts.KvStore.KeyRange("a/0", "a/0~" if kind == "database" else "a/0")).result()
        store.delete_range(ts.KvStore.KeyRange("a/c", "a/d")).result()
    else:
        (path / "a" / ("0.0" if kind == "zarr" else "c/0/0")).unlink()
    with pytest.raises(WeightsError, match=r"a: the piece .* is missing"):
        formats.read(path, "orbax")
    if kind != "zarr":  # before Orbax noted it, pieces of fill values were left out
        about = json.loads((path / "_METADATA").read_text())
        del about["store_array_data_equal_to_fill_value"]
        (path / "_METADATA").write_text(json.dumps(about))
        assert not formats.read(path, "orbax").tree["a"].any()


COMPRESSORS: list[Any] = [
    None,
    {"id": "zstd", "level": 1},
    {"id": "zstd", "level": 19},
    {"id": "zlib", "level": 9},
    {"id": "gzip", "level": 1},
    {"id": "bz2", "level": 9},
    {"id": "blosc", "cname": "lz4", "clevel": 5, "shuffle": 1},
    {"id": "blosc", "cname": "zstd", "clevel": 9, "shuffle": 2},
]


@pytest.mark.sample(30)
@pytest.mark.parametrize("separator", [".", "/"])
@pytest.mark.parametrize("compressor", COMPRESSORS, ids=lambda one: one and "-".join(map(str, one.values())))
@pytest.mark.parametrize("dtype", ["<f4", ">i2", "bfloat16", "|b1", "<c16"])
def test_zarr_of_others(compressor: Any, separator: str, dtype: str, tmp_path: Path) -> None:
    """Several pieces, the last ones of which go beyond the array."""
    path = written(tmp_path / "w", {"a": np.ones(1)}, FORMATS["orbax"])
    shutil.rmtree(path / "a")
    about = {"shape": [50, 70], "chunks": [32, 40], "dtype": dtype, "compressor": compressor}
    spec = {"driver": "zarr", "kvstore": {"driver": "file", "path": f"{path}/a/"}}
    metadata = about | {"dimension_separator": separator, "order": "F"}
    array: Any = ts.open(spec | {"metadata": metadata}, create=True).result()
    numbers = random_bits(str(array.dtype.numpy_dtype), (50, 70))
    array.write(numbers).result()
    (path / "_CHECKPOINT_METADATA").unlink()  # it has the checksum of the first one
    assert same(formats.read(path, "orbax").tree, {"a": numbers})


BYTES = {"name": "bytes", "configuration": {"endian": "little"}}
ZSTD = {"name": "zstd", "configuration": {"level": 1}}
GZIP = {"name": "gzip", "configuration": {"level": 1}}
BLOSC = {"name": "blosc", "configuration": {"cname": "lz4", "clevel": 5, "shuffle": "noshuffle"}}
SUM = {"name": "crc32c"}
TURN = {"name": "transpose", "configuration": {"order": [1, 0]}}


def sharded(*codecs: Any) -> list[Any]:
    own = {"chunk_shape": [16, 20], "codecs": list(codecs), "index_codecs": [BYTES, SUM]}
    return [{"name": "sharding_indexed", "configuration": own}]


@pytest.mark.parametrize(
    "codecs",
    [
        *([BYTES], [BYTES, ZSTD], [BYTES, GZIP], [BYTES, BLOSC], [BYTES, ZSTD, SUM], [TURN, BYTES, SUM]),
        *(sharded(BYTES), sharded(BYTES, ZSTD, SUM), sharded(BYTES, GZIP)),
    ],
    ids=lambda codecs: "-".join(re.findall(r"'name': '(\w+)'", str(codecs))),
)
def test_zarr3_of_others(codecs: list[Any], tmp_path: Path) -> None:
    path = save(tmp_path / "w", {"a": np.ones(1)}, "zarr3")
    shutil.rmtree(path / "a")
    grid = {"name": "regular", "configuration": {"chunk_shape": [32, 40]}}
    metadata = {"shape": [50, 70], "chunk_grid": grid, "data_type": "float32", "codecs": codecs}
    spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": f"{path}/a/"}, "metadata": metadata}
    array: Any = ts.open(spec, create=True).result()
    numbers = random_bits("float32", (50, 70))
    array.write(numbers).result()
    assert same(formats.read(path, "orbax").tree, {"a": numbers})
    piece = path / "a" / "c" / "0" / "0"
    content = piece.read_bytes()
    piece.write_bytes(content[:-30])
    with pytest.raises(WeightsError, match=r"weights .*w: damaged, or not a file of weights: a: "):
        formats.read(path, "orbax")


@pytest.mark.parametrize("about", [True, 1, "text", [1], {"ports": [1]}, {"ports": True}], ids=str)
def test_metadata_that_are_no_table(about: Any, tmp_path: Path) -> None:
    path = save(tmp_path / "w", {"a": np.ones(2)}, "zarr")
    table = json.loads((path / "_CHECKPOINT_METADATA").read_text())
    (path / "_CHECKPOINT_METADATA").write_text(json.dumps(table | {"custom_metadata": about}))
    with pytest.raises(WeightsError, match="_CHECKPOINT_METADATA is damaged"):
        formats.read(path, "orbax")


def test_text_is_not_converted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = save(tmp_path / "w", {"text": "hello", "x": np.ones(1)}, "zarr")
    for name in ("o.npz", "o.msgpack", "o.pt"):
        assert main(["convert", str(path), str(tmp_path / name), "--to", "torch"]) == 2
        assert "text: is of type <U5, expected numbers" in capsys.readouterr().err
        assert not (tmp_path / name).exists()


@pytest.mark.parametrize("kind", KINDS)
def test_a_folder_whose_name_is_not_text(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """TensorStore refuses its path with a complaint about a type of C++; the file was called damaged."""
    folder = tmp_path / "f\udcff"
    folder.mkdir()
    shutil.copytree(save(tmp_path / "w", {"a": np.ones(2)}, kind), folder / "w")
    shutil.copytree(tmp_path / "w", tmp_path / "w\udcff")
    for path in (folder / "w", tmp_path / "w\udcff"):
        if kind.startswith("database"):
            with pytest.raises(WeightsError, match="not valid Unicode, where its library cannot read"):
                formats.read(path, "orbax")
        else:
            assert formats.read(path, "orbax").tree["a"].all()
    formats.write(tmp_path / "s.npz", formats.Content({"a": np.ones(2)}), FORMATS["npz"])
    assert main(["convert", str(tmp_path / "s.npz"), str(folder / "o"), "--to", "torch"]) == 2
    assert "orbax: the output's place has a name that is not valid Unicode" in capsys.readouterr().err
    assert [path.name for path in folder.iterdir()] == ["w"]


@pytest.mark.parametrize("name", ["/", "//", "a/", "/a", "a//b", "a\\b", "?", "a#b", "%2f"])
def test_names_that_are_paths(name: str, tmp_path: Path) -> None:
    """A tensor called / was written, and not found again."""
    tensors = {name: np.arange(3.0), "w": np.ones(2)}
    weights.save(tmp_path / "o", tensors, format="orbax")
    assert same(weights.load(tmp_path / "o", format="orbax", strip=False), tensors)


def test_two_names_of_one_path_are_refused(tmp_path: Path) -> None:
    """The one was written over the other."""
    with pytest.raises(WeightsError, match="two tensors that Orbax would keep under one name"):
        weights.save(tmp_path / "o", {"a": np.arange(3.0), "a/": np.ones(2)}, format="orbax")


@pytest.mark.parametrize("name", [["zstd"], {"id": 1}, 7, "none such"])
def test_a_compressor_of_no_known_name(name: Any) -> None:
    with pytest.raises(ValueError, match="an unknown compressor"):
        most(name, b"", 0)
