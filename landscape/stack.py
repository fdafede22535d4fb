"""Networks of one architecture as one computation: their parameters stacked, their losses and gradients together."""

import copy
from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate, pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from landscape.data import Batch, batch_size, split_batch
from landscape.objective import Objective
from landscape.program import Program
from landscape.session import loss_and_slope, reduce_loss

# maps of each entry by itself, which do not care how many leading axes there are
_ELEMENTWISE = (
    *(nn.Identity, nn.Tanh, nn.Sigmoid, nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU),
    *(nn.Mish, nn.Softplus, nn.Softsign, nn.Tanhshrink, nn.LogSigmoid, nn.Hardtanh, nn.Hardswish, nn.Hardsigmoid),
)


class Stack:
    """Copies of networks of one architecture, in training.

    Sequences of Flatten, Linear and element-wise activations become batched matrix products, one per layer; any other
    network goes through `torch.func.vmap`. Both are differentiated by autograd: the losses of different networks share
    no parameter, so that the gradient of their sum holds the gradient of each. Samples come first in every product, as
    in a network alone, so that sums are taken in the same order; products with the features first are a quarter faster
    and differ from it in the last digits.

    Args:
        networks: The networks, which stay as they are.
        objective: Of one of them.
        forward: `forward(network, batch) -> output`, or None.
        products: Whether to write the networks as batched products; False: `vmap`.

    Attributes:
        flat: All trained parameters of all networks, for an optimizer that treats every entry by itself.
        parameters: Parameters by name, `[n, ...]`; the trained ones are views of `flat`.
        buffers: Buffers by name, `[n, ...]`.

    Raises:
        ValueError: The networks are no such sequence.
    """

    def __init__(
        self,
        networks: Sequence[nn.Module],
        objective: Objective,
        forward: Callable[[nn.Module, Any], Any] | None = None,
        *,
        products: bool = False,
    ) -> None:
        self.objective = objective
        self.n_networks = len(networks)
        self._program = Program(copy.deepcopy(networks[0]), forward)
        parameters = _stack([dict(network.named_parameters()) for network in networks])
        self.buffers = _stack([dict(network.named_buffers()) for network in networks])
        trained = [name for name, tensor in networks[0].named_parameters() if tensor.requires_grad]
        self.flat = nn.Parameter(torch.cat([parameters[name].flatten() for name in trained]))
        ends = [0, *accumulate(parameters[name].numel() for name in trained)]
        leaves = {
            name: self.flat.detach()[start:stop].view_as(parameters[name]).requires_grad_()
            for name, (start, stop) in zip(trained, pairwise(ends), strict=True)
        }
        self._leaves = list(leaves.values())
        self.parameters = {**parameters, **leaves}
        self._chain = None
        if products:
            self._chain = chain_of(networks[0], self.parameters) if forward is None else None
            if self._chain is None:
                raise ValueError("not a sequence of Flatten, Linear and element-wise activations")

    def differentiate(self, batch: Batch, own: bool) -> Tensor:
        """Compute the loss of each network in training mode, and the gradient into `flat.grad`.

        Buffers are updated as each network would do it.

        Args:
            batch: Tensors `[b, ...]` for all networks, or `[n, b, ...]`.
            own: Whether each network has its own samples.

        Returns:
            `[n]`, detached.
        """
        self._program.train()
        outputs, updated = self._outputs(batch, own, self.buffers)

        def loss(output: Any, part: Batch) -> Tensor:
            return reduce_loss(self.objective.loss(output, split_batch(part)[1]), part, self.objective.reduction)

        target = split_batch(batch)[1]
        if isinstance(target, Tensor) and not own:
            target = target.expand(self.n_networks, *target.shape)
        if found := loss_and_slope(self.objective, outputs, target):
            losses, slope = found
            gradients = torch.autograd.grad(outputs, self._leaves, slope, materialize_grads=True)
        else:
            losses = vmap(loss, in_dims=(0, 0 if own else None))(outputs, batch)
            gradients = torch.autograd.grad(losses.sum(), self._leaves, materialize_grads=True)
        if self.flat.grad is None:
            self.flat.grad = torch.empty_like(self.flat)
        parts = torch.split(self.flat.grad, [leaf.numel() for leaf in self._leaves])
        for part, gradient in zip(parts, gradients, strict=True):
            part.view_as(gradient).copy_(gradient.detach())  # torch 2.4 materializes zeros that require gradients
        for name, buffer in updated.items():
            if buffer.data_ptr() != self.buffers[name].data_ptr():
                self.buffers[name].copy_(buffer)
        return losses.detach()

    def evaluate(self) -> dict[str, Tensor]:
        """Evaluate loss and metrics of each network in evaluation mode, as `Objective.evaluate` does for one.

        Returns:
            `[n]` float64, by `objective.metric_names`.
        """
        self._program.eval()
        objective, values = self.objective, {}
        with torch.no_grad():
            for prefix, batches in objective.splits.items():
                totals = {name: torch.zeros(self.n_networks, dtype=torch.float64) for name in objective.metrics}
                for batch in batches.chunks(objective.chunk_size):
                    buffers = {name: buffer.clone() for name, buffer in self.buffers.items()}  # updated in place
                    outputs, _ = self._outputs(batch, False, buffers)
                    for name, value in vmap(lambda output, batch=batch: self._weighted(output, batch))(outputs).items():
                        totals[name] += value.cpu()
                for name, total in totals.items():
                    is_sum = name == "loss" and objective.reduction == "sum"
                    values[prefix + name] = total if is_sum else total / batches.n_samples
        return values

    def theta(self) -> Tensor:
        """Return the parameters of each network, `[n, p]`, a copy."""
        layout = self.objective.layout
        parts = [self.parameters[name].detach().reshape(self.n_networks, -1) for name in layout.names]
        return torch.cat([part.to(self.objective.origin.dtype) for part in parts], dim=1)

    def network(self, i: int) -> dict[str, Tensor]:
        """Return parameters and buffers of one network by name: views."""
        return {name: tensor.detach()[i] for name, tensor in {**self.parameters, **self.buffers}.items()}

    def gradient(self, i: int) -> Tensor:
        """Return the gradient of one network with respect to its trained parameters, one after another."""
        assert self.flat.grad is not None
        parts = torch.split(self.flat.grad, [leaf.numel() for leaf in self._leaves])
        return torch.cat([part.view(self.n_networks, -1)[i] for part in parts])

    def _outputs(self, batch: Batch, own: bool, buffers: dict[str, Tensor]) -> tuple[Any, dict[str, Tensor]]:
        """Return the outputs `[n, b, ...]` and the buffers after them, which may be those given, changed in place."""
        if self._chain is not None:
            inputs = split_batch(batch)[0]
            return self._chain(inputs if own else inputs.expand(self.n_networks, *inputs.shape)), {}

        def call(parameters: dict[str, Tensor], own_buffers: dict[str, Tensor], part: Batch) -> Any:
            tensors = {f"model.{name}": tensor for name, tensor in {**parameters, **own_buffers}.items()}
            output = functional_call(self._program, tensors, (part,))
            # read again: a module may have put another tensor in the place of its buffer
            return output, {name: tensors[f"model.{name}"].detach() for name in own_buffers}

        return vmap(call, in_dims=(0, 0, 0 if own else None))(self.parameters, buffers, batch)

    def _weighted(self, output: Any, batch: Batch) -> dict[str, Tensor]:
        target, n = split_batch(batch)[1], batch_size(batch)
        values = {}
        for name, metric in self.objective.metrics.items():
            value, weight = self.objective.weigh(metric(output, target), n, name)
            values[name] = value * weight
        return values


