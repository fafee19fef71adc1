"""Every mistake between layers, planted: pools, sums, rearrangements, inputs; `activations.py` has the rest."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import torch
import torch.nn.functional as F
from flax import nnx
from torch import nn

from .activations import ACTIVATIONS
from .experts_and_gates import EXPERTS_AND_GATES
from .heads import HEADS_AND_PARTS
from .order import ORDER
from .own_attention import OWN_ATTENTION
from .own_norms import OWN_NORMS
from .planted import Block, Case, NNXBlock, NNXWhole, between, images, moved, sequence
from .positions_and_graphs import POSITIONS_AND_GRAPHS
from .recurrent_cells import RECURRENT_CELLS
from .rotary import ROTARY
from .sampling import SAMPLING
from .sequences import BAND, BAND_TORCH, LOWER_TORCH, attended, attending, bidirectional

BLOCK, NETWORK = "block", "(the network)"
INTERPOLATE: Any = F.interpolate


def zero_padded(x: Any) -> Any:
    return nnx.max_pool(jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0))), (3, 3), (2, 2))


def padded_torch(mode: str) -> Any:
    return lambda x: F.pad(x, (1, 2, 2, 1), mode)


def padded(mode: str) -> Any:
    return lambda x: jnp.pad(x, ((0, 0), (2, 1), (1, 2), (0, 0)), mode)


def max_pool(window: int = 3, stride: int = 2, padding: Any = ((1, 1), (1, 1))) -> Any:
    return lambda x: nnx.max_pool(x, (window, window), (stride, stride), padding)


def avg_pool(window: int = 3, stride: int = 2, padding: Any = ((1, 1), (1, 1)), counts: bool = True) -> Any:
    return lambda x: nnx.avg_pool(x, (window, window), (stride, stride), padding, count_include_pad=counts)


def resize(method: str, size: tuple[int, int], antialias: bool = False) -> Any:
    return lambda x: jax.image.resize(x, (x.shape[0], *size, x.shape[3]), method, antialias=antialias)


def corners(x: Any) -> Any:
    """A bilinear resize to twice the size with aligned corners."""
    size = (2 * x.shape[1], 2 * x.shape[2])
    at = [jnp.linspace(0, n - 1, m) for n, m in zip(x.shape[1:3], size, strict=True)]

    def weights(points: Any, n: int) -> Any:
        return jnp.maximum(1 - jnp.abs(points[:, None] - jnp.arange(n)), 0)

    return jnp.einsum("bhwc,yh,xw->byxc", x, weights(at[0], x.shape[1]), weights(at[1], x.shape[2]))


def clamped_cubic(x: Any) -> Any:
    """A bicubic resize to twice the size with a = -0.5, which repeats the border."""

    def weights(n: int) -> Any:
        place = (jnp.arange(2 * n) + 0.5) / 2 - 0.5
        near = jnp.floor(place)[:, None] + jnp.arange(-1, 3)
        d = jnp.abs(place[:, None] - near)
        kernel = jnp.where(d <= 1, (1.5 * d - 2.5) * d * d + 1, ((-0.5 * d + 2.5) * d - 4) * d + 2)
        return (jax.nn.one_hot(jnp.clip(near, 0, n - 1).astype(int), n) * kernel[..., None]).sum(1)

    return jnp.einsum("bhwc,yh,xw->byxc", x, weights(x.shape[1]), weights(x.shape[2]))


def depth_to_space(x: Any) -> Any:
    """As TensorFlow has it: the place within the pixel before the channel."""
    b, h, w, c = x.shape
    return x.reshape(b, h, w, 2, 2, c // 4).transpose(0, 1, 3, 2, 4, 5).reshape(b, 2 * h, 2 * w, c // 4)


def space_to_depth(x: Any) -> Any:
    b, h, w, c = x.shape
    return x.reshape(b, h // 2, 2, w // 2, 2, c).transpose(0, 1, 3, 2, 4, 5).reshape(b, h // 2, w // 2, 4 * c)


def shuffled(groups: int) -> Any:
    return lambda x: x.reshape(*x.shape[:3], groups, -1).swapaxes(3, 4).reshape(x.shape)


def flattened(wrong: Any) -> Any:
    """conv, pool, flatten, linear."""

    def make() -> tuple[Any, ...]:
        x, rngs = images(2, 3, 6, 4), nnx.Rngs(0)
        conv, dense = nnx.Conv(3, 4, (3, 3), padding=1, rngs=rngs), nnx.Linear(96, 5, rngs=rngs)
        block = Block(nn.Conv2d(3, 4, 3, padding=1), lambda x: x.flatten(1), nn.Linear(96, 5))

        return moved(block, NNXBlock(conv, wrong, dense), x)

    return make


def unflattened(wrong: Any) -> Any:
    """linear, a vector that becomes an image, conv: the start of a decoder."""

    def make() -> tuple[Any, ...]:
        x, rngs = images(3, 5), nnx.Rngs(0)
        dense, conv = nnx.Linear(5, 24, rngs=rngs), nnx.Conv(4, 3, (3, 3), padding=1, rngs=rngs)
        block = Block(nn.Linear(5, 24), lambda x: x.view(-1, 4, 3, 2), nn.Conv2d(4, 3, 3, padding=1))
        return moved(block, NNXBlock(dense, wrong, conv), x)

    return make


def ended(right: Any, wrong: Any, vector: bool = True) -> Any:
    """conv, and the network's end."""

    def make() -> tuple[Any, ...]:

        x, rngs = images(2, 3, 6, 5), nnx.Rngs(0)
        first, second = nnx.Conv(3, 6, (3, 3), padding=1, rngs=rngs), nnx.Linear(6, 4, rngs=rngs)
        block = Block(nn.Conv2d(3, 6, 3, padding=1), right, nn.Linear(6, 4))
        return moved(block, NNXBlock(first, wrong, second), x)

    return make


