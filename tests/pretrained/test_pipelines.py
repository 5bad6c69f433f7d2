"""Pipelines against the reference's own: every state of the loop, image to image, inpainting, one compilation."""

import functools
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from pipeline_runs import GOLDEN, Runs, complete, load, replay

import diffusers_fn as dfn
from diffusers_fn import bind
from diffusers_fn.pretrained import load_pipeline, lora, pipelines, textual_inversion

pytest.importorskip("tokenizers")

RUNS = {path.parent.name: Runs(path.parent) for path in sorted(GOLDEN.glob("*/meta.json"))}
QUICK = ("sd1", "dpmpp_2m_4_batch2")
NETWORKS = {name: "sd1" for name in ("sd1_img2img", "sd1_controlnet", "sd1_lora", "sd1_textual_inversion")}


@pytest.fixture(scope="session")
def parent(tmp_path_factory):
    return tmp_path_factory.mktemp("pipelines")


@pytest.fixture(scope="session")
def folder(parent):
    return complete("sd1", parent)


def without_t5(folder):
    """A copy of a folder of Stable Diffusion 3 without its third text encoder."""
    path = folder.parent / "without_t5"
    if not path.exists():
        shutil.copytree(folder, path)
        shutil.rmtree(path / "text_encoder_3")
        index = json.loads((path / "model_index.json").read_text()) | {"text_encoder_3": [None, None]}
        (path / "model_index.json").write_text(json.dumps(index | {"tokenizer_3": [None, None]}))
    return path


def replayed(family, name, parent):
    held = RUNS[family]
    run, control = held.runs[name], GOLDEN / family / "controlnet"
    controlnet = control if control.is_dir() else None
    pipeline, params = load(complete(NETWORKS.get(family, family), parent), run, controlnet=controlnet)
    if name == "no_t5_euler_4":
        pipeline, params = load(without_t5(complete(family, parent)), run)
    if family == "sd1_lora":
        params = lora.merge(params, lora.load(GOLDEN / "lora" / "lora_peft_alpha.safetensors"))
    if family == "sd1_textual_inversion":
        for file in ("learned_embeds.safetensors", "learned_embeds.bin"):
            words = textual_inversion.load(GOLDEN / "textual_inversion" / file)
            pipeline, params = textual_inversion.add(pipeline, params, words)
    return replay(pipeline, params, held, name, control=controlnet is not None)


def check(family, name, parent):
    found = replayed(family, name, parent)
    assert len(found.states) == len(found.expected)
    painted = np.ones(1)
    if name.startswith("inpaint4"):  # stored are the states before they are replaced
        painted = RUNS[family].get(f"{name}/in/mask_image")[::8, ::8, None] >= 128
    for own, reference in zip(found.states, found.expected):
        np.testing.assert_allclose(own * painted, reference * painted, rtol=0, atol=3e-4 * reference.std())
    assert found.levels() <= 1


def test_a_batch_of_prompts_is_drawn_as_by_the_reference(parent):
    check(*QUICK, parent)


@pytest.mark.long
@pytest.mark.parametrize(
    ("family", "name"), [(family, name) for family in RUNS for name in RUNS[family].runs if (family, name) != QUICK]
)
def test_every_state_is_that_of_the_reference(family, name, parent):
    check(family, name, parent)


def test_texts_are_encoded_as_by_the_reference(folder):
    held, name = RUNS["sd1"], QUICK[1]
    pipeline, params = load_pipeline(folder)
    for argument, array in (("prompt", "prompt_embeds"), ("negative_prompt", "negative_prompt_embeds")):
        cond = pipeline.encode_text(params, pipeline.tokenize(held.runs[name]["arguments"][argument]))
        np.testing.assert_allclose(cond["context"], held.get(f"{name}/{array}"), rtol=0, atol=1e-5)


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


@pytest.mark.long
def test_one_compilation_serves_all_strengths_of_images_adapters_and_controls(folder):
    pipeline, params = load_pipeline(
        folder, scheduler="DDIMScheduler", controlnet=GOLDEN / "sd1_controlnet" / "controlnet"
    )
    adapter = lora.load(GOLDEN / "lora" / "lora_peft_alpha.safetensors")
    pictures = jax.random.uniform(jax.random.key(0), (2, 1, 32, 32, 3))
    tokens, key = pipeline.tokenize("a cat"), jax.random.key(1)
    traces = []

    @jax.jit
    def draw(params, tokens, plan, adapter_scale, control_strength):
        traces.append(1)
        return pipeline.sample(
            lora.merge(params, adapter, adapter_scale), key, tokens, plan=plan, image=2 * pictures[0] - 1,
            control=pipelines.Control(pictures[1], control_strength), output="latents",
        )  # fmt: skip

    def plan(num_steps, strength):
        return pipeline.plan(num_steps, height=32, width=32, strength=strength)

    run = functools.partial(draw, params, tokens)
    first = run(plan(4, 0.5), 0.0, 0.0)
    others = [run(plan(10, 0.2), 0.0, 0.0), run(plan(4, 0.5), 1.0, 0.0), run(plan(4, 0.5), 0.0, 1.0)]
    assert len(traces) == 1
    for other in others:
        assert np.abs(other - first).max() > 0.01
    plain, without = load_pipeline(folder, scheduler="DDIMScheduler")  # all strengths 0: neither adapter nor control
    alone = jax.jit(
        lambda params, tokens: plain.sample(
            params, key, tokens, num_steps=4, strength=0.5, image=2 * pictures[0] - 1, output="latents"
        )
    )(without, tokens)
    np.testing.assert_allclose(first, alone, rtol=0, atol=1e-4 * np.std(alone))


