"""Embeddings of time labels and class labels.

B is the batch size. A label is one number for the whole batch ([]) or one per example ([B]).
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from diffusers_fn.backbones import ops

__all__ = [
    "EmbeddingMLP",
    "FourierFeatures",
    "LabelEmbedding",
    "class_labels",
    "dense_init",
    "signed_log",
    "sinusoidal_features",
    "time_labels",
    "two_scale_features",
]


def sinusoidal_features(
    t: jax.Array,
    dim: int,
    *,
    max_period: float = 10_000.0,
    freq_shift: float = 0.0,
    cos_first: bool = False,
) -> jax.Array:
    """Returns [B, dim] sines and cosines of the labels t [B] at geometrically spaced frequencies.

    With h = dim / 2 and k = 0 .. h - 1,

        omega_k = max_period ** (-k / (h - freq_shift)),      features = [sin(t omega), cos(t omega)]

    Vaswani et al., "Attention Is All You Need" (2017), https://arxiv.org/abs/1706.03762, section 3.5. The
    DDPM code takes freq_shift = 1 (the last period is then max_period exactly) and sines first; the ADM code
    takes freq_shift = 0 and cosines first. The result has t's float dtype, and is never narrower than
    float32.

    Raises ValueError if dim is odd or too small for freq_shift, or t is not [B].

    >>> sinusoidal_features(jnp.array([0.0, 1.0]), 4).shape
    (2, 4)
    """
    half = dim // 2
    if dim % 2 or half <= freq_shift:
        raise ValueError(f"dim must be even and dim / 2 greater than freq_shift={freq_shift}; got dim={dim}")
    if t.ndim != 1:
        raise ValueError(f"t must have shape [B]; got {t.shape}")
    dtype = jnp.promote_types(t.dtype, jnp.float32)
    frequencies = np.exp(-np.log(max_period) * np.arange(half) / (half - freq_shift))
    angles = t.astype(dtype)[:, None] * jnp.asarray(frequencies, dtype)[None, :]
    parts = [jnp.sin(angles), jnp.cos(angles)]
    return jnp.concatenate(parts[::-1] if cos_first else parts, axis=-1)


class FourierFeatures(ops.Module):
    """Computes [B, dim] sines and cosines of labels t [B] at fixed random frequencies w.

        w ~ scale N(0, 1),      features = [sin(2 pi w t), cos(2 pi w t)]

    Tancik et al., "Fourier Features Let Networks Learn High Frequency Functions" (2020),
    https://arxiv.org/abs/2006.10739; with scale 16 and the logarithm of sigma for t in Song et al., "Score-Based
    Generative Modeling through Stochastic Differential Equations" (2021), https://arxiv.org/abs/2011.13456. The
    frequencies are among the parameters, because a network needs those it was trained with, but they have no gradient:
    exclude them from weight decay. Raises ValueError if dim is odd.

    >>> features = FourierFeatures(dim=8)
    >>> jax.eval_shape(features.init, jax.random.key(0), jnp.ones([3]))["params"]["frequencies"].shape
    (4,)
    """

    dim: int
    scale: float = 16.0

    @nn.compact
    def __call__(self, t: jax.Array) -> jax.Array:
        if self.dim < 2 or self.dim % 2:
            raise ValueError(f"dim must be even; got dim={self.dim}")
        init = nn.initializers.normal(self.scale)
        frequencies = jax.lax.stop_gradient(self.param("frequencies", init, (self.dim // 2,), self.param_dtype))
        angles = 2 * np.pi * t.astype(self.dtype)[:, None] * frequencies.astype(self.dtype)[None, :]
        return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)


def two_scale_features(labels: jax.Array, dim: int) -> jax.Array:
    """Returns sinusoids of labels [B] and of their signed logarithms, [B, dim]: for steps, sigmas or log sigmas.

    >>> two_scale_features(jnp.zeros(2), 8).shape
    (2, 8)
    """
    each = (labels, signed_log(labels))
    return jnp.concatenate([sinusoidal_features(values, dim // 2) for values in each], axis=-1)


def signed_log(t: jax.Array, unit: float = 1e-3) -> jax.Array:
    """Returns asinh(t / unit): about t / unit below the unit, about sign(t) log(2 |t| / unit) above it.

    Sigmas of 0.002 and 0.004 have nearly the same sines if the shortest period is 2 pi. Here they are as far
    apart as 40 and 80 are, so a network that receives both t and this can use t of any scale.

    >>> [round(float(v), 2) for v in signed_log(jnp.array([-40.0, 0.0, 40.0, 80.0]))]
    [-11.29, 0.0, 11.29, 11.98]
    """
    return jnp.arcsinh(t / unit)


class LabelEmbedding(ops.Module):
    """Computes Dense(silu(Dense(features))) + table[cond], [B, dim], from time features [B, F].

    Ho et al., "Denoising Diffusion Probabilistic Models" (2020), https://arxiv.org/abs/2006.11239, appendix
    B, for the time part. The class part is added as in Dhariwal and Nichol, "Diffusion Models Beat GANs on
    Image Synthesis" (2021), https://arxiv.org/abs/2105.05233. The table has num_classes + 1 rows; the last
    one, with index num_classes, is the null class of classifier-free guidance, which `cond=None` selects.
    Without null_class there is no such row, and cond must be given. Traced labels cannot be checked: one outside
    the table gives NaN, not a wrong class.

    Raises ValueError for labels that are not integers, of a shape other than [] or [B], visibly out of range,
    or given to a network without classes.

    >>> embed = LabelEmbedding(dim=16, num_classes=10)
    >>> params = jax.eval_shape(embed.init, jax.random.key(0), jnp.zeros([3, 8]), None)["params"]
    >>> params["class_table"]["embedding"].shape
    (11, 16)
    """

    dim: int
    num_classes: int | None = None
    null_class: bool = True

    @nn.compact
    def __call__(self, features: jax.Array, cond: jax.Array | int | None) -> jax.Array:
        labels = class_labels(cond, self.num_classes, features.shape[0], null_class=self.null_class)
        dense: Callable[..., Any] = functools.partial(ops.Dense, self.dim, kernel_init=dense_init, **self.types)
        emb = dense(name="time_1")(ops.silu(dense(name="time_0")(features)))
        if labels is None or self.num_classes is None:
            return emb
        rows, init = self.num_classes + self.null_class, nn.initializers.normal(1.0)
        table = ops.Embed(rows, self.dim, embedding_init=init, name="class_table", **self.types)
        return emb + table(labels)


class EmbeddingMLP(ops.Module):
    """Computes Dense(activation(Dense(features))): [B, F] -> [B, dim].

    >>> mlp = EmbeddingMLP(16)
    >>> jax.eval_shape(mlp.init_with_output, jax.random.key(0), jnp.ones([2, 8]))[0].shape
    (2, 16)
    """

    dim: int
    activation: ops.Activation = "silu"

    @nn.compact
    def __call__(self, features: jax.Array) -> jax.Array:
        dense: Callable[..., Any] = functools.partial(ops.Dense, self.dim, kernel_init=dense_init, **self.types)
        activation = ops.lazily(ops.activation(self.activation))
        return dense(name="dense_1")(activation(dense(name="dense_0")(features)))


dense_init = nn.initializers.variance_scaling(
    1.0, "fan_avg", "uniform"
)  # DDPM's, for every layer but those that start at zero


def class_labels(cond: Any, num_classes: int | None, batch: int, *, null_class: bool = True) -> jax.Array | None:
    """Returns int labels [B] for cond None, [] or [B]; None for a network without classes.

    cond=None is the label num_classes, the null class; without null_class it raises. Raises ValueError as
    `LabelEmbedding` does.

    >>> class_labels(None, 10, 3).tolist(), class_labels(4, 10, 3).tolist()
    ([10, 10, 10], [4, 4, 4])
    """
    if num_classes is None:
        if cond is not None:
            raise ValueError("this network has no classes (num_classes=None), so cond must be None")
        return None
    if num_classes < 1:
        raise ValueError(f"num_classes must be None or at least 1; got {num_classes}")
    if cond is None and not null_class:
        raise ValueError(f"this network has no null class: cond must hold class labels in 0 .. {num_classes - 1}")
    cond = num_classes if cond is None else cond
    last = num_classes if null_class else num_classes - 1
    labels = jnp.asarray(cond)
    if not jnp.issubdtype(labels.dtype, jnp.integer):
        raise ValueError(f"cond must hold integer class labels; got dtype {labels.dtype}")
    if labels.shape not in ((), (batch,)):
        raise ValueError(f"cond must have shape [] or [{batch}]; got {list(labels.shape)}")
    if isinstance(cond, int | np.integer | np.ndarray) and np.any((np.asarray(cond) < 0) | (np.asarray(cond) > last)):
        note = f" ({num_classes} is the null class)" if null_class else ""
        raise ValueError(f"class labels must lie in 0 .. {last}{note}; got {cond}")
    # Traced labels cannot be checked. One past the end gives NaN; a negative one must not count from the end.
    labels = labels.astype(jnp.result_type(int))  # a narrow type may not hold num_classes
    labels = jnp.where(labels < 0, num_classes + 1, labels)
    return jnp.broadcast_to(labels, (batch,))


def time_labels(t: Any, batch: int, dtype: Any) -> jax.Array:
    """Returns float labels [B] for integer or float t of shape [] or [B]; ValueError for any other shape.

    >>> time_labels(7, 3, jnp.float32).tolist()
    [7.0, 7.0, 7.0]
    """
    labels = jnp.asarray(t)
    if labels.shape not in ((), (batch,)):
        raise ValueError(f"t must have shape [] or [{batch}]; got {list(labels.shape)}")
    return jnp.broadcast_to(labels.astype(dtype), (batch,))
