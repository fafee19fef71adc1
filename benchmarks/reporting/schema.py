"""What a results file holds: measurements as JSON, never a figure that was rounded for a table."""

from __future__ import annotations

from typing import Any, NotRequired, TypedDict

SCHEMA, KIND = 1, "speed"

# One block of steps. On a GPU also when it began and ended, in seconds of the run, and the device's own milliseconds.
BlockRow = TypedDict(
    "BlockRow",
    {
        "start": int,
        "round": int,
        "steps": int,
        "ms": float,
        "from": NotRequired[float],
        "to": NotRequired[float],
        "events": NotRequired[float | None],
    },
)


class GateRow(TypedDict):
    """How far a subject's worst tensor was off, relative to its size; `worst` in units of the bound."""

    ok: bool
    worst: float
    tensor: str
    distance: float
    bound: float
    text: str


class StartRow(TypedDict):
    """One start of a subject's process in a setting; -1 is a start of an earlier run with the same folder.

    `cold`: nothing of it had been compiled before. `options`: the XLA options that it kept.
    """

    start: int
    start_seconds: float
    import_seconds: float
    build_seconds: float
    first_step_seconds: float
    cold: bool
    warm_steps: NotRequired[int]
    calm: NotRequired[bool]
    host_ms: NotRequired[float | None]
    options: NotRequired[str]
    memory: NotRequired[list[int]]
    no_events: NotRequired[str]


class ResultRow(TypedDict):
    """A subject in a setting; `each` has the milliseconds of single steps, each of which was waited for."""

    setting: dict[str, Any]
    subject: str
    about: str
    framework: str
    peer: bool
    rounds: list[BlockRow]
    each: list[float]
    starts: list[StartRow]
    gate: GateRow
    peak_bytes: NotRequired[int]
    cost: NotRequired[dict[str, float]]


class RefusedRow(TypedDict):
    """A subject that was not timed in a setting, and why."""

    setting: dict[str, Any]
    subject: str
    why: str


class CeilingRow(TypedDict):
    """The best rates of a framework in a start: FLOP/s and bytes/s."""

    start: int
    framework: str
    precision: str
    flops: float
    bytes: float


class Results(TypedDict):
    """A results file; `ended` says why a run stopped before all was measured."""

    schema: int
    kind: str
    machine: dict[str, Any]
    device: str
    plan: dict[str, Any]
    policies: dict[str, str]
    rows: list[ResultRow]
    refused: list[RefusedRow]
    absent: dict[str, str]
    ceilings: list[CeilingRow]
    readings: list[dict[str, Any]]
    gpu: NotRequired[list[dict[str, Any]]]
    ended: NotRequired[str]
    seconds: NotRequired[float]
    accepted: NotRequired[dict[str, list[str]]]
