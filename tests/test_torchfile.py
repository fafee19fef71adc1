"""PyTorch's files, read without PyTorch: every bit as `torch.load` gives it, from whatever version wrote them."""

from __future__ import annotations

import collections
import io
import os
import pickle
import struct
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch.utils.serialization import config

from ports.weights import WeightsError
from ports.weights.files import formats
from ports.weights.live.pytorch import to_numpy

OLD = ["float16", "float32", "float64", "bfloat16", "int8", "int16", "int32", "int64", "uint8", "complex64"]
NEW = ["uint16", "uint32", "uint64", "float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz"]
NEW += ["float8_e8m0fnu"]


def random_tensor(name: str, *shape: int) -> torch.Tensor:
    """NaN payloads among them."""
    dtype = getattr(torch, name)
    count = int(np.prod(shape)) * torch.empty((), dtype=dtype).element_size()
    return torch.frombuffer(bytearray(np.random.default_rng(0).bytes(count)), dtype=dtype).reshape(shape)


def with_attributes(tensor: torch.Tensor) -> torch.Tensor:
    tensor.note = "kept by pickle"  # pyright: ignore[reportAttributeAccessIssue]
    return tensor


def tree(names: list[str]) -> dict[Any, Any]:
    base = random_tensor("float32", 6, 4)
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.LSTM(3, 4))
    for parameter in net.parameters():
        parameter.data = random_tensor("float32", *parameter.shape).nan_to_num()
        parameter.grad = torch.ones_like(parameter)
    optimizer = torch.optim.AdamW(net.parameters())
    optimizer.step()
    return {
        "net": net.state_dict(),
        "optimizer": optimizer.state_dict(),
        "types": {name: random_tensor(name, 2, 3) for name in names},
        "bool": torch.tensor([True, False]),
        "transposed": base.t(),
        "every other": base[1:5:2, ::3],
        "channels last": random_tensor("float32", 2, 3, 4, 5).to(memory_format=torch.channels_last),
        "expanded": base[:, :1].expand(6, 5),
        "empty": torch.zeros(0, 3),
        "scalar": torch.tensor(-0.0),
        "parameter": torch.nn.Parameter(base, requires_grad=False),
        "attributes": with_attributes(torch.nn.Parameter(base.clone())),
        "more": with_attributes(torch.ones(2)),
        "plain": [
            None,
            True,
            -5,
            2**70,
            1e-300,
            "é\n日",
            b"abc",
            bytearray(b"xyz"),
            1 + 2j,
            (1, (2,)),
            {1, 2},
            {3: "x"},
        ],
        "counter": collections.Counter("aab"),
        "ordered": collections.OrderedDict(b=1, a=2),
        "torch": [torch.float32, torch.device("cuda:1"), torch.strided, base.shape],
        5: {1.5: 1, (1, "a"): 2, None: 3, True: 4},
    }


def same(expected: Any, got: Any) -> None:
    """Types, order of keys, shapes and bits."""
    if isinstance(expected, torch.Tensor):
        expected = to_numpy(expected)
        assert (expected.dtype, expected.shape, expected.tobytes()) == (got.dtype, got.shape, got.tobytes())
    elif isinstance(expected, dict):
        assert list(expected) == list(got)
        for key, value in expected.items():
            same(value, got[key])
    elif isinstance(expected, list | tuple):
        assert len(expected) == len(got)
        for one, other in zip(expected, got, strict=True):
            same(one, other)
    else:
        assert (type(expected), expected) == (type(got), got)


WRITERS: dict[str, dict[str, Any]] = {
    "zip": {},
    "legacy": {"_use_new_zipfile_serialization": False},
    "protocol 3": {"pickle_protocol": 3},
    "protocol 4": {"pickle_protocol": 4},
    "protocol 5": {"pickle_protocol": 5},
    "protocol 1": {"pickle_protocol": 1},
}


@pytest.mark.parametrize("kind", WRITERS)
def test_every_bit_that_torch_save_writes(kind: str, tmp_path: Path) -> None:
    whole = tree(OLD if kind == "legacy" else OLD + NEW)
    torch.save(whole, tmp_path / "w.pt", **WRITERS[kind])
    got = formats.read(tmp_path / "w.pt").tree
    same(whole, got)
    if kind in ("zip", "legacy"):  # the other protocols PyTorch refuses to read safely
        same(torch.load(tmp_path / "w.pt", weights_only=True, map_location="cpu"), got)


@pytest.mark.parametrize("alignment", [1, 64, 4096])
@pytest.mark.parametrize("crc", [True, False])
def test_every_alignment_with_and_without_checksums(alignment: int, crc: bool, tmp_path: Path) -> None:
    whole = {"a": random_tensor("float32", 5), "b": random_tensor("int8", 3)}
    before, patched = torch.serialization.get_crc32_options(), cast(Any, config)
    torch.serialization.set_crc32_options(crc)
    try:
        with patched.patch({"save.storage_alignment": alignment}):
            torch.save(whole, tmp_path / "w.pt")
    finally:
        torch.serialization.set_crc32_options(before)
    same(whole, formats.read(tmp_path / "w.pt").tree)


