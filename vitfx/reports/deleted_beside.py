"""What plans of one model delete, side by side: what dies for one task, and what dies for another or for all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from markupsafe import Markup

from passes.plan import DeletionPlan
from vitfx.circuits.view import place
from vitfx.reports.page import section, table
from vitfx.support.tables import Table

_LISTED = 24
"""Units of which a cell gives the numbers, and not only how many they are."""


def deleted_beside(plans: Sequence[tuple[str, DeletionPlan]], title: str) -> Markup:
    """A table of sublayers by plans; nothing where there are fewer than two plans, or they are not of one model.

    plans: each with the name of its run
    """
    totals = _totals([plan for _, plan in plans])
    if len(plans) < 2 or totals is None:
        return Markup("")
    deleted = [{deletion.name: frozenset(deletion.units) for deletion in plan.deletions} for _, plan in plans]
    rows = []
    for name in sorted(totals, key=place):
        kind, total = totals[name]
        units = [of.get(name, frozenset()) for of in deleted]
        shown = [_cell(each, kind, total) for each in (*units, frozenset.intersection(*units))]
        rows.append([name, *shown])
    columns = ["", *(name for name, _ in plans), "in all of them"]
    return section(title, table(Table(columns, rows, caption=_caption(deleted, totals), left=range(len(columns)))))


def _totals(plans: Sequence[DeletionPlan]) -> Mapping[str, tuple[str, int]] | None:
    """By sublayer the kind of its units and how many it has; None where the plans disagree."""
    totals: dict[str, tuple[str, int]] = {}
    for deletion in (deletion for plan in plans for deletion in plan.deletions):
        if totals.setdefault(deletion.name, (deletion.kind, deletion.total)) != (deletion.kind, deletion.total):
            return None
    return totals or None


def _cell(units: frozenset[int], kind: str, total: int) -> str:
    if not units:
        return "–"
    if len(units) == total:
        return f"all of {total:,} {kind}s"
    listed = f": {', '.join(map(str, sorted(units)))}" if len(units) <= _LISTED else ""
    return f"{len(units):,} of {total:,} {kind}s{listed}"


def _caption(deleted: Sequence[Mapping[str, frozenset[int]]], totals: Mapping[str, tuple[str, int]]) -> str:
    sentences = []
    for kind in sorted({kind for kind, _ in totals.values()}):
        units = [
            {(name, unit) for name, of in each.items() if totals[name][0] == kind for unit in of} for each in deleted
        ]
        shared, any_of_them = len(set.intersection(*units)), len(set.union(*units))
        sentences.append(f"of {any_of_them:,} {kind}s that any run deletes, all delete {shared:,}")
    return f"Deleted units, by sublayer; {', and '.join(sentences)}"
