"""Run a restart study: many seeds, several optimizers and settings, trained as batches and streamed to one file."""

import hashlib
import json
import logging
import os
import platform
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from numbers import Integral
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

import landscape
from landscape import optimizers
from landscape.arguments import LARGEST_SEED, expect, file_path, json_text, real_number, whole_number
from landscape.data import collect
from landscape.ensemble import Ensemble, train_many
from landscape.losses import Metric
from landscape.objective import Objective
from landscape.parameters import layout
from landscape.rows import parts_folder
from landscape.shards import Header
from landscape.study import Study, StudyWriter
from landscape.training import EVALUATION_CHUNK
from landscape.workers import Workers, open_workers

log = logging.getLogger(__name__)

BATCH = 100  # runs that are trained together
_KEYS = ("optimizer", "learning_rate", "options", "batch_size", "epochs", "schedule", "batch_order", "evaluate_every")


def run_restarts(
    build: Callable[[int], nn.Module],
    data: Any,
    path: str | os.PathLike,
    *,
    settings: Mapping[str, Mapping[str, Any]] | Sequence[str] = ("adam",),
    seeds: int | Sequence[int] = 100,
    test: Any = None,
    loss: Metric | None = None,
    metrics: Mapping[str, Metric] | None = None,
    penalty: float = 0.0,
    workers: int | str | Sequence[str] | Workers = 1,
    batch: int = BATCH,
    info: Mapping[str, Any] | None = None,
    interval: float = 5.0,
    progress: bool = True,
) -> Study:
    """Train a network from many seeds with each of several settings, and keep all ends in one file.

    A path that holds a part of the same study is continued; more seeds or settings extend it.

    Args:
        build: From a seed to a network, see `train_many`.
        data: Training data, see `train`.
        path: HDF5 file, see `landscape.study`.
        settings: Arguments of `train_many` by a name for each group of runs: `optimizer`, `learning_rate`, `options`,
            `batch_size`, `epochs`, `schedule`, `batch_order`, `evaluate_every`. Or just names of optimizers.
        seeds: How many, from 0 on, or the seeds themselves; the same for all settings, so that runs can be paired.
        test: Further data, evaluated with the training data.
        loss: What is minimized. Default: cross-entropy for class indices.
        metrics: Further values. Default: the accuracy, for class indices.
        penalty: Weight penalty; `penalty/2 ||theta||^2` is added to what is minimized, as weight decay of an optimizer
            that knows it; not to the loss in the curves.
        workers: Processes or devices that share the runs, see `evaluate`.
        batch: Runs that are trained together.
        info: How network and data are made again (JSON-able), kept in the provenance.
        interval: Seconds between two writes of the state of a batch in training, from which it goes on after a kill.
        progress: Show a progress bar.

    Returns:
        The study, whose networks stay on the disk.

    Raises:
        ValueError: Settings are not valid, or the file holds another study.
        BlockingIOError: Another process is writing the file.

    Example:
        >>> study = run_restarts(  # doctest: +SKIP
        ...     lambda seed: build("mlp", seed=seed, input_shape=[1, 8, 8], classes=10), load("digits"), "study.h5",
        ...     settings={"adam": {}, "gd": {"optimizer": "gd", "learning_rate": 0.1}}, seeds=500,
        ... )
    """
    batch = whole_number("batch", batch, 1)
    penalty = real_number("penalty", penalty, 0)
    if not callable(build):
        raise TypeError(f"build must be a function from a seed to a network, got {type(build).__name__}")
    if info is not None:
        expect("info", info, Mapping, "how network and data are made again, by name")
        json_text("info", dict(info))
    path = file_path(path)
    described = {name: _describe(name, given, penalty) for name, given in _by_name(settings).items()}
    if not described:
        raise ValueError("settings name no runs: give at least one optimizer")
    given: Any = range(int(seeds)) if isinstance(seeds, Integral) else seeds
    expect("seeds", given, (Sequence, np.ndarray), "how many, or the seeds themselves")
    wanted = [whole_number("a seed", seed, 0, LARGEST_SEED) for seed in given]
    if len(set(wanted)) < len(wanted) or not wanted:
        raise ValueError(f"expected different seeds, at least one, got {wanted}")
    # collected once: an iterator has only one pass
    data, test = collect(data), None if test is None else collect(test)
    job = _Job(build, data, test, loss, metrics, penalty)
    objective = job.objective(build(wanted[0]))
    writer = StudyWriter(path, described, {**_provenance(objective), "info": dict(info or {})}, _fingerprint(objective))
    tasks = []
    for name, entry in described.items():
        missing = [seed for seed in wanted if (name, seed) not in writer.done]
        for first in range(0, len(missing), batch):
            chosen = missing[first : first + batch]
            tasks.append((writer.number[name], entry, chosen, _state_file(writer.path, name, entry, chosen)))
    n_all = len(wanted) * len(described)
    n_missing = sum(len(task[2]) for task in tasks)
    with (
        writer,
        ExitStack() as stack,
        tqdm(total=n_all, initial=n_all - n_missing, desc="restarts", unit="run", disable=not progress) as bar,
    ):
        team = open_workers(workers, stack)
        for i, result in team.run(partial(_trainer, job, interval), tasks):
            writer.add(result, i)
            tasks[i][3].unlink(missing_ok=True)
            bar.update(len(tasks[i][2]))
        writer.finish()
    return Study.load(path)


