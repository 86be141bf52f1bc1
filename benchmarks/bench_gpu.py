"""The CUDA kernels on a GPU. Run by `make gpu`; see README.md, "On a GPU".

Times are CUDA events around one call at a time, medians; compilation is apart. Inputs and outputs
are larger than the GPU's cache, but for dCorr, whose points fit into it by nature.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import fasttag
import pack_sample
from fasttag import _baselines
from fasttag_kernels.distance_correlation import distance_correlation
from fasttag_kernels.kinematics import kinematics
from fasttag_kernels.knn import knn
from fasttag_kernels.pairwise_features import pairwise_features
from fasttag_kernels.pixelate import pixelate
from fasttag_kernels.segment import segment
from problems import Problem

pytestmark = pytest.mark.gpu
SOME, LENGTH = 4096, 128  # jets of padded peers, and their length


@pytest.fixture(scope="session")
def jets(problem) -> tuple[Problem, Any, Any]:
    """The problem, and its p4 and offsets on the GPU."""
    cupy = importlib.import_module("cupy")
    p = problem("gpu")
    return p, cupy.asarray(p.p4), cupy.asarray(p.offsets)


def padded(array: Any, p: Problem) -> tuple[Any, Any]:
    """Rows (N, C) of the first jets as a padded CUDA tensor (J, LENGTH, C), and which slots are filled."""
    torch = importlib.import_module("torch")
    some = p.first(min(SOME, p.jets))
    valid = np.arange(LENGTH) < np.minimum(np.diff(some.offsets), LENGTH)[:, None]
    out = np.zeros((some.jets, LENGTH, array.shape[1]), np.float32)
    inside = np.concatenate([np.arange(n) < LENGTH for n in np.diff(some.offsets)])
    out[valid] = array[: some.offsets[-1]][inside]
    return torch.from_numpy(out).cuda(), torch.from_numpy(valid).cuda()


def test_kinematics(compare_on_gpu, jets):
    p, p4, _ = jets
    expected = kinematics(p.p4)
    for a, b in zip(kinematics(p4), expected):
        assert np.allclose(a.get(), b, rtol=2e-6, atol=1e-3), "wrong: not timed"
    compare_on_gpu("kinematics", "five quantities", p.jets, lambda: kinematics(p4), bytes=36 * p.constituents)


def test_segment(compare_on_gpu, jets):
    torch = importlib.import_module("torch")
    p, _, offsets = jets
    values = torch.randn(len(p.p4[0]), 64, device="cuda")
    on_gpu = torch.as_tensor(offsets, device="cuda")
    ours = lambda: segment(values, on_gpu, offsets_host=p.offsets)
    jet = torch.repeat_interleave(torch.arange(p.jets, device="cuda"), on_gpu.diff())
    index_add = lambda: torch.zeros(p.jets, 64, device="cuda").index_add_(0, jet, values)
    assert torch.allclose(ours(), index_add(), atol=1e-3), "wrong: not timed"
    bytes = 4 * 64 * (p.constituents + 1)
    compare_on_gpu("segment", "64 channels", p.jets, ours, {"torch index_add_": (index_add, p.jets)}, bytes=bytes)


@pytest.mark.parametrize("npix", [33, 64])
def test_pixelate(compare_on_gpu, jets, npix):
    torch = importlib.import_module("torch")
    p, p4, offsets = jets
    pt, _, eta, phi, _ = kinematics(p4)
    options = {"npix": npix, "center": None, "rotate": False, "flip": False, "normalize": False}
    ours = lambda: pixelate(pt, eta, phi, offsets, offsets_host=p.offsets, **options)
    some = p.first(min(SOME, p.jets))
    expected = pixelate(pt.get(), eta.get(), phi.get(), some.offsets, **options)
    assert (np.abs(ours()[: some.jets].get() - expected) > 1e-3).any((1, 2, 3)).sum() <= 1, "wrong: not timed"
    w, x, y = (torch.as_tensor(a, device="cuda") for a in (pt, eta, phi))
    counts = torch.as_tensor(np.diff(p.offsets), device="cuda")
    jet = torch.repeat_interleave(torch.arange(p.jets, device="cuda"), counts)

    def scatter_add():
        col, row = ((v + 0.8).mul_(npix / 1.6).floor_().long() for v in (x, y))
        inside = (col >= 0) & (col < npix) & (row >= 0) & (row < npix)
        cell = torch.where(inside, (jet * npix + row) * npix + col, 0)
        return torch.zeros(p.jets * npix * npix, device="cuda").scatter_add_(0, cell, torch.where(inside, w, 0))

    difference = scatter_add().view(-1, npix, npix)[1 : some.jets].cpu().numpy() - expected[1:, 0]
    assert (np.abs(difference) > 1e-2).any((1, 2)).sum() <= some.jets // 500, "not the peer's: not timed"
    compare_on_gpu(
        "pixelate",
        f"{npix}x{npix}, as given",
        p.jets,
        ours,
        {"torch scatter_add": (scatter_add, p.jets)},
        bytes=12 * p.constituents + 4 * npix * npix,
    )


@pytest.mark.parametrize("npix", [33, 64])
def test_pixelate_all(compare_on_gpu, jets, npix):
    p, p4, offsets = jets
    pt, _, eta, phi, _ = kinematics(p4)
    some = p.first(min(SOME, p.jets))
    ours = lambda: pixelate(pt, eta, phi, offsets, npix=npix, offsets_host=p.offsets)
    expected = pixelate(pt.get(), eta.get(), phi.get(), some.offsets, npix=npix)
    assert (np.abs(ours()[: some.jets].get() - expected) > 1e-5).any((1, 2, 3)).sum() <= 1, "wrong: not timed"
    compare_on_gpu(
        "pixelate",
        f"{npix}x{npix}, all preprocessing",
        p.jets,
        ours,
        bytes=12 * p.constituents + 4 * npix * npix,
        target_ns=1.6 if npix == 33 else None,
    )


@pytest.mark.parametrize("columns", [2, 64])
def test_knn(compare_on_gpu, jets, columns):
    cupy = importlib.import_module("cupy")
    p, _, offsets = jets
    p = p if columns == 2 else p.first(p.jets // 4)
    k = kinematics(p.p4)
    rows = np.stack([k.eta, k.phi], 1)
    if columns > 2:
        rows = np.random.default_rng(1).normal(size=(len(p.p4[0]), columns)).astype(np.float32)
    periodic = 1 if columns == 2 else None
    rows = rows[: p.offsets[-1]]
    x, on_gpu = cupy.asarray(rows), offsets[: p.jets + 1]
    ours = lambda: knn(x, offsets=on_gpu, periodic=periodic, offsets_host=p.offsets)
    some = p.first(min(SOME, p.jets))
    expected = knn(rows[: some.offsets[-1]], offsets=some.offsets, periodic=periodic, threads=2)
    same = (ours()[: some.offsets[-1]].get() == expected).mean()
    assert same == 1.0, "wrong: not timed"
    slots, valid = padded(rows, p)
    topk = lambda: _baselines.knn(slots, valid, 16)
    pairs = float((np.diff(p.offsets) ** 2).mean())
    compare_on_gpu(
        "knn",
        f"C = {columns}, k = 16",
        p.jets,
        ours,
        {f"torch cdist + topk, padded to {LENGTH}": (topk, len(slots))},
        bytes=4 * (columns + 16) * p.constituents,
        instructions=(3 * columns + 25) * pairs,
        target_ns=12 if columns == 2 else None,
    )


def test_pairwise_features(compare_on_gpu, jets):
    torch = importlib.import_module("torch")
    p, p4, offsets = jets
    p = p.first(min(50_000, p.jets))
    offsets = offsets[: p.jets + 1]
    counts = np.diff(p.offsets)
    pairs = int((counts**2).sum())
    ours = lambda: pairwise_features(p4, offsets, pairs=pairs, offsets_host=p.offsets)
    some = p.first(min(2000, p.jets))
    expected = pairwise_features(some.p4, some.offsets, threads=2)
    found = ours()[:, : expected.shape[1]].get()
    assert (np.abs(found - expected) <= 2e-6 * np.maximum(1, np.abs(expected))).all(), "wrong: not timed"
    del found
    peers: dict[str, tuple[Callable[[], Any] | None, int]] = dict.fromkeys(
        ("weaver eager, padded", "weaver compiled, padded"), (None, 1)
    )
    if importlib.util.find_spec("weaver"):
        from weaver.nn.model.ParticleTransformer import pairwise_lv_fts_pp

        slots, _ = padded(np.ascontiguousarray(p.p4.T), p)
        v = slots[: SOME // 4].transpose(1, 2).contiguous()
        eager = lambda: pairwise_lv_fts_pp(v.unsqueeze(-1), v.unsqueeze(-2))
        compiled = torch.compile(pairwise_lv_fts_pp, dynamic=False)
        some = p.first(len(v))
        theirs = np.concatenate([x[:, :n, :n].reshape(4, -1).cpu() for x, n in zip(eager(), np.diff(some.offsets))], 1)
        reference = pairwise_features(some.p4, some.offsets, m2="reference", threads=2)
        assert np.median(np.abs(reference - theirs)) < 1e-5, "not the peer's: not timed"
        peers["weaver eager, padded"] = (eager, len(v))
        peers["weaver compiled, padded"] = (lambda: compiled(v.unsqueeze(-1), v.unsqueeze(-2)), len(v))
    compare_on_gpu(
        "pairwise_features",
        "4 features, full",
        p.jets,
        ours,
        peers,
        bytes=16 * p.constituents + 16 * pairs / p.jets,
        target_ns=14,
    )


@pytest.mark.parametrize("n", [10_000, 100_000])
def test_distance_correlation(compare_on_gpu, n):
    torch = importlib.import_module("torch")
    rng = np.random.default_rng(2)
    x = rng.normal(size=n).astype(np.float32)
    y = (1 / (1 + np.exp(-x - rng.normal(size=n)))).astype(np.float32)
    w = rng.exponential(size=n).astype(np.float32)
    host = [torch.from_numpy(v) for v in (x, y, w)]
    there = [v.cuda() for v in host]

    def gradient(x, y, w):
        y = y.detach().requires_grad_()
        value = distance_correlation(x, y, weights=w)
        return value.detach(), torch.autograd.grad(value, y)[0]

    for a, b in zip(gradient(*there), gradient(*host)):
        assert torch.allclose(a.cpu(), b, rtol=2e-6, atol=2e-6 * float(b.abs().max())), "wrong: not timed"
    few = [v[:4096] for v in there]

    def textbook():
        y = few[1].detach().requires_grad_()
        return torch.autograd.grad(_baselines.distance_correlation(few[0], y, few[2]), y)

    compare_on_gpu(
        "distance_correlation",
        f"value and gradient, weights, n = {n:,}",
        n,
        lambda: gradient(*there),
        {"torch, n = 4096": (textbook, 4096)},
        bytes=16,
        target_ns={10_000: 40e3 / 1e4, 100_000: 250e3 / 1e5}[n],
    )


def test_file_to_pairs(compare_on_gpu, jets, tmp_path):
    """A file in the page cache, through the device, to pair features: on the clock, not by events."""
    if pack_sample.SAMPLE.exists():
        sample = pack_sample.unpack(20_000)
    else:
        p = jets[0].first(min(20_000, jets[0].jets))
        sample = fasttag.Jets(p.p4, p.offsets)
    path = tmp_path / "jets.h5"
    fasttag.write(path, sample)

    def ours():
        for part in fasttag.iter_read(path, chunk=4096, device="cuda", library="torch"):
            fasttag.pairwise_features(part)

    def there_and_back():
        """The same file read whole, moved, and computed, one after the other."""
        fasttag.pairwise_features(fasttag.read(path).to("cuda", library="torch"))

    for part in fasttag.iter_read(path, chunk=4096, device="cuda", library="torch", stop=8192):
        found = fasttag.pairwise_features(part).cpu().numpy()
        expected = fasttag.pairwise_features(part.to("cpu", library="numpy"), threads=2)
        assert (np.abs(found - expected) <= 2e-6 * np.maximum(1, np.abs(expected))).all(), "wrong: not timed"
    peers = {"read, then move, then compute": (there_and_back, len(sample)), "pandas + weaver + .cuda()": (None, 1)}
    if importlib.util.find_spec("weaver") and importlib.util.find_spec("tables"):
        peers["pandas + weaver + .cuda()"] = (_pandas_and_weaver(sample, tmp_path), len(sample))
    compare_on_gpu("file to pairs", "native HDF5 to 4 features", len(sample), ours, peers, on_the_clock=True)


def _pandas_and_weaver(sample: fasttag.Jets, folder: Any) -> Callable[[], None]:
    """The usual way: a pandas table of 200 slots, padded tensors, .cuda(), weaver's features in batches of 512."""
    torch, pandas = importlib.import_module("torch"), importlib.import_module("pandas")
    from weaver.nn.model.ParticleTransformer import pairwise_lv_fts_pp

    p4, _ = sample.to_padded(200, truncate=True)
    names = [f"{q}_{i}" for i in range(200) for q in ("PX", "PY", "PZ", "E")]
    frame = pandas.DataFrame(p4.reshape(len(p4), 800), columns=names)
    frame.to_hdf(folder / "table.h5", key="table", mode="w", format="table", complib="blosc", complevel=9)

    def run() -> None:
        found = pandas.read_hdf(folder / "table.h5", key="table").to_numpy().reshape(-1, 200, 4)
        for first in range(0, len(found), 512):
            batch = torch.from_numpy(np.ascontiguousarray(found[first : first + 512, :LENGTH].transpose(0, 2, 1)))
            batch = batch.cuda()
            pairwise_lv_fts_pp(batch.unsqueeze(-1), batch.unsqueeze(-2))

    return run
