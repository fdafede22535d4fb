"""Directions through a network: random, by PCA of its training, between networks, or given.

Random directions are Gaussian and normalized by filter (Li et al. 2018, arXiv:1712.09913). Each function returns a
`Slice` through the objective's network.
"""

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from landscape.arguments import expect, json_text, whole_number
from landscape.checkpoint import Checkpoint, read, state_for
from landscape.objective import Objective
from landscape.parameters import filter_ids, is_weight, real_tensor, tensor_ids
from landscape.slice import Slice, differences
from landscape.trajectory import Trajectory

NORMALIZATIONS = ("filter", "layer", "weight", "none")
Network = nn.Module | Checkpoint | Mapping[str, Tensor] | str | os.PathLike
"""A network of the same architecture: a module, a checkpoint, a state dict, or the file of one."""


def random_directions(
    objective: Objective,
    k: int = 2,
    *,
    seed: int = 0,
    normalization: str = "filter",
    biases: bool | None = None,
    orthogonal: bool = False,
) -> Slice:
    """Draw Gaussian directions and normalize them.

    With `"filter"`, every filter `f` of a direction gets the norm of the network's,
    `d_f <- d_f ||theta_f|| / (||d_f|| + 1e-10)` (Li et al. 2018, arXiv:1712.09913, section 4); `"layer"` does the same
    per tensor; `"weight"` multiplies entry by entry with `|theta|`; `"none"` leaves the Gaussian. Direction `i` depends
    on the seed and on `i` only, and can be drawn again from them.

    Args:
        objective: Its origin and selected parameters.
        k: Number of directions.
        seed: Any non-negative integer.
        normalization: `"filter"`, `"layer"`, `"weight"` or `"none"`.
        biases: Whether biases and norm parameters move too, normalized per tensor. Default: only with `"none"`.
        orthogonal: Make each direction orthogonal to those before it, after normalizing (filters then no longer have
            exactly the network's norms).

    Example:
        >>> plane = random_directions(objective, seed=1)  # doctest: +SKIP
    """
    if normalization not in NORMALIZATIONS:
        raise ValueError(f"normalization must be one of {', '.join(NORMALIZATIONS)}, got {normalization!r}")
    expect("objective", objective, Objective, "an Objective (network, data and loss)")
    k, seed = whole_number("k", k, 1), whole_number("seed", seed, 0)
    if k > objective.layout.p:
        raise ValueError(f"k={k} directions cannot be independent: theta has {objective.layout.p} entries")
    if biases is None:
        biases = normalization == "none"
    origin, layout = objective.origin, objective.layout
    reference = origin.double().cpu()
    ids = (filter_ids(objective.model, layout) if normalization == "filter" else tensor_ids(layout)).numpy()
    weights = torch.repeat_interleave(
        torch.tensor(list(is_weight(objective.model, layout).values())), torch.tensor(layout.sizes)
    )
    if normalization == "filter":  # a bias vector counts as one filter of its own
        ids = np.where(weights, ids, ids.max() + 1 + tensor_ids(layout).numpy())
    rows = []
    for i in range(k):
        d = np.random.default_rng([seed, i]).standard_normal(layout.p)
        if normalization in ("filter", "layer"):
            norm = np.sqrt(np.bincount(ids, weights=d**2))
            wanted = np.sqrt(np.bincount(ids, weights=reference.numpy() ** 2))
            d *= (wanted / (norm + 1e-10))[ids]
        elif normalization == "weight":
            d *= reference.abs().numpy()
        if not biases:
            d[~weights.numpy()] = 0
        rows.append(d)
    if orthogonal:
        rows = _orthogonalize(rows)
    info = {
        "kind": "random",
        "seed": seed,
        "normalization": normalization,
        "biases": biases,
        "orthogonal": orthogonal,
        "labels": [f"random direction {i + 1} ({_NORMALIZATION_LABELS[normalization]})" for i in range(k)],
    }
    directions = torch.from_numpy(np.stack(rows)).to(origin)
    reach = 1.0
    if normalization == "none":  # a step of the network's own length, not of sqrt(p) of it
        reach = float(reference.norm() / np.sqrt(layout.p)) or 1.0
    return Slice(origin, directions, info, ((-reach, reach),) * k)


_NORMALIZATION_LABELS = {
    "filter": "filter-normalized",
    "layer": "layer-normalized",
    "weight": "weight-normalized",
    "none": "not normalized",
}


