"""The whole chain, from restarts to distinct minima, on problems whose minima are known."""

import itertools
from typing import NamedTuple

import numpy as np
import pytest
import torch
from problems import KNOWN_MINIMA, one_sample
from torch import nn
from torch.nn import functional as F

from landscape.catalog import Catalog
from landscape.minima.survey import survey_minima
from landscape.restarts import run_restarts
from landscape.rows import RowsWriter

CORNERS = torch.tensor([[-1.0, -1], [-1, 1], [1, -1], [1, 1]])
XOR = (CORNERS, torch.tensor([[-1.0], [1], [1], [-1]]))
SETTINGS = {
    "gd": {"learning_rate": 0.1, "epochs": 40, "evaluate_every": 40},
    "adam": {"learning_rate": 0.05, "epochs": 40, "evaluate_every": 40},
}


class Point(nn.Module):
    """Its output are its parameters, so that the loss can be any function of them."""

    def __init__(self, x):
        super().__init__()
        self.x = nn.Parameter(torch.tensor(x))

    def forward(self, x):
        return self.x.expand(len(x), -1)


def squares(output, target):
    return (output - target).square().mean()


def network(seed, *layers):
    """Normal weights and biases."""
    generator = torch.Generator().manual_seed(seed)
    model = nn.Sequential(*(layers or (nn.Linear(2, 2), nn.Tanh(), nn.Linear(2, 1))))
    for layer in model:
        if isinstance(layer, nn.Linear):
            for parameter in layer.parameters():
                nn.init.normal_(parameter, generator=generator)
    return model


class Problem(NamedTuple):
    make: object
    data: tuple
    loss: object

    def restarts(self, path, seeds=20, settings=SETTINGS, penalty=0.0):
        options = {"loss": self.loss, "penalty": penalty, "seeds": seeds, "settings": settings}
        return run_restarts(self.make, self.data, path, progress=False, **options)

    def survey(self, study, path, **options):
        return survey_minima(study, self.make(0), self.data, path, loss=self.loss, progress=False, **options)


TANH = Problem(network, XOR, squares)


@pytest.fixture(scope="module")
def xor(tmp_path_factory):
    """100 runs of the 2-2-1 network with tanh on the exclusive or, two optimizers, and their minima."""
    folder = tmp_path_factory.mktemp("xor")
    study = TANH.restarts(folder / "study.h5", seeds=50, penalty=0.01)
    return study, TANH.survey(study, folder / "minima.h5")


def same(one, other):
    """Compare two catalogs run by run, whatever the order in which they were made."""
    order = [np.argsort(catalog.columns["run"]) for catalog in (one, other)]
    for name in one.columns:
        np.testing.assert_array_equal(one.columns[name][order[0]], other.columns[name][order[1]], err_msg=name)
    for name in one.metrics:
        np.testing.assert_array_equal(one.metrics[name][order[0]], other.metrics[name][order[1]], err_msg=name)
    np.testing.assert_array_equal(one.thetas()[order[0]], other.thetas()[order[1]])
    labels = one.labels[order[0]], other.labels[order[1]]
    np.testing.assert_array_equal(*(found < 0 for found in labels))
    # of equal losses, that of the run which was first in the file comes first
    np.testing.assert_array_equal(*(found[:, None] == found for found in labels))


