"""The result of a check: rows, a verdict, and how they are shown."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from parity.numerics.pins import CAST, KEPT, RECOMPUTED, TABLE, Pin
from parity.reports.terminal import SafeConsole

SCHEMA = 1

# The type of the verdict; rows of another type judge rounding.
DECIDING = "float64"

# A line names this many layers with the same mistake.
NAMED = 3


@dataclass(frozen=True)
class Row:
    """One quantity of one port: its worst tensor, the one nearest to its bound or farthest beyond it.

    `distance` and `bound` are ‖port − reference‖ and the largest that it may be, both divided by ‖reference‖.
    """

    port: str
    quantity: str
    tensor: str
    distance: float
    bound: float
    ok: bool
    dtype: str = DECIDING


@dataclass(frozen=True)
class Divergence:
    """The first layer whose result leaves its bound: in execution order for outputs, from the end for gradients."""

    port: str
    layer: str
    quantity: str
    text: str = ""


@dataclass(frozen=True)
class Finding:
    """One mistake: where it is, and what it is.

    Attributes:
        layer: by its PyTorch name; a module where the mistake lies between its layers.
        trap: the name of its trap in `parity.traps.catalogue`; None if no known mistake explains it.
        text: one line: what was found, what PyTorch does, how to mend it.
        also: the other layers that have the same mistake.
        size: the relative distance of the result there from the reference's, when everything before it is right; None
            if that was not measured.
        fix: the arguments that mend it, for each layer that has it; empty if no argument does.
        diff: a unified diff of the port's source that mends it, to apply after those of earlier findings; only if it
            was asked for and another check confirmed it.
    """

    port: str
    layer: str
    trap: str | None
    text: str
    also: tuple[str, ...] = ()
    size: float | None = None
    fix: tuple[Fix, ...] = ()
    diff: str | None = None


@dataclass(frozen=True)
class Fix:
    """An argument in the port's code that certainly mends a mistake.

    Attributes:
        module: the port's name of the layer, or of the innermost module around the call; for a network of this package,
            PyTorch's name.
        argument: its name in Flax, JAX or optax.
        got: the port's value; None if that is not known.
        expected: PyTorch's value, in the port's terms.
        function: the last name of the function or class that takes it, such as `gelu`; empty for the layer's own class.
    """

    module: str
    argument: str
    got: Any
    expected: Any
    function: str = ""

    def __str__(self) -> str:
        said = f"{self.argument}={self.expected!r}"
        return f"{self.module}: {self.function}({said})" if self.function else f"{self.module}: {said}"


@dataclass(frozen=True)
class Point:
    """One layer in the drawing of a network's depth: relative distance and bound of one quantity of one port."""

    layer: str
    distance: float
    bound: float
    ok: bool


@dataclass(frozen=True)
class Precision:
    """One quantity of one side in working precision, against PyTorch in float64: measured, no verdict.

    Attributes:
        side: `pytorch`, or a port.
        tensor: the tensor whose error is the largest multiple of its response.
        error: its distance from float64, relative to its size.
        response: how far a change of weights and inputs by one unit in the last place moves it, in this type and on
            this side.
        multiple: error / response.
        largest: the largest relative error of any tensor of the quantity.
        flips: how many ReLUs are on in this side and off in float64, or the other way round, in train mode; None if the
            side's ReLUs could not be matched one by one. The same in every row of a side in a type.
        units: of how many.
    """

    side: str
    dtype: str
    quantity: str
    tensor: str
    error: float
    response: float
    multiple: float
    largest: float
    flips: int | None
    units: int


@dataclass(frozen=True)
class Cost:
    """What all mistakes of a port together do to the model, in float64; None for values that were not measured.

    Attributes:
        output: ‖port − reference‖ / ‖reference‖ of all outputs together, in eval mode.
        flips: at how many predictions another class has the largest logit.
        predictions: of how many.
        divergence: the mean Kullback-Leibler divergence of the port's prediction from the reference's, in nats.
        cosine: of the angle between the two gradients, of all parameters together.
        drift: the relative distance of what training added to all parameters, after so many `steps`.
    """

    port: str
    output: float | None = None
    flips: int | None = None
    predictions: int | None = None
    divergence: float | None = None
    cosine: float | None = None
    drift: float | None = None
    steps: int | None = None

    @property
    def said(self) -> str:
        """The measurements in one line; empty if there are none."""
        parts = [] if self.output is None else [f"the output changes by {self.output:.1e}"]
        parts += [] if self.flips is None else [f"{self.flips} of {self.predictions} top-1 predictions flip"]
        parts += [] if self.divergence is None else [f"KL {self.divergence:.1e}"]
        parts += [] if self.cosine is None else [f"cosine of the gradients {self.cosine:.6f}"]
        steps = "step" if self.steps == 1 else "steps"
        parts += [] if self.drift is None else [f"updates differ by {self.drift:.1e} after {self.steps} {steps}"]
        return ", ".join(parts)


