"""Bring a network as close as possible to another one by its symmetries.

Units are matched by their weights (Ainsworth et al. 2022, arXiv:2209.04836): for each group in turn the permutation and
the signs that bring it closest to the other network, a linear assignment, until none changes; from several beginnings.
Where there are few symmetries all of them are tried. Scales are removed beforehand: `Symmetries.balance`.
"""

import itertools
import math
from collections.abc import Iterator, Sequence
from functools import cached_property

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from landscape.arguments import expect, whole_number
from landscape.parameters import real_tensor
from landscape.symmetry.group import Symmetries, Transformation, move, rows_of
from landscape.symmetry.units import Group, Place

Array = np.ndarray
_MAX_COPIES = 100_000
_MAX_NUMBERS = 10_000_000  # of all copies together
_MAX_LINKED = 6  # signs of one unit that are tried together
_MAX_SWEEPS = 100


def match(symmetries: Symmetries, theta_a: Tensor, theta_b: Tensor, seed: int = 0, n_starts: int = 3) -> Transformation:
    """Find the symmetry that brings one network closest to another.

    The distance is that of the balanced copies (`Symmetries.balance`). It is the smallest possible one where there is
    one layer of hidden units or at most 100,000 discrete symmetries; else coordinate descent finds a local minimum,
    which is the global one for two copies of one network.

    Args:
        symmetries: Of both networks.
        theta_a: `[p]` the network to come close to.
        theta_b: `[p]` the network to transform.
        seed: Of the beginnings.
        n_starts: Beginnings of the coordinate descent: matched layer by layer from the input, as they are, and then
            random ones; the best result is taken.

    Returns:
        What `Symmetries.transform` takes to bring b to a; b is scaled relative to a as their balanced copies are.
    """
    expect("symmetries", symmetries, Symmetries, "what landscape.symmetries returns")
    p, seed = symmetries.layout.p, whole_number("seed", seed, 0)
    for name, theta in (("theta_a", theta_a), ("theta_b", theta_b)):
        if real_tensor(name, theta).shape != (p,):
            raise ValueError(f"{name} has shape {tuple(theta.shape)}, expected ({p},)")
    to_a, to_b = symmetries.balancing(theta_a), symmetries.balancing(theta_b)
    a = symmetries.transform(theta_a.double(), *to_a)
    b = symmetries.transform(theta_b.double(), *to_b)
    found = Matcher(symmetries).nearest(a, b, seed, n_starts)
    scales = [
        s_b[found.permutations[gain.group]] / s_a
        for gain, s_a, s_b in zip(symmetries.gains, to_a.scales, to_b.scales, strict=True)
    ]
    return found._replace(scales=scales)


def align(symmetries: Symmetries, theta_a: Tensor, theta_b: Tensor, seed: int = 0) -> Tensor:
    """Return the symmetric copy of network b that is nearest to network a, `[p]`; see `match`.

    Its function is that of b, so that the straight path from a to the copy is one between the same two functions.
    With batch norm, running statistics have to be transformed too: `match` and `Symmetries.transform_buffers`.

    Example:
        >>> near = align(symmetries(model, x), theta_a, theta_b)  # doctest: +SKIP
    """
    found = match(symmetries, theta_a, theta_b, seed)
    return symmetries.transform(theta_b, *found)


