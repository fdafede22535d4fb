"""Train a group of networks of one architecture: all at once, or one as `train` does it."""

import copy
import itertools
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from tqdm.auto import tqdm

from landscape import optimizers
from landscape.data import Batch
from landscape.interruption import Stopped
from landscape.objective import Objective
from landscape.recorder import Recorder
from landscape.session import Order, Session, read_state, take, write_state
from landscape.stack import Stack

_BY_ENTRY = {
    *(torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW, torch.optim.Adamax, torch.optim.NAdam, torch.optim.RAdam),
    *(torch.optim.RMSprop, torch.optim.Adagrad, torch.optim.Adadelta, torch.optim.ASGD, torch.optim.Rprop),
    optimizers.Normalized,
}
"""Optimizers that treat every parameter by itself."""

PRODUCTS, VMAP, ALONE = "batched products", "vmap", "one after another"
_GROUP = 100  # networks: with 200 a step takes as long per network, with 25 up to 1.7 times
_GROUP_NUMBERS = {"cpu": 2**25, "cuda": 2**29}  # what a group may hold of them, in training
_COPIES = 5  # of the parameters: themselves, gradients, state of an optimizer such as Adam, a temporary
STATE = {
    **{"identity": str, "first": int, "group": dict, "thetas": [Tensor], "buffers": [{"*": Tensor}]},
    **{"steps": Tensor, "diverged": Tensor, "history": {"*": Tensor}},
}
"""What a state of a group holds, see `read_state`."""
SHARE_OF_SAVING = 0.1  # of the time, at most, where a state takes long to write
_CONVOLUTION_WORK = 2.5e6  # multiplications per layer and network, beyond which grouped convolutions lose on a CPU


class Job:
    """What all groups have in common, and where their results go."""

    def __init__(
        self,
        objective: Objective,
        forward: Callable[[nn.Module, Any], Any] | None,
        make_optimizer: Callable[[list[nn.Parameter]], Optimizer],
        factor: Callable[[float], float],
        n_steps: int,
        epochs: int,
        evaluate_every: int,
        n_networks: int,
    ) -> None:
        self.objective = objective
        self.forward = forward
        self.make_optimizer = make_optimizer
        self.factor = factor
        self.n_steps = n_steps
        self.total = epochs * n_steps
        self.evaluate_every = evaluate_every
        self.evaluated = np.array(sorted({*range(0, epochs, evaluate_every), epochs}))
        shape = (n_networks, len(self.evaluated))
        self.history = {name: np.full(shape, np.nan) for name in objective.metric_names}
        self.steps = np.full(n_networks, self.total)
        self.diverged = np.zeros(n_networks, bool)
        self.thetas: list[Tensor] = []
        self.buffers: list[dict[str, Tensor]] = []

    def enter(self, i: int, step: int, values: Mapping[str, float]) -> None:
        """Put what was evaluated after a step into the history."""
        column = math.ceil(math.ceil(step / self.n_steps) / self.evaluate_every)
        for name in self.history:
            self.history[name][i, column] = values[name]
        if not math.isfinite(values["loss"]):
            self.steps[i], self.diverged[i] = step, True


