"""Restarts, minima, compare: from the command to the page."""

import csv

import numpy as np
import pytest
import torch

from landscape.barriers import Barriers
from landscape.catalog import Catalog
from landscape.cli import main
from landscape.study import Study

RESTARTS = ["restarts", "--model", "mlp", "--set", "widths=[2]", "--data", "xor", "--test", "none"]
TRAINING = ["--penalty", "1e-2", "--seeds", "12", "--optimizers", "adam", "gd", "--lr", "0.1", "--epochs", "30"]


def own_network(widths=2):
    """A network as a user would write it."""
    return torch.nn.Sequential(torch.nn.Linear(2, widths), torch.nn.Tanh(), torch.nn.Linear(widths, 2))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cli")
    assert main([*RESTARTS, *TRAINING, "--out", str(folder / "study.h5")]) == 0
    command = ["minima", str(folder / "study.h5"), "--out", str(folder / "minima.h5"), "--barriers", "5"]
    assert main(command) == 0
    return folder


def test_a_study_knows_how_it_was_made(folder):
    info = Study.load(folder / "study.h5").provenance["info"]
    assert info["model"] == {"name": "mlp", "arguments": {"widths": [2]}}
    assert info["data"] == "xor"
    assert info["test"] == "none"


def test_info_says_what_studies_minima_and_barriers_hold(folder, capsys):
    files = [folder / name for name in ("study.h5", "minima.h5", "minima.barriers.h5")]
    assert main(["info", *map(str, files)]) == 0
    study, minima, barriers = (text.splitlines() for text in capsys.readouterr().out.split("\n/"))
    catalog, found = Catalog.load(files[1]), Barriers.load(files[2])
    assert study[1].split(None, 1) == ["study", "24 runs, 0 diverged"]
    assert any(line.split()[:3] == ["adam", "12", "runs"] and "final loss" in line for line in study)
    assert minima[1].split(None, 1) == ["minima", f"{catalog.n_minima} distinct ones, from 24 runs"]
    assert any(catalog.relation in line for line in minima)
    assert f"between {len(found.losses)} networks" in barriers[1]


def test_minima_without_naming_the_network_again(folder):
    catalog = Catalog.load(folder / "minima.h5")
    assert len(catalog) == 24
    assert 1 <= catalog.n_minima < 12
    assert (catalog.columns["gradient_norm"] < 1e-9).all()


def test_barriers_as_found_and_aligned(folder):
    catalog = Catalog.load(folder / "minima.h5")
    plain, aligned = (Barriers.load(folder / f"minima.barriers{text}.h5") for text in ("", "_aligned"))
    n = min(5, catalog.n_minima)
    np.testing.assert_allclose(plain.losses, catalog.columns["loss"][catalog.representatives()[:n]], rtol=1e-9)
    assert (plain.aligned, aligned.aligned) == (False, True)
    assert (aligned.distances <= plain.distances + 1e-9).all()


def test_minima_again_do_nothing_twice(folder, monkeypatch, capsys):
    monkeypatch.setattr("landscape.minima.survey.find_minima", lambda *a, **k: pytest.fail("descended again"))
    command = ["minima", str(folder / "study.h5"), "--out", str(folder / "minima.h5"), "--tolerance", "0.01"]
    assert main(command) == 0
    assert "to 0.01 relative" in capsys.readouterr().out
    assert main(command[:-2]) == 0


def test_first_seeds_of_each(folder, tmp_path):
    command = ["minima", str(folder / "study.h5"), "--out", str(tmp_path / "m.h5"), "--runs", "2"]
    assert main([*command, "--relation", "function"]) == 0
    catalog = Catalog.load(tmp_path / "m.h5")
    assert catalog.columns["seed"].tolist() == [0, 1, 0, 1]
    assert "the same outputs on the data" in catalog.relation


def test_compare_writes_a_page_and_its_tables(folder, tmp_path, capsys):
    command = ["compare", str(folder / "study.h5"), "--minima", str(folder / "minima.h5")]
    assert main([*command, "--out", str(tmp_path), "--formats", "html", "--title", "XOR <b>"]) == 0
    said = capsys.readouterr().out
    assert "24 runs with 2 settings" in said
    assert "distinct minima" in said
    page = (tmp_path / "index.html").read_text()
    assert "XOR &lt;b&gt;" in page
    assert page.count("data:text/csv") == len(list(tmp_path.glob("*.csv")))
    with open(tmp_path / "runs.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    losses = Study.load(folder / "study.h5").final()
    assert [float(row["loss"]) for row in rows] == losses.tolist()
    assert (tmp_path / "kinds.html").exists()
    assert (tmp_path / "barriers_aligned.csv").exists()


def test_code_of_a_user_is_only_run_if_asked_for(tmp_path, capsys, monkeypatch):
    study = tmp_path / "own.h5"
    own = "tests.test_cli_studies:own_network"
    command = ["restarts", "--model", own, "--data", "xor", "--test", "none", "--seeds", "2", "--epochs", "2"]
    assert main([*command, "--penalty", "0.01", "--set", "widths=3", "--out", str(study)]) == 0
    again = ["minima", str(study), "--out", str(tmp_path / "m.h5")]
    monkeypatch.setattr("landscape.cli.studies.new_model", lambda *a: pytest.fail("code was run"))
    assert main(again) == 2
    assert f"add --model {own}" in capsys.readouterr().err
    monkeypatch.undo()
    assert main([*again, "--model", own]) == 0
    assert Catalog.load(tmp_path / "m.h5").thetas().shape == (2, 17)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--barriers", "1"], "at least 2 minima"),
        (["--runs", "0"], "at least 1 run"),
        (["--model", "mlp", "--set", "widths=[5]"], "not those of the study"),
        (["--data", "moons"], "not those of the study"),
        (["--device", "cuda", "--workers", "2"], "not both"),
    ],
)
def test_mistakes(folder, tmp_path, capsys, options, words):
    assert main(["minima", str(folder / "study.h5"), "--out", str(tmp_path / "m.h5"), *options]) == 2
    assert words in capsys.readouterr().err


def test_a_file_that_is_no_study(folder, capsys):
    assert main(["compare", str(folder / "minima.h5")]) == 2
    assert "holds a minima, expected a study" in capsys.readouterr().err
