"""The same networks in PyTorch, Flax NNX and Flax Linen, and weights that move between them without losing a bit.

    net = ports.create("resnet50", "pytorch", seed=0)              # torch.nn.Module, NCHW
    net = ports.create("resnet50", "nnx", seed=0)                  # nnx.Module, NHWC
    module, variables = ports.create("resnet50", "linen", seed=0)  # module.apply(variables, x, train=False), NHWC

`import ports` loads no framework; a port is imported when a network of it is created.
"""

from __future__ import annotations

import importlib
from typing import Any

from ports import export, families, fast, weights
from ports.errors import UserError
from ports.families import NETWORKS
from ports.frameworks import FRAMEWORKS as PORTS

__all__ = ["NETWORKS", "PORTS", "UserError", "create", "export", "families", "fast", "weights"]


def create(name: Any, port: str, *, seed: int | None = 0, dtype: str = "float32", **changes: Any) -> Any:
    """Create a named network, or one that you describe, in one framework.

    Args:
        name: one of `ports.NETWORKS`, or a description of one of `ports.families.FAMILIES`.
        port: `pytorch` gives a `torch.nn.Module`, `nnx` an `nnx.Module`, `linen` a pair of module and variables.
        seed: of the initial weights; the ports draw them with their own generators, from the same distributions. None
            leaves them at zero, for a network whose weights you write next.
        dtype: `float32`, `float64` (in JAX inside `with jax.enable_x64(True)`) or `bfloat16` (BatchNorm in float32).
        changes: fields of the description, such as `num_classes=10`, `features_only=True`, `output_stride=8`.

    Raises:
        UserError: unknown network, port, option or dtype.
    """
    if port not in PORTS:
        raise UserError(f"unknown port {port!r}; expected one of {', '.join(PORTS)}")
    spec = families.get(name, **changes)
    return importlib.import_module(f"ports.building.{port}").create(spec, seed=seed, dtype=dtype)
