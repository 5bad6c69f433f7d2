"""A session that changes every setting that should need no compilation, and counts compilations."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import jax
import jax.monitoring
import numpy as np
import optax

import diffusers_fn as dfn
from configs import ddpm_digits
from diffusers_fn import grids, solvers
from experiments.benchmarks.jax_samplers import schedule
from experiments.benchmarks.work import Work

__all__ = ["COMPILED", "count_compilations", "session"]

COMPILED = "/jax/core/compile/backend_compile_duration"  # recorded by JAX for every program


@contextmanager
def count_compilations() -> Iterator[list[float]]:
    """Collects the compilation time in seconds of each program that is compiled inside the `with` block.

    >>> with count_compilations() as seconds:
    ...     _ = jax.jit(lambda x: 3 * x + 7)(np.ones(5, np.float32))
    >>> len(seconds)
    1
    """
    seconds: list[float] = []
    counting = True

    def listen(event: str, duration_secs: float, **_: Any) -> None:
        if counting and event == COMPILED:
            seconds.append(duration_secs)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield seconds
    finally:
        counting = False  # JAX has no way to remove a single listener


def session(calls: int, batch: int, max_steps: int, backbone: Mapping[str, Any] | None = None) -> Work:
    """Samples from and trains the network for digits once, then `calls` more times with other settings.

    What changes: eta, the guidance scale, the number of steps (padded to `max_steps`), labels, keys and the contents
    of the batch. The facts are the numbers of compiled programs in the first call and in all later calls.

    Args:
      calls: number of later calls.
      batch: batch size.
      max_steps: largest number of sampler steps.
      backbone: fields of config.backbone to replace.
    """
    config = ddpm_digits.get_config()
    config.backbone.update(backbone or {})
    diffusion = dfn.build(config)
    shape, null, optimizer = (8, 8, 1), 10, optax.adam(1e-3)
    step = jax.jit(dfn.training.make_train_step(diffusion.loss, optimizer), donate_argnums=0)

    @jax.jit
    def sample(params: Any, key: jax.Array, solver: dfn.Solver, scale: Any, labels: Any) -> jax.Array:
        start_key, noise_key = jax.random.split(key)
        denoise = dfn.make_denoiser(diffusion.apply, params, dfn.parameterizations.epsilon)
        guided = dfn.bind(dfn.guidance.classifier_free(scale, null)(denoise), labels)
        return dfn.sample(noise_key, guided, solver, jax.random.normal(start_key, (batch, *shape))).x0

    def call(number: int, state: dfn.training.TrainState) -> dfn.training.TrainState:
        rng, key = np.random.default_rng(number), jax.random.key(number)
        levels = grids.uniform_log_snr(schedule(), max_steps - number % (max_steps - 1))
        plan = solvers.pad(solvers.ddim(levels, eta=np.asarray(number / calls)), max_steps)
        labels = rng.integers(0, null, batch).astype(np.int32)
        sample(state.params, key, plan, np.float32(1 + number), labels).block_until_ready()
        image = rng.uniform(-1, 1, (batch, *shape)).astype(np.float32)
        state, metrics = step(state, key, {"image": image, "label": labels})
        return jax.block_until_ready((state, metrics))[0]

    def facts() -> dict[str, int]:
        state = dfn.training.make_train_state(jax.jit(diffusion.init)(jax.random.key(0)), optimizer)
        with count_compilations() as first:
            state = call(0, state)
        with count_compilations() as later:
            for number in range(1, calls + 1):
                state = call(number, state)
        return {"programs_in_the_first_call": len(first), "later_calls": calls, "recompilations": len(later)}

    return Work(facts=facts)
