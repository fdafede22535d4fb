"""Anybody's data, collected into memory in a fixed order."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, RandomSampler, SubsetRandomSampler, WeightedRandomSampler, default_collate
from torch.utils.data import Dataset as TorchDataset

from landscape.data.sets import Dataset, check_limit
from landscape.data.trees import Batch, concatenate, count, cut, digest, map_tensors, signature, to_tree

_FETCHED = 256  # samples of a torch Dataset that are stacked at once


@dataclass(frozen=True, eq=False)
class Batches:
    """A whole data set in memory, in a fixed order; made by `collect`.

    Attributes:
        items: The batches as the source gave them, as detached CPU tensors.
        sizes: Number of samples of each item.
        name: What the data are called.
        stackable: Whether all samples have the same structure, dtype and shape, so that the data may be cut
            into chunks of any size.
    """

    items: tuple[Batch, ...]
    sizes: tuple[int, ...]
    name: str
    stackable: bool

    @property
    def n_samples(self) -> int:
        """Number of samples of all items together."""
        return sum(self.sizes)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of the structure, keys, dtypes, shapes and bytes of all samples in their order.

        Where the data are stackable, it does not depend on how they are cut into batches.
        """
        return digest(self._whole) if self.stackable else digest(*self.items)

    def chunks(self, size: int | None) -> Iterator[Batch]:
        """Iterate over the data in chunks of `size` samples, the last of which may have fewer.

        The chunks are views of the data: do not change them in place.

        Args:
            size: Samples per chunk. None: the items as they are.

        Raises:
            ValueError: `size` is below 1, or is given for data that are not stackable.
        """
        if size is None:
            return iter(self.items)
        if size < 1:
            raise ValueError(f"a chunk has 1 sample or more, got size={size}")
        if not self.stackable:
            raise ValueError(
                f"the batches of {self.name} differ in structure, dtype or shape of their samples, so they "
                f"cannot be cut into chunks of {size}; use chunks(None), which gives them as they are"
            )
        return cut(self._whole, [*range(0, self.n_samples, size), self.n_samples])

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> "Batches":
        """Return the same data on another device or in another floating-point type.

        Args:
            device: Where the tensors go. None: they stay.
            dtype: Type of the floating-point tensors; the others keep theirs. None: all keep theirs.

        Raises:
            ValueError: `dtype` is not a floating-point type.
        """
        if dtype is not None and not dtype.is_floating_point:
            raise ValueError(f"dtype is a floating-point type such as torch.float64, got {dtype}")

        def move(tensor: Tensor) -> Tensor:
            return tensor.to(device=device, dtype=dtype if tensor.is_floating_point() else None)

        if self.stackable:
            return _stacked(map_tensors(move, self._whole), self.sizes, self.name)
        return Batches(tuple(map_tensors(move, item) for item in self.items), self.sizes, self.name, False)

    @cached_property
    def _whole(self) -> Batch:
        return concatenate(self.items)


def collect(data: object, *, limit: int | None = None, name: str | None = None) -> Batches:
    """Copy anybody's data into memory, whole and in a fixed order.

    What `data` may be:

    - the whole data as tensors or NumPy arrays: a pair `(x, y)` or a longer tuple with equal first dimension,
      a mapping, or a single one;
    - a `Dataset` of `load`, a torch `Dataset` (its samples are stacked), a `DataLoader` that does not shuffle;
    - any iterable of batches that comes to an end, a batch being a tensor, an array, or a tuple, list or
      mapping of them, nested or not.

    A source that can be iterated again is iterated twice and refused if the passes differ: a loss on data
    that change from one evaluation to the next is not a function of the parameters. An iterator is taken as
    it comes. Lists become tuples, mappings become dictionaries, None is kept. The global random generator of
    torch is left in the state in which it was found.

    Args:
        data: The data.
        limit: Take the first `limit` samples only. Default: all.
        name: What to call the data. Default: made from its type.

    Raises:
        TypeError: `data` is not iterable, or a batch holds something else than tensors and arrays.
        ValueError: Two passes differ, there are no samples, the lengths within a batch differ, or it is not
            clear whether a tuple or list is one batch or several.

    Example:
        >>> batches = collect((torch.zeros(10, 2), torch.zeros(10)))
        >>> [len(x) for x, y in batches.chunks(4)]
        [4, 4, 2]
    """
    check_limit(limit)
    source, once, default = _source(data)
    with _generators_kept(source):
        items = tuple(_trees(source, limit))
        if not items:
            raise ValueError(f"the data ({default}) are empty: expected at least one batch")
        if not once:
            _compare(items, _trees(source, limit))
    sizes = tuple(batch_size(item) for item in items)
    name = default if name is None else name
    if len({signature(item) for item in items}) == 1:
        return _stacked(concatenate(items), sizes, name)
    return Batches(items, sizes, name, False)


def split_batch(batch: Any) -> tuple[Any, Any]:
    """Split a batch into what the model takes and what the loss compares with.

    Args:
        batch: A pair `(x, y)`; a longer tuple `(x1, x2, y)`, whose last entry is the target; a tensor or
            1-tuple `x`, which is its own target (autoencoders); or a mapping, which both get whole.

    Returns:
        `(x, y)`; `((x1, x2), y)`; `(x, x)`; or `(batch, batch)`.
    """
    if not isinstance(batch, tuple | list):
        return batch, batch
    if not batch:
        raise ValueError("the batch is an empty tuple: expected (x, y)")
    *inputs, target = batch
    if not inputs:
        return target, target
    return (inputs[0] if len(inputs) == 1 else tuple(inputs)), target


