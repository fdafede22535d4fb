"""Figures as files: self-contained HTML always, PNG and SVG where a browser can draw them."""

import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import plotly.graph_objects as go

from landscape.arguments import expect, file_path, folder_path
from landscape.figures.page import LEFT, RIGHT, equal_frame, figure_page, scenes
from landscape.storage import replacing

FORMATS = ("html", "png", "svg")


def save_figure(
    figure: go.Figure,
    stem: str | os.PathLike,
    formats: Sequence[str] | None = None,
    width: int = 1280,
    height: int = 800,
) -> list[Path]:
    """Write a figure as `stem.html`, `stem.png`, ...

    Args:
        figure: Any plotly figure.
        stem: The path without a suffix.
        formats: Some of `"html"`, `"png"`, `"svg"`. Default: HTML, and images where a browser is found.
        width: Width of the images in pixels; the HTML fills its window.
        height: Height of the images in pixels.

    Returns:
        The files written.

    Raises:
        ValueError: Unknown format.
        RuntimeError: An image was asked for and cannot be drawn here; the message says what to install.

    Example:
        >>> save_figure(plot_contour(surface), "results/plane")  # doctest: +SKIP
    """
    stem = Path(stem)
    return save_figures({stem.name: figure}, stem.parent, formats, width, height)


def save_figures(
    figures: Mapping[str, go.Figure],
    folder: str | os.PathLike,
    formats: Sequence[str] | None = None,
    width: int = 1280,
    height: int = 800,
) -> list[Path]:
    """Write several figures into a folder; their images are drawn by one browser, which is faster than one by one.

    Args:
        figures: By file name without a suffix.
        folder: Created where it is missing.
        formats: As in `save_figure`.
        width: Width of the images in pixels.
        height: Height of the images in pixels.

    Returns:
        The files written, figure by figure.

    Raises:
        ValueError: Unknown format, or a name that is none of a file.
        RuntimeError: An image was asked for and cannot be drawn here; the message says what to install.
    """
    expect("figures", figures, Mapping, "plotly figures by file name")
    for name, figure in figures.items():
        expect(f"figure {name!r}", figure, go.Figure, "a plotly figure")
        if str(name) != Path(str(name)).name:
            raise ValueError(f"a figure is named {name!r}: use the name of a file, without a folder")
    folder = folder_path(folder)
    for name in figures:
        file_path(folder / f"{name}.html")
    missing = browser_missing()
    if formats is None:
        formats = FORMATS if missing is None else ("html",)
    unknown = sorted(set(formats) - set(FORMATS))
    if unknown:
        raise ValueError(f"formats must be some of {', '.join(FORMATS)}, got {', '.join(unknown)}")
    images = [kind for kind in formats if kind != "html"]
    if images and missing is not None:
        raise RuntimeError(missing)
    paths = {(name, kind): Path(folder) / f"{name}.{kind}" for name in figures for kind in formats}
    for (name, kind), path in paths.items():
        if kind == "html":
            with replacing(path) as temporary:
                temporary.write_text(figure_page(figures[name]), encoding="utf-8")
    if images and figures:
        drawings = {key: figures[key[0]] for key in paths if key[1] != "html"}
        for key, content in _draw(drawings, width, height).items():
            with replacing(paths[key]) as temporary:
                temporary.write_bytes(content)
    return list(paths.values())


def browser_missing() -> str | None:
    """Say in one line what PNG and SVG lack on this machine; None where nothing is missing."""
    if find_spec("kaleido") is None:
        return 'no PNG or SVG without kaleido: pip install "landscape[images]"'
    _import_logging_of_kaleido()
    from choreographer.browsers.chromium import Chromium

    if not Chromium.find_browser(skip_local=False):
        return "no PNG or SVG without Chrome or Chromium: apt install chromium, or run plotly_get_chrome"
    return None


def _import_logging_of_kaleido() -> None:
    """Import the module that reads options of its own from the command line, without showing it ours."""
    arguments, sys.argv = sys.argv, sys.argv[:1]
    try:
        import_module("logistro")
    finally:
        sys.argv = arguments


def _draw(figures: Mapping[tuple[str, str], go.Figure], width: int, height: int) -> dict[tuple[str, str], bytes]:
    """Draw figures, by name and format, in one browser."""
    import kaleido

    figures = {key: _fitted(figure, width, height) for key, figure in figures.items()}
    with tempfile.TemporaryDirectory() as folder:
        files = {key: Path(folder) / f"{i}.{key[1]}" for i, key in enumerate(figures)}
        jobs = [
            {
                "fig": figure,
                "path": files[key],
                "opts": {"format": key[1], "width": width, "height": height, "scale": 1},
            }
            for key, figure in figures.items()
        ]
        # MathJax would be fetched from the network
        kaleido.write_fig_from_object_sync(jobs, cancel_on_error=True, kopts={"mathjax": False})
        return {key: file.read_bytes() for key, file in files.items()}


def _fitted(figure: go.Figure, width: int, height: int) -> go.Figure:
    """Return the figure as it suits an image of that size, as `equal_frame` and `_STEP_BACK` do in a window."""
    fitted = go.Figure(figure)
    for name in scenes(fitted):
        scene = fitted.layout[name]
        eye = scene.camera.eye
        (left, right), (low, high) = scene.domain.x or (0, 1), scene.domain.y or (0, 1)
        factor = 1.35 * height * (high - low) / (width * (right - left))
        if eye.x is not None and factor > 1:
            scene.camera.eye = {axis: factor * eye[axis] for axis in "xyz"}
            for axis in (scene.xaxis, scene.yaxis, scene.zaxis):
                axis.update(title_font_size=11, tickfont_size=10)
    frame = equal_frame(figure)
    if frame is not None:
        ratio, beside, below = frame
        spare = max(0, width - beside - (height - below) * ratio)
        fitted.update_layout(margin={"l": LEFT + spare / 2, "r": RIGHT + spare / 2} if spare else {})
    return fitted
