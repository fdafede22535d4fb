"""Local gradients: one node of a computational graph, with the three numbers of each of its edges.

The product node of the lecture's blackboard, and the first hidden unit of the small network, written in numbers instead
of tensors: it feeds both classes, so that two shares of the gradient add up. Recipe: Rumelhart, Hinton and Williams
1986, doi:10.1038/323533a0.
"""

import math

import torch
from torch import Tensor

from landscape.backpropagation import computational_graph
from landscape.computation import ComputationalGraph
from landscape.figures import plot_local_gradients
from lecture.computational_graph import blackboard, network
from lecture.setting import Drawn, Setting

TITLE = "Local gradients"
SECONDS = (0.31, 0.2)


def draw(setting: Setting) -> Drawn:
    """Draw both nodes."""
    board, cost = blackboard(), network_in_numbers()
    numbers = {"product node": _edges(board, "f"), "hidden unit": _edges(cost, "h1")}
    unit = cost.nodes[cost.find("h1")]
    shares = [float(edge.product) for edge in cost.out_of("h1")]
    local = float(cost.into("h1")[0].local)
    checks = {
        "each product is local times upstream": all(
            math.isclose(edge["local"] * edge["upstream"], edge["product"], rel_tol=1e-12)
            for edges in numbers.values()
            for edge in edges
        ),
        "the two shares add up to the gradient of the unit": math.isclose(sum(shares), float(unit.gradient)),
        "the unit's local derivative is 1 - h1^2": math.isclose(local, 1 - float(unit.value) ** 2),
    }
    setting.report(1.0)
    first, second = numbers["product node"]
    return Drawn(
        {
            "product": plot_local_gradients(board, "f").update_layout(title_text="Product node f = q z"),
            "unit": plot_local_gradients(cost, "h1").update_layout(title_text="Hidden unit h1 = tanh(a1)"),
        },
        f"A node multiplies the gradient from above by its local derivatives, kept from the forward pass. The product "
        f"node passes {first['local']:g} × {first['upstream']:g} = {first['product']:g} to q and {second['local']:g} × "  # noqa: RUF001
        f"{second['upstream']:g} = {second['product']:g} to z. The hidden unit of the network gets {shares[0]:.3g} and "
        f"{shares[1]:.3g} from the two classes, in sum {float(unit.gradient):.3g}, and passes on {local:.3g} of it: "
        "the slope of tanh.",
        {**numbers, **checks},
    )


def network_in_numbers() -> ComputationalGraph:
    """Return the graph of the network's cost as a function of its twelve parameters, each a number."""
    parameters, (x1, x2), y = network()

    def L(  # noqa: N802
        u11: Tensor, u12: Tensor, u21: Tensor, u22: Tensor, b1: Tensor, b2: Tensor,
        v11: Tensor, v12: Tensor, v21: Tensor, v22: Tensor, c1: Tensor, c2: Tensor,
    ) -> Tensor:  # fmt: skip
        a1 = u11 * x1 + u12 * x2 + b1
        a2 = u21 * x1 + u22 * x2 + b2
        h1 = torch.tanh(a1)
        h2 = torch.tanh(a2)
        s1 = v11 * h1 + v12 * h2 + c1
        s2 = v21 * h1 + v22 * h2 + c2
        return torch.logaddexp(s1, s2) - (s1, s2)[y]

    return computational_graph(L, *torch.cat([p.flatten() for p in parameters]))


def _edges(graph: ComputationalGraph, name: str) -> list[dict[str, float | str]]:
    return [
        {
            "from": graph.nodes[edge.source].label,
            "to": graph.nodes[edge.target].label,
            "local": float(edge.local),
            "upstream": float(graph.nodes[edge.target].gradient),
            "product": float(edge.product),
        }
        for edge in (*graph.into(name), *graph.out_of(name))
    ]
