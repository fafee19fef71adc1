"""The Transformer family, which `parity`, `benchmarks` and `ports.weights` know by its record alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import torch
from flax import nnx

import parity
import ports
from benchmarks.measure import expected, gate
from benchmarks.subjects import jax_steps, torch_steps
from benchmarks.subjects.roster import SUBJECTS
from benchmarks.subjects.settings import Setting
from parity.commands.cli import main
from ports import UserError, families
from ports.transformer.spec import EncoderSpec
from ports.weights.checkpoints.checkpoint import open_checkpoint

TINY = EncoderSpec("tiny", vocabulary=17, length=9, width=12, heads=3, hidden=20, depth=2, num_classes=5)
FLAX = ["nnx", "linen"]


@pytest.mark.nightly
@pytest.mark.usefixtures("quick")
def test_it_is_the_same_in_every_port() -> None:
    report = parity.check_network(TINY, batch=3, steps=3, optimizer="adamw")
    assert report.ok, str(report)
    assert {row.port for row in report.models[0].rows} == {"nnx", "linen"}
    assert "3 inputs of 9, seed 0" in str(report)


def plant_gelu(net: Any) -> None:
    block = type(net.blocks.layers[1])

    class Tanh(block):
        def __call__(self: Any, x: Any) -> Any:
            x = x + self.attention(self.norm1(x))
            return x + self.linear2(nnx.gelu(self.linear1(self.norm2(x))))

    net.blocks.layers[1].__class__ = Tanh


def plant_epsilon(net: Any) -> None:
    net.blocks.layers[0].norm2.epsilon = 1e-6


@pytest.mark.nightly
@pytest.mark.sample(1)
@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(
    ("plant", "layer"), [(plant_gelu, "blocks.1"), (plant_epsilon, "blocks.0.norm2")], ids=["gelu", "epsilon"]
)
def test_a_planted_mistake_is_found(plant: Any, layer: str) -> None:
    net = ports.create(TINY, "pytorch", seed=0, dtype="float64")
    with jax.enable_x64(True):
        port = ports.create(TINY, "nnx", seed=None, dtype="float64")
        ports.weights.write(port, ports.weights.read(net))
    parity.assert_parity(net, port, steps=1)
    plant(port)
    report = parity.check(net, port, steps=1)
    assert report.exit_code == 1
    first = report.models[0].first_divergence
    assert first is not None
    assert first.layer == layer


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"image_size": (32, 32)}, "tiny: takes no images; leave out"),
        ({"images": "photographs"}, "tiny: takes no images; leave out"),
    ],
)
def test_options_of_images_are_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        parity.check(TINY, **options)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"width": 13}, "width: got 13 for 3 heads, expected a multiple"),
        ({"depth": 0}, "depth: got 0, expected a positive"),
        ({"folded": True}, "tiny: no option folded; expected one of depth, heads"),
    ],
)
def test_bad_options(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        families.get(TINY, **changes)


@pytest.mark.parametrize("to", ["nnx", "linen"])
def test_checkpoints_are_recognised_and_converted(to: str, tmp_path: Path) -> None:
    """With another number of classes and tokens than the named network has."""
    net = ports.create("encoder_small", "pytorch", seed=1, num_classes=3, vocabulary=50, depth=4)
    torch.save(net.state_dict(), tmp_path / "a.pth")
    assert main(["convert", str(tmp_path / "a.pth"), str(tmp_path / "b.npz"), "--to", to]) == 0
    assert main(["convert", str(tmp_path / "b.npz"), str(tmp_path / "c.safetensors")]) == 0
    back = ports.weights.load(tmp_path / "c.safetensors")
    for name, tensor in net.state_dict().items():
        assert back[name].tobytes() == tensor.numpy().tobytes(), name
    found = open_checkpoint(tmp_path / "b.npz").found
    assert found is not None
    assert (found.network, found.dialect) == ("encoder_small", to)
    assert found.spec == families.get("encoder_small", num_classes=3, vocabulary=50)


def test_it_is_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models"]) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("encoder_small")]
    assert line.split()[1:4] == ["930,826", "4", "64"]


# ---- initial weights


@pytest.mark.sample(1)
@pytest.mark.parametrize("port", ports.PORTS)
def test_initial_weights_are_pytorchs(port: str) -> None:
    """Standard deviations within five standard errors of n draws, and the seed is fixed."""
    weights = ports.weights.read(ports.create("encoder_small", port, seed=0))
    w = 128
    expected = {
        "tokens.weight": 1.0,
        "blocks.0.attention.in_proj_weight": (2 / (w + 3 * w)) ** 0.5,
        "blocks.0.attention.out_proj.weight": (1 / (3 * w)) ** 0.5,
        "blocks.3.linear2.weight": (1 / (3 * 512)) ** 0.5,
    }
    for name, deviation in expected.items():
        values = weights[name].astype(np.float64)
        assert values.std() == pytest.approx(deviation, rel=5 / (2 * values.size) ** 0.5), name
    assert not weights["blocks.1.attention.in_proj_bias"].any()
    assert not weights["blocks.1.attention.out_proj.bias"].any()


# ---- benchmarks


@pytest.mark.sample(1)
@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("mode", ["inference", "training"])
def test_what_is_timed_is_proved_equal(mode: str, tmp_path: Path) -> None:
    setting = Setting("encoder_small", mode, 2, "float32", (64,))
    expected.prepare(setting, {}, tmp_path)
    case = expected.read_case(setting, {}, tmp_path)
    assert case.images.shape == (4, 2, 64)
    for build in (torch_steps.build, jax_steps.build_nnx, jax_steps.build_linen):
        run = build(case)
        result = run.step(0)
        run.wait(result)
        found = dict(run.numbers(result))
        if mode == "training":
            found |= gate.parameter_change(run.weights(), case.weights)
        verdict = gate.judge(found, case.expected, case.bounds)
        assert verdict.ok, f"{build.__name__}: {verdict}"
        assert verdict.worst < 0.9, "a right subject that is near its bound is refused on another machine"


def test_which_subjects_suit_it() -> None:
    suited = {
        name for name, row in SUBJECTS.items() if row.suits("encoder_small", "inference", "cpu") and not row.swept
    }
    assert {"pytorch", "pytorch-compile", "nnx", "linen", "nnx-jit"} <= suited
    assert not [
        name for name in suited if "fast" in name or "folded" in name or "export" in name or SUBJECTS[name].peer
    ]
