"""States of live optimizers: known or refused, complete or refused, every bit kept or refused."""

from __future__ import annotations

import functools
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from flax import linen, nnx

import ports
from ports import optim
from ports.optimizers import CLASSES, OPTAX, OPTIMIZERS, VARIANTS, KnownOptimizer, Node, class_of
from ports.weights import Ignore, Rename, WeightsError, optimizer
from ports.weights.optimizer.table import KNOWN, node_of, whole_number

pytestmark = pytest.mark.usefixtures("quick")

NAMES = ("0.weight", "0.bias", "1.weight", "1.bias")
RNG = np.random.default_rng(0)
SHAPES = dict(zip(NAMES, ((3, 2), (3,), (2, 3), (2,)), strict=True))
GRADS = [{n: RNG.standard_normal(shape).astype(np.float32) for n, shape in SHAPES.items()} for _ in range(3)]
BAD_STEPS = [2.7, -1, float("nan"), float("inf"), "3\n\x1b[31m", 1j, [1, 2], None, True, 2**63, 10**30, {}]
BAD_STEPS += [np.array([1.0]), np.array(7, complex), np.array(2.5, np.float32), np.array("7"), np.array(-3, np.int32)]
BAD_STEPS += [np.array(b"7"), np.zeros((), "V4")]


def in_torch(dtype: Any = torch.float32) -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Linear(3, 2)).to(dtype)


def in_nnx() -> nnx.Module:
    return nnx.Sequential(nnx.Linear(2, 3, rngs=nnx.Rngs(0)), nnx.Linear(3, 2, rngs=nnx.Rngs(1)))


@functools.cache
def in_linen() -> Any:
    module = linen.Sequential([linen.Dense(3), linen.Dense(2)])
    return module, module.init(jax.random.key(0), jnp.ones((1, 2)))


def stepped(tuned: Any, net: torch.nn.Module, without: str = "") -> Any:
    """A PyTorch optimizer after a step for each of `GRADS`."""
    for grads in GRADS:
        for name, p in net.named_parameters():
            p.grad = None if name == without else torch.from_numpy(grads[name]).to(p.dtype)
        tuned.step()
    return tuned


def tree(grads: dict[str, np.ndarray], net: Any) -> Any:
    """Gradients as a tree like the parameters of a Flax network."""
    copy = ports.weights.write(net, grads) if isinstance(net, tuple) else nnx.clone(net)
    if isinstance(net, tuple):
        return copy["params"]
    ports.weights.write(copy, grads)
    return nnx.state(copy, nnx.Param)


