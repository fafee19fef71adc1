"""Make a page for each trap of the catalogue, and the index of all."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from docs.generator import costs
from parity.traps import examples
from parity.traps.catalogue import TRAPS
from parity.traps.examples import Example
from parity.traps.trap import PlantedIn, Trap

# For each place of a trap: its title, and the text above its groups.
PLACES: dict[PlantedIn, tuple[str, str]] = {
    "weight": ("Weights", "The mistake is in a tensor: the code that moved the weights is wrong."),
    "layer": ("Layers", "One layer is built or used differently from PyTorch's."),
    "between": ("Operations between layers", "The code between the layers computes something else."),
    "loss": ("Losses", "The loss, or its gradient, is another number."),
    "training": ("Training", "The gradients are right, and the updates are not."),
}
INDEX = """# Traps

A trap is a known mistake in a port. The check plants it in the PyTorch model and sees whether it then computes what the
port computes. If so, the finding has the trap's name: `[gelu-tanh]`. The name is the code of the trap and stays the
same from version to version. `parity traps` lists them in the terminal.

There are {count} of them. Use the search of this site, or look in the groups below.
"""


def sentence(text: str) -> str:
    """Return a text of the catalogue as a sentence."""
    return text[:1].upper() + text[1:].rstrip(".") + "."


def where(trap: Trap) -> str:
    """Return the layers, functions, kinds or optimizers where a mistake can be made."""
    return ", ".join(f"`{name}`" for name in trap.places) or "any kind"


def grouped() -> dict[str, list[Trap]]:
    """Return the rows of the catalogue by their names, in its order: a mistake may have several places."""
    found: dict[str, list[Trap]] = {}
    for trap in TRAPS:
        found.setdefault(trap.name, []).append(trap)
    return found


def measured() -> dict[str, list[dict[str, Any]]]:
    """Return the measurements of each trap."""
    found: dict[str, list[dict[str, Any]]] = {}
    if costs.FILE.exists():
        for row in json.loads(costs.FILE.read_text())["costs"]:
            found.setdefault(row["trap"], []).append(row)
    return found


def code(example: Example) -> Iterator[str]:
    """Yield PyTorch's code, the wrong code and the right code."""
    for title, text in example.shown():
        yield from (f"**{title}**", "", "```python", text, "```", "")


# The measured quantity, the head of its column, and the format of its numbers.
COSTS = (
    ("output", "output changes by", "{:.1e}"),
    ("flips", "top-1 predictions that flip", "{} of {predictions}"),
    ("divergence", "KL divergence", "{:.1e}"),
    ("cosine", "cosine of the gradients", "{:.6f}"),
    ("drift", "updates differ by", "{:.1e}"),
)
# Anything smaller is rounding.
ROUNDING = 1e-12


def cost(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Yield the effects of the mistake in the small networks of the tests, as a table."""
    shown = [kind for kind in COSTS if any(row[kind[0]] is not None for row in rows)]
    if not shown:
        return
    yield "| " + " | ".join(title for _, title, _ in shown) + " |"
    yield "|" + "---|" * len(shown)
    cells = (tuple(number(row, key, form) for key, _, form in shown) for row in rows)
    yield from (f"| {' | '.join(row)} |" for row in dict.fromkeys(cells))


def number(row: Mapping[str, Any], key: str, form: str) -> str:
    if row[key] is None:
        return ""
    return "rounding" if "e}" in form and abs(row[key]) < ROUNDING else form.format(row[key], **row)


def measured_in(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Yield the effects of the mistake on a model, as far as they were measured."""
    table = list(cost(rows))
    if table:
        yield (
            "Each row is a small network of `tests/meta/` with random weights, in float64. Your model has other "
            "numbers; a check prints them as `cost:`."
        )
        yield from ("", *table)
    elif rows:
        yield "In the networks of `tests/meta/` the output is not finite."
    else:
        yield "Nothing was measured."


def said(traps: Sequence[Trap], example: Example | None) -> Iterator[str]:
    """Yield what the port does, why, and how to mend it."""
    for trap in traps:
        place, about = PLACES[trap.place]
        yield from (f"**What the port does.** {sentence(trap.text)}", "")
        yield from (f"**Mend:** {trap.mend}", "")
        gradient = " The outputs are right, and the gradients are wrong." if trap.gradient else ""
        yield from (f"**Where.** {place}: {where(trap)}. {about}{gradient}", "")
    if example:
        yield from (f"**Why it happens.** {example.why}", "")


def page(traps: Sequence[Trap], example: Example | None, rows: Sequence[Mapping[str, Any]], around: str) -> str:
    """Return the page of one trap."""
    lines = [f"# {traps[0].name}", "", *said(traps, example)]
    if example:
        lines += ["## Code", "", *code(example)]
    lines += ["## What it does to a model", "", *measured_in(rows)]
    sources = dict.fromkeys(trap.source for trap in traps)
    lines += ["", "## Source", "", *(f"- {source}" for source in sources), "", "---", "", around, ""]
    return "\n".join(lines)


def pages() -> dict[str, str]:
    """Return every page, by the name of its file."""
    traps, rows, codes = grouped(), measured(), examples.by_name()
    names = list(traps)
    found = {"traps/index.md": index(traps)}
    for i, name in enumerate(names):
        before, after = names[i - 1], names[(i + 1) % len(names)]
        around = f"[← {before}]({before}.md) · [all traps](index.md) · [{after} →]({after}.md)"
        found[f"traps/{name}.md"] = page(traps[name], codes.get(name), rows.get(name, ()), around)
    return found


def index(traps: Mapping[str, Sequence[Trap]]) -> str:
    """Return the list of all traps by place and group."""
    lines, listed = [INDEX.format(count=len(traps))], set()
    for place, (title, about) in PLACES.items():
        lines += [f"## {title}", "", about, ""]
        for group in (group for group in examples.groups() if group.place == place):
            lines += [f"### {group.title}", "", group.why, "", "| trap | what the port does |", "|---|---|"]
            shown = [example.name for example in group.examples if example.name in traps]
            lines += [*_rows(shown, traps), ""]
            listed |= set(shown)
        rest = [name for name, rows in traps.items() if rows[0].place == place and name not in listed]
        if rest:
            lines += ["### Others", "", "| trap | what the port does |", "|---|---|", *_rows(rest, traps), ""]
    return "\n".join(lines)


def _rows(names: Sequence[str], traps: Mapping[str, Sequence[Trap]]) -> Iterator[str]:
    for name in names:
        text = sentence(traps[name][0].text).replace("|", "\\|")
        yield f"| [`{name}`]({name}.md) | {text} |"
