"""The networks are plain: what a framework offers for its own layers works on every named network.

Most tests trace and compute nothing, so that every network is cheap; small networks of each kind compute, too.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx, traverse_util
from networks import NETWORKS as KINDS
from networks import forward, images, randomised, twin
from torch import nn

import ports
from parity.numerics.layouts import first
from ports import NETWORKS, families
from ports.building.classes import network_class
from ports.building.nnx import one_key
from ports.building.pytorch import meta_inputs, skeleton
from ports.families import get, layers
from ports.weights.known.fold import pairs

FLAX = ["nnx", "linen"]

# SHA-256 of the names, shapes and types of every network's tensors at commit 23b2a9d.
TREES: dict[str, dict[str, str]] = json.loads((Path(__file__).parent / "data" / "trees.json").read_text())

# One of each kind of block, shortcut and stem.
FEW = ["basic", "bottleneck", "preact", "preact_bottleneck", "basic-zero_pad", "basic-pooled_projection", "stem-deep"]
FEW += ["dilated-bottleneck", "tutorial_net", "tutorial_resnet-four_convs", "features_only"]


# ---- names


# One of each kind of network. The others have the same code, with more blocks or wider ones: they run nightly.
KINDS_OF_NETWORKS = ("resnet18", "resnext50_32x4d", "resnet50d", "cifar_resnet20", "wrn_40_4", "tutorial_net")
KINDS_OF_NETWORKS += ("tutorial_resnet", "encoder_small", "vit_b_32", "gpt2")


def others_nightly(names: Iterable[str]) -> list[Any]:
    return [name if name in KINDS_OF_NETWORKS else pytest.param(name, marks=pytest.mark.nightly) for name in names]


def digest(lines: list[str]) -> str:
    return hashlib.sha256("".join(f"{line}\n" for line in lines).encode()).hexdigest()


def tree(name: str, port: str) -> list[str]:
    net = ports.create(name, port, seed=None) if port != "nnx" else abstract_nnx(name)
    if port == "pytorch":
        state = net.state_dict().items()
        return [f"{k} {tuple(t.shape)} {str(t.dtype).removeprefix('torch.')}" for k, t in state]
    if port == "nnx":
        flat = nnx.to_flat_state(nnx.state(net))
        return sorted(f"{'.'.join(map(str, k))} {v.shape} {v.dtype} {type(v).__name__}" for k, v in flat)
    arrays: Any = traverse_util.flatten_dict(net[1], sep=".")
    return sorted(f"{k} {a.shape} {a.dtype}" for k, a in arrays.items())


@pytest.mark.sample(2)
@pytest.mark.parametrize("name", TREES)
def test_every_network_has_the_tensors_that_it_always_had(name: str) -> None:
    """Checkpoints of the first releases load."""
    assert {port: digest(tree(name, port)) for port in ports.PORTS} == TREES[name]


# ---- PyTorch


def size_of(spec: Any) -> tuple[int, ...]:
    """The size of a small input: of an image an odd height and an even width, where the network takes any."""
    any_size = families.takes_images(spec) and families.takes_any_size(spec)
    step = families.size_step(spec)
    return ((33, 32) if step == 1 else (2 * step, step)) if any_size else families.example_size(spec)


def output_shape(spec: Any, batch: int, port: str) -> tuple[int, ...]:
    """The shape of the logits: of every target one for each class."""
    targets = families.targets_of(spec, batch, size_of(spec)).shape
    channels_first = port == "pytorch" and families.takes_images(spec)
    return (targets[0], spec.num_classes, *targets[1:]) if channels_first else (*targets, spec.num_classes)


@pytest.mark.sample(4)
@pytest.mark.usefixtures("no_type_checks")
@pytest.mark.parametrize("name", others_nightly(NETWORKS))
def test_fx_traces_and_layers_fuse(name: str) -> None:
    spec = get(name)
    net = skeleton(spec).eval()
    (x,) = meta_inputs(spec, 2, size_of(spec))
    assert first(torch.fx.symbolic_trace(net)(x)).shape == output_shape(spec, 2, "pytorch")
    found = [[conv, norm] for norm, conv in pairs(layers(spec)).items()]
    fused = torch.ao.quantization.fuse_modules(net, found) if found else net
    left = [m for m in fused.modules() if isinstance(m, nn.BatchNorm2d)]
    assert len(left) == sum(layer.type == "batch_norm" for layer in layers(spec)) - len(found)
    assert first(fused(x)).shape == output_shape(spec, 2, "pytorch")


# The shape of a packed sequence depends on the lengths of the texts: `torch.export` takes none.
PACKED = ("lstm_layer", "gru_layer")
EXPORTED = [name for name, spec in NETWORKS.items() if not any(layer.type in PACKED for layer in layers(spec))]


@pytest.mark.sample(1)
@pytest.mark.parametrize("name", others_nightly(EXPORTED))
def test_torch_export_takes_it(name: str) -> None:
    spec = get(name)
    (x,) = meta_inputs(spec, 2, size_of(spec))
    program = torch.export.export(skeleton(spec).eval(), (x,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    convolutions = sum("conv2d" in str(node.target) for node in program.graph.nodes)
    assert convolutions == sum(layer.type == "conv" for layer in layers(spec))


@pytest.mark.usefixtures("no_type_checks")
@pytest.mark.parametrize("kind", FEW)
def test_what_fx_traces_and_what_is_fused_computes_the_same(kind: str) -> None:
    net = randomised(KINDS[kind], "float64")
    x = torch.from_numpy(images(KINDS[kind])).double()
    found = [[conv, norm] for norm, conv in pairs(layers(KINDS[kind])).items()]
    with torch.no_grad():
        expected = outputs(net(x))
        for other in (torch.fx.symbolic_trace(net), torch.ao.quantization.fuse_modules(net, found)):
            for got, wanted in zip(outputs(other(x)), expected, strict=True):
                torch.testing.assert_close(got, wanted, rtol=1e-12, atol=1e-12)


def outputs(result: Any) -> tuple[Any, ...]:
    return result if isinstance(result, tuple) else (result,)


def test_they_are_the_frameworks_own_layers() -> None:
    """By their exact classes: tools look for these."""
    for name in ("resnet50", "resnet50d", "preact_resnet110", "tutorial_net"):
        modules = list(skeleton(get(name)).modules())
        assert {type(m) for m in modules if isinstance(m, nn.Conv2d)} == {nn.Conv2d}
        convs = [m for _, m in nnx.iter_modules(abstract_nnx(name)) if isinstance(m, nnx.Conv)]
        assert {type(m) for m in convs} == {nnx.Conv}
        assert {m.conv_general_dilated for m in convs} == {jax.lax.conv_general_dilated}


# ---- Flax


@functools.cache
def abstract_nnx(name: str) -> Any:
    net = nnx.eval_shape(lambda: network_class(get(name), "nnx")(get(name), rngs=one_key()))
    net.eval()
    return net


def abstract(name: str, port: str) -> tuple[Callable[[Any, Any], Any], Any]:
    """A network in eval mode as a function of its variables and images, and the shapes of the variables."""
    if port == "nnx":
        graphdef, state = nnx.split(abstract_nnx(name))
        return lambda state, x: nnx.merge(graphdef, state)(x), state
    module = network_class(get(name), "linen")(get(name))
    key = jax.eval_shape(jax.random.key, 0)
    return module.apply, jax.eval_shape(module.init, key, abstract_input(name))


def abstract_input(name: str, *leading: int) -> jax.ShapeDtypeStruct:
    """One example in Flax's layout."""
    (given,) = families.inputs_of(get(name), 1, size_of(get(name)))
    shape = (1, *given.shape[2:], given.shape[1]) if len(given.shape) == 4 else given.shape
    return jax.ShapeDtypeStruct((*leading, *shape), jnp.float32 if given.below is None else jnp.int32)


