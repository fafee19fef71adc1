"""Every argument that a trap names is verified: a port with the mistake ends in parity when its `fix` is applied."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from flax import nnx

import parity
from parity.commands import edits
from parity.diagnosis import findings
from parity.reports.report import Finding, Fix
from parity.traps.arguments import ARGUMENTS, CALLED, TRAINED
from parity.traps.catalogue import TRAPS
from parity.traps.trap import Argument
from tests.meta import argument_parts, replay
from tests.meta.argument_parts import OF_ARGUMENTS, OTHERS, PARTS, VERIFIED, Part

pytestmark = pytest.mark.usefixtures("quick")

GROUPS = argument_parts.groups(PARTS, 3)
BY_NAME = {part.trap: part for part in (*PARTS, *OTHERS)}


def told(group: Sequence[Part]) -> str:
    return ",".join(part.trap for part in group)


@pytest.mark.nightly
@pytest.mark.parametrize("group", GROUPS, ids=told)
def test_what_a_fix_says_ends_in_parity(group: Sequence[Part], tmp_path: Path) -> None:
    found = replay.replayed(argument_parts.source(group), tmp_path)
    assert found.right, found.fixes
    assert {*found.fixed} == {part.trap for part in group}


@pytest.mark.parametrize(
    "names",
    [
        ("gelu-tanh", "softmax-axis", "adamw-decay-1e-4"),
    ],
    ids=",".join,
)
def test_some_fixes_end_in_parity(names: Sequence[str], tmp_path: Path) -> None:
    group = [BY_NAME[name] for name in names]
    found = replay.replayed(argument_parts.source(group), tmp_path)
    assert found.right, found.fixes
    assert {*found.fixed} == {*names}


def test_a_mistake_that_is_no_argument_has_no_fix(tmp_path: Path) -> None:
    found = replay.replayed(argument_parts.source([BY_NAME["gelu-quick"]]), tmp_path)
    assert (found.right, found.named, found.fixed, found.checks) == (False, ("gelu-quick",), (), 1)


@pytest.mark.parametrize(("bias", "trap"), [(True, "bias-missing"), (False, "bias-added")])
def test_a_missing_bias_is_an_argument(bias: bool, trap: str) -> None:
    x = np.random.default_rng(0).standard_normal((3, 8)).astype(np.float32)
    model = torch.nn.Sequential(torch.nn.Linear(8, 4, bias))

    def port(use_bias: bool) -> nnx.Sequential:
        return nnx.Sequential(nnx.Linear(8, 4, use_bias=use_bias, rngs=nnx.Rngs(0)))

    findings = parity.check(model, port(not bias), x, steps=1).models[0].findings
    (finding,) = [one for one in findings if one.trap != "weights-not-moved"]
    (fix,) = finding.fix
    assert (finding.trap, fix.module, fix.argument, fix.got) == (trap, "0", "use_bias", not bias)
    assert parity.check(model, parity.move(model, port(fix.expected), x), x, steps=1)


def test_seven_of_ten_traps_that_are_arguments_have_a_verified_fix() -> None:
    assert len([trap for trap in OF_ARGUMENTS if trap.name in VERIFIED]) >= 0.7 * len(OF_ARGUMENTS)


def test_every_trap_with_arguments_is_verified_and_every_reader_used() -> None:
    with_arguments = {trap.name for trap in TRAPS if trap.arguments}
    assert with_arguments | {"bias-missing", "bias-added"} == VERIFIED
    given = [one for trap in TRAPS for one in trap.arguments]
    names = {one if isinstance(one, str) else one.name for one in given if isinstance(one, str) or one.value is None}
    assert names == {*ARGUMENTS, *CALLED, *TRAINED}
    assert any(isinstance(one, Argument) for one in given)


def test_two_calls_of_one_function_that_need_two_values_have_no_fix() -> None:
    places = [
        Finding("nnx", "net", "gelu-tanh", "text", fix=(Fix("net", "approximate", None, value, "gelu"),))
        for value in (True, False)
    ]
    apart = [Finding("nnx", "net", "gelu-tanh", "text", fix=(Fix(name, "axis", None, 1),)) for name in "ab"]
    assert [found.fix for found in findings.together(places)] == [()]
    assert [[fix.module for fix in found.fix] for found in findings.together(apart)] == [["a", "b"]]


def test_the_stored_replay_is_of_the_ports_that_are_drawn() -> None:
    """`python -m tests.meta.replay --store` measures again."""
    stored = json.loads(replay.STORED.read_text())["ports"]
    drawn = argument_parts.drawn(len(stored))
    assert [port["planted"] for port in stored] == [[part.trap for part in parts] for parts in drawn]
    assert {len(parts) for parts in drawn} == {1, 2, 3}
    assert all(port["right"] for port in stored if port["arguments"])
    assert [*argument_parts.drawn(8, seed=1)] != drawn[:8]


def test_groups_have_every_part_once_and_no_two_that_do_not_fit() -> None:
    assert sorted(told([part]) for group in GROUPS for part in group) == sorted(part.trap for part in PARTS)
    for group in GROUPS:
        assert all(argument_parts.is_compatible(part, [p for p in group if p is not part]) for part in group)


PORT = """
import jax
from flax import linen as nn
from flax import nnx
from torch.nn import functional as F


