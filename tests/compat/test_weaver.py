"""compat.weaver against weaver-core: stored numbers, live in its own process, and what differs on purpose."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import fasttag
from children import both
from fasttag.compat import weaver
from fasttag_kernels import _dispatch, pair_grid
from toys import toy_jets

DATA = Path(__file__).parent.parent / "data"
PART, NET, TOOLS = "weaver.nn.model.ParticleTransformer", "weaver.nn.model.ParticleNet", "weaver.utils.data.tools"
OURS = "fasttag.compat.weaver"
LN_KT, LN_Z, LN_DELTA, LN_M2, LN_DS2 = range(5)


@pytest.fixture(scope="module")
def stored():
    with np.load(DATA / "compat.npz") as f:
        return dict(f)


def padded(jets, length, dtype="float32"):
    p4, valid = jets.to_padded(length, truncate=True)
    return np.ascontiguousarray(p4.transpose(0, 2, 1), dtype), valid


def same_features(found, expected):
    """The bound of the docstring: 2 ulp, and where torch's square root is inside 2 roundings of the argument more."""
    found, expected = np.asarray(found), np.asarray(expected)
    assert found.shape == expected.shape and found.dtype == expected.dtype
    unit = 2.0 ** (-52 if found.dtype == np.float64 else -23)
    root = np.zeros(found.shape[1])
    root[[0] if len(root) == 1 else [LN_KT, LN_DELTA]] = 2 * unit
    bound = 2 * np.spacing(np.abs(np.where(np.isfinite(expected), expected, 0))) + root.reshape(
        -1, *[1] * (found.ndim - 2)
    )
    equal = (found == expected) | (np.isnan(found) & np.isnan(expected))
    off = np.subtract(found, expected, where=~equal, out=np.zeros_like(found))
    assert (np.abs(off) <= bound).all(), f"{np.abs(off).max()}"


def test_stored_features(stored):
    x = torch.from_numpy(stored["padded"])
    for count in (5, 4, 3):
        found = weaver.pairwise_lv_fts_pp(x.unsqueeze(-1), x.unsqueeze(-2), num_outputs=count)
        same_features(found, stored["pairs"][:, :count])
    found = weaver.pairwise_lv_fts_pp(x.unsqueeze(-1), x.unsqueeze(-2), num_outputs=1)
    same_features(found, stored["pairs"][:, LN_DELTA : LN_DELTA + 1])
    assert weaver.pairwise_lv_fts is weaver.pairwise_lv_fts_pp


@pytest.mark.shared
def test_golden_features(shared):
    """float64, where noise of m^2 is below 1e-9 off the diagonal; float32 is compared live."""
    with np.load(shared / "golden" / "pairwise_weaver.npz") as f:
        x, expected = torch.from_numpy(f["vectors_pxpypze"][:16]).double(), f["features_float64"]
    same_features(weaver.pairwise_lv_fts(x.unsqueeze(-1), x.unsqueeze(-2)), expected)


PAIRS = """
import torch
from weaver.nn.model.ParticleTransformer import pairwise_lv_fts_pp
torch.set_num_threads(1)
x, other = torch.from_numpy(x), torch.from_numpy(other)
i, j = torch.tril_indices(x.shape[2], x.shape[2])
result = [f.numpy() for f in (
    pairwise_lv_fts_pp(x.unsqueeze(-1), x.unsqueeze(-2)),
    pairwise_lv_fts_pp(x[:, :, i], x[:, :, j], num_outputs=5),
    pairwise_lv_fts_pp(x.unsqueeze(-1).repeat(1, 1, 1, 3), other, 3, 1e-3),
    pairwise_lv_fts_pp(x[0].T, x[1].T, num_outputs=1),
    pairwise_lv_fts_pp(x[:, :, :4, None, None], x[:1, :, None, :2, None].expand(-1, -1, 4, -1, 5)),
    pairwise_lv_fts_pp(x.unsqueeze(-1), x.unsqueeze(-2), num_outputs=6),
    pairwise_lv_fts_pp(x.unsqueeze(-1), x.unsqueeze(-2), num_outputs=8),
)]
"""


