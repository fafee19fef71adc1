"""Small networks for tests, and live pairs of them whose BatchNorms hide nothing."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import torch

import ports
from parity.running import probes as probe
from parity.subjects import randomise
from ports.resnet.spec import BASIC, BOTTLENECK, PREACT_BASIC, ResNetSpec, Stage, Stem

SEVEN = Stem(convs=((8, 7, 2),), max_pool=True)
THREE = Stem(convs=((8, 3, 1),))

BASIC_NET = ResNetSpec("basic", SEVEN, (Stage(8, 2), Stage(16, 1, stride=2)), BASIC, num_classes=16, input_size=32)
BOTTLENECK_NET = ResNetSpec(
    "bottleneck", THREE, (Stage(8, 1), Stage(8, 1, stride=2)), BOTTLENECK, num_classes=6, input_size=16
)
GROUPED_NET = dataclasses.replace(
    BOTTLENECK_NET, name="grouped", block=dataclasses.replace(BOTTLENECK, groups=4, base_width=16)
)
OPTION_A_NET = dataclasses.replace(
    BOTTLENECK_NET,
    name="option_a",
    block=dataclasses.replace(BASIC, shortcut="zero_pad"),
    stages=(Stage(8, 1), Stage(16, 1, 2)),
)
POOLED_NET = dataclasses.replace(
    BOTTLENECK_NET, name="pooled", block=dataclasses.replace(BOTTLENECK, shortcut="pooled_projection")
)
PREACT_NET = dataclasses.replace(
    BOTTLENECK_NET,
    name="preact",
    block=PREACT_BASIC,
    stages=(Stage(8, 1), Stage(16, 1, stride=2)),
)
DILATED_NET = dataclasses.replace(BASIC_NET, name="dilated", output_stride=4)
ZERO_INIT_NET = dataclasses.replace(BASIC_NET, name="zero_init", block=dataclasses.replace(BASIC, zero_init_last=True))


def reference(spec: ResNetSpec, seed: int = 0, fresh: bool = False) -> torch.nn.Module:
    """A PyTorch network in float64; with random BatchNorm parameters and statistics unless `fresh`."""
    net = ports.create(spec, "pytorch", seed=seed, dtype="float64")
    if not fresh:
        fed = probe.of_spec(spec, batch=2, size=probe.default_size(spec), seed=seed)
        randomise(net, fed, seed)
    return net


def twin(net: Any, port: str, spec: ResNetSpec | None = None) -> Any:
    """The same network in a Flax port, in float64; `spec` may describe it otherwise than it is."""
    with jax.enable_x64(True):
        found = ports.create(spec or net.spec, port, seed=None, dtype="float64")
        variables = ports.weights.write(found, ports.weights.read(net))
        return found if variables is None else (found[0], variables)