class Kept:
    """The state of a job on the disk, from which it goes on after a kill as if there had been none.

    Args:
        path: The file; None keeps nothing.
        identity: What decides where the networks end (JSON-able); a state of something else is refused.
        job: What is done. It takes over the networks that are finished in the file.
        interval: Seconds between two writes; more where writing would take over a tenth of the time.
        stopping: Not empty as soon as the job is asked to stop after a step.

    Attributes:
        first: The first network of the group that was in training; those before it are finished.
    """

    def __init__(
        self, path: Path | None, identity: Mapping[str, Any], job: Job, interval: float, stopping: Sequence[int]
    ) -> None:
        self.first = 0
        self._path, self._identity, self._job, self._interval = path, json.dumps(identity), job, interval
        self._stopping = stopping
        self._state: dict[str, Any] = {}
        self._due = time.perf_counter() + interval
        if path is None or not path.exists():
            return
        self._state = read_state(path, STATE)
        if self._state["identity"] != self._identity:
            raise ValueError(f"{path} holds the state of other networks: choose another file, or delete it")
        self.first, device = self._state["first"], job.objective.device
        job.thetas = [theta.to(device) for theta in self._state["thetas"]]
        job.buffers = [{name: tensor.to(device) for name, tensor in own.items()} for own in self._state["buffers"]]
        job.history = {name: values.numpy() for name, values in self._state["history"].items()}
        job.steps, job.diverged = self._state["steps"].numpy(), self._state["diverged"].numpy()

    def take(self, first: int) -> dict[str, Any] | None:
        """Return the state of the group that begins with network `first`, once, if it is the one in the file."""
        group = self._state.pop("group", None) if first == self.first else None
        return group or None

    def keep(self, first: int, group: Callable[[], dict[str, Any]], finished: bool = False) -> None:
        """Write the state if it is time.

        Args:
            first: The first network of the group in training.
            group: Returns its state.
            finished: Whether all is done; it is then written if it has been before.

        Raises:
            Stopped: The job was asked to stop, and the state is written.
        """
        if self._path is None or (finished and not self._path.exists()):
            return
        begin = time.perf_counter()
        if begin < self._due and not self._stopping and not finished:
            return
        job = self._job
        state = {
            **{"identity": self._identity, "first": first, "group": group(), "thetas": job.thetas},
            **{
                "buffers": job.buffers,
                "steps": torch.from_numpy(job.steps),
                "diverged": torch.from_numpy(job.diverged),
            },
            "history": {name: torch.from_numpy(values) for name, values in job.history.items()},
        }
        write_state(self._path, state)
        end = time.perf_counter()
        self._due = end + max(self._interval, (end - begin) / SHARE_OF_SAVING)
        if self._stopping and not finished:
            raise Stopped(self._stopping[0], f"the state is in {self._path}: the same call goes on from there")


def train_together(
    job: Job,
    first: int,
    stack: Stack,
    orders: Sequence[Order],
    recorders: Mapping[int, Recorder],
    kept: Kept,
    bar: tqdm,
) -> None:
    """Train a stack of networks and enter what comes out into the job.

    Args:
        job: What is done.
        first: Index of the first network of the stack among all.
        stack: The networks `first`, `first + 1`, ...
        orders: The order of the samples of each, or one for all.
        recorders: By index among all networks.
        kept: Keeps the state.
        bar: Counts steps of single networks.
    """
    n = stack.n_networks
    optimizer = job.make_optimizer([stack.flat])
    rate = optimizer.param_groups[0]["lr"]
    ended: dict[int, tuple[Tensor, dict[str, Tensor]]] = {}  # what has stopped; the rest of its column is garbage

    def enter(i: int, step: int, values: Mapping[str, float]) -> None:
        job.enter(first + i, step, values)
        if job.diverged[first + i]:
            ended[i] = _state(job, stack, i)

    def state() -> dict[str, Any]:
        tensors = {"flat": stack.flat.detach(), "buffers": stack.buffers}
        return {"step": step, "optimizer": optimizer.state_dict(), "ended": ended, **tensors}

    step = 0
    if before := kept.take(first):
        step, device = before["step"], stack.flat.device
        for i, (theta, buffers) in before["ended"].items():
            ended[i] = theta.to(device), {name: tensor.to(device) for name, tensor in buffers.items()}
        optimizer.load_state_dict(before["optimizer"])
        with torch.no_grad():
            stack.flat.copy_(before["flat"])
            for name, buffer in stack.buffers.items():
                buffer.copy_(before["buffers"][name])
        bar.update(step * n)
    else:
        for i, values in enumerate(_rows(stack.evaluate())):
            enter(i, 0, values)
    batches = batches_of(orders, step)
    while step < job.total and len(ended) < n:
        step += 1
        optimizer.param_groups[0]["lr"] = rate * job.factor((step - 1) / job.total)
        losses = stack.differentiate(*next(batches)).tolist()
        optimizer.step()
        if step % (job.n_steps * job.evaluate_every) == 0 or step == job.total:
            known = dict(enumerate(_rows(stack.evaluate())))
        else:  # rare enough to be evaluated alone
            strange = [i for i, loss in enumerate(losses) if i not in ended and not math.isfinite(loss)]
            known = {i: job.objective.evaluate(*_state(job, stack, i)) for i in strange}
        for i in [i for i in known if i not in ended]:
            enter(i, step, known[i])
        for i, recorder in recorders.items():
            if step <= job.steps[i]:
                copy_into(recorder.model, stack.network(i - first))
                recorder.step(batch_loss=losses[i - first], **known.get(i - first, {}))
        bar.update(n - len(ended))
        kept.keep(first, state)
    for i in range(n):
        theta, buffers = ended.get(i) or _state(job, stack, i)
        job.thetas.append(theta)
        job.buffers.append(buffers)


