"""The page of a restart study: its numbers are those of the runs, its tables lie behind its figures."""

import csv
import io
import re
from html import unescape
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest
from pages import drawn_figures
from scipy import stats

from landscape.barriers import Barriers
from landscape.catalog import KIND as MINIMA
from landscape.catalog import Catalog
from landscape.comparison import CHAPTERS, compare_studies
from landscape.comparison.minima import barrier_files
from landscape.comparison.runs import gather_runs
from landscape.figures.count_tolerance import _count_info, plot_count_tolerance
from landscape.figures.eigenvalues import _compressed, _eigenvalues_info, _ticks, plot_eigenvalues
from landscape.figures.loss_curves import _loss_curves_info, plot_loss_curves, quartile_curves
from landscape.figures.shared_minima import _shared_info, plot_shared_minima
from landscape.report import csv_text, page, study_sections
from landscape.rows import RowsWriter
from landscape.statistics import shared
from landscape.study import Study, StudyWriter

HOSTILE = "</script><script>window.stolen = 1</script>%{x}"
N = 12
FINGERPRINT = {"training_data": "a", "model": "b"}
ENTRY = {
    **{"optimizer": "adam", "learning_rate": 0.1, "options": {}, "batch_size": None, "epochs": 4, "penalty": 0.0},
    **{"schedule": "constant", "batch_order": "own", "evaluate_every": 2, "epochs evaluated": [0, 2, 4]},
}
PROVENANCE = {
    "created": "2024-01-01T00:00:00+00:00",
    "versions": {"landscape": "1", "torch": "2"},
    "settings": {
        **{"model": "Sequential", "n_parameters": 3, "penalty": 0.0, "batch-norm policy": "no batch norm in the model"},
        "data": {"training": {"name": "made up", "n_samples": 10}},
        "metrics": {"loss": "cross_entropy (0123abcd)"},
    },
}


def write_study(path, names=("adam", "gd"), seeds=(N, N), shift=1.0, diverged=(), start=0):
    """A study whose last losses are 0.1, 0.2, ... for the first settings and higher by `shift` for each further."""
    writer = StudyWriter(path, {name: ENTRY for name in names}, PROVENANCE, FINGERPRINT)
    for i, n in enumerate(seeds):
        seed = np.arange(n)[::-1] if i else np.arange(n)
        final = 0.1 * (1 + seed) + shift * i
        lost = np.array([(i, k) in diverged for k in seed])
        loss = np.stack([5 + start + 0.01 * seed, final + 1, np.where(lost, np.nan, final)], axis=1)
        writer.add(
            {
                **{"setting": np.full(n, i), "seed": seed, "steps": np.full(n, 4), "diverged": lost},
                **{"gradient_norm": np.full(n, 0.1), "travelled": 1.0 + np.arange(n)},
                **{"curve/loss": loss, "curve/test_accuracy": np.clip(0.9 - 0.1 * loss, 0, 1)},
                **{"theta": np.zeros((n, 3)), "buffers": np.zeros((n, 0))},
            },
            i,
        )
    writer.finish()
    return Study.load(path)


def write_catalog(path, study, labels, kinds=None, largest=None):
    n = len(study)
    labels = np.asarray(labels)
    loss = np.where(labels < 0, 3.0, 1.0 + labels + 1e-13 * np.arange(n))
    question = {"gtol": 1e-10, "study": study.fingerprint}
    identified = {"relation": "the same up to nothing", "tolerance": 1e-3, "notes": []}
    n_distinct = labels.max() + 1
    identified |= {"labels": labels.tolist(), "heights": [1e-6] * int((labels >= 0).sum() - n_distinct) + [0.02]}
    record = {"settings": list(study.settings), "identification": identified}
    writer = RowsWriter(path, MINIMA, record | {"provenance": {**study.provenance, "question": question}})
    kinds = np.where(labels < 0, "saddle", "minimum") if kinds is None else kinds
    zeros = np.zeros(n, dtype=int)
    writer.add(
        {
            **{"run": np.arange(n), "setting": study.setting, "seed": study.seed, "kind": kinds.astype(object)},
            **{"loss": loss, "gradient_norm": np.full(n, 1e-12), "n_steps": zeros, "n_escapes": zeros},
            **{"moved": np.ones(n), "n_negative": (labels < 0).astype(int), "n_flat": zeros},
            **{"smallest": np.where(labels < 0, -0.5, 0.25), "tol": np.full(n, 1e-3), "trace": 5.0 + labels},
            **{"largest": 2.0 + labels + 1e-5 * (np.arange(n) > 0), "metric/loss": loss - 0.5},
            **{"theta": np.zeros((n, 3)), "buffers": np.zeros((n, 0))},
        },
        0,
    )
    writer.finish()
    return Catalog.load(path)


