"""Segmentation networks: the same in every port, and the same as torchvision's and segmentation_models_pytorch's."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import originals
import pytest
import torch
import torch.nn.functional as F
from flax import nnx
from safetensors.numpy import load_file

import parity
import ports
from benchmarks.measure import expected as references
from benchmarks.measure import gate
from benchmarks.subjects import jax_steps, torch_steps
from benchmarks.subjects.settings import Setting
from parity.commands.cli import main
from parity.numerics.layouts import leaves
from parity.running import probes
from ports import UserError, families, losses, torch_losses
from ports.layers.flax import resize_bilinear
from ports.objective import UNLABELLED
from ports.segmentation.spec import SegmentationSpec
from ports.weights.checkpoints.checkpoint import open_checkpoint
from ports.weights.known import fold
from ports.weights.known.recognise import recognise

TINY: dict[str, Any] = {"width": 8, "hidden": 6, "rates": (1, 2), "num_classes": 4, "input_size": 32}
FCN = SegmentationSpec("tiny_fcn", "fcn", (1, 1, 1, 2), **TINY)
DEEPLAB = SegmentationSpec("tiny_deeplab", "deeplabv3", (1, 1, 1, 1), bottleneck=False, **TINY)
UNET = SegmentationSpec(
    "tiny_unet", "unet", (1, 1, 1, 1), bottleneck=False, auxiliary=False, decoder=(8, 6, 5, 4, 3), **TINY
)
SPECS = {"deeplabv3": DEEPLAB, "unet": UNET, "fcn": FCN}
DILATED = ("fcn_resnet50", "fcn_resnet101", "deeplabv3_resnet50", "deeplabv3_resnet101")


def images(size: tuple[int, int], batch: int = 3) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((batch, 3, *size))


def called(net: Any, port: str, x: np.ndarray) -> dict[str, np.ndarray]:
    """The outputs of a network in eval mode on NCHW images, in PyTorch's layout."""
    if port == "pytorch":
        with torch.no_grad():
            return {n: a.numpy() for n, a in leaves(net.eval()(torch.from_numpy(x)), "output")}
    x = x.transpose(0, 2, 3, 1)
    if port == "nnx":
        net.eval()
    outputs = nnx.jit(lambda net, x: net(x))(net, x) if port == "nnx" else net[0].apply(net[1], x)
    return {n: np.asarray(a).transpose(0, 3, 1, 2) for n, a in leaves(outputs, "output")}


def drawn(net: torch.nn.Module) -> torch.nn.Module:
    """Random numbers in every tensor; convolutions keep the size of what they take."""
    rng, weights = np.random.default_rng(1), ports.weights.read(net)
    for name, array in weights.items():
        if array.dtype.kind == "f":
            scale = (2 / np.prod(array.shape[1:])) ** 0.5 if array.ndim > 1 else 0.2
            values = rng.standard_normal(array.shape) * scale
            weights[name] = (np.abs(values) + 0.5 if name.endswith("running_var") else values).astype(array.dtype)
    ports.weights.write(net, weights)
    return net


def twin(net: torch.nn.Module, port: str, dtype: str) -> Any:
    """A Flax network with the weights of a PyTorch network."""
    other = ports.create(net.spec, port, seed=None, dtype=dtype)
    variables = ports.weights.write(other, ports.weights.read(net))
    return other if variables is None else (other[0], variables)


# ---- parity


@pytest.mark.nightly
@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("head", SPECS)
def test_it_is_the_same_in_every_port(head: str) -> None:
    report = parity.check_network(SPECS[head], batch=3, steps=1)
    assert report.ok, str(report)
    assert {row.port for row in report.models[0].rows} == {"nnx", "linen"}
    outputs = {row.tensor for row in report.models[0].rows if row.quantity == "output.eval"}
    assert outputs <= ({"output"} if head == "unet" else {"output.out", "output.aux"})


