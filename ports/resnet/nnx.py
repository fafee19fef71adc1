"""Residual networks in Flax NNX, NHWC. Read beside pytorch.py and linen.py: the same classes in the same order.

Follows torchvision's resnet.py in names and initial distributions. BatchNorm is PyTorch's: the running variance is
unbiased, the variance is computed in two passes, and statistics are float32 at least.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from flax.nnx.nn import initializers
from jaxtyping import Array, Float

from ports.errors import UserError
from ports.resnet import spec as specs
from ports.resnet.convolution import conv_general_dilated
from ports.resnet.spec import Block, Conv, ResNetSpec

DTYPES = {"float32": jnp.float32, "float64": jnp.float64, "bfloat16": jnp.bfloat16}

Image = Float[Array, "batch height width channels"]

ONE_PIXEL: Any = ((1, 1), (1, 1))  # on every side, as PyTorch pads

kaiming_fan_out = initializers.variance_scaling(2.0, "fan_out", "normal")
pytorch_default = initializers.variance_scaling(1 / 3, "fan_in", "uniform")
KERNEL_INITS = {"torchvision": kaiming_fan_out, "pytorch": pytorch_default, "zeros": initializers.zeros_init()}


def bias_init(fan_in: int) -> Any:
    """PyTorch's default for biases of convolutions and linear layers: uniform in ±1/√fan_in."""
    return lambda key, shape, dtype, **_: jax.random.uniform(key, shape, dtype, -1, 1) / fan_in**0.5


