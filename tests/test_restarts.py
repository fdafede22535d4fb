"""Restart studies: what is stored is what training gives, stopped or not, extended or not."""

import shutil

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from landscape.ensemble import train_many
from landscape.group import STATE, Kept
from landscape.models import build
from landscape.restarts import run_restarts
from landscape.session import read_state
from landscape.study import Study, StudyWriter

SETTINGS = {
    "adam": {"batch_size": 10, "epochs": 3},
    "descent": {"optimizer": "gd", "learning_rate": 0.1, "epochs": 4, "evaluate_every": 3},
}


def data(n=30, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, 4, generator=generator), torch.randint(0, 3, (n,), generator=generator)


def make(seed):
    return build("mlp", seed=seed, input_shape=[4], classes=3, widths=[5])


def run(path, seeds=5, settings=SETTINGS, **options):
    return run_restarts(make, data(), path, settings=settings, seeds=seeds, progress=False, **options)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return run(tmp_path_factory.mktemp("whole") / "study.h5", batch=2, test=data(12, seed=1))


def same(one, other):
    """Compare the runs of two studies, whatever their order."""
    order = [np.lexsort((study.seed, study.names)) for study in (one, other)]
    assert one.names[order[0]].tolist() == other.names[order[1]].tolist()
    assert one.seed[order[0]].tolist() == other.seed[order[1]].tolist()
    np.testing.assert_array_equal(one.thetas()[order[0]], other.thetas()[order[1]])
    np.testing.assert_array_equal(one.gradient_norm[order[0]], other.gradient_norm[order[1]])
    for metric in one.curves:
        np.testing.assert_array_equal(one.final(metric)[order[0]], other.final(metric)[order[1]])


class TestWhatIsStored:
    def test_it_is_what_training_gives(self, whole):
        for name, settings in SETTINGS.items():
            arguments = {"optimizer": name, **settings}
            ensemble = train_many(make, data(), seeds=range(5), test=data(12, seed=1), progress=False, **arguments)
            chosen = whole.names == name
            np.testing.assert_allclose(whole.thetas()[chosen], ensemble.thetas.numpy(), atol=1e-6)
            for metric, curve in ensemble.history.items():
                width = curve.shape[1]
                np.testing.assert_allclose(whole.curves[metric][chosen][:, :width], curve, atol=1e-5)
                np.testing.assert_allclose(whole.final(metric)[chosen], curve[:, -1], atol=1e-5)
            assert whole.settings[name]["epochs evaluated"] == ensemble.epochs.tolist()

    def test_runs_and_their_names(self, whole):
        assert len(whole) == 10
        assert whole.names.tolist() == ["adam"] * 5 + ["descent"] * 5
        assert whole.seed.tolist() == [0, 1, 2, 3, 4] * 2
        assert list(whole.curves) == ["loss", "accuracy", "test_loss", "test_accuracy"]
        assert whole.settings["adam"]["learning_rate"] == 0.001
        assert list(whole.groups("test_loss")) == ["adam", "descent"]

    def test_chosen_networks(self, whole):
        np.testing.assert_array_equal(whole.thetas([1, 2, 7]), whole.thetas()[[1, 2, 7]])
        assert whole.thetas([]).shape == (0, whole.thetas().shape[1])
        assert whole.buffers().shape == (10, 0)

    def test_distance_from_the_start(self, whole):
        for theta, seed, travelled in zip(whole.thetas(), whole.seed, whole.travelled, strict=True):
            start = torch.nn.utils.parameters_to_vector(make(int(seed)).parameters()).detach().numpy()
            assert travelled == pytest.approx(np.linalg.norm(theta - start), rel=1e-5)

    def test_gradient_norm_with_a_penalty(self, tmp_path):
        study = run(tmp_path / "study.h5", seeds=2, penalty=0.1)
        x, y = data()
        for theta, norm in zip(study.thetas(), study.gradient_norm, strict=True):
            network = make(0)
            torch.nn.utils.vector_to_parameters(torch.tensor(theta), network.parameters())
            penalty = 0.05 * sum(p.square().sum() for p in network.parameters())
            gradient = torch.autograd.grad(F.cross_entropy(network(x), y) + penalty, list(network.parameters()))
            assert norm == pytest.approx(torch.cat([g.reshape(-1) for g in gradient]).norm().item(), rel=1e-4)

    def test_a_diverged_run_has_no_final_loss(self, tmp_path):
        def relu(seed):
            return build("mlp", seed=seed, input_shape=[4], classes=3, widths=[5], activation="relu")

        settings = {"far": {"optimizer": "gd", "learning_rate": 1e38, "epochs": 4}}
        study = run_restarts(relu, data(), tmp_path / "study.h5", settings=settings, seeds=2, progress=False)
        assert study.diverged.all()
        assert np.isnan(study.final()).all()
        assert np.isnan(study.gradient_norm).all()

    def test_batch_norm_statistics(self, tmp_path):
        images = (torch.randn(8, 1, 8, 8), torch.arange(8) % 2)

        def convolutional(seed):
            return build("resnet", seed=seed, input_shape=[1, 8, 8], classes=2, depth=8, width=2)

        settings = {"adam": {"epochs": 2}}
        study = run_restarts(
            convolutional, images, tmp_path / "s.h5", settings=settings, seeds=2, metrics={}, progress=False
        )
        ensemble = train_many(convolutional, images, seeds=[0, 1], epochs=2, metrics={}, progress=False)
        statistics = [v[1].reshape(-1).numpy() for v in ensemble.buffers.values() if v.is_floating_point()]
        np.testing.assert_allclose(study.buffers([1])[0], np.concatenate(statistics), atol=1e-5)
        assert (study.gradient_norm > 0).all()


