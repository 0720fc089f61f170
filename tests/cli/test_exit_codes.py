"""Exit codes, and the sentence that goes with each."""

from __future__ import annotations

from typing import NoReturn

import pytest

from vitfx.cli import exit_codes as module
from vitfx.cli.exit_codes import GOES_ON, ending
from vitfx.deploy.export import ExportMismatch
from vitfx.graph.verify import VerificationError
from vitfx.support.errors import UserError
from vitfx.support.processes import ToldElsewhere


def raising(error: BaseException) -> NoReturn:
    raise error


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (UserError("--tau is 0"), 2, "error: --tau is 0\n"),
        (VerificationError("a3 is wrong"), 1, "error: a proof failed, its model was not written: a3 is wrong\n"),
        (ExportMismatch("it is off"), 1, "error: the exported file failed its check and was removed: it is off\n"),
        (KeyboardInterrupt(), 130, "\nstopped\n"),
    ],
)
def test_what_went_wrong_is_a_code_and_a_sentence(
    error: BaseException, code: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ending(lambda: raising(error)) == code
    assert capsys.readouterr() == ("", said)


def test_its_own_code_or_0(capsys: pytest.CaptureFixture[str]) -> None:
    assert ending(lambda: None) == 0
    assert ending(lambda: 1) == 1
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(("sentence", "said"), [(GOES_ON, f"\n{GOES_ON}\n"), ("", "")])
def test_what_is_said_of_a_stop_is_asked_when_it_came(
    sentence: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    known: list[str] = []

    def work() -> NoReturn:
        known.append(sentence)
        raise KeyboardInterrupt

    assert ending(work, lambda: known[0]) == 130
    assert capsys.readouterr() == ("", said)


def test_a_process_that_is_spoken_for_waits_and_says_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    waited: list[bool] = []
    monkeypatch.setattr(module, "let_speak", lambda: waited.append(True))
    assert ending(lambda: raising(ToldElsewhere())) == 2
    assert waited and capsys.readouterr() == ("", "")


def test_a_defect_keeps_its_traceback() -> None:
    with pytest.raises(ZeroDivisionError):
        ending(lambda: raising(ZeroDivisionError()))