@pytest.mark.peers
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_one_import_line_pair_features(dtype, tmp_path):
    """Dense, lists, repeated, without a pair axis, other broadcasting, zero padding, features beyond the fifth."""
    x, _ = padded(toy_jets(20, 3), 32, dtype)
    x[2, :2, 3] = 0  # no pt
    x[3, 0, 5] = np.nan
    x[4, 3, 6] = np.inf
    other = np.random.default_rng(1).permuted(x, axis=0)[..., None].repeat(3, 3)
    theirs, ours = both(PAIRS, PART, OURS, tmp_path, x=x, other=other)
    for i, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        (same_features if i in (0, 2, 4) else np.testing.assert_array_equal)(a, b)


DENSE = """
import torch
from weaver.nn.model.ParticleTransformer import pairwise_lv_fts_pp
x = torch.from_numpy(x)
result = [pairwise_lv_fts_pp(x.unsqueeze(-1), x.unsqueeze(-2)).numpy()]
"""


@pytest.mark.peers
def test_pair_features_of_2000_jets(tmp_path):
    x, _ = padded(toy_jets(2000, 5), 40)
    theirs, ours = both(DENSE, PART, OURS, tmp_path, x=x)
    same_features(ours[0], theirs[0])


def packed(shared, start, stop):
    """Jets of test_large.npz."""
    with np.load(shared / "data" / "test_large.npz") as f:
        offsets = f["offsets"][start : stop + 1]
        p3 = f["p3"][offsets[0] : offsets[-1]]
    p4 = np.concatenate([p3, np.linalg.norm(p3.astype(np.float64), axis=1, keepdims=True).astype(np.float32)], 1)
    return fasttag.Jets(np.ascontiguousarray(p4.T), offsets - offsets[0])


@pytest.mark.soak
@pytest.mark.peers
@pytest.mark.shared
@pytest.mark.timeout(3600)
def test_pair_features_of_100000_jets(shared, tmp_path):
    for start in range(0, 100_000, 2500):
        x, _ = padded(packed(shared, start, start + 2500), 64)
        theirs, ours = both(DENSE, PART, OURS, tmp_path, x=x)
        same_features(ours[0], theirs[0])


def test_gradients_are_torchs():
    x = torch.from_numpy(padded(toy_jets(2, 3), 12, "float64")[0][:, :, :9].copy()).requires_grad_()
    i, j = torch.tril_indices(9, 9, -1)
    assert torch.autograd.gradcheck(lambda x: weaver.pairwise_lv_fts_pp(x[:, :, i], x[:, :, j]), x)
    features = weaver.pairwise_lv_fts_pp(x.unsqueeze(-1), x.unsqueeze(-2))
    assert features.requires_grad
    with torch.no_grad():
        fast = weaver.pairwise_lv_fts_pp(x.unsqueeze(-1), x.unsqueeze(-2))
    same_features(fast, features.detach())


def test_particles_are_worked_out_once(monkeypatch):
    """What reaches the kernel is not broadcast: 7 numbers for each particle of either side."""
    sizes = []
    call = _dispatch.call
    monkeypatch.setattr(
        pair_grid._dispatch,
        "call",
        lambda op, a, b, *r, **k: (sizes.append((a.shape, b.shape)), call(op, a, b, *r, **k))[1],
    )
    x = torch.rand(3, 4, 6) + 1
    weaver.pairwise_lv_fts_pp(x.unsqueeze(-1), x.unsqueeze(-2))
    weaver.pairwise_lv_fts_pp(x.unsqueeze(-1).expand(-1, -1, -1, 6), x.unsqueeze(-2).expand(-1, -1, 6, -1))
    weaver.pairwise_lv_fts_pp(x[..., None, None], x[:1, :, None, :2, None].expand(-1, -1, 6, -1, 5))
    assert sizes == [((3, 7, 6, 1), (3, 7, 1, 6))] * 2 + [((3, 7, 6, 1), (1, 7, 1, 2))]


