"""What follows from several fields of a config: number of classes, range of the data."""

from __future__ import annotations

from ml_collections import ConfigDict

__all__ = ["data_range", "is_conditional", "num_classes", "num_data_classes"]


def num_classes(config: ConfigDict) -> int:
    """Returns the number of classes that the network is conditioned on; 0 for an unconditional network.

    It is backbone.num_classes, or data.num_classes if that is None; 0 for a backbone without such a field.

    Raises:
      ValueError: if the network has another number of classes than the data have labels.

    >>> from diffusers_fn.from_config.defaults import customise, default_config
    >>> num_classes(customise(default_config(), data={"num_classes": 3}))
    3
    """
    if "num_classes" not in config.backbone:
        return 0
    network, labels = config.backbone.num_classes, config.data.get("num_classes")
    if network and labels and network != labels:
        raise ValueError(
            f"config.backbone.num_classes is {network}, but config.data.num_classes is {labels}: set data.num_classes "
            "to that of the labels, and leave backbone.num_classes None, which means the same"
        )
    return int(labels or 0) if network is None else int(network)


def is_conditional(config: ConfigDict) -> bool:
    """Returns whether the network takes a condition: class labels or texts.

    Raises:
      ValueError: as `num_classes`.
    """
    return num_classes(config) > 0 or ("text" in config and config.text.kind != "none")


def num_data_classes(config: ConfigDict) -> int:
    """Returns the number of classes of the labels that are read with the data; 0 if labels are not used.

    It is data.num_classes, or backbone.num_classes if that is None. A classifier that guides an unconditional network
    needs labels that the network itself does not take.

    Raises:
      ValueError: as `num_classes`.
    """
    labels = config.data.get("num_classes")
    return num_classes(config) if labels is None else int(labels)


def data_range(config: ConfigDict) -> tuple[float, float] | None:
    """Returns the interval in which the values of the data lie: (-1, 1), or None if data.normalize is False.

    Clipping, dequantisation, pictures and figures use it.

    >>> from diffusers_fn.from_config.defaults import default_config
    >>> data_range(default_config())
    (-1.0, 1.0)
    """
    return (-1.0, 1.0) if config.data.get("normalize", True) else None
