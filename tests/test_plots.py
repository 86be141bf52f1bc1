"""Figures: scales, labels, orientation and values of what is drawn; nothing global in matplotlib changes."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from matplotlib.figure import Figure

import fasttag
from fasttag import metrics, plots


@pytest.fixture(scope="module")
def scored():
    rng = np.random.default_rng(2)
    label = rng.integers(0, 2, 4000)
    score = 1 / (1 + np.exp(-rng.normal(2.0 * label - 1.0, 1.5)))
    mass = np.where(label, rng.normal(173, 15, label.size), rng.gamma(3, 25, label.size))
    return score, label, mass


def texts(axes):
    return [text.get_text() for text in axes.get_legend().get_texts()]


def drawn(figure):
    """The figure is complete: it draws, without warnings, into a PNG."""
    png = plots.to_png(figure, dpi=50)
    assert isinstance(figure, Figure) and png.startswith(b"\x89PNG") and len(png) > 1000


def test_roc_curves(scored):
    score, label, _ = scored
    figure = plots.roc_curves({"good": (score, label), "poor": (np.round(score, 1), label)})
    drawn(figure)
    (axes,) = figure.axes
    assert axes.get_yscale() == "log" and axes.get_xlim() == (0, 1)
    assert "epsilon_S" in axes.get_xlabel() and "1/\\epsilon_B" in axes.get_ylabel()
    assert texts(axes)[0] == f"good  (AUC {metrics.auc(score, label):.4f})" and texts(axes)[-1] == "random"
    dots = axes.lines[1]
    expected = [metrics.background_rejection(score, label, e).value for e in (0.3, 0.5)]
    np.testing.assert_allclose(dots.get_xdata(), [0.3, 0.5])
    np.testing.assert_allclose(dots.get_ydata(), expected)
    random = next(line for line in axes.lines if line.get_label() == "random")
    np.testing.assert_allclose(random.get_ydata() * random.get_xdata(), 1)


def test_roc_band_is_the_statistical_error(scored):
    score, label, _ = scored
    (axes,) = plots.roc_curves({"good": (score, label)}).axes
    band = axes.collections[0].get_paths()[0].vertices
    at_half = band[np.isclose(band[:, 0], 0.5), 1]
    rejection = metrics.background_rejection(score, label, 0.5)
    assert {round(y, 6) for y in at_half} == {round(rejection.value + sign * rejection.error, 6) for sign in (-1, 1)}


def test_roc_curve_ends_where_no_background_passes():
    score = np.concatenate([np.linspace(1, 0.5, 50), np.linspace(0.7, 0, 50)])
    (axes,) = plots.roc_curves({"tagger": (score, np.repeat([1, 0], 50))}).axes
    efficiency, value = axes.lines[0].get_data()
    assert np.isnan(value[efficiency < 0.59]).all() and np.isfinite(value[efficiency > 0.65]).all()


def two_prong(pts, eta, phi):
    """A jet of constituents at (eta, phi)."""
    pts, eta, phi = (np.array(values, dtype=np.float64) for values in (pts, eta, phi))
    return np.array([pts * np.cos(phi), pts * np.sin(phi), pts * np.sinh(eta), pts * np.cosh(eta)])


def test_images_have_phi_up_and_the_harder_half_above():
    # 0.63 apart: the centre is 0.21 from the harder prong, so they fall into the rows of +0.21 and -0.42
    signal = two_prong([100, 50], [0.0, 0.63 * 0.6], [1.0, 1.0 + 0.63 * 0.8])
    background = two_prong([80], [0.3], [-2.0])
    p4 = np.concatenate([background, signal], 1)
    jets = fasttag.Jets(p4, np.array([0, 1, 3]), labels={"label": np.array([0, 1])})
    figure = plots.average_images(jets)
    drawn(figure)
    first, second, third = figure.axes[:3]
    assert [axes.get_title() for axes in (first, second, third)] == ["Signal", "Background", "Signal $-$ background"]
    for axes in (first, second, third):
        (image,) = axes.images
        assert image.origin == "lower" and list(image.get_extent()) == [-0.8, 0.8, -0.8, 0.8]
        assert axes.get_ylim() == (-0.8, 0.8) and "eta" in axes.get_xlabel()
    assert "phi" in first.get_ylabel() and "rad" in first.get_ylabel()
    rows = first.images[0].get_array().sum(1)
    assert np.flatnonzero(rows).tolist() == [9, 25]
    np.testing.assert_allclose(rows[[25, 9]], [2 / 3, 1 / 3])
    assert second.images[0].get_array().sum() == pytest.approx(1)
    bars = [axes.get_ylabel() for axes in figure.axes[3:]]
    assert bars == ["Mean $p_T$ fraction per pixel", "Difference"]


def test_images_are_the_means_of_pixelate(jets64):
    label = jets64.labels["label"]
    images = fasttag.pixelate(jets64)[:, 0]
    shown = [axes.images[0].get_array() for axes in plots.average_images(jets64).axes[:3]]
    signal, background = images[label == 1].mean(0), images[label == 0].mean(0)
    for ours, expected in zip(shown, (signal, background, signal - background)):
        np.testing.assert_allclose(ours, expected, atol=1e-7)
    flipped = plots.average_images(jets64, label=1 - label).axes[0].images[0].get_array()
    np.testing.assert_allclose(flipped, background, atol=1e-7)
    torch = plots.average_images(jets64.to(library="torch")).axes[0].images[0].get_array()
    np.testing.assert_array_equal(torch, shown[0])


def test_images_that_are_empty_or_equal_still_draw():
    empty = fasttag.Jets(np.zeros((4, 0)), np.zeros(3, np.int64), labels={"label": np.array([0, 1])})
    drawn(plots.average_images(empty))


@pytest.mark.parametrize("label", [np.zeros(64, int), np.ones(3, int), np.arange(64) % 3])
def test_images_refuse_bad_labels(jets64, label):
    with pytest.raises(ValueError, match="average_images: label must be"):
        plots.average_images(jets64, label)


def test_images_need_labels(jets64):
    with pytest.raises(ValueError, match="average_images: label must be given"):
        plots.average_images(fasttag.Jets(jets64.p4, jets64.offsets))


def test_score_histogram(scored):
    score, label, _ = scored
    figure = plots.score_histogram(score, label)
    drawn(figure)
    (axes,) = figure.axes
    assert axes.get_yscale() == "log" and axes.get_xlim() == (0, 1) and axes.get_xlabel() == "Tagger score"
    for patch, k in zip(axes.patches, (1, 0)):
        values, edges, _ = patch.get_data()
        assert values.sum() == pytest.approx(1)
        np.testing.assert_allclose(values * np.sum(label == k), np.histogram(score[label == k], edges)[0])
    assert [text.split()[0] for text in texts(axes)] == ["signal", "background"]
    assert axes.patches[0].get_edgecolor() != axes.patches[1].get_edgecolor()


@pytest.mark.parametrize("score", [np.array([-4.0, 2.0, 7.0]), np.array([3.0, 3.0, 3.0])])
def test_score_histogram_shows_every_logit(score):
    figure = plots.score_histogram(score, [0, 1, 1])
    drawn(figure)
    assert all(patch.get_data().values.sum() == pytest.approx(1) for patch in figure.axes[0].patches)


def test_mass_sculpting(scored):
    score, label, mass = scored
    figure = plots.mass_sculpting(score, label, mass)
    drawn(figure)
    (axes,) = figure.axes
    assert axes.get_xlabel() == "Jet mass [GeV]" and axes.get_ylim()[0] == 0 and axes.get_yscale() == "linear"
    names = texts(axes)
    assert names[:2] == ["signal", "background, no cut"]
    for efficiency, container, name in zip((0.3, 0.5), axes.containers, names[2:]):
        cut = np.quantile(score[label == 1], 1 - efficiency)
        left = np.sum((label == 0) & (score >= cut))
        assert f"{efficiency}" in name and f"({left:,} left)" in name
        assert container.lines[0].get_ydata().sum() == pytest.approx(1, abs=0.02)
    values, edges, _ = axes.patches[1].get_data()
    expected = np.histogram(mass[label == 0], edges)[0] / np.sum(label == 0)
    np.testing.assert_allclose(values, expected)


def test_mass_sculpting_with_hardly_any_background_left():
    score, label = np.linspace(1, 0, 40), np.repeat([1, 0], 20)
    score[20] = 1
    figure = plots.mass_sculpting(score, label, np.linspace(200, 20, 40))
    drawn(figure)
    assert texts(figure.axes[0])[2].endswith("(1 left)")
    assert all(container.lines[0].get_ydata().size == 0 for container in figure.axes[0].containers)


@pytest.mark.parametrize("mass", [[1.0], [np.nan, 1.0]])
def test_mass_sculpting_refuses_bad_masses(mass):
    with pytest.raises(ValueError, match="mass_sculpting: mass must be finite"):
        plots.mass_sculpting([0.1, 0.9], [0, 1], mass)


@pytest.mark.parametrize("epochs", [1, 20])
def test_history(epochs):
    entries = [
        {"epoch": i, "train_loss": 1 / i, "val_loss": 2 / i, "val_auc": 1 - 0.5 / i} for i in range(1, epochs + 1)
    ]
    figure = plots.history(entries)
    drawn(figure)
    loss, area = figure.axes
    assert texts(loss) == ["training", "validation"] and loss.get_xlabel() == area.get_xlabel() == "Epoch"
    np.testing.assert_array_equal(loss.lines[1].get_ydata(), [entry["val_loss"] for entry in entries])
    np.testing.assert_array_equal(area.lines[0].get_ydata(), [entry["val_auc"] for entry in entries])
    assert all(float(tick).is_integer() for tick in loss.get_xticks())


def test_history_needs_an_epoch():
    with pytest.raises(ValueError, match="history: entries must hold at least one epoch"):
        plots.history([])


CHILD = """
import sys
import numpy as np
from fasttag import plots
assert "matplotlib" not in sys.modules, "importing fasttag.plots loads matplotlib"
import matplotlib
before = matplotlib.rcParams.copy()
score, label = np.linspace(0, 1, 50), np.arange(50) % 3 > 0
plots.to_png(plots.roc_curves({"tagger": (score, label)}))
plots.to_png(plots.score_histogram(score, label))
plots.to_png(plots.mass_sculpting(score, label, 100 * score))
plots.to_png(plots.history([{"epoch": 1, "train_loss": 1.0, "val_loss": 1.0, "val_auc": 0.5}]))
assert matplotlib.rcParams.copy() == before, "rcParams changed"
assert "matplotlib.pyplot" not in sys.modules, "pyplot was loaded"
"""


def test_nothing_global_changes():
    child = subprocess.run([sys.executable, "-c", CHILD], capture_output=True, text=True)
    assert child.returncode == 0, child.stderr
