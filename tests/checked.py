"""Every call of the project's functions checked against its annotations, shapes of arrays too.

`install` puts a finder before Python's own. Modules that it finds get a decorator on each function and each dataclass.
beartype checks a call, with jaxtyping where the annotations give shapes. jaxtyping has such a hook of its own, but it
puts its own wrapper round every function, and the tests take much longer.
"""

from __future__ import annotations

import ast
import functools
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from types import CodeType, FunctionType, ModuleType
from typing import Any, get_args

from beartype import BeartypeConf, beartype
from jaxtyping import AbstractArray, config, jaxtyped

RULES = BeartypeConf(is_pep484_tower=True)  # an int is a float

# A check names the first line of a user's own code, and finds it on Python's stack: this frame is beartype's there.
WRAPPER = """
def wrapper(function, checking, strict):
    made = None

    def call(*arguments, **keywords):
        nonlocal made
        if not checking[0]:
            return function(*arguments, **keywords)
        if made is None:
            made = strict(function)
        return made(*arguments, **keywords)

    return call
"""
exec(compile(WRAPPER, "<@checked>", "exec"), wrappers := {"__name__": "beartype"})

_checking = [True]  # a list, into which a call looks quicker than it calls a function


def checked(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that checks its arguments and what it returns, while checks are on."""
    if not function.__annotations__:
        return function
    return functools.wraps(function)(wrappers["wrapper"](function, _checking, _strict))


def first_checked(check: Callable[..., Any]) -> Callable[..., Any]:
    """Return a decorator for functions within functions: the first one that is made of a source is checked.

    A function that is made anew at each call would get new checks each time. They were most of the time of all checks.
    """

    def decorate(function: Any) -> Callable[..., Any]:
        if function.__code__ in _made:
            return function
        _made.add(function.__code__)
        return check(function)

    return decorate


_made: set[CodeType] = set()


def _strict(function: Any) -> Callable[..., Any]:
    """Return the function with beartype's checks. At the first call, all classes of its module are there.

    jaxtyping compares the lengths of axes, in functions whose annotations give some: it takes long for each call.
    """
    copy = FunctionType(
        function.__code__, function.__globals__, function.__name__, function.__defaults__, function.__closure__
    )
    copy.__qualname__, copy.__module__ = function.__qualname__, function.__module__
    copy.__kwdefaults__ = function.__kwdefaults__
    copy.__annotations__ = {name: _evaluated(hint, function) for name, hint in function.__annotations__.items()}
    check = beartype(conf=RULES)
    if any(map(_gives_shape, copy.__annotations__.values())):
        return jaxtyped(typechecker=check)(copy)
    return check(copy)


def _gives_shape(hint: Any) -> bool:
    """Say whether an annotation names lengths of axes, itself or in what it is made of (`Shaped | None`)."""
    if isinstance(hint, type) and issubclass(hint, AbstractArray):
        return True
    parts = (*get_args(hint), getattr(hint, "leaftype", None))  # of a `PyTree`, its leaves
    return any(_gives_shape(part) for part in parts if part is not None)


def _evaluated(hint: Any, function: Any) -> Any:
    """Return an annotation as an object; a name that is imported for type checkers alone is anything."""
    try:
        return eval(hint, function.__globals__) if isinstance(hint, str) else hint
    except NameError:
        return Any


def checked_fields(cls: type) -> type:
    """Return a dataclass whose `__init__` checks its arguments."""
    if "__init__" in vars(cls):
        cls.__init__ = checked(cls.__init__)
    return cls


@contextmanager
def unchecked() -> Iterator[None]:
    """Check nothing in this block."""
    before = _checking[0], config.jaxtyping_disable
    _checking[0] = False
    config.update("jaxtyping_disable", True)
    try:
        yield
    finally:
        _checking[0] = before[0]
        config.update("jaxtyping_disable", before[1])


class Decorated(ast.NodeTransformer):
    """Put the decorators of this module into the source of another."""

    def __init__(self) -> None:
        self.within = 0  # so many functions

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        self.within += 1
        self.generic_visit(node)
        self.within -= 1
        decorator = _decorator("checked")
        if self.within:
            decorator = ast.Call(_decorator("first_checked"), [decorator], [])
        node.decorator_list.append(_located(decorator, node))  # innermost, with the annotations
        return node

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.AST:
        self.generic_visit(node)
        if any("dataclass" in ast.unparse(decorator) for decorator in node.decorator_list):
            node.decorator_list.insert(0, _located(_decorator("checked_fields"), node))  # after `__init__` is made
        return node


def _decorator(name: str) -> ast.expr:
    imported = ast.Call(ast.Name("__import__", ast.Load()), [ast.Constant(__name__)], [])
    return ast.Attribute(imported, name, ast.Load())


def _located(expression: ast.expr, at: ast.AST) -> ast.expr:
    for node in ast.walk(expression):
        ast.copy_location(node, at)
    return expression


class Loader(SourceFileLoader):
    """Load a module with the decorators in it. Nothing is kept in `__pycache__`, where runs without checks look."""

    def source_to_code(self, data: Any, path: Any, **options: Any) -> Any:
        tree = Decorated().visit(ast.parse(data, path))
        return super().source_to_code(tree, path, **options)

    def path_stats(self, path: Any) -> Any:
        raise OSError("no compiled file is read or written")


class Finder(MetaPathFinder):
    """Find the modules of some packages, and have `Loader` load them."""

    def __init__(self, packages: Sequence[str], but: Sequence[str]) -> None:
        self.packages, self.but = tuple(packages), tuple(but)

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname.split(".")[0] not in self.packages or fullname in self.but:
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None and isinstance(spec.loader, SourceFileLoader):
            spec.loader = Loader(spec.loader.name, spec.loader.path)
        return spec


def install(packages: Sequence[str], but: Sequence[str] = ()) -> None:
    """Check all modules of some packages that are imported from now on, except for those named in `but`."""
    sys.meta_path.insert(0, Finder(packages, but))
