"""The input recipes of Particle Transformer and ParticleNet: golden numbers, columns, labels and odd jets."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from fasttag import Jets, features
from fasttag_kernels import set_threads

IMPACT = ("d0val", "d0err", "dzval", "dzerr")


@pytest.fixture(scope="module")
def golden():
    """The seven inputs of all 64 jets, float32 of float64 arithmetic."""
    with np.load(Path(__file__).parent / "data" / "model_inputs.npz") as f:
        return f["features"]


@pytest.fixture(scope="module")
def rich(jets64):
    """The jets with charge and impact parameters, a few of them NaN."""
    rng = np.random.default_rng(5)
    columns = {name: rng.normal(0, 2, jets64.p4.shape[1]).astype(np.float32) for name in IMPACT}
    columns["d0err"][::7] = np.nan
    columns["dzval"][3] = np.nan
    return jets64.with_columns(charge=rng.integers(-1, 2, jets64.p4.shape[1]).astype(np.int8), **columns)


def plain(jets, axis=None):
    """The seven inputs by the definition, jet by jet in float64."""
    out = []
    for j in range(len(jets)):
        px, py, pz, e = jets.p4[:, jets.offsets[j] : jets.offsets[j + 1]].astype(np.float64)
        pt = np.hypot(px, py)
        eta_j = np.arcsinh(pz.sum() / np.hypot(px.sum(), py.sum()))
        found = (eta_j, math.atan2(py.sum(), px.sum()), np.hypot(px.sum(), py.sum()), e.sum())
        eta_j, phi_j, pt_j, e_j = found if axis is None else axis[j]
        deta = (np.arcsinh(pz / pt) - eta_j) * (-1 if eta_j < 0 else 1)
        dphi = (np.arctan2(py, px) - phi_j + np.pi) % (2 * np.pi) - np.pi
        scaled = [(np.log(pt) - 1.7) * 0.7, (np.log(e) - 2) * 0.7, (np.log(pt / pt_j) + 4.7) * 0.7]
        scaled += [(np.log(e / e_j) + 4.7) * 0.7, (np.hypot(deta, dphi) - 0.2) * 4]
        out.append(np.stack([*np.clip(scaled, -5, 5), deta, dphi], 1))
    return np.concatenate(out)


def with_gradient(jets):
    """torch jets that want a gradient: array operations instead of the loop."""
    jets = jets.to(library="torch")
    return Jets(jets.p4.clone().requires_grad_(), jets.offsets, jets.columns, jets.labels)


LIBRARIES = {"numpy": lambda jets: jets, "torch": lambda jets: jets.to(library="torch"), "gradient": with_gradient}


def array(x):
    return x.detach().numpy() if isinstance(x, torch.Tensor) else x


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("library", LIBRARIES)
def test_golden(jets64, golden, library, dtype):
    inputs = features.kin(LIBRARIES[library](jets64.astype(dtype)))
    assert (inputs.x.dtype, inputs.max_n) == (inputs.p4.dtype, 82)
    assert str(inputs.x.dtype).endswith(dtype)
    assert type(inputs.x) is type(inputs.p4)
    np.testing.assert_allclose(array(inputs.x), golden, rtol=0, atol=2e-6)
    np.testing.assert_array_equal(array(inputs.points), array(inputs.x)[:, -2:])
    np.testing.assert_array_equal(array(inputs.offsets), inputs.offsets_host)


@pytest.mark.parametrize("library", LIBRARIES)
def test_definition(jets64, library):
    jets = jets64.astype("float64")
    np.testing.assert_allclose(array(features.kin(LIBRARIES[library](jets)).x), plain(jets), rtol=0, atol=1e-12)


@pytest.mark.parametrize("library", LIBRARIES)
def test_labels_are_the_jet(jets64, library):
    """Each label by itself and all together, in another dtype than the four-vectors."""
    jets = jets64.astype("float64")[:6].compact()
    own = plain(jets)
    sums = [jets.p4[:, a:b].sum(1) for a, b in zip(jets.offsets, jets.offsets[1:])]
    axis = np.array([[np.arcsinh(z / np.hypot(x, y)), math.atan2(y, x), np.hypot(x, y), e] for x, y, z, e in sums])
    labels = (axis + np.array([0.01, -0.02, 3.0, 5.0])).astype(np.float32)
    labels[2, 0] *= -1
    names = ("jet_eta", "jet_phi", "jet_pt", "jet_energy")
    for chosen in ((0,), (1,), (2,), (3,), (0, 1, 2, 3)):
        mixed = axis.copy()
        mixed[:, chosen] = labels[:, chosen]
        given = jets.with_labels(**{names[i]: np.ascontiguousarray(labels[:, i]) for i in chosen})
        found = array(features.kin(LIBRARIES[library](given)).x)
        np.testing.assert_allclose(found, plain(jets, mixed), rtol=0, atol=1e-12)
        assert np.abs(found - own).max() > 1e-3


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("library", LIBRARIES)
def test_kinpid_and_full(rich, library, dtype):
    jets = LIBRARIES[library](rich[3:].astype(dtype))
    rows = rich.columns
    kinds = np.stack([rows["kind"] == k for k in (1, 0, 4, 2, 3)], 1)
    own = np.concatenate([rows["charge"][:, None], kinds], 1)
    values, errors = np.tanh(np.float64([rows["d0val"], rows["dzval"]])), np.clip([rows["d0err"], rows["dzerr"]], 0, 1)
    impact = np.stack([values[0], errors[0], values[1], errors[1]], 1)
    impact = np.where(np.isnan(impact), 0, impact)
    whole = array(features.kin(jets).x)
    for recipe, extra in ((features.kinpid, own), (features.full, np.concatenate([own, impact], 1))):
        inputs = recipe(jets)
        assert str(inputs.x.dtype).endswith(dtype)
        expected = np.concatenate([whole[:, :5], extra[rich.offsets[3] :], whole[:, 5:]], 1)
        atol = 1e-12 if dtype == "float64" else 1e-7  # of tanh in float32
        np.testing.assert_allclose(array(inputs.x), expected, rtol=0, atol=atol)
        np.testing.assert_array_equal(array(inputs.points), whole[:, 5:])


def test_jetclass_flags_go_before_kind(rich):
    """As the readers give them; a constituent without any flag has five zeros."""
    flags = {"isChargedHadron": 1, "isNeutralHadron": 0, "isPhoton": 4, "isElectron": 2, "isMuon": 3}
    columns = {name: (rich.columns["kind"] == number).astype(np.float32) for name, number in flags.items()}
    for column in columns.values():
        column[0] = 0
    found = features.kinpid(rich.with_columns(**columns)).x
    assert not found[0, 6:11].any()
    np.testing.assert_array_equal(found[1:], features.kinpid(rich).x[1:])


@pytest.mark.parametrize(
    ("recipe", "missing"), [("kinpid", "charge"), ("kinpid", "kind"), *(("full", name) for name in IMPACT)]
)
def test_missing_column(rich, recipe, missing):
    columns = {name: column for name, column in rich.columns.items() if name != missing}
    with pytest.raises(ValueError, match=f"{recipe}: jets must have a column '{missing}', got {next(iter(columns))}"):
        getattr(features, recipe)(Jets(rich.p4, rich.offsets, columns))


@pytest.mark.parametrize("library", ["numpy", "torch"])
@pytest.mark.parametrize("bad", [-1, 5, 2.5])
def test_unknown_kinds(rich, library, bad):
    """NaN is 0 in all columns, as ever."""
    kind = rich.columns["kind"].astype(np.float32)
    kind[3] = np.nan
    jets = rich.with_columns(kind=kind).to(library=library)
    assert (array(features.kinpid(jets).x)[3, 6:11] == 0).all()
    kind[4] = bad
    with pytest.raises(ValueError, match=f"kinpid: column 'kind' must be 0 neutral .*, got {bad}; translate"):
        features.kinpid(rich.with_columns(kind=kind).to(library=library))


@pytest.mark.parametrize("library", LIBRARIES)
def test_clips_and_signs(library):
    """At eta_J = 0, and below it; constituents that are soft, hard or far away; dphi across pi."""
    pt, eta, phi = np.array([1e-4, 1e6, 10.0, 10.0]), np.array([0.5, 0.0, 3.0, -3.0]), np.array([3.1, 3.0, -3.1, 2.9])
    labels = {"jet_eta": np.array([0.0, -0.1]), "jet_phi": np.array([3.0, 0.0])}
    p4 = np.stack([pt * np.cos(phi), pt * np.sin(phi), pt * np.sinh(eta), pt * np.cosh(eta)])
    jets = Jets(np.concatenate([p4, p4], 1), np.array([0, 4, 8]), {}, labels)
    x = array(features.kin(LIBRARIES[library](jets)).x)
    assert (x[0, 0], x[1, 0], x[0, 2], x[2, 4]) == (-5, 5, -5, 5)
    np.testing.assert_allclose(x[:, 5], [*eta, *-(eta + 0.1)], atol=1e-12)
    np.testing.assert_allclose(x[:, 6], [0.1, 0, 2 * np.pi - 6.1, -0.1, *phi], atol=1e-12)


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_odd_jets(jets64, library, dtype):
    """No jets, empty jets, one constituent, no pt, zeros, and a slice equals the same jets by themselves."""
    jets = jets64.astype(dtype)
    change = LIBRARIES[library]
    assert features.kin(change(jets[:0])).x.shape == (0, 7)
    assert features.kin(change(jets[:0])).max_n == 0
    p4 = np.array([[3.0, 4.0, 0.0, 5.0], [0, 0, 2, 2], [0, 0, 0, 0], [1, 0, 0, 1]], dtype).T
    odd = Jets(np.ascontiguousarray(p4), np.array([0, 0, 1, 1, 2, 3, 4]))
    inputs = features.kin(change(odd))
    x = array(inputs.x)
    assert inputs.max_n == 1
    assert np.isfinite(x).all()
    np.testing.assert_allclose(x[[0, 3], 2:], [[3.29, 3.29, -0.8, 0, 0]] * 2, atol=1e-6)
    assert x[1, 0] == x[2, 0] == x[2, 1] == -5
    np.testing.assert_array_equal(x[2, 2:4], 0)
    part = array(features.kin(change(jets[5:9])).x)
    np.testing.assert_array_equal(part, array(features.kin(change(jets)).x)[jets.offsets[5] : jets.offsets[9]])


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_bad_four_vectors_stay_visible(jets64, library, bad):
    jets = jets64[:3].compact()
    expected = array(features.kin(jets).x)
    for row in range(4):
        p4 = jets.p4.copy()
        p4[row, jets.offsets[1] + 2] = bad
        x = array(features.kin(LIBRARIES[library](Jets(p4, jets.offsets))).x)
        lies_in = np.repeat(np.arange(3), jets.counts) == 1
        assert np.isfinite(x[:, :5]).all()
        assert np.isnan(x[lies_in][:, 5:]).all()
        np.testing.assert_allclose(x[~lies_in], expected[~lies_in], rtol=0, atol=1e-6)


def test_threads_and_read_only(jets64):
    expected = features.kin(jets64).x
    p4 = jets64.p4.copy()
    p4.flags.writeable = False
    try:
        set_threads(3)
        np.testing.assert_array_equal(features.kin(Jets(p4, jets64.offsets)).x, expected)
    finally:
        set_threads(1)


def test_gradient(jets64):
    """Against differences; also of a jet that is its one constituent."""
    jets = with_gradient(jets64[:2].compact().astype("float64"))
    p4 = torch.cat([jets.p4, jets.p4[:, :1]], 1).detach().requires_grad_()
    weights = torch.randn(p4.shape[1], 7, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    offsets = torch.cat([jets.offsets, jets.offsets[-1:] + 1])
    value = lambda p4: float((features.kin(Jets(p4, offsets)).x * weights).sum())
    (features.kin(Jets(p4, offsets)).x * weights).sum().backward()
    assert torch.isfinite(p4.grad).all()
    for i, j in ((0, 0), (1, 7), (2, 20), (3, 30)):
        step = torch.zeros_like(p4)
        step[i, j] = 1e-5
        slope = (value(p4.detach() + step) - value(p4.detach() - step)) / 2e-5
        assert math.isclose(float(p4.grad[i, j]), slope, rel_tol=1e-5, abs_tol=1e-7)
