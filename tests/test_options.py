"""The options of a check: one record for each kind, and the same names for type checkers."""

from __future__ import annotations

import inspect
from dataclasses import fields
from typing import Any

import pytest

import parity
from parity import options
from parity.options import LIVE, NAMED, PAIR, NetworkOptions, NetworkSettings, PairOptions, PairSettings, record
from ports import UserError


def types(settings: type) -> dict[str, str]:
    """The annotations of a TypedDict and its bases, as they are written."""
    return {name: hint.__forward_arg__ for name, hint in settings.__annotations__.items()}


KINDS = ((PairOptions, PairSettings), (NetworkOptions, NetworkSettings), (options.MoveOptions, options.MoveSettings))


@pytest.mark.parametrize(("kind", "settings"), KINDS)
def test_type_checkers_see_the_fields_of_the_record(kind: type, settings: type) -> None:
    assert types(settings) == {one.name: one.type for one in fields(kind)}


def test_every_field_is_described() -> None:
    for cls in (options.Options, options.CallOptions, options.MoveOptions, PairOptions, NetworkOptions):
        own = [one.name for one in fields(cls) if one.name in cls.__annotations__]
        said = inspect.getdoc(cls) or ""
        assert [name for name in own if f"\n    {name}: " not in said] == []


@pytest.mark.parametrize("cls", [PairOptions, NetworkOptions, options.MoveOptions])
def test_help_shows_inherited_fields_once(cls: type) -> None:
    said = inspect.getdoc(cls) or ""
    assert [one.name for one in fields(cls) if said.count(f"\n    {one.name}: ") != 1] == []


@pytest.mark.parametrize("call", [parity.check, parity.check_network, parity.assert_parity, parity.move])
def test_at_most_six_arguments(call: Any) -> None:
    assert len(inspect.signature(call).parameters) <= 6


def test_what_was_not_asked_is_the_default() -> None:
    none: dict[str, Any] = dict.fromkeys(("ports", "images", "image_size", "batch", "weights", "names", "accept"))
    assert record(NAMED, NetworkOptions, none) == NetworkOptions()
    assert record(PAIR, PairOptions, {"names": {}, "accept": [], "batch": None}) == PairOptions()


def test_an_empty_set_of_weights_is_an_answer() -> None:
    with pytest.raises(UserError, match="got live networks of this package: weights: only for a named network"):
        record(LIVE, NetworkOptions, {"weights": {}})


def test_an_unknown_option_is_refused_with_the_nearest() -> None:
    with pytest.raises(UserError, match=r"got the option 'bacth', expected one of .*; batch is nearest"):
        record(NAMED, NetworkOptions, {"bacth": 3})
    misspelt: Any = {"optimiser": "adam"}
    with pytest.raises(UserError, match="optimizer is nearest"):
        parity.check_network("tutorial_net", **misspelt)


@pytest.mark.usefixtures("no_type_checks")
@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"steps": -1}, "steps: got -1, expected a whole number from 0"),
        ({"seed": 1.5}, "seed: got 1.5, expected a whole number from 0"),
        ({"batch": 0}, "batch: got 0, expected a whole number from 1"),
        ({"ports": ["keras"]}, "unknown port 'keras'; expected nnx or linen"),
        ({"ports": []}, "ports: got none, expected nnx or linen"),
    ],
)
def test_a_value_out_of_range_is_refused_where_the_record_is_made(given: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        NetworkOptions(**given)


def test_each_working_precision_is_measured_once() -> None:
    assert PairOptions(dtypes="float32").types == ("float32",)
    assert PairOptions(dtypes=["bfloat16", "float32", "bfloat16"]).types == ("bfloat16", "float32")


def test_the_name_of_a_network_is_checked_by_check_too() -> None:
    with pytest.raises(UserError, match="unknown network"):
        parity.check("resnet5O")
