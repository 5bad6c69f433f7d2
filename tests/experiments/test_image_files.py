"""Image folders: what becomes of each format, of transparency, depth, orientation and size; classes and metadata."""

import json
import struct
import zlib
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from experiments import data
from experiments.data.decoding import Format, decode, upright_size
from experiments.data.listing import SUFFIXES

TARGET = Format((1, 3, 3), background=(0, 100, 200))


def load(folder, split="train", **fields):
    return data.load(SimpleNamespace(name="images", path=str(folder), **{"heldout_fraction": 0.0, **fields}), split)


def write_png(path, values, colour_type, bits, *extra):
    """Writes a PNG without an encoder's conversions: `values` [H, W, channels], chunks `extra` before the pixels."""

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    height, width = values.shape[:2]
    rows = values.astype(">u2" if bits == 16 else np.uint8)
    raw = b"".join(b"\0" + row.tobytes() for row in rows)
    header = struct.pack(">IIBBBBB", width, height, bits, colour_type, 0, 0, 0)
    parts = [(b"IHDR", header), *extra, (b"IDAT", zlib.compress(raw)), (b"IEND", b"")]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts))
    return path


# Three pixels: opaque (10, 20, 30) or grey 50; half transparent; fully transparent, over a colour that nobody sees.
COLOUR = np.array([[[10, 20, 30, 255], [250, 0, 100, 102], [255, 0, 255, 0]]], np.uint8)
GREY = np.array([[[50, 255], [250, 102], [77, 0]]], np.uint8)
PALETTE = (b"PLTE", COLOUR[0, :, :3].tobytes())
# By hand: 250 * 0.4 + 0 * 0.6 = 100, 0 * 0.4 + 100 * 0.6 = 60, 100 * 0.4 + 200 * 0.6 = 160.
ON_BACKGROUND = [[10, 20, 30], [100, 60, 160], [0, 100, 200]]
GREY_ON_BACKGROUND = [[50, 50, 50], [100, 160, 220], [0, 100, 200]]
INDICES = np.arange(3)[None, :, None]


@pytest.mark.parametrize(
    ("values", "colour_type", "bits", "extra", "expected"),
    [
        (COLOUR, 6, 8, [], ON_BACKGROUND),
        (GREY, 4, 8, [], GREY_ON_BACKGROUND),
        (COLOUR.astype(int) * 257, 6, 16, [], ON_BACKGROUND),
        (GREY.astype(int) * 257, 4, 16, [], GREY_ON_BACKGROUND),
        (INDICES, 3, 8, [PALETTE, (b"tRNS", bytes([255, 102, 0]))], ON_BACKGROUND),
        (INDICES, 3, 8, [PALETTE, (b"tRNS", bytes([255, 255, 0]))], [[10, 20, 30], [250, 0, 100], [0, 100, 200]]),
        (INDICES, 3, 8, [PALETTE], [[10, 20, 30], [250, 0, 100], [255, 0, 255]]),
        (COLOUR[..., :3], 2, 8, [(b"tRNS", struct.pack(">3H", 255, 0, 255))], [*COLOUR[0, :2, :3], [0, 100, 200]]),
        (GREY[..., :1], 0, 8, [(b"tRNS", struct.pack(">H", 77))], [[50] * 3, [250] * 3, [0, 100, 200]]),
        (
            GREY[..., :1].astype(int) * 257,
            0,
            16,
            [(b"tRNS", struct.pack(">H", 77 * 257))],
            [[50] * 3, [250] * 3, [0, 100, 200]],
        ),
    ],
    ids=[
        "rgba",
        "la",
        "rgba16",
        "la16",
        "palette",
        "palette_one",
        "opaque_palette",
        "rgb_key",
        "grey_key",
        "grey16_key",
    ],
)
def test_transparent_pixels_show_the_background(tmp_path, values, colour_type, bits, extra, expected):
    path = write_png(tmp_path / "x.png", values.astype(int), colour_type, bits, *extra)
    np.testing.assert_array_equal(decode(path, TARGET)[0], np.array(expected))
    opacity = decode(path, TARGET._replace(shape=(1, 3, 4)))[0]
    hidden = opacity[:, 3] == 0
    assert (opacity[hidden, :3] == (0, 100, 200)).all()  # never the colour in the file
    composited = opacity[:, :3] * (opacity[:, 3:] / 255) + (1 - opacity[:, 3:] / 255) * (0, 100, 200)
    np.testing.assert_allclose(composited, np.array(expected), atol=1)


