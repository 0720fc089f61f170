"""One HTML file that needs nothing else: the frame, its style for small and large, light and dark, and its tables.

What comes from files or users goes through `text`; everything else here takes and gives HTML.
"""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence

_STYLE = """
:root { color-scheme: light dark; --back: #ffffff; --card: #f4f6f9; --ink: #1b1f24; --soft: #59616b; --line: #cfd5dc;
  --c0: #6b7684; --c1: #2f66b0; --c2: #b5472f; --c3: #2d8077; --c4: #8a6a10; --c5: #6a47a3; --heat: #2f66b0; }
@media (prefers-color-scheme: dark) {
  :root { --back: #14171b; --card: #1d2228; --ink: #e6e9ed; --soft: #a3acb7; --line: #3b444e;
    --c0: #98a3b1; --c1: #7fb0f0; --c2: #ef8f77; --c3: #63c3b8; --c4: #d9b64a; --c5: #b99bee; --heat: #7fb0f0; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--back); color: var(--ink); font: 16px/1.5 system-ui, sans-serif; }
main, header { max-width: 62rem; margin: 0 auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; line-height: 1.25; margin: 1.5rem 0 .25rem; overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; margin: 0 0 .5rem; overflow-wrap: anywhere; }
section { margin: 2rem 0; }
p, li, figcaption { max-width: 46rem; overflow-wrap: anywhere; }
ul { padding-left: 1.2rem; }
figcaption, .soft { color: var(--soft); font-size: .9rem; }
figure { margin: .75rem 0; }
.wide { overflow-x: auto; }
.wide:focus-visible, summary:focus-visible { outline: 2px solid var(--c1); }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .92rem; }
th, td { padding: .3rem .75rem .3rem 0; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap; }
th { font-weight: 600; }
thead th { white-space: normal; vertical-align: bottom; }
tbody th { font-weight: 400; }
th:first-child { text-align: left; }
tbody th { white-space: normal; min-width: 9rem; }
@media (max-width: 30rem) {
  table { font-size: .82rem; }
  th, td { padding-right: .5rem; }
  tbody th { min-width: 6.5rem; } }
caption { text-align: left; color: var(--soft); font-size: .9rem; padding-bottom: .25rem; }
svg { display: block; width: 100%; height: auto; max-width: 38rem; }
svg text { fill: var(--ink); font: 12px system-ui, sans-serif; }
svg .soft { fill: var(--soft); font-size: 11px; }
svg .axis { stroke: var(--line); }
svg .hollow { fill: none; stroke: var(--line); }
.three { display: flex; gap: .75rem; flex-wrap: nowrap; max-width: 38rem; margin: .75rem 0; }
.three figure { flex: 1 1 0; min-width: 0; margin: 0; }
.three img, .three svg { width: 100%; aspect-ratio: var(--shape, 1); image-rendering: pixelated; display: block;
  background: var(--card); border: 1px solid var(--line); }
details { border: 1px solid var(--line); border-radius: .4rem; padding: .5rem .75rem; margin: .5rem 0; }
summary { cursor: pointer; }
dl { display: grid; grid-template-columns: minmax(6rem, max-content) 1fr; gap: .2rem 1rem; font-size: .92rem; }
dt { color: var(--soft); overflow-wrap: anywhere; }
dd { margin: 0; overflow-wrap: anywhere; }
"""
# What the browser itself refuses then: anything from elsewhere.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


def text(value: object) -> str:
    """Any value as it is read, whatever signs it has."""
    return html.escape(str(value))


def page(title: str, lead: str, sections: Sequence[str]) -> str:
    """The whole file. title and lead: plain text."""
    return "\n".join(
        [
            "<!DOCTYPE html>",
            '<html lang="en">',
            "<head>",
            '<meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{text(title)}</title>",
            f"<style>{_STYLE}</style>",
            "</head>",
            "<body>",
            f'<header><h1>{text(title)}</h1><p class="soft">{text(lead)}</p></header>',
            "<main>",
            *(one for one in sections if one),
            "</main>",
            "</body>",
            "</html>",
            "",
        ]
    )


def section(title: str, *parts: str) -> str:
    """A heading, and what is below it; nothing where nothing is. title: plain text."""
    told = [part for part in parts if part]
    return "\n".join(["<section>", f"<h2>{text(title)}</h2>", *told, "</section>"]) if told else ""


def table(head: Sequence[str], rows: Sequence[Sequence[str]], caption: str) -> str:
    """Plain text in every cell; a row's first names it. Where it is too wide it scrolls in a box of its own."""
    first = "".join(f'<th scope="col">{text(one)}</th>' for one in head)
    body = [
        f'<tr><th scope="row">{text(row[0])}</th>{"".join(f"<td>{text(one)}</td>" for one in row[1:])}</tr>'
        for row in rows
    ]
    return "\n".join(
        [
            f'<div class="wide" role="region" tabindex="0" aria-label="{text(caption)}"><table>',
            f"<caption>{text(caption)}</caption>",
            f"<thead><tr>{first}</tr></thead>",
            "<tbody>",
            *body,
            "</tbody></table></div>",
        ]
    )


def bullets(sentences: Sequence[str]) -> str:
    return f"<ul>{''.join(f'<li>{text(one)}</li>' for one in sentences)}</ul>" if sentences else ""


def paragraph(sentence: str) -> str:
    return f"<p>{text(sentence)}</p>"


def figure(picture: str, caption: str) -> str:
    """picture: HTML. caption: plain text."""
    return f"<figure>{picture}<figcaption>{text(caption)}</figcaption></figure>" if picture else ""


def details(title: str, facts: Mapping[str, object]) -> str:
    """Names and values that are out of sight until they are asked for."""
    listed = "".join(f"<dt>{text(name)}</dt><dd>{text(value)}</dd>" for name, value in facts.items())
    return f"<details><summary>{text(title)}</summary><dl>{listed}</dl></details>" if facts else ""
