"""A rule per layer type: one layer in PyTorch and in Flax, the same weights, the same output in float64."""

from __future__ import annotations

import importlib
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import linen, nnx

from ports.weights import Leaf, WeightsError, read, register, write
from ports.weights.layers import kinds, leaves

pytestmark = pytest.mark.usefixtures("quick")

Weights = dict[str, np.ndarray]

F8: Any = jnp.float64
TORCH: Any = {"dtype": torch.float64}


def nchw(x: np.ndarray) -> np.ndarray:
    return np.moveaxis(x, -1, 1)


# Name: the PyTorch layer, the NNX layer, the Linen layer, the shape of a channels-last input.
CASES: dict[str, tuple[Any, Any, Any, tuple[int, ...]]] = {
    "Conv": (
        lambda: torch.nn.Conv2d(4, 6, (3, 2), **TORCH),
        lambda kw: nnx.Conv(4, 6, (3, 2), padding="VALID", **kw),
        lambda kw: linen.Conv(6, (3, 2), padding="VALID", **kw),
        (2, 5, 6, 4),
    ),
    "Conv-grouped": (
        lambda: torch.nn.Conv2d(4, 6, 3, groups=2, **TORCH),
        lambda kw: nnx.Conv(4, 6, (3, 3), padding="VALID", feature_group_count=2, **kw),
        lambda kw: linen.Conv(6, (3, 3), padding="VALID", feature_group_count=2, **kw),
        (2, 5, 6, 4),
    ),
    "Conv-depthwise": (
        lambda: torch.nn.Conv2d(4, 4, 3, groups=4, bias=False, **TORCH),
        lambda kw: nnx.Conv(4, 4, (3, 3), padding="VALID", feature_group_count=4, use_bias=False, **kw),
        lambda kw: linen.Conv(4, (3, 3), padding="VALID", feature_group_count=4, use_bias=False, **kw),
        (2, 5, 6, 4),
    ),
    "Conv-1d": (
        lambda: torch.nn.Conv1d(4, 6, 3, **TORCH),
        lambda kw: nnx.Conv(4, 6, (3,), padding="VALID", **kw),
        lambda kw: linen.Conv(6, (3,), padding="VALID", **kw),
        (2, 5, 4),
    ),
    "Conv-3d": (
        lambda: torch.nn.Conv3d(2, 3, 2, **TORCH),
        lambda kw: nnx.Conv(2, 3, (2, 2, 2), padding="VALID", **kw),
        lambda kw: linen.Conv(3, (2, 2, 2), padding="VALID", **kw),
        (2, 4, 5, 3, 2),
    ),
    "ConvTranspose": (
        lambda: torch.nn.ConvTranspose2d(4, 6, (3, 2), 2, **TORCH),
        lambda kw: nnx.ConvTranspose(4, 6, (3, 2), (2, 2), padding="VALID", **kw),
        lambda kw: linen.ConvTranspose(6, (3, 2), (2, 2), padding="VALID", **kw),
        (2, 5, 6, 4),
    ),
    "ConvTranspose-transpose_kernel": (
        lambda: torch.nn.ConvTranspose2d(4, 6, (3, 2), 2, **TORCH),
        lambda kw: nnx.ConvTranspose(4, 6, (3, 2), (2, 2), padding="VALID", transpose_kernel=True, **kw),
        lambda kw: linen.ConvTranspose(6, (3, 2), (2, 2), padding="VALID", transpose_kernel=True, **kw),
        (2, 5, 6, 4),
    ),
    "ConvTranspose-1d": (
        lambda: torch.nn.ConvTranspose1d(4, 6, 3, 2, **TORCH),
        lambda kw: nnx.ConvTranspose(4, 6, (3,), (2,), padding="VALID", **kw),
        lambda kw: linen.ConvTranspose(6, (3,), (2,), padding="VALID", **kw),
        (2, 5, 4),
    ),
    "Linear": (
        lambda: torch.nn.Linear(4, 3, bias=False, **TORCH),
        lambda kw: nnx.Linear(4, 3, use_bias=False, **kw),
        lambda kw: linen.Dense(3, use_bias=False, **kw),
        (2, 4),
    ),
    "Linear-square": (
        lambda: torch.nn.Linear(4, 4, **TORCH),
        lambda kw: nnx.Linear(4, 4, **kw),
        lambda kw: linen.Dense(4, **kw),
        (2, 4),
    ),
    "LinearGeneral-heads": (
        lambda: torch.nn.Linear(4, 6, **TORCH),
        lambda kw: nnx.LinearGeneral(4, (2, 3), **kw),
        lambda kw: linen.DenseGeneral((2, 3), **kw),
        (2, 4),
    ),
    "LinearGeneral-merged": (
        lambda: torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(6, 5, **TORCH)),
        lambda kw: nnx.LinearGeneral((2, 3), 5, axis=(-2, -1), **kw),
        lambda kw: linen.DenseGeneral(5, axis=(-2, -1), **kw),
        (4, 2, 3),
    ),
    "BatchNorm": (
        lambda: torch.nn.BatchNorm2d(4, **TORCH),
        lambda kw: nnx.BatchNorm(4, use_running_average=True, **kw),
        lambda kw: linen.BatchNorm(use_running_average=True, force_float32_reductions=False, **kw),
        (2, 3, 3, 4),
    ),
    "LayerNorm": (
        lambda: torch.nn.LayerNorm(4, **TORCH),
        lambda kw: nnx.LayerNorm(4, epsilon=1e-5, **kw),
        lambda kw: linen.LayerNorm(epsilon=1e-5, **kw),
        (2, 4),
    ),
    "GroupNorm": (
        lambda: torch.nn.GroupNorm(2, 4, **TORCH),
        lambda kw: nnx.GroupNorm(4, num_groups=2, epsilon=1e-5, **kw),
        lambda kw: linen.GroupNorm(num_groups=2, epsilon=1e-5, **kw),
        (2, 3, 3, 4),
    ),
    "InstanceNorm": (
        lambda: torch.nn.InstanceNorm2d(4, affine=True, **TORCH),
        lambda kw: nnx.InstanceNorm(4, epsilon=1e-5, **kw),
        lambda kw: linen.InstanceNorm(epsilon=1e-5, **kw),
        (2, 3, 3, 4),
    ),
    "RMSNorm": (
        lambda: torch.nn.RMSNorm(4, eps=1e-5, **TORCH),
        lambda kw: nnx.RMSNorm(4, epsilon=1e-5, **kw),
        lambda kw: linen.RMSNorm(epsilon=1e-5, **kw),
        (2, 4),
    ),
}


