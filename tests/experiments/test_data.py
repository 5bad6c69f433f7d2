"""The data of the experiments: splits, formats, and that a resumed run sees the same batches."""

import gzip
import io
import itertools
import struct
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from diffusers_fn.from_config.defaults import customise, default_config
from experiments import data, runs
from experiments.data.toy2d import CLOUDS, sample_cloud


def config(**fields):
    return SimpleNamespace(**fields)


# --- splits -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fraction", [0.0, 0.1, 0.2, 0.37, 0.99])
def test_split_parts_are_disjoint_cover_everything_and_keep_class_shares(fraction):
    labels = np.repeat(np.arange(4), [50, 7, 131, 1])
    train, heldout = data.split_indices(len(labels), fraction, seed=3, labels=labels)
    assert sorted([*train, *heldout]) == list(range(len(labels)))
    assert len(heldout) == round(fraction * len(labels))
    expected = np.bincount(labels) * len(heldout) / len(labels)
    assert (np.abs(np.bincount(labels[heldout], minlength=4) - expected) < 1).all()


def test_split_depends_on_the_seed_alone():
    first, again, other = (data.split_indices(100, 0.3, seed)[1].tolist() for seed in (0, 0, 1))
    assert first == again != other


def test_digits_are_the_1797_of_scikit_learn_split_in_two():
    from sklearn.datasets import load_digits

    train, heldout = (data.load(config(name="digits", seed=5), split) for split in ("train", "heldout"))
    assert (len(train), len(heldout)) == (1438, 359)
    assert train.shape == train.images.shape[1:] == (8, 8, 1)
    assert train.images.dtype == np.float32
    assert train.labels.dtype == np.int32
    assert train.images.min() == -1
    assert train.images.max() == 1
    both = np.concatenate([train.images, heldout.images])[..., 0] * 8 + 8  # grey levels 0..16 again
    original = load_digits()
    rows = {tuple(image.ravel().astype(int)): label for image, label in zip(original.images, original.target)}
    labels = np.concatenate([train.labels, heldout.labels])
    assert sorted(map(tuple, both.reshape(1797, 64).astype(int))) == sorted(
        map(tuple, original.images.reshape(1797, 64).astype(int))
    )
    assert all(rows[tuple(image.ravel().astype(int))] == label for image, label in zip(both, labels))
    np.testing.assert_allclose(np.bincount(heldout.labels) / 359, np.bincount(original.target) / 1797, atol=1 / 359)


def test_config_dict_and_absent_fields_are_both_fine():
    ml_collections = pytest.importorskip("ml_collections")
    full = ml_collections.ConfigDict({"name": "digits", "seed": 0, "heldout_fraction": 0.2, "path": None})
    np.testing.assert_array_equal(data.load(full, "heldout").images, data.load(config(name="digits"), "heldout").images)


def test_num_classes_bounds_or_drops_labels():
    assert data.load(config(name="digits", num_classes=10), "train").num_classes == 10
    with pytest.raises(
        ValueError, match=r"12 classes are configured, but the data \(digits\) have 10: .*classes 10..11"
    ):
        data.load(config(name="digits", num_classes=12), "train")
    unlabelled = data.load(config(name="digits", num_classes=0), "train")
    assert unlabelled.labels is None
    assert unlabelled.num_classes == 0
    with pytest.raises(ValueError, match=r"9 classes are configured.*up to 9.*to 10"):
        data.load(config(name="digits", num_classes=9), "train")
    with pytest.raises(ValueError, match=r"have no labels.*to 0"):
        data.load(config(name="toy2d", variant="swiss_roll", num_classes=2), "train")


