"""Projections of several widths: one tensor in PyTorch, and several in the port's own forms."""

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

WIDTH, HEADS, DEPTH, VALUE, RANK, GROUPS = 10, 4, 3, 5, 6, 2
INPUTS = np.random.default_rng(0).standard_normal((2, 7, WIDTH)).astype(np.float32)


def kernel(rngs: nnx.Rngs, *shape: int) -> nnx.Param[jax.Array]:
    return nnx.Param(0.3 * jax.random.normal(rngs.params(), shape))


class Latent(nn.Module):
    """Keys and values come from one latent vector; each head has its part of both (DeepSeek-V2's attention)."""

    def __init__(self, woven: bool = True) -> None:
        super().__init__()
        self.q_proj, self.kv_a_proj = nn.Linear(WIDTH, HEADS * DEPTH, bias=False), nn.Linear(WIDTH, RANK, bias=False)
        self.kv_b_proj = nn.Linear(RANK, HEADS * (DEPTH + VALUE), bias=False)
        self.o_proj, self.woven = nn.Linear(HEADS * VALUE, WIDTH, bias=False), woven

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, both = self.q_proj(x).unflatten(-1, (HEADS, -1)), self.kv_b_proj(self.kv_a_proj(x))
        if self.woven:
            k, v = both.unflatten(-1, (HEADS, -1)).split((DEPTH, VALUE), -1)
        else:
            k, v = (y.unflatten(-1, (HEADS, -1)) for y in both.split((HEADS * DEPTH, HEADS * VALUE), -1))
        weights = torch.einsum("bqhd,bkhd->bhqk", q, k).softmax(-1)
        return self.o_proj(torch.einsum("bhqk,bkhd->bqhd", weights, v).flatten(-2))


class Absorbed(nnx.Module):
    """The same, with one kernel (rank, heads, depth) for keys and one for values."""

    def __init__(self, wrong: bool = False) -> None:
        rngs, self.wrong = nnx.Rngs(0), wrong
        self.wq, self.w_dkv = kernel(rngs, WIDTH, HEADS, DEPTH), kernel(rngs, WIDTH, RANK)
        self.w_uk, self.w_uv = kernel(rngs, RANK, HEADS, DEPTH), kernel(rngs, RANK, HEADS, VALUE)
        self.wo = kernel(rngs, HEADS, VALUE, WIDTH)

    def __call__(self, x: jax.Array) -> jax.Array:
        q, latent = jnp.einsum("bli,ihd->blhd", x, self.wq[...]), x @ self.w_dkv[...]
        k, v = (jnp.einsum("blr,rhd->blhd", latent, w[...]) for w in (self.w_uk, self.w_uv))
        scores = jnp.einsum("bqhd,bkhd->bhqk", q, k) * (1.01 if self.wrong else 1)
        return jnp.einsum("bhqk,bkhd,hdo->bqo", jax.nn.softmax(scores), v, self.wo[...])


