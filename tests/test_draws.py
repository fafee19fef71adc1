"""Random draws give the same numbers in both frameworks, so that dropout's rates and places are compared."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from flax import linen, nnx

import parity
from ports.errors import UserError

pytestmark = pytest.mark.usefixtures("quick")

WIDTH = 8
X = np.random.default_rng(0).standard_normal((3, 5, WIDTH))


class Torch(torch.nn.Module):
    """Two linear layers and what stands between them, in train mode and in eval mode."""

    def __init__(self, between: Callable[[torch.Tensor, bool], torch.Tensor]) -> None:
        super().__init__()
        self.a, self.between, self.b = torch.nn.Linear(WIDTH, WIDTH), between, torch.nn.Linear(WIDTH, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.b(self.between(self.a(x), self.training))


class Flax(nnx.Module):
    """The same; `between` is told a key in train mode, and none in eval mode."""

    def __init__(self, between: Callable[[jax.Array, Any], jax.Array]) -> None:
        rngs = nnx.Rngs(0)
        self.a, self.b = nnx.Linear(WIDTH, WIDTH, rngs=rngs), nnx.Linear(WIDTH, 3, rngs=rngs)
        self.between, self.rngs = between, nnx.Rngs(0)

    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        return self.b(self.between(self.a(x), self.rngs.dropout() if train else None))


def dropping(rate: float) -> Callable[[jax.Array, Any], jax.Array]:
    """Dropout as models write it themselves."""

    def between(h: jax.Array, key: Any) -> jax.Array:
        if key is None:
            return h
        return jnp.where(jax.random.bernoulli(key, 1 - rate, h.shape), h / (1 - rate), 0)

    return between


def path_torch(h: torch.Tensor, train: bool) -> torch.Tensor:
    """Stochastic depth with Bernoulli numbers: a branch of a whole sample is dropped."""
    mask = h.new_empty((h.shape[0], 1, 1)).bernoulli_(0.8).div_(0.8) if train else 1.0
    return h + torch.tanh(h) * mask


def path_jax(h: jax.Array, key: Any) -> jax.Array:
    mask = 1.0 if key is None else jax.random.bernoulli(key, 0.8, (h.shape[0], 1, 1)) / 0.8
    return h + jnp.tanh(h) * mask


def floor_torch(h: torch.Tensor, train: bool) -> torch.Tensor:
    """Stochastic depth with uniform numbers."""
    return h + (torch.tanh(h) / 0.8 * torch.floor(0.8 + torch.rand(h.shape[0], 1, 1)) if train else torch.tanh(h))


def floor_jax(h: jax.Array, key: Any) -> jax.Array:
    if key is None:
        return h + jnp.tanh(h)
    return h + jnp.tanh(h) / 0.8 * jnp.floor(0.8 + jax.random.uniform(key, (h.shape[0], 1, 1)))


def below_torch(h: torch.Tensor, train: bool) -> torch.Tensor:
    """Stochastic depth with uniform numbers that are below the part that is kept."""
    mask = (torch.rand(h.shape[0], 1, 1) < 0.8).to(h.dtype) if train else 0.8
    return h + torch.tanh(h) / 0.8 * mask


def above_torch(h: torch.Tensor, train: bool) -> torch.Tensor:
    """The same with numbers above the part that is dropped."""
    mask = torch.rand(h.shape[0], 1, 1).gt(0.2) if train else 0.8
    return h + mask * torch.tanh(h) / 0.8


def layer_torch(h: torch.Tensor, train: bool) -> torch.Tensor:
    """Dropout of values and of a whole layer, as transformers' encoders of speech have them."""
    if not train:
        return h + torch.tanh(h)
    skipped = bool(torch.rand([]) < 0.1)
    return F.dropout(h if skipped else h + torch.tanh(h), 0.3)


def below_jax(h: jax.Array, key: Any) -> jax.Array:
    mask = 0.8 if key is None else jax.random.uniform(key, (h.shape[0], 1, 1)) < 0.8
    return h + jnp.tanh(h) / 0.8 * mask


def kept_jax(h: jax.Array, key: Any) -> jax.Array:
    """Dropout that the port writes itself, with uniform numbers."""
    return h if key is None else jnp.where(jax.random.uniform(key, h.shape) < 0.3, 0, h / 0.7)


def half_torch(h: torch.Tensor, train: bool) -> torch.Tensor:
    """Dropout that PyTorch's model writes itself: half of the values are kept."""
    return h * (torch.rand(h.shape) < 0.5).to(h.dtype) / 0.5 if train else h


def scaled_torch(h: torch.Tensor, train: bool) -> torch.Tensor:
    """The same, with a mask that is scaled itself."""
    return h * ((torch.rand_like(h) < 0.5) / 0.5) if train else h


def token_torch(h: torch.Tensor, train: bool) -> torch.Tensor:
    """Some positions are replaced: the mask is what is dropped."""
    masked = (torch.rand(h.shape[:2]) < 0.3).to(h.dtype)[..., None] if train else 0.0
    return h * (1 - masked) + masked


