"""What `benchmarks.discovery` found, as a person reads it."""

from __future__ import annotations

from typing import Any

from vitfx.support.tables import Table


def tables(record: dict[str, Any]) -> list[Table]:
    return [_times(record), _agreement(record)]


def _times(record: dict[str, Any]) -> Table:
    """The last column is the least that a loop of a forward pass an edge could take."""
    settings, whole, times = record["settings"], record["whole_run"], record["times"]
    medians, paired = times["ratio_of_medians"], times["paired_ratio"]
    passes, unit = times["forward_pass_equivalents"], record["forward_pass_an_edge"]["seconds"]
    edges = [times["engine"], times["naive"], times["plain_forward"]]
    runs = (whole, record["naive_whole_run"], record["forward_pass_an_edge"])
    by_columns = [
        ("seconds an edge: median", *("–" if edge is None else f"{edge['median']:.4f}" for edge in edges)),
        ("  p10–p90", *("–" if edge is None else f"{edge['p10']:.4f}–{edge['p90']:.4f}" for edge in edges)),
        ("  whole run by edges", *(f"{run['seconds'] / record['edges']:.4f}" for run in runs)),
        (
            "passes an edge: median",
            *(f"{passes[name]:.3f}" if name in passes else "–" for name in ("engine", "naive")),
            "1",
        ),
        ("  whole run by edges", *(f"{run['seconds'] / unit:.3f}" for run in runs)),
        ("whole run", *(_long(run["seconds"]) for run in runs)),
        ("", *(run["how"] for run in runs)),
    ]
    ratios = [
        ("naive by method: medians", "–" if medians is None else f"{medians['value']:.1f}×", "", ""),
        ("  p10–p90 of pairs", "–" if paired is None else f"{paired['p10']:.1f}–{paired['p90']:.1f}×", "", ""),
        ("  whole run", f"{record['whole_ratio']:.1f}×", "", ""),
    ]
    return Table(
        ("", whole["method"], "naive loop", "one forward pass"),
        [*by_columns, *ratios],
        f"{settings['granularity']} graph, {record['edges']:,} edges, {len(record['samples'])} sampled, "
        f"τ = {settings['tau']:g}, {settings['samples']} images",
        groups=[0] * len(by_columns) + [1] * len(ratios),
    )


def _agreement(record: dict[str, Any]) -> Table:
    # A circuit that a ranking method found is asked about with ACDC's settings, but its decisions are not ACDC's.
    decided = record["settings"]["method"] if record["circuit"] is None else "circuit"
    shares = {f"{decided}: {name}": share for name, share in record["agreement"].items()}
    engine = record["engine_agreement"]
    if engine is not None:
        difference = engine["max_kl_difference"]
        label = "" if difference is None else f", KL off by {difference:.0e} at most"
        shares[f"{record['whole_run']['method']}'s trials{label}"] = engine["all"]
    rows = [
        (
            name,
            str(share["edges"]),
            str(share["agreeing"]),
            f"{share['share']:.1%}",
            f"{share['low']:.1%}–{share['high']:.1%}",
        )
        for name, share in shares.items()
    ]
    title = "Decisions that are the naive loop's at the same state"
    return Table(("edges", "sampled", "equal", "share", "95 % (Wilson)"), rows, title)


def _long(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
