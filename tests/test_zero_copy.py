"""Weights that two live models share, where the user asks for it; and that nothing is shared where nobody asked."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
import pytest
import torch
from small import BASIC_NET

import ports
from ports.weights import WeightsError, read, write

FLAX = ("nnx", "linen")


def flax_net(port: str, weights: dict[str, np.ndarray], copy: bool) -> Any:
    net = ports.create(BASIC_NET, port, seed=None)
    variables = write(net, weights, copy=copy)
    return net if variables is None else (net[0], variables)


def kernel(net: Any) -> np.ndarray:
    """Of the first convolution, read anew."""
    value = net[1]["params"]["conv1"]["kernel"] if isinstance(net, tuple) else net.conv1.kernel.get_value()
    return np.asarray(jax.numpy.array(value))


def set_first(net: torch.nn.Module, number: float) -> None:
    with torch.no_grad():
        net.conv1.weight[0, 0, 0, 0] = number  # pyright: ignore
        net.bn1.bias[0] = number  # pyright: ignore


@pytest.mark.parametrize("port", FLAX)
def test_a_shared_weight_shows_what_pytorch_writes(port: str) -> None:
    net = ports.create(BASIC_NET, "pytorch", seed=0)
    shared = flax_net(port, read(net, copy=False), copy=False)
    set_first(net, 123.0)
    assert kernel(shared)[0, 0, 0, 0] == 123.0


@pytest.mark.parametrize("port", FLAX)
@pytest.mark.parametrize(("first", "second"), [(True, True), (False, True), (True, False)])
def test_a_copy_on_either_side_shares_nothing(port: str, first: bool, second: bool) -> None:
    net = ports.create(BASIC_NET, "pytorch", seed=0)
    before = read(net)
    other = flax_net(port, read(net, copy=first), copy=second)
    set_first(net, 123.0)
    after = read(other)
    assert all(after[name].tobytes() == array.tobytes() for name, array in before.items())


@pytest.mark.parametrize("port", FLAX)
def test_shared_weights_are_the_same_bits_and_compute_the_same(port: str) -> None:
    weights = read(ports.create(BASIC_NET, "pytorch", seed=0), copy=False)
    shared, copied = (flax_net(port, weights, copy) for copy in (False, True))
    for (name, a), b in zip(read(shared).items(), read(copied).values(), strict=True):
        assert a.tobytes() == b.tobytes() == weights[name].tobytes(), name
    x = np.random.default_rng(0).standard_normal((1, 32, 32, 3)).astype(np.float32)
    results = [n(x) if port == "nnx" else n[0].apply(n[1], x) for n in map(evaluated, (shared, copied))]
    assert np.allclose(*results, rtol=1e-5)


def evaluated(net: Any) -> Any:
    if not isinstance(net, tuple):
        net.eval()
    return net


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_types_that_cannot_be_shared_are_copied(dtype: str) -> None:
    net = torch.nn.Linear(4, 4).to(getattr(torch, dtype))
    from flax import nnx

    port = nnx.Linear(4, 4, param_dtype=dtype, rngs=nnx.Rngs(0))
    write(port, read(net, copy=False), copy=False)
    assert all(a.tobytes() == b.tobytes() for a, b in zip(read(net).values(), read(port).values(), strict=True))


def test_weights_that_may_not_be_written_are_copied() -> None:
    weights = read(ports.create(BASIC_NET, "pytorch", seed=0), copy=False)
    for array in weights.values():
        array.flags.writeable = False
    assert (
        kernel(flax_net("nnx", weights, copy=False)).tobytes()
        == np.ascontiguousarray(np.moveaxis(weights["conv1.weight"], (0, 1), (-1, -2))).tobytes()
    )


def test_a_pytorch_model_does_not_take_shared_weights() -> None:
    net = ports.create(BASIC_NET, "pytorch", seed=0)
    with pytest.raises(WeightsError, match="copy=False: got a PyTorch model, expected a Flax model"):
        write(net, read(net), copy=False)
