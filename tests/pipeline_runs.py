"""Runs of the reference's pipelines, replayed here with their tokens, noise and options."""

import json
import shutil
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

import diffusers_fn as dfn
from diffusers_fn import _random
from diffusers_fn.pretrained import pipelines

GOLDEN = Path(__file__).parent / "golden_pipelines"
_TEXTS = GOLDEN.parent / "golden_text"
_T5 = {"sd3": "tokenizer_3", "pixart_alpha": "tokenizer"}  # its file is stored once, with the tests of texts
_PROMPTS = ("prompt", "prompt_2", "prompt_3")
_SIZES = {
    "original_size": "original_size",
    "crops_coords_top_left": "crop",
    "target_size": "target_size",
    "negative_original_size": "negative_original_size",
    "negative_crops_coords_top_left": "negative_crop",
    "negative_target_size": "negative_target_size",
}
_NUMBERS = ("guidance_scale", "guidance_rescale", "true_cfg_scale", "clip_skip")


def complete(name: str, parent: Path) -> Path:
    """A copy of the folder of a pipeline in `parent`, with its tokenizers."""
    path = parent / name
    if not path.exists():
        shutil.copytree(GOLDEN / name, path)
        if name == "sd1":
            shutil.copytree(_TEXTS / "clip", path / "tokenizer")
        if name in _T5:
            shutil.copy(_TEXTS / "t5" / "spiece.model", path / _T5[name])
    return path


class Runs:
    """meta.json and io.npz of a folder of reference results; `folder` holds the pipeline, or `networks` does."""

    def __init__(self, folder: Path):
        self.meta = json.loads((folder / "meta.json").read_text())
        self.runs = {run["name"]: run for run in self.meta["runs"]}
        with np.load(folder / "io.npz") as held:
            self._arrays = {name: held[name] for name in held.files}
        self._same = self.meta.get("same_as", {})

    def get(self, name: str) -> np.ndarray | None:
        return self._arrays.get(self._same.get(name, name))


class Replayed(NamedTuple):
    """States [R, B, h, w, C] of a run and of the reference, the images of both, or None."""

    states: np.ndarray
    expected: np.ndarray
    images: np.ndarray
    expected_uint8: np.ndarray | None
    expected_images: np.ndarray | None

    def worst(self) -> float:
        """The largest difference of a state in units of its standard deviation."""
        return max(float(np.abs(own - its).max() / its.std()) for own, its in zip(self.states, self.expected))

    def levels(self) -> int:
        """The largest difference of the pictures in levels of 255."""
        drawn = np.rint(255 * np.clip(self.images / 2 + 0.5, 0, 1)).astype(int)
        return int(np.abs(drawn - self.expected_uint8).max())


def load(folder: Path, run: dict[str, Any], **options: Any) -> tuple[pipelines.Pipeline, dict[str, Any]]:
    """The pipeline of a folder with the scheduler of a run."""
    scheduler = {**run["scheduler_config"], "_class_name": run["scheduler"]}
    return pipelines.load_pipeline(folder, scheduler=scheduler, **options)


