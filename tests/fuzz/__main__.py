"""The command `python -m tests.fuzz`."""

from __future__ import annotations

import argparse
import importlib
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import orbax.checkpoint  # noqa: F401 - here, so that the processes that are forked have it
import torch  # noqa: F401

from ports.weights import convert, save  # noqa: F401
from ports.weights.checkpoints import (
    inspection,  # noqa: F401
    pretrained,  # noqa: F401
)
from ports.weights.files.formats import FORMATS
from ports.weights.rules import draft  # noqa: F401

from . import __doc__ as about
from . import guided, judge, kills, names, runs, states
from .runs import Plan, Table, signature

MOST = 150_000  # cases of each format in a run that ends by the clock
KINDS: dict[str, Callable[[Plan], Table]] = {
    "mutations": runs.mutations,
    "guided": guided.guided,
    "kills": kills.kills,
    "names": names.names,
    "states": states.states,
}
# Of a run of all kinds, the part of the time that each takes; and how many cases, for one of the mutations.
COUNTS = {"mutations": 1.0, "guided": 1.0, "kills": 0.1, "names": 0.5, "states": 0.5}
SHARES = {"mutations": 0.45, "guided": 0.3, "kills": 0.15, "names": 0.04, "states": 0.06}


def main() -> int:
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=[*KINDS, "all", "replay"])
    parser.add_argument("folder", nargs="?", type=Path, help="of replay: a case that was kept")
    parser.add_argument("--count", type=int, default=None, help="cases of each format")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="the index of the first case")
    parser.add_argument("--formats", nargs="+", default=list(FORMATS), choices=list(FORMATS))
    parser.add_argument("--minutes", type=float, help="after them no further case begins")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--small", action="store_true", help="begin with small files alone")
    parser.add_argument("--keep", type=Path, default=Path("fuzz-faults"), help="where cases with faults are kept")
    given = parser.parse_args()
    for row in FORMATS.values():
        importlib.import_module(f"ports.weights.files.formats.{row.module}")
    warm()
    if given.kind == "replay":
        faults = runs.replay(given.folder)
        print("\n".join(faults) or "no fault")
        return int(bool(faults))
    count = given.count if given.count is not None else (MOST if given.minutes else 1000)
    plan = Plan(
        count, given.seed, tuple(given.formats), given.minutes, given.workers, given.keep, given.first, given.small
    )
    kinds = list(KINDS) if given.kind == "all" else [given.kind]
    faults = 0
    for kind in kinds:
        part, cases = (SHARES[kind], COUNTS[kind]) if given.kind == "all" else (1.0, 1.0)
        share = replace(plan, minutes=plan.minutes and plan.minutes * part, count=max(1, int(plan.count * cases)))
        table = KINDS[kind](share)
        faults += show(table, plan)
    return int(bool(faults))


def warm() -> None:
    """Fill what the recognition of networks keeps, before the processes are forked."""
    with tempfile.TemporaryDirectory() as folder, judge.watched():
        save(Path(folder) / "w.npz", {"a.weight": np.ones((2, 2))})
        judge.run(["inspect", str(Path(folder) / "w.npz")])


def show(table: Table, plan: Plan) -> int:
    """Print a table, and each kind of fault with the command that repeats one case; return how many cases had one."""
    print(table, flush=True)
    kinds: dict[str, list[tuple[str, str]]] = {}
    for fault, cases in table.faults.items():
        kinds.setdefault(signature(fault), []).extend((fault, case) for case in cases)
    for cases in sorted(kinds.values(), key=len, reverse=True):
        kept = [pair for pair in cases if pair[1].endswith(" kept")]
        fault, case = (kept or cases)[0]
        name, index, *_ = case.split(" ")
        print(f"  {len(cases)} cases: {fault}")
        if kept:
            print(f"      python -m tests.fuzz replay {plan.keep / f'{name}-{plan.seed}-{index}'}")
        else:
            one = f"--seed {plan.seed} --formats {name} --first {index} --count 1"
            print(f"      python -m tests.fuzz {table.kind} {one}")
    return sum(row.faults for row in table.rows.values())


if __name__ == "__main__":
    sys.exit(main())
