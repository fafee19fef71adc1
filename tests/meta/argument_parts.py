"""Parts of small networks as source text: PyTorch's, and Flax's with one mistake that is an argument.

`source` puts some of them into one file, as a user has it: two models, their inputs, and what trains them. A row is one
mistake, or one way to write it.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass

from parity.traps.catalogue import TRAPS


@dataclass(frozen=True)
class Part:
    """A part of a network.

    Attributes:
        place: `image` or `sequence`, by what goes through it; `loss` or `training`.
        torch: code of PyTorch's part: a layer, or an expression of `x`; of a training an optimizer of `params`.
        flax: code of Flax's part with the mistake.
        layer: whether both are layers, not expressions.
        width: how many channels or features go in.
        call: PyTorch's call of a layer that gives more than a tensor.
        size: of the image.
    """

    trap: str
    place: str
    torch: str
    flax: str
    layer: bool = True
    width: int = 6
    call: str = "{}(x)"
    size: tuple[int, int] = (9, 8)


def conv(trap: str, torch: str, flax: str) -> Part:
    return Part(trap, "image", f"nn.Conv2d(6, 6, 3, {torch})", f"nnx.Conv(6, 6, (3, 3), {flax}, rngs=rngs)")


def up(trap: str, torch: str, flax: str, kernel: int = 3) -> Part:
    right = f"nn.ConvTranspose2d(6, 6, {kernel}, stride=2, {torch})"
    return Part(trap, "image", right, f"nnx.ConvTranspose(6, 6, ({kernel}, {kernel}), strides=2, {flax}, rngs=rngs)")


def norm(trap: str, torch: str, flax: str, width: int = 6, size: tuple[int, int] = (9, 8)) -> Part:
    return Part(trap, "image", f"nn.{torch}", f"nnx.{flax}, rngs=rngs)", width=width, size=size)


def features(trap: str, torch: str, flax: str, call: str = "{}(x)") -> Part:
    return Part(trap, "sequence", torch, flax, width=8, call=call)


def pixels(trap: str, torch: str, flax: str) -> Part:
    return Part(trap, "image", torch, flax, layer=False)


def resized(trap: str, torch: str, flax: str) -> Part:
    """An image of a size of its own: behind another part it would not shrink, or not by as much."""
    return Part(trap, "image", torch, flax, layer=False, size=(11, 8))


def vectors(trap: str, torch: str, flax: str) -> Part:
    return Part(trap, "sequence", torch, flax, layer=False, width=8)


def training(trap: str, torch: str, flax: str) -> Part:
    return Part(trap, "training", f"torch.optim.{torch}", flax if "optim." in flax else f"optax.{flax}", layer=False)


def loss(trap: str, torch: str, flax: str) -> Part:
    return Part(trap, "loss", torch, flax, layer=False)


HALF = "(x.shape[0], 5, 4, x.shape[-1])"
DOUBLE = "(x.shape[0], 22, 16, x.shape[-1])"
SPLIT = "h := x.unflatten(-1, (2, 4)).transpose(1, 2), h, h"
HEADS = "h := x.reshape(*x.shape[:2], 2, 4), h, h"
CENTRED = "(x - x.mean(-1, keepdim{}=True))"
LSTM = "nnx.LSTMCell(8, {}, rngs=rngs)"
CELL = "linen.OptimizedLSTMCell"

LAYERS = (
    conv("conv-padding-same", "stride=2, padding=1", "strides=2, padding='SAME'"),
    conv("conv-padding-none", "padding=1", "padding='VALID'"),
    conv("conv-stride-one", "stride=2, padding=1", "padding=1"),
    conv("conv-stride-two", "padding=1", "strides=2, padding=1"),
    conv("conv-stride-exchanged", "stride=(2, 1), padding=1", "strides=(1, 2), padding=1"),
    conv("conv-padding-exchanged", "padding=(2, 0)", "padding=((0, 0), (2, 2))"),
    conv("conv-dilation-forgotten", "padding=2, dilation=2", "padding=1"),
    conv("conv-padding-zeros", "padding=1, padding_mode='reflect'", "padding=1"),
    conv("conv-padding-circular", "padding=1, padding_mode='reflect'", "padding='CIRCULAR'"),
    conv("conv-padding-reflect", "padding=1, padding_mode='circular'", "padding='REFLECT'"),
    up("conv-transpose-padding-copied", "padding=0", "padding=((0, 0), (0, 0)), transpose_kernel=True"),
    up("conv-transpose-padding-none", "padding=1", "padding='VALID', transpose_kernel=True"),
    up(
        "conv-transpose-output-padding-lost",
        "padding=1, output_padding=1",
        "padding=((1, 1), (1, 1)), transpose_kernel=True",
    ),
    up("conv-transpose-same", "padding=2, output_padding=1", "padding='SAME', transpose_kernel=True", 5),
    norm("bn-epsilon-1e-3", "BatchNorm2d(6)", "BatchNorm(6, momentum=0.9, epsilon=1e-3"),
    norm("bn-epsilon-1e-6", "BatchNorm2d(6)", "BatchNorm(6, momentum=0.9, epsilon=1e-6"),
    norm("bn-momentum-0.99", "BatchNorm2d(6)", "BatchNorm(6, epsilon=1e-5"),
    norm("bn-momentum-copied", "BatchNorm2d(6)", "BatchNorm(6, epsilon=1e-5, momentum=0.1"),
    norm("bn-axis", "BatchNorm2d(6)", "BatchNorm(6, axis=1, momentum=0.9, epsilon=1e-5", size=(6, 8)),
    norm("norm-epsilon-1e-6", "GroupNorm(2, 6)", "GroupNorm(6, num_groups=2"),
    norm("norm-epsilon-1e-5", "GroupNorm(2, 6, eps=1e-3)", "GroupNorm(6, num_groups=2, epsilon=1e-5"),
    norm("norm-epsilon-1e-3", "GroupNorm(2, 6)", "GroupNorm(6, num_groups=2, epsilon=1e-3"),
    norm("norm-epsilon-1e-8", "GroupNorm(2, 6)", "GroupNorm(6, num_groups=2, epsilon=1e-8"),
    norm("norm-epsilon-1e-12", "GroupNorm(2, 6)", "GroupNorm(6, num_groups=2, epsilon=1e-12"),
    norm("group-norm-32-groups", "GroupNorm(4, 32)", "GroupNorm(32, epsilon=1e-5", 32),
    norm("group-norm-one-group", "GroupNorm(2, 6)", "GroupNorm(6, num_groups=1, epsilon=1e-5"),
    norm("group-norm-per-channel", "GroupNorm(2, 6)", "GroupNorm(6, num_groups=6, epsilon=1e-5"),
    norm("group-norm-group-size", "GroupNorm(2, 8)", "GroupNorm(8, num_groups=4, epsilon=1e-5", 8),
    features("norm-epsilon-1e-6", "nn.LayerNorm(8)", "nnx.LayerNorm(8, rngs=rngs)"),
    features(
        "layer-norm-over-time", "nn.LayerNorm(8)", "nnx.LayerNorm(8, epsilon=1e-5, reduction_axes=(1, 2), rngs=rngs)"
    ),
    features(
        "recurrent-reversed",
        "nn.LSTM(8, 8, batch_first=True)",
        f"nnx.RNN({LSTM.format(8)}, reverse=True, keep_order=True, rngs=rngs)",
        "{}(x)[0]",
    ),
    features(
        "recurrent-over-batch",
        "nn.LSTM(8, 8, batch_first=True)",
        f"nnx.RNN({LSTM.format(8)}, time_major=True, rngs=rngs)",
        "{}(x)[0]",
    ),
    features(
        "backward-half-reversed",
        "nn.LSTM(8, 4, batch_first=True, bidirectional=True)",
        f"Both(nnx.RNN({LSTM.format(4)}, rngs=rngs), nnx.RNN({LSTM.format(4)}, reverse=True, rngs=rngs))",
        "{}(x)[0]",
    ),
    features("norm-epsilon-is-1e-6", "OwnRMSNorm(8, 1e-5)", "nnx.RMSNorm(8, rngs=rngs)"),
    features("norm-epsilon-is-1e-5", "OwnRMSNorm(8, 1e-6)", "nnx.RMSNorm(8, epsilon=1e-5, rngs=rngs)"),
)

FUNCTIONS = (
    vectors("gelu-tanh", "F.gelu(x)", "nnx.gelu(x)"),
    vectors("gelu-tanh", "F.gelu(x, approximate='tanh')", "nnx.gelu(x, approximate=False)"),
    vectors("leaky-slope", "F.leaky_relu(x, 0.2)", "nnx.leaky_relu(x)"),
    vectors("elu-alpha-lost", "F.elu(x, 0.5)", "nnx.elu(x)"),
    vectors("softmax-axis", "x.softmax(1)", "nnx.softmax(x)"),
    vectors(
        "written-gelu-is-exact",
        "0.5 * x * (1.0 + torch.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * torch.pow(x, 3.0))))",
        "nnx.gelu(x, approximate=False)",
    ),
    vectors("std-biased", "x / (1 + x.std(-1, keepdim=True))", "x / (1 + jnp.std(x, -1, keepdims=True))"),
    vectors("roll-sign", "torch.roll(x, 2, -1)", "jnp.roll(x, -2, -1)"),
    vectors("fourier-norm-missing", "torch.fft.fft(x, norm='ortho').real", "jnp.fft.fft(x).real"),
    vectors("fourier-norm-added", "torch.fft.fft(x).real", "jnp.fft.fft(x, norm='ortho').real"),
    vectors(
        "norm-variance-unbiased",
        f"{CENTRED.format('')} / torch.sqrt(x.var(-1, keepdim=True, unbiased=False) + 1e-5)",
        f"{CENTRED.format('s')} / jnp.sqrt(jnp.var(x, -1, keepdims=True, ddof=1) + 1e-5)",
    ),
    vectors(
        "plain-norm-epsilon-1e-6",
        "F.group_norm(x.transpose(1, 2), 2).transpose(1, 2)",
        "nnx.GroupNorm(8, 2, use_scale=False, use_bias=False, rngs=nnx.Rngs(0))(x)",
    ),
    vectors(
        "attention-not-causal",
        f"F.scaled_dot_product_attention({SPLIT}, is_causal=True).transpose(1, 2).flatten(2)",
        f"jax.nn.dot_product_attention({HEADS}).reshape(x.shape)",
    ),
    vectors(
        "attention-unscaled",
        f"F.scaled_dot_product_attention({SPLIT}).transpose(1, 2).flatten(2)",
        f"jax.nn.dot_product_attention({HEADS}, scale=1.0).reshape(x.shape)",
    ),
    vectors(
        "attention-scale-default",
        f"F.scaled_dot_product_attention({SPLIT}, scale=0.8).transpose(1, 2).flatten(2)",
        f"jax.nn.dot_product_attention({HEADS}).reshape(x.shape)",
    ),
    vectors(
        "attention-scale-added",
        "((h := x.unflatten(-1, (2, 4)).transpose(1, 2)) @ h.transpose(2, 3)).softmax(-1).matmul(h)"
        ".transpose(1, 2).flatten(2)",
        f"jax.nn.dot_product_attention({HEADS}).reshape(x.shape)",
    ),
    vectors(
        "attention-softmax-over-queries",
        "((h := x.unflatten(-1, (2, 4)).transpose(1, 2)) @ h.transpose(2, 3) / 2).softmax(-1).matmul(h)"
        ".transpose(1, 2).flatten(2)",
        "jnp.einsum('bhqk,bkhd->bqhd', nnx.softmax(jnp.einsum('bqhd,bkhd->bhqk', "
        "h := x.reshape(*x.shape[:2], 2, 4), h) / 2, axis=-2), h).reshape(x.shape)",
    ),
    vectors(
        "router-one-expert-less",
        "torch.zeros_like(x).scatter(-1, (top := x.softmax(-1).topk(3)).indices, top.values)",
        "(lambda top: (nnx.one_hot(top[1], 8) * top[0][..., None]).sum(-2))(jax.lax.top_k(nnx.softmax(x), 2))",
    ),
    pixels("max-pool-same", "F.max_pool2d(x, 3, 2, 1)", "nnx.max_pool(x, (3, 3), (2, 2), 'SAME')"),
    pixels("max-pool-unpadded", "F.max_pool2d(x, 3, 2, 1)", "nnx.max_pool(x, (3, 3), (2, 2))"),
    pixels("pool-stride-one", "F.max_pool2d(x, 2)", "nnx.max_pool(x, (2, 2))"),
    pixels(
        "avg-pool-counts-padding",
        "F.avg_pool2d(x, 3, 2, 1, count_include_pad=False)",
        "nnx.avg_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1)))",
    ),
    pixels("avg-pool-same", "F.avg_pool2d(x, 3, 2, 1)", "nnx.avg_pool(x, (3, 3), (2, 2), 'SAME')"),
    pixels("pad-zeros", "F.pad(x, (1, 1, 1, 1), mode='replicate')", "jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))"),
    resized(
        "resize-antialias", "F.interpolate(x, size=(5, 4), mode='bilinear')", f"jax.image.resize(x, {HALF}, 'bilinear')"
    ),
    resized(
        "resize-antialias-missing",
        "F.interpolate(x, size=(5, 4), mode='bilinear', antialias=True)",
        f"jax.image.resize(x, {HALF}, 'bilinear', antialias=False)",
    ),
    resized(
        "resize-is-nearest",
        "F.interpolate(x, size=(22, 16), mode='bilinear')",
        f"jax.image.resize(x, {DOUBLE}, 'nearest')",
    ),
    pixels(
        "layer-norm-channels-only",
        "F.layer_norm(x, x.shape[1:])",
        "nnx.LayerNorm(6, epsilon=1e-5, use_scale=False, use_bias=False, rngs=nnx.Rngs(0))(x)",
    ),
)

LABELS = "torch.arange(y.shape[0]) % 3"
LOSSES = (
    loss("loss-huber-delta-1", "F.huber_loss(y, 0 * y, delta=0.1)", "optax.huber_loss(y, 0 * y).mean()"),
    loss(
        "loss-smoothing-missing",
        f"F.cross_entropy(y, {LABELS}, label_smoothing=0.1)",
        "losses.cross_entropy(y, jnp.arange(y.shape[0]) % 3)",
    ),
    loss(
        "loss-class-weights-missing",
        f"F.cross_entropy(y, {LABELS}, weight=torch.tensor([1.0, 2.0, 0.5], dtype=y.dtype))",
        "losses.cross_entropy(y, jnp.arange(y.shape[0]) % 3)",
    ),
)

TRAINING = (
    training("decay-missing", "AdamW(params, 0.02, weight_decay=0.1)", "adamw(0.02, weight_decay=0.0)"),
    training("adamw-decay-1e-4", "AdamW(params, 0.02)", "adamw(0.02)"),
    training("momentum-missing", "SGD(params, 0.02, momentum=0.9)", "sgd(0.02)"),
    training("nesterov-missing", "SGD(params, 0.02, momentum=0.9, nesterov=True)", "sgd(0.02, momentum=0.9)"),
    training("nesterov-added", "SGD(params, 0.02, momentum=0.9)", "sgd(0.02, momentum=0.9, nesterov=True)"),
    training("adam-epsilon-in-root", "Adam(params, 0.02, eps=1e-6)", "adam(0.02, eps=0.0, eps_root=1e-6)"),
    training("adam-epsilon-1e-8", "Adam(params, 0.02, eps=1e-4)", "adam(0.02)"),
    training("adam-betas-default", "Adam(params, 0.02, betas=(0.8, 0.95))", "adam(0.02)"),
    training("rmsprop-epsilon-in-root", "RMSprop(params, 0.02, eps=1e-4)", "rmsprop(0.02, 0.99, eps=1e-4)"),
    training("rmsprop-alpha-0.9", "RMSprop(params, 0.02)", "rmsprop(0.02, eps_in_sqrt=False)"),
    training("rmsprop-not-centered", "RMSprop(params, 0.02, centered=True)", "rmsprop(0.02, 0.99, eps_in_sqrt=False)"),
    training(
        "rmsprop-starts-at-one", "RMSprop(params, 0.02)", "rmsprop(0.02, 0.99, initial_scale=1.0, eps_in_sqrt=False)"
    ),
    training("adagrad-accumulator-0.1", "Adagrad(params, 0.02)", "optim.adagrad(0.02, initial_accumulator_value=0.1)"),
    training("adagrad-epsilon-1e-7", "Adagrad(params, 0.02)", "optim.adagrad(0.02, eps=1e-7)"),
)

PARTS = (*LAYERS, *FUNCTIONS, *LOSSES, *TRAINING)

# Traps whose mend says to pass something: these are arguments. Two are verified by tests of their own.
OF_ARGUMENTS = [trap for trap in TRAPS if re.search(r"\bpass\b", trap.mend) or trap.arguments]
VERIFIED = {part.trap for part in PARTS} | {"bias-missing", "bias-added"}

# Mistakes that are no argument, so that no finding has a `fix` for them.
OTHERS = (
    vectors("gelu-quick", "F.gelu(x)", "x * nnx.sigmoid(1.702 * x)"),
    vectors("silu-is-gelu", "F.silu(x)", "nnx.gelu(x)"),
    vectors("relu-missing", "F.relu(x)", "x"),
    pixels("flip-missing", "x.flip(3) + F.relu(x)", "x + nnx.relu(x)"),
    pixels("pool-is-average", "F.max_pool2d(x, 2)", "nnx.avg_pool(x, (2, 2), (2, 2))"),
)


def called(part: Part) -> set[str]:
    """Return the functions that Flax's part calls; a fix changes all calls of one function in a module."""
    return set() if part.layer else set(re.findall(r"\b(?:nnx|jnp|jax)[\w.]*\.(\w+)\(", part.flax))


