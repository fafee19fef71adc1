"""Tiny networks, one for every option, the same weights in every port, and one way to call them all."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from flax import nnx

import ports
from ports.resnet.spec import (
    BASIC,
    BOTTLENECK,
    PREACT_BASIC,
    PREACT_BOTTLENECK,
    Block,
    ResNetSpec,
    Stage,
    Stem,
)
from ports.tutorial.spec import TutorialSpec
from ports.weights.live.pytorch import to_numpy

SIZE = (19, 14)  # height and width: odd, even and different

THREE = Stem(convs=((8, 3, 1),))
SEVEN = Stem(convs=((8, 7, 2),), max_pool=True)
DEEP = Stem(convs=((4, 3, 2), (4, 3, 1), (8, 3, 1)), max_pool=True)

WIDENS = (Stage(8, 1), Stage(16, 2, stride=2))  # an identity, a projection, an identity
HALVES = (Stage(4, 1), Stage(2, 1), Stage(4, 1, stride=2))  # the same three for an expansion of 2 to 4


def described(block: Block = BASIC, **fields: Any) -> ResNetSpec:
    narrow = block.expansion > 1
    default = {
        "name": "tiny",
        "stem": THREE,
        "stages": HALVES if narrow else WIDENS,
        "num_classes": 5,
        "input_size": 16,
    }
    return ResNetSpec(block=block, **{**default, **fields})


BASE = described()

# Every value of every option; what a block is made of stands on its left, the option that is meant at its end.
NETWORKS: dict[str, Any] = {
    "basic": BASE,
    "basic-stride_at_1": described(replace(BASIC, stride_at=1)),
    "bottleneck": described(BOTTLENECK),
    "bottleneck-stride_at_0": described(replace(BOTTLENECK, stride_at=0)),
    "bottleneck-stride_at_2": described(replace(BOTTLENECK, stride_at=2)),
    "preact": described(PREACT_BASIC),
    "preact_bottleneck": described(PREACT_BOTTLENECK),
    "preact-shortcut_norm": described(replace(PREACT_BASIC, shortcut_norm=True)),
    "preact-projection_always": described(replace(PREACT_BASIC, shortcut="projection_always")),
    "preact-zero_pad": described(replace(PREACT_BASIC, shortcut="zero_pad")),
    "preact-pooled_projection": described(replace(PREACT_BASIC, shortcut="pooled_projection")),
    "preact-plain": described(replace(PREACT_BASIC, residual=False)),
    "basic-projection_always": described(replace(BASIC, shortcut="projection_always")),
    "basic-zero_pad": described(replace(BASIC, shortcut="zero_pad")),
    "basic-zero_pad_odd": described(replace(BASIC, shortcut="zero_pad"), stages=(Stage(8, 1), Stage(13, 1, stride=3))),
    "basic-pooled_projection": described(replace(BASIC, shortcut="pooled_projection")),
    "basic-pooled_projection_by_3": described(
        replace(BASIC, shortcut="pooled_projection"), stages=(Stage(8, 1), Stage(16, 1, stride=3))
    ),
    "basic-no_shortcut_norm": described(replace(BASIC, shortcut_norm=False)),
    "basic-plain": described(replace(BASIC, residual=False)),
    "bottleneck-groups": described(replace(BOTTLENECK, groups=4, base_width=32)),
    "bottleneck-wide": described(replace(BOTTLENECK, base_width=128)),
    "basic-zero_init_last": described(replace(BASIC, zero_init_last=True)),
    "stem-7x7_pool": described(stem=SEVEN),
    "stem-deep": described(stem=DEEP),
    "four_stages": described(stages=(Stage(8, 1), Stage(12, 1, 2), Stage(16, 1), Stage(20, 1, 2))),
    "one_stage": described(stages=(Stage(8, 1),)),
    "dilated-basic": described(output_stride=1),
    "dilated-bottleneck": described(BOTTLENECK, stages=(*HALVES, Stage(4, 1, stride=2)), output_stride=1),
    "dilated-basic-stride_at_1": described(replace(BASIC, stride_at=1), output_stride=1),
    "dilated-preact": described(PREACT_BASIC, output_stride=1),
    "features_only": described(features_only=True),
    "features_only-preact": described(PREACT_BASIC, features_only=True),
    "in_channels_1": described(in_channels=1),
    "tutorial_net": TutorialSpec("tiny", "TutorialNet", (8, 12, 16), num_classes=5, input_size=16),
    "tutorial_net-one_conv": TutorialSpec("tiny", "TutorialNet", (4, 6, 8), convs=1, num_classes=5, input_size=16),
    "tutorial_resnet": TutorialSpec("tiny", "TutorialResNet", (8, 16), num_classes=5, input_size=16),
    "tutorial_resnet-four_convs": TutorialSpec("tiny", "TutorialResNet", (6, 6), convs=4, num_classes=5, input_size=16),
}


def images(spec: ResNetSpec = BASE, batch: int = 2, size: tuple[int, int] = SIZE, seed: int = 0) -> np.ndarray:
    """Random images, NCHW."""
    return np.random.default_rng(seed).standard_normal((batch, spec.in_channels, *size)).astype(np.float32)


@contextlib.contextmanager
def quick_compilation() -> Iterator[None]:
    """XLA without its optimisations, for programs that draw random numbers once: six times less to wait."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    try:
        yield
    finally:
        jax.config.update("jax_disable_most_optimizations", before)


