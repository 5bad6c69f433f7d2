"""Shuffled batches, as a pure function of the step: a run can resume at any step."""

import functools
import os
import threading
from collections.abc import Iterator

import grain
import numpy as np
from absl import flags

from experiments.data.dataset import Dataset, crops_at_random, float_images, philox

__all__ = ["batch_at", "batch_indices", "batches"]

_ENDLESS = 2**62  # number of batches, more than any run uses
_CROP_STREAM = 2**63  # the crops of epoch e are drawn with the key (seed, _CROP_STREAM + e), its order with (seed, e)
_LOCK = threading.Lock()
_PREFETCHED_BYTES = 2**30  # largest size of the batches that are prepared in advance, unless two are larger
_FEW = 2**21  # examples of a data set of which several epochs' orders are cached
_THREADED_BYTES = 2**18  # of float32 per batch; for smaller batches a thread gains nothing


def batches(
    dataset: Dataset,
    batch_size: int,
    seed: int,
    *,
    start_step: int = 0,
    flip: bool = False,
    rows: slice | None = None,
    num_threads: int | None = None,
    num_workers: int = 0,
) -> Iterator[dict[str, np.ndarray]]:
    """Returns an endless iterator of batches: number `start_step`, `start_step + 1`, and so on.

    Batch number k is `batch_at(dataset, batch_size, seed, k, flip=flip, rows=rows)`, a pure function: a run resumed
    at step k gets the batches of an uninterrupted run. The Grain `MapDataset` has one element per batch, not per
    example, so that its overhead arises once per batch; the gather is vectorised.

    Args:
      dataset: the examples.
      batch_size: B, at least 1; if it exceeds the size of the data set, examples recur within a batch.
      seed: random seed of the order and of the flips, an integer >= 0.
      start_step: number of the first batch, at least 0.
      flip: whether each image is mirrored left to right with probability 1/2, drawn anew in every epoch.
      rows: the rows of each batch that are read and yielded, such as those of one process of several; None: all.
      num_threads: number of threads that prepare batches in advance, two each, as long as these need at most 1 GB. None
        chooses 0 for small in-memory batches, 1 for large ones, and 4 to 16, by the number of cores, if images are read
        on demand.
      num_workers: number of processes that prepare batches in advance, two each; each has the threads, and a copy of
        what the data set holds in memory. 0: only threads. Useful where images are decoded and there are many cores;
        needs parsed absl flags, as in `absl.app.run`.

    Returns:
      An iterator of dicts: `image`, float32 `[B, *shape]`; `label`, int32 `[B]`, if there are labels; `text`,
      `[B, *S]`, if there are texts; with `rows` these rows of the arrays.

    Raises:
      ValueError: if an argument is out of range; raised by the call, before the first batch is drawn.

    >>> d = Dataset(np.zeros((3, 2), np.float32), np.arange(3, dtype=np.int32), (2,), 3)
    >>> sorted(next(batches(d, 3, seed=0))["label"].tolist())
    [0, 1, 2]
    """
    _check(dataset, batch_size, start_step, flip, rows)
    if num_threads is not None and num_threads < 0:
        raise ValueError(f"data.num_threads must be at least 0, or None; got {num_threads}")
    if num_workers < 0 or (num_workers and not flags.FLAGS.is_parsed()):
        raise ValueError(
            f"data.num_workers must be at least 0, and with worker processes absl's flags must have been parsed (the "
            f"binaries do it); got {num_workers}"
        )
    philox(seed, 0)  # raises for a bad seed here, not in a thread
    size = 4 * len(range(batch_size)[rows or slice(None)]) * int(np.prod(dataset.shape))
    if num_threads is None:
        in_memory = isinstance(dataset.images, np.ndarray)
        num_threads = _default_threads() if not in_memory else 0 if size < _THREADED_BYTES else 1
    ahead = min(2 * num_threads, max(2, _PREFETCHED_BYTES // size))
    options = grain.ReadOptions(num_threads=min(num_threads, ahead), prefetch_buffer_size=ahead)
    at = functools.partial(batch_at, dataset, batch_size, seed, flip=flip, rows=rows)
    numbers = grain.MapDataset.range(start_step, _ENDLESS)
    read = numbers.map(at).to_iter_dataset(options)
    if num_workers:
        read = read.mp_prefetch(grain.MultiprocessingOptions(num_workers, per_worker_buffer_size=2)).map(_copied)
    return iter(read)


def _copied(batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Returns a batch that does not lie in memory shared with a worker."""
    return {name: np.array(array) for name, array in batch.items()}


def _default_threads() -> int:
    return min(16, max(4, os.cpu_count() or 4))


def batch_at(
    dataset: Dataset, batch_size: int, seed: int, step: int, *, flip: bool = False, rows: slice | None = None
) -> dict[str, np.ndarray]:
    """Returns batch number `step`: examples step * B to (step + 1) * B - 1 of the endless stream of epochs.

    Each epoch is a permutation of the data set, drawn by a counter-based generator with the key (seed, epoch). A batch
    may span epochs. The stream of examples, flips and random crops does not depend on B, nor on `rows`, which selects
    rows of the batch.

    >>> d = Dataset(np.zeros((4, 2), np.float32), np.arange(4, dtype=np.int32), (2,), 4)
    >>> joined = [batch_at(d, 2, 0, k)["label"] for k in (0, 1)]
    >>> bool((np.concatenate(joined) == batch_at(d, 4, 0, 0)["label"]).all())
    True
    """
    step = int(step)
    _check(dataset, batch_size, step, flip, rows)
    parts = _epochs(len(dataset), batch_size, step, rows)
    indices = _indices(len(dataset), seed, parts)
    random = np.concatenate([_crops(seed, *part) for part in parts]) if crops_at_random(dataset) else None
    batch = {"image": float_images(dataset, indices, random=random)}
    if dataset.noise is not None:
        batch["noise"] = dataset.noise[indices]
    if flip:
        flips = np.concatenate([_flips(len(dataset), seed, *part) for part in parts])[:, None, None, None]
        batch = {name: np.where(flips, array[:, :, ::-1], array) for name, array in batch.items()}
    if dataset.labels is not None:
        batch["label"] = dataset.labels[indices]
    if dataset.text is not None:
        batch["text"] = dataset.text[indices]
    return batch


def batch_indices(dataset: Dataset, batch_size: int, seed: int, step: int, *, rows: slice | None = None) -> np.ndarray:
    """Returns int64 `[B]`: which examples of the data set batch number `step` holds, in their order there.

    Raises:
      ValueError: if an argument is out of range.

    >>> d = Dataset(np.zeros((4, 2), np.float32), np.arange(4, dtype=np.int32), (2,), 4)
    >>> bool((d.labels[batch_indices(d, 3, 0, 5)] == batch_at(d, 3, 0, 5)["label"]).all())
    True
    """
    step = int(step)
    _check(dataset, batch_size, step, flip=False, rows=rows)
    return _indices(len(dataset), seed, _epochs(len(dataset), batch_size, step, rows))


def _epochs(num_examples: int, batch_size: int, step: int, rows: slice | None) -> list[tuple[int, int, int]]:
    """Returns (epoch, first position in it, position after the last) of the parts of these rows of a batch."""
    n, chosen = num_examples, range(batch_size)[rows or slice(None)]
    start, stop = step * batch_size + chosen.start, step * batch_size + chosen.stop
    return [(e, max(start - e * n, 0), min(stop - e * n, n)) for e in range(start // n, (stop - 1) // n + 1)]


def _indices(num_examples: int, seed: int, parts: list[tuple[int, int, int]]) -> np.ndarray:
    return np.concatenate([_epoch_order(num_examples, seed, e)[start:stop] for e, start, stop in parts])


# Raw bits and a stable sort: NumPy guarantees the bits of Philox in every version, but not the result of
# Generator.permutation. The caches hold the current epoch and those that threads prefetch; of large data sets two, the
# current and the next: 8 bytes per example and epoch.


def _epoch_order(num_examples: int, seed: int, epoch: int) -> np.ndarray:
    if num_examples <= _FEW:
        return _order_of_few(num_examples, seed, epoch)
    with _LOCK:  # several threads that begin an epoch would need the memory of several orders
        return _order_of_many(num_examples, seed, epoch)


def _permutation(num_examples: int, seed: int, epoch: int) -> np.ndarray:
    order = np.argsort(philox(seed, epoch).random_raw(num_examples), kind="stable")
    order.setflags(write=False)
    return order


_order_of_few = functools.lru_cache(maxsize=8)(_permutation)
_order_of_many = functools.lru_cache(maxsize=2)(_permutation)


def _flips(num_examples: int, seed: int, epoch: int, start: int, stop: int) -> np.ndarray:
    """Returns which images at the positions start to stop - 1 of an epoch are mirrored."""
    first = num_examples + start  # the numbers before it order the examples
    bits = philox(seed, epoch).advance(first // 4)  # a counter yields four numbers
    return bits.random_raw(first % 4 + stop - start)[first % 4 :] >> np.uint64(63) == 1


def _crops(seed: int, epoch: int, start: int, stop: int) -> np.ndarray:
    """Returns uint64 `[stop - start, 4]`: the random numbers of the crops at these positions of an epoch."""
    return philox(seed, _CROP_STREAM + epoch).advance(start).random_raw(4 * (stop - start)).reshape(-1, 4)


def _check(dataset: Dataset, batch_size: int, step: int, flip: bool, rows: slice | None) -> None:
    if not len(dataset):
        raise ValueError("the data set holds no examples")
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1; got {batch_size}")
    if step < 0:
        raise ValueError(f"a batch number must be at least 0; got {step}")
    if rows is not None and (rows.step not in (None, 1) or not len(range(batch_size)[rows])):
        raise ValueError(f"rows must be a slice of at least one row of a batch of {batch_size}, of step 1; got {rows}")
    if flip and len(dataset.shape) != 3:
        raise ValueError(f"flip needs images of shape (H, W, C); this data set has {dataset.shape}")
