"""Runs stages of `make gpu`, one after the other: each within its time, whatever goes wrong in another."""

from __future__ import annotations

import datetime
import hashlib
import json
import os
import re
import shutil
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from benchmarks.machine import description
from benchmarks.machine.checkout import ROOT
from benchmarks.measure.measurement import Measurement
from benchmarks.measure.plan import Limits, RunPlan
from benchmarks.measure.process import World, environment
from benchmarks.reporting import display
from benchmarks.studies.gpu_stages import SMALL, GpuStage, pairs
from benchmarks.studies.side_by_side import Command, Ended, together
from benchmarks.subjects.roster import SUBJECTS
from parity.reports import terminal
from parity.reports.progress import progress
from ports.errors import UserError

NAME = "benchmarks.gpu"  # of the command
OWN_CODE = ("measure/gate", "measure/expected", "subjects/settings", "subjects/torch_steps")  # of the references
MEMORY = 0.92  # part of the GPU's memory that programs may share; drivers and fragments take the rest
HOST = 3e9  # bytes of the machine's memory for each program that compiles
LEAST = 40.0  # seconds in which a stage may give something
WIDTH = 220  # of the tables


@dataclass(frozen=True)
class StagePlace:
    """Where stages run and what they may use."""

    device: str
    name: str
    out: Path
    cache: Path
    memory: float | None
    builders: int
    cores: int
    compilers: Path | None = None  # folder of the compilers' caches; by default `cache`
    world: Callable[[], World] | None = None  # instead of the real one, for a test

    def file(self, stage: str, ending: str = "json") -> Path:
        day = datetime.datetime.now(datetime.UTC).date().isoformat()
        return self.out / f"{self.name}-{stage}-{day}.{ending}"


