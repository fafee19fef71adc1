"""Hostile names in files, options and file names: nothing on the output, in JSON or in a page is printed raw."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np

from parity.reports import html, terminal
from parity.reports.report import Finding, Model, Report, Row
from ports.weights.files import formats
from ports.weights.files.formats import FORMATS, Content
from ports.weights.form.torch_form import WeightsError

from . import judge, runs, seeds
from .runs import Plan, Table
from .workers import Job, Result

PIECES = ("\x1b[2J\x1b[31m", "\n", "\r\n", "\a", "\b", "\x9b31m", "\u202e", "\u2066", "\u2069", "\u200e", "\u200b")
PIECES += (
    "\ufeff",
    "\u2028",
    "\u2029",
    "\x7f",
    "\t",
    "\x0b\x0c\x1c\x85",
    "\ud800",
    "\udcff",
    "\0",
    "\U000e0001",
    "\xad",
)
PIECES += ("/", "..", "../..", "", "x" * 3000, "卷积", "🎉", "[bold red]", "<b>", "&amp;", "{}", "%s", "\\", "'", '"')
WORDS = ("conv1.weight", "a", "parity: note: all is well", "network             resnet50", "0", ".", "fc.bias")


def name(rng: random.Random) -> str:
    """Return a name that holds what no terminal should see."""
    return "".join(rng.choice(PIECES if rng.random() < 0.6 else WORDS) for _ in range(rng.randint(1, 4)))


def names(plan: Plan) -> Table:
    """Files with hostile names and metadata through every command that prints them."""

    def work(folder: Path, job: Job) -> Result:
        rng, row = runs.rng_of(plan, job), FORMATS[job[0]]
        tensors = {name(rng): np.ones((2, i + 1), np.float32) for i in range(rng.randint(1, 4))}
        path = folder / f"{_of_file(rng)}{seeds.suffix(job[0])}"
        faults = reported(folder, name(rng))
        try:
            tree: Any = formats.nested((tuple(n.split(".")), a) for n, a in tensors.items()) if row.nested else tensors
            formats.write(path, Content(tree, {name(rng): name(rng)}), row)
        except (WeightsError, OSError, ValueError) as error:
            if not isinstance(error, WeightsError):
                faults.append(f"cannot be written: {type(error).__name__}: {error}"[:200])
            return {"written": False, "faults": faults}
        for command in commands(rng, folder, path, job[0]):
            ran = judge.run(command)
            found = judge.Verdict()
            judge._look(found, command[0], ran, 1 << 40, judge.CPU)
            faults += found.faults
        return {"written": True, "faults": faults}

    return runs.collect("names", plan, work)


def _of_file(rng: random.Random) -> str:
    """Return a hostile name that a file can have."""
    text = name(rng).replace("/", "").replace("\0", "").strip(".")
    return f"w{text[:50]}" if text.isprintable() or "\ud800" not in text else "w"


def commands(rng: random.Random, folder: Path, path: Path, format_name: str) -> list[list[str]]:
    """Return the commands that print the names of a file, and names that are given to them."""
    source, kind, out = str(path), ["--source-format", format_name], str(folder / "out.npz")
    given = name(rng).replace("\0", "")
    return [
        ["inspect", source, *kind, "--values"],
        ["inspect", "--rules", source, source, *kind],
        ["inspect", source, "--key", given],
        ["inspect", source, "--model", given],
        ["inspect", source, "--source-format", given],
        ["convert", source, out, *kind, "--to", "torch"],
        ["convert", source, str(folder / "o2.npz"), *kind, "--to", "nnx"],
        ["convert", source, str(folder / "o3.npz"), *kind, "--model", "cifar_resnet20"],
        ["convert", source, str(folder / given), "--key", given],
        ["convert", source, out, "--format", given],
        ["convert", source, out, "--max-memory", given],
        ["convert", given, out],
    ]


def reported(folder: Path, text: str) -> list[str]:
    """Return what is wrong with a table, a page and a file of JSON about a layer of that name."""
    row = Row("nnx", "layer.eval", text, 1.0, 0.1, ok=False)
    report = Report((Model(text, (row,), findings=(Finding("nnx", text, None, f"{text} differs"),)),), {})
    terminal.write("--json", folder / "r.json", json.dumps(report.to_json()))
    shown = {"table": str(report), "page": html.page(report), "JSON": (folder / "r.json").read_text()}
    (folder / "r.json").unlink()
    hidden = {kind: sorted({c for c in out if not c.isprintable() and c != "\n"}) for kind, out in shown.items()}
    return [f"{kind}: characters that cannot be seen: {found[:5]}" for kind, found in hidden.items() if found]
