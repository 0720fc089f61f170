"""What torchrun starts for `benchmarks.gpu.group`: a process group of one, through all that vitfx does with one."""

from __future__ import annotations

import copy
import json
import sys
import time
from pathlib import Path

import torch
import torch.distributed as dist
from torch.fx import GraphModule
from torch.nn.parallel import DistributedDataParallel

from benchmarks.gpu.context import Figures
from benchmarks.gpu.models import DEMO, Subject, build_subject
from benchmarks.gpu.sizes import LARGE, TINY
from vitfx.discovery.basis.journal import NoJournal
from vitfx.discovery.basis.settings import Settings
from vitfx.discovery.run import discover, origins
from vitfx.support.devices import is_gpu, pick_device
from vitfx.support.processes import Share, open_share
from vitfx.support.progress import Silent


def main(name: str, seed: int, out: Path) -> None:
    device = pick_device(name)
    if not is_gpu(device):
        torch.set_num_threads(1)
    subject = build_subject(DEMO, LARGE if is_gpu(device) else TINY, seed)
    graph_module = copy.deepcopy(subject.graph_module).to(device)
    alone = _decisions(subject, graph_module, None, seed)
    with open_share(device) as share:
        figures: Figures = {"backend": dist.get_backend(), "world": share.world, "device": str(device)}
        values = torch.randn(2**20, device=device)
        figures["sum_error"] = float((share.sum(values) - values).abs().max())
        figures["broadcast"] = share.broadcast({"seed": seed}) == {"seed": seed}
        figures["gradient_error"] = _gradient_error(graph_module, subject.pixels.to(device), device)
        began = time.perf_counter()
        together = _decisions(subject, graph_module, share, seed)
        figures["discovery_seconds"] = time.perf_counter() - began
    if is_gpu(device):
        figures["peak_memory_mib"] = torch.cuda.max_memory_allocated(device) / 2**20
    figures |= {"decisions": len(alone), "agreeing": sum(together.get(edge) == kept for edge, kept in alone.items())}
    out.write_text(json.dumps(figures), encoding="utf-8")


def _decisions(subject: Subject, graph_module: GraphModule, share: Share | None, seed: int) -> dict[str, bool]:
    settings = Settings(tau=1e-3, samples=len(subject.images), seed=seed)
    facts = origins(graph_module, subject.images)
    discovery = discover(graph_module, subject.images, settings, facts, NoJournal(), Silent(), share)
    return {decision.edge.name: decision.kept for decision in discovery.circuit.decisions}


def _gradient_error(graph_module: GraphModule, pixels: torch.Tensor, device: torch.device) -> float:
    """How far gradients that went through the group are from those that did not, by the greatest."""
    gradients = []
    for grouped in (False, True):
        model = copy.deepcopy(graph_module).train()
        network = DistributedDataParallel(model, device_ids=[device] if is_gpu(device) else None) if grouped else model
        network(pixels).square().mean().backward()
        gradients.append(torch.cat([weight.grad.flatten() for weight in model.parameters() if weight.grad is not None]))
    return float((gradients[1] - gradients[0]).abs().max() / gradients[0].abs().max())


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]))
