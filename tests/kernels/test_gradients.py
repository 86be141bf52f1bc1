"""Derivatives, and torch's own checks of the registered operations."""

from __future__ import annotations

import shutil
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch._subclasses import FakeTensorMode
from torch.autograd import forward_ad
from torch.fx.experimental.proxy_tensor import make_fx

import cases
import fasttag
from cases import CASES, OPS
from fasttag_kernels import TABLE, _dispatch, _torch
from fasttag_kernels.distance_correlation import distance_correlation, distance_covariance
from fasttag_kernels.edge_conv import edge_conv
from fasttag_kernels.kinematics import kinematics, reference
from fasttag_kernels.knn import knn
from fasttag_kernels.linear import linear
from fasttag_kernels.linear import reference as linear_reference
from fasttag_kernels.pad import pad
from fasttag_kernels.pair_bias import pair_bias
from fasttag_kernels.pair_grid import pair_grid
from fasttag_kernels.pairwise_features import FEATURES, pairwise_features
from fasttag_kernels.pairwise_features import reference as pairwise_reference
from fasttag_kernels.particle_attention import particle_attention
from fasttag_kernels.particle_encoder import particle_encoder
from fasttag_kernels.particlenet_encoder import pack, particlenet_encoder
from fasttag_kernels.pixelate import pixelate
from fasttag_kernels.residual import reference as residual_reference
from fasttag_kernels.residual import residual
from fasttag_kernels.segment import REDUCTIONS, segment
from fasttag_kernels.segment_softmax import reference as softmax_reference
from fasttag_kernels.segment_softmax import segment_softmax
from fasttag_kernels.standardize import standardize
from tolerances import EPS32, EPS64

OFFSETS = torch.tensor([1, 3, 3, 7])
every_dtype = pytest.mark.parametrize("dtype", ["float32", "float64"])


def massive(n=9, dtype=torch.float64):
    """Particles with E well above |p|."""
    p3 = torch.from_numpy(np.random.default_rng(5).normal(size=(3, n)))
    return torch.cat([p3, (p3**2).sum(0, keepdim=True).sqrt() + 2]).to(dtype).requires_grad_()


def rows(n=9, dtype=torch.float64):
    return torch.from_numpy(np.random.default_rng(6).normal(size=(n, 3))).to(dtype).requires_grad_()


def leaf(tensor):
    return tensor.detach().clone().requires_grad_()


def test_gradcheck_kinematics():
    assert torch.autograd.gradcheck(lambda p4: tuple(kinematics(p4)), massive())
    assert torch.autograd.gradcheck(
        lambda flat: tuple(kinematics(flat.T)), massive().detach().T.clone().requires_grad_()
    )


@pytest.mark.parametrize("reduce", REDUCTIONS)
def test_gradcheck_segment(reduce):
    assert torch.autograd.gradcheck(lambda values: segment(values, OFFSETS, reduce=reduce), rows())
    assert torch.autograd.gradcheck(lambda values: segment(values[:, 0], OFFSETS, reduce=reduce), rows())


@pytest.mark.parametrize("m2", ["stable", "reference"])
@pytest.mark.parametrize("triangle", ["full", "lower"])
def test_gradcheck_pairwise_features(triangle, m2):
    """All but ln_m2 of a constituent with itself, whose derivative is 0 by definition."""
    counts = OFFSETS.diff()
    i, j = torch.cat([torch.cartesian_prod(torch.arange(n), torch.arange(n)) for n in counts]).T
    different = (i != j)[(i >= j) | (triangle == "full")]

    def run(p4):
        found = pairwise_features(p4, OFFSETS, features=FEATURES, triangle=triangle, m2=m2)
        return found[FEATURES.index("ln_m2"), different], *(x for x, f in zip(found, FEATURES) if f != "ln_m2")

    assert torch.autograd.gradcheck(run, massive())
    assert torch.autograd.gradcheck(lambda flat: run(flat.T), massive().detach().T.clone().requires_grad_())
    found = pairwise_features(p4 := massive(), OFFSETS, features=("ln_m2",), triangle=triangle, m2=m2)
    assert not torch.autograd.grad(found[0, ~different].sum(), p4)[0].any()


@pytest.mark.parametrize("statistics", ["running", "batch"])
@pytest.mark.parametrize("options", [{}, {"last_activation": True, "ordered": True}, {"remove_self_pair": True}])
def test_gradcheck_pair_bias(statistics, options):
    """In weights; in p4 without pairs i = j, whose ln_m2 has the derivative 0 by definition."""
    weights, running = network()

    def run(p4, *weights):
        found = pair_bias(p4, OFFSETS, list(weights), running, statistics=statistics, **options)
        return found if statistics == "running" else found[0]

    without_self = "remove_self_pair" in options
    assert torch.autograd.gradcheck(run, (massive().requires_grad_(without_self), *weights))


