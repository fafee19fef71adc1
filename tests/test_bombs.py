"""Small files that ask for much memory or time: one line, before the memory is used. Right files stay readable."""

from __future__ import annotations

import json
import os
import pickle
import struct
import subprocess
import sys
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest
import torch
from test_formats import same, written

from ports.weights import WeightsError
from ports.weights.files import budget, formats
from ports.weights.files.formats import FORMATS, compressed

ROOT = Path(__file__).resolve().parents[1]
SMALL = {"a": np.arange(12, dtype=np.float32).reshape(3, 4)}


def refused(path: Path, said: str, limit: int | None = None) -> None:
    """The reader refuses the file, and the memory that it took is within the limit."""
    sizes = [file.stat().st_size for file in (path.rglob("*") if path.is_dir() else [path]) if file.is_file()]
    tracemalloc.start()
    try:
        with pytest.raises(WeightsError, match=said):
            formats.read(path, max_memory=limit)
        most = budget.TIMES * sum(sizes) + budget.BASE if limit is None else limit + (1 << 22)
        assert tracemalloc.get_traced_memory()[1] < most
    finally:
        tracemalloc.stop()


def zipped(path: Path, content: bytes, **members: bytes) -> Path:
    """Write a file of PyTorch's around a pickle."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", content)
        for key, numbers in members.items():
            archive.writestr(f"archive/data/{key.removeprefix('k')}", numbers)
    return path


def table(value: bytes) -> bytes:
    """Return the pickle of a table with one value, which is given as a pickle."""
    return b"\x80\x02}X\x01\x00\x00\x00a" + value + b"s."


def shared(levels: int) -> Any:
    node: Any = [1]
    for _ in range(levels):
        node = [node, node]
    return node


def tensor(offset: Any = 0, shape: Any = (2,), strides: Any = (1,), count: Any = 2, version: str = "_v2") -> bytes:
    """Return the pickle of a tensor of float32 in the storage `0`."""

    def plain(value: Any) -> bytes:
        return pickle.dumps(value, 2)[2:-1]

    storage = b"(" + plain("storage") + b"ctorch\nFloatStorage\n" + plain("0") + plain("cpu") + plain(count) + b"tQ"
    rest = plain(offset) + plain(shape) + plain(strides) + b"\x89}"
    return f"ctorch._utils\n_rebuild_tensor{version}\n".encode() + b"(" + storage + rest + b"tR"


def within_itself() -> bytes:
    node: list[Any] = []
    node.append(node)
    return pickle.dumps({"a": node}, 2)


def deep(code: bytes, count: int) -> bytes:
    return table(b")" + code * count)


def nested_key() -> bytes:
    """A key whose hash takes 2**60 steps."""
    return b"\x80\x02})" + b"q\x00h\x00\x86" * 60 + b"K\x01s."


MEGABYTE = b"X" + struct.pack("<I", 1 << 20) + b"x" * (1 << 20)
PICKLES: dict[str, tuple[bytes, str]] = {
    "shared lists": (pickle.dumps({"a": shared(60)}, 2), "would take"),
    "shared tuples": (pickle.dumps({"a": shared(90)}, 4), "would take"),
    "within itself": (within_itself(), "within itself"),
    "deep": (deep(b"\x85", 10_000), "within one another"),
    "a key of shared tuples": (nested_key(), "a key of type tuple"),
    "a bytearray": (table(b"c__builtin__\nbytearray\n(J\x00\xca\x9a;tR"), "bytearray of a int"),
    "bytes over and over": (
        table(
            b"c_codecs\nencode\nq\x00" + MEGABYTE + b"X\x06\x00\x00\x00latin1\x86q\x01R" + b"h\x00h\x01R" * 400 + b"("
        ),
        "would take",
    ),
    "an integer of a megabyte": (table(b"\x8b" + struct.pack("<i", 1 << 20) + b"\x01" * (1 << 20)), "an integer of"),
    "an integer that is longer than the file": (table(b"\x8b\xff\xff\xff\x7f"), "damaged"),
    "a text that is longer than the file": (table(b"X\xff\xff\xff\x7fab"), "damaged"),
    "a frame that is longer than the file": (b"\x80\x04\x95" + b"\xff" * 7 + b"\x7f", "damaged"),
    "a repeated number": (table(tensor(shape=(1 << 27,), strides=(0,))), "would take"),
    "an overflowing shape": (table(tensor(shape=(1 << 31, 1 << 31, 4), strides=(0, 0, 0))), "would take"),
    "a shape beyond 64 bits": (table(tensor(shape=(1 << 80,), strides=(0,))), "too large"),
    "a negative size": (table(tensor(shape=(-1,))), "from 0"),
    "a negative stride": (table(tensor(strides=(-1,))), "from 0"),
    "a negative offset": (table(tensor(offset=-1)), "from 0"),
    "outside of its storage": (table(tensor(shape=(3,))), "goes to byte 12, its storage has 8"),
    "a stride outside of its storage": (table(tensor(strides=(1 << 61,))), "its storage has 8"),
    "a storage that is not there": (table(tensor(count=3)), "has 8 bytes, expected 12"),
    "a fraction": (table(tensor(shape=(2.0,))), "from 0"),
    "more strides": (table(tensor(strides=(1, 1))), "1 dimensions with 2 strides"),
    "1,000 dimensions": (table(tensor(shape=(1,) * 1000, strides=(1,) * 1000)), "too many dimensions"),
    "a key that stands twice": (b"\x80\x02}(K\x01K\x01K\x01K\x02u.", "twice"),
}


@pytest.mark.parametrize("kind", PICKLES)
def test_pickles_that_ask_for_much(kind: str, tmp_path: Path) -> None:
    content, said = PICKLES[kind]
    refused(zipped(tmp_path / "w.pt", content, k0=bytes(8)), said)


@pytest.mark.sample(2)
@pytest.mark.parametrize(
    "code", ["]", "}", "(", "N\x85", "\x8f", "\x94", "K\x01", "G12345678", "]h\x00a", "}K\x01Ns", "h\x00)R"]
)
def test_instructions_pay_for_what_they_make(code: str, tmp_path: Path) -> None:
    """With a small limit, for such a file takes as many seconds as it has megabytes."""
    start = b"ccollections\nOrderedDict\nq\x00"
    path = zipped(tmp_path / "w.pt", table(start + code.encode("latin-1") * 200_000 + b"("))
    refused(path, "its pickle would take", 1 << 21 if code == "K\x01" else 1 << 23)


def test_memos_of_any_number_take_no_memory(tmp_path: Path) -> None:
    content = b"\x80\x02}r\xff\xff\xff\xff(X\x01\x00\x00\x00ar\x00\x00\x00\x80" + tensor() + b"u."
    assert same(formats.read(zipped(tmp_path / "w.pt", content, k0=bytes(8))).tree, {"a": np.zeros(2, np.float32)})


RUNS = {
    "a call": (table(b"cos\nsystem\nX\x02\x00\x00\x00id\x85R"), "os.system"),
    "a name alone": (table(b"cbuiltins\neval\n"), "builtins.eval"),
    "a name from the stack": (table(b"\x8c\x02os\x8c\x06system\x93"), "os.system"),
    "a name from the memo": (table(b"\x8c\x02os\x94\x8c\x06system\x94h\x00h\x01\x93"), "os.system"),
    "an instance": (table(b"(ios\nsystem\n"), "os.system"),
    "an object": (table(b"(cos\nsystem\no"), "os.system"),
    "a class": (table(b"cos\n_wrap_close\n)\x81"), "os._wrap_close"),
    "the registry": (table(b"\x82\x01"), "EXT1 1"),
    "a name of Python 2": (table(b"c__builtin__\neval\n"), "builtins.eval"),
    "a part of a name": (table(b"ctorch\nhub.load\n"), "torch.hub.load"),
    "an attribute of a known name": (table(b"ctorch\nTensor.__class__\n"), "torch.Tensor.__class__"),
    "a type that is called": (table(b"ctorch\nFloatTensor\n)R"), "torch.FloatTensor"),
    "escapes": (table(b"c\x1b[2J\nsystem\n"), r"\\x1b\[2J.system"),
}


@pytest.mark.parametrize("kind", RUNS)
@pytest.mark.parametrize("bare", [False, True], ids=["zip", "bare"])
def test_pickles_that_would_run_something(kind: str, bare: bool, tmp_path: Path) -> None:
    content, name = RUNS[kind]
    path = tmp_path / "w.pth"
    if bare:
        path.write_bytes(content)
    else:
        zipped(path, content)
    refused(path, rf"w\.pth: it would run {name}; refused")


ODD = {
    "an int for a reference": b"K\x01Q",
    "another kind of reference": pickle.dumps(("module", "a", "b"), 2)[2:-1] + b"Q",
    "a reference in text": b"P0\n",
    "attributes of a number": b"K\x01}b",
    "a call of a text": b"X\x01\x00\x00\x00a)R",
    "items of a number": b"K\x01K\x02a",
    "an unknown instruction": b"\xff",
    "an empty stack": b"00000",
    "nothing in the memo": b"h\x07",
    "a buffer from elsewhere": b"\x97",
}


@pytest.mark.parametrize("kind", ODD)
def test_pickles_that_pytorch_does_not_write(kind: str, tmp_path: Path) -> None:
    refused(zipped(tmp_path / "w.pt", table(ODD[kind])), "damaged, or not a file of weights")


def test_one_storage_of_400_views_is_read_once(tmp_path: Path) -> None:
    base = torch.arange(1 << 14, dtype=torch.float32)
    torch.save({f"v{i}": base[i:] for i in range(200)} | {f"t{i}": base for i in range(200)}, tmp_path / "w.pt")
    tracemalloc.start()
    try:
        tree = formats.read(tmp_path / "w.pt").tree
        assert tracemalloc.get_traced_memory()[1] < 20 * base.nbytes  # the pickle takes most of it
    finally:
        tracemalloc.stop()
    assert all(tree[f"t{i}"] is tree["t0"] for i in range(200))
    assert all(np.shares_memory(tree[f"v{i}"], tree["t0"]) for i in range(200))
    assert all(np.array_equal(tree[f"v{i}"], base[i:].numpy()) for i in range(200))


def test_tensors_of_all_tables_are_counted_together(tmp_path: Path) -> None:
    """Each of them is small enough; what is shared counts as often as it stands in the tree."""
    one = torch.ones(1 << 20)
    torch.save({str(i): [one] * 10 for i in range(3)}, tmp_path / "few.pt")
    torch.save({str(i): [one] * 10 for i in range(10)}, tmp_path / "many.pt")
    assert len(formats.read(tmp_path / "few.pt").tree) == 3
    refused(tmp_path / "many.pt", "would take")
    assert len(formats.read(tmp_path / "many.pt", max_memory=1 << 30).tree) == 10


KINDS: dict[str, tuple[Callable[[], torch.Tensor], str]] = {
    "sparse": (lambda: torch.eye(2).to_sparse(), r"a sparse tensor, .* save .to_dense\(\)"),
    "quantised": (lambda: torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8), "a quantised tensor"),
    "meta": (lambda: torch.empty(2, device="meta"), "without values"),
    "conjugated": (lambda: torch.ones(2, dtype=torch.complex64).conj(), "a conjugated or negated view"),
    "complex32": (lambda: torch.ones(2, dtype=torch.complex64).to(torch.complex32), "complex32"),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.filterwarnings("ignore")
def test_tensors_of_other_kinds(kind: str, tmp_path: Path) -> None:
    make, said = KINDS[kind]
    torch.save({"net": {"w": make()}}, tmp_path / "w.pt")
    refused(tmp_path / "w.pt", said)


def test_npz_that_becomes_much(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "w.npz", "w", zipfile.ZIP_DEFLATED) as archive, archive.open("a.npy", "w") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": (10**8,)})
        for _ in range(100):
            file.write(bytes(10**6))
    refused(tmp_path / "w.npz", "would take 100,")


def test_npz_that_becomes_more_than_it_declares(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "w.npz", a=np.zeros(10**7))
    content = bytearray((tmp_path / "w.npz").read_bytes())
    entry = content.rfind(b"PK\1\2")
    (extra,) = struct.unpack_from("<H", content, 28)
    struct.pack_into("<I", content, entry + 24, 1000)
    struct.pack_into("<Q", content, 30 + 5 + 4, 1000)  # in the header's field of 64 bits
    assert extra == 20
    (tmp_path / "w.npz").write_bytes(content)
    refused(tmp_path / "w.npz", "is not as long as the archive says")


@pytest.mark.parametrize(
    "text", ["(" * 9000, "-" * 9000 + "1", "{'descr': " + "[" * 150, "1+" * 4000 + "1", "{}", "\0"]
)
def test_headers_of_npy_that_are_expressions(text: str, tmp_path: Path) -> None:
    text += "\n"
    with zipfile.ZipFile(tmp_path / "w.npz", "w") as archive:
        archive.writestr("a.npy", b"\x93NUMPY\1\0" + struct.pack("<H", len(text)) + text.encode() + bytes(8))
    refused(tmp_path / "w.npz", "damaged, or not a file of weights")


packb: Any = msgpack.packb
CLAIM = b"\xdd\xff\xff\xff\xff"
MSGPACK: dict[str, tuple[bytes, str]] = {
    "2**32 values": (b"\x81\xa1a" + CLAIM, "but 0 bytes are left"),
    "2**32 values again and again": (b"\x81\xa1a" + CLAIM * 5000, "bytes are left"),
    "as many values as bytes are left": (b"\x81\xa1a" + b"\xdd\x00\x10\x00\x00" * 900 + bytes(1 << 20), "would take"),
    "as many pairs as fit": (b"\x81\xa1a\xdf\x00\x08\x00\x00" + b"\x01\x02" * (1 << 19), "would take"),
    "many small numbers": (packb({"a": [0] * (1 << 20)}), "would take"),
    "many empty maps": (b"\x81\xa1a\xde\x75\x30" + b"".join(packb(i) + b"\x80" for i in range(30_000)), "would take"),
    "deep maps": (b"\x81\xa1a" * 5000 + b"\x01", "within one another"),
    "text": (b"\x81\xa1a\xdb\xff\xff\xff\xff", "bytes are left"),
    "an extension": (b"\x81\xa1a\xc9\xff\xff\xff\xff\x01", "bytes are left"),
    "extensions in extensions": (packb({"a": msgpack.ExtType(1, packb(msgpack.ExtType(1, b"abc")))}), "shape, type"),
    "an array within its bytes": (packb({"a": msgpack.ExtType(1, packb(((2,), "int8", [1, 2])))}), "has 0 bytes"),
    "bytes behind an array": (packb({"a": msgpack.ExtType(1, packb(((1,), "int8", b"1")) + b"\x01")}), "not as long"),
    "a key that is a list": (b"\x81\x91\x01\x01", "neither text nor a whole number"),
    "a key that is a fraction": (packb({1.5: 1}), "neither text nor a whole number"),
    "a complex number of text": (packb({"a": msgpack.ExtType(2, packb(("1", 2)))}), "not two numbers"),
    "a shape of fractions": (packb({"a": msgpack.ExtType(1, packb(((1.0,), "int8", b"1")))}), "not a list of sizes"),
}


@pytest.mark.parametrize("kind", MSGPACK)
def test_msgpack_that_asks_for_much(kind: str, tmp_path: Path) -> None:
    content, said = MSGPACK[kind]
    (tmp_path / "w.msgpack").write_bytes(content)
    refused(tmp_path / "w.msgpack", said, 1 << 22 if kind == "many empty maps" else None)


def in_pieces(shape: Any, *chunks: np.ndarray) -> bytes:
    packed = [msgpack.ExtType(1, packb((chunk.shape, chunk.dtype.name, chunk.tobytes()))) for chunk in chunks]
    about = {"shape": {str(i): n for i, n in enumerate(shape)}, "chunks": {str(i): c for i, c in enumerate(packed)}}
    return packb({"a": {"__msgpack_chunked_array__": True, **about}})


def test_arrays_in_pieces(tmp_path: Path) -> None:
    path = tmp_path / "w.msgpack"
    path.write_bytes(in_pieces((2, 3), np.arange(4), np.arange(4, 6)))
    assert same(formats.read(path).tree, {"a": np.arange(6).reshape(2, 3)})
    ones, short = np.ones(3), np.ones(3, np.float32)
    for content in (
        in_pieces((4,), ones),
        in_pieces((-1,), ones),
        in_pieces((2**62, 4), ones),
        in_pieces((3, 2), ones, short),
        in_pieces((3,), ones.reshape(3, 1)),
        in_pieces((0,)),
        packb({"a": {"__msgpack_chunked_array__": True, "shape": [1], "chunks": 7}}),
    ):
        path.write_bytes(content)
        refused(path, "in pieces|not a list of sizes")


def described(folder: Path, **changes: Any) -> None:
    """Change the description of the array `a`."""
    file = folder / "a" / ".zarray"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def bomb(count: int) -> bytes:
    """A frame of zstd that becomes 128 kB from each four bytes."""
    return b"\x28\xb5\x2f\xfd\x00\x58" + b"\x02\x00\x10\x00" * (count - 1) + b"\x03\x00\x10\x00"


def pieced(content: bytes, compressor: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        described(folder, compressor={"id": compressor})
        (folder / "a" / "0.0").write_bytes(content)

    return change


def gzipped(size: int) -> bytes:
    import gzip

    return gzip.compress(bytes(size))


def of_metadata(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        about = json.loads((folder / "_METADATA").read_text())
        change(about)
        (folder / "_METADATA").write_text(json.dumps(about))

    return write


def named(*parts: str) -> Callable[[Path], None]:
    def change(about: dict[str, Any]) -> None:
        entry = next(iter(about["tree_metadata"].values()))
        entry["key_metadata"] = [{"key": part, "key_type": 2} for part in parts]

    return of_metadata(change)


def piped(folder: Path) -> None:
    (folder / "a" / "0.0").unlink()
    os.mkfifo(folder / "a" / "0.0")


ORBAX: dict[str, tuple[Callable[[Path], object], str]] = {
    "a piece of 10**12": (lambda folder: described(folder, chunks=[10**12, 4]), "would take"),
    "a piece of 2**63": (lambda folder: described(folder, chunks=[2**63, 2**63]), "would take"),
    "a shape of 2**62": (lambda folder: described(folder, shape=[2**62, 4], chunks=[2**62, 4]), "would take"),
    "a million pieces": (lambda folder: described(folder, shape=[3000, 4000], chunks=[1, 1]), "12,000,000 pieces"),
    "no pieces": (lambda folder: described(folder, chunks=[0, 4]), "in pieces of"),
    "a fraction": (lambda folder: described(folder, shape=[3.0, 4]), "expected whole numbers"),
    "a truth value": (lambda folder: described(folder, shape=[True, 4]), "expected whole numbers"),
    "pieces of text": (lambda folder: described(folder, chunks=["3", 4]), "expected whole numbers"),
    "more dimensions": (lambda folder: described(folder, chunks=[3, 4, 1]), "in pieces of"),
    "100 dimensions": (lambda folder: described(folder, shape=[1] * 100, chunks=[1] * 100), "in pieces of"),
    "an unknown compressor": (lambda folder: described(folder, compressor={"id": "lzma"}), "unknown compressor"),
    "no compressor's name": (lambda folder: described(folder, compressor={}), "damaged"),
    "zstd": (pieced(bomb(10_000), "zstd"), "would take"),
    "zstd with a large window": (pieced(b"\x28\xb5\x2f\xfd\x00\xff\x01\x00\x00", "zstd"), "window"),
    "gzip": (pieced(gzipped(10**8), "gzip"), "becomes more than 48 bytes"),
    "gzip that is cut off": (pieced(gzipped(48)[:-9], "gzip"), "cut off"),
    "blosc": (pieced(b"\2\1\x21\4" + struct.pack("<3I", 2**31, 1, 16), "blosc"), "2,147,483,648 bytes, expected 48"),
    "a longer piece": (pieced(bytes(49), "zstd"), "not zstd"),
    "a list without end": (lambda folder: (folder / "_METADATA").write_text('{"a":' * 10**5), "nested too deeply"),
    "a description without end": (lambda folder: (folder / "a" / ".zarray").write_text("[" * 10**5), "too deeply"),
    "no list": (of_metadata(lambda about: about.pop("tree_metadata")), "damaged"),
    "another list": (of_metadata(lambda about: about.update(tree_metadata=[1])), "damaged"),
    "a name that goes up": (named("..", "a"), "no such array"),
    "a name with a slash": (named("x/a"), "no such array"),
    "a name with a backslash": (named("x\\a"), "no such array"),
    "an absolute name": (named("/etc"), "no such array"),
    "no name": (named(), "damaged"),
    "a pipe": (piped, "a named pipe"),
    "empty tensors that are not": (
        lambda folder: (folder / "_CHECKPOINT_METADATA").write_text(
            json.dumps({"custom_metadata": {"ports": {"empty": {"b": [["b"], [10**12], "float32"]}}}})
        ),
        "not empty",
    ),
}


@pytest.mark.parametrize("kind", ORBAX)
def test_orbax_that_asks_for_much(kind: str, tmp_path: Path) -> None:
    change, said = ORBAX[kind]
    folder = written(tmp_path / "w", SMALL, FORMATS["orbax"])
    change(folder)
    refused(folder, said)


LIMITED = """
import resource, sys
import tensorstore
from ports.errors import UserError
from ports.weights.files import formats
formats.read(sys.argv[1], "orbax")  # whatever libraries load at first
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (1 << 29),) * 2)
for path in sys.argv[2:]:
    try:
        formats.read(path, "orbax")
    except UserError as error:
        print(str(error).partition(": ")[2])
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads the process' size from /proc")
def test_bombs_do_not_reach_tensorstore(tmp_path: Path) -> None:
    """In a process that may take 512 MB more; what tensorstore allocates by itself would end it."""
    right = written(tmp_path / "right", SMALL, FORMATS["orbax"])
    paths = []
    for kind in ("a piece of 10**12", "a shape of 2**62", "zstd", "gzip", "blosc"):
        paths.append(written(tmp_path / str(len(paths)), SMALL, FORMATS["orbax"]))
        ORBAX[kind][0](paths[-1])
    database = written(tmp_path / "database", {"/": SMALL["a"]}, FORMATS["orbax"])
    node = bytes([0, 1]) + bomb(10_000) + bytes(4)
    (database / "manifest.ocdbt").write_bytes(b"\x0c\xdb\x3a\x2a" + struct.pack("<Q", len(node) + 12) + node)
    command = [sys.executable, "-c", LIMITED, str(right), *map(str, paths), str(database)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert len(done.stdout.splitlines()) == 6, done.stdout
    assert "its nodes would take" in done.stdout


def test_what_zstd_becomes() -> None:
    """The bound is what tensorstore makes of it, or more: of one frame, of several, with and without a size."""
    import tensorstore as ts

    for size in (0, 1, 255, 256, 70_000, 300_000):
        for level in (1, 19):
            numbers = np.random.default_rng(size).integers(0, 3, size, np.uint8)
            store = ts.open(
                {
                    "driver": "zarr",
                    "kvstore": {"driver": "memory"},
                    "metadata": {"shape": [size], "chunks": [max(size, 1)], "dtype": "|u1"}
                    | {"compressor": {"id": "zstd", "level": level}},
                },
                create=True,
            ).result()
            store.write(numbers).result()
            pieces: Any = store.kvstore
            content = bytes(pieces.read("0").result().value) if size else b""
            most = compressed.most("zstd", content, size)
            assert size <= most <= max(1, -(-size // compressed.BLOCK)) * compressed.BLOCK + size
    with pytest.raises(ValueError, match="cut off"):
        compressed.most("zstd", bomb(3)[:-1], 10)
    assert compressed.most("zstd", bomb(3), 10) == 3 * compressed.BLOCK + (1 << 21)
    assert compressed.most("zstd", bomb(1) + b"\x50\x2a\x4d\x18\1\0\0\0x" + bomb(1), 10) == 2 * ((1 << 17) + (1 << 21))
