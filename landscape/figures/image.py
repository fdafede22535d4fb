"""Figures as files: self-contained HTML always, PNG and SVG where a browser can draw them."""

import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from html import escape, unescape
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import plotly.graph_objects as go
import plotly.io as pio
from plotly.offline import get_plotlyjs

from landscape.storage import replacing

FORMATS = ("html", "png", "svg")
_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<title>{title}</title>
<link rel="icon" href="data:,">
<style>
/* without a pointer the buttons stay, and on a phone they would lie on the title */
@media (max-width: 600px) {{ .modebar {{ display: none; }} }}
{style}
</style>
<script>{script}</script>
</head>
<body>
{body}
</body>
</html>
"""
# the browser itself sees to it that nothing is fetched
_POLICY = (
    "default-src 'none'; script-src 'unsafe-inline' 'unsafe-eval'; style-src 'unsafe-inline'; "
    "img-src data: blob:; font-src data:"
)
_STYLE = """:root { --figure-height: 100vh; }
body { margin: 0; background: #fff; }
.figure { height: var(--figure-height); margin: 0 auto; }"""
# in a narrow window the camera steps back and letters shrink, so that the whole scene stays in view
_STEP_BACK = """{
  const plot = document.getElementById("{plot_id}");
  const factor = 1.35 * plot.clientHeight / plot.clientWidth;
  if (factor > 1) {
    const eye = plot.layout.scene.camera.eye;
    const update = {"scene.camera.eye": {x: factor * eye.x, y: factor * eye.y, z: factor * eye.z}};
    for (const axis of ["x", "y", "z"]) {
      update[`scene.${axis}axis.title.font.size`] = 11;
      update[`scene.${axis}axis.tickfont.size`] = 10;
    }
    Plotly.relayout(plot, update);
  }
}"""
_LEFT, _RIGHT, _BELOW = 65, 110, 95  # pixels: axis ticks and title, color bar, ticks, title and legend


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
        ValueError: Unknown format.
        RuntimeError: An image was asked for and cannot be drawn here; the message says what to install.
    """
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
                temporary.write_text(_figure_page(figures[name]), encoding="utf-8")
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


def figure_html(figure: go.Figure, div_id: str) -> str:
    """Return a figure as a `<div class="figure">` with a script.

    Args:
        figure: Any plotly figure.
        div_id: Unique on the page.

    Returns:
        HTML for a page that holds plotly.js and whose CSS gives `.figure` the height `--figure-height`.
    """
    content = pio.to_html(
        figure,
        full_html=False,
        include_plotlyjs=False,
        include_mathjax=False,
        config={"responsive": True, "displaylogo": False},
        div_id=div_id,
        auto_play=False,
        post_script=_STEP_BACK if figure.layout.scene.camera.eye.x is not None else None,
    )
    frame = _equal_frame(figure)
    style = ""
    if frame is not None:
        ratio, beside, below = frame
        style = f' style="max-width: calc((var(--figure-height) - {below:.0f}px) * {ratio:.4f} + {beside:.0f}px)"'
    return f'<div class="figure"{style}>{content}</div>'


def _equal_frame(figure: go.Figure) -> tuple[float, float, float] | None:
    """Return how wide a figure of equally scaled axes has to be, so that the color bar is not far from the contours.

    Returns:
        Width over height of the axes, and the pixels needed beside, and above and below them; None for a figure that
        can have any shape.
    """
    layout = figure.layout
    if not layout.yaxis.scaleanchor or "xaxis2" in layout or not layout.xaxis.range or not layout.yaxis.range:
        return None
    (x0, x1), (y0, y1) = layout.xaxis.range, layout.yaxis.range
    top = layout.margin.t or 0
    return (x1 - x0) / (y1 - y0), _LEFT + _RIGHT, top + (layout.margin.b or _BELOW)


def page_html(title: str, style: str, body: str) -> str:
    """Return a whole page that holds plotly.js and needs nothing else.

    Args:
        title: Plain text.
        style: CSS.
        body: HTML, with figures by `figure_html`.
    """
    return _PAGE.format(title=escape(title), policy=_POLICY, style=style, script=get_plotlyjs(), body=body)


def _figure_page(figure: go.Figure) -> str:
    title = unescape(figure.layout.title.text or "figure")
    return page_html(title, _STYLE, figure_html(figure, "figure"))


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
    """Return the figure as it suits an image of that size: see `_equal_frame` and `_STEP_BACK`."""
    fitted = go.Figure(figure)
    eye = fitted.layout.scene.camera.eye
    factor = 1.35 * height / width
    if eye.x is not None and factor > 1:
        fitted.update_layout(scene_camera_eye={axis: factor * eye[axis] for axis in "xyz"})
        for axis in (fitted.layout.scene.xaxis, fitted.layout.scene.yaxis, fitted.layout.scene.zaxis):
            axis.update(title_font_size=11, tickfont_size=10)
    frame = _equal_frame(figure)
    if frame is not None:
        ratio, beside, below = frame
        spare = max(0, width - beside - (height - below) * ratio)
        fitted.update_layout(margin={"l": _LEFT + spare / 2, "r": _RIGHT + spare / 2} if spare else {})
    return fitted
