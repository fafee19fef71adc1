"""`python -m benchmarks`: which framework is faster, on networks proved equal.

Exit 0 if everything that was asked for was measured, 1 if something was refused (the table says what and why), 2 if the
command could not run (one line on stderr says why).
"""

from __future__ import annotations

import difflib
import os
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from benchmarks.measure.plan import RunPlan
from benchmarks.options import options_of, positive
from benchmarks.reporting import results
from benchmarks.subjects.roster import SUBJECTS
from benchmarks.subjects.settings import OWN, Setting, SettingGrid, numbers
from parity.reports import terminal
from ports.errors import UserError

measure = typer.Typer(add_completion=False, rich_markup_mode=None)
stored = typer.Typer(add_completion=False, rich_markup_mode=None, no_args_is_help=True)
WIDTH = 220  # of a table that goes into a file


@dataclass(frozen=True)
class Effort:
    """Default values of a run: what it measures, and with which plan."""

    network: str = "resnet50"
    batch: str | None = None  # else by the device
    size: str | None = None
    starts: int = 5
    rounds: int = 5
    seconds: float = 1.0
    budget: float | None = None
    builders: int = RunPlan.builders
    warm: int = RunPlan.warm


USUAL = Effort()
# --quick: small images and batches, for a look at a new machine.
QUICK = Effort("resnet18", "4", "96", rounds=1, seconds=0.25, budget=270, builders=2, warm=4)

Networks = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="NETWORK...",
        help="Named networks, resnet50@8 for a batch of its own, or ./file.py:function that returns your own pair.",
    ),
]
Mode = Annotated[str, typer.Option(help="inference, training, or both, separated by a comma.")]
Batch = Annotated[
    str | None,
    typer.Option(help="Numbers of images, separated by commas. By default 1,32,256 on a GPU, and 1,8 on a CPU."),
]
Precision = Annotated[str, typer.Option(help="float32, tf32, bfloat16, separated by commas.")]
Size = Annotated[str | None, typer.Option("--image-size", metavar="HxW", help="By default the network's own size.")]
Device = Annotated[str | None, typer.Option(help="cpu or gpu. By default the GPU, if both frameworks see one.")]
Only = Annotated[str | None, typer.Option("--subjects", help="These alone, with commas.")]
Peers = Annotated[bool, typer.Option("--peers", help="Also time the usual alternatives; images have 225 pixels.")]
Flags = Annotated[bool, typer.Option("--flags", help="Also time the NNX port with XLA flags, and with kept memory.")]
Starts = Annotated[int | None, typer.Option(help="Starts of every process (5).")]
Rounds = Annotated[int | None, typer.Option(help="Rounds per start (5; with --quick 1).")]
Seconds = Annotated[float | None, typer.Option(help="Seconds of timing per round (1; with --quick 0.25).")]
Budget = Annotated[float | None, typer.Option(help="Seconds after which nothing new begins.")]
Out = Annotated[Path | None, typer.Option(metavar="FILE.json", help="Keep the measurements there.")]
Html = Annotated[Path | None, typer.Option(metavar="FILE", help="Write an HTML page to this file.")]
Log = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Keep the output of the subjects' processes in this file.")
]
Quick = Annotated[bool, typer.Option("--quick", help="resnet18 with small images, within five minutes on two cores.")]
Files = Annotated[list[Path], typer.Argument(metavar="RESULTS...")]
Svg = Annotated[Path | None, typer.Option(metavar="DIR", help="Write the plots as SVG to this folder.")]


