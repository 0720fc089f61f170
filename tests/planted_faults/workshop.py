"""A copy of the tree, in which a fault is planted, its tests are run, and the fault is taken out again.

Each run of tests is a fork of this process, which has loaded torch and its like already: that spares seconds a fault.
"""

from __future__ import annotations

import importlib
import json
import math
import os
import resource
import shutil
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import pytest

from tests.planted_faults.faults import Fault

LOADED = (
    *("torch._dynamo", "torch.distributed", "torch.export", "torch.onnx._internal.exporter._core", "torch.utils.data"),
    *("torchvision.transforms.v2", "timm", "transformers", "einops", "PIL.Image", "sklearn.datasets", "scipy.stats"),
    *("onnxscript.rewriter", "onnx_ir.passes.common", "onnxruntime.quantization", "onnxruntime.transformers.float16"),
    *("safetensors.torch", "rich.progress", "jinja2", "matplotlib.figure", "hypothesis"),
)
"""What most tests import, none of it a part of the tree."""
_LEFT_OUT = shutil.ignore_patterns(".git", "__pycache__", ".*_cache", ".hypothesis", ".venv", "build", "*.egg-info")
_LATER = 10**10
"""Nanoseconds between the times of a file's versions: what Python compiled of one is not taken for another."""


@dataclass(frozen=True)
class Verdict:
    """What the tests said."""

    noticed: str  #: the first test that failed, "time" where they took too long, "" where all passed
    seconds: float


class Workshop:
    """A copy of the tree `root` in `folder`."""

    def __init__(self, root: Path, folder: Path, loaded: Sequence[str] = LOADED) -> None:
        self._root, self.tree, self._log, self._versions = root, folder / "tree", folder / "last.log", 0
        shutil.copytree(root, self.tree, ignore=_LEFT_OUT)
        for name in loaded:
            importlib.import_module(name)

    @contextmanager
    def planted(self, fault: Fault) -> Iterator[None]:
        """The tree with the fault. Raises FaultError where its text is not there exactly once."""
        path = self.tree / fault.file
        text, stat = path.read_text(encoding="utf-8"), path.stat()
        path.write_text(fault.planted_in(text), encoding="utf-8")
        self._versions += 1
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns + self._versions * _LATER))
        try:
            yield
        finally:
            path.write_text(text, encoding="utf-8")
            os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))

    def run(self, tests: Sequence[str], seconds: float) -> Verdict:
        """Runs these tests up to the first that fails.

        seconds: of the processor, after which they count as failed; of a clock thirty times as many.
        """
        noticed = self._log.with_suffix(".json")
        noticed.unlink(missing_ok=True)
        began = time.monotonic()
        child = os.fork()
        if not child:
            self._child(tests, noticed, math.ceil(seconds))
        ended = status = 0
        while not ended:
            time.sleep(0.05)
            ended, status = os.waitpid(child, os.WNOHANG)
            if not ended and time.monotonic() - began > 30 * seconds:
                os.killpg(child, signal.SIGKILL)
                ended, status = os.waitpid(child, 0)
        spent = time.monotonic() - began
        if noticed.exists():
            return Verdict(json.loads(noticed.read_text(encoding="utf-8")), spent)
        late = os.WIFSIGNALED(status) and os.WTERMSIG(status) in (signal.SIGKILL, signal.SIGXCPU)
        return Verdict("time" if late else "the process ended", spent)

    def _child(self, tests: Sequence[str], noticed: Path, seconds: int) -> NoReturn:
        """Never comes back: the process ends with its tests."""
        try:
            os.setpgid(0, 0)
            resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 1))
            with self._log.open("wb") as log:
                os.dup2(log.fileno(), 1)
                os.dup2(log.fileno(), 2)
            self._move_in()
            first = _FirstFailure()
            arguments = ["-n", "0", "-x", "-q", "-p", "no:cacheprovider", "--rootdir", str(self.tree), *tests]
            code = pytest.main(arguments, plugins=[first])
            said = first.name or ("" if code == pytest.ExitCode.OK else f"pytest: {pytest.ExitCode(code).name}")
            noticed.write_text(json.dumps(said), encoding="utf-8")
        finally:
            os._exit(0)

    def _move_in(self) -> None:
        """The copy stands in this process for the tree that it was started from."""
        os.chdir(self.tree)
        os.environ["PYTHONPATH"] = str(self.tree)
        sys.path[:] = [str(self.tree), *(path for path in sys.path if Path(path).resolve() != self._root)]
        for name in [name for name in sys.modules if (self.tree / name.split(".")[0]).is_dir()]:
            del sys.modules[name]


class _FirstFailure:
    """A plugin that keeps the name of the first test that fails, or of the file that can't be loaded."""

    name = ""

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self.name = self.name or report.nodeid

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self.name = self.name or f"{report.nodeid} can't be loaded"
