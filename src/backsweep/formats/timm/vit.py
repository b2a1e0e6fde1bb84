"""Vision transformers: ViT, DeiT (distilled too) and DeiT III, with timm's names of weights."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

EPS = 1e-6


class Attention(nn.Module):
    """Self-attention over tokens (N, T, D)."""

    def __init__(self, dim: int, heads: int, bias: bool) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim, bias=bias)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        count, tokens, dim = x.shape
        parts = self.qkv(x).reshape(count, tokens, 3, self.heads, dim // self.heads).permute(2, 0, 3, 1, 4)
        seen = F.scaled_dot_product_attention(parts[0], parts[1], parts[2])
        return self.proj(seen.transpose(1, 2).reshape(count, tokens, dim))


class Mlp(nn.Module):
    """Two layers on every token."""

    def __init__(self, dim: int, inner: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, inner)
        self.fc2 = nn.Linear(inner, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class Scale(nn.Module):
    """A learnt factor for every channel."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


class Block(nn.Module):
    """Attention and two layers, each behind a normalisation."""

    def __init__(self, dim: int, heads: int, inner: int, scaled: bool, bias: bool) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, EPS)
        self.attn = Attention(dim, heads, bias)
        self.ls1 = Scale(dim) if scaled else nn.Identity()
        self.norm2 = nn.LayerNorm(dim, EPS)
        self.mlp = Mlp(dim, inner)
        self.ls2 = Scale(dim) if scaled else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.ls1(self.attn(self.norm1(x)))
        return x + self.ls2(self.mlp(self.norm2(x)))


class Patches(nn.Module):
    """Patches of the image as tokens."""

    def __init__(self, inputs: int, dim: int, patch: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(inputs, dim, patch, patch)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x).flatten(2).transpose(1, 2)


class VisionTransformer(nn.Module):
    """The network.

    Args:
        size: height and width of the images.
        distilled: a second token with a head of its own; the answers of both heads are averaged.
        apart: the first token has no position (DeiT III).
        averaged: the mean of the patches is classified, instead of the first token.
        scaled: a learnt factor behind every part of a block.
    """

    def __init__(
        self, classes: int, inputs: int, size: tuple[int, int], *, patch: int, dim: int, depth: int,
        heads: int, ratio: float = 4.0, distilled: bool = False, apart: bool = False, averaged: bool = False,
        scaled: bool = False, bias: bool = True,
    ) -> None:  # fmt: skip
        super().__init__()
        self.first, self.apart, self.averaged = 2 if distilled else 1, apart, averaged
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.dist_token = nn.Parameter(torch.zeros(1, 1, dim)) if distilled else None
        count = (size[0] // patch) * (size[1] // patch) + (0 if apart else self.first)
        self.pos_embed = nn.Parameter(torch.zeros(1, count, dim))
        self.patch_embed = Patches(inputs, dim, patch)
        self.blocks = nn.Sequential(
            *(Block(dim, heads, int(dim * ratio), scaled, bias) for _ in range(depth))
        )
        self.norm = nn.Identity() if averaged else nn.LayerNorm(dim, EPS)
        self.fc_norm = nn.LayerNorm(dim, EPS) if averaged else nn.Identity()
        self.head = nn.Linear(dim, classes)
        self.head_dist = nn.Linear(dim, classes) if distilled else None

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch_embed(x)
        first = self.cls_token if self.dist_token is None else torch.cat([self.cls_token, self.dist_token], 1)
        first = first.expand(len(x), -1, -1)
        x = (
            torch.cat([first, x + self.pos_embed], 1)
            if self.apart
            else torch.cat([first, x], 1) + self.pos_embed
        )
        x = self.norm(self.blocks(x))
        if self.head_dist is not None:
            return (self.head(x[:, 0]) + self.head_dist(x[:, 1])) / 2
        return self.head(self.fc_norm(x[:, self.first :].mean(1) if self.averaged else x[:, 0]))
