"""Hypothesis strategies: small ViTs of several libraries whose sizes and parts are drawn, and what is done to them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import timm
import torch
import torchvision
import transformers
from hypothesis import strategies as st
from timm.layers import GluMlp, RmsNorm, SwiGLU
from timm.models.eva import Eva
from timm.models.vision_transformer import ParallelScalingBlock, ParallelThingsBlock
from torch import nn
from torch.fx import GraphModule

from passes.plan import DeletionPlan
from passes.stream import read_sites
from passes.token_schedule import TokenSchedule
from tests.support.checks import plan_of
from tests.support.families import CLASSES, SIZE, HandWritten, randomised
from vitfx.graph.outputs import OneOutput
from vitfx.models.vit import ViT

Draw = Callable[[st.SearchStrategy[Any]], Any]


@st.composite
def vits(draw: Draw) -> nn.Module:
    """In eval mode, with 16 patches; all parameters random, and the same for the same draws."""
    heads = draw(st.integers(1, 3))
    # Rotary positions turn two axes, in pairs of channels.
    width = heads * 4 * draw(st.integers(1, 2))
    make = draw(st.sampled_from((_vitfx, _torchvision, _timm, _eva, _huggingface, _hand_written)))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return randomised(make(draw, width, heads, draw(st.integers(1, 3)), draw(st.integers(2, 24))))


def _vitfx(draw: Draw, width: int, heads: int, depth: int, hidden: int) -> nn.Module:
    return ViT(SIZE, 8, 3, CLASSES, width=width, depth=depth, heads=heads, mlp=hidden)


def _torchvision(draw: Draw, width: int, heads: int, depth: int, hidden: int) -> nn.Module:
    return torchvision.models.VisionTransformer(SIZE, 8, depth, heads, width, hidden, num_classes=CLASSES)


def _timm(draw: Draw, width: int, heads: int, depth: int, hidden: int) -> nn.Module:
    pool = draw(st.sampled_from(("token", "avg")))
    return timm.models.VisionTransformer(
        **_sizes(width, heads, depth),
        mlp_ratio=2 * hidden / width,
        global_pool=pool,
        class_token=pool == "token" or draw(st.booleans()),
        reg_tokens=draw(st.integers(0, 2)),
        init_values=draw(st.sampled_from((None, 0.1))),
        qkv_bias=draw(st.booleans()),
        qk_norm=draw(st.booleans()),
        pre_norm=draw(st.booleans()),
        norm_layer=draw(st.sampled_from((None, RmsNorm))),
        act_layer=draw(st.sampled_from((None, nn.ReLU, nn.SiLU))),
        **draw(
            st.sampled_from(
                (
                    {},
                    {"mlp_layer": GluMlp},
                    {"mlp_layer": SwiGLU},
                    {"block_fn": ParallelThingsBlock},
                    {"block_fn": ParallelScalingBlock},
                )
            )
        ),
    )


def _eva(draw: Draw, width: int, heads: int, depth: int, hidden: int) -> nn.Module:
    turns = draw(st.booleans())
    return Eva(
        **_sizes(width, heads, depth),
        mlp_ratio=2 * hidden / width,
        global_pool=draw(st.sampled_from(("token", "avg"))),
        qkv_fused=draw(st.booleans()),
        swiglu_mlp=draw(st.booleans()),
        scale_mlp=draw(st.booleans()),
        use_rot_pos_emb=turns,
        use_abs_pos_emb=not turns or draw(st.booleans()),
    )


def _huggingface(draw: Draw, width: int, heads: int, depth: int, hidden: int) -> nn.Module:
    kind = draw(st.sampled_from(("ViT", "Dinov2", "Dinov2WithRegisters")))
    config = getattr(transformers, f"{kind}Config")(
        image_size=SIZE,
        patch_size=8,
        num_hidden_layers=depth,
        num_attention_heads=heads,
        hidden_size=width,
        intermediate_size=hidden,
        num_labels=CLASSES,
        qkv_bias=draw(st.booleans()),
        hidden_act=draw(st.sampled_from(("gelu", "relu", "silu"))),
    )
    return OneOutput(getattr(transformers, f"{kind}ForImageClassification")(config), "logits")


def _hand_written(draw: Draw, width: int, heads: int, depth: int, hidden: int) -> nn.Module:
    return HandWritten(width, heads, depth)


def _sizes(width: int, heads: int, depth: int) -> dict[str, Any]:
    sizes = {"img_size": SIZE, "patch_size": 8, "num_classes": CLASSES}
    return sizes | {"embed_dim": width, "num_heads": heads, "depth": depth}


def drawn_plan(draw: Draw, graph_module: GraphModule) -> DeletionPlan:
    """Any units of any sublayers, with constants of any kind."""
    units = {}
    for site in read_sites(graph_module):
        every = range(site.module.units)
        units[site.name] = draw(st.one_of(st.just([]), st.just(list(every)), st.lists(st.sampled_from(every))))
        units[site.name] = sorted(set(units[site.name]))
    return plan_of(graph_module, units, draw(st.sampled_from(("none", "mean", "position"))))


def drawn_schedule(draw: Draw, depth: int) -> TokenSchedule:
    """Of 16 tokens that may merge some do, in any blocks."""
    blocks = draw(st.sets(st.integers(0, depth - 1), max_size=2))
    return TokenSchedule(tuple((block, draw(st.integers(1, 3))) for block in sorted(blocks)))
