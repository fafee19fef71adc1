"""Says what a check's inputs did not reach: layers, arguments of the call, and branches of the models' own code.

What is not reached is not compared: a mistake there stays unseen.
"""

from __future__ import annotations

import ast
import json
import linecache
import sys
import tempfile
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import flax.linen
from flax import nnx
from torch import nn

from parity.numerics.calls import Call
from parity.numerics.quantities import Probe
from parity.running.model_layers import ModelLayer
from ports.errors import UserError

# Packages whose code is not a model's own.
FRAMEWORKS = ("torch", "jax", "flax", "optax", "parity")
MODULES = (nn.Module, nnx.Module, flax.linen.Module)
# The methods by which networks are called.
CALLED = ("forward", "__call__")


def layers(found: Iterable[ModelLayer], without_gradient: Collection[str]) -> tuple[str, ...]:
    """Return a line that names the layers of PyTorch that are never used, if there are any.

    Such a layer is not called, no gradient reaches it, and no other code reads its tensors.

    Args:
        without_gradient: the parameters that are not frozen and get none.
    """
    names = [one.name for one in found if one.rank is None and {*one.tensors.values()} <= {*without_gradient}]
    return (f"PyTorch: layers that are never used: {', '.join(names)}",) if names else ()


def without_effect(names: Collection[str]) -> tuple[str, ...]:
    """Return a line that names the layers whose gradients are zero, if there are any: nothing depends on them."""
    return (f"PyTorch: layers that no output depends on for these inputs: {', '.join(names)}",) if names else ()


def arguments(call: Call, model: Any, fed: Probe) -> list[str]:
    """Return a line that names the arguments of a model's own call left at their defaults, if there are any."""
    if type(call.holder(model)).__module__.partition(".")[0] in FRAMEWORKS:
        return []
    names = call.at_default(model, fed.inputs, fed.keywords)
    return [f"{call.side}: arguments left at their defaults: {', '.join(names)}"] if names else []


def branches(runs: Iterable[Callable[[], Any]]) -> tuple[str, ...]:
    """Run functions, and return a line for each branch of the models' own code that none of them took.

    It considers branches of `if`, `for`, `while` and `match` that were reached, in files with a network class that was
    called. The `coverage` package measures them.

    Raises:
        UserError: the package is not installed, or something else traces this process.
    """
    try:
        import coverage
    except ModuleNotFoundError:
        raise UserError("branches: got no package coverage, expected it installed: pip install coverage") from None
    if coverage.Coverage.current() is not None or sys.gettrace() is not None:
        raise UserError("branches: another tool traces this process; expected none: run the check without it")
    measure = coverage.Coverage(branch=True, data_file=None, config_file=False, include=sorted(_files()))
    measure.start()
    try:
        for run in runs:
            run()
    finally:
        measure.stop()
    if not measure.get_data().measured_files():
        return ()
    with tempfile.TemporaryDirectory(prefix="parity-") as folder:
        file = Path(folder) / "branches.json"
        measure.json_report(outfile=str(file), ignore_errors=True)
        found: Mapping[str, Any] = json.loads(file.read_text())["files"]
    return tuple(line for name, measured in found.items() for line in _untaken(Path(name), measured["functions"]))


def _files() -> Iterator[str]:
    """Yield the files of loaded modules that define a class of network."""
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__file__", None)
        if file is None or name.partition(".")[0] in FRAMEWORKS:
            continue
        own = (value for value in list(vars(module).values()) if isinstance(value, type))
        if any(issubclass(value, MODULES) and value.__module__ == name for value in own):
            yield file


@dataclass(frozen=True)
class Branching:
    """A statement with branches.

    Attributes:
        inside: the first line of the code that runs if the condition is true.
        never: the text if that code is never reached.
        always: the text if only that code is reached; empty if that is normal.
    """

    inside: int
    never: str
    always: str = ""


def _branchings(source: bytes) -> dict[int, Branching]:
    """Return the statements with branches of a file, by their lines."""
    found = {}
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.If | ast.While):
            found[node.lineno] = Branching(node.body[0].lineno, "never true", "never false")
        elif isinstance(node, ast.For):
            found[node.lineno] = Branching(node.body[0].lineno, "never entered")
        elif isinstance(node, ast.match_case):
            found[node.pattern.lineno] = Branching(node.body[0].lineno, "never matched")
    return found


def _untaken(file: Path, functions: Mapping[str, Any]) -> Iterator[str]:
    """Yield the branches of a file that were reached and not taken, if a network of that file was called."""
    called = {name: one for name, one in functions.items() if name and one["executed_lines"]}
    if not any(name.rpartition(".")[2] in CALLED for name in called):
        return
    known = _branchings(file.read_bytes())
    for name, measured in called.items():
        for line, to in measured["missing_branches"]:
            if (branching := known.get(line)) is None or line not in measured["executed_lines"]:
                continue
            if said := branching.never if to == branching.inside else branching.always:
                yield f"{file.name}:{line}: `{linecache.getline(str(file), line).strip()}` in {name} is {said}"
