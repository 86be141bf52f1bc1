"""Numbers that judge a tagger, exactly as in the landscape comparison, arXiv:1902.09914.

Scores grow with signal-likeness and label 1 is signal. eps_S and eps_B are the fractions of signal and background jets
that pass a cut on the score; N_B is the number of background jets.
"""

from __future__ import annotations

import itertools
from typing import Any, NamedTuple

import numpy as np

# quantile of the normal distribution at 68%
_Z68 = 0.4676988


class Roc(NamedTuple):
    """Points of a ROC curve, from no jet passing to all; each (P,)."""

    background_efficiency: np.ndarray
    signal_efficiency: np.ndarray
    thresholds: np.ndarray


class Rejection(NamedTuple):
    """1/eps_B with its statistical error and 68% lower limit."""

    value: float
    error: float
    lower_limit: float


class Divergence(NamedTuple):
    """Jensen-Shannon divergence in bits (0 to 1) with its statistical error, and what equal shapes give on average."""

    value: float
    error: float
    floor: float


class Estimate(NamedTuple):
    """1/eps_B of several trainings with its spread, a standard deviation over runs or subsets of runs."""

    value: float
    spread: float


class Ensemble(NamedTuple):
    """1/eps_B of single runs and of two ways to combine them; AUC and accuracy of the run that has the median AUC."""

    single: Estimate
    mean: Estimate
    median: Estimate
    run: int
    auc: float
    accuracy: float


def _checked(op: str, score: Any, label: Any, probability: bool = False) -> tuple[np.ndarray, np.ndarray]:
    score, label = np.asarray(score), np.asarray(label)
    if score.ndim != 1 or label.shape != score.shape:
        raise ValueError(
            f"{op}: score and label must have one shape (J,), got {score.shape} and {label.shape}; "
            "give one score and one label per jet"
        )
    bad = np.flatnonzero(~np.isfinite(score))
    if bad.size:
        raise ValueError(
            f"{op}: score must be finite, got {score[bad[0]]} at jet {bad[0]} ({bad.size} of {score.size} jets); "
            "look for NaN in the inputs or the model"
        )
    signal = label == 1
    bad = np.flatnonzero(~signal & (label != 0))
    if bad.size:
        raise ValueError(
            f"{op}: label must be 0 or 1, got {label[bad[0]]} at jet {bad[0]}; pass label == k for class k as signal"
        )
    count = int(signal.sum())
    if count in (0, score.size):
        raise ValueError(
            f"{op}: label must hold both classes, got {count} signal and {score.size - count} background jets; "
            "take a larger sample"
        )
    if probability and not (score.min() >= 0 and score.max() <= 1):
        raise ValueError(
            f"{op}: score must lie in 0..1, got {score.min()}..{score.max()}; pass probabilities, not logits"
        )
    return score, signal


def _checked_mass(op: str, mass: Any, score: np.ndarray) -> np.ndarray:
    mass = np.asarray(mass)
    if mass.shape != score.shape or not np.isfinite(mass).all():
        raise ValueError(
            f"{op}: mass must be finite and of shape {score.shape}, got shape {mass.shape} with "
            f"{np.sum(~np.isfinite(mass))} not finite; give one mass per jet"
        )
    return mass


def roc(score: Any, label: Any) -> Roc:
    """The full ROC curve: every distinct score is a cut, jets with score >= threshold pass.

    score : (J,) finite, float or integer.  label : (J,) 0 or 1, 1 = signal.

    Returns Roc(background_efficiency, signal_efficiency, thresholds), each (P,) with P = 1 + the number of distinct
    scores, thresholds falling from inf. The same as sklearn's `roc_curve` without dropped points; jets of equal score
    pass together.

    Raises ValueError for wrong shapes, scores that are not finite, labels other than 0 and 1, or a class without jets.

    >>> roc([0.9, 0.8, 0.8, 0.1], [1, 1, 0, 0]).signal_efficiency
    array([0. , 0.5, 1. , 1. ])
    """
    score, signal = _checked("roc", score, label)
    order = np.argsort(score)[::-1]
    falling = score[order]
    last = np.append(np.flatnonzero(falling[1:] != falling[:-1]), score.size - 1)
    passed = np.cumsum(signal[order])[last]
    failed = last + 1 - passed
    start = [0.0]
    return Roc(
        np.concatenate([start, failed / failed[-1]]),
        np.concatenate([start, passed / passed[-1]]),
        np.concatenate([[np.inf], falling[last]]),
    )


