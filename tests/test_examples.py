"""The examples print what their last lines say; the notebooks are those scripts, with their outputs."""

from __future__ import annotations

import copy
import json
import re
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
from twins import running

from docs.generator import notebooks
from docs.generator.notebooks import EXAMPLES, NOTEBOOKS, OURS, TWINS, is_shown, printed, problems, shown

# README's code is `port_mlp.py`; the others take several checks, or start processes.
DAILY = ("resume_training", "convert_resnet50")
NIGHTLY = ("gpt_three_mistakes", "port_mlp", "test_port", "time_your_pair")
PUBLISHED = {"bert_twin": "transformers", "unet_twin": "diffusers"}


def cases() -> list[Any]:
    """Return the examples; those of published pairs are skipped where the package has no Flax classes."""
    reason = "{} has no Flax classes here; run make twins"
    lacks = {name: pytest.mark.skipif(not running.ready(p), reason=reason.format(p)) for name, p in PUBLISHED.items()}
    marked = {**dict.fromkeys(NIGHTLY, pytest.mark.nightly), **lacks}
    return [
        pytest.param(name, marks=[marked[name]] if name in marked else []) for name in (*DAILY, *NIGHTLY, *PUBLISHED)
    ]


def script(name: str) -> str:
    return (EXAMPLES / f"{name}.py").read_text()


def stored(name: str) -> dict[str, Any]:
    return json.loads((NOTEBOOKS / f"{name}.ipynb").read_text())


def test_all_examples_are_run() -> None:
    assert {path.stem for path in EXAMPLES.glob("*.py")} == {*DAILY, *NIGHTLY, *PUBLISHED}
    assert {path.stem for path in NOTEBOOKS.iterdir()} == {*OURS, *TWINS}


@pytest.mark.sample(2)
@pytest.mark.parametrize("name", cases())
def test_an_example_prints_what_it_says(name: str) -> None:
    how = ["-m", "pytest", "-p", "no:cacheprovider"] if name.startswith("test_") else []
    command = [sys.executable, *how, str(EXAMPLES / f"{name}.py")]
    run = subprocess.run(command, cwd=EXAMPLES.parent, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr[-2000:]
    said = shown(script(name))
    assert said.strip(" \n…")
    assert is_shown(said, run.stdout), run.stdout
    for ours, theirs in re.findall(r"([\d.]+) in PyTorch, ([\d.]+) in Flax", run.stdout):
        assert float(ours) == pytest.approx(float(theirs), rel=1e-4)


@pytest.mark.parametrize("name", [*OURS, *TWINS])
def test_a_notebook_is_its_script_with_outputs(name: str) -> None:
    assert problems(stored(name), script(name)) == []


def code(notebook: dict[str, Any]) -> list[dict[str, Any]]:
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def without_outputs(notebook: dict[str, Any]) -> None:
    code(notebook)[-1]["outputs"] = []


def not_run(notebook: dict[str, Any]) -> None:
    code(notebook)[1]["execution_count"] = None


def failed(notebook: dict[str, Any]) -> None:
    code(notebook)[0]["outputs"] = [{"output_type": "error", "ename": "ImportError", "evalue": "", "traceback": []}]


def warned(notebook: dict[str, Any]) -> None:
    code(notebook)[0]["outputs"] = [{"output_type": "stream", "name": "stderr", "text": ["UserWarning: old"]}]


def placed(notebook: dict[str, Any]) -> None:
    code(notebook)[-1]["outputs"][0]["text"].append("written /home/somebody/resnet50\n")


def timed(notebook: dict[str, Any]) -> None:
    code(notebook)[-1]["outputs"][0]["text"].append("parity (12 s)\n")


def otherwise(notebook: dict[str, Any]) -> None:
    code(notebook)[-1]["outputs"][0]["text"][-1] = "parity: False\n"


def moved(notebook: dict[str, Any]) -> None:
    notebook["cells"].reverse()


DEFECTS: dict[Callable[[dict[str, Any]], None], str] = {
    without_outputs: "cell 4: it prints, but has no output",
    not_run: "cell 2 was not run in its turn",
    failed: "cell 1: it has an output that does not come from print: ImportError",
    warned: "cell 1: it has an output that does not come from print: UserWarning: old",
    placed: "cell 4: its output holds a path of a machine: /home/somebody/resnet50",
    timed: "cell 4: its output holds a time: 12 s",
    otherwise: "the comment at the end of the script does not say what the notebook prints",
    moved: "0 of 8 cells are those of the script, which has changed: run make notebooks",
}


@pytest.mark.parametrize("defect", DEFECTS, ids=lambda defect: defect.__name__)
def test_a_defect_of_a_notebook_is_told(defect: Callable[[dict[str, Any]], None]) -> None:
    notebook = copy.deepcopy(stored("port_mlp"))
    defect(notebook)
    assert DEFECTS[defect] in problems(notebook, script("port_mlp"))


@pytest.mark.parametrize("change", [("approximate=False), x)", "approximate=True), x)"), ("# # Check", "# # Try")])
def test_a_script_that_changed_is_told(change: tuple[str, str]) -> None:
    text = script("port_mlp")
    assert text.replace(*change) != text
    assert "run make notebooks" in "\n".join(problems(stored("port_mlp"), text.replace(*change)))


def test_a_comment_that_says_something_else_is_told() -> None:
    said, output = shown(script("port_mlp")), printed(stored("port_mlp"))
    assert is_shown(said, output)
    assert is_shown(re.sub(r"\d", "7", said), output)
    assert not is_shown(said.replace("[gelu-tanh]", "[gelu-quick]"), output)
    assert not is_shown(said.replace("parity: True", ""), output)


def test_cells_are_divided_at_their_marks() -> None:
    text = "# %% [markdown]\n# # Title\n#\n# Text.\n\n# %%\nx = 1\n\n\n# %%\nprint(x)\n\n# %% [raw]\n"
    text += "# It prints:\n#\n#     1\n"
    assert notebooks.cells(text) == [
        ("markdown", "# Title\n\nText."),
        ("code", "x = 1"),
        ("code", "print(x)"),
        ("raw", "It prints:\n\n    1"),
    ]
    assert shown(text) == "\n1"
