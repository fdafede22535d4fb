"""What stops a job from outside: a full disk, a folder that may not be written or is gone, too little memory."""

import os
import re
import shutil
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from problems import class_data
from torch import nn

from landscape import checkpoint, models
from landscape.cli import main
from landscape.directions import random_directions
from landscape.evaluation import evaluate
from landscape.objective import Objective
from landscape.output import create_hdf5
from landscape.recorder import Recorder
from landscape.restarts import run_restarts
from landscape.study import Study, StudyWriter
from landscape.surface import Surface, SurfaceStore, empty_surface

SCRIPTS = Path(__file__).parents[1] / "scripts" / "reliability"


@pytest.fixture(scope="module")
def disk():
    """The script that fills disks."""
    sys.path.insert(0, str(SCRIPTS))
    import disk

    try:
        with disk.small_disk():
            pass
    except (OSError, PermissionError) as error:
        pytest.skip(str(error))
    yield disk
    sys.path.remove(str(SCRIPTS))


@pytest.fixture
def problem():
    """An objective and a plane."""
    torch.manual_seed(0)
    objective = Objective(nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3)), class_data(30, (6,), 3))
    return objective, random_directions(objective)


class TestFullDisk:
    @pytest.mark.parametrize("name", ["train", "recorder", "surface", "restarts", "plot", "export"])
    def test_a_job_says_so_loses_nothing_and_goes_on_to_the_same_bits(self, disk, name, capfd):
        found = disk.try_job(disk.JOBS[name], 3, seed=1)
        assert found.wrong == []
        assert found.stopped > 0
        assert "vtk" not in capfd.readouterr().err  # the one line is all that is said, by compiled code, too

    def test_what_is_wrong_would_be_seen(self, disk, tmp_path):
        (tmp_path / ".a.h5.host.1.tmp").write_bytes(b"")
        (tmp_path / "b.h5").write_bytes(b"half a file")
        found = "; ".join(disk.problems(tmp_path, "out of luck"))
        for word in ("error: out of luck", "left: .a.h5.host.1.tmp", "unreadable: b.h5"):
            assert word in found
        assert disk.problems(tmp_path / "empty", "no space left on /a while writing b: " + disk_remedy()) == []
        assert disk.differing({"a": np.array([1.0])}, {"a": np.array([1.0 + 1e-15])}) == ["a"]
        assert disk.differing({"a": 1}, {"a": 1, "b": 2}) == ["b"]

    def test_libhdf5_survives_at_every_size(self, disk):
        """In a process of its own, which it used to end by a segmentation fault."""
        with disk.small_disk(2**20) as folder:
            done = subprocess.run(
                [sys.executable, "-c", WRITE_UNTIL_FULL, folder], capture_output=True, text=True, cwd=SCRIPTS
            )
        assert done.returncode == 0, done.stderr[-1000:]
        whole, full = map(int, done.stdout.split())
        assert whole > 20
        assert full > 20


def words(command):
    return command.split()


def disk_remedy():
    return "make room and run the same command again"


WRITE_UNTIL_FULL = """
import errno, os, sys
from pathlib import Path
import h5py, numpy as np
from disk import fill
from landscape.output import create_hdf5
folder, counts = Path(sys.argv[1]), [0, 0]
for i in range(150):
    rng = np.random.default_rng(i)
    filler = fill(folder, 4096 * int(rng.integers(0, 60)))
    try:
        with create_hdf5(folder / "a.h5", 512) as file:
            arrays = [rng.random(int(10 ** rng.uniform(0, 4))) for _ in range(rng.integers(1, 25))]
            for j, array in enumerate(arrays):
                data = file.create_dataset(f"g{j % 5}/d{j}", data=array)
                data.attrs["text"] = "x" * int(10 ** rng.uniform(0, 3.8))
        with h5py.File(folder / "a.h5") as file:
            assert all(np.array_equal(file[f"g{j % 5}/d{j}"], array) for j, array in enumerate(arrays))
        counts[0] += 1
    except OSError as error:
        assert error.errno == errno.ENOSPC, error
        counts[1] += 1
    (folder / "a.h5").unlink()
    filler.unlink()
print(*counts)
"""


