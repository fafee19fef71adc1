"""Runs one twin, and compares what the check says with what its row says."""

from __future__ import annotations

import importlib
import importlib.metadata
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

import parity
from parity.reports.report import Model
from ports.errors import UserError, printable

from .building import older_names
from .twin import MISMATCH, PARITY, REFUSED, UNDECIDED, Row, Twin

R = TypeVar("R", bound=Row)

VERDICTS = (PARITY, MISMATCH, UNDECIDED)

# What a verdict was measured with.
PACKAGES = ("transformers", "diffusers", "torch", "jax", "flax", "numpy")

# Advice that tells of a difference has these words; other advice tells how the two are cut.
DIFFERS = "dropout masks"


@dataclass(frozen=True)
class Told:
    """One finding: the layers by their PyTorch names, the known mistake, and the line."""

    layers: tuple[str, ...]
    trap: str | None
    text: str


@dataclass(frozen=True)
class Outcome:
    """What the check said of one twin.

    Attributes:
        layers: how many pairs of layers there are.
        pins: how many float32 pins were lifted.
        distances: the largest of any tensor, relative, by quantity.
        reason: why it refused or cannot decide.
    """

    name: str
    verdict: str
    layers: int = 0
    pins: int = 0
    distances: Mapping[str, float] | None = None
    findings: tuple[Told, ...] = ()
    advice: tuple[str, ...] = ()
    reason: str = ""


def ready(package: str) -> bool:
    """Return whether a package with Flax classes is installed."""
    try:
        found = importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return False
    return package != "transformers" or int(found.partition(".")[0]) < 5


def run(twin: Twin) -> Outcome:
    """Build a twin and check it, dropout and all."""
    pair = twin.build(twin, twin.config(importlib.import_module(twin.package)))
    arrays = twin.inputs()
    inputs, keywords = (tuple(arrays.values()), {}) if twin.ordered else ((), arrays)
    with older_names():
        options = {"keywords": keywords, "layouts": twin.layouts}
        return checked(twin.name, pair.reference, pair.port, inputs, options)


def checked(name: str, reference: Any, port: Any, inputs: tuple[Any, ...], options: Mapping[str, Any]) -> Outcome:
    """Check a pair and return what the check says; a refusal is an outcome, too."""
    try:
        report = parity.check(reference, port, *inputs, **options)
    except UserError as error:
        return Outcome(name, REFUSED, reason=str(error))
    return _outcome(name, VERDICTS[report.exit_code], report.models[0])


def measured(rows: Sequence[R], run: Callable[[R], Outcome], what: str) -> tuple[list[Outcome], int]:
    """Run each row and print what the check says of it; return the outcomes, and how many are not what their row says.

    Args:
        what: the rows are, in the plural.
    """
    outcomes, wrong = [], 0
    for row in rows:
        begin = time.monotonic()
        outcome = run(row)
        outcomes.append(outcome)
        found = problems(row, outcome)
        wrong += bool(found)
        said = "WRONG" if found else "known defect" if row.defect else "as stored"
        print(f"{row.name}: {outcome.verdict}, {said} ({time.monotonic() - begin:.0f} s)", flush=True)
        for line in found:
            print(printable(f"  {line}"), flush=True)
    print(f"{len(rows) - wrong} of {len(rows)} {what} are as stored")
    return outcomes, wrong


def _outcome(name: str, verdict: str, model: Model) -> Outcome:
    distances = {quantity: number for port in model.largest.values() for quantity, number in port.items()}
    findings = tuple(Told((one.layer, *one.also), one.trap, one.text) for one in model.findings)
    return Outcome(
        name, verdict, len(model.pairing), len(model.pins), distances, findings, model.advice, model.undecided or ""
    )


def problems(twin: Row, got: Outcome) -> list[str]:
    """Return where the check does not say what the row says; empty where it does."""
    if twin.defect is not None:
        return _still_wrong(twin, got)
    found = [] if got.verdict == twin.verdict else [f"got {got.verdict}, expected {twin.verdict}: {_why(got)}"]
    for one in got.findings:
        if not any(difference.explains(one.layers, one.trap) for difference in twin.differences):
            found.append(f"a finding that is no known difference: {_shown(one)}: {one.text}")
    for line in got.advice:
        if DIFFERS in line and not any(difference.advises(line) for difference in twin.differences):
            found.append(f"advice that is no known difference: {line}")
    for difference in twin.differences:
        findings = any(difference.explains(one.layers, one.trap) for one in got.findings)
        if not findings and not any(difference.advises(line) for line in got.advice):
            found.append(f"a difference that the check does not tell: {difference.text}")
    return found


def _still_wrong(twin: Row, got: Outcome) -> list[str]:
    """Return that a known defect of the check is another than its row says."""
    assert twin.defect is not None
    if got.verdict == twin.defect.verdict:
        return []
    if got.verdict == twin.verdict:
        return [f"right now ({got.verdict}); take `defect` out of the row"]
    return [f"got {got.verdict}, expected the known wrong {twin.defect.verdict}: {_why(got)}"]


def _why(got: Outcome) -> str:
    """Return the reason in a line."""
    said = got.reason or "; ".join(map(_shown, got.findings)) or "no finding"
    return said.strip().splitlines()[0]


def _shown(one: Told) -> str:
    return f"{', '.join(one.layers)} [{one.trap or 'no known mistake'}]"


def to_json(outcomes: Iterable[Outcome]) -> dict[str, Any]:
    """Return what is stored of outcomes, with the versions that they were measured with."""
    return {"versions": versions(PACKAGES), "twins": {one.name: asdict(one) for one in outcomes}}


def versions(packages: Sequence[str]) -> dict[str, str]:
    """Return the versions of those packages that are installed."""
    return {name: importlib.metadata.version(name) for name in packages if _installed(name)}


def _installed(name: str) -> bool:
    try:
        return bool(importlib.metadata.version(name))
    except importlib.metadata.PackageNotFoundError:
        return False
