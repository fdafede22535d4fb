"""Commands that work on stored files, without torch where they can: plot, info, import, export."""

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path

import h5py
import numpy as np

from landscape.cli.networks import distinct_names
from landscape.surface import Surface

Command = tuple[str, Callable[[argparse.ArgumentParser], None], Callable[[argparse.Namespace], None]]

MESHES = (".vtp", ".stl", ".obj", ".ply", ".vti", ".vtr")


def _plot_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE", help="surfaces, trajectories, or run folders")
    parser.add_argument("--out", type=Path, help="folder for the figures; default: a folder beside the file")
    parser.add_argument("--metric", help="which values; default: the loss")
    parser.add_argument("--log", action="store_true", help="logarithmic scale of the values")
    parser.add_argument("--ceiling", type=float, help="upper end of the vertical axis of 3-D surfaces")
    parser.add_argument(
        "--formats", nargs="+", choices=["html", "png", "svg"], help="default: html, and png and svg if possible"
    )
    parser.add_argument("--together", action="store_true", help="draw several lines (1-D surfaces) in one figure")


def _plot(options: argparse.Namespace) -> None:
    from landscape import figures

    scale = "log" if options.log else "linear"
    jobs: list[tuple[Path, dict]] = []
    if options.together:
        lines = {name: Surface.load(path) for name, path in distinct_names(options.files).items()}
        folder = options.out or _figure_folder(options.files[0])
        metrics = [options.metric] if options.metric else None
        jobs.append((folder, {"lines": figures.plot_line(lines, metrics, scale=scale)}))
    else:
        for stem, path in distinct_names(options.files).items():
            folder = options.out or _figure_folder(path)
            drawn = _figures(path, options.metric, scale, options.ceiling)
            if options.out and len(options.files) > 1:
                drawn = {f"{stem}_{name}": figure for name, figure in drawn.items()}
            jobs.append((folder, drawn))
    for folder, drawn in jobs:
        for file in figures.save_figures(drawn, folder, options.formats):
            print(file)
    missing = figures.browser_missing()
    if missing and not options.formats:
        print(missing)


def _figure_folder(path: Path) -> Path:
    """Choose a folder for figures: a run folder itself, else one beside the file."""
    if path.is_dir():
        return path
    return path.with_suffix("") if path.suffix else path.with_name(f"{path.name}_figures")


def _figures(path: Path, metric: str | None, scale: str, ceiling: float | None) -> dict:
    from landscape import figures

    if path.is_dir():
        from landscape.training import read_history

        return {"history": figures.plot_history(read_history(path))}
    kind = kind_of(path)
    if kind in ("study", "minima", "barriers"):
        raise ValueError(f"{path} holds a {kind}: studies, their minima and barriers are drawn by landscape compare")
    if kind == "trajectory":
        from landscape.trajectory import Trajectory

        trajectory = Trajectory.load(path)
        return {"history": figures.plot_history({"step": trajectory.step, **trajectory.metrics})}
    return figures.figures_of(Surface.load(path), metric=metric, scale=scale, ceiling=ceiling)


def _info_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "files", nargs="+", type=Path, metavar="FILE", help="any file that landscape writes, or a checkpoint"
    )


def _info(options: argparse.Namespace) -> None:
    for path in options.files:
        rows = list(_DESCRIBE[kind_of(path)](path))
        width = max(len(label.lstrip("!")) for label, _ in rows)
        print(path)
        for label, text in rows:
            print(f"{'!' if label.startswith('!') else ' '} {label.lstrip('!'):<{width}}  {text}")


def _describe_surface(path: Path) -> Iterator[tuple[str, str]]:
    from landscape.sanity import findings

    surface = Surface.load(path)
    facts = surface.provenance
    shape = " x ".join(map(str, surface.shape))
    yield "surface", f"{shape} points of {', '.join(surface.values)}"
    labels = [axis.get("label") or "" for axis in facts.get("axes", [])] or [""] * len(surface.axes)
    for (name, axis), label in zip(surface.axes.items(), labels, strict=True):
        yield f"axis {name}", f"{axis[0]:.4g} to {axis[-1]:.4g}, {len(axis)} points; {label}".rstrip("; ")
    settings = facts.get("settings", {})
    if {"model", "n_parameters", "dtype"} <= settings.keys():
        yield "network", f"{settings['model']}, {settings['n_parameters']:,} parameters, {settings['dtype']}"
    if "data" in settings:
        yield "data", "; ".join(f"{name}: {_n_of(entry)}" for name, entry in settings["data"].items())
    if "batch-norm policy" in settings:
        yield "batch norm", settings["batch-norm policy"]
    if "metrics" in settings:
        yield "metrics", "; ".join(f"{name} = {function}" for name, function in settings["metrics"].items())
    if "slice" in facts:
        simple = {key: value for key, value in facts["slice"].items() if isinstance(value, int | float | str)}
        yield "directions", ", ".join(f"{key} {value}" for key, value in simple.items())
    for key in ("imported", "checkpoint", "versions", "machine"):
        if facts.get(key):
            yield key, ", ".join(f"{name} {value}" for name, value in facts[key].items())
    if "created" in facts:
        yield "created", facts["created"]
    for finding in findings(surface):
        yield ("!" if finding.warning else "") + finding.label, finding.text


