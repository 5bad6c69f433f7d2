"""Token ids are those of the published tokenizers; what is cut is shown; damaged folders are named."""

import json
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest

from diffusers_fn import text

pytest.importorskip("tokenizers")
pytest.importorskip("sentencepiece")

GOLDEN = Path(__file__).parents[1] / "golden_text"
FOLDERS = ["clip", "clip_exclamation", "clip_json", "t5"]


@pytest.mark.parametrize("folder", FOLDERS)
@pytest.mark.filterwarnings("ignore:a prompt is longer")
def test_the_ids_are_those_of_the_published_tokenizer(folder):
    expected = json.loads((GOLDEN / folder / "expected.json").read_text())
    ids = np.array(expected["ids"])
    tokens = text.tokenize(text.load_tokenizer(GOLDEN / folder), expected["texts"], ids.shape[1])
    np.testing.assert_array_equal(tokens.ids, ids)


def test_new_words_get_the_next_free_ids():
    expected = json.loads((GOLDEN / "clip" / "with_tokens.json").read_text())
    plain = text.load_tokenizer(GOLDEN / "clip")
    tokenizer = plain.with_tokens(expected["words"])
    np.testing.assert_array_equal(text.tokenize(tokenizer, expected["texts"]).ids, expected["ids"])
    assert tokenizer.vocab_size == plain.vocab_size + 2
    with pytest.raises(ValueError, match="already"):
        tokenizer.with_tokens(["<old-hat>"])


def test_new_words_of_t5_get_the_next_free_ids_and_sentinels_are_tokens():
    plain = text.load_tokenizer(GOLDEN / "t5")
    tokenizer = plain.with_tokens(["<toy>"])
    assert tokenizer.encode("<toy>") == [plain.vocab_size]
    assert plain.encode("<extra_id_0><extra_id_99></s>") == [plain.vocab_size - 1, plain.vocab_size - 100, plain.end]


@pytest.mark.parametrize("folder", FOLDERS)
def test_a_warning_shows_what_was_cut(folder):
    tokenizer = text.load_tokenizer(GOLDEN / folder)
    words = "a cat sat on a mat " * 600
    with pytest.warns(UserWarning, match="cat sat on") as caught:
        tokens = text.tokenize(tokenizer, [words, "a cat"], 12)
    assert len(caught) == 1
    assert len(str(caught[0].message)) < 400
    assert tokens.ids[0, -1] == tokenizer.end
    assert tokens.mask[0].all()


@pytest.mark.parametrize("folder", FOLDERS)
def test_a_text_that_fits_is_not_cut(folder):
    tokenizer = text.load_tokenizer(GOLDEN / folder)
    own = len(tokenizer.encode("a cat")) + 1 + (tokenizer.start is not None)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert text.tokenize(tokenizer, "a cat", own).mask.sum() == own


@pytest.mark.parametrize("bad", [[], [3], None])
def test_prompts_are_strings(bad):
    with pytest.raises(ValueError, match="prompts must be"):
        text.tokenize(text.load_tokenizer(GOLDEN / "clip"), bad or [])
    with pytest.raises(ValueError, match="max_length"):
        text.tokenize(text.load_tokenizer(GOLDEN / "clip"), "a", 1)


@pytest.mark.parametrize(
    ("folder", "file", "content"),
    [
        ("clip", "vocab.json", "{"),
        ("clip", "vocab.json", "[]"),
        ("clip", "vocab.json", '{"a": 0}'),
        ("clip", "merges.txt", "a qqqq"),
        ("clip", "tokenizer_config.json", "no"),
        ("clip_json", "tokenizer.json", "{}"),
        ("t5", "spiece.model", "no model"),
    ],
)
def test_a_damaged_file_is_named(tmp_path, folder, file, content):
    shutil.copytree(GOLDEN / folder, tmp_path / "broken")
    (tmp_path / "broken" / file).write_text(content)
    with pytest.raises(ValueError, match="broken"):
        text.load_tokenizer(tmp_path / "broken")


def test_a_folder_without_a_tokenizer_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"is no tokenizer: it has no vocab\.json"):
        text.load_tokenizer(tmp_path)
