"""The seed project's table: test loss, test accuracy and inference time over the test set."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

from rich.progress import Progress
from torch import Tensor
from torch.nn.functional import cross_entropy

from benchmarks.contenders import Contender
from benchmarks.workloads import UnavailableError, Variant, forward
from vitfx.device import synchronize
from vitfx.errors import UserError
from vitfx.image_set import Images, ImageSet
from vitfx.latency import time_interleaved


@dataclass(frozen=True)
class Evaluation:
    """One model over the evaluation images.

    loss: mean cross-entropy in nats. accuracy: top-1, 0..1. Both None where the images have no labels.
    seconds: spent in the model alone, host to host. skipped: corrupt images that were left out.
    """

    model: str
    runtime: str
    batch: int
    images: int
    skipped: int
    loss: float | None
    accuracy: float | None
    seconds: float


class _Tally:
    """Runs one model over batch after batch and adds up what it gets right."""

    def __init__(self, call: Callable[[Tensor], Tensor]) -> None:
        self.call = call
        self.logits: Tensor | None = None
        self.loss = self.milliseconds = 0.0
        self.correct = 0

    def step(self, pixels: Tensor) -> None:
        self.logits = self.call(pixels)

    def count(self, labels: Tensor) -> None:
        assert self.logits is not None
        self.loss += float(cross_entropy(self.logits.double(), labels, reduction="sum"))
        self.correct += int((self.logits.argmax(1) == labels).sum())


def evaluate(
    contenders: Sequence[Contender],
    ways: Sequence[Variant],
    images: ImageSet,
    batch: int,
    threads: int,
    progress: Progress,
) -> list[Evaluation]:
    """Every model on the same runtime, taking turns batch by batch; reading images is not in the time."""
    way, tallies = _common_runtime(contenders, ways, threads)
    task = progress.add_task(f"evaluating on {way.label}", total=len(images))
    seen = skipped = 0
    for turn, batch_images in enumerate(images.batches(batch)):
        if turn == 0:
            for tally in tallies.values():
                tally.step(batch_images.pixels)
        _take_turns(tallies, batch_images, turn, way)
        seen += len(batch_images)
        skipped += batch_images.skipped
        progress.update(task, completed=seen + skipped)
    return [
        Evaluation(
            model=name,
            runtime=way.label,
            batch=batch,
            images=seen,
            skipped=skipped,
            loss=tally.loss / seen if images.has_labels else None,
            accuracy=tally.correct / seen if images.has_labels else None,
            seconds=tally.milliseconds / 1e3,
        )
        for name, tally in tallies.items()
    ]


def _take_turns(tallies: dict[str, _Tally], images: Images, turn: int, way: Variant) -> None:
    names = list(tallies)
    start = turn % len(names)
    runs = {name: partial(tallies[name].step, images.pixels) for name in names[start:] + names[:start]}
    timings = time_interleaved(runs, warmup=0, rounds=1, synchronize=lambda: synchronize(way.device))
    for name, tally in tallies.items():
        tally.milliseconds += sum(timings[name].samples_ms)
        if images.labels is not None:
            tally.count(images.labels)


def _common_runtime(
    contenders: Sequence[Contender], ways: Sequence[Variant], threads: int
) -> tuple[Variant, dict[str, _Tally]]:
    """The last float32 way without a CUDA graph that all models run on: ONNX Runtime on the device, else torch."""
    reason = "no runtime was chosen"
    for way in reversed([way for way in ways if not way.half and not way.cuda_graph]):
        if way.runtime == "torch-compile":
            # The last batch, which is a smaller one, would be compiled within the time.
            way = replace(way, runtime="torch")
        try:
            return way, {one.name: _Tally(forward(way, one, threads)) for one in contenders}
        except UnavailableError as error:
            reason = str(error)
    raise UserError(f"no runtime takes all of the models ({reason}): name another with --runtimes")
