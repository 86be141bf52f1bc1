"""Jets: what it refuses, what it shares, and how it travels between libraries."""

from __future__ import annotations

import dataclasses
import pickle
import re

import awkward as ak
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from children import python
from fasttag import Jets, interop
from toys import listed, make

ORDERS = {"px,py,pz,E": [0, 1, 2, 3], "E,px,py,pz": [3, 0, 1, 2]}  # rows of p4 along the last axis of a padded block
every_order = pytest.mark.parametrize("order", ORDERS)
every_library = pytest.mark.parametrize("library", ["numpy", "torch"])


P4, OFFSETS = np.ones((4, 3)), np.array([0, 1, 3])


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((P4.tolist(), OFFSETS), TypeError, "p4 must be a NumPy, CuPy or torch array, got list; use np.asarray(p4)"),
        ((P4, [0, 1, 3]), TypeError, "offsets must be a NumPy, CuPy or torch array, got list"),
        ((P4, OFFSETS, {"a": [1]}), TypeError, "columns['a'] must be a NumPy, CuPy or torch array, got list"),
        ((P4, OFFSETS, {}, {"b": 1.0}), TypeError, "labels['b'] must be a NumPy, CuPy or torch array, got float"),
        (
            (P4, torch.tensor([0, 1, 3])),
            TypeError,
            "all arrays must share one library and device, got p4 is numpy on cpu, offsets is torch on cpu; move them",
        ),
        ((P4, OFFSETS, {"a": torch.ones(3)}), TypeError, "columns['a'] is torch on cpu"),
        ((P4.astype(int), OFFSETS), TypeError, "p4 must be float32 or float64, got int64; convert it"),
        ((P4.astype(np.float16), OFFSETS), TypeError, "p4 must be float32 or float64, got float16"),
        ((P4.astype(">f8"), OFFSETS), TypeError, "p4 must be float32 or float64, got >f8"),
        ((P4, OFFSETS.astype(np.int32)), TypeError, "offsets must be int64, got int32; convert them"),
        ((P4.T, OFFSETS), ValueError, "p4 must have shape (4, N), rows px, py, pz, E, got (3, 4); transpose it"),
        ((P4[0], OFFSETS), ValueError, "p4 must have shape (4, N), rows px, py, pz, E, got (3,)"),
        ((np.ones((3, 4)).T, OFFSETS), ValueError, "p4 must have contiguous rows, got a transposed array"),
        ((torch.ones(3, 4).T, torch.tensor([0, 1, 3])), ValueError, "p4 must have contiguous rows"),
        ((np.zeros((4, 3), "f8,i1")["f0"], OFFSETS), ValueError, "p4 must have contiguous rows"),
        ((P4, OFFSETS[:0]), ValueError, "offsets must have shape (J+1,), got (0,); no jets at all are offsets = [0]"),
        ((P4, OFFSETS[None]), ValueError, "offsets must have shape (J+1,), got (1, 3)"),
        ((P4, OFFSETS + 1), ValueError, "offsets must lie in 0..3, got 1..4; they count constituents"),
        ((P4, OFFSETS - 1), ValueError, "offsets must lie in 0..3, got -1..2"),
        ((P4, np.array([0, 3, 1, 3])), ValueError, "offsets must not fall, got 3 then 1 at jet 1; jet j is offsets[j]"),
        ((P4, OFFSETS, {"a": np.ones(2)}), ValueError, "columns['a'] must have shape (3,), got (2,); give one value"),
        ((P4, OFFSETS, {"a": np.ones((3, 1))}), ValueError, "columns['a'] must have shape (3,), got (3, 1)"),
        ((P4, OFFSETS, {}, {"b": np.ones(3)}), ValueError, "labels['b'] must have shape (2,), got (3,)"),
    ],
)
def test_construction_refuses(arguments, error, message):
    with pytest.raises(error, match=f"^Jets: .*{re.escape(message)}"):
        Jets(*arguments)


