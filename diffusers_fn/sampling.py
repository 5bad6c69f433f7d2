"""Running a solver: `sample`, with `while_scan` for a traced number of steps and `python_scan` for debugging."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, TypedDict

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from diffusers_fn import _random
from diffusers_fn._arrays import check_callable, check_data, concrete, working_dtype
from diffusers_fn._types import ArrayLike, Scan
from diffusers_fn.denoisers import Denoiser, check_pure_noise
from diffusers_fn.levels import Level
from diffusers_fn.parameterizations import Prediction
from diffusers_fn.solvers.base import Solver, Step, linear_step

__all__ = ["SampleOptions", "Samples", "check_solver", "python_scan", "sample", "while_scan"]


def __dir__() -> list[str]:
    return __all__


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Samples:
    """The result of a sampling run.

    Attributes:
      x0: [B, ...] the samples (the state at the last level if final_denoise is False).
      trace: the outputs of `emit`, stacked over the solver's R rows, [R, ...]; None without `emit`.
    """

    x0: jax.Array
    trace: Any = None


class SampleOptions(TypedDict, total=False):
    """Options of `sample` that other functions pass on."""

    emit: Callable[[Step], Any] | None
    final_denoise: bool
    scan: Scan


def sample(
    key: jax.Array | None,
    denoise: Denoiser,
    solver: Solver,
    x: jax.Array,
    *,
    emit: Callable[[Step], Any] | None = None,
    final_denoise: bool = True,
    scan: Scan = jax.lax.scan,
) -> Samples:
    """Returns samples: runs the solver from x in one scan over its rows (one row per network evaluation).

    The function is pure: jit it together with the construction of the solver, or pass solvers as arguments; solvers of
    equal shape share one compiled program. Without `emit`, memory does not grow with the number of steps.

    Args:
      key: one key, or [B] keys. With [B] keys the noise of an example depends on its own key alone, so every device
        layout and batch split gives the same samples (except that JAX draws the noise of the whole batch from the first
        of [B] "rbg" or "unsafe_rbg" keys). None is allowed for a deterministic solver.
      denoise: the denoiser, its conditioning bound (see `bind`).
      solver: the plan, e.g. `solvers.ddim(levels)`.
      x: [B, ...] the state at the first level, e.g. levels.sigma[0] times standard normal noise.
      emit: Step -> pytree, stacked over the rows in `Samples.trace`; e.g. `lambda step: step.prediction.x0`.
      final_denoise: True ends with x0_hat at the last level; False returns the noisy state at that level.
      scan: jax.lax.scan; `while_scan(length)` for a traced number of rows; `python_scan` for debugging.

    Raises:
      ValueError: if x has no floating dtype, denoise is not a denoiser, solver is not a Solver, the solver draws noise
        and key is not a key, or the plan has a level of pure noise (alpha = 0, not traced) and the network's
        parameterization does not determine x0 there.

    >>> import numpy as np
    >>> from diffusers_fn import grids, oracles, solvers
    >>> x = 80.0 * jax.random.normal(jax.random.key(0), (4, 2))
    >>> samples = sample(None, oracles.gaussian(3.0, 0.1), solvers.ddim(grids.karras(20)), x)
    >>> bool(jnp.all(jnp.abs(samples.x0 - 3.0) < 0.5))
    True
    """
    check_data(x=x)
    check_solver(solver)
    if emit is not None:
        check_callable("emit", emit, "lambda step: step.prediction.x0")
    denoise = _checked(denoise)
    if solver.stochastic and key is None:
        raise ValueError("this solver draws noise: pass a key (jax.random.key(seed)), or use eta = 0")
    if solver.stochastic and key is not None:
        _random.is_batched(key)
    x = jnp.asarray(x, working_dtype(x))
    if hasattr(solver.rows, "level"):
        levels = solver.rows.level
        check_pure_noise(denoise, levels if final_denoise else levels[:-1], x)
    rows = jax.tree.map(lambda a: jnp.asarray(a, x.dtype), _without_zero_columns(solver))
    if not final_denoise:
        rows = jax.tree.map(lambda a: a[:-1], rows)
    # Keys are folded with the number of rows that remain, so that padding in front (`solvers.pad`) changes no noise.
    remaining = np.arange(jax.tree.leaves(rows)[0].shape[0], dtype=np.int32)[::-1]

    def body(state: Any, inputs: Any) -> tuple[Any, Any]:
        remaining, row = inputs
        row_key = None if key is None or not solver.stochastic else _random.fold_in(key, remaining)
        state, step = solver.step(row_key, denoise, state, row)
        return state, None if emit is None else emit(step)

    state, trace = scan(body, solver.init(x, rows), (remaining if solver.stochastic else None, rows))
    return Samples(state.x, trace)


def check_solver(solver: object) -> None:
    """Raises ValueError unless the value is a Solver.

    >>> from diffusers_fn import solvers
    >>> check_solver(solvers.ddim)
    Traceback (most recent call last):
    ...
    ValueError: solver must be a Solver; got the function ddim: call it with the levels, ddim(levels)
    """
    if isinstance(solver, Solver):
        return
    if callable(solver):
        name = getattr(solver, "__name__", "make")
        given = f"the function {name}: call it with the levels, {name}(levels)"
    elif isinstance(solver, Level):
        given = "levels: make a solver of them, such as solvers.ddim(levels)"
    else:
        given = f"{type(solver).__name__}: make one of the levels, such as solvers.ddim(levels)"
    raise ValueError(f"solver must be a Solver; got {given}")


def _checked(denoise: Denoiser) -> Denoiser:
    """Returns the denoiser, with a check of what it returns."""
    check_callable("denoise", denoise, "make_denoiser(apply, params, epsilon)")

    def checked(x: jax.Array, level: Level, *arguments: Any, **options: Any) -> Prediction:
        try:
            result = denoise(x, level, *arguments, **options)
        except TypeError as error:
            if "positional argument" not in str(error):
                raise
            raise ValueError(
                f"denoise is called as denoise(x, level), its conditioning bound: {error}. Make a denoiser of a "
                "network by make_denoiser(apply, params, parameterization), and bind a condition by bind(denoise, cond)"
            ) from error
        prediction = result[0] if isinstance(result, tuple) and result else result  # (prediction, memory)
        if not (hasattr(prediction, "x0") and hasattr(prediction, "eps")):
            raise ValueError(
                f"denoise must return a Prediction(x0, eps); got {type(prediction).__name__}: make a denoiser of a "
                "network by make_denoiser(apply, params, parameterization)"
            )
        if jnp.shape(prediction.x0) != x.shape:
            raise ValueError(f"denoise must predict x0 in x's shape, {x.shape}; got {jnp.shape(prediction.x0)}")
        return result

    return checked


def _without_zero_columns(solver: Solver) -> Any:
    """Returns the rows without their weights of earlier states if those are zeros on the host, as in DDIM's table."""
    rows = solver.rows
    if solver.step is linear_step and isinstance(rows.x, np.ndarray) and not rows.x.any():
        return dataclasses.replace(rows, x=rows.x[:, :0])
    return rows


