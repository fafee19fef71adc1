"""`ports.optim` against `torch.optim` in float64, relative to the size of the update; and optax's own, which differ."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch

from ports import UserError, optim
from ports.optimizers import OPTIMIZERS, Form, KnownOptimizer

SHAPES = {"kernel": (3, 4), "bias": (4,), "scale": ()}
STEPS = (1, 3, 20)
# How PyTorch computes, not what; AdamW's class sets `decoupled_weight_decay`.
IMPLEMENTATION = {"params", "lr", "maximize", "foreach", "differentiable", "capturable", "fused"}
IMPLEMENTATION |= {"decoupled_weight_decay"}

FORMS = {form.transform: form for row in OPTIMIZERS for form in row.forms}
# Options that matter together.
TOGETHER: dict[str, list[dict[str, Any]]] = {
    "sgd": [
        {"momentum": 0.9, "weight_decay": 0.1},
        {"momentum": 0.9, "dampening": 0.5},
        {"momentum": 0.9, "nesterov": True, "weight_decay": 0.1},
    ],
    "adam": [{"betas": (0.5, 0.9), "eps": 0.1}],
    "rmsprop": [{"momentum": 0.9, "centered": True, "weight_decay": 0.1, "eps": 0.1}],
    "adagrad": [{"lr_decay": 0.1, "weight_decay": 0.1}],
}
LR = 0.05


def one_by_one(form: Form) -> list[dict[str, Any]]:
    """Each option of PyTorch's class alone, with another value than its default."""
    (group,) = made(form, torch.zeros(2, requires_grad=True)).param_groups
    (row,) = (row for row in OPTIMIZERS if form in row.forms)
    return [{name: other(group[name])} for name in sorted(row.options) if name not in ("dampening", "nesterov")]


def other(value: Any) -> Any:
    if isinstance(value, tuple):
        return tuple(other(one) for one in value)
    return not value if isinstance(value, bool) else 0.7 if value > 0.5 else 0.3 if value > 1e-3 else 0.1


def made(form: Form, *params: Any, **options: Any) -> torch.optim.Optimizer:
    return getattr(torch.optim, form.torch)(params, lr=LR, **options)


CASES = [
    (name, options)
    for name, form in FORMS.items()
    for options in ({}, *one_by_one(form), *map(dict, form.variants.values()), *TOGETHER.get(name, ()))
]

Tree = dict[str, np.ndarray]


def tree(seed: int) -> Tree:
    rng = np.random.default_rng(seed)
    return {name: rng.standard_normal(shape) for name, shape in SHAPES.items()}


def in_torch(
    make: Callable[[Any], torch.optim.Optimizer], steps: int, change: Any = None, scheduler: Any = None
) -> Tree:
    params = {name: torch.tensor(array, requires_grad=True) for name, array in tree(0).items()}
    optimizer = make(params.values())
    schedule = scheduler(optimizer) if scheduler else None
    for step in range(steps):
        for name, grad in tree(step + 1).items():
            params[name].grad = torch.tensor(grad)
        if change:
            change(params.values())
        optimizer.step()
        if schedule:
            schedule.step()
    return {name: p.detach().numpy() for name, p in params.items()}


def in_optax(tx: optax.GradientTransformation, steps: int) -> Tree:
    with jax.enable_x64(True):
        params = {name: jnp.array(array) for name, array in tree(0).items()}
        state = tx.init(params)
        for step in range(steps):
            grads = {name: jnp.array(grad) for name, grad in tree(step + 1).items()}
            updates, state = tx.update(grads, state, params)
            params: Any = optax.apply_updates(params, updates)
        return {name: np.asarray(p) for name, p in params.items()}


def error(got: Tree, expected: Tree) -> float:
    """The largest distance of a tensor, relative to the update that PyTorch made to it."""
    start = tree(0)
    return max(float(np.linalg.norm(got[n] - expected[n]) / np.linalg.norm(expected[n] - start[n])) for n in SHAPES)


@pytest.mark.sample(14)
@pytest.mark.parametrize(("name", "options"), CASES, ids=[f"{n}-{'-'.join(o) or 'default'}" for n, o in CASES])
def test_optimizer_is_pytorchs(name: str, options: dict[str, Any]) -> None:
    for steps in STEPS:
        expected = in_torch(lambda p: made(FORMS[name], *p, **options), steps)
        assert error(in_optax(getattr(optim, name)(LR, **options), steps), expected) < 1e-12


@pytest.mark.parametrize("name", FORMS)
def test_defaults_are_pytorchs(name: str) -> None:
    torch_class, make = getattr(torch.optim, FORMS[name].torch), getattr(optim, name)
    expected = (
        in_torch(lambda p: torch_class(p), 3) if name != "sgd" else in_torch(lambda p: torch_class(p, lr=1e-3), 3)
    )
    assert error(in_optax(make() if name != "sgd" else make(1e-3), 3), expected) < 1e-12


