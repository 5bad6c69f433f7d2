"""Training and sampling under jit with sharded arrays: the step of one device, and JAX divides the work.

python docs/composing/sharded_jit.py
"""

import jax
import small  # which asks for eight emulated devices
from jax.sharding import AxisType

import diffusers_fn as dfn

training = dfn.training
step = training.make_train_step(small.diffusion.loss, small.optimizer)  # no axis_name: the batch is one array
generate = jax.jit(small.sample)
keys, batch = small.keys, small.batch


def run(way, mesh, state, **options):
    arguments = training.split_batch((keys, batch), mesh)
    state, norm = small.steps(jax.jit(step, **options), state, *arguments)
    samples = generate(state.ema, *training.split_batch((keys, batch["label"]), mesh))
    small.compare(way, state, norm, samples)


# Whole parameters, the batch split: on axes of type Auto, and of type Explicit, the default of jax.make_mesh.
for kind in (AxisType.Auto, AxisType.Explicit):
    mesh = jax.make_mesh((8,), ("data",), axis_types=(kind,))
    run(f"sharded jit, {kind.name} axes", mesh, training.replicate(small.state, mesh))

# Parameters, averages and optimizer state split over fsdp too. min_size=1, since this network is tiny.
mesh = training.make_mesh(fsdp=2)
where = training.shardings(small.state, mesh, min_size=1)
state = training.place(small.state, where)
run("sharded jit, split parameters", mesh, state, out_shardings=(where, None))
