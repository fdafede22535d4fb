"""Commands that run networks: demo, train, surface."""

import argparse
import importlib
import json
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from landscape.arguments import expect, whole_number

Command = tuple[str, Callable[[argparse.ArgumentParser], None], Callable[[argparse.Namespace], None]]


def _demo_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", type=Path, default=Path("results/demo"), help="folder for the results")


def _demo(options: argparse.Namespace) -> None:
    from landscape.demo import demo

    index = demo(options.out)
    print(f"open {index}")


def network_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that name a network, its data and its loss."""
    group = parser.add_argument_group("network and data")
    group.add_argument(
        "--model",
        help="a name (mlp, lenet, resnet, vgg, recurrent, transformer), or package.module:function of your own that "
        "returns a torch.nn.Module; that code is run",
    )
    group.add_argument(
        "--set",
        nargs="+",
        default=[],
        metavar="NAME=VALUE",
        help="arguments of the model, such as depth=20 skip=false widths=[10,10]; the input shape and the number of "
        "classes come from the data",
    )
    group.add_argument(
        "--data",
        help="digits, mnist, cifar10, moons, xor, or package.module:function of your own that returns a DataLoader, "
        "tensors, or an iterable of batches; that code is run",
    )
    group.add_argument("--test", help="test data likewise; default: those of the named data set; 'none' for none")
    group.add_argument("--limit", type=int, help="use the first N training samples of a named data set")
    group.add_argument("--loss", help="package.module:function(output, target); default: cross-entropy")
    group.add_argument("--device", help="where to compute, such as cuda; default: cpu")


def _train_options(parser: argparse.ArgumentParser) -> None:
    network_options(parser)
    parser.add_argument("--out", type=Path, required=True, help="folder for checkpoint, trajectory and history")
    parser.add_argument("--optimizer", default="adam", help="gd, normalized, momentum, rmsprop, adam, adamw, lbfgs")
    parser.add_argument("--lr", type=float, help="learning rate; default: the optimizer's")
    parser.add_argument("--option", nargs="+", default=[], metavar="NAME=VALUE", help="options of the optimizer")
    parser.add_argument("--weight-decay", type=float, default=0.0, help="weight penalty of the optimizer")
    parser.add_argument("--batch-size", type=int, help="samples per step; default: all (full batch)")
    parser.add_argument("--epochs", type=int, default=10, help="passes through the data")
    parser.add_argument("--schedule", default="constant", help="learning rate: constant, linear, cosine or step")
    parser.add_argument("--seed", type=int, default=0, help="seed of the initialization and of the batch order")
    parser.add_argument("--record-every", type=int, default=1, metavar="K", help="record every K-th epoch or step")
    parser.add_argument("--record-unit", choices=["epoch", "step"], default="epoch", help="what is counted")
    parser.add_argument("--init", metavar="FILE", help="start from this checkpoint")


def _train(options: argparse.Namespace) -> None:
    from landscape import checkpoint
    from landscape.program import check_device
    from landscape.training import train

    data, test = load_data(options)
    if options.model is None:
        raise ValueError("--model is missing: a name such as mlp, or package.module:function")
    model, name, arguments = new_model(options.model, assignments(options.set), data, options.seed)
    if options.init:
        checkpoint.load_state(model, options.init)
    check_device(options.device)
    run = train(
        model.to(options.device),
        data,
        test=test,
        loss=import_function(options.loss) if options.loss else None,
        optimizer=options.optimizer,
        learning_rate=options.lr,
        options=assignments(options.option),
        weight_decay=options.weight_decay,
        batch_size=options.batch_size,
        epochs=options.epochs,
        schedule=options.schedule,
        seed=options.seed,
        folder=options.out,
        record_every=options.record_every,
        record_unit=options.record_unit,
        name=name,
        arguments=arguments,
    )
    last = {key: values[-1] for key, values in run.history.items() if key not in ("epoch", "step")}
    print(", ".join(f"{key.replace('_', ' ')} {value:.4g}" for key, value in last.items()))
    print(f"network in {options.out / 'checkpoint.safetensors'}, trajectory in {options.out / 'trajectory.h5'}")


def _surface_options(parser: argparse.ArgumentParser) -> None:
    network_options(parser)
    parser.add_argument("--checkpoint", required=True, help="the network: .safetensors, .pt, .pth, .bin or .ckpt")
    parser.add_argument("--out", type=Path, required=True, help="HDF5 file; an unfinished one there is continued")
    group = parser.add_argument_group("directions")
    group.add_argument(
        "--directions",
        default="random",
        help="random, pca (needs --trajectory), hessian (largest eigenvalues), between (needs --to), or a direction "
        "file of Li et al.'s code",
    )
    group.add_argument("--dimensions", type=int, choices=[1, 2, 3], default=2, help="a line, a plane or a volume")
    group.add_argument(
        "--normalization", default="filter", choices=["filter", "layer", "weight", "none"], help="of random directions"
    )
    group.add_argument("--biases", action="store_true", help="let biases and norm parameters take part")
    group.add_argument("--orthogonal", action="store_true", help="make random directions orthogonal")
    group.add_argument("--seed", type=int, default=0, help="seed of the random directions")
    group.add_argument("--trajectory", nargs="+", default=[], help="trajectory files: for PCA, and drawn on it")
    group.add_argument("--to", nargs="+", default=[], metavar="CHECKPOINT", help="the other network or networks")
    group.add_argument("--select", nargs="+", default=["all"], help="all, trainable, or patterns of parameter names")
    group = parser.add_argument_group("grid and evaluation")
    group.add_argument("--resolution", help="points along each axis: 51 or 51x41; default: 101, 51x51, 21x21x21")
    group.add_argument("--range", nargs="+", metavar="LOW:HIGH", help="coordinates, one range or one per axis")
    group.add_argument(
        "--batch-norm", default="frozen", choices=["frozen", "interpolated", "recalibrated", "batch"],
        help="batch-norm statistics at a point: the network's, interpolated between networks, estimated anew, or "
        "each batch's",
    )  # fmt: skip
    group.add_argument("--dtype", choices=["float32", "float64"], help="precision; default: the network's own")
    group.add_argument("--reduction", choices=["mean", "sum"], default="mean", help="what --loss does over samples")
    group.add_argument("--chunk-size", type=int, help="samples per forward pass; default: tuned")
    group.add_argument("--threads", type=int, help="processor threads; default: torch's choice")
    group.add_argument(
        "--engine", choices=["auto", "reference", "preview"], default="auto",
        help="the fastest exact plan, the plain one, or a quick look in bf16 whose figures are marked as such",
    )  # fmt: skip
    group.add_argument(
        "--memory", metavar="SIZE", help="what the plan may take, such as 500M or 2G; default: 2 GiB, or a quarter of "
        "what is free where that is less",
    )  # fmt: skip
    group.add_argument(
        "--audit", type=int, nargs="?", const=20, metavar="N",
        help="evaluate N points (20 if no number is given) of the finished surface again in float64, and report the "
        "largest error",
    )  # fmt: skip
    worker_options(group)
    group.add_argument("--explain", action="store_true", help="say how the points would be evaluated, and stop")


def worker_options(group: Any) -> None:
    """Add the options that spread work."""
    group.add_argument(
        "--workers", default="1", metavar="N",
        help="processes that share the work; or cuda for all GPUs, or devices such as cuda:0,cuda:1",
    )  # fmt: skip
    group.add_argument(
        "--cluster", metavar="ADDRESS",
        help="spread the work over a Ray cluster, host:6379 or auto; with --workers N on N of its processors, with "
        "--workers cuda on all its GPUs",
    )  # fmt: skip


def open_workers(options: argparse.Namespace, stack: ExitStack) -> Any:
    """Return the workers that a command asks for, which end with the stack."""
    text = options.workers
    if options.cluster is not None:
        from landscape.cluster import ClusterWorkers

        device = "cuda" if text == "cuda" else None
        n = None if text in ("1", "cuda") else _whole(text)
        return stack.enter_context(ClusterWorkers(options.cluster, device, n))
    if text == "cuda":
        return text
    return text.split(",") if "cuda" in text else _whole(text)


def _whole(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise ValueError(f"--workers is a number from 1 on, cuda, or devices such as cuda:0,cuda:1; got {text!r}")
    return int(text)


def _surface(options: argparse.Namespace) -> None:
    import torch

    from landscape import checkpoint, sanity
    from landscape.evaluation import evaluate
    from landscape.evaluation.audit import audit, keep_audit
    from landscape.objective import Objective
    from landscape.trajectory import Trajectory

    if options.audit is not None and options.audit < 3:
        raise ValueError(f"--audit needs at least 3 points: the center, the lowest and a corner; got {options.audit}")
    memory = _n_bytes(options.memory)
    if options.threads is not None:
        torch.set_num_threads(whole_number("--threads", options.threads, 1))
    stored = checkpoint.read(options.checkpoint)
    data, test = load_data(options, stored.info.get("data"))
    model = _stored_model(options, stored, data)
    checkpoint.load_state(model, stored)
    objective = Objective(
        model,
        data,
        test=test,
        loss=import_function(options.loss) if options.loss else None,
        reduction=options.reduction,
        select=options.select[0] if len(options.select) == 1 else options.select,
        dtype=getattr(torch, options.dtype) if options.dtype else None,
        device=options.device,
        batch_norm=options.batch_norm,
        chunk_size=options.chunk_size,
    )
    runs = {name: Trajectory.load(path) for name, path in _run_names(options.trajectory).items()}
    slice = _slice(options, objective, list(runs.values()))
    if options.explain:
        _explain(options, objective, slice, memory)
        return
    known: dict[str, Any] = {"path": str(options.checkpoint)}
    if isinstance(stored.info.get("history"), Mapping):
        known["loss"] = stored.info["history"]["loss"][-1]
    with ExitStack() as stack:
        surface = evaluate(
            objective,
            slice,
            resolution=_resolution(options.resolution),
            extent=_ranges(options.range),
            trajectories=runs,
            path=options.out,
            checkpoint=known,
            engine=options.engine,
            memory=memory,
            workers=open_workers(options, stack),
        )
    if options.audit is not None:
        keep_audit(audit(objective, slice, surface, options.audit), objective, slice, surface)
    print_findings(sanity.findings(surface))
    print(f"surface in {options.out}; draw it with: landscape plot {options.out}")


def _explain(options: argparse.Namespace, objective: Any, slice: Any, memory: int | None) -> None:
    """Print how the points would be evaluated, what was matched, and what memory may be taken."""
    import numpy as np

    from landscape.evaluation import make_plan
    from landscape.evaluation.memory import free_memory, memory_budget
    from landscape.evaluation.question import axes_of

    axes = axes_of(slice, _resolution(options.resolution), _ranges(options.range), None)
    ranges = np.array([(axis[0], axis[-1]) for axis in axes.values()])
    print(make_plan(objective, slice, engine=options.engine, ranges=ranges, memory=memory).describe())
    budget, free = memory_budget(memory, objective.device), free_memory(objective.device)
    known = "" if free is None else f" of {_megabytes(free)} free"
    print(f"memory budget {_megabytes(budget)}{known}; --memory SIZE changes it")


def _slice(options: argparse.Namespace, objective: Any, runs: Sequence[Any]) -> Any:
    from landscape import directions
    from landscape.interchange import read_li_directions

    if options.directions == "random":
        return directions.random_directions(
            objective,
            options.dimensions,
            seed=options.seed,
            normalization=options.normalization,
            biases=options.biases or None,
            orthogonal=options.orthogonal,
        )
    if options.directions == "pca":
        if not runs:
            raise ValueError("PCA directions need --trajectory FILE, as `landscape train` or a Recorder writes it")
        return directions.pca_directions(objective, runs, options.dimensions)
    if options.directions == "hessian":
        from landscape.curvature import eigenvector_directions

        return eigenvector_directions(objective, options.dimensions)
    if options.directions == "between":
        if not options.to:
            raise ValueError("directions between networks need --to CHECKPOINT")
        return directions.directions_between(objective, *options.to)
    if os.path.exists(options.directions):
        layout = objective.layout
        rows, info = read_li_directions(
            options.directions,
            list(zip(layout.names, layout.shapes, strict=True)),
            list(objective.model.state_dict()),
        )
        known = {name.rstrip("_"): values.tolist() for name, values in info.items()}
        return directions.given_directions(objective, rows, info={"file": options.directions, **known})
    raise ValueError(f"--directions {options.directions}: expected random, pca, hessian, between, or an existing file")


def load_data(options: argparse.Namespace, trained_on: Mapping[str, Any] | None = None) -> tuple[Any, Any]:
    """Return training and test data: named ones, the user's, or those that a stored network was trained on."""
    from landscape import data as sets

    name, limit = options.data, options.limit
    if name is None and isinstance(trained_on, Mapping):
        name = trained_on["training"]["name"].partition("/")[0]
        limit = limit or trained_on["training"]["n_samples"]
    if name is None or (options.data is None and name not in sets.names()):
        raise ValueError(f"--data is missing: {', '.join(sets.names())}, or package.module:function")
    if ":" in name and limit is not None:
        raise ValueError(f"--limit is for named data sets: let {name} return fewer samples")
    training = import_function(name)() if ":" in name else sets.load(name, limit=limit)
    if options.test == "none":
        return training, None
    if options.test is not None:
        return training, import_function(options.test)() if ":" in options.test else sets.load(options.test, "test")
    return training, None if ":" in name else sets.load(name, "test")


