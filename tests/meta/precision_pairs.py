"""Pairs that are right in working precision: what real ports write otherwise than PyTorch, without losing precision."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from flax import nnx
from torch import nn

import parity
from parity import subjects
from parity.options import PairOptions
from parity.running import isolation
from parity.running.subject import Subject

from .precision_networks import (
    FlaxConv,
    FlaxDecoder,
    FlaxEncoder,
    FlaxMlp,
    Ops,
    Setting,
    TorchConv,
    TorchDecoder,
    TorchEncoder,
    TorchMlp,
    numbers,
    pictures,
    rms_scaled_wide,
    words,
)

F = torch.nn.functional

# Where the types come from: the check casts both models, or each has a policy of its own.
CAST = Setting()
COMPUTED = Setting(jnp.bfloat16)
WHOLE = Setting(jnp.bfloat16, jnp.bfloat16)
BOTH = ("float32", "bfloat16")


@dataclass(frozen=True)
class Pair:
    """A network in both frameworks.

    Attributes:
        torch: makes it in PyTorch.
        flax: makes the port.
        feed: draws its inputs.
        setting: of the port.
        dtypes: in which it is run.
    """

    name: str
    torch: Callable[[], nn.Module]
    flax: Callable[[Setting], nnx.Module]
    feed: Callable[[np.random.Generator], np.ndarray]
    setting: Setting = field(default_factory=Setting)
    dtypes: Sequence[str] = BOTH

    def models(self, seed: int = 0) -> tuple[nn.Module, nnx.Module, np.ndarray]:
        """Return PyTorch's network, the port with its weights, and inputs; as a user would give them."""
        torch.manual_seed(seed)
        model, x = self.torch(), self.feed(np.random.default_rng(seed))
        if self.setting.dtype == jnp.bfloat16:
            model = model.to(torch.bfloat16)
        port = parity.move(model, self.flax(replace(self.setting, param_dtype=jnp.float32)), x)
        if self.setting.param_dtype == jnp.float32:
            return model, port, x
        whole = self.flax(self.setting)
        cast = jax.tree.map(lambda new, old: old.astype(new.dtype), nnx.state(whole, nnx.Param), _params(port))
        nnx.update(whole, cast)
        return model, whole, x

    @property
    def options(self) -> dict[str, Any]:
        """What the check is asked besides."""
        return {"steps": 0, "accept": ("bn-running-var",) if self.torch is TorchConv else ()}

    def subject(self) -> Subject:
        """Return the pair as the check sees it."""
        model, port, x = self.models()
        options = PairOptions(**self.options)
        with isolation.isolated():
            return subjects.of_pair(subjects.own_pair(model, port, (x,), options), options)


def _params(net: nnx.Module) -> Any:
    return nnx.state(net, nnx.Param)


def fresh(subject: Subject, feed: Callable[[np.random.Generator], np.ndarray], seed: int) -> Subject:
    """Return the subject with other weights and inputs, of sizes that are drawn too."""
    rng = np.random.default_rng([seed, 11])
    reference = copy.deepcopy(subject.reference)
    tensors = {**dict(reference.named_parameters()), **dict(reference.named_buffers())}
    for name, tensor in tensors.items():
        if tensor.is_floating_point():
            tensor.data = torch.as_tensor(_drawn(name, tuple(tensor.shape), rng)).to(tensor.dtype)
    x = feed(rng)
    if x.dtype.kind == "f":
        x = (rng.lognormal(0, 0.5) * (x + rng.normal(0, 0.5))).astype(np.float64)
    return replace(subject, reference=reference, probe=replace(subject.probe, inputs=(x,)), seed=seed)


