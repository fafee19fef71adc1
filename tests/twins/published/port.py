"""The records: a project on GitHub, and a port in it beside the PyTorch class that it was made from."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ports.errors import UserError

from ..twin import MISMATCH, PARITY, Defect, Difference


@dataclass(frozen=True)
class Project:
    """A project on GitHub.

    Attributes:
        name: owner and name.
        commit: the one that the rows were read and measured at.
        code: the folder in it from which Python imports.
    """

    name: str
    commit: str
    code: str = "."

    @property
    def folder(self) -> str:
        """The name of its clone."""
        return self.name.rpartition("/")[2]

    def use(self, clones: Path) -> None:
        """Let Python import from the clone.

        Raises:
            UserError: no clone, or one at another commit.
        """
        clone = clones / self.folder
        if not clone.is_dir():
            raise UserError(
                f"got no {clone}, expected {self.name} at {self.commit[:12]}: "
                f"git clone https://github.com/{self.name} {clone} && git -C {clone} checkout {self.commit}"
            )
        asked = ["git", "-C", str(clone), "rev-parse", "HEAD"]
        found = subprocess.run(asked, capture_output=True, text=True, check=False).stdout.strip()
        if found != self.commit:
            raise UserError(
                f"got {clone} at {found[:12] or 'no commit'}, expected {self.commit[:12]}: "
                f"git -C {clone} checkout {self.commit}"
            )
        path = str((clone / self.code).resolve())
        if path not in sys.path:
            sys.path.append(path)


@dataclass(frozen=True)
class Built:
    """A live pair, before the weights are moved.

    Attributes:
        reference: the PyTorch model.
        port: an NNX model, or Linen's `(module, variables)`.
        inputs: what both are called with, in PyTorch's layout.
        options: those of `parity.move` and `parity.check`, the same for both.
    """

    reference: Any
    port: Any
    inputs: tuple[Any, ...]
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Published:
    """A port that somebody published.

    Attributes:
        name: of the row.
        project: where the port is.
        port: the Flax class, by its name in the project.
        model: the PyTorch class, by its qualified name.
        build: imports both classes and makes a small pair; it gets the folder of the clones.
        needs: packages, by the names that pip knows, which the row imports and this project does not depend on.
        others: projects besides the port's that the row imports.
        note: what a reader should know of the row, in one sentence.
        differences: the real ones. The check must tell each of them, and nothing else.
        defect: what the check says wrongly today; None where it is right.
    """

    name: str
    project: Project
    port: str
    model: str
    build: Callable[[Path], Built]
    needs: tuple[str, ...] = ()
    others: tuple[Project, ...] = ()
    note: str = ""
    differences: tuple[Difference, ...] = ()
    defect: Defect | None = None

    @property
    def projects(self) -> tuple[Project, ...]:
        """All that the row imports."""
        return (self.project, *self.others)

    @property
    def verdict(self) -> str:
        """The right verdict."""
        return MISMATCH if any(difference.layers for difference in self.differences) else PARITY
