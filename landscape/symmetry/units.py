"""Hidden units: what belongs together, where it is stored, and which of them play the same part.

Every channel of every value in a network is an entry with three marks:

- the *unit* it belongs to: what can only change places as a whole;
- its *slot* within the unit: after a flatten a channel is a block of entries, which keeps its inner order;
- its *gain*, a factor that may be put on the entry and taken back further on.
"""

from dataclasses import dataclass

import numpy as np

Array = np.ndarray
Position = tuple[str, int, int]  # parameter or buffer, axis, index along it
ZERO = -1  # the unit of a channel that is zero everywhere


@dataclass(frozen=True, eq=False)
class Place:
    """Where the units of a group appear in one tensor.

    Attributes:
        name: Of the parameter or buffer.
        axis: Its axis.
        index: `[n_units, n_block]`: the indices along the axis that belong to each unit; after a flatten a channel has
            one for every pixel.
        gains: Pairs (number of a gain, exponent): entries are multiplied by `gain ** exponent`.
    """

    name: str
    axis: int
    index: Array
    gains: tuple[tuple[int, int], ...]


@dataclass(frozen=True, eq=False)
class Group:
    """Hidden units that play the same part.

    Attributes:
        size: Number of units.
        permutable: Whether they may change places; those that may not have a gain.
        places: Where they appear.
        signs: Whether each may change its sign.
        scales: Whether each may be scaled.
    """

    size: int
    permutable: bool
    places: tuple[Place, ...]
    signs: bool
    scales: bool


@dataclass(frozen=True)
class Gain:
    """One factor per unit of a group.

    Attributes:
        group: Index of the group.
        signs: Whether it may be -1.
        scales: Whether it may be any positive number.
    """

    group: int
    signs: bool
    scales: bool


class Units:
    """Entries that belong together: a union-find for units, a finer one for gains, and where they are stored.

    Attributes:
        places: Unit, slot, and the gains with their exponents, by place.
    """

    def __init__(self) -> None:
        self._units: list[int] = []
        self._gains: list[int] = []
        self._fixed: set[int] = set()
        self._positive: set[int] = set()  # gains that may not be negative
        self._rigid: set[int] = set()  # gains that may be 1 or -1 only
        self._tags: dict[int, set] = {}
        self.places: dict[Position, tuple[int, int, tuple[tuple[int, int], ...]]] = {}

    def new(self, n: int, fixed: bool = False) -> tuple[Array, Array]:
        """Return `n` new units and a new gain for each."""
        units = np.arange(len(self._units), len(self._units) + n)
        self._units += units.tolist()
        if fixed:
            self._fixed |= set(units.tolist())
        return units, self.new_gains(n, fixed)

    def new_gains(self, n: int, fixed: bool = False) -> Array:
        """Return `n` new gains, free or always 1."""
        gains = np.arange(len(self._gains), len(self._gains) + n)
        self._gains += gains.tolist()
        if fixed:
            self.limit(gains)
        return gains

    def unit(self, i: int) -> int:
        """Return the unit that stands for all those tied to `i`."""
        return _root(self._units, i)

    def gain(self, i: int) -> int:
        """Return the gain that stands for all those tied to `i`."""
        return _root(self._gains, i)

    def tie(self, a: int, b: int) -> None:
        """Let two units move together."""
        a, b = self.unit(a), self.unit(b)
        if a != b:
            self._units[b] = a
            self._tags.setdefault(a, set()).update(self._tags.pop(b, ()))
            if b in self._fixed:
                self._fixed.add(a)

    def tie_gains(self, a: int, b: int) -> None:
        """Let two gains be equal."""
        a, b = self.gain(a), self.gain(b)
        if a != b:
            self._gains[b] = a
            for limits in (self._positive, self._rigid):
                if b in limits:
                    limits.add(a)

    def fix(self, units: Array) -> None:
        """Let units stay where they are."""
        self._fixed |= {self.unit(i) for i in units[units != ZERO].tolist()}

    def limit(self, gains: Array, signs: bool = False, scales: bool = False) -> None:
        """Leave gains only the freedom that is named."""
        roots = {self.gain(i) for i in np.unique(gains).tolist()}
        if not signs:
            self._positive |= roots
        if not scales:
            self._rigid |= roots

    def tag(self, unit: int, tag: object) -> None:
        """Tell a unit apart from those without this tag."""
        self._tags.setdefault(self.unit(unit), set()).add(tag)

    def put(self, place: Position, unit: int, slot: int, gains: tuple[tuple[int, int], ...]) -> None:
        """Store where a unit appears; a parameter that is used twice ties the units of both uses."""
        if place not in self.places:
            self.places[place] = (unit, slot, gains)
            return
        other, other_slot, other_gains = self.places[place]
        self.tie(unit, other)
        if slot != other_slot:
            self.fix(np.array([unit]))
        if [exponent for _, exponent in gains] == [exponent for _, exponent in other_gains]:
            for (a, _), (b, _) in zip(gains, other_gains, strict=True):
                self.tie_gains(a, b)
        else:
            self.limit(np.array([gain for gain, _ in (*gains, *other_gains)]))

    def is_fixed(self, unit: int) -> bool:
        """Tell whether a unit stays where it is."""
        return self.unit(unit) in self._fixed

    def freedom(self, gain: int) -> tuple[bool, bool]:
        """Tell whether a gain may be negative, and whether it may be any positive number."""
        root = self.gain(gain)
        return root not in self._positive, root not in self._rigid

    def tags(self, unit: int) -> frozenset:
        """Return what a unit went through."""
        return frozenset(self._tags.get(self.unit(unit), ()))


