"""Pipelines in one file, in the names of LDM and SGM, give the parameters of the folders.

tests/golden/single_file has the names of three small pipelines in one file and in folders, matched by the values that
the reference's loader gave.
"""

import gzip
import json
import zlib

import jax.numpy as jnp
import numpy as np
import pytest
from golden_files import FOLDER

from diffusers_fn import pretrained
from diffusers_fn.backbones import AutoencoderKL, ClipTextEncoder, UNet2DCondition
from diffusers_fn.pretrained import single_file
from diffusers_fn.pretrained.checkpoint import Checkpoint
from diffusers_fn.pretrained.ldm_names import unet_tensors
from diffusers_fn.pretrained.load import find_family
from diffusers_fn.pretrained.safetensors_file import StoredTensor, write_safetensors

NAMES = json.loads(gzip.decompress((FOLDER / "single_file" / "names.json.gz").read_bytes()))
PARTS = {
    "sd1": ["text_encoder", "unet", "vae"],
    "sd2": ["text_encoder", "unet", "vae"],
    "sdxl": ["text_encoder", "text_encoder_2", "unet", "vae"],
}
MADE = {
    "same": lambda a: a,
    "matrix": lambda a: a[:, :, 0, 0],
    "transpose": lambda a: a.T,
    **{f"third {i}": lambda a, i=i: a[len(a) // 3 * i : len(a) // 3 * (i + 1)] for i in range(3)},
}


def values(kind):
    """Returns a file's tensors, different everywhere."""
    found = {}
    for name, shape in NAMES[kind]["shapes"].items():
        found[name] = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape, np.float32)
        if name.endswith("position_ids"):
            found[name] = np.arange(shape[1])[None]
    return found


def write(path, tensors):
    with open(path, "wb") as file:
        write_safetensors(file, {name: (a.shape, a.dtype) for name, a in tensors.items()}, tensors.items())
    return path


@pytest.fixture(scope="module", params=NAMES)
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def tensors(kind):
    return values(kind)


@pytest.fixture
def path(tensors, tmp_path):
    return write(tmp_path / "model.safetensors", tensors)


def test_every_tensor_is_that_of_the_folder(kind, tensors, path):
    configs = NAMES[kind]["configs"]
    found = pretrained.load_single_file(path, config=configs)
    assert found.kind == kind
    assert sorted(found.networks) == PARTS[kind]
    folders = {}
    for part, (module, params) in found.networks.items():
        family = find_family(None, configs[part])
        assert module == family.from_config(configs[part])
        folders[part] = pretrained.to_torch(params, module, family)
    rows = NAMES[kind]["made_from"]
    for part, name, source, made in rows:
        here = folders[part].get(name)
        here = folders[part][name.removeprefix("text_model.")] if here is None else here
        np.testing.assert_array_equal(here, MADE[made](tensors[source]), err_msg=name)
    assert sum(map(len, folders.values())) == len(rows)


def test_a_folder_gives_the_configs_and_half_precision_is_kept(tmp_path):
    configs = NAMES["sd2"]["configs"]
    for part, config in configs.items():
        (tmp_path / "folder" / part).mkdir(parents=True)
        (tmp_path / "folder" / part / "config.json").write_text(json.dumps(config))
    tensors = {name: value.astype(np.float16) for name, value in values("sd2").items()}
    extra = {"model_ema.decay": np.ones([], np.float32), "betas": np.ones(9, np.float32)}
    # A whole OpenCLIP has one layer more, which Stable Diffusion 2 does not use.
    last, depth = "cond_stage_model.model.transformer.resblocks", configs["text_encoder"]["num_hidden_layers"]
    extra |= {name.replace(f"{last}.0.", f"{last}.{depth}."): a for name, a in tensors.items() if f"{last}.0." in name}
    path = write(tmp_path / "model.safetensors", tensors | extra)
    networks = pretrained.load_single_file(path, config=tmp_path / "folder").networks
    assert networks["unet"][1]["conv_in"]["kernel"].dtype == np.float16
    networks = pretrained.load_single_file(path, config=tmp_path / "folder", dtype=jnp.bfloat16).networks
    assert networks["vae"][1]["decoder"]["conv_in"]["kernel"].dtype == jnp.bfloat16
    (tmp_path / "folder" / "vae" / "config.json").unlink()
    with pytest.raises(ValueError, match=r"config must be a folder with vae/config.json"):
        pretrained.load_single_file(path, config=tmp_path / "folder")


def test_a_missing_and_an_unknown_tensor_are_named(tmp_path):
    tensors = values("sd1")
    tensors["model.diffusion_model.time_embed.9.bias"] = tensors.pop("model.diffusion_model.time_embed.2.bias")
    path = write(tmp_path / "model.safetensors", tensors)
    with pytest.raises(ValueError, match="its unet is not that of sd1") as error:
        pretrained.load_single_file(path, config=NAMES["sd1"]["configs"])
    assert "missing (1): time_embedding.linear_2.bias" in str(error.value)
    assert "unexpected (1): time_embed.9.bias" in str(error.value)


def test_files_that_are_no_pipeline_or_of_no_published_size_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"is no Stable Diffusion checkpoint in one file: no tensor's name begins"):
        pretrained.load_single_file(write(tmp_path / "a.safetensors", {"a": np.ones(1)}))
    path = write(tmp_path / "b.safetensors", values("sd1"))
    with pytest.raises(ValueError, match=r"a U-Net of 16 channels and contexts of 32 features; the published ones"):
        pretrained.load_single_file(path)
    with pytest.raises(ValueError, match=r"config must have an entry for 'vae', which the file has; it has \['unet'\]"):
        pretrained.load_single_file(path, config={"unet": NAMES["sd1"]["configs"]["unet"]})


