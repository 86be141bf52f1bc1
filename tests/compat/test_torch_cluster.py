"""compat.torch_cluster against scipy's k-d tree with the tie rule, and against torch_cluster's layout."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import fasttag
from children import peer
from fasttag.compat.torch_cluster import knn, knn_graph
from toys import toy_jets


def batched(jets, seed=0, columns=3, dtype=np.float32):
    counts = np.random.default_rng(seed).integers(1, 40, jets)
    x = np.random.default_rng(seed + 1).normal(size=(counts.sum(), columns)).astype(dtype)
    return torch.from_numpy(x), torch.from_numpy(np.repeat(np.arange(jets), counts))


def by_hand(x, k, batch, loop):
    """Points and neighbours, by (d^2, index) and brute force."""
    x, found = x.numpy(), []
    for i in range(len(x)):
        same = np.flatnonzero(batch.numpy() == batch[i].item())
        d2 = np.zeros(len(same), x.dtype)
        for c in range(x.shape[1]):
            d2 += (x[same, c] - x[i, c]) ** 2
        order = [j for j in same[np.argsort(d2, kind="stable")] if loop or j != i]
        found += [(i, j) for j in order[:k]]
    return np.array(found, np.int64).reshape(-1, 2).T


@pytest.mark.parametrize("loop", [False, True])
@pytest.mark.parametrize("k", [1, 5, 32])
def test_edges_in_order(k, loop):
    x, batch = batched(20)
    x[3:6] = x[2]  # four at one place
    expected = by_hand(x, k, batch, loop)
    found = knn_graph(x, k, batch, loop=loop, flow="target_to_source")
    assert found.dtype == torch.int64
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(knn_graph(x, k, batch, loop), expected[::-1])
    if loop:
        np.testing.assert_array_equal(knn(x, x, k, batch, batch), expected)


def test_layout_of_torch_clusters_own_examples():
    """Of its documentation: four corners; row 0 holds neighbours and row 1 points unless the flow is turned."""
    x = torch.tensor([[-1.0, -1], [-1, 1], [1, -1], [1, 1]])
    found = knn_graph(x, 2, torch.zeros(4, dtype=torch.int64))
    assert found.tolist() == [[1, 2, 0, 3, 0, 3, 1, 2], [0, 0, 1, 1, 2, 2, 3, 3]]
    assert knn_graph(x, 1, loop=True).tolist() == [[0, 1, 2, 3]] * 2
    assert torch.equal(knn_graph(x, 2), found)


def test_one_column_missing_examples_and_small_ones():
    x = torch.tensor([0.0, 1, 3, 10])
    assert knn_graph(x, 2).tolist() == [[1, 2, 0, 2, 1, 0, 2, 1], [0, 0, 1, 1, 2, 2, 3, 3]]
    gap = knn_graph(x, 3, torch.tensor([0, 0, 5, 7]))
    assert gap.tolist() == [[1, 0], [0, 1]]
    assert knn_graph(torch.rand(0, 3), 4, torch.zeros(0, dtype=torch.int64)).shape == (2, 0)
    assert knn_graph(x, 3, torch.tensor([0, 0, 5, 7]), loop=True).tolist() == [[0, 1, 1, 0, 2, 3], [0, 0, 1, 1, 2, 3]]


def test_duplicates_are_neighbours_and_not_oneself():
    """torch_cluster looks for k + 1 and leaves itself out if found: with more than k + 1 at one place it may not be."""
    found = knn_graph(torch.zeros(9, 2), 3, flow="target_to_source").view(2, 9, 3)
    assert (found[0] != found[1]).all()
    assert found[1, 8].tolist() == [0, 1, 2]


TREE = """
from scipy.spatial import cKDTree
k = int(k)
found, distances = [], []
for first, last in zip(offsets[:-1], offsets[1:]):
    distance, index = cKDTree(x[first:last]).query(x[first:last], k=k)
    found.append(index + first)
    distances.append(distance)
