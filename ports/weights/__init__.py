"""Weights of live models through one torch form: `dict[str, numpy.ndarray]` with PyTorch's names and layouts.

    weights = ports.weights.read(net)      # torch.nn.Module, nnx.Module, or Linen's (module, variables)
    ports.weights.write(net, weights)      # all or nothing; for Linen it returns the new variables

Each framework has one reader and one writer, so six directions come out of three pairs. The package has eight rooms; a
room imports only rooms above it in this table:

| room           | what it holds                                                            | imports                  |
|----------------|--------------------------------------------------------------------------|--------------------------|
| `form/`        | the torch form: strict matching of names, shapes and types; lazy tensors | -                        |
| `layers/`      | a row per layer type: which Flax variable is which PyTorch tensor        | -                        |
| `live/`        | reads and writes live models: `pytorch.py`, `nnx.py`, `linen.py`         | form, layers             |
| `optimizer/`   | states of live optimizers, and the table of known optimizers             | form, live               |
| `files/`       | opens and writes files as trees of arrays; a module per format           | form, live               |
| `known/`       | networks and dialects, and how a file is recognised as one of them       | form, layers             |
| `rules/`       | rules for other networks in TOML, and a first draft of them              | form, layers, known      |
| `checkpoints/` | a file in the torch form: `load`, `save`, `convert`, `inspect`           | all but live             |

Importing this package loads neither torch nor jax.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ports.errors import UserError
from ports.frameworks import Live, Net, port_of
from ports.weights.checkpoints.checkpoint import open_checkpoint
from ports.weights.checkpoints.convert import convert
from ports.weights.checkpoints.loading import load, save
from ports.weights.form.torch_form import Default, Ignore, Rename, Rule, WeightsError, fold_recurrent_biases
from ports.weights.layers.kinds import register
from ports.weights.layers.leaves import Leaf

__all__ = [
    "Default",
    "Ignore",
    "Leaf",
    "Rename",
    "Rule",
    "WeightsError",
    "convert",
    "fold_recurrent_biases",
    "load",
    "open_checkpoint",
    "read",
    "register",
    "save",
    "write",
]


def read(net: Net, *, copy: bool = True) -> dict[str, np.ndarray]:
    """Return all weights and statistics of a live model, with PyTorch's names and layouts, bit for bit.

    Args:
        net: a `torch.nn.Module`, an `nnx.Module`, or the pair `(module, variables)` of Linen.
        copy: False gives views of the model's own memory, wherever its values have this form there. Then a later
            training step, or any other write into the model, changes the views, and your writes into the views change
            the model.

    Raises:
        WeightsError: a layer with parameters has no rule.
    """
    return _live(net).read(net, copy)


def write(net: Net, weights: Mapping[str, np.ndarray], *, rules: Sequence[Rule] = (), copy: bool = True) -> Any:
    """Write weights into a live model: every given tensor is used once, and every tensor of the model is set once.

    Nothing is written unless everything fits. Values are copied. A type may widen (float32 into a float64 model), but
    never lose bits.

    Args:
        net: as in `read`.
        weights: the torch form, as `read` gives it.
        rules: tensors that are ignored, renamed or filled in on purpose, each with its reason.
        copy: False puts the arrays themselves into a Flax model (through dlpack, with permuted axes, without moving
            data) if JAX computes on the CPU and can take them. The memory is then shared. JAX assumes that its arrays
            are constant, so a later write into `weights`, or into the PyTorch model from which `read(…, copy=False)`
            took them, changes the Flax model during its computations. Read-only use is safe: inference in both. Arrays
            that cannot be shared (another type, memory that is not aligned to 64 bytes) are copied.

    Returns:
        None for PyTorch and NNX, which are changed in place; the new variables for Linen.

    Raises:
        WeightsError: all problems at once, each with name, shape and the nearest candidate; `copy=False` for a PyTorch
            model, whose optimizer would write into arrays that JAX takes to be constant.
    """
    return _live(net).write(net, weights, rules, copy)


def _live(net: Net) -> Live:
    """Return the module that reads and writes `net`."""
    try:
        return port_of(net).live
    except UserError as error:
        raise WeightsError(str(error)) from None
