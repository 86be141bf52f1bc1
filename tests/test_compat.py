"""compat.energyflow against EnergyFlow's own output and conventions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fasttag.compat.energyflow import pixelate
from fasttag_kernels.kinematics.reference import kinematics


def test_golden_images(jets64):
    with np.load(Path(__file__).parent / "data" / "pixelate_energyflow.npz") as f:
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
