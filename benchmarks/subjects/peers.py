"""Peers in PyTorch and JAX: networks that people might use instead, with the same weights, inputs and gate.

Sources of the names: torchvision's and timm's resnet.py have this package's; Hugging Face transformers'
modeling_resnet.py in `ports.weights.known.dialects`; dm-haiku's nets/resnet.py below. dm-haiku pads 'SAME', which
equals PyTorch's padding if every halved size is odd: with images of 225 pixels, but not with 224.
"""

# pyright: reportMissingImports=false

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import PyTree

from benchmarks.subjects.case import NetworkCase
from benchmarks.subjects.subject import SubjectOptions
from ports.families import inputs_of, layers
from ports.family import Layer

if TYPE_CHECKING:
    from torch import nn

    from benchmarks.subjects.jax_steps import JaxRun
    from benchmarks.subjects.torch_steps import TorchRun


def build_transformers(case: NetworkCase, options: SubjectOptions) -> TorchRun:
    """Hugging Face's `ResNetForImageClassification`, whose defaults are ResNet-50."""
    import torch
    from transformers import ResNetConfig, ResNetForImageClassification

    from benchmarks.subjects.torch_steps import TorchRun
    from ports.weights.known.dialects import DIALECTS, mapping
    from ports.weights.live.pytorch import to_numpy

    config: Any = ResNetConfig
    net = ResNetForImageClassification(config(num_labels=case.spec.num_classes))
    names = {entry.names[0]: entry.torch for entry in mapping(case.spec, DIALECTS["transformers"])}
    net.load_state_dict({name: torch.from_numpy(np.array(case.weights[own])) for name, own in names.items()})

    def read() -> Mapping[str, np.ndarray]:
        return {names[name]: to_numpy(tensor) for name, tensor in net.state_dict().items()}

    return TorchRun(case, net, read, options, call=lambda images: net(images).logits)


def _same_names(case: NetworkCase, net: nn.Module, options: SubjectOptions) -> TorchRun:
    """A network that has torchvision's names."""
    import ports
    from benchmarks.subjects.torch_steps import TorchRun

    ports.weights.write(net, case.weights)
    return TorchRun(case, net, lambda: ports.weights.read(net), options)


def _without_dropout(net: nn.Module) -> nn.Module:
    """Return the network without dropout: the ports have none, and both compute the same."""
    import torch

    for module in net.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return net


def build_torchvision(case: NetworkCase, options: SubjectOptions) -> TorchRun:
    from benchmarks.subjects.torchvision_import import torchvision

    auxiliary = getattr(case.spec, "auxiliary", None)  # of segmentation networks
    heads = {} if auxiliary is None else {"aux_loss": auxiliary, "weights_backbone": None}
    net = torchvision().models.get_model(case.setting.network, weights=None, **heads)
    return _same_names(case, _without_dropout(net), options)


def build_timm(case: NetworkCase, options: SubjectOptions) -> TorchRun:
    from benchmarks.subjects.torchvision_import import torchvision

    torchvision()  # timm imports it
    import timm

    return _same_names(case, timm.create_model(case.setting.network, pretrained=False), options)


def build_segmentation_models(case: NetworkCase, options: SubjectOptions) -> TorchRun:
    """segmentation_models_pytorch's `Unet`."""
    from benchmarks.subjects.torchvision_import import torchvision

    torchvision()  # timm, which it is built on, imports it
    import segmentation_models_pytorch as smp

    net = smp.Unet(case.setting.network.removeprefix("unet_"), encoder_weights=None, classes=case.spec.num_classes)
    return _same_names(case, net, options)


def build_decoder(case: NetworkCase, options: SubjectOptions) -> TorchRun:
    """The class of Hugging Face's transformers, such as `GPT2LMHeadModel`."""
    import ports
    from benchmarks.subjects.torch_steps import TorchRun
    from benchmarks.subjects.transformers_decoders import original

    net = original(case.spec)
    ports.weights.write(net, case.weights)
    return TorchRun(case, net, lambda: ports.weights.read(net), options, lambda text: net(text, use_cache=False).logits)