def test_smallest():
    jets = Jets(np.ones((4, 0)), np.array([0]))
    assert len(jets) == 0 and jets.counts.tolist() == [] and jets[:0].offsets.tolist() == [0]
    assert len(Jets(np.ones((4, 1)).T.copy().T, np.array([0, 1]))) == 1  # strides of a single column mean nothing


def test_frozen():
    jets = make()
    with pytest.raises(dataclasses.FrozenInstanceError):
        jets.p4 = P4
    with pytest.raises((AttributeError, TypeError)):
        jets.extra = 1
    columns = {"kind": jets.columns["kind"]}
    built = Jets(jets.p4, jets.offsets, columns)
    columns["late"] = None
    assert list(built.columns) == ["kind"], "a dictionary of the caller is shared"


def test_repr():
    text = "<Jets: 4 jets, 7 constituents, float32, numpy on cpu, columns: kind, labels: label>"
    assert repr(make(dtype="float32")) == text


@every_library
def test_slices_share_memory(library):
    jets = make().to(library=library)
    part = jets[1:3]
    assert part.p4 is jets.p4 and part.columns["kind"] is jets.columns["kind"]
    assert part.offsets[0] == 3 and part.offsets_host.tolist() == [3, 3, 7] and part.counts.tolist() == [0, 4]
    assert np.shares_memory(np.asarray(part.offsets), np.asarray(jets.offsets))
    assert np.shares_memory(np.asarray(part.labels["label"]), np.asarray(jets.labels["label"]))
    assert listed(part) == listed(jets)[1:3]
    assert listed(part[1:]) == listed(jets)[2:3]


@every_library
@given(data=st.data())
def test_indexing_is_that_of_lists(library, data):
    counts = data.draw(st.lists(st.integers(0, 5), max_size=8))
    jets = make(counts, data.draw(st.integers(0, 3)), data.draw(st.integers(0, 3))).to(library=library)
    expected, n = listed(jets), len(jets)

    key = data.draw(st.slices(n))
    assert listed(jets[key]) == expected[key]
    if n:
        i = data.draw(st.integers(-n, n - 1))
        assert listed(jets[i]) == [expected[i]] == listed(jets[np.int32(i)])
    chosen = data.draw(st.lists(st.integers(-n, n - 1), max_size=6) if n else st.just([]))
    mask = data.draw(st.lists(st.booleans(), min_size=n, max_size=n))
    arrays = (np.asarray, torch.tensor) if library == "torch" else (np.asarray,)
    for gathered in [jets[chosen], *(jets[array(chosen, dtype=int)] for array in arrays)]:
        assert listed(gathered) == [expected[i] for i in chosen]
        check_sound(gathered)
    for gathered in [jets[array(mask, dtype=bool)] for array in arrays]:
        assert listed(gathered) == [jet for jet, keep in zip(expected, mask) if keep]
        check_sound(gathered)
    assert listed(jets.compact()) == expected
    check_sound(jets.compact())
    assert [listed(jet)[0] for jet in jets] == expected


def check_sound(jets):
    """Made without the checks of the constructor: they hold all the same, and offsets start at zero."""
    assert Jets(jets.p4, jets.offsets, jets.columns, jets.labels).library == jets.library
    assert jets.offsets_host[0] == 0 and jets.offsets_host[-1] == jets.p4.shape[1]
    assert np.array_equal(np.asarray(jets.offsets), jets.offsets_host)


def test_large_gather_keeps_rows_contiguous():
    """NumPy's own p4[:, rows] comes out column-major from some sizes on."""
    jets = make([40] * 200)
    check_sound(jets[::-1])
    check_sound(jets.to(library="torch")[::-1])


