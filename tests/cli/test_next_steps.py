"""What a command says last can be typed as it stands, and opens the same model and images."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import pytest

from tests.support.command_lines import module_and_arguments, parse
from vitfx.cli.next_steps import (
    after_discover,
    after_optimize,
    after_prune,
    after_recover,
    after_several,
    after_train,
    lost_measurably,
)

IMAGES = {"data": "my photos", "labels": Path("it's.csv"), "class_names": Path("names.txt")}
MODEL = {"arch": "timm:x", "weights": "ema", "output": "logits", "task": "classes", "trust_pickle": True}
SIZE = {
    "image_size": (224, 192), "mean": [0.48145466, 0.4578275, 0.40821073], "std": [0.26862954], "crop_pct": 0.9,
    "interpolation": "bicubic",
}  # fmt: skip
GIVEN = (
    "'my model.pt' --data 'my photos' --labels \"it's.csv\" --class-names names.txt --arch timm:x --weights ema "
    "--output logits --task classes --trust-pickle --image-size 224x192 --mean 0.48145466 0.4578275 0.40821073 "
    "--std 0.26862954 --crop-pct 0.9 --interpolation bicubic"
)


def commands(lines: list[str]) -> list[str]:
    assert all(line.startswith("next: python -m vitfx.") for line in lines)
    return [line.removeprefix("next: ") for line in lines]


def check(line: str, **expected: object) -> None:
    """The command takes the line, and reads this from it."""
    options = vars(parse(line))
    assert {name: options[name] for name in expected} == expected


def test_a_circuit_is_drawn_and_pruned_by_on_the_same_images() -> None:
    options = parse(f"python -m vitfx.discover {GIVEN} --classes cat,dog")
    show, prune = commands(after_discover(options, Path("a circuit.json")))
    assert show == "python -m vitfx.show 'a circuit.json'"
    check(prune, model="my model.pt", circuit=Path("a circuit.json"), classes=None, **IMAGES, **MODEL, **SIZE)


def report(lost: float | None, *, agreement: float | None = 0.96, images: int = 400, goal: str | None = None) -> Any:
    """lost: of the accuracy; None without labels. 96 % of 400 images make a standard error of one point."""
    before, after = (None, None) if lost is None else (0.9, 0.9 - lost)
    return {
        "baseline": {"accuracy": before, "flops": 2}, "pruned": {"accuracy": after, "flops": 1},
        "agreement": agreement, "images": {"evaluation": images}, "settings": {"goal": goal},
    }  # fmt: skip


def test_a_pruned_model_is_looked_at_and_retrained() -> None:
    options = parse(f"python -m vitfx.prune {GIVEN} --classes cat,dog")
    show, recover = commands(after_prune(options, Path("my small"), report(0.03)))
    check(show, model="my small/circuit.json")
    known = {"model": "my small/pruned.pt", "teacher": "my model.pt", "minutes": 30.0, "classes": None}
    check(recover, **known, **IMAGES, **MODEL)


def test_where_tau_cost_nothing_a_larger_one_comes_next() -> None:
    options = parse(f"python -m vitfx.prune {GIVEN} --classes cat,dog --method eap --samples 64 --tau 0.001")
    show, prune = commands(after_prune(options, Path("small"), report(0.01)))
    check(show, model="small/circuit.json")
    check(prune, tau=0.002, method="eap", samples=64, classes="cat,dog", **IMAGES, **MODEL, **SIZE)
    assert commands(after_prune(parse("python -m vitfx.prune demo"), Path("s"), report(0)))[1].endswith("--tau 0.1")
    for other in ("--tau 0", "--circuit c.json", "--max-kl 0.1", "--method eap --remove 0.5"):
        assert commands(after_prune(parse(f"python -m vitfx.prune demo {other}"), Path("small"), report(0))) == [show]


def test_only_what_makes_sense_comes_after_a_goal() -> None:
    options = parse("python -m vitfx.prune demo --max-drop 1")
    show, recover = commands(after_prune(options, Path("small"), report(0.03, goal="1.5× as fast")))
    assert show == "python -m vitfx.show small/pruned.pt"
    assert recover == "python -m vitfx.recover small/pruned.pt --teacher demo --minutes 0.5"
    assert commands(after_prune(options, Path("small"), report(0.01, goal="1.5× as fast"))) == [show]
    assert commands(after_several(Path("a sweep"))) == ["python -m vitfx.report 'a sweep'"]


def test_what_was_lost_can_be_told_from_chance() -> None:
    assert lost_measurably(report(0.021)) and not lost_measurably(report(0.019)) and not lost_measurably(report(-0.03))
    assert lost_measurably(report(0.019, images=1600))
    assert lost_measurably(report(None)) and not lost_measurably(report(None, agreement=0.995))
    assert lost_measurably(report(None, agreement=None))


@pytest.mark.parametrize("record", [None, "report.json", "rounds.json"])
def test_a_retrained_model_is_compared_with_its_run(tmp_path: Path, record: str | None) -> None:
    if record is not None:
        (tmp_path / record).touch()
    options = parse(shlex.join(["python", "-m", "vitfx.recover", str(tmp_path / "pruned.pt"), "--teacher", "demo"]))
    (line,) = commands(after_recover(options, Path("out")))
    known = [] if record is None else [str(tmp_path)]
    assert module_and_arguments(line) == ("vitfx.report", [*known, "out"])


def test_optimized_and_trained_models_can_be_pruned() -> None:
    options = parse(f"python -m vitfx.optimize {GIVEN} --classes cat,dog --other")
    (line,) = commands(after_optimize(options))
    check(line, model="my model.pt", classes="cat,dog", other=True, **IMAGES, **MODEL, **SIZE)
    assert commands(after_train(Path("my/last.pt"))) == ["python -m vitfx.prune my/last.pt"]
