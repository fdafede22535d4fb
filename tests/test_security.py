"""Nothing that comes in a file is run, nothing is fetched but named data, and pages show names as they are."""

import ast
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import plotly.graph_objects as go
import pytest
from pages import drawn_figures

from landscape import figures
from landscape.figures.page import scenes
from landscape.report import Section, page, study_sections, surface_sections
from landscape.surface import ProjectedTrajectory, empty_surface

ROOT = Path(__file__).parents[1]
SOURCES = [path for folder in ("landscape", "models", "scripts") for path in sorted((ROOT / folder).rglob("*.py"))]

# ---------------------------------------------------------------- no code out of files

_RUNS = {
    *("eval", "exec", "__import__", "builtins.eval", "builtins.exec", "os.system", "os.popen", "pty.spawn"),
    *("pickle.load", "pickle.loads", "pickle.Unpickler", "_pickle.loads", "_pickle.load", "marshal.load"),
    *("marshal.loads", "shelve.open", "cloudpickle.load", "cloudpickle.loads", "dill.load", "dill.loads"),
    *("joblib.load", "pandas.read_pickle", "yaml.load", "yaml.unsafe_load", "yaml.full_load", "torch.jit.load"),
    *("torch.package.PackageImporter", "torch.hub.load", "torch.export.load", "runpy.run_path", "runpy.run_module"),
    *("h5py.ref_dtype", "h5py.regionref_dtype", "h5py.special_dtype", "h5py.vlen_dtype", "imp.load_source"),
    *("importlib.import_module", "importlib.util.spec_from_file_location", "numpy.fromregex", "numpy.lib.format.open"),
}
# By file: what its reason is good for.
_ALLOWED = {
    "landscape/workers.py": ["torch.load", "torch.load"],  # what this process, or the user's cluster, has just sent
    "landscape/cli/networks.py": ["importlib.import_module"],  # the user's --model, --data and --loss, and no other
    "landscape/__init__.py": ["importlib.import_module"],  # modules of the package, by a fixed table
    "landscape/recorder.py": ["importlib.import_module"],  # Lightning, by one of its two names
    "landscape/figures/image.py": ["importlib.import_module"],  # a module of kaleido's, by its name
    "scripts/lecture_figures.py": ["importlib.import_module", "importlib.import_module"],  # its own modules
    "scripts/reliability/kill.py": ["runpy.run_path"],  # scripts beside it
}


def offenses(source):
    """Calls that run code which may lie in a file, by full name, whatever it was imported as."""
    tree = ast.parse(source)
    names = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                names[alias.asname or alias.name.split(".")[0]] = (
                    alias.name if alias.asname else alias.name.split(".")[0]
                )
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}

    def full(node):
        if isinstance(node, ast.Attribute):
            return f"{full(node.value)}.{node.attr}"
        return names.get(node.id, node.id) if isinstance(node, ast.Name) else "?"

    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute | ast.Name) and full(node) in _RUNS and isinstance(node.ctx, ast.Load):
            found.append(full(node))  # called or handed on
        if isinstance(node, ast.Call):
            name, given = full(node.func), {word.arg: getattr(word.value, "value", "?") for word in node.keywords}
            if name == "torch.load" and given.get("weights_only") is not True:
                found.append(name)
            if name == "numpy.load" and given.get("allow_pickle", False) is not False:
                found.append(name)
            if name.startswith("subprocess.") and given.get("shell", False) is not False:
                found.append(name)
    return found


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_is_unpickled_or_run(path):
    if path.is_relative_to(ROOT / "landscape" / "models"):
        pytest.skip("the same files as models/")
    assert sorted(offenses(path.read_text())) == sorted(_ALLOWED.get(str(path.relative_to(ROOT)), []))


