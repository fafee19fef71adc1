"""LSTM and GRU: PyTorch's gates and biases in Flax's cells, the same output in float64."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import linen, nnx

import parity
from ports.weights import WeightsError, fold_recurrent_biases, read, write
from ports.weights.layers import kinds, leaves

X = np.random.default_rng(0).standard_normal((2, 5, 3))
F8: Any = jnp.float64

# Name: the PyTorch layer and the cell in Flax.
CELLS: dict[str, tuple[Any, Any]] = {
    "nnx-LSTMCell": (torch.nn.LSTM, nnx.LSTMCell),
    "nnx-OptimizedLSTMCell": (torch.nn.LSTM, nnx.OptimizedLSTMCell),
    "nnx-GRUCell": (torch.nn.GRU, nnx.GRUCell),
    "linen-LSTMCell": (torch.nn.LSTM, linen.LSTMCell),
    "linen-OptimizedLSTMCell": (torch.nn.LSTM, linen.OptimizedLSTMCell),
    "linen-GRUCell": (torch.nn.GRU, linen.GRUCell),
}


class Net(linen.Module):
    cell: Any

    def setup(self) -> None:
        self.rnn = linen.RNN(self.cell(4, param_dtype=F8))

    def __call__(self, x: Any) -> Any:
        return self.rnn(x)


def in_torch(case: str) -> torch.nn.Module:
    """NNX's GRU has no bias at the hidden state."""
    net = CELLS[case][0](3, 4, batch_first=True, dtype=torch.float64)
    if case == "nnx-GRUCell":
        torch.nn.init.zeros_(net.bias_hh_l0)
    return net


def in_flax(case: str) -> Any:
    cell = CELLS[case][1]
    if case.startswith("nnx"):
        return nnx.Dict(rnn=nnx.RNN(cell(3, 4, param_dtype=F8, rngs=nnx.Rngs(0))))
    module = Net(cell)
    return module, module.init(jax.random.key(0), jnp.array(X))


def moved(weights: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {f"rnn.cell.{name.removesuffix('_l0')}": array for name, array in weights.items()}


def written(case: str, weights: dict[str, np.ndarray]) -> Any:
    net = in_flax(case)
    variables = write(net, weights)
    return net if variables is None else (net[0], variables)


@pytest.mark.sample(1)
@pytest.mark.parametrize("case", CELLS)
def test_folded_weights_give_the_same_output(case: str) -> None:
    reference = in_torch(case)
    expected = reference(torch.from_numpy(X))[0].detach().numpy()
    weights = moved(fold_recurrent_biases(read(reference)))
    with jax.enable_x64(True):
        net = written(case, weights)
        got = net.rnn(jnp.array(X)) if case.startswith("nnx") else net[0].apply(net[1], jnp.array(X))
        back = read(net)
    assert np.abs(np.asarray(got) - expected).max() < 1e-15
    assert {n: a.tobytes() for n, a in back.items()} == {n: a.tobytes() for n, a in weights.items()}


@pytest.mark.sample(2)
@pytest.mark.parametrize("case", CELLS)
def test_a_second_bias_is_not_dropped_in_silence(case: str) -> None:
    weights = moved(read(CELLS[case][0](3, 4, dtype=torch.float64)))
    with (
        jax.enable_x64(True),
        pytest.raises(WeightsError, match=r"rnn\.cell\.bias_hh: .*ports\.weights\.fold_recurrent_biases"),
    ):
        write(in_flax(case), weights)


def test_folding_keeps_the_function() -> None:
    for layer in (torch.nn.LSTM, torch.nn.GRU):
        net = layer(3, 4, num_layers=2, bidirectional=True, dtype=torch.float64)
        before = net(torch.from_numpy(X))[0]
        write(net, fold_recurrent_biases(read(net)))
        assert (net(torch.from_numpy(X))[0] - before).abs().max() < 1e-15


def test_exchanged_gates_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(cell: Any) -> Any:
        weight_ih, *rest = leaves.lstm(cell)
        return leaves.gates(weight_ih.torch, (*weight_ih.flax[1:], weight_ih.flax[0])), *rest

    monkeypatch.setitem(kinds.KINDS, "lstm", replace(kinds.KINDS["lstm"], leaves=wrong))
    case = "linen-LSTMCell"
    reference = in_torch(case)
    expected = reference(torch.from_numpy(X))[0].detach().numpy()
    with jax.enable_x64(True):
        net = written(case, moved(fold_recurrent_biases(read(reference))))
        got = np.asarray(net[0].apply(net[1], jnp.array(X)))
    assert np.abs(got - expected).max() > 1e-3


class Sequence(torch.nn.Module):
    """A GRU and a layer that reads it."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.head = torch.nn.GRU(3, 4, batch_first=True), torch.nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.rnn(x)[0])


class LinenSequence(linen.Module):
    @linen.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return linen.Dense(2, name="head")(linen.RNN(linen.GRUCell(4), name="rnn")(x))


def sequence() -> tuple[torch.nn.Module, Any]:
    """Return a pair whose port has PyTorch's second bias at its new gate."""
    model, module = Sequence(), LinenSequence()
    return model, parity.move(model, (module, module.init(jax.random.key(0), jnp.array(X, jnp.float32))), X)


@pytest.mark.sample(1)
@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_a_second_bias_that_the_port_has_in_part_is_trained_on_neither_side(optimizer: str) -> None:
    report = parity.check(*sequence(), X, optimizer=optimizer)
    assert report, str(report)


@pytest.mark.usefixtures("quick")
def test_a_second_bias_that_the_port_lost_is_found_once() -> None:
    model, (module, variables) = sequence()

    def lost(path: Any, leaf: jax.Array) -> jax.Array:
        return jnp.zeros_like(leaf) if "'hn'" in str(path) and "bias" in str(path) else leaf

    variables = jax.tree_util.tree_map_with_path(lost, variables)
    (finding,) = parity.check(model, (module, variables), X).models[0].findings
    assert (finding.layer, finding.trap) == ("rnn", "weight-lost")
    assert "rnn.bias_hh_l0" in finding.text
