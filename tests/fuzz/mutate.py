"""Changes of whole files: of bytes, and of what the bytes mean (zip members, pickles, msgpack, JSON, headers, folders).

A change of meaning keeps lengths and checksums right, so it reaches the code behind them. All draws come from one
`random.Random`: the same seed gives the same file.
"""

from __future__ import annotations

import io
import json
import pickletools
import random
import re
import struct
import warnings
import zipfile
from collections.abc import Callable
from typing import Any

import msgpack

from .seeds import Files

NAMES = (
    "",
    ".",
    "..",
    "../up",
    "a/b",
    "/abs",
    "\0",
    "\x1b[31mred",
    "bell\a",
    "a\nb",
    "\u202eright to left",
    "\ud800",
    "x" * 3000,
    "%s{}",
    "optimizer/step",
    "params",
    "value",
    "__metadata__",
    "crc32",
    "model",
)
NUMBERS = (0, 1, -1, 2, 7, 127, 128, 255, 256, 2**16, 2**31 - 1, 2**31, -(2**31), 2**32 - 1, 2**53, 2**62, 2**63, 2**64)
NUMBERS += (10**18, 10**30, 2**1000)
KINDS = (
    "F32",
    "F16",
    "BF16",
    "I64",
    "BOOL",
    "C64",
    "F8_E4M3",
    "F128",
    "<f4",
    ">f8",
    "|O",
    "|V2",
    "float32",
    "bfloat16",
)
KINDS += ("int4", "S5", "<U3", "datetime64[s]", "f4,f4", "(2,)f4", "object", "complex128", "longdouble", "uint64")
FLOATS = (float("nan"), float("inf"), float("-inf"), 1e308, -0.0, 0.5, 2.0, 1e-320)
PLAIN = (None, True, False, [], {}, [[]], {"a": {}}, [[[[1]]]], "", "text")
GLOBALS = (
    "os system",
    "torch FloatStorage",
    "torch BFloat16Storage",
    "torch._utils _rebuild_tensor_v2",
    "builtins eval",
)
GLOBALS += ("collections OrderedDict", "torch Size", "torch device", "torch float16", "numpy dtype", "_codecs encode")
GLOBALS += ("torch._utils _rebuild_parameter", "numpy._core.multiarray scalar", "builtins set", "argparse Namespace")
GLOBALS += ("torch._utils _rebuild_sparse_tensor", "torch._tensor _rebuild_from_type_v2", "builtins complex")
GLOBALS += ("torch.serialization _get_layout", "builtins bytearray", "collections Counter", "torch LongStorage")
CODES = tuple(bytes([code]) for code in b"(tld01eusaoRbQ]})N2.\x81\x85\x86\x87\x88\x89\x8f\x90\x91\x92\x93\x94")
CODECS: tuple[Any, ...] = (
    None,
    *({"id": "zlib", "level": 1}, {"id": "gzip", "level": 1}, {"id": "bz2", "level": 1}, {"id": "zstd", "level": 1}),
    *({"id": "blosc", "cname": "lz4", "clevel": 5, "shuffle": 1}, {"id": "x"}),
    {"name": "bytes", "configuration": {"endian": "big"}},
    {"name": "gzip", "configuration": {"level": 1}},
    {"name": "crc32c"},
    {"name": "transpose", "configuration": {"order": [1, 0]}},
)
LARGEST = 4 << 20  # bytes of a changed file


def changed(rng: random.Random, files: Files, others: list[Files]) -> Files:
    """Return a file with one to four changes."""
    for _ in range(rng.choice((1, 1, 1, 2, 2, 4))):
        files = _once(rng, files, others)
    return files


def _once(rng: random.Random, files: Files, others: list[Files]) -> Files:
    if "" not in files and rng.random() < 0.25:
        return _folder(rng, dict(files))
    if not files:
        return files
    name = rng.choice(sorted(files))
    if "" not in files and rng.random() < 0.5:  # tables say more than numbers do
        tables = [n for n in sorted(files) if files[n][:1] == b"{" or n.endswith((".ocdbt", ".safetensors"))]
        name = rng.choice(tables or [name])
    other = rng.choice(others)
    return {**files, name: content(rng, files[name], other[rng.choice(sorted(other))] if other else b"")}


