"""The Gaussian with a diagonal covariance that an encoder returns, as mean and log-variance [B, ...].

Kingma and Welling, "Auto-Encoding Variational Bayes" (2013), https://arxiv.org/abs/1312.6114. Sums are over everything
but the batch axis B, in nats; they are taken in float32 or wider.
"""

import jax
import jax.numpy as jnp
import numpy as np

__all__ = ["LOGVAR_RANGE", "kl_to_standard_normal", "negative_log_likelihood", "reparameterize"]


def __dir__() -> list[str]:
    return __all__


LOGVAR_RANGE = (-30.0, 20.0)  # what encoders clip the log-variance to


def reparameterize(key: jax.Array, mean: jax.Array, logvar: jax.Array) -> jax.Array:
    """Returns z = mean + exp(logvar / 2) eps with eps ~ N(0, I): a draw that gradients pass through.

    >>> reparameterize(jax.random.key(0), jnp.ones([2, 3]), jnp.full([2, 3], -jnp.inf)).tolist()
    [[1.0, 1.0, 1.0], [1.0, 1.0, 1.0]]
    """
    return mean + jnp.exp(0.5 * logvar) * jax.random.normal(key, mean.shape, mean.dtype)


def kl_to_standard_normal(mean: jax.Array, logvar: jax.Array) -> jax.Array:
    """Returns KL(N(mean, exp(logvar)) || N(0, I)) [B], appendix B of the paper:

        1/2 sum (mean^2 + exp(logvar) - 1 - logvar)

    >>> kl_to_standard_normal(jnp.array([[0.0, 2.0]]), jnp.zeros([1, 2])).tolist()
    [2.0]
    """
    mean, logvar = _precise(mean, logvar)
    # expm1: exp(v) - 1 - v cancels near v = 0.
    return 0.5 * _sum(mean**2 + jnp.expm1(logvar) - logvar)


def negative_log_likelihood(z: jax.Array, mean: jax.Array, logvar: jax.Array) -> jax.Array:
    """Returns -log N(z; mean, exp(logvar)) [B]:

        1/2 sum (log(2 pi) + logvar + (z - mean)^2 exp(-logvar))

    >>> nll = negative_log_likelihood(jnp.zeros([1, 2]), jnp.zeros([1, 2]), jnp.zeros([1, 2]))
    >>> round(float(nll[0]), 4)  # log(2 pi)
    1.8379
    """
    z, mean, logvar = _precise(z, mean, logvar)
    return 0.5 * _sum(np.log(2 * np.pi) + logvar + (z - mean) ** 2 * jnp.exp(-logvar))


def _precise(*arrays: jax.Array) -> list[jax.Array]:
    return [array.astype(jnp.promote_types(array.dtype, jnp.float32)) for array in arrays]


def _sum(x: jax.Array) -> jax.Array:
    return x.sum(tuple(range(1, x.ndim)))
