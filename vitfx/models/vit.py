"""The seed project's Vision Transformer, written with einops."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from einops.layers.torch import Rearrange
from torch import nn
from torchvision.ops import StochasticDepth

from vitfx.support.errors import UserError


class ViT(nn.Module):
    """A pre-norm Vision Transformer (Dosovitskiy et al. 2021) with a class token and learned positions.

    Takes (B, channels, height, width), gives logits (B, classes).

    image_size: the side of square images in pixels, or (height, width)
    width: of the residual stream
    mlp: hidden neurons of each MLP
    dropout: on the embedded tokens, hidden neurons and each sublayer's output
    drop_path: the probability that the last block's sublayers are skipped for an image in training; it grows linearly
        from 0 at the first block (stochastic depth, Huang et al. 2016)
    attention_dropout: on attention weights; rules out the fused kernel on CPUs

    Raises UserError for arguments that make no model.
    """

    def __init__(
        self,
        image_size: int | Sequence[int] = 64,
        patch_size: int = 8,
        channels: int = 3,
        classes: int = 200,
        width: int = 256,
        depth: int = 12,
        heads: int = 8,
        mlp: int = 512,
        dropout: float = 0.0,
        drop_path: float = 0.0,
        attention_dropout: float = 0.0,
    ) -> None:
        super().__init__()
        _check_counts(
            patch_size=patch_size, channels=channels, classes=classes, width=width, depth=depth, heads=heads, mlp=mlp
        )
        sides = _sides(image_size)
        for side in sides:
            _check_divides("image_size", side, "patch_size", patch_size)
        _check_divides("width", width, "heads", heads)
        _check_chances(dropout=dropout, drop_path=drop_path, attention_dropout=attention_dropout)
        self.image_size = sides
        self.grid = (sides[0] // patch_size, sides[1] // patch_size)
        patches = self.grid[0] * self.grid[1]
        self.embed = nn.Sequential(
            Rearrange("b c (h p) (w q) -> b (h w) (p q c)", p=patch_size, q=patch_size),
            nn.Linear(channels * patch_size**2, width),
        )
        self.class_token = nn.Parameter(torch.empty(1, 1, width))
        self.positions = nn.Parameter(torch.empty(1, patches + 1, width))
        self.dropout = nn.Dropout(dropout)
        rates = [drop_path * block / max(depth - 1, 1) for block in range(depth)]
        self.blocks = nn.Sequential(*(Block(width, heads, mlp, dropout, attention_dropout, rate) for rate in rates))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, classes)
        # The scale of embedded patches: with the usual 0.02, training on small data sets takes far longer.
        nn.init.normal_(self.class_token, std=0.5)
        nn.init.normal_(self.positions, std=0.5)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """(B, channels, height, width) -> logits (B, classes)."""
        patches = self.embed(images)
        class_token = repeat(self.class_token, "1 1 d -> b 1 d", b=patches.shape[0])
        tokens = torch.cat([class_token, patches], dim=1) + self.positions
        logits: torch.Tensor = self.head(self.norm(self.blocks(self.dropout(tokens)))[:, 0])
        return logits


class Block(nn.Module):
    """One layer: x + attention(norm(x)), then x + mlp(norm(x)); (B, N, width) -> (B, N, width)."""

    def __init__(
        self, width: int, heads: int, mlp: int, dropout: float, attention_dropout: float, drop_path: float
    ) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(width)
        self.attention = Attention(width, heads, dropout, attention_dropout)
        self.mlp_norm = nn.LayerNorm(width)
        self.mlp = nn.Sequential(
            nn.Linear(width, mlp), nn.GELU(), nn.Dropout(dropout), nn.Linear(mlp, width), nn.Dropout(dropout)
        )
        self.drop_path = StochasticDepth(drop_path, mode="row")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.drop_path(self.attention(self.attention_norm(x)))
        out: torch.Tensor = x + self.drop_path(self.mlp(self.mlp_norm(x)))
        return out


class Attention(nn.Module):
    """Multi-head self-attention (Vaswani et al. 2017); (B, N, width) -> (B, N, width)."""

    def __init__(self, width: int, heads: int, dropout: float, attention_dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.attention_dropout = attention_dropout
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Sequential(nn.Linear(width, width), nn.Dropout(dropout))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = rearrange(self.qkv(x), "b n (three h d) -> three b h n d", three=3, h=self.heads)
        mixed = F.scaled_dot_product_attention(q, k, v, dropout_p=self.attention_dropout if self.training else 0.0)
        out: torch.Tensor = self.out(rearrange(mixed, "b h n d -> b n (h d)"))
        return out


def _sides(image_size: int | Sequence[int]) -> tuple[int, int]:
    """(height, width). Raises UserError."""
    if not isinstance(image_size, Sequence) or isinstance(image_size, str):
        _check_counts(image_size=image_size)
        return image_size, image_size
    if len(image_size) != 2:
        raise UserError(f"ViT's image_size is {list(image_size)}: give one side, or a height and a width")
    height, width = image_size
    _check_counts(image_height=height, image_width=width)
    return height, width


def _check_counts(**counts: int) -> None:
    for name, value in counts.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise UserError(f"ViT's {name} is {value!r}: give a whole number of 1 or more")


def _check_divides(whole_name: str, whole: int, part_name: str, part: int) -> None:
    if whole % part:
        raise UserError(f"ViT's {whole_name} {whole} is not a multiple of its {part_name} {part}: change one of them")


def _check_chances(**chances: float) -> None:
    for name, value in chances.items():
        if not 0 <= value < 1:
            raise UserError(f"ViT's {name} is {value!r}: give a number from 0 up to, but not including, 1")
