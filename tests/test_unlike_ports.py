"""Faithful ports that are built unlike PyTorch's model: they pair without `names`, and a mistake in them is found."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from flax import nnx
from torch import nn

import parity
from ports import UserError

pytestmark = pytest.mark.usefixtures("quick")

RNG = np.random.default_rng(0)
X = RNG.standard_normal((3, 5, 6)).astype(np.float32)
IMAGES = RNG.standard_normal((2, 3, 8, 12)).astype(np.float32)
TOKENS = RNG.integers(0, 11, (3, 5))


class Scalars(nn.Module):
    """Two products of a layer and a number."""

    def __init__(self) -> None:
        super().__init__()
        self.c1, self.c2 = nn.Linear(6, 8), nn.Linear(6, 8)
        self.g, self.h = nn.Parameter(torch.tensor(0.3)), nn.Parameter(torch.tensor(0.7))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.c1(x) * self.g + torch.tanh(self.c2(x)) * self.h


class NNXScalars(nnx.Module):
    def __init__(self, wrong: bool = False, shape: tuple[int, ...] = ()) -> None:
        rngs = nnx.Rngs(0)
        self.a, self.b = nnx.Linear(6, 8, rngs=rngs), nnx.Linear(6, 8, rngs=rngs)
        self.u, self.w = nnx.Param(jnp.ones(shape)), nnx.Param(jnp.ones(shape))
        self.factor = 2 if wrong else 1

    def __call__(self, x: Any) -> Any:
        return self.factor * self.a(x) * self.u[...] + jnp.tanh(self.b(x)) * self.w[...]


class Patches(nn.Module):
    """Patches by a convolution, and positions."""

    def __init__(self) -> None:
        super().__init__()
        self.patch, self.head = nn.Conv2d(3, 7, 4, 4), nn.Linear(7, 5)
        self.positions = nn.Parameter(torch.randn(1, 6, 7))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.tanh(self.patch(x).flatten(2).transpose(1, 2) + self.positions))


class NNXPatches(nnx.Module):
    """Patches by a dense layer of rows, columns and channels."""

    def __init__(self, wrong: bool = False) -> None:
        rngs = nnx.Rngs(0)
        self.dense, self.out = nnx.Linear(48, 7, rngs=rngs), nnx.Linear(7, 5, rngs=rngs)
        self.pos, self.wrong = nnx.Param(jnp.zeros((6, 7))), wrong

    def __call__(self, x: Any) -> Any:
        b, h, w, c = x.shape
        order = (0, 3, 1, 2, 4, 5) if self.wrong else (0, 1, 3, 2, 4, 5)
        x = x.reshape(b, h // 4, 4, w // 4, 4, c).transpose(order).reshape(b, -1, 48)
        return self.out(jnp.tanh(self.dense(x) + self.pos[...]))


class Tied(nn.Module):
    """An embedding under three names, the first never called, and an output layer with a bias of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.shared, self.ours, self.theirs = (nn.Embedding(11, 6) for _ in range(3))
        self.ours.weight = self.theirs.weight = self.shared.weight
        self.mix, self.decoder = nn.Linear(6, 6), nn.Linear(6, 11)
        self.decoder.weight = self.shared.weight

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.decoder(self.mix(torch.tanh(self.ours(tokens))) + self.theirs(tokens.flip(1)))


class NNXTied(nnx.Module):
    def __init__(self, wrong: bool = False) -> None:
        rngs = nnx.Rngs(0)
        self.emb, self.mix = nnx.Embed(11, 6, rngs=rngs), nnx.Linear(6, 6, rngs=rngs)
        self.b, self.wrong = nnx.Param(jnp.zeros(11)), wrong

    def __call__(self, tokens: Any) -> Any:
        y = self.mix(jnp.tanh(self.emb(tokens))) + self.emb(tokens if self.wrong else tokens[:, ::-1])
        return self.emb.attend(y) + self.b[...]


