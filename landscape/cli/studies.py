"""Commands that study many networks: restarts, minima, compare."""

import argparse
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from landscape.cli.networks import (
    Command,
    assignments,
    distinct_names,
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
            workers=_workers(options, stack),
            info=_info(options, arguments),
        )
    for name, losses in study.groups().items():
        low, middle, high = np.nanquantile(losses, [0, 0.5, 1]) if np.isfinite(losses).any() else [np.nan] * 3
        print(
            f"{name}: {len(losses)} runs, {int(np.isnan(losses).sum())} diverged, "
            f"loss {middle:.4g} ({low:.4g} to {high:.4g})"
        )
    print(f"study in {options.out}")


def _info(options: argparse.Namespace, arguments: dict) -> dict[str, Any]:
    """Return how network, data and loss are made again."""
    return {
        "model": {"name": options.model, "arguments": arguments},
        "data": options.data,
        "test": options.test,
        "limit": options.limit,
        "loss": options.loss,
    }


def _workers(options: argparse.Namespace, stack: ExitStack) -> Any:
    """Return the workers; --device is that of the only one."""
    if options.device in (None, "cpu"):
        return open_workers(options, stack)
    if options.workers != "1" or options.cluster is not None:
        raise ValueError("give --device or --workers and --cluster, not both")
    return [options.device]


def _builder(name: str, arguments: dict, data: Any) -> Callable[[int], Any]:
    """Return the function from a seed to a network; networks of the user's own draw from torch's seeded generator."""
    return lambda seed: new_model(name, arguments, data, seed)[0]


def _minima_options(parser: argparse.ArgumentParser) -> None:
    network_options(parser)
    parser.add_argument("study", type=Path, metavar="STUDY", help="what landscape restarts has written")
    parser.add_argument("--out", type=Path, required=True, help="HDF5 file; minima of the study there are continued")
    group = parser.add_argument_group("minima")
    group.add_argument("--runs", type=int, metavar="N", help="the first N seeds of each optimizer; default: all")
    group.add_argument(
        "--relation", choices=["symmetry", "function"], default="symmetry",
        help="two minima are the same if one is a symmetric copy of the other, or if they compute the same outputs",
    )  # fmt: skip
    group.add_argument("--tolerance", type=float, default=1e-3, help="largest relative distance of the same one")
    group.add_argument("--gtol", type=float, default=1e-10, help="gradient norm to reach, relative to 1 + |loss|")
    group.add_argument(
        "--barriers", type=int, metavar="K",
        help="paths between the K lowest distinct minima, kept in NAME.barriers.h5 and, with hidden units aligned, in "
        "NAME.barriers_aligned.h5",
    )  # fmt: skip
    worker_options(group)


def _minima(options: argparse.Namespace) -> None:
    from landscape.minima.survey import survey_minima
    from landscape.study import Study

    if options.barriers is not None and options.barriers < 2:
        raise ValueError(f"--barriers needs at least 2 minima, got {options.barriers}")
    if options.runs is not None and options.runs < 1:
        raise ValueError(f"--runs needs at least 1 run of each optimizer, got {options.runs}")
    study = Study.load(options.study)
    network, data, test, loss = _as_studied(options, study)
    with ExitStack() as stack:
        catalog = survey_minima(
            study,
            network,
            data,
            options.out,
            test=test,
            loss=loss,
            runs=None if options.runs is None else _first_seeds(study, options.runs),
            relation=options.relation,
            tolerance=options.tolerance,
            gtol=options.gtol,
            workers=_workers(options, stack),
        )
    print(catalog.describe())
    _print_table(catalog.table(), catalog.settings)
    print(f"minima in {options.out}")
    if options.barriers:
        _barriers(options, catalog, network, data, loss, float(study.provenance["settings"]["penalty"]))
    print(f"compare and draw them with: landscape compare {options.study} --minima {options.out}")


def _as_studied(options: argparse.Namespace, study: Any) -> tuple[Any, Any, Any, Any]:
    """Make network, data, test data and loss of a study again; code named in its file is only run if asked for."""
    info = study.provenance.get("info", {})
    for name in ("model", "data", "test", "loss"):
        stored = info["model"]["name"] if name == "model" and info else info.get(name)
        given = getattr(options, name)
        if given is None and stored is not None:
            if ":" in stored or name == "loss":
                raise ValueError(
                    f"{options.study} was made with the code {stored}, which is only run if you ask for it: add "
                    f"--{name} {stored}"
                )
            setattr(options, name, stored)
    if options.model is None:
        raise ValueError(
            f"{options.study} does not say what network it is of: give --model, a name or package.module:function, and "
            "--data"
        )
    known = study.provenance["settings"]["data"]
    options.limit = options.limit or info.get("limit")
    options.test = options.test or (None if "test" in known else "none")
    data, test = load_data(options, known)
    arguments = assignments(options.set)
    if info and info["model"]["name"] == options.model:
        arguments = {**info["model"]["arguments"], **arguments}
    network, _, _ = new_model(options.model, arguments, data, 0)
    return network, data, test, import_function(options.loss) if options.loss else None


