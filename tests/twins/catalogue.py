"""All twins by name."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

from ports.errors import UserError

from . import causal, diffusion, images, text, translating
from .twin import Twin

ALL = (*text.TWINS, *causal.TWINS, *translating.TWINS, *images.TWINS, *diffusion.TWINS)
TWINS = {twin.name: twin for twin in ALL}


def chosen(names: Sequence[str], fast: bool) -> list[Twin]:
    """Return the twins of these names; without names all of them, or the quick selection.

    Raises:
        UserError: an unknown name.
    """
    for name in names:
        if name not in TWINS:
            near = difflib.get_close_matches(name, TWINS, 1, 0)[0]
            raise UserError(f"got the twin {name!r}, expected one of {', '.join(TWINS)}; {near} is nearest")
    if names:
        return [TWINS[name] for name in dict.fromkeys(names)]
    return [twin for twin in ALL if twin.fast or not fast]