def gradient_of_reference(gradient, p4, offsets, triangle):
    """Jet by jet; `gradient` (F, M) of all FEATURES."""
    out, start = np.zeros(p4.shape), 0
    for a, b in pairwise(offsets):
        i, j = np.tril_indices(b - a) if triangle == "lower" else np.indices((b - a, b - a)).reshape(2, -1)
        blocks = np.zeros((len(FEATURES), b - a, b - a))
        blocks[:, i, j] = gradient[:, start : start + i.size]
        start += i.size
        out[:, a:b] = pairwise_reference.jet_gradient(dict(zip(FEATURES, blocks)), p4[:, a:b])
    return out


@every_dtype
@pytest.mark.parametrize("triangle", ["full", "lower"])
@pytest.mark.parametrize("case", ["massive", "duplicates", "zero pt", "offsets above zero"])
def test_pairwise_gradient_is_the_reference(case, triangle, dtype, monkeypatch):
    poison = lambda shape, dtype: np.full(shape, np.nan, dtype)
    p4, offsets = CASES[case]()
    p4 = torch.from_numpy(p4.astype(dtype)).requires_grad_()
    found = pairwise_features(p4, torch.from_numpy(offsets), features=FEATURES, triangle=triangle)
    gradient = torch.from_numpy(np.random.default_rng(7).normal(size=found.shape).astype(dtype))
    monkeypatch.setattr(_torch, "_memory", poison)
    found = torch.autograd.grad(found, p4, gradient)[0].numpy()
    expected = gradient_of_reference(gradient.double().numpy(), p4.detach().numpy(), offsets, triangle)
    # 1 / m^2 and 1 / Delta^2 of close pairs see E^2 / m^2 eps, here up to 1e7; the pt of float32 is rounded once
    scale = np.abs(expected).max() * (1e7 * EPS64 + (EPS32 if dtype == "float32" else 0))
    assert found.dtype == dtype and (np.abs(found - expected) <= scale).all()
    assert not found[:, : offsets[0]].any() and not found[:, offsets[-1] :].any()


def test_pairwise_gradient_of_a_jet_that_is_not_finite():
    p4 = massive().detach()
    p4[2, 5] = torch.inf
    features = pairwise_features(p4.requires_grad_(), OFFSETS)
    (found,) = torch.autograd.grad(features[:, :4].sum(), p4)
    assert found[:, 3:7].isnan().all() and found[:, 1:3].isfinite().all() and not found[:, [0, 7, 8]].any()


MASSLESS, SPACELIKE, ALONG_BEAM = slice(0, 3), slice(3, 6), slice(6, 10)


def edge_particles():
    """Massless without any rounding, spacelike, along the beam or at rest, and without pz."""
    massless = [3, 4, 0, 5], [1, -2, 2, 3], [3, 4, -12, 13]
    spacelike = [3, 4, 0, 4.5], [1, -2, 2, 2.75], [3, 4, -12, 12.5]
    along_beam = [0, 0, 0, 5], [0, 0, -3, 3], [0, 0, 3, 7], [0, 0, 0, 0]
    return np.array([*massless, *spacelike, *along_beam, [3, 4, 0, 7]], float).T


@every_dtype
@pytest.mark.parametrize("p4", [edge_particles(), CASES["massive"]()[0]], ids=["edges", "massive"])
def test_kinematics_gradient_is_the_reference(dtype, p4):
    p4 = torch.from_numpy(p4.astype(dtype)).requires_grad_()
    gradient = torch.from_numpy(np.random.default_rng(7).normal(size=(5, p4.shape[1])).astype(dtype))
    found = torch.autograd.grad(torch.stack(kinematics(p4)), p4, gradient)[0].numpy()
    expected = reference.kinematics_backward(gradient.numpy(), p4.detach().numpy())
    # 4 ulp of the largest derivative; m^2 in it loses E^2 / m^2; float32 rounds once more, at the end
    energy, m2 = p4.detach().double().numpy()[3], kinematics(p4.detach().double()).mass.numpy() ** 2
    scale = np.abs(expected).max(axis=0) * np.divide(energy**2, m2, out=np.ones_like(m2), where=m2 > 0)
    rounding = 0.5 * EPS32 * np.abs(expected) if dtype == "float32" else 0
    assert found.dtype == dtype and (np.abs(found - expected) <= 4 * EPS64 * scale + rounding).all()


def test_kinematics_gradient_by_hand():
    """0 at pt = 0 and, for the mass, where m^2 is clamped."""
    p4 = torch.from_numpy(edge_particles()).requires_grad_()
    every = torch.autograd.grad(sum(x.sum() for x in kinematics(p4)), p4)[0]
    assert every[:, ALONG_BEAM].abs().max() == 0 and every[:2, :6].abs().min() > 0
    of_mass = torch.autograd.grad(kinematics(p4).mass.sum(), p4)[0]
    assert of_mass[:, MASSLESS].abs().max() == of_mass[:, SPACELIKE].abs().max() == 0
    assert of_mass[:, -1].tolist() == pytest.approx([-3 / 24**0.5, -4 / 24**0.5, 0, 7 / 24**0.5])


