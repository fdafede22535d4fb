"""A training run in progress: the order of the samples, one step after another, and the state on disk.

Nothing random is carried along. The order of the samples in an epoch is drawn from `(seed, epoch)` and the random
numbers of a step (dropout) from `(seed, step)`, so network, optimizer and a step number are the whole state.
"""

import io
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from landscape.checkpoint import load_torch
from landscape.contents import Number, check_value
from landscape.data import Batch, Batches, batch_size, split_batch
from landscape.losses import cross_entropy, cross_entropy_slope, default_loss, is_classification
from landscape.objective import Objective, check_differentiable
from landscape.program import call_model
from landscape.storage import advise, read_sealed, write_sealed

_STATE = {
    **{"identity": str, "network": dict, "optimizer": dict, "step": int, "seconds": Number},
    "history": {"*": [Number]},
}


class Order:
    """Which samples make up each step.

    Args:
        batches: The data.
        size: Samples per step; None: all, or for data whose samples differ in shape the batches they came in.
        seed: Of the permutation of every epoch.

    Attributes:
        size: Samples per step, None for batches as they came.
        n_steps: Steps per epoch.
        whole: The data as one batch, None for batches as they came.
        cuts: Which part of the permutation of an epoch each of its steps takes; empty for batches as they came.

    Raises:
        ValueError: `size` is given for data that cannot be cut.
    """

    def __init__(self, batches: Batches, size: int | None, seed: int) -> None:
        self._seed = seed
        self.size: int | None = None
        self.whole: Batch | None = None
        self.cuts: tuple[slice, ...] = ()
        self._items: tuple[Batch, ...] = ()
        if not batches.stackable:
            if size is not None:
                raise ValueError(
                    f"the samples of {batches.name} differ in structure, dtype or shape, so they cannot be cut into "
                    f"batches of {size}: leave batch_size out, and the batches given are used"
                )
            self._items = batches.items
            self.n_steps = len(self._items)
            return
        n = batches.n_samples
        self.size = n if size is None else min(size, n)
        self.whole = next(batches.chunks(n))
        ends = [*range(0, n, self.size), n]
        if self.size > 1 and ends[-1] - ends[-2] == 1 and len(ends) > 2:
            del ends[-2]
        self.cuts = tuple(slice(*pair) for pair in pairwise(ends))
        self.n_steps = len(self.cuts)

    def batches(self, step: int) -> Iterator[Batch]:
        """Yield the batches from a step on, without end."""
        while True:
            epoch, first = divmod(step, self.n_steps)
            if self.whole is None:
                yield from (self._items[i] for i in self.permutation(epoch)[first:])
            elif self.n_steps == 1:
                yield self.whole
            else:
                rows = self.permutation(epoch)
                yield from (take(self.whole, rows[cut]) for cut in self.cuts[first:])
            step += self.n_steps - first

    def permutation(self, epoch: int) -> Tensor:
        """Return the order in an epoch of the samples, or of the batches as they came, `[n]` int64."""
        n = len(self._items) if self.whole is None else self.cuts[-1].stop
        return torch.from_numpy(np.random.default_rng([self._seed, epoch, 0]).permutation(n))


def take(batch: Any, rows: Tensor) -> Any:
    """Return some samples of a batch.

    Args:
        batch: A tensor, None, or a tuple or mapping of batches.
        rows: `[b]` int64 indices, or `[n, b]` for the samples of `n` networks.
    """
    if isinstance(batch, Mapping):
        return {key: take(part, rows) for key, part in batch.items()}
    if isinstance(batch, tuple):
        parts = [take(part, rows) for part in batch]
        return type(batch)(*parts) if hasattr(batch, "_fields") else tuple(parts)
    if batch is None:
        return None
    # several times as fast as batch[rows]
    return batch.index_select(0, rows.flatten().to(batch.device)).reshape(*rows.shape, *batch.shape[1:])


