"""The networks we study. Each is built from a name and arguments that JSON can store.

Every family takes inputs `[b, *input_shape]` and returns logits `[b, classes]`. Nothing is done in place, so
that all of them work with `torch.func` and have second derivatives.
"""

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from .arguments import closest, one_of
from .cnn import lenet
from .mlp import mlp
from .recurrent import recurrent
from .resnet import resnet
from .transformer import transformer
from .vgg import vgg

__all__ = ["build", "names"]

FAMILIES: dict[str, Callable[..., nn.Module]] = {
    "mlp": mlp,
    "lenet": lenet,
    "resnet": resnet,
    "vgg": vgg,
    "recurrent": recurrent,
    "transformer": transformer,
}


def names() -> tuple[str, ...]:
    """Return the names that `build` knows."""
    return tuple(FAMILIES)


def build(name: str, *, seed: int | None = None, **arguments: Any) -> nn.Module:
    """Return a freshly initialized network, on the CPU and in the default dtype.

    Args:
        name: one of `names()`.
        seed: seed of the initial weights. With one, the caller's random numbers are left as they were;
            without one, the weights are drawn from them.
        arguments: those of the family's function: numbers, strings, lists, booleans, so that
            `build(name, **json.loads(json.dumps(arguments)))` builds the same network.

    Returns:
        A module in training mode from `[b, *input_shape]` to logits `[b, classes]`.

    Raises:
        ValueError: an unknown name, or an argument outside its range.
        TypeError: an unknown or a missing argument, or one of the wrong type.

    Example:
        >>> network = build("mlp", input_shape=(1, 8, 8), classes=10, seed=0)
    """
    family = FAMILIES[one_of("name", name, names())]
    parameters = inspect.signature(family).parameters
    takes = f"{name} takes " + ", ".join(p.name + default(p) for p in parameters.values())
    for given in arguments:
        if given not in parameters:
            raise TypeError(f"{name} has no argument {given!r}{closest(given, parameters)}; {takes}")
    missing = [key for key, p in parameters.items() if p.default is p.empty and key not in arguments]
    if missing:
        raise TypeError(f"{name} needs {' and '.join(missing)}; {takes}")
    with torch.device("cpu"):
        if seed is None:
            return family(**arguments)
        with torch.random.fork_rng(devices=[]):
            # Not torch.manual_seed, which would seed the generators of all devices as well.
            torch.default_generator.manual_seed(seed)
            return family(**arguments)


def default(parameter: inspect.Parameter) -> str:
    """Return "=value" for a parameter with a default value."""
    return "" if parameter.default is parameter.empty else f"={parameter.default!r}"
