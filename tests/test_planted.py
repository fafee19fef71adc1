"""Mistakes planted on purpose: each one turns the check red, at the layer where it stands.

A mistake is a row: the network, the port, what is done to it, and the layer and quantity that must be named.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from flax import linen, nnx
from small import (
    BASIC_NET,
    BOTTLENECK_NET,
    DILATED_NET,
    GROUPED_NET,
    OPTION_A_NET,
    POOLED_NET,
    PREACT_NET,
    ZERO_INIT_NET,
    reference,
    twin,
)

import parity
import ports.resnet.linen as linen_port
import ports.resnet.nnx as nnx_port
from ports.families import get
from ports.layers import linen as linen_layers
from ports.layers import nnx as nnx_layers
from ports.resnet.spec import ResNetSpec

pytestmark = pytest.mark.usefixtures("quick")

Patch = pytest.MonkeyPatch


@dataclass(frozen=True)
class Mistake:
    """`plant` changes the NNX network (or gives new Linen variables); `patch` changes code for the time of the test.

    `layer` is what the check must name; `ported` describes the port otherwise than the reference. `nightly` marks one
    that is found by the same way as another row.
    """

    name: str
    layer: str
    quantity: str
    spec: ResNetSpec = BASIC_NET
    port: str = "nnx"
    plant: Callable[[Any], Any] = lambda net: None
    patch: Callable[[Patch], None] = lambda patch: None
    ported: dict[str, Any] = field(default_factory=dict)
    fresh: bool = False
    nightly: bool = False


def set_value(variable: nnx.Variable, change: Callable[[jax.Array], jax.Array]) -> None:
    variable.set_value(change(variable.get_value()))


def kernel(path: Callable[[Any], Any], change: Callable[[jax.Array], jax.Array]) -> Callable[[Any], None]:
    return lambda net: set_value(path(net).kernel, change)


def attribute(path: Callable[[Any], Any], **values: Any) -> Callable[[Any], None]:
    def plant(net: Any) -> None:
        for name, value in values.items():
            setattr(path(net), name, value)

    return plant


def swapped(net: Any) -> None:
    block = net.layer1.layers[0]
    first, second = block.conv1.kernel.get_value(), block.conv2.kernel.get_value()
    block.conv1.kernel.set_value(second)
    block.conv2.kernel.set_value(first)


def stock_batch_norm(net: Any) -> None:
    """Flax's own BatchNorm with the momentum and epsilon of PyTorch: its running variance is biased."""
    ours = net.layer1.layers[0].bn1
    stock = nnx.BatchNorm(ours.num_features, momentum=0.9, epsilon=1e-5, use_fast_variance=False, rngs=nnx.Rngs(0))
    for name in ("mean", "var", "scale", "bias"):
        getattr(stock, name).set_value(getattr(ours, name).get_value())
    net.layer1.layers[0].bn1 = stock


class AlwaysTraining(nnx_layers.BatchNorm):
    def __call__(self, x: Any, use_running_average: bool | None = None, **kw: Any) -> Any:
        return super().__call__(x, use_running_average=False, **kw)


class NeverUpdating(nnx_layers.BatchNorm):
    def __call__(self, x: Any, use_running_average: bool | None = None, **kw: Any) -> Any:
        before = [self.mean.get_value(), self.var.get_value()]
        y = super().__call__(x, use_running_average, **kw)
        self.mean[...], self.var[...] = before
        return y


class StoppedStatistics(nnx_layers.BatchNorm):
    """The batch's statistics as constants: right outputs, wrong gradients."""

    def __call__(self, x: Any, use_running_average: bool | None = None, **kw: Any) -> Any:
        y = super().__call__(x, use_running_average, **kw)
        if self.use_running_average:
            return y
        scale, bias = (p[...] for p in (self.scale, self.bias) if p is not None)
        mean, var = jax.lax.stop_gradient((x.mean((0, 1, 2)), x.var((0, 1, 2))))
        return (x - mean) * jax.lax.rsqrt(var + 1e-5) * scale + bias


def batch_norm_class(cls: type) -> Callable[[Any], None]:
    def plant(net: Any) -> None:
        net.layer1.layers[1].bn2.__class__ = cls

    return plant


class NoInnerRelu(nnx_port.BasicBlock):
    def __call__(self: Any, x: Any) -> Any:
        return nnx.relu(self.bn2(self.conv2(self.bn1(self.conv1(x)))) + x)


class NoShortcut(nnx_port.BasicBlock):
    def __call__(self: Any, x: Any) -> Any:
        return nnx.relu(self.bn2(self.conv2(nnx.relu(self.bn1(self.conv1(x))))))


class StoppedShortcut(nnx_port.BasicBlock):
    def __call__(self: Any, x: Any) -> Any:
        out = self.bn2(self.conv2(nnx.relu(self.bn1(self.conv1(x)))))
        return nnx.relu(out + jax.lax.stop_gradient(x))


