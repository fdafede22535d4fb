"""From the runs of a study to the distinct minima: polish, certify, identify, keep."""

import copy
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from landscape.arguments import expect, file_path, whole_number
from landscape.catalog import KEYS, KIND, MINIMA, Catalog
from landscape.curvature import trace
from landscape.data import collect, split_batch
from landscape.losses import Metric, is_cross_entropy
from landscape.minima.certify import Found, find_minima
from landscape.minima.identify import identify, network_outputs
from landscape.minima.polish import GTOL, NEWTON_BELOW
from landscape.objective import Objective
from landscape.parameters import Layout
from landscape.rows import RowsWriter, find_files, parts_folder, read_column, read_rows
from landscape.storage import without_known_code
from landscape.study import Study
from landscape.symmetry import symmetries
from landscape.training import EVALUATION_CHUNK
from landscape.workers import Workers, open_workers

BATCH = 20  # runs that are polished, and lost by a kill, together, where that is faster than one after another
SAMPLES = 512  # on which the outputs of two networks are compared
_Columns = dict[str, np.ndarray]


def survey_minima(
    study: Study,
    network: nn.Module,
    data: Any,
    path: str | os.PathLike,
    *,
    test: Any = None,
    loss: Metric | None = None,
    metrics: Mapping[str, Metric] | None = None,
    runs: Sequence[int] | None = None,
    relation: str = "symmetry",
    tolerance: float = 1e-3,
    atol_loss: float = 1e-6,
    gtol: float = GTOL,
    max_steps: int = 5000,
    max_escapes: int = 10,
    workers: int | str | Sequence[str] | Workers = 1,
    batch: int | None = None,
    progress: bool = True,
) -> Catalog:
    """Descend from the ends of all runs to certified critical points, and find the distinct minima among them.

    The objective is that of the study, penalty included, in float64 on the same data. Batch norm uses the statistics
    that each run ended with, so that runs of such a network descend on objectives of their own. Runs that diverged are
    left out. A path that holds a part of the same survey is continued.

    Args:
        study: The runs.
        network: One of the study's architecture; its values do not matter.
        data: The training data of the study.
        path: HDF5 file, see `landscape.catalog`.
        test: Further data, evaluated at the critical points.
        loss: The study's loss.
        metrics: Further values.
        runs: Which runs. Default: all.
        relation: What makes two minima the same, see `identify`: `"symmetry"` or `"function"`, the latter compared on
            512 samples.
        tolerance: Largest relative distance of two that are the same.
        atol_loss: Largest difference of their losses.
        gtol: Relative gradient norm to reach, see `polish`.
        max_steps: Steps of a descent at most.
        max_escapes: Saddles that a descent leaves at most.
        workers: Processes or devices that share the work, see `evaluate`.
        batch: Runs that are polished together, and that a kill loses. Default: 20 where they are differentiated
            together, below 150 parameters and without buffers of their own, else 1.
        progress: Show a progress bar.

    Raises:
        ValueError: Network or data are not those of the study, there is no such run or none that did not diverge, or
            the file holds another survey.
    """
    expect("study", study, Study, "a Study (Study.load reads its file)")
    path = file_path(path)
    if batch is not None:
        batch = whole_number("batch", batch, 1)
    # collected once: an iterator has only one pass
    data, test = collect(data), None if test is None else collect(test)
    job = _Job(
        *(network, data, test, loss, metrics, float(study.provenance["settings"]["penalty"])),
        *(gtol, max_steps, max_escapes, replace(study, curves={})),
    )
    objective = job.objective(network)
    _check_same(study, objective)
    if batch is None:
        together = objective.layout.p < NEWTON_BELOW and not study.buffers(np.array([0])).shape[1]
        batch = BATCH if together else 1
    question = {
        **{"gtol": gtol, "max steps": max_steps, "max escapes": max_escapes, "study": study.fingerprint},
        "test data": objective.fingerprint().get("test_data"),
    }
    record = {
        "settings": list(study.settings),
        "provenance": {
            **study.provenance,
            **{"study": str(study.path), "question": question, "study settings": study.settings},
        },
        "identification": None,
    }
    wanted = _wanted(study, runs)
    with RowsWriter(path, KIND, record) as writer:
        done = _done(Path(path), question, study)
        missing = [int(i) for i in wanted if int(i) not in done]
        tasks = [missing[first : first + batch] for first in range(0, len(missing), batch)]
        with (
            ExitStack() as stack,
            tqdm(total=len(wanted), initial=len(wanted) - len(missing), desc="minima", disable=not progress) as bar,
        ):
            team = open_workers(workers, stack)
            for i, columns in team.run(partial(_polisher, job), tasks):
                rows = np.array(tasks[i])
                own = {"run": rows, "setting": study.setting[rows], "seed": study.seed[rows]}
                writer.add({**own, **columns}, i)
                bar.update(len(rows))
        writer.finish()
        found = _identify(Path(path), job, objective, relation, tolerance, atol_loss)
        writer.finish({**record, "identification": found})
    return Catalog.load(path)