def chain_of(network: nn.Module, parameters: Mapping[str, Tensor]) -> Callable[[Tensor], Tensor] | None:
    """Write a sequence of layers as batched products.

    Args:
        network: One of the networks.
        parameters: The stacked parameters of all, by name.

    Returns:
        The function from inputs `[n, b, ...]` to outputs `[n, b, ...]`, in training and in evaluation mode the same;
        None if the network is not a plain sequence of Flatten, Linear, element-wise activations and Dropout(0).
    """
    if type(network) is not nn.Sequential or network._forward_hooks or network._forward_pre_hooks:
        return None
    steps: list[Callable[[Tensor], Tensor]] = []
    for name, layer in network.named_children():
        if layer._forward_hooks or layer._forward_pre_hooks:
            return None
        if type(layer) is nn.Flatten and (layer.start_dim, layer.end_dim) == (1, -1):
            steps.append(lambda x: x.flatten(2))
        elif type(layer) is nn.Linear and f"{name}.weight" in parameters:  # not there where weights are tied
            steps.append(_linear(parameters[f"{name}.weight"], parameters.get(f"{name}.bias")))
        elif type(layer) in _ELEMENTWISE:
            # a copy that is not in place, which would change the data
            steps.append(_out_of_place(layer))
        elif not (type(layer) is nn.Dropout and layer.p == 0):
            return None

    def chain(x: Tensor) -> Tensor:
        for step in steps:
            x = step(x)
        return x

    return chain if steps else None


def forward_size(
    network: nn.Module, objective: Objective, forward: Callable[[nn.Module, Any], Any] | None = None
) -> tuple[float, float]:
    """Measure a forward pass of one network.

    Args:
        network: The network, which stays as it is.
        objective: Of the network.
        forward: `forward(network, batch) -> output`, or None.

    Returns:
        Per sample: the numbers that its layers put out; the multiplications of a convolution, their mean over the
        convolutions, 0 without any.
    """
    probe = copy.deepcopy(network).eval()
    outputs, products = [0], []

    def count(layer: nn.Module, _: Any, output: Any) -> None:
        if isinstance(output, Tensor):
            outputs.append(output.numel())
            if isinstance(layer, nn.modules.conv._ConvNd):
                products.append(output.numel() * layer.weight[0].numel())

    for layer in probe.modules():
        if not next(layer.children(), None):
            layer.register_forward_hook(count)
    batches = objective.splits[""]
    batch = next(batches.chunks(1 if batches.stackable else None))
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        Program(probe, forward)(batch)
    n = batch_size(batch)
    return sum(outputs) / n, sum(products) / len(products) / n if products else 0.0


def _stack(tensors: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    return {name: torch.stack([own[name].detach() for own in tensors]) for name in tensors[0]}


def _linear(weight: Tensor, bias: Tensor | None) -> Callable[[Tensor], Tensor]:
    return lambda x: _Linear.apply(x, weight, bias)


class _Linear(torch.autograd.Function):
    """`[n, b, in]` -> `[n, b, out]`, with the products that autograd takes for one `F.linear`.

    Autograd takes `x^T g` for the gradient of batched weights, and `g^T x` for those of one layer; not on every
    processor do both have the same last digits.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return torch.bmm(x, weight.mT) if bias is None else torch.baddbmm(bias.unsqueeze(1), x, weight.mT)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (g,), (x, weight) = gradients, ctx.saved_tensors
        of_x, of_weight, of_bias = ctx.needs_input_grad
        return (
            torch.bmm(g, weight) if of_x else None,
            torch.bmm(g.mT, x) if of_weight else None,
            g.sum(dim=1) if of_bias else None,
        )


def _out_of_place(layer: nn.Module) -> nn.Module:
    layer = copy.deepcopy(layer)
    if "inplace" in vars(layer):
        vars(layer)["inplace"] = False
    return layer
