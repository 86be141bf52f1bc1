"""Figures of a tagger's performance, each a `matplotlib.figure.Figure` that the caller saves or shows.

Needs the extra `plot`. Nothing global in matplotlib is touched: no pyplot, no rcParams, no backend chosen.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from . import metrics
from .interop import require
from .ops import pixelate

WORKING_POINTS = (0.3, 0.5)
# Okabe and Ito's colours, told apart with any colour vision
SIGNAL, BACKGROUND = "#d55e00", "#0072b2"
_CYCLE = ("#000000", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", BACKGROUND, SIGNAL)
_GREY = "0.45"


def _figure(width: float, height: float, *, layout: str = "constrained", **grid: Any) -> tuple[Any, Any]:
    figure = require("matplotlib.figure").Figure(figsize=(width, height), layout=layout)
    return figure, figure.subplots(**grid)


def _finish(axes: Any, x: str, y: str, legend: str | None = None) -> None:
    axes.set_xlabel(x, fontsize=13)
    axes.set_ylabel(y, fontsize=13)
    axes.tick_params(which="both", direction="in", top=True, right=True, labelsize=11)
    if legend:
        axes.legend(frameon=False, fontsize=11, loc=legend)


def to_png(figure: Any, dpi: int = 150) -> bytes:
    """The figure as a PNG file in memory."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi)
    return buffer.getvalue()


def roc_curves(taggers: Mapping[str, tuple[Any, Any]]) -> Any:
    """Background rejection 1/eps_B (log) against signal efficiency eps_S, one curve per tagger.

    taggers : name -> (score (J,), label (J,)), label 1 = signal; rules and errors as `metrics.roc`.

    Curves end where no whole background jet passes. Bands are the statistical error R sqrt(R / N_B), drawn where at
    least two pass: with one it is as large as R. Dots mark eps_S = 0.3 and 0.5, the dashed line is a tagger that
    guesses. As the ROC figure of arXiv:1902.09914.
    """
    figure, axes = _figure(6.4, 5.6)
    grid = np.linspace(0.01, 1, 496)
    for i, (name, (score, label)) in enumerate(taggers.items()):
        curve, colour = metrics.roc(score, label), _CYCLE[i % len(_CYCLE)]
        background = np.sum(np.asarray(label) == 0)

        def rejection(efficiency: Any, curve: metrics.Roc = curve, background: Any = background) -> np.ndarray:
            eps_b = np.interp(efficiency, curve.signal_efficiency, curve.background_efficiency)
            return 1 / np.where(eps_b * background >= 1, eps_b, np.nan)

        value = rejection(grid)
        error = value * np.sqrt(value / background)
        axes.fill_between(
            grid, value - error, value + error, value <= background / 2, color=colour, alpha=0.25, linewidth=0
        )
        area = metrics.auc(score, label)
        axes.plot(grid, value, color=colour, linewidth=1.8, label=f"{name}  (AUC {area:.4f})")
        axes.plot(WORKING_POINTS, rejection(WORKING_POINTS), "o", color=colour, markersize=6)
    axes.plot(grid, 1 / grid, color=_GREY, linestyle="--", linewidth=1.2, label="random")
    for point in WORKING_POINTS:
        axes.axvline(point, color=_GREY, linewidth=0.8, linestyle=":", zorder=0)
    axes.set_yscale("log")
    axes.set_xlim(0, 1)
    axes.set_xticks(np.linspace(0, 1, 11))
    axes.set_ylim(bottom=1)
    _finish(axes, r"Signal efficiency $\epsilon_S$", r"Background rejection $1/\epsilon_B$", legend="upper right")
    return figure


def average_images(jets: Any, label: Any = None) -> Any:
    """Mean jet images of signal and background and their difference, 40 x 40 pixels in (eta, phi), log colours.

    jets : Jets.  label : (J,), 1 = signal and 0 = background; None: `jets.labels["label"]`.

    Each jet is centred, rotated, flipped and normalised by `pixelate` with its defaults, so that a pixel holds the mean
    fraction of the jet pt. Raises ValueError without labels or without jets of both classes.
    """
    if label is None:
        if "label" not in jets.labels:
            raise ValueError(
                f"average_images: label must be given, got None and labels {list(jets.labels)}; pass label="
            )
        label = jets.to("cpu", library="numpy").labels["label"]
    label, jets = np.asarray(label), jets.to("cpu", library="numpy")
    if label.shape != (len(jets),) or set(np.unique(label)) != {0, 1}:
        raise ValueError(
            f"average_images: label must be ({len(jets)},) and hold 0 and 1, got {label.shape} with "
            f"{np.unique(label)[:5].tolist()}; give one label per jet"
        )
    half_width, size = 0.8, 4096
    sums = np.zeros((2, 40, 40))
    for start in range(0, len(jets), size):
        images = pixelate(jets[start : start + size], half_width=half_width)[:, 0]
        for k in (0, 1):
            sums[k] += images[label[start : start + size] == k].sum(0, dtype=np.float64)
    background, signal = (sums[k] / np.sum(label == k) for k in (0, 1))
    difference = signal - background

    colors = require("matplotlib.colors")
    # 1 where the images are empty or equal: a logarithmic scale needs an end
    top, limit = max(signal.max(), background.max()) or 1.0, np.abs(difference).max() or 1.0
    norm = colors.LogNorm(top * 1e-4, top, clip=True)
    signed = colors.SymLogNorm(limit * 1e-2, vmin=-limit, vmax=limit)
    figure, axes = _figure(12, 4, layout="compressed", ncols=3, sharey=True)
    panels = (
        ("Signal", signal, {"norm": norm, "cmap": "viridis"}),
        ("Background", background, {"norm": norm, "cmap": "viridis"}),
        ("Signal $-$ background", difference, {"norm": signed, "cmap": "RdBu_r"}),
    )
    for panel, (title, image, style) in zip(axes, panels):
        shown = panel.imshow(image, origin="lower", extent=[-half_width, half_width] * 2, **style)
        _finish(panel, r"$\Delta\eta$ (minor axis)", "")
        panel.set_title(title, fontsize=13)
        panel.set_xticks([-0.8, -0.4, 0, 0.4, 0.8])
        panel.set_yticks([-0.8, -0.4, 0, 0.4, 0.8])
        panel.tick_params(direction="out", top=False, right=False)
    axes[0].set_ylabel(r"$\Delta\phi$ (major axis) [rad]", fontsize=13)
    figure.colorbar(axes[1].images[0], ax=axes[:2], pad=0.02).set_label(r"Mean $p_T$ fraction per pixel", fontsize=12)
    figure.colorbar(shown, ax=axes[2], pad=0.04).set_label("Difference", fontsize=12)
    return figure