def test_rapidity_of_massless_particles_follows_eta():
    """Rounding decides on which side of m^2 = 0 each falls; along the mass shell both sides have one derivative."""
    rng = np.random.default_rng(9)
    pt, eta, phi = (torch.tensor(x).requires_grad_() for x in (rng.exponential(9, 200), *rng.normal(size=(2, 200))))
    p4 = torch.stack([pt * phi.cos(), pt * phi.sin(), pt * eta.sinh(), pt * eta.cosh()])
    clamped = (kinematics(p4).mass == 0).sum()
    assert 20 < clamped < 180
    found = torch.autograd.grad(kinematics(p4).rapidity.sum(), (pt, eta, phi))
    for gradient, expected in zip(found, (0.0, 1.0, 0.0)):
        torch.testing.assert_close(gradient, torch.full_like(gradient, expected), rtol=0, atol=1e-12)


@every_dtype
@pytest.mark.parametrize("reduce", REDUCTIONS)
def test_segment_gradient(dtype, reduce, monkeypatch):
    """What each row gets of its jet's gradient; rows outside of all jets get zero, whatever was in memory."""
    poison = lambda shape, dtype: np.full(shape, np.nan, dtype)
    monkeypatch.setattr(_torch, "_memory", poison)
    values = torch.tensor([9.0, 1, 1, 5, 3, 7, 7, 9, 9], dtype=getattr(torch, dtype))
    values = torch.stack([values, -values, values], 1).requires_grad_()
    gradient = torch.arange(9, dtype=values.dtype).reshape(3, 3) + 1
    found = torch.autograd.grad(segment(values, OFFSETS, reduce=reduce, threads=2), values, gradient)[0]
    rising = [0, 1, 0, 0, 0, 1, 0, 0, 0]  # of ties the first, not half to each
    shares = {
        "sum": [[0, 1, 1, 1, 1, 1, 1, 0, 0]] * 3,
        "mean": [[0, 1 / 2, 1 / 2, 1 / 4, 1 / 4, 1 / 4, 1 / 4, 0, 0]] * 3,
        "max": [rising, [0, 1, 0, 0, 1, 0, 0, 0, 0], rising],
    }
    assert torch.equal(found, gradient[[0, 0, 0, 2, 2, 2, 2, 2, 2]] * torch.tensor(shares[reduce]).to(found).T)


def test_gradcheck_segment_softmax():
    assert torch.autograd.gradcheck(lambda values: segment_softmax(values, OFFSETS), rows())
    assert torch.autograd.gradcheck(lambda values: segment_softmax(values[:, 0], OFFSETS), rows())


@every_dtype
@pytest.mark.parametrize("case", ["mixed", "empty jets", "offsets above zero", "longer than any block"])
def test_segment_softmax_gradient_is_the_reference(case, dtype, monkeypatch):
    poison = lambda shape, dtype: np.full(shape, np.nan, dtype)
    monkeypatch.setattr(_torch, "_memory", poison)
    values, offsets = cases.arguments_of("segment_softmax", case, dtype)
    values[offsets[0] : offsets[0] + 2, 0] = -np.inf
    gradient = np.random.default_rng(7).normal(size=values.shape).astype(dtype)
    tensor = torch.from_numpy(values.copy()).requires_grad_()
    found = [
        torch.autograd.grad(
            segment_softmax(tensor, torch.from_numpy(offsets), threads=threads), tensor, torch.from_numpy(gradient)
        )[0].numpy()
        for threads in (1, 3)
    ]
    expected = softmax_reference.backward(gradient, values, offsets)
    # the softmax is good to 10 ulp of itself and of the mean gradient, which is below 5; float32 rounds twice more
    p = softmax_reference.segment_softmax(values, offsets)
    bound = 60 * (EPS32 if dtype == "float32" else 100 * EPS64) * p
    assert found[0].dtype == dtype and (np.abs(found[0] - expected) <= bound).all()
    assert np.array_equal(*found)


@pytest.mark.parametrize(("norm", "options"), cases.LINEAR)
def test_gradcheck_linear(norm, options):
    x, weight, bias = rows(9), rows(4), torch.tensor([0.3, -0.2, 0.1, 0.4]).double()
    arguments = [leaf(tensor) for tensor in (x, weight, bias, *(rows(2) if norm else ()))]
    run = lambda x, weight, bias, *norm: linear(x, weight, bias, norm=norm or None, **options, eps=1e-3)
    assert torch.autograd.gradcheck(run, arguments)
    strided = x.detach().mT.contiguous().mT.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: run(x, *(tensor.detach() for tensor in arguments[1:])), strided)


@pytest.mark.parametrize(("norm", "scaled", "options"), cases.RESIDUAL)
def test_gradcheck_residual(norm, scaled, options):
    x, branch, gamma, beta, scale = (rows(i) for i in (9, 9, 1, 1, 1))
    arguments = [leaf(tensor) for tensor in (x, branch.flip(0), gamma[0], 1 - beta[0], scale[0] + 0.5)]

    def run(x, branch, gamma, beta, scale):
        given = {"norm": (gamma, beta) if norm else None, "scale": scale if scaled else None}
        return residual(x, branch, **given, **options, eps=1e-3) + 0 * (gamma + beta + scale)

    assert torch.autograd.gradcheck(run, arguments)