def token_jax(h: jax.Array, key: Any) -> jax.Array:
    masked = 0.0 if key is None else (jax.random.uniform(key, h.shape[:2]) < 0.3)[..., None]
    return jnp.where(masked, 1.0, h)


def often_torch(h: torch.Tensor, train: bool) -> torch.Tensor:
    """Stochastic depth that drops most branches."""
    return h + (torch.tanh(h) / 0.25 * torch.floor(0.25 + torch.rand(h.shape[0], 1, 1)) if train else torch.tanh(h))


def often_jax(h: jax.Array, key: Any) -> jax.Array:
    mask = 1.0 if key is None else jax.random.bernoulli(key, 0.25, (h.shape[0], 1, 1)) / 0.25
    return h + jnp.tanh(h) * mask


def noise_torch(h: torch.Tensor, train: bool) -> torch.Tensor:
    """A reparametrised sample."""
    return h + torch.exp(0.5 * h) * torch.randn_like(h) if train else h


def noise_jax(h: jax.Array, key: Any) -> jax.Array:
    return h if key is None else h + jnp.exp(0.5 * h) * jax.random.normal(key, h.shape)


def named_noise_torch(h: torch.Tensor, train: bool) -> torch.Tensor:
    """Noise of a width that float32 rounds, drawn in place."""
    return h + torch.empty_like(h).normal_(0.1, 0.3) if train else h


def named_noise_jax(h: jax.Array, key: Any) -> jax.Array:
    return h if key is None else h + 0.1 + 0.3 * jax.random.normal(key, h.shape)


def attention_torch(h: torch.Tensor, train: bool) -> torch.Tensor:
    return F.scaled_dot_product_attention(h, h, h, dropout_p=0.1 if train else 0.0)


def attention_jax(h: jax.Array, key: Any) -> jax.Array:
    weights = jax.nn.softmax(h @ h.swapaxes(1, 2) / WIDTH**0.5)
    return dropping(0.1)(weights, key) @ h


PAIRS: dict[str, tuple[Any, Any]] = {
    "dropout": (lambda h, train: F.dropout(h, 0.3, train), dropping(0.3)),
    "dropout of a module": (lambda h, train: torch.nn.Dropout(0.3).train(train)(h), dropping(0.3)),
    "dropout in place": (lambda h, train: F.dropout(h * 1, 0.3, train, inplace=True), dropping(0.3)),
    "drop path": (path_torch, path_jax),
    "drop path by floor": (floor_torch, floor_jax),
    "drop path by comparison": (below_torch, path_jax),
    "drop path by comparison in both": (below_torch, below_jax),
    "drop path by the other comparison": (above_torch, path_jax),
    "dropout by comparison in the port": (lambda h, train: F.dropout(h, 0.3, train), kept_jax),
    "dropout by comparison of half": (half_torch, dropping(0.5)),
    "dropout by a scaled mask": (scaled_torch, dropping(0.5)),
    "masked positions": (token_torch, token_jax),
    "dropout of a layer": (layer_torch, lambda h, key: dropping(0.3)(h + jnp.tanh(h), key)),
    "drop path that drops most": (often_torch, often_jax),
    "noise": (noise_torch, noise_jax),
    "noise in place": (named_noise_torch, named_noise_jax),
    "attention": (attention_torch, attention_jax),
}


def report_of(in_torch: Any, in_jax: Any) -> parity.Report:
    torch.manual_seed(0)
    model, port = Torch(in_torch), Flax(in_jax)
    return parity.check(model, parity.move(model, port, X), X, steps=1)


@pytest.mark.sample(3)
@pytest.mark.parametrize("name", PAIRS)
def test_equal_draws_pass(name: str) -> None:
    report = report_of(*PAIRS[name])
    assert report, report.failure()
    assert report.models[0].advice == ()


@pytest.mark.sample(2)
@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("dropout", dropping(0.7)),
        ("dropout", lambda h, key: dropping(0.3)(h, key) * (1 if key is None else 0.7)),
        ("drop path", lambda h, key: dropping(0.2)(h + jnp.tanh(h), key)),
        ("drop path by floor", lambda h, key: h + dropping(0.1)(jnp.tanh(h), key)),
        ("drop path by comparison", lambda h, key: h + dropping(0.1)(jnp.tanh(h), key)),
        ("dropout", lambda h, key: kept_jax(h, key) * (1 if key is None else 1.01)),
        ("dropout by comparison of half", dropping(0.4)),
        ("noise", lambda h, key: h if key is None else h + jnp.exp(h) * jax.random.normal(key, h.shape)),
        ("attention", lambda h, key: dropping(0.1)(attention_jax(h, None), key) @ jnp.eye(WIDTH) * 1.01),
    ],
    ids=[
        "rate",
        "no scale",
        "place",
        "rate of a path",
        "rate of a mask",
        "scale of a mask",
        "rate of half",
        "size of the noise",
        "more than dropout",
    ],
)
def test_other_draws_are_a_mismatch(name: str, wrong: Any) -> None:
    assert report_of(PAIRS[name][0], wrong).exit_code == 1


