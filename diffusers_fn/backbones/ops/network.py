"""Base classes of the networks and their parts: the fields that all have in common."""

from __future__ import annotations

import contextvars
import functools
import inspect
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

__all__ = ["ConvNetwork", "Module", "native_convolutions"]


class Module(nn.Module, kw_only=True):
    """A linen module with dtypes, which it gives to its layers as `**self.types`.

    Fields:
      dtype: of the computation. Normalisation statistics, the softmax, and the embeddings of time and class stay in
        float32 or wider.
      param_dtype: of the parameters.

    >>> Module(dtype=jnp.bfloat16).types["dtype"].__name__
    'bfloat16'
    """

    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @property
    def types(self) -> dict[str, Any]:
        """The dtypes, as arguments of a layer."""
        return {"dtype": self.dtype, "param_dtype": self.param_dtype}

    @property
    def precise_dtype(self) -> Any:
        """The dtype of the embeddings of time and class: float32 or wider."""
        return jnp.promote_types(self.dtype, jnp.float32)

    @property
    def precise_types(self) -> dict[str, Any]:
        """The dtypes of the embeddings of time and class, as arguments of a layer."""
        return {"dtype": self.precise_dtype, "param_dtype": self.param_dtype}


_native = contextvars.ContextVar("native_convolutions", default=False)


class ConvNetwork(Module, kw_only=True):
    """A `Module` that decides how the convolutions inside it are computed on a CPU.

    Its public methods read the field when they are traced. It is part of the module, so that programs compiled for
    one choice are not used for the other.

    Fields:
      native_conv: use XLA's convolution on a CPU, too, where matrix products are faster; see `conv.conv2d`.

    >>> class Net(ConvNetwork):
    ...     def __call__(self):
    ...         return native_convolutions()
    >>> Net(native_conv=True).apply({}), native_convolutions()
    (True, False)
    """

    native_conv: bool = False

    def __init_subclass__(cls, **kwargs: Any) -> None:
        fields = inspect.get_annotations(cls)
        for name, value in list(vars(cls).items()):
            public = name == "__call__" or not (name.startswith("_") or name in fields or name == "setup")
            if public and inspect.isfunction(value):
                setattr(cls, name, _with_own_convolutions(value))
        super().__init_subclass__(**kwargs)


def native_convolutions() -> bool:
    """Returns whether the network that is being traced has native_conv set.

    >>> native_convolutions()
    False
    """
    return _native.get()


def _with_own_convolutions(method: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(method)
    def call(self: ConvNetwork, *args: Any, **kwargs: Any) -> Any:
        token = _native.set(self.native_conv)
        try:
            return method(self, *args, **kwargs)
        finally:
            _native.reset(token)

    return call