def content(rng: random.Random, data: bytes, other: bytes) -> bytes:
    """Return changed bytes: half of the changes know what the bytes are."""
    ways: list[Callable[[random.Random, bytes], bytes]] = []
    if data[:2] == b"PK":
        ways = [_zip]
    elif data[:1] == b"{":
        ways = [_json]
    elif data[:1] == b"\x80" and data[1:2] in b"\2\3\4\5":
        ways = [_pickle]
    elif data[8:9] == b"{":
        ways = [_safetensors]
    elif data[:1] and (0x80 <= data[0] <= 0x8F or data[0] in (0xDE, 0xDF)):
        ways = [_msgpack]
    elif data[:6] == b"\x93NUMPY":
        ways = [_npy]
    if ways and rng.random() < 0.65:
        try:
            return rng.choice(ways)(rng, data)[:LARGEST]
        except Exception:  # what an earlier change has broken is changed as bytes
            pass
    return raw(rng, data, other)[:LARGEST]


def raw(rng: random.Random, data: bytes, other: bytes = b"") -> bytes:
    """Return bytes changed without a look at what they are."""
    if not data:
        return rng.randbytes(rng.choice((1, 4, 40)))
    way = rng.randrange(10)
    # Most of what a file says of itself is at its ends.
    span = rng.choice((len(data), min(len(data), 64), min(len(data), 600)))
    at = rng.randrange(span) if rng.random() < 0.7 else len(data) - 1 - rng.randrange(span)
    size = min(rng.choice((1, 1, 2, 4, 8, 30, 200)), len(data) - at)
    if way <= 1:
        return data[:at] + bytes([data[at] ^ 1 << rng.randrange(8)]) + data[at + 1 :]
    if way == 2:
        return data[:at] + bytes([rng.choice((0, 1, 127, 128, 255, rng.randrange(256)))]) + data[at + 1 :]
    if way == 3:
        return data[:at] + data[at + size :]
    if way == 4:
        return data[: at + size] + data[at : at + size] * rng.choice((1, 1, 3, 100)) + data[at + size :]
    if way == 5:
        return data[:at]
    if way == 6 and other:
        start = rng.randrange(len(other))
        return data[:at] + other[start : start + size * rng.choice((1, 4, 1000))] + data[at + rng.choice((0, size)) :]
    if way == 7:
        number = rng.choice(NUMBERS) & (2**64 - 1)
        width, order = rng.choice((2, 4, 8)), rng.choice(("little", "big"))
        return data[:at] + (number % 256**width).to_bytes(width, order) + data[at + width :]
    if way == 8:
        found = list(re.finditer(rb"\d+", data[:100_000]))
        if found:
            one = rng.choice(found)
            return data[: one.start()] + str(rng.choice(NUMBERS)).encode()[:20] + data[one.end() :]
    return data[:at] + rng.randbytes(size) + data[at + rng.choice((0, size)) :]


def _folder(rng: random.Random, files: Files) -> Files:
    """Return a folder with a file deleted, exchanged, renamed, doubled, emptied, or with another beside them."""
    names = sorted(files)
    if not names:
        return {"new": b""}
    one, two = rng.choice(names), rng.choice(names)
    way = rng.randrange(8)
    if way == 0:
        del files[one]
    elif way == 1:
        files[one], files[two] = files[two], files[one]
    elif way == 2:
        files[_beside(rng, one)] = files.pop(one)
    elif way == 3:
        files[_beside(rng, one)] = files[one]
    elif way == 4:
        files[one] = files[one][: rng.randrange(len(files[one]) + 1)]
    elif way == 5:
        files[one] = files[two]
    elif way == 6:
        del files[one]
        files[f"{one}/inner"] = b"1"
    else:
        inner = one.partition("/")[0]
        for name in names:
            if name.partition("/")[0] == inner:
                del files[name]
    return _possible(files)


