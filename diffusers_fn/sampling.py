"""Running a solver: `sample`; `while_scan` for a traced number of steps, `python_scan` to look inside."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from diffusers_fn import _random
from diffusers_fn._arrays import check_data, concrete, working_dtype
from diffusers_fn.denoisers import Denoiser, check_pure_noise
from diffusers_fn.solvers.base import Solver, Step, linear_step


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
        batch split gives the same samples; not so with keys of "rbg" and "unsafe_rbg", of which JAX lets the first
        draw for the whole batch. May be None for a deterministic solver.
      denoise: the denoiser, its conditioning bound (see `bind`).
      solver: the plan, e.g. `solvers.ddim(levels)`.
      x: [B, ...] the state at the first level, e.g. levels.sigma[0] times standard normal noise.
      emit: Step -> pytree, collected over the rows; e.g. `lambda step: step.prediction.x0`.
      final_denoise: whether to end with x0_hat at the last level; False leaves the state there, noise and all.
      scan: jax.lax.scan; `while_scan(length)` for a traced number of rows; `python_scan` to step through.

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
    if hasattr(solver.rows, "level"):
        check_pure_noise(denoise, solver.rows.level, x)
    rows = jax.tree.map(lambda a: jnp.asarray(a, x.dtype), _weighed(solver))
    if not final_denoise:
        rows = jax.tree.map(lambda a: a[:-1], rows)
    if solver.stochastic and key is None:
        raise ValueError("this solver draws noise: pass a key (jax.random.key(seed)), or use eta = 0")
    # A row's key is known by how many rows are left, so that rows in front (see `solvers.pad`) change no noise.
    left = np.arange(jax.tree.leaves(rows)[0].shape[0], dtype=np.int32)[::-1]

    def body(state: Any, inputs: Any) -> tuple[Any, Any]:
        left, row = inputs
        row_key = None if key is None or not solver.stochastic else _random.fold_in(key, left)
        state, step = solver.step(row_key, denoise, state, row)
        return state, None if emit is None else emit(step)

    state, trace = scan(body, solver.init(x, rows), (left if solver.stochastic else None, rows))
    return Samples(state.x, trace)


def _weighed(solver: Solver) -> Any:
    """Returns the rows without the columns of states, where the host can read that they weigh none: as in DDIM."""
    rows = solver.rows
    if solver.step is linear_step and isinstance(rows.x, np.ndarray) and not rows.x.any():
        return dataclasses.replace(rows, x=rows.x[:, :0])
    return rows


def while_scan(length: Any) -> Callable[..., Any]:
    """Returns a scan that runs the last `length` entries alone, by a `while_loop`: `length` may be traced.

    With `solvers.pad`, one compiled sampler serves every number of steps and evaluates the network for real rows only.
    A while loop has no reverse-mode derivative; where that is wanted, leave `sample` its own scan, which evaluates
    the padding too. Entries that did not run are zero in the trace.

    Args:
      length: [] integer, how many entries at the end to run; a solver of R rows has R of them.

    Raises:
      ValueError: if a readable length is not in 1 ... the number of entries.

    >>> doubled = lambda carry, x: (carry + x, 2 * x)
    >>> while_scan(2)(doubled, jnp.array(0), jnp.arange(4))
    (Array(5, dtype=int32), Array([0, 0, 4, 6], dtype=int32))
    """

    def scan(body: Callable[[Any, Any], tuple[Any, Any]], init: Any, xs: Any) -> tuple[Any, Any]:
        total = jax.tree.leaves(xs)[0].shape[0]
        known = None if (value := concrete(length)) is None else int(value)
        if known is not None and not 1 <= known <= total:
            raise ValueError(f"length must lie in 1 ... {total}, the number of rows; got {known}")
        entry = lambda i: jax.tree.map(lambda a: jnp.asarray(a)[i], xs)  # noqa: E731
        _, shapes = jax.eval_shape(body, init, entry(0))

        def zeros(like: jax.ShapeDtypeStruct) -> jax.Array:
            """[total, ...] zeros, split over mesh axes or varying with them as the output is."""
            rows, split = jnp.broadcast_to(jnp.zeros_like(like), (total, *like.shape)), like.sharding
            if split is None or not split.mesh.explicit_axes:
                return rows
            return jax.sharding.reshard(rows, split.update(spec=PartitionSpec(None, *split.spec)))

        outputs = jax.tree.map(zeros, shapes)

        def step(i: Any, state: tuple[Any, Any]) -> tuple[Any, Any]:
            carry, outputs = state
            carry, output = body(carry, entry(i))
            put = functools.partial(jax.lax.dynamic_update_index_in_dim, index=i, axis=0)
            return carry, jax.tree.map(put, outputs, output)

        # Unsigned and small integers would wrap; a traced length above the number of rows is all of them.
        first = total - known if known is not None else jnp.maximum(total - jnp.asarray(length).astype(jnp.int32), 0)
        return jax.lax.fori_loop(first, total, step, (init, outputs))

    return scan


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
