"""Zip archives: what two readers could understand differently is refused; whatever real programs write is read."""

from __future__ import annotations

import io
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_formats import same

from ports.weights import WeightsError
from ports.weights.files import formats

ENTRY, HEADER, END = b"PK\1\2", b"PK\3\4", b"PK\5\6"
TENSORS = {"a": np.arange(6, dtype=np.float32), "b": np.ones((2, 3))}


def torch_file(path: Path) -> bytes:
    torch.save({name: torch.from_numpy(array) for name, array in TENSORS.items()}, path)
    return path.read_bytes()


def npz_file(path: Path) -> bytes:
    np.savez(path, **TENSORS)  # pyright: ignore[reportArgumentType]
    return path.read_bytes()


FILES = {"w.pt": torch_file, "w.npz": npz_file}


def put(content: bytes, at: int, code: str, *numbers: int) -> bytes:
    changed = bytearray(content)
    struct.pack_into(code, changed, at, *numbers)
    return bytes(changed)


def within(content: bytes, mark: bytes, offset: int, code: str, number: int, last: bool = False) -> bytes:
    """Change a number of the first header (or the last one) of a kind."""
    return put(content, (content.rfind if last else content.find)(mark) + offset, code, number)


def other(content: bytes) -> bytes:
    """Return another archive, with a directory of its own."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02}X\x01\x00\x00\x00aK\x01s.")
    return file.getvalue()


def commented(content: bytes) -> bytes:
    """Put a whole archive into the comment."""
    inner = other(content)
    return put(content, len(content) - 2, "<H", len(inner)) + inner


def zip64(content: bytes) -> bytes:
    """Add the large end, with another number of members."""
    at = content.rfind(END)
    count, _, size, begin = struct.unpack_from("<2H2I", content, at + 8)
    end = struct.pack("<4sQ2H2I4Q", b"PK\6\6", 44, 45, 45, 0, 0, count - 1, count - 1, size, begin)
    return content[:at] + end + struct.pack("<4sIQI", b"PK\6\7", 0, at, 1) + content[at:]


def gap(content: bytes) -> bytes:
    """Put bytes in front of the directory, and tell the end of it."""
    at = content.find(ENTRY)
    moved = content[:at] + b"gap!" + content[at:]
    end = moved.rfind(END)
    (begin,) = struct.unpack_from("<I", moved, end + 16)
    return put(moved, end + 16, "<I", begin + 4)


def shared_place(content: bytes) -> bytes:
    """Let two members be the same bytes."""
    first = content.find(ENTRY)
    (place,) = struct.unpack_from("<I", content, first + 42)
    return within(content, ENTRY, 42, "<I", place, last=True)


CHANGES: dict[str, Callable[[bytes], bytes]] = {
    "bytes in front": lambda content: b"MZ" + content,
    "bytes behind": lambda content: content + b"\0",
    "another archive behind": lambda content: content + other(content),
    "another archive in front": lambda content: other(content) + content,
    "an archive in the comment": commented,
    "a large end that differs": zip64,
    "a gap": gap,
    "two members in one place": shared_place,
    "a member outside": lambda content: within(content, ENTRY, 42, "<I", len(content) - 10),
    "another size in the directory": lambda content: within(content, ENTRY, 24, "<I", 7),
    "another stored size": lambda content: within(content, ENTRY, 20, "<I", 7),
    "another name": lambda content: within(content, HEADER, 30, "<B", ord("z")),
    "another method": lambda content: within(content, HEADER, 8, "<H", 8),
    "an unknown method": lambda content: within(within(content, HEADER, 8, "<H", 12), ENTRY, 10, "<H", 12),
    "encrypted": lambda content: within(content, ENTRY, 8, "<H", 1),
    "another checksum": lambda content: within(content, ENTRY, 16, "<I", 12345),
    "a disk": lambda content: within(content, ENTRY, 34, "<H", 1),
    "fewer members": lambda content: put(content, content.rfind(END) + 8, "<2H", 1, 1),
    "more members": lambda content: put(content, content.rfind(END) + 8, "<2H", 99, 99),
    "parts": lambda content: put(content, content.rfind(END) + 4, "<2H", 1, 1),
    "a directory elsewhere": lambda content: put(content, content.rfind(END) + 16, "<I", 10),
    "a name with a zero": lambda content: content.replace(b"b.npy", b"b\0npy").replace(b"data/1", b"data\0001"),
    "no end": lambda content: content[: content.rfind(END)],
    "an end alone": lambda content: content[content.rfind(END) :],
}


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("kind", CHANGES)
def test_archives_that_can_be_read_in_two_ways(kind: str, name: str, tmp_path: Path) -> None:
    content = CHANGES[kind](FILES[name](tmp_path / name))
    (tmp_path / name).write_bytes(content)
    with pytest.raises(WeightsError, match=f"weights .*{name}: damaged, or not a file of weights: "):
        formats.read(tmp_path / name)


def test_two_directories(tmp_path: Path) -> None:
    """Python's `zipfile` reads the one, and PyTorch the other; both are right by themselves."""
    content = torch_file(tmp_path / "w.pt")
    (tmp_path / "w.pt").write_bytes(content + other(content))
    with zipfile.ZipFile(tmp_path / "w.pt") as archive:
        assert archive.namelist() == ["archive/data.pkl"]
    with pytest.raises(WeightsError, match="zip archive"):
        formats.read(tmp_path / "w.pt")


