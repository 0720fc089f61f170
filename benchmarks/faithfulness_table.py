"""What `benchmarks.faithfulness` found, for the terminal, as Markdown, and as a picture."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import cycle
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Any

from benchmarks.curves import DIVERGENCE, LOGITS, MAGNITUDE, SIGNED, faithfulness
from benchmarks.rank_checks import HEADS, PATHS
from vitfx.support.tables import Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Row = dict[str, Any]
Value = Callable[[Row], float]
METRICS = {LOGITS: "logit difference", DIVERGENCE: "KL"}
_PANELS = {SIGNED: "signed order: CPR is the area below", MAGNITUDE: "by magnitude: CMD is the area to 1"}
_TICKS = (0.001, 0.01, 0.1, 1)


def table(record: dict[str, Any]) -> Table:
    """Means over seeds, with their standard deviation; the best CPR first."""
    groups = sorted(_by_method(record).items(), key=lambda group: -fmean(map(_area(LOGITS, "CPR"), group[1])))
    truth = record["asked"]["truth"] is not None
    columns = ["method", *(f"{area}, {name}" for name in METRICS.values() for area in ("CPR", "CMD"))]
    columns += [*(["AUROC"] if truth else []), "Spearman, heads / paths", "ranked in"]
    return Table(columns, [_cells(method, rows, truth) for method, rows in groups], _title(record))


def markdown(record: dict[str, Any]) -> str:
    """A title, the table, and what its columns are."""
    asked, rows = record["asked"], list(record["rows"].values())
    machine, seeds = asked["environment"], len({row["seed"] for row in rows})
    thresholds = ", ".join(f"{tau:g}" for tau in asked["taus"])
    auroc = "" if asked["truth"] is None else "AUROC is of the planted circuit's edges. "
    return "\n".join(
        [
            _title(record),
            "",
            *table(record).to_markdown(),
            "",
            f"Means over {seeds} seeds of calibration images ± their standard deviation. Of CPR more is better, of CMD "
            "less. The logit difference is that of the true class and the counterfactual image's; KL is from the whole "
            "model. What follows a method's name is the metric that it differentiates in place of KL. acdc and "
            f"eap-acdc rank by runs at τ = {thresholds}. {auroc}Spearman's correlation is with what removing each of "
            f"{asked['exact']} edges of heads alone costs in KL, and with that of as many of MLP paths. A ranking's "
            f"time is one seed's, on {machine['device']} ({machine['cpu']}, {machine['threads']} threads).",
            "",
        ]
    )


def draw(record: dict[str, Any]) -> Figure:
    """f over k, on a logarithmic axis: a line through the means over seeds, in a band from least to greatest. A method
    with a metric of its own is dashed in the method's colour."""
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    groups, fractions = _by_method(record), record["asked"]["fractions"]
    figure = Figure(figsize=(13, 8.5), layout="constrained")
    panels = figure.subplots(len(METRICS), len(_PANELS), sharex=True, sharey="row")
    names = list(dict.fromkeys(method.partition(":")[0] for method in groups))
    colours = dict(zip(names, cycle(colormaps["tab10"].colors)))  # type: ignore[attr-defined]
    for of_metric, (metric, title_of_metric) in zip(panels, METRICS.items(), strict=True):
        for panel, (order, title) in zip(of_metric, _PANELS.items(), strict=True):
            for method, rows in groups.items():
                name, _, differentiated = method.partition(":")
                curves = list(zip(*(_faithfulness(row, order, metric) for row in rows), strict=True))
                style = {"color": colours[name], "linestyle": "--" if differentiated else "-"}
                panel.plot(fractions, list(map(fmean, curves)), label=method, linewidth=1.6, **style)
                panel.fill_between(
                    fractions,
                    list(map(min, curves)),
                    list(map(max, curves)),
                    color=colours[name],
                    alpha=0.1,
                    linewidth=0,
                )
            for level in (0, 1):
                panel.axhline(level, color="#888888", linewidth=0.7)
            panel.set(xscale="log", xticks=_TICKS, xticklabels=map("{:g} %".format, (100 * tick for tick in _TICKS)))
            panel.set(title=f"{title_of_metric}, {title}", ylabel="f(k)" if panel is of_metric[0] else "")
            if metric == DIVERGENCE:
                # A circuit can be much further from the model than nothing is.
                panel.set(xlabel="k, share of the edges", ylim=(max(-1.0, panel.get_ylim()[0]), 1.1))
    figure.legend(*panels[0][0].get_legend_handles_labels(), loc="outside right center", frameon=False)
    figure.suptitle(_title(record))
    return figure


def _faithfulness(row: Row, order: str, metric: str) -> list[float]:
    return faithfulness(row[order]["values"][metric], row["whole"][metric], row["empty"][metric])


def _by_method(record: dict[str, Any]) -> dict[str, list[Row]]:
    groups: dict[str, list[Row]] = {}
    for row in sorted(record["rows"].values(), key=lambda row: int(row["seed"])):
        groups.setdefault(row["method"], []).append(row)
    return groups


def _title(record: dict[str, Any]) -> str:
    asked, settings = record["asked"], record["asked"]["settings"]
    edges = next(iter(record["rows"].values()))["edges"]
    return (
        f"{asked['model']['source']}, {settings['granularity']} graph of {edges:,} edges, {settings['ablation']} "
        f"ablation, {settings['samples']} calibration and {asked['data']['answered_rightly']} evaluation images"
    )


def _area(metric: str, area: str) -> Value:
    return lambda row: float(row["areas"][metric][area])


def _cells(method: str, rows: Sequence[Row], truth: bool) -> list[str]:
    values = [_area(metric, area) for metric in METRICS for area in ("CPR", "CMD")]
    values += [lambda row: float(row["auroc"])] if truth else []
    spreads = [_spread(list(map(value, rows))) for value in values]
    correlations = " / ".join(_correlation(rows, kind) for kind in (HEADS, PATHS))
    return [method, *spreads, correlations, f"{fmean(row['seconds'] for row in rows):.1f} s"]


def _correlation(rows: Sequence[Row], kind: str) -> str:
    defined = [row["spearman"][kind] for row in rows if row["spearman"][kind] is not None]
    return f"{fmean(defined):.2f}" if defined else "–"


def _spread(values: Sequence[float]) -> str:
    return f"{fmean(values):.3f}" + (f" ± {stdev(values):.3f}" if len(values) > 1 else "")
