"""`python -m benchmarks.int8`: what int8 costs a model, and what each of the ways to keep it near float32 is worth."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import onnx
import torch
from torch import Tensor

from benchmarks import command
from benchmarks.subject import Opened, open_model_and_data
from vitfx.deploy.deployment import NAMES, default_deployment, deploy
from vitfx.deploy.quantize import TUNINGS, Quantized, to_int8
from vitfx.graph.canonical import read_module
from vitfx.graph.divergence import make_divergence
from vitfx.runs.optimize_int8 import answers_of
from vitfx.support.console import entry_point
from vitfx.support.json_files import write_json
from vitfx.support.machine import environment
from vitfx.support.progress import Watcher
from vitfx.support.tables import Table

FORMAT = "vitfx-int8/1"
_EXAMPLE = """example:
  python -m benchmarks.int8 vit.pt --data photos/ --out int8.json

The model is not pruned. Each row leaves one thing out: scales that move from activations to weights (norms, values),
eight bits for pairs of weights, corrected biases, or maps that stay float32. D_KL(float32 ‖ int8) is on evaluation
images; the calibration images set the ranges."""
_NOTHING, _SPARING = "nothing", "maps in float32"


@dataclass(frozen=True, kw_only=True)
class Int8Options(command.CommonOptions):
    """What `benchmarks.int8` is asked for."""

    samples: int  #: calibration images
    eval_samples: int

    def __post_init__(self) -> None:
        super().__post_init__()
        command.check_least(2, samples=self.samples, eval_samples=self.eval_samples)


@entry_point
def main(arguments: Sequence[str] | None = None) -> int:
    return command.run_command(lambda: Int8Options(**vars(build_parser().parse_args(arguments))), _work)


def _work(options: Int8Options, watcher: Watcher) -> list[Table]:
    opened = open_model_and_data(options.model, options.data, options.samples, options.seed, watcher)
    calibration = opened.images.pixels
    evaluation = opened.evaluation(options.eval_samples)
    pixels = evaluation.load(watcher.bar("loading")).pixels
    exact = _float32(opened, watcher)
    expected = answers_of(exact.SerializeToString(), pixels)
    rows: dict[str, dict[str, Any]] = {}
    divergence = make_divergence("classes", expected)
    for left_out in (_NOTHING, _SPARING, *TUNINGS):
        watcher.say(f"rounding, left out: {left_out}")
        int8 = to_int8(exact, calibration, tunings=[name for name in TUNINGS if name != left_out])
        int8 = int8 if left_out == _SPARING else int8.sparing_dearest(calibration, divergence)
        rows[left_out] = _row(int8, divergence(expected, answers_of(int8.model.SerializeToString(), pixels)))
    record = {
        "model": {"source": options.model, "fingerprint": opened.model.fingerprint},
        "images": {"calibration": opened.sample.fingerprint(), "evaluation": evaluation.fingerprint()},
        "counts": {"calibration": len(calibration), "evaluation": len(pixels)},
        "rows": rows,
        "environment": environment(),
    }
    write_json(options.out, FORMAT, record)
    return [_table(rows)]


def _float32(opened: Opened, watcher: Watcher) -> onnx.ModelProto:
    """The model after exact rewrites, in the form of standard operators, of which int8 rounds the most."""
    pixels = opened.images.pixels
    front = read_module(opened.model.module, pixels, watcher)
    cpu = torch.device("cpu")
    return deploy(front.graph_module, default_deployment(NAMES, cpu, portable=True), pixels[:2], {}).model


def _row(int8: Quantized, kl: Tensor) -> dict[str, Any]:
    """kl: (N,), of each image."""
    return {
        "kl": float(kl.mean()),
        "standard_error": float(kl.std() / len(kl) ** 0.5),
        "quantized": int8.quantized,
        "kept": list(int8.kept),
    }


def _table(rows: dict[str, dict[str, Any]]) -> Table:
    cells = [
        (name, f"{row['kl']:.4f} ± {row['standard_error']:.4f}", str(row["quantized"])) for name, row in rows.items()
    ]
    return Table(("left out", "KL", "maps in int8"), cells)


def build_parser() -> argparse.ArgumentParser:
    parser = command.make_parser("int8", __doc__ or "", _EXAMPLE)
    command.add_common(parser, "int8.json", "samples")
    parser.add_argument("--samples", type=int, default=128, help="calibration images (default: %(default)s)")
    parser.add_argument("--eval-samples", type=int, default=1000, help="evaluation images (default: %(default)s)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