@pytest.mark.parametrize(
    ("fields", "split", "message"),
    [
        (
            {"name": "mnist"},
            "train",
            "data.name must be one of digits, idx, images, arrays, toy2d, .*of your own; got 'mnist'",
        ),
        ({"name": "digits", "shape": (8, 8, 3)}, "train", r"data.shape is \(8, 8, 3\), but .* \(8, 8, 1\)"),
        ({"name": "digits"}, "test", 'split must be "train" or "heldout"; got \'test\''),
        ({"name": "digits", "heldout_fraction": 1.0}, "train", r"heldout_fraction must lie in \[0, 1\); got 1.0"),
        ({"name": "digits", "heldout_fraction": 0.0}, "heldout", "the heldout split is empty"),
        ({"name": "digits", "seed": -1}, "train", "seed must be an integer in .*; got -1"),
        ({"name": "idx"}, "train", "data.path is not set.*dataset-fashion-mnist"),
        ({"name": "idx", "path": "/nowhere/at/all"}, "train", "not a folder: /nowhere/at/all.*Debian"),
        ({"name": "images", "path": ""}, "train", "data.path is not set"),
        ({"name": "images", "path": "/nowhere/at/all"}, "train", "not a folder: /nowhere/at/all"),
        ({"name": "arrays"}, "train", "data.path is not set"),
        (
            {"name": "arrays", "path": "/nowhere.npz"},
            "train",
            "existing .npy or .npz file, or a folder of shards; got /nowhere.npz",
        ),
        ({"name": "toy2d", "variant": "cube"}, "train", "data.variant must be one of moons.*; got 'cube'"),
        ({"name": "toy2d", "variant": "rings", "num_examples": 1}, "train", "at least 2; got 1"),
    ],
)
def test_errors_of_bad_configs_name_the_remedy(fields, split, message):
    with pytest.raises(ValueError, match=message):
        data.load(config(**fields), split)


def test_the_number_of_classes_is_that_of_the_network():
    conditional = customise(default_config(), backbone={"num_classes": 10})
    assert runs.data_seed(conditional).num_classes == 10
    assert data.load(runs.data_seed(conditional), "train").num_classes == 10
    assert data.load(runs.data_seed(customise(default_config())), "train").labels is None
    guided_by_a_classifier = customise(default_config(), data={"num_classes": 10})
    assert runs.data_seed(guided_by_a_classifier).num_classes == 10
    autoencoder = customise(default_config(), backbone={"name": "simple_autoencoder"})
    assert data.load(runs.data_seed(autoencoder), "train").num_classes == 10  # latents keep the labels


# --- IDX ----------------------------------------------------------------------------------------------------


def idx_bytes(array):
    return bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def write_idx(folder, *, zipped=False, counts=(6, 4), classes=3):
    rng = np.random.default_rng(0)
    written = {}
    for part, count in zip(("train", "t10k"), counts):
        images = rng.integers(0, 256, (count, 5, 4), dtype=np.uint8)
        labels = (np.arange(count) % classes).astype(np.uint8)
        for name, array in ((f"{part}-images-idx3-ubyte", images), (f"{part}-labels-idx1-ubyte", labels)):
            raw = idx_bytes(array)
            (folder / (name + ".gz" * zipped)).write_bytes(gzip.compress(raw) if zipped else raw)
        written[part] = images, labels
    return written


@pytest.mark.parametrize("zipped", [False, True])
def test_idx_round_trip(tmp_path, zipped):
    written = write_idx(tmp_path, zipped=zipped, counts=(6, 2))
    for split, part in (("train", "train"), ("heldout", "t10k")):
        loaded = data.load(config(name="idx", path=str(tmp_path)), split)
        np.testing.assert_array_equal(loaded.images[..., 0], written[part][0])
        np.testing.assert_array_equal(loaded.labels, written[part][1])
        assert loaded.num_classes == 3  # from both files, although t10k has only two of them
        assert loaded.shape == (5, 4, 1)
        np.testing.assert_allclose(data.float_images(loaded), loaded.images / 127.5 - 1, rtol=0, atol=2**-24)


