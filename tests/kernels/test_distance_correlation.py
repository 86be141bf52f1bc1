"""Distance correlation: two algorithms, the definition, other people's numbers, and what the mathematics promises."""

from __future__ import annotations

import platform
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import emulation
from children import peer, python
from fasttag import _baselines
from fasttag_kernels import _cuda, _dispatch, _torch
from fasttag_kernels.distance_correlation import (
    cupy_cuda,
    distance_correlation,
    distance_covariance,
    numba_cpu,
    reference,
)
from tolerances import EPS32

DATA = Path(__file__).parent.parent / "data"
FUNCTIONS = {"correlation": distance_correlation, "covariance": distance_covariance}
ORACLES = {"correlation": reference.distance_correlation, "covariance": reference.distance_covariance}
every_form = pytest.mark.parametrize("form", FUNCTIONS)
SETTINGS = ["weighted", "equal", "unbiased"]
every_setting = pytest.mark.parametrize("setting", SETTINGS)


@pytest.fixture(params=["pairs", "sweep"])
def algorithm(request, monkeypatch):
    monkeypatch.setattr(numba_cpu, "FEW", {"pairs": 1 << 40, "sweep": 0}[request.param])


def variables(n, seed=0, ties=True):
    """Dependent x and y, with many equal values each, and weights of which some are 0."""
    rng = np.random.default_rng([n, seed])
    x = rng.normal(size=n)
    y = 0.5 * x**2 + rng.normal(size=n)
    weights = rng.exponential(size=n) * (rng.random(n) > 0.2) if n else np.ones(n)
    if not weights.any():
        weights[:] = 1
    if ties:
        x, y = np.round(x, 1), np.clip(np.round(y, 1), -0.5, 1.5)
    return x, y, weights


def options_of(setting, weights):
    return {"weighted": {"weights": weights}, "equal": {}, "unbiased": {"unbiased": True}}[setting]


def textbook(x, y, weights, setting, form):
    """Value and gradients in x and y by the definition, with n x n tensors and torch's own derivatives."""
    x, y = (torch.from_numpy(v).requires_grad_() for v in (x, y))
    n = len(x)
    distances = [(v[:, None] - v).abs() for v in (x, y)]
    if setting == "unbiased":
        off = 1 - torch.eye(n, dtype=x.dtype)
        centred = [
            off * (d - d.sum(0) / (n - 2) - d.sum(1)[:, None] / (n - 2) + d.sum() / ((n - 1) * (n - 2)))
            for d in distances
        ]
        each = off / (n * (n - 3))
    else:
        p = torch.from_numpy(weights) if setting == "weighted" else torch.ones(n, dtype=x.dtype)
        p = p / p.sum()
        centred = [d - d @ p - (d @ p)[:, None] + p @ d @ p for d in distances]
        each = p[:, None] * p
    (a, b), v = centred, lambda a, b: (each * a * b).sum()
    value = v(a, b) if form == "covariance" else v(a, b) / (v(a, a) * v(b, b)).sqrt()
    return value.item(), *(g.numpy() for g in torch.autograd.grad(value, (x, y)))


def with_gradients(function, x, y, **options):
    x, y = (torch.from_numpy(v).requires_grad_() for v in (x, y))
    options = {name: torch.from_numpy(v) if name == "weights" else v for name, v in options.items()}
    value = function(x, y, **options)
    return value.item(), *(g.numpy() for g in torch.autograd.grad(value, (x, y)))


def assert_close(found, expected, tolerance=1e-12):
    """Each of value, gradients: relative to its largest element."""
    for a, b in zip(found, expected, strict=True):
        assert np.max(np.abs(a - b)) <= tolerance * np.max(np.abs(b)), (a, b)


@every_form
@every_setting
@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("n", [7, 16, 17, 256, 257, 530])
def test_value_and_gradients_are_the_textbooks(form, setting, algorithm, ties, n):
    """Also on both sides of the change of algorithm, and of 256, where the tree gets another level."""
    x, y, weights = variables(n, ties=ties)
    found = with_gradients(FUNCTIONS[form], x, y, **options_of(setting, weights))
    expected = textbook(x, y, weights, setting, form)
    assert_close(found, expected, 1e-10 if n < 12 else 1e-12)  # few points, much cancellation
    oracle = ORACLES[form](x, y, options_of(setting, weights).get("weights"), setting == "unbiased")
    assert oracle == pytest.approx(expected[0], rel=1e-11)


