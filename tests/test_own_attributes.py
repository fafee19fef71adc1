"""Models of other people that happen to look like this package's own: an attribute or a class of the same name."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import linen, nnx

import parity
from parity.numerics.quantities import Probe
from parity.running import inventory, losses
from parity.running.flax_ports import FLAX_PORTS
from ports import weights
from ports.errors import UserError
from ports.weights import Leaf, register
from ports.weights.layers import kinds, leaves

pytestmark = pytest.mark.usefixtures("quick")


class Described(torch.nn.Module):
    """A model with an attribute `spec`, whose ReLUs change what the layers before them gave."""

    def __init__(self) -> None:
        super().__init__()
        self.spec = {"width": 8}
        self.first, self.second, self.relu = torch.nn.Linear(4, 8), torch.nn.Linear(8, 8), torch.nn.ReLU(inplace=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.relu(self.second(self.relu(self.first(x))))


class Twin(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.first, self.second = nnx.Linear(4, 8, rngs=rngs), nnx.Linear(8, 8, rngs=rngs)

    def __call__(self, x: Any) -> Any:
        return nnx.relu(self.second(nnx.relu(self.first(x))))


def test_a_model_with_an_attribute_spec_is_anybodys() -> None:
    """Its in-place activations are recorded as they were, not as ReLU left them."""
    torch.manual_seed(0)
    model, x = Described(), np.random.default_rng(0).standard_normal((3, 4))
    report = parity.check(model, parity.move(model, Twin(nnx.Rngs(0)), x), x)
    assert report, str(report)


class Scale(torch.nn.Module):
    """A layer of one's own: a matrix and a shift."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.bias = (torch.nn.Parameter(torch.randn(shape)) for shape in ((4, 4), (4,)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.weight + self.bias


class Linear(nnx.Module):
    """The same, under the name of a class of Flax's that has other variables, in another layout."""

    def __init__(self) -> None:
        self.weight, self.bias = nnx.Param(jnp.zeros((4, 4))), nnx.Param(jnp.zeros(4))

    def __call__(self, x: Any) -> Any:
        return x @ self.weight[...] + self.bias[...]


class Turned(nnx.Module):
    """The same, with its matrix transposed."""

    def __init__(self) -> None:
        self.kernel, self.bias = nnx.Param(jnp.zeros((4, 4))), nnx.Param(jnp.zeros(4))

    def __call__(self, x: Any) -> Any:
        return x @ self.kernel[...].T + self.bias[...]


class RMSNorm(linen.Module):
    """The same in Linen, under another name of Flax's."""

    @linen.compact
    def __call__(self, x: Any) -> Any:
        weight = self.param("weight", linen.initializers.zeros, (4, 4))
        return x @ weight + self.param("bias", linen.initializers.zeros, (4,))


class Chain(nnx.Module):
    def __init__(self, layer: nnx.Module) -> None:
        self.first, self.scale = nnx.Linear(4, 4, rngs=nnx.Rngs(0)), layer

    def __call__(self, x: Any) -> Any:
        return self.scale(self.first(x))


class InTorch(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.scale = torch.nn.Linear(4, 4), Scale()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.scale(self.first(x))


def rule(_: Any) -> tuple[Leaf, ...]:
    return leaves.same("weight", "weight"), leaves.same("bias", "bias")


def turned(_: Any) -> tuple[Leaf, ...]:
    return leaves.linear(None)


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kinds, "REGISTERED", [])


X = np.random.default_rng(1).standard_normal((3, 4))


def test_a_class_of_ones_own_does_not_get_the_rule_of_flax() -> None:
    torch.manual_seed(1)
    model = InTorch()
    report = parity.check(model, parity.move(model, Chain(Linear()), X), X)
    assert report, str(report)


def test_a_class_of_ones_own_does_not_get_the_rule_of_flax_in_linen() -> None:
    torch.manual_seed(1)
    model, module = Scale(), RMSNorm()
    variables = module.init(jax.random.key(0), jnp.array(X))
    report = parity.check(model, parity.move(model, (module, variables), X), X)
    assert report, str(report)


