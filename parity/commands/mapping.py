"""The commands `parity pairs` and `parity export-mapping`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer
from rich.markup import escape
from rich.table import Table

from parity.reports import terminal
from ports.errors import UserError

if TYPE_CHECKING:
    from parity.pairing.models import PairedModels
    from parity.pairing.pairs import Pairing
    from ports.weights.rules.tensors import TensorRow

Own = Annotated[str, typer.Argument(metavar="MODULE:FUNCTION", help="Returns (torch_model, flax_model, *inputs).")]
Write = Annotated[
    Path | None, typer.Option("--write", metavar="FILE", help="Write the mapping to this file, for check --names.")
]
Script = Annotated[Path, typer.Option("--script", metavar="FILE", help="Write a script that converts checkpoints.")]
NamesFile = Annotated[
    Path | None, typer.Option("--names", metavar="FILE", help="A file whose [names] say which is which.")
]

T = TypeVar("T")
Loader = Callable[[str], tuple[tuple[Any, ...], dict[str, Any]]]


def register(app: typer.Typer, loaded: Loader) -> None:
    """Add the commands.

    Args:
        loaded: gives the models, inputs and options of a user's function.
    """

    @app.command()
    def pairs(own: Own, write: Write = None, names: NamesFile = None) -> int:
        """Show which tensor of a pair of your own is which, and in what form the port holds it.

        `parity check --names` and `parity convert --rules` read the file that --write makes.
        """
        terminal.writable("--write", write)
        from parity.pairing import derived

        def read(both: PairedModels) -> tuple[Pairing, str, str]:
            try:
                return both.pairing, derived.rules(both), ""
            except UserError as error:
                if write is not None:
                    raise
                return both.pairing, "", str(error)

        pairing, rules, reason = _paired(loaded(own), names, read)
        table = Table("PyTorch", "port", "form", "rests on", box=None, pad_edge=False)
        for row in pairing.rows():
            table.add_row(*map(escape, row))
        console = terminal.console()
        console.print(table)
        for one in (*pairing.unused, *pairing.spare):
            console.print(str(one), markup=False, highlight=False, soft_wrap=True)
        if reason:
            console.print(f"checkpoints cannot be converted: {reason}", markup=False, highlight=False, soft_wrap=True)
        if write is not None:
            terminal.write("--write", write, rules)
            console.print(f"written {write}", markup=False, highlight=False)
        return 0

    @app.command("export-mapping")
    def export_mapping(own: Own, script: Script, names: NamesFile = None) -> int:
        """Write a script that converts checkpoints of a model of your own, both ways and bit for bit."""
        terminal.writable("--script", script)
        from ports.weights.rules import script as scripts

        rows, alone, tied = _paired(loaded(own), names, script_parts)
        terminal.write("--script", script, scripts.text(rows, alone, script.name, tied))
        terminal.console().print(f"written {script}: {len(rows)} rows", markup=False, highlight=False)
        return 0


def exportable(loaded: tuple[tuple[Any, ...], dict[str, Any]], names: Path | None) -> bool:
    """Return whether `export-mapping` can write the script of a pair: what it writes is made, and let go."""
    try:
        _paired(loaded, names, script_parts)
    except UserError:
        return False
    return True


def script_parts(both: PairedModels) -> tuple[list[TensorRow], list[str], dict[str, str]]:
    """Return the rows of a script, the tensors that PyTorch alone has, and the second names of tied ones."""
    from parity.pairing import derived

    rows, tied = derived.rows(both), derived.tied(both)
    taken = {name for row in rows for name in row.torch}
    return rows, [name for name in both.state if name not in taken and name not in tied], tied


def names_of(file: Path) -> dict[str, str | None]:
    """Return the names in a file.

    Raises:
        UserError: it cannot be read, or has no names.
    """
    from ports.weights.rules import rulesfile

    found = rulesfile.names(file)
    if not found:
        raise UserError(f"--names {file}: has no [names]; write one with parity pairs MODULE:FUNCTION --write {file}")
    return found


def _paired(loaded: tuple[tuple[Any, ...], dict[str, Any]], names: Path | None, read: Callable[[PairedModels], T]) -> T:
    from parity import api
    from parity.options import MoveOptions

    (model, other, *inputs), options = loaded
    known = {name: value for name, value in options.items() if name in MoveOptions.__dataclass_fields__}
    known |= {"names": names_of(names)} if names is not None else {}
    return api.paired(model, other, *inputs, read=read, **known)