@pytest.mark.long
def test_two_pipelines_share_the_steps(folder):
    """What denoising_end leaves is gone on with by denoising_start: together the whole loop."""
    pipeline, params = load_pipeline(folder, scheduler="DDIMScheduler")
    tokens, key = pipeline.tokenize("a cat"), jax.random.key(0)
    draw = functools.partial(pipeline.sample, params, key, tokens, guidance_scale=3.0, output="latents")
    plan = functools.partial(pipeline.plan, 5, height=32, width=32)
    noise = jax.random.normal(key, (1, 4, 4, 4))
    half = draw(plan=plan(denoising_end=0.6), latents=noise)
    assert np.abs(half - draw(plan=plan(), latents=noise)).max() > 0.1
    np.testing.assert_allclose(
        draw(plan=plan(denoising_start=0.6), latents=half), draw(plan=plan(), latents=noise), rtol=0, atol=1e-5
    )


@pytest.mark.long
def test_images_do_not_depend_on_the_batch_and_the_devices(folder):
    pipeline, params = load_pipeline(folder)
    keys = jax.random.split(jax.random.key(1), 8)
    tokens = pipeline.tokenize([f"a {noun}" for noun in ("cat", "dog", "hat", "car", "tree", "house", "ship", "cup")])
    plan = pipeline.plan(2, height=32, width=32)
    draw = jax.jit(lambda params, keys, tokens: pipeline.sample(params, keys, tokens, plan=plan, output="latents"))
    mesh = dfn.training.make_mesh(8)
    split = draw(dfn.training.replicate(params, mesh), *dfn.training.split_batch((keys, tokens), mesh))
    assert len(split.sharding.device_set) == 8
    together = draw(params, keys, tokens)
    np.testing.assert_allclose(split, together, rtol=0, atol=1e-4)
    alone = draw(params, *jax.tree.map(lambda each: each[5:6], (keys, tokens)))
    np.testing.assert_allclose(alone, together[5:6], rtol=0, atol=1e-4)
    assert np.abs(together[4] - together[5]).max() > 0.1


@pytest.mark.long
def test_an_image_is_inverted_with_its_prompt_and_edited_with_another(folder):
    """Inverted without guidance and drawn with the same prompt it comes back; with another prompt it is another one.

    The random network's output is made smaller, so that the fixed point of an implicit step is found.
    """
    pipeline, params = load_pipeline(folder, scheduler="DDIMScheduler")
    smaller = jax.tree.map(lambda leaf: 0.1 * leaf, params["unet"]["conv_out"])
    params = {**params, "unet": {**params["unet"], "conv_out": smaller}}
    plan = pipeline.plan(8, height=32, width=32, set_alpha_to_one=True, clip_sample=False)
    x0 = 0.5 * jax.random.normal(jax.random.key(0), (1, 4, 4, 4))

    @jax.jit
    def edit(params, x0, own, other, plan):
        known = bind(pipeline.denoiser(params), pipeline.encode_text(params, own))
        noise = dfn.invert_implicit(known, plan.solver.rows.level, x0, evaluations=8)
        draw = functools.partial(pipeline.sample, params, jax.random.key(0), plan=plan, guidance_scale=1.0,
                                 latents=noise / plan.init_scale, output="latents")  # fmt: skip
        return draw(own), draw(other)

    same, edited = edit(params, x0, pipeline.tokenize("a cat"), pipeline.tokenize("a red hat"), plan)
    back, change = np.abs(same - x0).max(), np.abs(edited - x0).max()
    assert back < 1e-3 * change


@pytest.mark.long
def test_what_is_kept_does_not_depend_on_the_prompt(folder):
    pipeline, params = load_pipeline(folder)
    plan = pipeline.plan(2, height=32, width=32)
    image = jax.random.uniform(jax.random.key(0), (1, 32, 32, 3), minval=-1.0)
    texts = [pipeline.tokenize(text) for text in ("a cat", "a red hat")]

    @jax.jit
    def draw(tokens, mask):
        return pipeline.sample(params, jax.random.key(1), tokens, plan=plan, image=image, mask=mask, guidance_scale=1.0)

    kept, painted = ([draw(tokens, jnp.full((1, 32, 32, 1), each)) for tokens in texts] for each in (0.0, 1.0))
    np.testing.assert_array_equal(*kept)
    assert np.abs(painted[0] - painted[1]).max() > 0.01


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
        ({"strength": 0.5}, "strength is the share of the steps that are run on an image: pass image"),
        ({"sizes": {"original_size": (64, 64)}}, "sizes are inputs of Stable Diffusion XL"),
        ({"sizes": {"size": 3}}, "size options are original_size, crop, target_size"),
    ):
        with pytest.raises(ValueError, match=message):
            jax.eval_shape(lambda options=options: pipeline.sample(params, key, tokens, **{"num_steps": 2} | options))
    for plan, options, message in (
        (pipeline.plan(4, strength=0.5), {}, "this plan leaves out its first steps .* pass the image to start from"),
        (pipeline.plan(4), {"num_steps": 2}, "a plan has its own num_steps and strength"),
    ):
        with pytest.raises(ValueError, match=message):
            jax.eval_shape(
                lambda plan=plan, options=options: pipeline.sample(params, key, tokens, plan=plan, **options)
            )
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