@every_form
@given(data=st.data())
def test_both_algorithms_and_the_oracle_agree(form, data):
    n = data.draw(st.integers(2, 50))
    values = st.lists(st.sampled_from([-1.0, -0.0, 0.0, 0.5, 1.0, 1.25]), min_size=n, max_size=n).map(np.array)
    x, y = data.draw(values), data.draw(values)
    setting = data.draw(st.sampled_from(SETTINGS))
    weights = np.array(data.draw(st.lists(st.integers(0, 3), min_size=n, max_size=n)), float)
    weights[data.draw(st.integers(0, n - 1))] = 1
    options = options_of(setting, weights)
    found = []
    for few in (0, 100):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(numba_cpu, "FEW", few)
            found.append(with_gradients(FUNCTIONS[form], x, y, **options))
    for a, b in zip(*found):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-11)
    if setting != "unbiased":
        assert found[0][0] == pytest.approx(ORACLES[form](x, y, options.get("weights")), rel=1e-9, abs=1e-13)


@every_form
@every_setting
@pytest.mark.parametrize("n", [9, 300])
def test_gradcheck(form, setting, n):
    x, y, weights = (torch.from_numpy(v) for v in variables(n, ties=False))
    run = lambda x, y: FUNCTIONS[form](x, y, **options_of(setting, weights))
    assert torch.autograd.gradcheck(run, (x.requires_grad_(), y.requires_grad_()), eps=1e-7, atol=1e-6)


@pytest.mark.parametrize("n", [9, 300])
def test_only_what_is_needed_is_computed(n, monkeypatch):
    """And all of it is written: outputs start as NaN here."""
    poison = lambda shape, dtype: np.full(shape, np.nan, dtype)
    monkeypatch.setattr(_torch, "_memory", poison)
    x, y, weights = (torch.from_numpy(v) for v in variables(n))
    op = torch.ops.fasttag.distance_correlation
    whole = [part.clone() for part in op(x, y, weights, False, False, [True, True], None, 1)]
    assert (weights == 0).any() and not any(part.isnan().any() for part in whole)
    for needed in ([False, False], [True, False], [False, True]):
        value, *derivatives = op(x, y, weights, False, False, needed, None, 1)
        torch.testing.assert_close(value, whole[0], rtol=1e-12, atol=0)
        for need, part, all_of_it in zip(needed, derivatives, whole[1:]):
            assert torch.equal(part, all_of_it) if need else part.shape == (0,)
    seen, run = [], numba_cpu.run
    spy = lambda *arguments, threads: seen.append(list(arguments[5])) or run(*arguments, threads=threads)
    monkeypatch.setattr(_dispatch, "implementation", lambda *_: spy)
    distance_correlation(x, y)
    distance_correlation(x, y.clone().requires_grad_())
    with torch.no_grad():
        distance_correlation(x, y.clone().requires_grad_())
    assert seen == [[False, False], [False, True], [False, False]]


def test_a_derivative_not_asked_for_is_refused():
    """Of the raw operation; the public function always asks for what torch will use."""
    x = torch.arange(5.0).requires_grad_()
    value, *_ = torch.ops.fasttag.distance_correlation(
        x, torch.arange(5.0) ** 2, None, False, False, [False, True], None, 1
    )
    with pytest.raises(RuntimeError, match="distance_correlation: recorded without gradients"):
        torch.autograd.grad(value, x)


def test_golden_dcor(algorithm):
    with np.load(DATA / "dcor.npz") as f:
        x, y, ties = f["x"], f["y"], f["ties"]
        assert distance_correlation(x, y) == pytest.approx(f["dcorr2_xy"], rel=1e-12)
        assert distance_correlation(x, ties) == pytest.approx(f["dcorr2_xt"], rel=1e-12)
        assert distance_covariance(x, y) == pytest.approx(f["dcov2_xy"], rel=1e-12)
        assert distance_correlation(x, y, unbiased=True) == pytest.approx(f["u_dcorr2_xy"], rel=1e-12)


