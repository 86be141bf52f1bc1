"""Pair features: weaver's numbers, symmetries, degenerate pairs, cancellation, and that LLVM packs the loops."""

from __future__ import annotations

import platform
import re
from itertools import pairwise
from pathlib import Path

import mpmath
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import emulation
import fasttag
from cases import CASES
from children import peer, python
from fasttag_kernels import _dispatch
from fasttag_kernels.pairwise_features import FEATURES, count_pairs, cupy_cuda, pairwise_features, reference
from toys import toy_jets

every_dtype = pytest.mark.parametrize("dtype", ["float32", "float64"])
LN_EPS = np.log(1e-8)
LN_KT, LN_Z, LN_DELTA, LN_M2, DOT, M2_DIFFERENCE, PSI_DOT, PSI_M2_DIFFERENCE = range(8)


def jet(p4, dtype="float64", **options):
    """(8, n, n) of one jet."""
    p4 = np.asarray(p4, dtype)
    n = p4.shape[1]
    return pairwise_features(p4, np.array([0, n]), features=FEATURES, **options).reshape(8, n, n)


def particle(pt, y, phi, mass=0.0):
    mt = np.hypot(pt, mass)
    return np.array([pt * np.cos(phi), pt * np.sin(phi), mt * np.sinh(y), mt * np.cosh(y)])


def random_jet(n=40, seed=1, mass=2.0):
    rng = np.random.default_rng(seed)
    return particle(rng.exponential(10, n) + 0.1, rng.normal(0.5, 0.5, n), rng.normal(3, 0.5, n), mass)


def lower(offsets):
    """Which of all n^2 pairs have i >= j."""
    return np.concatenate([np.tri(b - a, dtype=bool).ravel() for a, b in pairwise(offsets)])


@every_dtype
def test_by_hand(dtype):
    """(3, 0, 4, 5) and (0, 5, 0, 13): pt 3 and 5, rapidities ln 3 and 0, a quarter turn apart."""
    found = jet(np.array([[3, 0, 4, 5], [0, 5, 0, 13]]).T, dtype)
    delta = np.hypot(np.log(3), np.pi / 2)
    expected = [np.log(3 * delta), np.log(3 / 8), np.log(delta), np.log(18**2 - 9 - 25 - 16)]
    expected += [65, 64 - 9 - 25 - 16, np.log(66), np.log(15)]
    np.testing.assert_allclose(found[:, 0, 1], expected, rtol=2 * np.finfo(dtype).eps)
    assert (found == found.transpose(0, 2, 1)).all()
    of_itself = [LN_EPS, np.log(0.5), LN_EPS, np.log(4 * 144), 144, 0, np.log(145), 0]
    np.testing.assert_allclose(found[:, 1, 1], of_itself, rtol=2 * np.finfo(dtype).eps)


def test_the_metric_and_the_sign_of_psi():
    """Back to back at rest: (p_i - p_j)^2 = (E_i - E_j)^2 - (2 p)^2 is negative."""
    found = jet(np.array([[3, 4, 0, 5], [-3, -4, 0, 5]], float).T)[:, 0, 1]
    expected = [np.log(100), 50, -100, np.log(51), -np.log(101)]
    np.testing.assert_allclose(found[[LN_M2, DOT, M2_DIFFERENCE, PSI_DOT, PSI_M2_DIFFERENCE]], expected, rtol=1e-15)


@every_dtype
def test_psi_of_a_small_number_keeps_its_digits(dtype):
    p4 = np.array([[0, 0, 0, 1e-3], [0, 0, 0, 1e-5]]).T.astype(dtype)
    assert jet(p4, dtype)[PSI_DOT, 0, 1] == pytest.approx(1e-8, rel=float(4 * np.finfo(dtype).eps))


@every_dtype
def test_order_and_subset_of_features(dtype):
    p4, offsets = CASES["mixed"]()
    p4 = p4.astype(dtype)
    every = pairwise_features(p4, offsets, features=FEATURES)
    for names in [("ln_m2",), ("psi_m2_difference", "ln_z"), ["ln_delta", "dot", "ln_kt"], FEATURES[::-1]]:
        found = pairwise_features(p4, offsets, features=names)
        assert (found == every[[FEATURES.index(name) for name in names]]).all()
    assert (pairwise_features(p4, offsets) == every[:4]).all()


