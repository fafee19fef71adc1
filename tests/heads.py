"""Attention in which each side holds query, key and value otherwise: pairs for the tests of mappings."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from flax import linen, nnx
from torch import nn

WIDTH, HEADS, GROUPS, DEPTH, LAYERS = 8, 4, 2, 3, 2
INNER, NARROW = HEADS * DEPTH, GROUPS * DEPTH
X = np.random.default_rng(0).standard_normal((2, 5, WIDTH)).astype(np.float32)


# --- PyTorch


class Attention(nn.Module):
    """The sizes of query, key and value are numbers of heads; what `parts` gives is (batch, length, heads, depth)."""

    def __init__(self, bias: bool = True) -> None:
        super().__init__()
        self.out = nn.Linear(INNER, WIDTH, bias=bias)

    def parts(self, x: torch.Tensor) -> Any:
        raise NotImplementedError

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = (part.transpose(1, 2) for part in self.parts(x))
        k, v = (part.repeat_interleave(q.shape[1] // part.shape[1], 1) for part in (k, v))
        weights = (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).softmax(-1)
        return self.out((weights @ v).transpose(1, 2).flatten(-2))


class InOne(Attention):
    """(3, heads, depth), or with fewer heads of keys and values."""

    def __init__(self, groups: int = HEADS, bias: bool = True) -> None:
        super().__init__(bias)
        self.heads = [HEADS, groups, groups]
        self.qkv = nn.Linear(WIDTH, sum(self.heads) * DEPTH, bias=bias)

    def parts(self, x: torch.Tensor) -> Any:
        return self.qkv(x).unflatten(-1, (-1, DEPTH)).split(self.heads, -2)


class KeyValue(Attention):
    """The query alone, key and value in one."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.kv = nn.Linear(WIDTH, INNER), nn.Linear(WIDTH, 2 * INNER)

    def parts(self, x: torch.Tensor) -> Any:
        return [y.unflatten(-1, (-1, DEPTH)) for y in (self.q(x), *self.kv(x).chunk(2, -1))]


class ByHead(Attention):
    """(heads, 3, depth), as GPT-NeoX has it."""

    def __init__(self) -> None:
        super().__init__()
        self.query_key_value = nn.Linear(WIDTH, 3 * INNER)

    def parts(self, x: torch.Tensor) -> Any:
        return self.query_key_value(x).unflatten(-1, (HEADS, 3, DEPTH)).unbind(-2)


