"""Data in large files: ArrayRecord, TFDS, Hugging Face and tar give the images, labels and names that were written."""

import base64
import io
import json
import shutil
import tarfile
from pathlib import Path
from types import SimpleNamespace

import msgpack
import numpy as np
import pytest
from array_record.python import array_record_module
from PIL import Image

from experiments import data
from experiments.data.tf_example import parse_example

TFDS = Path(__file__).parent.parent / "golden" / "tfds"
COUNT = 23
IMAGES = np.random.default_rng(0).integers(0, 256, (COUNT, 6, 5, 3), dtype=np.uint8)
LABELS = np.arange(COUNT) % 3


def png(array):
    file = io.BytesIO()
    Image.fromarray(array[..., 0] if array.shape[-1] == 1 else array).save(file, "PNG")
    return file.getvalue()


def write_records(path, records):
    writer = array_record_module.ArrayRecordWriter(str(path), "group_size:1")
    for record in records:
        writer.write(record)
    writer.close()


def write_array_record(folder, entries=None, shards=3):
    if entries is None:
        entries = [{"image": png(x), "label": int(y), "text": f"c{i}"} for i, (x, y) in enumerate(zip(IMAGES, LABELS))]
    for number, part in enumerate(np.array_split(np.arange(len(entries)), shards)):
        records = [msgpack.packb(entries[i]) for i in part]
        write_records(folder / f"d.array_record-{number:05d}-of-{shards:05d}", records)


def add(archive, name, content):
    member = tarfile.TarInfo(name)
    member.size = len(content)
    archive.addfile(member, io.BytesIO(content))


def write_tar(folder, shards=3):
    for number, part in enumerate(np.array_split(np.arange(COUNT), shards)):
        with tarfile.open(folder / f"d-{number:05d}.tar", "w") as archive:
            for i in part:
                add(archive, f"x/{i:04d}.png", png(IMAGES[i]))
                add(archive, f"x/{i:04d}.cls", str(LABELS[i]).encode())
                add(archive, f"x/{i:04d}.txt", f"c{i}".encode())


def write_hf(folder, splits=None):
    datasets = pytest.importorskip("datasets")
    features = datasets.Features(
        image=datasets.Image(), label=datasets.ClassLabel(names=["a", "b", "c"]), text=datasets.Value("string")
    )

    def table(indices):
        rows = {"image": [{"bytes": png(IMAGES[i]), "path": None} for i in indices], "label": LABELS[indices].tolist()}
        return datasets.Dataset.from_dict({**rows, "text": [f"c{i}" for i in indices]}, features)

    if splits is None:
        table(np.arange(COUNT)).save_to_disk(str(folder / "hf"))
    else:
        datasets.DatasetDict({name: table(part) for name, part in splits.items()}).save_to_disk(str(folder / "hf"))


WRITERS = {"array_record": write_array_record, "tar": write_tar, "hf": write_hf}


def load(kind, folder, part="train", **fields):
    path = folder / "hf" if kind == "hf" else folder
    return data.load(SimpleNamespace(name=kind, path=str(path), **{"heldout_fraction": 0.0, **fields}), part)


def write_tfds(folder):
    """Writes the records that TFDS wrote, as ArrayRecord files."""
    examples = json.loads((TFDS / "examples.json").read_text())
    for name in ("dataset_info.json", "features.json", "label.labels.txt"):
        shutil.copy(TFDS / name, folder)
    for split, records in examples["serialized"].items():
        write_records(folder / f"my-{split}.array_record-00000-of-00001", map(base64.b64decode, records))
    return examples["decoded"]


@pytest.mark.parametrize("limit", [0, 100])
@pytest.mark.parametrize("kind", WRITERS)
def test_images_labels_and_captions_are_those_that_were_written(tmp_path, kind, limit):
    WRITERS[kind](tmp_path)
    dataset = load(kind, tmp_path, memory_limit_mb=limit)
    assert isinstance(dataset.images, np.ndarray) == (limit > 0)
    assert (dataset.shape, dataset.num_classes, len(dataset)) == ((6, 5, 3), 3, COUNT)
    np.testing.assert_allclose(data.float_images(dataset), IMAGES / 127.5 - 1, atol=1e-6)
    np.testing.assert_array_equal(dataset.labels, LABELS)
    assert dataset.labels.dtype == np.int32
    assert list(dataset.captions) == [f"c{i}" for i in range(COUNT)]
    batch = next(data.batches(dataset, 7, 0, start_step=5))
    order = data.batch_indices(dataset, 7, 0, 5)
    np.testing.assert_allclose(batch["image"], IMAGES[order] / 127.5 - 1, atol=1e-6)
    np.testing.assert_array_equal(batch["label"], LABELS[order])


