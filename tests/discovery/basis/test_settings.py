"""Settings are checked once, and written without infinity."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from dataclasses import replace

import pytest

from vitfx.discovery.basis.settings import OF_EDGE_PRUNING, Settings
from vitfx.support.errors import UserError


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"tau": math.nan}, "`tau` nan is not a threshold: give a finite number of nats, 0 or more"),
        ({"tau": math.inf}, "`tau` inf is not a threshold"),
        ({"tau": -1e-9}, "`tau` -1e-09 is not a threshold"),
        ({"max_kl": math.nan}, "`max_kl` nan is not a limit: give a number of nats, 0 or more"),
        ({"max_kl": -1.0}, "`max_kl` -1.0 is not a limit"),
        ({"method": "eap", "remove": 1}, "`remove` 1 is not a share: give a number from 0 to 1"),
        ({"method": "eap", "remove": -0.1}, "`remove` -0.1 is not a share"),
        ({"method": "acdc", "remove": 0.5}, "`remove` is for methods that rank edges, acdc decides by `tau`"),
        ({"method": "eap", "max_kl": 0.5}, "`max_kl` is for methods that measure KL, eap only ranks edges"),
        ({"samples": 1}, "`samples` 1 is too small: give 2 or more"),
        ({"paths": 0}, "`paths` 0 is too small: give 1 or more"),
        ({"seed": -1}, "`seed` -1 is too small: give 0 or more"),
        ({"seed": 2**63}, "`seed` 9223372036854775808 is too large: give a number below 2 to the power of 63"),
        ({"method": "magic"}, "`method` magic is not known: choose one of acdc"),
        ({"gate_start": "magic"}, "`gate_start` magic is not known: choose one of eap, eap-ig, equal"),
        ({"gate_steps": 0}, "`gate_steps` 0 is too small: give 1 or more"),
        ({"learning_rate": 0}, "`learning_rate` 0 is not a step: give a finite number above 0"),
        ({"learning_rate": math.inf}, "`learning_rate` inf is not a step"),
        ({"learning_rate": "1"}, "learning_rate is '1': give a number"),
        ({"ablation": "median"}, "`ablation` median is not known: choose one of zero, mean, position-mean, resample"),
        ({"corruption": "fog"}, "`corruption` fog is not known: choose one of swap, noise, blur, shuffle"),
    ],
)
def test_what_makes_no_sense_is_refused(given: dict[str, object], sentence: str) -> None:
    with pytest.raises(UserError) as caught:
        Settings(**given)
    assert str(caught.value).startswith(sentence)


def test_the_edges_of_what_makes_sense() -> None:
    least = Settings(tau=0, max_kl=0, samples=2, paths=1, seed=0)
    assert (least.tau, least.max_kl) == (0, 0)
    assert Settings().max_kl == math.inf


def test_json_has_every_field_and_no_infinity() -> None:
    record = json.loads(json.dumps(Settings().to_json(), allow_nan=False))
    assert record["max_kl"] is None
    left_out = {"task", "classes", "other", "ensemble", *OF_EDGE_PRUNING}
    assert record.keys() == Settings.__dataclass_fields__.keys() - left_out
    assert Settings(**record | {"max_kl": math.inf}) == Settings()
    chosen = Settings(classes=("7", "3"))
    learned = Settings(method="edge-pruning", learning_rate=0.1, gate_steps=7, gate_start="equal")
    for settings in (
        Settings(task="labels"),
        learned,
        chosen,
        replace(chosen, classes=("7", "3", "other"), other=True),
    ):
        assert Settings.from_json(json.loads(json.dumps(settings.to_json()))) == settings
    assert Settings(max_kl=0.5).to_json()["max_kl"] == 0.5


def test_edge_pruning_has_a_size_of_its_own() -> None:
    assert Settings(method="edge-pruning").remove == 0.5
    assert Settings(method="edge-pruning", remove=0.2).threshold == "a share of 0.2 to remove"
    assert Settings(method="eap").remove is None


def test_a_circuit_of_a_goal_says_what_to_do() -> None:
    record = {"method": "goal", "granularity": "head", "goal": "target-speedup", "value": 1.5}
    with pytest.raises(UserError) as caught:
        Settings.from_json(record)
    assert str(caught.value) == (
        "the circuit was found for `target_speedup` 1.5 and holds no discovery to repeat: give that goal again in "
        "place of the circuit"
    )
    with pytest.raises(UserError, match="can't be read"):
        Settings.from_json({"method": "acdc"})


def test_settings_load_no_algorithm() -> None:
    """`--help` and the check of a command's options do without torch."""
    code = "import sys, vitfx.discovery.basis.settings; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    loaded = set(done.stdout.split())
    discovery = {name for name in loaded if name.startswith("vitfx.discovery.")}
    assert discovery == {"vitfx.discovery.basis", "vitfx.discovery.basis.settings"}
    assert "torch" not in loaded
    assert "vitfx.circuits.edge_graph" not in loaded


def test_an_ensemble_is_written_where_it_is_the_method() -> None:
    settings = Settings(method="ensemble", ensemble=("eap", "taylor"))
    record = json.loads(json.dumps(settings.to_json()))
    assert record["ensemble"] == ["eap", "taylor"]
    assert Settings.from_json(record) == settings


@pytest.mark.parametrize(
    ("methods", "message"),
    [
        (("eap",), "`ensemble` eap is no mean of several: give two methods or more, each once"),
        (("eap", "eap"), "`ensemble` eap,eap is no mean of several"),
        (("eap", "acdc"), "`ensemble` can't have acdc: choose from eap, relp, "),
    ],
)
def test_what_is_no_ensemble(methods: tuple[str, ...], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Settings(method="ensemble", ensemble=methods)
