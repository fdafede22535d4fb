"""Commands that study many networks: restarts."""

import argparse
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from landscape.cli.networks import (
    Command,
    assignments,
    import_function,
    load_data,
    network_options,
    new_model,
    open_workers,
    worker_options,
)


def _restarts_options(parser: argparse.ArgumentParser) -> None:
    network_options(parser)
    parser.add_argument("--out", type=Path, required=True, help="HDF5 file; a study there is continued or extended")
    parser.add_argument("--seeds", type=int, default=100, help="how many restarts with each optimizer")
    group = parser.add_argument_group("training")
    group.add_argument(
        "--optimizers", nargs="+", default=["adam"], help="gd, normalized, momentum, rmsprop, adam, adamw, lbfgs"
    )
    group.add_argument(
        "--run", nargs="+", action="append", default=[], dest="runs", metavar=("NAME", "KEY=VALUE"),
        help="a group of runs with settings of its own, such as: --run slow optimizer=adam learning_rate=1e-4 "
        "epochs=50; may be given more than once; without --optimizers, only these are run",
    )  # fmt: skip
    group.add_argument("--lr", type=float, help="learning rate of all; default: each optimizer's")
    group.add_argument("--batch-size", type=int, help="samples per step; default: all (full batch)")
    group.add_argument("--epochs", type=int, default=10, help="passes through the data")
    group.add_argument("--schedule", default="constant", help="learning rate: constant, linear, cosine or step")
    group.add_argument("--penalty", type=float, default=0.0, help="adds penalty/2 * ||theta||^2 to what is minimized")
    group.add_argument("--evaluate-every", type=int, default=1, metavar="K", help="evaluate after every K-th epoch")
    group.add_argument(
        "--shared-order", action="store_true", help="all networks see the samples in one order, which is faster"
    )
    worker_options(group)


def _restarts(options: argparse.Namespace) -> None:
    import numpy as np

    from landscape.restarts import run_restarts

    if options.model is None:
        raise ValueError("--model is missing: a name such as mlp, or package.module:function")
    data, test = load_data(options)
    arguments = assignments(options.set)
    common: dict[str, Any] = {
        "learning_rate": options.lr,
        "batch_size": options.batch_size,
        "epochs": options.epochs,
        "schedule": options.schedule,
        "evaluate_every": options.evaluate_every,
        "batch_order": "shared" if options.shared_order else "own",
    }
    optimizers = [] if options.runs and options.optimizers == ["adam"] else options.optimizers
    settings = {name: {"optimizer": name, **common} for name in optimizers}
    for name, *texts in options.runs:
        if name in settings:
            raise ValueError(f"--run {name}: that name is given twice")
        settings[name] = {**common, **assignments(texts)}
    with ExitStack() as stack:
        study = run_restarts(
            _builder(options.model, arguments, data),
            data,
            options.out,
            settings=settings,
            seeds=options.seeds,
            test=test,
            loss=import_function(options.loss) if options.loss else None,
            penalty=options.penalty,
            workers=open_workers(options, stack),
        )
    for name, losses in study.groups().items():
        low, middle, high = np.nanquantile(losses, [0, 0.5, 1]) if np.isfinite(losses).any() else [np.nan] * 3
        print(
            f"{name}: {len(losses)} runs, {int(np.isnan(losses).sum())} diverged, "
            f"loss {middle:.4g} ({low:.4g} to {high:.4g})"
        )
    print(f"study in {options.out}")


def _builder(name: str, arguments: dict, data: Any) -> Callable[[int], Any]:
    """Return the function from a seed to a network; networks of the user's own draw from torch's seeded generator."""
    return lambda seed: new_model(name, arguments, data, seed)[0]


COMMANDS: dict[str, Command] = {
    "restarts": ("train a network from many seeds by several optimizers", _restarts_options, _restarts),
}
