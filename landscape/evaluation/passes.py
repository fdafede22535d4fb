"""Rewrite the graph of a network, in this order: each pass puts layers and poolings in the place of what it matches."""

import operator
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional as F

from landscape.evaluation.graph import in_place_form, is_identity, is_rising, linear_parameters, module_of
from landscape.evaluation.layers import Layer, MaxPool, pair

FEW_CHANNELS = 4  # up to so many input channels, a first convolution is cheap to share between points


def drop_identities(traced: fx.GraphModule) -> None:
    """Remove what does nothing: dropout and identities in evaluation mode, slices of everything, padding by nothing."""
    for node in list(traced.graph.nodes):
        if is_identity(traced, node) or _takes_all(node) or (_pads_nothing(node) and not _is_changed(traced, node)):
            _replace(traced, node, node.args[0])


def mark_layers(traced: fx.GraphModule) -> list[fx.Node]:
    """Put a `Layer` in the place of each convolution and linear layer; returns their nodes.

    A module called more than once stays as it is: what follows one call need not follow the other.
    """
    nodes = []
    for node in list(traced.graph.nodes):
        module: Any = module_of(traced, node)
        once = sum(other.op == "call_module" and other.target == node.target for other in traced.graph.nodes) == 1
        convolution = type(module) is nn.Conv2d and module.padding_mode == "zeros" and isinstance(module.padding, tuple)
        if once and (convolution or linear_parameters(traced, node)) and not node.kwargs:
            with traced.graph.inserting_before(node):
                new = _call(traced, node, Layer(str(node.target), module), node.args[0])
            _replace(traced, node, new)
            nodes.append(new)
    return nodes


def fold_norms(traced: fx.GraphModule) -> int:
    """Fold batch norms into the convolutions and linear layers before them; returns how many."""
    n = 0
    for node in list(traced.graph.nodes):
        module: Any = module_of(traced, node)
        if type(module) in (nn.BatchNorm1d, nn.BatchNorm2d) and module.running_mean is not None:
            layer = _layer_used_once(node.args[0])
            if layer is not None and layer.norm is None and len(_shape(node) or ()) == layer.module.weight.ndim:
                layer.norm = str(node.target)
                _replace(traced, node, node.args[0])
                n += 1
    return n


def rewrite_pools(traced: fx.GraphModule) -> tuple[int, int]:
    """Rewrite max-poolings, and put them before a non-decreasing activation; returns how many, and how many moved."""
    n = n_swapped = 0
    for node in list(traced.graph.nodes):
        size = _pool_size(traced, node)
        if size is None:
            continue
        source = node.args[0]
        swap = isinstance(source, fx.Node) and is_rising(traced, source) and len(source.users) == 1
        with traced.graph.inserting_before(node):
            new = _call(traced, node, MaxPool(size), source.args[0] if swap else source)
            if swap:
                new = traced.graph.create_node(source.op, source.target, (new, *source.args[1:]), source.kwargs)
                new.meta = node.meta
        _replace(traced, node, new)
        if swap:
            traced.graph.erase_node(source)
        n, n_swapped = n + 1, n_swapped + swap
    return n, n_swapped


def fuse_sums(traced: fx.GraphModule) -> None:
    """Merge convolutions with the addition of something of the same shape."""
    for node in list(traced.graph.nodes):
        if not _is_sum(node) or _shape(node.args[0]) != _shape(node.args[1]) or _shape(node) is None:
            continue
        terms: Any = node.args
        for term, other in ((terms[1], terms[0]), terms):
            layer = _layer_used_once(term)
            if layer is not None and layer.onednn and not layer.first and len(term.args) == 1 and term is not other:
                with traced.graph.inserting_before(node):
                    new = _call(traced, node, layer, term.args[0], other)
                _replace(traced, node, new)
                traced.graph.erase_node(term)
                break


def fuse_activations(traced: fx.GraphModule) -> None:
    """Merge layers and max-poolings with the ReLU after them, and do other cheap functions in place."""
    for node in list(traced.graph.nodes):
        function = in_place_form(traced, node)
        source: Any = node.args[0] if node.args else None
        if function is None or not _is_own(source) or len(source.users) > 1 or len(node.all_input_nodes) != 1:
            continue
        target = source.target
        relu = function is torch.relu_ and (isinstance(target, MaxPool) or target.onednn or target.first)
        if relu and not target.relu:
            target.relu = True
            _replace(traced, node, source)
        else:
            with traced.graph.inserting_before(node):
                new = traced.graph.create_node("call_function", function, (source,))
            new.meta = node.meta
            _replace(traced, node, new)


def reuse_memory(traced: fx.GraphModule) -> None:
    """Let additions be done in the memory of what is added, where nobody needs that afterwards; allow bounds alike."""
    order = {node: i for i, node in enumerate(traced.graph.nodes)}
    for node in traced.graph.nodes:
        if isinstance(node.target, Layer):
            views = [user for user in node.users if not isinstance(user.target, Layer | MaxPool)]
            node.target.bounds = not any(_is_changed(traced, value) for value in (node, *views))
        if isinstance(node.target, Layer) and len(node.args) == 2:
            x, other = node.args
            # layers return no part of what they see, other nodes may
            users = [user for user in other.users if user is not node]
            early = all(isinstance(user.target, Layer) and order[user] < order[node] for user in users)
            node.target.into_other = _is_own(other) and early and x is not other