class TestKnownMinima:
    @pytest.mark.parametrize(
        ("name", "seeds", "box", "n_minima"),
        [
            ("six-hump camel", 60, 1.0, 6),
            ("Himmelblau", 30, 1.0, 4),
            ("Mueller-Brown", 30, 1.0, 3),
            ("Goldstein-Price", 60, 1.0, 4),
            ("Styblinski-Tang-3", 60, 1.0, 8),
            ("Rastrigin-2", 120, 1.4 / 5.12, 9),
        ],
    )
    def test_restarts_find_them_all_and_none_twice(self, tmp_path, name, seeds, box, n_minima):
        known = KNOWN_MINIMA[name]
        low, high = box * np.array(known.box).T

        def make(seed):
            return Point(np.random.default_rng(seed).uniform(low, high))

        problem = Problem(make, one_sample(), lambda output, target: known.function(*output.unbind(1)).mean())
        settings = {"gd": {"learning_rate": 1e-6, "epochs": 1}}
        catalog = problem.survey(problem.restarts(tmp_path / "s.h5", seeds, settings), tmp_path / "m.h5")
        found = catalog.thetas()[catalog.labels >= 0]
        labels = catalog.labels[catalog.labels >= 0]
        distances = np.abs(found[:, None] - known.minima).max(axis=2)
        inside = ((found > low) & (found < high)).all(axis=1)
        assert distances[inside].min(axis=1).max() < 2e-4  # as exactly as the table gives them
        pairs = set(zip(labels[inside].tolist(), distances[inside].argmin(axis=1).tolist(), strict=True))
        assert len(pairs) == n_minima  # all of them
        assert len({label for label, _ in pairs}) == len({i for _, i in pairs}) == n_minima  # and none twice
        assert catalog.hits().sum() == len(labels)


class TestExclusiveOr:
    def test_eight_symmetric_copies_are_one(self, xor, tmp_path):
        _, catalog = xor
        assert catalog.kinds() == {"minimum": 100}
        theta = catalog.thetas([0])[0]
        first, bias, second, last = theta[:4].reshape(2, 2), theta[4:6], theta[6:8], theta[8:]
        eight = []
        for signs in itertools.product([1, -1], repeat=2):
            for order in ([0, 1], [1, 0]):
                rows = (first.T * signs).T[order], (bias * signs)[order], (second * signs)[order], last
                eight.append(np.concatenate([row.ravel() for row in rows]))
        gaps = np.linalg.norm(np.array(eight)[:, None] - eight, axis=2)
        assert gaps[~np.eye(8, dtype=bool)].min() > 0.1  # eight places

        def make(seed):
            model = network(0).double()
            nn.utils.vector_to_parameters(torch.tensor(eight[seed]), model.parameters())
            return model

        problem = Problem(make, (CORNERS.double(), XOR[1].double()), squares)
        settings = {"gd": {"learning_rate": 1e-9, "epochs": 1}}
        again = problem.survey(problem.restarts(tmp_path / "s.h5", 8, settings, penalty=0.01), tmp_path / "m.h5")
        assert again.n_minima == 1
        assert again.hits().tolist() == [8]
        assert again.columns["moved"].max() < 1e-6

    def test_minima_of_equal_loss_that_only_symmetries_of_the_data_join(self, xor):
        """Exchanging or negating inputs maps minima to others, of the same loss, that are not counted as the same."""
        _, catalog = xor
        losses = catalog.columns["loss"][catalog.representatives()]
        np.testing.assert_allclose(losses, [losses[0]] * 2 + [losses[2]] * 4, rtol=1e-12)  # two orbits
        assert losses[2] > losses[0] + 0.1
        model, outputs = network(0).double(), []
        for theta in torch.tensor(catalog.thetas(np.sort(catalog.representatives()))):
            nn.utils.vector_to_parameters(theta, model.parameters())
            outputs.append(model(CORNERS.double()).detach().flatten().numpy())
        gaps = np.abs(np.array(outputs)[:, None] - np.array(outputs)).max(axis=2)
        assert gaps[~np.eye(6, dtype=bool)].min() > 1e-3  # they are different functions

    def test_both_relations_agree(self, xor, tmp_path):
        study, by_symmetry = xor
        by_function = TANH.survey(study, tmp_path / "m.h5", relation="function")
        pairs = set(zip(by_symmetry.labels.tolist(), by_function.labels.tolist(), strict=True))
        assert len(pairs) == by_symmetry.n_minima == by_function.n_minima == 6
        assert by_function.relation != by_symmetry.relation

    def test_optimizers_find_the_same(self, xor):
        _, catalog = xor
        assert (catalog.hits("gd") > 0).tolist() == (catalog.hits("adam") > 0).tolist()
        assert (catalog.hits("gd") + catalog.hits("adam")).tolist() == catalog.hits().tolist()
        assert sum(row["hits of adam"] for row in catalog.table()) == 50

    def test_the_table_says_what_the_minima_are(self, xor):
        _, catalog = xor
        for row, i in zip(catalog.table(), catalog.representatives(), strict=True):
            theta = torch.tensor(catalog.thetas([i]))[0]
            model = network(0).double()
            nn.utils.vector_to_parameters(theta, model.parameters())
            loss = squares(model(CORNERS.double()), XOR[1].double()).item()
            assert row["loss"] == pytest.approx(loss, rel=1e-12)
            assert row["objective"] == pytest.approx(loss + 0.005 * theta.square().sum().item(), rel=1e-12)
            assert row["gradient norm"] < 1e-9
        assert catalog.count_at(np.array([1e-9, 1e-3]))[1] == 6