def _beside(rng: random.Random, name: str) -> str:
    folder, slash, last = name.rpartition("/")
    new = rng.choice(
        (
            f"{last}x",
            "extra",
            ".hidden",
            "0.1",
            "9",
            "0",
            "zarr.json",
            ".zarray",
            "_METADATA",
            "manifest.ocdbt",
            "a\x1b\nb",
        )
    )
    return f"{folder}{slash}{new}" if rng.random() < 0.7 else new


def _possible(files: Files) -> Files:
    """Drop files that would have to be folders at the same time."""
    above = {"/".join(name.split("/")[:i]) for name in files for i in range(1, len(name.split("/")))}
    return {name: content for name, content in files.items() if name not in above}


def value(rng: random.Random, old: Any = None, depth: int = 0) -> Any:
    """Return something that may stand in a table, near to what stood there or far from it."""
    if isinstance(old, bool) or old is None or rng.random() < 0.3:
        ways: tuple[Any, ...] = (NUMBERS, FLOATS, PLAIN, NAMES, KINDS)
        return rng.choice(rng.choice(ways))
    if isinstance(old, int):
        return rng.choice((old + 1, old - 1, -old, old * 2, str(old), float(old), rng.choice(NUMBERS)))
    if isinstance(old, float):
        return rng.choice(FLOATS)
    if isinstance(old, str):
        return rng.choice((old + "x", old[1:], old.upper(), old[::-1], rng.choice(NAMES), rng.choice(KINDS)))
    if isinstance(old, list):
        return rng.choice(([], old + old, old[1:], [old], [*old, 0], [*old, 1], old[::-1], old * 40))
    return rng.choice(rng.choice((NUMBERS, FLOATS, PLAIN)))


def tree(rng: random.Random, node: Any) -> Any:
    """Return a table with one of its values or keys changed, removed, doubled, or nested deeper."""
    if isinstance(node, dict) and node and rng.random() < 0.85:
        key = rng.choice(list(node))
        way = rng.random()
        if way < 0.62:
            return {k: tree(rng, v) if k == key else v for k, v in node.items()}
        if way < 0.72:
            return {k: v for k, v in node.items() if k != key}
        if way < 0.84:
            new = value(rng, key) if isinstance(key, str) else rng.choice(NAMES)
            new = new if isinstance(new, str | int | float | None) else str(new)
            return {(new if k == key else k): v for k, v in node.items()}
        if way < 0.92:
            return {**node, rng.choice(NAMES): node[key]}
        if key in ("compressor", "codecs", "id"):
            return {**node, key: [rng.choice(CODECS)] if key == "codecs" else rng.choice(CODECS)}
        deep = node[key]
        for _ in range(rng.choice((1, 3, 150))):
            deep = {"a": deep} if rng.random() < 0.5 else [deep]
        return {**node, key: deep}
    if isinstance(node, list) and node and rng.random() < 0.6:
        at = rng.randrange(len(node))
        return [*node[:at], tree(rng, node[at]), *node[at + 1 :]]
    return value(rng, node)


def _without_sums(rng: random.Random, node: Any) -> Any:
    """Take the checksum of this package out, most of the time: what lies behind it is to be reached."""
    if isinstance(node, dict):
        return {k: _without_sums(rng, v) for k, v in node.items() if k != "crc32" or rng.random() < 0.1}
    return node


def _json(rng: random.Random, data: bytes) -> bytes:
    table = tree(rng, _without_sums(rng, json.loads(data)))
    text = json.dumps(table, ensure_ascii=rng.random() < 0.5)
    if rng.random() < 0.05:
        text = text.replace(": ", ": " + "[" * 5000, 1)
    if rng.random() < 0.05 and isinstance(table, dict) and table:  # a key twice
        key = json.dumps(next(iter(table)))
        text = "{" + f"{key}: 1, " + text[1:]
    return text.encode("utf-8", "surrogatepass")


def _safetensors(rng: random.Random, data: bytes) -> bytes:
    (length,) = struct.unpack("<Q", data[:8])
    header, rest = data[8 : 8 + length], data[8 + length :]
    if rng.random() < 0.15:
        return struct.pack("<Q", length) + header + raw(rng, rest)
    header = _json(rng, header)
    if rng.random() < 0.5:
        header += b" " * (-len(header) % 8)
    return struct.pack("<Q", len(header)) + header + rest


