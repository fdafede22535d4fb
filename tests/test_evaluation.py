import os
import signal
import subprocess
import sys
import textwrap
import time

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from problems import TwoParameters, asymmetric, asymmetric_loss, class_data, one_sample, plain_loop, randomize
from torch import nn
from torch.nn import functional as F

from landscape.directions import directions_between, given_directions, pca_directions, random_directions
from landscape.evaluation import coarse_to_fine, evaluate, grid_axis
from landscape.models import build
from landscape.objective import Objective
from landscape.recorder import Recorder
from landscape.surface import Surface
from landscape.trajectory import Trajectory

UNIT = np.eye(2)


def analytic(**options):
    return Objective(TwoParameters(), one_sample(), loss=asymmetric_loss, metrics={}, **options)


class TestGrid:
    @given(st.floats(-5, 0), st.floats(0.01, 5), st.integers(2, 60))
    def test_zero_is_on_every_axis_that_contains_it(self, low, high, n):
        axis = grid_axis(low, high, n)
        assert len(axis) == n
        assert 0.0 in axis
        step = (high - low) / (n - 1)
        np.testing.assert_allclose(np.diff(axis), step, rtol=1e-9)
        assert abs(axis[0] - low) <= 0.5 * step + 1e-12
        assert abs(axis[-1] - high) <= 0.5 * step + 1e-12

    def test_ends_are_exact_where_zero_is_on_the_grid_anyway(self):
        assert grid_axis(-1, 1, 51)[[0, 25, 50]].tolist() == [-1, 0, 1]
        assert grid_axis(1, 2, 3).tolist() == [1, 1.5, 2]
        assert grid_axis(0, 1, 5).tolist() == [0, 0.25, 0.5, 0.75, 1]  # a range may start at 0

    @given(st.lists(st.integers(1, 9), min_size=1, max_size=3))
    def test_each_point_once(self, shape):
        order = coarse_to_fine(tuple(shape))
        assert len(order) == np.prod(shape)
        assert len({tuple(index) for index in order}) == len(order)
        assert (order.max(axis=0) < shape).all()

    def test_the_beginning_shows_the_whole_picture(self):
        order = coarse_to_fine((51, 41))
        assert {tuple(i) for i in order[:9]} == {(i, j) for i in (0, 25, 50) for j in (0, 20, 40)}
        first_hundred = order[:100]
        for corner in np.ndindex(4, 4):  # something of every sixteenth of the plane
            inside = (first_hundred // [13, 11] == corner).all(axis=1)
            assert inside.any()

    @pytest.mark.parametrize("bad", [(1, 1, 5), (1, 0, 5), (0, np.inf, 5), (0, 1, 0)])
    def test_impossible_axes(self, bad):
        with pytest.raises(ValueError, match="an axis needs"):
            grid_axis(*bad)


class TestAgainstClosedForms:
    def test_a_plane_that_is_not_square(self):
        plane = given_directions(analytic(), UNIT)
        resolution = np.array([7, 5])
        surface = evaluate(analytic(), plane, resolution=resolution, extent=[(-1, 2), (-3, 1)], progress=False)
        assert evaluate(analytic(), plane, resolution=resolution[1], progress=False).shape == (5, 5)
        x, y = surface.axes.values()
        expected = asymmetric(0.3 + x[:, None], -0.2 + y[None, :])
        np.testing.assert_allclose(surface.values["loss"], expected, rtol=1e-12)
        assert surface.values["loss"].shape == (7, 5)

    def test_the_coordinate_is_the_coefficient_of_the_direction(self):
        line = given_directions(analytic(), np.array([[3.0, -4.0]]))
        surface = evaluate(analytic(), line, axes=[np.array([-0.5, 0.0, 2.0])], progress=False)
        for c, value in zip([-0.5, 0.0, 2.0], surface.values["loss"], strict=True):
            assert value == pytest.approx(asymmetric(0.3 + 3 * c, -0.2 - 4 * c), rel=1e-12)

    def test_a_volume_with_axes_of_different_lengths(self):
        model = nn.Linear(3, 1, bias=False, dtype=torch.float64)
        objective = Objective(model, one_sample(), loss=lambda o, t: o.sum(), forward=lambda m, b: polynomial(m.weight))
        volume = given_directions(objective, np.eye(3))
        surface = evaluate(objective, volume, resolution=(3, 4, 5), progress=False)
        w = model.weight.detach().numpy()[0]
        x, y, z = np.meshgrid(*surface.axes.values(), indexing="ij")
        expected = (w[0] + x) + 2 * (w[1] + y) ** 2 + 3 * (w[2] + z) ** 3
        np.testing.assert_allclose(surface.values["loss"], expected, rtol=1e-11)


def polynomial(w):
    return w[0, 0] + 2 * w[0, 1] ** 2 + 3 * w[0, 2] ** 3


@pytest.mark.parametrize("name", ["mlp", "lenet", "resnet", "recurrent", "transformer"])
def test_agrees_with_a_plain_loop_in_float64(name):
    shape = (1, 8, 8)
    model = build(name, input_shape=shape, classes=4, seed=0, **({"depth": 8} if name == "resnet" else {})).eval()
    data = class_data(60, shape, 4)
    objective = Objective(model, data)
    plane = random_directions(objective, seed=1)
    surface = evaluate(objective, plane, resolution=(4, 3), progress=False)
    wide = plane.origin.double(), plane.directions.double()
    expected = plain_loop(
        model.double(),
        (data[0].double(), data[1]),
        lambda c: wide[0] + torch.tensor(c, dtype=torch.float64) @ wide[1],
        surface.axes.values(),
        F.cross_entropy,
    )
    np.testing.assert_allclose(surface.values["loss"], expected, rtol=1e-6)
    assert np.ptp(expected) > 1e-3


def test_the_center_is_the_network_itself():
    model = build("lenet", input_shape=(1, 8, 8), classes=4, seed=0)
    data = class_data(60, (1, 8, 8), 4)
    objective = Objective(model, data)
    for resolution in ((4, 6), (5, 3)):  # even numbers too
        surface = evaluate(objective, random_directions(objective), resolution=resolution, progress=False)
        center = tuple(int(np.flatnonzero(axis == 0)[0]) for axis in surface.axes.values())
        assert surface.values["loss"][center] == pytest.approx(F.cross_entropy(model(data[0]), data[1]).item(), 1e-6)


def test_nan_is_a_result_and_not_recomputed(tmp_path):
    objective = Objective(TwoParameters(), one_sample(), loss=lambda o, t: o[:, 0].sqrt(), metrics={})
    plane = given_directions(objective, UNIT)
    surface = evaluate(objective, plane, resolution=5, path=tmp_path / "a.h5", progress=False)
    assert np.isnan(surface.values["loss"]).sum() == 10  # x = -1 and -0.5
    assert surface.finished
    again = evaluate(objective, plane, resolution=5, path=tmp_path / "a.h5", progress=False)
    np.testing.assert_array_equal(again.values["loss"], surface.values["loss"])


class TestContinuing:
    def test_interrupted_and_continued_equals_uninterrupted(self, tmp_path):
        calls = 0

        def interrupted(output, target):
            nonlocal calls
            calls += 1
            if calls == 20:
                raise KeyboardInterrupt
            return asymmetric_loss(output, target)

        objective = Objective(TwoParameters(), one_sample(), loss=interrupted, metrics={})
        plane = given_directions(objective, UNIT)
        calls = -6  # what `evaluate` calls before the grid
        with pytest.raises(KeyboardInterrupt):
            evaluate(objective, plane, resolution=(7, 5), path=tmp_path / "a.h5", progress=False)
        partial = Surface.load(tmp_path / "a.h5")
        assert 0 < partial.done.sum() < 35
        assert not list(tmp_path.glob("*.progress"))
        surface = evaluate(objective, plane, resolution=(7, 5), path=tmp_path / "a.h5", progress=False)
        whole = evaluate(objective, plane, resolution=(7, 5), progress=False)
        np.testing.assert_array_equal(surface.values["loss"], whole.values["loss"])

    def test_killed_at_any_moment(self, tmp_path):
        script = tmp_path / "job.py"
        script.write_text(
            textwrap.dedent(f"""
            import sys, time, numpy as np
            sys.path.insert(0, {os.path.dirname(__file__)!r})
            from problems import TwoParameters, asymmetric_loss, one_sample
            from landscape.objective import Objective
            from landscape.directions import given_directions
            from landscape.evaluation import evaluate
            def slow(output, target):
                time.sleep(0.002)
                return asymmetric_loss(output, target)
            objective = Objective(TwoParameters(), one_sample(), loss=slow, metrics={{}})
            evaluate(objective, given_directions(objective, np.eye(2)), resolution=(25, 23), path="a.h5",
                     progress=False, interval=0.02)
            """)
        )
        path, seen = tmp_path / "a.h5", 0
        for _ in range(3):
            job = subprocess.Popen([sys.executable, script], cwd=tmp_path)
            deadline = time.monotonic() + 60
            while time.monotonic() < deadline and job.poll() is None:
                if path.exists() and Surface.load(path).done.sum() > seen + 20:
                    break
                time.sleep(0.01)
            job.send_signal(signal.SIGKILL)
            job.wait()
            partial = Surface.load(path)
            assert partial.done.sum() > seen or partial.finished
            seen = partial.done.sum()
        subprocess.run([sys.executable, script], cwd=tmp_path, check=True)
        surface = Surface.load(path)
        x, y = surface.axes.values()
        assert surface.finished
        np.testing.assert_allclose(surface.values["loss"], asymmetric(0.3 + x[:, None], -0.2 + y[None]), rtol=1e-12)
        assert sorted(entry.name for entry in tmp_path.iterdir() if entry.suffix != ".tmp") == ["a.h5", "job.py"]

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"resolution": (5, 7)}, "axes"),
            ({"directions": UNIT[::-1].copy()}, "directions"),
            ({"data": one_sample(2)}, "training_data"),
            ({"model": TwoParameters(1.0, 1.0)}, "origin"),
            ({"loss": lambda o, t: o[:, 0]}, "loss and metrics"),
        ],
    )
    def test_another_question_is_refused(self, tmp_path, change, message):
        objective = analytic()
        evaluate(
            objective, given_directions(objective, UNIT), resolution=(7, 5), path=tmp_path / "a.h5", progress=False
        )
        other = Objective(
            change.get("model", TwoParameters()),
            change.get("data", one_sample()),
            loss=change.get("loss", asymmetric_loss),
            metrics={},
        )
        slice = given_directions(other, change.get("directions", UNIT))
        with pytest.raises(ValueError, match=f"what differs:.*{message}"):
            evaluate(other, slice, resolution=change.get("resolution", (7, 5)), path=tmp_path / "a.h5", progress=False)

    def test_leaving_out_the_test_data_is_another_question(self, tmp_path):
        model, data = randomize(nn.Linear(4, 3)), class_data(20, (4,), 3)
        for test in (data, None):
            objective = Objective(model, data, test=test)
            line = random_directions(objective, 1)
            if test is not None:
                evaluate(objective, line, resolution=3, path=tmp_path / "a.h5", progress=False)
        with pytest.raises(ValueError, match="what differs: test_data"):
            evaluate(objective, line, resolution=3, path=tmp_path / "a.h5", progress=False)

    def test_a_line_is_not_taken_for_a_plane(self, tmp_path):
        objective = analytic()
        evaluate(objective, given_directions(objective, UNIT[:1]), resolution=5, path=tmp_path / "a.h5", progress=False)
        with pytest.raises(ValueError, match=r"what differs:.*axes"):
            evaluate(objective, given_directions(objective, UNIT), resolution=5, path=tmp_path / "a.h5", progress=False)

    def test_a_loss_that_changed_behind_its_name_is_noticed(self, tmp_path):
        scale = {"factor": 1.0}

        def loss(output, target):
            return scale["factor"] * asymmetric_loss(output, target)

        def run():
            objective = Objective(TwoParameters(), one_sample(), loss=loss, metrics={})
            plane = given_directions(objective, UNIT)
            return evaluate(objective, plane, resolution=3, path=tmp_path / "a.h5", progress=False)

        run()
        scale["factor"] = 2.0
        with pytest.raises(ValueError, match=r"begun with loss = .* now it is"):
            run()

    def test_the_chunk_size_it_was_begun_with_is_kept(self, tmp_path):
        data = class_data(40, (4,), 3)
        model = randomize(nn.Linear(4, 3))
        first = Objective(model, data, chunk_size=7)
        evaluate(first, random_directions(first), resolution=3, path=tmp_path / "a.h5", progress=False)
        second = Objective(model, data, chunk_size=40)
        surface = evaluate(second, random_directions(second), resolution=3, path=tmp_path / "a.h5", progress=False)
        assert surface.provenance["plan"]["chunk_size"] == 7
        assert second.chunk_size == 40


