"""The page of the lecture: every figure drawn, also those in 3-D, on wide and narrow screens, and nothing fetched."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from pages import colors, drawn_figures

from landscape.interruption import PATIENCE

pytestmark = pytest.mark.usefixtures("scripts")
KEYS = [f"L{i}" for i in range(1, 13)]


def run(monkeypatch, *arguments):
    import lecture_figures

    options = ["--workers", "1", "--formats", "html", *map(str, arguments)]
    monkeypatch.setattr(sys, "argv", ["lecture_figures.py", *options])
    lecture_figures.main()


@pytest.fixture(scope="module")
def out(scripts, lecture_folder):
    with pytest.MonkeyPatch.context() as monkeypatch:
        folder = lecture_folder("L1").parents[2]
        run(monkeypatch, "--quick", "--data", "digits", "--out", folder)
        return folder


def test_captions_and_numbers_are_written(out):
    written = json.loads((out / "lecture.json").read_text())
    assert written["command"] == "python scripts/lecture_figures.py --data digits --quick"
    assert list(written["figures"]) == KEYS
    text = (out / "lecture.md").read_text()
    for key, figure in written["figures"].items():
        assert figure["numbers"], key
        assert 1 <= figure["caption"].count(". ") + 1 <= 6, key
        assert f"## {key}  {figure['title']}\n\n{figure['caption']}" in text
        assert list(out.glob(f"{key}_*.html")), key
    assert "mnist" not in text.lower(), "on digits, nothing may be said of other data"


def test_of_some_figures_the_page_still_has_all(out, monkeypatch, capsys):
    from lecture import activations

    monkeypatch.setattr(activations, "TITLE", "Changed")
    run(monkeypatch, "--quick", "--data", "digits", "--out", out, "--only", "L1")
    assert "L1, L2, L3, L4, L5, L6, L7, L8, L9, L10, L11, L12" in capsys.readouterr().out
    assert "L1  Changed" in (out / "index.html").read_text()


def test_captions_and_numbers_of_figures_made_elsewhere_are_kept(tmp_path, monkeypatch, capsys):
    shared = ("--quick", "--data", "digits", "--out", tmp_path)
    run(monkeypatch, *shared, "--only", "L1", "L5")
    made, text = (tmp_path / "lecture.json").read_text(), (tmp_path / "lecture.md").read_text()
    shutil.rmtree(tmp_path / "_runs")  # as in a fresh clone
    run(monkeypatch, *shared, "--only", "L4")
    assert "not on the page: L1, L5, made elsewhere; --only L1 L5 makes them here" in capsys.readouterr().out
    written = json.loads((tmp_path / "lecture.json").read_text())["figures"]
    assert list(written) == ["L1", "L4", "L5"]
    assert {key: written[key] for key in ("L1", "L5")} == json.loads(made)["figures"]
    for part in text.split("## ")[1:]:
        assert part.strip() in (tmp_path / "lecture.md").read_text()
    assert "L4  " in (page := (tmp_path / "index.html").read_text())
    assert "L5  " not in page
    (tmp_path / "lecture.json").write_text(json.dumps({"command": "with other settings", "figures": written}))
    run(monkeypatch, *shared, "--only", "L4")
    assert list(json.loads((tmp_path / "lecture.json").read_text())["figures"]) == ["L4"]


def test_other_data_and_sizes_are_stored_apart(monkeypatch, tmp_path):
    from lecture_figures import store_name

    assert store_name("digits", quick=True) == "quick_without_mnist_without_cifar10"
    monkeypatch.delenv("LANDSCAPE_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert store_name("found", quick=False) == "whole_without_mnist_without_cifar10"


def test_several_processes_make_the_same_figures(out, tmp_path):
    arguments = ["--quick", "--data=digits", "--only", "L4", "L5", "--workers=2", "--formats", "html", "--out"]
    script = Path(__file__).parents[1] / "scripts" / "lecture_figures.py"
    subprocess.run([sys.executable, script, *arguments, tmp_path], check=True, capture_output=True, timeout=120)
    numbers = [
        json.loads((folder / "lecture.json").read_text())["figures"]["L4"]["numbers"] for folder in (out, tmp_path)
    ]
    assert numbers[0] == numbers[1]


@pytest.mark.skipif(not hasattr(os, "killpg"), reason="this system has no process groups")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_all_processes_and_says_how_to_go_on(tmp_path, number):
    arguments = ["--quick", "--data=digits", "--only", "L7", "L9", "--workers=2", "--formats", "html", "--out"]
    script = Path(__file__).parents[1] / "scripts" / "lecture_figures.py"
    command = [sys.executable, script, *arguments, tmp_path]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, start_new_session=True)
    due = time.monotonic() + 60
    while not list(tmp_path.glob("_runs/*/L7/*")):  # both processes are at work
        assert time.monotonic() < due
        time.sleep(0.05)
    os.killpg(process.pid, number) if number == signal.SIGINT else process.send_signal(number)
    begin = time.monotonic()
    said = process.communicate(timeout=30)[1].decode()
    seconds = time.monotonic() - begin
    assert seconds < 10  # two on a machine that does nothing else
    assert process.returncode == 128 + number
    assert said.count("stopped; what is done is stored: the same command goes on") == 1
    if seconds < PATIENCE:  # else processes may have been ended at once
        assert not [*tmp_path.rglob(".*.lock"), *tmp_path.rglob(".*.tmp")]
    assert "Traceback" not in said


def test_what_cannot_be_written_is_said_in_a_line(tmp_path):
    script = Path(__file__).parents[1] / "scripts" / "lecture_figures.py"
    (tmp_path / "out").write_text("no folder")
    arguments = ["--quick", "--data=digits", "--only", "L4", "--formats", "html", "--out", tmp_path / "out"]
    done = subprocess.run([sys.executable, script, *arguments], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert done.stderr.strip().endswith("what is done is stored: the same command goes on")


@pytest.mark.parametrize("width", [1280, 390])
def test_every_figure_is_drawn_and_fits(browser, out, width):
    tab = browser.new_page(viewport={"width": width, "height": 844})
    requests, errors = [], []
    tab.on("request", lambda request: requests.append(request.url))
    tab.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    tab.on("pageerror", lambda error: errors.append(str(error)))
    tab.goto((out / "index.html").as_uri())
    plots = []
    for plot in drawn_figures(tab):
        plots.append(plot)
        in_3d = tab.evaluate("id => document.getElementById(id)._fullLayout._subplots.gl3d?.length ?? 0", plot)
        if in_3d and width < 500:  # drawing them takes long, and as long again to look at them
            assert colors(tab, plot) > 200, plot
        right = tab.evaluate("id => document.querySelector(`#${id} .main-svg`).getBoundingClientRect().right", plot)
        assert right <= width
        outside = tab.evaluate(OUTSIDE, plot)
        assert outside == [], f"{plot}: text is cut off"
    assert {int(plot.split("-")[1]) for plot in plots} == set(range(1, 13))
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    # `colors` makes images within the page, at addresses that begin with blob:
    assert {url for url in requests if not url.startswith("blob:")} == {(out / "index.html").as_uri()}
    # plotly draws the axes of L2's slopes once before it knows how long they are; a moment later they are right
    # (plotly 6.4 says it in words of its own)
    momentary = ('<path> attribute d: Expected number, "MNaN,NaN', "Something went wrong with axis scaling")
    assert [error for error in errors if not any(words in error for words in momentary)] == []


# texts of a figure that are not wholly inside its frame
OUTSIDE = """id => {
  const plot = document.getElementById(id), frame = plot.getBoundingClientRect();
  return [...plot.querySelectorAll("text")].filter((text) => {
    const box = text.getBoundingClientRect();
    return box.width && (box.left < frame.left - 2 || box.right > frame.right + 2 || box.top < frame.top - 2
      || box.bottom > frame.bottom + 2) && getComputedStyle(text).visibility !== "hidden";
  }).map((text) => text.textContent);
}"""