@dataclass(frozen=True)
class _Job:
    network: nn.Module
    data: Any
    test: Any
    loss: Metric | None
    metrics: Mapping[str, Metric] | None
    penalty: float
    gtol: float
    max_steps: int
    max_escapes: int
    study: Study  # as it was when its runs were chosen: it may grow meanwhile

    def objective(self, network: nn.Module) -> Objective:
        return Objective(
            network,
            self.data,
            test=self.test,
            loss=self.loss,
            metrics=self.metrics,
            penalty=self.penalty,
            chunk_size=EVALUATION_CHUNK,
        )


def _polisher(job: _Job, device: str | None) -> Callable[[list[int]], _Columns]:
    """Return, on a worker, the function that descends from some runs of the study."""
    shared = job.objective(job.network).to(device, torch.float64)

    def work(runs: list[int]) -> _Columns:
        thetas = torch.as_tensor(job.study.thetas(np.array(runs)), dtype=torch.float64, device=shared.device)
        buffers = job.study.buffers(np.array(runs))
        if not buffers.shape[1]:
            return _columns(shared, thetas, _descend(job, shared, thetas), buffers)
        parts = []  # each network has statistics of its own
        for theta, row in zip(thetas[:, None], buffers[:, None], strict=True):
            own = job.objective(_with_buffers(job.network, row[0])).to(device, torch.float64)
            parts.append(_columns(own, theta, _descend(job, own, theta), row))
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    return work


def _descend(job: _Job, objective: Objective, thetas: Tensor) -> list[Found]:
    return find_minima(
        *(objective, thetas),
        gtol=job.gtol,
        max_steps=job.max_steps,
        max_escapes=job.max_escapes,
        progress=False,
    )


def _columns(objective: Objective, starts: Tensor, found: list[Found], buffers: np.ndarray) -> _Columns:
    thetas = torch.stack([one.polished.theta for one in found])
    columns: dict[str, list] = {name: [] for name in ("n_negative", "n_flat", "smallest", "largest", "tol", "trace")}
    metrics: dict[str, list[float]] = {}
    for one, theta in zip(found, thetas, strict=True):
        for name, value in _curvature(objective, one, theta).items():
            columns[name].append(value)
        for name, value in objective.evaluate(theta).items():
            metrics.setdefault(name, []).append(value)
        metrics["loss"][-1] -= objective.penalty_at(theta)
    return {
        "kind": np.array([one.certificate.kind for one in found], dtype=object),
        "loss": np.array([one.certificate.loss for one in found]),
        "gradient_norm": np.array([one.certificate.gradient_norm for one in found]),
        "n_steps": np.array([one.polished.n_steps for one in found]),
        "n_escapes": np.array([len(one.saddles) for one in found]),
        "moved": (thetas - starts).norm(dim=1).cpu().numpy(),
        **{name: np.array(values) for name, values in columns.items()},
        **{f"metric/{name}": np.array(values) for name, values in metrics.items()},
        "theta": thetas.cpu().numpy(),
        "buffers": buffers,
    }


def _curvature(objective: Objective, found: Found, theta: Tensor) -> dict[str, float]:
    index = found.certificate.index
    if index is None:
        return {"n_negative": -1, "n_flat": -1, "smallest": np.nan, "largest": np.nan, "tol": np.nan, "trace": np.nan}
    all_known = len(index.values) == objective.layout.p
    return {
        "n_negative": index.n_negative,
        "n_flat": index.n_flat,
        "smallest": float(index.values[0]),
        "largest": index.largest,
        "tol": index.tol,
        "trace": float(index.values.sum()) if all_known else trace(objective, theta).value,
    }