@pytest.mark.parametrize("op", [op for op, row in TABLE.items() if "saved" in row])
def test_gradients_that_are_not_needed_take_no_memory(op, monkeypatch):
    made = []
    monkeypatch.setattr(_torch, "_memory", lambda shape, dtype: made.append(shape) or np.empty(shape, dtype))
    for which in range(2):
        arguments = [
            [y.detach() for y in x] if isinstance(x, list) and torch.is_tensor(x[0]) else x
            for x in (y.detach() if torch.is_tensor(y) else y for y in arguments_of(op)[0])
        ]
        arguments[-1] = [which == i for i in range(2)]
        result, *saved = getattr(torch.ops.fasttag, op)(*arguments, None, 1)
        made.clear()
        getattr(torch.ops.fasttag, f"{op}_backward")(torch.ones_like(result), *arguments, *saved, None, 1)
        given = [arguments[list(TABLE[op]["arguments"]).index(name)] for name in TABLE[op]["gradients"]]
        for i, x in enumerate(given):
            for one in x if isinstance(x, list) else [x]:
                assert made.pop(0) == (tuple(one.shape) if i == which else (0,))


@every_dtype
@pytest.mark.parametrize(("norm", "options"), cases.LINEAR)
@pytest.mark.parametrize(("n", "columns", "width"), [(0, 5, 3), (1, 1, 1), (17, 37, 40), (1100, 64, 33)])
def test_linear_gradient_is_the_reference(n, columns, width, norm, options, dtype, monkeypatch):
    """The same bits for any number of threads: gradients of weights are summed block by block."""
    poison = lambda shape, dtype: np.full(shape, np.nan, dtype)
    monkeypatch.setattr(_torch, "_memory", poison)
    rng = np.random.default_rng(7)
    shapes = (n, columns), (width, columns), (width,), *[(columns,)] * (2 * norm)
    x, weight, _, *affine = arrays = [(2 * rng.normal(size=shape)).astype(dtype) for shape in shapes]
    gradient = rng.normal(size=(n, width)).astype(dtype)
    tensors = [torch.from_numpy(array).requires_grad_() for array in arrays]
    found = []
    for threads in (1, 3):
        out = linear(*tensors[:3], norm=tensors[3:] or None, **options, threads=threads)
        found.append(torch.autograd.grad(out, tensors, torch.from_numpy(gradient)))
    assert all(torch.equal(a, b) for a, b in zip(*found))
    expected = linear_reference.backward(gradient, x, weight, affine or None, **options)
    # 4 ulp of the terms and, of those of a product, an ulp of the root of their number; the slope of GELU is 1 at least
    normal, per_sd, _, slope = linear_reference.before(x, affine or None, **options)
    g, normal, gamma, beta = np.abs(gradient), np.abs(normal), *np.abs(affine or (np.ones(columns), np.zeros(columns)))
    h = g @ np.abs(weight)
    across = gamma * h
    if norm:
        across = across + across.mean(1, keepdims=True) + normal * (across * normal).mean(1, keepdims=True)
    sizes = (np.abs(slope) + (slope != 0)) * per_sd * across, g.T @ (normal * gamma + beta), g.sum(0)
    sizes = *sizes, (h * (normal + 1)).sum(0), h.sum(0)
    lengths = width, n, 0, n + width, n + width
    for a, b, size, length in zip(found[0], expected, sizes, lengths):
        a, bound = a.numpy(), (4 + length**0.5) * (EPS32 if dtype == "float32" else EPS64)
        assert a.dtype == dtype and a.shape == b.shape and (np.abs(a - b) <= bound * size).all()


@every_dtype
@pytest.mark.parametrize(("norm", "scaled", "options"), cases.RESIDUAL)
@pytest.mark.parametrize(("n", "columns"), [(0, 5), (1, 1), (17, 37), (1100, 64)])
def test_residual_gradient_is_the_reference(n, columns, norm, scaled, options, dtype, monkeypatch):
    """The same bits for any number of threads: gradients of weights are summed block by block."""
    poison = lambda shape, dtype: np.full(shape, np.nan, dtype)
    monkeypatch.setattr(_torch, "_memory", poison)
    rng = np.random.default_rng(7)
    shapes = (n, columns), (n, columns), *[(columns,)] * 3
    arrays = [(2 * rng.normal(size=shape)).astype(dtype) for shape in shapes]
    gradient = rng.normal(size=(n, columns)).astype(dtype)
    tensors = [torch.from_numpy(array).requires_grad_() for array in arrays]
    given = {"norm": tensors[2:4] if norm else None, "scale": tensors[4] if scaled else None}
    asked = [*tensors[:2], *(tensors[2:4] if norm else ()), *(tensors[4:] if scaled else ())]
    found = []
    for threads in (1, 3):
        out = residual(*tensors[:2], **given, **options, threads=threads)
        found.append(torch.autograd.grad(out, asked, torch.from_numpy(gradient)))
    assert all(torch.equal(a, b) for a, b in zip(*found))
    x, branch, gamma, beta, scale = arrays
    affine, scale = (gamma, beta) if norm else None, scale if scaled else 1.0
    expected = residual_reference.backward(gradient, x, branch, affine, scale, **options)
    expected = [*expected[:2], *(expected[2:4] if norm else ()), *(expected[4:] if scaled else ())]
    # 4 ulp of the terms
    normal, per_sd, *_ = linear_reference.before(branch, affine)
    g, normal = np.abs(gradient) / 0.7, np.abs(normal)  # what dropout keeps is larger
    across = g * np.abs(gamma) + 0 * normal if norm else g
    if norm:
        across = (across + across.mean(1, keepdims=True) + normal * (across * normal).mean(1, keepdims=True)) * per_sd
    sizes = [g * np.abs(scale), across]
    sizes += [(g * (normal + 1)).sum(0), g.sum(0)] if norm else []
    sizes += [(g * np.abs(x)).sum(0)] if scaled else []
    bound = 4 * (EPS32 if dtype == "float32" else EPS64)
    for a, b, size in zip(found[0], expected, sizes, strict=True):
        a = a.numpy()
        assert a.dtype == dtype and a.shape == b.shape and (np.abs(a - b) <= bound * size).all()