@pytest.mark.parametrize(
    "source",
    [
        *("import pickle\npickle.load(f)", "import pickle as p\np.loads(b)", "from pickle import loads\nloads(b)"),
        *("from pickle import load as read\nread(f)", "import torch\ntorch.load(f)", "eval(text)", "exec(text)"),
        *("import torch as t\nt.load(f, weights_only=False)", "import torch\ntorch.load(f, weights_only=x)"),
        *("import numpy as np\nnp.load(f, allow_pickle=True)", "import numpy as np\nnp.load(f, allow_pickle=x)"),
        *("import yaml\nyaml.load(f)", "import shelve\nshelve.open(f)", "import joblib\njoblib.load(f)"),
        *("import h5py\nh5py.special_dtype(ref=h5py.Reference)", "import cloudpickle\ncloudpickle.loads(b)"),
        *("import subprocess\nsubprocess.run(c, shell=True)", "import os\nos.system(c)"),
        *(
            "list(map(eval, texts))",
            "import pickle\nread = pickle.loads",
            "import importlib\nimportlib.import_module(n)",
        ),
    ],
)
def test_the_search_for_unpickling_can_fail(source):
    assert offenses(source)


def test_the_search_for_unpickling_knows_what_is_harmless():
    assert not offenses("model.eval()\nimport json\njson.loads(t)\nimport re\nre.compile(p)")
    assert not offenses("import torch\ntorch.load(f, weights_only=True)\nimport numpy as np\nnp.load(f)")


def test_every_exception_is_still_needed():
    for name, allowed in _ALLOWED.items():
        assert offenses((ROOT / name).read_text()), f"{name} needs no {allowed}"


