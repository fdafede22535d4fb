import errno
import hashlib
import os
import random
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from landscape import checkpoint, storage
from landscape.barriers import Barriers
from landscape.catalog import Catalog
from landscape.lock import Lock
from landscape.session import read_state
from landscape.study import Study
from landscape.surface import Surface
from landscape.trajectory import Trajectory

sys.path.insert(0, str(Path(__file__).parent / "files"))
import make_samples as samples


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
        ("truncated", "damaged: its checksum does not fit its [0-9,]+ bytes; restore it from a copy"),
        ("foreign", "not written by landscape.*landscape import"),
        ("trajectory", "holds a trajectory, expected a surface"),
        ("newer", "was written by landscape .*, format 999; this one .* reads up to 2: update landscape"),
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


def write_all(out):
    """Write every kind of file into a folder; return each with what reads it."""
    samples.main(out)
    part, shard = out / "growing.h5.parts", out / "recording.h5.parts"
    return {
        "surface": (out / "surface.h5", lambda: Surface.load(out / "surface.h5", vectors=True)),
        "progress": (out / "unfinished.h5.progress", lambda: Surface.load(out / "unfinished.h5")),
        "trajectory": (out / "trajectory.h5", lambda: Trajectory.load(out / "trajectory.h5")),
        "shard": (next(shard.iterdir()), lambda: Trajectory.load(out / "recording.h5")),
        "study": (out / "growing.h5", lambda: Study.load(out / "growing.h5")),
        "part": (next(part.iterdir()), lambda: Study.load(out / "growing.h5")),
        "minima": (out / "minima.h5", lambda: Catalog.load(out / "minima.h5")),
        "barriers": (out / "barriers.h5", lambda: Barriers.load(out / "barriers.h5")),
        "checkpoint": (out / "checkpoint.safetensors", lambda: checkpoint.read(out / "checkpoint.safetensors")),
        "state": (out / "run" / "state.pt", lambda: read_state(out / "run" / "state.pt")),
    }


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    return write_all(tmp_path_factory.mktemp("written"))


def is_refused(read, name):
    try:
        read()
    except ValueError as error:
        return name in str(error)
    return False


def unnoticed_flips(path, read, bits):
    """Return those bits of a file after whose flip it is read all the same."""
    content, unnoticed = path.read_bytes(), []
    for bit in bits:
        damaged = bytearray(content)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        if not is_refused(read, path.name):
            unnoticed.append(bit)
    path.write_bytes(content)
    return unnoticed


KINDS = ("surface", "progress", "trajectory", "shard", "study", "part", "minima", "barriers", "checkpoint", "state")