def conv2d(conv: Conv, init: str = "pytorch", **kw: Any) -> nnx.Conv:
    return nnx.Conv(
        conv.in_channels,
        conv.out_channels,
        (conv.kernel_size, conv.kernel_size),
        strides=conv.stride,
        padding=conv.padding,
        kernel_dilation=conv.dilation,
        feature_group_count=conv.groups,
        use_bias=conv.bias,
        kernel_init=KERNEL_INITS[init],
        bias_init=initializers.zeros_init()
        if init == "zeros"
        else bias_init(conv.in_channels // conv.groups * conv.kernel_size**2),
        conv_general_dilated=conv_general_dilated,
        **kw,
    )


class BatchNorm(nnx.BatchNorm):
    """PyTorch's BatchNorm over the last axis; `train()` and `eval()` on any module above it choose the mode.

    Computes in float32 at least, whatever the type of the input, and gives the input's type back.
    """

    def __init__(self, num_features: int, *, param_dtype: Any = jnp.float32, rngs: nnx.Rngs, **kw: Any) -> None:
        super().__init__(num_features, momentum=0.9, epsilon=1e-5, param_dtype=param_dtype, rngs=rngs, **kw)
        dtype = jnp.promote_types(param_dtype, jnp.float32)
        self.mean = nnx.BatchStat(jnp.zeros(num_features, dtype))
        self.var = nnx.BatchStat(jnp.ones(num_features, dtype))
        self.num_batches_tracked = nnx.BatchStat(jnp.zeros((), jnp.int32))

    def __call__(self, x: Any, use_running_average: bool | None = None, **_: Any) -> Any:
        eval_mode = self.use_running_average if use_running_average is None else use_running_average
        assert self.scale is not None
        assert self.bias is not None
        dtype, x = x.dtype, x.astype(jnp.promote_types(x.dtype, jnp.float32))
        if eval_mode:
            mean, var = self.mean[...], self.var[...]
        else:
            axes, n = tuple(range(x.ndim - 1)), x.size // x.shape[-1]
            if n == 1:
                raise UserError(one_value_message(x.shape))
            mean = x.mean(axes)
            var = jnp.square(x - mean).mean(axes)
            old, new = self.momentum, 1 - self.momentum
            self.mean[...] = (old * self.mean[...] + new * mean).astype(self.mean.dtype)
            unbiased = new * (n / (n - 1)) * var
            self.var[...] = (old * self.var[...] + unbiased).astype(self.var.dtype)
            self.num_batches_tracked[...] += 1
        y = (x - mean) * (jax.lax.rsqrt(var + self.epsilon) * self.scale[...]) + self.bias[...]
        return y.astype(dtype)


def one_value_message(shape: tuple[int, ...]) -> str:
    return f"BatchNorm in train mode: got input {shape}, one value a channel; expected two or more (a larger batch)"


def batch_norm(channels: int, *, zero: bool = False, folded: bool = False, dtype: Any = None, **kw: Any) -> Any:
    if folded:
        return identity
    return BatchNorm(channels, scale_init=initializers.zeros_init() if zero else initializers.ones_init(), **kw)


def zero_pad(x: Image, channels: int, stride: int) -> Image:
    """Option A: every `stride`-th pixel, and channels of zeros on both sides (He et al. 2016a, section 3.3)."""
    extra = channels - x.shape[-1]
    return jnp.pad(x[:, ::stride, ::stride], ((0, 0), (0, 0), (0, 0), (extra // 2, extra - extra // 2)))


def avg_pool(x: Image, stride: int) -> Image:
    """PyTorch's AvgPool2d(stride, ceil_mode=True, count_include_pad=False)."""
    padding: Any = [(0, -size % stride) for size in x.shape[1:3]]
    return nnx.avg_pool(x, (stride, stride), strides=(stride, stride), padding=padding, count_include_pad=False)


def dilated_avg_pool(x: Image, size: int, dilation: int) -> Image:
    """What `avg_pool` computes, at every place, over values `dilation` apart."""
    padding = [(0, 0), *2 * [(0, (size - 1) * dilation)], (0, 0)]

    def total(x: Any) -> Any:
        return jax.lax.reduce_window(
            x, 0.0, jax.lax.add, (1, size, size, 1), (1, 1, 1, 1), padding, window_dilation=(1, dilation, dilation, 1)
        )

    return total(x) / total(jnp.ones_like(x[:1, :, :, :1]))


def identity(x: Image) -> Image:
    return x


def downsample(
    block: Block, in_channels: int, out_channels: int, stride: int, dilations: tuple[int, int], init: str, **kw: Any
) -> Any:
    """The layers on the shortcut; None where it has none: identity, or `zero_pad`."""
    replaced = dilations[1] // dilations[0]
    conv = block.projection(in_channels, out_channels, stride, replaced)
    if conv is None:
        return None
    layers: list[Any] = [conv2d(conv, init, **kw)]
    if block.pooled:
        pool = partial(avg_pool, stride=stride) if stride > 1 else identity
        dilated = partial(dilated_avg_pool, size=replaced, dilation=dilations[0])
        layers.insert(0, dilated if replaced > 1 else pool)
    if block.shortcut_norm:
        layers.append(batch_norm(out_channels, folded=conv.folded, **kw))
    return nnx.Sequential(*layers)


class ResidualBlock(nnx.Module):
    """v1: convolution, BN, ReLU, …, convolution, BN, plus the shortcut, ReLU (He et al. 2016a, figures 2 and 5)."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        stride: int = 1,
        first_dilation: int = 1,
        dilation: int = 1,
        block: Block = specs.BASIC,
        init: str = "pytorch",
        **kw: Any,
    ) -> None:
        kw.setdefault("rngs", nnx.Rngs(0))
        self.out_channels, self.stride, self.block = out_channels, stride, block
        for i, conv in enumerate(block.convs(in_channels, out_channels, stride, first_dilation, dilation), 1):
            last = i == len(block.kernels)
            setattr(self, f"conv{i}", conv2d(conv, init, **kw))
            setattr(
                self,
                f"bn{i}",
                batch_norm(conv.out_channels, zero=last and block.zero_init_last, folded=conv.folded, **kw),
            )
        self.downsample = downsample(block, in_channels, out_channels, stride, (first_dilation, dilation), init, **kw)

    def __call__(self, x: Image) -> Image:
        out = x
        for i in range(1, len(self.block.kernels) + 1):
            out = getattr(self, f"bn{i}")(getattr(self, f"conv{i}")(out))
            if i < len(self.block.kernels):
                out = nnx.relu(out)
        if self.block.residual:
            out = out + self.shortcut(x)
        return nnx.relu(out)

    def shortcut(self, x: Image) -> Image:
        if self.downsample is not None:
            return self.downsample(x)
        return zero_pad(x, self.out_channels, self.stride) if self.block.shortcut == "zero_pad" else x


class PreActBlock(nnx.Module):
    """v2: BN, ReLU, convolution, …, plus the shortcut (He et al. 2016b, figure 1b).

    A projection takes the activated input; a shortcut without parameters takes the input as it is.
    """

    bn1: BatchNorm

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        stride: int = 1,
        first_dilation: int = 1,
        dilation: int = 1,
        block: Block = specs.PREACT_BASIC,
        init: str = "pytorch",
        **kw: Any,
    ) -> None:
        kw.setdefault("rngs", nnx.Rngs(0))
        self.out_channels, self.stride, self.block = out_channels, stride, block
        for i, conv in enumerate(block.convs(in_channels, out_channels, stride, first_dilation, dilation), 1):
            last = i == len(block.kernels)
            setattr(self, f"bn{i}", batch_norm(conv.in_channels, folded=block.folded and i > 1, **kw))
            setattr(self, f"conv{i}", conv2d(conv, "zeros" if last and block.zero_init_last else init, **kw))
        self.downsample = downsample(block, in_channels, out_channels, stride, (first_dilation, dilation), init, **kw)

    def __call__(self, x: Image) -> Image:
        out = activated = nnx.relu(self.bn1(x))
        for i in range(1, len(self.block.kernels) + 1):
            if i > 1:
                out = nnx.relu(getattr(self, f"bn{i}")(out))
            out = getattr(self, f"conv{i}")(out)
        return out + self.shortcut(x, activated) if self.block.residual else out

    def shortcut(self, x: Image, activated: Image) -> Image:
        if self.downsample is not None:
            return self.downsample(activated)
        return zero_pad(x, self.out_channels, self.stride) if self.block.shortcut == "zero_pad" else x


class ResNet(nnx.Module):
    """The network that a `ResNetSpec` describes.

    Takes float images (batch, height, width, channels); gives logits (batch, classes), or with `features_only` a tuple
    of every stage's output (batch, height / stride, width / stride, channels), the finest first.
    """

    def __init__(self, spec: ResNetSpec, **kw: Any) -> None:
        kw.setdefault("rngs", nnx.Rngs(0))
        self.spec = spec
        self.stages = spec.layout()
        stem = stem_layers(spec, **kw)
        setattr(self, spec.stem.name, nnx.Sequential(*stem) if len(stem) > 1 else stem[0])
        if spec.stem.norm == "after":
            self.bn1 = batch_norm(spec.stem.channels, folded=spec.block.folded, **kw)
        block_class = PreActBlock if spec.block.preactivation else ResidualBlock
        for stage in self.stages:
            if stage.transition is not None:
                conv, bn = stage.transition_names
                setattr(self, conv, conv2d(stage.transition, spec.init, **kw))
                setattr(self, bn, batch_norm(stage.channels, folded=stage.transition.folded, **kw))
            blocks = {
                b.name: block_class(
                    b.in_channels, b.out_channels, b.stride, b.first_dilation, b.dilation, spec.block, spec.init, **kw
                )
                for b in stage.blocks
            }
            if stage.name is not None:
                setattr(self, stage.name, nnx.Sequential(*blocks.values()))
            else:
                for name, block in blocks.items():
                    setattr(self, name, block)
        if not spec.features_only:
            if spec.block.preactivation:
                self.bn = batch_norm(spec.features, **kw)
            self.fc = linear(spec.features, spec.num_classes, **kw)

    def __call__(self, x: Image) -> Float[Array, "batch classes"] | tuple[Image, ...]:
        x = getattr(self, self.spec.stem.name)(x)
        if self.spec.stem.norm == "after":
            x = nnx.relu(self.bn1(x))
        if self.spec.stem.max_pool:
            x = nnx.max_pool(x, (3, 3), strides=(2, 2), padding=ONE_PIXEL)
        features = []
        for stage in self.stages:
            if stage.transition is not None:
                conv, bn = stage.transition_names
                x = nnx.relu(getattr(self, bn)(getattr(self, conv)(x)))
            for name in [stage.name] if stage.name is not None else [b.name for b in stage.blocks]:
                x = getattr(self, name)(x)
            features.append(x)
        if self.spec.features_only:
            return tuple(features)
        if self.spec.block.preactivation:
            x = nnx.relu(self.bn(x))
        return self.fc(x.mean(axis=(1, 2)))


def stem_layers(spec: ResNetSpec, **kw: Any) -> list[Any]:
    """Convolutions with BN and ReLU between them, and behind the last one where `norm` is `inside`."""
    layers: list[Any] = []
    for conv in spec.stem.layers(spec.in_channels, spec.block.folded):
        layers += [conv2d(conv, spec.init, **kw), batch_norm(conv.out_channels, folded=conv.folded, **kw), nnx.relu]
    return layers if spec.stem.norm == "inside" else layers[:-2]


def linear(in_features: int, out_features: int, **kw: Any) -> nnx.Linear:
    return nnx.Linear(in_features, out_features, kernel_init=pytorch_default, bias_init=bias_init(in_features), **kw)


def create(name: str | ResNetSpec, *, seed: int | None = 0, dtype: str = "float32", **changes: Any) -> ResNet:
    """A network with initial weights drawn from `seed`, in train mode.

    Args:
        seed: None leaves every weight zero, for a network whose weights are written next.
        dtype: type of the activations; weights have it too, but with bfloat16 they are float32.
        changes: fields of `ResNetSpec` or `Block`, as in `ports.resnet.spec.get`.

    Raises:
        UserError: unknown network, option or dtype; float64 while JAX's x64 mode is off.
    """
    spec = specs.get(name, **changes)
    compute, param = dtypes(spec.name, dtype)
    if seed is not None:
        return ResNet(spec, rngs=nnx.Rngs(seed), dtype=compute, param_dtype=param)
    graphdef, state = nnx.split(
        nnx.eval_shape(lambda: ResNet(spec, rngs=nnx.Rngs(0), dtype=compute, param_dtype=param))
    )
    return nnx.merge(graphdef, jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), state))


def dtypes(name: str, dtype: str) -> tuple[Any, Any]:
    """The type to compute in and the type of the parameters."""
    if dtype not in DTYPES:
        raise UserError(f"{name}: dtype: got {dtype!r}, expected one of {', '.join(DTYPES)}")
    if dtype == "float64" and not jax.config.read("jax_enable_x64"):
        raise UserError(f"{name}: float64 needs JAX's x64 mode: create and use it inside `with jax.enable_x64(True):`")
    return DTYPES[dtype], jnp.promote_types(DTYPES[dtype], jnp.float32)
