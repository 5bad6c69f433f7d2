"""One image file, or one Pillow image, as 8-bit pixels of a given shape."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageOps

from experiments.data.crops import centre_crop, random_crop

__all__ = ["DAMAGED", "RESIZE", "Format", "decode", "pixels", "upright_size"]

# Exceptions that Pillow raises for damaged files.
DAMAGED = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    KeyError,
    IndexError,
    EOFError,
    OverflowError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)
_MODES = {1: "L", 3: "RGB", 4: "RGBA"}
_PNG_ORIENTATION = {"exif", "Raw profile type exif", "XML:com.adobe.xmp"}  # PNG chunks that may hold an orientation
_ORIENTATION = 0x0112  # EXIF tag
_TURNED = (5, 6, 7, 8)  # its values that exchange width and height; viewers ignore values beyond 8
_GREY_16 = ("I;16", "I;16B", "I;16L", "I;16N")
# Raw mode of a 16-bit PNG -> raw mode that reads the second byte of each number, where Pillow reads the first.
_SECOND_BYTE = {"RGB;16B": "RGB;16L", "RGBA;16B": "RGBA;16L"}


class Format(NamedTuple):
    """What images are converted to.

    Attributes:
      shape: (H, W, C); C is 1 (grey), 3 (RGB) or 4 (RGB and opacity).
      resize: how images of another size become H x W, one of `RESIZE`.
      background: RGB colour behind transparent pixels, 0..255.
    """

    shape: tuple[int, int, int]
    resize: str = "none"
    background: tuple[int, int, int] = (255, 255, 255)


def decode(
    source: Path | bytes,
    target: Format,
    *,
    where: Callable[[], str] | None = None,
    random: np.ndarray | None = None,
) -> np.ndarray:
    """Returns the pixels of one file as uint8 `[H, W, C]`, rotated by its EXIF orientation.

    Of several frames the first is read. Numbers of 16 bits are scaled to 8 and rounded.

    Args:
      source: the file, or its content.
      target: what the image is converted to.
      where: () -> the origin, for messages; by default the path.
      random: see `pixels`.

    Raises:
      ValueError: if the file is damaged, has another size with `resize="none"`, or numbers of another kind.
    """
    try:
        with _opened(source) as opened:
            image = _eight_bits(opened, lambda: _opened(source))
            image.load()
            if _may_be_turned(image):
                ImageOps.exif_transpose(image, in_place=True)
            return pixels(image, target, random)
    except _UnsuitableError as error:
        raise ValueError(f"{_origin(source, where)}: {error}") from None
    except DAMAGED as error:
        raise ValueError(f"{_origin(source, where)}: not a readable image ({error}); remove or replace it") from error


def pixels(image: Image.Image, target: Format, random: np.ndarray | None = None) -> np.ndarray:
    """Returns a Pillow image as uint8 `[H, W, C]`: composited onto the background, then resized.

    With four channels transparency stays; pixels without any opacity get the background's colour, because the colour
    that a file holds there is invisible.

    Args:
      image: the image.
      target: what it is converted to.
      random: uint64 `[4]`, uniform, that `adm_random_crop` draws the crop from; None: it crops as `adm_crop`.

    Raises:
      ValueError: for another size with `resize="none"`, and for modes that are not 8 bits per channel.

    >>> pixels(Image.new("RGBA", (1, 1), (9, 9, 9, 0)), Format((1, 1, 3), background=(0, 0, 255))).tolist()
    [[[0, 0, 255]]]
    """
    height, width, channels = target.shape
    if image.mode in _GREY_16 or image.mode in ("I", "F"):
        image = _eight_bits(image, None)
    transparent = image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info
    if channels == 4:
        image = image if image.mode == "RGBA" else image.convert("RGBA")
    elif transparent:
        behind = Image.new("RGBA", image.size, (*target.background, 255))
        image = Image.alpha_composite(behind, image.convert("RGBA"))
    if image.mode != _MODES[channels]:
        image = image.convert(_MODES[channels])
    if target.resize == "adm_random_crop" and random is not None:
        image = random_crop(image, width, random)
    elif image.size != (width, height):
        image = RESIZE[target.resize](image, (width, height), target.background)
    array = np.asarray(image, np.uint8).reshape(target.shape)
    if channels == 4:
        array = array.copy()
        array[array[..., 3] == 0, :3] = target.background
    return array


def upright_size(source: Path | bytes, *, where: Callable[[], str] | None = None) -> tuple[int, int]:
    """Returns (height, width) of the image in a file or its content, as `decode` turns it; reads only its header.

    Raises:
      ValueError: if the file is damaged.
    """
    try:
        with _opened(source) as image:
            width, height = image.size
            if image.format == "TIFF":  # some versions of Pillow exchange the two already here, others do not
                width, height = image.tag_v2[256], image.tag_v2[257]  # type: ignore[attr-defined]
            turned = _may_be_turned(image) and image.getexif().get(_ORIENTATION) in _TURNED
    except DAMAGED as error:
        raise ValueError(f"{_origin(source, where)}: not a readable image ({error}); remove or replace it") from error
    return (width, height) if turned else (height, width)


def _origin(source: Path | bytes, where: Callable[[], str] | None) -> str:
    return str(source) if where is None else where()


def _opened(source: Path | bytes) -> Image.Image:
    return Image.open(io.BytesIO(source) if isinstance(source, bytes) else source)


def _may_be_turned(image: Image.Image) -> bool:
    """Whether getexif() may find an orientation; without it, a PNG file would be decoded for it, or searched twice."""
    return image.format != "PNG" or bool(_PNG_ORIENTATION & image.info.keys())


class _UnsuitableError(ValueError):
    """A readable image that cannot be used as it is."""


def _refuse(image: Image.Image, size: tuple[int, int], background: tuple[int, int, int]) -> Image.Image:
    raise _UnsuitableError(
        f"is {image.width}x{image.height}, not {size[0]}x{size[1]}; set data.resize to crop, pad or stretch"
    )


def _crop(image: Image.Image, size: tuple[int, int], background: tuple[int, int, int]) -> Image.Image:
    """Resizes the largest centred box with the proportions of `size` (width, height)."""
    width = min(image.width, max(1, round(image.height * size[0] / size[1])))
    height = min(image.height, max(1, round(image.width * size[1] / size[0])))
    left, top = (image.width - width) // 2, (image.height - height) // 2
    # resize(box=...) would also read pixels outside the box.
    return _stretch(image.crop((left, top, left + width, top + height)), size, background)


def _pad(image: Image.Image, size: tuple[int, int], background: tuple[int, int, int]) -> Image.Image:
    """Resizes the whole image to fit into `size`, centred on the background (transparent with four channels)."""
    scale = min(size[0] / image.width, size[1] / image.height)
    width, height = (max(1, round(n * scale)) for n in image.size)
    canvas = Image.new("RGBA", size, (*background, 0)) if image.mode == "RGBA" else Image.new("RGB", size, background)
    canvas = canvas if image.mode == canvas.mode else canvas.convert(image.mode)
    canvas.paste(_stretch(image, (width, height), background), ((size[0] - width) // 2, (size[1] - height) // 2))
    return canvas


def _stretch(image: Image.Image, size: tuple[int, int], background: tuple[int, int, int]) -> Image.Image:
    return image.resize(size, Image.Resampling.BICUBIC)  # antialiased; weights colours by their opacity


def _adm(image: Image.Image, size: tuple[int, int], background: tuple[int, int, int]) -> Image.Image:
    return centre_crop(image, size[0])


RESIZE: dict[str, Callable[[Image.Image, tuple[int, int], tuple[int, int, int]], Image.Image]] = {
    "none": _refuse,
    "crop": _crop,
    "pad": _pad,
    "stretch": _stretch,
    "adm_crop": _adm,
    "adm_random_crop": _adm,
}


def _eight_bits(image: Image.Image, again: Callable[[], Image.Image] | None) -> Image.Image:
    """Returns the image with 8 bits per channel: itself, or 16 bits scaled by 255 / 65535.

    Args:
      image: an opened file, not yet decoded, or an image in memory.
      again: opens the file once more; None for an image in memory.
    """
    raw = _raw_mode(image)
    if image.mode in _GREY_16 or (image.mode == "I" and raw in _GREY_16):
        if raw and ";16" not in raw:
            raise _UnsuitableError(f"pixel mode {image.mode} ({raw}) is not 8 or 16 bits per channel; convert the file")
        values = np.asarray(image)
        clear = image.info.get("transparency")
        channels = [values] if clear is None else [values, np.where(values == clear, 0, 65535)]
        return _scaled(np.stack(channels, axis=-1), image)
    if image.mode in ("I", "F") or image.mode.startswith("I;"):
        raise _UnsuitableError(
            f"pixel mode {image.mode} has no known largest value; convert the file to 8 or 16 bits per channel, or "
            "store the values with data.name=arrays and data.value_range"
        )
    if ";16" not in raw:
        return image
    if image.format != "PNG" or again is None:
        raise _UnsuitableError(
            f"has 16 bits per channel ({raw}), of which Pillow reads 8 in {image.format} files; convert it to PNG or "
            "to 8 bits"
        )
    with again() as second:
        extents = second.tile[0]  # type: ignore[attr-defined]
        if raw == "LA;16B":  # four bytes per pixel
            second.tile = [(*extents[:3], "RGBA")]  # type: ignore[attr-defined, list-item]
            whole = np.asarray(second).astype(np.uint32)
            values = whole[..., ::2] * 256 + whole[..., 1::2]
        else:
            second.tile = [(*extents[:3], _SECOND_BYTE[raw])]  # type: ignore[attr-defined, list-item]
            values = np.asarray(image).astype(np.uint32) * 256 + np.asarray(second)
    clear = image.info.get("transparency")
    if clear is not None:
        values = np.concatenate([values, np.where((values == clear).all(-1, keepdims=True), 0, 65535)], axis=-1)
    return _scaled(values, image)


def _scaled(values: np.ndarray, source: Image.Image) -> Image.Image:
    """Returns numbers 0..65535 `[H, W, C]` as an 8-bit image with the orientation of the source."""
    bytes_ = ((values.astype(np.uint32) * 255 + 32767) // 65535).astype(np.uint8)
    image = Image.fromarray(bytes_[..., 0] if bytes_.shape[-1] == 1 else bytes_)
    image.info.update({name: value for name, value in source.info.items() if name in _PNG_ORIENTATION})
    image.getexif().update(source.getexif())
    return image


def _raw_mode(image: Any) -> str:
    """Returns how the numbers lie in the file, such as "RGB;16B"; "" if Pillow does not say."""
    tiles = getattr(image, "tile", None)
    if not tiles:
        return ""
    arguments = tiles[0][3]
    first = arguments[0] if isinstance(arguments, tuple) and arguments else arguments
    return first if isinstance(first, str) else ""
