"""What all peers share: model, images, exporter, runtime, and the plain export that speeds are relative to."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule

from benchmarks.comparison import BATCH, scored
from benchmarks.peer_units import Given
from benchmarks.subject import Opened
from passes.cost import measure_cost
from vitfx.deploy.deployment import NAMES, default_deployment, deploy
from vitfx.deploy.evaluate import evaluate
from vitfx.deploy.export import export_plain
from vitfx.deploy.runtime import open_session
from vitfx.graph.canonical import read_module
from vitfx.graph.trace import at_rest
from vitfx.images.image_set import ImageSet
from vitfx.pruning.goal import Target
from vitfx.support.devices import pick_device, synchronize
from vitfx.support.machine import environment
from vitfx.support.progress import Watcher
from vitfx.support.timing import batch_to_time, ratio, time_interleaved

_EXAMPLES = 8
_PLAIN, _THIS = "plain", "this"


class Match:
    """Measures what peers make of one model.

    original: the canonical graph, on the CPU
    asked: all that a row depends on besides its peer and share
    """

    def __init__(
        self,
        given: Given,
        original: GraphModule,
        evaluation: ImageSet,
        target: Target,
        rounds: int,
        facts: dict[str, Any],
    ) -> None:
        self.given, self.original, self.evaluation, self.rounds = given, original, evaluation, rounds
        self.watcher = given.watcher
        self.examples = given.pixels[:_EXAMPLES].cpu()
        self.device = pick_device(target.device)
        self.deployment = default_deployment(NAMES, self.device, portable=False)
        self.flops = measure_cost(original, self.examples.shape[1:]).flops
        self.batch = batch_to_time(given.pixels.cpu(), target.batch)
        model, self.plain_is = export_plain(given.module, original, self.examples[:2], {})
        self.plain = open_session(model.SerializeToString(), self.device)
        self._plain_logits = Remembered(self.plain.run)
        self.asked: dict[str, Any] = facts | {
            "target": target.to_json(),
            "deployment": self.deployment.to_json(),
            "plain": self.plain_is,
            "rounds": rounds,
        }

    def measure(self, graph_module: GraphModule) -> dict[str, Any]:
        """What a canonical graph on the CPU reaches once exported, ready for JSON.

        speedup: the plain export's time over this one's, the median over the rounds
        plain: the plain export's own accuracy on these images
        """
        model = deploy(graph_module, self.deployment, self.examples, {}).model
        session = open_session(model.SerializeToString(), self.device)
        scores = evaluate(
            {_PLAIN: self._plain_logits, _THIS: session.run},
            self.evaluation,
            batch=BATCH,
            progress=self.watcher.bar("evaluation"),
        )
        times = time_interleaved(
            {_PLAIN: self.plain.bind(self.batch), _THIS: session.bind(self.batch)},
            rounds=self.rounds,
            synchronize=partial(synchronize, self.device),
            progress=self.watcher.bar("timing"),
        )
        cost = measure_cost(graph_module, self.examples.shape[1:])
        row = scored(scores[_THIS])
        # The plain export's answers may be remembered: the two times do not compare.
        del row["evaluation_seconds"]
        return {
            **row,
            "plain": scores[_PLAIN].accuracy,
            "deleted": 1 - cost.flops / self.flops,
            "parameters": cost.parameters,
            "heads": cost.heads,
            "neurons": cost.neurons,
            "sublayers": cost.sublayers,
            "speedup": 1 / ratio(times[_THIS], times[_PLAIN]).paired,
            "times": {name: timing.to_json() for name, timing in times.items()},
        }


class Remembered:
    """A model that keeps its answers, because it is asked for the same batches again and again."""

    def __init__(self, call: Callable[[Tensor], Tensor]) -> None:
        self._call = call
        self._known: dict[bytes, Tensor] = {}

    def __call__(self, pixels: Tensor) -> Tensor:
        key = hashlib.sha256(pixels.contiguous().numpy().tobytes()).digest()
        if key not in self._known:
            self._known[key] = self._call(pixels)
        return self._known[key]


def open_match(
    opened: Opened, evaluation: ImageSet, target: Target, rounds: int, device: torch.device, watcher: Watcher
) -> Match:
    """device: where peers are made. Raises UserError where the model can't be used."""
    images = opened.images
    module = at_rest(opened.model.module).cpu()
    original = read_module(module, images.pixels, watcher).graph_module
    graph_module = copy.deepcopy(original).to(device)
    pixels = images.pixels.to(device)
    labels = _answers(graph_module, pixels) if images.labels is None else images.labels.to(device)
    facts = {
        "model": {"source": opened.source, "fingerprint": opened.model.fingerprint},
        "data": {
            "name": opened.splits.name,
            "calibration": opened.sample.fingerprint(),
            "evaluation": evaluation.fingerprint(),
        },
        "samples": len(opened.sample),
        "evaluation_images": len(evaluation),
        "seed": opened.seed,
        "environment": environment() | {"device": str(device)},
    }
    given = Given(module, graph_module, pixels, labels, opened.seed, watcher, target)
    return Match(given, original, evaluation, target, rounds, facts)


@torch.no_grad()
def _answers(graph_module: GraphModule, pixels: Tensor) -> Tensor:
    return torch.cat([graph_module(batch).argmax(dim=-1) for batch in pixels.split(BATCH)])
