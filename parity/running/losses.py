"""Losses in both frameworks, which are differentiated to compare gradients."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
import torch

from parity.numerics.layouts import leaves, to_flax, to_reference
from parity.numerics.quantities import Loss
from parity.running.raised import OF_OUTPUTS, raising
from ports.objective import Objective


def of_family(objective: Objective, targets: np.ndarray) -> Loss:
    """The training objective of a family's networks.

    Args:
        targets: as `objective.targets` describes them.
    """
    in_torch, in_flax = objective.in_torch(), objective.in_flax()
    return Loss(
        lambda values: in_torch(values, torch.as_tensor(targets)),
        lambda _: lambda values: in_flax(values, jnp.array(targets)),
    )


def projection(seed: int) -> Loss:
    """The mean of every output times fixed random numbers: every element of every output counts with its own weight."""

    def weights(name: str, shape: tuple[int, ...]) -> np.ndarray:
        return np.random.default_rng([seed, 4, *name.encode()]).standard_normal(shape)

    def in_torch(values: Any) -> Any:
        parts = [
            (value * torch.as_tensor(weights(name, tuple(value.shape))).to(value.dtype)).mean()
            for name, value in leaves(values, "output")
            if value.is_floating_point()
        ]
        return torch.stack(parts).sum()

    def in_flax(layouts: Mapping[str, str]) -> Callable[[Any], Any]:
        def loss(values: Any) -> Any:
            total = jnp.zeros(())
            for name, value in leaves(values, "output"):
                if jnp.issubdtype(value.dtype, jnp.floating):
                    layout = layouts[name]
                    shape = to_reference(np.broadcast_to(0.0, value.shape), layout).shape
                    total += (value * jnp.array(to_flax(weights(name, shape), layout))).mean()
            return total

        return loss

    return Loss(in_torch, in_flax)


def given(in_torch: Callable[[Any], Any], in_flax: Callable[[Any], Any]) -> Loss:
    """A user's own."""

    def told(values: Any) -> Any:
        with raising("the loss in Flax", values, OF_OUTPUTS):
            return in_flax(values)

    return Loss(in_torch, lambda _: told)
