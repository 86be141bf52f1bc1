"""compat.energyflow against EnergyFlow: stored numbers, live in its own process, and what differs on purpose."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import fasttag
from children import both
from fasttag.compat.energyflow import p4s_from_ptyphims, pixelate, ptyphims_from_p4s
from fasttag_kernels.kinematics.reference import kinematics
from toys import toy_jets


def test_golden_images(jets64):
    with np.load(Path(__file__).parent.parent / "data" / "pixelate_energyflow.npz") as f:
        golden, npix, width = f["images"], int(f["npix"]), float(f["img_width"])
    pt, _, eta, phi, _ = kinematics(jets64.p4)
    jet_p4 = np.add.reduceat(jets64.p4.astype(np.float64), jets64.offsets[:-1], axis=1)
    jet_phi = np.repeat(np.arctan2(jet_p4[1], jet_p4[0]), jets64.counts)
    phi = jet_phi + (phi - jet_phi + np.pi) % (2 * np.pi) - np.pi
    differing = 0
    for image, a, b in zip(golden, jets64.offsets[:-1], jets64.offsets[1:]):
        found = pixelate(np.stack([pt[a:b], eta[a:b], phi[a:b]], 1), npix=npix, img_width=width)
        assert found.shape == image.shape
        assert found.dtype == np.float64
        differing += np.abs(found - image).max() > 1e-12
    assert differing == 0  # no constituent of these jets lies on a pixel edge


def test_channels_counts_and_window():
    jet = np.array([[1, 0.1, 0.2, 211], [2, 0.0, 0.1, 22], [3, 0.0, 0.1, -13], [0, 0.0, 0.0, 11], [5, 9.0, 0.0, 11.0]])
    jet[4, 0] = 1e-9  # far outside of the window
    image = pixelate(jet, npix=3, nb_chan=2)
    np.testing.assert_allclose(image[..., 0], [[0, 0, 0], [0, 5 / 6, 0], [0, 1 / 6, 0]], atol=1e-15)
    np.testing.assert_array_equal(image[..., 1], [[0, 0, 0], [0, 2, 0], [0, 1, 0]])
    charged = pixelate(jet, npix=3, nb_chan=2, charged_counts_only=True, norm=False)
    np.testing.assert_array_equal(charged[..., 0], [[0, 0, 0], [0, 5, 0], [0, 1, 0]])
    np.testing.assert_array_equal(charged[..., 1], [[0, 0, 0], [0, 1, 0], [0, 1, 0]])


def test_phi_is_not_wrapped():
    across = np.array([[1.0, 0, np.pi - 0.01], [1.0, 0, -np.pi + 0.01]])
    with pytest.raises(FloatingPointError, match="no particle inside the window"):
        pixelate(across)


@pytest.mark.parametrize("jet", [np.zeros((0, 3)), np.zeros((2, 3))])
def test_no_pt(jet):
    with pytest.raises(ZeroDivisionError, match="sum to zero"):
        pixelate(jet)


@pytest.mark.parametrize(
    ("jet", "options", "message"),
    [
        (np.ones((2, 2)), {}, "jet must have shape"),
        (np.ones((2, 3)), {"nb_chan": 2, "charged_counts_only": True}, r"jet must have shape \(n, 4\)"),
        (np.ones((2, 3)), {"nb_chan": 3}, "nb_chan must be 1 or 2"),
    ],
)
def test_errors(jet, options, message):
    with pytest.raises(ValueError, match=message):
        pixelate(jet, **options)


ORIGINAL, OURS = "energyflow.utils", "fasttag.compat.energyflow"


def same_coordinates(found, expected, p4s):
    """To the bit, but for rapidities of particles with pt that EnergyFlow has none for, where E <= |pz|."""
    assert found.dtype == expected.dtype == np.float64
    e, pz = (np.asarray(p4s, np.float64)[..., row] for row in (0, 3))
    cured = ~np.isfinite(expected[..., 1]) & np.isfinite(found[..., 1])
    assert ((np.abs(pz) >= e) & (found[..., 0] > 0))[cured].all()
    found = found.copy()
    found[..., 1][cured] = expected[..., 1][cured]
    np.testing.assert_array_equal(found, expected)


COORDINATES = """
import warnings
warnings.simplefilter("ignore")
from energyflow.utils import p4s_from_ptyphims, ptyphims_from_p4s
back = p4s_from_ptyphims(coordinates)
result = [
    ptyphims_from_p4s(events),
    ptyphims_from_p4s(events.astype(np.float32), phi_ref="hardest", mass=False),
    ptyphims_from_p4s(events, phi_ref=1.0),
    ptyphims_from_p4s(events, phi_ref=np.linspace(0, 6, len(events))),
    ptyphims_from_p4s(events[0], phi_ref="hardest"),
    ptyphims_from_p4s(events[0, 0].tolist(), phi_ref="hardest"),
    p4s_from_ptyphims(coordinates),
    p4s_from_ptyphims(coordinates[0, :, :3]),
    p4s_from_ptyphims(coordinates[0, 0].tolist()),
]
"""


def events(jets):
    """(J, 40, 4) in the order E, px, py, pz, zero-padded."""
    p4, _ = jets.to_padded(40, order="E,px,py,pz", truncate=True)
    return p4.astype(np.float64)


def odd_particles():
    """Massive, spacelike, backward in time, along the beam, at rest; one event of eight."""
    rows = [
        [5, 1, 2, 3],
        [1, 1, 2, 3],
        [-5, 1, 2, 3],
        [3, 0, 0, 3],
        [4, 0, 0, -3],
        [2, 0, 0, 0],
        [0, 1, 0, 2],
        [1, -1, -0.0, 0],
    ]
    return np.array(rows, float)[None]


@pytest.mark.peers
@pytest.mark.parametrize("which", ["2000 jets", "odd"])
def test_one_import_line_coordinates(which, tmp_path):
    p4s = events(toy_jets(2000, 6)) if which == "2000 jets" else odd_particles()
    rng = np.random.default_rng(1)
    size = p4s.shape[:2]
    coordinates = np.stack(
        [rng.normal(20, 9, size), rng.normal(0, 2, size), rng.uniform(0, 9, size), rng.normal(0, 1, size)], -1
    )
    theirs, ours = both(COORDINATES, ORIGINAL, OURS, tmp_path, events=p4s, coordinates=coordinates)
    single = p4s.astype(np.float32)
    for a, b, given in zip(ours[:6], theirs[:6], [p4s, single, p4s, p4s, p4s[0], p4s[0, 0]], strict=True):
        same_coordinates(a, b, given)
    for a, b in zip(ours[6:], theirs[6:], strict=True):
        np.testing.assert_array_equal(a, b)


def test_stored_coordinates(jets64):
    with np.load(Path(__file__).parent.parent / "data" / "compat.npz") as f:
        expected = f["hadronic"]
    p4s = np.stack([jets64.p4.T[a : a + 24, [3, 0, 1, 2]] for a in jets64.offsets[:3]])
    same_coordinates(ptyphims_from_p4s(p4s, phi_ref="hardest"), expected, p4s)


@pytest.mark.soak
@pytest.mark.peers
@pytest.mark.shared
def test_coordinates_of_100000_jets(shared, tmp_path):
    with np.load(shared / "data" / "test_large.npz") as f:
        p3 = f["p3"][: f["offsets"][100_000]].astype(np.float64)
    p4s = np.concatenate([np.linalg.norm(p3, axis=1, keepdims=True), p3], 1).astype(np.float32)
    script = "from energyflow.utils import ptyphims_from_p4s\nresult = [ptyphims_from_p4s(p4s)]"
    theirs, ours = both(script, ORIGINAL, OURS, tmp_path, p4s=p4s)
    same_coordinates(ours[0], theirs[0], p4s)


IMAGES = """
from energyflow.utils import pixelate
jets = np.split(table, offsets[1:-1])
counted = [pixelate(jet, npix=16, nb_chan=2, norm=False) for jet in jets]
result = [np.array([pixelate(jet) for jet in jets]), np.array(counted)]
"""


def tables(jets):
    """pt, eta, phi of all constituents, phi unwrapped around the leading one: EnergyFlow fails on jets across pi."""
    pt, _, eta, phi, _ = kinematics(jets.p4)
    lead = np.repeat(phi[jets.offsets[:-1]], jets.counts)
    return np.stack([pt, eta, lead + (phi - lead + np.pi) % (2 * np.pi) - np.pi], 1)


def same_images(theirs, ours):
    """To 1e-12 but for images with a constituent on the edge of a pixel, where rounding decides: 1 in 1,000."""
    for a, b in zip(ours, theirs, strict=True):
        assert a.shape == b.shape and a.dtype == b.dtype
        assert (np.abs(a - b) > 1e-12 * b.max()).reshape(len(a), -1).any(1).sum() <= len(a) // 1000


@pytest.mark.peers
def test_one_import_line_images(tmp_path):
    jets = toy_jets(2000, 7)
    same_images(*both(IMAGES, ORIGINAL, OURS, tmp_path, table=tables(jets), offsets=jets.offsets))


@pytest.mark.soak
@pytest.mark.peers
@pytest.mark.shared
@pytest.mark.timeout(3600)
def test_images_of_100000_jets(shared, tmp_path):
    with np.load(shared / "data" / "test_large.npz") as f:
        offsets, p3 = f["offsets"][:100_001], f["p3"].astype(np.float64)
    p4 = np.concatenate([p3, np.linalg.norm(p3, axis=1, keepdims=True)], 1).T
    for start in range(0, 100_000, 10_000):
        part = offsets[start : start + 10_001]
        jets = fasttag.Jets(np.ascontiguousarray(p4[:, part[0] : part[-1]]), part - part[0])
        same_images(*both(IMAGES, ORIGINAL, OURS, tmp_path, table=tables(jets), offsets=jets.offsets))


def test_rapidity_where_energyflow_has_none():
    """A massless particle at y = 9.5 in float32: E = |pz| exactly. The truth is asinh(pz / pt) to 1e-8."""
    pt, y = 1.0, 9.5
    p4 = np.array([pt * np.cosh(y), pt, 0, pt * np.sinh(y)], np.float32)
    assert p4[0] == p4[3]
    np.testing.assert_allclose(ptyphims_from_p4s(p4), [1, np.arcsinh(float(p4[3])), 0, -1], rtol=1e-8)
    along = ptyphims_from_p4s([[3.0, 0, 0, -3.0], [0, 0, 0, 0]])
    np.testing.assert_array_equal(along, [[0, -np.inf, 0, 0], [0, 0, 0, 0]])


def test_any_number_of_axes():
    p4s = events(toy_jets(8, 2)).reshape(2, 2, 2, 40, 4) * [1.01, 1, 1, 1]  # the way back needs real masses
    whole = ptyphims_from_p4s(p4s, phi_ref="hardest")
    for at in np.ndindex(2, 2, 2):
        np.testing.assert_array_equal(whole[at], ptyphims_from_p4s(p4s[at], phi_ref="hardest"))
    assert np.abs(p4s_from_ptyphims(whole) - p4s).max() < 1e-11 * p4s.max()
    assert ptyphims_from_p4s(np.zeros((3, 0, 4))).shape == (3, 0, 4)


def test_coordinates_refuse_shapes():
    for bad in (np.zeros((4, 3)), 1.0):
        with pytest.raises(ValueError, match=r"ptyphims_from_p4s: p4s must have shape \(..., 4\)"):
            ptyphims_from_p4s(bad)


@pytest.mark.parametrize("row", [[np.nan, 0, 0], [0, np.nan, np.nan], [-1, np.nan, 0], [0, 9, 9]])
def test_particles_without_pt_do_not_count(row):
    jet = np.array([[5.0, 0.1, 0.2], [3.0, -0.1, 0.0]])
    np.testing.assert_array_equal(pixelate(np.insert(jet, 1, row, 0)), pixelate(jet))


@pytest.mark.parametrize("row", [[np.inf, 0, 0], [1, np.nan, 0], [1, 0, np.inf]])
def test_particles_that_are_not_finite_are_refused(row):
    with pytest.raises(ValueError, match=r"^pixelate: jet must be finite where pt is above 0, got NaN or inf"):
        pixelate(np.array([[5.0, 0.1, 0.2], row]))
