"""Files that are not what they should be: one line on stderr, exit 2, nothing written; outputs appear whole."""

from __future__ import annotations

import errno
import io
import json
import os
import pickle
import random
import shutil
import signal
import struct
import subprocess
import sys
import time
import tracemalloc
import zipfile
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_convert import noise
from test_formats import digest, same, suffix, written

from parity.commands.cli import main
from ports.weights import WeightsError, convert, load, save
from ports.weights.files import atomic, formats
from ports.weights.files.formats import FORMATS

ROOT = Path(__file__).resolve().parents[1]
SMALL = {"a.weight": np.arange(600, dtype=np.float32).reshape(20, 30), "a.bias": np.ones(3, np.float16)}


def refused(path: Path, tmp_path: Path, capsys: Any, *options: str, said: str = "") -> None:
    """`parity convert` says one line, gives 2 and leaves nothing."""
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")}
    assert main(["convert", str(path), str(tmp_path / "out.npz"), *options]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith("parity: ")
    assert said in lines[0], lines[0]
    assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")} == before


FILES = [row for row in FORMATS.values() if not row.folder]


@pytest.mark.parametrize("left", [0, 1, 9, 100, 0.5, 0.98], ids=str)
@pytest.mark.parametrize("row", FILES, ids=lambda row: row.name)
def test_truncated_files(row: Any, left: float, tmp_path: Path, capsys: Any) -> None:
    path = written(tmp_path / f"w{suffix(row)}", SMALL, row)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * left) if isinstance(left, float) else left])
    refused(path, tmp_path, capsys, said=f"w{suffix(row)}: ")


@pytest.mark.parametrize("what", ["_METADATA", ".zarray", "a.weight/0.0", "a.weight"])
def test_orbax_folders_that_are_not_whole(what: str, tmp_path: Path, capsys: Any) -> None:
    path = written(tmp_path / "w", SMALL, FORMATS["orbax"])
    for found in path.glob(what if "/" in what or what[0] != "." else f"*/{what}"):
        shutil.rmtree(found) if found.is_dir() else found.unlink()
        break
    refused(path, tmp_path, capsys, said="w: ")


def test_truncated_pieces_of_orbax(tmp_path: Path, capsys: Any) -> None:
    path = written(tmp_path / "w", SMALL, FORMATS["orbax"])
    piece = path / "a.weight" / "0.0"
    piece.write_bytes(piece.read_bytes()[:20])
    refused(path, tmp_path, capsys, said="w: ")


@pytest.mark.parametrize("row", [FORMATS["torch"], FORMATS["npz"]], ids=lambda row: row.name)
def test_a_flipped_bit_of_a_tensor_is_seen_where_there_is_a_checksum(row: Any, tmp_path: Path, capsys: Any) -> None:
    path = written(tmp_path / f"w{suffix(row)}", SMALL, row)
    content = bytearray(path.read_bytes())
    content[content.find(SMALL["a.weight"].tobytes()) + 1000] ^= 4
    path.write_bytes(content)
    refused(path, tmp_path, capsys, said="damaged")


@pytest.mark.parametrize("name", ["safetensors", "sharded", "orbax"])
def test_a_flipped_bit_of_a_tensor_is_seen_in_what_was_written_here(name: str, tmp_path: Path, capsys: Any) -> None:
    """These formats have no checksums; ours is in the metadata."""
    path = written(tmp_path / "w", SMALL, FORMATS[name])
    files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
    largest = max(files, key=lambda file: file.stat().st_size)
    content = bytearray(largest.read_bytes())
    content[-200] ^= 4
    largest.write_bytes(content)
    refused(path, tmp_path, capsys, "--source-format", name, said="damaged")


@pytest.mark.parametrize("row", FILES, ids=lambda row: row.name)
def test_flipped_bits_of_a_header(row: Any, tmp_path: Path) -> None:
    """A flipped bit is an error, or is in a name or number that the format has no checksum for: never another type."""
    path = written(tmp_path / f"w{suffix(row)}", SMALL, row)
    content = path.read_bytes()
    rng, caught = random.Random(0), 0
    for _ in range(60):
        at = rng.randrange({"msgpack": 40}.get(row.name, 400))
        flipped = bytearray(content)
        flipped[at] ^= 1 << rng.randrange(8)
        path.write_bytes(flipped)
        try:
            assert sum(a.size for a in load(path).values()) > 0
        except WeightsError:
            caught += 1
    assert caught > 10


