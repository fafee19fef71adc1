"""A sample of the faithful runs: random small networks that must pass."""

from __future__ import annotations

from parity import faithful


def test_faithful_runs_pass() -> None:
    """A run of every kind and of every type of weights."""
    results = [r for seed in (0, 58, 65, 72) for r in faithful.runs(1, seed)]
    assert [r for r in results if not r.ok] == []
    assert {r.network for r in results} == {make.__name__ for make in faithful.KINDS}
    assert {r.dtype for r in results} == set(faithful.DTYPES)


def test_runs_are_reproducible_and_differ() -> None:
    assert faithful.network(3) == faithful.network(3)
    assert len({faithful.network(seed)[0].block for seed in range(200)}) > 50
