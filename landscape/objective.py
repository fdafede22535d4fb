"""The loss of a network as a function of `theta`, on fixed data, for any module and any loss.

    L(theta) = 1/n sum_i loss(model_theta(x_i), y_i) + penalty/2 ||theta||^2

Chunks of samples are evaluated in the network's own precision and added in float64. The user's model is copied once
and never touched: not its parameters, buffers, mode, gradients, nor the state of the random generators.
"""

import hashlib
import math
import numbers
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from copy import copy as shallow_copy
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from landscape.arguments import expect, real_number, whole_number
from landscape.data import Batches, batch_size, collect, split_batch
from landscape.losses import (
    Metric,
    accuracy,
    default_loss,
    describe_callable,
    describe_value,
    is_classification,
    without_addresses,
)
from landscape.parameters import Selection, layout, real_tensor
from landscape.program import Program, call_model, private_copy

BATCH_NORM_POLICIES = ("frozen", "interpolated", "recalibrated", "batch")
_STATISTICS_BATCH = 256  # samples per batch for batch-norm statistics, where the data come as one block
_CHECK_SAMPLES = 512
_TUNING_SECONDS = 0.8


class Objective:
    """Loss and metrics of a network at any point of its parameter space.

    Args:
        model: Any module; its current parameters are the origin. It is copied and stays untouched.
        data: Training data: a `Dataset`, tensors `(x, y)`, a `DataLoader`, or any iterable of batches, which are pairs
            or dictionaries. Kept in memory, in a fixed order.
        test: Further data; their values are called `test_loss`, `test_accuracy`, ...
        loss: `loss(output, target)`, the mean over a batch or one value per sample; for dictionary batches the target
            is the batch. Default: the model's own loss if it returns one, cross-entropy for class indices.
        metrics: Further values by name, functions like `loss`. Default: the accuracy, for class indices.
        forward: `forward(model, batch) -> output`, where calling the model on the inputs is not what is needed.
        reduction: `"mean"` if a larger batch does not make the loss larger, `"sum"` if it does.
        penalty: Weight penalty: `penalty/2 ||theta||^2` is part of the training loss, its gradient and its Hessian, but
            not of the test loss.
        select: Which parameters form `theta`, see `parameters.layout`; the others keep their values.
        dtype: Evaluate in this precision; default: the model's own.
        device: Evaluate there; default: where the model is.
        batch_norm: What batch-norm statistics a point has: `"frozen"` those of the origin, `"interpolated"` between
            networks like the parameters, `"recalibrated"` estimated anew from the training data, `"batch"` those of
            each batch, as in training.
        chunk_size: Samples per forward pass. Default: tuned on the data.

    Attributes:
        layout: Where each parameter lies in `theta`.
        origin: `[p]` the model's parameters.
        buffers: The model's floating-point buffers by name.
        metric_names: Names of the values that `evaluate` returns, the loss first.
        loss: The loss function.
        splits: The data, `Batches` by the prefix of their values: `""`, `"test_"`.
        chunk_size: Samples per forward pass; None for the batches as given.
        notes: What was found out about model, data and loss, in words.

    Raises:
        TypeError, ValueError: Something does not fit together, the loss differs between two evaluations at one point,
            or the data between two passes; the message says what to do.

    Example:
        >>> objective = Objective(model, loader)  # doctest: +SKIP
        >>> objective.evaluate(objective.origin)  # doctest: +SKIP
        {'loss': 0.031, 'accuracy': 0.992}
    """

    def __init__(
        self,
        model: nn.Module,
        data: Any,
        *,
        test: Any = None,
        loss: Metric | None = None,
        metrics: Mapping[str, Metric] | None = None,
        forward: Callable[[nn.Module, Any], Any] | None = None,
        reduction: str = "mean",
        penalty: float = 0.0,
        select: Selection = "all",
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        batch_norm: str = "frozen",
        chunk_size: int | None = None,
    ) -> None:
        if reduction not in ("mean", "sum"):
            raise ValueError(f"reduction must be 'mean' or 'sum', got {reduction!r}")
        if batch_norm not in BATCH_NORM_POLICIES:
            raise ValueError(f"batch_norm must be one of {', '.join(BATCH_NORM_POLICIES)}, got {batch_norm!r}")
        penalty = real_number("penalty", penalty, 0)
        if chunk_size is not None:
            chunk_size = whole_number("chunk_size", chunk_size, 1)
        _check_functions(loss, metrics, forward)
        self.layout = layout(model, select)
        self.reduction = reduction
        self.penalty = penalty
        self.batch_norm = batch_norm
        self.loss = default_loss if loss is None else loss
        self.notes: list[str] = []
        self.model = private_copy(model, device, dtype)
        self._program = Program(self.model, forward)
        self.device = self._program.device
        self.dtype = self._program.dtypes[self.layout.names[0]]
        self.splits = {"": collect(data)}
        if test is not None:
            self.splits["test_"] = collect(test)
        if dtype is None and self.dtype == torch.float64:
            dtype = self.dtype  # a wide network takes wide data
        self.splits = {name: batches.to(self.device, dtype) for name, batches in self.splits.items()}
        self.buffers = {n: t.clone() for n, t in self.model.named_buffers() if t.is_floating_point()}
        self.origin = self.layout.flatten(dict(self.model.named_parameters()))
        self.has_forward = forward is not None
        self.has_batch_norm = bool(self._program.norms)

        output, target = self._first_output()
        classes = output.shape[1] if is_classification(output, target) else 0
        stray = self._stray_target(classes) if classes else None
        if loss is None and stray is not None:
            raise ValueError(
                f"a target is {stray}, but the classes of an output {describe_value(output)} are 0 to {classes - 1}: "
                "leave such samples out, or pass loss=function(output, target), such as torch.nn.CrossEntropyLoss()"
            )
        self.is_classification = bool(classes) and stray is None
        if metrics is None:
            metrics = {"accuracy": accuracy} if classes and stray is None else {}
            if stray is not None:
                self.notes.append(f"no accuracy, since a target is {stray}, which is no class")
        if "loss" in metrics:
            raise ValueError("the metric name 'loss' is taken: choose another")
        self.metrics: dict[str, Metric] = {"loss": self.loss, **metrics}
        self.metric_names = [prefix + name for prefix in self.splits for name in self.metrics]
        twice = sorted({name for name in self.metric_names if self.metric_names.count(name) > 1})
        if twice:
            raise ValueError(f"metric name(s) {', '.join(twice)} would be used twice: choose others")
        self._check_metrics(output, target)
        self._check_norms(chunk_size)
        self.is_tuned = chunk_size is None
        self.chunk_size = self._choose_chunk_size(chunk_size)
        self._check_repeatable()

    def to(
        self, device: torch.device | str | None = None, dtype: torch.dtype | None = None, copy: bool = False
    ) -> "Objective":
        """Return the same objective on another device or in another precision, with the same chunks of samples.

        Args:
            device: Default: where it is.
            dtype: Of parameters, floating-point buffers and data. Default: as they are.
            copy: Even if nothing changes, for another thread: it gets a network of its own; data are shared.
        """
        if not copy and (device is None or torch.device(device) == self.device) and dtype in (None, self.dtype):
            return self
        moved = shallow_copy(self)
        moved.model = private_copy(self.model, device, dtype)
        moved._program = Program(moved.model, self._program.custom)
        moved.device = moved._program.device
        moved.dtype = moved._program.dtypes[self.layout.names[0]]
        moved.splits = {name: batches.to(moved.device, dtype) for name, batches in self.splits.items()}
        moved.buffers = {n: t.clone() for n, t in moved.model.named_buffers() if t.is_floating_point()}
        moved.origin = self.layout.flatten(dict(moved.model.named_parameters()))
        moved.notes = list(self.notes)
        return moved

    def point(self, theta: Tensor) -> Tensor:
        """Return a point of the parameter space, `[p]`, detached and on the objective's device.

        Raises:
            TypeError: It is no tensor of real floating-point numbers.
            ValueError: It has another shape.
        """
        if real_tensor("theta", theta).shape != (self.layout.p,):
            raise ValueError(f"theta has shape {tuple(theta.shape)}, expected ({self.layout.p},)")
        # in at least the network's precision, or the gradient would be rounded to that of the point
        return theta.detach().to(self.device, torch.promote_types(theta.dtype, self.origin.dtype))

    def evaluate(self, theta: Tensor, buffers: Mapping[str, Tensor] | None = None) -> dict[str, float]:
        """Evaluate loss and metrics on all data.

        Args:
            theta: `[p]`.
            buffers: Floating-point buffers to use instead of the origin's, by name.

        Returns:
            Values by `metric_names`; NaN and infinity are results.
        """
        theta = self.point(theta)
        self._check_buffers(buffers or {})
        with self._program.quietly():
            tensors = self._program.tensors(self.layout, theta, buffers)
            if self.batch_norm == "recalibrated":
                training = self.splits[""]
                self._program.recalibrate(tensors, training.chunks(self._statistics_size(training)))
            self._program.set_norm_mode(self.batch_norm == "batch")
            values = {
                prefix + name: value
                for prefix, batches in self.splits.items()
                for name, value in self._means(tensors, self._chunks(batches)).items()
            }
        values["loss"] += self.penalty_at(theta)
        return values

    def penalty_at(self, theta: Tensor) -> float:
        """Compute the weight penalty, `penalty/2 ||theta||^2`, of a point `[p]`."""
        return self.penalty / 2 * float(self.point(theta).double().square().sum()) if self.penalty else 0.0

    def gradient(self, theta: Tensor) -> Tensor:
        """Compute the gradient of the training loss, see `loss_and_gradient`."""
        return self.loss_and_gradient(theta)[1]

    def loss_and_gradient(self, theta: Tensor) -> tuple[float, Tensor]:
        """Compute the training loss and its gradient.

        Batch-norm statistics are held fixed at the origin's, whatever the policy, unless it is `"batch"`.

        Args:
            theta: `[p]`.

        Returns:
            The loss, and `[p]` float64, the sums over chunks being taken in that precision.

        Raises:
            ValueError: The loss cannot be differentiated.
        """
        theta = self.point(theta)
        batches, loss = self.splits[""], 0.0
        total = torch.zeros(self.layout.p, dtype=torch.float64, device=self.device)
        with self.differentiating():
            point = theta.detach().requires_grad_()
            for batch in self.chunks():
                value, weight = self.batch_loss(point, batch)
                check_differentiable(value)
                loss += value.item() * weight
                total += torch.autograd.grad(value, point)[0].double() * weight
        if self.reduction == "mean":
            loss, total = loss / batches.n_samples, total / batches.n_samples
        return loss + self.penalty_at(theta), total + self.penalty * theta.to(total)

    def chunks(self) -> Iterable[Any]:
        """Iterate over the training data in the chunks in which the loss is evaluated."""
        return self._chunks(self.splits[""])

    def differentiating(self) -> AbstractContextManager[None]:
        """Return the context in which to differentiate `batch_loss`; random generators come out of it as before."""
        return self._program.quietly(gradients=True)

    def batch_loss(self, theta: Tensor, batch: Any) -> tuple[Tensor, int]:
        """Compute the training loss of a batch, without penalty, as a function that torch can differentiate.

        Args:
            theta: `[p]`.
            batch: Of the training data.

        Returns:
            A 0-D float64 value, and the weight with which it enters the sum over all samples.
        """
        self._program.set_norm_mode(self.batch_norm == "batch")
        output, target = self._program.output(self._program.tensors(self.layout, theta), batch)
        return self.weigh(self.loss(output, target), batch_size(batch))

    def gradient_norm(self) -> float | None:
        """Compute the Euclidean norm of the gradient at the origin; None if the loss cannot be differentiated."""
        try:
            return float(self.gradient(self.origin).norm())
        except (RuntimeError, ValueError) as error:
            self.notes.append(f"no gradient at the origin: {error}")
            return None

    def evaluate_model(self) -> dict[str, float]:
        """Evaluate the network itself, called plainly, in the batches given and in evaluation mode.

        It shares with `evaluate` neither the way parameters get into the model nor the chunks: what the surface shows
        at coordinates zero can be checked against it.
        """
        with self._program.quietly():
            self._program.set_norm_mode(False)
            values = {
                prefix + name: value
                for prefix, batches in self.splits.items()
                for name, value in self._means(None, batches.chunks(self._plain_size(batches))).items()
            }
        values["loss"] += self.penalty_at(self.origin)
        return values

    def settings(self) -> dict[str, object]:
        """Return how loss and metrics are defined, in words and numbers (JSON-able)."""
        return {
            "metrics": {name: describe_callable(function) for name, function in self.metrics.items()},
            "reduction": self.reduction,
            "penalty": self.penalty,
            "batch-norm policy": self.batch_norm if self.has_batch_norm else "no batch norm in the model",
            "dtype": str(self.dtype).removeprefix("torch."),
            "model": type(self.model).__name__,
            "n_parameters": self.layout.p,
            "data": {
                prefix.rstrip("_") or "training": {"name": batches.name, "n_samples": batches.n_samples}
                for prefix, batches in self.splits.items()
            },
        }

    def fingerprint(self) -> dict[str, str]:
        """Return what identifies the question this objective answers, by part."""
        return {
            **{f"{prefix or 'training_'}data": batches.fingerprint for prefix, batches in self.splits.items()},
            "model": _digest(without_addresses(repr(self.model))),
            "parameters": _digest(repr((self.layout.names, self.layout.shapes))),
            "loss and metrics": ", ".join(f"{n} = {describe_callable(f)}" for n, f in self.metrics.items()),
            "reduction": self.reduction,
            "dtype": str(self.dtype),
            "batch-norm policy": self.batch_norm,
            "forward": describe_callable(self._program.custom or call_model),
            "fixed parameters and buffers": self._program.digest_of_fixed(self.layout.names),
            "batches": self._digest_of_batches(),
            **({"penalty": repr(self.penalty)} if self.penalty else {}),
        }

    def _digest_of_batches(self) -> str:
        """Hash how the data are divided, where the values depend on it."""
        if self.chunk_size is not None and (self.batch_norm in ("frozen", "interpolated") or not self.has_batch_norm):
            return "any"
        given = [batches.sizes for batches in self.splits.values()]
        return _digest(repr((given, self.chunk_size if self.batch_norm == "batch" else None)))

    def _at_origin(self) -> dict[str, Tensor]:
        return self._program.tensors(self.layout, self.origin)

    def _first_output(self) -> tuple[Any, Any]:
        outputs = []
        for prefix, batches in self.splits.items():
            batch = next(batches.chunks(2 if batches.stackable else None))
            with self._program.quietly():
                self._program.set_norm_mode(False)
                try:
                    outputs.append(self._program.output(self._at_origin(), batch))
                except Exception as error:
                    raise ValueError(
                        f"the model cannot be called on a batch of the {prefix.replace('_', ' ')}data "
                        f"({describe_value(batch)}): {error}. "
                        "Pass forward=function(model, batch) if it needs to be called differently"
                    ) from error
        return outputs[0]

    def _check_metrics(self, output: Any, target: Any) -> None:
        """Call loss and metrics once, on a batch of the data."""
        with self._program.quietly():
            for name, metric in self.metrics.items():
                if metric is default_loss:
                    default_loss(output, target)  # its own error says more
                    continue
                try:
                    metric(output, target)
                except Exception as error:
                    raise ValueError(
                        f"{name} cannot be computed from an output {describe_value(output)} and a target "
                        f"{describe_value(target)}: {type(error).__name__}: {error}. "
                        "Pass a function(output, target) that takes these"
                    ) from error

    def _check_norms(self, chunk_size: int | None) -> None:
        """Call the network with the statistics of the smallest batch that they are estimated from."""
        if not self.has_batch_norm or self.batch_norm not in ("recalibrated", "batch"):
            return
        for prefix, batches in self.splits.items():
            if prefix and self.batch_norm == "recalibrated":
                continue
            size = self._statistics_size(batches)
            if self.batch_norm == "batch" and batches.stackable:
                size = chunk_size or size
            smallest = min(batches.chunks(size), key=batch_size)
            with self._program.quietly():
                self._program.set_norm_mode(True)
                try:
                    self._program.output(self._at_origin(), smallest)
                except ValueError as error:
                    raise ValueError(
                        f"batch_norm={self.batch_norm!r} takes the statistics of each batch, but one of the "
                        f"{prefix.replace('_', ' ')}data has {batch_size(smallest)} sample(s): {error}. Use larger "
                        "batches, leave that sample out, or use batch_norm='frozen'"
                    ) from error

    def _check_buffers(self, buffers: Mapping[str, Tensor]) -> None:
        for name, tensor in buffers.items():
            own = self.buffers.get(name)
            if own is not None and tensor.shape != own.shape:
                raise ValueError(f"buffer {name!r} has shape {tuple(tensor.shape)}, expected {tuple(own.shape)}")

    def _stray_target(self, classes: int) -> int | None:
        """Return a target that is no class index; None if all are."""
        for batches in self.splits.values():
            for item in batches.items:
                target = split_batch(item)[1]
                if isinstance(target, Tensor):
                    stray = target[(target < 0) | (target >= classes)]
                    if len(stray):
                        return int(stray[0])
        return None

    def _means(self, tensors: dict[str, Tensor] | None, chunks: Iterable[Any]) -> dict[str, float]:
        totals = {name: 0.0 for name in self.metrics}
        n_samples = 0
        for batch in chunks:
            output, target = self._program.output(tensors, batch)
            for name, metric in self.metrics.items():
                value, weight = self.weigh(metric(output, target), batch_size(batch), name)
                totals[name] += value.item() * weight
            n_samples += batch_size(batch)
        sums = {"loss"} if self.reduction == "sum" else set()
        return {name: total if name in sums else total / n_samples for name, total in totals.items()}

    def weigh(self, value: Any, n: int, name: str = "loss") -> tuple[Tensor, int]:
        """Return a 0-D float64 value and the weight with which it enters the sum over all samples."""
        if isinstance(value, numbers.Number | np.ndarray | np.generic):
            value = torch.as_tensor(value)
        if not isinstance(value, Tensor):
            raise TypeError(f"{name} is {describe_value(value)}; expected a number or one value per sample")
        if value.is_complex():
            raise TypeError(f"{name} is complex: landscapes need a real value, for example its modulus")
        if value.ndim == 0 or (value.numel() == 1 and n > 1):
            is_sum = name == "loss" and self.reduction == "sum"
            return value.reshape(()).double(), 1 if is_sum else n
        if value.shape[0] == n:
            return value.double().sum() * (n / value.numel()), 1
        raise ValueError(f"{name} has shape {tuple(value.shape)} for {n} samples; expected a scalar or [{n}]")

    def _chunks(self, batches: Batches) -> Iterable[Any]:
        return batches.chunks(self.chunk_size if batches.stackable else None)

    def _statistics_size(self, batches: Batches) -> int | None:
        """Choose the batch that batch-norm statistics are taken over: the data's own, where they came in batches."""
        if len(batches.items) > 1 or not batches.stackable:
            return None
        counts = [b.n_samples for b in self.splits.values()]  # a single sample left over has no variance
        return next(s for s in range(_STATISTICS_BATCH, 0, -1) if all(n == 1 or n % s != 1 for n in counts))

    def _plain_size(self, batches: Batches) -> int | None:
        return None if self.chunk_size is None else self._statistics_size(batches)

    def _choose_chunk_size(self, wanted: int | None) -> int | None:
        """Take the size wanted or the fastest, where cutting the data anew does not change the loss."""
        batches = self.splits[""]
        stackable = all(b.stackable for b in self.splits.values())
        dependent = self._batch_dependent() if stackable else []
        if self.batch_norm == "batch":
            return wanted or self._statistics_size(batches)
        if not stackable:
            self.notes.append("samples differ in shape or type: evaluated in the batches given")
            return None
        if dependent:
            names = " and ".join(dependent)
            self.notes.append(f"the {names} of a batch is not a mean over its samples: evaluated in the batches given")
            return None
        return wanted or self._tune()

    def _tune(self) -> int:
        """Time a few chunk sizes on the real data and return the fastest."""
        batches = self.splits[""]
        best, best_seconds, begin = 1, float("inf"), time.perf_counter()
        size = min(64, batches.n_samples)
        with self._program.quietly():
            tensors = self._at_origin()
            self._means(tensors, [next(batches.chunks(size))])  # the first call also sets up kernels
            while True:
                chunk = next(batches.chunks(size))
                start = time.perf_counter()
                try:
                    self._means(tensors, [chunk])
                except torch.cuda.OutOfMemoryError:
                    return best
                seconds = (time.perf_counter() - start) / size
                if seconds < best_seconds:
                    best, best_seconds = size, seconds
                spent = time.perf_counter() - begin
                if size == batches.n_samples or spent + 2 * seconds * size > _TUNING_SECONDS or size > 8 * best:
                    return best
                size = min(2 * size, batches.n_samples)

    def _batch_dependent(self) -> list[str]:
        """Compare loss and metrics of some samples in one batch with those of unequal parts, two and up to five.

        Returns:
            The names of those that cannot be put together from the parts.

        Raises:
            ValueError: The loss is a sum where a mean was announced, or the reverse.
        """
        head = collect(self.splits[""], limit=_CHECK_SAMPLES).to(self.device)
        n = head.n_samples
        if n < 3:
            return []
        values: dict[str, list[Any]] = {name: [] for name in self.metrics}
        sums: dict[str, list[float]] = {name: [] for name in self.metrics}
        with self._program.quietly():
            self._program.set_norm_mode(False)
            tensors = self._at_origin()
            for size in (n, -(-2 * n // 3), -(-n // 5)):
                for batch in head.chunks(size):
                    output, target = self._program.output(tensors, batch)
                    for name, metric in self.metrics.items():
                        raw = metric(output, target)
                        value, weight = self.weigh(raw, batch_size(batch), name)
                        values[name].append(raw)
                        sums[name].append(value.item() * weight)
        dependent = []
        for name, (whole, first, second, *parts) in sums.items():
            per_sample = np.ndim(values[name][0]) > 0 and len(values[name][0]) == n
            # a metric of each sample by itself may still jump with the rounding of another kernel, as accuracy does
            if (name == "loss" or not per_sample) and not (_close(whole, first + second) and _close(whole, sum(parts))):
                dependent.append(name)
        if "loss" in dependent and torch.as_tensor(values["loss"][0]).numel() == 1:
            whole, first, second = (float(value) for value in values["loss"][:3])
            share = -(-2 * n // 3) / n
            kind = "mean" if self.reduction == "sum" else "sum"
            if _close(whole, share * first + (1 - share) * second if kind == "mean" else first + second):
                raise ValueError(
                    f"the loss is a {kind} over samples ({whole:.6g} for {n} of them, {first:.6g} and {second:.6g} "
                    f"for two parts): pass reduction={kind!r}"
                )
        return dependent

    def _check_repeatable(self) -> None:
        """Evaluate some samples twice at the origin.

        Raises:
            ValueError: The values differ.
        """
        chunk = next(iter(self._chunks(self.splits[""])))
        with self._program.quietly():
            self._program.set_norm_mode(self.batch_norm == "batch")
            first, second = (self._means(self._at_origin(), [chunk]) for _ in range(2))
        for name, value in first.items():
            if not _close(value, second[name]):
                raise ValueError(
                    f"{name} at one point differs between two evaluations ({value:.9g}, {second[name]:.9g}), though "
                    "the model is in evaluation mode: is there randomness in its forward pass or in the loss, or does "
                    "it change its input in place?"
                )


def check_differentiable(value: Any) -> None:
    """Refuse a loss that torch has computed without a graph to the parameters.

    Raises:
        ValueError: It has no gradient.
    """
    if not (isinstance(value, Tensor) and value.requires_grad):
        raise ValueError(
            "the loss has no gradient: it is a constant, or something on the way from the parameters to it (.item(), "
            ".detach(), argmax, a comparison, NumPy) cannot be differentiated by torch"
        )


def _check_functions(
    loss: Metric | None, metrics: Mapping[str, Metric] | None, forward: Callable[[nn.Module, Any], Any] | None
) -> None:
    if metrics is not None:
        expect("metrics", metrics, Mapping, "functions(output, target) by name")
    for name in metrics or {}:
        if not isinstance(name, str) or not name.strip(".") or "/" in name or "\0" in name:  # names of data sets
            raise ValueError(f"metric name {name!r} cannot be stored: use a text without '/'")
    functions: dict[str, Any] = {"loss": loss, "forward": forward, **(metrics or {})}
    for name, function in functions.items():
        if function is not None and not callable(function):
            wanted = "(model, batch)" if name == "forward" else "(output, target)"
            raise TypeError(f"{name} must be a function{wanted}, got {function!r}")


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _close(a: float, b: float) -> bool:
    return math.isclose(a, b, rel_tol=1e-4, abs_tol=1e-9) or (not math.isfinite(a) and not math.isfinite(b))