def randomised(layer: torch.nn.Module) -> torch.nn.Module:
    generator = torch.Generator().manual_seed(0)
    for tensor in layer.state_dict().values():
        if tensor.is_floating_point():
            tensor.copy_(torch.rand(tensor.shape, generator=generator, dtype=tensor.dtype) + 0.5)
    return layer.eval()


def same_bits(a: Weights, b: Weights) -> bool:
    return {n: (x.dtype, x.tobytes()) for n, x in a.items()} == {n: (x.dtype, x.tobytes()) for n, x in b.items()}


def difference(case: str, port: str) -> tuple[float, bool]:
    """The largest difference of the outputs in float64, of the largest output; and whether every bit came back."""
    make, nnx_layer, linen_layer, shape = CASES[case]
    reference, x = randomised(make()), np.random.default_rng(0).standard_normal(shape)
    images = len(shape) > 2 and not case.startswith("LinearGeneral")
    expected = reference(torch.from_numpy(nchw(x).copy() if images else x)).detach().numpy()
    weights = {name.removeprefix("1."): tensor for name, tensor in read(reference).items()}  # behind a Flatten
    kw = {"param_dtype": F8}
    with jax.enable_x64(True):
        if port == "nnx":
            net = nnx_layer({**kw, "rngs": nnx.Rngs(0)})
            if case == "BatchNorm":  # Flax makes them float32 whatever it is told
                net.mean.set_value(net.mean.get_value().astype(F8))
                net.var.set_value(net.var.get_value().astype(F8))
            write(net, weights)
            got = net(jnp.array(x))
        else:
            module = linen_layer(kw)
            net = (module, module.init(jax.random.key(0), jnp.array(x)))
            net = (module, write(net, weights))
            got = module.apply(net[1], jnp.array(x))
        back = read(net)
    got = nchw(np.asarray(got)) if images else np.asarray(got).reshape(len(got), -1)
    assert got.shape == expected.shape
    return float(np.abs(got - expected).max() / np.abs(expected).max()), same_bits(weights, back)


