"""What the benchmarks share: rounds and ratios, tables, the floor; and that all contenders installed agree."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from landscape.data import Dataset, load
from landscape.hessian import Hessian
from landscape.models import build
from landscape.objective import Objective

SCRIPTS = Path(__file__).parents[1] / "scripts" / "benchmarks"


@pytest.fixture(scope="module", autouse=True)
def scripts():
    """The scripts as modules, as they see each other when they are run."""
    sys.path.insert(0, str(SCRIPTS))
    yield
    sys.path.remove(str(SCRIPTS))


def problem_of(model: nn.Module, data: Dataset):
    from contenders import Problem

    p = sum(parameter.numel() for parameter in model.parameters())
    directions = 0.3 * torch.randn(2, p, generator=torch.Generator().manual_seed(1)) / p**0.5
    return Problem(model, data, directions, 50, 4)


@pytest.fixture(scope="module")
def problem(scripts):
    return problem_of(build("mlp", input_shape=(1, 8, 8), classes=10, seed=0).eval(), load("digits", limit=200))


def test_contenders_take_turns_and_the_first_runs_do_not_count():
    from harness import interleaved

    calls = []

    def run(name):
        calls.append(name)
        return float(len(calls))

    runs = {"a": lambda: run("a"), "b": lambda: run("b")}
    assert interleaved(runs, 2) == {"a": [3.0, 5.0], "b": [4.0, 6.0]}
    assert calls == ["a", "b"] * 3


def test_the_ratio_is_that_of_the_same_round():
    from harness import speedup

    seconds = {"own": [1.0, 4.0, 1.0], "p": [3.0, 8.0, 9.0], "q": [5.0, 20.0, 2.0]}
    assert speedup(seconds, "own", ["p", "q"]) == {"min": 2.0, "median": 2.0, "max": 3.0}
    assert speedup(seconds, "own", ["q"]) == {"min": 2.0, "median": 5.0, "max": 5.0}


def test_tables_are_markdown():
    from harness import span, spread, table

    assert table(["a", "b"], [["1", "2"]]) == "| a | b |\n| --- | --- |\n| 1 | 2 |"
    assert span(spread([0.001, 0.00204, 0.003]), 1000) == "2.04 (1 to 3)"
    assert span(spread([12345.6])) == "12,346"


def test_the_work_of_a_known_network():
    from evaluation import work_per_sample

    data = load("digits", limit=5)
    dense = build("mlp", input_shape=(1, 8, 8), classes=10, widths=[32, 16], seed=0).eval()
    expected = {"first": 2 * 64 * 32, "others": 2 * (32 * 16 + 16 * 10), "responses": 32, "outputs": 32 + 16 + 10}
    assert work_per_sample(dense, data) == expected

    convolutions = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Conv2d(3, 4, 3, groups=1), nn.Flatten(),
                                 nn.Linear(4 * 4 * 4, 10)).eval()  # fmt: skip
    work = work_per_sample(convolutions, data)
    assert work["first"] == 2 * 9 * 3 * 36
    assert work["others"] == 2 * 27 * 4 * 16 + 2 * 64 * 10
    assert (work["responses"], work["outputs"]) == (3 * 36, 3 * 36 + 4 * 16 + 10)


def test_the_floor_of_known_work():
    from evaluation import floor_seconds
    from harness import Rates

    rates = Rates(products=1e9, memory=1e8, cache=1e10)
    work = {"first": 1e6, "others": 3e6, "responses": 100, "outputs": 500}
    floor = floor_seconds(work, 1000, 10, rates)
    first, memory, cache = 1200 * 1000 / 10 / 1e8, 4000 * 1000 / 1e8, 4000 * 1000 / 1e10
    parts = {"products": 3.0, "first layer": first, "outputs, memory": memory, "outputs, cache": cache}
    assert floor == pytest.approx({**parts, "memory": 3.0 + first + memory, "cache": 3.0 + first + cache})
    assert floor_seconds({**work, "first": 1}, 1000, 10, rates)["first layer"] == pytest.approx(1000 / 1e9)


def test_all_contenders_compute_the_same_loss(problem):
    from contenders import CONTENDERS, MISSING

    truth = Objective(problem.model, problem.data, metrics={}, dtype=torch.float64)
    for name in CONTENDERS.keys() - MISSING:
        contender = CONTENDERS[name](problem)
        assert contender.run() > 0
        (center, at_center), (far, loss_far) = contender.check()
        assert (center - truth.origin).norm() == 0
        assert (far - center).norm() > 0.1, name
        assert abs(loss_far - at_center) > 1e-3, name
        for theta, loss in ((center, at_center), (far, loss_far)):
            assert loss == pytest.approx(truth.evaluate(theta)["loss"], rel=3e-6), name
    before = build("mlp", input_shape=(1, 8, 8), classes=10, seed=0)
    assert all(map(torch.equal, problem.model.parameters(), before.parameters()))


def test_the_batch_divides_the_data(problem):
    from contenders import best_batch

    assert 200 % best_batch(problem.model, problem.data) == 0


def test_peak_memory_sees_what_was_freed_again():
    from harness import peak_memory

    if peak_memory(lambda: None) is None:
        pytest.skip("the system does not tell")
    size = 4 * 2**24
    assert 0.9 * size < peak_memory(lambda: torch.ones(2**24).sum()) < 1.5 * size
    assert peak_memory(lambda: None) < size / 4


def test_the_loop_ends_where_restarts_end(monkeypatch):
    import restarts

    study = replace(restarts.STUDIES["digits"], n_samples=150, epochs=2)
    monkeypatch.setitem(restarts.STUDIES, "digits", study)
    restarts.prepared.cache_clear()
    together = restarts.together("digits", 3, "own", range(3))
    np.testing.assert_allclose(restarts.share("digits", 3, range(3)), together, rtol=1e-5)
    np.testing.assert_allclose(restarts.share("digits", 3, range(1, 2)), together[1:2], rtol=1e-5)
    restarts.prepared.cache_clear()


def test_hessian_contenders_agree():
    from hessian import CONTENDERS, MISSING

    model = build("mlp", input_shape=(1, 8, 8), classes=10, widths=[4], seed=0).eval()
    data = load("digits", limit=40)
    objective = Objective(model, data, metrics={}, dtype=torch.float64)
    p = objective.layout.p
    hessian = Hessian(objective).products(torch.eye(p, dtype=torch.float64))
    expected = torch.linalg.eigvalsh(hessian).flip(0)[:2]
    for name in CONTENDERS.keys() - MISSING:
        values, n_products = CONTENDERS[name](model, data, 2)
        assert values == pytest.approx(expected.numpy(), rel=0.02), name
        assert 2 < n_products <= 200


def test_results_are_written_with_command_and_machine(tmp_path, monkeypatch):
    import harness

    monkeypatch.setattr(sys, "argv", ["scripts/benchmarks/some.py", "--quick"])
    monkeypatch.setattr(harness, "save_figure", lambda figure, stem: figure.write_json(stem.with_suffix(".figure")))
    spread = harness.spread([0.001, 0.002])
    figure = harness.bars("title", "ms", ["A"], {"own": [spread], "peer": [spread]}, scale=1000)
    harness.write(tmp_path, "some", "What.", harness.machine_facts(rounds=2), {"a": np.float64(1)}, "| a |", figure)
    content = json.loads((tmp_path / "some.json").read_text())
    assert content["command"] == "python scripts/benchmarks/some.py --quick"
    assert content["results"] == {"a": 1.0}
    assert content["machine"]["torch"] == torch.__version__
    assert content["machine"]["rounds"] == 2
    text = (tmp_path / "some.md").read_text()
    assert "| a |" in text
    assert "torch: " in text
    drawn = [trace for trace in figure.data if trace.type == "bar"]
    assert [trace.name for trace in drawn] == ["own", "peer"]
    assert drawn[0].y[0] == pytest.approx(1.5)
    assert drawn[0].error_y.array[0] == pytest.approx(0.5)