def new_model(name: str, arguments: dict, data: Any, seed: int | None) -> tuple[Any, str, dict]:
    """Build a network; input shape and number of classes are taken from a named data set."""
    from torch.nn import Module

    from landscape import models
    from landscape.data import Dataset

    if ":" in name:
        network = import_function(name)(**arguments)
        expect(f"what {name} returns", network, Module, "a network (torch.nn.Module)")
        return network, name, arguments
    if isinstance(data, Dataset):
        arguments = {"input_shape": list(data.inputs.shape[1:]), "classes": data.classes, **arguments}
    return models.build(name, seed=seed, **arguments), name, arguments


def _stored_model(options: argparse.Namespace, stored: Any, data: Any) -> Any:
    """Rebuild the network of a checkpoint: by what it says itself, or by --model."""
    if options.model is not None:
        return new_model(options.model, assignments(options.set), data, 0)[0]
    if stored.name is None:
        raise ValueError(
            f"{options.checkpoint} does not say what network it holds: give --model, a name or package.module:function"
        )
    if ":" in stored.name:
        raise ValueError(
            f"{options.checkpoint} was made by the code {stored.name}, which is only run if you ask for it: "
            f"add --model {stored.name}"
        )
    return new_model(stored.name, {**stored.arguments, **assignments(options.set)}, None, 0)[0]


