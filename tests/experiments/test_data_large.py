"""data.memory_limit_mb: arrays, IDX files and shards beyond it are read row by row, with the values held in memory."""

import gzip
import struct
import tracemalloc
from types import SimpleNamespace

import numpy as np
import pytest

from experiments import data
from experiments.data.row_files import RowFiles, from_npy, from_npz, mixed

N = 40
UINT8 = np.random.default_rng(0).integers(0, 256, (N, 4, 3, 1), dtype=np.uint8)
FLOATS = np.random.default_rng(1).uniform(-1, 1, (N, 4, 3, 1)).astype(np.float32)
LABELS = np.arange(N) % 3


def load(path, split="train", **fields):
    return data.load(SimpleNamespace(name="arrays", path=str(path), **{"heldout_fraction": 0.2, **fields}), split)


def write(folder, kind, images):
    """Returns data.path of images written as a file or as shards, with labels unless it is an .npy file."""
    if kind == "npy":
        np.save(folder / "x.npy", images)
        return folder / "x.npy"
    if kind == "npz":
        np.savez(folder / "x.npz", labels=LABELS, images=images, class_names=np.array(["a", "b", "c"]))
        return folder / "x.npz"
    for number, part in enumerate(np.array_split(np.arange(len(images)), 3)):
        np.save(folder / f"images-{number:05d}.npy", images[part])
        np.save(folder / f"labels-{number:05d}.npy", LABELS[part])
    np.save(folder / "class_names.npy", np.array(["a", "b", "c"]))
    return folder


@pytest.mark.parametrize("images", [UINT8, FLOATS, FLOATS.astype(np.float64), UINT8.astype(np.int16)])
@pytest.mark.parametrize("kind", ["npy", "npz", "shards"])
def test_arrays_beyond_the_limit_are_those_in_memory(tmp_path, kind, images):
    path = write(tmp_path, kind, images)
    fields = {"value_range": (0, 255)} if images.dtype == np.int16 else {}
    for split in ("train", "heldout"):
        whole, lazy = (load(path, split, memory_limit_mb=limit, **fields) for limit in (1, 0))
        assert isinstance(whole.images, np.ndarray)
        assert not isinstance(lazy.images, np.ndarray)
        assert (lazy.shape, lazy.num_classes, lazy.class_names) == (whole.shape, whole.num_classes, whole.class_names)
        np.testing.assert_array_equal(data.float_images(lazy), data.float_images(whole))
        np.testing.assert_array_equal(lazy.images[1], whole.images[1])
        for step in (0, 3):
            one, other = (data.batch_at(dataset, 9, 0, step) for dataset in (whole, lazy))
            assert one.keys() == other.keys()
            for name in one:
                np.testing.assert_array_equal(one[name], other[name])
    assert whole.num_classes == (0 if kind == "npy" else 3)


def test_a_record_of_large_arrays_reads_no_rows_and_notices_other_files(tmp_path, monkeypatch):
    path = write(tmp_path, "shards", UINT8)
    lazy = [load(path, split, memory_limit_mb=0) for split in ("train", "heldout")]
    other = [load(path, split, memory_limit_mb=0, seed=1) for split in ("train", "heldout")]
    monkeypatch.setattr(RowFiles, "rows", None)
    record = data.describe(*lazy)
    assert len(np.unique(np.concatenate([*record.hashes.values()]))) == N
    assert data.compare(record, data.describe(*lazy)) == []
    assert any("another split" in each for each in data.compare(record, data.describe(*other)))


def test_reading_rows_needs_memory_for_these_rows_alone(tmp_path):
    np.save(tmp_path / "x.npy", np.zeros((4000, 64, 64, 1), np.uint8))  # 16 MB
    tracemalloc.start()
    dataset = load(tmp_path / "x.npy", memory_limit_mb=1, value_range=(0, 255))
    for step in range(20):
        data.batch_at(dataset, 16, 0, step)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 * 2**20  # 64 examples that are checked, and float32 batches of 0.25 MB


def test_rows_of_fortran_arrays_and_compressed_files_are_refused_with_the_remedy(tmp_path):
    np.save(tmp_path / "f.npy", np.asfortranarray(FLOATS))
    np.savez_compressed(tmp_path / "c.npz", images=UINT8)
    with pytest.raises(ValueError, match=r"f.npy: the array is in Fortran order.*ascontiguousarray"):
        load(tmp_path / "f.npy", memory_limit_mb=0)
    with pytest.raises(ValueError, match=r"c.npz: 'images' needs 0 MB.*is compressed.*np.savez or np.save, or raise"):
        load(tmp_path / "c.npz", memory_limit_mb=0)
    np.testing.assert_array_equal(load(tmp_path / "f.npy", heldout_fraction=0).images, FLOATS)


