"""Batches in a shuffled order that any step of a run can be restarted from."""

import functools
from collections.abc import Iterator

import grain
import numpy as np

from experiments.data.dataset import Dataset, float_images, philox

_ENDLESS = 2**62  # batches; a length that no run comes to the end of
_THREADED_BYTES = 2**18  # of float32 a batch: below, a thread costs about what it hides


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
    step k sees what an uninterrupted run sees. A Grain `MapDataset` runs over batch numbers, not over
    examples, so that its fixed cost is paid once a batch; the gather is vectorised.

    Args:
      dataset: the examples.
      batch_size: B, at least 1; more than the data set holds is allowed, and then examples recur in a batch.
      seed: seed of the order and of the flips, an integer >= 0.
      start_step: the first batch number, at least 0.
      flip: mirror each image left to right with probability 1/2, anew in every epoch.
      num_threads: threads that prepare batches ahead. None decides by the work in a batch: none for small
        in-memory batches, one for large ones, four where images are decoded on demand.

    Returns:
      An iterator of dicts: `image`, float32 `[B, *shape]`, and, if there are labels, `label`, int32 `[B]`.

    Raises:
      ValueError: at the call, if an argument is out of range.

    >>> d = Dataset(np.zeros((3, 2), np.float32), np.arange(3, dtype=np.int32), (2,), 3)
    >>> sorted(next(batches(d, 3, seed=0))["label"].tolist())
    [0, 1, 2]
    """
    _check(dataset, batch_size, start_step, flip)
    philox(seed, 0)  # raises for a bad seed here rather than in a thread
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

    Each epoch is a permutation of the data set, drawn by a counter-based generator keyed with (seed, epoch);
    batches cut the stream where they fall, across epochs too. The stream and its flips are the same for any B.

    >>> d = Dataset(np.zeros((4, 2), np.float32), np.arange(4, dtype=np.int32), (2,), 4)
    >>> joined = [batch_at(d, 2, 0, k)["label"] for k in (0, 1)]
    >>> bool((np.concatenate(joined) == batch_at(d, 4, 0, 0)["label"]).all())
    True
    """
    step = int(step)
    _check(dataset, batch_size, step, flip)
    n, start, stop = len(dataset), step * batch_size, (step + 1) * batch_size
    epochs = [(e, slice(max(start - e * n, 0), stop - e * n)) for e in range(start // n, (stop - 1) // n + 1)]
    indices = np.concatenate([_epoch_order(n, seed, e)[part] for e, part in epochs])
    image = float_images(dataset, indices)
    batch = {"image": image}
    if dataset.noise is not None:
        batch["noise"] = dataset.noise[indices]
    if flip:
        flips = np.concatenate([_epoch_flips(n, seed, e)[part] for e, part in epochs])[:, None, None, None]
        batch = {name: np.where(flips, array[:, :, ::-1], array) for name, array in batch.items()}
    if dataset.labels is not None:
        batch["label"] = dataset.labels[indices]
    return batch


# Raw bits and a stable sort, for NumPy keeps the bits of Philox the same from version to version, which it
# does not promise of Generator.permutation. The caches hold the current epoch and what threads prefetch
# around it.


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
