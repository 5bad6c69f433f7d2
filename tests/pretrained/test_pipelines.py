"""Pipelines against the reference's own: every state of the loop, image to image, inpainting, one compilation."""

import functools
import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffusers_fn as dfn
from diffusers_fn import _random
from diffusers_fn.pretrained import load_pipeline

pytest.importorskip("tokenizers")

GOLDEN = Path(__file__).parents[1] / "golden_pipelines"
RUNS = json.loads((GOLDEN / "meta.json").read_text())["runs"]


@functools.cache
def arrays():
    with np.load(GOLDEN / "runs.npz") as held:
        return {name: held[name] for name in held.files}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The pipeline's folder: networks and tokenizer are stored apart."""
    path = tmp_path_factory.mktemp("pipeline") / "sd1"
    shutil.copytree(GOLDEN / "sd1", path)
    shutil.copytree(GOLDEN.parent / "golden_text" / "clip", path / "tokenizer")
    return path


def last(x):
    return jnp.asarray(np.moveaxis(x, 1, -1))


def batched(image):
    return image if image.ndim == 4 else image[None]


def replayed(folder, name, monkeypatch):
    """(states [R, B, h, w, C], images, those of the reference) of a run of the reference, with its noise."""
    run, given = RUNS[name], arrays()
    arguments = run["arguments"]
    pipeline, params = load_pipeline(folder, scheduler={**run["scheduler_config"], "_class_name": run["scheduler"]})
    copies = arguments.get("num_images_per_prompt", 1)
    tokens = jax.tree.map(lambda a: np.repeat(a, copies, axis=0), pipeline.tokenize(arguments["prompt"]))
    negative = arguments.get("negative_prompt")
    options = {
        "negative": None if negative is None else pipeline.tokenize(negative),
        "guidance_scale": arguments.get("guidance_scale"),
        "guidance_rescale": arguments.get("guidance_rescale", 0.0),
        "clip_skip": arguments.get("clip_skip", 0),
    }
    size = {"height": arguments.get("height"), "width": arguments.get("width")}
    if "image" in arguments:
        options["image"] = jnp.asarray(batched(given[f"{name}/in/image"]) / 127.5 - 1.0, jnp.float32)
        size = dict(zip(size, options["image"].shape[1:3]))
        options["strength"] = arguments["strength"]
    if "mask_image" in arguments:
        options["mask"] = jnp.asarray(given[f"{name}/in/mask_image"][None, ..., None] / 255.0, jnp.float32)
    start = given.get(f"{name}/in/latents")
    if start is not None:
        options["latents"] = last(start)
        size = dict(zip(size, (8 * side for side in start.shape[2:])))
    plan = pipeline.plan(
        arguments["num_inference_steps"],
        **size,
        **{key: arguments[key] for key in ("eta", "strength") if key in arguments},
    )
    noises = [last(given[f"{name}/noise/{i}"]) for i in range(len(run["noise_calls"]))]
    if noises:  # drawn in another order here: first the start, then the image
        if "image" in arguments:
            noises = [noises[1], noises[0], *noises[3:]]
        own = iter(noises)
        monkeypatch.setattr(_random, "normal", lambda key, x: next(own, jnp.zeros(x.shape)))
    samples = pipeline.sample(
        params, jax.random.key(0), tokens, plan=plan, output="latents", emit=lambda step: step.x_next,
        **({} if not noises else {"scan": dfn.python_scan}), **options,
    )  # fmt: skip
    return samples.trace, pipeline.decode(params, samples.x0)


def check(folder, name, monkeypatch):
    states, images = replayed(folder, name, monkeypatch)
    expected = np.moveaxis(arrays()[f"{name}/latents"], 2, -1)[1:]
    assert len(states) == len(expected)
    painted = np.ones(1)
    if f"{name}/in/mask_image" in arrays() and "inpaint4" in name:  # stored are the states before they are replaced
        painted = arrays()[f"{name}/in/mask_image"][::8, ::8, None] >= 128
    for own, reference in zip(states, expected):
        np.testing.assert_allclose(own * painted, reference * painted, rtol=0, atol=5e-5 * reference.std())
    if f"{name}/image_uint8" in arrays():
        drawn = np.rint(255 * np.clip(np.asarray(images) / 2 + 0.5, 0, 1)).astype(int)
        assert np.abs(drawn - arrays()[f"{name}/image_uint8"]).max() <= 1


def test_a_batch_of_prompts_is_drawn_as_by_the_reference(folder, monkeypatch):
    check(folder, "sd1/dpmpp_2m_4_batch2", monkeypatch)


