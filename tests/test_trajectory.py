import atexit
import contextlib
import copy
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from landscape import recorder, shards
from landscape.checkpoint import save
from landscape.parameters import layout
from landscape.recorder import Recorder
from landscape.shards import shard_folder
from landscape.storage import write_hdf5
from landscape.trajectory import Trajectory, gather


def small_net(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 2))


def change(model: nn.Module, step: int) -> None:
    """One "training step" that depends on the step only."""
    with torch.no_grad():
        for i, (_, tensor) in enumerate(sorted(model.state_dict().items())):
            tensor.fill_(10 * step + i)


def train(model: nn.Module, steps: range, each) -> list[torch.Tensor]:
    """The plain loop: change the model, call `each`, and return theta after every step."""
    thetas = []
    for step in steps:
        change(model, step)
        each(step)
        thetas.append(torch.cat([tensor.detach().flatten() for tensor in model.parameters()]))
    return thetas


def abandon(run: Recorder) -> None:
    """Leave a recorder as a kill would: nothing is written any more."""
    atexit.unregister(run.close)
    run._closed = True


def assert_equal(a: Trajectory, b: Trajectory) -> None:
    assert a.step.tolist() == b.step.tolist()
    assert a.metrics.keys() == b.metrics.keys()
    for name in a.metrics:
        np.testing.assert_array_equal(a.metrics[name], b.metrics[name])
    np.testing.assert_array_equal(a.columns(0, a.p), b.columns(0, b.p))
    for i in range(len(a)):
        for name, tensor in a.buffers(i).items():
            assert torch.equal(tensor, b.buffers(i)[name])


@pytest.fixture
def many_shards(monkeypatch):
    """Every row becomes a shard of its own."""
    monkeypatch.setattr(recorder, "MEMORY_BYTES", 1)
    monkeypatch.setattr(recorder, "SHARD_BYTES", 1)


def test_rows_are_those_of_a_plain_loop(tmp_path):
    model = small_net()
    start = torch.cat([tensor.detach().flatten() for tensor in model.parameters()])
    with Recorder(tmp_path / "run.h5", model, info={"seed": 3}) as run:
        thetas = train(model, range(1, 6), lambda step: run.step(loss=torch.tensor(step / 2, requires_grad=True)))
    path = Trajectory.load(tmp_path / "run.h5")
    assert (len(path), path.p, path.info) == (6, len(start), {"seed": 3})
    assert path.layout == layout(model)
    assert path.step.tolist() == [0, 1, 2, 3, 4, 5]
    np.testing.assert_array_equal(path.metrics["loss"], [np.nan, 0.5, 1.0, 1.5, 2.0, 2.5])
    for i, theta in enumerate([start, *thetas]):
        assert torch.equal(path.theta(i), theta)
        assert torch.equal(path.theta(i - 6), theta)
    assert os.listdir(tmp_path) == ["run.h5"]


def test_batch_norm_statistics_are_kept(tmp_path):
    model, expected = small_net(), []
    with Recorder(tmp_path / "run.h5", model) as run:
        for _ in range(3):
            model(torch.randn(8, 3))
            run.step()
            expected.append({n: b.clone() for n, b in model.named_buffers() if "num_batches" not in n})
    path = Trajectory.load(tmp_path / "run.h5")
    for i, buffers in enumerate(expected, start=1):
        found = path.buffers(i)
        assert found.keys() == buffers.keys() == {"1.running_mean", "1.running_var"}
        assert all(torch.equal(found[name], buffers[name]) for name in buffers)


def test_buffers_outside_the_state_dict_are_not_recorded(tmp_path):
    model = nn.Linear(2, 2)
    model.register_buffer("table", torch.ones(100), persistent=False)
    Recorder(tmp_path / "run.h5", model).close()
    path = Trajectory.load(tmp_path / "run.h5")
    assert path.buffers(0) == {}


def test_every_and_the_last_step(tmp_path):
    model = small_net()
    run = Recorder(tmp_path / "run.h5", model, every=3)
    thetas = train(model, range(1, 9), lambda step: run.step(loss=step))
    run.close()
    run.close()
    path = Trajectory.load(tmp_path / "run.h5")
    assert path.step.tolist() == [0, 3, 6, 8]
    np.testing.assert_array_equal(path.metrics["loss"], [np.nan, 3, 6, 8])
    for i, step in enumerate(path.step[1:], start=1):
        assert torch.equal(path.theta(i), thetas[step - 1])
    with pytest.raises(ValueError, match="step=8"):
        run.step()


