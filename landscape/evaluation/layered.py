"""The layered plan: any traceable network, point by point, with exact rewrites of its layers where they match.

- Batch norm with frozen statistics is folded into the convolution before it, at every point:
  `W' = W gamma / sqrt(var + eps)`, `b' = (b - mean) gamma / sqrt(var + eps) + beta`.
- A first convolution or linear layer is affine in the coordinates: its responses to the data under the origin and under
  each direction are computed once for a chunk of samples and a group of points, and a point adds them up.
- Max-pooling with windows that do not overlap is the element-wise maximum of strided views, and comes before a
  non-decreasing activation, which then has less to do.
- Images are laid out `channels_last` where that is faster; on a CPU, convolution, addition and ReLU are one call of
  oneDNN.

Everything else is called as it is.
"""

import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.func import functional_call

from landscape.data import batch_size, split_batch
from landscape.evaluation.graph import module_of
from landscape.evaluation.layers import (
    Layer,
    MaxPool,
    Point,
    can_fuse,
    drop_identities,
    fold_norms,
    fuse,
    mark_first,
    mark_layers,
    rewrite_pools,
    window_views,
)
from landscape.objective import Objective
from landscape.slice import Slice

_CHUNKS = (32, 64, 128, 256, 512, 1024)
_TUNING_SECONDS = 0.4  # for each layout
_GROUP = 16  # points between which the first layer's responses to a chunk are shared
Array = np.ndarray


