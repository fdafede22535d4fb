"""Long jobs that are stopped or killed: soon, with their state stored, without a process or a file left behind."""

import hashlib
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
import weakref
from contextlib import contextmanager, nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch

import landscape
from landscape import cli
from landscape.ensemble import train_many
from landscape.interruption import PATIENCE, Stopped, interrupt_between_steps, stoppable
from landscape.models import build
from landscape.session import read_state
from landscape.surface import Surface

SOON = 2.0 + 0.5  # seconds: the half is for busy machines
NETWORK = "--model lenet --data digits --test none"
JOBS = {
    "train": "train --model mlp --data digits --batch-size 8 --epochs 10000 --out run",
    "surface": "surface --checkpoint network.safetensors --resolution 401x401 --out surface.h5",
    "workers": "surface --checkpoint network.safetensors --resolution 401x401 --workers 2 --out surface.h5",
    "restarts": "restarts --model mlp --data digits --limit 200 --seeds 20 --epochs 100000 --out study.h5",
    "minima": "minima many.h5 --out minima.h5",
}
OUT = {"train": "run", "surface": "surface.h5", "workers": "surface.h5", "restarts": "study.h5", "minima": "minima.h5"}
CONTEXT = multiprocessing.get_context("forkserver")
STARTED: list[multiprocessing.Process] = []
CONTEXT.set_forkserver_preload(["landscape.cli", "landscape.evaluation", "landscape.minima.survey"])