def test_the_last_step_is_not_invented(tmp_path, caplog):
    """When the network has changed since its last step, its row would be wrong."""
    model = small_net()
    run = Recorder(tmp_path / "run.h5", model, every=3)
    train(model, range(1, 5), lambda step: run.step())
    model.load_state_dict(small_net(1).state_dict())
    run.close()
    assert Trajectory.load(tmp_path / "run.h5").step.tolist() == [0, 3]
    assert "step 4 is not recorded" in caplog.text


def test_an_exception_keeps_what_was_recorded(tmp_path):
    def fail_at_5(step):
        run.step(loss=step)
        if step == 5:
            raise RuntimeError

    run = Recorder(tmp_path / "run.h5", small_net(), every=2)
    with pytest.raises(RuntimeError), run:
        train(run.model, range(1, 9), fail_at_5)
    assert Trajectory.load(tmp_path / "run.h5").step.tolist() == [0, 2, 4]
    assert os.listdir(tmp_path) == ["run.h5"]


def test_selected_tied_double_and_half_parameters(tmp_path):
    model = nn.ModuleDict({"a": nn.Linear(2, 3), "b": nn.Linear(2, 3), "c": nn.Linear(3, 2)})
    model["b"].weight = model["a"].weight
    model["c"].weight.requires_grad_(False)
    for select, size in (("all", 6 + 3 + 3 + 6 + 2), ("trainable", 6 + 3 + 3 + 2), ("a.*", 6 + 3)):
        Recorder(tmp_path / f"{size}.h5", model, select=select).close()
        path = Trajectory.load(tmp_path / f"{size}.h5")
        assert path.p == size
        assert torch.equal(path.theta(0), layout(model, select).flatten(dict(model.named_parameters())))
    nn.init.constant_(model["c"].double().weight, 1 / 3)
    Recorder(tmp_path / "double.h5", model).close()
    assert torch.equal(
        path_theta(tmp_path / "double.h5")[-8:],
        torch.cat([model["c"].weight.flatten(), model["c"].bias]).detach(),
    )
    model.half()
    Recorder(tmp_path / "half.h5", model).close()
    assert path_theta(tmp_path / "half.h5").dtype == torch.float32
    assert torch.equal(path_theta(tmp_path / "half.h5")[:6].half(), model["a"].weight.flatten().detach())


def path_theta(path: Path) -> torch.Tensor:
    return Trajectory.load(path).theta(0)


def test_metrics_may_come_and_go(tmp_path, many_shards):
    model = small_net()
    given = [{"loss": 1.0}, {}, {"loss": float("nan"), "accuracy": 0.5}, {"accuracy": torch.tensor(1)}]
    with Recorder(tmp_path / "run.h5", model) as run:
        for metrics in given:
            run.step(**metrics)
        unmerged = Trajectory.load(tmp_path / "run.h5").metrics
    for metrics in (unmerged, Trajectory.load(tmp_path / "run.h5").metrics):
        np.testing.assert_array_equal(metrics["loss"], [np.nan, 1, np.nan, np.nan, np.nan])
        np.testing.assert_array_equal(metrics["accuracy"], [np.nan, np.nan, np.nan, 0.5, 1])


def test_metrics_that_are_no_numbers(tmp_path):
    with Recorder(tmp_path / "run.h5", small_net()) as run:
        with pytest.raises(TypeError, match="'loss' must be a number"):
            run.step(loss=torch.ones(2))
        with pytest.raises(TypeError, match="'loss' must be a number"):
            run.step(loss=None)
        with pytest.raises(ValueError, match="'a/b'"):
            run.step(**{"a/b": 1.0})
        run.step()
    assert Trajectory.load(tmp_path / "run.h5").step.tolist() == [0, 4]


