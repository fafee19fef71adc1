"""Somebody's own models over packed sequences: PyTorch has nothing behind a text, and the port may have anything."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

import parity
from parity.reports.report import Model
from parity.running import packed
from parity.traps.operations import parts
from parity.traps.operations.parts import Call

pytestmark = pytest.mark.usefixtures("quick")

X = np.random.default_rng(0).standard_normal((3, 5, 4)).astype(np.float32)
LENGTHS = np.array([3, 5, 1])
REAL = np.arange(5) < LENGTHS[:, None]


class Texts(torch.nn.Module):
    """A residual layer over packed texts; classifies each text, or each token."""

    def __init__(self, of_tokens: bool = False) -> None:
        super().__init__()
        self.rnn, self.head, self.of_tokens = torch.nn.LSTM(4, 4, batch_first=True), torch.nn.Linear(4, 2), of_tokens

    def forward(self, x: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        y, _ = self.rnn(pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False))
        x = pad_packed_sequence(y, batch_first=True)[0]
        return self.head(x if self.of_tokens else x.sum(1) / lengths[:, None])


class Port(nnx.Module):
    """`Texts` in NNX, whose layer goes on behind the texts; `mistake`: the sum over a text takes these steps, too."""

    def __init__(self, of_tokens: bool = False, mistake: bool = False) -> None:
        rngs, self.of_tokens, self.mistake = nnx.Rngs(0), of_tokens, mistake
        self.rnn: Any = nnx.RNN(nnx.OptimizedLSTMCell(4, 4, rngs=rngs))
        self.head = nnx.Linear(4, 2, rngs=rngs)

    def __call__(self, x: Any, lengths: Any) -> Any:
        y = self.rnn(x)
        real = (jnp.arange(5) < lengths[:, None])[..., None] | self.mistake
        return self.head(y if self.of_tokens else jnp.where(real, y, 0).sum(1) / lengths[:, None])


def checked(of_tokens: bool = False, mistake: bool = False) -> Model:
    model = Texts(of_tokens)
    port = parity.move(model, Port(of_tokens), X, LENGTHS)
    port.mistake = mistake
    return parity.check(model, port, X, LENGTHS, steps=0).models[0]


def test_a_packed_sequence_and_its_padded_array() -> None:
    given = pack_padded_sequence(torch.from_numpy(X), torch.from_numpy(LENGTHS), batch_first=True, enforce_sorted=False)
    array = packed.first_padded((given, None))
    assert np.array_equal(array.numpy(), np.where(REAL[..., None], X, 0))
    new = torch.randn(array.shape)
    changed, _ = packed.with_first_padded((given, None), new)
    assert isinstance(changed, PackedSequence)
    assert np.array_equal(packed.first_padded(changed).numpy(), np.where(REAL[..., None], new.numpy(), 0))
    assert all(a is b for a, b in zip(changed[1:], given[1:], strict=True))
    assert packed.packed_in((torch.ones(2), given)) is None


def test_what_a_port_has_behind_a_text_is_no_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    model = checked()
    assert not model.findings
    assert not model.advice
    monkeypatch.setattr(packed, "real_steps", lambda *_: None)
    assert any("rnn: differs from PyTorch's" in line for line in checked().advice)


def test_a_sum_over_what_is_behind_a_text_is_found() -> None:
    (finding,) = checked(mistake=True).findings
    assert (finding.layer, "between rnn and head" in finding.text) == ("(the network)", True)


def test_layers_that_check_nothing_are_not_called_with_other_sizes() -> None:
    """PyTorch's packed LSTM reads its first state unchecked: a hypothesis that exchanged its axes ended the process."""
    seen: list[Any] = []
    state, steps = torch.zeros(1, 3, 4), torch.tensor([3, 2])
    call = Call("lstm", lambda *args, **kw: seen.append((args, kw)), (torch.ones(5, 4), steps, (state,)), {"layers": 1})
    function = parts._guarded(call)
    function(torch.zeros(5, 4), steps.clone(), (state + 1,), layers=1)
    assert len(seen) == 1
    for wrong in ((torch.zeros(5, 4), steps, (state.mT,)), (torch.zeros(5, 4), steps + 1, (state,))):
        with pytest.raises(ValueError, match="lstm: got other sizes or whole numbers than in the network"):
            function(*wrong, layers=1)
    assert len(seen) == 1


def test_outputs_behind_the_texts_are_compared_and_the_report_says_how_they_are_left_out() -> None:
    (line,) = checked(of_tokens=True).advice
    assert "pass mask=, true at the tokens of the texts" in line
    model = Texts(of_tokens=True)
    port = parity.move(model, Port(of_tokens=True), X, LENGTHS)
    found = parity.check(model, port, X, LENGTHS, steps=0, mask=REAL)
    assert found
    assert not found.models[0].advice
