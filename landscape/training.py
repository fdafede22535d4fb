"""Train one network, reproducibly: stopped at any moment and started again, it ends as if never stopped."""

import copy
import hashlib
import json
import logging
import os
import shutil
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from tqdm.auto import tqdm

from landscape import __version__, checkpoint, optimizers
from landscape.arguments import expect, folder_path, json_text, real_number, whole_number
from landscape.contents import Number, check_value
from landscape.interruption import Stopped, interrupt_between_steps
from landscape.lock import Lock
from landscape.losses import Metric, describe_callable
from landscape.objective import Objective
from landscape.recorder import Recorder
from landscape.session import Order, Session, read_state
from landscape.shards import shard_folder
from landscape.storage import read_steadily, without_known_code

log = logging.getLogger(__name__)

_CHECKPOINT, _STATE, _TRAJECTORY = "checkpoint.safetensors", "state.pt", "trajectory.h5"
EVALUATION_CHUNK = 256  # fixed: one tuned by timing would change the last digits of the history from run to run
_SHARE_OF_SAVING = 0.1  # of the time, at most, where a state takes long to write


@dataclass(frozen=True, eq=False)
class Run:
    """A finished training run.

    Attributes:
        model: The trained copy, in evaluation mode.
        history: `[e]` arrays: `epoch` and `step` (int64), then `loss` and the other values (float64) of the whole data
            in evaluation mode, before training (epoch 0) and after each epoch.
        folder: Where the run is stored, in `checkpoint.safetensors` and `trajectory.h5`; None if it is not.
        seconds: Time spent, that of interrupted sessions included.
    """

    model: nn.Module
    history: dict[str, np.ndarray]
    folder: Path | None
    seconds: float


