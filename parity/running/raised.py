"""Reports an exception of a user's own code in one message: the exception, the layer, its arguments, the place.

The traceback has all of this: a frame knows the module whose code it runs, and the module's arguments.
"""

from __future__ import annotations

import dis
import inspect
import sys
import sysconfig
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from parity.numerics.layouts import leaves
from parity.numerics.pins import LIBRARIES, package_of
from ports.errors import UserError, is_out_of_memory, shortened

STANDARD = Path(sysconfig.get_paths()["stdlib"])
# Folders of installed packages: a frame outside of these is preferred as the user's own.
INSTALLED = ("site-packages", "dist-packages")
# The methods of a module that its user calls.
METHODS = ("forward", "__call__")
# A message shows this many arrays that a layer was called with, and this many characters of an error.
SHOWN, LONGEST = 6, 300

# What a message expects of a model, of a loss, and of an optimizer.
EXPECTED = "expected it to run on these inputs"
OF_OUTPUTS = "expected a loss of the model's outputs"
OF_GRADIENTS = "expected an update of the parameters"
TRACED = (
    "the check runs ports under jax.jit, where arrays have no numbers yet: expected it to compute this from shapes and "
    "Python numbers (flax_keywords= and flax_call= can pass them), or with jnp.where and jax.lax.cond"
)

# What JAX raises where code under `jax.jit` asks for the numbers of an array.
CONCRETE = (
    "ConcretizationTypeError",
    "TracerArrayConversionError",
    "TracerIntegerConversionError",
    "NonConcreteBooleanIndexError",
)


def _torch_name(root: Any, module: object) -> str:
    return next((name for name, other in root.named_modules() if other is module), "")


def _nnx_name(root: Any, module: object) -> str:
    found = sys.modules["flax.nnx"].iter_modules(root)
    return next((".".join(map(str, path)) for path, other in found if other is module), "")


def _linen_name(_: object, module: Any) -> str:
    return ".".join(module.path) if module.scope is not None else ""


# For the base class of each framework's modules: how to find the name of a module in a model. The classes are given by
# name, because a run of one framework does not load the other.
NAMES: dict[str, Callable[[Any, Any], str]] = {
    "torch.nn.modules.module.Module": _torch_name,
    "flax.nnx.module.Module": _nnx_name,
    "flax.linen.module.Module": _linen_name,
}


def _framework(value: object) -> str | None:
    """Return the class in `NAMES` of a module; None for other values."""
    return next(
        (name for cls in type(value).__mro__ if (name := f"{cls.__module__}.{cls.__qualname__}") in NAMES), None
    )


@dataclass(frozen=True)
class LayerCall:
    """A call of a module, as a frame shows it.

    Attributes:
        given: positional and keyword arguments.
        exact: whether `given` is certainly the module's arguments; otherwise its own code may have changed them.
    """

    module: Any
    given: tuple[Any, dict[str, Any]]
    exact: bool


class RaisesError(UserError):
    """A user's code raises."""


@contextmanager
def raising(what: str = "the Flax model", given: object = None, expected: str = EXPECTED) -> Iterator[None]:
    """Turn an exception of a user's code into one line. An out-of-memory error passes unchanged.

    Args:
        what: whose code runs.
        given: its arguments, if it is not a module.
        expected: what it should have done.

    Raises:
        RaisesError: one line: the exception, the layer and the shapes that it got, the file and line.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if is_out_of_memory(error):
            raise
        expected = TRACED if _wants_numbers(error) else expected
        raise RaisesError(f"{what} raises {described(error, given)}; {expected}") from error


def _wants_numbers(error: BaseException) -> bool:
    """Return whether code that JAX traces asked for the numbers of an array."""
    return any(cls.__module__.startswith("jax") and cls.__name__ in CONCRETE for cls in type(error).__mro__)


def described(error: BaseException, given: object = None) -> str:
    """Return an exception in one line: its type and first line, the layer and its arguments, the file and line."""
    said = shortened(str(error).strip().partition("\n")[0], LONGEST)
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    parts = [f"{type(error).__name__}: {said}" if said else type(error).__name__, _called(frames, given), place(error)]
    return "; ".join(part for part in parts if part)


def place(error: BaseException) -> str:
    """Return where the user's code raised, `at model.py:12 in forward`; empty if none of it ran."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    lines = {id(frame): line for frame, line in traceback.walk_tb(error.__traceback__)}
    foreign = [frame for frame in frames if not _is_library(frame)]
    own = [frame for frame in foreign if not any(part in INSTALLED for part in Path(_file(frame)).parts)] or foreign
    if not own:
        return ""
    return f"at {_shown(_file(own[-1]))}:{lines[id(own[-1])]} in {own[-1].f_code.co_name}"


