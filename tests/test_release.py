"""What a release and a public host read agrees with the project."""

from __future__ import annotations

import re
import tarfile
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests import installed

ROOT = Path(__file__).resolve().parents[1]
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
TARGETS = {*re.findall(r"(?m)^([a-z-]+):", (ROOT / "Makefile").read_text())}


def read(file: str) -> Any:
    return yaml.safe_load((ROOT / file).read_text())


def steps(workflow: Path) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Return the steps of a workflow, each with its job."""
    return [(job, step) for job in yaml.safe_load(workflow.read_text())["jobs"].values() for step in job["steps"]]


def made(job: dict[str, Any], step: dict[str, Any]) -> list[str]:
    """Return the targets of the Makefile that a step makes."""
    matrix = job.get("strategy", {}).get("matrix", {}).get("target", [])
    names = re.findall(r"make (\$\{\{ \S+ \}\}|\S+)", step.get("run", ""))
    return [target for name in names for target in (matrix if "matrix.target" in name else [name])]


def test_workflows_make_targets_that_exist() -> None:
    found = {workflow.stem: [t for job, step in steps(workflow) for t in made(job, step)] for workflow in WORKFLOWS}
    assert found == {
        "ci": ["lint", "test-fast", "docs"],
        "nightly": ["test-nightly", "twins", "notebooks", "fuzz", "installed"],
        "release": ["installed"],
    }
    assert {target for targets in found.values() for target in targets} <= TARGETS


def test_the_tests_run_on_every_python_that_is_named() -> None:
    matrix = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())["jobs"]["tests"]["strategy"]["matrix"]
    named = [line.rpartition(" ")[2] for line in PROJECT["classifiers"] if "Python :: 3." in line]
    assert matrix["python"] == named
    assert PROJECT["requires-python"] == f">={named[0]}"


def test_only_publishing_may_write_and_no_token_is_stored() -> None:
    for workflow in WORKFLOWS:
        found = yaml.safe_load(workflow.read_text())
        assert found["permissions"] == {"contents": "read"}
        rights = {name: job["permissions"] for name, job in found["jobs"].items() if "permissions" in job}
        assert rights == ({"publish": {"id-token": "write"}} if workflow.stem == "release" else {})
        assert "secrets." not in workflow.read_text()


def test_the_citation_is_that_of_the_package() -> None:
    found = read("CITATION.cff")
    assert (found["title"], found["version"], found["license"]) == tuple(
        PROJECT[n] for n in ("name", "version", "license")
    )
    assert found["authors"] == PROJECT["authors"]
    assert {"cff-version", "message"} <= {*found}


def test_pre_commit_lints_with_the_pinned_version() -> None:
    (pinned,) = re.findall(r"(?m)^ruff==(.+)$", (ROOT / "constraints.txt").read_text())
    revisions = {repo["repo"].rpartition("/")[2]: repo["rev"] for repo in read(".pre-commit-config.yaml")["repos"]}
    assert revisions["ruff-pre-commit"] == f"v{pinned}"


def test_every_ecosystem_is_kept_up_to_date() -> None:
    assert [one["package-ecosystem"] for one in read(".github/dependabot.yml")["updates"]] == ["pip", "github-actions"]


def test_every_extra_is_pinned() -> None:
    pins = {
        re.sub(r"[-_.]+", "-", line.partition("==")[0]).lower()
        for line in (ROOT / "constraints.txt").read_text().splitlines()
    }
    asked = [name for extra, names in PROJECT["optional-dependencies"].items() if extra != "twins" for name in names]
    names = {re.sub(r"[-_.]+", "-", re.split(r"[\[><=]", name)[0]).lower() for name in asked}
    assert names - pins <= {"huggingface-hub", "dm-haiku", "keras"}


def test_the_commands_of_readme_are_found() -> None:
    found = [*installed.commands((ROOT / "README.md").read_text())]
    assert found[0] == "parity convert resnet50.pth resnet50/"
    assert len(found) == 3


@pytest.mark.nightly
def test_the_wheel_works_in_an_empty_environment(tmp_path: Path) -> None:
    wheel, sdist = installed.built(tmp_path / "dist")
    with zipfile.ZipFile(wheel) as file:
        names = {*file.namelist()}
    assert {"parity/py.typed", "ports/py.typed", "parity/SKILL.md", "parity/commands/agents.py"} <= names
    assert not [name for name in names if name.startswith(("tests/", "docs/", "benchmarks/"))]
    with tarfile.open(sdist) as file:
        assert any(name.endswith("/pyproject.toml") for name in file.getnames())
    binaries = installed.environment(tmp_path / "env", wheel, borrow=True)
    (tmp_path / "empty").mkdir()
    outcomes = installed.run(binaries, tmp_path / "empty", (ROOT / "README.md").read_text())
    assert [(command, code) for command, code in outcomes if code != installed.EXPECTED.get(command, 0)] == []
