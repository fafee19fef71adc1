"""Hugging Face transformers' Flax classes, which its releases before 5 have: a Vision Transformer and GPT-2.

Sources of the names: transformers 4.57's modeling_flax_vit.py and modeling_flax_gpt2.py. The Vision Transformer's
weights have torchvision's names here (`ports.vit`), so `VIT` says what transformers calls them.
"""

# pyright: reportMissingImports=false

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import PyTree

from benchmarks.subjects.case import NetworkCase
from benchmarks.subjects.peers import kernel, same
from benchmarks.subjects.subject import SubjectOptions
from benchmarks.subjects.transformers_decoders import gpt2_fields
from ports.families import layers
from ports.family import Layer

if TYPE_CHECKING:
    import jax

    from benchmarks.subjects.jax_steps import JaxRun

# By layer type: the parameter's name in Flax, in PyTorch, and the layout.
LEAVES: Mapping[str, tuple[tuple[str, str, Any], ...]] = {
    "conv": (("kernel", "weight", kernel), ("bias", "bias", same)),
    "linear": (("kernel", "weight", kernel), ("bias", "bias", same)),
    "conv1d": (("kernel", "weight", kernel), ("bias", "bias", same)),
    "layer_norm": (("scale", "weight", same), ("bias", "bias", same)),
    "embedding": (("embedding", "weight", same),),
    "tensor": (("", "", same),),
}

# What transformers calls the roles of torchvision's Vision Transformer; `{at}` is a layer's place.
VIT = {
    "class_token": "vit.embeddings.cls_token",
    "pos_embedding": "vit.embeddings.position_embeddings",
    "conv_proj": "vit.embeddings.patch_embeddings.projection",
    "ln_1": "{at}.layernorm_before",
    "ln_2": "{at}.layernorm_after",
    "mlp.0": "{at}.intermediate.dense",
    "mlp.3": "{at}.output.dense",
    "ln": "vit.layernorm",
    "head": "classifier",
}


def build_vit(case: NetworkCase, options: SubjectOptions) -> JaxRun:
    """`FlaxViTForImageClassification`'s module, under `jax.jit`."""
    import jax.numpy as jnp
    from transformers import ViTConfig
    from transformers.models.vit.modeling_flax_vit import FlaxViTForImageClassificationModule

    from benchmarks.subjects.jax_steps import dtype

    spec: Any = case.spec
    described: Any = ViTConfig
    config = described(
        hidden_size=spec.width,
        num_hidden_layers=spec.depth,
        num_attention_heads=spec.heads,
        intermediate_size=spec.hidden,
        image_size=spec.input_size,
        patch_size=spec.patch_size,
        layer_norm_eps=1e-6,
        num_labels=spec.num_classes,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    module = FlaxViTForImageClassificationModule(config, dtype=jnp.dtype(dtype(case.setting)))

    def logits(params: PyTree, images: jax.Array, train: bool) -> jax.Array:
        return module.apply({"params": params}, images, deterministic=not train).logits

    return _under_jit(case, list(_vit_leaves(case)), logits, options)


def build_gpt2(case: NetworkCase, options: SubjectOptions) -> JaxRun:
    """`FlaxGPT2LMHeadModel`'s module, under `jax.jit`."""
    import jax.numpy as jnp
    from transformers import GPT2Config
    from transformers.models.gpt2.modeling_flax_gpt2 import FlaxGPT2LMHeadModule

    from benchmarks.subjects.jax_steps import dtype

    config = GPT2Config(**gpt2_fields(case.spec))
    module = FlaxGPT2LMHeadModule(config, dtype=jnp.dtype(dtype(case.setting)))

    def logits(params: PyTree, text: jax.Array, train: bool) -> jax.Array:
        positions = jnp.broadcast_to(jnp.arange(text.shape[1]), text.shape)
        variables = {"params": params}
        return module.apply(variables, text, jnp.ones_like(text), positions, deterministic=not train).logits

    found = [
        (f"{layer.torch}.{flax}", f"{layer.torch}.{name}", turned)
        for layer in layers(case.spec)
        if not layer.tied
        for flax, name, turned in LEAVES[layer.type]
    ]
    return _under_jit(case, found, logits, options)


def _vit_leaves(case: NetworkCase) -> Iterator[tuple[str, str, Any]]:
    """Yield each parameter's path in transformers, its name here (with `[part]` of three), and its layout."""
    for layer in layers(case.spec):
        at = "vit.encoder.layer." + "".join(layer.keys).rpartition("_")[2]
        if layer.type == "attention":
            for part, own in enumerate(("query", "key", "value")):
                for flax, leaf, turned in (("kernel", "in_proj_weight", kernel), ("bias", "in_proj_bias", same)):
                    yield f"{at}.attention.attention.{own}.{flax}", f"{layer.torch}.{leaf}[{part}]", turned
            for flax, leaf, turned in (("kernel", "weight", kernel), ("bias", "bias", same)):
                yield f"{at}.attention.output.dense.{flax}", f"{layer.torch}.out_proj.{leaf}", turned
            continue
        own = VIT[_role(layer)].format(at=at)
        for flax, leaf, turned in LEAVES[layer.type]:
            yield f"{own}.{flax}".rstrip("."), f"{layer.torch}.{leaf}".rstrip("."), turned


def _role(layer: Layer) -> str:
    """Return the role, with its index where two layers have one role."""
    return layer.torch.partition(f"{layer.keys[0]}.")[2] or layer.role if layer.keys else layer.role


def _under_jit(case: NetworkCase, found: list[tuple[str, str, Any]], logits: Any, options: SubjectOptions) -> JaxRun:
    """Return a run whose parameters have the case's weights.

    Args:
        found: as `_vit_leaves` yields them.
        logits: a function of parameters, input and whether it is training.
    """
    import jax.numpy as jnp

    from benchmarks.subjects.jax_steps import policy, stateless

    policy(case.setting)
    params: dict[str, Any] = {}
    for path, name, turned in found:
        *parents, leaf = path.split(".")
        node = params
        for parent in parents:
            node = node.setdefault(parent, {})
        node[leaf] = jnp.array(turned(_part(case.weights, name)))

    def read(params: PyTree, _: PyTree) -> Mapping[str, np.ndarray]:
        weights = {name: np.array(array) for name, array in case.weights.items()}
        for path, name, turned in found:
            node = params
            for key in path.split("."):
                node = node[key]
            _part(weights, name)[...] = turned(np.asarray(node), back=True)
        return weights

    def apply(params: PyTree, state: PyTree, x: jax.Array, train: bool) -> tuple[jax.Array, PyTree]:
        return logits(params, x, train), state

    return stateless(case, apply, params, {}, read, options.tune)


def _part(weights: Mapping[str, np.ndarray], name: str) -> np.ndarray:
    """Return a view of a tensor, or of one third of it: `attention.in_proj_weight[1]`."""
    name, _, part = name.partition("[")
    array = weights[name]
    return array.reshape(3, -1, *array.shape[1:])[int(part.rstrip("]"))] if part else array
