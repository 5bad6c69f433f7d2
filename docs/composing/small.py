"""What the three scripts share: a small model, and the comparison with four steps and samples on one device."""

import os

os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=8")  # before JAX is imported

import jax
import jax.numpy as jnp
import numpy as np
import optax

import diffusers_fn as dfn

STEPS, BATCH = 4, 16
config = dfn.customise(
    dfn.default_config(),
    data={"shape": (2,), "num_classes": 3},
    backbone={"hidden_size": 16, "depth": 1, "embedding_dim": 8},
    loss={"label_dropout": 0.1},
    sampler={"num_inference_steps": 4, "cfg_scale": 2.0},
)
diffusion = dfn.build(config)
# Gradient descent: the size of the gradient matters, while Adam would hide a wrong factor.
optimizer = optax.chain(dfn.training.clip_by_global_norm(0.2), optax.sgd(0.1))
keys = jax.random.split(jax.random.key(0), BATCH)  # one per example: the same numbers on every layout
batch = {"image": jax.random.normal(jax.random.key(1), (BATCH, 2)), "label": jnp.arange(BATCH) % 3}
state = dfn.training.make_train_state(diffusion.init(jax.random.key(2)), optimizer)


def steps(step, state, keys, batch):
    """Returns the state after the steps, and the norm of the last gradient."""
    for _ in range(STEPS):
        state, metrics = step(state, keys, batch)
    return state, metrics["grad_norm"]


def sample(params, keys, labels):
    return diffusion.sample(params, keys, labels.shape[0], cond=labels).x0


def compare(way, state, norm, samples):
    """Prints the largest differences from the whole batch on one device; raises if they exceed float32 rounding."""
    one, one_norm = steps(jax.jit(dfn.training.make_train_step(diffusion.loss, optimizer)), START, keys, batch)
    wanted = (one.params, one_norm, jax.jit(sample)(one.ema, keys, batch["label"]))
    names, given = ("parameters", "gradient norm", "samples"), jax.device_get((state.params, norm, samples))
    for name, a, b in zip(names, given, jax.device_get(wanted), strict=True):
        error = max(jax.tree.leaves(jax.tree.map(lambda a, b: np.abs(a - b).max(), a, b)))
        print(f"{way}: {name} differ by at most {error:.1e} from those of one device")
        assert error < 1e-5, (way, name, error)


START = state
