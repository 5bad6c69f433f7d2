"""One of two processes that save and restore a sharded state; run by test_several_process_checkpoints.

python several_process_checkpoints.py COORDINATOR PROCESS_ID FOLDER
"""

import json
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from experiments import checkpoints as writer
from experiments import lost_processes, processes
from experiments.checkpoints import Checkpoints

SPECS = {"w": P("fsdp", "tensor"), "b": P(), "step": P()}
VALUES = {
    "w": np.arange(128, dtype=np.float32).reshape(16, 8),
    "b": np.arange(5, dtype=np.int32),
    "step": np.int32(9),
}


def layout(fsdp, tensor):
    """Returns ShapeDtypeStructs of the state with shardings on a mesh of all devices."""
    mesh = Mesh(np.array(jax.devices()).reshape(fsdp, tensor), ("fsdp", "tensor"))
    return {
        name: jax.ShapeDtypeStruct(value.shape, value.dtype, sharding=NamedSharding(mesh, SPECS[name]))
        for name, value in VALUES.items()
    }


def state_on(like, offset=0):
    """Returns the state, with `offset` added to w, each process making its own part."""
    values = {**VALUES, "w": VALUES["w"] + np.float32(offset)}
    return {
        name: jax.make_array_from_callback(value.shape, like[name].sharding, lambda index, value=value: value[index])
        for name, value in values.items()
    }


def agrees(state, offset=0):
    """Returns whether all parts of a state that this process holds are right."""
    values = {**VALUES, "w": VALUES["w"] + np.float32(offset)}
    return all(
        np.array_equal(np.asarray(shard.data), values[name][shard.index])
        for name, leaf in state.items()
        for shard in leaf.addressable_shards
    )


def main(process_id, folder):
    found, like = {}, layout(8, 1)

    of_one = Checkpoints(folder / "one", read_only=True).restore(layout(4, 2))
    found["one process to two"] = [of_one.step, agrees(of_one.state)]

    checkpoints = Checkpoints(folder / "two")
    checkpoints.save(1, state_on(like), {"batch_offset": 3})
    checkpoints.save(2, state_on(like, 1))
    checkpoints.wait()
    path = folder / "two" / "checkpoints" / "2" / "shards-00001.safetensors"  # which process 0 need not read
    processes.wait()
    if processes.is_main():
        content = bytearray(path.read_bytes())
        content[-1] ^= 1
        path.write_bytes(content)
    processes.wait()
    back = checkpoints.restore(like)
    found["shard of process 1 is damaged"] = [back.step, agrees(back.state), back.meta]
    found["set aside"] = (folder / "two" / "damaged" / "2").is_dir()

    increase = jax.jit(lambda state: {**state, "w": state["w"] + 1}, donate_argnums=0)
    state = state_on(like, 10)
    checkpoints.save(3, state)
    for _ in range(5):
        state = increase(state)
    checkpoints.wait()
    found["donated"] = agrees(checkpoints.restore(like).state, 10)

    last = jnp.zeros((16, 8)).at[15, 7].set(jnp.nan)
    checkpoints.save(4, {**state, "w": jax.jit(jnp.add)(state["w"], np.asarray(last))})
    try:
        checkpoints.wait()
    except (FloatingPointError, OSError) as error:
        found["not finite in process 1"] = f"{type(error).__name__}: {error}"

    if process_id == 1:

        def fail(*args):
            raise OSError("No space left on device")

        writer.write_shards = fail
    checkpoints.save(5, state)
    try:
        checkpoints.wait()
    except OSError as error:
        found["disk of process 1 is full"] = str(error)
    (folder / f"found-{process_id}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    processes.initialize(processes.launch(sys.argv[1], 2, int(sys.argv[2])))
    with lost_processes.ending_together():
        main(int(sys.argv[2]), Path(sys.argv[3]))