def _orthogonalize(rows: list[np.ndarray]) -> list[np.ndarray]:
    done: list[np.ndarray] = []
    for i, given in enumerate(rows):
        row = given
        for _ in range(2):  # the second pass removes what rounding left
            for other in done:
                row = row - (row @ other) / (other @ other) * other
        if not np.linalg.norm(row) > 1e-9 * np.linalg.norm(given):
            raise ValueError(
                f"direction {i + 1} cannot be made orthogonal: it is zero or lies in the span of those before it; the "
                "selected parameters leave fewer dimensions"
            )
        done.append(row)
    return done


def pca_directions(
    objective: Objective,
    trajectories: Trajectory | Sequence[Trajectory],
    k: int = 2,
) -> Slice:
    """Find the plane through the network that the checkpoints of its training lie closest to.

    The origin (the objective's network, normally the end of a run) is subtracted from every checkpoint, so that the
    plane goes through it: with the rows `theta_t - origin = U S V^T`, direction `i` is row `i` of `V^T`, of norm 1, and
    explains `s_i^2 / sum_j s_j^2` of the squared distances from the origin. Nothing else is centered or scaled. The
    checkpoints are read in blocks of columns, never all at once.

    Args:
        objective: Its origin and selected parameters.
        trajectories: One or several, of the same parameters; several are analysed jointly.
        k: Number of directions.

    Returns:
        A slice whose info holds the explained shares and whose extent covers the trajectories.

    Raises:
        ValueError: The trajectory belongs to other parameters, or spans fewer than `k` dimensions.
    """
    expect("objective", objective, Objective, "an Objective (network, data and loss)")
    expect("trajectories", trajectories, (Trajectory, Sequence), "a Trajectory or several")
    runs = [trajectories] if isinstance(trajectories, Trajectory) else list(trajectories)
    k = whole_number("k", k, 1)
    if not runs:
        raise ValueError("PCA needs a trajectory, got none")
    for run in runs:
        expect("a trajectory", run, Trajectory, "a Trajectory (Trajectory.load reads its file)")
        if run.layout != objective.layout:
            raise ValueError(
                f"trajectory {run.path} has other parameters than the model ({run.p} and {objective.layout.p} "
                "entries): same network, and the same `select` as when it was recorded?"
            )
    origin = objective.origin.double().cpu().numpy()
    gram = sum(block @ block.T for _, block in differences(runs, origin))
    if not np.isfinite(gram).all():
        bad = int((~np.isfinite(np.diag(gram))).sum())
        raise ValueError(f"{bad} of the {len(gram)} checkpoints are not finite: the run diverged; leave them out")
    squares, vectors = np.linalg.eigh(gram)
    squares, vectors = squares[::-1].clip(min=0), vectors[:, ::-1]
    rank = int((squares > squares[0] * 1e-12).sum()) if squares[0] > 0 else 0
    if rank < k:
        raise ValueError(
            f"the {len(gram)} checkpoints span {rank} dimension(s) around the network, {k} are asked for: "
            "record more often, or ask for fewer directions"
        )
    vectors = vectors[:, :k] * np.sign(vectors[np.abs(vectors[:, :k]).argmax(axis=0), range(k)])
    directions = np.empty((k, len(origin)))
    for cut, block in differences(runs, origin):
        directions[:, cut] = vectors.T @ block / np.sqrt(squares[:k, None])
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    shares = squares / squares.sum()
    coordinates = vectors * np.sqrt(squares[:k])  # [t, k]
    low, high = np.minimum(coordinates.min(axis=0), 0), np.maximum(coordinates.max(axis=0), 0)
    margin = 0.15 * np.maximum(high - low, 0.1 * (high - low).max())
    info = {
        "kind": "pca",
        "subtracted": "the network at the origin",
        "n_checkpoints": len(gram),
        "n_trajectories": len(runs),
        "explained_variance_ratio": shares[: max(k, 10)].tolist(),
        "singular_values": np.sqrt(squares[: max(k, 10)]).tolist(),
        "labels": [f"principal component {i + 1} ({shares[i]:.1%})" for i in range(k)],
        "unit": "distance in parameter space",
    }
    # rounded, so that another machine, whose last digits differ, continues the same grid
    extent = tuple((float(f"{a:.4g}"), float(f"{b:.4g}")) for a, b in zip(low - margin, high + margin, strict=True))
    return Slice(objective.origin, torch.from_numpy(directions).to(objective.origin), info, extent)


