"""The site builds, its links lead somewhere, nothing of it comes from elsewhere, and the code in its pages runs."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urldefrag

import numpy as np
import pytest

from docs.generator import code, costs, traps, twins
from docs.generator.tables import ROOT
from parity.commands.mapping import names_of
from parity.traps.catalogue import TRAPS
from ports.weights.rules import rulesfile

BLOCK = re.compile(r"(?s)^```python\n(.*?)^```", re.MULTILINE)
FILE = re.compile(r"(?s)^```toml\n(.*?)^```", re.MULTILINE)
PAGES = [page for page in sorted((ROOT / "docs").glob("*.md")) if BLOCK.search(page.read_text())]
UNFILLED = re.compile(r"^<!-- (table|code):|^::: ", re.MULTILINE)
ELSEWHERE = re.compile(r"^(https?:)?//")


class Links(HTMLParser):
    """The links of a page, the names in it, and what a browser fetches for it."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.names: set[str] = set()
        self.fetched: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.names |= {value for key in ("id", "name") if (value := given.get(key))}
        if tag == "a" and (to := given.get("href")):
            self.links.append(to)
        source = given.get("src") or (given.get("href") if tag == "link" else None)
        if source:
            self.fetched.append(source)


def read(folder: Path) -> dict[Path, Links]:
    return {path: Links(path.read_text()) for path in folder.rglob("*.html") if path.name != "404.html"}


def broken(pages: Mapping[Path, Links]) -> Iterator[str]:
    """Yield the links within a site that lead to no page, no file or no place in a page."""
    for path, page in pages.items():
        for link in (*page.links, *page.fetched):
            address, name = urldefrag(link)
            if re.match(r"\w+:", link) or link.startswith("//"):
                continue
            target = (path.parent / unquote(address)).resolve() if address else path
            if not target.is_file():
                yield f"{path.name}: {link}"
            elif name and target in pages and unquote(name) not in pages[target].names:
                yield f"{path.name}: {link}: no such place"


def test_a_broken_link_is_noticed(tmp_path: Path) -> None:
    (tmp_path / "a.html").write_text('<h1 id="here"></h1><a href="b.html#there"></a><a href="#here"></a>')
    (tmp_path / "b.html").write_text('<p id="there"><a href="a.html#gone"></a><a href="c.html"></a><img src="d.png">')
    found = list(broken({path.resolve(): links for path, links in read(tmp_path).items()}))
    assert found == ["b.html: a.html#gone: no such place", "b.html: c.html", "b.html: d.png"]


