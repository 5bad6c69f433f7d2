"""Training and sampling under shard_map: whole parameters, then parameters of which each device has a shard.

python docs/composing/shard_map.py
"""

import jax
import small  # which asks for eight emulated devices
from jax.sharding import PartitionSpec as P

import diffusers_fn as dfn

mesh = dfn.training.make_mesh(fsdp=2)  # data 4, fsdp 2, tensor 1
axes, split = ("data", "fsdp"), P(("data", "fsdp"))


def whole_parameters():
    step = dfn.training.make_train_step(small.diffusion.loss, small.optimizer, axis_name=axes)
    mapped = jax.shard_map(step, mesh=mesh, in_specs=(P(), split, split), out_specs=P())
    return small.steps(jax.jit(mapped), small.state, small.keys, small.batch)


def sharded_parameters():
    # Every array of the state whose first axis is even is split over fsdp: parameters, averages and optimizer state.
    spec = lambda a: P("fsdp") if a.ndim and a.shape[0] % 2 == 0 else P()  # noqa: E731
    specs = jax.tree.map(spec, small.state)

    def loss(params, key, batch):
        gather = lambda p, spec: jax.lax.all_gather(p, "fsdp", tiled=True) if spec else p  # noqa: E731
        return small.diffusion.loss(jax.tree.map(gather, params, specs.params), key, batch)

    # With check_vma=True, the default, the step knows the shards: their gradients are means, norms are of the whole.
    # With check_vma=False also pass param_specs=specs.params.
    step = dfn.training.make_train_step(loss, small.optimizer, axis_name=axes)
    mapped = jax.shard_map(step, mesh=mesh, in_specs=(specs, split, split), out_specs=(specs, P()))
    return small.steps(jax.jit(mapped), small.state, small.keys, small.batch)


# Without communication: each device samples its own keys and labels.
generate = jax.jit(jax.shard_map(small.sample, mesh=mesh, in_specs=(P(), split, split), out_specs=split))
for way, train in (("whole", whole_parameters), ("sharded", sharded_parameters)):
    state, norm = train()
    samples = generate(state.ema, small.keys, small.batch["label"])
    small.compare(f"shard_map, {way} parameters", state, norm, samples)
