"""Words of one's own: the reference's token ids, every layout of their files, and words of several tokens."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from diffusers_fn.pretrained import load_pipeline, textual_inversion
from diffusers_fn.pretrained.safetensors_file import write_safetensors

pytest.importorskip("tokenizers")

GOLDEN = Path(__file__).parents[1] / "golden_pipelines"
FILES = GOLDEN / "textual_inversion"  # the reference's embeddings of two words


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    path = tmp_path_factory.mktemp("pipeline") / "sd1"
    shutil.copytree(GOLDEN / "sd1", path)
    shutil.copytree(GOLDEN.parent / "golden_text" / "clip", path / "tokenizer")
    return load_pipeline(path)


def write(path, **arrays):
    with open(path, "wb") as file:
        write_safetensors(file, {name: (a.shape, a.dtype) for name, a in arrays.items()}, arrays.items())
    return path


def test_words_get_the_ids_and_rows_of_the_reference(pipeline):
    with_words, params = pipeline
    size = with_words.parts.tokenizers["tokenizer"].vocab_size
    loaded = [textual_inversion.load(FILES / f"learned_embeds.{suffix}") for suffix in ("safetensors", "bin")]
    for each in loaded:
        with_words, params = textual_inversion.add(with_words, params, each)
    tokens = with_words.tokenize(["a photo of a <cat-toy> on a table", "<cat-toy>, <old-hat> and a cat"])
    ids = tokens["tokenizer"].ids
    assert size == 2114  # the reference gave the words the ids 2114 and 2115
    assert (ids == 2114).sum(axis=1).tolist() == [1, 1]
    assert (ids == 2115).sum(axis=1).tolist() == [0, 1]
    table = params["text_encoder"]["tokens"]["embedding"]
    np.testing.assert_array_equal(table[2114], loaded[0]["text_encoder"]["<cat-toy>"][0])
    np.testing.assert_array_equal(table[2115], loaded[1]["text_encoder"]["<old-hat>"][0])
    # Without the words nothing changes: neither ids nor, where the end token is pooled, the pooled output.
    plain = pipeline[0].tokenize("a cat")
    np.testing.assert_array_equal(with_words.tokenize("a cat")["tokenizer"].ids, plain["tokenizer"].ids)
    context = pipeline[0].encode_text(pipeline[1], plain)["context"]
    np.testing.assert_array_equal(with_words.encode_text(params, plain)["context"], context)


def test_a_word_of_several_tokens_is_replaced_by_all_of_them(pipeline):
    rows = np.arange(96, dtype=np.float32).reshape(3, 32)
    with_word, params = textual_inversion.add(*pipeline, {"text_encoder": {"<x>": rows}})
    ids = with_word.tokenize("a <x> and <x>")["tokenizer"].ids[0]
    assert [int(i) for i in ids if i >= 2114] == [2114, 2115, 2116] * 2
    np.testing.assert_array_equal(params["text_encoder"]["tokens"]["embedding"][2114:], rows)
    assert len(pipeline[1]["text_encoder"]["tokens"]["embedding"]) == 2114  # what was given is as before
    further, _ = textual_inversion.add(with_word, params, {"text_encoder": {"<y>": rows[:1]}})
    ids = further.tokenize("<y> <x>")["tokenizer"].ids[0]
    assert [int(i) for i in ids if i >= 2114] == [2117, 2114, 2115, 2116]


@pytest.mark.parametrize(
    ("names", "word", "expected"),
    [
        ({"<t>": (32,)}, None, {"text_encoder": {"<t>": (1, 32)}}),
        ({"emb_params": (2, 32)}, None, {"text_encoder": {"toy": (2, 32)}}),
        ({"emb_params": (2, 32)}, "hat", {"text_encoder": {"hat": (2, 32)}}),
        (
            {"clip_l": (2, 32), "clip_g": (2, 48)},
            None,
            {"text_encoder": {"toy": (2, 32)}, "text_encoder_2": {"toy": (2, 48)}},
        ),
    ],
)
def test_layouts_of_files(tmp_path, names, word, expected):
    path = write(tmp_path / "toy.safetensors", **{name: np.ones(shape, np.float32) for name, shape in names.items()})
    found = textual_inversion.load(path, word=word)
    shapes = {encoder: {word: rows.shape for word, rows in words.items()} for encoder, words in found.items()}
    assert shapes == expected


def test_what_does_not_fit_is_named(pipeline, tmp_path):
    rows = np.ones((1, 32), np.float32)
    for embeddings, message in (
        ({"text_encoder": {"<t>": rows[:, :16]}}, r"must have shape \[n, 32\], .* got \[1, 16\]"),
        ({"text_encoder_2": {"<t>": rows}}, "has no CLIP encoder 'text_encoder_2'; it has text_encoder"),
        ({"text_encoder": {"the</w>": rows}}, "has the tokens the</w> already"),
    ):
        with pytest.raises(ValueError, match=message):
            textual_inversion.add(*pipeline, embeddings)
    several = write(tmp_path / "a.safetensors", a=rows, b=rows)
    with pytest.raises(ValueError, match="it must hold one tensor, or clip_l and clip_g; it has 'a', 'b'"):
        textual_inversion.load(several)
    with pytest.raises(ValueError, match=r"must have shape \[D\] or \[n, D\]; got \[1, 1, 32\]"):
        textual_inversion.load(write(tmp_path / "b.safetensors", a=rows[None]))
    (tmp_path / "c.safetensors").write_text(json.dumps({}))
    with pytest.raises(ValueError, match=r"c\.safetensors"):
        textual_inversion.load(tmp_path / "c.safetensors")
