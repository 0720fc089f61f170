"""The files that a training leaves in its folder, as it goes and at its end."""

from __future__ import annotations

import shutil
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vitfx.models.checkpoint import save_checkpoint
from vitfx.reports.records import TRAIN_REPORT
from vitfx.runs.train_job import Data, TrainJob
from vitfx.support.files import remove_results, write_aside, writing
from vitfx.support.json_files import write_json
from vitfx.support.pictures import has_matplotlib, png_bytes
from vitfx.training.confusion import Confusion, classes_csv, draw_confusion, matrix_csv
from vitfx.training.curves import draw_curves, draw_flow
from vitfx.training.model import TrainModel
from vitfx.training.state import STATE, Log, write_history, write_state
from vitfx.training.trainer import Trainer

RESULTS = (
    "best.pt", "last.pt", "history.json", "curves.png", "gradient_flow.png", "confusion.png", "confusion.csv",
    "classes.csv", "report.json",
)  # fmt: skip
BOARD = "tensorboard"
_DRAW_SECONDS = 60.0
"""Curves are drawn no more often than this, and at the end."""


@dataclass(eq=False)
class Files:
    """What the first process writes into the folder."""

    job: TrainJob
    made: TrainModel
    data: Data
    trainer: Trainer
    log: Log
    key: str
    epoch_steps: int
    _drawn: float = field(default_factory=time.monotonic)

    def begin(self) -> None:
        with writing(self.job.out):
            self.job.out.mkdir(parents=True, exist_ok=True)
            shutil.rmtree(self.job.out / BOARD, ignore_errors=True)
        remove_results(self.job.out, RESULTS)
        self.save_state()

    def save_state(self) -> None:
        write_state(self.job.out / STATE, self.key, self.log, self.trainer.state_dict())

    def end_epoch(self) -> None:
        self._save_model(self.job.out / "last.pt")
        if self.log.best is self.log.epochs[-1]:
            self._save_model(self.job.out / "best.pt")
        write_history(self.job.out / "history.json", self.log, self.trainer.flow.layers)
        if time.monotonic() - self._drawn > _DRAW_SECONDS:
            self._draw()
            self._drawn = time.monotonic()

    def finish(self, found: Confusion, report: dict[str, Any]) -> None:
        self._draw()
        out, classes = self.job.out, self.data.classes
        write_aside(out / "confusion.csv", matrix_csv(found, classes))
        write_aside(out / "classes.csv", classes_csv(found, classes))
        if has_matplotlib():
            write_aside(out / "confusion.png", png_bytes(lambda: draw_confusion(found, classes)))
        if self.job.model_file is not None:
            self._save_model(self.job.model_file)
        write_json(out / "report.json", TRAIN_REPORT, report)
        remove_results(out, [STATE])

    def _draw(self) -> None:
        if not has_matplotlib():
            return
        write_aside(self.job.out / "curves.png", png_bytes(lambda: draw_curves(self.log, self.epoch_steps)))
        if any(one.flow for one in self.log.epochs):
            layers = self.trainer.flow.layers
            write_aside(self.job.out / "gradient_flow.png", png_bytes(lambda: draw_flow(self.log, layers)))

    def _save_model(self, path: Path) -> None:
        save_checkpoint(
            path,
            factory=self.made.factory,
            kwargs=self.made.kwargs,
            state_dict=self.trainer.evaluated.state_dict(),
            preprocess=self.made.preprocess,
            classes=self.data.classes,
            data=self.job.data if self.job.data == "digits" else Path(self.job.data).resolve().name,
            made_by=self.job.command,
        )