def block_class(cls: type, at: int = 1) -> Callable[[Any], None]:
    def plant(net: Any) -> None:
        net.layer1.layers[at].__class__ = cls

    return plant


def raw_shortcut(net: Any) -> None:
    net.layer2.layers[0].projects = False


def same_max_pool(patch: Patch) -> None:
    original = nnx.max_pool
    patch.setattr(nnx, "max_pool", lambda x, window, strides, padding: original(x, window, strides, "SAME"))


def counted_padding(patch: Patch) -> None:
    original = nnx.avg_pool
    patch.setattr(nnx, "avg_pool", lambda *args, count_include_pad, **kw: original(*args, **kw))


def maximum_for_relu(patch: Patch) -> None:
    patch.setattr(nnx, "relu", lambda x: jnp.maximum(x, 0))


def padded_behind(patch: Patch) -> None:
    def zero_pad(self: nnx_port.ZeroPad, x: Any) -> Any:
        return jnp.pad(x[:, :: self.stride, :: self.stride], ((0, 0), (0, 0), (0, 0), (0, self.extra)))

    patch.setattr(nnx_port.ZeroPad, "__call__", zero_pad)


def linen_variable(*path: str, change: Callable[[jax.Array], jax.Array]) -> Callable[[Any], Any]:
    def plant(net: Any) -> Any:
        def at(keys: tuple[Any, ...], value: jax.Array) -> jax.Array:
            return change(value) if tuple(key.key for key in keys) == path else value

        return net[0], jax.tree_util.tree_map_with_path(at, net[1])

    return plant


def linen_batch_norm(
    *, dtype: Any = None, zero: bool = False, folded: bool = False, **kw: Any
) -> linen_layers.BatchNorm:
    return linen_layers.BatchNorm(**kw)


def linen_momentum(patch: Patch) -> None:
    patch.setattr(linen_port, "batch_norm", partial(linen_batch_norm, momentum=0.1))


def linen_epsilon(patch: Patch) -> None:
    patch.setattr(linen_port, "batch_norm", partial(linen_batch_norm, epsilon=1e-6))


class LinenNoInnerRelu(linen_port.BasicBlock):
    def __call__(self, x: Any, train: bool = False) -> Any:
        mode = {"use_running_average": not train}
        out = self.bn2(self.conv2(self.bn1(self.conv1(x), **mode)), **mode)
        return linen.relu(out + linen_port.sequential(self.downsample, x, train))


def linen_dropped_relu(patch: Patch) -> None:
    patch.setattr(linen_port, "BasicBlock", LinenNoInnerRelu)


def first_conv(net: Any) -> Any:
    return net.layer1.layers[0].conv1


def first_bn(net: Any) -> Any:
    return net.layer1.layers[0].bn1


