import os

import h5py
import pytest

from landscape import storage


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")

    def fail():
        with storage.replacing(path) as temporary:
            temporary.write_text("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_the_content_is_on_disk_before_the_name_changes(tmp_path, monkeypatch):
    calls = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda descriptor: (calls.append("fsync"), fsync(descriptor)))
    monkeypatch.setattr(os, "replace", lambda a, b: (calls.append("replace"), replace(a, b)))
    with storage.replacing(tmp_path / "new" / "a.txt") as temporary:
        temporary.write_text("whole")
    assert calls == ["fsync", "replace", "fsync"]  # the file, its name, the folder
    assert (tmp_path / "new" / "a.txt").read_text() == "whole"


def test_hdf5_and_json_round_trip(tmp_path):
    value = {"a": [1, 2.5, None, "µ"], "b": {"c": True}, "long": "x" * 100_000}
    with storage.write_hdf5(tmp_path / "a.h5", "surface") as file:
        storage.write_json(file, "group/value", value)
    with storage.read_hdf5(tmp_path / "a.h5", "surface") as file:
        assert storage.read_json(file, "group/value") == value


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not a readable HDF5 file"),
        (b"hello, this is text", "not a readable HDF5 file"),
        ("truncated", "not a readable HDF5 file"),
        ("foreign", "not written by landscape.*landscape import"),
        ("trajectory", "holds a trajectory, expected a surface"),
        ("newer", "has format 999.*update landscape"),
    ],
)
def test_what_cannot_be_read_is_said(tmp_path, content, message):
    path = tmp_path / "a.h5"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content == "foreign":
        with h5py.File(path, "w") as file:
            file["x"] = 1
    else:
        with storage.write_hdf5(path, "trajectory" if content == "trajectory" else "surface") as file:
            file["x"] = range(1000)
            if content == "newer":
                file.attrs["landscape_format"] = 999
        if content == "truncated":
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ValueError, match=message), storage.read_hdf5(path, "surface"):
        pass


def test_a_missing_file_is_said(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nothing\.h5"), storage.read_hdf5(tmp_path / "nothing.h5"):
        pass
