"""Rewrite rules on exported models: a pattern, a check that says why it refuses, a replacement.

Shapes: B images, T tokens, D the width of the stream, H heads, E = H·d inner channels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import onnx_ir as ir
from onnxscript.rewriter import MatchResult, RewriteRule, RewriteRuleClassBase

CONTRIB = "com.microsoft"
_SWAP_HEADS = [0, 2, 1, 3]


class _Rule(RewriteRuleClassBase):
    """refusals: gets the reasons why a match was left alone."""

    def __init__(self, refusals: list[str]) -> None:
        super().__init__()
        self.refusals = refusals

    @classmethod
    def made(cls, *arguments: object, **options: object) -> RewriteRule:
        """What onnxscript applies, of the constructor's arguments; its own `rule` has no types."""
        make: Callable[..., RewriteRule] = cls.rule
        return make(*arguments, **options)

    def _decide(self, reason: str | None) -> MatchResult:
        result = MatchResult()
        if reason is not None:
            self.refusals.append(f"{self.name}: {reason}")
            result.fail(reason)
        return result


def _heads_first(op: Any, tokens: Any, shape: Any) -> Any:
    """(B, T, E) -> (B, H, T, d)."""
    return op.Transpose(op.Reshape(tokens, shape), perm=_SWAP_HEADS)


def _attended(op: Any, parts: Iterable[tuple[Any, Any]], shape: Any, bias: Any) -> Any:
    """parts: q, k and v (B, T, E), each with the shape that sets its heads apart. bias: of the scores, or None."""
    biases = () if bias is None else (bias,)
    attended = op.Attention(*(_heads_first(op, *part) for part in parts), *biases, _outputs=["attended"])
    return op.Reshape(op.Transpose(attended, perm=_SWAP_HEADS), shape)


def _why_not_plain(attended: ir.Value, shapes: tuple[ir.Value, ...], after: ir.Value, sized: bool) -> str | None:
    """Why an attention is another than softmax(scale · Q Kᵀ) V with as many heads in q, k and v.

    sized: the logarithm of merged tokens' sizes is added to the scores."""
    node = attended.producer()
    assert node is not None
    if len([value for value in node.inputs if value is not None]) > 3 + sized or node.attributes.get_int("is_causal"):
        return f"{node.name} has a mask"
    if node.attributes.get_float("softcap"):
        return f"{node.name} caps its scores"
    if node.attributes.get_float("scale") is None:
        return f"{node.name} does not say its scale"
    sizes = [_ints(value) for value in shapes]
    if any(len(size) != 4 for size in sizes) or len({size[2] for size in sizes if len(size) == 4}) != 1:
        return f"{node.name} has different numbers of heads in q, k and v"
    heads, channels = sizes[2][2:]
    if _ints(after)[2:] != [heads * channels]:
        return f"the heads of {node.name} are not laid side by side"
    return None


class ProjectionIntoAttention(_Rule):
    """Linear, split, heads, Attention -> com.microsoft::Attention, which has the projection in it.

    biased: whether the projection has a bias. sized: whether tokens' sizes are added to the scores.
    """

    def __init__(self, refusals: list[str], *, biased: bool, sized: bool) -> None:
        super().__init__(refusals)
        self.biased, self.sized = biased, sized

    def pattern(
        self,
        op: Any,
        x: Any,
        weight: Any,
        bias: Any,
        sizes: Any,
        q_shape: Any,
        k_shape: Any,
        v_shape: Any,
        after: Any,
        mask: Any,
    ) -> Any:
        product = op.MatMul(x, weight)
        if self.biased:
            product = op.Add(product, bias)
        parts = op.Split(product, sizes, axis=2, _outputs=["q", "k", "v"])
        shapes = (q_shape, k_shape, v_shape)
        return _attended(op, zip(parts, shapes, strict=True), after, mask if self.sized else None)

    def check(
        self, op: Any, x: ir.Value, weight: ir.Value, attended: ir.Value, after: ir.Value, **shapes: ir.Value
    ) -> MatchResult:
        if self.sized and not _of_sizes(shapes["mask"]):
            return MatchResult().fail("its bias is not that of merged tokens' sizes")
        reason = _why_not_plain(attended, (shapes["q_shape"], shapes["k_shape"], shapes["v_shape"]), after, self.sized)
        if reason is None and (weight.const_value is None or not _ints(shapes["sizes"])):
            reason = "the packed weight or its sizes are not constant"
        return self._decide(reason)

    def rewrite(
        self, op: Any, x: ir.Value, weight: ir.Value, attended: ir.Value, sizes: ir.Value, **shapes: ir.Value
    ) -> ir.Value:
        # Without a bias, which its schema allows, ONNX Runtime 1.31 ends the process.
        bias = shapes["bias"] if self.biased else op.Constant(value=_zeros(weight))
        attention: ir.Value = op.Attention(
            x,
            weight,
            bias,
            *([None, None, shapes["mask"]] if self.sized else []),
            num_heads=_ints(shapes["q_shape"])[2],
            qkv_hidden_sizes=_ints(sizes),
            scale=_scale(attended),
            _domain=CONTRIB,
        )
        return attention