def train_alone(
    job: Job, i: int, network: nn.Module, seed: int, order: Order, recorder: Recorder | None, kept: Kept, bar: tqdm
) -> None:
    """Train network `i` as `train` does it, or the recorder's copy of it, and enter what comes out into the job."""
    network = copy.deepcopy(network).train() if recorder is None else recorder.model.train()
    network.zero_grad(set_to_none=True)
    optimizer = job.make_optimizer([tensor for tensor in network.parameters() if tensor.requires_grad])
    session = Session(network, job.objective, job.forward, optimizer, order, seed)
    if before := kept.take(i):
        session.load(before)
        bar.update(session.step)
    for values in session.steps(job.total, job.factor, job.evaluate_every):
        if recorder is not None:
            recorder.step(**values)
        bar.update()
        kept.keep(i, session.state)
    history = session.history
    for row, step in enumerate(history["step"]):
        job.enter(i, int(step), {name: history[name][row] for name in job.history})
    job.thetas.append(job.objective.layout.flatten(dict(network.named_parameters())))
    job.buffers.append({name: buffer.clone() for name, buffer in network.named_buffers()})


def batches_of(orders: Sequence[Order], step: int = 0) -> Iterator[tuple[Batch, bool]]:
    """Yield batches from a step on, without end, and whether each network has its own samples in them."""
    if len(orders) == 1 or orders[0].n_steps == 1:
        yield from ((batch, False) for batch in orders[0].batches(step))
    begun, first = divmod(step, orders[0].n_steps)
    for epoch in itertools.count(begun):
        rows = torch.stack([order.permutation(epoch) for order in orders])
        for cut in orders[0].cuts[first if epoch == begun else 0 :]:
            yield take(orders[0].whole, rows[:, cut]), True


def group_size(objective: Objective, outputs: float) -> int:
    """Choose how many networks are trained together, one of which puts out so many numbers in a step."""
    device = objective.device.type
    fit = int(_GROUP_NUMBERS.get(device, 2**25) / (_COPIES * len(objective.origin) + outputs))
    return max(1, fit if device == "cuda" else min(fit, _GROUP))


