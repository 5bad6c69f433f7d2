"""Types of arguments and results that many modules share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

# A NumPy array (float64, on the host) or a JAX array; functions of levels return the type they are given.
Array = np.ndarray | jax.Array
# A number, or an array of them that may be traced.
ArrayLike = float | np.ndarray | np.number | jax.Array
# An array, or nested lists of numbers.
Numbers = ArrayLike | Sequence[ArrayLike] | Sequence[Sequence[ArrayLike]]
# jax.lax.scan, or a function like it: (body, init, xs) -> (carry, outputs).
Scan = Callable[[Callable[[Any, Any], tuple[Any, Any]], Any, Any], tuple[Any, Any]]
