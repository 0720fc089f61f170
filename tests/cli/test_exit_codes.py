"""Exit codes, and the sentence that goes with each."""

from __future__ import annotations

import signal
from typing import NoReturn

import pytest

from vitfx.cli import exit_codes as module
from vitfx.cli.exit_codes import GOES_ON, ending
from vitfx.deploy.export import ExportMismatch
from vitfx.graph.verify import VerificationError
from vitfx.support.errors import UserError
from vitfx.support.interrupts import held_interrupts
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


@pytest.mark.parametrize("ignored", [False, True], ids=["", "in the background, where Ctrl-C is ignored"])
def test_sigterm_ends_like_ctrl_c(ignored: bool, capsys: pytest.CaptureFixture[str]) -> None:
    own = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    steps: list[str] = []

    def work() -> None:
        try:
            with held_interrupts() as interrupts:
                signal.raise_signal(signal.SIGTERM)
                steps.append("the step ends")
                if interrupts.asked:
                    raise KeyboardInterrupt
        finally:
            steps.append("saved")

    signal.signal(signal.SIGINT, signal.SIG_IGN if ignored else signal.default_int_handler)
    try:
        assert ending(work, lambda: GOES_ON) == 143
        assert steps == ["the step ends", "saved"]
        assert ending(lambda: signal.raise_signal(signal.SIGTERM), lambda: GOES_ON) == 143
        assert ending(lambda: raising(KeyboardInterrupt())) == 130
    finally:
        signal.signal(signal.SIGINT, own[1])
    assert signal.getsignal(signal.SIGTERM) == own[0]
    assert capsys.readouterr().err == f"\n{GOES_ON}\n\n{GOES_ON}\n\nstopped\n"


def test_torchrun_ends_its_processes_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    seen: list[object] = []
    ending(lambda: seen.append(signal.getsignal(signal.SIGTERM)))
    assert seen == [before]


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