def mark_first(traced: fx.GraphModule, layers: list[fx.Node], k: int) -> Layer | None:
    """Find the layer that sees the data and shares its responses between the points of a slice with `k` directions.

    A max-pooling right after it is done with it: its window is cut apart once, and the parts are contiguous.
    """
    for node in layers:
        layer = node.target
        assert isinstance(layer, Layer)
        source = node.args[0]
        if not isinstance(source, fx.Node) or source.op != "placeholder" or layer.norm or len(source.users) != 1:
            continue
        if isinstance(layer.module, nn.Linear):
            layer.first = layer.module.in_features > k + 1
        else:
            layer.first = layer.module.in_channels <= FEW_CHANNELS
        if layer.first:
            after = next(iter(node.users))
            if len(node.users) == 1 and isinstance(after.target, MaxPool):
                layer.pool = after.target.size
                _replace(traced, after, node)
            return layer
    return None


def _call(traced: fx.GraphModule, like: fx.Node, target: Layer | MaxPool, *args: Any) -> fx.Node:
    node = traced.graph.create_node("call_function", target, args, name=type(target).__name__.lower())
    node.meta = like.meta
    return node


def _replace(traced: fx.GraphModule, node: fx.Node, new: Any) -> None:
    node.replace_all_uses_with(new)
    traced.graph.erase_node(node)


def _layer_used_once(node: Any) -> Layer | None:
    if isinstance(node, fx.Node) and isinstance(node.target, Layer) and len(node.users) == 1:
        return node.target
    return None


def _is_own(node: Any) -> bool:
    """Tell whether the memory of a value is its own: not the data, not a parameter, not a view of something else."""
    return isinstance(node, fx.Node) and isinstance(node.target, Layer | MaxPool)


def _shape(node: Any) -> tuple[int, ...] | None:
    """Return the shape of a value for two samples, None for what is no tensor."""
    meta: Any = node.meta.get("tensor_meta") if isinstance(node, fx.Node) else None
    return tuple(meta.shape) if hasattr(meta, "shape") else None


def _takes_all(node: fx.Node) -> bool:
    """Tell whether a node is a slice of everything, such as `x[:, :, ::1, ::1]`."""
    if node.target is not operator.getitem:
        return False
    index = node.args[1] if isinstance(node.args[1], tuple) else (node.args[1],)
    everything = [slice(*parts) for parts in ((None,), (None, None, 1), (0, None), (0, None, 1))]
    return all(isinstance(part, slice) and part in everything for part in index)


def _pads_nothing(node: fx.Node) -> bool:
    if node.target is not F.pad:
        return False
    widths = node.args[1] if len(node.args) > 1 else node.kwargs.get("pad")
    return isinstance(widths, tuple | list) and all(isinstance(width, int) and width == 0 for width in widths)


def _is_changed(traced: fx.GraphModule, node: fx.Node) -> bool:
    """Tell whether a value may be changed in place, which matters where it shares its memory."""
    return any(
        user.target in (operator.iadd, operator.imul, operator.isub)
        or str(user.target).endswith("_")
        or "out" in user.kwargs
        or user.kwargs.get("inplace", False)
        or getattr(module_of(traced, user), "inplace", False)
        for user in node.users
    )


def _is_sum(node: fx.Node) -> bool:
    plain = not node.kwargs and len(node.args) == 2 and all(isinstance(term, fx.Node) for term in node.args)
    return plain and node.target in (operator.add, operator.iadd, torch.add, "add", "add_")


def _pool_size(traced: fx.GraphModule, node: fx.Node) -> int | None:
    """Return the window of a max-pooling that can be rewritten: square, no overlap, no padding."""
    module = module_of(traced, node)
    if type(module) is nn.MaxPool2d:
        options: Any = (module.kernel_size, module.stride, module.padding, module.dilation, module.ceil_mode)
        if module.return_indices:
            return None
    elif node.target in (F.max_pool2d, torch.max_pool2d):
        names = ("kernel_size", "stride", "padding", "dilation", "ceil_mode", "return_indices")
        given: dict[str, Any] = {**dict(zip(names, node.args[1:], strict=False)), **node.kwargs}
        if given.pop("return_indices", False):
            return None
        defaults = {"stride": None, "padding": 0, "dilation": 1, "ceil_mode": False}
        options = tuple({**defaults, **given}.get(name) for name in names[:5])
    else:
        return None
    kernel, stride, padding, dilation, ceil = options
    size = pair(kernel)
    plain = pair(stride or kernel) == size and pair(padding) == (0, 0) and pair(dilation) == (1, 1) and not ceil
    return size[0] if plain and size[0] == size[1] and 1 < size[0] <= 3 else None
