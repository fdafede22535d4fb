"""Train many networks of one architecture as one batched computation, each as if it were trained alone."""

import copy
import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from landscape import optimizers
from landscape.arguments import expect, whole_number
from landscape.group import (
    ALONE,
    PRODUCTS,
    Job,
    Kept,
    choose_engine,
    copy_into,
    group_size,
    train_alone,
    train_together,
)
from landscape.interruption import interrupt_between_steps
from landscape.lock import Lock
from landscape.losses import Metric, without_addresses
from landscape.objective import Objective
from landscape.parameters import layout
from landscape.recorder import Recorder
from landscape.session import Order
from landscape.stack import Stack, forward_size
from landscape.training import EVALUATION_CHUNK, describe_run

log = logging.getLogger(__name__)

_SEEDS = 100


@dataclass(frozen=True, eq=False)
class Ensemble:
    """Networks of one architecture, trained with the same settings.

    Attributes:
        thetas: `[n, p]` their parameters, in `named_parameters()` order.
        buffers: `[n, ...]` their buffers, by name.
        history: `[n, e]` float64 arrays: `loss` and the other values of the whole data in evaluation mode. A network
            that stopped early has its last values in the column of the next evaluation, and NaN in those after it.
        epochs: `[e]` int64, the epochs after which the values were taken, 0 first.
        steps: `[n]` int64, steps done by each.
        diverged: `[n]` bool, whether a network stopped because its loss was not finite.
        settings: What decides where the runs end, with the seeds, the batch order, and the plan (JSON-able).
        seconds: Time spent.
        template: One of the networks before training.
    """

    thetas: Tensor
    buffers: dict[str, Tensor]
    history: dict[str, np.ndarray]
    epochs: np.ndarray
    steps: np.ndarray
    diverged: np.ndarray
    settings: dict[str, Any]
    seconds: float
    template: nn.Module

    @property
    def plan(self) -> str:
        """How the networks were trained, in words."""
        return self.settings["plan"]

    def __len__(self) -> int:
        return len(self.thetas)

    def network(self, i: int) -> nn.Module:
        """Return trained network `i`, in evaluation mode."""
        network = copy.deepcopy(self.template).eval()
        buffers = {name: stacked[i] for name, stacked in self.buffers.items()}
        copy_into(network, {**layout(network).unflatten(self.thetas[i]), **buffers})
        return network


