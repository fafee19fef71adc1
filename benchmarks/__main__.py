"""`python -m benchmarks`: which framework is faster, on networks proved equal.

Exit 0 where everything that was asked for was measured, 1 where something was refused (the table says what and why),
2 where the question could not be put (one line on stderr says why).
"""

from __future__ import annotations

import difflib
import os
import sys
import tempfile
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from benchmarks.reporting import results
from benchmarks.subjects.roster import SUBJECTS
from benchmarks.subjects.settings import OWN, numbers, settings
from parity import terminal
from ports.errors import UserError

measure = typer.Typer(add_completion=False, rich_markup_mode=None)
stored = typer.Typer(add_completion=False, rich_markup_mode=None, no_args_is_help=True)
WIDTH = 220  # of a table that goes into a file

# --quick: small images and batches, for a look at a new machine.
QUICK: dict[str, Any] = {"batch": "4", "size": "96", "rounds": 1, "seconds": 0.25, "budget": 270}
BRIEF: dict[str, Any] = {"builders": 2, "warm": 4}  # of its plan

Networks = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="NETWORK...",
        help="Named networks, resnet50@8 with a batch of its own, or ./file.py:function that returns a pair of yours.",
    ),
]
Mode = Annotated[str, typer.Option(help="inference, training, or both with a comma.")]
Batch = Annotated[
    str | None, typer.Option(help="Numbers of images, with commas. By default 1,32,256 on a GPU, else 1,8.")
]
Precision = Annotated[str, typer.Option(help="float32, tf32, bfloat16, with commas.")]
Size = Annotated[str | None, typer.Option("--image-size", metavar="HxW", help="Else what the network was made for.")]
Device = Annotated[str | None, typer.Option(help="cpu or gpu. By default the GPU, where both frameworks see one.")]
Only = Annotated[str | None, typer.Option("--subjects", help="These alone, with commas.")]
Peers = Annotated[bool, typer.Option("--peers", help="Besides, what one would take instead; images of 225 pixels.")]
Flags = Annotated[
    bool, typer.Option("--flags", help="Besides, the NNX port under flags of XLA, and memory that is kept.")
]
Starts = Annotated[int | None, typer.Option(help="Starts of every process (5).")]
Rounds = Annotated[int | None, typer.Option(help="Rounds a start (5; with --quick 1).")]
Seconds = Annotated[float | None, typer.Option(help="Seconds of timing a round (1; with --quick 0.25).")]
Budget = Annotated[float | None, typer.Option(help="Seconds after which nothing new is begun.")]
Out = Annotated[Path | None, typer.Option(metavar="FILE.json", help="Keep the measurements there.")]
Html = Annotated[Path | None, typer.Option(metavar="FILE", help="Write a page to look at there.")]
Log = Annotated[Path | None, typer.Option(metavar="FILE", help="Keep there what the subjects' processes wrote.")]
Quick = Annotated[bool, typer.Option("--quick", help="resnet18 with small images, within five minutes on two cores.")]
Files = Annotated[list[Path], typer.Argument(metavar="RESULTS...")]
Svg = Annotated[Path | None, typer.Option(metavar="DIR", help="Write the plots as SVG there.")]


