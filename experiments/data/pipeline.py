"""Shuffled batches, as a pure function of the step: a run can resume at any step."""

import functools
from collections.abc import Iterator

import grain
import numpy as np

from experiments.data.dataset import Dataset, float_images, philox

__all__ = ["batch_at", "batch_indices", "batches"]

_ENDLESS = 2**62  # number of batches, more than any run uses
_THREADED_BYTES = 2**18  # of float32 per batch; for smaller batches a thread gains nothing


def batches(
    dataset: Dataset,
    batch_size: int,
    seed: int,
    *,
    start_step: int = 0,
    flip: bool = False,
    num_threads: int | None = None,
) -> Iterator[dict[str, np.ndarray]]:
    """Returns an endless iterator of batches: number `start_step`, `start_step + 1`, and so on.

    Batch number k is `batch_at(dataset, batch_size, seed, k, flip=flip)`, a pure function: a run resumed at
    step k gets the batches of an uninterrupted run. The Grain `MapDataset` has one element per batch, not per
    example, so that its overhead arises once per batch; the gather is vectorised.

    Args:
      dataset: the examples.
      batch_size: B, at least 1; if it exceeds the size of the data set, examples recur within a batch.
      seed: random seed of the order and of the flips, an integer >= 0.
      start_step: number of the first batch, at least 0.
      flip: whether each image is mirrored left to right with probability 1/2, drawn anew in every epoch.
      num_threads: number of threads that prepare batches in advance. None chooses 0 for small in-memory batches, 1 for
        large ones, and 4 if images are decoded on demand.

    Returns:
      An iterator of dicts: `image`, float32 `[B, *shape]`, and, if there are labels, `label`, int32 `[B]`.

    Raises:
      ValueError: if an argument is out of range; raised by the call, before the first batch is drawn.

    >>> d = Dataset(np.zeros((3, 2), np.float32), np.arange(3, dtype=np.int32), (2,), 3)
    >>> sorted(next(batches(d, 3, seed=0))["label"].tolist())
    [0, 1, 2]
    """
    _check(dataset, batch_size, start_step, flip)
    philox(seed, 0)  # raises for a bad seed here, not in a thread
    if num_threads is None:
        in_memory = isinstance(dataset.images, np.ndarray)
        small = 4 * batch_size * int(np.prod(dataset.shape)) < _THREADED_BYTES
        num_threads = 4 if not in_memory else 0 if small else 1
    options = grain.ReadOptions(num_threads=num_threads, prefetch_buffer_size=2 * num_threads)
    at = functools.partial(batch_at, dataset, batch_size, seed, flip=flip)
    numbers = grain.MapDataset.range(start_step, _ENDLESS)
    return iter(numbers.map(at).to_iter_dataset(options))


def batch_at(dataset: Dataset, batch_size: int, seed: int, step: int, *, flip: bool = False) -> dict[str, np.ndarray]:
    """Returns batch number `step`: examples step * B to (step + 1) * B - 1 of the endless stream of epochs.

    Each epoch is a permutation of the data set, drawn by a counter-based generator with the key (seed, epoch). A batch
    may span epochs. The stream of examples and flips does not depend on B.

    >>> d = Dataset(np.zeros((4, 2), np.float32), np.arange(4, dtype=np.int32), (2,), 4)
    >>> joined = [batch_at(d, 2, 0, k)["label"] for k in (0, 1)]
    >>> bool((np.concatenate(joined) == batch_at(d, 4, 0, 0)["label"]).all())
    True
    """
    step = int(step)
    _check(dataset, batch_size, step, flip)
    indices = batch_indices(dataset, batch_size, seed, step)
    image = float_images(dataset, indices)
    batch = {"image": image}
    if dataset.noise is not None:
        batch["noise"] = dataset.noise[indices]
    if flip:
        n = len(dataset)
        parts = [_epoch_flips(n, seed, e)[part] for e, part in _epochs(n, batch_size, step)]
        flips = np.concatenate(parts)[:, None, None, None]
        batch = {name: np.where(flips, array[:, :, ::-1], array) for name, array in batch.items()}
    if dataset.labels is not None:
        batch["label"] = dataset.labels[indices]
    return batch


def batch_indices(dataset: Dataset, batch_size: int, seed: int, step: int) -> np.ndarray:
    """Returns int64 `[B]`: which examples of the data set batch number `step` holds, in their order there.

    Raises:
      ValueError: if an argument is out of range.

    >>> d = Dataset(np.zeros((4, 2), np.float32), np.arange(4, dtype=np.int32), (2,), 4)
    >>> bool((d.labels[batch_indices(d, 3, 0, 5)] == batch_at(d, 3, 0, 5)["label"]).all())
    True
    """
    step = int(step)
    _check(dataset, batch_size, step, flip=False)
    n = len(dataset)
    return np.concatenate([_epoch_order(n, seed, e)[part] for e, part in _epochs(n, batch_size, step)])


def _epochs(num_examples: int, batch_size: int, step: int) -> list[tuple[int, slice]]:
    """Returns (epoch, positions within it) of the parts of a batch."""
    n, start, stop = num_examples, step * batch_size, (step + 1) * batch_size
    return [(e, slice(max(start - e * n, 0), stop - e * n)) for e in range(start // n, (stop - 1) // n + 1)]


# Raw bits and a stable sort: NumPy guarantees the bits of Philox in every version, but not the result of
# Generator.permutation. The caches hold the current epoch and those that threads prefetch.


@functools.lru_cache(maxsize=8)
def _epoch_order(num_examples: int, seed: int, epoch: int) -> np.ndarray:
    order = np.argsort(philox(seed, epoch).random_raw(num_examples), kind="stable")
    order.setflags(write=False)
    return order


@functools.lru_cache(maxsize=8)
def _epoch_flips(num_examples: int, seed: int, epoch: int) -> np.ndarray:
    flips = philox(seed, epoch).random_raw(2 * num_examples)[num_examples:] >> np.uint64(63) == 1
    flips.setflags(write=False)
    return flips


def _check(dataset: Dataset, batch_size: int, step: int, flip: bool) -> None:
    if not len(dataset):
        raise ValueError("the data set holds no examples")
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1; got {batch_size}")
    if step < 0:
        raise ValueError(f"a batch number must be at least 0; got {step}")
    if flip and len(dataset.shape) != 3:
        raise ValueError(f"flip needs images of shape (H, W, C); this data set has {dataset.shape}")
