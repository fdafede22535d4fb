"""A batch as a tree of tensors: read it, count its samples, cut it, hash it."""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

Batch = Tensor | tuple[Any, ...] | Mapping[Any, Any]
"""A tensor, or a tuple or mapping of batches and None; the first dimension of each tensor counts samples."""


def to_tree(item: Any, where: str) -> Any:
    """Return `item` with tensors for arrays, tuples for lists and dictionaries for mappings, without a copy.

    Args:
        item: What a source of batches gave.
        where: What to call it in an error.

    Raises:
        TypeError: There is something else in it, named with its place.
    """
    if item is None:
        return None
    if isinstance(item, Tensor):
        if item.layout != torch.strided:
            raise TypeError(f"{where} is a tensor of layout {item.layout}; make it dense first")
        if item.is_meta:
            raise TypeError(f"{where} is a tensor on the meta device, which has no values; make it on a real one")
        return item.detach().as_subclass(Tensor)
    if isinstance(item, np.ndarray):
        if item.dtype.kind not in "biufc":
            raise TypeError(f"{where} is an array of dtype {item.dtype}; expected numbers")
        return torch.from_numpy(np.require(item, item.dtype.newbyteorder("="), ["C", "W"]))
    if isinstance(item, Mapping):
        return {key: to_tree(value, f"{where}[{key!r}]") for key, value in item.items()}
    if isinstance(item, tuple | list):
        return _like(item, [to_tree(part, f"{where}[{i}]") for i, part in enumerate(item)])
    raise TypeError(
        f"{where} is a {type(item).__name__}; expected tensors or NumPy arrays, in tuples or mappings; "
        "convert it, or leave it out of the batches"
    )


def map_tensors(function: Callable[..., Any], *trees: Any) -> Any:
    """Apply a function to the corresponding tensors of trees of one structure."""
    first = trees[0]
    if first is None:
        return None
    if isinstance(first, Mapping):
        return {key: map_tensors(function, *(tree[key] for tree in trees)) for key in first}
    if isinstance(first, tuple):
        return _like(first, [map_tensors(function, *parts) for parts in zip(*trees, strict=True)])
    return function(*trees)


def concatenate(trees: Sequence[Batch]) -> Any:
    """Join batches of one structure along the first dimension."""
    return trees[0] if len(trees) == 1 else map_tensors(lambda *parts: torch.cat(parts), *trees)


def cut(tree: Batch, ends: Sequence[int]) -> Iterator[Batch]:
    """Yield the samples between successive `ends`, as views."""
    for start, stop in pairwise(ends):
        yield map_tensors(lambda tensor, start=start, stop=stop: tensor[start:stop], tree)


def count(tree: Any, where: str) -> int:
    """Return the number of samples: the first dimension, which all tensors must share.

    Raises:
        ValueError: There is no tensor, one has no first dimension, lengths differ, or they are 0.
    """
    leaves = [(f"{where}{path}", leaf) for path, leaf in _leaves(tree) if leaf is not None]
    if not leaves:
        raise ValueError(f"{where} holds no tensor")
    for path, leaf in leaves:
        if leaf.ndim == 0:
            raise ValueError(
                f"{path} is a single number; samples are counted along the first dimension, so its shape should "
                "be [b, ...] (is this a sample instead of a batch? use a DataLoader)"
            )
    n = len(leaves[0][1])
    if any(len(leaf) != n for _, leaf in leaves):
        lengths = {path: len(leaf) for path, leaf in leaves}
        raise ValueError(f"the tensors of {where} have different numbers of samples: {lengths}")
    if n == 0:
        raise ValueError(f"{where} has no samples")
    return n


def signature(tree: Batch) -> tuple[Any, ...]:
    """Return the structure, keys and dtypes of a batch and the shapes of its samples."""
    return tuple((path, leaf if leaf is None else (str(leaf.dtype), *leaf.shape[1:])) for path, leaf in _leaves(tree))


def digest(*trees: Batch) -> str:
    """Return the SHA-256 (hex) of structure, keys, dtypes, shapes and bytes."""
    total = hashlib.sha256()
    for tree in trees:
        total.update(repr((count(tree, "the batch"), signature(tree))).encode())
        for _, leaf in _leaves(tree):
            if leaf is not None:
                # reshaped, since a view as bytes needs a last dimension with stride 1
                total.update(leaf.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return total.hexdigest()


def _leaves(tree: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Yield what a tree holds and where: `[key]` of mappings, in the order of their keys, and `.i` of tuples."""
    if isinstance(tree, Mapping):
        for key in sorted(tree, key=repr):
            yield from _leaves(tree[key], f"{path}[{key!r}]")
    elif isinstance(tree, tuple | list):
        for i, part in enumerate(tree):
            yield from _leaves(part, f"{path}.{i}")
    else:
        yield path, tree


def _like(sequence: Any, parts: list[Any]) -> tuple[Any, ...]:
    """Return a tuple of the parts, with the field names where the sequence is a named tuple."""
    return type(sequence)(*parts) if hasattr(sequence, "_fields") else tuple(parts)
