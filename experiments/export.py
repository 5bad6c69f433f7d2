"""Writes the sampler of a trained model as a program that needs no code of this library.

    python -m experiments.export --workdir=runs/digits --output=exported/digits \\
        --config.sampler.cfg_scale=3.0

Writes three files into --output: sampler.jax, the program for CPUs, NVIDIA GPUs and TPUs (StableHLO, serialised by
`jax.export`); params.safetensors, the parameters of all networks that it uses; sampler.json, which describes inputs and
output. `experiments.run_exported` samples from the folder. docs/exporting.md has a reader in ten lines.

The numbers of samples and of steps, the labels and the guidance scales are inputs. All else in config.sampler is fixed.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.export
import numpy as np
from absl import flags
from ml_collections import ConfigDict

import diffusers_fn as dfn
from diffusers_fn.from_config.conditions import takes_text
from diffusers_fn.from_config.derived import data_range, num_classes
from diffusers_fn.pretrained.safetensors_file import write_safetensors
from experiments import own, runs, trained
from experiments.files import write_atomically, write_text
from experiments.provenance import provenance
from experiments.run_exported import FILES, FORMAT
from experiments.sample import read_shape
from experiments.workdir import class_names, recorded_data

__all__ = ["PLATFORMS", "Sampler", "export", "main", "sampler_of"]

PLATFORMS = ("cpu", "cuda", "tpu")
_MAX_STEPS = 100  # by default


class Sampler(NamedTuple):
    """A sampler as a function of plain arrays.

    Attributes:
      program: (params, inputs) -> samples [num_samples, *shape].
      params: {name: array}, of all networks.
      inputs: {name: shape and dtype}, where num_samples is a symbol.
      defaults: {name: value} of the inputs that have one.
    """

    program: Callable[[Mapping[str, Any], Mapping[str, Any]], jax.Array]
    params: dict[str, Any]
    inputs: dict[str, jax.ShapeDtypeStruct]
    defaults: dict[str, Any]


def sampler_of(
    config: ConfigDict,
    diffusion: dfn.Diffusion,
    networks: trained.Networks,
    *,
    max_steps: int,
    shape: tuple[int, ...] | None = None,
) -> Sampler:
    """Returns the sampler of a trained model, with the scales and the number of steps among its inputs.

    Args:
      config: of the model.
      diffusion: as functions of `networks`, from `trained.load_trained`.
      networks: the parameters.
      max_steps: the largest number of steps.
      shape: of one sample; None for that of the data.
    """
    scales = {name: getattr(networks, name) for name in ("guidance_scale", "classifier_scale")}
    scales = {name: value for name, value in scales.items() if value is not None}
    inner = networks._replace(**dict.fromkeys(scales))
    leaves, structure = jax.tree_util.tree_flatten_with_path(inner)
    names = [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in leaves]
    options: dict[str, Any] = {} if shape is None else {"shape": shape}

    def program(params: Mapping[str, Any], inputs: Mapping[str, Any]) -> jax.Array:
        whole = jax.tree.unflatten(structure, [params[name] for name in names])
        whole = whole._replace(**{name: inputs[name] for name in scales})
        keys = jax.random.wrap_key_data(inputs["keys"], impl=config.prng_impl)
        return diffusion.sample(
            whole,
            keys,
            keys.shape[0],
            cond=inputs.get("labels"),
            num_inference_steps=inputs["num_steps"],
            max_inference_steps=max_steps,
            **options,
        ).x0

    (number,) = jax.export.symbolic_shape("num_samples")
    key_data = jax.eval_shape(lambda: jax.random.key_data(jax.random.key(0, impl=config.prng_impl)))
    inputs = {"keys": jax.ShapeDtypeStruct((number, *key_data.shape), key_data.dtype)}
    if trained.sampled_classes(config):
        inputs["labels"] = jax.ShapeDtypeStruct((number,), np.int32)
    inputs |= {name: jax.ShapeDtypeStruct((), np.float32) for name in scales}
    inputs["num_steps"] = jax.ShapeDtypeStruct((), np.int32)
    defaults: dict[str, Any] = {name: float(value) for name, value in scales.items()}
    defaults["num_steps"] = config.sampler.num_inference_steps
    return Sampler(program, {name: leaf for name, (_, leaf) in zip(names, leaves)}, inputs, defaults)


def export(
    config: ConfigDict,
    workdir: Path,
    output: Path,
    *,
    params: str = "ema",
    max_steps: int | None = None,
    shape: tuple[int, ...] | None = None,
) -> None:
    """Writes sampler.jax, params.safetensors and sampler.json.

    Args:
      config: config of the trained run; the sampler's settings may differ.
      workdir: its work directory.
      output: folder for the files.
      params: which parameters: "ema", "raw" or "ema:STD", see `states.choose_params`.
      max_steps: the largest number of steps that the program can take; None for 100 or the config's number, if that is
        larger. The program holds the plans of all of them.
      shape: of one sample, for networks of any image size; None: that of the data.

    Raises:
      ValueError: if an argument does not fit the model.
    """
    most = _default_max_steps(config) if max_steps is None else max_steps
    if most < config.sampler.num_inference_steps:
        raise ValueError(
            f"--max_steps must be at least config.sampler.num_inference_steps, {config.sampler.num_inference_steps}; "
            f"got {most}"
        )
    config = ConfigDict(config.to_dict())
    if config.latent.enabled and config.latent.decode_batch_size:
        print("the exported program decodes all samples at once: latent.decode_batch_size is not used")
        config.latent.decode_batch_size = 0
    diffusion, networks, step = trained.load_trained(config, workdir, params)
    sampler = sampler_of(config, diffusion, networks, max_steps=most, shape=shape)
    print(f"tracing for {', '.join(PLATFORMS)} ...", flush=True)
    like = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(np.shape(leaf), leaf.dtype), sampler.params)
    exported = jax.export.export(jax.jit(sampler.program), platforms=PLATFORMS)(like, sampler.inputs)
    program = bytes(exported.serialize())
    about = {
        **_description(config, workdir, sampler, exported, most),
        **provenance(config, workdir, step, params),
        "sampler": config.sampler.to_dict(),
    }
    write_atomically(output / FILES["program"], lambda file: file.write(program))
    specs = {name: (tuple(leaf.shape), np.dtype(leaf.dtype)) for name, leaf in like.items()}
    arrays = ((name, np.asarray(leaf)) for name, leaf in sampler.params.items())
    write_atomically(output / FILES["params"], lambda file: write_safetensors(file, specs, arrays))
    write_text(output / FILES["description"], json.dumps(about, indent=2, default=list) + "\n")
    print(
        f"sampler of step {step} in {output}: program {len(program) / 1e6:.1f} MB, "
        f"{sum(int(np.prod(leaf.shape)) for leaf in like.values()):,} parameters"
    )


def _description(
    config: ConfigDict, workdir: Path, sampler: Sampler, exported: jax.export.Exported, max_steps: int
) -> dict[str, Any]:
    """Returns what a reader must know to call the program."""
    if takes_text(config):
        raise ValueError("a text-conditional model (config.text.kind) cannot be exported: its tokenizer is no program")
    classes, own_classes = trained.sampled_classes(config), num_classes(config)
    inputs: dict[str, dict[str, Any]] = {
        name: {"shape": [size if isinstance(size, int) else str(size) for size in each.shape], "dtype": str(each.dtype)}
        for name, each in sampler.inputs.items()
    }
    inputs["keys"]["generator"] = config.prng_impl
    inputs["num_steps"] |= {"min": own.tables(config).solvers[config.sampler.name].min_levels, "max": max_steps}
    for name, value in sampler.defaults.items():
        inputs[name]["default"] = value
    (out,) = exported.out_avals
    return {
        "format": FORMAT,
        "files": FILES,
        "platforms": list(exported.platforms),
        "calling_convention": exported.calling_convention_version,
        "min_jax": jax.__version__,
        "versions": {name: metadata.version(name) for name in ("jax", "jaxlib")} | {"diffusers_fn": dfn.__version__},
        "inputs": inputs,
        "sample": {"shape": list(out.shape[1:]), "dtype": str(out.dtype), "range": data_range(config)},
        "alpha": config.data.name == "images",
        "num_classes": classes,
        "null_label": own_classes if own_classes and config.loss.label_dropout else None,
        "class_names": list(class_names(workdir) or ()) if classes else [],
        "absent_classes": list((recorded_data(workdir) or {}).get("absent_classes", ())),
    }


def _default_max_steps(config: ConfigDict) -> int:
    """Returns 100, or as many as a table of betas has, but at least config.sampler.num_inference_steps."""
    noise = config.noise_schedule
    most = min(_MAX_STEPS, noise.noise_steps) if noise.process == "table" else _MAX_STEPS
    return max(most, config.sampler.num_inference_steps)


def main(config: ConfigDict, workdir: Path) -> None:
    """Calls `export` with the flags of the command line."""
    given = flags.FLAGS
    if given.output is None:
        raise ValueError("--output is missing: the folder for the exported sampler, such as --output=exported/digits")
    export(
        config,
        workdir,
        given.output,
        params=given.params,
        max_steps=given.max_steps,
        shape=read_shape(given.shape, tuple(config.data.shape)),
    )


if __name__ == "__main__":
    runs.define_flags()
    runs.define_path("output", None, "Folder for the three files.")
    flags.DEFINE_integer(
        "max_steps",
        None,
        "Largest number of steps that the program can take (default: 100, or the config's number if it is larger).",
        lower_bound=1,
    )
    flags.DEFINE_list("shape", None, "Shape of a sample, such as 64,96, for networks of any size; default: the data's.")
    trained.define_params_flag()
    runs.run(main)
