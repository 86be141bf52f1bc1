"""Metrics against scikit-learn, the published numbers, and slow implementations written from the definitions."""

from __future__ import annotations

import itertools
import math
import statistics

import numpy as np
import pytest
import scipy.spatial.distance
import sklearn.metrics

from fasttag import metrics


def sample(jets: int, steps: int, seed: int, signal: float = 0.5) -> tuple[np.ndarray, np.ndarray]:
    """Scores in multiples of 1/steps, so with ties, and labels of both classes."""
    rng = np.random.default_rng(seed)
    label = (rng.random(jets) < signal).astype(np.int64)
    label[:2] = 0, 1
    score = np.clip(rng.normal(0.45 + 0.1 * label, 0.3), 0, 1)
    return np.rint(score * steps) / steps, label


def slow_curve(score: np.ndarray, label: np.ndarray) -> list[tuple[float, float, float]]:
    """(eps_S, eps_B, threshold) of every cut, by counting."""
    cuts = [math.inf, *sorted(set(score.tolist()), reverse=True)]
    passed = lambda cut, k: float(np.sum(score[label == k] >= cut) / np.sum(label == k))
    return [(passed(cut, 1), passed(cut, 0), cut) for cut in cuts]


def slow_at(points: list[tuple[float, float]], x: float) -> float:
    """Linear interpolation; the last of several points at x."""
    below = [point for point in points if point[0] <= x][-1]
    above = next((point for point in points if point[0] > x), below)
    if below[0] == x or above == below:
        return below[1]
    return below[1] + (above[1] - below[1]) * (x - below[0]) / (above[0] - below[0])


@pytest.mark.parametrize("seed", range(20))
def test_roc_counts_every_cut(seed):
    score, label = sample(jets=2 + 4 * seed, steps=12, seed=seed)
    curve = metrics.roc(score, label)
    expected = np.array(slow_curve(score, label)).T
    np.testing.assert_array_equal(curve.signal_efficiency, expected[0])
    np.testing.assert_array_equal(curve.background_efficiency, expected[1])
    np.testing.assert_array_equal(curve.thresholds, expected[2])


@pytest.mark.parametrize("steps", [5, 10**9])
def test_auc_error_is_the_spread_of_pairs(steps):
    """From the matrix of all pairs, and the spread over samples."""
    score, label = sample(jets=80, steps=steps, seed=5, signal=0.3)
    a, b = score[label == 1][:, None], score[label == 0]
    wins = (a > b) + 0.5 * (a == b)
    expected = math.sqrt(wins.mean(1).var() / len(a) + wins.mean(0).var() / len(b))
    assert metrics.auc_error(score, label) == pytest.approx(expected, rel=1e-12)
    areas = [metrics.auc(*sample(2000, steps, seed)) for seed in range(200)]
    assert metrics.auc_error(*sample(2000, steps, 0)) == pytest.approx(np.std(areas), rel=0.2)


def test_auc_error_of_a_perfect_score():
    assert metrics.auc_error([0.9, 0.8, 0.2, 0.1], [1, 1, 0, 0]) == 0


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("steps", [7, 10**9])
def test_roc_and_auc_agree_with_sklearn(steps, dtype):
    score, label = sample(jets=5000, steps=steps, seed=3)
    score = score.astype(dtype)
    expected = sklearn.metrics.roc_curve(label, score, drop_intermediate=False)
    for ours, theirs in zip(metrics.roc(score, label), expected):
        np.testing.assert_array_equal(ours, theirs)
    assert metrics.auc(score, label) == pytest.approx(sklearn.metrics.roc_auc_score(label, score), abs=1e-14)


def test_one_jet_of_each_class():
    assert metrics.auc([0.9, 0.1], [1, 0]) == 1.0
    assert metrics.auc([0.1, 0.9], [1, 0]) == 0.0
    assert metrics.auc([0.5, 0.5], [1, 0]) == 0.5
    assert metrics.background_rejection([0.1, 0.9], [1, 0]).value == 1.0
    # both jets pass together: the curve is the diagonal
    assert metrics.background_rejection([0.5, 0.5], [1, 0], 0.25).value == 4.0


def test_arguments_are_left_alone_and_labels_may_be_boolean():
    score, label = sample(jets=100, steps=9, seed=1)
    before = score.copy(), label.copy()
    first, second = metrics.roc(score, label), metrics.roc(score.tolist(), label.astype(bool))
    assert np.array_equal(score, before[0]) and np.array_equal(label, before[1])
    assert all(np.array_equal(a, b) for a, b in zip(first, second))


def test_accuracy_rounds_half_to_even():
    assert metrics.accuracy([0.5, 0.5, 0.51, 0.49], [0, 1, 1, 0]) == 0.75


