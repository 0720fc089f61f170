"""`python -m benchmarks.planted`: a small ViT whose circuit is known, because its weights were set to compute it.

Patches of an image carry markers a, b, c, d (each in one patch), a colour and a shade (±1 each), and noise. The model's
jobs, all done for the class token:

    a0.h0   looks at the patch marked a and copies its colour: x
    a0.h1   looks at the patch marked b and copies its colour: y
    m0      z = |x − y| / 2, whether they differ, in its first two neurons
    a2.h0   looks at the patch marked c if z is 1, else d, and copies its shade: v
    m2      u = |v − y| − 1, whether they differ, in its first two neurons
    logits  the class is the pair of signs of x and u

All other heads and neurons, the whole of a1 and m1 among them, have random weights: they read every feature, and write
into directions that none of these jobs reads. They still reach the jobs through the norms' variance, of which a
constant in the stream, `CONSTANT`, holds all but some thousandths.

A feature f occupies two directions of the stream, as f and −f, so that the stream's mean is always zero.
"""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks import command
from vitfx.images.preprocess import Preprocess
from vitfx.models.checkpoint import save_checkpoint
from vitfx.models.vit import Block, ViT
from vitfx.support.console import entry_point
from vitfx.support.errors import UserError
from vitfx.support.files import write_aside
from vitfx.support.json_files import read_json, write_json
from vitfx.support.progress import Watcher
from vitfx.support.tables import Table

FORMAT = "vitfx-planted/1"
EXAMPLE = """example:
  python -m benchmarks.planted planted/
  python -m benchmarks.faithfulness planted/planted.pt --paths 2 --granularity edge --truth planted/circuit.json"""

SIDE, PATCH, HEADS = 9, 3, 4
PATHS = 2
"""Groups of neurons of an MLP in which the first two, which do a job, are apart from the idle ones."""
WIDTH = 32
SIZES = {
    "image_size": SIDE,
    "patch_size": PATCH,
    "channels": 1,
    "classes": 4,
    "width": WIDTH,
    "depth": 3,
    "heads": HEADS,
    "mlp": 4,
}
CONSTANT = 100.0
PATCH_FEATURES = ("a", "b", "c", "d", "colour", "shade", "noise", "more noise")
FEATURES = ("constant", *PATCH_FEATURES, "x", "y", "z", "v", "u", "scratch", "more scratch")
_MARKERS = 4
_CHANNELS = WIDTH // HEADS
_LOOK = 6.0
"""By how much a head's score of the patch that it looks for exceeds the others'."""
_STEEP = 3.0
"""GELU(s t) + GELU(−s t) is s |t|, but for |t| < 1/s."""
_MARGIN = 3.0
"""The logits' step from one sign of x, or u, to the other."""

CIRCUIT = {
    "head": ("embed→stream", "a0.h0→stream", "a0.h1→stream", "m0.p1→stream", "a2.h0→stream", "m2.p1→stream"),
    "edge": (
        "embed→a0.h0",
        "embed→a0.h1",
        "a0.h0→m0",
        "a0.h1→m0",
        "embed→a2.h0",
        "m0.p1→a2.h0",
        "a0.h1→m2",
        "a2.h0→m2",
        "a0.h0→logits",
        "m2.p1→logits",
    ),
    "qkv": (
        "embed→a0.h0.k",
        "embed→a0.h0.v",
        "embed→a0.h1.k",
        "embed→a0.h1.v",
        "a0.h0→m0",
        "a0.h1→m0",
        "m0.p1→a2.h0.q",
        "embed→a2.h0.k",
        "embed→a2.h0.v",
        "a0.h1→m2",
        "a2.h0→m2",
        "a0.h0→logits",
        "m2.p1→logits",
    ),
}
"""The edges that matter, by granularity, with `PATHS` paths an MLP: the busy neurons are the path p1."""