def import_function(text: str) -> Callable[..., Any]:
    """Import `package.module:function`, from the current folder too."""
    module_name, _, name = text.partition(":")
    if not module_name or not name:
        raise ValueError(f"expected package.module:function, got {text!r}")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    module = importlib.import_module(module_name)
    function = getattr(module, name, None)
    if not callable(function):
        raise ValueError(f"module {module_name} has no function {name!r}")
    return function


def assignments(texts: Sequence[str]) -> dict[str, Any]:
    """Read `name=value` pairs; a value is JSON where it can be read as JSON, else text."""
    pairs = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise ValueError(f"expected NAME=VALUE, got {text!r}")
        try:
            pairs[name] = json.loads(value)
        except json.JSONDecodeError:
            pairs[name] = value
    return pairs


def _n_bytes(text: str | None) -> int | None:
    """Read a size such as 500M: a number, with K, M, G or T for powers of 1000."""
    if text is None:
        return None
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([KMGT]?)B?", text.strip().upper())
    size = int(float(found[1]) * 1000 ** " KMGT".index(found[2] or " ")) if found else 0
    if size < 1:
        raise ValueError(f"--memory is a size in bytes, or with K, M, G or T, such as 500M; got {text!r}")
    return size


def _megabytes(n: int) -> str:
    return f"{n / 1e6:,.0f} MB"