@pytest.mark.sample(1)
@pytest.mark.parametrize("port", FLAX)
@pytest.mark.parametrize("name", others_nightly(NETWORKS))
def test_jax_differentiates_maps_and_lowers_it_for_two_platforms(name: str, port: str) -> None:
    whole, variables = abstract(name, port)
    x, shape = abstract_input(name), output_shape(get(name), 1, port)

    def call(v: Any, x: Any) -> Any:
        return first(whole(v, x))

    def scaled(v: Any, x: Any, scale: Any) -> Any:
        """The outputs with other images, or where the input is tokens with other parameters."""
        if jnp.issubdtype(x.dtype, jnp.floating):
            return call(v, x * scale)
        return call(jax.tree.map(lambda a: a * scale if jnp.issubdtype(a.dtype, jnp.floating) else a, v), x)

    def forward_mode(v: Any, x: Any) -> Any:
        return jax.jacfwd(lambda scale: scaled(v, x, scale))(1.0)

    def hessian_vector(v: Any, x: Any) -> Any:
        return jax.jvp(jax.grad(lambda scale: scaled(v, x, scale).sum()), (1.0,), (1.0,))[1]

    assert jax.eval_shape(forward_mode, variables, x).shape == shape
    assert jax.eval_shape(hessian_vector, variables, x).shape == ()
    stacked = abstract_input(name, 3)
    assert jax.eval_shape(jax.vmap(call, (None, 0)), variables, stacked).shape == (3, *shape)
    exported = jax.export.export(jax.jit(call), platforms=("cpu", "cuda"))(variables, abstract_input(name))
    assert exported.platforms == ("cpu", "cuda")
    convolutions = sum(layer.type == "conv" for layer in layers(get(name)))
    assert exported.mlir_module().count("stablehlo.convolution") >= convolutions