class Layered:
    """A traceable network with its layers rewritten.

    Args:
        objective: Whose model is called on one tensor.
        slice: Where the points lie.
        traced: The graph of the model; it is rewritten.
        memory: Bytes that the first layer's responses to all data may take; beyond it they are computed again for each
            group of points.
    """

    def __init__(self, objective: Objective, slice: Slice, traced: fx.GraphModule, memory: float) -> None:
        self.objective, self.slice, self.traced = objective, slice, traced
        self.notes: list[str] = []
        model = objective.model
        self._fixed = {
            name: tensor.detach()
            for name, tensor in [*model.named_parameters(), *model.named_buffers()]
            if name not in objective.layout.names
        }
        self._dtypes = {name: tensor.dtype for name, tensor in model.named_parameters()}
        self._first = self._rewrite()
        self._kept: dict[tuple[str, int], list[list[Tensor]]] = {}
        self._keep = False
        if self._first is not None:
            size = self._responses_size()
            self._keep = size <= memory
            kept = "kept" if self._keep else "made anew for each group of points, to save memory"
            self.notes.append(
                f"first layer ({self._first.name}) affine in the coordinates: its responses to the data "
                f"({size / 1e6:.0f} MB) are {kept}"
            )
        self._layers = [node.target for node in traced.graph.nodes if isinstance(node.target, Layer)]
        self._convolutional = any(isinstance(layer.module, nn.Conv2d) for layer in self._layers)
        self.channels_last = self._convolutional
        last: dict[fx.Node, fx.Node] = {}
        for node in traced.graph.nodes:
            last |= dict.fromkeys(node.all_input_nodes, node)
        self._frees: dict[fx.Node, list[fx.Node]] = {}
        for source, node in last.items():
            self._frees.setdefault(node, []).append(source)
        self.group = _GROUP if self._first is not None else 1
        self.chunk: int | None = objective.chunk_size

    def _rewrite(self) -> Layer | None:
        drop_identities(self.traced)
        layers = mark_layers(self.traced)
        if self.objective.batch_norm == "frozen" and (n := fold_norms(self.traced)):
            self.notes.append(f"{n} batch norm(s) folded into convolutions at every point")
        n, n_swapped = rewrite_pools(self.traced)
        if n:
            self.notes.append(f"{n} max-pooling(s) as maxima of views, {n_swapped} of them before the activation")
        first = mark_first(self.traced, layers, self.slice.k)
        if can_fuse(self.objective.device, self.objective.dtype):
            for layer in (node.target for node in layers if isinstance(node.target, Layer)):
                layer.onednn = True
            n_relu, n_sum = fuse(self.traced)
            if n_relu or n_sum:
                self.notes.append(f"{n_relu} convolution(s) fused with ReLU, {n_sum} with addition and ReLU")
        return first

    def values(self, coordinates: Array) -> dict[str, Array]:
        """Evaluate all metrics at coordinates `[m, k]`; returns `[m]` float64 by name."""
        objective = self.objective
        totals = {name: np.zeros(len(coordinates)) for name in objective.metric_names}
        with torch.inference_mode():
            points = [Point(c.tolist(), self._tensors(self.slice.at(c))) for c in coordinates]
            for prefix, batches in objective.splits.items():
                for i, batch in enumerate(batches.chunks(self.chunk)):
                    x, target = split_batch(batch)
                    x = self._laid_out(x)
                    responses = self._kept.get((prefix, i))
                    if responses is None:
                        responses = self._responses(x)
                        if self._keep:
                            self._kept[prefix, i] = responses
                    for j, point in enumerate(points):
                        point.responses = responses
                        output = self._forward(x, point)
                        for name, metric in objective.metrics.items():
                            value, weight = objective.weigh(metric(output, target), batch_size(batch), name)
                            totals[prefix + name][j] += value.item() * weight
        for prefix, batches in objective.splits.items():
            for name in objective.metrics:
                if not (name == "loss" and objective.reduction == "sum"):
                    totals[prefix + name] /= batches.n_samples
        return totals

    def tune(self) -> None:
        """Time layouts and chunk sizes on the real data and keep the fastest."""
        batches, best = self.objective.splits[""], float("inf")
        chosen: tuple[int | None, bool] = (self.chunk, self.channels_last)
        with torch.inference_mode():
            for channels_last in (True, False) if self._convolutional else (False,):
                self.channels_last = channels_last
                begin = time.perf_counter()
                point = Point([0.0] * self.slice.k, self._tensors(self.slice.origin))
                for size in sorted({min(size, batches.n_samples) for size in _CHUNKS}):
                    x, _ = split_batch(next(batches.chunks(size)))
                    x = self._laid_out(x)
                    point.responses = self._responses(x)
                    for _ in range(2):
                        start = time.perf_counter()
                        self._forward(x, point)
                        seconds = time.perf_counter() - start
                        if seconds / size < best:
                            best, chosen = seconds / size, (size, self.channels_last)
                    if time.perf_counter() - begin + 4 * seconds > _TUNING_SECONDS:
                        break
        self.chunk, self.channels_last = chosen
        self._kept.clear()
        if self.channels_last:
            self.notes.append("images laid out channels_last")

    def settings(self) -> dict[str, Any]:
        """Return what was tuned (JSON-able)."""
        return {"chunk_size": self.chunk, "group": self.group, "channels_last": self.channels_last}

    def restore(self, settings: Mapping[str, Any]) -> None:
        """Take over what was tuned before instead of tuning."""
        self.chunk, self.group, self.channels_last = (settings[key] for key in ("chunk_size", "group", "channels_last"))

    def _laid_out(self, x: Tensor) -> Tensor:
        images = self.channels_last and x.ndim == 4
        return x.contiguous(memory_format=torch.channels_last if images else torch.contiguous_format)

    def _forward(self, x: Tensor, point: Point) -> Any:
        """Run the rewritten graph on a chunk of samples."""
        values: dict[fx.Node, Any] = {}
        for node in self.traced.graph.nodes:
            if node.op == "output":
                return fx.node.map_arg(node.args[0], values.__getitem__)
            values[node] = self._run(node, values, x, point)
            for done in self._frees.get(node, ()):
                del values[done]
        raise AssertionError("a graph ends with its output")

    def _run(self, node: fx.Node, values: dict[fx.Node, Any], x: Tensor, point: Point) -> Any:
        if node.op == "placeholder":
            return x
        if node.op == "get_attr":
            return point.tensors[str(node.target)]
        args: Any = fx.node.map_arg(node.args, values.__getitem__)
        kwargs: Any = fx.node.map_arg(node.kwargs, values.__getitem__)
        if node.op == "call_method":
            return getattr(args[0], str(node.target))(*args[1:], **kwargs)
        if callable(node.target):
            return node.target(*((point,) if isinstance(node.target, Layer | MaxPool) else ()), *args, **kwargs)
        module, name = module_of(self.traced, node), str(node.target)
        assert module is not None
        own = [key for key, _ in [*module.named_parameters(), *module.named_buffers()]]
        if not own:
            return module(*args, **kwargs)
        return functional_call(module, {key: point.tensors[f"{name}.{key}"] for key in own}, args, kwargs)

    def _tensors(self, theta: Tensor) -> dict[str, Tensor]:
        """Name the parameters of a point, with batch norms folded into the convolutions."""
        tensors = dict(self._fixed)
        for name, part in self.objective.layout.unflatten(theta).items():
            tensors[name] = part.to(self._dtypes[name])
        for layer in self._layers:
            weight, bias = tensors[f"{layer.name}.weight"], tensors.get(f"{layer.name}.bias")
            if layer.norm is not None:
                norm = self.traced.get_submodule(layer.norm)
                assert isinstance(norm, nn.BatchNorm2d)
                scale = torch.rsqrt(tensors[f"{layer.norm}.running_var"] + norm.eps)
                if norm.affine:
                    scale = scale * tensors[f"{layer.norm}.weight"]
                mean = tensors[f"{layer.norm}.running_mean"]
                bias = (-mean if bias is None else bias - mean) * scale
                if norm.affine:
                    bias = bias + tensors[f"{layer.norm}.bias"]
                weight = weight * scale[:, None, None, None]
                tensors[f"{layer.name}.bias"] = bias
            if weight.ndim == 4 and self.channels_last:
                weight = weight.contiguous(memory_format=torch.channels_last)
            tensors[f"{layer.name}.weight"] = weight
        return tensors

    def _responses_size(self) -> float:
        """Return the bytes of the first layer's responses to all data."""
        x, _ = split_batch(next(self.objective.splits[""].chunks(1)))
        samples = sum(batches.n_samples for batches in self.objective.splits.values())
        with torch.inference_mode():
            self.channels_last = False
            one = self._responses(x)
        return samples / len(x) * sum(tensor.nbytes for place in one for tensor in place)

    def _responses(self, x: Tensor) -> list[list[Tensor]]:
        """Return the first layer's responses to a chunk, see `Point.responses`."""
        layer = self._first
        if layer is None:
            return []
        names = [f"{layer.name}.{part}" for part in ("weight", "bias")]
        at_origin = {**self._fixed, **self.objective.layout.unflatten(self.slice.origin)}
        responses = [layer.apply(x, at_origin[names[0]], at_origin.get(names[1]))]
        for direction in self.slice.directions:
            step = self.objective.layout.unflatten(direction)
            weight = step.get(names[0])
            if weight is None:
                weight = torch.zeros_like(at_origin[names[0]])
            responses.append(layer.apply(x, weight, step.get(names[1])))
        if layer.pool == 1:
            return [responses]
        places = zip(*(window_views(response, layer.pool) for response in responses), strict=True)
        return [[self._laid_out(view) for view in place] for place in places]
