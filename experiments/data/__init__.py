"""Data for the experiments: `load` returns the data set of a config, `batches` draws from it."""

from experiments.data.coupling import coupled, optimal_pairing
from experiments.data.dataset import UNREADABLE, Dataset, crops_at_random, float_images, memory_limit, split_indices
from experiments.data.functions import to_dataset
from experiments.data.load import KINDS, has_heldout, load
from experiments.data.pairs import paired
from experiments.data.pipeline import batch_at, batch_indices, batches
from experiments.data.records import Record, compare, describe

__all__ = [
    "KINDS",
    "UNREADABLE",
    "Dataset",
    "Record",
    "batch_at",
    "batch_indices",
    "batches",
    "compare",
    "coupled",
    "crops_at_random",
    "describe",
    "float_images",
    "has_heldout",
    "load",
    "memory_limit",
    "optimal_pairing",
    "paired",
    "split_indices",
    "to_dataset",
]


def __dir__() -> list[str]:
    return __all__
