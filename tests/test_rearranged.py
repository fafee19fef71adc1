"""Tensors that the two models hold in other layers and in other forms."""

from __future__ import annotations

from collections import OrderedDict
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
from parity.api import paired
from parity.pairing import ordering
from ports import UserError
from ports.weights.form.rearrangement import Gathering, Layout, Rearrangement, layouts

pytestmark = pytest.mark.usefixtures("quick")

WIDTH, HEADS = 6, 2
INPUTS = np.random.default_rng(0).standard_normal((3, 4, WIDTH)).astype(np.float32)


def kernel(rngs: nnx.Rngs, *shape: int) -> nnx.Param[jax.Array]:
    return nnx.Param(0.3 * jax.random.normal(rngs.params(), shape))


# --- attention: one projection of query, key and value, or three


class Fused(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.proj = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = (y.unflatten(-1, (HEADS, -1)).transpose(1, 2) for y in self.qkv(x).chunk(3, -1))
        weights = (q @ k.transpose(-1, -2) / (WIDTH // HEADS) ** 0.5).softmax(-1)
        return self.proj((weights @ v).transpose(1, 2).flatten(-2))


def attended(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    """Each (batch, length, heads, depth)."""
    weights = jax.nn.softmax(jnp.einsum("bqhd,bkhd->bhqk", q, k) / q.shape[-1] ** 0.5)
    return jnp.einsum("bhqk,bkhd->bqhd", weights, v)


class Separate(nnx.Module):
    def __init__(self) -> None:
        rngs = nnx.Rngs(0)
        self.query, self.key, self.value = (nnx.Linear(WIDTH, WIDTH, rngs=rngs) for _ in range(3))
        self.out = nnx.Linear(WIDTH, WIDTH, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        q, k, v = (layer(x).reshape(*x.shape[:2], HEADS, -1) for layer in (self.query, self.key, self.value))
        return self.out(attended(q, k, v).reshape(x.shape))


class PerHead(nnx.Module):
    """One kernel (width, 3, heads, depth)."""

    def __init__(self, wrong: bool = False) -> None:
        rngs = nnx.Rngs(0)
        self.qkv = nnx.LinearGeneral(WIDTH, (3, HEADS, WIDTH // HEADS), rngs=rngs)
        self.proj = nnx.LinearGeneral((HEADS, WIDTH // HEADS), WIDTH, axis=(-2, -1), rngs=rngs)
        self.wrong = wrong

    def __call__(self, x: jax.Array) -> jax.Array:
        q, k, v = jnp.moveaxis(self.qkv(x), -3, 0)
        return self.proj(attended(q, k, v) * (1.01 if self.wrong else 1))


class InOneArray(nnx.Module):
    """Own parameters: (3, width, heads, depth) and (heads, depth, width)."""

    def __init__(self, order: str = "qkv") -> None:
        rngs, depth, self.order = nnx.Rngs(0), WIDTH // HEADS, order
        self.qkv, self.qkv_bias = kernel(rngs, 3, WIDTH, HEADS, depth), kernel(rngs, 3, HEADS, depth)
        self.proj, self.proj_bias = kernel(rngs, HEADS, depth, WIDTH), kernel(rngs, WIDTH)

    def __call__(self, x: jax.Array) -> jax.Array:
        parts = jnp.einsum("bli,pihd->pblhd", x, self.qkv[...]) + self.qkv_bias[...][:, None, None]
        q, k, v = (parts[self.order.index(name)] for name in "qkv")
        return jnp.einsum("blhd,hdo->blo", attended(q, k, v), self.proj[...]) + self.proj_bias[...]


class Apart(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (nn.Linear(WIDTH, WIDTH) for _ in range(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = (f(x).unflatten(-1, (HEADS, -1)).transpose(1, 2) for f in (self.q_proj, self.k_proj, self.v_proj))
        weights = (q @ k.transpose(-1, -2) / (WIDTH // HEADS) ** 0.5).softmax(-1)
        return self.o_proj((weights @ v).transpose(1, 2).flatten(-2))


class Library(nnx.Module):
    def __init__(self) -> None:
        self.attn = nnx.MultiHeadAttention(HEADS, WIDTH, decode=False, rngs=nnx.Rngs(0))

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.attn(x)


# --- own classes and the library's


class OwnNorm(nn.Module):
    def __init__(self, gain: str = "weight") -> None:
        super().__init__()
        self.gain = gain
        self.register_parameter(gain, nn.Parameter(torch.randn(WIDTH)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6) * getattr(self, self.gain)


class Conv1D(nn.Module):
    """GPT-2's: (in, out)."""

    def __init__(self, ins: int, outs: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(ins, outs)), nn.Parameter(torch.randn(outs))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.weight + self.bias


class OwnDense(nnx.Module):
    def __init__(self, ins: int, outs: int, rngs: nnx.Rngs) -> None:
        self.w, self.b = kernel(rngs, ins, outs), kernel(rngs, outs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return x @ self.w[...] + self.b[...]


class Mixed(nnx.Module):
    """A norm of the library's, and layers of its own."""

    def __init__(self, epsilon: float = 1e-6) -> None:
        rngs = nnx.Rngs(0)
        self.norm = nnx.RMSNorm(WIDTH, epsilon=epsilon, rngs=rngs)
        self.a, self.b = OwnDense(WIDTH, WIDTH, rngs), OwnDense(WIDTH, WIDTH, rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.b(jnp.tanh(self.a(self.norm(x))))


def mixed() -> nn.Module:
    return nn.Sequential(OwnNorm(), nn.Linear(WIDTH, WIDTH), nn.Tanh(), nn.Linear(WIDTH, WIDTH))


class InLibraryLayers(linen.Module):
    @linen.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return linen.Dense(WIDTH)(linen.tanh(linen.Dense(2 * WIDTH)(x)))


# --- lists and arrays


class Experts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gate, self.experts = nn.Linear(WIDTH, 3), nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.register_buffer("mask", torch.ones(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        shares = (self.gate(x) * self.mask).softmax(-1)
        return torch.stack([expert(x) for expert in self.experts], -1) @ shares.unsqueeze(-1)


class OneArray(nnx.Module):
    def __init__(self) -> None:
        rngs = nnx.Rngs(0)
        self.gate = nnx.Linear(WIDTH, 3, rngs=rngs)
        self.kernel, self.bias = kernel(rngs, 3, WIDTH, WIDTH), kernel(rngs, 3, WIDTH)

    def __call__(self, x: jax.Array) -> jax.Array:
        y = jnp.einsum("bli,eio->bleo", x, self.kernel[...]) + self.bias[...]
        return jnp.einsum("bleo,ble->blo", y, jax.nn.softmax(self.gate(x)))[..., None]


def in_linen(module: linen.Module) -> tuple[linen.Module, Any]:
    return module, module.init(jax.random.key(0), INPUTS)


PAIRS: dict[str, tuple[Callable[[], nn.Module], Callable[[], Any]]] = {
    "fused-separate": (Fused, Separate),
    "fused-per-head": (Fused, PerHead),
    "fused-in-one-array": (Fused, InOneArray),
    "separate-in-one-array": (Apart, InOneArray),
    "separate-in-another-order": (Apart, lambda: InOneArray("kvq")),
    "separate-library": (Apart, Library),
    "own-and-library": (mixed, Mixed),
    "inputs-first": (
        lambda: nn.Sequential(Conv1D(WIDTH, 2 * WIDTH), nn.Tanh(), Conv1D(2 * WIDTH, WIDTH)),
        lambda: in_linen(InLibraryLayers()),
    ),
    "list-and-array": (Experts, OneArray),
}


def made(case: str) -> tuple[nn.Module, Any]:
    ours, port = PAIRS[case]
    torch.manual_seed(0)
    return ours().eval(), port()


@pytest.mark.sample(1)
@pytest.mark.parametrize("case", PAIRS)
def test_moved_weights_are_those_of_pytorch(case: str) -> None:
    ours, port = made(case)
    report = parity.check(ours, parity.move(ours, port, INPUTS), INPUTS, steps=1)
    assert report, str(report)


class LlamaExpert(nn.Module):
    """A gated MLP with the names of Meta's Llama: w1 is the gate, w3 goes up, and w2 down."""

    def __init__(self) -> None:
        super().__init__()
        self.w1, self.w2, self.w3 = (nn.Linear(i, o, bias=False) for i, o in ((6, 9), (9, 6), (6, 9)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.w2(nn.functional.silu(self.w1(x)) * self.w3(x))


class Routed(nn.Module):
    """Each token goes through the experts with the two largest shares."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.experts = nn.Linear(WIDTH, 3), nn.ModuleList(LlamaExpert() for _ in range(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        shares, chosen = self.gate(x).softmax(-1).topk(2, -1)
        shares, y = shares / shares.sum(-1, keepdim=True), torch.zeros_like(x)
        for i, expert in enumerate(self.experts):
            *at, which = torch.where(chosen == i)
            y[at[0], at[1]] += shares[at[0], at[1], which, None] * expert(x[at[0], at[1]])
        return y


class SpeltOut(nnx.Module):
    """The same with arrays of all experts, under the words for the layers."""

    def __init__(self, wrong: bool) -> None:
        rngs = nnx.Rngs(0)
        self.router, self.wrong = nnx.Linear(WIDTH, 3, rngs=rngs), wrong
        self.gate_proj, self.up_proj = kernel(rngs, 3, WIDTH, 9), kernel(rngs, 3, WIDTH, 9)
        self.down_proj = kernel(rngs, 3, 9, WIDTH)

    def __call__(self, x: jax.Array) -> jax.Array:
        shares, chosen = jax.lax.top_k(jax.nn.softmax(self.router(x)), 2)
        shares = shares if self.wrong else shares / shares.sum(-1, keepdims=True)
        gate, up = (jnp.einsum("bli,eio->bleo", x, w[...]) for w in (self.gate_proj, self.up_proj))
        y = jnp.einsum("bleo,eoi->blei", jax.nn.silu(gate) * up, self.down_proj[...])
        return jnp.einsum("blei,blke,blk->bli", y, jax.nn.one_hot(chosen, 3), shares)


@pytest.mark.parametrize("wrong", [False, True])
def test_names_of_llama_tell_which_layer_is_which_behind_a_mistake(wrong: bool) -> None:
    torch.manual_seed(0)
    ours = Routed().eval()
    report = parity.check(ours, parity.move(ours, SpeltOut(wrong), INPUTS), INPUTS, steps=0)
    assert [f.trap for f in report.models[0].findings] == ["router-not-renormalised"] * wrong


class BeforeGelu(nnx.Module):
    def __init__(self) -> None:
        rngs = nnx.Rngs(0)
        self.attn, self.out = nnx.MultiHeadAttention(HEADS, WIDTH, decode=False, rngs=rngs), nnx.Linear(6, 6, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.out(nnx.gelu(self.attn(x)))


def test_a_mistake_behind_an_attention_does_not_hide_which_part_is_which() -> None:
    torch.manual_seed(0)
    layers = {"attn": Apart(), "act": nn.GELU(), "out": nn.Linear(WIDTH, 6)}
    ours = nn.Sequential(OrderedDict(layers)).eval()
    report = parity.check(ours, parity.move(ours, BeforeGelu(), INPUTS), INPUTS, steps=0)
    assert [f.trap for f in report.models[0].findings] == ["gelu-tanh"]


class BehindSine(nnx.Module):
    def __init__(self) -> None:
        rngs = nnx.Rngs(0)
        self.attn, self.out = nnx.MultiHeadAttention(HEADS, WIDTH, decode=False, rngs=rngs), nnx.Linear(6, 4, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.out(self.attn(jnp.sin(3 * x)))


def test_a_mistake_in_front_of_an_attention_does_not_hide_which_part_is_which() -> None:
    torch.manual_seed(0)
    attn = Fused()
    layers = {"act": nn.GELU(), "attn": attn, "out": nn.Linear(WIDTH, 4)}
    ours = nn.Sequential(OrderedDict(layers)).eval()
    moved: Any = parity.move(ours, BehindSine(), INPUTS)
    parts = zip("qkv", (moved.attn.query, moved.attn.key, moved.attn.value), attn.qkv.weight.chunk(3), strict=True)
    for name, got, expected in parts:
        assert np.array_equal(got.kernel[...].reshape(WIDTH, WIDTH), expected.detach().numpy().T), name
    assert not parity.check(ours, moved, INPUTS, steps=0)


class Named(nn.Module):
    """Gives its output under a name."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"hidden": self.net(x)}


def test_outputs_of_other_names_prove_a_pairing(monkeypatch: pytest.MonkeyPatch) -> None:
    class Port(nnx.Module):
        def __init__(self) -> None:
            rngs = nnx.Rngs(0)
            self.value, self.weight, self.end, self.out = (nnx.Linear(WIDTH, WIDTH, rngs=rngs) for _ in range(4))

        def __call__(self, x: jax.Array) -> jax.Array:
            value, weight = (layer(x).reshape(*x.shape[:2], HEADS, -1) for layer in (self.value, self.weight))
            return self.out(attended(weight, self.end(x).reshape(weight.shape), value).reshape(x.shape))

    monkeypatch.setattr(ordering, "_by_parts", None)
    torch.manual_seed(0)
    ours = Named(Apart()).eval()
    report = parity.check(ours, parity.move(ours, Port(), INPUTS), INPUTS, steps=0)
    assert report, str(report)


def test_a_wrong_order_of_parts_is_a_finding() -> None:
    """The weights were written by hand: query, key and value as the port does not read them."""
    ours, port = made("fused-in-one-array")
    parity.move(ours, port, INPUTS)
    port.qkv.set_value(port.qkv[...][jnp.array([1, 0, 2])])
    port.qkv_bias.set_value(port.qkv_bias[...][jnp.array([1, 0, 2])])
    report = parity.check(ours, port, INPUTS, steps=0)
    assert [f.layer for f in report.models[0].findings] == ["qkv.weight", "qkv.bias"]


def test_other_numbers_are_a_finding_of_their_tensor() -> None:
    ours, port = made("list-and-array")
    parity.move(ours, port, INPUTS)
    port.kernel.set_value(port.kernel[...].at[1].mul(1.5))
    report = parity.check(ours, port, INPUTS, steps=0)
    assert [(f.layer, f.trap) for f in report.models[0].findings] == [("experts.1.weight", "weight-scaled")]


def test_a_mistake_between_rearranged_layers_is_found() -> None:
    torch.manual_seed(0)
    ours = Fused().eval()
    report = parity.check(ours, parity.move(ours, PerHead(wrong=True), INPUTS), INPUTS, steps=0)
    assert not report


def test_an_epsilon_of_a_library_norm_against_an_own_one_is_found() -> None:
    ours, _ = made("own-and-library")
    report = parity.check(ours, parity.move(ours, Mixed(1e-4), INPUTS), INPUTS, steps=0)
    assert [f.layer for f in report.models[0].findings] == ["0"]


class Twice(nn.Module):
    """Two square matrices whose use nothing but the run tells."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Parameter(torch.randn(WIDTH, WIDTH)), nn.Parameter(torch.randn(WIDTH, WIDTH))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.tanh(x @ self.first) @ self.second.T


class OtherTwice(nnx.Module):
    def __init__(self, act: Callable[[jax.Array], jax.Array] = jnp.tanh) -> None:
        rngs, self.act = nnx.Rngs(0), act
        self.alpha, self.beta = kernel(rngs, 1, WIDTH, WIDTH), kernel(rngs, 1, WIDTH, WIDTH)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.act(x @ self.beta[...][0]) @ self.alpha[...][0]


class Mirrored(Twice):
    """Matrices that are added to their transposes: no sum of products tells one from its transpose."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.tanh(x @ (self.first + self.first.T)) @ (self.second + self.second.T)


class OtherMirrored(OtherTwice):
    def __call__(self, x: jax.Array) -> jax.Array:
        first, second = (one[...][0] + one[...][0].T for one in (self.beta, self.alpha))
        return self.act(x @ first) @ second


def test_names_settle_tensors_and_their_form() -> None:
    torch.manual_seed(0)
    ours = Twice().eval()
    for act in (jnp.tanh, jnp.sin):  # computing tells what names do not, also behind a mistake
        for names in (None, {"first": "beta"}, {"first": "beta", "second": "alpha"}):
            moved = parity.move(ours, OtherTwice(act), INPUTS, names=names)
            assert np.array_equal(moved.alpha[...][0], ours.second.detach().numpy().T)
    names = {"first": "beta", "second": "alpha"}
    with pytest.raises(UserError, match=r"forms of PyTorch's first fit .* names=\{'first': 'beta: "):
        parity.move(Mirrored(), OtherMirrored(jnp.sin), INPUTS, names=names)
    moved = parity.move(ours, OtherTwice(), INPUTS, names={"first": "beta", "second": "alpha"})
    assert np.array_equal(moved.alpha[...][0], ours.second.detach().numpy().T)
    assert parity.check(ours, moved, INPUTS, steps=0, names={"second": "alpha", "first": "beta"})
    names = {"second": "alpha: reshape (1, 6, 6)", "first": "beta: reshape (1, 6, 6)"}
    assert not parity.check(ours, parity.move(ours, OtherTwice(), INPUTS, names=names), INPUTS, steps=0, names=names)


@pytest.mark.parametrize(
    ("names", "said"),
    [
        ({"first": "alpha: flip"}, r"got the form 'flip', expected one of: "),
        ({"first + third": "alpha"}, r"no tensor of PyTorch's that is left is called 'third'; near: \['first'\]"),
        ({"first": "gamma: same"}, r"no tensor of nnx's that is left is called 'gamma'"),
        ({"nothing": None}, r"neither PyTorch nor nnx has such a layer or tensor"),
        ({"first": 3}, r"expected a name, and a name or None"),
        ({"first + second": "alpha"}, r"cannot hold the same numbers"),
    ],
)
@pytest.mark.usefixtures("no_type_checks")
def test_a_wrong_entry_of_names_says_what_is_wrong(names: Any, said: str) -> None:
    with pytest.raises(UserError, match=said):
        parity.move(Twice(), OtherTwice(), INPUTS, names=names)


def test_what_has_no_counterpart_is_named() -> None:
    class Extra(Twice):
        def __init__(self) -> None:
            super().__init__()
            self.idle = nn.Parameter(torch.randn(5))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x) + 0 * self.idle.sum()

    names: dict[str, str | None] = {"first": "beta", "second": "alpha"}
    with pytest.raises(UserError, match=r"names=\{'idle': None\}"):
        parity.move(Extra(), OtherTwice(), INPUTS, names=names)
    ours = Extra().eval()
    moved = parity.move(ours, OtherTwice(), INPUTS, names=names | {"idle": None})
    report = parity.check(ours, moved, INPUTS, steps=0, names=names | {"idle": None})
    assert report, str(report)
    assert "idle: given: no counterpart" in report.models[0].pairing


class Depthwise(nn.Module):
    """Uses the tensors of a convolution that it never calls."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(WIDTH, WIDTH, 3, groups=WIDTH)
        self.spare = nn.Linear(WIDTH, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows = nn.functional.pad(x.transpose(1, 2), (2, 0))
        return nn.functional.conv1d(rows, self.conv.weight, self.conv.bias, groups=WIDTH).transpose(1, 2)


class TwoDepthwise(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.h = nn.ModuleList([Depthwise(), Depthwise()])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.h[1](self.h[0](x).relu())


class Causal(nnx.Module):
    def __init__(self) -> None:
        rngs = nnx.Rngs(0)
        self.conv = nnx.Dict(inner=nnx.Conv(WIDTH, WIDTH, 3, padding="CAUSAL", feature_group_count=WIDTH, rngs=rngs))
        self.idle = OwnDense(WIDTH, 3, rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.conv["inner"](x)


class Blocks(nnx.Module):
    def __init__(self) -> None:
        self.h = nnx.List([Causal(), Causal()])

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.h[1](nnx.relu(self.h[0](x)))


def test_tensors_that_are_used_need_a_counterpart_and_others_need_none() -> None:
    torch.manual_seed(0)
    ours = TwoDepthwise().eval()
    report = parity.check(ours, parity.move(ours, Blocks(), INPUTS), INPUTS, steps=1)
    assert report, str(report)
    assert "h.0.spare: never used in PyTorch, and absent from nnx" in report.models[0].pairing
    assert "h.0.idle.w: never used in nnx, and absent from PyTorch" in report.models[0].pairing


def test_a_bias_of_a_library_attention_that_pytorch_lacks_is_named() -> None:
    ours, port = made("separate-library")
    ours.v_proj = nn.Linear(WIDTH, WIDTH, bias=False)
    (finding,) = parity.check(ours, parity.move(ours, port, INPUTS), INPUTS, steps=1).models[0].findings
    assert (finding.layer, finding.trap) == ("v_proj", "bias-added")


class Norms(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleDict({"before": OwnNorm(), "after": OwnNorm()})
        self.mid = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers["after"](x + self.mid(self.layers["before"](x)))


class Scale(nnx.Module):
    def __init__(self) -> None:
        self.scale = nnx.Param(jnp.ones(WIDTH))

    def __call__(self, x: jax.Array) -> jax.Array:
        return x * jax.lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + 1e-6) * self.scale[...]


class ScaledNorms(nnx.Module):
    """In a module of another name, behind a mistake that hides which norm is which."""

    def __init__(self) -> None:
        self.layers = nnx.Dict(before=Scale(), after=Scale())
        self.mid = nnx.Linear(WIDTH, WIDTH, rngs=nnx.Rngs(0))

    def __call__(self, x: jax.Array) -> jax.Array:
        x = jnp.tanh(3 * x)
        return jnp.sin(self.layers["after"](x + jnp.cos(self.mid(self.layers["before"](x)))))


class Inside(nnx.Module):
    def __init__(self) -> None:
        self.model = ScaledNorms()

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.model(x)


def test_order_and_similar_names_tell_layers_where_computing_does_not() -> None:
    torch.manual_seed(0)
    ours, port = nn.Sequential(OrderedDict(text=Norms())), Inside()
    pairs = paired(ours, port, INPUTS, read=lambda both: both.pairing.pairs)
    told = {(p.torch.name, p.flax.name, p.why) for p in pairs}
    assert ("text.layers.after.weight", "model.layers.after.scale", "similar names") in told


def test_a_table_that_is_not_trained_needs_no_counterpart() -> None:
    ours, port = made("list-and-array")
    report = parity.check(ours, parity.move(ours, port, INPUTS), INPUTS, steps=0)
    assert "mask: not trained, and absent from nnx" in report.models[0].pairing


ANGLES = np.arange(4)[:, None] / 10000 ** (np.arange(0, WIDTH, 2) / WIDTH)
TABLE = np.stack([np.sin(ANGLES), np.cos(ANGLES)], -1).reshape(4, WIDTH)


class Positions(nn.Module):
    """The table is a buffer, or an embedding that is not trained; float32 rounds it."""

    def __init__(self, frozen: bool) -> None:
        super().__init__()
        self.fc, table = nn.Linear(WIDTH, 2), torch.tensor(TABLE, dtype=torch.float32)
        if frozen:
            self.table = nn.Embedding.from_pretrained(table)
        else:
            self.register_buffer("table", table)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        places = self.table.weight if isinstance(self.table, nn.Embedding) else self.table
        return self.fc(x + places)


class ComputedPositions(nnx.Module):
    def __init__(self, wrong: float = 0.0) -> None:
        self.fc, self.wrong = nnx.Linear(WIDTH, 2, rngs=nnx.Rngs(0)), wrong

    def __call__(self, x: jax.Array) -> jax.Array:
        angles = jnp.arange(4)[:, None] / 10000 ** (jnp.arange(0, WIDTH, 2) / WIDTH)
        table = jnp.stack([jnp.sin(angles), jnp.cos(angles)], -1).reshape(4, WIDTH)
        return self.fc(x + table + self.wrong)


@pytest.mark.parametrize("frozen", [False, True], ids=["buffer", "frozen"])
def test_a_table_that_pytorch_alone_holds_is_computed_again(frozen: bool) -> None:
    torch.manual_seed(0)
    ours = Positions(frozen).eval()
    report = parity.check(ours, parity.move(ours, ComputedPositions(), INPUTS), INPUTS, steps=0)
    assert report, str(report)
    assert not parity.check(ours, parity.move(ours, ComputedPositions(1e-7), INPUTS), INPUTS, steps=0)


# --- rearrangements by themselves


@pytest.mark.parametrize(
    ("old", "new"),
    [((6, 4), (4, 6)), ((6, 4), (4, 2, 3)), ((12, 4), (2, 3, 4, 2)), ((4, 1, 1), (4,)), ((), ()), ((2, 3, 4), (24,))],
)
def test_each_layout_can_be_undone(old: tuple[int, ...], new: tuple[int, ...]) -> None:
    array = np.random.default_rng(0).standard_normal(old)
    for layout in layouts(old, new):
        there = layout.apply(array)
        assert there.shape == new
        assert np.array_equal(layout.undo(there), array)


def test_layouts_of_other_sizes_are_none() -> None:
    assert layouts((6, 4), (5, 5)) == ()


def test_several_tensors_come_back_in_their_order() -> None:
    a, b, c = (np.full((2, 3), i) for i in range(3))
    gathering = Gathering((1, 1, 1), True, (2, 0, 1))
    form = Rearrangement(Layout((3, 2, 3), (0, 2, 1), (3, 3, 2), (3, 2, 3)), gathering=gathering)
    (one,) = form.to_flax((a, b, c))
    assert [int(part.flat[0]) for part in one] == [2, 0, 1]
    assert all(np.array_equal(x, y) for x, y in zip(form.to_torch((one,)), (a, b, c), strict=True))
    assert str(form) == "stack in the order [2, 0, 1], transpose (0, 2, 1)"
