"""Models that compute the same and are cut otherwise: into layers, into outputs. The network decides."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx, struct

import parity
from parity.diagnosis import forced_runs
from ports.errors import UserError

pytestmark = pytest.mark.usefixtures("quick")

X = np.random.default_rng(0).standard_normal((3, 5, 6))
TOKENS = np.random.default_rng(0).integers(0, 9, (3, 5))


class Torch(torch.nn.Module):
    """Two layers, and what is made of them."""

    def __init__(self, forward: Callable[..., Any], first: torch.nn.Module | None = None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = torch.nn.Linear(6, 6) if first is None else first, torch.nn.Linear(6, 4)
        self.function = forward

    def forward(self, x: torch.Tensor) -> Any:
        return self.function(self.a, self.b, x)


class Flax(nnx.Module):
    def __init__(self, forward: Callable[..., Any], first: Callable[[nnx.Rngs], nnx.Module] | None = None) -> None:
        rngs = nnx.Rngs(0)
        self.a = nnx.Linear(6, 6, rngs=rngs) if first is None else first(rngs)
        self.b = nnx.Linear(6, 4, rngs=rngs)
        self.function = forward

    def __call__(self, x: jax.Array) -> Any:
        return self.function(self.a, self.b, x)


def checked(model: Torch, port: Flax, x: np.ndarray = X, **options: Any) -> parity.Report:
    return parity.check(model, parity.move(model, port, x), x, steps=1, **options)


# --- layers


class Scaled(torch.nn.Embedding):
    """Scales inside, as BART's embedding of tokens does."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return super().forward(input) * 4


def embedding(rngs: nnx.Rngs) -> nnx.Module:
    return nnx.Embed(9, 6, rngs=rngs)


def chain(a: Any, b: Any, x: Any) -> Any:
    return b(a(x))


@pytest.mark.sample(1)
@pytest.mark.parametrize(("factor", "code"), [(4, 0), (4 + 1e-9, 1), (1, 1)])
def test_a_scale_inside_or_outside_of_a_layer(factor: float, code: int) -> None:
    report = checked(Torch(chain, Scaled(9, 6)), Flax(lambda a, b, x: b(a(x) * factor), embedding), TOKENS)
    assert report.exit_code == code, str(report)
    said = ("nnx: a: differs from PyTorch's; everything else agrees",)
    assert report.models[0].advice == (() if code else said)


@pytest.mark.sample(1)
@pytest.mark.parametrize(("rest", "code"), [(0.0, 0), (1e-9, 1)])
def test_a_layer_that_sees_more_of_the_sequence(rest: float, code: int) -> None:
    def longer(a: Any, b: Any, x: torch.Tensor) -> torch.Tensor:
        return b(torch.tanh(a(torch.cat([x, x[:, :1]], 1))))[:, :-1]

    report = checked(Torch(longer), Flax(lambda a, b, x: b(jnp.tanh(a(x))) + rest))
    assert report.exit_code == code, str(report)


@pytest.mark.parametrize(("shift", "code"), [(0, 0), (1, 1)])
def test_positions_for_the_batch_or_once(shift: int, code: int) -> None:
    """The port looks positions up for every sample, PyTorch once."""

    def in_torch(a: Any, b: Any, x: torch.Tensor) -> torch.Tensor:
        return b(x + a(torch.arange(x.shape[1])[None]))

    def in_flax(a: Any, b: Any, x: jax.Array) -> jax.Array:
        return b(x + a(jnp.broadcast_to(jnp.arange(x.shape[1]) + shift, x.shape[:2])))

    report = checked(Torch(in_torch, torch.nn.Embedding(9, 6)), Flax(in_flax, embedding))
    assert report.exit_code == code, str(report)
    assert report.models[0].advice == ()


def test_a_mistake_behind_what_is_changed_in_place_is_found() -> None:
    def in_place(a: Any, b: Any, x: torch.Tensor) -> torch.Tensor:
        y = a(x)
        y *= 0.5
        return b(y)

    assert checked(Torch(in_place), Flax(lambda a, b, x: b(a(x) * 0.5)))
    report = checked(Torch(in_place), Flax(chain))
    assert report.exit_code == 1
    assert report.models[0].first_divergence.layer == "(the network)"  # pyright: ignore[reportOptionalMemberAccess]


# --- outputs


@dataclass
class Given:
    """What a model gives."""

    logits: Any
    hidden: Any = None


@struct.dataclass
class GivenInJax:
    logits: Any
    hidden: Any = None


def both(kind: Callable[..., Any], factor: float = 1.0) -> Callable[..., Any]:
    def forward(a: Any, b: Any, x: Any) -> Any:
        hidden = a(x)
        return kind(b(hidden) * factor, hidden * factor)

    return forward


def pair(logits: Any, hidden: Any) -> Any:
    return logits, hidden