def replay(
    pipeline: pipelines.Pipeline, params: dict[str, Any], held: Runs, name: str, *, control: bool = False
) -> Replayed:
    """Draws the images of a run."""
    arguments = held.runs[name]["arguments"]
    given = lambda key: held.get(f"{name}/{key}")  # noqa: E731
    options: dict[str, Any] = {key: arguments[key] for key in _NUMBERS if key in arguments}
    size = {"height": arguments.get("height"), "width": arguments.get("width")}
    factor = pipeline.parts.latent_factor
    packed = "flux" in type(pipeline.parts.modules[pipeline.parts.network]).__name__.lower()
    grid = (arguments["height"] // 16, arguments["width"] // 16) if packed else None

    def last(x: np.ndarray) -> np.ndarray:
        return _unpacked(x, grid) if packed else np.moveaxis(x, -3, -1)

    sizes = {own: tuple(arguments[key]) for key, own in _SIZES.items() if key in arguments}
    if "latents" in arguments:
        options["latents"] = jnp.asarray(last(given("in/latents")))
        size = dict(zip(size, (factor * side for side in options["latents"].shape[1:3])))
    if "image" in arguments:
        image = given("in/image")
        image = (image if image.ndim == 4 else image[None]).astype(np.float32)
        if control:
            options["control"] = pipelines.Control(
                jnp.asarray(image / 255), arguments.get("controlnet_conditioning_scale", 1.0),
                arguments.get("control_guidance_start", 0.0), arguments.get("control_guidance_end", 1.0),
                arguments.get("guess_mode", False),
            )  # fmt: skip
        else:
            options["image"] = jnp.asarray(image / 127.5 - 1)
        size = dict(zip(size, image.shape[1:3]))
    if "mask_image" in arguments:
        options["mask"] = jnp.asarray(given("in/mask_image")[None, ..., None] / 255.0, jnp.float32)
    if "skip_guidance_layers" in arguments:
        options["skip_layers"] = pipelines.SkipLayers(
            arguments["skip_guidance_layers"], end=arguments["skip_layer_guidance_stop"]
        )
    cuts = {key: arguments[key] for key in ("eta", "strength", "denoising_end") if key in arguments}
    plan = pipeline.plan(arguments["num_inference_steps"], **size, **cuts)
    noises = [last(given(f"noise/{i}")) for i in range(len(held.runs[name]["noise_calls"]))]
    nine = pipeline.parts.network == "unet" and getattr(pipeline.parts.modules["unet"], "in_channels", 0) == 9
    draws = iter(_own_order(noises, "image" in arguments and not control, nine))
    patch = mock.patch.object(_random, "normal", lambda key, x: jnp.asarray(next(draws, np.zeros(x.shape))))

    def tokens(prefix: str) -> Any:
        texts = [arguments.get(prefix + each) for each in _PROMPTS]
        if texts[0] is None:
            return None
        found = pipeline.tokenize(*texts, max_length=arguments.get("max_sequence_length"))
        copies = arguments.get("num_images_per_prompt", 1)
        return jax.tree.map(lambda a: np.repeat(a, copies, axis=0), found)

    def draw(params: Any) -> Any:
        with patch:
            samples = pipeline.sample(
                params, jax.random.key(0), tokens(""), negative=tokens("negative_"), plan=plan, sizes=sizes,
                output="latents", emit=lambda step: step.x_next,
                **({"scan": dfn.python_scan} if len(noises) > 3 else {}), **options,
            )  # fmt: skip
        return samples.trace, pipeline.decode(params, samples.x0)

    states, images = draw(params) if len(noises) > 3 else jax.jit(draw)(params)
    expected = last(given("latents"))[1:]
    decoded = given("decoded")
    return Replayed(
        np.asarray(states),
        expected,
        np.asarray(images),
        given("image_uint8"),
        None if decoded is None else np.moveaxis(decoded, 1, -1),
    )


def _own_order(noises: list[np.ndarray], image: bool, nine: bool) -> list[np.ndarray]:
    """Draws in the order of `Pipeline.sample`: the masked image, the start, the image, the steps."""
    if not image or len(noises) == 1:
        return noises
    sample, start, *more = noises
    return [*more[:1], start, sample] if nine else [start, sample]


def _unpacked(x: np.ndarray, grid: tuple[int, int] | None) -> np.ndarray:
    """[..., h / 2 w / 2, 4 C] -> [..., h, w, C]."""
    assert grid is not None
    if x.shape[-1] != 64:  # drawn before it is packed
        return np.moveaxis(x, -3, -1)
    parts = x.reshape(*x.shape[:-2], *grid, 16, 2, 2)
    parts = np.moveaxis(parts, -3, -1)  # [..., h / 2, w / 2, 2, 2, C]
    parts = np.swapaxes(parts, -4, -3)
    return parts.reshape(*x.shape[:-2], 2 * grid[0], 2 * grid[1], 16)
