import sys
from pathlib import Path

import numpy as np
import pytest
import pyvista
from test_interchange import loss, plane, volume

from landscape.mesh import export_mesh
from landscape.surface import Surface


def ordered(points):
    return np.array(sorted(map(tuple, np.asarray(points, dtype=np.float64).round(5))))


@pytest.mark.parametrize("suffix", [".vtp", ".stl", ".obj", ".ply", ".STL"])
def test_mesh_is_the_surface_point_by_point(tmp_path, suffix):
    surface = plane(4, 3)
    path = tmp_path / f"mesh{suffix}"
    assert export_mesh(surface, path) is None
    mesh = pyvista.read(path)
    assert isinstance(mesh, pyvista.PolyData)
    x, y = surface.axes.values()
    expected = [(a, b, loss(a, b)) for a in x for b in y]
    np.testing.assert_allclose(ordered(mesh.points), ordered(expected), rtol=1e-6)
    # every cell is there once, and is seen from above
    assert mesh.n_cells == 2 * 3 * 2
    assert mesh.n_open_edges == 2 * (3 + 2)  # the border and no diagonal
    corners = np.asarray(mesh.points, dtype=np.float64)[mesh.regular_faces]
    first, second = corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]
    areas = (first[:, 0] * second[:, 1] - first[:, 1] * second[:, 0]) / 2
    np.testing.assert_allclose(areas, np.full(12, 1.0 * 0.6 / 2), rtol=1e-5)
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


def test_vtp_keeps_the_true_values_under_any_scale(tmp_path):
    surface = plane(5, 4)
    export_mesh(surface, tmp_path / "m.vtp", scale="log", height=0.5, ceiling=6.0)
    mesh = pyvista.read(tmp_path / "m.vtp")
    assert (mesh["zvalue"] > 6).any()
    heights = np.log10(np.minimum(surface.values["loss"], 6.0))
    low, high = heights.min(), heights.max()
    for (x, y, z), value in zip(mesh.points, mesh["zvalue"], strict=True):
        assert value == pytest.approx(loss(x, y), rel=1e-14)
        assert z == pytest.approx((np.log10(min(value, 6.0)) - low) / (high - low) * 0.5 * 3.0, abs=1e-12)


def test_scales_alone(tmp_path):
    surface = plane()
    values = surface.values["loss"].ravel()
    for options, expected in (
        ({"scale": "log"}, np.log10(values)),
        ({"ceiling": 5.0}, np.minimum(values, 5.0)),
        ({"height": 2.0}, (values - values.min()) / np.ptp(values) * 6.0),
    ):
        export_mesh(surface, tmp_path / "m.vtp", **options)
        np.testing.assert_allclose(pyvista.read(tmp_path / "m.vtp").points[:, 2], expected, rtol=1e-13)
    export_mesh(plane(f=lambda x, y: 2.0), tmp_path / "flat.vtp", height=1.0)
    assert (pyvista.read(tmp_path / "flat.vtp").points[:, 2] == 0).all()


@pytest.mark.parametrize("suffix", [".vtp", ".stl", ".obj", ".ply"])
def test_cells_at_gaps_are_left_out_and_nothing_else(tmp_path, suffix):
    surface = plane(6, 5)
    surface.done[0, 0] = False  # one cell
    surface.values["loss"][3, 2] = np.nan  # four cells
    surface.values["loss"][5, 4] = np.inf  # one cell
    surface.values["accuracy"] = np.full((6, 5), 0.5)
    export_mesh(surface, tmp_path / f"m{suffix}", height=1.0)
    mesh = pyvista.read(tmp_path / f"m{suffix}")
    assert mesh.n_cells == 2 * (5 * 4 - 6)
    x, y = surface.axes.values()
    missing = {(0, 0), (3, 2), (5, 4)}
    kept = [(a, b) for i, a in enumerate(x) for j, b in enumerate(y) if (i, j) not in missing]
    np.testing.assert_allclose(ordered(mesh.points[:, :2]), ordered(kept), atol=1e-5)
    assert np.isfinite(mesh.points).all()


@pytest.mark.parametrize("suffix", [".vti", ".vtr"])
def test_volume_point_by_point(tmp_path, suffix):
    surface = volume()
    export_mesh(surface, tmp_path / f"v{suffix}")
    grid = pyvista.read(tmp_path / f"v{suffix}")
    assert grid.dimensions == (3, 4, 5)
    assert grid.n_points == len(grid["loss"]) == 60
    x, y, z = grid.points.T
    np.testing.assert_allclose(grid["loss"], x + 10 * y + 100 * z, atol=1e-12)
    assert grid.bounds == pytest.approx((-1, 1, 0, 1, -2, 3))


