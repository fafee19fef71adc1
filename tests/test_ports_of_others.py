"""What ports by other hands do otherwise: names, the axes of heads, what they hold, and in which form."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from torch import nn

import parity
from parity.numerics.layouts import aligned, cut
from ports import UserError

pytestmark = pytest.mark.usefixtures("quick")

WIDTH, HEADS, DEPTH = 8, 2, 4
INPUTS = np.random.default_rng(0).standard_normal((2, 5, WIDTH)).astype(np.float32)


class Norm(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(width) + 0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.weight * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)


class Attention(nn.Module):
    """Queries and keys are normalised head by head, as in Qwen 3."""

    def __init__(self) -> None:
        super().__init__()
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(4))
        self.q_norm, self.k_norm = Norm(DEPTH), Norm(DEPTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = (p(x).unflatten(-1, (HEADS, DEPTH)) for p in (self.q_proj, self.k_proj, self.v_proj))
        q, k, v = (y.transpose(1, 2) for y in (self.q_norm(q), self.k_norm(k), v))
        weights = (q @ k.mT * DEPTH**-0.5).softmax(-1)
        return self.o_proj((weights @ v).transpose(1, 2).flatten(2))


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.input_layernorm, self.self_attn, self.post_attention_layernorm = Norm(WIDTH), Attention(), Norm(WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 12), nn.Linear(12, WIDTH)
        self.gain = nn.Parameter(torch.randn(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.self_attn(self.input_layernorm(x))
        return x + self.gain * self.down(nn.functional.silu(self.up(self.post_attention_layernorm(x))))


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers, self.head = nn.ModuleList(Block() for _ in range(2)), nn.Linear(WIDTH, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = layer(x)
        return self.head(x)


class PortBlock(nnx.Module):
    def __init__(self, rngs: nnx.Rngs, scale: float, act: Any) -> None:
        self.scale, self.act = scale, act
        self.pre, self.mid = (nnx.RMSNorm(WIDTH, epsilon=1e-6, rngs=rngs) for _ in range(2))
        self.qn, self.kn = (nnx.RMSNorm(DEPTH, epsilon=1e-6, rngs=rngs) for _ in range(2))
        heads = {"use_bias": False, "rngs": rngs}
        self.to_q, self.to_k, self.to_v = (nnx.LinearGeneral(WIDTH, (HEADS, DEPTH), **heads) for _ in range(3))
        self.merge = nnx.LinearGeneral((HEADS, DEPTH), WIDTH, axis=(-2, -1), **heads)
        self.widen = nnx.Linear(WIDTH, 12, rngs=rngs)
        self.linear = nnx.Param(rngs.params.normal((12, WIDTH)))
        self.shift, self.strength = nnx.Param(jnp.zeros(WIDTH)), nnx.Param(jnp.zeros(()))

    def __call__(self, x: jax.Array) -> jax.Array:
        y = self.pre(x)
        q, k, v = self.qn(self.to_q(y)), self.kn(self.to_k(y)), self.to_v(y)
        weights = jax.nn.softmax(jnp.einsum("bqhd,bkhd->bhqk", q, k) * self.scale)
        x = x + self.merge(jnp.einsum("bhqk,bkhd->bqhd", weights, v))
        y = self.act(self.widen(self.mid(x))) @ self.linear[...] + self.shift[...]
        return x + self.strength[...] * y


class Port(nnx.Module):
    """Norms under other names, heads in an axis of their own, a layer in two parameters, and a number without axes."""

    def __init__(self, scale: float = DEPTH**-0.5, act: Any = jax.nn.silu) -> None:
        rngs = nnx.Rngs(0)
        self.blocks = nnx.List(PortBlock(rngs, scale, act) for _ in range(2))
        self.out = nnx.Linear(WIDTH, 3, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        for block in self.blocks:
            x = block(x)
        return self.out(x)


def checked(port: Any) -> parity.Report:
    torch.manual_seed(0)
    model = Model()
    return parity.check(model, parity.move(model, port, INPUTS), INPUTS, steps=1)


def test_a_faithful_port_pairs_without_names() -> None:
    report = checked(Port())
    assert report, str(report)


def test_a_mistake_before_a_projection_of_heads_is_not_the_projections() -> None:
    """The port's projection takes (batch, length, heads, depth), and gets PyTorch's input in that shape."""
    (finding,) = checked(Port(scale=WIDTH**-0.5)).models[0].findings
    assert (finding.layer, finding.trap) == ("layers.0.self_attn", "attention-scale-by-width")


def test_norms_are_told_apart_behind_a_mistake() -> None:
    """What each weight is multiplied with is computed from the same weights, whatever the activation is."""
    (finding,) = checked(Port(act=jnp.tanh)).models[0].findings
    assert (finding.layer, finding.also) == ("layers.0", ("layers.1",))


@pytest.mark.parametrize(
    ("a", "b", "fits"),
    [
        ((2, 5, 8), (2, 5, 2, 4), True),
        ((2, 6, 8), (2, 2, 3, 8), True),
        ((6, 4, 8), (2, 3, 4, 2, 4), True),
        ((2, 5, 8), (2, 8, 5), False),
        ((2, 5, 8), (2, 2, 4, 5), False),
        ((0, 4), (0, 2, 2), False),
        ((), (1,), True),
    ],
)
def test_one_array_is_another_one_cut(a: tuple[int, ...], b: tuple[int, ...], fits: bool) -> None:
    assert cut(a, b) is fits is cut(b, a)
    if fits:
        whole = np.arange(float(np.prod(a))).reshape(a)
        assert np.array_equal(aligned(whole.reshape(b), whole, cuts=True), whole)


class Mixed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer, self.W, self.a = (
            nn.Linear(WIDTH, WIDTH),
            nn.Parameter(torch.randn(8, 8)),
            nn.Parameter(torch.randn(8, 1)),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (self.layer(x) @ self.W) * self.a[:, 0]


class PortOfMixed(nnx.Module):
    def __init__(self) -> None:
        rngs = nnx.Rngs(0)
        self.layer = nnx.Linear(WIDTH, WIDTH, rngs=rngs)
        self.proj, self.att = nnx.Param(rngs.params.normal((8, 8))), nnx.Param(rngs.params.normal((8, 1)))

    def __call__(self, x: jax.Array) -> jax.Array:
        return (self.layer(x) @ self.proj[...].T) * self.att[...][:, 0]


@pytest.mark.parametrize("names", [None, {"W": "proj"}, {"W": "proj: transpose"}])
def test_a_square_matrix_under_another_name_is_moved_as_the_port_uses_it(names: Any) -> None:
    """A name says which tensor it is, and a form may stand behind a colon, of one tensor of several."""
    torch.manual_seed(0)
    model = Mixed()
    port = parity.move(model, PortOfMixed(), INPUTS, names=names)
    assert np.array_equal(port.proj[...], model.W.detach().numpy().T)
    assert parity.check(model, port, INPUTS, steps=0, names=names)


def test_an_entry_for_a_layer_and_one_for_its_tensor_are_refused() -> None:
    names = {"layer.weight": "layer.weight: same", "layer": "layer"}
    with pytest.raises(UserError, match="names: layer: got an entry for the layer and one for a tensor in it"):
        parity.move(Mixed(), PortOfMixed(), INPUTS, names=names)


class Spectral(nn.Module):
    """A complex weight (Fourier neural operator), and a layer after it."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(WIDTH, WIDTH, 3, dtype=torch.cfloat) / WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        waves = torch.fft.rfft(x.mT)
        return torch.fft.irfft(torch.einsum("bim,iom->bom", waves, self.weight), n=x.shape[1]).mT


