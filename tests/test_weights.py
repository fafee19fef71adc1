"""Weights between live models: every bit in all six directions, strict both ways, all or nothing."""

from __future__ import annotations

from itertools import pairwise, permutations
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import torch
from flax import linen, nnx
from hypothesis import given
from hypothesis import strategies as st
from small import BASIC_NET, GROUPED_NET, OPTION_A_NET, POOLED_NET, PREACT_NET

import ports
from ports.families import NETWORKS
from ports.resnet.spec import ResNetSpec
from ports.weights import Default, Ignore, Rename, WeightsError, read, write
from ports.weights.form.torch_form import lossless
from ports.weights.live.pytorch import to_numpy, to_torch

pytestmark = pytest.mark.usefixtures("quick")

Weights = dict[str, np.ndarray]

DIRECTIONS = list(permutations(ports.PORTS, 2))

NETS = [
    BASIC_NET,
    GROUPED_NET,
    OPTION_A_NET,
    POOLED_NET,
    PREACT_NET,
    NETWORKS["tutorial_net"],
    NETWORKS["tutorial_resnet"],
]


def blank(spec: ResNetSpec, port: str, dtype: str = "float32") -> Any:
    return ports.create(spec, port, seed=None, dtype=dtype)


def moved(net: Any, weights: Weights, **kw: Any) -> Any:
    variables = write(net, weights, **kw)
    return net if variables is None else (net[0], variables)


def noise(weights: Weights, seed: int = 0) -> Weights:
    """Random bits: NaN payloads, infinities, subnormals and negative zeros among them."""
    rng = np.random.default_rng(seed)
    result = {name: np.frombuffer(rng.bytes(a.nbytes), a.dtype).reshape(a.shape).copy() for name, a in weights.items()}
    for name, array in result.items():
        if array.dtype == np.int64:
            result[name] = np.array(rng.integers(2**31))
        else:
            array.flat[:1] = -0.0
    return result


def same_bits(a: Weights, b: Weights) -> bool:
    return a.keys() == b.keys() and all(
        a[n].tobytes() == b[n].tobytes() and a[n].dtype == b[n].dtype and a[n].shape == b[n].shape for n in a
    )


@pytest.mark.sample(5)
@pytest.mark.parametrize("spec", NETS, ids=lambda s: s.name)
@pytest.mark.parametrize(("first", "second"), DIRECTIONS)
def test_round_trip_gives_every_bit_back(spec: ResNetSpec, first: str, second: str) -> None:
    source = noise(read(blank(spec, "pytorch")))
    there = read(moved(blank(spec, first), source))
    back = read(moved(blank(spec, first), read(moved(blank(spec, second), there))))
    assert same_bits(source, there)
    assert same_bits(source, back)


@pytest.mark.parametrize(("first", "second"), DIRECTIONS)
def test_round_trip_in_float64(first: str, second: str) -> None:
    source = noise(read(blank(OPTION_A_NET, "pytorch", "float64")))
    with jax.enable_x64(True):
        there, back = (blank(OPTION_A_NET, port, "float64") for port in (first, second))
    back = moved(back, read(moved(there, source)))
    assert source["conv1.weight"].dtype == np.float64
    assert same_bits(source, read(back))