@every_dtype
@pytest.mark.parametrize("m2", ["stable", "reference"])
def test_lower_is_the_lower_half_and_full_is_symmetric(dtype, m2):
    p4, offsets = CASES["mixed"]()
    p4 = p4.astype(dtype)
    full = pairwise_features(p4, offsets, features=FEATURES, m2=m2)
    half = pairwise_features(p4, offsets, features=FEATURES, m2=m2, triangle="lower")
    assert half.tobytes() == np.ascontiguousarray(full[:, lower(offsets)]).tobytes()
    start = 0
    for n in np.diff(offsets):
        square = full[:, start : start + n * n].reshape(8, n, n)
        assert (square == square.transpose(0, 2, 1)).all()
        start += n * n


@pytest.mark.parametrize("n", [1, 15, 16, 17, 31, 32, 33, 48, 361, 363, 512, 513])
def test_tiles_and_jets_too_long_to_gather(n):
    """2^18 numbers are gathered before they are written: 512^2 of one feature, 362^2 of two."""
    p4 = random_jet(n + 3).astype(np.float32)
    for names in (("ln_z",), ("dot", "ln_kt")):
        found = pairwise_features(p4, np.array([2, n + 2]), features=names).reshape(-1, n, n)
        expected = reference.pairwise_features(p4[:, :], np.array([2, n + 2]), features=names)
        np.testing.assert_allclose(found, expected.reshape(-1, n, n), rtol=1e-6, atol=2e-6)


def test_five_thousand_constituents():
    p4 = random_jet(5000).astype(np.float32)
    found = pairwise_features(p4, np.array([0, 5000]), features=("dot",), triangle="lower")[0]
    i, j = np.tril_indices(5000)
    a = p4.astype(np.float64)
    for part in np.array_split(np.arange(i.size), 20):
        one, other = a[:, i[part]], a[:, j[part]]
        exact = one[3] * other[3] - (one[:3] * other[:3]).sum(0)
        assert (np.abs(found[part] - exact) <= 2.0**-24 * np.abs(exact) + 1e-15 * one[3] * other[3]).all()


@pytest.mark.parametrize("triangle", ["full", "lower"])
def test_slices_of_jets_are_the_whole(triangle):
    jets = toy_jets(40, 3)
    whole = fasttag.pairwise_features(jets, triangle=triangle)
    parts = [fasttag.pairwise_features(jets[a:b], triangle=triangle) for a, b in ((0, 7), (7, 7), (7, 40))]
    assert np.concatenate(parts, axis=1).tobytes() == whole.tobytes()
    assert whole.tobytes() == pairwise_features(jets.p4, jets.offsets, triangle=triangle).tobytes()


SEEDS = st.integers(0, 2**32)


@given(SEEDS)
def test_permutation(seed):
    p4, order = random_jet(37, seed), np.random.default_rng(seed).permutation(37)
    for m2 in ("stable", "reference"):
        assert (jet(p4[:, order], "float32", m2=m2) == jet(p4, "float32", m2=m2)[:, order][:, :, order]).all()


@given(SEEDS, st.floats(-np.pi, np.pi))
def test_rotation_about_the_beam(seed, angle):
    px, py, pz, e = p4 = random_jet(20, seed)
    c, s = np.cos(angle), np.sin(angle)
    turned = np.array([c * px - s * py, s * px + c * py, pz, e])
    # 1e-15 of a radian, and of E^2, over the smallest Delta and m^2 / E^2 of such jets
    np.testing.assert_allclose(jet(turned), jet(p4), rtol=1e-8, atol=1e-9)


@given(SEEDS, st.floats(-2, 2))
def test_longitudinal_boost(seed, boost):
    px, py, pz, e = p4 = random_jet(20, seed)
    c, s = np.cosh(boost), np.sinh(boost)
    boosted = np.array([px, py, c * pz + s * e, c * e + s * pz])
    np.testing.assert_allclose(jet(boosted), jet(p4), rtol=1e-8, atol=1e-8)


@given(SEEDS, st.floats(0.01, 100))
def test_scale(seed, scale):
    """ln_kt and ln_m2 move by ln scale and twice that, ln_z and ln_delta stay."""
    p4 = random_jet(20, seed)
    moved = jet(scale * p4)[:4] - jet(p4)[:4]
    different = ~np.eye(20, dtype=bool)
    expected = np.log(scale) * np.array([1, 0, 0, 2])
    np.testing.assert_allclose(moved[:, different], np.repeat(expected[:, None], 380, 1), atol=1e-9)


