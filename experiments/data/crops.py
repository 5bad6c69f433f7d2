"""Crops of pictures as in ADM: halved by box filters, resized bicubically, then cropped in the middle or at random.

Dhariwal and Nichol, "Diffusion Models Beat GANs on Image Synthesis", 2021, https://arxiv.org/abs/2105.05233; the
published code's `center_crop_arr` and `random_crop_arr`.
"""

from __future__ import annotations

import math

import numpy as np
from PIL import Image

__all__ = ["centre_crop", "random_crop"]

_SMALLEST_SHARE = 0.8  # of the shorter side, in a random crop


def centre_crop(image: Image.Image, size: int) -> Image.Image:
    """Returns the central square of a picture, `size` pixels wide, with the picture's whole shorter side.

    >>> centre_crop(Image.new("L", (70, 40)), 8).size
    (8, 8)
    """
    image = _resized(image, size)
    return _box(image, (image.width - size) // 2, (image.height - size) // 2, size)


def random_crop(image: Image.Image, size: int, random: np.ndarray) -> Image.Image:
    """Returns a square of a picture, `size` pixels wide, with 80% to 100% of the picture's shorter side.

    Args:
      image: the picture.
      size: S; the shorter side is resized to a length that is uniform on S..ceil(S / 0.8).
      random: uint64 `[3]` or more, uniform: of the length, of the place in height, of the place in width.
    """
    largest = math.ceil(size / _SMALLEST_SHARE)
    image = _resized(image, size + _below(random[0], largest - size + 1))
    top, left = _below(random[1], image.height - size + 1), _below(random[2], image.width - size + 1)
    return _box(image, left, top, size)


def _resized(image: Image.Image, shorter: int) -> Image.Image:
    """Returns the picture with its shorter side of that length."""
    while min(image.size) >= 2 * shorter:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = shorter / min(image.size)
    return image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)


def _box(image: Image.Image, left: int, top: int, size: int) -> Image.Image:
    return image.crop((left, top, left + size, top + size))


def _below(random: np.uint64, bound: int) -> int:
    """Returns an integer in 0..bound-1 from 64 random bits; its distribution is uniform to 2**-64 * bound."""
    return int(random) * bound >> 64