def _drawn(name: str, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    if name.endswith("running_var"):
        return rng.uniform(0.5, 2, shape)
    if len(shape) < 2:
        return rng.normal(rng.choice([0.0, 0.5, 1.0]), 0.5, shape)
    return rng.normal(0, rng.lognormal(0.3, 0.5) / np.prod(shape[1:]) ** 0.5, shape)


# --- what a right port may compute otherwise


def attends(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    softmax: Callable[[jax.Array], jax.Array],
    *,
    first: bool = False,
    divides: bool = False,
    adds: bool = False,
) -> jax.Array:
    """Attention that scales its queries, divides, or adds its mask."""
    depth = q.shape[-1]
    q = q * depth**-0.5 if first else q
    scores = jnp.einsum("bqhd,bkhd->bhqk", q, k)
    scores = scores if first else scores / depth**0.5 if divides else scores * depth**-0.5
    seen = jnp.tril(jnp.ones(scores.shape[-2:], bool))
    if adds:
        scores = scores + jnp.where(seen, 0.0, -1e9).astype(scores.dtype)
    else:
        scores = jnp.where(seen, scores, jnp.finfo(scores.dtype).min)
    return jnp.einsum("bhqk,bkhd->bqhd", softmax(scores), v)


def by_hand(scores: jax.Array) -> jax.Array:
    """A softmax in float32 of its own."""
    wide = scores.astype(jnp.float32)
    powers = jnp.exp(wide - wide.max(-1, keepdims=True))
    return (powers / powers.sum(-1, keepdims=True)).astype(scores.dtype)


def rms_divided(x: jax.Array, scale: jax.Array) -> jax.Array:
    """RMSNorm with a root and a division."""
    wide = x.astype(jnp.float32)
    return (wide / jnp.sqrt(jnp.square(wide).mean(-1, keepdims=True) + 1e-6)).astype(x.dtype) * scale


def mixed_product(parts: jax.Array, gates: jax.Array) -> jax.Array:
    """The experts' sum as a product of matrices in float32."""
    return jnp.einsum("blew,ble->blw", parts.astype(jnp.float32), gates).astype(parts.dtype)


def fused(q: jax.Array, k: jax.Array, v: jax.Array, _: object) -> jax.Array:
    """JAX's own attention: scores and softmax in float32."""
    return jax.nn.dot_product_attention(q, k, v, is_causal=True)


def _mlp(name: str, act: Callable[[Any], Any], flax_act: Callable[[Any], Any], setting: Setting = CAST) -> Pair:
    setting = replace(setting, ops=Ops(act=flax_act))
    dtypes = BOTH if setting.dtype is None else ("bfloat16",)
    return Pair(f"mlp, {name}", lambda: TorchMlp(act), FlaxMlp, numbers, setting, dtypes)


def _encoder(name: str, ops: Ops, setting: Setting = CAST, fused: bool = False) -> Pair:
    dtypes = BOTH if setting.dtype is None else ("bfloat16",)
    return Pair(f"encoder, {name}", lambda: TorchEncoder(fused), FlaxEncoder, words, replace(setting, ops=ops), dtypes)


def _decoder(name: str, ops: Ops, setting: Setting = CAST, wide: bool = False) -> Pair:
    dtypes = BOTH if setting.dtype is None else ("bfloat16",)
    return Pair(f"decoder, {name}", lambda: TorchDecoder(wide), FlaxDecoder, words, replace(setting, ops=ops), dtypes)


ENCODERS: dict[str, Ops] = {
    "as PyTorch": Ops(),
    "scaled queries": Ops(attend=lambda *a: attends(*a, first=True)),
    "divided scores": Ops(attend=lambda *a: attends(*a, divides=True)),
    "added mask": Ops(attend=lambda *a: attends(*a, adds=True)),
    "softmax by hand": Ops(softmax=by_hand),
}
ACTS: dict[str, tuple[Callable[[Any], Any], Callable[[Any], Any]]] = {
    "gelu": (F.gelu, lambda x: jax.nn.gelu(x, approximate=False)),
    "gelu, tanh": (lambda x: F.gelu(x, approximate="tanh"), lambda x: jax.nn.gelu(x, approximate=True)),
    "silu": (F.silu, jax.nn.silu),
    "sigmoid": (torch.sigmoid, jax.nn.sigmoid),
    "softplus": (F.softplus, jax.nn.softplus),
    "relu": (F.relu, jax.nn.relu),
    "tanh": (torch.tanh, jnp.tanh),
    "elu": (F.elu, jax.nn.elu),
    "hardswish": (F.hardswish, jax.nn.hard_swish),
    "mish": (F.mish, jax.nn.mish),
}

FAITHFUL: tuple[Pair, ...] = (
    *(_mlp(name, *acts) for name, acts in ACTS.items()),
    _mlp("gelu, parameters in float32", *ACTS["gelu"], COMPUTED),
    _mlp("silu, all in bfloat16", *ACTS["silu"], WHOLE),
    Pair("convolutions", TorchConv, FlaxConv, pictures),
    *(_encoder(name, ops) for name, ops in ENCODERS.items()),
    _encoder("PyTorch's fused attention", Ops(), fused=True),
    _encoder("fused attention on both sides", Ops(attend=fused), fused=True),
    Pair(
        "encoder, residuals in float32",
        lambda: TorchEncoder(wide=True),
        FlaxEncoder,
        words,
        Setting(ops=Ops(stream=lambda x: x.astype(jnp.float32))),
    ),
    _encoder("parameters in float32", Ops(), COMPUTED),
    _encoder("all in bfloat16", Ops(), WHOLE),
    _decoder("as PyTorch", Ops()),
    _decoder("norm by a root", Ops(rms=rms_divided)),
    _decoder("experts as a product", Ops(mixed=mixed_product)),
    _decoder("norm scaled in float32", Ops(rms=rms_scaled_wide), wide=True),
    _decoder("parameters in float32", Ops(), COMPUTED),
    _decoder("all in bfloat16", Ops(), WHOLE),
)
