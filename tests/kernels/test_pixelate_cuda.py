"""Jet images on the GPU, on the host: every option, size and length against the oracle and the CPU kernel."""

from __future__ import annotations

import numpy as np
import pytest

import emulation
import problems
from fasttag_kernels import _dispatch
from fasttag_kernels.pixelate import CHANNELS, images, pixelate, reference

pytestmark = pytest.mark.sanitizer
PLAIN = {"rotate": False, "flip": False}
LENGTHS = [0, 1, 127, 31, 128, 0, 129, 33, 1000, 5]


def jets(lengths, dtype="float64", seed=3, width=0.2):
    """pt, eta, phi, offsets and kind of jets at different phi, some across pi."""
    rng = np.random.default_rng(seed)
    n = sum(lengths)
    phi = np.repeat(np.linspace(-3, 3.1, len(lengths)), lengths) + rng.normal(0, width, n)
    columns = rng.exponential(10, n), rng.normal(0.4, width, n), (phi + np.pi) % (2 * np.pi) - np.pi
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    return *(x.astype(dtype) for x in columns), offsets, (np.arange(n) * 7 % 5).astype(np.int8)


@pytest.fixture
def on_gpu(monkeypatch):
    """`images` on the emulated GPU, with threads in rising and in falling order."""
    emulation.emulated(monkeypatch)

    def run(
        pt, eta, phi, offsets, *, kind=None, npix=33, half_width=0.8, center="centroid", rotate=True, flip=True,
        normalize=True, wrap=True, channels=("pt",), dtype=None,
    ):  # fmt: skip
        settings = (npix, half_width, center, rotate, flip, normalize, wrap, channels, dtype, None, offsets)
        monkeypatch.setattr(emulation.Settings, "falling", True)
        falling = images(pt, eta, phi, offsets, kind, *settings)
        monkeypatch.setattr(emulation.Settings, "falling", False)
        found = images(pt, eta, phi, offsets, kind, *settings)
        assert found.tobytes() == falling.tobytes(), "the result depends on the order of threads"
        return found

    return run


def assert_is_oracle(found, pt, eta, phi, offsets, **options):
    """n/2 additions in the dtype of the image and as many in float64; no constituent in another pixel."""
    expected = reference.pixelate(pt, eta, phi, offsets, **options)
    epsilon = (np.diff(offsets) + 4)[:, None, None, None] * np.finfo(found.dtype).eps
    assert found.shape == expected.shape and (np.abs(found - expected) <= epsilon * expected).all()


@pytest.mark.parametrize("npix", [1, 2, 33, 64, 224])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("image", ["float32", "float64"])
def test_every_length_and_size(on_gpu, npix, dtype, image):
    """Short jets, jets of one window, of one more, of many; images that begin at any address."""
    *angles, offsets, _ = jets(LENGTHS, dtype)
    found = on_gpu(*angles, offsets, npix=npix, dtype=image)
    assert found.dtype == image
    assert_is_oracle(found, *angles, offsets, npix=npix)


@pytest.mark.parametrize(
    "options",
    [
        {"center": "pixel", **PLAIN},
        {"center": "pixel", "wrap": False, **PLAIN},
        {"center": "pixel", "npix": 32, "normalize": False, **PLAIN},
        {"center": None},
        {"center": None, "half_width": 4.0, **PLAIN},
        {"wrap": False},
        {"rotate": False},
        {"flip": False},
        {"normalize": False, "half_width": 0.1},
    ],
    ids=str,
)
def test_every_option(on_gpu, options):
    *angles, offsets, _ = jets(LENGTHS)
    assert_is_oracle(on_gpu(*angles, offsets, **options), *angles, offsets, **{"npix": 33, **options})


@pytest.mark.parametrize("count", [1, 5, 9, 10, 23])
def test_any_number_of_channels(on_gpu, count):
    *angles, offsets, kind = jets(LENGTHS)
    options = {"kind": kind, "npix": 17, "channels": (tuple(CHANNELS) * 5)[-count:]}
    assert_is_oracle(on_gpu(*angles, offsets, **options), *angles, offsets, **options)
    angles[1][offsets[3]] = np.nan
    found = on_gpu(*angles, offsets, **options)
    assert np.isnan(found[3]).all() and np.isfinite(np.delete(found, 3, 0)).all()


