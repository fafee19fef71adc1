"""JSON in files of weights, counted before it is decoded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ports.weights.files.budget import Budget
from ports.weights.files.formats import jsons


def table(text: str) -> dict[str, Any]:
    budget = Budget(Path("file"))
    budget.grow(len(text))
    return jsons.table(text.encode(), budget, "header")


@pytest.mark.parametrize("brackets", ["[]", "{}"])
@pytest.mark.parametrize("depth", [101, 980, 10**5])
def test_what_is_nested_too_deeply_is_not_parsed(depth: int, brackets: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Near Python's limit a hook or a destructor fails, too, and Python writes lines of its own."""
    monkeypatch.setattr(json, "loads", lambda *_, **__: pytest.fail("was parsed"))
    opening = "[" if brackets == "[]" else '{"a":'
    with pytest.raises(ValueError, match="header is nested too deeply"):
        table('{"x": ' + opening * depth)


def test_brackets_within_text_are_no_levels() -> None:
    text = '{"a": "' + "[{" * 500 + '\\\\\\"[", "b": ' + "[" * 99 + "]" * 99 + "}"
    assert table(text) == json.loads(text)


@pytest.mark.parametrize("text", ['{"' + '\\"' * 10**6, '{"' + "\\" * 999_999, '"' * 999_999])
def test_text_without_an_end_is_looked_through_once(text: str) -> None:
    with pytest.raises(ValueError, match=r"column|delimiter|Expecting|Unterminated|escape"):
        table(text)
