"""Packed sequences of PyTorch, as the padded arrays that they stand for: what ports have in their place.

A recurrent layer over texts of different lengths takes and gives a `PackedSequence`, which has the texts' steps in an
order of its own and no padding. It is recorded, and exchanged, as (batch, length, features) with zeros behind a text.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pad_packed_sequence

from parity.numerics.layouts import first, with_first


def packed_in(value: Any) -> PackedSequence | None:
    """Return the packed sequence that holds the `first` array of what a layer takes or gives; None where none does."""
    if isinstance(value, PackedSequence):
        return value
    if isinstance(value, list | tuple):
        return next((packed_in(part) for part in value if first(part) is not None), None)
    return None


def first_padded(value: Any) -> Any:
    """Return the first array of a nested value; of a packed sequence the padded array."""
    packed = packed_in(value)
    return first(value) if packed is None else pad_packed_sequence(packed, batch_first=True)[0]


def with_first_padded(value: Any, new: Tensor) -> Any:
    """Return the nested value with its first array exchanged for one like `first_padded`."""
    packed = packed_in(value)
    return with_first(value, new if packed is None else _steps(packed, new))


def _steps(packed: PackedSequence, padded: Tensor) -> Tensor:
    """Return the data of a packed sequence that holds a padded array."""
    count = torch.arange(1, len(packed.data) + 1, device=padded.device)
    places = pad_packed_sequence(packed._replace(data=count), batch_first=True)[0]
    real = places > 0
    return torch.zeros_like(packed.data).index_copy(0, places[real] - 1, padded[real])