def seven(p4):
    """Rows of pair_grid, (1, 7, 1, N)."""
    p4 = p4.detach()
    pt, rapidity, _, phi, _ = kinematics(p4)
    return torch.cat([p4, torch.stack([pt, rapidity, phi])])[None, :, None]


def network():
    """weights, which require grad, and running of pair_bias, with 3 heads."""
    weights, running = cases.pair_network((5, 3))
    return [torch.from_numpy(w).requires_grad_() for w in weights], [torch.from_numpy(r) for r in running]


def attended(p4):
    """Queries, keys and values (9, 3, 2, 2) of particles (4, 9)."""
    return torch.stack([p4, p4.flip(0), p4 * p4], 1).permute(2, 1, 0).reshape(9, 3, 2, 2)


def pairs(number):
    return torch.from_numpy(np.random.default_rng(11).normal(size=(2, number)))


EDGE_WEIGHTS = [torch.from_numpy(a) for a in cases.edge_conv_weights(3, (4, 5))]


def edge_arguments(x, weights=EDGE_WEIGHTS[:9]):
    """The arguments of edge_conv for three columns."""
    return x, knn(x.detach(), 2, offsets=OFFSETS), OFFSETS, weights, EDGE_WEIGHTS[9:]


NETWORK_WEIGHTS = torch.from_numpy(pack(*cases.particlenet_lists(3, cases.PARTICLENET["convs"])))
ENCODER_WEIGHTS = torch.from_numpy(cases.encoder_weights(3, cases.ENCODER))


def on_points(x):
    """Features, points and offsets."""
    return x, x.detach()[:, 1:], OFFSETS


def arguments_of(op):
    """Arguments of torch.ops.fasttag.<op> without `offsets_host` and `threads`."""
    p4 = massive()
    pt, _, eta, phi, _ = (x.detach() for x in kinematics(p4))
    kind = (torch.arange(9) % 5).to(torch.int8)
    settings = [5, 0.8, "centroid", True, True, True, True]
    weights = [weight.clone().requires_grad_() for weight in EDGE_WEIGHTS[:9]]
    return {
        "kinematics": [(p4,), (massive(0),)],
        "segment": [(rows(), OFFSETS, "max"), (rows(0), torch.zeros(1, dtype=torch.int64), "mean")],
        "pad": [(p4.detach(), OFFSETS, 5, False), (p4.detach(), OFFSETS, 2, True)],
        "pixelate": [
            (pt, eta, phi, OFFSETS, None, *settings, ["pt"], "float64"),
            (pt, eta, phi, OFFSETS, kind, *settings, ["pt_track", "n_muon"], "float32"),
        ],
        "knn": [(rows().detach(), 2, OFFSETS, 1), (rows().detach(), 2, None, None)],
        "distance_correlation": [
            (*(row.clone().requires_grad_() for row in rows().detach().T[:2]), None, True, False, [True, True]),
            (pt, eta.clone().requires_grad_(), phi.abs(), False, True, [False, True]),
        ],
        "pairwise_features": [
            (p4, OFFSETS, 20, list(FEATURES), "full", "stable"),
            (p4, OFFSETS, 13, ["ln_m2", "ln_kt"], "lower", "reference"),
        ],
        "pair_bias": [
            (p4, OFFSETS, 20, *network(), "batch", True, True, False, "reference", [True, True]),
            (p4, OFFSETS, 20, *network(), "running", False, False, True, "stable", [True, True]),
        ],
        "pair_grid": [(seven(p4), seven(p4), 5, 1e-8), (seven(p4).mT, seven(p4), 1, 1e-8)],
        "standardize": [
            (p4.detach(), OFFSETS, None, None, None, None, None, 5, False),
            (p4.detach(), OFFSETS, *torch.ones(5, 4, dtype=p4.dtype), 5, True),
        ],
        "segment_softmax": [(rows(), OFFSETS), (rows(0), torch.zeros(1, dtype=torch.int64))],
        "linear": [
            (rows(), rows(3), *map(leaf, rows(3)), "gelu", 1e-5, 0.1, 1 << 40, 3),
            (rows(0), rows(4), leaf(rows(4)[:, 0]), None, None, "none", 1e-5, 0.0, 0, 0),
        ],
        "residual": [
            (rows(), leaf(rows().flip(0)), *map(leaf, rows(2)), None, 1e-5, 0.1, 1 << 40, 3),
            (rows(0), rows(0), None, None, leaf(rows(1)[0]), 1e-5, 0.0, 0, 0),
        ],
        "particle_attention": [
            (attended(p4).detach().requires_grad_(), OFFSETS, pairs(20).requires_grad_(), 0.2, 5, 1, [True, True]),
            (attended(p4).detach().requires_grad_(), OFFSETS, None, 0.0, 0, 0, [True, False]),
        ],
        "edge_conv": [
            (*edge_arguments(rows(), weights), "batch", 6, "real", [True, True]),
            (*edge_arguments(rows().detach(), weights), "running", 0, "ghost", [False, True]),
        ],
        "particle_encoder": [
            (p4.detach().T[:, :3], OFFSETS, pairs(20), ENCODER_WEIGHTS, [16, 8], 2, 2, 2),
            (p4.detach().T[:, :3], OFFSETS, pairs(20), ENCODER_WEIGHTS, [16, 8], 2, 3, 1),
        ],
        "particlenet_encoder": [
            (*on_points(rows().detach()), NETWORK_WEIGHTS, [4, 2, 6, 7, 3, 3, 9, 8, 7], missing, reduce)
            for missing, reduce in (("real", "mean"), ("ghost", "sum"))
        ],
    }[op]


