"""What `benchmarks.runtimes` measured, for the console."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.contenders import Contender
from benchmarks.evaluation import Evaluations
from benchmarks.measure import LatencyRow
from vitfx.support.tables import Table
from vitfx.support.text import percent


def latency_table(rows: Sequence[LatencyRow], contenders: Sequence[Contender]) -> Table:
    """Median and spread in milliseconds; the ratio is the median over the rounds of time by the first model's."""

    def cells(row: LatencyRow) -> list[str]:
        if row.timing is None:
            return ["", "", "", f"– {row.unavailable}"]
        timing, ratio = row.timing, row.ratio
        spread = f"{timing.p10_ms:.2f}–{timing.p90_ms:.2f}"
        return [f"{timing.median_ms:.2f}", spread, f"{ratio.paired:.3f}" if ratio else "–", ""]

    return Table(
        ("runtime", "model", "batch", "median", "p10–p90", "ratio", ""),
        [(row.runtime, row.model, str(row.batch), *cells(row)) for row in rows],
        f"Latency in ms (ratio: time by {contenders[0].name}'s)",
        left=(0, 1, 6),
        groups=[(row.runtime, row.batch) for row in rows],
    )


def evaluation_table(evaluations: Evaluations, data: str) -> Table:
    """Loss, accuracy and time over the test images, with the agreement with the first model."""
    first = next(iter(evaluations.scores.values()))
    skipped = f", {first.skipped} corrupt ones left out" if first.skipped else ""
    return Table(
        ("model", "test loss", "test accuracy", "agreement", "inference time", "ratio"),
        [
            (
                name,
                "–" if scores.loss is None else f"{scores.loss:.4f}",
                percent(scores.accuracy),
                percent(scores.agreement),
                f"{scores.seconds:.2f} s",
                f"{scores.seconds / first.seconds:.3f}",
            )
            for name, scores in evaluations.scores.items()
        ],
        f"{first.images} images of {data}{skipped}, {evaluations.runtime}, batch {evaluations.batch}",
    )
