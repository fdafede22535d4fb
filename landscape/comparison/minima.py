"""What the runs of a study found: kinds of critical points, distinct minima, and how they are connected."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from landscape.barriers import Barriers, disconnectivity
from landscape.catalog import Catalog
from landscape.comparison.finding import CHAPTERS, Finding, number, with_interval
from landscape.comparison.training import scale_of
from landscape.figures.connections import plot_connections
from landscape.figures.count_tolerance import plot_count_tolerance
from landscape.figures.eigenvalues import plot_eigenvalues
from landscape.figures.matrix import plot_matrix
from landscape.figures.rarefaction import plot_rarefaction
from landscape.figures.shared_minima import plot_shared_minima
from landscape.statistics import Unseen, rarefaction, shared, unseen

Array = np.ndarray
_SHOWN = 12  # rows of a table on the page
_STEPS = 60  # tolerances of the table of counts


def barrier_files(path: Path) -> dict[bool, Path]:
    """Return where the barriers between the minima of a catalog lie: with hidden units as found, and aligned."""
    return {aligned: path.with_name(f"{path.stem}.barriers{'_aligned' * aligned}.h5") for aligned in (False, True)}


def what_they_found(catalog: Catalog, prefix: str, level: float) -> Iterator[Finding]:
    """Yield kinds, distinct minima, their number against the tolerance, and what was not seen.

    Args:
        catalog: Of one study.
        prefix: Before names and titles; empty where there is one catalog.
        level: Of the intervals.
    """
    yield _kinds(catalog, prefix)
    if catalog.n_minima:
        yield _distinct(catalog, prefix)
        yield _count(catalog, prefix)
        yield from _unseen(catalog, prefix, level)


def how_found_compare(catalog: Catalog, prefix: str, level: float) -> Iterator[Finding]:
    """Yield which minima settings share, where there are several."""
    if len(catalog.settings) < 2 or not catalog.n_minima:
        return
    found = shared(catalog.labels, catalog.names.tolist(), level=level)
    rows = found.overlap_rows()
    shown = [
        {
            "settings": f"{o.first} and {o.second}",
            "found by both": str(o.n_shared),
            "by the first only": str(o.only_first),
            "by the second only": str(o.only_second),
            "Morisita's index": with_interval(o.morisita),
        }
        for o in found.overlaps
    ]
    alone = ", ".join(f"{len(found.only_in(name))} by {name} only" for name in found.groups)
    text = (
        f"Of {len(found.minima)} distinct minima, {len(found.found_by_all())} were found by all settings, {alone}. "
        "Few runs share few minima, however alike the settings are; Morisita's index corrects for that: 0 says that "
        "they have no minimum in common, 1 that they find each with the same probability (intervals by the jackknife)."
    )
    summary = f"{len(found.found_by_all())} of {len(found.minima)} minima found by all settings, {alone}"
    yield Finding(
        *(CHAPTERS[3], f"{_file(prefix)}overlap", f"{prefix}Minima that settings share", text),
        shown=shown,
        tables={f"{_file(prefix)}overlap": rows},
        summary=summary,
    )


def how_minima_are_connected(catalog: Catalog, prefix: str) -> Iterator[Finding]:
    """Yield matrices of barriers and disconnectivity graphs, where the barriers of a catalog were stored beside it.

    Raises:
        ValueError: The stored barriers are those of other minima.
    """
    for aligned, path in barrier_files(catalog.path).items():
        if path.exists():
            yield from _connected(catalog, Barriers.load(path), path, f"{prefix}", aligned)


def _file(prefix: str) -> str:
    return f"{prefix.rstrip(': ')}_" if prefix else ""


def _kinds(catalog: Catalog, prefix: str) -> Finding:
    all_kinds = list(catalog.kinds())
    rows = [{"settings": name, **{k: catalog.kinds(name).get(k, 0) for k in all_kinds}} for name in catalog.settings]
    gtol = catalog.provenance["question"]["gtol"]
    n_certified, n = int((catalog.labels >= 0).sum()), len(catalog)
    text = (
        "From the end of each run that did not diverge, a descent in float64 with the Hessian went on until the "
        f"gradient norm was below {gtol:g} (1 + |loss|), leaving saddles on the way. The smallest eigenvalues of the "
        f"Hessian there decide what it is: {n_certified} of {n} are certified minima."
    )
    if "at infinity" in all_kinds:
        text += " At infinity: the loss falls for ever as the parameters grow, so that there is no minimum to count."
    known = np.isfinite(catalog.columns["smallest"]).any()
    every = [
        {"run": int(catalog.columns["run"][i]), "settings": name, "seed": int(catalog.columns["seed"][i])}
        | {"kind": str(catalog.columns["kind"][i]), "minimum": int(catalog.labels[i])}
        | {
            key: float(catalog.columns[key][i])
            for key in ("loss", "gradient_norm", "smallest", "largest", "tol", "trace")
        }
        | {key: int(catalog.columns[key][i]) for key in ("n_negative", "n_flat", "n_steps", "n_escapes")}
        for i, name in enumerate(catalog.names)
    ]
    words = ", ".join(f"{count} {kind}" for kind, count in catalog.kinds().items())
    return Finding(
        *(CHAPTERS[2], f"{_file(prefix)}kinds", f"{prefix}Minima, saddles, and what is neither", text),
        figure=plot_eigenvalues(catalog) if known else None,
        shown=[{key: str(value) for key, value in row.items()} for row in rows],
        tables={f"{_file(prefix)}kinds": rows, f"{_file(prefix)}points": every},
        summary=f"{prefix}{n} runs polished: {words}",
    )


def _distinct(catalog: Catalog, prefix: str) -> Finding:
    rows = catalog.table()
    found = shared(catalog.labels, catalog.names.tolist())
    most = f" The first {_SHOWN} are listed, all are in the CSV." if len(rows) > _SHOWN else ""
    loss = np.array([row["objective"] for row in rows])
    text = (
        f"{catalog.n_minima} distinct minima among {int((catalog.labels >= 0).sum())} certified ones; two are one if "
        f"they are {catalog.relation}. They are numbered by their loss with the penalty, from {number(loss[0], 6)} to "
        f"{number(loss[-1], 6)}.{most}"
    )
    shown = [{key: number(v) if isinstance(v, float) else str(v) for key, v in row.items()} for row in rows[:_SHOWN]]
    return Finding(
        *(CHAPTERS[2], f"{_file(prefix)}minima", f"{prefix}Distinct minima", text),
        figure=plot_shared_minima(found),
        shown=shown,
        tables={f"{_file(prefix)}minima": rows},
        summary=f"{prefix}{catalog.n_minima} distinct minima; {catalog.relation}",
    )


def _count(catalog: Catalog, prefix: str) -> Finding:
    tolerances = np.geomspace(catalog.tolerance * 1e-6, catalog.tolerance * 100, _STEPS)
    counts = catalog.count_at(tolerances)
    rows = [{"tolerance": float(t), "minima": int(c)} for t, c in zip(tolerances, counts, strict=True)]
    text = (
        f"The number of distinct minima for other tolerances than the {catalog.tolerance:g} used. Two minima are one "
        "if a chain of steps within the tolerance connects them; the bound on the difference of their losses stays. A "
        "long plateau around the mark says that the number does not depend on the choice."
    )
    name = f"{_file(prefix)}count_tolerance"
    title = f"{prefix}Does the number depend on the tolerance?"
    return Finding(CHAPTERS[2], name, title, text, plot_count_tolerance(catalog), (), {name: rows})


def _unseen(catalog: Catalog, prefix: str, level: float) -> Iterator[Finding]:
    hits = {name: catalog.hits(name) for name in catalog.settings}
    if len(hits) > 1:
        hits["all together"] = catalog.hits()
    hits = {name: own for name, own in hits.items() if own.sum() > 1}
    if not hits:
        return
    found = {name: unseen(own, level=level) for name, own in hits.items()}
    curves = {name: rarefaction(own, level=level) for name, own in hits.items() if name != "all together"}
    whole = list(found.values())[-1]
    text = (
        "How many distinct minima fewer runs would have found (exact), and more runs would find (extrapolated); "
        "settings compare fairly at one number of runs. Coverage: the probability that the next run ends in a minimum "
        "already found (Good and Turing, Chao and Jost). All minima: Chao's lower bound for their number, with a "
        f"likelihood interval; no method gives an upper limit without an assumption on the basins. Taken together: "
        f"coverage {with_interval(whole.coverage)}, at least {with_interval(whole.number)} minima."
    )
    rows = [
        {"settings": name, **{key.replace("number", "all_minima"): v for key, v in one.row().items()}}
        for name, one in found.items()
    ]
    curve_rows = [{"settings": name, **row} for name, curve in curves.items() for row in curve.rows()]
    name = f"{_file(prefix)}unseen"
    yield Finding(
        *(CHAPTERS[2], name, f"{prefix}How many were not seen?", text),
        figure=plot_rarefaction(curves) if curves else None,
        shown=[_unseen_row(group, one) for group, one in found.items()],
        tables={name: rows, f"{_file(prefix)}rarefaction": curve_rows} if curve_rows else {name: rows},
        summary=f"{prefix}coverage {with_interval(whole.coverage)}, at least {with_interval(whole.number)} minima",
    )


def _unseen_row(name: str, found: Unseen) -> dict[str, str]:
    return {
        "settings": name,
        "runs": str(found.n_runs),
        "distinct minima": str(found.observed),
        "hit once": str(found.singletons),
        "coverage": with_interval(found.coverage),
        "all minima, at least": with_interval(found.number),
    }


def _connected(catalog: Catalog, barriers: Barriers, path: Path, prefix: str, aligned: bool) -> Iterator[Finding]:
    n = len(barriers.distances)
    _check_same(catalog, barriers, path)
    if n < 2:
        return
    words = "aligned" if aligned else "as found"
    first, second = np.triu_indices(n, 1)
    found, heights = barriers.barriers[first, second], barriers.heights[first, second]
    rows = [
        {"first": int(i), "second": int(j), "barrier": float(b), "highest_loss": float(h), "distance": float(d)}
        for i, j, b, h, d in zip(first, second, found, heights, barriers.distances[first, second], strict=True)
    ]
    how = (
        "of each pair, the symmetric copy of the second network nearest to the first is taken (permutations, signs, "
        "scales of hidden units)"
        if aligned
        else "networks as they were found, hidden units in any order"
    )
    lowest, middle, highest = np.quantile(found, [0, 0.5, 1])
    few = (
        f"the {n} lowest of {catalog.n_minima} distinct minima" if n < catalog.n_minima else f"all {n} distinct minima"
    )
    text = (
        f"Straight paths between {few}, {len(barriers.t)} points each; {how}. The barrier is how far the loss rises "
        f"above the line between its ends: median {number(middle)}, from {number(lowest)} to {number(highest)}."
    )
    stem = f"{_file(prefix)}barriers{'_aligned' * aligned}"
    summary = (
        f"{prefix}barriers between {few}, {words}: median {number(middle)} ({number(lowest)} to {number(highest)})"
    )
    title = f"{prefix}Barriers and distances, hidden units {words}"
    figure = plot_matrix(barriers)
    yield Finding(CHAPTERS[4], stem, title, text, figure, (), {stem: rows}, summary)
    tree = disconnectivity(barriers.losses, barriers.heights)
    top = number(tree.heights[-1]) if len(tree.heights) else "-"
    text = (
        "Disconnectivity graph: two minima are in one branch at a loss if a chain of straight paths between minima "
        f"stays below it; hidden units {words}. Straight paths bound the true saddles from above: branches may join "
        f"lower, never higher. The last ones join at a loss of {top}."
    )
    stem = f"{_file(prefix)}connections{'_aligned' * aligned}"
    figure = plot_connections(tree, scale=scale_of([np.concatenate([tree.losses, tree.heights])]))
    merges = [
        {"node": n + k, "first": int(a), "second": int(b), "loss": float(tree.heights[k])}
        for k, (a, b) in enumerate(tree.merges)
    ]
    title = f"{prefix}Disconnectivity graph, hidden units {words}"
    yield Finding(CHAPTERS[4], stem, title, text, figure, (), {stem: merges} if merges else {})


def _check_same(catalog: Catalog, barriers: Barriers, path: Path) -> None:
    """Refuse barriers of minima that the catalog does not have any more, such as after another tolerance."""
    rows = catalog.representatives()[: len(barriers.distances)]
    own = catalog.provenance["settings"]["batch-norm policy"] != "no batch norm in the model"
    losses = catalog.columns["loss"][rows]
    same = len(rows) == len(barriers.distances) and (own or np.allclose(barriers.losses, losses, rtol=1e-4, atol=1e-9))
    if not same:
        raise ValueError(f"{path} holds barriers of other minima: run `landscape minima` with --barriers again")
