"""Optimizers by name with their defaults, and schedules of the learning rate."""

import inspect
import math
from collections.abc import Callable, Iterable, Mapping
from difflib import get_close_matches
from typing import Any, NamedTuple

import torch
from torch import nn

from landscape.arguments import expect, real_number

Schedule = str | Callable[[float], float]
"""A name (`SCHEDULES`), or a function from the fraction of training done, in [0, 1), to a factor of the rate."""


class Normalized(torch.optim.Optimizer):
    """Step by the same length in every coordinate: `w_j <- w_j - lr * sign(g_j)`.

    This is gradient descent normalized component by component (Watt, Borhani, Katsaggelos, Machine Learning Refined,
    2nd edition 2020, appendix A.3); a coordinate whose derivative is zero stays where it is. It has no state.

    Args:
        params: Parameters to train.
        lr: Length of a step in each coordinate.
        weight_decay: `g_j` is the derivative of the loss plus `weight_decay / 2 * sum_j w_j^2`.
    """

    def __init__(self, params: Iterable[nn.Parameter], lr: float = 0.001, weight_decay: float = 0.0) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay})

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take one step; returns what `closure`, which computes loss and gradients, returns."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        with torch.no_grad():
            for group in self.param_groups:
                for parameter in group["params"]:
                    if parameter.grad is not None:
                        slope = parameter.grad.add(parameter, alpha=group["weight_decay"])
                        parameter.sub_(slope.sign(), alpha=group["lr"])
        return loss


class _Kind(NamedTuple):
    optimizer: type[torch.optim.Optimizer]
    learning_rate: float
    options: dict[str, Any]


_KINDS = {
    "gd": _Kind(torch.optim.SGD, 0.1, {}),
    "normalized": _Kind(Normalized, 0.001, {}),
    "momentum": _Kind(torch.optim.SGD, 0.05, {"momentum": 0.9}),
    "rmsprop": _Kind(torch.optim.RMSprop, 0.001, {}),
    "adam": _Kind(torch.optim.Adam, 0.001, {}),
    "adamw": _Kind(torch.optim.AdamW, 0.001, {}),
    "lbfgs": _Kind(torch.optim.LBFGS, 1.0, {"line_search_fn": "strong_wolfe"}),
}

SCHEDULES: dict[str, Callable[[float], float]] = {
    "constant": lambda fraction: 1.0,
    "linear": lambda fraction: 1.0 - fraction,
    "cosine": lambda fraction: 0.5 * (1.0 + math.cos(math.pi * fraction)),
    "step": lambda fraction: 1.0 if fraction < 0.5 else 0.1 if fraction < 0.75 else 0.01,
}


def names() -> tuple[str, ...]:
    """Return the optimizers that have a name of their own; every class of `torch.optim` goes by its name too."""
    return tuple(_KINDS)


def choose(
    name: str,
    *,
    learning_rate: float | None = None,
    weight_decay: float = 0.0,
    options: Mapping[str, Any] | None = None,
) -> tuple[type[torch.optim.Optimizer], dict[str, Any]]:
    """Look an optimizer up and complete its arguments.

    Args:
        name: One of `names()`, or the name of a class of `torch.optim` such as `"NAdam"`.
        learning_rate: Default: `gd` 0.1, `momentum` 0.05, `lbfgs` 1 (with a strong Wolfe line search), `normalized`,
            `rmsprop`, `adam` and `adamw` 0.001; for a class of `torch.optim` the default of the class.
        weight_decay: The `weight_decay` of the optimizer. It is 0 unless given, whatever the class's own default.
        options: Further arguments of the optimizer's class; they replace defaults such as the momentum 0.9.

    Returns:
        The class and its keyword arguments, to be called as `cls(parameters, **arguments)`.

    Raises:
        ValueError: The name is unknown, the optimizer has no such option or no weight decay, or a number is not valid.
    """
    kind = _KINDS.get(name) or _torch_kind(name)
    valid = [key for key in inspect.signature(kind.optimizer).parameters if key not in ("params", "lr")]
    if options is not None:
        expect("options", options, Mapping, "options of the optimizer by name")
    options = dict(options or {})
    for reserved, argument in (("lr", "learning_rate"), ("weight_decay", "weight_decay")):
        if reserved in options:
            raise ValueError(f"the option {reserved!r} of an optimizer is given as {argument}=")
    for option in options:
        if option not in valid:
            known = ", ".join(key for key in valid if key != "weight_decay") or "none"
            raise ValueError(f"{name} has no option {option!r}; it has: {known}")
    rate = kind.learning_rate if learning_rate is None else learning_rate
    rate = real_number("learning_rate", rate, above=0)
    weight_decay = real_number("weight_decay", weight_decay, 0)
    arguments = {"lr": rate, **kind.options, **options}
    if "weight_decay" in valid:
        arguments["weight_decay"] = weight_decay
    elif weight_decay:
        raise ValueError(
            f"{name} has no weight decay: leave it out and add the penalty to the loss, or take another optimizer"
        )
    return kind.optimizer, arguments


def schedule_function(schedule: Schedule) -> Callable[[float], float]:
    """Return a schedule as a function from the fraction of training done to the factor of the learning rate.

    With `s` in [0, 1): `constant` 1; `linear` 1 - s; `cosine` (1 + cos(pi s)) / 2; `step` 1, from 1/2 on 0.1, from 3/4
    on 0.01.

    Raises:
        ValueError: The name is unknown.
    """
    if callable(schedule):
        for fraction in (0.0, 0.5):
            real_number(f"schedule({fraction:g})", schedule(fraction), 0)
        return schedule
    if schedule not in SCHEDULES:
        raise ValueError(
            f"no schedule {schedule!r}; choose one of {', '.join(SCHEDULES)}, or give a function from the fraction of "
            "training done to a factor"
        )
    return SCHEDULES[schedule]


def _torch_kind(name: str) -> _Kind:
    found = {
        key: value
        for key, value in vars(torch.optim).items()
        if isinstance(value, type) and issubclass(value, torch.optim.Optimizer)
    }
    del found["Optimizer"]
    if name not in found:
        known = [*_KINDS, *found]
        close = get_close_matches(str(name), known, n=1)
        hint = f" (did you mean {close[0]!r}?)" if close else ""
        raise ValueError(f"no optimizer {name!r}{hint}; choose one of {', '.join(known)}")
    return _Kind(found[name], inspect.signature(found[name]).parameters["lr"].default, {})