class TestFolders:
    def test_a_folder_that_may_not_be_written(self, tmp_path):
        """As a user without root's right to write everywhere."""
        if not shutil.which("setpriv") or os.geteuid() != 0:
            pytest.skip("needs root, which gives up its rights by setpriv")
        give_up = ["setpriv", "--bounding-set=-dac_override", "--inh-caps=-dac_override"]
        folder = tmp_path / "mine"
        folder.mkdir(mode=0o555)
        for command in (
            "train --model mlp --data xor --epochs 1 --out mine/run",
            "restarts --model mlp --data xor --out mine/a.h5",
        ):
            done = subprocess.run(
                [*give_up, sys.executable, "-m", "landscape", *words(command)],
                capture_output=True,
                text=True,
                cwd=tmp_path,
            )
            lines = done.stderr.splitlines()
            assert done.returncode == 2, done.stderr
            assert len(lines) == 1
            assert "Permission denied" in lines[0]
            assert "mine" in lines[0]
            assert list(folder.iterdir()) == []

    def test_a_disk_that_is_read_only(self, disk, monkeypatch, capsys):
        with disk.small_disk() as folder:
            monkeypatch.chdir(folder)
            assert main(words("train --model mlp --data xor --epochs 1 --out run")) == 0
            before = (folder / "run/checkpoint.safetensors").read_bytes()
            subprocess.run(["mount", "-o", "remount,ro", folder], check=True)
            capsys.readouterr()
            assert main(words("surface --checkpoint run/checkpoint.safetensors --data xor --out a.h5")) != 0
            error = capsys.readouterr().err.splitlines()
            assert len(error) == 1
            assert "Read-only file system" in error[0]
            assert (folder / "run/checkpoint.safetensors").read_bytes() == before
            monkeypatch.undo()

    def test_removed_in_mid_run_a_surface_is_stored_all_the_same(self, problem, tmp_path, monkeypatch):
        objective, plane = problem
        expected = evaluate(objective, plane, resolution=9, progress=False)
        record, calls = SurfaceStore.record, []

        def remove_first(self, *point):
            calls.append(point)
            if len(calls) == 40:
                shutil.rmtree(tmp_path / "a")
            return record(self, *point)

        monkeypatch.setattr(SurfaceStore, "record", remove_first)
        evaluate(objective, plane, resolution=9, path=tmp_path / "a/s.h5", interval=0, progress=False)
        assert len(calls) == 81
        assert [path.name for path in (tmp_path / "a").iterdir()] == ["s.h5"]
        found = Surface.load(tmp_path / "a/s.h5")
        assert found.done.all()
        np.testing.assert_array_equal(found.values["loss"], expected.values["loss"])

    def test_removed_in_mid_run_and_then_killed_a_surface_goes_on(self, tmp_path):
        def store():
            return SurfaceStore(empty_surface({"x": np.arange(5.0)}, ["loss"]), {"a": "b"}, tmp_path / "a/s.h5", 0)

        begun = store()
        begun.record((0,), {"loss": 1.0})
        shutil.rmtree(tmp_path / "a")
        begun.record((1,), {"loss": 2.0})
        assert Surface.load(tmp_path / "a/s.h5").done.sum() == 2
        begun.close()  # as a kill does
        assert store().n_continued == 2

    def test_removed_in_mid_run_rows_in_memory_are_written_again(self, tmp_path):
        network = nn.Linear(3, 2)
        with Recorder(tmp_path / "a/r.h5", network, interval=0) as recorder:
            for _ in range(5):
                recorder.step()
            shutil.rmtree(tmp_path / "a")
            recorder.step()
        with h5py.File(tmp_path / "a/r.h5") as file:
            assert file["step"][:].tolist() == list(range(7))

    def test_removed_in_mid_run_rows_that_are_gone_are_an_error_at_once(self, tmp_path):
        network = nn.Linear(600, 600)  # a shard of its own for every row
        recorder = Recorder(tmp_path / "a/r.h5", network, interval=0)
        recorder.step()
        shutil.rmtree(tmp_path / "a/r.h5.parts")
        with pytest.raises(FileNotFoundError, match=r"removed while .*r\.h5 was recorded; it held rows 1 to 1: put it"):
            recorder.step()
        with pytest.raises(FileNotFoundError, match="was removed"):
            recorder.close()

    def test_removed_in_mid_run_runs_of_a_study_that_are_gone_are_an_error(self, tmp_path, monkeypatch):
        def run(name):
            data = class_data(12, (4,), 3)
            build = partial(models.build, "mlp", input_shape=[4], classes=3, widths=[3])
            return run_restarts(
                lambda seed: build(seed=seed), data, tmp_path / name, seeds=6, batch=2, progress=False
            )  # in three parts

        add, whole = StudyWriter.add, run("whole.h5")

        def remove_first(self, columns, i):
            if i == 2:
                shutil.rmtree(tmp_path / "a.h5.parts")
            add(self, columns, i)

        monkeypatch.setattr(StudyWriter, "add", remove_first)
        with pytest.raises(
            FileNotFoundError, match=r"2 of 3 files that .*a\.h5 grows from were removed .* run the same"
        ):
            run("a.h5")
        monkeypatch.undo()
        found = run("a.h5")
        order = np.argsort(found.seed)
        assert found.seed[order].tolist() == list(range(6))
        np.testing.assert_array_equal(found.thetas(np.arange(6))[order], whole.thetas(np.arange(6)))