def close_pairs(separation, mass=0.0):
    """Two hard particles side by side at y = 1.5, and soft ones around."""
    return np.stack([particle(300, 1.5, 1.0, mass), particle(200, 1.5 + separation, 1.0, mass)], 1)


def exact_ln_m2(p4):
    with mpmath.workdps(60):
        total = [sum(map(mpmath.mpf, map(float, row))) for row in p4]
        return float(mpmath.log(max(total[3] ** 2 - total[0] ** 2 - total[1] ** 2 - total[2] ** 2, 1e-8)))


@every_dtype
@pytest.mark.parametrize("separation", [1e-1, 1e-3, 1e-5])
@pytest.mark.parametrize("mass", [0.0, 1e-2, 1.0])
def test_stable_m2_does_not_cancel(separation, mass, dtype):
    """2 eps / angle in the difference of directions; the logarithm, at most 18, rounds to eps of itself."""
    p4 = close_pairs(separation, mass).astype(dtype)
    exact = exact_ln_m2(p4)
    found = jet(p4, dtype)[LN_M2, 0, 1]
    eps = np.finfo(dtype).eps
    assert abs(found - exact) <= 4 * 2.0**-52 / separation + 8 * eps


def test_weavers_m2_cancels():
    """What "stable" is for: in float32 a difference of 10^-2 GeV^2 between numbers of 10^6."""
    p4 = close_pairs(1e-3).astype(np.float32)
    exact = exact_ln_m2(p4)
    assert abs(jet(p4, "float32")[LN_M2, 0, 1] - exact) < 1e-6
    assert abs(jet(p4, "float32", m2="reference")[LN_M2, 0, 1] - exact) > 1e-2


def test_error_bounds_of_the_design():
    """float32 against float64 on jets with close pairs: DESIGN.md's bounds, absolute ones where ln passes 0."""
    p4 = np.concatenate([random_jet(60, 5, mass=0.0), close_pairs(1e-4), close_pairs(1e-2)], 1).astype(np.float32)
    found, exact = jet(p4, "float32").astype(np.float64), jet(p4, "float64")
    logarithms = [LN_KT, LN_Z, LN_DELTA, LN_M2, PSI_DOT, PSI_M2_DIFFERENCE]
    error = np.abs(found - exact)
    assert (error[logarithms] <= 1e-6 * np.maximum(1, np.abs(exact[logarithms]))).all()
    energies = np.outer(p4[3], p4[3]).astype(np.float64)
    assert (error[DOT] <= 1e-6 * energies).all() and (error[M2_DIFFERENCE] <= 1e-6 * energies).all()
    assert (np.abs(np.exp(found[LN_DELTA]) - np.exp(exact[LN_DELTA])) <= 1e-6).all()
    m2, kept = np.exp(exact[LN_M2]), 2.0**-23 * np.abs(exact[LN_M2])  # what a float32 logarithm can hold of it
    assert (np.abs(np.exp(found[LN_M2]) - m2) <= 1e-6 * energies + kept * m2).all()


@every_dtype
def test_across_phi_pi(dtype):
    there = jet(np.stack([particle(2, 0, np.pi - 0.01), particle(1, 0, -np.pi + 0.01)], 1), dtype)
    here = jet(np.stack([particle(2, 0, 0.01), particle(1, 0, -0.01)], 1), dtype)
    np.testing.assert_allclose(there[:, 0, 1], here[:, 0, 1], rtol=1e-12 if dtype == "float64" else 2e-5)


@every_dtype
def test_along_the_beam(dtype):
    """pt = 0: phi is 0, ln_kt and ln_z at their clamps; y = 1/2 ln(2 pz / 1e-20) along +z and its opposite along -z."""
    p4 = np.array([[0, 0, 8, 8], [0, 0, -8, 8], [0, 0, 0, 0], [0, 0, 3, 5], [1, 0, 0, 1]], float).T
    found = jet(p4, dtype)
    assert np.isfinite(found).all()
    eps = np.finfo(dtype).eps
    np.testing.assert_allclose(found[LN_KT], LN_EPS, rtol=eps)
    np.testing.assert_allclose(found[LN_Z][:4], LN_EPS, rtol=eps)
    y = [0.5 * np.log(16e20), -0.5 * np.log(16e20), 0, np.log(2), 0]
    expected = np.log(np.maximum(np.abs(np.subtract.outer(y, y)), 1e-8))
    np.testing.assert_allclose(found[LN_DELTA], expected, rtol=4 * eps, atol=eps)
    assert found[LN_M2, 2, 2] == found[LN_M2, 0, 0] == np.dtype(dtype).type(LN_EPS)
    np.testing.assert_allclose(found[LN_M2, 0, 1], np.log(256), rtol=2 * eps)
    np.testing.assert_allclose(found[LN_M2, 3, 4], np.log(36 - 1 - 9), rtol=2 * eps)


