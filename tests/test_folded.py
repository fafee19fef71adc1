"""BatchNorms folded into convolutions: the ports of such a network take those weights and give the same logits."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import ports
from parity.commands.cli import main
from parity.running import probes as probe
from parity.subjects import randomise
from ports import families
from ports.families import layers
from ports.resnet.spec import ResNetSpec
from ports.weights.known import fold

# One of each kind of stem, block and shortcut, a block a stage.
KINDS = (
    "resnet18",
    "resnet50",
    "resnet50d",
    "cifar_resnet20",
    "preact_resnet110",
    "preact_resnet164",
    "tutorial_net",
    "tutorial_resnet",
)


def small(name: str, **changes: Any) -> Any:
    spec = families.get(name, num_classes=5, **changes)
    if not isinstance(spec, ResNetSpec):
        return families.get(spec, widths=tuple(8 + 4 * i for i in range(len(spec.widths))))
    return dataclasses.replace(spec, stages=tuple(dataclasses.replace(stage, blocks=1) for stage in spec.stages[:2]))


def weights_of(spec: Any) -> dict[str, np.ndarray]:
    net = ports.create(spec, "pytorch", dtype="float64")
    fed = probe.of_spec(spec, batch=2, size=(17, 17), seed=0)
    with torch.no_grad():
        randomise(net, fed, 0)
    return dict(ports.weights.read(net))


def logits(spec: Any, port: str, weights: dict[str, np.ndarray], images: np.ndarray) -> np.ndarray:
    if port == "pytorch":
        net = ports.create(spec, "pytorch", seed=None, dtype="float64")
        ports.weights.write(net, weights)
        with torch.no_grad():
            return net.eval()(torch.from_numpy(images)).numpy()
    with jax.enable_x64(True):
        net = ports.create(spec, port, seed=None, dtype="float64")
        x = jnp.array(images.transpose(0, 2, 3, 1))
        if port == "nnx":
            ports.weights.write(net, weights)
            net.eval()
            return np.asarray(net(x))
        variables = ports.weights.write(net, weights)
        return np.asarray(net[0].apply(variables, x))


@pytest.mark.parametrize("name", KINDS)
def test_the_description_has_the_layers_that_folding_leaves(name: str) -> None:
    assert layers(families.get(name, folded=True)) == fold.folded(layers(families.get(name)))


@pytest.mark.sample(8)
@pytest.mark.parametrize("port", ["pytorch", "nnx", "linen"])
@pytest.mark.parametrize("name", KINDS)
def test_a_folded_port_gives_the_logits_of_the_whole_network(name: str, port: str) -> None:
    spec = small(name)
    weights = weights_of(spec)
    images = np.random.default_rng(1).normal(size=(2, 3, 33, 33))
    expected = logits(spec, "pytorch", weights, images)
    fewer, count = fold.fold(weights, layers(spec))
    assert count > 0
    folded = families.get(spec, folded=True)
    found = logits(folded, port, fewer, images)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12 * np.abs(expected).max())
    bias = next(name for name in fewer if name.endswith("conv1.bias"))
    wrong = logits(folded, port, fewer | {bias: fewer[bias] * 1.001}, images)
    assert np.abs(wrong - expected).max() > 1e-6 * np.abs(expected).max()


@pytest.mark.nightly
def test_a_converted_file_is_what_a_folded_port_takes(tmp_path: Path) -> None:
    net = ports.create("cifar_resnet20", "pytorch", seed=3)
    torch.save(net.state_dict(), tmp_path / "whole.pth")
    assert main(["convert", str(tmp_path / "whole.pth"), str(tmp_path / "folded.msgpack"), "--fold-batchnorm"]) == 0
    variables = flax.serialization.msgpack_restore((tmp_path / "folded.msgpack").read_bytes())
    module, _ = ports.create("cifar_resnet20", "linen", folded=True)
    images = np.random.default_rng(0).normal(size=(2, 3, 32, 32)).astype(np.float32)
    with torch.no_grad():
        expected = net.eval()(torch.from_numpy(images)).numpy()
    found = module.apply(variables, images.transpose(0, 2, 3, 1))
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6 * np.abs(expected).max())  # 1.7e-7 measured
