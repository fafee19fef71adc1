"""Read the rows of the files in this folder: for each trap, Flax code with the mistake and Flax code without it.

A file has `setup` (code that makes the inputs) and groups. A group has what its rows share: a title, the reason for the
mistake (`why`), PyTorch's code (`torch`), the right code (`right`), and code that is shown above both (`given`). A row
is the wrong code, or a table of differences from the group. The value of a piece of code is the value of its last line;
`use` is an expression that makes this value comparable.
"""

from __future__ import annotations

import functools
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parent
PLACES = ("weight", "layer", "between", "loss", "training")


@dataclass(frozen=True)
class Example:
    """The code of one trap.

    Attributes:
        place: the file.
        group: the title of its group.
        why: why the mistake is made.
        given: code that both sides use.
        torch: PyTorch's code; it may be empty.
        compare: whether the value of the right code is that of PyTorch's.
        images: whether `x` and all that has four axes is channels first in PyTorch and channels last in Flax.
        gradient: whether gradients are compared.
        names: the inputs that PyTorch's code gets too.
    """

    name: str
    place: str
    group: str
    why: str
    wrong: str
    right: str
    torch: str = ""
    given: str = ""
    setup: str = ""
    use: str = ""
    compare: bool = True
    images: bool = False
    gradient: bool = False
    names: tuple[str, ...] = ()

    def shown(self) -> Iterator[tuple[str, str]]:
        """Yield PyTorch's code, what both Flax codes use, the wrong code and the right code, each with its title."""
        parts = {"PyTorch": self.torch, "Flax, in both": self.given, "Wrong": self.wrong, "Right": self.right}
        yield from ((title, code) for title, code in parts.items() if code)


@dataclass(frozen=True)
class Group:
    """Traps of one kind, as the index lists them."""

    place: str
    title: str
    why: str
    examples: tuple[Example, ...] = field(default=())


SHARED = tuple(one.name for one in fields(Example) if one.name not in ("name", "place", "group", "setup", "names"))


def _row(name: str, row: str | Mapping[str, Any], group: Mapping[str, Any], file: Mapping[str, Any], place: str) -> Any:
    own = {"wrong": row} if isinstance(row, str) else row
    shared = {key: {**file, **group, **own}[key] for key in SHARED if key in {**file, **group, **own}}
    setup = file["image_setup" if group.get("images") else "setup"] + group.get("setup", "")
    names = tuple(file.get("names", "").split())
    return Example(name=name, place=place, group=group["title"], setup=setup, names=names, **shared)


def groups(folder: Path = FOLDER) -> Iterator[Group]:
    """Yield the groups of all files, in order."""
    for place in PLACES:
        file = tomllib.loads((folder / f"{place}.toml").read_text())
        for group in file["group"]:
            rows = tuple(_row(name, row, group, file, place) for name, row in group["traps"].items())
            yield Group(place, group["title"], group["why"], rows)


@functools.cache
def by_name(folder: Path = FOLDER) -> dict[str, Example]:
    """Return every example by the name of its trap.

    Raises:
        ValueError: a trap has two examples.
    """
    found: dict[str, Example] = {}
    for example in (example for group in groups(folder) for example in group.examples):
        if example.name in found:
            raise ValueError(f"{example.name}: got two rows, expected one")
        found[example.name] = example
    return found
