"""Sizes of layers as multiples of a base: channels per level of a U-Net, hidden units of a transformer."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["level_channels", "level_multipliers", "scaled"]


def scaled(size: int, multiplier: float) -> int:
    """Returns size * multiplier rounded down, with a tolerance for ratios: 49 * (1 / 49) is 1.

    >>> scaled(256, 0.5), scaled(49, 1 / 49), scaled(10, 0.77)
    (128, 1, 7)
    """
    return int(size * multiplier + 1e-6)


def level_channels(channels: int, multipliers: Sequence[float]) -> list[int]:
    """Returns the channels of each level of a U-Net.

    >>> level_channels(256, (0.5, 1, 2))
    [128, 256, 512]
    """
    return [scaled(channels, multiplier) for multiplier in multipliers]


def level_multipliers(widths: Sequence[int]) -> tuple[float, ...]:
    """Returns the multipliers for which `level_channels(widths[0], multipliers)` is `widths`, the channels per level.

    >>> level_multipliers((320, 640, 800))
    (1, 2, 2.5)
    """
    return tuple(width / widths[0] if width % widths[0] else width // widths[0] for width in widths)
