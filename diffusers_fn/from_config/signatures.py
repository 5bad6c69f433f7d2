"""Types of a config and of the functions that `build` makes from it, for type checkers and readers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import jax

from diffusers_fn._types import ArrayLike
from diffusers_fn.denoisers import Denoiser, Transform
from diffusers_fn.levels import Level
from diffusers_fn.sampling import Samples
from diffusers_fn.solvers import Step

__all__ = ["Apply", "BatchLoss", "Config", "Invert", "LossWithExtras", "MakeDenoiser", "Sample", "Score"]


class Config(Protocol):
    """What is used of ml_collections.ConfigDict, which has no type hints of its own."""

    def __getattr__(self, name: str) -> Any: ...
    def __setattr__(self, name: str, value: Any) -> None: ...
    def __getitem__(self, key: str) -> Any: ...
    def __setitem__(self, key: str, value: Any) -> None: ...
    def __iter__(self) -> Iterator[str]: ...
    def __contains__(self, key: object) -> bool: ...
    def lock(self) -> Any: ...
    def to_dict(self) -> dict[str, Any]: ...


class Apply(Protocol):
    """A network as a function of its parameters."""

    def __call__(
        self,
        params: Any,
        x: jax.Array,
        t: ArrayLike,
        cond: Any = None,
        *,
        x0: jax.Array | None = None,
        key: jax.Array | None = None,
        train: bool = False,
    ) -> jax.Array:
        """Returns the network output, see `Diffusion.apply`."""
        ...


class BatchLoss(Protocol):
    """A training loss of a batch of arrays."""

    def __call__(self, params: Any, key: jax.Array, batch: Mapping[str, Any]) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Returns (loss [B], metrics [B])."""
        ...


class LossWithExtras(Protocol):
    """A training loss of a batch of arrays, which may need more than the parameters."""

    def __call__(
        self, params: Any, key: jax.Array, batch: Mapping[str, Any], extras: Any = ...
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Returns (loss [B], metrics [B]), see `Diffusion.loss`."""
        ...


class Sample(Protocol):
    """A sampler of a built model."""

    def __call__(
        self,
        params: Any,
        key: jax.Array,
        num_samples: int,
        *,
        cond: Any = None,
        guidance_scale: ArrayLike | None = None,
        eta: ArrayLike | None = None,
        num_inference_steps: ArrayLike | None = None,
        max_inference_steps: int | None = None,
        emit: Callable[[Step], Any] | None = None,
        transform: Transform | None = None,
        shape: Sequence[int] | None = None,
        x: jax.Array | None = None,
    ) -> Samples:
        """Returns samples, see `Diffusion.sample`."""
        ...


class Score(Protocol):
    """The score of a built model."""

    def __call__(self, params: Any, x: jax.Array, level: Level | ArrayLike, cond: Any = None) -> jax.Array:
        """Returns the score [B, ...] of noisy data, see `Diffusion.score`."""
        ...


class Invert(Protocol):
    """The inversion of a built model's sampler."""

    def __call__(
        self, params: Any, x0: jax.Array, *, cond: Any = None, num_inference_steps: int | None = None, refine: int = 0
    ) -> jax.Array:
        """Returns the state [B, ...] at the first level, see `Diffusion.invert`."""
        ...


class MakeDenoiser(Protocol):
    """The denoiser of a built model as a function of its parameters."""

    def __call__(self, params: Any, cond: Any = None) -> Denoiser:
        """Returns the denoiser, with the condition bound."""
        ...