@pytest.mark.parametrize(
    "tag", ["unweighted_power1", "weighted_power1", "unweighted_power1_ties", "weighted_power1_ties"]
)
def test_golden_disco(algorithm, tag):
    with np.load(DATA / "disco_official.npz") as f:
        x = f["x_ties"] if tag.endswith("ties") else f["x"]
        options = {"weights": f["weights"]} if tag.startswith("weighted") else {}
        found = with_gradients(distance_correlation, x, f["y"], **options)
        assert_close(found, [f[f"{kind}/{tag}"] for kind in ("value", "grad_x", "grad_y")])


DCOR = """
import dcor
result = [[float(f(x, y)) for f in (
    dcor.distance_correlation_sqr, dcor.distance_covariance_sqr,
    dcor.u_distance_correlation_sqr, dcor.u_distance_covariance_sqr)]]
"""


@pytest.mark.peers
@pytest.mark.parametrize(("n", "ties"), [(7, True), (300, True), (3000, True), (20_000, False)])
def test_live_dcor(n, ties, tmp_path):
    x, y, _ = variables(n, ties=ties)
    (theirs,) = peer(DCOR, tmp_path, x=x, y=y)
    found = [f(x, y, unbiased=u) for u in (False, True) for f in FUNCTIONS.values()]
    np.testing.assert_allclose(found, theirs, rtol=1e-10)


@every_form
@every_setting
@pytest.mark.parametrize("n", [30, 600])
def test_invariances(form, setting, algorithm, n):
    x, y, weights = variables(n)
    options = options_of(setting, weights)
    run = FUNCTIONS[form]
    value = run(x, y, **options)
    unit = 1 if form == "correlation" else 3 * 0.25
    assert run(3 * x + 8, 0.25 * y - 4, **options) == pytest.approx(unit * value, rel=1e-11)
    assert run(-x, y, **options) == pytest.approx(value, rel=1e-11)
    assert run(y, x, **options) == pytest.approx(value, rel=1e-11)
    order = np.random.default_rng(1).permutation(n)
    shuffled = {"weights": weights[order]} if setting == "weighted" else options
    found = with_gradients(run, x[order], y[order], **shuffled)
    expected = with_gradients(run, x, y, **options)
    assert_close(found, (expected[0], expected[1][order], expected[2][order]))
    if setting == "weighted":
        assert run(x, y, weights=7 * weights) == pytest.approx(value, rel=1e-12)


@pytest.mark.parametrize("n", [30, 600])
@every_setting
def test_gradients_obey_euler_and_translation(algorithm, n, setting):
    """dCov^2 is homogeneous of degree 1 in each variable, dCorr^2 of degree 0; neither sees a translation."""
    x, y, weights = variables(n)
    for form, degree in (("covariance", 1), ("correlation", 0)):
        value, *gradients = with_gradients(FUNCTIONS[form], x, y, **options_of(setting, weights))
        for v, gradient in zip((x, y), gradients):
            size = np.abs(gradient).sum()
            assert v @ gradient == pytest.approx(degree * value, abs=1e-12 * size * np.abs(v).max())
            assert gradient.sum() == pytest.approx(0, abs=1e-12 * size)


@pytest.mark.parametrize("n", [2, 3, 30, 600])
def test_of_a_variable_with_itself(algorithm, n):
    x, _, weights = variables(n, ties=n < 100)
    weights = np.maximum(weights, 0.1)
    x[0] += 1
    for options in ({}, {"weights": weights}, *([{"unbiased": True}] if n > 3 else [])):
        assert distance_correlation(x, x, **options) == pytest.approx(1, rel=1e-12)
        assert distance_correlation(x, 5 - 2 * x, **options) == pytest.approx(1, rel=1e-12)


def test_independent_variables():
    """n dCorr^2 has a mean of order 1; the unbiased statistic is 0 on average, within its own spread."""
    rng = np.random.default_rng(2)
    biased = [distance_correlation(*rng.normal(size=(2, 2000))) for _ in range(20)]
    unbiased = [distance_correlation(*rng.normal(size=(2, 2000)), unbiased=True) for _ in range(20)]
    assert 0 < np.mean(biased) < 4 / 2000
    assert abs(np.mean(unbiased)) < 4 * np.std(unbiased) / 20**0.5 and np.min(unbiased) < 0