def auc(score: Any, label: Any) -> float:
    """Area under the ROC curve (trapezoids): the chance that a signal jet scores above a background jet, ties half.

    Arguments and errors as `roc`.

    >>> auc([0.9, 0.8, 0.8, 0.1], [1, 1, 0, 0])
    0.875
    """
    return _area(roc(score, label))


def _area(curve: Roc) -> float:
    return float(np.trapezoid(curve.signal_efficiency, curve.background_efficiency))


def auc_error(score: Any, label: Any) -> float:
    """Statistical error of `auc`, from both samples: DeLong et al., Biometrics 44 (1988) 837, eqs. 3 and 5.

    error^2 = Var_S[V] / N_S + Var_B[V] / N_B, with V of a signal jet the fraction of background below it, V of a
    background jet the fraction of signal above it, ties half, and variances over N rather than N - 1 jets. O(n log n).
    Arguments and errors as `roc`.

    >>> round(auc_error([0.9, 0.8, 0.7, 0.6], [1, 0, 1, 0]), 4)
    0.25
    """
    curve = roc(score, label)
    background, signal = np.diff(curve.background_efficiency), np.diff(curve.signal_efficiency)
    above = curve.signal_efficiency[1:] - signal / 2
    below = 1 - curve.background_efficiency[1:] + background / 2
    counts = _background(label), np.asarray(label).size - _background(label)
    spreads = [
        np.sum(weights * values**2) - np.sum(weights * values) ** 2
        for weights, values in ((background, above), (signal, below))
    ]
    return float(sum(max(spread, 0) / count for spread, count in zip(spreads, counts)) ** 0.5)


def accuracy(score: Any, label: Any) -> float:
    """Fraction of jets whose score, rounded at 0.5 (half to even: 0.5 counts as background), equals the label.

    score : (J,) signal probabilities in 0..1; a ValueError otherwise. The rest as `roc`.

    >>> accuracy([0.9, 0.5, 0.8, 0.1], [1, 1, 0, 0])
    0.5
    """
    score, signal = _checked("accuracy", score, label, probability=True)
    return float(np.mean(np.rint(score) == signal))


def background_rejection(score: Any, label: Any, efficiency: float = 0.3) -> Rejection:
    """1/eps_B at the signal efficiency eps_S, arXiv:1902.09914 (section 4).

    eps_B is interpolated linearly in eps_S on the full ROC curve; where several points have just this eps_S, the
    largest eps_B counts. With R = 1/eps_B:

    - error = R sqrt(R / N_B), the binomial error for small eps_B;
    - lower_limit = N_B / mu, at least 1, with mu the 68% upper limit (one-sided, Poisson) on the number of background
      jets when k = eps_B N_B pass, mu = (k+1) (1 - 1/(9(k+1)) + z/(3 sqrt(k+1)))^3, z = 0.4677: Gehrels,
      ApJ 303 (1986) 336, eq. 9, within 0.2% of the exact limit.

    When no background passes, value and error are inf and lower_limit is N_B / 1.14.

    score, label, errors : as `roc`.  efficiency : eps_S, 0 < eps_S <= 1, else ValueError.

    >>> background_rejection([0.9, 0.8, 0.7, 0.6], [1, 0, 1, 0], 0.5).value
    2.0
    """
    return _rejection(roc(score, label), _background(label), _efficiency("background_rejection", efficiency))


def _efficiency(op: str, efficiency: float) -> float:
    if not 0 < efficiency <= 1:
        raise ValueError(f"{op}: efficiency must lie above 0 and up to 1, got {efficiency}; 0.3 and 0.5 are usual")
    return efficiency


def _background(label: Any) -> int:
    return int(np.sum(np.asarray(label) == 0))


