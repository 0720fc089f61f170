"""The seed project's table: test loss, test accuracy and inference time over the test set."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

from torch import Tensor

from benchmarks.contenders import Contender
from benchmarks.workloads import UnavailableError, Variant, forward
from vitfx.deploy.evaluate import Scores, evaluate
from vitfx.images.image_set import ImageSet
from vitfx.support.devices import synchronize
from vitfx.support.errors import UserError


@dataclass(frozen=True)
class Evaluations:
    """The models' scores, all on one runtime."""

    runtime: str
    batch: int  #: images at a time
    scores: dict[str, Scores]  #: by name, the first model first


def evaluate_contenders(
    contenders: Sequence[Contender],
    ways: Sequence[Variant],
    images: ImageSet,
    batch: int,
    threads: int,
    progress: Callable[[int, int], None] | None = None,
) -> Evaluations:
    """Raises UserError where no runtime takes all of the models."""
    way, models = _common_runtime(contenders, ways, threads)
    scores = evaluate(models, images, batch=batch, synchronize=partial(synchronize, way.device), progress=progress)
    return Evaluations(way.label, batch, scores)


def _common_runtime(
    contenders: Sequence[Contender], ways: Sequence[Variant], threads: int
) -> tuple[Variant, dict[str, Callable[[Tensor], Tensor]]]:
    """The last float32 way without a CUDA graph for all models: ONNX Runtime on the device, else torch."""
    reason = "no runtime was chosen"
    for way in reversed([way for way in ways if not way.half and not way.cuda_graph]):
        if way.runtime == "torch-compile":
            # The last batch, which is smaller, would be compiled while the clock runs.
            way = replace(way, runtime="torch")
        try:
            return way, {contender.name: forward(way, contender, threads) for contender in contenders}
        except UnavailableError as error:
            reason = str(error)
    raise UserError(f"no runtime takes all of the models ({reason}): name another with --runtimes")
