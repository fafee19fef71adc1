"""Write another argument into the source of a port, in the call that takes it.

The source is read, never run. It looks for a call by the name of its function, and by the name that its result is
assigned to. Only another check can confirm that this is the right call (`mending`).
"""

from __future__ import annotations

import ast
import functools
import importlib
import inspect
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# For functions of these packages the source shows which function is called, and its parameters are known.
LIBRARIES = ("flax", "jax", "optax", "ports")

# How wide the search is: the calls that the module's name points to, then all calls in the files.
LEVELS = 2

# Methods whose layers get the name of the attribute that they are assigned to.
MAKING = ("__init__", "setup")

Sources = Mapping[Path, str]


def _imports(tree: ast.AST) -> dict[str, str]:
    """Return the full names of what a file imports, by the names that it gives them."""
    found: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {one.asname or one.name.partition(".")[0]: _whole(one) for one in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found |= {one.asname or one.name: f"{node.module}.{one.name}" for one in node.names}
    return found


def _whole(one: ast.alias) -> str:
    return one.name if one.asname else one.name.partition(".")[0]


@functools.cache
def _parameters(name: str) -> tuple[str, ...]:
    """Return the parameters of a library's function or class by its full name, positional ones first."""
    parts = name.split(".")
    if parts[0] not in LIBRARIES:
        return ()
    for end in range(len(parts) - 1, 0, -1):
        try:
            found: Any = importlib.import_module(".".join(parts[:end]))
            for part in parts[end:]:
                found = getattr(found, part)
            own = inspect.isclass(found)  # an NNX class shows the signature of its metaclass
            parameters = [*inspect.signature(found.__init__ if own else found).parameters.values()][own:]
        except (ImportError, AttributeError, TypeError, ValueError):
            continue
        placed = [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
        return (*placed, *(p.name for p in parameters if p.kind is p.KEYWORD_ONLY))
    return ()


@dataclass(frozen=True)
class Call:
    """A call in a source.

    Attributes:
        name: the last part of the function's name.
        parameters: of a function or class of a library; empty for any other.
    """

    node: ast.Call
    name: str
    parameters: tuple[str, ...]

    def given(self, argument: str) -> ast.expr | None:
        """Return the value of an argument in the call, by name or by position."""
        for keyword in self.node.keywords:
            if keyword.arg == argument:
                return keyword.value
        at = self.parameters.index(argument)
        starred = any(isinstance(arg, ast.Starred) for arg in self.node.args)
        return None if starred or at >= len(self.node.args) else self.node.args[at]

    def is_wrong(self, fix: Mapping[str, Any]) -> bool:
        """Return whether it may have the mistake of a fix."""
        if fix["function"] not in ("", self.name) or fix["argument"] not in self.parameters:
            return False
        given = self.given(fix["argument"])
        return given is None or ast.unparse(given) != ast.unparse(ast.parse(_written(fix["expected"])))


def _call(node: ast.Call, imports: Mapping[str, str]) -> Call:
    head, _, rest = ast.unparse(node.func).partition(".")
    whole = ".".join(part for part in (imports.get(head, ""), rest) if part)
    known = isinstance(node.func, ast.Name | ast.Attribute) and head in imports
    return Call(node, rest.rpartition(".")[2] or head, _parameters(whole) if known else ())


def _nodes(roots: Iterable[ast.AST]) -> list[ast.Call]:
    found = (node for root in roots for node in ast.walk(root) if isinstance(node, ast.Call))
    return sorted(dict.fromkeys(found), key=lambda node: (node.lineno, node.col_offset))


def _written(value: Any) -> str:
    """Return a value of a report as code; a list of JSON is a tuple."""
    if isinstance(value, list | tuple):
        items = [_written(item) for item in value]
        return f"({', '.join(items)}{',' if len(items) == 1 else ''})"
    return repr(value)


def with_argument(source: str, calls: Sequence[Call], argument: str, value: Any) -> str:
    """Return the source with `value` as an argument of these calls."""
    lines, content = source.encode().splitlines(keepends=True), source.encode()
    starts = [0]
    for line in lines:
        starts.append(starts[-1] + len(line))

    def offset(line: int, column: int) -> int:
        return starts[line - 1] + column

    changes: list[tuple[int, int, str]] = []
    for call in calls:
        old, node = call.given(argument), call.node
        if old is not None:
            end = offset(old.end_lineno or 0, old.end_col_offset or 0)
            changes.append((offset(old.lineno, old.col_offset), end, _written(value)))
            continue
        given = [*node.args, *(keyword.value for keyword in node.keywords)]
        ends = [offset(one.end_lineno or 0, one.end_col_offset or 0) for one in given]
        at = max(ends, default=offset(node.end_lineno or 0, node.end_col_offset or 0) - 1)
        changes.append((at, at, f"{', ' if ends else ''}{argument}={_written(value)}"))
    for begin, end, text in sorted(changes, reverse=True):
        content = content[:begin] + text.encode() + content[end:]
    return content.decode()


def _assigned(tree: ast.AST, name: str) -> list[ast.AST]:
    """Return the calls that are assigned to an attribute or a name, or that get `name=`."""
    found: list[ast.AST] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign):
            targets = [inner for target in node.targets for inner in ast.walk(target)]
            said = {t.attr for t in targets if isinstance(t, ast.Attribute)}
            found += [node.value] if name in said | {t.id for t in targets if isinstance(t, ast.Name)} else []
        elif isinstance(node, ast.Call):
            named = any(k.arg == "name" and ast.unparse(k.value) == repr(name) for k in node.keywords)
            found += [node] if named else []
    return found


def _name(node: ast.Call) -> str:
    return ast.unparse(node.func).rpartition(".")[2]


def _numbered(tree: ast.AST, name: str) -> list[ast.Call]:
    """Return the call that Linen calls `Conv_1`: the second of its kind without a name in a compact method."""
    match = re.fullmatch(r"(\w+)_(\d+)", name)
    if match is None:
        return []
    found = []
    for method in (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)):
        calls = [node for node in _nodes([method]) if _name(node) == match[1]] if method.name not in MAKING else []
        own = [node for node in calls if not any(keyword.arg == "name" for keyword in node.keywords)]
        found += own[int(match[2]) : int(match[2]) + 1]
    return found