@pytest.mark.parametrize("second", ["archive/DATA.pkl", "archive\\data.pkl", "Archive/data.pkl"])
def test_names_that_pytorch_does_not_tell_apart(second: str, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "w.pt", "w") as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02}X\x01\x00\x00\x00aK\x01s.")
        archive.writestr(second, b"\x80\x02}X\x01\x00\x00\x00aK\x02s.")
    with pytest.raises(WeightsError, match="two members have one name"):
        formats.read(tmp_path / "w.pt")


class Pipe(io.RawIOBase):
    """A file that cannot seek: what is written to it has its sizes behind the numbers."""

    def __init__(self) -> None:
        self.content = bytearray()

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self.content += data
        return len(data)


def rezipped(content: bytes, file: Any, method: int, **options: Any) -> None:
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(file, "w", method) as new:
        for member in old.namelist():
            with new.open(zipfile.ZipInfo(member), "w", **options) as target:
                target.write(old.read(member))


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("force_zip64", [False, True], ids=["32", "64"])
@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED], ids=["stored", "deflated"])
@pytest.mark.parametrize("seeks", [True, False], ids=["a file", "a pipe"])
def test_what_other_programs_write(seeks: bool, method: int, force_zip64: bool, name: str, tmp_path: Path) -> None:
    content, file = FILES[name](tmp_path / name), io.BytesIO() if seeks else Pipe()
    rezipped(content, file, method, force_zip64=force_zip64)
    (tmp_path / name).write_bytes(file.getvalue() if isinstance(file, io.BytesIO) else file.content)
    assert same(formats.read(tmp_path / name).tree, TENSORS)


def test_names_comments_folders_and_more_members_later(tmp_path: Path) -> None:
    path = tmp_path / "w.pt"
    torch_file(path)
    with zipfile.ZipFile(path, "a") as archive:
        archive.comment = b"PK is no end of an archive"
        archive.writestr("w/extra/é.txt", "text")
        archive.writestr("w/extra/", "")
    assert same(formats.read(path).tree, TENSORS)
    np.savez(tmp_path / "w.npz", a=np.ones(2), A=np.zeros(2), **{"é/ü": np.ones(1)})  # pyright: ignore[reportArgumentType]
    assert list(formats.read(tmp_path / "w.npz").tree) == ["a", "A", "é/ü"]
    np.savez_compressed(tmp_path / "w.npz", a=np.zeros(10**6), b=np.asfortranarray(np.ones((3, 2), ">f8")))
    assert formats.read(tmp_path / "w.npz").tree["b"].tolist() == [[1, 1]] * 3


def test_a_member_that_is_inflated_piece_by_piece(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    numbers = np.random.default_rng(0).integers(0, 3, 10_000)
    np.savez_compressed(tmp_path / "w.npz", a=numbers, b=np.zeros(10_000))
    for piece in (1, 7, 1000):
        monkeypatch.setattr("ports.weights.files.source.PIECE", max(piece, 100))
        monkeypatch.setattr("ports.weights.files.formats.zips.PIECE", piece if piece > 1 else 13)
        assert same(formats.read(tmp_path / "w.npz").tree, {"a": numbers, "b": np.zeros(10_000)})
