import json
import subprocess
import sys

import h5py
import numpy as np
import pytest
import torch
from torch import nn

from landscape import cli
from landscape.cli import build_parser, main
from landscape.surface import Surface

USER_CODE = """
import torch
from torch import nn
from torch.nn import functional as F

def net(width=8):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, width), nn.Tanh(), nn.Linear(width, 1))

def batches():
    x = torch.linspace(-1, 1, 60).reshape(20, 3)
    return [(x[:12], x[:12].sum(1, keepdim=True)), (x[12:], x[12:].sum(1, keepdim=True))]

def loss(output, target):
    return F.mse_loss(output, target)
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(USER_CODE)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield tmp_path
    sys.modules.pop("mine", None)


@pytest.fixture
def trained(folder):
    command = "train --model mlp --set widths=[8] --data digits --limit 200 --test none --epochs 2 --batch-size 50"
    assert main([*command.split(), "--record-unit", "step", "--out", "run"]) == 0
    return folder / "run"


def run(*words):
    return main([str(word) for word in words])


def test_from_training_to_files_of_other_programs(trained, folder, capsys):
    pca = ["--directions", "pca", "--trajectory", trained / "trajectory.h5"]
    assert run("surface", "--checkpoint", trained / "checkpoint.safetensors", *pca, "--resolution", "5x4",
               "--test", "none", "--out", "pca.h5") == 0  # fmt: skip
    shown = capsys.readouterr().out
    assert "explained variance" in shown
    assert "when it was saved" in shown
    surface = Surface.load("pca.h5")
    assert surface.shape == (5, 4)
    assert surface.finished
    assert surface.trajectories.keys() == {"run"}
    assert surface.provenance["settings"]["data"]["training"] == {"name": "digits/train", "n_samples": 200}
    stored = surface.provenance["checkpoint"]["loss"]
    assert surface.provenance["at_origin"]["loss"] == pytest.approx(stored, rel=1e-5)

    assert run("info", "pca.h5", trained / "trajectory.h5", trained / "checkpoint.safetensors") == 0
    shown = capsys.readouterr().out
    for text in ("5 x 4 points of loss, accuracy", "200 of digits/train", "checkpoints of 610 parameters", "mlp("):
        assert text in shown

    assert run("plot", "pca.h5", "--formats", "html", "--log") == 0
    files = capsys.readouterr().out.split()
    assert all((folder / file).exists() for file in files)
    assert len(files) >= 4
    assert run("plot", trained, trained / "trajectory.h5", "--formats", "html", "--out", "drawn") == 0
    capsys.readouterr()

    assert run("export", "pca.h5", "mesh.stl") == 0
    assert run("export", "pca.h5", "li.h5") == 0
    with h5py.File("li.h5") as file:
        np.testing.assert_array_equal(file["train_loss"][()], surface.values["loss"].T)
    with h5py.File("li_directions.h5") as file:
        assert file["xdirection"]["0"].shape == (8, 64)
    with h5py.File("li_projection_run.h5") as file:
        np.testing.assert_allclose(file["proj_xcoord"][()], surface.trajectories["run"].coordinates[:, 0])

    assert run("surface", "--checkpoint", trained / "checkpoint.safetensors", "--directions", "li_directions.h5",
               "--resolution", "3x3", "--test", "none", "--out", "again.h5") == 0  # fmt: skip
    again = Surface.load("again.h5", vectors=True)
    np.testing.assert_array_equal(again.directions, Surface.load("pca.h5", vectors=True).directions)


def test_a_surface_of_li_et_al_comes_in(folder, capsys):
    with h5py.File("theirs.h5", "w") as file:
        file["dir_file"] = "d.h5"
        file["xcoordinates"] = file["ycoordinates"] = np.array([-1.0, 0.0, 1.0])
        file["train_loss"] = np.arange(9.0).reshape(3, 3)
        file["train_acc"] = np.full((3, 3), 50.0)
    assert run("import", "theirs.h5", "--out", "ours.h5") == 0
    assert Surface.load("ours.h5").values["loss"][2, 0] == 2.0
    assert Surface.load("ours.h5").values["accuracy"][0, 0] == 0.5
    assert run("info", "ours.h5") == 0
    assert run("import", "theirs.h5", "--out", "ours.h5") == 2
    assert "exists" in capsys.readouterr().err


def test_the_users_own_code_and_checkpoints(folder, capsys):
    own = ["--model", "mine:net", "--data", "mine:batches", "--loss", "mine:loss"]
    sys.path.insert(0, str(folder))
    import mine

    for epoch in range(4):
        model = mine.net()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += 0.1 * epoch**2 * torch.sin(torch.arange(parameter.numel())).reshape(parameter.shape)
        torch.save(model.state_dict(), f"epoch{epoch}.pt")
    files = [f"epoch{epoch}.pt" for epoch in range(4)]
    assert run("import", *files, "--model", "mine:net", "--out", "path.h5") == 0
    assert run("surface", *own, "--checkpoint", "epoch3.pt", "--directions", "pca", "--dimensions", 1,
               "--trajectory", "path.h5", "--resolution", 9, "--out", "line.h5") == 0  # fmt: skip
    surface = Surface.load("line.h5")
    assert list(surface.values) == ["loss"]
    assert surface.trajectories["path"].coordinates.shape == (4, 1)
    assert run("surface", *own, "--checkpoint", "epoch0.pt", "--directions", "between", "--to", "epoch3.pt",
               "--resolution", 5, "--range", "0:1", "--dtype", "float64", "--out", "between.h5") == 0  # fmt: skip
    x = Surface.load("between.h5")
    assert x.axes["x"].tolist() == [0, 0.25, 0.5, 0.75, 1]
    assert run("train", *own, "--set", "width=4", "--epochs", 1, "--out", "mine_run") == 0
    capsys.readouterr()
    # code named in a file is not run by itself
    assert run("surface", "--checkpoint", "mine_run/checkpoint.safetensors", "--data", "mine:batches",
               "--out", "no.h5") == 2  # fmt: skip
    assert "--model mine:net" in capsys.readouterr().err
    assert not (folder / "no.h5").exists()


def test_ranges_that_begin_with_a_minus(trained, folder):
    command = f"surface --checkpoint {trained / 'checkpoint.safetensors'} --test none --out a.h5 --resolution 3x3"
    assert main([*command.split(), "--range", "-1:1", "-.5:0.5"]) == 0
    assert [axis.tolist() for axis in Surface.load("a.h5").axes.values()] == [[-1, 0, 1], [-0.5, 0, 0.5]]


def test_files_of_one_name_are_told_apart(trained, folder, capsys):
    checkpoint = trained / "checkpoint.safetensors"
    for name in ("lr0.1", "lr0.2"):
        (folder / name).mkdir()
        (folder / name / "run.h5").write_bytes((trained / "trajectory.h5").read_bytes())
        line = f"surface --checkpoint {checkpoint} --test none --dimensions 1 --resolution 3 --out {name}/line.h5"
        assert main(line.split()) == 0
    assert run("surface", "--checkpoint", checkpoint, "--test", "none", "--directions", "pca", "--resolution", "2",
               "--trajectory", "lr0.1/run.h5", "lr0.2/run.h5", "--out", "pca.h5") == 0  # fmt: skip
    assert Surface.load("pca.h5").trajectories.keys() == {"lr0.1_run", "lr0.2_run"}
    assert run("plot", "lr0.1/line.h5", "lr0.2/line.h5", "--formats", "html", "--out", "drawn") == 0
    assert {path.name for path in (folder / "drawn").glob("*line*.html")} >= {
        "lr0.1_line_line.html",
        "lr0.2_line_line.html",
    }
    assert run("surface", "--checkpoint", checkpoint, "--test", "none", "--directions", "pca",
               "--trajectory", "lr0.1/run.h5", "lr0.1/run.h5", "--out", "b.h5") == 2  # fmt: skip
    assert "given twice" in capsys.readouterr().err


def test_an_export_does_not_replace_the_surface(folder, capsys):
    (folder / "a.h5").write_bytes(b"stays")
    assert run("export", "a.h5", "./a.h5") == 2
    assert "is the surface itself" in capsys.readouterr().err
    assert (folder / "a.h5").read_bytes() == b"stays"


def test_directions_of_largest_curvature(trained, folder):
    command = ["surface", "--checkpoint", trained / "checkpoint.safetensors", "--directions", "hessian"]
    assert run(*command, "--resolution", "3x3", "--test", "none", "--out", "hessian.h5") == 0
    facts = Surface.load("hessian.h5").provenance["slice"]
    assert facts["kind"] == "hessian"
    assert facts["eigenvalues"][0] >= facts["eigenvalues"][1] > 0


def test_explain_says_the_plan_and_writes_nothing(trained, folder, capsys):
    command = ["surface", "--checkpoint", trained / "checkpoint.safetensors", "--out", "plan.h5", "--explain"]
    assert run(*command) == 0
    assert "plan dense" in capsys.readouterr().out
    assert run(*command, "--engine", "reference") == 0
    assert "plan reference" in capsys.readouterr().out
    assert not (folder / "plan.h5").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("info nothing.h5", "no file nothing.h5"),
        ("info mine.py", "no checkpoint: expected"),
        ("surface --checkpoint nothing.pt --out a.h5", "no checkpoint nothing.pt"),
        ("train --model mlp --data nowhere --out r", "digits"),
        ("train --model mpl --data digits --out r", "mlp"),
        ("train --model mlp --data digits --set width=3 --out r", "width"),
        ("train --model mlp --data digits --optimizer adamm --out r", "adam"),
        ("train --model mine:nothing --data digits --out r", "no function 'nothing'"),
        ("train --model nowhere.at:all --data digits --out r", "nowhere"),
        ("train --data digits --out r", "--model is missing"),
        ("train --model mine:net --data mine:batches --limit 5 --out r", "--limit is for named data sets"),
        ("train --model mlp --set widths --data digits --out r", "NAME=VALUE"),
        ("plot mine.py", "not a readable HDF5 file"),
        ("export mine.py a.xyz", "expected one of .vtp"),
    ],
)
def test_mistakes_are_one_line_with_the_remedy_and_exit_code_2(folder, capsys, words, message):
    assert main(words.split()) == 2
    error = capsys.readouterr().err.strip()
    assert message in error
    assert "\n" not in error
    assert "Traceback" not in error


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--directions pca", "need --trajectory FILE"),
        ("--directions between", "need --to CHECKPOINT"),
        ("--directions somewhere", "expected random, pca, hessian, between"),
        ("--resolution 5y4", "such as 51x41"),
        ("--resolution 5x4x3", "2 direction(s), got 3 resolution(s)"),
        ("--range 1", "LOW:HIGH"),
        ("--select conv*", "matches no parameter"),
        ("--batch-norm interpolated --device nowhere", "device"),
    ],
)
def test_mistakes_in_the_options_of_a_surface(trained, capsys, words, message):
    capsys.readouterr()
    code = run("surface", "--checkpoint", trained / "checkpoint.safetensors", "--out", "a.h5", *words.split())
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert message in error
    assert code == 2


def test_a_traceback_only_on_request(folder):
    with pytest.raises(FileNotFoundError):
        main(["info", "nothing.h5", "--debug"])


def test_an_interrupted_command_says_how_to_go_on(folder, capsys, monkeypatch):
    def interrupted(options):
        raise KeyboardInterrupt

    monkeypatch.setitem(cli.files.COMMANDS, "info", ("say", cli.files._info_options, interrupted))
    assert main(["info", "a"]) == 130
    assert "run the same command again" in capsys.readouterr().err


def test_every_option_has_help():
    def options_of(parser):
        for action in parser._actions:
            if hasattr(action, "choices") and isinstance(action.choices, dict):
                for command in action.choices.values():
                    yield from options_of(command)
            else:
                yield action

    assert all(action.help for action in options_of(build_parser()))


def test_the_installed_command_answers():
    shown = subprocess.run([sys.executable, "-m", "landscape", "--help"], capture_output=True, text=True, check=True)
    for command in ("demo", "train", "surface", "plot", "info", "import", "export"):
        assert command in shown.stdout


def test_what_the_file_commands_need_is_no_torch(folder):
    nn.Linear(1, 1)  # here it is loaded
    code = "import sys, landscape.cli; print(json.dumps('torch' in sys.modules))".replace("json.dumps", "str")
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert json.loads(shown.strip().lower()) is False