def _identify(
    path: Path, job: _Job, objective: Objective, relation: str, tolerance: float, atol_loss: float
) -> dict[str, Any]:
    """Identify the certified minima among the rows of a file; what is no minimum has label -1."""
    columns, _ = read_rows(path, KIND, but=("theta", "buffers"))
    keys = {name: columns[name] for name in KEYS}
    thetas = torch.as_tensor(read_column(path, KIND, "theta", keys))
    losses = np.where(np.isin(columns["kind"], MINIMA), columns["loss"], np.nan)
    sample = split_batch(next(objective.splits[""].chunks(SAMPLES if objective.splits[""].stackable else None)))[0]
    outputs = of_network = None
    if relation == "function":
        outputs = _outputs(job, objective, thetas, read_column(path, KIND, "buffers", keys))
    else:
        of_network = symmetries(job.network, sample)
    softmax = objective.is_classification and is_cross_entropy(objective.loss)
    found = identify(
        thetas,
        losses,
        symmetries=of_network,
        outputs=outputs,
        relation=relation,
        atol_loss=atol_loss,
        tolerance=tolerance,
        softmax=softmax and relation == "function",
    )
    return {
        "labels": found.labels.tolist(),
        "relation": found.relation,
        "tolerance": tolerance,
        "heights": [float(height) for height in found.heights if np.isfinite(height)],
        "notes": [] if of_network is None else list(of_network.notes),
    }


def _outputs(job: _Job, objective: Objective, thetas: Tensor, buffers: np.ndarray) -> Tensor:
    """Return what the networks compute on the first samples, each with its own buffers, `[n, m, ...]`."""
    if not buffers.shape[1]:
        return network_outputs(objective.to(dtype=torch.float64), thetas, SAMPLES)
    own = (job.objective(_with_buffers(job.network, row)).to(dtype=torch.float64) for row in buffers)
    return torch.cat([network_outputs(one, theta, SAMPLES) for one, theta in zip(own, thetas[:, None], strict=True)])


def _wanted(study: Study, runs: Sequence[int] | None) -> np.ndarray:
    """Return the runs to descend from, in increasing order."""
    if runs is not None:
        expect("runs", runs, (Sequence, np.ndarray), "the numbers of runs")
        runs = [whole_number("a run", run, -len(study)) for run in runs]
    chosen = np.arange(len(study)) if runs is None else np.unique(np.asarray(runs, dtype=int))
    if outside := [int(i) for i in chosen if not 0 <= i < len(study)]:
        raise ValueError(f"the study {study.path} has runs 0 to {len(study) - 1}; there is no run {outside[0]}")
    wanted = chosen[~study.diverged[chosen]]
    if not len(wanted):
        raise ValueError(f"nothing to descend from: {len(chosen)} runs chosen, all of them diverged")
    return wanted


def _check_same(study: Study, objective: Objective) -> None:
    fresh = objective.fingerprint()
    differing = [
        key
        for key in ("training_data", "model", "parameters", "loss and metrics")
        if study.fingerprint[key] != fresh[key]
    ]
    if differing:
        raise ValueError(
            f"network, data or loss are not those of the study {study.path}; what differs: {', '.join(differing)}"
        )


def _done(path: Path, question: dict, study: Study) -> set[int]:
    """Return the runs that are in the file already."""
    if not find_files(path, KIND):
        return set()
    columns, record = read_rows(path, KIND, but=("theta", "buffers"))
    before = without_known_code(record["provenance"]["question"])
    differing = [key for key in question if before.get(key) != question[key]]
    settings = record["provenance"]["study settings"]
    if any(study.settings.get(name) != settings[name] for name in settings):
        differing.append("settings of the runs")
    number = {key: i for i, key in enumerate(zip(*(getattr(study, name).tolist() for name in KEYS), strict=True))}
    runs = {number.get(key) for key in zip(*(columns[name].tolist() for name in KEYS), strict=True)}
    if None in runs:
        differing.append("seeds of the runs")
    if differing:
        raise ValueError(
            f"{path} holds another survey; what differs: {', '.join(differing)}. Choose another file name, or delete "
            f"it and {parts_folder(path).name}"
        )
    return {run for run in runs if run is not None}


def _with_buffers(network: nn.Module, row: np.ndarray) -> nn.Module:
    """Return a copy of a network with the floating-point buffers `[q]` of a run."""
    own = copy.deepcopy(network)
    persistent = own.state_dict().keys()
    tensors = {n: b for n, b in own.named_buffers() if n in persistent and b.is_floating_point()}
    parts = Layout(tuple(tensors), tuple(tuple(b.shape) for b in tensors.values())).unflatten(torch.as_tensor(row))
    with torch.no_grad():
        for name, part in parts.items():
            tensors[name].copy_(part)
    return own
