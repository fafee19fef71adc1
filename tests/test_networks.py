"""The three ports as networks: every option, features, BatchNorm, initial weights, types, compilation, training.

That the ports compute the same to the last bits, gradients and updates too, is proved in float64 by the check
(test_check.py, test_faithful.py). Here each part is held against PyTorch or its definition, one at a time.
"""

from __future__ import annotations

import functools
import math
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from flax import nnx
from networks import (
    BASE,
    NETWORKS,
    SEVEN,
    create,
    described,
    distance,
    forward,
    images,
    nchw,
    quick_compilation,
    randomised,
    twin,
)

import ports
from ports import UserError
from ports.building import pytorch as pytorch_building
from ports.families import get
from ports.layers import linen as linen_layers
from ports.layers import nnx as nnx_layers
from ports.resnet import linen as linen_port
from ports.resnet import nnx as nnx_port
from ports.resnet import pytorch as torch_port
from ports.resnet.spec import BASIC, BOTTLENECK, PREACT_BASIC, Block, BlockLayout, ResNetSpec, Stage, Stem
from ports.tutorial.spec import TutorialSpec

PORTS = list(ports.PORTS)
FLAX = ["nnx", "linen"]
DTYPES = ["float32", "float64", "bfloat16"]

# One rounding is 6e-8 in float32. Twelve layers of a few roundings each, which partly cancel, were measured at 0.5e-7
# to 4e-7 over all options; the smallest mistake known to us, another epsilon in BatchNorm, stands at 1e-5.
FLOAT32 = 2e-6


def residual_block(port: str, *arguments: Any, block: Block = BASIC) -> Any:
    """One block of a port, as `networks.forward` takes it."""
    layout = BlockLayout("block", block, *arguments)
    if port == "pytorch":
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return torch_port.block_class(block)(layout)
    if port == "nnx":
        with quick_compilation():
            return nnx_port.block_class(block)(layout, rngs=nnx.Rngs(0))
    module = linen_port.block_class(block)(layout)
    with quick_compilation():
        return module, jax.jit(module.init)(jax.random.key(0), jnp.zeros((1, 4, 4, arguments[0])))


# ---- blocks


@pytest.mark.sample(2)
@pytest.mark.parametrize(
    ("arguments", "shape"),
    [
        ((64, 64, 1), (64, 32, 32)),
        ((64, 128, 1), (128, 32, 32)),
        ((64, 64, 2), (64, 16, 16)),
        ((64, 128, 2), (128, 16, 16)),
    ],
    ids=lambda value: "x".join(map(str, value)),
)
@pytest.mark.parametrize("port", PORTS)
def test_shape_of_a_residual_block(port: str, arguments: tuple[int, ...], shape: tuple[int, ...]) -> None:
    x = np.random.default_rng(0).standard_normal((1, 64, 32, 32)).astype(np.float32)
    ([out], _) = forward(residual_block(port, *arguments), x)
    assert out.shape == (1, *shape)


BRANCHLESS = {
    "identity": (BASIC, (8, 8, 1)),
    "projection": (BASIC, (8, 12, 2)),
    "bottleneck": (BOTTLENECK, (8, 16, 2)),
    "zero_pad": (replace(BASIC, shortcut="zero_pad"), (8, 12, 2)),
    "preact_identity": (PREACT_BASIC, (8, 8, 1)),
    "preact_projection": (PREACT_BASIC, (8, 12, 2)),
}


@pytest.mark.sample(2)
@pytest.mark.parametrize("case", BRANCHLESS)
@pytest.mark.parametrize("port", PORTS)
def test_zero_init_last_leaves_the_shortcut_alone(port: str, case: str) -> None:
    """A fresh block computes ReLU(shortcut), a pre-activation block the shortcut."""
    block, arguments = BRANCHLESS[case]
    net = residual_block(port, *arguments, block=replace(block, zero_init_last=True))
    x = np.random.default_rng(0).standard_normal((2, 8, 7, 6)).astype(np.float32)
    expected = fresh_shortcut(block, *arguments[1:], ports.weights.read(net), torch.from_numpy(x))
    if not block.preactivation:
        expected = expected.relu()
    ([out], _) = forward(net, x)
    assert distance(out, expected.numpy()) <= FLOAT32


