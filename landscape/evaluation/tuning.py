"""How many samples and points a fast plan takes at once: tuned, and bounded in memory and time."""

import time
from collections.abc import Callable

import numpy as np

from landscape.evaluation.dense import Dense
from landscape.evaluation.layered import Layered
from landscape.evaluation.memory import Footprint
from landscape.objective import Objective

LONGEST = 1.0  # seconds that one call may take: what a kill loses
Needs = Callable[[int, int | None], float]


def needs_of(fast: Dense | Layered, size: Footprint, objective: Objective, k: int) -> Needs:
    """Estimate what a fast plan needs beside the responses of the first layer that it keeps.

    Args:
        fast: Just made.
        size: Of a forward pass.
        objective: The model and its data.
        k: Number of directions.

    Returns:
        Points and samples at once -> bytes. Points and their rewritten parameters are `2 g p` numbers. For the dense
        plan, the values of all points and a result kept for each layer; for the layered plan, the values of one point.
        Besides, the responses of the first layer and their sum, before and after they are laid out, and copies of input
        and output.
    """
    of_parameters = 2 * objective.origin.nbytes
    most = max(batches.n_samples for batches in objective.splits.values())
    largest_batch = max(n for batches in objective.splits.values() for n in batches.sizes)
    shares_first = isinstance(fast, Dense) or fast.group > 1
    responses = 2 * (k + 2) * size.layers[0] if shares_first and size.layers else 0.0

    def needs(group: int, chunk: int | None) -> float:
        samples = largest_batch if chunk is None else min(chunk, most)
        values = size.alive + 2 * size.output
        if isinstance(fast, Dense):
            values = group * (values + sum(size.layers))
        return group * of_parameters + samples * (values + responses + size.inputs)

    return needs


def choose_sizes(fast: Dense | Layered, objective: Objective, needs: Needs, memory: int, n_points: int) -> None:
    """Tune chunk and group size, where that is wanted, among those that fit into the memory allowed.

    Half of the memory is for what is under way, the other half for the responses that are kept. A chunk size that the
    user gave stays.
    """
    fast.chunk = objective.chunk_size
    if objective.is_tuned and objective.chunk_size is not None:
        fast.tune(lambda group, chunk: needs(group, chunk) <= memory / 2, n_points)
    while needs(fast.group, fast.chunk) > memory / 2:
        smaller = [(fast.group // 2, fast.chunk)] if fast.group > 1 else []
        if objective.is_tuned and fast.chunk is not None and fast.chunk > 1:
            smaller.append((fast.group, fast.chunk // 2))
        if not smaller:
            fast.notes.append("even one point at a time takes more memory than allowed")
            break
        fast.group, fast.chunk = min(smaller, key=lambda sizes: needs(*sizes))


def limit_time(fast: Dense | Layered, points: np.ndarray, seconds: float) -> None:
    """Cut the group so that one call takes about a second at most.

    Args:
        fast: Its values were asked for before, so that nothing is set up for the first time.
        points: `[m, k]` any coordinates.
        seconds: What the values of these points took before, setting up included.
    """
    if fast.group > 1 and fast.group * seconds / len(points) > LONGEST:
        start = time.perf_counter()
        fast.values(points[:1])
        each = time.perf_counter() - start
        fast.group = max(1, min(fast.group, int(LONGEST / each)))
