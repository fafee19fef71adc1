"""What got faster or slower between two results files, with its interval."""

from __future__ import annotations

from benchmarks.reporting import results, tables
from benchmarks.reporting.schema import ResultRow, Results
from benchmarks.subjects.settings import Setting
from ports.errors import UserError

# A change counts if its whole interval is this far from 1, on one side: the interval does not cover noise between runs.
NOTICED = 0.02
UNSEEN = "no change seen"


def compare(before: Results, after: Results) -> tuple[list[tuple[str, ...]], list[str]]:
    """Rows (setting, subject, before ms, after ms, times as fast, verdict), and the rows that only one file has."""
    old, new = (_rows(found) for found in (before, after))
    lines, moved = [], []
    for key in (key for key in old if key in new):
        value = results.across(new[key], old[key])
        verdict = "faster" if value[1] > 1 + NOTICED else "slower" if value[2] < 1 - NOTICED else UNSEEN
        ms = (f"{results.median(found[key]):.3g}" for found in (old, new))
        if key[1] in tables.BASES and verdict != UNSEEN:
            moved.append(str(key[0]))
        lines.append((str(key[0]), key[1], *ms, tables.times(value), verdict))
    if not lines:
        raise UserError(
            "compare: got two files without a row in common, expected some of the same subject, network, mode, batch, "
            "precision and image size"
        )
    notes = [f"only in the first: {subject}, {setting}" for setting, subject in old if (setting, subject) not in new]
    notes += [f"only in the second: {subject}, {setting}" for setting, subject in new if (setting, subject) not in old]
    notes += [f"eager PyTorch moved too, so the machine may have: {setting}" for setting in moved]
    for what in ("processor", "cores", "python", "versions", "flags"):
        a, b = before["machine"][what], after["machine"][what]
        if a != b:
            notes.append(f"{what}: {_text(a, b)}")
    return lines, notes


def _rows(found: Results) -> dict[tuple[Setting, str], ResultRow]:
    return {(s, row["subject"]): row for s in results.settings_of(found) for row in results.rows_of(found, s)}


def _text(a: object, b: object) -> str:
    if isinstance(a, dict) and isinstance(b, dict):
        names = [name for name in {**a, **b} if a.get(name) != b.get(name)]
        return ", ".join(f"{name} {a.get(name, 'absent')}, then {b.get(name, 'absent')}" for name in names)
    return f"{a}, then {b}"