@pytest.mark.parametrize(
    ("key", "error", "message"),
    [
        (4, IndexError, "index must lie in -4..3, got 4; there are 4 jets"),
        (-5, IndexError, "index must lie in -4..3, got -5"),
        ([0, 7], IndexError, "index must lie in -4..3, got 7; there are 4 jets"),
        ([-5], IndexError, "index must lie in -4..3, got -5"),
        (np.array([True, False]), ValueError, "a mask must have one entry per jet, 4, got 2"),
        (np.array([1.0]), TypeError, "an index must be a slice, an integer, a mask or integers"),
        (np.array([[1]]), TypeError, "an index must be a slice, an integer, a mask or integers"),
        (1.5, TypeError, "an index must be a slice, an integer, a mask or integers, got 1.5; use one of these"),
        (None, TypeError, "an index must be a slice, an integer, a mask or integers, got None"),
        ("label", TypeError, "an index must be a slice, an integer, a mask or integers, got 'label'"),
    ],
)
def test_bad_index(key, error, message):
    with pytest.raises(error, match=f"^Jets: {re.escape(message)}"):
        make()[key]


@every_library
def test_compact(library):
    jets = make().to(library=library)
    compact = jets.compact()
    assert compact.offsets.tolist() == [0, 2, 2, 6, 7] and tuple(compact.p4.shape) == (4, 7)
    assert np.shares_memory(np.asarray(compact.p4), np.asarray(jets.p4))
    assert compact.compact() is compact


def test_with_columns_and_labels():
    jets = make()
    more = jets.with_columns(charge=np.ones(10), kind=np.zeros(10, np.int8)).with_labels(weight=np.ones(4))
    assert list(more.columns) == ["kind", "charge"] and list(more.labels) == ["label", "weight"]
    assert more.columns["kind"].max() == 0 and jets.columns["kind"].max() == 4 and more.p4 is jets.p4
    with pytest.raises(ValueError, match=r"Jets: columns\['x'\] must have shape \(10,\), got \(7,\)"):
        jets.with_columns(x=np.ones(7))
    with pytest.raises(ValueError, match=r"Jets: labels\['x'\] must have shape \(4,\), got \(10,\)"):
        jets.with_labels(x=np.ones(10))


@every_library
@pytest.mark.parametrize(
    ("row", "value"), [(0, np.nan), (1, np.inf), (2, -np.inf), (3, np.nan), (3, np.inf), (3, -1.0)]
)
def test_validate_names_jet_and_constituent(library, row, value):
    jets = make()
    for constituent in (2, 0):
        jets.p4[row, 3 + constituent] = value
        message = rf"p4 must be finite with E >= 0, got \(.*\) in jet 2, constituent {constituent}; drop"
        with pytest.raises(ValueError, match=message):
            jets.to(library=library).validate()
    with pytest.raises(ValueError, match="in jet 101, constituent 0"):
        jets[1:].to(library=library).validate(row=100)


@every_library
def test_validate_allows(library):
    jets = make(dtype="float32")
    jets.p4[3] = np.nextafter(np.linalg.norm(jets.p4[:3], axis=0), np.float32(0))  # E < |p|
    jets.p4[3, 4] = 0.0
    jets.p4[:, [0, 8, 9]] = np.nan  # constituents of no jet
    moved = jets.to(library=library)
    assert moved.validate() is moved


@every_library
@every_order
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_padded_round_trip(library, order, dtype):
    jets = make(dtype=dtype).to(library=library)
    p4, valid = jets.to_padded(6, order=order)
    assert tuple(p4.shape) == (4, 6, 4) and valid.sum(1).tolist() == [2, 0, 4, 1]
    assert p4[2, 3].tolist() == [jets.p4[row, 6].item() for row in ORDERS[order]] and not p4[~valid].any()
    for again in (Jets.from_padded(p4, valid, order=order), Jets.from_padded(p4, order=order)):
        assert again.library == library and again.p4.dtype == jets.p4.dtype
        assert again.offsets.tolist() == [0, 2, 2, 6, 7]
        assert again.p4.tolist() == jets.compact().p4.tolist()


