"""The port's own tensors of one size: what is done with them says which is which."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from torch import nn

import parity

pytestmark = pytest.mark.usefixtures("quick")

WORDS, WIDTH, HIDDEN = 11, 6, 9
RNG = np.random.default_rng(0)
TOKENS = RNG.integers(0, WORDS, (2, 5))
INPUTS = RNG.standard_normal((2, 5, WIDTH)).astype(np.float32)


def kernel(rngs: nnx.Rngs, *shape: int) -> nnx.Param[jax.Array]:
    return nnx.Param(0.3 * jax.random.normal(rngs.params(), shape))


class Bigram(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed_tokens, self.lm_head = nn.Embedding(WORDS, WIDTH), nn.Linear(WIDTH, WORDS, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.lm_head(torch.tanh(self.embed_tokens(x)))


class InArrays(nnx.Module):
    """One array is looked up, the other one multiplied."""

    def __init__(self) -> None:
        rngs = nnx.Rngs(0)
        self.params = nnx.Dict(tok=kernel(rngs, WORDS, WIDTH), unembed=kernel(rngs, WIDTH, WORDS))

    def __call__(self, x: jax.Array) -> jax.Array:
        return jnp.tanh(self.params["tok"][...][x]) @ self.params["unembed"][...]


class LearnedStart(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.start, self.step = nn.Parameter(torch.randn(1, WIDTH)), nn.Linear(2 * WIDTH, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.start.tanh().expand(len(x), -1)
        for i in range(x.shape[1]):
            h = self.step(torch.cat([x[:, i], h], -1)).tanh()
        return h


class StartWithoutAxis(nnx.Module):
    def __init__(self) -> None:
        rngs = nnx.Rngs(0)
        self.h0, self.step = kernel(rngs, WIDTH), nnx.Linear(2 * WIDTH, WIDTH, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        h = jnp.broadcast_to(jnp.tanh(self.h0[...]), x[:, 0].shape)
        for i in range(x.shape[1]):
            h = jnp.tanh(self.step(jnp.concatenate([x[:, i], h], -1)))
        return h


class Block(nn.Module):
    """With the names of Hugging Face's Llama: the second norm comes after the attention, and belongs to the MLP."""

    def __init__(self) -> None:
        super().__init__()
        self.input_layernorm, self.post_attention_layernorm = nn.RMSNorm(WIDTH, 1e-6), nn.RMSNorm(WIDTH, 1e-6)
        self.self_attn, self.mlp = nn.Linear(WIDTH, WIDTH, bias=False), nn.Linear(WIDTH, HIDDEN, bias=False)
        self.down = nn.Linear(HIDDEN, WIDTH, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.self_attn(self.input_layernorm(x).cumsum(1))
        return x + self.down(self.mlp(self.post_attention_layernorm(x)).tanh())


class Blocks(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Block() for _ in range(3))
        with torch.no_grad():
            for name, p in self.named_parameters():
                if "norm" in name:
                    p.add_(0.3 * torch.randn(WIDTH))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


def normed(x: jax.Array, scale: jax.Array) -> jax.Array:
    return x * jax.lax.rsqrt(jnp.mean(jnp.square(x), -1, keepdims=True) + 1e-6) * scale


class ScannedBlocks(nnx.Module):
    """Each kind of parameter of all layers in one array; each part of a block has its norm beside it."""

    def __init__(self) -> None:
        rngs = nnx.Rngs(0)
        self.att = nnx.Dict(norm=nnx.Param(jnp.ones((3, WIDTH))), kernel=kernel(rngs, 3, WIDTH, WIDTH))
        up, down = kernel(rngs, 3, WIDTH, HIDDEN), kernel(rngs, 3, HIDDEN, WIDTH)
        self.mlp = nnx.Dict(norm=nnx.Param(jnp.ones((3, WIDTH))), up=up, down=down)

    def __call__(self, x: jax.Array) -> jax.Array:
        def layer(x: jax.Array, w: tuple[jax.Array, ...]) -> tuple[jax.Array, None]:
            before, kernel, norm, up, down = w
            x = x + jnp.cumsum(normed(x, before), 1) @ kernel
            return x + jnp.tanh(normed(x, norm) @ up) @ down, None

        held = self.att["norm"], self.att["kernel"], self.mlp["norm"], self.mlp["up"], self.mlp["down"]
        return jax.lax.scan(layer, x, tuple(one[...] for one in held))[0]


@pytest.mark.parametrize(
    ("ours", "port", "x"),
    [
        (Bigram, InArrays, TOKENS),
        (LearnedStart, StartWithoutAxis, INPUTS),
        (Blocks, ScannedBlocks, INPUTS),
    ],
)
def test_weights_arrive(ours: type[nn.Module], port: type[nnx.Module], x: np.ndarray) -> None:
    torch.manual_seed(0)
    model = ours().eval()
    report = parity.check(model, parity.move(model, port(), x), x, steps=1)
    assert report, str(report)


class Attending(nn.Module):
    """One tensor is query and key, as in DETR."""

    def __init__(self) -> None:
        super().__init__()
        self.attn, self.head = nn.MultiheadAttention(WIDTH, 2, batch_first=True), nn.Linear(WIDTH, 3)

    def forward(self, x: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        q = k = x + positions
        return self.head(x + self.attn(q, k, value=x)[0])


class AttendingTwice(nnx.Module):
    """The port computes query and key each for itself."""

    def __init__(self, wrong: float = 1) -> None:
        rngs, self.wrong = nnx.Rngs(0), wrong
        self.attn = nnx.MultiHeadAttention(2, WIDTH, decode=False, rngs=rngs)
        self.head = nnx.Linear(WIDTH, 3, rngs=rngs)

    def __call__(self, x: jax.Array, positions: jax.Array) -> jax.Array:
        return self.head(x + self.attn(x + positions, x + positions, x)) * self.wrong


def test_one_tensor_that_is_query_and_key_is_no_second_finding() -> None:
    torch.manual_seed(0)
    inputs, model = (INPUTS, INPUTS[::-1].copy()), Attending().eval()
    assert parity.check(model, parity.move(model, AttendingTwice(), *inputs), *inputs, steps=1)
    report = parity.check(model, parity.move(model, AttendingTwice(1.01), *inputs), *inputs, steps=1)
    assert [finding.layer for finding in report.models[0].findings] == ["(the network)"], str(report)