class Evil:
    def __reduce__(self) -> Any:
        return os.system, ("touch evil_has_run",)


def test_a_pickle_that_would_run_code(tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"a": Evil()}, tmp_path / "w.pth")
    refused(tmp_path / "w.pth", tmp_path, capsys, said="would run posix.system; refused")
    (tmp_path / "x.bin").write_bytes(pickle.dumps(Evil()))
    refused(tmp_path / "x.bin", tmp_path, capsys)
    with zipfile.ZipFile(tmp_path / "y.npz", "w") as archive:
        file = io.BytesIO()
        np.save(file, np.array([Evil()], object), allow_pickle=True)
        archive.writestr("a.npy", file.getvalue())
    refused(tmp_path / "y.npz", tmp_path, capsys, said="is not a number")
    assert not (tmp_path / "evil_has_run").exists()


@pytest.mark.parametrize("name", ["w.npz", "w.pt"])
def test_zip_bombs(name: str, tmp_path: Path, capsys: Any) -> None:
    """What the zip declares is more than the file may take, or than the pickle takes."""
    with zipfile.ZipFile(tmp_path / name, "w", zipfile.ZIP_DEFLATED) as archive:
        if name == "w.pt":
            archive.writestr("archive/data.pkl", b"\0" * 10**7)
        else:
            archive.writestr("a.npy", b"")
    if name == "w.npz":  # a member that declares an exabyte
        content = bytearray((tmp_path / name).read_bytes())
        at = content.find(b"PK\x01\x02")
        content[at + 24 : at + 28] = struct.pack("<I", 0xFFFFFFFE)
        (tmp_path / name).write_bytes(content)
    refused(tmp_path / name, tmp_path, capsys)


def test_a_few_bytes_that_ask_for_gigabytes(tmp_path: Path, capsys: Any) -> None:
    """Of a pickle: a text of 2.5 GB follows. Found by a fuzzer."""
    (tmp_path / "w.pth").write_bytes(b"XXXX\x98")
    tracemalloc.start()
    try:
        refused(tmp_path / "w.pth", tmp_path, capsys, said="damaged")
        assert tracemalloc.get_traced_memory()[1] < 200e6
    finally:
        tracemalloc.stop()


def test_a_member_that_claims_to_be_compressed_to_gigabytes(tmp_path: Path, capsys: Any) -> None:
    """Python's zipfile makes room for what a member is compressed to. Found by a fuzzer."""
    path = written(tmp_path / "w.pth", SMALL, FORMATS["torch"])
    content = bytearray(path.read_bytes())
    struct.pack_into("<I", content, content.rfind(b"PK\x01\x02") + 20, 335_544_320)
    path.write_bytes(content)
    refused(path, tmp_path, capsys, said="declares 335,5")


def test_a_member_that_is_not_what_it_declares(tmp_path: Path, capsys: Any) -> None:
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f4", "fortran_order": False, "shape": (10**12,)})
    with zipfile.ZipFile(tmp_path / "w.npz", "w") as archive:
        archive.writestr("a.npy", header.getvalue())
    refused(tmp_path / "w.npz", tmp_path, capsys, said="takes 4,000,000,000,000 bytes")


def test_npz_of_python_2(tmp_path: Path, capsys: Any, recwarn: pytest.WarningsRecorder) -> None:
    """Its whole numbers end with an L; numpy reads them, and printed two lines of advice."""
    file = io.BytesIO()
    np.save(file, np.arange(3.0))
    content = file.getvalue().replace(b"(3,), } ", b"(3L,), }")
    with zipfile.ZipFile(tmp_path / "w.npz", "w") as archive:
        archive.writestr("a.npy", content)
    assert main(["inspect", str(tmp_path / "w.npz")]) == 0
    assert capsys.readouterr().err == ""
    assert not recwarn.list
    assert same(load(tmp_path / "w.npz"), {"a": np.arange(3.0)})


def test_npz_that_declares_more_than_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path / "w.npz", SMALL)
    monkeypatch.setattr("psutil.virtual_memory", lambda: type("Memory", (), {"available": 1000}))
    with pytest.raises(WeightsError, match=r"would take .* limit 500 \(half of the 1,000 bytes"):
        load(tmp_path / "w.npz")


