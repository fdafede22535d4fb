import csv
import math
import re
from dataclasses import FrozenInstanceError
from itertools import combinations, product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import special, stats
from scipy.integrate import trapezoid

from landscape.statistics import (
    Estimate,
    adjust,
    bootstrap,
    compare,
    rarefaction,
    shared,
    spread,
    summarize,
    trend,
    unseen,
    write_csv,
)
from landscape.statistics.comparison import _brunner_munzel
from landscape.statistics.hits import INTERVALS, completed_assemblage
from landscape.statistics.volumes import _log_gamma_mixed, _log_normal_mixed, likelihood_limit

# spiders on girdled hemlocks (Sackett et al. 2011), the worked example of Chao et al. 2014
SPIDERS = [46, 22, 17, 15, 15, 9, 8, 6, 6, 4, 2, 2, 2, 2] + [1] * 12
HITS = st.lists(st.integers(0, 12), min_size=1, max_size=15).filter(lambda x: sum(x) >= 2)

# 1-D Schwefel function: the seven basins of [-500, 500] whose minimum lies inside, between consecutive maxima
WIDTHS = np.diff([-420.9687, -203.8143, -65.5479, -5.2392, 25.8774, 124.8294, 302.5249, 500.0])
SCHWEFEL = np.einsum("i,j,k->ijk", *[WIDTHS / WIDTHS.sum()] * 3).ravel()


def rng(seed=0):
    return np.random.default_rng(seed)


# --- minima not yet seen


def test_coverage_agrees_with_the_published_example():
    result = unseen(SPIDERS)
    assert (result.n_runs, result.observed, result.singletons, result.doubletons) == (168, 26, 12, 4)
    assert result.coverage.value == pytest.approx(0.9289, abs=5e-5)
    assert result.coverage.lower < 0.9289 < result.coverage.upper


def test_chao1_agrees_with_its_closed_form_and_with_estimate_s():
    assert unseen(SPIDERS).number.value == pytest.approx(26 + 167 / 168 * 12 * 11 / (2 * 5))
    # EstimateS gives 9.75 (9.07 to 17.45), without the factor (n - 1) / n: here one large minimum makes it 1
    number = unseen([0, 1, 1, 4, 2, 5, 2, 4, 1, 2, 10**6], interval="log-normal").number
    assert (number.value, number.lower, number.upper) == pytest.approx((10.75, 10.07, 18.45), rel=1e-3)


def test_coverage_without_doubletons_agrees_with_its_closed_form():
    assert unseen([5, 1, 1, 1]).coverage.value == pytest.approx(1 - 3 / 8 * 14 / 16)


def test_without_singletons_everything_was_seen():
    result = unseen([5, 4, 3], interval="log-normal")
    assert result.coverage.value == 1
    assert result.number == Estimate(3, 3, 3)


@given(HITS, st.sampled_from(INTERVALS))
@settings(max_examples=25)
def test_estimates_lie_in_their_intervals_and_bounds(hits, interval):
    result = unseen(hits, interval=interval)
    assert 0 <= result.coverage.lower <= result.coverage.value <= result.coverage.upper <= 1
    assert result.number.value >= result.observed
    if interval != "bootstrap":
        assert result.observed <= result.number.lower <= result.number.value <= result.number.upper
    assert unseen([*hits, 0, 0][::-1], interval=interval).number == result.number
    assert str(result.observed) in result.describe()


@given(HITS)
def test_the_completed_assemblage_is_one(hits):
    p = completed_assemblage(hits)
    assert np.all(p >= 0)
    assert p.sum() == pytest.approx(1)
    assert len(p) >= np.count_nonzero(hits)
    assert len(p) == np.count_nonzero(hits) or 1 in hits


def test_the_interval_covers_the_schwefel_function_where_chao1_alone_does_not():
    draws = [rng(seed).multinomial(400, SCHWEFEL) for seed in range(25)]
    covered = {name: 0 for name in ("likelihood", "log-normal")}
    for hits in draws:
        for name in covered:
            number = unseen(hits, interval=name).number
            covered[name] += number.lower <= 343 <= number.upper
    assert covered["likelihood"] >= 21  # 95 % claimed: fewer with probability 0.007
    assert covered["log-normal"] < 15


