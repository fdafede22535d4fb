"""The computational graph of a Python function, as reverse-mode differentiation sees it."""

import inspect
from collections.abc import Callable, Iterator
from types import CodeType
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from landscape.computation import ComputationalGraph, Edge, Node

MOST_ENTRIES = 100_000  # of one Jacobian; larger ones take long, and nobody looks at them
_SIGNS = {"add": "+", "sub": "-", "mul": "*", "div": "/", "true_divide": "/", "pow": "**", "matmul": "@"}


def computational_graph(function: Callable[..., Tensor], *inputs: ArrayLike | Tensor) -> ComputationalGraph:
    r"""Run a function, and record what it computes together with all derivatives of the chain rule.

    For an operation :math:`z = g(x_1, x_2, \dots)` and the output `L`, each edge gets the local derivative
    :math:`\partial z / \partial x_i` and the product :math:`\frac{\partial L}{\partial z} \frac{\partial z}{\partial
    x_i}`; each node gets :math:`\partial L / \partial x`, which is the sum of the products of the edges that leave it
    (Rumelhart, Hinton and Williams 1986, doi:10.1038/323533a0). All of them are autograd's own: each operand reaches
    its operation through an identity, so that two uses of one value have derivatives of their own. A local derivative
    of more than `MOST_ENTRIES` entries is left out, its product is not.

    What is one operation is what the function calls: `x * y` or `F.cross_entropy(logits, classes)`. What does not
    contribute to the output is left out. Tensors from outside the function take part too: leaves that require a
    gradient, such as a model's parameters, as inputs, other tensors as constants, both as they are (`model.double()`
    for float64). Their gradients are not accumulated. Names are those of the arguments, of the function's own
    variables, of variables and parameters from outside, and the function's for its output (`"f"` for a lambda).

    Args:
        function: A Python function from tensors to a tensor with one entry.
        inputs: Its arguments: numbers, arrays or tensors. It gets copies in float64 that require a gradient.

    Raises:
        TypeError: `function` is not a Python function, does not take these arguments, or returns no tensor.
        ValueError: The output has not one entry, or does not depend differentiably on anything; the function changes a
            tensor in place; a tensor was computed out of sight.

    Example:
        >>> graph = computational_graph(lambda x, y, z: (x + y) * z, -2, 5, -4)
        >>> [(node.label, float(node.value), float(node.gradient)) for node in graph.nodes]
        [('x', -2.0, -4.0), ('y', 5.0, -4.0), ('z', -4.0, 3.0), ('+', 3.0, -4.0), ('f', -12.0, 1.0)]
    """
    code = getattr(function, "__code__", None)
    if code is None:
        raise TypeError(f"expected a Python function, got {function!r}: wrap it, lambda x: ...")
    arguments = [_real(f"input {i}", value).requires_grad_() for i, value in enumerate(inputs)]
    record = _Record(code, _names_outside(function) | _names_of_arguments(function, arguments))
    for tensor in arguments:
        record.number_of(tensor, "the function")
    with torch.enable_grad(), record:
        output = function(*arguments)
    if not isinstance(output, Tensor):
        raise TypeError(f"the function must return a tensor, it returned {type(output).__name__}")
    if output.numel() != 1:
        raise ValueError(f"the output must have one entry, it has shape {tuple(output.shape)}: sum it, or take one")
    if not output.requires_grad:
        raise ValueError("the output does not depend differentiably on any input")
    return _graph(record, arguments, output, "f" if function.__name__ == "<lambda>" else function.__name__)


def _real(name: str, value: ArrayLike | Tensor) -> Tensor:
    """Return a copy of an input in float64."""
    try:
        tensor = torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"{name} must be a number, an array or a tensor, got {type(value).__name__}") from error
    if tensor.is_complex():
        raise TypeError(f"{name} is {tensor.dtype}, expected real numbers")
    return tensor.detach().to(torch.float64, copy=True)


class _Use(NamedTuple):
    source: int
    target: int
    alias: Tensor | None  # the operand as the operation got it; None for a constant


class _Record(TorchFunctionMode):
    """Records operations that autograd knows of, and hands each operand over as an alias of its own."""

    def __init__(self, code: CodeType, names: dict[int, str]) -> None:
        super().__init__()
        self.tensors: list[Tensor] = []  # kept alive: they are told apart by id
        self.values: list[np.ndarray] = []
        self.operations: list[str] = []
        self.names: list[str] = []
        self.uses: list[_Use] = []
        self._code = code
        self._known = names
        self._numbers: dict[int, int] = {}

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        if not torch.is_grad_enabled():
            return func(*args, **kwargs)
        operands: list[tuple[Tensor, Tensor | None]] = []

        def alias(tensor: Tensor) -> Tensor:
            own = tensor.view_as(tensor) if tensor.requires_grad else None
            operands.append((tensor, own))
            return tensor if own is None else own

        new_args, new_kwargs = _replace(args, alias), _replace(kwargs, alias)
        versions = [tensor._version for tensor, _ in operands]
        result = func(*new_args, **new_kwargs)
        name = _name(func)
        for (tensor, _), version in zip(operands, versions, strict=True):
            if tensor._version != version and tensor.requires_grad:
                raise ValueError(f"{name} changes a tensor in place, which hides its value before: write x = x + y")
        originals = {id(own): tensor for tensor, own in operands if own is not None}
        outputs = [tensor for tensor in _tensors(result) if tensor.requires_grad]
        if not outputs:
            return result
        if any(id(tensor) in originals for tensor in outputs):  # nothing was computed: a conversion to the same type
            return _replace(result, lambda tensor: originals.get(id(tensor), tensor))
        sources = [(self.number_of(tensor, name), own) for tensor, own in operands]
        for tensor in outputs:
            target = self._add(tensor, _sign(name, args, kwargs))
            self.uses += [_Use(source, target, own) for source, own in sources]
        self._read_names()
        return result

    def number_of(self, tensor: Tensor, user: str) -> int:
        """Return a tensor's node; a new one for a leaf or a constant."""
        if id(tensor) not in self._numbers:
            if tensor.requires_grad and not tensor.is_leaf:
                raise ValueError(
                    f"{user} gets a tensor of shape {tuple(tensor.shape)} that was computed out of sight: outside of "
                    "the function, or by a custom torch.autograd.Function; compute it inside, of torch's functions"
                )
            self._add(tensor, "")
        return self._numbers[id(tensor)]

    def _add(self, tensor: Tensor, operation: str) -> int:
        self._numbers[id(tensor)] = len(self.tensors)
        value = tensor.detach().cpu()
        self.tensors.append(tensor)
        self.values.append((value.double() if value.is_floating_point() else value).numpy().copy())
        self.operations.append(operation)
        self.names.append(self._known.get(id(tensor), ""))
        return len(self.tensors) - 1

    def _read_names(self) -> None:
        """Name nodes after the variables of the function that is traced."""
        frame = inspect.currentframe()
        while frame is not None and frame.f_code is not self._code:
            frame = frame.f_back
        for name, value in frame.f_locals.items() if frame is not None else ():
            i = self._numbers.get(id(value))
            if i is not None and not self.names[i]:
                self.names[i] = name


