"""The audit of a surface in float64: it finds what is wrong, always looks at the same places, and is kept."""

import copy

import numpy as np
import pytest
import torch
from problems import class_data, plain_loop, randomize
from torch import nn
from torch.nn import functional as F

import landscape.cli.networks
from landscape.cli import main
from landscape.directions import random_directions
from landscape.evaluation import evaluate
from landscape.evaluation.audit import Audit, audit, keep_audit
from landscape.models import build
from landscape.objective import Objective
from landscape.sanity import findings
from landscape.surface import Surface

DATA = class_data(40, (12,), 4)
IMAGES = class_data(40, (1, 8, 8), 4)


def network():
    return randomize(nn.Sequential(nn.Linear(12, 9), nn.Tanh(), nn.Linear(9, 4)))


@pytest.fixture
def asked():
    """An objective, a slice and its surface of 7 x 5 points."""
    objective = Objective(network(), DATA)
    plane = random_directions(objective)
    return objective, plane, evaluate(objective, plane, resolution=(7, 5), progress=False)


def test_a_good_surface_is_confirmed(asked):
    objective, plane, surface = asked
    found = audit(objective, plane, surface)
    assert len(found.indices) == 20
    assert 0 < found.largest_error < 1e-5
    assert not found.exceeded
    axes = list(surface.axes.values())
    wide = [tensor.double() for tensor in (plane.origin, plane.directions)]
    exact = plain_loop(
        network().double(),
        (DATA[0].double(), DATA[1]),
        lambda c: wide[0] + torch.tensor(c) @ wide[1],
        axes,
        F.cross_entropy,
    )
    np.testing.assert_allclose(found.exact["loss"], exact[tuple(found.indices.T)], rtol=1e-12)
    np.testing.assert_array_equal(found.stored["loss"], surface.values["loss"][tuple(found.indices.T)])
    for row, index in zip(found.coordinates, found.indices, strict=True):
        assert row.tolist() == [axis[i] for axis, i in zip(axes, index, strict=True)]


def test_center_lowest_point_and_a_corner_are_always_looked_at(asked):
    objective, plane, surface = asked
    surface.values["loss"][1, 3] = 1e-3
    places = [tuple(index) for index in audit(objective, plane, surface, n=3).indices.tolist()]
    assert places == [(3, 2), (1, 3), (6, 4)]
    surface.done[6, 4] = surface.done[6, 0] = False
    assert (0, 4) in [tuple(index) for index in audit(objective, plane, surface, n=3).indices.tolist()]


def test_the_sample_is_random_without_repetition_and_of_computed_points(asked):
    objective, plane, surface = asked
    surface.done[:, 1] = False
    samples = [audit(objective, plane, surface, n=12, seed=seed).indices.tolist() for seed in (0, 0, 1)]
    assert samples[0] == samples[1] != samples[2]
    everything = audit(objective, plane, surface, n=1000).indices
    assert len(everything) == len({tuple(index) for index in everything.tolist()}) == 28
    assert 1 not in everything[:, 1]


def test_a_wrong_value_is_found_with_its_place(asked):
    objective, plane, surface = asked
    surface.values["loss"][2, 4] *= 1 + 3e-4
    found = audit(objective, plane, surface, n=35)
    assert found.exceeded
    assert found.largest_error == pytest.approx(3e-4, rel=1e-2)
    name, row = found.worst
    assert (name, found.indices[row].tolist()) == ("loss", [2, 4])
    x, y = (axis[i] for axis, i in zip(surface.axes.values(), (2, 4), strict=True))
    assert f"3.0e-04 relative to float64 (loss at x = {x:.4g}, y = {y:.4g}: " in found.describe()
    assert "beyond 1e-05" in found.describe()


def test_samples_that_rounding_moves_are_no_error(asked):
    objective, plane, surface = asked
    surface.values["accuracy"][3, 2] += 1 / 40
    found = audit(objective, plane, surface)
    assert not found.exceeded
    assert "accuracies differ by up to 0.025" in found.describe()


