"""Computational graphs with forward values and gradients: the whole graph, and one node of it."""

from collections.abc import Callable
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import plotly.graph_objects as go

from landscape.computation import ComputationalGraph, Edge, Node
from landscape.figures.grid import number
from landscape.figures.style import INK, PALETTE, escape, new_figure

Array = np.ndarray
FORWARD, BACKWARD = PALETTE[0], PALETTE[1]
MOST_NODES = 30
MOST_EDGES = 8  # of one node
_CONSTANT = "#8a8a8a"
_RADIUS = 24  # pixels, of an operation
_SMALL = 6  # of an input
_FEW, _LARGE, _LETTERS = 6, 16, 14  # a graph of few nodes has room for large letters; pixels
_TYPESET = str.maketrans({"*": "×", "-": "−", "/": "÷"})  # noqa: RUF001


def plot_computational_graph(graph: ComputationalGraph) -> go.Figure:
    """Draw how an output was computed, from left to right, and how its gradient flows back.

    Operations are circles, inputs are dots. Above each stands its value, below it the gradient of the output; on each
    edge of a computation with numbers, the local derivative and the share of the gradient that goes back along it.
    Tensors of more than one entry are shown by shape and Euclidean norm. Layers and crossings are those of Sugiyama,
    Tagawa and Toda 1981 (doi:10.1109/TSMC.1981.4308636).

    Args:
        graph: Of at most `MOST_NODES` nodes.

    Raises:
        ValueError: It has more.
        ImportError: igraph, which finds the layout, is not installed.

    Example:
        >>> plot_computational_graph(computational_graph(lambda x: x * x, 3)).show()  # doctest: +SKIP
    """
    info = _graph_info(graph)
    figure = new_figure("computational graph", info.notes)
    letters = _LARGE if len(graph.nodes) <= _FEW else _LETTERS
    for edge, path in zip(graph.edges, info.paths, strict=True):
        _draw_edge(figure, path, graph, edge)
    _draw_nodes(figure, graph.nodes, info.places, info.gradient_names, letters)
    active = [(edge, path[1]) for edge, path in zip(graph.edges, info.paths, strict=True) if edge.product is not None]
    for edge, place in active if info.scalar else ():
        lines = (_colored(f"× {_text(edge.local)}", FORWARD), _colored(_text(edge.product), BACKWARD))  # noqa: RUF001
        _write(figure, place, "<br>".join(lines), letters)
    _draw_hover(figure, graph, active)
    words = ("value, local derivative", "gradient, its share on an edge") if info.scalar else ("value", "gradient")
    _legend(figure, {f"forward: {words[0]}": FORWARD, f"backward: {words[1]}": BACKWARD})
    _frame(figure, [place for path in info.paths for place in path] + info.places, 4.0)
    return figure


def plot_local_gradients(graph: ComputationalGraph, node: str | int = -1) -> go.Figure:
    """Draw one node with what it gets and what it sends back: local derivative, upstream gradient and their product.

    The products of the edges at the right, from the operations that use the node, add up to its gradient. That is the
    upstream gradient of the edges at the left, to its operands.

    Args:
        graph: Of any size.
        node: Its name, operation or number. Default: the output.

    Raises:
        ValueError: There is no such node, it is a constant, or it has more than `MOST_EDGES` edges on one side.
    """
    info = _local_info(graph, node)
    figure = new_figure(info.title, info.notes)
    middle = (0.0, 0.0)
    for edge, place in info.edges:
        _draw_edge(figure, [place, middle] if place[0] < 0 else [middle, place], graph, edge)
    _draw_nodes(figure, info.nodes, info.places, info.gradient_names, _LETTERS)
    active = [(edge, _label_place(place, len(info.edges))) for edge, place in info.edges if edge.product is not None]
    for edge, place in active:
        numbers = (_local_text(graph, edge, _text), _text(graph.nodes[edge.target].gradient), _text(edge.product))
        signs = ("", "× ", "= ") if info.scalar else ("", "", "")  # noqa: RUF001
        colors = (FORWARD, INK, BACKWARD)
        lines = [_colored(sign + text, color) for sign, text, color in zip(signs, numbers, colors, strict=True)]
        _write(figure, place, "<br>".join(lines), _LETTERS)
    _draw_hover(figure, graph, active)
    words = {
        "forward: value, local derivative": FORWARD,
        "upstream gradient": INK,
        "backward: gradient, product": BACKWARD,
    }
    _legend(figure, words)
    _frame(figure, info.places, 2.8)
    return figure