def haiku_name(layer: Layer, network: str) -> str:
    """What dm-haiku calls a layer of this package's networks."""
    at, fields = f"{network}/~/block_group_{{stage}}/~/block_{{block}}/~/", layer.fields
    names = {
        "stem.conv": f"{network}/~/initial_conv",
        "bn1": f"{network}/~/initial_batchnorm",
        "conv": f"{at}conv_{{i}}",
        "bn": f"{at}batchnorm_{{i}}",
        "shortcut.conv": f"{at}shortcut_conv",
        "shortcut.bn": f"{at}shortcut_batchnorm",
        "fc": f"{network}/~/logits",
    }
    return names[layer.role].format(**fields)


def build_haiku(case: NetworkCase, options: SubjectOptions) -> JaxRun:
    """dm-haiku's `hk.nets.ResNet50` (or 18, or 152), transformed, under `jax.jit`."""
    import haiku as hk
    import jax
    import jax.numpy as jnp

    from benchmarks.subjects.jax_steps import policy, stateless

    policy(case.setting)
    if case.setting.precision == "bfloat16":
        half = jmp_policy()
        hk.mixed_precision.set_policy(hk.Conv2D, half)
        hk.mixed_precision.set_policy(hk.Linear, half)
    number = case.setting.network.removeprefix("resnet")
    network = f"res_net{number}"

    def forward(images: jax.Array, train: bool) -> jax.Array:
        settings = {"decay_rate": 0.9, "eps": 1e-5}
        return getattr(hk.nets, f"ResNet{number}")(case.spec.num_classes, bn_config=settings)(images, is_training=train)

    net = hk.without_apply_rng(hk.transform_with_state(forward))
    (images,) = inputs_of(case.spec, 1, case.setting.size)
    one = jnp.zeros((1, *images.shape[2:], images.shape[1]))
    shapes = jax.eval_shape(lambda: net.init(jax.random.key(0), one, train=True))
    params, state = (
        {module: {n: jnp.zeros(a.shape, a.dtype) for n, a in own.items()} for module, own in tree.items()}
        for tree in shapes
    )
    rows = layers(case.spec)
    for layer in rows:
        own, torch_name = haiku_name(layer, network), layer.torch
        for name, leaf, turned in _haiku_leaves(layer):
            array = case.weights[f"{torch_name}.{leaf}"]
            params[own][name] = jnp.array(turned(array).reshape(params[own][name].shape))
        if layer.type == "batch_norm":
            for kind, leaf in (("mean_ema", "running_mean"), ("var_ema", "running_var")):
                average = state[f"{own}/~/{kind}"]
                value = jnp.array(case.weights[f"{torch_name}.{leaf}"]).reshape(average["average"].shape)
                average.update(average=value, hidden=value, counter=jnp.array(10_000, average["counter"].dtype))

    def read(params: PyTree[jax.Array], _: PyTree[jax.Array]) -> Mapping[str, np.ndarray]:
        found = dict(case.weights)
        for layer in rows:
            own = haiku_name(layer, network)
            for name, leaf, turned in _haiku_leaves(layer):
                value = np.asarray(params[own][name])
                found[f"{layer.torch}.{leaf}"] = turned(value, back=True).reshape(layer.shapes[leaf])
        return found

    def apply(params: PyTree, state: PyTree, x: jax.Array, train: bool) -> tuple[jax.Array, PyTree]:
        return net.apply(params, state, x, train=train)

    return stateless(case, apply, params, state, read, options.tune)


def jmp_policy() -> Any:
    """dm-haiku's mixed precision: parameters in float32, products in bfloat16, as this package's ports."""
    import jax.numpy as jnp
    import jmp

    return jmp.Policy(compute_dtype=jnp.bfloat16, param_dtype=jnp.float32, output_dtype=jnp.bfloat16)


def kernel(array: np.ndarray, back: bool = False) -> np.ndarray:
    """(out, in, height, width) and (height, width, in, out); of a linear layer (out, in) and (in, out)."""
    if array.ndim == 2:
        return array.T
    return array.transpose(3, 2, 0, 1) if back else array.transpose(2, 3, 1, 0)


def same(array: np.ndarray, back: bool = False) -> np.ndarray:
    return array


def _haiku_leaves(layer: Layer) -> list[tuple[str, str, Any]]:
    """dm-haiku's name of each parameter, PyTorch's, and the layout."""
    if layer.type == "batch_norm":
        return [("scale", "weight", same), ("offset", "bias", same)]
    return [("w", "weight", kernel), *([("b", "bias", same)] if "bias" in layer.shapes else [])]