def test_values_that_are_not_finite(asked):
    objective, plane, surface = asked
    surface.values["loss"][6, 4] = np.inf
    found = audit(objective, plane, surface, n=3)
    assert found.largest_error == np.inf
    assert found.exceeded
    broken = Objective(nn.Linear(12, 4), (DATA[0] * torch.nan, DATA[1]), metrics={})
    line = random_directions(broken, 1)
    same = audit(broken, line, evaluate(broken, line, resolution=5, progress=False))
    assert same.largest_error == 0
    assert np.isnan(same.exact["loss"]).all()


@pytest.mark.parametrize("policy", ["frozen", "recalibrated", "batch"])
def test_the_batch_norm_policy_is_kept(policy):
    model = build("resnet", input_shape=(1, 8, 8), classes=4, seed=0, depth=8)
    objective = Objective(model, IMAGES, batch_norm=policy)
    plane = random_directions(objective)
    surface = evaluate(objective, plane, resolution=3, extent=(-0.5, 0.5), progress=False, engine="reference")
    assert audit(objective, plane, surface).largest_error < 1e-5
    other = Objective(model, IMAGES, batch_norm="recalibrated" if policy == "batch" else "batch")
    surface.provenance.pop("at_origin")
    assert audit(other, plane, surface).largest_error > 1e-3


def test_precisions_have_their_own_tolerance(asked):
    objective, plane, _ = asked
    wide, wide_plane = objective.to(dtype=torch.float64), plane.to(dtype=torch.float64)
    surface = evaluate(wide, wide_plane, resolution=3, progress=False)
    assert audit(wide, wide_plane, surface).largest_error < 1e-12
    surface.values["loss"] *= 1 + 1e-7
    assert audit(wide, wide_plane, surface).exceeded
    preview = evaluate(objective, plane, resolution=3, progress=False, engine="preview")
    found = audit(objective, plane, preview)
    assert found.largest_error > 1e-5
    assert not found.exceeded  # a preview says itself how wrong it is


class TestRefusals:
    def test_another_surface(self, asked, tmp_path):
        objective, plane, surface = asked
        other = Objective(nn.Sequential(nn.Linear(12, 9), nn.Tanh(), nn.Linear(9, 4)), DATA)
        with pytest.raises(ValueError, match="what differs: origin"):
            audit(other, random_directions(other), surface)
        with pytest.raises(ValueError, match="what differs: directions"):
            audit(objective, random_directions(objective, seed=1), surface)
        with pytest.raises(ValueError, match="number of directions"):
            audit(objective, random_directions(objective, 1), surface)
        fewer = Objective(network(), tuple(part[:30] for part in DATA))
        with pytest.raises(ValueError, match="at the origin, now it is"):
            audit(fewer, plane, surface)
        evaluate(objective, plane, resolution=3, path=tmp_path / "a.h5", progress=False)
        with pytest.raises(ValueError, match="what differs: training_data"):
            audit(fewer, plane, Surface.load(tmp_path / "a.h5"))

    def test_nothing_to_look_at(self, asked):
        objective, plane, surface = asked
        with pytest.raises(ValueError, match="at least 3 points"):
            audit(objective, plane, surface, n=2)
        surface.done[:] = False
        with pytest.raises(ValueError, match="nothing of the surface is computed"):
            audit(objective, plane, surface)

    def test_a_network_of_fixed_precision(self):
        objective = Objective(
            nn.Linear(12, 4), [{"x": DATA[0], "y": DATA[1]}], metrics={},
            forward=lambda m, b: m(b["x"].float()), loss=lambda o, b: F.cross_entropy(o, b["y"]),
        )  # fmt: skip
        line = random_directions(objective, 1)
        surface = evaluate(objective, line, resolution=3, progress=False)
        with pytest.raises(ValueError, match="cannot be evaluated in float64"):
            audit(objective, line, surface)


