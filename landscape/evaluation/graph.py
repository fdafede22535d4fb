"""The graph of a network's forward pass, as far as the fast plans can use it."""

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional as F

ELEMENTWISE_MODULES = (
    nn.Tanh, nn.Sigmoid, nn.ReLU, nn.GELU, nn.SiLU, nn.ELU, nn.LeakyReLU, nn.Softplus, nn.Hardtanh, nn.ReLU6, nn.Mish,
    nn.SELU, nn.CELU, nn.Softsign, nn.Hardswish, nn.Hardsigmoid, nn.LogSigmoid, nn.Tanhshrink, nn.Softshrink,
)  # fmt: skip
ELEMENTWISE_FUNCTIONS = {
    torch.tanh, torch.relu, torch.sigmoid, torch.sin, torch.cos, torch.exp, torch.abs, torch.square, torch.sign,
    torch.clamp, torch.where, torch.maximum, torch.minimum, torch.add, torch.sub, torch.mul, torch.div, torch.neg,
    torch.isnan, torch.erf, F.tanh, F.sigmoid,
    F.relu, F.gelu, F.silu, F.elu, F.leaky_relu, F.softplus, F.hardtanh, F.relu6, F.mish, F.selu, F.celu, F.softsign,
    F.hardswish, F.hardsigmoid, F.logsigmoid, operator.add, operator.sub, operator.mul, operator.truediv, operator.neg,
}  # fmt: skip
ELEMENTWISE_METHODS = {
    "tanh", "relu", "sigmoid", "sin", "cos", "exp", "abs", "square", "sign", "clamp", "isnan", "add", "sub", "mul",
    "div", "neg", "erf", "maximum", "minimum",
}  # fmt: skip
_IDENTITIES = (nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout)
# max(f(a), f(b)) = f(max(a, b)) for these, so that a pooling may come first and leave them less to do
_RISING = (nn.Tanh, nn.Sigmoid, nn.ReLU, nn.Softplus, nn.Hardtanh, nn.ReLU6, nn.LeakyReLU)
_RISING_FUNCTIONS = {torch.tanh, torch.relu, torch.sigmoid, F.relu, F.tanh, F.sigmoid, F.hardtanh, F.relu6}
_RISING_METHODS = {"tanh", "relu", "sigmoid"}


class NotTraceableError(Exception):
    """The forward pass cannot be written as a graph; the text says why."""


class _Graph(fx.GraphModule):
    """A graph that is walked, not called."""

    def recompile(self) -> Any:
        """Make no code: torch would keep its source for ever, some 10 kB for every graph of a small network."""


def trace(model: nn.Module) -> fx.GraphModule:
    """Write the forward pass of a network as a graph of modules, functions and methods.

    Args:
        model: In evaluation mode.

    Raises:
        NotTraceableError: It depends on values, takes several inputs, or has hooks, which a graph does not run.
    """
    if any(_has_hooks(module) for module in model.modules()):
        raise NotTraceableError("a module has hooks")
    try:
        tracer = fx.Tracer()
        traced = _Graph(model, tracer.trace(model))
    except Exception as error:  # tracing runs the model's own code, which may fail in any way
        raise NotTraceableError(" ".join(str(error).split())[:120] or type(error).__name__) from error
    inputs = [node for node in traced.graph.nodes if node.op == "placeholder"]
    if sum(1 for node in inputs if node.users) != 1 or not inputs[0].users:
        raise NotTraceableError(f"it takes {len(inputs)} inputs")
    for node in traced.graph.nodes:
        if node.op == "get_attr" and node.target not in dict(model.named_parameters()) | dict(model.named_buffers()):
            raise NotTraceableError(f"it uses {node.target}, which is neither parameter nor buffer")
    return traced


def module_of(traced: fx.GraphModule, node: fx.Node) -> nn.Module | None:
    """Return the module that a node calls, None if it calls none."""
    return traced.get_submodule(str(node.target)) if node.op == "call_module" else None


def is_identity(traced: fx.GraphModule, node: fx.Node) -> bool:
    """Tell whether a node returns its input in evaluation mode."""
    if node.op == "call_function":
        return node.target in (F.dropout, F.dropout2d) and node.kwargs.get("training") is False
    return isinstance(module_of(traced, node), _IDENTITIES)