def test_chao1_is_right_for_equal_basins():
    numbers = [unseen(rng(seed).multinomial(300, np.full(200, 1 / 200))).number for seed in range(25)]
    assert np.mean([number.value for number in numbers]) == pytest.approx(200, abs=8)
    assert sum(number.lower <= 200 <= number.upper for number in numbers) >= 21


def test_mixed_laws_agree_with_scipy_and_integration():
    k, mean, width = np.array([0, 1, 3, 17]), np.array([2.5, 0.4]), np.array([0.8, 1.7])
    shape = 1 / width**2
    expected = stats.nbinom.logpmf(k, shape[:, None], (shape / (shape + mean))[:, None])
    np.testing.assert_allclose(_log_gamma_mixed(k, mean, width), expected, rtol=1e-10)

    s = np.sqrt(np.log1p(width**2))
    rates = np.exp(np.linspace(-25, 12, 40001))
    density = stats.lognorm.pdf(rates, s[:, None], scale=(mean * np.exp(-(s**2) / 2))[:, None])
    table = stats.poisson.pmf(k[:, None, None], rates) * density
    integral = trapezoid(table * rates, np.log(rates), axis=-1).T
    np.testing.assert_allclose(_log_normal_mixed(k, mean, width), np.log(integral), rtol=1e-6)
    large = _log_normal_mixed(np.array([4000]), np.array([900.0]), np.array([1.5]))
    s = np.sqrt(np.log1p(1.5**2))
    lam = np.linspace(3000, 5000, 20001)
    exact = trapezoid(stats.poisson.pmf(4000, lam) * stats.lognorm.pdf(lam, s, scale=900 * np.exp(-s * s / 2)), lam)
    assert large[0, 0] == pytest.approx(np.log(exact), abs=1e-3)


def test_the_upper_limit_agrees_with_a_direct_search():
    hits = rng(3).multinomial(150, np.full(60, 1 / 60))
    hits = hits[hits > 0]
    found = len(hits)

    def log_likelihood(number, width):
        shape, mean = 1 / width**2, 150 / number
        p = shape / (shape + mean)
        outside = (number - found) * stats.nbinom.logpmf(0, shape, p)
        combinatorial = special.gammaln(number + 1) - special.gammaln(number - found + 1)
        return combinatorial + outside + stats.nbinom.logpmf(hits, shape, p).sum()

    widths = np.geomspace(0.05, 3, 40)
    numbers = np.arange(found, found + 80)
    profile = np.array([max(log_likelihood(number, w) for w in widths) for number in numbers])
    kept = numbers[profile >= profile.max() - stats.chi2.ppf(0.95, 2) / 2]
    assert likelihood_limit(hits, 0.95) == pytest.approx(kept[-1], abs=1.5)
    assert numbers[0] < kept[-1] < numbers[-1]
    assert likelihood_limit(hits, 0.5) < likelihood_limit(hits, 0.99)


def test_all_singletons_set_no_upper_limit():
    result = unseen(np.ones(20, dtype=int))
    assert result.number.upper == math.inf
    assert "no upper limit" in result.describe()


@pytest.mark.parametrize("hits", [[1.5, 2], [-1, 3], [[1, 2]], [np.nan, 2], [1], [], ["a"]])
def test_hits_that_are_none_are_refused(hits):
    with pytest.raises(ValueError, match=r"hits|at least 2"):
        unseen(hits)


def test_unknown_options_are_refused():
    with pytest.raises(ValueError, match="bootstrap"):
        unseen([3, 4], interval="chao")
    for function in (unseen, rarefaction, lambda x, level: bootstrap(x, level=level)):
        with pytest.raises(ValueError, match="level"):
            function([3, 4], level=95)
    with pytest.raises(ValueError, match="sizes"):
        rarefaction([3, 4], [0])


# --- rarefaction


def test_rarefaction_agrees_with_all_subsets():
    runs = [0, 0, 0, 1, 1, 2, 3]
    curve = rarefaction([3, 2, 1, 1], np.arange(1, 8))
    for m, expected in zip(curve.size, curve.expected, strict=True):
        subsets = [len(set(chosen)) for chosen in combinations(runs, m)]
        assert expected == pytest.approx(np.mean(subsets))


