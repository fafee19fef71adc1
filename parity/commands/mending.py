"""Mend the source of a port in memory, check again, and keep the diff if the mistake is gone.

This module writes no file. It loads the modules of a pair again from the mended text, and never reports a diff that
another check has not confirmed.
"""

from __future__ import annotations

import difflib
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

from parity.commands import edits
from parity.commands.edits import Sources
from parity.reports.report import Finding, Model
from ports.errors import UserError

# Takes the changed sources, and returns the result of another check.
Again = Callable[[Sources], Model]


def own_modules(folders: Sequence[Path]) -> dict[str, ModuleType]:
    """Return the loaded modules whose files are in some folders, except installed packages and this package."""
    root = Path(__file__).resolve().parents[2]
    apart = [Path(sys.prefix).resolve(), root / "parity", root / "ports"]
    found = {}
    for name, module in [*sys.modules.items()]:
        file = getattr(module, "__file__", None)
        path = Path(file).resolve() if file and file.endswith(".py") and Path(file).exists() else None
        inside = path is not None and any(path.is_relative_to(folder.resolve()) for folder in folders)
        if inside and path is not None and not any(path.is_relative_to(folder) for folder in apart):
            found[name] = module
    return found


def sources_of(modules: Mapping[str, ModuleType]) -> dict[Path, str]:
    """Return the texts of modules by their files."""
    files = dict.fromkeys(Path(str(module.__file__)).resolve() for module in modules.values())
    return {file: file.read_text(encoding="utf-8") for file in files if "flax" in file.read_text(encoding="utf-8")}


@contextmanager
def loaded_from(changed: Sources, modules: Mapping[str, ModuleType]) -> Iterator[None]:
    """Load these modules again, changed files from their texts; restore the old modules afterwards."""
    original: Any = SourceFileLoader.get_code

    def get_code(self: SourceFileLoader, fullname: str) -> CodeType | None:
        text = changed.get(Path(self.path).resolve())
        return original(self, fullname) if text is None else compile(text, self.path, "exec", dont_inherit=True)

    for name in modules:
        sys.modules.pop(name, None)
    SourceFileLoader.get_code = get_code
    try:
        yield
    finally:
        SourceFileLoader.get_code = original
        for name in own_modules([file.parent for file in changed]):
            sys.modules.pop(name, None)
        sys.modules.update(modules)


def with_diffs(model: Model, sources: Sources, again: Again) -> tuple[Model, Sources]:
    """Return the result with a `diff` in each finding that was certainly mended, and the sources with all mends."""
    wanted = [finding for finding in model.findings if finding.fix]
    at_once, now = [{**sources}], {**sources}
    for finding in wanted:
        now = next(edits.mended(now, _fixes(finding)), now)
        at_once.append(now)
    if now != sources and (found := _checked(again, now)) is not None and found.ok:
        steps = zip(wanted, at_once, at_once[1:], strict=False)
        return _told(model, {id(finding): _diff(before, after) for finding, before, after in steps}), now
    return _one_by_one(model, sources, again)


def _one_by_one(model: Model, sources: Sources, again: Again) -> tuple[Model, Sources]:
    now, left, diffs = {**sources}, model, {}
    for finding in (finding for finding in model.findings if finding.fix):
        for new in edits.mended(now, _fixes(finding)):
            found = _checked(again, new)
            if found is not None and _is_gone(finding, left, found):
                diffs[id(finding)] = _diff(now, new)
                now, left = new, found
                break
    return _told(model, diffs), now


def _fixes(finding: Finding) -> list[dict[str, Any]]:
    return [asdict(fix) for fix in finding.fix]


def _checked(again: Again, sources: Sources) -> Model | None:
    try:
        return again(sources)
    except UserError:
        return None


def _is_gone(finding: Finding, before: Model, after: Model) -> bool:
    """Return whether a mistake is gone, and no other has replaced it."""
    if after.ok:
        return True
    places = {(found.layer, found.trap) for found in after.findings}
    known = {(found.layer, found.trap) for found in before.findings}
    where = {(layer, finding.trap) for layer in (finding.layer, *finding.also)}
    return after.undecided is None and not where & places and places <= known


def _diff(before: Sources, after: Sources) -> str:
    lines: list[str] = []
    for file in before:
        old, new = (text.splitlines(keepends=True) for text in (before[file], after[file]))
        name = str(file.relative_to(Path.cwd())) if file.is_relative_to(Path.cwd()) else str(file)
        lines += difflib.unified_diff(old, new, f"a/{name.lstrip('/')}", f"b/{name.lstrip('/')}")
    return "".join(line if line.endswith("\n") else f"{line}\n\\ No newline at end of file\n" for line in lines)


def _told(model: Model, diffs: Mapping[int, str]) -> Model:
    found = (replace(finding, diff=diffs.get(id(finding)) or None) for finding in model.findings)
    return replace(model, findings=tuple(found))