def planted_model() -> ViT:
    """The same weights at every call."""
    generator = torch.Generator().manual_seed(0)
    model = ViT(**SIZES)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        _set_embedding(model)
        blocks = [block for block in model.blocks if isinstance(block, Block)]
        for block in blocks:
            _set_norms(block.attention_norm, block.mlp_norm)
            _set_idle(block, generator)
        _set_norms(model.norm)
        first, _, last = blocks
        nothing, z = torch.zeros(WIDTH), _reads("z")
        _set_head(first, 0, {"a": (1.0, nothing)}, "colour", "x")
        _set_head(first, 1, {"b": (1.0, nothing)}, "colour", "y")
        _set_difference(first, ("x", "y"), "z", 0.5)
        _set_head(last, 0, {"c": (0.0, z), "d": (1.0, -z)}, "shade", "v")
        _set_difference(last, ("v", "y"), "u", 1.0, shift=-1.0)
        for row, (of_x, of_u) in enumerate(product((1, -1), repeat=2)):
            model.head.weight[row] = _MARGIN * (of_x * _reads("x") + of_u * _reads("u"))
    return model.eval()


def planted_images(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """uint8 (N, side, side) and their classes, int64 (N,), as the jobs define them."""
    drawn = np.random.default_rng(seed)
    patches = (SIDE // PATCH) ** 2
    features = drawn.integers(0, 2, (count, patches, PATCH * PATCH), dtype=np.uint8)
    marked = np.stack([drawn.permutation(patches)[:_MARKERS] for _ in range(count)])
    features[..., :_MARKERS] = np.arange(patches)[None, :, None] == marked[:, None]
    colour, shade = (features[..., PATCH_FEATURES.index(name)] for name in ("colour", "shade"))
    rows = np.arange(count)
    x, y = colour[rows, marked[:, 0]], colour[rows, marked[:, 1]]
    v = shade[rows, np.where(x != y, marked[:, 2], marked[:, 3])]
    u = v != y
    squares = features.reshape(count, SIDE // PATCH, SIDE // PATCH, PATCH, PATCH)
    pixels = 255 * squares.transpose(0, 1, 3, 2, 4).reshape(count, SIDE, SIDE)
    return pixels, 2 * (1 - x.astype(np.int64)) + (1 - u.astype(np.int64))


def write_planted(folder: Path, count: int = 1000, seed: int = 0) -> None:
    """planted.pt, images.npz, which it names, and circuit.json, see `read_circuit_names`."""
    folder.mkdir(parents=True, exist_ok=True)
    images, labels = planted_images(count, seed)
    data = folder / "images.npz"
    buffer = io.BytesIO()
    np.savez(buffer, images=images, labels=labels)
    write_aside(data, buffer.getvalue())
    save_checkpoint(
        folder / "planted.pt",
        factory="vitfx.models:ViT",
        kwargs=SIZES,
        state_dict=planted_model().state_dict(),
        preprocess=Preprocess((SIDE, SIDE), mean=(0.5,), std=(0.5,)),
        classes=tuple("0123"),
        data=str(data.resolve()),
        made_by="python -m benchmarks.planted",
    )
    write_json(folder / "circuit.json", FORMAT, {"edges": {name: list(edges) for name, edges in CIRCUIT.items()}})


def read_circuit_names(path: Path, granularity: str) -> frozenset[str]:
    """The edges, by name, that a circuit.json of `write_planted` has for this granularity. Raises UserError."""
    edges = read_json(path, FORMAT, "give the circuit.json of benchmarks.planted").get("edges")
    if not isinstance(edges, dict) or granularity not in edges:
        raise UserError(f"{path} has no circuit of the {granularity} graph: choose another --granularity")
    return frozenset(edges[granularity])


def _places(feature: str) -> tuple[int, int]:
    """The two directions of the stream in which it stands."""
    at = 2 * FEATURES.index(feature)
    return at, at + 1


def _writes(feature: str) -> Tensor:
    """The direction (D,) that adds 1 to the feature."""
    direction = torch.zeros(WIDTH)
    direction[list(_places(feature))] = torch.tensor([1.0, -1.0])
    return direction


def _reads(feature: str) -> Tensor:
    """The direction (D,) whose product with the normalised stream is the feature."""
    return _writes(feature) / 2


def _set_embedding(model: ViT) -> None:
    """Pixels are ±1; markers count as 0 and 1."""
    linear = _linear(model.embed[1])
    linear.bias.copy_(CONSTANT * _writes("constant"))
    model.class_token[0, 0] = CONSTANT * _writes("constant")
    for pixel, feature in enumerate(PATCH_FEATURES):
        is_marker = pixel < _MARKERS
        linear.weight[:, pixel] = _writes(feature) * (0.5 if is_marker else 1.0)
        linear.bias.add_(_writes(feature), alpha=0.5 if is_marker else 0.0)


def _set_norms(*norms: nn.LayerNorm) -> None:
    """What a norm gives of a feature is the feature; of the constant, nothing."""
    for norm in norms:
        norm.weight.fill_(CONSTANT * (2 / WIDTH) ** 0.5)
        norm.weight[list(_places("constant"))] = 0.0


def _set_idle(block: Block, generator: torch.Generator) -> None:
    """Every head and neuron reads every feature at random, and writes scratch."""
    features = torch.stack([_reads(feature) for feature in FEATURES[1:]])
    scratch = torch.stack([_writes(feature) for feature in FEATURES[-2:]])

    def drawn(linear: nn.Linear, basis: Tensor, scale: float) -> Tensor:
        count = len(linear.weight) if basis is features else linear.in_features
        return scale * torch.randn(count, len(basis), generator=generator) @ basis

    attention, mlp = block.attention, block.mlp
    for reader, writer in ((attention.qkv, _linear(attention.out[0])), (_linear(mlp[0]), _linear(mlp[3]))):
        reader.weight.copy_(drawn(reader, features, 1.0))
        writer.weight.copy_(drawn(writer, scratch, 0.1).T)


def _set_head(block: Block, head: int, looks_for: Mapping[str, tuple[float, Tensor]], copies: str, writes: str) -> None:
    """looks_for: for a marker, a constant and a direction; the head looks for it as much as the constant and the stream
    along the direction add up to."""
    own = slice(head * _CHANNELS, (head + 1) * _CHANNELS)
    qkv, out = block.attention.qkv, _linear(block.attention.out[0])
    queries, keys, values = qkv.weight.unflatten(0, (3, HEADS, _CHANNELS))[:, head]
    bias = qkv.bias.unflatten(0, (3, HEADS, _CHANNELS))[0, head]
    for rows in (queries, keys, values):
        rows.zero_()
    out.weight[:, own] = 0.0
    for channel, (marker, (constant, direction)) in enumerate(looks_for.items()):
        strength = _LOOK * _CHANNELS**0.5
        bias[channel] = strength * constant
        queries[channel] = strength * direction
        keys[channel] = _reads(marker)
    values[0] = _reads(copies)
    out.weight[:, head * _CHANNELS] = _writes(writes)


def _set_difference(block: Block, features: tuple[str, str], writes: str, scale: float, shift: float = 0.0) -> None:
    """The first two neurons write scale · |the features' difference| + shift."""
    difference = _reads(features[0]) - _reads(features[1])
    hidden, out = _linear(block.mlp[0]), _linear(block.mlp[3])
    hidden.weight[:2] = _STEEP * torch.stack([difference, -difference])
    out.weight[:, :2] = scale / _STEEP * _writes(writes)[:, None]
    out.bias.add_(shift * _writes(writes))


def _linear(module: nn.Module) -> nn.Linear:
    assert isinstance(module, nn.Linear)
    return module


@dataclass(frozen=True)
class PlantedOptions:
    """What `benchmarks.planted` is asked for. Raises UserError."""

    out: Path  #: a folder
    images: int
    seed: int  #: of the images

    def __post_init__(self) -> None:
        command.check_least(10, images=self.images)


@entry_point
def main(arguments: Sequence[str] | None = None) -> int:
    return command.run_command(lambda: PlantedOptions(**vars(build_parser().parse_args(arguments))), _work)


def _work(options: PlantedOptions, watcher: Watcher) -> list[Table]:
    write_planted(options.out, options.images, options.seed)
    return []


def build_parser() -> argparse.ArgumentParser:
    parser = command.make_parser("planted", "Writes a small ViT with a known circuit, and images for it.", EXAMPLE)
    parser.add_argument("out", metavar="FOLDER", type=Path, help="where planted.pt, images.npz and circuit.json go")
    parser.add_argument("--images", type=int, default=1000, help="(default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the images (default: %(default)s)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
