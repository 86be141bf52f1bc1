"""Grey jet images: EnergyFlow's fixed pixels, and all preprocessing."""

import numpy as np
import pytest

import fasttag
import peers
from fasttag import _baselines
from fasttag_kernels.pixelate import numba_cpu, pixelate, reference
from problems import angles
from timing import check, local

FIXED = {"center": "pixel", "rotate": False, "flip": False}
ORACLE, SLOW = 1000, 300  # jets that the oracle and the slow peers get


def close(a, b, jets):
    """The same images but for jets with a constituent on the edge of a pixel, where rounding decides."""
    different = (np.abs(np.asarray(a, np.float64) - b) > 1e-5).reshape(jets, -1).any(1)
    assert different.sum() <= jets // 1000, f"{different.sum()} of {jets} images differ from the peer's: not timed"


def checked(images, p, **options):
    some = p.first(min(ORACLE, p.jets))
    expected = reference.pixelate(*angles(some), some.offsets, **options)
    additions = (np.diff(some.offsets) / 2)[:, None, None, None]
    check("pixelate", images[: some.jets], expected, additions * expected)
    return images[:, 0]


@pytest.mark.parametrize(("npix", "target"), [(33, {"us": 0.6}), (64, {"us": 1.2})])
def test_fixed_pixels(compare, problem, child, npix, target):
    p = problem("reference")
    pt, eta, phi = angles(p)
    options = {"npix": npix, "half_width": 0.4, **FIXED}
    images = checked(pixelate(pt, eta, phi, p.offsets, **options), p, **options)
    whole_batch = lambda: _baselines.pixelate(pt, eta, phi, p.offsets, npix=npix, half_width=0.4, fixed_pixels=True)
    close(images, whole_batch(), p.jets)
    some = p.first(min(SLOW, p.jets))
    if child:
        arrays = dict(zip(("pt", "eta", "phi"), angles(some)), offsets=some.offsets)
        child.prepare("energyflow", arrays, npix=npix, width=0.8)
        child.round()
        close(images[: some.jets], *child.result(), some.jets)
    others = {
        "EnergyFlow": (child.round if child else None, some.jets),
        "NumPy bincount": local(whole_batch, p),
    }
    compare(
        "pixelate",
        "reference",
        f"{npix}x{npix}, fixed pixels",
        p,
        lambda: pixelate(pt, eta, phi, p.offsets, **options),
        others,
        bytes=12 * p.constituents + 4 * npix**2,
        target=target,
    )


@pytest.mark.parametrize(("npix", "fixed", "target"), [(33, True, 0.6), (64, True, 1.2), (40, False, 1.5)])
def test_given_memory(compare, problem, npix, fixed, target):
    """The kernel without the system's part: getting, zeroing and giving back the memory of the images."""
    p = problem("reference")
    options = {"npix": npix, **({"half_width": 0.4, **FIXED} if fixed else {})}
    images = pixelate(*angles(p), p.offsets, **options)
    checked(images, p, **options)
    out = np.empty_like(images)
    settings = (0.4, "pixel", False, False) if fixed else (0.8, "centroid", True, True)
    arguments = (*angles(p), p.offsets, None, npix, *settings, True, True, ["pt"], "float32", out)
    numba_cpu.run(*arguments, threads=1)
    assert np.array_equal(out, images)
    compare(
        "pixelate",
        "reference",
        f"{npix}x{npix}, {'fixed pixels' if fixed else 'all preprocessing'}, into memory at hand",
        p,
        lambda: numba_cpu.run(*arguments, threads=1),
        {},
        bytes=12 * p.constituents + 4 * npix**2,
        target={"us": target},
    )


@pytest.mark.parametrize("start", ["pt, eta, phi", "p4"])
def test_all_preprocessing(compare, problem, start):
    p = problem("reference")
    pt, eta, phi = angles(p)
    jets = fasttag.Jets(p.p4, p.offsets)
    images = checked(pixelate(pt, eta, phi, p.offsets), p)
    from_p4 = lambda: fasttag.pixelate(jets)
    close(from_p4()[:, 0], images, p.jets)
    whole_batch = lambda pt, eta, phi: _baselines.pixelate(pt, eta, phi, p.offsets)
    close(images, whole_batch(pt, eta, phi), p.jets)
    some = p.first(min(SLOW, p.jets))
    per_jet = lambda: peers.pixelate_per_jet(*angles_of_some, some.offsets)
    angles_of_some = angles(some)
    close(images[: some.jets], per_jet(), some.jets)

    def bincount_from_p4():
        pt, _, eta, phi, _ = _baselines.kinematics(p.p4)
        whole_batch(pt, eta, phi)

    ours, bincount, bytes_read, target = {
        "pt, eta, phi": (
            lambda: pixelate(pt, eta, phi, p.offsets),
            lambda: whole_batch(pt, eta, phi),
            12,
            {"us": 1.5},
        ),
        "p4": (from_p4, bincount_from_p4, 16, {}),
    }[start]
    others = {"NumPy bincount": local(bincount, p)}
    if start != "p4":
        others = {"NumPy, jet by jet": local(per_jet, some), **others}
    compare(
        "pixelate",
        "reference",
        f"40x40, all preprocessing, from {start}",
        p,
        ours,
        others,
        bytes=bytes_read * p.constituents + 4 * 40**2,
        target=target,
    )
