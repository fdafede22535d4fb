"""Computational graphs as results: values, gradients and local derivatives, read without torch.

A node is an input, a constant or what one operation returned; an edge leads from an operand to the operation. With `L`
the output and `z = g(x, y)` an operation, the edge from `x` multiplies the gradient from above, `dL/dz`, by its local
derivative `dz/dx`; the products of all edges that leave a node add up to its gradient (Rumelhart, Hinton and Williams
1986, doi:10.1038/323533a0).
"""

from dataclasses import dataclass

import numpy as np

Array = np.ndarray


@dataclass(frozen=True, eq=False)
class Node:
    """One value of a computation.

    Attributes:
        name: Of the variable that held it; empty if none did.
        operation: What computed it: `"tanh"`, or a sign such as `"*"`; empty for inputs and constants.
        value: float64 of any shape, from the forward pass; classes and other whole numbers as they are.
        gradient: Of the output with respect to the value, in its shape; None for a constant.
    """

    name: str
    operation: str
    value: Array
    gradient: Array | None

    @property
    def label(self) -> str:
        """The name, else the operation, else what kind of leaf it is."""
        return self.name or self.operation or ("constant" if self.gradient is None else "input")


@dataclass(frozen=True, eq=False)
class Edge:
    """One use of a value by an operation; a value that is used twice has two.

    Attributes:
        source: Number of the operand's node.
        target: Number of the operation's node.
        local: Jacobian of the operation, `[*target's shape, *source's shape]`; None if it would have more entries than
            anyone looks at, or if the operand is a constant.
        product: Upstream gradient times `local`, in the source's shape: what is added to its gradient; None if the
            operand is a constant.
    """

    source: int
    target: int
    local: Array | None
    product: Array | None


@dataclass(frozen=True, eq=False)
class ComputationalGraph:
    """How an output was computed, and how its gradient flows back.

    Attributes:
        nodes: Each after those that it was computed from; the output last.
        edges: In the order of the operations and of their operands.
    """

    nodes: tuple[Node, ...]
    edges: tuple[Edge, ...]

    @property
    def output(self) -> Node:
        """The last node."""
        return self.nodes[-1]

    def find(self, node: str | int) -> int:
        """Return the number of the node with a name, or else with an operation; a number is returned as it is.

        Raises:
            ValueError: No node or several are called so, or there is no such number.
        """
        n = len(self.nodes)
        if isinstance(node, int):
            if not -n <= node < n:
                raise ValueError(f"there is no node {node}: the graph has {n}")
            return node % n
        for labels in ([item.name for item in self.nodes], [item.operation for item in self.nodes]):
            found = [i for i, label in enumerate(labels) if label == node]
            if len(found) == 1:
                return found[0]
            if found:
                raise ValueError(f"several nodes are called {node!r}: give one of their numbers, {found}")
        raise ValueError(f"no node is called {node!r}; there are {', '.join(item.label for item in self.nodes)}")

    def into(self, node: str | int) -> list[Edge]:
        """Return the edges from a node's operands."""
        i = self.find(node)
        return [edge for edge in self.edges if edge.target == i]

    def out_of(self, node: str | int) -> list[Edge]:
        """Return the edges to the operations that use a node."""
        i = self.find(node)
        return [edge for edge in self.edges if edge.source == i]
