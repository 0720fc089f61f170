"""Which weights of a training script's file are the model's: found by the model's own names, never guessed."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from vitfx.models.inert import holds_tensors, skipped_note
from vitfx.models.weights import check_plain, unwrap_state_dict
from vitfx.support.errors import UserError

WEIGHTS = ("ema", "raw")

# Parts of names that wrappers put in: torch.compile, FSDP, activation checkpointing, DeepSpeed, then DDP.
_TRANSPARENT = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_forward_module")
_AVERAGES = {"ema", "teacher", "swa", "averaged", "average", "averaging", "shadow", "momentum", "target", "polyak"}
# Parts of names that peft and similar libraries give to what they add to a model.
_ADAPTER = re.compile(r"(^|[._])(lora_|ia3_l|hada_w|lokr_w|oft_r\b|vera_lambda|base_model\.model\.)")
_DEPTH = 4


@dataclass(frozen=True)
class ChosenWeights:
    """The weights of one model out of a file."""

    weights: dict[str, torch.Tensor]
    source: str  #: the file, with the part of it that was taken, for messages
    note: str | None  #: what was taken, where there was anything else in the file or around the names


@dataclass(frozen=True)
class _StateDict:
    place: str  #: the keys that lead to it, joined by dots; empty for the file itself
    tensors: Mapping[str, Any]  #: by name as the file has it, with values of other types that stand beside them
    average: bool  #: whether the file calls it an average of the training's weights


@dataclass(frozen=True)
class _Candidate:
    state: _StateDict
    prefix: str  #: what stands before the model's own names
    names: Mapping[str, str]  #: the model's name of a tensor -> the file's
    outside: int  #: tensors of the same state dict that have another prefix
    average: bool  #: whether the file calls it an average of the training's weights

    @property
    def title(self) -> str:
        parts = [self.state.place, self.prefix.rstrip(".")]
        return ".".join(part for part in parts if part) or "the weights themselves"


def choose_weights(
    contents: Any, wanted: Collection[str], model: str, source: str, which: str | None = None
) -> ChosenWeights:
    """The weights in `contents` whose names are `wanted`, without what wrappers put around or before them.

    wanted: the names in the model's own state_dict
    model: what the model is called, for messages
    which: "ema" or "raw", where the file has both

    Where nothing fits, the closest weights are given, for `load_weights` to say how they differ. Raises UserError
    where the file has no weights, or several that fit and `which` does not decide.
    """
    refuse_adapter(contents, source)
    states = list(_state_dicts(contents))
    if not states:
        return ChosenWeights(unwrap_state_dict(contents, source), source, None)
    chosen = _chosen(contents, states, set(wanted), model, source, which)
    notes = [note for note in (chosen.note, skipped_note(contents)) if note]
    return replace(chosen, note="; ".join(notes) or None)


def _chosen(
    contents: Any, states: list[_StateDict], wanted: set[str], model: str, source: str, which: str | None
) -> ChosenWeights:
    candidates = [candidate for state in states for candidate in _candidates(state, wanted)]
    fits = [candidate for candidate in candidates if set(candidate.names) == wanted]
    if not fits:
        return _closest(states, candidates, wanted, source)
    decided = _decide(fits, _unreadable_average(contents, states, candidates, fits), model, source, which)
    return _taken(decided, source, several=len(_distinct(fits)) > 1)


def refuse_adapter(contents: Any, source: str) -> None:
    """Raises UserError for the weights of a LoRA adapter or its like, with or without the model's own."""
    for state in _state_dicts(contents):
        if name := next((name for name in state.tensors if _ADAPTER.search(name)), None):
            raise UserError(
                f"{source} holds an adapter's weights ({name}), not a whole model's: merge the adapter into its model "
                "first (merge_and_unload in peft) and save that"
            )


def tensor_names(contents: Any) -> set[str]:
    """The names in all the state dicts that `contents` has, as the file has them."""
    return {name for state in _state_dicts(contents) for name in state.tensors}


def _state_dicts(contents: Any, keys: tuple[str, ...] = ()) -> Iterator[_StateDict]:
    """`contents` and what it holds, at any depth that training scripts use: all that has tensors by name."""
    if not isinstance(contents, Mapping) or len(keys) > _DEPTH:
        return
    named = {name: value for name, value in contents.items() if isinstance(name, str)}
    if any(isinstance(value, torch.Tensor) for value in named.values()):
        place = ".".join(keys)
        tensors = {name: part for name, part in named.items() if not isinstance(part, Mapping)}
        yield _StateDict(place, tensors, _is_average(place) or "n_averaged" in tensors)
    for name, value in named.items():
        for state in _state_dicts(value, (*keys, name)):
            # Lightning's WeightAveraging keeps the average where the weights are otherwise, and these beside it.
            swapped = not keys and name == "state_dict" and "current_model_state" in named
            yield replace(state, average=True) if swapped else state


def _candidates(state: _StateDict, wanted: set[str]) -> Iterator[_Candidate]:
    """Every prefix under which the state dict has one of the model's names, for its names as they are and unwrapped."""
    # Counters, such as an AveragedModel's n_averaged or an epoch, are no weights.
    weights = {
        name for name, value in state.tensors.items() if isinstance(value, torch.Tensor) and name != "n_averaged"
    }
    own = {part for name in wanted for part in name.split(".")}
    for wrappers in ((), _TRANSPARENT, (*_TRANSPARENT, "module")):
        dropped = set(wrappers) - own
        renamed = {".".join(part for part in name.split(".") if part not in dropped): name for name in state.tensors}
        if len(renamed) < len(state.tensors) or (wrappers and list(renamed) == list(state.tensors)):
            continue
        for prefix, count in _prefixes(renamed, wanted).items():
            inside = {name.removeprefix(prefix): old for name, old in renamed.items() if name.startswith(prefix)}
            inside = {name: old for name, old in inside.items() if name in wanted or old in weights}
            outside = len(weights) - len(inside)
            if count:
                yield _Candidate(state, prefix, inside, outside, state.average or _is_average(prefix))