def directions_between(objective: Objective, *networks: Network) -> Slice:
    """Span a slice by the way to one or two (or more) other networks: `d_i = theta_i - origin`.

    Coordinates 0 are the objective's network, coordinate `i` = 1 alone is network `i`. Their buffers change alike if
    the objective's batch-norm policy is `"interpolated"`.

    Args:
        objective: The network at the origin.
        networks: Networks of the same architecture: modules, checkpoints, state dicts, or files.

    Raises:
        ValueError: A network has other parameters, or is the one at the origin.
    """
    expect("objective", objective, Objective, "an Objective (network, data and loss)")
    if not networks:
        raise ValueError("give at least one other network")
    for network in networks:
        expect("a network", network, (nn.Module, Checkpoint, Mapping, str, os.PathLike), "a module, state dict or file")
    layout = objective.layout
    states = [state_for(objective.model, _state(network)) for network in networks]
    rows = [layout.flatten(state, torch.float64).to(objective.device) - objective.origin.double() for state in states]
    for i, row in enumerate(rows):
        if not row.any():
            raise ValueError(f"network {i + 2} has the same parameters as the one at the origin: there is no way to go")
    buffers = {
        name: torch.stack([(state[name].to(own) - own) for state in states])
        for name, own in objective.buffers.items()
        if all(name in state for state in states)
    }
    info = {
        "kind": "between",
        "labels": [
            f"from the network to network {i + 2}" if len(rows) > 1 else "from one network to the other"
            for i in range(len(rows))
        ],
    }
    return Slice(objective.origin, torch.stack(rows).to(objective.origin), info, ((-0.5, 1.5),) * len(rows), buffers)


def _state(network: Network) -> Mapping[str, Tensor]:
    if isinstance(network, nn.Module):
        return network.state_dict()
    if isinstance(network, Checkpoint):
        return network.state
    if isinstance(network, Mapping):
        return network
    return read(network).state


def given_directions(
    objective: Objective,
    directions: Tensor | np.ndarray | Mapping[str, Tensor] | Sequence[Tensor | np.ndarray | Mapping[str, Tensor]],
    *,
    info: dict | None = None,
) -> Slice:
    """Use directions that the caller made.

    Args:
        objective: Its origin and selected parameters.
        directions: `[k, p]`, or `[p]` for a line, or `k` vectors or dictionaries of named tensors (state dicts).
        info: Where they come from; may hold `labels`, `unit` and others that the results then carry.

    Raises:
        ValueError: Wrong shape or names, or labels that are not one for each direction.
        TypeError: A direction is something else or complex, or `info` does not fit into JSON.
    """
    expect("objective", objective, Objective, "an Objective (network, data and loss)")
    expect("directions", directions, (Tensor, np.ndarray, Mapping, list, tuple), "an array [k, p] or a list of vectors")
    given: Any
    one = isinstance(directions, Mapping) or (isinstance(directions, Tensor | np.ndarray) and directions.ndim < 2)
    given = [directions] if one else directions
    if len(given) == 0 or (isinstance(given[0], Mapping) and not given[0]):
        raise ValueError("give at least one direction")
    rows = torch.stack([_row(objective, row, f"direction {i + 1}") for i, row in enumerate(given)])
    k = len(rows)
    info = {"kind": "given", "labels": [f"given direction {i + 1}" for i in range(k)], **(info or {})}
    json_text("info", info)
    if not isinstance(info["labels"], list | tuple) or len(info["labels"]) != k:
        raise ValueError(f"info needs a list of {k} label(s), one for each direction, got {info['labels']!r}")
    return Slice(objective.origin, rows.to(objective.origin), info, ((-1.0, 1.0),) * k)


def _row(objective: Objective, given: Any, name: str) -> Tensor:
    """Return a direction that the caller made, `[p]` float64."""
    if isinstance(given, Mapping):
        return objective.layout.flatten(given, torch.float64).to(objective.device)
    try:
        row = torch.as_tensor(given)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(
            f"{name} must be numbers [p] or a dictionary of named tensors, got {type(given).__name__}"
        ) from error
    if not row.is_floating_point() and not row.is_complex():
        row = row.to(torch.float64)
    if real_tensor(name, row).shape != (objective.layout.p,):
        raise ValueError(
            f"directions need shape [k, {objective.layout.p}], one row per direction; {name} has {tuple(row.shape)}"
        )
    return row.detach().to(objective.device, torch.float64)
