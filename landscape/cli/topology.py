"""The command that counts the minima of stored surfaces, without torch: topology."""

import argparse
import csv
from collections.abc import Callable, Sequence
from pathlib import Path

from landscape.cli.networks import distinct_names
from landscape.surface import Surface

Command = tuple[str, Callable[[argparse.ArgumentParser], None], Callable[[argparse.Namespace], None]]


def _topology_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE", help="surfaces of one, two or three axes")
    parser.add_argument("--out", type=Path, help="folder for figures and tables; default: a folder beside the file")
    parser.add_argument("--metric", default="loss", help="which values")
    parser.add_argument(
        "--neighborhood", choices=["full", "axis"], default="full",
        help="neighbors of a point: all around it, or those along the axes",
    )  # fmt: skip
    parser.add_argument(
        "--border", choices=["exclude", "include"], default="exclude",
        help="whether a minimum that touches the border, or an unknown point, counts",
    )  # fmt: skip
    parser.add_argument("--threshold", type=float, help="persistence above which a minimum counts; default: its noise")
    parser.add_argument("--log", action="store_true", help="logarithmic scale of the values")
    parser.add_argument("--ceiling", type=float, help="upper end of contours and 3-D surfaces")
    parser.add_argument(
        "--formats", nargs="+", choices=["html", "png", "svg"], help="default: html, and png and svg if possible"
    )


def _topology(options: argparse.Namespace) -> None:
    from landscape import figures
    from landscape.figures.topology import topology_figures
    from landscape.topology import analyze

    for stem, path in distinct_names(options.files).items():
        surface = Surface.load(path)
        found = analyze(surface, options.metric, options.neighborhood, options.border, options.threshold)
        print(f"{path}\n{found.describe()}")
        folder = options.out or path.with_name(f"{path.stem}_topology")
        before = f"{stem}_" if options.out and len(options.files) > 1 else ""
        table = folder / f"{before}minima.csv"
        _write_csv(found.table(), table)
        print(table)
        drawn = topology_figures(surface, found, "log" if options.log else "linear", options.ceiling)
        drawn = {f"{before}{name}": figure for name, figure in drawn.items()}
        for file in figures.save_figures(drawn, folder, options.formats):
            print(file)
    missing = figures.browser_missing()
    if missing and not options.formats:
        print(missing)


def _write_csv(rows: Sequence[dict], path: Path) -> None:
    from landscape.storage import replacing

    with replacing(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]) if rows else ["minimum"])
        writer.writeheader()
        writer.writerows(rows)


COMMANDS: dict[str, Command] = {
    "topology": ("count the local minima of stored surfaces", _topology_options, _topology),
}
