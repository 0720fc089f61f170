"""vitfx.training.state: what is written is what is read, of the same run alone."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch

from vitfx.support.errors import UserError
from vitfx.training.state import Epoch, Log, read_state, to_cpu, write_history, write_state

FLOW = {"mean": [0.5], "max": [1.0]}


def log() -> Log:
    epochs = [Epoch(number, 1.0, 2.0, accuracy, 0.1, 10.0, FLOW) for number, accuracy in ((1, 0.3), (2, 0.4), (3, 0.4))]
    return Log([3.0, 2.5, 2.0], epochs, 12.5)


def test_a_state_is_read_as_it_was_written(tmp_path: Path) -> None:
    parts = {"model": {"w": torch.ones(2)}, "schedule": {"last_epoch": 3, "lrs": [0.1]}}
    write_state(tmp_path / "state.pt", "key", log(), parts)
    found, read = read_state(tmp_path / "state.pt", "key", force=False) or (None, {})
    assert found == log()
    assert torch.equal(read["model"]["w"], torch.ones(2))
    assert read["schedule"] == parts["schedule"]
    assert [path.name for path in tmp_path.iterdir()] == ["state.pt"]


def test_no_state_or_one_of_another_run(tmp_path: Path) -> None:
    path = tmp_path / "state.pt"
    assert read_state(path, "key", force=False) is None
    write_state(path, "key", log(), {})
    with pytest.raises(UserError, match="of a training that was stopped after 3 steps, with other settings"):
        read_state(path, "other", force=False)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(UserError, match="cut short"):
        read_state(path, "key", force=False)


def test_with_force_there_is_no_state(tmp_path: Path) -> None:
    path = tmp_path / "state.pt"
    write_state(path, "key", log(), {})
    assert read_state(path, "other", force=True) is None
    assert read_state(path, "key", force=True) is None
    path.write_bytes(b"no state")
    assert read_state(path, "key", force=True) is None


def test_the_best_epoch_is_the_first_of_equals() -> None:
    assert log().best == log().epochs[1]
    assert Log().best is None


def test_the_history_is_json(tmp_path: Path) -> None:
    write_history(tmp_path / "history.json", log(), ["head"])
    read = json.loads((tmp_path / "history.json").read_text())
    assert read["layers"] == ["head"]
    assert read["losses"] == [3.0, 2.5, 2.0]
    assert Log.from_json(read) == log()


def test_tensors_at_any_depth_come_to_the_cpu() -> None:
    found = to_cpu({"b": {0: torch.ones(1).requires_grad_()}, "c": (1, [2.5])})
    assert not found["b"][0].requires_grad
    assert found["c"] == (1, [2.5])


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"key": 3}, "the state.key is 3, not text"),
        ({"log": {"losses": []}}, "the state.log has no epochs"),
        ({"parts": []}, r"the state.parts is \[\], not an object"),
    ],
)
def test_a_state_of_other_types_is_refused(tmp_path: Path, change: dict[str, object], why: str) -> None:
    write_state(tmp_path / "state.pt", "key", log(), {})
    torch.save(torch.load(tmp_path / "state.pt") | change, tmp_path / "state.pt")
    with pytest.raises(UserError, match=rf"is damaged \({why}\): give `force` to start over"):
        read_state(tmp_path / "state.pt", "key", force=False)
    (tmp_path / "state.pt").unlink()
    os.mkfifo(tmp_path / "state.pt")
    with pytest.raises(UserError, match="is a pipe or a device and no file"):
        read_state(tmp_path / "state.pt", "key", force=False)
