"""The command `parity traps`: the known mistakes as a list, and the page of one."""

from __future__ import annotations

import difflib
import textwrap
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from parity.reports import terminal
from ports.errors import UserError

if TYPE_CHECKING:
    from parity.traps.trap import Trap

# A line is readable in a terminal of this width.
WIDTH = 80
CODE = " " * 4

PLACES = {
    "weight": "In weights",
    "layer": "In layers",
    "between": "In functions between layers",
    "loss": "In losses",
    "training": "In training",
}

Name = Annotated[str | None, typer.Argument(metavar="[NAME]", help="A name: what this mistake is, and how to mend it.")]


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(traps)


def traps(name: Name = None) -> int:
    """The known mistakes that a finding can name: a list, or the page of one.

    `parity traps NAME` says what the port does, where the mistake can be made, how to mend it, and its source.
    """
    from parity.traps.catalogue import TRAPS

    lines = listed(TRAPS) if name is None else page(name)
    console = terminal.console(WIDTH)
    for line in lines:
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    return 0


def listed(known: tuple[Trap, ...]) -> Iterator[str]:
    """Yield a list of traps: each name, and below it what the port does."""
    for place, title in PLACES.items():
        yield f"{title}:"
        for trap in (trap for trap in known if trap.place == place):
            yield f"  {trap.name}"
            yield from textwrap.wrap(trap.text, WIDTH, initial_indent="      ", subsequent_indent="      ")
        yield ""
    yield "parity traps NAME shows one."


def page(name: str) -> Iterator[str]:
    """Yield the facts about a trap; one name may mean the same mistake in several places.

    Raises:
        UserError: there is no such trap.
    """
    from parity.traps.catalogue import TRAPS

    found = [trap for trap in TRAPS if trap.name == name]
    if not found:
        near = difflib.get_close_matches(name, [trap.name for trap in TRAPS], 1, 0)[0]
        raise UserError(f"traps: got {name!r}, expected a known mistake; {near} is nearest; `parity traps` lists them")
    for trap in found:
        yield trap.name
        yield ""
        for head, text in _parts(trap):
            yield from textwrap.wrap(f"{head + ':':<10}{text}", WIDTH, subsequent_indent=" " * 10)
        yield ""
    yield from _example(name)


def _example(name: str) -> Iterator[str]:
    """Yield why the mistake is made, and code in which it is made and mended."""
    from parity.traps.examples import by_name

    example = by_name()[name]
    yield from textwrap.wrap(f"{'why:':<10}{example.why}", WIDTH, subsequent_indent=" " * 10)
    for title, code in example.shown():
        yield from ("", f"{title}:", *textwrap.indent(code.strip(), CODE).splitlines())
    yield ""


def _parts(trap: Trap) -> Iterator[tuple[str, str]]:
    yield "mistake", trap.text
    yield "mend", trap.mend
    yield "where", trap.listed_where
    if trap.arguments:
        names = [one if isinstance(one, str) else one.name for one in trap.arguments]
        yield "argument", f"{', '.join(names)}; a finding has its value in `fix`"
    yield "source", trap.source