LABELS = [0] * 8 + [1] * 3 + [-1] + [0] * 6 + [1] * 2 + [2] * 4


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    return write_study(tmp_path_factory.mktemp("study") / "study.h5")


@pytest.fixture(scope="module")
def catalog(study):
    return write_catalog(study.path.with_name("minima.h5"), study, LABELS)


@pytest.fixture(scope="module")
def found(study, catalog):
    profiles = np.full((3, 3, 5), 9.0)
    profiles[..., 0], profiles[..., -1] = np.arange(1.0, 4)[:, None], np.arange(1.0, 4)[None]
    for i in range(3):
        profiles[i, i] = i + 1
    barriers = Barriers(np.linspace(0, 1, 5), profiles, 2.0 - 2 * np.eye(3), False)
    barriers.save(barrier_files(catalog.path)[False])
    return {finding.name: finding for finding in compare_studies({"mine": study}, [catalog])}


class TestNumbers:
    def test_paired_by_seed(self, study, found):
        (row,) = found["loss"].tables["loss_pairs"]
        differences = study.groups()["gd"][::-1] - study.groups()["adam"]  # written in the reverse order
        np.testing.assert_allclose(differences, 1)
        exact = stats.wilcoxon(differences, method="exact").pvalue
        assert row["p"] == pytest.approx(exact, abs=2e-3)
        assert row["probability_first_better"] == 1
        assert "12 pairs of runs from one initial network" in found["loss"].text
        assert "adam lower than gd: share of pairs 1" in found["loss"].text

    def test_medians(self, study, found):
        for row in found["loss"].tables["loss"]:
            assert row["median"] == pytest.approx(np.median(study.groups()[row["group"]]))

    def test_curvature_is_that_of_the_distinct_minimum(self, study, catalog):
        sharpness = next(q for q in gather_runs({"s": study}, [catalog]).quantities if q.name == "sharpness")
        labels = np.array(LABELS)
        expected = np.array([2.0, 3.00001, 4.00001])[labels[labels >= 0]]  # of the member with the lowest loss
        np.testing.assert_array_equal(sharpness.values[labels >= 0], expected)
        assert not sharpness.counted[labels < 0].any()

    def test_spread_over_gain(self, study, found):
        rows = {(row["settings"], row["quantity"]): row for row in found["spread"].tables["spread"]}
        final, initial = study.groups()["adam"], study.initial()[study.names == "adam"]
        gain = np.median(initial) - final.min()
        width = np.subtract(*np.quantile(final, [0.75, 0.25]))
        assert rows["adam", "loss"]["quartiles"] == pytest.approx(width / gain)
        assert ("gd", "loss_at_minimum") in rows
        assert ("gd", "test_accuracy") in rows

    def test_minima_and_hits(self, found):
        assert [row["hits"] for row in found["minima"].tables["minima"]] == [14, 5, 4]
        assert found["kinds"].tables["kinds"] == [
            {"settings": "adam", "minimum": 11, "saddle": 1},
            {"settings": "gd", "minimum": 12, "saddle": 0},
        ]
        assert "23 of 24 are certified minima" in found["kinds"].text
        assert "2 were found by all settings, 0 by adam only, 1 by gd only" in found["overlap"].text

    def test_barriers(self, found):
        assert [row["barrier"] for row in found["barriers"].tables["barriers"]] == [7.75, 7.5, 6.75]
        assert found["connections"].tables["connections"][0]["loss"] == 9
        assert "barriers_aligned" not in found

    def test_a_row_for_each_run(self, study, found):
        rows = found["settings"].tables["runs"]
        assert [row["loss"] for row in rows] == study.final().tolist()