@pytest.mark.parametrize("efficiency", [0.05, 0.3, 0.5, 0.77, 1.0])
@pytest.mark.parametrize("seed", range(5))
def test_background_rejection_interpolates_the_full_curve(seed, efficiency):
    score, label = sample(jets=400, steps=16, seed=seed)
    eps_b = slow_at([point[:2] for point in slow_curve(score, label)], efficiency)
    rejection = metrics.background_rejection(score, label, efficiency)
    assert rejection.value == pytest.approx(1 / eps_b, rel=1e-12)
    assert rejection.error == pytest.approx(rejection.value * math.sqrt(rejection.value / np.sum(label == 0)))


@pytest.mark.parametrize("passing", [0, 1, 2, 5, 30])
def test_lower_limit_is_the_poisson_limit(passing):
    background = 1000
    score = np.concatenate([np.linspace(0.9, 0.8, 10), np.linspace(0.99, 0.95, passing), np.full(1000 - passing, 0.1)])
    label = np.arange(score.size) < 10
    rejection = metrics.background_rejection(score, label)
    mu = background / rejection.lower_limit
    below = sum(math.exp(-mu + i * math.log(mu) - math.lgamma(i + 1)) for i in range(passing + 1))
    assert below == pytest.approx(0.32, abs=0.002)
    assert rejection.value == (background / passing if passing else math.inf)
    assert rejection.error == (pytest.approx(rejection.value / math.sqrt(passing)) if passing else math.inf)


def test_lower_limit_is_never_below_one():
    assert metrics.background_rejection([0.9, 0.1], [1, 0]) == (math.inf, math.inf, 1.0)


@pytest.mark.shared
@pytest.mark.parametrize(
    "name, at_30, error, at_50, area, right",
    [
        ("particlenet", 1294.3205128205127, 103.62857707500116, 329.3866, 0.9847724638853335, 0.9383910891089109),
        ("pcnn", 759.0751879699249, None, 201.1096, 0.9802825331749243, 0.92958),
    ],
)
def test_published_scores(shared, name, at_30, error, at_50, area, right):
    """One training each of ParticleNet and P-CNN, with the numbers of arXiv:1902.09914 and of its notebook."""
    label = np.load(shared / "reference_scores" / "labels.npz")["is_top"]
    score = np.load(shared / "reference_scores" / f"{name}.npz")["score"]
    rejection = metrics.background_rejection(score, label, 0.3)
    assert rejection.value == pytest.approx(at_30, rel=1e-12)
    assert error is None or rejection.error == pytest.approx(error, rel=1e-12)
    assert metrics.background_rejection(score, label, 0.5).value == pytest.approx(at_50, abs=5e-5)
    assert metrics.auc(score, label) == pytest.approx(area, rel=1e-12)
    assert metrics.accuracy(score, label) == pytest.approx(right, abs=5e-6)


# fmt: off
PUBLISHED_SINGLE = {
    "ParticleNet, one dropped": (
        [1311.1298701298701, 1311.1298701298701, 1302.6709677419356, 1238.7361963190185, 1364.2837837837837,
         1057.1413612565445, 1216.3493975903614, 1238.7361963190185, 1294.3205128205127],
        (1298.4957402812242, 46.15639800427593),
    ),
    "TreeNiN, three dropped": (
        [1024.9441624365481, 1097.358695652174, 984.9463414634146, 1153.7942857142857, 1040.7938144329896,
         1024.9441624365481, 1035.4564102564102, 1014.6432160804021, 1009.57],
        (1024.9441624365481, 10.83293262418181),
    ),
    "LBN, one run inverted": (
        [893.4247787610619, 1.0139349901325205, 817.4655870445345, 855.5677966101695, 855.5677966101695,
         905.4439461883408, 830.9218106995885, 841.3083333333334, 810.8995983935744],
        (836.115072016461, 17.27368354172959),
    ),
    "EFP, one run nine times": ([383.8669201520912] * 9, (383.8669201520912, 0.0)),
}
# fmt: on


@pytest.mark.parametrize("name", PUBLISHED_SINGLE)
def test_single_runs_as_published(name):
    """1/eps_B of nine runs, and their median and spread, from the notebook of arXiv:1902.09914."""
    rejections, expected = PUBLISHED_SINGLE[name]
    assert metrics._single(np.array(rejections)) == pytest.approx(expected, rel=1e-12, abs=1e-9)