@pytest.mark.slow
def test_compiles_whole():
    x = torch.rand(3, 4, 6) + 1
    dense = lambda x: weaver.pairwise_lv_fts_pp(x.unsqueeze(-1), x.unsqueeze(-2))
    assert torch.equal(torch.compile(dense, fullgraph=True, backend="aot_eager")(x), dense(x))
    for itself in (False, True):
        graph = lambda x, itself=itself: weaver.get_graph_feature(x, 3, weaver.knn(x, 3, exclude_self=not itself))
        assert torch.equal(torch.compile(graph, fullgraph=True, backend="aot_eager")(x), graph(x))


@pytest.mark.parametrize("count", [0, 2, 7, 9, None])
def test_refuses_counts_that_weaver_asserts_against(count):
    x = torch.rand(1, 4, 3)
    with pytest.raises(ValueError, match="num_outputs must be 1, 3, 4, 5, 6 or 8"):
        weaver.pairwise_lv_fts_pp(x, x, num_outputs=count)


@pytest.mark.parametrize("shapes", [((2, 4, 3), (2, 4)), ((2, 3, 3), (2, 3, 3)), ((4,), (4,))])
def test_refuses_shapes(shapes):
    with pytest.raises(ValueError, match="xi and xj must have shape"):
        weaver.pairwise_lv_fts_pp(*map(torch.rand, shapes))


GRAPH = """
import torch
from weaver.nn.model.ParticleNet import get_graph_feature, knn, pairwise_distance_etaphi
points, features = torch.from_numpy(points), torch.from_numpy(features)
near, turned = knn(points, 7), knn(points, 7, distance_fn=pairwise_distance_etaphi)
own = knn(points, 8, exclude_self=False)
index = torch.from_numpy(index)
edges = [get_graph_feature(features, 7, index, cpu_mode=mode) for mode in (False, True)]
result = [x.numpy() for x in (near, turned, own, *edges)]
"""


def points_of(jets, length, dtype):
    """(eta, phi), padded with weaver's 1e9, and the mask."""
    x, valid = padded(jets, length, "float64")
    with np.errstate(all="ignore"):
        points = np.stack([np.arcsinh(x[:, 2] / np.hypot(x[:, 0], x[:, 1])), np.arctan2(x[:, 1], x[:, 0])], 1)
    return np.where(valid[:, None], points, 1e9).astype(dtype), valid


def exact_order(points, k, periodic, itself):
    """Neighbours by (d^2, index) in float64 of the points as given, and d^2 of these and of the one after."""
    difference = points.astype(np.float64)[:, :, :, None] - points.astype(np.float64)[:, :, None]
    if periodic:
        difference[:, 1] = (difference[:, 1] + np.pi) % (2 * np.pi) - np.pi
    d2 = (difference**2).sum(1)
    if not itself:
        d2[:, np.arange(d2.shape[1]), np.arange(d2.shape[1])] = np.inf
    order = np.argsort(d2, 2, kind="stable")[:, :, : k + 1]
    return order[:, :, :k], np.take_along_axis(d2, order, 2)


def compare_neighbours(theirs, ours, points, valid, *, periodic=False, itself=False):
    """Ours is right wherever the gaps are above rounding. How many real points are wrong in ours and theirs, of all."""
    k = ours.shape[2]
    assert ours.dtype == theirs.dtype == np.int64 and ours.shape == theirs.shape
    expected, d2 = exact_order(points, k, periodic, itself)
    # differences and squares round by half an ulp each, a turn of 2 pi by an ulp of that
    rounding = np.finfo(points.dtype).eps * (4 * d2 + (16 * np.sqrt(d2) if periodic else 0))
    clear = valid & (np.diff(d2, axis=2) > rounding[:, :, 1:]).all(2)
    right, peer_right = ((x == expected).all(2) for x in (ours, theirs))
    assert clear.sum() > 0.3 * valid.sum()  # the rest has constituents of one tower, at one distance
    assert right[clear].all()
    return (valid & ~right).sum(), (valid & ~peer_right).sum(), valid.sum()


