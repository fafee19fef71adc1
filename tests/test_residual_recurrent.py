"""Residual stacks of LSTM and GRU layers: the same in every port, and as PyTorch's layers on each text alone."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from flax import nnx, traverse_util
from jaxtyping import PyTree

import parity
import ports
from ports import UserError, losses
from ports.families import get
from ports.layers.flax import lengths_of
from ports.recurrent import family
from ports.recurrent import nnx as nnx_port
from ports.recurrent.spec import PADDING, RecurrentSpec
from ports.weights import convert
from ports.weights.known.dialects import DIALECTS, mapping
from ports.weights.known.recognise import recognise

pytestmark = pytest.mark.usefixtures("quick")

Numbers = dict[str, np.ndarray]

TINY: dict[str, Any] = {"vocabulary": 9, "width": 4, "depth": 3, "num_classes": 3}
LAYERS: dict[str, Any] = {"residual_lstm": torch.nn.LSTM, "residual_gru": torch.nn.GRU}
PORTS = list(ports.PORTS)
FLAX = [port for port in PORTS if port != "pytorch"]

TOKENS = np.random.default_rng(0).integers(1, 9, (4, 6))
TOKENS[1, 1] = PADDING  # inside a text it is a token like others
LENGTHS = np.array([3, 6, 1, 4])
REAL = np.arange(6) < LENGTHS[:, None]
LABELS = np.array([2, 0, 1, 1])
# Sums of some hundred products in float64; the smallest mistake here stands at 1e-3.
ROUNDING = 1e-13


@functools.cache
def in_torch(name: str) -> torch.nn.Module:
    return ports.create(get(name, **TINY), "pytorch", seed=0, dtype="float64")


def by_hand(name: str, residual: bool = True) -> tuple[np.ndarray, Numbers]:
    """Logits and gradients of PyTorch's own layers, called with one text after the other and no padding."""
    state = {n: t.clone().requires_grad_() for n, t in in_torch(name).state_dict().items()}

    def layer(at: str, x: torch.Tensor, bidirectional: bool = False) -> torch.Tensor:
        own = {n.removeprefix(f"{at}."): t for n, t in state.items() if n.startswith(f"{at}.")}
        rnn = LAYERS[name](x.shape[-1], 4, batch_first=True, bidirectional=bidirectional, dtype=torch.float64)
        return torch.func.functional_call(rnn, own, (x,))[0]

    logits = []
    for tokens, length in zip(TOKENS, LENGTHS, strict=True):
        x = F.embedding(torch.from_numpy(tokens[None, :length]), state["tokens.weight"])
        x = layer("first", x, bidirectional=True)
        x = layer("second", x)
        for i in range(TINY["depth"] - 2):
            x = x + layer(f"layers.{i}", x) if residual else layer(f"layers.{i}", x)
        logits.append(F.linear(x[:, -length:].mean(1), state["head.weight"], state["head.bias"]))
    values = torch.cat(logits)
    F.cross_entropy(values, torch.from_numpy(LABELS)).backward()
    return values.detach().numpy(), {n: t.grad.numpy() for n, t in state.items() if t.grad is not None}


@functools.cache
def in_flax(name: str, port: str) -> tuple[Any, Any, Any]:
    """A network with the weights of `in_torch`, its variables, and a compiled function of these, texts and lengths."""
    with jax.enable_x64(True):
        net = ports.create(get(name, **TINY), port, seed=None, dtype="float64")
        variables = ports.weights.write(net, ports.weights.read(in_torch(name)))
        if port == "nnx":
            graph, variables = nnx.split(net)
            call: Any = lambda v, *args: nnx.merge(graph, v)(*args)  # noqa: E731
        else:
            call = net[0].apply

        def objective(v: PyTree, tokens: Any, lengths: Any) -> Any:
            logits = call(v, tokens, lengths)
            return losses.classification(logits, jnp.asarray(LABELS)), logits

        return net, variables, jax.jit(jax.value_and_grad(objective, has_aux=True))


