"""Training begun in one framework and resumed in the other ends where uninterrupted training ends."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from flax import nnx

import ports
from ports import optim, schedules
from ports.resnet.spec import BASIC, ResNetSpec, Stage, Stem
from ports.weights import WeightsError, optimizer

pytestmark = pytest.mark.usefixtures("quick")

TINY = ResNetSpec("tiny", Stem(convs=((4, 3, 1),)), (Stage(4, 1),), BASIC, num_classes=3, input_size=8)
RNG = np.random.default_rng(0)
IMAGES, LABELS = RNG.standard_normal((20, 4, 3, 8, 8)), RNG.integers(0, 3, (20, 4))
LR = 0.05

# Name: PyTorch's class, ours, options.
CASES: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "sgd": (torch.optim.SGD, optim.sgd, {"momentum": 0.9, "weight_decay": 1e-2, "nesterov": True}),
    "adamw": (torch.optim.AdamW, optim.adamw, {"weight_decay": 0.1}),
    "rmsprop": (torch.optim.RMSprop, optim.rmsprop, {"momentum": 0.9, "centered": True, "eps": 1e-3}),
}


def network() -> Any:
    return ports.create(TINY, "pytorch", seed=0, dtype="float64")


def in_torch(net: Any, name: str, begin: int, end: int, state: Any = None) -> dict[str, np.ndarray]:
    """Trains from one step to another, and gives the optimizer's state."""
    made, _, options = CASES[name]
    tuned = made(net.parameters(), lr=LR, **options)
    if state is not None:
        optimizer.write(tuned, net, state)
    net.train()
    for step in range(begin, end):
        for group in tuned.param_groups:
            group["lr"] = LR * 0.9**step
        tuned.zero_grad()
        torch.nn.functional.cross_entropy(net(torch.tensor(IMAGES[step])), torch.tensor(LABELS[step])).backward()
        tuned.step()
    return optimizer.read(tuned, net, end)


def in_nnx(net: Any, name: str, begin: int, end: int, state: Any = None) -> dict[str, np.ndarray]:
    _, make, options = CASES[name]
    tx = optax.chain(optax.identity(), make(schedules.exponential_lr(LR, 0.9), **options))
    net.train()
    opt_state = tx.init(nnx.state(net, nnx.Param))
    if state is not None:
        opt_state = optimizer.write(opt_state, net, state)

    @nnx.jit
    def train(net: Any, opt_state: Any, images: Any, labels: Any) -> Any:
        grads = nnx.grad(lambda net: ports_loss(net(images), labels))(net)
        params = nnx.state(net, nnx.Param)
        updates, opt_state = tx.update(grads, opt_state, params)
        nnx.update(net, optax.apply_updates(params, updates))
        return opt_state

    for step in range(begin, end):
        opt_state = train(net, opt_state, jnp.array(IMAGES[step].transpose(0, 2, 3, 1)), jnp.array(LABELS[step]))
    return optimizer.read(opt_state, net)


def in_linen(net: Any, name: str, begin: int, end: int, state: Any = None) -> tuple[Any, dict[str, np.ndarray]]:
    module, variables = net
    _, make, options = CASES[name]
    tx = make(schedules.exponential_lr(LR, 0.9), **options)
    opt_state = tx.init(variables["params"])
    if state is not None:
        opt_state = optimizer.write(opt_state, net, state)

    @jax.jit
    def train(variables: Any, opt_state: Any, images: Any, labels: Any) -> Any:
        rest = {n: v for n, v in variables.items() if n != "params"}

        def loss(params: Any) -> Any:
            logits, new = module.apply({"params": params, **rest}, images, train=True, mutable=list(rest))
            return ports_loss(logits, labels), new

        grads, new = jax.grad(loss, has_aux=True)(variables["params"])
        updates, opt_state = tx.update(grads, opt_state, variables["params"])
        return {"params": optax.apply_updates(variables["params"], updates), **new}, opt_state

    for step in range(begin, end):
        images = jnp.array(IMAGES[step].transpose(0, 2, 3, 1))
        variables, opt_state = train(variables, opt_state, images, jnp.array(LABELS[step]))
    return (module, variables), optimizer.read(opt_state, (module, variables))