def test_bad_values_and_truncated_files_are_found_when_they_are_read(tmp_path):
    images = np.tile(FLOATS, (50, 1, 1, 1))
    images[3, 0, 0, 0] = np.nan
    np.save(tmp_path / "x.npy", images)
    dataset = load(tmp_path / "x.npy", memory_limit_mb=0, heldout_fraction=0.0)
    with pytest.raises(ValueError, match=r"x.npy: 1 of 12 image entries are NaN"):
        dataset.images[3]
    content = (tmp_path / "x.npy").read_bytes()
    (tmp_path / "x.npy").write_bytes(content[:-100])
    with pytest.raises(ValueError, match=r"x.npy: shorter than its header states: truncated"):
        dataset.images[len(dataset) - 1]
    with pytest.raises(ValueError, match=r"x.npy: truncated: its header states"):
        load(tmp_path / "x.npy", memory_limit_mb=0)
    images[3, 0, 0, 0] = 0
    np.save(tmp_path / "x.npy", images / 2 + 0.5)
    with pytest.raises(
        ValueError, match=r"x.npy: all floats lie in .*set data.value_range=\(-1, 1\)|without a negative"
    ):
        load(tmp_path / "x.npy", memory_limit_mb=0)


def test_shards_of_other_rows_and_folders_without_shards_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"no files images-\*.npy; write the shards of the images under such names"):
        load(tmp_path)
    write(tmp_path, "shards", UINT8)
    np.save(tmp_path / "images-00003.npy", UINT8[:, :2])
    with pytest.raises(ValueError, match=r"images-00003.npy holds rows of uint8 \[2, 3, 1\], .* of uint8 \[4, 3, 1\]"):
        load(tmp_path)


def test_rows_come_from_the_right_files_in_the_order_of_the_indices(tmp_path):
    np.savez(tmp_path / "a.npz", other=np.arange(5.0), rows=np.arange(6).reshape(3, 2))
    np.save(tmp_path / "b.npy", np.arange(6, 10).reshape(2, 2))
    rows = RowFiles([from_npz(tmp_path / "a.npz", "rows"), from_npy(tmp_path / "b.npy")])
    assert len(rows) == 5
    assert rows.rows(np.array([4, 0, 3, 2, 2])).tolist() == [[8, 9], [0, 1], [6, 7], [4, 5], [4, 5]]
    assert len(np.unique(rows.hashes(np.arange(5)))) == 5
    assert (
        mixed(np.array([0], np.uint64), np.array([0]))[0] == 0xE220A8397B1DCDAF
    )  # SplitMix64's first number of seed 0


def write_idx(folder, *, zipped):
    suffix, opener = (".gz", gzip.open) if zipped else ("", open)
    for part in ("train", "t10k"):
        with opener(folder / f"{part}-images-idx3-ubyte{suffix}", "wb") as file:
            file.write(struct.pack(">4B3I", 0, 0, 8, 3, N, 4, 3) + UINT8.tobytes())
        with opener(folder / f"{part}-labels-idx1-ubyte{suffix}", "wb") as file:
            file.write(struct.pack(">4BI", 0, 0, 8, 1, N) + LABELS.astype(np.uint8).tobytes())


def test_idx_files_beyond_the_limit_are_read_on_demand_unless_they_are_gzipped(tmp_path):
    write_idx(tmp_path, zipped=False)
    fields = {"name": "idx", "path": str(tmp_path)}
    whole, lazy = (data.load(SimpleNamespace(**fields, memory_limit_mb=limit), "train") for limit in (1, 0))
    assert not isinstance(lazy.images, np.ndarray)
    np.testing.assert_array_equal(data.batch_at(lazy, 9, 0, 3)["image"], data.batch_at(whole, 9, 0, 3)["image"])
    (tmp_path / "train-images-idx3-ubyte").write_bytes((tmp_path / "train-images-idx3-ubyte").read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"train-images-idx3-ubyte: truncated: its header has the sizes \[40, 4, 3\]"):
        data.load(SimpleNamespace(**fields, memory_limit_mb=0), "train")
    zipped = tmp_path / "zipped"
    zipped.mkdir()
    write_idx(zipped, zipped=True)
    fields["path"] = str(zipped)
    with pytest.raises(ValueError, match=r"ubyte.gz: its images need 0 MB, .*decompress it \(gunzip train-images"):
        data.load(SimpleNamespace(**fields, memory_limit_mb=0), "train")
    np.testing.assert_array_equal(data.load(SimpleNamespace(**fields), "train").images, UINT8)
