"""Training and sampling under pmap: parameters on every device, the batch reshaped to [devices, B / devices, ...].

python docs/composing/pmap.py
"""

import jax
import small  # which asks for eight emulated devices

import diffusers_fn as dfn

devices = jax.device_count()


def by_device(tree):
    """Returns arrays [B, ...] as [devices, B / devices, ...]."""
    return jax.tree.map(lambda a: a.reshape(devices, -1, *a.shape[1:]), tree)


# axis_name is that of pmap: gradients and metrics are means over it, so every device updates by the whole batch.
step = dfn.training.make_train_step(small.diffusion.loss, small.optimizer, axis_name="batch")
mapped = jax.pmap(step, axis_name="batch", in_axes=(None, 0, 0), out_axes=None)
# Each device gets the keys of its own examples. With one key for all, all devices would draw the same noise.
state, norm = small.steps(mapped, small.state, *by_device((small.keys, small.batch)))

generate = jax.pmap(small.sample, in_axes=(None, 0, 0))
samples = generate(state.ema, *by_device((small.keys, small.batch["label"])))
small.compare("pmap", state, norm, samples.reshape(small.BATCH, 2))
