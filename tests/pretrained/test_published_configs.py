"""The config.json files of well-known checkpoints, older formats included, give the right networks."""

import jax
import pytest

from diffusers_fn.backbones import UNet2DCondition
from diffusers_fn.pretrained.load import find_family

CROSS_DOWN, CROSS_UP = "CrossAttnDownBlock2D", "CrossAttnUpBlock2D"
SD1 = {
    "_class_name": "UNet2DConditionModel",
    "_diffusers_version": "0.6.0",
    "act_fn": "silu",
    "attention_head_dim": 8,
    "block_out_channels": [320, 640, 1280, 1280],
    "center_input_sample": False,
    "cross_attention_dim": 768,
    "down_block_types": [CROSS_DOWN, CROSS_DOWN, CROSS_DOWN, "DownBlock2D"],
    "downsample_padding": 1,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "in_channels": 4,
    "layers_per_block": 2,
    "mid_block_scale_factor": 1,
    "norm_eps": 1e-05,
    "norm_num_groups": 32,
    "out_channels": 4,
    "sample_size": 64,
    "up_block_types": ["UpBlock2D", CROSS_UP, CROSS_UP, CROSS_UP],
}
SD2 = SD1 | {
    "attention_head_dim": [5, 10, 20, 20],
    "cross_attention_dim": 1024,
    "dual_cross_attention": False,
    "num_class_embeds": None,
    "only_cross_attention": False,
    "sample_size": 96,
    "upcast_attention": True,
    "use_linear_projection": True,
}
SDXL = SD1 | {
    "addition_embed_type": "text_time",
    "addition_embed_type_num_heads": 64,
    "addition_time_embed_dim": 256,
    "attention_head_dim": [5, 10, 20],
    "block_out_channels": [320, 640, 1280],
    "cross_attention_dim": 2048,
    "down_block_types": ["DownBlock2D", CROSS_DOWN, CROSS_DOWN],
    "mid_block_type": "UNetMidBlock2DCrossAttn",
    "projection_class_embeddings_input_dim": 2816,
    "resnet_out_scale_factor": 1.0,
    "resnet_skip_time_act": False,
    "sample_size": 128,
    "transformer_layers_per_block": [1, 2, 10],
    "up_block_types": [CROSS_UP, CROSS_UP, "UpBlock2D"],
    "upcast_attention": None,
    "use_linear_projection": True,
}
VAE = {
    "_class_name": "AutoencoderKL",
    "_diffusers_version": "0.6.0",
    "act_fn": "silu",
    "block_out_channels": [128, 256, 512, 512],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "in_channels": 3,
    "latent_channels": 4,
    "layers_per_block": 2,
    "norm_num_groups": 32,
    "out_channels": 3,
    "sample_size": 512,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
}
VAE_16 = VAE | {
    "force_upcast": True,
    "latent_channels": 16,
    "scaling_factor": 0.3611,
    "shift_factor": 0.1159,
    "use_post_quant_conv": False,
    "use_quant_conv": False,
}
DDPM = {
    "_class_name": "UNet2DModel",
    "_diffusers_version": "0.0.4",
    "act_fn": "silu",
    "attention_head_dim": None,
    "block_out_channels": [128, 256, 256, 256],
    "center_input_sample": False,
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"],
    "downsample_padding": 0,
    "flip_sin_to_cos": False,
    "freq_shift": 1,
    "in_channels": 3,
    "layers_per_block": 2,
    "mid_block_scale_factor": 1,
    "norm_eps": 1e-06,
    "norm_num_groups": 32,
    "out_channels": 3,
    "sample_size": 32,
    "time_embedding_type": "positional",
    "up_block_types": ["UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"],
}
NCSNPP = DDPM | {
    "block_out_channels": [128, 128, 256, 256, 256, 256, 256],
    "down_block_types": ["SkipDownBlock2D"] * 4 + ["AttnSkipDownBlock2D"] + ["SkipDownBlock2D"] * 2,
    "downsample_padding": 1,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "mid_block_scale_factor": 1.41421356237,
    "norm_num_groups": None,
    "sample_size": 1024,
    "time_embedding_type": "fourier",
    "up_block_types": ["SkipUpBlock2D"] * 2 + ["AttnSkipUpBlock2D"] + ["SkipUpBlock2D"] * 4,
}
DIT = {
    "_class_name": "Transformer2DModel",
    "_diffusers_version": "0.12.0.dev0",
    "activation_fn": "gelu-approximate",
    "attention_bias": True,
    "attention_head_dim": 72,
    "cross_attention_dim": None,
    "dropout": 0.0,
    "in_channels": 4,
    "norm_elementwise_affine": False,
    "norm_num_groups": 32,
    "norm_type": "ada_norm_zero",
    "num_attention_heads": 16,
    "num_embeds_ada_norm": 1000,
    "num_layers": 28,
    "num_vector_embeds": None,
    "only_cross_attention": False,
    "out_channels": 8,
    "patch_size": 2,
    "sample_size": 32,
    "upcast_attention": False,
    "use_linear_projection": False,
}
CLIP_L = {
    "_name_or_path": "openai/clip-vit-large-patch14",
    "architectures": ["CLIPTextModel"],
    "attention_dropout": 0.0,
    "bos_token_id": 0,
    "dropout": 0.0,
    "eos_token_id": 2,
    "hidden_act": "quick_gelu",
    "hidden_size": 768,
    "initializer_factor": 1.0,
    "initializer_range": 0.02,
    "intermediate_size": 3072,
    "layer_norm_eps": 1e-05,
    "max_position_embeddings": 77,
    "model_type": "clip_text_model",
    "num_attention_heads": 12,
    "num_hidden_layers": 12,
    "pad_token_id": 1,
    "projection_dim": 768,
    "torch_dtype": "float32",
    "transformers_version": "4.22.0.dev0",
    "vocab_size": 49408,
}
CLIP_H = CLIP_L | {
    "hidden_act": "gelu",
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_attention_heads": 16,
    "num_hidden_layers": 23,
    "projection_dim": 512,
}
CLIP_G = CLIP_L | {
    "architectures": ["CLIPTextModelWithProjection"],
    "hidden_act": "gelu",
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "num_attention_heads": 20,
    "num_hidden_layers": 32,
    "projection_dim": 1280,
}
SD3 = {
    "_class_name": "SD3Transformer2DModel",
    "attention_head_dim": 64,
    "caption_projection_dim": 1536,
    "in_channels": 16,
    "joint_attention_dim": 4096,
    "num_attention_heads": 24,
    "num_layers": 24,
    "out_channels": 16,
    "patch_size": 2,
    "pooled_projection_dim": 2048,
    "pos_embed_max_size": 192,
    "sample_size": 128,
}
SD35 = SD3 | {"dual_attention_layers": list(range(13)), "pos_embed_max_size": 384, "qk_norm": "rms_norm"}
FLUX = {
    "_class_name": "FluxTransformer2DModel",
    "attention_head_dim": 128,
    "axes_dims_rope": [16, 56, 56],
    "guidance_embeds": True,
    "in_channels": 64,
    "joint_attention_dim": 4096,
    "num_attention_heads": 24,
    "num_layers": 19,
    "num_single_layers": 38,
    "out_channels": None,
    "patch_size": 1,
    "pooled_projection_dim": 768,
}
PIXART = {
    "_class_name": "PixArtTransformer2DModel",
    "activation_fn": "gelu-approximate",
    "attention_bias": True,
    "attention_head_dim": 72,
    "caption_channels": 4096,
    "cross_attention_dim": 1152,
    "in_channels": 4,
    "norm_type": "ada_norm_single",
    "num_attention_heads": 16,
    "num_layers": 28,
    "out_channels": 8,
    "patch_size": 2,
    "sample_size": 64,
    "use_additional_conditions": False,
}
NOT_ITS_OWN = ("center_input_sample", "out_channels", "sample_size", "up_block_types")
CONTROLNET = {
    **{name: value for name, value in SD1.items() if name not in NOT_ITS_OWN},
    "_class_name": "ControlNetModel",
    "conditioning_embedding_out_channels": [16, 32, 96, 256],
}
T5_XXL = {
    "architectures": ["T5EncoderModel"],
    "d_ff": 10240,
    "d_kv": 64,
    "d_model": 4096,
    "dense_act_fn": "gelu_new",
    "feed_forward_proj": "gated-gelu",
    "is_gated_act": True,
    "model_type": "t5",
    "num_heads": 64,
    "num_layers": 24,
    "vocab_size": 32128,
}
# Parameters of the reference's modules (diffusers 0.42.1, transformers 5.24); of SD 3 with its table of positions.
NUM_PARAMETERS = {
    "sd1": (SD1, 859_520_964),
    "sd2": (SD2, 865_910_724),
    "sdxl": (SDXL, 2_567_463_684),
    "sd1 vae": (VAE, 83_653_863),
    "clip l": (CLIP_L, 123_060_480),
    "clip h": (CLIP_H, 340_387_840),
    "clip g": (CLIP_G, 694_659_840),
    "sd3 medium": (SD3, 2_084_951_104),
    "sd3.5 medium": (SD35, 2_469_663_936),
    "flux dev": (FLUX, 11_901_408_320),
    "flux schnell": (FLUX | {"guidance_embeds": False}, 11_891_178_560),
    "pixart alpha 512": (PIXART, 610_856_096),
    "pixart alpha 1024": (PIXART | {"sample_size": 128, "use_additional_conditions": True}, 611_349_152),
    "controlnet sd1": (CONTROLNET, 361_279_120),
    "t5 xxl": (T5_XXL, 4_762_310_656),
}
CONFIGS = {
    "sd1": (SD1, "unet2d_condition"),
    "sd1 inpainting": (SD1 | {"in_channels": 9}, "unet2d_condition"),
    "lcm": (SD1 | {"time_cond_proj_dim": 256}, "unet2d_condition"),
    "sd2": (SD2, "unet2d_condition"),
    "sdxl": (SDXL, "unet2d_condition"),
    "sd1 vae": (VAE, "autoencoder_kl"),
    "vae of 16 channels": (VAE_16, "autoencoder_kl"),
    "ddpm": (DDPM, "unet2d"),
    "ncsn++": (NCSNPP, "unet2d"),
    "dit": (DIT, "dit_diffusers"),
    "clip l": (CLIP_L, "clip_text"),
    "clip g": (CLIP_G, "clip_text_projected"),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_a_published_config_names_its_family_and_is_reproduced(name):
    config, expected = CONFIGS[name]
    family = find_family(None, config)
    assert family.name == expected
    module = family.from_config(config)
    written = family.to_config(module)
    assert family.from_config(written) == module
    for field in set(written) & set(config) - {"_class_name"}:
        assert written[field] == config[field] or not (written[field] or config[field]), field


def test_published_configs_are_the_named_constructors():
    from_config = find_family("unet2d_condition", {}).from_config
    assert from_config(SD1) == UNet2DCondition.sd1()
    assert from_config(SD2) == UNet2DCondition.sd2()
    assert from_config(SDXL) == UNet2DCondition.sdxl()


@pytest.mark.parametrize("name", NUM_PARAMETERS)
def test_published_sizes_have_as_many_parameters(name):
    config, expected = NUM_PARAMETERS[name]
    family = find_family(None, config)
    module = family.from_config(config)
    shapes = jax.eval_shape(module.init, jax.random.key(0), *family.inputs(module))["params"]
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == expected