def slow_ensemble(scores: np.ndarray, label: np.ndarray, efficiency: float) -> dict[str, tuple[float, float]]:
    runs, background = len(scores), int(np.sum(label == 0))
    subsets = [tuple(range(runs))]
    if runs >= 3:
        subsets = list(itertools.combinations(range(runs), min(6, runs - 1)))
    result = {}
    for name, how in (("mean", statistics.fmean), ("median", statistics.median)):
        ranked = []
        for subset in subsets:
            together = np.array([how([scores[r, j] for r in subset]) for j in range(label.size)])
            curve = slow_curve(together, label)
            rank = slow_at([(s, 1 / max(b, 1 / background)) for s, b, _ in curve], efficiency)
            ranked.append((rank, slow_at([(s, b) for s, b, _ in curve], efficiency)))
        spread = statistics.pstdev([rank for rank, _ in ranked])
        result[name] = (1 / sorted(ranked, key=lambda pair: pair[0])[len(ranked) // 2][1], spread)
    return result


@pytest.mark.parametrize("runs", [1, 2, 3, 5, 9])
def test_ensemble_equals_a_slow_one(runs):
    # multiples of 1/64 average without rounding, so that ties are the same in both
    label = sample(200, 64, seed=5)[1]
    rng = np.random.default_rng(11)
    base = 0.45 + 0.05 * label
    scores = np.rint(np.clip(base + rng.normal(0, 0.2, (runs, label.size)), 0, 1) * 64) / 64
    result = metrics.ensemble(scores, label, 0.3)
    expected = slow_ensemble(scores, label, 0.3)
    assert result.mean == pytest.approx(expected["mean"], rel=1e-9)
    assert result.median == pytest.approx(expected["median"], rel=1e-9)
    areas = [sklearn.metrics.roc_auc_score(label, score) for score in scores]
    assert result.auc == pytest.approx(sorted(areas)[runs // 2])
    assert result.auc == metrics.auc(scores[result.run], label)
    assert result.accuracy == metrics.accuracy(scores[result.run], label)
    single = [metrics.background_rejection(score, label, 0.3).value for score in scores]
    if runs < 4:
        assert result.single == pytest.approx((statistics.median(single), statistics.pstdev(single)))
    assert min(single) <= result.single.value <= max(single)


def test_ensemble_where_no_background_passes():
    label = np.repeat([1, 0], 20)
    scores = np.tile(np.linspace(1, 0, 40), (3, 1))
    result = metrics.ensemble(scores, label)
    assert result.single == result.single._replace(value=math.inf, spread=math.inf)
    assert result.mean == result.median == (math.inf, 0.0)
    assert result.auc == 1.0


def test_r50_is_the_rejection_at_half():
    score, label = sample(jets=400, steps=16, seed=3)
    rejection = metrics.r50(score, label)
    assert rejection == metrics.background_rejection(score, label, 0.5)
    assert rejection != metrics.background_rejection(score, label, 0.3)


def sculpted(jets: int, seed: int, pull: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scores with ties, labels and masses; the background's score knows its mass where `pull` is not zero."""
    rng = np.random.default_rng(seed)
    label = rng.integers(0, 2, jets)
    mass = np.where(label, rng.normal(173, 15, jets), 20 + rng.exponential(70, jets))
    return np.round(rng.normal(0.9 * label, 1) + pull * mass / 100, 2), label, mass


@pytest.mark.parametrize("options", [{}, {"efficiency": 0.3, "bins": 7, "range": (80.0, 200.0)}, {"efficiency": 0.9}])
@pytest.mark.parametrize("pull", [0, 1])
def test_jsd_agrees_with_scipy(pull, options):
    score, label, mass = sculpted(4000, 1, pull)
    cut = sorted(score[label == 1])[::-1][math.ceil(options.get("efficiency", 0.5) * label.sum()) - 1]
    edges = np.linspace(*options.get("range", (50, 300)), options.get("bins", 50) + 1)
    passing, failing = (np.histogram(mass[(label == 0) & part], edges)[0] for part in (score >= cut, score < cut))
    expected = scipy.spatial.distance.jensenshannon(passing, failing, base=2) ** 2
    assert metrics.jsd(score, label, mass, **options).value == pytest.approx(expected, rel=1e-12)


def test_jsd_of_shapes_that_are_equal_or_apart():
    score = np.repeat([0.7, 0.8, 0.1], [10, 40, 40])
    label = np.repeat([1, 0], [10, 80])
    mass = np.concatenate([np.full(10, 170), np.tile([60, 70, 80, 310], 20)])
    # of the background only the three bins within the range count: a share of 1/3 each
    assert metrics.jsd(score, label, mass).value == 0
    assert metrics.jsd(score, label, np.where(score == 0.8, 100, mass)).value == pytest.approx(1)
    apart = metrics.jsd(score, label, np.where(score == 0.8, 100, 200))
    assert apart == (pytest.approx(1), 0, pytest.approx(apart.floor)) and 0 < apart.floor < 0.02


def test_jsd_without_jets_on_one_side_is_nan():
    score, label = [0.7, 0.8, 0.1], [1, 0, 0]
    for mass in ([170, 60, 320], [170, 320, 60], [170, 320, 320]):
        assert np.isnan(metrics.jsd(score, label, mass)).all()
    assert not np.isnan(metrics.jsd(score, label, [170, 60, 60])).any()


@pytest.mark.parametrize(("pull", "largest"), [(4.0, 1.15), (1.0, 1.15), (0.0, 1.6)])
def test_jsd_error_and_floor(pull, largest):
    """Over 300 samples: the error is the spread (up to 1.4 times it at the floor), the floor the mean without pull."""
    found = [metrics.jsd(*sculpted(16000, seed, pull), bins=10, efficiency=0.3) for seed in range(300)]
    value, error, floor = np.mean(found, axis=0)
    spread = np.std([entry.value for entry in found])  # known to 4%, and holds the error of the cut
    assert 0.85 < error / spread < largest
    if pull:
        assert value > 10 * floor
    else:
        assert value == pytest.approx(floor, rel=0.12)  # the mean of 300 is known to 3%


def test_jsd_floor_falls_with_the_sample():
    small, large = (metrics.jsd(*sculpted(jets, 5, 0.0)) for jets in (2000, 200_000))
    assert small.floor > 50 * large.floor
    assert metrics.jsd(*sculpted(2000, 5, 0.0)) == small


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"efficiency": 0}, "jsd: efficiency must lie above 0 and up to 1, got 0"),
        ({"bins": 0}, r"jsd: bins must be 1 or more over a finite, rising range, got 0 over \(50.0, 300.0\)"),
        ({"range": (300, 50)}, r"jsd: bins must be .* got 50 over \(300, 50\)"),
        ({"range": (50, math.inf)}, "jsd: bins must be"),
        (
            {"mass": [1.0, math.nan]},
            r"jsd: mass must be finite and of shape \(2,\), got shape \(2,\) with 1 not finite",
        ),
        ({"mass": [1.0]}, r"jsd: mass must be finite and of shape \(2,\), got shape \(1,\)"),
        ({"score": [0.1, math.nan]}, "jsd: score must be finite"),
        ({"label": [0, 2]}, "jsd: label must be 0 or 1"),
    ],
)
def test_jsd_errors(options, message):
    with pytest.raises(ValueError, match=message):
        metrics.jsd(**{"score": [0.1, 0.9], "label": [0, 1], "mass": [60.0, 170.0], **options})


@pytest.mark.parametrize(
    "function", [metrics.roc, metrics.auc, metrics.accuracy, metrics.background_rejection, metrics.r50]
)
@pytest.mark.parametrize(
    "score, label, message",
    [
        ([0.1, np.nan], [0, 1], "score must be finite, got nan at jet 1"),
        ([0.1, 0.2, np.inf], [0, 1, 1], "score must be finite, got inf at jet 2"),
        ([0.1, 0.2], [0, 2], "label must be 0 or 1, got 2 at jet 1"),
        ([0.1, 0.2], [0.0, np.nan], "label must be 0 or 1, got nan at jet 1"),
        ([0.1, 0.2], [1, 1], "label must hold both classes, got 2 signal and 0 background"),
        ([0.1, 0.2], [0, 0], "label must hold both classes, got 0 signal and 2 background"),
        ([], [], "label must hold both classes, got 0 signal and 0 background"),
        ([0.1, 0.2, 0.3], [0, 1], r"must have one shape \(J,\), got \(3,\) and \(2,\)"),
        ([[0.1, 0.2]], [[0, 1]], r"must have one shape \(J,\), got \(1, 2\)"),
    ],
)
def test_wrong_input_is_named(function, score, label, message):
    with pytest.raises(ValueError, match=message):
        function(score, label)


@pytest.mark.parametrize("efficiency", [0, -0.1, 1.1, math.nan])
def test_efficiency_out_of_range(efficiency):
    for function, score in ((metrics.background_rejection, [0.1, 0.9]), (metrics.ensemble, [[0.1, 0.9]])):
        with pytest.raises(ValueError, match="efficiency must lie above 0 and up to 1"):
            function(score, [0, 1], efficiency)


def test_accuracy_and_ensemble_want_probabilities():
    with pytest.raises(ValueError, match=r"accuracy: score must lie in 0\.\.1, got -1\.0\.\.3\.0"):
        metrics.accuracy([-1.0, 3.0], [0, 1])
    with pytest.raises(ValueError, match=r"ensemble: score must lie in 0\.\.1"):
        metrics.ensemble([[0.1, 0.9], [-1.0, 3.0]], [0, 1])
    with pytest.raises(ValueError, match=r"ensemble: scores must have shape \(R, J\), got \(2,\)"):
        metrics.ensemble([0.1, 0.9], [0, 1])
    with pytest.raises(ValueError, match=r"ensemble: score and label must have one shape"):
        metrics.ensemble([[0.1, 0.9, 0.2]], [0, 1])
