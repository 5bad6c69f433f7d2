"""experiments.text_to_image: files, what the images depend on, and what does not fit."""

import json

import jax
import numpy as np
import pytest
from PIL import Image
from pipeline_runs import GOLDEN, complete

from diffusers_fn.pretrained import load_pipeline, lora
from experiments.text_to_image import Settings, _checked, _options, read_lora

pytest.importorskip("tokenizers")
LORA = GOLDEN / "lora" / "lora_peft_alpha.safetensors"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return complete("sd1", tmp_path_factory.mktemp("text_to_image"))


def picture(path, pixels):
    Image.fromarray(np.asarray(pixels, np.uint8)).save(path)
    return path


def drawn(folder):
    return np.stack([np.asarray(Image.open(path)) for path in sorted(folder.glob("0*.png"))]).astype(int)


@pytest.mark.long
def test_images_are_those_of_the_pipeline_with_their_settings(folder, tmp_path, command):
    arguments = (f"--model={folder}", "--prompt=a cat", "--prompt=a red hat", "--negative=blurry", "--steps=2",
                 "--height=32", "--width=48", "--scale=3", "--seed=5", f"--lora={LORA}:0.5")  # fmt: skip
    output = command("text_to_image", *arguments, f"--output={tmp_path / 'two'}", "--batch_size=2", "--output_latents")
    assert "million parameters in" in output
    assert "2 images in" in output
    assert "peak memory of the host" in output
    assert Image.open(tmp_path / "two" / "grid.png").size >= (48, 32)
    held = json.loads(Image.open(tmp_path / "two" / "00001.png").text["parameters"])
    assert (held["prompt"], held["number"], held["seed"], held["scale"]) == ("a red hat", 1, 5, 3.0)
    assert held == json.loads((tmp_path / "two" / "settings.json").read_text()) | {"prompt": "a red hat", "number": 1}

    pipeline, params = load_pipeline(folder)
    params = lora.merge(params, lora.load(LORA), 0.5)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(5), np.arange(2))
    draw = jax.jit(
        lambda params, keys, tokens, negative: pipeline.sample(
            params, keys, tokens, negative=negative, num_steps=2, height=32, width=48, guidance_scale=3.0,
            output="latents",
        )
    )  # fmt: skip
    latents = draw(params, keys, pipeline.tokenize(["a cat", "a red hat"]), pipeline.tokenize(["blurry"] * 2))
    with np.load(tmp_path / "two" / "latents.npz") as stored:
        np.testing.assert_allclose(stored["latents"], latents, rtol=0, atol=1e-4)
    images = np.rint(255 * np.clip(pipeline.decode(params, latents) / 2 + 0.5, 0, 1))
    assert np.abs(drawn(tmp_path / "two") - images).max() <= 1

    command("text_to_image", *arguments, f"--output={tmp_path / 'one'}", "--batch_size=1")
    assert np.abs(drawn(tmp_path / "one") - images).max() <= 1


def test_pictures_are_read_as_the_pipeline_takes_them(folder, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (32, 48, 3))
    image = picture(tmp_path / "image.png", pixels)
    mask = picture(tmp_path / "mask.png", 255 * (pixels[..., 0] > 99))
    pipeline, _ = load_pipeline(folder)
    settings = Settings(("a",), image=image, mask=mask, control_image=image, control_scale=0.5, scale=3.0, rescale=0.7)
    options, size = _options(pipeline, settings)
    assert size == {"height": 32, "width": 48}
    np.testing.assert_allclose(options["image"], pixels[None] / 127.5 - 1, atol=1e-6)
    np.testing.assert_array_equal(options["mask"], (pixels[None, ..., :1] > 99).astype(np.float32))
    np.testing.assert_allclose(options["control"].image, pixels[None] / 255, atol=1e-6)
    assert options["control"].strength == 0.5
    assert (options["guidance_scale"], options["guidance_rescale"]) == (3.0, np.float32(0.7))
    smaller = _options(pipeline, settings._replace(height=16, width=24))[0]
    assert (smaller["image"].shape, smaller["mask"].shape) == ((1, 16, 24, 3), (1, 16, 24, 1))


def test_defaults_that_follow_from_other_settings(tmp_path):
    edges = tmp_path / "edges.png"
    assert _checked(Settings(("a",), image=edges), 1).strength == 0.8
    assert _checked(Settings(("a",), image=edges, mask=edges), 1).strength is None
    alone = _checked(Settings(("a",), image=edges, controlnet=tmp_path), 1)
    assert (alone.image, alone.control_image, alone.strength) == (None, edges, None)
    both = _checked(Settings(("a",), image=edges, controlnet=tmp_path, control_image=edges), 1)
    assert (both.image, both.strength) == (edges, 0.8)
    assert read_lora("a:b/style.safetensors:0.5")[1] == 0.5
    with pytest.raises(ValueError, match="must be finite"):
        read_lora("style.safetensors:nan")
    assert read_lora("a:b/style.safetensors") == (type(edges)("a:b/style.safetensors"), 1.0)


def test_what_does_not_fit_is_one_line(folder, tmp_path, command):
    image = picture(tmp_path / "image.png", np.zeros((32, 32, 3)))
    mask = picture(tmp_path / "mask.png", np.zeros((32, 64)))
    other = tmp_path / "other.safetensors"
    factors = lora.init(jax.random.key(0), {"unet": {"layer": {"kernel": np.zeros((8, 8), np.float32)}}}, ["layer"], 2)
    lora.save(other, factors, {"unet": {"layer": {"kernel": np.zeros((8, 8), np.float32)}}})
    text = tmp_path / "text.png"
    text.write_text("no picture")
    for arguments, message in (
        (("--model=nowhere", "--prompt=a"), "nowhere is no pipeline"),
        ((f"--model={folder}",), "--prompt is missing"),
        ((f"--model={folder}", "--prompt=a", "--strength=0.5"), "--strength needs --image"),
        ((f"--model={folder}", "--prompt=a", f"--mask={mask}"), "--mask needs --image"),
        ((f"--model={folder}", "--prompt=a", f"--image={image}", f"--mask={mask}"), "make them equal"),
        ((f"--model={folder}", "--prompt=a", f"--image={text}"), "cannot be read as a picture"),
        ((f"--model={folder}", "--prompt=a", "--scheduler=EulerScheduler"), "_class_name must be one of"),
        ((f"--model={folder}", "--prompt=a", f"--lora={other}"), "the adapter is for another network"),
        ((f"--model={folder}", "--prompt=a", f"--control_image={image}"), "--control_image needs --controlnet"),
        ((f"--model={folder}", "--prompt=a", f"--controlnet={folder}"), "--controlnet needs --control_image"),
        ((f"--model={LORA}", "--prompt=a"), "pass --base=FOLDER of its kind"),
    ):
        output = command("text_to_image", *arguments, f"--output={tmp_path / 'none'}", code=1)
        assert message in output
        assert "Traceback" not in output
    assert not (tmp_path / "none").exists()


def test_a_prompt_of_ten_thousand_characters_is_cut_with_a_warning(folder):
    pipeline, _ = load_pipeline(folder)
    with pytest.warns(UserWarning, match="cut"):
        tokens = pipeline.tokenize("a photo of a cat " * 600)
    assert tokens["tokenizer"].ids.shape == (1, 77)
