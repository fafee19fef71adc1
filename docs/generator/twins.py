"""Write `llms.txt` and, next to every page, the same page in Markdown, for programs to read."""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

MEMBER = re.compile(r"(?m)^::: ([\w.]+)\n(?: +.*\n)*")
# Annotations that are kept as text: `x: 'int' = 1`.
QUOTED = re.compile(r"(: |-> )'([^']*)'")
HEAD = """# {name}

> {description}

Every page of this site has a twin in Markdown: its address with `.md` in place of `.html`.
"""


def find(path: str) -> Any:
    """Return the object that a dotted name means."""
    for cut in range(path.count(".") + 1, 0, -1):
        names = path.split(".")
        try:
            found = importlib.import_module(".".join(names[:cut]))
        except ModuleNotFoundError:
            continue
        for name in names[cut:]:
            found = getattr(found, name)
        return found
    raise LookupError(f"got {path}, expected a name of this package")


def described(path: str) -> str:
    """Return the signature and the docstring of a member of the package."""
    found = find(path)
    text = inspect.getdoc(found) or ""
    if not callable(found):
        return f"## {path}\n\n{text}\n"
    signature = QUOTED.sub(r"\1\2", str(inspect.signature(found)))
    return f"## {path}\n\n```python\n{path.rpartition('.')[2]}{signature}\n```\n\n{text}\n"


def plain(text: str) -> str:
    """Return the Markdown of a page with docstrings in place of references to them."""
    return MEMBER.sub(lambda place: described(place[1]), text)


def title(text: str) -> str:
    match = re.search(r"(?m)^# (.*)$", text)
    return match[1] if match else ""


def first_sentence(text: str) -> str:
    """Return the first sentence below the title."""
    body = re.sub(r"(?s)^.*?^# .*?$|<[^>]*>|!\[[^\]]*\]\([^)]*\)", "", text, count=1, flags=re.MULTILINE)
    paragraphs = (part.strip() for part in body.split("\n\n"))
    paragraph = next((part for part in paragraphs if part and part[0] not in "#|`!<-:"), "")
    said = re.split(r"(?<=[.!?])\s", " ".join(paragraph.split()), maxsplit=1)[0].replace("**", "")
    return re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", said)


def llms(name: str, description: str, pages: Mapping[str, str]) -> str:
    """Return `llms.txt`: a line for every page, traps last."""
    lines = [HEAD.format(name=name, description=description)]
    main = {path: text for path, text in pages.items() if not path.startswith("traps/") or path == "traps/index.md"}
    for heading, some in (("Pages", main), ("Traps", {path: pages[path] for path in pages if path not in main})):
        lines += [f"## {heading}", ""]
        for path, text in some.items():
            about = first_sentence(text).removeprefix("What the port does. ")
            lines.append(f"- [{title(text)}]({path}): {about}" if about else f"- [{title(text)}]({path})")
        lines.append("")
    return "\n".join(lines)


def write(folder: Path, name: str, description: str, pages: Mapping[str, str]) -> None:
    """Write the twins of all pages and `llms.txt` into the folder of a site."""
    for path, text in pages.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(plain(text))
    (folder / "llms.txt").write_text(llms(name, description, pages))
