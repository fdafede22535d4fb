"""What plans may take: memory and time are bounded, and what was bounded is stored."""

import linecache
import time

import numpy as np
import pytest
import torch
from problems import class_data
from torch import nn

from landscape.directions import random_directions
from landscape.evaluation import evaluate, make_plan, memory
from landscape.evaluation import plan as plan_module
from landscape.evaluation.dense import Dense
from landscape.evaluation.graph import trace
from landscape.evaluation.layered import Layered
from landscape.evaluation.memory import footprint, free_memory, memory_budget
from landscape.evaluation.tuning import needs_of
from landscape.models import build
from landscape.objective import Objective
from landscape.surface import Surface

DATA = class_data(40, (12,), 4)
GIB = 1 << 30


class TestBudget:
    def test_two_gibibytes_or_a_quarter_of_what_is_free(self, monkeypatch):
        for free, budget in ((64 * GIB, 2 * GIB), (2 * GIB, GIB // 2), (None, 2 * GIB)):
            monkeypatch.setattr(memory, "free_memory", lambda device, own=free: own)
            assert memory_budget() == budget

    def test_what_the_user_allows_as_far_as_it_is_free(self, monkeypatch):
        monkeypatch.setattr(memory, "free_memory", lambda device: 3 * GIB)
        assert memory_budget(2 * GIB) == 2 * GIB
        assert memory_budget(8 * GIB) == 3 * GIB
        monkeypatch.setattr(memory, "free_memory", lambda device: None)
        assert memory_budget(8 * GIB) == 8 * GIB
        with pytest.raises(ValueError, match="1 or more, got 0"):
            memory_budget(0)

    def test_this_machine_says_what_is_free(self):
        held = free_memory()
        assert held is None or 1e6 < held < 1e14
        assert free_memory("meta") is None

    def test_the_limit_of_a_container_counts(self, tmp_path, monkeypatch):
        def write(limit):
            (tmp_path / "memory.max").write_text(f"{limit}\n")
            (tmp_path / "memory.current").write_text("700\n")
            (tmp_path / "memory.stat").write_text("anon 100\ninactive_file 50\n")

        names = ("memory.max", "memory.current", "inactive_file", str(tmp_path))
        assert memory._of_container(*names) is None  # no control groups
        write("max")
        assert memory._of_container(*names) is None
        write(1000)
        assert memory._of_container(*names) == 350
        write(600)
        assert memory._of_container(*names) == 0
        monkeypatch.setattr(memory, "_of_container", lambda *names: 350)
        monkeypatch.setattr(memory, "_of_machine", lambda: 10**9)
        assert free_memory() == 350

    @pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
    def test_a_card_says_what_is_free(self):
        held = torch.empty(1 << 28, device="cuda")
        assert free_memory("cuda") <= torch.cuda.get_device_properties(0).total_memory - held.nbytes


def test_the_footprint_is_what_is_alive_at_the_same_time():
    objective = Objective(nn.Sequential(nn.Linear(12, 9), nn.Tanh(), nn.Linear(9, 4)), DATA)
    size = footprint(trace(objective.model), objective)
    assert size.alive == (12 + 9) * 4  # the input and what the first layer makes of it; the rest is smaller
    assert size.layers == (9 * 4, 4 * 4)
    assert (size.inputs, size.output) == (12 * 4, 4 * 4)
    resnet = Objective(build("resnet", input_shape=(3, 8, 8), classes=4, depth=8), class_data(8, (3, 8, 8), 4))
    size = footprint(trace(resnet.model), resnet)
    assert size.alive == 3 * 16 * 64 * 4  # the branch, what it makes, and the skip connection
    assert size.layers[0] == 16 * 64 * 4


@pytest.mark.parametrize("model", ["mlp", "lenet"])
def test_calls_leave_no_source_of_traced_networks_behind(model):
    objective = Objective(build(model, input_shape=(1, 8, 8), classes=4), class_data(10, (1, 8, 8), 4))
    plane = random_directions(objective)
    evaluate(objective, plane, resolution=3, progress=False)
    before = set(linecache.cache)  # where torch keeps the source of code that it makes
    evaluate(objective, plane, resolution=3, progress=False)
    assert set(linecache.cache) == before


def needs_for(kind, objective, plane):
    traced = trace(objective.model)
    size = footprint(traced, objective)
    return needs_of(kind(objective, plane, traced, 1), size, objective, plane.k)


def dense(width=64, **options):
    return Objective(nn.Sequential(nn.Linear(12, width), nn.Tanh(), nn.Linear(width, 4)), DATA, **options)


@pytest.mark.parametrize("budget", [10_000, 100_000, 1_000_000, GIB])
@pytest.mark.parametrize("kind", [Dense, Layered])
def test_points_and_samples_at_once_fit_into_half_of_the_budget(kind, budget):
    shape = (12,) if kind is Dense else (3, 8, 8)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 4))
    objective = dense() if kind is Dense else Objective(model, class_data(40, shape, 4))
    plane = random_directions(objective)
    plan = make_plan(objective, plane, memory=budget)
    assert plan.name == kind.__name__.lower()
    needs = needs_for(kind, objective, plane)
    fits = needs(plan.group, plan.settings["chunk_size"]) <= budget / 2
    assert fits != ("even one point at a time takes more" in plan.describe())
    assert fits or (plan.group, plan.settings["chunk_size"]) == (1, 1)
    if budget == GIB:
        assert plan.group >= 8
        assert f"{GIB / 1e6:.0f} MB allowed" in plan.describe()