@pytest.mark.peers
@pytest.mark.parametrize(("jets", "dtype"), [(60, "float32"), (60, "float64"), (2000, "float32")])
def test_one_import_line_graph(jets, dtype, tmp_path):
    points, valid = points_of(toy_jets(jets, 8), 40, dtype)
    features = np.random.default_rng(2).normal(size=(jets, 5, 40)).astype(dtype)
    index = np.random.default_rng(3).integers(0, 40, (jets, 40, 7))
    theirs, ours = both(GRAPH, NET, OURS, tmp_path, points=points, features=features, index=index)
    for mode in (3, 4):
        assert ours[mode].tobytes() == theirs[mode].tobytes()
    for which, how in enumerate([{}, {"periodic": True}, {"itself": True}]):
        wrong, peer_wrong, _ = compare_neighbours(theirs[which], ours[which], points, valid, **how)
        assert wrong <= peer_wrong
        if dtype == "float64":
            assert (wrong, peer_wrong) == (0, 0)
            np.testing.assert_array_equal(ours[which][valid], theirs[which][valid])


NEAR = """
import torch
from weaver.nn.model.ParticleNet import knn
result = [knn(torch.from_numpy(points), 16).numpy()]
"""


@pytest.mark.soak
@pytest.mark.peers
@pytest.mark.shared
@pytest.mark.timeout(3600)
def test_neighbours_of_100000_jets(shared, tmp_path):
    """float32 (eta, phi) of real jets: counts of points whose 16 neighbours are not those of exact arithmetic."""
    total = np.zeros(3, int)
    for start in range(0, 100_000, 2500):
        points, valid = points_of(packed(shared, start, start + 2500), 64, "float32")
        theirs, ours = both(NEAR, NET, OURS, tmp_path, points=points)
        total += compare_neighbours(theirs[0], ours[0], points, valid)
    wrong, peer_wrong, points = total
    print(f"{points} points: {wrong} of ours and {peer_wrong} of weaver's differ from exact arithmetic")
    assert wrong < peer_wrong


@pytest.mark.shared
def test_golden_neighbours(shared):
    """The neighbours that weaver's own ParticleNet used in float64, ghosts included: as sets, real points, all jets."""
    with np.load(shared / "golden" / "model_inputs.npz") as f:
        points, mask = torch.from_numpy(f["points"]).double(), torch.from_numpy(f["mask"])
    with np.load(shared / "golden" / "particlenet_jetclass_kin_knn.npz") as f:
        expected = f["knn_float64/0"]
    found = weaver.knn(points.masked_fill(~mask, 1e9), 16).numpy()
    excused = same_neighbours(found, expected.astype(np.int64), points.masked_fill(~mask, 1e9), mask[:, 0].numpy())
    assert excused == 20  # of 2962 points: 13 with themselves among their neighbours, 7 with a tie at the last place


def same_neighbours(found, expected, points, real):
    """The same sets, else equal distances or weaver has the point itself among its neighbours: the number of these."""
    d2 = weaver.pairwise_distance(points).numpy()
    ghosts = real.sum(1)[:, None, None]
    sets = [np.sort(np.minimum(x, ghosts), 2) for x in (found, expected)]
    tie = (np.sort(np.take_along_axis(d2, found, 2), 2) == np.sort(np.take_along_axis(d2, expected, 2), 2)).all(2)
    itself = (expected == np.arange(d2.shape[1])[:, None]).any(2)
    differ = (sets[0] != sets[1]).any(2) & real
    assert not (differ & ~tie & ~itself).any()
    return differ.sum()


def test_stored_neighbours(stored):
    points = torch.from_numpy(stored["points"])
    real = np.arange(28) < np.full((3, 1), 24)
    assert same_neighbours(weaver.knn(points, 7).numpy(), stored["neighbours"].astype(np.int64), points, real) < 10


def test_ghosts_fill_up_and_have_the_lowest_indices():
    points = torch.full((1, 2, 8), 1e9)
    points[:, :, :3] = torch.tensor([[0.0, 1.0, 5.0], [0.0, 0.0, 0.0]])
    for distance in (weaver.pairwise_distance, weaver.pairwise_distance_etaphi):
        found = weaver.knn(points, 4, distance)
        assert found[0, :3].tolist() == [[1, 2, 3, 4], [0, 2, 3, 4], [1, 0, 3, 4]]


