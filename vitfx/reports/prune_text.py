"""The report of a pruning: baseline and pruned side by side, and what the table does not say."""

from __future__ import annotations

from vitfx.deploy.precision_file import precision_fact
from vitfx.graph.kinds import words_of
from vitfx.reports.records import Facts, PrecisionRecord, PruneReport, Side
from vitfx.support.tables import Table, markdown_report
from vitfx.support.text import digits, faster

Row = tuple[str, str, str, str]
_BY_CHOICE = ("on the chosen classes", "on the others")


def to_table(report: PruneReport) -> Table:
    """Its columns: what is compared, baseline, pruned, and how they compare."""
    old, new, seconds = report["baseline"], report["pruned"], report["baseline"]["evaluation_seconds"]
    rows: list[Row] = []
    if old["loss"] is not None and new["loss"] is not None:
        rows.append(("test loss", f"{old['loss']:.4f}", f"{new['loss']:.4f}", f"{new['loss'] - old['loss']:+.4f}"))
    rows += [
        *_answers(report, new, report["kl"], report["agreement"]),
        _counted("parameters", old["params"], new["params"]),
        _counted("FLOPs an image", old["flops"], new["flops"]),
        _counted("heads", old["heads"], new["heads"]),
        _counted("MLP neurons", old["mlp_neurons"], new["mlp_neurons"]),
        _counted("sublayers", old["sublayers"], new["sublayers"]),
        (
            f"inference time, {report['images']['evaluation']} evaluation images",
            f"{digits(seconds)} s",
            f"{digits(new['evaluation_seconds'])} s",
            faster(seconds / new["evaluation_seconds"]),
        ),
        *_times(old, new, report["speedup_by_batch"]),
    ]
    if (third := report["precision"]) is not None:
        more = _answers(report, third, third["kl"], third["agreement"])
        more += _times(old, third, third["speedup_by_batch"])
        rows += [(f"{third['name']}: {what}", before, after, compared) for what, before, after, compared in more]
    title = f"{_model(report['settings'])}{_by(report['settings'])}, {report['runtime']}"
    return Table(("", "baseline", "pruned", ""), rows, title)


def _answers(report: PruneReport, new: Side | PrecisionRecord, kl: float, agreement: float | None) -> list[Row]:
    words, old = words_of(report["settings"]), report["baseline"]
    rows = _points(words.metric or "", old["accuracy"], new["accuracy"])
    parts = zip(_BY_CHOICE, old.get("accuracy_by_choice", ()), new.get("accuracy_by_choice", ()), strict=False)
    rows += [row for which, before, after in parts for row in _points(f"{words.metric} {which}", before, after)]
    rows += _points("mAP", old.get("mean_average_precision"), new.get("mean_average_precision"))
    rows.append((f"{words.divergence} from the original", "0", f"{kl:.4f}", ""))
    if agreement is not None:
        rows.append(("agreement with the original", "100.00%", f"{agreement:.2%}", ""))
    return rows


def _points(metric: str, before: float | None, after: float | None) -> list[Row]:
    if before is None or after is None:
        return []
    return [(metric, f"{before:.2%}", f"{after:.2%}", f"{100 * (after - before):+.2f} points")]


def _counted(what: str, old: int, new: int) -> Row:
    return what, f"{old:,}", f"{new:,}", f"{new / old:.3f}" if old else ""


def _times(old: Side, new: Side | PrecisionRecord, speedups: dict[str, float]) -> list[Row]:
    return [
        (
            f"ms at batch {batch}",
            digits(old["latency_ms"][batch]),
            digits(new["latency_ms"][batch]),
            faster(speedup),
        )
        for batch, speedup in speedups.items()
    ]


def title_of(report: PruneReport) -> str:
    """Which model, and by what it was pruned."""
    return f"{_model(report['settings'])}, pruned by vitfx{_by(report['settings'])}"


def facts(report: PruneReport) -> list[str]:
    """What the table does not say, in sentences."""
    images, verify = report["images"], report["verify"]
    return [
        *_circuit_fact(report),
        f"Evaluated on {images['evaluation']} images that discovery did not see "
        f"({images['skipped']} corrupt ones skipped), with {report['runtime']}.",
        f"Verified against the ablated model: {verify['float64']:.1e} in float64, {verify['relative']:.1e} in "
        f"float32; ONNX against torch {verify['onnx']:.1e}{_program_fact(verify)}; parameters and FLOPs as the plan "
        "predicts.",
        *_compensation_fact(report["compensation"]["sentence"]),
        *_deployment_fact(report["deployment"]),
        *precision_fact(report["precision"]),
        *report["notes"],
    ]


def to_markdown(report: PruneReport) -> str:
    """report.md."""
    return markdown_report(title_of(report), to_table(report), facts(report), report["settings"], report["environment"])


def _program_fact(verify: Facts) -> str:
    return f", pruned.pt2 {verify['pt2']:.1e}" if "pt2" in verify else ""


def _deployment_fact(deployment: Facts) -> list[str]:
    if not deployment.get("rewrites"):
        return []
    return [
        f"pruned.onnx is the artifact after exact rewrites ({', '.join(deployment['applied'])}), in float64 within "
        f"{deployment['float64']:.1e} of it, in the ONNX form {deployment['form']}; pruned.pt2 is the same for torch "
        "alone; baseline.onnx is as torch exports it."
    ]


def _compensation_fact(sentence: str | None) -> list[str]:
    return [] if sentence is None else [f"{sentence[0].upper()}{sentence[1:]}."]


def _circuit_fact(report: PruneReport) -> list[str]:
    settings, circuit = report["settings"], report["circuit"]
    if settings.get("goal"):
        return []
    source = f" of {circuit['source']}" if circuit["source"] else ""
    return [
        f"Circuit{source}: {circuit['removed']:,} of {circuit['edges']:,} edges of the "
        f"{circuit['granularity']} graph removed by {circuit['method']} ({settings['ablation']} ablation, "
        f"{settings['corruption']} corruption, seed {settings['seed']}), "
        f"{words_of(settings).divergence} {circuit['kl']:.4f} on {report['images']['calibration']} calibration images."
    ]


def _model(settings: Facts) -> str:
    if not (chosen := settings.get("classes")):
        return f"{settings['model']}"
    if settings.get("other"):
        return f"{settings['model']} for {len(chosen) - 1} classes and all others as one"
    return f"{settings['model']} for {len(chosen)} classes"


def _by(settings: Facts) -> str:
    """The goal or the threshold, behind the model's name."""
    if settings.get("goal"):
        missed = settings.get("missed")
        return f": {settings['goal']}" + (f" (missed: {missed})" if missed else "")
    return f" at τ = {settings['tau']:g}" if settings["remove"] is None else f" at {settings['remove']:.0%} to remove"