@pytest.mark.parametrize("kind", WRITERS)
def test_the_splits_are_disjoint_and_together_everything(tmp_path, kind):
    WRITERS[kind](tmp_path)
    train, heldout = (load(kind, tmp_path, s, heldout_fraction=0.3, memory_limit_mb=0) for s in ("train", "heldout"))
    assert (len(train), len(heldout)) == (16, 7)
    texts = [*train.captions, *heldout.captions]
    assert sorted(texts) == sorted(f"c{i}" for i in range(COUNT))
    np.testing.assert_allclose(
        np.concatenate([data.float_images(part) for part in (train, heldout)]),
        IMAGES[[int(text[1:]) for text in texts]] / 127.5 - 1,
        atol=1e-6,
    )


@pytest.mark.parametrize("kind", WRITERS)
def test_a_record_identifies_examples_without_reading_them(tmp_path, kind, monkeypatch):
    WRITERS[kind](tmp_path)
    of_splits = lambda seed: [  # noqa: E731
        load(kind, tmp_path, part, heldout_fraction=0.3, memory_limit_mb=0, seed=seed) for part in ("train", "heldout")
    ]
    first, again, other = of_splits(0), of_splits(0), of_splits(1)
    monkeypatch.setattr(Image, "open", None)
    record = data.describe(*first)
    assert len(np.unique(np.concatenate([*record.hashes.values()]))) == COUNT
    assert record.summary["identity"] == "files"
    assert data.compare(record, data.describe(*again)) == []
    assert any("held-out examples were trained on" in each for each in data.compare(record, data.describe(*other)))


def test_tfds_folders_are_read_as_by_their_own_library(tmp_path):
    decoded = write_tfds(tmp_path)
    train, heldout = (load("tfds", tmp_path, split, heldout_split="test") for split in ("train", "heldout"))
    for dataset, examples in ((train, decoded["train"]), (heldout, decoded["test"])):
        images = np.array([example["image"] for example in examples]).reshape(-1, 4, 4, 3)
        np.testing.assert_allclose(data.float_images(dataset), images / 127.5 - 1, atol=1e-6)
        assert dataset.labels.tolist() == [example["label"] for example in examples]
        assert list(dataset.captions) == [example["text"] for example in examples]
        assert dataset.class_names == ("a", "b")
    share = load("tfds", tmp_path, "heldout", heldout_fraction=0.5)
    assert len(share) == 3
    assert set(share.captions) < {example["text"] for example in decoded["train"]}
    assert len(load("tfds", tmp_path, split="test")) == 3


def test_tfds_tensors_are_read(tmp_path):
    write_tfds(tmp_path)
    info = json.loads((tmp_path / "features.json").read_text())
    tensor = {"dtype": "uint8", "encoding": "none", "shape": {"dimensions": ["1", "2", "1"]}}
    name = "tensorflow_datasets.core.features.tensor_feature.Tensor"
    info["featuresDict"]["features"] = {"image": {"pythonClassName": name, "tensor": tensor}}
    (tmp_path / "features.json").write_text(json.dumps(info))
    values = b"\x0a\x13\x0a\x11\x0a\x05image\x12\x08\x1a\x06\x0a\x04\xc8\x01\xff\x01"  # int64_list [200, 255]
    assert parse_example(values) == {"image": [200, 255]}
    write_records(tmp_path / "my-train.array_record-00000-of-00001", [values] * 2)
    images = load("tfds", tmp_path, channels=1).images
    assert images.tolist() == [[[[200], [255]]]] * 2


