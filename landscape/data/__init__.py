"""Data as tensors in memory, whole and in a fixed order: named data sets, or anybody's own."""

from landscape.data.batches import Batch, Batches, batch_size, collect, split_batch
from landscape.data.sets import Dataset, load, names

__all__ = ["Batch", "Batches", "Dataset", "batch_size", "collect", "load", "names", "split_batch"]
