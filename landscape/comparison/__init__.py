"""All that is to be said about restart studies: how settings compare, and what minima they found."""

from collections.abc import Mapping, Sequence

from landscape.arguments import expect
from landscape.catalog import Catalog
from landscape.comparison.finding import CHAPTERS, Finding
from landscape.comparison.minima import how_found_compare, how_minima_are_connected, what_they_found
from landscape.comparison.runs import gather_runs, study_of
from landscape.comparison.training import how_runs_ended, how_settings_compare, what_was_run
from landscape.contents import Number, check_value
from landscape.study import Study

_STUDY = {
    "settings": {
        **{"model": str, "n_parameters": int, "metrics": {"loss": str}},
        "data": {"*": {"name": str, "n_samples": int}},
    },
    "info?": dict,
    **{"created": str, "versions": {"landscape": str}},
}
_CATALOG = {"settings": {"batch-norm policy": str}, "question": {"gtol": Number, "study": dict}}


def compare_studies(
    studies: Mapping[str, Study], catalogs: Sequence[Catalog] = (), *, level: float = 0.95
) -> list[Finding]:
    """Gather all tables and figures of one restart study or of several, in the order of a page.

    Args:
        studies: By name; the settings of several are told apart by it.
        catalogs: The minima of some of them; barriers stored beside them are taken, see `comparison.minima`.
        level: Of all intervals.

    Raises:
        ValueError: No study, a catalog of another study, two of one, barriers of other minima, or a file that does not
            say what is needed of how it was made.

    Example:
        >>> for finding in compare_studies({"digits": Study.load("study.h5")}):  # doctest: +SKIP
        ...     print(finding.title, finding.text)
    """
    for name, study in studies.items():
        expect(f"study {name!r}", study, Study, "a Study (Study.load reads its file)")
        check_value(study.provenance, _STUDY, f"{study.path}: provenance")
    for catalog in catalogs:
        check_value(catalog.provenance, _CATALOG, f"{catalog.path}: provenance")
    owners = [study_of(catalog, studies) for catalog in catalogs]
    if len(set(owners)) < len(owners):
        raise ValueError(f"two catalogs of one study: {', '.join(str(catalog.path) for catalog in catalogs)}")
    runs = gather_runs(studies, catalogs)
    prefixes = [f"{owner}: " if len(studies) > 1 else "" for owner in owners]
    named = list(zip(catalogs, prefixes, strict=True))
    found = [*what_was_run(runs), *how_runs_ended(runs)]
    for catalog, prefix in named:
        found += what_they_found(catalog, prefix, level)
    found += how_settings_compare(runs, level)
    for catalog, prefix in named:
        found += how_found_compare(catalog, prefix, level)
    for catalog, prefix in named:
        found += how_minima_are_connected(catalog, prefix)
    return found


__all__ = ["CHAPTERS", "Finding", "compare_studies"]
