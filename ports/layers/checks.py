"""Checks of inputs, which give the same errors in every port. No framework is imported."""

from __future__ import annotations

from collections.abc import Sequence

from ports.errors import UserError


def require_size(name: str, got: tuple[int, int], expected: int) -> None:
    """Check the height and width of images, in pixels.

    Raises:
        UserError: not the size that the network was made for.
    """
    if got != (expected, expected):
        other = f"another size is an option: ports.create({name!r}, …, input_size=N)"
        raise UserError(f"{name}: got images of {got[0]}x{got[1]}, expected {expected}x{expected}; {other}")


def require_multiple(name: str, got: tuple[int, int], step: int) -> None:
    """Check the height and width of images, in pixels.

    Raises:
        UserError: a size that cannot be halved as often as the network needs, or 0.
    """
    if min(got) < 1 or got[0] % step or got[1] % step:
        wanted = tuple(max(1, -(-size // step)) * step for size in got)
        nearest = f"pad them to {wanted[0]}x{wanted[1]}"
        raise UserError(f"{name}: got images of {got[0]}x{got[1]}, expected multiples of {step} pixels; {nearest}")


def require_length(name: str, got: int, longest: int | None = None) -> None:
    """Check the length of texts, in tokens.

    Args:
        longest: how many positions the network has; None if it has no table of positions.

    Raises:
        UserError: a text without tokens, or a longer one than the network has positions for.
    """
    if got < 1:
        raise UserError(f"{name}: got a text of 0 tokens, expected 1 or more")
    if longest is not None and got > longest:
        raise UserError(f"{name}: got {got} tokens, expected 1 to {longest}: the network has no more positions")


def require_lengths(name: str, lengths: Sequence[int], shape: Sequence[int]) -> None:
    """Check the lengths of texts with padding after them.

    Args:
        shape: of the tokens, (batch, length).

    Raises:
        UserError: no text, a wrong number of lengths, a text that is only padding, a length beyond the tokens.
    """
    batch, length = shape
    if batch < 1:
        raise UserError(f"{name}: got a batch of 0 texts, expected 1 or more")
    if len(lengths) != batch:
        raise UserError(f"{name}: got {len(lengths)} lengths for {batch} texts, expected one for each")
    if wrong := [i for i, own in enumerate(lengths) if not 1 <= own <= length]:
        first, more = wrong[0], f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""
        what = "is padding alone, or has length 0" if lengths[first] == 0 else f"has length {lengths[first]}"
        raise UserError(f"{name}: text {first}{more} {what}, expected 1 to {length} tokens; leave it out or mend it")


def require_room(name: str, got: int, room: int) -> None:
    """Check that a cache has room for tokens.

    Raises:
        UserError: more tokens than the cache was made for.
    """
    if got > room:
        raise UserError(f"{name}: got {got} tokens, the cache has room for {room}; give `prefill` a larger room")
