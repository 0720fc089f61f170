"""Which kind of answers a model gives: as the user says, else as the model's file says, else by a look at them."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass

from torch import Tensor, nn
from torch.fx import GraphModule, Node

from passes.dialect import Sublayer
from vitfx.graph.divergence import are_distributions, are_shares, make_divergence
from vitfx.graph.kinds import KINDS
from vitfx.support.errors import UserError


@dataclass(frozen=True)
class Kind:
    """Of a model's answers."""

    name: str  #: one of `vitfx.graph.kinds.KINDS`
    reason: str  #: how it is known, for a sentence
    asked: bool = False  #: whether the user gave it

    def __post_init__(self) -> None:
        """Raises UserError."""
        if self.name not in KINDS:
            raise UserError(f"task {self.name} is not known: choose one of {', '.join(KINDS)}")


@dataclass(frozen=True)
class AnswerKind(Kind):
    """A kind with what the answers to the first images show of it."""

    shape: tuple[int, ...] = ()  #: of one image's answer
    looks: str = ""  #: what the answers are and how they are compared

    @property
    def note(self) -> tuple[str, ...]:
        """For the report: nothing for logits of classes, which nobody need be told of."""
        return () if self.name == "classes" and "probabilities" not in self.looks else (self.sentence,)

    @property
    def sentence(self) -> str:
        shape = "×".join(map(str, self.shape)) or "1"
        numbers = "number an image is" if shape == "1" else "numbers an image are"
        return f"task {self.name}: {shape} {numbers} taken for {self.looks} ({self.reason})"


def find_kind(
    graph_module: GraphModule,
    answers: Tensor,
    labels: Tensor | None = None,
    *,
    asked: Kind | None = None,
    declared: Kind | None = None,
) -> AnswerKind:
    """The kind of a model's answers.

    graph_module: canonical.
    answers: to some images.
    labels: of all images, class numbers (N,), a 0 or 1 for each label (N, K), or numbers.
    asked: what the user or an earlier run of vitfx says. declared: see `declared_kind`.
    Raises UserError where the answers or the labels can't be of the kind.
    """
    kind = asked or _known(answers, labels, declared) or _seen(graph_module, answers, labels)
    _check(kind, answers)
    if labels is not None:
        _check_labels(kind.name, answers, labels)
    looks = make_divergence(kind.name, answers).looks
    return AnswerKind(kind.name, kind.reason, kind.asked, tuple(answers.shape[1:]), looks)


def declared_kind(module: nn.Module) -> Kind | None:
    """What a Hugging Face model's configuration says of its task: its `problem_type`, and for a single label without
    one regression, as transformers trains it; what timm says of a model without a classifier."""
    outermost = True
    for part in module.modules():
        config = getattr(part, "config", None)
        problem, count = getattr(config, "problem_type", None), getattr(config, "num_labels", None)
        if problem in _PROBLEMS:
            return Kind(_PROBLEMS[problem], f"its configuration's problem_type is {problem}")
        if count == 1 and type(part).__name__.endswith("ForImageClassification"):
            return Kind("values", "transformers trains a single label without a problem_type as regression")
        if hasattr(config, "model_type"):
            if outermost and type(part).__name__.endswith(_HEADLESS):
                return Kind("embedding", f"a {type(part).__name__} has no classifier")
            outermost = False
        if getattr(part, "num_classes", None) == 0 and hasattr(part, "reset_classifier"):
            return Kind("embedding", "timm built it without a classifier, num_classes=0")
    return None


def projection_kind(module: nn.Module, answers: Tensor) -> Kind | None:
    """What attributes and names say of answers (N, K) that a projection without a bias gives, if one does: classes
    where the model counts K of them, an embedding where the projection is called as in CLIP's towers."""
    if answers.dim() != 2:
        return None
    count = answers.shape[1]
    parameters = dict(module.named_parameters())
    # Those of blocks differ in a number alone.
    alike = Counter(re.sub(r"\d+", "", name) for name in parameters)
    outside = [name for name in parameters if alike[re.sub(r"\d+", "", name)] == 1]
    for name in outside:
        owner = name.removesuffix(".weight")
        if parameters[name].dim() != 2 or count not in parameters[name].shape or f"{owner}.bias" in parameters:
            continue
        if any(getattr(part, "num_classes", None) == count for part in module.modules()):
            return Kind("classes", f"{owner} has no bias, and its model says that it has {count} classes")
        if owner.rpartition(".")[2] in _PROJECTIONS:
            return Kind("embedding", f"{owner} projects to them without a bias, as in CLIP's towers")
    return None