class AttentionOfTokens(_Rule):
    """Heads, Attention and back -> one operator on (B, T, E), which needs no transposes.

    operator: "Attention" of the standard, or "MultiHeadAttention" of ONNX Runtime. sized: whether tokens' sizes are
    added to the scores.
    """

    def __init__(self, refusals: list[str], operator: str, *, sized: bool) -> None:
        super().__init__(refusals)
        self.operator, self.sized = operator, sized

    def pattern(
        self, op: Any, q: Any, k: Any, v: Any, q_shape: Any, k_shape: Any, v_shape: Any, after: Any, mask: Any
    ) -> Any:
        return _attended(op, ((q, q_shape), (k, k_shape), (v, v_shape)), after, mask if self.sized else None)

    def check(self, op: Any, q: ir.Value, attended: ir.Value, after: ir.Value, **shapes: ir.Value) -> MatchResult:
        if self.sized and not _of_sizes(shapes["mask"]):
            return MatchResult().fail("its bias is not that of merged tokens' sizes")
        parts = (shapes["q_shape"], shapes["k_shape"], shapes["v_shape"])
        return self._decide(_why_not_plain(attended, parts, after, self.sized))

    def rewrite(
        self, op: Any, q: ir.Value, k: ir.Value, v: ir.Value, q_shape: ir.Value, attended: ir.Value, **others: ir.Value
    ) -> ir.Value:
        heads, scale = _ints(q_shape)[2], _scale(attended)
        mask = others.get("mask")
        attention: ir.Value
        if self.operator == "Attention":
            attention = op.Attention(
                q, k, v, *([mask] if self.sized else []), q_num_heads=heads, kv_num_heads=heads, scale=scale
            )
        else:
            biases = [None, None, mask] if self.sized else []
            attention = op.MultiHeadAttention(q, k, v, *biases, num_heads=heads, scale=scale, _domain=CONTRIB)
        return attention


class ScaleByChannel(_Rule):
    """RMSNorm without a scale, to which torch's exporter gives ones for the whole stream -> one for each channel."""

    def pattern(self, op: Any, x: Any, shape: Any) -> Any:
        ones = op.ConstantOfShape(shape, _outputs=["ones"])
        return op.RMSNormalization(x, ones, _outputs=["normed"])

    def check(self, op: Any, x: ir.Value, shape: ir.Value, ones: ir.Value, normed: ir.Value) -> MatchResult:
        filling, norm = ones.producer(), normed.producer()
        assert filling is not None and norm is not None
        value = filling.attributes.get("value")
        if value is None or value.as_tensor().numpy().item() != 1 or norm.attributes.get_int("axis") != -1:
            return MatchResult().fail("its scale is not that of a norm without one")
        known = x.shape is not None and isinstance(x.shape[-1], int)
        return self._decide(None if known else f"the width of {x.name} is not known")

    def rewrite(self, op: Any, x: ir.Value, shape: ir.Value, ones: ir.Value, normed: ir.Value) -> ir.Value:
        norm, filling = normed.producer(), ones.producer()
        assert norm is not None and filling is not None and x.shape is not None
        dtype, width = filling.attributes["value"].as_tensor().numpy().dtype, x.shape[-1]
        assert isinstance(width, int)
        scale = op.Constant(value=ir.tensor(np.ones(width, dtype)))
        # 1e-5 is the operator's default.
        result: ir.Value = op.RMSNormalization(x, scale, axis=-1, epsilon=norm.attributes.get_float("epsilon", 1e-5))
        return result


