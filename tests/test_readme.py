"""README is short, its code prints what it says, and its figures are the ones that were measured."""

from __future__ import annotations

import contextlib
import io
import re
import statistics
from pathlib import Path

import pytest

from docs.generator import picture
from docs.generator.tables import IN_README, PLACE, ROOT, TABLES, Results, load, made, readme

TEXT = (ROOT / "README.md").read_text()
PAGES = sorted((ROOT / "docs").glob("*.md"))
NUMBER = re.compile(r"\d[\d.]*(e[+-]\d+)?")


def test_readme_has_at_most_150_lines() -> None:
    assert len(TEXT.splitlines()) <= 150


def printed(text: str) -> list[str]:
    """Return what README says that its code prints, numbers left out."""
    match = re.search(r"(?s)```python.*?```text\n(.*?)```", text)
    assert match
    return [NUMBER.sub("#", line) for line in match[1].splitlines()]


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    code = picture.first_block()
    assert 5 < len([line for line in code.splitlines() if line.strip()]) <= 15
    with contextlib.chdir(tmp_path_factory.mktemp("readme")), contextlib.redirect_stdout(io.StringIO()) as said:
        exec(compile(code, "README.md", "exec"), {})
    return [NUMBER.sub("#", line) for line in said.getvalue().splitlines()]


def test_the_code_of_readme_prints_what_it_says(output: list[str]) -> None:
    assert set(printed(TEXT)) <= set(output)
    wrong = TEXT.replace("[gelu-tanh]", "[gelu-quick]")
    assert not set(printed(wrong)) <= set(output)


def test_the_picture_shows_this_report(output: list[str]) -> None:
    """Words of the findings stand in the picture; `python -m docs.generator.picture` draws it again."""
    drawn = re.sub(r"<[^>]*>", " ", picture.FILE.read_text()).replace("&#160;", " ")
    words = NUMBER.sub("#", " ".join(drawn.replace("&#x27;", "'").split()))
    finding = " ".join(line for line in output if line.startswith("# nnx:")).split()
    assert "[gelu-tanh]:" in finding
    assert [word for word in finding if word not in words] == []
    assert "https:" not in picture.FILE.read_text()


def _wrong_parity(results: Results) -> None:
    results["models"][0]["largest"]["nnx"]["output.eval"] = 0.5


def _wrong_score(results: Results) -> None:
    results["results"][0]["name"] = not results["results"][0]["name"]


def _wrong_faithful(results: Results) -> None:
    results["false_alarms"] += 1


def _wrong_cost(results: Results) -> None:
    results["results"][0]["ratio"] += 1


def _wrong_conversion(results: Results) -> None:
    results["files"]["sharded"]["seconds"] += 100


def _wrong_decoding(results: Results) -> None:
    results["networks"][0]["subjects"][0]["tokens_per_second"] *= 2


def _wrong_speed(results: Results) -> None:
    for row in (row for row in results["rows"] if row["subject"].startswith(("nnx", "linen"))):
        for one in row["rounds"]:
            one["ms"] *= 2 if row["subject"] == "nnx" else 3


def _wrong_depth(results: Results) -> None:
    network = next(network for network in results["networks"] if network["curves"])
    network["curves"]["nnx"]["test_error"][-1] += 0.1


def _wrong_twins(results: Results) -> None:
    results["twins"]["bert"]["verdict"] = "mismatch"


def _wrong_ports(results: Results) -> None:
    results["ports"]["jflux"]["verdict"] = "mismatch"


def _wrong_replay(results: Results) -> None:
    results["ports"][0]["right"] = not results["ports"][0]["right"]


def _wrong_moves(results: Results) -> None:
    results["wrong"] += 1


WRONG = {
    "replay": _wrong_replay,
    "speed": _wrong_speed,
    "families": _wrong_speed,
    "moves": _wrong_moves,
    "means": _wrong_speed,
    "autotune": _wrong_speed,
    "flags": _wrong_speed,
    "fastest": _wrong_speed,
    "parity": _wrong_parity,
    "score": _wrong_score,
    "evidence": _wrong_score,
    "faithful": _wrong_faithful,
    "kinds": _wrong_faithful,
    "cost": _wrong_cost,
    "conversion": _wrong_conversion,
    "decoding": _wrong_decoding,
    "depth": _wrong_depth,
    "published": _wrong_twins,
    "ports": _wrong_ports,
}


@pytest.mark.parametrize("name", TABLES)
def test_a_table_is_made_from_what_was_measured(name: str) -> None:
    results = load(name)
    before = made(name, results)
    WRONG[name](results)
    assert made(name, results) != before


def test_readme_says_what_was_measured() -> None:
    results = {name: load(name) for name in IN_README}
    assert readme(TEXT, results) == TEXT
    for name in IN_README:
        WRONG[name](wrong := load(name))
        assert readme(TEXT, {name: wrong}) != TEXT


def test_every_table_has_a_place() -> None:
    placed = {name for page in PAGES for name in PLACE.findall(page.read_text())}
    assert placed | set(IN_README) == set(TABLES)


def test_commands_of_readme_and_pages_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    text = "\n".join([TEXT, *(page.read_text() for page in PAGES)])
    targets = set(re.findall(r"(?m)(?:^ {4}|`)make ([a-z-]+)", text))
    assert {"parity", "test", "docs", "fuzz"} <= targets
    assert all(re.search(rf"^{target}:", makefile, re.MULTILINE) for target in targets)


def sentences(text: str) -> list[int]:
    """Return how many words each sentence of a page has; code, tables, lists and headings left out."""
    text = re.sub(r"(?s)```.*?```|<!--.*?-->|`[^`]*`", " x ", text)
    lines = [line for line in text.splitlines() if not re.match(r"\s{4}|#|\||!|\s*[-\d]", line)]
    paragraphs = "\n".join(lines).split("\n\n")
    return [len(s.split()) for p in paragraphs for s in re.split(r"(?<=[.!?:])\s", p.strip()) if len(s.split()) > 2]


@pytest.mark.parametrize("path", [ROOT / "README.md", *PAGES], ids=lambda path: path.name)
def test_sentences_are_short(path: Path) -> None:
    counts = sentences(path.read_text())
    assert not counts or statistics.median(counts) < 15
    assert statistics.median(sentences("One sentence that goes on and on " + "with more words and " * 4 + "ends.")) > 15
