"""An artifact measured beside the plain export of the original: in turns on one target, on the same images."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from vitfx.deploy.evaluate import evaluate
from vitfx.deploy.runtime import OnnxModel
from vitfx.images.image_set import ImageSet
from vitfx.pruning.target_bench import TargetBench
from vitfx.support.devices import synchronize

_PLAIN, _PRUNED = "plain", "pruned"
_BATCH = 64


@dataclass(frozen=True, kw_only=True)
class BesidePlain:
    """speedup: the plain export's time by the artifact's, tenth percentiles, at the target's batch; ms, plain_ms: their
    medians. kl: mean D_KL(original ‖ artifact) in nats on `images` images; agreement: share of them with the original's
    top-1. accuracy, plain_accuracy: top-1, 0..1, None without labels."""

    speedup: float
    ms: float
    plain_ms: float
    kl: float
    agreement: float
    accuracy: float | None
    plain_accuracy: float | None
    images: int

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def measure_beside_plain(bench: TargetBench, plain: OnnxModel, artifact: Path, images: ImageSet) -> BesidePlain:
    """artifact: an ONNX file. plain: of `bench.open_plain`."""
    sessions = {_PLAIN: plain, _PRUNED: bench.open(artifact)}
    timings = bench.timings(sessions)
    scores = evaluate(
        {name: session.run for name, session in sessions.items()},
        images,
        batch=_BATCH,
        synchronize=partial(synchronize, bench.device),
        progress=bench.watcher.bar("evaluating"),
    )
    found = scores[_PRUNED]
    return BesidePlain(
        speedup=timings[_PLAIN].p10_ms / timings[_PRUNED].p10_ms,
        ms=timings[_PRUNED].median_ms,
        plain_ms=timings[_PLAIN].median_ms,
        kl=found.kl,
        agreement=found.agreement,
        accuracy=found.accuracy,
        plain_accuracy=scores[_PLAIN].accuracy,
        images=found.images,
    )
