"""Which device to run on: the only file that spells the name of NVIDIA's."""

from __future__ import annotations

import re

import torch

from vitfx.support.errors import UserError

GPU = "cuda"
NAMES = f"auto, cpu, {GPU} or {GPU}:N"


def pick_device(name: str) -> torch.device:
    """The device called `name`: "auto" is the first GPU, or the CPU where there is none.

    Raises UserError for a name that is not one of `NAMES` and for a GPU that torch does not see.
    """
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "auto":
        return torch.device(GPU, 0) if count else torch.device("cpu")
    if name == "cpu":
        return torch.device("cpu")
    match = re.fullmatch(rf"{GPU}(?::(\d+))?", name)
    if match is None:
        raise UserError(f"device {name!r} is not one of {NAMES}: give one of these")
    index = int(match[1] or 0)
    if index >= count:
        raise UserError(f"device {name!r} does not exist, torch sees {count} GPUs here: use `device` cpu or auto")
    return torch.device(GPU, index)


def is_gpu(device: torch.device) -> bool:
    return device.type == GPU


def words_for(device: torch.device) -> str:
    """ "cpu, 2 threads", or a GPU's name and what it is."""
    if is_gpu(device):
        return f"{device}, {torch.cuda.get_device_name(device)}"
    threads = torch.get_num_threads()
    return f"{device}, {threads} thread{'' if threads == 1 else 's'}"


def synchronize(device: torch.device) -> None:
    """Waits for the device to finish its work; the CPU always has."""
    if is_gpu(device):
        torch.cuda.synchronize(device)


def gpu_names() -> list[str]:
    """The model of each GPU that torch sees."""
    if not torch.cuda.is_available():
        return []
    return [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
