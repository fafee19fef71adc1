"""What a page of HTML holds, and what in it is not its own."""

from __future__ import annotations

import re
from html.parser import HTMLParser


class Elements(HTMLParser):
    """Tags with their attributes, and text outside of styles."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "path", "line", "circle", "rect", "br", "img", "link"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.text.append(data.strip())


def loads(text: str) -> list[str]:
    """Whatever in a page would be fetched or run, or leads out of it."""
    fetched = {"src", "srcset", "data", "action", "background", "poster", "xlink:href"}
    found = re.findall(r"https?:|//\w|url\(|@import", text)
    for tag, attributes in Elements(text).tags:
        found += [tag] if tag in ("script", "link", "iframe", "img", "object", "embed", "base") else []
        found += [f"{tag} {name}" for name in attributes if name in fetched or name.startswith("on")]
        found += [f"href {to}" for name, to in attributes.items() if name == "href" and not (to or "").startswith("#")]
    return found
