"""Records of data sets: that other data, another order and another split are noticed, and what is lost by them."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from experiments import data


def arrays(path, images, labels=None, names=None, **fields):
    extra = {} if labels is None else {"labels": labels}
    np.savez(path, images=images, **extra, **({} if names is None else {"class_names": np.array(names)}))
    return record(SimpleNamespace(name="arrays", path=str(path), **fields))


def record(fields):
    train, heldout = (data.load(fields, split) for split in ("train", "heldout"))
    return data.describe(train, heldout)


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).integers(0, 256, (400, 4, 4, 1), dtype=np.uint8)


@pytest.fixture
def old(tmp_path, images):
    return arrays(tmp_path / "x.npz", images)


def test_the_same_data_do_not_differ_and_a_record_survives_json(tmp_path, images, old):
    again = arrays(tmp_path / "moved.npz", images)
    assert data.compare(old, again) == []
    stored = data.Record(json.loads(json.dumps(old.summary)), old.hashes)
    assert data.compare(stored, again) == []
    assert (old.summary["train"], old.summary["heldout"], old.summary["shape"]) == (320, 80, [4, 4, 1])
    assert {name: (h.dtype, len(h)) for name, h in old.hashes.items()} == {
        "train": (np.uint64, 320),
        "heldout": (np.uint64, 80),
    }


def test_another_split_names_how_many_were_trained_on(tmp_path, images, old):
    split, new = data.split_indices(400, 0.2, 0), data.split_indices(400, 0.2, 1)
    trained_on = len(np.intersect1d(new[1], split[0]))
    assert 40 < trained_on < 80
    assert data.compare(old, arrays(tmp_path / "x.npz", images, seed=1)) == [
        "the same examples in another split (data.heldout_fraction or seed)",
        f"{trained_on} of 80 held-out examples were trained on",
        f"{trained_on} of 320 training examples were held out before",
    ]
    differences = data.compare(old, arrays(tmp_path / "x.npz", images, heldout_fraction=0.1))
    assert differences[0] == "320 training and 80 held-out examples are now 360 and 40"


def test_another_order_is_noticed(tmp_path, images, old):
    order = np.random.default_rng(1).permutation(400)  # other examples land in the held-out places
    assert "another split" in data.compare(old, arrays(tmp_path / "x.npz", images[order]))[0]
    train, heldout = data.split_indices(400, 0.2, 0)
    within = np.arange(400)
    within[train], within[heldout] = train[::-1], heldout
    assert data.compare(old, arrays(tmp_path / "x.npz", images[within])) == [
        "the same examples in another order, so that a resumed run draws other batches"
    ]


def test_other_content_is_counted(tmp_path, images, old):
    changed = images.copy()
    changed[7, 0, 0, 0] ^= 1
    (difference,) = data.compare(old, arrays(tmp_path / "x.npz", changed))
    assert difference == "1 of 400 examples are new or changed, 1 of 400 are gone"
    fewer = data.compare(old, arrays(tmp_path / "x.npz", images[:-20]))
    assert fewer[:2] == [
        "320 training and 80 held-out examples are now 304 and 76",
        "0 of 380 examples are new or changed, 20 of 400 are gone",
    ]
    assert any("held-out examples were trained on" in difference for difference in fewer)
    larger = arrays(tmp_path / "x.npz", np.zeros((400, 2, 2, 1), np.uint8) + 9)
    assert "the shape of an example was [4, 4, 1] and is [2, 2, 1]" in data.compare(old, larger)


def test_labels_and_class_names_are_compared(tmp_path, images):
    labels = np.arange(400) % 2
    old = arrays(tmp_path / "x.npz", images, labels, ["ant", "bee"])
    swapped = labels.copy()
    swapped[[10, 11]] = 1 - labels[[10, 11]]  # the split is drawn within each class, and may change with them
    assert data.compare(old, arrays(tmp_path / "x.npz", images, swapped, ["ant", "bee"]))
    assert data.compare(old, arrays(tmp_path / "x.npz", images, 1 - labels, ["ant", "bee"]))
    renamed = arrays(tmp_path / "x.npz", images, labels, ["bee", "ant"])
    assert data.compare(old, renamed) == ["the classes were ant, bee and are bee, ant"]
    dataset = data.Dataset(images, labels.astype(np.int32), (4, 4, 1), 2)
    other = data.Dataset(images, 1 - labels.astype(np.int32), (4, 4, 1), 2)
    assert data.compare(data.describe(dataset, None), data.describe(other, None)) == ["the labels differ"]


def test_an_example_that_occurs_in_both_splits_is_counted():
    train = data.Dataset(np.array([[0.5], [1.0], [0.5]], np.float32), None, (1,), 0)
    heldout = data.Dataset(np.array([[1.0], [0.25]], np.float32), None, (1,), 0)
    assert data.describe(train, heldout).summary["heldout_also_in_train"] == 1
    once = data.Dataset(np.array([[0.5], [1.0], [1.0]], np.float32), None, (1,), 0)
    assert "more or less often" in data.compare(data.describe(train, None), data.describe(once, None))[0]


def test_noise_of_pairs_belongs_to_the_content(images):
    pairs = [data.Dataset(images, None, (4, 4, 1), 0, noise=np.full(images.shape, z, np.float32)) for z in (0.0, 1.0)]
    assert data.compare(*(data.describe(dataset, None) for dataset in pairs))


def test_files_on_demand_are_compared_by_name_and_size(tmp_path):
    for i in range(10):
        Image.new("RGB", (3, 3), (i, 0, 0)).save(tmp_path / f"{i}.bmp")
    fields = SimpleNamespace(name="images", path=str(tmp_path), memory_limit_mb=0)
    lazily, at_once = record(fields), record(SimpleNamespace(name="images", path=str(tmp_path)))
    assert (lazily.summary["identity"], at_once.summary["identity"]) == ("files", "content")
    assert data.compare(lazily, record(fields)) == data.compare(lazily, at_once) == data.compare(at_once, lazily) == []
    (tmp_path / "3.bmp").rename(tmp_path / "A.bmp")
    assert data.compare(lazily, record(fields))[0] == "1 of 10 examples are new or changed, 1 of 10 are gone"
    renamed = record(SimpleNamespace(name="images", path=str(tmp_path)))
    assert data.compare(lazily, renamed) == ["other files, or the same in another split"]
    Image.new("RGB", (3, 3), (3, 0, 0)).save(tmp_path / "A.bmp", format="PNG")
    assert data.compare(lazily, record(fields))
