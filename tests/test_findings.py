"""Mistakes planted at several layers at once: each is found by itself, and called by its name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from small import BASIC_NET, DILATED_NET, reference, twin
from test_planted import (
    AlwaysTraining,
    NeverUpdating,
    NoInnerRelu,
    StoppedStatistics,
    attribute,
    batch_norm_class,
    block_class,
    kernel,
    set_value,
    stock_batch_norm,
)

import parity
from parity.traps.catalogue import LAYERS, OPERATIONS
from ports import UserError
from ports.resnet.spec import ResNetSpec

pytestmark = pytest.mark.usefixtures("quick")

Plant = Callable[[Any], Any]


def block(net: Any) -> Any:
    return net.layer1.layers[0]


def last(net: Any) -> Any:
    return net.layer2.layers[0]


def value(path: Callable[[Any], Any], change: Callable[[jax.Array], jax.Array]) -> Plant:
    return lambda net: set_value(path(net), change)


def bfloat16(array: jax.Array) -> jax.Array:
    return array.astype(jnp.bfloat16).astype(array.dtype)


# What is planted at which layers, and what it must be called there (None: no trap of a single layer).
CASES: dict[str, tuple[ResNetSpec, list[Plant], dict[str, str | None]]] = {
    "three-layers": (
        BASIC_NET,
        [
            attribute(lambda net: block(net).bn1, epsilon=1e-3),
            attribute(lambda net: last(net).bn1, momentum=0.99),
            kernel(lambda net: net.fc, lambda k: k.T),
        ],
        {"layer1.0.bn1": "bn-epsilon-1e-3", "layer2.0.bn1": "bn-momentum-0.99", "fc": "linear-transposed"},
    ),
    "a-layer-and-what-is-between": (
        BASIC_NET,
        [block_class(NoInnerRelu), attribute(lambda net: last(net).conv1, padding="SAME")],
        {"layer1.1": "relu-missing", "layer2.0.conv1": "conv-padding-same"},
    ),
    "kernels": (
        BASIC_NET,
        [
            kernel(lambda net: net.conv1, lambda k: k[::-1, ::-1]),
            kernel(lambda net: block(net).conv1, lambda k: k.swapaxes(0, 1)),
            kernel(lambda net: block(net).conv2, lambda k: k.swapaxes(2, 3)),
            value(lambda net: net.fc.bias, jnp.zeros_like),
        ],
        {
            "conv1": "kernel-flipped",
            "layer1.0.conv1": "kernel-transposed",
            "layer1.0.conv2": "kernel-in-out-exchanged",
            "fc": "bias-lost",
        },
    ),
    "statistics": (
        BASIC_NET,
        [
            stock_batch_norm,
            batch_norm_class(NeverUpdating),
            attribute(lambda net: last(net).bn1, momentum=0.1),
            value(lambda net: last(net).bn2.mean, jnp.zeros_like),
            value(lambda net: net.bn1.var, bfloat16),
        ],
        {
            "layer1.0.bn1": "bn-running-var",
            "layer1.1.bn2": "bn-update-lost",
            "layer2.0.bn1": "bn-momentum-copied",
            "layer2.0.bn2": "bn-mean-lost",
            "bn1": "bn-variance-bfloat16",
        },
    ),
    "norms": (
        BASIC_NET,
        [
            batch_norm_class(AlwaysTraining),
            value(lambda net: block(net).bn1.scale, jnp.ones_like),
            value(lambda net: block(net).bn2.bias, jnp.zeros_like),
            value(lambda net: last(net).bn1.var, jnp.ones_like),
            value(lambda net: last(net).bn2.mean, bfloat16),
            attribute(lambda net: net.bn1, epsilon=1e-6),
        ],
        {
            "layer1.1.bn2": "bn-always-train",
            "layer1.0.bn1": "norm-scale-lost",
            "layer1.0.bn2": "norm-bias-lost",
            "layer2.0.bn1": "bn-variance-lost",
            "layer2.0.bn2": "bn-mean-bfloat16",
            "bn1": "bn-epsilon-1e-6",
        },
    ),
    "settings": (
        DILATED_NET,
        [
            attribute(lambda net: last(net).conv2, kernel_dilation=1, padding=1),
            attribute(lambda net: net.conv1, strides=1),
        ],
        {
            "layer2.0.conv2": "conv-dilation-forgotten",
            "conv1": "conv-stride-one",
        },
    ),
    "padding": (BASIC_NET, [attribute(lambda net: net.conv1, padding="VALID")], {"conv1": "conv-padding-none"}),
    "gradients": (BASIC_NET, [batch_norm_class(StoppedStatistics)], {"layer1.1.bn2": "bn-statistics-constant"}),
}


@pytest.mark.sample(1)
@pytest.mark.parametrize("case", CASES)
def test_every_mistake_is_found_and_named(case: str) -> None:
    spec, plants, expected = CASES[case]
    net = reference(spec)
    wrong = twin(net, "nnx")
    with jax.enable_x64(True):
        for plant in plants:
            plant(wrong)
    report = parity.check(net, wrong, steps=1)
    assert report.exit_code == 1
    assert {f.layer: f.trap for f in report.models[0].findings} == expected, str(report)


def test_names_are_those_of_the_catalogue() -> None:
    named = {trap for _, _, expected in CASES.values() for trap in expected.values()}
    assert named - {None} <= {trap.name for trap in (*LAYERS, *OPERATIONS)}


def test_a_port_that_cannot_be_run_is_a_clear_error() -> None:
    net = reference(BASIC_NET)
    wrong = twin(net, "nnx")
    block(wrong).conv1.padding = "VALID"
    with pytest.raises(UserError, match=r"the Flax model raises TypeError: .*shapes.* in layer1.layers.0"):
        parity.check(net, wrong, steps=1)


@pytest.mark.nightly
def test_without_a_mistake_nothing_is_found() -> None:
    net = reference(BASIC_NET)
    report = parity.check(net, twin(net, "nnx"), twin(net, "linen"), steps=1)
    assert report
    assert report.models[0].findings == ()
