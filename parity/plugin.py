"""The pytest plugin: the fixture `parity`, and a page or a file of every check that fails.

def test_port(parity):
    parity(torch_model, flax_model, x)

A report that cannot be written changes no verdict. Every check of a run has a file of its own, whichever of
pytest-xdist's workers ran it; a later run replaces the files of an earlier one.

It loads with every run of pytest, so it does not load a framework; the first check does that. PYTEST_DONT_REWRITE
"""

from __future__ import annotations

import hashlib
import itertools
import json
import re
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from parity.reports.report import Report

# The length of a file's name without its suffix: as much of the test's name as any file system accepts.
LONGEST = 150
CLAIMS = "parity_claims"  # the key under which a worker gets the folder where all workers of a run claim names
SECTION = "parity"


def _page(report: Report) -> str:
    from parity.reports.html import page

    return page(report)


def _json(report: Report) -> str:
    return json.dumps(report.to_json(), indent=1, allow_nan=False) + "\n"


# Ending: what writes it. Each has an option `--parity-…`.
FORMATS: dict[str, Callable[[Report], str]] = {"html": _page, "json": _json}


def stem(test: str) -> str:
    """Return a file's name for a test: `tests_test_net.py_test_port[resnet50]`.

    If characters are replaced or left out, digits of a hash of the whole name follow, because other names may look the
    same.
    """
    readable = re.sub(r"[^\w.\[\]-]+", "_", test, flags=re.ASCII).strip("_")
    file, _, name = test.partition("::")
    if len(readable) <= LONGEST and readable == f"{file.replace('/', '_')}_{name.replace('::', '_')}":
        return readable
    return f"{readable[:LONGEST]}-{hashlib.sha256(test.encode('utf-8', 'backslashreplace')).hexdigest()[:8]}"


@dataclass
class Files:
    """Where reports are written.

    Attributes:
        folders: by ending.
        every: whether to write reports of checks that pass, too.
        claims: a folder that all workers of a run share to claim names; None without workers.
        used: the names that were used, because a test may check several times.
    """

    folders: dict[str, Path]
    every: bool
    claims: Path | None = None
    used: set[str] = field(default_factory=set)

    def write(self, report: Report, test: str) -> tuple[list[Path], list[str]]:
        """Write the files of one check; return their paths, and a line for each that could not be written."""
        if not self.folders or (report.ok and not self.every):
            return [], []
        name, written, problems = self._claimed(stem(test)), [], []
        for ending, folder in self.folders.items():
            path = folder / f"{name}.{ending}"
            problem = _problem(report, ending, path)
            if problem:
                problems.append(problem)
            else:
                written.append(path)
        return written, problems

    def _claimed(self, stem: str) -> str:
        """Return the name, with a number if another check of this run has the name."""
        names = (stem if i == 1 else f"{stem}-{i}" for i in itertools.count(1))
        return next(name for name in names if self._claim(name.casefold()))  # some file systems ignore case

    def _claim(self, name: str) -> bool:
        if name in self.used:
            return False
        self.used.add(name)
        if self.claims is not None:
            try:
                (self.claims / name).open("x").close()
            except FileExistsError:
                return False
            except OSError:  # a worker on another machine, or a full disk: its own names are distinct all the same
                return True
        return True


def _problem(report: Report, ending: str, path: Path) -> str | None:
    """Write one report; return an error as one line, because the verdict counts whatever goes wrong here."""
    from ports.errors import UserError

    try:
        from parity.reports.terminal import write

        write(f"--parity-{ending}", path, FORMATS[ending](report))
    except UserError as error:
        return str(error)
    except Exception as error:
        text = f"{type(error).__name__}: {error}".partition("\n")[0]
        return f"--parity-{ending} {path}: cannot be written: {text}"
    return None


FILES = pytest.StashKey[Files]()


@dataclass(frozen=True)
class Check:
    """`parity.assert_parity` for one test; returns the report if everything is equal."""

    files: Files
    node: pytest.Item

    def __repr__(self) -> str:
        return "<the fixture parity>"

    def __call__(self, model: Any, *candidates: Any, **options: Any) -> Report:
        """The arguments are those of `parity.check`.

        Raises:
            AssertionError: the networks differ, or the check cannot tell; the message is the table and the findings.
            UserError: the check cannot run.
        """
        __tracebackhide__ = True
        import parity
        from ports.errors import UserError

        try:
            report = parity.check(model, *candidates, **options)
        except UserError as error:
            # Its text says everything; the place in this package where it was raised does not help.
            raise error.with_traceback(None) from None
        written, problems = self.files.write(report, self.node.nodeid)
        if not report:
            raise AssertionError("\n".join((report.failure(), *(f"written: {path}" for path in written), *problems)))
        for problem in problems:
            self.node.add_report_section("call", SECTION, problem)
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
                said = "is not a folder" if folder.exists() else error.strerror
                raise pytest.UsageError(f"--parity-{ending} {given}: {said}; expected a folder to write to") from None
    claims = getattr(config, "workerinput", {}).get(CLAIMS)
    every = config.getoption("--parity-reports") == "all"
    config.stash[FILES] = Files(folders, every, Path(claims) if claims else None)


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """Tell a pytest-xdist worker the folder in which the workers claim names of reports."""
    files = node.config.stash[FILES]
    if files.folders and files.claims is None:
        files.claims = Path(tempfile.mkdtemp(prefix="parity-reports-"))
    node.workerinput[CLAIMS] = str(files.claims or "")


def pytest_unconfigure(config: pytest.Config) -> None:
    files = config.stash.get(FILES, None)
    if files is not None and files.claims is not None and not hasattr(config, "workerinput"):
        shutil.rmtree(files.claims, ignore_errors=True)


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """List the reports of passing checks that could not be written; a failing check reports this itself."""
    reports: list[Any] = list(itertools.chain.from_iterable(terminalreporter.stats.values()))
    sections = [section for report in reports for section in getattr(report, "sections", ())]
    # The report of a test's teardown repeats the sections of its call.
    problems = dict.fromkeys(text for title, text in sections if title == f"Captured {SECTION} call")
    if problems:
        terminalreporter.section("reports that could not be written")
    for problem in problems:
        terminalreporter.write_line(problem)


@pytest.fixture(name="parity")
def _parity(request: pytest.FixtureRequest) -> Check:
    """`parity(torch_model, flax_model, x)` fails if the two differ in float64, as `parity.assert_parity` does."""
    return Check(request.config.stash[FILES], request.node)