@dataclass(frozen=True)
class _Job:
    build: Callable[[int], nn.Module]
    data: Any
    test: Any
    loss: Metric | None
    metrics: Mapping[str, Metric] | None
    penalty: float

    def start(self, seed: int) -> Tensor:
        """Return the parameters before training, `[p]`, as `train_many` makes them."""
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            network = self.build(seed)
        return layout(network).flatten(dict(network.named_parameters())).cpu()

    def objective(self, network: nn.Module) -> Objective:
        """Return the objective of one network, whose buffers it takes."""
        return Objective(
            network,
            self.data,
            test=self.test,
            loss=self.loss,
            metrics=self.metrics,
            penalty=self.penalty,
            chunk_size=EVALUATION_CHUNK,
        )


def _state_file(path: Path, *task: Any) -> Path:
    """Return where a batch in training keeps its state."""
    digest = hashlib.sha256(json.dumps(task, sort_keys=True, default=repr).encode())
    return parts_folder(path).absolute() / f"training-{digest.hexdigest()[:16]}.pt"


def _trainer(job: _Job, interval: float, device: str | None) -> Callable[[Any], dict[str, np.ndarray]]:
    """Return, on a worker, the function that trains a batch of runs."""

    def train(task: tuple[int, dict, list[int], Path]) -> dict[str, np.ndarray]:
        number, entry, seeds, state = task
        arguments = {key: entry[key] for key in _KEYS}
        ensemble = train_many(
            (lambda seed: job.build(seed).to(device)) if device else job.build,
            job.data,
            seeds=seeds,
            test=job.test,
            loss=job.loss,
            metrics=job.metrics,
            weight_decay=job.penalty,
            state=state if state.parent.parent.is_dir() else None,  # a machine of a cluster may not see the folder
            interval=interval,
            progress=False,
            **arguments,
        )
        return _columns(job, ensemble, number, seeds)

    return train


def _columns(job: _Job, ensemble: Ensemble, number: int, seeds: list[int]) -> dict[str, np.ndarray]:
    header = Header.of(ensemble.template, "all", {})
    rows = [header.flatten(dict(ensemble.network(i).state_dict(keep_vars=True))) for i in range(len(ensemble))]
    return {
        "setting": np.full(len(seeds), number),
        "seed": np.array(seeds),
        "steps": ensemble.steps,
        "diverged": ensemble.diverged,
        "gradient_norm": _gradient_norms(job, ensemble),
        "travelled": np.array(
            [float((ensemble.thetas[i].cpu() - job.start(seed)).norm()) for i, seed in enumerate(seeds)]
        ),
        **{f"curve/{name}": curve for name, curve in ensemble.history.items()},
        "theta": np.stack([theta for theta, _ in rows]),
        "buffers": np.stack([buffers for _, buffers in rows]),
    }


def _gradient_norms(job: _Job, ensemble: Ensemble) -> np.ndarray:
    norms = np.full(len(ensemble), np.nan)
    objective = job.objective(ensemble.network(0))
    for i, theta in enumerate(ensemble.thetas):
        if not ensemble.diverged[i]:
            own = job.objective(ensemble.network(i)) if ensemble.buffers else objective
            norms[i] = float(own.gradient(theta).norm())
    return norms


def _by_name(settings: Mapping[str, Mapping[str, Any]] | Sequence[str]) -> dict[str, Mapping[str, Any]]:
    expect("settings", settings, (Mapping, Sequence), "settings by name, or names of optimizers")
    if isinstance(settings, Mapping):
        for name, given in settings.items():
            expect("a name of settings", name, str, "a text")
            expect(f"settings {name!r}", given, Mapping, "arguments by name, such as {'learning_rate': 0.1}")
        return {name: {"optimizer": name, **given} for name, given in settings.items()}
    names = [settings] if isinstance(settings, str) else list(settings)
    return {name: {"optimizer": name} for name in names}


def _describe(name: str, given: Mapping[str, Any], penalty: float) -> dict[str, Any]:
    """Return the settings in full, as they are stored."""
    if unknown := sorted(given.keys() - set(_KEYS)):
        raise ValueError(f"settings {name!r} have {', '.join(unknown)}; known are {', '.join(_KEYS)}")
    entry: dict[str, Any] = {
        "optimizer": "adam",
        "learning_rate": None,
        "options": {},
        "batch_size": None,
        "epochs": 10,
        "schedule": "constant",
        "batch_order": "own",
        "evaluate_every": 1,
        **given,
    }
    _, arguments = optimizers.choose(
        entry["optimizer"], learning_rate=entry["learning_rate"], weight_decay=penalty, options=entry["options"]
    )
    entry["learning_rate"] = arguments.get("lr")
    if penalty and entry["optimizer"].lower() == "adamw":
        raise ValueError("adamw decays the weights apart from the loss, which is no penalty: use adam")
    entry["epochs"] = epochs = whole_number("epochs", entry["epochs"], 1)
    entry["evaluate_every"] = every = whole_number("evaluate_every", entry["evaluate_every"], 1)
    optimizers.schedule_function(entry["schedule"])
    json_text(f"settings {name!r}", entry)
    entry["epochs evaluated"] = sorted({*range(0, epochs + 1, every), epochs})
    return {**entry, "penalty": penalty}


def _fingerprint(objective: Objective) -> dict[str, str]:
    whole = objective.fingerprint()
    del whole["fixed parameters and buffers"]  # of the first seed
    for key in ("penalty", "test_data"):
        whole.setdefault(key, "none")  # named, so that to leave them out later is a difference
    return whole


def _provenance(objective: Objective) -> dict[str, Any]:
    names, shapes = objective.layout.names, objective.layout.shapes
    return {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": {
            "landscape": landscape.__version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "numpy": np.__version__,
        },
        "settings": objective.settings(),
        "parameters": [[name, list(shape)] for name, shape in zip(names, shapes, strict=True)],
    }