@dataclass(frozen=True)
class SpeedOptions:
    """The options of `python -m benchmarks`."""

    networks: Networks = None
    mode: Mode = "inference,training"
    batch: Batch = None
    precision: Precision = "float32"
    size: Size = None
    device: Device = None
    only: Only = None
    peers: Peers = False
    flags: Flags = False
    starts: Starts = None
    rounds: Rounds = None
    seconds: Seconds = None
    budget: Budget = None
    out: Out = None
    html: Html = None
    log: Log = None
    quick: Quick = False

    def __post_init__(self) -> None:
        for name in ("starts", "rounds", "seconds", "budget"):
            positive(f"--{name}", getattr(self, name))

    @property
    def effort(self) -> Effort:
        return QUICK if self.quick else USUAL

    def settings(self, device: str) -> list[Setting]:
        """List what is timed, on this device.

        Raises:
            UserError: an option is unknown, or does not go with another option.
        """
        effort, networks = self.effort, self.networks or [self.effort.network]
        own = [name for name in networks if OWN in name]
        if own and (self.batch or self.size or self.precision != "float32"):
            raise UserError(
                f"{own[0]}: got --batch, --image-size or --precision, expected none: its own inputs are timed"
            )
        # A GPU has time for whole images, and some peers only take images of 225 pixels.
        size = self.size or (effort.size if device == "cpu" and not self.peers else None)
        batch = self.batch or effort.batch or ("1,32,256" if device == "gpu" else "1,8")
        return SettingGrid(
            networks,
            _words(self.mode),
            numbers("--batch", batch),
            _words(self.precision),
            device,
            terminal.size(size),
            odd=self.peers,
        ).settings()

    def subjects(self) -> list[str]:
        """List who is timed.

        Raises:
            UserError: there is no such subject.
        """
        if self.only is None:
            asked = {"peer": self.peers, "swept": self.flags}
            left = {name for name, row in SUBJECTS.items() if any(getattr(row, k) and not asked[k] for k in asked)}
            return [
                name
                for name, row in SUBJECTS.items()
                if name not in left and (row.quick or row.swept or not self.quick)
            ]
        only = _words(self.only)
        if unknown := [name for name in only if name not in SUBJECTS]:
            known = [name for name, row in SUBJECTS.items() if not row.swept]
            near = difflib.get_close_matches(unknown[0], SUBJECTS, n=1)
            meant = f" (did you mean {near[0]!r}?)" if near else ""
            raise UserError(f"--subjects: got {unknown[0]!r}{meant}, expected some of {', '.join(known)}")
        return only

    def plan(self, device: str) -> RunPlan:
        """Return what a run does.

        Raises:
            UserError: none of these subjects suits one of these settings.
        """
        settings, subjects, effort = self.settings(device), self.subjects(), self.effort
        if not any(SUBJECTS[subject].suits(s.network, s.mode, s.device) for subject in subjects for s in settings):
            raise UserError(
                f"--subjects: got {', '.join(subjects)}, none of which is for {settings[0]} on the {device}"
            )
        return RunPlan(
            settings,
            subjects,
            self.starts or effort.starts,
            self.rounds or effort.rounds,
            self.seconds or effort.seconds,
            alive=_alive(device),
            builders=effort.builders,
            warm=effort.warm,
            budget=self.budget or effort.budget,
        )


@measure.command(
    epilog="Stored results: python -m benchmarks report RESULTS..., compare A B. A study: python -m benchmarks depth."
)
@options_of(SpeedOptions)
def run(options: SpeedOptions) -> int:
    """Time the ports of networks in the frameworks, each proved equal before it is timed."""
    from benchmarks.measure.measurement import run as measured
    from benchmarks.reporting import display
    from parity.reports.progress import progress

    device = options.device or _device()
    if device != "cpu":
        from parity.running import device as devices

        devices.require(device, None, ())
    plan = options.plan(device)
    for option, file in (("--out", options.out), ("--html", options.html), ("--log", options.log)):
        terminal.writable(option, file, again=option == "--log")
    if options.log is not None:
        terminal.write("--log", options.log, "")
    with tempfile.TemporaryDirectory(prefix="benchmarks-") as folder, progress("benchmarks") as tell:
        found = measured(plan, Path(folder), options.out, tell, options.log)
    display.show(found, terminal.console(WIDTH))
    if options.html is not None:
        terminal.write("--html", options.html, display.page([(options.html.stem, found)]))
    if found["refused"] and options.log is None:
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


