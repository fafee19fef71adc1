"""The pytest plugin, in runs of pytest of its own: what a failure says, what is written, what is loaded."""

from __future__ import annotations

import errno
import hashlib
import importlib.metadata
import json
import os
import sys
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch._dynamo  # before an inner run loads it: pytester takes that out again, and PyTorch cannot load it twice
from flax import nnx

import parity
from parity.plugin import FORMATS, LONGEST, Files, stem
from parity.reports.html import page
from parity.reports.report import Divergence, Finding, Model, Report, Row
from ports import UserError

pytest_plugins = ["pytester"]

# Whether or not this package is installed with its entry point, and whatever other plugins are.
OPTIONS = ("-p", "parity.plugin", "-p", "no:cacheprovider")
ENTRY_POINTS = tomllib.loads((Path(__file__).resolve().parents[1] / "pyproject.toml").read_text())["project"][
    "entry-points"
]["pytest11"]

EQUAL = Report((Model("net", (Row("nnx", "loss", "loss", 1e-15, 1e-14, True),)),))
WRONG = Report(
    (
        Model(
            "net",
            (
                Row("nnx", "layer.eval", "layer1.0.bn1", 1e-3, 1e-14, False),
                Row("nnx", "loss", "loss", 1e-15, 1e-14, True),
            ),
            Divergence("nnx", "layer1.0.bn1", "layer.eval"),
            findings=(Finding("nnx", "layer1.0.bn1", "bn-epsilon-1e-3", "epsilon is 1e-3; pass epsilon"),),
        ),
    )
)
UNDECIDED = Report((Model("net", EQUAL.models[0].rows, undecided="a bound is too wide"),))
REPORTS: dict[str, Report | Exception] = {
    "equal": EQUAL,
    "wrong": WRONG,
    "undecided": UNDECIDED,
    "refused": UserError("batch: got 0, expected a whole number from 1"),
    "defect": ZeroDivisionError("a defect of this package"),
}


def found(model: str, *_: Any, **__: Any) -> Report:
    """In place of `parity.check`: takes the name of a report."""
    result = REPORTS[model]
    if isinstance(result, Exception):
        raise result
    return result


@pytest.fixture(autouse=True)
def the_same_everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """No other plugins; and pytest's summary is as long as at a terminal: where `CI` is set it repeats messages."""
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    for name in ("CI", "BUILD_NUMBER"):
        monkeypatch.delenv(name, raising=False)


def run(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, body: str, *options: object) -> pytest.RunResult:
    monkeypatch.setitem(vars(parity), "check", found)
    pytester.makepyfile(test_net=body)
    return pytester.runpytest_inprocess(*OPTIONS, *map(str, options))


def calling(name: str) -> str:
    return f"def test_port(parity):\n    parity({name!r}, 'port', 'x')  # here\n"


