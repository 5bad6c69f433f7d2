"""Data sets that a user's own function returns: arrays, indexable data sets, iterables."""

import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from experiments import data

IMAGES = np.random.default_rng(0).integers(0, 256, (6, 4, 5, 3), dtype=np.uint8)
LABELS = np.array([0, 1, 2, 0, 1, 2])


class Indexable:
    """As the data sets of Hugging Face, torchvision or grain: a length and examples by index."""

    def __init__(self, examples):
        self.examples, self.read = examples, []

    def __len__(self):
        return len(self.examples)

    def __getitem__(self, index):
        if not isinstance(index, int):
            raise TypeError(index)
        self.read.append(index)
        return self.examples[index]


def examples(images=IMAGES, labels=LABELS):
    return [{"image": image, "label": int(label)} for image, label in zip(images, labels)]


def pictures():
    return [{"image": Image.fromarray(image), "label": np.int64(label)} for image, label in zip(IMAGES, LABELS)]


def to_dataset(returned, whole=True, **fields):
    return data.to_dataset(SimpleNamespace(**fields), returned, "mine", whole=whole)


@pytest.mark.parametrize(
    "returned",
    [
        lambda: data.Dataset(IMAGES, LABELS.astype(np.int32), (4, 5, 3), 3),
        lambda: (IMAGES, LABELS),
        lambda: {"images": IMAGES, "labels": LABELS},
        lambda: {"image": IMAGES, "label": LABELS},
        lambda: Indexable(examples()),
        lambda: Indexable(pictures()),
        lambda: Indexable([tuple(example.values()) for example in pictures()]),
        examples,
        lambda: iter(examples()),
        lambda: (example for example in pictures()),
    ],
)
def test_every_form_gives_the_same_data(returned):
    dataset = to_dataset(returned())
    np.testing.assert_array_equal(dataset.images, IMAGES)
    np.testing.assert_array_equal(dataset.labels, LABELS)
    assert (dataset.shape, dataset.num_classes, dataset.labels.dtype) == ((4, 5, 3), 3, np.int32)


def test_load_calls_the_function_for_each_split(monkeypatch):

    def load(config, split):
        train, heldout = data.split_indices(len(IMAGES), config.heldout_fraction, config.seed)
        chosen = train if split == "train" else heldout
        return IMAGES[chosen], LABELS[chosen]

    module = ModuleType("my_own_data")
    module.load, module.number = load, 3
    monkeypatch.setitem(sys.modules, "my_own_data", module)
    fields = {"heldout_fraction": 0.34, "seed": 0, "num_classes": 3, "shape": (4, 5, 3)}
    config = SimpleNamespace(name="my_own_data:load", **fields)
    assert [len(data.load(config, split)) for split in ("train", "heldout")] == [4, 2]
    with pytest.raises(ValueError, match="is no function"):
        data.load(SimpleNamespace(**{**fields, "name": "my_own_data:number"}), "train")
    with pytest.raises(ValueError, match="no_such_module"):
        data.load(SimpleNamespace(**{**fields, "name": "no_such_module_here:load"}), "train")
    with pytest.raises(ValueError, match=r"data.shape is \(9, 9, 3\), but .* \(4, 5, 3\)"):
        data.load(SimpleNamespace(**{**fields, "name": "my_own_data:load", "shape": (9, 9, 3)}), "train")


def test_a_heldout_split_may_lack_classes(monkeypatch):

    module = ModuleType("my_own_data")
    module.load = lambda config, split: (IMAGES[:2], LABELS[:2])
    monkeypatch.setitem(sys.modules, "my_own_data", module)
    config = SimpleNamespace(name="my_own_data:load", num_classes=3)
    assert data.load(config, "heldout").num_classes == 3
    with pytest.raises(ValueError, match=r"3 classes are configured, but the data .* have 2"):
        data.load(config, "train")


def test_large_indexable_data_are_read_on_demand():
    source = Indexable(examples())
    dataset = to_dataset(source, memory_limit_mb=0)
    assert not isinstance(dataset.images, np.ndarray)
    source.read.clear()
    batch = data.batch_at(dataset, 2, 0, 0)
    assert sorted(source.read) == sorted(data.batch_indices(dataset, 2, 0, 0).tolist())
    whole = to_dataset(Indexable(examples()))
    for name, array in data.batch_at(whole, 2, 0, 0).items():
        np.testing.assert_array_equal(array, batch[name])
    floats = Indexable(examples(np.where(IMAGES < 128, -0.5, 0.5)))
    assert set(np.unique(data.batch_at(to_dataset(floats, memory_limit_mb=0), 4, 0, 0)["image"])) == {-0.5, 0.5}
    mapped = to_dataset(Indexable(examples(IMAGES / 255)), memory_limit_mb=0, value_range=(0, 1))
    np.testing.assert_allclose(data.float_images(mapped), IMAGES / 127.5 - 1, atol=1e-6)
    raw = to_dataset(Indexable(examples()), memory_limit_mb=0, normalize=False)
    np.testing.assert_array_equal(data.float_images(raw), IMAGES)