def test_the_published_file_of_pytorch_0_3(shared_data: Path) -> None:
    path = shared_data / "resnet20-12fca82f.th"
    same(torch.load(path, weights_only=True, map_location="cpu"), formats.read(path).tree)


def test_old_calls(tmp_path: Path) -> None:
    """`_rebuild_tensor` with texts of Python 2, a storage that is a part of another, and PyTorch 0.3's parameters."""
    storage = b"(U\x07storagectorch\nFloatStorage\nU\x011U\x03cpuK\x06"
    first = b"ctorch._utils\n_rebuild_tensor\n(" + storage + b"NtQK\x01K\x02\x85K\x02\x85tR"
    second = b"ctorch._utils\n_rebuild_tensor\n(" + storage + b"(U\x012K\x02K\x04ttQK\x01K\x03\x85K\x01\x85tR"
    third = b"ctorch.nn.parameter\nParameter\n(" + first + b"\x88tR\x88\x89ccollections\nOrderedDict\n)R\x87b"
    content = b"\x80\x02}(U\x01a" + first + b"U\x02\xc3\xa9" + second + b"U\x01p" + third + b"u."
    head = [pickle.dumps(one, 2) for one in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True})]
    numbers = np.arange(6, dtype=np.float32)
    end = pickle.dumps(["1"], 2) + struct.pack("<q", 6) + numbers.tobytes()
    (tmp_path / "w.pth").write_bytes(b"".join(head) + content + end)
    got = formats.read(tmp_path / "w.pth").tree
    same(torch.load(tmp_path / "w.pth", weights_only=True), got)
    assert list(got["é"]) == [3, 4, 5]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda content: content + b"x", "1 bytes follow"),
        (lambda content: content[:-1], "ends within the storage"),
        (lambda content: content.replace(struct.pack("<q", 6), struct.pack("<q", 5)), "has 5 numbers, expected 6"),
        (lambda content: content.replace(struct.pack("<q", 6), struct.pack("<q", -1)), "has -1 numbers, expected 6"),
        (lambda content: content.replace(b"\x80\x02]q\x00", b"\x80\x02)q\x00"), "damaged"),
    ],
    ids=["longer", "shorter", "fewer numbers", "a negative number", "no list"],
)
def test_legacy_files_that_are_damaged(change: Any, said: str, tmp_path: Path) -> None:
    torch.save({"a": random_tensor("float32", 6)}, tmp_path / "w.pt", _use_new_zipfile_serialization=False)
    (tmp_path / "w.pt").write_bytes(change((tmp_path / "w.pt").read_bytes()))
    with pytest.raises(WeightsError, match=said):
        formats.read(tmp_path / "w.pt")


def test_files_of_machines_that_are_big_endian(tmp_path: Path) -> None:
    whole = {name: random_tensor(name, 2, 3) for name in OLD}
    torch.save(whole, tmp_path / "w.pt")
    with zipfile.ZipFile(tmp_path / "w.pt") as old, zipfile.ZipFile(tmp_path / "big.pt", "w") as new:
        for member in old.namelist():
            content = old.read(member)
            if member.endswith("/byteorder"):
                content = b"big"
            elif (at := member.rpartition("/data/")[2]).isdecimal():
                dtype = torch.empty(0, dtype=getattr(torch, OLD[int(at)]))
                size = dtype.element_size() // (2 if dtype.is_complex() else 1)
                content = np.frombuffer(content, f"u{size}").byteswap().tobytes()
            new.writestr(member, content)
    same(torch.load(tmp_path / "big.pt", weights_only=True), formats.read(tmp_path / "big.pt").tree)


def test_a_program_is_no_state_dict(tmp_path: Path) -> None:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("net/data.pkl", b"\x80\x02c__torch__\nNet\n)\x81}b.")
        archive.writestr("net/constants.pkl", b"\x80\x02).")
    (tmp_path / "w.pt").write_bytes(file.getvalue())
    with pytest.raises(WeightsError, match="is a TorchScript program, expected a state_dict"):
        formats.read(tmp_path / "w.pt")


def test_a_whole_model_is_refused_with_what_to_save_instead(tmp_path: Path) -> None:
    torch.save(torch.nn.Linear(2, 2), tmp_path / "w.pt")
    with pytest.raises(
        WeightsError, match=r"would run torch\.nn.*Linear; refused. Save the model's state_dict\(\) alone"
    ):
        formats.read(tmp_path / "w.pt")


def test_reading_loads_neither_torch_nor_pickle_s_functions(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(2)}, tmp_path / "w.pt")
    script = (
        "import sys; from ports.weights.files import formats; formats.read(sys.argv[1]); print('torch' in sys.modules)"
    )
    root = str(Path(__file__).resolve().parents[1])
    command = [sys.executable, "-c", script, str(tmp_path / "w.pt")]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=os.environ | {"PYTHONPATH": root})
    assert done.stdout == "False\n"