class Normed(nn.Module):
    """A convolution under weight norm, beside a parameter as large as its bias that nothing uses."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.utils.parametrizations.weight_norm(nn.Conv1d(6, 8, 5, padding=2, groups=2), dim=2)
        self.mask, self.head = nn.Parameter(torch.randn(8)), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.tanh(self.conv(x.transpose(1, 2)).transpose(1, 2)))


class NNXNormed(nnx.Module):
    def __init__(self, wrong: bool = False) -> None:
        self.v, self.g = nnx.Param(jnp.ones((5, 3, 8))), nnx.Param(jnp.ones(5))
        self.b, self.head, self.wrong = nnx.Param(jnp.zeros(8)), nnx.Linear(8, 3, rngs=nnx.Rngs(0)), wrong

    def __call__(self, x: Any) -> Any:
        v = self.v[...]
        size = jnp.sqrt(jnp.square(v).sum(None if self.wrong else (1, 2), keepdims=True))
        kernel = self.g[...][:, None, None] * v / size
        dimensions = ("NWC", "WIO", "NWC")
        y = jax.lax.conv_general_dilated(x, kernel, (1,), [(2, 2)], None, None, dimensions, 2)
        return self.head(jnp.tanh(y + self.b[...]))


class Attention(nn.Module):
    def __init__(self, table: bool) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(6, 6, bias=False) for _ in range(4))
        if table:
            self.relative = nn.Embedding(4, 1)

    def forward(self, x: torch.Tensor, bias: Any) -> tuple[torch.Tensor, torch.Tensor]:
        scores = self.q(x) @ self.k(x).transpose(1, 2)
        if bias is None:
            steps = torch.arange(5)
            bias = self.relative((steps[:, None] - steps).abs().clamp(max=3))[..., 0]
        return self.o(torch.softmax(scores + bias, -1) @ self.v(x)), bias


class Stack(nn.Module):
    """Blocks of which the first makes the bias by distance for all, behind its queries and keys."""

    def __init__(self) -> None:
        super().__init__()
        self.block = nn.ModuleList(
            nn.ModuleList([Attention(i == 0), nn.Linear(6, 9), nn.Linear(9, 6)]) for i in range(3)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        bias = None
        for attention, up, down in self.block:  # pyright: ignore[reportGeneralTypeIssues]
            y, bias = attention(x, bias)
            x = x + y
            x = x + down(torch.tanh(up(x)))
        return x


class NNXAttention(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.query, self.key, self.value, self.out = (nnx.Linear(6, 6, use_bias=False, rngs=rngs) for _ in range(4))

    def __call__(self, x: Any, bias: Any) -> Any:
        weights = jax.nn.softmax(self.query(x) @ self.key(x).swapaxes(1, 2) + bias)
        return self.out(weights @ self.value(x))


class NNXStack(nnx.Module):
    """The table is looked up first of all."""

    def __init__(self, wrong: bool = False) -> None:
        rngs = nnx.Rngs(0)
        self.table, self.wrong = nnx.Embed(4, 1, rngs=rngs), wrong
        self.sa = nnx.List([NNXAttention(rngs) for _ in range(3)])
        self.wi = nnx.List([nnx.Linear(6, 9, rngs=rngs) for _ in range(3)])
        self.wo = nnx.List([nnx.Linear(9, 6, rngs=rngs) for _ in range(3)])

    def __call__(self, x: Any) -> Any:
        steps = jnp.arange(5)
        bias = self.table(jnp.minimum(abs(steps[:, None] - steps), 3))[..., 0]
        for attention, up, down in zip(self.sa, self.wi, self.wo, strict=True):
            x = x + attention(x, 2 * bias if self.wrong else bias)
            x = x + down(jnp.tanh(up(x)))
        return x


class Told(nn.Module):
    """Tells its input to require a gradient, as encoders of speech do."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x[:, None]
        if self.training:
            x.requires_grad = True
        return self.last(torch.tanh(self.first(x[:, 0])))


class NNXTold(nnx.Module):
    def __init__(self, wrong: bool = False) -> None:
        rngs = nnx.Rngs(0)
        self.first, self.last, self.wrong = nnx.Linear(6, 8, rngs=rngs), nnx.Linear(8, 3, rngs=rngs), wrong

    def __call__(self, x: Any) -> Any:
        return self.last((nnx.sigmoid if self.wrong else jnp.tanh)(self.first(x)))


