"""Builds a pair from one configuration, with PyTorch's weights brought over by the package's own converter.

That converter is what users call (`from_pretrained(..., from_pt=True)`), and knows nothing of this project.
"""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import jax.numpy as jnp
import torch
from flax.traverse_util import flatten_dict, unflatten_dict

from .twin import Pair, Twin

SEED = 0


def transformers_pair(twin: Twin, config: Any) -> Pair:
    """Return both of transformers' classes, dropout as the configuration has it."""
    package = importlib.import_module("transformers")
    converter = importlib.import_module("transformers.modeling_flax_pytorch_utils")
    with older_names():
        torch.manual_seed(SEED)
        reference = getattr(package, twin.model)(config).eval()
        shape = {} if twin.shape is None else {"input_shape": twin.shape}
        port = getattr(package, f"Flax{twin.model}")(config, seed=SEED, **shape)
        variables = converter.convert_pytorch_state_dict_to_flax(reference.state_dict(), port)
    variables = used(dict(variables), port.params)
    variables = dict(variables) if "params" in variables else {"params": variables}
    return Pair(reference, (given(port.module, twin.added), variables))


def used(variables: Mapping[str, Any], declared: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arrays that the Flax model declares: `from_pretrained` drops all others, such as a tied output layer.

    Raises:
        KeyError: a declared one that the converter did not give.
    """
    arrays = flatten_dict(dict(variables))
    return unflatten_dict({path: arrays[path] for path in flatten_dict(dict(declared))})


def given(module: Any, added: Mapping[str, Any]) -> Any:
    """Return a Linen module that is called with these keywords besides; itself where there are none.

    A subclass adds no scope, so that the names of the layers stay.
    """
    if not added:
        return module
    kind = type(module)

    def call(self: Any, deterministic: bool = True, **keywords: Any) -> Any:
        return kind.__call__(self, deterministic=deterministic, **added, **keywords)

    fields = [f.name for f in dataclasses.fields(module) if f.init and f.name not in ("parent", "name")]
    subclass = type(kind.__name__, (kind,), {"__call__": call, "__module__": kind.__module__})
    return subclass(**{name: getattr(module, name) for name in fields})


# Names of arguments in older releases of JAX, and those of today.
OLDER = {"clip": {"a_min": "min", "a_max": "max"}, "reshape": {"newshape": "shape"}}


@contextmanager
def older_names() -> Iterator[None]:
    """Let functions of `jax.numpy` take the names of arguments that JAX 0.10 no longer knows."""
    originals = {name: getattr(jnp, name) for name in OLDER}

    def taking(name: str) -> Callable[..., Any]:
        def call(*arguments: Any, **keywords: Any) -> Any:
            return originals[name](*arguments, **{OLDER[name].get(key, key): one for key, one in keywords.items()})

        return call

    for name in OLDER:
        setattr(jnp, name, taking(name))
    try:
        yield
    finally:
        for name, original in originals.items():
            setattr(jnp, name, original)


def diffusers_pair(twin: Twin, config: Mapping[str, Any]) -> Pair:
    """Return both of diffusers' classes, each from the same settings."""
    package = importlib.import_module("diffusers")
    converter = importlib.import_module("diffusers.models.modeling_flax_pytorch_utils")
    torch.manual_seed(SEED)
    reference = getattr(package, twin.model)(**config).eval()
    module = getattr(package, f"Flax{twin.model}")(**config)
    params = converter.convert_pytorch_state_dict_to_flax(reference.state_dict(), module)
    return Pair(reference, (given(module, twin.added), {"params": params}))