@pytest.mark.parametrize("port", ["nnx", "linen"])
def test_round_trip_of_bfloat16(port: str) -> None:
    layer, x = torch.nn.Conv2d(3, 4, 3, dtype=torch.bfloat16), jnp.zeros((1, 8, 8, 3))
    source = noise(read(layer))
    assert source["weight"].dtype == ml_dtypes.bfloat16
    if port == "nnx":
        net: Any = nnx.Conv(3, 4, (3, 3), param_dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
    else:
        module = linen.Conv(4, (3, 3), param_dtype=jnp.bfloat16)
        net = (module, module.init(jax.random.key(0), x))
    assert same_bits(source, read(moved(net, source)))
    write(layer, read(moved(net, source)))
    assert same_bits(source, read(layer))


# What a conversion might lose: negative zero, the smallest and largest subnormals, infinities, NaNs with a payload
# (quiet, negative, signalling).
SPECIAL = {
    "float16": (0x8000, 1, 0x8001, 0x03FF, 0x7C00, 0xFC00, 0x7E12, 0xFF34, 0x7C01),
    "bfloat16": (0x8000, 1, 0x8001, 0x007F, 0x7F80, 0xFF80, 0x7FC5, 0xFFD3, 0x7F81),
    "float32": (1 << 31, 1, (1 << 31) + 1, 0x7FFFFF, 0x7F800000, 0xFF800000, 0x7FC12345, 0xFFD54321, 0x7F800001),
    "float64": (
        1 << 63,
        1,
        (1 << 63) + 1,
        (1 << 52) - 1,
        0x7FF << 52,
        0xFFF << 52,
        0x7FF80DEC0DE << 20,
        -1,
        0x7FF0 << 48 | 1,
    ),
}


def special(dtype: str) -> Weights:
    """The weights of `conv`, made of special values alone."""
    width = np.dtype(dtype).itemsize
    bits = b"".join((value % (1 << 8 * width)).to_bytes(width, "little") for value in SPECIAL[dtype])
    values = np.frombuffer(bits, dtype)
    return {"weight": np.resize(values, (4, 3, 3, 3)), "bias": np.resize(values[::-1], 4)}


def conv(port: str, dtype: str) -> Any:
    """A convolution with parameters of a type."""
    if port == "pytorch":
        return torch.nn.Conv2d(3, 4, 3, dtype=getattr(torch, dtype))
    if port == "nnx":
        return nnx.Conv(3, 4, (3, 3), param_dtype=dtype, rngs=nnx.Rngs(0))
    return linen.Conv(4, (3, 3)), {"params": {"kernel": jnp.zeros((3, 3, 3, 4), dtype), "bias": jnp.zeros(4, dtype)}}


@pytest.mark.sample(6)
@pytest.mark.parametrize(("first", "second"), DIRECTIONS)
@pytest.mark.parametrize("dtype", SPECIAL)
def test_special_values_keep_every_bit(dtype: str, first: str, second: str) -> None:
    source = special(dtype)
    values = source["weight"].ravel()[: len(SPECIAL[dtype])]
    with np.errstate(invalid="ignore"):
        assert (np.isnan(values).sum(), np.isinf(values).sum()) == (3, 2)
    with jax.enable_x64(True):
        there, back = (conv(port, dtype) for port in (first, second))
        there = moved(there, source)
        back = moved(back, read(there))
        assert same_bits(source, read(there))
        assert same_bits(source, read(back))


class LinenStock(linen.Module):
    def setup(self) -> None:
        self.bn = linen.BatchNorm(use_running_average=True)

    def __call__(self, x: Any) -> Any:
        return self.bn(x)


def test_the_counter_survives_where_flax_has_no_variable_for_it() -> None:
    source = {"bn.weight": np.ones(4, "f4"), "bn.bias": np.ones(4, "f4"), "bn.running_mean": np.ones(4, "f4")}
    source |= {"bn.running_var": np.ones(4, "f4"), "bn.num_batches_tracked": np.array(12345)}
    stock = nnx.Dict(bn=nnx.BatchNorm(4, rngs=nnx.Rngs(0)))
    assert same_bits(source, read(moved(stock, source)))
    module = LinenStock()
    net = (module, module.init(jax.random.key(0), jnp.zeros((2, 4))))
    after = moved(net, source)
    assert same_bits(source, read(after))
    module.apply(after[1], jnp.zeros((2, 4)))


def test_the_counter_of_a_stock_layer_outlives_what_one_does_with_a_network() -> None:
    def counter(net: Any) -> int:
        return int(read(net)["num_batches_tracked"])

    net = nnx.BatchNorm(4, rngs=nnx.Rngs(0))
    write(net, read(net) | {"num_batches_tracked": np.array(12345)})
    assert counter(nnx.clone(net)) == 12345
    graph, state = nnx.split(net)
    assert counter(nnx.merge(graph, jax.tree.map(lambda a: a * 2, state))) == 12345
    nnx.jit(lambda net, x: net(x))(net, jnp.ones((3, 4)))
    assert counter(net) == 12345


@pytest.mark.parametrize("port", ports.PORTS)
def test_the_order_of_names_does_not_matter(port: str) -> None:
    source = noise(read(blank(OPTION_A_NET, "pytorch")))
    backwards = dict(reversed(source.items()))
    assert list(backwards) != list(source)
    assert same_bits(source, read(moved(blank(OPTION_A_NET, port), backwards)))


@pytest.mark.parametrize("port", ports.PORTS)
def test_values_are_copied(port: str) -> None:
    source = noise(read(blank(OPTION_A_NET, "pytorch")))
    net = moved(blank(OPTION_A_NET, port), source)
    before = read(net)
    for array in source.values():
        array[...] = 1
    assert same_bits(before, read(net))
    for array in read(net).values():
        array[...] = 2
    assert same_bits(before, read(net))


def overwritten(net: Any) -> None:
    """Changes every weight of a network where it stands."""
    if isinstance(net, torch.nn.Module):
        with torch.no_grad():
            for tensor in net.state_dict().values():
                tensor.fill_(3)
    else:
        for variable in jax.tree.leaves(nnx.state(net), is_leaf=lambda v: isinstance(v, nnx.Variable)):
            variable[...] = jnp.full_like(variable[...], 3)


@pytest.mark.parametrize(("first", "second"), DIRECTIONS)
def test_networks_share_no_memory(first: str, second: str) -> None:
    """JAX may take the memory of an array that it is given, and numpy and PyTorch give theirs away."""
    source = noise(read(blank(OPTION_A_NET, "pytorch")))
    one = moved(blank(OPTION_A_NET, first), source)
    kept = read(one)
    other = moved(blank(OPTION_A_NET, second), kept)
    for changed, still in ((one, other), (other, one)):
        if not isinstance(changed, tuple):  # Linen's arrays cannot be changed
            overwritten(changed)
            assert not same_bits(source, read(changed))
            assert same_bits(source, kept)
            assert same_bits(source, read(still))
            write(changed, source)


@pytest.mark.parametrize("port", ports.PORTS)
def test_all_problems_at_once_and_nothing_is_written(port: str) -> None:
    net = blank(OPTION_A_NET, port)
    source = noise(read(net))
    source["layer1.0.conv3.weight"] = source.pop("layer1.0.conv2.weight")
    source["bn1.weight"] = np.ones(1, "f4")
    source["conv1.weight"] = source["conv1.weight"][:, :, :1, :1]
    source["fc.bias"] = source["fc.bias"].astype(np.float64)
    with pytest.raises(WeightsError) as raised:
        write(net, source)
    assert sorted(raised.value.problems) == [
        "bn1.weight: got shape (1,), expected (8,)",
        "conv1.weight: got shape (8, 3, 1, 1), expected (8, 3, 3, 3)",
        "fc.bias: got float64, which loses bits in the model's float32",
        "layer1.0.conv2.weight (8, 8, 3, 3): missing; nearest: layer1.0.conv3.weight (8, 8, 3, 3)",
        "layer1.0.conv3.weight (8, 8, 3, 3): no such tensor in the model; nearest: layer1.0.conv2.weight (8, 8, 3, 3)",
    ]
    assert not any(array.any() for array in read(net).values())


@pytest.mark.parametrize("port", ["nnx", "linen"])
def test_a_counter_that_does_not_fit(port: str) -> None:
    net = blank(OPTION_A_NET, port)
    source = noise(read(net)) | {"bn1.num_batches_tracked": np.array(2**40)}
    with pytest.raises(WeightsError, match=r"bn1\.num_batches_tracked: got 1099511627776"):
        write(net, source)
    assert not any(array.any() for array in read(net).values())


@pytest.mark.parametrize("port", ports.PORTS)
@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("bn1.weight", (1,)),
        ("bn1.weight", ()),
        ("bn1.weight", (1, 8)),
        ("conv1.weight", (8, 3, 1, 1)),
        ("conv1.weight", (1, 3, 3, 3)),
        ("conv1.weight", (3, 3, 3, 8)),  # NNX's own layout
        ("fc.weight", (16, 6)),  # the same numbers, transposed
        ("fc.weight", (96,)),
        ("bn1.num_batches_tracked", (1,)),
    ],
    ids=str,
)
def test_shapes_that_would_fit_by_chance(name: str, shape: tuple[int, ...], port: str) -> None:
    net = blank(OPTION_A_NET, port)
    source = read(net)
    expected = source[name].shape
    source[name] = np.zeros(shape, source[name].dtype)
    with pytest.raises(WeightsError) as raised:
        write(net, source)
    assert raised.value.problems == [f"{name}: got shape {shape}, expected {expected}"]


