"""Files of format 1, in tests/files, are read and continued; those of later formats are refused with a remedy."""

import json
import shutil
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

import landscape
from landscape import checkpoint, storage
from landscape.barriers import Barriers
from landscape.catalog import Catalog
from landscape.recorder import Recorder
from landscape.session import read_state
from landscape.study import Study, StudyWriter
from landscape.surface import Surface, SurfaceStore
from landscape.training import read_history
from landscape.trajectory import Trajectory

FILES = Path(__file__).parent / "files"
sys.path.insert(0, str(FILES))
import make_samples as samples  # noqa: E402, a script beside the files

SIGNATURE = b"\x89HDF\r\n\x1a\n"


@pytest.fixture
def v1(tmp_path):
    return shutil.copytree(FILES / "v1", tmp_path / "v1")


def is_sealed(path):
    return path.read_bytes().startswith(b"landscape ")


def test_the_samples_are_of_format_1_and_small():
    files = [path for path in (FILES / "v1").rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 150_000
    hdf5 = [path for path in files if path.suffix in (".h5", ".progress")]
    assert len(hdf5) == 10
    for path in hdf5:
        assert path.read_bytes().startswith(SIGNATURE)
        with h5py.File(path) as file:
            assert file.attrs["landscape_format"] == 1


def test_surface(v1):
    expected, found = samples.surface(), Surface.load(v1 / "surface.h5", vectors=True)
    assert list(found.axes) == ["x", "y"]
    for name in ("loss", "accuracy"):
        np.testing.assert_array_equal(found.values[name], expected.values[name])
    np.testing.assert_array_equal(found.directions, expected.directions)
    np.testing.assert_array_equal(found.trajectories["run"].coordinates, expected.trajectories["run"].coordinates)
    assert found.finished
    assert found.provenance == expected.provenance


def test_an_unfinished_surface_is_continued(v1):
    path = v1 / "unfinished.h5"
    assert Surface.load(path).done.sum() == 6
    empty = samples.surface()
    empty.done[:] = False
    store = SurfaceStore(empty, samples.QUESTION, path)
    assert store.n_continued == 6
    for i in (2, 3):
        for j in range(3):
            store.record((i, j), {"loss": 3.0 * i + j, "accuracy": 0.25})
    store.finish()
    found = Surface.load(path)
    assert found.finished
    np.testing.assert_array_equal(found.values["loss"], samples.surface().values["loss"])
    assert is_sealed(path)


@pytest.mark.parametrize("name", ["trajectory.h5", "recording.h5"])
def test_a_trajectory_is_continued(v1, name):
    found = Trajectory.load(v1 / name)
    assert found.step.tolist() == [0, 1, 2, 3]
    start = torch.nn.utils.parameters_to_vector(samples.network().parameters()).detach()
    theta = start.clone()
    for step in range(4):
        if step:
            theta *= 1 + 1 / step
        assert torch.equal(found.theta(step), theta)
    before = found.columns(0, found.p)
    net = samples.network()
    torch.nn.utils.vector_to_parameters(theta, net.parameters())
    with Recorder(v1 / name, net, step=3) as recorder:
        recorder.step(loss=7.0)
    again = Trajectory.load(v1 / name)
    assert again.step.tolist() == [0, 1, 2, 3, 4]
    np.testing.assert_array_equal(again.metrics["loss"], [np.nan, 1, 1 / 2, 1 / 3, 7])
    np.testing.assert_array_equal(again.columns(0, again.p), [*before, theta.numpy()])
    assert is_sealed(v1 / name)


def test_a_study_is_extended(v1):
    path = v1 / "growing.h5"
    found = Study.load(path)
    assert found.names.tolist() == ["adam", "adam", "gd", "gd"]
    np.testing.assert_array_equal(found.thetas(), np.outer(np.arange(4.0), np.arange(5.0)))
    with StudyWriter(path, samples.SETTINGS, {"settings": {"penalty": 0.0}}, {"model": "a"}) as writer:
        assert writer.done == {("adam", 0), ("adam", 1), ("gd", 0), ("gd", 1)}
        writer.add({**samples.study_rows(1), "seed": np.array([7, 8])}, 0)
        writer.finish()
    again = Study.load(path)
    assert again.seed.tolist() == [0, 1, 0, 1, 7, 8]
    np.testing.assert_array_equal(again.thetas()[:4], np.outer(np.arange(4.0), np.arange(5.0)))
    assert is_sealed(path)


def test_catalog_and_barriers(v1):
    catalog = Catalog.load(v1 / "minima.h5")
    assert catalog.labels.tolist() == [0, -1, 1, 0]
    assert catalog.columns["kind"].tolist() == ["minimum", "saddle", "flat minimum", "minimum"]
    np.testing.assert_array_equal(catalog.thetas([1, 3]), [[1.0] * 5, [3.0] * 5])
    barriers = Barriers.load(v1 / "barriers.h5")
    np.testing.assert_array_equal(barriers.profiles, np.arange(12.0).reshape(2, 2, 3))
    assert barriers.aligned


def test_checkpoint(v1):
    found = checkpoint.read(v1 / "checkpoint.safetensors")
    assert (found.name, found.arguments, found.info) == ("mlp", {"widths": [3]}, {"seed": 3})
    for name, tensor in samples.network().state_dict().items():
        assert torch.equal(found.state[name], tensor)


def test_a_training_run_is_continued(v1):
    assert read_state(v1 / "run" / "state.pt")["step"] == 4
    assert read_history(v1 / "run")["epoch"].tolist() == [0, 1, 2]
    continued, whole = samples.train(v1 / "run"), samples.train(None)
    np.testing.assert_allclose(continued.history["loss"], whole.history["loss"], rtol=1e-5)  # another machine made it
    for a, b in zip(continued.model.parameters(), whole.model.parameters(), strict=True):
        torch.testing.assert_close(a, b)
    assert Trajectory.load(v1 / "run" / "trajectory.h5").step.tolist() == [0, 2, 4, 6]


NEWER = r"was written by landscape 9\.8\.7, format 99; this one \(.*\) reads up to 2: update landscape"


def test_a_newer_hdf5_file_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "a.h5"
    monkeypatch.setattr(storage, "FORMAT_VERSION", 99)
    monkeypatch.setattr(storage, "__version__", "9.8.7")
    samples.surface().save(path)
    assert Surface.load(path).finished
    monkeypatch.undo()
    with pytest.raises(ValueError, match=NEWER):
        Surface.load(path)


def test_a_newer_checkpoint_or_state_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "a.safetensors"
    monkeypatch.setattr(checkpoint, "FORMAT_VERSION", 99)
    monkeypatch.setattr(checkpoint, "__version__", "9.8.7")
    checkpoint.save(path, samples.network())
    monkeypatch.undo()
    with pytest.raises(ValueError, match=NEWER):
        checkpoint.read(path)
    monkeypatch.setattr(storage, "FORMAT_VERSION", 99)
    monkeypatch.setattr(storage, "__version__", "9.8.7")
    storage.write_sealed(tmp_path / "state.pt", b"PK")
    monkeypatch.undo()
    with pytest.raises(ValueError, match=NEWER):
        read_state(tmp_path / "state.pt")


def test_files_say_what_wrote_them(tmp_path):
    samples.surface().save(tmp_path / "a.h5")
    line = (tmp_path / "a.h5").read_bytes().split(b"\n")[0].decode()
    assert line == f"landscape {landscape.__version__}, format 2"
    with h5py.File(tmp_path / "a.h5") as file:  # plain HDF5, for everybody
        assert file.userblock_size == 512
        assert (file.attrs["landscape_format"], file.attrs["landscape_version"]) == (2, landscape.__version__)
        np.testing.assert_array_equal(file["loss"], samples.surface().values["loss"])


@pytest.mark.parametrize("what", ["hdf5", "checkpoint"])
def test_a_checksum_cannot_get_lost(tmp_path, what):
    if what == "hdf5":
        samples.surface().save(tmp_path / "a.h5")
        (tmp_path / "b.h5").write_bytes((tmp_path / "a.h5").read_bytes()[512:])  # as if of format 1
        with pytest.raises(ValueError, match=r"b\.h5 is damaged: it has lost its checksum; restore it from a copy"):
            Surface.load(tmp_path / "b.h5")
        return
    checkpoint.save(tmp_path / "a.safetensors", samples.network())
    with safe_open(tmp_path / "a.safetensors", "pt") as file:
        metadata = file.metadata()
    del metadata["landscape_sha256"]
    assert json.loads(metadata["landscape"])["format"] == 2
    save_file(checkpoint.read(tmp_path / "a.safetensors").state, tmp_path / "b.safetensors", metadata)
    with pytest.raises(ValueError, match=r"b\.safetensors is damaged: it has lost its checksum"):
        checkpoint.read(tmp_path / "b.safetensors")