Data = Annotated[
    Path | None,
    typer.Option(metavar="FOLDER", help="Images of CIFAR-10: cifar10_train*.npz and cifar10_test*.npz, or *.bin."),
]
Labels = Annotated[str | None, typer.Option("--networks", help="Some of the study's networks, separated by commas.")]
Steps = Annotated[int | None, typer.Option(help="Steps of SGD (800; on a GPU 4000).")]
StepImages = Annotated[int | None, typer.Option("--batch", help="Images in a step (32; on a GPU 128).")]
Pixels = Annotated[int | None, typer.Option("--image-size", help="Height and width (16; on a GPU 32).")]
Processes = Annotated[int | None, typer.Option(help="Processes at a time (one for each core; on a GPU 1).")]
Again = Annotated[Path | None, typer.Option("--from", metavar="FILE.json", help="Show stored results, train nothing.")]
Plot = Annotated[Path | None, typer.Option("--svg", metavar="FILE", help="Write the plot there.")]


@dataclass(frozen=True)
class DepthOptions:
    """The options of `python -m benchmarks depth`."""

    data: Data = None
    labels: Labels = None
    steps: Steps = None
    batch: StepImages = None
    size: Pixels = None
    device: Device = None
    processes: Processes = None
    out: Out = None
    svg: Plot = None
    again: Again = None

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "processes"):
            positive(f"--{name}", getattr(self, name))
        positive("--image-size", self.size)
        if (self.data is None) == (self.again is None):
            got = "neither" if self.data is None else "both"
            raise UserError(f"--data, --from: got {got}, expected a folder of images, or a file of stored results")
        trains = {"networks": self.labels, "steps": self.steps, "batch": self.batch, "image-size": self.size}
        trains |= {"device": self.device, "processes": self.processes, "out": self.out}
        if self.again is not None and (unused := [f"--{name}" for name, value in trains.items() if value is not None]):
            raise UserError(f"--from: got {', '.join(unused)} too, expected none: stored results are only shown")


@stored.command("depth")
@options_of(DepthOptions)
def depth_command(options: DepthOptions) -> int:
    """Train plain and residual networks of several depths in both frameworks, from the same weights."""
    from benchmarks.depth import plot, study

    for option, file in (("--out", options.out), ("--svg", options.svg)):
        terminal.writable(option, file)
    found = _studied(options) if options.again is None else study.load_results(options.again)
    table = Table(*plot.HEAD, box=None, pad_edge=False)
    for row in plot.rows(found):
        table.add_row(*row)
    terminal.console(WIDTH).print(table)
    if options.svg is not None:
        terminal.write("--svg", options.svg, plot.draw(found))
    return int(not all(network["agreement"]["ok"] for network in found["networks"]))


def _studied(options: DepthOptions) -> dict[str, Any]:
    from benchmarks.depth import plan, study
    from parity.reports.progress import progress

    assert options.data is not None
    device = options.device or _device()
    networks = study.chosen(_words(options.labels or ""))
    planned = plan.plan_for(device, steps=options.steps, batch=options.batch, size=options.size)
    processes = options.processes or (1 if device == "gpu" else os.cpu_count() or 1)
    with progress("benchmarks depth") as tell:
        out = options.out
        keep = (lambda found: None) if out is None else (lambda found: study.save(found, out))
        return study.Study(networks, planned, options.data, device, processes).run(tell, keep)


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


def _device() -> str:
    """The GPU if both frameworks see one."""
    from parity.running.device import jax_gpu, torch_gpu

    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    return "gpu" if torch_gpu() is not None and jax_gpu() is not None else "cpu"


def _alive(device: str) -> int:
    """Processes at a time: one on a GPU, because each would keep memory; otherwise as many as fit, at 2.5 GB each."""
    import psutil

    return 1 if device == "gpu" else max(1, int(psutil.virtual_memory().available / 2.5e9))


def main(arguments: list[str]) -> int:
    """Run the command; a user's mistake is one line on stderr and exit code 2."""
    app = stored if arguments[:1] in (["report"], ["compare"], ["depth"]) else measure
    return terminal.run(app, "benchmarks", arguments, "python -m benchmarks")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
