"""One small, randomly initialised model of every family that vitfx takes, and of some that it must refuse."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import timm
import torch
import torchvision
import transformers
from timm.layers import AttentionPoolLatent, RmsNorm, SwiGLU, set_fused_attn
from timm.models.beit import Beit
from timm.models.eva import Eva
from timm.models.vision_transformer import ParallelScalingBlock, ParallelThingsBlock
from timm.models.vitamin import GeGluMlp
from torch import Tensor, nn

from vitfx.graph.outputs import OneOutput
from vitfx.models.vit import ViT

SIZE, CLASSES = 32, 7
_TIMM = {"img_size": SIZE, "patch_size": 8, "depth": 3, "num_heads": 4, "embed_dim": 32, "num_classes": CLASSES}
_AVERAGED = {**_TIMM, "class_token": False, "global_pool": "avg"}
_HF = {
    "image_size": SIZE,
    "patch_size": 8,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_labels": CLASSES,
}


class HandWritten(nn.Module):
    """A ViT as people write it: no class token, average pooling, q, k, v by chunk, attention written out, no biases."""

    def __init__(self, width: int = 32, heads: int = 2, depth: int = 3) -> None:
        super().__init__()
        self.heads = heads
        self.patches = nn.Conv2d(3, width, 8, 8)
        self.blocks = nn.ModuleList(
            nn.ModuleDict(
                {
                    "n1": nn.LayerNorm(width),
                    "qkv": nn.Linear(width, 3 * width, bias=False),
                    "proj": nn.Linear(width, width, bias=False),
                    "n2": nn.LayerNorm(width),
                    "up": nn.Linear(width, 40),
                    "down": nn.Linear(40, width, bias=False),
                }
            )
            for _ in range(depth)
        )
        self.head = nn.Linear(width, CLASSES)

    def attention(self, block: nn.ModuleDict, x: Tensor) -> Tensor:
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in block["qkv"](x).chunk(3, -1))
        pattern = (q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5).softmax(-1)
        return block["proj"]((pattern @ v).transpose(1, 2).flatten(2))

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        for block in self.blocks:
            x = x + self.attention(block, block["n1"](x))
            x = block["down"](torch.relu(block["up"](block["n2"](x)))) + x
        return self.head(x.mean(1))


class Careless(nn.Module):
    """A ViT as people also write it: in place, by einsum, q and k scaled, factors, part of a position table."""

    def __init__(self, width: int = 32, depth: int = 3) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, 8, 8)
        self.positions = nn.Parameter(torch.zeros(1, 20, width))
        self.blocks = nn.ModuleList(
            nn.ModuleDict(
                {
                    "n1": nn.LayerNorm(width),
                    "qkv": nn.Linear(width, 3 * width),
                    "proj": nn.Linear(width, width),
                    "mlp": nn.Sequential(
                        nn.LayerNorm(width),
                        nn.Linear(width, 40),
                        nn.SiLU(inplace=True),
                        nn.Dropout(0.1, inplace=True),
                        nn.Linear(40, width),
                    ),
                }
            )
            for _ in range(depth)
        )
        self.factor = nn.Parameter(torch.ones(1))
        self.head = nn.Linear(width, CLASSES)

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).mT
        x = x + self.positions[:, : x.shape[1]]
        for block in self.blocks:
            q, k, v = block["qkv"](block["n1"](x)).unflatten(-1, (3, 4, 8)).unbind(2)
            pattern = torch.einsum("bihd,bjhd->bhij", q * 8**-0.25, k * 8**-0.25).softmax(-1)
            x += self.factor * block["proj"](torch.einsum("bhij,bjhd->bihd", pattern, v).flatten(2))
            x += 0.5 * block["mlp"](x)
        return self.head(x.mean(1))


class Encoder(nn.Module):
    """On nn.TransformerEncoder, pre-LN, its positions looked up."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 32, 8, 8)
        self.positions = nn.Embedding(16, 32)
        layer = nn.TransformerEncoderLayer(32, 4, 48, batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, 3, nn.LayerNorm(32), enable_nested_tensor=False)
        self.head = nn.Linear(32, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = x + self.positions(torch.arange(x.shape[1], device=x.device))
        return self.head(self.encoder(x).mean(1))


class PostNorm(nn.Module):
    """LayerNorm behind the residual add."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 32, 8, 8)
        layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True, norm_first=False)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(32, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encoder(self.patches(x).flatten(2).transpose(1, 2)).mean(1))


class FirstToken(nn.Module):
    """A backbone without a classifier, with one on its first token."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone, self.head = backbone, nn.Linear(32, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.backbone(x).last_hidden_state[:, 0])


class Pooled(nn.Module):
    """A backbone that pools by attention, with a classifier on its answer."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone, self.head = backbone, nn.Linear(32, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.backbone(x).pooler_output)


class Latents(nn.Module):
    """Pooled by three latent tokens, with normalised keys, and their mean."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = timm.models.VisionTransformer(**_TIMM, global_pool="", class_token=False)
        self.backbone.head = nn.Identity()
        self.pool = AttentionPoolLatent(
            32, num_heads=4, latent_len=3, qk_norm=True, pool_type="avg", norm_layer=nn.LayerNorm
        )
        self.head = nn.Linear(32, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.pool(self.backbone(x)))


def _eager_timm() -> nn.Module:
    set_fused_attn(False)
    try:
        return timm.models.VisionTransformer(**_TIMM)
    finally:
        set_fused_attn(True)


def _hf(model: type[nn.Module], config: type, **more: object) -> nn.Module:
    return OneOutput(model(config(**_HF, **more)), "logits")


FAMILIES: dict[str, Callable[[], nn.Module]] = {
    "vitfx": lambda: ViT(SIZE, 8, 3, CLASSES, width=32, depth=3, heads=4, mlp=48),
    "torchvision": lambda: torchvision.models.VisionTransformer(SIZE, 8, 3, 4, 32, 48, num_classes=CLASSES),
    "timm": lambda: timm.models.VisionTransformer(**_TIMM),
    "timm-written-out": _eager_timm,
    "timm-layerscale-average-registers": lambda: timm.models.VisionTransformer(
        **_TIMM, init_values=0.1, global_pool="avg", reg_tokens=2
    ),
    "timm-registers-after-positions": lambda: timm.models.VisionTransformer(**_TIMM, no_embed_class=True, reg_tokens=1),
    "timm-distilled": lambda: timm.models.VisionTransformerDistilled(**_TIMM),
    "hf-vit": lambda: _hf(transformers.ViTForImageClassification, transformers.ViTConfig),
    "hf-vit-eager": lambda: _hf(
        transformers.ViTForImageClassification, transformers.ViTConfig, attn_implementation="eager"
    ),
    "hf-deit": lambda: _hf(transformers.DeiTForImageClassificationWithTeacher, transformers.DeiTConfig),
    "hf-dinov2": lambda: _hf(transformers.Dinov2ForImageClassification, transformers.Dinov2Config),
    "hf-dinov2-registers": lambda: _hf(
        transformers.Dinov2WithRegistersForImageClassification, transformers.Dinov2WithRegistersConfig
    ),
    "timm-eva02": lambda: Eva(
        **_TIMM, qkv_fused=False, mlp_ratio=1.5, swiglu_mlp=True, use_rot_pos_emb=True, ref_feat_shape=(4, 4)
    ),
    "timm-rotary-mixed": lambda: Eva(
        **_TIMM, use_abs_pos_emb=False, use_rot_pos_emb=True, rope_type="mixed", global_pool="avg", use_fc_norm=True
    ),
    "timm-beit": lambda: Beit(**_TIMM, use_rel_pos_bias=True, use_abs_pos_emb=False, init_values=0.1),
    "timm-rms-swiglu-qk-norm": lambda: timm.models.VisionTransformer(
        **_TIMM, qk_norm=True, norm_layer=RmsNorm, mlp_layer=SwiGLU
    ),
    "timm-norms-inside": lambda: timm.models.VisionTransformer(**_TIMM, scale_attn_norm=True, scale_mlp_norm=True),
    "timm-norm-inside-mlp": lambda: Eva(**_TIMM, mlp_ratio=1.5, swiglu_mlp=True, scale_mlp=True),
    "timm-norm-on-norm": lambda: timm.models.VisionTransformer(**_TIMM, mlp_layer=GeGluMlp),
    "timm-grouped-queries": lambda: Eva(
        **_TIMM,
        attn_type="rope",
        global_pool="token",
        num_kv_heads=(2, 4, 2),
        qkv_fused=False,
        qk_norm=True,
        norm_layer=RmsNorm,
        use_rot_pos_emb=True,
        rope_rotate_half=True,
    ),
    "timm-side-by-side": lambda: timm.models.VisionTransformer(**_TIMM, block_fn=ParallelThingsBlock),
    "timm-parallel": lambda: timm.models.VisionTransformer(**_TIMM, qk_norm=True, block_fn=ParallelScalingBlock),
    "timm-parallel-fused": lambda: timm.models.VisionTransformer(
        **_AVERAGED, block_fn=partial(ParallelScalingBlock, fuse_out_proj=True), qkv_bias=False, init_values=0.1
    ),
    "hf-dinov3": lambda: FirstToken(
        transformers.DINOv3ViTModel(
            transformers.DINOv3ViTConfig(**_HF, num_register_tokens=2, use_gated_mlp=True, hidden_act="silu")
        )
    ),
    "hand-written": HandWritten,
    "careless": Careless,
    "torch-encoder": Encoder,
}

POOLED: dict[str, Callable[[], nn.Module]] = {
    "timm-map": lambda: timm.models.VisionTransformer(**_TIMM, global_pool="map", class_token=False),
    "timm-eva-map": lambda: Eva(
        **_TIMM, global_pool="map", use_rot_pos_emb=True, attn_pool_num_heads=2, use_post_transformer_norm=True
    ),
    "timm-latents": Latents,
    "hf-siglip": lambda: Pooled(transformers.SiglipVisionModel(transformers.SiglipVisionConfig(**_HF))),
}
"""Attention pooling behind three blocks: the pool is `a3`, its MLP `m3`."""

REFUSED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "resnet": (lambda: torchvision.models.resnet18(num_classes=CLASSES), "no pre-LN ViT"),
    "post-norm": (PostNorm, "post-LN"),
    "swin": (
        lambda: torchvision.models.SwinTransformer([2, 2], 16, [2, 2], [2, 4], [4, 4], num_classes=CLASSES),
        "no pre-LN ViT",
    ),
    "hf-swin": (
        lambda: _hf_swin(),
        r"runs over 16 positions at a time where the stream has 256 tokens \(windows\)",
    ),
    "mixer": (
        lambda: timm.models.MlpMixer(img_size=SIZE, patch_size=8, num_blocks=2, embed_dim=32, num_classes=CLASSES),
        "no attention sublayer",
    ),
}


def _hf_swin() -> nn.Module:
    config = transformers.SwinConfig(
        image_size=SIZE, patch_size=2, window_size=4, depths=[2, 2], num_heads=[2, 4], embed_dim=32, num_labels=CLASSES
    )
    return OneOutput(transformers.SwinForImageClassification(config), "logits")


def make(name: str) -> nn.Module:
    """The family's model in eval mode, all of its parameters random: libraries start many of them at 0 or 1."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return randomised((FAMILIES | POOLED)[name]())


def randomised(model: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def images(count: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(count, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(2)).to(dtype)