def _prefixes(names: Collection[str], wanted: set[str]) -> Counter[str]:
    """How many of the model's names there are under each prefix."""
    counts: Counter[str] = Counter()
    for name in names:
        parts = name.split(".")
        for start in range(len(parts)):
            if ".".join(parts[start:]) in wanted:
                counts["".join(f"{part}." for part in parts[:start])] += 1
    return counts


def _is_average(name: str) -> bool:
    words = re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", name)
    return not _AVERAGES.isdisjoint(word.lower() for word in words)


def _distinct(fits: list[_Candidate]) -> list[_Candidate]:
    """Without those that hold the same values as one before, under other names or in another place."""
    kept: list[_Candidate] = []
    for fit in fits:
        if not any(_equal(fit, earlier) for earlier in kept):
            kept.append(fit)
    return kept


def _equal(first: _Candidate, second: _Candidate) -> bool:
    for name, old in first.names.items():
        value, other = first.state.tensors[old], second.state.tensors[second.names[name]]
        if value is other:
            continue
        if not (isinstance(value, torch.Tensor) and isinstance(other, torch.Tensor) and value.dtype == other.dtype):
            return False
        if not torch.equal(value, other):
            return False
    return True


def _unreadable_average(
    contents: Any, states: list[_StateDict], candidates: list[_Candidate], fits: list[_Candidate]
) -> str | None:
    """Where the file has an average that is not among the weights that fit: a list without names, a pickled module."""
    if any(fit.average for fit in fits):
        return None
    size = len(fits[0].names)
    for candidate in candidates:
        if candidate.average and 2 * len(candidate.names.keys() & fits[0].names.keys()) > size:
            return candidate.title
    taken = {id(fit.state) for fit in fits}
    for state in states:
        if state.average and id(state) not in taken and "optim" not in state.place:
            return state.place
    for keys, value in _nameless(contents, ()):
        if _is_average(".".join(keys)) and any(isinstance(part, torch.Tensor) or holds_tensors(part) for part in value):
            return ".".join(keys)
    return None


def _nameless(contents: Any, keys: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Collection[Any]]]:
    if isinstance(contents, list | tuple):
        yield keys, contents
    elif holds_tensors(contents):
        yield keys, (contents,)
    elif isinstance(contents, Mapping) and len(keys) <= _DEPTH:
        for name, value in contents.items():
            if isinstance(name, str):
                yield from _nameless(value, (*keys, name))


def _decide(fits: list[_Candidate], unreadable: str | None, model: str, source: str, which: str | None) -> _Candidate:
    """The weights to take; raises UserError where the file or the user leaves it open."""
    of_kind = _distinct([fit for fit in fits if which is None or fit.average == (which == "ema")])
    if unreadable is not None and which != "raw":
        raise UserError(
            f"{source} has an average of the weights ({unreadable}) that does not fit {model} by name: "
            "save the averaged model's state_dict, or take the weights that were not averaged with `weights` raw"
        )
    if not of_kind:
        kind, other = ("averaged", "raw") if which == "ema" else ("raw", "ema")
        raise UserError(
            f"{source} has no {kind} weights that fit {model}, only {_titles(_distinct(fits))}: "
            f"give `weights` {other} or leave it out"
        )
    if len(of_kind) == 1:
        return of_kind[0]
    if which is None and sorted(fit.average for fit in of_kind) == [False, True]:
        raw, average = sorted(of_kind, key=lambda fit: fit.average)
        raise UserError(
            f"{source} has both weights ({raw.title}) and their average ({average.title}): choose those that were "
            "evaluated with `weights` ema or `weights` raw"
        )
    raise UserError(
        f"{source} has several weights that fit {model}, {_titles(of_kind)}: save the right ones to a file of their own"
    )


def _titles(candidates: list[_Candidate]) -> str:
    return ", ".join(candidate.title for candidate in candidates)


def _taken(candidate: _Candidate, source: str, *, several: bool) -> ChosenWeights:
    weights = {}
    for name, old in candidate.names.items():
        check_plain(old, candidate.state.tensors[old], source)
        weights[name] = candidate.state.tensors[old]
    if not (several or candidate.state.place or candidate.prefix or candidate.average):
        return ChosenWeights(weights, source, None)
    kind = "the average of the weights, " if candidate.average else ""
    note = f"weights: {kind}{candidate.title} of {source}"
    if candidate.outside:
        note += f"; {candidate.outside} other tensors beside them are left out"
    return ChosenWeights(weights, f"{source} ({candidate.title})", note)


def _closest(states: list[_StateDict], candidates: list[_Candidate], wanted: set[str], source: str) -> ChosenWeights:
    """The weights with most of the model's names, or else the largest state dict as it is."""
    if candidates:
        closest = max(candidates, key=lambda candidate: len(wanted & candidate.names.keys()))
        # A few names in common, such as every head.weight, are no reason to believe in a prefix.
        if not closest.prefix or 2 * len(wanted & closest.names.keys()) > len(wanted):
            return _taken(closest, source, several=False)
    largest = max(states, key=lambda state: len(state.tensors))
    return _taken(
        _Candidate(largest, "", {name: name for name in largest.tensors}, 0, average=False), source, several=False
    )
