"""Vision Transformers: the same in every port, and the same as torchvision's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import numpy as np
import originals
import pytest
import torch
from flax import nnx

import parity
import ports
from parity.commands.cli import main
from ports import UserError, families
from ports.vit.spec import ViTSpec
from ports.weights.checkpoints.checkpoint import open_checkpoint

TINY = ViTSpec("tiny", patch_size=4, width=16, heads=4, hidden=24, depth=2, num_classes=5, input_size=12)
NAMED = ("vit_b_16", "vit_b_32", "vit_l_16")


def images(spec: ViTSpec = TINY, batch: int = 3) -> np.ndarray:
    shape = (batch, spec.in_channels, spec.input_size, spec.input_size)
    return np.random.default_rng(0).standard_normal(shape)


def called(net: Any, port: str, x: np.ndarray) -> Any:
    """The outputs of a network of any port on NCHW images."""
    if port == "pytorch":
        return net(torch.from_numpy(x))
    x = x.transpose(0, 2, 3, 1)
    return net(x) if port == "nnx" else net[0].apply(net[1], x)


def drawn(net: torch.nn.Module) -> torch.nn.Module:
    """Random numbers in every tensor: a new network has zeros in its head and its class token."""
    rng = np.random.default_rng(1)
    weights = {n: (rng.standard_normal(a.shape) * 0.2).astype(a.dtype) for n, a in ports.weights.read(net).items()}
    ports.weights.write(net, weights)
    return net


@pytest.mark.usefixtures("quick")
def test_it_is_the_same_in_every_port() -> None:
    report = parity.check_network(TINY, batch=2, steps=2, optimizer="adamw")
    assert report.ok, str(report)
    assert {row.port for row in report.models[0].rows} == {"nnx", "linen"}
    assert "2 images of 12x12, seed 0" in str(report)


def plant_epsilon(net: Any) -> None:
    net.encoder.layers["encoder_layer_1"].ln_2.epsilon = 1e-5


def plant_token(net: Any) -> None:
    net.class_token[...] = -net.class_token[...]


@pytest.mark.sample(1)
@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(
    ("plant", "place"),
    [
        (plant_epsilon, "encoder.layers.encoder_layer_1.ln_2"),
        (plant_token, "between conv_proj and encoder"),
    ],
    ids=["epsilon", "token"],
)
@pytest.mark.nightly
def test_a_planted_mistake_is_found(plant: Any, place: str) -> None:
    net = drawn(ports.create(TINY, "pytorch", dtype="float64"))
    with jax.enable_x64(True):
        port = ports.create(TINY, "nnx", seed=None, dtype="float64")
        ports.weights.write(port, ports.weights.read(net))
    plant(port)
    report = parity.check(net, port, steps=1)
    assert report.exit_code == 1
    assert place in str(report), str(report)


# ---- torchvision


@pytest.mark.parametrize("width", [16, 24])
def test_it_computes_what_torchvision_computes(width: int) -> None:
    """Outputs and the gradients of every parameter and of the images, in float64."""
    theirs = originals.torchvision().models.VisionTransformer(
        image_size=12, patch_size=4, num_layers=2, num_heads=4, hidden_dim=width, mlp_dim=24, num_classes=5
    )
    theirs = drawn(theirs.double())
    spec = families.get(TINY, width=width)
    ours = ports.create(spec, "pytorch", seed=None, dtype="float64")
    ours.load_state_dict(theirs.state_dict(), strict=True)
    found = [gradients(net) for net in (ours, theirs)]
    assert found[0].keys() == found[1].keys()
    for name, expected in found[1].items():
        assert np.linalg.norm(found[0][name] - expected) <= 1e-12 * np.linalg.norm(expected), name


def gradients(net: torch.nn.Module) -> dict[str, np.ndarray]:
    """The outputs, and what the mean square of them gives back."""
    x = torch.from_numpy(images()).requires_grad_()
    outputs = net.train()(x)
    outputs.square().mean().backward()
    found = {"output": outputs, "input": x.grad, **{name: p.grad for name, p in net.named_parameters()}}
    return {name: tensor.detach().numpy() for name, tensor in found.items() if tensor is not None}


@pytest.mark.parametrize("name", NAMED)
def test_torchvision_has_these_tensors(name: str) -> None:
    with torch.device("meta"):
        theirs = getattr(originals.torchvision().models, name)().state_dict()
    ours = [(n, tuple(s)) for layer in families.layers(families.get(name)) for n, s in layer.tensors.items()]
    assert ours == [(n, tuple(t.shape)) for n, t in theirs.items()]


# ---- conversion


@pytest.mark.parametrize("to", ["nnx", "linen"])
def test_checkpoints_are_recognised_and_converted(to: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another number of classes, and larger images: more positions."""
    monkeypatch.setitem(families.KNOWN, "tiny", TINY)
    spec = families.get(TINY, num_classes=3, input_size=20)
    net = drawn(ports.create(spec, "pytorch"))
    torch.save(net.state_dict(), tmp_path / "a.pth")
    assert main(["convert", str(tmp_path / "a.pth"), str(tmp_path / "b"), "--to", to]) == 0
    assert main(["convert", str(tmp_path / "b"), str(tmp_path / "c.safetensors")]) == 0
    back = ports.weights.load(tmp_path / "c.safetensors")
    assert set(back) == set(net.state_dict())
    for name, tensor in net.state_dict().items():
        assert back[name].tobytes() == tensor.numpy().tobytes(), name
    found = open_checkpoint(tmp_path / "b").found
    assert found is not None
    assert (found.network, found.dialect, found.spec) == ("tiny", to, spec)