def test_from_padded_keeps_what_valid_says():
    """Real constituents may be zero, stand anywhere, and rubbish in padded slots is not looked at."""
    p4 = np.full((2, 3, 4), np.nan)
    valid = np.array([[False, True, True], [False, False, False]])
    p4[valid] = [[0, 0, 0, 0], [1, 2, 3, 4]]
    assert Jets.from_padded(p4, valid, order="E,px,py,pz").p4.T.tolist() == [[0, 0, 0, 0], [2, 3, 4, 1]]
    assert Jets.from_padded(p4[:0], order="E,px,py,pz").offsets.tolist() == [0]


def test_long_jets():
    jets = make()
    with pytest.raises(
        ValueError, match=r"pad: length must be at least 4, the longest jet \(jet 2\), got 3; raise it or"
    ):
        jets.to_padded(3)
    p4, valid = jets.to_padded(3, truncate=True)
    assert valid.sum(1).tolist() == [2, 0, 3, 1] and p4[2, :, 0].tolist() == [3, 4, 5]


BLOCK = np.ones((2, 3, 4))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((BLOCK, None, "px,py,pz"), ValueError, "order must be one of 'px,py,pz,E', 'E,px,py,pz', got 'px,py,pz'"),
        ((BLOCK.tolist(), None), TypeError, "p4 must be a NumPy, CuPy or torch array, got list"),
        ((BLOCK.astype(int), None), TypeError, "p4 must be float32 or float64, got int64"),
        ((BLOCK[0], None), ValueError, "p4 must have shape (J, L, 4), got (3, 4); put the four components last"),
        ((BLOCK[:, :, :3], None), ValueError, "p4 must have shape (J, L, 4), got (2, 3, 3)"),
        ((BLOCK, np.ones((3, 2), bool)), ValueError, "valid must be bool of shape (2, 3), got bool (3, 2)"),
        ((BLOCK, np.ones((2, 3))), ValueError, "valid must be bool of shape (2, 3), got float64 (2, 3)"),
        ((BLOCK, [[True]]), TypeError, "valid must be a NumPy, CuPy or torch array, got list"),
        ((BLOCK, torch.ones((2, 3), dtype=bool)), TypeError, "all arrays must share one library and device"),
    ],
)
def test_from_padded_refuses(arguments, error, message):
    p4, valid, order = (*arguments, "px,py,pz,E")[:3]
    with pytest.raises(error, match=f"^from_padded: {re.escape(message)}"):
        Jets.from_padded(p4, valid, order=order)


def test_order_is_required():
    with pytest.raises(TypeError, match="order"):
        Jets.from_padded(BLOCK)
    with pytest.raises(ValueError, match="to_padded: order must be one of"):
        make().to_padded(5, order="pt,eta,phi,m")


def test_numpy_and_torch_share_memory():
    jets = make()
    moved = jets.to(library="torch")
    assert (moved.library, moved.device, len(moved)) == ("torch", "cpu", 4) and moved.offsets_host is jets.offsets_host
    assert moved.p4.data_ptr() == jets.p4.ctypes.data
    assert moved.offsets.data_ptr() == jets.offsets.ctypes.data
    assert moved.columns["kind"].data_ptr() == jets.columns["kind"].ctypes.data
    assert moved.labels["label"].data_ptr() == jets.labels["label"].ctypes.data
    back = moved.to(library="numpy")
    assert back.library == "numpy" and back.p4.ctypes.data == jets.p4.ctypes.data
    assert jets.to().p4 is jets.p4 and moved.to("cpu").p4 is moved.p4 and moved.to(torch.device("cpu")).p4 is moved.p4


def test_what_torch_cannot_share_is_copied():
    jets = make().with_columns(reversed=np.arange(10)[::-1])
    jets.p4.flags.writeable = False
    moved = jets.to(library="torch")
    assert moved.columns["reversed"].tolist() == list(range(9, -1, -1))
    moved.p4[0] = -1.0
    assert jets.p4[0].min() == 0.0 and moved.offsets.data_ptr() == jets.offsets.ctypes.data