@dataclass(frozen=True)
class Model:
    """The check of one network.

    Attributes:
        undecided: why the check cannot tell: a bound is too wide, or it could not be run.
        largest: by port and quantity, the largest distance of a tensor that is not zero in exact arithmetic.
        multiple: by port and quantity, the worst tensor's distance as a multiple of its rounding response.
        findings: every mistake, in execution order.
        profile: by port and quantity, the layers one by one: forward in execution order, gradients in their own.
        precision: the measurements in working precision, which decide nothing.
        pairing: for somebody's own models: which layer is which, and why; one line per pair.
        pins: where the models fix a type in their own code; the check lifts it to float64.
        limits: a line for each working precision that decides: the limit, and its rate of false alarms.
        costs: what the mistakes of each port do to the model, if it was run and differs.
        advice: facts that are not a mismatch and worth knowing, such as where a port rounds far more than the
            reference.
        unexercised: what the inputs did not reach, so that it was not compared: layers, arguments, branches of code.
    """

    model: str
    rows: tuple[Row, ...]
    first_divergence: Divergence | None = None
    undecided: str | None = None
    note: str = ""
    largest: dict[str, dict[str, float]] = field(default_factory=dict)
    multiple: dict[str, dict[str, float]] = field(default_factory=dict)
    seconds: float = 0.0
    findings: tuple[Finding, ...] = ()
    profile: dict[str, dict[str, tuple[Point, ...]]] = field(default_factory=dict)
    precision: tuple[Precision, ...] = ()
    pairing: tuple[str, ...] = ()
    advice: tuple[str, ...] = ()
    unexercised: tuple[str, ...] = ()
    pins: tuple[Pin, ...] = ()
    costs: tuple[Cost, ...] = ()
    limits: tuple[str, ...] = ()

    @property
    def matches(self) -> bool:
        return all(row.ok for row in self.rows)

    @property
    def ok(self) -> bool:
        return self.matches and self.undecided is None


@dataclass(frozen=True)
class Report:
    """The checks of one or more networks. True if all are equal."""

    models: tuple[Model, ...]
    environment: dict[str, Any] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        return all(model.ok for model in self.models)

    @property
    def exit_code(self) -> int:
        """0 parity, 1 mismatch, 2 the check cannot tell."""
        return 0 if self.ok else 2 if all(model.matches for model in self.models) else 1

    def __bool__(self) -> bool:
        return self.ok

    def to_json(self) -> dict[str, Any]:
        """Schema 1. A distance that is not finite is null."""
        models = []
        for model in self.models:
            entry = {"model": model.model, "ok": model.ok, **asdict(model)}
            first = model.first_divergence
            entry["first_divergence"] = asdict(first) if first else None
            models.append(entry)
        return finite({"schema": SCHEMA, "ok": self.ok, "models": models, "environment": self.environment})

    def __str__(self) -> str:
        # In a notebook rich would show an empty output in addition to the text.
        console = SafeConsole(width=160, color_system=None, force_terminal=False, force_jupyter=False)
        with console.capture() as capture:
            self.print(console)
        return capture.get()

    def failure(self) -> str:
        """The message of an assertion: the conclusion in the first line, which test summaries show; then everything."""
        said = [line for model in self.models if not model.ok for line in verdict(model)[:2]]
        return f"{'; '.join(said)}\n\n{self}".rstrip()

    def print(self, console: Console) -> None:
        """The table of every network and the line that says what it means."""
        for model in self.models:
            console.print(table(model))
            for line in verdict(model):
                console.print(line, markup=False, highlight=False, soft_wrap=True)
            if model.precision:
                console.print(precision_table(model))
                for line in flips(model):
                    console.print(line, markup=False, highlight=False, soft_wrap=True)


def table(model: Model) -> Table:
    result = Table(title=escape(f"{model.model}  {model.note}".strip()), title_justify="left")
    for heading in ("port", "quantity", "worst tensor"):
        result.add_column(heading, overflow="fold")
    for heading in ("distance", "bound"):
        result.add_column(heading, justify="right", no_wrap=True)
    result.add_column("verdict", no_wrap=True)
    for i, row in enumerate(model.rows):
        first = i == 0 or model.rows[i - 1].port != row.port
        if first and i:
            result.add_section()
        said = "[green]ok[/]" if row.ok else "[bold red]DIFFERS[/]"
        quantity = row.quantity if row.dtype == DECIDING else f"{row.quantity} ({row.dtype})"
        result.add_row(row.port, quantity, escape(row.tensor), f"{row.distance:.1e}", f"{row.bound:.1e}", said)
    return result


