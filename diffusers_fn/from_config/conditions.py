"""What a config's model is conditioned on: nothing, class labels, or texts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from diffusers_fn._arrays import concrete
from diffusers_fn.from_config.batches import check_labels
from diffusers_fn.from_config.choices import choose

__all__ = [
    "TEXT_KINDS",
    "Conditions",
    "TextKind",
    "check_texts",
    "make_conditions",
    "takes_text",
    "text_fields",
]

_BYTES = 257  # token ids of UTF-8 bytes: 0 is padding, byte b is b + 1


class Conditions(NamedTuple):
    """The condition of an example, which is an array [*S].

    Attributes:
      entry: of the batch that holds it.
      null: [*S], "no condition": the null class, or the empty text.
      check: (cond, batch_size, allow_null) -> cond as an array [*S] or [batch_size, *S]; raises ValueError.
    """

    entry: str
    null: np.ndarray
    check: Callable[[Any, int, bool], jax.Array]

    def broadcast(self, cond: Any, batch_size: int, *, allow_null: bool) -> jax.Array:
        """Returns a checked condition [*S] or [batch_size, *S] as [batch_size, *S]."""
        return jnp.broadcast_to(self.check(cond, batch_size, allow_null), (batch_size, *self.null.shape))


class TextKind(NamedTuple):
    """How config.text.kind turns a text into tokens.

    Attributes:
      vectors: whether tokens are given as vectors [text.vector_dim], and not as ids.
      vocab_size: of ids; None for text.vocab_size.
    """

    vectors: bool = False
    vocab_size: int | None = None


TEXT_KINDS = {
    "words": TextKind(),
    "bytes": TextKind(vocab_size=_BYTES),
    "table": TextKind(vectors=True),
    "encoder": TextKind(vectors=True),
}


def takes_text(config: ConfigDict) -> bool:
    """Returns whether the model of a config is conditioned on texts.

    Raises:
      ValueError: if config.text.kind is unknown.
    """
    kind = config.text.kind if "text" in config else "none"
    return kind != "none" and choose("text.kind", kind, {"none": None, **TEXT_KINDS}) is not None


def text_fields(config: ConfigDict) -> dict[str, Any] | None:
    """Returns the fields of `backbones.TextContext` that config.text sets; None without texts.

    Raises:
      ValueError: if a field has a value that is not allowed.
    """
    if not takes_text(config):
        return None
    text, kind = config.text, TEXT_KINDS[config.text.kind]
    for name, least in (("num_tokens", 1), ("vocab_size", 3), ("vector_dim", 1), ("depth", 0), ("num_heads", 1)):
        if text[name] < least:
            raise ValueError(f"config.text.{name} must be at least {least}; got {text[name]}")
    fields: dict[str, Any] = {name: text[name] for name in ("num_tokens", "depth", "num_heads")}
    if kind.vectors:
        return {**fields, "vector_dim": text.vector_dim}
    return {**fields, "vocab_size": kind.vocab_size or text.vocab_size}


def make_conditions(config: ConfigDict, num_classes: int) -> Conditions | None:
    """Returns what the model of a config is conditioned on; None for an unconditional model.

    Raises:
      ValueError: if it has both classes and texts.
    """
    fields = text_fields(config)
    if fields is not None and num_classes:
        raise ValueError(
            f"config.text.kind is {config.text.kind!r} and there are {num_classes} classes: a model has one kind of "
            "condition. Set data.num_classes to 0, or text.kind to 'none'"
        )
    if fields is not None:
        shape: tuple[int, ...] = (fields["num_tokens"],)
        size, vectors = fields.get("vocab_size"), fields.get("vector_dim")
        null = np.zeros(shape, np.int32) if vectors is None else np.zeros((*shape, vectors), np.float32)
        return Conditions("text", null, lambda cond, batch, allow_null: check_texts(cond, null.shape, batch, size))
    if not num_classes:
        return None
    return Conditions(
        "label",
        np.asarray(num_classes, np.int32),
        lambda cond, batch, allow_null: check_labels(cond, num_classes, batch, allow_null=allow_null),
    )


def check_texts(texts: Any, shape: tuple[int, ...], batch_size: int, vocab_size: int | None) -> jax.Array:
    """Returns the tokens of texts as an array [*shape] or [batch_size, *shape]: ids, or vectors without a vocabulary.

    Raises:
      ValueError: if they are missing, of another shape or type, or out of range where that can be read.

    >>> check_texts(np.array([[3, 0]]), (2,), batch_size=1, vocab_size=5)
    Array([[3, 0]], dtype=int32)
    """
    what = "token vectors" if vocab_size is None else "token ids"
    if texts is None:
        raise ValueError("this model is text-conditional (config.text.kind): the batch needs 'text'")
    array = jnp.asarray(texts) if hasattr(texts, "shape") else None
    kind = jnp.floating if vocab_size is None else jnp.integer
    if array is None or array.shape not in (shape, (batch_size, *shape)) or not jnp.issubdtype(array.dtype, kind):
        got = repr(texts) if array is None else f"{array.dtype} {array.shape}"
        raise ValueError(f"texts must be {what} of shape {shape} or {(batch_size, *shape)}; got {got}")
    values = concrete(array)
    if (
        vocab_size is not None
        and values is not None
        and values.size
        and not 0 <= values.min() <= values.max() < vocab_size
    ):
        raise ValueError(f"token ids must lie in [0, {vocab_size - 1}]; got {values.min()} to {values.max()}")
    return array