@every_dtype
def test_energies_below_the_momentum(dtype):
    """Rounding, or worse: m^2 and products are what the numbers say, negative ones at the clamp."""
    p4 = np.array([[3, 4, 0, 4.5], [3, 4, -12, 12.5], [1, 0, 5, -5], [1, 2, 2, 3]], float).T
    found = jet(p4, dtype)
    square = lambda q: q[3] ** 2 - q[0] ** 2 - q[1] ** 2 - q[2] ** 2
    expected = square(p4[:, :, None] + p4[:, None])
    np.testing.assert_allclose(found[LN_M2], np.log(np.maximum(expected, 1e-8)), rtol=8 * np.finfo(dtype).eps)
    np.testing.assert_allclose(found[M2_DIFFERENCE], square(p4[:, :, None] - p4[:, None]), rtol=1e-6, atol=1e-13)


@every_dtype
def test_identical_constituents(dtype):
    found = jet(np.repeat(particle(5, 1, 2, 0.5)[:, None], 20, 1), dtype)
    assert (found == found[:, :1, :1]).all()
    assert found[LN_KT, 0, 0] == found[LN_DELTA, 0, 0] == np.dtype(dtype).type(LN_EPS)
    np.testing.assert_allclose(found[LN_M2, 0, 0], np.log(1.0), atol=1e-4 if dtype == "float32" else 1e-12)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("row", range(4))
@pytest.mark.parametrize("triangle", ["full", "lower"])
def test_what_is_not_finite_stays_in_its_pairs(row, value, triangle):
    p4, offsets = random_jet(70).astype(np.float32), np.array([0, 20, 70])
    good = pairwise_features(p4, offsets, features=FEATURES, triangle=triangle)
    p4[row, 53] = value
    found = pairwise_features(p4, offsets, features=FEATURES, triangle=triangle)
    touched = np.zeros((50, 50), bool)
    touched[33] = touched[:, 33] = True
    touched = np.concatenate([np.zeros(400, bool), touched.ravel()])
    touched = touched[lower(offsets)] if triangle == "lower" else touched
    assert np.isnan(found[:, touched]).all() and (found[:, ~touched] == good[:, ~touched]).all()


def check_weaver(found, weaver, p4, i, j, dtype):
    """`found` and `weaver` (4, M) of the pairs (i, j) in m2="reference".

    The angles of close pairs differ by the rounding of weaver's rapidities, 1 + 2 pz / (E - pz) in `dtype`, over Delta.
    """
    eps = np.finfo(dtype).eps
    same = i == j
    np.testing.assert_allclose(found[LN_M2], weaver[LN_M2], rtol=2 * eps, atol=eps)
    np.testing.assert_allclose(found[LN_Z], weaver[LN_Z], rtol=2 * eps, atol=2 * eps)
    np.testing.assert_allclose(found[:, same], weaver[:, same], rtol=2 * eps, atol=2 * eps)
    px, py, pz, e = p4.astype(np.float64)
    pt2 = px**2 + py**2
    # of E - pz and of the sum 1 + ..., relative to what is left: (E + |pz|)^2 / mt^2 = e^{2 |y|}, pt^2 for mt^2
    y = 2 * eps * (e + np.abs(pz)) ** 2 / pt2 + 4 * eps
    bound = (y[i] + y[j]) / np.exp(found[LN_DELTA].astype(np.float64))
    for feature in (LN_KT, LN_DELTA):
        error = np.abs(found[feature].astype(np.float64) - weaver[feature])
        assert (error[~same] <= (bound + 4 * eps * np.abs(weaver[feature]))[~same])[bound[~same] < 0.5].all()


def golden_subset():
    with np.load(Path(__file__).parent.parent / "data" / "pairwise_weaver.npz") as f:
        return f["p4"], f["offsets"], f["lower_float64"]