@pytest.mark.parametrize("port", ports.PORTS)
def test_exchanged_tensors_of_one_shape_stay_exchanged(port: str) -> None:
    """What is wrong in the source is not guessed right: a name is what decides."""
    source = noise(read(blank(OPTION_A_NET, "pytorch")))
    one, other = "layer1.0.conv1.weight", "layer1.0.conv2.weight"
    exchanged = source | {one: source[other], other: source[one]}
    assert not same_bits(source, exchanged)
    assert same_bits(exchanged, read(moved(blank(OPTION_A_NET, port), exchanged)))


class Tied(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = self.b = torch.nn.Linear(2, 2, bias=False)


class LinenTied(linen.Module):
    def setup(self) -> None:
        self.a = linen.Dense(2, use_bias=False)
        self.b = self.a

    def __call__(self, x: Any) -> Any:
        return self.b(self.a(x))


def tied(port: str) -> Any:
    if port == "pytorch":
        return Tied()
    if port == "nnx":
        layer = nnx.Linear(2, 2, use_bias=False, rngs=nnx.Rngs(0))
        return nnx.Dict(a=layer, b=layer)
    module = LinenTied()
    return module, module.init(jax.random.key(0), jnp.zeros((1, 2)))


@pytest.mark.parametrize("port", ports.PORTS)
def test_two_names_of_one_tensor(port: str) -> None:
    net = tied(port)
    same = {"a.weight": np.eye(2, dtype="f4"), "b.weight": np.eye(2, dtype="f4")}
    assert same_bits(same, read(moved(net, same)))
    before = read(net)
    with pytest.raises(WeightsError, match=r"b\.weight"):
        write(net, same | {"b.weight": np.ones((2, 2), "f4")})
    assert same_bits(before, read(net))


def test_types_widen() -> None:
    net = blank(OPTION_A_NET, "pytorch", "float64")
    source = read(blank(OPTION_A_NET, "pytorch"))
    write(net, source | {"fc.bias": np.full(6, 0.1, np.float32)})
    assert read(net)["fc.bias"].tolist() == [float(np.float32(0.1))] * 6


def test_linen_returns_new_variables() -> None:
    module, variables = blank(OPTION_A_NET, "linen")
    new = write((module, variables), noise(read((module, variables))))
    assert not any(np.asarray(leaf).any() for leaf in jax.tree.leaves(variables))
    assert all(any(np.asarray(leaf).tobytes()) for leaf in jax.tree.leaves(new))
    assert jax.tree.structure(new) == jax.tree.structure(variables)


@pytest.mark.parametrize("port", ports.PORTS)
def test_rules(port: str) -> None:
    net = blank(OPTION_A_NET, port)
    source = {f"module.{n}": a for n, a in noise(read(net)).items() if "num_batches" not in n}
    source["module.extra"] = np.zeros(3)
    rules = [
        Rename(r"^module\.", "", why="DataParallel"),
        Ignore("extra", why="not of this network"),
        Default("num_batches_tracked", 7, why="not saved"),
    ]
    found = read(moved(net, source, rules=rules))
    assert found["bn1.num_batches_tracked"] == 7
    assert found["fc.bias"].tobytes() == source["module.fc.bias"].tobytes()


def test_a_rule_that_ignores_too_much() -> None:
    net = blank(OPTION_A_NET, "pytorch")
    with pytest.raises(WeightsError, match=r"fc\.bias \(6,\): missing"):
        write(net, read(net), rules=[Ignore("fc.*", why="another classifier"), Default("fc.weight", 0, why="new")])


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("bn1.num_batches_tracked", 7.5),
        ("bn1.num_batches_tracked", np.nan),
        ("bn1.num_batches_tracked", 2**70),
        ("fc.bias", np.ones(5, np.float32)),
        ("fc.bias", np.ones(1, np.float32)),
        ("fc.bias", "zero"),
    ],
    ids=["fraction", "nan", "too-large", "shape", "broadcast", "text"],
)
@pytest.mark.filterwarnings("ignore:invalid value encountered in cast:RuntimeWarning")
def test_a_default_that_does_not_fit(name: str, value: Any) -> None:
    """A rule's value is held to what a tensor is held to: only a single number fills a tensor."""
    net = blank(OPTION_A_NET, "pytorch")
    source = read(net)
    del source[name]
    with pytest.raises(WeightsError, match=rf"{name}.*\(not saved\)"):
        write(net, source, rules=[Default(name, value, why="not saved")])