def test_extrapolation_agrees_with_its_closed_form():
    curve = rarefaction(SPIDERS, [168, 250])
    unseen_minima = 167 / 168 * 12 * 11 / (2 * 5)
    assert curve.expected[0] == pytest.approx(26)
    assert curve.expected[1] == pytest.approx(26 + unseen_minima * (1 - (1 - 12 / (168 * unseen_minima + 12)) ** 82))


@given(HITS)
@settings(max_examples=25)
def test_rarefaction_starts_at_one_rises_and_meets_what_was_observed(hits):
    curve = rarefaction(hits, n_resamples=20)
    n = sum(hits)
    assert curve.size[0] == 1
    assert curve.size[-1] == 2 * n
    assert curve.expected[0] == pytest.approx(1)
    assert curve.expected[curve.size == n] == pytest.approx(np.count_nonzero(hits))
    assert np.all(np.diff(curve.expected) >= -1e-9)
    assert np.all(curve.expected <= unseen(hits).number.value + 1e-6)
    assert np.all((curve.lower <= curve.expected) & (curve.expected <= curve.upper) & (curve.upper <= curve.size))


def test_the_band_covers_what_the_optimizer_would_find_on_average():
    truth = {m: np.sum(1 - (1 - SCHWEFEL) ** m) for m in (50, 150, 300)}
    covered = np.zeros(3)
    for seed in range(60):
        curve = rarefaction(rng(seed).multinomial(200, SCHWEFEL), [50, 150, 300], n_resamples=100)
        covered += (curve.lower <= list(truth.values())) & (list(truth.values()) <= curve.upper)
    assert np.all(covered >= 50)
    assert curve.rows()[2]["extrapolated"]
    assert "extrapolated to 300" in curve.describe()


# --- samples


def test_bootstrap_agrees_with_the_normal_interval_of_a_mean():
    x = rng().normal(3, 2, 400)
    result = bootstrap(x, "mean")
    half = stats.norm.ppf(0.975) * x.std(ddof=1) / 20
    assert (result.lower, result.upper) == pytest.approx((x.mean() - half, x.mean() + half), abs=0.04)
    assert bootstrap(x, "mean") == result
    assert bootstrap(x, "mean", seed=1) != result


def test_the_interval_of_a_median_covers_it():
    covered = 0
    for seed in range(100):
        result = bootstrap(rng(seed).exponential(size=40), n_resamples=400)
        covered += result.lower <= math.log(2) <= result.upper
    assert 88 <= covered <= 100


def test_small_and_tied_samples():
    assert bootstrap([4.0, 4.0, 4.0]) == Estimate(4, 4, 4)
    assert bootstrap([1.0, 1, 1, 1, 2]).upper == 2
    alone = bootstrap([7.0])
    assert alone.value == 7
    assert math.isnan(alone.lower)
    assert math.isnan(alone.upper)
    assert bootstrap([1.0, 2, 4], lambda x, axis: x.max(axis=axis)).value == 4


def test_diverged_runs_are_counted_apart():
    (sample,) = summarize({"adam": [1, np.nan, 3, np.inf, 2]})
    assert (sample.n_runs, sample.n_diverged, sample.median.value, sample.highest) == (5, 2, 2, 3)
    assert "2 of them diverged" in sample.describe()
    with pytest.raises(ValueError, match="finite"):
        bootstrap([1, np.nan])
    with pytest.raises(ValueError, match="no finite value among 2"):
        summarize({"adam": [np.nan, np.inf]})
    with pytest.raises(ValueError, match="mean, median"):
        bootstrap([1, 2], "mode")
    with pytest.raises(ValueError, match=r"shape \(1, 2\)"):
        bootstrap([[1, 2]])


# --- comparison


def exact_p(a, b):
    """All arrangements, each with SciPy's statistic."""
    pooled = np.concatenate([a, b])
    values = []
    for chosen in combinations(range(len(pooled)), len(a)):
        one = np.zeros(len(pooled), dtype=bool)
        one[list(chosen)] = True
        with np.errstate(divide="ignore"):  # complete separation
            values.append(abs(stats.brunnermunzel(pooled[one], pooled[~one], distribution="normal").statistic))
    return np.mean(np.array(values) >= abs(stats.brunnermunzel(a, b).statistic) - 1e-9)


