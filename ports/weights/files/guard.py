"""One boundary for the faults of a file: any exception of the code that reads it becomes one line."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ports.errors import UserError
from ports.weights.form.torch_form import WeightsError

LONGEST = 160
DEBUG = "PARITY_DEBUG"


@contextmanager
def faults_of(path: str | Path) -> Iterator[None]:
    """Turn any exception while a file is read and taken apart into one line.

    With the environment variable PARITY_DEBUG an exception passes unchanged.

    Raises:
        WeightsError: the file is damaged, is too large for the memory, or cannot be read.
    """
    try:
        yield
    except UserError:
        raise
    except MemoryError:
        raise WeightsError(f"weights {path}: not enough memory to read it") from None
    except ModuleNotFoundError as error:
        raise WeightsError(f"weights {path}: needs {error.name}: pip install {error.name}") from None
    except PermissionError:
        raise WeightsError(f"weights {path}: no permission to read it") from None
    except RecursionError:
        raise WeightsError(f"weights {path}: damaged, or not a file of weights: it is nested too deeply") from None
    except Exception as error:
        if os.environ.get(DEBUG):
            raise
        raise WeightsError(f"weights {path}: damaged, or not a file of weights: {_reason(error)}") from None


def _reason(error: Exception) -> str:
    """The message of an exception, with its type if the message is only a value."""
    text = str(error).strip().partition("\n")[0][:LONGEST]
    plain = type(error) in (ValueError, OSError, EOFError) or not isinstance(error, LookupError | TypeError)
    return text if text and plain else f"{type(error).__name__} {text}".strip()