def place_on(card: dict[str, str] | None, out: Path, root: Path, builders: int | None) -> StagePlace:
    cores = os.cpu_count() or 1
    fitting = int(psutil.virtual_memory().available / HOST)
    # Some virtual machines have more memory than they report at first.
    count = builders or max(1, min(cores - 2, max(cores // 2, fitting)) if card else min(cores, fitting))
    name = re.sub(r"[^a-z0-9]+", "-", card["name"].lower()).strip("-") if card else "rehearsal"
    total = re.match(r"\d+", card["memory.total"]) if card else None
    memory = MEMORY * int(total[0]) * 2**20 if total else None
    cache = root / _code(card)
    for folder in (cache, root / "compilers"):
        folder.mkdir(parents=True, exist_ok=True)
    return StagePlace("gpu" if card else "cpu", name, out, cache, memory, count, cores, root / "compilers")


def _code(card: dict[str, str] | None) -> str:
    """Return the name of the folder of references, for these networks, packages and this GPU.

    The compilers' caches are next to it. Compilers compare the programs themselves, so their caches stay when the code
    changes.
    """
    code = hashlib.sha256(repr((description.described()["versions"], card and card["name"])).encode())
    own = [ROOT / "benchmarks" / f"{name}.py" for name in OWN_CODE]
    for file in sorted([*own, *(ROOT / "ports").rglob("*.py"), *(ROOT / "parity").rglob("*.py")]):
        code.update(file.read_bytes())
    return code.hexdigest()[:16]


def run(stages: dict[str, GpuStage], place: StagePlace, minutes: float | None = None, ahead: str | None = None) -> int:
    """Run stages one after the other; return the exit code."""
    begun, empty = time.monotonic(), []
    for letter, stage in stages.items():
        left = float("inf") if minutes is None else 60 * minutes - (time.monotonic() - begun)
        if left < LEAST:
            print(f"stage {letter}: left out, because its time is over", flush=True)
            empty.append(letter)
            continue
        seconds, at = min(stage.seconds, left), time.monotonic()
        said = f" (rehearsed with {SMALL})" if place.device == "cpu" else ""
        print(f"stage {letter}: {stage.about}{said}; within {seconds:.0f} s", flush=True)
        try:
            measure = checks if stage.checks else timing
            figures = timing(letter, stage, place, seconds, ahead) if ahead else measure(letter, stage, place, seconds)
        except UserError as error:
            terminal.complain(NAME, error)
            figures = 0
        except Exception:  # the next stage may still succeed
            traceback.print_exc()
            figures = 0
        if not figures:
            empty.append(letter)
        print(f"stage {letter}: {figures} figures in {time.monotonic() - at:.0f} s", flush=True)
    if empty:
        print(f"{NAME}: no figures for stage {', '.join(empty)}; the reasons are above", file=sys.stderr)
    return int(bool(empty))


def timing(letter: str, stage: GpuStage, place: StagePlace, seconds: float, ahead: str | None = None) -> int:
    """Time the groups of a stage; return how many rows have figures.

    Args:
        ahead: only compile this subject, so that the stage finds it in the cache.
    """
    programs = [pair for pair in pairs(stage.groups, place.device) if ahead in (None, pair[1])]
    file, log = place.file(f"{letter}-ahead" if ahead else letter), place.file(letter, "log")
    plan = RunPlan(
        [*dict.fromkeys(setting for setting, _ in programs)],
        [*dict.fromkeys(subject for _, subject in programs)],
        starts=1 if ahead else stage.starts,
        rounds=0 if ahead else 3,
        seconds=0.3 if place.device == "gpu" else 0.1,
        builders=place.builders,
        later_builders=place.builders,
        warm=5,
        pairs=programs,
        limits=Limits(seconds, seconds if ahead else stage.build, memory=place.memory),
    )
    # Inductor compiles each program in several processes: the cores are shared among the programs that compile at a
    # time.
    compiled = sum(SUBJECTS[subject].options.compile is not None for _, subject in programs)
    threads = max(1, 2 * place.cores // max(1, min(place.builders, compiled)))
    with progress(NAME) as tell:
        world = (
            place.world()
            if place.world is not None
            else World(place.cache, place.device, log, threads, place.compilers)
        )
        found = Measurement(plan, place.cache, None if ahead else file, tell, log, world).run()
    if ahead:
        return sum(bool(row["starts"]) for row in found["rows"])
    display.show(found, terminal.console(WIDTH))
    print(f"{file}\n{log}: what the processes wrote", flush=True)
    return sum(bool(row["rounds"]) for row in found["rows"])


def checks(letter: str, stage: GpuStage, place: StagePlace, seconds: float) -> int:
    """Run the checks of a stage in parallel; return how many came to a verdict.

    One results file and one log hold all of them; the file is rewritten whenever a check has ended.
    """
    folder = place.cache / "checks"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    commands, results = [], {check.name: folder / f"{check.name}.json" for check in stage.checks}
    for check in stage.checks:
        arguments = ["-m", "parity", "check", *check.arguments, "--json", str(results[check.name])]
        commands.append(Command(check.name, arguments, folder / f"{check.name}.log"))
    for other, subject in stage.ahead:
        arguments = ["-m", NAME, "--stage", other, "--ahead", subject, "--out", str(folder)]
        arguments += ["--cache", str(place.cache.parent), "--minutes", f"{seconds / 60:.2f}"]
        arguments += ["--rehearsal"] if place.device == "cpu" else []
        commands.append(Command(f"compiling {subject}", arguments, folder / f"{subject}.log", is_later=True))
    found: dict[str, Any] = {"schema": 1, "kind": "checks", "machine": description.described(), "checks": {}}
    file, log = place.file(letter), place.file(letter, "log")
    terminal.write("--out", log, "")

    def tell(ended: Ended) -> None:
        text = ended.command.log.read_text(errors="replace")
        with log.open("a") as every:
            every.write(f"{ended}\n{text}\n")
        if (result := results.get(ended.command.name)) is not None:
            told = json.loads(result.read_text()) if result.exists() else None
            found["checks"][ended.command.name] = {"code": ended.code, "seconds": ended.seconds, "result": told}
            terminal.write("--out", file, json.dumps(found, indent=1) + "\n")
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        said = next((line for line in reversed(lines) if "parity in" in line), lines[-1] if lines else "")
        print(f"{ended}; {said[-300:]}", flush=True)

    ends = together(commands, seconds, environment(place.compilers or place.cache, place.device), tell)
    print(f"{file}\n{log}: what the checks printed", flush=True)
    return sum(ended.code in (0, 1) and ended.command.name in results for ended in ends)
