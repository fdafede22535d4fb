"""Is my picture right? What a surface says about itself, from what is stored with it."""

import math
from dataclasses import dataclass

import numpy as np

from landscape.surface import Surface, lowest_point

_CENTER_RTOL = 1e-5
_PARALLEL = 0.3  # |cosine| above which two axes are far from perpendicular


@dataclass(frozen=True)
class Finding:
    """One line of the sanity report.

    Attributes:
        label: What was looked at.
        text: What was found, in words and numbers.
        warning: Whether it should make the reader hesitate.
    """

    label: str
    text: str
    warning: bool = False


def findings(surface: Surface) -> list[Finding]:
    """Report on a surface: gaps, precision, center, lowest point, directions, trajectories, plan and time.

    Args:
        surface: Finished or not; what its provenance lacks (imported files) is left out.

    Returns:
        The findings, always in the same order.
    """
    facts = surface.provenance
    return [
        *_completeness(surface),
        *_precision(surface),
        *_center(surface),
        *_lowest(surface),
        *_gradient(facts),
        *_directions(surface),
        *_trajectories(surface),
        *_work(surface),
    ]


def center_index(surface: Surface) -> tuple[int, ...] | None:
    """Return the index of the grid point whose coordinates are all zero; None if there is none."""
    index = []
    for axis in surface.axes.values():
        zero = np.flatnonzero(np.abs(axis) <= 1e-12 * max(np.abs(axis).max(), 1e-300))
        if not len(zero):
            return None
        index.append(int(zero[0]))
    return tuple(index)


def preview_note(surface: Surface) -> str | None:
    """Return what must be said wherever a preview in bf16 is shown; None for a surface that is none."""
    error = surface.provenance.get("plan", {}).get("preview_error")
    if error is None:
        return None
    shown = [
        f"{_percent(error[place])} at {words}" for place, words in (("center", "the center"), ("corner", "a corner"))
    ]
    return f"preview in bf16: relative error {', '.join(shown)}"


def _percent(share: float | None) -> str:
    if share is None:
        return "without limit (not finite)"
    percent = 100 * share
    return f"{percent:.2g} %" if percent < 99.5 else f"{percent:.0f} %"


def border_sides(surface: Surface, index: tuple[int, ...]) -> list[str]:
    """Name the sides of the grid an index lies on, such as `"x low"`; axes of one point have no sides."""
    return [
        f"{name} {side}"
        for name, i, n in zip(surface.axes, index, surface.shape, strict=True)
        for side, end in (("low", 0), ("high", n - 1))
        if n > 1 and i == end
    ]


def _completeness(surface: Surface) -> list[Finding]:
    share = float(surface.done.mean())
    rows = []
    if not surface.finished:
        text = f"{share:.1%} of {surface.done.size:,} grid points; run the same command again to go on"
        rows.append(Finding("computed", text, True))
    for name in surface.values:
        bad = int((surface.done & ~np.isfinite(surface.values[name])).sum())
        if bad:
            rows.append(Finding(f"non-finite {name}", f"{bad:,} of {int(surface.done.sum()):,} points", True))
    return rows or [Finding("computed", f"all {surface.done.size:,} grid points, all values finite")]


def _precision(surface: Surface) -> list[Finding]:
    rows = []
    note = preview_note(surface)
    if note is not None:
        text = f"{note.removeprefix('preview in ')}; a quick look, not to be read off or compared"
        rows.append(Finding("preview", text, True))
    audit = surface.provenance.get("audit")
    if audit is not None:
        rows.append(Finding("audit", audit["text"], audit["exceeded"]))
    return rows


def _center(surface: Surface) -> list[Finding]:
    index = center_index(surface)
    if index is None:
        return [Finding("center", "no grid point has coordinates 0: the network itself is not on the grid", True)]
    if not surface.done[index]:
        return [Finding("center", "not computed yet")]
    name = next(iter(surface.values))
    value = float(surface.values[name][index])
    rows = []
    note = preview_note(surface)
    expected = surface.provenance.get("at_origin", {}).get(name)
    if expected is None:
        rows.append(Finding("center", f"{name} {value:.6g}"))
    else:
        lost = not math.isfinite(value) and not math.isfinite(expected)
        agrees = lost or math.isclose(value, expected, rel_tol=_CENTER_RTOL, abs_tol=1e-12)
        text = f"{name} {value:.6g} on the grid, {expected:.6g} of the network called plainly"
        policy = surface.provenance.get("settings", {}).get("batch-norm policy")
        meant = policy in ("batch", "recalibrated")  # there the network's own statistics are not used
        if note is not None:
            text += ", a preview"
        elif not agrees:
            text += f", with its own batch-norm statistics instead of {policy} ones" if meant else ": they differ"
        rows.append(Finding("center", text, not agrees and not meant and note is None))
    stored = surface.provenance.get("checkpoint", {}).get("loss")
    if stored is not None:
        agrees = math.isclose(value, stored, rel_tol=1e-3, abs_tol=1e-9)
        text = f"{name} {stored:.6g} when it was saved"
        if not agrees and note is None:
            text += ": other data, loss or batch-norm policy than in training?"
        rows.append(Finding("checkpoint", text, not agrees and note is None))
    return rows


