"""Random state dicts through every format and back: every bit is as it was, or one clear line says why not."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np

from ports.weights.files import formats
from ports.weights.files.formats import FORMATS, Content
from ports.weights.form.torch_form import WeightsError

from . import judge, runs, seeds
from .runs import Plan, Table
from .seeds import Tensors
from .workers import Job, Result

WORDS = ("conv", "weight", "bias", "0", "1", "12", "bn", "running_var", "层", "größe", "a-b", "x y", "_", "kernel")
ODD = (
    "",
    " ",
    ".",
    "..",
    "/",
    "a/b",
    "a\\b",
    "a\nb",
    "\x1b[0m",
    "x" * 300,
    "é",
    "e\u0301",
    "a.npy",
    "%",
    "\ud800",
    "\0",
)
ODD += ("params", "model", "step", "optimizer", "state_dict", "value", "module", "__metadata__", "nul", "a:b", "\u202e")
SIZES = (0, 1, 1, 2, 3, 3, 5, 8)


def drawn(rng: random.Random) -> Tensors:
    """Return a random state dict: names, nesting, shapes, types and bits."""
    odd, bits = rng.random() < 0.3, np.random.default_rng(rng.randrange(2**32))
    tensors: Tensors = {}
    for _ in range(rng.choice((1, 2, 3, 5, 9, 20))):
        parts = [rng.choice(ODD if odd and rng.random() < 0.3 else WORDS) for _ in range(rng.randint(1, 4))]
        shape = tuple(rng.choice(SIZES) for _ in range(rng.choice((0, 0, 1, 1, 2, 3, 4, 6))))
        array = seeds.bits(bits, rng.choice(seeds.TYPES), shape)
        tensors[".".join(parts)] = np.asfortranarray(array) if rng.random() < 0.1 else array
    return tensors


def states(plan: Plan) -> Table:
    """Write random state dicts, convert them into another format and back, and compare."""

    def work(folder: Path, job: Job) -> Result:
        rng = random.Random(f"{plan.seed} state {job[1]}")  # every format gets the same ones
        return there_and_back(folder, job[0], drawn(rng), runs.rng_of(plan, job))

    return runs.collect("states", plan, work)


def there_and_back(folder: Path, name: str, tensors: Tensors, rng: random.Random) -> Result:
    """Write a state dict, convert it into a random format and from there back into its own."""
    result: Result = {"written": False, "faults": [], "more": {}}
    first, back = folder / f"w{seeds.suffix(name)}", folder / f"back{seeds.suffix(name)}"
    target = rng.choice(list(FORMATS))
    between = folder / f"between{seeds.suffix(target)}"
    row = FORMATS[name]
    nested = row.nested and name != "torch"  # PyTorch's state dicts are flat; tables in them are training checkpoints
    try:
        tree = formats.nested((tuple(n.split(".")), a) for n, a in tensors.items()) if nested else dict(tensors)
        formats.write(first, Content(tree), row)
    except WeightsError as error:
        return _refused(result, str(error), "written")
    except Exception as error:
        result["faults"].append(f"cannot be written: {type(error).__name__}: {error}"[:200])
        return result
    if fault := compared(first, name, tensors):
        result["faults"].append(f"in {name}: {fault}")
    for source, out, to in ((first, between, target), (between, back, name)):
        as_it_is = ["--to", "torch", "--format", to, "--source-format", target if source is between else name]
        ran = judge.run(["convert", str(source), str(out), *as_it_is])
        judge.HIDDEN.clear()
        if ran.code:
            return _refused(result, ran.err, "converted")
        if fault := compared(out, to, tensors):
            result["faults"].append(f"from {source.name} into {to}: {fault}")
    result["written"] = True
    return result


def _refused(result: Result, said: str, what: str) -> Result:
    """A refusal is one clear line."""
    if not said.strip() or "damaged" in said or "defect" in said or len(said.strip().splitlines()) != 1:
        result["faults"].append(f"not {what}, without a clear line: {said[:200]!r}")
    result["more"] = {f"not {what}": 1}
    return result


def compared(path: Path, name: str, expected: Tensors) -> str | None:
    """Return how the content of a file differs from what was to be written."""
    try:
        content = formats.read(path, name)
    except WeightsError as error:
        return f"cannot be read: {error}"[:200]
    found: dict[str, Any] = {".".join(at): array for at, array in formats.flat(content.tree)}
    if found.keys() != expected.keys():
        return f"other names: {sorted(found.keys() ^ expected.keys())[:4]!r}"[:200]
    wrong = [n for n in expected if not judge._same(found[n], expected[n])]
    return f"{len(wrong)} tensors differ, such as {wrong[0]!r}"[:200] if wrong else None
