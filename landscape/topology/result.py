"""What `analyze` finds on a surface: minima, maxima and saddles, their persistence, basins and numbers."""

from dataclasses import dataclass

import numpy as np

from landscape.topology.tree import DUAL, NONE, OUTSIDE

Array = np.ndarray
_N_DESCRIBED = 12


@dataclass(frozen=True)
class Extrema:
    """Local minima, the lowest first, or local maxima, the highest first. A plateau is one of them.

    Attributes:
        index: `[m, k]` grid index; of a plateau, its first cell.
        coordinates: `[m, k]`.
        value: `[m]`.
        persistence: `[m]` rise from a minimum (fall from a maximum) to the value at which it merges; infinite where it
            never does, 0 where it touches what is unknown and that is excluded.
        noise: `[m]` how large its persistence can be by chance.
        parent: `[m]` number of the extremum into which it merges; `OUTSIDE` for the border and unknown cells, `NONE`
            where it never does.
        merge_value: `[m]` value at which it merges.
        merge_index: `[m, k]` grid index of that cell; -1 where it never merges.
        between: `[m, 2]` the two basins that touch there.
        way_out: `[m]` whether that cell is no saddle, but touches the border or an unknown cell.
        n_cells: `[m]` cells of the basin.
        share: `[m]` share of the basin in the area of the known cells.
        plateau: `[m]` cells of the plateau.
        on_border: `[m]` whether the plateau touches the border or an unknown cell.
        basins: `[nx, ny, ...]` the extremum below (above) each cell; `NONE` for unknown cells.
    """

    index: Array
    coordinates: Array
    value: Array
    persistence: Array
    noise: Array
    parent: Array
    merge_value: Array
    merge_index: Array
    between: Array
    way_out: Array
    n_cells: Array
    share: Array
    plateau: Array
    on_border: Array
    basins: Array

    def __len__(self) -> int:
        return len(self.value)


@dataclass(frozen=True)
class Saddles:
    """Saddles at which two basins merge, in order of the extremum that ends there.

    Attributes:
        index: `[s, k]` grid index.
        coordinates: `[s, k]`.
        value: `[s]`.
        extremum: `[s]` the extremum that ends there.
        parent: `[s]` the one into which it merges, or `OUTSIDE`.
        between: `[s, 2]` the two basins that touch there.
    """

    index: Array
    coordinates: Array
    value: Array
    extremum: Array
    parent: Array
    between: Array

    def __len__(self) -> int:
        return len(self.value)