def test_idx_damage_names_the_file(tmp_path):
    def complaint(raw, name="train-images-idx3-ubyte"):
        write_idx(tmp_path)
        (tmp_path / name).write_bytes(raw)
        with pytest.raises(ValueError, match=name) as caught:
            data.load(config(name="idx", path=str(tmp_path)), "train")
        return str(caught.value)

    good = idx_bytes(np.zeros((6, 5, 4), np.uint8))
    assert "truncated: its header has the sizes [6, 5, 4], 136 bytes in all; got 135" in complaint(good[:-1])
    assert "too long" in complaint(good + b"x")
    assert "truncated inside its header" in complaint(good[:9])
    assert "empty file" in complaint(b"")
    assert "must be 00 00 08 03; got 00 00 0d 03" in complaint(b"\0\0\x0d\x03" + good[4:])
    assert "cannot be read" in complaint(gzip.compress(good)[:-9])
    assert "cannot be read" in complaint(gzip.compress(good)[:20] + b"zzzzzzz" + gzip.compress(good)[27:])
    labels = idx_bytes(np.zeros(5, np.uint8))
    (tmp_path / "train-images-idx3-ubyte").write_bytes(good)
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(labels)
    with pytest.raises(ValueError, match="5 labels for 6 images"):
        data.load(config(name="idx", path=str(tmp_path)), "train")
    (tmp_path / "t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(ValueError, match=r"contains neither t10k-labels-idx1-ubyte nor .*gz; .*data.path"):
        data.load(config(name="idx", path=str(tmp_path)), "train")


# --- arrays -------------------------------------------------------------------------------------------------


def load_arrays(tmp_path, split="train", *, images, labels=None, **fields):
    path = tmp_path / "some.npz"
    np.savez(path, images=images, **({} if labels is None else {"labels": labels}))
    return data.load(config(name="arrays", path=str(path), **fields), split)


def test_arrays_keep_each_image_with_its_label(tmp_path):
    labels = np.arange(200)
    images = np.broadcast_to(labels[:, None, None, None], (200, 3, 2, 1)).astype(np.uint8)
    seen = []
    for split, size in (("train", 150), ("heldout", 50)):
        part = load_arrays(tmp_path, split, images=images, labels=labels, heldout_fraction=0.25)
        assert len(part) == size
        assert part.num_classes == 200
        np.testing.assert_array_equal(part.images[:, 0, 0, 0], part.labels)
        seen += part.labels.tolist()
    assert sorted(seen) == labels.tolist()


def test_npy_holds_images_alone(tmp_path):
    np.save(tmp_path / "x.npy", np.linspace(-1, 1, 40, dtype=np.float64).reshape(20, 2))
    loaded = data.load(config(name="arrays", path=str(tmp_path / "x.npy")), "train")
    assert loaded.labels is None
    assert loaded.images.dtype == np.float32
    assert loaded.shape == (2,)


def test_floats_outside_the_range_need_normalize_false(tmp_path):
    latents = np.full((10, 2, 2, 4), 3.0, np.float32)
    with pytest.raises(ValueError, match=r"within \[-1, 1\]; got \[3, 3\].*normalize=False"):
        load_arrays(tmp_path, images=latents)
    assert (load_arrays(tmp_path, images=latents, normalize=False).images == 3.0).all()


@pytest.mark.parametrize(
    ("images", "bounds", "expected"),
    [
        (np.array([[0.0], [0.25], [1.0]]), (0, 1), [-1, -0.5, 1]),
        (np.array([[0], [1]], np.uint8), (0, 1), [-1, 1]),
        (np.array([[False], [True]]), (0, 1), [-1, 1]),
        (np.array([[0], [1], [0]], np.uint8), (0, 255), [-1, 1 / 127.5 - 1, -1]),
        (np.array([[0], [32767.5], [65535]], np.uint16), (0, 65535), [-1, -1 / 65535, 1]),
        (np.array([[-1000], [0], [3000]], np.int64), (-1000, 3000), [-1, -0.5, 1]),
        (np.array([[0.0], [0.5]], np.float32), (-1, 1), [0, 0.5]),
    ],
)
def test_value_range_is_mapped_to_minus_one_and_one(tmp_path, images, bounds, expected):
    part = load_arrays(tmp_path, images=images, value_range=bounds, heldout_fraction=0.0)
    np.testing.assert_allclose(data.float_images(part)[:, 0], expected, atol=1e-7)


@pytest.mark.parametrize(
    ("images", "fields", "message"),
    [
        (
            np.array([[0.0], [1.0]]),
            {},
            r"floats lie in \[0, 1\].*value_range=\(0, 1\) .*value_range=\(-1, 1\) to accept",
        ),
        (np.array([[0], [1]], np.uint8), {}, r"values up to 1; .*value_range=\(0, 1\) .*value_range=\(0, 255\) to"),
        (
            np.array([[0], [9]], np.uint16),
            {},
            r"images are uint16 between 0 and 9; set data.value_range.*normalize=False",
        ),
        (np.array([[False], [True]]), {}, "images are bool between 0 and 1; set data.value_range"),
        (np.array([[0.0], [1.1]]), {"value_range": (0, 1)}, r"lie in \[0, 1.1\], beyond data.value_range = \(0, 1\)"),
        (np.array([[-1.0], [1.0]]), {"value_range": (1, 0)}, "must be .low, high. with low < high"),
        (np.array([[-1.0], [1.0]]), {"value_range": (0, 1, 2)}, "must be .low, high. with low < high"),
        (np.array([[-1.0], [1.0]]), {"value_range": (0, float("nan"))}, "must be .low, high. with low < high"),
        (np.array([[-1.0], [1.0]]), {"value_range": (-1, 1), "normalize": False}, "set one of them"),
        (np.array([[1e39], [1.0]]), {"normalize": False}, "NaN or infinite"),
        (np.array([[1j], [1.0]]), {"normalize": False}, "must be real numbers; got complex128"),
    ],
)
def test_values_in_doubt_are_refused_with_the_remedy(tmp_path, images, fields, message):
    with pytest.raises(ValueError, match=message):
        load_arrays(tmp_path, images=images, **fields)


def test_normalize_false_leaves_every_number_unchanged(tmp_path):
    for dtype in (np.uint8, np.int16, np.float64, bool):
        images = np.array([[0], [1], [200]]).astype(dtype)
        part = load_arrays(tmp_path, images=images, normalize=False, heldout_fraction=0.0)
        assert part.images.dtype == np.float32
        np.testing.assert_array_equal(data.float_images(part), images)


def test_a_range_for_data_that_have_one_is_refused():
    with pytest.raises(ValueError, match=r"data.value_range is for data.name=arrays and functions; digits has a fixed"):
        data.load(config(name="digits", value_range=(0, 1)), "train")


def test_arrays_may_hold_class_names(tmp_path):
    images, labels, path = np.full((6, 1), -1.0), np.array([0, 2, 0, 2, 0, 2], np.uint8), tmp_path / "named.npz"
    np.savez(path, images=images, labels=labels, class_names=np.array(["ant", "bee", "cat"]))
    part = data.load(config(name="arrays", path=str(path), num_classes=3), "train")
    assert (part.class_names, part.num_classes) == (("ant", "bee", "cat"), 3)  # although no bee is there
    np.savez(path, images=images, labels=labels, class_names=np.array(["ant", "bee"]))
    with pytest.raises(ValueError, match=r"label 2 \(index 1\) is beyond the 2 classes"):
        data.load(config(name="arrays", path=str(path)), "train")


def test_labels_in_doubt_are_refused_with_the_remedy(tmp_path):
    images = np.full((4, 1), -1.0)
    for labels, message in (
        (np.array([0, 1, 255, 1], np.uint8), r"go up to 255, but only 3 of the classes 0..255 .*class 2 has none"),
        (np.eye(4)[[0, 1, 2, 3]], r"float64 of shape \[4, 4\]; of one-hot rows store labels.argmax"),
        (np.array(["a", "b", "a", "b"]), r"return_inverse=True"),
        (np.array([0, 1, 2, 2**40]), "label 1099511627776 is too large"),
    ):
        with pytest.raises(ValueError, match=message):
            load_arrays(tmp_path, images=images, labels=labels)
    unused = load_arrays(tmp_path, images=images, labels=np.array([0, 1, 255, 1], np.uint8), num_classes=0)
    assert unused.labels is None
    with pytest.raises(ValueError, match=r"no array 'y'; it holds images, labels; correct data.labels_key"):
        load_arrays(tmp_path, images=images, labels=np.arange(4), labels_key="y")


def test_the_split_does_not_depend_on_whether_labels_are_used(tmp_path):
    images, labels = np.linspace(-1, 1, 60)[:, None], np.arange(60) // 20
    parts = [load_arrays(tmp_path, images=images, labels=labels, num_classes=n).images for n in (None, 0, 3)]
    np.testing.assert_array_equal(parts[0], parts[1])
    np.testing.assert_array_equal(parts[0], parts[2])


def test_channel_first_is_recognised_by_the_configured_shape(tmp_path):
    latents = np.linspace(-1, 1, 2 * 4 * 5 * 6).reshape(2, 4, 5, 6)
    with pytest.raises(ValueError, match=r"look channel-first; .*transpose\(0, 2, 3, 1\)"):
        load_arrays(tmp_path, images=latents, shape=(5, 6, 4))


def test_a_shape_of_two_numbers_loads_sequences(tmp_path):
    sequences = np.linspace(-1, 1, 10 * 6 * 2).reshape(10, 6, 2)
    loaded = load_arrays(tmp_path, images=sequences, shape=(6, 2), heldout_fraction=0.0)
    assert loaded.shape == (6, 2)
    np.testing.assert_allclose(loaded.images, sequences, atol=1e-7)  # float32
    with pytest.raises(ValueError, match=r"data.shape is \(7, 2\), but .* have the shape \(6, 2\)"):
        load_arrays(tmp_path, images=sequences, shape=(7, 2))
    with pytest.raises(ValueError, match=r"must be sequences \[n, L, C\]; got shape \[10, 6\]"):
        load_arrays(tmp_path, images=sequences[..., 0], shape=(6, 2))


def with_nan():
    images = np.zeros((10, 4, 4, 1), np.float32)
    images[3, 1, 2, 0] = np.nan
    images[7] = np.inf
    return images


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (with_nan(), None, r"17 of 160 image entries are NaN or infinite, the first at index \(3, 1, 2, 0\)"),
        (np.zeros((10, 4, 4), np.uint8), None, r"add a channel axis: images\[\.\.\., None\]"),
        (np.zeros((0, 4, 4, 1), np.uint8), None, r"got shape \[0, 4, 4, 1\]"),
        (np.zeros((10, 4, 4, 1), np.int64), None, "images are int64 between 0 and 0; set data.value_range"),
        (np.zeros((10, 3, 8, 8), np.uint8), None, "channel-first"),
        (np.full((10, 4, 4, 1), 9, np.uint8), np.arange(9), "9 labels for 10 images"),
        (np.full((10, 4, 4, 1), 9, np.uint8), np.arange(10) - 1, r"label -1 \(index 0\) is negative"),
        (np.full((10, 4, 4, 1), 9, np.uint8), np.zeros(10), r"must be integers of shape \[n\]; got float64 .*astype"),
        (np.full((10, 4, 4, 1), 9, np.uint8), np.zeros((10, 1), int), r"got int64 of shape \[10, 1\]"),
    ],
)
def test_bad_arrays_are_refused_with_the_file_name(tmp_path, images, labels, message):
    with pytest.raises(ValueError, match=f"some.npz: .*{message}"):
        load_arrays(tmp_path, images=images, labels=labels)