def _npy(rng: random.Random, data: bytes) -> bytes:
    (length,) = struct.unpack("<H", data[8:10])
    text, rest = data[10 : 10 + length].decode("latin1"), data[10 + length :]
    way = rng.randrange(5)
    if way == 0:
        text = re.sub("'descr': '[^']*'", lambda _: f"'descr': {rng.choice(KINDS)!r}", text)
    elif way == 1:
        text = re.sub(r"'shape': \([^)]*\)", lambda _: f"'shape': {value(rng, [2, 3])!r}", text)
    elif way == 2:
        text = re.sub(r"\d+", lambda _: str(rng.choice(NUMBERS)), text, count=1)
    elif way == 3:
        text = text.replace("False", rng.choice(("True", "None", "1", "[]", "'a'")))
    else:
        text = raw(rng, text.encode("latin1")).decode("latin1")
    header = text.encode("latin1", "replace")
    return data[:8] + struct.pack("<H", len(header) & 0xFFFF) + header + rest


def _zip(rng: random.Random, data: bytes) -> bytes:
    """Return an archive with one member changed, renamed, removed or doubled, with all lengths and sums right."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = [(info.filename, info.compress_type, archive.read(info)) for info in archive.infolist()]
        comment = archive.comment
    small = [i for i, (name, _, _) in enumerate(members) if name.endswith((".pkl", ".npy", "byteorder", "version"))]
    at = rng.choice(small) if small and rng.random() < 0.8 else rng.randrange(len(members))
    name, kind, inner = members[at]
    way = rng.random()
    if way < 0.72:
        changed_one = _pickle(rng, inner) if name.endswith(".pkl") else content(rng, inner, members[0][2])
        members[at] = (name, kind, changed_one)
    elif way < 0.8:
        members[at] = (str(value(rng, name)), kind, inner)
    elif way < 0.85:
        del members[at]
    elif way < 0.9:
        members.append((str(value(rng, name)), kind, inner))
    elif way < 0.95:
        kind = zipfile.ZIP_DEFLATED if kind == zipfile.ZIP_STORED else zipfile.ZIP_STORED
        members[at] = (name, kind, inner)
    elif comment[:1] == b"{":
        comment = _json(rng, comment)
    else:
        comment = rng.choice((b"{}", b'{"dtypes": {"a": "bfloat16"}}', b'{"metadata": {"a": NaN}}', b"x"))
    file = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(file, "w") as archive:
        warnings.simplefilter("ignore")  # a name that stands there twice
        for name, kind, inner in members:
            info = zipfile.ZipInfo(name.encode("utf-8", "replace").decode()[:60000] or "x")
            info.compress_type = kind
            archive.writestr(info, inner)
        archive.comment = comment[:65535]
    return file.getvalue()


def _pickle(rng: random.Random, data: bytes) -> bytes:
    """Return a pickle with one operation's argument changed, or an operation removed, doubled or exchanged."""
    end = len(data)
    places = []
    for code, argument, at in pickletools.genops(data):
        places.append((code, argument, at or 0))
    stops = [at for _, _, at in places[1:]] + [end]
    tail = stops[-1]
    pieces = [data[at:stop] for (_, _, at), stop in zip(places, stops, strict=True)]
    # Behind the first STOP there is more in files of PyTorch's old kind.
    rest = data[tail:]
    spoken = [i for i, (_, argument, _) in enumerate(places) if argument is not None]
    at = rng.choice(spoken) if spoken and rng.random() < 0.75 else rng.randrange(len(pieces))
    code, argument, _ = places[at]
    way = rng.random()
    if way < 0.6 and argument is not None:
        pieces[at] = _operation(rng, code.name, argument, pieces[at])
    elif way < 0.7:
        pieces.pop(at)
    elif way < 0.8:
        pieces.insert(at, pieces[rng.randrange(len(pieces))])
    elif way < 0.86:
        pieces.insert(at, _literal(rng, value(rng)))
    elif way < 0.94:
        module, function = rng.choice(GLOBALS).split(" ")
        pieces.insert(at, rng.choice((*CODES, b"c" + f"{module}\n{function}\n".encode())))
    else:
        other = rng.randrange(len(pieces))
        pieces[at], pieces[other] = pieces[other], pieces[at]
    return b"".join(pieces) + rest