@dataclass(frozen=True)
class Topology:
    """What `analyze` found.

    A *minimum of a surface* is a property of a slice; it is not a minimum of the network.

    Attributes:
        axes: Coordinates `[n]` by axis name.
        values: `[nx, ny, ...]` what was analyzed, NaN where not known.
        metric: Its name.
        neighborhood: Of minima; that of maxima is the other one.
        border: `"exclude"` or `"include"`.
        threshold: Persistence above which an extremum counts; None: its own noise.
        noise: Where the noise comes from, in words.
        minima: All local minima, also those that do not count.
        maxima: All local maxima.
    """

    axes: dict[str, Array]
    values: Array
    metric: str
    neighborhood: str
    border: str
    threshold: float | None
    noise: str
    minima: Extrema
    maxima: Extrema

    @property
    def basins(self) -> Array:
        """`[nx, ny, ...]` number of the minimum to which the descent from each cell leads; `NONE` where unknown."""
        return self.minima.basins

    @property
    def saddles(self) -> Saddles:
        """The saddles at which minima end; see `saddles_of`."""
        return self.saddles_of(self.minima)

    def saddles_of(self, extrema: Extrema) -> Saddles:
        """Return the saddles at which minima, or maxima, merge.

        In two dimensions, those of the minima and those of the maxima together are all saddles of the surface; in
        three, they are all saddles of index 1 that join and all of index 2 that part, without those that only open or
        close a tunnel. Left out is what ends at once, and what reaches the border before any saddle.

        Args:
            extrema: `minima` or `maxima` of this topology.
        """
        kept = np.flatnonzero((extrema.persistence > 0) & ~extrema.way_out & (extrema.parent != NONE))
        return Saddles(
            index=extrema.merge_index[kept],
            coordinates=coordinates_of(self.axes, extrema.merge_index[kept]),
            value=extrema.merge_value[kept],
            extremum=kept,
            parent=extrema.parent[kept],
            between=extrema.between[kept],
        )

    def counts_as(self, extrema: Extrema, threshold: float | None = None) -> Array:
        """Return `[m]` which extrema count: those whose persistence exceeds the threshold.

        Args:
            extrema: `minima` or `maxima` of this topology.
            threshold: In the metric's unit; default: that of the topology, else each one's own noise.
        """
        least = self.threshold if threshold is None else threshold
        return extrema.persistence > (extrema.noise if least is None else least)

    def count(self, threshold: float | None = None) -> int:
        """Return the number of local minima whose persistence exceeds a threshold.

        Args:
            threshold: In the metric's unit; default: that of the topology, else each minimum's own noise.
        """
        return int(self.counts_as(self.minima, threshold).sum())

    def numbers(self) -> Array:
        """Return `[m]` what the minima are called: 1, 2, ... by value, those that count first, then the others."""
        counted = self.counts_as(self.minima)
        numbers = np.empty(len(counted), dtype=int)
        numbers[np.argsort(~counted, kind="stable")] = np.arange(1, len(counted) + 1)
        return numbers

    def count_curve(self) -> tuple[Array, Array]:
        """Return the number of minima as a step function of the threshold.

        Returns:
            Thresholds `[s]`, ascending from 0, and counts `[s]`: `counts[i]` minima from `thresholds[i]` on.
        """
        persistence = np.sort(self.minima.persistence[self.minima.persistence > 0])
        steps = np.unique(persistence[np.isfinite(persistence)])
        thresholds = np.concatenate([[0.0], steps])
        return thresholds, len(persistence) - np.searchsorted(persistence, thresholds, side="right")

    def merged_basins(self, threshold: float | None = None) -> Array:
        """Return the basins of the minima that count, each with those that do not count and merge into it.

        Args:
            threshold: As in `count`.

        Returns:
            `[nx, ny, ...]` numbers of minima; `OUTSIDE` where the descent leads to the border, or over an uncounted
            minimum to it; `NONE` where unknown.
        """
        counted = self.counts_as(self.minima, threshold)
        home = np.append(np.arange(len(self.minima)), [NONE, OUTSIDE])  # the last two are numbers -2 and -1
        for i in np.flatnonzero(~counted):  # a parent has a lower number, so its home is known
            home[i] = home[self.minima.parent[i]]
        return home[self.basins]

    def table(self) -> list[dict[str, float | int | bool | str]]:
        """Return one row per minimum, in the order of `numbers`, with the columns of `Extrema`; parents by number."""
        m, counted, numbers = self.minima, self.counts_as(self.minima), self.numbers()
        names = {OUTSIDE: "border", NONE: ""} | {i: str(number) for i, number in enumerate(numbers)}
        rows = []
        for i in np.argsort(numbers):
            row: dict[str, float | int | bool | str] = {"minimum": int(numbers[i])}
            row |= {name: float(c) for name, c in zip(self.axes, m.coordinates[i], strict=True)}
            row |= {
                self.metric: float(m.value[i]),
                "persistence": float(m.persistence[i]),
                "noise": float(m.noise[i]),
                "counts": bool(counted[i]),
                "merges_into": names[int(m.parent[i])],
                "merge_value": float(m.merge_value[i]),
                "basin_cells": int(m.n_cells[i]),
                "basin_share": float(m.share[i]),
                "plateau_cells": int(m.plateau[i]),
                "on_border": bool(m.on_border[i]),
            }
            rows.append(row)
        return rows

    def describe(self) -> str:
        """Return what was found in a few lines of text, with the choices it depends on."""
        m, counted, numbers = self.minima, self.counts_as(self.minima), self.numbers()
        least = f"the noise ({self.noise})" if self.threshold is None else f"{self.threshold:g}"
        n_unknown = int(np.isnan(self.values).sum())
        unknown = f"; {n_unknown:,} of {self.values.size:,} points not known" if n_unknown else ""
        shape = " x ".join(map(str, self.values.shape))
        treated = "excluded: what touches it is no minimum" if self.border == "exclude" else "included"
        n = int(counted.sum())
        lines = [
            f"{n:,} local {'minimum' if n == 1 else 'minima'} of the surface with a persistence above {least}",
            f"{(m.persistence > 0).sum():,} with any persistence; {int(m.on_border.sum()):,} on the border ({treated})",
            f"{self.metric} on {shape} points{unknown}; neighborhood {self.neighborhood}, "
            f"{DUAL[self.neighborhood]} for the {int(self.counts_as(self.maxima).sum()):,} maxima",
        ]
        by_persistence = np.flatnonzero(counted)[np.argsort(-m.persistence[counted], kind="stable")]
        for i in by_persistence[:_N_DESCRIBED]:
            where = ", ".join(f"{name} = {c:.4g}" for name, c in zip(self.axes, m.coordinates[i], strict=True))
            lines.append(
                f"  {numbers[i]}: {self.metric} {m.value[i]:.6g} at {where}; persistence {m.persistence[i]:.4g}, "
                f"basin {m.share[i]:.1%} of the area"
            )
        if len(by_persistence) > _N_DESCRIBED:
            lines.append(f"  and {len(by_persistence) - _N_DESCRIBED:,} of less persistence")
        return "\n".join(lines)


def coordinates_of(axes: dict[str, Array], index: Array) -> Array:
    """Return the coordinates `[m, k]` of grid indices `[m, k]`."""
    return np.stack([axis[i] for axis, i in zip(axes.values(), index.T, strict=True)], axis=1)