@every_form
@pytest.mark.parametrize("n", [20, 400])
def test_weights_count_points(form, algorithm, n):
    """Integer weights are repetitions, to rounding; weight 0 is omission, to the bit and whatever stands there."""
    x, y, _ = variables(n)
    times = np.random.default_rng(3).integers(0, 4, n)
    run = FUNCTIONS[form]
    value, by_x, by_y = with_gradients(run, x, y, weights=times.astype(float))
    repeated = with_gradients(run, np.repeat(x, times), np.repeat(y, times))
    owner = np.repeat(np.arange(n), times)
    assert_close((value, by_x, by_y), (repeated[0], *(np.bincount(owner, g, n) for g in repeated[1:])))
    used = times > 0
    x[~used], y[~used] = np.nan, np.inf
    some = with_gradients(run, x[used], y[used], weights=times[used].astype(float))
    found = with_gradients(run, x, y, weights=times.astype(float))
    assert found[0] == some[0] and not found[1][~used].any() and not found[2][~used].any()
    assert np.array_equal(found[1][used], some[1]) and np.array_equal(found[2][used], some[2])


@every_form
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(
    ("x", "y", "options"),
    [
        ([], [], {}),
        ([], [], {"weights": np.array([])}),
        ([3], [4], {}),
        ([3, 4], [4, 5], {"weights": np.array([0.0, 2.0])}),
        ([0.1] * 9, [1, 2, 3, 4, 5, 6, 7, 8, 9], {}),
        ([0.1] * 9, [1, 2, 3, 4, 5, 6, 7, 8, 9], {"unbiased": True}),
        ([0.1, 0.1, 0.1, 7], [1, 2, 3, 4], {"weights": np.array([0.1, 0.2, 0.7, 0.0])}),
        ([0.0, -0.0, 0.0], [1, 2, 3], {}),
        ([0.1, 0.2, 0.3], [1, 2, 3], {"unbiased": True}),
    ],
)
def test_degenerate(form, algorithm, dtype, x, y, options):
    options = {name: v.astype(dtype) if name == "weights" else v for name, v in options.items()}
    for a, b in ((x, y), (y, x)):
        a, b = np.array(a, dtype), np.array(b, dtype)
        value = FUNCTIONS[form](a, b, **options)
        assert value == 0 and isinstance(value, np.generic) and value.dtype == dtype
        assert not any(np.any(part) for part in with_gradients(FUNCTIONS[form], a, b, **options))


@pytest.mark.parametrize("n", [4, 300])
def test_one_point_apart_has_no_unbiased_variance(algorithm, n):
    """Algebra makes it 0, rounding does not: neither the value nor the gradient may be noise over noise."""
    x, y = np.full(n, 0.1), np.linspace(0.0, 1.3, n) ** 2
    x[1] = 0.7
    assert with_gradients(distance_correlation, x, y, unbiased=True)[0] == 0
    assert distance_covariance(x, y, unbiased=True) == pytest.approx(0, abs=1e-14)
    assert distance_correlation(x, y) > 0


