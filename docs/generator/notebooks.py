"""Write the notebooks of `examples/notebooks/`: the cells of a script in `examples/`, run, with what they print.

python -m docs.generator.notebooks [twins | NAME ...]

Lines `# %%` divide a script into cells (jupytext's percent format). The script is the only source: `make notebooks`
writes all notebooks, and the tests report a stored notebook that does not match its script. A raw cell shows readers of
the script what it prints; the notebook has the real outputs instead. Writing needs the extra [notebooks], `problems`
does not.
"""

# pyright: reportMissingImports=false

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples"
NOTEBOOKS = EXAMPLES / "notebooks"

# The second group runs where transformers and diffusers have Flax classes: `.venv-twins`.
OURS = ("port_mlp", "gpt_three_mistakes", "resume_training", "convert_resnet50")
TWINS = ("bert_twin",)

Cells = list[tuple[str, str]]

MARK = re.compile(r"^# %%(?: \[(markdown|raw)\])?\n", re.MULTILINE)
NUMBER = re.compile(r"\d[\d.,]*(e[+-]\d+)?")
SHOWN = "# It prints:\n"
# What an output must not hold: a path of the machine that ran it, and how long something took.
PLACE = re.compile(r"(?<![\w.:/])(?:/[\w.+-]+){2,}")
TIME = re.compile(r"\b\d+(?:\.\d+)? ?(?:s|ms|min|seconds|minutes|images/s)\b")


def cells(script: str) -> Cells:
    """Return the kind (`code`, `markdown` or `raw`) and the text of each cell of a script."""
    _, *parts = MARK.split(script)
    found = []
    for kind, text in zip(parts[::2], parts[1::2], strict=True):
        lines = text.strip().splitlines()
        found.append((kind or "code", "\n".join(line[2:] if kind else line for line in lines)))
    return found


def shown(script: str) -> str:
    """Return the expected output from the comment at the end of a script."""
    return "\n".join(line[6:] for line in script.partition(SHOWN)[2].splitlines())


def printed(notebook: Mapping[str, Any]) -> str:
    """Return the text that all cells of a notebook print to stdout."""
    outputs = [output for cell in notebook["cells"] for output in cell.get("outputs", ())]
    return "".join("".join(output.get("text", "")) for output in outputs if output.get("name") == "stdout")


def without_numbers(text: str) -> str:
    """Return the words of a text, with a mark for every number, because machines round differently."""
    return NUMBER.sub("#", " ".join(text.split()))


def is_shown(said: str, output: str) -> bool:
    """Return whether an output matches a comment, except for numbers and line breaks; `…` matches any text."""
    parts = [re.escape(part.strip()) for part in without_numbers(said).split("…")]
    return re.fullmatch(r"\s*.*\s*".join(parts), without_numbers(output), re.DOTALL) is not None


def problems(notebook: Mapping[str, Any], script: str) -> list[str]:
    """Return the differences between a stored notebook and its script."""
    expected = [cell for cell in cells(script) if cell[0] != "raw"]
    got = [(cell["cell_type"], "".join(cell["source"])) for cell in notebook["cells"]]
    if got != expected:
        same = sum(a == b for a, b in zip(got, expected, strict=False))
        return [f"{same} of {len(expected)} cells are those of the script, which has changed: run make notebooks"]
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    found = [f"cell {i} was not run in its turn" for i, cell in enumerate(code, 1) if cell["execution_count"] != i]
    for i, cell in enumerate(code, 1):
        found += [f"cell {i}: {line}" for line in _faults("".join(cell["source"]), cell["outputs"])]
    if not is_shown(shown(script), printed(notebook)):
        found.append("the comment at the end of the script does not say what the notebook prints")
    return found


def _faults(source: str, outputs: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Yield what is wrong with the outputs of a cell."""
    if not outputs and "print(" in source:
        yield "it prints, but has no output"
    for output in outputs:
        if output.get("name") != "stdout":
            said = output.get("ename") or "".join(output.get("text", ""))[:100]
            yield f"it has an output that does not come from print: {said or output['output_type']}"
        text = json.dumps(output, ensure_ascii=False)
        for what, pattern in (("a path of a machine", PLACE), ("a time", TIME)):
            if match := pattern.search(text):
                yield f"its output holds {what}: {match[0]}"


def made(script: str) -> dict[str, Any]:
    """Run the cells of a script in a kernel of their own, and return the notebook."""
    import jupytext
    import nbformat
    from jupyter_client.manager import AsyncKernelManager
    from nbclient import NotebookClient

    # tqdm asks for widgets, which a stored notebook does not have.
    os.environ["PYTHONWARNINGS"] = "ignore:IProgress not found"
    notebook = jupytext.reads(script, fmt="py:percent")
    notebook.cells = [cell for cell in notebook.cells if cell.cell_type != "raw"]
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    client = NotebookClient(
        notebook,
        km=AsyncKernelManager(kernel_name=kernel["name"], transport="ipc"),
        record_timing=False,
        coalesce_streams=True,
        resources={"metadata": {"path": str(ROOT)}},
    )
    client.execute(cleanup_kc=True)
    # The kernel and the run leave metadata there that differs in every run.
    for i, cell in enumerate(notebook.cells):
        cell.id, cell.metadata = f"cell-{i}", nbformat.from_dict({})
    notebook.metadata = nbformat.from_dict({"kernelspec": kernel, "language_info": {"name": "python"}})
    nbformat.validate(notebook)
    return json.loads(nbformat.writes(notebook))


def write(name: str) -> None:
    """Write the notebook of a script.

    Raises:
        SystemExit: it would not match its script.
    """
    script = (EXAMPLES / f"{name}.py").read_text()
    notebook = made(script)
    NOTEBOOKS.mkdir(exist_ok=True)
    (NOTEBOOKS / f"{name}.ipynb").write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n")
    if found := problems(notebook, script):
        raise SystemExit("\n".join(f"{name}: {line}" for line in found))
    print(f"written examples/notebooks/{name}.ipynb")


if __name__ == "__main__":
    for asked in TWINS if sys.argv[1:] == ["twins"] else sys.argv[1:] or OURS:
        write(asked)
