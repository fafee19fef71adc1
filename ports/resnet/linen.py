"""Residual networks in Flax Linen, NHWC. Read beside pytorch.py and nnx.py: the same classes in the same order.

Follows torchvision's resnet.py in names and initial distributions. BatchNorm is PyTorch's: the running variance is
unbiased, the variance is computed in two passes, and statistics are float32 at least.

`train` is an argument of every call: `module.apply(variables, x, train=True, mutable=["batch_stats"])`.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.linen import initializers
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


def conv2d(conv: Conv, init: str = "pytorch", **kw: Any) -> nn.Conv:
    return nn.Conv(
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


class BatchNorm(nn.BatchNorm):
    """PyTorch's BatchNorm over the last axis; `use_running_average` chooses the mode of each call.

    Computes in float32 at least, whatever the type of the input, and gives the input's type back.
    """

    momentum: float = 0.9
    epsilon: float = 1e-5

    @nn.compact
    def __call__(self, x: Any, use_running_average: bool | None = None, *, mask: Any = None) -> Any:
        eval_mode = nn.merge_param("use_running_average", self.use_running_average, use_running_average)
        if mask is not None:
            raise NotImplementedError("BatchNorm: a mask has no counterpart in PyTorch")
        shape, at_least_float32 = x.shape[-1:], jnp.promote_types(self.param_dtype, jnp.float32)
        scale = self.param("scale", self.scale_init, shape, self.param_dtype)
        bias = self.param("bias", self.bias_init, shape, self.param_dtype)
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, shape, at_least_float32)
        running_var = self.variable("batch_stats", "var", jnp.ones, shape, at_least_float32)
        count = self.variable("batch_stats", "num_batches_tracked", jnp.zeros, (), jnp.int32)
        dtype, x = x.dtype, x.astype(jnp.promote_types(x.dtype, jnp.float32))
        if eval_mode:
            mean, var = running_mean.value, running_var.value
        else:
            axes, n = tuple(range(x.ndim - 1)), x.size // x.shape[-1]
            if n == 1:
                raise UserError(one_value_message(x.shape))
            mean = x.mean(axes)
            var = jnp.square(x - mean).mean(axes)
            if not self.is_initializing():
                old, new = self.momentum, 1 - self.momentum
                running_mean.value = (old * running_mean.value + new * mean).astype(running_mean.value.dtype)
                unbiased = new * (n / (n - 1)) * var
                running_var.value = (old * running_var.value + unbiased).astype(running_var.value.dtype)
                count.value += 1
        y = (x - mean) * (jax.lax.rsqrt(var + self.epsilon) * scale) + bias
        return y.astype(dtype)


def one_value_message(shape: tuple[int, ...]) -> str:
    return f"BatchNorm in train mode: got input {shape}, one value a channel; expected two or more (a larger batch)"


def batch_norm(*, zero: bool = False, folded: bool = False, dtype: Any = None, **kw: Any) -> Any:
    if folded:
        return identity
    return BatchNorm(scale_init=initializers.zeros_init() if zero else initializers.ones_init(), **kw)


def zero_pad(x: Image, channels: int, stride: int) -> Image:
    """Option A: every `stride`-th pixel, and channels of zeros on both sides (He et al. 2016a, section 3.3)."""
    extra = channels - x.shape[-1]
    return jnp.pad(x[:, ::stride, ::stride], ((0, 0), (0, 0), (0, 0), (extra // 2, extra - extra // 2)))


def avg_pool(x: Image, stride: int) -> Image:
    """PyTorch's AvgPool2d(stride, ceil_mode=True, count_include_pad=False)."""
    padding: Any = [(0, -size % stride) for size in x.shape[1:3]]
    return nn.avg_pool(x, (stride, stride), strides=(stride, stride), padding=padding, count_include_pad=False)


def dilated_avg_pool(x: Image, size: int, dilation: int) -> Image:
    """What `avg_pool` computes, at every place, over values `dilation` apart."""
    padding = [(0, 0), *2 * [(0, (size - 1) * dilation)], (0, 0)]

    def total(x: Any) -> Any:
        return jax.lax.reduce_window(
            x, 0.0, jax.lax.add, (1, size, size, 1), (1, 1, 1, 1), padding, window_dilation=(1, dilation, dilation, 1)
        )

    return total(x) / total(jnp.ones_like(x[:1, :, :, :1]))


def identity(x: Image, **_: Any) -> Image:
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
        layers.append(batch_norm(folded=conv.folded, **kw))
    return layers