def test_golden():
    """Four jets of weaver-core 0.5.3 in float64."""
    p4, offsets, weaver = golden_subset()
    i, j = (np.concatenate([x + a for x, a in zip(part, offsets)]) for part in _lower_indices(offsets))
    found = pairwise_features(p4.astype(np.float64), offsets, triangle="lower", m2="reference")
    check_weaver(found, weaver, p4, i, j, "float64")
    wide = np.exp(weaver[LN_DELTA]) > 1e-4
    assert wide.mean() > 0.9
    np.testing.assert_allclose(found[:, wide], weaver[:, wide], atol=1e-9, rtol=0)
    stable = pairwise_features(p4.astype(np.float64), offsets, triangle="lower")[LN_M2]
    scale = 4 * 2.0**-52 * (p4[3, i] + p4[3, j]).astype(np.float64) ** 2 / np.exp(weaver[LN_M2])
    assert (np.abs(stable - weaver[LN_M2]) <= scale + 1e-14).all(), "but for weaver's cancellation"


def _lower_indices(offsets):
    return zip(*(np.tril_indices(b - a) for a, b in pairwise(offsets)))


@pytest.mark.shared
@every_dtype
def test_golden_of_sixteen_jets(shared, dtype):
    with np.load(shared / "golden" / "pairwise_weaver.npz") as f:
        vectors, counts, features = f["vectors_pxpypze"], f["mask"][:16, 0].sum(1), f[f"features_{dtype}"]
    offsets = np.concatenate([[0], np.cumsum(counts)])
    p4 = np.concatenate([v[:, :n] for v, n in zip(vectors, counts)], 1).astype(dtype)
    weaver = np.concatenate([x[:, :n, :n].reshape(4, -1) for x, n in zip(features, counts)], 1)
    i, j = (np.concatenate(x) for x in zip(*(np.indices((n, n)).reshape(2, -1) + a for n, a in zip(counts, offsets))))
    check_weaver(pairwise_features(p4, offsets, m2="reference"), weaver, p4, i, j, dtype)


WEAVER = """
import torch
from weaver.nn.model.ParticleTransformer import pairwise_lv_fts_pp, to_m2
a, b = torch.from_numpy(p4)[None, :, i], torch.from_numpy(p4)[None, :, j]
result = [pairwise_lv_fts_pp(a, b)[0].numpy(), to_m2(a + b)[0, 0].numpy()]
"""


@pytest.mark.peers
@every_dtype
def test_weaver(dtype, tmp_path):
    """weaver-core itself on 1,500 jets; in "reference" ln_m2 is within an ulp of the logarithm of weaver's own m^2."""
    jets = toy_jets(1500, 4)
    p4 = jets.p4.astype(dtype)
    i, j = (np.concatenate([x + a for x, a in zip(part, jets.offsets)]) for part in _lower_indices(jets.offsets))
    weaver, m2 = peer(WEAVER, tmp_path, p4=p4, i=i, j=j)
    found = pairwise_features(p4, jets.offsets, triangle="lower", m2="reference")
    check_weaver(found, weaver, p4, i, j, dtype)
    truth = np.log(m2.astype(np.longdouble))
    assert (np.abs(found[LN_M2] - truth) <= np.spacing(np.abs(truth).astype(dtype))).all()
    assert np.abs(found[LN_M2] - pairwise_features(p4, jets.offsets, triangle="lower")[LN_M2]).max() > 1e-6


def test_torch_gives_back_torch():
    jets = toy_jets(5, 1)
    tensors = jets.to(library="torch")
    for options in ({}, {"triangle": "lower", "features": ("psi_dot",)}):
        found = fasttag.pairwise_features(tensors, **options)
        assert isinstance(found, torch.Tensor)
        assert found.numpy().tobytes() == fasttag.pairwise_features(jets, **options).tobytes()


def test_threads_share_out_jets():
    jets = toy_jets(50, 2)
    one = fasttag.pairwise_features(jets, features=FEATURES)
    assert all(one.tobytes() == fasttag.pairwise_features(jets, features=FEATURES, threads=n).tobytes() for n in (2, 7))


def test_options_by_name():
    with pytest.raises(TypeError, match="pairwise_features: options must be given by name, got 1 more arguments"):
        fasttag.pairwise_features(toy_jets(2, 1), ("dot",))


