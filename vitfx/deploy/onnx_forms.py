"""The forms that an exported model can have, for the same values: which operators do attention and linear maps.

What is fastest depends on the runtime. On ONNX Runtime's CPU provider the standard Attention operator on (B, T, E) and
Gemm are as fast as its own packed Attention, and its SkipLayerNormalization is about eight times slower than
LayerNormalization, so that no form has it. For CUDA, MultiHeadAttention with separate q, k and v is what takes its
fused float16 kernels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import onnx
import onnx_ir as ir
import onnx_ir.passes.common as ir_passes
from onnxscript.rewriter import RewriteRule, RewriteRuleSet

from vitfx.deploy.onnx_rules import CONTRIB, AttentionOfTokens, FlatActivation, LinearToGemm, PackedAttention

_ACTIVATIONS = ("Gelu", "Relu", "HardSwish")


@dataclass(frozen=True)
class Form:
    """attention: the operator, None for what torch's exporter writes. packed: whether it wants q, k and v as one
    product, the graph rewrite pack_qkv. portable: whether all its operators are of the ONNX standard."""

    name: str
    attention: str | None
    packed: bool
    portable: bool


FORMS = {
    form.name: form
    for form in (
        Form("exported", None, packed=False, portable=True),
        Form("standard", "Attention", packed=False, portable=True),
        Form("standard-packed", "Attention", packed=True, portable=True),
        Form("multihead", "MultiHeadAttention", packed=False, portable=False),
        Form("multihead-packed", "MultiHeadAttention", packed=True, portable=False),
        Form("packed", "PackedAttention", packed=True, portable=False),
    )
}


@dataclass(frozen=True)
class Formed:
    """model: opset 23, and ONNX Runtime's own operators where the form has them. counts: how often each rule was
    carried out; refusals: why it was not, where something looked like it."""

    model: onnx.ModelProto
    counts: dict[str, int]
    refusals: tuple[str, ...]


def to_form(model: onnx.ModelProto, form: Form, *, gemm: bool) -> Formed:
    """A copy of an exported model in another form, with its metadata; constants merged, dead code gone.

    gemm: linear maps on (B, T, D) become Gemm on (B·T, D), with reshapes of constant shape around it.
    """
    changed = ir.serde.deserialize_model(model)
    refusals: list[str] = []
    counts = {}
    for name, rules in _rules(form, gemm, refusals):
        counts[name] = RewriteRuleSet(rules).apply_to_model(changed)
    told = dict(changed.metadata_props)
    for tidy in (
        ir_passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        ir_passes.CommonSubexpressionEliminationPass(),
        ir_passes.DeduplicateInitializersPass(),
        ir_passes.RemoveUnusedNodesPass(),
        ir_passes.ClearMetadataAndDocStringPass(),
    ):
        tidy(changed)
    changed.metadata_props.update(told)
    if any(node.domain == CONTRIB for node in changed.graph):
        changed.opset_imports[CONTRIB] = 1
    return Formed(ir.serde.serialize_model(changed), counts, tuple(dict.fromkeys(refusals)))


def _rules(form: Form, gemm: bool, refusals: list[str]) -> Sequence[tuple[str, list[RewriteRule]]]:
    """In the order in which they are carried out."""
    found: list[tuple[str, list[RewriteRule]]] = []
    if form.attention == "PackedAttention":
        found.append(("packed", [PackedAttention.rule(refusals, biased=biased) for biased in (True, False)]))
    if form.attention is not None:
        operator = "Attention" if form.attention == "Attention" else "MultiHeadAttention"
        found.append(("attention", [AttentionOfTokens.rule(refusals, operator)]))
    if gemm:
        found.append(("gemm", [LinearToGemm.rule(refusals)]))
        found.append(("flat", [FlatActivation.rule(refusals, name) for name in _ACTIVATIONS]))
    return found
