"""What was run, how it ended, and how the settings compare."""

import re
from collections.abc import Iterator, Mapping

import numpy as np

from landscape.comparison.finding import CHAPTERS, Finding, number, p_value, with_interval
from landscape.comparison.runs import Quantity, Runs
from landscape.contents import check_value
from landscape.figures.distributions import plot_distributions
from landscape.figures.loss_curves import plot_loss_curves, quartile_curves
from landscape.figures.pairwise import plot_pairwise
from landscape.figures.style import is_share, unit_factor
from landscape.statistics import Comparison, Estimate, Sample, Spread, compare, spread, summarize
from landscape.study import Study

Array = np.ndarray
_DECADES = 1.5  # of values, from which on their axis is logarithmic
_WRITTEN = 6  # pairs that are written out below a figure
_SETTINGS = ("optimizer", "learning_rate", "options", "batch_size", "epochs", "schedule", "batch_order", "penalty")


def what_was_run(runs: Runs) -> Iterator[Finding]:
    """Yield the settings, and the rows of all runs."""
    entries = [entry for study in runs.studies.values() for entry in study.settings.values()]
    rows = []
    for i, (name, entry) in enumerate(zip(runs.groups, entries, strict=True)):
        row = {key.replace("_", " "): entry[key] for key in _SETTINGS if key in entry}
        row["batch size"] = entry.get("batch_size") or "all"
        row["options"] = ", ".join(f"{key}={value}" for key, value in entry.get("options", {}).items()) or "none"
        rows.append({"settings": name, **row, "runs": int((runs.group == i).sum())})
    varied = [key for key in rows[0] if key in ("settings", "runs") or len({str(row[key]) for row in rows}) > 1]
    fixed = ", ".join(f"{key} {rows[0][key]}" for key in rows[0] if key not in varied)
    what = "\n".join(_describe(name if len(runs.studies) > 1 else "", study) for name, study in runs.studies.items())
    text = f"{what}\nThe same for all runs: {fixed}." if fixed else what
    shown = [{key: _text(row[key]) for key in varied} for row in rows]
    tables = {"settings": rows, "runs": runs.rows()}
    n = len(runs.seed)
    yield Finding(
        CHAPTERS[0], "settings", "Settings", text, None, shown, tables, f"{n} runs with {len(rows)} settings; {what}"
    )


def how_runs_ended(runs: Runs) -> Iterator[Finding]:
    """Yield the curves of loss and test loss, and a table of the ends."""
    shown, rows = [], []
    norm = np.concatenate([study.gradient_norm for study in runs.studies.values()])
    lost = np.concatenate([study.diverged for study in runs.studies.values()])
    loss = next(q for q in runs.quantities if q.name == "loss")
    for i, name in enumerate(runs.groups):
        mine = runs.group == i
        losses, norms = loss.values[mine & ~lost], norm[mine & ~lost]
        low, middle, high = np.quantile(losses, [0, 0.5, 1]) if len(losses) else [np.nan] * 3
        row = {"settings": name, "runs": int(mine.sum()), "diverged": int(lost[mine].sum())}
        ends = {"median loss": middle, "lowest loss": low, "highest loss": high}
        rows.append({**row, **ends, "median gradient norm": float(np.median(norms)) if len(norms) else np.nan})
        shown.append({key: number(v) if isinstance(v, float) else str(v) for key, v in rows[-1].items()})
    text = f"{int(lost.sum())} of {len(lost)} runs diverged: their loss became infinite or undefined. A gradient norm "
    text += "(of the training loss with its penalty) far above zero says that a run had not arrived at a minimum."
    line = "; ".join(f"{row['settings']} {row['median loss']}" for row in shown)
    yield Finding(
        CHAPTERS[1], "ends", "The ends of the runs", text, None, shown, {"ends": rows},
        f"{int(lost.sum())} diverged; median final loss: {line}",
    )  # fmt: skip
    for metric in ("loss", "test_loss"):
        curves = _curves(runs, metric)
        if curves:
            yield _curves_finding(curves, metric)


def how_settings_compare(runs: Runs, level: float) -> Iterator[Finding]:
    """Yield distributions, tests and effects of each quantity, and the answer whether the ends are nearly equal."""
    for quantity in runs.quantities:
        values = runs.values(quantity)
        if values:
            yield from _quantity_findings(runs, quantity, values, level)
    nearly = _spread_finding(runs, level)
    if nearly is not None:
        yield nearly


