"""Commands whose options are the fields of a record, which is checked when it is made and passed on as a whole."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from inspect import Parameter, Signature
from typing import TypeVar, get_type_hints

Options = TypeVar("Options")


def options_of(record: Callable[..., Options]) -> Callable[[Callable[[Options], int]], Callable[..., int]]:
    """Turn a function of one record into a function of its fields, from which typer makes a command.

    Args:
        record: a dataclass whose fields have typer's annotations, and defaults.
    """

    def with_options(command: Callable[[Options], int]) -> Callable[..., int]:
        def called(**values: object) -> int:
            return command(record(**values))

        hints = get_type_hints(record, include_extras=True)
        rows = [(field.name, field.default, hints[field.name]) for field in fields(record)]  # pyright: ignore[reportArgumentType]
        parameters = [Parameter(n, Parameter.KEYWORD_ONLY, default=d, annotation=a) for n, d, a in rows]
        called.__signature__ = Signature(parameters)  # pyright: ignore[reportFunctionMemberAccess]
        called.__annotations__ = {name: hint for name, _, hint in rows}
        called.__name__, called.__doc__ = command.__name__, command.__doc__
        return called

    return with_options


def positive(option: str, value: float | None) -> None:
    """Raise if a given number is not above 0.

    Raises:
        UserError: names the option.
    """
    from ports.errors import UserError

    if value is not None and value <= 0:
        raise UserError(f"{option}: got {value:g}, expected more than 0")