def _n_of(entry: dict) -> str:
    n = f"{entry['n_samples']:,} of " if "n_samples" in entry else ""
    return f"{n}{entry.get('name', 'unnamed data')}"


def _describe_trajectory(path: Path) -> Iterator[tuple[str, str]]:
    from landscape.trajectory import Trajectory

    trajectory = Trajectory.load(path)
    yield "trajectory", f"{len(trajectory)} checkpoints of {trajectory.p:,} parameters"
    yield "steps", f"{trajectory.step[0]} to {trajectory.step[-1]}"
    for name, values in trajectory.metrics.items():
        yield name, f"{values[0]:.4g} to {values[-1]:.4g}"
    for key, value in trajectory.info.items():
        yield from _describe_info(key, value)


def _describe_checkpoint(path: Path) -> Iterator[tuple[str, str]]:
    from landscape.checkpoint import read

    checkpoint = read(path)
    n = sum(tensor.numel() for tensor in checkpoint.state.values())
    yield "checkpoint", f"{len(checkpoint.state)} tensors, {n:,} numbers"
    if checkpoint.name:
        arguments = ", ".join(f"{key}={value}" for key, value in checkpoint.arguments.items())
        yield "network", f"{checkpoint.name}({arguments})"
    for key, value in checkpoint.info.items():
        yield from _describe_info(key, value)


def _describe_study(path: Path) -> Iterator[tuple[str, str]]:
    from landscape.study import Study

    study = Study.load(path)
    yield "study", f"{len(study)} runs, {study.diverged.sum()} diverged"
    yield from _describe_provenance(study.provenance)
    for name, losses in study.groups().items():
        finite = losses[np.isfinite(losses)]
        text = f"{len(losses)} runs of {study.settings[name]['epochs evaluated'][-1]} epochs"
        if len(finite):
            text += f"; final loss {finite.min():.4g} to {finite.max():.4g}, median {np.median(finite):.4g}"
        yield name, text


def _describe_minima(path: Path) -> Iterator[tuple[str, str]]:
    from landscape.catalog import Catalog

    catalog = Catalog.load(path)
    yield "minima", f"{catalog.n_minima} distinct ones, from {len(catalog)} runs"
    yield from _describe_provenance(catalog.provenance)
    yield "ends", ", ".join(f"{n} {kind}" for kind, n in catalog.kinds().items())
    yield "the same", catalog.relation
    for name in catalog.settings:
        hits = catalog.hits(name)
        yield name, f"{hits.sum()} runs at {(hits > 0).sum()} minima"


def _describe_barriers(path: Path) -> Iterator[tuple[str, str]]:
    from landscape.barriers import Barriers

    found = Barriers.load(path)
    yield "barriers", f"between {len(found.losses)} networks, {len(found.t)} points on each path"
    yield "aligned", "closest symmetric copies" if found.aligned else "no, the networks as they are"
    yield "loss", f"{found.losses.min():.4g} to {found.losses.max():.4g}"
    if len(found.losses) > 1:
        pairs = found.barriers[~np.eye(len(found.losses), dtype=bool)]
        yield "height", f"{pairs.min():.4g} to {pairs.max():.4g}, median {np.median(pairs):.4g}"


def _describe_provenance(facts: dict) -> Iterator[tuple[str, str]]:
    for key in ("info", "settings", "versions", "created"):
        if key in facts:
            yield from _describe_info(key, facts[key])


def _describe_info(key: str, value: object) -> Iterator[tuple[str, str]]:
    """Say what a JSON value holds: first and last of a list of numbers, the entries of a mapping, else itself."""
    if isinstance(value, dict):
        for name, entry in value.items():
            yield from _describe_info(f"{key}: {name}", entry)
    elif isinstance(value, list) and len(value) > 4:
        yield key, f"{value[0]} to {value[-1]}, {len(value)} entries"
    else:
        yield key, str(value)


def _import_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "files", nargs="+", type=Path, metavar="FILE",
        help="a surface file of Li et al.'s code, or the checkpoints of one run in order (for a trajectory)",
    )  # fmt: skip
    parser.add_argument("--out", type=Path, required=True, help="HDF5 file of ours to write")
    parser.add_argument("--model", help="for checkpoints: package.module:function that returns the network")


