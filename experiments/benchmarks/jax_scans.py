"""The same work on its own and as the body of a scan: training steps, and sampler steps with a gradient."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import diffusers_fn as dfn
from diffusers_fn import grids, solvers
from diffusers_fn.backbones import Classifier
from experiments.benchmarks import inputs
from experiments.benchmarks.jax_networks import LEARNING_RATE, make_step, random_parameter
from experiments.benchmarks.jax_samplers import schedule, start
from experiments.benchmarks.work import Work

__all__ = ["guided", "train"]


def train(folder: str, shape: Sequence[int], length: int, in_scan: bool, num_classes: int = 0) -> Work:
    """Trains the network saved in a folder on `length` batches, in one scan or one call per batch.

    Times are per step. The output is the losses of the first `length` steps.
    """
    module, params = dfn.pretrained.load(folder)
    batches = [jax.tree.map(jnp.asarray, inputs.draw(shape, num_classes, seed)) for seed in range(length)]
    optimizer = optax.adam(LEARNING_RATE)
    step = make_step(module, optimizer)
    state: Any = (params, optimizer.init(params))
    del params
    losses: list[np.ndarray] = []
    if in_scan:
        stacked = jax.tree.map(lambda *each: jnp.stack(each), *batches)
        scan = jax.jit(lambda state, xs: jax.lax.scan(step, state, xs), donate_argnums=0)
    compiled = jax.jit(step, donate_argnums=0)

    def run() -> None:
        nonlocal state
        if in_scan:
            state, found = scan(state, stacked)
        else:
            each = []
            for batch in batches:
                state, loss = compiled(state, batch)
                each.append(loss)
            found = jnp.stack(each)
        jax.block_until_ready(state)
        losses.append(np.asarray(found))

    return Work(run=run, output=lambda: losses[0], units=length)


def guided(folder: str, shape: Sequence[int], length: int, in_scan: bool, classifier: Mapping[str, Any]) -> Work:
    """Samples in `length` steps with classifier guidance, in one scan, or runs the parts of each step on their own.

    The parts are one forward pass of the network and one gradient of the classifier per step, at the noise that
    sampling starts from. Times are per step.
    """
    module, params = dfn.pretrained.load(folder)
    net = Classifier(**classifier)
    x, labels = start(shape), jnp.arange(shape[0]) % net.num_classes
    shapes = jax.eval_shape(net.init, jax.random.key(0), x, jnp.zeros(shape[0]))["params"]
    rng = np.random.default_rng(1)
    weights = jax.tree.map_with_path(lambda path, s: jnp.asarray(random_parameter(rng, path[-1].key, s.shape)), shapes)
    apply: Any = lambda params, x, t, cond=None: module.apply({"params": params}, x, t)  # noqa: E731
    logits: Any = lambda weights, x, t: net.apply({"params": weights}, x, t)  # noqa: E731
    levels = jax.tree.map(jnp.float32, grids.leading(schedule(), length))

    def log_prob(weights: Any) -> Any:
        return dfn.guidance.class_log_prob(logits, weights)

    if in_scan:

        def sample(params: Any, weights: Any, solver: dfn.Solver, x: jax.Array, labels: jax.Array) -> jax.Array:
            denoise = dfn.make_denoiser(apply, params, dfn.parameterizations.epsilon)
            guided = dfn.guidance.classifier(log_prob(weights), 1.0)(denoise)
            return dfn.sample(None, dfn.bind(guided, labels), solver, x).x0

        sampler = jax.jit(sample)
        solver = solvers.ddim(levels)
        return Work(run=lambda: sampler(params, weights, solver, x, labels).block_until_ready(), units=length)

    forward = jax.jit(apply)
    gradient = jax.jit(jax.grad(lambda x, weights, level, labels: jnp.sum(log_prob(weights)(x, level, labels))))
    visited = list(levels)

    def run() -> None:
        for level in visited:
            forward(params, x, level.t).block_until_ready()
            gradient(x, weights, level, labels).block_until_ready()

    return Work(run=run, units=length)
