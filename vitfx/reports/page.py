"""One HTML file that needs nothing else: its frame and its parts, from templates that escape all that is text."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from hashlib import sha256

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from vitfx.support.tables import Table


@cache
def _templates() -> Environment:
    return Environment(
        loader=PackageLoader("vitfx.reports"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )


def _part(name: str, *arguments: object) -> Markup:
    macro = getattr(_templates().get_template("parts.html").module, name)
    return Markup(macro(*arguments).strip())


def page(title: str, lead: str, sections: Iterable[Markup], *, sorts: bool = False) -> str:
    """The whole file. sorts: with the script that makes tables sort; no other script runs."""
    script = Markup(_templates().get_template("sort.js").render()) if sorts else Markup("")
    digest = base64.b64encode(sha256(script.encode()).digest()).decode()
    return (
        _templates()
        .get_template("page.html")
        .render(title=title, lead=lead, sections=sections, script=script, script_hash=Markup(f"sha256-{digest}"))
    )


def section(title: str, *parts: Markup) -> Markup:
    """A heading, and what is below it; nothing where nothing is."""
    shown = [part for part in parts if part]
    return _part("section", title, shown) if shown else Markup("")


def table(table: Table, *, sorts: bool = False) -> Markup:
    """A row's first cell names it. Where it is too wide it scrolls in a box of its own. It must have a caption.

    sorts: its headings become buttons that sort it, on a page that was asked for this.
    """
    return _part("table", table, sorts)


def bullets(sentences: Sequence[str]) -> Markup:
    return _part("bullets", sentences) if sentences else Markup("")


def paragraph(sentence: str) -> Markup:
    return _part("paragraph", sentence)


def figure(picture: Markup, caption: str) -> Markup:
    return _part("figure", picture, caption) if picture else Markup("")


def details(title: str, facts: Mapping[str, object]) -> Markup:
    """Names and values that are folded up until they are asked for."""
    return _part("details", title, facts) if facts else Markup("")


def image_maps(name: str, png: bytes, maps: Sequence[tuple[Markup, str]], shape: tuple[int, int]) -> Markup:
    """An image beside maps of it, each with its caption. shape: width and height of all of them, in any unit."""
    return _part("maps", name, base64.b64encode(png).decode(), maps, f"{shape[0]} / {shape[1]}")
