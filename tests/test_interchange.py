import subprocess
import sys
import tempfile
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from landscape.interchange import (
    read_li_directions,
    read_li_projection,
    read_li_surface,
    write_li_directions,
    write_li_projection,
    write_li_surface,
)
from landscape.surface import ProjectedTrajectory, empty_surface


def loss(x, y):
    """Symmetric in nothing: exchanged, flipped or shifted axes all show."""
    return 3.0 + x + 10.0 * y**2 + np.exp(x * y)


def plane(nx=4, ny=3, f=loss):
    axes = {"x": np.linspace(-1.0, 2.0, nx), "y": np.linspace(-0.5, 0.7, ny)}
    surface = empty_surface(axes, ["loss"])
    for i, x in enumerate(axes["x"]):
        for j, y in enumerate(axes["y"]):
            surface.values["loss"][i, j] = f(x, y)
    surface.done[:] = True
    return surface


def volume():
    axes = {"x": np.linspace(-1, 1, 3), "y": np.linspace(0, 1, 4), "z": np.linspace(-2, 3, 5)}
    surface = empty_surface(axes, ["loss"])
    for i, x in enumerate(axes["x"]):
        for j, y in enumerate(axes["y"]):
            for k, z in enumerate(axes["z"]):
                surface.values["loss"][i, j, k] = x + 10 * y + 100 * z
    surface.done[:] = True
    return surface


def their_file(path, x, y, skip=(), **more):
    """Write a surface as their `crunch` does: flat indices into a mesh grid with indexing='xy'."""
    with h5py.File(path, "w") as file:
        file["dir_file"] = "net_weights_xignore=biasbn.h5"
        file["xcoordinates"] = x
        shape = (len(x),)
        points = [(xj, 0.0) for xj in x]
        if y is not None:
            file["ycoordinates"] = y
            shape = (len(x), len(y))
            points = [(xj, yi) for yi in y for xj in x]
        losses, accuracies = -np.ones(shape), -np.ones(shape)
        for index, point in enumerate(points):
            if index not in skip:
                losses.ravel()[index] = loss(*point)
                accuracies.ravel()[index] = 100.0 / loss(*point)
        file["train_loss"], file["train_acc"] = losses, accuracies
        for name, array in more.items():
            file[name] = array
    return path


# surfaces


def test_reads_their_plane_point_by_point(tmp_path):
    x, y = np.linspace(-1, 1, 5), np.linspace(-0.25, 2, 5)
    surface = read_li_surface(their_file(tmp_path / "s.h5", x, y))
    assert list(surface.axes) == ["x", "y"]
    assert surface.finished
    for i in range(5):
        for j in range(5):
            assert surface.values["loss"][i, j] == loss(x[i], y[j])
            assert surface.values["accuracy"][i, j] == pytest.approx(1 / loss(x[i], y[j]), rel=1e-15)
    assert surface.provenance["imported"]["dir_file"] == "net_weights_xignore=biasbn.h5"
    assert surface.provenance["imported"]["file"] == str(tmp_path / "s.h5")


def test_reads_their_line(tmp_path):
    x = np.linspace(-1, 1, 7)
    surface = read_li_surface(their_file(tmp_path / "s.h5", x, None, skip={2}))
    assert list(surface.axes) == ["x"]
    assert surface.done.tolist() == [True, True, False, True, True, True, True]
    assert surface.metric()[[0, 6]].tolist() == [loss(-1.0, 0.0), loss(1.0, 0.0)]


def test_not_computed_nan_and_zero_are_three_things(tmp_path):
    losses = np.array([[-1.0, np.nan], [0.0, np.inf]])
    path = their_file(tmp_path / "s.h5", np.array([0.0, 1.0]), np.array([0.0, 1.0]))
    with h5py.File(path, "r+") as file:
        file["train_loss"][...] = losses
    surface = read_li_surface(path)
    assert surface.done.tolist() == [[False, True], [True, True]]
    np.testing.assert_array_equal(surface.metric(), [[np.nan, 0.0], [np.nan, np.inf]])


def test_descending_coordinates_are_sorted_with_their_values(tmp_path):
    x, y = np.array([2.0, -1.0, 0.5]), np.array([1.0, 0.0, -3.0])
    surface = read_li_surface(their_file(tmp_path / "s.h5", x, y))
    assert surface.axes["x"].tolist() == [-1.0, 0.5, 2.0]
    assert surface.axes["y"].tolist() == [-3.0, 0.0, 1.0]
    np.testing.assert_array_equal(
        surface.values["loss"], [[loss(a, b) for b in (-3.0, 0.0, 1.0)] for a in (-1.0, 0.5, 2.0)]
    )


