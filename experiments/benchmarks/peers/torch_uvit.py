"""U-ViT (Bao et al. 2022, https://arxiv.org/abs/2209.12152) in plain torch, with the names of the published tensors."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch
from torch import nn

__all__ = ["Attention", "Block", "Mlp", "PatchEmbed", "UViT", "load"]


def load(folder: str) -> nn.Module:
    """Returns the unconditional network of a folder written by `pretrained.save`."""
    from safetensors.torch import load_file

    config = json.loads((Path(folder) / "config.json").read_text())
    network = UViT(
        *(config[name] for name in ("img_size", "patch_size", "in_chans", "embed_dim", "depth", "num_heads"))
    )
    network.load_state_dict(load_file(next(Path(folder).glob("*.safetensors"))))
    return network


class Attention(nn.Module):
    """Self-attention of tokens [B, L, D]."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.proj = nn.Linear(width, width)

    def forward(self, h: torch.Tensor) -> torch.Tensor:
        batch, length, width = h.shape
        qkv = self.qkv(h).view(batch, length, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        out = nn.functional.scaled_dot_product_attention(qkv[0], qkv[1], qkv[2])
        return self.proj(out.transpose(1, 2).reshape(batch, length, width))


class Mlp(nn.Module):
    """Two dense layers with a GELU in between."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, h: torch.Tensor) -> torch.Tensor:
        return self.fc2(nn.functional.gelu(self.fc1(h)))


class Block(nn.Module):
    """A pre-norm transformer block; in the second half of the network it merges a skip connection first."""

    def __init__(self, width: int, heads: int, skip: bool) -> None:
        super().__init__()
        self.norm1, self.attn = nn.LayerNorm(width), Attention(width, heads)
        self.norm2, self.mlp = nn.LayerNorm(width), Mlp(width)
        self.skip_linear = nn.Linear(2 * width, width) if skip else None

    def forward(self, h: torch.Tensor, skip: torch.Tensor | None = None) -> torch.Tensor:
        if self.skip_linear is not None:
            h = self.skip_linear(torch.cat([h, skip], dim=-1))
        h = h + self.attn(self.norm1(h))
        return h + self.mlp(self.norm2(h))


class PatchEmbed(nn.Module):
    """Patch embedding: images [B, C, H, W] -> tokens [B, L, D]."""

    def __init__(self, channels: int, width: int, patch: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(channels, width, patch, stride=patch)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.proj(x).flatten(2).transpose(1, 2)


class UViT(nn.Module):
    """The unconditional network: x [B, C, H, W], t [B] -> [B, C, H, W]."""

    def __init__(self, size: int, patch: int, channels: int, width: int, depth: int, heads: int) -> None:
        super().__init__()
        self.patch, self.side, self.channels, self.width = patch, size // patch, channels, width
        self.patch_embed = PatchEmbed(channels, width, patch)
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + self.side**2, width))
        self.in_blocks = nn.ModuleList(Block(width, heads, False) for _ in range(depth // 2))
        self.mid_block = Block(width, heads, False)
        self.out_blocks = nn.ModuleList(Block(width, heads, True) for _ in range(depth // 2))
        self.norm = nn.LayerNorm(width)
        self.decoder_pred = nn.Linear(width, patch**2 * channels)
        self.final_layer = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        half = self.width // 2
        angles = t[:, None].float() * torch.exp(-math.log(10_000) / half * torch.arange(half, device=t.device))
        time = torch.cat([angles.cos(), angles.sin()], dim=-1)
        h = torch.cat([time[:, None], self.patch_embed(x)], dim=1) + self.pos_embed
        saved: list[Any] = []
        for block in self.in_blocks:
            h = block(h)
            saved.append(h)
        h = self.mid_block(h)
        for block in self.out_blocks:
            h = block(h, saved.pop())
        h = self.decoder_pred(self.norm(h))[:, 1:].view(-1, self.side, self.side, self.patch, self.patch, self.channels)
        return self.final_layer(h.permute(0, 5, 1, 3, 2, 4).reshape(x.shape))
