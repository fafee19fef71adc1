"""The one exception for what a user can put right, and text from others made safe to print."""

from __future__ import annotations

LONGEST = 1000  # characters of a line that is printed

# What frameworks say where memory is full; cuBLAS, where its workspace does not fit, says the last.
OUT_OF_MEMORY = (
    "can't allocate memory",
    "RESOURCE_EXHAUSTED",
    "out of memory",
    "Out of memory",
    "CUDNN_STATUS_ALLOC_FAILED",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUBLAS_STATUS_NOT_INITIALIZED",
)


class UserError(ValueError):
    """A mistake in what was asked for, never a defect of this package. The command line prints it as one line."""

    @property
    def lines(self) -> list[str]:
        """What is wrong, a line each."""
        return str(self).split("\n")


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an exception says that memory is full."""
    return isinstance(error, MemoryError) or any(sign in str(error) for sign in OUT_OF_MEMORY)


def require_positive(owner: str, **fields: object) -> None:
    """Check that fields are positive whole numbers.

    Raises:
        UserError: the first that is not; the message begins with `owner`.
    """
    for name, value in fields.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise UserError(f"{owner}{name}: got {value!r}, expected a positive whole number")


def printable(text: str) -> str:
    """Return a text in which every character can be seen; letters of every script stay as they are.

    Names from a file may hold escape sequences, line ends and marks that turn the direction of writing: printed raw
    they forge lines of a report.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def shortened(text: str, most: int = LONGEST) -> str:
    """Return a line of a bounded length: its middle is left out, which holds the name, not what is wrong with it."""
    return text if len(text) <= most else f"{text[: most // 2]} … {text[-(most // 2) :]}"
