"""Which parameters of a pruned model are retrained: all, or those that can make up for what was deleted."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.nn.utils import parametrize

from passes.dialect import AddConstant, Projection
from passes.norms import NORMS
from passes.stream import read_sites
from vitfx.support.errors import UserError

ONLY = ("all", "compensating", "norms-and-biases", "neighbours", "lora")


def choose(student: GraphModule, teacher: GraphModule, only: str) -> set[str]:
    """The names of the parameters that `only` stands for; "lora" trains none of the model's own.

    all: every parameter
    compensating: weights and biases of the projections with which surviving sublayers write to the stream
    norms-and-biases: norms, biases, and constants of the stream, such as positions and what deleted sublayers left
    neighbours: sublayers that lost units, and the nearest survivors before and after each of them and each sublayer
        that is gone, with their norms; what was deleted is found by comparison with the teacher

    Raises UserError where the student can't have been pruned from the teacher, or nothing would be trained.
    """
    names = {name for name, value in student.named_parameters() if value.is_floating_point()}
    sites = read_sites(student)
    if only == "all":
        return names
    if only == "lora":
        return set()
    if only == "norms-and-biases":
        chosen = {name for name in names if _is_shift(student, name)}
    elif only == "compensating":
        chosen = _under(names, [f"{site.name}.out" for site in sites])
    else:
        near = neighbours(student, teacher)
        chosen = _under(
            names, [part for site in sites if site.name in near for part in (site.name, str(site.norm.target))]
        )
    if not chosen:
        raise UserError(f"`only` {only} leaves nothing to train in this model: give `only` all")
    return chosen


def neighbours(student: GraphModule, teacher: GraphModule) -> set[str]:
    """The surviving sublayers next to deletions. Raises UserError as `choose` does."""
    left = {site.name: site.module.units for site in read_sites(student)}
    whole = {site.name: site.module.units for site in read_sites(teacher)}
    for name, units in left.items():
        if units > whole.get(name, 0):
            raise UserError(
                f"the pruned model has {units} units in {name} and the teacher {whole.get(name, 0)}: "
                "give the model that it was pruned from with `teacher`"
            )
    order = list(whole)
    near: set[str] = set()
    for place, name in enumerate(order):
        if left.get(name) == whole[name]:
            continue
        before = [earlier for earlier in order[:place] if earlier in left]
        after = [later for later in order[place + 1 :] if later in left]
        near.update((*before[-1:], *after[:1]))
        if name in left:
            near.add(name)
    return near


def prepare(student: GraphModule, teacher: GraphModule, only: str, rank: int, seed: int) -> int:
    """Lets gradients reach only what `only` stands for, and counts those numbers.

    For "lora" it adds adapters of this rank, which `merge_adapters` merges at the end.
    """
    chosen = choose(student, teacher, only)
    for name, parameter in student.named_parameters():
        parameter.requires_grad_(name in chosen)
    if only == "lora":
        add_adapters(student, rank, seed)
    return sum(parameter.numel() for parameter in student.parameters() if parameter.requires_grad)


def _under(names: set[str], modules: list[str]) -> set[str]:
    return {name for name in names if any(name.startswith(f"{module}.") for module in modules)}


def _is_shift(student: GraphModule, name: str) -> bool:
    owner = student.get_submodule(name.rpartition(".")[0])
    return isinstance(owner, (AddConstant, *NORMS)) or name.endswith(".bias")


class LowRank(nn.Module):
    """LoRA (Hu et al. 2021): W -> W + up · down. up (rows, rank) starts at zero, down (rank, columns) at random.

    The paper's factor α / rank is 1, because adapters have a learning rate of their own.
    """

    def __init__(self, weight: Tensor, rank: int, generator: torch.Generator) -> None:
        super().__init__()
        rows, columns = weight.shape
        drawn = torch.randn(rank, columns, generator=generator) / columns**0.5
        self.down = nn.Parameter(drawn.to(weight))
        self.up = nn.Parameter(weight.new_zeros(rows, rank))

    def forward(self, weight: Tensor) -> Tensor:
        return weight + self.up @ self.down


def add_adapters(graph_module: GraphModule, rank: int, seed: int) -> None:
    """Adds adapters to the weights of all prunable sublayers: queries, keys, values, projections, hidden neurons.

    The rank is at most a weight's smaller side. The weights themselves no longer get gradients.
    """
    generator = torch.Generator().manual_seed(seed)
    for part in _weighted(graph_module):
        weight: Tensor = part.weight
        weight.requires_grad_(False)
        adapter = LowRank(weight, min(rank, *weight.shape), generator)
        parametrize.register_parametrization(part, "weight", adapter)


def merge_adapters(graph_module: GraphModule) -> None:
    """W + up · down becomes the weight: the graph has the same parameters as before again."""
    for part in _weighted(graph_module):
        if parametrize.is_parametrized(part, "weight"):
            parametrize.remove_parametrizations(part, "weight", leave_parametrized=True)


def _weighted(graph_module: GraphModule) -> list[nn.Linear | Projection]:
    """The linear maps of all sublayers, in the order of the stream."""
    return [
        part
        for site in read_sites(graph_module)
        for part in site.module.modules()
        if isinstance(part, nn.Linear | Projection)
    ]