def test_resizing_does_not_mix_hidden_colours_in(tmp_path):
    pixels = np.zeros((8, 8, 4), np.uint8)
    pixels[:, :4] = (0, 0, 255, 255)
    pixels[:, 4:] = (255, 0, 0, 0)  # invisible red
    Image.fromarray(pixels).save(tmp_path / "x.png")
    for channels in (3, 4):
        part = load(tmp_path, shape=(4, 4, channels), resize="stretch", background=(0, 0, 255))
        np.testing.assert_allclose(part.images[..., :3], np.broadcast_to([0, 0, 255], (1, 4, 4, 3)), atol=2)


@pytest.mark.parametrize(("colour_type", "channels"), [(0, 1), (2, 3), (6, 4), (4, 2)])
def test_sixteen_bits_are_scaled_and_rounded(tmp_path, colour_type, channels):
    values = np.random.default_rng(0).integers(0, 65536, (5, 7, channels))
    values[..., -1] = 65535 if channels in (2, 4) else values[..., -1]  # opaque
    path = write_png(tmp_path / "x.png", values, colour_type, 16)
    got = decode(path, Format((5, 7, 1 if channels < 3 else 3)))
    np.testing.assert_array_equal(got, np.round(values[..., : got.shape[-1]] / 257))


def test_depths_that_cannot_be_read_right_are_refused(tmp_path):
    for name, image in (("f.tif", Image.new("F", (2, 2))), ("i.tif", Image.new("I", (2, 2)))):
        image.save(tmp_path / name)
        with pytest.raises(ValueError, match=rf"{name}: pixel mode . has no known largest value; .*data.name=arrays"):
            decode(tmp_path / name, Format((2, 2, 1)))
    Image.fromarray(np.full((2, 2), 257 * 9, np.uint16)).save(tmp_path / "deep.tif")
    assert (decode(tmp_path / "deep.tif", Format((2, 2, 1))) == 9).all()
    tags = [(256, 1, 2), (257, 1, 2), (258, 3, 8), (259, 1, 1), (262, 1, 2), (273, 1, 200), (277, 1, 3), (279, 1, 24)]
    entries = b"".join(struct.pack("<HHIHH", tag, 3, count, v, 0) for tag, count, v in tags)
    entries = entries.replace(struct.pack("<HHIHH", 258, 3, 3, 8, 0), struct.pack("<HHII", 258, 3, 3, 180))
    header = b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4)
    whole = header.ljust(180, b"\0") + struct.pack("<3H", 16, 16, 16)
    (tmp_path / "colour.tif").write_bytes(whole.ljust(200, b"\0") + bytes(range(24)))
    with pytest.raises(ValueError, match=r"colour.tif: has 16 bits per channel .* convert it to PNG or to 8 bits"):
        decode(tmp_path / "colour.tif", Format((2, 2, 3)))


@pytest.mark.parametrize("suffix", ["jpg", "png", "tif", "webp"])
@pytest.mark.parametrize("orientation", [0, 1, 3, 6, 8, 9, 255])
def test_orientations_are_those_of_viewers(tmp_path, suffix, orientation):
    pixels = np.zeros((8, 16, 3), np.uint8)
    pixels[:, :8] = 255  # left half white
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"x.{suffix}"
    Image.fromarray(pixels).save(path, exif=exif)
    shape = (16, 8) if orientation in (6, 8) else (8, 16)
    assert upright_size(path) == shape
    got = load(tmp_path).images[0]
    assert got.shape[:2] == shape
    white = {3: got[:, 8:], 6: got[:8], 8: got[8:]}.get(orientation, got[:, :8])
    assert white.mean() > 250
    assert abs(got.mean() - 127.5) < 3


def test_every_listed_format_is_read_and_others_are_named(tmp_path, capsys):
    pixels = np.zeros((4, 4, 3), np.uint8)
    for suffix in SUFFIXES:
        if suffix != ".qoi":
            Image.fromarray(pixels).save(tmp_path / f"x{suffix}".upper())
    # Older versions of Pillow read QOI and cannot write it: a header, one run of 16 black pixels, the end.
    qoi = b"qoif" + struct.pack(">IIBB", 4, 4, 3, 0) + b"\xcf" + bytes(7) + b"\x01"
    (tmp_path / "x.QOI").write_bytes(qoi)
    assert {".png", ".jpg", ".webp", ".bmp", ".tif", ".tiff", ".gif"} <= set(SUFFIXES)
    for name in ("b.svg", "a.txt", ".hidden.png", "c.mp4", "d.pdf"):
        (tmp_path / name).write_text("x")
    part = load(tmp_path)
    assert len(part) == len(SUFFIXES)
    assert (part.images <= 3).all()
    assert "left out 4 files that are no images: a.txt, b.svg, c.mp4, ...\n" in capsys.readouterr().out