@pytest.mark.parametrize("port", ports.PORTS)
def test_live_networks_give_every_bit_back(port: str) -> None:
    weights = ports.weights.read(drawn(ports.create(TINY, "pytorch")))
    net = ports.create(TINY, port, seed=None)
    variables = ports.weights.write(net, weights)
    back = ports.weights.read(net if variables is None else (net[0], variables))
    assert back.keys() == weights.keys()
    assert all(back[name].tobytes() == array.tobytes() for name, array in weights.items())


def test_a_variable_of_somebodys_own_module_still_needs_a_rule() -> None:
    class Own(nnx.Module):
        def __init__(self) -> None:
            self.spec = "a description of theirs"
            self.class_token = nnx.Param(np.zeros((2, 2)))

    with pytest.raises(UserError, match="no rule for layer type Own, which holds class_token"):
        ports.weights.read(Own())


# ---- what is refused


@pytest.mark.sample(3)
@pytest.mark.parametrize("port", ports.PORTS)
@pytest.mark.parametrize("size", [(12, 16), (13, 13), (3, 3)])
def test_images_of_another_size_are_refused(port: str, size: tuple[int, int]) -> None:
    net = ports.create(TINY, port)
    said = f"tiny: got images of {size[0]}x{size[1]}, expected 12x12; another size is an option"
    with pytest.raises(UserError, match=said):
        called(net, port, np.zeros((1, 3, *size), np.float32))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"width": 18}, "width: got 18 for 4 heads, expected a multiple"),
        ({"input_size": 13}, "input_size: got 13 pixels for patches of 4, expected a multiple"),
        ({"depth": 0}, "depth: got 0, expected a positive"),
    ],
)
def test_bad_options(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        families.get(TINY, **changes)


# ---- initial weights


@pytest.mark.sample(1)
@pytest.mark.parametrize("port", ports.PORTS)
def test_initial_weights_are_torchvisions(port: str) -> None:
    """Standard deviations within five standard errors of n draws."""
    w = 96
    spec = ViTSpec("wide", patch_size=8, width=w, heads=4, hidden=128, depth=1, num_classes=5, input_size=32)
    weights = ports.weights.read(ports.create(spec, port, seed=0))
    at = "encoder.layers.encoder_layer_0"
    expected = {
        "conv_proj.weight": (1 / (3 * 8 * 8)) ** 0.5,
        "encoder.pos_embedding": 0.02,
        f"{at}.self_attention.in_proj_weight": (2 / (w + 3 * w)) ** 0.5,
        f"{at}.mlp.0.weight": (2 / (w + 128)) ** 0.5,
        f"{at}.mlp.3.bias": 1e-6,
    }
    for name, deviation in expected.items():
        values = weights[name].astype(np.float64)
        assert values.std() == pytest.approx(deviation, rel=5 / (2 * values.size) ** 0.5), name
    zero = ("class_token", "conv_proj.bias", "heads.head.weight", "heads.head.bias")
    assert not any(weights[name].any() for name in (*zero, f"{at}.self_attention.in_proj_bias"))