class _GraphInfo(NamedTuple):
    places: list[tuple[float, float]]  # of the nodes
    paths: list[list[tuple[float, float]]]  # of the edges: its source, a point for its label, more, its target
    gradient_names: list[str]
    scalar: bool  # all values are numbers
    notes: tuple[str, ...]


class _LocalInfo(NamedTuple):
    title: str
    nodes: list[Node]  # the node itself, its operands, those that use it
    places: list[tuple[float, float]]
    gradient_names: list[str]
    edges: list[tuple[Edge, tuple[float, float]]]  # with the place of the node at the other end
    scalar: bool
    notes: tuple[str, ...]


def _graph_info(graph: ComputationalGraph) -> _GraphInfo:
    n = len(graph.nodes)
    if n > MOST_NODES:
        raise ValueError(f"the graph has {n} nodes, at most {MOST_NODES} can be drawn: plot_local_gradients shows one")
    layers = _layers(graph)
    wide = max(layers) > 2  # no room for more than the gradient's number
    scalar = all(node.value.size == 1 for node in graph.nodes)
    places, paths = _layout(graph, layers, bend=0.5 if scalar else 0.35)
    notes = () if scalar else ("tensors by shape and norm ‖·‖",)
    return _GraphInfo(
        places=places,
        paths=paths,
        gradient_names=["" if wide else _derivative(graph, node) for node in graph.nodes],
        scalar=scalar,
        notes=notes,
    )


def _local_info(graph: ComputationalGraph, node: str | int) -> _LocalInfo:
    i = graph.find(node)
    center = graph.nodes[i]
    if center.gradient is None:
        raise ValueError(f"{center.label} is a constant: no gradient flows through it")
    sides = {-1.0: graph.into(i), 1.0: graph.out_of(i)}
    nodes, places, edges = [center], [(0.0, 0.0)], []
    for x, side in sides.items():
        if len(side) > MOST_EDGES:
            raise ValueError(f"{center.label} has {len(side)} edges on one side, at most {MOST_EDGES} can be drawn")
        for k, edge in enumerate(side):
            other = graph.nodes[edge.source if x < 0 else edge.target]
            place = (x, (len(side) - 1) / 2 - k)
            nodes.append(other)
            places.append(place)
            edges.append((edge, place))
    notes = []
    scalar = all(node.value.size == 1 for node in nodes)
    if len(sides[1.0]) > 1 and scalar:
        shares = " + ".join(_text(edge.product) for edge in sides[1.0]).replace("+ −", "− ")  # noqa: RUF001
        notes = [f"{_derivative(graph, center) or 'gradient = '}{shares} = {_text(center.gradient)}"]
    if not scalar:
        notes.append("tensors by norm ‖·‖, which do not multiply as they do")
    return _LocalInfo(
        title=f"local gradients of {_title(center)}",
        nodes=nodes,
        places=places,
        gradient_names=[_derivative(graph, item) for item in nodes],
        edges=edges,
        scalar=scalar,
        notes=tuple(notes),
    )


def _layers(graph: ComputationalGraph) -> list[int]:
    """Return each node's column: an operation after its operands, an input just before the first use."""
    layers = [0] * len(graph.nodes)
    for i, node in enumerate(graph.nodes):
        if node.operation:
            layers[i] = 1 + max((layers[edge.source] for edge in graph.into(i)), default=0)
    for i, node in enumerate(graph.nodes):
        uses = [layers[edge.target] for edge in graph.out_of(i)]
        if not node.operation and uses:
            layers[i] = min(uses) - 1
    return layers


