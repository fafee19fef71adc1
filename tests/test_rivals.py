"""Tensors of one size in one module that no name tells apart: values, computing, or the caller say which is which."""

from __future__ import annotations

import ast
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from torch import nn

import parity
from parity import moving
from parity.running import intermediates
from ports import UserError

pytestmark = pytest.mark.usefixtures("quick")

WIDTH, HIDDEN, EXPERTS, HEADS = 4, 6, 3, 2
INPUTS = np.random.default_rng(0).standard_normal((2, 3, WIDTH)).astype(np.float32)


def kernel(rngs: nnx.Rngs, *shape: int) -> nnx.Param[jax.Array]:
    return nnx.Param(0.3 * jax.random.normal(rngs.params(), shape))


def far(model: nn.Module, port: Any) -> float:
    expected = model(torch.tensor(INPUTS)).detach().numpy()
    return float(np.abs(np.asarray(port(INPUTS)) - expected).max() / np.abs(expected).max())


def suggested(error: UserError) -> dict[str, str | None]:
    """Return the `names` that an error suggests."""
    said = re.search(r"names=(\{.*?\})", str(error))
    assert said, str(error)
    return ast.literal_eval(said[1].replace(", …", ""))


# --- experts: lists of layers, or (experts, out, in), against (experts, in, out)