@pytest.mark.parametrize("merged", [False, True])
def test_reading_by_rows_columns_and_blocks(tmp_path, monkeypatch, merged):
    model = small_net()
    row_bytes = recorder.ROW_BYTES + 4 * sum(t.numel() for t in model.parameters())
    monkeypatch.setattr(recorder, "MEMORY_BYTES", 3 * row_bytes)  # shards of 3 rows
    monkeypatch.setattr(recorder, "SHARD_BYTES", 3 * row_bytes)
    monkeypatch.setattr(shards, "MERGE_BYTES", 300)  # blocks of 2 rows
    run = Recorder(tmp_path / "run.h5", model)
    start = torch.cat([tensor.detach().flatten() for tensor in model.parameters()])
    theta = torch.stack([start, *train(model, range(1, 11), lambda step: run.step())]).numpy()
    run.flush()
    assert len(os.listdir(tmp_path / "run.h5.parts")) == 4
    if merged:
        run.close()
    path = Trajectory.load(tmp_path / "run.h5")
    assert torch.equal(torch.stack([path.theta(i) for i in range(11)]), torch.from_numpy(theta))
    np.testing.assert_array_equal(path.columns(5, 9), theta[:, 5:9])
    assert path.columns(4, 4).shape == (11, 0)
    blocks = list(path.blocks(max_bytes=4 * 11 * 7))
    assert [stop - start for start, stop, _ in blocks] == [7] * (path.p // 7) + [path.p % 7]
    np.testing.assert_array_equal(np.concatenate([block for *_, block in blocks], axis=1), theta)
    assert len(list(path.blocks(max_bytes=1))) == path.p
    for i in (11, -12):
        with pytest.raises(IndexError, match="trajectory of 11"):
            path.theta(i)
    with pytest.raises(ValueError, match="columns need"):
        path.columns(3, path.p + 1)
    run.close()


def test_small_shards_are_written_again_with_what_follows(tmp_path):
    run = Recorder(tmp_path / "run.h5", small_net(), interval=0)
    for n in range(2, 5):
        run.step()
        assert os.listdir(tmp_path / "run.h5.parts") == ["000000000000.h5"]
        assert len(Trajectory.load(tmp_path / "run.h5")) == n
    run.close()


def test_memory_and_open_files_do_not_grow(tmp_path, monkeypatch):
    model = nn.Linear(100, 10)
    monkeypatch.setattr(recorder, "MEMORY_BYTES", 200_000)
    monkeypatch.setattr(recorder, "SHARD_BYTES", 100_000)
    monkeypatch.setattr(shards, "MERGE_BYTES", 200_000)
    run = Recorder(tmp_path / "run.h5", model)
    for _ in range(100):
        run.step()
    n_open = len(os.listdir("/proc/self/fd")) if Path("/proc/self/fd").exists() else 0
    tracemalloc.start()
    for _ in range(3000):  # 15 MB
        run.step(loss=1.0)
        if n_open:
            assert len(os.listdir("/proc/self/fd")) <= n_open
    run.close()
    Trajectory.load(tmp_path / "run.h5").theta(1500)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2_000_000
    assert (tmp_path / "run.h5").stat().st_size > 12_000_000


LOOP = """
import sys, torch
from landscape.recorder import Recorder
torch.set_num_threads(1)
model = torch.nn.Linear(5, 4)
run = Recorder(sys.argv[1], model, interval=0.002)
for step in range(1, int(sys.argv[2]) + 1):
    with torch.no_grad():
        for tensor in model.parameters():
            tensor.fill_(step)
    run.step(loss=step)
    if step == 20:
        print("under way", flush=True)
assert not {"lightning", "pytorch_lightning", "transformers"} & set(sys.modules)
"""


def record_elsewhere(file: Path, n_steps: int) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, "-c", LOOP, str(file), str(n_steps)], stdout=subprocess.PIPE)


def test_a_killed_run_leaves_a_prefix(tmp_path):
    runs = {delay: record_elsewhere(tmp_path / f"{delay}.h5", 10**6) for delay in (0.0, 0.2)}
    for delay, process in runs.items():
        assert process.stdout.readline() == b"under way\n"
        time.sleep(delay)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        file = tmp_path / f"{delay}.h5"
        assert not file.exists()
        path = Trajectory.load(file)
        n = len(path)
        assert n > 1
        assert path.step.tolist() == list(range(n))
        np.testing.assert_array_equal(path.metrics["loss"][1:], np.arange(1, n))
        np.testing.assert_array_equal(path.columns(0, 24)[1:], np.tile(np.arange(1, n)[:, None], 24))


def test_a_program_that_never_closes_and_imports_no_framework(tmp_path):
    process = record_elsewhere(tmp_path / "run.h5", 30)
    process.communicate()
    assert process.returncode == 0
    assert os.listdir(tmp_path) == ["run.h5"]
    assert len(Trajectory.load(tmp_path / "run.h5")) == 31