_HEADLESS = ("Model", "Backbone", "WithProjection")
_PROJECTIONS = ("proj", "visual_projection", "vision_projection", "image_projection", "projection")


_PROBLEMS = {
    "single_label_classification": "classes",
    "multi_label_classification": "labels",
    "regression": "values",
}


def _known(answers: Tensor, labels: Tensor | None, declared: Kind | None) -> Kind | None:
    if answers.dim() > 2:
        return Kind("dense", "there is an answer for each token or pixel")
    if declared is not None:
        return declared
    if labels is None or not (labels.is_floating_point() or labels.dim() > 1):
        return None
    if labels.dim() > 1 and bool(((labels == 0) | (labels == 1)).all()):
        # One label an image may as well be a class, written as a row.
        several = bool((labels.sum(1) != 1).any())
        return Kind("labels", "so the images' labels say, of which an image may have several") if several else None
    if labels.dim() > 1 and labels.shape[1] > 1 and are_distributions(labels):
        raise UserError(
            "each image's labels are shares that add up to 1: give the number of its class instead, or say with `task` "
            "that they are values"
        )
    fits = labels[0].numel() == answers[0].numel()
    return Kind("values", "so the images' labels say, which are numbers") if fits else None


def _seen(graph_module: GraphModule, answers: Tensor, labels: Tensor | None) -> Kind:
    """Raises UserError where a look does not tell."""
    if answers.dim() == 1 or answers.shape[1] == 1:
        return Kind("labels", "one logit says yes or no")
    if are_distributions(answers):
        return Kind("classes", "none is negative and they add up to 1")
    if bool(((answers.norm(dim=1) - 1).abs() < 1e-4).all()):
        return Kind("embedding", "each has the length 1")
    last = _last_weights(graph_module)
    if last == _OTHER:
        return Kind("embedding", "no classifier's projection comes last")
    if are_shares(answers):
        return Kind("labels", "all are from 0 to 1 and they do not add up to 1")
    bias = "no bias" if last == _UNBIASED else "a bias of zeros"
    if labels is None and (last == _UNBIASED or (last == _ZERO and _normalises_tokens(graph_module))):
        raise UserError(
            f"the model's last projection has {bias}, and nothing says whether its {answers.shape[1]} numbers are an "
            "embedding, as CLIP's are, or logits of classes: say it with `task`, embedding or classes"
        )
    return Kind("classes", "as a classifier's last projection gives them")


def ends_without_bias(graph_module: GraphModule) -> bool:
    """Whether the last operation with weights is a linear map without a bias."""
    return _last_weights(graph_module) == _UNBIASED


def _last_weights(graph_module: GraphModule) -> str:
    """What the last operation with weights, behind the last sublayer, is: a linear map, one without a bias or with one
    of zeros, or another."""
    weighted = [kind for node in _from_last(graph_module) for kind in _weights(graph_module, node)]
    if weighted[:1] == [_SHIFT]:
        return _BIASED if weighted[1:2] == [_UNBIASED] else _OTHER
    return weighted[0] if weighted else _OTHER


_BIASED, _UNBIASED, _ZERO = "linear map", "linear map without a bias", "linear map with a bias of zeros"
_SHIFT, _OTHER = "shift", "other"


def _normalises_tokens(graph_module: GraphModule) -> bool:
    """Whether a norm stands behind the embedding, before the first block, as in CLIP's towers: timm gives their
    projections a bias of zeros."""
    embed = next((node for node in graph_module.graph.nodes if node.op == "call_module"), None)
    inner = None if embed is None else graph_module.get_submodule(str(embed.target))
    if not isinstance(inner, GraphModule):
        return False
    (answer,) = inner.graph.output_node().args
    return isinstance(answer, Node) and "norm" in str(answer.target)


