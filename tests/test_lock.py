"""One writer at a time: a second process is refused, a dead one is taken over, readers are let in."""

import errno
import json
import logging
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import h5py
import numpy as np
import pytest

from landscape import rows, trajectory
from landscape.barriers import Barriers
from landscape.lock import Lock
from landscape.recorder import Recorder
from landscape.rows import RowsWriter
from landscape.study import Study, StudyWriter
from landscape.surface import Surface, SurfaceStore
from landscape.trajectory import Trajectory, gather

FILES = Path(__file__).parent / "files"
sys.path.insert(0, str(FILES))
import make_samples as samples  # noqa: E402, a script beside the files

# Opens a file of every kind for writing, and stops in the middle of the second epoch of a training run.
WRITER = """
import sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[2])
import make_samples as samples
from landscape.surface import SurfaceStore
from landscape.study import StudyWriter
from landscape.recorder import Recorder
from landscape import session
out = Path(sys.argv[1])
store = SurfaceStore(samples.surface(), samples.QUESTION, out / "surface.h5")
recorder = Recorder(out / "run.h5", samples.network())
writer = StudyWriter(out / "study.h5", samples.SETTINGS, {"settings": {"penalty": 0.0}}, {"model": "a"})
writer.add(samples.study_rows(0), 0)
advance = session.Session.advance
def wait(self, *arguments):
    if self.step == 3:
        print("ready", flush=True)
        time.sleep(120)
    return advance(self, *arguments)
session.Session.advance = wait
samples.train(out / "training")
"""


def empty():
    surface = samples.surface()
    surface.done[:] = False
    return surface


OPEN = {
    "surface.h5": lambda path: SurfaceStore(empty(), samples.QUESTION, path),
    "run.h5": lambda path: Recorder(path, samples.network()),
    "study.h5": lambda path: StudyWriter(path, samples.SETTINGS, {"settings": {"penalty": 0.0}}, {"model": "a"}),
    "training": samples.train,
}
# what else would write these files
WRITE = {
    "surface.h5": lambda path: samples.surface().save(path),
    "run.h5": lambda path: gather([FILES / "v1" / "checkpoint.safetensors"], path),
    "study.h5": lambda path: RowsWriter(path, "study", None),
}


@pytest.fixture(scope="module")
def busy(tmp_path_factory):
    """A folder in which another process writes a file of every kind."""
    out = tmp_path_factory.mktemp("busy")
    process = subprocess.Popen([sys.executable, "-c", WRITER, out, FILES], stdout=subprocess.PIPE, text=True)
    samples.train(None)  # what torch imports at the first step is no part of "at once"
    assert process.stdout.readline() == "ready\n"
    yield out, process
    process.kill()
    process.communicate()


def hidden(folder):
    return sorted(path.name for path in folder.rglob(".*"))


class TestAnotherProcess:
    """The tests of this class run in this order: the last one kills the process."""

    @pytest.mark.parametrize("name", OPEN)
    def test_it_is_named_at_once(self, busy, name):
        out, process = busy
        path = out / name
        file = path / "checkpoint.safetensors" if name == "training" else path
        start = time.monotonic()
        with pytest.raises(BlockingIOError) as error:
            OPEN[name](path)
        assert time.monotonic() - start < 1
        since = r"\d\d\d\d-\d\d-\d\d \d\d:\d\d:\d\d\S*"
        assert re.fullmatch(
            f"{re.escape(str(file))} is being written by process {process.pid} on {socket.gethostname()} since {since} "
            rf"\(-c {re.escape(str(out))} .*\): wait for it, or stop it; readers may open the file meanwhile",
            str(error.value),
        )

    @pytest.mark.parametrize("name", WRITE)
    def test_nothing_else_writes_its_file(self, busy, name):
        path = busy[0] / name
        before = path.read_bytes() if path.exists() else None
        with pytest.raises((BlockingIOError, ValueError), match=r"is being written by process|run\.h5 exists already"):
            WRITE[name](path)
        assert (path.read_bytes() if path.exists() else None) == before

    def test_readers_are_let_in(self, busy):
        out, _ = busy
        assert Surface.load(out / "surface.h5").finished
        assert len(Trajectory.load(out / "run.h5")) == 1
        assert Study.load(out / "study.h5").seed.tolist() == [0, 1]

    def test_a_dead_one_is_taken_over(self, busy, caplog):
        out, process = busy
        left = hidden(out)
        locked = ("checkpoint.safetensors", "run.h5", "study.h5", "surface.h5", "trajectory.h5")
        assert [name for name in left if name.endswith(".lock")] == [f".{name}.lock" for name in locked]
        process.kill()
        process.wait()
        assert process.returncode == -signal.SIGKILL
        assert hidden(out) == left
        with caplog.at_level(logging.INFO, "landscape.lock"):
            store = OPEN["surface.h5"](out / "surface.h5")
        (line,) = caplog.messages
        assert re.search(rf"surface.h5: taking over from process {process.pid} on .* has ended without closing", line)
        assert store.n_continued == 12
        store.finish()
        with Recorder(out / "run.h5", samples.network(), step=1) as recorder:
            recorder.step()
        assert Trajectory.load(out / "run.h5").step.tolist() == [0, 1, 2]
        with OPEN["study.h5"](out / "study.h5") as writer:
            assert writer.done == {("adam", 0), ("adam", 1)}
            writer.finish()
        assert samples.train(out / "training").history["epoch"].tolist() == [0, 1, 2, 3]
        assert hidden(out) == []


