"""`benchmarks.cuda` outlives the process that does its work, and leaves none behind."""

import json
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from benchmarks.gpu.ledger import Ledger
from benchmarks.gpu.supervise import Asked, supervise


@dataclass(frozen=True)
class Script(Asked):
    """Runs this code as the process: `say(step, state)` and the steps' names are there."""

    code: str = ""

    def command(self, pipe, steps, seconds):
        begin = (
            "import json, os, signal, sys, time\n"
            f"pipe, steps = os.fdopen({pipe}, 'w'), {list(steps)!r}\n"
            "def say(step, state):\n"
            "    pipe.write(json.dumps({'step': step, 'record': {'state': state, 'figures': {}}}) + '\\n')\n"
            "    pipe.flush()\n"
        )
        return [sys.executable, "-c", begin + self.code]


def watched(tmp_path, code, minutes=1.0, steps=("proof", "discovery", "memory")):
    ledger = Ledger(tmp_path, {})
    supervise(Script(steps, minutes, 0, "cpu", code), ledger)
    assert json.loads(ledger.path.read_text())["steps"] == ledger.steps
    return {name: (one["state"], one.get("error")) for name, one in ledger.steps.items()}


def test_a_process_that_dies_costs_one_step(tmp_path):
    code = (
        "for step in steps:\n"
        "    say(step, 'running')\n"
        "    pipe.write('{\"broken\": ') if step == 'proof' else None\n"
        "    os.kill(os.getpid(), signal.SIGKILL) if step == 'discovery' else None\n"
        "    pipe.write('\\n')\n"
        "    say(step, 'done')\n"
    )
    found = watched(tmp_path, code)
    assert found["proof"] == found["memory"] == ("done", None)
    assert found["discovery"] == ("failed", "the process that did it was ended by SIGKILL")


def test_a_process_that_never_begins_fails_every_step_and_no_more(tmp_path):
    found = watched(tmp_path, "sys.exit(7)", steps=("proof", "memory"))
    assert set(found.values()) == {("failed", "the process that did it ended with the exit code 7")}


def test_a_process_that_hangs_is_ended_with_what_it_started(tmp_path):
    child = tmp_path / "child"
    code = (
        "import subprocess\n"
        f"started = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
        f"open({str(child)!r}, 'w').write(str(started.pid))\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "say('proof', 'running')\n"
        "time.sleep(60)\n"
    )
    began = time.monotonic()
    found = watched(tmp_path, code, minutes=0.03)
    assert time.monotonic() - began < 20
    assert found["proof"][0] == "failed" and "minutes were over" in found["proof"][1]
    assert found["memory"] == ("left out", "the 0.03 minutes were over")
    stat = Path("/proc", child.read_text(), "stat")
    assert not stat.exists() or ") Z " in stat.read_text()


def test_ctrl_c_ends_the_process(tmp_path):
    def press(number, frame):
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, press)
    signal.setitimer(signal.ITIMER_REAL, 1.0)
    try:
        with pytest.raises(KeyboardInterrupt):
            watched(tmp_path, "say('proof', 'running'); time.sleep(60)")
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
