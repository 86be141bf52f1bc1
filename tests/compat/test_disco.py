"""compat.disco against the numbers of gkasieczka/DisCo and its conventions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from fasttag.compat.disco import distance_corr
from tolerances import EPS32

POWERS = [1, 2, 0.5, 3]


def textbook(x, y, w, power):
    """The original's definition: means of n x n matrices times weights that have mean 1."""
    a, b = ((v[:, None] - v).abs() for v in (x, y))
    a, b = (d - m - m[:, None] + (m * w).mean() for d, m in ((d, (d * w).mean(1)) for d in (a, b)))
    v_xy, v_xx, v_yy = ((((c * w).mean(1)) * w).mean() for c in (a * b, a * a, b * b))
    return v_xy**2 / (v_xx * v_yy) if power == 2 else v_xy / (v_xx * v_yy).sqrt() ** power


@pytest.fixture(scope="module")
def golden():
    with np.load(Path(__file__).parent.parent / "data" / "disco_official.npz") as f:
        return dict(f)


@pytest.mark.parametrize("tag", ["unweighted", "weighted"])
@pytest.mark.parametrize("power", [1, 2])
@pytest.mark.parametrize("ending", ["", "_ties", "_float32", "_ties_float32"])
def test_golden(golden, tag, power, ending):
    name = f"{tag}_power{power}{ending}"
    if f"value/{name}" not in golden:
        pytest.fail(f"{name} is not among {sorted(key for key in golden if key.startswith('value/'))}")
    x = golden["x_ties" if "ties" in ending else "x"]
    w = golden["weights"] if tag == "weighted" else np.ones_like(x)
    dtype = torch.float32 if "float32" in ending else torch.float64
    x, y, w = (torch.from_numpy(v).to(dtype) for v in (x, golden["y"], w))
    value = distance_corr(x.requires_grad_(), y.requires_grad_(), w, power)
    # the original's float32 is off by 3e-7 in the value, and by 1e-5 of the largest in its gradients
    rtol, of_largest = (1e-12, 1e-12) if dtype == torch.float64 else (3e-7, 1e-5)
    assert value.dtype == dtype and value.shape == ()
    assert value.item() == pytest.approx(golden[f"value/{name}"].item(), rel=rtol)
    for kind, found in zip(("grad_x", "grad_y"), torch.autograd.grad(value, (x, y))):
        expected = golden[f"{kind}/{name}"]
        assert np.abs(found.numpy() - expected).max() <= of_largest * np.abs(expected).max()


def variables(n=60):
    rng = np.random.default_rng(4)
    x, w = rng.normal(size=n).round(1), rng.exponential(size=n)
    return *(torch.from_numpy(v) for v in (x, np.tanh(x) + rng.normal(size=n))), torch.from_numpy(w / w.mean())


@pytest.mark.parametrize("power", POWERS)
def test_every_power(power):
    x, y, w = variables()
    (x.requires_grad_(), y.requires_grad_())
    values = distance_corr(x, y, w, power=power), textbook(x, y, w, power)
    torch.testing.assert_close(*values, rtol=1e-12, atol=0)
    for a, b in zip(*(torch.autograd.grad(value, (x, y)) for value in values)):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("power", POWERS)
@pytest.mark.parametrize(
    "x", [[0.1] * 5, [1, 2, torch.nan, 4, 5], [1, 2, torch.inf, 4, 5]], ids=["constant", "nan", "inf"]
)
def test_nan_as_there(x, power):
    """Also where the only other value, or the NaN, has weight 0."""
    y, x = torch.arange(5.0).requires_grad_() ** 2, torch.tensor(x)
    w = torch.ones(5)
    value = distance_corr(x, y, w, power)
    assert value.isnan() and textbook(x, y, w, power).isnan()
    assert torch.autograd.grad(value, y)[0].isnan().all()
    x[2], w = (9.0 if x[2] == 0.1 else x[2]), torch.tensor([1.25, 1.25, 0, 1.25, 1.25])
    assert distance_corr(y, x, w, power).isnan() and textbook(y, x, w, power).isnan()


@pytest.mark.parametrize("n", [0, 1])
def test_too_few(n):
    assert distance_corr(torch.ones(n), torch.ones(n), torch.ones(n)).isnan()


def test_columns_and_dtypes_as_there():
    x, y, w = variables()
    expected = distance_corr(x, y, w).item()
    column = distance_corr(x[:, None].float(), y.float()[:, None], w)
    assert column.dtype == torch.float64 and column.item() == pytest.approx(expected, rel=100 * EPS32)
    assert distance_corr(x.float(), y.float(), torch.ones(60, dtype=torch.int64)).dtype == torch.float32


def test_weights_of_another_mean():
    """Sum 1, as the original's docstring asks for, gives it a number that is no correlation."""
    x, y, w = variables()
    assert abs(textbook(x, y, w / 60, 1) - textbook(x, y, w, 1)) > 0.1
    with pytest.raises(ValueError, match=r"^distance_corr: normedweight must have mean 1, got 0.0166667; divide"):
        distance_corr(x, y, w / 60)
    with pytest.raises(ValueError, match=r"^distance_correlation: weights must be 0 or more"):
        distance_corr(x, y, torch.cat([-w[:1], w[1:]]) / torch.cat([-w[:1], w[1:]]).mean())
    with pytest.raises(RuntimeError, match=r"weights must not require grad, .* detach it"):
        distance_corr(x, y, w.requires_grad_())
