"""Compiles the training step of a large network ahead of time, for a mesh that is not there, and counts what it costs.

    python -m experiments.benchmarks.ahead_of_time --devices=64 --fsdp=64
    python -m experiments.benchmarks.ahead_of_time --topology=v5e:8x8 --fsdp=64

Nothing is allocated and nothing runs. Without --topology the devices are emulated ones of this CPU; with it they are
those of a TPU slice, for which libtpu compiles on any machine (`pip install libtpu`). One JSON line is printed: bytes
and FLOPs per device, seconds, and the collectives of the compiled program. The network is DiT-XL/2 on the latents of
256 x 256 images, with its blocks in a scan.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from absl import app, flags
from jax.sharding import NamedSharding, PartitionSpec
from ml_collections import ConfigDict

import diffusers_fn as dfn
from experiments import flops, states
from experiments.benchmarks.programs import collectives
from experiments.tasks import make_task

__all__ = ["compiled_step", "dit_xl", "report"]

_CHILD = "AHEAD_OF_TIME_CHILD"


def dit_xl(batch_size: int, **backbone: Any) -> ConfigDict:
    """Returns the config of DiT-XL/2 on latents [32, 32, 4] of 1000 classes; keywords change the network.

    >>> dit_xl(256).backbone.hidden_size
    1152
    """
    size: dict[str, Any] = {"hidden_size": 1152, "depth": 28, "num_heads": 16}
    fields = {**size, "scan_blocks": True, "remat": True, "dtype": "bfloat16", **backbone}
    return dfn.customise(
        dfn.default_config(),
        backbone={"name": "dit", **fields},
        data={"shape": (32, 32, 4), "num_classes": 1000},
        training={"batch_size": batch_size, "optimizer": "adamw", "lr_schedule": "constant", "learning_rate": 1e-4},
    )


def compiled_step(config: ConfigDict, mesh: jax.sharding.Mesh) -> tuple[Any, Any, dict[str, Any]]:
    """Returns the traced and the compiled training step of a run on a mesh, and the seconds of each."""
    task = make_task(config, Path())
    like = states.state_like(config, task.init, task.extras_like, mesh)
    steps = states.make_train_steps(config, task.loss, task.update_extras, mesh, like)
    size = (config.training.steps_per_call, config.training.batch_size)
    split = NamedSharding(mesh, PartitionSpec(None, ("data", "fsdp")))
    batch = {
        "image": jax.ShapeDtypeStruct((*size, *config.data.shape), jnp.float32, sharding=split),
        "label": jax.ShapeDtypeStruct(size, jnp.int32, sharding=split),
    }
    key = jax.eval_shape(lambda: jax.random.key(0))
    key = jax.ShapeDtypeStruct(key.shape, key.dtype, sharding=NamedSharding(mesh, PartitionSpec()))
    begin = time.perf_counter()
    traced = steps.trace(like, key, batch)
    lowered = traced.lower()
    middle = time.perf_counter()
    compiled = lowered.compile()
    seconds = {"lowering_s": round(middle - begin, 1), "compilation_s": round(time.perf_counter() - middle, 1)}
    state_bytes = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(like))
    return traced, compiled, {**seconds, "state_bytes": state_bytes}


def report(config: ConfigDict, mesh: jax.sharding.Mesh) -> dict[str, Any]:
    """Returns bytes, FLOPs, seconds and collectives of the compiled training step, per device."""
    traced, compiled, found = compiled_step(config, mesh)
    memory, devices = compiled.memory_analysis(), mesh.devices.size
    return {
        "platform": mesh.devices.flat[0].platform,
        "mesh": dict(mesh.shape),
        "batch_size": config.training.batch_size,
        **found,
        "state_bytes_whole_over_devices": found["state_bytes"] // devices,
        "argument_bytes": memory.argument_size_in_bytes,
        "temporary_bytes": memory.temp_size_in_bytes,
        "flops_over_devices": flops.count_in(traced.jaxpr) / devices,
        "xla_flops_bodies_once": int(compiled.cost_analysis().get("flops", 0)),
        "collectives": collectives(compiled.as_text()),
    }


def main(_: list[str]) -> None:
    given = flags.FLAGS
    if given.topology:
        from jax.experimental import topologies

        devices = topologies.get_topology_desc(platform="tpu", topology_name=given.topology).devices
    elif os.environ.get(_CHILD):
        devices = jax.devices()
    else:
        emulated = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={given.devices}"
        environment = {**os.environ, _CHILD: "1", "XLA_FLAGS": emulated.strip(), "JAX_PLATFORMS": "cpu"}
        command = [sys.executable, "-m", "experiments.benchmarks.ahead_of_time", *sys.argv[1:]]
        raise SystemExit(subprocess.run(command, env=environment).returncode)
    mesh = dfn.training.make_mesh(given.data, given.fsdp, given.tensor, devices=devices)
    fields = {name: getattr(given, name) for name in ("depth", "scan_blocks", "remat", "dtype")}
    print(json.dumps(report(dit_xl(given.batch_size or 8 * mesh.devices.size, **fields), mesh)))


if __name__ == "__main__":
    flags.DEFINE_string("topology", "", "A TPU slice, such as v5e:8x8; empty for emulated devices.")
    flags.DEFINE_integer("devices", 8, "Number of emulated devices.")
    flags.DEFINE_integer("data", -1, "Size of the mesh's axis data.")
    flags.DEFINE_integer("fsdp", 1, "Size of the mesh's axis fsdp.")
    flags.DEFINE_integer("tensor", 1, "Size of the mesh's axis tensor.")
    flags.DEFINE_integer("batch_size", 0, "Global batch size; 0: 8 per device.")
    flags.DEFINE_integer("depth", 28, "Number of blocks.")
    flags.DEFINE_bool("scan_blocks", True, "Whether the blocks are in a scan.")
    flags.DEFINE_bool("remat", True, "Whether the backward pass computes the blocks again.")
    flags.DEFINE_string("dtype", "bfloat16", "Of the computation.")
    app.run(main)