MISTAKES = [
    Mistake(
        "conv-padding-same",
        "layer2.0.conv1",
        "layer.eval",
        plant=attribute(lambda net: net.layer2.layers[0].conv1, padding="SAME"),
    ),
    Mistake(
        "stem-padding-same", "conv1", "layer.eval", plant=attribute(lambda net: net.conv1, padding="SAME"), nightly=True
    ),
    Mistake("max-pool-padding-same", "(the network)", "layer.eval", patch=same_max_pool),
    Mistake("bn-epsilon-1e-3", "layer1.0.bn1", "layer.eval", plant=attribute(first_bn, epsilon=1e-3)),
    Mistake("bn-epsilon-1e-6", "layer1.0.bn1", "layer.eval", plant=attribute(first_bn, epsilon=1e-6), nightly=True),
    Mistake("bn-momentum-0.99", "layer1.0.bn1", "statistics", plant=attribute(first_bn, momentum=0.99), nightly=True),
    Mistake("bn-momentum-0.1-copied", "layer1.0.bn1", "statistics", plant=attribute(first_bn, momentum=0.1)),
    Mistake("bn-running-var", "layer1.0.bn1", "statistics", plant=stock_batch_norm),
    Mistake("bn-left-in-train-mode", "layer1.1.bn2", "layer.eval", plant=batch_norm_class(AlwaysTraining)),
    Mistake("bn-update-lost", "layer1.1.bn2", "statistics", plant=batch_norm_class(NeverUpdating)),
    # The parameters of bn2 itself are right: what it hands back to conv2 is not.
    Mistake("bn-stop-gradient", "layer1.1.conv2", "gradient.parameter", plant=batch_norm_class(StoppedStatistics)),
    Mistake(
        "bn-statistics-rounded-to-bfloat16",
        "layer1.0.bn1",
        "layer.eval",
        plant=lambda net: set_value(first_bn(net).var, lambda a: a.astype(jnp.bfloat16).astype(a.dtype)),
    ),
    Mistake(
        "bn-statistics-lost",
        "layer1.0.bn1",
        "layer.eval",
        plant=lambda net: set_value(first_bn(net).mean, jnp.zeros_like),
        nightly=True,
    ),
    Mistake("kernel-transposed", "layer1.0.conv1", "layer.eval", plant=kernel(first_conv, lambda k: k.swapaxes(0, 1))),
    Mistake(
        "kernel-flipped",
        "layer1.0.conv1",
        "layer.eval",
        plant=kernel(first_conv, lambda k: k[::-1, ::-1]),
        nightly=True,
    ),
    Mistake(
        "kernel-in-out-exchanged",
        "layer1.0.conv1",
        "layer.eval",
        plant=kernel(first_conv, lambda k: k.swapaxes(2, 3)),
        nightly=True,
    ),
    Mistake("swapped-layers", "layer1.0.conv1", "layer.eval", plant=swapped),
    Mistake("linear-square-transpose", "fc", "layer.eval", plant=kernel(lambda net: net.fc, lambda k: k.T)),
    Mistake("dropped-inner-relu", "layer1.1", "layer.eval", plant=block_class(NoInnerRelu)),
    Mistake("dropped-shortcut", "layer1.1", "layer.eval", plant=block_class(NoShortcut), nightly=True),
    Mistake("stopped-shortcut", "layer1.0.bn2", "gradient.parameter", plant=block_class(StoppedShortcut)),
    Mistake("stride-position", "layer2.0.conv1", "layer.eval", BOTTLENECK_NET, ported={"stride_at": 0}),
    Mistake(
        "dilation-forgotten",
        "layer2.0.conv2",
        "layer.eval",
        DILATED_NET,
        plant=attribute(lambda net: net.layer2.layers[0].conv2, kernel_dilation=1, padding=1),
    ),
    Mistake(
        "groups-shuffled",
        "layer1.0.conv2",
        "layer.eval",
        GROUPED_NET,
        plant=kernel(
            lambda net: net.layer1.layers[0].conv2,
            lambda k: k.reshape(*k.shape[:3], 4, -1).swapaxes(3, 4).reshape(k.shape),
        ),
    ),
    Mistake("zero-pad-behind", "layer2.0", "layer.eval", OPTION_A_NET, patch=padded_behind),
    Mistake(
        "avg-pool-counts-padding",
        "layer2.0.downsample.0",
        "layer.eval",
        POOLED_NET,
        patch=counted_padding,
        nightly=True,
    ),
    Mistake("preact-raw-shortcut", "layer2.0", "layer.eval", PREACT_NET, plant=raw_shortcut),
    Mistake(
        "maximum-for-relu", "layer1.1.bn2", "gradient.parameter", ZERO_INIT_NET, patch=maximum_for_relu, fresh=True
    ),
    Mistake(
        "linen-kernel-transposed",
        "layer1.0.conv1",
        "layer.eval",
        port="linen",
        plant=linen_variable("params", "layer1_0", "conv1", "kernel", change=lambda k: k.swapaxes(0, 1)),
        nightly=True,
    ),
    Mistake("linen-bn-momentum", "bn1", "statistics", port="linen", patch=linen_momentum),
    Mistake("linen-bn-epsilon", "bn1", "layer.eval", port="linen", patch=linen_epsilon, nightly=True),
    Mistake("linen-dropped-inner-relu", "layer1.0", "layer.eval", port="linen", patch=linen_dropped_relu),
]


ROWS = [pytest.param(m, id=m.name, marks=[pytest.mark.nightly] if m.nightly else []) for m in MISTAKES]


@pytest.mark.sample(1)
@pytest.mark.parametrize("mistake", ROWS)
def test_mistake_is_found_where_it_stands(mistake: Mistake, monkeypatch: Patch) -> None:
    net = reference(mistake.spec, fresh=mistake.fresh)
    wrong = twin(net, mistake.port, get(mistake.spec, **mistake.ported))
    with jax.enable_x64(True):
        wrong = mistake.plant(wrong) or wrong
    mistake.patch(monkeypatch)
    report = parity.check(net, wrong, steps=1)
    assert report.exit_code == 1, f"passed:\n{report}"
    first = report.models[0].first_divergence
    assert first is not None
    assert (first.port, first.layer, first.quantity) == (mistake.port, mistake.layer, mistake.quantity), str(report)


@pytest.mark.sample(1)
@pytest.mark.parametrize("spec", dict.fromkeys(m.spec for m in MISTAKES), ids=lambda s: s.name)
@pytest.mark.parametrize("port", ["nnx", "linen"])
def test_without_a_mistake_the_same_networks_pass(spec: ResNetSpec, port: str) -> None:
    net = reference(spec, fresh=spec is ZERO_INIT_NET)
    parity.assert_parity(net, twin(net, port))
