"""Draws emoji with their Unicode names as captions, as folders of pictures: data of configs/captions.py.

    apt-get install fonts-noto-color-emoji
    python -m experiments.emoji --output=emoji --size=32
    python -m experiments.train --config=configs/captions.py:cpu32 --workdir=runs/emoji \\
        --config.data.path=emoji/train --config.data.heldout_fraction=0
    python -m experiments.caption_score --workdir=runs/emoji --reference=emoji/train --captions=emoji/heldout

Each picture is a single code point that the font has, on white; its caption is the name of Python's `unicodedata` in
lower case. People and hands are drawn once more in each of the five skin tones, with a caption such as "waving hand
sign, dark skin tone". OUTPUT/train and OUTPUT/heldout each hold the pictures and metadata.jsonl with `file_name`,
`text` and `kind`. Held out are captions of which each part is in other captions: some of the hearts, circles and
squares with a colour, of the faces of animals that are there as a whole, and of the people and hands in a skin tone.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from absl import flags
from PIL import Image, ImageDraw, ImageFont, features

from experiments import runs
from experiments.files import write_text

__all__ = ["Emoji", "draw", "emoji_of", "is_heldout", "main"]

FONT = Path("/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf")
TONES = {0x1F3FB: "light", 0x1F3FC: "medium light", 0x1F3FD: "medium", 0x1F3FE: "medium dark", 0x1F3FF: "dark"}
_PIXELS = 109  # the font has bitmaps of this size alone
_CANVAS = (136, 128)
_BLOCKS = (range(0x203C, 0x3300), range(0x1F000, 0x1FB00))
_HELD_OUT = (
    "green heart", "orange heart", "blue heart", "large purple circle", "large yellow square", "large brown circle",
    "cow face", "rabbit face", "tiger face", "mouse face",
)  # fmt: skip
_COLOURED = re.compile(
    r"(blue|green|yellow|purple|orange|brown|white|black|pink|light blue|grey) heart$"
    r"|large (red|blue|green|yellow|purple|orange|brown) (circle|square)$"
)
_EVERY = 3  # of the code points of people and hands, the multiples of this have one tone held out


class Emoji(NamedTuple):
    """A picture that the font can draw.

    Attributes:
      text: of one code point, or two with a skin tone.
      caption: its name.
      kind: colour, animal, tone or other; samples are compared with the pictures of their kind.
    """

    text: str
    caption: str
    kind: str


def draw(text: str, font: ImageFont.FreeTypeFont, size: int) -> Image.Image | None:
    """Returns the picture of an emoji, size x size pixels on white; None if the font has none."""
    image = Image.new("RGBA", _CANVAS, (255, 255, 255, 0))
    ImageDraw.Draw(image).text((0, 0), text, font=font, embedded_color=True)
    if image.getchannel("A").getbbox() is None:
        return None
    white = Image.new("RGBA", (_CANVAS[0],) * 2, (255, 255, 255, 255))
    white.alpha_composite(image, (0, (_CANVAS[0] - _CANVAS[1]) // 2))
    return white.convert("RGB").resize((size, size), Image.Resampling.LANCZOS)


def emoji_of(font: ImageFont.FreeTypeFont) -> Iterator[Emoji]:
    """Yields the emoji of a font in the order of their code points: each as it is, then in its skin tones."""
    for code in (code for block in _BLOCKS for code in block):
        character = chr(code)
        name = unicodedata.name(character, "").lower()
        if not name or code in TONES or draw(character, font, 8) is None:
            continue
        yield Emoji(character, name, _kind(code, name))
        for tone, tone_name in TONES.items():
            if font.getlength(character + chr(tone)) < 1.5 * font.getlength(character):  # one glyph
                yield Emoji(character + chr(tone), f"{name}, {tone_name} skin tone", "tone")


def is_heldout(emoji: Emoji) -> bool:
    """Returns whether a picture is held out: by its name, or of a third of the people and hands one tone in turn."""
    if emoji.kind != "tone":
        return emoji.caption in _HELD_OUT
    number, tone = ord(emoji.text[0]), list(TONES).index(ord(emoji.text[1]))
    return number % _EVERY == 0 and number // _EVERY % len(TONES) == tone


def _kind(code: int, name: str) -> str:
    if _COLOURED.match(name):
        return "colour"
    return "animal" if 0x1F400 <= code <= 0x1F43C or 0x1F980 <= code <= 0x1F9AE else "other"


def main() -> None:
    """Writes the two folders."""
    given = flags.FLAGS
    if not given.font.exists():
        raise ValueError(f"{given.font} does not exist: apt-get install fonts-noto-color-emoji, or set --font")
    if not features.check("raqm"):
        raise ValueError("Pillow cannot draw sequences here: it needs the libraries raqm and fribidi")
    try:
        font = ImageFont.truetype(str(given.font), _PIXELS, layout_engine=ImageFont.Layout.RAQM)
    except OSError as error:
        raise ValueError(f"{given.font} is no font with bitmaps of {_PIXELS} pixels: {error}") from error
    counts: dict[str, int] = {}
    lines: dict[str, list[str]] = {"train": [], "heldout": []}
    for part in lines:
        (given.output / part).mkdir(parents=True, exist_ok=True)
    for emoji in emoji_of(font):
        part = "heldout" if is_heldout(emoji) else "train"
        image = draw(emoji.text, font, given.size)
        assert image is not None
        name = "-".join(f"{ord(each):05x}" for each in emoji.text) + ".png"
        image.save(given.output / part / name)
        lines[part].append(json.dumps({"file_name": name, "text": emoji.caption, "kind": emoji.kind}))
        counts[f"{part}: {emoji.kind}"] = counts.get(f"{part}: {emoji.kind}", 0) + 1
    for part, rows in lines.items():
        write_text(given.output / part / "metadata.jsonl", "\n".join(rows) + "\n")
    print(f"{given.output}: " + ", ".join(f"{count} {what}" for what, count in sorted(counts.items())))


if __name__ == "__main__":
    runs.define_path("font", str(FONT), "NotoColorEmoji.ttf.")
    runs.define_path("output", "emoji", "Folder for the pictures.")
    flags.DEFINE_integer("size", 32, "Height and width of the pictures in pixels.", lower_bound=8)
    runs.run_without_config(main)