@pytest.mark.parametrize(("op", "which"), [(op, which) for op in TABLE for which in (0, 1)])
def test_opcheck(op, which):
    torch.library.opcheck(getattr(torch.ops.fasttag, op), (*arguments_of(op)[which], None, 2))


@pytest.mark.parametrize("op", [op for op, row in TABLE.items() if row["gradients"]])
def test_opcheck_backward(op):
    detached = lambda x: x.detach() if isinstance(x, torch.Tensor) else x
    arguments = [[detached(y) for y in x] if isinstance(x, list) else detached(x) for x in arguments_of(op)[0]]
    found = getattr(torch.ops.fasttag, op)(*arguments, None, 1)
    result, *saved = found if "saved" in TABLE[op] else (found,)
    gradient = torch.ones_like(result)
    torch.library.opcheck(getattr(torch.ops.fasttag, f"{op}_backward"), (gradient, *arguments, *saved, None, 2))


NOT_DIFFERENTIABLE = {
    "pad": ("values", lambda x: pad(x.T, OFFSETS, 5)),
    "pixelate": ("eta", lambda x: pixelate(x[:, 0].detach(), x[:, 1], x[:, 2].detach(), OFFSETS)),
    "knn": ("x", lambda x: knn(x, 2, offsets=OFFSETS)),
    "pair_grid": ("first", lambda x: pair_grid(x[:7, :, None, None].transpose(0, 1), seven(massive()))),
    "standardize": ("values", lambda x: standardize(x.T, OFFSETS, 5)),
    "particle_encoder": ("x", lambda x: particle_encoder(x, OFFSETS, pairs(20), ENCODER_WEIGHTS, **cases.ENCODER)),
    "particlenet_encoder": ("x", lambda x: particlenet_encoder(*on_points(x), NETWORK_WEIGHTS, **cases.PARTICLENET)),
}


def test_every_op_has_a_gradient_or_refuses_one():
    assert set(NOT_DIFFERENTIABLE) == {op for op, row in TABLE.items() if not row["gradients"]}


@pytest.mark.parametrize("op", NOT_DIFFERENTIABLE)
def test_no_gradient_raises_by_name(op):
    name, run = NOT_DIFFERENTIABLE[op]
    with pytest.raises(RuntimeError, match=f"^{op}: {name} must not require grad, it is differentiable in none of its"):
        run(rows())
    for block in (torch.no_grad(), torch.inference_mode()):
        with block:
            run(rows())
    run(rows().detach())


WEIGHTS = rows(2).detach()
NETWORK = network()

DIFFERENTIABLE = {
    "kinematics": (massive, lambda p4: kinematics(p4).mass),
    "segment": (rows, lambda values: segment(values, OFFSETS)),
    "distance_correlation": (rows, lambda values: distance_correlation(values[:, 0], values[:, 1])),
    "pairwise_features": (massive, lambda p4: pairwise_features(p4, OFFSETS, features=("dot",))),
    "segment_softmax": (rows, lambda values: segment_softmax(values, OFFSETS)),
    "linear": (rows, lambda values: linear(values, WEIGHTS, WEIGHTS[:, 0], norm=WEIGHTS.unbind())),
    "residual": (rows, lambda values: residual(values, values.flip(0), norm=WEIGHTS.unbind())),
    "pair_bias": (massive, lambda p4: pair_bias(p4, OFFSETS, [w.detach() for w in NETWORK[0]], NETWORK[1])),
    "particle_attention": (massive, lambda p4: particle_attention(attended(p4), OFFSETS, bias=pairs(20))),
    "edge_conv": (rows, lambda x: edge_conv(*edge_arguments(x))),
}


