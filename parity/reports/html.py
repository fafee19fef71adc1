"""A report as one page that opens without a network: verdict, findings, table, every layer drawn, environment."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import jinja2

from parity.numerics.quantities import QUANTITIES
from parity.reports import drawing
from parity.reports.report import PINNED, Finding, Model, Report, flips
from ports.errors import printable


@dataclass(frozen=True)
class Verdict:
    """How a result is shown, never only by its colour. `rest` makes a heading of the text."""

    style: str
    sign: str
    text: str
    rest: str = " with PyTorch, in float64"


# By exit code.
VERDICTS = {
    0: Verdict("ok", "✓", "Parity"),
    1: Verdict("bad", "✗", "No parity"),
    2: Verdict("open", "?", "Cannot tell", " whether this is PyTorch's network, in float64"),
}

# Labels for the entries of the environment that are not versions.
ENVIRONMENT = {"multiple": "bound, as a multiple of the rounding response"}


@dataclass(frozen=True)
class Section:
    """One network.

    Attributes:
        anchor: its link target in the page, because networks may share a name.
        ports: in the order of the rows.
        findings: each with what is wrong, and how to mend it.
        drawings: by port.
        flips: one line per side and working precision.
    """

    anchor: str
    model: Model
    verdict: Verdict
    ports: Sequence[str]
    findings: Sequence[tuple[Finding, str, str]]
    drawings: Sequence[tuple[str, Sequence[drawing.Panel]]]
    flips: Sequence[str] = ()


def page(report: Report) -> str:
    """The whole page."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("parity"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
        finalize=lambda value: printable(value) if isinstance(value, str) and not hasattr(value, "__html__") else value,
    )
    environment.filters["number"] = drawing.number
    return environment.get_template("report.html").render(
        report=report,
        verdict=VERDICTS[report.exit_code],
        sections=[section(f"network-{i}", model) for i, model in enumerate(report.models, 1)],
        quantities=QUANTITIES,
        names=ENVIRONMENT,
        pinned=PINNED,
        size={"width": drawing.WIDTH, "left": drawing.LEFT, "right": drawing.WIDTH - drawing.RIGHT},
    )


def section(anchor: str, model: Model) -> Section:
    ports = list(dict.fromkeys(row.port for row in model.rows))
    findings = [(finding, *parts(finding.text)) for finding in model.findings]
    verdict = VERDICTS[Report((model,)).exit_code]
    return Section(anchor, model, verdict, ports, findings, drawing.drawings(model), flips(model))


def parts(text: str) -> tuple[str, str]:
    """A finding's text, divided into what is wrong and how to mend it; the second part is empty if it is not known."""
    what, _, mend = text.rpartition("; ")
    return (what, mend) if what else (mend, "")
