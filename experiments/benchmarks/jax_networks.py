"""Networks of this library: saved for the other contenders, evaluated, trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

import diffusers_fn as dfn
from diffusers_fn.pretrained.load import find_family
from experiments.benchmarks import inputs
from experiments.benchmarks.work import Work
from experiments.compilation import compile_now

__all__ = ["LEARNING_RATE", "forward", "make_module", "make_step", "random_parameter", "save", "train"]

LEARNING_RATE = 1e-4


def make_module(family: str, config: Mapping[str, Any]) -> nn.Module:
    """Returns the module that a config of the family describes.

    >>> make_module("unet2d", {"block_out_channels": [32, 64], "down_block_types": ["DownBlock2D"] * 2,
    ...                        "up_block_types": ["UpBlock2D"] * 2}).widths()
    [32, 64]
    """
    return find_family(family, {}).from_config(config)


def save(folder: str, family: str, config: Mapping[str, Any]) -> Work:
    """Writes a network with random, non-zero parameters, unless the folder exists already."""
    if not Path(folder).exists():
        module, found = make_module(family, config), find_family(family, {})
        shapes = jax.eval_shape(module.init, jax.random.key(0), *found.inputs(module))["params"]
        rng = np.random.default_rng(0)
        leaves = jax.tree.map_with_path(lambda path, leaf: random_parameter(rng, path[-1].key, leaf.shape), shapes)
        dfn.pretrained.save(folder, module, leaves, family)
    return Work()


def random_parameter(rng: np.random.Generator, name: str, shape: Sequence[int]) -> np.ndarray:
    """Returns a random parameter: scales near one, small biases, and kernels that preserve the variance of their input.

    >>> bool(np.all(random_parameter(np.random.default_rng(0), "scale", (8,)) > 0.5))
    True
    """
    z = rng.standard_normal(shape, np.float32)
    if name == "scale":
        return 1 + 0.1 * z
    if len(shape) < 2:
        return 0.1 * z
    fan_in = shape[-1] if name == "embedding" else int(np.prod(shape[:-1]))
    return z / np.float32(np.sqrt(fan_in))


def forward(folder: str, shape: Sequence[int], num_classes: int = 0) -> Work:
    """One forward pass of the network saved in a folder, for x of the shape [B, H, W, C]."""
    module, params = dfn.pretrained.load(folder)
    given = inputs.draw(shape, num_classes)
    args = jax.tree.map(jnp.asarray, (given.x, given.t, given.labels))
    apply = jax.jit(lambda params, x, t, labels: module.apply({"params": params}, x, t, labels))
    return Work(
        run=lambda: apply(params, *args).block_until_ready(),
        output=lambda: np.asarray(apply(params, *args)),
        facts=lambda: {"parameters": sum(leaf.size for leaf in jax.tree.leaves(params))},
    )


def train(folder: str, shape: Sequence[int], num_classes: int = 0, per_example: bool = False) -> Work:
    """Trains the network saved in a folder by Adam on one batch; the output is the first two losses.

    Times are per step, or per example. The step is compiled as in experiments.train.
    """
    module, params = dfn.pretrained.load(folder)
    given = jax.tree.map(jnp.asarray, inputs.draw(shape, num_classes))
    optimizer = optax.adam(LEARNING_RATE)
    state: Any = (params, optimizer.init(params))
    del params
    step: Any = None
    losses: list[float] = []

    def run() -> None:
        nonlocal state, step
        if step is None:
            step = compile_now("the step", jax.jit(make_step(module, optimizer), donate_argnums=0), state, given)
        state, loss = step(state, given)
        jax.block_until_ready(state)
        losses.append(float(loss))

    return Work(run=run, output=lambda: np.array(losses[:2]), units=shape[0] if per_example else 1)


def make_step(module: nn.Module, optimizer: optax.GradientTransformation) -> Any:
    """Returns step((params, optimizer state), inputs) -> (new state, loss): the mean squared error of noise."""

    def step(state: Any, given: inputs.Inputs) -> tuple[Any, jax.Array]:
        def mse(params: Any) -> jax.Array:
            return jnp.mean((module.apply({"params": params}, given.x, given.t, given.labels) - given.noise) ** 2)

        params, opt_state = state
        loss, gradients = jax.value_and_grad(mse)(params)
        updates, opt_state = optimizer.update(gradients, opt_state, params)
        return (optax.apply_updates(params, updates), opt_state), loss

    return step
