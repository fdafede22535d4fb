"""What reaches each layer of the gradient, and where activations have no slope: does training get a signal?"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from landscape.arguments import expect
from landscape.data import batch_size
from landscape.objective import Objective
from landscape.parameters import Selection

ELEMENTWISE = (
    *(nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish, nn.Softplus),
    *(nn.Sigmoid, nn.LogSigmoid, nn.Tanh, nn.Hardtanh, nn.Hardsigmoid, nn.Hardswish, nn.Softsign, nn.Tanhshrink),
    *(nn.Softshrink, nn.Hardshrink, nn.Threshold),
)
"""Activation modules of torch that map each entry by itself."""


@dataclass(frozen=True, eq=False)
class GradientNorms:
    """The size of the gradient in groups of parameters, in the order of the network.

    Attributes:
        names: `l` groups: modules, parameters, or as asked for.
        sizes: `[l]` int64, entries of each.
        norm: `[l]` float64, Euclidean norm.
        zeros: `[l]` float64, share of the entries that are exactly 0.
    """

    names: tuple[str, ...]
    sizes: np.ndarray
    norm: np.ndarray
    zeros: np.ndarray

    @property
    def rms(self) -> np.ndarray:
        """`[l]`, root mean square of the entries, `norm / sqrt(sizes)`: what compares layers of different widths."""
        return self.norm / np.sqrt(self.sizes)


@dataclass(frozen=True, eq=False)
class Slopes:
    """The derivative of an activation at each of its units, over all samples.

    Attributes:
        mean: `[...]` float64, mean of its absolute value; the shape is that of one sample, `[units]` in a dense layer.
        active: `[...]` float64, share of the samples where it is not exactly 0.
    """

    mean: np.ndarray
    active: np.ndarray

    @property
    def dead(self) -> np.ndarray:
        """`[...]` bool, units that pass no gradient back, on any sample."""
        return self.active == 0


def gradient_norms(
    objective: Objective, theta: Tensor | None = None, by: str | Mapping[str, Selection] = "module"
) -> GradientNorms:
    """Compute how large the gradient of the training loss is in each layer.

        norm_l = sqrt(sum_{j in l} g_j^2),    rms_l = norm_l / sqrt(|l|),    g = dL/dtheta

    The gradient is that of `Objective.gradient`: over all training data, with the penalty, computed in the precision of
    the network. In a deep network it can vanish or grow exponentially with the distance from the output (Hochreiter
    1991; Bengio, Simard and Frasconi 1994; Glorot and Bengio 2010).

    Args:
        objective: Network, data and loss.
        theta: `[p]`. Default: the objective's network.
        by: `"module"`: the parameters of each module that has some of its own; `"parameter"`: each by itself; or groups
            by name, as shell patterns of parameter names: `{"front": "conv1.*", "head": ["fc.weight", "fc.bias"]}`.

    Raises:
        ValueError: An unknown `by`, or a group without parameters.
        TypeError: An argument of another type.

    Example:
        >>> norms = gradient_norms(objective)  # doctest: +SKIP
        >>> dict(zip(norms.names, norms.rms))  # doctest: +SKIP
        {'1': 9.9e-15, '3': 6.5e-14, '5': 2.4e-13}
    """
    expect("objective", objective, Objective, "an Objective (network, data and loss)")
    names = objective.layout.names
    if isinstance(by, Mapping):
        for key, patterns in by.items():
            expect(f"by[{key!r}]", patterns, (str, Sequence), "a pattern of parameter names, or several")
            for pattern in patterns:
                expect(f"a pattern of by[{key!r}]", pattern, str, "a text")
        groups = {key: [name for name in names if _matches(name, patterns)] for key, patterns in by.items()}
        if empty := [key for key, members in groups.items() if not members]:
            raise ValueError(f"no parameter in group(s) {', '.join(empty)}; the objective has: {', '.join(names)}")
    elif by in ("module", "parameter"):
        groups = {}
        for name in names:
            groups.setdefault(name.rpartition(".")[0] if by == "module" else name, []).append(name)
    else:
        raise ValueError(f"by must be 'module', 'parameter' or groups of parameters by name, got {by!r}")
    gradient = objective.layout.unflatten(objective.gradient(objective.origin if theta is None else theta))
    parts = [torch.cat([gradient[name].reshape(-1) for name in members]) for members in groups.values()]
    return GradientNorms(
        tuple(groups),
        np.array([part.numel() for part in parts]),
        np.array([float(part.norm()) for part in parts]),
        np.array([float((part == 0).double().mean()) for part in parts]),
    )


def activation_slopes(
    objective: Objective, theta: Tensor | None = None, kinds: tuple[type[nn.Module], ...] = ELEMENTWISE
) -> dict[str, Slopes]:
    """Compute the derivative of every activation at what enters it, over all training data.

    For an activation `y = f(z)`, taken entry by entry, and the entry `z_u(x_i)` of sample i that enters unit u:

        mean_u = 1/n sum_i |f'(z_u(x_i))|,    active_u = 1/n #{i : f'(z_u(x_i)) != 0}

    A unit with `active_u = 0` is dead: no gradient passes it, so that it and the weights that lead to it stay as they
    are. With ReLU that is a unit whose output is 0 on all samples (Maas, Hannun and Ng 2013). `f'` is what autograd
    computes in the precision of the network, so that a sigmoid far from the origin can be dead as well.

    Only modules are seen, not calls such as `F.relu`. A module that is called several times in one pass has an entry
    for each call: `"relu"`, `"relu (2)"`.

    Args:
        objective: Network and data.
        theta: `[p]`. Default: the objective's network.
        kinds: Classes of the modules to look at, which must map each entry by itself.

    Returns:
        By the name of the module, in the order of the calls.

    Raises:
        ValueError: The network has no such module, or what enters one has not the samples on its first axis.
        TypeError: An argument of another type.

    Example:
        >>> slopes = activation_slopes(objective)  # doctest: +SKIP
        >>> {name: slope.dead.mean() for name, slope in slopes.items()}  # doctest: +SKIP
        {'2': 0.02, '4': 0.1}
    """
    expect("objective", objective, Objective, "an Objective (network, data and loss)")
    expect("kinds", kinds, tuple, "a tuple of classes of modules")
    for kind in kinds:
        expect("an entry of kinds", kind, type, "a class of modules")
    modules = {name: module for name, module in objective.model.named_modules() if isinstance(module, kinds)}
    if not modules:
        raise ValueError(
            f"the model has no module of the kinds {', '.join(kind.__name__ for kind in kinds)}: pass kinds=(...), and "
            "write activations as modules, since calls such as F.relu cannot be seen"
        )
    point = objective.origin if theta is None else objective.point(theta)
    sums: dict[str, tuple[Tensor, Tensor]] = {}
    n_calls: Counter[str] = Counter()
    n = 0  # samples of the batch in work

    def look(name: str, module: nn.Module, args: tuple[Any, ...]) -> None:
        n_calls[name] += 1
        key = name if n_calls[name] == 1 else f"{name} ({n_calls[name]})"
        z = args[0].detach()
        if len(z) != n:
            raise ValueError(f"what enters {name} has shape {tuple(z.shape)}: expected {n} samples on the first axis")
        z.requires_grad_()
        # `forward` calls no hooks; a copy, since some activations work in place
        (slope,) = torch.autograd.grad(module.forward(z.clone()).sum(), z)
        new = slope.abs().sum(0, dtype=torch.float64), (slope != 0).sum(0, dtype=torch.float64)
        old = sums.get(key)
        sums[key] = new if old is None else (old[0] + new[0], old[1] + new[1])

    # before the module runs: one that works in place leaves nothing of what entered it
    hooks = [module.register_forward_pre_hook(partial(look, name)) for name, module in modules.items()]
    try:
        with objective.differentiating():
            for batch in objective.chunks():
                n_calls.clear()
                n = batch_size(batch)
                objective.batch_loss(point, batch)
    finally:
        for hook in hooks:
            hook.remove()
    n_samples = objective.splits[""].n_samples
    return {key: Slopes(*((total / n_samples).cpu().numpy() for total in totals)) for key, totals in sums.items()}


def _matches(name: str, patterns: Selection) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in ([patterns] if isinstance(patterns, str) else patterns))