class TestPairing:
    def paired(self, study):
        runs = gather_runs({"s": study})
        return runs.paired(runs.quantities[0])

    def test_common_seeds(self, tmp_path):
        runs = self.paired(write_study(tmp_path / "s.h5", seeds=(N, N - 1)))
        assert [len(values) for values in runs.values()] == [N - 1] * 2

    def test_too_few_common_seeds(self, tmp_path):
        study = write_study(tmp_path / "s.h5", seeds=(N, 6))
        assert self.paired(study) is None
        (finding,) = [one for one in compare_studies({"s": study}) if one.name == "loss"]
        assert "Brunner and Munzel" in finding.text

    def test_same_seeds_of_different_networks(self, tmp_path):
        studies = {"a": write_study(tmp_path / "a.h5", ("adam",), (N,))}
        studies["b"] = write_study(tmp_path / "b.h5", ("adam",), (N,), start=1.0)
        runs = gather_runs(studies)
        assert runs.groups == ("a: adam", "b: adam")
        assert runs.paired(runs.quantities[0]) is None
        studies["b"] = write_study(tmp_path / "c.h5", ("adam",), (N,))
        runs = gather_runs(studies)
        assert runs.paired(runs.quantities[0]) is not None

    def test_diverged_runs_rank_worst(self, tmp_path):
        study = write_study(tmp_path / "s.h5", shift=0.0, diverged={(1, k) for k in range(N)} - {(1, 0)})
        found = {one.name: one for one in compare_studies({"s": study})}
        (row,) = found["loss"].tables["loss_pairs"]
        assert row["diverged_second"] == N - 1
        assert row["probability_first_better"] == pytest.approx(1 - 0.5 / N)
        assert "diverged runs (11) rank worst" in found["loss"].text

    def test_all_runs_of_settings_diverged(self, tmp_path):
        study = write_study(tmp_path / "s.h5", diverged={(1, k) for k in range(N)})
        found = {one.name: one for one in compare_studies({"s": study})}
        assert [row["group"] for row in found["loss"].tables["loss"]] == ["adam"]
        assert found["ends"].tables["ends"][1]["diverged"] == N


class TestMistakes:
    def test_minima_of_another_study(self, study, catalog, tmp_path):
        other = write_study(tmp_path / "other.h5", ("rmsprop", "gd"))
        with pytest.raises(ValueError, match=r"minima\.h5 holds the minima of another study than other"):
            compare_studies({"other": other}, [catalog])
        with pytest.raises(ValueError, match="two catalogs of one study"):
            compare_studies({"mine": study}, [catalog, catalog])

    def test_barriers_of_other_minima(self, study, tmp_path):
        catalog = write_catalog(tmp_path / "m.h5", study, LABELS)
        profiles = np.zeros((2, 2, 5))
        Barriers(np.linspace(0, 1, 5), profiles, np.zeros((2, 2)), True).save(barrier_files(catalog.path)[True])
        with pytest.raises(ValueError, match="barriers of other minima"):
            compare_studies({"mine": study}, [catalog])

    def test_no_minimum_at_all(self, study, tmp_path):
        catalog = write_catalog(tmp_path / "m.h5", study, [-1] * 24, np.array(["at infinity"] * 24))
        found = {one.name: one for one in compare_studies({"mine": study}, [catalog])}
        assert "0 of 24 are certified minima" in found["kinds"].text
        assert "At infinity" in found["kinds"].text
        assert "minima" not in found
        assert "sharpness" not in found


@pytest.fixture(scope="module")
def html(tmp_path_factory):
    folder = tmp_path_factory.mktemp("page")
    study = write_study(folder / "s.h5", (HOSTILE, "gd", "momentum"), (N, N, N))
    catalog = write_catalog(folder / "m.h5", study, [0] * 20 + [1] * 16)
    profiles = np.tile(np.array([1.0, 4, 2]), (2, 2, 1))
    profiles[0, 0], profiles[1, 1], profiles[1, 0] = 1, 2, [2, 4, 1]
    Barriers(np.linspace(0, 1, 3), profiles, 3.0 - 3 * np.eye(2), True).save(barrier_files(catalog.path)[True])
    sections = study_sections(compare_studies({"s": study}, [catalog]))
    return page("study", sections, folder / "index.html"), sections


class TestPage:
    def test_chapters_in_order(self, html):
        text = html[0].read_text()
        places = [text.index(f'class="chapter" id="section-{i}">') for i in _chapters(html)]
        assert places == sorted(places)
        assert re.findall(r"<li><a href=\"#section-\d+\">(.*?)</a>", text) == list(CHAPTERS)

    def test_every_figure_has_its_table(self, html):
        _, sections = html
        drawn = [section for section in sections if section.figure is not None]
        assert len(drawn) >= 10
        assert all(section.downloads and section.caption for section in drawn)

    def test_tables_can_be_downloaded(self, html):
        text, sections = html[0].read_text(), html[1]
        links = re.findall(r'<a download="([^"]*)" href="data:text/csv;charset=utf-8,([^"]*)"', text)
        tables = {name: rows for section in sections for name, rows in section.downloads.items()}
        assert [unescape(name) for name, _ in links] == [f"{name}.csv" for name in tables]
        for (_, content), rows in zip(links, tables.values(), strict=True):
            read = list(csv.DictReader(io.StringIO(unquote(content))))
            assert len(read) == len(rows)
            assert list(read[0].values()) == [str(value) for value in rows[0].values()]

    def test_names_from_files_are_escaped(self, html):
        text = html[0].read_text()
        body = text[text.index("<body>") :]
        assert "window.stolen" in body
        assert "<script>window.stolen" not in body

    def test_csv_keeps_all_digits(self):
        assert csv_text([{"a": 0.1 + 0.2, "b": 'x,"y"'}]) == 'a,b\r\n0.30000000000000004,"x,""y"""\r\n'


