"""The class labels of samples, from the command line."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

__all__ = ["choose_labels"]


def choose_labels(
    given: list[str] | None,
    num_classes: int,
    num_samples: int,
    names: Sequence[str] | None = None,
    absent: Sequence[int] = (),
) -> np.ndarray | None:
    """Returns the class labels [num_samples] of the samples, cycling through --labels; None for no condition.

    Args:
      given: value of --labels: ["3", "5"] or ["cat", "dog"] or similar, ["none"] for no condition, None for all
        classes.
      num_classes: number of classes of the model; 0 is unconditional.
      num_samples: number of labels.
      names: of the classes, if the data have names. A name is looked up before a number: a class named "3" may have
        another number.
      absent: classes that are not among "all": the training data had no examples of them.

    Raises:
      ValueError: if a label is not a class of the model.

    >>> choose_labels(["3", "5"], num_classes=10, num_samples=4)
    array([3, 5, 3, 5], dtype=int32)
    >>> choose_labels(["dog"], num_classes=2, num_samples=2, names=["cat", "dog"])
    array([1, 1], dtype=int32)
    """
    if given == ["none"] or (given is None and not num_classes):
        return None
    if not num_classes:
        raise ValueError("--labels was given, but this model is unconditional (config.data.num_classes is 0 or None)")
    names = list(names or ())[:num_classes]
    if given is None:
        trained_on = np.setdiff1d(np.arange(num_classes, dtype=np.int32), np.asarray(absent, np.int32))
        return np.resize(trained_on, num_samples)
    unknown = [label for label in given if label not in names and not label.lstrip("-").isdecimal()]
    if unknown and names:
        raise ValueError(f"--labels has no class {', '.join(unknown)}: the classes are {', '.join(names)}")
    if unknown:
        raise ValueError(f"--labels must be integers separated by commas, or none; got {','.join(given)}")
    labels = [names.index(label) if label in names else int(label) for label in given]
    if not labels or min(labels) < 0 or max(labels) >= num_classes:
        raise ValueError(f"--labels must lie in [0, {num_classes - 1}]; got {','.join(given)}")
    return np.resize(np.array(labels, np.int32), num_samples)
