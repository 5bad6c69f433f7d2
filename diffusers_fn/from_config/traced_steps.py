"""A sampler's plan for a number of steps that may be traced."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from diffusers_fn._arrays import check_count, concrete
from diffusers_fn._types import ArrayLike, Scan
from diffusers_fn.sampling import while_scan
from diffusers_fn.solvers import Solver, select, start_level

__all__ = ["TracedPlan", "make_traced_plan"]


class TracedPlan(NamedTuple):
    """A solver, the standard deviation of x at its first level for data of standard deviation 1, and its scan."""

    solver: Solver
    start_std: Any
    scan: Scan


def make_traced_plan(plan: Callable[..., Solver], default_steps: int, least: int = 1) -> Callable[..., TracedPlan]:
    """Returns (num_steps=None, eta=None, max_steps=None) -> TracedPlan; num_steps may be an array [], also traced.

    A number known before tracing makes its own plan, for `jax.lax.scan`. An array chooses among the plans of
    least ... max_steps steps, all of them computed on the host, and its loop runs the rows of the chosen one.

    Args:
      plan: (num_steps, eta) -> solver, from `make_plan`.
      default_steps: config.sampler.num_inference_steps; of num_steps and max_steps, where they are None.
      least: the smallest number of steps that the sampler has.

    Raises (the function returned):
      ValueError: if a number is not an integer of at least 1, num_steps (not traced) exceeds max_steps, or the sampler
        has no plan of max_steps steps or fewer.

    >>> from diffusers_fn import grids, solvers
    >>> traced = make_traced_plan(lambda num_steps, eta: solvers.ddim(grids.karras(num_steps)), 10)
    >>> traced(4).scan is jax.lax.scan, traced(jnp.array(4)).solver.rows.x0.shape
    (True, (10,))
    """

    def make(
        num_steps: ArrayLike | None = None, eta: ArrayLike | None = None, max_steps: int | None = None
    ) -> TracedPlan:
        most = default_steps if max_steps is None else max_steps
        check_count("max_inference_steps", most, least)
        if isinstance(num_steps, jax.Array):
            return _among(plan, num_steps, eta, least, most)
        steps = default_steps if num_steps is None else num_steps
        if max_steps is not None and steps > max_steps:
            raise ValueError(_beyond(steps, least, most))
        solver = plan(steps, eta)
        return TracedPlan(solver, float(_start_std(solver)), jax.lax.scan)

    return make


def _among(plan: Callable[..., Solver], num_steps: jax.Array, eta: Any, least: int, most: int) -> TracedPlan:
    """The plan of a number of steps in an array, among those of least ... most steps."""
    if num_steps.shape or not jnp.issubdtype(num_steps.dtype, jnp.integer):
        raise ValueError(
            f"num_inference_steps must be one integer; got an array {num_steps.dtype}{list(num_steps.shape)}"
        )
    known = concrete(num_steps)
    if known is not None and not least <= int(known) <= most:
        raise ValueError(_beyond(int(known), least, most))
    solvers = [plan(steps, eta) for steps in range(least, most + 1)]
    index = jnp.clip(num_steps.astype(jnp.int32), least, most) - least
    solver, num_rows = select(solvers, index)
    stds = jnp.asarray(np.stack([_start_std(each) for each in solvers]))
    return TracedPlan(solver, stds[index], while_scan(num_rows))


def _beyond(num_steps: Any, least: int, most: int) -> str:
    return (
        f"num_inference_steps must lie in {least} ... {most}; got {num_steps}: set max_inference_steps, by default "
        "config.sampler.num_inference_steps"
    )


def _start_std(solver: Solver) -> Any:
    level = start_level(solver)
    return np.sqrt(level.alpha**2 + level.sigma**2)[0]