class Session:
    """A network, its optimizer, and how far they have come.

    Args:
        network: In training mode; it is changed.
        objective: What is minimized and evaluated.
        forward: `forward(network, batch) -> output`, or None.
        optimizer: Over the network's parameters, with the learning rate that the schedule multiplies.
        order: The batches.
        seed: Of the random numbers in the network.

    Attributes:
        step: Steps done.
        history: What was evaluated, a list for each value.
        seconds: Time spent.
    """

    def __init__(
        self,
        network: nn.Module,
        objective: Objective,
        forward: Callable[[nn.Module, Any], Any] | None,
        optimizer: torch.optim.Optimizer,
        order: Order,
        seed: int,
    ) -> None:
        self.network = network
        self.objective = objective
        self.optimizer = optimizer
        self.order = order
        self.step = 0
        self.history: dict[str, list[float]] = {}
        self.seconds = 0.0
        self._forward = forward
        self._rates = [group["lr"] for group in optimizer.param_groups]
        self._seed = seed

    @property
    def diverged(self) -> bool:
        """Whether the loss evaluated last is not finite."""
        return bool(self.history) and not math.isfinite(self.history["loss"][-1])

    def steps(
        self, total: int, factor: Callable[[float], float], evaluate_every: int = 1
    ) -> Iterator[dict[str, float]]:
        """Take the steps that are left, until there are `total` of them or the loss is not finite.

        Args:
            total: Steps of the whole run.
            factor: Of the learning rate, by the fraction of steps done.
            evaluate_every: Epochs from one evaluation to the next.

        Yields:
            After each step what is known about it: `batch_loss`, and what was evaluated, if anything.
        """
        spent, started = self.seconds, time.perf_counter()
        batches = self.order.batches(self.step)
        if not self.history:
            self.evaluate()
        while self.step < total and not self.diverged:
            batch_loss = self.advance(next(batches), factor(self.step / total))
            values = {"batch_loss": batch_loss}
            due = self.step % (self.order.n_steps * evaluate_every) == 0 or self.step == total
            if due or not math.isfinite(batch_loss):
                values |= self.evaluate()
            self.seconds = spent + time.perf_counter() - started
            yield values

    def advance(self, batch: Batch, factor: float) -> float:
        """Take one step, with the learning rate times `factor`; return the loss of the batch just before it."""
        for group, rate in zip(self.optimizer.param_groups, self._rates, strict=True):
            group["lr"] = rate * factor
        seed = int(np.random.SeedSequence([self._seed, self.step, 1]).generate_state(1, np.uint64)[0])
        device = self.objective.device

        def closure() -> Any:
            # within a step every evaluation sees the same random numbers: a line search needs a function
            _seed_generators(seed, device)
            self.optimizer.zero_grad()
            return self.differentiate(batch)

        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            loss = float(self.optimizer.step(closure))
        self.step += 1
        return loss

    def evaluate(self) -> dict[str, float]:
        """Evaluate on the whole data, and enter the values into the history."""
        theta = self.objective.layout.flatten(dict(self.network.named_parameters()))
        values = self.objective.evaluate(theta, dict(self.network.named_buffers()))
        row = {"epoch": math.ceil(self.step / self.order.n_steps), "step": self.step, **values}
        for key, value in row.items():
            self.history.setdefault(key, []).append(value)
        return values

    def save(self, path: Path, identity: Mapping[str, Any]) -> None:
        """Write the state, whole or not at all, with what identifies the run."""
        write_state(path, {"identity": json.dumps(identity), **self.state()})

    def state(self) -> dict[str, Any]:
        """Return all that the run needs to go on; its tensors are those in use."""
        return {
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
            "history": self.history,
            "seconds": self.seconds,
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """Take over a state."""
        try:
            self.network.load_state_dict(state["network"])
            self.optimizer.load_state_dict(state["optimizer"])
        except (RuntimeError, KeyError, TypeError, AttributeError, IndexError) as error:
            raise ValueError(f"the stored state does not fit this network and optimizer: {error}") from error
        self.step, self.history, self.seconds = state["step"], state["history"], state["seconds"]

    def differentiate(self, batch: Batch) -> Tensor:
        """Compute the loss of a batch with the network as it is, detached, and add its gradient to the parameters'."""
        output, target = self._output(batch), split_batch(batch)[1]
        if found := loss_and_slope(self.objective, output, target):
            output.backward(found[1])
            return found[0]
        loss = self._loss(output, batch)
        loss.backward()
        return loss.detach()

    def loss(self, batch: Batch) -> Tensor:
        """Compute the loss of a batch with the network as it is, to be differentiated."""
        return self._loss(self._output(batch), batch)

    def _output(self, batch: Batch) -> Any:
        inputs = split_batch(batch)[0]
        try:
            return self._forward(self.network, batch) if self._forward else call_model(self.network, inputs)
        except ValueError as error:
            if "per channel when training" not in str(error):
                raise
            raise ValueError(
                f"batch norm cannot be trained on a batch of one sample: use larger batches ({error})"
            ) from error

    def _loss(self, output: Any, batch: Batch) -> Tensor:
        value = self.objective.loss(output, split_batch(batch)[1])
        check_differentiable(value)
        return reduce_loss(value, batch, self.objective.reduction)


def write_state(path: Path, state: Mapping[str, Any]) -> None:
    """Write tensors, numbers and texts in dictionaries and lists, whole or not at all."""
    content = io.BytesIO()  # torch does not say why it could not write a file
    torch.save(state, content)
    write_sealed(path, content.getvalue())


def read_state(path: Path, structure: Mapping[str, Any] = _STATE) -> dict[str, Any]:
    """Read what `write_state` wrote; tensors come to the CPU.

    Args:
        path: The file.
        structure: What must be in it, see `contents.check_value`. Default: what `Session.save` writes.

    Raises:
        ValueError: The file is damaged, or something else.
    """
    content = read_sealed(path)  # its errors say what to do
    try:
        state = load_torch(io.BytesIO(content), path)
        check_value(state, structure, "it")
    except ValueError as error:
        text = f"{path} is damaged, or no state of this kind of training: {advise(path)} ({error})"
        raise ValueError(text) from error
    return state


def loss_and_slope(objective: Objective, output: Any, target: Any) -> tuple[Tensor, Tensor] | None:
    """Compute the cross-entropy of a batch and its derivative by the output, where that is the loss.

    Args:
        objective: What is minimized.
        output: Of a network `[b, c]`, or of several `[n, b, c]`.
        target: `[b]` or `[n, b]`.

    Returns:
        The loss, 0-D or `[n]`, float64; the derivative, shaped as the output. None where the loss is another one.
    """
    if objective.loss not in (default_loss, cross_entropy) or not isinstance(output, Tensor):
        return None
    if not isinstance(target, Tensor) or target.shape != output.shape[:-1] or not output.requires_grad:
        return None
    first = (output, target) if output.ndim == 2 else (output[0], target[0])
    if not is_classification(*first):
        return None
    values, slope = cross_entropy_slope(output.detach(), target)
    if objective.reduction == "mean":
        return values.mean(dim=-1), slope.div_(output.shape[-2])
    return values.mean(dim=-1) * output.shape[-2], slope


def reduce_loss(value: Tensor, batch: Batch, reduction: str) -> Tensor:
    """Return the loss of a batch as one number to minimize.

    Args:
        value: What the loss function returned, a number or one per sample.
        batch: The batch.
        reduction: `"mean"` or `"sum"`, see `Objective`.
    """
    if value.ndim == 0:
        return value
    if value.numel() == 1 or reduction == "mean":
        return value.mean()
    return value.mean() * batch_size(batch)


def _seed_generators(seed: int, device: torch.device) -> None:
    """Seed the generators that a forward pass on the device draws from, and no others."""
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.manual_seed(seed)