def test_hf_splits_class_names_and_selected_rows(tmp_path):
    write_hf(tmp_path, {"train": np.arange(15), "test": np.arange(15, COUNT)})
    train, heldout = (load("hf", tmp_path, split, heldout_split="test") for split in ("train", "heldout"))
    assert (len(train), len(heldout), train.class_names) == (15, 8, ("a", "b", "c"))
    np.testing.assert_array_equal(heldout.images, IMAGES[15:])
    datasets = pytest.importorskip("datasets")
    shuffled = datasets.load_from_disk(str(tmp_path / "hf"))["train"].select([3, 1, 7])
    shuffled.save_to_disk(str(tmp_path / "few" / "hf"))
    few = load("hf", tmp_path / "few", num_classes=3)
    np.testing.assert_array_equal(few.images, IMAGES[[3, 1, 7]])
    assert few.labels.tolist() == [0, 1, 1]
    with pytest.raises(ValueError, match=r"no split 'dev'; it has train, test; set data.split"):
        load("hf", tmp_path, "heldout", heldout_split="dev")


def test_hf_array_columns_are_pixels(tmp_path):
    datasets = pytest.importorskip("datasets")
    features = datasets.Features(pixels=datasets.Array3D((6, 5, 3), "uint8"), digit=datasets.Value("int64"))
    table = datasets.Dataset.from_dict({"pixels": IMAGES[:4].tolist(), "digit": [0, 1, 1, 0]}, features)
    table.save_to_disk(str(tmp_path / "hf"))
    dataset = load("hf", tmp_path, images_key="pixels", labels_key="digit", memory_limit_mb=0)
    np.testing.assert_allclose(data.float_images(dataset), IMAGES[:4] / 127.5 - 1, atol=1e-6)
    assert dataset.labels.tolist() == [0, 1, 1, 0]


def test_pixels_class_names_and_other_sizes_in_array_record(tmp_path):
    entries = [{"image": x[..., :1].tobytes(), "shape": [6, 5, 1], "label": i % 2} for i, x in enumerate(IMAGES)]
    write_array_record(tmp_path, entries)
    (tmp_path / "class_names.json").write_text('["cat", "dog"]')
    dataset = load("array_record", tmp_path, channels=1)
    np.testing.assert_array_equal(dataset.images, IMAGES[..., :1])
    assert dataset.class_names == ("cat", "dog")
    resized = load("array_record", tmp_path, image_size=4, channels=1, resize="adm_random_crop", num_classes=0)
    assert resized.labels is None
    assert data.batch_at(resized, 4, 0, 0)["image"].shape == (4, 4, 4, 1)


def test_labels_are_read_once_and_again_when_a_shard_changes(tmp_path, capsys):
    write_array_record(tmp_path)
    load("array_record", tmp_path)
    index = list(tmp_path.glob("index-array_record-*.npz"))
    assert len(index) == 1
    held = dict(np.load(index[0]))
    np.savez(index[0], labels=2 - held["labels"])  # evidence that the file is read
    np.testing.assert_array_equal(load("array_record", tmp_path).labels, 2 - LABELS)
    index[0].write_bytes(b"damaged")
    np.testing.assert_array_equal(load("array_record", tmp_path).labels, LABELS)
    assert "is damaged and is written anew" in capsys.readouterr().out
    write_array_record(tmp_path, [{"image": png(x), "label": 1 - y % 2} for x, y in zip(IMAGES, LABELS.tolist())])
    np.testing.assert_array_equal(load("array_record", tmp_path).labels, 1 - LABELS % 2)