def is_compatible(part: Part, others: Sequence[Part]) -> bool:
    """Return whether a part can stand in a file with others."""
    streams = {one.place for one in (part, *others)} & {"image", "sequence"}
    sizes = {one.size for one in (part, *others) if one.place == "image"}
    twice = any(part.place == one.place and part.place in ALONE for one in others)
    return len(streams) < 2 and len(sizes) < 2 and not twice and not any(called(part) & called(one) for one in others)


# Of these a file has one.
ALONE = ("loss", "training")


def groups(parts: Sequence[Part], most: int) -> list[list[Part]]:
    """Return all parts in files of at most so many."""
    found: list[list[Part]] = []
    for part in parts:
        fitting = (group for group in found if len(group) < most and is_compatible(part, group))
        group = next(fitting, None)
        found += [[part]] if group is None else []
        if group is not None:
            group.append(part)
    return found


def drawn(number: int, seed: int = 0) -> list[list[Part]]:
    """Return so many ports of one to three mistakes, a quarter of which has one that is no argument."""
    rng = random.Random(seed)
    found: list[list[Part]] = []
    for i in range(number):
        group = [rng.choice(OTHERS)] if i % 4 == 3 else []
        size = 1 + i % 3
        while len(group) < size:
            part = rng.choice(PARTS)
            group += [part] if part not in group and is_compatible(part, group) else []
        rng.shuffle(group)
        found.append(group)
    return found