@pytest.mark.sample(1)
@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(("head", "port"), [("fcn", "linen"), ("fcn", "nnx"), ("deeplabv3", "nnx"), ("unet", "linen")])
def test_loss_and_gradients_are_pytorchs(head: str, port: str) -> None:
    """In train mode, with labels that do not count."""
    net, spec = drawn(ports.create(SPECS[head], "pytorch", dtype="float64")), SPECS[head]
    x, labels = images((32, 64)), families.targets_of(spec, 3, (32, 64)).draw(np.random.default_rng(5))
    expected = torch_losses.segmentation(net.train()(torch.from_numpy(x)), torch.from_numpy(labels))
    expected.backward()
    with jax.enable_x64(True):
        other = twin(net, port, "float64")
        loss, found = gradients_of(other, port, jnp.asarray(x.transpose(0, 2, 3, 1)), labels)
    assert loss == pytest.approx(expected.item(), rel=1e-12)
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None
        gradient = parameter.grad.numpy()
        assert np.linalg.norm(found[name] - gradient) <= 1e-10 * np.linalg.norm(gradient), name


def gradients_of(net: Any, port: str, x: jax.Array, labels: np.ndarray) -> tuple[float, dict[str, np.ndarray]]:
    """The loss in train mode, and the gradients of the parameters in the torch form."""
    if port == "nnx":
        graphdef, params, rest = nnx.split(net, nnx.Param, ...)
        call = lambda params: nnx.merge(graphdef, params, rest, copy=True)(x)  # noqa: E731
    else:
        params, rest = net[1]["params"], {"batch_stats": net[1]["batch_stats"]}
        call = lambda params: net[0].apply({"params": params, **rest}, x, train=True, mutable=["batch_stats"])[0]  # noqa: E731
    value, gradient = jax.jit(jax.value_and_grad(lambda params: losses.segmentation(call(params), labels)))(params)
    if port == "nnx":
        nnx.update(net, gradient)
        return float(value), ports.weights.read(net)
    return float(value), ports.weights.read((net[0], {"params": gradient, **rest}))


def plant_rate(net: Any) -> None:
    net.classifier.layers[0].convs[2].layers[0].kernel_dilation = 3
    net.classifier.layers[0].convs[2].layers[0].padding = 3


@pytest.mark.usefixtures("quick")
def test_the_outputs_are_the_same_and_a_planted_mistake_is_seen() -> None:
    """Odd and even sizes, and a wrong rate in the pyramid."""
    net = drawn(ports.create(DEEPLAB, "pytorch", dtype="float64"))
    x = images((33, 38))
    expected = called(net, "pytorch", x)
    assert {name: a.shape for name, a in expected.items()} == dict.fromkeys(
        ("output.out", "output.aux"), (3, 4, 33, 38)
    )
    with jax.enable_x64(True):
        port = twin(net, "nnx", "float64")
        assert far(called(port, "nnx", x), expected) < 1e-13
        plant_rate(port)
        assert far(called(port, "nnx", x), expected) > 1e-4


