"""Every mistake in single layers, planted: a layer built otherwise, or a class of one's own that computes otherwise."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import torch
import torch.nn.functional as F
from flax import linen, nnx
from torch import nn

from ports.layers.nnx import BatchNorm

from . import weights
from .planted import Case, images, layer, moved, reading, returning
from .sequences import PADDED, Attention, Future, Masked, Recurrent, attends
from .weights import TOKENS

SECOND = "block.second"


def conv(right: Any, wrong: Any = nnx.Conv, kernel: Any = (3, 3), size: Any = (10, 6), out: int = 4, **kw: Any) -> Any:
    """conv, the convolution, global mean, linear."""
    kw = {"padding": ((1, 1), (1, 1)), **kw}
    return layer(lambda: right, lambda rngs: wrong(4, out, kernel, rngs=rngs, **kw), size=size, out=out)


class Causal(nn.Module):
    """Two convolutions over a sequence that see nothing later; the model pads."""

    def __init__(self) -> None:
        super().__init__()
        self.block = nn.ModuleDict({"first": nn.Conv1d(6, 4, 2), "second": nn.Conv1d(4, 5, 3, dilation=2)})
        self.fc = nn.Linear(5, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.tanh(self.block["first"](F.pad(x.mT, (1, 0))))
        return self.fc(torch.tanh(self.block["second"](F.pad(x, (4, 0))).mT))


class NNXCausal(nnx.Module):
    """`Causal`, whose second convolution pads on both sides."""

    def __init__(self) -> None:
        rngs = nnx.Rngs(0)
        second = nnx.Conv(4, 5, (3,), kernel_dilation=2, padding="SAME", rngs=rngs)
        self.block = nnx.Dict(first=nnx.Conv(6, 4, (2,), padding="CAUSAL", rngs=rngs), second=second)
        self.fc = nnx.Linear(5, 3, rngs=rngs)

    def __call__(self, x: Any) -> Any:
        return self.fc(jnp.tanh(self.block.second(jnp.tanh(self.block.first(x)))))


def not_causal() -> tuple[Any, ...]:
    return moved(Causal(), NNXCausal(), images(2, 9, 6))


def up(right: Any, wrong: Any = nnx.ConvTranspose, kernel: int = 3, **kw: Any) -> Any:
    """conv, the transposed convolution, mean of squares, linear: a plain mean is that of the flipped kernel, too."""
    kw = {"strides": (2, 2), "transpose_kernel": True, **kw}
    return layer(lambda: right, lambda rngs: wrong(4, 4, (kernel, kernel), rngs=rngs, **kw), squared=True)


def bn(cls: Any = BatchNorm, right: Any = None, size: Any = (5, 4), **attributes: Any) -> Any:
    """conv, BatchNorm, global mean, linear."""

    def wrong(rngs: nnx.Rngs) -> Any:
        norm = cls(4, rngs=rngs)
        for name, value in attributes.items():
            setattr(norm, name, value)
        return norm

    return layer(right or (lambda: nn.BatchNorm2d(4)), wrong, size=size)


def dense(cls: Any) -> Any:
    return layer(lambda: nn.Linear(4, 4), lambda rngs: cls(4, 4, rngs=rngs), size=(5,))


def layer_norm(wrong: Any, right: float = 1e-5, **kw: Any) -> Any:
    return layer(
        lambda: nn.LayerNorm(4, eps=right), lambda rngs: wrong(4, rngs=rngs, **{"epsilon": right, **kw}), size=(5,)
    )


def group_norm(number: int, channels: int = 6, **kw: Any) -> Any:
    """GroupNorm of two groups in PyTorch."""
    kw = {"epsilon": 1e-5, **kw}
    return layer(
        lambda: nn.GroupNorm(2, channels),
        lambda rngs: nnx.GroupNorm(channels, num_groups=number, rngs=rngs, **kw),
        channels=channels,
    )


def reads(cls: Any, **changes: Any) -> Any:
    """A layer that starts from other statistics, and updates them."""

    class Reads(cls):
        def __call__(self, *args: Any, **kw: Any) -> Any:
            for name, change in changes.items():
                variable = getattr(self, name)
                variable.set_value(change(variable.get_value()))
            return super().__call__(*args, **kw)

    return Reads


class Always(BatchNorm):
    """In one mode, whatever it is told."""

    mode = False

    def __call__(self, x: Any, use_running_average: bool | None = None, **kw: Any) -> Any:
        return super().__call__(x, use_running_average=self.mode, **kw)


class AlwaysEval(Always):
    """Never the batch's statistics."""

    mode = True