class ByGroup(Attention):
    """(groups, queries of the group and a key and a value, depth), as InternLM2 has it."""

    def __init__(self) -> None:
        super().__init__()
        self.wqkv = nn.Linear(WIDTH, INNER + 2 * NARROW)

    def parts(self, x: torch.Tensor) -> Any:
        y = self.wqkv(x).unflatten(-1, (GROUPS, HEADS // GROUPS + 2, DEPTH))
        return y[..., :-2, :].flatten(2, 3), y[..., -2, :], y[..., -1, :]


class Apart(Attention):
    def __init__(self, groups: int = HEADS) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(WIDTH, n * DEPTH) for n in (HEADS, groups, groups))

    def parts(self, x: torch.Tensor) -> Any:
        return [layer(x).unflatten(-1, (-1, DEPTH)) for layer in (self.query, self.key, self.value)]


class Library(nn.Module):
    """PyTorch's own: its inner width is that of its input."""

    def __init__(self) -> None:
        super().__init__()
        self.attn = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.attn(x, x, x, need_weights=False)[0]


class Blocks(nn.Module):
    def __init__(self, block: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(block() for _ in range(LAYERS))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = x + layer(x)
        return x


def stacked(block: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    return lambda: Blocks(block)


# --- NNX


def attended(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    """Each (batch, length, heads, depth)."""
    k, v = (jnp.repeat(part, q.shape[-2] // part.shape[-2], -2) for part in (k, v))
    weights = jax.nn.softmax(jnp.einsum("bqhd,bkhd->bhqk", q, k) / q.shape[-1] ** 0.5)
    return jnp.einsum("bhqk,bkhd->bqhd", weights, v)


class NnxLibrary(nnx.Module):
    def __init__(self, rngs: nnx.Rngs, inner: int = INNER, bias: bool = True) -> None:
        self.attention = nnx.MultiHeadAttention(
            HEADS, WIDTH, qkv_features=inner, decode=False, use_bias=bias, rngs=rngs
        )

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.attention(x)


class NnxHeads(nnx.Module):
    """Kernels (width, heads, depth), and (heads, depth, width)."""

    def __init__(self, rngs: nnx.Rngs, groups: int = HEADS) -> None:
        self.query, self.key, self.value = (
            nnx.LinearGeneral(WIDTH, (n, DEPTH), rngs=rngs) for n in (HEADS, groups, groups)
        )
        self.out = nnx.LinearGeneral((HEADS, DEPTH), WIDTH, axis=(-2, -1), rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.out(attended(self.query(x), self.key(x), self.value(x)))


class NnxInOne(nnx.Module):
    """One kernel (width, heads of all three, depth)."""

    def __init__(self, rngs: nnx.Rngs, groups: int = HEADS) -> None:
        self.heads = [HEADS, HEADS + groups]
        self.qkv = nnx.LinearGeneral(WIDTH, (HEADS + 2 * groups, DEPTH), rngs=rngs)
        self.out = nnx.LinearGeneral((HEADS, DEPTH), WIDTH, axis=(-2, -1), rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.out(attended(*jnp.split(self.qkv(x), self.heads, -2)))


class NnxThree(nnx.Module):
    """One kernel (width, 3, heads, depth)."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.qkv = nnx.LinearGeneral(WIDTH, (3, HEADS, DEPTH), rngs=rngs)
        self.out = nnx.LinearGeneral((HEADS, DEPTH), WIDTH, axis=(-2, -1), rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.out(attended(*jnp.moveaxis(self.qkv(x), -3, 0)))


class NnxByHead(nnx.Module):
    """One kernel (width, heads, 3, depth)."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.qkv = nnx.LinearGeneral(WIDTH, (HEADS, 3, DEPTH), rngs=rngs)
        self.out = nnx.LinearGeneral((HEADS, DEPTH), WIDTH, axis=(-2, -1), rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.out(attended(*jnp.moveaxis(self.qkv(x), -2, 0)))


class NnxByGroup(nnx.Module):
    """One kernel (width, groups, queries of the group and a key and a value, depth)."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.qkv = nnx.LinearGeneral(WIDTH, (GROUPS, HEADS // GROUPS + 2, DEPTH), rngs=rngs)
        self.out = nnx.LinearGeneral((HEADS, DEPTH), WIDTH, axis=(-2, -1), rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        y = self.qkv(x)
        return self.out(attended(y[..., :-2, :].reshape(*x.shape[:2], HEADS, DEPTH), y[..., -2, :], y[..., -1, :]))


class NnxBlocks(nnx.Module):
    def __init__(self, block: Callable[[nnx.Rngs], nnx.Module]) -> None:
        make = nnx.vmap(lambda rngs: block(rngs), in_axes=(0,), out_axes=0)
        self.layers = nnx.split_rngs(splits=LAYERS)(make)(nnx.Rngs(0))

    def __call__(self, x: jax.Array) -> jax.Array:
        def run(layer: Any, x: jax.Array) -> jax.Array:
            return x + layer(x)

        return nnx.scan(run, in_axes=(0, nnx.Carry), out_axes=nnx.Carry)(self.layers, x)


def in_nnx(block: Callable[..., nnx.Module], scan: bool = False, **settings: Any) -> Callable[[], nnx.Module]:
    def made(rngs: nnx.Rngs) -> nnx.Module:
        return block(rngs, **settings)

    return lambda: NnxBlocks(made) if scan else made(nnx.Rngs(0))


# --- Linen


class LinenLibrary(linen.Module):
    inner: int = INNER
    bias: bool = True

    @linen.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        attention = linen.MultiHeadDotProductAttention(
            HEADS, qkv_features=self.inner, out_features=WIDTH, use_bias=self.bias, name="attention"
        )
        return attention(x)


class LinenHeads(linen.Module):
    groups: int = HEADS

    @linen.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        heads = {"query": HEADS, "key": self.groups, "value": self.groups}
        q, k, v = (linen.DenseGeneral((n, DEPTH), name=name)(x) for name, n in heads.items())
        return linen.DenseGeneral(WIDTH, axis=(-2, -1), name="out")(attended(q, k, v))


class LinenBlocks(linen.Module):
    block: Callable[..., linen.Module]

    @linen.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        block = self.block

        class Residual(linen.Module):
            @linen.compact
            def __call__(self, x: jax.Array) -> tuple[jax.Array, None]:
                return x + block(name="attn")(x), None

        stack = linen.scan(Residual, variable_axes={"params": 0}, split_rngs={"params": True}, length=LAYERS)
        return stack(name="layers")(x)[0]


def in_linen(block: Callable[..., linen.Module], scan: bool = False, **settings: Any) -> Callable[[], Any]:
    def made(**name: Any) -> linen.Module:
        return block(**settings, **name)

    def port() -> Any:
        module = LinenBlocks(made) if scan else made()
        return module, module.init(jax.random.key(0), X)

    return port


def _grouped() -> nn.Module:
    return InOne(GROUPS)


PAIRS: dict[str, tuple[Callable[[], nn.Module], Callable[[], Any]]] = {
    "in-one, nnx library": (InOne, in_nnx(NnxLibrary)),
    "in-one without bias, nnx library": (lambda: InOne(bias=False), in_nnx(NnxLibrary, bias=False)),
    "in-one, linen library": (InOne, in_linen(LinenLibrary)),
    "in-one, nnx heads": (InOne, in_nnx(NnxHeads)),
    "in-one, linen heads": (InOne, in_linen(LinenHeads)),
    "key-value, nnx library": (KeyValue, in_nnx(NnxLibrary)),
    "key-value, linen library": (KeyValue, in_linen(LinenLibrary)),
    "key-value, nnx heads": (KeyValue, in_nnx(NnxHeads)),
    "key-value, linen heads": (KeyValue, in_linen(LinenHeads)),
    "by head, nnx library": (ByHead, in_nnx(NnxLibrary)),
    "by head, linen library": (ByHead, in_linen(LinenLibrary)),
    "by head, nnx heads": (ByHead, in_nnx(NnxHeads)),
    "by group, nnx heads": (ByGroup, in_nnx(NnxHeads, groups=GROUPS)),
    "by group, linen heads": (ByGroup, in_linen(LinenHeads, groups=GROUPS)),
    "grouped, nnx heads": (_grouped, in_nnx(NnxHeads, groups=GROUPS)),
    "grouped, linen heads": (_grouped, in_linen(LinenHeads, groups=GROUPS)),
    "grouped, nnx in one": (_grouped, in_nnx(NnxInOne, groups=GROUPS)),
    "apart, nnx in one": (Apart, in_nnx(NnxInOne)),
    "apart, nnx three": (Apart, in_nnx(NnxThree)),
    "apart, nnx by head": (Apart, in_nnx(NnxByHead)),
    "apart and grouped, nnx by group": (lambda: Apart(GROUPS), in_nnx(NnxByGroup)),
    "apart and grouped, nnx in one": (lambda: Apart(GROUPS), in_nnx(NnxInOne, groups=GROUPS)),
    "apart, nnx library": (Apart, in_nnx(NnxLibrary)),
    "library, nnx library": (Library, in_nnx(NnxLibrary, inner=WIDTH)),
    "library, linen library": (Library, in_linen(LinenLibrary, inner=WIDTH)),
    "in-one, nnx library in a scan": (stacked(InOne), in_nnx(NnxLibrary, scan=True)),
    "by head, nnx library in a scan": (stacked(ByHead), in_nnx(NnxLibrary, scan=True)),
    "by group, linen heads in a scan": (stacked(ByGroup), in_linen(LinenHeads, scan=True, groups=GROUPS)),
    "in-one, linen library in a scan": (stacked(InOne), in_linen(LinenLibrary, scan=True)),
    "grouped, nnx heads in a scan": (stacked(_grouped), in_nnx(NnxHeads, scan=True, groups=GROUPS)),
    "grouped, linen heads in a scan": (stacked(_grouped), in_linen(LinenHeads, scan=True, groups=GROUPS)),
    "apart, nnx three in a scan": (stacked(Apart), in_nnx(NnxThree, scan=True)),
    "apart and grouped, nnx in one in a scan": (
        stacked(lambda: Apart(GROUPS)),
        in_nnx(NnxInOne, scan=True, groups=GROUPS),
    ),
    "library, nnx library in a scan": (stacked(Library), in_nnx(NnxLibrary, scan=True, inner=WIDTH)),
    "library, linen library in a scan": (stacked(Library), in_linen(LinenLibrary, scan=True, inner=WIDTH)),
}