class TestOneProcess:
    def test_an_older_recorder_is_taken_over_and_says_so(self, tmp_path):
        path, net = tmp_path / "run.h5", samples.network()
        older = Recorder(path, net, interval=0)
        older.step(loss=1.0)
        newer = Recorder(path, net, step=1)
        for refused in (lambda: older.step(loss=2.0), older.flush):
            with pytest.raises(ValueError, match=r"run\.h5 was closed, or opened for writing again in this process"):
                refused()
        newer.step(loss=3.0)
        older.close()  # as the end of the program does
        newer.step(loss=4.0)
        newer.close()
        np.testing.assert_array_equal(Trajectory.load(path).metrics["loss"], [np.nan, 1, 3, 4])
        assert os.listdir(tmp_path) == ["run.h5"]

    def test_a_recorder_that_is_refused_takes_nothing_over(self, tmp_path):
        path, net = tmp_path / "run.h5", samples.network()
        with Recorder(path, net) as older:
            with pytest.raises(ValueError, match="holds a trajectory already"):
                Recorder(path, net)
            older.step()
        assert Trajectory.load(path).step.tolist() == [0, 1]
        assert os.listdir(tmp_path) == ["run.h5"]

    def test_an_older_store_is_taken_over(self, tmp_path):
        path = tmp_path / "a.h5"
        older, newer = (SurfaceStore(empty(), samples.QUESTION, path) for _ in range(2))
        with pytest.raises(ValueError, match="another surface"):
            SurfaceStore(empty(), {"origin": "other"}, path)
        newer.record((0, 0), {"loss": 5.0, "accuracy": 0.0})
        newer.save_progress()
        for refused in (older.save_progress, older.finish):
            with pytest.raises(ValueError, match="use the newer one"):
                refused()
        newer.finish()
        assert Surface.load(path).done.sum() == 1
        assert os.listdir(tmp_path) == ["a.h5"]

    def test_an_older_writer_of_rows_is_taken_over(self, tmp_path):
        older = OPEN["study.h5"](tmp_path / "a.h5")
        with OPEN["study.h5"](tmp_path / "a.h5") as newer:
            for refused in (lambda: older.add(samples.study_rows(0), 0), older.finish):
                with pytest.raises(ValueError, match="use the newer one"):
                    refused()
            newer.add(samples.study_rows(0), 0)
            older.close()
            newer.finish()
        assert len(Study.load(tmp_path / "a.h5")) == 2

    def test_an_exception_lets_go(self, tmp_path):
        def fail(path):
            with OPEN[path.name](path):
                raise KeyboardInterrupt

        for name in ("run.h5", "study.h5"):
            with pytest.raises(KeyboardInterrupt):
                fail(tmp_path / name)
        (tmp_path / "surface.h5").write_bytes(b"no surface")
        with pytest.raises(ValueError, match="not a readable HDF5 file"):
            OPEN["surface.h5"](tmp_path / "surface.h5")
        (tmp_path / "barriers.h5").mkdir()
        with pytest.raises(OSError, match="directory"):
            Barriers(np.ones(2), np.ones((1, 1, 2)), np.zeros((1, 1)), False).save(tmp_path / "barriers.h5")
        assert hidden(tmp_path) == []

    def test_a_writer_that_is_dropped_lets_go(self, tmp_path):
        lock = Lock(tmp_path / "a.h5")
        lock.take()
        assert hidden(tmp_path) == [".a.h5.holder", ".a.h5.lock"]
        del lock
        assert hidden(tmp_path) == []

    def test_it_is_the_same_file_by_whatever_name(self, tmp_path, monkeypatch):
        (tmp_path / "link").symlink_to(tmp_path)
        monkeypatch.chdir(tmp_path)
        with Lock(tmp_path / "a.h5") as older, Lock("a.h5"):
            assert not older.in_force
            Lock("link/a.h5").take()
        assert hidden(tmp_path) == []

    def test_another_thread_can_let_go(self, tmp_path):
        lock = Lock(tmp_path / "a.h5")
        thread = threading.Thread(target=lock.release)
        thread.start()
        thread.join()
        assert hidden(tmp_path) == []

    def test_the_end_of_the_program_lets_go(self, tmp_path):
        program = "import sys; from landscape.lock import Lock; lock = Lock(sys.argv[1]); lock.take()"
        subprocess.run([sys.executable, "-c", program, tmp_path / "a.h5"], check=True)
        assert os.listdir(tmp_path) == []

    def test_a_full_disk_leaves_no_lock(self, tmp_path, monkeypatch):
        monkeypatch.setattr("landscape.lock._say_who", lambda path: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            Lock(tmp_path / "a.h5")
        assert os.listdir(tmp_path) == []

    def test_a_recorder_stopped_at_its_first_row_lets_go(self, tmp_path, monkeypatch):
        monkeypatch.setattr("landscape.recorder.write_shard", lambda *arguments: 1 / 0)
        with pytest.raises(ZeroDivisionError) as caught:  # which keeps the recorder
            Recorder(tmp_path / "run.h5", samples.network())
        assert hidden(tmp_path) == []
        del caught

    def test_a_lock_that_was_removed_is_taken_again_or_is_another_s(self, tmp_path):
        folder = tmp_path / "a"
        with Lock(folder / "a.h5") as lock:
            shutil.rmtree(folder)
            lock.check()
            assert hidden(folder) == [".a.h5.holder", ".a.h5.lock"]
            shutil.rmtree(folder)
            program = (
                "import sys; from landscape.lock import Lock; lock = Lock(sys.argv[1]); print(flush=True); input()"
            )
            command = [sys.executable, "-c", program, folder / "a.h5"]
            with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
                other.stdout.readline()
                with pytest.raises(BlockingIOError, match=f"process {other.pid}"):
                    lock.check()
                lock.release()
                assert hidden(folder) == [".a.h5.holder", ".a.h5.lock"]  # the other's
                other.communicate(b"\n")
        assert hidden(folder) == []

    def test_a_link_stands_for_its_file(self, tmp_path):
        (tmp_path / "link.h5").symlink_to(tmp_path / "a.h5")
        with Recorder(tmp_path / "link.h5", samples.network()):
            assert hidden(tmp_path) == [".a.h5.holder", ".a.h5.lock"]
        assert (tmp_path / "link.h5").is_symlink()
        assert len(Trajectory.load(tmp_path / "a.h5")) == 1

    def test_who_holds_it_can_be_read(self, tmp_path):
        with Lock(tmp_path / "a.h5"):
            holder = json.loads((tmp_path / ".a.h5.holder").read_text())
        assert (holder["process"], holder["host"]) == (os.getpid(), socket.gethostname())

    def test_a_damaged_note_of_a_dead_holder_does_not_matter(self, tmp_path):
        (tmp_path / ".a.h5.holder").write_text('{"process":')
        (tmp_path / ".a.h5.lock").touch()
        with Lock(tmp_path / "a.h5") as lock:
            lock.check()
        assert os.listdir(tmp_path) == []


class TestReadersWhileFilesAreMerged:
    """As at the end of a job, in the middle of what a reader does."""

    def test_a_trajectory_opened_while_it_is_merged(self, tmp_path, monkeypatch):
        recorder = Recorder(tmp_path / "a.h5", samples.network(), interval=0)
        recorder.step(loss=1.0)
        read_header = trajectory.read_header

        def merge_first(file):
            recorder.close()
            return read_header(file)

        monkeypatch.setattr(trajectory, "read_header", merge_first)
        assert Trajectory.load(tmp_path / "a.h5").step.tolist() == [0, 1]
        assert os.listdir(tmp_path) == ["a.h5"]

    def test_a_trajectory_that_was_opened_before(self, tmp_path):
        recorder = Recorder(tmp_path / "a.h5", samples.network(), interval=0)
        recorder.step(loss=1.0)
        before = Trajectory.load(tmp_path / "a.h5")
        recorder.close()
        after = Trajectory.load(tmp_path / "a.h5")
        assert before.theta(1).tolist() == after.theta(1).tolist()
        before = before.columns(0, 3)
        np.testing.assert_array_equal(before, after.columns(0, 3))

    def test_rows_that_are_gone_are_said(self, tmp_path):
        with Recorder(tmp_path / "a.h5", samples.network(), interval=0) as recorder:
            recorder.step()
        opened = Trajectory.load(tmp_path / "a.h5")
        (tmp_path / "a.h5").unlink()
        with pytest.raises(FileNotFoundError, match=r"rows of .*a\.h5 were removed since it was opened"):
            opened.theta(0)

    @pytest.mark.parametrize("after", [0, 1])
    def test_a_study(self, tmp_path, monkeypatch, after):
        writer = OPEN["study.h5"](tmp_path / "a.h5")
        for i in range(2):
            writer.add(samples.study_rows(i), i)
        read, seen = rows.read_json, []

        def merge_at(*arguments):
            found = read(*arguments)
            seen.append(found)
            if len(seen) == 1 + after:
                writer.finish()
            return found

        monkeypatch.setattr(rows, "read_json", merge_at)
        assert len(Study.load(tmp_path / "a.h5")) == 4
        assert len(seen) > 1 + after  # read again

    def test_files_that_are_removed_one_by_one(self, tmp_path, monkeypatch):
        with Recorder(tmp_path / "a.h5", samples.network(), interval=0) as recorder:
            recorder.step()
        step, calls = Trajectory.load(tmp_path / "a.h5").step, []

        def gone_for_a_while(*arguments):
            calls.append(arguments)
            if len(calls) < 7:
                raise FileNotFoundError("no file")
            return step, {}

        monkeypatch.setattr(trajectory, "read_scalars", gone_for_a_while)
        begin = time.monotonic()
        assert len(Trajectory.load(tmp_path / "a.h5")) == 2
        assert time.monotonic() - begin > 0.5  # long enough for a slow disk
        begin = time.monotonic()
        with pytest.raises(FileNotFoundError, match="no trajectory"):
            Trajectory.load(tmp_path / "b.h5")
        assert time.monotonic() - begin < 0.5  # nothing to wait for

    def test_networks_belong_to_their_runs_whatever_comes_in_between(self, tmp_path):
        with OPEN["study.h5"](tmp_path / "a.h5") as writer:
            writer.add(samples.study_rows(0), 0)
            writer.add({**samples.study_rows(1), "seed": np.array([2, 3])}, 2)  # of a faster process
            before = Study.load(tmp_path / "a.h5")
            thetas = before.thetas()
            writer.add(samples.study_rows(1), 1)
            for _ in range(2):
                np.testing.assert_array_equal(before.thetas(), thetas)
                np.testing.assert_array_equal(before.thetas([3, 1, 1]), thetas[[3, 1, 1]])
                writer.finish()
        (tmp_path / "a.h5").unlink()
        with OPEN["study.h5"](tmp_path / "a.h5") as writer:
            writer.add(samples.study_rows(0), 0)
        with pytest.raises(ValueError, match=r"a\.h5 has not the rows any more"):
            before.thetas()

    def test_a_file_that_goes_while_libhdf5_opens_it(self, tmp_path, monkeypatch):
        samples.surface().save(tmp_path / "a.h5")
        other = (tmp_path / "a.h5").read_bytes()
        opened = h5py.File

        def replace_first(path, mode):
            monkeypatch.undo()
            Path(path).unlink()
            try:
                return opened(path, mode)
            finally:
                (tmp_path / "b").write_bytes(other)
                (tmp_path / "b").rename(path)

        monkeypatch.setattr(h5py, "File", replace_first)
        assert Surface.load(tmp_path / "a.h5").finished


COUNT = """
import sys
from pathlib import Path
from landscape.lock import Lock
path, n = Path(sys.argv[1]), 0
print("ready", flush=True)
sys.stdin.readline()
while n < 50:
    try:
        with Lock(path):
            value = int(path.read_text())
            path.write_text(str(value + 1))
            n += 1
    except BlockingIOError:
        pass
"""


def test_no_two_processes_write_at_a_time(tmp_path):
    (tmp_path / "count").write_text("0")
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    program = [sys.executable, "-c", COUNT, tmp_path / "count"]
    processes = [subprocess.Popen(program, **pipes, text=True) for _ in range(4)]
    assert [process.stdout.readline() for process in processes] == ["ready\n"] * 4
    for process in processes:
        process.stdin.write("go\n")
        process.stdin.flush()
    errors = [process.communicate()[1] for process in processes]
    assert errors == [""] * 4
    assert (tmp_path / "count").read_text() == "200"
    assert os.listdir(tmp_path) == ["count"]


FORK = """
import os, signal, sys, time
from landscape.lock import Lock
lock = Lock(sys.argv[1])
lock.take()
child = os.fork()
if child == 0:
    try:
        Lock(sys.argv[1])
    except BlockingIOError:
        sys.exit(7)  # with everything that the end of a program does
    sys.exit(0)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
lock.check()
if (orphan := os.fork()) == 0:  # as a worker of a DataLoader
    print(os.getpid(), flush=True)  # it has closed what it inherited
    time.sleep(60)
    os._exit(0)
sys.stdin.readline()
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
def test_a_forked_process_neither_has_the_lock_nor_lets_go_nor_outlives_it(tmp_path, caplog):
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", FORK, tmp_path / "a.h5"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    orphan = int(process.stdout.readline())
    try:
        with pytest.raises(BlockingIOError, match=f"process {process.pid} "):
            Lock(tmp_path / "a.h5")
        process.stdin.write("die\n")
        process.stdin.flush()
        assert process.wait() == -signal.SIGKILL
        os.kill(orphan, 0)  # it lives
        with Lock(tmp_path / "a.h5") as lock:
            lock.check()
    finally:
        os.kill(orphan, signal.SIGKILL)
        process.stdin.close()
        process.stdout.close()
    assert os.listdir(tmp_path) == []


# As a process that is forked just before its parent is killed, and that a busy machine lets run only later.
INHERIT = """
import os, signal, sys, time
from landscape import lock
held = lock.Lock(sys.argv[1])
held.take()
lock._forget.__code__ = (lambda: None).__code__
if os.fork() == 0:
    print(os.getpid(), flush=True)
    time.sleep(float(sys.argv[2]))
    os._exit(0)
time.sleep(0.1)
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture
def killed(tmp_path):
    """A function that starts a process which is killed, and whose child keeps the lock for some seconds."""
    children = []

    def start(seconds):
        program = [sys.executable, "-W", "ignore", "-c", INHERIT, tmp_path / "a.h5", str(seconds)]
        with subprocess.Popen(program, stdout=subprocess.PIPE, text=True) as process:
            children.append(int(process.stdout.readline()))
            assert process.wait() == -signal.SIGKILL
        return process.pid

    yield start
    for child in children:
        with suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
class TestInherited:
    def test_what_a_dead_process_is_about_to_let_go_is_waited_for(self, killed, tmp_path):
        killed(1)
        with Lock(tmp_path / "a.h5") as lock:
            lock.check()
        assert os.listdir(tmp_path) == []

    def test_but_not_for_ever(self, killed, tmp_path, monkeypatch):
        monkeypatch.setattr("landscape.lock._DEAD_PATIENCE", 0.2)
        process = killed(60)
        with pytest.raises(BlockingIOError, match=rf"process {process} .*, which has ended, but a process that it"):
            Lock(tmp_path / "a.h5")

    def test_nothing_is_known_of_other_hosts(self, killed, tmp_path):
        killed(60)
        file = tmp_path / ".a.h5.holder"
        file.write_text(json.dumps({**json.loads(file.read_text()), "host": "elsewhere"}))
        start = time.monotonic()
        with pytest.raises(BlockingIOError, match=r"on elsewhere since [^,]*\): wait for it"):
            Lock(tmp_path / "a.h5")
        assert time.monotonic() - start < 1


def test_a_file_system_without_locks_is_said(tmp_path, monkeypatch, caplog):
    def missing(descriptor):
        raise OSError(errno.ENOLCK, "no locks")

    monkeypatch.setattr("landscape.lock._lock", missing)
    with Lock(tmp_path / "a.h5") as lock:
        lock.check()
    assert "this file system has no locks" in caplog.text
    assert os.listdir(tmp_path) == []


def test_a_descriptor_is_closed_whatever_happens(tmp_path):
    before = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else pytest.skip("no /proc here")
    for _ in range(20):
        with Lock(tmp_path / "a.h5"):
            pass
    assert len(os.listdir("/proc/self/fd")) == before