@pytest.mark.long
@pytest.mark.parametrize("name", [name for name in RUNS if name != "sd1/dpmpp_2m_4_batch2"])
def test_every_state_is_that_of_the_reference(folder, name, monkeypatch):
    check(folder, name, monkeypatch)


def test_texts_are_encoded_as_by_the_reference(folder):
    name = "sd1/dpmpp_2m_4_batch2"
    pipeline, params = load_pipeline(folder)
    for argument, array in (("prompt", "prompt_embeds"), ("negative_prompt", "negative_prompt_embeds")):
        cond = pipeline.encode_text(params, pipeline.tokenize(RUNS[name]["arguments"][argument]))
        np.testing.assert_allclose(cond["context"], arrays()[f"{name}/{array}"], rtol=0, atol=1e-5)


@pytest.mark.long
def test_one_compilation_serves_all_prompts_seeds_scales_and_plans_of_one_shape(folder):
    pipeline, params = load_pipeline(folder)
    traces = []

    @jax.jit
    def draw(params, keys, tokens, negative, plan, scale, rescale):
        traces.append(1)
        return pipeline.sample(
            params, keys, tokens, negative=negative, plan=plan, guidance_scale=scale, guidance_rescale=rescale
        )

    keys = jax.random.split(jax.random.key(0), 2)
    plan = functools.partial(load_pipeline(folder, scheduler="DDIMScheduler")[0].plan, height=32, width=32)
    one = draw(params, keys, pipeline.tokenize(["a cat", "a dog"]), pipeline.tokenize("red"), plan(3), 7.5, 0.0)
    other = draw(params, keys, pipeline.tokenize(["a cat", "a red hat"]), pipeline.tokenize("red"), plan(3), 7.5, 0.0)
    np.testing.assert_array_equal(one[0], other[0])  # an image does not depend on the others
    assert np.abs(one[1] - other[1]).max() > 0.01
    changed = draw(params, keys[::-1], pipeline.tokenize(["a cat", "a dog"]), pipeline.tokenize("x"),
                   plan(3, timestep_spacing="trailing"), 3.0, 0.5)  # fmt: skip
    assert np.abs(changed - one).max() > 0.01
    assert len(traces) == 1


def test_what_does_not_fit_is_named(folder, tmp_path):
    pipeline, params = load_pipeline(folder)
    tokens, key = pipeline.tokenize("a cat"), jax.random.key(0)
    image = jnp.zeros((1, 64, 64, 3))
    for options, message in (
        ({"height": 63}, "height must be a positive multiple of 8; got 63"),
        ({"image": image, "height": 32}, "height is 32, but the image has 64 x 64 pixels"),
        ({"image": image, "mask": jnp.zeros((1, 32, 64, 1))}, r"mask must have shape \[1, 64, 64, 1\]"),
        ({"latents": jnp.zeros((2, 8, 8, 4))}, r"latents must have shape \[1, 8, 8, 4\]"),
        ({"steps": 3}, "has no option steps; it takes negative, guidance_scale"),
        ({"output": "pictures"}, "output must be 'images' or 'latents'"),
        ({"image": image, "strength": 0.0}, r"strength must lie in \(0, 1\]"),
    ):
        with pytest.raises(ValueError, match=message):
            jax.eval_shape(lambda options=options: pipeline.sample(params, key, tokens, **{"num_steps": 2} | options))
    with pytest.raises(ValueError, match="is no pipeline"):
        load_pipeline(tmp_path)
    shutil.copytree(folder, tmp_path / "torn")
    shutil.rmtree(tmp_path / "torn" / "vae")
    with pytest.raises(ValueError, match="lacks vae, parts of a StableDiffusionPipeline"):
        load_pipeline(tmp_path / "torn")
    (tmp_path / "torn" / "model_index.json").write_text('{"_class_name": "AudioPipeline"}')
    with pytest.raises(ValueError, match="names the pipeline 'AudioPipeline'; those that can be loaded are"):
        load_pipeline(tmp_path / "torn")
    with pytest.raises(ValueError, match="_class_name must be one of"):
        load_pipeline(folder, scheduler="EulerScheduler")


def test_a_tokenizer_of_another_model_is_refused(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "mixed")
    shutil.rmtree(tmp_path / "mixed" / "tokenizer")
    shutil.copytree(GOLDEN.parent / "golden_text" / "t5", tmp_path / "mixed" / "tokenizer")
    config = json.loads((tmp_path / "mixed" / "text_encoder" / "config.json").read_text())
    with pytest.raises(ValueError, match=f"tokenizer of another model: .* the text encoder {config['vocab_size']}"):
        load_pipeline(tmp_path / "mixed")
