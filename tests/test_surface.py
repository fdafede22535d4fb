import os

import numpy as np
import pytest
import xarray
from problems import asymmetric

from landscape.surface import ProjectedTrajectory, Surface, SurfaceStore, empty_surface, lowest_point, progress_path

X, Y = np.linspace(-1, 1, 5), np.linspace(0, 3, 4)
QUESTION = {"origin": "a", "data": "b"}


def plane():
    """An asymmetric function on a grid that is not square."""
    surface = empty_surface({"x": X, "y": Y}, ["loss", "accuracy"])
    surface.values["loss"][:] = asymmetric(X[:, None], Y[None, :])
    surface.values["accuracy"][:] = 0.25
    surface.done[:] = True
    surface.origin, surface.directions = np.arange(3.0), np.ones((2, 3))
    surface.provenance = {"plan": {"name": "reference"}, "text": "<µ>"}
    t = np.arange(3.0)
    surface.trajectories["run"] = ProjectedTrajectory(t, np.stack([t, t], axis=1), t, t, t)
    return surface


def test_round_trip(tmp_path):
    surface = plane()
    surface.values["loss"][1, 2] = np.nan
    surface.values["loss"][2, 2] = np.inf
    surface.done[4, 3] = False
    surface.save(tmp_path / "a.h5")
    loaded = Surface.load(tmp_path / "a.h5", vectors=True)
    for name in surface.values:
        np.testing.assert_array_equal(loaded.values[name], surface.values[name])
    np.testing.assert_array_equal(loaded.done, surface.done)
    np.testing.assert_array_equal(loaded.directions, surface.directions)
    np.testing.assert_array_equal(loaded.origin, surface.origin)
    np.testing.assert_array_equal(loaded.axes["y"], Y)
    assert list(loaded.axes) == ["x", "y"]
    assert list(loaded.values) == ["loss", "accuracy"]
    assert loaded.provenance == surface.provenance
    np.testing.assert_array_equal(loaded.trajectories["run"].distance, np.arange(3.0))
    assert Surface.load(tmp_path / "a.h5").directions is None  # large, so only on request


def test_values_belong_to_x_i_and_y_j(tmp_path):
    plane().save(tmp_path / "a.h5")
    loaded = Surface.load(tmp_path / "a.h5")
    for i, x in enumerate(loaded.axes["x"]):
        for j, y in enumerate(loaded.axes["y"]):
            assert loaded.values["loss"][i, j] == asymmetric(x, y)


def test_xarray_shows_labelled_axes(tmp_path):
    plane().save(tmp_path / "a.h5")
    with xarray.open_dataset(tmp_path / "a.h5", engine="h5netcdf") as data:
        assert data["loss"].dims == ("x", "y")
        assert data["loss"].sel(x=0.5, y=2.0).item() == asymmetric(0.5, 2.0)
        assert data["done"].dtype == bool


def test_not_computed_is_no_value(tmp_path):
    surface = plane()
    surface.values["loss"][0, 0] = 0.0  # a loss of zero is a result
    surface.values["loss"][1, 1] = np.nan  # so is NaN
    surface.done[2, 2] = False
    assert surface.metric()[0, 0] == 0
    assert surface.done[1, 1]
    assert np.isnan(surface.metric()[2, 2])
    assert not surface.finished


def test_lowest_point_is_the_lowest_of_the_computed_and_finite():
    surface = plane()
    surface.values["loss"][0, 0] = -np.inf
    surface.values["loss"][1, 0] = np.nan
    surface.values["loss"][2, 0] = -5.0
    surface.done[2, 0] = False
    surface.values["loss"][3, 1] = -3.0
    assert lowest_point(surface) == ((3, 1), -3.0)
    surface.done[:] = False
    assert lowest_point(surface) is None


class TestStore:
    def empty(self):
        surface = empty_surface({"x": X, "y": Y}, ["loss"])
        surface.origin, surface.directions = np.arange(3.0), np.ones((2, 3))
        return surface

    def test_what_was_recorded_is_found_again(self, tmp_path):
        path = tmp_path / "a.h5"
        store = SurfaceStore(self.empty(), QUESTION, path, interval=0)
        store.record((1, 2), {"loss": 3.5})
        loaded = Surface.load(path)
        assert loaded.values["loss"][1, 2] == 3.5
        assert loaded.done.sum() == 1
        again = SurfaceStore(self.empty(), QUESTION, path)
        assert again.n_continued == 1
        again.record((0, 0), {"loss": 1.0})
        again.finish()
        assert os.listdir(tmp_path) == ["a.h5"]
        assert Surface.load(path).done.sum() == 2

    def test_another_question_is_refused_and_named(self, tmp_path):
        SurfaceStore(self.empty(), QUESTION, tmp_path / "a.h5").finish()
        with pytest.raises(ValueError, match="what differs: data"):
            SurfaceStore(self.empty(), {**QUESTION, "data": "other"}, tmp_path / "a.h5")
        with pytest.raises(ValueError, match="what differs: data"):  # a part that is no longer asked for
            SurfaceStore(self.empty(), {"origin": "a"}, tmp_path / "a.h5")

    def test_an_older_progress_file_that_a_kill_left_is_not_believed(self, tmp_path):
        path = tmp_path / "a.h5"
        store = SurfaceStore(self.empty(), QUESTION, path, interval=0)
        store.record((0, 0), {"loss": 1.0})
        left = progress_path(path).read_bytes()
        store.record((0, 1), {"loss": 2.0})
        store.finish()
        progress_path(path).write_bytes(left)
        assert Surface.load(path).done.sum() == 2

    def test_a_progress_file_of_another_surface_is_not_believed(self, tmp_path):
        other = SurfaceStore(self.empty(), {"origin": "z"}, tmp_path / "other.h5", interval=0)
        other.record((0, 0), {"loss": 99.0})
        SurfaceStore(self.empty(), QUESTION, tmp_path / "a.h5").finish()
        os.rename(progress_path(tmp_path / "other.h5"), progress_path(tmp_path / "a.h5"))
        assert not Surface.load(tmp_path / "a.h5").done.any()

    def test_values_are_small_beside_the_vectors_while_it_grows(self, tmp_path):
        surface = self.empty()
        surface.origin, surface.directions = np.zeros(100_000), np.ones((2, 100_000))
        store = SurfaceStore(surface, QUESTION, tmp_path / "a.h5", interval=0)
        store.record((0, 0), {"loss": 1.0})
        assert progress_path(tmp_path / "a.h5").stat().st_size < 30_000


@pytest.mark.parametrize(
    ("axes", "metrics", "message"),
    [
        ({"x": np.array([])}, ["loss"], r"needs shape \[n\]"),
        ({"x": np.zeros((2, 2))}, ["loss"], r"needs shape \[n\]"),
        ({"x": np.array([0.0, 0.0])}, ["loss"], "strictly increasing"),
        ({"x": np.array([0.0, np.nan])}, ["loss"], "finite"),
        ({"x": X}, ["x"], "taken"),
        ({"x": X}, ["done"], "taken"),
    ],
)
def test_impossible_grids_are_refused(axes, metrics, message):
    with pytest.raises(ValueError, match=message):
        empty_surface(axes, metrics)


def test_values_of_another_shape_are_refused():
    with pytest.raises(ValueError, match=r"loss has shape \(4, 5\)"):
        Surface({"x": X, "y": Y}, {"loss": np.zeros((4, 5))}, np.ones((5, 4), dtype=bool))
    with pytest.raises(ValueError, match="no metric 'los'; the surface has loss, accuracy"):
        plane().metric("los")
