"""What `benchmarks.sizes` measured: tables, what memory grows with, and what a run would cost on GPUs, on paper."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy.optimize import nnls

from benchmarks.size_stages import SHAPES, STAGES
from vitfx.support.tables import Table

_FLOAT, _MIB = 4, 2**20
_GPU_FLOPS = 60e12
"""Of float32 with TF32 matrix products, sustained: two fifths of the 156 TFLOP/s that an A100's data sheet promises."""
_GPUS = 8
_SHARED = ("discovery",)
"""Stages whose images several processes share; the others run on one."""
_ON_CPUS = ("trace", "export")
"""Stages that no GPU makes faster."""

Row = Mapping[str, Any]


def tables(rows: Sequence[Row]) -> list[Table]:
    """One of what was measured; one of the formulas, where there is enough to fit them; one of GPUs."""
    good = [row for row in rows if "error" not in row]
    return [
        _measured(rows),
        *([_formulas(good)] if _fits(good) else []),
        *([_on_gpus(good)] if {row["stage"] for row in good} - {*_ON_CPUS} else []),
    ]


def to_markdown(rows: Sequence[Row], environment: Mapping[str, Any]) -> str:
    made = f"Made with torch {environment['torch']} on one thread of {environment['cpu']}."
    parts = [line for table in tables(rows) for line in ("", table.title, "", *table.to_markdown(), "", table.caption)]
    return "\n".join([made, *parts]) + "\n"


def _measured(rows: Sequence[Row]) -> Table:
    cells = []
    for row in rows:
        name = (f"ViT-{row['model'].capitalize()}", str(row["tokens"]), row["stage"])
        if "error" in row:
            cells.append((*name, "–", "–", "–", row["error"]))
            continue
        passes = f"{row['seconds'] / row['forward_seconds']:.1f}"
        memory = f"{row['peak_mib']:,.0f}", f"{row['peak_mib'] - row['before_mib']:,.0f}"
        cells.append((*name, f"{row['seconds']:.1f}", passes, *memory))
    return Table(
        ("model", "tokens", "stage", "seconds", "forward passes", "peak MiB", "of it the stage's"),
        cells,
        "What each stage takes",
        "Seconds of one core; the same as forward passes of all images; memory of the whole process.",
        left=(0, 2),
        groups=[(row["model"], row["tokens"]) for row in rows],
    )


def _parts(row: Row) -> list[float]:
    """MiB of the weights; of one stream of all images; and of one image's attention weights of a layer, 32 times."""
    width, _, heads = SHAPES[row["model"]]
    stream = row["images"] * row["tokens"] * width
    attention = 32 * heads * row["tokens"] ** 2
    return [_FLOAT * numbers / _MIB for numbers in (row["parameters"], stream, attention)]


def _fits(rows: Sequence[Row]) -> bool:
    """Whether there are more models and token counts than the formula has coefficients."""
    return len({(row["model"], row["tokens"]) for row in rows}) > len(_parts(rows[0])) if rows else False


def _formulas(rows: Sequence[Row]) -> Table:
    """Of the memory that a stage takes on top of what was there, none of whose coefficients can be negative."""
    cells = []
    for stage in (stage for stage in STAGES if any(row["stage"] == stage for row in rows)):
        own = [row for row in rows if row["stage"] == stage]
        wanted = np.array([row["peak_mib"] - row["before_mib"] for row in own])
        parts = np.array([_parts(row) for row in own])
        # Relative errors count, so that large models do not drown small ones.
        scale = 1 / np.maximum(wanted, 1)
        coefficients, _ = nnls(parts * scale[:, None], wanted * scale)
        off = np.abs(parts @ coefficients - wanted) * scale
        cells.append((stage, *(f"{coefficient:.2f}" for coefficient in coefficients), f"{off.max():.0%}"))
    return Table(
        ("stage", "weights", "streams", "attention", "off at most"),
        cells,
        "Memory that a stage takes, as so many times",
        "weights: 4 bytes each; streams: images × tokens × width × 4 bytes; attention: 32 images × heads × tokens² × 4 "
        "bytes of one layer.",
    )


def _on_gpus(rows: Sequence[Row]) -> Table:
    """From forward passes as the CPU took them, at a rate that is assumed."""
    cells = []
    for row in (row for row in rows if row["stage"] not in _ON_CPUS):
        flops = row["seconds"] / row["forward_seconds"] * row["images"] * row["flops"]
        seconds = flops / _GPU_FLOPS
        several = seconds / _GPUS if row["stage"] in _SHARED else seconds
        name = (f"ViT-{row['model'].capitalize()}", str(row["tokens"]), row["stage"])
        cells.append((*name, f"{flops / 1e12:.2f}", f"{seconds:.2f}", f"{several:.2f}"))
    return Table(
        ("model", "tokens", "stage", "TFLOPs", "s on one GPU", f"s on {_GPUS}"),
        cells,
        "On paper: the same work on GPUs",
        f"At {_GPU_FLOPS / 1e12:g} TFLOP/s, none of it measured; only discovery spreads its images over several.",
        left=(0, 2),
        groups=[(row["model"], row["tokens"]) for row in rows],
    )
