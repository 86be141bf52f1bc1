"""Kinematics: FastJet's conventions, degenerate particles, boosts."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fasttag_kernels.kinematics import kinematics

every_dtype = pytest.mark.parametrize("dtype", ["float32", "float64"])
LIMIT = 1e5


def one(px, py, pz, e, dtype="float64"):
    return [float(x[0]) for x in kinematics(np.array([[px], [py], [pz], [e]], dtype))]


@every_dtype
@pytest.mark.parametrize(
    ("particle", "pt", "rapidity", "eta", "phi", "mass"),
    [
        ((0, 0, 30, 30), 0, LIMIT + 30, LIMIT, 0, 0),
        ((0, 0, -30, 30), 0, -LIMIT - 30, -LIMIT, 0, 0),
        ((0, 0, 0, 0), 0, LIMIT, LIMIT, 0, 0),
        ((0, 0, 3, 5), 0, math.log(2), LIMIT, 0, 4),
        ((0, 0, -3, 5), 0, -math.log(2), -LIMIT, 0, 4),
        ((0, 0, 0, 5), 0, 0, LIMIT, 0, 5),
        ((3, 4, 0, 5), 5, 0, 0, math.atan2(4, 3), 0),
        ((3, 4, 0, 13), 5, 0, 0, math.atan2(4, 3), 12),
        ((-4, 0, 3, 5), 4, math.log(2), math.log(2), math.pi, 0),
        ((-4, -0.0, -3, 5), 4, -math.log(2), -math.log(2), -math.pi, 0),
        ((0, -4, 3, 4.5), 4, math.log(7.5 / 4), math.log(2), -math.pi / 2, 0),  # E < |p|: m^2 clamped, all finite
    ],
)
def test_by_hand(particle, pt, rapidity, eta, phi, mass, dtype):
    expected = np.array([pt, rapidity, eta, phi, mass], dtype)
    np.testing.assert_allclose(one(*particle, dtype=dtype), expected, rtol=2 * np.finfo(dtype).eps, atol=1e-300)


def random_particles(n=2000, mass=3.0):
    pt, eta, phi = np.random.default_rng(1).normal(size=(3, n)) * [[20], [2], [3]]
    pt = np.abs(pt) + 0.1
    p3 = np.array([pt * np.cos(phi), pt * np.sin(phi), pt * np.sinh(eta)])
    return np.concatenate([p3, np.sqrt((p3**2).sum(0, keepdims=True) + mass**2)])


def test_against_textbook_formulas():
    p4 = random_particles()
    px, py, pz, e = p4
    p = np.sqrt(px**2 + py**2 + pz**2)
    expected = [
        np.hypot(px, py),
        np.arctanh(pz / e),
        np.arctanh(pz / p),
        np.arctan2(py, px),
        np.full(len(e), 3.0),
    ]
    for name, found, truth in zip(("pt", "rapidity", "eta", "phi", "mass"), kinematics(p4), expected):
        np.testing.assert_allclose(found, truth, rtol=1e-7, atol=1e-9, err_msg=name)  # the formulas here cancel


@given(st.floats(-3, 3))
def test_longitudinal_boost_shifts_the_rapidity(boost):
    px, py, pz, e = p4 = random_particles(300)
    moved = np.array([px, py, pz * np.cosh(boost) + e * np.sinh(boost), e * np.cosh(boost) + pz * np.sinh(boost)])
    before, after = kinematics(p4), kinematics(moved)
    assert (after.pt == before.pt).all() and (after.phi == before.phi).all()
    np.testing.assert_allclose(after.rapidity, before.rapidity + boost, atol=1e-8)
    np.testing.assert_allclose(after.mass, before.mass, rtol=1e-6)


@given(st.floats(-np.pi, np.pi))
def test_rotation_about_the_beam_shifts_phi(angle):
    px, py, pz, e = p4 = random_particles(300)
    c, s = np.cos(angle), np.sin(angle)
    before, after = kinematics(p4), kinematics(np.array([c * px - s * py, s * px + c * py, pz, e]))
    np.testing.assert_allclose(np.exp(1j * after.phi), np.exp(1j * (before.phi + angle)), atol=1e-14)
    assert np.abs(after.phi).max() <= np.pi
    for name in ("pt", "rapidity", "eta"):
        np.testing.assert_allclose(getattr(after, name), getattr(before, name), rtol=1e-12, atol=1e-13, err_msg=name)


def test_sign_of_pz():
    p4 = random_particles()
    there, back = kinematics(p4), kinematics(p4 * [[1], [1], [-1], [1]])
    assert (back.rapidity == -there.rapidity).all() and (back.eta == -there.eta).all()


@pytest.mark.parametrize("row", range(4))
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_stays_in_its_column(row, value):
    p4 = random_particles(600)
    good = np.array(kinematics(p4))
    p4[row, 300] = value
    found = np.array(kinematics(p4))
    assert (np.delete(found, 300, 1) == np.delete(good, 300, 1)).all()


@pytest.mark.parametrize("n", [0, 1, 255, 256, 257])
def test_block_boundaries(n):
    p4 = random_particles(600)
    assert (np.array(kinematics(p4[:, :n])) == np.array(kinematics(p4))[:, :n]).all()


def test_float32_is_evaluated_in_float64():
    p4 = random_particles().astype(np.float32)
    for single, double in zip(kinematics(p4), kinematics(p4.astype(np.float64))):
        assert (single == double.astype(np.float32)).all()


@pytest.mark.parametrize("shape", [(3, 5), (5, 4), (4,), (1, 4, 5)])
@pytest.mark.parametrize("make", [np.ones, torch.ones])
def test_refuses(shape, make):
    with pytest.raises(
        ValueError, match=re.escape(f"kinematics: p4 must have shape (4, N), rows px, py, pz, E, got {shape}")
    ):
        kinematics(make(shape))
