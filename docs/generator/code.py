"""Tables made from the code: the networks, the optimizers, the fields of records."""

from __future__ import annotations

import dataclasses
import inspect
import math
import re
from collections.abc import Callable, Iterator
from typing import Any

from docs.generator.tables import rows

PLACE = re.compile(r"(?m)^<!-- code: ([\w-]+)(?: (\w+))? -->$")


def families(_: str) -> list[str]:
    """Return a section for each family: its description, its networks, its options."""
    from ports.families import FAMILIES

    return [line for found in FAMILIES for line in family(found)]


def family(found: Any) -> Iterator[str]:
    module = inspect.getmodule(found.description)
    yield from (f"## {found.title}", "", inspect.getdoc(module) or "", "")
    lines: list[tuple[object, ...]] = [("network", "parameters", "blocks", "input", "source")]
    for spec in found.networks.values():
        (given,) = found.inputs(spec, 1, found.size(spec))
        shape = "x".join(map(str, given.shape[1:]))
        lines.append((f"`{spec.name}`", f"{parameters(found, spec):,}", spec.number_of_blocks, shape, spec.source))
    yield from (*rows(*lines), "", "Options of `ports.create` for this family:", "")
    some = next(iter(found.networks.values()))
    records = (found.description, *(type(getattr(some, part)) for part in found.parts))
    lines = [("option", "what it is")]
    lines += [(f"`{n}`", cell(text)) for record in records for n, text in attributes(record).items()]
    yield from (*rows(*lines), "")


def cell(text: str) -> str:
    return text.replace("|", "\\|")


def parameters(found: Any, spec: Any) -> int:
    """Return the number of parameters of a network, without statistics; a shared tensor counts once."""
    statistics = ("running_mean", "running_var", "num_batches_tracked")
    layers = (layer for layer in found.layers(spec) if not layer.tied)
    shapes = (shape for layer in layers for n, shape in layer.shapes.items() if n not in statistics)
    return sum(math.prod(shape) for shape in shapes)


def attributes(record: type) -> dict[str, str]:
    """Return the texts about the fields in the docstring of a record."""
    text = (inspect.getdoc(record) or "").partition("Attributes:\n")[2].partition("\nRaises:")[0]
    found: dict[str, str] = {}
    last = ""
    for line in text.splitlines():
        if match := re.match(r" {4}(\w[\w, ]*): (.*)", line):
            names = match[1].split(", ")
            found |= dict.fromkeys(names, match[2])
            last = names[-1]
        elif last and line.strip():
            found[last] += " " + line.strip()
    return found


def options_of(record: type) -> list[str]:
    """Return a row for each field of a record of options, inherited ones first."""
    about = {name: text for base in reversed(record.__mro__) for name, text in attributes(base).items()}
    lines: list[tuple[object, ...]] = [("option", "default", "what it is")]
    for field in dataclasses.fields(record):
        lines.append((f"`{field.name}`", f"`{default(field)}`", cell(about.get(field.name, ""))))
    return rows(*lines)


def default(field: dataclasses.Field[Any]) -> str:
    value = getattr(field.default, "__name__", field.default)
    return "" if value is dataclasses.MISSING else repr(value) if not callable(field.default) else str(value)


# Keys that the docstrings of the report's records do not explain.
PLAIN = {
    "model": "the name of the network, or the class of the reference",
    "rows": "a row for each quantity of each port",
    "first_divergence": "the first layer that leaves its bound",
    "note": "what was checked: paired layers, images, seeds",
    "seconds": "how long the check took",
    "port": "`nnx` or `linen`",
    "quantity": "what is compared, such as `output.eval` or `gradient.parameter`",
    "tensor": "the worst tensor",
    "layer": "its PyTorch name",
    "distance": "‖port − reference‖ / ‖reference‖",
    "bound": "the largest distance that rounding can explain",
    "ok": "whether the distance is within the bound",
    "dtype": "the type of the computation",
    "text": "what was found, in one line",
    "steps": "after how many steps `drift` was measured",
}