def same(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> bool:
    return {n: (v.dtype, v.tobytes()) for n, v in a.items()} == {n: (v.dtype, v.tobytes()) for n, v in b.items()}


def adam_state(**options: Any) -> optimizer.OptimizerState:
    net = in_torch()
    return optimizer.read(stepped(torch.optim.Adam(net.parameters(), **options), net), net)


# ---- which optimizers are known


ALL = {name for name, cls in vars(torch.optim).items() if isinstance(cls, type)} - {"Optimizer"}
OTHERS = sorted(ALL - set(CLASSES))


def test_classes_are_pytorchs() -> None:
    assert set(CLASSES) < ALL
    assert "LBFGS" in OTHERS  # its state cannot move: it has no tensor per parameter


@pytest.mark.parametrize("name", OTHERS)
def test_other_classes_are_refused(name: str) -> None:
    net = in_torch()
    matrices = [p for p in net.parameters() if p.ndim == 2]  # Muon takes no others
    tuned = getattr(torch.optim, name)(matrices, lr=0.1)
    said = rf"torch\.optim\.(\w+\.)?{name}, expected one of torch.optim's {KNOWN}"
    for call in (lambda: optimizer.read(tuned, net), lambda: optimizer.write(tuned, net, adam_state())):
        with pytest.raises(WeightsError, match=said):
            call()
    assert not tuned.state


def test_a_subclass_is_known_while_it_computes_the_same() -> None:
    class Named(torch.optim.Adam):
        pass

    class Other(torch.optim.Adam):
        def step(self, closure: Any = None) -> Any:  # pyright: ignore
            return None

    net = in_torch()
    assert same(optimizer.read(stepped(Named(net.parameters()), net), net), adam_state())
    with pytest.raises(WeightsError, match="Other, expected one of"):
        optimizer.read(Other(net.parameters()), net)


ROWS = pytest.mark.parametrize("row", OPTIMIZERS, ids=lambda row: row.name)


@pytest.mark.parametrize("name", CLASSES)
def test_a_class_is_not_taken_for_the_class_above_it(name: str) -> None:
    cls = getattr(torch.optim, name)
    params = [torch.nn.Parameter(torch.zeros(2))]
    assert class_of(cls(params, lr=0.1)) == class_of(type("Named", (cls,), {})(params, lr=0.1)) == name


@ROWS
def test_every_row_names_what_pytorch_keeps(row: KnownOptimizer) -> None:
    """Compare the table with PyTorch itself, and with `ports.optim`."""
    options = {option: 0.5 if option == "momentum" else True for option in row.tensors.values() if option}
    for form in row.forms:
        net = in_torch()
        tuned = getattr(torch.optim, form.torch)(net.parameters(), lr=0.1)
        assert bool(tuned.state) is row.eager
        group = tuned.param_groups[0]
        group |= options
        state = stepped(tuned, net).state[net[0].weight]  # pyright: ignore
        assert set(state) - {"step"} == set(row.tensors)
        assert ("step" in state) is row.counts
        assert row.options <= set(group)
        transform = getattr(optim, form.transform)
        assert set(transform(0.1, **options).init({"a": jnp.ones(2)}).tensors) == set(row.tensors)
        for option, value in options.items():
            there = {slot for slot, by in row.tensors.items() if by in (None, option)}
            assert set(transform(0.1, **{option: value}).init({"a": jnp.ones(2)}).tensors) == there


def nodes_in(state: Any) -> list[Node]:
    """The known NamedTuples of a state of optax that hold tensors."""
    here = [row] if (row := node_of(state)) and row.tensors else []
    return here + [node for part in state if isinstance(part, tuple) for node in nodes_in(part)]


@ROWS
def test_every_row_names_what_optax_keeps(row: KnownOptimizer) -> None:
    """Every node has tensors of its row, and the state of every optimizer of optax that is named is known."""
    assert all(set(node.tensors.values()) <= set(row.tensors) for node in row.nodes)
    for words in row.optax:
        name, _, limit = words.partition(" ")
        state = getattr(optax, name)(0.1).init({"a": jnp.ones(2)})
        found = nodes_in(state)
        assert found == [node for node in row.nodes if node in found]
        assert found or name == "sgd"
        assert not limit or limit == "without momentum"


@pytest.mark.parametrize("name", VARIANTS)
def test_every_variant_moves_and_comes_back(name: str) -> None:
    """From PyTorch to NNX, Linen, `nnx.Optimizer` and back, every bit."""
    variant = VARIANTS[name]
    net = in_torch()
    tuned = getattr(torch.optim, variant.form.torch)(net.parameters(), lr=0.1, **variant.options)
    state = optimizer.read(stepped(tuned, net), net, 3)
    assert len(state) > len(NAMES)
    tx = getattr(optim, variant.form.transform)(0.1, **variant.options)
    other, flax = in_linen(), in_nnx()
    kept = nnx.Optimizer(flax, tx, wrt=nnx.Param)
    for place, model in (
        (tx.init(other[1]["params"]), other),
        (tx.init(nnx.state(flax, nnx.Param)), flax),
        (kept, flax),
    ):
        new = optimizer.write(place, model, state)
        back = optimizer.read(place if new is None else new, model)
        assert same(back, state)
        fresh = getattr(torch.optim, variant.form.torch)(net.parameters(), lr=0.1, **variant.options)
        optimizer.write(fresh, net, back)
        assert same(optimizer.read(fresh, net, 3), state)
        lost = {key: array for key, array in state.items() if not key.endswith("/1.bias")}
        for target, where in ((place, model), (fresh, net)):
            with pytest.raises(WeightsError, match=r"missing from the state for 1.bias"):
                optimizer.write(target, where, lost, stateless=())


# ---- lossless


@pytest.mark.parametrize("target", ["torch", "nnx", "linen", "nnx.Optimizer"])
def test_a_wider_state_is_refused(target: str) -> None:
    wide = {n: a.astype(np.float64) if n != "step" else a for n, a in adam_state().items()}
    wide["exp_avg_sq/0.bias"][0] = 1e300
    place, net = targets(target)
    before = str(place.state if target == "torch" else place)
    with pytest.raises(WeightsError, match=r"exp_avg_sq/0.bias: got float64, which loses bits"):
        optimizer.write(place, net, wide, stateless=())
    assert str(place.state if target == "torch" else place) == before


@pytest.mark.parametrize("target", ["torch", "nnx", "linen"])
def test_a_narrower_state_is_widened_exactly(target: str) -> None:
    narrow = {n: a.astype(np.float16) if n != "step" else a for n, a in adam_state().items()}
    place, net = targets(target)
    new = optimizer.write(place, net, narrow, stateless=())
    back = optimizer.read(place if target == "torch" else new, net)
    assert all(np.array_equal(back[n], narrow[n].astype(back[n].dtype)) for n in narrow)


def targets(name: str) -> tuple[Any, Any]:
    """A fresh Adam of a kind, and its network."""
    if name == "torch":
        net = in_torch()
        return torch.optim.Adam(net.parameters()), net
    if name == "linen":
        return optim.adam().init(in_linen()[1]["params"]), in_linen()
    net = in_nnx()
    if name == "nnx.Optimizer":
        return nnx.Optimizer(net, optim.adam(), wrt=nnx.Param), net
    return optim.adam().init(nnx.state(net, nnx.Param)), net


# ---- complete


@pytest.mark.parametrize("target", ["torch", "nnx", "linen", "nnx.Optimizer"])
def test_a_state_that_lacks_something_is_refused(target: str) -> None:
    state = adam_state()
    place, net = targets(target)
    part = {n: a for n, a in state.items() if n != "exp_avg_sq/0.bias"}
    lost = {n: a for n, a in state.items() if not n.endswith("/0.bias")}
    for values, stateless in ((part, ()), (part, ("0.bias",)), (lost, ()), (lost, None), (lost, ("1.bias",))):
        with pytest.raises(WeightsError, match=r"exp_avg_sq: missing from the state for 0.bias"):
            optimizer.write(place, net, values, stateless=stateless)
    with pytest.raises(WeightsError, match=r"exp_avg_sq: missing from the state$"):
        optimizer.write(place, net, {n: a for n, a in state.items() if "exp_avg_sq" not in n})
    optimizer.write(place, net, lost, stateless=("0.bias",))


def test_a_parameter_that_never_got_a_gradient_is_known_and_moves() -> None:
    net = in_torch()
    state = optimizer.read(stepped(torch.optim.Adam(net.parameters()), net, without="0.bias"), net)
    assert state.stateless == {"0.bias"}
    other = in_nnx()
    new = optimizer.write(optim.adam().init(nnx.state(other, nnx.Param)), other, state)
    back = optimizer.read(new, other)
    assert not back["exp_avg/0.bias"].any()
    assert same({n: back[n] for n in state}, state)
    tuned = stepped(torch.optim.Adam(net.parameters()), net)
    optimizer.write(tuned, net, state)
    assert net[0].bias not in tuned.state  # pyright: ignore
    assert same(optimizer.read(tuned, net), state)


@pytest.mark.parametrize("left", ["exp_avg", "exp_avg_sq", "step"])
def test_half_a_state_in_pytorch_is_refused(left: str) -> None:
    net = in_torch()
    tuned = stepped(torch.optim.Adam(net.parameters()), net)
    own = tuned.state[net[0].bias]  # pyright: ignore
    tuned.state[net[0].bias] = {left: own[left]}  # pyright: ignore
    with pytest.raises(WeightsError, match=r"exp_avg(_sq)?/0.bias: missing from the optimizer's state"):
        optimizer.read(tuned, net)
    tuned.state[net[0].bias] = own | {"exp_avg": own["exp_avg"][:1]}  # pyright: ignore
    with pytest.raises(WeightsError, match=r"exp_avg/0.bias: got an array \(1,\)"):
        optimizer.read(tuned, net)


# ---- groups and subsets


def grouped(kind: Any, option: dict[str, Any], net: Any) -> Any:
    """An optimizer with an option in its second group alone."""
    params = list(net.parameters())
    return kind([{"params": params[:2]}, {"params": params[2:], **option}], lr=0.1)


def is_in(layer: int, path: Any) -> bool:
    return str(layer) in jax.tree_util.keystr(path[:2])


def by_layer(first: Any, second: Any, net: Any) -> Any:
    """A transform for each of the two layers."""

    def label(params: Any) -> Any:
        return jax.tree_util.tree_map_with_path(lambda path, _: "first" if is_in(0, path) else "second", params)

    tx = optax.multi_transform({"first": first, "second": second}, label)
    return tx.init(net[1]["params"] if isinstance(net, tuple) else nnx.state(net, nnx.Param))


@pytest.mark.parametrize(
    ("kind", "option", "first", "second", "slot"),
    [
        (torch.optim.Adam, {"amsgrad": True}, optim.adam(), optim.adam(amsgrad=True), "max_exp_avg_sq"),
        (torch.optim.SGD, {"momentum": 0.9}, optim.sgd(0.1), optim.sgd(0.1, momentum=0.9), "momentum_buffer"),
        (torch.optim.SGD, {"momentum": 0.9}, optax.sgd(0.1), optax.sgd(0.1, momentum=0.9), "momentum_buffer"),
        (torch.optim.RMSprop, {"centered": True}, optim.rmsprop(), optim.rmsprop(centered=True), "grad_avg"),
    ],
    ids=["amsgrad", "momentum", "optax", "centered"],
)
@pytest.mark.parametrize("make", [in_nnx, in_linen])
def test_an_option_of_the_second_group_alone(
    kind: Any, option: Any, first: Any, second: Any, slot: str, make: Any
) -> None:
    net, other = in_torch(), make()
    state = optimizer.read(stepped(grouped(kind, option, net), net), net, 3)
    assert [n for n in state if n.startswith(slot)] == [f"{slot}/1.weight", f"{slot}/1.bias"]
    new = optimizer.write(by_layer(first, second, other), other, state)
    assert same(optimizer.read(new, other, 3), state)
    tuned = grouped(kind, option, net)
    optimizer.write(tuned, net, optimizer.read(new, other, 3))
    assert same(optimizer.read(tuned, net, 3), state)
    lost = {n: a for n, a in state.items() if n != f"{slot}/1.bias"}
    surplus = state | {f"{slot}/0.bias": np.zeros(3, np.float32)}
    for place, model in ((tuned, net), (new, other)):
        with pytest.raises(WeightsError, match=f"{slot}: missing from the state"):
            optimizer.write(place, model, lost, stateless=state.stateless - {"1.bias"})
        with pytest.raises(WeightsError, match=f"{slot}/0.bias: the (optimizer|transform)"):
            optimizer.write(place, model, surplus, stateless=())


@pytest.mark.parametrize("make", [in_nnx, in_linen])
def test_an_optimizer_over_a_part_of_the_parameters(make: Any) -> None:
    net, other = in_torch(), make()
    tuned = stepped(torch.optim.Adam(list(net.parameters())[2:]), net)
    state = optimizer.read(tuned, net)
    assert state.stateless == {"0.weight", "0.bias"}
    params = other[1]["params"] if isinstance(other, tuple) else nnx.state(other, nnx.Param)

    def mask(params: Any) -> Any:
        return jax.tree_util.tree_map_with_path(lambda path, _: is_in(1, path), params)

    for place in (
        optax.masked(optax.adam(0.1), mask).init(params),
        optax.chain(optax.masked(optim.adam(), mask)).init(params),
        by_layer(optax.set_to_zero(), optax.adam(0.1), other),
    ):
        new = optimizer.write(place, other, state)
        assert jax.tree.structure(new) == jax.tree.structure(place)
        back = optimizer.read(new, other)
        assert same(back, state)
        assert back.stateless == state.stateless
        with pytest.raises(WeightsError, match=r"exp_avg/0.weight, 0.bias: the transform has no such parameter"):
            optimizer.write(place, other, adam_state())
    fresh = torch.optim.Adam(list(net.parameters())[2:])
    optimizer.write(fresh, net, back)
    assert same(optimizer.read(fresh, net), state)


def test_a_part_of_a_parameter_is_refused() -> None:
    net = in_nnx()
    twice = optax.chain(optim.adam(), optax.adam(0.1)).init(nnx.state(net, nnx.Param))
    with pytest.raises(WeightsError, match="in two parts of the state"):
        optimizer.read(twice, net)
    bigger = nnx.Sequential(*[nnx.Linear(2, 2, rngs=nnx.Rngs(0)) for _ in range(3)])
    with pytest.raises(WeightsError, match=r"layers.2.bias, layers.2.kernel: the network has no such parameter"):
        optimizer.read(optim.adam().init(nnx.state(bigger, nnx.Param)), net)


# ---- optax's own states

OWN = {
    "adam": (torch.optim.Adam, {}, lambda: optax.adam(0.1)),
    "adamw": (torch.optim.AdamW, {}, lambda: optax.adamw(0.1)),
    "momentum": (torch.optim.SGD, {"momentum": 0.9}, lambda: optax.sgd(0.1, momentum=0.9)),
    "nesterov": (torch.optim.SGD, {"momentum": 0.9, "nesterov": True}, lambda: optax.sgd(0.1, 0.9, nesterov=True)),
    "rmsprop": (torch.optim.RMSprop, {}, lambda: optax.rmsprop(0.1, decay=0.99)),
    "centered": (torch.optim.RMSprop, {"centered": True}, lambda: optax.rmsprop(0.1, decay=0.99, centered=True)),
    "adagrad": (torch.optim.Adagrad, {}, lambda: optax.adagrad(0.1, initial_accumulator_value=0.0)),
    "chain": (torch.optim.Adam, {}, lambda: optax.chain(optax.clip_by_global_norm(1e9), optax.adam(0.1))),
    "named": (torch.optim.Adam, {}, lambda: optax.named_chain(("clip", optax.clip(1e9)), ("a", optax.adam(0.1)))),
    "schedule": (torch.optim.Adam, {}, lambda: optax.adam(optax.exponential_decay(0.1, 1, 0.9))),
    "inject": (torch.optim.Adam, {}, lambda: optax.inject_hyperparams(optax.adam)(learning_rate=0.1)),
    "inject-schedule": (
        torch.optim.Adam,
        {},
        lambda: optax.inject_hyperparams(optax.adam)(learning_rate=optax.exponential_decay(0.1, 1, 0.9)),
    ),
    "multi-steps": (torch.optim.Adam, {}, lambda: optax.MultiSteps(optax.adam(0.1), 1).gradient_transformation()),
    "accumulate": (torch.optim.Adam, {}, lambda: optim.accumulate(optax.adam(0.1), 1)),
}
# optax's other optimizers that the table names, by default.
OWN |= {
    name: (getattr(torch.optim, row.name), {}, functools.partial(getattr(optax, name), 0.1))
    for row in OPTIMIZERS
    for name in row.optax
    if name.partition(" ")[0] not in {*OWN, "sgd"}
}


@pytest.mark.sample(3)
@pytest.mark.parametrize("name", OWN)
def test_optax_own_states_are_pytorchs(name: str) -> None:
    """Three steps with the same gradients: the same numbers; they move into PyTorch, and back into each Flax form."""
    kind, options, make = OWN[name]
    net = in_torch()
    tuned = stepped(kind(net.parameters(), lr=1e-3, **options), net)
    expected = optimizer.read(tuned, net, 3)
    for other in (in_linen(), in_nnx()):
        params, tx = tree(GRADS[0], other), make()
        state = fresh = tx.init(params)
        update = jax.jit(tx.update)
        for grads in GRADS:
            _, state = update(tree(grads, other), state, params)
        found = optimizer.read(state, other, 3)
        assert set(found) == set(expected)
        assert all(np.allclose(found[n], expected[n], rtol=1e-5, atol=1e-7) for n in expected)
        assert int(found["step"]) == 3
        new = optimizer.write(fresh, other, expected)
        assert same(optimizer.read(new, other, 3), expected)
        assert [leaf.dtype for leaf in jax.tree.leaves(new)] == [leaf.dtype for leaf in jax.tree.leaves(fresh)]
        optimizer.write(tuned, net, found)
        assert same(optimizer.read(tuned, net, 3), found)


def variables(tuned: Any) -> list[Any]:
    return jax.tree.leaves(tuned.opt_state, is_leaf=lambda node: isinstance(node, nnx.Variable))


@pytest.mark.sample(2)
@pytest.mark.parametrize("name", ["adam", "momentum", "schedule", "multi-steps"])
def test_the_state_of_nnx_own_optimizer(name: str) -> None:
    kind, options, make = OWN[name]
    net, other = in_torch(), in_nnx()
    expected = optimizer.read(stepped(kind(net.parameters(), lr=1e-3, **options), net), net, 3)
    tuned = nnx.Optimizer(other, make(), wrt=nnx.Param)
    for grads in GRADS:
        tuned.update(other, tree(grads, other))
    found = optimizer.read(tuned, other)
    assert all(np.allclose(found[n], expected[n], rtol=1e-5, atol=1e-7) for n in expected)
    again = nnx.Optimizer(other, make(), wrt=nnx.Param)
    kept = variables(again)
    assert optimizer.write(again, other, expected) is None
    assert same(optimizer.read(again, other), expected)
    assert int(again.step[...]) == 3
    assert all(a is b for a, b in zip(kept, variables(again), strict=True))
    tuned.update(other, tree(GRADS[0], other))  # goes on
    again.update(other, tree(GRADS[0], other))
    last, next_ = optimizer.read(tuned, other), optimizer.read(again, other)
    assert all(np.allclose(last[n], next_[n], rtol=1e-4, atol=1e-6) for n in last)


UNKNOWN = {
    "lion": "optax's ScaleByLionState",
    "adabelief": "optax's ScaleByBeliefState",
    "amsgrad": "optax's ScaleByAmsgradState",
    "adadelta": "optax's ScaleByAdaDeltaState",
    "rprop": "optax's ScaleByRpropState",
}


@pytest.mark.parametrize("name", [*sorted(UNKNOWN.keys() - set(OPTAX)), "rmsprop"])
def test_optax_states_of_another_meaning_are_refused(name: str) -> None:
    def make() -> optax.GradientTransformation:
        return optax.rmsprop(0.1, momentum=0.9) if name == "rmsprop" else getattr(optax, name)(0.1)

    said = UNKNOWN.get(name, "in two parts of the state")
    net = in_nnx()
    state = make().init(nnx.state(net, nnx.Param))
    with pytest.raises(WeightsError, match=said):
        optimizer.read(state, net)
    with pytest.raises(WeightsError, match=said):
        optimizer.write(state, net, adam_state())
    with pytest.raises(WeightsError, match=r"expected a torch.optim.Optimizer, an nnx.Optimizer or"):
        optimizer.read("adam", net)


def test_gradients_that_wait_for_their_step_are_refused() -> None:
    net = in_nnx()
    for tx in (optax.MultiSteps(optax.adam(0.1), 2).gradient_transformation(), optim.accumulate(optim.adam(), 2)):
        state = tx.init(nnx.state(net, nnx.Param))
        _, state = tx.update(tree(GRADS[0], net), state, nnx.state(net, nnx.Param))
        with pytest.raises(WeightsError, match="1 gradients wait for their step"):
            optimizer.read(state, net)


# ---- steps


@pytest.mark.parametrize("step", BAD_STEPS, ids=lambda step: ascii(step)[:20])
def test_a_step_that_is_not_a_whole_number_is_refused(step: Any) -> None:
    with pytest.raises(WeightsError, match="expected one whole number from 0") as caught:
        whole_number(step, "step")
    assert str(caught.value).isprintable()
    for target in ("torch", "nnx", "nnx.Optimizer"):
        place, net = targets(target)
        with pytest.raises(WeightsError, match="expected one whole number"):
            optimizer.write(place, net, {**adam_state(), "step": step})


@pytest.mark.parametrize("step", [0, 7, 2**63 - 1, 7.0, np.float32(7), np.array(7, np.uint8), np.array(2.0**40)])
def test_a_whole_number_of_steps_is_taken(step: Any) -> None:
    assert whole_number(step, "step") == int(step)


def test_steps_in_live_states() -> None:
    net = in_torch()
    tuned = stepped(torch.optim.Adam(net.parameters()), net)
    for step in (torch.tensor(2.7), torch.tensor([3.0]), torch.tensor(float("nan")), torch.tensor(-1.0), "3"):
        tuned.state[net[0].bias]["step"] = step  # pyright: ignore
        with pytest.raises(WeightsError, match=r"step/0.bias: got .*expected one whole number"):
            optimizer.read(tuned, net)
    tuned.state[net[0].bias]["step"] = torch.tensor(5.0)  # pyright: ignore
    with pytest.raises(WeightsError, match=r"got 0.weight: 3, 0.bias: 5; expected one number of steps"):
        optimizer.read(tuned, net)
    other = in_nnx()
    state: Any = optax.adam(0.1).init(nnx.state(other, nnx.Param))
    for count in (jnp.array(-1), jnp.array([1, 2]), jnp.array(2.7)):
        with pytest.raises(WeightsError, match="expected one whole number"):
            optimizer.read((state[0]._replace(count=count), *state[1:]), other)


def test_more_steps_than_a_framework_counts_are_refused() -> None:
    large = {**adam_state(), "step": np.array(2**31)}
    for target, said in (("nnx", "int32"), ("linen", "int32"), ("nnx.Optimizer", "int32")):
        place, net = targets(target)
        with pytest.raises(WeightsError, match=f"got 2,147,483,648, which .*{said} does not hold"):
            optimizer.write(place, net, large)
    place, net = targets("torch")
    optimizer.write(place, net, large)
    with pytest.raises(WeightsError, match=r"got 16,777,217, which PyTorch's torch.float32 cannot hold exactly"):
        optimizer.write(place, net, {**large, "step": np.array(2**24 + 1)})
    assert int(optimizer.read(place, net)["step"]) == 2**31


# ---- layers that the port calls otherwise


class Named(nnx.Module):
    """`in_nnx` under other names."""

    def __init__(self) -> None:
        self.up, self.down = nnx.Linear(2, 3, rngs=nnx.Rngs(0)), nnx.Linear(3, 2, rngs=nnx.Rngs(1))


RENAMED = (
    Rename(r"^0\.", "up.", why="the first layer"),
    Ignore("*.scale", why="does not concern a state"),
    Rename(r"^1\.", "down.", why="the second layer"),
)


def test_a_state_moves_by_the_rules_of_the_weights() -> None:
    ours, state = Named(), adam_state()
    tx = optax.adam(0.1)
    written = optimizer.write(tx.init(nnx.state(ours, nnx.Param)), ours, state, rules=RENAMED)
    found = optimizer.read(written, ours)
    names = {"up": "0", "down": "1"}
    back = {re.sub(r"(up|down)", lambda part: names[part[0]], name): value for name, value in found.items()}
    assert same(back, state)
    with pytest.raises(WeightsError, match=r"exp_avg/0\.weight"):
        optimizer.write(tx.init(nnx.state(ours, nnx.Param)), ours, state)


def test_a_parameter_without_a_gradient_is_renamed_too() -> None:
    net, ours = in_torch(), Named()
    state = optimizer.read(stepped(torch.optim.Adam(net.parameters()), net, without="1.bias"), net)
    tx = optax.adam(0.1)
    written = optimizer.write(tx.init(nnx.state(ours, nnx.Param)), ours, state, rules=RENAMED)
    assert not np.asarray(optimizer.read(written, ours)["exp_avg/down.bias"]).any()


def test_rules_that_give_two_tensors_one_name_are_refused() -> None:
    ours = Named()
    empty = optax.adam(0.1).init(nnx.state(ours, nnx.Param))
    rules = [Rename(r"^[01]\.", "up.", why="a mistake")]
    with pytest.raises(WeightsError, match=r"up\.\w+: the rules rename two tensors of the state to it"):
        optimizer.write(empty, ours, adam_state(), rules=rules)
    with pytest.raises(WeightsError, match="rule Rename"):
        optimizer.write(empty, ours, adam_state(), rules=[Rename("(", "", why="a mistake")])
