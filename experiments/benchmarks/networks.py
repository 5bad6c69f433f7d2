"""Section `networks`: forward pass and training step of the same network here and in torch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ml_collections import ConfigDict

from experiments.benchmarks.work import Comparison, Contender

__all__ = ["LAYOUTS", "NETWORKS", "OURS", "arguments", "comparisons", "saved", "torch_contender"]

OURS = "diffusers_fn"
LAYOUTS = {"torch eager": "eager", "torch channels-last": "channels_last", "torch.compile": "compiled"}

# Name -> (family, config of the reference, shape of one example, number of classes).
NETWORKS: dict[str, tuple[str, dict[str, Any], tuple[int, int, int], int]] = {
    "unet": (  # DDPM for CIFAR-10, 35.7M parameters
        "unet2d",
        {
            "in_channels": 3,
            "out_channels": 3,
            "block_out_channels": [128, 256, 256, 256],
            "down_block_types": ["DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"],
            "up_block_types": ["UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"],
            "layers_per_block": 2,
            "attention_head_dim": None,
            "downsample_padding": 0,
            "flip_sin_to_cos": False,
            "freq_shift": 1,
            "norm_eps": 1e-6,
        },
        (32, 32, 3),
        0,
    ),
    "dit": (  # DiT-S/2
        "dit_diffusers",
        {
            "num_attention_heads": 6,
            "attention_head_dim": 64,
            "num_layers": 12,
            "in_channels": 4,
            "out_channels": 4,
            "sample_size": 32,
            "patch_size": 2,
            "num_embeds_ada_norm": 1000,
        },
        (32, 32, 4),
        1000,
    ),
    "uvit": (  # U-ViT-S for CIFAR-10
        "uvit",
        {"img_size": 32, "patch_size": 2, "in_chans": 3, "embed_dim": 512, "depth": 12, "num_heads": 8},
        (32, 32, 3),
        0,
    ),
    "small_unet": (
        "unet2d",
        {
            "block_out_channels": [64, 128],
            "down_block_types": ["DownBlock2D", "AttnDownBlock2D"],
            "up_block_types": ["AttnUpBlock2D", "UpBlock2D"],
            "layers_per_block": 1,
        },
        (32, 32, 3),
        0,
    ),
    "tiny_unet": (
        "unet2d",
        {
            "block_out_channels": [8, 8],
            "down_block_types": ["DownBlock2D", "AttnDownBlock2D"],
            "up_block_types": ["AttnUpBlock2D", "UpBlock2D"],
            "layers_per_block": 1,
            "norm_num_groups": 4,
        },
        (8, 8, 3),
        0,
    ),
}


def comparisons(config: ConfigDict) -> Iterator[Comparison]:
    """Yields one comparison per network, batch size and kind of work."""
    section = config.networks
    for name in section.networks:
        layouts = ["eager"] + ["channels_last"] * ("unet" in name) + ["compiled"] * section.torch_compile
        for batch in section.batches:
            for what in section.work:
                kwargs = arguments(name, batch)
                torch_layouts = [(label, layout) for label, layout in LAYOUTS.items() if layout in layouts]
                yield Comparison(
                    f"{name}, {what}, batch {batch}",
                    (
                        Contender(OURS, f"experiments.benchmarks.jax_networks:{what}", kwargs),
                        *(
                            torch_contender(label, what, {**kwargs, "layout": layout})
                            for label, layout in torch_layouts
                        ),
                    ),
                    prepare=saved(name),
                )


def arguments(name: str, batch: int) -> dict[str, Any]:
    """Returns the arguments of every contender that evaluates a network: its folder and the shape of its input.

    >>> arguments("unet", 8)
    {'folder': 'weights_unet', 'shape': [8, 32, 32, 3], 'num_classes': 0}
    """
    _, _, shape, num_classes = NETWORKS[name]
    return {"folder": f"weights_{name}", "shape": [batch, *shape], "num_classes": num_classes}


def saved(name: str) -> Contender:
    """Returns the contender that writes a network's weights."""
    family, config, _, _ = NETWORKS[name]
    target = "experiments.benchmarks.jax_networks:save"
    return Contender("weights", target, {"folder": f"weights_{name}", "family": family, "config": config})


def torch_contender(label: str, what: str, kwargs: dict[str, Any]) -> Contender:
    """Returns a torch contender; the networks come from the diffusers library."""
    return Contender(
        label, f"experiments.benchmarks.peers.torch_networks:{what}", kwargs, package="diffusers", peer=True
    )