@pytest.mark.parametrize("command", ["train", "surface", "restarts", "minima"])
def test_the_help_says_that_the_users_code_is_run(command, capsys):
    from landscape.cli import main

    with pytest.raises(SystemExit):
        main([command, "--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert "package.module:function of your own" in text
    assert "that code is run" in text


def test_code_named_in_a_file_is_not_run(tmp_path, monkeypatch):
    """A checkpoint that names a function is refused unless the user names it, too."""
    import torch

    from landscape import checkpoint
    from landscape.cli import main

    (tmp_path / "trap.py").write_text(f"open({str(tmp_path / 'sprung')!r}, 'w')\ndef build(): pass\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    checkpoint.save(tmp_path / "a.safetensors", torch.nn.Linear(64, 10), name="trap:build")
    assert main(["info", "a.safetensors"]) == 0
    assert main(["surface", "--checkpoint", "a.safetensors", "--data", "digits", "--out", "a.h5"]) == 2
    assert not (tmp_path / "sprung").exists()


def test_names_from_files_do_not_steer_the_terminal(tmp_path, capsys):
    from landscape.cli import main

    surface = plane("\x1b]0;stolen\x07loss\u202e", "\x1b[2J")
    surface.save(tmp_path / "a.h5")
    assert main(["info", str(tmp_path / "a.h5")]) == 0
    shown = capsys.readouterr().out
    assert "\\x1b]0;stolen\\x07loss\\u202e" in shown
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e]", shown)


# ---------------------------------------------------------------- no network

_NETWORK = {"urllib.request", "requests", "http", "http.client", "ftplib", "aiohttp", "httpx", "pooch", "socket", "ssl"}
_CONNECTED = {
    "landscape/data/files.py": {"pooch"},  # MNIST and CIFAR-10, each with a checksum
    "landscape/cluster.py": {"socket"},  # is the user's own scheduler there?
    "landscape/lock.py": {"socket"},  # gethostname
    "landscape/storage.py": {"socket"},
    "landscape/interruption.py": {"socket"},  # a pair of them within the process, which signals wake
}


def imported(source):
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names & _NETWORK


def test_only_named_modules_can_reach_the_network():
    for path in SOURCES:
        name = str(path.relative_to(ROOT))
        assert imported(path.read_text()) <= _CONNECTED.get(name, set()), name
    for name in ("landscape/lock.py", "landscape/storage.py", "landscape/interruption.py"):
        used = set(re.findall(r"\bsocket\.(\w+)", (ROOT / name).read_text()))
        assert used <= {"gethostname", "socketpair", "socket"}, name
    assert imported("def f():\n    from urllib import request") == {"urllib.request"}
    assert imported("import requests")


def test_downloads_are_https_with_a_checksum(monkeypatch, tmp_path):
    import pooch

    from landscape.data import files

    asked = []
    monkeypatch.setattr(pooch, "retrieve", lambda url, known_hash, **rest: asked.append((url, known_hash)))
    monkeypatch.setattr(pooch, "os_cache", lambda name: tmp_path / "cache")
    monkeypatch.delenv("LANDSCAPE_DATA", raising=False)
    for read, splits in ((files.read_mnist, ("train", "test")), (files.read_cifar10, ("train",))):
        for split in splits:
            with pytest.raises((FileNotFoundError, ValueError, IndexError)):
                read(split, None, True)
    assert len(asked) == 5
    for url, known in asked:
        assert urlsplit(url).scheme == "https"
        assert re.fullmatch(r"(md5:[0-9a-f]{32}|sha256:[0-9a-f]{64})", known)
    assert len({url for url, _ in asked}) == len({known for _, known in asked}) == 5


def test_links_in_the_sources_are_https():
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                assert not re.search(r"\b(http|ftp|ws)://\w", node.value), f"{path}: {node.value[:100]}"


OFFLINE = """
import socket, sys
tried = []
def refuse(*arguments, **named):
    tried.append(arguments)
    raise OSError("no network in this test")
def connect(self, address):
    if self.family != socket.AF_UNIX:
        refuse(address)
class Blocked(socket.socket):
    connect = connect
    connect_ex = connect
socket.socket, socket.create_connection, socket.getaddrinfo = Blocked, refuse, refuse
try:
    socket.socket().connect(("example.org", 80))
    raise SystemExit("the block does not work")
except OSError:
    tried.clear()
import torch
from landscape import report
from landscape.cli import main
from landscape.data import load
from landscape.models import build
folder = sys.argv[1]
network = ["--model", "mlp", "--data", "digits", "--limit", "64"]
assert main(["train", *network, "--out", f"{folder}/run", "--epochs", "2", "--set", "widths=[4]"]) == 0
assert main(["surface", "--checkpoint", f"{folder}/run/checkpoint.safetensors", "--out", f"{folder}/a.h5",
             "--resolution", "5", "--directions", "pca", "--trajectory", f"{folder}/run/trajectory.h5"]) == 0
assert main(["plot", f"{folder}/a.h5", "--formats", "html"]) == 0
assert main(["topology", f"{folder}/a.h5", "--formats", "html"]) == 0
assert main(["restarts", *network, "--seeds", "3", "--epochs", "2", "--out", f"{folder}/s.h5",
             "--set", "widths=[2]"]) == 0
assert main(["compare", f"{folder}/s.h5", "--formats", "html"]) == 0
assert main(["info", f"{folder}/a.h5", f"{folder}/run/checkpoint.safetensors"]) == 0
assert tried == [], tried
print("offline")
"""


def test_the_commands_need_no_network(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", OFFLINE, str(tmp_path)], capture_output=True, text=True, check=False, cwd=tmp_path
    )
    assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-2000:]
    assert done.stdout.endswith("offline\n")
    assert len(list(tmp_path.rglob("*.html"))) > 5


# ---------------------------------------------------------------- pages

HOSTILE = (
    "</script><script>window.stolen=1</script><img src='http://example.org/x.png' onerror='window.stolen=2'>"
    "<a href='javascript:window.stolen=3'>c</a><a href=\"http://example.org/\">d</a><b>e</b>%{x}\"'&amp;"
)
X, Y, Z = np.linspace(-1, 1, 9), np.linspace(-2, 1, 8), np.linspace(-1, 1, 7)


def hostile_surface(axes, metric, name):
    surface = empty_surface(axes, [metric, "accuracy"])
    grids = np.meshgrid(*axes.values(), indexing="ij")
    surface.values[metric][:] = 2 + sum(np.cos((3 + i) * grid) * (1 + i / 3) for i, grid in enumerate(grids))
    surface.values["accuracy"][:] = 0.5
    surface.done[:] = True
    k, t = len(axes), np.linspace(0, 1, 5)
    surface.provenance = {
        "axes": [{"label": f"{name} {i}", "unit": name} for i in range(k)],
        "settings": {"model": name, "data": {name: {"name": name, "n_samples": 5}}, "metrics": {metric: name}},
        "created": name,
        name: {name: [name]},
    }
    path = np.stack([0.5 * (1 - t)] * k, axis=1)
    surface.trajectories = {name: ProjectedTrajectory(np.arange(5), path, t, 3 - t, 2 - t)}
    return surface


def plane(metric=f"{HOSTILE}_loss", name=HOSTILE):
    return hostile_surface({"x": X, "y": Y}, metric, name)


def all_figures(folder):
    """Every kind of figure with hostile names wherever one can be given, by the function that draws it."""
    import test_study_page as studies

    from landscape.barriers import Barriers, PathProfile, disconnectivity
    from landscape.comparison import compare_studies
    from landscape.comparison.minima import barrier_files
    from landscape.computation import ComputationalGraph, Edge, Node
    from landscape.statistics import compare, rarefaction, shared
    from landscape.topology import analyze, descend, random_starts

    metric = f"{HOSTILE}_loss"
    surface, topology = plane(), analyze(plane(), metric)
    names = (f"{HOSTILE}0", f"{HOSTILE}1", f"{HOSTILE}2")
    random = np.random.default_rng(0)
    groups = {name: random.random(9) + i for i, name in enumerate(names)}
    profiles = np.tile(np.array([1.0, 4, 1]), (3, 3, 1))
    barriers = Barriers(np.linspace(0, 1, 3), profiles, 3.0 - 3 * np.eye(3), True)
    study = studies.write_study(folder / "s.h5", names, (studies.N,) * 3)
    study.provenance["settings"]["model"] = HOSTILE
    study.provenance["versions"]["landscape"] = HOSTILE
    catalog = studies.write_catalog(folder / "m.h5", study, [0] * 20 + [1] * 16)
    Barriers(barriers.t, profiles[:2, :2] * [1.0, 1, 1], 3.0 - 3 * np.eye(2), True)
    own = np.tile(np.array([1.0, 4, 2]), (2, 2, 1))
    own[0, 0], own[1, 1], own[1, 0] = 1, 2, [2, 4, 1]
    Barriers(np.linspace(0, 1, 3), own, 3.0 - 3 * np.eye(2), True).save(barrier_files(catalog.path)[True])
    found = compare_studies({HOSTILE: study}, [catalog])
    value = np.array(1.0)
    nodes = (Node(HOSTILE, "", value, value), Node(HOSTILE, HOSTILE, value, value))
    graph = ComputationalGraph(nodes, (Edge(0, 1, value, value),))
    drawn = {
        "plot": figures.plot(hostile_surface({"x": X, "y": Y}, "loss", HOSTILE)),
        "plot_line": figures.plot_line({HOSTILE: hostile_surface({"x": X}, metric, HOSTILE)}, [metric]),
        "plot_contour": figures.plot_contour(surface, metric),
        "plot_surface": figures.plot_surface(surface, metric),
        "plot_descent": figures.plot_descent(surface, metric),
        "plot_trajectory": figures.plot_trajectory(surface, HOSTILE),
        "plot_comparison": figures.plot_comparison({HOSTILE: surface, f"{HOSTILE}2": surface}, metric),
        "plot_volume": figures.plot_volume(hostile_surface({"x": X, "y": Y, "z": Z}, metric, HOSTILE), metric),
        "plot_history": figures.plot_history({name: {"loss": [3, 2.0], metric: [2, 1.0]} for name in names}),
        "plot_minima": figures.plot_minima(surface, topology),
        "plot_basins": figures.plot_basins(surface, topology),
        "plot_basin_descents": figures.plot_basin_descents(
            surface, topology, descend(topology, random_starts(topology, 5))
        ),
        "plot_merge_tree": figures.plot_merge_tree(topology),
        "plot_minima_count": figures.plot_minima_count(topology),
        "plot_persistence": figures.plot_persistence(topology),
        "plot_barrier": figures.plot_barrier({HOSTILE: PathProfile(barriers.t, {metric: profiles[0, 1]}, 1.0)}, metric),
        "plot_matrix": figures.plot_matrix(barriers, names),
        "plot_connections": figures.plot_connections(disconnectivity(barriers.losses, barriers.heights), names),
        "plot_distributions": figures.plot_distributions(groups, metric),
        "plot_loss_curves": figures.plot_loss_curves({n: ([0, 1], random.random((5, 2))) for n in names}, metric),
        "plot_pairwise": figures.plot_pairwise(compare(groups)),
        "plot_rarefaction": figures.plot_rarefaction({HOSTILE: rarefaction([5, 3, 1, 1])}),
        "plot_shared_minima": figures.plot_shared_minima(shared([0, 1, 0, 1, 2, 0], [*names, *names])),
        "plot_count_tolerance": figures.plot_count_tolerance(catalog),
        "plot_eigenvalues": figures.plot_eigenvalues(catalog),
        "plot_computational_graph": figures.plot_computational_graph(graph),
        "plot_local_gradients": figures.plot_local_gradients(graph, 1),
    }
    return drawn, found


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pages")
    drawn, found = all_figures(folder)
    sections = [Section(f"{name}{HOSTILE}", HOSTILE, figure) for name, figure in drawn.items()]
    sections += surface_sections(plane(), HOSTILE)
    table = [[HOSTILE, HOSTILE]]
    links = [(HOSTILE, HOSTILE), ("go", "javascript:window.stolen=4")]
    sections.append(Section(HOSTILE, HOSTILE, table=table, header=[HOSTILE, HOSTILE], links=links, folded=True))
    sections.append(Section(HOSTILE, downloads={HOSTILE: [{HOSTILE: HOSTILE}]}))
    files = [page(HOSTILE, sections, folder / "all.html")]
    files.append(page(HOSTILE, study_sections(found), folder / "study.html"))
    files += [
        path for name in ("plot_line", "plot_surface", "plot_descent") for path in single(drawn[name], folder, name)
    ]
    return drawn, files


def single(figure, folder, name):
    return figures.save_figures({name: figure}, folder, ["html"])


def test_every_kind_of_figure_is_tried(pages):
    kinds = {name for name in figures.__all__ if name.startswith("plot")}
    assert kinds == set(pages[0])
    assert all(isinstance(figure, go.Figure) for figure in pages[0].values())


class Tags(HTMLParser):
    """The tags of a page with their attributes, as a browser would read them."""

    def __init__(self, path):
        super().__init__()
        self.found = []
        self.feed(path.read_text())

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))