def test_what_differs_on_purpose():
    """Duplicates: a point is not its own neighbour. Far from the origin: xx + yy - 2xy has no digits left."""
    twins = torch.zeros(1, 2, 4)
    twins[0, 0] = torch.tensor([0.0, 0.0, 0.0, 3.0])
    assert weaver.knn(twins, 2)[0].tolist() == [[1, 2], [0, 2], [0, 1], [0, 1]]
    assert weaver.knn(twins, 3, exclude_self=False)[0].tolist() == [[0, 1, 2], [0, 1, 2], [0, 1, 2], [3, 0, 1]]
    assert weaver.knn(twins, 2, exclude_self=False)[0].tolist() == [[0, 1], [0, 1], [0, 1], [3, 0]]
    line = torch.stack([1000 + torch.tensor([0.0, 1.0, 3.0, 7.0, 15.0]) / 64, torch.zeros(5)])[None]
    expected = [[1, 2, 3], [0, 2, 3], [1, 0, 3], [2, 1, 0], [3, 2, 1]]
    assert weaver.knn(line, 3)[0].tolist() == expected
    order = weaver.pairwise_distance(line).topk(4, largest=False)[1][..., 1:]
    assert order[0].tolist() == expected


DUPLICATES = """
import torch
from weaver.nn.model.ParticleNet import knn
torch.manual_seed(0)
found = knn(torch.zeros(1, 2, 64), 8)
line = torch.stack([1000 + torch.tensor([0.0, 1.0, 3.0, 7.0, 15.0]) / 64, torch.zeros(5)])[None]
result = [(found == torch.arange(64)[:, None]).any().numpy(), knn(line, 3).numpy()]
"""


@pytest.mark.peers
def test_weaver_is_the_one_that_errs(tmp_path):
    (own, line), (our_own, our_line) = both(DUPLICATES, NET, OURS, tmp_path)
    assert own and not our_own, "weaver makes points their own neighbours where there are duplicates"
    assert line.tolist() != our_line.tolist() == [[[1, 2, 3], [0, 2, 3], [1, 0, 3], [2, 1, 0], [3, 2, 1]]]


def test_knn_takes_features_that_require_grad():
    x = torch.rand(2, 5, 9, requires_grad=True)
    assert weaver.knn(x, 3).shape == (2, 9, 3)


def test_too_few_points_and_other_distances():
    x = torch.rand(2, 2, 5)
    for k, itself in ((5, False), (6, True)):
        with pytest.raises(RuntimeError, match=f"knn: k must be at most {k - 1} for 5 points, got {k}"):
            weaver.knn(x, k, exclude_self=not itself)
    with pytest.raises(NotImplementedError, match="distance_fn must be pairwise_distance or pairwise_distance_etaphi"):
        weaver.knn(x, 3, distance_fn=torch.cdist)


def test_graph_features_and_their_gradient():
    x = torch.rand(2, 3, 5, dtype=torch.float64, requires_grad=True)
    index = weaver.knn(x, 2)
    found = weaver.get_graph_feature(x, 2, index)
    for b, c, p, k in np.ndindex(2, 3, 5, 2):
        assert found[b, c, p, k] == x[b, c, p]
        assert found[b, 3 + c, p, k] == x[b, c, index[b, p, k]] - x[b, c, p]
    assert torch.autograd.gradcheck(lambda x: weaver.get_graph_feature(x, 2, index), x)


PAD = """
from weaver.utils.data.tools import _batched_fused_constant_pad, _batched_fused_repeat_pad
rows, variables = len(offsets) - 1, len(starts)
constant = np.full((rows, variables, length), 7, np.float32)
repeated = constant.copy()
arguments = content, starts, offsets, centers, scales, los, his, do_centers
_batched_fused_constant_pad(*arguments, pad_values, constant)
_batched_fused_repeat_pad(*arguments, repeated)
result = [constant, repeated]
"""


