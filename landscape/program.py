"""A network as something that can be called at any point: its parameters and buffers handed in, itself untouched."""

import copy
import hashlib
import threading
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from landscape.data import split_batch
from landscape.parameters import Layout


def call_model(model: nn.Module, inputs: Any) -> Any:
    """Call a model on what a batch holds: `model(x)`, `model(*xs)` for a tuple, `model(**xs)` for a mapping."""
    if isinstance(inputs, Mapping):
        return model(**inputs)
    if isinstance(inputs, tuple | list):
        return model(*inputs)
    return model(inputs)


def private_copy(model: nn.Module, device: torch.device | str | None, dtype: torch.dtype | None) -> nn.Module:
    """Copy a model, in evaluation mode and without gradients, to a device and in a precision.

    Raises:
        TypeError: It cannot be copied, or `dtype` is none.
        ValueError: There is no such device.
    """
    if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise TypeError(f"dtype must be a floating-point type such as torch.float64, got {dtype!r}")
    check_device(device)
    try:
        copied = copy.deepcopy(model)
    except Exception as error:
        raise TypeError(
            f"the model cannot be copied ({error}); rebuild it and load its state dict, then pass the new one"
        ) from error
    copied = copied.requires_grad_(False).to(device=device).eval()
    if dtype is not None:  # `Module.to(dtype)` would take the imaginary part from complex buffers
        copied._apply(lambda tensor: tensor.to(dtype) if tensor.is_floating_point() else tensor)
    return copied


def check_device(device: torch.device | str | None) -> None:
    """Refuse a device that is not here or holds no values.

    Raises:
        ValueError: The message names it.
    """
    if device is None:
        return
    try:
        found = torch.device(device)
        torch.empty(1, device=found)
    except (RuntimeError, AssertionError, TypeError) as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(f"device {device!r} cannot be used on this machine: {reason}") from error
    if found.type == "meta":
        raise ValueError("device 'meta' holds no values: choose a real one, such as 'cpu'")


class Program(nn.Module):
    """What is called at every point: the model on a batch, in the user's way if there is one.

    Args:
        model: It is kept, not copied.
        custom: `custom(model, batch) -> output`; default: the model on the inputs of the batch.
    """

    def __init__(self, model: nn.Module, custom: Callable[[nn.Module, Any], Any] | None) -> None:
        super().__init__()
        self.model = model
        self.custom = custom
        self.norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
        self.dtypes = {name: tensor.dtype for name, tensor in model.named_parameters()}
        self.device = next(model.parameters()).device

    def forward(self, batch: Any) -> Any:
        """Return the model's output for a batch."""
        if self.custom is not None:
            return self.custom(self.model, batch)
        return call_model(self.model, split_batch(batch)[0])

    def tensors(self, layout: Layout, theta: Tensor, buffers: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        """Name everything a forward pass uses, buffers as copies, so that in-place updates stay here.

        Args:
            layout: Of `theta`.
            theta: `[p]`.
            buffers: Buffers to use instead of the model's own, by name.
        """
        tensors = {
            f"model.{name}": part.to(self.dtypes[name])
            for name, part in layout.unflatten(theta.to(self.device)).items()
        }
        for name, buffer in self.model.named_buffers():
            source = buffers.get(name, buffer) if buffers else buffer
            tensors[f"model.{name}"] = source.to(self.device, buffer.dtype, copy=True)
        return tensors

    def output(self, tensors: dict[str, Tensor] | None, batch: Any) -> tuple[Any, Any]:
        """Call the model with other parameters and buffers or (None) with its own; returns output and target."""
        output = self(batch) if tensors is None else functional_call(self, tensors, (batch,))
        return output, split_batch(batch)[1]

    def set_norm_mode(self, training: bool) -> None:
        """Let batch norm use the statistics of the batch (True) or the running ones."""
        for norm in self.norms:
            norm.training = training

    def recalibrate(self, tensors: dict[str, Tensor], batches: Iterator[Any]) -> None:
        """Estimate running statistics anew, in place: the mean over batches, each of which counts the same."""
        own = {id(buffer) for norm in self.norms for buffer in norm.buffers(recurse=False)}
        for name, buffer in self.model.named_buffers():
            if id(buffer) in own:  # other modules, such as instance norm, keep theirs
                tensors[f"model.{name}"].fill_(1 if name.endswith("running_var") else 0)
        self.set_norm_mode(True)
        for norm in self.norms:
            norm.momentum = None  # a cumulative average
        for batch in batches:
            functional_call(self, tensors, (batch,))

    def digest_of_fixed(self, moving: Collection[str]) -> str:
        """Hash what the network consists of besides the parameters that move."""
        fixed = {name: t for name, t in self.model.named_parameters() if name not in moving}
        digest = hashlib.sha256()
        for name, tensor in {**fixed, **dict(self.model.named_buffers())}.items():
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            dense = tensor.detach().cpu() if tensor.layout == torch.strided else tensor.detach().cpu().to_dense()
            digest.update(dense.resolve_conj().contiguous().reshape(-1).view(torch.uint8).numpy().data)
        return digest.hexdigest()

    @contextmanager
    def quietly(self, gradients: bool = False) -> Iterator[None]:
        """Leave the random generators as they are found; without gradients, in inference mode."""
        devices = [self.device] if self.device.type == "cuda" else []
        mode = torch.enable_grad() if gradients else torch.inference_mode()
        with torch.random.fork_rng(devices), mode, whole_float32():
            yield


@contextmanager
def whole_float32() -> Iterator[None]:
    """Keep float32 products from being computed with rounded factors (TF32, bf16), as torch may do for speed.

    The settings are of the whole process: the last thread that leaves restores what the first one found.
    """
    holders, name = _precision_settings()
    with _precision.lock:
        if _precision.n_inside == 0:
            _precision.before = [getattr(holder, name) for holder in holders]
            for holder in holders:
                whole: object = "highest" if isinstance(holder, _OlderProducts) else False
                setattr(holder, name, "ieee" if name == "fp32_precision" else whole)
        _precision.n_inside += 1
    try:
        yield
    finally:
        with _precision.lock:
            _precision.n_inside -= 1
            if _precision.n_inside == 0:
                for holder, value in zip(holders, _precision.before, strict=True):
                    setattr(holder, name, value)


class _Precision:
    """How many are inside of `whole_float32`, and what to restore."""

    def __init__(self) -> None:
        self.lock, self.n_inside, self.before = threading.Lock(), 0, list[Any]()


_precision = _Precision()


def _precision_settings() -> tuple[list[Any], str]:
    """Return what holds torch's settings, and the name of the attribute; reading the old ones can fail since 2.9."""
    backends: Any = torch.backends
    if hasattr(backends.cuda.matmul, "fp32_precision"):
        libraries = (backends.cudnn.conv, backends.cudnn.rnn, backends.cuda.matmul)
        return [*libraries, backends.mkldnn.conv, backends.mkldnn.rnn, backends.mkldnn.matmul], "fp32_precision"
    return [backends.cudnn, _OlderProducts()], "allow_tf32"


class _OlderProducts:
    """What torch before 2.9 calls `allow_tf32` of products, which has three levels, all of which are restored."""

    @property
    def allow_tf32(self) -> str:
        return torch.get_float32_matmul_precision()

    @allow_tf32.setter
    def allow_tf32(self, level: str) -> None:
        torch.set_float32_matmul_precision(level)
