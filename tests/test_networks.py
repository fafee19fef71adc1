"""The three ports as networks: shapes, every option, BatchNorm, initial weights, types, compilation, training.

That the ports compute the same is proved in float64 by the check (test_faithful.py, test_planted.py); here they are
used as their users would use them.
"""

from __future__ import annotations

import dataclasses
import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from flax import nnx
from small import BASIC_NET, BOTTLENECK_NET, OPTION_A_NET, PREACT_NET

import ports
from ports import UserError
from ports.resnet import linen as linen_port
from ports.resnet import nnx as nnx_port
from ports.resnet import pytorch as torch_port
from ports.resnet.spec import Block, ResNetSpec, get
from ports.weights import read, write

PORTS = list(ports.PORTS)


def forward(net: Any, images: np.ndarray, train: bool = False) -> Any:
    """The output, NCHW, of any port on NCHW images."""
    if isinstance(net, torch.nn.Module):
        with torch.no_grad():
            values = net.train(train)(torch.from_numpy(images))
        return [v.numpy() for v in values] if isinstance(values, tuple) else values.numpy()
    x = jnp.array(images.transpose(0, 2, 3, 1))
    if isinstance(net, nnx.Module):
        net.train() if train else net.eval()
        values = nnx.jit(lambda net, x: net(x))(net, x)
    else:
        module, variables = net
        values = jax.jit(partial(module.apply, train=train, mutable=["batch_stats"] if train else False))(variables, x)
        values = values[0] if train else values
    parts = [np.asarray(v) for v in (values if isinstance(values, tuple) else (values,))]
    parts = [p.transpose(0, 3, 1, 2) if p.ndim == 4 else p for p in parts]
    return parts if isinstance(values, tuple) else parts[0]


