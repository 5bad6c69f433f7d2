"""Data for the experiments: `load` a data set by config, then draw `batches` from it."""

from experiments.data.dataset import Dataset, float_images, split_indices
from experiments.data.load import KINDS, load
from experiments.data.pipeline import batch_at, batches

__all__ = ["KINDS", "Dataset", "batch_at", "batches", "float_images", "load", "split_indices"]