result = [np.concatenate(found), np.concatenate(distances)]
"""


def points(jets):
    p4 = jets.p4.astype(np.float64)
    return np.stack([np.arcsinh(p4[2] / np.hypot(p4[0], p4[1])), np.arctan2(p4[1], p4[0])], 1)


def same_as_tree(x, offsets, folder):
    """loop=True, float64, jets of at least k: the tree's neighbours, put in the order of index within a distance."""
    k, counts = 9, np.diff(offsets)
    x, counts = x[np.repeat(counts >= k, counts)], counts[counts >= k]  # for missing neighbours they have other signs
    offsets = np.concatenate([[0], np.cumsum(counts)])
    batch = torch.from_numpy(np.repeat(np.arange(len(counts)), counts))
    index, distance = peer(TREE, folder, x=x, offsets=offsets, k=np.array(k))
    found = knn_graph(torch.from_numpy(x), k, batch, loop=True)[0].view(-1, k).numpy()
    order = np.lexsort((index, distance), axis=1)
    index = np.take_along_axis(index, order, 1)
    d = np.linalg.norm(x[found] - x[:, None], axis=2)
    np.testing.assert_allclose(d, np.take_along_axis(distance, order, 1), rtol=1e-13, atol=1e-15)
    return (found != index).any(1)


@pytest.mark.peers
def test_against_a_tree(tmp_path):
    jets = toy_jets(2000, 4)
    assert not same_as_tree(points(jets), jets.offsets, tmp_path).any()


@pytest.mark.soak
@pytest.mark.peers
@pytest.mark.shared
@pytest.mark.timeout(3600)
def test_against_a_tree_on_100000_jets(shared, tmp_path):
    with np.load(shared / "data" / "test_large.npz") as f:
        offsets, p3 = f["offsets"][:100_001], f["p3"]
    for start in range(0, 100_000, 10_000):
        part = offsets[start : start + 10_001]
        p4 = np.concatenate([p3[part[0] : part[-1]].T, np.zeros((1, part[-1] - part[0]), np.float32)])
        jets = fasttag.Jets(np.ascontiguousarray(p4), part - part[0])
        differ = same_as_tree(points(jets), jets.offsets, tmp_path)
        assert differ.mean() < 0.01, "only ties, which a tree cuts anywhere, at the last place"


def test_y_must_be_x():
    x, batch = batched(3)
    assert torch.equal(knn(x, x[:], 4, batch, batch.view(-1)), knn(x, x, 4, batch, batch))
    for y, other in ((x.clone(), batch), (x, batch.clone()), (x[1:], batch[1:]), (x, None)):
        with pytest.raises(NotImplementedError, match="knn: y must be x and batch_y must be batch_x"):
            knn(x, y, 4, batch, other)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"cosine": True}, NotImplementedError, "knn_graph: cosine must be False"),
        ({"flow": "sideways"}, ValueError, "knn_graph: flow must be"),
        ({"batch": torch.tensor([0, 1, 0])}, ValueError, "knn_graph: batch must be sorted"),
        ({"batch": torch.tensor([0, 1])}, ValueError, r"knn_graph: batch must be int64 of shape \(3,\)"),
        ({"batch": torch.tensor([0.0, 1, 2])}, ValueError, r"knn_graph: batch must be int64 of shape \(3,\)"),
        ({"k": 33}, ValueError, "knn: k must be at most 32"),
        ({"x": torch.tensor([[1], [2], [3]])}, TypeError, "knn: x must be float32 or float64, got int64"),
    ],
)
def test_refuses(change, error, message):
    with pytest.raises(error, match=message):
        knn_graph(**{"x": torch.rand(3, 2), "k": 1} | change)
    if "cosine" in change:
        with pytest.raises(error, match="knn: cosine must be False"):
            x = torch.rand(3, 2)
            knn(x, x, 1, cosine=True)


def test_points_may_require_grad_and_arguments_that_do_nothing():
    x, batch = batched(4)
    plain = knn_graph(x, 3, batch)
    assert torch.equal(knn_graph(x.requires_grad_(), 3, batch, False, "source_to_target", False, 4, 4), plain)