class Block(nnx.Module):
    def __init__(self, rngs):
        self.norm = nnx.LayerNorm(8, rngs=rngs)
        self.other = nnx.LayerNorm(8, epsilon=1e-6, rngs=rngs)

    def __call__(self, x):
        return nnx.gelu(self.norm(x), True)


class Net(nnx.Module):
    def __init__(self, rngs):
        self.blocks = nnx.List([Block(rngs) for _ in range(2)])

    def __call__(self, x):
        return nnx.gelu(x) + F.gelu(x)


class Linen(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.LayerNorm()(nn.Dense(8)(x))
        return nn.LayerNorm(name="last")(nn.Dense(8, use_bias=False)(x))
"""


def edited(module: str, argument: str, expected: object, function: str = "") -> list[list[str]]:
    """Return the changed lines of every way to apply a fix."""
    file, fix = Path("port.py"), {"module": module, "argument": argument, "expected": expected, "function": function}
    found = edits.mended({file: PORT}, [fix])
    before = PORT.splitlines()
    return [[b.strip() for a, b in zip(before, new[file].splitlines(), strict=True) if a != b] for new in found]


def test_the_call_is_found_by_what_it_is_assigned_to() -> None:
    near, everywhere = edited("blocks.0.norm", "epsilon", 1e-5)
    assert near == ["self.norm = nnx.LayerNorm(8, rngs=rngs, epsilon=1e-05)"]
    assert len(everywhere) == 4
    assert edited("Dense_1", "use_bias", True)[0] == ['return nn.LayerNorm(name="last")(nn.Dense(8, use_bias=True)(x))']
    assert edited("last", "epsilon", 1e-5)[0] == [
        'return nn.LayerNorm(name="last", epsilon=1e-05)(nn.Dense(8, use_bias=False)(x))'
    ]
    assert edited("LayerNorm_0", "epsilon", 1e-5)[0] == ["x = nn.LayerNorm(epsilon=1e-05)(nn.Dense(8)(x))"]


def test_a_call_of_a_function_is_found_in_the_class_of_its_module() -> None:
    near, everywhere = edited("blocks.1", "approximate", False, "gelu")
    assert near == ["return nnx.gelu(self.norm(x), False)"]
    assert everywhere == [*near, "return nnx.gelu(x, approximate=False) + F.gelu(x)"]


def test_a_call_that_is_right_or_not_known_stays() -> None:
    assert edited("blocks.1", "epsilon", 1e-6, "RMSNorm") == []
    assert edited("other", "epsilon", 1e-6)[0] == [
        "self.norm = nnx.LayerNorm(8, rngs=rngs, epsilon=1e-06)",
        "x = nn.LayerNorm(epsilon=1e-06)(nn.Dense(8)(x))",
        'return nn.LayerNorm(name="last", epsilon=1e-06)(nn.Dense(8, use_bias=False)(x))',
    ]
    assert edited("norm", "no_such_argument", 1) == []
