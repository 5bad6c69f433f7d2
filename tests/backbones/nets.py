"""Helpers for the tests of every backbone: parameters without compilation, comparisons."""

import jax
import jax.numpy as jnp
import numpy as np


def random_params(net, x, seed=0, **call):
    """Returns parameters with every leaf random and of its true shape, scaled to keep activations near one."""
    shapes = jax.eval_shape(lambda x: net.init(jax.random.key(0), x, jnp.zeros([]), **call), x)["params"]
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        name = path[-1].key
        noise = rng.standard_normal(leaf.shape)
        if name == "kernel":
            fan_in = leaf.shape[0] if path[-2].key == "qkv" else leaf.size / leaf.shape[-1]
            noise = noise / np.sqrt(fan_in)
        elif name in ("bias", "scale"):
            noise = 0.1 * noise + (name == "scale")
        return jnp.asarray(noise, leaf.dtype)

    return jax.tree_util.tree_map_with_path(draw, shapes)


@jax.jit
def moved(params, grads):
    """Returns the parameters after a step of 0.05 against the sign of each gradient."""
    return jax.tree.map(lambda p, g: p - 0.05 * jnp.sign(g), params, grads)


def quick_key(seed):
    """Returns a key whose random bits compile as one operation."""
    return jax.random.key(seed, impl="unsafe_rbg")


def relative_rms(a, b):
    """Returns rms(a - b) / rms(b)."""
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    return np.sqrt(np.mean((a - b) ** 2) / np.mean(b**2))


def count(net, x):
    """Returns the number of parameters, without allocating any."""
    variables = jax.eval_shape(net.init, jax.random.key(0), x, jnp.zeros([]))
    return sum(leaf.size for leaf in jax.tree.leaves(variables))


def structure(tree):
    """Returns names, shapes and dtypes of a tree of arrays."""
    return jax.tree.map(lambda leaf: (leaf.shape, str(leaf.dtype)), tree)
