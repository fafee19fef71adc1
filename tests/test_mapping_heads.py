"""Attention whose projections and heads each side holds otherwise: what the check pairs, a mapping converts."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import heads
import numpy as np
import pytest
import torch
from safetensors.numpy import save_file
from test_mapping import arrays, same

import parity
from parity import api
from parity.commands.mapping import script_parts
from parity.pairing import derived
from ports import weights
from ports.weights.rules import rulesfile, script

pytestmark = pytest.mark.usefixtures("quick")


def pair(case: str) -> tuple[torch.nn.Module, Any]:
    ours, port = heads.PAIRS[case]
    torch.manual_seed(0)
    return ours().eval(), port()


def written(case: str, folder: Path) -> dict[str, np.ndarray]:
    """Write the rules and the script of a pair, and PyTorch's checkpoint; return its tensors."""
    ours, port = pair(case)
    text, parts = api.paired(ours, port, heads.X, read=lambda both: (derived.rules(both), script_parts(both)))
    rows, alone, tied = parts
    (folder / "rules.toml").write_text(text)
    (folder / "convert.py").write_text(script.text(rows, alone, "convert.py", tied))
    own = {name: np.array(a, order="C") for name, a in weights.read(ours).items()}
    save_file(own, folder / "torch.safetensors")
    return own


def by_rules(folder: Path) -> None:
    rules = rulesfile.load(folder / "rules.toml")
    weights.convert(folder / "torch.safetensors", folder / "flax.safetensors", rules=rules)
    weights.convert(folder / "flax.safetensors", folder / "back.safetensors", rules=rules)


def by_script(folder: Path) -> None:
    ways = (("to-flax", "torch", "flax"), ("to-torch", "flax", "back"))
    for way, source, target in ways:
        command = [sys.executable, "-I", "convert.py", way, f"{source}.safetensors", f"{target}.safetensors"]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr


@pytest.mark.sample(3)
@pytest.mark.parametrize("case", heads.PAIRS)
def test_what_the_check_pairs_converts(case: str, tmp_path: Path) -> None:
    ours, port = pair(case)
    moved = parity.move(ours, port, heads.X)
    report = parity.check(ours, moved, heads.X, steps=1)
    assert report, str(report)
    own = written(case, tmp_path)
    for convert in (by_rules, by_script):
        convert(tmp_path)
        assert same(tmp_path / "flax.safetensors", arrays(moved))
        assert same(tmp_path / "back.safetensors", own)
        (tmp_path / "flax.safetensors").unlink()
        (tmp_path / "back.safetensors").unlink()


@pytest.mark.parametrize("convert", [by_rules, by_script])
def test_keys_in_the_place_of_values_are_noticed(convert: Any, tmp_path: Path) -> None:
    """What the test above compares can fail."""
    case = "in-one, nnx library"
    own = written(case, tmp_path)
    for file, right, wrong in (
        ("rules.toml", "spread_order = [1, 0, 2]", "spread_order = [1, 2, 0]"),
        ("convert.py", '"order": [1, 0, 2]', '"order": [1, 2, 0]'),
    ):
        text = (tmp_path / file).read_text()
        assert right in text
        (tmp_path / file).write_text(text.replace(right, wrong))
    convert(tmp_path)
    ours, port = pair(case)
    assert not same(tmp_path / "flax.safetensors", arrays(parity.move(ours, port, heads.X)))
    assert same(tmp_path / "back.safetensors", own)


@pytest.mark.nightly
def test_heads_in_another_order_are_a_finding() -> None:
    """The form in which each head has its part explains no other order of heads."""
    ours, port = pair("by head, nnx heads")
    moved = parity.move(ours, port, heads.X)
    kernel = moved.query.kernel
    kernel.set_value(kernel[...][:, ::-1])
    report = parity.check(ours, moved, heads.X, steps=0)
    assert [finding.layer for finding in report.models[0].findings] == ["query_key_value.weight"]


SHAPES = {"by head": (heads.HEADS, 3, heads.DEPTH), "in one": (3, heads.HEADS, heads.DEPTH)}


@pytest.mark.parametrize(
    ("ours", "name", "split"),
    [(heads.InOne, "qkv", "by head"), (heads.ByHead, "query_key_value", "in one")],
    ids=["in one", "by head"],
)
def test_heads_that_were_split_otherwise_are_a_finding_of_the_tensor(
    ours: type[heads.Attention], name: str, split: str
) -> None:
    """Whoever wrote the port's values took its form for PyTorch's: equal values prove no form then."""
    torch.manual_seed(0)
    net: Any = ours().eval()
    port: Any = heads.in_nnx(heads.NnxHeads)()
    port.out.kernel.set_value(net.out.weight.detach().numpy().T.reshape(heads.HEADS, heads.DEPTH, heads.WIDTH))
    port.out.bias.set_value(net.out.bias.detach().numpy())
    fused, shape = getattr(net, name), SHAPES[split]
    weights_, biases = (x.detach().numpy().reshape(*shape, *x.shape[1:]) for x in (fused.weight, fused.bias))
    for i, part in enumerate((port.query, port.key, port.value)):
        kernel, bias = (np.take(x, i, shape.index(3)) for x in (weights_, biases))
        part.kernel.set_value(np.moveaxis(kernel, -1, 0))
        part.bias.set_value(bias)
    report = parity.check(net, port, heads.X, steps=0)
    assert [finding.layer for finding in report.models[0].findings] == [f"{name}.weight", f"{name}.bias"]
