"""The one exception for mistakes that a user can correct, and functions that make foreign text safe to print."""

from __future__ import annotations

LONGEST = 1000  # characters of a line that is printed

# The messages of frameworks when memory is full; cuBLAS gives the last one when its workspace does not fit.
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
    """A mistake of the user, never a defect of this package. The command line prints it as one line."""

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
    """Return a line of bounded length: leave out its middle, which holds a name, and keep the reason at its end."""
    return text if len(text) <= most else f"{text[: most // 2]} … {text[-(most // 2) :]}"
