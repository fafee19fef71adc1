"""The command `parity`: exit 0 parity, 1 mismatch, 2 the question could not be put (one line on stderr says why)."""

from __future__ import annotations

import importlib
import json
import os
import re
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from parity import cli_weights
from ports.errors import UserError
from ports.resnet.spec import NETWORKS

app = typer.Typer(
    help="Residual networks in PyTorch, Flax NNX and Flax Linen, proved equal in float64.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
)

# typer carries a click of its own, or uses the installed one: the base class of its errors is the same name in both.
USAGE_ERROR: Any = next(cls for cls in typer.BadParameter.__mro__ if cls.__name__ == "ClickException")

Names = Annotated[
    list[str] | None,
    typer.Argument(metavar="NAME...", help="Networks (`parity models` lists them), or package.module:function."),
]
All = Annotated[bool, typer.Option("--all", help="Every named network.")]
Ports = Annotated[str, typer.Option(help="Which ports to hold against PyTorch.")]
Images = Annotated[Path | None, typer.Option(help="A photograph or a folder of them; else two from scikit-learn.")]
ImageSize = Annotated[str | None, typer.Option(metavar="HxW", help="Else the network's height and an odd width.")]
Batch = Annotated[int, typer.Option(help="Number of images.")]
Steps = Annotated[int, typer.Option(help="Steps of SGD with momentum and weight decay.")]
Seed = Annotated[int, typer.Option(help="Of initial weights, labels and perturbations.")]
Weights = Annotated[Path | None, typer.Option(help="A PyTorch or safetensors file; else initial weights.")]
Accept = Annotated[
    list[str] | None, typer.Option(metavar="TRAP", help="A difference that is meant; `parity traps` lists them.")
]
Json = Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write the result there.")]


Html = Annotated[Path | None, typer.Option("--html", metavar="FILE", help="Write a page to look at there.")]


@app.command()
def models() -> int:
    """The named networks: parameters, blocks, where they come from."""
    from ports.resnet import pytorch

    table = Table("name", box=None, pad_edge=False)
    for heading in ("parameters", "blocks", "input"):
        table.add_column(heading, justify="right")
    table.add_column("source")
    for name, spec in NETWORKS.items():
        parameters = sum(p.numel() for p in pytorch.skeleton(spec).parameters())
        blocks, size = spec.number_of_blocks, f"{spec.in_channels}x{spec.input_size}x{spec.input_size}"
        table.add_row(name, f"{parameters:,}", str(blocks), size, spec.source)
    _console().print(table)
    return 0


@app.command()
def check(
    names: Names = None,
    every: All = False,
    ports: Ports = "nnx,linen",
    images: Images = None,
    image_size: ImageSize = None,
    batch: Batch = 2,
    steps: Steps = 3,
    seed: Seed = 0,
    weights: Weights = None,
    accept: Accept = None,
    json_file: Json = None,
    html_file: Html = None,
) -> int:
    """Check in float64 that the Flax ports are the same as the PyTorch port.

    `package.module:function` names a function that returns a pair of your own and its inputs:
    (torch_model, flax_model, *inputs), or a dict of `parity.check`'s arguments besides: (…, {"names": …}).
    """
    if bool(names) == every:
        raise UserError(
            "check: got both names and --all, expected one of them" if every else "check: name a network, or --all"
        )
    chosen = list(NETWORKS) if every else list(dict.fromkeys(names or []))
    if weights is not None and len(chosen) > 1:
        raise UserError(f"--weights: got {len(chosen)} networks, expected one")
    for option, file in (("--json", json_file), ("--html", html_file)):
        if file is not None and not file.absolute().parent.is_dir():
            raise UserError(f"{option} {file}: no such folder {file.absolute().parent}")
        if file is not None and file.is_dir():
            raise UserError(f"{option} {file}: is a folder, expected a file")
    size = _size(image_size)
    for name in chosen:
        if ":" not in name:
            _known(name)

    from parity import probe
    from parity import report as reports
    from parity.checker import check as run
    from parity.checker import environment, require

    chosen_ports = [port.strip() for port in ports.split(",") if port.strip()]
    require(chosen_ports, batch, steps, seed)
    if images is not None:
        probe.photographs(images)
    console, found = _console(), []
    for name in chosen:
        try:
            own, options = _pair(name) if ":" in name else ((name,), {"images": images, "image_size": size})
            options = {**options, "accept": accept} if accept else options
            with _progress(name) as tell:
                result = run(
                    *own,
                    **{
                        "ports": chosen_ports,
                        "batch": batch,
                        "steps": steps,
                        "seed": seed,
                        "weights": weights,
                        **options,
                    },
                    progress=tell,
                )
        except UserError as error:
            if len(chosen) == 1:
                raise
            _complain(str(error))
            found.append(reports.Model(name, (), undecided=str(error)))
            continue
        found += result.models
        result.print(console)
    whole = reports.Report(tuple(found), environment())
    if len(found) > 1:
        equal = sum(model.ok for model in found)
        console.print(f"{equal} of {len(found)} networks: parity in every port", highlight=False)
    if json_file is not None:
        _write("--json", json_file, json.dumps(whole.to_json(), indent=1, allow_nan=False) + "\n")
    if html_file is not None:
        from parity.html import page

        _write("--html", html_file, page(whole))
    for model in whole.models:
        if model.undecided and model.rows:
            _complain(f"{model.model}: cannot tell: {model.undecided}")
    return whole.exit_code