@pytest.mark.usefixtures("registered")
@pytest.mark.parametrize(("layer", "known"), [(Linear, rule), (Turned, turned)])
@pytest.mark.parametrize("by_name", [False, True])
def test_a_rule_for_a_layer_of_ones_own_keeps_a_pair_that_passed(layer: Any, known: Any, by_name: bool) -> None:
    register(f"{layer.__module__}.{layer.__qualname__}" if by_name else layer, known)
    torch.manual_seed(1)
    model = InTorch()
    moved = parity.move(model, Chain(layer()), X)
    report = parity.check(model, moved, X)
    assert report, str(report)


@pytest.mark.usefixtures("registered")
def test_a_wrong_rule_for_a_layer_of_ones_own_is_seen() -> None:
    """Planted: the matrix is transposed in use, and the rule says that it is not."""
    register(Turned, lambda _: (leaves.same("weight", "kernel"), leaves.same("bias", "bias")))
    torch.manual_seed(1)
    model = InTorch()
    report = parity.check(model, parity.move(model, Chain(Turned()), X), X)
    assert not report
    assert {row.quantity for row in report.models[0].rows if not row.ok} >= {"output.eval"}


class Mixed(torch.nn.Module):
    """Two layers of one's own, of one shape, whose names a port does not keep."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = Scale(), Scale()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.tanh(self.second(torch.relu(self.first(x))))


class MixedTwin(nnx.Module):
    def __init__(self) -> None:
        self.above, self.below = Turned(), Turned()

    def __call__(self, x: Any) -> Any:
        return jnp.tanh(self.above(nnx.relu(self.below(x))))


class TurnedInLinen(linen.Module):
    @linen.compact
    def __call__(self, x: Any) -> Any:
        kernel = self.param("kernel", linen.initializers.zeros, (4, 4))
        return x @ kernel.T + self.param("bias", linen.initializers.zeros, (4,))


class MixedInLinen(linen.Module):
    def setup(self) -> None:
        self.above, self.below = TurnedInLinen(), TurnedInLinen()

    def __call__(self, x: Any) -> Any:
        return jnp.tanh(self.above(nnx.relu(self.below(x))))


def mixed_in(port: str) -> Any:
    if port == "nnx":
        return MixedTwin()
    module = MixedInLinen()
    return module, module.init(jax.random.key(0), jnp.array(X, jnp.float32))


def turned_back(_: Any) -> tuple[Leaf, ...]:
    return Leaf("weight", ("kernel",), lambda w: (w.T,), lambda k: k[0].T), leaves.same("bias", "bias")


def of_its_groups(port: str, model: torch.nn.Module, flax_model: Any) -> list[set[str]]:
    """The kinds of layer that the check pairs by, on each side."""
    fed = Probe((X,), losses.projection(0))
    row = FLAX_PORTS[port]
    sides = (
        inventory.of_torch(model.double(), fed, weights.read(model)),
        row.inventory(row.promote(flax_model, "float64"), fed, row.modules(flax_model, fed)),
    )
    return [{layer.kind for layer in side} for side in sides]


@pytest.mark.sample(2)
@pytest.mark.usefixtures("registered")
@pytest.mark.parametrize("port", ["nnx", "linen"])
@pytest.mark.parametrize("by_name", [False, True])
def test_one_row_for_a_layer_on_both_sides_serves_conversion_and_check(port: str, by_name: bool) -> None:
    torch.manual_seed(1)
    model, flax_model = Mixed(), mixed_in(port)
    flax_types = (Turned, TurnedInLinen)
    if by_name:
        name_of = kinds._qualified
        register([name_of(cls) for cls in flax_types], turned_back, torch=name_of(Scale), name="mixing")
    else:
        register(flax_types, turned_back, torch=Scale, name="mixing")
    with jax.enable_x64(True):
        assert of_its_groups(port, Mixed(), mixed_in(port)) == [{"mixing"}, {"mixing"}]
    moved = parity.move(model, flax_model, X)
    tensors = weights.read(model)
    renamed = {n.replace("first", "below").replace("second", "above"): a.tobytes() for n, a in tensors.items()}
    assert {n: a.tobytes() for n, a in weights.read(moved).items()} == renamed
    report = parity.check(model, moved, X)
    assert report, str(report)


@pytest.mark.usefixtures("registered")
@pytest.mark.parametrize("port", ["nnx", "linen"])
def test_a_wrong_row_for_a_layer_on_both_sides_is_seen(port: str) -> None:
    """Planted: the row says that the matrix is not transposed."""
    register((Turned, TurnedInLinen), lambda _: (leaves.same("weight", "kernel"), rule(_)[1]), torch=Scale)
    torch.manual_seed(1)
    model = Mixed()
    names = {"first": "below", "second": "above"}
    report = parity.check(model, parity.move(model, mixed_in(port), X, names=names), X, names=names)
    assert not report
    assert {row.quantity for row in report.models[0].rows if not row.ok} >= {"output.eval"}


@pytest.mark.usefixtures("registered")
def test_a_row_with_the_name_of_another_pairs_with_it() -> None:
    """A PyTorch layer of one's own against Flax's: both are linear layers."""
    register(Turned, turned_back, name="linear")
    register(linen.RMSNorm, leaves.affine, torch=Scale, name="layer_norm")
    assert [row.pairs_as for row in kinds.REGISTERED] == ["linear", "affine"]
    found = [kinds.kind_of(layer) for layer in (Turned(), Scale(), torch.nn.Linear(1, 1))]
    assert [row.pairs_as for row in found if row] == ["linear", "affine", "linear"]


def test_a_bare_name_is_no_class() -> None:
    with pytest.raises(UserError, match="got the bare name 'Scaled', expected the class itself or its qualified name"):
        register("Scaled", rule)
    with pytest.raises(UserError, match="got the bare name 'Scaled'"):
        register(Turned, rule, torch="Scaled")


# An option that a check does not use is an error, whichever kind of check it is.


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"batch": 99}, "batch: only for a named network or live networks of this package"),
        ({"images": "/nonexistent"}, "images: only for a named network or live networks of this package"),
        ({"image_size": (8, 8)}, "image_size: only for a named network or live networks of this package"),
        ({"ports": ("linen",)}, "ports: only for a named network"),
        ({"weights": {"first.weight": X}}, "weights: only for a named network"),
    ],
)
def test_a_pair_of_ones_own_takes_no_option_of_a_named_network(options: Any, said: str) -> None:
    with pytest.raises(UserError) as raised:
        parity.check(InTorch(), Chain(Linear()), X, **options)
    assert str(raised.value) == f"got two live models with inputs after them: {said}"


def test_all_unused_options_are_named_at_once() -> None:
    unused: Any = {"batch": 99, "images": "/nonexistent", "ports": ("linen",)}
    with pytest.raises(UserError, match=r"ports: only for a named network; images, batch: only for"):
        parity.check(InTorch(), Chain(Linear()), X, **unused)


@pytest.mark.parametrize(
    "options",
    [
        {"names": {"a": "b"}},
        {"loss": (abs, abs)},
        {"layouts": {"input": "same"}},
        {"keywords": {"a": 1}},
        {"accept": ("x",)},
    ],
)
def test_a_named_network_takes_no_option_of_a_pair(options: Any) -> None:
    name = next(iter(options))
    with pytest.raises(UserError, match=f"got a named network: {name}: only for two live models"):
        parity.check("cifar_resnet20", **options)


@pytest.mark.nightly
def test_live_networks_take_no_option_of_named_ones() -> None:
    import ports

    nets = [ports.create("tutorial_net", kind) for kind in ("pytorch", "nnx")]
    with pytest.raises(UserError, match="got live networks of this package: ports: only for a named network"):
        parity.check_network(*nets, ports=("nnx",))


def test_the_command_refuses_what_a_pair_does_not_use(tmp_path: Any, capsys: pytest.CaptureFixture[str]) -> None:
    from parity.commands.cli import main

    file = tmp_path / "pair.py"
    file.write_text(
        "import torch\nfrom flax import nnx\nimport numpy as np\ndef make():\n    return torch.nn.Linear(2, 2), "
        "nnx.Linear(2, 2, rngs=nnx.Rngs(0)), np.ones((1, 2))\n"
    )
    assert main(["check", f"{file}:make", "--batch", "9", "--image-size", "8"]) == 2
    error = capsys.readouterr().err
    assert "image_size, batch: only for a named network or live networks of this package" in error
    assert error.count("\n") == 1
