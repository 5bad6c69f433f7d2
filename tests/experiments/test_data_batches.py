"""Batches: rows of a batch, such as those of one process; the order and the flips, which no version may change."""

import numpy as np
import pytest
from absl import flags

from experiments import data
from experiments.data import pipeline


def numbered(n):
    """Returns a data set whose images encode their own index."""
    images = np.tile(np.arange(n, dtype=np.float32)[:, None, None, None] / n, (1, 1, 2, 1))
    images[:, 0, 1] = -1.0  # left differs from right
    return data.Dataset(images, np.arange(n, dtype=np.int32), (1, 2, 1), n, noise=-images)


@pytest.mark.parametrize("n", [3, 11, 50])
@pytest.mark.parametrize("rows", [slice(0, 5), slice(5, 10), slice(2, 3), slice(7, None), slice(-4, None)])
def test_rows_are_those_of_the_whole_batch(n, rows):
    for step in (0, 1, 7):
        whole = data.batch_at(numbered(n), 10, 5, step, flip=True)
        part = next(data.batches(numbered(n), 10, 5, start_step=step, flip=True, rows=rows))
        assert part.keys() == whole.keys() == {"image", "label", "noise"}
        for name in whole:
            np.testing.assert_array_equal(part[name], whole[name][rows])
        indices = data.batch_indices(numbered(n), 10, 5, step, rows=rows)
        np.testing.assert_array_equal(indices, whole["label"][rows])


def test_only_the_rows_are_read():
    read = []

    class Source:
        def __len__(self):
            return 20

        def __getitem__(self, index):
            read.append(index)
            return np.zeros((1, 1, 1), np.uint8)

    dataset = data.Dataset(Source(), None, (1, 1, 1), 0)
    data.batch_at(dataset, 20, 0, 0, rows=slice(4, 8))
    assert read == data.batch_indices(dataset, 20, 0, 0)[4:8].tolist()


@pytest.mark.parametrize("rows", [slice(0, 0), slice(10, 12), slice(0, 4, 2), slice(5, 2)])
def test_rows_that_are_no_part_of_a_batch_are_refused(rows):
    with pytest.raises(ValueError, match=r"rows must be a slice of at least one row of a batch of 10"):
        data.batches(numbered(20), 10, 0, rows=rows)


def test_the_order_of_large_data_sets_is_that_of_small_ones_and_fewer_are_cached(monkeypatch):
    expected = [data.batch_indices(numbered(11), 11, 9, epoch) for epoch in range(5)]
    monkeypatch.setattr(pipeline, "_FEW", 10)
    for epoch, indices in enumerate(expected):
        np.testing.assert_array_equal(data.batch_indices(numbered(11), 11, 9, epoch), indices)
    assert pipeline._order_of_many.cache_info().currsize == 2


@pytest.mark.long  # two processes
def test_worker_processes_yield_the_same_batches():
    if not flags.FLAGS.is_parsed():
        flags.FLAGS(["test"])
    stream = data.batches(numbered(11), 4, 5, start_step=3, flip=True, num_workers=2, num_threads=1)
    for step in range(3, 9):
        whole, batch = data.batch_at(numbered(11), 4, 5, step, flip=True), next(stream)
        for name in whole:
            assert type(batch[name]) is np.ndarray
            np.testing.assert_array_equal(batch[name], whole[name])
    stream.close()


def test_a_bad_number_of_workers_is_refused():
    with pytest.raises(ValueError, match=r"data.num_workers must be at least 0.*got -1"):
        data.batches(numbered(11), 4, 5, num_workers=-1)


@pytest.mark.parametrize("n", [1, 3, 4, 1438])
def test_order_and_flips_of_an_epoch_are_the_sorted_and_the_last_bits_of_one_generator(n):
    """The definition, so that a run of an older version resumes with the same batches."""
    seed, epoch = 7, 3
    raw = np.random.Philox(key=np.array([seed, epoch], np.uint64)).random_raw(2 * n)
    batch = data.batch_at(numbered(n), n, seed, epoch, flip=True)
    np.testing.assert_array_equal(batch["label"], np.argsort(raw[:n], kind="stable"))
    np.testing.assert_array_equal(batch["image"][:, 0, 0, 0] == -1, raw[n:] >= 2**63)
