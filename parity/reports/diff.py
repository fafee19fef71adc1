"""What changed between two results of `parity check --json`, and whether anything got worse.

Worse means: a row that was ok and no longer is, or is gone; another finding at a layer; a network or port that is gone,
or new and not ok; a network that can no longer be decided. A distance that grows notably within its bound is shown, but
is not worse: the bound is what rounding may do.
"""

from __future__ import annotations

import json
import math
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from parity.reports.report import SCHEMA
from ports.errors import UserError, printable

WORSE, BETTER, NEITHER = "worse", "better", ""
STYLES = {WORSE: "bold red", BETTER: "green", NEITHER: ""}
ABSENT = "–"

# The parts of a file that are read, by key: types, or a list of objects; a file may hold more. `None` where a value may
# be absent.
NUMBER, NAME = (float, int, type(None)), (str, type(None))
ROW = {"port": str, "quantity": str, "tensor": str, "distance": NUMBER, "bound": NUMBER, "ok": bool}
FINDING = {"port": str, "layer": str, "trap": NAME, "text": str}
MODEL = {"model": str, "ok": bool, "rows": [ROW]}
FILE = {"schema": int, "models": [MODEL], "environment": dict}
# Optional keys: earlier versions of this package did not write all of them.
LATER = {"findings": [FINDING], "undecided": NAME, "note": NAME}

# The number of digits of an integer that a float holds exactly.
LONGEST = 300

# Distances below one unit in the last place do not differ notably from one another.
LEAST = sys.float_info.epsilon


@dataclass(frozen=True)
class Change:
    """One change between the two results.

    Attributes:
        what: a quantity, `finding at …`, `network`, `port`, `setting` or `cannot tell`.
        ratio: the distance after, divided by the distance before; None if there is no such number.
    """

    model: str
    port: str
    what: str
    before: str
    after: str
    judgement: str
    ratio: float | None = None


def load(path: Path) -> dict[str, Any]:
    """A file of `parity check --json`.

    Raises:
        UserError: no such file, not JSON, cut off, another schema, another content.
    """
    again = "expected a whole file of `parity check --json`; write it again"
    try:
        text = path.read_text(encoding="utf-8")
        found = json.loads(text, parse_int=lambda digits: int(digits) if len(digits) < LONGEST else math.inf)
    except OSError as error:
        said = "no such file" if isinstance(error, FileNotFoundError) else f"cannot be read: {error.strerror}"
        raise UserError(f"{path}: {said}; expected a file of `parity check --json`") from None
    except json.JSONDecodeError as error:
        raise UserError(
            f"{path}: not JSON at line {error.lineno} column {error.colno} ({error.msg}); {again}"
        ) from None
    except (ValueError, RecursionError):
        raise UserError(f"{path}: not JSON; {again}") from None
    schema = found.get("schema") if isinstance(found, dict) else None
    if schema != SCHEMA or isinstance(schema, bool):
        got = "no schema" if schema is None else f"schema {schema!r:.40}"
        raise UserError(f"{path}: got {got}, expected schema {SCHEMA}; write both files with one version of parity")
    if problem := next(_problems(found, FILE, ""), None):
        raise UserError(f"{path}: {problem}; {again}")
    return found


def _problems(value: Any, shape: Any, place: str) -> Iterator[str]:
    """Everything that does not have the given `shape`: `models[0].rows[2].ok: got int, expected bool`."""
    if isinstance(shape, list):
        if not isinstance(value, list):
            yield f"{place}: got {type(value).__name__}, expected list"
            return
        for i, entry in enumerate(value):
            yield from _problems(entry, shape[0], f"{place}[{i}]")
    elif isinstance(shape, dict):
        if not isinstance(value, dict):
            yield f"{place}: got {type(value).__name__}, expected dict"
            return
        known = {**shape, **({k: s for k, s in LATER.items() if k in value} if shape is MODEL else {})}
        for key, inner in known.items():
            name = f"{place}.{key}".lstrip(".")
            yield from _problems(value[key], inner, name) if key in value else (f"{name}: is missing",)
    elif type(value) not in (types := shape if isinstance(shape, tuple) else (shape,)):
        yield f"{place}: got {type(value).__name__}, expected {' or '.join(t.__name__ for t in types)}"


def compare(before: Mapping[str, Any], after: Mapping[str, Any], times: float = 10.0) -> list[Change]:
    """All changes except the environment, in the order of the networks.

    Args:
        before, after: what `load` gives.
        times: the smallest factor that counts as a change, for a distance that stays on its side of the bound.
    """
    old, new = _models(before), _models(after)
    found = []
    for key in dict.fromkeys((*old, *new)):
        name = key[0]
        if key not in new or key not in old:
            found.append(_whole(name, ABSENT, "network", old.get(key), new.get(key)))
        else:
            found += _model(name, old[key], new[key], times)
    return found