class TestTrajectories:
    def test_losses_of_the_checkpoints_and_on_the_slice(self, tmp_path):
        model = TwoParameters(1.0, 2.0)
        with Recorder(tmp_path / "run.h5", model) as recorder:
            for a, b in [(0.5, 1.5), (0.2, 0.3), (0.1, 0.1)]:
                with torch.no_grad():
                    model.a.fill_(a)
                    model.b.fill_(b)
                recorder.step()
        objective = Objective(model, one_sample(), loss=asymmetric_loss, metrics={})
        line = given_directions(objective, np.array([[2.0, 0.0]]))
        run = Trajectory.load(tmp_path / "run.h5")
        surface = evaluate(objective, line, resolution=5, trajectories={"run": run}, path=tmp_path / "a.h5")
        projected = Surface.load(tmp_path / "a.h5").trajectories["run"]
        points = np.array([(1.0, 2.0), (0.5, 1.5), (0.2, 0.3), (0.1, 0.1)], dtype=np.float64)
        np.testing.assert_allclose(projected.coordinates[:, 0], (points[:, 0] - 0.1) / 2, atol=1e-12)
        np.testing.assert_allclose(projected.distance, points[:, 1] - 0.1, atol=1e-12)
        np.testing.assert_allclose(projected.loss, asymmetric(*points.T), rtol=1e-12)
        np.testing.assert_allclose(projected.loss_on_slice, asymmetric(points[:, 0], 0.1), rtol=1e-12)
        np.testing.assert_array_equal(projected.step, [0, 1, 2, 3])
        assert surface.trajectories.keys() == {"run"}

    def test_what_does_not_fit_is_said_before_the_grid_is_evaluated(self, tmp_path):
        with Recorder(tmp_path / "run.h5", TwoParameters()) as recorder:
            recorder.step()
        run = Trajectory.load(tmp_path / "run.h5")
        for select, name, message in [("a", "run", "other parameters"), ("all", "adam/1", "without '/'")]:
            objective = analytic(select=select)
            line = random_directions(objective, 1, normalization="none")
            with pytest.raises(ValueError, match=message):
                evaluate(objective, line, trajectories={name: run}, path=tmp_path / "a.h5", progress=False)
        assert not (tmp_path / "a.h5").exists()

    def test_a_long_run_is_thinned_with_its_ends(self, tmp_path, monkeypatch):
        import landscape.evaluation.run as module

        monkeypatch.setattr(module, "_MAX_PROJECTED", 4)
        model = TwoParameters()
        with Recorder(tmp_path / "run.h5", model) as recorder:
            for i in range(20):
                with torch.no_grad():
                    model.a += 0.1 * i
                    model.b -= 0.1
                recorder.step()
        objective = Objective(model, one_sample(), loss=asymmetric_loss, metrics={})
        run = Trajectory.load(tmp_path / "run.h5")
        surface = evaluate(
            objective, pca_directions(objective, run), resolution=3, trajectories={"run": run}, progress=False
        )
        assert surface.trajectories["run"].step.tolist() == [0, 7, 13, 20]