def is_elementwise(traced: fx.GraphModule, node: fx.Node) -> bool:
    """Tell whether a node computes each entry from the entries at the same place, whatever the layout."""
    if node.kwargs.get("out") is not None:
        return False
    return {
        "call_module": lambda: isinstance(module_of(traced, node), ELEMENTWISE_MODULES),
        "call_function": lambda: node.target in ELEMENTWISE_FUNCTIONS,
        "call_method": lambda: node.target in ELEMENTWISE_METHODS,
    }.get(node.op, lambda: False)()


def is_rising(traced: fx.GraphModule, node: fx.Node) -> bool:
    """Tell whether a node is a non-decreasing function of one value, entry by entry."""
    if len(node.all_input_nodes) != 1:
        return False
    return {
        "call_module": lambda: isinstance(module_of(traced, node), _RISING),
        "call_function": lambda: node.target in _RISING_FUNCTIONS,
        "call_method": lambda: node.target in _RISING_METHODS,
    }.get(node.op, lambda: False)()


def is_flatten(traced: fx.GraphModule, node: fx.Node) -> bool:
    """Tell whether a node flattens everything but the samples: `flatten(x, 1)`, `x.view(len, -1)`, `reshape` alike."""
    module = module_of(traced, node)
    if module is not None:
        return isinstance(module, nn.Flatten) and (module.start_dim, module.end_dim) == (1, -1)
    arguments: list[Any] = list(node.args[1:])
    named = dict(node.kwargs)
    if node.target in (torch.flatten, "flatten"):
        start = arguments[0] if arguments else named.pop("start_dim", 0)
        end = arguments[1] if len(arguments) > 1 else named.pop("end_dim", -1)
        return bool((start, end) == (1, -1) and not named)
    if node.target in ("view", "reshape", torch.reshape) and not named:
        sizes = arguments[0] if len(arguments) == 1 and isinstance(arguments[0], tuple | list) else arguments
        return bool(len(sizes) == 2 and sizes[1] == -1 and _is_length(sizes[0], node.args[0]))
    return False


def is_size(node: fx.Node, sizes: set[fx.Node]) -> bool:
    """Tell whether a node is a size of a tensor or made of the sizes known."""
    if node.op == "call_method":
        return node.target == "size"
    if node.target is getattr:
        return node.args[1] == "shape"
    return node.target is operator.getitem and node.args[0] in sizes


def _is_length(size: Any, value: Any) -> bool:
    """Tell whether a size is the number of samples of a value: `x.size(0)`, `x.shape[0]`, `len(x)`."""
    if not isinstance(size, fx.Node):
        return False
    if size.op == "call_method" and size.target == "size":
        return size.args[1:] == (0,)
    if size.target is operator.getitem and size.args[1] == 0 and isinstance(size.args[0], fx.Node):
        shape = size.args[0]
        return (shape.target is getattr and shape.args[1] == "shape") or (
            shape.op == "call_method" and shape.target == "size" and len(shape.args) == 1
        )
    return False


def linear_parameters(traced: fx.GraphModule, node: fx.Node) -> tuple[str, str | None] | None:
    """Return the names of weight and bias of a linear layer, module or function, None for every other node."""
    if isinstance(module := module_of(traced, node), nn.Linear) and type(module).forward is nn.Linear.forward:
        return f"{node.target}.weight", f"{node.target}.bias" if module.bias is not None else None
    if node.target is F.linear:
        given: dict[str, Any] = {**dict(zip(("weight", "bias"), node.args[1:], strict=False)), **node.kwargs}
        weight, bias = given["weight"], given.get("bias")
        if is_attribute(weight) and (bias is None or is_attribute(bias)):
            return str(weight.target), None if bias is None else str(bias.target)
    return None


def is_attribute(node: Any) -> bool:
    """Tell whether a node is a parameter or buffer used by name."""
    return isinstance(node, fx.Node) and node.op == "get_attr"


def in_place_form(traced: fx.GraphModule, node: fx.Node) -> Callable | None:
    """Return the in-place form of a function of one value, for the cheap ones that have one."""
    module = module_of(traced, node)
    for kinds, function in (
        ((nn.Tanh, torch.tanh, F.tanh, "tanh"), torch.tanh_),
        ((nn.ReLU, torch.relu, F.relu, "relu"), torch.relu_),
        ((nn.Sigmoid, torch.sigmoid, F.sigmoid, "sigmoid"), torch.sigmoid_),
    ):
        if node.target in kinds[1:] or (module is not None and type(module) is kinds[0]):
            return function
    return None


def _has_hooks(module: nn.Module) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks)