def fresh_shortcut(block: Block, channels: int, stride: int, weights: Any, x: torch.Tensor) -> torch.Tensor:
    """By the papers' definitions; a BatchNorm with new statistics divides by √(1 + ε)."""
    if "downsample.0.weight" in weights:
        x = (x / math.sqrt(1 + 1e-5)).relu() if block.preactivation else x
        y = torch.nn.functional.conv2d(x, torch.from_numpy(weights["downsample.0.weight"]), stride=stride)
        return y / math.sqrt(1 + 1e-5) if block.shortcut_norm else y
    y = torch.zeros(len(x), channels, *x[0, 0, ::stride, ::stride].shape)
    first = (channels - x.shape[1]) // 2
    y[:, first : first + x.shape[1]] = x[:, :, ::stride, ::stride]
    return y


@pytest.mark.parametrize("block", [BASIC, BOTTLENECK, PREACT_BASIC], ids=["basic", "bottleneck", "preact"])
def test_zero_init_last_can_be_unlearned(block: Block) -> None:
    """The zeros must get a gradient, or the branch stays dead for ever."""
    net = residual_block("pytorch", 8, 8, 1, block=replace(block, zero_init_last=True))
    x = torch.from_numpy(np.random.default_rng(0).standard_normal((2, 8, 7, 6)).astype(np.float32))
    net(x).square().sum().backward()
    assert max(p.grad.abs().max().item() for p in net.parameters()) > 0


# ---- every option


@pytest.fixture(scope="module", params=NETWORKS)
def reference(request: pytest.FixtureRequest) -> tuple[Any, np.ndarray, list[np.ndarray]]:
    """A PyTorch network, images, and its outputs in eval mode."""
    spec = NETWORKS[request.param]
    net, x = randomised(spec), images(spec)
    return net, x, forward(net, x)[0]


@pytest.mark.sample(4)
@pytest.mark.parametrize("port", FLAX)
def test_option_gives_the_outputs_of_pytorch(reference: Any, port: str) -> None:
    net, x, expected = reference
    found, _ = forward(twin(net, port), x)
    assert max(distance(a, b) for a, b in zip(found, expected, strict=True)) <= FLOAT32


def test_option_can_be_seen(reference: Any) -> None:
    """The test above would find nothing in outputs that are constant, not finite, or another network's."""
    net, _, expected = reference
    assert [np.isfinite(values).all() and values.std() > 0.01 for values in expected] == [True] * len(expected)
    assert sum(spec == net.spec for spec in NETWORKS.values()) == 1


# ---- features and dilation


