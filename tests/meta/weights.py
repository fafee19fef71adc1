"""Every mistake in moving weights, planted: in one tensor after the weights were moved, or in how layers are made."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import torch
from flax import nnx
from torch import Tensor, nn

from ports.layers.nnx import BatchNorm

from .planted import Block, Case, NNXBlock, between, images, layer, moved, sequence, tampered
from .sequences import Attention, NNXAttention, Recurrent

CONVS = between(torch.tanh, jnp.tanh)
DENSE = sequence(torch.tanh, jnp.tanh)
NORMS = layer(lambda: nn.BatchNorm2d(4), lambda rngs: BatchNorm(4, rngs=rngs))
KERNEL, MATRIX = "block.second.kernel", "block.second.kernel"


def norms() -> tuple[Any, ...]:
    """A BatchNorm with numbers of its own, which a fresh one has not."""
    model, flax, x = NORMS()
    with torch.no_grad():
        for name in ("weight", "bias", "running_mean", "running_var"):
            getattr(model.block.second, name).uniform_(0.5, 1.5)
    return moved(model, flax, x)


def transposed() -> tuple[Any, ...]:
    """A transposed convolution of as many channels in as out."""
    up: Any = functools.partial(nnx.ConvTranspose, 4, 4, (3, 3), strides=(2, 2), padding="VALID")
    return layer(lambda: nn.ConvTranspose2d(4, 4, 3, 2), lambda rngs: up(transpose_kernel=True, rngs=rngs))()


def wide() -> tuple[Any, ...]:
    """A convolution whose output channels are twice its input's."""
    return layer(lambda: nn.Conv2d(4, 8, 3), lambda rngs: nnx.Conv(4, 8, (3, 3), padding="VALID", rngs=rngs), out=8)()


def recurrent(right: Any, wrong: Any) -> Callable[[], tuple[Any, ...]]:
    """linear, LSTM or GRU, mean, linear: Linen's cell, whose variables are changed by `linen_tampered`."""

    class Flax(nnx.Module):
        def __init__(self) -> None:
            self.rnn: Any = nnx.RNN(wrong(3, 4, rngs=nnx.Rngs(0)))
            self.head = nnx.Linear(4, 3, rngs=nnx.Rngs(0))

        def __call__(self, x: Any) -> Any:
            return self.head(self.rnn(x))

    return lambda: moved(Recurrent(right(3, 4, batch_first=True)), Flax(), images(2, 5, 3))


LSTM = recurrent(nn.LSTM, nnx.OptimizedLSTMCell)
BIAS = "rnn.cell.dense_h.bias"


def gru() -> tuple[Any, ...]:
    """A GRU whose second bias is zero where NNX's cell has none."""

    def right(*args: Any, **kw: Any) -> Any:
        layer: Any = nn.GRU(*args, **kw)
        with torch.no_grad():
            layer.bias_hh_l0[8:] = 0
        return layer

    return recurrent(right, nnx.GRUCell)()


def gru_without_hidden_bias() -> tuple[Any, ...]:
    """A GRU whose second bias NNX's cell has no place for: it is set once the other weights were moved."""
    model, flax, x = gru()
    with torch.no_grad():
        model.rnn.bias_hh_l0[8:].uniform_(-1, 1)
    return model, flax, x


def gates(*order: int) -> Callable[[np.ndarray], np.ndarray]:
    return lambda k: np.concatenate([np.split(k, len(order), -1)[i] for i in order], -1)


def first_bias_only() -> tuple[Any, ...]:
    model, flax, x = LSTM()
    flax.rnn.cell.dense_h.bias.set_value(jnp.array(model.rnn.bias_ih_l0.detach().numpy()))
    return model, flax, x


def attention(change: Callable[[dict[str, Any]], dict[str, Any]]) -> Callable[[], tuple[Any, ...]]:
    """Attention whose three kernels and biases are changed."""

    def make() -> tuple[Any, ...]:
        with torch.no_grad():
            model = Attention()
            model.attention.in_proj_bias.uniform_(-1, 1)
        model, flax, x = moved(model, NNXAttention(), images(2, 5, 8))
        parts = {n: getattr(flax.attention, n) for n in ("query", "key", "value")}
        for leaf in ("kernel", "bias"):
            values = change({n: np.array(getattr(p, leaf).get_value()) for n, p in parts.items()})
            for n, value in values.items():
                getattr(parts[n], leaf).set_value(jnp.array(value))
        return model, flax, x

    return make