def _describe(name: str, study: Study) -> str:
    facts, info = study.provenance["settings"], study.provenance.get("info", {})
    data = "; ".join(f"{split} data {d['name']}, {d['n_samples']:,} samples" for split, d in facts["data"].items())
    model = facts["model"]
    if info:
        check_value(info, {"model": {"name": str, "arguments": dict}}, f"{study.path}: provenance, info")
        arguments = ", ".join(f"{key}={value}" for key, value in info["model"]["arguments"].items())
        model = f"{info['model']['name']}({arguments})"
    head = f"{name}: " if name else ""
    loss = re.sub(r" \([0-9a-f]{8}\)$", "", str(facts["metrics"]["loss"]))  # without the digest of its code
    made = f"{study.provenance['created'][:10]} by landscape {study.provenance['versions']['landscape']}"
    return f"{head}{model} with {facts['n_parameters']:,} parameters; {data}; loss {loss}; {made}."


def _text(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _curves(runs: Runs, metric: str) -> dict[str, tuple[Array, Array]]:
    curves, i = {}, 0
    for study in runs.studies.values():
        for k, entry in enumerate(study.settings.values()):
            name, i = runs.groups[i], i + 1
            mine = study.setting == k
            if metric in study.curves and mine.any():
                epochs = np.array(entry["epochs evaluated"])
                curves[name] = epochs, study.curves[metric][mine][:, : len(epochs)]
    return curves


def _curves_finding(curves: Mapping[str, tuple[Array, Array]], metric: str) -> Finding:
    figure = plot_loss_curves(curves, metric, scale_of([values for _, values in curves.values()]))
    rows: list[dict[str, object]] = []
    for name, (epochs, values) in curves.items():
        for epoch, low, middle, high in zip(epochs, *quartile_curves(values), strict=True):
            row = {"settings": name, "epoch": int(epoch), "median": float(middle)}
            rows.append({**row, "lower quartile": float(low), "upper quartile": float(high)})
    words = metric.replace("_", " ")
    text = f"The {words} of all runs, without the penalty: median and middle half, diverged runs counting as the worst."
    return Finding(
        CHAPTERS[1],
        f"{metric}_curves",
        f"{words.capitalize()} during training",
        text,
        figure,
        (),
        {f"{metric}_curves": rows},
    )


def scale_of(values: list[Array]) -> str:
    """Return the scale that shows values best: logarithmic for positive ones that span decades."""
    drawn = np.concatenate([np.ravel(array) for array in values])
    drawn = drawn[np.isfinite(drawn)]
    spans = len(drawn) and drawn.min() > 0 and np.log10(drawn.max() / drawn.min()) > _DECADES
    return "log" if spans else "linear"


def _quantity_findings(runs: Runs, quantity: Quantity, values: dict[str, Array], level: float) -> Iterator[Finding]:
    name, words = quantity.name, quantity.name.replace("_", " ")
    title = words[0].upper() + words[1:]
    figure = plot_distributions(values, name, "linear" if is_share(name) else scale_of(list(values.values())), level)
    samples = summarize(values, level=level)
    shown = [_sample_row(sample, unit_factor(name)) for sample in samples]
    text = f"{quantity.words} Medians with {100 * level:.4g} % bootstrap intervals (BCa)."
    tables = {name: [sample.row() for sample in samples]}
    summary = f"{words}: " + "; ".join(f"{row['settings']} {row['median']}" for row in shown)
    if len(values) < 2:
        yield Finding(CHAPTERS[3], name, title, text, figure, shown, tables, summary)
        return
    pairs = runs.paired(quantity)
    found = compare(pairs or values, better=quantity.better or "lower", paired=pairs is not None, level=level)
    lines = _pair_lines(found, quantity.better)
    method = _method(found, None if pairs is None else len(next(iter(pairs.values()))))
    summary = "\n  ".join([summary, *lines[:_WRITTEN]])
    if len(values) == 2 or quantity.better is None:
        text = "\n".join([f"{text} {method}", *lines[:_WRITTEN]])
        tables[f"{name}_pairs"] = found.rows()
        yield Finding(CHAPTERS[3], name, title, text, figure, shown, tables, summary)
        return
    yield Finding(CHAPTERS[3], name, title, text, figure, shown, tables, summary)
    text = "\n".join([method, *lines[:_WRITTEN]])
    name = f"{name}_pairs"
    yield Finding(CHAPTERS[3], name, f"{title}, two at a time", text, plot_pairwise(found), (), {name: found.rows()})


def _sample_row(sample: Sample, factor: float) -> dict[str, str]:
    unit = " %" if factor > 1 else ""
    middle, width = (
        Estimate(factor * e.value, factor * e.lower, factor * e.upper, e.level)
        for e in (sample.median, sample.quartile_range)
    )
    return {
        "settings": sample.name,
        "runs": str(sample.n_runs),
        "diverged": str(sample.n_diverged),
        "median": with_interval(middle, 4) + unit,
        "quartile distance": with_interval(width) + unit,
        "range": f"{number(factor * sample.lowest)} to {number(factor * sample.highest)}{unit}",
    }


def _method(found: Comparison, n_pairs: int | None) -> str:
    n = len(found.pairs)
    family = (
        f"p-values are corrected by Holm's method for {n} comparisons" if n > 1 else "one comparison, no correction"
    )
    lost = sum(found.n_diverged.values())
    note = f"; diverged runs ({lost}) rank worst" if lost else ""
    if n_pairs is None:
        how = (
            "Brunner and Munzel's test by permutation; the effect is the probability that a run of one is {0} than one "
        )
        how += "of the other, ties counting half"
    else:
        how = f"Wilcoxon's signed-rank test by permutation on {n_pairs} pairs of runs from one initial network; the "
        how += "effect is the share of pairs in which one is {0}, ties counting half"
    return f"{how.format(found.better)}; {family} within this quantity{note}."


def _pair_lines(found: Comparison, better: str | None) -> list[str]:
    """Say of each pair who is better, clearest differences first; neither better nor worse is just lower."""
    lines = []
    for pair in sorted(
        found.pairs, key=lambda pair: (np.nan_to_num(pair.p_adjusted, nan=2), -abs(pair.effect.value - 0.5))
    ):
        first, second, effect = pair.first, pair.second, pair.effect
        if effect.value < 0.5:
            first, second = second, first
            effect = Estimate(1 - effect.value, 1 - effect.upper, 1 - effect.lower, effect.level)
        word = (better or "lower") if effect.value != 0.5 else "neither lower nor higher"
        share = "share of pairs" if found.paired else "probability"
        note = f" ({pair.note})" if pair.note else ""
        lines.append(f"{first} {word} than {second}: {share} {with_interval(effect)}, {p_value(pair.p_adjusted)}{note}")
    return lines


def _spread_finding(runs: Runs, level: float) -> Finding | None:
    """Say how far the ends lie apart, compared with what training gained."""
    rows, shown = [], []
    best: dict[str, list[str]] = {}
    trained = [(q.name, q) for q in runs.quantities if q.name in runs.initial]
    for metric, quantity in [*trained, *runs.at_minima.items()]:
        for i, name in enumerate(runs.groups):
            mine = (runs.group == i) & quantity.counted
            start, end = runs.initial[metric][mine], quantity.values[mine]
            try:
                with np.errstate(invalid="ignore"):  # a bootstrap sample may gain nothing
                    found = spread(start, end, better=quantity.better or "lower", level=level)
            except ValueError:  # fewer than two finite runs, or none that gained anything
                continue
            rows.append({"settings": name, "quantity": quantity.name, **found.row()})
            shown.append(_spread_row(name, quantity.name, metric, found))
            best.setdefault(quantity.name, []).append(f"{name} {100 * found.quartiles.value:.3g} %")
    if not rows:
        return None
    words = {"loss": "Middle half of the final losses", "loss_at_minimum": "of the losses at the certified minima"}
    ends = "; ".join(f"{text}: {', '.join(best[name])}" for name, text in words.items() if name in best)
    text = (
        "How far apart the ends of the runs are, in percent of the gain: the way from the median before training to "
        "the best end, without the penalty. Distances of quartiles and of 5 % and 95 % quantiles, "
        f"with {100 * level:.4g} % bootstrap intervals (BCa). If it is small, it hardly matters where a run ends."
    )
    if ends:
        text += f" {ends}."
    title = "Are the ends nearly equal?"
    summary = f"nearly equal? In percent of what training gained: {ends}"
    return Finding(CHAPTERS[3], "spread", title, text, None, shown, {"spread": rows}, summary)


def _spread_row(name: str, quantity: str, metric: str, found: Spread) -> dict[str, str]:
    factor = unit_factor(metric)
    percent = {
        key: with_interval(Estimate(100 * e.value, 100 * e.lower, 100 * e.upper, e.level))
        for key, e in (("quartiles (%)", found.quartiles), ("5 % to 95 % (%)", found.central))
    }
    gain = f"{number(factor * found.gain)}{' points' if factor > 1 else ''}"
    return {
        "settings": name,
        "quantity": quantity.replace("_", " "),
        "gain": gain,
        **percent,
        "all (%)": number(100 * found.full, 3),
    }
