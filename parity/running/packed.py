"""Packed sequences of PyTorch as padded arrays, which ports have in their place.

A recurrent layer over texts of different lengths takes and gives a `PackedSequence`, which has the texts' steps in an
order of its own and no padding. It is recorded, and replaced, as (batch, length, features) with zeros after a text.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pad_packed_sequence

from parity.numerics.layouts import first, with_first


def packed_in(value: Any) -> PackedSequence | None:
    """Return the packed sequence that holds the `first` array of a layer's input or output; None if there is none."""
    if isinstance(value, PackedSequence):
        return value
    if isinstance(value, list | tuple):
        return next((packed_in(part) for part in value if first(part) is not None), None)
    return None


def first_padded(value: Any) -> Any:
    """Return the first array of a nested value; for a packed sequence, the padded array."""
    packed = packed_in(value)
    return first(value) if packed is None else pad_packed_sequence(packed, batch_first=True)[0]


def with_first_padded(value: Any, new: Tensor) -> Any:
    """Return the nested value with its first array replaced by one like `first_padded`."""
    packed = packed_in(value)
    return with_first(value, new if packed is None else _steps(packed, new))


def real_steps(net: nn.Module, run: Callable[[nn.Module], object]) -> np.ndarray | None:
    """Return the positions (batch, length) of the texts that a network packs; None if it packs no texts.

    Texts that are packed in several ways have no common positions.

    Args:
        net: a copy, which gets hooks.
        run: calls the network.
    """
    found: list[np.ndarray] = []

    def seen(_: nn.Module, args: tuple[Any, ...]) -> None:
        if (packed := packed_in(args)) is not None:
            found.append(_places(packed).numpy(force=True) > 0)

    layers = [module for module in net.modules() if isinstance(module, nn.RNNBase)]
    for layer in layers:
        layer.register_forward_pre_hook(seen)
    if layers:
        with torch.no_grad():
            run(net)
    return found[0] if found and all(np.array_equal(found[0], other) for other in found) else None


def _places(packed: PackedSequence) -> Tensor:
    """Return where the data has each step (batch, length), counted from 1; 0 after a text."""
    count = torch.arange(1, len(packed.data) + 1, device=packed.data.device)
    return pad_packed_sequence(packed._replace(data=count), batch_first=True)[0]


def _steps(packed: PackedSequence, padded: Tensor) -> Tensor:
    """Return the data of a packed sequence that holds a padded array."""
    places = _places(packed)
    real = places > 0
    return torch.zeros_like(packed.data).index_copy(0, places[real] - 1, padded[real])
