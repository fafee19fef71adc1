"""What every port of a network refuses, in the same words. No framework is imported."""

from __future__ import annotations

from ports.errors import UserError


def require_size(name: str, got: tuple[int, int], expected: int) -> None:
    """Check the height and width of images, in pixels.

    Raises:
        UserError: another size than the network was made for.
    """
    if got != (expected, expected):
        other = f"another size is an option: ports.create({name!r}, …, input_size=N)"
        raise UserError(f"{name}: got images of {got[0]}x{got[1]}, expected {expected}x{expected}; {other}")
