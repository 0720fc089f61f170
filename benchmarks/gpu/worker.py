"""The process that does the steps' work: started by `benchmarks.gpu.supervise`, which survives whatever happens here.

It says what it finds through a pipe, a line of JSON each time.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu.context import Context
from benchmarks.gpu.steps import Event, run_steps
from vitfx.support.devices import GPU, is_gpu, pick_device
from vitfx.support.machine import environment, load_average


def main(arguments: dict[str, Any]) -> int:
    """arguments: the pipe's number, the steps, their seconds, the seed, and the name of the device."""
    os.set_inheritable(arguments["pipe"], False)
    with os.fdopen(arguments["pipe"], "w", encoding="utf-8") as pipe, tempfile.TemporaryDirectory() as folder:

        def emit(event: Event) -> None:
            # On a line of its own, even where the last one was broken off by a step's end.
            pipe.write(f"\n{json.dumps(event)}\n")
            pipe.flush()

        device = pick_device(arguments["device"])
        if is_gpu(device):
            torch.cuda.set_device(device)
        else:
            # The models of a rehearsal are tiny: threads would only wait for each other.
            torch.set_num_threads(1)
        emit({"environment": facts(device)})
        context = Context(device, arguments["seed"], Path(folder))
        return 0 if run_steps(arguments["steps"], context, arguments["seconds"], emit) else 1


def facts(device: torch.device) -> dict[str, Any]:
    """The machine, its versions, and what of torch's settings times depend on."""
    record = environment() | {"device": str(device), "load_average_before": load_average()}
    if is_gpu(device):
        properties = torch.cuda.get_device_properties(device)
        record["gpu"] = {
            "name": properties.name,
            "capability": list(torch.cuda.get_device_capability(device)),
            "memory_gib": properties.total_memory / 2**30,
            "multiprocessors": properties.multi_processor_count,
            "l2_mib": getattr(properties, "L2_cache_size", 0) / 2**20,
            GPU: torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
        }
    tf32 = {"cudnn_allow_tf32": torch.backends.cudnn.allow_tf32}
    return record | tf32 | {"float32_matmul_precision": torch.get_float32_matmul_precision()}


if __name__ == "__main__":
    sys.exit(main(json.loads(sys.argv[1])))