def interleaved(parts: dict[str, Any]) -> dict[str, Any]:
    """(…, heads, depth) read as (…, depth, heads)."""
    return {n: p.reshape(*p.shape[:-2], p.shape[-1], p.shape[-2]).swapaxes(-1, -2) for n, p in parts.items()}


class Tied(nn.Module):
    """Logits by the embedding's own weights."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.up, self.head = nn.Embedding(7, 4), nn.Linear(4, 4), nn.Linear(4, 7, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.up(self.embed(tokens)))


class Untied(nnx.Module):
    """`Tied` with a tensor for each."""

    def __init__(self) -> None:
        rngs = nnx.Rngs(0)
        self.embed, self.up = nnx.Embed(7, 4, rngs=rngs), nnx.Linear(4, 4, rngs=rngs)
        self.head = nnx.Linear(4, 7, use_bias=False, rngs=rngs)

    def __call__(self, tokens: Any) -> Any:
        return self.head(self.up(self.embed(tokens)))


TOKENS = np.random.default_rng(0).integers(1, 7, (3, 5))


def embedded() -> tuple[Any, ...]:
    torch_net = nn.Sequential(nn.Embedding(7, 4, padding_idx=0), nn.Linear(4, 3))
    rngs = nnx.Rngs(0)
    return moved(torch_net, nnx.Sequential(nnx.Embed(7, 4, rngs=rngs), nnx.Linear(4, 3, rngs=rngs)), TOKENS)


def chain(order: Callable[[list[int]], list[int]], fresh: bool = False) -> Callable[[], tuple[Any, ...]]:
    """Eleven linear layers, whose kernels and biases are taken in another order; or that hold weights of their own."""

    class Flax(nnx.Module):
        def __init__(self) -> None:
            self.layers = nnx.List([nnx.Linear(3, 3, rngs=nnx.Rngs(i)) for i in range(11)])

        def __call__(self, x: Any) -> Any:
            for dense in self.layers:
                x = jnp.tanh(dense(x))
            return x

    class Torch(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList([nn.Linear(3, 3) for _ in range(11)])

        def forward(self, x: Tensor) -> Tensor:
            for dense in self.layers:
                x = torch.tanh(dense(x))
            return x

    def make() -> tuple[Any, ...]:
        x = images(4, 3)
        if fresh:
            return Torch(), Flax(), x
        model, flax, x = moved(Torch(), Flax(), x)
        values = [(d.kernel.get_value(), d.bias.get_value()) for d in flax.layers]
        for dense, i in zip(flax.layers, order([*range(11)]), strict=True):
            dense.kernel.set_value(values[i][0])
            dense.bias.set_value(values[i][1])
        return model, flax, x

    return make


def lacking(torch_bias: bool = True, **settings: Any) -> Callable[[], tuple[Any, ...]]:
    """A port whose second layer is built otherwise; it has PyTorch's weights where they fit."""

    def make() -> tuple[Any, ...]:
        rngs, x = nnx.Rngs(0), images(2, 5, 3)
        model = Block(nn.Linear(3, 4), torch.tanh, nn.Linear(4, 6, bias=torch_bias))
        first, second = nnx.Linear(3, 4, rngs=rngs), nnx.Linear(4, **{"out_features": 6, **settings}, rngs=rngs)
        weights: Any = model.first
        first.kernel.set_value(jnp.array(weights.weight.detach().numpy().T))
        first.bias = nnx.Param(jnp.array(weights.bias.detach().numpy()))
        weights = model.second
        kernel = weights.weight.detach().numpy().T
        if second.kernel.get_value().shape == kernel.shape:
            second.kernel.set_value(jnp.array(kernel))
        return model, NNXBlock(first, jnp.tanh, second), x

    return make


def exchanged(a: str, b: str) -> Callable[[], tuple[Any, ...]]:
    """Two variables of the BatchNorm exchanged."""

    def make() -> tuple[Any, ...]:
        model, flax, x = norms()
        one, other = getattr(flax.block.second, a), getattr(flax.block.second, b)
        first, second = one.get_value(), other.get_value()
        one.set_value(second)
        other.set_value(first)
        return model, flax, x

    return make


def reshaped(k: np.ndarray) -> np.ndarray:
    """PyTorch's numbers in Flax's shape, without moving axes."""
    return np.moveaxis(k, (-1, -2), (0, 1)).reshape(k.shape)