def test_a_forked_process_does_not_close(tmp_path):
    run = Recorder(tmp_path / "run.h5", small_net())
    run._process = -1  # as seen from a child
    run.close()
    assert not (tmp_path / "run.h5").exists()
    run._process = os.getpid()
    run.close()
    assert (tmp_path / "run.h5").exists()


@pytest.mark.parametrize("closed", [False, True])
@pytest.mark.parametrize("every", [1, 3, 4])
def test_interrupted_and_continued_equals_uninterrupted(tmp_path, many_shards, closed, every):
    model = small_net()
    with Recorder(tmp_path / "whole.h5", model, every=every) as run:
        train(model, range(1, 13), lambda step: run.step(loss=step / 7))

    model, path = small_net(), tmp_path / "parts.h5"
    run = Recorder(path, model, every=every)
    train(model, range(1, 7), lambda step: run.step(loss=step / 7))
    checkpoint = copy.deepcopy(model.state_dict())
    train(model, range(7, 10), lambda step: run.step(loss=step / 7))  # lost: after the checkpoint
    run.close() if closed else abandon(run)

    other = small_net(1)
    other.load_state_dict(checkpoint)
    with Recorder(path, other, every=every, step=6) as run:
        train(other, range(7, 10), lambda step: run.step(loss=step / 7))
        abandon(run)
    checkpoint = copy.deepcopy(other.state_dict())
    run = Recorder(path, other, every=every, step=9)
    train(other, range(10, 13), lambda step: run.step(loss=step / 7))
    run.close()
    assert_equal(Trajectory.load(tmp_path / "whole.h5"), Trajectory.load(path))
    assert sorted(os.listdir(tmp_path)) == ["parts.h5", "whole.h5"]


@pytest.mark.parametrize("merged", [False, True])
def test_going_on_earlier_drops_what_came_later(tmp_path, monkeypatch, merged):
    model, path = small_net(), tmp_path / "run.h5"
    monkeypatch.setattr(recorder, "SHARD_BYTES", 4000)
    monkeypatch.setattr(recorder, "MEMORY_BYTES", 4000)
    run = Recorder(path, model, info={"seed": 1, "note": "old"})
    thetas = train(model, range(1, 11), lambda step: run.step(loss=step, old=1))
    run.flush()
    run.close() if merged else abandon(run)
    change(model, 5)
    Recorder(path, model, step=5, info={"note": "new"}).close()
    assert Trajectory.load(path).step.tolist() == [0, 1, 2, 3, 4, 5]
    with Recorder(path, model, step=4) as run:
        change(model, 100)
        run.step(loss=100)
        assert Trajectory.load(path).step.tolist()[:5] == [0, 1, 2, 3, 4]
    found = Trajectory.load(path)
    assert found.step.tolist() == [0, 1, 2, 3, 4, 5]
    assert found.info == {"seed": 1, "note": "new"}
    assert torch.equal(found.theta(4), thetas[3])
    assert found.theta(5)[0] >= 1000
    np.testing.assert_array_equal(found.metrics["loss"][1:], [1, 2, 3, 4, 100])
    np.testing.assert_array_equal(found.metrics["old"], [np.nan, 1, 1, 1, 1, np.nan])


def test_going_on_before_the_first_row_starts_anew(tmp_path, many_shards):
    model, path = small_net(), tmp_path / "run.h5"
    run = Recorder(path, model, step=10)
    run.step()
    abandon(run)
    Recorder(path, model, step=5).close()
    assert Trajectory.load(path).step.tolist() == [5]


def test_going_on_says_what_is_odd(tmp_path, caplog):
    model, path = small_net(), tmp_path / "run.h5"
    with Recorder(path, model) as run:
        train(model, range(1, 4), lambda step: run.step())
    Recorder(path, model, step=3).close()
    assert not caplog.records
    Recorder(path, small_net(), step=3).close()
    assert "differs from what was recorded at step 3" in caplog.text
    Recorder(path, model, step=8, every=2).close()
    assert "nothing recorded from step 3 to 8" in caplog.text
    assert Trajectory.load(path).step.tolist() == [0, 1, 2, 3, 8]


