"""The report of a retraining: the table of models, the course, what was kept; as JSON, Markdown, a table, a picture."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table
from rich.text import Text

from vitfx.support.files import write_aside
from vitfx.support.pictures import has_matplotlib, png_bytes
from vitfx.support.progress import Watcher
from vitfx.support.text import digits, large, provenance_lines

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def rows(report: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Head and rows of the table: a row for each model."""
    images = report["images"]["evaluation"]
    head = ["", "test loss", "test accuracy", "KL", "parameters", "FLOPs"]
    for provider in report["models"][0]["runtimes"]:
        name = provider.removesuffix("ExecutionProvider")
        head += [f"{images:,} images, {name}", "per image", "one image alone"]
    table = []
    for one in report["models"]:
        labelled = one["accuracy"] is not None
        row = [one["name"], f"{one['loss']:.4f}" if labelled else "–", f"{one['accuracy']:.2%}" if labelled else "–"]
        row += [f"{one['kl']:.4f}", large(one["params"]), large(one["flops"])]
        for times in one["runtimes"].values():
            row += [f"{digits(times['evaluation_seconds'])} s"]
            row += [f"{digits(times[key])} ms" for key in ("ms_per_image", "ms_at_batch_1")]
        table.append(row)
    return head, table


def title_of(report: Mapping[str, Any]) -> str:
    """Which model."""
    return f"{report['settings']['model']}, retrained by vitfx"


def facts(report: Mapping[str, Any]) -> list[str]:
    """What the table does not say, in sentences."""
    settings, found, again = report["settings"], report["recovery"], report["baseline_recovery"]
    won = report["won_back"]
    return [
        *([] if won is None else [f"{won:.0%} of the accuracy that pruning cost is won back."]),
        f"Pruned: {found['sentence']}.",
        *([] if again is None else [f"Baseline, {again['steps']:,} steps by labels: {again['sentence']}."]),
        f"{found['steps']:,} steps of {settings['batch']} images in {found['seconds'] / 60:.1f} minutes "
        f"({found['precision']}), loss {settings['loss']}, {found['trained_parameters']:,} numbers trained "
        f"(only: {settings['only']}), highest learning rate {settings['lr']:g}, augmentation {found['augment']}.",
        f"Trained on {report['images']['training']:,} images, {report['images']['held_out']:,} more of the training "
        f"part decided what is kept, {report['images']['evaluation']:,} others are the test.",
        "Unpruned models as torch exports them, pruned ones after exact rewrites; all take turns.",
        *(f"{told[0].upper()}{told[1:]}." for told in found["told"]),
    ]


def to_markdown(report: Mapping[str, Any]) -> str:
    """report.md."""
    head, table = rows(report)
    lines = [
        f"# {title_of(report)}",
        "",
        f"| {' | '.join(head)} |",
        f"| --- |{' ---: |' * (len(head) - 1)}",
        *(f"| {' | '.join(row)} |" for row in table),
        "",
        *(f"- {fact}" for fact in facts(report)),
        *provenance_lines(report["settings"], report["environment"]),
    ]
    return "\n".join(lines)


def to_table(report: Mapping[str, Any]) -> Table:
    """The same table, turned, for a console."""
    head, table = rows(report)
    # As text: a path may have brackets, which rich would take for styles.
    shown = Table(title=Text(f"{report['settings']['model']}, retrained"))
    # A column for each model: a console is not wide enough for the figures side by side.
    shown.add_column("")
    for row in table:
        shown.add_column(row[0], justify="right")
    for place, title in enumerate(head[1:], 1):
        shown.add_row(title, *(row[place] for row in table))
    return shown


def draw(path: Path, report: Mapping[str, Any], watcher: Watcher) -> None:
    """Writes the course as a picture, where matplotlib is there."""
    if not has_matplotlib():
        watcher.say("the course is not drawn, for matplotlib is missing: pip install 'vitfx[plot]'")
        return
    write_aside(path, png_bytes(lambda: figure(report)))


def figure(report: Mapping[str, Any]) -> Figure:
    """Left the training loss, right the looks at held-out images."""
    from matplotlib.figure import Figure

    made = Figure(figsize=(10, 3.8), layout="constrained")
    left, right = made.subplots(1, 2)
    for key, colour, name in (("recovery", "#3b6fb6", "pruned"), ("baseline_recovery", "#c8553d", "baseline")):
        course = report[key]
        if course is None:
            continue
        losses, checks = course["losses"], course["checks"]
        last = checks[-1]["images"]
        left.plot(
            [(i + 0.5) * last / max(len(losses), 1) for i in range(len(losses))], losses, color=colour, label=name
        )
        labelled = checks[0]["accuracy"] is not None
        values = [100 * one["accuracy" if labelled else "agreement"] for one in checks]
        right.plot([one["images"] for one in checks], values, color=colour, marker=".", label=name)
        best = course["best"]
        right.plot(checks[best]["images"], values[best], "*", color="black", markersize=10)
    left.set(xlabel="images seen", ylabel="loss", title="training loss")
    title = "held-out top-1, %" if report["images"]["labelled"] else "held-out agreement with the teacher, %"
    right.set(xlabel="images seen", title=title)
    left.legend()
    right.legend()
    return made
