import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from pages import colors

from landscape.figures import plot_contour, plot_descent, plot_history, plot_line, plot_surface, plot_volume
from landscape.report import Section, page, surface_sections
from landscape.surface import ProjectedTrajectory, empty_surface

X, Y, Z = np.linspace(-1, 1, 13), np.linspace(-2, 1, 10), np.linspace(-1, 1, 9)
HOSTILE = "</script><script>window.stolen = 1</script><img src='http://example.org/x.png'>%{x}"


def f(x, y):
    return 1 + x**2 + 2 * (y + 0.5) ** 2 + 0.3 * x


def plane(metric="loss", label="direction"):
    surface = empty_surface({"x": X, "y": Y}, [metric, "accuracy"])
    surface.values[metric][:] = f(X[:, None], Y)
    surface.values["accuracy"][:] = 1 / f(X[:, None], Y)
    surface.done[:] = True
    surface.provenance = {
        "axes": [{"label": f"{label} {i}", "unit": "distance"} for i in (1, 2)],
        "settings": {"model": label, "data": {"train": {"n_samples": 1437}}},
        "parameters": [["layer.weight", [3, 4]]] * 100,
    }
    t = np.linspace(0, 1, 8)
    path = np.stack([0.9 * (1 - t), 0.8 * (1 - t) ** 2], axis=1)
    surface.trajectories = {label: ProjectedTrajectory(np.arange(8), path, t, 3 - t, 2 - t)}
    return surface


def volume():
    surface = empty_surface({"x": X, "y": Y, "z": Z}, ["loss"])
    surface.values["loss"][:] = f(X[:, None], Y)[:, :, None] + Z**2
    surface.done[:] = True
    return surface


def line():
    surface = empty_surface({"x": X}, ["loss", "accuracy"])
    surface.values["loss"][:], surface.values["accuracy"][:] = f(X, 0), 0.5
    surface.done[:] = True
    return surface


class Outline(HTMLParser):
    """Tags, texts and links of a page, as a browser would read them."""

    def __init__(self, path):
        super().__init__()
        self.tags, self.texts, self.links, self.ids, self._open = [], [], [], [], []
        self.feed(Path(path).read_text())

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.tags.append(tag)
        if tag not in ("meta", "link", "img"):
            self._open.append(tag)
        if tag == "a":
            self.links.append(attributes["href"])
        if "id" in attributes:
            self.ids.append(attributes["id"])
        assert "src" not in attributes
        assert not (tag == "link" and not attributes["href"].startswith("data:"))

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        if self._open and self._open[-1] not in ("script", "style") and data.strip():
            self.texts.append(data.strip())


@pytest.fixture(scope="module")
def hostile_page(tmp_path_factory):
    path = tmp_path_factory.mktemp("report") / "index.html"
    sections = surface_sections(plane(f"{HOSTILE}_loss", HOSTILE), HOSTILE)
    sections.append(Section(HOSTILE, HOSTILE, table=[[HOSTILE, HOSTILE, HOSTILE]], links=[(HOSTILE, HOSTILE)]))
    return page(HOSTILE, sections, path)


def test_a_page_holds_what_it_is_given(tmp_path):
    sections = [
        Section("One", "A caption & more.", plot_line(line())),
        Section("Two", table=[["loss", "0.5"], ["⚠ center", "off", "third"]]),
        Section("Three", links=[("data", "a folder/x#1.h5"), ("odd", "javascript:alert(1)")]),
    ]
    path = page("All & sundry", sections, tmp_path / "new" / "index.html")
    outline = Outline(path)
    assert path == tmp_path / "new" / "index.html"
    for text in ("All & sundry", "One", "A caption & more.", "loss", "0.5", "⚠ center", "third", "data"):
        assert text in outline.texts
    assert outline.links == [f"#section-{i}" for i in (1, 2, 3)] + ["a%20folder/x%231.h5", "javascript%3Aalert%281%29"]
    assert {"section-1", "section-2", "section-3", "figure-1"} <= set(outline.ids)
    assert [p.name for p in path.parent.iterdir()] == ["index.html"]


def test_plotly_is_there_once_and_nothing_is_loaded(tmp_path):
    sections = [Section(str(i), figure=plot_line(line())) for i in range(3)]
    text = page("three", sections, tmp_path / "page.html").read_text()
    assert text.count("* plotly.js v") == 1
    own = re.sub(r"<script>/\*\*\n\* plotly.*?</script>", "", text, flags=re.DOTALL)
    assert own.count("Plotly.newPlot(") == 3
    assert "default-src 'none'" in text
    assert "cdn.plot.ly" not in own