def _near(tree: ast.Module, fix: Mapping[str, Any]) -> list[ast.Call]:
    """Return the calls that the name of the fix's module points to."""
    parts = [part for part in fix["module"].split(".") if not part.isdigit()]
    name = parts[-1] if parts else ""
    assigned = _assigned(tree, name)
    if not fix["function"]:
        return [*_nodes(assigned), *_numbered(tree, name)]
    classes = {_name(node) for node in _nodes(assigned)}
    return _nodes(node for node in ast.walk(tree) if isinstance(node, ast.ClassDef) and node.name in classes)


def _with_fix(sources: Sources, fix: Mapping[str, Any], level: int) -> dict[Path, str]:
    """Return the sources with a fix: in the calls that its module name points to, or in all calls with the argument."""
    for wide in range(level, LEVELS):
        changed = {}
        for file, source in sources.items():
            tree = ast.parse(source)
            imports = _imports(tree)
            known = (_call(node, imports) for node in (_nodes([tree]) if wide else _near(tree, fix)))
            calls = [call for call in known if call.is_wrong(fix)]
            if calls:
                changed[file] = with_argument(source, calls, fix["argument"], fix["expected"])
        if changed:
            return {**sources, **changed}
    return {**sources}


def mended(sources: Sources, fixes: Sequence[Mapping[str, Any]]) -> Iterator[dict[Path, str]]:
    """Yield the sources with all fixes of a finding: the likeliest first, each once.

    Args:
        fixes: as a report's JSON has them.
    """
    seen: list[Mapping[Path, str]] = [sources]
    for level in range(LEVELS):
        found = {**sources}
        for fix in fixes:
            found = _with_fix(found, fix, level)
        if found not in seen:
            seen.append(found)
            yield found