def photograph(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize(
    ("arguments", "shape"),
    [
        ((64, 64, 1), (64, 32, 32)),
        ((64, 128, 1), (128, 32, 32)),
        ((64, 64, 2), (64, 16, 16)),
        ((64, 128, 2), (128, 16, 16)),
    ],
    ids=str,
)
@pytest.mark.parametrize("port", PORTS)
def test_residual_block(port: str, arguments: tuple[int, int, int], shape: tuple[int, ...]) -> None:
    images = photograph(1, 64, 32, 32)
    net: Any
    if port == "pytorch":
        net = torch_port.ResidualBlock(*arguments)
    elif port == "nnx":
        net = nnx_port.ResidualBlock(*arguments, rngs=nnx.Rngs(0))
    else:
        block = linen_port.ResidualBlock(*arguments)
        net = (block, block.init(jax.random.key(0), jnp.zeros((1, 32, 32, 64))))
    assert forward(net, images).shape == (1, *shape)


# One small network for every option, beside those of the faithful runs.
OPTIONS: dict[str, ResNetSpec] = {
    "three-convolutions": get(BASIC_NET, kernels=(3, 3, 3)),
    "stride-on-the-first-1x1": get(BOTTLENECK_NET, stride_at=0),
    "projection-always": get(BASIC_NET, shortcut="projection_always"),
    "projection-without-norm": get(BASIC_NET, shortcut_norm=False),
    "plain-twin": get(BASIC_NET, residual=False),
    "plain-preactivation": get(PREACT_NET, residual=False),
    "bias": get(BASIC_NET, bias=True),
    "zero-init-last": get(BASIC_NET, zero_init_last=True),
    "dilated": get(BASIC_NET, output_stride=4),
    "features": get(BASIC_NET, features_only=True, output_stride=4),
    "one-channel": get(BASIC_NET, in_channels=1),
}


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("port", ["nnx", "linen"])
def test_option_is_the_same_in_every_port(port: str, option: str) -> None:
    spec = OPTIONS[option]
    reference = ports.create(spec, "pytorch", seed=1)
    net = ports.create(spec, port, seed=None)
    variables = write(net, read(reference))
    images = photograph(2, spec.in_channels, 33, 26)
    expected = forward(reference, images)
    got = forward(net if variables is None else (net[0], variables), images)
    # float32: some ten roundings a layer, in the order of 1e-6 of the largest value; mistakes begin at 1e-3.
    for a, b in zip(got if spec.features_only else [got], expected if spec.features_only else [expected], strict=True):
        assert a.shape == b.shape
        assert np.abs(a - b).max() <= 2e-5 * np.abs(b).max()


def test_plain_twin_has_no_shortcut() -> None:
    names = read(ports.create("resnet18", "pytorch", seed=None, residual=False))
    assert not [name for name in names if "downsample" in name]
    assert [name for name in read(ports.create("resnet18", "pytorch", seed=None)) if "downsample" in name]


@pytest.mark.parametrize("port", PORTS)
def test_zero_initialised_last_norm_leaves_the_shortcut_alone(port: str) -> None:
    state = read(ports.create(BASIC_NET, port, seed=0, zero_init_last=True))
    zero = [name for name, array in state.items() if name.endswith("weight") and not array.any()]
    assert zero == ["layer1.0.bn2.weight", "layer1.1.bn2.weight", "layer2.0.bn2.weight"]


@pytest.mark.parametrize("output_stride", [32, 16, 8])
def test_features_of_an_output_stride(output_stride: int) -> None:
    """At the places of the coarser grid the dilated network computes what the strided one does."""
    net = ports.create("resnet18", "pytorch", seed=3, dtype="float64", features_only=True).eval()
    other = ports.create(
        "resnet18", "pytorch", seed=None, dtype="float64", features_only=True, output_stride=output_stride
    ).eval()
    write(other, read(net))
    images = torch.from_numpy(photograph(1, 3, 65, 96)).double()
    with torch.no_grad():
        expected, got = net(images), other(images)
    assert [f.shape[1] for f in got] == [64, 128, 256, 512]
    assert got[-1].shape[-1] == 96 // output_stride
    for coarse, fine, stride in zip(expected, got, (4, 8, 16, 32), strict=True):
        step = max(1, stride // output_stride)
        assert torch.allclose(fine[:, :, ::step, ::step], coarse, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("port", ["nnx", "linen"])
def test_batch_norm_is_pytorchs(port: str) -> None:
    """Means a thousand times the deviation: a one-pass variance would be lost in float32."""
    rng, expected = np.random.default_rng(0), torch.nn.BatchNorm2d(4)
    norm = nnx_port.BatchNorm(4, rngs=nnx.Rngs(0)) if port == "nnx" else linen_port.BatchNorm()
    variables: Any = None
    for step in range(3):
        x = (rng.standard_normal((3, 2, 2, 4)) + 1000 * step).astype(np.float32)
        y = expected(torch.from_numpy(x.transpose(0, 3, 1, 2))).detach().numpy().transpose(0, 2, 3, 1)
        if isinstance(norm, nnx_port.BatchNorm):
            got = norm(jnp.array(x))
            statistics: Any = (norm.mean[...], norm.var[...], norm.num_batches_tracked[...])
        else:
            variables = variables or norm.init(jax.random.key(0), jnp.array(x), use_running_average=False)
            got, new = norm.apply(variables, jnp.array(x), use_running_average=False, mutable=["batch_stats"])
            variables = {**variables, **new}
            statistics = tuple(new["batch_stats"][n] for n in ("mean", "var", "num_batches_tracked"))
        # The mean of values near 2000 is right to 2e-4 in float32.
        np.testing.assert_allclose(got, y, atol=1e-3)
        reference = read(expected)
        np.testing.assert_allclose(statistics[0], reference["running_mean"], rtol=1e-6, atol=1e-6)
        np.testing.assert_allclose(statistics[1], reference["running_var"], rtol=1e-5)
        assert int(statistics[2]) == step + 1


@pytest.mark.parametrize("port", PORTS)
def test_one_value_a_channel_is_refused(port: str) -> None:
    net = ports.create(OPTION_A_NET, port, seed=None)
    with pytest.raises(ValueError, match=r"[Ee]xpected (two or )?more"):
        forward(net, photograph(1, 3, 2, 2), train=True)


@pytest.mark.parametrize("port", PORTS)
@pytest.mark.parametrize("init", ["torchvision", "pytorch"])
def test_initial_distributions(port: str, init: str) -> None:
    spec = dataclasses.replace(get(BOTTLENECK_NET, bias=True, groups=4, base_width=16), init=init, num_classes=40)
    state = read(ports.create(spec, port, seed=0))
    grouped, linear = state["layer2.0.conv2.weight"], state["fc.weight"]
    fan_in, fan_out = grouped[0].size, grouped.shape[0] * grouped[0, 0].size
    if init == "torchvision":
        assert grouped.std() == pytest.approx(math.sqrt(2 / fan_out), rel=0.15)
        assert np.abs(grouped).max() > 2.2 * grouped.std(), "a normal distribution that is not cut off"
    else:
        bound = 1 / math.sqrt(fan_in)
        assert 0.9 * bound < np.abs(grouped).max() <= bound
        assert grouped.std() == pytest.approx(bound / math.sqrt(3), rel=0.1)
    for name, array, inputs in (("fc", linear, 32), ("layer2.0.conv2", state["layer2.0.conv2.bias"], fan_in)):
        assert 0.6 / math.sqrt(inputs) < np.abs(array).max() <= 1 / math.sqrt(inputs), name
    assert (state["bn1.weight"] == 1).all()
    assert not state["bn1.bias"].any()


@pytest.mark.parametrize("port", PORTS)
def test_seeds(port: str) -> None:
    torch.manual_seed(7)
    first, again, other = (read(ports.create(OPTION_A_NET, port, seed=s))["fc.weight"] for s in (0, 0, 1))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
    expected = torch.manual_seed(7) and torch.rand(1)
    torch.manual_seed(7)
    ports.create(OPTION_A_NET, port, seed=0)
    assert torch.rand(1) == expected
    assert not any(array.any() for array in read(ports.create(OPTION_A_NET, port, seed=None)).values())


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
@pytest.mark.parametrize("port", PORTS)
def test_types(port: str, dtype: str) -> None:
    with jax.enable_x64(dtype == "float64"):
        net = ports.create(OPTION_A_NET, port, seed=0, dtype=dtype)
        images = photograph(2, 3, 16, 13)
        if port == "pytorch":
            net.train()
            out = net(torch.from_numpy(images).to(torch_port.DTYPES[dtype]))
            assert out.dtype == torch_port.DTYPES[dtype]
        else:
            x = jnp.array(images.transpose(0, 2, 3, 1), nnx_port.DTYPES[dtype])
            if port == "nnx":
                out = net(x)
            else:
                out, new = net[0].apply(net[1], x, train=True, mutable=["batch_stats"])
                net = (net[0], {**net[1], **new})
            assert out.dtype == nnx_port.DTYPES[dtype]
        statistics = {a.dtype.name for n, a in read(net).items() if "running" in n}
        assert statistics == {"float64" if dtype == "float64" else "float32"}


@pytest.mark.parametrize("port", PORTS)
def test_unknown_type(port: str) -> None:
    with pytest.raises(UserError, match="dtype: got 'float8', expected one of float32"):
        ports.create(OPTION_A_NET, port, dtype="float8")


@pytest.mark.parametrize("port", ["nnx", "linen"])
def test_float64_needs_x64(port: str) -> None:
    with pytest.raises(UserError, match="x64"):
        ports.create(OPTION_A_NET, port, dtype="float64")


def test_unknown_port() -> None:
    with pytest.raises(UserError, match="unknown port 'keras'; expected one of pytorch, nnx, linen"):
        ports.create("resnet18", "keras")


@pytest.mark.parametrize("spec", [BASIC_NET, PREACT_NET], ids=lambda s: s.name)
def test_torch_compile(spec: ResNetSpec) -> None:
    net = ports.create(spec, "pytorch", seed=0).eval()
    images = torch.from_numpy(photograph(2, 3, 33, 26))
    compiled = torch.compile(net, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        assert torch.allclose(compiled(images), net(images), rtol=1e-4, atol=1e-5)


def test_autocast_to_bfloat16() -> None:
    net = ports.create(BASIC_NET, "pytorch", seed=0)
    with torch.autocast("cpu", torch.bfloat16):
        out = net(torch.from_numpy(photograph(2, 3, 33, 26)))
    assert out.dtype == torch.bfloat16
    assert net.bn1.running_var.dtype == torch.float32


LABELS, STEPS = np.array([0, 1, 2, 3]), 15


def losses_pytorch(images: np.ndarray) -> list[float]:
    net = ports.create(OPTION_A_NET, "pytorch", seed=0)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    losses = []
    for _ in range(STEPS):
        loss = torch.nn.functional.cross_entropy(net(torch.from_numpy(images)), torch.from_numpy(LABELS))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def losses_nnx(images: np.ndarray) -> list[float]:
    net = ports.create(OPTION_A_NET, "nnx", seed=0)
    optimizer = nnx.Optimizer(net, optax.sgd(0.1, momentum=0.9), wrt=nnx.Param)

    @nnx.jit
    def step(net: Any, optimizer: Any, x: jax.Array) -> jax.Array:
        def objective(net: Any) -> jax.Array:
            return optax.softmax_cross_entropy_with_integer_labels(net(x), jnp.array(LABELS)).mean()

        loss, gradients = nnx.value_and_grad(objective)(net)
        optimizer.update(net, gradients)
        return loss

    losses = [float(step(net, optimizer, jnp.array(images.transpose(0, 2, 3, 1)))) for _ in range(STEPS)]
    assert int(net.bn1.num_batches_tracked[...]) == STEPS
    return losses


def losses_linen(images: np.ndarray) -> list[float]:
    module, variables = ports.create(OPTION_A_NET, "linen", seed=0)
    tx = optax.sgd(0.1, momentum=0.9)

    @jax.jit
    def step(params: Any, stats: Any, state: Any, x: jax.Array) -> Any:
        def objective(params: Any) -> Any:
            logits, new = module.apply({"params": params, **stats}, x, train=True, mutable=["batch_stats"])
            return optax.softmax_cross_entropy_with_integer_labels(logits, jnp.array(LABELS)).mean(), new

        (loss, stats), gradients = jax.value_and_grad(objective, has_aux=True)(params)
        updates, state = tx.update(gradients, state, params)
        return optax.apply_updates(params, updates), stats, state, loss

    params, stats = variables["params"], {"batch_stats": variables["batch_stats"]}
    state, losses = tx.init(params), []
    for _ in range(STEPS):
        params, stats, state, loss = step(params, stats, state, jnp.array(images.transpose(0, 2, 3, 1)))
        losses.append(float(loss))
    return losses


@pytest.mark.parametrize("port", PORTS)
def test_training_lowers_the_loss(port: str) -> None:
    losses = {"pytorch": losses_pytorch, "nnx": losses_nnx, "linen": losses_linen}[port](photograph(4, 3, 16, 13))
    assert losses[-1] < 0.7 * losses[0]


def test_blocks_may_be_described_freely() -> None:
    assert Block(kernels=(5, 3), stride_at=1).convs(8, 16, stride=2)[1].stride == 2