def sequential(layers: Sequence[Any], x: Any, train: bool) -> Any:
    """Applies `layers` in order; those that have a mode are told it."""
    for layer in layers:
        if isinstance(layer, BatchNorm):
            x = layer(x, use_running_average=not train)
        elif isinstance(layer, ResidualBlock | PreActBlock):
            x = layer(x, train=train)
        else:
            x = layer(x)
    return x


class ResidualBlock(nn.Module):
    """v1: convolution, BN, ReLU, …, convolution, BN, plus the shortcut, ReLU (He et al. 2016a, figures 2 and 5)."""

    in_channels: int
    out_channels: int
    stride: int = 1
    first_dilation: int = 1
    dilation: int = 1
    block: Block = specs.BASIC
    init_from: str = "pytorch"
    dtype: Any = None
    param_dtype: Any = jnp.float32

    def setup(self) -> None:
        kw, block = {"dtype": self.dtype, "param_dtype": self.param_dtype}, self.block
        convs = block.convs(self.in_channels, self.out_channels, self.stride, self.first_dilation, self.dilation)
        for i, conv in enumerate(convs, 1):
            last = i == len(block.kernels)
            setattr(self, f"conv{i}", conv2d(conv, self.init_from, **kw))
            setattr(self, f"bn{i}", batch_norm(zero=last and block.zero_init_last, folded=conv.folded, **kw))
        self.downsample = downsample(
            block,
            self.in_channels,
            self.out_channels,
            self.stride,
            (self.first_dilation, self.dilation),
            self.init_from,
            **kw,
        )

    def __call__(self, x: Image, train: bool = False) -> Image:
        out = x
        for i in range(1, len(self.block.kernels) + 1):
            out = getattr(self, f"bn{i}")(getattr(self, f"conv{i}")(out), use_running_average=not train)
            if i < len(self.block.kernels):
                out = nn.relu(out)
        if self.block.residual:
            out = out + self.shortcut(x, train)
        return nn.relu(out)

    def shortcut(self, x: Image, train: bool) -> Image:
        if self.downsample is not None:
            return sequential(self.downsample, x, train)
        return zero_pad(x, self.out_channels, self.stride) if self.block.shortcut == "zero_pad" else x


class PreActBlock(nn.Module):
    """v2: BN, ReLU, convolution, …, plus the shortcut (He et al. 2016b, figure 1b).

    A projection takes the activated input; a shortcut without parameters takes the input as it is.
    """

    in_channels: int
    out_channels: int
    stride: int = 1
    first_dilation: int = 1
    dilation: int = 1
    block: Block = specs.PREACT_BASIC
    init_from: str = "pytorch"
    dtype: Any = None
    param_dtype: Any = jnp.float32

    def setup(self) -> None:
        kw, block = {"dtype": self.dtype, "param_dtype": self.param_dtype}, self.block
        convs = block.convs(self.in_channels, self.out_channels, self.stride, self.first_dilation, self.dilation)
        for i, conv in enumerate(convs, 1):
            last = i == len(block.kernels)
            setattr(self, f"bn{i}", batch_norm(folded=block.folded and i > 1, **kw))
            setattr(self, f"conv{i}", conv2d(conv, "zeros" if last and block.zero_init_last else self.init_from, **kw))
        self.downsample = downsample(
            block,
            self.in_channels,
            self.out_channels,
            self.stride,
            (self.first_dilation, self.dilation),
            self.init_from,
            **kw,
        )

    def __call__(self, x: Image, train: bool = False) -> Image:
        out = activated = nn.relu(self.bn1(x, use_running_average=not train))
        for i in range(1, len(self.block.kernels) + 1):
            if i > 1:
                out = nn.relu(getattr(self, f"bn{i}")(out, use_running_average=not train))
            out = getattr(self, f"conv{i}")(out)
        return out + self.shortcut(x, activated, train) if self.block.residual else out

    def shortcut(self, x: Image, activated: Image, train: bool) -> Image:
        if self.downsample is not None:
            return sequential(self.downsample, activated, train)
        return zero_pad(x, self.out_channels, self.stride) if self.block.shortcut == "zero_pad" else x


