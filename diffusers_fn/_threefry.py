"""Private: the random bits of JAX's default generator, bit for bit, computed faster on CPUs.

Threefry-2x32-20: Salmon et al., "Parallel Random Numbers: As Easy as 1, 2, 3", 2011,
https://doi.org/10.1145/2063384.2063405. Number i is the counter (0, i), encrypted with the key in twenty rounds. On a
CPU, JAX runs the rounds as a loop over whole arrays, which are written to memory and read again in each iteration.
Here the rounds are unrolled, so that XLA fuses them into one vectorised loop.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
_PARITY = np.uint32(0x1BD11BDA)
_MANY = 64  # from this number of counters per key on, several cores are worth the cost of a sort


def faster(key: jax.Array) -> jax.Array:
    """Returns keys [...] that draw the same numbers in less time on CPUs, for keys [...] of JAX's default generator.

    Keys of other generators are returned unchanged. The implementation is chosen when a program is
    lowered: on other platforms than the CPU it is JAX's own.

    >>> key = jax.random.key(0)
    >>> bool(jnp.all(jax.random.bits(faster(key), (9,)) == jax.random.bits(key, (9,))))
    True
    """
    default = jnp.issubdtype(key.dtype, jax.dtypes.prng_key) and str(jax.random.key_impl(key)) == "threefry2x32"
    config: Any = jax.config
    if not default or not config.jax_threefry_partitionable:
        return key
    return jax.random.wrap_key_data(jax.random.key_data(key), impl=_generator())


@functools.cache
def _generator() -> Any:
    """Returns JAX's Threefry generator with `_bits` as its random bits on CPUs."""
    from jax.extend import random  # imported when noise is first drawn

    theirs = random.threefry_prng_impl

    def random_bits(key: jax.Array, bit_width: int, shape: tuple[int, ...]) -> jax.Array:
        def jaxs(key: jax.Array) -> jax.Array:
            bits = theirs.random_bits(key, bit_width, shape)
            return bits | (key[0] & np.uint32(0)).astype(bits.dtype)  # in shard_map, they vary over the key's mesh axes

        if not all(isinstance(size, int) for size in shape) or math.prod(shape) > 2**32:  # a counter of one word
            return jaxs(key)
        return jax.lax.platform_dependent(key, cpu=lambda key: _bits(key, bit_width, shape), default=jaxs)

    return random.define_prng_impl(
        key_shape=theirs.key_shape,
        seed=theirs.seed,
        split=theirs.split,
        random_bits=random_bits,
        fold_in=theirs.fold_in,
        name="threefry2x32_written_out",
        tag="fry_out",
    )


def _bits(key: jax.Array, bit_width: int, shape: tuple[int, ...]) -> jax.Array:
    """Returns the unsigned integers of 8, 16, 32 or 64 bits that JAX draws with jax_threefry_partitionable."""
    high, low = _rounds(key[0], key[1], jnp.arange(math.prod(shape), dtype=jnp.uint32))
    if bit_width == 64:
        both = (_kept(high).astype(jnp.uint64) << np.uint64(32)) | _kept(low).astype(jnp.uint64)
        return both.reshape(shape)
    return _kept(high ^ low).reshape(shape).astype(f"uint{bit_width}")


def _rounds(key_0: jax.Array, key_1: jax.Array, count: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns the two words of the encrypted counters (0, count)."""
    keys = (key_0, key_1, _xor(key_0, key_1, sort=count.size >= _MANY) ^ _PARITY)
    x, y = jnp.broadcast_to(keys[0], count.shape), count + keys[1]
    for group in range(5):
        for bits in _ROTATIONS[group % 2]:
            x = x + y
            y = (y << np.uint32(bits)) | (y >> np.uint32(32 - bits))
            y = x ^ y
        x, y = x + keys[(group + 1) % 3], y + keys[(group + 2) % 3] + np.uint32(group + 1)
    return x, y


def _xor(a: jax.Array, b: jax.Array, *, sort: bool) -> jax.Array:
    """Returns a ^ b; `sort` orders the two first: the same number, but XLA compiles a loop around it differently.

    JAX 0.12 compiles a loop of arithmetic alone, such as a sampler's, into one kernel on one core. A sort inside the
    loop prevents that, and the rounds of many counters run on all cores.
    """
    a, b = jax.lax.sort(jnp.stack([a, b])) if sort else (a, b)
    return a ^ b


def _kept(bits: jax.Array) -> jax.Array:
    """Returns the bits, written to memory so that XLA does not fuse the rounds into the computation that follows.

    Fused into a loop over pixels of three channels, for instance, the rounds would not be vectorised. XLA does not fuse
    across a loop of two iterations, which xors the bits with 0 and 1; `^ 1` undoes that.
    """
    return jax.lax.fori_loop(0, 2, lambda turn, bits: bits ^ turn.astype(jnp.uint32), bits) ^ np.uint32(1)