@pytest.mark.parametrize("row", OPTIMIZERS, ids=lambda row: row.name)
def test_every_row_names_the_options_of_both(row: KnownOptimizer) -> None:
    """All options that change what is computed: those of PyTorch's groups, and the arguments of the transform."""
    for form in row.forms:
        group = made(form, torch.zeros(2, requires_grad=True)).param_groups[0]
        assert set(group) - IMPLEMENTATION == row.options
        assert set(inspect.signature(getattr(optim, form.transform)).parameters) - {"learning_rate"} == row.options
        for options in form.variants.values():
            assert set(options) <= row.options


@pytest.mark.parametrize(
    ("wrong", "torch_class", "options", "steps"),
    [
        (optax.sgd(LR, momentum=0.9), torch.optim.SGD, {"momentum": 0.9, "dampening": 0.5}, 3),
        (
            optax.chain(optax.sgd(LR, momentum=0.9), optax.add_decayed_weights(-LR * 0.1)),
            torch.optim.SGD,
            {"momentum": 0.9, "weight_decay": 0.1},
            3,
        ),
        (optax.adamw(LR), torch.optim.AdamW, {}, 1),
        (optax.adam(LR, eps=0.0, eps_root=1e-2), torch.optim.Adam, {"eps": 0.1}, 1),
        (optax.rmsprop(LR, decay=0.99), torch.optim.RMSprop, {"eps": 1e-2}, 1),
        (optax.rmsprop(LR), torch.optim.RMSprop, {}, 1),
        (optax.adagrad(LR), torch.optim.Adagrad, {}, 1),
        (optax.adagrad(LR, initial_accumulator_value=0.0, eps=1e-2), torch.optim.Adagrad, {"eps": 1e-2}, 1),
        (optim.sgd(lambda count: LR * 0.5 ** (count + 1)), torch.optim.SGD, {}, 1),
    ],
    ids=[
        "dampening",
        "decay-behind-momentum",
        "adamw-decay",
        "eps-root",
        "rmsprop-eps",
        "rmsprop-alpha",
        "adagrad-start",
        "adagrad-eps",
        "schedule-off-by-one",
    ],
)
def test_optax_and_known_mistakes_are_not(wrong: Any, torch_class: Any, options: dict[str, Any], steps: int) -> None:
    expected = in_torch(lambda p: torch_class(p, lr=LR, **options), steps)
    assert error(in_optax(wrong, steps), expected) > 1e-6


@pytest.mark.parametrize("max_norm", [0.5, 100.0])
def test_clip_grad_norm(max_norm: float) -> None:
    def clip(params: Any) -> None:
        torch.nn.utils.clip_grad_norm_(params, max_norm)

    expected = in_torch(lambda p: torch.optim.SGD(p, lr=LR, momentum=0.9), 3, clip)
    ours = optax.chain(optim.clip_grad_norm(max_norm), optim.sgd(LR, momentum=0.9))
    assert error(in_optax(ours, 3), expected) < 1e-12
    theirs = optax.chain(optax.clip_by_global_norm(max_norm), optim.sgd(LR, momentum=0.9))
    if max_norm < 1:
        assert error(in_optax(theirs, 3), expected) > 1e-8


def test_clip_grad_value() -> None:
    expected = in_torch(lambda p: torch.optim.SGD(p, lr=LR), 3, lambda p: torch.nn.utils.clip_grad_value_(p, 0.3))
    assert error(in_optax(optax.chain(optim.clip_grad_value(0.3), optim.sgd(LR)), 3), expected) < 1e-12


def test_parameters_without_gradient_stay() -> None:
    mask = {"kernel": True, "bias": False, "scale": True}
    end = in_optax(optim.trained(optim.adamw(LR), mask), 3)
    start = tree(0)
    assert np.array_equal(end["bias"], start["bias"])
    assert not np.array_equal(end["kernel"], start["kernel"])
    assert not np.array_equal(in_optax(optax.masked(optim.adamw(LR), mask), 3)["bias"], start["bias"])


@pytest.mark.parametrize(
    "make",
    [
        lambda: optim.sgd(0.1, momentum=-1),
        lambda: optim.sgd(0.1, nesterov=True),
        lambda: optim.adam(betas=(1.0, 0.9)),
        lambda: optim.rmsprop(eps=-1),
        lambda: optim.adagrad(lr_decay=-1),
    ],
)
def test_options_out_of_range(make: Callable[[], Any]) -> None:
    with pytest.raises(UserError, match=r"expected|needs"):
        make()


def test_an_update_needs_parameters() -> None:
    tx = optim.sgd(0.1)
    with pytest.raises(UserError, match="got no parameters"):
        tx.update({"a": jnp.ones(2)}, tx.init({"a": jnp.ones(2)}))