def test_every_differentiable_op_is_here():
    assert set(DIFFERENTIABLE) == {op for op, row in TABLE.items() if row["gradients"]}


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")  # of torch itself
@pytest.mark.parametrize("op", DIFFERENTIABLE)
def test_higher_derivatives_raise_by_name(op):
    make, run = DIFFERENTIABLE[op]
    values = make()
    (first,) = torch.autograd.grad((run(values) ** 2).sum(), values, create_graph=True)
    with pytest.raises(NotImplementedError, match=f"^{op}: there is no second derivative; detach the gradient"):
        first.sum().backward()
    with forward_ad.dual_level(), pytest.raises(NotImplementedError, match=f"^{op}: .* there is no forward mode"):
        run(forward_ad.make_dual(values.detach(), torch.ones_like(values)))
    with pytest.raises(NotImplementedError, match=f"^{op}: .* there is no forward mode"):
        torch.func.jvp(run, (values.detach(),), (torch.ones_like(values),))


@pytest.mark.parametrize("op", [op for op, row in TABLE.items() if "saved" in row])
def test_recorded_without_gradients(op):
    """As by torch.export under no_grad: what the gradient needs was not saved."""
    arguments = arguments_of(op)[0]
    arguments = [*arguments[:-1], [False] * len(arguments[-1])]
    found = getattr(torch.ops.fasttag, op)(*arguments, None, 1)[0]
    wanted = [x for given in arguments for x in (given if isinstance(given, list) else [given])]
    wanted = [x for x in wanted if isinstance(x, torch.Tensor) and x.requires_grad]
    for x in wanted:
        with pytest.raises(RuntimeError, match=f"^{op}: recorded without gradients; export or call it with"):
            torch.autograd.grad(found.sum(), x, retain_graph=True)


@pytest.mark.parametrize("op", DIFFERENTIABLE)
def test_without_gradients(op):
    make, run = DIFFERENTIABLE[op]
    with torch.no_grad():
        assert not run(make()).requires_grad
    assert not run(make().detach()).requires_grad
    assert run(make()).requires_grad


def tagger(p4, weights):
    """What an energy flow network does: features, per-particle map, sum over jets."""
    k = kinematics(p4)
    return segment(torch.relu(torch.stack([k.pt, k.rapidity, k.phi], 1) @ weights), OFFSETS).sum(1)


JETS = fasttag.Jets(massive().detach(), OFFSETS)  # made outside: checking offsets looks at values

