"""SVG by elements: their content and their attributes are escaped."""

from __future__ import annotations

from collections.abc import Iterable

from markupsafe import Markup, escape


def element(tag: str, content: object = "", **attributes: object) -> Markup:
    """An element with everything escaped.

    content: text, or Markup of other elements.
    attributes: text or numbers, floats to one decimal; an underscore in a name stands for a hyphen, one at its end for
    nothing; None leaves the attribute out.
    """
    written = "".join(
        f' {name.rstrip("_").replace("_", "-")}="{escape(f"{value:.1f}" if isinstance(value, float) else value)}"'
        for name, value in attributes.items()
        if value is not None
    )
    return Markup(f"<{tag}{written}>{escape(content)}</{tag}>")


def drawing(width: float, height: float, alt: str, parts: Iterable[Markup], *, own_file: bool = False) -> Markup:
    """A whole picture.

    alt: what it shows, in words.
    own_file: it stands in a file of its own, not in a page, which would set its size.
    """
    content = element("title", alt) + Markup("").join(parts)
    size = {"xmlns": "http://www.w3.org/2000/svg", "width": width, "height": height} if own_file else {}
    return element("svg", content, viewBox=f"0 0 {width:g} {height:g}", role="img", aria_label=alt, **size)