@pytest.mark.sample(1)
@pytest.mark.parametrize("output_stride", [32, 16, 8])
@pytest.mark.parametrize("port", PORTS)
def test_features(port: str, output_stride: int) -> None:
    """Four maps of resnet50, by their shapes alone: nothing is computed."""
    spec = get("resnet50", features_only=True, output_stride=output_stride)
    if port == "pytorch":
        maps = pytorch_building.skeleton(spec)(torch.zeros(1, 3, 96, 65, device="meta"))
        shapes = [tuple(m.shape) for m in maps]
    else:
        x = jax.ShapeDtypeStruct((1, 96, 65, 3), jnp.float32)
        if port == "nnx":
            maps = nnx.eval_shape(lambda x: nnx_port.ResNet(spec, rngs=nnx.Rngs(0))(x), x)
        else:
            key = jax.eval_shape(jax.random.key, 0)
            maps, _ = jax.eval_shape(linen_port.ResNet(spec).init_with_output, key, x)
        shapes = [(m.shape[0], m.shape[3], *m.shape[1:3]) for m in maps]
    strides = [min(stride, output_stride) for stride in (4, 8, 16, 32)]
    channels = (256, 512, 1024, 2048)
    assert shapes == [(1, c, 96 // s, math.ceil(65 / s)) for c, s in zip(channels, strides, strict=True)]


FOUR_STAGES = (Stage(8, 1), Stage(10, 2, stride=2), Stage(12, 2, stride=2), Stage(16, 2, stride=2))
FOUR_NARROW = (Stage(4, 1), Stage(4, 2, stride=2), Stage(6, 2, stride=2), Stage(8, 1, stride=2))

ATROUS = {
    "basic": described(stages=FOUR_STAGES),
    "basic-stride_at_1": described(replace(BASIC, stride_at=1), stages=FOUR_STAGES),
    "bottleneck": described(BOTTLENECK, stages=FOUR_NARROW),
    "bottleneck-stride_at_0": described(replace(BOTTLENECK, stride_at=0), stages=FOUR_NARROW),
    "preact": described(PREACT_BASIC, stages=FOUR_STAGES),
    "zero_pad": described(replace(BASIC, shortcut="zero_pad"), stages=FOUR_STAGES),
    "plain": described(replace(BASIC, residual=False), stages=FOUR_STAGES),
    "projection_always": described(replace(BASIC, shortcut="projection_always"), stages=FOUR_STAGES),
    "pooled_projection": described(replace(BASIC, shortcut="pooled_projection"), stages=FOUR_STAGES),
    "same_channels": described(stages=tuple(replace(stage, channels=8) for stage in FOUR_STAGES)),
    "stride_3": described(stages=(Stage(8, 1), Stage(10, 1, stride=2), Stage(12, 1, 2), Stage(16, 2, stride=3))),
}
ATROUS = {name: replace(spec, stem=SEVEN, features_only=True) for name, spec in ATROUS.items()}


def atrous_distance(spec: ResNetSpec, output_stride: int, port: str) -> float:
    """How far the dilated maps stand from the strided ones, at the strided ones' places, in float64."""
    x = images(size=(97, 66))
    net = randomised(spec, dtype="float64")
    strided, _ = forward(net, x, dtype="float64")
    other = twin(net, port, replace(spec, output_stride=output_stride), dtype="float64")
    dilated, _ = forward(other, x, dtype="float64")
    steps = [max(1, stage.stride // output_stride) for stage in spec.layout()]
    return max(distance(d[:, :, ::n, ::n], s) for d, s, n in zip(dilated, strided, steps, strict=True))


# In float64, where both networks do the same additions, perhaps in another order: one rounding is 1e-16.
@pytest.mark.parametrize("replaced", [1, 2], ids=["one_stride", "two_strides"])
@pytest.mark.parametrize("case", ATROUS)
def test_dilated_maps_hold_the_strided_ones(case: str, replaced: int) -> None:
    """Chen et al. 2017, section 3.1: the output at every second or fourth place is that of the strided network."""
    spec = ATROUS[case]
    assert atrous_distance(spec, spec.output_strides[replaced], "pytorch") <= 1e-13


@pytest.mark.sample(1)
@pytest.mark.parametrize("port", FLAX)
def test_dilated_maps_hold_the_strided_ones_in_flax(port: str) -> None:
    with jax.enable_x64(True):
        assert atrous_distance(ATROUS["bottleneck"], 8, port) <= 1e-13


# ---- BatchNorm

STEPS = 4


def batches() -> list[np.ndarray]:
    """Five batches, NCHW in float64; every channel and batch has a mean and a scale of its own."""
    rng = np.random.default_rng(0)
    scale, shift = rng.uniform(0.1, 5, (2, STEPS + 1, 1, 6, 1, 1))
    return list(scale * rng.standard_normal((STEPS + 1, 3, 6, 5, 2)) - shift)


@functools.cache
def batch_norm_history(port: str) -> dict[str, np.ndarray]:
    """Each quantity over some train steps in float64, then the output of the last batch in eval mode."""
    history: dict[str, list[Any]] = {"output": [], "running_mean": [], "running_var": [], "num_batches_tracked": []}
    rng = np.random.default_rng(1)
    weight, bias = rng.uniform(0.5, 2, 6), rng.normal(size=6)
    *train, last = batches()
    if port == "pytorch":
        norm = torch.nn.BatchNorm2d(6, dtype=torch.float64)
        norm.load_state_dict({"weight": torch.from_numpy(weight), "bias": torch.from_numpy(bias)}, strict=False)
        with torch.no_grad():
            for x in train:
                now = {"output": norm(torch.from_numpy(x)).numpy(), **ports.weights.read(norm)}
                for name, values in history.items():
                    values.append(now[name])
            found = {name: np.array(values) for name, values in history.items()}
            return {**found, "eval_output": norm.eval()(torch.from_numpy(last)).numpy()}
    with jax.enable_x64(True):
        module = linen_layers.BatchNorm(param_dtype=jnp.float64)
        norm = nnx_layers.BatchNorm(6, rngs=nnx.Rngs(0), param_dtype=jnp.float64)
        norm.scale, norm.bias = nnx.Param(jnp.array(weight)), nnx.Param(jnp.array(bias))
        params = {"scale": jnp.array(weight), "bias": jnp.array(bias)}
        stats = module.init(jax.random.key(0), jnp.zeros((2, 6)), use_running_average=False)["batch_stats"]

        def call(x: np.ndarray, evaluate: bool) -> Any:
            nonlocal stats
            nhwc = jnp.array(x.transpose(0, 2, 3, 1))
            if port == "nnx":
                y = norm(nhwc, use_running_average=evaluate)
                return nchw(y), norm.mean[...], norm.var[...], norm.num_batches_tracked[...]
            variables = {"params": params, "batch_stats": stats}
            y, changed = module.apply(variables, nhwc, use_running_average=evaluate, mutable=["batch_stats"])
            stats = changed["batch_stats"]
            return nchw(y), *(stats[name] for name in ("mean", "var", "num_batches_tracked"))

        for x in train:
            for quantity, value in zip(history.values(), call(x, False), strict=True):
                quantity.append(np.array(value))
        found = {name: np.array(values) for name, values in history.items()}
        return {**found, "eval_output": call(last, True)[0]}


@pytest.mark.parametrize("quantity", ["output", "running_mean", "running_var", "num_batches_tracked", "eval_output"])
@pytest.mark.parametrize("port", FLAX)
def test_batch_norm_is_pytorchs(port: str, quantity: str) -> None:
    found, expected = batch_norm_history(port)[quantity], batch_norm_history("pytorch")[quantity]
    # float64: means over 30 values and a few roundings after them, 1e-16 each.
    assert distance(found, expected) <= 1e-14


@pytest.mark.parametrize("port", FLAX)
def test_running_variance_is_the_unbiased_one(port: str) -> None:
    """By its definition, so that it holds whatever PyTorch does: 9/10 of the old and 1/10 of ddof=1."""
    expected = 0.9 + 0.1 * batches()[0].var(axis=(0, 2, 3), ddof=1)
    assert distance(batch_norm_history(port)["running_var"][0], expected) <= 1e-14


def normalise(port: str, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A fresh float32 BatchNorm in train mode on NCHW values: its output and its running variance."""
    channels = x.shape[1]
    if port == "pytorch":
        norm = torch.nn.BatchNorm2d(channels)
        return norm(torch.from_numpy(x)).detach().numpy(), ports.weights.read(norm)["running_var"]
    nhwc = jnp.array(x.transpose(0, 2, 3, 1))
    if port == "nnx":
        norm = nnx_layers.BatchNorm(channels, rngs=nnx.Rngs(0))
        return nchw(norm(nhwc)), np.array(norm.var[...])
    module = linen_layers.BatchNorm()
    variables = module.init(jax.random.key(0), nhwc, use_running_average=True)
    y, changed = module.apply(variables, nhwc, use_running_average=False, mutable=["batch_stats"])
    return nchw(y), np.array(changed["batch_stats"]["var"])


@pytest.mark.parametrize("port", PORTS)
def test_large_mean_does_not_drown_the_variance(port: str) -> None:
    """Mean 1000, deviation 1, in float32: E[x²] − E[x]² is off by some 1e-2, or negative."""
    x = (1000 + np.random.default_rng(0).standard_normal((4, 3, 9, 8))).astype(np.float32)
    y, running_var = normalise(port, x)
    exact = x.astype(np.float64)
    deviations = exact - exact.mean(axis=(0, 2, 3), keepdims=True)
    variance = exact.var(axis=(0, 2, 3), ddof=1)
    # The running variance is 1 in float32, so its tenth part that is new has lost one digit: 10 roundings.
    assert distance((running_var.astype(np.float64) - 0.9) * 10, variance) <= 10 * FLOAT32
    # The mean, 1000, has roundings of 6e-5 in units of the deviation.
    assert distance(y, deviations / exact.std(axis=(0, 2, 3), keepdims=True)) <= 5e-4


@pytest.mark.parametrize("port", PORTS)
def test_one_value_a_channel_in_train_mode_is_refused(port: str) -> None:
    x = np.ones((1, 3, 1, 1), np.float32)
    with pytest.raises(ValueError, match=r"[Ee]xpected (two or )?more"):
        forward(ports.create(BASE, port, seed=None), x, train=True)


@pytest.mark.parametrize("port", PORTS)
def test_one_value_a_channel_in_eval_mode_is_allowed(port: str) -> None:
    ([out], _) = forward(ports.create(BASE, port, seed=None), np.ones((1, 3, 1, 1), np.float32))
    assert out.shape == (1, 5)


# ---- initial weights

WIDE = described(
    Block(bottleneck=True, expansion=2, stride_at=1, groups=4, base_width=32),
    stem=Stem(convs=((32, 3, 1),)),
    stages=(Stage(32, 1), Stage(64, 1, stride=2)),
    num_classes=50,
)
BIASED = TutorialSpec("biased", "TutorialNet", (32, 48, 64), num_classes=50)


@functools.cache
def fresh(port: str, spec: Any) -> dict[str, np.ndarray]:
    return ports.weights.read(create(spec, port, seed=0))


# layer2.0.conv2 is grouped
KERNELS = [
    *((WIDE, name) for name in ("conv1", "layer1.0.conv1", "layer2.0.conv2", "layer2.0.downsample.0", "fc")),
    *((BIASED, name) for name in ("conv1", "res4.conv1", "fc")),
]


@pytest.mark.sample(2)
# Bounds of the next three tests are five standard errors of the statistic over n draws (the chance of a false alarm is
# below 1e-6), and the seeds are fixed.
@pytest.mark.parametrize(("spec", "layer"), KERNELS, ids=lambda value: getattr(value, "name", value))
@pytest.mark.parametrize("port", PORTS)
def test_initial_kernels(port: str, spec: Any, layer: str) -> None:
    """Kaiming normal with fan out, or uniform in ±1/√fan_in; fan out counts all groups, as in PyTorch."""
    kernel = fresh(port, spec)[f"{layer}.weight"].astype(np.float64)
    n, fan_in, fan_out = kernel.size, kernel[0].size, kernel[:, 0].size
    normal = spec is WIDE and layer != "fc"
    deviation, kurtosis = (math.sqrt(2 / fan_out), 3) if normal else (1 / math.sqrt(3 * fan_in), 1.8)
    assert abs(kernel.mean()) <= 5 * deviation / math.sqrt(n)
    assert kernel.std() == pytest.approx(deviation, rel=5 / math.sqrt(2 * n))
    # A normal distribution that is cut off at two deviations has 2.1 to 2.4.
    assert (kernel**4).mean() / (kernel**2).mean() ** 2 == pytest.approx(kurtosis, abs=5 * math.sqrt(24 / n))
    assert normal or np.abs(kernel).max() <= 1 / math.sqrt(fan_in)


BIASES = [(BIASED, "conv1", 3 * 9), (BIASED, "res4.conv1", 48 * 9), (BIASED, "fc", 64), (WIDE, "fc", 128)]


@pytest.mark.sample(4)
@pytest.mark.parametrize(("spec", "layer", "fan_in"), BIASES, ids=lambda value: getattr(value, "name", str(value)))
@pytest.mark.parametrize("port", PORTS)
def test_initial_biases(port: str, spec: Any, layer: str, fan_in: int) -> None:
    """Uniform in ±1/√fan_in: torchvision leaves biases at PyTorch's default, too."""
    bias = fresh(port, spec)[f"{layer}.bias"].astype(np.float64)
    bound = 1 / math.sqrt(fan_in)
    assert np.abs(bias).max() <= bound
    assert abs(bias.mean()) <= 5 * bound / math.sqrt(3 * bias.size)
    # The deviation of a deviation is √(κ − 1) / 2 = 0.45 in relative terms for one draw.
    assert bias.std() == pytest.approx(bound / math.sqrt(3), rel=5 * 0.45 / math.sqrt(bias.size))


@pytest.mark.parametrize(
    ("part", "value"),
    [("weight", 1), ("bias", 0), ("running_mean", 0), ("running_var", 1), ("num_batches_tracked", 0)],
)
@pytest.mark.parametrize("port", PORTS)
def test_initial_norms(port: str, part: str, value: float) -> None:
    weights = fresh(port, WIDE)
    norms = [name.removesuffix("running_mean") for name in weights if name.endswith("running_mean")]
    assert {float(v) for norm in norms for v in np.unique(weights[norm + part])} == {value}


@pytest.mark.sample(2)
@pytest.mark.parametrize("port", PORTS)
def test_zero_init_last_starts_the_last_norms_of_blocks_at_zero(port: str) -> None:
    weights = ports.weights.read(create(BASE, port, seed=0, zero_init_last=True))
    zero = [n for n, w in weights.items() if n.endswith("weight") and not w.any()]
    assert zero == ["layer1.0.bn2.weight", "layer2.0.bn2.weight", "layer2.1.bn2.weight"]


def draw(port: str, seed: int) -> dict[str, bytes]:
    """The bytes of every weight of a new network."""
    return {n: w.tobytes() for n, w in ports.weights.read(create(BASE, port, seed=seed)).items()}


drawn = functools.cache(draw)


@pytest.mark.parametrize("port", PORTS)
def test_a_seed_gives_the_same_weights_again(port: str) -> None:
    assert draw(port, 0) == drawn(port, 0)


def test_without_a_seed_it_is_the_same_network_with_zeros() -> None:
    net, zeros = (create(BASE, "nnx", seed=seed) for seed in (0, None))
    kinds, others = ([(path, type(node)) for path, node in nnx.iter_graph(one)] for one in (net, zeros))
    assert kinds == others
    assert not any(np.any(a) for a in ports.weights.read(zeros).values())


@pytest.mark.parametrize("port", PORTS)
def test_another_seed_gives_other_weights(port: str) -> None:
    same = [n for n, w in drawn(port, 1).items() if w == drawn(port, 0)[n]]
    assert not [n for n in same if "conv" in n or "fc" in n or "downsample.0" in n]


@pytest.mark.parametrize("port", PORTS)
def test_layers_of_one_shape_differ(port: str) -> None:
    assert drawn(port, 0)["layer1.0.conv1.weight"] != drawn(port, 0)["layer1.0.conv2.weight"]


@pytest.mark.parametrize("port", PORTS)
def test_no_seed_gives_zeros(port: str) -> None:
    weights = ports.weights.read(ports.create(BASE, port, seed=None))
    assert not [n for n, w in weights.items() if w.any()]


@pytest.mark.parametrize("seed", [0, None])
def test_torchs_global_generator_is_left_alone(seed: int | None) -> None:
    before = torch.get_rng_state()
    ports.create(BASE, "pytorch", seed=seed)
    assert torch.equal(torch.get_rng_state(), before)


def test_torchs_generators_of_other_devices_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """`torch.manual_seed` seeds every GPU too, which forking the CPU's generator does not undo."""
    seeded: list[int] = []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeded.append)
    ports.create(BASE, "pytorch", seed=3)
    assert not seeded


# ---- types


@functools.cache
def train_step_in(port: str, dtype: str) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """The logits of one step in train mode, and all weights and statistics after it."""
    reference = randomised(BASE, dtype)
    with jax.enable_x64(dtype == "float64"):
        net = reference if port == "pytorch" else twin(reference, port, dtype=dtype)
        ([out], net) = forward(net, images(batch=8), train=True, dtype=dtype)
        return out, ports.weights.read(net)


@pytest.mark.sample(2)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("port", PORTS)
def test_output_has_the_networks_type(port: str, dtype: str) -> None:
    assert train_step_in(port, dtype)[0].dtype.name == dtype


# float64 is the reference. A rounding is 6e-8 in float32 and 4e-3 in bfloat16, over a dozen layers in train mode,
# where each BatchNorm divides by a deviation that is rounded too; measured 2e-7 and 1e-2.
@pytest.mark.sample(3)
@pytest.mark.parametrize(("dtype", "bound"), [("float64", 1e-14), ("float32", FLOAT32), ("bfloat16", 5e-2)])
@pytest.mark.parametrize("port", PORTS)
def test_output_is_as_exact_as_its_type(port: str, dtype: str, bound: float) -> None:
    assert distance(train_step_in(port, dtype)[0], train_step_in("pytorch", "float64")[0]) <= bound


@pytest.mark.parametrize(("dtype", "expected"), list(zip(DTYPES, ["float32", "float64", "float32"], strict=True)))
@pytest.mark.parametrize("port", PORTS)
def test_types_of_norms_and_statistics(port: str, dtype: str, expected: str) -> None:
    """With bfloat16, BatchNorm stays float32: a step of 1/10 would be lost in eight bits."""
    weights = train_step_in(port, dtype)[1]
    types = {w.dtype.name for n, w in weights.items() if ".bn" in n and "tracked" not in n}
    assert types == {expected}


@pytest.mark.parametrize("port", PORTS)
def test_bfloat16_statistics_are_computed_in_float32(port: str) -> None:
    """The stem's statistics depend on one convolution only: they have its error, not eight bits of their own."""
    name = "bn1.running_var"
    found, expected = (train_step_in(*key)[1][name] for key in ((port, "bfloat16"), ("pytorch", "float64")))
    # Half of 8 bits' rounding is 2e-3, a tenth of the new value is in it, and hundreds of values are averaged.
    assert distance(found, expected) <= 1e-3


@pytest.mark.usefixtures("no_type_checks")
@pytest.mark.parametrize("dtype", ["float16", "float", "", torch.float32, jnp.float32], ids=repr)
@pytest.mark.parametrize("port", PORTS)
def test_unknown_type(port: str, dtype: Any) -> None:
    with pytest.raises(UserError, match=r"tiny: dtype: got .*, expected one of float32, float64, bfloat16"):
        ports.create(BASE, port, seed=None, dtype=dtype)


@pytest.mark.parametrize("layers", [nnx_layers, linen_layers], ids=FLAX)
def test_layers_without_a_type_have_float32_parameters(layers: Any) -> None:
    """Flax takes None for float32; numpy takes it for float64."""
    assert layers.param_dtype(None) == np.float32


@pytest.mark.sample(2)
@pytest.mark.parametrize("name", ["basic", "tutorial_net", "tutorial_resnet"])
@pytest.mark.parametrize("port", FLAX)
def test_an_array_of_numpy_is_an_input(port: str, name: str) -> None:
    net, x = create(NETWORKS[name], port, seed=None), images().transpose(0, 2, 3, 1)
    call = net if port == "nnx" else functools.partial(net[0].apply, net[1])
    np.testing.assert_array_equal(call(x), call(jnp.asarray(x)))


@pytest.mark.parametrize("port", FLAX)
def test_float64_needs_x64(port: str) -> None:
    with pytest.raises(UserError, match=r"tiny: float64 needs JAX's x64 mode: .*jax\.enable_x64\(True\)"):
        ports.create(BASE, port, seed=None, dtype="float64")


# ---- compiled


@pytest.mark.sample(2)
@pytest.mark.usefixtures("no_type_checks")
@pytest.mark.parametrize("train", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("name", ["basic", "preact-zero_pad", "stem-deep"])
def test_torch_compile_takes_the_whole_graph(name: str, train: bool) -> None:
    """Traced without a break, with the same kernels behind it, so the result is the same bit by bit."""
    spec = NETWORKS[name]
    net, other, x = randomised(spec), randomised(spec), torch.from_numpy(images(spec))
    with torch.no_grad():
        expected = net.train(train)(x)
        found = torch.compile(other.train(train), fullgraph=True, backend="aot_eager")(x)
    assert torch.equal(found, expected)
    name = "layer1.0.bn1.running_var"
    assert np.array_equal(ports.weights.read(other)[name], ports.weights.read(net)[name])


def eager_and_compiled(how: str, train: bool) -> tuple[list[Any], list[Any]]:
    """Logits, a running variance and a counter, both ways."""
    x = jnp.array(images().transpose(0, 2, 3, 1))
    if how == "linen-jax.jit":
        module, variables = twin(randomised(BASE), "linen")

        def apply(variables: Any, x: jax.Array) -> list[Any]:
            y, changed = module.apply(variables, x, train=train, mutable=["batch_stats"])
            stats = changed["batch_stats"]["bn1"]
            return [y, stats["var"], stats["num_batches_tracked"]]

        return apply(variables, x), jax.jit(apply)(variables, x)

    def call(net: Any, x: jax.Array) -> list[Any]:
        y = net(x)
        return [y, net.bn1.var[...], net.bn1.num_batches_tracked[...]]

    nets = [twin(randomised(BASE), "nnx") for _ in range(2)]
    for net in nets:
        net.train() if train else net.eval()
    if how == "nnx-nnx.jit":
        return call(nets[0], x), nnx.jit(call)(nets[1], x)
    graphdef, state = nnx.split(nets[1])
    return call(nets[0], x), jax.jit(lambda state, x: call(nnx.merge(graphdef, state), x))(state, x)


@pytest.mark.sample(2)
@pytest.mark.parametrize("train", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("how", ["nnx-nnx.jit", "nnx-jax.jit", "linen-jax.jit"])
def test_jit_gives_the_eager_result(how: str, train: bool) -> None:
    eager, compiled = eager_and_compiled(how, train)
    assert max(distance(np.array(a), np.array(b)) for a, b in zip(compiled, eager, strict=True)) <= FLOAT32


# ---- training, as its users write it

LABELS = np.arange(8) % 5


def train_pytorch(x: np.ndarray, *, autocast: bool = False) -> list[float]:
    net = ports.create(BASE, "pytorch", seed=0)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    losses = []
    for _ in range(6):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            loss = torch.nn.functional.cross_entropy(net(torch.from_numpy(x)), torch.from_numpy(LABELS))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def train_nnx(x: np.ndarray) -> list[float]:
    net = create(BASE, "nnx", seed=0)
    optimizer = nnx.Optimizer(net, optax.sgd(0.1, momentum=0.9), wrt=nnx.Param)

    @nnx.jit
    def step(net: Any, optimizer: Any, x: jax.Array) -> jax.Array:
        def loss_of(net: Any) -> jax.Array:
            return optax.softmax_cross_entropy_with_integer_labels(net(x), jnp.array(LABELS)).mean()

        loss, gradients = nnx.value_and_grad(loss_of)(net)
        optimizer.update(net, gradients)
        return loss

    return [float(step(net, optimizer, jnp.array(x.transpose(0, 2, 3, 1)))) for _ in range(6)]


def train_linen(x: np.ndarray) -> list[float]:
    module, variables = create(BASE, "linen", seed=0)
    tx = optax.sgd(0.1, momentum=0.9)

    @jax.jit
    def step(params: Any, stats: Any, state: Any, x: jax.Array) -> Any:
        def loss_of(params: Any) -> Any:
            both = {"params": params, "batch_stats": stats}
            logits, changed = module.apply(both, x, train=True, mutable=["batch_stats"])
            loss = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.array(LABELS)).mean()
            return loss, changed["batch_stats"]

        (loss, changed), gradients = jax.value_and_grad(loss_of, has_aux=True)(params)
        updates, state = tx.update(gradients, state, params)
        return optax.apply_updates(params, updates), changed, state, loss

    params, stats = variables["params"], variables["batch_stats"]
    state, losses = tx.init(params), []
    for _ in range(6):
        params, stats, state, loss = step(params, stats, state, jnp.array(x.transpose(0, 2, 3, 1)))
        losses.append(float(loss))
    return losses


TRAINING = {
    "pytorch": train_pytorch,
    "pytorch-autocast": functools.partial(train_pytorch, autocast=True),
    "nnx": train_nnx,
    "linen": train_linen,
}


@pytest.mark.sample(1)
@pytest.mark.parametrize("how", TRAINING)
def test_five_steps_lower_the_loss(how: str) -> None:
    losses = TRAINING[how](images(batch=8))
    assert losses[-1] < 0.9 * losses[0]


def test_autocast_computes_in_bfloat16_and_keeps_the_statistics_in_float32() -> None:
    net = ports.create(BASE, "pytorch", seed=0)
    with torch.autocast("cpu", torch.bfloat16):
        out = net(torch.from_numpy(images()))
    assert (out.dtype, net.bn1.running_var.dtype) == (torch.bfloat16, torch.float32)