def _import(options: argparse.Namespace) -> None:
    if options.out.exists():
        raise ValueError(f"{options.out} exists: choose another name, or delete it first")
    if len(options.files) == 1 and h5py.is_hdf5(options.files[0]):
        from landscape.interchange import read_li_surface

        surface = read_li_surface(options.files[0])
        surface.save(options.out)
        shape = " x ".join(map(str, surface.shape))
        print(f"{shape} points of {', '.join(surface.values)} in {options.out}")
        return
    from landscape.cli.networks import import_function
    from landscape.trajectory import gather

    model = None if options.model is None else import_function(options.model)()
    trajectory = gather(options.files, options.out, model=model)
    print(f"{len(trajectory)} checkpoints of {trajectory.p:,} parameters in {options.out}")


def _export_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", type=Path, metavar="SURFACE", help="a surface file")
    parser.add_argument(
        "target", type=Path, metavar="TARGET",
        help=".vtp (ParaView), .stl, .obj, .ply (printing, Blender), .vti, .vtr (volumes), or .h5 for Li et al.'s "
        "format, with direction and projection files beside it",
    )  # fmt: skip
    parser.add_argument("--metric", default="loss", help="which values become the height")
    parser.add_argument("--log", action="store_true", help="logarithmic height")
    parser.add_argument("--height", type=float, help="height of the mesh as a fraction of its longer side")
    parser.add_argument("--ceiling", type=float, help="cut the height off above this value")


def _export(options: argparse.Namespace) -> None:
    suffix = options.target.suffix.lower()
    if options.target.resolve() == options.file.resolve():
        raise ValueError(f"{options.target} is the surface itself: choose another name")
    if suffix in MESHES:
        from landscape.mesh import export_mesh

        export_mesh(
            Surface.load(options.file),
            options.target,
            options.metric,
            scale="log" if options.log else "linear",
            height=options.height,
            ceiling=options.ceiling,
        )
        print(options.target)
        return
    if suffix not in (".h5", ".hdf5"):
        raise ValueError(f"{options.target}: expected one of {', '.join(MESHES)}, or .h5 for Li et al.'s format")
    from landscape.interchange import write_li_directions, write_li_projection, write_li_surface

    surface = Surface.load(options.file, vectors=True)
    directions = options.target.with_name(f"{options.target.stem}_directions.h5")
    shapes = [(name, tuple(shape)) for name, shape in surface.provenance.get("parameters", [])]
    known = surface.directions is not None and bool(shapes)
    left_out = write_li_surface(surface, options.target, str(directions) if known else "")
    print(options.target)
    if surface.directions is not None and known:
        facts = surface.provenance["slice"]
        theirs = {f"{key}_": facts[key] for key in ("explained_variance_ratio", "singular_values") if key in facts}
        write_li_directions(directions, surface.directions, shapes, theirs)
        print(directions)
    for name, run in surface.trajectories.items():
        if run.coordinates.shape[1] == 2:
            projection = options.target.with_name(f"{options.target.stem}_projection_{name}.h5")
            write_li_projection(projection, run.coordinates)
            print(projection)
    if left_out:
        print(f"left out, since the format has no place for it: {', '.join(left_out)}")


def kind_of(path: Path) -> str:
    """Tell what a file holds: one of `_DESCRIBE`, `"checkpoint"` for everything that is not HDF5.

    Raises:
        FileNotFoundError, ValueError: There is no such file, or it is HDF5 but not of landscape.
    """
    from landscape.storage import read_hdf5

    if path.is_file() and not h5py.is_hdf5(path) and path.suffix not in (".h5", ".hdf5"):
        return "checkpoint"
    if not path.exists() and Path(f"{path}.parts").is_dir():
        return "trajectory"  # still being recorded
    with read_hdf5(path) as file:
        kind = str(file.attrs["landscape_kind"])
    if kind not in _DESCRIBE:
        raise ValueError(f"{path} holds a {kind}, expected one of: {', '.join(_DESCRIBE)}")
    return kind


_DESCRIBE = {
    "surface": _describe_surface,
    "trajectory": _describe_trajectory,
    "checkpoint": _describe_checkpoint,
    "study": _describe_study,
    "minima": _describe_minima,
    "barriers": _describe_barriers,
}


COMMANDS: dict[str, Command] = {
    "plot": ("draw stored surfaces, trajectories and training histories", _plot_options, _plot),
    "info": ("say what is in a file", _info_options, _info),
    "import": ("turn files of other programs into ours", _import_options, _import),
    "export": ("turn a surface into files of other programs", _export_options, _export),
}