def header(table: Any, length: int | None = None, data: bytes = b"") -> bytes:
    text = table if isinstance(table, bytes) else json.dumps(table).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def entry(dtype: Any = "F32", shape: Any = (2,), begin: Any = 0, end: Any = 8) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


EIGHT = bytes(8)
HEADERS: dict[str, bytes] = {
    "2^63 bytes": header({}, 2**63),
    "2^64-1 bytes": header({}, 2**64 - 1),
    "longer than the file": header({}, 100),
    "no JSON": header(b"{nothing}"),
    "a list": header([]),
    "a list in braces": header(b"{}[]"),
    "no UTF-8": header(b'{"\xff": 1}'),
    "nested": header(b'{"a":' * 100_000),
    "NaN": header(b'{"a": NaN}'),
    "duplicate": header(b'{"a": %b, "a": %b}' % ((json.dumps(entry()).encode(),) * 2), data=EIGHT),
    "overlap": header({"a": entry(), "b": entry(begin=4, end=12)}, data=bytes(12)),
    "the same place": header({"a": entry(), "b": entry()}, data=EIGHT),
    "a gap": header({"a": entry(), "b": entry(begin=12, end=20)}, data=bytes(20)),
    "outside": header({"a": entry(end=8)}, data=b"1234"),
    "more behind": header({"a": entry()}, data=bytes(9)),
    "backwards": header({"a": entry(begin=8, end=0)}, data=EIGHT),
    "negative": header({"a": entry(begin=-8, end=0)}, data=EIGHT),
    "another size": header({"a": entry(shape=[3])}, data=EIGHT),
    "an overflowing shape": header({"a": entry(shape=[2**62, 4], end=0)}),
    "a negative shape": header({"a": entry(shape=[-1, -2])}, data=EIGHT),
    "a fraction": header({"a": entry(shape=[2.0])}, data=EIGHT),
    "true for a size": header({"a": entry("U8", [True], 0, 1)}, data=b"1"),
    "unknown type": header({"a": entry("F128")}, data=EIGHT),
    "a list for a type": header({"a": entry(["F32"])}, data=EIGHT),
    "no offsets": header({"a": {"dtype": "F32", "shape": [2]}}, data=EIGHT),
    "more keys": header({"a": {**entry(), "x": 1}}, data=EIGHT),
    "numbers for metadata": header({"__metadata__": {"a": 1}, "a": entry()}, data=EIGHT),
    "no tensors": header({}),
    "spaces": header(b"   "),
}


@pytest.mark.parametrize("kind", HEADERS)
def test_safetensors_headers(kind: str, tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "w.safetensors").write_bytes(HEADERS[kind])
    refused(tmp_path / "w.safetensors", tmp_path, capsys, said="w.safetensors: ")


packb: Any = msgpack.packb


def packed(*arrays: tuple[Any, Any, Any]) -> bytes:
    return packb({str(i): msgpack.ExtType(1, msgpack.packb(a)) for i, a in enumerate(arrays)})


MSGPACK = {
    "empty": msgpack.packb({}),
    "a list": msgpack.packb([1]),
    "text": msgpack.packb({"a": "text"}),
    "duplicate": b"\x82\xa1a\x01\xa1a\x02",
    "a number and text": b"\x82\x01\x01\xa11\x02",
    "short": packed(([2], "float32", b"1234")),
    "large": packed(([2**62], "float32", b"1234")),
    "negative": packed(([-1], "float32", b"")),
    "unknown type": packed(([1], "float31", b"1234")),
    "objects": packed(([1], "object", b"12345678")),
    "a structure": packed(([1], "f4,f4", b"12345678")),
    "no shape": packed((None, "float32", b"1234")),
    "another extension": msgpack.packb({"a": msgpack.ExtType(77, b"1")}),
    "chunks missing": msgpack.packb({"a": {"__msgpack_chunked_array__": True, "shape": {"0": 3}, "chunks": {}}}),
    "deep": b"\x81\xa1a" * 5000 + b"\x01",
    "more behind": packed(([1], "float32", b"1234")) + b"1",
}