@pytest.mark.parametrize("merged", [False, True])
def test_a_path_in_use_is_refused(tmp_path, merged):
    run = Recorder(tmp_path / "run.h5", small_net())
    if merged:
        run.close()
    with pytest.raises(
        ValueError, match=r"holds a trajectory already.*step=.*another path or delete it and run\.h5\.parts"
    ):
        Recorder(tmp_path / "run.h5", small_net())
    run.close()
    with write_hdf5(tmp_path / "surface.h5", "surface"):
        pass
    with pytest.raises(ValueError, match="holds a surface, expected a trajectory"):
        Recorder(tmp_path / "surface.h5", small_net())


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(4)), r"'0\.weight' with shape \(4, 3\) is stored, .*\(5, 3\)"),
        (nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)), "6 parameters are stored, the network has 4"),
        (
            nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4, track_running_stats=False), nn.Tanh(), nn.Linear(4, 2)),
            "2 buffers are stored, the network has 0",
        ),
        (small_net().double(), "float32 and float32, the network has float64 and float64"),
    ],
)
def test_another_network_is_refused(tmp_path, other, message):
    Recorder(tmp_path / "run.h5", small_net()).close()
    with pytest.raises(ValueError, match=message):
        Recorder(tmp_path / "run.h5", other, step=1)
    assert len(Trajectory.load(tmp_path / "run.h5")) == 1


@pytest.mark.parametrize(("every", "step"), [(0, 0), (1, -1)])
def test_arguments_out_of_range(tmp_path, every, step):
    with pytest.raises(ValueError, match="must be a whole number"):
        Recorder(tmp_path / "run.h5", small_net(), every=every, step=step)
    with pytest.raises(ValueError, match="must be a whole number"):
        Recorder(tmp_path / "run.h5", small_net(), every=0.5)


class Killed(BaseException):
    pass


@pytest.fixture
def whole(tmp_path):
    """Eight steps without an interruption."""
    with Recorder(tmp_path / "whole.h5", small_net()) as run:
        train(run.model, range(1, 9), lambda step: run.step(loss=step))
    return Trajectory.load(tmp_path / "whole.h5")


@pytest.fixture
def interrupted(tmp_path, many_shards):
    """A merged file whose rows 3 and 4 are stale, and shards of the rows 3 to 6, of which 5 and 6 are not repeated."""
    folder = tmp_path / "interrupted"
    with Recorder(folder / "run.h5", small_net()) as run:
        train(run.model, range(1, 5), lambda step: run.step(loss=step))
    change(run.model, 2)
    run = Recorder(folder / "run.h5", run.model, step=2)
    train(run.model, range(3, 5), lambda step: run.step(loss=step))
    train(run.model, range(105, 107), lambda step: run.step(loss=step))
    abandon(run)
    return folder


@pytest.mark.parametrize(("owner", "name"), [(Path, "unlink"), (os, "replace"), (Path, "rmdir")])
@pytest.mark.parametrize("after", [False, True])
def test_a_kill_at_any_file_operation_loses_no_row(tmp_path, monkeypatch, whole, interrupted, owner, name, after):
    """Going on and merging move and delete files; a run is killed before, or after, each of these operations."""
    operation = getattr(owner, name)
    possible = [(t.columns(0, t.p), t.metrics["loss"]) for t in (whole, Trajectory.load(interrupted / "run.h5"))]
    for n in range(100):
        count = 0

        def stopping(*args, n=n, **kwargs):
            nonlocal count
            count += 1
            if count > n and not after:
                raise Killed
            result = operation(*args, **kwargs)
            if count > n:
                raise Killed
            return result

        path, model = tmp_path / str(n) / "run.h5", small_net()
        shutil.copytree(interrupted, path.parent)
        change(model, 4)
        with monkeypatch.context() as patch, contextlib.suppress(Killed):
            patch.setattr(owner, name, stopping)
            run = None
            run = Recorder(path, model, step=4)  # the shards of rows 5 and 6 are dropped
            train(model, range(5, 9), lambda step, run=run: run.step(loss=step))
            run.close()
        if run:
            abandon(run)
        found = Trajectory.load(path)
        assert len(found) >= 5
        assert found.step.tolist() == list(range(len(found)))
        theta, loss = found.columns(0, found.p), found.metrics["loss"]
        assert any(  # the old run or the new one, but never a mixture
            np.array_equal(theta, t[: len(found)]) and np.array_equal(loss, value[: len(found)], equal_nan=True)
            for t, value in possible
        )
        if count <= n:  # not killed any more
            break
    assert n > 0
    assert len(found) == 9
    assert found.theta(8)[0] < 1000
    assert os.listdir(path.parent) == ["run.h5"]


