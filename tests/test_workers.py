"""Tasks on several processes: each done once, whoever dies, and surfaces with the digits of one process."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from landscape.directions import random_directions
from landscape.evaluation import evaluate
from landscape.evaluation.layers import Layer
from landscape.models import build
from landscape.objective import Objective
from landscape.program import whole_float32
from landscape.workers import LocalThreads, LocalWorkers


def doubler(device):
    return lambda task: 2 * task


@pytest.fixture(scope="module")
def pair():
    with LocalWorkers(2, threads=1) as workers:
        yield workers


def problem(name="mlp", shape=None, n=70, **settings):
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(n, 1, 8, 8, generator=generator), torch.randint(0, 3, (n,), generator=generator)
    model = build(name, input_shape=[1, 8, 8], classes=3, seed=1, **(shape or {}))
    objective = Objective(model, (x, y), chunk_size=32, **settings)
    return objective, random_directions(objective)


class TestTasks:
    def test_each_is_done_once(self, pair):
        found = dict(pair.run(doubler, list(range(50))))
        assert found == {i: 2 * i for i in range(50)}

    def test_no_tasks_no_work(self, pair):
        assert list(pair.run(doubler, [])) == []

    def test_code_that_only_the_sender_has(self, pair):
        factor = torch.arange(3.0)

        class Local(nn.Module):
            def forward(self, x):
                return factor * x

        results = dict(pair.run(lambda device: Local(), [1.0, 2.0]))
        assert torch.equal(results[1], 2 * factor)

    def test_both_processes_take_part(self, pair):
        def slow(device):
            def work(task):
                time.sleep(0.05)
                return os.getpid()

            return work

        processes = {result for _, result in pair.run(slow, list(range(12)))}
        assert len(processes) == 2
        assert os.getpid() not in processes

    def test_results_come_as_they_are_ready(self, pair):
        def uneven(device):
            return lambda task: time.sleep(0.6 if task == 0 else 0.01)

        order = [i for i, _ in pair.run(uneven, list(range(6)))]
        assert order.index(0) >= 4  # all others but the one that waits behind it

    def test_an_error_of_the_work_is_raised_here(self):
        def broken(device):
            return lambda task: [1, 2][task]

        with LocalWorkers(1) as workers:
            with pytest.raises(IndexError):
                list(workers.run(broken, [0, 1, 2]))
            assert dict(workers.run(doubler, [4])) == {0: 8}  # it can be used again

    def test_what_cannot_be_sent_is_refused_in_words(self, pair):
        lock = __import__("threading").Lock()
        with pytest.raises(TypeError, match="cannot be sent to another process"):
            list(pair.run(lambda device: lambda task: lock, [0]))

    def test_missing_devices(self):
        with pytest.raises(ValueError, match="this machine has"):
            LocalWorkers([f"cuda:{torch.cuda.device_count()}"])
        with pytest.raises(ValueError, match="1 worker or more"):
            LocalWorkers(0)


class TestDeath:
    def test_of_a_worker_costs_time_only(self, tmp_path, caplog):
        flag = tmp_path / "died"

        def mortal(device):
            def work(task):
                if task == 5 and not flag.exists():
                    flag.touch()
                    os.kill(os.getpid(), signal.SIGKILL)
                return task * task

            return work

        with LocalWorkers(2, threads=1) as workers:
            found = dict(workers.run(mortal, list(range(20))))
        assert flag.exists()
        assert found == {i: i * i for i in range(20)}
        assert "a worker process died" in caplog.text

    def test_again_and_again_is_an_error(self):
        def doomed(device):
            return lambda task: os.kill(os.getpid(), signal.SIGKILL)

        with LocalWorkers(1) as workers, pytest.raises(RuntimeError, match="died 3 times in a row: out of memory"):
            list(workers.run(doomed, [0]))

    def test_of_the_parent_ends_the_workers(self, tmp_path):
        script = textwrap.dedent("""
            import os, pathlib, sys, time
            from landscape.workers import LocalWorkers

            def slow(device):
                def work(task):
                    (pathlib.Path(sys.argv[1]) / str(os.getpid())).touch()
                    time.sleep(60)
                return work

            list(LocalWorkers(2).run(slow, [0, 1]))
        """)
        (tmp_path / "script.py").write_text(script)
        pids = tmp_path / "pids"
        pids.mkdir()
        parent = subprocess.Popen([sys.executable, str(tmp_path / "script.py"), str(pids)])
        wait_for(lambda: len(list(pids.iterdir())) == 2, 60)
        parent.kill()
        parent.wait()
        wait_for(lambda: not any(is_running(int(path.name)) for path in pids.iterdir()), 10)


class TestSurfaces:
    @pytest.mark.parametrize("settings", [{}, {"batch_norm": "recalibrated"}, {"dtype": torch.float64}])
    @pytest.mark.parametrize("name", ["mlp", "lenet", "transformer"])
    def test_have_the_digits_of_one_process(self, pair, name, settings):
        objective, plane = problem(name, **settings)
        options = {"resolution": (7, 4), "progress": False}
        serial = evaluate(objective, plane, **options)
        parallel = evaluate(objective, plane, workers=pair, **options)
        plans = [surface.provenance["plan"] for surface in (serial, parallel)]
        assert {**plans[0], "notes": []} == {**plans[1], "notes": []}  # notes name each one's share of the memory
        assert parallel.provenance["machine"]["workers"] == 2
        for metric, values in serial.values.items():
            np.testing.assert_array_equal(parallel.values[metric], values)

    def test_continue_what_one_process_began(self, pair, tmp_path, monkeypatch):
        objective, plane = problem()
        options = {"resolution": (9, 5), "progress": False, "interval": 0.0}
        whole = evaluate(objective, plane, **options)
        path = tmp_path / "surface.h5"
        from landscape.surface import SurfaceStore

        record, calls = SurfaceStore.record, []

        def stop_early(self, index, values):
            record(self, index, values)
            calls.append(index)
            if len(calls) == 16:
                raise KeyboardInterrupt

        monkeypatch.setattr(SurfaceStore, "record", stop_early)
        with pytest.raises(KeyboardInterrupt):
            evaluate(objective, plane, path=path, **options)
        monkeypatch.undo()
        rest = evaluate(objective, plane, path=path, workers=pair, **options)
        assert len(calls) == 16
        np.testing.assert_array_equal(rest.values["loss"], whole.values["loss"])

    def test_a_worker_killed_in_between(self, tmp_path):
        objective, plane = problem("lenet")
        expected = evaluate(objective, plane, resolution=(9, 9), progress=False)
        with LocalWorkers(2, threads=1) as workers:
            evaluate(objective, plane, resolution=(2, 2), progress=False, workers=workers)
            victim = next(iter(next(iter(workers._executors.values()))._processes))
            killer = subprocess.Popen(["sh", "-c", f"sleep 0.2; kill -9 {victim}"])
            found = evaluate(objective, plane, resolution=(9, 9), progress=False, workers=workers)
            killer.wait()
        np.testing.assert_array_equal(found.values["loss"], expected.values["loss"])

    def test_a_difference_from_the_reference_is_noticed_on_workers_too(self, pair, caplog):
        objective, plane = problem()
        expected = evaluate(objective, plane, resolution=(9, 9), progress=False, engine="reference")
        objective.loss = objective.metrics["loss"] = WrongElsewhere(after=40)  # not yet when the plan is checked
        found = evaluate(objective, plane, resolution=(9, 9), progress=False, workers=pair)
        assert "doing it all anew" in caplog.text
        assert found.provenance["plan"]["name"] == "reference"
        np.testing.assert_allclose(found.values["loss"], expected.values["loss"], rtol=1e-5)

    def test_a_worker_that_cannot_use_the_plan_says_so(self, pair):
        objective, plane = problem()
        objective.loss = objective.metrics["loss"] = WrongElsewhere(after=0)
        with pytest.raises(RuntimeError, match=r"cannot use the dense plan .*differs from the reference"):
            evaluate(objective, plane, resolution=(6, 6), progress=False, workers=pair)

    @pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
    def test_on_a_gpu(self):
        objective, plane = problem("lenet")
        expected = evaluate(objective, plane, resolution=(5, 4), progress=False)
        found = evaluate(objective, plane, resolution=(5, 4), progress=False, workers="cuda")
        np.testing.assert_allclose(found.values["loss"], expected.values["loss"], rtol=1e-4)


@pytest.fixture
def two_threads():
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(1)


class TestThreads:
    def test_each_task_is_done_once_by_works_made_one_after_another(self, two_threads):
        inside, made = [], []

        def make(device):
            assert not inside
            inside.append(1)
            time.sleep(0.05)
            inside.pop()
            made.append(set())

            def work(task, busy=made[-1]):
                assert not busy  # by one thread at a time
                busy.add(task)
                time.sleep(0.01)
                busy.remove(task)
                return task, torch.get_num_threads()

            return work

        with LocalThreads(2) as team:
            found = dict(team.run(make, list(range(20))))
            again = dict(team.run(make, [5]))
        assert found == {i: (i, 1) for i in range(20)}
        assert again == {0: (5, 1)}
        assert len(made) == 2
        assert torch.get_num_threads() == 2

    def test_an_error_is_raised_and_the_rest_is_left(self, two_threads):
        done = []

        def make(device):
            def work(task):
                if task == 3:
                    raise ValueError("three")
                done.append(task)
                time.sleep(0.01)

            return work

        with LocalThreads(2) as team, pytest.raises(ValueError, match="three"):
            list(team.run(make, list(range(1000))))
        assert len(done) < 20
        assert torch.get_num_threads() == 2

    @pytest.mark.parametrize(
        ("name", "shape", "settings"),
        [
            ("mlp", {}, {}),
            ("lenet", {}, {}),
            ("resnet", {"depth": 8, "width": 4}, {}),
            ("resnet", {"depth": 8, "width": 4}, {"batch_norm": "recalibrated"}),
            ("transformer", {}, {}),
        ],
    )
    def test_surfaces_have_the_same_digits(self, two_threads, monkeypatch, name, shape, settings):
        # 64 samples: chunks of one size, since products of few samples may depend on the number of threads
        objective, plane = problem(name, shape, 64, **settings)
        options = {"resolution": (4, 3), "progress": False}
        monkeypatch.setattr("landscape.evaluation.spread._WORTH", np.inf)
        together = evaluate(objective, plane, **options)
        assert together.provenance["machine"]["groups at a time"] == 1
        monkeypatch.setattr("landscape.evaluation.spread._WORTH", 0.0)
        monkeypatch.setattr("landscape.evaluation.spread._GAIN", np.inf)
        apart = evaluate(objective, plane, **options)
        assert apart.provenance["machine"]["groups at a time"] == 2
        for metric, values in together.values.items():
            np.testing.assert_array_equal(apart.values[metric], values)

    def test_other_digits_are_noticed(self, two_threads, monkeypatch):
        """As small products have on some processors where they are divided among threads."""
        call = Layer.__call__

        def other_digits(layer, point, x, other=None):
            result = call(layer, point, x, other)
            return result if torch.get_num_threads() == 2 or layer.name != "11" else result * (1 + 1e-6)

        monkeypatch.setattr(Layer, "__call__", other_digits)
        monkeypatch.setattr("landscape.evaluation.spread._WORTH", 0.0)
        monkeypatch.setattr("landscape.evaluation.spread._GAIN", np.inf)
        objective, plane = problem("lenet")
        surface = evaluate(objective, plane, resolution=(4, 3), progress=False)
        assert surface.provenance["machine"]["groups at a time"] == 1

    def test_they_are_used_only_where_faster(self, two_threads, monkeypatch):
        objective, plane = problem("lenet")
        monkeypatch.setattr("landscape.evaluation.spread._WORTH", 0.0)
        monkeypatch.setattr("landscape.evaluation.spread._GAIN", 0.0)
        surface = evaluate(objective, plane, resolution=3, progress=False)
        assert surface.provenance["machine"]["groups at a time"] == 1

    def test_the_precision_of_products_is_restored_by_the_last(self):
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("medium")
        try:
            first, second = whole_float32(), whole_float32()
            first.__enter__()
            second.__enter__()
            first.__exit__(None, None, None)  # the other still computes
            assert precision_of_products() in ("ieee", "highest")
            second.__exit__(None, None, None)
            assert torch.get_float32_matmul_precision() == "medium"
            assert precision_of_products() not in ("ieee", "highest")
        finally:
            torch.set_float32_matmul_precision(before)


def precision_of_products():
    own = getattr(torch.backends.mkldnn, "matmul", None)  # since torch 2.9
    return torch.get_float32_matmul_precision() if own is None else own.fp32_precision


class WrongElsewhere:
    """A loss that is wrong in other processes, after some calls, where the fast plan asks for it."""

    def __init__(self, after):
        self.home, self.calls, self.after = os.getpid(), 0, after

    def __call__(self, output, target):
        fast = not output.is_contiguous()  # features first
        self.calls += fast
        wrong = fast and os.getpid() != self.home and self.calls > self.after
        return nn.functional.cross_entropy(output, target) * (1.1 if wrong else 1.0)


def is_running(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
    except FileNotFoundError:
        return False


def wait_for(condition, seconds):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.1)


def test_a_stop_while_workers_are_ended_ends_the_others_too():
    class Executor:
        def shutdown(self, wait, kill_workers):
            calls.append((wait, kill_workers))
            if len(calls) == 1:
                raise KeyboardInterrupt

    calls = []
    workers = LocalWorkers(3)
    workers._executors = {i: Executor() for i in range(3)}
    with pytest.raises(KeyboardInterrupt):
        workers.close()
    assert calls == [(True, False), (False, True), (False, True)]
    assert not workers._executors
