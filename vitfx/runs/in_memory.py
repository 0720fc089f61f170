"""The commands' work on a module and images in memory, behind `vitfx.prune` and `vitfx.discover`.

Nothing is written before `save` or `to_onnx` is called.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, TypedDict

import torch
from rich.console import Console
from torch import nn

from vitfx.circuits.circuit import Circuit
from vitfx.deploy.deployment import NAMES, Deployment, default_deployment
from vitfx.deploy.precision_file import FILES, Rounding, check_precision, write_precision
from vitfx.deploy.precisions import FP32
from vitfx.deploy.runtimes import check_runtime
from vitfx.discovery.basis.journal import NoJournal
from vitfx.discovery.basis.settings import Settings, check_threshold
from vitfx.discovery.run import check_settings, discover, origins
from vitfx.graph.answers import Kind
from vitfx.graph.canonical import read_module
from vitfx.images.image_set import Images
from vitfx.models.checkpoint import LoadedModel
from vitfx.pruning.compensation import KINDS
from vitfx.pruning.goal import KL, Goal, Target, default_goal
from vitfx.pruning.prune_by_circuit import Compensation, Pruned, compile_model
from vitfx.pruning.prune_for_goal import compile_for_goal
from vitfx.pruning.target_bench import GoalRequest
from vitfx.runs.choose_classes import say_choice
from vitfx.runs.memory_inputs import as_loaded
from vitfx.runs.optimize_in_memory import write_checked
from vitfx.runs.prune_files import RESULTS, write_files
from vitfx.support.devices import pick_device
from vitfx.support.errors import UserError
from vitfx.support.files import UNFINISHED, begin_results, remove_results
from vitfx.support.locks import hold_folder
from vitfx.support.progress import Silent, Watcher, console_watcher


class DiscoverySettings(TypedDict, total=False):
    """Keyword arguments that say how a circuit is found: fields of `vitfx.discovery.basis.settings.Settings`."""

    method: str
    granularity: str
    order: str
    metric: str
    steps: int
    ensemble: tuple[str, ...]
    gate_steps: int
    learning_rate: float
    gate_start: str
    remove: float | None
    ablation: str
    corruption: str
    paths: int
    seed: int


def asked_task(task: str | None) -> Kind | None:
    """Raises UserError for an unknown one."""
    return None if task is None else Kind(task, "as asked", asked=True)


@contextmanager
def watching(progress: bool) -> Iterator[Watcher]:
    """Progress bars on standard error, or silence."""
    if not progress:
        yield Silent()
        return
    with console_watcher(Console(stderr=True)) as watcher:
        yield watcher


@dataclass(frozen=True, kw_only=True)
class PrunedModel(Pruned):
    """A pruned model in memory: `module` is the artifact, `plan` what was deleted."""

    model: LoadedModel  #: the model that was pruned
    images: Images  #: the calibration images
    deployment: Deployment  #: how ONNX files are made
    precision: str = FP32  #: of the file that is written beside pruned.onnx, if another

    def save(self, out: str | Path, *, force: bool = False) -> Path:
        """Writes pruned.pt, pruned.pt2, pruned.onnx, baseline.onnx, circuit.json and the plan, and for a target in
        another precision its file, such as pruned-int8.onnx; the folder.

        force: replace earlier results there. Raises UserError, ExportMismatch and VerificationError.
        """
        folder = Path(out)
        with hold_folder(folder, force=force):
            begin_results(folder)
            remove_results(folder, (*RESULTS, *FILES))
            write_files(folder, self, self.model, self.images, self.deployment, Silent())
            write_precision(folder, self.precision, self.rounding or Rounding(self.images.pixels))
            remove_results(folder, [UNFINISHED])
        return folder

    def to_onnx(self, out: str | Path, *, force: bool = False) -> Path:
        """Writes the artifact after exact rewrites, any batch, checked against torch. Raises as `save` does."""
        return write_checked(Path(out), self.module, self.deployment, self.model, self.images, force=force)


def prune_by_circuit(
    module: nn.Module,
    images: Images,
    settings: Settings,
    *,
    device: torch.device,
    compensate: str,
    circuit: Circuit | None,
    watcher: Watcher,
    task: Kind | None = None,
    tokens: str | None = None,
) -> PrunedModel:
    """Raises UserError and VerificationError."""
    if compensate not in KINDS:
        raise UserError(f"compensate is {compensate!r}: choose one of {', '.join(KINDS)}")
    say_choice(module, images, watcher)
    pruned = compile_model(
        module,
        images,
        settings,
        device=device,
        open_journal=lambda key: NoJournal(),
        watcher=watcher,
        circuit=circuit,
        compensation=Compensation(compensate),
        task=task,
        tokens=tokens,
    )
    return _pruned_model(pruned, module, images, default_deployment(NAMES, device, portable=False))


def prune_for_goal(
    module: nn.Module,
    images: Images,
    goal: Goal,
    target: Target,
    *,
    device: torch.device,
    seed: int,
    watcher: Watcher,
    task: Kind | None = None,
    tokens: str | None = None,
) -> PrunedModel:
    """Raises UserError and VerificationError; a goal that was missed is in the result's `missed`."""
    place = pick_device(target.device)
    check_runtime(target.runtime, place)
    check_precision(target.precision, place, target.runtime)
    deployment = default_deployment(NAMES, place, portable=False)
    request = GoalRequest(goal, target, deployment, seed, tokens=tokens)
    say_choice(module, images, watcher)
    pruned = compile_for_goal(module, images, request, device=device, watcher=watcher, task=task)
    return _pruned_model(pruned, module, images, deployment, target.precision)