def test_no_name_becomes_a_tag(pages):
    for path in pages[1]:
        assert "window.stolen" in path.read_text()
        tags = Tags(path).found
        assert not {tag for tag, _ in tags} & {"img", "b", "iframe", "object", "embed", "form", "base"}
        for tag, given in tags:
            assert not any(name.startswith("on") or name in ("src", "srcdoc") for name in given), (tag, given)
            if tag == "a":
                assert urlsplit(given["href"]).scheme in ("", "data"), given
        assert any("default-src 'none'" in given.get("content", "") for tag, given in tags if tag == "meta")


# links within drawings, links to other places, and what only a name could have brought
FOREIGN = """[...document.querySelectorAll("svg a, body a, body img, body b, iframe, object, embed, form")]
  .filter(e => e.closest("svg") || e.tagName !== "A" || !["file:", "data:"].includes(new URL(e.href).protocol))
  .filter(e => e.tagName !== "IMG" || !/^(data|blob):/.test(e.src))
  .map(e => e.outerHTML.slice(0, 200))"""


def test_in_a_browser_no_script_of_a_name_runs_and_nothing_is_requested(browser, pages):
    for path in pages[1]:
        tab = browser.new_page(viewport={"width": 500, "height": 400})  # small: no processor draws scenes fast
        requests, errors = [], []
        tab.on("request", lambda request, into=requests: into.append(request.url))
        tab.on("pageerror", lambda error, into=errors: into.append(str(error)))
        tab.goto(path.as_uri())
        assert list(drawn_figures(tab))
        tab.evaluate("document.querySelectorAll('details').forEach(d => { d.open = true; })")
        assert tab.evaluate("window.stolen") is None, path
        assert [url for url in requests if not url.startswith(("data:", "blob:"))] == [path.as_uri()]
        assert tab.evaluate(FOREIGN) == [], path
        assert errors == [], path
        tab.close()


def test_the_browser_test_can_fail(browser, tmp_path):
    (tmp_path / "bad.html").write_text(f"<body><p>{HOSTILE}</p>")
    tab = browser.new_page()
    requests = []
    tab.route("http://**", lambda route: route.abort())
    tab.on("request", lambda request: requests.append(request.url))
    tab.goto((tmp_path / "bad.html").as_uri())
    tab.wait_for_timeout(200)
    assert tab.evaluate("window.stolen") is not None
    assert len(tab.evaluate(FOREIGN)) >= 3
    assert len(requests) == 2


def test_scenes_are_among_them(pages):
    assert any(scenes(figure) for figure in pages[0].values())