class Loose(nn.Module):
    """Two layers of one shape, with another between them."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.wa, self.mid, self.ua, self.last = (
            nn.Linear(6, 8),
            nn.Linear(8, 8),
            nn.Linear(6, 4),
            nn.Linear(8, 8),
            nn.Linear(12, 3),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.first(x)
        query, other, key = self.wa(y), self.mid(x), self.ua(y)
        return self.last(torch.cat([torch.tanh(query) * torch.sin(key), other], -1))


class NNXLoose(nnx.Module):
    """The key is computed before the query."""

    def __init__(self, wrong: bool = False) -> None:
        rngs = nnx.Rngs(0)
        self.inp, self.att_k, self.more, self.att_q, self.out = (
            nnx.Linear(a, b, rngs=rngs) for a, b in ((6, 8), (8, 8), (6, 4), (8, 8), (12, 3))
        )
        self.wrong = wrong

    def __call__(self, x: Any) -> Any:
        y = self.inp(x)
        key, other, query = self.att_k(y), self.more(x), self.att_q(y)
        return self.out(jnp.concatenate([jnp.tanh(query) * jnp.sin(key), 1.1 * other if self.wrong else other], -1))


Port = Callable[[bool], Any]
# PyTorch's model, the port, an input, and where the port's mistake shows.
PAIRS: dict[str, tuple[Callable[[], nn.Module], Port, np.ndarray, str]] = {
    "patches of a dense layer": (Patches, NNXPatches, IMAGES, "(the network)"),
    "tied layers": (Tied, NNXTied, TOKENS, "(the network)"),
    "weight norm of the port's own": (Normed, NNXNormed, X, "(the network)"),
    "a table that is looked up earlier": (Stack, NNXStack, X, "block.0.0"),
    "layers called in another order": (Loose, NNXLoose, X, "(the network)"),
    "a flag set on the way": (Told, NNXTold, X, "(the network)"),
}


@pytest.mark.parametrize("name", PAIRS)
def test_a_faithful_port_pairs_without_names_and_a_mistake_is_found(name: str) -> None:
    model, port, x, layer = PAIRS[name]
    torch.manual_seed(0)
    reference = model()
    report = parity.check(reference, parity.move(reference, port(False), x), x, steps=1)
    assert report, report.failure()
    found = parity.check(reference, parity.move(reference, port(True), x), x, steps=1).models[0].findings
    assert len(found) == 1, found
    assert layer in found[0].layer


@pytest.mark.parametrize("shape", [(), (1,)])
def test_numbers_and_layers_that_only_together_tell_are_moved_rightly(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    model = Scalars()
    port = parity.move(model, NNXScalars(shape=shape), X)
    np.testing.assert_array_equal(port.u[...].ravel(), [np.float32(0.3)])
    np.testing.assert_array_equal(port.a.kernel[...], model.c1.weight.detach().numpy().T)
    with pytest.raises(UserError, match=r"g, h and the port's u, w hold as many numbers each"):
        parity.move(model, NNXScalars(wrong=True, shape=shape), X)
    moved = parity.move(model, NNXScalars(wrong=True, shape=shape), X, names={"g": "u", "h": "w"})
    assert not parity.check(model, moved, X, steps=1, names={"g": "u", "h": "w"})


class Gated(nn.Module):
    """A gated unit: gate and value in one layer, or in two."""

    def __init__(self, fused: bool) -> None:
        super().__init__()
        if fused:
            self.gate_up_proj = nn.Linear(6, 14)
        else:
            self.gate_proj, self.up_proj = nn.Linear(6, 7), nn.Linear(6, 7)
        self.down_proj = nn.Linear(7, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        both = hasattr(self, "gate_up_proj")
        gate, up = self.gate_up_proj(x).chunk(2, -1) if both else (self.gate_proj(x), self.up_proj(x))
        return self.down_proj(F.silu(gate) * up)


class NNXGated(nnx.Module):
    def __init__(self, fused: bool, rngs: nnx.Rngs) -> None:
        if fused:
            self.gate_up_proj = nnx.Linear(6, 14, rngs=rngs)
        else:
            self.gate_proj, self.up_proj = nnx.Linear(6, 7, rngs=rngs), nnx.Linear(6, 7, rngs=rngs)
        self.down_proj = nnx.Linear(7, 6, rngs=rngs)

    def __call__(self, x: Any) -> Any:
        both = hasattr(self, "gate_up_proj")
        gate, up = jnp.split(self.gate_up_proj(x), 2, -1) if both else (self.gate_proj(x), self.up_proj(x))
        return self.down_proj(nnx.silu(gate) * up)


class TwoGated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Gated(True), Gated(False)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = x + block(x)
        return x


class NNXTwoGated(nnx.Module):
    """In this port the other block has both in one layer."""

    def __init__(self) -> None:
        self.blocks = nnx.List([NNXGated(False, nnx.Rngs(0)), NNXGated(True, nnx.Rngs(1))])

    def __call__(self, x: Any) -> Any:
        for block in self.blocks:
            x = x + block(x)
        return x


def test_the_only_layer_of_a_shape_in_another_block_is_not_the_same_layer() -> None:
    torch.manual_seed(0)
    model = TwoGated()
    report = parity.check(model, parity.move(model, NNXTwoGated(), X), X, steps=1)
    assert report, report.failure()


class Blocks(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(6, 6), nn.LayerNorm(6), nn.Linear(6, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(F.relu(self.norm(self.first(x))))


class NNXBlocks(nnx.Module):
    """A port that builds a norm and forgets to call it."""

    def __init__(self, more: bool = False) -> None:
        rngs = nnx.Rngs(0)
        self.first, self.last = nnx.Linear(6, 6, rngs=rngs), nnx.Linear(6, 6, rngs=rngs)
        self.norm_a = nnx.LayerNorm(6, epsilon=1e-5, rngs=rngs)
        self.norm_b = nnx.LayerNorm(6, epsilon=1e-5, rngs=rngs) if more else None

    def __call__(self, x: Any) -> Any:
        return self.last(nnx.relu(self.first(x)))


def test_a_layer_that_the_port_forgets_to_call_is_paired_and_found() -> None:
    torch.manual_seed(0)
    model = Blocks()
    port = parity.move(model, NNXBlocks(), X)
    np.testing.assert_array_equal(port.norm_a.scale[...], model.norm.weight.detach().numpy())
    report = parity.check(model, port, X, steps=1)
    assert report.exit_code == 1
    assert report.models[0].findings[0].layer in ("norm", "(the network)")


def test_the_error_names_layers_that_the_port_never_calls() -> None:
    with pytest.raises(UserError, match=r"nnx never calls norm_a \(affine.*which its code may have forgotten"):
        parity.move(Blocks(), NNXBlocks(more=True), X)