@pytest.mark.sample(5)
@pytest.mark.parametrize("port", ["nnx", "linen"])
@pytest.mark.parametrize("case", CASES)
def test_layer(case: str, port: str) -> None:
    far, bits = difference(case, port)
    # float64: sums of at most 24 products; a mistake in layout is of the size of the values.
    assert far <= 1e-13
    assert bits


def unflipped(_: Any) -> tuple[Leaf, ...]:
    """Of a transposed convolution, but for the flip."""
    weight = Leaf(
        "weight",
        ("kernel",),
        to_flax=lambda w: (np.moveaxis(w, (0, 1), (-2, -1)),),
        to_torch=lambda k: np.moveaxis(k[0], (-2, -1), (0, 1)),
    )
    return weight, leaves.same("bias", "bias")


def depth_first(_: Any) -> tuple[Leaf, ...]:
    """Of a linear layer with heads, but the depth of a head stands before the head."""
    weight = Leaf(
        "weight",
        ("kernel",),
        to_flax=lambda w: (np.swapaxes(w.T.reshape(-1, 3, 2), 1, 2),),
        to_torch=lambda k: np.swapaxes(k[0], 1, 2).reshape(-1, 6).T,
    )
    return weight, Leaf("bias", ("bias",), to_torch=lambda b: b[0].reshape(-1), reshaped=True)


