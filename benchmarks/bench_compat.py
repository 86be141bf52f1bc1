"""The shims, called as users of the original call it: one batch of 512 jets padded to 128, results included."""

import numpy as np
import pytest
import torch

import fasttag
from fasttag.compat import energyflow, weaver
from problems import angles
from timing import torch_threads

LENGTH, K = 128, 16


def padded(p):
    """Four-vectors (B, 4, 128), zeros in empty slots, and points (B, 2, 128), 1e9 there."""
    jets = fasttag.Jets(p.p4, p.offsets)
    p4, valid = jets.to_padded(LENGTH)
    points = np.full((p.jets, 2, LENGTH), 1e9, np.float32)
    points.transpose(0, 2, 1)[valid] = np.stack(angles(p)[1:], 1)
    return np.ascontiguousarray(p4.transpose(0, 2, 1)), points, valid


def as_near(found, expected, points, valid):
    """Neighbours as near as the peer's, to the digits that xx + yy - 2xy has left."""
    x = points.astype(np.float64).transpose(0, 2, 1)
    rows = np.arange(len(x))[:, None, None]
    d2 = [np.sort(((x[:, :, None] - x[rows, index]) ** 2).sum(-1), -1)[valid] for index in (found, expected)]
    real = d2[0] < 1e9
    assert (np.abs(d2[0] - d2[1])[real] <= 32 * 2.0**-23 * (x[valid] ** 2).sum(-1).max()).all(), "others: not timed"


CASES = {
    "pairwise_lv_fts_pp": lambda p4, points, index: (
        {"x": p4},
        lambda x: weaver.pairwise_lv_fts_pp(x.unsqueeze(-1), x.unsqueeze(-2)),
        16 * LENGTH**2,
    ),
    "knn": lambda p4, points, index: ({"x": points}, lambda x: weaver.knn(x, K), 8 * LENGTH * (1 + K)),
    "get_graph_feature": lambda p4, points, index: (
        {"x": np.repeat(p4, 8, axis=1), "index": index},
        lambda x, index: weaver.get_graph_feature(x, K, index),
        4 * 32 * LENGTH * (1 + 2 * K) + 8 * LENGTH * K,
    ),
}


@pytest.mark.parametrize("function", CASES)
def test_weaver(compare, problem, child, function):
    p = problem("jets46")
    p4, points, valid = padded(p)
    index = np.random.default_rng(1).integers(0, LENGTH, (p.jets, LENGTH, K))
    arrays, call, bytes_moved = CASES[function](p4, points, index)
    tensors = [torch.from_numpy(array) for array in arrays.values()]
    others = {"weaver": (None, p.jets)}
    with torch_threads(1):
        found = call(*tensors).numpy()
        if child:
            seconds = child.prepare("weaver", arrays, function=function)
            seconds()
            (expected,) = child.result()
            if function == "knn":
                as_near(found, expected, points, valid)
            else:
                tolerance = 0 if function == "get_graph_feature" else 4e-6
                np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance)
            others["weaver"] = seconds, p.jets
        case = f"weaver {function}, B = {p.jets}, padded to {LENGTH}"
        compare("compat", "jets46", case, p, lambda: call(*tensors), others, bytes=bytes_moved)


def test_energyflow_coordinates(compare, problem, child):
    p = problem("reference")
    p4s = p.p4.T[:, [3, 0, 1, 2]].astype(np.float64)
    ours = lambda: energyflow.ptyphims_from_p4s(p4s)
    others = {"EnergyFlow": (None, p.jets)}
    if child:
        seconds = child.prepare("energyflow_coordinates", {"p4s": p4s})
        seconds()
        np.testing.assert_allclose(ours(), *child.result(), rtol=1e-9, atol=1e-9)
        others["EnergyFlow"] = seconds, p.jets
    compare("compat", "reference", "EnergyFlow ptyphims_from_p4s", p, ours, others, bytes=64 * p.constituents)
