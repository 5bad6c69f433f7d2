"""Loading takes the memory of the parameters and of one tensor, without a second copy of the file."""

import subprocess
import sys

import pytest

SIZE = 16  # parameters of 8 MiB each

LOAD = """
import resource, sys
import flax.linen as nn, jax, jax.numpy as jnp, numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from diffusers_fn import pretrained
from diffusers_fn.pretrained.entries import linear

class Net(nn.Module):
    @nn.compact
    def __call__(self, x):
        for i in range({size}):
            x = nn.Dense(1024, use_bias=False, name=f"fc_{{i}}")(x) if i % 2 else nn.Dense(
                2048, use_bias=False, name=f"fc_{{i}}")(x)
        return x

family = pretrained.Family(
    "net", ("Net",), lambda config: Net(), lambda net: {{}},
    lambda net: [entry for i in range({size}) for entry in linear(f"fc_{{i}}", f"fc.{{i}}", bias=False)],
    lambda net: (jax.ShapeDtypeStruct((1, 1024), jnp.float32),))

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

folder, how = sys.argv[1:]
pretrained.convert.parameter_shapes(Net(), family)  # so that the memory of tracing is not measured
if how == "save":
    rng = np.random.default_rng(0)
    shapes = {{f"fc_{{i}}": (2048, 1024) if i % 2 else (1024, 2048) for i in range({size})}}
    params = {{name: {{"kernel": rng.standard_normal(shape).astype(np.float32)}} for name, shape in shapes.items()}}
    before = peak()
    pretrained.save(folder, Net(), params, family)
else:
    split = NamedSharding(Mesh(np.array(jax.devices()), ("model",)), PartitionSpec(None, "model"))
    jnp.zeros(1).block_until_ready()
    before = peak()
    _, params = pretrained.load(folder, family, sharding=None if how == "plain" else split)
    jax.block_until_ready(params)
print(peak() - before)
"""


def start(folder, how):
    """Returns a new process that saves or loads the network."""
    return subprocess.Popen([sys.executable, "-c", LOAD.format(size=SIZE), str(folder), how], stdout=subprocess.PIPE)


def megabytes(process):
    """Returns the increase, in MiB, of the peak resident memory of a process that `start` returned."""
    out, _ = process.communicate()
    assert process.returncode == 0
    return float(out.split()[-1])


@pytest.mark.long
@pytest.mark.skipif(sys.platform != "linux", reason="other systems release pages by rules of their own")
def test_loading_and_saving_hold_no_second_copy(tmp_path):
    file = 8 * SIZE
    # Of the bound of 1.5, 1 is the parameters themselves. Without releasing pages it would be more than 2.
    assert megabytes(start(tmp_path / "net", "save")) < 0.5 * file
    loads = [start(tmp_path / "net", how) for how in ("plain", "sharded")]  # at the same time
    plain, sharded = [megabytes(process) for process in loads]
    assert plain < 1.5 * file
    assert sharded < 1.5 * file