def train(
    model: nn.Module,
    data: Any,
    *,
    test: Any = None,
    loss: Metric | None = None,
    metrics: Mapping[str, Metric] | None = None,
    forward: Callable[[nn.Module, Any], Any] | None = None,
    reduction: str = "mean",
    optimizer: str = "adam",
    learning_rate: float | None = None,
    options: Mapping[str, Any] | None = None,
    weight_decay: float = 0.0,
    batch_size: int | None = None,
    epochs: int = 10,
    schedule: optimizers.Schedule = "constant",
    seed: int = 0,
    folder: str | os.PathLike | None = None,
    record_every: int = 1,
    record_unit: str = "epoch",
    name: str | None = None,
    arguments: Mapping[str, Any] | None = None,
    interval: float = 5.0,
    progress: bool = True,
) -> Run:
    """Train a copy of a network.

    With a folder, the trajectory of the parameters is recorded and the state is saved every few seconds. The same call
    with the same folder continues an interrupted run, on the CPU bit for bit as if it had not been interrupted, and
    returns a finished one at once.

    The whole data are evaluated after each epoch, and after a step whose batch had no finite loss. When their loss is
    not finite, training stops with a warning; the last entry of the history shows it.

    Args:
        model: The network; it is trained where it is (device) and as it is (precision). A parameter that requires no
            gradient keeps its values. All modules are put in training mode.
        data: Training data, see `Objective`.
        test: Further data to evaluate, see `Objective`.
        loss: What is minimized, `loss(output, target)`; default as in `Objective`.
        metrics: Further values to follow, see `Objective`.
        forward: `forward(model, batch) -> output`, see `Objective`.
        reduction: `"mean"`, or `"sum"` for a loss that grows with the batch.
        optimizer: `gd`, `normalized` (`w_j <- w_j - lr * sign(g_j)`), `momentum`, `rmsprop`, `adam`, `adamw`, `lbfgs`
            (best with the full batch), or the name of a class of `torch.optim`.
        learning_rate: Default: that of the optimizer, see `optimizers.choose`.
        options: Further arguments of the optimizer's class, such as `{"betas": (0.9, 0.99)}`.
        weight_decay: As the optimizer defines it. It is 0 unless given, for `adamw` too.
        batch_size: Samples per step, drawn without replacement in each epoch. The last step of an epoch may have fewer;
            a single sample left over, which batch norm could not take, joins the step before. Default: all samples,
            one step per epoch. For data whose samples differ in shape leave it out: the batches given are used.
        epochs: Passes through the data.
        schedule: `constant`, `linear`, `cosine`, `step`, or a function from the fraction of training done, in [0, 1),
            to a factor of the learning rate, see `optimizers.schedule_function`.
        seed: Of the order of the samples and of random numbers in the network; the initial parameters are the model's.
        folder: Where to store the run. Default: nowhere.
        record_every: Record the parameters every so many epochs or steps, besides those at the start and at the end.
        record_unit: `"epoch"` or `"step"`.
        name: Name for `landscape.models.build`, stored in the checkpoint so that the network can be rebuilt from it.
        arguments: Arguments for `landscape.models.build`.
        interval: Seconds between two saved states; more where saving would take over a tenth of the time.
        progress: Show a progress bar.

    Returns:
        The trained network, its history and its folder. The stored trajectory counts training steps; at the ends of
        epochs it has the values of the history, and at every step `batch_loss`, the loss of the batch in training mode
        just before that step.

    Raises:
        ValueError: An argument is not valid, or the folder holds a run with other data, parameters or settings; the
            message names the difference.
        BlockingIOError: Another process trains in the folder.

    Example:
        >>> run = train(model, (x, y), optimizer="adam", batch_size=32, folder="runs/a")  # doctest: +SKIP
        >>> run.history["loss"][-1]  # doctest: +SKIP
        0.031
    """
    epochs = whole_number("epochs", epochs, 1)
    record_every = whole_number("record_every", record_every, 1)
    seed = whole_number("seed", seed, 0)
    if batch_size is not None:
        batch_size = whole_number("batch_size", batch_size, 1)
    if record_unit not in ("epoch", "step"):
        raise ValueError(f"record_unit must be 'epoch' or 'step', got {record_unit!r}")
    interval = real_number("interval", interval, 0)
    if arguments is not None:
        expect("arguments", arguments, Mapping, "arguments of landscape.models.build by name")
    json_text("name and arguments", [name, dict(arguments or {})])
    factor = optimizers.schedule_function(schedule)
    optimizer_class, optimizer_arguments = optimizers.choose(
        optimizer, learning_rate=learning_rate, weight_decay=weight_decay, options=options
    )
    objective = Objective(model, data, test=test, loss=loss, metrics=metrics, forward=forward, reduction=reduction)
    if objective.chunk_size is not None:
        objective.chunk_size = EVALUATION_CHUNK
    order = Order(objective.splits[""], batch_size, seed)
    network = copy.deepcopy(model).train()
    network.zero_grad(set_to_none=True)
    trained = {key: tensor for key, tensor in network.named_parameters() if tensor.requires_grad}
    if not trained:
        raise ValueError("no parameter of the model requires a gradient: there is nothing to train")
    identity = {
        **describe_run(
            objective, network, forward, optimizer_class, optimizer_arguments, order, epochs, schedule, seed
        ),
        "record": f"every {record_every} {record_unit}",
    }
    session = Session(
        network, objective, forward, optimizer_class(list(trained.values()), **optimizer_arguments), order, seed
    )
    path = None if folder is None else folder_path(folder)
    if path is not None and _is_finished(path):
        return _finished_run(path, network, identity)
    with nullcontext() if path is None else Lock(path / _CHECKPOINT):
        if path is not None:
            if _is_finished(path):  # by another process, a moment ago
                return _finished_run(path, network, identity)
            _open(path, session, identity)

        total = epochs * order.n_steps
        bar = tqdm(total=total, initial=session.step, desc="training", unit="step", disable=not progress)
        info = {"training": identity, "name": name, "arguments": dict(arguments or {})}
        with ExitStack() as stack:
            stack.enter_context(bar)
            if path is not None:
                every = record_every * (order.n_steps if record_unit == "epoch" else 1)
                recorder = Recorder(path / _TRAJECTORY, network, every=every, step=session.step, info=info)
                stack.enter_context(recorder)
            interrupted = stack.enter_context(interrupt_between_steps()) if path is not None else []
            due = time.perf_counter() + interval
            for values in session.steps(total, factor):
                bar.set_postfix(loss=f"{values.get('loss', values['batch_loss']):.4g}", refresh=False)
                bar.update()
                if path is None:
                    continue
                recorder.step(**values)
                begin = time.perf_counter()
                if begin >= due or interrupted:
                    recorder.flush()  # first, so that no row is missing when the run continues from this state
                    session.save(path / _STATE, identity)
                    end = time.perf_counter()
                    due = end + max(interval, (end - begin) / _SHARE_OF_SAVING)
                if interrupted:
                    text = f"the state is in {path}: the same call continues after step {session.step}"
                    raise Stopped(interrupted[0], text)
        if session.diverged:
            log.warning(
                "stopped after step %d of %d: the loss is %s; a smaller learning rate may help",
                session.step,
                total,
                session.history["loss"][-1],
            )
        network.zero_grad(set_to_none=True)
        if path is not None:
            record = {
                "history": session.history,
                "data": objective.settings()["data"],
                "seconds": session.seconds,
                "versions": _versions(),
            }
            checkpoint.save(
                path / _CHECKPOINT, network, name=name, arguments=arguments, info={"training": identity, **record}
            )
            (path / _STATE).unlink()
    return Run(network.eval(), _arrays(session.history), path, session.seconds)