class Operator(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.spectral, self.head = Spectral(), nn.Linear(WIDTH, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(nn.functional.gelu(self.spectral(x)))


class PortOfOperator(nnx.Module):
    def __init__(self, approximate: bool) -> None:
        rngs, self.approximate = nnx.Rngs(0), approximate
        self.spectral = PortOfSpectral(rngs)
        self.head = nnx.Linear(WIDTH, 3, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.head(nnx.gelu(self.spectral(x), approximate=self.approximate))


class PortOfSpectral(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.weight = nnx.Param(rngs.params.normal((WIDTH, WIDTH, 3)) + 0j)

    def __call__(self, x: jax.Array) -> jax.Array:
        waves = jnp.fft.rfft(x.swapaxes(1, 2))
        return jnp.fft.irfft(jnp.einsum("bim,iom->bom", waves, self.weight[...]), n=x.shape[1]).swapaxes(1, 2)


@pytest.mark.parametrize("approximate", [False, True])
def test_gradients_of_complex_weights_are_no_second_mistake(approximate: bool) -> None:
    torch.manual_seed(0)
    model = Operator()
    report = parity.check(model, parity.move(model, PortOfOperator(approximate), INPUTS), INPUTS, steps=1)
    assert [f.trap for f in report.models[0].findings] == (["gelu-tanh"] if approximate else [])


class Scores(nn.Module):
    def __init__(self, last: int) -> None:
        super().__init__()
        self.layer = nn.Linear(WIDTH, last)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x).squeeze(-1)


class PortOfScores(nnx.Module):
    def __init__(self, last: int, shape: tuple[int, ...]) -> None:
        self.layer, self.shape = nnx.Linear(WIDTH, last, rngs=nnx.Rngs(0)), shape

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.layer(x).reshape(self.shape)


@pytest.mark.parametrize(("last", "shape"), [(1, (2, 5, 1)), (4, (2, 5, 2, 2))])
def test_an_output_of_another_shape_is_a_mistake(last: int, shape: tuple[int, ...]) -> None:
    """Planted: a loss would broadcast it."""
    torch.manual_seed(0)
    model = Scores(last)
    report = parity.check(model, parity.move(model, PortOfScores(last, shape), INPUTS), INPUTS, steps=0)
    assert not report
    assert "shape" in str(report)