def job(folder: Path, words: str) -> None:
    os.setsid()
    os.chdir(folder)
    torch.set_num_threads(1)
    for function in (landscape.train, landscape.evaluate, landscape.run_restarts):
        function.__kwdefaults__["interval"] = 0.2  # seconds between two saved states
    for name, number in (("out", 1), ("err", 2)):
        os.dup2(os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    os._exit(cli.main(words.split()))


def begin(folder: Path, words: str) -> multiprocessing.Process:
    process = CONTEXT.Process(target=job, args=(folder, words))
    process.start()
    STARTED.append(process)
    return process


@pytest.fixture(autouse=True)
def end_what_is_left():
    yield
    while STARTED:
        process = STARTED.pop()
        for number in session(process.pid):
            os.kill(number, signal.SIGKILL)
        if process.is_alive():
            process.kill()


def wait_for(condition, seconds=60.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "this did not happen in time"
        time.sleep(0.02)


def session(leader: int) -> list[int]:
    """The processes that run in a session."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, _, of = path.read_text().rpartition(")")[2].split()[:4]
        except OSError:
            continue
        if int(of) == leader and state != "Z":
            found.append(int(path.parent.name))
    return found


def stored(kind: str, folder: Path) -> int:
    """How much of a job can be read from its files."""
    out = folder / OUT[kind]
    if kind == "train":
        return read_state(out / "state.pt")["step"] if (out / "state.pt").exists() else 0
    if kind in ("surface", "workers"):
        return int(Surface.load(out).done.sum()) if out.exists() else 0
    return len(list(Path(f"{out}.parts").glob("[t0-9]*")))


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("prepared")
    words = f"train {NETWORK} --limit 1797 --epochs 1 --batch-size 256 --out run"
    study = "restarts --model mlp --set widths=[3] activation=tanh --data xor --seeds 500 --epochs 1 --penalty 1e-3"
    for line in (words, f"{study} --out many.h5"):
        process = begin(folder, line)
        process.join()
        assert process.exitcode == 0, (folder / "err").read_text()
    (folder / "run/checkpoint.safetensors").rename(folder / "network.safetensors")
    return folder


@pytest.fixture
def folder(prepared, tmp_path):
    for name in ("network.safetensors", "many.h5"):
        (tmp_path / name).symlink_to(prepared / name)
    return tmp_path


SIGNALS = [(kind, signal.SIGTERM) for kind in JOBS if kind != "workers"]


@pytest.mark.parametrize(("kind", "number"), [*SIGNALS, ("train", signal.SIGINT), ("workers", signal.SIGINT)])
def test_a_signal_stops_a_job(folder, kind, number):
    process = begin(folder, JOBS[kind])
    wait_for(lambda: stored(kind, folder) or process.exitcode is not None)
    assert process.exitcode is None, (folder / "err").read_text()
    before = stored(kind, folder)
    since = time.monotonic()
    if number == signal.SIGINT:
        os.killpg(process.pid, number)  # as a terminal does
    else:
        os.kill(process.pid, number)
    process.join(30)
    wait_for(lambda: not session(process.pid), 5)
    seconds = time.monotonic() - since
    assert seconds < SOON
    assert process.exitcode == 128 + number
    text = (folder / "err").read_text()
    line = f"stopped; what is done is stored in {OUT[kind]}: run the same command again to go on"
    assert text.strip().splitlines()[-1].endswith(line)
    assert text.count("stopped") == 1
    assert "Traceback" not in text
    assert stored(kind, folder) >= before
    if seconds < PATIENCE:  # else it was ended at once, and the next one takes over
        assert not [path.name for path in folder.rglob(".*")]


@pytest.mark.parametrize("kind", [kind for kind in JOBS if kind != "workers"])  # see test_workers.py
def test_a_kill_leaves_what_was_stored_and_no_process(folder, kind):
    process = begin(folder, JOBS[kind])
    wait_for(lambda: stored(kind, folder) or process.exitcode is not None)
    before = stored(kind, folder)
    os.kill(process.pid, signal.SIGKILL)
    process.join(30)
    assert process.exitcode == -signal.SIGKILL
    wait_for(lambda: not session(process.pid), 5)
    assert stored(kind, folder) >= before > 0


def test_a_killed_job_leaves_no_files_once_it_goes_on(folder):
    process = begin(folder, JOBS["train"])
    wait_for(lambda: stored("train", folder) or process.exitcode is not None)
    os.kill(process.pid, signal.SIGKILL)
    process.join(30)
    n = len(list(folder.rglob(".*.holder")))
    again = begin(folder, JOBS["train"])  # it takes over the locks, and the temporary files
    wait_for(lambda: (folder / "err").read_text().count("taking over") == n > 0, 30)
    os.kill(again.pid, signal.SIGTERM)
    again.join(30)
    assert again.exitcode == 143
    assert not [path.name for path in folder.rglob(".*")]


def compute(folder: Path) -> None:
    with stoppable(lambda number: (folder / "said").write_text(str(number))):
        (folder / "begun").touch()
        hashlib.pbkdf2_hmac("sha256", b"", b"", 2**31 - 1)  # in one instruction of Python, for many minutes


def test_compiled_code_does_not_delay_the_end(tmp_path):
    process = CONTEXT.Process(target=compute, args=(tmp_path,))
    process.start()
    STARTED.append(process)
    wait_for((tmp_path / "begun").exists)
    since = time.monotonic()
    os.kill(process.pid, signal.SIGTERM)
    process.join(30)
    assert time.monotonic() - since < SOON
    assert process.exitcode == 143
    assert (tmp_path / "said").read_text() == "15"


def drop(folder: Path) -> None:
    class Thing:
        pass

    def stop(reference):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.1)  # `Stopped` is raised here, where Python drops it

    os.dup2(os.open(folder / "err", os.O_WRONLY | os.O_CREAT), 2)
    with stoppable(lambda number: (folder / "said").write_text(str(number))):
        thing = Thing()
        reference = weakref.ref(thing, stop)
        del thing
        assert reference() is None
        time.sleep(60)


def test_a_stop_that_python_drops_ends_the_job_all_the_same(tmp_path):
    process = CONTEXT.Process(target=drop, args=(tmp_path,))
    process.start()
    STARTED.append(process)
    process.join(30)
    assert process.exitcode == 143
    assert (tmp_path / "said").read_text() == "15"
    assert (tmp_path / "err").read_text() == ""


def press(number: int, seconds: float = 5) -> None:
    os.kill(os.getpid(), number)
    time.sleep(seconds)


def test_signals_are_handled_as_before_afterwards():
    usual = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # under nohup it is ignored
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
    with stoppable(lambda number: None) as received, pytest.raises(Stopped) as caught:
        press(signal.SIGHUP)
    with stoppable(lambda number: None), pytest.raises(Stopped), interrupt_between_steps() as waiting:
        press(signal.SIGTERM, 0)  # in the last step
    assert caught.value.number == signal.SIGHUP
    assert received == [signal.SIGHUP]
    assert waiting == [signal.SIGTERM]
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)] == handlers
    assert "landscape-stop" not in {thread.name for thread in threading.enumerate()}
    signal.signal(signal.SIGHUP, usual)


def test_a_second_signal_does_not_cut_short_what_the_first_one_makes_done():
    done, waiting = [], []

    def stop_at_once():
        try:
            press(signal.SIGTERM)
        finally:
            press(signal.SIGTERM, 0.1)
            done.append("lock let go")

    def stop_after_the_step():
        with interrupt_between_steps() as signals:
            press(signal.SIGTERM, 0)
            press(signal.SIGINT, 0.1)
            done.append("state stored")
            try:
                raise Stopped(signals[0])
            finally:
                press(signal.SIGTERM, 0.1)
                waiting.extend(signals)

    with stoppable(lambda number: None), pytest.raises(Stopped):
        stop_at_once()
    with stoppable(lambda number: None), pytest.raises(Stopped):
        stop_after_the_step()
    assert done == ["lock let go", "state stored"]
    assert waiting == [signal.SIGTERM, signal.SIGINT, signal.SIGTERM]


@pytest.mark.parametrize("at_once", [True, False])
def test_a_signal_for_a_forked_process_ends_that_one_alone(at_once):
    with stoppable(lambda number: None) as received, nullcontext() if at_once else interrupt_between_steps():
        child = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,))
        child.start()
        child.terminate()
        child.join(10)
        time.sleep(PATIENCE + 0.3)
    assert child.exitcode == -signal.SIGTERM
    assert received == []


def test_a_forked_process_that_leaves_the_block_leaves_its_parent_stoppable():
    code = (
        "import hashlib, os, sys, threading; from landscape.interruption import stoppable\n"
        "with stoppable(print):\n"
        "    if os.fork() == 0: sys.exit()\n"
        "    os.wait()\n"
        "    threading.Timer(0.2, os.kill, (os.getpid(), 15)).start()\n"
        "    hashlib.pbkdf2_hmac('sha256', b'', b'', 2**31 - 1)\n"
    )
    command = [sys.executable, "-W", "ignore", "-c", code]  # Python warns of forks beside threads
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (143, "15\n", "")


def test_a_signal_at_the_very_end_does_no_harm(monkeypatch):
    handler, set_wakeup_fd, calls = signal.getsignal(signal.SIGINT), signal.set_wakeup_fd, []

    def press_at_the_end(*arguments, **options):
        calls.append(arguments)
        if len(calls) == 2:
            signal.raise_signal(signal.SIGINT)
        return set_wakeup_fd(*arguments, **options)

    monkeypatch.setattr(signal, "set_wakeup_fd", press_at_the_end)
    with stoppable(lambda number: None) as received:
        pass
    assert received == [signal.SIGINT]
    assert signal.getsignal(signal.SIGINT) == handler
    assert "landscape-stop" not in {thread.name for thread in threading.enumerate()}


@pytest.mark.parametrize("moment", ["begin", "end"])
def test_a_command_that_is_stopped_at_its_ends_says_so(moment, monkeypatch, capsys):
    @contextmanager
    def stopped(say):
        if moment == "begin":
            raise Stopped(signal.SIGTERM)
        yield []
        raise Stopped(signal.SIGTERM)

    monkeypatch.setattr(cli, "stoppable", stopped)
    assert cli.main(["info", str(Path(__file__).parent / "files/v1/surface.h5")]) == 143
    assert capsys.readouterr().err.splitlines()[-1] == "stopped: run the same command again"


def test_nohup_is_respected():
    code = (
        "import os, signal; from landscape.interruption import stoppable\n"
        "signal.signal(signal.SIGHUP, signal.SIG_IGN)\n"
        "with stoppable(print): os.kill(os.getpid(), signal.SIGHUP)\n"
        "print('on')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "on\n"


DATA = torch.randn(40, 1, 8, 8, generator=torch.Generator().manual_seed(0)), torch.arange(40) % 3


def mlp(seed):
    return build("mlp", seed=seed, input_shape=(1, 8, 8), classes=3)


def with_batch_norm(seed):
    nn = torch.nn
    return nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(108, 3))


@pytest.mark.parametrize(("make", "optimizer"), [(mlp, "adam"), (with_batch_norm, "momentum"), (mlp, "lbfgs")])
def test_networks_in_training_go_on_bit_for_bit(make, optimizer, tmp_path, monkeypatch):
    settings = {"seeds": range(5), "optimizer": optimizer, "epochs": 3, "batch_size": 16, "group": 2, "progress": False}
    whole = train_many(make, DATA, **settings)
    from landscape import group

    keep, calls = group.Kept.keep, []

    def stop_now_and_then(*arguments, **options):
        keep(*arguments, **options)
        calls.append(0)
        if len(calls) in (2, 9, 10, 21):
            raise KeyboardInterrupt

    monkeypatch.setattr(group.Kept, "keep", stop_now_and_then)
    path = tmp_path / "state.pt"
    for _ in range(4):
        with pytest.raises(KeyboardInterrupt):
            train_many(make, DATA, state=path, interval=0, **settings)
    for found in (train_many(make, DATA, state=path, **settings), train_many(make, DATA, state=path, **settings)):
        assert torch.equal(found.thetas, whole.thetas)
        for name, values in whole.buffers.items():
            assert torch.equal(found.buffers[name], values)
        for name, values in whole.history.items():
            np.testing.assert_array_equal(found.history[name], values)
        np.testing.assert_array_equal(found.steps, whole.steps)
    with pytest.raises(ValueError, match="holds the state of other networks"):
        train_many(make, DATA, state=path, **{**settings, "epochs": 4})


NOTE_MASK = """
import os, signal, sys
if any("loky" in word for word in sys.orig_argv) and not any("tracker" in word for word in sys.orig_argv):
    blocked = signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, [])
    open(os.path.join(os.environ["MASKS"], str(os.getpid())), "w").write(str(blocked))
"""
TWO_WORKERS = """
from landscape.workers import LocalWorkers
if __name__ == "__main__":
    with LocalWorkers(2) as workers:
        print(sorted(workers.run(lambda device: abs, [-1, -2, -3, -4])))
"""


@pytest.mark.skipif(not hasattr(signal, "pthread_sigmask"), reason="this system has no masks of signals")
def test_workers_do_not_see_ctrl_c_even_while_they_begin(tmp_path):
    (tmp_path / "masks").mkdir()
    (tmp_path / "sitecustomize.py").write_text(NOTE_MASK)  # the first thing that a Python process runs
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "MASKS": str(tmp_path / "masks")}
    done = subprocess.run([sys.executable, "-c", TWO_WORKERS], env=environment, capture_output=True, text=True)
    assert done.stdout.strip() == "[(0, 1), (1, 2), (2, 3), (3, 4)]", done.stderr
    assert [path.read_text() for path in (tmp_path / "masks").iterdir()] == ["True", "True"]


def test_ctrl_c_keeps_the_step_of_networks_in_training(tmp_path, monkeypatch):
    calls = []

    def forward(model, batch):
        calls.append(0)
        if len(calls) == 40:
            os.kill(os.getpid(), signal.SIGINT)
        return model(batch[0])

    settings = {"seeds": range(3), "epochs": 30, "batch_size": 16, "progress": False, "state": tmp_path / "state.pt"}
    with pytest.raises(KeyboardInterrupt, match="the same call goes on from there"):
        train_many(mlp, DATA, forward=forward, **settings)
    assert read_state(tmp_path / "state.pt", {})["group"]["step"] > 10


def test_the_state_of_networks_in_training_is_kept_by_one_process(tmp_path):
    program = "import sys; from landscape.lock import Lock; a = Lock(sys.argv[1]); print(flush=True); input()"
    command = [sys.executable, "-c", program, tmp_path / "state.pt"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        other.stdout.readline()
        with pytest.raises(BlockingIOError, match=rf"state\.pt is being written by process {other.pid}"):
            train_many(mlp, DATA, seeds=range(2), epochs=1, progress=False, state=tmp_path / "state.pt")
        other.communicate(b"\n")


def test_short_training_writes_no_state(tmp_path):
    train_many(mlp, DATA, seeds=range(2), epochs=1, progress=False, state=tmp_path / "state.pt")
    assert not list(tmp_path.iterdir())