def linen_kernel() -> tuple[Any, ...]:
    """A Linen port with a matrix that was not transposed."""
    model, (module, variables), x = sequence(torch.tanh, jnp.tanh, port="linen")()
    variables = jax.tree.map(lambda a: a, variables)
    second = variables["params"]["block"]["second"]
    second["kernel"] = second["kernel"].T
    return model, (module, variables), x


def swapped(order: list[int]) -> list[int]:
    return [order[1], order[0], *order[2:]]


SECOND, RNN = "block.second", "rnn"
WEIGHTS = (
    Case("kernel-in-out-exchanged", tampered(CONVS, KERNEL, lambda k: k.swapaxes(2, 3)), SECOND),
    Case("linear-transposed", tampered(DENSE, MATRIX, lambda k: k.T), SECOND),
    Case("linear-transposed", linen_kernel, SECOND),
    Case("kernel-flipped", tampered(CONVS, KERNEL, lambda k: k[::-1, ::-1]), SECOND),
    Case("kernel-flipped", tampered(transposed, KERNEL, lambda k: k[::-1, ::-1]), SECOND),
    Case("kernel-transposed", tampered(CONVS, KERNEL, lambda k: k.swapaxes(0, 1)), SECOND),
    Case("kernel-reshaped", tampered(CONVS, "block.first.kernel", reshaped), "block.first"),
    Case("kernel-groups-shuffled", tampered(wide, KERNEL, lambda k: k[..., [0, 4, 1, 5, 2, 6, 3, 7]]), SECOND),
    Case("lstm-gates-ifog", tampered(LSTM, "rnn.cell.dense_h.kernel", gates(0, 1, 3, 2)), RNN),
    Case("lstm-gates-igfo", tampered(LSTM, "rnn.cell.dense_i.kernel", gates(0, 2, 1, 3)), RNN),
    Case("lstm-gates-iofg", tampered(LSTM, "rnn.cell.dense_i.kernel", gates(0, 3, 1, 2)), RNN),
    Case(
        "lstm-forget-bias-added",
        tampered(LSTM, BIAS, lambda b: b + np.repeat(np.array([0, 1, 0, 0], np.float32), 4)),
        RNN,
    ),
    Case("gru-gates-zrn", tampered(gru, "rnn.cell.dense_i.kernel", gates(1, 0, 2)), RNN),
    Case("recurrent-bias-lost", first_bias_only, RNN),
    Case("attention-qkv-order", attention(lambda p: {"query": p["key"], "key": p["query"]}), "attention"),
    Case("attention-heads-interleaved", attention(interleaved), "attention"),
    Case("weight-lost", tampered(DENSE, MATRIX, np.zeros_like), SECOND),
    Case("weight-scaled", tampered(CONVS, KERNEL, lambda k: k / np.float32(0.226)), SECOND),
    Case("weights-through-float16", tampered(CONVS, KERNEL, lambda k: k.astype(np.float16)), SECOND),
    Case("weights-through-float16", tampered(norms, "block.second.var", lambda v: v.astype(np.float16)), SECOND),
    Case("weights-through-bfloat16", tampered(DENSE, MATRIX, lambda k: k.astype(ml_dtypes.bfloat16)), SECOND),
    Case("norm-scale-off-by-one", tampered(norms, "block.second.scale", lambda s: s - 1), SECOND),
    Case("bn-variance-is-deviation", tampered(norms, "block.second.var", np.sqrt), SECOND),
    Case("bn-mean-variance-exchanged", exchanged("mean", "var"), SECOND),
    Case("norm-scale-bias-exchanged", exchanged("scale", "bias"), SECOND),
    Case("embedding-padding-row", tampered(embedded, "layers.0.embedding", lambda e: np.where(e == 0, 0.3, e)), "0"),
    Case("rows-permuted", tampered(DENSE, MATRIX, lambda k: k[:, [2, 0, 1, 4, 5, 3]]), SECOND),
    Case("columns-permuted", tampered(DENSE, MATRIX, lambda k: k[[2, 0, 1, 4, 5, 3]]), SECOND),
    Case("weights-exchanged", chain(swapped), "layers.0"),
    Case("layers-in-sorted-order", chain(lambda order: sorted(order, key=str)), "layers.2"),
    Case("weights-not-moved", chain(list, fresh=True), "(the network)"),
    Case("weights-do-not-fit", lacking(out_features=5), "second"),
    Case("bias-missing", lacking(use_bias=False), "second"),
    Case("bias-added", lacking(torch_bias=False), "second"),
    Case("weights-not-tied", lambda: moved(Tied(), Untied(), TOKENS), "head"),
)