@pytest.mark.sample(1)
@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("port", FLAX)
@pytest.mark.parametrize("kind", ["basic", "preact_bottleneck", "bottleneck-groups", "tutorial_resnet"])
def test_forward_mode_is_reverse_mode(kind: str, port: str) -> None:
    with jax.enable_x64(True):
        net = twin(randomised(KINDS[kind], "float64"), port, dtype="float64")
        x = jnp.array(images(KINDS[kind]).transpose(0, 2, 3, 1), jnp.float64)
        v = jnp.array(np.random.default_rng(1).standard_normal(x.shape))
        if port == "nnx":
            net.eval()
        call: Any = net if port == "nnx" else (lambda x: net[0].apply(net[1], x))
        loss = lambda x: jnp.sin(call(x)).sum()  # noqa: E731

        @jax.jit
        def both(x: Any) -> Any:
            gradient = jax.grad(loss)
            forward_over_reverse = jax.jvp(gradient, (x,), (v,))[1]
            reverse_over_reverse = jax.grad(lambda x: (gradient(x) * v).sum())(x)
            each = jax.vmap(lambda one: call(one[None])[0])(x)
            return (
                jax.jvp(loss, (x,), (v,))[1],
                (gradient(x) * v).sum(),
                forward_over_reverse,
                reverse_over_reverse,
                each,
            )

        directional, product, hvp, expected, each = both(x)
        np.testing.assert_allclose(directional, product, rtol=1e-10)
        np.testing.assert_allclose(hvp, expected, rtol=1e-8, atol=1e-10 * float(jnp.abs(expected).max()))
        assert float(jnp.abs(expected).max()) > 0
        np.testing.assert_allclose(each, call(x), rtol=1e-9, atol=1e-12)


# ---- ports.fast


@pytest.mark.sample(1)
@pytest.mark.parametrize("port", ports.PORTS)
def test_fast_networks_compute_the_same_under_the_same_names(port: str) -> None:
    """1x1 convolutions with a stride, groups, and 3x3 convolutions that are large enough for Winograd's filtering."""
    spec = get("resnet50", base_width=64, groups=2, num_classes=7, stages=get("resnet50").stages[:2])
    spec = get(spec, stages=tuple(type(s)(s.channels, 1, s.stride) for s in spec.stages))
    with jax.enable_x64(True):
        plain = twin(randomised(spec, "float64"), port, dtype="float64")
        x = images(spec, size=(65, 64))
        expected, _ = forward(plain, x, dtype="float64")
        names = list(ports.weights.read(plain))
        fast = ports.fast.use(plain)
        found, _ = forward(fast, x, dtype="float64")
        assert list(ports.weights.read(fast)) == names
        np.testing.assert_allclose(found[0], expected[0], rtol=1e-11, atol=1e-12)
        again = ports.fast.use(fast)
        assert type(again) is type(fast)
        zeros: Any = jnp.zeros((2, 65, 64, 3))
        if port == "linen":
            program = str(jax.make_jaxpr(lambda x: fast[0].apply(fast[1], x))(zeros))
        elif port == "nnx":
            program = str(jax.make_jaxpr(fast)(zeros))
        else:
            program = "platform_index" if any(type(m).__name__ == "FastConv2d" for m in fast.modules()) else ""
    assert "platform_index" in program


def test_fast_refuses_what_is_not_a_network() -> None:
    with pytest.raises(ports.UserError, match=r"got builtins\.dict, expected a torch\.nn\.Module"):
        ports.fast.use({})


def test_fast_leaves_a_convolution_of_ones_own_alone() -> None:
    class Own(nn.Conv2d):
        pass

    net = ports.fast.use(nn.Sequential(Own(3, 4, 1), nn.Conv2d(4, 5, 1)))
    assert [type(m).__name__ for m in net] == ["Own", "FastConv2d"]
    layer: Any = nnx.Conv(3, 4, (1, 1), conv_general_dilated=jax.lax.conv, rngs=nnx.Rngs(0))
    assert ports.fast.use(layer).conv_general_dilated is jax.lax.conv
