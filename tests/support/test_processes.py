"""Several processes decide as one does, and say things once."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.fx import GraphModule

from tests.support.discover_runs import read, run
from tests.support.prune_runs import GREY, artifact, model
from tests.support.torchrun import run_two
from vitfx.discovery.basis.journal import FileJournal, NoJournal, SharedJournal
from vitfx.discovery.basis.protocol import Journal
from vitfx.discovery.basis.settings import Settings
from vitfx.discovery.run import discover
from vitfx.graph.trace import to_canonical
from vitfx.images.splits import open_data
from vitfx.support.errors import UserError
from vitfx.support.processes import (
    Alone,
    OwnFailure,
    ToldElsewhere,
    first_holds,
    first_says,
    on_each,
    on_first,
    open_share,
    share_device,
)
from vitfx.support.progress import Silent

COMMON: dict[str, Any] = {"samples": 16, "paths": 4}
RUNS: dict[str, dict[str, Any]] = {
    "head": {"tau": 0.01},
    "qkv": {"tau": 0.003, "granularity": "qkv", "ablation": "position-mean"},
    "resample": {"tau": 0.003, "granularity": "edge", "ablation": "resample", "order": "reverse"},
    "eap-acdc": {"tau": 0.003, "granularity": "qkv", "method": "eap-acdc"},
    "eap-ig": {"remove": 0.4, "granularity": "qkv", "method": "eap-ig", "metric": "loss"},
    "uneven": {"tau": 0.01, "samples": 15, "method": "eap-acdc", "ablation": "zero", "corruption": "noise"},
}
RESUMED = ("head", "eap-acdc")
_PROCESS = """
import json, sys
from contextlib import nullcontext
from pathlib import Path
import torch
import vitfx.discover
torch.set_num_threads(1)
from tests.support.discover_runs import run
from tests.support.test_processes import RESUMED, RUNS, decided, exchanged, resumed
from vitfx.support.processes import open_share

out = Path(sys.argv[1])
with open_share(torch.device("cpu")) as share:
    found = {"runs": {name: decided(name, share) for name in RUNS}, "exchanged": exchanged(share)}
    found["whole"] = {name: decided(name, share, samples=80) for name in RESUMED}
    found["resumed"] = {name: resumed(name, share, out) for name in RESUMED}
    (out / f"{share.rank}.json").write_text(json.dumps(found))
    # A process can join once only.
    vitfx.discover.open_share = lambda device: nullcontext(share)
    code = run(out / "model.pt", out / "circuit.json", "--tau", "0.01", "--eval-samples", "41")
    sys.exit(code or run(out / "model.pt", out / "refused.json", "--samples", "3", "--corruption", "noise"))
