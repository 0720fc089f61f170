"""What `benchmarks.discovery` found, as a person reads it."""

from __future__ import annotations

from typing import Any

from rich.table import Table


def tables(record: dict[str, Any]) -> list[Table]:
    return [_times(record), _agreement(record)]


def _times(record: dict[str, Any]) -> Table:
    """The last column is the least that a loop of a forward pass an edge could take."""
    settings, whole, times = record["settings"], record["whole_run"], record["times"]
    edges = f"{record['edges']:,} edges, {len(record['samples'])} sampled"
    images = f"τ = {settings['tau']:g}, {settings['samples']} images"
    table = Table(title=f"{settings['granularity']} graph, {edges}, {images}", min_width=80)
    table.add_column("")
    for column in (whole["method"], "naive loop", "one forward pass"):
        table.add_column(column, justify="right")
    rows = [times["engine"], times["naive"], times["plain_forward"]]
    table.add_row("seconds an edge: median", *("–" if one is None else f"{one['median']:.4f}" for one in rows))
    table.add_row("  p10–p90", *("–" if one is None else f"{one['p10']:.4f}–{one['p90']:.4f}" for one in rows))
    runs = (whole, record["naive_whole_run"], record["forward_pass_an_edge"])
    table.add_row("  whole run by edges", *(f"{one['seconds'] / record['edges']:.4f}" for one in runs))
    passes, unit = times["forward_pass_equivalents"], record["forward_pass_an_edge"]["seconds"]
    cells = [f"{passes[name]:.3f}" if name in passes else "–" for name in ("engine", "naive")]
    table.add_row("passes an edge: median", *cells, "1")
    table.add_row("  whole run by edges", *(f"{one['seconds'] / unit:.3f}" for one in runs))
    table.add_row("whole run", *(_long(one["seconds"]) for one in runs))
    table.add_row("", *(one["how"] for one in runs))
    table.add_section()
    medians, paired = times["ratio_of_medians"], times["paired_ratio"]
    table.add_row("naive by method: medians", "–" if medians is None else f"{medians['value']:.1f}×", "", "")
    table.add_row("  p10–p90 of pairs", "–" if paired is None else f"{paired['p10']:.1f}–{paired['p90']:.1f}×", "", "")
    table.add_row("  whole run", f"{record['whole_ratio']:.1f}×", "", "")
    return table


def _agreement(record: dict[str, Any]) -> Table:
    table = Table(title="Decisions that are the naive loop's at the same state", min_width=80)
    table.add_column("edges")
    for column in ("sampled", "equal", "share", "95 % (Wilson)"):
        table.add_column(column, justify="right")
    # A circuit that a ranking method found is asked about with ACDC's settings, but its decisions are not ACDC's.
    decided = record["settings"]["method"] if record["circuit"] is None else "circuit"
    rows = [(f"{decided}: {name}", one) for name, one in record["agreement"].items()]
    engine = record["engine_agreement"]
    if engine is not None:
        difference = engine["max_kl_difference"]
        label = "" if difference is None else f", KL off by {difference:.0e} at most"
        rows.append((f"{record['whole_run']['method']}'s trials{label}", engine["all"]))
    for name, one in rows:
        low, high = f"{one['low']:.1%}", f"{one['high']:.1%}"
        table.add_row(name, str(one["edges"]), str(one["agreeing"]), f"{one['share']:.1%}", f"{low}–{high}")
    return table


def _long(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