def columns(counts, variables, seed=0):
    """Flat columns in the order that weaver makes, and settings of every sort."""
    rng = np.random.default_rng(seed)
    offsets = np.concatenate([[0], np.cumsum(counts)])
    content = rng.normal(0, 4, variables * offsets[-1]).astype(np.float32)
    for value in (np.nan, np.inf, -np.inf, 0.0, -0.0, 1e38):
        content[rng.integers(0, content.size, content.size // 50)] = value
    number = lambda *choices: rng.choice(np.array(choices, np.float32), variables)
    return {
        "content": content,
        "starts": np.arange(variables) * offsets[-1],
        "offsets": offsets,
        "centers": number(0, 1.7, -0.3),
        "scales": number(0.7, -2, 0, 1e30),
        "los": number(-5, -np.inf, 5),
        "his": number(5, np.inf, -5),
        "do_centers": rng.random(variables) < 0.7,
        "pad_values": number(0, -1, np.nan, np.inf),
    }


@pytest.mark.peers
@pytest.mark.parametrize("length", [1, 16, 40, 128])
def test_one_import_line_padding(length, tmp_path):
    """To the bit: every row length, empty rows, NaN, infinities, limits in the wrong order, 32-bit offsets."""
    given = columns(np.arange(2001) % 71, 17)
    if length == 40:
        given["offsets"] = given["offsets"].astype(np.int32)
    theirs, ours = both(PAD, TOOLS, OURS, tmp_path, **given, length=np.array(length))
    for a, b in zip(ours, theirs, strict=True):
        assert a.tobytes() == b.tobytes() and a.dtype == np.float32


@pytest.mark.soak
@pytest.mark.peers
def test_padding_of_100000_jets(tmp_path):
    given = columns(np.random.default_rng(4).integers(0, 130, 100_000), 17)
    theirs, ours = both(PAD, TOOLS, OURS, tmp_path, **given, length=np.array(128))
    for a, b in zip(ours, theirs, strict=True):
        assert a.tobytes() == b.tobytes()


def test_padding_into_strided_memory_and_other_floats():
    given = columns([3, 0, 20], 4)
    arguments = [given[name] for name in list(given)[:-1]]
    plain = np.full((3, 4, 18), 7, np.float32)
    weaver._batched_fused_repeat_pad(*arguments, plain)
    assert (plain[1] == 7).all(), "an empty row is left alone"
    strided = np.full((18, 4, 3), 7, np.float64).T
    weaver._batched_fused_repeat_pad(*arguments, strided)
    np.testing.assert_array_equal(strided, plain)


def test_padding_checks_what_it_would_read():
    given = columns([3, 0, 20], 4)
    out = np.zeros((3, 4, 8), np.float32)
    for change, message in [
        ({"starts": given["starts"] + 1}, "offsets must lie in 0..22"),
        ({"starts": given["starts"] - 1}, "no content_starts below 0"),
        ({"offsets": given["offsets"][:-1]}, "there must be 4 offsets"),
        ({"scales": given["scales"][:-1]}, "there must be 4 of each setting"),
    ]:
        with pytest.raises(ValueError, match=f"_batched_fused_constant_pad: .*{message}"):
            weaver._batched_fused_constant_pad(*(given | change).values(), out)


@pytest.mark.parametrize(
    ("xi", "xj", "shape"),
    [
        (torch.ones(2, 4, 0, 1), torch.ones(2, 4, 1, 0), (2, 4, 0, 0)),
        (torch.ones(0, 4, 3, 1), torch.ones(1, 4, 1, 3), (0, 4, 3, 3)),
        (torch.ones(1, 4, 3, 1, dtype=torch.float64), torch.ones(1, 4, 1, 3), (1, 4, 3, 3)),
        (torch.ones(1, 4, 3, 1).half(), torch.ones(1, 4, 1, 3).half(), (1, 4, 3, 3)),
    ],
)
def test_pair_features_of_what_the_kernel_does_not_take(xi, xj, shape):
    assert weaver.pairwise_lv_fts_pp(xi, xj).shape == shape


def test_pair_features_without_a_clamp():
    x = torch.tensor([[3.0, 4.0, 0.0, 5.0], [4.0, 3.0, 0.0, 5.0]]).T[None]
    found = weaver.pairwise_lv_fts_pp(x[..., None], x[..., None, :], eps=0.0)
    assert found[0, 2, 0, 0] == -torch.inf and found[0, 2, 0, 1] < 0