class TestInterruption:
    @pytest.mark.parametrize("after", [0, 1, 3])
    def test_goes_on_where_it_was_stopped(self, whole, tmp_path, monkeypatch, after):
        path, add, written = tmp_path / "study.h5", StudyWriter.add, []

        def stop(self, batch, i):
            if len(written) == after:
                raise KeyboardInterrupt
            add(self, batch, i)
            written.append(i)

        monkeypatch.setattr(StudyWriter, "add", stop)
        with pytest.raises(KeyboardInterrupt):
            run(path, batch=2, test=data(12, seed=1))
        if after:
            assert len(Study.load(path)) == len(Study.load(path).thetas()) > 0
        monkeypatch.undo()
        same(run(path, batch=2, test=data(12, seed=1)), whole)
        assert [file.name for file in tmp_path.iterdir()] == ["study.h5"]

    def test_a_damaged_state_of_networks_in_training_is_said_and_can_be_deleted(self, whole, tmp_path, monkeypatch):
        path, keep, calls = tmp_path / "study.h5", Kept.keep, []

        def stop(*arguments, **options):
            keep(*arguments, **options)
            calls.append(0)
            if len(calls) == 3:
                raise KeyboardInterrupt

        monkeypatch.setattr(Kept, "keep", stop)
        with pytest.raises(KeyboardInterrupt):
            run(path, batch=2, test=data(12, seed=1), interval=0)
        (state,) = tmp_path.glob("study.h5.parts/training-*.pt")
        assert read_state(state, STATE)["group"]["step"] > 0
        content = bytearray(state.read_bytes())
        content[-1] ^= 1
        state.write_bytes(content)
        with pytest.raises(ValueError, match=r"training-\w+\.pt is damaged: .* delete it: the same command trains its"):
            run(path, batch=2, test=data(12, seed=1))
        state.unlink()
        same(run(path, batch=2, test=data(12, seed=1)), whole)
        assert [file.name for file in tmp_path.iterdir()] == ["study.h5"]

    def test_a_kill_between_merging_and_tidying_up(self, tmp_path, monkeypatch):
        path = tmp_path / "study.h5"
        monkeypatch.setattr(shutil, "rmtree", lambda folder, ignore_errors: None)
        first = run(path, batch=2)
        monkeypatch.undo()
        assert (tmp_path / "study.h5.parts").exists()
        assert len(Study.load(path)) == 10
        extended = run(path, seeds=6, batch=2)
        assert len(extended) == 12
        np.testing.assert_array_equal(extended.thetas()[:10], first.thetas())

    def test_nothing_is_done_twice(self, whole, monkeypatch):
        monkeypatch.setattr("landscape.restarts._columns", lambda *arguments: pytest.fail("trained again"))
        same(run(whole.path, batch=2, test=data(12, seed=1)), whole)

    def test_more_seeds_and_settings(self, tmp_path):
        path = tmp_path / "study.h5"
        run(path, seeds=2, settings={"adam": SETTINGS["adam"]})
        grown = run(path, seeds=[1, 3])
        assert sorted(zip(grown.names.tolist(), grown.seed.tolist(), strict=True)) == [
            ("adam", 0), ("adam", 1), ("adam", 3), ("descent", 1), ("descent", 3),
        ]  # fmt: skip
        same(run(tmp_path / "other.h5", seeds=[1, 3], settings={"descent": SETTINGS["descent"]}),
             _only(grown, "descent", tmp_path))  # fmt: skip

    def test_on_several_processes(self, whole, tmp_path):
        parallel = run(tmp_path / "study.h5", batch=2, test=data(12, seed=1), workers=2)
        np.testing.assert_array_equal(parallel.thetas(), whole.thetas())
        same(parallel, whole)


def _only(study, name, folder):
    writer = StudyWriter(folder / "only.h5", {name: study.settings[name]}, study.provenance, study.fingerprint)
    chosen = study.names == name
    columns = {key: getattr(study, key)[chosen] for key in ("seed", "steps", "diverged", "gradient_norm", "travelled")}
    columns["setting"] = np.zeros(chosen.sum(), dtype=int)
    columns |= {f"curve/{key}": curve[chosen] for key, curve in study.curves.items()}
    columns |= {"theta": study.thetas()[chosen], "buffers": study.buffers()[chosen]}
    writer.add(columns, 0)
    writer.finish()
    return Study.load(folder / "only.h5")


class TestMistakes:
    def test_another_study_in_the_file(self, whole):
        with pytest.raises(ValueError, match="another study; what differs: training_data"):
            run_restarts(make, data(seed=3), whole.path, seeds=5, progress=False)
        with pytest.raises(ValueError, match=r"named 'adam' with other settings \(epochs, epochs evaluated\)"):
            run(whole.path, settings={"adam": {"batch_size": 10, "epochs": 5}}, test=data(12, seed=1))

    def test_unknown_settings(self, tmp_path):
        with pytest.raises(ValueError, match="momentun"):
            run(tmp_path / "s.h5", settings={"gd": {"momentun": 0.9}})
        with pytest.raises(ValueError, match="adamw decays the weights apart"):
            run(tmp_path / "s.h5", settings=["adamw"], penalty=0.1)
        with pytest.raises(ValueError, match="different seeds"):
            run(tmp_path / "s.h5", seeds=[1, 1])

    def test_no_such_file_or_metric(self, whole, tmp_path):
        with pytest.raises(FileNotFoundError, match="no file"):
            Study.load(tmp_path / "none.h5")
        with pytest.raises(ValueError, match="no metric 'sharpness'; the study has loss, accuracy"):
            whole.final("sharpness")