def test_missing_key_and_damaged_file_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"no array 'x'; it holds images, labels; set data.images_key"):
        load_arrays(tmp_path, images=np.zeros((4, 2)), labels=np.arange(4), images_key="x")
    (tmp_path / "bad.npz").write_bytes(b"PK\x03\x04 nonsense")
    with pytest.raises(ValueError, match=r"bad.npz: cannot be read"):
        data.load(config(name="arrays", path=str(tmp_path / "bad.npz")), "train")


# --- image folders ------------------------------------------------------------------------------------------


def write_image(path, size=(6, 4), value=0, mode="RGB"):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, value if mode != "RGB" else (value, value // 2, 0)).save(path)


@pytest.mark.parametrize("lazily", [False, True])
def test_folder_of_class_folders(tmp_path, lazily):
    for label, name in enumerate(("ant", "bee")):
        for i in range(5):
            write_image(tmp_path / name / f"{i}.png", value=100 * label + i)
    fields = config(name="images", path=str(tmp_path), memory_limit_mb=0 if lazily else 100)
    values = []
    for split, size in (("train", 8), ("heldout", 2)):
        part = data.load(fields, split)
        assert isinstance(part.images, np.ndarray) is not lazily
        assert (len(part), part.shape, part.num_classes) == (size, (4, 6, 3), 2)
        assert np.bincount(part.labels).tolist() == [size // 2, size // 2]
        for image, label in zip((part.images[i] for i in range(size)), part.labels):
            assert image.dtype == np.uint8
            assert image[0, 0, 0] // 100 == label
            values.append(int(image[0, 0, 0]))
        batch = next(data.batches(part, 4, seed=0))
        np.testing.assert_allclose(batch["image"][:, 0, 0, 0] * 127.5 + 127.5 >= 99, batch["label"] == 1)
        assert batch["image"].dtype == np.float32
    assert sorted(values) == [0, 1, 2, 3, 4, 100, 101, 102, 103, 104]


def test_flat_folder_has_no_labels_and_grey_is_one_channel(tmp_path):
    for i in range(10):
        write_image(tmp_path / f"{i}.jpg", size=(8, 8), value=20 * i, mode="L")
    part = data.load(config(name="images", path=str(tmp_path), shape=(8, 8, 1), image_size=0), "train")
    assert part.labels is None
    assert part.images.shape == (8, 8, 8, 1)


def test_crop_takes_the_centre_and_keeps_constants(tmp_path):
    pixels = np.zeros((4, 12, 3), np.uint8)
    pixels[:, 4:8] = 200  # the central square
    for i in range(2):
        Image.fromarray(pixels).save(tmp_path / f"{i}.png")
    fields = config(name="images", path=str(tmp_path), image_size=2, heldout_fraction=0.5)
    assert (data.load(fields, "train").images == 200).all()


@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_rotated_photographs_are_turned_upright(tmp_path, suffix):
    exif = Image.Exif()
    exif[0x0112] = 6
    for i in range(2):
        Image.new("RGB", (8, 4)).save(tmp_path / f"{i}.{suffix}", exif=exif)
    part = data.load(config(name="images", path=str(tmp_path), heldout_fraction=0.5), "train")
    assert part.shape == (8, 4, 3)


def test_unequal_sizes_name_two_files_and_the_remedy(tmp_path):
    write_image(tmp_path / "a.png", size=(6, 4))
    write_image(tmp_path / "b.png", size=(5, 4))
    with pytest.raises(ValueError, match=r"a.png is 6x4 and .*b.png is 5x4; set data.resize.*or data.image_size"):
        data.load(config(name="images", path=str(tmp_path)), "train")
    assert len(data.load(config(name="images", path=str(tmp_path), image_size=4, heldout_fraction=0), "train"))


@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_damaged_images_are_named_wherever_the_damage_is(tmp_path, suffix):
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format={"png": "PNG", "jpg": "JPEG"}[suffix])
    good = buffer.getvalue()
    fields = config(name="images", path=str(tmp_path), heldout_fraction=0)
    for length in (0, 5, 20, len(good) // 2):
        (tmp_path / f"broken.{suffix}").write_bytes(good[:length])
        with pytest.raises(ValueError, match=rf"broken.{suffix}: not a readable image"):
            data.load(fields, "train")
    for _ in range(30):  # a flipped byte leaves an image or raises ValueError
        damaged = bytearray(good)
        damaged[rng.integers(len(good))] ^= 0xFF
        (tmp_path / f"broken.{suffix}").write_bytes(damaged)
        try:
            data.load(fields, "train")
        except ValueError as error:
            assert "broken" in str(error)  # noqa: PT017


def test_odd_folders_are_refused(tmp_path):
    fields = config(name="images", path=str(tmp_path))
    with pytest.raises(ValueError, match="no images"):
        data.load(fields, "train")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="empty: this class sub-folder holds no images"):
        data.load(fields, "train")
    for bad in (
        {"channels": 2},
        {"image_size": -1},
        {"image_size": 1.5},
        {"resize": "fit"},
        {"background": (0, 0, 256)},
    ):
        with pytest.raises(ValueError, match=f"data.{next(iter(bad))}.* must be"):
            data.load(config(name="images", path=str(tmp_path), **bad), "train")
    write_image(tmp_path / "a.png")
    with pytest.raises(ValueError, match=r"both in the folder \(a.png\) and beside sub-folders \(empty\)"):
        data.load(fields, "train")


# --- point clouds -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CLOUDS)
def test_clouds_share_mean_scale_and_frame(name):
    n = 40_000
    points, labels = sample_cloud(name, n, seed=1)
    assert points.shape == (n, 2)
    assert points.dtype == np.float32
    assert np.abs(points).max() < 1
    # Standard error of a mean 0.4 / sqrt(n); of a root mean square, at most that; 1% for the cut-off scatter.
    np.testing.assert_allclose(points.mean(axis=0), 0, atol=5 * 0.4 * 2**0.5 / n**0.5)
    np.testing.assert_allclose(np.sqrt(np.mean(points**2)), 0.4, rtol=0.01)
    if labels is not None:
        assert np.ptp(np.bincount(labels)) <= 1
    np.testing.assert_array_equal(sample_cloud(name, n, seed=1)[0], points)
    assert (sample_cloud(name, n, seed=2)[0] != points).any()


def test_labels_of_clouds_match_the_positions():
    points, labels = sample_cloud("eight_gaussians", 4000, seed=0)
    angle = np.arctan2(points[:, 1], points[:, 0])
    np.testing.assert_array_equal(np.round(angle / (np.pi / 4)).astype(int) % 8, labels)
    points, labels = sample_cloud("rings", 4000, seed=0)
    np.testing.assert_array_equal(np.hypot(*points.T) > 0.53, labels == 1)
    points, labels = sample_cloud("checkerboard", 4000, seed=0)
    side = 0.2 * 3**0.5  # a uniform marginal of width 4 * side has the standard deviation 0.4
    column, row = np.floor(points / side + 2).astype(int).T
    assert ((column + row) % 2 == 0).all()
    np.testing.assert_array_equal(2 * row + column // 2, labels)


# --- batches ------------------------------------------------------------------------------------------------


def numbered(n, *, labels=True):
    """Returns a data set whose images encode their own index."""
    images = np.tile(np.arange(n, dtype=np.float32)[:, None, None, None] / n, (1, 1, 2, 1))
    images[:, 0, 1] = -1.0  # left differs from right
    return data.Dataset(images, np.arange(n, dtype=np.int32) if labels else None, (1, 2, 1), n * labels)


def take(iterator, count):
    return list(itertools.islice(iterator, count))


@pytest.mark.parametrize("num_threads", [0, 1, 4])
@pytest.mark.parametrize("start", [0, 1, 3, 17, 1000])
def test_a_resumed_run_sees_the_batches_of_an_uninterrupted_one(num_threads, start):
    dataset = numbered(11)  # 11 examples in batches of 4: about every third batch contains the end of an epoch
    options = {"flip": True, "num_threads": num_threads}
    if start < 100:
        whole = take(data.batches(dataset, 4, 5, **options), start + 6)[start:]
    else:
        whole = [data.batch_at(dataset, 4, 5, start + k, flip=True) for k in range(6)]
    resumed = take(data.batches(dataset, 4, 5, start_step=start, **options), 6)
    for a, b in zip(whole, resumed, strict=True):
        assert a.keys() == b.keys() == {"image", "label"}
        for key in a:
            assert a[key].dtype == b[key].dtype
            np.testing.assert_array_equal(a[key], b[key])


@pytest.mark.parametrize("batch_size", [1, 4, 11, 25])
def test_every_epoch_has_every_example_once_in_another_order(batch_size):
    n, epochs = 11, 6
    stream = data.batches(numbered(n), batch_size, seed=2)
    labels = np.concatenate([b["label"] for b in take(stream, -(-n * epochs // batch_size))])[: n * epochs]
    orders = labels.reshape(epochs, n)
    assert (np.sort(orders, axis=1) == np.arange(n)).all()
    assert len({tuple(order) for order in orders}) == epochs


def test_the_stream_does_not_depend_on_the_batch_size():
    dataset = numbered(7)
    small = take(data.batches(dataset, 2, 0, flip=True), 10)
    large = data.batch_at(dataset, 20, 0, 0, flip=True)
    for key in large:
        np.testing.assert_array_equal(np.concatenate([b[key] for b in small]), large[key])


def test_images_stay_with_their_labels_and_seeds_differ():
    dataset = numbered(50)
    first, other = (data.batch_at(dataset, 50, seed, 0) for seed in (0, 1))
    np.testing.assert_allclose(first["image"][:, 0, 0, 0], first["label"] / 50, rtol=1e-6)
    assert (first["label"] != other["label"]).any()
    assert first["label"].dtype == np.int32


def test_every_order_of_three_is_equally_likely():
    counts = dict.fromkeys(itertools.permutations(range(3)), 0)
    for epoch in range(3000):
        counts[tuple(data.batch_at(numbered(3), 3, 0, epoch)["label"].tolist())] += 1
    # Binomial(3000, 1/6): mean 500, standard deviation 20.4; the tolerance is five of them.
    assert all(abs(count - 500) < 102 for count in counts.values())


def test_flips_mirror_half_of_the_images_and_differ_between_epochs():
    n = 1000
    dataset = numbered(n)
    flipped = []
    for epoch in range(2):
        batch = data.batch_at(dataset, n, 0, epoch, flip=True)
        left = batch["image"][:, 0, 0, 0] == -1.0
        value = np.where(left, batch["image"][:, 0, 1, 0], batch["image"][:, 0, 0, 0])
        np.testing.assert_allclose(value, batch["label"] / n, rtol=1e-6)  # mirrored, not altered
        np.testing.assert_array_equal(batch["label"], data.batch_at(dataset, n, 0, epoch)["label"])
        flipped.append(left[np.argsort(batch["label"])])
    for share in (flipped[0].mean(), flipped[1].mean(), (flipped[0] ^ flipped[1]).mean()):
        assert abs(share - 0.5) < 5 * 0.5 / n**0.5


@pytest.mark.parametrize(("batch_size", "step"), [(4, 0), (4, 2), (11, 1), (25, 3)])
def test_batch_indices_are_those_of_the_batch(batch_size, step):
    indices = data.batch_indices(numbered(11), batch_size, 5, step)
    np.testing.assert_array_equal(indices, data.batch_at(numbered(11), batch_size, 5, step)["label"])
    assert indices.dtype.kind == "i"


def test_unlabelled_batches_hold_only_images_and_batches_may_be_modified():
    dataset = numbered(5, labels=False)
    before = dataset.images.copy()
    batch = next(data.batches(dataset, 5, 0))
    assert batch.keys() == {"image"}
    batch["image"][:] = 9
    np.testing.assert_array_equal(dataset.images, before)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch_size": 0}, "batch_size must be at least 1; got 0"),
        ({"seed": -1}, "seed must be an integer in .*; got -1"),
        ({"seed": 0.5}, "seed must be an integer in .*; got 0.5"),
        ({"start_step": -1}, "at least 0; got -1"),
        ({"num_threads": -1}, "data.num_threads must be at least 0, or None; got -1"),
    ],
)
def test_bad_arguments_of_batches_are_refused_at_the_call(change, message):
    arguments = {"batch_size": 2, "seed": 0, **change}
    with pytest.raises(ValueError, match=message):
        data.batches(numbered(3), **arguments)


def test_flipping_points_is_refused():
    with pytest.raises(ValueError, match=r"flip needs images .* this data set has \(2,\)"):
        data.batches(data.load(config(name="toy2d"), "train"), 2, 0, flip=True)