def _graph(record: _Record, arguments: list[Tensor], output: Tensor, name: str) -> ComputationalGraph:
    last = record.number_of(output, "return")
    wanted = {last}
    for use in reversed(record.uses):  # an operation comes after its operands
        if use.target in wanted:
            wanted.add(use.source)
    wanted |= set(range(len(arguments)))
    kept = [*sorted(wanted - {last}), last]
    place = {i: n for n, i in enumerate(kept)}
    active = [i for i in kept if record.tensors[i].requires_grad]
    found = torch.autograd.grad(
        output, [record.tensors[i] for i in active], torch.ones_like(output), retain_graph=True, materialize_grads=True
    )
    gradients = dict(zip(active, found, strict=True))
    nodes = []
    for i in kept:
        gradient = _array(gradients[i]) if i in gradients else None
        label = name if i == last and record.operations[i] else record.names[i]
        nodes.append(Node(label, record.operations[i], record.values[i], gradient))
    edges = []
    for use in record.uses:
        if use.target not in wanted:
            continue
        local = product = None
        if use.alias is not None:
            z = record.tensors[use.target]
            (step,) = torch.autograd.grad(z, use.alias, gradients[use.target], retain_graph=True, allow_unused=True)
            if step is None:  # another of several outputs depends on this operand, this one does not
                continue
            local, product = _jacobian(z, use.alias), _array(step)
        edges.append(Edge(place[use.source], place[use.target], local, product))
    return ComputationalGraph(tuple(nodes), tuple(edges))


def _jacobian(z: Tensor, x: Tensor) -> np.ndarray | None:
    """Return `[*z's shape, *x's shape]`; None if that is too large."""
    if z.numel() * x.numel() > MOST_ENTRIES:
        return None
    rows: list[Tensor] = []
    for i in range(z.numel()):
        basis = torch.zeros_like(z).flatten()
        basis[i] = 1
        rows += torch.autograd.grad(z, x, basis.view_as(z), retain_graph=True)
    return _array(torch.stack(rows).reshape((*z.shape, *x.shape)))


def _array(tensor: Tensor) -> np.ndarray:
    return tensor.detach().cpu().double().numpy()


def _names_outside(function: Callable[..., Tensor]) -> dict[int, str]:
    """Return the names of the tensors around a function by their id: variables, and parameters of modules."""
    outside = inspect.getclosurevars(function)
    names = {}
    for name, value in {**outside.globals, **outside.nonlocals}.items():
        if isinstance(value, Tensor):
            names[id(value)] = name
        elif isinstance(value, nn.Module):
            names.update({id(tensor): key for key, tensor in (*value.named_parameters(), *value.named_buffers())})
    return names


def _names_of_arguments(function: Callable[..., Tensor], arguments: list[Tensor]) -> dict[int, str]:
    try:
        bound = inspect.signature(function).bind(*arguments)
    except TypeError as error:
        name = function.__name__
        raise TypeError(f"{name} takes {inspect.signature(function)}, got {len(arguments)} inputs: {error}") from error
    names = {}
    for name, value in bound.arguments.items():
        if isinstance(value, tuple):
            names.update({id(tensor): f"{name}{i}" for i, tensor in enumerate(value)})
        else:
            names[id(value)] = name
    return names


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _tensors(item)


def _replace(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """Return lists, tuples and dictionaries with their tensors changed."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, list | tuple):
        items = [_replace(item, change) for item in value]
        return items if isinstance(value, list) else tuple(items)
    if isinstance(value, dict):
        return {key: _replace(item, change) for key, item in value.items()}
    return value


def _name(func: Any) -> str:
    """Return what torch calls a function, without the underscores of methods: `"tanh"`, `"T"`, `"rsub"`."""
    name = func.__name__
    return func.__self__.__name__ if name == "__get__" else name.strip("_")


def _sign(name: str, args: tuple, kwargs: dict) -> str:
    """Return an operation's sign, with the operand that is a number: `"*"`, `"* 2"`, `"1 -"`."""
    reverse = name.startswith("r") and name[1:] in _SIGNS
    sign = _SIGNS.get(name[reverse:])
    if sign is None or kwargs or len(args) != 2:
        return name
    if isinstance(args[1], Tensor):
        return sign
    return f"{args[1]:g} {sign}" if reverse else f"{sign} {args[1]:g}"