class NeverUpdating(BatchNorm):
    """The new statistics are not kept."""

    def __call__(self, x: Any, use_running_average: bool | None = None, **kw: Any) -> Any:
        before = self.mean.get_value(), self.var.get_value()
        y = super().__call__(x, use_running_average, **kw)
        self.mean[...], self.var[...] = before
        return y


class ConstantStatistics(BatchNorm):
    """No gradient through the batch's statistics."""

    def __call__(self, x: Any, use_running_average: bool | None = None, **kw: Any) -> Any:
        y = super().__call__(x, use_running_average, **kw)
        if self.use_running_average:
            return y
        mean, var = jax.lax.stop_gradient((x.mean((0, 1, 2)), x.var((0, 1, 2))))
        scale: Any = self.scale
        bias: Any = self.bias
        return (x - mean) * (jax.lax.rsqrt(var + self.epsilon) * scale[...]) + bias[...]


class Unbiased(nnx.LayerNorm):
    """The variance over n − 1."""

    def __call__(self, x: Any, **kw: Any) -> Any:
        scale: Any = self.scale
        bias: Any = self.bias
        centred = x - x.mean(-1, keepdims=True)
        return centred / jnp.sqrt(x.var(-1, keepdims=True, ddof=1) + self.epsilon) * scale[...] + bias[...]


class WithoutMean(nnx.LayerNorm):
    """RMSNorm with a bias."""

    def __call__(self, x: Any, **kw: Any) -> Any:
        scale: Any = self.scale
        bias: Any = self.bias
        return x * jax.lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + self.epsilon) * scale[...] + bias[...]


def stock_norm(features: int, rngs: nnx.Rngs) -> Any:
    return nnx.BatchNorm(features, momentum=0.9, epsilon=1e-5, use_fast_variance=False, rngs=rngs)


def rows(features: int, rngs: nnx.Rngs) -> Any:
    return returning(BatchNorm, lambda x: x.swapaxes(1, 3), lambda y: y.swapaxes(1, 3))(features, rngs=rngs)


def embedding(cls: Any, padding: int | None = None) -> Callable[[], tuple[Any, ...]]:
    """An embedding and a linear layer."""

    def make() -> tuple[Any, ...]:
        rngs = nnx.Rngs(0)
        model = nn.Sequential(nn.Embedding(7, 4, padding_idx=padding), nn.Linear(4, 3))
        return moved(model, nnx.Sequential(cls(7, 4, rngs=rngs), nnx.Linear(4, 3, rngs=rngs)), TOKENS - 1)

    return make


def recurrent(right: Any, cell: Any, **settings: Any) -> Callable[[], tuple[Any, ...]]:
    """A recurrent layer between two linear ones; as many steps as examples."""

    class Flax(linen.Module):
        @linen.compact
        def __call__(self, x: Any) -> Any:
            rnn: Any = linen.RNN(cell(4), name="rnn", **settings)
            return linen.Dense(3, name="head")(rnn(x))

    def make() -> tuple[Any, ...]:
        x = images(5, 5, 3)
        return moved(Recurrent(right(3, 4, batch_first=True)), (Flax(), Flax().init(jax.random.key(0), x)), x)

    return make


def bfloat16(v: Any) -> Any:
    """Eight bits of the mantissa, by sums alone (Dekker 1971): the check undoes a cast, as every pin of a type."""
    large = v * (2.0**45 + 1)
    return large - (large - v)


