"""Circuits go to JSON and back, the same one always to the same bytes."""

from __future__ import annotations

import dataclasses
import json
import math

import pytest

from vitfx.circuits.circuit import EMBED, Circuit, Decision, Edge, Reader, Writer
from vitfx.support.errors import UserError

HEAD = Edge(Writer("a0", 1, (1,)))
PATH = Edge(Writer("m0", 0, (2, 5, 7)), Reader("a1", 0))
EMBEDDING = Edge(Writer(EMBED))
CIRCUIT = Circuit(
    (Decision(PATH, False, 0.1 + 0.2, 1 / 3), Decision(HEAD, True, 1e-17, 0.5), Decision(EMBEDDING, True, 2.0, 3.0)),
    kl=1 / 3,
    settings={"tau": 0.05, "method": "acdc", "max_kl": None},
    origins={"vitfx": "0", "model": "ä → {\"writer\""},
)  # fmt: skip


def test_names() -> None:
    assert HEAD.name == "a0.h1→stream"
    assert PATH.name == "m0.p0→a1.h0"
    assert EMBEDDING.name == "embed→stream"


def test_kept_and_removed() -> None:
    assert CIRCUIT.removed == (PATH,)
    assert CIRCUIT.kept == (HEAD, EMBEDDING)


def test_json_and_back() -> None:
    text = CIRCUIT.to_json()
    assert Circuit.from_json(text) == CIRCUIT
    assert Circuit.from_json(text).to_json() == text
    assert json.loads(text)["edges"] == {"kept": 2, "removed": 1}
    assert len(text.splitlines()) == 5


def test_the_order_in_which_settings_were_given_does_not_matter() -> None:
    turned = dataclasses.replace(CIRCUIT, settings=dict(reversed(CIRCUIT.settings.items())))
    assert turned.to_json() == CIRCUIT.to_json()
    assert turned.fingerprint() == CIRCUIT.fingerprint()


@pytest.mark.parametrize(
    "change",
    [
        {"kl": 0.3333},
        {"settings": {"tau": 0.06}},
        {"origins": {}},
        {"decisions": CIRCUIT.decisions[:2]},
        {"decisions": CIRCUIT.decisions[::-1]},
    ],
)
def test_another_circuit_has_another_fingerprint(change: dict[str, object]) -> None:
    assert dataclasses.replace(CIRCUIT, **change).fingerprint() != CIRCUIT.fingerprint()


WRITERS = json.loads(CIRCUIT.to_json())["writers"]


def damaged(**changes: object) -> str:
    """Without a digest, as vitfx 0.5 wrote circuits."""
    record = json.loads(CIRCUIT.to_json()) | changes
    del record["digest"]
    return json.dumps(record)


def test_a_circuit_without_a_digest_is_read() -> None:
    assert Circuit.from_json(damaged()) == CIRCUIT


def test_a_circuit_that_was_edited_is_refused() -> None:
    with pytest.raises(UserError, match="can't be trusted, for its contents do not match its digest"):
        Circuit.from_json(json.dumps(json.loads(CIRCUIT.to_json()) | {"kl": 0.5}))


@pytest.mark.parametrize(
    "text",
    [
        "",
        CIRCUIT.to_json()[:-20],
        "[]",
        "7",
        "{}",
        damaged(format="vitfx-circuit/9"),
        damaged(decisions=None),
        damaged(decisions=[{}]),
        damaged(writers={"a0.h1": ["a0", 1, 3]}),
        damaged(decisions=[["a0.h1", "a1.h0.x", True, 0.0, 0.0, "exact"]]),
        damaged(decisions=[["a0.h7", "stream", True, 0.0, 0.0, "exact"]]),
        damaged(decisions=[["a0.h1", "stream", "false", 0.0, 0.0, "exact", None]]),
        damaged(decisions=[["a0.h1", "stream", True, "0", 0.0, "exact", None]]),
        damaged(decisions=[["a0.h1", "stream", True, 0.0, [0.0], "exact", None]]),
        damaged(decisions=[["a0.h1", "stream", True, 0.0, 0.0, 3, None]]),
        damaged(writers=WRITERS | {"a0.h1": ["a0", True, [1]]}),
        damaged(writers=WRITERS | {"a0.h1": ["a0", 1, ["1"]]}),
        damaged(writers=WRITERS | {"a0.h1": ["a0", 1, [True]]}),
        damaged(decisions=[["a0.h1", "stream", True, True, 0.0, "exact", None]]),
        damaged(decisions=[["a0.h1", "stream", 1, 0.0, 0.0, "exact", None]]),
        damaged(kl=False),
        damaged(settings=[]),
        damaged(origins={"vitfx": 3}),
        damaged(details=3),
        damaged(kl="0.3"),
        "[" * 100_000,
        json.dumps({"format": "vitfx-circuit/2"}),
    ],
)
def test_a_damaged_file_is_refused_in_a_sentence(text: str) -> None:
    with pytest.raises(UserError, match=r"give a circuit\.json that (this )?vitfx wrote"):
        Circuit.from_json(text)


@pytest.mark.parametrize("change", [{"kl": math.nan}, {"decisions": (Decision(HEAD, True, math.inf, 0.5),)}])
def test_what_json_lacks_is_not_written(change: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        dataclasses.replace(CIRCUIT, **change).to_json()