def test_json_members_and_unlabelled_tar_files(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for i in range(4):
            add(archive, f"{i}.jpg.meta", b"ignored")
            add(archive, f"{i}.json", json.dumps({"label": i % 2, "caption": f"c{i}"}).encode())
            add(archive, f"{i}.png", png(IMAGES[i]))
    dataset = load("tar", tmp_path / "a.tar")
    np.testing.assert_array_equal(dataset.images, IMAGES[:4])
    assert (dataset.labels.tolist(), list(dataset.captions)) == ([0, 1, 0, 1], ["c0", "c1", "c2", "c3"])
    assert load("tar", tmp_path, num_classes=0).labels is None


def bad_tar(folder, *members, mode="w"):
    with tarfile.open(folder / "a.tar", mode) as archive:
        for name, content in members:
            add(archive, name, content)


ERRORS = {
    "no shards": ("array_record", lambda f: None, {}, r"no files \*.array_record; set --config.data.path to a folder"),
    "no tar": ("tar", lambda f: None, {}, r"no files \*.tar; set --config.data.path"),
    "foreign record": ("array_record", lambda f: write_records(f / "a.array_record", [b"\x0a\x03abc"]), {},
                       r"a.array_record: record 0: not a MessagePack map .*data.name=tfds"),
    "foreign file": ("array_record", lambda f: (f / "a.array_record").write_bytes(b"x" * 99), {},
                     r"a.array_record: not a readable ArrayRecord file"),
    "no image": ("array_record", lambda f: write_array_record(f, [{"picture": b""}], 1), {},
                 r"record 0: no 'image'; it has picture; set data.images_key"),
    "no label": ("array_record", lambda f: write_array_record(f, [{"image": png(IMAGES[0]), "label": 0},
                                                                 {"image": png(IMAGES[0])}], 1), {},
                 r"00000-of-00001: record 1: no label, but others have one"),
    "label text": ("array_record", lambda f: write_array_record(f, [{"image": b"", "label": "cat"}], 1), {},
                   r"record 0: the label must be an integer 0, 1, ...; got 'cat'"),
    "damaged image": ("array_record", lambda f: write_array_record(f, [{"image": png(IMAGES[0])[:60]}], 1), {},
                      r"record 0: not a readable image"),
    "short pixels": ("array_record", lambda f: write_array_record(f, [{"image": b"abc", "shape": [2, 2, 1]}], 1), {},
                     r"record 0: 3 bytes of pixels do not have the shape \[2, 2, 1\]"),
    "other size": ("array_record", lambda f: write_array_record(f, [{"image": png(IMAGES[0])},
                                                                   {"image": png(IMAGES[0, :4])}], 1), {},
                   r"record 1: is 5x4, not 5x6; set data.resize"),
    "shape": ("array_record", write_array_record, {"shape": (8, 8, 3)}, r"data.shape is \(8, 8, 3\), but the examples"),
    "gzip": ("tar", lambda f: bad_tar(f, ("a.png", b""), mode="w:gz"), {}, r"a.tar: not a readable, uncompressed tar"),
    "no pictures": ("tar", lambda f: bad_tar(f, ("a.mp4", b"x")), {}, r"the tar files hold no images \(.png"),
    "two images": ("tar", lambda f: bad_tar(f, ("a.png", b"x"), ("a.jpg", b"y")), {}, r"a.jpg: a second image of one"),
    "class text": ("tar", lambda f: bad_tar(f, ("a.png", b"x"), ("a.cls", b"cat")), {}, r"a.cls: must hold an integer"),
    "unlabelled": ("tar", lambda f: bad_tar(f, ("a.png", b"x"), ("a.cls", b"1"), ("b.png", b"x")), {},
                   r"a.tar: the image at byte \d+: no label, but others have one"),
    "not tfds": ("tfds", lambda f: None, {}, r"no dataset_info.json; set --config.data.path to a folder of a data set"),
    "no split": ("tfds", write_tfds, {"heldout_split": "dev"}, r"no split 'dev'; it has train, test; set data.split"),
    "same split": ("tfds", write_tfds, {"heldout_split": "train"}, r"data.heldout_split is data.split, 'train'"),
    "no feature": ("tfds", write_tfds, {"images_key": "photo"}, r"no 'photo'; it has image, label, text; correct data"),
}  # fmt: skip


@pytest.mark.parametrize("case", ERRORS)
def test_errors_name_the_file_the_reason_and_the_remedy(tmp_path, case):
    kind, write, fields, message = ERRORS[case]
    write(tmp_path)
    split = "heldout" if "heldout_split" in fields else "train"
    with pytest.raises(ValueError, match=message) as caught:
        load(kind, tmp_path, split, **fields)
    assert "\n" not in str(caught.value)


def test_other_file_formats_and_missing_shards_of_tfds_are_refused(tmp_path):
    write_tfds(tmp_path)
    (tmp_path / "my-train.array_record-00000-of-00001").unlink()
    with pytest.raises(ValueError, match=r"00000-of-00001: 1 of the 1 shards of the split 'train' are missing"):
        load("tfds", tmp_path)
    info = json.loads((tmp_path / "dataset_info.json").read_text())
    (tmp_path / "dataset_info.json").write_text(json.dumps({**info, "fileFormat": "tfrecord"}))
    with pytest.raises(ValueError, match=r"its file format is 'tfrecord', not 'array_record'; prepare it with"):
        load("tfds", tmp_path)
