"""Shared by all commands: errors on one line, exit codes, tables, files that appear whole."""

from __future__ import annotations

import difflib
import errno
import io
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import typer
from rich.console import Console
from rich.text import Text

from ports.errors import UserError, is_out_of_memory, printable, shortened
from ports.weights import WeightsError
from ports.weights.files import destination
from ports.weights.files.atomic import publish
from ports.weights.files.guard import DEBUG

# typer carries a click of its own, or uses the installed one: the base class of its errors is the same name in both.
USAGE_ERROR: Any = next(cls for cls in typer.BadParameter.__mro__ if cls.__name__ == "ClickException")
ROOT = Path(__file__).resolve().parents[2]
REFUSED = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS}  # no file and no code is at fault


def run(app: typer.Typer, name: str, arguments: Sequence[str] | None, program: str | None = None) -> int:
    """Run a command; any mistake is one line on stderr and exit code 2, because 1 means "mismatch".

    Args:
        name: the beginning of the line.
        program: how the command is typed, for its help.
    """

    def command() -> int:
        try:
            return app(args=arguments, standalone_mode=False, prog_name=program or name)
        except USAGE_ERROR as error:
            if type(error).__name__ != "NoArgsIsHelpError":
                raise UserError(_mistyped(error)) from None
            print(error.format_message())
            return 2
        except SystemExit as error:
            if isinstance(error.__context__, BrokenPipeError):  # click turns it into exit code 1
                raise error.__context__ from None
            raise UserError(
                f"the code that was run ended the process (exit {error.code}); nothing was decided"
            ) from None

    return _answer(name, command)


def _mistyped(error: Any) -> str:
    """Return what is wrong with a command line; for an unknown option, also the nearest known one."""
    said, wrong, context = error.format_message(), getattr(error, "option_name", None), getattr(error, "ctx", None)
    if wrong is None or context is None:
        return said
    known = [option for one in context.command.get_params(context) for option in one.opts if option.startswith("--")]
    near = difflib.get_close_matches(wrong, known, 1, 0)
    return f"{said.partition(' (')[0]}{f'; nearest: {near[0]}' if near else ''}"


def script(name: str, main: Callable[[], int]) -> int:
    """Run a script that parses its own arguments, with the errors and exit codes of a command."""
    return _answer(name, main)


def _answer(name: str, action: Callable[[], int]) -> int:
    """The exit code of an action: its own, or 2 if it failed."""
    memory = "out of memory; take a smaller --batch or --image-size, or a smaller network"
    with _any_character():
        try:
            code = action()
            if sys.stdout is not None:
                sys.stdout.flush()  # otherwise Python finds a full disk only at exit, too late for a message
            return code if isinstance(code, int) else 0
        except UserError as error:
            return complain(name, error)
        except MemoryError:
            return complain(name, memory)
        except (KeyboardInterrupt, typer.Abort):
            return complain(name, "interrupted", 130)
        except BrokenPipeError:  # `parity … | head`: the reader has closed the pipe
            _close_stdout()
            return 2
        except Exception as error:
            if isinstance(error, OSError) and error.errno in REFUSED:
                _close_stdout()
                return complain(name, f"cannot write: {error.strerror}")
            if is_out_of_memory(error):
                return complain(name, memory)
            if os.environ.get(DEBUG):
                traceback.print_exc()
            return complain(name, _defect(error))


@contextmanager
def _any_character() -> Iterator[None]:
    """Make stdout write characters outside its encoding as escapes, as stderr does: a terminal may be ASCII."""
    stream = sys.stdout
    errors = stream.errors if isinstance(stream, io.TextIOWrapper) else None
    if isinstance(stream, io.TextIOWrapper) and errors == "strict":
        stream.reconfigure(errors="backslashreplace")
    try:
        yield
    finally:
        sys.stdout = stream  # click wraps it when a pipe is closed
        if isinstance(stream, io.TextIOWrapper) and errors == "strict":
            with suppress(OSError, ValueError):
                stream.reconfigure(errors=errors)


