"""The layered plan: any traceable network, point by point, with exact rewrites of its layers where they match.

- Batch norm with frozen statistics is folded into the convolution before it, at every point:
  `W' = W gamma / sqrt(var + eps)`, `b' = (b - mean) gamma / sqrt(var + eps) + beta`.
- A first convolution or linear layer is affine in the coordinates: its responses to the data under the origin and under
  each direction are computed once for a chunk of samples and a group of points, and a point adds them up (`stage`).
- Max-pooling with windows that do not overlap is the element-wise maximum of strided views, and comes before a
  non-decreasing activation, which then has less to do.
- Images are laid out `channels_last` where that is faster; on a CPU, convolution, addition and ReLU are one call of
  oneDNN, weights laid out for it once per point, the addition in the memory of what is added.
- Cheap activations are done in place.

Everything else is called as it is.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.func import functional_call
from torch.fx.passes.shape_prop import ShapeProp

from landscape.data import batch_size, split_batch
from landscape.evaluation import stage
from landscape.evaluation.graph import module_of
from landscape.evaluation.layers import Layer, MaxPool, Point, can_fuse, window_views
from landscape.evaluation.passes import (
    drop_identities,
    fold_norms,
    fuse_activations,
    fuse_sums,
    mark_first,
    mark_layers,
    reuse_memory,
    rewrite_pools,
)
from landscape.losses import Metric, accuracy, cross_entropy, is_cross_entropy
from landscape.objective import Objective
from landscape.program import whole_float32
from landscape.slice import Slice

_CHUNKS = {"cpu": (32, 64, 128, 256, 512, 1024), "cuda": (64, 256, 1024, 4096, 16384)}
_TUNING_SECONDS = 0.6  # for each layout
_TURNS = 2
_GROUP = 16  # points between which the first layer's responses to a chunk are shared
_AT_ONCE = 16 << 20  # bytes of the first layer's results that are made at once
_WORTH_COMPILING = 4 << 20  # bytes of responses from which numba pays
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
        self._kept: dict[tuple[str, int], Tensor] = {}
        self._keep = False
        self._memory: Tensor | None = None  # for the first layer's results: fresh pages would cost more than the sums
        self.kernel: str | None = None
        if self._first is not None:
            size = self._responses_size()
            self._keep = size <= memory
            kept = "kept" if self._keep else "made anew for each group of points, to save memory"
            self.notes.append(
                f"first layer ({self._first.name}) affine in the coordinates: its responses to the data "
                f"({size / 1e6:.0f} MB) are {kept}"
            )
            if size >= _WORTH_COMPILING and objective.device.type == "cpu":
                if stage.available():
                    self.kernel = "numba"
                else:
                    self.notes.append("numba would add them up faster: pip install landscape[fast]")
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
        with torch.inference_mode(), whole_float32():
            batches = self.objective.splits[""]
            ShapeProp(self.traced).propagate(split_batch(next(batches.chunks(2 if batches.stackable else None)))[0])
        drop_identities(self.traced)
        layers = mark_layers(self.traced)
        if self.objective.batch_norm == "frozen" and (n := fold_norms(self.traced)):
            self.notes.append(f"{n} batch norm(s) folded into the layers before them at every point")
        n, n_swapped = rewrite_pools(self.traced)
        if n:
            self.notes.append(f"{n} max-pooling(s) as maxima of views, {n_swapped} of them before the activation")
        first = mark_first(self.traced, layers, self.slice.k)
        if can_fuse(self.objective.device, self.objective.dtype):
            for layer in (node.target for node in layers if isinstance(node.target, Layer)):
                layer.onednn = isinstance(layer.module, nn.Conv2d)
            fuse_sums(self.traced)
        fuse_activations(self.traced)
        reuse_memory(self.traced)
        fused = [node for node in self.traced.graph.nodes if isinstance(node.target, Layer) and node.target.onednn]
        n_relu = sum(node.target.relu and not node.target.first and len(node.args) == 1 for node in fused)
        n_both = sum(node.target.relu and len(node.args) == 2 for node in fused)
        n_sum = sum(not node.target.relu and len(node.args) == 2 for node in fused)
        if n_relu or n_both or n_sum:
            alone = f", {n_sum} with addition" if n_sum else ""
            self.notes.append(f"{n_relu} convolution(s) fused with ReLU, {n_both} with addition and ReLU{alone}")
        return first

    def values(self, coordinates: Array) -> dict[str, Array]:
        """Evaluate all metrics at coordinates `[m, k]`; returns `[m]` float64 by name."""
        objective = self.objective
        totals = {name: np.zeros(len(coordinates)) for name in objective.metric_names}
        with torch.inference_mode(), whole_float32():
            points = [self._point(c.tolist(), self._tensors(self.slice.at(c))) for c in coordinates]
            for prefix, batches in objective.splits.items():
                for i, batch in enumerate(batches.chunks(self.chunk)):
                    x, target = split_batch(batch)
                    x = self._laid_out(x)
                    responses = self._kept.get((prefix, i))
                    if responses is None:
                        responses = self._responses(x)
                        if self._keep and responses is not None:
                            self._kept[prefix, i] = responses
                    self._add_metrics(totals, prefix, self._outputs(x, points, responses), target, batch_size(batch))
        for prefix, batches in objective.splits.items():
            for name in objective.metrics:
                if not (name == "loss" and objective.reduction == "sum"):
                    totals[prefix + name] /= batches.n_samples
        return totals

    def _add_metrics(self, totals: dict[str, Array], prefix: str, outputs: Iterator[Any], target: Any, n: int) -> None:
        """Add the metrics of a chunk of `n` samples at each point; those of single samples for all points at once."""
        objective = self.objective
        known = _known_metrics(objective) if self.group > 1 else {}
        logits: list[Tensor] = []
        for j, output in enumerate(outputs):
            if known:
                logits.append(output.clone())  # it may lie in memory that the next points use
            for name in objective.metrics.keys() - known.keys():
                value, weight = objective.weigh(objective.metrics[name](output, target), n, name)
                totals[prefix + name][j] += value.item() * weight
        for name, metric in known.items():
            values = metric(torch.cat(logits), target.repeat(len(logits)))
            totals[prefix + name] += values.reshape(len(logits), n).sum(dim=1, dtype=torch.float64).cpu().numpy()

    def tune(self, fits: Callable[[int, int], bool] = lambda group, chunk: True, n_points: int = 0) -> None:
        """Time layouts and chunk sizes on the real data, in turns, and keep the fastest.

        Args:
            fits: Whether so many points and samples at once are allowed.
            n_points: Of the whole surface, which makes no difference here.
        """
        batches = self.objective.splits[""]
        tried = _CHUNKS.get(self.objective.device.type, _CHUNKS["cpu"])
        sizes = [n for n in sorted({min(size, batches.n_samples) for size in tried}) if fits(self.group, n)]
        if not sizes:
            self.notes.append("not tuned, since trying would take more memory than allowed")
            return
        layouts = (True, False) if self._convolutional else (False,)
        best: dict[tuple[int, bool], float] = {}
        with torch.inference_mode(), whole_float32():
            for turn in range(_TURNS):
                for self.channels_last in layouts:
                    tensors = self._tensors(self.slice.origin)
                    points = [self._point([0.0] * self.slice.k, tensors) for _ in range(min(self.group, 4))]
                    self._time_one(sizes[0], points)  # compiles what is compiled, which must not use up the time
                    begin = time.perf_counter()
                    for size in sizes:
                        if turn and (size, self.channels_last) not in best:
                            break
                        seconds = self._time_one(size, points)
                        key, each = (size, self.channels_last), seconds / size / len(points)
                        best[key] = min(best.get(key, each), each)
                        if time.perf_counter() - begin + 4 * seconds > _TUNING_SECONDS / _TURNS:
                            break
        self.chunk, self.channels_last = min(best, key=best.__getitem__)
        self._kept.clear()
        if self.channels_last:
            self.notes.append("images laid out channels_last")

    def _time_one(self, size: int, points: list[Point]) -> float:
        """Return the seconds that some points take for a chunk, when everything is set up."""
        x, target = split_batch(next(self.objective.splits[""].chunks(size)))
        x = self._laid_out(x)
        responses = self._responses(x)
        seconds = 0.0
        for some in (points[:1], points):  # memory and packed weights are made at the first call
            start = time.perf_counter()
            totals = {name: np.zeros(len(points)) for name in self.objective.metrics}
            self._add_metrics(totals, "", self._outputs(x, some, responses), target, size)
            seconds = time.perf_counter() - start
        return seconds

    def settings(self) -> dict[str, Any]:
        """Return what was tuned (JSON-able)."""
        return {
            "chunk_size": self.chunk,
            "group": self.group,
            "channels_last": self.channels_last,
            "kernel": self.kernel,
        }

    def restore(self, settings: Mapping[str, Any]) -> None:
        """Take over what was tuned before instead of tuning.

        Raises:
            ValueError: It was made with numba, which is not installed.
        """
        self.chunk, self.group, self.channels_last = (settings[key] for key in ("chunk_size", "group", "channels_last"))
        self.kernel = settings.get("kernel")
        if self.kernel is not None and not stage.available():
            raise ValueError(
                f"the surface was begun with compiled code ({self.kernel}), and its digits need it: "
                "pip install landscape[fast]"
            )

    def _laid_out(self, x: Tensor) -> Tensor:
        images = self._has_channels_last(x)
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
                assert isinstance(norm, nn.BatchNorm1d | nn.BatchNorm2d)
                scale = torch.rsqrt(tensors[f"{layer.norm}.running_var"] + norm.eps)
                if norm.affine:
                    scale = scale * tensors[f"{layer.norm}.weight"]
                mean = tensors[f"{layer.norm}.running_mean"]
                bias = (-mean if bias is None else bias - mean) * scale
                if norm.affine:
                    bias = bias + tensors[f"{layer.norm}.bias"]
                weight = weight * scale.reshape(-1, *[1] * (weight.ndim - 1))
                tensors[f"{layer.name}.bias"] = bias
            if weight.ndim == 4 and self.channels_last and not layer.onednn:
                weight = weight.contiguous(memory_format=torch.channels_last)
            tensors[f"{layer.name}.weight"] = weight
        return tensors

    def _responses_size(self) -> float:
        """Return the bytes of the first layer's responses to all data."""
        x, _ = split_batch(next(self.objective.splits[""].chunks(1)))
        samples = sum(batches.n_samples for batches in self.objective.splits.values())
        with torch.inference_mode(), whole_float32():
            self.channels_last = False
            one = self._responses(x)
        assert one is not None
        return samples / len(x) * one.nbytes

    def _responses(self, x: Tensor) -> Tensor | None:
        """Return the first layer's responses to a chunk, see `stage.add_up`, with channels last if images have them."""
        layer = self._first
        if layer is None:
            return None
        names = [f"{layer.name}.{part}" for part in ("weight", "bias")]
        at_origin = {**self._fixed, **self.objective.layout.unflatten(self.slice.origin)}
        responses = [layer.apply(x, at_origin[names[0]], at_origin.get(names[1]))]
        for direction in self.slice.directions:
            step = self.objective.layout.unflatten(direction)
            weight = step.get(names[0])
            if weight is None:
                weight = torch.zeros_like(at_origin[names[0]])
            responses.append(layer.apply(x, weight, step.get(names[1])))
        places = [[response] for response in responses]
        if layer.pool > 1:
            places = [window_views(response, layer.pool) for response in responses]
        if self._has_channels_last(responses[0]):
            places = [[view.permute(0, 2, 3, 1) for view in views] for views in places]
        return torch.stack([torch.stack(views) for views in zip(*places, strict=True)])

    def _outputs(self, x: Tensor, points: list[Point], responses: Tensor | None) -> Iterator[Any]:
        """Yield the network's output for a chunk of samples at each point."""
        layer = self._first
        if layer is None or responses is None:
            for point in points:
                yield self._forward(x, point)
            return
        compiled = self.kernel is not None and stage.can_compile(responses)
        one = responses[0, 0]
        n = max(1, min(len(points), _AT_ONCE // one.nbytes)) if compiled else 1
        if self._memory is None or self._memory.shape[1:] != one.shape or len(self._memory) < n:
            self._memory = one.new_empty(n, *one.shape)
        for start in range(0, len(points), n):
            some = points[start : start + n]
            results = self._memory[: len(some)]
            stage.add_up(responses, [point.coordinates for point in some], results, layer.relu, compiled)
            for point, result in zip(some, results, strict=True):
                point.first = result.permute(0, 3, 1, 2) if self._has_channels_last(result) else result
                yield self._forward(x, point)

    def _point(self, coordinates: list[float], tensors: dict[str, Tensor]) -> Point:
        return Point(coordinates, tensors, compiled=self.kernel is not None)

    def _has_channels_last(self, images: Tensor) -> bool:
        return self.channels_last and images.ndim == 4


def _known_metrics(objective: Objective) -> dict[str, Metric]:
    """Return the metrics that are known to be means over samples, as functions that give one value per sample."""
    known: dict[str, Metric] = {}
    if objective.is_classification and objective.reduction == "mean":
        for name, metric in objective.metrics.items():
            if is_cross_entropy(metric):
                known[name] = cross_entropy
            elif metric is accuracy:
                known[name] = accuracy
    return known
