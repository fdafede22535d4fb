"""The symmetries of a network: transformations of its parameters that leave its function as it is.

- Hidden units of one layer may change places: rows of the weights before them, columns of the weights after them.
- Where only odd or linear functions lie between (tanh, average pooling, sums), a unit may change its sign.
- Where only positively homogeneous functions lie between (ReLU, pooling, sums), a unit may be scaled by any positive
  number, and what follows divided by it.

They are derived from the graph of the forward pass (`symmetry.follow`), not from names, and checked on inputs. What
cannot be derived is not claimed. Not claimed either: `sigmoid(-x) = 1 - sigmoid(x)`, which moves the biases of the next
layer and so changes a weight penalty; scales before a batch norm, which eps and running statistics break; and the
invertible mixtures of units that have no activation at all.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call

from landscape.evaluation.graph import NotTraceableError, trace
from landscape.parameters import Layout, Selection, layout, real_tensor
from landscape.program import private_copy
from landscape.symmetry.follow import follow
from landscape.symmetry.units import Gain, Group, Place, collect

Array = np.ndarray
_RTOL = 1e-8  # of the check in float64
_SWEEPS = 1000


class Transformation(NamedTuple):
    """One symmetry: first units change places, then they are multiplied.

    Attributes:
        permutations: Per group `[n_units]`: unit `i` becomes what unit `permutation[i]` was.
        signs: Per gain `[n_units]`, 1 or -1.
        scales: Per gain `[n_units]`, positive.
    """

    permutations: list[Array]
    signs: list[Array]
    scales: list[Array]


@dataclass(frozen=True, eq=False)
class Symmetries:
    """The symmetries of a network that were derived.

    Attributes:
        layout: Of `theta`.
        groups: Units that may change places.
        gains: Factors that units may have. A group has none, one, or several: before and after each batch norm.
        notes: What was not derived and why, in words.
    """

    layout: Layout
    groups: tuple[Group, ...]
    gains: tuple[Gain, ...]
    notes: tuple[str, ...]

    def order(self) -> float:
        """Return the natural logarithm of the number of discrete symmetries: permutations and signs."""
        permutations = sum(math.lgamma(group.size + 1) for group in self.groups if group.permutable)
        return permutations + math.log(2) * sum(self.groups[g.group].size for g in self.gains if g.signs)

    def describe(self) -> str:
        """Say in a few lines what may change places, sign or scale."""
        lines = []
        for i, group in enumerate(self.groups):
            own = [gain for gain in self.gains if gain.group == i]
            n_signs, n_scales = sum(gain.signs for gain in own), sum(gain.scales for gain in own)
            free = ["order"] * (group.permutable and group.size > 1)
            free += [_times("sign", n_signs)] * bool(n_signs) + [_times("scale", n_scales)] * bool(n_scales)
            names = list(dict.fromkeys(place.name for place in group.places))
            shown = ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
            lines.append(f"{_times('unit', group.size, number=True)} ({shown}): {', '.join(free)}")
        n_scales = sum(self.groups[gain.group].size for gain in self.gains if gain.scales)
        total = f"{math.exp(self.order()):.0f}" if self.order() < 30 else f"10^{self.order() / math.log(10):.1f}"
        head = f"{total} discrete symmetries, {n_scales} free scales"
        return "\n".join([head, *(f"- {line}" for line in (*lines, *self.notes))])

    def identity(self) -> Transformation:
        """Return the transformation that changes nothing."""
        sizes = [self.groups[gain.group].size for gain in self.gains]
        return Transformation(
            [np.arange(group.size) for group in self.groups], [np.ones(n) for n in sizes], [np.ones(n) for n in sizes]
        )

    def draw(self, seed: int) -> Transformation:
        """Draw a transformation: uniform permutations and signs, scales between 1/2 and 2."""
        rng = np.random.default_rng(seed)
        sizes = [self.groups[gain.group].size for gain in self.gains]
        return Transformation(
            [rng.permutation(g.size) if g.permutable else np.arange(g.size) for g in self.groups],
            [rng.choice([-1.0, 1.0], n) if g.signs else np.ones(n) for g, n in zip(self.gains, sizes, strict=True)],
            [2 ** rng.uniform(-1, 1, n) if g.scales else np.ones(n) for g, n in zip(self.gains, sizes, strict=True)],
        )

    def random(self, theta: Tensor, seed: int) -> Tensor:
        """Return a random symmetric copy of a network, `[p]`; the same one for the same seed."""
        return self.transform(theta, *self.draw(seed))

    def transform(
        self,
        theta: Tensor,
        permutations: Sequence[Array],
        signs: Sequence[Array] | None = None,
        scales: Sequence[Array] | None = None,
    ) -> Tensor:
        """Apply a symmetry to a network.

        Args:
            theta: `[p]`.
            permutations: Per group `[n_units]`: unit `i` becomes what unit `permutation[i]` was.
            signs: Per gain `[n_units]`, 1 or -1. Default: 1.
            scales: Per gain `[n_units]`, positive. Default: 1.

        Returns:
            `[p]` the symmetric copy, of theta's type. With batch norm it has the same function only with the
            running statistics by `transform_buffers`.

        Raises:
            ValueError: What is given is no symmetry of this network.
        """
        parts = self.layout.unflatten(theta.detach())
        moved = self._moved(parts, permutations, signs, scales)
        return torch.cat([moved[name].reshape(-1) for name in self.layout.names])

    def transform_buffers(
        self,
        buffers: Mapping[str, Tensor],
        permutations: Sequence[Array],
        signs: Sequence[Array] | None = None,
        scales: Sequence[Array] | None = None,
    ) -> dict[str, Tensor]:
        """Apply a symmetry to the running statistics that belong to a network; arguments as for `transform`."""
        return self._moved(buffers, permutations, signs, scales)

    def _moved(
        self,
        tensors: Mapping[str, Tensor],
        permutations: Sequence[Array],
        signs: Sequence[Array] | None,
        scales: Sequence[Array] | None,
    ) -> dict[str, Tensor]:
        same = self.identity()
        signs, scales = (same.signs if signs is None else signs), (same.scales if scales is None else scales)
        self._check(permutations, signs, scales)
        factors = [sign * scale for sign, scale in zip(signs, scales, strict=True)]
        arrays = {name: tensor.cpu().numpy().copy() for name, tensor in tensors.items()}
        for group, permutation in zip(self.groups, permutations, strict=True):
            move(arrays, group, permutation, factors)
        return {name: torch.from_numpy(arrays[name]).to(tensor) for name, tensor in tensors.items()}

    def _check(self, permutations: Sequence[Array], signs: Sequence[Array], scales: Sequence[Array]) -> None:
        if len(permutations) != len(self.groups) or len(signs) != len(self.gains) or len(scales) != len(self.gains):
            raise ValueError(
                f"expected {len(self.groups)} permutation(s), one per group, and {len(self.gains)} array(s) of signs "
                f"and of scales, one per gain; got {len(permutations)}, {len(signs)} and {len(scales)}"
            )
        for i, (group, permutation) in enumerate(zip(self.groups, permutations, strict=True)):
            same = np.arange(group.size)
            if not np.array_equal(np.sort(permutation) if group.permutable else permutation, same):
                remedy = "" if group.permutable else "; the units of this group have to stay in place"
                raise ValueError(f"permutation {i} is none of 0 to {group.size - 1}: {permutation}{remedy}")
        for i, (gain, sign, scale) in enumerate(zip(self.gains, signs, scales, strict=True)):
            size = self.groups[gain.group].size
            if np.shape(sign) != (size,) or np.shape(scale) != (size,):
                raise ValueError(f"gain {i} needs {size} signs and scales, got {np.shape(sign)} and {np.shape(scale)}")
            if not np.isin(sign, (1, -1) if gain.signs else (1,)).all():
                raise ValueError(f"signs {i} must be 1{' or -1' if gain.signs else ''}, got {sign}")
            if not (np.all(np.asarray(scale) > 0) if gain.scales else np.all(np.asarray(scale) == 1)):
                raise ValueError(f"scales {i} must be {'positive' if gain.scales else '1'}, got {scale}")

    def balance(self, theta: Tensor) -> Tensor:
        """Return the copy of a network that has the smallest norm among all its scalings.

        A unit scaled by s contributes `s^2 A + B / s^2`, with the squared norms A of what enters and B of what leaves
        it; the minimum, at `s^4 = B / A`, is taken unit by unit until nothing changes. The sum is convex in log s, so
        the copy is the same for all scalings of a network (Stock et al. 2019, arXiv:1902.10416). A unit with A = 0 or
        B = 0 is left alone.

        Args:
            theta: `[p]`.

        Returns:
            `[p]` float64.
        """
        return self.transform(theta.double(), *self.balancing(theta))

    def balancing(self, theta: Tensor) -> Transformation:
        """Return the transformation that `balance` applies."""
        result = self.identity()
        if not any(gain.scales for gain in self.gains):
            return result
        squares = {name: part.double().cpu().numpy() ** 2 for name, part in self.layout.unflatten(theta).items()}
        for _ in range(_SWEEPS):
            largest = 0.0
            for k, gain in enumerate(self.gains):
                if not gain.scales:
                    continue
                places = [(p, dict(p.gains)[k]) for p in self.groups[gain.group].places if k in dict(p.gains)]
                sums = {1: np.zeros(self.groups[gain.group].size), -1: np.zeros(self.groups[gain.group].size)}
                for place, exponent in places:
                    if place.name in squares:
                        sums[exponent] += rows_of(squares[place.name], place).sum(axis=1)
                usable = (sums[1] > 0) & (sums[-1] > 0)
                names = [place.name for place, _ in places]
                power = 0.25 if len(set(names)) == len(names) else 0.125  # units that enter each other: half a step
                s = np.ones(len(usable))
                s[usable] = (sums[-1][usable] / sums[1][usable]) ** power
                for place, exponent in places:
                    if place.name in squares:
                        _multiply(squares[place.name], place, s ** (2 * exponent))
                result.scales[k][:] *= s
                largest = max(largest, float(np.abs(np.log(s)).max(initial=0.0)))
            if largest < 1e-13:
                break
        return result


def move(arrays: dict[str, Array], group: Group, permutation: Array, factors: Sequence[Array]) -> None:
    """Let the units of a group change places and multiply them, in place; tensors that are not there are left out."""
    for place in group.places:
        if place.name not in arrays:
            continue
        view = np.moveaxis(arrays[place.name], place.axis, 0)
        view[place.index] = view[place.index[permutation]]
        for k, exponent in place.gains:
            _multiply(arrays[place.name], place, factors[k] ** exponent)


def rows_of(array: Array, place: Place) -> Array:
    """Return what belongs to each unit, `[n_units, ...]`."""
    return np.moveaxis(array, place.axis, 0)[place.index].reshape(len(place.index), -1)


def _multiply(array: Array, place: Place, factors: Array) -> None:
    view = np.moveaxis(array, place.axis, 0)
    view[place.index] = view[place.index] * factors.reshape(-1, *[1] * array.ndim).astype(array.dtype)


def symmetries(model: nn.Module, sample: Tensor, select: Selection = "all") -> Symmetries:
    """Derive the symmetries of a network from its forward pass, and check them.

    A random transformation of a network with random parameters has to leave the outputs on the sample unchanged, to
    1e-8 in float64; otherwise none is claimed.

    Args:
        model: Any module that takes one tensor. It stays untouched.
        sample: `[b, ...]` some inputs, a few are enough.
        select: Which parameters form `theta`, see `parameters.layout`; units that appear in others stay in place.

    Returns:
        The symmetries; none, with the reason in `notes`, where the network cannot be traced.

    Example:
        >>> from landscape.models import build
        >>> print(symmetries(build("mlp", input_shape=(2,), classes=1, widths=[2]), torch.zeros(1, 2)).describe())
        8 discrete symmetries, 0 free scales
        - 2 units (1.weight, 1.bias, 3.weight): order, sign
    """
    own = layout(model, select)
    copied = private_copy(model, "cpu", torch.float64)
    if not isinstance(sample, Tensor) or not sample.is_floating_point():
        return Symmetries(own, (), (), ("the model does not take one tensor of numbers: no symmetry is derived",))
    sample = real_tensor("sample", sample).detach().to("cpu", torch.float64)
    if not sample.numel():
        raise ValueError(f"sample has shape {tuple(sample.shape)} and holds no numbers: give some inputs, [b, ...]")
    try:
        with torch.inference_mode():
            copied(sample)
    except Exception as error:
        raise ValueError(f"the model cannot be called on the sample, shape {tuple(sample.shape)}: {error}") from error
    try:
        units, notes = follow(trace(copied), sample)
    except NotTraceableError as error:
        return Symmetries(own, (), (), (f"the forward pass cannot be traced ({error}): no symmetry is derived",))
    buffers = {name for name, buffer in copied.named_buffers() if buffer.is_floating_point()}
    groups, gains = collect(units, set(own.names), buffers)
    found = Symmetries(own, groups, gains, tuple(notes))
    if (difference := _difference(copied, found, sample)) > _RTOL:
        reason = f"a random transformation changes the outputs by {difference:.0e} relative: no symmetry is claimed"
        return Symmetries(own, (), (), (*notes, reason))
    return found


def _difference(model: nn.Module, found: Symmetries, sample: Tensor) -> float:
    """Return how far a random transformation changes the outputs of a network with random parameters, relatively."""
    generator = torch.Generator().manual_seed(0)
    tensors = {
        name: tensor + 0.1 * torch.randn(tensor.shape, generator=generator, dtype=tensor.dtype).abs()
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]
        if tensor.is_floating_point()
    }
    transformation = found.draw(0)
    theta = found.transform(found.layout.flatten(tensors, torch.float64), *transformation)
    moved = {
        **found.transform_buffers({n: b for n, b in tensors.items() if n not in found.layout.names}, *transformation),
        **found.layout.unflatten(theta),
    }
    with torch.inference_mode():
        before, after = (functional_call(model, values, (sample,)) for values in (tensors, moved))
    return float((after - before).abs().max() / before.abs().max().clamp(min=1e-300))


def _times(word: str, n: int, number: bool = False) -> str:
    return f"{n} {word}s" if n != 1 else f"1 {word}" if number else word