class TestChecksum:
    @pytest.mark.parametrize("kind", KINDS)
    def test_every_flipped_bit_is_noticed(self, written, kind):
        path, read = written[kind]
        read()
        content = path.read_bytes()
        block = range(8 * min(len(content), 600))  # all of the block or of the header, and some anywhere
        flips = {*random.Random(kind).sample(block, 100), *random.Random(kind).sample(range(8 * len(content)), 200)}
        assert not unnoticed_flips(path, read, sorted(flips))
        read()

    @pytest.mark.parametrize("kind", KINDS)
    def test_a_file_cut_or_grown_is_noticed(self, written, kind):
        path, read = written[kind]
        content = path.read_bytes()
        cuts = [1, 100, 511, 512, 513, len(content) // 2, len(content) - 1]
        for damaged in [*(content[:n] for n in cuts if n < len(content)), content + b"\0"]:
            path.write_bytes(damaged)
            with pytest.raises(ValueError, match=re.escape(path.name)):
                read()
        path.write_bytes(content)
        read()

    def test_every_bit_of_the_block_counts(self, tmp_path):
        storage.write_sealed(tmp_path / "a", b"content")
        content = (tmp_path / "a").read_bytes()
        assert len(content) == 512 + 7
        for bit in range(0, 8 * len(content), 5):
            damaged = bytearray(content)
            damaged[bit // 8] ^= 1 << bit % 8
            (tmp_path / "a").write_bytes(damaged)
            if bit < 8 * len("landscape "):  # it is no block any more, and what reads the content refuses it
                assert storage.read_sealed(tmp_path / "a") == damaged
                continue
            with pytest.raises(ValueError, match="is damaged: its checksum does not fit its 519 bytes"):
                storage.read_sealed(tmp_path / "a")

    def test_it_can_be_checked_by_hand(self, written):
        content = written["surface"][0].read_bytes()
        assert hashlib.sha256(content[:448] + content[512:]).hexdigest().encode() == content[448:512]

    @pytest.mark.parametrize(
        ("kind", "remedy"),
        [
            ("surface", "restore it from a copy$"),
            ("progress", "delete it: unfinished.h5 stays, and the same command computes the rest again"),
            ("shard", "move it away .of a trajectory also the files after it.: recording.h5 and the other files"),
            ("study", "restore it from a copy; .*growing.h5.parts still holds what came later"),
            ("state", "train in another folder; .*run still holds what was recorded"),
        ],
    )
    def test_the_remedy_names_what_is_left(self, written, kind, remedy):
        path, read = written[kind]
        content = path.read_bytes()
        path.write_bytes(content[:-1])
        with pytest.raises(ValueError, match=f"is damaged: .*{remedy}"):
            read()
        path.write_bytes(content)

    def test_a_file_is_checked_once_for_each_state(self, tmp_path, monkeypatch):
        count = []
        digest = storage._digest
        monkeypatch.setattr(storage, "_digest", lambda *arguments: count.append(1) or digest(*arguments))
        for n in (1, 2):
            with storage.write_hdf5(tmp_path / "a.h5", "surface") as file:
                file["x"] = range(10 * n)
            count.clear()
            for _ in range(5):
                with storage.read_hdf5(tmp_path / "a.h5") as file:
                    assert len(file["x"]) == 10 * n
            assert len(count) == 1

    def test_libhdf5_sees_no_damaged_file(self, tmp_path, monkeypatch):
        with storage.write_hdf5(tmp_path / "a.h5", "surface") as file:
            file["x"] = range(10)
        content = bytearray((tmp_path / "a.h5").read_bytes())
        content[600] ^= 1
        (tmp_path / "a.h5").write_bytes(content)
        monkeypatch.setattr(h5py, "File", lambda *_: pytest.fail("it was opened"))
        with pytest.raises(ValueError, match="is damaged"), storage.read_hdf5(tmp_path / "a.h5"):
            pass

    def test_a_file_replaced_while_it_is_opened_is_checked_again(self, tmp_path, monkeypatch):
        path, real, opened = tmp_path / "a.h5", h5py.File, []

        def write(value):
            with storage.write_hdf5(path, "surface") as file:
                file["x"] = value

        def open_late(*arguments, **options):
            if arguments[1] == "r" and not opened:
                opened.append(1)
                write(2)
            return real(*arguments, **options)

        write(1)
        monkeypatch.setattr(h5py, "File", open_late)
        with storage.read_hdf5(path) as file:
            assert file["x"][()] == 2
        assert storage._checked[str(path)] == storage._state(path.stat())


WRITES = """
import sys, time
from landscape import storage
with storage.write_hdf5(sys.argv[1], "surface") as file:
    file["x"] = range(1000)
    file.flush()
    print("writing", flush=True)
    time.sleep(60)
"""


class TestLeftovers:
    def test_those_of_a_killed_process_go_when_the_file_is_opened_again(self, tmp_path):
        path = tmp_path / "a.h5"
        with storage.write_hdf5(path, "surface") as file:
            file["x"] = 7
        process = subprocess.Popen([sys.executable, "-c", WRITES, path], stdout=subprocess.PIPE, text=True)
        assert process.stdout.readline() == "writing\n"
        left = [name for name in os.listdir(tmp_path) if name.endswith(".tmp")]
        assert len(left) == 1
        with Lock(path):  # it may still be at work
            assert left[0] in os.listdir(tmp_path)
        process.kill()
        process.communicate()
        assert left[0] in os.listdir(tmp_path)
        with Lock(path), storage.read_hdf5(path) as file:
            assert file["x"][()] == 7
            assert left[0] not in os.listdir(tmp_path)
        assert os.listdir(tmp_path) == ["a.h5"]

    def test_a_write_without_a_lock_removes_them_too(self, tmp_path):
        (tmp_path / f".a.txt.{storage._HOST}.{dead_process()}.tmp").touch()
        with storage.replacing(tmp_path / "a.txt") as temporary:
            temporary.touch()
        assert os.listdir(tmp_path) == ["a.txt"]

    @pytest.mark.parametrize(
        ("host", "dead", "hours", "stays"),
        [
            (None, True, 0, False),
            (None, False, 0, True),
            ("elsewhere", True, 0, True),
            ("elsewhere", True, 23, True),
            ("elsewhere", True, 25, False),
            ("h5", True, 0, True),  # as format 1 named it, without a host: `.run.h5.123.tmp`
            ("h5", True, 25, False),
        ],
    )
    def test_only_those_that_nobody_writes_go(self, tmp_path, host, dead, hours, stays):
        process = dead_process() if dead else os.getppid()
        left = tmp_path / f".run.{host or storage._HOST}.{process}.tmp"
        other = tmp_path / f".other.{host or storage._HOST}.{process}.tmp"
        for file in (left, other):
            file.touch()
            os.utime(file, (time.time() - 3600 * hours,) * 2)
        storage.remove_leftovers(tmp_path, ".run.")
        assert left.exists() == stays
        assert other.exists()


def dead_process():
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 256 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if os.name != "posix" or os.geteuid() != 0 or not shutil.which("mount"):
        pytest.skip("only root may mount a small file system")
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", folder], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"no small file system here: {mounted.stderr.decode().strip()}")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


def large_data(path):
    with storage.write_hdf5(path, "surface") as file:
        file["x"] = np.zeros(100_000)


def many_groups(path):
    """Nothing but structure, which libhdf5 writes when the file is closed."""
    with storage.write_hdf5(path, "surface") as file:
        for i in range(400):
            file.create_group(str(i))


def large_text(path):
    storage.write_sealed(path, bytes(1_000_000))


def large_checkpoint(path):
    checkpoint.save(path, torch.nn.Linear(500, 500))


class TestFullDisk:
    @pytest.mark.parametrize("write", [large_data, many_groups, large_text, large_checkpoint])
    def test_the_old_file_stays_and_the_message_helps(self, small_disk, write):
        path = small_disk / "a.safetensors"
        storage.write_sealed(path, b"old")
        with open(small_disk / "other", "wb") as file:
            file.write(bytes((256 - 60) * 1024))
        free = shutil.disk_usage(small_disk).free
        message = (
            f"no space left on {small_disk} while writing {path}: make room and run the same command again; "
            "what was stored before is intact"
        )
        for _ in range(3):
            with pytest.raises(OSError, match=re.escape(message)) as error:
                write(path)
            assert error.value.errno == errno.ENOSPC
            assert sorted(os.listdir(small_disk)) == ["a.safetensors", "other"]
            assert storage.read_sealed(path) == b"old"
            assert shutil.disk_usage(small_disk).free == free  # nothing is kept open either

    def test_after_making_room_it_goes_on(self, small_disk):
        (small_disk / "other").write_bytes(bytes(250 * 1024))
        with pytest.raises(OSError, match="no space left on"):
            many_groups(small_disk / "a.h5")
        (small_disk / "other").unlink()
        with storage.write_hdf5(small_disk / "a.h5", "surface") as file:
            file["x"] = np.arange(1000)
        with storage.read_hdf5(small_disk / "a.h5") as file:
            np.testing.assert_array_equal(file["x"], np.arange(1000))

    def test_other_errors_stay_what_they_are(self, tmp_path):
        with pytest.raises(RuntimeError, match=r"^the model is gone$"), storage.write_hdf5(tmp_path / "a.h5", "x"):
            raise RuntimeError("the model is gone")
        assert os.listdir(tmp_path) == []