def score_histogram(score: Any, label: Any) -> Any:
    """Distribution of the score for signal and background, each normalised to 1, log y, 50 bins.

    score, label : (J,), label 1 = signal; rules and errors as `metrics.roc`. Probabilities are shown on 0..1.
    """
    metrics.roc(score, label)
    score, label = np.asarray(score), np.asarray(label)
    probability = score.min() >= 0 and score.max() <= 1
    edges = np.histogram_bin_edges(score, 50, (0, 1) if probability else None)
    figure, axes = _figure(6.4, 4.8)
    for k, name, colour in ((1, "signal", SIGNAL), (0, "background", BACKGROUND)):
        fractions, _ = _fractions(score[label == k], edges)
        axes.stairs(fractions, edges, color=colour, linewidth=1.8, label=f"{name}  ({np.sum(label == k):,} jets)")
    axes.set_yscale("log")
    axes.set_xlim(edges[0], edges[-1])
    _finish(axes, "Tagger score", f"Fraction of jets per bin of {edges[1] - edges[0]:.2g}", legend="upper center")
    return figure


def _fractions(values: np.ndarray, edges: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    counts = np.histogram(values, edges)[0]
    total = max(values.size, 1)
    return counts / total, np.sqrt(counts) / total


def mass_sculpting(score: Any, label: Any, mass: Any) -> Any:
    """Jet mass of the background before and after cuts at eps_S = 0.3 and 0.5, and of the signal, all normalised to 1.

    score, label, mass : (J,), label 1 = signal, mass in GeV; rules and errors as `metrics.roc`. The cuts let at
    least eps_S of the signal pass. Points carry the error of their count; where fewer than ten background jets are left
    there are none, for that is no shape.

    A tagger that looks at little but the mass turns the background into the signal; one that is blind to it leaves the
    shape as it was.
    """
    curve = metrics.roc(score, label)
    score, label = np.asarray(score), np.asarray(label)
    mass = metrics._checked_mass("mass_sculpting", mass, score)
    width = 10
    edges = np.arange(0, np.percentile(mass, 99.5) + width, width)
    centres, background = edges[:-1] + width / 2, label == 0
    figure, axes = _figure(6.4, 4.8)
    axes.stairs(_fractions(mass[label == 1], edges)[0], edges, fill=True, color=SIGNAL, alpha=0.25, label="signal")
    fractions, _ = _fractions(mass[background], edges)
    axes.stairs(fractions, edges, color=BACKGROUND, linewidth=1.8, label="background, no cut")
    # side by side within the bin, so that both are seen
    for efficiency, shift, colour, marker in zip(WORKING_POINTS, (-width / 6, width / 6), _CYCLE, "os"):
        cut = curve.thresholds[np.searchsorted(curve.signal_efficiency, efficiency)]
        left = mass[background & (score >= cut)]
        fractions, errors = _fractions(left, edges)
        some = (fractions > 0) & (left.size >= 10)
        axes.errorbar(
            centres[some] + shift,
            fractions[some],
            errors[some],
            fmt=marker,
            markersize=5,
            color=colour,
            label=rf"background, $\epsilon_S = {efficiency}$  ({left.size:,} left)",
        )
    axes.set_xlim(edges[0], edges[-1])
    # room for the legend
    axes.margins(y=0.3)
    axes.set_ylim(bottom=0)
    _finish(axes, "Jet mass [GeV]", f"Fraction of jets per {width} GeV", legend="upper left")
    return figure


def history(entries: Iterable[Mapping[str, float]]) -> Any:
    """Losses and validation AUC against the epoch.

    entries : one mapping per epoch with keys epoch, train_loss, val_loss, val_auc. Raises ValueError without entries.
    """
    entries = list(entries)
    if not entries:
        raise ValueError("history: entries must hold at least one epoch, got none; train first")
    ticker = require("matplotlib.ticker")
    figure, panels = _figure(10, 4.2, ncols=2)
    epochs = [entry["epoch"] for entry in entries]
    lines = ((0, "train_loss", "training"), (0, "val_loss", "validation"), (1, "val_auc", "validation"))
    for i, key, name in lines:
        colour = _CYCLE[name == "validation"]
        panels[i].plot(epochs, [entry[key] for entry in entries], "o-", color=colour, markersize=4, label=name)
    for axes, y in zip(panels, ("Loss", "AUC")):
        axes.xaxis.set_major_locator(ticker.MaxNLocator(integer=True, min_n_ticks=1))
        _finish(axes, "Epoch", y, legend="best")
    return figure
