"""The loss of a network as a function of `theta`, on fixed data, for any module and any loss.

    L(theta) = 1/n sum_i loss(model_theta(x_i), y_i)

Chunks of samples are evaluated in the network's own precision and added in float64. The user's model is copied once
and never touched: not its parameters, buffers, mode, gradients, nor the state of the random generators.
"""

import copy
import hashlib
import math
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from landscape.data import Batches, batch_size, collect, split_batch
from landscape.losses import Metric, accuracy, default_loss, describe_callable, describe_value, is_classification
from landscape.parameters import Selection, layout

BATCH_NORM_POLICIES = ("frozen", "interpolated", "recalibrated", "batch")
_STATISTICS_BATCH = 256  # samples per batch for batch-norm statistics, where the data come as one block
_CHECK_SAMPLES = 512
_TUNING_SECONDS = 0.8


def call_model(model: nn.Module, inputs: Any) -> Any:
    """Call a model on what a batch holds: `model(x)`, `model(*xs)` for a tuple, `model(**xs)` for a mapping."""
    if isinstance(inputs, Mapping):
        return model(**inputs)
    if isinstance(inputs, tuple | list):
        return model(*inputs)
    return model(inputs)


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
        if chunk_size is not None and chunk_size < 1:
            raise ValueError(f"chunk_size must be at least 1, got {chunk_size}")
        self.layout = layout(model, select)
        self.reduction = reduction
        self.batch_norm = batch_norm
        self.loss = default_loss if loss is None else loss
        self.notes: list[str] = []
        self._program = _Program(_copy(model), forward)
        self.model = self._program.model.to(device=device, dtype=dtype).eval()
        self.device = next(self.model.parameters()).device
        self._dtypes = {name: tensor.dtype for name, tensor in self.model.named_parameters()}
        self.dtype = self._dtypes[self.layout.names[0]]
        self.splits = {"": collect(data)}
        if test is not None:
            self.splits["test_"] = collect(test)
        if dtype is None and self.dtype == torch.float64:
            dtype = self.dtype  # a wide network takes wide data
        self.splits = {name: batches.to(self.device, dtype) for name, batches in self.splits.items()}
        self.buffers = {n: t.clone() for n, t in self.model.named_buffers() if t.is_floating_point()}
        self.origin = self.layout.flatten(dict(self.model.named_parameters()))
        self._norms = [m for m in self.model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
        if batch_norm == "recalibrated":
            for norm in self._norms:
                norm.momentum = None  # a cumulative average: every batch counts the same

        output, target = self._first_output()
        if metrics is None:
            metrics = {"accuracy": accuracy} if is_classification(output, target) else {}
        if "loss" in metrics:
            raise ValueError("the metric name 'loss' is taken: choose another")
        self.metrics: dict[str, Metric] = {"loss": self.loss, **metrics}
        self.metric_names = [prefix + name for prefix in self.splits for name in self.metrics]
        self.chunk_size = self._choose_chunk_size(chunk_size)
        self._check_repeatable()

    def evaluate(self, theta: Tensor, buffers: Mapping[str, Tensor] | None = None) -> dict[str, float]:
        """Evaluate loss and metrics on all data.

        Args:
            theta: `[p]`.
            buffers: Floating-point buffers to use instead of the origin's, by name.

        Returns:
            Values by `metric_names`; NaN and infinity are results.
        """
        with torch.random.fork_rng(self._cuda_devices()), torch.inference_mode():
            tensors = self._tensors(theta, buffers)
            if self.batch_norm == "recalibrated":
                self._recalibrate(tensors)
            self._set_norm_mode(self.batch_norm == "batch")
            return {
                prefix + name: value
                for prefix, batches in self.splits.items()
                for name, value in self._means(tensors, self._chunks(batches)).items()
            }

    def gradient(self, theta: Tensor) -> Tensor:
        """Compute the gradient of the training loss.

        Batch-norm statistics are held fixed at the origin's, whatever the policy, unless it is `"batch"`.

        Args:
            theta: `[p]`.

        Returns:
            `[p]` float64, the sum over chunks being taken in that precision.
        """
        batches = self.splits[""]
        total = torch.zeros(self.layout.p, dtype=torch.float64, device=self.device)
        self._set_norm_mode(self.batch_norm == "batch")
        with torch.random.fork_rng(self._cuda_devices()), torch.enable_grad():
            point = theta.detach().to(self.device).requires_grad_()
            for batch in self._chunks(batches):
                output, target = self._program_output(self._tensors(point, None), batch)
                value, weight = self._weigh(self.loss(output, target), batch_size(batch))
                total += torch.autograd.grad(value, point)[0].double() * weight
        return total if self.reduction == "sum" else total / batches.n_samples

    def gradient_norm(self) -> float | None:
        """Compute the Euclidean norm of the gradient at the origin; None if the loss cannot be differentiated."""
        try:
            return float(self.gradient(self.origin).norm())
        except RuntimeError as error:
            self.notes.append(f"no gradient at the origin: {error}")
            return None

    def evaluate_model(self) -> dict[str, float]:
        """Evaluate the network itself, called plainly, in the batches given and in evaluation mode.

        It shares with `evaluate` neither the way parameters get into the model nor the chunks: what the surface shows
        at coordinates zero can be checked against it.
        """
        with torch.random.fork_rng(self._cuda_devices()), torch.inference_mode():
            self._set_norm_mode(False)
            return {
                prefix + name: value
                for prefix, batches in self.splits.items()
                for name, value in self._means(None, batches.chunks(self._statistics_size(batches))).items()
            }

    def settings(self) -> dict[str, object]:
        """Return how loss and metrics are defined, in words and numbers (JSON-able)."""
        return {
            "metrics": {name: describe_callable(function) for name, function in self.metrics.items()},
            "reduction": self.reduction,
            "batch-norm policy": self.batch_norm if self._norms else "no batch norm in the model",
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
            "model": _digest(repr(self.model)),
            "parameters": _digest(repr((self.layout.names, self.layout.shapes))),
            "loss and metrics": ", ".join(f"{n} = {describe_callable(f)}" for n, f in self.metrics.items()),
            "reduction": self.reduction,
            "dtype": str(self.dtype),
            "batch-norm policy": self.batch_norm,
        }

    def _tensors(self, theta: Tensor, buffers: Mapping[str, Tensor] | None) -> dict[str, Tensor]:
        """Name everything a forward pass uses, buffers as copies, so that in-place updates stay here."""
        tensors = {
            f"model.{name}": part.to(self._dtypes[name])
            for name, part in self.layout.unflatten(theta.to(self.device)).items()
        }
        own = dict(self.model.named_buffers())
        for name, buffer in own.items():
            source = buffers.get(name, buffer) if buffers else buffer
            tensors[f"model.{name}"] = source.to(self.device, buffer.dtype, copy=True)
        return tensors

    def _program_output(self, tensors: dict[str, Tensor] | None, batch: Any) -> tuple[Any, Any]:
        """Call the model on a batch, with other parameters and buffers or (None) with its own."""
        output = self._program(batch) if tensors is None else functional_call(self._program, tensors, (batch,))
        return output, split_batch(batch)[1]

    def _first_output(self) -> tuple[Any, Any]:
        batch = next(self.splits[""].chunks(2 if self.splits[""].stackable else None))
        with torch.random.fork_rng(self._cuda_devices()), torch.inference_mode():
            self._set_norm_mode(False)
            try:
                return self._program_output(self._tensors(self.origin, None), batch)
            except Exception as error:
                raise ValueError(
                    f"the model cannot be called on a batch of the data ({describe_value(batch)}): {error}. "
                    "Pass forward=function(model, batch) if it needs to be called differently"
                ) from error

    def _means(self, tensors: dict[str, Tensor] | None, chunks: Iterable[Any]) -> dict[str, float]:
        totals = {name: 0.0 for name in self.metrics}
        n_samples = 0
        for batch in chunks:
            output, target = self._program_output(tensors, batch)
            for name, metric in self.metrics.items():
                value, weight = self._weigh(metric(output, target), batch_size(batch), name)
                totals[name] += value.item() * weight
            n_samples += batch_size(batch)
        sums = {"loss"} if self.reduction == "sum" else set()
        return {name: total if name in sums else total / n_samples for name, total in totals.items()}

    def _weigh(self, value: Tensor, n: int, name: str = "loss") -> tuple[Tensor, int]:
        """Return a 0-D float64 value and the weight with which it enters the sum over all samples."""
        if not isinstance(value, Tensor):
            value = torch.as_tensor(value)
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
        return None if len(batches.items) > 1 or not batches.stackable else _STATISTICS_BATCH

    def _recalibrate(self, tensors: dict[str, Tensor]) -> None:
        """Estimate the running statistics at a point anew, in place: mean over batches of the training data."""
        for name, tensor in tensors.items():
            if name.endswith(("running_mean", "num_batches_tracked")):
                tensor.zero_()
            elif name.endswith("running_var"):
                tensor.fill_(1)
        self._set_norm_mode(True)
        for batch in self.splits[""].chunks(self._statistics_size(self.splits[""])):
            functional_call(self._program, tensors, (batch,))

    def _set_norm_mode(self, training: bool) -> None:
        for norm in self._norms:
            norm.training = training

    def _cuda_devices(self) -> list[torch.device]:
        return [self.device] if self.device.type == "cuda" else []

    def _choose_chunk_size(self, wanted: int | None) -> int | None:
        """Take the size wanted or the fastest, where cutting the data anew does not change the loss."""
        batches = self.splits[""]
        if self.batch_norm == "batch":
            return wanted or self._statistics_size(batches)
        if not all(b.stackable for b in self.splits.values()):
            self.notes.append("samples differ in shape or type: evaluated in the batches given")
            return None
        if not self._is_mean_over_samples():
            self.notes.append("the loss of a batch is not a mean over its samples: evaluated in the batches given")
            return None
        return wanted or self._tune()

    def _tune(self) -> int:
        """Time a few chunk sizes on the real data and return the fastest."""
        batches = self.splits[""]
        best, best_seconds, begin = 1, float("inf"), time.perf_counter()
        size = min(64, batches.n_samples)
        with torch.random.fork_rng(self._cuda_devices()), torch.inference_mode():
            tensors = self._tensors(self.origin, None)
            self._means(tensors, [next(batches.chunks(size))])  # the first call also sets up kernels
            while True:
                chunk = next(batches.chunks(size))
                start = time.perf_counter()
                self._means(tensors, [chunk])
                seconds = (time.perf_counter() - start) / size
                if seconds < best_seconds:
                    best, best_seconds = size, seconds
                spent = time.perf_counter() - begin
                if size == batches.n_samples or spent + 2 * seconds * size > _TUNING_SECONDS or size > 8 * best:
                    return best
                size = min(2 * size, batches.n_samples)

    def _is_mean_over_samples(self) -> bool:
        """Compare the loss of some samples in one batch with that of two unequal parts.

        Raises:
            ValueError: It is a sum where a mean was announced, or the reverse.
        """
        head = collect(self.splits[""], limit=_CHECK_SAMPLES).to(self.device)
        n = head.n_samples
        if n < 3:
            return True
        with torch.random.fork_rng(self._cuda_devices()), torch.inference_mode():
            self._set_norm_mode(False)
            tensors = self._tensors(self.origin, None)
            values = [
                torch.as_tensor(self.loss(*self._program_output(tensors, batch)))
                for size in (n, -(-2 * n // 3))
                for batch in head.chunks(size)
            ]
        if values[0].ndim and values[0].shape[0] == n:
            return True  # one value per sample
        whole, first, second = (value.item() for value in values)
        share = -(-2 * n // 3) / n
        of_kind = {
            "mean": _close(whole, share * first + (1 - share) * second),
            "sum": _close(whole, first + second),
        }
        if of_kind[self.reduction] or not any(of_kind.values()):
            return of_kind[self.reduction]
        kind = next(kind for kind, holds in of_kind.items() if holds)
        raise ValueError(
            f"the loss is a {kind} over samples ({whole:.6g} for {n} of them, {first:.6g} and {second:.6g} for two "
            f"parts): pass reduction={kind!r}"
        )

    def _check_repeatable(self) -> None:
        """Evaluate some samples twice at the origin.

        Raises:
            ValueError: The values differ.
        """
        chunk = next(iter(self._chunks(self.splits[""])))
        with torch.random.fork_rng(self._cuda_devices()), torch.inference_mode():
            self._set_norm_mode(self.batch_norm == "batch")
            first, second = (self._means(self._tensors(self.origin, None), [chunk]) for _ in range(2))
        for name, value in first.items():
            if not _close(value, second[name]):
                raise ValueError(
                    f"{name} at one point differs between two evaluations ({value:.9g}, {second[name]:.9g}), though "
                    "the model is in evaluation mode: is there randomness in its forward pass or in the loss, or does "
                    "it change its input in place?"
                )


class _Program(nn.Module):
    """What is called at every point: the model on a batch, in the user's way if there is one."""

    def __init__(self, model: nn.Module, custom: Callable[[nn.Module, Any], Any] | None) -> None:
        super().__init__()
        self.model = model
        self.custom = custom

    def forward(self, batch: Any) -> Any:
        if self.custom is not None:
            return self.custom(self.model, batch)
        return call_model(self.model, split_batch(batch)[0])


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _copy(model: nn.Module) -> nn.Module:
    try:
        copied = copy.deepcopy(model)
    except Exception as error:
        raise TypeError(
            f"the model cannot be copied ({error}); rebuild it and load its state dict, then pass the new one"
        ) from error
    return copied.requires_grad_(False)


def _close(a: float, b: float) -> bool:
    return math.isclose(a, b, rel_tol=1e-4, abs_tol=1e-9) or (not math.isfinite(a) and not math.isfinite(b))
