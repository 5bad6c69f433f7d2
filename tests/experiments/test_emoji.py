"""Emoji: what is drawn, and that held-out captions are made of words of the others."""

import json

import numpy as np
import pytest
from PIL import Image, features

from experiments.emoji import FONT, Emoji, is_heldout
from experiments.texts import words_of


def test_one_tone_of_every_third_code_point_is_held_out():
    tones = range(0x1F3FB, 0x1F400)
    counts = [
        sum(is_heldout(Emoji(chr(code) + chr(tone), "", "tone")) for tone in tones) for code in range(0x1F440, 0x1F44C)
    ]
    assert sorted(counts) == [0] * 8 + [1] * 4
    assert is_heldout(Emoji("\U0001f49a", "green heart", "colour"))
    assert not is_heldout(Emoji("\U0001f49b", "yellow heart", "colour"))


def test_a_missing_font_is_refused(command, tmp_path):
    output = command("emoji", f"--font={tmp_path / 'none.ttf'}", f"--output={tmp_path / 'emoji'}", code=1)
    assert "none.ttf does not exist: apt-get install fonts-noto-color-emoji, or set --font" in output


@pytest.mark.long
@pytest.mark.skipif(not FONT.exists() or not features.check("raqm"), reason="needs fonts-noto-color-emoji and raqm")
def test_emoji_are_drawn_with_their_names_and_every_heldout_word_is_in_the_training_captions(command, tmp_path):
    command("emoji", f"--output={tmp_path}", "--size=16")
    rows = {
        part: [json.loads(line) for line in (tmp_path / part / "metadata.jsonl").read_text().splitlines()]
        for part in ("train", "heldout")
    }
    words = {part: {word for row in rows[part] for word in words_of(row["text"])} for part in rows}
    assert words["heldout"] <= words["train"]
    captions = [row["text"] for part in rows.values() for row in part]
    assert len(set(captions)) == len(captions) > 1_500
    hand = [row["file_name"] for row in rows["train"] if row["text"] == "waving hand sign, dark skin tone"]
    heart = np.asarray(Image.open(tmp_path / "train" / "1f49b.png").convert("RGB"), int)  # yellow
    assert heart.shape == (16, 16, 3)
    assert heart[0, 0].min() > 240
    assert heart[8, 8, 0] > 200 > 150 > heart[8, 8, 2]
    assert hand == ["1f44b-1f3ff.png"] or is_heldout(Emoji("\U0001f44b\U0001f3ff", "", "tone"))