def json_type(annotation: str) -> str:
    """Return what a type is in JSON."""
    return re.sub(r"tuple\[([\w.]+), \.\.\.\]", r"list[\1]", annotation).replace(" | ", " or ").replace("None", "null")


def keys_of(record: type) -> list[str]:
    """Return a row for each key that a record has in the JSON."""
    about = {**PLAIN, **attributes(record)}
    lines: list[tuple[object, ...]] = [("key", "type", "what it is")]
    for field in dataclasses.fields(record):
        lines.append((f"`{field.name}`", f"`{json_type(str(field.type))}`", cell(about.get(field.name, ""))))
    return rows(*lines)


def options(name: str) -> list[str]:
    from parity import options as records

    return options_of(getattr(records, name))


def keys(name: str) -> list[str]:
    from parity.reports import report

    return keys_of(getattr(report, name))


def optimizers(_: str) -> list[str]:
    """Return a row for each named optimizer."""
    from ports.optimizers import VARIANTS

    lines: list[tuple[object, ...]] = [("name", "PyTorch's optimizer", "transform of `ports.optim`")]
    for name, variant in VARIANTS.items():
        given = ", ".join(f"{key}={value}" for key, value in variant.options.items())
        lines.append((f"`{name}`", f"`torch.optim.{variant.form.torch}`", f"`{variant.form.transform}({given})`"))
    return rows(*lines)


def formats(_: str) -> list[str]:
    """Return a row for each file format."""
    from ports.weights.files.formats import FORMATS

    lines: list[tuple[object, ...]] = [("`--format`", "names end in", "a folder")]
    for name, row in FORMATS.items():
        lines.append((f"`{name}`", " ".join(f"`{one}`" for one in row.suffixes), "yes" if row.folder else ""))
    return rows(*lines)


def dialects(_: str) -> list[str]:
    """Return a row for each dialect, that is, for each project whose names a file may have."""
    from ports.weights.known.dialects import DIALECTS

    return rows(("dialect", "whose names"), *((f"`{name}`", cell(row.source)) for name, row in DIALECTS.items()))


def commands(_: str) -> list[str]:
    """Return what `--help` says of each command."""
    return [line for name in COMMANDS for line in (f"### parity {name}", "", "```text", *help_of(name), "```", "")]


def fixes(_: str) -> list[str]:
    """Return, for each place, how many of the wrong arguments have a verified `fix`."""
    from tests.meta.argument_parts import OF_ARGUMENTS, VERIFIED

    lines: list[tuple[object, ...]] = [("mistakes in", "are arguments", "with a verified `fix`")]
    for place in (*dict.fromkeys(trap.place for trap in OF_ARGUMENTS), ""):
        names = [trap.name for trap in OF_ARGUMENTS if place in ("", trap.place)]
        lines.append((WHERE[place], len(names), len([name for name in names if name in VERIFIED])))
    return rows(*lines)


WHERE = {
    "weight": "weights",
    "layer": "layers",
    "between": "functions between layers",
    "loss": "losses",
    "training": "training",
    "": "all of these",
}
COMMANDS = ("check", "traps", "diff", "convert", "inspect", "pairs", "export-mapping", "models", "mcp", "skill")


def help_of(name: str) -> Iterator[str]:
    from typer.testing import CliRunner

    from parity.commands.cli import app

    said = CliRunner().invoke(app, [name, "--help"], env={"COLUMNS": "100", "NO_COLOR": "1"}).output
    yield from said.replace("Usage: root", "Usage: parity").strip().splitlines()


TABLES: dict[str, Callable[[str], list[str]]] = {
    "families": families,
    "options": options,
    "keys": keys,
    "optimizers": optimizers,
    "formats": formats,
    "dialects": dialects,
    "commands": commands,
    "fixes": fixes,
}


def filled(text: str) -> str:
    """Return the text of a page with the tables from the code filled in."""
    return PLACE.sub(lambda place: "\n".join(TABLES[place[1]](place[2] or "")), text)
