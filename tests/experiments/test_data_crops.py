"""Crops as in ADM: the pixels of the published code; random crops are a function of seed, epoch and example."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from experiments import data
from experiments.data.crops import centre_crop, random_crop
from experiments.data.decoding import Format, pixels

GOLDEN = Path(__file__).parent.parent / "golden" / "adm_crops"


def picture(height, width):
    y, x, c = np.meshgrid(np.arange(height), np.arange(width), np.arange(3), indexing="ij")
    return Image.fromarray(((3 * y**2 + 7 * x * (c + 1) + x * y) % 256).astype(np.uint8))


def numbers_of(draws):
    """Returns 64-bit numbers that are mapped to the draws (value, bound): the middle of each value's range."""
    return np.array([*(((2 * int(v) + 1) << 63) // int(bound) for v, bound in draws), 0], np.uint64)


def test_crops_have_the_pixels_of_the_published_code():
    golden = np.load(GOLDEN / "crops.npz")
    assert json.loads((GOLDEN / "meta.json").read_text())["picture"].startswith("uint8 [h, w, 3]")
    compared = 0
    for name in golden.files:
        kind, height, width, size, *_ = name.split("_")
        image, size = picture(int(height), int(width)), int(size)
        if kind == "centre":
            np.testing.assert_array_equal(np.asarray(centre_crop(image, size)), golden[name], err_msg=name)
            got = pixels(image, Format((size, size, 3), "adm_crop"))
            np.testing.assert_array_equal(got, golden[name], err_msg=name)
            compared += 1
        elif kind == "random":
            random = numbers_of(golden[name.replace("random", "draws")])
            np.testing.assert_array_equal(np.asarray(random_crop(image, size, random)), golden[name], err_msg=name)
            got = pixels(image, Format((size, size, 3), "adm_random_crop"), random)
            np.testing.assert_array_equal(got, golden[name], err_msg=name)
            compared += 1
    assert compared == 20


def folder_of(tmp_path, **fields):
    for i in range(5):
        image = np.asarray(picture(20 + 3 * i, 31)).copy()
        image[..., 0] = 40 * i  # constant under resizing: names the image
        Image.fromarray(image).save(tmp_path / f"{i}.png")
    fields = {"name": "images", "path": str(tmp_path), "image_size": 8, "heldout_fraction": 0.0, **fields}
    return data.load(SimpleNamespace(**fields), "train")


def test_random_crops_differ_between_epochs_and_agree_between_runs_rows_and_batch_sizes(tmp_path):
    dataset = folder_of(tmp_path, resize="adm_random_crop")
    assert not isinstance(dataset.images, np.ndarray)  # decoded pixels could not be cropped anew
    epochs = [data.batch_at(dataset, 5, 3, epoch) for epoch in range(4)]
    whole = np.concatenate([batch["image"] for batch in epochs])
    small = [next(data.batches(dataset, 4, 3, start_step=k))["image"] for k in range(5)]
    np.testing.assert_array_equal(np.concatenate(small), whole)
    part = next(data.batches(dataset, 10, 3, start_step=1, rows=slice(3, 7)))["image"]
    np.testing.assert_array_equal(part, whole[13:17])
    of_image = [whole[np.abs(whole[:, 0, 0, 0] - (40 * i / 127.5 - 1)) < 0.05] for i in range(5)]
    assert [len(crops) for crops in of_image] == [4] * 5
    assert sum(len(np.unique(crops, axis=0)) for crops in of_image) > 15  # of 20; two crops may coincide by chance
    other = data.batch_at(dataset, 5, 4, 0)["image"]
    assert not set(map(bytes, other)) & set(map(bytes, epochs[0]["image"]))


def test_held_out_images_and_images_read_without_training_are_cropped_in_the_middle(tmp_path):
    random = folder_of(tmp_path, resize="adm_random_crop", heldout_fraction=0.4)
    fields = {"name": "images", "path": str(tmp_path), "image_size": 8, "heldout_fraction": 0.4, "resize": "adm_crop"}
    centred = [data.load(SimpleNamespace(**fields), split) for split in ("train", "heldout")]
    np.testing.assert_array_equal(data.float_images(random), data.float_images(centred[0]))
    fields["resize"] = "adm_random_crop"
    heldout = data.load(SimpleNamespace(**fields), "heldout")
    assert isinstance(heldout.images, np.ndarray)
    np.testing.assert_array_equal(heldout.images, centred[1].images)


@pytest.mark.parametrize("resize", ["adm_crop", "adm_random_crop"])
def test_squares_are_needed(tmp_path, resize):
    with pytest.raises(ValueError, match=r"crops to squares; data.shape is \(8, 6, 3\)"):
        folder_of(tmp_path, resize=resize, image_size=0, shape=(8, 6, 3))
