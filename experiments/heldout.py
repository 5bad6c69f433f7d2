"""The loss on held-out examples during training, as a whole and by noise level."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

import diffusers_fn as dfn
from diffusers_fn.from_config.choices import choose
from diffusers_fn.from_config.model import make_model
from diffusers_fn.from_config.tables import Tables
from experiments import data, processes
from experiments.compilation import compile_now

__all__ = ["MAX_EXAMPLES", "LevelLoss", "level_loss", "make_heldout"]

MAX_EXAMPLES = 1_000  # that are scored, evenly spaced in the held-out data
NUM_BINS = 8  # of noise levels, equally many examples in each
_TABLES = Tables()

Loss = Callable[..., Any]  # (params, key, batch, extras, level) -> loss [B]


class LevelLoss(NamedTuple):
    """A training loss whose noise levels are given.

    Attributes:
      draw: (key, n) -> Level[n], the noise levels of training.
      loss: (params, key, batch, level) -> loss [B].
    """

    draw: Callable[[jax.Array, int], dfn.Level]
    loss: Callable[[Any, jax.Array, Mapping[str, jax.Array], dfn.Level], jax.Array]


def level_loss(config: ConfigDict, tables: Tables = _TABLES) -> LevelLoss | None:
    """Returns the loss at given noise levels; None unless the objective trains a denoiser, one level per example."""
    entry = choose("loss.objective", config.loss.objective, tables.objectives)
    if not entry.denoiser:
        return None
    inputs = make_model(config, tables).inputs

    def loss(params: Any, key: jax.Array, batch: Mapping[str, jax.Array], level: dfn.Level) -> jax.Array:
        at_level = inputs._replace(sample_level=lambda key, batch_size: level)
        per_example: jax.Array = entry.make(config.loss, at_level)(params, key, batch)[0]
        return per_example

    return LevelLoss(inputs.sample_level, loss)


def make_heldout(
    loss: Loss,
    by_level: LevelLoss | None,
    dataset: data.Dataset,
    batch_size: int,
    key: jax.Array,
    params: Any,
    extras: Any,
    mesh: jax.sharding.Mesh | None = None,
) -> Callable[[Any, Any, Callable[[], bool]], dict[str, float] | None]:
    """Returns score(params, extras, stopped) -> {"heldout_loss": the mean loss, ...}, None once stopped() is True.

    Its program is compiled at once, for the shapes of `params` and `extras`. The examples, noise and noise levels are
    the same each time. With `by_level` the noise levels of the n examples are n quantiles of the training distribution,
    so that both the mean and the means by noise level have little variance: these are "heldout_loss/log_snr_X" for
    eight ranges of equally many examples, X being the median log SNR of each.

    Args:
      loss: (params, key, batch) -> (loss [B], metrics), with extras as a fourth argument if there are any.
      by_level: the loss at given noise levels, in place of `loss`; or None.
      dataset: the held-out examples.
      batch_size: number of examples scored at once.
      key: of noise and noise levels.
      params, extras: arguments of the loss, of which only the shapes are used.
      mesh: over whose devices each batch is split, and of which each process reads its own rows; None: the default
        device.
    """
    n = min(len(dataset), MAX_EXAMPLES)
    chosen = np.linspace(0, len(dataset) - 1, n).round().astype(int)
    level_key, order_key, noise_key = jax.random.split(key, 3)
    keys = jax.random.split(noise_key, n)
    levels, ratio = (None, None) if by_level is None else _quantiles(by_level, level_key, order_key, n)

    rows = slice(0, batch_size) if mesh is None else processes.local_rows(batch_size, mesh)

    def batch_at(start: int) -> tuple[Any, Any, Any]:
        which = np.arange(start + rows.start, start + rows.stop) % n  # the last batch wraps around
        batch = {"image": data.float_images(dataset, chosen[which])}
        if dataset.labels is not None:
            batch["label"] = np.asarray(dataset.labels)[chosen[which]]
        if dataset.text is not None:
            batch["text"] = dataset.text[chosen[which]]
        found = keys[which], batch, jax.tree.map(lambda each: each[which], levels)
        placed: tuple[Any, Any, Any] = found if mesh is None else dfn.training.split_batch(found, mesh)
        return placed

    def score_batch(params: Any, extras: Any, batch: tuple[Any, Any, Any]) -> jax.Array:
        keys, examples, level = batch
        if by_level is not None:
            return by_level.loss(params, keys, examples, level)
        per_example: jax.Array = loss(params, keys, examples, *(() if extras is None else (extras,)))[0]
        return per_example

    run = compile_now("the held-out loss", jax.jit(score_batch), params, extras, batch_at(0))

    def score(params: Any, extras: Any, stopped: Callable[[], bool] = lambda: False) -> dict[str, float] | None:
        parts = []
        for start in range(0, n, batch_size):
            if stopped():
                return None
            parts.append(processes.gather(run(params, extras, batch_at(start))))
        losses = np.concatenate(parts)[:n].astype(np.float64)
        found = {"heldout_loss": float(losses.mean())}
        if ratio is not None:
            for members in _bins(ratio):
                found[f"heldout_loss/log_snr_{_log_snr(ratio[members]):+.2f}"] = float(losses[members].mean())
        return found

    return score


def _quantiles(by_level: LevelLoss, level_key: jax.Array, order_key: jax.Array, n: int) -> tuple[Any, Any]:
    """Returns n noise levels in random order, on the host: quantiles of the training distribution; sigma / alpha."""
    drawn = jax.device_get(jax.jit(by_level.draw, static_argnums=1)(level_key, 16 * n))
    with np.errstate(divide="ignore"):
        ratio = np.asarray(drawn.sigma, np.float64) / np.asarray(drawn.alpha, np.float64)
    middle = np.argsort(ratio, kind="stable")[8::16]  # of 16 neighbours each
    chosen = middle[np.asarray(jax.random.permutation(order_key, n))]
    return jax.tree.map(lambda each: np.broadcast_to(each, (16 * n,))[chosen], drawn), ratio[chosen]


def _bins(ratio: np.ndarray) -> list[np.ndarray]:
    """Returns the examples of each range of noise levels, from the least noise to the most."""
    if len(ratio) < NUM_BINS:
        return []
    return np.array_split(np.argsort(ratio, kind="stable"), NUM_BINS)


def _log_snr(ratio: Any) -> float:
    with np.errstate(divide="ignore"):
        return float(-2 * np.log(np.median(ratio)))
