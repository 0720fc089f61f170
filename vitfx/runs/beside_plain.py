"""An artifact measured beside the plain export of the original: in turns on one target, on the same images."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import onnx

from vitfx.deploy.evaluate import evaluate
from vitfx.deploy.runtime import Session
from vitfx.images.image_set import ImageSet
from vitfx.pruning.target_bench import TargetBench
from vitfx.support.devices import synchronize
from vitfx.support.timing import speed_up

_PLAIN, _PRUNED = "plain", "pruned"
_BATCH = 64


@dataclass(frozen=True, kw_only=True)
class BesidePlain:
    """An artifact and the plain export, at the target's batch."""

    speedup: float  #: the plain export's time by the artifact's, tenth percentiles
    ms: float  #: the artifact's median time
    plain_ms: float  #: the plain export's
    kl: float  #: mean D_KL(original ‖ artifact) in nats
    agreement: float | None  #: the share of images with the original's top-1
    accuracy: float | None  #: top-1, 0..1, None without labels
    plain_accuracy: float | None
    images: int  #: that all but the times are measured on

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def measure_beside_plain(bench: TargetBench, plain: Session, artifact: Path, images: ImageSet) -> BesidePlain:
    """artifact: an ONNX file. plain: of `bench.open_plain`."""
    sessions = {_PLAIN: plain, _PRUNED: bench.open(onnx.load(artifact))}
    plain_times, times = bench.timings(*sessions.values())
    scores = evaluate(
        {name: session.run for name, session in sessions.items()},
        images,
        batch=_BATCH,
        synchronize=partial(synchronize, bench.device),
        progress=bench.watcher.bar("evaluating"),
    )
    pruned = scores[_PRUNED]
    return BesidePlain(
        speedup=speed_up(plain_times, times).value,
        ms=times.median_ms,
        plain_ms=plain_times.median_ms,
        kl=pruned.kl,
        agreement=pruned.agreement,
        accuracy=pruned.accuracy,
        plain_accuracy=scores[_PLAIN].accuracy,
        images=pruned.images,
    )
