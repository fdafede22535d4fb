"""Whatever is typed: what was asked for, or exit status 2 and one line that says what came. Never a traceback."""

import shutil
import sys

import pytest
import torch

from landscape.cli import main
from landscape.surface import Surface

USER_CODE = """
import torch
from torch import nn

def net(width=4):
    return nn.Sequential(nn.Linear(3, width), nn.Tanh(), nn.Linear(width, 3))

def frozen():
    return net().requires_grad_(False)

def flat():
    return nn.Flatten()

def nothing():
    return None

def broken():
    return {}["a"]

def data():
    x = torch.linspace(-1, 1, 36).reshape(12, 3)
    return x, torch.arange(12) % 3

def empty():
    return torch.zeros(0, 3), torch.zeros(0, dtype=torch.long)

def outside():
    x, y = data()
    return x, y + 7

def constant(output, target):
    return torch.tensor(1.0)

def lost(output, target):
    return output.mean() * float("nan")

number = 3
"""
MINE = "--model mine:net --data mine:data"
TRAIN = f"train {MINE} --epochs 1 --out new"
SURFACE = f"surface --checkpoint run/checkpoint.safetensors {MINE} --resolution 2 --out new.h5"
RESTARTS = f"restarts {MINE} --epochs 1 --seeds 2 --out new.h5"
MINIMA = "minima study.h5 --model mine:net --data mine:data --out new.h5"

