"""What a finished command says last: the commands that are likely to come next, ready to be typed."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Sequence
from pathlib import Path

from vitfx.cli.options import OF_IMAGES
from vitfx.reports.read_runs import REPORT
from vitfx.support.files import ROUNDS

_IMAGES = ("data", "labels", "class_names")
_MODEL = ("arch", "weights", "output", "task", "trust_pickle")
_CLASSES = ("classes", "other")
_MINUTES, _OF_THE_DEMO = "30", "0.5"
"""Of retraining; the demo learns no more after half of one."""


def after_discover(options: argparse.Namespace, circuit: Path) -> list[str]:
    """options: of `vitfx.discover`. The circuit itself says which classes were chosen."""
    more = _given(options, (*_IMAGES, *_MODEL, *OF_IMAGES))
    return _lines(
        ["vitfx.show", str(circuit)],
        ["vitfx.prune", options.model, "--circuit", str(circuit), *more],
    )


def after_prune(options: argparse.Namespace, out: Path, *, scored: bool, smaller: bool) -> list[str]:
    """options: of `vitfx.prune`. scored: whether its circuit has scores, as those of goals do not, to be drawn.
    smaller: whether anything was deleted or merged, which retraining can make up for.

    The artifact itself says how images are prepared and which classes were chosen.
    """
    artifact = str(out / "pruned.pt")
    steps = [["vitfx.show", str(out / "circuit.json") if scored else artifact]]
    if smaller:
        minutes = _OF_THE_DEMO if options.model == "demo" else _MINUTES
        more = _given(options, (*_IMAGES, *_MODEL))
        steps.append(["vitfx.recover", artifact, "--teacher", options.model, *more, "--minutes", minutes])
    return _lines(*steps)


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
