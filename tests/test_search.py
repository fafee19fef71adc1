"""The search for known mistakes, on differences that are made up; and what the tables of mistakes may know."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from test_imports import ROOT, graph, reached

from parity.diagnosis.search import search
from parity.traps.catalogue import TRAPS
from parity.traps.operations.order import ORDER
from parity.traps.trap import Trap


def trap(name: str) -> Trap:
    return Trap(name, "layer", (torch.nn.Linear,), None, "", "", "a source")


A, B, C = map(trap, "abc")


class Differences:
    """What differs with some traps planted; by default all that differs at the start."""

    def __init__(self, left: Mapping[str, set[str] | None]) -> None:
        self.left, self.asked = left, list[str]()

    def __call__(self, traps: tuple[Trap, ...]) -> set[str] | None:
        self.asked.append("".join(trap.name for trap in traps))
        return self.left.get(self.asked[-1], {"x", "y"})


def test_the_first_trap_that_leaves_nothing_is_told() -> None:
    differing = Differences({"b": set(), "c": set()})
    assert search((A, B, C), differing) == (B,)
    assert differing.asked == ["a", "b"]


def test_a_trap_that_cannot_be_planted_explains_nothing() -> None:
    assert search((A, B), Differences({"a": None, "b": None})) == ()


def test_no_trap_is_told_where_a_part_is_left() -> None:
    assert search((A, B), Differences({"a": {"x"}, "ab": set()})) == ()


@pytest.mark.parametrize("left", [{"a": {"x"}, "ab": set()}, {"b": {"x"}, "ba": set()}, {"a": {"x"}, "ac": set()}])
def test_traps_that_mend_a_part_are_told_together(left: dict[str, set[str] | None]) -> None:
    (both,) = (name for name in left if len(name) == 2)
    assert search((A, B, C), Differences(left), together=True) == tuple(map(trap, both))


def test_the_trap_that_leaves_least_is_followed_first() -> None:
    left = {"": {"x", "y", "z"}, "a": {"x", "y"}, "b": {"x"}, "bc": set(), "ac": set()}
    assert search((A, B, C), Differences(left), together=True) == (B, C)


def test_a_trap_that_only_moves_the_difference_is_not_kept() -> None:
    assert search((A, B), Differences({"a": {"z"}, "ab": set()}), together=True) == ()


def test_what_is_planted_already_stays() -> None:
    assert search((A, B), Differences({"ab": set()}), (A,)) == (A, B)
    assert search((A, B), Differences({}), (A,)) == (A,)


def test_traps_say_where_they_are_planted() -> None:
    for t in TRAPS:
        assert t.where == (t.layers if t.place == "layer" else t.names), t.name
        assert t.where or t.place == "weight" or t.plant is None, t.name
    assert tuple(t for t in TRAPS if not t.plant and t.place != "weight") == ORDER  # two places together show these


def test_tables_of_mistakes_know_nothing_of_running() -> None:
    edges = graph(ROOT)
    rooms = tuple(f"parity.{room}" for room in ("running", "pairing", "verdict", "diagnosis", "reports", "commands"))
    tables = [module for module in edges if module.startswith("parity.traps")]
    assert len(tables) > 20
    for module in tables:
        assert [name for name in reached(edges, module) if name.startswith(rooms)] == [], module
