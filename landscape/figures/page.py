"""Figures on self-contained HTML pages."""

import json
from html import escape, unescape

import plotly.graph_objects as go
import plotly.io as pio
from plotly.io.json import to_json_plotly
from plotly.offline import get_plotlyjs

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
_STEP_BACK = """function stepBack(plot) {
  const update = {};
  for (const name of Object.keys(plot.layout).filter((key) => /^scene\\d*$/.test(key))) {
    const scene = plot.layout[name], x = scene.domain?.x ?? [0, 1], y = scene.domain?.y ?? [0, 1];
    const factor = 1.35 * plot.clientHeight * (y[1] - y[0]) / (plot.clientWidth * (x[1] - x[0]));
    if (factor <= 1 || !scene.camera?.eye) continue;
    for (const axis of ["x", "y", "z"]) {
      update[`${name}.camera.eye.${axis}`] = factor * scene.camera.eye[axis];
      update[`${name}.${axis}axis.title.font.size`] = 11;
      update[`${name}.${axis}axis.tickfont.size`] = 10;
    }
  }
  if (Object.keys(update).length) Plotly.relayout(plot, update);
}"""
# a page of many figures opens at once if each is drawn when it comes near; of 3-D scenes a browser keeps some sixteen
# and blanks the oldest, so the farthest is put away, and comes back as its reader left it
_IN_TURN = """const waiting = new Map(), shown = [];
function inTurn(id, figure, config, in3d) {
  waiting.set(document.getElementById(id), {figure, config, in3d, isNew: true});
}
addEventListener("DOMContentLoaded", () => {
  const far = (plot) => Math.abs(plot.getBoundingClientRect().top + plot.clientHeight / 2 - innerHeight / 2);
  const draw = (plot) => {
    const entry = waiting.get(plot);
    if (entry.in3d) shown.push(plot);
    else waiting.delete(plot);
    Plotly.newPlot(plot, {...entry.figure, config: entry.config}).then(() => {
      if (entry.isNew) stepBack(plot);
      entry.isNew = false;
    });
    while (shown.length > MOST) {
      shown.sort((a, b) => far(a) - far(b));
      const gone = shown.pop();
      Object.assign(waiting.get(gone).figure, {data: gone.data, layout: gone.layout});
      Plotly.purge(gone);
    }
  };
  const watch = new IntersectionObserver((entries) => {
    for (const {target: plot, isIntersecting} of entries) {
      if (isIntersecting && waiting.has(plot) && !shown.includes(plot)) draw(plot);
    }
  }, {rootMargin: "50% 0px"});
  for (const plot of waiting.keys()) watch.observe(plot);
  addEventListener("beforeprint", () => [...waiting.keys()].filter((plot) => !waiting.get(plot).in3d).forEach(draw));
});"""
_MOST = 4  # figures with scenes that are drawn at a time, where there are more
_CONFIG = {"responsive": True, "displaylogo": False}
LEFT, RIGHT, _BELOW = 65, 110, 95  # pixels: axis ticks and title, color bar, ticks, title and legend


def scenes(figure: go.Figure) -> list[str]:
    """Return the names of a figure's 3-D scenes, `"scene"`, `"scene2"`, ..."""
    return sorted({trace.scene or "scene" for trace in figure.data if "scene" in trace})


def figure_html(figure: go.Figure, div_id: str, in_turn: bool = False) -> str:
    """Return a figure as a `<div class="figure">` with a script.

    Args:
        figure: Any plotly figure.
        div_id: Unique on the page.
        in_turn: Draw it when the reader comes near, as pages need that have many figures.

    Returns:
        HTML for a page of `page_html`, whose CSS gives `.figure` the height `--figure-height`.
    """
    if in_turn:
        drawing = to_json_plotly(figure.to_plotly_json())  # with the frames of an animation
        given = ", ".join([json.dumps(div_id), drawing, json.dumps(_CONFIG), json.dumps(bool(scenes(figure)))])
        content = (
            f'<div id="{div_id}" class="plotly-graph-div" style="height:100%; width:100%;"></div>'
            f"<script>inTurn({given});</script>"
        )
    else:
        content = pio.to_html(
            figure,
            full_html=False,
            include_plotlyjs=False,
            include_mathjax=False,
            config=_CONFIG,
            div_id=div_id,
            auto_play=False,
            post_script='stepBack(document.getElementById("{plot_id}"));' if scenes(figure) else None,
        )
    frame = equal_frame(figure)
    style = ""
    if frame is not None:
        ratio, beside, below = frame
        style = f' style="max-width: calc((var(--figure-height) - {below:.0f}px) * {ratio:.4f} + {beside:.0f}px)"'
    return f'<div class="figure"{style}>{content}</div>'


def equal_frame(figure: go.Figure) -> tuple[float, float, float] | None:
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
    return (x1 - x0) / (y1 - y0), LEFT + RIGHT, top + (layout.margin.b or _BELOW)


def page_html(title: str, style: str, body: str) -> str:
    """Return a whole page that holds plotly.js and needs nothing else.

    Args:
        title: Plain text.
        style: CSS.
        body: HTML, with figures by `figure_html`.
    """
    parts = [get_plotlyjs(), _STEP_BACK]
    if "<script>inTurn(" in body:
        parts.append(_IN_TURN.replace("MOST", str(_MOST)))
    script = "\n".join(parts)
    return _PAGE.format(title=escape(title), policy=_POLICY, style=style, script=script, body=body)


def figure_page(figure: go.Figure) -> str:
    """Return a page of one figure that fills its window."""
    title = unescape(figure.layout.title.text or "figure")
    return page_html(title, _STYLE, figure_html(figure, "figure"))