def _layout(
    graph: ComputationalGraph, layers: list[int], bend: float
) -> tuple[list[tuple[float, float]], list[list[tuple[float, float]]]]:
    try:
        import igraph
    except ImportError as error:
        raise ImportError('no layout without igraph: pip install "landscape[graph]"') from error
    # a vertex of its own for every edge between two columns: it keeps two uses of one value apart, and room for a label
    columns = [2 * layer for layer in layers]
    x = [float(layer) for layer in layers]
    chains = []
    for edge in graph.edges:
        between = range(columns[edge.source] + 1, columns[edge.target])
        own = range(len(columns), len(columns) + len(between))
        columns += between
        x += [column / 2 + bend - 0.5 for column in between]
        chains.append([edge.source, *own, edge.target])
    links = [pair for chain in chains for pair in pairwise(chain)]
    layout = igraph.Graph(len(columns), links, directed=True).layout_sugiyama(layers=columns, maxiter=1000)
    places = [(column, -float(row)) for column, (row, _) in zip(x, layout.coords, strict=True)]
    return places[: len(layers)], [[places[i] for i in chain] for chain in chains]


def _label_place(place: tuple[float, float], n: int) -> tuple[float, float]:
    """Return where on the way from the middle to a node its edge has its label: further out where edges crowd."""
    share = 0.5 if place[1] == 0 else 0.55 if n <= 4 else 0.7
    return share * place[0], share * place[1]


def _draw_edge(figure: go.Figure, path: list[tuple[float, float]], graph: ComputationalGraph, edge: Edge) -> None:
    """Draw a line through all points, and the head of an arrow at its end."""
    color = _CONSTANT if edge.product is None else INK
    x, y = zip(*path, strict=True)
    figure.add_trace(
        go.Scatter(x=x, y=y, mode="lines", line={"color": color, "width": 1.5}, hoverinfo="skip", showlegend=False)
    )
    figure.add_annotation(
        x=x[-1], y=y[-1], ax=x[-2], ay=y[-2], xref="x", yref="y", axref="x", ayref="y", text="", showarrow=True,
        arrowhead=2, arrowsize=1.1, arrowwidth=1.5, arrowcolor=color, standoff=_size(graph.nodes[edge.target]) + 1,
        startstandoff=_size(graph.nodes[edge.source]) if len(path) == 2 else 0,
    )  # fmt: skip


def _draw_hover(figure: go.Figure, graph: ComputationalGraph, edges: list[tuple[Edge, tuple[float, float]]]) -> None:
    """Let the reader point at edges, at the place of their labels."""
    figure.add_trace(
        go.Scatter(
            x=[place[0] for _, place in edges],
            y=[place[1] for _, place in edges],
            mode="markers",
            marker={"size": 24, "opacity": 0},
            customdata=[_edge_text(graph, edge) for edge, _ in edges],
            hovertemplate="%{customdata}<extra></extra>",
            showlegend=False,
        )
    )


def _draw_nodes(
    figure: go.Figure,
    nodes: tuple[Node, ...] | list[Node],
    places: list[tuple[float, float]],
    gradient_names: list[str],
    letters: int,
) -> None:
    x, y = zip(*places, strict=True)
    figure.add_trace(
        go.Scatter(
            x=x,
            y=y,
            mode="markers+text",
            text=[_inside(node) for node in nodes],
            textfont={"size": [20 if len(_inside(node)) == 1 else 12 for node in nodes]},
            marker={
                "size": [2 * _size(node) for node in nodes],
                "color": ["white" if node.operation else _color(node) for node in nodes],
                "line": {"color": [_color(node) for node in nodes], "width": 1.5},
                "opacity": 1,
            },
            customdata=[_node_text(node) for node in nodes],
            hovertemplate="%{customdata}<extra></extra>",
            cliponaxis=False,
            showlegend=False,
        )
    )
    for node, place, gradient_name in zip(nodes, places, gradient_names, strict=True):
        shift = _size(node) + 2
        head = f"{escape(node.name)} = " if node.name else ""
        if node.value.size > 1:
            head = f"{escape(node.name)} ({'×'.join(map(str, node.value.shape))})<br>"  # noqa: RUF001
        light = "rgba(255,255,255,0.7)"  # hides no arrow
        text = _colored(head + _text(node.value), _color(node, FORWARD))
        _write(figure, place, text, letters, light, yshift=shift, yanchor="bottom")
        if node.gradient is not None:
            text = _colored(escape(gradient_name) + _text(node.gradient), BACKWARD)
            _write(figure, place, text, letters, light, yshift=-shift, yanchor="top")


