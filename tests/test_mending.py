"""`parity check --diff` tells a change of the source that another check confirms, and writes none unasked."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from parity.commands import mending
from parity.commands.cli import main
from parity.reports.report import Finding, Fix, Model, Row
from ports.errors import UserError

pytestmark = pytest.mark.usefixtures("quick")

FLAX = """from flax import nnx


class Port(nnx.Module):
    def __init__(self, rngs):
        self.up = nnx.Linear(4, 8, rngs=rngs)
        self.norm = nnx.LayerNorm(8, rngs=rngs)
        self.down = nnx.Linear(8, 3, rngs=rngs)

    def __call__(self, x):
        return self.down(nnx.gelu(self.norm(self.up(x))))
"""
PAIR = """import numpy as np
import torch
from flax import nnx
from my_flax_port import Port
from torch import nn

import parity


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.norm, self.down = nn.Linear(4, 8), nn.LayerNorm(8), nn.Linear(8, 3)

    def forward(self, x):
        return self.down(nn.functional.gelu(self.norm(self.up(x))))


def make():
    torch.manual_seed(0)
    x = np.random.default_rng(0).standard_normal((3, 4)).astype(np.float32)
    model = Model()
    return model, parity.move(model, Port(nnx.Rngs(0)), x), x, {"steps": 1}
"""
MENDED = FLAX.replace("(8, rngs=rngs)", "(8, rngs=rngs, epsilon=1e-05)").replace(
    "(self.up(x))))", "(self.up(x)), approximate=False))"
)


@pytest.mark.nightly
def test_the_diff_is_told_and_written_only_where_it_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    port = tmp_path / "my_flax_port.py"
    port.write_text(FLAX)
    (tmp_path / "pair.py").write_text(PAIR)
    try:
        assert main(["check", "./pair.py:make", "--diff", "--json", "a.json"]) == 1
        assert port.read_text() == FLAX
        found = json.loads(Path("a.json").read_text())["models"][0]["findings"]
        assert [one["trap"] for one in found] == ["norm-epsilon-1e-6", "gelu-tanh"]
        assert found[0]["diff"].startswith("--- a/my_flax_port.py\n+++ b/my_flax_port.py\n@@ -4,7 +4,7 @@\n")
        assert "+        self.norm = nnx.LayerNorm(8, rngs=rngs, epsilon=1e-05)\n" in found[0]["diff"]
        assert (
            "   +        return self.down(nnx.gelu(self.norm(self.up(x)), approximate=False))"
            in capsys.readouterr().out
        )
        assert main(["check", "./pair.py:make", "--fix"]) == 1
        assert port.read_text() == MENDED
    finally:
        for name in ("pair", "my_flax_port"):
            sys.modules.pop(name, None)


FILE = Path("port.py").resolve()
SOURCE = "from flax import nnx\nself.a = nnx.LayerNorm(8)\nself.b = nnx.LayerNorm(8)\n"
ROW = Row("nnx", "output.eval", "output", 1.0, 0.0, False)


def model(*names: str) -> Model:
    found = (Finding("nnx", name, "norm-epsilon-1e-6", "", fix=(Fix(name, "epsilon", 1e-6, 1e-5),)) for name in names)
    return Model("Port", (ROW,) if names else (), findings=tuple(found))


def diffs(again: mending.Again) -> list[bool]:
    """Return which of two findings get a diff."""
    told, _ = mending.with_diffs(model("a", "b"), {FILE: SOURCE}, again)
    return [finding.diff is not None for finding in told.findings]


def names(sources: Mapping[Path, str]) -> list[str]:
    return [line[5] for line in sources[FILE].splitlines() if line.endswith("LayerNorm(8)")]


def test_a_finding_that_stays_gets_no_diff() -> None:
    assert diffs(lambda sources: model(*names(sources))) == [True, True]
    assert diffs(lambda sources: model(*{*names(sources), "b"})) == [True, False]
    assert diffs(lambda _: model("a", "b")) == [False, False]


def test_a_change_that_makes_another_mistake_gets_no_diff() -> None:
    assert diffs(lambda sources: model(*names(sources), "c")) == [False, False]


def test_a_change_that_cannot_be_checked_gets_no_diff() -> None:
    def raises(_: object) -> Any:
        raise UserError("the port raises")

    assert diffs(raises) == [False, False]


def test_networks_of_this_package_have_no_diff(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "resnet18", "--diff"]) == 2
    assert "--diff: got a network of this package, expected a pair of your own" in capsys.readouterr().err
