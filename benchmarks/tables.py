"""The benchmark's results as a person reads them."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table

from benchmarks.contenders import Contender
from benchmarks.evaluation import Evaluations
from benchmarks.measure import LatencyRow


def latency_table(rows: Sequence[LatencyRow], contenders: Sequence[Contender]) -> Table:
    """Median and spread in milliseconds; the ratio is the median over the rounds of time by the first model's."""
    table = Table(title=f"Latency in ms (ratio: time by {contenders[0].name}'s)")
    for column in ("runtime", "model"):
        table.add_column(column, overflow="fold")
    for column in ("batch", "median", "p10–p90", "ratio"):
        table.add_column(column, justify="right")
    before = None
    for row in rows:
        group = (row.runtime, row.batch)
        if before not in (None, group):
            table.add_section()
        before = group
        if row.timing is None:
            cells = [f"– {row.unavailable}", "", ""]
        else:
            timing = row.timing
            share = f"{row.ratio.paired:.3f}" if row.ratio else "–"
            cells = [f"{timing.median_ms:.2f}", f"{timing.p10_ms:.2f}–{timing.p90_ms:.2f}", share]
        table.add_row(row.runtime, row.model, str(row.batch), *cells)
    return table


def evaluation_table(evaluations: Evaluations, data: str) -> Table:
    """The table that the seed project reports, with the agreement with the first model."""
    first = next(iter(evaluations.scores.values()))
    skipped = f", {first.skipped} corrupt ones left out" if first.skipped else ""
    table = Table(
        title=f"{first.images} images of {data}{skipped}, {evaluations.runtime}, batch {evaluations.batch}",
        min_width=80,
    )
    table.add_column("model", overflow="fold")
    for column in ("test loss", "test accuracy", "agreement", "inference time", "ratio"):
        table.add_column(column, justify="right")
    for name, one in evaluations.scores.items():
        table.add_row(
            name,
            "–" if one.loss is None else f"{one.loss:.4f}",
            "–" if one.accuracy is None else f"{one.accuracy:.2%}",
            f"{one.agreement:.2%}",
            f"{one.seconds:.2f} s",
            f"{one.seconds / first.seconds:.3f}",
        )
    return table


def markdown_table(columns: Sequence[str], rows: Sequence[Sequence[str]], left: int) -> list[str]:
    """The table's lines; the column numbered `left` is aligned to the left, the others to the right."""
    rules = (" --- " if number == left else " ---: " for number in range(len(columns)))
    head = ["| " + " | ".join(columns) + " |", "|" + "|".join(rules) + "|"]
    return head + ["| " + " | ".join(cells) + " |" for cells in rows]
