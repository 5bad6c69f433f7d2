"""Section `memory`: temporary memory of large compiled programs, without allocating parameters."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ml_collections import ConfigDict

from experiments.benchmarks.work import Comparison, Contender

__all__ = ["MODULE", "XL", "comparisons"]

MODULE = "experiments.benchmarks.jax_compilation"
XL = {"num_attention_heads": 16, "attention_head_dim": 72, "num_layers": 28}


def comparisons(config: ConfigDict) -> Iterator[Comparison]:
    """Yields two ways to guide Stable Diffusion 1.5 at 512 x 512, and three programs of DiT-XL/2 at 256 x 256."""
    section = config.memory
    arguments: dict[str, Any] = {"batch": section.batch, "steps": section.steps}
    if section.stable_diffusion:
        yield Comparison(
            f"Stable Diffusion 1.5, 512 x 512, bfloat16, {section.steps} steps guided, batch {section.batch}",
            tuple(
                Contender(name, f"{MODULE}:stable_diffusion", {**arguments, "doubled": doubled})
                for name, doubled in (("one doubled batch", True), ("two passes", False))
            ),
            timed=False,
        )
    size = {"dit": "DiT-XL/2, 256 x 256", "tiny_unet": "a tiny UNet"}[section.network]
    fields: dict[str, Any] = {"name": section.network, "dtype": "bfloat16"}
    fields |= {"changes": XL} if section.network == "dit" else {}
    yield Comparison(
        f"{size}, bfloat16",
        (
            Contender(
                f"forward, batch {section.batch}",
                f"{MODULE}:forward",
                {**fields, "batch": section.batch, "param_dtype": "bfloat16"},
            ),
            *(
                Contender(
                    f"training step, batch {section.train_batch}" + ", remat" * remat,
                    f"{MODULE}:train",
                    {**fields, "batch": section.train_batch, "remat": remat},
                )
                for remat in (False, True)
            ),
        ),
        timed=False,
    )
