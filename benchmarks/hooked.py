"""Runs of a Hugging Face ViT whose values can be read and replaced at named points: by torch's own hooks, and by those
of TransformerLens (https://github.com/TransformerLensOrg/TransformerLens).

Shapes: n images, T tokens, D width, H heads, d channels of a head, E hidden neurons.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from importlib.metadata import version
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from vitfx.support.errors import UserError

Hook = Callable[[Tensor], Tensor | None]
"""From a value to the one that the run goes on with; None for the same."""

EMBEDDING = "embedding"  #: the stream that the first layer reads (n, T, D)
FINAL = "final"  #: what the last norm reads (n, T, D)
_POINTS = ("stream", "q", "k", "v", "heads", "mlp", "neurons")


def point(layer: int, name: str) -> str:
    """name: one of
    "stream", what a layer reads, (n, T, D), not to be replaced;
    "q", "k" and "v" (n, T, H, d); "heads", their outputs before the projection, (n, T, H, d);
    "mlp", what the norm before the MLP reads, (n, T, D); "neurons", behind the activation, (n, T, E)."""
    assert name in _POINTS
    return f"{layer}.{name}"


class HookedViT(Protocol):
    """A ViT of Hugging Face, and a way to run it with hooks."""

    twin: Any  #: ViTForImageClassification, whose weights are read
    package: str  #: that runs the hooks, with its version

    def run(self, pixels: Tensor, hooks: Mapping[str, Hook]) -> Tensor:
        """(n, C, H, W) -> logits (n, K). hooks: by point, called as the run comes to it."""


class PlainHooks:
    """torch's `register_forward_hook` and `register_forward_pre_hook`."""

    def __init__(self, twin: Any) -> None:
        self.twin, self.package = twin, f"torch {torch.__version__}"

    def run(self, pixels: Tensor, hooks: Mapping[str, Hook]) -> Tensor:
        with ExitStack() as registered:
            for name, hook in hooks.items():
                registered.enter_context(self._registered(name, hook))
            logits: Tensor = self.twin(pixels).logits
        return logits

    @contextmanager
    def _registered(self, name: str, hook: Hook) -> Iterator[None]:
        module, on_input, by_head = self._place(name)
        if by_head:
            hook = partial(_by_head, hook, self.twin.config.num_attention_heads)
        handle = (
            module.register_forward_pre_hook(lambda _, inputs: hook(inputs[0]))
            if on_input
            else module.register_forward_hook(lambda _, inputs, output: hook(output))
        )
        try:
            yield
        finally:
            handle.remove()

    def _place(self, name: str) -> tuple[nn.Module, bool, bool]:
        """The module, whether the value is its input, and whether that is apart by head."""
        vit = self.twin.vit
        if name in (EMBEDDING, FINAL):
            return (vit.embeddings, False, False) if name == EMBEDDING else (vit.layernorm, True, False)
        index, kind = name.split(".")
        layer = vit.layers[int(index)]
        if kind in ("q", "k", "v"):
            return getattr(layer.attention, f"{kind}_proj"), False, True
        modules = {
            "stream": layer.layernorm_before,
            "heads": layer.attention.o_proj,
            "mlp": layer.layernorm_after,
            "neurons": layer.mlp.fc2,
        }
        return modules[kind], True, kind == "heads"


def _by_head(hook: Hook, heads: int, value: Tensor) -> Tensor | None:
    replaced = hook(value.unflatten(-1, (heads, -1)))
    return None if replaced is None else replaced.flatten(2)


class TransformerLens:
    """TransformerLens's bridge over the same module: its hooks, around eager attention, whose softmax is in float32."""

    def __init__(self, twin: Any) -> None:
        """Raises UserError where the package is missing."""
        try:
            from transformer_lens.model_bridge import TransformerBridge
        except ImportError as error:
            raise UserError("transformer-lens is not installed: pip install 'vitfx[lens]'") from error
        self.twin, self.package = twin, f"transformer-lens {version('transformer-lens')}"
        copied = copy.deepcopy(twin)
        copied.config.architectures = ["ViTForImageClassification"]
        # The name is looked up nowhere: model and weights are given.
        self.bridge = TransformerBridge.boot_transformers(
            "given", hf_model=copied, dtype=next(twin.parameters()).dtype, device="cpu"
        )

    def run(self, pixels: Tensor, hooks: Mapping[str, Hook]) -> Tensor:
        own: list[Any] = [(self._name(name), _with_hook_point(call)) for name, call in hooks.items()]
        logits: Tensor = self.bridge.run_with_hooks(pixels, fwd_hooks=own)
        return logits

    def _name(self, name: str) -> str:
        if name in (EMBEDDING, FINAL):
            return "embed.hook_out" if name == EMBEDDING else "ln_final.hook_in"
        index, kind = name.split(".")
        names = {
            "stream": "hook_in",
            **{part: f"attn.{part}.hook_out" for part in ("q", "k", "v")},
            "heads": "attn.o.hook_in",
            "mlp": "ln2.hook_in",
            "neurons": "mlp.out.hook_in",
        }
        return f"blocks.{index}.{names[kind]}"


def _with_hook_point(call: Hook) -> Callable[[Tensor, Any], Tensor | None]:
    """As TransformerLens calls it: `hook` is the place."""
    return lambda value, hook: call(value)


HOOKED: Mapping[str, Callable[[Any], HookedViT]] = {"plain-hooks": PlainHooks, "transformer-lens": TransformerLens}