OFFSETS = np.array([0, 2, 3])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"features": ()}, r"features must be some of ln_kt, .*, each once, got \(\); rename them"),
        ({"features": ("ln_kt", "ln_kT")}, "features must be some of ln_kt, "),
        ({"features": ("dot", "dot")}, "features must be some of ln_kt, .*, each once"),
        ({"features": "dot"}, "features must be some of ln_kt, .* got 'dot'"),
        ({"features": None}, "features must be some of ln_kt, .* got None"),
        ({"triangle": "upper"}, 'triangle must be "full" or "lower", got \'upper\'; choose one'),
        ({"m2": "weaver"}, 'm2 must be "stable" or "reference", got \'weaver\'; choose one'),
        ({"pairs": 4}, "pairs must be 5 here, got 4; leave it out to have it counted"),
        ({"pairs": 5, "triangle": "lower"}, "pairs must be 4 here, got 5; leave it out to have it counted"),
    ],
)
@pytest.mark.parametrize("make", [np.asarray, torch.tensor])
def test_refuses(options, message, make):
    with pytest.raises(ValueError, match=f"^pairwise_features: {message}"):
        pairwise_features(make(np.ones((4, 3))), make(OFFSETS), **options)


@pytest.mark.parametrize("shape", [(3, 5), (5, 4), (4,), (1, 4, 5)])
def test_refuses_shapes(shape):
    message = re.escape(f"pairwise_features: p4 must have shape (4, N), rows px, py, pz, E, got {shape}; transpose it")
    with pytest.raises(ValueError, match=message):
        pairwise_features(np.ones(shape), OFFSETS)


ASSEMBLY = """
import numpy as np
from numba import typeof, types
from fasttag_kernels._numba import inputs
from fasttag_kernels.pairwise_features import numba_cpu
p4, number, index = np.ones((4, 1), DTYPE), np.ones(1, DTYPE), np.zeros(1, np.int64)
arrays = {"_features": (*p4, index, index, index), "_gradient": (number, *p4, index, index, index)}["KERNEL"]
target = {"_features": number, "_gradient": p4}["KERNEL"]
kernel = numba_cpu.KERNEL
flags = (types.boolean, types.boolean)
kernel.compile((types.int64, types.int64, *map(typeof, inputs(*arrays)), *flags, typeof(target)))
print(*kernel.inspect_asm().values())
"""


@pytest.mark.slow
@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="looks at x86-64 instructions")
@pytest.mark.parametrize(
    ("kernel", "dtype", "single", "double"),
    [("_features", "float32", 32, 120), ("_features", "float64", 0, 160), ("_gradient", "float32", 0, 120)],
)
def test_is_packed(kernel, dtype, single, double, tmp_path):
    """For a CPU with AVX2: logarithms in eights, products of four-vectors in fours, rows stored under a mask."""
    code = ASSEMBLY.replace("KERNEL", kernel).replace("DTYPE", f"np.{dtype}")
    assembly = python(code, NUMBA_CPU_NAME="znver3", NUMBA_CPU_FEATURES="", NUMBA_CACHE_DIR=tmp_path)
    count = lambda pattern: len(re.findall(rf"^\s+{pattern}", assembly, re.MULTILINE))
    assert count(r"vfn?m(?:add|sub)\w+ps\s.*%ymm") >= single, "eight terms of each logarithm of angle, z, mass and psi"
    assert count(r"vfn?m(?:add|sub)\w+pd\s.*%ymm") >= double
    assert count(r"vfn?m(?:add|sub)\w+ss\s") == 0 and count(r"vsqrts[sd]\s") <= 1
    assert count(r"vmaskmov\w+") >= 8 and count(r"vgather") == 0
    assert not re.search(r"(?:call\w*|jmp|movabsq)\s+\$?(?:log|atan2?|fma|sqrt|hypot)\w*", assembly)


@pytest.mark.parametrize("bad", [1.0, True])
def test_pairs_must_be_an_integer(bad):
    with pytest.raises(TypeError, match=r"^pairwise_features: pairs must be an integer, got"):
        pairwise_features(np.ones((4, 1)), np.array([0, 1]), pairs=bad)


def on_cuda(monkeypatch, *arguments, **options):
    """The CUDA kernels on the host."""
    with monkeypatch.context() as patch:
        emulation.emulated(patch)
        return pairwise_features(*arguments, offsets_host=arguments[1], **options)


