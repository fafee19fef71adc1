"""Mistakes of precision, planted in ports that are right in float64: a row each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from .precision_networks import (
    DEPTH,
    EXPERTS,
    FIRST,
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
    angles,
    attend,
    numbers,
    pictures,
    rms,
    rms_scaled_wide,
    rotated,
    words,
)
from .precision_pairs import COMPUTED, Pair

HALF, WIDE = jnp.bfloat16, jnp.float32
WHOLE = "(the network)"


@dataclass(frozen=True)
class Mistake:
    """A port that rounds otherwise than PyTorch.

    Attributes:
        pair: the network, and the port with the mistake.
        dtype: in which it is judged.
        layer: the module that a finding, or an advice, must name.
        more: whether the port is more precise, which is advice.
    """

    name: str
    pair: Pair
    dtype: str
    layer: str
    more: bool = False


def _in(dtype: Any, op: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    """Return an operation that is computed in a type and given back in that of its first argument."""

    def computed(*args: Any) -> jax.Array:
        cast = [a.astype(dtype) if isinstance(a, jax.Array) else a for a in args]
        return op(*cast).astype(args[0].dtype)

    return computed


def rms_in_type(x: jax.Array, scale: jax.Array) -> jax.Array:
    return scale * (x * jax.lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + 1e-6))


def rms_root_in_type(x: jax.Array, scale: jax.Array) -> jax.Array:
    """The root is rounded before it is used."""
    wide = x.astype(WIDE)
    root = jax.lax.rsqrt(jnp.mean(wide**2, -1, keepdims=True) + 1e-6).astype(x.dtype)
    return scale * (x * root)


def rms_cast_first(x: jax.Array, scale: jax.Array) -> jax.Array:
    wide = x.astype(WIDE)
    return (1 + scale) * (wide * jax.lax.rsqrt(jnp.mean(wide**2, -1, keepdims=True) + 1e-6)).astype(x.dtype)


def rms_cast_last(x: jax.Array, scale: jax.Array) -> jax.Array:
    wide = x.astype(WIDE)
    normed = wide * jax.lax.rsqrt(jnp.mean(wide**2, -1, keepdims=True) + 1e-6)
    return (normed * scale.astype(WIDE)).astype(x.dtype)


def positions_in_half(length: int) -> jax.Array:
    return jnp.arange(FIRST, FIRST + length).astype(HALF)[:, None].astype(WIDE) * _frequencies()


def frequencies_in_half(length: int) -> jax.Array:
    return jnp.arange(FIRST, FIRST + length)[:, None] * _frequencies().astype(HALF).astype(WIDE)


def _frequencies() -> jax.Array:
    return 100.0 ** -(jnp.arange(0, DEPTH, 2, WIDE) / DEPTH)


def mean_in_type(x: jax.Array) -> jax.Array:
    """A running mean whose state has the type of its input."""
    state, out = jnp.zeros_like(x[:, 0]), []
    for t in range(x.shape[1]):
        state = 0.9 * state + 0.1 * x[:, t]
        out.append(state)
    return jnp.stack(out, 1)


def mixed_in_turn(parts: jax.Array, gates: jax.Array) -> jax.Array:
    total = jnp.zeros_like(parts[:, :, 0])
    for i in range(EXPERTS):
        total = total + parts[:, :, i] * gates[..., i, None].astype(parts.dtype)
    return total


def values_in_turn(q: jax.Array, k: jax.Array, v: jax.Array, softmax: Callable[[jax.Array], jax.Array]) -> jax.Array:
    """Attention that adds one key after the other in the type of its values."""
    one = jnp.eye(k.shape[1], dtype=v.dtype)
    parts = attend(q, k, jnp.broadcast_to(one[None, :, None], (*v.shape[:3], k.shape[1])), softmax)
    total = jnp.zeros_like(v)
    for i in range(k.shape[1]):
        total = total + parts[..., i, None] * v[:, i, None]
    return total


def pooled_in_turn(x: jax.Array) -> jax.Array:
    total = jnp.zeros_like(x[:, 0, 0])
    for i in range(x.shape[1]):
        for j in range(x.shape[2]):
            total = total + x[:, i, j]
    return total / (x.shape[1] * x.shape[2])


def dot_in_parts(a: jax.Array, b: jax.Array, dimensions: Any, **_: Any) -> jax.Array:
    """A product whose sum is rounded after every four terms."""
    total = jnp.zeros((*a.shape[:-1], b.shape[1]), a.dtype)
    for i in range(0, b.shape[0], 4):
        total = total + a[..., i : i + 4] @ b[i : i + 4]
    return total


class InParts(FlaxMlp):
    """Its first layer adds in parts."""

    def __init__(self, s: Setting) -> None:
        super().__init__(s)
        self.up.dot_general = dot_in_parts


def gelu_in_parts(x: jax.Array) -> jax.Array:
    """A form that cancels digits of small results."""
    return 0.5 * x * (1 + jax.lax.erf(x * 0.5**0.5))


def tanh_in_parts(x: jax.Array) -> jax.Array:
    up, down = jnp.exp(x), jnp.exp(-x)
    return (up - down) / (up + down)


class OwnNorm(nnx.Module):
    """LayerNorm or GroupNorm, all in the type of its input."""

    def __init__(self, size: int, groups: int, param_dtype: Any) -> None:
        self.scale, self.bias = nnx.Param(jnp.ones(size, param_dtype)), nnx.Param(jnp.zeros(size, param_dtype))
        self.groups = groups

    def __call__(self, x: jax.Array) -> jax.Array:
        y = x if not self.groups else x.reshape(x.shape[0], -1, self.groups, x.shape[-1] // self.groups)
        over = (-1,) if not self.groups else (1, 3)
        y = y - y.mean(over, keepdims=True)
        y = y * jax.lax.rsqrt((y * y).mean(over, keepdims=True) + 1e-5)
        return y.reshape(x.shape) * self.scale[...].astype(x.dtype) + self.bias[...].astype(x.dtype)


class OwnLayerNorm(FlaxMlp):
    def __init__(self, s: Setting) -> None:
        super().__init__(s)
        self.norm = OwnNorm(32, 0, s.param_dtype)


class OwnGroupNorm(FlaxConv):
    def __init__(self, s: Setting) -> None:
        super().__init__(s)
        self.gn = OwnNorm(8, 2, s.param_dtype)


def _mlp(torch: Callable[[], Any] = TorchMlp, flax: Callable[[Setting], Any] = FlaxMlp, **s: Any) -> Pair:
    return Pair("mlp", torch, flax, numbers, Setting(**s))


def _conv(flax: Callable[[Setting], Any] = FlaxConv, **s: Any) -> Pair:
    s = {"ops": Ops(), **s}
    return Pair("convolutions", TorchConv, flax, pictures, Setting(**s))


def _encoder(wide: bool = False, **ops: Any) -> Pair:
    return Pair("encoder", lambda: TorchEncoder(wide=wide), FlaxEncoder, words, Setting(ops=Ops(**ops)))


def _decoder(wide: bool = False, layers: Any = None, **ops: Any) -> Pair:
    ops = {"rms": rms_scaled_wide, **ops} if wide else ops
    setting = Setting(ops=Ops(**ops), layers=layers or {})
    return Pair("decoder", lambda: TorchDecoder(wide), FlaxDecoder, words, setting)


def _computed(pair: Pair) -> Pair:
    """Return the pair with a policy of its own: parameters in float32, layers in bfloat16."""
    return replace(pair, setting=replace(pair.setting, dtype=COMPUTED.dtype))


def plain(scores: jax.Array) -> jax.Array:
    return jax.nn.softmax(scores, -1)


IN_BFLOAT16: tuple[Mistake, ...] = tuple(
    Mistake(name, pair, "bfloat16", layer)
    for name, pair, layer in (
        ("attention's softmax in bfloat16", _encoder(softmax=plain), "attn"),
        ("attention's softmax in bfloat16, decoder", _decoder(softmax=plain), "attn"),
        ("attention's softmax in bfloat16, own policy", _computed(_encoder(softmax=plain)), "attn"),
        ("router's softmax in bfloat16", _decoder(router=lambda x: plain(x).astype(WIDE)), "experts"),
        ("RMSNorm in bfloat16", _decoder(rms=rms_in_type), "norm1"),
        ("RMSNorm with its root rounded", _decoder(rms=rms_root_in_type), "norm1"),
        ("RMSNorm cast before its scale", _decoder(wide=True, rms=rms_cast_first), "norm1"),
        ("positions of a rotary embedding in bfloat16", _decoder(angles=positions_in_half), "attn"),
        ("angles of a rotary embedding in bfloat16", _decoder(angles=lambda n: angles(n).astype(HALF)), "attn"),
        ("state of a running mean in bfloat16", _decoder(decayed=mean_in_type), WHOLE),
        ("experts added one by one in bfloat16", _decoder(mixed=mixed_in_turn), "experts"),
        ("bounded logits in bfloat16", _decoder(logits=lambda x: (30 * jnp.tanh(x / 30)).astype(WIDE)), WHOLE),
        ("residuals in bfloat16, PyTorch's in float32", _encoder(wide=True), WHOLE),
        ("values added one by one in bfloat16", _encoder(attend=values_in_turn), "attn"),
        ("GELU that cancels", _encoder(act=gelu_in_parts), "mlp"),
        ("sum of a product in bfloat16", _mlp(flax=InParts), "up"),
        ("LayerNorm in bfloat16", _mlp(flax=OwnLayerNorm), "norm"),
        ("tanh of powers in bfloat16", _mlp(lambda: TorchMlp(_torch_tanh), ops=Ops(act=tanh_in_parts)), WHOLE),
        ("GroupNorm in bfloat16", _conv(OwnGroupNorm), "gn"),
        ("mean over pixels added in bfloat16", _conv(ops=Ops(pool=pooled_in_turn)), WHOLE),
    )
)


def _torch_tanh(x: Any) -> Any:
    return x.tanh()


def in_half(op: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    return _in(HALF, op)


def attend_in_half(q: jax.Array, k: jax.Array, v: jax.Array, softmax: Callable[[jax.Array], jax.Array]) -> jax.Array:
    return attend(q.astype(HALF), k.astype(HALF), v.astype(HALF), softmax).astype(q.dtype)


IN_FLOAT32: tuple[Mistake, ...] = (
    *(
        Mistake(f"{layer} in bfloat16", pair(layers={layer: HALF}), "float32", layer)
        for pair, layers in (
            (_mlp, ("up", "norm", "down")),
            (_conv, ("conv1", "gn", "fc")),
            (_decoder, ("embed", "attn.q", "experts.router", "head")),
        )
        for layer in layers
    ),
    *(
        Mistake(name, pair, "float32", layer)
        for name, pair, layer in (
            ("attention in bfloat16", _encoder(attend=attend_in_half), "attn"),
            ("softmax in bfloat16", _encoder(softmax=in_half(plain)), "attn"),
            ("GELU in bfloat16", _encoder(act=in_half(lambda x: jax.nn.gelu(x, approximate=False))), "mlp"),
            ("residuals in bfloat16", _encoder(add=in_half(jnp.add)), WHOLE),
            ("RMSNorm in bfloat16", _decoder(rms=in_half(rms)), "norm1"),
            ("angles of a rotary embedding in bfloat16", _decoder(angles=lambda n: angles(n).astype(HALF)), "attn"),
            ("positions of a rotary embedding in bfloat16", _decoder(angles=positions_in_half), "attn"),
            ("frequencies of a rotary embedding in bfloat16", _decoder(angles=frequencies_in_half), "attn"),
            ("running mean in bfloat16", _decoder(decayed=in_half(mean_in_type)), WHOLE),
            ("experts mixed in bfloat16", _decoder(mixed=in_half(mixed_in_turn)), "experts"),
            ("mean over pixels in bfloat16", _conv(ops=Ops(pool=in_half(pooled_in_turn))), WHOLE),
        )
    ),
)

OVER_PRECISE: tuple[Mistake, ...] = tuple(
    Mistake(name, pair, "bfloat16", layer, more=True)
    for name, pair, layer in (
        ("a layer in float32", _mlp(dtype=HALF, layers={"mid": WIDE}), "mid"),
        ("RMSNorm cast behind its scale", _decoder(rms=rms_cast_last), "norm1"),
        ("rotary embedding in float32", _decoder(rotated=_in(WIDE, rotated)), "attn"),
        ("residuals in float32", _encoder(stream=lambda x: x.astype(WIDE)), WHOLE),
        ("a head in float32", _computed(_decoder(layers={"head": WIDE})), "head"),
    )
)

MISTAKES = (*IN_BFLOAT16, *IN_FLOAT32, *OVER_PRECISE)
