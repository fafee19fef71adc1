"""keras.applications' ResNet-50, on JAX and on PyTorch.

This is He et al.'s own network, with the stride on the first 1x1 convolution and not on the 3x3. It is compared with a
PyTorch network of that description (`Subject.changes`). Its convolutions have biases, which are zero here: before a
BatchNorm they have no effect. Its epsilon is 1.001e-5.
"""

# pyright: reportMissingImports=false

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import PyTree

from benchmarks.subjects.case import NetworkCase
from benchmarks.subjects.peers import kernel, same
from benchmarks.subjects.subject import SubjectOptions
from ports.families import inputs_of, layers
from ports.family import Layer

if TYPE_CHECKING:
    from benchmarks.subjects.jax_steps import JaxRun
    from benchmarks.subjects.torch_steps import TorchRun


def keras_name(layer: Layer) -> str:
    """What keras.applications calls a layer of ResNet-50."""
    fields = {key: value + 1 for key, value in layer.fields.items() if key in ("stage", "block", "i")}
    stage = {"at": f"conv{fields.get('stage', 0) + 1}_block{fields.get('block', 0)}"}
    names = {
        "stem.conv": "conv1_conv",
        "bn1": "conv1_bn",
        "conv": "{at}_{i}_conv",
        "bn": "{at}_{i}_bn",
        "shortcut.conv": "{at}_0_conv",
        "shortcut.bn": "{at}_0_bn",
        "fc": "predictions",
    }
    return names[layer.role].format(**{**fields, **stage})


LEAVES = {
    "conv": (("kernel", "weight", kernel),),
    "linear": (("kernel", "weight", kernel), ("bias", "bias", same)),
    "batch_norm": (
        ("gamma", "weight", same),
        ("beta", "bias", same),
        ("moving_mean", "running_mean", same),
        ("moving_variance", "running_var", same),
    ),
}


def keras_model(case: NetworkCase, backend: str, channels: str) -> tuple[Any, Any]:
    """Return the model with the case's weights, and what reads them."""
    os.environ["KERAS_BACKEND"] = backend
    import keras

    keras.config.set_image_data_format(channels)
    if case.setting.precision == "bfloat16":
        keras.config.set_dtype_policy("mixed_bfloat16")
    ((_, depth, *size),) = (images.shape for images in inputs_of(case.spec, 1, case.setting.size))
    shape = (*size, depth) if channels == "channels_last" else (depth, *size)
    model = keras.applications.ResNet50(
        weights=None, input_shape=shape, classes=case.spec.num_classes, classifier_activation=None
    )
    rows = [(layer, model.get_layer(keras_name(layer))) for layer in layers(case.spec)]
    for layer, own in rows:
        for name, leaf, turned in LEAVES[layer.type]:
            getattr(own, name).assign(np.ascontiguousarray(turned(case.weights[f"{layer.torch}.{leaf}"])))

    def read() -> Mapping[str, np.ndarray]:
        found = dict(case.weights)
        for layer, own in rows:
            for name, leaf, turned in LEAVES[layer.type]:
                value = keras.ops.convert_to_numpy(getattr(own, name))
                found[f"{layer.torch}.{leaf}"] = turned(value, back=True)
        return found

    return model, read


def build_torch(case: NetworkCase, options: SubjectOptions) -> TorchRun:
    """Build it on PyTorch, with channels first, which needs no transpose."""
    from benchmarks.subjects.torch_steps import TorchRun

    model, read = keras_model(case, "torch", "channels_first")
    train = case.setting.mode == "training"
    return TorchRun(case, model, read, options, lambda images: model(images, training=train))


def build_jax(case: NetworkCase, options: SubjectOptions) -> JaxRun:
    """Build it on JAX, under `jax.jit`, with the stateless call that Keras has for custom training loops."""
    import jax

    from benchmarks.subjects.jax_steps import policy, stateless

    policy(case.setting)
    model, read = keras_model(case, "jax", "channels_last")
    groups = (model.trainable_variables, model.non_trainable_variables)
    params, rest = ([jax.numpy.array(variable.value) for variable in group] for group in groups)

    def current(params: PyTree[jax.Array], rest: PyTree[jax.Array]) -> Mapping[str, np.ndarray]:
        for variables, values in zip(groups, (params, rest), strict=True):
            for variable, value in zip(variables, values, strict=True):
                variable.assign(value)
        return read()

    def forward(params: PyTree, rest: PyTree, images: jax.Array, train: bool) -> tuple[jax.Array, PyTree]:
        return model.stateless_call(params, rest, images, training=train)

    return stateless(case, forward, params, rest, current, options.tune)
