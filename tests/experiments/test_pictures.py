"""Pictures and curves: the right pixels in the right place, and files that are complete or absent."""

import json

import numpy as np
import pytest
from PIL import Image

from experiments import curves, files, pictures


def ramp(n, height=2, width=3, channels=1):
    """Returns n constant images with values from -1 to 1."""
    return np.broadcast_to(np.linspace(-1, 1, n)[:, None, None, None], (n, height, width, channels))


@pytest.mark.parametrize("channels", [1, 3])
def test_grid_puts_image_i_at_row_i_over_columns(tmp_path, channels):
    path = tmp_path / "new" / "grid.png"
    pictures.save_grid(path, ramp(6, channels=channels), columns=4, scale=5)
    pixels = np.asarray(Image.open(path))
    assert pixels.shape == (2 * (2 * 5 + 2) + 2, 4 * (3 * 5 + 2) + 2, channels)[: 2 + (channels == 3)]
    pixels = pixels.reshape(*pixels.shape[:2], channels)
    for i, value in enumerate([0, 51, 102, 153, 204, 255]):
        top, left = 2 + i // 4 * 12, 2 + i % 4 * 17
        assert (pixels[top : top + 10, left : left + 15] == value).all()
        assert (pixels[top - 2 : top, left : left + 15] == 96).all()
        assert (pixels[top : top + 10, left - 2 : left] == 96).all()
    assert (pixels[12:, 2 + 2 * 17 :] == 96).all()  # background where there is no image


