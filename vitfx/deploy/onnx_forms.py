"""The forms that an exported model can take: which operators do attention and linear maps.

Which one is fastest depends on the runtime. On ONNX Runtime's CPU provider the standard Attention operator on (B, T, E)
and Gemm are as fast as its own packed Attention, and its SkipLayerNormalization is about eight times slower than
LayerNormalization, so that no form has it. On CUDA, only MultiHeadAttention with separate q, k and v gets its fused
float16 kernels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import onnx
import onnx_ir as ir
import onnx_ir.passes.common as ir_passes
from onnxscript.rewriter import RewriteRule, RewriteRuleSet

from vitfx.deploy.onnx_rules import (
    CONTRIB,
    AttentionOfTokens,
    FlatActivation,
    LinearToGemm,
    ProjectionIntoAttention,
    ScaleByChannel,
)

_ACTIVATIONS = ("Gelu", "Relu", "HardSwish")


@dataclass(frozen=True)
class Form:
    """Which operators do attention."""

    name: str
    attention: str | None  #: the operator, None for what torch's exporter writes
    packed: bool  #: whether it wants q, k and v as one product, the graph rewrite pack_qkv
    portable: bool  #: whether all its operators are of the ONNX standard


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
    """A model in a form."""

    model: onnx.ModelProto  #: opset 23, and ONNX Runtime's own operators where the form has them
    counts: dict[str, int]  #: how often each rule was applied
    refusals: tuple[str, ...]  #: why rules left something alone that looked like their pattern


def to_form(model: onnx.ModelProto, form: Form, *, gemm: bool) -> Formed:
    """A copy of an exported model in another form, with its metadata, merged constants and no dead code.

    gemm: linear maps on (B, T, D) become Gemm on (B·T, D), with reshapes of constant shape around it.
    """
    changed = ir.serde.deserialize_model(model)
    refusals: list[str] = []
    counts = {}
    for name, rules in _rules(form, gemm, refusals):
        counts[name] = RewriteRuleSet(rules).apply_to_model(changed)
    metadata = dict(changed.metadata_props)
    for tidy in (
        ir_passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        ir_passes.CommonSubexpressionEliminationPass(),
        ir_passes.DeduplicateInitializersPass(),
        ir_passes.RemoveUnusedNodesPass(),
        ir_passes.ClearMetadataAndDocStringPass(),
    ):
        tidy(changed)
    changed.metadata_props.update(metadata)
    if any(node.domain == CONTRIB for node in changed.graph):
        changed.opset_imports[CONTRIB] = 1
    return Formed(ir.serde.serialize_model(changed), counts, tuple(dict.fromkeys(refusals)))


def _rules(form: Form, gemm: bool, refusals: list[str]) -> Sequence[tuple[str, list[RewriteRule]]]:
    """In the order in which they are applied."""
    rules: list[tuple[str, list[RewriteRule]]] = [("scales", [ScaleByChannel.made(refusals)])]
    if form.attention == "PackedAttention":
        kinds = [{"biased": biased, "sized": sized} for biased in (True, False) for sized in (True, False)]
        rules.append(("packed", [ProjectionIntoAttention.made(refusals, **kind) for kind in kinds]))
    if form.attention is not None:
        operator = "Attention" if form.attention == "Attention" else "MultiHeadAttention"
        rules.append(
            ("attention", [AttentionOfTokens.made(refusals, operator, sized=sized) for sized in (True, False)])
        )
    if gemm:
        rules.append(("gemm", [LinearToGemm.made(refusals)]))
        rules.append(("flat", [FlatActivation.made(refusals, name) for name in _ACTIVATIONS]))
    return rules