def test_the_statistic_is_brunner_and_munzels():
    a, b = np.array([1.1, 2.3, 0.2, 3.1, 2.3]), np.array([2.0, 4.4, 1.1, 2.3, 5.0, 0.9])
    distinct = np.unique(np.concatenate([a, b]))
    up_to_a, up_to_b = ((x[:, None] <= distinct).sum(axis=0) for x in (a, b))
    statistic = _brunner_munzel(up_to_a[None], up_to_a + up_to_b)[0]
    assert statistic == pytest.approx(stats.brunnermunzel(a, b).statistic)


def test_the_test_of_independent_runs_agrees_with_all_arrangements_of_scipys_statistic():
    a, b = np.array([1.1, 2.3, 0.2, 3.1, 2.3]), np.array([2.0, 4.4, 3.7, 2.3, 5.0, 3.9])
    (pair,) = compare({"a": a, "b": b}).pairs
    assert pair.p == pytest.approx(exact_p(a, b), abs=0.015)


def test_for_many_runs_it_agrees_with_brunner_and_munzel():
    a, b = rng(1).normal(size=60), rng(2).normal(0.45, 2, size=80)
    (pair,) = compare({"a": a, "b": b}).pairs
    assert pair.p == pytest.approx(stats.brunnermunzel(a, b).pvalue, rel=0.25)
    assert pair.effect.value == pytest.approx(1 - stats.mannwhitneyu(a, b).statistic / (60 * 80))


def test_the_paired_test_agrees_with_wilcoxon():
    a, b = rng(1).normal(size=25), rng(2).normal(0.5, 1, size=25)
    (pair,) = compare({"a": a, "b": b}, paired=True).pairs
    assert pair.p == pytest.approx(stats.wilcoxon(a, b).pvalue, rel=0.2)
    interval = stats.binomtest(int((a < b).sum()), 25).proportion_ci(method="wilson")
    assert (pair.effect.lower, pair.effect.upper) == pytest.approx((interval.low, interval.high))
    a, b = a.round(), b.round()  # ties and zeros: all sign patterns of few pairs
    a, b = a[:8], b[:8]
    ranks = np.where(a == b, 0, stats.rankdata(abs(b - a)))
    observed = abs((np.sign(b - a) * ranks).sum())
    exact = np.mean([abs(np.dot(signs, ranks)) >= observed for signs in product((-1, 1), repeat=8)])
    assert compare({"a": a, "b": b}, paired=True).pairs[0].p == pytest.approx(exact, abs=0.08)  # stopped early


@pytest.mark.parametrize("paired", [False, True])
@pytest.mark.parametrize("draw", [lambda g, n: g.normal(size=n), lambda g, n: g.integers(0, 3, n).astype(float)])
def test_identical_optimizers_differ_as_rarely_as_claimed(paired, draw):
    p = np.array(
        [
            compare({"a": draw(g, 12), "b": draw(g, 12)}, paired=paired, n_permutations=199, seed=i).pairs[0].p
            for i, g in enumerate(map(rng, range(200)))
        ]
    )
    for level in (0.05, 0.2):
        assert (p <= level).mean() < level + 3 * math.sqrt(level * (1 - level) / 200)
    assert (p <= 0.2).mean() > 0.1


def test_it_stays_right_where_only_the_spread_differs():
    p = [
        compare({"a": g.normal(0, 1, 40), "b": g.normal(0, 5, 10)}, n_permutations=199).pairs[0].p
        for g in map(rng, range(150))
    ]
    assert np.mean(np.array(p) <= 0.05) < 0.05 + 3 * math.sqrt(0.05 * 0.95 / 150)


def test_the_family_of_comparisons_has_few_false_claims():
    false_claims = sum(
        any(
            pair.p_adjusted <= 0.1 for pair in compare({k: g.normal(size=10) for k in "abcd"}, n_permutations=199).pairs
        )
        for g in map(rng, range(80))
    )
    assert false_claims / 80 < 0.1 + 3 * math.sqrt(0.1 * 0.9 / 80)


def test_the_interval_of_the_effect_covers_it():
    covered = 0
    for seed in range(200):
        g = rng(seed)
        a, b = g.normal(size=15), g.normal(1, 1, size=20)
        effect = compare({"a": a, "b": b}, n_permutations=1).pairs[0].effect
        covered += effect.lower <= stats.norm.cdf(1 / math.sqrt(2)) <= effect.upper
    assert 0.9 <= covered / 200 <= 0.99


