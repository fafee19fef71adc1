"""A rule per layer type: one layer in PyTorch and in Flax, the same weights, the same output in float64."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import linen, nnx

from ports.weights import Leaf, WeightsError, layers, read, register, write

F8: Any = jnp.float64
TORCH: Any = {"dtype": torch.float64}


def nchw(x: np.ndarray) -> np.ndarray:
    return np.moveaxis(x, -1, 1)


# Name: the PyTorch layer, the NNX layer, the Linen layer, the shape of a channels-last input.
CASES: dict[str, tuple[Any, Any, Any, tuple[int, ...]]] = {
    "Conv": (
        lambda: torch.nn.Conv2d(4, 6, (3, 2), **TORCH),
        lambda kw: nnx.Conv(4, 6, (3, 2), padding="VALID", **kw),
        lambda kw: linen.Conv(6, (3, 2), padding="VALID", **kw),
        (2, 5, 6, 4),
    ),
    "Conv-grouped": (
        lambda: torch.nn.Conv2d(4, 6, 3, groups=2, **TORCH),
        lambda kw: nnx.Conv(4, 6, (3, 3), padding="VALID", feature_group_count=2, **kw),
        lambda kw: linen.Conv(6, (3, 3), padding="VALID", feature_group_count=2, **kw),
        (2, 5, 6, 4),
    ),
    "Conv-depthwise": (
        lambda: torch.nn.Conv2d(4, 4, 3, groups=4, bias=False, **TORCH),
        lambda kw: nnx.Conv(4, 4, (3, 3), padding="VALID", feature_group_count=4, use_bias=False, **kw),
        lambda kw: linen.Conv(4, (3, 3), padding="VALID", feature_group_count=4, use_bias=False, **kw),
        (2, 5, 6, 4),
    ),
    "Conv-1d": (
        lambda: torch.nn.Conv1d(4, 6, 3, **TORCH),
        lambda kw: nnx.Conv(4, 6, (3,), padding="VALID", **kw),
        lambda kw: linen.Conv(6, (3,), padding="VALID", **kw),
        (2, 5, 4),
    ),
    "Conv-3d": (
        lambda: torch.nn.Conv3d(2, 3, 2, **TORCH),
        lambda kw: nnx.Conv(2, 3, (2, 2, 2), padding="VALID", **kw),
        lambda kw: linen.Conv(3, (2, 2, 2), padding="VALID", **kw),
        (2, 4, 5, 3, 2),
    ),
    "ConvTranspose": (
        lambda: torch.nn.ConvTranspose2d(4, 6, (3, 2), 2, **TORCH),
        lambda kw: nnx.ConvTranspose(4, 6, (3, 2), (2, 2), padding="VALID", **kw),
        lambda kw: linen.ConvTranspose(6, (3, 2), (2, 2), padding="VALID", **kw),
        (2, 5, 6, 4),
    ),
    "ConvTranspose-transpose_kernel": (
        lambda: torch.nn.ConvTranspose2d(4, 6, (3, 2), 2, **TORCH),
        lambda kw: nnx.ConvTranspose(4, 6, (3, 2), (2, 2), padding="VALID", transpose_kernel=True, **kw),
        lambda kw: linen.ConvTranspose(6, (3, 2), (2, 2), padding="VALID", transpose_kernel=True, **kw),
        (2, 5, 6, 4),
    ),
    "Linear-square": (
        lambda: torch.nn.Linear(4, 4, **TORCH),
        lambda kw: nnx.Linear(4, 4, **kw),
        lambda kw: linen.Dense(4, **kw),
        (2, 4),
    ),
    "BatchNorm": (
        lambda: torch.nn.BatchNorm2d(4, **TORCH),
        lambda kw: nnx.BatchNorm(4, use_running_average=True, **kw),
        lambda kw: linen.BatchNorm(use_running_average=True, force_float32_reductions=False, **kw),
        (2, 3, 3, 4),
    ),
    "LayerNorm": (
        lambda: torch.nn.LayerNorm(4, **TORCH),
        lambda kw: nnx.LayerNorm(4, epsilon=1e-5, **kw),
        lambda kw: linen.LayerNorm(epsilon=1e-5, **kw),
        (2, 4),
    ),
    "GroupNorm": (
        lambda: torch.nn.GroupNorm(2, 4, **TORCH),
        lambda kw: nnx.GroupNorm(4, num_groups=2, epsilon=1e-5, **kw),
        lambda kw: linen.GroupNorm(num_groups=2, epsilon=1e-5, **kw),
        (2, 3, 3, 4),
    ),
    "InstanceNorm": (
        lambda: torch.nn.InstanceNorm2d(4, affine=True, **TORCH),
        lambda kw: nnx.InstanceNorm(4, epsilon=1e-5, **kw),
        lambda kw: linen.InstanceNorm(epsilon=1e-5, **kw),
        (2, 3, 3, 4),
    ),
    "RMSNorm": (
        lambda: torch.nn.RMSNorm(4, eps=1e-5, **TORCH),
        lambda kw: nnx.RMSNorm(4, epsilon=1e-5, **kw),
        lambda kw: linen.RMSNorm(epsilon=1e-5, **kw),
        (2, 4),
    ),
}


def randomised(layer: torch.nn.Module) -> torch.nn.Module:
    generator = torch.Generator().manual_seed(0)
    for tensor in layer.state_dict().values():
        if tensor.is_floating_point():
            tensor.copy_(torch.rand(tensor.shape, generator=generator, dtype=tensor.dtype) + 0.5)
    return layer.eval()


@pytest.mark.parametrize("port", ["nnx", "linen"])
@pytest.mark.parametrize("case", CASES)
def test_layer(case: str, port: str) -> None:
    make, nnx_layer, linen_layer, shape = CASES[case]
    reference, x = randomised(make()), np.random.default_rng(0).standard_normal(shape)
    channels_first = torch.from_numpy(nchw(x).copy()) if len(shape) > 2 else torch.from_numpy(x)
    expected = reference(channels_first).detach().numpy()
    weights = read(reference)
    kw = {"param_dtype": F8}
    with jax.enable_x64(True):
        if port == "nnx":
            net = nnx_layer({**kw, "rngs": nnx.Rngs(0)})
            if case == "BatchNorm":  # Flax makes them float32 whatever it is told
                net.mean.set_value(net.mean.get_value().astype(F8))
                net.var.set_value(net.var.get_value().astype(F8))
            write(net, weights)
            got = net(jnp.array(x))
        else:
            module = linen_layer(kw)
            net = (module, module.init(jax.random.key(0), jnp.array(x)))
            net = (module, write(net, weights))
            got = module.apply(net[1], jnp.array(x))
        back = read(net)
    got = nchw(np.asarray(got)) if len(shape) > 2 else np.asarray(got)
    assert got.shape == expected.shape
    # float64: sums of at most 24 products; a mistake in layout is of the size of the values.
    assert np.abs(got - expected).max() <= 1e-13 * np.abs(expected).max()
    assert {n: a.tobytes() for n, a in back.items()} == {n: a.tobytes() for n, a in weights.items()}


def test_embedding() -> None:
    reference = torch.nn.Embedding(5, 3)
    net = nnx.Embed(5, 3, rngs=nnx.Rngs(0))
    write(net, read(reference))
    assert np.array_equal(net(jnp.array([4, 0])), reference(torch.tensor([4, 0])).detach())


@pytest.mark.parametrize("port", ["nnx", "linen"])
def test_attention(port: str) -> None:
    reference = torch.nn.MultiheadAttention(8, 2, batch_first=True, dtype=torch.float64)
    torch.nn.init.uniform_(reference.in_proj_bias)
    torch.nn.init.uniform_(reference.out_proj.bias)
    x = np.random.default_rng(0).standard_normal((2, 5, 8))
    expected = reference(*[torch.from_numpy(x)] * 3, need_weights=False)[0].detach().numpy()
    with jax.enable_x64(True):
        if port == "nnx":
            net: Any = nnx.MultiHeadAttention(2, 8, param_dtype=F8, decode=False, rngs=nnx.Rngs(0))
            write(net, read(reference))
            got = net(jnp.array(x))
        else:
            module = linen.MultiHeadDotProductAttention(2, param_dtype=F8)
            net = (module, module.init(jax.random.key(0), jnp.array(x)))
            net = (module, write(net, read(reference)))
            got = module.apply(net[1], jnp.array(x))
        assert {n: a.tobytes() for n, a in read(net).items()} == {n: a.tobytes() for n, a in read(reference).items()}
    # NNX calls jax.nn.dot_product_attention, which computes its softmax in float32 always; Linen does not.
    allowed = 1e-6 if port == "nnx" else 1e-13
    assert np.abs(np.asarray(got) - expected).max() <= allowed * np.abs(expected).max()


class Scaled(nnx.Module):
    def __init__(self) -> None:
        self.factor = nnx.Param(jnp.ones(3))


def test_a_layer_without_a_rule_says_how_to_add_one(monkeypatch: pytest.MonkeyPatch) -> None:
    net = nnx.Dict(scaled=Scaled())
    with pytest.raises(WeightsError, match=r"scaled: no rule for layer type Scaled, .*ports\.weights\.register"):
        read(net)
    monkeypatch.setattr(layers, "LAYERS", dict(layers.LAYERS))
    register("Scaled", lambda _: (Leaf("weight", ("factor",)),))
    assert list(read(net)) == ["scaled.weight"]


class Compact(linen.Module):
    @linen.compact
    def __call__(self, x: Any) -> Any:
        return linen.Dense(3)(x)


def test_a_layer_made_in_compact_is_reported() -> None:
    module = Compact()
    with pytest.raises(WeightsError, match=r"params\.Dense_0\.kernel.*make it in setup\(\)"):
        read((module, module.init(jax.random.key(0), jnp.zeros((1, 2)))))