def precision_table(model: Model) -> Table:
    """Errors in working precision, one section per side and type."""
    title = f"{model.model}  working precision: distance from PyTorch in float64 (measured, no verdict)"
    result = Table(title=title, title_justify="left")
    for heading in ("side", "dtype", "quantity", "worst tensor"):
        result.add_column(heading, overflow="fold")
    for heading in ("error", "response", "multiple", "largest error"):
        result.add_column(heading, justify="right", no_wrap=True)
    for i, row in enumerate(model.precision):
        if i and (model.precision[i - 1].side, model.precision[i - 1].dtype) != (row.side, row.dtype):
            result.add_section()
        numbers = f"{row.error:.1e}", f"{row.response:.1e}", f"{row.multiple:.3g}", f"{row.largest:.1e}"
        result.add_row(row.side, row.dtype, row.quantity, row.tensor, *numbers)
    return result


def flips(model: Model) -> Sequence[str]:
    """One line per side and type that ran: its ReLUs that differ from float64."""
    lines = []
    for side, dtype in dict.fromkeys((row.side, row.dtype) for row in model.precision):
        row = next(row for row in model.precision if (row.side, row.dtype) == (side, dtype))
        if row.flips is not None and row.units:
            share = f"{row.flips:,} of {row.units:,} ReLUs ({row.flips / row.units:.1e})"
            lines.append(f"{side} in {dtype}: {share} are on where float64's are off, or off where they are on")
        elif row.units:
            lines.append(
                f"{side} in {dtype}: ReLUs that are not as in float64: not counted (other calls than PyTorch's)"
            )
    return lines


def remarks(model: Model) -> list[str]:
    """Return the lines about a network that do not depend on the verdict."""
    told = [f"advice: {line}" for line in model.advice]
    told += [f"not exercised: {line}" for line in model.unexercised]
    return [*told, *model.limits, *lifted(model)]


def verdict(model: Model) -> Sequence[str]:
    ports = dict.fromkeys(row.port for row in model.rows)
    if model.ok:
        types = " and ".join(dict.fromkeys(row.dtype for row in model.rows))
        equal = f"{model.model}: parity in {types}: PyTorch = {' = '.join(ports)} ({model.seconds:.0f} s)"
        return [equal, *remarks(model)]
    lines = []
    if not model.matches:
        lines.append(_mismatch(model))
        if first := model.first_divergence:
            lines.append(f"first divergence: {first.port}: {first.quantity} at {first.layer}{first.text}")
        lines += [f"cost: {cost.port}: {cost.said}" for cost in model.costs if cost.said]
        for i, finding in enumerate(model.findings, 1):
            name = f" [{finding.trap}]" if finding.trap else ""
            lines.append(f"{i}. {finding.port}: {finding.layer}{name}: {finding.text}{_also(finding)}{_size(finding)}")
            lines += [f"   fix: {fix}" for fix in finding.fix[:NAMED]]
            if len(finding.fix) > NAMED:
                left = len(finding.fix) - NAMED
                lines.append(f"   fix: {left} more {'layer' if left == 1 else 'layers'}, which --json lists")
            lines += [f"   {line}" for line in (finding.diff or "").splitlines()]
    if model.undecided:
        lines.append(f"{model.model}: cannot tell: {model.undecided}")
    return [*lines, *remarks(model)]


def _mismatch(model: Model) -> str:
    """Return which ports are wrong, and how: they differ in float64, or are less precise in another type."""
    wrong = dict.fromkeys(row.port for row in model.rows if not row.ok)
    types = " and ".join(dict.fromkeys(row.dtype for row in model.rows if not row.ok))
    said = ("differs" if len(wrong) == 1 else "differ") + " from PyTorch"
    if DECIDING not in types:
        said = ("is" if len(wrong) == 1 else "are") + f" less precise than PyTorch in {types}"
    return f"{model.model}: NO parity: {', '.join(wrong)} {said}"


def _also(finding: Finding) -> str:
    if not finding.also:
        return ""
    more = " …" if len(finding.also) > NAMED else ""
    return f" (also at {len(finding.also)} more: {', '.join(finding.also[:NAMED])}{more})"


def _size(finding: Finding) -> str:
    return "" if finding.size is None else f" (off by {finding.size:.1e} there)"


# The text for each kind of pin.
PINNED = {
    CAST: "lifted to float64",
    RECOMPUTED: "computed again in float64",
    TABLE: "made in float32, whose rounding stays",
    KEPT: "not lifted",
}


def lifted(model: Model) -> list[str]:
    """Return a line for each side and kind of pin: the first place, and how many more there are."""
    groups: dict[tuple[str, str], list[Pin]] = {}
    for pin in model.pins:
        groups.setdefault((pin.side, pin.kind), []).append(pin)
    lines = []
    for (side, kind), pins in groups.items():
        first = pins[0]
        of = f" ({first.layer})" if first.layer else ""
        more = f" and {len(pins) - 1} more" if len(pins) > 1 else ""
        lines.append(f"{side}: {PINNED[kind]}: {first.operation} of {first.dtype} at {first.place}{of}{more}")
    return lines


def finite(value: Any) -> Any:
    """JSON has no infinities."""
    if isinstance(value, dict):
        return {key: finite(v) for key, v in value.items()}
    if isinstance(value, list | tuple):
        return [finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