@pytest.mark.usefixtures("no_type_checks")
@pytest.mark.parametrize(
    ("rule", "said"),
    [
        (Ignore("nothing", why="x"), r"Ignore\('nothing'\): matches nothing"),
        (Default("fc.bias", 0, why="x"), r"Default\('fc.bias'\): matches nothing"),
        (Rename("nothing", "", why="x"), r"Rename\('nothing'\): matches nothing"),
        (Rename(r"fc\.bias", "bn1.bias", why="x"), r"renamed to bn1.bias, which another tensor has"),
        (Rename(r"bn1\.bias", "fc.bias", why="x"), r"renamed to fc.bias, which another tensor has"),
        (Ignore("nothing", why="built, never called"), r"\(built, never called\)"),
        (Rename(r"(bn1", "", why="x"), r"Rename\('\(bn1'"),
        (Rename(r"bn1", r"\2", why="x"), r"Rename\('bn1'"),
        ("num_batches_tracked", r"expected Ignore, Default or Rename"),
    ],
    ids=str,
)
def test_rules_that_are_wrong(rule: Any, said: str) -> None:
    net = blank(OPTION_A_NET, "pytorch")
    with pytest.raises(WeightsError, match=said):
        write(net, read(net), rules=[rule])


@pytest.mark.parametrize(
    "net",
    [{}, None, torch.nn.Linear, LinenStock(), (LinenStock(), None), ({}, LinenStock())],
    ids=["dict", "none", "class", "module-without-variables", "variables-none", "wrong-way-round"],
)
def test_what_is_not_a_network(net: Any) -> None:
    with pytest.raises(
        WeightsError, match=r"expected a torch.nn.Module, an nnx.Module or Linen's \(module, variables\)"
    ):
        read(net)
    with pytest.raises(WeightsError, match=r"expected a torch\.nn\.Module"):
        write(net, {})