OUTPUTS: dict[str, tuple[Callable[..., Any], Callable[..., Any], str]] = {
    "dataclasses": (Given, Given, ""),
    "dataclasses of both frameworks": (Given, GivenInJax, ""),
    "dataclass and tuple": (Given, pair, ""),
    "tuple and dict": (pair, lambda logits, hidden: {"a": logits, "b": hidden}, ""),
    "nothing behind": (lambda logits, hidden: (logits, None), lambda logits, hidden: logits, ""),
    "nothing before": (lambda logits, hidden: (None, logits), lambda logits, hidden: logits, ""),
    "more in PyTorch": (pair, lambda logits, hidden: (logits,), ", only PyTorch gives output.1"),
    "more in the port": (lambda logits, hidden: logits, pair, ", only the port gives output.1"),
}


@pytest.mark.sample(1)
@pytest.mark.parametrize("name", OUTPUTS)
def test_outputs_are_matched_by_name_and_then_by_place(name: str) -> None:
    in_torch, in_flax, note = OUTPUTS[name]
    report = checked(Torch(both(in_torch)), Flax(both(in_flax)))
    assert report, report.failure()
    assert report.models[0].note.endswith(note or "seed 0")
    assert not checked(Torch(both(in_torch)), Flax(both(in_flax, 1 + 1e-9)))


def test_exchanged_outputs_of_one_shape_are_a_mismatch() -> None:
    def exchanged(logits: Any, hidden: Any) -> Any:
        return {"a": logits, "b": logits * 2}

    def wrong(logits: Any, hidden: Any) -> Any:
        return {"b": logits, "a": logits * 2}

    assert checked(Torch(both(exchanged)), Flax(both(exchanged)))
    assert not checked(Torch(both(exchanged)), Flax(both(wrong)))


def test_a_mistake_where_one_side_gives_more_is_found_at_its_layer() -> None:
    def wrong(a: Any, b: Any, x: Any) -> Any:
        return b(jnp.tanh(a(x) * (1 + 1e-6)))

    report = checked(Torch(lambda a, b, x: (b(torch.tanh(a(x))), x)), Flax(wrong))
    assert report.exit_code == 1
    assert report.models[0].first_divergence.layer == "(the network)"  # pyright: ignore[reportOptionalMemberAccess]


def test_models_without_an_output_in_common_are_refused() -> None:
    with pytest.raises(UserError, match=r"outputs: PyTorch gives output\.x \(3, 5, 4\), the port output \(3, 5, 6\)"):
        checked(Torch(lambda a, b, x: {"x": b(a(x))}), Flax(lambda a, b, x: b(a(x)) @ jnp.ones((4, 6))))


