"""Many faithful runs, collected in pieces: `python -m tests.meta.pieces 10000 --workers 2`.

A piece is `PIECE` seeds at one commit. The command writes the file after each piece. After an interruption it goes on
with the pieces that the file lacks. `--again` replaces pieces of other commits; the file says which commits it has. It
keeps counts by the kind of network, and whole rows of the runs that did not pass.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks.reporting import intervals
from parity.reports import terminal
from ports.errors import UserError

from . import PART as PIECE
from . import commit, faithful, pool

FILE = Path(__file__).resolve().parents[2] / "benchmarks" / "results" / "faithful-cpu.json"
SCHEMA = 1


@dataclass(frozen=True)
class Piece:
    """Some faithful runs.

    Attributes:
        runs: how many, by the kind of network.
        worst: the largest distance of any, in rounding responses.
        alarms: the runs that did not pass, whole.
    """

    first: int
    commit: str | None
    runs: Mapping[str, int]
    worst: float
    alarms: tuple[Mapping[str, Any], ...] = ()

    @classmethod
    def of(cls, first: int, results: Iterable[faithful.Result], commit: str | None) -> Piece:
        """Return the piece of these runs."""
        results = tuple(results)
        kinds = Counter(result.network for result in results)
        alarms = tuple(asdict(result) for result in results if not result.ok)
        return cls(first, commit, dict(kinds), max(result.multiple for result in results), alarms)


@dataclass
class Collection:
    """All pieces of a file, by their first seeds."""

    pieces: dict[int, Piece] = field(default_factory=dict)

    @property
    def runs(self) -> int:
        return sum(sum(piece.runs.values()) for piece in self.pieces.values())

    @property
    def alarms(self) -> list[Mapping[str, Any]]:
        return [alarm for piece in self.pieces.values() for alarm in piece.alarms]

    def kinds(self) -> dict[str, dict[str, int]]:
        """Return runs and false alarms by the kind of network."""
        runs, alarms = Counter[str](), Counter(alarm["network"] for alarm in self.alarms)
        for piece in self.pieces.values():
            runs.update(piece.runs)
        return {kind: {"runs": count, "false_alarms": alarms[kind]} for kind, count in sorted(runs.items())}

    def to_json(self) -> dict[str, Any]:
        """Schema 1."""
        ordered = [self.pieces[first] for first in sorted(self.pieces)]
        return {
            "schema": SCHEMA,
            "faithful": self.runs,
            "false_alarms": len(self.alarms),
            "interval": intervals.exact(len(self.alarms), self.runs) if self.runs else None,
            "worst_multiple": max((piece.worst for piece in ordered), default=None),
            "kinds": self.kinds(),
            "commits": dict(Counter(str(piece.commit) for piece in ordered)),
            "pieces": [asdict(piece) for piece in ordered],
        }


def read(file: Path) -> Collection:
    """Read a file; without one there are no pieces.

    Raises:
        UserError: a file that is not of this kind.
    """
    if not file.exists():
        return Collection()
    try:
        found = json.loads(file.read_text())
        pieces = [Piece(**{**piece, "alarms": tuple(piece["alarms"])}) for piece in found["pieces"]]
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(f"--file: {file}: expected a file of `python -m tests.meta.pieces`") from None
    return Collection({piece.first: piece for piece in pieces})


def missing(collection: Collection, count: int, first: int, here: str | None, again: bool) -> list[int]:
    """Return the first seeds of the pieces that are to be run.

    Args:
        here: the commit of the checkout.
        again: whether pieces of other commits count as missing.
    """
    starts = range(first - first % PIECE, first + count, PIECE)
    there = {at for at, piece in collection.pieces.items() if not again or piece.commit == here}
    return [start for start in starts if start not in there]


def collect(
    file: Path, starts: list[int], workers: int = 1, progress: Callable[[str], None] = lambda _: None
) -> Collection:
    """Run pieces, and write the file after each."""
    collection, here = read(file), commit()
    with pool(workers) as spread:
        for start, results in zip(starts, spread(piece_of, starts), strict=True):
            collection.pieces[start] = Piece.of(start, results, here)
            terminal.write("--file", file, json.dumps(collection.to_json(), indent=1, allow_nan=False) + "\n")
            progress(f"{collection.runs} faithful runs, {len(collection.alarms)} false alarms")
    return collection


def piece_of(start: int) -> list[faithful.Result]:
    """Return the runs of one piece."""
    return faithful.runs(PIECE, start)


app = typer.Typer(add_completion=False, rich_markup_mode=None)

Count = Annotated[int, typer.Argument(help="Number of seeds, rounded up to whole pieces.")]
First = Annotated[int, typer.Option(metavar="SEED", help="The first seed.")]
File = Annotated[Path, typer.Option("--file", metavar="FILE", help="What the pieces are kept in.")]
Workers = Annotated[int, typer.Option(metavar="N", help="Processes that share the work.")]
Again = Annotated[bool, typer.Option("--again", help="Run the pieces of other commits again.")]


@app.command()
def pieces(count: Count, first: First = 0, file: File = FILE, workers: Workers = 1, again: Again = False) -> int:
    """Make faithful runs that FILE does not have yet. Exit 0 where all in the file pass, else 1."""
    terminal.writable("--file", file)
    if not (0 < count <= 10**6 and 0 <= first <= 10**9):
        raise UserError(f"got {count} runs from seed {first}, expected 1 to 1000000 runs and a seed up to 1000000000")
    if not 1 <= workers <= 256:
        raise UserError(f"--workers: got {workers}, expected 1 to 256 processes")
    from parity.reports.progress import progress

    with progress("faithful runs") as tell:
        found = collect(file, missing(read(file), count, first, commit(), again), workers, tell)
    for line in lines(found):
        print(line)
    return 1 if found.alarms else 0


def lines(found: Collection) -> list[str]:
    """Return every false alarm, a line for each kind of network, and the rate."""
    said = [f"false alarm: seed {a['seed']} ({a['network']}, {a['dtype']}): {a['said']}" for a in found.alarms]
    said += [f"{kind}: {n['false_alarms']} false alarms in {n['runs']} runs" for kind, n in found.kinds().items()]
    if found.runs:
        rate = intervals.said(len(found.alarms), found.runs)
        said.append(f"all: {len(found.alarms)} false alarms in {found.runs:,} faithful runs ({rate})")
    return said


def main(arguments: list[str] | None = None) -> int:
    """Run the command; a user's mistake is one line on stderr and exit code 2."""
    return terminal.run(app, "pieces", arguments, "python -m tests.meta.pieces")


if __name__ == "__main__":
    sys.exit(main())