def _root(parents: list[int], i: int) -> int:
    while parents[i] != i:
        parents[i] = parents[parents[i]]
        i = parents[i]
    return i


@dataclass(frozen=True)
class Value:
    """The channels of a value in the graph.

    Attributes:
        axis: The channel axis.
        unit: `[c]` unit of each channel, ZERO for none.
        slot: `[c]` slot within the unit.
        gain: `[c]` gain.
    """

    axis: int
    unit: Array
    slot: Array
    gain: Array


def collect(units: Units, parameters: set[str], buffers: set[str]) -> tuple[tuple[Group, ...], tuple[Gain, ...]]:
    """Put together the units that went the same way and appear in the same places."""
    for (name, _, _), (unit, _, gains) in units.places.items():
        if name not in parameters and name not in buffers:
            units.fix(np.array([unit]))
            units.limit(np.array([gain for gain, _ in gains], dtype=int))
    rank = {name: i for i, name in enumerate(dict.fromkeys(name for name, *_ in units.places))}
    entries: dict[int, list[tuple]] = {}
    for (name, axis, index), (unit, slot, gains) in units.places.items():
        powers: dict[int, int] = {}
        for gain, exponent in gains:
            if any(units.freedom(gain)):
                powers[units.gain(gain)] = powers.get(units.gain(gain), 0) + exponent
        free = tuple((gain, exponent) for gain, exponent in powers.items() if exponent)
        entries.setdefault(units.unit(unit), []).append((name, axis, slot, index, free))
    families: dict[tuple, list[list[tuple]]] = {}
    for unit, places in entries.items():
        places.sort(key=lambda place: (rank[place[0]], *place[1:4]))
        local = {gain: k for k, gain in enumerate(dict.fromkeys(gain for *_, free in places for gain, _ in free))}
        if units.is_fixed(unit) and not local:
            continue
        signature = (
            None if units.is_fixed(unit) else units.tags(unit),
            tuple((*place[:3], tuple((local[gain], exponent) for gain, exponent in place[4])) for place in places),
            tuple(units.freedom(gain) for gain in local),
        )
        families.setdefault(signature, []).append(places)
    groups: list[Group] = []
    gains_found: list[Gain] = []
    for (tags, layout_of_places, freedoms), members in families.items():
        if len(members) == 1 and not freedoms:
            continue
        offset = len(gains_found)
        gains_found += [Gain(len(groups), signs, scales) for signs, scales in freedoms]
        columns: dict[tuple, list[int]] = {}
        for column, (name, axis, _, local_gains) in enumerate(layout_of_places):
            numbered = tuple((offset + k, exponent) for k, exponent in local_gains)
            columns.setdefault((name, axis, numbered), []).append(column)
        found = tuple(
            Place(name, axis, np.array([[unit[column][3] for column in block] for unit in members]), numbered)
            for (name, axis, numbered), block in columns.items()
        )
        signs, scales = (any(freedom[i] for freedom in freedoms) for i in (0, 1))
        groups.append(Group(len(members), tags is not None, found, signs, scales))
    return tuple(groups), tuple(gains_found)
