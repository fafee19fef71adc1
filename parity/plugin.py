"""The pytest plugin: the fixture `parity`, and a page or a file of every check that fails.

def test_port(parity):
    parity(torch_model, flax_model, x)

It loads with every run of pytest, and so loads no framework itself: the first check does. PYTEST_DONT_REWRITE
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from parity.report import Report

# A file's name without its ending: as much of the test's as any file system takes.
LONGEST = 150


def _page(report: Report) -> str:
    from parity.html import page

    return page(report)


def _json(report: Report) -> str:
    return json.dumps(report.to_json(), indent=1, allow_nan=False) + "\n"


# Ending: what writes it. Each has an option `--parity-…`.
FORMATS: dict[str, Callable[[Report], str]] = {"html": _page, "json": _json}


@dataclass
class Files:
    """Where reports are written.

    Attributes:
        folders: by ending.
        every: of checks that pass, too.
        used: how often a name was given: a test may check several times.
    """

    folders: dict[str, Path]
    every: bool
    used: Counter[str] = field(default_factory=Counter)

    def write(self, report: Report, test: str) -> list[Path]:
        """The files of one check, named for the test: `tests_test_net.py_test_port[resnet50].html`."""
        if not self.folders or (report.ok and not self.every):
            return []
        stem = re.sub(r"[^\w.\[\]-]+", "_", test, flags=re.ASCII).strip("_")[:LONGEST]
        self.used[stem] += 1
        stem += f"-{self.used[stem]}" if self.used[stem] > 1 else ""
        written = []
        for ending, folder in self.folders.items():
            written.append(folder / f"{stem}.{ending}")
            text = FORMATS[ending](report)
            written[-1].write_text(text, encoding="utf-8", errors="backslashreplace")
        return written


FILES = pytest.StashKey[Files]()


@dataclass(frozen=True)
class Check:
    """`parity.assert_parity` for one test; gives the report where all is equal."""

    files: Files
    test: str

    def __repr__(self) -> str:
        return "<the fixture parity>"

    def __call__(self, model: Any, *candidates: Any, **options: Any) -> Report:
        """The arguments are those of `parity.check`.

        Raises:
            AssertionError: the networks differ, or the check cannot tell; the message is the table and the findings.
            UserError: the question cannot be put.
        """
        __tracebackhide__ = True
        import parity
        from ports.errors import UserError

        try:
            report = parity.check(model, *candidates, **options)
        except UserError as error:
            raise error.with_traceback(
                None
            ) from None  # its text says all; where in this package it arose does not help
        written = self.files.write(report, self.test)
        if not report:
            raise AssertionError("\n".join((report.failure(), *(f"written: {path}" for path in written))))
        return report


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("parity", "parity of PyTorch and Flax models")
    for ending in FORMATS:
        said = f"Write the {ending.upper()} report of every `parity` check that fails into this folder."
        group.addoption(f"--parity-{ending}", metavar="DIR", help=said)
    group.addoption("--parity-reports", choices=("failed", "all"), default="failed", help="Which of them are written.")


def pytest_configure(config: pytest.Config) -> None:
    folders = {}
    for ending in FORMATS:
        if given := config.getoption(f"--parity-{ending}"):  # a string: xdist sends options to its workers
            folders[ending] = folder = Path(given).absolute()
            try:
                folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                said = "is no folder" if folder.exists() else error.strerror
                raise pytest.UsageError(f"--parity-{ending} {given}: {said}; expected a folder to write to") from None
    config.stash[FILES] = Files(folders, every=config.getoption("--parity-reports") == "all")


@pytest.fixture(name="parity")
def _parity(request: pytest.FixtureRequest) -> Check:
    """`parity(torch_model, flax_model, x)` fails where the two differ in float64, as `parity.assert_parity` does."""
    return Check(request.config.stash[FILES], request.node.nodeid)