def test_complete_separation_has_an_interval_and_a_small_p():
    (pair,) = compare({"a": np.arange(10.0), "b": np.arange(10.0, 25.0)}).pairs
    assert pair.effect.value == pair.effect.upper == 1
    assert 0.6 < pair.effect.lower < 1
    assert pair.p == pytest.approx(1e-4)
    (reverse,) = compare({"a": np.arange(10.0), "b": np.arange(10.0, 25.0)}, better="higher").pairs
    assert reverse.effect.value == reverse.effect.lower == 0
    assert reverse.effect.upper == pytest.approx(1 - pair.effect.lower)


def test_equal_values_do_not_differ():
    (pair,) = compare({"a": [1.0] * 6, "b": [1.0] * 7}).pairs
    assert pair.effect.value == 0.5
    assert pair.p == 1
    assert compare({"a": [1.0] * 6, "b": [1.0] * 6}, paired=True).pairs[0].p == 1


@pytest.mark.parametrize(("better", "expected"), [("lower", 0.75), ("higher", 0.5)])
def test_diverged_runs_rank_worst(better, expected):
    result = compare({"a": [1.0, 2.0], "b": [np.nan, 1.5]}, better=better)
    wins = [1.0, 1.0, 1.0, 0.0] if better == "lower" else [1.0, 1.0, 0.0, 1.0]
    assert result.pairs[0].effect.value == np.mean(wins)
    assert result.n_diverged == {"a": 0, "b": 1}
    assert "diverged runs rank worst: 1 of b" in result.describe()
    both = compare({"a": [np.nan, 1.0, -np.inf], "b": [np.inf, 2.0, 1.0]}, better=better, paired=True)
    assert both.pairs[0].effect.value == {"lower": 0.5, "higher": (0.5 + 0 + 0) / 3}[better]


def test_tiny_groups_say_so():
    alone = compare({"a": [1.0], "b": [2.0, 3.0]}).pairs[0]
    assert math.isnan(alone.p)
    assert math.isnan(alone.p_adjusted)
    assert "fewer than 2 runs" in alone.note
    few = compare({"a": [1.0, 2, 3], "b": [4.0, 5, 6]}).pairs[0]
    assert few.p == pytest.approx(0.1, abs=0.03)
    assert "below 0.1" in few.note
    assert "below 0.12" in compare({"a": [1.0] * 4, "b": [4.0, 5, 6, 7]}, paired=True).pairs[0].note


def test_corrections_agree_with_their_definitions():
    p = rng().uniform(size=8) ** 2
    order = np.argsort(p)
    holm = [max(min(1, (8 - j) * p[order[j]]) for j in range(list(order).index(i) + 1)) for i in range(8)]
    np.testing.assert_allclose(adjust(p), holm)
    np.testing.assert_allclose(adjust(p, "benjamini-hochberg"), stats.false_discovery_control(p))
    np.testing.assert_allclose(adjust([0.01, np.nan, 0.04]), [0.02, np.nan, 0.04])
    assert np.all(np.isnan(adjust([np.nan], "benjamini-hochberg")))


def test_comparisons_that_cannot_be_made_are_refused():
    with pytest.raises(ValueError, match="two groups"):
        compare({"a": [1, 2]})
    with pytest.raises(ValueError, match="a 2, b 3"):
        compare({"a": [1, 2], "b": [1, 2, 3]}, paired=True)
    with pytest.raises(ValueError, match="lower, higher"):
        compare({"a": [1, 2], "b": [1, 2]}, better="smaller")
    with pytest.raises(ValueError, match="holm"):
        compare({"a": [1, 2], "b": [1, 2]}, correction="bonferroni")


def test_the_same_seed_gives_the_same_p():
    groups = {name: rng(i).normal(size=12) for i, name in enumerate("abc")}
    assert compare(groups) == compare(groups)
    assert compare(groups) != compare(groups, seed=1)


# --- shared minima