@app.command()
def traps() -> int:
    """The known mistakes that a finding can name: where they are made, what they do, how to mend them."""
    from parity import catalogue

    table = Table("name", "where", "what the port does", "mend", box=None, pad_edge=False)
    for entry in catalogue.entries():
        table.add_row(entry.name, entry.where, entry.text, entry.mend)
    _console().print(table)
    return 0


cli_weights.register(app)


def _pair(path: str) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The models, inputs and options that a function of the user's returns."""
    module, _, function = path.partition(":")
    sys.path.insert(0, str(Path.cwd()))
    try:
        made = getattr(importlib.import_module(module), function)()
    except UserError:
        raise
    except Exception as error:  # whatever somebody's module raises
        said = f"{type(error).__name__}: {str(error).strip()}".partition("\n")[0]
        expected = "a function that returns (torch_model, flax_model, *inputs)"
        raise UserError(f"{path}: {said}; expected {expected}") from error
    finally:
        sys.path.remove(str(Path.cwd()))
    if not isinstance(made, tuple) or len(made) < 2:
        raise UserError(f"{path}: returned {type(made).__name__}, expected (torch_model, flax_model, *inputs)")
    known = {"names", "loss", "layouts", "keywords", "accept", "steps", "seed"}
    last = made[-1]
    if isinstance(last, dict) and last and set(last) <= known:
        return made[:-1], last
    return made, {}


def _known(name: str) -> None:
    from ports.resnet import spec

    spec.get(name)


def _size(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    parts = text.lower().split("x")
    if len(parts) not in (1, 2) or not all(re.fullmatch("0*[1-9][0-9]{0,8}", part) for part in parts):
        raise UserError(f"--image-size: got {text!r}, expected HxW such as 224x193, or one number")
    return int(parts[0]), int(parts[-1])


def _console() -> Console:
    """As wide as the terminal; wide enough for a whole table where the output goes into a file."""
    return Console() if sys.stdout.isatty() else Console(width=140)


class _progress:
    """Says on stderr what is being done: a moving line on a terminal, elsewhere a line after every `EVERY` seconds."""

    EVERY = 10

    def __init__(self, name: str) -> None:
        self.name, self.moving, self.said = name, sys.stderr.isatty(), time.monotonic()
        columns = (
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(pulse_style="cyan"),
            TimeElapsedColumn(),
        )
        self.bar = Progress(*columns, console=Console(stderr=True), transient=True, disable=not self.moving)

    def __enter__(self) -> Any:
        self.bar.start()
        task = self.bar.add_task(self.name, total=None)

        def tell(text: str) -> None:
            if self.moving:
                self.bar.update(task, description=f"{self.name}: {text}")
            elif time.monotonic() - self.said >= self.EVERY:
                self.said = time.monotonic()
                print(f"{self.name}: {text}", file=sys.stderr, flush=True)

        return tell

    def __exit__(self, *_: object) -> None:
        self.bar.stop()


def _write(option: str, path: Path, text: str) -> None:
    """The file appears whole or not at all."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        partial.write_text(text)
        partial.replace(path)
    except OSError as error:
        raise UserError(f"{option} {path}: cannot be written: {error.strerror}") from None
    finally:
        partial.unlink(missing_ok=True)


def _complain(text: str) -> None:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    more = f" … and {len(lines) - 4} more" if len(lines) > 4 else ""
    print(f"parity: {' '.join(lines[:1])} {'; '.join(lines[1:4])}".rstrip() + more, file=sys.stderr)


def main(arguments: list[str] | None = None) -> int:
    """Runs the command; a user's mistake is one line on stderr and exit code 2."""
    try:
        code = app(args=arguments, standalone_mode=False, prog_name="parity")
    except USAGE_ERROR as error:
        if type(error).__name__ == "NoArgsIsHelpError":
            print(error.format_message())
        else:
            _complain(error.format_message())
        return 2
    except UserError as error:
        _complain(str(error))
        return 2
    except MemoryError:
        _complain("out of memory; take a smaller --batch or --image-size, or a smaller network")
        return 2
    except (KeyboardInterrupt, typer.Abort):
        _complain("interrupted")
        return 130
    except RuntimeError as error:
        if any(sign in str(error) for sign in ("can't allocate memory", "RESOURCE_EXHAUSTED", "Out of memory")):
            _complain("out of memory; take a smaller --batch or --image-size, or a smaller network")
            return 2
        raise
    return code if isinstance(code, int) else 0


if __name__ == "__main__":
    sys.exit(main())
