"""A slice of parameter space: a point, and the directions that span a line, a plane or a volume through it.

    theta(c) = origin + sum_i c_i d_i

A coordinate is the coefficient of the stored direction; nothing is rescaled behind it.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from landscape.trajectory import Trajectory


@dataclass(frozen=True)
class Slice:
    """A line, plane, volume, ... through parameter space.

    Attributes:
        origin: `[p]` the point with coordinates zero.
        directions: `[k, p]`.
        info: Where the directions come from (JSON-able): kind, seed, normalization, explained variance, axis labels.
        extent: `[k]` pairs (low, high): the range of coordinates that suits the directions.
        buffer_directions: Changes of the network's floating-point buffers per unit of each coordinate, `[k, ...]` by
            name; only between networks, for the batch-norm policy `"interpolated"`.
    """

    origin: Tensor
    directions: Tensor
    info: dict
    extent: tuple[tuple[float, float], ...]
    buffer_directions: dict[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.directions.ndim != 2 or self.directions.shape[1:] != self.origin.shape:
            raise ValueError(
                f"directions need shape [k, {len(self.origin)}], one row per direction, "
                f"got {tuple(self.directions.shape)}"
            )
        for i, direction in enumerate(self.directions):
            if not torch.isfinite(direction).all():
                raise ValueError(f"direction {i + 1} has entries that are not finite")
            if not direction.any():
                raise ValueError(
                    f"direction {i + 1} is zero everywhere: the selected parameters are all zero, biases or norm "
                    "parameters; select others, or use normalization='none'"
                )

    @property
    def k(self) -> int:
        """Number of directions."""
        return len(self.directions)

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> "Slice":
        """Return the same slice on another device or in another precision."""
        origin, directions = self.origin.to(device, dtype), self.directions.to(device, dtype)
        buffers = {name: change.to(device, dtype) for name, change in self.buffer_directions.items()}
        return Slice(origin, directions, self.info, self.extent, buffers)

    def at(self, coordinates: Sequence[float] | np.ndarray | Tensor) -> Tensor:
        """Return the point with the given coordinates, from the origin in one expression.

        Args:
            coordinates: `[k]`.

        Returns:
            `[p]`, of the origin's type.
        """
        c = torch.as_tensor(coordinates, dtype=self.directions.dtype, device=self.directions.device)
        if c.shape != (self.k,):
            raise ValueError(f"a point of this slice has {self.k} coordinates, got shape {tuple(c.shape)}")
        return torch.addmv(self.origin, self.directions.T, c)

    def buffers_at(self, coordinates: Sequence[float], buffers: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the interpolated buffers at a point, `b + sum_i c_i db_i`."""
        c = torch.as_tensor(coordinates, dtype=torch.float64)
        return {
            name: buffers[name] + torch.tensordot(c.to(change), change, 1)
            for name, change in self.buffer_directions.items()
        }

    def gram(self) -> np.ndarray:
        """Return all inner products of the directions, `[k, k]` float64."""
        wide = self.directions.double().cpu()
        return (wide @ wide.T).numpy()

    def project(self, points: Trajectory | Tensor) -> tuple[np.ndarray, np.ndarray]:
        """Find the nearest points of the slice by least squares; the directions need not be orthonormal.

        `c = (D D^T)^-1 D (theta - origin)`, distance `||theta - origin - c D||`.

        Args:
            points: A trajectory, or points `[t, p]`.

        Returns:
            Coordinates `[t, k]` and distances `[t]`, float64.
        """
        runs = [points] if isinstance(points, Trajectory) else [_Points(points)]
        origin = self.origin.double().cpu().numpy()
        directions = self.directions.double().cpu().numpy()
        products = sum(block @ directions[:, cut].T for cut, block in differences(runs, origin))
        gram = self.gram()
        norms = np.sqrt(np.diag(gram))  # scaled to 1, or the cut-off of lstsq could drop a short direction
        coordinates = np.linalg.lstsq(gram / np.outer(norms, norms), (products / norms).T, rcond=None)[0].T / norms
        # a second pass, since ||theta - origin||^2 - ||c D||^2 would cancel for points near the slice
        squares = sum(
            ((block - coordinates @ directions[:, cut]) ** 2).sum(axis=1) for cut, block in differences(runs, origin)
        )
        return coordinates, np.sqrt(squares)


class _Points:
    """Points in memory, read by columns like a trajectory."""

    def __init__(self, points: Tensor) -> None:
        self.points = torch.atleast_2d(points).detach().cpu().numpy()

    def __len__(self) -> int:
        return len(self.points)

    def columns(self, start: int, stop: int) -> np.ndarray:
        return self.points[:, start:stop]


def differences(
    runs: Sequence["Trajectory | _Points"], origin: np.ndarray, max_bytes: int = 64 << 20
) -> Iterator[tuple[slice, np.ndarray]]:
    """Yield all points minus the origin, `[t, n]` float64, by blocks of columns that fit into memory.

    Args:
        runs: Trajectories, one after another in the result.
        origin: `[p]` float64.
        max_bytes: Size of a block.
    """
    width = max(1, max_bytes // (8 * sum(len(run) for run in runs)))
    for start in range(0, len(origin), width):
        cut = slice(start, min(start + width, len(origin)))
        block = np.concatenate([run.columns(cut.start, cut.stop) for run in runs]).astype(np.float64)
        yield cut, block - origin[cut]
