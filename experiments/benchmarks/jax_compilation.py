"""Compilation time and memory of programs, without allocating parameters and without running them."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

import diffusers_fn as dfn
from diffusers_fn import solvers
from experiments.benchmarks import inputs, networks
from experiments.benchmarks.jax_networks import LEARNING_RATE, make_module, make_step
from experiments.benchmarks.jax_samplers import schedule
from experiments.benchmarks.work import Work

__all__ = ["facts", "forward", "sample", "stable_diffusion", "train"]


def facts(function: Callable[..., Any], *args: Any, donate: tuple[int, ...] = ()) -> dict[str, Any]:
    """Returns the seconds of tracing and of compiling, and the compiler's memory analysis in MB (10^6 bytes).

    >>> sorted(facts(jnp.sin, jax.ShapeDtypeStruct((2,), jnp.float32)))[:2]
    ['arguments_MB', 'backend']
    """
    begin = time.perf_counter()
    lowered = jax.jit(function, donate_argnums=donate).lower(*args)
    traced = time.perf_counter()
    compiled = lowered.compile()
    found: dict[str, Any] = {
        "backend": jax.default_backend(),
        "trace_s": traced - begin,
        "compile_s": time.perf_counter() - traced,
    }
    memory = compiled.memory_analysis()
    if memory is not None:
        found["temporary_MB"] = memory.temp_size_in_bytes / 1e6
        found["arguments_MB"] = memory.argument_size_in_bytes / 1e6
    return found


def train(name: str, batch: int, changes: Mapping[str, Any] | None = None, **fields: Any) -> Work:
    """A training step of a network from `networks.NETWORKS`, with the state donated.

    Args:
      name: name of the network.
      batch: batch size.
      changes: fields of the reference's config to replace.
      **fields: fields of the module to replace.
    """
    module, params, given = _network(name, batch, changes, fields)
    optimizer = optax.adam(LEARNING_RATE)
    state = (params, jax.eval_shape(optimizer.init, params))
    return Work(facts=lambda: facts(make_step(module, optimizer), state, given, donate=(0,)))


def forward(name: str, batch: int, changes: Mapping[str, Any] | None = None, **fields: Any) -> Work:
    """One forward pass of a network."""
    module, params, given = _network(name, batch, changes, fields)
    apply = lambda params, given: module.apply({"params": params}, given.x, given.t, given.labels)  # noqa: E731
    return Work(facts=lambda: facts(apply, params, given))


def sample(name: str, batch: int, steps: int, changes: Mapping[str, Any] | None = None, **fields: Any) -> Work:
    """DDIM sampling with a network, with x donated."""
    module, params, given = _network(name, batch, changes, fields)
    solver = jax.eval_shape(lambda: _ddim(steps))

    def run(params: Any, solver: dfn.Solver, labels: Any, x: jax.Array) -> jax.Array:
        apply: Any = lambda params, x, t, cond: module.apply({"params": params}, x, t, labels)  # noqa: E731
        return dfn.sample(None, dfn.make_denoiser(apply, params, dfn.parameterizations.epsilon), solver, x).x0

    return Work(facts=lambda: facts(run, params, solver, given.labels, given.x, donate=(3,)))


def stable_diffusion(batch: int, steps: int, doubled: bool, dtype: str = "bfloat16") -> Work:
    """DDIM sampling with Stable Diffusion 1.5's UNet at 512 x 512 pixels and classifier-free guidance, with x donated.

    Args:
      batch: number of images.
      steps: number of sampler steps.
      doubled: whether one batch of twice the size holds both predictions, instead of two forward passes.
      dtype: dtype of parameters and computation.
    """
    module = dfn.backbones.UNet2DCondition.sd1(dtype=jnp.dtype(dtype), param_dtype=jnp.dtype(dtype))
    x = jax.ShapeDtypeStruct((batch, 64, 64, 4), jnp.float32)
    text = {"context": jax.ShapeDtypeStruct((batch, 77, 768), jnp.dtype(dtype))}
    t = jax.ShapeDtypeStruct((batch,), jnp.int32)
    params = jax.eval_shape(module.init, jax.random.key(0), x, t, text)["params"]
    solver = jax.eval_shape(lambda: _ddim(steps))

    def run(params: Any, solver: dfn.Solver, text: Any, null: Any, x: jax.Array) -> jax.Array:
        apply: Any = lambda params, x, t, cond: module.apply({"params": params}, x, t, cond)  # noqa: E731
        denoise = dfn.make_denoiser(apply, params, dfn.parameterizations.epsilon)
        guided = dfn.guidance.classifier_free(7.5, null, batched=doubled)(denoise)
        return dfn.sample(None, dfn.bind(guided, text), solver, x).x0

    return Work(facts=lambda: facts(run, params, solver, text, text, x, donate=(4,)))


def _ddim(steps: int) -> dfn.Solver:
    levels = dfn.grids.leading(schedule(), steps)
    return jax.tree.map(jnp.float32, solvers.ddim(levels))


def _network(
    name: str, batch: int, changes: Mapping[str, Any] | None, fields: Mapping[str, Any]
) -> tuple[nn.Module, Any, inputs.Inputs]:
    """Returns (module, shapes of the parameters, shapes of the inputs)."""
    family, config, shape, num_classes = networks.NETWORKS[name]
    types = {field: jnp.dtype(fields[field]) for field in ("dtype", "param_dtype") if field in fields}
    module = make_module(family, {**config, **(changes or {})}).copy(**{**fields, **types})
    drawn = inputs.draw((batch, *shape), num_classes)
    given = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), drawn)
    return module, jax.eval_shape(module.init, jax.random.key(0), given.x, given.t, given.labels)["params"], given