def test_shared_minima_by_hand():
    labels = [4, 4, 7, -1, 4, 9, 9, 7]
    result = shared(labels, ["sgd"] * 4 + ["adam"] * 4)
    np.testing.assert_array_equal(result.minima, [4, 7, 9])
    np.testing.assert_array_equal(result.hits, [[2, 1], [1, 1], [0, 2]])
    np.testing.assert_array_equal(result.not_counted, [1, 0])
    np.testing.assert_array_equal(result.found_by_all(), [4, 7])
    np.testing.assert_array_equal(result.only_in("adam"), [9])
    assert len(result.only_in("sgd")) == 0
    (overlap,) = result.overlaps
    assert (overlap.n_shared, overlap.only_first, overlap.only_second) == (2, 0, 1)
    assert overlap.morisita.value == pytest.approx(2 * (3 / 12) / (2 / 6 + 2 / 12))
    assert result.rows()[0] == {"minimum": 4, "hits_sgd": 2, "hits_adam": 1}
    assert result.overlap_rows()[0]["n_shared"] == 2
    assert "1 by adam only" in result.describe()
    with pytest.raises(ValueError, match="sgd, adam"):
        result.only_in("rmsprop")


def test_morisita_is_unbiased_and_its_interval_covers():
    p = SCHWEFEL.reshape(49, 7).sum(axis=1)
    q = np.roll(p, 1)
    truth = 2 * p @ q / (p @ p + q @ q)
    values, covered = [], 0
    for seed in range(60):
        g = rng(seed)
        labels = np.concatenate([g.choice(49, 150, p=p), g.choice(49, 100, p=q)])
        estimate = shared(labels, ["a"] * 150 + ["b"] * 100).overlaps[0].morisita
        values.append(estimate.value)
        covered += estimate.lower <= truth <= estimate.upper
    assert np.mean(values) == pytest.approx(truth, abs=0.03)
    assert covered >= 52


def test_same_optimizer_twice_overlaps_whatever_the_number_of_runs():
    values = []
    for seed in range(30):
        labels = rng(seed).choice(343, 200, p=SCHWEFEL)
        values.append(shared(labels, ["a"] * 140 + ["b"] * 60).overlaps[0])
    assert np.mean([o.morisita.value for o in values]) == pytest.approx(1, abs=0.1)
    assert np.mean([o.n_shared / (o.n_shared + o.only_first + o.only_second) for o in values]) < 0.3


def test_optimizers_with_nothing_in_common():
    (overlap,) = shared([0, 0, 1, 1], ["a", "a", "b", "b"]).overlaps
    assert overlap.morisita.value == 0
    assert math.isnan(overlap.morisita.upper)
    assert math.isnan(shared([0, 1, 1], ["a", "b", "b"]).overlaps[0].morisita.value)


def test_the_jackknife_leaves_out_one_run_at_a_time():
    labels, groups = rng(4).integers(0, 4, 30), ["a"] * 18 + ["b"] * 12

    def morisita(kept):
        return shared(labels[kept], [groups[i] for i in kept]).overlaps[0].morisita

    variance = 0.0
    for group, n in (("a", 18), ("b", 12)):
        left = [morisita([k for k in range(30) if k != i]).value for i in range(30) if groups[i] == group]
        variance += (n - 1) / n * np.sum((np.array(left) - np.mean(left)) ** 2)
    whole = morisita(range(30))
    assert whole.upper - whole.value == pytest.approx(stats.norm.ppf(0.975) * math.sqrt(variance))


def test_labels_that_are_none_are_refused():
    for labels in ([0.5, 1.0], [[0, 1]], [0]):
        with pytest.raises(ValueError, match="labels must be"):
            shared(labels, ["a", "b"])
    with pytest.raises(ValueError, match="no run"):
        shared([-1, -1], ["a", "b"])


# --- nearly equal, and the trend


def test_spread_by_hand():
    initial, final = [2.0, 2.2, 2.4, 9.0, 2.2], [0.2, 0.3, 0.4, np.nan, 0.6]
    result = spread(initial, final)
    assert (result.n_runs, result.n_diverged) == (5, 1)
    assert result.gain == pytest.approx(2.0)
    assert result.full == pytest.approx(0.2)
    assert result.quartiles.value == pytest.approx((0.45 - 0.275) / 2)
    assert result.quartiles.lower < result.quartiles.value < result.quartiles.upper
    mirrored = spread(-np.array(initial), -np.array(final), better="higher")
    assert mirrored.quartiles.value == pytest.approx(result.quartiles.value)
    assert "1 diverged" in result.describe()