CONTEXT = "model.diffusion_model.input_blocks.4.1.transformer_blocks.0.attn2.to_k.weight"
TEXT_1, TEXT_2 = "cond_stage_model.transformer.a", "cond_stage_model.model.a"
SMALL, LARGE = "conditioner.embedders.0.transformer.a", "conditioner.embedders.1.model.a"
PUBLISHED = {
    "sd1": (4, 320, 768, [TEXT_1], {"unet": UNet2DCondition.sd1(), "text_encoder": ClipTextEncoder()}),
    "sd1 inpainting": (9, 320, 768, [TEXT_1], {"unet": UNet2DCondition.sd1(in_channels=9), "vae": AutoencoderKL()}),
    "sd2": (4, 320, 1024, [TEXT_2], {"unet": UNet2DCondition.sd2(), "text_encoder": ClipTextEncoder.open_clip_h()}),
    "sdxl": (
        4,
        320,
        2048,
        [SMALL, LARGE],
        {
            "unet": UNet2DCondition.sdxl(),
            "vae": AutoencoderKL(scaling_factor=0.13025, image_size=1024),
            "text_encoder": ClipTextEncoder(),
            "text_encoder_2": ClipTextEncoder.open_clip_g(),
        },
    ),
    "sdxl_refiner": (
        4,
        384,
        1280,
        ["conditioner.embedders.0.model.a"],
        {"unet": UNet2DCondition.sdxl_refiner(), "text_encoder_2": ClipTextEncoder.open_clip_g()},
    ),
    "sd2 without texts": (4, 320, 1024, [], {"unet": UNet2DCondition.sd2()}),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_published_networks_are_recognised_by_shape(name, monkeypatch):
    in_channels, channels, context, texts, expected = PUBLISHED[name]
    shapes = {"model.diffusion_model.input_blocks.0.0.weight": (channels, in_channels, 3, 3), CONTEXT: (640, context)}
    shapes |= dict.fromkeys([*texts, "first_stage_model.a"], (1,))
    stored = {key: StoredTensor(shape, np.dtype("f4"), lambda: None) for key, shape in shapes.items()}
    monkeypatch.setattr(single_file, "open_checkpoint", lambda path, key: Checkpoint(stored, None))
    monkeypatch.setattr(single_file, "from_torch", lambda tensors, module, family, **options: {})
    found = pretrained.load_single_file("model.safetensors")
    assert found.kind == name.split()[0]
    assert {"unet", "vae"} <= set(found.networks)
    assert {part: module for part, (module, _) in found.networks.items() if part in expected} == expected


def test_names_of_the_published_unet():
    """Blocks as https://github.com/CompVis/stable-diffusion counts them: 12 input blocks and 12 output blocks."""
    names = {
        "input_blocks.3.0.op.weight": "down_blocks.0.downsamplers.0.conv.weight",
        "input_blocks.11.0.out_layers.3.bias": "down_blocks.3.resnets.1.conv2.bias",
        "output_blocks.2.1.conv.weight": "up_blocks.0.upsamplers.0.conv.weight",  # no attention before it
        "output_blocks.5.2.conv.weight": "up_blocks.1.upsamplers.0.conv.weight",
        "output_blocks.11.1.proj_in.weight": "up_blocks.3.attentions.2.proj_in.weight",
    }
    assert unet_tensors(names, UNet2DCondition.sd1(), list(names.values())) == {ours: ours for ours in names.values()}
