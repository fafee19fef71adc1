"""Weights files and the torch form: `load` and `save` of every format in `ports.weights.files.formats`.

From a training checkpoint it takes the weights (under `state_dict`, `model`, …), and removes the parts of names that
DataParallel and torch.compile add. A file in Flax's layouts is brought into PyTorch's layouts, which requires a known
network; a file in PyTorch's layouts keeps its own names.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from ports.weights.checkpoints import splitting
from ports.weights.checkpoints.described import of_source
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
    config: str | Path | None = None,
) -> dict[str, np.ndarray]:
    """Return copies of the tensors of a file.

    Args:
        format: one of `ports.weights.files.formats.FORMATS`, if the file's name does not show it.
        key: where the weights are in a training checkpoint, if they are not found automatically.
        strip: remove the parts that DataParallel (`module.`) and torch.compile (`_orig_mod.`) add to names; False if a
            module of your own has such a name.
        max_memory: bytes that reading the file may take, if the default is not enough (`files/budget.py`).
        config: a transformers' config.json that describes the network of a file in Flax's layouts.

    Raises:
        WeightsError: no such file, an unknown format, a file that is damaged, holds no tensors or would run code.
    """
    content = formats.read(path, format, max_memory=max_memory)
    with faults_of(path):
        return _loaded(path, content, formats.of(path, format), key, strip, config)


def _loaded(
    path: str | Path,
    content: Content,
    row: formats.Format,
    key: str | None,
    strip: bool,
    config: str | Path | None,
) -> dict[str, np.ndarray]:
    weights = splitting.split(path, content, row, key, weights_only=True).weights
    names = stripped(list(weights)) if strip else {name: name for name in weights}
    if in_flax(weights):
        try:
            described = of_source(path, row, content.metadata, config)
            shapes = {name: array.shape for name, array in weights.items()}
            weights = recognise(shapes, described=described).read(weights)
            names = {name: name for name in weights}
        except WeightsError:
            if row.name != "torch":  # in such a file it may be a tensor's real name
                raise
    loaded = {name: np.array(weights[raw], order="C") for name, raw in names.items()}
    assert content.source is not None
    content.source.unchanged()
    return loaded


def save(
    path: str | Path, weights: Mapping[str, np.ndarray], *, format: str | None = None, force: bool = False
) -> None:
    """Write tensors under their own names; the file appears whole or not at all.

    Raises:
        WeightsError: the file exists and `force` is not set, or the format cannot hold the tensors.
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
