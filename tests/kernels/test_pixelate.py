"""Jet images: orientation, preprocessing, colours, and EnergyFlow's own images."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import fasttag
from fasttag_kernels.kinematics.reference import kinematics
from fasttag_kernels.pixelate import CHANNELS, pixelate

PLAIN = {"center": None, "rotate": False, "flip": False}
ONE = np.ones(1)
ANY_JET = st.builds(
    lambda seed, n: np.random.default_rng(seed).normal([[3], [0], [0]], [[2], [0.3], [0.3]], (3, n)),
    st.integers(0, 2**32),
    st.integers(1, 60),
)


def image(constituents, **options):
    """One channel of one jet given as rows pt, eta, phi."""
    pt, eta, phi = np.array(constituents, float).T
    return pixelate(np.ascontiguousarray(pt), eta, phi, np.array([0, len(pt)]), **options)[0, 0]


def hot(picture):
    """(row, column) of every pixel that is not zero, hottest first."""
    order = np.argsort(-picture, axis=None, kind="stable")[: np.count_nonzero(picture)]
    return [tuple(map(int, np.unravel_index(i, picture.shape))) for i in order]


def test_row_is_phi_and_column_is_eta():
    assert hot(image([[1, 0.5, -0.3]], **PLAIN)) == [(12, 32)]
    corners = [[4, -0.79, -0.79], [3, 0.79, -0.79], [2, -0.79, 0.79], [1, 0.79, 0.79]]
    assert hot(image(corners, **PLAIN)) == [(0, 0), (0, 39), (39, 0), (39, 39)]


def test_window_is_half_open():
    """npix = 4 over [-1, 1): pixel edges are numbers without rounding."""
    at = lambda eta: hot(image([[1, eta, 0]], npix=4, half_width=1.0, **PLAIN))
    assert [at(eta) for eta in (-1.0, -0.5, 0.0, 0.5, 1 - 1e-9)] == [[(2, c)] for c in (0, 1, 2, 3, 3)]
    assert at(1.0) == at(np.nextafter(-1, -2)) == []


def test_centre_is_the_weighted_mean():
    points = [[3, 1.0, 2.0], [1, 1.4, 2.4]]  # mean (1.1, 2.1)
    assert hot(image(points, npix=41, rotate=False, flip=False)) == [(17, 17), (28, 28)]
    assert hot(image(points, npix=41, **PLAIN)) == []


def test_centre_pixel_keeps_pixels_fixed_in_the_detector():
    """Pixels of width 0.1 whose middles are multiples of it; a jet moves within one without changing the image."""
    options = {"npix": 5, "half_width": 0.25, "center": "pixel", "rotate": False, "flip": False}
    for shift in (-0.02, 0.0, 0.02):  # means 1.00, 1.02, 1.04
        assert hot(image([[9, 1.0 + shift, 2.0], [1, 1.2 + shift, 2.0]], **options)) == [(2, 2), (2, 4)]


@pytest.mark.parametrize("angle", np.linspace(-np.pi, np.pi, 17) + 0.01)
def test_rotation_puts_the_major_axis_along_phi(angle):
    along, across = np.array([np.cos(angle), np.sin(angle)]), np.array([-np.sin(angle), np.cos(angle)])
    points = [(2, *(0.5 * along)), (2, *(-0.5 * along)), (1, *(0.2 * across)), (1, *(-0.2 * across))]
    found = image(points, npix=41, flip=False)
    assert sorted(hot(found)) == [(7, 20), (20, 15), (20, 25), (33, 20)]


def test_rotation_does_not_mirror():
    """Three constituents, pt 3, 2, 1, keep their sense of turning."""
    triangle = [[3, 0.3, 0.1], [2, -0.2, 0.3], [1, -0.3, -0.4]]
    for options in ({"rotate": False}, {"rotate": True}):
        (y1, x1), (y2, x2), (y3, x3) = hot(image(triangle, npix=101, flip=False, **options))
        assert (x2 - x1) * (y3 - y1) - (x3 - x1) * (y2 - y1) > 0


@pytest.mark.parametrize(("x", "y"), [(1, 1), (1, -1), (-1, 1), (-1, -1)])
def test_flips_put_more_pt_up_and_right(x, y):
    """Moments are zero, so nothing rotates; pt 5 of 9 lies in one quadrant."""
    points = [[5, 0.1 * x, 0.3 * y], [1, -0.5 * x, -0.1 * y], [1, -0.4 * x, -0.5 * y]]
    found = image(points, rotate=False, center=None, npix=41)
    assert hot(found)[0] == (28, 23)
    assert hot(image(points, rotate=False, center=None, flip=False, npix=41))[0] == (20 + 8 * y, 20 + 3 * x)


def test_ties_do_not_flip():
    points = [[2, 0.4, 0.4], [1, -0.1, -0.1], [1, -0.2, -0.2]]
    options = {"center": None, "rotate": False}
    assert (image(points, **options) == image(points, flip=False, **options)).all()
    points[0][0] = 1.99
    assert (image(points, **options) != image(points, flip=False, **options)).any()


def test_degenerate_jets_are_not_rotated():
    angles = 0.4 + np.arange(5) * 2 * np.pi / 5
    pentagon = np.transpose([np.ones(5), 0.3 * np.cos(angles), 0.3 * np.sin(angles)])  # moments agree to rounding
    assert (image(pentagon, npix=41) == image(pentagon, npix=41, rotate=False)).all()
    pentagon[0, 0] = 1.01
    assert (image(pentagon, npix=41) != image(pentagon, npix=41, rotate=False)).any()
    assert hot(image([[7, 2.0, 3.0]])) == hot(image([[7, 2.0, 3.0], [7, 2.0, 3.0]])) == [(20, 20)]


@given(ANY_JET, st.floats(-np.pi, np.pi), st.floats(-2, 2))
def test_position_does_not_matter(jet, turn, boost):
    """The preprocessed image of a jet is the same everywhere, across phi = pi too.

    Coordinates are drawn from a continuous distribution: one within rounding of a pixel edge comes up once in 1e10.
    """
    pt, eta, phi = jet
    moved = [pt, eta + boost, (phi + turn + np.pi) % (2 * np.pi) - np.pi]
    np.testing.assert_allclose(image(np.transpose(moved), npix=41), image(jet.T, npix=41), rtol=1e-12, atol=1e-15)


@given(ANY_JET, st.randoms(use_true_random=False))
def test_order_does_not_matter(jet, random):
    order = random.sample(range(jet.shape[1]), jet.shape[1])
    np.testing.assert_allclose(image(jet.T[order], npix=41), image(jet.T, npix=41), rtol=1e-12, atol=1e-15)


@given(ANY_JET)
def test_wrapping_is_for_jets_across_pi(jet):
    pt, eta, phi = jet
    for center in ("centroid", "pixel"):
        options = {"center": center, "rotate": False, "flip": False, "npix": 41}
        near = image(jet.T, **options)
        across = np.transpose([pt, eta, (phi + 2 * np.pi) % (2 * np.pi)])
        if center == "centroid":
            np.testing.assert_allclose(image(across, **options), near, rtol=1e-12, atol=1e-15)


def test_jets_take_options_by_name_and_kinds_from_their_column(jets64):
    with pytest.raises(TypeError, match="pixelate: options must be given by name"):
        fasttag.pixelate(jets64, 33)
    muons = fasttag.pixelate(jets64, channels=("n_muon",))
    assert muons.sum() == (jets64.columns["kind"] == 3).sum()  # all of them are in the window
    every = fasttag.pixelate(jets64, kind=np.full_like(jets64.columns["kind"], 3), channels=("n_muon",))
    assert every.sum() > 2900


def test_a_leading_constituent_without_pt_is_no_landmark():
    """phi is unwrapped around a constituent that has a direction: here phi = 0 of the first would split the jet."""
    split = image([[0, 0, 0.0], [1, 0.2, 3.1], [1, 0.2, -3.1]])
    np.testing.assert_array_equal(split, image([[1, 0.2, 3.1], [1, 0.2, -3.1]]))
    assert np.count_nonzero(split) == 2


KINDS = np.array([0, 1, 2, 3, 4, 1], np.int8)
COLOURS = {
    "pt": [1, 2, 4, 8, 16, 0],
    "pt_neutral": [1, 0, 0, 0, 16, 0],
    "pt_track": [0, 2, 4, 8, 0, 0],
    "n_track": [0, 1, 1, 1, 0, 0],
    "n_muon": [0, 0, 0, 1, 0, 0],
}


def test_the_colours_are_those_of_the_table():
    assert set(COLOURS) == set(CHANNELS)


@pytest.mark.parametrize("normalize", [True, False])
def test_colours(normalize):
    """One constituent of each kind in a row of pixels, a sixth without pt, a seventh outside of the window."""
    pt = np.array([1, 2, 4, 8, 16, 0, 32.0])
    eta, phi, kind = np.append(np.arange(6) - 2.5, 9.0), np.zeros(7), np.append(KINDS, KINDS[0])
    options = {"npix": 6, "half_width": 3.0, "normalize": normalize, **PLAIN}
    images = pixelate(pt, eta, phi, np.array([0, 7]), kind=kind, channels=tuple(COLOURS), **options)
    assert images.shape == (1, 5, 6, 6)
    for found, (name, expected) in zip(images[0], COLOURS.items()):
        unit = 31 if normalize and name.startswith("pt") else 1
        np.testing.assert_allclose(found[3], np.array(expected) / unit, rtol=1e-15)
        assert not np.delete(found, 3, axis=0).any()


def test_colours_add_up(jets64):
    k = [x.astype(np.float32) for x in kinematics(jets64.p4)]
    names = ("pt_neutral", "pt", "pt_track")
    neutral, every, track = np.moveaxis(
        pixelate(k[0], k[2], k[3], jets64.offsets, kind=jets64.columns["kind"], channels=names, dtype="float64"), 1, 0
    )
    np.testing.assert_allclose(neutral + track, every, rtol=1e-14)
    np.testing.assert_allclose(every.sum((1, 2)), 1, rtol=1e-14)
    assert (pixelate(k[0], k[2], k[3], jets64.offsets, dtype="float64")[:, 0] == every).all()


@pytest.mark.parametrize(
    "points", [[[1, 2.0, 0.0], [1, 0.0, 2.0]], [[0, 0, 0]], [[-1, 0, 0]], np.empty((0, 3))], ids=str
)
def test_nothing_inside(points):
    assert not image(points, **PLAIN).any()


def test_constituents_without_pt_change_nothing():
    jet = [[3, 0.1, 0.2], [2, -0.2, 0.1], [1, 0.3, -0.3]]
    assert (image([*jet, [0, 9, 9], [-5, 0.1, 0.1]]) == image(jet)).all()


@pytest.mark.parametrize("center", ["centroid", None])
@pytest.mark.parametrize(
    ("row", "value"),
    [(row, value) for row in range(3) for value in (np.nan, np.inf, -np.inf) if (row, value) != (0, -np.inf)],
)
def test_a_jet_that_is_not_finite_is_nan(row, value, center):
    """In every channel, and in no other jet."""
    jets = np.random.default_rng(4).normal([[9], [0], [0]], 0.2, (3, 9))
    offsets, kind = np.array([0, 3, 6, 9]), np.zeros(9, np.int8)
    options = {"kind": kind, "channels": ("pt", "n_muon"), "center": center}
    good = pixelate(*jets, offsets, **options)
    jets[row, 4] = value
    found = pixelate(*jets, offsets, **options)
    assert np.isnan(found[1]).all()
    assert (found[[0, 2]] == good[[0, 2]]).all()


@pytest.mark.parametrize("dtype", ["float32", np.float32, np.dtype("float32"), torch.float32])
def test_dtype_of_the_image(dtype):
    assert pixelate(ONE, ONE, ONE, np.array([0, 1]), dtype=dtype).dtype == np.float32
    assert pixelate(*[torch.ones(1)] * 3, torch.tensor([0, 1]), dtype="float64").dtype == torch.float64


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"npix": 0}, ValueError, "npix must be 1 or more, got 0"),
        ({"half_width": 0.0}, ValueError, "half_width must be positive and finite, got 0.0"),
        ({"half_width": np.inf}, ValueError, "half_width must be positive and finite, got inf"),
        ({"half_width": np.nan}, ValueError, "half_width must be positive and finite, got nan"),
        ({"center": "jet"}, ValueError, 'center must be "centroid", "pixel" or None, got \'jet\''),
        ({"center": "pixel"}, ValueError, 'center must be "centroid" or None to rotate or flip, got "pixel"'),
        ({"npix": 33.9}, TypeError, "npix must be an integer, got 33.9"),
        ({"npix": True}, TypeError, "npix must be an integer, got True"),
        ({"half_width": None}, ValueError, "half_width must be positive and finite, got None"),
        ({"channels": None}, ValueError, "channels must be a tuple of pt, "),
        ({"channels": ()}, ValueError, "channels must be a tuple of pt, pt_neutral, pt_track, n_track, n_muon, got ()"),
        ({"channels": ("pt", "e")}, ValueError, "channels must be a tuple of pt, pt_neutral, "),
        ({"channels": ("n_muon",)}, ValueError, "kind must be given for channels ['n_muon'], got None"),
        (
            {"kind": np.array([5], np.int8), "channels": ("n_muon",)},
            ValueError,
            "kind must lie in 0..4, got 5..5",
        ),
        ({"kind": np.array([-1], np.int8), "channels": ("n_muon",)}, ValueError, "kind must lie in 0..4, got -1..-1"),
        ({"kind": np.array([1])}, TypeError, "kind must be int8, got int64; convert it"),
        ({"kind": np.zeros(2, np.int8)}, ValueError, "kind must have the shape of pt, (1,), got (2,)"),
        ({"eta": np.ones(2)}, ValueError, "eta must have the shape of pt, (1,), got (2,)"),
        ({"phi": np.ones((1, 1))}, ValueError, "phi must have the shape of pt, (1,), got (1, 1)"),
        ({"phi": np.ones(1, np.float32)}, TypeError, "all floats must share one dtype, got pt is float64, "),
        ({"dtype": "float16"}, TypeError, "dtype must be float32 or float64, got 'float16'"),
        ({"dtype": int}, TypeError, "dtype must be float32 or float64, got <class 'int'>"),
    ],
)
def test_refuses(options, error, message):
    arguments = {"pt": ONE, "eta": ONE, "phi": ONE, "offsets": np.array([0, 1])} | options
    with pytest.raises(error, match=f"^pixelate: {re.escape(message)}"):
        pixelate(**arguments)


def test_refuses_blocks():
    with pytest.raises(ValueError, match=r"^pixelate: pt must have shape \(N,\), got \(1, 1\); flatten it"):
        pixelate(*[np.ones((1, 1))] * 3, np.array([0, 1]))


def test_energyflow(jets64):
    """EnergyFlow bins (pt, eta, phi) as they are: phi is unwrapped around the jet axis beforehand."""
    with np.load(Path(__file__).parent.parent / "data" / "pixelate_energyflow.npz") as f:
        golden, npix, half_width = f["images"], int(f["npix"]), float(f["img_width"]) / 2
    pt, _, eta, phi, _ = kinematics(jets64.p4)
    px, py, *_ = np.add.reduceat(jets64.p4.astype(float), jets64.offsets[:-1], axis=1)
    axis = np.repeat(np.arctan2(py, px), jets64.counts)
    phi = axis + (phi - axis + np.pi) % (2 * np.pi) - np.pi
    options = {"center": "pixel", "rotate": False, "flip": False, "npix": npix, "half_width": half_width}
    difference = np.abs(pixelate(pt, eta, phi, jets64.offsets, **options)[:, 0] - golden[..., 0])
    assert np.count_nonzero(difference > 1e-12) == 0, "no constituent of these jets is on a pixel edge"