class LinearToGemm(_Rule):
    """MatMul and Add on (B, T, D) -> Gemm on (B·T, D), which adds the bias without another pass over memory."""

    def pattern(self, op: Any, x: Any, weight: Any, bias: Any) -> Any:
        return op.Add(op.MatMul(x, weight, _outputs=["product"]), bias)

    def check(self, op: Any, x: ir.Value, weight: ir.Value, bias: ir.Value, product: ir.Value) -> MatchResult:
        constants = weight.const_value is not None and bias.const_value is not None
        if not constants or weight.shape is None or len(weight.shape) != 2:
            return MatchResult().fail("it is not a linear map")
        if bias.shape is None or len(bias.shape) != 1:
            return self._decide(f"{bias.name} differs from token to token, which Gemm's bias can't")
        tokens = None if product.shape is None or len(product.shape) != 3 else product.shape[1]
        return self._decide(None if isinstance(tokens, int) else f"the number of tokens of {product.name} is not known")

    def rewrite(self, op: Any, x: ir.Value, weight: ir.Value, bias: ir.Value, product: ir.Value) -> ir.Value:
        assert weight.shape is not None and product.shape is not None
        flat = op.Reshape(x, op.Constant(value_ints=[-1, weight.shape[0]]))
        product_and_bias = op.Gemm(flat, weight, bias)
        result = op.Reshape(product_and_bias, op.Constant(value_ints=[-1, *product.shape[1:]]))
        result.shape, result.dtype = product.shape, product.dtype
        assert isinstance(result, ir.Value)
        return result


class FlatActivation(_Rule):
    """(B·T, D) -> (B, T, D), activation, and back -> the activation alone, between the two Gemm of an MLP."""

    def __init__(self, refusals: list[str], activation: str) -> None:
        super().__init__(refusals)
        self.activation = activation

    def pattern(self, op: Any, x: Any, whole: Any, flat: Any) -> Any:
        activated = getattr(op, self.activation)(op.Reshape(x, whole), _outputs=["activated"])
        return op.Reshape(activated, flat)

    def check(self, op: Any, x: ir.Value, whole: ir.Value, flat: ir.Value, activated: ir.Value) -> MatchResult:
        before, after = _ints(whole), _ints(flat)
        same = len(before) == 3 and after == [-1, before[2]]
        # Only a Gemm's result is known to have been flat in the same way.
        producer = x.producer()
        return self._decide(
            None if same and producer is not None and producer.op_type == "Gemm" else "the shapes around it differ"
        )

    def rewrite(self, op: Any, x: ir.Value, activated: ir.Value, **_: ir.Value) -> ir.Value:
        node = activated.producer()
        assert node is not None
        attributes = {name: attribute.value for name, attribute in node.attributes.items()}
        activation: ir.Value = getattr(op, self.activation)(x, **attributes)
        return activation


def _of_sizes(bias: ir.Value) -> bool:
    """It is an expanded logarithm, as `passes.attention_core` writes it."""
    node = bias.producer()
    while node is not None and node.op_type in ("Expand", "Unsqueeze", "Reshape"):
        value = node.inputs[0]
        node = None if value is None else value.producer()
    return node is not None and node.op_type == "Log"


def _ints(value: ir.Value) -> list[int]:
    """A constant's numbers; none where the value is not constant."""
    tensor = ir.convenience.get_const_tensor(value)
    return [] if tensor is None else [int(number) for number in tensor.numpy().flatten()]


def _zeros(weight: ir.Value) -> ir.TensorProtocol:
    """As many as the weight (D, E) has columns, in its type."""
    constant = weight.const_value
    assert constant is not None
    return ir.tensor(np.zeros(constant.numpy().shape[1], constant.numpy().dtype))


def _scale(attended: ir.Value) -> float:
    node = attended.producer()
    assert node is not None
    return float(node.attributes["scale"].as_float())
