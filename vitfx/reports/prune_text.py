"""What a person looks at: baseline and pruned side by side, as JSON, as Markdown, on the console."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.table import Table
from rich.text import Text

from vitfx.deploy.precision_file import precision_fact
from vitfx.support.text import digits, provenance_lines

Row = tuple[str, str, str, str]


def rows(report: Mapping[str, Any]) -> list[Row]:
    """The table's rows: what, baseline, pruned, and how they compare."""
    old, new = report["baseline"], report["pruned"]
    table: list[Row] = []
    if old["accuracy"] is not None:
        table.append(("test loss", f"{old['loss']:.4f}", f"{new['loss']:.4f}", f"{new['loss'] - old['loss']:+.4f}"))
        points = 100 * (new["accuracy"] - old["accuracy"])
        table.append(("top-1", f"{old['accuracy']:.2%}", f"{new['accuracy']:.2%}", f"{points:+.2f} points"))
    table.append(("KL from the original", "0", f"{report['kl']:.4f}", ""))
    table.append(("agreement with the original", "100.00%", f"{report['agreement']:.2%}", ""))
    for key, title in (
        ("params", "parameters"),
        ("flops", "FLOPs an image"),
        ("heads", "heads"),
        ("mlp_neurons", "MLP neurons"),
        ("sublayers", "sublayers"),
    ):
        part = f"{new[key] / old[key]:.3f}" if old[key] else ""
        table.append((title, f"{old[key]:,}", f"{new[key]:,}", part))
    seconds = (old["evaluation_seconds"], new["evaluation_seconds"])
    images = report["images"]["evaluation"]
    title = f"inference time, {images} evaluation images"
    table.append((title, f"{digits(seconds[0])} s", f"{digits(seconds[1])} s", _faster(seconds[0] / seconds[1])))
    for batch, speedup in report["speedup_by_batch"].items():
        times = (old["latency_ms"][batch], new["latency_ms"][batch])
        table.append((f"ms at batch {batch}", digits(times[0]), digits(times[1]), _faster(speedup)))
    return table + _precision_rows(report)


def _precision_rows(report: Mapping[str, Any]) -> list[Row]:
    """The third file against the baseline."""
    old, new = report["baseline"], report.get("precision")
    if new is None:
        return []
    table: list[Row] = []
    name = new["name"]
    if old["accuracy"] is not None:
        points = 100 * (new["accuracy"] - old["accuracy"])
        table.append((f"{name}: top-1", f"{old['accuracy']:.2%}", f"{new['accuracy']:.2%}", f"{points:+.2f} points"))
    table.append((f"{name}: KL from the original", "0", f"{new['kl']:.4f}", ""))
    table.append((f"{name}: agreement with the original", "100.00%", f"{new['agreement']:.2%}", ""))
    for batch, speedup in new["speedup_by_batch"].items():
        times = (old["latency_ms"][batch], new["latency_ms"][batch])
        table.append((f"{name}: ms at batch {batch}", digits(times[0]), digits(times[1]), _faster(speedup)))
    return table


def _faster(speedup: float) -> str:
    return f"{speedup:.2f}× faster" if speedup >= 1 else f"{1 / speedup:.2f}× slower"


def title_of(report: Mapping[str, Any]) -> str:
    """Which model, by what it was pruned."""
    return f"{report['settings']['model']}, pruned by vitfx at {_threshold(report['settings'])}"


def facts(report: Mapping[str, Any]) -> list[str]:
    """What the table does not say, in sentences."""
    verify = report["verify"]
    return [
        *_circuit_line(report),
        f"Evaluated on {report['images']['evaluation']} images that discovery did not see "
        f"({report['images']['skipped']} corrupt ones skipped), with {report['runtime']}.",
        f"Verified against the ablated model: {verify['float64']:.1e} in float64, {verify['relative']:.1e} in "
        f"float32; ONNX against torch {verify['onnx']:.1e}; parameters and FLOPs as the plan predicts.",
        *_compensation(report["compensation"]["sentence"]),
        *_deployment(report["deployment"]),
        *precision_fact(report.get("precision")),
        *report["notes"],
    ]


def to_markdown(report: Mapping[str, Any]) -> str:
    """report.md."""
    lines = [
        f"# {title_of(report)}",
        "",
        "| | baseline | pruned | |",
        "| --- | ---: | ---: | ---: |",
        *(f"| {' | '.join(row)} |" for row in rows(report)),
        "",
        *(f"- {fact}" for fact in facts(report)),
        *provenance_lines(report["settings"], report["environment"]),
    ]
    return "\n".join(lines)


def _deployment(made: Mapping[str, Any]) -> list[str]:
    if not made.get("rewrites"):
        return []
    return [
        f"pruned.onnx is the artifact after exact rewrites ({', '.join(made['applied'])}), in float64 within "
        f"{made['float64']:.1e} of it, in the ONNX form {made['form']}; baseline.onnx is as torch exports it."
    ]


def _compensation(sentence: str | None) -> list[str]:
    return [] if sentence is None else [f"{sentence[0].upper()}{sentence[1:]}."]


def _circuit_line(report: Mapping[str, Any]) -> list[str]:
    settings, circuit = report["settings"], report["circuit"]
    if settings.get("goal"):
        return []
    source = f" of {circuit['source']}" if circuit["source"] else ""
    return [
        f"Circuit{source}: {circuit['removed']:,} of {circuit['edges']:,} edges of the "
        f"{circuit['granularity']} graph removed by {circuit['method']} ({settings['ablation']} ablation, "
        f"{settings['corruption']} corruption, seed {settings['seed']}), "
        f"KL {circuit['kl']:.4f} on {report['images']['calibration']} calibration images."
    ]


def _threshold(settings: Mapping[str, Any]) -> str:
    if settings.get("goal"):
        missed = settings.get("missed")
        return f"{settings['goal']}" + (f" (missed: {missed})" if missed else "")
    return f"τ = {settings['tau']:g}" if settings["remove"] is None else f"{settings['remove']:.0%} to remove"


def to_table(report: Mapping[str, Any]) -> Table:
    """The same table for a console."""
    # As text: a path may have brackets, which rich would take for styles.
    table = Table(title=Text(f"{report['settings']['model']} at {_threshold(report['settings'])}, {report['runtime']}"))
    table.add_column("")
    for title in ("baseline", "pruned", ""):
        table.add_column(title, justify="right")
    for row in rows(report):
        table.add_row(*row)
    return table
