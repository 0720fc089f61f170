"""What a command says last can be typed as it stands, and opens the same model and images."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from tests.support.command_lines import module_and_arguments, parse
from vitfx.cli.next_steps import after_discover, after_optimize, after_prune, after_recover, after_several, after_train

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


def test_a_pruned_model_is_looked_at_and_retrained() -> None:
    options = parse(f"python -m vitfx.prune {GIVEN} --classes cat,dog")
    show, recover = commands(after_prune(options, Path("my small"), scored=True, smaller=True))
    check(show, model="my small/circuit.json")
    known = {"model": "my small/pruned.pt", "teacher": "my model.pt", "minutes": 30.0, "classes": None}
    check(recover, **known, **IMAGES, **MODEL)


def test_only_what_makes_sense_comes_after_pruning() -> None:
    options = parse("python -m vitfx.prune demo --max-drop 1")
    show, recover = commands(after_prune(options, Path("small"), scored=False, smaller=True))
    assert show == "python -m vitfx.show small/pruned.pt"
    assert recover == "python -m vitfx.recover small/pruned.pt --teacher demo --minutes 0.5"
    assert commands(after_prune(options, Path("small"), scored=False, smaller=False)) == [show]
    assert commands(after_several(Path("a sweep"))) == ["python -m vitfx.report 'a sweep'"]


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
