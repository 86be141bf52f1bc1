"""DisCo against numbers of the authors' code and a slow dCorr^2 written from the definition."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from children import python
from fasttag.losses import DisCo


def slow_dcorr2(x, y, weights):
    """Doubly centred distance matrices, in whole."""
    p = weights / weights.sum()
    centred = []
    for values in (x, y):
        a = (values[:, None] - values).abs()
        rows = a @ p
        centred.append(a - rows[:, None] - rows + rows @ p)
    a, b = centred
    covariance = lambda one, other: p @ (one * other) @ p
    return covariance(a, b) / (covariance(a, a) * covariance(b, b)).sqrt()


@pytest.fixture
def jets():
    """Scores that depend on the mass, in another way for the signal; mass, label and weights."""
    generator = torch.Generator().manual_seed(1)
    label = torch.arange(300) % 3 == 0
    mass = torch.rand(300, generator=generator, dtype=torch.float64) * 250 + 50
    noise = torch.randn(300, generator=generator, dtype=torch.float64)
    score = torch.sigmoid(mass / 100 - 2 + 0.5 * noise + label * (mass / 30 - 4))
    weights = torch.rand(300, generator=generator, dtype=torch.float64)
    return score.requires_grad_(), mass, label, weights


@pytest.mark.parametrize("power", [1, 2, 1.5])
@pytest.mark.parametrize("weighted", [False, True])
def test_value_and_gradient(jets, power, weighted):
    score, mass, label, weights = jets
    loss = DisCo(30.0, power)(score, mass, ~label, weights if weighted else None)
    (gradient,) = torch.autograd.grad(loss, score)
    w = weights if weighted else torch.ones_like(weights)
    expected = 30.0 * slow_dcorr2(score[~label], mass[~label], w[~label]) ** power
    (expected_gradient,) = torch.autograd.grad(expected, score)
    assert loss.shape == () and loss.item() == pytest.approx(expected.item(), rel=1e-10)
    # 1e-12 of the largest: single entries are small differences of large sums
    torch.testing.assert_close(gradient, expected_gradient, rtol=0, atol=1e-12 * expected_gradient.abs().max().item())
    assert (gradient[label] == 0).all() and (gradient[~label] != 0).all()


def test_only_the_mask_counts(jets):
    score, mass, label, weights = jets
    disco = DisCo(1.0)
    background = disco(score, mass, ~label, weights)
    torch.testing.assert_close(background, disco(score[~label], mass[~label], None, weights[~label]), rtol=0, atol=0)
    elsewhere = torch.where(label, torch.nan, 1.0)
    assert torch.equal(background, disco(score * elsewhere, mass * elsewhere, ~label, weights))
    torch.testing.assert_close(background, disco(score, mass, weights=weights * ~label), rtol=1e-10, atol=0)
    assert abs(disco(score, mass, weights=weights) - background) > 0.01


def test_lambda_and_weights_scale(jets):
    score, mass, _, weights = jets
    one = DisCo(1.0)(score, mass, weights=weights)
    torch.testing.assert_close(DisCo(7.0)(score, mass, weights=weights), 7 * one, rtol=1e-14, atol=0)
    torch.testing.assert_close(DisCo(1.0)(score, mass, weights=5 * weights), one, rtol=1e-12, atol=0)
    assert abs(DisCo(1.0)(score, mass) - one) > 1e-3
    assert DisCo(0.0)(score, mass) == 0


@pytest.mark.shared
@pytest.mark.parametrize("power", [1, 2])
@pytest.mark.parametrize("kind", ["unweighted", "weighted"])
@pytest.mark.parametrize("ties", ["", "_ties"])
def test_the_authors_numbers(shared, kind, power, ties):
    """gkasieczka/DisCo, float64, with `power` in the same sense."""
    with np.load(shared / "golden" / "disco_official.npz") as f:
        golden = {name: torch.from_numpy(f[name]) for name in ("x" + ties, "y", "weights")}
        tag = f"{kind}_power{power}{ties}"
        value, gradient = f[f"value/{tag}"], f[f"grad_x/{tag}"]
    x = golden["x" + ties].requires_grad_()
    loss = DisCo(1.0, power)(x, golden["y"], weights=golden["weights"] if kind == "weighted" else None)
    loss.backward()
    assert loss.item() == pytest.approx(float(value), rel=1e-12)
    np.testing.assert_allclose(x.grad.numpy(), gradient, rtol=0, atol=1e-12 * np.abs(gradient).max())


@pytest.mark.parametrize("power", [1, 2])
@pytest.mark.parametrize("case", ["nobody", "one jet", "one score", "one mass"])
def test_nothing_to_decorrelate(jets, case, power):
    """0 with gradient 0, and yet part of the graph, so that a training step without background goes on."""
    score, mass, label, _ = jets
    mask = torch.zeros_like(label) if case == "nobody" else ~label
    mask = torch.arange(300) == 1 if case == "one jet" else mask
    used = score * 0 + 0.25 if case == "one score" else score
    loss = DisCo(10.0, power)(used, torch.full_like(mass, 80) if case == "one mass" else mass, mask)
    assert loss == 0
    loss.backward()
    assert (score.grad == 0).all()


def test_float32(jets):
    score, mass, label, _ = jets
    loss = DisCo(1.0)(score.float(), mass.float(), ~label)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(DisCo(1.0)(score, mass, ~label).item(), rel=1e-5)


def test_descends(jets):
    """Steps along the gradient make the background's score independent of the mass."""
    score, mass, label, _ = jets
    start = score.detach()
    shift = torch.zeros_like(start, requires_grad=True)
    optimizer = torch.optim.Adam([shift], lr=0.01)
    values = []
    for _ in range(100):
        optimizer.zero_grad()
        values.append(DisCo(1.0)(start + shift, mass, ~label))
        values[-1].backward()
        optimizer.step()
    assert values[-1] < 0.05 * values[0]
    assert (shift[label] == 0).all()


@pytest.mark.parametrize("bad", [-1.0, float("nan"), float("inf")])
def test_bad_options(bad):
    with pytest.raises(ValueError, match="DisCo: lambda_ must be 0 or more, got"):
        DisCo(bad)
    with pytest.raises(ValueError, match="DisCo: power must be 1 or more, got"):
        DisCo(1.0, bad)
    assert "lambda_=3.0, power=2" in repr(DisCo(3.0, 2))


def test_bad_masks(jets):
    score, mass, label, weights = jets
    with pytest.raises(TypeError, match=r"DisCo: mask must be a bool tensor, got torch.int64; pass label == 0"):
        DisCo(1.0)(score, mass, (~label).long())
    with pytest.raises(TypeError, match="DisCo: mask must be a bool tensor, got ndarray; pass label == 0"):
        DisCo(1.0)(score, mass, (~label).numpy())
    for name, arguments in (
        ("score", (score[1:], mass, ~label)),
        ("against", (score, mass[:, None], ~label)),
        ("weights", (score, mass, ~label, weights[:299])),
    ):
        with pytest.raises(ValueError, match=rf"DisCo: {name} must have the shape of mask, \(300,\), got"):
            DisCo(1.0)(*arguments)


@pytest.mark.parametrize("module", ["losses", "compat.disco", "compat.torch_cluster", "compat.weaver"])
def test_without_torch(module):
    code = f"""
import sys
sys.modules["torch"] = None
import fasttag
try:
    import fasttag.{module}
except ImportError as error:
    print(error)
"""
    assert python(code) == "torch is needed here: install fasttag-hep with the extra torch"
