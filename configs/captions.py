"""Your own pictures with captions in a folder: a text-conditional model, presets by picture size for a CPU.

    python -m experiments.train --config=configs/captions.py:cpu32 --workdir=runs/mine --config.data.path=FOLDER
    python -m experiments.sample --workdir=runs/mine --prompt="red heart" --prompt="blue heart"

Captions are `text` in FOLDER/metadata.jsonl, or a .txt file beside each picture (docs/data.md). A small text encoder is
trained along: words of the training captions have learned vectors (`backbones.TextContext`), to which the U-Net of
Stable Diffusion attends. A tenth of the captions is left out in training, so that `sampler.cfg_scale` can guide.

| preset | pixels | parameters | batches |
|---|---|---|---|
| `cpu32` (the default) | 32 x 32 | 4.5 million | 12,000 of 32 |
| `cpu64` | 64 x 64 | 4.9 million | 20,000 of 16 |

Preconditioning, loss weight and sampler are those of configs/images.py. Attention is at 8 x 8 pixels, where it costs
little on a CPU. For emoji see experiments/emoji.py. Published token vectors in place of learned ones:
`--config.text.kind=table --config.text.path=FOLDER --config.text.vector_dim=256`; a published text encoder:
`--config.text.kind=encoder` with its folder and features.
"""

from typing import Any

from ml_collections import ConfigDict

from diffusers_fn.from_config.defaults import customise, default_config, pick

NETWORK: dict[str, Any] = {
    "name": "unet2d_condition",
    "in_channels": 3,
    "out_channels": 3,
    "channels": 32,
    "num_res_blocks": 1,
    "num_heads": 4,
    "context_dim": 128,
    "scale_shift_norm": True,
    "norm_groups": 8,
    "dropout": 0.1,
}

VARIANTS: dict[str, Any] = {
    "cpu32": {
        "data": {"shape": (32, 32, 3)},
        "backbone": {**NETWORK, "channel_multipliers": (1, 2, 4), "transformer_depths": (0, 0, 1)},
        "training": {"num_steps": 12_000, "batch_size": 32, "learning_rate": 8e-4, "ema_decay": 0.998,
                     "sample_every": 1_000, "checkpoint_every": 500, "heldout_every": 1_000},
    },
    "cpu64": {
        "data": {"shape": (64, 64, 3)},
        "backbone": {**NETWORK, "channel_multipliers": (1, 2, 2, 4), "transformer_depths": (0, 0, 0, 1)},
        "loss": {"log_sigma_mean": -0.4},
        "training": {"num_steps": 20_000, "batch_size": 16, "learning_rate": 5e-4, "ema_decay": 0.998,
                     "sample_every": 1_000, "checkpoint_every": 500, "heldout_every": 1_000},
    },
}  # fmt: skip


def get_config(arg: str | None = None) -> ConfigDict:
    config = customise(
        default_config(),
        data={"name": "images", "num_classes": 0, "resize": "crop", "heldout_fraction": 0.05},
        text={"kind": "words", "num_tokens": 14, "vocab_size": 2048, "depth": 1, "num_heads": 4},
        noise_schedule={"process": "edm", "time_label": "log_sigma"},
        parameterization="edm",
        loss={"weight": "edm", "time_sampler": "log_normal", "log_sigma_mean": -0.8, "log_sigma_std": 1.4},
        sampler={"name": "heun", "skip_type": "karras", "num_inference_steps": 18, "cfg_scale": 2.0},
        evaluation={"batch_size": 100},
    )
    return customise(config, **pick(VARIANTS, arg, "cpu32"))
