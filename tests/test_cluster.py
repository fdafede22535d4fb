"""A Ray cluster started here: the same digits as one process, also when its workers are killed."""

import os
import signal
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from landscape.cluster import ClusterWorkers, _Actor
from landscape.directions import random_directions
from landscape.evaluation import evaluate
from landscape.models import build
from landscape.objective import Objective

pytestmark = pytest.mark.filterwarnings("ignore")  # Ray's own


@pytest.fixture(scope="module")
def cluster():
    pytest.importorskip("ray", reason="needs the extra 'cluster'")
    os.environ["RAY_ENABLE_UV_RUN_RUNTIME_ENV"] = "0"
    with ClusterWorkers("local", workers=2) as workers:
        yield workers


def test_a_surface_has_the_digits_of_one_process(cluster):
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(70, 1, 8, 8, generator=generator), torch.randint(0, 3, (70,), generator=generator)
    objective = Objective(build("lenet", input_shape=[1, 8, 8], classes=3, seed=1), (x, y), chunk_size=32)
    plane = random_directions(objective)
    serial = evaluate(objective, plane, resolution=(7, 4), progress=False)
    parallel = evaluate(objective, plane, resolution=(7, 4), progress=False, workers=cluster)
    assert parallel.provenance["machine"]["workers"] == 2
    np.testing.assert_array_equal(parallel.values["loss"], serial.values["loss"])


def test_a_worker_killed_in_mid_run(cluster, tmp_path, monkeypatch):
    flag = tmp_path / "died"

    class Slow(_Actor):
        def __init__(self, *arguments):
            time.sleep(3 if flag.exists() else 0)  # a restart takes longer than Ray takes to say that it is going on
            super().__init__(*arguments)

    monkeypatch.setattr("landscape.cluster._Actor", Slow)

    def mortal(device):
        def work(task):
            if task == 5 and not flag.exists():
                flag.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            return task * task

        return work

    found = dict(cluster.run(mortal, list(range(20))))
    assert flag.exists()
    assert found == {i: i * i for i in range(20)}


def test_an_error_of_the_work_is_raised_here(cluster):
    def broken(device):
        return lambda task: [1, 2][task]

    with pytest.raises(IndexError):
        list(cluster.run(broken, [0, 1, 2]))


def test_a_task_that_always_kills_its_worker_is_an_error(cluster):
    def doomed(device):
        return lambda task: os.kill(os.getpid(), signal.SIGKILL)

    with pytest.raises(RuntimeError, match="died"):
        list(cluster.run(doomed, [0]))


def test_more_than_the_cluster_has(cluster):
    with pytest.raises(ValueError, match=r"has room for .* asked for"):
        ClusterWorkers("local", workers=10_000)
    with pytest.raises(ValueError, match="on a GPU"):
        ClusterWorkers("local", device="cuda", workers=1000)


def test_no_cluster_at_the_address(monkeypatch):
    ray = pytest.importorskip("ray", reason="needs the extra 'cluster'")
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    for address in ("127.0.0.1:1", "ray://127.0.0.1:1"):
        with pytest.raises(ConnectionError, match=f"no Ray cluster at {address}"):
            ClusterWorkers(address)


def test_without_ray(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ImportError, match=r"landscape\[cluster\]"):
        ClusterWorkers("local")


def test_the_seam_is_narrow():
    source = Path(__import__("landscape.cluster").cluster.__file__).read_text()
    assert "evaluation" not in source  # it knows of tasks only
