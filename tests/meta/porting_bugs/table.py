"""Writes `docs/porting-bugs.md` from what was measured: `python -m tests.meta.porting_bugs.table`."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from . import KINDS, names

ROOT = Path(__file__).resolve().parents[3]
STORED = ROOT / "benchmarks" / "results" / "porting-bugs-cpu.json"
# The bugs that were written blind, as they were first measured: never measured again.
FIRST = ROOT / "benchmarks" / "results" / "porting-bugs-blind-first-run-cpu.json"
PAGE = ROOT / "docs" / "porting-bugs.md"

HEAD = """# Porting bugs

Real projects had these bugs when they moved a model from one framework to another. Each is replayed as a small
PyTorch model and a Flax port, the port once right and once with the bug. `tests/meta/porting_bugs/` holds one module
for each; `python -m tests.meta.porting_bugs NAME` runs one of them.

Weights are PyTorch's initial ones, with random numbers in norms and biases. `parity.move` brings them into the port.

- *caught*: the check ends with exit code 1 for the wrong version.
- *place*: its first finding is at the layer of the bug, inside it, or at the block that holds it. The whole network
  holds a layer that is in no block.
- *named*: its first finding says what the bug is. The pattern for that was written before the bug was run. 14 patterns
  were made stricter after that, because words that many findings have matched them; none was made weaker. The names of
  files in a finding do not count, for they are the bugs' own.
- *named, no trap added*: the same, without the bugs for which the check got a new known mistake, or another change to
  try, after their first run.
- The rules beside it see the outputs of the same two versions in eval mode, in float32: `allclose` with equal relative
  and absolute tolerance, the cosine of all outputs, the KL divergence of the softmax over the last axis, and the error
  of the port in bfloat16 over that of PyTorch in bfloat16. A rule finds a bug where it rejects the wrong version.

`tests/meta/porting_bugs/table.py` writes this page from `benchmarks/results/porting-bugs-cpu.json`. Intervals are
Wilson's, for 95 %."""

# Of the check, by heading: the field that is counted.
CHECK = {"caught": "caught", "place": "place", "named": "named", "right version passes": "passes"}

Rows = Mapping[str, Mapping[str, Any]]


def wilson(count: int, total: int) -> tuple[float, float]:
    """Return Wilson's score interval for a share, at 95 %.

    Source: Wilson 1927, Probable inference, the law of succession, and statistical inference.
    """
    z = 1.959964
    centre, spread = (count + z * z / 2) / (total + z * z), z / (total + z * z)
    width = spread * math.sqrt(count * (total - count) / total + z * z / 4)
    return max(centre - width, 0.0), min(centre + width, 1.0)


def share(said: Iterable[bool | None]) -> str:
    """Return how many of how many, with the interval; what cannot be said does not count."""
    known = [bool(one) for one in said if one is not None]
    if not known:
        return ""
    low, high = wilson(sum(known), len(known))
    return f"{sum(known)} of {len(known)} [{low:.0%}, {high:.0%}]"


def page(stored: Mapping[str, Any]) -> str:
    """Return the page that stored outcomes give."""
    bugs: Rows = stored["bugs"]
    versions = ", ".join(f"{name} {version}" for name, version in stored["versions"].items())
    parts = [HEAD, f"Measured on the CPU with {versions}.", totals(bugs), first_run(), by_kind(bugs)]
    return "\n\n".join([*parts, each(bugs), misses(bugs)]).rstrip() + "\n"


def first_run() -> str:
    """Return what the check made of the bugs that were written blind before anything was mended for them."""
    bugs: Rows = json.loads(FIRST.read_text())["bugs"]
    said = "; ".join(f"{heading} {share(b[field] for b in bugs.values())}" for heading, field in CHECK.items())
    return f"The bugs that were written blind, at their first run: {said}. The check was mended with what they showed."


