"""The command `parity`: exit 0 parity, 1 mismatch, 2 the command could not run (one line on stderr says why)."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import json
import shlex
import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from parity.commands import agents, known, mapping
from parity.commands import weights as cli_weights
from parity.reports import terminal
from parity.reports.progress import progress as _progress
from ports import families
from ports.errors import UserError
from ports.optimizers import VARIANTS

if TYPE_CHECKING:
    from parity.reports.report import Model

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
)
Version = Annotated[bool, typer.Option("--version", help="Show the versions of this package and of the frameworks.")]


@app.callback(invoke_without_command=True)
def about(version: Version = False) -> None:
    """Networks in PyTorch, Flax NNX and Flax Linen, proved equal in float64."""
    if version:
        found = {name: importlib.metadata.version(name) for name in VERSIONS}
        print(f"parity {found.pop(VERSIONS[0])} ({', '.join(f'{name} {number}' for name, number in found.items())})")
        raise typer.Exit


# The packages whose versions `--version` shows, this package first.
VERSIONS = ("ports-parity", "torch", "jax", "flax", "optax")

Names = Annotated[
    list[str] | None,
    typer.Argument(metavar="NAME...", help="Networks (`parity models` lists them), or package.module:function."),
]
All = Annotated[bool, typer.Option("--all", help="Check every named network, the large ones with --reduced.")]
Reduced = Annotated[
    bool,
    typer.Option(
        "--reduced", help="Check a large network with only a few of its blocks; small ones are checked whole."
    ),
]
Ports = Annotated[str | None, typer.Option(help="Which ports to compare with PyTorch. By default nnx,linen.")]
Images = Annotated[Path | None, typer.Option(help="A photograph or a folder of them; by default two of this package.")]
ImageSize = Annotated[str | None, typer.Option(metavar="HxW", help="By default the network's height and an odd width.")]
Batch = Annotated[int | None, typer.Option(help="Number of images. By default 2.")]
Steps = Annotated[int, typer.Option(help="Steps of training.")]
Optimizer = Annotated[str, typer.Option(help=f"What trains: {', '.join(VARIANTS)}.")]
Seed = Annotated[int, typer.Option(help="Seed of initial weights, labels and perturbations.")]
Weights = Annotated[Path | None, typer.Option(help="A PyTorch or safetensors file; by default initial weights.")]
Accept = Annotated[
    list[str] | None, typer.Option(metavar="TRAP", help="An intended difference; `parity traps` lists them.")
]
Dtypes = Annotated[
    list[str] | None,
    typer.Option("--dtype", metavar="DTYPE", help="Also measure in float32 or bfloat16; may be given twice."),
]
Branches = Annotated[
    bool, typer.Option("--branches", help="List the branches of a pair's own code that the inputs do not take.")
]
Decide = Annotated[
    bool, typer.Option("--decide", help="With --dtype: no parity if a port rounds more than PyTorch in that type.")
]
Tf32 = Annotated[
    str | None, typer.Option(metavar="on|off", help="TF32 in both frameworks; by default each keeps its setting.")
]
Device = Annotated[str, typer.Option(help="Where both frameworks run: cpu or gpu.")]
Pairs = Annotated[bool, typer.Option("--pairs", help="Show which layers of your own pair were paired, and why.")]
Diff = Annotated[
    bool, typer.Option("--diff", help="For your own pair: show source changes that a second check confirms.")
]
Fix = Annotated[bool, typer.Option("--fix", help="Write the changes of --diff into the source of the port.")]
Json = Annotated[
    Path | None,
    typer.Option(
        "--json", metavar="FILE", help="Write the result to this file; with - to stdout, and tables to stderr."
    ),
]
Html = Annotated[Path | None, typer.Option("--html", metavar="FILE", help="Write an HTML page to this file.")]
Before = Annotated[Path, typer.Argument(metavar="BEFORE", help="A file of `parity check --json`.")]
After = Annotated[Path, typer.Argument(metavar="AFTER", help="A later one.")]
Times = Annotated[float, typer.Option(help="Show distances that change by this factor or more.")]


@app.command()
def models() -> int:
    """The named networks: parameters, blocks, where they come from."""
    from ports.weights.known.dialects import parameters

    table = Table("name", box=None, pad_edge=False)
    for heading in ("parameters", "blocks", "input"):
        table.add_column(heading, justify="right")
    table.add_column("source")
    for name, spec in families.NETWORKS.items():
        taken = families.inputs_of(spec, 1, families.example_size(spec))
        size = ", ".join("x".join(map(str, one.shape[1:])) for one in taken)
        table.add_row(name, f"{parameters(spec):,}", str(spec.number_of_blocks), size, spec.source)
    terminal.console().print(table)
    return 0


@app.command()
def check(
    names: Names = None,
    every: All = False,
    ports: Ports = None,
    images: Images = None,
    image_size: ImageSize = None,
    batch: Batch = None,
    steps: Steps = 3,
    optimizer: Optimizer = "sgd",
    seed: Seed = 0,
    weights: Weights = None,
    reduced: Reduced = False,
    accept: Accept = None,
    branches: Branches = False,
    dtype: Dtypes = None,
    decide: Decide = False,
    tf32: Tf32 = None,
    device: Device = "cpu",
    pairs: Pairs = False,
    names_file: mapping.NamesFile = None,
    diff: Diff = False,
    fix: Fix = False,
    json_file: Json = None,
    html_file: Html = None,
) -> int:
    """Check in float64 that the Flax ports are the same as the PyTorch port.

    `package.module:function` names a function that returns a pair of your own and its inputs:
    (torch_model, flax_model, *inputs), or a dict of `parity.check`'s arguments besides: (…, {"names": …}).
    The verdict comes from float64; --dtype measures each side's error in float32 or bfloat16. With --decide the check
    also judges every place of a port in that type: if it rounds more than PyTorch, the exit code is 1.
    """
    if bool(names) == every:
        raise UserError(
            "check: got both names and --all, expected one of them" if every else "check: name a network, or --all"
        )
    chosen = list(families.NETWORKS) if every else list(dict.fromkeys(names or []))
    if weights is not None and len(chosen) > 1:
        raise UserError(f"--weights: got {len(chosen)} networks, expected one")
    if (diff or fix) and not all(":" in name for name in chosen):
        raise UserError(f"{'--fix' if fix else '--diff'}: got a network of this package, expected a pair of your own")
    data_on_stdout = json_file == Path("-")
    aside = sys.stderr if data_on_stdout else sys.stdout  # output of somebody's code must not mix with the data
    for option, file in (("--json", None if data_on_stdout else json_file), ("--html", html_file)):
        terminal.writable(option, file)
    size = terminal.size(image_size)
    for name in chosen:
        if ":" not in name:
            families.get(name)

    from parity import api
    from parity.options import NetworkOptions
    from parity.reports import report as reports
    from parity.running import device as devices
    from parity.running import probes
    from parity.running.training import TrainingPlan
    from parity.verdict.precision import DTYPES, Policy

    dtypes = tuple(part.strip() for given in dtype or () for part in given.split(",") if part.strip())
    if dtype and not dtypes:
        raise UserError(f"--dtype: got {dtype[0]!r}, expected {' or '.join(DTYPES)}")
    if tf32 not in (None, *devices.TF32):
        raise UserError(f"--tf32: got {tf32!r}, expected {' or '.join(devices.TF32)}")
    # Leave out options that were not given: the check of a pair refuses the options of named networks.
    named = {
        "ports": None if ports is None else [port.strip() for port in ports.split(",") if port.strip()],
        "images": images,
        "image_size": size,
        "batch": batch,
        "weights": weights,
        "reduced": True if reduced or every else None,
    }
    named = {name: value for name, value in named.items() if value is not None}
    common = {"steps": steps, "optimizer": optimizer, "seed": seed, "dtypes": dtypes, "device": device}
    common["decide"] = decide
    common["tf32"] = None if tf32 is None else devices.TF32[tf32]
    # Report a wrong option before the first network runs.
    asked = NetworkOptions(**named, **common)
    devices.require(device, asked.tf32, Policy(asked.types).dtypes)
    TrainingPlan(steps, optimizer)
    if images is not None:
        probes.photographs(images)
    console, found, given = terminal.console(stderr=data_on_stdout), [], []
    for name in chosen:
        try:
            run: Any = api.check if ":" in name else api.check_network

            def checked(name: str = name, run: Any = run) -> reports.Report:
                with redirect_stdout(aside):
                    own, options = pair(name) if ":" in name else ((name,), {})
                given.append((own, options))
                options = {**options, "accept": accept} if accept else options
                options = {**options, "branches": True} if branches else options
                options = {**options, "names": mapping.names_of(names_file)} if names_file else options
                with _progress(name) as tell, redirect_stdout(aside):
                    return run(*own, **{**named, **common, **options}, progress=tell)

            result = checked()
            if (diff or fix) and not result:
                result = _mended(name, result, checked, fix)
        except UserError as error:
            if len(chosen) == 1:
                raise
            terminal.complain("parity", error)
            found.append(reports.Model(name, (), undecided=str(error)))
            continue
        found += result.models
        for line in result.models[0].pairing if pairs else ():
            console.print(line, markup=False, highlight=False, soft_wrap=True)
        result.print(console)
    whole = reports.Report(tuple(found), api.environment(device))
    if len(found) > 1:
        equal = sum(model.ok for model in found)
        console.print(f"{equal} of {len(found)} networks: parity in every port", highlight=False)
    if json_file is not None:
        data = json.dumps(whole.to_json(), indent=1, allow_nan=False) + "\n"
        sys.stdout.write(data) if data_on_stdout else terminal.write("--json", json_file, data)
    if html_file is not None:
        from parity.reports.html import page

        terminal.write("--html", html_file, page(whole))
    for model in whole.models:
        if model.undecided and model.rows:
            terminal.complain("parity", f"{model.model}: cannot tell: {model.undecided}")
    if len(chosen) == 1 and found:
        exportable = False
        if found[0].ok and ":" in chosen[0]:
            with _progress(chosen[0]) as tell, redirect_stdout(aside):
                tell("mapping")
                exportable = mapping.exportable(given[-1], names_file)
        said = f"next: {next_command(chosen[0], found[0], fix, exportable, names_file)}"
        console.print(said, markup=False, highlight=False, soft_wrap=True)
    return whole.exit_code


def next_command(name: str, model: Model, fixed: bool, exportable: bool = True, names: Path | None = None) -> str:
    """Return the command that is most useful after a check.

    Args:
        name: of the network, or of the function that makes the pair.
        fixed: whether changes were written into the port's source.
        exportable: whether a mapping of the pair can be written.
        names: the file that said which layer is which.
    """
    own = ":" in name
    if own and names is not None:
        name += f" --names {shlex.quote(str(names))}"
    if model.undecided:
        return f"parity check {name} --{'pairs' if own else 'ports nnx'}"
    if model.ok:
        if not own:
            return f"parity convert SRC DST --model {name}"
        return f"parity export-mapping {name} --script convert.py" if exportable else f"parity pairs {name}"
    if fixed and any(finding.diff for finding in model.findings):
        return f"parity check {name}"
    if own and not fixed and any(finding.fix and not finding.diff for finding in model.findings):
        return f"parity check {name} --diff"
    if any(finding.diff for finding in model.findings):
        return f"parity check {name} --fix"
    trap = next((finding.trap for finding in model.findings if finding.trap), None)
    return f"parity traps {trap}" if trap else f"parity check {name} --html report.html"


@app.command()
def diff(before: Before, after: After, times: Times = 10.0) -> int:
    """What changed between two results of `check --json`: exit 1 if something got worse."""
    from parity.reports import diff as diffs

    if not 1 < times < float("inf"):
        raise UserError(f"--times: got {times}, expected a number above 1, such as 10")
    old, new = diffs.load(before), diffs.load(after)
    changes = diffs.compare(old, new, times)
    diffs.show(terminal.console(), old, new, changes)
    return int(any(change.judgement == diffs.WORSE for change in changes))


def _mended(name: str, result: Any, checked: Callable[[], Any], write: bool) -> Any:
    """Return the report with the source changes that mend findings; write them to the source if asked."""
    from parity.commands import mending

    module = name.rpartition(":")[0]
    folders = [Path.cwd(), *([Path(module).resolve().parent] if module.endswith(".py") else [])]
    modules = mending.own_modules(folders)
    sources = mending.sources_of(modules)

    def again(changed: mending.Sources) -> Any:
        with mending.loaded_from(changed, modules):
            return checked().models[0]

    model, changed = mending.with_diffs(result.models[0], sources, again)
    for file, text in changed.items() if write else ():
        if text != sources[file]:
            terminal.write("--fix", file, text)
    return replace(result, models=(model,))


known.register(app)
agents.register(app)
cli_weights.register(app)
mapping.register(app, lambda path: pair(path))


def pair(path: str) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The models, inputs and options that a user's function returns: `package.module:function`, `file.py:function`.

    Raises:
        UserError: it cannot be loaded, raises, or returns something else.
    """
    from parity.options import GIVEN

    module, _, function = path.rpartition(":")
    folders = [str(Path.cwd()), *([str(Path(module).resolve().parent)] if module.endswith(".py") else [])]
    sys.path[:0] = folders
    try:
        made = getattr(_module(module), function)()
    except UserError:
        raise
    except Exception as error:  # whatever somebody's module raises
        from parity.running.raised import described

        expected = "a function that returns (torch_model, flax_model, *inputs)"
        raise UserError(f"{path}: {described(error)}; expected {expected}") from error
    finally:
        for folder in folders:
            sys.path.remove(folder)
    if not isinstance(made, tuple) or len(made) < 2:
        raise UserError(f"{path}: returned {type(made).__name__}, expected (torch_model, flax_model, *inputs)")
    last = made[-1]
    if isinstance(last, dict) and last and set(last) <= {*GIVEN}:
        return made[:-1], last
    return made, {}


def _module(name: str) -> Any:
    """Import a module by its name, or from a file."""
    if not name.endswith(".py"):
        return importlib.import_module(name)
    found = importlib.util.spec_from_file_location(Path(name).stem, name)
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    sys.modules[found.name] = module
    found.loader.exec_module(module)
    return module


def main(arguments: list[str] | None = None) -> int:
    """Runs the command; a user's mistake is one line on stderr and exit code 2."""
    return terminal.run(app, "parity", arguments)


if __name__ == "__main__":
    sys.exit(main())