def test_another_kind_belongs_to_pt_alone(on_gpu, monkeypatch):
    """On a GPU nobody looks at the kinds."""
    monkeypatch.setattr(_dispatch, "device_of", lambda array: "cuda:0")
    *angles, offsets, kind = jets([40, 50])
    kind[::3] = [5, -1, 6, 127, -128, 37] * 5
    without = [np.where((kind < 0) | (kind > 4), 0, angles[0]), *angles[1:]]
    options = {"npix": 20, "center": None, "normalize": False, **PLAIN}
    found = on_gpu(*angles, offsets, kind=kind, channels=tuple(CHANNELS), **options)
    assert_is_oracle(found[:, :1], *angles, offsets, **options)
    assert_is_oracle(found[:, 1:], *without, offsets, kind=np.clip(kind, 0, 4), channels=tuple(CHANNELS)[1:], **options)


@pytest.mark.parametrize("image", ["float32", "float64"])
def test_many_constituents_in_a_pixel(on_gpu, image):
    """Counts are exact and sums too: pt in eighths."""
    pt, eta, phi, offsets, kind = jets([1000, 64, 128, 700], width=0.02)
    pt, kind = np.ceil(8 * pt) / 8, np.full_like(kind, 3)
    options = {"npix": 5, "center": None, "normalize": False, "half_width": 3.2, **PLAIN}
    names = ("pt", "n_muon", "pt_track")
    found = on_gpu(pt, eta, phi, offsets, kind=kind, channels=names, dtype=image, **options)
    expected = reference.pixelate(pt, eta, phi, offsets, kind=kind, channels=names, **options)
    assert (found == expected).all() and expected[:, 1].max() > 300


def test_degenerate_jets_are_not_rotated_and_ties_do_not_flip(on_gpu):
    angles = 0.4 + np.arange(5) * 2 * np.pi / 5
    pentagon = np.array([np.ones(5), 0.3 * np.cos(angles), 0.3 * np.sin(angles)])  # moments agree to rounding
    five, three = np.array([0, 5]), np.array([0, 3])
    assert (on_gpu(*pentagon, five, flip=False) == on_gpu(*pentagon, five, **PLAIN)).all()
    pentagon[0, 0] = 1.01
    assert (on_gpu(*pentagon, five, flip=False) != on_gpu(*pentagon, five, **PLAIN)).any()
    tie = np.array([[2, 1, 1], [0.4, -0.1, -0.2], [0.4, -0.1, -0.2]])
    options = {"center": None, "rotate": False}
    assert (on_gpu(*tie, three, **options) == on_gpu(*tie, three, flip=False, **options)).all()
    tie[0, 0] = 1.99
    assert (on_gpu(*tie, three, **options) != on_gpu(*tie, three, flip=False, **options)).any()


def test_a_leading_constituent_without_pt_is_no_landmark(on_gpu):
    split = on_gpu(*np.array([[0, 0, 0.0], [1, 0.2, 3.1], [1, 0.2, -3.1]]).T.copy(), np.array([0, 3]))
    assert (split == on_gpu(*np.array([[1, 0.2, 3.1], [1, 0.2, -3.1]]).T.copy(), np.array([0, 2]))).all()
    assert np.count_nonzero(split) == 2


def test_pixels_have_32_bit_numbers(on_gpu):
    nothing = np.empty(0)
    with pytest.raises(ValueError, match=r"^pixelate: npix must be 65535 or less on a GPU, got 65536; "):
        on_gpu(nothing, nothing, nothing, np.array([0]), npix=65536)


@pytest.mark.parametrize("options", [{}, {"center": "pixel", **PLAIN}], ids=["all steps", "fixed pixels"])
def test_pixels_are_those_of_the_cpu_kernel(monkeypatch, options):
    """3,000 jets with 144,000 constituents: at most one on an edge, where another order of additions may decide."""
    problem = problems.problem("reference").first(3000)
    angles = problems.angles(problem)
    cpu = pixelate(*angles, problem.offsets, npix=33, **options)
    emulation.emulated(monkeypatch)
    found = pixelate(*angles, problem.offsets, npix=33, offsets_host=problem.offsets, **options)
    moved = (np.abs(found - cpu) > 1e-5 * cpu).any((1, 2, 3)).sum()
    assert moved <= 1
