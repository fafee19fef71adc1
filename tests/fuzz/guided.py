"""Mutations that follow the code: a changed file that reaches new steps of `ports.weights` is changed further.

A step is a pair of lines that follow one another within a function. Each format has a corpus of its own, which begins
with the whole files. The traced half of a case is `parity inspect` and `parity convert` as in the other mutations, so
every fault counts here too.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

from . import judge, mutate, runs
from .runs import Plan, Table
from .seeds import Files
from .workers import Job, Result

Step = tuple[CodeType, int, int]
OWN = f"{judge.OWN}/weights/"
LARGEST = 90_000  # bytes of a file of the corpus: tracing is slow


@dataclass
class Corpus:
    """The files of one format that reach different code.

    Attributes:
        found: how many were added.
    """

    files: list[Files]
    seen: set[Step] = field(default_factory=set)
    found: int = 0

    def draw(self, rng: random.Random) -> Files:
        """Return one of the files: the newest half of the time."""
        if self.found and rng.random() < 0.5:
            return self.files[-1 - rng.randrange(min(self.found, 20))]
        return runs.drawn(rng, self.files)

    def add(self, files: Files, steps: set[Step]) -> int:
        """Keep a file that reaches what none did before; return how many steps are new."""
        new = len(steps - self.seen)
        self.seen |= steps
        if new and sum(map(len, files.values())) <= LARGEST:
            self.files.append(files)
            self.found += 1
        return new


@contextmanager
def traced(steps: set[Step]) -> Iterator[None]:
    """Note the steps within this package's code for weights."""
    last: dict[int, int] = {}

    def line(frame: FrameType, event: str, _: Any) -> Any:
        if event == "line":
            key, number = id(frame), frame.f_lineno
            steps.add((frame.f_code, last.get(key, 0), number))
            last[key] = number
        elif event == "return":
            last.pop(id(frame), None)
        return line

    def call(frame: FrameType, _: str, __: Any) -> Any:
        return line if frame.f_code.co_filename.startswith(OWN) else None

    before = sys.gettrace()
    sys.settrace(call)
    try:
        yield
    finally:
        sys.settrace(before)


def guided(plan: Plan) -> Table:
    """Changed files through both commands; the corpus grows by what reaches new code."""
    found = runs.first_files(plan)
    whole = {name: [one for one in files if sum(map(len, one.values())) <= LARGEST] for name, files in found.items()}
    corpora: dict[str, Corpus] = {}

    def work(folder: Path, job: Job) -> Result:
        name, index = job
        if name not in corpora:
            corpora[name] = Corpus(list(whole[name]))
        corpus, rng, steps = corpora[name], runs.rng_of(plan, job), set[Step]()
        how = judge.options(rng, name)
        first = index - plan.first < len(whole[name])
        files = whole[name][index - plan.first] if first else corpus.draw(rng)
        files = files if first else mutate.changed(rng, files, corpus.files)
        with traced(steps):
            result = runs.judged(plan, folder, job, files, how, deep=rng.random() < 0.2)
        new = corpus.add(files, steps)
        result["more"] = {"steps": new, "corpus": int(new > 0)}
        if first:
            result["more"]["steps at first"] = new
        return result

    return runs.collect("guided", plan, work, sort=lambda job: job[0])