@every_form
@pytest.mark.parametrize("bad", [np.nan, -np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", [0, 1, 2])
def test_what_is_not_finite_gives_nan(form, algorithm, bad, place):
    if place == 2 and bad == -np.inf:
        bad = np.nan
    arrays = list(variables(30))
    arrays[2] += 0.1
    for at in (0, 7):
        changed = [v.copy() for v in arrays]
        changed[place][at] = bad
        found = with_gradients(FUNCTIONS[form], *changed[:2], weights=changed[2])
        assert np.isnan(found[0]) and np.isnan(found[1]).all() and np.isnan(found[2]).all()


def test_far_from_zero(algorithm):
    """Centred before anything else: an offset of 10^6 costs 6 digits of the inputs and nothing of the sums."""
    x, y, weights = variables(500)
    x, y = np.round(64 * x) / 64, np.round(64 * y) / 64
    expected = with_gradients(distance_correlation, x, y, weights=weights)
    assert_close(with_gradients(distance_correlation, x + 2.0**20, y - 2.0**22, weights=weights), expected, 1e-13)


@pytest.mark.parametrize("ties", [False, True])
def test_float32_large(ties):
    """n = 10^5 in float32: sums in float64, rounded once, value and gradients."""
    x, y, weights = (v.astype(np.float32) for v in variables(100_000, ties=ties))
    found = with_gradients(distance_correlation, x, y, weights=weights)
    exact = with_gradients(distance_correlation, *(v.astype(np.float64) for v in (x, y)), weights=weights.astype(float))
    assert found[1].dtype == found[2].dtype == np.float32
    for a, b in zip(found, exact):
        # half an ulp, and 1e-11 of the largest for another order of weights' sums
        assert (np.abs(a - b) <= 0.5 * EPS32 * np.abs(b) + 1e-11 * np.abs(b).max()).all()


MEMORY = """
import resource, numpy as np
from fasttag_kernels.distance_correlation import numba_cpu
def peak(n):
    x, y, weights = np.random.default_rng(0).normal(size=(3, n)) ** 2
    numba_cpu.run(x, y, weights, False, False, [], np.empty(()), np.empty(n), np.empty(n), threads=1)
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
small = peak(1000)
print((peak(1_000_000) - small) / 1_000_000)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is in kB on Linux only")
def test_memory_is_linear():
    """Per point 136 bytes of work, 64 of input, squares and results, and nothing else that grows."""
    assert float(python(MEMORY)) < 220


ASSEMBLY = """
import numpy as np
from numba import typeof
from fasttag_kernels.distance_correlation.numba_cpu import _pairs, _sweep
order, rows, row = np.ones(1, np.uint32), np.ones((1, 4)), np.ones(1)
_sweep.compile(tuple(map(typeof, (0, 1, *5 * [order], rows, rows, rows, row, 4, False, False, row))))
_pairs.compile(tuple(map(typeof, (row, row, row, row, row, order, False, False, row))))
print(*_sweep.inspect_asm().values(), "PAIRS", *_pairs.inspect_asm().values())
"""


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="looks at x86-64 instructions")
def test_sums_are_packed(tmp_path):
    """For a CPU with AVX2: both sums in a node of the tree, and the sums over pairs, in ymm registers."""
    assembly = python(ASSEMBLY, NUMBA_CPU_NAME="znver3", NUMBA_CPU_FEATURES="", NUMBA_CACHE_DIR=tmp_path)
    tree, pairs = (re.findall(r"^\s+(v\w+pd)\s.*%ymm", part, re.MULTILINE) for part in assembly.split("PAIRS"))
    assert tree.count("vaddpd") >= 2
    assert sum(name.startswith("vfmadd") for name in pairs) >= 4 and pairs.count("vsubpd") >= 3


@pytest.mark.parametrize("function", FUNCTIONS.values(), ids=list(FUNCTIONS))
@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"x": np.ones((3, 1))}, ValueError, r"x must have shape \(n,\), got \(3, 1\); pass one variable"),
        ({"y": np.ones(4)}, ValueError, r"y must have the shape of x, \(3,\), got \(4,\); make them match"),
        ({"weights": np.ones(2)}, ValueError, r"weights must have the shape of x, \(3,\), got \(2,\)"),
        ({"weights": np.array([1, -2.0, 1])}, ValueError, r"weights must be 0 or more, got -2.0; clip them"),
        ({"weights": np.zeros(3)}, ValueError, "weights must not all be 0, got 3 zeros; pass no points at all"),
        ({"weights": np.ones(3), "unbiased": True}, ValueError, "weights must be None where unbiased=True, got an"),
        ({"y": np.ones(3, np.float32)}, TypeError, "all floats must share one dtype"),
        ({"weights": [1, 1, 1]}, TypeError, "weights must be a NumPy, CuPy or torch array, got list"),
    ],
)
def test_refuses(function, change, error, message):
    with pytest.raises(error, match=f"^{function.__name__}: {message}"):
        function(**{"x": np.arange(3.0), "y": np.arange(3.0), **change})


def test_refuses_gradients_in_weights():
    x = torch.arange(3.0)
    with pytest.raises(RuntimeError, match=r"^distance_correlation: weights must not require grad, .* in x, y; detach"):
        distance_correlation(x, x, weights=x.clone().requires_grad_())


SATURATED = 1 / (1 + np.exp(np.array([60.0, 50, 45, 40, 0, -1, 1])))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_close_values_are_no_ties(algorithm, dtype):
    """Values that differ by less than the rounding of their mean, as those of a saturated sigmoid."""
    x = torch.tensor(SATURATED, dtype=dtype).requires_grad_()
    y = torch.tensor([3.0, 1, 2, 5, 4, 0, 6], dtype=dtype).requires_grad_()
    found = torch.autograd.grad(distance_correlation(x, y), (x, y))
    wide = [v.detach().double().requires_grad_() for v in (x, y)]
    expected = torch.autograd.grad(_baselines.distance_correlation(*wide, torch.ones(7).double()), wide)
    for a, b in zip(found, expected):
        np.testing.assert_allclose(a.numpy(), b.numpy(), rtol=1e-6 if dtype == torch.float32 else 1e-12)


@pytest.mark.parametrize("needs", [(True, False), (False, True), (True, True)])
def test_anomaly_detection_sees_no_nan(needs):
    """The derivative that nobody asked for is not handed on."""
    x, y = (torch.randn(20, requires_grad=need) for need in needs)
    with torch.autograd.set_detect_anomaly(True):
        distance_correlation(x, y).backward()
    assert [v.grad is not None for v in (x, y)] == list(needs)


def test_nearly_all_weight_on_one_value(algorithm):
    x, y = np.array([0.0, 0, 0, 1, 2, 3]), np.array([0.0, 0, 0, 3, 1, 2])
    run = lambda small: distance_correlation(x, y, weights=np.array([1, 1, 1, small, small, small]))
    assert run(1e-8) == pytest.approx(0.8076923, abs=1e-6)
    assert run(1e-18) == 0, "below rounding there is no variance"


def test_a_far_point_without_weight_costs_no_digits(algorithm):
    rng = np.random.default_rng(3)
    x, y, weights = *rng.normal(size=(2, 20)), np.ones(20)
    x[0], weights[0] = 1e16, 1e-30
    found = distance_correlation(x, y, weights=weights)
    assert found == pytest.approx(distance_correlation(x[::-1], y[::-1], weights=weights[::-1]), rel=1e-12)


@pytest.mark.parametrize("scale", [1e-320, 1e-200, 1e306])
def test_weights_of_any_size(scale, algorithm):
    x, y, weights = variables(300)
    weights = np.rint(weights * 10)
    expected = distance_correlation(x, y, weights=weights)
    assert distance_correlation(x, y, weights=weights * scale) == pytest.approx(expected, rel=1e-12)


def on_gpu(x, y, weights=None, unbiased=False, form="correlation", needed=(True, True), backend=cupy_cuda):
    """Value and derivatives as a backend's `run` writes them."""
    outs = [emulation.poisoned((), x.dtype), *(emulation.poisoned(len(x) * need, x.dtype) for need in needed)]
    threads = {"threads": 1} if backend is numba_cpu else {}
    backend.run(x, y, weights, unbiased, form == "covariance", list(needed), *outs, **threads)
    return outs


def on_gpu_both_ways(monkeypatch, *arguments, **options):
    """The same bits with threads and blocks in rising and falling order."""
    found = on_gpu(*arguments, **options)
    monkeypatch.setattr(emulation.Settings, "falling", True)
    again = on_gpu(*arguments, **options)
    monkeypatch.setattr(emulation.Settings, "falling", False)
    assert [a.tobytes() for a in found] == [a.tobytes() for a in again]
    return found


@pytest.fixture
def gpu(monkeypatch):
    emulation.emulated(monkeypatch)


def emulated(test):
    """Runs the CUDA backend on the host."""
    return pytest.mark.sanitizer(pytest.mark.usefixtures("gpu")(test))


@emulated
@every_form
@every_setting
@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("n", [5, 128, 129, 256, 257, 513])
def test_gpu_agrees_with_the_textbook(form, setting, ties, n, monkeypatch):
    """On both sides of where there is another tile, and another run to merge."""
    x, y, weights = variables(n, ties=ties)
    options = options_of(setting, weights)
    found = on_gpu_both_ways(monkeypatch, x, y, form=form, **options)
    assert_close(found, textbook(x, y, weights, setting, form), 1e-10 if n < 12 else 2e-12)


@emulated
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("n", "tile"), [(511, 256), (1537, 640), (2050, 256)])
def test_gpu_many_passes_and_tiles(n, tile, dtype, monkeypatch):
    """As with more points: several passes of merging, tiles of several blocks, ties that span tiles."""
    x, y, weights = (v.astype(dtype) for v in variables(n))
    y = np.where(np.arange(n) % 5 < 3, y.dtype.type(0.5), y)
    monkeypatch.setattr(cupy_cuda, "WAYS", 3)
    monkeypatch.setattr(cupy_cuda, "_tile", lambda n: tile)
    found = on_gpu_both_ways(monkeypatch, x, y, weights)
    assert_close(found, on_gpu(x, y, weights, backend=numba_cpu), 1e-12 if dtype == "float64" else EPS32)


@pytest.mark.slow
@emulated
@pytest.mark.parametrize("ties", [False, True])
def test_gpu_large(ties):
    """Two passes of merging, and a table of 157 tiles, more than a block has threads."""
    x, y, weights = (v.astype(np.float32) for v in variables(20_000, ties=ties))
    assert_close(on_gpu(x, y, weights), on_gpu(x, y, weights, backend=numba_cpu), EPS32)


@emulated
@pytest.mark.parametrize("ties", [False, True])
def test_gpu_sorts_by_both_variables(ties, monkeypatch):
    """Ranks in the order of (x, y, index), for any number of runs to merge."""
    x, y, _ = variables(3000, ties=ties)
    expected = np.empty(len(x), int)
    expected[np.lexsort((y, x))] = np.arange(len(x))
    seen = []
    launch = _cuda.launch

    def spy(kernel, blocks, threads, *arguments):
        launch(kernel, blocks, threads, *arguments)
        if kernel.key[1] == "distance_merge":
            seen.append(arguments[-1][0, 2].copy())

    monkeypatch.setattr(_cuda, "launch", spy)
    for ways, passes in ((48, 1), (4, 2), (2, 4)):
        monkeypatch.setattr(cupy_cuda, "WAYS", ways)
        seen.clear()
        on_gpu(x, y)
        assert len(seen) == passes and np.array_equal(seen[-1], expected)


@emulated
@every_form
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(
    ("x", "weights", "unbiased"),
    [
        ([], None, False),
        ([], [], False),
        ([3], None, False),
        ([np.nan], [1], False),
        ([np.nan, 4], [1, 0], False),
        ([np.nan, np.inf, 1], [0, 0, 0], False),
        ([0.1] * 300, None, False),
        ([0.1] * 300, None, True),
        ([0.0, -0.0] * 150, None, False),
        ([*[0.1] * 299, 7], [*[0.3] * 299, 0], False),
        ([7, *[0.1] * 299], [*[0] * 299, 5], False),
        ([0.1, 0.2, 0.3], None, True),
    ],
)
def test_gpu_degenerate(form, dtype, x, weights, unbiased):
    """Which points have weight only the device knows."""
    x, y = np.array(x, dtype), np.arange(len(x), dtype=dtype)
    weights = None if weights is None else np.array(weights, dtype)
    for a, b in ((x, y), (y, x)):
        assert not any(part.any() for part in on_gpu(a, b, weights, unbiased, form))


@emulated
@every_form
@pytest.mark.parametrize("bad", [np.nan, -np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", [0, 1, 2])
def test_gpu_what_is_not_finite_gives_nan(form, bad, place):
    """Also where the other variable is constant."""
    if place == 2 and bad == -np.inf:
        bad = np.nan
    for x in (variables(300)[0], np.ones(300)):
        arrays = [x, *variables(300)[1:]]
        arrays[2][[0, 270]] = 1.0
        for at in (0, 270):
            changed = [v.copy() for v in arrays]
            changed[place][at] = bad
            assert all(np.isnan(part).all() for part in on_gpu(*changed, form=form))


@emulated
@pytest.mark.parametrize("bad", [np.nan, -np.nan, np.inf, -np.inf, 1e300])
def test_gpu_weight_zero_is_omission(bad):
    """To rounding, since points that stay in their place move the tiles; and with derivatives of 0."""
    x, y, weights = variables(700)
    weights[[0, 300]] = 0.0
    used = weights > 0
    x[~used] = y[~used] = bad
    value, *derivatives = on_gpu(x, y, weights)
    assert not any(part[~used].any() for part in derivatives)
    found = (value, *(part[used] for part in derivatives))
    assert_close(found, on_gpu(x[used], y[used], weights[used]))


@emulated
def test_gpu_small_variances():
    """One point apart, unbiased; nearly all weight on one value; a far point of no weight; weights of any size."""
    x, y = np.full(300, 0.1), np.linspace(0.0, 1.3, 300) ** 2
    x[1] = 0.7
    assert not any(part.any() for part in on_gpu(x, y, unbiased=True))
    assert on_gpu(x, y, unbiased=True, form="covariance")[0] == pytest.approx(0, abs=1e-14)
    x, y = np.array([0.0, 0, 0, 1, 2, 3]), np.array([0.0, 0, 0, 3, 1, 2])
    for small, value in ((1e-8, 0.8076923), (1e-18, 0.0)):
        found = on_gpu(x, y, np.array([1, 1, 1, small, small, small]))
        assert found[0] == pytest.approx(value, abs=1e-6)
    x, y, weights = variables(600, ties=False)
    for far in (0, 599):
        x[far], weights[far] = 1e16, 1e-30
    assert_close(on_gpu(x, y, weights)[:1], on_gpu(x, y, weights, backend=numba_cpu)[:1], 1e-12)
    x, y, weights = variables(300)
    weights = np.rint(weights * 10)
    for scale in (1e-320, 1e-200, 1e306):
        assert_close(on_gpu(x, y, weights * scale), on_gpu(x, y, weights), 1e-12)


@emulated
def test_gpu_only_what_is_needed():
    """The value and each derivative have the same bits whatever else is asked for."""
    x, y, weights = variables(700)
    whole = on_gpu(x, y, weights)
    for needed in ((False, False), (True, False), (False, True)):
        value, *derivatives = on_gpu(x, y, weights, needed=needed)
        assert value == whole[0]
        for need, part, all_of_it in zip(needed, derivatives, whole[1:]):
            assert np.array_equal(part, all_of_it) if need else part.shape == (0,)
    gradients = [emulation.poisoned(700, np.float64) for _ in range(2)]
    factor = np.array(-2.0)
    cupy_cuda.backward(factor, x, y, weights, False, False, [False, True], np.empty(0), whole[2], *gradients)
    assert np.isnan(gradients[0]).all() and np.array_equal(gradients[1], -2 * whole[2])


@pytest.mark.parametrize(("n", "launches"), [(2, 7), (10_000, 7), (100_000, 8), (10_000_000, 9)])
def test_gpu_launches_are_few_and_memory_is_linear(n, launches, monkeypatch):
    """A launch takes the CPU about as long as the kernel takes the GPU where points are few."""
    launched, taken = [], []

    def empty(shape, dtype):
        taken.append(np.prod(shape) * np.dtype(dtype).itemsize)
        return np.broadcast_to(np.zeros((), dtype), shape)

    monkeypatch.setattr(_cuda, "launch", lambda kernel, *_: launched.append(kernel))
    monkeypatch.setattr(_cuda, "kernel", lambda name, function, **_: function)
    monkeypatch.setattr(_cuda, "empty", empty)
    x = np.broadcast_to(np.float32(0), n)
    monkeypatch.setattr(_cuda, "inputs", lambda *arrays: arrays)
    cupy_cuda.run(x, x, x, False, False, [True, True], np.empty(()), x, x)
    assert len(launched) == launches
    assert sum(taken) < 350 * n + 10_000
