"""Every mistake in the order of heads, parts of packed tensors, patches and windows, planted."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from flax import nnx
from torch import Tensor, nn

from .planted import Block, Case, Make, NNXBlock, images, moved, sequence

BLOCK, NETWORK = "block", "(the network)"
STEPS, HEADS, DEPTH = 5, 2, 3


def attended(x: Any, softmax: Any) -> Any:
    """(…, steps, depth), to itself."""
    return softmax(x @ x.swapaxes(-1, -2)) @ x


def torch_heads(x: Tensor) -> Tensor:
    h = x.view(2, STEPS, HEADS, DEPTH).transpose(1, 2)
    return attended(h, lambda s: s.softmax(-1)).transpose(1, 2).reshape(2, STEPS, HEADS * DEPTH)


def jax_softmax(x: Any) -> Any:
    return jax.nn.softmax(x, -1)


def jax_heads(split: str = "right", merge: str = "right") -> Any:
    def change(x: Any) -> Any:
        if split == "depth":
            h = x.reshape(2, STEPS, DEPTH, HEADS).transpose(0, 3, 1, 2)
        elif split == "unmoved":
            h = x.reshape(2, HEADS, STEPS, DEPTH)
        else:
            h = x.reshape(2, STEPS, HEADS, DEPTH).transpose(0, 2, 1, 3)
        y = attended(h, jax_softmax)
        if merge == "depth":
            return y.transpose(0, 2, 3, 1).reshape(2, STEPS, -1)
        return (y if merge == "unmoved" else y.transpose(0, 2, 1, 3)).reshape(2, STEPS, -1)

    return change


def grouped(repeat: Any) -> Any:
    """Four heads of queries and two of keys, in both frameworks; 4 · 2 + 2 · 2 features."""

    def change(x: Any) -> Any:
        q, k = x[..., :8].reshape(2, STEPS, 4, 2), repeat(x[..., 8:].reshape(2, STEPS, 2, 2))
        return (q * k).reshape(2, STEPS, 8)

    return change


def repeat_kv(x: Tensor) -> Tensor:
    return x[:, :, :, None].expand(2, STEPS, 2, 2, 2).reshape(2, STEPS, 4, 2)


def mixed(parts: Any, tanh: Any, sin: Any) -> Any:
    """Something that needs all three parts in their places."""
    q, k, v = parts
    return q * tanh(k) + sin(v)


def packed_torch(shape: tuple[int, ...], axis: int) -> Any:
    return lambda x: mixed(x.view(2, STEPS, *shape).unbind(axis), torch.tanh, torch.sin).flatten(2)


def packed_jax(shape: tuple[int, ...], axis: int, order: tuple[int, ...] = (0, 1, 2)) -> Any:
    def change(x: Any) -> Any:
        parts = [p.squeeze(axis) for p in jnp.split(x.reshape(2, STEPS, *shape), 3, axis)]
        return mixed([parts[i] for i in order], jnp.tanh, jnp.sin).reshape(2, STEPS, -1)

    return change


def three_torch(x: Tensor) -> Tensor:
    return mixed(x.chunk(3, -1), torch.tanh, torch.sin)


def three_jax(*order: int) -> Any:
    def change(x: Any) -> Any:
        parts = jnp.split(x, 3, -1)
        return mixed([parts[i] for i in order], jnp.tanh, jnp.sin)

    return change


def wide(right: Any, wrong: Any, width: int, inner: int) -> Make:
    return sequence(right, wrong, width=width, inner=inner)


def embedded(right: Any, wrong: Any, features: int) -> Make:
    """An image, what makes tokens of it, a linear layer of the tokens: the input is (2, 3, 4, 4)."""

    def make() -> tuple[Any, ...]:
        x, rngs = images(2, 3, 4, 4), nnx.Rngs(0)
        model = Block(nn.Conv2d(3, 3, 1), right, nn.Linear(features, 5))
        flax = NNXBlock(nnx.Conv(3, 3, (1, 1), rngs=rngs), wrong, nnx.Linear(features, 5, rngs=rngs))
        return moved(model, flax, x)

    return make


def patches_torch(x: Tensor) -> Tensor:
    """(batch, 4 patches, 3 · 2 · 2), the channels first."""
    return x.reshape(2, 3, 2, 2, 2, 2).permute(0, 2, 4, 1, 3, 5).reshape(2, 4, 12)


def patches_jax(*axes: int) -> Any:
    return lambda x: x.reshape(2, 2, 2, 2, 2, 3).transpose(0, 1, 3, *axes).reshape(2, 4, 12)


def patches_unmoved(x: Any) -> Any:
    return x.transpose(0, 3, 1, 2).reshape(2, 4, 12)


TOKEN = np.linspace(-1.0, 1.0, 6)
PLACES = torch.arange(1, 17)[:, None]


def with_token_torch(x: Tensor) -> Tensor:
    y = torch.cat([torch.from_numpy(TOKEN).expand(2, 1, 6), x], 1)
    return torch.tanh(y + torch.arange(6)[:, None])


def with_token_jax(x: Any) -> Any:
    y = jnp.concatenate([x, jnp.broadcast_to(TOKEN, (2, 1, 6))], 1)
    return jnp.tanh(y + np.arange(6)[:, None])


def merging_torch(x: Tensor) -> Tensor:
    x = x.permute(0, 2, 3, 1)
    return torch.cat([x[:, ::2, ::2], x[:, 1::2, ::2], x[:, ::2, 1::2], x[:, 1::2, 1::2]], -1)


def merging_jax(x: Any) -> Any:
    return jnp.concatenate([x[:, ::2, ::2], x[:, ::2, 1::2], x[:, 1::2, ::2], x[:, 1::2, 1::2]], -1)


FREQUENCIES = 100.0 ** (-np.arange(3) / 3)
FREQUENCIES_TORCH = torch.from_numpy(FREQUENCIES)


def waves_torch(x: Tensor) -> Tensor:
    angle = x[..., :1] * FREQUENCIES_TORCH
    return torch.cat([angle.sin(), angle.cos()], -1)


def waves_torch_stacked(x: Tensor) -> Tensor:
    angle = x[..., :1] * FREQUENCIES_TORCH
    return torch.stack([angle.sin(), angle.cos()], -1).flatten(-2)


def waves_jax(stacked: bool) -> Any:
    def change(x: Any) -> Any:
        angle = x[..., :1] * FREQUENCIES
        parts = [jnp.sin(angle), jnp.cos(angle)]
        return jnp.stack(parts, -1).reshape(*angle.shape[:-1], 6) if stacked else jnp.concatenate(parts, -1)

    return change


HEADS_AND_PARTS = (
    Case("heads-depth-first", sequence(torch_heads, jax_heads(split="depth")), BLOCK),
    Case("heads-merged-depth-first", sequence(torch_heads, jax_heads(merge="depth")), BLOCK),
    Case("heads-merged-unmoved", sequence(torch_heads, jax_heads(merge="unmoved")), BLOCK),
    Case("heads-split-unmoved", sequence(torch_heads, jax_heads(split="unmoved")), BLOCK),
    Case(
        "grouped-heads-tiled",
        wide(grouped(lambda k: k.repeat_interleave(2, dim=2)), grouped(lambda k: jnp.tile(k, (1, 1, 2, 1))), 12, 8),
        BLOCK,
    ),
    Case("grouped-heads-tiled", wide(grouped(repeat_kv), grouped(lambda k: jnp.tile(k, (1, 1, 2, 1))), 12, 8), BLOCK),
    Case(
        "grouped-heads-repeated",
        wide(grouped(lambda k: k.repeat(1, 1, 2, 1)), grouped(lambda k: jnp.repeat(k, 2, 2)), 12, 8),
        BLOCK,
    ),
    Case("packed-parts-by-head", wide(packed_torch((3, 2, 4), 2), packed_jax((2, 3, 4), 3), 24, 8), BLOCK),
    Case("packed-parts-by-head", wide(packed_torch((2, 3, 4), 3), packed_jax((3, 2, 4), 2), 24, 8), BLOCK),
    Case("packed-keys-first", wide(three_torch, three_jax(1, 0, 2), 12, 4), BLOCK),
    Case("packed-keys-first", wide(packed_torch((3, 2, 4), 2), packed_jax((3, 2, 4), 2, (1, 0, 2)), 24, 8), BLOCK),
    Case("packed-values-second", wide(three_torch, three_jax(0, 2, 1), 12, 4), BLOCK),
    Case("class-token-last", sequence(with_token_torch, with_token_jax), BLOCK),
    Case("patch-channels-other-end", embedded(patches_torch, patches_jax(2, 4, 5), 12), NETWORK),
    Case("patch-columns-first", embedded(patches_torch, patches_jax(5, 4, 2), 12), NETWORK),
    Case("windows-unmoved", embedded(patches_torch, patches_unmoved, 12), NETWORK),
    Case(
        "tokens-by-column",
        embedded(lambda x: x.flatten(2).transpose(1, 2), lambda x: x.swapaxes(1, 2).reshape(2, 16, 3), 3),
        NETWORK,
    ),
    Case(
        "grid-transposed",
        embedded(
            lambda x: (x.flatten(2).transpose(1, 2) * PLACES).unflatten(1, (4, 4))[:, :, 1:],
            lambda x: (x.reshape(2, 16, 3) * PLACES.numpy()).reshape(2, 4, 4, 3).swapaxes(1, 2)[:, :, 1:],
            3,
        ),
        NETWORK,
    ),
    Case("patch-merging-order", embedded(merging_torch, merging_jax, 12), NETWORK),
    Case("waves-interleaved", sequence(waves_torch, waves_jax(True)), BLOCK),
    Case("waves-in-blocks", sequence(waves_torch_stacked, waves_jax(False)), BLOCK),
)
