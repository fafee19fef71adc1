"""A finding whose mend is an argument says which: applied as it stands, it ends in parity."""

from __future__ import annotations

import json
from typing import Any

import jax
import numpy as np
import pytest
import torch
from flax import nnx

import parity
from parity.reports.html import page
from parity.traps.arguments import ARGUMENTS, mended
from parity.traps.catalogue import TRAPS

pytestmark = pytest.mark.usefixtures("quick")

IMAGES = np.random.default_rng(0).standard_normal((3, 4, 9, 8)).astype(np.float32)


class Torch(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = torch.nn.Conv2d(4, 8, 3, stride=2, padding=1)
        self.bn = torch.nn.BatchNorm2d(8)
        self.mid = torch.nn.Conv2d(8, 8, 3, padding=2, dilation=2)
        self.norm = torch.nn.GroupNorm(4, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(torch.relu(self.mid(torch.relu(self.bn(self.conv(x))))))


# The arguments of a right port, by layer.
RIGHT: dict[str, dict[str, Any]] = {
    "conv": {"strides": 2, "padding": 1},
    "bn": {"epsilon": 1e-5, "momentum": 0.9},
    "mid": {"padding": 2, "kernel_dilation": 2},
    "norm": {"num_groups": 4, "epsilon": 1e-5},
}


class NNX(nnx.Module):
    def __init__(self, options: dict[str, dict[str, Any]]) -> None:
        rngs = nnx.Rngs(0)
        self.conv = nnx.Conv(4, 8, (3, 3), **options["conv"], rngs=rngs)
        self.bn = nnx.BatchNorm(8, **options["bn"], rngs=rngs)
        self.mid = nnx.Conv(8, 8, (3, 3), **options["mid"], rngs=rngs)
        self.norm = nnx.GroupNorm(8, **options["norm"], rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.norm(nnx.relu(self.mid(nnx.relu(self.bn(self.conv(x))))))


def checked(options: dict[str, dict[str, Any]]) -> parity.Report:
    torch.manual_seed(0)
    model = Torch()
    return parity.check(model, parity.move(model, NNX(options), IMAGES), IMAGES, steps=1, accept=["bn-running-var"])


@pytest.mark.sample(1)
@pytest.mark.parametrize(
    "wrong",
    [
        {"conv": {"padding": "SAME"}, "norm": {"epsilon": 1e-6}},
        {"bn": {"momentum": 0.1}, "norm": {"num_groups": 2}},
        {"bn": {"epsilon": 1e-3, "momentum": 0.99}, "mid": {"padding": 1, "kernel_dilation": 1}},
        {"conv": {"padding": 0}, "norm": {"num_groups": 8}},
        {"conv": {"strides": 1}},
    ],
    ids=lambda wrong: ",".join(f"{layer}.{name}" for layer, options in wrong.items() for name in options),
)
def test_the_fixes_of_a_report_end_in_parity(wrong: dict[str, dict[str, Any]]) -> None:
    options = {layer: {**right, **wrong.get(layer, {})} for layer, right in RIGHT.items()}
    report = checked(options)
    for _ in range(2):
        read = json.loads(json.dumps(report.to_json()))
        fixes = [fix for finding in read["models"][0]["findings"] for fix in finding["fix"]]
        assert fixes, str(report)
        for fix in fixes:
            assert f"fix: {fix['module']}: {fix['argument']}=" in str(report)
            assert fix["got"] in (None, options[fix["module"]][fix["argument"]])
            options[fix["module"]][fix["argument"]] = fix["expected"]
        if report := checked(options):
            break
    assert report, str(report)
    assert report.models[0].findings == ()


def test_several_layers_have_a_fix_each() -> None:
    class Stack(nnx.Module):
        def __init__(self) -> None:
            self.layers = nnx.List([nnx.LayerNorm(8, rngs=nnx.Rngs(0)) for _ in range(2)])  # epsilon is 1e-6

        def __call__(self, x: jax.Array) -> jax.Array:
            for layer in self.layers:
                x = jax.numpy.tanh(layer(x))
            return x

    model = torch.nn.Sequential(torch.nn.LayerNorm(8), torch.nn.Tanh(), torch.nn.LayerNorm(8), torch.nn.Tanh())
    x = IMAGES.reshape(-1, 8)
    report = parity.check(model, parity.move(model, Stack(), x), x, steps=1)
    (finding,) = report.models[0].findings
    assert "layers.1: epsilon=1e-05" in page(report)
    assert [(fix.module, fix.argument, fix.got, fix.expected) for fix in finding.fix] == [
        (f"layers.{i}", "epsilon", 1e-6, 1e-5) for i in range(2)
    ]


def test_a_mistake_that_is_no_argument_has_none() -> None:
    (found,) = checked({**RIGHT, "norm": {"num_groups": 4, "epsilon": 1e-5, "use_bias": True}}).models
    assert found.findings == ()
    by_name = {trap.name: trap for trap in TRAPS}
    assert mended(by_name["kernel-flipped"], torch.nn.Conv2d(2, 2, 3)) == []
    cumulative = torch.nn.BatchNorm1d(3, momentum=None)
    assert mended(by_name["bn-momentum-0.99"], cumulative) == []


def test_what_differs_by_dimension_is_a_tuple() -> None:
    conv = torch.nn.Conv2d(2, 2, 3, stride=(2, 1), padding=(1, 0))
    assert [ARGUMENTS[name](conv) for name in ("strides", "padding")] == [(2, 1), ((1, 1), (0, 0))]