def ports_loss(logits: Any, labels: Any) -> Any:
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def error(got: dict[str, np.ndarray], end: dict[str, np.ndarray], start: dict[str, np.ndarray]) -> float:
    """The largest distance of a parameter or statistic, relative to what training did to it."""
    return max(
        float(np.linalg.norm(got[n] - end[n]) / np.linalg.norm(end[n] - start[n]))
        for n in end
        if not n.endswith("num_batches_tracked")
    )


@pytest.fixture(scope="module", params=CASES)
def whole(request: pytest.FixtureRequest) -> tuple[str, Any, Any, Any]:
    """The optimizer, weights at the start, at the end, and the state at the end of twenty steps in PyTorch."""
    net = network()
    start = ports.weights.read(net)
    state = in_torch(net, request.param, 0, 20)
    return request.param, start, ports.weights.read(net), state


@pytest.mark.sample(1)
def test_torch_then_flax(whole: Any) -> None:
    name, start, end, end_state = whole
    first = network()
    state = in_torch(first, name, 0, 10)
    half = ports.weights.read(first)
    with jax.enable_x64(True):
        net = ports.create(TINY, "nnx", seed=1, dtype="float64")
        ports.weights.write(net, half)
        last = in_nnx(net, name, 10, 20, state)
        assert error(ports.weights.read(net), end, start) < 1e-10
        assert set(last) == set(end_state)
        module, variables = ports.create(TINY, "linen", seed=1, dtype="float64")
        pair, last = in_linen((module, ports.weights.write((module, variables), half)), name, 10, 20, state)
        assert error(ports.weights.read(pair), end, start) < 1e-10
        assert int(last["step"]) == 20
    for key, array in end_state.items():
        assert np.linalg.norm(last[key] - array) <= 1e-9 * np.linalg.norm(array)


@pytest.mark.sample(1)
def test_flax_then_torch(whole: Any) -> None:
    name, start, end, _ = whole
    with jax.enable_x64(True):
        net = ports.create(TINY, "nnx", seed=1, dtype="float64")
        ports.weights.write(net, start)
        state = in_nnx(net, name, 0, 10)
        half = ports.weights.read(net)
    last = network()
    ports.weights.write(last, half)
    in_torch(last, name, 10, 20, state)
    assert error(ports.weights.read(last), end, start) < 1e-10


@pytest.mark.sample(1)
def test_a_lost_state_or_count_is_seen(whole: Any) -> None:
    """The mistakes that resuming is known for: no state, and a count that begins again."""
    name, start, end, _ = whole
    first = network()
    state = in_torch(first, name, 0, 10)
    half = ports.weights.read(first)
    for wrong in (None, {**state, "step": np.array(0)}):
        with jax.enable_x64(True):
            net = ports.create(TINY, "nnx", seed=1, dtype="float64")
            ports.weights.write(net, half)
            in_nnx(net, name, 10, 20, wrong)
            assert error(ports.weights.read(net), end, start) > 1e-4


def test_round_trip_keeps_every_bit() -> None:
    first = network()
    state = in_torch(first, "adamw", 0, 2)
    with jax.enable_x64(True):
        net = ports.create(TINY, "nnx", seed=1, dtype="float64")
        new = optimizer.write(optim.adamw(LR).init(nnx.state(net, nnx.Param)), net, state)
        back = optimizer.read(new, net)
    assert {n: a.tobytes() for n, a in back.items()} == {n: a.tobytes() for n, a in state.items()}


def test_all_problems_at_once() -> None:
    first = network()
    state = in_torch(first, "adamw", 0, 1)
    wrong = {**state, "exp_avg/fc.bias": np.zeros(7), "exp_avg/nothing": np.zeros(2), "sum/fc.bias": np.zeros(3)}
    with jax.enable_x64(True):
        net = ports.create(TINY, "nnx", seed=1, dtype="float64")
        opt_state = optim.adamw(LR).init(nnx.state(net, nnx.Param))
        for target, model in ((opt_state, net), (torch.optim.AdamW(first.parameters()), first)):
            with pytest.raises(WeightsError) as caught:
                optimizer.write(target, model, wrong)
            assert len(caught.value.problems) == 3
    tuned = torch.optim.SGD(first.parameters(), lr=0.1, momentum=0.9)
    tuned.step()
    with pytest.raises(WeightsError, match="give steps="):
        optimizer.read(tuned, first)
    with pytest.raises(WeightsError, match="not in the network"):
        optimizer.read(torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1), first)