class ResNet(nn.Module):
    """The network that a `ResNetSpec` describes.

    Takes float images (batch, height, width, channels); gives logits (batch, classes), or with `features_only` a tuple
    of every stage's output (batch, height / stride, width / stride, channels), the finest first.
    """

    spec: ResNetSpec
    dtype: Any = None
    param_dtype: Any = jnp.float32

    def setup(self) -> None:
        kw, spec = {"dtype": self.dtype, "param_dtype": self.param_dtype}, self.spec
        stem = stem_layers(spec, **kw)
        setattr(self, spec.stem.name, stem if len(stem) > 1 else stem[0])
        if spec.stem.norm == "after":
            self.bn1 = batch_norm(folded=spec.block.folded, **kw)
        block_class = PreActBlock if spec.block.preactivation else ResidualBlock
        for stage in spec.layout():
            if stage.transition is not None:
                conv, bn = stage.transition_names
                setattr(self, conv, conv2d(stage.transition, spec.init, **kw))
                setattr(self, bn, batch_norm(folded=stage.transition.folded, **kw))
            blocks = {
                b.name: block_class(
                    b.in_channels, b.out_channels, b.stride, b.first_dilation, b.dilation, spec.block, spec.init, **kw
                )
                for b in stage.blocks
            }
            if stage.name is not None:
                setattr(self, stage.name, list(blocks.values()))
            else:
                for name, block in blocks.items():
                    setattr(self, name, block)
        if not spec.features_only:
            if spec.block.preactivation:
                self.bn = batch_norm(**kw)
            self.fc = linear(spec.features, spec.num_classes, **kw)

    def __call__(self, x: Image, train: bool = False) -> Float[Array, "batch classes"] | tuple[Image, ...]:
        stem = getattr(self, self.spec.stem.name)
        x = sequential(stem if isinstance(stem, Sequence) else [stem], x, train)
        if self.spec.stem.norm == "after":
            x = nn.relu(self.bn1(x, use_running_average=not train))
        if self.spec.stem.max_pool:
            x = nn.max_pool(x, (3, 3), strides=(2, 2), padding=ONE_PIXEL)
        features = []
        for stage in self.spec.layout():
            if stage.transition is not None:
                conv, bn = stage.transition_names
                x = nn.relu(getattr(self, bn)(getattr(self, conv)(x), use_running_average=not train))
            if stage.name is not None:
                x = sequential(getattr(self, stage.name), x, train)
            else:
                x = sequential([getattr(self, b.name) for b in stage.blocks], x, train)
            features.append(x)
        if self.spec.features_only:
            return tuple(features)
        if self.spec.block.preactivation:
            x = nn.relu(self.bn(x, use_running_average=not train))
        return self.fc(x.mean(axis=(1, 2)))


def stem_layers(spec: ResNetSpec, **kw: Any) -> list[Any]:
    """Convolutions with BN and ReLU between them, and behind the last one where `norm` is `inside`."""
    layers: list[Any] = []
    for conv in spec.stem.layers(spec.in_channels, spec.block.folded):
        layers += [conv2d(conv, spec.init, **kw), batch_norm(folded=conv.folded, **kw), nn.relu]
    return layers if spec.stem.norm == "inside" else layers[:-2]


def linear(in_features: int, out_features: int, **kw: Any) -> nn.Dense:
    return nn.Dense(out_features, kernel_init=pytorch_default, bias_init=bias_init(in_features), **kw)


def create(
    name: str | ResNetSpec, *, seed: int | None = 0, dtype: str = "float32", **changes: Any
) -> tuple[ResNet, Any]:
    """A module and its variables (`params`, `batch_stats`), the weights drawn from `seed`.

    Args:
        seed: None leaves every weight zero, for a network whose weights are written next.
        dtype: type of the activations; weights have it too, but with bfloat16 they are float32.
        changes: fields of `ResNetSpec` or `Block`, as in `ports.resnet.spec.get`.

    Raises:
        UserError: unknown network, option or dtype; float64 while JAX's x64 mode is off.
    """
    spec = specs.get(name, **changes)
    compute, param = dtypes(spec.name, dtype)
    module = ResNet(spec, dtype=compute, param_dtype=param)
    images = jnp.zeros((1, spec.input_size, spec.input_size, spec.in_channels), compute)
    init = partial(module.init, train=False)
    if seed is not None:
        return module, initial(module, jax.random.key(seed), images)
    shapes = jax.eval_shape(init, jax.random.key(0), images)
    return module, jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), shapes)


@partial(jax.jit, static_argnums=0)
def initial(module: ResNet, key: Any, images: Image) -> Any:
    """Compiled once per network, where `jax.jit(module.init)` would be compiled again at every call."""
    return module.init(key, images, train=False)


def dtypes(name: str, dtype: str) -> tuple[Any, Any]:
    """The type to compute in and the type of the parameters."""
    if dtype not in DTYPES:
        raise UserError(f"{name}: dtype: got {dtype!r}, expected one of {', '.join(DTYPES)}")
    if dtype == "float64" and not jax.config.read("jax_enable_x64"):
        raise UserError(f"{name}: float64 needs JAX's x64 mode: create and use it inside `with jax.enable_x64(True):`")
    return DTYPES[dtype], jnp.promote_types(DTYPES[dtype], jnp.float32)
