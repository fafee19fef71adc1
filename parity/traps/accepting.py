"""Intended differences: the reference then makes the same mistakes as the port."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

from torch import nn

from parity.traps.catalogue import LAYERS
from parity.traps.planting import plant_in
from ports.errors import UserError


def accepted(net: nn.Module, names: Sequence[str]) -> None:
    """Plant these mistakes in every layer of `net` that can have them, so that a port with them equals it.

    Raises:
        UserError: no mistake has this name, or no layer can have it.
    """
    for name in names:
        trap = next((t for t in LAYERS if t.name == name), None)
        if trap is None:
            near = difflib.get_close_matches(name, [t.name for t in LAYERS], 1, 0)[0]
            raise UserError(f"accept: got {name!r}, expected the name of a trap such as {near!r}")
        planted = [module for module in net.modules() if isinstance(module, trap.layers) and plant_in(trap, module)]
        if not planted:
            raise UserError(f"accept: no layer of the model can have {name!r}")