def test_the_interval_of_the_spread_covers_it():
    covered = 0
    # gain: 2.3 minus a minimum that is certain
    truth = np.diff(stats.beta.ppf([0.25, 0.75], 1, 1))[0] * 0.1 / 2.2
    for seed in range(60):
        g = rng(seed)
        final = np.append(0.1 + 0.1 * g.uniform(size=99), 0.1)
        result = spread(2.3 + 0.01 * g.normal(size=100), final, n_resamples=300)
        covered += result.quartiles.lower <= truth <= result.quartiles.upper
    assert covered >= 52


def test_spreads_that_mean_nothing_are_refused():
    with pytest.raises(ValueError, match="2 and 1"):
        spread([1, 2], [1])
    with pytest.raises(ValueError, match="no gain"):
        spread([1, 1, 1], [2, 2, 2])
    with pytest.raises(ValueError, match="1 of 2"):
        spread([1, np.nan], [0, 0])
    with pytest.raises(ValueError, match="lower, higher"):
        spread([1, 1], [0, 0], better="less")


def test_a_trend_of_known_slope_is_found():
    groups = {w: rng(w).normal(1 / w, w**-0.5, 200) for w in (100, 10, 1000, 30)}
    result = trend(groups)
    np.testing.assert_array_equal(result.width, [10, 30, 100, 1000])
    assert result.slope.lower < -0.5 < result.slope.upper
    assert result.slope.upper < -0.3
    assert result.rho < -0.5
    assert result.p == pytest.approx(1e-4)
    assert "shrinks" in result.describe()
    assert [row["n_runs"] for row in result.rows()] == [200] * 4


def test_no_trend_is_claimed_as_rarely_as_said():
    p = [
        trend({w: g.normal(1 / w, 1, 25) for w in (1, 2, 4)}, n_resamples=30, n_permutations=99).p
        for g in map(rng, range(150))
    ]
    assert np.mean(np.array(p) <= 0.1) < 0.1 + 3 * math.sqrt(0.1 * 0.9 / 150)
    assert np.mean(np.array(p) <= 0.1) > 0.02


def test_trends_that_cannot_be_seen_are_refused():
    x = np.arange(6.0)
    with pytest.raises(ValueError, match="3 positive widths"):
        trend({1: x, 2: x})
    with pytest.raises(ValueError, match="width 3 has 4"):
        trend({1: x, 2: x, 3: [1, 2, 3, 4, np.nan]})
    tied = trend({1: x, 2: x, 3: np.ones(6)})
    assert math.isnan(tied.slope.value)
    assert tied.n_diverged.sum() == 0


# --- tables


def test_tables_are_read_back(tmp_path):
    rows = compare({"a, b": [1.0, 2, 3], "ü": [2.0, 3, np.nan]}).rows()
    path = tmp_path / "tables" / "pairs.csv"
    write_csv(path, rows)
    with open(path, newline="", encoding="utf-8") as file:
        (read,) = csv.DictReader(file)
    assert read["first"] == "a, b"
    assert read["second"] == "ü"
    assert float(read["p"]) == rows[0]["p"]
    assert read["diverged_second"] == "1"
    with pytest.raises(ValueError, match="at least one row"):
        write_csv(path, [])
    with pytest.raises(ValueError, match="row 1 has the columns y"):
        write_csv(path, [{"x": 1}, {"y": 2}])


def test_every_result_gives_rows_and_words(tmp_path):
    results = [
        [unseen(SPIDERS).row()],
        rarefaction(SPIDERS).rows(),
        [sample.row() for sample in summarize({"a": [1.0, 2, 3]})],
        [spread([2, 2, 2], [0.1, 0.2, 0.4]).row()],
    ]
    for i, rows in enumerate(results):
        write_csv(tmp_path / f"{i}.csv", rows)
        assert len((tmp_path / f"{i}.csv").read_text().splitlines()) == len(rows) + 1
    with pytest.raises(FrozenInstanceError):
        unseen(SPIDERS).observed = 3
    assert re.fullmatch(r"1 \(90 % interval 0.5 to inf\)", Estimate(1, 0.5, math.inf, 0.9).describe())
