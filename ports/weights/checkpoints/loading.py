"""Weights files and the torch form: `load` and `save` of every format in `ports.weights.files.formats`.

Of a training checkpoint the weights are taken (under `state_dict`, `model`, …), and the parts of names that
DataParallel and torch.compile write are removed. A file in Flax's layouts is brought into PyTorch's, for which its
network must be a known one; a file in PyTorch's layouts keeps its own names.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from ports.weights.checkpoints import splitting
from ports.weights.files import formats
from ports.weights.files.atomic import publish
from ports.weights.files.formats import Content
from ports.weights.files.guard import faults_of
from ports.weights.form.torch_form import WeightsError, _arrays
from ports.weights.known.names import in_flax, stripped
from ports.weights.known.recognise import recognise


def load(
    path: str | Path,
    *,
    format: str | None = None,
    key: str | None = None,
    strip: bool = True,
    max_memory: int | None = None,
) -> dict[str, np.ndarray]:
    """The tensors of a file: copies.

    Args:
        format: one of `ports.weights.files.formats.FORMATS`, where the file's name does not tell.
        key: where the weights stand in a training checkpoint, where that is not found by itself.
        strip: takes off what DataParallel (`module.`) and torch.compile (`_orig_mod.`) write into names; False where a
            module of one's own has such a name.
        max_memory: bytes that reading the file may take, where the default is not enough (`files/budget.py`).

    Raises:
        WeightsError: no such file, an unknown format, a file that is damaged, holds no tensors or would run code.
    """
    content = formats.read(path, format, max_memory=max_memory)
    with faults_of(path):
        return _loaded(path, content, formats.of(path, format), key, strip)


def _loaded(
    path: str | Path, content: Content, row: formats.Format, key: str | None, strip: bool
) -> dict[str, np.ndarray]:
    weights = splitting.split(path, content, row, key, weights_only=True).weights
    names = stripped(list(weights)) if strip else {name: name for name in weights}
    if in_flax(weights):
        try:
            weights = recognise({name: array.shape for name, array in weights.items()}).read(weights)
            names = {name: name for name in weights}
        except WeightsError:
            if row.name != "torch":  # there it may be somebody's own name for a tensor
                raise
    loaded = {name: np.array(weights[raw], order="C") for name, raw in names.items()}
    assert content.source is not None
    content.source.unchanged()
    return loaded


def save(
    path: str | Path, weights: Mapping[str, np.ndarray], *, format: str | None = None, force: bool = False
) -> None:
    """Writes tensors under their own names: the file appears whole or not at all.

    Raises:
        WeightsError: there is such a file and `force` is not set, or the format cannot hold the tensors.
    """
    from ports.weights.checkpoints.convert import target_format

    row = target_format(Path(path), format)
    arrays = _arrays(weights)
    if not arrays:
        raise WeightsError(f"output {path}: got no tensors")
    if other := [name for name in arrays if not isinstance(name, str)]:
        raise WeightsError(f"output {path}: got a tensor named {other[0]!r}, expected text")
    splitting.check_names(arrays, row)
    with publish(path, force=force, foreign=formats.foreign(row)) as partial:
        formats.write(partial, Content(arrays), row)
