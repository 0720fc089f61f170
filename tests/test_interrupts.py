"""vitfx.interrupts: the first Ctrl-C is noted, the second acts, and all is as before afterwards."""

from __future__ import annotations

import signal
import threading

import pytest

from vitfx.interrupts import held_interrupts


def test_the_first_is_noted_the_second_acts() -> None:
    before = signal.getsignal(signal.SIGINT)
    with held_interrupts() as interrupts:
        assert not interrupts.asked
        signal.raise_signal(signal.SIGINT)
        assert interrupts.asked
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


def test_in_another_thread_nothing_is_held() -> None:
    before = signal.getsignal(signal.SIGINT)
    found: list[bool] = []

    def work() -> None:
        with held_interrupts() as interrupts:
            found.append(interrupts.asked)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [False]
    assert signal.getsignal(signal.SIGINT) is before