def _operation(rng: random.Random, name: str, argument: Any, old: bytes) -> bytes:
    if name in ("GLOBAL", "INST"):
        module, function = rng.choice(GLOBALS).split(" ")
        return (b"c" if name == "GLOBAL" else b"i") + f"{module}\n{function}\n".encode()
    if name.startswith(("BINGET", "LONG_BINGET", "BINPUT", "LONG_BINPUT")):
        return (b"h" if "GET" in name else b"q") + bytes([rng.choice((0, 1, argument % 256, rng.randrange(256)))])
    if isinstance(argument, str | int | float):
        return _literal(rng, value(rng, argument))
    return raw(rng, old)


def _literal(rng: random.Random, one: Any) -> bytes:
    """Return the operations that put a plain value onto the stack."""
    if one is None or isinstance(one, bool):
        return {None: b"N", True: b"\x88", False: b"\x89"}[one]
    if isinstance(one, int):
        if 0 <= one < 256:
            return b"K" + bytes([one])
        if -(2**31) <= one < 2**31:
            return b"J" + struct.pack("<i", one)
        long = one.to_bytes(one.bit_length() // 8 + 1, "little", signed=True)
        return b"\x8a" + bytes([len(long)]) + long
    if isinstance(one, float):
        return b"G" + struct.pack(">d", one)
    if isinstance(one, str):
        text = one.encode("utf-8", "surrogatepass")
        return b"X" + struct.pack("<I", len(text)) + text
    return {"list": b"]", "dict": b"}", "tuple": b")"}.get(type(one).__name__, b")")


def _msgpack(rng: random.Random, data: bytes) -> bytes:
    node = msgpack.unpackb(data, raw=False, strict_map_key=False, unicode_errors="surrogateescape")
    packer: Any = msgpack.Packer(use_bin_type=True, unicode_errors="surrogateescape")
    return packer.pack(_packable(_in_tree(rng, node)))


def _packable(node: Any) -> Any:
    """Leave out what msgpack has no room for."""
    if isinstance(node, dict):
        return {_packable(key): _packable(one) for key, one in node.items()}
    if isinstance(node, list):
        return [_packable(one) for one in node]
    if isinstance(node, int) and not -(2**63) <= node < 2**64:
        return node % 2**63
    if isinstance(node, str):
        return node.encode("utf-8", "surrogateescape" if "\ud800" not in node else "replace").decode("utf-8", "replace")
    return node


def _in_tree(rng: random.Random, node: Any) -> Any:
    if isinstance(node, msgpack.ExtType):
        return _extension(rng, node)
    if isinstance(node, dict) and node and rng.random() < 0.8:
        key = rng.choice(list(node))
        return {k: _in_tree(rng, v) if k == key else v for k, v in node.items()}
    return tree(rng, node)


def _extension(rng: random.Random, node: msgpack.ExtType) -> Any:
    """Return an array whose shape, type or bytes are others."""
    way = rng.random()
    if way < 0.1:
        return msgpack.ExtType(rng.choice((0, 1, 2, 3, 4, 5, 77, 127)), node.data)
    if way < 0.25:
        return msgpack.ExtType(node.code, raw(rng, node.data))
    parts = list(msgpack.unpackb(node.data, raw=False))
    at = rng.randrange(len(parts))
    if isinstance(parts[at], bytes):
        parts[at] = raw(rng, parts[at])
    elif isinstance(parts[at], str):
        parts[at] = rng.choice(KINDS)
    else:
        parts[at] = value(rng, parts[at])
    packer: Any = msgpack.packb
    return msgpack.ExtType(node.code, packer(_packable(parts), use_bin_type=True))