def test_columns_and_class_names_of_hugging_face_data_sets():
    class Columns(Indexable):
        column_names = ("image", "label")
        features = {"label": SimpleNamespace(names=["ant", "bee", "cat"])}  # noqa: RUF012

        def __getitem__(self, index):
            return LABELS.tolist() if index == "label" else super().__getitem__(index)

    source = Columns(pictures())
    dataset = to_dataset(source, memory_limit_mb=0)
    assert dataset.class_names == to_dataset(source).class_names == ("ant", "bee", "cat")
    np.testing.assert_array_equal(dataset.labels, LABELS)


def test_pillow_images_are_converted_as_files_are():
    image = Image.new("RGBA", (8, 4), (255, 0, 0, 0))
    (white,) = to_dataset([{"image": image}], shape=(2, 2, 3), resize="crop").images
    assert (white == 255).all()
    grey = to_dataset([{"image": IMAGES[0, ..., 0], "text": "a"}], shape=(4, 5, 1))
    assert grey.shape == (4, 5, 1)
    assert grey.captions == ("a",)


def endless():
    while True:
        yield {"image": IMAGES[0]}


@pytest.mark.parametrize(
    ("returned", "fields", "message"),
    [
        (
            endless(),
            {"memory_limit_mb": 0.001},
            r"more than data.memory_limit_mb=0.001 MB after 18 examples.*on demand",
        ),
        (iter([]), {}, "mine: no examples"),
        (Indexable([]), {}, "mine: no examples"),
        (data.Dataset(IMAGES / 255, None, (4, 5, 3), 0), {}, "mine: all floats lie in"),
        (data.Dataset(IMAGES, LABELS * 2, (4, 5, 3), 3), {}, r"label 4 \(index 2\) is beyond the 3 classes"),
        (3, {}, "returned int; it must return a Dataset, arrays"),
        ([{"img": IMAGES[0]}], {}, "example 0 has no 'image'; it has img; set data.images_key"),
        ([{"image": "x.png"}], {}, "example 0: the image is str, not an array"),
        ([{"image": IMAGES[0]}, {"image": IMAGES[1, :3]}], {}, r"example 1 has the shape \(3, 5, 3\).*set data.resize"),
        ([{"image": IMAGES[0]}, {"image": IMAGES[1] / 255}], {}, "example 1 is float64, those before it uint8"),
        (examples(IMAGES / 255), {}, r"mine: all floats lie in .*value_range"),
        (Indexable(examples(IMAGES / 255)), {"memory_limit_mb": 0}, r"mine: all floats lie in .*value_range"),
        (examples(IMAGES * 2.0), {}, "float images must lie within"),
        ([*examples(), {"image": IMAGES[0]}], {}, "1 of 7 examples have no label, the first is 6"),
        ([{"image": image, "label": 0.5} for image in IMAGES], {}, "labels must be integers"),
        (examples(labels=LABELS * 2), {}, "class 1 has none"),
        ([{"image": Image.new("RGB", (3, 3))}, {"image": Image.new("RGB", (4, 4))}], {}, "example 1: is 4x4, not 3x3"),
        ({"x": IMAGES}, {}, "no array 'images'; it returned x"),
    ],
)
def test_what_cannot_be_used_is_named(returned, fields, message):
    with pytest.raises(ValueError, match=message):
        to_dataset(returned, **fields)


def test_a_later_bad_example_is_named_when_it_is_read():
    images = np.where(IMAGES < 128, -0.5, 0.5)
    source = Indexable(examples(images))
    dataset = to_dataset(source, memory_limit_mb=0)
    source.examples[4] = {"image": images[4] * np.nan, "label": 0}
    with pytest.raises(ValueError, match=r"mine: example 4: 60 of 60 image entries are NaN"):
        data.float_images(dataset)
    source.examples[4] = {"image": IMAGES[4], "label": 0}
    with pytest.raises(ValueError, match=r"mine: example 4 is uint8 \(4, 5, 3\), others are float64"):
        data.float_images(dataset)
    source.examples[4] = {"image": images[4] * 9, "label": 0}
    with pytest.raises(ValueError, match=r"mine: example 4: values lie in \[-4.5, 4.5\]"):
        data.float_images(dataset)
