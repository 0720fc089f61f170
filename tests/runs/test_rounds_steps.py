"""The table of pruning in rounds, and its file."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from vitfx.pruning.goal import FLOPS, PARAMETERS, SPEEDUP, Goal
from vitfx.runs.rounds_steps import (
    ARTIFACTS,
    PRUNED,
    RECOVERED,
    Step,
    missed,
    read_steps,
    to_markdown,
    to_table,
    write_steps,
)
from vitfx.support.files import ROUNDS

SETTINGS = {
    "model": "vit.pt", "target": "cpu:batch=8", "goal": "2× faster", "goal_kind": SPEEDUP, "rounds": 1, "minutes": 3.0,
    "original_params": 1000, "original_flops": 2000,
}  # fmt: skip
STEP = Step(
    round=1,
    kind=PRUNED,
    asked=2.0,
    speedup=2.0,
    ms=1234.0,
    plain_ms=2468.0,
    kl=0.1,
    agreement=0.9,
    accuracy=None,
    plain_accuracy=None,
    images=50,
    params=500,
    flops=1000,
    params_share=0.5,
    flops_share=0.5,
    said=None,
    folder="round-1/pruned",
)


def test_long_times_are_written_out() -> None:
    said = to_markdown([STEP], SETTINGS, {"cpu": "slow"}, ("classes are matched by name",))
    assert "| original |  | 1× | 2468 |" in said and "classes are matched by name" in said
    assert "| round 1, pruned | 2× | 2.000× | 1234 |" in said


def test_a_console_of_80_characters_shows_all_of_it() -> None:
    whole = replace(STEP, kind=RECOVERED, accuracy=1.0, plain_accuracy=1.0, agreement=1.0, ms=99.7)
    console = Console(width=80, file=io.StringIO())
    console.print(to_table([whole], SETTINGS))
    said = console.file.getvalue()
    assert "…" not in said
    assert "round 1, recovered" in said and "100.00%" in said and said.count("50.0%") == 2


def test_markdown_has_counts_and_shares() -> None:
    assert "| 500 (50.0%) | 1,000 (50.0%) |" in to_markdown([STEP], SETTINGS, {})


def test_the_last_step_is_held_against_the_goal() -> None:
    fast = Goal(SPEEDUP, 2.0)
    assert missed(replace(STEP, speedup=1.9), fast) == "asked for 2× faster, measured 1.90×"
    assert missed(replace(STEP, speedup=1.95), fast) is None
    assert missed(replace(STEP, params_share=0.6, speedup=1.0), Goal(FLOPS, 0.5)) is None
    assert missed(replace(STEP, flops_share=0.501), Goal(FLOPS, 0.5)) == "asked for 50% of the FLOPs, measured 50.1%"
    short = "asked for 50% of the parameters, measured 60%"
    assert missed(replace(STEP, params_share=0.6), Goal(PARAMETERS, 0.5)) == short


def test_the_file_is_read_again_with_the_machine_that_measured(tmp_path: Path) -> None:
    write_steps(tmp_path, [STEP], SETTINGS, {"cpu": "slow"})
    assert read_steps(tmp_path, SETTINGS, force=False) == ([], {"cpu": "slow"})
    (tmp_path / STEP.folder).mkdir(parents=True)
    for name in ARTIFACTS:
        (tmp_path / STEP.folder / name).touch()
    assert read_steps(tmp_path, SETTINGS, force=False) == ([STEP], {"cpu": "slow"})
    assert read_steps(tmp_path, SETTINGS, force=True) == ([], {})
    record = json.loads((tmp_path / ROUNDS).read_text())
    assert (record["format"], record["environment"]) == ("vitfx-rounds/1", {"cpu": "slow"})