def train_many(
    build: Callable[[int], nn.Module] | Sequence[nn.Module],
    data: Any,
    *,
    seeds: Sequence[int] | None = None,
    test: Any = None,
    loss: Metric | None = None,
    metrics: Mapping[str, Metric] | None = None,
    forward: Callable[[nn.Module, Any], Any] | None = None,
    reduction: str = "mean",
    optimizer: str = "adam",
    learning_rate: float | None = None,
    options: Mapping[str, Any] | None = None,
    weight_decay: float = 0.0,
    batch_size: int | None = None,
    epochs: int = 10,
    schedule: optimizers.Schedule = "constant",
    batch_order: str = "own",
    evaluate_every: int = 1,
    record: Mapping[int, str | os.PathLike] | None = None,
    record_every: int = 1,
    record_unit: str = "epoch",
    group: int | None = None,
    state: str | os.PathLike | None = None,
    interval: float = 5.0,
    progress: bool = True,
) -> Ensemble:
    """Train copies of many networks of one architecture together.

    Network `i` ends where `train(build(seeds[i]), data, seed=seeds[i], ...)` ends; with `batch_order="shared"` where it
    would end with the batches of `seeds[0]`. How they are computed is chosen by itself and said in `Ensemble.plan`:

    - by batched products, for sequences of Flatten, Linear and element-wise activations, else by `torch.func.vmap`.
      What is summed, and the order of the sums, is that of a network alone where the library's product for many
      matrices keeps it. It did on one thread for dense networks, which ended bit for bit as alone on an Intel Xeon and
      an AMD EPYC, and on the Xeon for recurrent ones, unless a layer and batch took under 400 multiplications.
      Otherwise networks differ from those alone as two runs with different numbers of threads do: in all families of
      `landscape.models` `theta` was within 3e-6 of its norm after 15 steps. Kinks amplify the difference later: after
      200 steps ResNets with ReLU were up to 3 % apart, a 784-256-256 ReLU network with rmsprop on two threads 5 %.
    - one after another, as `train` does it, bit for bit: for optimizers that do not treat every parameter by itself
      (`lbfgs`), networks with dropout or other random numbers, on a CPU convolutions with so much work that they are
      faster alone, and whatever `vmap` does not support or gets wrong, which is found out by comparing the first step
      of two networks with theirs alone.

    A network whose loss on the whole data is not finite, after an epoch evaluated or after a step whose batch had no
    finite loss, stops there, as in `train`; the others are not affected.

    Args:
        build: A function from a seed to a network; it is called with torch's default generator seeded by the seed too,
            and the caller's random numbers are left as they were. Or the networks themselves, which are copied.
        data: See `train`, as are the following.
        seeds: One per network: of its initial parameters and its order of the samples. Default: 0 to 99 for a function,
            0, 1, ... for given networks.
        test: Further data to evaluate.
        loss: What is minimized.
        metrics: Further values to follow.
        forward: `forward(model, batch) -> output`.
        reduction: `"mean"` or `"sum"`.
        optimizer: Name of the optimizer.
        learning_rate: Default: that of the optimizer.
        options: Further arguments of the optimizer's class.
        weight_decay: As the optimizer defines it.
        batch_size: Samples per step. Default: all.
        epochs: Passes through the data.
        schedule: Of the learning rate.
        batch_order: `"own"`: every network goes through the data in the order of its own seed. `"shared"`: all in that
            of the first seed, which is faster.
        evaluate_every: Epochs from one evaluation of the whole data to the next; the last epoch always has one.
        record: Trajectory files to write, by index of the network, as `train` does in its folder.
        record_every: Record the parameters every so many epochs or steps, besides those at the start and at the end.
        record_unit: `"epoch"` or `"step"`.
        group: Networks that are computed together. Default: 100, fewer for larger networks or batches, on a GPU all.
        state: File to keep the state in while they are trained. The same call with it goes on after an interruption, on
            the CPU bit for bit as if there had been none. It stays at the end; nothing is written in the first
            `interval` seconds, unless it is asked to stop.
        interval: Seconds between two writes of the state; more where writing would take over a tenth of the time.
        progress: Show a progress bar.

    Returns:
        The trained networks and their histories.

    Raises:
        ValueError: An argument is not valid, the networks differ in more than the values of their parameters, a
            trajectory file exists already, or the state is that of other networks.
        BlockingIOError: Another process keeps its state in that file.

    Example:
        >>> from landscape.models import build
        >>> x, y = torch.randn(32, 4), torch.arange(32) % 3
        >>> ensemble = train_many(
        ...     lambda seed: build("mlp", seed=seed, input_shape=(4,), classes=3),
        ...     (x, y), seeds=range(5), epochs=2, progress=False,
        ... )
        >>> ensemble.history["loss"].shape
        (5, 3)
    """
    epochs, evaluate_every = whole_number("epochs", epochs, 1), whole_number("evaluate_every", evaluate_every, 1)
    record_every = whole_number("record_every", record_every, 1)
    if batch_size is not None:
        batch_size = whole_number("batch_size", batch_size, 1)
    if group is not None:
        group = whole_number("group", group, 1)
    if batch_order not in ("own", "shared"):
        raise ValueError(f"batch_order must be 'own' or 'shared', got {batch_order!r}")
    if record_unit not in ("epoch", "step"):
        raise ValueError(f"record_unit must be 'epoch' or 'step', got {record_unit!r}")
    optimizer_class, optimizer_arguments = optimizers.choose(
        optimizer, learning_rate=learning_rate, weight_decay=weight_decay, options=options
    )
    networks, seeds = _networks(build, seeds)
    n = len(networks)
    if record is not None:
        expect("record", record, Mapping, "files by the index of the network")
    record = dict(record or {})
    if record and state is not None:
        raise ValueError("record and state cannot be given together: use `train` to go on with recorded networks")
    if stray := [i for i in record if i not in range(n)]:
        raise ValueError(f"record has networks {stray}, but there are only 0 to {n - 1}: its keys are indices")
    objective = Objective(
        networks[0], data, test=test, loss=loss, metrics=metrics, forward=forward, reduction=reduction
    )
    if objective.chunk_size is not None:
        objective.chunk_size = EVALUATION_CHUNK
    orders = [Order(objective.splits[""], batch_size, seed) for seed in (seeds if batch_order == "own" else seeds[:1])]
    job = Job(
        objective,
        forward,
        lambda parameters: optimizer_class(parameters, **optimizer_arguments),
        optimizers.schedule_function(schedule),
        orders[0].n_steps,
        epochs,
        evaluate_every,
        n,
    )

    def describe(i: int) -> dict[str, Any]:
        described = describe_run(
            *(objective, networks[i], forward, optimizer_class, optimizer_arguments),
            *(orders[0], epochs, schedule, seeds[i]),
        )
        return {**described, "record": f"every {record_every} {record_unit}", "batch order": batch_order}

    samples = orders[0].size or max(objective.splits[""].sizes)  # in a step
    outputs, work = (samples * size for size in forward_size(networks[0], objective, forward))
    engine, reason = choose_engine(networks, orders, optimizer_class, job, work)
    if engine == ALONE:
        log.warning("the networks are trained one after another: %s", reason)
        group = 1
    elif group is None:
        group = group_size(objective, outputs)
    group = min(group, n)
    settings = describe(0)
    for of_one in ("seed", "initial parameters and buffers", "record"):
        del settings[of_one]
    order = "each in its own order of the samples" if batch_order == "own" else f"all in the order of seed {seeds[0]}"
    settings |= {
        "seeds": seeds,
        "batch order": batch_order,
        "evaluate every": evaluate_every,
        "group": group,
        "plan": f"{n} networks, {group} at a time, {order}: {engine}" + (f" ({reason})" if reason else ""),
    }
    begin = time.perf_counter()
    every = record_every * (job.n_steps if record_unit == "epoch" else 1)
    stoppable: AbstractContextManager[list[int]] = nullcontext([]) if state is None else interrupt_between_steps()
    with (
        nullcontext() if state is None else Lock(state),
        tqdm(total=n * job.total, desc=f"training {n} networks", unit="step", disable=not progress) as bar,
        stoppable as stopping,
    ):
        kept = Kept(None if state is None else Path(state), settings, job, interval, stopping)
        bar.update(kept.first * job.total)
        for first in range(kept.first, n, group):
            members = range(first, min(first + group, n))
            own = [orders[i] for i in members] if batch_order == "own" else orders
            with ExitStack() as stack:
                recorders = {
                    i: Recorder(record[i], copy.deepcopy(networks[i]), every=every, info={"training": describe(i)})
                    for i in members
                    if i in record
                }
                for recorder in recorders.values():
                    stack.enter_context(recorder)
                if engine == ALONE:
                    train_alone(job, first, networks[first], seeds[first], own[0], recorders.get(first), kept, bar)
                else:
                    together = Stack([networks[i] for i in members], objective, forward, products=engine == PRODUCTS)
                    train_together(job, first, together, own, recorders, kept, bar)
        kept.keep(n, dict, finished=True)
    if job.diverged.any():
        log.warning("%d of %d networks stopped early: their loss is not finite", job.diverged.sum(), n)
    return Ensemble(
        thetas=torch.stack(job.thetas),
        buffers={name: torch.stack([own[name] for own in job.buffers]) for name in job.buffers[0]},
        history=job.history,
        epochs=job.evaluated,
        steps=job.steps,
        diverged=job.diverged,
        settings=settings,
        seconds=time.perf_counter() - begin,
        template=copy.deepcopy(networks[0]),
    )


