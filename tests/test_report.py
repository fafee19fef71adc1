"""The result as data: the keys of its schema."""

from __future__ import annotations

import pytest
from test_diff import JSON, NET, WRONG, result, row

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