def find_circuit(
    module: nn.Module,
    images: Images,
    settings: Settings,
    *,
    device: torch.device,
    watcher: Watcher,
    task: Kind | None = None,
) -> Circuit:
    """Raises UserError."""
    say_choice(module, images, watcher)
    front = read_module(module, images.pixels, watcher)
    kind = front.kind(images.labels, task, watcher)
    settings = replace(settings, task=kind.name, classes=front.classes, other=front.other)
    check_settings(settings)
    graph_module = front.graph_module.to(device)
    facts = origins(graph_module, images)
    return discover(graph_module, images, settings, facts, NoJournal(), watcher).circuit


def read_limit(max_divergence: float | None, max_kl: float | None) -> float | None:
    """Of two names for one limit the one that was given. Raises UserError."""
    if max_divergence is not None and max_kl is not None:
        raise UserError("`max_divergence` and `max_kl` are two names of one limit: give one of them")
    return max_kl if max_divergence is None else max_divergence


def make_settings(
    images: Images, settings: DiscoverySettings, *, tau: float | None = None, max_kl: float | None = None
) -> Settings:
    """Raises UserError for unknown names and for values out of range."""
    if unknown := set(settings) - set(DiscoverySettings.__annotations__):
        known = ", ".join(DiscoverySettings.__annotations__)
        raise UserError(f"{min(unknown)} is not a setting of discovery: give some of {known}")
    if tau is not None:
        check_threshold(settings.get("method"))
    limits: dict[str, Any] = {name: value for name, value in (("tau", tau), ("max_kl", max_kl)) if value is not None}
    return Settings(samples=len(images), **limits, **settings)


def choose_goal(
    values: Mapping[str, float | None],
    *,
    tau: float | None,
    settings: Mapping[str, object],
    by_circuit: bool,
    labelled: bool,
) -> Goal | None:
    """The goal among keyword arguments by the names of `GOALS`; None where τ decides. Beside τ, max_kl is a limit.

    settings: the other arguments of discovery, which a goal excludes, but for the seed
    by_circuit: whether something else was given that only a circuit has
    labelled: what is to be judged by where nothing is given
    Raises UserError.
    """
    given = {kind: value for kind, value in values.items() if value is not None}
    others = sorted(set(settings) - {"seed"})
    if tau is not None:
        given.pop(KL, None)
    names = [kind.replace("-", "_") for kind in given] + ([] if tau is None else ["tau"])
    if len(names) > 1:
        raise UserError(f"{' and '.join(names)} are goals of their own: give one")
    if not given:
        return None if by_circuit or names or others else default_goal(labelled=labelled)
    ((kind, value),) = given.items()
    if others:
        if kind == KL:
            # As on the command line: with a setting of discovery it limits what discovery removes.
            return None
        raise UserError(f"{names[0]} replaces discovery: leave out {others[0]}")
    return Goal(kind, value)


def _pruned_model(
    pruned: Pruned, module: nn.Module, images: Images, deployment: Deployment, precision: str = FP32
) -> PrunedModel:
    parts = {part.name: getattr(pruned, part.name) for part in fields(Pruned)}
    model = as_loaded(module, images)
    return PrunedModel(**parts, model=model, images=images, deployment=deployment, precision=precision)