WITH_LITTLE_MEMORY = """
import os, resource, sys
from pathlib import Path
import torch
from landscape.cli import main
torch.set_num_threads(1)
words = (
    "surface --checkpoint run/checkpoint.safetensors --data digits --limit 500 --test none --resolution 9 "
    "--engine reference --chunk-size 100 --out "
)
assert main((words + "whole.h5").split()) == 0  # imports everything, and says what it should be
size = 4096 * int(Path("/proc/self/statm").read_text().split()[0])
if os.fork() == 0:
    resource.setrlimit(resource.RLIMIT_AS, (size + int(sys.argv[1]), -1))
    os._exit(main((words + "a.h5").split()))
sys.exit(os.waitstatus_to_exitcode(os.wait()[1]))
"""


def test_full_memory_is_an_error_with_its_remedy_and_the_job_can_be_done_afterwards(tmp_path, monkeypatch, capsys):
    if sys.platform != "linux":
        pytest.skip("RLIMIT_AS bounds memory on Linux")
    monkeypatch.chdir(tmp_path)
    train = "train --model mlp --set widths=[300] --data digits --limit 500 --epochs 1 --out run"
    assert main(words(train)) == 0
    codes = []
    for n_bytes in (2**16, 2**30):
        done = subprocess.run([sys.executable, "-c", WITH_LITTLE_MEMORY, str(n_bytes)], capture_output=True, text=True)
        codes.append(done.returncode)
        if done.returncode:
            last = done.stderr.splitlines()[-1]
            assert re.fullmatch(r"landscape surface: not enough memory \(.*--memory, --chunk-size.*is intact", last), (
                last
            )
            assert "Traceback" not in done.stderr
            whole = Surface.load("whole.h5")
            assert whole.done.all()
    assert codes == [1, 0]
    np.testing.assert_array_equal(Surface.load("a.h5").values["loss"], whole.values["loss"])


WITH_NO_MORE_MEMORY = """
import os, resource, sys, threading, time
from pathlib import Path
import torch
import landscape.restarts, landscape.training
from landscape.cli import main
torch.set_num_threads(1)
words, stored = sys.argv[1] + " --out ", sys.argv[2]
assert main((words + "whole").split()) == 0
landscape.training.train.__kwdefaults__["interval"] = landscape.restarts.run_restarts.__kwdefaults__["interval"] = 0.0

def take_away():
    while not list(Path().glob(stored)):
        time.sleep(0.002)
    resource.setrlimit(resource.RLIMIT_AS, (2**20, -1))  # what it has, it keeps; more it cannot get

if os.fork() == 0:
    threading.Thread(target=take_away, daemon=True).start()
    os._exit(main((words + "a").split()))
sys.exit(os.waitstatus_to_exitcode(os.wait()[1]))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_AS bounds memory on Linux")
@pytest.mark.parametrize(
    ("job", "stored", "result"),
    [
        (
            "train --batch-size 500 --epochs 200",
            "a/state.pt",
            lambda folder: np.concatenate(
                [tensor.ravel() for tensor in checkpoint.read(folder / "checkpoint.safetensors").state.values()]
            ),
        ),
        (
            "restarts --seeds 3 --optimizers adam --epochs 100",
            "a.parts/*.pt",
            lambda path: Study.load(path).thetas(np.array([2])),
        ),
    ],
    ids=["train", "restarts"],
)
def test_memory_that_runs_out_in_training_loses_nothing(tmp_path, monkeypatch, job, stored, result):
    monkeypatch.chdir(tmp_path)
    job += " --model mlp --set widths=[300] --data digits --limit 500"
    # every large tensor asks the system for its memory
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
    command = [sys.executable, "-c", WITH_NO_MORE_MEMORY, job, stored]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 1, done.stderr
    last = done.stderr.splitlines()[-1]
    assert re.fullmatch(rf"landscape {job.split()[0]}: not enough memory \(.*is intact.*", last), last
    assert "Traceback" not in done.stderr
    assert "damaged" not in last
    assert list((tmp_path / stored).parent.iterdir())
    assert main(words(f"{job} --out a")) == 0
    np.testing.assert_array_equal(result(tmp_path / "a"), result(tmp_path / "whole"))


def test_a_signal_waits_until_libhdf5_has_let_go(tmp_path):
    def write():
        with create_hdf5(tmp_path / "a.h5") as file:
            signal.raise_signal(signal.SIGINT)
            file["x"] = np.arange(10_000)

    with pytest.raises(KeyboardInterrupt):
        write()
    with h5py.File(tmp_path / "a.h5") as file:
        np.testing.assert_array_equal(file["x"], np.arange(10_000))
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