def without_values(kind: str) -> Any:
    if kind == "meta":
        return torch.nn.Linear(2, 2, device="meta")
    if kind == "lazy":
        return torch.nn.LazyLinear(2)
    if kind == "nnx":
        return nnx.eval_shape(lambda: nnx.Linear(2, 2, rngs=nnx.Rngs(0)))
    partitioned = linen.with_partitioning(linen.initializers.ones, ("rows", "columns"))
    module = linen.Dense(2, kernel_init=partitioned if kind == "boxed" else linen.initializers.ones)
    if kind == "boxed":
        return module, module.init(jax.random.key(0), jnp.zeros((1, 2)))
    return module, jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, 2)))


@pytest.mark.usefixtures("no_type_checks")
@pytest.mark.parametrize("kind", ["meta", "lazy", "nnx", "linen", "boxed"])
def test_a_network_without_values_cannot_be_read(kind: str) -> None:
    with pytest.raises(WeightsError, match="weight"):
        read(without_values(kind))


class ExtraState(torch.nn.Linear):
    def get_extra_state(self) -> dict[str, int]:
        return {"version": 3}


def test_what_is_no_tensor_in_a_state_dict_is_named() -> None:
    with pytest.raises(WeightsError, match="_extra_state"):
        read(ExtraState(2, 2))


