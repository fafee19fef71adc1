"""Weights of live models through one torch form: `dict[str, numpy.ndarray]` with PyTorch's names and layouts.

    weights = ports.weights.read(net)      # torch.nn.Module, nnx.Module, or Linen's (module, variables)
    ports.weights.write(net, weights)      # all or nothing; for Linen it returns the new variables

Each framework has one reader and one writer, so six directions come out of three pairs. The package has eight rooms; a
room imports only rooms that stand above it:

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
    """All weights and statistics of a live model, with PyTorch's names and layouts, every bit kept.

    Args:
        net: a `torch.nn.Module`, an `nnx.Module`, or the pair `(module, variables)` of Linen.
        copy: False gives views of the model's own memory wherever its values lie there as they are: a later step of
            training, or whatever else writes into the model, shows through, and what you write into them it has.

    Raises:
        WeightsError: a layer with parameters has no rule.
    """
    return _live(net).read(net, copy)


def write(net: Net, weights: Mapping[str, np.ndarray], *, rules: Sequence[Rule] = (), copy: bool = True) -> Any:
    """Puts weights into a live model: every tensor given is used once and every one of the model's is set once.

    Nothing is written unless all is well. Values are copied. A type may widen (float32 into a float64 model), never
    lose bits.

    Args:
        net: as in `read`.
        weights: the torch form, as `read` gives it.
        rules: what is ignored, renamed or filled in on purpose, each with its reason.
        copy: False puts the arrays themselves into a Flax model (through dlpack, the axes permuted, nothing moved)
            where JAX computes on the CPU and can take them. They are aliased: JAX takes its arrays to be constant, so
            whoever writes into `weights` afterwards, or into the PyTorch model that `read(…, copy=False)` had them
            from, changes the Flax model in the middle of what it computes. Read-only use is safe: inference in both.
            What cannot be shared (another type, memory that is not aligned to 64 bytes) is copied.

    Returns:
        None for PyTorch and NNX, which are changed in place; the new variables for Linen.

    Raises:
        WeightsError: all problems at once, each with name, shape and the nearest candidate; `copy=False` for a PyTorch
            model, whose optimizer would write into arrays that JAX takes to be constant.
    """
    return _live(net).write(net, weights, rules, copy)


def _live(net: Net) -> Live:
    """The module that reads and writes `net`."""
    try:
        return port_of(net).live
    except UserError as error:
        raise WeightsError(str(error)) from None
