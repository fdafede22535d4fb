import numpy as np
import pytest

from landscape.sanity import border_sides, center_index, findings
from landscape.surface import ProjectedTrajectory, Surface, empty_surface


def bowl(center=(0.0, 0.0), nx=5, ny=7, **facts) -> Surface:
    """A quadratic bowl whose lowest point may lie anywhere."""
    x, y = np.linspace(-1, 1, nx), np.linspace(-1, 1, ny)
    surface = empty_surface({"x": x, "y": y}, ["loss"])
    surface.values["loss"][:] = (x[:, None] - center[0]) ** 2 + 2 * (y[None, :] - center[1]) ** 2 + 0.5
    surface.done[:] = True
    surface.provenance = facts
    return surface


def found(surface, label):
    rows = [row for row in findings(surface) if row.label == label]
    assert rows, f"no finding {label!r} in {[row.label for row in findings(surface)]}"
    return rows[0]


def test_the_center_is_compared_with_the_network_and_with_what_was_saved():
    good = bowl(at_origin={"loss": 0.5}, checkpoint={"loss": 0.5})
    assert not found(good, "center").warning
    assert not found(good, "checkpoint").warning
    assert found(bowl(at_origin={"loss": 0.6}), "center").warning
    assert found(bowl(at_origin={"loss": np.inf}), "center").warning
    meant = found(bowl(at_origin={"loss": 0.6}, settings={"batch-norm policy": "recalibrated"}), "center")
    assert not meant.warning
    assert "instead of recalibrated ones" in meant.text
    row = found(bowl(at_origin={"loss": 0.5}, checkpoint={"loss": 0.7}), "checkpoint")
    assert row.warning
    assert "other data" in row.text


def test_a_grid_without_the_network_is_said():
    surface = bowl()
    surface.axes["x"] = surface.axes["x"] + 0.1
    assert center_index(surface) is None
    assert found(surface, "center").warning
    assert center_index(bowl()) == (2, 3)


def test_a_lowest_point_on_the_border_is_no_minimum():
    row = found(bowl(center=(-1.0, 0.0)), "lowest point")
    assert row.warning
    assert "x low" in row.text
    assert "no minimum" in row.text
    inner = found(bowl(center=(0.5, 0.0)), "lowest point")
    assert not inner.warning
    assert "0.25 below the center" in inner.text
    assert found(bowl(), "lowest point").text.endswith("the center")
    assert border_sides(bowl(), (0, 6)) == ["x low", "y high"]


def test_skewed_directions_are_said_with_their_angle():
    assert not found(bowl(gram=[[4.0, 0.0], [0.0, 9.0]]), "angle").warning
    row = found(bowl(gram=[[4.0, 3.0], [3.0, 9.0]]), "angle")
    assert row.warning
    assert row.text.startswith("60.0°")
    assert found(bowl(gram=[[4.0, 3.0], [3.0, 9.0]], origin_norm=2.0), "length of the directions").text == (
        "2, 3, of the network 2"
    )


def test_explained_variance_of_the_drawn_components():
    row = found(bowl(slice={"explained_variance_ratio": [0.5, 0.25, 0.125]}), "explained variance")
    assert row.text == "50.0% + 25.0% = 75.0%"
    assert not row.warning
    assert found(bowl(slice={"explained_variance_ratio": [0.2, 0.1]}), "explained variance").warning


def test_gaps_and_unfinished_work_are_counted():
    surface = bowl()
    surface.values["loss"][0, 0] = np.nan
    surface.values["loss"][1, 0] = np.inf
    assert found(surface, "non-finite loss").text == "2 of 35 points"
    surface.done[2:] = False
    row = found(surface, "computed")
    assert row.warning
    assert row.text.startswith("40.0%")
    surface.done[:] = False
    assert found(surface, "lowest point").warning


def test_trajectories_report_their_distance_and_whether_they_leave_the_grid():
    run = ProjectedTrajectory(
        step=np.arange(2),
        coordinates=np.array([[0.5, 0.5], [0.0, 0.0]]),
        distance=np.array([3.0, 0.0]),
        loss=np.array([1.0, 0.5]),
        loss_on_slice=np.array([1.25, 0.5]),
    )
    surface = bowl()
    surface.trajectories["adam"] = run
    rows = [row for row in findings(surface) if row.label == "trajectory adam"]
    assert len(rows) == 1
    assert "up to 3 from the slice" in rows[0].text
    assert "differ by up to 0.25" in rows[0].text
    run.coordinates[0, 1] = 5.0
    rows = [row for row in findings(surface) if row.label == "trajectory adam"]
    assert rows[1].warning
    assert "along y" in rows[1].text


def test_imported_surfaces_without_provenance_are_reported_too():
    surface = empty_surface({"x": np.linspace(-1, 1, 5)}, ["accuracy"])
    surface.values["accuracy"][:] = 0.5
    surface.done[:] = True
    assert {row.label for row in findings(surface)} == {"computed", "center", "lowest point"}


def test_plan_and_time():
    facts = {"plan": {"name": "reference", "chunk_size": 128, "notes": ["exact"]}, "seconds": 3.5}
    assert found(bowl(**facts), "plan").text == "reference; 128 samples at a time; exact"
    assert found(bowl(**facts), "time").text == "3.5 s, 100 ms per point"
    with pytest.raises(AssertionError):
        found(bowl(), "time")