class Expert(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w1, self.w2, self.w3 = (nn.Linear(*s, bias=False) for s in ((4, 6), (6, 4), (4, 6)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.w2(nn.functional.silu(self.w1(x)) * self.w3(x))


class Listed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(WIDTH, EXPERTS, bias=False)
        self.experts = nn.ModuleList(Expert() for _ in range(EXPERTS))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        shares = self.gate(x).softmax(-1)
        return sum(shares[..., i, None] * expert(x) for i, expert in enumerate(self.experts))  # pyright: ignore


class Raw(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(WIDTH, EXPERTS, bias=False)
        shapes = ((EXPERTS, HIDDEN, WIDTH), (EXPERTS, WIDTH, HIDDEN), (EXPERTS, HIDDEN, WIDTH))
        self.w1, self.w2, self.w3 = (nn.Parameter(0.5 * torch.randn(shape)) for shape in shapes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        gate, up = (torch.einsum("bld,ehd->bleh", x, w) for w in (self.w1, self.w3))
        y = torch.einsum("bleh,edh->bled", nn.functional.silu(gate) * up, self.w2)
        return torch.einsum("bled,ble->bld", y, self.gate(x).softmax(-1))


class Stacked(nnx.Module):
    def __init__(self, names: tuple[str, str, str], act: Any = jax.nn.silu, shared: float = 1.0) -> None:
        rngs, self.names, self.act, self.shared = nnx.Rngs(0), names, act, shared
        self.router = kernel(rngs, WIDTH, EXPERTS)
        shapes = ((EXPERTS, WIDTH, HIDDEN), (EXPERTS, HIDDEN, WIDTH), (EXPERTS, WIDTH, HIDDEN))
        for name, shape in zip(names, shapes, strict=True):
            setattr(self, name, kernel(rngs, *shape))

    def __call__(self, x: jax.Array) -> jax.Array:
        w1, w2, w3 = (getattr(self, name)[...] for name in self.names)
        gate, up = (jnp.einsum("bld,edh->bleh", x, w) for w in (w1, w3))
        y = jnp.einsum("bleh,ehd->bled", self.act(gate) * up, w2)
        return jnp.einsum("bled,ble->bld", y, jax.nn.softmax(x @ self.router[...] * self.shared))


def experts(kind: type[nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(WIDTH, WIDTH), kind()).eval()


class Behind(nnx.Module):
    def __init__(self, names: tuple[str, str, str], **options: Any) -> None:
        self.proj, self.moe = nnx.Linear(WIDTH, WIDTH, rngs=nnx.Rngs(1)), Stacked(names, **options)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.moe(self.proj(x))


SAME, OTHER, SAYS_NOTHING = ("w1", "w2", "w3"), ("wi_0", "wo", "wi_1"), ("c", "b", "a")


@pytest.mark.sample(2)
@pytest.mark.parametrize("names", [SAME, OTHER, SAYS_NOTHING], ids=" ".join)
@pytest.mark.parametrize("kind", [Listed, Raw])
def test_experts_pair_with_stacked_parameters(kind: type[nn.Module], names: tuple[str, str, str]) -> None:
    model = experts(kind)
    assert far(model, parity.move(model, Behind(names), INPUTS)) < 1e-5


def test_a_mistake_behind_the_experts_hides_no_weight() -> None:
    """What the port computes in front of the mistake says which tensor is which."""
    model = experts(Listed)
    moved = parity.move(model, Behind(SAYS_NOTHING, shared=2.0), INPUTS)
    assert np.array_equal(moved.moe.c[1], model[1].experts[1].w1.weight.detach().numpy().T)  # pyright: ignore
    assert far(model, moved) > 1e-3


def test_experts_that_nothing_tells_are_refused_with_the_line_that_settles_them() -> None:
    """Behind another activation the two kernels in front of it are used alike."""
    model, port = experts(Listed), Behind(OTHER, act=jax.nn.gelu)
    with pytest.raises(UserError, match="neither values nor computing tell") as raised:
        parity.move(model, port, INPUTS)
    names = suggested(raised.value)
    assert len(names) == 1
    moved = parity.move(model, port, INPUTS, names=names)
    assert far(model, moved) > 1e-3
    report = parity.check(model, moved, INPUTS, steps=0, names=names)
    assert [f.trap for f in report.models[0].findings] == ["silu-is-gelu"]


def test_without_computing_experts_are_exchanged(monkeypatch: pytest.MonkeyPatch) -> None:
    """The likeliest order is not the right one here: what these tests measure can fail."""
    model = experts(Listed)
    monkeypatch.setattr(moving.choosing, "by_computing", lambda pairing, trial, strict: pairing.open(()))
    monkeypatch.setattr(moving.ordering, "settled", lambda pairing, *_: pairing)
    monkeypatch.setattr(moving, "_together", lambda pairing, *_: pairing)
    assert far(model, parity.move(model, Behind(SAYS_NOTHING), INPUTS)) > 1e-2


class FiveKernels(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d, self.e = (nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.e(torch.tanh(self.d(x)) * self.c(x) + self.b(torch.sin(self.a(x))))


class FiveEach(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.experts = nn.ModuleList(FiveKernels() for _ in range(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.experts[0](x) + 2 * self.experts[1](x)


class FiveStacks(nnx.Module):
    def __init__(self) -> None:
        rngs = nnx.Rngs(0)
        self.kp, self.kq, self.kr, self.ks, self.kt = (kernel(rngs, 2, WIDTH, WIDTH) for _ in range(5))

    def __call__(self, x: jax.Array) -> jax.Array:
        def expert(i: int) -> jax.Array:
            y = jnp.tanh(x @ self.ks[i]) * (x @ self.kr[i]) + jnp.sin(x @ self.kp[i]) @ self.kq[i]
            return y @ self.kt[i]

        return expert(0) + 2 * expert(1)


def test_more_rivals_than_are_tried_need_the_line_that_the_error_says() -> None:
    torch.manual_seed(0)
    model = FiveEach().eval()
    with pytest.raises(UserError, match="say which is which") as raised:
        parity.move(model, FiveStacks(), INPUTS)
    names = suggested(raised.value)
    assert names == {"experts.*.a.weight": "kp"}
    assert far(model, parity.move(model, FiveStacks(), INPUTS, names=names)) < 1e-5


# --- relative attention: two biases of one shape


class Relative(nn.Module):
    def __init__(self, shared: list[nn.Parameter] | None = None) -> None:
        super().__init__()
        self.qkv, self.rel = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH, bias=False)
        biases = shared or [nn.Parameter(torch.randn(HEADS, WIDTH // HEADS)) for _ in range(2)]
        self.r_w_bias, self.r_r_bias = biases

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = (y.unflatten(-1, (HEADS, -1)) for y in self.qkv(x).chunk(3, -1))
        r = self.rel(x.cumsum(1)).unflatten(-1, (HEADS, -1))
        scores = torch.einsum("bqhd,bkhd->bhqk", q + self.r_w_bias, k)
        scores = scores + torch.einsum("bqhd,bkhd->bhqk", q + self.r_r_bias, r)
        return x + torch.einsum("bhqk,bkhd->bqhd", scores.softmax(-1), v).flatten(-2)


class Relatives(nn.Module):
    def __init__(self, shared: bool) -> None:
        super().__init__()
        both = None
        if shared:
            self.r_w_bias, self.r_r_bias = (nn.Parameter(torch.randn(HEADS, WIDTH // HEADS)) for _ in range(2))
            both = [self.r_w_bias, self.r_r_bias]
        self.layers = nn.ModuleList(Relative(both) for _ in range(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers[1](self.layers[0](x))


class RelativePort(nnx.Module):
    def __init__(self, names: tuple[str, str], shape: tuple[int, ...] | None, rngs: nnx.Rngs) -> None:
        self.qkv = nnx.Linear(WIDTH, 3 * WIDTH, rngs=rngs)
        self.rel, self.names = nnx.Linear(WIDTH, WIDTH, use_bias=False, rngs=rngs), names
        if shape:
            for name in names:
                setattr(self, name, kernel(rngs, *shape))

    def __call__(self, x: jax.Array, owner: Any, scale: float) -> jax.Array:
        cut = (*x.shape[:2], HEADS, -1)
        q, k, v = (y.reshape(cut) for y in jnp.split(self.qkv(x), 3, -1))
        u, w = (getattr(owner or self, name)[...].reshape(HEADS, -1) for name in self.names)
        scores = jnp.einsum("bqhd,bkhd->bhqk", q + u, k)
        scores = scores + jnp.einsum("bqhd,bkhd->bhqk", q + w, self.rel(jnp.cumsum(x, 1)).reshape(cut))
        return x + jnp.einsum("bhqk,bkhd->bqhd", jax.nn.softmax(scores * scale), v).reshape(x.shape)


class RelativesPort(nnx.Module):
    def __init__(
        self, names: tuple[str, str], shape: tuple[int, ...] = (2, 2), shared: bool = False, scale: float = 1
    ) -> None:
        rngs, self.scale, self.shared = nnx.Rngs(0), scale, shared
        self.layers = nnx.List([RelativePort(names, None if shared else shape, rngs) for _ in range(2)])
        for name in names if shared else ():
            setattr(self, name, kernel(rngs, *shape))

    def __call__(self, x: jax.Array) -> jax.Array:
        for layer in self.layers:
            x = layer(x, self if self.shared else None, self.scale)
        return x


@pytest.mark.sample(3)
@pytest.mark.parametrize("scale", [1.0, 0.5], ids=["right", "scaled"])
@pytest.mark.parametrize("shared", [False, True], ids=["each", "shared"])
@pytest.mark.parametrize(
    ("names", "shape"), [(("u", "v"), (2, 2)), (("v", "u"), (4,)), (("pos_bias_u", "pos_bias_v"), (1, 1, 2, 2))]
)
def test_two_biases_of_one_shape(names: tuple[str, str], shape: tuple[int, ...], shared: bool, scale: float) -> None:
    """A factor that PyTorch lacks does not keep the weights from where they belong."""
    torch.manual_seed(0)
    model = Relatives(shared).eval()
    moved = parity.move(model, RelativesPort(names, shape, shared, scale), INPUTS)
    holder = moved if shared else moved.layers[1]
    for name, bias in zip(names, (model.layers[1].r_w_bias, model.layers[1].r_r_bias), strict=True):
        assert np.array_equal(getattr(holder, name)[...].ravel(), bias.detach().numpy().ravel())  # pyright: ignore
    assert (far(model, moved) < 1e-5) == (scale == 1)


def test_equal_names_of_another_shape_pair() -> None:
    torch.manual_seed(0)
    model = Relatives(shared=False).eval()
    moved = parity.move(model, RelativesPort(("r_w_bias", "r_r_bias"), (4,)), INPUTS)
    assert far(model, moved) < 1e-5


# --- what both models compute on the way


def test_marks_know_an_array_in_any_layout_and_its_parts_along_a_list() -> None:
    x = np.random.default_rng(0).standard_normal((3, 4))
    seen = intermediates.TorchMarks([3])
    with seen:
        _ = torch.tensor(x).T * 2
    with jax.enable_x64(True):
        theirs = intermediates.flax_marks(jax.jit(lambda a: 2 * a.reshape(2, 6)), (x,))
        part = intermediates.flax_marks(lambda a: a * 2, (x[1],))
        other = intermediates.flax_marks(lambda a: a * 2.001, (x,))
    assert intermediates.common(seen.found, part) == 1
    assert intermediates.common(seen.found, other) == 0
    assert intermediates.common(seen.found, theirs) == 2  # as it is, and doubled