class Matcher:
    """Matches many networks with the same symmetries; what depends on the symmetries alone is done once.

    Args:
        symmetries: Of all networks.
    """

    def __init__(self, symmetries: Symmetries) -> None:
        self.symmetries = symmetries
        self.groups = [i for i, group in enumerate(symmetries.groups) if _is_discrete(symmetries, i, group)]
        axes: dict[str, list[int]] = {}
        for i in self.groups:
            for place in symmetries.groups[i].places:
                axes.setdefault(place.name, []).append(i)
        self._acting = axes

    def nearest(self, a: Tensor, b: Tensor, seed: int = 0, n_starts: int = 3) -> Transformation:
        """Return the permutations and signs that bring b closest to a, both balanced, `[p]` float64."""
        if self.copies is not None:
            gather, factors, list_of = self.copies
            copies = b.numpy()[gather] * factors
            return list_of[int(((copies - a.numpy()) ** 2).sum(axis=1).argmin())]
        rng = np.random.default_rng(seed)
        targets = {name: part.numpy() for name, part in self.symmetries.layout.unflatten(a).items()}
        best, best_product = self.symmetries.identity(), -math.inf
        largest = (1 - 1e-14) * float(a.norm() * b.norm())  # the same up to rounding: nothing is closer
        for start in range(1 if len(self.groups) < 2 else n_starts):
            if best_product >= largest:
                break
            found, product = self._descend(targets, b, start, rng)
            if product > best_product + 1e-12 * abs(product):
                best, best_product = found, product
        return best

    def distances(self, a: Tensor, others: Tensor, seed: int = 0) -> Array:
        """Return how close other networks can be brought to one, all balanced: `[p]`, `[m, p]` -> `[m]`."""
        if self.copies is not None:
            gather, factors, _ = self.copies
            copies = torch.from_numpy(a.numpy()[gather] * factors)
            return np.array([float((copies - other).norm(dim=1).min()) for other in others])
        moved = [self.symmetries.transform(other, *self.nearest(a, other, seed)) for other in others]
        return np.array([float((a - other).norm()) for other in moved])

    def invariants(self, theta: Tensor) -> Array:
        """Return numbers that no symmetry changes, and that move no further than the network does.

        For each tensor the sorted norms of the parts that belong to units; all absolute values where no unit has a
        part. The distance of two networks' invariants is at most that of their nearest copies (the rearrangement
        inequality, and `| |x| - |y| | <= |x - y|`): networks far apart are told apart without matching.

        Args:
            theta: `[p]` balanced.
        """
        parts = {name: part.numpy() for name, part in self.symmetries.layout.unflatten(theta).items()}
        places: dict[str, Place] = {}
        for i in self.groups:
            for place in self.symmetries.groups[i].places:
                places.setdefault(place.name, place)
        result = []
        for name, part in parts.items():
            if name not in places:
                result.append(part.reshape(-1))
                continue
            norms = np.linalg.norm(rows_of(part, places[name]), axis=1)
            group = next(
                self.symmetries.groups[i] for i in self.groups if places[name] in self.symmetries.groups[i].places
            )
            result.append(np.sort(norms) if group.permutable else norms)
        return np.concatenate(result)

    @cached_property
    def copies(self) -> tuple[Array, Array, list[Transformation]] | None:
        """All symmetric copies as indices into theta and signs, `[n, p]`; None where there are too many."""
        n = math.exp(min(self.symmetries.order(), 50))
        if n > _MAX_COPIES * 1.001 or n * self.symmetries.layout.p > _MAX_NUMBERS:
            return None
        if len(self.groups) == 1 and n > 1000:  # one assignment is exact, too
            return None
        numbers = torch.arange(1, self.symmetries.layout.p + 1, dtype=torch.float64)
        result, transformations = numbers.numpy()[None], [self.symmetries.identity()]
        for i in self.groups:
            own = list(self._all_of(i))
            images = np.stack([self.symmetries.transform(numbers, *one).numpy() for one in own])
            sources, signs = np.abs(images).astype(int) - 1, np.sign(images)
            result = (result[:, sources] * signs).reshape(-1, len(numbers))
            transformations = [self._joined(old, new, i) for old in transformations for new in own]
        return np.abs(result).astype(int) - 1, np.sign(result), transformations

    def _all_of(self, i: int) -> Iterator[Transformation]:
        """Yield all permutations and signs of one group."""
        group = self.symmetries.groups[i]
        signed = [k for k, gain in enumerate(self.symmetries.gains) if gain.group == i and gain.signs]
        orders = itertools.permutations(range(group.size)) if group.permutable else [tuple(range(group.size))]
        for order in orders:
            for signs in itertools.product((1.0, -1.0), repeat=group.size * len(signed)):
                one = self.symmetries.identity()
                one.permutations[i] = np.array(order)
                for row, k in zip(np.array(signs).reshape(len(signed), group.size), signed, strict=True):
                    one.signs[k] = row
                yield one

    def _joined(self, old: Transformation, new: Transformation, i: int) -> Transformation:
        """Take group `i` from one transformation and the others from another."""
        permutations = [new.permutations[j] if j == i else p for j, p in enumerate(old.permutations)]
        signs = [
            new.signs[k] if gain.group == i else s
            for k, (gain, s) in enumerate(zip(self.symmetries.gains, old.signs, strict=True))
        ]
        return Transformation(permutations, signs, old.scales)

    def _descend(
        self, targets: dict[str, Array], b: Tensor, start: int, rng: np.random.Generator
    ) -> tuple[Transformation, float]:
        """Match group by group until nothing changes; returns the transformation and the inner product reached."""
        done = self.symmetries.identity() if start < 2 else self._shuffle(rng)
        parts = self.symmetries.layout.unflatten(self.symmetries.transform(b, *done))
        arrays = {name: part.numpy() for name, part in parts.items()}
        if start == 0:
            solved: set[int] = set()
            for i in self.groups:
                self._step(i, targets, arrays, done, solved)
                solved.add(i)
        for _ in range(_MAX_SWEEPS):
            if not any([self._step(int(i), targets, arrays, done) for i in rng.permutation(self.groups)]):
                break
        return done, sum(float((targets[name] * array).sum()) for name, array in arrays.items())

    def _shuffle(self, rng: np.random.Generator) -> Transformation:
        drawn = self.symmetries.draw(int(rng.integers(2**31)))
        return drawn._replace(scales=self.symmetries.identity().scales)

    def _step(
        self,
        i: int,
        targets: dict[str, Array],
        arrays: dict[str, Array],
        done: Transformation,
        solved: set[int] | None = None,
    ) -> bool:
        """Match the units of one group, given all others; in place. Returns whether it came closer.

        With `solved`, only tensors count that no other group acts on, but those solved, and any match is taken.
        """
        group = self.symmetries.groups[i]
        places = [place for place in group.places if place.name in targets]
        used = places
        if solved is not None:
            used = [p for p in places if all(j in solved for j in self._acting[p.name] if j != i)]
        permutation, signs = self._assign(i, used, targets, arrays)
        factors = [np.ones(0)] * len(self.symmetries.gains)
        for k, sign in signs.items():
            factors[k] = sign
        for k, gain in enumerate(self.symmetries.gains):
            if gain.group == i and k not in signs:
                factors[k] = np.ones(group.size)
        names = {place.name for place in places}
        trial = {name: arrays[name].copy() for name in names}
        move(trial, group, permutation, factors)
        before, after = (
            sum(float((targets[name] * tensors[name]).sum()) for name in names) for tensors in (arrays, trial)
        )
        if solved is None and after <= before + 1e-12 * abs(before):
            return False
        arrays.update(trial)
        done.permutations[i] = done.permutations[i][permutation]
        for k, sign in signs.items():
            done.signs[k] = done.signs[k][permutation] * sign
        return True

    def _assign(
        self, i: int, places: Sequence[Place], targets: dict[str, Array], arrays: dict[str, Array]
    ) -> tuple[Array, dict[int, Array]]:
        """Return the permutation and the signs with the largest inner product.

        For units (i, j), those entries that flip with the same gains add up to one number m_q per set q of gains; the
        best signs s maximize `sum_q m_q prod_{k in q} s_k`.
        """
        group = self.symmetries.groups[i]
        signed = [k for k, gain in enumerate(self.symmetries.gains) if gain.group == i and gain.signs]
        products: dict[frozenset, Array] = {frozenset(): np.zeros((group.size, group.size))}
        for place in places:
            odd = frozenset(k for k, exponent in place.gains if k in signed and exponent % 2)
            product = rows_of(targets[place.name], place) @ rows_of(arrays[place.name], place).T
            products[odd] = products.get(odd, 0) + product
        linked = sorted({k for q in products if len(q) > 1 for k in q})
        best, best_signs = self._best_signs(products, signed, linked)
        permutation = np.arange(group.size)
        if group.permutable:
            permutation = linear_sum_assignment(best, maximize=True)[1]
        units = np.arange(group.size)
        return permutation, {k: sign[units, permutation] for k, sign in best_signs.items()}

    def _best_signs(
        self, products: dict[frozenset, Array], signed: list[int], linked: list[int]
    ) -> tuple[Array, dict[int, Array]]:
        """Return the largest value for each pair of units, and the signs that give it, `[n, n]` each."""
        shape = products[frozenset()].shape
        free = [k for k in signed if k not in linked]
        signs = {k: np.where(products.get(frozenset([k]), np.zeros(shape)) < 0, -1.0, 1.0) for k in free}
        value = products[frozenset()] + sum(signs[k] * products.get(frozenset([k]), 0) for k in free)
        tried = linked[:_MAX_LINKED]  # the others keep their signs in this step
        best = np.full(shape, -np.inf)
        found = {k: np.ones(shape) for k in tried}
        for choice in itertools.product((1.0, -1.0), repeat=len(tried)):
            chosen = dict(zip(tried, choice, strict=True))
            total = sum(
                product * math.prod(chosen.get(k, 1.0) for k in q) for q, product in products.items() if q & set(linked)
            )
            better = total > best
            best = np.where(better, total, best)
            for k in tried:
                found[k] = np.where(better, chosen[k], found[k])
        return (value + best if linked else value), {**signs, **found}


def _is_discrete(symmetries: Symmetries, i: int, group: Group) -> bool:
    """Tell whether a group has permutations or signs, and not scales alone."""
    signs = any(gain.signs for gain in symmetries.gains if gain.group == i)
    return signs or (group.permutable and group.size > 1)