# what is typed after a command, and what the line has to say; a later option replaces an earlier one
WRONG = {
    TRAIN: {
        "--epochs 0": "epochs must be",
        "--epochs 1.5": "invalid int",
        "--lr -1": "learning_rate must be",
        "--lr nan": "learning_rate must be",
        "--seed -1": "seed must be",
        "--batch-size 0": "batch_size must be",
        "--optimizer x": "no optimizer 'x'",
        "--schedule x": "no schedule 'x'",
        "--option a": "expected NAME=VALUE",
        "--option zzz=1": "no option 'zzz'",
        "--weight-decay -1": "weight_decay must be",
        "--record-every 0": "record_every must be",
        "--record-unit x": "invalid choice",
        "--device nonsense": "device 'nonsense'",
        "--device cuda:99": "device 'cuda:99'",
        "--device meta": "meta",
        "--init nosuch": "no checkpoint nosuch",
        "--init empty.pt": "empty.pt is empty",
        "--loss mine:constant": "no gradient",
        "--loss mine:number": "no function 'number'",
        "--loss nosuch:x": "nosuch",
        "--loss x": "package.module:function",
        "--model mine:frozen": "requires a gradient",
        "--model mine:flat": "matches no parameter",
        "--model mine:nothing": "what mine:nothing returns must be a network",
        "--model zzz": "got 'zzz'",
        "--model mlp": "input_shape",
        "--data mine:empty": "no samples",
        "--data mine:outside": "a target is 7",
        "--data mine:nothing": "got NoneType",
        "--data zzz": "no data set 'zzz'",
        "--limit 3": "--limit",
        "--data digits --limit 0": "limit must be",
        "--set a": "expected NAME=VALUE",
        "--set zzz=1": "zzz",
        "--out file": "is a file",
        "--out /dev/null/x": "is a file",
    },
    SURFACE: {
        "--resolution 0": "resolution must be",
        "--resolution a": "got 'a'",
        "--resolution 3x3x3": "got 3 resolution",
        "--resolution 1000000x1000000": "ask for fewer points",
        "--range 1:-1": "low < high",
        "--range a": "got 'a'",
        "--range nan:1": "got nan",
        "--range -1:1 0:1 0:1": "3 range",
        "--dimensions 4": "invalid choice",
        "--seed -1": "seed must be",
        "--directions pca": "--trajectory",
        "--directions between": "--to",
        "--directions x": "--directions x",
        "--directions text.h5": "not a readable HDF5",
        "--directions between --to run/checkpoint.safetensors": "same parameters",
        "--directions between --to nosuch": "no checkpoint",
        "--trajectory nosuch": "no trajectory nosuch",
        "--trajectory plane.h5": "holds a surface",
        "--trajectory run/trajectory.h5 run/trajectory.h5": "given twice",
        "--checkpoint nosuch": "no checkpoint",
        "--checkpoint folder.h5": "is a folder",
        "--checkpoint empty.pt": "is empty",
        "--checkpoint mine.py": "is no checkpoint",
        "--select zzz": "matches no parameter",
        "--threads 0": "--threads must be",
        "--threads -1": "--threads must be",
        "--workers 0": "--workers is a number",
        "--memory 0": "--memory is a size",
        "--audit 2": "at least 3 points",
        "--engine x": "invalid choice",
        "--chunk-size 0": "chunk_size must be",
        "--batch-norm x": "invalid choice",
        "--out folder.h5": "is a folder",
        "--out text.h5": "not a readable HDF5",
        "--out /dev/null/x.h5": "is a file",
        f"--out {'x' * 300}.h5": "bytes",
        "--set width=7": "shape",
    },
    RESTARTS: {
        "--seeds 0": "seeds",
        "--seeds -1": "seeds",
        "--optimizers x": "no optimizer 'x'",
        "--run a zzz=1": "zzz",
        "--run a optimizer=adam epochs=0": "epochs must be",
        "--lr -1": "learning_rate must be",
        "--penalty -1": "penalty must be",
        "--penalty nan": "penalty must be",
        "--evaluate-every 0": "evaluate_every must be",
        "--workers 0": "--workers is a number",
        "--out folder.h5": "is a folder",
        "--out text.h5": "not a readable HDF5",
        "--out /dev/null/x.h5": "is a file",
        "--loss mine:constant": "no gradient",
        "--optimizers adamw --penalty 0.1": "adamw",
    },
    MINIMA: {
        "--runs 0": "--runs needs",
        "--barriers 1": "--barriers needs",
        "--tolerance -1": "tolerance must be",
        "--gtol 0": "gtol must be",
        "--set width=9": "not those of the study",
        "--data mine:outside": "a target is 7",
        "--out folder.h5": "is a folder",
    },
    "plot": {
        "nosuch.h5": "no file nosuch.h5",
        "empty.h5": "not a readable HDF5",
        "text.h5": "not a readable HDF5",
        "folder.h5": "no training run",
        "study.h5": "holds a study",
        "plane.h5 --metric zzz": "no metric 'zzz'",
        "plane.h5 --ceiling -1": "ceiling must lie above",
        "plane.h5 --ceiling nan": "ceiling must be",
        "plane.h5 --formats pdf": "invalid choice",
        "plane.h5 --together": "use plot_contour",
        "plane.h5 --formats html --out file": "is a file",
    },
    "topology": {
        "nosuch.h5": "no file nosuch.h5",
        "text.h5": "not a readable HDF5",
        "run": "no file run",
        "study.h5": "holds a study",
        "plane.h5 --threshold -1": "threshold must",
        "plane.h5 --threshold nan": "threshold must",
        "plane.h5 --metric zzz": "no metric 'zzz'",
        "plane.h5 --formats html --out file": "file",
    },
    "info": {
        "nosuch.h5": "no file nosuch.h5",
        "text.h5": "not a readable HDF5",
        "folder.h5": "no file folder.h5",
        "empty.pt": "empty.pt is empty",
        "mine.py": "is no checkpoint",
    },
    "export": {
        "plane.h5 plane.h5": "the surface itself",
        "plane.h5 x.xyz": "expected one of",
        "plane.h5 /dev/null/x.stl": "/dev/null",
        "plane.h5 folder.h5": "folder.h5",
        "plane.h5 x.stl --height -1": "height must be",
        "plane.h5 x.stl --ceiling -1": "ceiling must",
        "plane.h5 x.stl --ceiling nan": "ceiling must",
        "line.h5 x.stl": "cannot export",
        "run/trajectory.h5 x.stl": "holds a trajectory",
    },
    "import": {
        "nosuch --out new.h5": "no checkpoint",
        "text.h5 --out new.h5": "is no checkpoint",
        "plane.h5 --out new.h5": "needs no import",
        "run/checkpoint.safetensors --out plane.h5": "exists",
        "run/checkpoint.safetensors --out /dev/null/x.h5": "/dev/null",
        "run/checkpoint.safetensors --model mine:flat --out new.h5": "matches no parameter",
    },
    "compare": {
        "nosuch.h5": "no file nosuch.h5",
        "plane.h5": "holds a surface",
        "study.h5 --minima nosuch.h5": "no file nosuch.h5",
        "study.h5 --minima study.h5": "holds a study",
        "study.h5 --formats html --out file": "file",
    },
    "demo": {"--out file": "is a file"},
}
CASES = [(command, rest, words) for command, cases in WRONG.items() for rest, words in cases.items()]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with a run, surfaces and a study, and with files that are none."""
    folder = tmp_path_factory.mktemp("made")
    (folder / "mine.py").write_text(USER_CODE)
    for name in ("empty.h5", "empty.pt", "file"):
        (folder / name).touch()
    (folder / "text.h5").write_text("hello")
    (folder / "folder.h5").mkdir()
    with pytest.MonkeyPatch.context() as patch, torch.random.fork_rng(devices=[]):
        patch.chdir(folder)
        patch.setattr(sys, "path", [str(folder), *sys.path])
        for command in (
            TRAIN.replace("new", "run"),
            SURFACE.replace("new", "plane"),
            SURFACE.replace("new", "line") + " --dimensions 1",
            RESTARTS.replace("new", "study") + " --penalty 0.01",
        ):
            assert main(command.split()) == 0
    sys.modules.pop("mine", None)
    return folder


@pytest.fixture
def folder(made, monkeypatch):
    monkeypatch.chdir(made)
    monkeypatch.setattr(sys, "path", [str(made), *sys.path])
    yield made
    sys.modules.pop("mine", None)
    for path in made.glob("new*"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def typed(words, capsys):
    """Return the exit status and the lines on standard error, progress bars left out."""
    try:
        status = main(words)
    except SystemExit as end:  # argparse's way
        status = end.code
    lines = capsys.readouterr().err.splitlines()
    return status, [line for line in lines if line.strip() and "%|" not in line and "/s]" not in line]


@pytest.mark.parametrize(("command", "rest", "words"), CASES)
def test_what_is_wrong(folder, capsys, command, rest, words):
    kept = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    threads = torch.get_num_threads()
    status, lines = typed([*command.split(), *rest.split()], capsys)
    assert status == 2
    assert words in lines[-1]
    assert lines[0].startswith("usage") or len(lines) == 1
    assert not any("Traceback" in line for line in lines)
    for path, content in kept.items():
        assert path.read_bytes() == content, f"{path} has changed"
    assert torch.get_num_threads() == threads


@pytest.mark.parametrize("words", [[], ["zzz"], ["plot"], ["info"], ["train"], ["surface"], ["--zzz"]])
def test_what_is_no_command(folder, capsys, words):
    status, lines = typed(words, capsys)
    assert status == 2
    assert lines[0].startswith("usage")
    assert "error" in lines[-1]


def test_an_error_of_the_user_s_own_code_has_its_name(folder, capsys):
    status, lines = typed([*TRAIN.split(), "--model", "mine:broken"], capsys)
    assert status == 1
    assert lines == ["landscape train: KeyError: 'a' (--debug shows where)"]


@pytest.mark.parametrize("name", ["new a:b#c? ü.h5", "new*[x]%20.h5"])
def test_odd_names(folder, capsys, name):
    assert typed([*SURFACE.split()[:-1], name], capsys)[0] == 0
    assert Surface.load(name).finished
    assert typed(["info", name], capsys)[0] == 0
    assert typed(["plot", name, "--formats", "html", "--out", "new ü#?"], capsys)[0] == 0
    assert list((folder / "new ü#?").glob("*.html"))
    assert typed(["export", name, f"{name}.stl"], capsys)[0] == 0


def test_a_loss_that_is_not_finite_is_a_surface(folder, capsys):
    assert typed([*SURFACE.split(), "--loss", "mine:lost"], capsys)[0] == 0
    assert Surface.load("new.h5").finished
    for command in (["info"], ["plot", "--formats", "html"], ["topology", "--formats", "html"]):
        assert typed([command[0], "new.h5", *command[1:]], capsys)[0] == 0
