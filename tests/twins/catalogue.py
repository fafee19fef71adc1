"""All twins by name."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import TypeVar

from ports.errors import UserError

from . import causal, diffusion, images, text, translating
from .twin import Twin

ALL = (*text.TWINS, *causal.TWINS, *translating.TWINS, *images.TWINS, *diffusion.TWINS)
T = TypeVar("T")

TWINS = {twin.name: twin for twin in ALL}


def chosen(names: Sequence[str], fast: bool) -> list[Twin]:
    """Return the twins of these names; without names all of them, or the quick selection.

    Raises:
        UserError: an unknown name.
    """
    if names:
        return picked(names, TWINS, "twin")
    return [twin for twin in ALL if twin.fast or not fast]


def picked(names: Sequence[str], rows: Mapping[str, T], what: str) -> list[T]:
    """Return the rows of these names, each once.

    Raises:
        UserError: an unknown name.
    """
    for name in names:
        if name not in rows:
            near = difflib.get_close_matches(name, rows, 1, 0)[0]
            raise UserError(f"got the {what} {name!r}, expected one of {', '.join(rows)}; {near} is nearest")
    return [rows[name] for name in dict.fromkeys(names)]
