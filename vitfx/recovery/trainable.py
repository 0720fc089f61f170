"""Which parameters of a pruned model a retraining changes: all, or those that can make up for what was deleted."""

from __future__ import annotations

from torch import nn
from torch.fx import GraphModule

from passes.dialect import AddConstant
from passes.stream import read_sites
from vitfx.low_rank import add_adapters
from vitfx.support.errors import UserError

ONLY = ("all", "compensating", "norms-and-biases", "neighbours", "lora")


def choose(student: GraphModule, teacher: GraphModule, only: str) -> set[str]:
    """The names of the parameters that `only` stands for; "lora" has none of the model's own.

    all: every one. compensating: the projections, weight and bias, with which surviving sublayers write to the stream.
    norms-and-biases: norms, biases, and constants of the stream, such as positions and what deleted sublayers left.
    neighbours: sublayers that lost units, and the nearest survivors before and after each of these and after each that
    is gone, with their norms. What was deleted is seen by the teacher, which has it.

    Raises UserError where the student can't have been pruned from the teacher, or nothing is left to be trained.
    """
    names = {name for name, value in student.named_parameters() if value.is_floating_point()}
    sites = read_sites(student)
    if only == "all":
        return names
    if only == "lora":
        return set()
    if only == "norms-and-biases":
        found = {name for name in names if _is_shift(student, name)}
    elif only == "compensating":
        found = _under(names, [f"{site.name}.out" for site in sites])
    else:
        near = neighbours(student, teacher)
        found = _under(
            names, [part for site in sites if site.name in near for part in (site.name, str(site.norm.target))]
        )
    if not found:
        raise UserError(f"--only {only} leaves nothing to be trained in this model: give --only all")
    return found


def neighbours(student: GraphModule, teacher: GraphModule) -> set[str]:
    """The surviving sublayers next to deletions. Raises UserError as `choose` does."""
    left = {site.name: site.module.units for site in read_sites(student)}
    whole = {site.name: site.module.units for site in read_sites(teacher)}
    for name, units in left.items():
        if units > whole.get(name, 0):
            raise UserError(
                f"the pruned model has {units} units in {name} and the teacher {whole.get(name, 0)}: "
                "give as --teacher the model that it was pruned from"
            )
    order = list(whole)
    found: set[str] = set()
    for place, name in enumerate(order):
        if left.get(name) == whole[name]:
            continue
        before = [one for one in order[:place] if one in left]
        after = [one for one in order[place + 1 :] if one in left]
        found.update((*before[-1:], *after[:1]))
        if name in left:
            found.add(name)
    return found


def prepare(student: GraphModule, teacher: GraphModule, only: str, rank: int, seed: int) -> int:
    """Lets gradients reach what `only` stands for and nothing else; how many numbers those are.

    For "lora", adapters of that rank are added, to be merged with `vitfx.low_rank.merge_adapters`.
    """
    chosen = choose(student, teacher, only)
    for name, parameter in student.named_parameters():
        parameter.requires_grad_(name in chosen)
    if only == "lora":
        add_adapters(student, rank, seed)
    return sum(one.numel() for one in student.parameters() if one.requires_grad)


def _under(names: set[str], modules: list[str]) -> set[str]:
    return {name for name in names if any(name.startswith(f"{module}.") for module in modules)}


def _is_shift(student: GraphModule, name: str) -> bool:
    owner = student.get_submodule(name.rpartition(".")[0])
    return isinstance(owner, nn.LayerNorm | AddConstant) or name.endswith(".bias")