def _resolution(text: str | None) -> int | list[int] | None:
    if text is None:
        return None
    try:
        counts = [int(part) for part in text.lower().split("x")]
    except ValueError:
        raise ValueError(f"--resolution is a number or numbers joined by x, such as 51x41; got {text!r}") from None
    return counts[0] if len(counts) == 1 else counts


def _ranges(texts: Sequence[str] | None) -> list[tuple[float, float]] | tuple[float, float] | None:
    if texts is None:
        return None
    ranges = []
    for text in texts:
        try:
            low, high = map(float, text.split(":"))
        except ValueError:
            raise ValueError(f"--range is LOW:HIGH, such as -1:1; got {text!r}") from None
        ranges.append((low, high))
    return ranges[0] if len(ranges) == 1 else ranges


def _run_names(paths: Sequence[str]) -> dict[str, Path]:
    """Name trajectories by their files, or by their folders where the files have the usual name."""
    files = {(file.resolve().parent if file.stem == "trajectory" else file): file for file in map(Path, paths)}
    if len(files) < len(paths):
        raise ValueError(f"a trajectory is given twice among {', '.join(paths)}")
    return {name: files[named] for name, named in distinct_names(list(files)).items()} if files else {}


def distinct_names(files: Sequence[Path]) -> dict[str, Path]:
    """Name files by their stems (folders whole), with as many folders before as tell them apart, else numbered."""
    stems = [file.resolve() if file.is_dir() else file.resolve().with_suffix("") for file in files]
    for depth in range(1, max(len(stem.parts) for stem in stems) + 1):
        named = {"_".join(stem.parts[-depth:]): file for stem, file in zip(stems, files, strict=True)}
        if len(named) == len(files):
            return named
    return {f"{stem.name}_{i + 1}": file for i, (stem, file) in enumerate(zip(stems, files, strict=True))}


def print_findings(rows: Sequence[Any]) -> None:
    """Print a sanity report, warnings marked."""
    width = max(len(row.label) for row in rows)
    for row in rows:
        print(f"{'!' if row.warning else ' '} {row.label:<{width}}  {row.text}")


COMMANDS: dict[str, Command] = {
    "demo": ("train small networks on embedded data and draw their landscapes", _demo_options, _demo),
    "train": ("train a network and record its trajectory", _train_options, _train),
    "surface": ("evaluate the loss on a line, plane or volume through a network", _surface_options, _surface),
}