def batch_size(batch: Any) -> int:
    """Return the number of samples of a batch: the first dimension, which all its tensors share.

    Raises:
        ValueError: There is no tensor, one has no first dimension, their lengths differ, or they are 0.
    """
    return count(batch, "the batch")


def _source(data: Any) -> tuple[Iterable[Any], bool, str]:
    """Return the batches of `data`, whether one pass is enough, and a name."""
    kind = type(data).__name__
    if isinstance(data, Batches):
        return data.items, True, data.name
    if isinstance(data, Dataset):
        return [(data.inputs, data.targets)], True, f"{data.name}/{data.split}"
    if isinstance(data, Tensor | np.ndarray | Mapping):
        return [data], True, kind
    if isinstance(data, tuple | list):
        return (data, True, "batches") if _are_batches(data) else ([data], True, "tensors")
    if isinstance(data, TorchDataset):
        loader: DataLoader = DataLoader(data, batch_size=_FETCHED, shuffle=False, collate_fn=_collate)
        return loader, False, kind
    if isinstance(data, DataLoader):
        sampler = getattr(data.batch_sampler, "sampler", data.sampler)
        if isinstance(sampler, RandomSampler | SubsetRandomSampler | WeightedRandomSampler):
            raise ValueError(
                f"the DataLoader draws its samples in random order ({type(sampler).__name__}), but every "
                "evaluation needs the same data: make one with shuffle=False and no random sampler"
            )
        return data, False, type(data.dataset).__name__
    if not isinstance(data, Iterable):
        raise TypeError(f"expected tensors, a data set, a DataLoader or an iterable of batches, got {kind}")
    return data, isinstance(data, Iterator), "batches"


def _are_batches(data: tuple[Any, ...] | list[Any]) -> bool:
    """Tell a sequence of batches from the whole data as a pair or tuple of tensors."""
    arrays = [part for part in data if isinstance(part, Tensor | np.ndarray)]
    if not arrays or (isinstance(data, list) and len(arrays) == len(data) != 2):
        return True
    if len(arrays) != len(data):
        kinds = ", ".join(type(part).__name__ for part in data)
        raise ValueError(
            f"a {type(data).__name__} of {kinds} can be one batch or several; give a list of batches: [batch] for one"
        )
    shapes = [tuple(part.shape) for part in arrays]
    if len({shape[:1] for shape in shapes}) > 1:
        raise ValueError(
            f"expected inputs and targets of equal length, got shapes {shapes}; "
            "if each is a batch of its own, give iter([...])"
        )
    return False


def _collate(samples: list[Any]) -> Any:
    try:
        return default_collate(samples)
    except RuntimeError as error:
        raise ValueError(
            f"the samples of the data set cannot be stacked into a batch ({error}); "
            "give a DataLoader with batch_size=1, or with a collate_fn that pads them"
        ) from error


@contextmanager
def _generators_kept(source: object) -> Iterator[None]:
    """Restore the generators that iterating over a DataLoader draws from.

    Only at the end: restored between two passes, they would make random transforms look repeatable.
    """
    generators = [torch.default_generator]
    if isinstance(source, DataLoader) and source.generator is not None:
        generators.append(source.generator)
    states = [generator.get_state() for generator in generators]
    try:
        yield
    finally:
        for generator, state in zip(generators, states, strict=True):
            generator.set_state(state)


def _trees(source: Iterable[Any], limit: int | None) -> Iterator[Batch]:
    """Yield copies of the batches, the last one cut so that there are `limit` samples in all."""
    left = limit
    for i, raw in enumerate(source):
        tree = to_tree(raw, f"batch {i}")
        n = count(tree, f"batch {i}")
        yield map_tensors(lambda tensor, end=left: tensor[:end].to("cpu", copy=True), tree)
        if left is not None:
            left -= n
            if left <= 0:
                return


def _stacked(whole: Batch, sizes: tuple[int, ...], name: str) -> Batches:
    """Return stackable data whose items are views of `whole`, so that they are in memory only once."""
    batches = Batches(tuple(cut(whole, [0, *accumulate(sizes)])), sizes, name, True)
    vars(batches)["_whole"] = whole  # what the cached property would make
    return batches


def _compare(first: tuple[Batch, ...], second: Iterator[Batch]) -> None:
    """Refuse data whose second pass differs from the first, and say how."""
    i, again = 0, next(second, None)
    while again is not None and i < len(first) and digest(again) == digest(first[i]):
        i, again = i + 1, next(second, None)
    if again is None and i == len(first):
        return
    if again is None or i == len(first):
        n = f"only {i}" if again is None else f"more than {i}"
        raise ValueError(
            f"a second pass through the data gave {n} batches, the first {len(first)}; "
            "give data that can be read only once as an iterator: iter(data)"
        )
    if Counter(_sample_digests(first[i:])) == Counter(_sample_digests([again, *second])):
        how = "the same samples came in another order or in other batches: use shuffle=False"
    else:
        how = (
            "the samples themselves differ: use a data set without random transforms (and shuffle=False, "
            "where only a part of the data is taken or batches are padded)"
        )
    raise ValueError(
        f"two passes through the data differ from batch {i} on, but every evaluation needs the same data; {how}"
    )


def _sample_digests(items: Iterable[Batch]) -> Iterator[str]:
    for item in items:
        for sample in cut(item, range(batch_size(item) + 1)):
            yield digest(sample)
