"""Finds what a transformers' config.json says of the network in a file.

A config is taken from the first of three places:

1. `--config FILE` (`config=`), for any source.
2. `config.json` in the folder that transformers would load: the source is that folder, or one of the files that
   transformers looks for there. A file of another name may lie beside a config that is not its own.
3. The metadata of a file that a conversion wrote (`KEY`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from ports import config as configs
from ports.errors import UserError
from ports.families import Described, described, readers
from ports.weights.files import formats
from ports.weights.files.formats import Format
from ports.weights.form.torch_form import WeightsError

KEY = "transformers_config"
FILES = ("model.safetensors", f"model.safetensors{formats.INDEX}", "pytorch_model.bin")


def of_source(
    path: str | Path, row: Format, metadata: Mapping[str, str], given: str | Path | None = None
) -> Described | None:
    """Return what a config says of the network; None if there is no config, or one of another kind of network.

    Args:
        given: the config that the user named.

    Raises:
        WeightsError: the config cannot be read; or the user named one of another kind of network.
    """
    path = Path(path)
    try:
        if given is not None:
            found = described(configs.read(given), str(given))
            if found is None:
                raise UserError(f"{given}: expected {configs.TYPE} {' or '.join(readers())}")
            return found
        beside = _beside(path, row)
        if beside is not None:
            return described(configs.read(beside))
        return _in_metadata(metadata)
    except UserError as error:
        raise WeightsError(error.lines) from None


def _beside(path: Path, row: Format) -> Path | None:
    """The config.json that transformers would read with a file or folder."""
    if row.name != "sharded" and path.name not in FILES:
        return None
    file = (path if path.is_dir() else path.parent) / configs.NAME
    return file if file.exists() or file.is_symlink() else None


def _in_metadata(metadata: Mapping[str, str]) -> Described | None:
    """The config in the metadata of a file that a conversion wrote."""
    if KEY not in metadata:
        return None
    place = f"metadata {KEY}"
    try:
        found = json.loads(metadata[KEY])
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise WeightsError(f"{place}: got {configs.shown(metadata[KEY])}, expected an object of JSON")
    return described(found, place)