def test_other_metrics_keep_their_own_gaps_and_units(tmp_path):
    x = y = np.array([0.0, 1.0])
    more = {
        "test_loss": np.array([[5.0, -1.0], [7.0, 8.0]]),
        "test_acc": np.full((2, 2), 75.0),
        "min_eig": np.array([[1.0, -1.0], [0.5, 2.0]]),  # their marker of this one is +1
        "max_eig": np.array([[-1.0, 9.0], [9.0, 9.0]]),
        "notes": np.array([1.0, 2.0, 3.0]),
    }
    surface = read_li_surface(their_file(tmp_path / "s.h5", x, y, **more))
    assert surface.finished
    np.testing.assert_array_equal(surface.values["test_loss"], [[5.0, 7.0], [np.nan, 8.0]])
    np.testing.assert_array_equal(surface.values["test_accuracy"], np.full((2, 2), 0.75))
    np.testing.assert_array_equal(surface.values["min_eig"], [[np.nan, 0.5], [-1.0, 2.0]])
    np.testing.assert_array_equal(surface.values["max_eig"], [[np.nan, 9.0], [9.0, 9.0]])
    imported = surface.provenance["imported"]
    assert imported["not_computed"] == {"test_loss": 1, "min_eig": 1, "max_eig": 1}
    assert imported["left_out"] == ["notes"]


def test_scrambled_grid_is_refused_and_the_remedy_works(tmp_path):
    x, y = np.linspace(-1, 1, 4), np.linspace(0, 2, 3)
    path = their_file(tmp_path / "s.h5", x, y)
    with pytest.raises(ValueError, match=r"train_loss has shape \[4, 3\].*values\.reshape\(3, 4\)"):
        read_li_surface(path)
    with h5py.File(path, "r+") as file:
        for name in ("train_loss", "train_acc"):
            values = file[name][()]
            del file[name]
            file[name] = values.reshape(3, 4)
    np.testing.assert_array_equal(read_li_surface(path).values["loss"], loss(x[:, None], y[None, :]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"train_loss": np.ones(3)}, "1-D array in a 2-D file"),
        ({"train_loss": np.ones((3, 5))}, r"has shape \[3, 5\], the coordinates need \[3, 3\]"),
        ({"ycoordinates": np.ones((3, 1))}, r"ycoordinates has shape \(3, 1\)"),
        ({"ycoordinates": np.array([0.0, 1.0, 1.0])}, "strictly increasing"),
        ({"xcoordinates": np.array([0.0, 1.0, np.nan])}, "finite"),
        ({"xcoordinates": None}, "no xcoordinates.*it has: dir_file"),
        ({"train_loss": None, "train_acc": None}, "no values that are known"),
        ({"train_loss": np.array([b"a", b"b", b"c"])}, "must be an array of numbers"),
    ],
)
def test_files_that_do_not_fit_are_refused(tmp_path, change, message):
    path = their_file(tmp_path / "s.h5", np.arange(3.0), np.arange(3.0))
    with h5py.File(path, "r+") as file:
        for name, value in change.items():
            del file[name]
            if value is not None:
                file[name] = value
    with pytest.raises(ValueError, match=message):
        read_li_surface(path)


def test_other_files_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nothing\.h5"):
        read_li_surface(tmp_path / "nothing.h5")
    (tmp_path / "text.h5").write_text("no HDF5")
    with pytest.raises(ValueError, match="not a readable HDF5 file"):
        read_li_surface(tmp_path / "text.h5")
    plane().save(tmp_path / "ours.h5")
    with pytest.raises(ValueError, match="written by landscape"):
        read_li_surface(tmp_path / "ours.h5")


def test_writes_what_their_programs_read(tmp_path):
    surface = plane(4, 3)
    surface.values["accuracy"] = np.full((4, 3), 0.25)
    surface.done[1, 2] = False
    assert write_li_surface(surface, tmp_path / "s.h5", dir_file="d.h5") == []
    with h5py.File(tmp_path / "s.h5") as file:
        assert file["dir_file"].asstr()[()] == "d.h5"
        mesh_x, mesh_y = np.meshgrid(file["xcoordinates"][:], file["ycoordinates"][:])
        expected = loss(mesh_x, mesh_y)
        expected[2, 1] = -1
        np.testing.assert_allclose(file["train_loss"][:], expected, rtol=1e-15)
        assert set(file["train_acc"][:].ravel()) == {25.0, -1.0}


finite = st.floats(-1e6, 1e6).filter(lambda value: value not in (-1.0, 1.0, -0.01))


