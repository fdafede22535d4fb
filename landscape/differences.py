"""Gradients by difference quotients, and how far they are from the truth.

    forward  (f(theta + h e_i) - f(theta)) / h              p + 1 evaluations, truncation error h/2 |f_ii|
    central  (f(theta + h e_i) - f(theta - h e_i)) / (2 h)  2 p evaluations,   truncation error h^2/6 |f_iii|

The truncation error falls with h. The rounding error grows as 1/h, because both values are rounded before they are
subtracted. No h makes both small: the best one leaves about sqrt(eps) for forward quotients, eps^(2/3) for central ones
(Nocedal and Wright, Numerical Optimization, section 8.1).
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from landscape.arguments import expect, real_number
from landscape.objective import Objective
from landscape.parameters import real_tensor

KINDS = ("forward", "central")
Function = Objective | Callable[[Tensor], Tensor]
"""An objective, or a function from `theta` `[p]` to a 0-D tensor of the same precision."""

_SECOND_DIFFERENCE = 1e-4  # float64 gradients that far apart give f_ii and f_iii to about seven digits


@dataclass(frozen=True, eq=False)
class GradientErrors:
    """Relative errors `||g - g_true|| / ||g_true||` of gradients at one point, by `KINDS`, precision and step.

    Attributes:
        steps: `[s]` the steps h.
        dtypes: `[d]` names of the precisions, `"float32"`.
        errors: `[2, d, s]` of difference quotients.
        autograd: `[d]` of automatic differentiation; NaN where it is the reference itself.
        truncation: `[2]` its factor T: the truncation error is `T h` of forward, `T h^2` of central quotients, to
            leading order.
        rounding: `[2, d]` its factor R: the rounding error is at most `R / h` if f is rounded correctly.
        calls: `[2]` evaluations of f for one gradient.
    """

    steps: np.ndarray
    dtypes: tuple[str, ...]
    errors: np.ndarray
    autograd: np.ndarray
    truncation: np.ndarray
    rounding: np.ndarray
    calls: np.ndarray

    def predicted(self, kind: str, dtype: str) -> np.ndarray:
        """Return truncation plus rounding error, `[s]`: what theory says of `errors`."""
        truncation, rounding, order = self._factors(kind, dtype)
        return truncation * self.steps**order + rounding / self.steps

    def optimum(self, kind: str, dtype: str) -> tuple[float, float]:
        """Return the step at which the predicted error is smallest, `(R / (order T))^(1 / (order + 1))`, and the error.

        A function without truncation error has none: the larger the step the better, infinity.
        """
        truncation, rounding, order = self._factors(kind, dtype)
        if truncation == 0:
            return math.inf, 0.0
        h = (rounding / (order * truncation)) ** (1 / (order + 1))
        return h, (truncation * h**order + rounding / h if h else 0.0)

    def best(self, kind: str, dtype: str) -> tuple[float, float]:
        """Return the step with the smallest error measured, and that error."""
        errors = self.errors[KINDS.index(kind), self.dtypes.index(dtype)]
        i = int(np.nanargmin(errors))
        return float(self.steps[i]), float(errors[i])

    def _factors(self, kind: str, dtype: str) -> tuple[float, float, int]:
        k = KINDS.index(kind)
        return float(self.truncation[k]), float(self.rounding[k, self.dtypes.index(dtype)]), k + 1


def difference_gradient(function: Function, theta: Tensor, h: float, kind: str = "forward") -> Tensor:
    """Compute a gradient by difference quotients, entry by entry.

    Points and values have the precision of `theta`, rounding errors included; they are subtracted and divided in
    float64, without a further one.

    Args:
        function: What is differentiated; of an objective the training loss (its metrics and its test data are evaluated
            as well: leave them out to save time).
        theta: `[p]`.
        h: The step, the same for all entries.
        kind: `"forward"`, `p + 1` evaluations, or `"central"`, `2 p`.

    Returns:
        `[p]` float64.

    Raises:
        ValueError: `theta` is no vector, or h or kind are out of range.
        TypeError: An argument of another type, or the function does not return a number in the precision of `theta`.

    Example:
        >>> theta = torch.tensor([1.0, 2.0], dtype=torch.float64)
        >>> difference_gradient(lambda t: t.square().sum(), theta, 0.5, "central").tolist()
        [2.0, 4.0]
    """
    _check(function, theta, [h])
    if kind not in KINDS:
        raise ValueError(f"kind must be one of {', '.join(KINDS)}, got {kind!r}")
    value, _ = _value_and_gradient(function, theta.dtype)
    return _quotients(value, theta, h, kind)


def compare_gradients(
    function: Function,
    theta: Tensor,
    steps: Sequence[float] | np.ndarray,
    *,
    dtypes: Sequence[torch.dtype] = (torch.float32, torch.float64),
    reference: Tensor | None = None,
    report: Callable[[float], None] = lambda share: None,
) -> GradientErrors:
    """Measure the errors of difference quotients and of automatic differentiation, and predict them.

    The truncation factors are `||f_ii|| / (2 ||g||)` and `||f_iii|| / (6 ||g||)`, norms over the entries i, from
    float64 gradients at `theta +- 1e-4 e_i`. The rounding factors hold for values and points that are rounded
    correctly, with the unit roundoff `u = eps / 2`:

        R_forward = ||2 u |f| + u |theta_i g_i||| / ||g||,    R_central = ||u |f| + u |theta_i g_i||| / ||g||

    A function of many operations is rounded at each of them; one that averages many samples may stay below.

    Args:
        function: Has to compute in the precision of the `theta` it is given; an objective is moved there.
        theta: `[p]`. It is rounded to the lowest of the precisions first, so that all start from one point.
        steps: The steps h.
        dtypes: Precisions.
        reference: `[p]` the true gradient, to more digits than float64 autograd gives. Default: float64 autograd, whose
            own error is then unknown, NaN.
        report: Called with the share of the work that is done.

    Raises:
        ValueError, TypeError: As `difference_gradient`; or the gradient is zero, so that no error is relative to it.

    Example:
        >>> theta = torch.tensor([1.0], dtype=torch.float64)
        >>> errors = compare_gradients(lambda t: t.sin().sum(), theta, [1e-4, 1e-8, 1e-12], dtypes=[torch.float64])
        >>> errors.best("forward", "float64")[0]
        1e-08
    """
    try:
        steps = np.array(steps, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise TypeError(f"steps must be a sequence of numbers, got {steps!r}") from error
    if steps.ndim != 1 or not len(steps):
        raise ValueError(f"steps must be a sequence of numbers, got shape {list(steps.shape)}")
    _check(function, theta, steps)
    expect("dtypes", dtypes, Sequence, "a list of precisions, such as torch.float32")
    if not dtypes or not all(isinstance(dtype, torch.dtype) and dtype.is_floating_point for dtype in dtypes):
        raise ValueError(f"dtypes must be floating-point precisions such as torch.float32, got {dtypes!r}")
    if reference is not None and real_tensor("reference", reference).shape != theta.shape:
        raise ValueError(f"reference has shape {list(reference.shape)}, expected that of theta, {list(theta.shape)}")
    p = len(theta)
    theta = theta.detach().to(max(dtypes, key=lambda dtype: torch.finfo(dtype).eps)).double()
    value, gradient = _value_and_gradient(function, torch.float64)
    exact = gradient(theta)
    truth = exact if reference is None else reference.detach().to(exact)
    norm = float(truth.norm())
    if not 0 < norm < math.inf:
        raise ValueError(f"the gradient at theta has norm {norm:g}: choose a point where it is finite and not zero")

    def relative(estimate: Tensor) -> float:
        return float((estimate - truth).norm()) / norm

    second, third = _diagonal_derivatives(gradient, theta, exact)
    size, shift = abs(value(theta)), (theta * exact.to(theta)).abs()
    errors = np.empty((len(KINDS), len(dtypes), len(steps)))
    autograd, rounding = np.empty(len(dtypes)), np.empty((len(KINDS), len(dtypes)))
    n_done = 0
    for d, dtype in enumerate(dtypes):
        value, gradient = _value_and_gradient(function, dtype)
        point, unit = theta.to(dtype), torch.finfo(dtype).eps / 2
        is_truth = reference is None and dtype == torch.float64
        autograd[d] = math.nan if is_truth else relative(gradient(point))
        rounding[:, d] = [unit * float((n * size + shift).norm()) / norm for n in (2, 1)]
        for k, kind in enumerate(KINDS):
            for s, h in enumerate(steps):
                errors[k, d, s] = relative(_quotients(value, point, float(h), kind).to(truth))
                n_done += 1
                report(n_done / errors.size)
    return GradientErrors(
        steps=steps,
        dtypes=tuple(str(dtype).removeprefix("torch.") for dtype in dtypes),
        errors=errors,
        autograd=autograd,
        truncation=np.array([second / 2, third / 6]) / norm,
        rounding=rounding,
        calls=np.array([p + 1, 2 * p]),
    )


def _check(function: Function, theta: Tensor, steps: Iterable[float]) -> None:
    if not callable(function) and not isinstance(function, Objective):
        raise TypeError(f"expected an Objective or a function from theta to a number, got {type(function).__name__}")
    if real_tensor("theta", theta).ndim != 1 or not len(theta):
        raise ValueError(f"theta must be a vector [p], got shape {list(theta.shape)}")
    for h in steps:
        real_number("the step h", h, above=0)


def _quotients(value: Callable[[Tensor], float], theta: Tensor, h: float, kind: str) -> Tensor:
    quotients = torch.empty(len(theta), dtype=torch.float64)
    point = theta.detach().clone()
    at_theta = value(point) if kind == "forward" else math.nan
    for i, entry in enumerate(theta.detach()):
        point[i] = entry + h
        above = value(point)
        if kind == "forward":
            quotients[i] = (above - at_theta) / h
        else:
            point[i] = entry - h
            quotients[i] = (above - value(point)) / (2 * h)
        point[i] = entry
    return quotients


def _diagonal_derivatives(gradient: Callable[[Tensor], Tensor], theta: Tensor, at_theta: Tensor) -> tuple[float, float]:
    """Return the norms over i of the second and third derivatives along `e_i`."""
    h = _SECOND_DIFFERENCE
    second, third = torch.empty_like(theta), torch.empty_like(theta)
    point = theta.clone()
    for i, entry in enumerate(theta):
        point[i] = entry + h
        above = gradient(point)[i]
        point[i] = entry - h
        below = gradient(point)[i]
        point[i] = entry
        second[i] = (above - below) / (2 * h)
        third[i] = (above - 2 * at_theta[i] + below) / h**2
    return float(second.norm()), float(third.norm())


def _value_and_gradient(
    function: Function, dtype: torch.dtype
) -> tuple[Callable[[Tensor], float], Callable[[Tensor], Tensor]]:
    """Return f as a number and its gradient by automatic differentiation, computed in a precision."""
    if isinstance(function, Objective):
        objective = function.to(dtype=dtype)
        return lambda theta: objective.evaluate(theta)["loss"], objective.gradient

    def checked(theta: Tensor) -> Tensor:
        result = function(theta)
        if not isinstance(result, Tensor) or result.ndim or result.dtype != theta.dtype:
            found = f"{result.dtype} {list(result.shape)}" if isinstance(result, Tensor) else type(result).__name__
            raise TypeError(f"the function must return a 0-D tensor in the precision of theta, {dtype}, got {found}")
        return result

    def value(theta: Tensor) -> float:
        with torch.no_grad():
            return checked(theta).item()

    def gradient(theta: Tensor) -> Tensor:
        point = theta.detach().clone().requires_grad_()
        return torch.autograd.grad(checked(point), point)[0].double()

    return value, gradient