def test_other_rates_are_told() -> None:
    report = report_of(below_torch, lambda h, key: h + dropping(0.1)(jnp.tanh(h), key))
    assert report.exit_code == 1
    (line,) = report.models[0].advice
    assert line.startswith(
        "nnx: in a training step PyTorch's dropout drops 0.2 (1 mask), the port's 0.1 (1 mask). Give"
    )


def test_a_port_that_lacks_dropout_passes_and_is_told_so() -> None:
    report = report_of(PAIRS["dropout"][0], lambda h, key: h)
    assert report, report.failure()
    (line,) = report.models[0].advice
    assert line.startswith("nnx: PyTorch draws 1 dropout masks in a training step, the port 0; the check switched")


@pytest.mark.parametrize("path", [path_torch, floor_torch, below_torch, above_torch])
def test_a_port_that_lacks_drop_path_passes_and_is_told_so(path: Any) -> None:
    """The chance 0.8 fills a tensor of float64, where float32 would round it."""
    report = report_of(path, lambda h, key: h + jnp.tanh(h))
    assert report, report.failure()
    assert "1 dropout masks in a training step, the port 0" in report.models[0].advice[0]


@pytest.mark.sample(1)
@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        (PAIRS["dropout"][0], lambda h, key: h * (1 + 1e-9)),
        (floor_torch, lambda h, key: h + jnp.tanh(h) * (1 + 1e-9)),
        (floor_torch, lambda h, key: floor_jax(h, key) * (1 if key is None else 1 + 1e-9)),
    ],
    ids=["dropout", "no floor", "floor"],
)
def test_a_port_that_lacks_some_dropout_and_has_a_mistake_is_a_mismatch(right: Any, wrong: Any) -> None:
    assert report_of(right, wrong).exit_code == 1


def test_a_port_that_drops_where_pytorch_does_not_is_a_mismatch() -> None:
    report = report_of(lambda h, train: h, dropping(0.3))
    assert report.exit_code == 1
    assert report.models[0].first_divergence.quantity in {"output.train", "layer.train"}  # pyright: ignore


class Encoder(torch.nn.Module):
    """Self-attention with dropout of its weights."""

    def __init__(self) -> None:
        super().__init__()
        self.attn, self.drop = (
            torch.nn.MultiheadAttention(WIDTH, 2, dropout=0.1, batch_first=True),
            torch.nn.Dropout(0.2),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.drop(self.attn(x, x, x, need_weights=False)[0])


class InLinen(linen.Module):
    rate: float = 0.1

    @linen.compact
    def __call__(self, x: jax.Array, deterministic: bool = True) -> jax.Array:
        attend = linen.MultiHeadDotProductAttention(
            2, dropout_rate=self.rate, broadcast_dropout=False, deterministic=deterministic, name="attn"
        )
        return x + linen.Dropout(0.2)(attend(x), deterministic=deterministic)


class InNNX(nnx.Module):
    def __init__(self, rngs: nnx.Rngs | None) -> None:
        made = nnx.Rngs(0)
        self.attn = nnx.MultiHeadAttention(2, WIDTH, dropout_rate=0.1, decode=False, rngs=made)
        self.drop = nnx.Dropout(0.2, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return x + self.drop(self.attn(x))


def encoders() -> dict[str, tuple[Any, int]]:
    def in_linen(rate: float) -> Any:
        net = InLinen(rate)
        return net, net.init(jax.random.key(0), jnp.array(X))

    return {
        "linen": (in_linen(0.1), 0),
        "nnx": (InNNX(nnx.Rngs(1)), 0),
        "nnx, whose dropout has no key": (InNNX(None), 0),
        "another rate in linen": (in_linen(0.9), 1),
    }


@pytest.mark.sample(1)
@pytest.mark.parametrize("name", encoders())
def test_the_libraries_attention_drops_alike(name: str) -> None:
    torch.manual_seed(0)
    model = Encoder()
    port, code = encoders()[name]
    report = parity.check(model, parity.move(model, port, X), X, steps=1)
    assert report.exit_code == code, str(report)


def test_the_functions_are_the_frameworks_own_behind_the_check() -> None:
    before = (jax.random.bernoulli, jax.random.uniform, F.dropout, F.scaled_dot_product_attention)
    report_of(*PAIRS["attention"])
    assert before == (jax.random.bernoulli, jax.random.uniform, F.dropout, F.scaled_dot_product_attention)
    assert not torch.equal(torch.rand(5), torch.rand(5))


def test_a_draw_that_cannot_be_matched_is_refused() -> None:
    with pytest.raises(UserError, match="random in train mode"):
        report_of(lambda h, train: h * torch.randint(1, 1000, ()) if train else h, dropping(0.3))