@settings(deadline=None, max_examples=40)
@given(st.data())
def test_surface_round_trip(data):
    shape = data.draw(st.lists(st.integers(1, 5), min_size=1, max_size=2))
    axes = {
        name: np.array(sorted(data.draw(st.sets(finite, min_size=n, max_size=n))))
        for name, n in zip("xy", shape, strict=False)
    }
    metrics = ["loss", "accuracy", "test_loss", "test_accuracy", "min_eig", "max_eig"]
    surface = empty_surface(axes, metrics)
    n_points = int(np.prod(shape))
    values = st.lists(finite | st.sampled_from([np.nan, np.inf, -np.inf, 0.0]), min_size=n_points, max_size=n_points)
    for name in metrics:
        surface.values[name] = np.array(data.draw(values)).reshape(shape)
    surface.done = np.array(data.draw(st.lists(st.booleans(), min_size=n_points, max_size=n_points))).reshape(shape)
    with tempfile.TemporaryDirectory() as folder:
        write_li_surface(surface, Path(folder) / "s.h5")
        back = read_li_surface(Path(folder) / "s.h5")
    for name, coordinates in axes.items():
        np.testing.assert_array_equal(back.axes[name], coordinates)
    np.testing.assert_array_equal(back.done, surface.done)
    for name in metrics:
        np.testing.assert_allclose(back.metric(name), surface.metric(name), rtol=1e-15, atol=1e-300)


def test_a_computed_value_that_equals_the_marker_is_refused(tmp_path):
    surface = plane()
    surface.values["loss"][2, 1] = -1.0
    with pytest.raises(ValueError, match=r"loss is -1 at grid index \(2, 1\)"):
        write_li_surface(surface, tmp_path / "s.h5")
    assert list(tmp_path.iterdir()) == []
    surface.done[2, 1] = False
    write_li_surface(surface, tmp_path / "s.h5")
    surface.values["min_eig"] = np.ones(surface.shape)
    with pytest.raises(ValueError, match="min_eig is 1 at"):
        write_li_surface(surface, tmp_path / "s.h5")


def test_what_the_format_cannot_hold_is_named(tmp_path):
    surface = plane()
    surface.values["margin"] = np.zeros(surface.shape)
    t = np.zeros(2)
    surface.trajectories["adam"] = ProjectedTrajectory(t, np.zeros((2, 2)), t, t, t)
    surface.origin, surface.directions = np.zeros(5), np.zeros((2, 5))
    surface.provenance = {"seed": 1}
    left_out = write_li_surface(surface, tmp_path / "s.h5")
    assert left_out == ["metric margin", "trajectory adam", "origin", "directions", "provenance"]
    assert list(read_li_surface(tmp_path / "s.h5").values) == ["loss"]

    with pytest.raises(ValueError, match="the surface has 3 axes"):
        write_li_surface(volume(), tmp_path / "v.h5")
    with pytest.raises(ValueError, match=r"the surface has margin; Li et al\.'s format holds loss"):
        write_li_surface(empty_surface({"x": np.arange(3.0)}, ["margin"]), tmp_path / "v.h5")


# directions


SHAPES = [(f"layer{i}.weight", (2, i + 1)) for i in range(11)] + [("scale", ())]
P = sum(2 * (i + 1) for i in range(11)) + 1


def test_directions_in_numeric_order(tmp_path):
    """Twelve tensors: in HDF5's own order, data set 10 comes before 2."""
    theta = np.arange(P, dtype=np.float32)
    with h5py.File(tmp_path / "d.h5", "w") as file:
        for name, sign in (("xdirection", 1), ("ydirection", -1)):
            group, start = file.create_group(name), 0
            for i, (_, shape) in enumerate(SHAPES):
                size = int(np.prod(shape))
                group.create_dataset(str(i), data=(sign * theta[start : start + size]).reshape(shape))
                start += size
        file["explained_variance_ratio_"] = np.array([0.8, 0.1])
    directions, info = read_li_directions(tmp_path / "d.h5", SHAPES)
    assert directions.dtype == np.float32
    np.testing.assert_array_equal(directions, np.stack([theta, -theta]))
    assert {name: array.tolist() for name, array in info.items()} == {"explained_variance_ratio_": [0.8, 0.1]}


