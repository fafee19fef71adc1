"""Weights between live models: every bit in all six directions, strict both ways, all or nothing."""

from __future__ import annotations

from itertools import permutations
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
from ports.resnet.spec import NETWORKS, ResNetSpec
from ports.weights import Default, Ignore, Rename, WeightsError, read, write
from ports.weights.pytorch import to_numpy, to_torch

Weights = dict[str, np.ndarray]

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


@pytest.mark.parametrize("spec", NETS, ids=lambda s: s.name)
@pytest.mark.parametrize(("first", "second"), list(permutations(ports.PORTS, 2)))
def test_round_trip_gives_every_bit_back(spec: ResNetSpec, first: str, second: str) -> None:
    source = noise(read(blank(spec, "pytorch")))
    there = read(moved(blank(spec, first), source))
    back = read(moved(blank(spec, first), read(moved(blank(spec, second), there))))
    assert same_bits(source, there)
    assert same_bits(source, back)


@pytest.mark.parametrize("port", ["nnx", "linen"])
def test_round_trip_in_float64(port: str) -> None:
    source = noise(read(blank(OPTION_A_NET, "pytorch", "float64")))
    with jax.enable_x64(True):
        net = blank(OPTION_A_NET, port, "float64")
    assert same_bits(source, read(moved(net, source)))


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
    source = read(net) | {"bn1.num_batches_tracked": np.array(2**40)}
    with pytest.raises(WeightsError, match=r"bn1\.num_batches_tracked: got 1099511627776"):
        write(net, source)


def test_types_widen() -> None:
    net = blank(OPTION_A_NET, "pytorch", "float64")
    source = read(blank(OPTION_A_NET, "pytorch"))
    write(net, source | {"fc.bias": np.full(6, 0.1, np.float32)})
    assert read(net)["fc.bias"].tolist() == [float(np.float32(0.1))] * 6


def test_linen_returns_new_variables() -> None:
    module, variables = blank(OPTION_A_NET, "linen")
    new = write((module, variables), noise(read((module, variables))))
    assert not any(np.asarray(leaf).any() for leaf in jax.tree.leaves(variables))
    assert jax.tree.structure(new) == jax.tree.structure(variables)


def test_rules() -> None:
    net = blank(OPTION_A_NET, "pytorch")
    source = {f"module.{n}": a for n, a in noise(read(net)).items() if "num_batches" not in n}
    source["module.extra"] = np.zeros(3)
    rules = [
        Rename(r"^module\.", "", why="DataParallel"),
        Ignore("extra", why="not of this network"),
        Default("num_batches_tracked", 7, why="not saved"),
    ]
    write(net, source, rules=rules)
    assert read(net)["bn1.num_batches_tracked"] == 7
    assert read(net)["fc.bias"].tobytes() == source["module.fc.bias"].tobytes()


@pytest.mark.parametrize(
    ("rule", "said"),
    [
        (Ignore("nothing", why="x"), r"Ignore\('nothing'\): matches nothing"),
        (Default("fc.bias", 0, why="x"), r"Default\('fc.bias'\): matches nothing"),
        (Rename("nothing", "", why="x"), r"Rename\('nothing'\): matches nothing"),
        (Rename(r"fc\.bias", "bn1.bias", why="x"), r"renamed to bn1.bias, which another tensor has"),
        (Rename(r"bn1\.bias", "fc.bias", why="x"), r"renamed to fc.bias, which another tensor has"),
    ],
    ids=str,
)
def test_rules_that_are_wrong(rule: Any, said: str) -> None:
    net = blank(OPTION_A_NET, "pytorch")
    with pytest.raises(WeightsError, match=said):
        write(net, read(net), rules=[rule])


@pytest.mark.parametrize("net", [{}, None, LinenStock()], ids=["dict", "none", "module-without-variables"])
def test_what_is_not_a_network(net: Any) -> None:
    with pytest.raises(
        WeightsError, match=r"expected a torch.nn.Module, an nnx.Module or Linen's \(module, variables\)"
    ):
        read(net)


DTYPES = [np.float16, np.float32, np.float64, np.int64, np.uint8, np.bool_, ml_dtypes.bfloat16, ml_dtypes.float8_e5m2]


@given(st.sampled_from(DTYPES), st.binary(min_size=8, max_size=64))
def test_any_bits_travel_through_torch(dtype: Any, bits: bytes) -> None:
    array = np.frombuffer(bits[: len(bits) // 8 * 8], np.uint8)
    array = (array % 2).astype(bool) if dtype is np.bool_ else array.view(dtype)
    back = to_numpy(to_torch(array))
    assert (back.dtype, back.tobytes()) == (array.dtype, array.tobytes())
