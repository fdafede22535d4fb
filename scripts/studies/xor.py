"""Compare the minima that optimizers find on the exclusive or, with the smallest network that solves it.

A 2-2-1 network (9 parameters), squared error and a weight penalty, on the four corners of the square. Each optimizer
trains from the same seeds (normal parameters); each end is polished, certified, and identified with the symmetric
copies of others: 2! exchanges of the hidden units, and for tanh their 2^2 signs. For each optimizer: minima found,
coverage, the bound for the number not seen, and for each minimum missing from its list how likely it is to miss it
by chance, if it hit that minimum as often as all optimizers together do.

The corners have symmetries of their own: exchanging the inputs or negating one (which negates the target) maps a
minimum to one of equal loss that no symmetry of the network reaches: another function. `orbits` counts minima up to
these, too.

Studies and catalogs are kept; a second call goes on where the first one stopped.

    python scripts/studies/xor.py [--quick] [--runs 500] [--workers 2] [--out results/studies]
"""

import argparse
import itertools
import json
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from landscape.catalog import Catalog
from landscape.figures import plot_rarefaction, save_figures
from landscape.minima.survey import survey_minima
from landscape.restarts import run_restarts
from landscape.statistics import Shared, rarefaction, shared, unseen, write_csv
from landscape.storage import replacing
from landscape.symmetry import Matcher, Symmetries, symmetries

INPUTS = torch.tensor([[-1.0, -1], [-1, 1], [1, -1], [1, 1]])
TARGETS = torch.tensor([[-1.0], [1], [1], [-1]])
ACTIVATIONS = {"tanh": nn.Tanh, "sigmoid": nn.Sigmoid}
PENALTY = 1e-2
SAME = 1e-3  # relative distance
N_PERMUTATIONS = 2000
NOTES = {
    "tanh": ["", "The minimum with objective 1 is the network whose parameters are all zero."],
    "sigmoid": [
        "",
        "Two orbits have equal objectives and different Hessians. Since sigma(-z) = 1 - sigma(z), negating a unit (its "
        "weights, its bias and its output weight) and adding its output weight to the output bias changes no function. "
        "It changes the penalty and is no symmetry of the objective; but where the output bias is 0 and the output "
        "weights are opposite, as there, negating both units changes not even the penalty, and gives a minimum again. "
        "The map is not orthogonal, so the Hessian is another one; they are counted as two.",
    ],
}
OPTIMIZERS = {
    "gd": {"learning_rate": 0.1, "epochs": 500},
    "momentum": {"learning_rate": 0.05, "epochs": 500},
    "rmsprop": {"learning_rate": 0.01, "epochs": 500},
    "adam": {"learning_rate": 0.05, "epochs": 500},
    "normalized": {"learning_rate": 0.01, "epochs": 500},
}


def squares(output: Tensor, target: Tensor) -> Tensor:
    """Return the mean squared error."""
    return (output - target).square().mean()


def network(activation: str, seed: int) -> nn.Module:
    """Return the untrained network: every weight and bias is normal."""
    generator = torch.Generator().manual_seed(seed)
    model = nn.Sequential(nn.Linear(2, 2), ACTIVATIONS[activation](), nn.Linear(2, 1))
    for parameter in model.parameters():
        nn.init.normal_(parameter, generator=generator)
    return model


def find(activation: str, arguments: argparse.Namespace) -> Catalog:
    """Train, polish, certify and identify."""
    folder = arguments.out / "xor_runs"
    make, data = partial(network, activation), (INPUTS, TARGETS)
    settings = {name: {**entry, "evaluate_every": entry["epochs"]} for name, entry in OPTIMIZERS.items()}
    study = run_restarts(
        *(make, data, folder / f"{activation}.h5"),
        **{"loss": squares, "penalty": PENALTY, "settings": settings, "seeds": arguments.runs},
        workers=arguments.workers,
    )
    path = folder / f"{activation}_minima.h5"
    options = {"loss": squares, "tolerance": SAME, "workers": arguments.workers}
    return survey_minima(study, make(0), data, path, batch=100, **options)


def data_symmetries(thetas: Tensor) -> Tensor:
    """Return the parameters of the networks that the symmetries of the data make of these, `[8, n, 9]`.

    Exchanging the inputs leaves the targets as they are; negating one input negates them, so that the output layer is
    negated too.
    """
    first, rest, last = thetas[:, :4].reshape(-1, 2, 2), thetas[:, 4:6], thetas[:, 6:]
    images = []
    for order, signs in itertools.product(([0, 1], [1, 0]), itertools.product((1, -1), repeat=2)):
        turned = first[:, :, order] * torch.tensor(signs)
        images.append(torch.cat([turned.reshape(-1, 4), rest, last * signs[0] * signs[1]], dim=1))
    return torch.stack(images)