def test_an_animation_waits_for_its_reader(tmp_path):
    text = page("descent", [Section("", figure=plot_descent(plane()))], tmp_path / "page.html").read_text()
    assert "Plotly.addFrames('figure-1'" in text
    assert "Plotly.animate('figure-1'" not in text


def test_the_same_page_is_written_twice(tmp_path):
    first = page("a", surface_sections(plane()), tmp_path / "a.html").read_bytes()
    assert page("a", surface_sections(plane()), tmp_path / "b.html").read_bytes() == first


def test_text_from_files_is_escaped(hostile_page):
    outline = Outline(hostile_page)
    assert "img" not in outline.tags
    assert outline.tags.count("script") == 1 + 5  # plotly, and one per figure
    assert outline.texts.count(HOSTILE) >= 8
    assert "<script>window.stolen" not in hostile_page.read_text()


def test_sections_of_a_surface():
    sections = surface_sections(plane(), "plane", scale="log")
    assert [section.title.removeprefix("plane: ") for section in sections] == [
        *("contours", "in three dimensions", "accuracy", "descent", "distance of the training runs"),
        *("is the picture right?", "how it was made"),
    ]
    assert all(section.figure is not None and section.caption for section in sections[:5])
    checks = dict(sections[5].table)
    assert checks["computed"] == "all 130 grid points, all values finite"
    facts = dict(sections[6].table)
    assert facts["grid"] == "13 x 10 points of loss, accuracy"
    assert facts["axes, 1, label"] == "direction 1"
    assert facts["settings, data, train, n_samples"] == "1437"
    assert len(facts["parameters"]) < 310
    assert not sections[6].links
    assert [section.folded for section in sections] == [False] * 6 + [True]


def test_warnings_are_counted_and_the_file_is_linked(tmp_path):
    surface = plane()
    surface.values["loss"][0, 0] = 0.1
    surface.values["loss"][3, 3] = np.nan
    surface.save(tmp_path / "my plane.h5")
    *_, checks, facts = surface_sections(type(surface).load(tmp_path / "my plane.h5"))
    warnings = [label for label, _ in checks.table if label.startswith("⚠")]
    assert {"⚠ lowest point", "⚠ non-finite loss"} <= set(warnings)
    assert checks.caption == f"{len(warnings)} point(s) to look at, marked with ⚠."
    assert checks.title == "my plane: is the picture right?"
    assert facts.links == [("my plane.h5", "my plane.h5")]


# ---------------------------------------------------------------- in a browser


def visit(browser, path, width):
    """Open a page; return it with the requests and errors it made, when all figures are drawn."""
    tab = browser.new_page(viewport={"width": width, "height": 844})
    requests, errors = [], []
    tab.on("request", lambda request: requests.append(request.url))
    tab.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    tab.on("pageerror", lambda error: errors.append(str(error)))
    tab.goto(path.as_uri())
    tab.wait_for_function(
        "[...document.querySelectorAll('.figure')].every(figure => figure.querySelector('.js-plotly-plot .main-svg'))"
    )
    return tab, requests, errors


@pytest.fixture(scope="module")
def wide(browser, figures_page):
    return visit(browser, figures_page, 1280)


@pytest.fixture(scope="module")
def narrow(browser, figures_page):
    return visit(browser, figures_page, 390)


@pytest.fixture(scope="module")
def figures_page(tmp_path_factory):
    surface = plane()
    sections = [
        Section("contour", figure=plot_contour(surface, scale="log")),
        Section("surface", figure=plot_surface(surface)),
        Section("volume", figure=plot_volume(volume())),
        Section("line", figure=plot_line(line())),
        Section("history", figure=plot_history({"loss": [3, 2, 1], "accuracy": [0.1, 0.5, 0.9]})),
        Section("descent", figure=plot_descent(surface)),
        Section("wide", table=[["a" * 200, "b" * 300]]),
    ]
    return page("All kinds of figures", sections, tmp_path_factory.mktemp("figures") / "index.html")


@pytest.mark.parametrize("screen", ["wide", "narrow"])
def test_every_figure_is_drawn_and_fits(screen, figures_page, request):
    tab, requests, errors = request.getfixturevalue(screen)
    width = tab.viewport_size["width"]
    assert requests == [figures_page.as_uri()]
    assert errors == []
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    boxes = tab.evaluate("[...document.querySelectorAll('.main-svg')].map(s => s.getBoundingClientRect().right)")
    assert len(boxes) >= 6
    assert max(boxes) <= width
    for number in (2, 3):  # WebGL: the image has many colors, so something was drawn
        assert colors(tab, f"figure-{number}") > 500


