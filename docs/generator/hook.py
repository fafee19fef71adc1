"""The hook of MkDocs: adds pages and tables made from the code and the results, and Markdown copies of the pages."""

from __future__ import annotations

import logging
import re
import sys
import textwrap
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from docs.generator import code, tables, traps, twins  # noqa: E402

# Files of the checkout that are pages of the site, too.
COPIED = {
    "contributing.md": "CONTRIBUTING.md",
    "changelog.md": "CHANGELOG.md",
    "benchmarks/method.md": "benchmarks/README.md",
}
# Code that is shown in a box of the theme: the text above it, and the kind of box.
BOXES = {"Wrong": "failure", "Right": "success"}
BOXED = re.compile(r"\*\*(Wrong|Right)\*\*\n\n(```python\n.*?```\n)", re.DOTALL)
PICTURES = {"images/speed.svg": "speed-cpu-*.svg", "images/depth.svg": "depth-cpu.svg"}


class Seen:
    """The Markdown of every page of this build, by its path."""

    pages: dict[str, str] = {}  # noqa: RUF012 - MkDocs loads this module once


def generated() -> dict[str, str]:
    """Return the pages that are not files in `docs/`."""
    return {**{path: (ROOT / source).read_text() for path, source in COPIED.items()}, **traps.pages()}


def on_config(config: Any) -> Any:
    """Keep the warnings that stop strict builds, and leave out the theme's advertisement."""
    logging.getLogger("mkdocs.material").setLevel(logging.ERROR)
    Seen.pages.clear()
    return config


def on_files(files: Any, config: Any) -> Any:
    for path, text in generated().items():
        files.append(File.generated(config, path, content=text))
    for path, pattern in PICTURES.items():
        newest = max(tables.RESULTS.glob(pattern))
        files.append(File.generated(config, path, content=newest.read_bytes()))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    text = code.filled(tables.filled(markdown))
    Seen.pages[page.file.src_uri] = text
    return BOXED.sub(boxed, text)


def boxed(place: re.Match[str]) -> str:
    """Return code in a box of the theme."""
    return f'!!! {BOXES[place[1]]} "{place[1]}"\n\n' + textwrap.indent(place[2], "    ")


def on_post_build(config: Any) -> None:
    twins.write(Path(config.site_dir), config.site_name, config.site_description, Seen.pages)