def _write(
    figure: go.Figure,
    place: tuple[float, float],
    text: str,
    letters: int,
    background: str = "white",
    **where: object,
) -> None:
    figure.add_annotation(
        x=place[0], y=place[1], text=text, showarrow=False, font={"size": letters}, bgcolor=background,
        borderpad=1, **where,
    )  # fmt: skip


def _legend(figure: go.Figure, words: dict[str, str]) -> None:
    for name, color in words.items():
        marker = {"color": color, "size": 12, "symbol": "square"}
        figure.add_trace(go.Scatter(x=[None], y=[None], mode="markers", name=name, marker=marker))


def _frame(figure: go.Figure, places: list[tuple[float, float]], least: float) -> None:
    """Set the axes; the height is at least so many rows, so that few rows are not drawn far apart."""
    x, y = np.array(places).T
    figure.update_xaxes(visible=False, range=[x.min() - 0.4, x.max() + 0.4], fixedrange=True)
    middle, half = (y.min() + y.max()) / 2, max((y.max() - y.min() + 1.4) / 2, least / 2)
    figure.update_yaxes(visible=False, range=[middle - half, middle + half], fixedrange=True)


def _size(node: Node) -> int:
    return _RADIUS if node.operation else _SMALL


def _color(node: Node, color: str = INK) -> str:
    return _CONSTANT if node.gradient is None else color


def _typeset(operation: str) -> str:
    """Return a sign as it is written, a name as it is."""
    return operation if operation.isidentifier() else operation.replace("**", "^").translate(_TYPESET)


def _inside(node: Node) -> str:
    """Return an operation's sign or name, in lines short enough for a circle."""
    lines = [part if len(part) <= 8 else part[:7] + "…" for part in _typeset(node.operation).split("_")]
    return "<br>".join(map(escape, lines))


def _title(node: Node) -> str:
    return f"{node.name} ({_typeset(node.operation)})" if node.name and node.operation else _typeset(node.label)


def _derivative(graph: ComputationalGraph, node: Node) -> str:
    name = graph.output.name
    return f"∂{name}/∂{node.name} = " if name and node.name else ""


def _colored(text: str, color: str) -> str:
    return f'<span style="color:{color}">{text}</span>'


def _text(value: Array | None) -> str:
    """Return a number, or the norm of a tensor."""
    assert value is not None
    if value.size == 1:
        return number(float(value.item())).replace("-", "−")  # noqa: RUF001
    return f"‖{number(float(np.linalg.norm(value)))}‖"


def _node_text(node: Node) -> str:
    lines = [f"<b>{escape(_title(node))}</b>", f"value: {_entries(node.value)}"]
    if node.gradient is not None:
        lines.append(f"gradient: {_entries(node.gradient)}")
    return "<br>".join(lines)


def _edge_text(graph: ComputationalGraph, edge: Edge) -> str:
    source, target = graph.nodes[edge.source], graph.nodes[edge.target]
    return (
        f"<b>{escape(_title(source))} to {escape(_title(target))}</b><br>local: {_local_text(graph, edge, _entries)}"
        f"<br>upstream: {_entries(target.gradient)}<br>product: {_entries(edge.product)}"
    )


def _local_text(graph: ComputationalGraph, edge: Edge, text: Callable[[Array], str]) -> str:
    """Return a local derivative as text, or its size if it is too large to be known."""
    if edge.local is not None:
        return text(edge.local)
    return f"{graph.nodes[edge.target].value.size} × {graph.nodes[edge.source].value.size}"  # noqa: RUF001


def _entries(value: Array | None) -> str:
    """Return all entries of a small tensor, shape and norm of a larger one."""
    assert value is not None
    if value.size > 16:
        return f"{' × '.join(map(str, value.shape))}, norm {number(float(np.linalg.norm(value)))}"  # noqa: RUF001
    return (
        _text(value) if value.size == 1 else np.array2string(value, precision=4, separator=", ").replace("\n", "<br>")
    )