def test_the_site(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs")
    command = (sys.executable, "-W", "ignore", "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", tmp_path)
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1", "DISABLE_MKDOCS_2_WARNING": "true"}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    pages = {path.resolve(): links for path, links in read(tmp_path).items()}
    assert list(broken(pages)) == []
    assert [link for page in pages.values() for link in page.fetched if ELSEWHERE.match(link)] == []
    listed = (tmp_path / "llms.txt").read_text()
    index = (tmp_path / "traps" / "index.html").read_text()
    for trap in TRAPS:
        assert (tmp_path / "traps" / f"{trap.name}.html").is_file()
        assert f"(traps/{trap.name}.md)" in listed
        assert f'href="{trap.name}.html"' in index
    assert all(path.with_suffix(".md").is_file() for path in pages)
    assert [path for path in tmp_path.rglob("*.md") if UNFILLED.search(path.read_text())] == []


# README's code is index.md's. The others start a command, or build large networks.
NIGHTLY = ("index.md", "agents.md", "convert.md", "networks.md")
ROWS = [pytest.param(page, marks=[pytest.mark.nightly] if page.name in NIGHTLY else []) for page in PAGES]


@pytest.mark.parametrize("page", ROWS, ids=[page.name for page in PAGES])
def test_the_code_of_a_page_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    space: dict[str, object] = {}
    for block in BLOCK.findall(page.read_text()):
        exec(compile(block, page.name, "exec"), space)


def files(page: str, tmp_path: Path) -> list[Path]:
    """Write the TOML files that a page shows."""
    blocks = FILE.findall((ROOT / "docs" / page).read_text())
    found = [tmp_path / f"{i}.toml" for i in range(len(blocks))]
    for file, block in zip(found, blocks, strict=True):
        file.write_text(block)
    return found


def test_names_in_a_file_are_those_of_the_call(tmp_path: Path) -> None:
    (file,) = files("check.md", tmp_path)
    calls = re.findall(r"^names=(.*)$", (ROOT / "docs" / "check.md").read_text(), re.MULTILINE)
    said = {name: other for call in calls for name, other in ast.literal_eval(call).items()}
    assert names_of(file) == said
    file.write_text(file.read_text().replace("blocks.*.up", "blocks.*.down"))
    assert names_of(file) != said


def test_the_rules_of_a_page_are_read(tmp_path: Path) -> None:
    layers, tensors = map(rulesfile.load, files("convert.md", tmp_path))
    assert [row.type for row in layers.rows] == ["linear"]
    (row,) = tensors.tensors
    weight = np.arange(96 * 32).reshape(96, 32)
    key, query, value = row.form.to_flax((weight,))
    for part, kernel in zip(np.split(weight, 3), (query, key, value), strict=True):
        assert np.array_equal(kernel, part.T.reshape(32, 4, 8))


def test_a_trap_without_a_row_has_a_page_and_stands_in_the_index() -> None:
    found = traps.grouped()
    name = next(iter(found))
    page = traps.page(found[name], None, (), "")
    assert page.startswith(f"# {name}\n")
    assert "## Code" not in page
    found["no-such-example"] = found[name]
    assert "[`no-such-example`](no-such-example.md)" in traps.index(found)


def test_costs_are_shown_as_they_were_measured() -> None:
    none = dict.fromkeys(key for key, _, _ in traps.COSTS)
    assert list(traps.cost([{**none, "output": 1e-17}]))[-1] == "| rounding |"
    assert list(traps.measured_in([none])) == ["In the networks of `tests/meta/` the output is not finite."]
    row = {"output": 0.25, "flips": 1, "predictions": 3, "divergence": None, "cosine": None, "drift": None}
    assert list(traps.cost([row]))[-1] == "| 2.5e-01 | 1 of 3 |"
    assert list(traps.cost([{**row, "output": None, "flips": None}])) == []


@pytest.mark.nightly
def test_a_stored_cost_is_what_the_check_measures() -> None:
    """`python -m docs.generator.costs NAME` measures the cases of one trap again."""
    stored = traps.measured()
    assert set(stored) <= {trap.name for trap in TRAPS}
    found = [cost for _, case in costs.measured(("gelu-is-relu",)) for cost in case["costs"]]
    assert [row["output"] for row in found] == pytest.approx([row["output"] for row in stored["gelu-is-relu"]])
    assert [row["drift"] for row in found] == pytest.approx([row["drift"] for row in stored["gelu-is-relu"]])
    assert stored["gelu-quick"][0]["output"] != pytest.approx(found[0]["output"])


def test_fields_of_a_record_are_read_from_its_docstring() -> None:
    class Record:
        """A record.

        Attributes:
            one: the first,
                on two lines.
            two, three: more.
        """

    assert code.attributes(Record) == {"one": "the first, on two lines.", "two": "more.", "three": "more."}


def test_every_option_and_key_is_explained() -> None:
    from parity.numerics.pins import Pin
    from parity.options import NetworkOptions, PairOptions
    from parity.reports import report

    records = (report.Model, report.Row, report.Finding, report.Cost, report.Precision, report.Divergence, report.Point)
    tables = [code.options_of(PairOptions), code.options_of(NetworkOptions)]
    tables += [code.keys_of(record) for record in (*records, Pin)]
    assert [line for table in tables for line in table[2:] if line.endswith("|  |")] == []


def test_types_are_those_of_json() -> None:
    assert code.json_type("dict[str, tuple[Point, ...]] | None") == "dict[str, list[Point]] or null"


def test_functions_keep_their_names() -> None:
    found = {name: traps.where(rows[0]) for name, rows in traps.grouped().items()}
    assert found["pad-zeros"] == "`pad`"
    assert found["conv-padding-same"] == "`Conv`"
    assert found["weight-lost"] == "any kind"


def test_the_twin_of_a_reference_holds_its_docstring() -> None:
    text = twins.plain("# API\n\n::: ports.create\n\n::: parity.move\n")
    assert "create(name: Any, port: str" in text
    assert "Create a named network, or one that you describe" in text
    assert ":::" not in text


def test_llms_txt_has_a_line_for_every_page() -> None:
    pages = {"index.md": "# Start\n\nIt **does** [this](x.md). And that.", "traps/a.md": "# a\n\nWhat. More."}
    said = twins.llms("name", "what it is", pages)
    assert "- [Start](index.md): It does this.\n" in said
    assert said.index("## Traps") < said.index("[a](traps/a.md)")