@pytest.mark.parametrize("kind", MSGPACK)
def test_msgpack_trees(kind: str, tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "w.msgpack").write_bytes(MSGPACK[kind])
    refused(tmp_path / "w.msgpack", tmp_path, capsys, said="w.msgpack: ")


def test_npz_with_a_name_twice(tmp_path: Path, capsys: Any) -> None:
    file = io.BytesIO()
    np.save(file, np.ones(2))
    with zipfile.ZipFile(tmp_path / "w.npz", "w") as archive:
        archive.writestr("a.npy", file.getvalue())
        with pytest.warns(UserWarning, match="Duplicate"):
            archive.writestr("a.npy", file.getvalue())
    refused(tmp_path / "w.npz", tmp_path, capsys, said="twice")


def shards(folder: Path) -> dict[str, Any]:
    folder.mkdir()
    tensors = {"a": np.ones(2), "b": np.zeros(2)}
    formats.write(folder / "x", formats.Content(tensors), FORMATS["sharded"], shard_size=16)
    for file in (folder / "x").iterdir():
        file.rename(folder / file.name)
    (folder / "x").rmdir()
    return json.loads((folder / "model.safetensors.index.json").read_text())


INDICES: dict[str, Any] = {
    "missing": lambda t, f: (f / "model-00002-of-00002.safetensors").unlink(),
    "up": lambda t, f: t.update(b="../model-00002-of-00002.safetensors"),
    "absolute": lambda t, f: t.update(b=str(f / "model-00002-of-00002.safetensors")),
    "nothing": lambda t, f: t.update(b=""),
    "zero": lambda t, f: t.update(b="a\0b"),
    "a number": lambda t, f: t.update(b=7),
    "another shard": lambda t, f: t.update(b="model-00001-of-00002.safetensors"),
    "more": lambda t, f: t.update(c="model-00001-of-00002.safetensors"),
    "fewer": lambda t, f: t.pop("b"),
    "empty": lambda t, f: t.clear(),
    "twice": lambda t, f: save(f / "model-00002-of-00002.safetensors", {"b": np.ones(2), "a": np.ones(2)}, force=True),
}


@pytest.mark.parametrize("kind", INDICES)
def test_indices_of_shards(kind: str, tmp_path: Path, capsys: Any) -> None:
    table = shards(tmp_path / "w")
    INDICES[kind](table["weight_map"], tmp_path / "w")
    if kind == "fewer":  # the tensor stands in a shard that the index lists for another
        save(tmp_path / "w" / "model-00001-of-00002.safetensors", {"a": np.ones(2), "b": np.ones(2)}, force=True)
    (tmp_path / "w" / "model.safetensors.index.json").write_text(json.dumps(table))
    refused(tmp_path / "w", tmp_path, capsys)


def test_an_index_that_lists_a_tensor_twice(tmp_path: Path, capsys: Any) -> None:
    shards(tmp_path / "w")
    name = "model-00001-of-00002.safetensors"
    (tmp_path / "w" / "model.safetensors.index.json").write_text(f'{{"weight_map": {{"a": "{name}", "a": "{name}"}}}}')
    refused(tmp_path / "w", tmp_path, capsys, said="twice")


def test_all_that_does_not_fit_is_listed_at_once(tmp_path: Path) -> None:
    """Missing, left over, of another shape: with the nearest candidate, and nothing is written."""
    weights = noise()
    weights["layer3.conv2.weigth"] = weights.pop("layer3.conv2.weight")
    weights["layer4.bn1.bias"] = np.ones(127, np.float32)
    del weights["layer2.bn2.weight"]
    save(tmp_path / "w.safetensors", weights)
    with pytest.raises(WeightsError) as raised:
        convert(tmp_path / "w.safetensors", tmp_path / "out", to="nnx")
    problems = "\n".join(raised.value.problems)
    assert "the nearest is tutorial_resnet (torchvision)" in problems
    for text in (
        "layer2.bn2.weight (64,): missing",
        "layer3.conv2.weight (128, 128, 3, 3): missing; nearest: layer3.conv2.weigth (128, 128, 3, 3)",
        "layer3.conv2.weigth (128, 128, 3, 3): no such tensor in tutorial_resnet; nearest: layer3.conv2.weight",
        "layer4.bn1.bias: got shape (127,), expected (128,)",
    ):
        assert text in problems
    assert len(raised.value.problems) == 5
    assert [p.name for p in tmp_path.iterdir()] == ["w.safetensors"]