def choose_engine(
    networks: Sequence[nn.Module], orders: Sequence[Order], optimizer_class: type[Optimizer], job: Job, work: float
) -> tuple[str, str]:
    """Choose how networks are trained together, by rules that are the same in every run and a trial with two of them.

    Args:
        networks: All networks, which stay as they are.
        orders: The order of the samples of each, or one for all.
        optimizer_class: The optimizer.
        job: What will be done.
        work: Multiplications of a convolution in a step of one network.

    Returns:
        `PRODUCTS`, `VMAP` or `ALONE`, and in words why it is none before it.
    """
    objective, whole = job.objective, orders[0].whole
    if optimizer_class not in _BY_ENTRY:
        return ALONE, f"{optimizer_class.__name__} does not treat every parameter by itself"
    if len({tensor.dtype for tensor in networks[0].parameters()}) > 1:
        return ALONE, "the parameters are of different types"
    if len(orders) > 1 and whole is None and job.n_steps > 1:
        return ALONE, 'the samples differ in shape, so that only batch_order="shared" gives all the same batches'
    if objective.device.type == "cpu" and work > _CONVOLUTION_WORK:
        return ALONE, f"convolutions with {work:.1e} multiplications each are faster so on a CPU"
    pair = [networks[0], networks[-1]]
    own = [orders[0], orders[-1]] if len(orders) > 1 else list(orders)
    reasons: list[str] = []
    for engine in (PRODUCTS, VMAP):
        try:
            difference = _difference(Stack(pair, objective, job.forward, products=engine == PRODUCTS), pair, own, job)
        except Exception as error:
            difference = str(error).strip().partition("\n")[0]
        if not difference:
            return engine, "; ".join(reasons)
        reasons.append(f"no {engine}: {difference}")
    return ALONE, "; ".join(reasons)


def _difference(stack: Stack, pair: Sequence[nn.Module], orders: Sequence[Order], job: Job) -> str:
    """Compare losses, gradients and updated buffers of the first batch with those of the networks alone."""
    batch, own = next(batches_of(orders))
    losses = stack.differentiate(batch, own)
    values = _rows(stack.evaluate())
    for i, network in enumerate(pair):
        alone = copy.deepcopy(network).train()
        alone.zero_grad(set_to_none=True)
        trained = {name: tensor for name, tensor in alone.named_parameters() if tensor.requires_grad}
        order = orders[min(i, len(orders) - 1)]
        session = Session(alone, job.objective, job.forward, job.make_optimizer(list(trained.values())), order, 0)
        with torch.random.fork_rng([stack.flat.device] if stack.flat.is_cuda else []):
            torch.default_generator.manual_seed(i + 1)  # other random numbers, so that hidden ones make a difference
            loss = session.loss(next(order.batches(0)))
            loss.backward()
        if unused := [name for name, tensor in trained.items() if tensor.grad is None]:
            return f"the loss does not depend on {', '.join(unused)}"
        gradient = torch.cat([tensor.grad.flatten() for tensor in trained.values() if tensor.grad is not None])
        buffers = {name: tensor for name, tensor in alone.named_buffers() if tensor.is_floating_point()}
        pairs = {"loss": (losses[i], loss.detach()), "gradient": (stack.gradient(i), gradient)}
        pairs |= {f"buffer {name}": (stack.buffers[name][i], tensor) for name, tensor in buffers.items()}
        evaluated = session.evaluate()
        pairs |= {name: (torch.tensor(values[i][name]), torch.tensor(value)) for name, value in evaluated.items()}
        for name, (one, other) in pairs.items():
            if not _close(one, other):
                return f"the {name} of network {i} is another than alone"
    return ""


def _close(one: Tensor, other: Tensor) -> bool:
    """Tell whether two tensors agree but for rounding, which at a kink of an activation moves more than last digits."""
    finite = one.isfinite()
    if not torch.equal(finite, other.isfinite()):
        return False
    one, other = one[finite].double(), other[finite].double()
    return bool((one - other).norm() <= 1e-2 * other.norm() + 1e-9)


def _rows(values: Mapping[str, Tensor]) -> list[dict[str, float]]:
    """Return the values of each network by name."""
    columns = [tensor.tolist() for tensor in values.values()]
    return [dict(zip(values, row, strict=True)) for row in zip(*columns, strict=True)]


def _state(job: Job, stack: Stack, i: int) -> tuple[Tensor, dict[str, Tensor]]:
    tensors = stack.network(i)
    return job.objective.layout.flatten(tensors), {name: tensors[name].clone() for name in stack.buffers}


def copy_into(network: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Give a network other parameters and buffers, in place."""
    with torch.no_grad():
        for name, tensor in [*network.named_parameters(), *network.named_buffers()]:
            tensor.copy_(tensors[name])