def test_torch_with_gradient_becomes_numpy():
    jets = make().to(library="torch")
    wanting = Jets(jets.p4.clone().requires_grad_(), jets.offsets)
    assert wanting.to(library="numpy").p4.tolist() == jets.p4.tolist()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"library": "jax"}, 'library must be "numpy", "cupy" or "torch", got \'jax\'; choose one'),
        ({"device": "tpu"}, 'device must be "cpu", "cuda" or "cuda:<number>", got \'tpu\'; choose one'),
        ({"device": "cuda", "library": "numpy"}, 'library "numpy" has no device "cuda"; use "torch", or leave out'),
        ({"device": "cpu", "library": "cupy"}, 'library "cupy" has no device "cpu"; use "torch", or leave out'),
    ],
)
def test_to_refuses(arguments, message):
    with pytest.raises(ValueError, match=f"^to: {re.escape(message)}"):
        make().to(**arguments)


@pytest.mark.parametrize("arguments", [{"device": "cuda"}, {"device": "cuda:1"}, {"library": "cupy"}])
def test_missing_cupy_names_the_extra(arguments, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "cupy", None)
    with pytest.raises(ImportError, match=r"cupy is needed here: install fasttag-hep with the extra cuda13 or cuda12"):
        make().to(**arguments)


@pytest.mark.parametrize("module", interop._EXTRAS)
def test_every_missing_package_names_its_extra(module, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, module, None)
    with pytest.raises(ImportError, match=f"^{module} is needed here: install fasttag-hep with the extra [a-z]+"):
        interop.require(module)


def test_astype():
    jets = make()
    single = jets.astype("float32")
    assert single.p4.dtype == np.float32 and listed(single) == listed(jets) and jets.astype("float64") is jets
    assert jets.to(library="torch").astype("float32").p4.dtype == torch.float32
    with pytest.raises(TypeError, match="astype: dtype must be float32 or float64, got 'float16'"):
        jets.astype("float16")


@pytest.mark.parametrize("part", [slice(None), slice(1, 3), slice(0, 0)])
def test_to_jagged(part):
    jets = make().to(library="torch")[part]
    jagged = jets.to_jagged()
    assert jagged.values().untyped_storage().data_ptr() == jets.p4.untyped_storage().data_ptr()
    assert jagged.offsets().tolist() == jets.compact().offsets.tolist()
    flat = [tuple(row) for jet in jagged.unbind() for row in jet.tolist()]
    assert flat == [row[1:] for _, rows in listed(jets) for row in rows]


def test_to_jagged_wants_torch():
    with pytest.raises(TypeError, match="to_jagged: jets must be torch, got numpy; use"):
        make().to_jagged()


def test_to_awkward_shares_memory():
    jets = make()
    array = jets.to_awkward()
    assert str(array.type) == (
        "4 * var * Momentum4D[px: float64, py: float64, pz: float64, E: float64, kind: int8]"
    ) and ak.num(array).tolist() == [2, 0, 4, 1]
    for row, name in zip(jets.p4, ("px", "py", "pz", "E")):
        assert np.shares_memory(array.layout.content.content(name).data, row)
    assert np.shares_memory(array.layout.content.content("kind").data, jets.columns["kind"])
    assert jets[2:].to_awkward().px.tolist() == [[3, 4, 5, 6], [7]]
    assert jets.to(library="torch").to_awkward().E.tolist() == array.E.tolist()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(
    "key",
    [slice(None), slice(1, None), slice(None, None, -1), slice(0, 0), [2, 0, 0], [True, False, True, True]],
    ids=str,
)
def test_awkward_round_trip(key, dtype):
    jets = make(dtype=dtype)
    again = Jets.from_awkward(jets.to_awkward()[key], columns=["kind"], labels={"label": jets.labels["label"][key]})
    assert listed(again) == listed(jets[key]) and again.p4.dtype == dtype


