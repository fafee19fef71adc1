"""Distances, rounding responses and bounds."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from parity.numerics import bounds
from parity.numerics.bounds import DECIDES, MULTIPLE, Responses, distance, norm, one_ulp
from parity.numerics.quantities import Probe
from parity.running import losses
from parity.running import pytorch as run_pytorch

FLOATS = st.sampled_from([np.float32, np.float64])


@given(st.data())
def test_every_number_moves_by_one_unit(data: st.DataObject) -> None:
    dtype = data.draw(FLOATS)
    values = data.draw(arrays(dtype, 20, elements={"allow_nan": False, "allow_infinity": False}))
    values = np.clip(values, -1e30, 1e30)
    moved = one_ulp(values, np.random.default_rng(0))
    assert moved.dtype == values.dtype
    neighbours = np.nextafter(values, dtype(-np.inf)), np.nextafter(values, dtype(np.inf))
    assert np.all(np.where(values == 0, moved == 0, (moved == neighbours[0]) | (moved == neighbours[1])))


def test_both_signs_are_drawn_and_seeds_differ() -> None:
    ones = np.ones(1000)
    moved = one_ulp(ones, np.random.default_rng(0))
    assert 400 < (moved > 1).sum() < 600
    assert not np.array_equal(moved, one_ulp(ones, np.random.default_rng(1)))


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("shape", [(), (0,), (1, 1), (2, 3, 4)], ids=str)
def test_shape_and_type_stay(shape: tuple[int, ...], dtype: Any) -> None:
    """A sign times 2**-52 would be rounded away in float32, or make it float64."""
    values = np.full(shape, 3, dtype)
    moved = one_ulp(values, np.random.default_rng(0))
    assert (moved.shape, moved.dtype) == (values.shape, values.dtype)
    assert np.all(np.abs(moved.astype(np.float64) - 3) == 2 * np.finfo(dtype).eps)
    assert np.all(values == 3)


@pytest.mark.parametrize("dtype", [np.int8, np.int64, np.uint8, np.bool_])
def test_what_is_no_floating_point_number_stays(dtype: Any) -> None:
    values = np.array([0, 1, 5]).astype(dtype)
    moved = one_ulp(values, np.random.default_rng(0))
    assert moved.dtype == dtype
    assert np.array_equal(moved, values)


def test_integers_stay() -> None:
    tokens, images = np.arange(5), np.ones((1, 1, 2, 2))
    probe = Probe((images, {"tokens": tokens}), losses.projection(0))
    weights, moved = bounds.perturbed({"n": np.array(3)}, probe, seed=0)
    assert weights["n"] == 3
    assert np.array_equal(moved.inputs[1]["tokens"], tokens)
    assert not np.array_equal(moved.inputs[0], images)


def test_perturbed_copies_keep_images_as_flax_does() -> None:
    images = np.ones((2, 3, 4, 5))
    _, moved = bounds.perturbed({}, Probe((images, np.ones((2, 3))), losses.projection(0)), seed=0)
    first, second = run_pytorch.inputs_of(moved, grad=True)
    assert first.is_contiguous(memory_format=torch.channels_last)
    assert not first.is_contiguous()
    assert second.is_contiguous()
    assert first.is_leaf
    assert first.requires_grad


NAN, INF = np.nan, np.inf


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        ([3.0, 4.0], [0.0, 0.0], 5.0),
        ([1.0, NAN], [1.0, NAN], 0.0),
        ([1.0, NAN], [1.0, 2.0], INF),
        ([1.0, 2.0], [1.0, NAN], INF),
        ([INF, 1.0], [INF, 3.0], 2.0),
        ([INF, 1.0], [-INF, 1.0], INF),
        ([NAN, 1.0], [INF, 1.0], INF),
        ([1.0, INF], [NAN, 1.0], INF),
        ([1.0], [1.0, 1.0], INF),
        ([], [], 0.0),
        ([NAN, INF, -INF], [NAN, INF, -INF], 0.0),
        ([5e-324], [0.0], 5e-324),
        ([3e300, 0.0], [0.0, 4e300], 5e300),
        ([1.7e308], [-1.7e308], INF),
    ],
    ids=str,
)
def test_distance(a: list[float], b: list[float], expected: float) -> None:
    assert distance(np.array(a), np.array(b)) == expected


def test_a_distance_is_of_numbers_not_of_types() -> None:
    assert distance(np.array([0.1], np.float32), np.array([0.1])) == abs(float(np.float32(0.1)) - 0.1)
    assert distance(np.array(3), np.array(5)) == 2


def test_shapes_that_broadcast_are_not_the_same() -> None:
    assert distance(np.ones((1, 3)), np.ones(3)) == INF
    assert distance(np.ones(()), np.ones(1)) == INF


def test_norm_of_nothing() -> None:
    assert norm(np.zeros(0)) == norm(np.zeros(3)) == norm(np.array([NAN, INF])) == 0.0
    assert norm(np.array([NAN, 3.0, -4.0])) == 5.0


@pytest.mark.parametrize("scale", [1e300, 1.0, 1e-300])
def test_norm_neither_overflows_nor_underflows(scale: float) -> None:
    assert norm(np.array([3 * scale, 4 * scale])) == pytest.approx(5 * scale, rel=1e-15, abs=0)


def responses(
    reference: dict[str, np.ndarray], moved: dict[str, np.ndarray], quantity: str = "layer.eval"
) -> Responses:
    found = Responses({quantity: reference}, {"w": np.full(4, 1e6)})
    found.add([(quantity, moved)])
    return found


def test_the_bound_is_a_multiple_of_the_response() -> None:
    found = responses({"a": np.ones(4)}, {"a": np.ones(4) + 1e-9})
    assert found.bound("layer.eval", "a") == pytest.approx(MULTIPLE * 2e-9)


def test_the_response_is_at_least_one_unit_in_the_last_place() -> None:
    found = responses({"a": np.ones(4)}, {"a": np.ones(4)})
    assert found.response("layer.eval", "a") == 2 * np.finfo(float).eps


def test_of_an_update_the_unit_is_the_parameters() -> None:
    found = responses({"w@1": np.full(4, 1e-3)}, {"w@1": np.full(4, 1e-3)}, "training.parameter")
    assert found.response("training.parameter", "w@1") == 2 * np.spacing(1e6)


def test_the_response_is_the_root_mean_square_of_all_draws() -> None:
    found = responses({"a": np.ones(4)}, {"a": np.ones(4) + 3e-9})
    found.add([("layer.eval", {"a": np.ones(4) - 4e-9})])
    assert found.response("layer.eval", "a") == pytest.approx(2 * (25 / 2) ** 0.5 * 1e-9, rel=1e-6, abs=0)


@pytest.mark.parametrize("scale", [1e200, 1e-200])
def test_responses_neither_overflow_nor_underflow(scale: float) -> None:
    found = responses({"a": np.full(4, scale)}, {"a": np.full(4, scale * (1 + 1e-9))})
    assert found.response("layer.eval", "a") == pytest.approx(2e-9 * scale, rel=1e-6, abs=0)
    assert found.sizes("layer.eval") == pytest.approx({"a": 2 * scale}, rel=1e-12, abs=0)
    assert found.undecided("layer.eval") == []


def test_a_draw_that_is_not_finite_decides_nothing() -> None:
    found = responses({"a": np.ones(4), "b": np.ones(4)}, {"a": np.array([1.0, 1.0, 1.0, NAN]), "b": np.ones(4)})
    assert found.bound("layer.eval", "a") == INF
    assert found.undecided("layer.eval") == ["a"]


@pytest.mark.parametrize("value", [NAN, INF])
def test_a_reference_without_a_finite_number_decides_nothing(value: float) -> None:
    """NaN is equal to NaN: any port would pass."""
    found = responses({"a": np.full(4, value), "b": np.ones(4)}, {"a": np.full(4, value), "b": np.ones(4)})
    assert found.undecided("layer.eval") == ["a"]


def test_a_tensor_that_is_exactly_zero_has_to_be_exactly_zero() -> None:
    found = responses({"a": np.zeros(4), "b": np.ones(4)}, {"a": np.zeros(4), "b": np.ones(4)})
    assert found.bound("layer.eval", "a") < 1e-320
    assert found.undecided("layer.eval") == []


def test_what_decides_nothing_is_named() -> None:
    size = np.ones(4)
    wide, narrow = size + DECIDES, size + DECIDES / MULTIPLE / 10
    assert responses({"a": size}, {"a": wide}).undecided("layer.eval") == ["a"]
    assert responses({"a": size}, {"a": narrow}).undecided("layer.eval") == []


def test_a_gradient_of_rounding_alone_is_held_against_the_others() -> None:
    """A bias before BatchNorm: no right digit in it, and yet its bound is narrow beside the other gradients."""
    noise = np.array([1e-17, -2e-17])
    found = responses({"w": np.ones(4), "bias": noise}, {"w": np.ones(4), "bias": -noise})
    assert found.zero_in_exact_arithmetic("layer.eval", "bias")
    assert not found.zero_in_exact_arithmetic("layer.eval", "w")
    assert found.undecided("layer.eval") == []


def test_elements_without_a_right_digit_are_skipped_in_training_alone() -> None:
    gradient, update = np.array([1.0, 1e-16, 0.0, -2.0]), np.array([1.0, 2.0, 3.0, 4.0])
    seen = {"gradient.parameter": {"w": gradient}, "training.parameter": {"w@1": update}}
    skipped = bounds.unsteady(seen)
    assert skipped["w"].tolist() == [False, True, False, False]
    responses = Responses(seen, {"w": np.ones(4)}, skipped=skipped)
    assert responses.reference["training.parameter"]["w@1"].tolist() == [1, 0, 3, 4]
    assert responses.reference["gradient.parameter"]["w"] is gradient
    assert responses.compared("training.state", "exp_avg/w@1", update).tolist() == [1, 0, 3, 4]
    assert responses.compared("training.state", "exp_avg/v@1", update) is update
    assert bounds.unsteady({"gradient.parameter": {"w": np.array([1e-16, -2e-16])}}) == {}  # all of it is rounding


def test_elements_without_a_right_digit_beside_the_other_gradients_are_skipped() -> None:
    """The parts of an attention's bias: a query's is small, a value's holds rounding that a BatchNorm multiplied."""
    small, other = np.array([2e-5, -3e-5, 5e-15, -1e-14]), np.ones(4)
    skipped = bounds.unsteady({"gradient.parameter": {"bias": small, "w": other}})
    assert skipped["bias"].tolist() == [False, False, True, True]
    assert "bias" not in bounds.unsteady({"gradient.parameter": {"bias": small}})


def test_a_square_of_a_gradient_rounds_twice_as_much() -> None:
    """A run that moved only the small elements says little of the square of the large one."""
    gradient, moved = np.array([2.0, 1e-4]), np.array([2.0, 1e-4 + 1e-12])
    state = {"gradient.parameter": {"w": gradient}, "training.state": {"exp_avg_sq/w@1": 1e-3 * gradient**2}}
    found = Responses(state, {"w": np.ones(2)})
    found.add([("gradient.parameter", {"w": moved}), ("training.state", {"exp_avg_sq/w@1": 1e-3 * moved**2})])
    assert found.measured("training.state", "exp_avg_sq/w@1") < 1e-18
    assert found.response("training.state", "exp_avg_sq/w@1") == pytest.approx(4e-15, rel=1e-2)