@pytest.mark.parametrize("port", ["nnx", "linen"])
@pytest.mark.parametrize(
    ("case", "kind", "wrong"),
    [
        ("Linear-square", "linear", lambda _: (leaves.same("weight", "kernel"), leaves.same("bias", "bias"))),
        ("LinearGeneral-heads", "linear_general", depth_first),
        ("ConvTranspose", "conv_transpose", unflipped),
        ("LayerNorm", "layer_norm", lambda _: (leaves.same("weight", "bias"), leaves.same("bias", "scale"))),
    ],
    ids=["linear-not-transposed", "heads-behind-depth", "window-not-flipped", "scale-and-bias-exchanged"],
)
def test_a_wrong_rule_is_seen(case: str, kind: str, wrong: Any, port: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Shapes fit, and every bit comes back: the outputs alone tell."""
    monkeypatch.setitem(kinds.KINDS, kind, replace(kinds.KINDS[kind], leaves=wrong))
    far, bits = difference(case, port)
    assert far > 1e-3
    assert bits


def test_every_row_has_a_case() -> None:
    tested = {case.partition("-")[0] for case in CASES} | {"Dense", "DenseGeneral"}  # Linen's Linear, LinearGeneral
    tested |= {"Embed", "MultiHeadAttention", "MultiHeadDotProductAttention"}
    tested |= {"LSTMCell", "OptimizedLSTMCell", "GRUCell"}  # test_recurrent.py
    tested |= {"LSTM", "GRU"}  # test_residual_recurrent.py
    tested |= {"Conv1D"}  # test_decoders.py
    assert tested == {str(name).rpartition(".")[2] for row in kinds.KINDS.values() for name in row.flax_types}


TYPES = [(row, name) for row in kinds.KINDS.values() for name in (*row.torch_types, *row.flax_types)]


@pytest.mark.parametrize(("row", "name"), TYPES, ids=lambda value: value if isinstance(value, str) else "")
def test_every_name_of_the_table_means_a_class(row: kinds.LayerKind, name: str) -> None:
    """By the path that the table gives, and by the module that defines the class."""
    importlib.import_module(name.rpartition(".")[0])
    cls = kinds._loaded(name)
    assert cls is not None, f"{name}: no such class"
    assert cls is kinds._loaded(f"{cls.__module__}.{cls.__qualname__}")
    assert kinds.kind_of(object.__new__(cls)) is row
    assert kinds.kind_of(object.__new__(type("Mine", (cls,), {}))) is row
    assert kinds.kind_of(object.__new__(type(cls.__name__, (), {"__module__": "mine"}))) is None


def test_a_name_in_another_path_means_the_same_class(monkeypatch: pytest.MonkeyPatch) -> None:
    """`torch.nn.modules.conv.Conv2d` and `torch.nn.Conv2d` are one class."""
    row = replace(kinds.KINDS["conv"], torch_types=("torch.nn.modules.conv.Conv2d",))
    monkeypatch.setattr(kinds, "KINDS", {"conv": row})
    assert kinds.kind_of(torch.nn.Conv2d(1, 1, 1)) is row
    assert kinds.kind_of(torch.nn.Conv1d(1, 1, 1)) is None


def test_traps_go_by_groups_of_the_table() -> None:
    from parity.traps.catalogue import WEIGHTS

    assert {kind for trap in WEIGHTS for kind in trap.names} <= {row.pairs_as for row in kinds.KINDS.values()}


@pytest.mark.parametrize("port", ["nnx", "linen"])
def test_embedding(port: str) -> None:
    reference, tokens = torch.nn.Embedding(5, 3), [4, 0, 4]
    expected = reference(torch.tensor(tokens)).detach().numpy()
    if port == "nnx":
        net: Any = nnx.Embed(5, 3, rngs=nnx.Rngs(0))
        write(net, read(reference))
        got = net(jnp.array(tokens))
    else:
        module = linen.Embed(5, 3)
        net = (module, module.init(jax.random.key(0), jnp.array(tokens)))
        net = (module, write(net, read(reference)))
        got = module.apply(net[1], jnp.array(tokens))
    assert np.array_equal(np.asarray(got), expected)
    assert same_bits(read(reference), read(net))


@pytest.mark.parametrize("port", ["nnx", "linen"])
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no-bias"])
def test_attention(bias: bool, port: str) -> None:
    reference = torch.nn.MultiheadAttention(8, 2, bias=bias, batch_first=True, dtype=torch.float64)
    if bias:
        torch.nn.init.uniform_(reference.in_proj_bias)
        torch.nn.init.uniform_(reference.out_proj.bias)
    x = np.random.default_rng(0).standard_normal((2, 5, 8))
    expected = reference(*[torch.from_numpy(x)] * 3, need_weights=False)[0].detach().numpy()
    with jax.enable_x64(True):
        if port == "nnx":
            net: Any = nnx.MultiHeadAttention(2, 8, use_bias=bias, param_dtype=F8, decode=False, rngs=nnx.Rngs(0))
            write(net, read(reference))
            got = net(jnp.array(x))
        else:
            module = linen.MultiHeadDotProductAttention(2, use_bias=bias, param_dtype=F8)
            net = (module, module.init(jax.random.key(0), jnp.array(x)))
            net = (module, write(net, read(reference)))
            got = module.apply(net[1], jnp.array(x))
        assert same_bits(read(reference), read(net))
    # NNX calls jax.nn.dot_product_attention, which computes its softmax in float32 always; Linen does not.
    allowed = 1e-6 if port == "nnx" else 1e-13
    assert np.abs(np.asarray(got) - expected).max() <= allowed * np.abs(expected).max()


class Scaled(nnx.Module):
    def __init__(self) -> None:
        self.factor = nnx.Param(jnp.ones(3))


def test_a_layer_without_a_rule_says_how_to_add_one(monkeypatch: pytest.MonkeyPatch) -> None:
    net = nnx.Dict(scaled=Scaled())
    with pytest.raises(WeightsError, match=r"scaled: no rule for layer type Scaled, .*ports\.weights\.register"):
        read(net)
    monkeypatch.setattr(kinds, "REGISTERED", [])
    register(Scaled, lambda _: (Leaf("weight", ("factor",)),))
    assert list(read(net)) == ["scaled.weight"]
    write(net, {"scaled.weight": np.arange(3, dtype=np.float32)})
    assert net["scaled"].factor[...].tolist() == [0, 1, 2]


class Listed(nnx.Module):
    def __init__(self) -> None:
        self.linear = nnx.Linear(2, 2, rngs=nnx.Rngs(0))
        self.scales = nnx.List([nnx.Param(jnp.ones(3))])


class Holder(nnx.Pytree):
    def __init__(self) -> None:
        self.scale = nnx.Param(jnp.ones(3))


class Held(nnx.Module):
    def __init__(self) -> None:
        self.linear = nnx.Linear(2, 2, rngs=nnx.Rngs(0))
        self.holder = Holder()


class ScaledLinear(nnx.Linear):
    """Has Linear's rule, which knows nothing of `scale`."""

    def __init__(self) -> None:
        super().__init__(2, 2, rngs=nnx.Rngs(0))
        self.scale = nnx.Param(jnp.ones(2))


# Name: an NNX layer, the variable that no rule accounts for.
UNACCOUNTED: dict[str, tuple[Any, str]] = {
    "in-a-list": (Listed, r"scales\.0"),
    "in-a-pytree": (Held, r"holder\.scale"),
    "in-a-subclass": (ScaledLinear, r"scale"),
    "lora": (lambda: nnx.LoRALinear(3, 3, lora_rank=2, rngs=nnx.Rngs(0)), r"lora\.lora_a"),
    "attention-norm": (
        lambda: nnx.MultiHeadAttention(2, 8, normalize_qk=True, rngs=nnx.Rngs(0)),
        r"key_ln\.scale",
    ),
}


@pytest.mark.parametrize("case", UNACCOUNTED)
def test_no_variable_of_an_nnx_network_is_left_out_in_silence(case: str) -> None:
    make, name = UNACCOUNTED[case]
    net = nnx.Dict(layer=make())
    with pytest.raises(WeightsError, match=rf"layer\.{name}.*ports\.weights\.register"):
        read(net)


def test_no_variable_of_a_linen_network_is_left_out_in_silence() -> None:
    module = linen.MultiHeadDotProductAttention(2, normalize_qk=True)
    with pytest.raises(WeightsError, match=r"key_ln\.scale.*ports\.weights\.register"):
        read((module, module.init(jax.random.key(0), jnp.zeros((1, 3, 8)))))


def test_random_streams_and_caches_are_no_weights() -> None:
    attention = nnx.MultiHeadAttention(2, 8, decode=True, rngs=nnx.Rngs(0))
    attention.init_cache((1, 3, 8))
    net = nnx.Dict(dropout=nnx.Dropout(0.5, rngs=nnx.Rngs(0)), attention=attention)
    assert list(read(net)) == [
        f"attention.{name}" for name in ("in_proj_weight", "in_proj_bias", "out_proj.weight", "out_proj.bias")
    ]


class Compact(linen.Module):
    @linen.compact
    def __call__(self, x: Any) -> Any:
        return linen.Dense(3)(x)


def test_a_layer_made_in_compact_is_reported() -> None:
    module = Compact()
    with pytest.raises(WeightsError, match=r"params\.Dense_0\.kernel.*make it in setup\(\)"):
        read((module, module.init(jax.random.key(0), jnp.zeros((1, 2)))))
