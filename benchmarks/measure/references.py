"""The references of a run: the expected results of every case, in float64.

One process computes them (`reference_worker.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.measure import expected
from benchmarks.measure.plan import case_of
from benchmarks.measure.process import Process, World
from benchmarks.subjects import memory_estimates
from benchmarks.subjects.roster import SUBJECTS
from benchmarks.subjects.settings import OWN, Setting


class References:
    """Which references exist, and which are still to be computed.

    Attributes:
        ready: the cases whose references exist.
        pending: the other cases, with their settings; the first is computed, or is the next.
        failed: the cases whose references failed, with the reason.
        accepted: the differences that the check accepts for somebody's own pairs, by network.
        process: the process that computes them; None if nothing is pending.
        is_busy: whether it computes one now, which needs `takes` bytes of device memory.
    """

    def __init__(
        self, asked: Sequence[tuple[Setting, str]], folder: Path, world: World, tell: Callable[[str], None]
    ) -> None:
        self.folder, self.tell, self.is_busy, self.takes = folder, tell, False, 0.0
        self.ready: set[str] = set()
        self.pending: dict[str, tuple[Setting, dict[str, Any]]] = {}
        self.failed: dict[str, str] = {}
        self.accepted: dict[str, list[str]] = {}
        for setting, subject in asked:
            changes = dict(SUBJECTS[subject].changes)
            case = case_of(setting, changes)
            if OWN not in setting.network and expected.is_prepared(expected.place_of(setting, changes, folder)):
                self.ready.add(case)
            else:
                self.pending[case] = setting, changes
        self.process: Process | None = world.references() if self.pending else None

    def next(self) -> Setting | None:
        """Return the setting to compute next; None if one is being computed, or nothing is pending."""
        return None if self.is_busy or self.process is None else next(iter(self.pending.values()))[0]

    def begin(self) -> None:
        """Compute the next one."""
        assert self.process is not None
        setting, changes = next(iter(self.pending.values()))
        self.tell(f"{setting}: the expected results, in float64")
        self.is_busy, self.takes = True, self.need()
        self.process.send("prepare", setting=setting.asdict(), changes=changes)

    def need(self) -> float:
        """Return the bytes of device memory that the next one takes."""
        setting, changes = next(iter(self.pending.values()))
        is_known = expected.exact_file(setting, changes, self.folder).exists()
        return memory_estimates.reference(setting, 4 if is_known else 8)

    def says(self, answer: dict[str, Any]) -> None:
        """Record the answers of the process."""
        if "accepted" in answer:
            self.accepted[answer["network"]] = answer["accepted"]
        elif "done" in answer:
            self.is_busy = False
            self.ready.add(answer["done"])
            del self.pending[answer["done"]]
        elif "case" in answer:
            self.is_busy = False
            self._fail(answer["case"], answer["error"])
        if "ended" in answer:
            self.is_busy = False
            for case in [*self.pending]:
                self._fail(case, f"the reference: {answer['error']}; --log FILE keeps why")
        if not self.pending and self.process is not None:
            self.process.close()
            self.process = None

    def stop(self, why: str) -> None:
        """Stop computing; all missing references have failed."""
        if self.process is not None:
            self.process.stop(why)
            self.process = None
        self.is_busy = False
        for case in [*self.pending]:
            self._fail(case, why)

    def _fail(self, case: str, why: str) -> None:
        setting, _ = self.pending.pop(case)
        self.failed[case] = why if why.startswith(setting.network) else f"{setting}: {why}"
