"""The tests check every call against its annotations: a wrong type fails where it enters, not three calls later."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import checked
import numpy as np
import pytest
import torch
from beartype.roar import BeartypeCallHintViolation
from jaxtyping import TypeCheckError

from benchmarks.reporting import tables
from parity.numerics import bounds
from ports.resnet.pytorch import ZeroPad
from ports.weights.files import formats

pytestmark = pytest.mark.skipif(os.environ.get("TYPES") == "0", reason="TYPES=0 checks no annotations")


@pytest.mark.parametrize(("function", "wrong"), [(formats.dtype_of, 3), (bounds.norm, "3"), (tables.number, "3")])
def test_a_wrong_argument_is_refused(function: Callable[[Any], object], wrong: object) -> None:
    with pytest.raises(BeartypeCallHintViolation, match=rf"{function.__name__}\(\) parameter"):
        function(wrong)


def test_a_wrong_shape_is_refused() -> None:
    pad = ZeroPad(2, 2)
    assert pad(torch.zeros(1, 3, 4, 4)).shape == (1, 5, 2, 2)
    with pytest.raises(TypeCheckError, match="batch channels height width"):
        pad(torch.zeros(3, 4, 4))


def test_a_wrong_answer_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    assert bounds.distance(np.ones(4), np.zeros(4)) == 2
    monkeypatch.setattr(bounds, "_length", lambda _: "2")
    with pytest.raises(BeartypeCallHintViolation, match=r"distance\(\) return"):
        bounds.distance(np.ones(4), np.zeros(4))


def test_a_whole_number_is_a_float() -> None:
    """As type checkers have it."""
    assert tables.number(3) == tables.number(3.0)


def test_the_first_of_the_functions_within_a_function_is_checked(tmp_path: Path) -> None:
    (tmp_path / "within.py").write_text(
        "def outer(given):\n    def inner(x: int) -> int:\n        return x\n    return inner(given)\n"
    )
    loader = checked.Loader("within", str(tmp_path / "within.py"))
    spec = importlib.util.spec_from_loader("within", loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    with pytest.raises(BeartypeCallHintViolation, match=r"inner\(\) parameter"):
        module.outer("3")
    assert module.outer("3") == "3"
