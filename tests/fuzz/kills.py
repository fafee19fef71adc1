"""Processes that are killed at a random moment of writing: nothing partial is left, and no old output is lost.

A child is forked from this process, which has imported the libraries, and runs `parity convert`. It says when it begins
to write. The parent kills it after a random part of the time that such a writing took before, and looks at the folder:
an output is whole; an old one is whole, as it was or replaced. The next run in that folder leaves nothing hidden.
"""

from __future__ import annotations

import os
import pickle
import signal
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ports.weights import convert, load
from ports.weights.files import atomic, formats
from ports.weights.files.formats import FORMATS, Content

from . import judge, runs, seeds, workers
from .runs import Plan, Table
from .seeds import Files
from .workers import Job, Result

# How an output comes to its place: nothing there, with Linux's call and without; over an old one, by an exchange of
# both, and by plain renames where the system has no such call.
WAYS = ("new", "new, plain", "force", "force, plain")
OLD = {"old.weight": np.arange(600, dtype=np.float32).reshape(20, 30), "old.bias": np.ones(3, np.float16)}
NEW = {f"t{i}": np.full(20_000, i, np.float32) for i in range(12)}


def kills(plan: Plan) -> Table:
    """Kill a writer `count` times for each format and each way."""
    took: dict[tuple[str, str], float] = {}
    # In processes of their own: Orbax starts threads, and a process with threads is not to be forked.
    old = {name: pickle.loads(workers.forked(lambda name=name: pickle.dumps(_old(name)))) for name in plan.formats}

    def work(folder: Path, job: Job) -> Result:
        name, rng = job[0], runs.rng_of(plan, job)
        faults: list[str] = []
        more: dict[str, int] = {}
        for way in WAYS:
            place = judge.emptied(folder / way)
            if (name, way) not in took:
                whole = [_killed(judge.emptied(place), name, way, old[name], None) for _ in range(2)]
                took[name, way] = min(time for time, _ in whole)
                if any(how != "ended" for _, how in whole) or looked(place, name).output != "new":
                    faults.append(f"{way}: not written by a process that nobody killed")
                judge.emptied(place)
            moment = rng.uniform(0, 1.15) * took[name, way]
            _, how = _killed(place, name, way, old[name], moment)
            found = looked(place, name)
            faults += [f"{way}: {fault}" for fault in wrong(found, name, way, how)]
            more[found.moment] = more.get(found.moment, 0) + 1
        return {"written": True, "faults": faults, "more": more}

    return runs.collect("kills", plan, work)


def _old(name: str) -> Files:
    """Return the output that is there before."""
    with tempfile.TemporaryDirectory() as folder:
        formats.write(Path(folder) / "old", Content(dict(OLD)), FORMATS[name])
        return seeds.collected(Path(folder) / "old")


def _killed(folder: Path, name: str, way: str, old: Files, moment: float | None) -> tuple[float, str]:
    """Let a child write, and kill it; return how long it wrote, and where it was."""
    source, out = folder / "w.npz", folder / f"out{seeds.suffix(name)}"
    np.savez(source, **NEW)  # pyright: ignore[reportArgumentType]
    if way.startswith("force"):
        seeds.laid(out, old)
    read, write = os.pipe()
    if (child := os.fork()) == 0:
        os.close(read)
        _write(source, out, name, way, write)
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        pipe.read(1)  # it begins to write
        begin = time.perf_counter()
        if moment is None:
            pipe.read(1)  # it has ended
        else:
            time.sleep(moment)
            os.kill(child, signal.SIGKILL)
        took = time.perf_counter() - begin
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return took, {0: "ended", -signal.SIGKILL: "killed"}.get(code, f"died of {-code}")


def _write(source: Path, out: Path, name: str, way: str, pipe: int) -> None:
    """Convert, in a child that never returns."""
    try:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 1)
        os.dup2(nowhere, 2)
        if way.endswith("plain"):
            atomic._renameat2 = lambda *_: False
        module: Any = __import__("ports.weights.checkpoints.convert", fromlist=["publish"])
        publish = module.publish

        @contextmanager
        def told(*args: Any, **options: Any) -> Iterator[Path]:
            os.write(pipe, b"b")
            with publish(*args, **options) as partial:
                yield partial

        module.publish = told
        convert(source, out, format=name, to="torch", force=way.startswith("force"))
        os.write(pipe, b"e")
    finally:
        os._exit(0)


def _holds(path: Path, name: str) -> str:
    """Return whether an output is the old or the new one, whole; or what is wrong with it."""
    if not path.exists():
        return "nothing"
    try:
        found = load(path, format=name)
    except Exception as error:
        return f"cannot be read: {str(error)[:200]}"
    for text, tensors in (("new", NEW), ("old", OLD)):
        if found.keys() == tensors.keys() and all(judge._same(found[n], tensors[n]) for n in tensors):
            return text
    return "holds other numbers"


@dataclass(frozen=True)
class Found:
    """What is in a folder after a kill, and after the next run there.

    Attributes:
        output, after: what the output holds, as `_holds` says it.
        hidden: whether the killed process left its hidden folder.
        names: of all that is there after the next run.
    """

    output: str
    hidden: bool
    after: str
    names: tuple[str, ...]

    @property
    def moment(self) -> str:
        """Where the kill was."""
        return f"killed {'while writing' if self.hidden else 'after' if self.output == 'new' else 'before'}"


def look(folder: Path, name: str) -> Found:
    """Look at a folder, let the next run clean up there, and look again."""
    out = folder / f"out{seeds.suffix(name)}"
    before, hidden = _holds(out, name), any(n.endswith(".partial") for n in judge.names_in(folder))
    with atomic.publish(folder / "next") as partial:
        partial.write_text("")
    return Found(before, hidden, _holds(out, name), tuple(judge.names_in(folder)))


def looked(folder: Path, name: str) -> Found:
    """Look in a process of its own: who reads Orbax's folders has threads."""
    return pickle.loads(workers.forked(lambda: pickle.dumps(look(folder, name))))


def wrong(found: Found, name: str, way: str, how: str) -> list[str]:
    """Return what is wrong with a folder."""
    force = way.startswith("force")
    faults = [] if how in ("killed", "ended") else [f"the writer {how}"]
    # By plain renames the old output is away for a moment, until the next run puts it back.
    whole = {"new", "old" if force else "nothing"}
    if found.output not in whole | ({"nothing"} if way == "force, plain" else set()):
        faults.append(f"the output: {found.output}")
    if found.after not in whole:
        faults.append(f"the output after the next run: {found.after}")
    if others := set(found.names) - {f"out{seeds.suffix(name)}", "w.npz", "next"}:
        faults.append(f"after the next run there is {sorted(others)}")
    return faults