def test_the_first_frame_of_an_animation_is_read(tmp_path):
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "x.gif", save_all=True, append_images=frames[1:])
    assert (load(tmp_path).images == (255, 0, 0)).all()


# --- sizes --------------------------------------------------------------------------------------------------


def test_any_shape_by_crop_pad_or_stretch(tmp_path):
    wide = np.zeros((4, 12, 3), np.uint8)
    wide[:, 2:10] = 200  # the central box of proportions 1 to 2
    Image.fromarray(wide).save(tmp_path / "wide.png")
    Image.fromarray(np.full((8, 4, 3), 200, np.uint8)).save(tmp_path / "tall.png")
    assert (load(tmp_path, shape=(2, 4, 3), resize="crop").images == 200).all()
    padded = load(tmp_path, shape=(8, 4, 3), resize="pad", background=(1, 2, 3))
    tall, small = padded.images  # 12 x 4 becomes 4 x 1
    assert (tall == 200).all()
    assert ((small == (1, 2, 3)).all(axis=-1).sum(axis=1) == 4).sum() == 7
    seen = load(tmp_path, shape=(8, 4, 4), resize="pad", background=(1, 2, 3)).images[1]
    assert (seen[..., 3] == 255).sum() == 4  # what lies beside the image is transparent
    assert load(tmp_path, shape=(3, 5, 3), resize="stretch").shape == (3, 5, 3)
    assert load(tmp_path, shape=(6, 6, 1), resize="pad", image_size=6).shape == (6, 6, 1)
    with pytest.raises(ValueError, match=r"differ in size: .*set data.resize to crop, pad or stretch"):
        load(tmp_path, shape=(2, 4, 3))
    with pytest.raises(ValueError, match=r"neither data.shape nor data.image_size"):
        load(tmp_path, resize="crop")
    (tmp_path / "tall.png").unlink()
    with pytest.raises(ValueError, match=r"\(4, 12, 3\); set data.shape to that, or data.resize to crop"):
        load(tmp_path, shape=(2, 4, 3))


def test_crop_of_a_square_is_the_square_of_old(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (9, 14, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "x.png")
    expected = Image.fromarray(pixels[:, 2:11]).resize((5, 5), Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(load(tmp_path, image_size=5).images[0], np.asarray(expected))


# --- classes ------------------------------------------------------------------------------------------------


def write(folder, *names):
    for i, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (2, 2), (i, i, i)).save(folder / name)


def test_classes_are_the_first_folders_at_any_depth(tmp_path):
    write(tmp_path, "cat/b/x.png", "cat/a.png", "ant/deep/er/y.png", "__MACOSX/z.png")
    part = load(tmp_path)
    assert part.class_names == ("ant", "cat")
    assert part.labels.tolist() == [0, 1, 1]
    assert part.names == ("ant/deep/er/y.png", "cat/a.png", "cat/b/x.png")
    assert part.images[:, 0, 0, 0].tolist() == [2, 1, 0]
    with pytest.raises(ValueError, match=r"3 classes are configured, but the data \(images\) have 2: .*classes 2..2"):
        load(tmp_path, num_classes=3)
    unlabelled = load(tmp_path, num_classes=0)
    assert unlabelled.class_names is unlabelled.labels is None


def test_numbered_classes_are_in_the_order_of_numbers(tmp_path):
    write(tmp_path, *(f"{i}/x.png" for i in range(12)))
    part = load(tmp_path)
    assert part.class_names == tuple(map(str, range(12)))
    np.testing.assert_array_equal(part.images[:, 0, 0, 0], part.labels)


def test_folders_of_splits_are_not_classes(tmp_path):
    write(tmp_path, "train/cat/x.png", "test/cat/y.png")
    with pytest.raises(ValueError, match=r"test, train are splits, not classes; set data.path to one of them"):
        load(tmp_path)


def test_links_back_to_the_folder_end(tmp_path):
    write(tmp_path, "cat/x.png", "dog/y.png")
    (tmp_path / "cat" / "again").symlink_to(tmp_path, target_is_directory=True)
    assert len(load(tmp_path)) == 2


def test_classes_without_training_examples_are_named(tmp_path, capsys):
    np.savez(tmp_path / "x.npz", images=np.full((4, 1), -1.0), labels=np.arange(4))
    fields = SimpleNamespace(name="arrays", path=str(tmp_path / "x.npz"), heldout_fraction=0.5)
    data.load(fields, "train")
    assert "arrays: 2 of 4 classes have no training example: " in capsys.readouterr().out


# --- metadata files -----------------------------------------------------------------------------------------


def jsonl(folder, *rows):
    (folder / "metadata.jsonl").write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows))


