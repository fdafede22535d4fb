"""Enter the parameters of layers: which of their rows and columns belong to which unit, and with which gain."""

import math
from collections.abc import Mapping

import numpy as np

from landscape.symmetry.units import ZERO, Units, Value


def enter_linear(
    units: Units, x: Value, n_out: int, weight: str, bias: str | None, groups: int = 1, layer: str = ""
) -> Value:
    """Enter a linear layer or convolution: rows of the weight leave it, columns enter it.

    Args:
        units: Where to enter.
        x: What enters the layer.
        n_out: Units that leave it.
        weight: Name of the weight, `[n_out, n_in / groups, ...]`.
        bias: Name of the bias, None without one.
        groups: Of a convolution. With as many groups as inputs the outputs of a channel move with it; with any other
            number above 1 what enters stays in place, and what leaves changes places within its group only.
        layer: A name, to tell its groups from those of others.
    """
    n_in = len(x.unit)
    new, gains = units.new(n_out)
    slots = np.zeros(n_out, int)
    of_in: list[tuple[tuple[int, int], ...]] = [()] * n_out
    if groups == 1:
        for j, (unit, slot, gain) in enumerate(zip(x.unit.tolist(), x.slot.tolist(), x.gain.tolist(), strict=True)):
            if unit != ZERO:
                units.put((weight, 1, j), unit, slot, ((gain, -1),))
    elif groups == n_in:
        x = without_zeros(units, x)
        per = n_out // n_in
        slots = np.repeat(x.slot, per) * per + np.tile(np.arange(per), n_in)
        for i in range(n_out):
            units.tie(int(x.unit[i // per]), int(new[i]))
            of_in[i] = ((int(x.gain[i // per]), -1),)
    else:
        units.fix(x.unit)
        units.limit(x.gain)
        for i in range(n_out):
            units.tag(int(new[i]), (layer, "group", i // (n_out // groups)))
    for i, (unit, slot, gain) in enumerate(zip(new.tolist(), slots.tolist(), gains.tolist(), strict=True)):
        units.put((weight, 0, i), unit, slot, (*of_in[i], (gain, 1)))
        if bias is not None:
            units.put((bias, 0, i), unit, slot, ((gain, 1),))
    return Value(x.axis, new, slots, gains)


def enter_batch_norm(units: Units, value: Value, names: Mapping[str, str]) -> Value:
    """Enter `y = weight (x - mean) / sqrt(var + eps) + bias`, which is odd in (x, mean, weight).

    Other factors of x are no symmetry because of eps.

    Args:
        units: Where to enter.
        value: What enters the norm.
        names: Of those tensors that it has: running_mean, running_var, weight, bias.
    """
    value = without_zeros(units, value)
    units.limit(value.gain, signs=True)
    out = units.new_gains(len(value.unit)) if "weight" in names else value.gain
    powers = {"running_mean": (1, 0), "running_var": (2, 0), "weight": (-1, 1), "bias": (0, 1)}
    for leaf, name in names.items():
        for i, (unit, slot) in enumerate(zip(value.unit.tolist(), value.slot.tolist(), strict=True)):
            both = zip((int(value.gain[i]), int(out[i])), powers[leaf], strict=True)
            units.put((name, 0, i), unit, slot, tuple((gain, power) for gain, power in both if power))
    return Value(value.axis, value.unit, value.slot, out)


def enter_norm(units: Units, value: Value, names: Mapping[str, str], per_group: int, layer: str) -> Value:
    """Enter a norm over groups of channels, without running statistics: group norm, layer norm.

    Units change places within their group; those of a group alone change places with each other, and signs.

    Args:
        units: Where to enter.
        value: What enters the norm.
        names: Of weight and bias, as far as it has them.
        per_group: Channels that share their mean and variance.
        layer: A name, to tell its groups from those of others.
    """
    value = without_zeros(units, value)
    n, alone = len(value.unit), per_group == 1
    for i, unit in enumerate(value.unit.tolist()):
        if 1 < per_group < n:
            units.tag(unit, (layer, "group", i // per_group))
    units.limit(value.gain, signs=alone)
    if "weight" not in names:
        return value
    out = units.new_gains(n)
    for leaf, name in names.items():
        for i, (unit, slot) in enumerate(zip(value.unit.tolist(), value.slot.tolist(), strict=True)):
            of_in = ((int(value.gain[i]), -1),) if alone and leaf == "weight" else ()
            units.put((name, 0, i), unit, slot, (*of_in, (int(out[i]), 1)))
    return Value(value.axis, value.unit, value.slot, out)


def flatten(value: Value, shape: tuple[int, ...]) -> Value:
    """Number the entries of all axes but that of the samples: a channel becomes a block of slots.

    Args:
        value: Before.
        shape: Of the tensor before, with samples.
    """
    axis, rest = value.axis - 1, shape[1:]
    others = math.prod(rest) // rest[axis]
    inner = np.expand_dims(np.arange(others).reshape(rest[:axis] + rest[axis + 1 :]), axis)

    def spread(marks: np.ndarray) -> np.ndarray:
        return np.broadcast_to(np.expand_dims(marks, [i for i in range(len(rest)) if i != axis]), rest)

    slots = spread(value.slot) * others + inner
    return Value(1, spread(value.unit).reshape(-1), slots.reshape(-1), spread(value.gain).reshape(-1))


def join(units: Units, a: Value, b: Value, gains: bool) -> Value:
    """Tie the units of two values entry by entry, and their gains; a channel of zeros takes what the other has."""
    unit, slot, gain = a.unit.copy(), a.slot.copy(), a.gain.copy()
    for i in range(len(unit)):
        if a.unit[i] == ZERO:
            unit[i], slot[i], gain[i] = b.unit[i], b.slot[i], b.gain[i]
        elif b.unit[i] != ZERO:
            units.tie(int(a.unit[i]), int(b.unit[i]))
            if a.slot[i] != b.slot[i]:
                units.fix(a.unit[i : i + 1])
            if gains:
                units.tie_gains(int(a.gain[i]), int(b.gain[i]))
    return Value(a.axis, unit, slot, gain)


def without_zeros(units: Units, value: Value) -> Value:
    """Let channels of zeros, which become constants, be units that stay in place."""
    empty = value.unit == ZERO
    if not empty.any():
        return value
    unit, gain = value.unit.copy(), value.gain.copy()
    unit[empty], gain[empty] = units.new(int(empty.sum()), fixed=True)
    return Value(value.axis, unit, value.slot, gain)