def in_port(name: str, port: str, tokens: np.ndarray, lengths: np.ndarray | None) -> tuple[np.ndarray, Numbers]:
    """Logits and gradients of a port, on all texts together."""
    if port == "pytorch":
        net = in_torch(name)
        net.zero_grad()
        values = net(torch.from_numpy(tokens), None if lengths is None else torch.from_numpy(lengths))
        F.cross_entropy(values, torch.from_numpy(LABELS)).backward()
        return values.detach().numpy(), {n: p.grad.numpy().copy() for n, p in net.named_parameters()}  # pyright: ignore
    net, variables, compiled = in_flax(name, port)
    with jax.enable_x64(True):
        (_, logits), gradients = compiled(variables, tokens, lengths)
        whole = nnx.merge(nnx.graphdef(net), gradients) if port == "nnx" else (net[0], gradients)
        return np.asarray(logits), ports.weights.read(whole)


def called(name: str, port: str, tokens: np.ndarray, lengths: np.ndarray | None = None) -> np.ndarray:
    """Logits of a port that is not compiled."""
    if port == "pytorch":
        given = None if lengths is None else torch.from_numpy(lengths)
        return in_torch(name)(torch.from_numpy(tokens), given).detach().numpy()
    net, variables, _ = in_flax(name, port)
    with jax.enable_x64(True):
        return np.asarray(net(tokens, lengths) if port == "nnx" else net[0].apply(variables, tokens, lengths))


def far(got: tuple[np.ndarray, Numbers], expected: tuple[np.ndarray, Numbers]) -> float:
    pairs = [(got[0], expected[0]), *((got[1][name], array) for name, array in expected[1].items())]
    assert got[1].keys() == expected[1].keys()
    return max(float(np.abs(a - b).max() / np.abs(b).max()) for a, b in pairs)


@pytest.mark.sample(2)
@pytest.mark.parametrize("port", PORTS)
@pytest.mark.parametrize("name", LAYERS)
def test_a_batch_is_its_texts_alone(name: str, port: str) -> None:
    """Outputs and gradients; and what stands behind a text changes no bit, not even where it is no token."""
    found = in_port(name, port, np.where(REAL, TOKENS, PADDING), LENGTHS)
    assert far(found, by_hand(name)) < ROUNDING
    assert far(found, by_hand(name, residual=False)) > 1e-3
    for behind in (TOKENS, np.where(REAL, TOKENS, -7), np.where(REAL, TOKENS, 1000)):
        again = in_port(name, port, behind, LENGTHS)
        assert again[0].tobytes() == found[0].tobytes()
        assert {n: a.tobytes() for n, a in again[1].items()} == {n: a.tobytes() for n, a in found[1].items()}


