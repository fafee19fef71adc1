"""Tables and numbers that PyTorch's model rounded to float32 when it was built, by a formula or without one."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from torch import nn

import parity
from parity.numerics.tables import recomputed, rounded

pytestmark = pytest.mark.usefixtures("quick")

WIDTH = 6
INPUTS = np.random.default_rng(0).standard_normal((2, 4, WIDTH)).astype(np.float32)
# No formula that the check knows.
TABLE = np.log(np.arange(2.0, 2.0 + 4 * WIDTH)).reshape(4, WIDTH)


class Tabled(nn.Module):
    table: torch.Tensor
    factor: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.leave = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 3)
        self.register_buffer("table", torch.tensor(TABLE, dtype=torch.float32), persistent=False)
        self.register_buffer("factor", torch.tensor(24**0.5), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.leave(nn.functional.gelu(self.enter(x * self.factor + self.table)))


class Port(nnx.Module):
    """The table in float64, a factor, and GELU's form."""

    def __init__(self, table: np.ndarray = TABLE, factor: float = 24**0.5, approximate: bool = False) -> None:
        rngs = nnx.Rngs(0)
        self.enter, self.leave = nnx.Linear(WIDTH, WIDTH, rngs=rngs), nnx.Linear(WIDTH, 3, rngs=rngs)
        self.numbers, self.factor, self.approximate = [*table.ravel().tolist()], factor, approximate

    def __call__(self, x: jax.Array) -> jax.Array:
        table = jnp.array(self.numbers, x.dtype).reshape(TABLE.shape)
        return self.leave(nnx.gelu(self.enter(x * self.factor + table), approximate=self.approximate))


def checked(port: Any) -> parity.Report:
    torch.manual_seed(0)
    model = Tabled()
    return parity.check(model, parity.move(model, port, INPUTS), INPUTS, steps=1)


@pytest.mark.parametrize("factor", [24**0.5, float(np.float32(24**0.5))])
def test_a_port_that_does_not_round_a_table_is_right_and_the_report_says_what_was_compared(factor: float) -> None:
    report = checked(Port(factor=factor))
    assert report, str(report)
    (line,) = [line for line in report.models[0].advice if "rounded to float32" in line]
    assert "PyTorch's table" in line


def test_the_same_table_is_compared_in_float64() -> None:
    report = checked(Port(TABLE.astype(np.float32).astype(np.float64)))
    assert report, str(report)
    assert not any("rounded to float32" in line for line in report.models[0].advice)


def test_another_table_is_a_mistake() -> None:
    assert not checked(Port(TABLE * (1 + 1e-4)))
    wrong = TABLE.copy()
    wrong[1, 2] *= 1 + 1e-3
    assert not checked(Port(wrong))


def test_a_rounded_table_hides_no_mistake_and_is_none_itself() -> None:
    (finding,) = checked(Port(approximate=True)).models[0].findings
    assert finding.trap == "gelu-tanh"


@pytest.mark.parametrize("exact", [24**0.5, -(7**0.5), 1 / 24**0.5, 0.1, 1e-5, 12.0])
def test_a_rounded_number_is_computed_again(exact: float) -> None:
    found = recomputed(np.array(exact, np.float32))
    assert found is not None
    assert abs(float(found) / exact - 1) < 1e-15


def test_any_other_number_is_left_as_it_is() -> None:
    assert recomputed(np.array(0.123456789, np.float32)) is None
    assert recomputed(np.array(np.inf, np.float32)) is None
    assert not rounded(np.array([0.0, 1.0, -np.inf, 0.5], np.float32))
    assert rounded(np.array([0.1], np.float32))
