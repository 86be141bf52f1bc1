"""Neighbours: the total order, ties, duplicates, the wrap of phi, every k and C, and independent oracles."""

from __future__ import annotations

import itertools
import platform
import re

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial import cKDTree

import emulation
import fasttag
from children import python
from fasttag_kernels.kinematics import kinematics
from fasttag_kernels.knn import knn, network, numba_cpu, reference

every_dtype = pytest.mark.parametrize("dtype", ["float32", "float64"])
COUNTS = [0, 1, 2, 7, 8, 9, 15, 16, 17, 18, 0, 31, 32, 33, 34, 65]
PI = np.pi


def offsets_of(counts):
    return np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)


def points(n, columns, dtype="float64", seed=3):
    """Half of them continuous, half on a coarse grid: ties and duplicates in plenty."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, columns))
    x[::2] = rng.integers(-1, 2, (len(x[::2]), columns))
    return x.astype(dtype)


def distances(x, found, periodic=False):
    """To the neighbours found, in float64."""
    d = np.abs(x[:, None].astype(np.float64) - x[found])
    if periodic:
        d[..., 1] = np.minimum(d[..., 1], 2 * PI - d[..., 1])
    return np.sqrt((d**2).sum(-1))


def test_by_hand():
    x = np.array([[0, 0], [3, 0], [0, 1], [9, 9], [0, 0], [2, 2]], np.float32)
    expected = [[4, 2, 5], [5, 0, 4], [0, 4, 5], [5, 1, 2], [0, 2, 5], [1, 2, 0]]
    assert knn(x, 3).tolist() == expected
    two_jets = knn(x, 3, offsets=np.array([1, 4, 6]))
    assert two_jets.tolist() == [[-1] * 3, [1, 2, -1], [0, 2, -1], [0, 1, -1], [1, -1, -1], [0, -1, -1]]
    assert two_jets.dtype == np.int32


@every_dtype
@pytest.mark.parametrize("columns", [1, 2, 3, 15, 16, 17, 31, 32, 33, 64, 255, 256])
def test_every_k_and_number_of_columns(columns, dtype):
    """A longer list begins with the shorter one, so that one oracle serves all k."""
    x, offsets = points(sum(COUNTS), columns, dtype), offsets_of(COUNTS)
    expected = reference.knn(x, 32, offsets=offsets)
    for k in range(1, 33):
        assert (knn(x, k, offsets=offsets) == expected[:, :k]).all(), k


@every_dtype
@pytest.mark.parametrize("n", [255, 256, 257, 300, 511, 512, 530])
def test_more_constituents_than_one_byte_counts_and_than_one_block_holds(n, dtype):
    x = points(n, 3, dtype)
    assert (knn(x, 32, periodic=1) == reference.knn(x, 32, periodic=1)).all()


@every_dtype
@pytest.mark.parametrize("k", [1, 8, 16, 32])
def test_points_in_one_place_come_by_index(k, dtype):
    """None is its own neighbour, which dropping the first of k + 1 does not achieve."""
    for n in (2, 16, 40, 300):
        found = knn(np.full((n, 2), 0.1, dtype), k)
        others = [[j for j in range(n) if j != i] for i in range(n)]
        assert found.tolist() == [(row + [-1] * k)[:k] for row in others]


@every_dtype
def test_one_ulp_decides(dtype):
    """Squares of consecutive numbers: their order is that of all bits of d^2, and some are equal after rounding."""
    one, n = np.dtype(dtype).type(1), 200
    steps = np.random.default_rng(1).permutation(n - 1)
    x = np.concatenate([[0], one + steps * np.finfo(dtype).eps]).astype(dtype)[:, None]
    d2 = x[1:, 0] * x[1:, 0]
    assert len(np.unique(d2)) > n / 2
    found = knn(x, 32)
    assert found[0].tolist() == (np.argsort(d2, kind="stable")[:32] + 1).tolist()
    assert (found == reference.knn(x, 32)).all()


@every_dtype
def test_distances_too_small_and_too_large_for_the_dtype(dtype):
    """d^2 denormal, zero by underflow, infinite by overflow: the latter come last, by index."""
    tiny, huge = float(np.finfo(dtype).tiny) ** 0.5, float(np.finfo(dtype).max)
    scale = np.array([1e-3, 1e-2, 0.1, 0.5, 1, 2, 3], dtype) * np.dtype(dtype).type(tiny)
    x = np.concatenate([[0], scale, [1, 2, -huge, huge, -huge / 2]]).astype(dtype)[:, None]
    found = knn(x, 12)
    assert (found == reference.knn(x, 12)).all()
    assert found[0].tolist() == [*range(1, 13)]


@every_dtype
@pytest.mark.parametrize("value", [np.nan, -np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("columns", [1, 2, 5])
def test_what_is_not_finite_comes_last_by_index(value, columns, dtype):
    x = points(20, columns, dtype)
    x[[4, 11], columns - 1] = value
    found = knn(x, 19)
    assert found[0, -2:].tolist() == [4, 11] and (np.sort(found[0]) == np.arange(1, 20)).all()
    assert found[4].tolist() == [i for i in range(20) if i != 4]
    assert (found == reference.knn(x, 19)).all()
    if columns > 1:
        assert (knn(x, 19, periodic=1) == reference.knn(x, 19, periodic=1)).all()


@every_dtype
def test_phi_wraps(dtype):
    x = np.array([[0, 3.1], [0, -3.1], [0, 2.0], [0, 0.0]], dtype)
    assert knn(x, 1, periodic=1)[:, 0].tolist() == [1, 0, 0, 2]
    assert knn(x, 1)[:, 0].tolist() == [2, 3, 0, 2]
    ends = np.array([[0, PI], [0, -PI], [0, 3], [0, -3], [1e-3, PI]], dtype)
    assert knn(ends, 2, periodic=1)[:2].tolist() == [[1, 4], [0, 4]]


@every_dtype
@pytest.mark.parametrize("columns", [2, 5])
def test_phi_of_several_turns(columns, dtype):
    """Reduced before differences are taken, the same way as in the oracle."""
    rng = np.random.default_rng(5)
    x = points(150, columns, dtype)
    x[:, 1] = rng.uniform(-PI, PI, 150)
    turned = x.copy()
    turned[:, 1] += (2 * PI * rng.integers(-3, 4, 150)).astype(dtype)
    found = knn(turned, 16, periodic=1)
    assert (found == reference.knn(turned, 16, periodic=1)).all()
    tolerance = 32 * np.finfo(dtype).eps  # of angles up to 7 pi, in four roundings
    here, there = (distances(x, other, periodic=True) for other in (knn(x, 16, periodic=1), found))
    np.testing.assert_allclose(here, there, rtol=0, atol=tolerance)


JETS = st.builds(
    lambda seed, counts: (np.random.default_rng(seed).normal(0, 0.4, (sum(counts), 2)), offsets_of(counts)),
    st.integers(0, 2**32),
    st.lists(st.integers(0, 70), min_size=1, max_size=4),
)


@given(JETS, st.integers(1, 32), st.integers(0, 2**32))
def test_permuted_constituents_permute_the_graph(jets, k, seed):
    """Continuous coordinates in float64: no ties that an index would have to break."""
    x, offsets = jets
    found, rng = knn(x, k, offsets=offsets), np.random.default_rng(seed)
    for a, b in itertools.pairwise(offsets):
        order = rng.permutation(b - a)
        shuffled = knn(x[a:b][order], k)
        place = np.append(np.argsort(order), -1)  # of each constituent in the shuffled jet; -1 stays
        assert (shuffled == place[found[a:b]][order]).all()


@given(JETS, st.integers(1, 32), st.floats(-PI, PI), st.floats(-3, 3))
def test_position_does_not_matter(jets, k, turn, boost):
    """Turned about the beam and moved along eta: up to rounding, the neighbours are as near as before."""
    x, offsets = jets
    moved = np.stack([x[:, 0] + boost, (x[:, 1] + turn + PI) % (2 * PI) - PI], 1)
    for a, b in itertools.pairwise(offsets):
        before, after = (knn(y[a:b], min(k, 31), periodic=1) for y in (x, moved))
        assert ((before < 0) == (after < 0)).all()
        near = slice(0, max(min(k, 31, b - a - 1), 0))
        here, there = (distances(x[a:b], found[:, near], periodic=True) for found in (before, after))
        np.testing.assert_allclose(here, there, rtol=0, atol=1e-14)


@pytest.mark.parametrize("columns", [2, 3, 8])
@pytest.mark.parametrize("n", [40, 400])
def test_scipy(n, columns):
    x = np.random.default_rng(n).normal(size=(n, columns))
    _, found = cKDTree(x).query(x, k=33)
    assert (found[:, 0] == np.arange(n)).all()
    assert (knn(x, 32) == found[:, 1:]).all()


def test_scipy_on_a_cylinder():
    rng = np.random.default_rng(9)
    x = np.stack([rng.normal(size=300), rng.uniform(-PI, PI, 300)], 1)
    folded = np.stack([x[:, 0], x[:, 1] % (2 * PI)], 1)
    _, found = cKDTree(folded, boxsize=[0, 2 * PI]).query(folded, k=33)
    assert (knn(x, 32, periodic=1) == found[:, 1:]).all()


@every_dtype
def test_scipy_with_ties(dtype):
    """Small integers: distances are exact. All points as near as the k-th, ordered by distance, then by index."""
    x = np.random.default_rng(2).integers(-3, 4, (150, 2))
    tree, k = cKDTree(x), 16
    radius = tree.query(x, k=k + 1)[0][:, -1] + 1e-9
    found = knn(x.astype(dtype), k)
    for i, near in enumerate(tree.query_ball_point(x, radius)):
        assert len(near) >= k + 1
        d2 = ((x[near] - x[i]) ** 2).sum(1)
        order = [j for _, j in sorted(zip(d2, near)) if j != i]
        assert found[i].tolist() == order[:k]


@pytest.mark.shared
@pytest.mark.parametrize("k", [16, 32])
def test_simulated_jets(shared, k):
    """Three of four of these jets have constituents on one point, half of all queries meet a tie."""
    jets = fasttag.read(shared / "data" / "test.h5", stop=3000)
    _, _, eta, phi, _ = kinematics(jets.p4)
    x = np.stack([eta, phi], 1)
    expected = reference.knn(x, k, offsets=jets.offsets, periodic=1)
    assert (fasttag.knn(jets, k) == expected).all()


def test_jets(jets64):
    found = fasttag.knn(jets64)
    _, _, eta, phi, _ = kinematics(jets64.p4)
    x = np.stack([eta, phi], 1)
    assert (found == knn(x, offsets=jets64.offsets, periodic=1)).all()
    assert (fasttag.knn(x, offsets=jets64.offsets, periodic=1) == found).all()
    some = fasttag.knn(jets64[3:5], threads=2)
    a, b = jets64.offsets[[3, 5]]
    assert (some[a:b] == found[a:b]).all() and (np.delete(some, np.s_[a:b], 0) == -1).all()
    tensor = fasttag.knn(jets64.to(library="torch"), 3)
    assert isinstance(tensor, torch.Tensor) and (tensor.numpy() == found[:, :3]).all()
    with pytest.raises(TypeError, match="knn: offsets and periodic must not be given with Jets, got periodic; drop"):
        fasttag.knn(jets64, periodic=1)


def test_positions_among_all_points():
    """The one-liner of the docstring."""
    x, offsets = points(30, 2), offsets_of([3, 0, 20, 7])
    found = knn(x, 5, offsets=offsets)
    place = np.where(found < 0, -1, found + np.repeat(offsets[:-1], np.diff(offsets))[:, None])
    jet = np.repeat(np.arange(4), np.diff(offsets))
    assert (place[found < 0] == -1).all() and (found < 0).sum() == 3 * 3
    assert (jet[place] == jet[:, None])[found >= 0].all()


@pytest.mark.parametrize("n", [8, 16])
def test_networks_sort(n):
    """What sorts every sequence of zeros and ones sorts every sequence."""
    bits = (np.arange(2**n)[:, None] >> np.arange(n) & 1).astype(np.int8)
    bitonic = bits[(np.diff(bits, axis=1, append=bits[:, :1]) != 0).sum(1) <= 2]
    for pairs, rows in ((network.batcher(n), bits), (network.bitonic(n), bitonic)):
        rows = rows.copy()
        for i, j in pairs:
            rows[:, i], rows[:, j] = np.minimum(rows[:, i], rows[:, j]), np.maximum(rows[:, i], rows[:, j])
        assert (np.diff(rows, axis=1) >= 0).all()
    assert [len(network.batcher(n)) for n in (8, 16, 32)] == [19, 63, 191]


def test_networks_do_not_take_each_others_place():
    """Of several widths, compiled in one process for arrays of two kinds: read-only ones, then others."""
    x, offsets = points(20, 3), offsets_of([1, 19])
    expected = [knn(x, k, offsets=offsets) for k in numba_cpu.WIDTHS]
    for k, one in zip(numba_cpu.WIDTHS, expected):
        found = np.empty_like(one)
        numba_cpu._kernel(k, 2)(0, 2, x, offsets, np.inf, found)
        assert np.array_equal(found, one) and np.array_equal(one, reference.knn(x, k, offsets=offsets))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"x": np.ones(3)}, ValueError, "x must have shape (N, C) with C in 1..256, got (3,); one row per"),
        ({"x": np.ones((3, 0))}, ValueError, "x must have shape (N, C) with C in 1..256, got (3, 0)"),
        ({"x": np.ones((3, 257))}, ValueError, "x must have shape (N, C) with C in 1..256, got (3, 257)"),
        ({"x": np.ones((1, 3, 2))}, ValueError, "x must have shape (N, C) with C in 1..256, got (1, 3, 2)"),
        ({"x": np.ones((3, 1)), "periodic": 1}, ValueError, "x must have a column 1 to be periodic, got (N, 1)"),
        ({"k": 0}, ValueError, "k must be 1 or more, got 0; 16 is usual"),
        ({"k": 33}, ValueError, "k must be at most 32, got 33; 16 is usual"),
        ({"k": 16.0}, TypeError, "k must be an integer, got 16.0"),
        ({"k": True}, TypeError, "k must be an integer, got True"),
        ({"periodic": 0}, ValueError, "periodic must be None or 1, got 0; put the angle into column 1"),
        ({"periodic": True}, ValueError, "periodic must be None or 1, got True; put the angle into column 1"),
        ({"periodic": "phi"}, ValueError, "periodic must be None or 1, got 'phi'; put the angle into column 1"),
        ({"offsets": [0, 3]}, TypeError, "offsets must be a NumPy, CuPy or torch array, got list"),
        ({"offsets": np.array([0, 4])}, ValueError, "offsets must lie in 0..3, got 0..4"),
    ],
)
def test_refuses(options, error, message):
    with pytest.raises(error, match=f"^knn: {re.escape(message)}"):
        knn(**{"x": np.ones((3, 2))} | options)


@pytest.mark.parametrize("rows", [0, 1])
def test_nothing_to_choose_from(rows):
    assert knn(np.ones((rows, 2)), 4).tolist() == [[-1] * 4] * rows


ASSEMBLY = """
import numpy as np
from numba import typeof, types
from fasttag_kernels._numba import inputs
from fasttag_kernels.knn import numba_cpu
x, offsets = inputs(np.ones((1, 2), np.float32), np.zeros(1, np.int64))
kernel = numba_cpu._kernel(16, 1)
kernel.compile((types.int64, types.int64, typeof(x), typeof(offsets), types.float32, typeof(np.ones((1, 1), np.int32))))
print(*kernel.inspect_asm().values())
"""


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="looks at x86-64 instructions")
def test_knn_is_packed(tmp_path):
    """For a CPU with AVX2: one packed minimum and maximum per exchange, for both groups of four lanes; no FMA."""
    assembly = python(ASSEMBLY, NUMBA_CPU_NAME="znver3", NUMBA_CPU_FEATURES="", NUMBA_CACHE_DIR=tmp_path)
    found = re.findall(r"^\s+(v\w+p[sd])\s.*%ymm", assembly, re.MULTILINE)
    exchanges = 2 * len(network.batcher(16)) + len(network.bitonic(16))
    assert found.count("vminpd") == 2 * (exchanges + 16) and found.count("vmaxpd") == 2 * exchanges
    assert {"vsubps", "vmulps", "vaddps", "vminps"} <= set(found)
    assert not re.search(r"\svfn?m(add|sub)", assembly)
    assert len(re.findall(r"^\s+v(mul|add)ss\s", assembly, re.MULTILINE)) <= 3, "only phi is reduced one by one"


def emulated(patch, x, k, **options):
    """The CUDA kernel, run on the host."""
    emulation.emulated(patch)
    if options.get("offsets") is not None:
        options["offsets_host"] = options["offsets"].copy()
    return knn(x, k, **options)


@pytest.mark.sanitizer
@every_dtype
@pytest.mark.parametrize("columns", [1, 2, 3, 7, 17, 18, 34, 64, 256])
def test_cuda_has_every_k_and_number_of_columns(columns, dtype, monkeypatch):
    """Around the 16 or 32 columns staged at once after the first two, and the 8 or 16 neighbours of a round."""
    x, offsets = points(sum(COUNTS), columns, dtype), offsets_of(COUNTS)
    periodic = 1 if columns > 1 else None
    expected = reference.knn(x, 32, offsets=offsets, periodic=periodic)
    for k in (1, 5, 8, 9, 16, 17, 32):
        assert (emulated(monkeypatch, x, k, offsets=offsets, periodic=periodic) == expected[:, :k]).all(), k


@pytest.mark.sanitizer
@every_dtype
@pytest.mark.parametrize("k", [8, 16, 32])
def test_cuda_keeps_the_total_order(k, dtype, monkeypatch):
    """Points in one place, distances one ulp apart, too small, too large and not finite, angles of several turns."""
    rng, eps = np.random.default_rng(7), np.finfo(dtype).eps
    tiny, huge = float(np.finfo(dtype).tiny) ** 0.5, float(np.finfo(dtype).max)
    column = np.concatenate([[0], 1 + rng.permutation(60) * eps, np.arange(9) * tiny / 3, [huge, -huge, huge / 2]])
    sets = [np.full((70, 2), 0.1), points(70, 2), np.stack([column, column], 1), rng.normal(0, 1, (300, 2)) * [1, 9]]
    for value in (np.nan, np.inf, -np.inf):
        sets.append(points(40, 3))
        sets[-1][[4, 11, 33], [0, 1, 2]] = value
    for x in (x.astype(dtype) for x in sets):
        for periodic in (None, 1):
            expected = reference.knn(x, k, periodic=periodic)
            assert (emulated(monkeypatch, x, k, periodic=periodic) == expected).all()


@pytest.mark.sanitizer
@every_dtype
@pytest.mark.parametrize("n", [0, 1, 2, 31, 32, 33])
def test_cuda_has_sets_of_any_size(n, dtype, monkeypatch):
    x = points(n, 2, dtype)
    assert (emulated(monkeypatch, x, 4) == reference.knn(x, 4)).all()


@pytest.mark.sanitizer
@every_dtype
@pytest.mark.parametrize("columns", [2, 64])
def test_cuda_agrees_with_the_cpu_on_many_jets(columns, dtype, monkeypatch):
    """Rows before and after the jets too; a fifth of the points on a grid."""
    rng = np.random.default_rng(11)
    counts = np.clip(rng.normal(48, 18, 2000 if columns == 2 else 100), 0, 200).astype(int)
    x = rng.normal(0, 0.4, (counts.sum() + 9, columns))
    x[::5] = np.round(x[::5], 1)
    x[:, 1] += np.repeat(rng.uniform(-PI, PI, len(x) // 50 + 1), 50)[: len(x)]
    x, offsets = x.astype(dtype), offsets_of(counts) + 4
    expected = knn(x, offsets=offsets, periodic=1)
    assert (emulated(monkeypatch, x, 16, offsets=offsets, periodic=1) == expected).all()