def orbits(thetas: Tensor, of_network: Symmetries) -> np.ndarray:
    """Return which minima the symmetries of the data and of the network together make one, `[n]` numbers."""
    matcher, orbit = Matcher(of_network), np.full(len(thetas), -1)
    scale = float(thetas.norm(dim=1).median())
    for i in range(len(thetas)):
        if orbit[i] >= 0:
            continue
        orbit[i] = orbit.max() + 1
        for image in data_symmetries(thetas[i : i + 1])[:, 0]:
            orbit[matcher.distances(image, thetas) <= SAME * scale] = orbit[i]
    return orbit


def measure(activation: str, catalog: Catalog) -> tuple[list[dict], list[dict], Shared]:
    """Return a row per optimizer, a row per minimum, and what optimizers share."""
    minima = catalog.representatives()
    thetas = torch.tensor(catalog.thetas())[minima]
    orbit = orbits(thetas, symmetries(network(activation, 0), INPUTS))
    model, outputs = network(activation, 0).double(), []
    for theta in thetas:
        nn.utils.vector_to_parameters(theta, model.parameters())
        outputs.append(model(INPUTS.double()).detach().flatten().tolist())
    found = [
        {"activation": activation, **row, "orbit": int(orbit[i]), "outputs": " ".join(f"{y:+.3f}" for y in outputs[i])}
        for i, row in enumerate(catalog.table())
    ]
    pooled, rows = catalog.hits(), []
    for name in catalog.settings:
        hits = catalog.hits(name)
        estimate, n = unseen(hits), int(hits.sum())
        missing = np.flatnonzero(hits == 0)
        chance = (1 - pooled / pooled.sum()) ** n
        rows.append(
            {
                "activation": activation,
                "optimizer": name,
                "runs": int((catalog.names == name).sum()),
                "certified minima": n,
                "distinct": int((hits > 0).sum()),
                "orbits": len(set(orbit[hits > 0])),
                "hit once": estimate.singletons,
                "coverage": estimate.coverage.value,
                "coverage lower": estimate.coverage.lower,
                "coverage upper": estimate.coverage.upper,
                "Chao1": estimate.number.value,
                "Chao1 lower": estimate.number.lower,
                "Chao1 upper": estimate.number.upper,
                "missing": " ".join(map(str, missing)),
                "hits by others of the missing": int(pooled[missing].sum()),
                "expected missing by chance": float(chance.sum()),
                "smallest chance of a missing one": float(chance[missing].min()) if len(missing) else 1.0,
            }
        )
    return rows, found, shared(catalog.labels, catalog.names.tolist())


def by_chance(catalog: Catalog) -> dict[str, float]:
    """Compare with what there would be if optimizers did not matter: their names are permuted within each seed.

    `missing`: number of pairs of an optimizer and a minimum that it did not find. `frequencies`: chi-squared of the
    hits of optimizers and minima. `one`: the largest part that one minimum has in it, and which minimum that is.
    """
    names, n_minima = catalog.columns["setting"], catalog.n_minima
    labels = np.full((catalog.columns["seed"].max() + 1, len(catalog.settings)), -1)
    labels[catalog.columns["seed"], names] = catalog.labels

    def statistics(labels: np.ndarray) -> tuple[float, float, float, int]:
        hits = np.array([np.bincount(own[own >= 0], minlength=n_minima) for own in labels.T])
        expected = hits.sum(axis=1, keepdims=True) * hits.sum(axis=0) / hits.sum()
        parts = ((hits - expected) ** 2 / expected).sum(axis=0)
        return float((hits == 0).sum()), float(parts.sum()), float(parts.max()), int(parts.argmax())

    rng, seen = np.random.default_rng(0), np.array(statistics(labels))
    drawn = np.array([statistics(rng.permuted(labels, axis=1)) for _ in range(N_PERMUTATIONS)])
    p = (1 + (drawn >= seen * (1 - 1e-9)).sum(axis=0)) / (1 + N_PERMUTATIONS)
    found = {"missing": seen[0], "expected missing": drawn[:, 0].mean(), "p missing": p[0]}
    found |= {"p frequencies": p[1], "p one": p[2], "most unequal": seen[3]}
    return {name: float(value) for name, value in found.items()}


