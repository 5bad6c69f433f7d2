"""Checks the conditioning arrays of a text-conditioned network before tracing: their names and shapes.

B is the batch size.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

__all__ = ["add_residuals", "check_shapes", "checked", "named", "num_tokens", "table_rows"]


def checked(cond: Mapping[str, Any] | None, net: Any, batch: int, own: Mapping[str, bool]) -> dict[str, Any]:
    """Returns the conditioning of a `TextConditioned` network for B = batch as a dict, without entries that are None.

    own: what this kind of network takes besides, {name: whether it is required}.

    Raises ValueError for arrays that are missing, unknown or of a wrong shape, with those that the network takes.

    >>> from diffusers_fn.backbones import UNet2DCondition
    >>> net = UNet2DCondition(channel_multipliers=(1,), transformer_depths=(0,), mid_depth=None)
    >>> checked({"extra": 1, "other": None}, net, 2, {"extra": False, "other": False})
    {'extra': 1}
    """
    found = named(cond, {**_takes(net), **own})
    check_shapes(found, _shapes(found, net, batch))
    return found


def named(cond: Mapping[str, Any] | None, takes: Mapping[str, bool]) -> dict[str, Any]:
    """Returns the conditioning as a dict, without entries that are None. takes: {name: whether it is required}.

    Raises ValueError for arrays that are missing or unknown, with those that the network takes.

    >>> named({"context": 1, "guidance": None}, {"context": True, "guidance": False})
    {'context': 1}
    """
    cond = {} if cond is None else cond
    if not isinstance(cond, Mapping):
        raise ValueError(f"cond must be a dict of arrays; got {type(cond).__name__}")
    missing = [name for name, needed in takes.items() if needed and cond.get(name) is None]
    unknown = sorted(set(cond) - set(takes))
    if missing or unknown:
        raise ValueError(
            f"cond must hold {[name for name, needed in takes.items() if needed]} and may hold "
            f"{[name for name, needed in takes.items() if not needed]}; missing {missing}, unknown {unknown}"
        )
    return {name: value for name, value in cond.items() if value is not None}


def check_shapes(cond: Mapping[str, Any], shapes: Mapping[str, tuple[Any, ...]]) -> None:
    """Raises ValueError for an array of the conditioning that has not its shape; a letter in it is any length.

    >>> check_shapes({"context": jnp.zeros([2, 77, 768])}, {"context": (2, 77, 768)})
    """
    for name, shape in shapes.items():
        if name in cond and cond[name].shape != shape:
            listed = ", ".join(str(size) for size in shape)
            raise ValueError(f"cond[{name!r}] must have shape [{listed}]; got {list(cond[name].shape)}")


def num_tokens(cond: Mapping[str, Any]) -> int | str:
    """Returns the number of tokens of the context, or "M" if it is not known.

    >>> num_tokens({"context": jnp.zeros([2, 77, 768])})
    77
    """
    return cond["context"].shape[1] if "context" in cond and cond["context"].ndim == 3 else "M"


def table_rows(labels: Any, num_classes: int, batch: int) -> jax.Array:
    """Returns the rows [B] of a table for class labels [] or [B].

    Traced labels cannot be checked: one outside the table gives a row past its end, which reads as NaN.

    Raises ValueError for labels that are not integers, of another shape or visibly outside the table.

    >>> table_rows(jnp.array([0, 2, -1]), 3, 3).tolist()
    [0, 2, 3]
    """
    rows = jnp.asarray(labels)
    if not jnp.issubdtype(rows.dtype, jnp.integer) or rows.shape not in ((), (batch,)):
        raise ValueError(
            f"cond['class_labels'] must be integers of shape [] or [{batch}]; got {rows.dtype} {list(rows.shape)}"
        )
    if isinstance(labels, int | np.integer | np.ndarray) and np.any(
        (np.asarray(labels) < 0) | (np.asarray(labels) >= num_classes)
    ):
        raise ValueError(f"cond['class_labels'] must lie in 0 .. {num_classes - 1}; got {labels}")
    rows = rows.astype(jnp.result_type(int))  # a narrow type may not hold num_classes
    return jnp.broadcast_to(jnp.where(rows < 0, num_classes, rows), (batch,))


def add_residuals(name: str, saved: list[jax.Array], residuals: Sequence[jax.Array] | None) -> list[jax.Array]:
    """Returns the saved activations with a residual added to each; as they are without residuals.

    Raises ValueError unless the residuals, cond[name], have the shapes of the activations.

    >>> [h.tolist() for h in add_residuals("down_residuals", [jnp.zeros(2)], [jnp.ones(2)])]
    [[1.0, 1.0]]
    """
    if residuals is None:
        return saved
    shapes, given = [h.shape for h in saved], [r.shape for r in residuals]
    if shapes != given:
        raise ValueError(f"cond[{name!r}] must be {len(shapes)} arrays of shapes {shapes}; got {given}")
    return [h + r.astype(h.dtype) for h, r in zip(saved, residuals)]


def _takes(net: Any) -> dict[str, bool]:
    """Returns {name of a conditioning array of the network: whether it is required}."""
    takes: dict[str, bool] = {}
    if net.attends():
        takes |= {"context": True, "context_mask": False}
    if net.num_classes is not None or net.class_time or net.class_vector_dim is not None:
        takes["class_labels"] = True
    if net.text_time_dims is not None:
        takes |= {"text_embeds": True, "time_ids": True}
    if net.time_cond_dim is not None:
        takes["timestep_cond"] = False
    return takes


def _shapes(cond: Mapping[str, Any], net: Any, batch: int) -> dict[str, tuple[Any, ...]]:
    """Returns {name: shape} of the arrays whose shape is known; a letter stands for any length."""
    tokens = num_tokens(cond)
    shapes: dict[str, tuple[Any, ...]] = {
        "context": (batch, tokens, net.text_dim or net.context_dim),
        "context_mask": (batch, tokens),
        "timestep_cond": (batch, net.time_cond_dim),
    }
    if net.class_vector_dim is not None:
        shapes["class_labels"] = (batch, net.class_vector_dim)
    if net.text_time_dims is not None:
        each, total = net.text_time_dims
        ids = cond["time_ids"].shape[1] if cond["time_ids"].ndim == 2 else "K"
        shapes["time_ids"] = (batch, ids)
        shapes["text_embeds"] = (batch, total - each * ids if isinstance(ids, int) else "P")
    return shapes