def test_small_images_are_magnified_without_blurring():
    rng = np.random.default_rng(0)
    images = rng.uniform(-1, 1, (5, 8, 8, 1))
    grid = pictures.image_grid(images)
    assert 600 <= grid.shape[1] < 600 + 3 * 8
    scale = (grid.shape[1] - 2) // 3 // 8
    tile = grid[2 : 2 + 8 * scale, 2 : 2 + 8 * scale]
    np.testing.assert_array_equal(tile[scale // 2 :: scale, scale // 2 :: scale], pictures.to_uint8(images[0]))
    assert pictures.image_grid(np.zeros((4, 512, 512, 3))).shape == (2 * 514 + 2, 2 * 514 + 2, 3)


def test_bytes_to_floats_and_back_is_the_identity():
    assert pictures.to_uint8(np.arange(256) / 127.5 - 1).tolist() == list(range(256))
    assert pictures.to_uint8([-np.inf, -3, 3, np.inf]).tolist() == [0, 0, 255, 255]


@pytest.mark.parametrize(
    ("images", "options", "message"),
    [
        (np.full((2, 4, 4, 1), np.nan), {}, r"32 of 32 values .* NaN, the first at index \(0, 0, 0, 0\)"),
        (np.zeros((2, 4, 4)), {}, r"must be \[n, H, W, C\].*got \[2, 4, 4\]"),
        (np.zeros((2, 4, 4, 2)), {}, "C = 1 or 3"),
        (np.zeros((0, 4, 4, 1)), {}, "n > 0"),
        (np.zeros((2, 4, 4, 1)), {"columns": 0}, "columns must be at least 1; got 0"),
        (np.zeros((2, 4, 4, 1)), {"scale": 0}, "scale must be at least 1; got 0"),
    ],
)
def test_grids_that_cannot_be_drawn_are_refused_and_leave_the_old_file(tmp_path, images, options, message):
    path = tmp_path / "grid.png"
    path.write_bytes(b"old")
    with pytest.raises(ValueError, match=message):
        pictures.save_grid(path, images, **options)
    assert [p.name for p in tmp_path.iterdir()] == ["grid.png"]
    assert path.read_bytes() == b"old"


def test_a_write_that_fails_half_way_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def fail(file):
        file.write(b"half")
        raise RuntimeError("disk full")

    with pytest.raises(RuntimeError, match="disk full"):
        files.write_atomically(path, fail)
    assert [p.name for p in tmp_path.iterdir()] == ["file"]
    assert path.read_bytes() == b"old"
    files.write_atomically(path, lambda file: file.write(b"new"))
    assert path.read_bytes() == b"new"


def test_points_are_drawn_at_their_coordinates(tmp_path):
    points = np.array([[0.5, 0.5]] * 10)
    reference = np.array([[-1.0, -1.0], [1.0, 1.0], [-1.0, 1.0], [1.0, -1.0]])
    pictures.save_points(tmp_path / "a.png", points, reference, title="points")
    pixels = np.asarray(Image.open(tmp_path / "a.png").convert("RGB")).astype(int)
    blue = (pixels[..., 2] - pixels[..., 0]) > 100
    rows, columns = np.nonzero(blue)
    height, width = blue.shape
    assert np.median(columns) > width / 2  # right of the middle
    assert np.median(rows) < height / 2  # and above it
    pictures.save_points(tmp_path / "b.png", points)
    assert Image.open(tmp_path / "b.png").size == (width, height)


@pytest.mark.parametrize("points", [np.zeros((3, 3)), np.zeros((0, 2)), np.full((3, 2), np.nan)])
def test_points_that_cannot_be_drawn_are_refused(tmp_path, points):
    with pytest.raises(ValueError, match="points"):
        pictures.save_points(tmp_path / "a.png", points)


def write_lines(path, records, tail=""):
    path.write_text("".join(json.dumps(r) + "\n" for r in records) + tail, encoding="utf-8")
    return path


def test_curves_are_read_by_step_and_an_incomplete_line_is_skipped(tmp_path):
    records = [{"step": s, "loss": 1.0 / s} for s in (1, 2, 3)] + [{"step": 3, "eval_loss": 7.0}]
    records += [{"step": 2, "loss": 5.0}]  # of a run resumed from step 1
    path = write_lines(tmp_path / "m.jsonl", records, tail='{"step": 4, "lo')
    found = curves.read_curves(path, ["loss", "eval_loss", "absent"])
    assert [c.tolist() for c in found["loss"]] == [[1, 2, 3], [1.0, 5.0, 1 / 3]]
    assert [c.tolist() for c in found["eval_loss"]] == [[3], [7.0]]
    assert not len(found["absent"][0])


DAMAGED = ('{"st', "[1]", '{"step": "two", "loss": 1}', '{"loss": 1}', '{"step": 2, "loss": []}', "\ufffd")


@pytest.mark.parametrize("line", DAMAGED)
def test_damaged_lines_of_curves_are_named_and_left_out(tmp_path, caplog, line):
    path = write_lines(tmp_path / "m.jsonl", [{"step": 1, "loss": 3.0}], tail=f'{line}\n{{"step": 3, "loss": 2.0}}\n')
    assert [c.tolist() for c in curves.read_curves(path, ["loss"])["loss"]] == [[1, 3], [3.0, 2.0]]
    assert f"{path}, line 2 is damaged" in caplog.text


def test_curve_pictures_are_written_from_files_and_mappings(tmp_path):
    path = write_lines(tmp_path / "m.jsonl", [{"step": s, "loss": 0.1 * s} for s in range(1, 20)])
    curves.save_curves(tmp_path / "a.png", path)
    mapping = {"loss": [1.0, np.nan, -0.5], "eval": (np.array([0, 2]), np.array([1.0, 2.0]))}
    curves.save_curves(tmp_path / "b.png", mapping, ["loss", "eval", "absent"], smoothing=0.0)
    for name in ("a.png", "b.png"):
        assert Image.open(tmp_path / name).size == (960, 600)
    with pytest.raises(ValueError, match="no values of absent"):
        curves.save_curves(tmp_path / "c.png", path, ["absent"])
    with pytest.raises(ValueError, match="one step for each value"):
        curves.save_curves(tmp_path / "c.png", {"loss": ([1, 2], [1.0])})
    with pytest.raises(ValueError, match=r"smoothing must lie in \[0, 1\); got 1.0"):
        curves.save_curves(tmp_path / "c.png", path, smoothing=1.0)


def test_running_mean_is_the_weighted_mean_of_the_finite_values_so_far():
    values = np.array([np.nan, 2.0, 5.0, np.inf, -1.0])
    means = curves.running_mean(values, 0.9)
    assert np.isnan(means[0])
    for i in range(1, 5):
        finite = np.isfinite(values[: i + 1])
        weights = 0.9 ** (i - np.arange(i + 1))
        np.testing.assert_allclose(means[i], np.average(values[: i + 1][finite], weights=weights[finite]))
    np.testing.assert_allclose(curves.running_mean([3.0] * 50, 0.98), 3.0)
    np.testing.assert_array_equal(curves.running_mean([1.0, 2.0], 0.0), [1.0, 2.0])


def test_sequences_are_separate_plots_on_common_axes(tmp_path):
    path = tmp_path / "lines.png"
    t = np.linspace(0, 1, 16)
    pictures.save_sequences(path, np.stack([np.stack([t, -t], -1), np.stack([0 * t, 0 * t], -1)] * 3), columns=4)
    pixels = np.asarray(Image.open(path).convert("RGB")).astype(int)
    assert pixels.shape == (160, 400, 3)
    coloured = np.ptp(pixels, axis=-1) > 60
    boxes = [coloured[r : r + 80, c : c + 100] for r in (0, 80) for c in (0, 100, 200, 300)]
    heights = [np.ptp(np.nonzero(box)[0]) if box.any() else None for box in boxes]
    assert min(heights[0], heights[2], heights[4]) > 50  # they use the full height of the common axes
    assert max(heights[1], heights[3], heights[5]) < 5
    assert heights[6:] == [None, None]  # no sequence, no line


@pytest.mark.parametrize("sequences", [np.zeros((2, 3)), np.zeros((0, 3, 1)), np.full((2, 3, 1), np.nan)])
def test_sequences_that_cannot_be_drawn_are_refused(tmp_path, sequences):
    with pytest.raises(ValueError, match=r"sequences must be \[n, L, C\]|6 values to be drawn are NaN"):
        pictures.save_sequences(tmp_path / "lines.png", sequences)
    assert not list(tmp_path.iterdir())


def test_every_kind_of_data_has_a_picture(tmp_path):
    path = tmp_path / "picture.png"
    latents = np.zeros((1, 8, 8, 4))
    latents[..., 2] = 1.0
    pictures.save_picture(path, latents, columns=1)
    pixels = np.asarray(Image.open(path))
    assert pixels.shape[1] > 3.5 * pixels.shape[0]  # four grey images side by side
    middle = pixels[pixels.shape[0] // 2, [pixels.shape[1] * k // 8 for k in (1, 3, 5, 7)]]
    assert middle.tolist() == [128, 128, 255, 128]
    for samples in (np.zeros((4, 8, 8, 3)), np.zeros((4, 16, 2)), np.zeros((4, 2)), np.zeros((4, 5))):
        path.unlink()
        pictures.save_picture(path, samples)
        assert path.exists()


def test_black_and_white_stand_for_the_range_of_the_data(tmp_path):
    images = np.array([0.0, 100.0, 200.0, 300.0]).reshape(1, 2, 2, 1)
    assert pictures.to_uint8(images, (0.0, 200.0)).ravel().tolist() == [0, 128, 255, 255]
    assert pictures.picture_range((-1.0, 1.0), images) == (-1.0, 1.0)
    assert pictures.picture_range(None, np.full(5, 3.0)) == (2.5, 3.5)  # constant data
    assert pictures.picture_range(None, np.array([np.nan, np.inf])) == (-1.0, 1.0)
    values = np.append(np.linspace(0.0, 1.0, 1_000), 1e6)
    low, high = pictures.picture_range(None, values)
    assert 0 < low < 0.01
    assert 0.99 < high < 1  # an outlier does not make all else grey
    pictures.save_picture(tmp_path / "scaled.png", images, bounds=(0.0, 300.0))
    pictures.save_picture(tmp_path / "plain.png", images / 150 - 1)
    scaled, plain = (np.asarray(Image.open(tmp_path / f"{name}.png")) for name in ("scaled", "plain"))
    np.testing.assert_array_equal(scaled, plain)
    assert np.unique(plain).tolist() == [0, 85, 96, 170, 255]


def test_a_diverged_sequence_does_not_flatten_the_others(tmp_path):
    reference = np.sin(np.linspace(0, 6, 50))[None, :, None]
    sequences = np.concatenate([reference, 1e6 * reference])
    heights = []
    for given in (None, reference):
        pictures.save_sequences(tmp_path / "lines.png", sequences, 2, given)
        pixels = np.asarray(Image.open(tmp_path / "lines.png").convert("RGB")).astype(int)
        blue = pixels[..., 2] - pixels[..., 0] > 80
        left = blue[:, : blue.shape[1] // 2]
        heights.append(np.ptp(np.nonzero(left)[0]))
    assert heights[0] < 5
    assert heights[1] > 15


def test_transparent_images_are_drawn_on_grey(tmp_path):
    images = np.ones((1, 1, 3, 4), np.float32)
    images[..., 3] = [1.0, 0.0, -1.0]  # opaque, half, transparent
    pictures.save_picture(tmp_path / "rgba.png", images, alpha=True)
    pixels = np.asarray(Image.open(tmp_path / "rgba.png"))
    row = pixels[pixels.shape[0] // 2]
    assert [row[len(row) * k // 6].tolist() for k in (1, 3, 5)] == [[255] * 3, [191] * 3, [128] * 3]
