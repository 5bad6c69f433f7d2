"""Draws images for prompts with a published pipeline.

    python -m experiments.text_to_image --model=FOLDER --prompt="a photo of a cat" --output=runs/cat

FOLDER holds a model_index.json (Stable Diffusion 1, 2, XL, 3, Flux, PixArt-alpha). Several --prompt make several rows.
The output folder gets one PNG for each image, with the settings in its metadata, grid.png and settings.json. Each image
has a key of its own, made of --seed and its number: it does not depend on --batch_size.

FOLDER may also be the work directory of a text-conditional model that was trained here; --num_images, --seed, --steps
and --scale apply then.

    --image=cat.png --strength=0.6                 image to image; the default of --strength is 0.8
    --image=cat.png --mask=mask.png                inpainting: white is painted anew
    --lora=style.safetensors:0.8                   an adapter and its scale; may be repeated
    --controlnet=FOLDER --image=edges.png          a ControlNet; to start from a picture too, --control_image=edges.png
    --model=FILE --base=FOLDER                     weights in one file; all else is that of a pipeline of its kind
"""

from __future__ import annotations

import functools
import json
import resource
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from PIL import Image, ImageOps, UnidentifiedImageError
from PIL.PngImagePlugin import PngInfo
from tqdm import tqdm

import diffusers_fn as dfn
from diffusers_fn.pretrained import lora
from diffusers_fn.pretrained.pipelines import Control, Pipeline, load_pipeline
from experiments import compilation, runs, texts, trained
from experiments.files import write_atomically, write_text
from experiments.pictures import save_grid, to_uint8
from experiments.workdir import read_config

__all__ = ["Settings", "main", "read_lora", "text_to_image"]


class Settings(NamedTuple):
    """What the images are drawn with; None is the pipeline's own default. See the flags of the same names."""

    prompts: Sequence[str]
    negative: str | None = None
    num_images: int = 1
    seed: int = 0
    steps: int | None = None
    scheduler: str | None = None
    scale: float | None = None
    rescale: float = 0.0
    clip_skip: int = 0
    height: int | None = None
    width: int | None = None
    image: Path | None = None
    strength: float | None = None
    mask: Path | None = None
    lora: Sequence[str] = ()
    controlnet: Path | None = None
    control_image: Path | None = None
    control_scale: float = 1.0
    dtype: str | None = None
    base: Path | None = None


