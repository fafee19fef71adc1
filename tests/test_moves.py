"""Weights that move into ports of random structure arrive rightly, or not at all."""

from __future__ import annotations

import pytest

from parity import moving
from tests.meta import moves

pytestmark = pytest.mark.usefixtures("quick")

# Ports with fused and separate projections, own layers and the library's, stacks and lists, other names.
RIGHT = (1, 12, 15, 21, 29, 42, 80)
REFUSED = (8,)
ORDER = 15  # PyTorch's three projections are one of the port's, in the order value, query, key


@pytest.mark.sample(1)
@pytest.mark.parametrize("seed", RIGHT)
def test_weights_arrive(seed: int) -> None:
    assert moves.outcome(seed) == "right"


@pytest.mark.parametrize("seed", REFUSED)
def test_names_that_say_nothing_are_refused(seed: int) -> None:
    assert moves.outcome(seed).startswith("refused: the layers of the two models cannot be paired")


def test_without_computing_a_wrong_order_is_not_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """The likeliest form is not the right one: what this test measures can fail."""
    monkeypatch.setattr(moving.choosing, "by_computing", lambda pairing, trial, strict: pairing.open(()))
    monkeypatch.setattr(moving.ordering, "settled", lambda pairing, *_: pairing)
    assert moves.outcome(ORDER).startswith("wrong: outputs are")
