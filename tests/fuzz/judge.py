"""One case through `parity inspect` and `parity convert`, in this process, and everything that is wrong with it.

A fault is: an exit code that is not documented, a traceback, more than one line about a refused file, characters on
the output that cannot be seen, more than 10 s of CPU time, more memory than a file may take, a partial output, an old
output that is lost, an output that cannot be read back or holds other numbers, and an error of programming that the
boundary for faults of files hides (`ports.weights.files.guard`).
"""

from __future__ import annotations

import contextlib
import functools
import io
import random
import resource
import shutil
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import typer.main

from parity.commands import cli
from ports.weights.checkpoints import checkpoint
from ports.weights.files import budget, formats, guard
from ports.weights.files.formats import FORMATS

from .seeds import Files, collected, laid, suffix

CPU = 10.0  # seconds
NOISE = 8 << 20  # bytes that a process takes besides: pages of the allocator, of libraries
NOTES, LONGEST = 40, 4200  # lines, and characters of one: four problems of up to 1,000 each
# What no reader raises on purpose: an error of programming, whatever the file is.
MISTAKES = (LookupError, TypeError, AttributeError, NameError, AssertionError, ArithmeticError, RuntimeError)
PLANNED = (RecursionError,)
OWN = str(Path(__file__).resolve().parents[2] / "ports")


class TooSlow(BaseException):
    """The CPU time of a command is over."""


@dataclass
class Verdict:
    """What a case came to.

    Attributes:
        written: whether an output was written.
        cpu: seconds of CPU time of the slower command.
        memory: the largest part of its limit that a command took.
        code: what the two commands answered.
    """

    written: bool = False
    cpu: float = 0.0
    memory: float = 0.0
    faults: list[str] = field(default_factory=list)


@dataclass
class Ran:
    """What one command did."""

    code: int
    out: str
    err: str
    cpu: float
    peak: int


@dataclass(frozen=True)
class Options:
    """How a case is run.

    Attributes:
        inspect: options of `parity inspect`.
        convert: those of `parity convert`.
        target: the format of the output.
        old: whether an output is there before, and `--force` replaces it.
        scarce: whether the process may take little memory while it inspects.
    """

    inspect: tuple[str, ...] = ()
    convert: tuple[str, ...] = ()
    target: str = "npz"
    old: bool = False
    scarce: bool = False


# The shares of formats that take longer to write; the others have a share of 4.
SLOW = {"sharded": 2, "orbax": 1}


def options(rng: random.Random, name: str) -> Options:
    """Draw how a file of a format is inspected and converted."""
    target = rng.choices(list(FORMATS), [SLOW.get(name, 4) for name in FORMATS])[0]
    inspect: list[str] = []
    convert = ["--shard-size", str(rng.choice((100, 2000)))] if target == "sharded" else ["--format", target]
    if rng.random() < 0.3:
        inspect.append("--values")
    if rng.random() < 0.1:
        inspect += ["--model", "cifar_resnet20"]
    if rng.random() < 0.05:
        convert += ["--model", "cifar_resnet20"]
    if rng.random() < 0.1:
        key = rng.choice(("model", "a.b", "params", "\x1b\n"))
        inspect += ["--key", key]
        convert += ["--key", key]
    if rng.random() < 0.7:
        convert += ["--to", rng.choice(("torch", "torch", "torch", "nnx", "linen"))]
    if rng.random() < 0.4:
        convert.append("--weights-only")
    if rng.random() < 0.1:
        convert += ["--steps", str(rng.choice((0, 7)))]
    if rng.random() < 0.05:
        convert.append("--fold-batchnorm")
    if rng.random() < 0.05:
        limit = ["--max-memory", str(rng.choice((1, 10_000, 1 << 20, 32 << 20)))]
        inspect += limit
        convert += limit
    named = ["--source-format", name] if rng.random() < 0.3 else []
    return Options((*inspect, *named), (*convert, *named), target, rng.random() < 0.15, rng.random() < 0.05)