"""


@cache
def canonical() -> GraphModule:
    return to_canonical(model(), torch.zeros(2, 1, 8, 8)).graph_module


def decided(name: str, share: Any, journal: Journal | None = None, **more: int) -> dict[str, Any]:
    settings = Settings(**COMMON | RUNS[name] | more)
    images = open_data("digits", GREY).calibration.sample(settings.samples, seed=0).load()
    found = discover(canonical(), images, settings, {}, journal or NoJournal(), Silent(), share)
    return {
        "removed": [one.name for one in found.circuit.removed],
        "order": [one.edge.name for one in found.circuit.decisions],
        "scores": [one.score for one in found.circuit.decisions],
        "details": found.circuit.details,
        "own": len(found.calibration.clean),
    }


def resumed(name: str, share: Any, folder: Path) -> dict[str, Any]:
    """What comes of a run that was broken off halfway, by its journal."""
    whole = on_first(share, lambda: FileJournal(folder / f"{name}.journal", "key"))
    decided(name, share, SharedJournal(whole, share), samples=80)
    lines = share.broadcast((folder / f"{name}.journal").read_text().splitlines(keepends=True))

    def half() -> FileJournal:
        (folder / f"{name}.half").write_text("".join(lines[: len(lines) // 2]))
        return FileJournal(folder / f"{name}.half", "key")

    return decided(name, share, SharedJournal(on_first(share, half), share), samples=80)


def exchanged(share: Any) -> dict[str, Any]:
    """What the helpers give on this process."""
    given = torch.tensor([0.1, 1e16, -1.0], dtype=torch.float64) * (1 + 2 * share.rank)

    def failing() -> int:
        if share.rank == 1:
            raise UserError("no such file")
        return share.rank

    def refused() -> int:
        raise UserError("first alone")

    return {
        "sum": share.sum(given).tolist(),
        "broadcast": share.broadcast({"rank": share.rank}),
        "on_first": on_first(share, lambda: share.rank),
        "refused": _error(lambda: on_first(share, refused)),
        "failing": _error(lambda: on_each(share, failing)),
        "each": on_each(share, lambda: share.rank),
        "waited": _waited(share),
        "held": _held(share),
        "not held": _error(lambda: _held(share, UserError("held by another"))),
    }


def _held(share: Any, error: UserError | None = None) -> list[str]:
    """What a context does on this process that the first one holds for all."""
    events = []

    @contextmanager
    def context() -> Iterator[None]:
        if error is not None:
            raise error
        events.append("entered")
        yield
        events.append("left")

    with first_holds(share, context()):
        events.append("held")
    return events


def _waited(share: Any) -> str:
    """What comes of work of the first process that takes longer than the processes otherwise wait for each other."""
    set_timeout = getattr(dist, "set_timeout", dist.distributed_c10d._set_pg_timeout)
    set_timeout(timedelta(seconds=1))
    try:
        return on_first(share, lambda: (time.sleep(2), "decoded")[1])
    finally:
        set_timeout(timedelta(minutes=30))


def _error(call: Any) -> list[str]:
    try:
        with first_says(False):
            call()
    except UserError as error:
        return [type(error).__name__, str(error)]
    return []


@dataclass
class Two:
    """What a pair of processes did, and what torchrun printed."""

    folder: Path
    processes: list[dict[str, Any]]
    printed: subprocess.CompletedProcess[str]


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Two:
    folder = tmp_path_factory.mktemp("two")
    artifact(folder / "model.pt")
    done = run_two(_PROCESS, folder, 120)
    assert (folder / "1.json").exists(), done.stderr
    return Two(folder, [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)], done)


@pytest.mark.parametrize("name", RUNS)
def test_two_processes_decide_as_one(two: Two, name: str) -> None:
    alone = decided(name, Alone())
    first, second = (found["runs"][name] for found in two.processes)
    assert first["own"] + second["own"] == alone["own"]
    assert min(first["own"], second["own"]) >= 7
    assert {**first, "own": 0} == {**second, "own": 0}
    assert first["order"] == alone["order"]
    assert first["removed"] == alone["removed"]
    assert 0 < len(alone["removed"]) < len(alone["order"])
    assert first["details"]["fidelity"] == pytest.approx(alone["details"]["fidelity"])


@pytest.mark.parametrize("name", RESUMED)
def test_two_processes_go_on_to_the_same_bits(two: Two, name: str) -> None:
    for found in two.processes:
        assert found["resumed"][name] == found["whole"][name]
    lines = [json.loads(line) for line in (two.folder / f"{name}.half").read_text().splitlines()]
    orders = [line["order"] for line in lines[1:] if line["order"]]
    # Of two processes, each with its 40 images, which are three batches.
    assert orders and all(order[:2] == [-2, 40] and order[42] == 40 and len(order) == 83 for order in orders)


def test_what_processes_exchange(two: Two) -> None:
    first, second = (found["exchanged"] for found in two.processes)
    assert first["sum"] == second["sum"] == [0.4, 4e16, -4.0]
    assert first["broadcast"] == second["broadcast"] == {"rank": 0}
    assert first["on_first"] == second["on_first"] == 0
    assert [first["each"], second["each"]] == [0, 1]
    assert first["waited"] == second["waited"] == "decoded"
    assert first["refused"][0] == second["refused"][0] == "ToldElsewhere"
    assert first["failing"][0] == "ToldElsewhere"
    assert first["held"] == ["entered", "held", "left"] and second["held"] == ["held"]
    assert first["not held"][0] == second["not held"][0] == "ToldElsewhere"
    assert second["failing"] == ["OwnFailure", "process 1: no such file"]


def test_the_command_writes_one_file_and_speaks_once(two: Two) -> None:
    out = two.printed.stdout
    assert out.count("the head graph has 13 edges") == 1
    assert out.count("circuit.json has the circuit") == 1
    assert sorted(path.name for path in two.folder.iterdir() if "circuit" in path.name) == ["circuit.json"]
    assert run(two.folder / "model.pt", two.folder / "alone.json", "--tau", "0.01", "--eval-samples", "41") == 0
    shared, alone = read(two.folder / "circuit.json"), read(two.folder / "alone.json")
    assert shared.removed == alone.removed
    assert shared.origins == alone.origins
    for name in ("fidelity", "evaluation"):
        assert shared.details[name] == pytest.approx(alone.details[name])
    assert shared.details["evaluation"]["images"] == 41


def test_an_error_is_said_once_and_ends_all(two: Two) -> None:
    assert two.printed.returncode != 0
    said = [line for line in two.printed.stderr.splitlines() if line.startswith("error: ")]
    assert said == ["error: 3 images are too few for 2 processes: give each 2 or more"]
    assert [path.name for path in two.folder.iterdir() if "refused" in path.name] == []


def test_a_process_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    with open_share(torch.device("cpu")) as share:
        assert (share.rank, share.world) == (0, 1)
    with pytest.raises(UserError, match="as it is"):
        on_first(share, _refuse)
    with pytest.raises(UserError, match="as it is") as found:
        on_each(share, _refuse)
    assert type(found.value) is UserError


def test_the_first_says_what_is_wrong() -> None:
    with pytest.raises(UserError, match="as it is"), first_says(True):
        _refuse()
    with pytest.raises(ToldElsewhere), first_says(False):
        _refuse()
    with pytest.raises(OwnFailure), first_says(False):
        raise OwnFailure("mine")


def test_a_process_without_a_gpu_of_its_own_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    for name, value in {"RANK": "2", "LOCAL_RANK": "2", "WORLD_SIZE": "4"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(OwnFailure, match="process 2 is number 3 on a machine with 2 GPUs"), first_says(False):
        share_device("auto")
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert share_device("auto").index == 1


def _refuse() -> int:
    raise UserError("as it is")