def _chapters(html):
    return [i for i, section in enumerate(html[1], start=1) if section.chapter]


def test_on_screens_of_any_width(browser, html):
    tab = browser.new_page(viewport={"width": 1280, "height": 844})
    requests, errors = [], []
    tab.on("request", lambda request: requests.append(request.url))
    tab.on("pageerror", lambda error: errors.append(str(error)))
    tab.goto(html[0].as_uri())
    assert len(list(drawn_figures(tab))) == tab.evaluate("document.querySelectorAll('.figure').length")
    for width in (1280, 390):
        tab.set_viewport_size({"width": width, "height": 844})
        tab.wait_for_function(f"[...document.querySelectorAll('.main-svg')].every(s => s.clientWidth <= {width})")
        assert tab.evaluate("document.documentElement.scrollWidth") <= width
    assert (errors, requests) == ([], [html[0].as_uri()])
    assert tab.evaluate("window.stolen") is None
    with tab.expect_download() as download:
        tab.get_by_role("link", name="loss_pairs.csv", exact=True).click()
    assert download.value.suggested_filename == "loss_pairs.csv"
    content = Path(download.value.path()).read_bytes().decode()
    tables = {name: rows for section in html[1] for name, rows in section.downloads.items()}
    assert content == csv_text(tables["loss_pairs"])


class TestFigures:
    def test_loss_curves(self):
        values = np.array([[3.0, 1.0], [4.0, 2.0], [5.0, np.nan], [6.0, 4.0], [7.0, 3.0]])
        low, middle, high = quartile_curves(values)
        assert (low.tolist(), middle.tolist(), high.tolist()) == ([4, 2], [5, 3], [6, 4])
        assert quartile_curves(values[:2])[1].tolist() == [4, 2]
        assert quartile_curves(values, "higher")[2][1] == 1
        info = _loss_curves_info({"adam": (np.array([0, 1]), values)}, "loss", "log")
        assert "1 diverged, which count as the worst" in info.notes
        assert len(plot_loss_curves({"adam": (np.array([0, 1]), values)}, scale="log").data) == 3
        with pytest.raises(ValueError, match="not positive"):
            plot_loss_curves({"adam": ([0, 1], values - 3)}, scale="log")
        with pytest.raises(ValueError, match=r"shapes \(3,\) and \(5, 2\)"):
            plot_loss_curves({"adam": ([0, 1, 2], values)})

    def test_half_of_the_runs_diverged(self):
        values = np.array([[1.0, 1.0], [2.0, np.inf], [3.0, np.nan]])
        assert quartile_curves(values)[1].tolist() == [2, np.inf]
        assert np.isnan(plot_loss_curves({"gd": ([0, 1], values)}).data[-1].y[1])

    def test_count_against_tolerance(self, catalog):
        info = _count_info(catalog)
        assert info.n_chosen == 3
        assert info.plateau == (1e-6, 0.02)
        assert info.counts[info.tolerances < 1e-6].tolist() == [23]
        assert info.counts[-1] == 2
        assert "3 minima" in plot_count_tolerance(catalog).layout.annotations[0].text

    def test_eigenvalues(self, catalog):
        minima, saddles = _eigenvalues_info(catalog)
        assert (minima.name, saddles.name) == ("minimum", "saddle")
        assert minima.loss.tolist() == pytest.approx([1, 2, 3])
        assert minima.in_tolerances.tolist() == [250] * 3
        assert saddles.in_tolerances.tolist() == [-500]
        assert np.argsort(minima.size).tolist() == [2, 1, 0]
        assert len(plot_eigenvalues(catalog).data) == 4

    def test_scale_of_eigenvalues(self):
        values = np.array([-1000, -10, -1, -0.5, 0, 0.5, 1, 100])
        np.testing.assert_allclose(_compressed(values), [-4, -2, -1, -0.5, 0, 0.5, 1, 3])
        assert _ticks(np.array([250.0])).tolist() == [-1, 0, 1, 10, 100, 1000]

    def test_shared_minima(self, catalog):
        found = shared(catalog.labels, catalog.names.tolist())
        info = _shared_info(found)
        assert info.hits.tolist() == [[8, 3, 0], [6, 2, 4]]
        np.testing.assert_allclose(info.share.sum(axis=1), 100)
        assert np.isnan(plot_shared_minima(found).data[0].z[0][2])

    def test_many_shared_minima(self):
        found = shared(np.repeat(np.arange(50), 2)[:-5], ["a"] * 95)
        info = _shared_info(found)
        assert info.minima == [str(i) for i in range(40)]
        assert "shown: the 40 minima that were hit most" in info.notes