def text(arguments: argparse.Namespace, results: dict[str, tuple]) -> str:
    """Return the study as Markdown."""
    lines = [
        "# The exclusive or with a 2-2-1 network",
        "",
        f"`python scripts/studies/xor.py{' --quick' * arguments.quick}`",
        "",
        f"{arguments.runs} runs of each optimizer from the same seeds, normal initial parameters; mean squared error "
        f"on the corners (+-1, +-1) with targets +-1, penalty {PENALTY:g}/2 ||theta||^2. Each end is polished to a "
        "gradient norm of 1e-10 and certified by the Hessian's eigenvalues.",
        "",
        "The square has symmetries that the network does not know: exchanging the inputs, or negating one together "
        "with the output. They map minima to minima of exactly the same loss that compute other functions on the "
        "corners, as the outputs below show. These are counted apart, and joined in the column `orbit`.",
    ]
    for activation, (rows, minima, overlap, catalog) in results.items():
        kinds = ", ".join(f"{n} {kind}" for kind, n in catalog.kinds().items())
        lines += ["", f"## {activation}", "", f"{len(catalog)} runs: {kinds}. {catalog.relation[0].upper()}"]
        lines[-1] += f"{catalog.relation[1:]}: {catalog.n_minima} distinct minima."
        head = ["optimizer", "minima / runs", "distinct", "orbits", "coverage", "all minima by Chao1", "missing"]
        head += ["missing by chance", "smallest chance of a missing one"]
        lines += ["", "| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
        for row in rows:
            cells = [row["optimizer"], f"{row['certified minima']} / {row['runs']}", row["distinct"], row["orbits"]]
            cells += [f"{row['coverage']:.4f} ({row['coverage lower']:.4f} to {row['coverage upper']:.4f})"]
            cells += [f"{row['Chao1']:.1f} ({row['Chao1 lower']:.1f} to {row['Chao1 upper']:.1f})"]
            cells += [row["missing"] or "none", f"{row['expected missing by chance']:.2f}"]
            cells += [f"{row['smallest chance of a missing one']:.2g}" if row["missing"] else ""]
            lines.append("| " + " | ".join(map(str, cells)) + " |")
        chance = by_chance(catalog)
        lines += ["", conclusion(rows, len(minima)), ""]
        lines += [
            f"Pairs of an optimizer and a minimum that it did not find: {chance['missing']:.0f}; if optimizers were "
            f"alike, {chance['expected missing']:.1f} (p = {chance['p missing']:.2g}). That all hit the minima equally "
            f"often: p = {chance['p frequencies']:.2g} by the chi-squared of all minima, p = {chance['p one']:.2g} by "
            f"that of the most unequal one, minimum {chance['most unequal']:.0f}. By {N_PERMUTATIONS:,} permutations "
            "of the optimizers' names within each seed.",
            *NOTES[activation],
        ]
        names = catalog.settings
        lines += ["", "| minimum | orbit | objective | smallest eigenvalue | outputs on the corners | hits: "]
        lines[-1] += " | ".join(names) + " |"
        lines += ["|" + " --- |" * (5 + len(names))]
        for row in minima:
            cells = [row["minimum"], row["orbit"], f"{row['objective']:.9f}", f"{row['smallest eigenvalue']:.2e}"]
            cells += [row["outputs"], *(row[f"hits of {name}"] for name in names)]
            lines.append("| " + " | ".join(map(str, cells)) + " |")
        lines += ["", "Overlap of the hit frequencies (Morisita's index, 1: the same):", ""]
        lines += [f"- {pair.describe()}" for pair in overlap.overlaps]
    return "\n".join(lines) + "\n"


def conclusion(rows: list[dict], n_minima: int) -> str:
    """Say whether all optimizers found the same minima, and what explains those that are missing."""
    lacking = [row for row in rows if row["missing"]]
    if not lacking:
        return f"Every optimizer found all {n_minima} minima."
    parts = [
        f"{row['optimizer']} lacks {len(row['missing'].split())} (all others together hit them "
        f"{row['hits by others of the missing']} times; {row['expected missing by chance']:.1f} expected by chance)"
        for row in lacking
    ]
    complete = [row["optimizer"] for row in rows if not row["missing"]]
    return f"{', '.join(complete) or 'No optimizer'} found all {n_minima}; {'; '.join(parts)}."


def main() -> None:
    """Run the study and write its tables and figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=500, help="of each optimizer")
    parser.add_argument("--workers", type=int, default=1, help="processes")
    parser.add_argument("--quick", action="store_true", help="small: does everything run?")
    parser.add_argument("--out", type=Path, default=Path("results/studies"))
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.runs = 20
    results, figures = {}, {}
    for activation in ACTIVATIONS:
        catalog = find(activation, arguments)
        results[activation] = (*measure(activation, catalog), catalog)
        figures[f"xor_{activation}"] = plot_rarefaction({n: rarefaction(catalog.hits(n)) for n in catalog.settings})
    rows = [row for result in results.values() for row in result[0]]
    write_csv(arguments.out / "xor.csv", rows)
    contents = {
        "xor.md": text(arguments, results),
        "xor.json": json.dumps(
            {
                "settings": {"runs": arguments.runs, "penalty": PENALTY, "optimizers": OPTIMIZERS, "tolerance": SAME},
                "optimizers": rows,
                "minima": [row for result in results.values() for row in result[1]],
                "by chance": {name: by_chance(result[3]) for name, result in results.items()},
            },
            indent=1,
        ),
    }
    for name, content in contents.items():
        with replacing(arguments.out / name) as temporary:
            temporary.write_text(content, encoding="utf-8")
    save_figures(figures, arguments.out, ("html", "png"))


if __name__ == "__main__":
    main()