def test_missing_and_damaged_files(tmp_path, many_shards):
    path = tmp_path / "run.h5"
    with pytest.raises(FileNotFoundError, match=r"no trajectory .*run\.h5"):
        Trajectory.load(path)
    run = Recorder(path, small_net())
    for _ in range(4):
        run.step()
    abandon(run)
    parts = sorted(shard_folder(path).iterdir())
    parts[3].rename(tmp_path / "away")
    with pytest.raises(ValueError, match="rows 3 to 3 are missing"):
        Trajectory.load(path)
    (tmp_path / "away").rename(parts[3])
    parts[2].write_bytes(parts[2].read_bytes()[:100])
    with pytest.raises(ValueError, match=r"000002\.h5 is damaged: its checksum does not fit .* move it away"):
        Trajectory.load(path)
    with pytest.raises(ValueError, match="holds a trajectory-part, expected a trajectory"):
        Trajectory.load(parts[0])


def test_leftovers_of_a_kill_are_cleared_but_not_other_files(tmp_path):
    run = Recorder(tmp_path / "run.h5", small_net())
    (tmp_path / "run.h5.parts" / ".000000000000.h5.1.tmp").touch()
    (tmp_path / "run.h5.parts" / "notes.txt").touch()
    run.close()
    assert os.listdir(tmp_path / "run.h5.parts") == ["notes.txt"]
    assert len(Trajectory.load(tmp_path / "run.h5")) == 1


@pytest.mark.filterwarnings("ignore")  # Lightning's own
@pytest.mark.parametrize("package", ["lightning.pytorch", "pytorch_lightning"])
def test_as_a_lightning_callback(tmp_path, package, monkeypatch):
    lightning = pytest.importorskip(package)
    for other in {"lightning.pytorch", "pytorch_lightning"} - {package}:
        monkeypatch.delitem(sys.modules, other, raising=False)
    thetas, losses = [], []

    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = small_net()

        def training_step(self, batch, index):
            loss = self.net(batch[0]).square().mean()
            losses.append(float(loss.detach()))
            return loss

        def on_train_batch_end(self, outputs, batch, index):
            thetas.append(torch.cat([tensor.detach().flatten() for tensor in self.parameters()]))

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    module = Module()
    run = Recorder(tmp_path / "run.h5", module)
    callback = run.lightning()
    assert isinstance(callback, lightning.Callback)
    trainer = lightning.Trainer(
        max_epochs=2,
        accumulate_grad_batches=2,
        accelerator="cpu",
        default_root_dir=tmp_path,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        callbacks=[callback],
    )
    data = torch.utils.data.TensorDataset(torch.randn(16, 3))
    trainer.fit(module, torch.utils.data.DataLoader(data, batch_size=4))
    path = Trajectory.load(tmp_path / "run.h5")
    assert path.step.tolist() == [0, 1, 2, 3, 4]
    for i in range(1, 5):
        assert torch.equal(path.theta(i), thetas[2 * i - 1])
    np.testing.assert_allclose(path.metrics["loss"][1:], np.reshape(losses, (4, 2)).mean(axis=1), rtol=1e-6)


@pytest.mark.filterwarnings("ignore")  # transformers' own
def test_as_a_hugging_face_callback(tmp_path):
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    thetas = []

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(3, 1)

        def forward(self, x, labels):
            return {"loss": (self.linear(x).squeeze(-1) - labels).square().mean()}

    class Watch(transformers.TrainerCallback):
        def on_step_end(self, args, state, control, model=None, **kwargs):
            thetas.append(torch.cat([tensor.detach().flatten() for tensor in model.parameters()]))

    model = Net()
    trainer = transformers.Trainer(
        model=model,
        args=transformers.TrainingArguments(
            output_dir=str(tmp_path / "out"),
            max_steps=3,
            per_device_train_batch_size=4,
            gradient_accumulation_steps=2,
            report_to=[],
            save_strategy="no",
            use_cpu=True,
            disable_tqdm=True,
        ),
        train_dataset=[{"x": torch.randn(3), "labels": torch.randn(())} for _ in range(16)],
        callbacks=[Recorder(tmp_path / "run.h5", model).hugging_face(), Watch()],
    )
    trainer.train()
    path = Trajectory.load(tmp_path / "run.h5")
    assert path.step.tolist() == [0, 1, 2, 3]
    for i in range(1, 4):
        assert torch.equal(path.theta(i), thetas[i - 1])
    assert not torch.equal(path.theta(1), path.theta(3))


