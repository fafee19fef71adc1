"""The result as data: the keys of its schema."""

from __future__ import annotations

import pytest
from test_diff import JSON, NET, WRONG, result, row

from parity.reports.report import Finding, Fix, Model, Report, Row

SCHEMA = {
    "file": {"schema", "ok", "models", "environment"},
    "model": {
        "model",
        "ok",
        "rows",
        "first_divergence",
        "undecided",
        "note",
        "largest",
        "multiple",
        "seconds",
        "findings",
        "profile",
        "pairing",
        "advice",
        "unexercised",
        "pins",
        "precision",
        "costs",
        "limits",
    },
    "row": {"port", "quantity", "tensor", "distance", "bound", "ok", "dtype"},
    "finding": {"port", "layer", "trap", "text", "also", "size", "fix", "diff"},
    "first divergence": {"port", "layer", "quantity", "text"},
    "point": {"layer", "distance", "bound", "ok"},
    "cost": {"port", "output", "flips", "predictions", "divergence", "cosine", "drift", "steps"},
}


def keys(file: JSON) -> dict[str, set[str]]:
    return {
        "file": set(file),
        "model": set(file["models"][NET]),
        "row": set(row(file)),
        "finding": set(file["models"][WRONG]["findings"][0]),
        "first divergence": set(file["models"][WRONG]["first_divergence"]),
        "point": set(file["models"][NET]["profile"]["nnx"]["layer.eval"][0]),
        "cost": set(file["models"][WRONG]["costs"][0]),
    }


def test_schema_1_has_these_keys() -> None:
    """Whoever adds one adds it here; whoever takes one away or renames it raises the number of the schema."""
    assert result()["schema"] == 1
    assert keys(result()) == SCHEMA


@pytest.mark.parametrize("place", SCHEMA)
def test_a_key_that_went_is_noticed(place: str) -> None:
    file = result()
    first = file["models"][WRONG]
    objects = {
        "file": file,
        "model": file["models"][NET],
        "row": row(file),
        "finding": first["findings"][0],
        "first divergence": first["first_divergence"],
        "point": file["models"][NET]["profile"]["nnx"]["layer.eval"][0],
        "cost": first["costs"][0],
    }
    objects[place]["another"] = objects[place].get("text")
    assert keys(file) != SCHEMA


def report(fixes: int) -> Report:
    """Return a mistake that as many arguments mend."""
    row = Row("nnx", "output.eval", "output", 1.0, 0.0, False)
    fix = tuple(Fix(f"norm{i}", "epsilon", 1e-6, 1e-5) for i in range(fixes))
    return Report((Model("net", (row,), findings=(Finding("nnx", "norm0", None, "another epsilon", fix=fix),)),))


def test_a_notebook_shows_the_text_of_a_report_and_nothing_beside_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a notebook rich shows an output of its own for each text, unless it is told not to."""
    expected, shown = str(report(1)), []
    monkeypatch.setattr("rich.console._is_jupyter", lambda: True)
    monkeypatch.setattr("rich.jupyter.display", lambda *given: shown.append(given))
    assert str(report(1)) == expected
    assert shown == []


def test_one_more_layer_is_one_layer() -> None:
    assert "more layer" not in str(report(3))
    assert "fix: 1 more layer, which" in str(report(4))
    assert "fix: 2 more layers, which" in str(report(5))