def _close_stdout() -> None:
    """Discard the remaining output of stdout: Python would try to write it at exit, and print the error."""
    with suppress(OSError, ValueError, AttributeError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)


def _defect(error: Exception) -> str:
    """A line for a defect of this package: the exception, and where it was raised."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if Path(frame.filename).is_relative_to(ROOT)] or frames
    place = f"{Path(own[-1].filename).name}:{own[-1].lineno}" if own else "an unknown place"
    said = f"{type(error).__name__}: {shortened(str(error).strip().partition(chr(10))[0], 200)}"
    return (
        f"this is a defect of this package, not of your input: {said} ({place}); please report the command and this "
        f"line; {DEBUG}=1 shows the whole traceback"
    )


def complain(name: str, said: str | UserError, code: int = 2) -> int:
    """Print one line on stderr, or the first ones of several; return the exit code."""
    text = said.lines if isinstance(said, UserError) else said.split("\n")
    lines = [line.strip() for line in text if line.strip()]
    shown = [shortened(printable(line)) for line in lines[:4]]
    more = f" … and {len(lines) - 4} more" if len(lines) > 4 else ""
    print(f"{name}: {' '.join(shown[:1])} {'; '.join(shown[1:])}".rstrip() + more, file=sys.stderr)
    return code


class SafeConsole(Console):
    """A console that prints names in a text visibly, so that they cannot forge a line."""

    def render_str(self, text: str, **options: Any) -> Text:
        return super().render_str(printable(text), **options)


def console(width: int = 140, *, stderr: bool = False) -> Console:
    """Return a console as wide as the terminal, or wide enough for a whole table if the output goes into a file."""
    stream = sys.stderr if stderr else sys.stdout
    at_terminal = stream is not None and stream.isatty()
    return SafeConsole(stderr=stderr) if at_terminal else SafeConsole(width=width, stderr=stderr)


def size(text: str | None) -> tuple[int, int] | None:
    """The height and width of `--image-size`."""
    if text is None:
        return None
    parts = text.lower().split("x")
    if len(parts) not in (1, 2) or not all(re.fullmatch("0*[1-9][0-9]{0,8}", part) for part in parts):
        raise UserError(f"--image-size: got {text!r}, expected HxW such as 224x193, or one number")
    return int(parts[0]), int(parts[-1])


def writable(option: str, file: Path | None, *, again: bool = False) -> None:
    """Raise if the text cannot be written, before a long run.

    Args:
        again: the text will be read again, which a device or a pipe does not allow.
    """
    if file is not None:
        _told(option, file, lambda: _check(file, again))


def _check(file: Path, again: bool) -> None:
    special, number = destination.special(file), destination.descriptor(file)
    if again and special:
        raise WeightsError(f"output {file}: is a device, a pipe or an open file; expected a file to read again")
    if number is not None:
        os.fstat(number)
    elif not special or file.is_socket():
        destination.check(file, force=True)


def write(option: str, path: Path, text: str) -> None:
    """Write a file that appears whole or not at all; a device, a pipe or an open file is written to as it is.

    Raises:
        UserError: it cannot be written.
    """
    content = text.encode("utf-8", "backslashreplace")

    def written() -> None:
        if destination.special(path):
            with _as_it_is(path) as file:
                file.write(content)
            return
        with publish(path, force=True) as partial:
            partial.write_bytes(content)

    _told(option, path, written)


def _as_it_is(path: Path) -> IO[bytes]:
    """Open a device or a pipe; an open file goes on at its position, after what was printed there."""
    number = destination.descriptor(path)
    if number is None:
        return path.open("ab")
    sys.stdout.flush()
    sys.stderr.flush()
    return os.fdopen(os.dup(number), "wb")


def _told(option: str, path: Path, action: Callable[[], object]) -> None:
    """Do something with an output; an error names the option of this output."""
    try:
        action()
    except WeightsError as error:
        raise UserError(str(error).replace("output", option, 1)) from None
    except OSError as error:
        raise UserError(f"{option} {path}: cannot be written: {error.strerror}") from None