@pytest.mark.parametrize(
    "change",
    [
        lambda a: a[a.px > 4],  # a ListArray or IndexedArray of constituents
        lambda a: a[ak.argsort(a.py, ascending=False)],
        lambda a: ak.to_packed(a)[[3, 2]],
        lambda a: ak.to_regular(a[[2, 2]], axis=1),
        lambda a: ak.from_buffers(*ak.to_buffers(a)),
        lambda a: ak.zip({"px": a.px, "py": a.py, "pz": a.pz, "energy": a.E}),
        lambda a: a.mask[ak.Array([True] * 4)],  # may be missing, none is
    ],
)
def test_from_awkward_in_any_layout(change):
    array = change(make().to_awkward())
    jets = Jets.from_awkward(array)
    assert jets.counts.tolist() == ak.num(array).tolist()
    assert jets.p4[0].tolist() == ak.flatten(array.px).tolist() and jets.p4[1].tolist() == ak.flatten(array.py).tolist()


def test_from_awkward_takes_other_numbers():
    rows = [[{"px": 1, "py": 2, "pz": 3, "E": np.float32(4)}], []]
    assert Jets.from_awkward(ak.Array(rows)).p4.dtype == np.float64


RECORD = {"px": 1.0, "py": 2.0, "pz": 3.0, "E": 4.0}


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([[RECORD], None], "array must have no missing values, got None; use ak.drop_none or ak.fill_none first"),
        ([[RECORD, None]], "px must have no missing values, got None"),
        ([[RECORD, RECORD | {"pz": None}]], "pz must have no missing values, got None"),
        ([RECORD], "array must be jagged records, jets * var * {px, ...}, got 1 * {px: float64"),
        ([[[RECORD]]], "array must be jagged records, jets * var * {px, ...}, got 1 * var * var * {px: float64"),
        ([[{"px": 1.0, "py": 2.0, "pz": 3.0}]], "array must have a field or property E, got px, py, pz; rename fields"),
        ([[{"px": 1.0, "E": 2.0}]], "array must have a field or property py, got px, E"),
    ],
)
def test_from_awkward_refuses(rows, message):
    with pytest.raises(ValueError, match=f"^from_awkward: {re.escape(message)}"):
        Jets.from_awkward(ak.Array(rows))
    with pytest.raises(ValueError, match=r"^from_awkward: array must be jagged records, .*, got <class 'list'>"):
        Jets.from_awkward(rows)


def test_awkward_without_vector():
    """Momentum4D is only a name until someone imports vector."""
    code = "import sys; sys.modules['vector'] = None; import numpy as np; from fasttag import Jets\n"
    code += "jets = Jets(np.ones((4, 2)), np.array([0, 2])); print(Jets.from_awkward(jets.to_awkward()).counts)"
    assert python(code) == "[2]"


@every_library
def test_concatenate(library):
    jets = make().to(library=library)
    joined = Jets.concatenate([jets[2:], jets[:0], jets, jets[1:2]])
    assert listed(joined) == listed(jets)[2:] + listed(jets) + listed(jets)[1:2] and joined.library == library
    check_sound(joined)
    assert listed(Jets.concatenate(jet for jet in jets)) == listed(jets)


@pytest.mark.parametrize(
    ("parts", "error", "message"),
    [
        (lambda jets: [], ValueError, "parts must hold at least one Jets, got none"),
        (lambda jets: [jets, jets.with_columns(x=np.ones(10))], ValueError, "all parts must have the same columns"),
        (lambda jets: [jets.with_labels(x=np.ones(4)), jets], ValueError, "all parts must have the same columns and l"),
        (lambda jets: [jets, jets.astype("float32")], TypeError, "all floats must share one dtype, got parts[0].p4 is"),
        (lambda jets: [jets, jets.to(library="torch")], TypeError, "all arrays must share one library and device"),
    ],
)
def test_concatenate_refuses(parts, error, message):
    with pytest.raises(error, match=f"^concatenate: {re.escape(message)}"):
        Jets.concatenate(parts(make()))


@every_library
def test_pickle(library):
    jets = make().to(library=library)[1:]
    again = pickle.loads(pickle.dumps(jets))
    assert listed(again) == listed(jets) and repr(again) == repr(jets) and again.offsets_host.tolist() == [3, 3, 7, 8]