def test_a_checkpoint_of_another_network(tmp_path: Path, capsys: Any) -> None:
    save(tmp_path / "w.safetensors", noise())
    refused(tmp_path / "w.safetensors", tmp_path, capsys, "--model", "cifar_resnet20", said="cifar_resnet20")
    refused(tmp_path / "w.safetensors", tmp_path, capsys, "--model", "cifar_resnet21", said="nearest: cifar_resnet")


def test_two_names_that_are_one_tensor(tmp_path: Path, capsys: Any) -> None:
    save(tmp_path / "w.npz", noise() | {"fc/bias": np.ones(10, np.float32)})
    refused(tmp_path / "w.npz", tmp_path, capsys, "--to", "nnx", said="is fc.bias, and so is")


@pytest.mark.parametrize(
    ("state", "said"),
    [
        ({"state": {0: {"exp_avg": torch.ones(3)}}, "param_groups": [{"params": [0]}]}, "parameters in 1 groups"),
        ({"state": {99: {}}, "param_groups": [{"params": list(range(26))}]}, "parameter 99"),
        ({"exp_avg": {"nothing": torch.ones(3)}, "step": torch.tensor(1)}, "no such parameter"),
        ({"exp_avg": {"fc.bias": torch.ones(3)}, "step": torch.tensor(1)}, "got shape (3,), expected (10,)"),
        ({"unknown": {"fc.bias": torch.ones(3)}}, "not part of a known state"),
    ],
    ids=["fewer", "number", "name", "shape", "unknown"],
)
def test_states_that_do_not_fit(state: Any, said: str, tmp_path: Path, capsys: Any) -> None:
    net = {name: torch.from_numpy(np.array(array)) for name, array in noise().items()}
    torch.save({"model": net, "optimizer": state}, tmp_path / "w.pt")
    refused(tmp_path / "w.pt", tmp_path, capsys, said=said)
    assert main(["convert", str(tmp_path / "w.pt"), str(tmp_path / "out.npz"), "--weights-only"]) == 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["missing.pth", "out.npz"], "no such file"),
        (["w.npz", "out.xyz"], "unknown format '.xyz'"),
        (["w.npz", "w.npz"], "exists; --force"),
        (["w.npz", "no/such/out.npz"], "no such folder"),
        (["w.npz", "out.npz", "--to", "keras"], "expected one of torch, nnx, linen"),
        (["w.npz", "out.npz", "--format", "h5"], "expected one of torch, safetensors"),
        (["w.npz", "out.safetensors.index.json"], "name the folder"),
        (["w.npz", "folder", "--format", "npz"], "is a folder, expected a file"),
        (["w.npz", "folder", "--format", "npz", "--force"], "is a folder"),
        (["w.npz", "out.npz", "--rules", "missing.toml"], "No such file"),
        (["w.npz", "out.npz", "--key", "a"], "no network"),
        (["ftp://a/b", "out.npz"], "unknown kind of address"),
        (["torchvision://resnet51/V1", "out.npz"], "unknown network"),
        (["torchvision://resnet50/V9", "out.npz"], "IMAGENET1K_V1, IMAGENET1K_V2"),
        (["hf://onlyowner", "out.npz"], "expected hf://owner/name"),
    ],
)
def test_what_is_asked_for(
    arguments: list[str], said: str, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    save(tmp_path / "w.npz", SMALL)
    (tmp_path / "folder").mkdir()
    before = sorted(p.name for p in tmp_path.rglob("*"))
    code = main(["convert", *arguments])
    if said != "no network":
        assert code == 2
        assert said in capsys.readouterr().err
        assert sorted(p.name for p in tmp_path.rglob("*")) == before


def test_no_permission_to_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    save(tmp_path / "w.npz", SMALL)

    def fail(*_: Any) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr("ports.weights.files.formats.npz.Archive", fail)
    refused(tmp_path / "w.npz", tmp_path, capsys, said="no permission to read it")


def test_an_output_is_replaced_with_force_alone(tmp_path: Path) -> None:
    save(tmp_path / "w.npz", SMALL)
    for row in FORMATS.values():
        out = tmp_path / f"out{suffix(row)}"
        convert(tmp_path / "w.npz", out, format=row.name, to="torch")
        before = digest(out)
        with pytest.raises(WeightsError, match="exists; --force"):
            convert(tmp_path / "w.npz", out, format=row.name, to="torch")
        assert digest(out) == before
        convert(tmp_path / "w.npz", out, format=row.name, to="torch", force=True)
        assert same(load(out, format=row.name), SMALL)
        shutil.rmtree(out) if out.is_dir() else out.unlink()
    assert [p.name for p in tmp_path.iterdir()] == ["w.npz"]


def test_a_file_converted_onto_itself(tmp_path: Path) -> None:
    """The source is mapped into memory while its successor is written."""
    save(tmp_path / "w.safetensors", SMALL)
    convert(tmp_path / "w.safetensors", tmp_path / "w.safetensors", force=True)
    assert same(load(tmp_path / "w.safetensors"), SMALL)


def test_without_renameat2(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Systems that lack Linux's call."""
    monkeypatch.setattr(atomic, "_renameat2", lambda *_: False)
    test_an_output_is_replaced_with_force_alone(tmp_path)


@pytest.mark.parametrize("code", [errno.EACCES, errno.ENOSPC, errno.EROFS])
@pytest.mark.parametrize("row", FORMATS.values(), ids=FORMATS)
def test_what_the_system_refuses(
    row: Any, code: int, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path / "w.npz", SMALL)

    def fail(_: Path) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(atomic, "_sync_one", fail)
    out = tmp_path / f"out{suffix(row)}"
    assert main(["convert", str(tmp_path / "w.npz"), str(out), "--format", row.name, "--to", "torch"]) == 2
    assert f"cannot be written: {os.strerror(code)}" in capsys.readouterr().err
    assert [p.name for p in tmp_path.iterdir()] == ["w.npz"]


def run(code: str, *arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False, **options)


LIMITED = """
import resource, signal, sys
from parity.commands.cli import main
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (10**5, 10**5))
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.sample(1)
@pytest.mark.parametrize("name", ["out.safetensors", "out.npz", "out.pt", "out.msgpack", "out"])
def test_a_full_disk(name: str, tmp_path: Path) -> None:
    """A real one, as far as the process can see: no file may grow beyond 100 kB."""
    save(tmp_path / "w.npz", {"a": np.random.default_rng(0).standard_normal(10**5)})
    done = run(LIMITED, "convert", str(tmp_path / "w.npz"), str(tmp_path / name), "--to", "torch")
    assert done.returncode == 2, done.stderr
    assert "out" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert [p.name for p in tmp_path.iterdir()] == ["w.npz"]


WRITER = """
import itertools, sys, numpy as np
from ports.weights.files import atomic, formats
from ports.weights.files.formats import Content, FORMATS
row, path, way = FORMATS[sys.argv[1]], sys.argv[2], sys.argv[3]
tensors = {f"t{i}": np.full(20_000, i, np.float32) for i in range(20)}
formats.importlib.import_module(f"ports.weights.files.formats.{row.module}")
if row.name == "torch": import torch
if row.name == "orbax": import orbax.checkpoint
if way == "plain": atomic._renameat2 = lambda *_: False
print("ready", flush=True)
for i in itertools.count():
    out, force = (f"{path}{i}", False) if way == "new" else (path, True)
    with atomic.publish(out, force=force, foreign=formats.foreign(row)) as partial:
        formats.write(partial, Content(tensors), row)
"""
# A new output; one that replaces another, by one call that exchanges both; and one that does so by plain renames.
WAYS = ("new", "exchange", "plain")


def killed(folder: Path, row: Any, delay: float, way: str = "exchange") -> None:
    """Kill a process that writes over and over: outputs are whole, the old one is there, and the next run cleans up."""
    folder.mkdir()
    out = folder / f"out{suffix(row)}"
    if way != "new":
        written(out, SMALL, row)
    command = [sys.executable, "-c", WRITER, row.name, str(out), way]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, cwd=ROOT)
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    time.sleep(delay)
    process.kill()
    assert process.wait() == -signal.SIGKILL  # it wrote to the end
    process.stdout.close()
    with atomic.publish(folder / "next") as partial:  # the next run in that folder
        partial.write_text("")
    (folder / "next").unlink()
    new = {f"t{i}": np.full(20_000, i, np.float32) for i in range(20)}
    for path in folder.iterdir():
        found = load(path, format=row.name)
        assert same(found, new) or (way != "new" and same(found, SMALL))
    assert way == "new" or [path.name for path in folder.iterdir()] == [out.name]


@pytest.mark.sample(2)
@pytest.mark.parametrize(
    ("name", "delay", "way"),
    [("safetensors", 0.011, "new"), ("torch", 0.06, "exchange"), ("sharded", 0.1, "plain"), ("npz", 0.03, "exchange")],
)
def test_a_killed_process_leaves_nothing_partial(name: str, delay: float, way: str, tmp_path: Path) -> None:
    """`python -m tests.fuzz kills` does it at many random moments in every format and way."""
    killed(tmp_path / "k", FORMATS[name], delay, way)


def fuzzed(row: Any, changes: list[tuple[int, int]], cut: int | None) -> bytes:
    content = bytearray(SAMPLES[row.name])
    for at, value in changes:
        content[at % len(content)] = value
    return bytes(content[:cut] if cut is not None else content)


TINY = {"a": np.arange(3, dtype=np.float32), "b.c": np.ones((), np.int64)}
SAMPLES: dict[str, bytes] = {}


@pytest.fixture(scope="module", autouse=True)
def samples(tmp_path_factory: pytest.TempPathFactory) -> None:
    for row in FILES:
        path = written(tmp_path_factory.mktemp("samples") / f"w{suffix(row)}", TINY, row)
        SAMPLES[row.name] = path.read_bytes()


@pytest.mark.parametrize("row", FILES, ids=lambda row: row.name)
@settings(max_examples=60)
@given(
    changes=st.lists(st.tuples(st.integers(0, 2**20), st.integers(0, 255)), max_size=6),
    cut=st.none() | st.integers(0, 2000),
)
def test_no_bytes_raise_anything_else(row: Any, changes: Any, cut: int | None, tmp_path: Path) -> None:
    path = tmp_path / f"w{suffix(row)}"
    path.write_bytes(fuzzed(row, changes, cut))
    try:
        found = load(path)
    except WeightsError:
        return
    assert all(isinstance(array, np.ndarray) for array in found.values())


@settings(max_examples=40)
@given(
    which=st.integers(0, 20),
    changes=st.lists(st.tuples(st.integers(0, 2**20), st.integers(0, 255)), max_size=4),
    cut=st.none() | st.integers(0, 500),
)
def test_no_orbax_folder_raises_anything_else(which: int, changes: Any, cut: int | None, tmp_path: Path) -> None:
    folder = tmp_path / "orbax"
    if not folder.exists():
        written(folder, TINY, FORMATS["orbax"])
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    file = files[which % len(files)]
    whole = file.read_bytes()
    content = bytearray(whole)
    for at, value in changes:
        content[at % max(len(content), 1) : at % max(len(content), 1) + 1] = bytes([value])
    file.write_bytes(content[:cut])
    try:
        found = load(folder)
    except WeightsError:
        return
    finally:
        file.write_bytes(whole)
    assert same(found, TINY)


@settings(max_examples=100)
@given(content=st.binary(max_size=200), name=st.sampled_from([suffix(row) for row in FILES]))
def test_no_random_bytes_raise_anything_else(content: bytes, name: str, tmp_path: Path) -> None:
    (tmp_path / f"w{name}").write_bytes(content)
    with pytest.raises(WeightsError):
        load(tmp_path / f"w{name}")


json_values: Any = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=150)
@given(
    table=st.dictionaries(
        st.text(max_size=5),
        st.fixed_dictionaries(
            {
                "dtype": st.sampled_from(["F32", "U8", "BOOL"]) | json_values,
                "shape": st.lists(st.integers(-1, 4), max_size=3) | json_values,
                "data_offsets": st.lists(st.integers(-1, 20), min_size=2, max_size=2) | json_values,
            }
        ),
        max_size=3,
    ),
    data=st.binary(max_size=20),
)
def test_no_safetensors_header_raises_anything_else(table: Any, data: bytes, tmp_path: Path) -> None:
    (tmp_path / "w.safetensors").write_bytes(header(table, data=data))
    try:
        found = load(tmp_path / "w.safetensors")
    except WeightsError:
        return
    assert sum(array.nbytes for array in found.values()) == len(data)