def read_history(folder: str | os.PathLike) -> dict[str, np.ndarray]:
    """Read the history of a stored run, finished or (up to the last saved state) not.

    Args:
        folder: The folder that was given to `train`.

    Returns:
        The arrays of `Run.history`; none if the run has only begun.

    Raises:
        FileNotFoundError: There is no run.
        ValueError: A file is damaged, or the checkpoint in the folder was not written by `train`.
    """
    path = Path(folder)

    def read() -> dict[str, np.ndarray]:
        if (path / _STATE).exists():
            return _arrays(read_state(path / _STATE)["history"])
        if not (path / _CHECKPOINT).exists():
            raise FileNotFoundError(f"no training run in {path}: expected {_CHECKPOINT} or {_STATE} there")
        return _arrays(_read_finished(path).info["history"])

    return read_steadily(read, path / _STATE, path / _CHECKPOINT)


def describe_run(
    objective: Objective,
    network: nn.Module,
    forward: Callable[[nn.Module, Any], Any] | None,
    optimizer_class: type[torch.optim.Optimizer],
    optimizer_arguments: Mapping[str, Any],
    order: Order,
    epochs: int,
    schedule: optimizers.Schedule,
    seed: int,
) -> dict[str, Any]:
    """Return what decides where a run ends (JSON-able); `network` is the one that it starts from."""
    described = {
        **objective.fingerprint(),
        "initial parameters and buffers": _digest(network),
        "trained parameters": [key for key, tensor in network.named_parameters() if tensor.requires_grad],
        "forward": None if forward is None else describe_callable(forward),
        "optimizer": optimizer_class.__name__,
        "optimizer arguments": dict(optimizer_arguments),
        "batch size": order.size,
        "epochs": epochs,
        "schedule": describe_callable(schedule) if callable(schedule) else schedule,
        "seed": seed,
    }
    return json.loads(json.dumps(described, default=repr))


def _open(path: Path, session: Session, identity: dict[str, Any]) -> None:
    """Continue the run that a folder holds, or begin one there."""
    trajectory = path / _TRAJECTORY
    if (path / _STATE).exists():
        state = read_state(path / _STATE)
        _check_same(path, json.loads(state["identity"]), identity)
        session.load(state)
        if session.step and not trajectory.exists() and not shard_folder(trajectory).exists():
            raise FileNotFoundError(
                f"{trajectory} was removed, which held the steps up to {session.step} that {path / _STATE} goes on "
                f"from: put it back, or delete {_STATE} to start anew"
            )
    elif trajectory.exists() or shard_folder(trajectory).exists():
        raise ValueError(
            f"{path} holds a {_TRAJECTORY} that this run did not begin: choose another folder, or delete it"
        )
    else:
        session.save(path / _STATE, identity)
    if session.step == 0:  # a kill may have come after the first rows
        trajectory.unlink(missing_ok=True)
        shutil.rmtree(shard_folder(trajectory), ignore_errors=True)


def _is_finished(path: Path) -> bool:
    return (path / _CHECKPOINT).exists() and not (path / _STATE).exists()


def _finished_run(path: Path, network: nn.Module, identity: dict[str, Any]) -> Run:
    stored = _read_finished(path)
    _check_same(path, stored.info["training"], identity)
    checkpoint.load_state(network, stored)
    return Run(network.eval(), _arrays(stored.info["history"]), path, stored.info["seconds"])


def _read_finished(path: Path) -> checkpoint.Checkpoint:
    stored = checkpoint.read(path / _CHECKPOINT)
    if "training" not in stored.info:
        raise ValueError(f"{path / _CHECKPOINT} was not written by a training run: choose another folder")
    pattern = {"training": dict, "history": {"*": [Number]}, "seconds": Number}
    check_value(stored.info, pattern, str(path / _CHECKPOINT))
    return stored


def _arrays(history: Mapping[str, list]) -> dict[str, np.ndarray]:
    types = {"epoch": np.int64, "step": np.int64}
    return {key: np.array(values, types.get(key, np.float64)) for key, values in history.items()}


def _check_same(path: Path, stored: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    """Refuse to continue another run, naming what differs."""
    stored = without_known_code(stored)
    keys = [key for key in {**stored, **given} if stored.get(key) != given.get(key)]
    if keys:
        differences = "; ".join(f"{k}: {_short(stored.get(k))} there, {_short(given.get(k))} now" for k in keys)
        raise ValueError(
            f"{path} holds another run ({differences}). Choose another folder, or repeat the call as it was to continue"
        )


def _short(value: Any) -> str:
    text = "nothing" if value is None else str(value)
    return text if len(text) <= 80 else f"{text[:12]}..."


def _digest(network: nn.Module) -> str:
    digest = hashlib.sha256()
    for name, tensor in [*network.named_parameters(), *network.named_buffers()]:
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _versions() -> dict[str, str]:
    return {"landscape": __version__, "torch": torch.__version__, "numpy": np.__version__}
