"""What a chain of operations computes: every tensor remembers the call that made it, and one member can be replaced."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from parity.traps.operations.attention_parts import attention_of
from parity.traps.operations.own_norms import norm_of
from parity.traps.operations.parts import Call, changes, fresh, made, name_of, reached, remember, replayed
from parity.traps.operations.rotary_parts import rotation_of

ONE = torch.ones(2)


class Remembering(TorchFunctionMode):
    """Lets every tensor remember its call, and keeps the calls."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Call] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        call = Call(name_of(func), func, args, kwargs or {}, number=len(self.calls))
        call = Call(call.name, func, call.given(), call.kw, number=call.number)
        self.calls.append(call)
        value = func(*args, **(kwargs or {}))
        if changes(func):
            remember(args[0], call)
        remember(value, call)
        return value


def last(function: Any, *inputs: Tensor) -> tuple[Tensor, Call]:
    """What a function gives, and its last call."""
    with Remembering() as seen:
        value = function(*inputs)
    return value, seen.calls[-1]


X = torch.linspace(-2.0, 3.0, 24, dtype=torch.float64).sin().reshape(1, 3, 8)


def rms(x: Tensor) -> Tensor:
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-5)


def layer_norm(x: Tensor) -> Tensor:
    return (x - x.mean(-1, keepdim=True)) / torch.sqrt(x.var(-1, unbiased=False, keepdim=True) + 1e-5)


@pytest.mark.parametrize(("function", "centred"), [(rms, False), (layer_norm, True)])
def test_a_norm_is_read_from_its_operations(function: Any, centred: bool) -> None:
    value, call = last(function, X)
    norm = norm_of(call.function, call.args, call.kw)
    assert norm is not None
    assert (norm.centred, norm.eps, norm.inside) == (centred, 1e-5, True)
    assert torch.allclose(norm.value(), value, rtol=1e-12)


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x * torch.rsqrt(x.abs().mean(-1, keepdim=True) + 1e-5),  # no mean of squares
        lambda x: x.sin() * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-5),  # of something else
        lambda x: x * x.sigmoid(),
    ],
)
def test_what_is_no_norm_is_not_read_as_one(function: Any) -> None:
    _, call = last(function, X)
    assert norm_of(call.function, call.args, call.kw) is None


def test_an_attention_is_read_with_its_scale_and_mask() -> None:
    kept = torch.ones(3, 3, dtype=torch.bool).tril()

    def attend(x: Tensor) -> Tensor:
        return ((x @ x.mT) / 8**0.5).masked_fill(~kept, float("-inf")).softmax(-1)

    value, call = last(attend, X)
    attention = attention_of(call.function, call.args, call.kw)
    assert attention is not None
    assert [step.kind for step in attention.steps] == ["scale", "mask"]
    assert attention.depth == 8
    assert attention.kept is not None
    assert torch.equal(attention.kept, kept)
    assert torch.allclose(attention.value(), value, rtol=1e-12)


def test_the_mask_of_windows_is_read_though_it_has_an_axis_more() -> None:
    """Swin takes windows apart from images to add the mask of each, and puts them together again."""
    low = torch.zeros(2, 3, 3, dtype=torch.float64)
    low[1, 0, 1:] = -100

    def attend(x: Tensor) -> Tensor:
        heads = x.expand(4, 2, 3, 8) * torch.arange(1.0, 9.0, dtype=torch.float64).view(4, 2, 1, 1)
        scores = (heads * 0.5) @ heads.transpose(-2, -1) + torch.eye(3)
        scores = scores.view(2, 2, 2, 3, 3) + low[None, :, None]
        return torch.softmax(scores.view(-1, 2, 3, 3), -1)

    value, call = last(attend, X)
    attention = attention_of(call.function, call.args, call.kw)
    assert attention is not None
    assert [step.kind for step in attention.steps] == ["scale", "bias", "mask"]
    assert attention.kept is not None
    assert attention.kept.shape == (4, 2, 3, 3)
    assert torch.equal(attention.kept[3, 1], low[1] == 0)
    assert torch.equal(attention.kept[2, 1], low[0] == 0)
    assert torch.allclose(attention.value(), value, rtol=1e-12)


def test_scores_with_other_queries_and_keys_are_no_attention() -> None:
    _, call = last(lambda x: torch.softmax((x @ x.transpose(-2, -1)).reshape(1, 1, 9), -1), X)
    assert attention_of(call.function, call.args, call.kw) is None


