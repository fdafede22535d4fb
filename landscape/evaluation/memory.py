"""How much memory a plan may take, and how much it takes."""

import os
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn

from landscape.arguments import whole_number
from landscape.data import batch_size, split_batch
from landscape.evaluation.graph import linear_parameters, module_of
from landscape.objective import Objective

MEMORY = 2 << 30  # bytes that a plan takes by default, where there are four times as many


def memory_budget(memory: int | None = None, device: torch.device | str = "cpu") -> int:
    """Return the bytes that a plan may take: those given, never more than are free.

    Args:
        memory: What the user allows. Default: 2 GiB, or a quarter of what is free where that is less; on CUDA half of
            what the card has free.
        device: Whose memory it is.

    Raises:
        ValueError: `memory` is below 1.
    """
    if memory is not None:
        memory = whole_number("memory", memory, 1)
    free = free_memory(device)
    if free is None:  # a system that does not say
        return MEMORY if memory is None else memory
    if memory is not None:
        return min(memory, free)
    return free // 2 if torch.device(device).type == "cuda" else min(MEMORY, free // 4)


def free_memory(device: torch.device | str = "cpu") -> int | None:
    """Return the bytes that a device has free, within the limit of the container if there is one; None if unknown."""
    device = torch.device(device)
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    if device.type != "cpu":
        return None
    free = [_of_machine(), _of_container("memory.max", "memory.current", "inactive_file")]
    return min((number for number in free if number is not None), default=None)


class Footprint(NamedTuple):
    """Bytes per sample of a forward pass.

    Attributes:
        alive: Values that exist at the same time, at most.
        inputs: What the model is called on.
        layers: Result of each linear layer and convolution, in the order in which they run.
        output: What the model returns.
    """

    alive: float
    inputs: float
    layers: tuple[float, ...]
    output: float


def footprint(traced: fx.GraphModule, objective: Objective) -> Footprint:
    """Measure what the forward pass of a sample takes, at the example of the first two.

    Args:
        traced: The graph of the model, as it was traced.
        objective: The model and its data.
    """
    batch = next(objective.splits[""].chunks(2 if objective.splits[""].stackable else None))
    inputs, n = split_batch(batch)[0], batch_size(batch)
    watched = _Watched(traced)
    with torch.inference_mode():
        output = watched.run(inputs)
    layers = tuple(size / n for size in watched.layers)
    return Footprint(watched.alive / n, _n_bytes(inputs) / n, layers, _n_bytes(output) / n)


class _Watched(fx.Interpreter):
    """Run a graph and add up the bytes of its values; those without further use are gone."""

    def __init__(self, traced: fx.GraphModule) -> None:
        super().__init__(traced)
        self.traced = traced
        self.alive = 0
        self.layers: list[int] = []

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        self.alive = max(self.alive, _n_bytes(result) + sum(map(_n_bytes, self.env.values())))
        if linear_parameters(self.traced, n) is not None or isinstance(module_of(self.traced, n), nn.Conv2d):
            self.layers.append(_n_bytes(result))
        return result


def _n_bytes(value: Any) -> int:
    if isinstance(value, tuple | list):
        return sum(map(_n_bytes, value))
    return value.nbytes if isinstance(value, Tensor) else 0


def _of_machine() -> int | None:
    try:
        with open("/proc/meminfo") as file:
            for line in file:
                if line.startswith("MemAvailable:"):
                    return int(line.split()[1]) * 1024
    except OSError:
        pass
    try:  # free or not: the next best
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return None


def _of_container(limit: str, used: str, reclaimable: str, folder: str = "/sys/fs/cgroup") -> int | None:
    """Return what a control group (version 2) leaves; file pages that can be dropped do not count as used."""
    try:
        with open(f"{folder}/{limit}") as of_limit, open(f"{folder}/{used}") as of_used:
            most, now = of_limit.read().strip(), int(of_used.read())
        with open(f"{folder}/memory.stat") as file:
            pages = dict(line.split() for line in file)
    except (OSError, ValueError):
        return None
    return None if most == "max" else max(0, int(most) - now + int(pages.get(reclaimable, 0)))
