"""Biases that a port has and PyTorch has not; inputs in the layout that a port takes; keys that are passed by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import linen, nnx
from torch import nn

import parity
from parity.diagnosis.localise import NETWORK
from ports import UserError

pytestmark = pytest.mark.usefixtures("quick")

WIDTH, HEADS = 8, 2


class KeysWithoutBias(nn.Module):
    """Attention as Whisper has it: no bias at the keys."""

    def __init__(self) -> None:
        super().__init__()
        self.q_proj, self.v_proj = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.k_proj = nn.Linear(WIDTH, WIDTH, bias=False)
        self.out_proj = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = (
            layer(x).unflatten(-1, (HEADS, -1)).transpose(1, 2) for layer in (self.q_proj, self.k_proj, self.v_proj)
        )
        return self.out_proj(nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


def attention(rngs: nnx.Rngs) -> nnx.MultiHeadAttention:
    return nnx.MultiHeadAttention(HEADS, WIDTH, decode=False, rngs=rngs)


class Block(nnx.Module):
    def __init__(self, make: Callable[[nnx.Rngs], Any] = attention, gelu: Any = nnx.relu) -> None:
        rngs = nnx.Rngs(0)
        self.attention, self.gelu = make(rngs), gelu
        self.fc = nnx.Linear(WIDTH, 3, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.fc(self.gelu(self.attention(x)))


class TorchBlock(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.attention = inner
        self.fc = nn.Linear(WIDTH, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(torch.relu(self.attention(x)))


def sequence() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((2, 5, WIDTH)).astype(np.float32)


def test_a_bias_at_the_keys_alone_changes_nothing() -> None:
    model, x = TorchBlock(KeysWithoutBias()), sequence()
    port = parity.move(model, Block(), x)
    assert not jax.device_get(port.attention.key.bias[...]).any()
    report = parity.check(model, port, x)
    assert report, report.failure()
    assert "a bias where PyTorch has none: attention.k_proj." in str(report)


def test_a_bias_that_is_trained_is_named_and_the_rest_is_checked() -> None:
    model, x = TorchBlock(nn.Linear(WIDTH, WIDTH, bias=False)), sequence()
    port = parity.move(model, Block(lambda rngs: nnx.Linear(WIDTH, WIDTH, rngs=rngs), nnx.silu), x)
    first, second = parity.check(model, port, x).models[0].findings
    assert (first.layer, first.trap) == ("attention", "bias-added")
    assert [(fix.argument, fix.got, fix.expected) for fix in first.fix] == [("use_bias", True, False)]
    assert (second.layer, second.trap) == (NETWORK, "relu-is-silu")
    fixed = parity.move(model, Block(lambda rngs: nnx.Linear(WIDTH, WIDTH, use_bias=False, rngs=rngs)), x)
    assert parity.check(model, fixed, x)


class Convolutions(linen.Module):
    """A convolution with a bias in front of a BatchNorm, which takes it away."""

    @linen.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        x = linen.Conv(4, (3, 3), padding=1)(x)
        x = linen.BatchNorm(not train, momentum=0.9, use_fast_variance=False)(x)
        return x.mean((1, 2))


def test_a_bias_in_front_of_a_batch_norm_is_not_trained() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.norm(self.conv(x)).mean((2, 3))

    x = np.random.default_rng(0).standard_normal((3, 3, 6, 5)).astype(np.float32)
    port = Convolutions()
    moved = parity.move(Net(), (port, port.init(jax.random.key(0), jnp.zeros((1, 6, 5, 3)))), x)
    (model,) = parity.check(Net(), moved, x).models
    assert {f.trap for f in model.findings} <= {"weights-not-moved", "bn-running-var"}
    assert "conv" in " ".join(model.advice)


class ChannelsFirst(nnx.Module):
    """Takes images and sequences as PyTorch holds them, or sequences alone otherwise than the default."""

    def __init__(self, image: bool) -> None:
        self.conv = nnx.Conv(3, 4, (3, 3) if image else (3,), padding=1, rngs=nnx.Rngs(0))
        self.image = image

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.conv(x.transpose(0, 2, 3, 1) if self.image else x)


@pytest.mark.sample(1)
@pytest.mark.parametrize(("image", "said"), [(True, "as PyTorch does"), (False, "as channels last")])
def test_inputs_come_in_the_layout_that_the_port_takes(image: bool, said: str) -> None:
    model = nn.Conv2d(3, 4, 3, padding=1) if image else nn.Conv1d(3, 4, 3, padding=1)
    x = np.random.default_rng(0).standard_normal((2, 3, 6, 5) if image else (2, 3, 6)).astype(np.float32)
    port = parity.move(model, ChannelsFirst(image), x)
    report = parity.check(model, port, x)
    assert report, report.failure()
    assert f"the port takes input {said}" in report.models[0].note
    with pytest.raises(UserError, match="conv_general_dilated"):
        parity.check(model, port, x, layouts={"input": "channels_last" if image else "same"})
    with pytest.raises(UserError, match="raises"):
        parity.check(nn.Conv2d(5, 4, 3), port, np.zeros((2, 5, 6, 7), np.float32))


class Keyed(nnx.Module):
    def __init__(self) -> None:
        self.fc = nnx.Linear(WIDTH, 3, rngs=nnx.Rngs(0))

    def __call__(self, x: jax.Array, rngs: jax.Array) -> jax.Array:
        return self.fc(x) + 0 * jax.random.normal(rngs, (3,))


def test_a_key_is_passed_to_the_port_alone() -> None:
    model, x, key = nn.Linear(WIDTH, 3), sequence(), jax.random.key(0)
    port = parity.move(model, Keyed(), x, flax_keywords={"rngs": key})
    assert parity.check(model, port, x, flax_keywords={"rngs": key})
    with pytest.raises(UserError, match="pass it in flax_keywords"):
        parity.check(model, port, x, key)


class Masked(nnx.Module):
    def __init__(self) -> None:
        self.mask = nnx.Variable(jnp.tril(jnp.ones((WIDTH, WIDTH), bool)))
        self.fc = nnx.Linear(WIDTH, 3, rngs=nnx.Rngs(0))

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.fc(x * self.mask[...].sum(0))


def test_a_mask_of_truth_values_is_a_tensor_like_others() -> None:
    """A buffer of truth values on both sides, in a port whose weights were not moved."""

    class Net(nn.Module):
        mask: torch.Tensor

        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("mask", torch.ones(WIDTH, WIDTH, dtype=torch.bool).tril())
            self.fc = nn.Linear(WIDTH, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.fc(x * self.mask.sum(0))

    (finding,) = parity.check(Net(), Masked(), sequence(), steps=1).models[0].findings
    assert finding.trap == "weights-not-moved"