def test_a_softmax_of_something_else_is_no_attention() -> None:
    _, call = last(lambda x: (x * 2).softmax(-1), X)
    assert attention_of(call.function, call.args, call.kw) is None


def test_a_rotation_is_read_by_its_numbers() -> None:
    angle = torch.arange(3, dtype=torch.float64)[:, None] * 0.1 ** torch.arange(4)
    cos, sin = torch.cat([angle, angle], -1).cos(), torch.cat([angle, angle], -1).sin()

    def rotate(x: Tensor, sign: float = -1.0) -> Tensor:
        a, b = x.chunk(2, -1)
        return x * cos + torch.cat([sign * b, a], -1) * sin

    value, call = last(rotate, X)
    rotation = rotation_of(call.function, call.args, call.kw)
    assert rotation is not None
    assert rotation.halves
    assert torch.allclose(rotation.value(), value, rtol=1e-12)
    _, call = last(lambda x: rotate(x, 1.0), X)  # no rotation: the determinant is not one
    assert rotation_of(call.function, call.args, call.kw) is None


def test_one_call_is_replaced_and_what_follows_computed_again() -> None:
    value, _ = last(lambda x: (x.relu() + x).sin(), X)
    calls = reached(value)
    assert [call.name for call in calls] == ["relu", "add", "sin"]
    planted = replayed(value, calls, lambda function, args, kw: args[0], [calls[0].number])
    assert torch.equal(planted, (X + X).sin())
    assert torch.equal(replayed(value, calls, lambda *_: None, []), value)


def test_a_call_in_place_keeps_what_was_there() -> None:
    def change(x: Tensor) -> Tensor:
        y = x.clone()
        y.relu_()
        return y + 1

    value, _ = last(change, X)
    calls = reached(value)
    relu = next(call for call in calls if call.name == "relu")
    assert torch.equal(relu[0], X)
    planted = replayed(value, calls, lambda function, args, kw: args[0].tanh(), [relu.number])
    assert torch.equal(planted, X.tanh() + 1)


def test_what_is_written_into_a_part_is_computed_again_only_if_it_changes() -> None:
    """A window's mask is written part by part. What gives nothing, as `mask[1:, 2] = 5`, has the array it changes."""

    def masked(x: Tensor) -> Tensor:
        mask = torch.zeros(x.shape, dtype=x.dtype)
        mask[:1, 1] = 3
        mask[1:, 2] = x[1:, 2] * 2
        return x.relu() + mask

    value, _ = last(masked, X)
    calls = reached(value)
    relu = next(call for call in calls if call.name == "relu")
    planted = replayed(value, calls, lambda function, args, kw: args[0].tanh(), [relu.number])
    assert torch.equal(planted, value - X.relu() + X.tanh())
    doubled = next(call for call in calls if call.name == "mul")
    expected = value.clone()
    expected[1:, 2] += X[1:, 2]
    planted = replayed(value, calls, lambda function, args, kw: args[0] * 3, [doubled.number])
    assert torch.allclose(planted, expected, rtol=1e-12)


def test_a_mistake_that_hands_on_a_tensor_leaves_its_call_alone() -> None:
    value, _ = last(lambda x: (x.relu() + x.tanh()).sin(), X)
    calls = reached(value)
    tanh = next(call for call in calls if call.name == "tanh")
    add = next(call for call in calls if call.name == "add")
    replayed(value, calls, lambda function, args, kw: args[1], [add.number])
    found = made(add[1], "tanh")
    assert found is not None
    assert found.number == tanh.number
    assert fresh(add[1]) is not add[1]


@pytest.mark.parametrize(
    ("function", "args", "kw", "changing"),
    [
        (F.relu, (ONE,), {"inplace": True}, True),
        (F.relu, (ONE, True), {}, True),
        (F.relu, (ONE,), {}, False),
        (F.dropout, (ONE, 0.5, True), {}, False),
        (F.dropout, (ONE, 0.5, True, True), {}, True),
        (torch.relu_, (ONE,), {}, True),
    ],
)
def test_a_call_knows_whether_it_changes_what_it_gets(
    function: Any, args: tuple[Any, ...], kw: dict[str, Any], changing: bool
) -> None:
    assert Call("", function, args, kw).changing is changing