def hessian(model, data, loss, penalty, theta):
    """The dense Hessian by torch.func."""
    names = [name for name, _ in model.named_parameters()]
    shapes = [parameter.shape for parameter in model.parameters()]

    def objective(flat):
        parts = [part.view(shape) for part, shape in zip(flat.split([s.numel() for s in shapes]), shapes, strict=True)]
        output = torch.func.functional_call(model, dict(zip(names, parts, strict=True)), (data[0].double(),))
        target = data[1].double() if data[1].is_floating_point() else data[1]
        return loss(output, target) + penalty / 2 * flat.square().sum()

    return torch.func.hessian(objective)(theta)


@pytest.mark.parametrize("width", [4, 30])  # 35 parameters: whole Hessians; 243: products
def test_certified_eigenvalues_agree_with_a_dense_hessian(tmp_path, width):
    generator = torch.Generator().manual_seed(0)
    data = torch.randn(30, 4, generator=generator), torch.randint(0, 3, (30,), generator=generator)

    def make(seed):
        return network(seed, nn.Linear(4, width), nn.Tanh(), nn.Linear(width, 3))

    problem = Problem(make, data, None)
    settings = {"adam": {"learning_rate": 0.05, "epochs": 100, "evaluate_every": 100}}
    catalog = problem.survey(problem.restarts(tmp_path / "s.h5", 2, settings, penalty=0.02), tmp_path / "m.h5")
    for i, theta in enumerate(torch.tensor(catalog.thetas())):
        values = torch.linalg.eigvalsh(hessian(make(0).double(), data, F.cross_entropy, 0.02, theta)).numpy()
        row = {name: column[i] for name, column in catalog.columns.items()}
        assert row["kind"] == "minimum"
        assert row["n_negative"] == row["n_flat"] == 0
        np.testing.assert_allclose(
            [row["smallest"], row["largest"], row["trace"]], [values[0], values[-1], values.sum()], rtol=1e-7
        )


def test_what_has_no_finite_minimum_is_not_counted(tmp_path):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(20, 2, generator=generator)
    separable = x, (x[:, 0] > 0.2 * x[:, 1]).long()
    problem = Problem(lambda seed: network(seed, nn.Linear(2, 2)), separable, None)
    settings = {"gd": {"epochs": 5}}
    without = problem.survey(problem.restarts(tmp_path / "a.h5", 3, settings), tmp_path / "am.h5")
    assert without.kinds() == {"at infinity": 3}
    assert without.n_minima == 0
    assert without.labels.tolist() == [-1] * 3
    assert without.table() == []
    penalized = problem.survey(problem.restarts(tmp_path / "b.h5", 3, settings, penalty=0.01), tmp_path / "bm.h5")
    assert penalized.kinds() == {"minimum": 3}
    assert penalized.n_minima == 1


@pytest.fixture(scope="module")
def normalized(tmp_path_factory):
    def make(seed):
        return network(seed, nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Tanh(), nn.Linear(3, 1))

    problem = Problem(make, XOR, squares)
    path = tmp_path_factory.mktemp("norm") / "s.h5"
    return problem, problem.restarts(path, 3, {"adam": {"epochs": 20}}, penalty=0.01)