def create(spec: ResNetSpec, port: str, **options: Any) -> Any:
    with quick_compilation():
        return ports.create(spec, port, **options)


def randomised(spec: ResNetSpec, dtype: str = "float32", seed: int = 0) -> torch.nn.Module:
    """The PyTorch network in eval mode; no BatchNorm is left neutral, which would hide it, or a whole branch."""
    net = ports.create(spec, "pytorch", seed=seed, dtype=dtype).eval()
    rng = np.random.default_rng(seed)
    weights = ports.weights.read(net)
    norms = {name.removesuffix("running_mean") for name in weights if name.endswith("running_mean")}
    draws = {
        "weight": lambda n: rng.uniform(0.5, 1.5, n),
        "bias": lambda n: rng.normal(0, 0.3, n),
        "running_mean": lambda n: rng.normal(0, 0.3, n),
        "running_var": lambda n: rng.uniform(0.5, 1.5, n),
    }
    for norm in sorted(norms):
        for part, draw in draws.items():
            old = weights[norm + part]
            weights[norm + part] = draw(old.shape).astype(old.dtype)
        weights[f"{norm}num_batches_tracked"] += 7
    ports.weights.write(net, weights)
    return net


def twin(net: Any, port: str, spec: ResNetSpec | None = None, dtype: str = "float32") -> Any:
    """The network with the same weights in another port, or described otherwise."""
    other = ports.create(spec or net.spec, port, seed=None, dtype=dtype)
    variables = ports.weights.write(other, ports.weights.read(net))
    return other if variables is None else (other[0], variables)


def forward(net: Any, x: np.ndarray, train: bool = False, dtype: str = "float32") -> tuple[list[np.ndarray], Any]:
    """The outputs of a network of any port on NCHW images, NCHW; and the network with its new statistics.

    Logits are a list of one. The Flax ports run compiled, on a GPU too without TF32.
    """
    if isinstance(net, torch.nn.Module):
        with torch.no_grad():
            out = net.train(train)(torch.from_numpy(x).to(getattr(torch, dtype)))
        return [to_numpy(o) for o in (out if isinstance(out, tuple) else (out,))], net
    nhwc = jnp.array(x.transpose(0, 2, 3, 1), dtype)
    if isinstance(net, nnx.Module):
        net.train() if train else net.eval()
        with jax.default_matmul_precision("highest"):
            out = nnx.jit(lambda net, x: net(x))(net, nhwc)
    else:
        module, variables = net
        run = jax.jit(lambda variables, x: module.apply(variables, x, train=train, mutable=["batch_stats"]))
        with jax.default_matmul_precision("highest"):
            out, changed = run(variables, nhwc)
        net = (module, {**variables, **changed})
    return [nchw(o) for o in (out if isinstance(out, tuple) else (out,))], net


def nchw(array: Any) -> np.ndarray:
    array = np.asarray(array)
    return array.transpose(0, 3, 1, 2) if array.ndim == 4 else array


def distance(a: np.ndarray, b: np.ndarray) -> float:
    """|a − b| / |b|, the norms over all values and in float64."""
    assert a.shape == b.shape, f"{a.shape} and {b.shape}"
    a, b = a.astype(np.float64), b.astype(np.float64)
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))