class Activated(torch.nn.LayerNorm):
    """A norm with its activation inside of it, as timm's are."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return super().forward(input).relu()


def activated(epsilon: float = 1e-5) -> tuple[Torch, Flax]:
    """Return a model with such a norm, and a port whose GELU is another; in it the activation follows the norm."""
    model = Torch(lambda a, b, x: torch.nn.functional.gelu(b(a(x))), Activated(6))
    port = Flax(lambda a, b, x: nnx.gelu(b(nnx.relu(a(x)))), lambda rngs: nnx.LayerNorm(6, epsilon=epsilon, rngs=rngs))
    return model, port


def test_layer_that_is_cut_otherwise_is_no_finding_beside_a_mistake() -> None:
    (model,) = checked(*activated()).models
    assert [(f.layer, f.trap) for f in model.findings] == [("(the network)", "gelu-tanh")]


def test_mistake_of_a_layer_that_is_cut_otherwise_is_found() -> None:
    (model,) = checked(*activated(epsilon=1e-2)).models
    assert [f.layer for f in model.findings] == ["a", "(the network)"]
    assert model.findings[1].trap == "gelu-tanh"


# --- a layer whose shapes do not fit, in front of a mistake


class Trimmed(torch.nn.Module):
    """A causal convolution as it is written in PyTorch: it pads both ends, and the model takes the end away."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = torch.nn.Conv1d(6, 6, 4, groups=6, padding=3)
        self.gate, self.out = torch.nn.Linear(6, 6), torch.nn.Linear(6, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mixed = torch.nn.functional.silu(self.mix(x.mT)[..., : x.shape[1]].mT)
        return self.out(mixed * torch.sigmoid(self.gate(mixed)))


class Causal(nnx.Module):
    def __init__(self, gate: Callable[..., Any] = nnx.sigmoid) -> None:
        rngs = nnx.Rngs(0)
        self.mix = nnx.Conv(6, 6, (4,), feature_group_count=6, padding="CAUSAL", rngs=rngs)
        self.gate, self.out = nnx.Linear(6, 6, rngs=rngs), nnx.Linear(6, 4, rngs=rngs)
        self.function = gate

    def __call__(self, x: jax.Array) -> jax.Array:
        mixed = nnx.silu(self.mix(x))
        return self.out(mixed * self.function(self.gate(mixed)))


def test_a_convolution_that_pads_otherwise_passes() -> None:
    torch.manual_seed(0)
    model = Trimmed()
    assert parity.check(model, parity.move(model, Causal(), X), X, steps=1)


def test_a_mistake_behind_a_layer_whose_shapes_do_not_fit_is_one_finding() -> None:
    torch.manual_seed(0)
    model = Trimmed()
    report = parity.check(model, parity.move(model, Causal(jnp.tanh), X), X, steps=1)
    (finding,) = report.models[0].findings
    assert finding.layer == "(the network)"
    assert "between gate and out" in finding.text


# --- zeros around a layer's input, which one model has in the array


class PaddedOutside(torch.nn.Module):
    """Two causal convolutions: the model pads, and no layer does."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = torch.nn.Conv1d(6, 5, 3), torch.nn.Conv1d(5, 5, 3, dilation=2)
        self.out = torch.nn.Linear(5, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        pad = torch.nn.functional.pad
        x = torch.nn.functional.silu(self.first(pad(x.mT, (2, 0))))
        x = torch.nn.functional.gelu(self.second(pad(x, (4, 0))))
        return self.out(torch.tanh(x.mT))


class PaddedInside(nnx.Module):
    """Flax's layer pads."""

    padding = "CAUSAL"

    def __init__(self, squashed: Callable[..., Any] = jnp.tanh, tanh_form: bool = False) -> None:
        rngs = nnx.Rngs(0)
        self.first = nnx.Conv(6, 5, (3,), padding=self.padding, rngs=rngs)
        self.second = nnx.Conv(5, 5, (3,), kernel_dilation=2, padding=self.padding, rngs=rngs)
        self.out = nnx.Linear(5, 4, rngs=rngs)
        self.squashed, self.tanh_form = squashed, tanh_form

    def pad(self, x: jax.Array, width: int) -> jax.Array:
        return x

    def __call__(self, x: jax.Array) -> jax.Array:
        x = nnx.silu(self.first(self.pad(x, 2)))
        x = nnx.gelu(self.second(self.pad(x, 4)), approximate=self.tanh_form)
        return self.out(self.squashed(x))


class Layers(torch.nn.Module):
    """`PaddedOutside`, whose layers pad both ends; the model takes nothing away, so that it sees the future."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = torch.nn.Conv1d(6, 5, 3, padding=1)
        self.second = torch.nn.Conv1d(5, 5, 3, padding=2, dilation=2)
        self.out = torch.nn.Linear(5, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.nn.functional.gelu(self.second(torch.nn.functional.silu(self.first(x.mT))))
        return self.out(torch.tanh(x.mT))


class LayersOutside(PaddedInside):
    """`Layers` as a model that pads itself."""

    padding = "VALID"

    def pad(self, x: jax.Array, width: int) -> jax.Array:
        return jnp.pad(x, ((0, 0), (width // 2, width // 2), (0, 0)))


@pytest.mark.parametrize(("model", "port"), [(PaddedOutside, PaddedInside), (Layers, LayersOutside)])
def test_a_mistake_beside_layers_that_pad_otherwise_is_one_finding(model: Any, port: Any) -> None:
    """Without the zeros around it the port gets the same input, so that every layer is judged by itself."""
    ours = model()
    report = parity.check(ours, parity.move(ours, port(tanh_form=True), X), X, steps=1)
    (finding,) = report.models[0].findings
    assert (finding.layer, finding.trap) == ("(the network)", "gelu-tanh"), str(report)


@pytest.mark.nightly
@pytest.mark.parametrize(("model", "port"), [(PaddedOutside, PaddedInside), (Layers, LayersOutside)])
def test_layers_that_pad_otherwise_pass(model: Any, port: Any) -> None:
    ours = model()
    assert parity.check(ours, parity.move(ours, port(), X), X, steps=1)


def test_zeros_around_an_array() -> None:
    x = np.random.default_rng(0).standard_normal((2, 3, 4))
    padded = np.pad(x, ((0, 0), (0, 0), (2, 1)))
    widths = ((0, 0), (0, 0), (2, 1))
    assert forced_runs.margin(padded, x.shape) == widths
    ours, theirs = forced_runs.Margin(widths, ours=True), forced_runs.Margin(widths, ours=False)
    np.testing.assert_array_equal(ours.to_port(padded), x)
    np.testing.assert_array_equal(ours.to_reference(x), padded)
    np.testing.assert_array_equal(ours.to_reference(x, np.ones_like(padded))[..., :2], 1)
    np.testing.assert_array_equal(ours.to_reference(x, np.ones_like(padded))[..., 2:-1], x)
    np.testing.assert_array_equal(theirs.to_port(x), padded)
    np.testing.assert_array_equal(theirs.to_reference(padded), x)
    assert forced_runs.margin(padded, (2, 3, 8)) is None
    assert forced_runs.margin(x, (2, 3, 3)) is None  # nothing around it is zero
    assert forced_runs.margin(np.pad(x, ((0, 0), (0, 0), (2, 1)), mode="edge"), x.shape) is None
    assert forced_runs.margin(np.zeros((2, 5)), (2, 3)) == ((0, 0), (2, 0))