@pytest.mark.usefixtures("no_type_checks")
@pytest.mark.parametrize("weights", [None, "resnet50.pth"], ids=["none", "path"])
def test_what_is_not_weights(weights: Any) -> None:
    with pytest.raises(WeightsError, match="expected a dict"):
        write(torch.nn.Linear(2, 2), weights)


@pytest.mark.usefixtures("no_type_checks")
@pytest.mark.parametrize(
    "value",
    [[[1], [1, 2]], None, object(), "text", torch.nn.Parameter(torch.ones(2, 2)), torch.ones(2, 2).bfloat16()],
    ids=["ragged", "none", "object", "text", "a-parameter", "bfloat16-tensor"],
)
def test_values_that_are_no_arrays(value: Any) -> None:
    layer = torch.nn.Linear(2, 2)
    with pytest.raises(WeightsError, match=r"weight: got"):
        write(layer, read(layer) | {"weight": value})


DTYPES: list[Any] = [np.float16, np.float32, np.float64, np.complex64, np.int8, np.int16, np.int32, np.int64, np.uint8]
DTYPES += [np.bool_, ml_dtypes.bfloat16, ml_dtypes.float8_e5m2, ml_dtypes.float8_e4m3fn]


@given(st.sampled_from(DTYPES), st.binary(min_size=48, max_size=48), st.permutations(range(3)), st.booleans())
def test_any_bits_travel_through_torch(dtype: Any, bits: bytes, axes: list[int], contiguous: bool) -> None:
    array = np.frombuffer(bits, np.uint8)
    array = (array % 2).astype(bool) if dtype is np.bool_ else array.view(dtype)
    array = array.reshape(1, 2, -1).transpose(axes)
    array = np.ascontiguousarray(array) if contiguous else array
    back = to_numpy(to_torch(array))
    assert (back.dtype, back.shape, back.tobytes()) == (array.dtype, array.shape, array.tobytes())


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: np.dtype(d).name)
@pytest.mark.parametrize("shape", [(), (0,), (2, 0, 3)], ids=str)
def test_scalars_and_empty_tensors_travel_through_torch(shape: tuple[int, ...], dtype: Any) -> None:
    back = to_numpy(to_torch(np.ones(shape, dtype)))
    assert (back.dtype, back.shape) == (np.dtype(dtype), shape)
    assert np.all(back == np.ones(shape, dtype))


WIDENS = (
    [np.float16, np.float32, np.float64],
    [ml_dtypes.bfloat16, np.float32, np.float64],
    [np.uint8, np.int16, np.int64],
)


@pytest.mark.parametrize(("small", "large"), [pair for chain in WIDENS for pair in pairwise(chain)])
def test_types_widen_and_never_narrow(small: Any, large: Any) -> None:
    value = np.arange(3).astype(small)
    wide = lossless(value, np.dtype(large))
    assert wide is not None
    assert wide.dtype == large
    assert np.array_equal(wide.astype(small), value)
    beyond = np.iinfo(large).max if np.dtype(large).kind == "i" else 1.1
    assert lossless(np.full(3, beyond, large), np.dtype(small)) is None