def _first_seeds(study: Any, n: int) -> list[int]:
    """Return the runs with the first n seeds of each group, those that diverged among them."""
    import numpy as np

    rows = [np.flatnonzero(study.setting == i) for i in range(len(study.settings))]
    return sorted(int(i) for mine in rows for i in mine[np.argsort(study.seed[mine], kind="stable")[:n]])


def _barriers(options: argparse.Namespace, catalog: Any, network: Any, data: Any, loss: Any, penalty: float) -> None:
    import torch

    from landscape.comparison.minima import barrier_files
    from landscape.connectivity import barrier_matrix
    from landscape.data import split_batch
    from landscape.objective import Objective
    from landscape.symmetry import symmetries

    rows = catalog.representatives()[: options.barriers]
    if len(rows) < 2:
        print("no barriers: there are not two distinct minima")
        return
    has_norm = any(isinstance(module, torch.nn.modules.batchnorm._BatchNorm) for module in network.modules())
    objective = Objective(
        network,
        data,
        loss=loss,
        penalty=penalty,
        dtype=torch.float64,
        batch_norm="recalibrated" if has_norm else "frozen",
    )
    thetas = torch.as_tensor(catalog.thetas())[rows]
    sample = split_batch(next(objective.splits[""].chunks(None)))[0]
    found = symmetries(network, sample)
    for aligned, path in barrier_files(options.out).items():
        path.unlink(missing_ok=True)  # of other minima, perhaps
        if aligned and not (found.groups or found.gains):
            print(f"hidden units were not aligned: {'; '.join(found.notes) or 'no symmetry was derived'}")
            continue
        matrix = barrier_matrix(objective, thetas, found if aligned else None)
        matrix.save(path)
        print(f"{path}: median barrier {_median(matrix.barriers):.4g} between the {len(rows)} lowest minima")


def _median(matrix: Any) -> float:
    import numpy as np

    return float(np.median(matrix[np.triu_indices(len(matrix), 1)]))


def _print_table(rows: Sequence[Mapping[str, Any]], settings: Sequence[str], n: int = 20) -> None:
    columns = ["minimum", "kind", "objective", "smallest eigenvalue", "largest eigenvalue", "hits"]
    columns += [f"hits of {name}" for name in settings] if len(settings) > 1 else []
    if not rows:
        return
    cells = [[name.removesuffix(" eigenvalue") for name in columns]]
    cells += [
        [f"{row[name]:.6g}" if isinstance(row[name], float) else str(row[name]) for name in columns] for row in rows[:n]
    ]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for line in cells:
        print("  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)))
    if len(rows) > n:
        print(f"... and {len(rows) - n} more")


def _compare_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("studies", nargs="+", type=Path, metavar="STUDY", help="what landscape restarts has written")
    parser.add_argument(
        "--minima", nargs="+", type=Path, default=[], metavar="FILE", help="what landscape minima has written of them"
    )
    parser.add_argument("--out", type=Path, help="folder for page, tables and figures; default: beside the first study")
    parser.add_argument("--title", help="of the page; default: the names of the studies")
    parser.add_argument(
        "--formats", nargs="+", choices=["html", "png", "svg"], help="of figures; default: html, and png if possible"
    )


def _compare(options: argparse.Namespace) -> None:
    from landscape import figures, report
    from landscape.catalog import Catalog
    from landscape.comparison import compare_studies
    from landscape.statistics import write_csv
    from landscape.study import Study

    folder = options.out or options.studies[0].with_name(f"{options.studies[0].stem}_comparison")
    studies = {name: Study.load(path) for name, path in distinct_names(options.studies).items()}
    found = compare_studies(studies, [Catalog.load(path) for path in options.minima])
    for finding in found:
        if finding.summary:
            print(finding.summary)
    for finding in found:
        for name, rows in finding.tables.items():
            write_csv(folder / f"{file_name(name)}.csv", rows)
    missing = figures.browser_missing()
    formats = options.formats or (["html"] if missing else ["html", "png"])
    drawn = {file_name(finding.name): finding.figure for finding in found if finding.figure is not None}
    figures.save_figures(drawn, folder, formats)
    title = options.title or f"Restart study: {', '.join(studies)}"
    index = report.page(title, report.study_sections(found), folder / "index.html")
    if missing and not options.formats:
        print(missing)
    print(f"open {index}")


def file_name(text: str) -> str:
    """Return text as the name of a file."""
    return re.sub(r"[^\w.-]+", "_", text)


COMMANDS: dict[str, Command] = {
    "restarts": ("train a network from many seeds by several optimizers", _restarts_options, _restarts),
    "minima": (
        "descend from the runs of a study to certified minima, and count them",
        _minima_options,
        _minima,
    ),
    "compare": (
        "compare the runs of studies and the minima they found on one page",
        _compare_options,
        _compare,
    ),
}