def stopped(cls: Any) -> Any:
    return returning(cls, after=jax.lax.stop_gradient)


SAME = nn.Conv2d(4, 4, 3, padding=1)
STOP = jax.lax.stop_gradient
LAYERS = (
    Case("conv-padding-same", conv(nn.Conv2d(4, 4, 3, 2, 1), strides=2, padding="SAME"), SECOND),
    Case("conv-not-causal", not_causal, SECOND),
    Case("conv-padding-none", conv(nn.Conv2d(4, 4, 3, padding=1), padding="VALID"), SECOND),
    Case("conv-stride-one", conv(nn.Conv2d(4, 4, 3, 2, 1)), SECOND),
    Case("conv-stride-two", conv(SAME, strides=2), SECOND),
    Case("conv-stride-exchanged", conv(nn.Conv2d(4, 4, 3, (2, 1), 1), strides=(1, 2), size=(9, 6)), SECOND),
    Case(
        "conv-padding-exchanged",
        conv(nn.Conv2d(4, 4, (3, 1), padding=(1, 0)), kernel=(3, 1), padding=((0, 0), (1, 1))),
        SECOND,
    ),
    Case("conv-dilation-forgotten", conv(nn.Conv2d(4, 4, 3, padding=2, dilation=2)), SECOND),
    Case("conv-padding-zeros", conv(nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect")), SECOND),
    Case(
        "conv-padding-circular",
        conv(nn.Conv2d(4, 4, 3, padding=1, padding_mode="replicate"), padding="CIRCULAR"),
        SECOND,
    ),
    Case(
        "conv-padding-reflect", conv(nn.Conv2d(4, 4, 3, padding=1, padding_mode="replicate"), padding="REFLECT"), SECOND
    ),
    Case("kernel-transposed", conv(SAME, reading(nnx.Conv, kernel=lambda k: k.swapaxes(0, 1))), SECOND),
    Case("kernel-flipped", conv(SAME, reading(nnx.Conv, kernel=lambda k: k[::-1, ::-1])), SECOND),
    Case("kernel-in-out-exchanged", conv(SAME, reading(nnx.Conv, kernel=lambda k: k.swapaxes(2, 3))), SECOND),
    Case("linear-transposed", dense(reading(nnx.Linear, kernel=lambda k: k.T)), SECOND),
    Case("bias-lost", dense(reading(nnx.Linear, bias=jnp.zeros_like)), SECOND),
    Case("bias-lost", conv(SAME, reading(nnx.Conv, bias=jnp.zeros_like)), SECOND),
    Case(
        "conv-transpose-flipped",
        up(nn.ConvTranspose2d(4, 4, 3, 2), reading(nnx.ConvTranspose, kernel=lambda k: k[::-1, ::-1]), padding="VALID"),
        SECOND,
    ),
    Case("conv-transpose-padding-copied", up(nn.ConvTranspose2d(4, 4, 4, 2, 1), kernel=4, padding=1), SECOND),
    Case("conv-transpose-padding-none", up(nn.ConvTranspose2d(4, 4, 4, 2, 1), kernel=4, padding="VALID"), SECOND),
    Case("conv-transpose-output-padding-lost", up(nn.ConvTranspose2d(4, 4, 3, 2, 1, 1), padding=1), SECOND),
    Case("conv-transpose-same", up(nn.ConvTranspose2d(4, 4, 3, 2, 1, 1), padding="SAME"), SECOND),
    Case("bn-epsilon-1e-3", bn(epsilon=1e-3), SECOND),
    Case("bn-epsilon-1e-6", bn(epsilon=1e-6), SECOND),
    Case("bn-momentum-0.99", bn(momentum=0.99), SECOND),
    Case("bn-momentum-copied", bn(momentum=0.1), SECOND),
    Case("bn-momentum-cumulative", bn(right=lambda: nn.BatchNorm2d(4, momentum=None)), SECOND),
    Case("bn-running-var", bn(stock_norm), SECOND),
    Case("bn-always-train", bn(Always), SECOND),
    Case("bn-always-eval", bn(AlwaysEval), SECOND),
    Case("bn-update-lost", bn(NeverUpdating), SECOND),
    Case("bn-mean-lost", bn(reads(BatchNorm, mean=jnp.zeros_like)), SECOND),
    Case("bn-variance-lost", bn(reads(BatchNorm, var=jnp.ones_like)), SECOND),
    Case("bn-mean-bfloat16", bn(reads(BatchNorm, mean=bfloat16)), SECOND),
    Case("bn-variance-bfloat16", bn(reads(BatchNorm, var=bfloat16)), SECOND),
    Case("bn-axis", bn(rows, size=(4, 5)), SECOND),
    Case("norm-scale-lost", bn(reading(BatchNorm, scale=jnp.ones_like)), SECOND),
    Case("norm-scale-lost", layer_norm(reading(nnx.LayerNorm, scale=jnp.ones_like)), SECOND),
    Case("norm-bias-lost", bn(reading(BatchNorm, bias=jnp.zeros_like)), SECOND),
    Case("norm-epsilon-1e-6", layer_norm(nnx.LayerNorm, epsilon=1e-6), SECOND),
    Case("norm-epsilon-1e-6", group_norm(2, epsilon=1e-6), SECOND),
    Case("norm-epsilon-1e-6", layer(lambda: nn.RMSNorm(4), lambda rngs: nnx.RMSNorm(4, rngs=rngs), size=(5,)), SECOND),
    Case("norm-epsilon-1e-5", layer_norm(nnx.LayerNorm, 1e-12, epsilon=1e-5), SECOND),
    Case("norm-epsilon-1e-12", layer_norm(nnx.LayerNorm, 1e-5, epsilon=1e-12), SECOND),
    Case("norm-epsilon-1e-3", layer_norm(nnx.LayerNorm, 1e-5, epsilon=1e-3), SECOND),
    Case("norm-epsilon-1e-8", layer_norm(nnx.LayerNorm, 1e-5, epsilon=1e-8), SECOND),
    Case("group-norm-32-groups", group_norm(32, channels=64), SECOND),
    Case("group-norm-one-group", group_norm(1), SECOND),
    Case("group-norm-per-channel", group_norm(6), SECOND),
    Case("group-norm-group-size", group_norm(3), SECOND),
    Case("layer-norm-over-time", layer_norm(nnx.LayerNorm, reduction_axes=(1, 2)), SECOND),
    Case("layer-norm-keeps-mean", layer_norm(WithoutMean), SECOND),
    Case("layer-norm-unbiased", layer_norm(Unbiased), SECOND),
    Case("embedding-scaled", embedding(returning(nnx.Embed, after=lambda y: y * 2)), "0"),
    Case("embedding-padding-gradient", embedding(nnx.Embed, 0), "0"),
    Case("attention-mask-opposite", attends(Masked, PADDED[:, None, None]), "attention"),
    Case("attention-padding-seen", attends(Masked, None), "attention"),
    Case("attention-future-seen", attends(Future, None), "attention"),
    Case("attention-scores-unscaled", attends(Attention, None, 2.0), "attention"),
    Case("recurrent-reversed", recurrent(nn.LSTM, linen.OptimizedLSTMCell, reverse=True, keep_order=True), "rnn"),
    Case("recurrent-over-batch", recurrent(nn.LSTM, linen.OptimizedLSTMCell, time_major=True), "rnn"),
    Case("gru-hidden-bias-lost", weights.gru_without_hidden_bias, "rnn"),
    Case("bn-statistics-constant", bn(ConstantStatistics), SECOND),
    Case("parameters-frozen", dense(reading(nnx.Linear, kernel=STOP, bias=STOP)), SECOND),
    Case("parameters-frozen", conv(SAME, reading(nnx.Conv, kernel=STOP, bias=STOP)), SECOND),
    Case("layer-gradient-stopped", dense(stopped(nnx.Linear)), SECOND),
)
