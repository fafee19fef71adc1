"""The commands `parity convert` and `parity inspect`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from ports.errors import UserError, printable, shortened

Source = Annotated[str, typer.Argument(metavar="SRC", help="A file, an Orbax folder, hf://… or torchvision://…")]
Output = Annotated[
    Path, typer.Argument(metavar="DST", help="The suffix gives the format; no suffix means an Orbax folder.")
]
Model = Annotated[str | None, typer.Option(metavar="NAME", help="The network, if its tensors do not show it.")]
RulesFile = Annotated[Path | None, typer.Option("--rules", metavar="FILE", help="TOML: rules for your own network.")]
To = Annotated[
    str | None, typer.Option(help="Names and layouts of torch, nnx or linen; by default what suits the format.")
]
FormatName = Annotated[str | None, typer.Option("--format", help="Format of DST: torch safetensors npz msgpack orbax.")]
SourceFormat = Annotated[
    str | None, typer.Option("--source-format", help="Format of SRC, if its name does not show it.")
]
Check = Annotated[bool, typer.Option("--check", help="Prove the result in float64 before it is kept.")]
Force = Annotated[
    bool, typer.Option("--force", help="Replace DST: a file, or a folder with only a checkpoint of its format.")
]
Stacked = Annotated[bool, typer.Option("--stacked", help="For a decoder: all its blocks in one array, for scan.")]
Fold = Annotated[bool, typer.Option("--fold-batchnorm", help="Make BatchNorms part of their convolutions.")]
ShardSize = Annotated[
    str | None, typer.Option(metavar="N", help="Write a folder of safetensors of N bytes each (or 500MB, 5GB).")
]
Key = Annotated[str | None, typer.Option(help="Where the weights are in a training checkpoint: ema.")]
WeightsOnly = Annotated[bool, typer.Option("--weights-only", help="Leave the state of the optimizer out.")]
Steps = Annotated[int | None, typer.Option(min=0, help="Steps of training done, if SRC does not have the number.")]
Config = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="A transformers' config.json of the network, if SRC has none beside it."),
]
Draft = Annotated[bool, typer.Option("--rules", help="Write a first draft of rules from the first file to the second.")]
Values = Annotated[bool, typer.Option("--values", help="Also read the numbers: NaN, infinite, all zero.")]
MaxMemory = Annotated[
    str | None,
    typer.Option(metavar="N", help="Memory that reading may take, in bytes (or 500MB, 5GB)."),
]
Files = Annotated[
    list[str],
    typer.Argument(metavar="FILE...", help="A file or a folder; two, or package.module:function, with --rules."),
]

WIDEST = 100  # characters of a name that the column of names makes room for
UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9}


def register(app: typer.Typer) -> None:
    """Adds the commands."""
    app.command()(convert)
    app.command()(inspect)


def convert(
    source: Source,
    output: Output,
    model: Model = None,
    rules: RulesFile = None,
    to: To = None,
    format_name: FormatName = None,
    source_format: SourceFormat = None,
    check: Check = False,
    force: Force = False,
    fold_batchnorm: Fold = False,
    stacked: Stacked = False,
    shard_size: ShardSize = None,
    key: Key = None,
    weights_only: WeightsOnly = False,
    steps: Steps = None,
    config: Config = None,
    max_memory: MaxMemory = None,
) -> int:
    """Convert a checkpoint between PyTorch, NNX and Linen: formats, names, layouts, optimizer state."""
    from ports.weights.checkpoints.convert import convert as run
    from ports.weights.checkpoints.convert import summary
    from ports.weights.checkpoints.pretrained import fetched
    from ports.weights.rules import rulesfile

    if model is not None and rules is not None:
        raise UserError("convert: got both --model and --rules, expected one of them")
    verify = None
    if check:
        from parity.commands.converted import verify

        if rules is not None:
            raise UserError("--check: needs a known network; for your own use `parity check package.module:function`")
    result = run(
        fetched(source),
        output,
        model=model,
        rules=rulesfile.load(rules) if rules else None,
        to=to,
        source_format=source_format,
        format=format_name,
        key=key,
        weights_only=weights_only,
        steps=steps,
        config=config,
        fold_batchnorm=fold_batchnorm,
        stacked=stacked,
        shard_size=_bytes("--shard-size", shard_size),
        max_memory=_bytes("--max-memory", max_memory),
        force=force,
        verify=verify,
    )
    for line in summary(result):
        print(shortened(printable(line)))
    if check:
        print("checked in float64: the written network is the source")
    for note in result.notes:
        print(f"parity: note: {shortened(printable(note))}", file=sys.stderr)
    return 0


def _bytes(option: str, text: str | None) -> int | None:
    if text is None:
        return None
    number = text.upper().rstrip("KMGB")
    unit = text.upper()[len(number) :]
    if not number.isdigit() or unit not in UNITS or int(number) < 1:
        raise UserError(f"{option}: got {text!r}, expected a number of bytes, or one with KB, MB or GB")
    return int(number) * UNITS[unit]


def inspect(
    files: Files,
    rules: Draft = False,
    model: Model = None,
    source_format: SourceFormat = None,
    key: Key = None,
    values: Values = False,
    config: Config = None,
    max_memory: MaxMemory = None,
) -> int:
    """Say what a checkpoint holds: format, dialect, network, tensors, and what is unusual."""
    from ports.weights.checkpoints import inspection
    from ports.weights.checkpoints.pretrained import fetched
    from ports.weights.rules import draft

    if rules:
        if len(files) != 2:
            raise UserError(f"inspect --rules: got {len(files)} files, expected two")
        print(draft.draft(*(inspection.tensors(file, source_format) for file in files)), end="")
        return 0
    options: dict[str, Any] = {"format": source_format, "model": model, "key": key}
    options |= {"max_memory": _bytes("--max-memory", max_memory), "config": config}
    for file in files:
        _print(inspection.inspect(fetched(file), values=values, **options))
    return 0


def _print(found: Any) -> None:
    for name, text in found.facts.items():
        print(f"{shortened(printable(name)):<20}{shortened(printable(text))}")
    for note in found.notes:
        print(f"{'note':<20}{shortened(printable(note))}")
    rows = [(shortened(printable(name)), shape, dtype) for name, shape, dtype in found.rows]
    width = min(max((len(name) for name, _, _ in rows), default=0), WIDEST)
    for name, shape, dtype in rows:
        print(f"  {name:<{width}}  {shape:<20} {dtype}".rstrip())