def far(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> float:
    """The largest relative distance of the outputs that were found."""
    return max(float(np.linalg.norm(a - expected[n]) / np.linalg.norm(expected[n])) for n, a in found.items())


@pytest.mark.nightly
@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(
    ("head", "plant", "place"),
    [
        ("deeplabv3", plant_rate, "classifier.0.convs.2.0"),
        (
            "unet",
            lambda net: setattr(net.decoder.blocks[1].conv2.layers[1], "epsilon", 1e-3),
            "decoder.blocks.1.conv2.1",
        ),
    ],
    ids=["rate", "epsilon"],
)
def test_the_check_finds_a_planted_mistake(head: str, plant: Callable[[Any], None], place: str) -> None:
    net = drawn(ports.create(SPECS[head], "pytorch", dtype="float64"))
    with jax.enable_x64(True):
        port = twin(net, "nnx", "float64")
    plant(port)
    report = parity.check(net, port, steps=1)
    assert report.exit_code == 1
    assert place in str(report), str(report)


# ---- bilinear resizing

SIZES = [
    ((5, 7), (33, 32)),
    ((28, 25), (224, 193)),
    ((1, 1), (9, 8)),
    ((4, 4), (4, 4)),
    ((7, 3), (5, 2)),
    ((2, 3), (3, 11)),
]


def resized(x: np.ndarray, size: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor, np.ndarray]:
    """What PyTorch gives, the input's gradient of a weighted sum, and its weights."""
    given = torch.from_numpy(x).requires_grad_()
    expected = F.interpolate(given, size=size, mode="bilinear", align_corners=False)
    weights = np.random.default_rng(3).standard_normal(expected.shape).astype(x.dtype)
    (expected * torch.from_numpy(weights)).sum().backward()
    assert given.grad is not None
    return expected.detach(), given.grad, weights


@pytest.mark.sample(2)
@pytest.mark.parametrize(("before", "after"), SIZES)
@pytest.mark.parametrize(("dtype", "bound"), [("float64", 2e-15), ("float32", 1e-6)])
def test_it_resizes_as_pytorch_does(before: tuple[int, int], after: tuple[int, int], dtype: str, bound: float) -> None:
    """The values, and the gradient."""
    x = images(before).astype(dtype)
    expected, gradient, weights = resized(x, after)
    with jax.enable_x64(dtype == "float64"):
        given = jnp.asarray(x.transpose(0, 2, 3, 1))
        found, back = jax.vjp(lambda x: resize_bilinear(x, after), given)
        (arrived,) = back(jnp.asarray(weights.transpose(0, 2, 3, 1)))
    for ours, theirs in ((found, expected), (arrived, gradient)):
        ours = np.asarray(ours).transpose(0, 3, 1, 2)
        assert ours.dtype == dtype
        assert np.linalg.norm(ours - theirs.numpy()) <= bound * np.linalg.norm(theirs.numpy())


def test_averaging_and_aligned_corners_are_seen() -> None:
    """What other ways to resize give is no rounding."""
    x = images((7, 3)).astype("float32")
    expected = resized(x, (5, 2))[0].numpy()
    found = np.asarray(jax.image.resize(x, (3, 3, 5, 2), "bilinear"))
    assert np.linalg.norm(found - expected) > 0.1 * np.linalg.norm(expected)
    expected = resized(x, (9, 8))[0].numpy()
    grid = np.meshgrid(np.linspace(0, 6, 9), np.linspace(0, 2, 8), indexing="ij")
    found = [jax.scipy.ndimage.map_coordinates(one, grid, order=1) for one in x.reshape(-1, 7, 3)]
    assert np.linalg.norm(np.reshape(found, expected.shape) - expected) > 0.1 * np.linalg.norm(expected)


# ---- the loss


@pytest.mark.parametrize("auxiliary", [False, True])
def test_the_loss_is_pytorchs(auxiliary: bool) -> None:
    """One label in ten does not count; the auxiliary head counts half."""
    rng = np.random.default_rng(0)
    names = ("out", "aux") if auxiliary else ("out",)
    logits = {name: rng.standard_normal((2, 4, 9, 5)).astype("float32") for name in names}
    labels = families.targets_of(FCN, 2, (9, 5)).draw(rng)
    assert 0 < (labels == UNLABELLED).mean() < 0.25
    expected = torch_losses.segmentation({n: torch.from_numpy(a) for n, a in logits.items()}, torch.from_numpy(labels))
    last = {name: jnp.asarray(a.transpose(0, 2, 3, 1)) for name, a in logits.items()}
    assert float(losses.segmentation(last, labels)) == pytest.approx(float(expected), rel=1e-6)
    other = np.where(labels == UNLABELLED, 0, labels)  # a port that counts every pixel
    assert float(losses.segmentation(last, other)) != pytest.approx(float(expected), rel=1e-4)
    alone = torch_losses.segmentation(torch.from_numpy(logits["out"]), torch.from_numpy(labels))
    assert float(losses.segmentation(last["out"], labels)) == pytest.approx(float(alone), rel=1e-6)


@pytest.mark.parametrize("wrong", [4, -1])
def test_labels_out_of_range_are_refused(wrong: int) -> None:
    """PyTorch raises, and so does the loss in JAX; in a compiled program it is NaN."""
    logits, labels = jnp.zeros((1, 2, 2, 4)), np.array([[[0, wrong], [UNLABELLED, 3]]])
    with pytest.raises(UserError, match=f"labels: got {wrong}, expected 0 to 3, or 255, which does not count"):
        losses.segmentation(logits, labels)
    assert np.isnan(jax.jit(losses.segmentation)(logits, labels))
    with pytest.raises(IndexError, match="out of bounds"):
        torch_losses.segmentation(torch.zeros(1, 4, 2, 2), torch.from_numpy(labels))
    assert np.isfinite(jax.jit(losses.segmentation)(logits, np.where(labels == wrong, 0, labels)))


# ---- the originals


def original(name: str) -> torch.nn.Module:
    """The original network without dropout, or skip the test."""
    torchvision = originals.torchvision()
    if name.startswith("unet"):
        return originals.imported("segmentation_models_pytorch").Unet("resnet34", encoder_weights=None, classes=21)
    net = getattr(torchvision.models.segmentation, name)(weights=None, weights_backbone=None, aux_loss=True)
    for module in net.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return net


@pytest.mark.parametrize("name", [*DILATED, "unet_resnet34"])
def test_the_originals_have_these_tensors(name: str) -> None:
    with torch.device("meta"):
        theirs = original(name).state_dict()
    ours = [(n, tuple(s)) for layer in families.layers(families.get(name)) for n, s in layer.tensors.items()]
    assert ours == [(n, tuple(t.shape)) for n, t in theirs.items()]


@pytest.mark.sample(1)
@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("name", ["fcn_resnet50", "deeplabv3_resnet50", "unet_resnet34"])
def test_it_computes_what_the_originals_compute(name: str, train: bool) -> None:
    """Outputs and the gradients of every parameter and of the images, in float64."""
    theirs = drawn(original(name).double())
    ours = ports.create(name, "pytorch", seed=None, dtype="float64")
    ours.load_state_dict(theirs.state_dict(), strict=True)
    size = (32, 64) if name.startswith("unet") else (33, 40)
    found = [gradients(net.train(train), torch.from_numpy(images(size))) for net in (ours, theirs)]
    assert found[0].keys() == found[1].keys()
    for key, expected in found[1].items():
        assert torch.linalg.norm(found[0][key] - expected) <= 1e-12 * torch.linalg.norm(expected), key


def gradients(net: torch.nn.Module, x: torch.Tensor) -> dict[str, torch.Tensor]:
    """The outputs, and what the mean squares of them give back."""
    x.requires_grad_()
    outputs = dict(leaves(net(x), "output"))
    torch.stack([value.square().mean() for value in outputs.values()]).sum().backward()
    assert x.grad is not None
    found = {**outputs, "input": x.grad, **{n: p.grad for n, p in net.named_parameters() if p.grad is not None}}
    return {name: tensor.detach() for name, tensor in found.items()}


# ---- conversion


@pytest.mark.sample(2)
@pytest.mark.parametrize(
    ("head", "to"),
    [
        ("unet", "nnx"),
        ("fcn", "nnx"),
        ("fcn", "linen"),
        ("deeplabv3", "linen"),
        ("unet", "linen"),
        ("deeplabv3", "nnx"),
    ],
)
def test_checkpoints_are_recognised_and_converted(
    head: str, to: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another number of classes, and images of one channel."""
    monkeypatch.setitem(families.KNOWN, SPECS[head].name, SPECS[head])
    spec = families.get(SPECS[head], num_classes=3, in_channels=1)
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
    assert (found.network, found.dialect, found.spec) == (spec.name, to, spec)


@pytest.mark.sample(1)
@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(("head", "to"), [("deeplabv3", "nnx"), ("unet", "linen"), ("fcn", "nnx")])
def test_batch_norm_folds(head: str, to: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`--check` computes both; the folded network in Flax takes the file."""
    monkeypatch.setitem(families.KNOWN, SPECS[head].name, SPECS[head])
    net = drawn(ports.create(SPECS[head], "pytorch"))
    torch.save(net.state_dict(), tmp_path / "a.pth")
    target = str(tmp_path / "b.safetensors")
    assert main(["convert", str(tmp_path / "a.pth"), target, "--to", "torch", "--fold-batchnorm", "--check"]) == 0
    spec = families.get(SPECS[head], folded=True)
    assert families.layers(spec) == fold.folded(families.layers(SPECS[head]))
    folded = ports.create(spec, to, seed=None)
    variables = ports.weights.write(folded, load_file(target))
    x = images((32, 64)).astype("float32")
    found = called(folded if variables is None else (folded[0], variables), to, x)
    assert far(found, called(net, "pytorch", x)) < 1e-4


@pytest.mark.parametrize("auxiliary", [False, True])
def test_files_of_the_named_networks_are_recognised(auxiliary: bool) -> None:
    """A file of torchvision has the auxiliary head where it was built."""
    spec = families.get("fcn_resnet50", auxiliary=auxiliary, num_classes=2)
    found = recognise({n: tuple(s) for layer in families.layers(spec) for n, s in layer.tensors.items()})
    assert found.network == ("fcn_resnet50" if auxiliary else "fcn_resnet50_no_aux")
    assert (found.spec.num_classes, found.spec.auxiliary) == (2, auxiliary)


# ---- what is refused


@pytest.mark.parametrize("port", ports.PORTS)
@pytest.mark.parametrize(("size", "nearest"), [((32, 48), "32x64"), ((33, 32), "64x32"), ((3, 3), "32x32")])
def test_images_that_halving_does_not_divide_are_refused(port: str, size: tuple[int, int], nearest: str) -> None:
    net = unet(port)
    said = f"tiny_unet: got images of {size[0]}x{size[1]}, expected multiples of 32 pixels; pad them to {nearest}"
    with pytest.raises(UserError, match=said):
        called(net, port, images(size).astype("float32"))


def unet(port: str, nets: dict[str, Any] = {}) -> Any:  # noqa: B006 - made once
    if port not in nets:
        nets[port] = ports.create(UNET, port, seed=None)
    return nets[port]


@pytest.mark.nightly
@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("size", [(3, 2), (1, 1), (7, 9)])
def test_images_smaller_than_the_stride_give_what_pytorch_gives(size: tuple[int, int]) -> None:
    """The original takes them: the coarsest features are one pixel."""
    net = drawn(ports.create(FCN, "pytorch", dtype="float64"))
    x = images(size)
    expected = called(net, "pytorch", x)
    with jax.enable_x64(True):
        assert far(called(twin(net, "nnx", "float64"), "nnx", x), expected) < 1e-13


@pytest.mark.parametrize(
    ("head", "changes", "said"),
    [
        ("fcn", {"head": "segnet"}, "head: got 'segnet', expected one of fcn, deeplabv3, unet"),
        ("unet", {"auxiliary": True}, "auxiliary: got True, expected False: a U-Net has one head"),
        ("unet", {"decoder": (8, 4)}, "decoder: got 2 numbers, expected 5"),
        ("fcn", {"depths": (1, 1, 1, 0)}, r"depths\[3\]: got 0, expected a positive"),
        ("fcn", {"num_classes": 0}, "num_classes: got 0, expected a positive"),
    ],
    ids=["head", "auxiliary", "decoder", "depths", "classes"],
)
@pytest.mark.usefixtures("no_type_checks")
def test_bad_options(head: str, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        families.get(SPECS[head], **changes)


def test_the_check_takes_a_size_that_the_network_takes() -> None:
    assert probes.default_size(families.get("unet_resnet34")) == (224, 192)
    assert probes.default_size(UNET) == (32, 32)
    assert probes.default_size(families.get("fcn_resnet50")) == (224, 193)


def test_a_large_network_is_checked_with_two_blocks_in_each_stage() -> None:
    small = families.reduced(families.get("deeplabv3_resnet101"))
    assert small == families.get("deeplabv3_resnet101", depths=(2, 2, 2, 2))


# ---- initial weights


@pytest.mark.sample(1)
@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("port", ports.PORTS)
def test_initial_weights_are_the_originals(port: str) -> None:
    """Standard deviations within five standard errors of n draws."""
    wide: dict[str, Any] = {"width": 16, "decoder": (64, 32, 16, 16, 16)}
    fcn = ports.weights.read(ports.create(FCN, port, seed=0, **wide))
    decoder = ports.weights.read(ports.create(UNET, port, seed=0, **wide))
    (first, _), head = families.get(UNET, **wide).decoder_blocks[0], families.get(UNET, **wide).segmentation_head
    expected = [
        (fcn["backbone.conv1.weight"], (2 / (49 * 16)) ** 0.5),
        (fcn["classifier.0.weight"], (1 / 3 / (9 * 512)) ** 0.5),  # of the last stage's channels
        (fcn["aux_classifier.4.weight"], (1 / 3 / 64) ** 0.5),
        (decoder["decoder.blocks.0.conv1.0.weight"], (2 / first.fan_in) ** 0.5),
        (decoder["segmentation_head.0.weight"], (2 / (9 * (head.in_channels + head.out_channels))) ** 0.5),
    ]
    for values, deviation in expected:
        values = values.astype(np.float64)
        assert values.std() == pytest.approx(deviation, rel=5 / (2 * values.size) ** 0.5)
    assert fcn["classifier.4.bias"].any()
    assert not decoder["segmentation_head.0.bias"].any()


# ---- benchmarks


def test_every_output_is_timed_in_pytorchs_layout() -> None:
    """Of a dict each, by its name; a loss and logits of whole images are one number and one array."""
    x = np.arange(2 * 3 * 4 * 5.0).reshape(2, 3, 4, 5)
    outputs = {"out": torch.from_numpy(x), "aux": torch.from_numpy(x[:, :1])}
    found = torch_steps.numbers(outputs, "logits")
    assert {name: a.shape for name, a in found.items()} == {"logits.out": (2, 3, 4, 5), "logits.aux": (2, 1, 4, 5)}
    assert list(torch_steps.numbers(outputs["out"].mean(), "loss")) == ["loss"]
    assert np.array_equal(jax_steps.in_reference(x.transpose(0, 2, 3, 1)), x)
    assert jax_steps.in_reference(x[0]).shape == (3, 4, 5)


@pytest.mark.nightly
@pytest.mark.parametrize("mode", ["inference", "training"])
@pytest.mark.parametrize("head", ["unet", "fcn"])
def test_what_is_timed_is_proved_equal(head: str, mode: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = SPECS[head]
    monkeypatch.setitem(families.NETWORKS, spec.name, spec)
    setting = Setting(spec.name, mode, 2, "float32", (32, 64))
    references.prepare(setting, {}, tmp_path)
    case = references.read_case(setting, {}, tmp_path)
    for build in (torch_steps.build, jax_steps.build_nnx, jax_steps.build_linen):
        run = build(case)
        result = run.step(0)
        run.wait(result)
        found = dict(run.numbers(result))
        if mode == "training":
            found |= gate.parameter_change(run.weights(), case.weights)
        else:
            assert found.keys() == ({"logits"} if head == "unet" else {"logits.out", "logits.aux"})
        verdict = gate.judge(found, case.expected, case.bounds)
        assert verdict.ok, f"{build.__name__}: {verdict}"
        wrong = gate.judge({name: np.asarray(-a) for name, a in found.items()}, case.expected, case.bounds)
        assert not wrong.ok