def text_to_image(model: Path, output: Path, settings: Settings, *, batch_size: int = 4, latents: bool = False) -> None:
    """Draws images and writes them.

    Args:
      model: folder of the pipeline, file of its weights, or work directory.
      output: folder for the files.
      settings: of the images.
      batch_size: images drawn at a time; it does not change them.
      latents: whether latents.npz is written too.

    Raises:
      ValueError: if a file cannot be read, or settings do not fit the pipeline or each other.
    """
    settings = _checked(settings, batch_size)
    if model.is_file() and settings.base is None:
        raise ValueError(f"{model} is one file, without tokenizers and scheduler: pass --base=FOLDER of its kind")
    if (model / "config.json").exists() and (model / "checkpoints").is_dir():
        _of_run(model, output, settings, batch_size, latents)
        return
    began = time.monotonic()
    pipeline, params = load_pipeline(
        model,
        dtype=settings.dtype,
        scheduler=settings.scheduler,
        controlnet=settings.controlnet,
        config=settings.base,
    )
    for entry in settings.lora:
        path, scale = read_lora(entry)
        params = lora.merge(params, lora.load(path), scale)
    num_parameters = sum(leaf.size for leaf in jax.tree.leaves(params))
    print(f"{model}: {num_parameters / 1e6:,.1f} million parameters in {time.monotonic() - began:.1f} s")

    prompts = [prompt for prompt in settings.prompts for _ in range(settings.num_images)]
    options, size = _options(pipeline, settings)
    plan = pipeline.plan(settings.steps, **size, strength=settings.strength)
    numbers = np.arange(len(prompts))
    key = jax.random.key(settings.seed)
    batch_size = min(batch_size, len(prompts))
    drawn: list[np.ndarray] = []
    bar = tqdm(total=-(-len(prompts) // batch_size) * len(plan.timesteps), unit="step", desc="sampling")

    def tick() -> None:
        bar.update()

    def draw(
        params: Any, key: jax.Array, numbers: jax.Array, tokens: Any, negative: Any, options: Any, plan: Any
    ) -> Any:
        keys = jax.vmap(jax.random.fold_in, (None, 0))(key, numbers)
        found = pipeline.sample(
            params, keys, tokens, negative=negative, plan=plan, emit=lambda step: jax.debug.callback(tick),
            clip_skip=settings.clip_skip, output="latents", **size, **options,
        ).x0  # fmt: skip
        return found, pipeline.decode(params, found)

    all_latents: list[np.ndarray] = []
    run: Any = None
    with bar:
        for start in range(0, len(prompts), batch_size):
            rows = np.resize(numbers[start : start + batch_size], batch_size)
            tokens = pipeline.tokenize([prompts[row] for row in rows])
            negative = None if settings.negative is None else pipeline.tokenize([settings.negative] * batch_size)
            inputs = (params, key, jnp.asarray(rows), tokens, negative, options, plan)
            if run is None:
                run = compilation.compile_now("the pipeline", jax.jit(draw), *inputs)
                began = time.monotonic()
            held, images = run(*inputs)
            count = min(batch_size, len(prompts) - start)
            drawn.append(np.asarray(images)[:count])
            all_latents.append(np.asarray(held)[:count])
    seconds = time.monotonic() - began
    about = {"model": str(model), **_as_json(settings), "steps": len(plan.timesteps), "version": dfn.__version__}
    _write(output, np.concatenate(drawn), prompts, about, settings.num_images)
    if latents:
        write_atomically(output / "latents.npz", lambda file: np.savez(file, latents=np.concatenate(all_latents)))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(
        f"{len(prompts)} images in {seconds:.1f} s ({seconds / len(prompts):.2f} s each), peak memory of the host "
        f"{peak:.1f} GiB: {output / 'grid.png'}"
    )


_STRENGTH = 0.8  # the default of the published image-to-image pipelines
_OF_RUNS = ("prompts", "num_images", "seed", "steps", "scale")


def _of_run(workdir: Path, output: Path, settings: Settings, batch_size: int, latents: bool) -> None:
    """Draws images with a model that was trained here, and writes them."""
    defaults = Settings(prompts=())._asdict()
    given = [name for name, value in settings._asdict().items() if name not in _OF_RUNS and value != defaults[name]]
    if given or latents:
        names = ", ".join(f"--{name}" for name in [*given, *(["output_latents"] if latents else [])])
        raise ValueError(f"{names} does not apply to {workdir}, a model that was trained here: leave it out")
    config = read_config(workdir)
    changed = {"cfg_scale": settings.scale, "num_inference_steps": settings.steps}
    config.sampler.update({name: value for name, value in changed.items() if value is not None})
    prompts = [prompt for prompt in settings.prompts for _ in range(settings.num_images)]
    cond = texts.of_prompts(config, workdir, prompts)
    diffusion, networks, step = trained.load_trained(config, workdir)
    began = time.monotonic()
    key = runs.random_key(config, settings.seed)
    images = trained.draw_samples(diffusion, networks, key, cond, len(prompts), batch_size)
    assert images is not None
    about = {"model": str(workdir), "training_step": step, **_as_json(settings), "version": dfn.__version__}
    _write(output, images, prompts, about, settings.num_images)
    print(f"{len(prompts)} images in {time.monotonic() - began:.1f} s: {output / 'grid.png'}")


def read_lora(entry: str) -> tuple[Path, float]:
    """Returns file and scale of FILE or FILE:SCALE.

    >>> read_lora("style.safetensors:0.8"), read_lora("style.safetensors")
    ((PosixPath('style.safetensors'), 0.8), (PosixPath('style.safetensors'), 1.0))
    """
    path, _, text = entry.rpartition(":")
    try:
        scale = float(text) if path else 1.0
    except ValueError:  # a colon in the name
        return Path(entry).expanduser(), 1.0
    if not np.isfinite(scale):
        raise ValueError(f"the scale of --lora={entry} must be finite")
    return Path(path or entry).expanduser(), scale


def _checked(settings: Settings, batch_size: int) -> Settings:
    """The settings with the defaults that follow from others: of strength, and of the ControlNet's picture."""
    if not settings.prompts:
        raise ValueError("--prompt is missing: a text, such as --prompt='a photo of a cat'")
    if settings.mask is not None and settings.image is None:
        raise ValueError("--mask needs --image, the picture that is painted on")
    if settings.strength is not None and settings.image is None:
        raise ValueError("--strength needs --image, the picture to start from")
    if min(settings.num_images, batch_size) < 1:
        raise ValueError("--num_images and --batch_size must be at least 1")
    if settings.controlnet is None:
        if settings.control_image is not None:
            raise ValueError("--control_image needs --controlnet, the folder of the network")
    elif settings.control_image is None:
        if settings.image is None or settings.mask is not None or settings.strength is not None:
            raise ValueError("--controlnet needs --control_image, its picture")
        settings = settings._replace(control_image=settings.image, image=None)
    if settings.image is not None and settings.mask is None and settings.strength is None:
        settings = settings._replace(strength=_STRENGTH)
    return settings


def _options(pipeline: Pipeline, settings: Settings) -> tuple[dict[str, Any], dict[str, Any]]:
    """The arrays and numbers of `Pipeline.sample`, and height and width."""
    options: dict[str, Any] = {}
    height, width = settings.height, settings.width
    if settings.image is not None:
        picture = _open(settings.image, "RGB")
        mask = None if settings.mask is None else _open(settings.mask, "L")
        if mask is not None and mask.size != picture.size:
            raise ValueError(
                f"--mask has {mask.height} x {mask.width} pixels, and --image {picture.height} x {picture.width}: make "
                "them equal"
            )
        pixels = _pixels(picture, height, width)
        height, width = pixels.shape[:2]
        options["image"] = jnp.asarray(pixels / 127.5 - 1.0, jnp.float32)[None]
        if mask is not None:
            options["mask"] = jnp.asarray(_pixels(mask, height, width) / 255.0, jnp.float32)[None, ..., None]
    if settings.control_image is not None:
        edges = _pixels(_open(settings.control_image, "RGB"), height, width)
        height, width = edges.shape[:2]
        options["control"] = Control(jnp.asarray(edges / 255.0, jnp.float32)[None], settings.control_scale)
    scale = pipeline.parts.kind.guidance_scale if settings.scale is None else settings.scale
    if scale > 1:
        options["guidance_scale"] = np.float32(scale)
    if settings.rescale:
        options["guidance_rescale"] = np.float32(settings.rescale)
    return options, {"height": height, "width": width}


def _open(path: Path, mode: str) -> Image.Image:
    """A picture, upright."""
    try:
        with Image.open(path) as picture:
            upright: Image.Image = ImageOps.exif_transpose(picture).convert(mode)
    except (OSError, UnidentifiedImageError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path} cannot be read as a picture: {error}") from error
    return upright


def _pixels(picture: Image.Image, height: int | None, width: int | None) -> np.ndarray:
    """The picture as [H, W, ...] uint8, resized where a size is given."""
    size = (picture.width if width is None else width, picture.height if height is None else height)
    return np.asarray(picture if size == picture.size else picture.resize(size, Image.Resampling.LANCZOS))


def _as_json(settings: Settings) -> dict[str, Any]:
    """The settings for JSON."""
    return {name: str(value) if isinstance(value, Path) else value for name, value in settings._asdict().items()}


def _write(output: Path, images: np.ndarray, prompts: Sequence[str], about: dict[str, Any], columns: int) -> None:
    for number, (image, prompt) in enumerate(zip(to_uint8(images), prompts)):
        info = PngInfo()
        info.add_text("parameters", json.dumps({**about, "prompt": prompt, "number": number}))
        save = functools.partial(Image.fromarray(image).save, format="PNG", pnginfo=info)
        write_atomically(output / f"{number:05d}.png", save)
    save_grid(output / "grid.png", images, columns=columns if columns > 1 else None)
    write_text(output / "settings.json", json.dumps(about, indent=2) + "\n")


def main() -> None:
    """Calls `text_to_image` with the flags of the command line."""
    given = flags.FLAGS
    if given.model is None:
        raise ValueError("--model is missing: the folder of a pipeline, with its model_index.json")
    named = {name: getattr(given, name) for name in Settings._fields if name not in ("prompts", "lora")}
    settings = Settings(prompts=given.prompt or (), lora=given.lora or (), **named)
    text_to_image(given.model, given.output, settings, batch_size=given.batch_size, latents=given.output_latents)


if __name__ == "__main__":
    runs.define_path("model", None, "Folder of the pipeline, with model_index.json; or of a run; or a file of weights.")
    runs.define_path("base", None, "For a file: folder of a pipeline of its kind, for all but the weights.")
    flags.DEFINE_multi_string("prompt", None, "A text; may be repeated.")
    flags.DEFINE_string("negative", None, "Negative prompt: what the images should not show.")
    flags.DEFINE_integer("num_images", 1, "Images per prompt.", lower_bound=1)
    flags.DEFINE_integer("seed", 0, "Random seed.", lower_bound=0, upper_bound=2**32 - 1)
    flags.DEFINE_integer("steps", None, "Number of steps. Default: the pipeline's.", lower_bound=1)
    flags.DEFINE_string("scheduler", None, "Class of another scheduler, such as DPMSolverMultistepScheduler.")
    flags.DEFINE_float("scale", None, "Guidance scale. Default: the pipeline's.")
    flags.DEFINE_float("rescale", 0.0, "phi of rescaled guidance: 0 is none.", 0.0, 1.0)
    flags.DEFINE_integer("clip_skip", 0, "Number of CLIP's last layers that are left out.", lower_bound=0)
    flags.DEFINE_integer("height", None, "Height of the images in pixels.", lower_bound=1)
    flags.DEFINE_integer("width", None, "Width of the images in pixels.", lower_bound=1)
    runs.define_path("image", None, "Picture to start from; with --controlnet alone, its picture.")
    flags.DEFINE_float("strength", None, "Share of the steps that are run on --image. Default: 0.8.", 0.0, 1.0)
    runs.define_path("mask", None, "Picture of what is painted anew: white; black is kept.")
    flags.DEFINE_multi_string("lora", None, "FILE or FILE:SCALE of an adapter; may be repeated.")
    runs.define_path("controlnet", None, "Folder of a ControlNet.")
    runs.define_path("control_image", None, "Picture for the ControlNet: edges, depths, poses.")
    flags.DEFINE_float("control_scale", 1.0, "Strength of the ControlNet.")
    flags.DEFINE_enum("dtype", None, ["float32", "bfloat16", "float16"], "Dtype of parameters and computation.")
    flags.DEFINE_integer("batch_size", 4, "Images drawn at a time; it does not change them.", lower_bound=1)
    runs.define_path("output", "runs/images", "Folder for the images.")
    flags.DEFINE_bool("output_latents", False, "Write latents.npz too.")
    runs.run_without_config(main)