@pytest.mark.sample(1)
@pytest.mark.parametrize("port", FLAX)
def test_a_reverse_direction_that_begins_in_the_padding_is_seen(port: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The planted mistake: the same network without lengths in its layers, whose texts end with the table."""
    module = __import__(f"ports.layers.{port}", fromlist=["Recurrent"])
    right = module.Recurrent.__call__
    monkeypatch.setattr(module.Recurrent, "__call__", lambda own, x, n: right(own, x, jnp.full_like(n, x.shape[1])))
    name, tokens = "residual_gru", np.where(REAL, TOKENS, PADDING)
    assert np.abs(called(name, port, tokens, LENGTHS) - by_hand(name)[0]).max() > 1e-3


def test_the_plain_stack() -> None:
    net = ports.create(get("residual_lstm", **TINY, residual=False), "pytorch", seed=0, dtype="float64")
    got = net(torch.from_numpy(TOKENS), torch.from_numpy(LENGTHS)).detach().numpy()
    assert np.abs(got - by_hand("residual_lstm", residual=False)[0]).max() < ROUNDING


@pytest.mark.parametrize("port", PORTS)
def test_a_text_ends_with_its_last_token(port: str) -> None:
    """Lengths may be left out where padding stands behind the texts."""
    name, tokens = "residual_lstm", np.where(REAL, TOKENS, PADDING)
    expected, _ = in_port(name, port, tokens, LENGTHS)
    assert np.abs(called(name, port, tokens) - expected).max() < ROUNDING


BAD = {
    "empty": (TOKENS[:, :0], None, "got a text of 0 tokens, expected 1 or more"),
    "none": (TOKENS[:0], None, "got a batch of 0 texts, expected 1 or more"),
    "zero": (TOKENS, [6, 0, 1, 0], r"text 1 \(and 1 more\) is padding alone, or has length 0, expected 1 to 6 tokens"),
    "long": (TOKENS, [6, 6, 7, 6], "text 2 has length 7, expected 1 to 6 tokens"),
    "negative": (TOKENS, [6, 6, 6, -1], "text 3 has length -1, expected 1 to 6 tokens"),
    "fewer": (TOKENS, [6, 6, 6], "got 3 lengths for 4 texts, expected one for each"),
    "padding": (TOKENS * 0, None, r"text 0 \(and 3 more\) is padding alone"),
}


@pytest.mark.usefixtures("no_type_checks")
@pytest.mark.parametrize("port", PORTS)
@pytest.mark.parametrize("case", BAD)
def test_bad_texts_are_one_clear_line(case: str, port: str) -> None:
    tokens, lengths, said = BAD[case]
    given = None if lengths is None else np.array(lengths)
    with jax.enable_x64(True), pytest.raises(UserError, match=f"^residual_lstm: {said}") as error:
        called("residual_lstm", port, tokens, given)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("port", FLAX)
def test_a_compiled_program_gives_nan_for_a_bad_text_alone(port: str) -> None:
    expected, _ = in_port("residual_lstm", port, TOKENS, LENGTHS)
    for wrong in (0, 7):
        got, _ = in_port("residual_lstm", port, TOKENS, np.where([False, True, False, False], wrong, LENGTHS))
        assert np.isnan(got).all(axis=1).tolist() == [False, True, False, False]
        assert np.array_equal(got[[0, 2, 3]], expected[[0, 2, 3]])


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"cell": "rnn"}, "cell: got 'rnn', expected one of lstm, gru"),
        ({"depth": 1}, "depth: got 1, expected a whole number, 2 or more"),
        ({"width": 0}, "width: got 0, expected a positive whole number"),
    ],
)
def test_bad_descriptions_are_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=f"^residual_lstm: {said}"):
        get("residual_lstm", **changes)


def test_examples_have_texts_of_several_lengths() -> None:
    (given,) = family.inputs(get("residual_lstm"), 8, (32,))
    drawn = given.draw(np.random.default_rng(0))
    lengths = (drawn != PADDING).sum(axis=1)
    assert lengths[0] == lengths.max() == 32
    assert len({*lengths}) > 4
    assert ((drawn != PADDING) == (np.arange(32) < lengths[:, None])).all()


@pytest.mark.sample(1)
@pytest.mark.parametrize("port", PORTS)
def test_initial_weights_are_those_of_pytorch(port: str) -> None:
    """Uniform in ±1/√width, biases too."""
    net = ports.create(get("residual_lstm", **{**TINY, "width": 64, "depth": 2}), port)
    for name, array in ports.weights.read(net).items():
        if name.startswith(("first", "second")):
            assert 0.9 < 8 * np.abs(array).max() <= 1, name
            assert abs(8 * array.std() - 3**-0.5) < 0.05, name


# ---- files


@pytest.mark.parametrize("name", LAYERS)
def test_every_dialect_names_the_network_and_gives_every_bit_back(name: str) -> None:
    """A file of another width than the named network's."""
    spec = get(name, **{**TINY, "depth": get(name).depth})
    weights = ports.weights.read(ports.create(spec, "pytorch", seed=0))
    for dialect in DIALECTS.values():
        if dialect.networks or dialect.stacked or dialect.ignore:
            continue
        rows = mapping(spec, dialect)
        file = {n: a for row in rows for n, a in zip(row.names, row.from_torch(weights[row.torch]), strict=True)}
        found = recognise({n: a.shape for n, a in file.items()})
        assert found.network == name
        back = {n: np.asarray(a) for n, a in found.read(file).items()}
        assert {n: a.tobytes() for n, a in back.items()} == {n: a.tobytes() for n, a in weights.items()}


@pytest.mark.parametrize("port", FLAX)
@pytest.mark.parametrize("name", LAYERS)
def test_where_flax_networks_keep_their_variables(name: str, port: str) -> None:
    _, variables, _ = in_flax(name, port)
    if port == "nnx":
        kept = {".".join(map(str, at)): v.get_value().shape for at, v in nnx.to_flat_state(variables)}
    else:
        flat: Any = traverse_util.flatten_dict(variables, sep=".")
        kept = {n: a.shape for n, a in flat.items()}
    rows = mapping(get(name, **TINY), DIALECTS[port])
    assert kept == {n: s for row in rows for n, s in zip(row.names, row.shapes, strict=True)}


@pytest.mark.sample(1)
@pytest.mark.parametrize("name", LAYERS)
def test_a_file_and_its_optimizer_go_there_and_back(name: str, tmp_path: Path) -> None:
    """By another number of tokens, classes and features than the named network has."""
    net = ports.create(get(name, vocabulary=9, width=4, num_classes=3), "pytorch", seed=0)
    optimizer = torch.optim.AdamW(net.parameters(), 1e-2)
    for _ in range(2):
        optimizer.zero_grad()
        F.cross_entropy(net(torch.from_numpy(TOKENS)), torch.from_numpy(LABELS)).backward()
        optimizer.step()
    torch.save({"model": net.state_dict(), "optimizer": optimizer.state_dict()}, tmp_path / "a.pth")
    found = recognise({n: tuple(t.shape) for n, t in net.state_dict().items()})
    assert (found.network, found.dialect) == (name, "torchvision")
    last = "a.pth"
    for to, file in (("nnx", "b.npz"), ("linen", "c.npz"), ("torch", "d.pth")):
        convert(tmp_path / last, tmp_path / file, to=to)
        last = file
    back: Any = torch.load(tmp_path / last)
    assert list(back["model"]) == list(net.state_dict())
    for n, tensor in net.state_dict().items():
        assert torch.equal(back["model"][n], tensor), n
    for i, state in optimizer.state_dict()["state"].items():
        for key in ("exp_avg", "exp_avg_sq"):
            assert torch.equal(back["optimizer"]["state"][i][key], state[key]), (i, key)


# ---- the check


class RunBackwards(nnx.RNN):
    """The planted mistake: the reverse direction begins in the padding."""

    def __call__(self, inputs: Any, **options: Any) -> Any:
        return super().__call__(inputs, **{**options, "seq_lengths": None})


class WithoutSum(nnx_port.ResidualRNN):
    """The planted mistake: the first residual layer gives its own output alone."""

    def __call__(self, tokens: Any, lengths: Any = None) -> Any:
        lengths = lengths_of(self.spec.name, tokens, lengths, PADDING)
        x = self.second(self.first(self.tokens(tokens), lengths), lengths)
        for i, layer in enumerate(self.layers):
            x = layer(x, lengths) if i == 0 else x + layer(x, lengths)
        return self.head(x.sum(axis=1) / lengths[:, None])


def turned(spec: RecurrentSpec) -> nnx.Module:
    net = nnx_port.ResidualRNN(spec, rngs=nnx.Rngs(0))
    assert net.first.backward_rnn is not None
    net.first.backward_rnn = RunBackwards(net.first.backward_rnn.cell, reverse=True, keep_order=True, rngs=False)
    return net


@pytest.mark.sample(1)
@pytest.mark.parametrize(
    ("name", "make", "layer", "trap", "said"),
    [
        ("residual_gru", turned, "first", "", "on the reference's input the layer gives another output"),
        (
            "residual_lstm",
            lambda spec: WithoutSum(spec, rngs=nnx.Rngs(0)),
            "(the network)",
            "sum-lacks-first",
            "between layers.0 and layers.1",
        ),
    ],
    ids=["reverse direction", "no sum"],
)
@pytest.mark.nightly
def test_the_check_names_the_layer(
    name: str, make: Any, layer: str, trap: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(family, "EXAMPLE", 4)
    reference = ports.create(get(name, **{**TINY, "depth": 4}), "pytorch", seed=0)
    wrong = make(reference.spec)
    ports.weights.write(wrong, ports.weights.read(reference))
    (finding,) = parity.check(reference, wrong, steps=0).models[0].findings
    assert (finding.layer, finding.trap or "") == (layer, trap)
    assert said in finding.text