def test_metadata_give_labels_and_captions(tmp_path):
    write(tmp_path, "b.png", "sub/a.png", "c.png")
    jsonl(
        tmp_path,
        {"file_name": "c.png", "label": "dog", "text": "a dog"},
        "",
        {"file_name": "b.png", "label": "cat", "text": "a cat"},
        {"file_name": "sub/a.png", "label": "dog", "text": "two, dogs"},
    )
    part = load(tmp_path)
    assert part.names == ("b.png", "c.png", "sub/a.png")
    assert part.class_names == ("cat", "dog")
    assert part.labels.tolist() == [0, 1, 1]
    assert part.captions == ("a cat", "a dog", "two, dogs")
    (tmp_path / "metadata.jsonl").unlink()
    (tmp_path / "metadata.csv").write_text(
        '\ufefffile_name,label,text\nsub/a.png,1,"two, dogs"\nb.png,0,a cat\nc.png,1,a dog\n'
    )
    again = load(tmp_path)
    assert (again.names, again.labels.tolist(), again.captions) == (part.names, [0, 1, 1], part.captions)
    assert again.class_names is None
    one, other = (load(tmp_path, split, heldout_fraction=0.34) for split in ("train", "heldout"))
    pairs = zip((*one.names, *other.names), (*one.captions, *other.captions))
    assert dict(pairs) == dict(zip(part.names, part.captions))


def test_metadata_without_labels_give_captions_alone(tmp_path):
    write(tmp_path, "shard0/a.png", "shard1/b.png")
    jsonl(tmp_path, *({"file_name": name, "text": name} for name in ("shard0/a.png", "shard1/b.png")))
    part = load(tmp_path)
    assert part.labels is part.class_names is None
    assert part.captions == ("shard0/a.png", "shard1/b.png")


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (["{"], r"metadata.jsonl: line 1: not JSON"),
        (["[1]"], r"line 1: not a JSON object: \[1\]"),
        ([{"label": 1}], r"metadata.jsonl, line 1: has no file_name"),
        ([{"file_name": "z.png"}], r"line 1: the file 'z.png' does not exist"),
        ([{"file_name": "../a.png"}], r"line 1: the file '../a.png' does not exist"),
        ([{"file_name": "a.png"}], r"1 of 2 images have no line: b.png; add"),
        ([{"file_name": "a.png"}, {"file_name": "a.png"}], r"line 2: the file 'a.png' has a line already, 1"),
        ([{"file_name": "a.png", "label": 0}, {"file_name": "b.png"}], r"line 2: label must be .*; got None"),
        ([{"file_name": "a.png", "label": 0.5}, {"file_name": "b.png", "label": 1}], r"line 1: label .* got 0.5"),
        ([{"file_name": "a.png", "label": 0}, {"file_name": "b.png", "label": "x"}], r"line 2: label 'x' is a text"),
        ([{"file_name": "a.png", "label": 0}, {"file_name": "b.png", "label": -1}], r"line 2: label -1 is not a class"),
        ([{"file_name": "a.png", "label": 0}, {"file_name": "b.png", "label": 2}], r"go up to 2, .* class 1 has none"),
        ([{"file_name": "a.png", "text": "x"}, {"file_name": "b.png"}], r"line 2: text must be a text; got None"),
    ],
)
def test_broken_lines_of_metadata_are_named(tmp_path, rows, message):
    write(tmp_path, "a.png", "b.png")
    jsonl(tmp_path, *rows)
    with pytest.raises(ValueError, match=message):
        load(tmp_path)


def test_broken_csv_is_named(tmp_path):
    write(tmp_path, "a.png", "b.png")
    (tmp_path / "metadata.csv").write_text("file_name,label\na.png,0\nb.png\n")
    with pytest.raises(ValueError, match=r"metadata.csv: line 3: has another number of columns"):
        load(tmp_path)