def test_callbacks_name_what_to_install(tmp_path, monkeypatch):
    run = Recorder(tmp_path / "run.h5", small_net())
    for package in ("lightning.pytorch", "pytorch_lightning", "transformers"):
        monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match="pip install lightning"):
        run.lightning()
    with pytest.raises(ImportError, match="pip install transformers accelerate"):
        run.hugging_face()
    run.close()


def test_gathering_equals_recording(tmp_path):
    model = small_net()
    files = [tmp_path / f"epoch_{i}.{suffix}" for i, suffix in enumerate(["safetensors", "pt", "ckpt"])]
    with Recorder(tmp_path / "recorded.h5", model, step=0) as run:
        save(files[0], model)
        change(model, 1)
        run.step()
        torch.save(model.state_dict(), files[1])
        change(model, 2)
        run.step()
        torch.save({"state_dict": {f"net.{k}": v for k, v in model.state_dict().items()}}, files[2])
    gathered = gather(files, tmp_path / "gathered.h5", model=small_net(1))
    assert_equal(gathered, Trajectory.load(tmp_path / "recorded.h5"))
    assert gathered.layout == layout(model)
    assert gathered.info == {"files": [str(file) for file in files]}
    some = gather(files, tmp_path / "some.h5", model=model, select="3.*")
    assert some.layout == layout(model, "3.*")
    assert torch.equal(some.theta(2), gathered.theta(2)[-10:])


def test_gathering_without_a_model(tmp_path):
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.b = nn.Linear(3, 4)
            self.a = nn.Linear(3, 4, bias=False)
            self.a.weight = self.b.weight
            self.register_buffer("counter", torch.tensor(3))

    model, files = Tied(), []
    for step in range(3):
        change(model, step)
        files.append(tmp_path / f"{step}.{'pt' if step == 1 else 'safetensors'}")
        torch.save(model.state_dict(), files[1]) if step == 1 else save(files[step], model)
    path = gather(files, tmp_path / "run.h5")
    assert path.layout == layout(model)
    change(model, 1)
    assert torch.equal(path.theta(1), layout(model).flatten(dict(model.named_parameters())))


def test_gathering_refuses(tmp_path):
    plain, target = nn.Linear(3, 2), tmp_path / "run.h5"
    save(tmp_path / "norm.safetensors", small_net())
    torch.save(plain.state_dict(), tmp_path / "plain.pt")
    torch.save({**plain.state_dict(), "more": torch.ones(1)}, tmp_path / "more.pt")
    torch.save({"weight": plain.weight.detach()}, tmp_path / "less.pt")
    torch.save({"counter": torch.tensor(1)}, tmp_path / "whole.pt")

    def refused(names, message, error=ValueError, **options):
        with pytest.raises(error, match=message):
            gather([tmp_path / name for name in names], target, **options)
        assert not target.exists()

    refused(["norm.safetensors"], "give gather the model")
    refused(["plain.pt", "more.pt"], r"more\.pt: 'more' is not in .*plain\.pt")
    refused(["plain.pt", "less.pt"], r"less\.pt: parameter 'bias' is missing")
    refused(["plain.pt", "none.pt"], r"none\.pt", FileNotFoundError)
    refused(["plain.pt"], r"plain\.pt: the checkpoint does not fit", model=small_net())
    refused(["plain.pt"], "needs a model", select="weight")
    refused(["whole.pt"], "no floating-point tensors")
    refused([], "at least one")
    target.write_text("precious")
    with pytest.raises(ValueError, match="exists already"):
        gather([tmp_path / "plain.pt"], target)
    assert target.read_text() == "precious"
    abandon(Recorder(tmp_path / "half.h5", plain))
    with pytest.raises(ValueError, match="exists already"):
        gather([tmp_path / "plain.pt"], tmp_path / "half.h5")


def test_the_model_is_only_read(tmp_path):
    model = small_net()
    before, mode = copy.deepcopy(model.state_dict()), model.training
    state = torch.random.get_rng_state()
    with Recorder(tmp_path / "run.h5", model) as run:
        run.step(loss=0.0)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert all(tensor.requires_grad and tensor.grad is None for tensor in model.parameters())
    assert model.training == mode
    assert torch.equal(state, torch.random.get_rng_state())
    assert logging.getLogger("landscape").handlers == []