def totals(bugs: Rows) -> str:
    """Return the table of the check and its rivals: all bugs, and the two kinds of writers apart."""
    groups = {
        "all": bugs,
        "written with the traps known": {n: b for n, b in bugs.items() if not b["blind"]},
        "written blind": {n: b for n, b in bugs.items() if b["blind"]},
    }
    lines = [line("", *groups), line(*["---"] * (len(groups) + 1))]
    for heading, field in CHECK.items():
        lines.append(line(f"check: {heading}", *(share(b[field] for b in some.values()) for some in groups.values())))
    first = (share(b["named"] and not b["trap_added"] for b in some.values()) for some in groups.values())
    lines.append(line("check: named, no trap added", *first))
    for rule in rules(bugs):
        for what, field in (("finds", "finds"), ("rejects the right version", "rejects_right")):
            cells = (share(b[field][rule] for b in some.values()) for some in groups.values())
            lines.append(line(f"{rule}: {what}", *cells))
    return "## Totals\n\n" + "\n".join(lines)


def by_kind(bugs: Rows) -> str:
    """Return how many bugs of each kind are caught, placed and named."""
    lines = [line("kind", "bugs", "caught", "place", "named", *rules(bugs)), line(*["---"] * (5 + len(rules(bugs))))]
    for kind in KINDS:
        some = [bug for bug in bugs.values() if bug["kind"] == kind]
        if some:
            counts = [sum(bug[field] for bug in some) for field in ("caught", "place", "named")]
            found = [sum(bool(bug["finds"][rule]) for bug in some) for rule in rules(bugs)]
            lines.append(line(kind, len(some), *counts, *found))
    return "## By kind\n\n" + "\n".join(lines)


def each(bugs: Rows) -> str:
    """Return a row for each bug."""
    headings = ("bug", "source", "what the port does", "caught", "place", "named", "called", *rules(bugs))
    lines = [line(*headings), line(*["---"] * len(headings))]
    for name, bug in sorted(bugs.items(), key=lambda item: (KINDS.index(item[1]["kind"]), item[0])):
        marks = [mark(bug[field]) for field in ("caught", "place", "named")]
        called = f"`{bug['trap']}`" if bug["trap"] else ""
        found = [mark(bug["finds"][rule]) for rule in rules(bugs)]
        title = f"{name} (blind)" if bug["blind"] else name
        lines.append(line(title, bug["source"], bug["what"], *marks, called, *found))
    return "## Each bug\n\nA rule's column says whether it finds the bug.\n\n" + "\n".join(lines)


def misses(bugs: Rows) -> str:
    """Return what the check said where it did not catch, place or name a bug, or did not pass the right version."""
    lines = [f"- `{name}`: {missed(bug)}" for name, bug in sorted(bugs.items()) if missed(bug)]
    return "## Where the check falls short\n\n" + "\n".join(lines) if lines else ""


def missed(bug: Mapping[str, Any]) -> str:
    """Return what the check missed of a bug, in a line; empty where it missed nothing."""
    short = [what for what, field in CHECK.items() if not bug[field]]
    if not short:
        return ""
    trap = f" [{bug['trap']}]" if bug["trap"] else ""
    said = f"{bug['layer']}{trap}: {bug['text']}" if bug["layer"] else bug["text"] or "no finding"
    place = " or ".join(f"`{layer}`" for layer in bug["layers"])
    right = "" if bug["passes"] else f" The right version: {bug['right'].splitlines()[0]}."
    return f"not {', '.join(short)}. The bug is at {place}; the check said: {bug['wrong']}: {oneline(said)}{right}"


def oneline(text: str) -> str:
    return " ".join(text.split())


def mark(said: bool | None) -> str:
    return "" if said is None else "yes" if said else "no"


def line(*cells: object) -> str:
    return "| " + " | ".join(str(cell).replace("|", "\\|") for cell in cells) + " |"


def rules(bugs: Rows) -> list[str]:
    return list(next(iter(bugs.values()))["finds"])


def load() -> dict[str, Any]:
    """Return what is stored."""
    return json.loads(STORED.read_text())


def store(measured: Mapping[str, Any]) -> None:
    """Put what was measured in the place of what was stored of these bugs, and write the page."""
    known = load()["bugs"] if STORED.exists() else {}
    new = {**known, **measured["bugs"]}
    kept = {"versions": measured["versions"], "bugs": {name: new[name] for name in names() if name in new}}
    STORED.write_text(json.dumps(kept, indent=1, ensure_ascii=False) + "\n")
    PAGE.write_text(page(kept))


if __name__ == "__main__":
    PAGE.write_text(page(load()))