def test_directions_of_a_torch_network(tmp_path):
    torch = pytest.importorskip("torch")
    nn = torch.nn
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Conv2d(2, 3, 1), nn.BatchNorm2d(3))
    shapes = [(name, tuple(tensor.shape)) for name, tensor in model.named_parameters()]
    states = {name: torch.randn(tensor.shape) for name, tensor in model.state_dict().items()}
    theta = np.concatenate([states[name].numpy().ravel() for name, _ in shapes])
    with h5py.File(tmp_path / "states.h5", "w") as file:
        group = file.create_group("xdirection")
        for i, tensor in enumerate(states.values()):
            group.create_dataset(str(i), data=tensor.numpy())

    directions, info = read_li_directions(tmp_path / "states.h5", shapes, list(model.state_dict()))
    np.testing.assert_array_equal(directions, theta[None])
    assert info == {}
    only_last, _ = read_li_directions(tmp_path / "states.h5", shapes[4:5], list(model.state_dict()))
    np.testing.assert_array_equal(only_last[0], states["2.weight"].numpy().ravel())
    with pytest.raises(ValueError, match=r"xdirection has 14 tensors, expected 8.*give state_names"):
        read_li_directions(tmp_path / "states.h5", shapes)
    with pytest.raises(ValueError, match=r"parameter '3.bias' is not among state_names"):
        read_li_directions(tmp_path / "states.h5", shapes, list(model.state_dict())[:10])


@pytest.mark.parametrize("k", [1, 2, 3])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_directions_round_trip(tmp_path, k, dtype):
    directions = np.random.default_rng(0).normal(size=(k, P)).astype(dtype)
    info = {"singular_values_": np.array([3.0, 1.0]), "explained_variance_": np.array([9.0, 1.0])}
    write_li_directions(tmp_path / "d.h5", directions, SHAPES, info)
    back, info_back = read_li_directions(tmp_path / "d.h5", SHAPES)
    assert back.dtype == dtype
    np.testing.assert_array_equal(back, directions)
    assert {name: array.tolist() for name, array in info_back.items()} == {
        "singular_values_": [3.0, 1.0],
        "explained_variance_": [9.0, 1.0],
    }


def test_directions_that_do_not_fit_are_refused(tmp_path):
    path = tmp_path / "d.h5"
    write_li_directions(path, np.zeros((2, P)), SHAPES)
    other = [*SHAPES[:3], ("layer3.weight", (4, 2)), *SHAPES[4:]]
    with pytest.raises(ValueError, match=r"shape \(2, 4\) for parameter 'layer3.weight', expected \(4, 2\)"):
        read_li_directions(path, other)
    with h5py.File(path, "r+") as file:
        file["xdirection"].move("11", "12")
    with pytest.raises(ValueError, match="named 0, 1, 2"):
        read_li_directions(path, SHAPES)
    with pytest.raises(ValueError, match="no xdirection"):
        read_li_directions(their_file(tmp_path / "s.h5", np.arange(3.0), None), SHAPES)
    with pytest.raises(ValueError, match=rf"shape \(2, {P - 1}\), expected \[1 to 3, {P}\]"):
        write_li_directions(path, np.zeros((2, P - 1)), SHAPES)
    with pytest.raises(ValueError, match="info has xdirection"):
        write_li_directions(path, np.zeros((2, P)), SHAPES, {"xdirection": np.zeros(2)})


def test_projection_round_trip(tmp_path):
    coordinates = np.array([[1.0, 2.0], [3.0, 4.0], [5.0, 7.0]])
    write_li_projection(tmp_path / "p.h5", coordinates)
    with h5py.File(tmp_path / "p.h5") as file:
        assert file["proj_xcoord"][:].tolist() == [1.0, 3.0, 5.0]
        assert file["proj_ycoord"][:].tolist() == [2.0, 4.0, 7.0]
    np.testing.assert_array_equal(read_li_projection(tmp_path / "p.h5"), coordinates)
    with pytest.raises(ValueError, match=r"shape \(2, 3\), expected \[t, 2\]"):
        write_li_projection(tmp_path / "p.h5", coordinates[:2].repeat(2, axis=1)[:, :3])
    with h5py.File(tmp_path / "p.h5", "r+") as file:
        del file["proj_ycoord"]
    with pytest.raises(ValueError, match="no proj_ycoord"):
        read_li_projection(tmp_path / "p.h5")
    with h5py.File(tmp_path / "p.h5", "r+") as file:
        file["proj_ycoord"] = np.zeros(2)
    with pytest.raises(ValueError, match=r"shapes \(3,\) and \(2,\)"):
        read_li_projection(tmp_path / "p.h5")


def test_importing_needs_neither_torch_nor_pyvista():
    heavy = "{'torch', 'pyvista', 'vtkmodules'}"
    code = f"import sys, landscape.interchange, landscape.mesh; print({heavy} & set(sys.modules))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "set()"
