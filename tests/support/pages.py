"""Reading a page as a browser does, strictly: what is opened is closed, and nothing is fetched from elsewhere."""

from __future__ import annotations

from base64 import b64encode
from hashlib import sha256
from html.parser import HTMLParser
from itertools import pairwise

_VOID = {"meta", "img"}


class Page(HTMLParser):
    """headings: level and text. cells: rows of tables. told: all text that is read. labels: of pictures."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.headings: list[tuple[int, str]] = []
        self.cells: list[list[str]] = []
        self.labels: list[str] = []
        self.told = ""
        self.links: list[str] = []
        self.scripts: list[str] = []
        self.first: dict[str, dict[str, str | None]] = {}
        self.feed(source)
        self.close()
        assert not self.open, self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        known = dict(attrs)
        assert len(known) == len(attrs), f"{tag} has an attribute twice"
        self.tags.append(tag)
        self.first.setdefault(tag, known)
        self.links += [str(known[name]) for name in ("src", "href", "xlink:href") if name in known]
        if tag in ("svg", "img"):
            self.labels.append(str(known.get("aria-label") or known.get("alt") or ""))
        if tag == "th":
            assert known.get("scope") in ("row", "col")
        if tag == "tr":
            self.cells.append([])
        if tag in ("th", "td"):
            self.cells[-1].append("")
        if tag in ("h1", "h2", "h3"):
            self.headings.append((int(tag[1]), ""))
        if tag not in _VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open[-1] == tag, f"</{tag}> closes {self.open[-1:]}"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        if "script" in self.open:
            self.scripts.append(data)
        if {"style", "script"} & set(self.open):
            return
        self.told += data
        if self.open and self.open[-1] in ("th", "td"):
            self.cells[-1][-1] += data
        if self.open and self.open[-1] in ("h1", "h2", "h3"):
            self.headings[-1] = (self.headings[-1][0], self.headings[-1][1] + data)

    @property
    def sections(self) -> list[str]:
        return [title for level, title in self.headings if level == 2]


def read(source: str) -> Page:
    """The page, with what must be true of every one."""
    page = Page(source)
    assert source.startswith("<!DOCTYPE html>\n")
    assert page.first["html"] == {"lang": "en"}
    assert [level for level, _ in page.headings].count(1) == 1
    levels = [level for level, _ in page.headings]
    assert levels[0] == 1 and all(below <= above + 1 for above, below in pairwise(levels)), "a level is left out"
    assert page.tags.count("table") == page.tags.count("caption")
    assert all(page.labels), "a picture says nothing"
    assert all(link.startswith("data:image/png;base64,") for link in page.links)
    assert not {"link", "iframe", "object"} & set(page.tags)
    for script in page.scripts:
        assert f"script-src 'sha256-{b64encode(sha256(script.encode()).digest()).decode()}'\"" in source
    assert "http://" not in source
    assert "https://" not in source
    assert "url(" not in source
    assert "prefers-color-scheme: dark" in source
    assert 'content="width=device-width' in source
    return page
