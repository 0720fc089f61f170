"""How large the steps' models, images and batches are: for a data-centre GPU, and for a dry run on a CPU."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Shape:
    """A Vision Transformer with a class token."""

    image: int  #: pixels a side
    patch: int
    width: int  #: of the residual stream
    depth: int
    heads: int
    mlp: int  #: hidden neurons of each MLP
    classes: int


@dataclass(frozen=True)
class Sizes:
    """What the steps take."""

    small: Shape  #: vitfx's own ViT
    base: Shape  #: torchvision's
    images: int  #: calibration images
    demo_images: int  #: digits for discovery
    batches: tuple[int, ...]  #: that are timed, in the order of their worth
    shares: tuple[float, ...]  #: of a kind's units that are deleted
    cell_seconds: float  #: for timing all variants at one batch, precision and runtime, in turns
    rounds: int  #: of timing, at most
    compiler: str  #: torch.compile's backend
    compile_seconds: float  #: after which one compilation is given up
    compiled: int  #: cells of times that torch.compile has, at most
    exported: int  #: variants that ONNX Runtime has, at most
    training_batch: int
    training_steps: int
    goal_batch: int
    sampled: int  #: the CPU decides every so many-th of the GPU's edges again


LARGE = Sizes(
    small=Shape(224, 16, 384, 12, 6, 1536, 1000),
    base=Shape(224, 16, 768, 12, 12, 3072, 1000),
    images=64,
    demo_images=64,
    batches=(64, 1, 256, 8),
    shares=(0.1, 0.3, 0.5),
    cell_seconds=1.0,
    rounds=25,
    compiler="inductor",
    compile_seconds=60.0,
    compiled=6,
    exported=4,
    training_batch=128,
    training_steps=20,
    goal_batch=64,
    sampled=6,
)
TINY = Sizes(
    small=Shape(32, 8, 32, 2, 4, 64, 10),
    base=Shape(32, 8, 48, 2, 4, 96, 10),
    images=8,
    demo_images=8,
    batches=(2, 1),
    shares=(0.5,),
    cell_seconds=0.05,
    rounds=3,
    # Inductor takes most of a minute for what this rehearses.
    compiler="eager",
    compile_seconds=30.0,
    compiled=1,
    exported=2,
    training_batch=4,
    training_steps=3,
    goal_batch=2,
    sampled=3,
)