COMPILED = {
    "kinematics": lambda p4, weights: tuple(kinematics(p4)),
    "segment": lambda p4, weights: (
        segment(p4.T, OFFSETS),
        segment(p4[0], OFFSETS, reduce="mean"),
        segment(p4.T, OFFSETS, reduce="max"),
    ),
    "pad": lambda p4, weights: pad(p4.detach(), OFFSETS, 5),
    "pixelate": lambda p4, weights: (pixelate(*p4.detach()[:3], OFFSETS, npix=5),),
    "knn": lambda p4, weights: (knn(p4.detach().T, 3, offsets=OFFSETS, periodic=1), knn(p4.detach().T, 3)),
    "distance_correlation": lambda p4, weights: (
        distance_correlation(p4[0], p4[1], weights=p4.detach()[3]),
        distance_covariance(p4[0].detach(), p4[2], unbiased=True),
    ),
    "pairwise_features": lambda p4, weights: (
        pairwise_features(p4, OFFSETS),
        pairwise_features(p4, OFFSETS, features=("psi_dot",), triangle="lower", pairs=13),
        fasttag.pairwise_features(JETS, m2="reference"),
    ),
    "pair_bias": lambda p4, weights: (
        pair_bias(p4, OFFSETS, *NETWORK, pairs=20),
        pair_bias(p4, OFFSETS, *NETWORK, statistics="batch", remove_self_pair=True)[0],
    ),
    "pair_grid": lambda p4, weights: (pair_grid(seven(p4).mT, seven(p4)),),
    "standardize": lambda p4, weights: (standardize(p4.detach(), OFFSETS, 5, scale=p4.detach()[:, 0]),),
    "segment_softmax": lambda p4, weights: (segment_softmax(p4.T, OFFSETS)[:, 0], segment_softmax(p4[0], OFFSETS)),
    "linear": lambda p4, weights: (
        linear(p4, p4[:2], p4[:2, 0]),
        linear(p4, p4[:2], p4[:2, 0], norm=(p4[0], p4[1]), activation="gelu", dropout=0.5, seed=9, layer=1),
    ),
    "residual": lambda p4, weights: (
        residual(p4, p4.flip(0)),
        residual(p4, p4.flip(0), norm=(p4[0], p4[1]), scale=p4[2], dropout=0.5, seed=9, layer=1),
    ),
    "particle_attention": lambda p4, weights: (
        particle_attention(attended(p4), OFFSETS, bias=p4[:2, :4].repeat(1, 5), dropout=0.2, seed=3, layer=1),
        particle_attention(attended(p4), OFFSETS),
    ),
    "edge_conv": lambda p4, weights: edge_conv(*edge_arguments(p4.T[:, :3]), statistics="batch"),
    "particle_encoder": lambda p4, weights: (
        particle_encoder(
            p4.detach().T[:, :3], OFFSETS, p4.detach()[:2, :4].repeat(1, 5), ENCODER_WEIGHTS, **cases.ENCODER
        ),
    ),
    "particlenet_encoder": lambda p4, weights: (
        particlenet_encoder(*on_points(p4.detach().T[:, :3]), NETWORK_WEIGHTS, **cases.PARTICLENET),
    ),
    "tagger": lambda p4, weights: (tagger(p4, weights),),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", COMPILED)
def test_compiles_whole(name):
    """torch.compile(fullgraph=True), with the compiler's tracing but none of its kernels: the same bits."""
    p4, weights = massive(), torch.from_numpy(np.random.default_rng(8).normal(size=(3, 8))).requires_grad_()
    compiled = torch.compile(COMPILED[name], fullgraph=True, backend="aot_eager")
    found, expected = compiled(p4, weights), COMPILED[name](p4, weights)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    if expected[0].requires_grad:
        gradients = [torch.autograd.grad(sum(x.sum() for x in out), p4)[0] for out in (found, expected)]
        assert torch.equal(*gradients)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch's default compiler needs g++")
@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")  # of torch itself
def test_default_compiler_agrees():
    p4, weights = massive(), torch.from_numpy(np.random.default_rng(8).normal(size=(3, 8))).requires_grad_()
    found, expected = (f(p4, weights) for f in (torch.compile(tagger, fullgraph=True), tagger))
    torch.testing.assert_close(found, expected, rtol=1e-13, atol=1e-13)
    for a, b in zip(*(torch.autograd.grad(x.sum(), [p4, weights]) for x in (found, expected))):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_dispatcher_is_left_out_only_where_it_has_nothing_to_do():
    x, found = torch.ones(3, dtype=torch.float64), []

    def look(x, *more):
        found.append(_torch._seen([x, *more]) is not None)
        return x

    look(x)
    look(x, [x, x], "sum", None, 1.0)
    weight = torch.nn.Parameter(x)
    for off in (torch.no_grad, torch.inference_mode):
        with off():
            look(weight, torch.ones(3))
            assert not _torch._seen([x, [weight]])[1]
    assert all(found) and len(found) == 4 and _torch._seen([x, [x, weight]])[1]
    found.clear()

    class Kind(torch.Tensor):
        pass

    for other in (x.as_subclass(Kind), torch.eye(3).to_sparse(), x.to("meta"), x._neg_view()):
        look(other)
        look(x, [other])
    torch.vmap(look)(torch.ones(3, 2))
    torch.func.functionalize(look)(x)
    with forward_ad.dual_level():
        look(x)
    make_fx(look)(x)
    for mode in (FakeTensorMode(allow_non_fake_inputs=True), torch.device("cpu")):
        with mode:
            look(x)
    assert not any(found) and len(found) == 14


@pytest.mark.parametrize("op", [op for op, row in TABLE.items() if "numba" in row["backends"]])
def test_the_same_bits_past_the_dispatcher(op, monkeypatch):
    arguments = [torch.from_numpy(a) for a in cases.arguments_of(op, "mixed", "float32")]
    straight = OPS[op].run(*arguments)
    monkeypatch.setattr(_torch, "_seen", lambda arguments: None)
    assert cases.same_bits(straight, OPS[op].run(*arguments))


@pytest.mark.parametrize("op", DIFFERENTIABLE)
def test_the_same_gradients_past_the_dispatcher(op, monkeypatch):
    make, run = DIFFERENTIABLE[op]
    found = []
    for straight in (True, False):
        x = make()
        out = run(x)
        nodes = [out.grad_fn]
        for node in nodes:
            nodes += [after for after, _ in node.next_functions if after is not None]
        assert any(node.name() == "_RecordedBackward" for node in nodes) == straight
        found.append(torch.autograd.grad(out, x, torch.ones_like(out))[0])
        monkeypatch.setattr(_torch, "_seen", lambda arguments: None)
    assert torch.equal(*found)


def test_compiled_code_refuses_by_name():
    with pytest.raises(Exception, match="pad: values must not require grad"):
        torch.compile(lambda x: pad(x, OFFSETS, 5), backend="eager")(massive())


@pytest.mark.parametrize("op", [op for op, row in TABLE.items() if "cuda" in row["backends"]])
def test_traced_whole_with_offsets_host(op, monkeypatch):
    """A call as on a GPU, where `offsets_host` becomes a tensor, through torch.compile; the CPU backend runs it."""

    def call(name, *arguments, threads=None, offsets_host=None):
        offsets = dict(zip(TABLE[name]["arguments"], arguments)).get("offsets")
        return _torch.call(name, arguments, _dispatch._on_host(name, offsets, offsets_host), 1)

    monkeypatch.setattr(_dispatch, "call", call)
    arguments = cases.arguments_of(op, "mixed", "float32")
    options = {"offsets_host": arguments[OPS[op].offsets_at]} if OPS[op].ragged else {}
    if op == "pairwise_features":
        options["pairs"] = int((np.diff(arguments[1]) ** 2).sum())
    tensors = [torch.from_numpy(a) for a in arguments]
    compiled = torch.compile(lambda *given: OPS[op].run(*given, **options), fullgraph=True, backend="aot_eager")
    assert cases.same_bits(OPS[op].run(*tensors, **options), compiled(*tensors))