HEAD = '''"""A port with mistakes, and PyTorch's model."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch
import torch.nn.functional as F
from flax import nnx
from torch import nn

import parity
from ports import losses, optim


class OwnRMSNorm(nn.Module):
    def __init__(self, width, eps):
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(width)), eps

    def forward(self, x):
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps) * self.weight


class Both(nnx.Module):
    def __init__(self, forward, backward):
        self.forward, self.backward = forward, backward

    def __call__(self, x):
        return jnp.concatenate([self.forward(x), self.backward(x)], -1)


'''


def source(parts: Sequence[Part]) -> str:
    """Return a file whose function `make` returns both models, their inputs and options.

    Args:
        parts: of images or of sequences, not of both; at most one training and one loss.
    """
    inner = [part for part in parts if part.place in ("image", "sequence")]
    of_images = any(part.place == "image" for part in inner)
    width = 6 if of_images else 8
    torch_lines, flax_lines = [], []
    torch_calls, flax_calls = ["x = self.first(x)"], ["x = self.first(x)"]
    widths = [part.width for part in inner] or [width]

    def mixed(name: str, before: int, after: int) -> None:
        torch_lines.append(
            f"self.{name} = nn.{f'Conv2d({before}, {after}, 1)' if of_images else f'Linear({before}, {after})'}"
        )
        layer = f"Conv({before}, {after}, (1, 1), rngs=rngs)" if of_images else f"Linear({before}, {after}, rngs=rngs)"
        flax_lines.append(f"self.{name} = nnx.{layer}")

    mixed("first", width, widths[0])
    for i, part in enumerate(inner):
        if part.layer:
            torch_lines.append(f"self.part{i} = {part.torch}")
            flax_lines.append(f"self.part{i} = {part.flax}")
        torch_calls.append(f"x = {part.call.format(f'self.part{i}') if part.layer else part.torch}")
        flax_calls.append(f"x = {f'self.part{i}(x)' if part.layer else part.flax}")
        mixed(f"mix{i}", part.width, [*widths[1:], width][i])
        torch_calls.append(f"x = self.mix{i}(torch.tanh(x))")
        flax_calls.append(f"x = self.mix{i}(jnp.tanh(x))")
    torch_lines.append(f"self.head = nn.Linear({width}, 3)")
    flax_lines.append(f"self.head = nnx.Linear({width}, 3, rngs=rngs)")
    axes = ("(2, 3)", "(1, 2)") if of_images else ("1", "1")
    torch_calls.append(f"return self.head((x ** 2).mean({axes[0]}))")
    flax_calls.append(f"return self.head((x ** 2).mean({axes[1]}))")
    size = next((part.size for part in inner if part.size != (9, 8)), (9, 8))
    shape = (3, 6, *size) if of_images else (3, 6, 8)
    lines = [
        *_class(
            "Model", "nn.Module", "def __init__(self):", ["super().__init__()", *torch_lines], "forward", torch_calls
        ),
        *_class("Port", "nnx.Module", "def __init__(self, rngs):", flax_lines, "__call__", flax_calls),
        "def make():",
        "    torch.manual_seed(0)",
        f"    x = np.random.default_rng(0).standard_normal({shape}).astype(np.float32)",
        "    model = Model()",
        f"    options = {{{', '.join(_options(parts))}}}",
        "    return model, parity.move(model, Port(nnx.Rngs(0)), x), x, options",
    ]
    return HEAD + "\n".join(lines) + "\n"


def _class(name: str, base: str, head: str, made: Sequence[str], call: str, called: Sequence[str]) -> list[str]:
    lines = [f"class {name}({base}):", f"    {head}", *(f"        {line}" for line in made), ""]
    return [*lines, f"    def {call}(self, x):", *(f"        {line}" for line in called), "", ""]


def _options(parts: Sequence[Part]) -> list[str]:
    found = ['"steps": 3']
    if any("BatchNorm" in part.torch for part in parts):
        found.append('"accept": ["bn-running-var"]')
    for part in parts:
        if part.place == "training":
            found += [f'"optimizer": lambda params: {part.torch}', f'"tx": {part.flax}']
        if part.place == "loss":
            found.append(f'"loss": (lambda y: {part.torch}, lambda y: {part.flax})')
    return found