LARGE = {
    "parameters": (nn.Sequential(nn.Linear(12, 3000), nn.Tanh(), nn.Linear(3000, 4)), (12,), 400),
    "classes": (nn.Sequential(nn.Linear(30, 16), nn.GELU(), nn.Linear(16, 500)), (30,), 1000),
    "images": (build("lenet", input_shape=(1, 28, 28), classes=10, seed=0), (1, 28, 28), 200),
    "skips": (build("resnet", input_shape=(3, 16, 16), classes=10, seed=0, depth=8), (3, 16, 16), 64),
}


@pytest.mark.parametrize("name", LARGE)
def test_the_estimate_covers_what_a_call_allocates(name):
    """As torch's own profiler counts it, with responses that are not kept."""
    model, shape, n = LARGE[name]
    objective = Objective(model, class_data(n, shape, 500 if name == "classes" else 4))
    plane = random_directions(objective)
    plan = make_plan(objective, plane, memory=10_000_000)
    kind = {"dense": Dense, "layered": Layered}[plan.name]
    estimate = needs_for(kind, objective, plane)(plan.group, plan.settings["chunk_size"])
    points = np.random.default_rng(0).uniform(-1, 1, (plan.group, 2))
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as seen:
        plan.values(points)
    changes = [event.nbytes() for event in seen.profiler.kineto_results.events() if event.name() == "[memory]"]
    assert 0.2 * estimate < np.cumsum(changes).max() < 1.25 * estimate


def test_nothing_is_tried_that_would_take_more_than_allowed(monkeypatch):
    tried, time_one = [], Dense._time_one

    def watched(self, group, batch):
        tried.append((group, len(batch[0])))
        return time_one(self, group, batch)

    monkeypatch.setattr(Dense, "_time_one", watched)
    objective = dense(width=2000)
    plane = random_directions(objective)
    needs = needs_for(Dense, objective, plane)
    most = needs(16, 40)
    plan = make_plan(objective, plane, memory=int(2 * most) + 1)
    assert max(needs(*sizes) for sizes in tried) == most
    assert plan.name == "dense"
    tried.clear()
    plan = make_plan(objective, plane, memory=5_000_000)
    assert not tried
    assert "not tuned, since trying would take more memory" in plan.describe()


def test_a_chunk_size_of_the_users_stays():
    objective = dense(chunk_size=20)
    plan = make_plan(objective, random_directions(objective), memory=1000)
    assert plan.settings["chunk_size"] == 20
    assert "even one point at a time takes more memory than allowed" in plan.describe()


def test_a_call_takes_about_a_second_at_most(monkeypatch, tmp_path):
    right = Dense.values

    def slow(self, coordinates):
        time.sleep(0.15 * len(coordinates))
        return right(self, coordinates)

    objective = dense()
    plane = random_directions(objective)
    monkeypatch.setattr(Dense, "tune", lambda self, *_: vars(self).update(group=16, chunk=40))
    assert make_plan(objective, plane).group == 16
    monkeypatch.setattr(Dense, "values", slow)
    surface = evaluate(objective, plane, resolution=2, path=tmp_path / "a.h5", progress=False)
    group = surface.provenance["plan"]["group"]
    assert 1 <= group <= 6
    monkeypatch.setattr(Dense, "values", right)
    stored = Surface.load(tmp_path / "a.h5").provenance["plan"]
    assert make_plan(objective, plane, stored=stored).group == group  # or the digits would change


def test_a_rewritten_network_that_fails_is_left_to_the_reference(monkeypatch):
    objective = dense()
    plane = random_directions(objective)

    def broken(self, coordinates):
        raise RuntimeError("out of\nmemory")

    monkeypatch.setattr(plan_module.Dense, "values", broken)
    plan = make_plan(objective, plane)
    assert plan.name == "reference"
    assert "the rewritten network fails: out of memory" in plan.describe()


def test_a_stored_plan_that_fails_is_an_error(monkeypatch):
    """The reference would give other digits to the rest of a surface."""
    objective = dense()
    plane = random_directions(objective)
    for engine, kind in (("auto", Dense), ("preview", Layered)):
        stored = make_plan(objective, plane, engine=engine).stored()
        with monkeypatch.context() as patch:
            patch.setattr(kind, "restore", None)
            with pytest.raises(TypeError, match="not callable"):
                make_plan(objective, plane, engine=engine, stored=stored)
