"""Circuits of several tasks beside one another: how much they share, as tables, a picture and a page."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from markupsafe import Markup

from vitfx.circuits.view import place
from vitfx.reports.page import bullets, figure, page, paragraph, section, table
from vitfx.reports.records import TaskCircuit, TasksRecord
from vitfx.reports.sections import surroundings
from vitfx.support.svg import drawing, element
from vitfx.support.tables import Table
from vitfx.version import VERSION

_TITLES = {"heads": "heads", "paths": "MLP paths, by their neurons"}
_INK, _SOFT, _HEAT = "#1f2933", "#52606d", "#2a6f97"
_SHEET = f"""text {{ font: 12px sans-serif; fill: {_INK}; }} .soft {{ fill: {_SOFT}; font-size: 11px; }}
.halo {{ paint-order: stroke; stroke: #ffffff; stroke-width: 3px; }}
.heat {{ fill: {_HEAT}; }} .hollow {{ fill: none; stroke: #cfd5dc; }}"""
_EDGE, _NARROWEST, _ROW, _HEAD, _LETTER = 24, 74.0, 30, 11, 6.4
_LISTED = 40


def tasks_table(record: TasksRecord) -> Table:
    """A row for each task."""
    rows = []
    for task in record["tasks"]:
        scores = task["evaluation"] or task["fidelity"]
        (heads, all_heads), (paths, all_paths) = (task["dead"][kind] for kind in _TITLES)
        whole = scores["whole_accuracy"]
        rows.append(
            (
                task["name"],
                "all" if task["classes"] is None else str(len(task["classes"])),
                f"{task['removed']:,} of {task['edges']:,}",
                f"{heads:g} of {all_heads:g}",
                f"{paths:g} of {all_paths:g}",
                f"{task['kl']:.4f}",
                "" if scores["accuracy"] is None else f"{scores['accuracy']:.2%}",
                "" if whole is None else f"{whole:.2%}",
            )
        )
    columns = ("task", "classes", "edges removed", "dead heads", "dead paths", "KL", "top-1", "whole model")
    return Table(columns, rows, caption="Circuits are each run's first; the dead are means over seeds.")


def overlap_table(record: TasksRecord, kind: str) -> Table:
    """Jaccard of every two tasks. kind: "heads" or "paths"."""
    names = [task["name"] for task in record["tasks"]]
    rows = [(name, *map(_cell, line)) for name, line in zip(names, record["overlap"][kind], strict=True)]
    caption = (
        f"Alive {_TITLES[kind]}: of those that either task needs, the share that both need (Jaccard), and its standard "
        "deviation over seeds. A task with itself is of every two seeds."
    )
    return Table(("", *names), rows, caption=caption)


def _cell(overlap: dict[str, Any]) -> str:
    spread = overlap["spread"]
    return f"{overlap['mean']:.2f}" + ("" if spread is None else f" ± {spread:.2f}")


def heads_table(record: TasksRecord) -> Table:
    """The heads that some task needs and another does not, those first on which tasks differ most."""
    tasks = record["tasks"]
    shares = {head: [task["heads"][head] for task in tasks] for head in tasks[0]["heads"]}
    differ = {head: max(values) - min(values) for head, values in shares.items()}
    order = sorted((head for head in shares if differ[head]), key=lambda head: -differ[head])[:_LISTED]
    rows = [(head, *(f"{share:.0%}" for share in shares[head])) for head in order]
    caption = "Share of seeds with which a head lives, for heads that not all tasks need alike"
    return Table(("head", *(task["name"] for task in tasks)), rows, caption=caption)


def tasks_page(record: TasksRecord) -> str:
    """HTML that needs nothing else."""
    return page(
        f"Circuits of {len(record['tasks'])} tasks",
        f"Written by vitfx {VERSION}. This file needs no other.",
        [*tasks_sections(record), surroundings(record, "How it was made")],
    )


def tasks_sections(record: TasksRecord, prefix: str = "") -> Iterator[Markup]:
    """prefix: of the titles."""
    yield section(f"{prefix}Tasks", table(tasks_table(record)), bullets([*map(_classes, record["tasks"])]))
    for kind, title in _TITLES.items():
        yield section(f"{prefix}Overlap of {title}", table(overlap_table(record, kind)))
    yield section(f"{prefix}Overlap and heads", figure(_svg(record), "The fuller, the more; heads along the stream."))
    heads = heads_table(record)
    which = table(heads) if heads.rows else paragraph("All tasks need the same heads.")
    yield section(f"{prefix}Which heads serve which task", which)


def _classes(task: TaskCircuit) -> str:
    return f"{task['name']}: " + ("all classes" if task["classes"] is None else ", ".join(task["classes"]))


def tasks_picture(record: TasksRecord) -> str:
    """An SVG file."""
    return f'<?xml version="1.0" encoding="utf-8"?>\n{_svg(record, own_file=True)}\n'


def _svg(record: TasksRecord, *, own_file: bool = False) -> Markup:
    """Two matrices of overlaps, and under them which heads live for each task."""
    names = [task["name"] for task in record["tasks"]]
    label = _EDGE + 12 + _LETTER * max(map(len, names))
    cell = max(_NARROWEST, _LETTER * max(map(len, names)) + 8)
    size, sublayers = cell * len(names), _by_sublayer(record["tasks"][0]["heads"])
    count = sum(map(len, sublayers.values())) + len(sublayers)
    width = max(2 * label + 2 * size + _EDGE, label + _HEAD * count + _EDGE)
    top = _EDGE + 40
    background = element("rect", width="100%", height="100%", fill="#ffffff")
    parts = [element("style", Markup(_SHEET)), background] if own_file else []
    for number, (kind, title) in enumerate(_TITLES.items()):
        left = label + number * (label + size)
        parts.append(element("text", f"overlap of {title}", x=left, y=_EDGE))
        parts += _matrix(names, record["overlap"][kind], left, top, cell)
    below = top + _ROW * len(names) + 56
    parts.append(element("text", "heads alive, by share of seeds", x=label, y=below - 26))
    parts += _strips(record["tasks"], sublayers, label, below)
    alt = f"How much the circuits of {', '.join(names)} share, and which heads live in each."
    return drawing(width, below + 20.0 * len(names) + _EDGE, alt, parts, own_file=own_file)


def _matrix(
    names: Sequence[str], cells: Sequence[Sequence[dict[str, Any]]], left: float, top: float, width: float
) -> list[Markup]:
    """width: of a cell."""
    parts = []
    for row, (name, line) in enumerate(zip(names, cells, strict=True)):
        y = top + _ROW * row
        parts.append(element("text", name, x=left - 6, y=y + 19, text_anchor="end", class_="soft"))
        parts.append(
            element("text", name, x=left + width * (row + 0.5), y=top - 8, text_anchor="middle", class_="soft")
        )
        for column, cell in enumerate(line):
            parts.append(_box(left + width * column, y, width - 2, _ROW - 2, cell["mean"]))
            x = left + width * (column + 0.5) - 1
            parts.append(element("text", _cell(cell), x=x, y=y + 18, text_anchor="middle", class_="halo"))
    return parts


def _strips(tasks: Sequence[TaskCircuit], sublayers: dict[str, list[str]], left: float, top: float) -> list[Markup]:
    """A line of heads for each task, sublayer by sublayer."""
    parts, x = [], left
    for sublayer, heads in sublayers.items():
        parts.append(element("text", sublayer, x=x, y=top - 6, class_="soft"))
        for head in heads:
            for row, task in enumerate(tasks):
                share = task["heads"][head]
                title = f"layer {place(sublayer)[0]}, {head}, {task['name']}: {share:.0%}"
                parts.append(_box(x, top + 20.0 * row, _HEAD - 1, 16, share, title))
            x += _HEAD
        x += _HEAD
    for row, task in enumerate(tasks):
        parts.append(element("text", task["name"], x=left - 6, y=top + 20 * row + 12, text_anchor="end", class_="soft"))
    return parts


def _box(x: float, y: float, width: float, height: float, shade: float, title: str = "") -> Markup:
    """title: shown to a pointer that rests on it."""
    box = {"x": x, "y": y, "width": width, "height": height, "rx": 2}
    shown = element("title", title) if title else ""
    filled = element("rect", shown, class_="heat", fill_opacity=f"{shade:.3f}", **box)
    return filled + element("rect", shown, class_="hollow", **box)


def _by_sublayer(heads: dict[str, float]) -> dict[str, list[str]]:
    sublayers: dict[str, list[str]] = {}
    for head in heads:
        sublayers.setdefault(head.partition(".")[0], []).append(head)
    return sublayers