@pytest.mark.sanitizer
@every_dtype
@pytest.mark.parametrize("triangle", ["full", "lower"])
@pytest.mark.parametrize("m2", ["stable", "reference"])
def test_cuda_kernels_agree_with_the_cpu(dtype, triangle, m2, monkeypatch):
    """Tiles of 16 and blocks of 64 that end everywhere; m^2 of "reference" has the CPU's bits, its logarithm an ulp."""
    sizes = [1, 2, 15, 16, 17, 0, 31, 33, 63, 64, 65, 80, 97, 131]
    offsets = np.cumsum([3, *sizes])
    p4 = random_jet(offsets[-1] + 2).astype(dtype)
    p4[3, 40] = np.nan
    eps = np.finfo(dtype).eps
    for names in (FEATURES[:4], FEATURES[::-1], ("psi_dot", "ln_z"), ("dot",), ("ln_m2",)):
        options = {"features": names, "triangle": triangle, "m2": m2}
        found, expected = on_cuda(monkeypatch, p4, offsets, **options), pairwise_features(p4, offsets, **options)
        assert found.dtype == expected.dtype
        np.testing.assert_allclose(found, expected, rtol=8 * eps, atol=8 * eps if dtype == "float32" else 1e-9)
        if m2 == "reference" and "ln_m2" in names:
            at = names.index("ln_m2")
            np.testing.assert_allclose(found[at], expected[at], rtol=2 * eps, atol=eps)


@pytest.mark.sanitizer
@every_dtype
def test_cuda_kernels_give_the_lower_half_of_what_is_full(dtype, monkeypatch):
    p4, offsets = CASES["mixed"]()
    p4 = p4.astype(dtype)
    full = on_cuda(monkeypatch, p4, offsets, features=FEATURES)
    half = on_cuda(monkeypatch, p4, offsets, features=FEATURES, triangle="lower")
    assert half.tobytes() == np.ascontiguousarray(full[:, lower(offsets)]).tobytes()
    square = full[:, -200 * 200 - 4 : -4].reshape(8, 200, 200)
    assert (square == square.transpose(0, 2, 1)).all()


@pytest.mark.sanitizer
@pytest.mark.parametrize("triangle", ["full", "lower"])
@pytest.mark.parametrize("jets", [1023, 1024, 1025, 3000])
def test_starts_of_jets_on_cuda(jets, triangle, monkeypatch):
    """Sums over chunks of 1024 jets."""
    counts = np.random.default_rng(jets).integers(0, 4, jets)
    offsets = np.concatenate([[0], np.cumsum(counts)])
    emulation.emulated(monkeypatch)
    found = cupy_cuda._starts(offsets, np.int32(triangle == "full"))
    pairs = counts**2 if triangle == "full" else counts * (counts + 1) // 2
    assert (found == np.cumsum(pairs) - pairs).all()


@pytest.mark.sanitizer
@every_dtype
@pytest.mark.parametrize("triangle", ["full", "lower"])
@pytest.mark.parametrize("m2", ["stable", "reference"])
def test_cuda_gradients_agree_with_the_cpu(dtype, triangle, m2, monkeypatch):
    offsets = np.cumsum([3, 1, 0, 20, 5, 70, 64])
    p4 = random_jet(offsets[-1] + 2).astype(dtype)
    p4[:, 10:12] = p4[:, 9:10]
    p4[0, offsets[3] + 1] = np.inf
    emulation.emulated(monkeypatch)
    rng = np.random.default_rng(5)
    for names in (FEATURES, FEATURES[:4], ("psi_dot", "ln_delta")):
        arguments = (p4, offsets, count_pairs(offsets, triangle), list(names), triangle, m2)
        gradient = rng.normal(size=(len(names), arguments[2])).astype(dtype)
        found = _dispatch.execute_backward(
            "pairwise_features", "cuda", gradient, arguments, offsets, 1, emulation.poisoned
        )
        expected = _dispatch.execute_backward("pairwise_features", "numba", gradient, arguments, None, 1, np.empty)
        assert np.isnan(expected[:, offsets[3] : offsets[4]]).all() and (found[:, :3] == 0).all()
        size = np.nanmax(np.abs(expected))
        tolerance = 1e-10 if dtype == "float64" else 1e-6
        np.testing.assert_allclose(found, expected, rtol=tolerance, atol=tolerance * size)
