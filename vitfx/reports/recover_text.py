"""The report of a retraining: the table of models, what the table does not say, and the course as a picture."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from vitfx.graph.kinds import words_of
from vitfx.reports.records import RecoverReport
from vitfx.support.files import write_aside
from vitfx.support.pictures import has_matplotlib, png_bytes
from vitfx.support.progress import Watcher
from vitfx.support.tables import Table, markdown_report
from vitfx.support.text import digits, large, percent

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def model_table(report: RecoverReport) -> Table:
    """A row for each model."""
    words = words_of(report["settings"])
    accuracy = "accuracy" if words.metric in ("top-1", None) else words.metric
    columns = ["", "test loss", f"test {accuracy}", words.divergence, "parameters", "FLOPs"]
    for provider in report["models"][0]["runtimes"]:
        runtime = provider.removesuffix("ExecutionProvider")
        columns += [f"{report['images']['evaluation']:,} images, {runtime}", "per image", "one image alone"]
    rows = []
    for model in report["models"]:
        row = [model["name"], "–" if model["loss"] is None else f"{model['loss']:.4f}", percent(model["accuracy"])]
        row += [f"{model['kl']:.4f}", large(model["params"]), large(model["flops"])]
        for times in model["runtimes"].values():
            row += [f"{digits(times['evaluation_seconds'])} s"]
            row += [f"{digits(times['ms_per_image'])} ms", f"{digits(times['ms_at_batch_1'])} ms"]
        rows.append(row)
    return Table(columns, rows)


def to_table(report: RecoverReport) -> Table:
    """The same table, turned: a console is not wide enough for all figures side by side."""
    table = model_table(report)
    names, *figures = zip(table.columns, *table.rows, strict=True)
    return Table(names, figures, f"{report['settings']['model']}, retrained")


def title_of(report: RecoverReport) -> str:
    """Which model."""
    return f"{report['settings']['model']}, retrained by vitfx"


def facts(report: RecoverReport) -> list[str]:
    """What the table does not say, in sentences."""
    settings, course, baseline = report["settings"], report["recovery"], report["baseline_recovery"]
    won, images = report["won_back"], report["images"]
    rate = course.get("highest_rate", settings["lr"])
    return [
        *([] if won is None else [f"{won:.0%} of the accuracy that pruning cost is won back."]),
        *_by_choice(report),
        f"Pruned: {course['sentence']}.",
        *([] if baseline is None else [f"Baseline, {baseline['steps']:,} steps by labels: {baseline['sentence']}."]),
        f"{course['steps']:,} steps of {settings['batch']} images in {course['seconds'] / 60:.1f} minutes "
        f"({course['precision']}), loss {settings['loss']}, {course['trained_parameters']:,} numbers trained "
        f"(only: {settings['only']}), highest learning rate {rate:.2g}, augmentation {course['augment']}.",
        f"Trained on {images['training']:,} images; {images['held_out']:,} more of the training part decided what is "
        f"kept; {images['evaluation']:,} others are the test.",
        "Unpruned models are as torch exports them, pruned ones after exact rewrites; all were timed in turns.",
        *(f"{sentence[0].upper()}{sentence[1:]}." for sentence in course["told"]),
    ]


def _by_choice(report: RecoverReport) -> list[str]:
    """Where all classes that were not chosen have a logit."""
    shares = {model["name"]: model["accuracy_by_choice"] for model in report["models"] if "accuracy_by_choice" in model}
    parts = ", ".join(f"{name} {' and '.join(map(percent, parts))}" for name, parts in shares.items())
    return [f"Top-1 on the chosen classes and on the others: {parts}."] if parts else []


def to_markdown(report: RecoverReport) -> str:
    """report.md."""
    return markdown_report(
        title_of(report), model_table(report), facts(report), report["settings"], report["environment"]
    )


def draw(path: Path, report: RecoverReport, watcher: Watcher) -> None:
    """Writes the course as a picture, where matplotlib is installed."""
    if not has_matplotlib():
        watcher.say("the course is not drawn, because matplotlib is missing: pip install 'vitfx[plot]'")
        return
    write_aside(path, png_bytes(lambda: figure(report)))


def figure(report: RecoverReport) -> Figure:
    """Left the training loss, right the looks at held-out images."""
    from matplotlib.figure import Figure

    title, key, factor = _judged(report)
    figure = Figure(figsize=(10, 3.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    for name, colour, course in (
        ("pruned", "#3b6fb6", report["recovery"]),
        ("baseline", "#c8553d", report["baseline_recovery"]),
    ):
        if course is None:
            continue
        losses, checks, best = course["losses"], course["checks"], course["best"]
        width = checks[-1]["images"] / max(len(losses), 1)
        left.plot([(index + 0.5) * width for index in range(len(losses))], losses, color=colour, label=name)
        scores = [factor * (check[key] or 0.0) for check in checks]
        right.plot([check["images"] for check in checks], scores, color=colour, marker=".", label=name)
        right.plot(checks[best]["images"], scores[best], "*", color="black", markersize=10)
    left.set(xlabel="images seen", ylabel="loss", title="training loss")
    right.set(xlabel="images seen", title=title)
    left.legend()
    right.legend()
    return figure


def _judged(report: RecoverReport) -> tuple[str, Literal["accuracy", "agreement", "kl"], int]:
    """What looks at held-out images are drawn by: its name, its key in their records, and a factor."""
    words, first = words_of(report["settings"]), report["recovery"]["checks"][0]
    if first["accuracy"] is not None:
        return f"held-out {words.metric}, %", "accuracy", 100
    if first["agreement"] is not None:
        return "held-out agreement with the teacher, %", "agreement", 100
    return f"held-out {words.divergence} from the teacher", "kl", 1
