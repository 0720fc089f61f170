"""What a finished command says last: the commands that are likely to come next, ready to be typed."""

from __future__ import annotations

import argparse
import math
import shlex
from collections.abc import Sequence
from pathlib import Path

from vitfx.cli.options import OF_IMAGES
from vitfx.discovery.basis.settings import Settings
from vitfx.reports.read_runs import REPORT
from vitfx.reports.records import PruneReport
from vitfx.support.files import ROUNDS

_IMAGES = ("data", "labels", "class_names")
_MODEL = ("arch", "weights", "output", "task", "trust_pickle")
_CLASSES = ("classes", "other")
_DISCOVERY = ("method", "granularity", "ablation", "corruption", "samples", "paths", "seed", "compensate", "tokens")
_MINUTES, _OF_THE_DEMO = "30", "0.5"
"""Of retraining; the demo learns no more after half of one."""
_SAME = 0.99
"""Without labels, the share of equal answers from which on nothing is left to win back."""


def after_discover(options: argparse.Namespace, circuit: Path) -> list[str]:
    """options: of `vitfx.discover`. The circuit itself says which classes were chosen."""
    more = _given(options, (*_IMAGES, *_MODEL, *OF_IMAGES))
    return _lines(
        ["vitfx.show", str(circuit)],
        ["vitfx.prune", options.model, "--circuit", str(circuit), *more],
    )


def after_prune(options: argparse.Namespace, out: Path, report: PruneReport) -> list[str]:
    """options: of `vitfx.prune`, for a goal or a circuit.

    Retraining is named where it has a loss to win back; where τ cost nothing that can be seen, one twice as large. The
    artifact itself says how images are prepared and which classes were chosen.
    """
    artifact, by_goal = str(out / "pruned.pt"), bool(report["settings"].get("goal"))
    # The circuits of goals have no scores to be drawn.
    steps = [["vitfx.show", artifact if by_goal else str(out / "circuit.json")]]
    if lost_measurably(report):
        minutes = _OF_THE_DEMO if options.model == "demo" else _MINUTES
        more = _given(options, (*_IMAGES, *_MODEL))
        steps.append(["vitfx.recover", artifact, "--teacher", options.model, *more, "--minutes", minutes])
    elif not by_goal and (tau := _threshold(options)):
        more = _given(options, (*_IMAGES, *_MODEL, *_CLASSES, *OF_IMAGES, *_DISCOVERY))
        steps.append(["vitfx.prune", options.model, *more, "--tau", f"{2 * tau:g}"])
    return _lines(*steps)


def _threshold(options: argparse.Namespace) -> float:
    """The τ that decided, 0 where something else did."""
    if options.circuit is not None or options.remove is not None or options.max_kl is not None:
        return 0.0
    return float(Settings().tau if options.tau is None else options.tau)


def lost_measurably(report: PruneReport) -> bool:
    """Whether more accuracy was lost than two standard errors, of the difference on the same images; without labels,
    whether answers changed."""
    before, after, agreement = report["baseline"]["accuracy"], report["pruned"]["accuracy"], report["agreement"]
    if agreement is None:
        return report["pruned"]["flops"] < report["baseline"]["flops"]
    if before is None or after is None:
        return agreement < _SAME
    return before - after > 2 * math.sqrt((1 - agreement) / report["images"]["evaluation"])


def after_several(out: Path) -> list[str]:
    """Of a sweep or rounds."""
    return _lines(["vitfx.report", str(out)])


def after_recover(options: argparse.Namespace, out: Path) -> list[str]:
    """options: of `vitfx.recover`. Where the pruned model still lies in its run's folder, that is compared as well."""
    origin = Path(options.model).parent
    known = [str(origin)] if any((origin / name).exists() for name in (REPORT, ROUNDS)) else []
    return _lines(["vitfx.report", *known, str(out)])


def after_optimize(options: argparse.Namespace) -> list[str]:
    """options: of `vitfx.optimize`, with images."""
    more = _given(options, (*_IMAGES, *_MODEL, *_CLASSES, *OF_IMAGES))
    return _lines(["vitfx.prune", options.model, *more])


def after_train(model: Path) -> list[str]:
    """model: the weights that were trained, whose file names the data."""
    return _lines(["vitfx.prune", str(model)])


def _lines(*commands: Sequence[str]) -> list[str]:
    return [f"next: {shlex.join(['python', '-m', *command])}" for command in commands]


def _given(options: argparse.Namespace, names: Sequence[str]) -> list[str]:
    """The options of these names as they were given; those that were not are left out."""
    words = []
    for name in names:
        value = getattr(options, name, None)
        if value is None or value is False:
            continue
        words.append(f"--{name.replace('_', '-')}")
        if value is not True:
            texts = [str(part) for part in (value if isinstance(value, list | tuple) else [value])]
            words += ["x".join(dict.fromkeys(texts))] if name == "image_size" else texts
    return words