class TestBatchNorm:
    def test_every_run_keeps_its_own_statistics(self, normalized, tmp_path):
        problem, runs = normalized
        catalog = problem.survey(runs, tmp_path / "m.h5")
        model = problem.make(0).double().eval()
        for i, (theta, buffers) in enumerate(zip(torch.tensor(catalog.thetas()), runs.buffers(), strict=True)):
            model[1].running_mean.copy_(torch.tensor(buffers[:3]))
            model[1].running_var.copy_(torch.tensor(buffers[3:]))
            nn.utils.vector_to_parameters(theta, model.parameters())
            loss = squares(model(CORNERS.double()), XOR[1].double()).item()
            assert catalog.metrics["loss"][i] == pytest.approx(loss, rel=1e-9)
            values = torch.linalg.eigvalsh(hessian(model, XOR, squares, 0.01, theta))
            assert catalog.columns["smallest"][i] == pytest.approx(values[0].item(), rel=1e-6, abs=1e-9)

    def test_functions_are_compared_with_their_own_statistics(self, normalized, tmp_path, monkeypatch):
        problem, runs = normalized
        seen = []
        monkeypatch.setattr(
            "landscape.minima.survey.identify",
            lambda thetas, losses, outputs, **options: seen.append(outputs) or 1 / 0,
        )
        with pytest.raises(ZeroDivisionError):
            problem.survey(runs, tmp_path / "m.h5", relation="function")
        monkeypatch.undo()
        catalog = problem.survey(runs, tmp_path / "m.h5", relation="function")
        errors = (seen[0].double() - XOR[1].double()).square().mean(dim=(1, 2))
        np.testing.assert_allclose(errors, catalog.metrics["loss"], rtol=1e-9)


