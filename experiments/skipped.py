"""Training steps that are skipped because a number is not finite: which examples they have, and when to go back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

__all__ = ["MAX_RETURNS", "Recovery", "blame", "gave_up"]

MAX_RETURNS = 3  # to a checkpoint, without a further one
NUM_NAMED = 5  # examples in a message


class Recovery(NamedTuple):
    """How far a run has departed from one without skipped steps; a checkpoint holds it, for an exact resume.

    Attributes:
      batch_offset: step number k has batch number k + batch_offset.
      in_a_row: the steps that were skipped since the last one that was not.
      returns: how often the run went back to a checkpoint since it last saved one further than before.
      furthest: the largest step at which it went back.
    """

    batch_offset: int = 0
    in_a_row: int = 0
    returns: int = 0
    furthest: int = 0

    def after(self, skipped: Sequence[bool]) -> Recovery:
        """Returns the record after a call, given which of its steps were skipped."""
        in_a_row = self.in_a_row
        for each in skipped:
            in_a_row = in_a_row + 1 if each else 0
        return self._replace(in_a_row=in_a_row)

    def saved(self, step: int) -> Recovery:
        """Returns the record after a step has been reached whose state is saved."""
        return self._replace(returns=0) if step > self.furthest and not self.in_a_row else self

    def going_back(self, step: int, to: int) -> Recovery:
        """Returns the record after going back from a step to an earlier one, where the next batch is that after it.

        Skipping batches is the practice of Chowdhery et al., "PaLM", 2022, https://arxiv.org/abs/2204.02311,
        section 5.1.

        >>> Recovery(batch_offset=5).going_back(30, 20)
        Recovery(batch_offset=15, in_a_row=0, returns=1, furthest=30)
        """
        return Recovery(self.batch_offset + step - to, 0, self.returns + 1, max(self.furthest, step))


def blame(losses: Any, indices: Any = None, names: Sequence[str] | None = None) -> str:
    """Returns in words which examples of a batch have a loss that is not finite, else which have the largest.

    Args:
      losses: [B].
      indices: [B], of the examples in the data set; None if they are not known.
      names: of all examples, such as their files.

    >>> blame([1.0, np.nan, 2.0], [7, 3, 5])
    'the loss is not finite for example 3'
    """
    losses = np.asarray(losses, np.float64)
    broken = np.flatnonzero(~np.isfinite(losses))

    def called(i: int) -> str:
        if indices is None:
            return f"number {i} of the batch"
        index = int(indices[i])
        return f"{index}" if names is None else f"{index} ({names[index]})"

    if len(broken):
        more = f" and {len(broken) - NUM_NAMED} more" if len(broken) > NUM_NAMED else ""
        examples = "example" if len(broken) == 1 else "examples"
        return f"the loss is not finite for {examples} {', '.join(map(called, broken[:NUM_NAMED]))}{more}"
    largest = np.argsort(-losses)[:NUM_NAMED]
    listed = ", ".join(f"{called(i)}: {losses[i]:.3g}" for i in largest)
    return f"the losses are finite (a gradient or the new state is not), the largest of examples {listed}"


def gave_up(step: int, learning_rate: float) -> FloatingPointError:
    """Returns the error of a run that does not get further."""
    return FloatingPointError(
        f"steps up to {step} have no finite numbers, also after going back to a checkpoint {MAX_RETURNS} times, each "
        "time with other examples; the last checkpoint is kept. Continue from it with a lower learning rate: "
        f"--config.training.learning_rate={learning_rate / 3:.1g} --allow_changes, or set --config.training.grad_clip"
    )