def environment(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """(name, before, after) of the environments; the date always differs and is left out."""
    old, new = before["environment"], after["environment"]
    names = (name for name in dict.fromkeys((*old, *new)) if name != "date")
    pairs = ((name, str(old.get(name, ABSENT)), str(new.get(name, ABSENT))) for name in names)
    return [(name, a, b) for name, a, b in pairs if a != b]


def _models(file: Mapping[str, Any]) -> dict[tuple[str, int], Mapping[str, Any]]:
    """Entries by name, with a number if several have the same name."""
    seen = Counter[str]()
    found = {}
    for model in file["models"]:
        seen[model["model"]] += 1
        found[model["model"], seen[model["model"]]] = model
    return found


def _whole(model: str, port: str, what: str, old: Mapping[str, Any] | None, new: Mapping[str, Any] | None) -> Change:
    """A network or a port that is gone, or new: only `ok` counts."""
    before, after = (ABSENT if side is None else "ok" if side["ok"] else "not ok" for side in (old, new))
    return Change(model, port, what, before, after, NEITHER if new and new["ok"] else WORSE)


def _model(name: str, old: Mapping[str, Any], new: Mapping[str, Any], times: float) -> Iterator[Change]:
    if (was := old.get("note")) != (now := new.get("note")):
        yield Change(name, ABSENT, "setting", was or ABSENT, now or ABSENT, NEITHER)
    was, now = old.get("undecided"), new.get("undecided")
    if was != now:
        judgement = NEITHER if was and now else WORSE if now else BETTER
        yield Change(name, ABSENT, "cannot tell", was or ABSENT, now or ABSENT, judgement)
    a, b = _rows(old), _rows(new)
    for port in dict.fromkeys((*a, *b)):
        if port not in a or port not in b:
            sides = ({"ok": all(r["ok"] for r in side[port].values())} if port in side else None for side in (a, b))
            yield _whole(name, port, "port", *sides)
            continue
        for quantity in dict.fromkeys((*a[port], *b[port])):
            yield from _row(name, port, quantity[0], a[port].get(quantity), b[port].get(quantity), times)
        if "findings" in old and "findings" in new:
            yield from _findings(name, port, old["findings"], new["findings"])


def _rows(model: Mapping[str, Any]) -> dict[str, dict[tuple[str, str], Mapping[str, Any]]]:
    found: dict[str, dict[tuple[str, str], Mapping[str, Any]]] = {}
    for row in model["rows"]:
        found.setdefault(row["port"], {})[row["quantity"], row.get("dtype", "")] = row
    return found


def _row(
    model: str, port: str, quantity: str, old: Mapping[str, Any] | None, new: Mapping[str, Any] | None, times: float
) -> Iterator[Change]:
    texts = (_said(old), _said(new))
    if not old or not new:
        worse = not new["ok"] if new else old is not None and old["ok"]
        yield Change(model, port, quantity, *texts, WORSE if worse else NEITHER)
        return
    a, b = (math.nan if row["distance"] is None else float(row["distance"]) for row in (old, new))
    finite = math.isfinite(a), math.isfinite(b)
    ratio = b / a if all(finite) and a > 0 else None
    part = max(b, LEAST) / max(a, LEAST) if all(finite) else 1.0
    notable = finite[0] != finite[1] or part >= times or part <= 1 / times
    if notable or old["ok"] != new["ok"] or old["tensor"] != new["tensor"]:
        judgement = NEITHER if old["ok"] == new["ok"] else BETTER if new["ok"] else WORSE
        yield Change(model, port, quantity, *texts, judgement, ratio)


def _said(row: Mapping[str, Any] | None) -> str:
    if row is None:
        return ABSENT
    distance = row["distance"]
    number = f"{distance:.1e}" if distance is not None and math.isfinite(distance) else "not finite"
    return f"{'ok' if row['ok'] else 'DIFFERS'} {number} {row['tensor']}"


def _findings(model: str, port: str, old: list[dict[str, Any]], new: list[dict[str, Any]]) -> Iterator[Change]:
    """Compare findings layer by layer: another name at a layer is not a new finding, and texts do not matter."""
    a, b = (
        [
            (layer, f["trap"] or "a mistake")
            for f in side
            if f["port"] == port
            for layer in (f["layer"], *f.get("also", ()))
        ]
        for side in (old, new)
    )
    for layer in dict.fromkeys(name for name, _ in (*a, *b)):
        was, now = (sorted(trap for name, trap in side if name == layer) for side in (a, b))
        if was != now:
            judgement = WORSE if len(now) > len(was) else BETTER if len(now) < len(was) else NEITHER
            before, after = (", ".join(side) or ABSENT for side in (was, now))
            yield Change(model, port, f"finding at {layer}", before, after, judgement)


def show(console: Console, before: Mapping[str, Any], after: Mapping[str, Any], changes: list[Change]) -> None:
    """The table of changes, the changes of the environment, and the conclusion."""
    table = Table("network", "port", "what", "before", "after", "ratio", "")
    for c in changes:
        ratio = ABSENT if c.ratio is None else f"{c.ratio:.2g}"
        cells = (c.model, c.port, c.what, c.before, c.after, ratio, c.judgement)
        table.add_row(*(Text(printable(cell), overflow="fold") for cell in cells), style=STYLES[c.judgement])
    if changes:
        console.print(table)
    for name, old, new in environment(before, after):
        console.print(f"{name}: {old} → {new}", markup=False, highlight=False, soft_wrap=True)
    counts = Counter(c.judgement or "neither better nor worse" for c in changes)
    said = ", ".join(f"{n} {kind}" for kind, n in counts.items()) or f"none; networks: {len(after['models'])}"
    console.print(f"changes: {said}", markup=False, highlight=False)