def test_volume_of_uneven_axes(tmp_path):
    surface = volume()
    surface.axes["y"] = np.array([0.0, 0.1, 0.5, 1.0])
    with pytest.raises(ValueError, match=r"evenly spaced axes; use \.vtr"):
        export_mesh(surface, tmp_path / "v.vti")
    export_mesh(surface, tmp_path / "v.vtr")
    assert pyvista.read(tmp_path / "v.vtr").y.tolist() == [0.0, 0.1, 0.5, 1.0]


@pytest.mark.parametrize("suffix", [".vti", ".vtr"])
def test_volume_gaps_are_hidden_cells(tmp_path, suffix):
    surface = volume()
    surface.done[0, 0, 0] = False  # one cell
    surface.values["loss"][1, 1, 4] = np.inf  # four cells
    export_mesh(surface, tmp_path / f"v{suffix}")
    grid = pyvista.read(tmp_path / f"v{suffix}")
    hidden = grid.cell_data["vtkGhostType"].reshape((2, 3, 4), order="F")
    assert {tuple(index) for index in np.argwhere(hidden == 32).tolist()} == {
        (0, 0, 0),
        *((i, j, 3) for i in (0, 1) for j in (0, 1)),
    }
    values = grid["loss"].reshape(surface.shape, order="F")
    np.testing.assert_array_equal(values, surface.metric())
    # the way the documentation recommends
    threshold = grid.threshold((-1e9, 1e9), scalars="loss", all_scalars=True)
    assert threshold.n_cells == 2 * 3 * 4 - 5
    assert np.isfinite(threshold.contour([150.0], scalars="loss").points).all()


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("m.vtr", {}, r"2 axes as '.vtr': planes go to .vtp, .stl, .obj, .ply, volumes to .vti, .vtr"),
        ("m", {}, "a file without suffix"),
        ("m.stl", {"scale": "sqrt"}, "scale is 'sqrt'"),
        ("m.stl", {"height": 0.0}, "height must be a finite number, above 0, got 0.0"),
        ("m.stl", {"height": float("nan")}, "height must be a finite number, above 0, got nan"),
        ("m.stl", {"metric": "accuracy"}, "no metric 'accuracy'"),
        ("m.stl", {"scale": "log", "ceiling": -1.0}, "must lie above the lowest loss"),
    ],
)
def test_export_arguments(tmp_path, name, options, message):
    with pytest.raises(ValueError, match=message):
        export_mesh(plane(), tmp_path / name, **options)
    assert list(tmp_path.iterdir()) == []


def test_export_refuses_what_has_no_mesh(tmp_path):
    line = Surface({"x": np.arange(3.0)}, {"loss": np.ones(3)}, np.ones(3, dtype=bool))
    with pytest.raises(ValueError, match="a surface with 1 axes"):
        export_mesh(line, tmp_path / "m.stl")
    with pytest.raises(ValueError, match="a volume keeps its values"):
        export_mesh(volume(), tmp_path / "v.vti", scale="log")
    with pytest.raises(ValueError, match="two points or more along each axis"):
        export_mesh(plane(1, 3), tmp_path / "m.stl")
    empty = plane()
    empty.done[1:3, 1] = False
    with pytest.raises(ValueError, match="no grid cell has a finite, computed loss"):
        export_mesh(empty, tmp_path / "m.stl")
    zero = plane(f=lambda x, y: max(x, 0.0))
    with pytest.raises(ValueError, match="needs positive values, the lowest is 0: use scale='linear'"):
        export_mesh(zero, tmp_path / "m.stl", scale="log")


def test_a_failed_export_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "m.stl"
    export_mesh(plane(), path)
    before = path.read_bytes()

    def fail(mesh, name):
        Path(name).write_text("half")
        raise OSError("disk full")

    monkeypatch.setattr(pyvista.PolyData, "save", fail)
    with pytest.raises(OSError, match="disk full"):
        export_mesh(plane(5, 5), path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_without_pyvista_the_error_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyvista", None)
    with pytest.raises(ImportError, match=r'pip install "landscape\[export\]"'):
        export_mesh(plane(), tmp_path / "m.stl")