class TestBatchNorm:
    def networks(self):
        made = []
        for seed in (0, 1):
            model = randomize(nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Linear(6, 3)), seed).eval()
            model[1].running_mean.fill_(float(seed))
            model[1].running_var.fill_(1.0 + seed)
            made.append(model)
        return made

    def test_interpolated_between_two_networks_meets_both(self):
        first, second = self.networks()
        data = class_data(30, (4,), 3)
        for policy, meets in (("interpolated", True), ("frozen", False)):
            objective = Objective(first, data, batch_norm=policy)
            surface = evaluate(objective, directions_between(objective, second), axes=[np.array([0.0, 1.0])])
            expected = [F.cross_entropy(model(data[0]), data[1]).item() for model in (first, second)]
            assert surface.values["loss"][0] == pytest.approx(expected[0], rel=1e-5)
            assert (surface.values["loss"][1] == pytest.approx(expected[1], rel=1e-5)) == meets

    def test_interpolated_needs_networks(self):
        objective = Objective(self.networks()[0], class_data(30, (4,), 3), batch_norm="interpolated")
        with pytest.raises(ValueError, match=r"needs the statistics of several networks.*directions_between"):
            evaluate(objective, random_directions(objective), resolution=3)

    def test_the_policy_is_stored(self, tmp_path):
        objective = Objective(self.networks()[0], class_data(30, (4,), 3), batch_norm="recalibrated")
        evaluate(objective, random_directions(objective), resolution=3, path=tmp_path / "a.h5", progress=False)
        assert Surface.load(tmp_path / "a.h5").provenance["settings"]["batch-norm policy"] == "recalibrated"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"resolution": (3, 4, 5)}, r"2 direction\(s\), got 3 resolution"),
        ({"extent": [(-1, 1)] * 3}, r"and 3 range\(s\)"),
        ({"axes": [np.arange(3.0)]}, "got 1 axes"),
        ({"axes": [np.arange(3.0)] * 2, "resolution": 3}, "either axes, or"),
        ({"extent": (1, -1)}, "low < high"),
    ],
)
def test_grids_that_do_not_fit_are_refused(options, message):
    objective = analytic()
    with pytest.raises(ValueError, match=message):
        evaluate(objective, given_directions(objective, UNIT), **options)


def test_the_users_model_is_untouched():
    model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Dropout(), nn.Linear(6, 3)).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state = torch.get_rng_state()
    objective = Objective(model, class_data(30, (4,), 3), batch_norm="batch")
    evaluate(objective, random_directions(objective), resolution=3, progress=False)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)
    assert all(module.training for module in model.modules())
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())
