"""The preview: a quick look in bf16, with its error measured.

Matrix products and convolutions are computed in bf16 (`torch.autocast`), which has 8 significant bits; the parameters
of a point, normalizations and the loss of its outputs are in float32, sums over samples in float64. The loss of one
sample is then off by some thousandths, and where a loss is small, at a minimum, by more: a preview says so itself, in
the file and on each figure. It pays for large layers: with the matrix units of a processor (AMX) a ResNet-20 was 2.5
times as fast as by its exact plan, and 1.2 % off at the center; LeNet-5 and 784-256-256-10 gained nothing.
"""

import copy
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from landscape.losses import Metric
from landscape.objective import Objective

BF16 = torch.bfloat16
Values = Callable[[np.ndarray], dict[str, np.ndarray]]


def as_preview(objective: Objective) -> Objective:
    """Return a float32 objective whose outputs may be in bf16: its metrics see them, and are computed, in float32."""
    narrow = copy.copy(objective)
    narrow.dtype = BF16
    narrow.metrics = {name: _outside(metric, objective.device.type) for name, metric in objective.metrics.items()}
    return narrow


def in_bf16(values: Values, device: torch.device) -> Values:
    """Let a function that evaluates points compute in bf16.

    Raises:
        ValueError: When called, if the network cannot be evaluated in bf16; the message says what to do.
    """

    def preview(coordinates: np.ndarray) -> dict[str, np.ndarray]:
        try:
            with torch.autocast(device.type, BF16):
                return values(coordinates)
        except (RuntimeError, TypeError, ValueError, NotImplementedError) as error:
            raise ValueError(
                f"the network cannot be evaluated in bf16 ({' '.join(str(error).split())[:200]}): "
                "evaluate it without preview, engine='auto'"
            ) from error

    return preview


def preview_error(found: Mapping[str, np.ndarray], expected: Mapping[str, np.ndarray]) -> dict[str, float | None]:
    """Return the relative error of the loss at the center and at a corner, None where only one value is finite.

    Args:
        found: Values `[2, ...]` of the preview by metric name.
        expected: Of the reference plan.
    """
    errors: dict[str, float | None] = {}
    for i, place in enumerate(("center", "corner")):
        a, b = float(found["loss"][i]), float(expected["loss"][i])
        if np.isfinite(a) and np.isfinite(b):
            errors[place] = abs(a - b) / max(abs(b), 1e-7)
        else:
            errors[place] = 0.0 if a == b or (np.isnan(a) and np.isnan(b)) else None
    return errors


def _outside(metric: Metric, device: str) -> Metric:
    """Return a metric that sees wide outputs and is not computed in bf16 itself."""

    def wide(output: Any, target: Any) -> Tensor:
        with torch.autocast(device, enabled=False):
            return metric(_widen(output), target)

    return wide


def _widen(output: Any) -> Any:
    """Return an output with its bf16 tensors in float32, in the containers that it came in."""
    if isinstance(output, Tensor):
        return output.float() if output.dtype == BF16 else output
    if isinstance(output, Mapping):
        wide = copy.copy(output)
        for key, value in output.items():
            wide[key] = _widen(value)  # type: ignore[index]
        return wide
    if isinstance(output, tuple | list):
        parts = [_widen(part) for part in output]
        return type(output)(*parts) if hasattr(output, "_fields") else type(output)(parts)
    return output