def _networks(
    build: Callable[[int], nn.Module] | Sequence[nn.Module], seeds: Sequence[int] | None
) -> tuple[list[nn.Module], list[int]]:
    """Build the networks, and check that they differ only in the values of their parameters and buffers."""
    if isinstance(build, nn.Module):
        raise TypeError(f"expected a function from a seed to a network, or several networks, got one {type(build)}")
    if not callable(build):
        expect("build", build, Sequence, "a function from a seed to a network, or several networks")
    if seeds is not None:
        expect("seeds", seeds, (Sequence, np.ndarray), "a list of whole numbers, one for each network")
    if callable(build):
        seeds = [whole_number("a seed", seed, 0) for seed in (range(_SEEDS) if seeds is None else seeds)]
        networks = []
        with torch.random.fork_rng(devices=[]):
            for seed in seeds:
                torch.default_generator.manual_seed(seed)
                networks.append(build(seed))
    else:
        networks = list(build)
        seeds = [whole_number("a seed", seed, 0) for seed in (range(len(networks)) if seeds is None else seeds)]
        if len(networks) != len(seeds):
            raise ValueError(f"there are {len(networks)} networks, but {len(seeds)} seeds: give one for each")
    if not networks:
        raise ValueError("expected at least one network, got none")
    first = _architecture(networks[0])
    for i, network in enumerate(networks):
        if _architecture(network) != first:
            raise ValueError(f"networks 0 and {i} are not of one architecture:\n{networks[0]}\n{network}")
    if not any(tensor.requires_grad for tensor in networks[0].parameters()):
        raise ValueError("no parameter of the networks requires a gradient: there is nothing to train")
    return networks, seeds


def _architecture(network: nn.Module) -> tuple[Any, ...]:
    if not isinstance(network, nn.Module):
        raise TypeError(f"expected networks (nn.Module), got {type(network).__name__}")
    tensors = [*network.named_parameters(), *network.named_buffers()]
    described = [(name, t.shape, t.dtype, t.device, t.requires_grad) for name, t in tensors]
    return without_addresses(repr(network)), described