@measure.command(epilog="Stored results: python -m benchmarks report RESULTS..., python -m benchmarks compare A B")
def run(
    networks: Networks = None,
    mode: Mode = "inference,training",
    batch: Batch = None,
    precision: Precision = "float32",
    size: Size = None,
    device: Device = None,
    only: Only = None,
    peers: Peers = False,
    flags: Flags = False,
    starts: Starts = None,
    rounds: Rounds = None,
    seconds: Seconds = None,
    budget: Budget = None,
    out: Out = None,
    html: Html = None,
    log: Log = None,
    quick: Quick = False,
) -> int:
    """Time the ports of networks in the frameworks, each proved equal before it is timed."""
    from benchmarks.measure.measurement import RunPlan
    from benchmarks.measure.measurement import run as measured
    from parity.progress import progress

    where = device or _device()
    if where != "cpu":
        from parity import device as devices

        devices.require(where, None, ())
    networks = networks or (["resnet18"] if quick else ["resnet50"])
    batches = numbers("--batch", batch or (QUICK["batch"] if quick else "1,32,256" if where == "gpu" else "1,8"))
    image = terminal.size(size or (QUICK["size"] if quick and where == "cpu" and not peers else None))
    chosen = settings(networks, _words(mode), batches, _words(precision), image, where, odd=peers)
    subjects = _subjects(_words(only) if only else None, peers, flags, quick)
    if not any(SUBJECTS[subject].suits(s.network, s.mode, s.device) for subject in subjects for s in chosen):
        raise UserError(f"--subjects: got {', '.join(subjects)}, none of which is for {chosen[0]} on the {where}")
    own = [name for name in networks if OWN in name]
    if own and (batch or size or precision != "float32"):
        raise UserError(f"{own[0]}: got --batch, --image-size or --precision, expected none: its own inputs are timed")
    for option, file in (("--out", out), ("--html", html), ("--log", log)):
        terminal.writable(option, file, again=option == "--log")
    if log is not None:
        terminal.write("--log", log, "")
    plan = RunPlan(
        chosen,
        subjects,
        _counted("--starts", starts, 5),
        _counted("--rounds", rounds, QUICK["rounds"] if quick else 5),
        _counted("--seconds", seconds, QUICK["seconds"] if quick else 1.0),
        alive=_alive(where),
        budget=_counted("--budget", budget, QUICK["budget"] if quick else None),
        **(BRIEF if quick else {}),
    )
    with tempfile.TemporaryDirectory(prefix="benchmarks-") as folder, progress("benchmarks") as tell:
        found = measured(plan, Path(folder), out, tell, log)
    from benchmarks.reporting import display

    display.show(found, terminal.console(WIDTH))
    if html is not None:
        terminal.write("--html", html, display.page([(html.stem, found)]))
    if found["refused"] and log is None:
        print("benchmarks: something was not timed; --log FILE keeps what the processes wrote", file=sys.stderr)
    return int(bool(found["refused"]))


@stored.command("report")
def report_command(files: Files, html: Html = None, svg: Svg = None) -> int:
    """Tables and plots from stored results."""
    from benchmarks.reporting import charts, display

    found = [(file.stem, results.load(file)) for file in files]
    for title, one in found:
        if len(found) > 1:
            print(title)
        display.show(one, terminal.console(WIDTH))
    if html is not None:
        terminal.write("--html", html, display.page(found))
    if svg is not None:
        for title, one in found:
            charts.write(one, svg / title if len(found) > 1 else svg)
    return 0


@stored.command("compare")
def compare_command(before: Path, after: Path) -> int:
    """What got faster or slower from one results file to another, with its interval."""
    from benchmarks.reporting.before_after import compare

    lines, notes = compare(results.load(before), results.load(after))
    table = Table("setting", "subject", box=None, pad_edge=False)
    for name in ("before ms", "after ms", "times as fast [95 %]", ""):
        table.add_column(name, justify="right")
    for line in lines:
        table.add_row(*line)
    console = terminal.console(WIDTH)
    console.print(table)
    for note in notes:
        console.print(note, markup=False, highlight=False)
    return 0


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


def _counted(option: str, value: float | None, default: float | None) -> Any:
    if value is None:
        return default
    if value <= 0:
        raise UserError(f"{option}: got {value}, expected more than 0")
    return value


def _subjects(only: list[str] | None, peers: bool, flags: bool, quick: bool) -> list[str]:
    if only is not None:
        if unknown := [name for name in only if name not in SUBJECTS]:
            known = [name for name, row in SUBJECTS.items() if not row.swept]
            near = difflib.get_close_matches(unknown[0], SUBJECTS, n=1)
            meant = f" (did you mean {near[0]!r}?)" if near else ""
            raise UserError(f"--subjects: got {unknown[0]!r}{meant}, expected some of {', '.join(known)}")
        return only
    asked = {"peer": peers, "swept": flags}
    extra = {name for name, row in SUBJECTS.items() if any(getattr(row, kind) and not asked[kind] for kind in asked)}
    return [name for name, row in SUBJECTS.items() if name not in extra and (row.quick or row.swept or not quick)]


def _device() -> str:
    """The GPU where both frameworks see one."""
    from parity.device import jax_gpu, torch_gpu

    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    return "gpu" if torch_gpu() is not None and jax_gpu() is not None else "cpu"


def _alive(device: str) -> int:
    """Processes at a time: on a GPU one, for each would keep memory; else what fits, at 2.5 GB each."""
    import psutil

    return 1 if device == "gpu" else max(1, int(psutil.virtual_memory().available / 2.5e9))


def main(arguments: list[str]) -> int:
    """Runs the command; a user's mistake is one line on stderr and exit code 2."""
    app = stored if arguments[:1] in (["report"], ["compare"]) else measure
    return terminal.run(app, "benchmarks", arguments, "python -m benchmarks")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