def test_equal_models_pass(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    body = "def test_port(parity):\n    assert parity('equal').ok\n"
    run(pytester, monkeypatch, body).assert_outcomes(passed=1)


def test_a_failure_reads_like_the_table(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    result = run(pytester, monkeypatch, calling("wrong"))
    result.assert_outcomes(failed=1)
    text = result.stdout.str()
    shown = [line.removeprefix("E ").strip() for line in result.outlines if line.startswith("E ")]
    assert shown[0] == (
        "AssertionError: net: NO parity: nnx differs from PyTorch; first divergence: nnx: layer.eval at layer1.0.bn1"
    )
    assert shown[2:] == [line.strip() for line in str(WRONG).splitlines()]
    assert any("1. nnx: layer1.0.bn1 [bn-epsilon-1e-3]: epsilon is 1e-3; pass epsilon" in line for line in shown)
    assert [line for line in result.outlines if line.startswith(">")] == [
        ">       parity('wrong', 'port', 'x')  # here"
    ]
    assert "plugin.py" not in text
    assert "FAILED test_net.py::test_port - AssertionError: net: NO parity: nnx" in text


def test_what_cannot_be_told_fails(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    result = run(pytester, monkeypatch, calling("undecided"))
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["E*AssertionError: net: cannot tell: a bound is too wide"])


def test_a_question_that_cannot_be_put_is_one_line(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    result = run(pytester, monkeypatch, calling("refused"))
    result.assert_outcomes(failed=1)
    text = result.stdout.str()
    assert [line for line in result.outlines if line.startswith("E ")] == [
        "E       ports.errors.UserError: batch: got 0, expected a whole number from 1"
    ]
    assert "plugin.py" not in text
    assert "in found" not in text


def test_a_defect_of_this_package_is_shown_whole(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    """The one traceback of ours that helps somebody."""
    result = run(pytester, monkeypatch, calling("defect"))
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*test_plugin.py:*: ZeroDivisionError"])


SEVERAL = """
import pytest

@pytest.mark.parametrize("net", ["a", "b", "c"], ids=["a/b", "x" * 300, "x" * 301])
def test_many(parity, net):
    parity("wrong")

def test_twice(parity):
    with pytest.raises(AssertionError):
        parity("wrong")
    parity("wrong")

def test_equal(parity):
    parity("equal")

def test_refused(parity):
    parity("refused")
"""


def digits(test: str) -> str:
    return hashlib.sha256(test.encode()).hexdigest()[:8]


LONG = f"test_net.py_test_many[{'x' * 300}"
FAILED = [
    f"test_net.py_test_many[a_b]-{digits('test_net.py::test_many[a/b]')}",
    *(f"{LONG[:LONGEST]}-{digits(f'test_net.py::test_many[{x}]')}" for x in ("x" * 300, "x" * 301)),
    "test_net.py_test_twice",
    "test_net.py_test_twice-2",
]


@pytest.mark.sample(2)
@pytest.mark.parametrize("ending", ["html", "json"])
@pytest.mark.parametrize("every", [False, True], ids=["failed", "all"])
def test_reports_are_written(
    ending: str, every: bool, pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = pytester.path / "new" / "reports"
    options = ("--parity-reports", "all") if every else ()
    result = run(pytester, monkeypatch, SEVERAL, f"--parity-{ending}", folder, *options)
    result.assert_outcomes(failed=5, passed=1)
    names = sorted(FAILED + (["test_net.py_test_equal"] if every else []))
    assert sorted(path.name for path in folder.iterdir()) == sorted(f"{name}.{ending}" for name in names)
    for name in names:
        report = EQUAL if "equal" in name else WRONG
        text = (folder / f"{name}.{ending}").read_text(encoding="utf-8")
        if ending == "html":
            assert text == page(report)
        else:
            assert json.loads(text) == json.loads(json.dumps(report.to_json()))
    result.stdout.fnmatch_lines([f"E*written: {folder}/test_net.py_test_twice-2.{ending}"])


@pytest.mark.parametrize(
    "tests",
    [
        ("t.py::test[a b]", "t.py::test[a/b]", "t.py::test[a_b]", "t.py::test[a:b]"),
        ("t.py::test[%s]" % ("x" * 200), "t.py::test[%s]" % ("x" * 201)),
        ("a/t.py::test", "a_t.py::test", "a/t.py::Test"),
        ("t.py::test", "t.py::test", "t.py::test-2"),
        ("t.py::test[é]", "t.py::test[è]", "t.py::test[\ud800]"),
        ("t.py::test[a]", "t.py::test[a]_"),
    ],
)
@pytest.mark.parametrize("workers", [1, 2])
def test_no_two_checks_of_a_run_have_one_name(workers: int, tests: tuple[str, ...], tmp_path: Path) -> None:
    """On file systems that know no capitals either; and each worker has tests that the other has, too."""
    (tmp_path / "claims").mkdir()
    claims = tmp_path / "claims" if workers > 1 else None
    written = []
    for files in [Files({"json": tmp_path}, False, claims) for _ in range(workers)]:
        for test in tests:
            paths, problems = files.write(WRONG, test)
            assert problems == []
            written += paths
    assert len({path.name.casefold() for path in written}) == workers * len(tests)
    assert all(path.is_file() for path in written)


def test_a_name_does_not_depend_on_the_order_of_tests() -> None:
    """A later run replaces the reports of an earlier one, with any number of workers."""
    assert stem("tests/test_net.py::TestPort::test_port[resnet50]") == "tests_test_net.py_TestPort_test_port[resnet50]"
    assert stem("t.py::test[a b]") == f"t.py_test[a_b]-{digits('t.py::test[a b]')}"
    assert len(stem("x" * 10**5)) < 200


FAILS = """
import parity
from parity.reports.report import Model, Report, Row

WRONG = Report((Model("net", (Row("nnx", "loss", "loss", 1e-3, 1e-14, False),)),))
parity.check = lambda *_: WRONG
"""
XDIST = """
import pytest

@pytest.mark.parametrize("i", range(8), ids=lambda i: "x" * 200 + f" {i}")
def test_port(parity, i):
    parity("wrong")
"""


@pytest.mark.sample(1)
@pytest.mark.parametrize(
    ("workers", "count"), [(("-n2",), 8), (("--dist=each", "--tx=2*popen"), 16)], ids=["n", "each"]
)
def test_eight_checks_that_fail_leave_eight_reports(
    workers: tuple[str, ...], count: int, pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each worker is a process of its own; `each` gives both of them every test."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    monkeypatch.setenv("TMPDIR", str(pytester.mkdir("temporary")))
    pytester.makeconftest(FAILS)
    pytester.makepyfile(test_net=XDIST)
    for _ in range(2):  # a second run replaces the files of the first
        result = pytester.runpytest_subprocess(*OPTIONS, "-p", "xdist", *workers, "--parity-json", "reports")
        result.assert_outcomes(failed=count)
        written = [path.read_text() for path in (pytester.path / "reports").iterdir()]
        assert len(written) == count
        assert all(json.loads(text)["ok"] is False for text in written)
    assert not list((pytester.path / "temporary").glob("parity-reports-*"))


def full(*_: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("fault", ["folder", "disk", "defect"])
def test_a_report_that_cannot_be_written_leaves_the_verdict(
    fault: str, pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One line more, in the message of a check that fails and at the end of the run for one that passes."""
    folder = pytester.path / "reports"
    body = "def test_wrong(parity):\n    parity('wrong')\n\ndef test_equal(parity):\n    assert parity('equal').ok\n"
    if fault == "folder":
        body = f"import pathlib\npathlib.Path({str(folder)!r}).rmdir()\n{body}"
    elif fault == "disk":
        monkeypatch.setattr("pathlib.Path.write_bytes", full)
    else:
        monkeypatch.setitem(FORMATS, "html", lambda _: 1 // 0)
    result = run(pytester, monkeypatch, body, "--parity-html", folder, "--parity-reports", "all")
    result.assert_outcomes(failed=1, passed=1)
    said = {"folder": "no such folder", "disk": "No space left on device", "defect": "ZeroDivisionError"}[fault]
    result.stdout.fnmatch_lines(
        [
            "E*AssertionError: net: NO parity: nnx differs from PyTorch; *",
            f"E *--parity-html {folder}/test_net.py_test_wrong.html: *{said}*",
            "*reports that could not be written*",
            f"--parity-html {folder}/test_net.py_test_equal.html: *{said}*",
        ]
    )
    assert result.stdout.str().count(said) == 2
    assert "written: " not in result.stdout.str().replace("cannot be written: ", "")


def test_nothing_is_written_unasked(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    result = run(pytester, monkeypatch, SEVERAL)
    result.assert_outcomes(failed=5, passed=1)
    assert {path.name for path in pytester.path.iterdir()} <= {"test_net.py", "__pycache__"}
    assert "written: " not in result.stdout.str()


@pytest.mark.parametrize("ending", ["html", "json"])
def test_a_folder_that_cannot_be_is_one_line(
    ending: str, pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    (pytester.path / "file").write_text("")
    result = run(pytester, monkeypatch, calling("equal"), f"--parity-{ending}", "file")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert result.errlines[0] == f"ERROR: --parity-{ending} file: is not a folder; expected a folder to write to"


@pytest.mark.parametrize("imports", ["", "import numpy"], ids=["nothing", "numpy"])
def test_a_run_that_checks_nothing_loads_nothing(
    imports: str, pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By its entry point, in a process of its own. The second, which loads something itself, shows that it is seen."""
    monkeypatch.delenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD")
    others = importlib.metadata.entry_points(group="pytest11").names - {"parity"}
    package = pytester.mkdir("package-1.dist-info")
    (package / "METADATA").write_text("Metadata-Version: 2.1\nName: package\nVersion: 1\n")
    lines = [f"{name} = {module}" for name, module in ENTRY_POINTS.items()]
    (package / "entry_points.txt").write_text("\n".join(["[pytest11]", *lines]))
    pytester.makepyfile(test_net=f"{imports}\ndef test_other():\n    pass\n")
    pytester.makeconftest(
        "import sys\n"
        "def pytest_unconfigure():\n"
        "    seen = {'torch', 'jax', 'flax', 'numpy', 'rich', 'jinja2', 'ports', 'parity.plugin'}\n"
        "    print('loaded', *sorted(seen & set(sys.modules)))\n"
    )
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(pytester.path), *sys.path]))
    result = pytester.runpytest_subprocess("-s", *(f"-pno:{name}" for name in others))
    result.assert_outcomes(passed=1)
    (line,) = (line for line in result.outlines if line.startswith("loaded "))
    assert line == f"loaded {'numpy ' if imports else ''}parity.plugin"


class Port(nnx.Module):
    """A port of a layer and a ReLU that lacks the latter."""

    def __init__(self) -> None:
        self.fc = nnx.Linear(3, 2, rngs=nnx.Rngs(0))

    def __call__(self, x: Any) -> Any:
        return self.fc(x)


class Pair:
    """A plugin of the inner run."""

    @pytest.fixture
    def pair(self) -> Any:
        x = np.random.default_rng(0).standard_normal((4, 3))
        with torch.random.fork_rng():
            torch.manual_seed(0)  # weights for which the ReLU has something to do
            reference = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.ReLU())
        return reference, parity.move(reference, Port(), x), x


@pytest.mark.usefixtures("quick")
def test_models_are_checked(pytester: pytest.Pytester) -> None:
    """The whole way, with nothing in the place of the check."""
    pytester.makepyfile(test_net="def test_port(parity, pair):\n    parity(*pair, steps=1)\n")
    result = pytester.runpytest_inprocess(*OPTIONS, "--parity-html", "pages", plugins=[Pair()])
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        ["E*AssertionError: Sequential: NO parity: nnx differs from PyTorch; *", "E*relu-missing*", "E*written: *"]
    )
    (file,) = (pytester.path / "pages").iterdir()
    assert file.name == "test_net.py_test_port.html"
    assert "relu-missing" in file.read_text(encoding="utf-8")