def test_it_is_kept_in_the_file_and_nothing_else_changes(asked, tmp_path, caplog):
    objective, plane, _ = asked
    path = tmp_path / "a.h5"
    surface = evaluate(objective, plane, resolution=(5, 3), path=path, progress=False)
    before = Surface.load(path, vectors=True)
    found = audit(objective, plane, surface)
    keep_audit(found, objective, plane, surface)
    after = Surface.load(path, vectors=True)
    assert after.provenance["audit"] == surface.provenance["audit"]
    assert after.provenance["audit"]["largest_error"] == found.largest_error
    assert {**after.provenance, "audit": None} == {**before.provenance, "audit": None}
    np.testing.assert_array_equal(after.values["loss"], before.values["loss"])
    np.testing.assert_array_equal(after.directions, before.directions)
    row = next(row for row in findings(after) if row.label == "audit")
    assert row.text.startswith("largest error of 15 audited points: ")
    assert not row.warning
    assert not caplog.records
    again = evaluate(objective, plane, resolution=(5, 3), path=path, progress=False)  # still the same question
    assert again.provenance["audit"] == after.provenance["audit"]

    wrong = copy.deepcopy(found)
    wrong.relative_errors["loss"][1] = 0.5
    keep_audit(wrong, objective, plane, surface)
    assert "beyond 1e-05" in caplog.text
    assert next(row for row in findings(Surface.load(path)) if row.label == "audit").warning


def test_surfaces_in_memory_are_audited_too(asked):
    objective, plane, surface = asked
    keep_audit(audit(objective, plane, surface), objective, plane, surface)
    assert surface.provenance["audit"]["n_points"] == 20


def test_on_the_command_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    command = "train --model mlp --set widths=[8] --data digits --limit 100 --test none --epochs 1 --out run"
    assert main(command.split()) == 0
    command = "surface --checkpoint run/checkpoint.safetensors --resolution 5x3 --test none --out a.h5"
    surface = command.split()
    assert main([*surface, "--audit", "2"]) == 2
    assert "--audit needs at least 3 points" in capsys.readouterr().err
    assert not (tmp_path / "a.h5").exists()
    for size in ("lots", "0", "5X"):
        assert main([*surface, "--memory", size]) == 2
        assert "such as 500M" in capsys.readouterr().err
    assert main(surface) == 0
    first = Surface.load("a.h5")
    assert "audit" not in first.provenance
    capsys.readouterr()
    assert main([*surface, "--audit"]) == 0
    assert "largest error of 15 audited points: " in capsys.readouterr().out
    assert main([*surface, "--audit", "4"]) == 0
    assert "largest error of 4 audited points: " in capsys.readouterr().out
    last = Surface.load("a.h5")
    np.testing.assert_array_equal(last.values["loss"], first.values["loss"])
    assert last.provenance["plan"] == first.provenance["plan"]
    assert main(["info", "a.h5"]) == 0
    assert "largest error of 4 audited points: " in capsys.readouterr().out


def test_an_audit_of_a_finished_file_evaluates_no_grid_point_again(asked, tmp_path, monkeypatch):
    objective, plane, _ = asked
    path = tmp_path / "a.h5"
    evaluate(objective, plane, resolution=(9, 9), path=path, progress=False)
    asked_for = []
    evaluate_one = Objective.evaluate
    monkeypatch.setattr(
        Objective, "evaluate", lambda self, *points: asked_for.append(self.dtype) or evaluate_one(self, *points)
    )
    audit(objective, plane, evaluate(objective, plane, resolution=(9, 9), path=path, progress=False), n=5)
    assert asked_for.count(torch.float64) == 5
    assert asked_for.count(torch.float32) == 4  # the check of the plan


def test_sizes_are_read():
    sizes = {"1234": 1234, "500M": 5e8, "2g": 2e9, "1.5 K": None, "1.5K": 1500, "3MB": 3e6, None: None}
    for text, size in sizes.items():
        if text == "1.5 K":
            with pytest.raises(ValueError, match="such as 500M"):
                landscape.cli.networks._n_bytes(text)
        else:
            assert landscape.cli.networks._n_bytes(text) == size


def test_an_accuracy_alone_is_compared_too():
    found = Audit(
        ("x",), np.array([[0], [1]]), np.array([[0.0], [1.0]]), {"accuracy": np.array([0.5, 0.75])},
        {"accuracy": np.array([0.5, 0.5])}, {"accuracy": np.array([0.0, 0.25])}, 1e-5,
    )  # fmt: skip
    assert found.worst == ("accuracy", 1)
    assert found.describe().count("accurac") == 1