def _lowest(surface: Surface) -> list[Finding]:
    lowest = lowest_point(surface)
    if lowest is None:
        return [Finding("lowest point", "no finite value", True)]
    index, value = lowest
    where = ", ".join(f"{name} = {axis[i]:.4g}" for (name, axis), i in zip(surface.axes.items(), index, strict=True))
    sides = border_sides(surface, index)
    text = f"{value:.6g} at {where}"
    center = center_index(surface)
    if sides:
        text += f", on the border ({', '.join(sides)}): widen the range; it is no minimum of the surface"
    elif center is not None and index != center and surface.done[center]:
        text += f", {next(iter(surface.values.values()))[center] - value:.3g} below the center"
    elif index == center:
        text += ", the center"
    return [Finding("lowest point", text, bool(sides))]


def _gradient(facts: dict) -> list[Finding]:
    norm = facts.get("gradient_norm")
    if norm is None:
        return []
    return [Finding("gradient at the center", f"norm {norm:.3g} (0 at a minimum of the network)")]


def _directions(surface: Surface) -> list[Finding]:
    facts = surface.provenance
    rows = []
    if facts.get("gram"):
        gram = np.array(facts["gram"])
        norms = np.sqrt(np.diag(gram))
        scale = f", of the network {facts['origin_norm']:.4g}" if "origin_norm" in facts else ""
        rows.append(Finding("length of the directions", ", ".join(f"{norm:.4g}" for norm in norms) + scale))
        names = list(surface.axes)
        for i in range(len(gram)):
            for j in range(i):
                cosine = float(gram[i, j] / (norms[i] * norms[j]))
                angle = math.degrees(math.acos(max(-1.0, min(1.0, cosine))))
                skewed = abs(cosine) > _PARALLEL
                text = f"{angle:.1f}° between {names[j]} and {names[i]}"
                if skewed:
                    text += ": drawn at a right angle, the picture is sheared"
                rows.append(Finding("angle", text, skewed))
    shares = facts.get("slice", {}).get("explained_variance_ratio")
    if shares:
        k = len(surface.axes)
        text = " + ".join(f"{share:.1%}" for share in shares[:k]) + f" = {sum(shares[:k]):.1%}"
        rows.append(Finding("explained variance", text, sum(shares[:k]) < 0.5))
    return rows


def _trajectories(surface: Surface) -> list[Finding]:
    rows = []
    for name, run in surface.trajectories.items():
        gap = np.abs(run.loss_on_slice - run.loss)
        text = (
            f"up to {run.distance.max():.4g} from the slice ({run.distance[-1]:.3g} at the end); "
            f"loss there and on the slice differ by up to {np.nanmax(gap) if np.isfinite(gap).any() else math.nan:.3g}"
        )
        rows.append(Finding(f"trajectory {name}", text))
        outside = [
            axis_name
            for i, (axis_name, axis) in enumerate(surface.axes.items())
            if (run.coordinates[:, i] < axis[0]).any() or (run.coordinates[:, i] > axis[-1]).any()
        ]
        if outside:
            rows.append(Finding(f"trajectory {name}", f"leaves the grid along {', '.join(outside)}", True))
    return rows


def _work(surface: Surface) -> list[Finding]:
    facts = surface.provenance
    rows = []
    if "plan" in facts:
        plan = facts["plan"]
        parts = [plan["name"]] if "name" in plan else []
        if "chunk_size" in plan:
            size = plan["chunk_size"]
            parts.append("batches as given" if size is None else f"{size} samples at a time")
            if plan.get("group", 1) > 1:
                parts[-1] += f", {plan['group']} points"
        rows.append(Finding("plan", "; ".join([*parts, *plan.get("notes", [])])))
    if "seconds" in facts:
        n = max(1, int(surface.done.sum()))
        seconds = facts["seconds"]
        rows.append(Finding("time", f"{seconds:.1f} s, {1000 * seconds / n:.3g} ms per point"))
    return rows