def _from_last(graph_module: GraphModule) -> list[Node]:
    """The nodes behind the last sublayer, last first."""
    behind: list[Node] = []
    for node in reversed(list(graph_module.graph.nodes)):
        if node.op == "call_module" and isinstance(graph_module.get_submodule(str(node.target)), Sublayer):
            break
        behind.append(node)
    return behind


def _weights(graph_module: GraphModule, node: Node) -> list[str]:
    """Of a node's operations with weights, last first, what each is."""
    if node.op == "call_module":
        module = graph_module.get_submodule(str(node.target))
        if isinstance(module, GraphModule):
            return [kind for own in reversed(list(module.graph.nodes)) for kind in _weights(module, own)]
        if isinstance(module, nn.Linear | nn.Conv2d):
            return [_UNBIASED if module.bias is None else _BIASED if bool(module.bias.any()) else _ZERO]
        return [_OTHER] if list(module.parameters()) else []
    name = str(node.target)
    if node.op != "call_function" or not any(source.op == "get_attr" for source in node.all_input_nodes):
        return []
    if any(word in name for word in ("linear", "addmm", "matmul", ".mm.", "einsum", "conv")):
        attributes = [source for source in node.all_input_nodes if source.op == "get_attr"]
        if "addmm" not in name and len(attributes) < 2:
            return [_UNBIASED]
        values = [getattr(graph_module, str(source.target), None) for source in attributes]
        zeros = any(isinstance(value, Tensor) and value.dim() == 1 and not bool(value.any()) for value in values)
        return [_ZERO if zeros else _BIASED]
    return [_SHIFT if "aten.add" in name else _OTHER]


def _check(kind: Kind, answers: Tensor) -> None:
    """Raises UserError where answers of this shape can't be of the kind."""
    axes = answers.dim()
    possible = {
        "classes": axes == 2 and answers.shape[1] > 1,
        "labels": axes <= 2,
        "embedding": axes == 2 and answers.shape[1] > 1,
        "values": True,
        "dense": axes > 2,
    }
    if not possible[kind.name]:
        needed = {
            "classes": "two or more numbers an image",
            "labels": "one row an image",
            "embedding": "one row of two or more numbers an image",
            "dense": "a row for each token or pixel",
        }[kind.name]
        raise UserError(
            f"the model's answers to {len(answers)} images are {tuple(answers.shape)}, and the task {kind.name} needs "
            f"{needed}: choose another task"
        )


def _check_labels(kind: str, answers: Tensor, labels: Tensor) -> None:
    """Raises UserError for labels that no answer of the kind can meet. Where a kind does not use them, any will do."""
    count = 1 if answers.dim() == 1 else answers.shape[1]
    numbers = labels.dim() == 1 and not labels.is_floating_point()
    if kind == "classes" and not numbers:
        found = f"of {labels.dtype}" if labels.dim() == 1 else f"{tuple(labels.shape)}"
        raise UserError(f"labels are {found}: give integers, the positions of classes among the logits, one an image")
    if kind == "labels" and not numbers:
        if labels.shape[1:] != (count,):
            raise UserError(
                f"labels are {tuple(labels.shape)} for {count} logits: give a 0 or 1 for each logit, (images, {count})"
            )
        if not bool(((labels == 0) | (labels == 1)).all()):
            raise UserError("some labels are neither 0 nor 1: give a 0 or 1 for each logit")
    most = max(count, 2) if kind == "labels" else count
    if kind in ("classes", "labels") and numbers and not bool(((labels >= 0) & (labels < most)).all()):
        raise UserError(
            f"labels run from {int(labels.min())} to {int(labels.max())} and the model has {count} "
            f"{'logit' if count == 1 else 'logits'}: give labels from 0 to {most - 1}"
        )
    if kind == "dense" and labels.dim() > 1 and not labels.is_floating_point():
        places = answers.shape[1:2] if answers.dim() == 3 else answers.shape[2:]
        if labels.shape[1:] != places:
            raise UserError(
                f"an image has {tuple(labels.shape[1:])} labels and {tuple(places)} answers: give labels of that size"
            )