def judge(folder: Path, name: str, files: Files, how: Options, cpu: float = CPU, *, deep: bool = True) -> Verdict:
    """Run a case in an empty folder.

    Args:
        deep: read what was written, and compare it with the source.
    """
    found = Verdict()
    source, out = laid(folder / f"w{suffix(name)}", files), folder / f"out{suffix(how.target)}"
    size, before = sum(map(len, files.values())), names_in(folder)
    old = _put_old(out, how.target) if how.old else None
    with limited(how.scarce):
        limit = _limit(how.inspect, size)
        _look(found, "inspect", run(["inspect", str(source), *how.inspect], cpu), limit, cpu)
    _listing(found, "inspect", folder, sorted({*before, *([out.name] if how.old else [])}))
    limit = _limit(how.convert, size)
    ran = run(["convert", str(source), str(out), *how.convert, *(["--force"] if how.old else [])], cpu)
    _look(found, "convert", ran, limit, cpu)
    found.written = ran.code == 0
    _listing(found, "convert", folder, sorted({*before, *([out.name] if how.old or ran.code == 0 else [])}))
    if ran.code == 0 and deep:
        _back(found, source, name, out, how)
    elif old is not None and ran.code != 0 and (not out.exists() or collected(out) != old):
        found.faults.append("convert: the old output is lost or changed")
    return found