def _rejection(curve: Roc, background: int, efficiency: float) -> Rejection:
    eps_b = float(np.interp(efficiency, curve.signal_efficiency, curve.background_efficiency))
    n = eps_b * background + 1
    limit = max(background / (n * (1 - 1 / (9 * n) + _Z68 / (3 * n**0.5)) ** 3), 1.0)
    if eps_b == 0:
        return Rejection(np.inf, np.inf, limit)
    value = 1 / eps_b
    return Rejection(value, value * (value / background) ** 0.5, limit)


def r50(score: Any, label: Any) -> Rejection:
    """1/eps_B at eps_S = 0.5, the rejection that decorrelation studies quote: `background_rejection` at 0.5.

    >>> r50([0.9, 0.8, 0.7, 0.6], [1, 0, 1, 0]).value
    2.0
    """
    return _rejection(roc(score, label), _background(label), 0.5)


def jsd(
    score: Any,
    label: Any,
    mass: Any,
    *,
    efficiency: float = 0.5,
    bins: int = 50,
    range: tuple[float, float] = (50.0, 300.0),
) -> Divergence:
    """How far a cut at signal efficiency eps_S sculpts the background's mass, as in arXiv:2001.05310.

    With p and f the mass histograms of the background jets that pass and fail, each normalised to 1, and m their mean,

        JSD = 1/2 sum p log2(p / m) + 1/2 sum f log2(f / m):

    0 for equal shapes, 1 for shapes that do not overlap. Usually 1/JSD is plotted, against `r50`. The cut is the
    highest that at least eps_S of the signal passes; jets of equal score pass together. Jets outside `range` count for
    the cut, not for the histograms.

    - error: of first order in the counts, for a cut without error. With n_p and n_f jets,
      error^2 = Var_p[log2(p / m) / 2] / n_p + Var_f[log2(f / m) / 2] / n_f. Where value is near floor it is up to
      1.4 times too large;
    - floor: the mean JSD of 400 random choices (seed 0) of n_p among the n_p + n_f jets, what a cut blind to the mass
      would give. Counts are finite, so it is not 0: about (bins - 1) (1/n_p + 1/n_f) / (8 ln 2). `value` has this bias
      too; where it does not exceed the floor, no sculpting is seen.

    Where no background jet within `range` passes, or none fails, all three are nan.

    score, label, errors : as `roc`.  mass : (J,), finite, in the unit of `range` (GeV).  efficiency : 0 < eps_S <= 1.
    bins : equal bins, 1 or more, over `range`.

    >>> score, label, mass = [0.9, 0.8, 0.7, 0.6, 0.5], [1, 0, 1, 0, 0], [170, 190, 180, 60, 70]
    >>> jsd(score, label, mass, efficiency=1.0, bins=2).value
    1.0
    """
    score, signal = _checked("jsd", score, label)
    mass = _checked_mass("jsd", mass, score)
    _efficiency("jsd", efficiency)
    if bins < 1 or not -np.inf < range[0] < range[1] < np.inf:
        raise ValueError(
            f"jsd: bins must be 1 or more over a finite, rising range, got {bins} over {range}; "
            "50 over (50, 300) GeV are usual"
        )
    curve = roc(score, label)
    passes = score >= curve.thresholds[np.searchsorted(curve.signal_efficiency, efficiency)]
    passed, failed = (np.histogram(mass[~signal & part], bins, range)[0] for part in (passes, ~passes))
    n_p, n_f = int(passed.sum()), int(failed.sum())
    if n_p == 0 or n_f == 0:
        return Divergence(np.nan, np.nan, np.nan)
    value, variances = _divergence(passed / n_p, failed / n_f)
    drawn = np.random.default_rng(0).multivariate_hypergeometric(passed + failed, n_p, 400, method="marginals")
    floor, _ = _divergence(drawn / n_p, (passed + failed - drawn) / n_f)
    error = (variances[0] / n_p + variances[1] / n_f) ** 0.5
    return Divergence(float(value), float(error), float(np.mean(floor)))


