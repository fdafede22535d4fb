"""Write one tiny stored sample of every kind of file: `python tests/files/make_samples.py tests/files/v2`.

Run it once when `storage.FORMAT_VERSION` goes up, with the last code of the old format; what it wrote stays for good.
"""

import signal
import sys
from contextlib import nullcontext, suppress
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from landscape import checkpoint, training
from landscape.barriers import Barriers
from landscape.recorder import Recorder
from landscape.rows import RowsWriter
from landscape.shards import shard_folder
from landscape.study import StudyWriter
from landscape.surface import ProjectedTrajectory, Surface, SurfaceStore, empty_surface

QUESTION = {"origin": "a", "data": "b"}
SETTINGS = {name: {"optimizer": name, "epochs evaluated": [0, 1, 2]} for name in ("adam", "gd")}


def surface() -> Surface:
    """Values that grow with the index, on a grid that is not square."""
    plane = empty_surface({"x": np.linspace(-1, 1, 4), "y": np.linspace(0, 3, 3)}, ["loss", "accuracy"])
    plane.values["loss"][:] = np.arange(12.0).reshape(4, 3)
    plane.values["accuracy"][:] = 0.25
    plane.done[:] = True
    plane.origin, plane.directions = np.arange(5.0), np.arange(10.0).reshape(2, 5)
    plane.provenance = {"plan": {"name": "reference"}, "text": "<µ>"}
    plane.trajectories["run"] = ProjectedTrajectory(
        np.arange(3), np.arange(6.0).reshape(3, 2), *(np.arange(3.0) + i for i in range(3))
    )
    return plane


def network() -> nn.Module:
    """Parameters that are no random numbers."""
    net = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1))
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(torch.linspace(-1, 1, parameter.numel()).reshape(parameter.shape))
    return net


def data() -> tuple[torch.Tensor, torch.Tensor]:
    """Eight samples of a regression."""
    inputs = torch.linspace(-1, 1, 16).reshape(8, 2)
    return inputs, inputs.prod(dim=1, keepdim=True)


def record(path: Path, n_steps: int) -> Recorder:
    """Record steps that multiply the parameters by 1 + 1/step, in float32, one shard each."""
    net = network()
    recorder = Recorder(path, net, info={"seed": 3}, interval=0)
    for step in range(1, n_steps + 1):
        with torch.no_grad():
            for parameter in net.parameters():
                parameter.mul_(1 + 1 / step)
        recorder.step(loss=1 / step)
        recorder.flush()
    return recorder


def study_rows(setting: int) -> dict[str, np.ndarray]:
    """Two runs of a setting."""
    n = np.arange(2.0) + 2 * setting
    return {
        **{"setting": np.full(2, setting), "seed": np.arange(2), "steps": np.full(2, 4)},
        **{"diverged": np.array([False, True]), "gradient_norm": n, "travelled": 2 * n},
        **{"curve/loss": np.outer(n, [3, 2, 1]), "theta": np.outer(n, np.arange(5.0)), "buffers": np.zeros((2, 0))},
    }


def minima_rows() -> dict[str, np.ndarray]:
    """Four critical points, three of them minima."""
    names = ("gradient_norm", "smallest", "largest", "tol", "trace", "metric/loss")
    return {
        **{"run": np.arange(4), "setting": np.arange(4) // 2, "seed": np.arange(4) % 2, "n_flat": np.zeros(4, int)},
        "kind": np.array(["minimum", "saddle", "flat minimum", "minimum"], dtype=object),
        **{"loss": np.array([1.0, 0.5, 2.0, 1.1]), **{name: np.arange(4.0) for name in names}},
        **{"theta": np.outer(np.arange(4.0), np.ones(5)), "buffers": np.zeros((4, 0))},
    }


def main(out: Path) -> None:
    """Write all samples."""
    surface().save(out / "surface.h5")
    half = surface()
    half.done[2:] = False
    empty = surface()
    empty.done[:] = False
    store = SurfaceStore(empty, QUESTION, out / "unfinished.h5", interval=1e9)
    store.surface.values, store.surface.done = half.values, half.done
    store.save_progress()

    record(out / "trajectory.h5", 3).close()
    recorder = record(out / "recording.h5", 3)
    recorder.close = recorder._finish = lambda *_, **__: None  # as a kill would leave it
    assert shard_folder(out / "recording.h5").is_dir()

    writer = StudyWriter(out / "growing.h5", SETTINGS, {"settings": {"penalty": 0.0}}, {"model": "a"})
    writer.add(study_rows(0), 0)
    writer.finish()
    writer = StudyWriter(out / "growing.h5", SETTINGS, {"settings": {"penalty": 0.0}}, {"model": "a"})
    writer.add(study_rows(1), 0)

    found = {"labels": [0, -1, 1, 0], "relation": "the same", "tolerance": 0.01, "notes": [], "heights": [1e-4, 0.3]}
    minima = RowsWriter(
        out / "minima.h5", "minima", {"settings": list(SETTINGS), "provenance": {}, "identification": found}
    )
    minima.add(minima_rows(), 0)
    minima.finish()

    t = np.linspace(0, 1, 3)
    profiles = np.arange(12.0).reshape(2, 2, 3)
    Barriers(t, profiles, np.array([[0.0, 2.0], [2.0, 0.0]]), True).save(out / "barriers.h5")
    checkpoint.save(out / "checkpoint.safetensors", network(), name="mlp", arguments={"widths": [3]}, info={"seed": 3})

    interrupted = training.interrupt_between_steps  # stop after the fourth of six steps, as Ctrl-C would
    steps = training.Session.advance

    def stop(self: training.Session, *arguments: object) -> float:
        loss = steps(self, *arguments)
        if self.step == 4:
            raised.append(signal.SIGINT)
        return loss

    raised: list[int] = []
    training.Session.advance = stop
    training.interrupt_between_steps = lambda: nullcontext(raised)
    with suppress(KeyboardInterrupt):
        train(out / "run")
    training.Session.advance, training.interrupt_between_steps = steps, interrupted


def train(folder: Path | None) -> training.Run:
    """Train for six steps; the same call goes on with a stored run."""
    return training.train(
        *(network(), data()),
        loss=F.mse_loss,
        optimizer="adam",
        learning_rate=0.1,
        batch_size=4,
        epochs=3,
        folder=folder,
        progress=False,
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