class Grouped(nn.Module):
    """Query, key and value in one projection, maybe with fewer heads of keys and values."""

    def __init__(self, groups: int = GROUPS) -> None:
        super().__init__()
        self.groups = groups
        self.qkv = nn.Linear(WIDTH, (HEADS + 2 * groups) * DEPTH)
        self.out = nn.Linear(HEADS * DEPTH, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (-1, DEPTH)).split((HEADS, self.groups, self.groups), -2)
        k, v = (y.repeat_interleave(HEADS // self.groups, -2) for y in (k, v))
        weights = torch.einsum("bqhd,bkhd->bhqk", q, k).softmax(-1)
        return self.out(torch.einsum("bhqk,bkhd->bqhd", weights, v).flatten(-2))


class InKernels(nnx.Module):
    """The same with own kernels, flat or per head."""

    def __init__(self, flat: bool, groups: int = GROUPS, names: str = "wq wk wv wo bq bk bv bo") -> None:
        rngs, self.names = nnx.Rngs(0), names.split()
        for name, heads in zip(self.names, (HEADS, groups, groups), strict=False):
            setattr(self, name, kernel(rngs, WIDTH, *((heads * DEPTH,) if flat else (heads, DEPTH))))
        for name, heads in zip(self.names[4:], (HEADS, groups, groups), strict=False):
            setattr(self, name, kernel(rngs, *((heads * DEPTH,) if flat else (heads, DEPTH))))
        setattr(self, self.names[3], kernel(rngs, HEADS * DEPTH, WIDTH))
        setattr(self, self.names[7], kernel(rngs, WIDTH))

    def __call__(self, x: jax.Array) -> jax.Array:
        *kernels, out = (getattr(self, name)[...] for name in self.names[:4])
        *biases, last = (getattr(self, name)[...] for name in self.names[4:])
        q, k, v = (
            (x @ w.reshape(WIDTH, -1) + b.reshape(-1)).reshape(*x.shape[:2], -1, DEPTH)
            for w, b in zip(kernels, biases, strict=True)
        )
        k, v = (jnp.repeat(y, HEADS // y.shape[-2], -2) for y in (k, v))
        weights = jax.nn.softmax(jnp.einsum("bqhd,bkhd->bhqk", q, k))
        return jnp.einsum("bhqk,bkhd->bqhd", weights, v).reshape(*x.shape[:2], -1) @ out + last


@pytest.mark.parametrize("woven", [True, False])
def test_parts_of_heads_in_kernels_of_several_depths(woven: bool) -> None:
    torch.manual_seed(0)
    ours = Latent(woven).eval()
    report = parity.check(ours, parity.move(ours, Absorbed(), INPUTS), INPUTS, steps=1)
    assert report, str(report)


@pytest.mark.parametrize("names", ["wq wk wv wo bq bk bv bo", "q k v o q_b k_b v_b o_b"])
@pytest.mark.parametrize("groups", [GROUPS, HEADS])
@pytest.mark.parametrize("flat", [True, False])
def test_fused_projection_and_own_kernels(flat: bool, groups: int, names: str) -> None:
    torch.manual_seed(0)
    ours = Grouped(groups).eval()
    report = parity.check(ours, parity.move(ours, InKernels(flat, groups, names), INPUTS), INPUTS, steps=1)
    assert report, str(report)


def test_mistake_behind_kernels_of_several_depths() -> None:
    torch.manual_seed(0)
    ours = Latent().eval()
    report = parity.check(ours, parity.move(ours, Absorbed(wrong=True), INPUTS), INPUTS, steps=1)
    assert not report
    (finding,) = report.models[0].findings
    assert "1.01" in finding.text or "0.99" in finding.text, finding.text


class Stack(nn.Module):
    def __init__(self, block: type[nn.Module]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(block() for _ in range(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = x + layer(x)
        return x


class Separate(nn.Module):
    """Query, key and value apart, with fewer heads of keys and values."""

    def __init__(self) -> None:
        super().__init__()
        self.q_proj = nn.Linear(WIDTH, HEADS * DEPTH, bias=False)
        self.k_proj, self.v_proj = (nn.Linear(WIDTH, GROUPS * DEPTH, bias=False) for _ in range(2))
        self.o_proj = nn.Linear(HEADS * DEPTH, WIDTH, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = (f(x).unflatten(-1, (-1, DEPTH)) for f in (self.q_proj, self.k_proj, self.v_proj))
        k, v = (y.repeat_interleave(HEADS // GROUPS, -2) for y in (k, v))
        weights = torch.einsum("bqhd,bkhd->bhqk", q, k).softmax(-1)
        return self.o_proj(torch.einsum("bhqk,bkhd->bqhd", weights, v).flatten(-2))


class Scanned(nnx.Module):
    """All layers in one array each: the keys' and the values' kernels together, or all three."""

    def __init__(self, held: str) -> None:
        rngs, self.held = nnx.Rngs(0), held
        shapes = {
            "q_einsum": (3, HEADS, WIDTH, DEPTH),
            "kv_einsum": (3, 2, GROUPS, WIDTH, DEPTH),
            "qkv": (3, WIDTH, (HEADS + 2 * GROUPS) * DEPTH),
            "wq": (3, WIDTH, HEADS, DEPTH),
            "wk": (3, WIDTH, GROUPS, DEPTH),
            "wv": (3, WIDTH, GROUPS, DEPTH),
            "out": (3, HEADS, DEPTH, WIDTH),
        }
        for name in (*held.split(), "out"):
            setattr(self, name, kernel(rngs, *shapes[name]))

    def projected(self, x: jax.Array, w: dict[str, jax.Array]) -> list[jax.Array]:
        if "qkv" in w:
            y = (x @ w["qkv"]).reshape(*x.shape[:2], -1, DEPTH)
            return jnp.split(y, (HEADS, HEADS + GROUPS), -2)
        if "wq" in w:
            return [jnp.einsum("bli,ihd->blhd", x, w[name]) for name in ("wq", "wk", "wv")]
        k, v = jnp.einsum("bli,phid->pblhd", x, w["kv_einsum"])
        return [jnp.einsum("bli,hid->blhd", x, w["q_einsum"]), k, v]

    def __call__(self, x: jax.Array) -> jax.Array:
        def layer(x: jax.Array, w: dict[str, jax.Array]) -> tuple[jax.Array, None]:
            q, k, v = self.projected(x, w)
            k, v = (jnp.repeat(y, HEADS // GROUPS, -2) for y in (k, v))
            weights = jax.nn.softmax(jnp.einsum("bqhd,bkhd->bhqk", q, k))
            return x + jnp.einsum("bhqk,bkhd,hdo->bqo", weights, v, w["out"]), None

        return jax.lax.scan(layer, x, {name: getattr(self, name)[...] for name in (*self.held.split(), "out")})[0]


class GroupedWithoutBias(Grouped):
    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(WIDTH, (HEADS + 2 * GROUPS) * DEPTH, bias=False)
        self.out = nn.Linear(HEADS * DEPTH, WIDTH, bias=False)


@pytest.mark.parametrize(
    ("block", "held"),
    [
        (Separate, "q_einsum kv_einsum"),
        (Separate, "qkv"),
        (Separate, "wq wk wv"),
        (GroupedWithoutBias, "qkv"),
        (GroupedWithoutBias, "wq wk wv"),
    ],
)
def test_layers_in_one_array_that_is_fused_otherwise(block: type[nn.Module], held: str) -> None:
    torch.manual_seed(0)
    ours = Stack(block).eval()
    report = parity.check(ours, parity.move(ours, Scanned(held), INPUTS), INPUTS, steps=1)
    assert report, str(report)