def _divergence(p: np.ndarray, f: np.ndarray) -> tuple[np.ndarray, list[np.ndarray]]:
    """JSD of shapes (..., bins), and the variances of its derivative, log2(share / m) / 2, under p and under f."""
    mean = (p + f) / 2
    value, variances = np.zeros(p.shape[:-1]), []
    for share in (p, f):
        slope = 0.5 * np.log2(np.divide(share, mean, out=np.ones_like(mean), where=share > 0))
        average = np.sum(share * slope, -1, keepdims=True)
        value = value + average[..., 0]
        variances.append(np.sum(share * (slope - average) ** 2, -1))
    return value, variances


def ensemble(scores: Any, label: Any, efficiency: float = 0.3) -> Ensemble:
    """1/eps_B of several trainings of one tagger, singly and combined, as in arXiv:1902.09914 (table 1).

    - single: runs with outlying 1/eps_B are dropped (mean and standard deviation of the runs within the percentiles
      100/6 and 500/6; those within 3 standard deviations stay), then the median and the standard deviation;
    - mean, median: for every subset of six runs the scores are averaged (their median is taken) jet by jet; the value
      is that of the subset with the median 1/eps_B, the spread is the standard deviation over the subsets;
    - run, auc, accuracy: the run with the median AUC.

    "The median" of an ordered list is its element len // 2, save for single. Subsets are ordered, and their spread is
    taken, by 1/eps_B interpolated as such, with eps_B no less than 1/N_B; values come from `background_rejection`.
    Among n runs there are C(n, min(6, n-1)) subsets, 84 for nine; below three runs all are combined once. Below four
    runs, or when a run passes no background, none is dropped; the spread is inf in the second case.

    The spread is that of trainings, not the statistical error, which is usually larger.

    scores : (R, J) signal probabilities in 0..1, one row per run.  label, efficiency and errors as
    `background_rejection` and `accuracy`.

    >>> ensemble([[0.9, 0.8, 0.7, 0.6]], [1, 0, 1, 0], 0.5).mean
    Estimate(value=2.0, spread=0.0)
    """
    scores, background = np.asarray(scores, dtype=np.float64), _background(label)
    if scores.ndim != 2 or not len(scores):
        raise ValueError(f"ensemble: scores must have shape (R, J), got {scores.shape}; stack one row per run")
    _efficiency("ensemble", efficiency)
    for score in scores:
        _checked("ensemble", score, label, probability=True)
    runs = len(scores)
    curves = [roc(score, label) for score in scores]
    areas = [_area(curve) for curve in curves]
    median = int(np.argsort(areas, kind="stable")[runs // 2])
    rejections = np.array([_rejection(curve, background, efficiency).value for curve in curves])
    subsets = [list(s) for s in itertools.combinations(range(runs), min(6, runs - 1))] if runs > 2 else [[*range(runs)]]
    jets = np.ascontiguousarray(scores.T)

    def combined(how: Any) -> Estimate:
        ranks = np.empty(len(subsets))
        for i, subset in enumerate(subsets):
            curve = roc(how(jets[:, subset], axis=1), label)
            inverse = 1 / np.maximum(curve.background_efficiency, 1 / background)
            ranks[i] = np.interp(efficiency, curve.signal_efficiency, inverse)
        chosen = subsets[np.argsort(ranks, kind="stable")[len(ranks) // 2]]
        value = background_rejection(how(jets[:, chosen], axis=1), label, efficiency).value
        return Estimate(value, float(np.std(ranks)))

    return Ensemble(
        _single(rejections),
        combined(np.mean),
        combined(np.median),
        median,
        areas[median],
        accuracy(scores[median], label),
    )


def _single(rejections: np.ndarray) -> Estimate:
    if not np.isfinite(rejections).all():
        return Estimate(float(np.median(rejections)), np.inf)
    if rejections.size > 3:
        low, high = np.percentile(rejections, [100 / 6, 500 / 6])
        inner = rejections[(rejections >= low) & (rejections <= high)]
        # equal runs have no spread, and their mean need not equal them to the last bit
        width = 3 * np.std(inner) + 1e-9 * np.mean(inner)
        rejections = rejections[np.abs(rejections - np.mean(inner)) <= width]
    return Estimate(float(np.median(rejections)), float(np.std(rejections)))
