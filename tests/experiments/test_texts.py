"""Captions as conditions: tokenizers, files, caches, and a run from captions to prompts."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from configs.captions import get_config
from diffusers_fn.from_config.defaults import customise
from diffusers_fn.pretrained.safetensors_file import write_safetensors
from experiments import bits_per_dim, data, runs, texts
from experiments.caption_score import Pictures, shares
from experiments.evaluate import asked_texts
from experiments.states import make_mesh
from experiments.text_encoder import Cached
from experiments.train import device_batches, train

COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255)}
SHADES = ("plain", "dark", "darker", "darkest")
TESTS = Path(__file__).parent.parent


@pytest.fixture
def squares(tmp_path):
    """A folder of twelve coloured squares with captions."""
    folder = tmp_path / "squares"
    folder.mkdir()
    lines = []
    for colour, value in COLOURS.items():
        for number, shade in enumerate(SHADES):
            name = f"{colour}_{shade}.png"
            Image.new("RGB", (8, 8), tuple(v // (number + 1) for v in value)).save(folder / name)
            lines.append(json.dumps({"file_name": name, "text": f"{shade} {colour.title()} square"}))
    (folder / "metadata.jsonl").write_text("\n".join(lines))
    return folder


def config_of(folder, text=None, **training):
    training = {"num_steps": 4, "warmup_steps": 0, "batch_size": 8, "sample_every": 0, "heldout_every": 2} | training
    return customise(
        get_config(),
        data={"path": str(folder), "shape": (8, 8, 3), "heldout_fraction": 0.25},
        text={"num_tokens": 3, "vocab_size": 20, "num_heads": 2} | (text or {}),
        backbone={"name": "unet2d_condition", "in_channels": 3, "out_channels": 3, "channels": 8, "norm_groups": 4,
                  "channel_multipliers": (1,), "num_res_blocks": 1, "transformer_depths": (1,), "mid_depth": None,
                  "num_heads": 2, "context_dim": 8},
        training={"checkpoint_every": 2, "log_every": 2, **training},
        sampler={"num_inference_steps": 2},
    )  # fmt: skip


def test_words_have_ids_by_frequency_and_unknown_words_share_one(tmp_path, capsys):
    made = texts.make_texts(config_of(tmp_path), ["red heart", "RED square!", "blue-heart"])
    assert made.record["words"] == ["heart", "red", "blue", "square"]
    assert made.encode(["Red: heart", "green heart", "", "a b c d"]).tolist() == [
        [3, 2, 0], [1, 2, 0], [0, 0, 0], [1, 1, 1]]  # fmt: skip
    assert "1 texts have more than config.text.num_tokens = 3 tokens" in capsys.readouterr().out
    assert made.unknown("green heart") == ["green"]
    small = texts.make_texts(config_of(tmp_path, {"vocab_size": 3}), ["red heart", "heart"])
    assert small.encode(["red heart"]).tolist() == [[1, 2, 0]]


def test_bytes_need_no_vocabulary(tmp_path):
    made = texts.make_texts(config_of(tmp_path, {"kind": "bytes"}), [])
    assert made.encode(["aé", ""]).tolist() == [[98, 0xC3 + 1, 0xA9 + 1], [0, 0, 0]]


@pytest.fixture
def table(tmp_path):
    """A folder of four token vectors of two features, with a tokenizer of four words."""
    tokenizers = pytest.importorskip("tokenizers")
    folder = tmp_path / "table"
    folder.mkdir()
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({"[UNK]": 0, "red": 1, "blue": 2, "heart": 3}, "[UNK]"))
    words.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    words.save(str(folder / "tokenizer.json"))
    rows = np.arange(8, dtype=np.float16).reshape(4, 2) + 1
    with (folder / "table.safetensors").open("wb") as file:
        write_safetensors(file, {"embedding.weight": (rows.shape, rows.dtype)}, [("embedding.weight", rows)])
    return folder


def test_a_table_gives_its_rows_and_zeros_for_padding(tmp_path, table):
    made = texts.make_texts(config_of(tmp_path, {"kind": "table", "path": str(table), "vector_dim": 2}), [])
    found = made.encode(["blue heart", "green", ""])
    assert found.dtype == np.float32
    assert found.tolist() == [[[5, 6], [7, 8], [0, 0]], [[1, 2], [0, 0], [0, 0]], [[0, 0]] * 3]
    with pytest.raises(ValueError, match=r"vectors of 2 features: set config.text.vector_dim to that; got 4"):
        texts.make_texts(config_of(tmp_path, {"kind": "table", "path": str(table), "vector_dim": 4}), [])
    (table / "tokenizer.json").unlink()
    with pytest.raises(ValueError, match=r"must hold tokenizer.json and one .safetensors file"):
        texts.make_texts(config_of(tmp_path, {"kind": "table", "path": str(table), "vector_dim": 2}), [])


def test_a_folder_may_move_but_not_hold_other_vectors(tmp_path, table):
    config = config_of(tmp_path, {"kind": "table", "path": str(table), "vector_dim": 2})
    made = texts.make_texts(config, [])
    texts.save(made, tmp_path)
    moved = tmp_path / "moved"
    table.rename(moved)
    config = customise(config, text={"path": str(moved)})
    assert texts.load_texts(config, tmp_path).encode(["red"]).tolist() == made.encode(["red"]).tolist()
    rows = np.array([[1, 2], [3, 4], [5, 6], [7, 9]], np.float16)  # the last, "heart", was 7, 8
    with (moved / "table.safetensors").open("wb") as file:
        write_safetensors(file, {"embedding.weight": (rows.shape, rows.dtype)}, [("embedding.weight", rows)])
    with pytest.raises(ValueError, match=r"holds other token vectors than those of the training"):
        texts.load_texts(config, tmp_path)


def test_a_published_encoder_is_used_as_it_is_and_its_vectors_are_cached(tmp_path):
    pytest.importorskip("tokenizers")
    folder = tmp_path / "pipeline"
    shutil.copytree(TESTS / "golden_pipelines" / "sd1" / "text_encoder", folder / "text_encoder")
    shutil.copytree(TESTS / "golden_text" / "clip", folder / "tokenizer")
    config = config_of(tmp_path, {"kind": "encoder", "path": str(folder), "num_tokens": 6, "vector_dim": 32})
    made = texts.make_texts(config, [])
    found = made.encode(["a cat", "a dog", " "])
    said = (found != 0).any(axis=-1)
    assert found.shape == (3, 6, 32)
    assert said[:, 0].tolist() == [True, True, False]
    np.testing.assert_allclose(found[0, :2], found[1, :2], atol=1e-6)  # causal: start and "a" do not see what follows
    assert np.abs(found[0, 2:] - found[1, 2:]).max() > 1e-3

    kept = Cached(tmp_path / "cache", {"path": "x"}, ["a cat", "a dog"], made.encode)
    again = Cached(tmp_path / "cache", {"path": "x"}, ["a cat", "a dog"], lambda given: pytest.fail("computed again"))
    np.testing.assert_allclose(again[np.array([1, 0, 1])], found[[1, 0, 1]], atol=1e-6)
    assert kept[np.array([0])].shape == (1, 6, 32)
    other = Cached(tmp_path / "cache", {"path": "y"}, ["a cat"], lambda given: np.ones((len(given), 6, 32), np.float32))
    assert (other[np.array([0])] == 1).all()
    with pytest.raises(ValueError, match=r"takes at most 77 tokens: config.text.num_tokens is 78"):
        texts.make_texts(customise(config, text={"num_tokens": 78}), [])
    with pytest.raises(
        ValueError, match=r"config.text.path must be a folder,? for (config.)?text.kind = 'encoder'; got ''"
    ):
        texts.make_texts(customise(config, text={"path": ""}), [])


def test_sidecar_files_are_captions(squares):
    (squares / "metadata.jsonl").unlink()
    (squares / "red_dark.txt").write_text("\ufeffa dark\n red one \n", encoding="utf-8")
    (squares / "notes.txt").write_text("no caption")
    section = runs.data_seed(config_of(squares))
    with section.unlocked():
        section.heldout_fraction = 0.0
    dataset = data.load(section, "train")
    captions = dict(zip(dataset.names, dataset.captions))
    assert [name for name in captions if captions[name]] == ["red_dark.png"]
    assert captions["red_dark.png"] == "a dark red one"
    (squares / "blue_dark.txt").write_bytes(b"\xff\xfe\xff")
    with pytest.raises(ValueError, match=r"blue_dark.txt, a caption, cannot be read"):
        data.load(section, "train")


def test_examples_without_a_caption_are_refused_by_name_or_empty(squares, tmp_path):
    lines = [json.loads(line) for line in (squares / "metadata.jsonl").read_text().splitlines()]
    for line in lines:
        line["text"] = " " if line["file_name"] == "blue_plain.png" else line["text"]
    (squares / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    config = customise(config_of(squares), data={"heldout_fraction": 0.0})
    dataset = data.load(runs.data_seed(config), "train")
    with pytest.raises(ValueError, match=r"1 of 12 examples have no caption \(the first is blue_plain.png\)"):
        texts.in_place(config, tmp_path, dataset)
    (made,), _ = texts.in_place(customise(config, text={"missing": "empty"}), tmp_path, dataset)
    blank = [name for name, row in zip(made.names, made.text[np.arange(12)]) if not row.any()]
    assert blank == ["blue_plain.png"]
    with pytest.raises(ValueError, match=r"config.text.missing must be one of refuse, empty; got 'skip'"):
        texts.in_place(customise(config, text={"missing": "skip"}), tmp_path, dataset)


def test_batches_hold_the_tokens_of_their_pictures_and_resume(squares, tmp_path):
    config = config_of(squares)
    (dataset, _), made = texts.in_place(config, tmp_path, data.load(runs.data_seed(config), "train"), None)
    mesh = make_mesh(config)
    straight = device_batches(config, dataset, 0, mesh)
    ahead = [next(straight) for _ in range(3)]
    resumed = next(device_batches(config, dataset, 2, mesh))
    words = dict(enumerate(made.record["words"], 2))
    for name, array in resumed.items():
        np.testing.assert_array_equal(array, ahead[2][name])
    for image, ids in zip(np.asarray(resumed["image"])[0], np.asarray(resumed["text"])[0]):
        colour = list(COLOURS)[int(image[0, 0].argmax())]
        assert colour in [words[int(i)] for i in ids]


def test_an_evaluation_draws_evenly_spaced_captions_of_the_training(squares, tmp_path):
    config = customise(config_of(squares), data={"heldout_fraction": 0.0})
    dataset = data.load(runs.data_seed(config), "train")
    (made,), tokenizer = texts.in_place(config, tmp_path, dataset)
    texts.save(tokenizer, tmp_path)
    asked = asked_texts(config, tmp_path, dataset, 24)
    np.testing.assert_array_equal(asked, np.repeat(made.text[np.arange(12)], 2, axis=0))
    np.testing.assert_array_equal(asked_texts(config, tmp_path, dataset, 3), made.text[np.array([0, 4, 8])])


def test_bits_per_dimension_are_those_of_images_with_their_captions(squares, tmp_path):
    config = customise(config_of(squares), data={"heldout_fraction": 0.5})
    train_data, heldout = (data.load(runs.data_seed(config), split) for split in ("train", "heldout"))
    _, tokenizer = texts.in_place(config, tmp_path, train_data)
    texts.save(tokenizer, tmp_path)
    indices = np.array([2, 0])
    tokens = bits_per_dim.conditions(config, tmp_path, train_data, heldout, indices)
    np.testing.assert_array_equal(tokens, tokenizer.encode([heldout.captions[i] for i in indices]))
    assert tokens.any(axis=1).all()


def test_a_sample_is_of_its_caption_if_its_picture_is_the_nearest_of_the_kind():
    images = np.eye(4).reshape(4, 1, 2, 2)
    wanted = Pictures(images[:2], ("a", "b"), np.array(["x", "y"]))
    others = Pictures(images[2:], ("c", "d"), np.array(["x", "x"]))
    samples = 0.9 * images[np.array([[0, 2], [3, 0]])]
    found = shares(samples, wanted, others)
    assert found["x"] == {"share": 0.5, "standard_error": 0.0, "chance": pytest.approx(1 / 3), "captions": 1}
    assert found["y"]["share"] == 1.0  # y has one picture alone
    assert found["all"]["share"] == 0.75


@pytest.mark.long
def test_a_run_learns_from_captions_resumes_and_draws_prompts_without_its_data(squares, tmp_path, command):
    config = config_of(squares, heldout_every=0)
    train(config, tmp_path / "straight")
    shutil.copytree(tmp_path / "straight", tmp_path / "resumed")
    shutil.rmtree(tmp_path / "resumed" / "checkpoints" / "4")
    train(config, tmp_path / "resumed")
    last = []
    for run in ("straight", "resumed"):
        rows = [json.loads(line) for line in (tmp_path / run / "metrics.jsonl").read_text().splitlines()]
        last.append([row["loss"] for row in rows if row["step"] == 4][-1])
    assert last[0] == last[1]
    shutil.rmtree(squares)
    output = command("sample", f"--workdir={tmp_path / 'straight'}", "--prompt=dark red square", "--prompt=pink square",
                     "--num_samples=4")  # fmt: skip
    assert "prompt 'pink square': unknown words: pink" in output
    with np.load(tmp_path / "straight" / "sampled" / "samples.npz") as held:
        assert held["samples"].shape == (4, 8, 8, 3)
        assert held["prompts"].tolist() == ["dark red square", "pink square"] * 2
    command("text_to_image", f"--model={tmp_path / 'straight'}", "--prompt=red square", "--num_images=2", "--steps=2",
            f"--output={tmp_path / 'drawn'}")  # fmt: skip
    assert (tmp_path / "drawn" / "00001.png").exists()
    refused = command("text_to_image", f"--model={tmp_path / 'straight'}", "--prompt=red", "--negative=blue", code=1)
    assert "--negative does not apply to" in refused
    (tmp_path / "straight" / "text.json").unlink()
    lost = command("sample", f"--workdir={tmp_path / 'straight'}", "--prompt=red", code=1)
    assert "text.json, the vocabulary of the run, cannot be read" in lost