def _file(frame: FrameType) -> str:
    return frame.f_code.co_filename


def _is_library(frame: FrameType) -> bool:
    """Return whether a frame belongs to a framework, to this project, or to Python."""
    if package_of(frame) in (*LIBRARIES, "ports") or _file(frame).startswith("<frozen"):
        return True
    path = Path(_file(frame))
    return path.is_relative_to(STANDARD) and not any(part in INSTALLED for part in path.parts)


def _shown(file: str) -> str:
    """Return a path as a reader would type it: relative to the current folder, if it is inside."""
    path = Path(file)
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else file


def _called(frames: list[FrameType], given: object) -> str:
    """Return the innermost layer that was called, and its arguments."""
    root, found = None, None
    for frame in frames:
        call = _call_of(frame)
        if call is None:
            continue
        root = call.module if root is None else root
        if found is None or call.module is not found.module or not found.exact:
            found = call
    if found is None:
        got = _arrays(given) if given is not None else ""
        return f"called with {got}" if got else ""
    with suppress(Exception):  # a module that its own code left incomplete
        layer = NAMES[_framework(found.module) or ""](root, found.module)
        where = f"in {layer} ({type(found.module).__name__})" if layer else f"in {type(found.module).__name__}"
        got = _arrays(found.given)
        verb = "called with" if found.exact else "its arguments are then"
        return f"{where}, {verb} {got}" if got else where
    return ""


def _call_of(frame: FrameType) -> LayerCall | None:
    """Return the call of a module that a frame runs: the module's own code, or framework or check code around it."""
    values = frame.f_locals
    module = getattr(values.get("context"), "module", None) if "self" not in values else values["self"]
    if _framework(module) is None:
        return None
    if _is_library(frame) and isinstance(values.get("args"), tuple):
        keywords = values.get("kwargs", values.get("kw"))
        return LayerCall(module, (values["args"], keywords if isinstance(keywords, dict) else {}), exact=True)
    if frame.f_code.co_name not in METHODS:
        return None
    taken = inspect.getargvalues(frame)
    own = {name: values[name] for name in taken.args[1:] if name in values}
    more = tuple(values.get(taken.varargs or "", ()))
    given = ((*own.values(), *more), values.get(taken.keywords or "", {}))
    return LayerCall(module, given, exact=_stored(frame).isdisjoint(own))


def _stored(frame: FrameType) -> set[str]:
    """Return the names that a function gives new values."""
    found: set[str] = set()
    for instruction in dis.get_instructions(frame.f_code):
        if instruction.opname.startswith("STORE"):  # one instruction may store two
            named = instruction.argval
            found |= {*named} if isinstance(named, tuple) else {str(named)}
    return found


def _arrays(given: object) -> str:
    """Return types and shapes of arrays: `float64 (2, 4), int64 (2,)`."""
    found = []
    for _, array in leaves(given, "input"):
        dtype, shape = getattr(array, "dtype", None), getattr(array, "shape", None)
        if dtype is not None and shape is not None:
            found.append(f"{str(dtype).removeprefix('torch.')} {tuple(shape)}")
    more = f" and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
    return ", ".join(found[:SHOWN]) + more
