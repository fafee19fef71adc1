"""Transformers' config.json, read as plain data. No framework is imported.

A config says what the names and shapes of tensors do not show: the number of heads, the base of rotations, epsilon. A
family that can describe such networks has a `Reader`; `ports.families.from_config` finds the family by `model_type`.

Source of the keys and their defaults: transformers 4.57 and 5, `configuration_*.py` and `modeling_rope_utils.py`.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ports.errors import UserError

NAME, TYPE, ARCHITECTURES = "config.json", "model_type", "architectures"
LARGEST_FILE = 4 << 20  # bytes; the names of 20,000 classes take less than a half of it
LARGEST = 2**31 - 1  # of a count
HIGHEST = 1e30  # of a number
MOST_BLOCKS = 1000  # ten times the deepest published decoder: the layers of a description are listed one by one


@dataclass(frozen=True)
class Fixed:
    """A key with which a family's ports compute something only if it has one of these values."""

    key: str
    values: tuple[Any, ...]
    why: str


@dataclass(frozen=True)
class Reader:
    """How a family reads transformers' config.json.

    Attributes:
        defaults: for each `model_type` the keys that are read, with transformers' values for missing ones.
        architectures: for each `model_type` the classes whose files have the tensors of the family's networks.
        fields: gives the fields of the description.
        fixed: keys that must have certain values, where `defaults` has them.
        aliases: second names of keys.
    """

    defaults: Mapping[str, Mapping[str, Any]]
    architectures: Mapping[str, tuple[str, ...]]
    fields: Callable[[Keys], dict[str, Any]]
    fixed: tuple[Fixed, ...] = ()
    aliases: Mapping[str, str] = field(default_factory=dict)


class Keys:
    """The keys of a config that a family reads, with transformers' defaults.

    Attributes:
        given: those that the config has.
        tables: the keys whose values are tables, whether they are read or not.
        problems: a line for each.

    A method that finds an invalid value adds a line to `problems` and returns a valid one, so that all problems are
    reported at once.
    """

    def __init__(
        self, given: Mapping[str, Any], defaults: Mapping[str, Any], problems: list[str], inside: str = ""
    ) -> None:
        self.given = {key: given[key] for key in defaults if key in given}
        self.tables = [key for key, value in given.items() if isinstance(value, dict)]
        self.problems = problems
        self._defaults, self._inside = defaults, inside

    def __contains__(self, key: str) -> bool:
        """Return whether this kind of config has such a key."""
        return key in self._defaults

    def value(self, key: str) -> Any:
        """Return the value as it is."""
        return self.given.get(key, self._defaults[key])

    def refuse(self, key: str, expected: str, got: object = None) -> None:
        """Add a problem: what the config has, or what follows from it, and what is expected."""
        if got is None and key not in self.given:
            default = self._defaults[key]
            got = "no such key" if default is None else f"no such key, for which transformers takes {shown(default)}"
        found = shown(self.value(key)) if got is None else str(got)
        self.problems.append(f"{self._inside}{key}: got {found}, expected {expected}")

    def count(self, key: str, null: int | None = None, most: int = LARGEST) -> int:
        """Return a positive whole number.

        Args:
            null: what null means; None if null is invalid.
        """
        value = self.value(key)
        if value is None and null is not None:
            return null
        if type(value) is not int or value < 1:
            self.refuse(key, "a positive whole number")
            return 1
        if value > most:
            self.refuse(key, f"at most {most}")
            return 1
        return value

    def number(self, key: str) -> float:
        """Return a positive number; its powers must fit into a float, too."""
        value = self.value(key)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 1 / HIGHEST < value < HIGHEST:
            self.refuse(key, f"a positive number below {HIGHEST:g}")
            return 1.0
        return float(value)

    def truth(self, key: str) -> bool:
        """Return true or false."""
        value = self.value(key)
        if not isinstance(value, bool):
            self.refuse(key, "true or false")
        return value is True

    def require(self, rows: Iterable[Fixed]) -> None:
        """Refuse other values than those that a family computes."""
        for row in rows:
            if row.key in self and not any(same(self.value(row.key), value) for value in row.values):
                self.refuse(row.key, f"{' or '.join(map(shown, row.values))}: {row.why}")

    def table(self, key: str, defaults: Mapping[str, Any]) -> Keys | None:
        """Return the keys of a table in the config; None if it is null."""
        value = self.value(key)
        if value is None:
            return None
        if not isinstance(value, dict):
            self.refuse(key, "a table or null")
            return None
        return Keys(value, defaults, self.problems, f"{self._inside}{key}.")


def same(a: object, b: object) -> bool:
    """Return whether two values are equal; for Python, true equals 1."""
    return a == b and isinstance(a, bool) == isinstance(b, bool)


def shown(value: object) -> str:
    """Return a value as JSON has it, of bounded length."""
    try:
        text = json.dumps(value)
    except (TypeError, ValueError, RecursionError):
        text = type(value).__name__
    return text if len(text) <= 80 else f"{text[:80]}…"


def with_keys(reader: Reader, config: Mapping[str, Any]) -> Keys:
    """Return the keys of a config that a family reads, under their first names; `architectures` is checked, too."""
    problems: list[str] = []
    given = dict(config)
    for other, key in reader.aliases.items():
        if other in config and key in config and not same(config[other], config[key]):
            problems.append(f"{other}: got {shown(config[other])}, expected {shown(config[key])}, the value of {key}")
        elif other in config:
            given[key] = config[other]
    keys = Keys(given, reader.defaults[config[TYPE]], problems)
    named, known = config.get(ARCHITECTURES), reader.architectures[config[TYPE]]
    if named is not None and not (isinstance(named, list) and any(name in known for name in named)):
        problems.append(f"{ARCHITECTURES}: got {shown(named)}, expected {' or '.join(known)}")
    keys.require(reader.fixed)
    return keys


def file_of(path: str | Path) -> Path:
    """Return a config.json itself, or the one in a folder."""
    path = Path(path)
    return path / NAME if os.path.isdir(path) else path  # noqa: PTH112 - False for a name that no file can have


def read(path: str | Path) -> dict[str, Any]:
    """Return the content of a config.json, or of the one in a folder.

    Raises:
        UserError: it cannot be read, is too large, or is not an object of JSON; the message is one line.
    """
    path = file_of(path)
    try:
        # Without O_NONBLOCK, opening a named pipe would block.
        with os.fdopen(os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0)), "rb") as file:
            found = os.fstat(file.fileno())
            if not stat.S_ISREG(found.st_mode):
                raise UserError(f"{path}: is not a regular file; {EXPECTED}")
            content = file.read(LARGEST_FILE + 1)
    except UserError:
        raise
    except (OSError, ValueError) as error:  # ValueError: a name that no file can have
        raise UserError(f"{path}: {getattr(error, 'strerror', None) or error}; {EXPECTED}") from None
    if len(content) > LARGEST_FILE:
        raise UserError(f"{path}: got {found.st_size:,} bytes, expected at most {LARGEST_FILE:,}; {EXPECTED}")
    try:
        config = json.loads(content.decode("utf-8"), object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        why = "it is nested too deeply" if isinstance(error, RecursionError) else str(error).partition("\n")[0]
        raise UserError(f"{path}: is not JSON: {why[:160]}; {EXPECTED}") from None
    if not isinstance(config, dict):
        raise UserError(f"{path}: got {type(config).__name__}, expected an object of JSON; {EXPECTED}")
    return config


EXPECTED = "give the config.json that transformers saved with the weights, or move this file away"


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) < len(pairs):
        raise ValueError("a key is there twice")
    return table
