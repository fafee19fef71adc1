"""What the command says to a person: short lines, the nearest name, what to type next, how long it takes."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from parity.commands import cli, known
from parity.commands.cli import main, next_command
from parity.reports import progress
from parity.reports.report import Finding, Fix, Model, Row
from parity.traps.catalogue import TRAPS


def test_the_list_of_traps_fits_into_80_columns(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["traps"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= known.WIDTH
    assert {f"  {trap.name}" for trap in TRAPS} <= {*lines}
    assert [line.rstrip(":") for line in lines if line.endswith(":") and line[0] == "I"] == [*known.PLACES.values()]


def test_the_page_of_every_trap_fits_into_80_columns() -> None:
    for trap in TRAPS:
        lines = [*known.page(trap.name)]
        prose = itertools.takewhile(lambda line: line not in ("PyTorch:", "Wrong:"), lines)
        assert max(map(len, prose)) <= known.WIDTH, trap.name
        assert " ".join(trap.mend.split()) in " ".join(" ".join(lines).split())


def test_a_trap_has_a_page_for_each_place(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["traps", "kernel-flipped"]) == 0
    out = capsys.readouterr().out
    assert out.count("kernel-flipped\n\nmistake:  the kernel is flipped\n") == 2
    assert "\n\nRight:\n    kernel = weight.transpose(2, 3, 1, 0)\n" in out
    assert main(["traps", "bn-epsilon-1e-3"]) == 0
    assert "argument: epsilon; a finding has its value in `fix`\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        (["traps", "gelu-tahn"], "traps: got 'gelu-tahn', expected a known mistake; gelu-tanh is nearest"),
        (["check", "resnet18", "--jsn", "-"], "No such option: --jsn; nearest: --json"),
        (["check", "resnet18", "--optimiser", "adam"], "No such option: --optimiser; nearest: --optimizer"),
        (["convert", "a", "b", "--forced"], "No such option: --forced; nearest: --force"),
        (["--verison"], "No such option: --verison; nearest: --version"),
        (["chek"], "No such command 'chek'. Did you mean 'check'?"),
        (["check", "resnet18", "--fix"], "--fix: got a network of this package, expected a pair of your own"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_was_mistyped_is_told_with_the_nearest_name(
    typed: Sequence[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*typed]) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"parity: {said}")
    assert err.count("\n") == 1


def test_the_version_names_the_frameworks_too(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("parity ")
    assert all(f"{name} " in out for name in ("torch", "jax", "flax", "optax"))


def test_a_shell_can_complete_commands_and_options() -> None:
    runner = CliRunner()
    for line, word in (("parity tr", "traps"), ("parity check --js", "--json"), ("parity m", "mcp")):
        given = {"_PARITY_COMPLETE": "complete_bash", "COMP_WORDS": line, "COMP_CWORD": str(len(line.split()) - 1)}
        assert word in runner.invoke(cli.app, [], env=given, prog_name="parity").output


ROW = Row("nnx", "output.eval", "output", 1.0, 0.0, False)
FIX = Fix("norm", "epsilon", 1e-6, 1e-5)
KNOWN = Finding("nnx", "norm", "norm-epsilon-1e-6", "text", fix=(FIX,))
WRONG = Model("Port", (ROW,), findings=(KNOWN,))


@pytest.mark.parametrize(
    ("name", "model", "fixed", "said"),
    [
        ("p.py:make", Model("Port", ()), False, "parity export-mapping p.py:make --script convert.py"),
        ("resnet50", Model("resnet50", ()), False, "parity convert SRC DST --model resnet50"),
        ("p.py:make", replace(WRONG, undecided="why"), False, "parity check p.py:make --pairs"),
        ("p.py:make", WRONG, False, "parity check p.py:make --diff"),
        ("resnet50", WRONG, False, "parity traps norm-epsilon-1e-6"),
        ("p.py:make", replace(WRONG, findings=(replace(KNOWN, diff="-a"),)), False, "parity check p.py:make --fix"),
        ("p.py:make", replace(WRONG, findings=(replace(KNOWN, diff="-a"),)), True, "parity check p.py:make"),
        ("p.py:make", WRONG, True, "parity traps norm-epsilon-1e-6"),
        ("p.py:make", replace(WRONG, findings=()), False, "parity check p.py:make --html report.html"),
    ],
)
def test_a_check_ends_with_the_next_command(name: str, model: Model, fixed: bool, said: str) -> None:
    assert next_command(name, model, fixed) == said


def test_the_next_command_keeps_the_names_and_offers_no_mapping_that_cannot_be_written() -> None:
    right, names = Model("Port", ()), Path("my names.toml")
    assert next_command("p.py:make", right, False, exportable=False) == "parity pairs p.py:make"
    said = "parity export-mapping p.py:make --names 'my names.toml' --script convert.py"
    assert next_command("p.py:make", right, False, names=names) == said
    assert (
        next_command("p.py:make", WRONG, False, names=names) == "parity check p.py:make --names 'my names.toml' --diff"
    )


def test_the_rest_of_counted_parts_is_estimated(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(progress.time, "monotonic", lambda: now)
    left: Callable[[str], str] = progress.progress("name").left
    assert [left("reference in PyTorch"), left("rounding response 1 of 5")] == ["", ""]
    now = 110.0
    assert left("rounding response 2 of 5") == ", about 40 s left for these"
    now = 160.0
    assert left("rounding response 3 of 5") == ", about 90 s left for these".replace("90 s", "2 min")
    assert left("other response 3 of 5") == ""