def while_scan(length: ArrayLike) -> Scan:
    """Returns a scan function that runs the last `length` rows alone, in a `while_loop`; `length` may be traced.

    With `solvers.pad`, one compiled sampler serves every number of steps and evaluates the network for the real rows
    only. A while loop has no reverse-mode derivative: to differentiate, use the default `scan` of `sample`, which
    evaluates the padding too. In the trace, rows that did not run are zeros.

    Args:
      length: [] integer, the number of rows at the end to run.

    Raises:
      ValueError: when the scan is called, if length (not traced) is not in 1 ... the number of rows.

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
            """Returns zeros [total, ...], sharded over mesh axes as the output is."""
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

        # Cast first: unsigned and small integers would wrap. A traced length beyond the number of rows runs them all.
        first = total - known if known is not None else jnp.maximum(total - jnp.asarray(length).astype(jnp.int32), 0)
        return jax.lax.fori_loop(first, total, step, (init, outputs))

    return scan


def python_scan(body: Callable[[Any, Any], tuple[Any, Any]], init: Any, xs: Any) -> tuple[Any, Any]:
    """Returns the result of `jax.lax.scan(body, init, xs)`, computed in a Python loop: for printing and debuggers.

    >>> python_scan(lambda carry, x: (carry + x, carry), jnp.array(0), jnp.arange(4))
    (Array(6, dtype=int32), Array([0, 0, 1, 3], dtype=int32))
    """
    length = jax.tree.leaves(xs)[0].shape[0]
    if length == 0:
        return jax.lax.scan(body, init, xs)  # scan finds the output shapes without running the body
    carry, outputs = init, []
    for i in range(length):
        carry, output = body(carry, jax.tree.map(lambda a, i=i: a[i], xs))
        outputs.append(output)
    return carry, jax.tree.map(lambda *ys: jnp.stack(ys), *outputs)