def _limit(arguments: tuple[str, ...], size: int) -> int:
    if "--max-memory" in arguments:
        return int(arguments[arguments.index("--max-memory") + 1])
    return min(budget.TIMES * size + budget.BASE, budget.usable() // 2)


def _put_old(out: Path, target: str) -> Files:
    row = FORMATS[target]
    array = np.arange(3.0)
    formats.write(out, formats.Content({"old": array} if not row.nested else {"old": {"w": array}}), row)
    return collected(out)


def _look(found: Verdict, command: str, ran: Ran, limit: int, cpu: float) -> None:
    """Add what is wrong with one command."""
    lines = ran.err.splitlines()
    faults = [f"{command}: {fault}" for fault in (*HIDDEN, *LOUD)]
    HIDDEN.clear()
    LOUD.clear()
    if ran.cpu > cpu:
        faults.append(f"{command}: took {ran.cpu:.1f} s of CPU time")
    elif "Traceback" in ran.err:
        faults.append(f"{command}: a traceback: {lines[-1][:200]}")
    elif "defect of this package" in ran.err:
        faults.append(f"{command}: {ran.err.strip()[:300]}")
    elif ran.code not in (0, 2):
        faults.append(f"{command}: exit code {ran.code}")
    elif ran.code == 2 and (len(lines) != 1 or not lines[0].startswith("parity: ")):
        faults.append(f"{command}: {len(lines)} lines about a refused file: {ran.err[:300]!r}")
    elif ran.code == 0 and not all(line.startswith("parity: note: ") for line in lines):
        faults.append(f"{command}: stderr: {ran.err[:300]!r}")
    if len(lines) > NOTES or any(len(line) > LONGEST for line in lines):
        faults.append(f"{command}: {len(lines)} lines on stderr, the longest has {max(map(len, lines))} characters")
    if hidden := sorted({c for c in ran.out + ran.err if not c.isprintable() and c != "\n"}):
        faults.append(f"{command}: characters that cannot be seen: {hidden[:5]}")
    found.cpu = max(found.cpu, ran.cpu)
    found.memory = max(found.memory, max(ran.peak - NOISE, 0) / max(limit, 1))
    if ran.peak > limit + NOISE:
        faults.append(f"{command}: took {ran.peak:,} bytes of memory, limit {limit:,}")
    found.faults += faults


def _listing(found: Verdict, command: str, folder: Path, expected: list[str]) -> None:
    if (names := names_in(folder)) != expected:
        found.faults.append(f"{command}: the folder holds {names}, expected {expected}")


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def _back(found: Verdict, source: Path, name: str, out: Path, how: Options) -> None:
    """Read what was written: every number is as it was in the source."""
    folded = "--fold-batchnorm" in how.convert
    weights_only = "--weights-only" in how.convert or folded
    key = how.convert[how.convert.index("--key") + 1] if "--key" in how.convert else None
    model = how.convert[how.convert.index("--model") + 1] if "--model" in how.convert and not folded else None
    steps = int(how.convert[how.convert.index("--steps") + 1]) if "--steps" in how.convert else None
    more: dict[str, Any] = {"weights_only": weights_only, "bare": True, "model": model, "max_memory": 1 << 32}
    try:
        written = checkpoint.open_checkpoint(out, format=how.target, **more)
    except Exception as error:
        found.faults.append(f"convert: what it wrote cannot be read: {type(error).__name__}: {str(error)[:300]}")
        return
    finally:
        HIDDEN.clear()
    if folded:
        return
    first = checkpoint.open_checkpoint(source, format=name, key=key, steps=steps, **more)
    if written.weights.keys() != first.weights.keys():
        odd = sorted(written.weights.keys() ^ first.weights.keys())
        found.faults.append(f"convert: other names than in the source: {odd[:3]!r}"[:300])
    wrong = [n for n, array in first.weights.items() if n in written.weights and not _same(array, written.weights[n])]
    if wrong:
        found.faults.append(f"convert: {len(wrong)} tensors differ from the source, such as {wrong[0]!r}"[:300])


def _same(a: Any, b: Any) -> bool:
    """Return whether two arrays have the same bits; a truth value is true whatever its byte is."""
    a, b = np.asarray(a), np.asarray(b)
    if a.dtype == b.dtype == np.bool_:
        a, b = a.view(np.uint8) != 0, b.view(np.uint8) != 0
    return (a.dtype, a.shape, a.tobytes()) == (b.dtype, b.shape, b.tobytes())


HIDDEN: list[str] = []  # errors of programming that `guard` turned into a line about the file
LOUD: list[str] = []  # what libraries wrote on the process' own stderr


@contextmanager
def watched() -> Iterator[None]:
    """Note the errors of programming that the boundary for faults of files hides.

    Typer builds the command line anew at each call, which takes longer than most files: here it is built once.
    """
    reason, build = guard._reason, typer.main.get_command
    typer.main.get_command = functools.cache(build)

    def noted(error: Exception) -> str:
        if isinstance(error, MISTAKES) and not isinstance(error, PLANNED):
            frames = [f for f in traceback.extract_tb(error.__traceback__) if f.filename.startswith(OWN)]
            last = frames[-1] if frames else traceback.extract_tb(error.__traceback__)[-1]
            place = f"{Path(last.filename).name}:{last.lineno}"
            HIDDEN.append(f"an error of programming is hidden: {type(error).__name__} {str(error)[:100]!r} ({place})")
        return reason(error)

    guard._reason = noted
    try:
        yield
    finally:
        guard._reason, typer.main.get_command = reason, build


def run(arguments: list[str], cpu: float = CPU) -> Ran:
    """Run a command in this process; stop it when its CPU time is over."""
    out, err = (io.TextIOWrapper(io.BytesIO(), encoding="utf-8", errors=e) for e in ("strict", "backslashreplace"))
    begin, start = _cpu(), reset_peak()
    previous = signal.signal(signal.SIGPROF, _over)
    signal.setitimer(signal.ITIMER_PROF, cpu, 1.0)
    code, stopped = -1, False
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = cli.main(arguments)
    except TooSlow:
        stopped = True
    except BaseException:  # whatever gets through the command line
        err.write(traceback.format_exc())
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, previous)
    took = _cpu() - begin
    return Ran(code, _text(out), _text(err), max(took, cpu * 1.001) if stopped else took, peak() - start)


def _text(stream: io.TextIOWrapper) -> str:
    stream.flush()
    buffer: Any = stream.buffer
    return buffer.getvalue().decode("utf-8", "surrogatepass")


def _over(*_: object) -> None:
    raise TooSlow


def _cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def reset_peak() -> int:
    """Let the highest memory count begin anew; return what the process holds now."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")


def peak() -> int:
    return _status("VmHWM")


def _status(name: str) -> int:
    try:
        text = Path("/proc/self/status").read_text()
    except OSError:  # not Linux: nothing is measured
        return 0
    return int(text.partition(f"{name}:")[2].split()[0]) << 10


@contextmanager
def limited(scarce: bool, room: int = 192 << 20) -> Iterator[None]:
    """Leave the process little room, so that half of what it may use is the limit."""
    if not scarce or sys.platform != "linux":
        yield
        return
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (_status("VmSize") + room, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def emptied(folder: Path) -> Path:
    """Return the folder, with nothing in it."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


Judge = Callable[[Path, str, Files, Options], Verdict]
