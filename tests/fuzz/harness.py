"""Runs a loader on one damaged file after another, in a process of its own that may hang, die or eat memory."""

from __future__ import annotations

import faulthandler
import json
import multiprocessing
import os
import random
import resource
import shutil
import signal
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from tests.fuzz.mutations import mutate
from vitfx.support.errors import UserError

RIGHT, REFUSED, OTHER = "as it was written", "refused", "other values"
SECONDS = 10.0
"""Of the processor, or asleep, after which a loader hangs."""
MEMORY = 3 * 2**30
"""Bytes that a loader may ask for beyond what the process has."""
LONGEST = 1000
"""Letters of a sentence."""


@dataclass(frozen=True)
class Loader:
    """One kind of file."""

    write: Callable[[Path], object]  #: whole files, into an empty folder
    read: Callable[[Path], object]  #: from that folder: what can be compared, or a UserError
    proven: bool = True  #: whether the files hold digests or checksums of all that they say
    files: str = "**/*"  #: those that are damaged


@dataclass(frozen=True)
class Finding:
    """A file that was neither read as it was written nor refused in a sentence."""

    number: int  #: of the case
    file: str  #: that was damaged
    damage: str
    what: str  #: how it ended


@dataclass
class Report:
    """What became of the files."""

    cases: int = 0
    endings: Counter[str] = field(default_factory=Counter)
    findings: dict[str, Finding] = field(default_factory=dict)  #: the first of each ending


@dataclass(frozen=True)
class _Job:
    loader: Loader
    seed: str
    whole: Path  #: the folder of whole files
    written: object  #: what they are read as
    end: float  #: on the monotonic clock


def fuzz(
    loader: Loader, name: str, seconds: float, seed: int = 0, *, only: int | None = None, most: int | None = None
) -> Report:
    """Tries damaged files for so long (of a clock), at most so many of them, or a single case."""
    report, end = Report(), time.monotonic() + seconds
    most = 1 if only is not None else most
    with tempfile.TemporaryDirectory(prefix="vitfx-fuzz-") as folder:
        whole = Path(folder) / "whole"
        whole.mkdir()
        loader.write(whole)
        written = loader.read(whole)
        job = _Job(loader, f"{name}-{seed}", whole, written, end)
        number = only or 0
        while time.monotonic() < end and (most is None or report.cases < most):
            # One process for many cases, until one of them ends it.
            left = None if most is None else most - report.cases
            number = _run(job, number, report, left)
    return report


def _run(job: _Job, number: int, report: Report, left: int | None) -> int:
    """Cases from `number` on until the time is over or the process ends; returns the next one's number."""
    ours, theirs = multiprocessing.Pipe(duplex=False)
    child = os.fork()
    if not child:
        try:
            ours.close()
            _child(job, number, theirs, left)
        finally:
            os._exit(0)
    theirs.close()
    try:
        last: dict[str, Any] = {"file": "", "damage": ""}
        while True:
            message = _receive(ours, child)
            if not isinstance(message, dict):
                if message:
                    _count(report, Finding(number, last["file"], last["damage"], message))
                    number += 1
                return number
            if "what" not in message:
                number, last = message["number"], message
                continue
            finding = Finding(number, last["file"], last["damage"], message["what"])
            _count(report, finding)
            number += 1
    finally:
        ours.close()


def _count(report: Report, finding: Finding) -> None:
    report.cases += 1
    report.endings[finding.what] += 1
    if finding.what not in (RIGHT, REFUSED, OTHER):
        report.findings.setdefault(finding.what, finding)


def _receive(pipe: Connection, child: int) -> dict[str, Any] | str:
    """A message, how the process ended, or "" where it ended as it should."""
    began, asleep = _cpu(child), 0.0
    while not pipe.poll(0.1):
        state = _stat(child)[0]
        asleep = asleep + 0.1 if state in "SD" else 0.0
        if _cpu(child) - began > SECONDS or asleep > SECONDS:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return "hangs"
    try:
        return json.loads(pipe.recv_bytes())
    except EOFError:
        status = os.waitpid(child, 0)[1]
        return f"the process ended ({signal.Signals(os.WTERMSIG(status)).name})" if os.WIFSIGNALED(status) else ""


def _stat(process: int) -> list[str]:
    return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()


def _cpu(process: int) -> float:
    fields = _stat(process)
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _child(job: _Job, number: int, pipe: Connection, left: int | None) -> None:
    own = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (own + MEMORY, own + MEMORY))
    case = job.whole.with_name("case")
    case.mkdir(exist_ok=True)
    os.chdir(case)
    log = job.whole.with_name("log")
    with log.open("w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    # Whoever started this process may have it report crashes elsewhere; here they are findings.
    faulthandler.disable()
    while time.monotonic() < job.end and left != 0:
        left = None if left is None else left - 1
        rng = random.Random(f"{job.seed}-{number}")
        folder = case / "files"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(job.whole, folder)
        path = rng.choice(sorted(path for path in folder.glob(job.loader.files) if path.is_file()))
        damage, blind = mutate(path, rng)
        place = path.relative_to(folder).as_posix()
        pipe.send_bytes(json.dumps({"number": number, "file": place, "damage": damage}).encode())
        what = _ending(job, folder, blind=blind)
        if Path("vitfx-ran").exists():
            what = "code of the file ran"
            Path("vitfx-ran").rmdir()
        if "Traceback (most recent call last)" in log.read_text(errors="replace"):
            what = f"a traceback is printed, then {what}"
            os.truncate(log, 0)
        pipe.send_bytes(json.dumps({"what": what}).encode())
        number += 1


def _ending(job: _Job, folder: Path, *, blind: bool) -> str:
    try:
        value = job.loader.read(folder)
    except UserError as error:
        sentence = str(error)
        if "\n" in sentence or len(sentence) > LONGEST:
            return f"no sentence: {sentence[:200]!r}"
        return REFUSED
    except BaseException as error:
        frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "/vitfx/" in frame.filename]
        place = f"{frames[-1].filename.rpartition('/vitfx/')[2]}, {frames[-1].name}" if frames else "?"
        return f"{type(error).__name__} in {place}: {' '.join(str(error).split())[:100]}"
    if value == job.written:
        return RIGHT
    return f"{OTHER} without a word" if blind and job.loader.proven else OTHER