def test_more_scenes_than_a_browser_keeps_are_drawn_in_turn_and_come_back_as_they_were_left(browser, tmp_path):
    sections = [Section(str(i), figure=plot_surface(plane()), further=[plot_line(line())]) for i in range(6)]
    tab = browser.new_page(viewport={"width": 450, "height": 350})
    tab.goto(page("six", sections, tmp_path / "page.html").as_uri())
    drawn = "[...document.querySelectorAll('.plotly-graph-div')].filter(p => p.querySelector('canvas')).map(p => p.id)"

    def come_to(number):
        tab.evaluate("id => document.getElementById(id).scrollIntoView({block: 'center'})", f"figure-{number}")
        tab.wait_for_function(f"document.querySelector('#figure-{number} canvas') !== null")

    lines = "document.querySelectorAll('.plotly-graph-div[id$=\"-2\"]:has(.main-svg)').length"
    come_to(1)
    assert tab.evaluate(lines) < 6
    tab.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert tab.evaluate(lines) == 6, "on paper no line is missing"
    tab.evaluate("Plotly.relayout('figure-1', {'scene.camera.eye': {x: 3, y: 2, z: 1}})")
    for number in range(1, 7):
        come_to(number)
    assert "figure-6" in tab.evaluate(drawn)
    assert "figure-1" not in tab.evaluate(drawn)
    assert len(tab.evaluate(drawn)) <= 4
    come_to(1)
    assert tab.evaluate("document.getElementById('figure-1').layout.scene.camera.eye") == {"x": 3, "y": 2, "z": 1}
    assert tab.evaluate(lines) == 6, "they stay"


def test_an_animation_drawn_in_turn_has_its_frames(browser, tmp_path):
    moving = plot_line(line())
    moving.frames = [{"name": str(i), "data": [{"y": [i, i]}]} for i in range(3)]
    sections = [Section(str(i), figure=moving) for i in range(9)]
    tab = browser.new_page(viewport={"width": 450, "height": 350})
    tab.goto(page("nine", sections, tmp_path / "page.html").as_uri())
    tab.wait_for_function("document.querySelector('#figure-1 .main-svg') !== null")
    tab.wait_for_function("document.getElementById('figure-1')._transitionData._frames.length === 3", timeout=5000)


def test_the_pointer_shows_the_value_of_that_place(wide):
    tab, _, _ = wide
    i, j = 9, 3
    place = tab.evaluate(
        """([x, y]) => {
          const plot = document.getElementById("figure-1"), box = plot.getBoundingClientRect();
          const {xaxis, yaxis} = plot._fullLayout;
          return [box.left + xaxis._offset + xaxis.d2p(x), box.top + yaxis._offset + yaxis.d2p(y)];
        }""",
        [X[i], Y[j]],
    )
    tab.mouse.move(place[0] - 2, place[1] - 2)
    tab.mouse.move(*place)
    tab.wait_for_selector("#figure-1 .hovertext")
    text = tab.text_content("#figure-1 .hovertext")
    assert f"loss: {f(X[i], Y[j]):.4g}" in text
    assert "direction 1: 0.5" in text


def test_lines_on_a_log_scale_are_labelled_with_losses(wide):
    tab, _, _ = wide
    shown = tab.evaluate("[...document.querySelectorAll('#figure-1 .contourlabels text')].map(t => t.textContent)")
    expected = tab.evaluate("document.getElementById('figure-1').data[0].colorbar.ticktext")
    assert len(shown) >= 3
    assert set(shown) <= set(expected)


def test_a_descent_keeps_its_contours_while_it_runs(wide):
    tab, _, errors = wide
    n_points = "document.getElementById('figure-6')._fullData[2].x.length"
    n_contours = "document.querySelectorAll('#figure-6 .contourfill path').length"
    assert tab.evaluate(n_points) == 8
    before = tab.evaluate(n_contours)
    assert before > 3
    tab.evaluate(
        """async () => {  // what a click on the slider does
          const plot = document.getElementById("figure-6");
          await Plotly.animate(plot, ...plot.layout.sliders[0].steps[3].args);
        }"""
    )
    assert tab.evaluate(n_points) == 4
    assert tab.evaluate(n_contours) == before
    assert errors == []


def test_hostile_names_are_shown_as_they_are(browser, hostile_page):
    tab, requests, errors = visit(browser, hostile_page, 390)
    assert requests == [hostile_page.as_uri()]
    assert errors == []
    assert tab.evaluate("window.stolen") is None
    assert tab.title() == HOSTILE
    assert tab.evaluate("document.documentElement.scrollWidth") <= 390
    legend = tab.evaluate("[...document.querySelectorAll('#figure-1 .legendtext')].map(t => t.textContent)")
    assert HOSTILE in legend