def pixels(change: Any, port: str = "nnx") -> Any:
    """The port prepares its input."""

    class Prepared(NNXWhole):
        def __call__(self, x: Any) -> Any:
            return super().__call__(change(x))

    def make() -> tuple[Any, ...]:
        model, flax, x = between(torch.tanh, jnp.tanh)()
        return model, Prepared(flax.block, flax.head, flax.axes), x

    return make


POOL3: Any = functools.partial(F.max_pool2d, kernel_size=3, stride=2, padding=1)
AVG3: Any = functools.partial(F.avg_pool2d, kernel_size=3, stride=2, padding=1)
VALID = ((0, 0), (0, 0))
# Of a sequence: the mean over time behind it would hide the order.
STEPS = torch.arange(1, 6)
MEAN, STD = jnp.array((0.485, 0.456, 0.406)), jnp.array((0.229, 0.224, 0.225))

BETWEEN = (
    *ACTIVATIONS,
    *OWN_NORMS,
    *ROTARY,
    *OWN_ATTENTION,
    *HEADS_AND_PARTS,
    *EXPERTS_AND_GATES,
    *POSITIONS_AND_GRAPHS,
    *SAMPLING,
    *RECURRENT_CELLS,
    *ORDER,
    Case("max-pool-same", between(POOL3, max_pool(padding="SAME"), size=(10, 6)), BLOCK),
    Case("max-pool-same", between(POOL3, max_pool(padding="SAME"), size=(10, 6), port="linen"), BLOCK),
    Case("max-pool-pads-zero", between(POOL3, zero_padded), BLOCK),
    Case("max-pool-unpadded", between(POOL3, max_pool(padding="VALID")), BLOCK),
    Case("pool-stride-one", between(lambda x: F.max_pool2d(x, 2), lambda x: nnx.max_pool(x, (2, 2))), BLOCK),
    Case("pool-stride-one", between(lambda x: F.avg_pool2d(x, 2), lambda x: nnx.avg_pool(x, (2, 2))), BLOCK),
    Case("pool-is-average", between(lambda x: F.max_pool2d(x, 2), avg_pool(2, 2, "VALID")), BLOCK),
    Case("avg-pool-counts-padding", between(AVG3, avg_pool(counts=False)), BLOCK),
    Case("avg-pool-same", between(AVG3, avg_pool(padding="SAME"), size=(10, 6)), BLOCK),
    Case("pool-ceil-mode-lost", between(lambda x: F.max_pool2d(x, 2, ceil_mode=True), max_pool(2, 2, VALID)), BLOCK),
    Case("pool-ceil-mode-lost", between(lambda x: F.avg_pool2d(x, 2, ceil_mode=True), avg_pool(2, 2, VALID)), BLOCK),
    Case("pool-dilation-lost", between(lambda x: F.max_pool2d(x, 2, 1, 0, 2), max_pool(2, 1, VALID)), BLOCK),
    Case(
        "avg-pool-divisor-lost",
        between(lambda x: F.avg_pool2d(x, 2, divisor_override=3), avg_pool(2, 2, VALID)),
        BLOCK,
    ),
    Case("lp-pool-mean", between(lambda x: F.lp_pool2d(x, 2, 2), lambda x: avg_pool(2, 2, VALID)(x * x) ** 0.5), BLOCK),
    Case(
        "adaptive-pool-windows",
        between(lambda x: F.adaptive_avg_pool2d(x, 4), avg_pool(2, 2, VALID), size=(9, 9)),
        BLOCK,
    ),
    Case(
        "adaptive-pool-windows",
        between(lambda x: F.adaptive_avg_pool2d(x, (4, 2)), lambda x: nnx.avg_pool(x, (2, 3), (2, 3))),
        BLOCK,
    ),
    Case(
        "global-pool-is-max", ended(lambda x: F.adaptive_avg_pool2d(x, 1).flatten(1), lambda x: x.max((1, 2))), NETWORK
    ),
    Case("unflatten-channels-last", unflattened(lambda x: x.reshape(-1, 3, 2, 4)), NETWORK),
    Case("flatten-channels-last", flattened(lambda x: x.reshape(x.shape[0], -1)), NETWORK),
    Case("mean-axes", ended(lambda x: x.mean((2, 3)), lambda x: x.mean((2, 3))), NETWORK),
    Case("mean-is-sum", ended(lambda x: x.mean((2, 3)), lambda x: x.sum((1, 2))), NETWORK),
    Case("sum-is-mean", ended(lambda x: x.sum((2, 3)), lambda x: x.mean((1, 2))), NETWORK),
    Case("sum-is-max", ended(lambda x: x.sum((2, 3)), lambda x: x.max((1, 2))), NETWORK),
    Case("mean-is-max", ended(lambda x: x.mean((2, 3)), lambda x: x.max((1, 2))), NETWORK),
    Case(
        "concat-order",
        between(lambda x: torch.cat([x, x * x], 1), lambda x: jnp.concatenate([x * x, x], -1), inner=8),
        BLOCK,
    ),
    Case(
        "pad-other-side",
        between(lambda x: F.pad(x, (0, 1, 2, 0)), lambda x: jnp.pad(x, ((0, 0), (0, 2), (1, 0), (0, 0)))),
        BLOCK,
    ),
    Case(
        "pad-both-sides",
        between(lambda x: F.pad(x, (0, 1, 0, 1)), lambda x: jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))),
        BLOCK,
    ),
    Case(
        "pad-zeros",
        between(lambda x: F.pad(x, (1, 1, 1, 1), "reflect"), lambda x: jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))),
        BLOCK,
    ),
    Case("pad-symmetric", between(padded_torch("reflect"), padded("symmetric")), BLOCK),
    Case("pad-reflect-is-edge", between(padded_torch("reflect"), padded("edge")), BLOCK),
    Case("pad-edge-is-reflect", between(padded_torch("replicate"), padded("reflect")), BLOCK),
    Case("softmax-axis", sequence(lambda x: x.softmax(-1), lambda x: jax.nn.softmax(x, axis=1)), BLOCK),
    Case("softmax-axis", between(lambda x: x.softmax(1), lambda x: jax.nn.softmax(x, axis=2)), BLOCK),
    Case("last-is-first", sequence(lambda x: x[:, -1], lambda x: x[:, 0], vector=True), NETWORK),
    Case("std-biased", sequence(lambda x: x / x.std(1, keepdim=True), lambda x: x / x.std(1, keepdims=True)), BLOCK),
    Case(
        "resize-corners",
        between(lambda x: INTERPOLATE(x, scale_factor=2, mode="bilinear"), corners),
        BLOCK,
    ),
    Case(
        "resize-corners",
        between(
            lambda x: INTERPOLATE(x, scale_factor=2, mode="bilinear", align_corners=True), resize("bilinear", (18, 12))
        ),
        BLOCK,
    ),
    Case("resize-nearest-exact", between(lambda x: INTERPOLATE(x, size=(14, 11)), resize("nearest", (14, 11))), BLOCK),
    Case(
        "resize-antialias",
        between(lambda x: INTERPOLATE(x, size=(5, 4), mode="bilinear"), resize("bilinear", (5, 4), True)),
        BLOCK,
    ),
    Case(
        "resize-bicubic-kernel",
        between(lambda x: INTERPOLATE(x, size=(18, 12), mode="bicubic"), resize("cubic", (18, 12))),
        BLOCK,
    ),
    Case(
        "resize-bicubic-kernel-clamped",
        between(lambda x: INTERPOLATE(x, size=(18, 12), mode="bicubic"), clamped_cubic),
        BLOCK,
    ),
    Case(
        "resize-antialias-missing",
        between(lambda x: INTERPOLATE(x, size=(5, 4), mode="bilinear", antialias=True), resize("bilinear", (5, 4))),
        BLOCK,
    ),
    Case(
        "resize-antialias-missing",
        between(lambda x: INTERPOLATE(x, size=(5, 4), mode="bicubic", antialias=True), resize("cubic", (5, 4))),
        BLOCK,
    ),
    Case(
        "resize-is-nearest",
        between(
            lambda x: torch.tanh(INTERPOLATE(x, scale_factor=2, mode="bilinear")),
            lambda x: jnp.tanh(x.repeat(2, 1).repeat(2, 2)),
        ),
        BLOCK,
    ),
    Case(
        "resize-is-bilinear",
        between(
            lambda x: torch.tanh(INTERPOLATE(x, scale_factor=2)),
            lambda x: jnp.tanh(resize("bilinear", (18, 12))(x)),
        ),
        BLOCK,
    ),
    Case("pixel-shuffle-order", between(lambda x: F.pixel_shuffle(x, 2), depth_to_space, width=8, inner=2), BLOCK),
    Case(
        "pixel-unshuffle-order",
        between(lambda x: F.pixel_unshuffle(x, 2), space_to_depth, size=(8, 6), inner=16),
        BLOCK,
    ),
    Case("channel-shuffle-groups", between(lambda x: F.channel_shuffle(x, 2), shuffled(3), width=6, inner=6), BLOCK),
    Case(
        "chunks-exchanged",
        between(
            lambda x: (lambda a, b: a * torch.sin(b))(*x.chunk(2, 1)),
            lambda x: jnp.sin(x[..., :2]) * x[..., 2:],
            inner=2,
        ),
        BLOCK,
    ),
    Case(
        "chunks-interleaved",
        between(
            lambda x: (lambda a, b: a * torch.tanh(b))(*x.chunk(2, 1)),
            lambda x: x[..., ::2] * jnp.tanh(x[..., 1::2]),
            inner=2,
        ),
        BLOCK,
    ),
    Case("roll-sign", between(lambda x: x.roll((-1, -2), (2, 3)), lambda x: jnp.roll(x, (1, 2), (1, 2))), BLOCK),
    Case("flip-missing", sequence(lambda x: x.flip(1) * STEPS[:, None], lambda x: x * STEPS.numpy()[:, None]), BLOCK),
    Case("mask-sense", sequence(lambda x: x.masked_fill(x > 0.3, -1.0), lambda x: jnp.where(x > 0.3, x, -1.0)), BLOCK),
    Case(
        "mask-sense", between(lambda x: torch.where(x > 0.3, x, x * x), lambda x: jnp.where(x > 0.3, x * x, x)), BLOCK
    ),
    Case("attention-not-causal", sequence(lambda x: attended(x, is_causal=True), attending), BLOCK),
    Case("attention-unscaled", sequence(attended, lambda x: attending(x, 1.0)), BLOCK),
    Case(
        "attention-mask-sense",
        sequence(lambda x: attended(x, attn_mask=BAND_TORCH), lambda x: attending(x, mask=~BAND)),
        BLOCK,
    ),
    Case("attention-mask-lost", sequence(lambda x: attended(x, attn_mask=LOWER_TORCH), attending), BLOCK),
    Case(
        "normalize-epsilon",
        sequence(
            lambda x: F.normalize(x, dim=-1, eps=1e-3),
            lambda x: x / (jnp.linalg.norm(x, axis=-1, keepdims=True) + 1e-3),
        ),
        BLOCK,
    ),
    Case(
        "layer-norm-channels-only",
        between(
            lambda x: F.layer_norm(x, tuple(x.shape[1:])),
            lambda x: (x - x.mean(-1, keepdims=True)) / jnp.sqrt(x.var(-1, keepdims=True) + 1e-5),
        ),
        BLOCK,
    ),
    Case(
        "plain-norm-epsilon-1e-6",
        sequence(
            lambda x: F.layer_norm(x, (6,)),
            lambda x: (x - x.mean(-1, keepdims=True)) / jnp.sqrt(x.var(-1, keepdims=True) + 1e-6),
        ),
        BLOCK,
    ),
    Case(
        "plain-norm-epsilon-1e-6",
        between(
            F.instance_norm,
            lambda x: (x - x.mean((1, 2), keepdims=True)) / jnp.sqrt(x.var((1, 2), keepdims=True) + 1e-6),
        ),
        BLOCK,
    ),
    Case("directions-exchanged", bidirectional(lambda a, b: jnp.concatenate([b[:, ::-1], a], -1)), "lstm"),
    Case("backward-half-reversed", bidirectional(lambda a, b: jnp.concatenate([a, b], -1)), "lstm"),
    Case("input-bgr", pixels(lambda x: x[..., ::-1]), NETWORK),
    Case("input-times-255", pixels(lambda x: 255 * x), NETWORK),
    Case("input-by-255", pixels(lambda x: x / 255), NETWORK),
    Case("input-normalised-again", pixels(lambda x: (x - MEAN) / STD), NETWORK),
)