class TestStopping:
    @pytest.mark.parametrize("after", [0, 3])
    def test_goes_on_where_it_was_stopped(self, xor, tmp_path, monkeypatch, after):
        study, whole = xor
        path, add, written = tmp_path / "m.h5", RowsWriter.add, []

        def stop(self, columns, i):
            if len(written) == after:
                raise KeyboardInterrupt
            add(self, columns, i)
            written.extend([i])

        monkeypatch.setattr(RowsWriter, "add", stop)
        with pytest.raises(KeyboardInterrupt):
            TANH.survey(study, path, batch=20)
        monkeypatch.undo()
        if after:
            with pytest.raises(ValueError, match="run the same command again"):
                Catalog.load(path)
        polished = count_polished(monkeypatch)
        same(TANH.survey(study, path, batch=20), whole)
        assert sum(polished) == 100 - 20 * after
        assert [file.name for file in tmp_path.iterdir()] == ["m.h5"]

    def test_a_kill_before_minima_are_identified(self, xor, tmp_path, monkeypatch):
        study, whole = xor
        monkeypatch.setattr("landscape.minima.survey._identify", lambda *arguments: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            TANH.survey(study, tmp_path / "m.h5")
        monkeypatch.undo()
        with pytest.raises(ValueError, match="not finished"):
            Catalog.load(tmp_path / "m.h5")
        polished = count_polished(monkeypatch)
        same(TANH.survey(study, tmp_path / "m.h5"), whole)
        assert polished == []

    def test_two_processes(self, xor, tmp_path):
        study, whole = xor
        same(TANH.survey(study, tmp_path / "m.h5", workers=2), whole)

    def test_some_runs_then_all_then_more(self, tmp_path, monkeypatch):
        study = TANH.restarts(tmp_path / "s.h5", 6, {"gd": SETTINGS["gd"]}, penalty=0.01)
        some = TANH.survey(study, tmp_path / "m.h5", runs=[4, 1])
        assert some.columns["run"].tolist() == [1, 4]
        polished = count_polished(monkeypatch)
        assert len(TANH.survey(study, tmp_path / "m.h5")) == 6
        study = TANH.restarts(tmp_path / "s.h5", 8, SETTINGS, penalty=0.01)
        grown = TANH.survey(study, tmp_path / "m.h5")
        assert polished == [4, 10]
        assert grown.settings == ("gd", "adam")
        monkeypatch.undo()
        same(grown, TANH.survey(study, tmp_path / "again.h5"))

    def test_another_tolerance_polishes_nothing_again(self, xor, tmp_path, monkeypatch):
        study, _ = xor
        TANH.survey(study, tmp_path / "m.h5")
        polished = count_polished(monkeypatch)
        assert TANH.survey(study, tmp_path / "m.h5", tolerance=1e-2).tolerance == 1e-2
        assert polished == []


def count_polished(monkeypatch):
    """The number of runs of each call from now on."""
    from landscape.minima import survey

    descend, sizes = survey._descend, []
    monkeypatch.setattr(survey, "_descend", lambda job, o, thetas: sizes.append(len(thetas)) or descend(job, o, thetas))
    return sizes


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    folder = tmp_path_factory.mktemp("done")
    study = TANH.restarts(folder / "s.h5", 3, {"gd": SETTINGS["gd"]}, penalty=0.01)
    TANH.survey(study, folder / "m.h5")
    return study, folder / "m.h5"


class TestRefusals:
    @pytest.mark.parametrize(
        ("options", "differs"),
        [
            ({"gtol": 1e-8}, "gtol"),
            ({"max_escapes": 3}, "max escapes"),
            ({"test": XOR}, "test data"),
        ],
    )
    def test_another_survey(self, done, options, differs):
        study, path = done
        with pytest.raises(ValueError, match=f"another survey; what differs: .*{differs}.*another file name"):
            TANH.survey(study, path, **options)

    def test_another_study_of_the_same_network(self, done, tmp_path):
        _, path = done
        other_rate = {"gd": {**SETTINGS["gd"], "learning_rate": 0.2}}
        for i, (settings, seeds) in enumerate([(other_rate, 3), ({"gd": SETTINGS["gd"]}, [3, 4, 5])]):
            other = TANH.restarts(tmp_path / f"{i}.h5", seeds, settings, penalty=0.01)
            with pytest.raises(ValueError, match="another survey; what differs: se"):
                TANH.survey(other, path)

    def test_other_data_or_network(self, done, tmp_path):
        study, _ = done
        with pytest.raises(ValueError, match="what differs: training_data"):
            TANH._replace(data=(CORNERS, -XOR[1])).survey(study, tmp_path / "m.h5")
        wider = TANH._replace(make=lambda seed: network(seed, nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1)))
        with pytest.raises(ValueError, match="what differs: model, parameters"):
            wider.survey(study, tmp_path / "m.h5")

    def test_a_study_that_goes_on_with_another_objective(self, done):
        study, _ = done
        with pytest.raises(ValueError, match="what differs: penalty"):
            TANH.restarts(study.path, 3, {"adam": SETTINGS["adam"]})

    def test_runs_that_are_not_there(self, done, tmp_path):
        study, _ = done
        for runs, message in (([3], "there is no run 3"), ([-1], "no run -1"), ([], "nothing to descend from: 0 runs")):
            with pytest.raises(ValueError, match=message):
                TANH.survey(study, tmp_path / "m.h5", runs=runs)


def test_diverged_runs_are_left_out(tmp_path):
    problem = TANH._replace(make=lambda seed: network(seed, nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 1)))
    settings = {"far": {"optimizer": "gd", "learning_rate": 1e38, "epochs": 4}, "gd": SETTINGS["gd"]}
    study = problem.restarts(tmp_path / "s.h5", 3, settings, penalty=0.01)
    assert study.diverged.tolist() == [True] * 3 + [False] * 3
    catalog = problem.survey(study, tmp_path / "m.h5")
    assert catalog.columns["run"].tolist() == [3, 4, 5]
    assert set(catalog.names) == {"gd"}
    with pytest.raises(ValueError, match="2 runs chosen, all of them diverged"):
        problem.survey(study, tmp_path / "n.h5", runs=[0, 1])
