"""Running a solver: `sample` down the noise levels, `invert` up them, `python_scan` to look inside."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from diffusers_fn import _random
from diffusers_fn._arrays import check_data, concrete, expand, namespace, working_dtype
from diffusers_fn.denoisers import Denoiser
from diffusers_fn.levels import Level
from diffusers_fn.solvers.base import Solver, Step, check_plan, linear_solver


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Samples:
    """What a sampling run returns.

    Attributes:
      x0: [B, ...] the samples (the state at the last level when final_denoise is False).
      trace: what `emit` returned, stacked over the rows [R, ...]; None when nothing was asked for.
    """

    x0: jax.Array
    trace: Any = None


def sample(
    key: jax.Array | None,
    denoise: Denoiser,
    solver: Solver,
    x: jax.Array,
    *,
    emit: Callable[[Step], Any] | None = None,
    final_denoise: bool = True,
    scan: Callable[..., Any] = jax.lax.scan,
) -> Samples:
    """Returns samples: the solver's rows run from x, in one scan.

    Pure: jit it together with what builds the solver, or pass solvers as arguments; those of equal shape share
    one compiled program. Memory does not grow with the number of steps unless `emit` asks for something.

    Args:
      key: one key, or [B] keys: then an example's noise depends on its own key alone, and every device layout and
        batch split gives the same samples. May be None for a deterministic solver.
      denoise: the denoiser, its conditioning bound (see `bind`).
      solver: the plan, e.g. `solvers.ddim(levels)`.
      x: [B, ...] the state at the first level, e.g. levels.sigma[0] times standard normal noise.
      emit: Step -> pytree, collected over the rows; e.g. `lambda step: step.prediction.x0`.
      final_denoise: whether to end with x0_hat at the last level; False leaves the state there, noise and all.
      scan: jax.lax.scan, or `python_scan` to step through with a debugger.

    Raises:
      ValueError: if x is not of floating type, the solver draws noise and key is None, or a readable plan has a level
        of pure noise (alpha = 0) where the network's parameterization does not tell x0.

    >>> import numpy as np
    >>> from diffusers_fn import grids, oracles, solvers
    >>> x = 80.0 * jax.random.normal(jax.random.key(0), (4, 2))
    >>> samples = sample(None, oracles.gaussian(3.0, 0.1), solvers.ddim(grids.karras(20)), x)
    >>> bool(jnp.all(jnp.abs(samples.x0 - 3.0) < 0.5))
    True
    """
    check_data(x=x)
    x = jnp.asarray(x, working_dtype(x))
    _check_pure_noise(denoise, solver, x)
    rows = jax.tree.map(lambda a: jnp.asarray(a, x.dtype), solver.rows)
    if not final_denoise:
        rows = jax.tree.map(lambda a: a[:-1], rows)
    keys = None
    if solver.stochastic:
        if key is None:
            raise ValueError("this solver draws noise: pass a key (jax.random.key(seed)), or use eta = 0")
        keys = _random.split(key, jax.tree.leaves(rows)[0].shape[0])

    def body(state: Any, inputs: Any) -> tuple[Any, Any]:
        row_key, row = inputs
        state, step = solver.step(row_key, denoise, state, row)
        return state, None if emit is None else emit(step)

    state, trace = scan(body, solver.init(x, rows), (keys, rows))
    return Samples(state.x, trace)


def invert(denoise: Denoiser, levels: Level, x0: jax.Array, *, scan: Callable[..., Any] = jax.lax.scan) -> jax.Array:
    """Returns x at levels[0], the noise that `sample` with `solvers.ddim(levels)` turns back into x0.

    The deterministic DDIM step taken upwards (Song et al. 2021, https://arxiv.org/abs/2010.02502, eq. 14), with
    one evaluation a level: x at the last level is alpha x0 + sigma eps_hat(alpha x0), and every hop keeps
    (x0_hat, eps_hat). The round trip's error falls with the first power of the step. Nothing is clipped.

    Args:
      denoise: the denoiser, its conditioning bound, without clipping or thresholding.
      levels: Level[N], the plan of the sampler, noisiest first.
      x0: [B, ...] clean data.
      scan: as for `sample`.

    Raises:
      ValueError: if levels are no plan or x0 is not of floating type.

    >>> from diffusers_fn import grids, oracles, solvers
    >>> denoise, levels = oracles.gaussian(0.0, 1.0), grids.karras(200)
    >>> x = invert(denoise, levels, jnp.full((1, 2), 0.5))
    >>> sample(None, denoise, solvers.ddim(levels), x).x0.round(1)
    Array([[0.5, 0.5]], dtype=float32)
    """
    check_plan(levels)
    check_data(x0=x0)
    xp = namespace(levels)
    to = jax.tree.map(lambda a: a[::-1], levels)
    frm = jax.tree.map(lambda a: xp.concatenate([a[:1], a]), to)  # row 0 evaluates where it arrives
    # Row 0 adds the noise of the last level to alpha x0; the others are DDIM hops x0_hat, eps_hat -> x.
    first = xp.concatenate([xp.ones_like(to.alpha[:1]), xp.zeros_like(to.alpha[1:])])
    solver = linear_solver(frm, x=[first], x0=(1.0 - first) * to.alpha, eps=to.sigma)
    x = expand(to.alpha[0], x0) * x0
    return sample(None, denoise, solver, x, final_denoise=False, scan=scan).x0


def python_scan(body: Callable[[Any, Any], tuple[Any, Any]], init: Any, xs: Any) -> tuple[Any, Any]:
    """Returns what `jax.lax.scan(body, init, xs)` does, by a Python loop: print, step through, catch a NaN.

    >>> python_scan(lambda carry, x: (carry + x, carry), jnp.array(0), jnp.arange(4))
    (Array(6, dtype=int32), Array([0, 0, 1, 3], dtype=int32))
    """
    length = jax.tree.leaves(xs)[0].shape[0]
    if length == 0:
        return jax.lax.scan(body, init, xs)  # knows the shapes of nothing
    carry, outputs = init, []
    for i in range(length):
        carry, output = body(carry, jax.tree.map(lambda a, i=i: a[i], xs))
        outputs.append(output)
    return carry, jax.tree.map(lambda *ys: jnp.stack(ys), *outputs)


def _check_pure_noise(denoise: Denoiser, solver: Solver, x: jax.Array) -> None:
    """Lets the denoiser see a level with alpha = 0 while its numbers can be read: in the scan they are traced."""
    level = getattr(solver.rows, "level", None)
    alpha = None if level is None else concrete(level.alpha)
    if alpha is not None and np.any(alpha == 0):
        row = int(np.argmax((alpha == 0).reshape(alpha.shape[0], -1).any(axis=1)))
        pure = jax.tree.map(lambda a: np.asarray(a)[row], level)
        jax.eval_shape(lambda x: denoise(x, pure), x)
