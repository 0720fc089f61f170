"""A seed for each part of a training, so that nothing depends on earlier draws."""

from __future__ import annotations

import hashlib

import torch

from vitfx.support.devices import is_gpu


def derive_seed(seed: int, *parts: str | int) -> int:
    """A number from 0 to 2⁶³ − 1 that depends on the seed and all parts, the same on every machine."""
    digest = hashlib.blake2b("/".join(map(str, (seed, *parts))).encode(), digest_size=8).digest()
    return int.from_bytes(digest) >> 1


def seed_generators(seed: int, device: torch.device) -> None:
    """Seeds torch's generators of the CPU and of `device`."""
    # Not torch.manual_seed, which keeps a stack trace of each call until a GPU is used.
    torch.default_generator.manual_seed(seed)
    if is_gpu(device):
        torch.cuda.default_generators[device.index or 0].manual_seed(seed)
