"""Jets on their way to a GPU. Without one: on `FakeCupy`, whose streams do nothing before somebody waits for them."""

from __future__ import annotations

import contextlib
import gc
import importlib
import importlib.util
import sys
import threading
import types
import weakref

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import fasttag
from fasttag import Jets, _transfer, features, interop, io, models
from fasttag.losses import DisCo
from fasttag_kernels import _dispatch
from toys import listed, make

both_libraries = pytest.mark.parametrize("library", ["cupy", "torch"])
needs_cupy = pytest.mark.skipif(importlib.util.find_spec("cupy") is None, reason="no CuPy")
PARTS = [slice(None), slice(1, 3), slice(2, 2), slice(4, 4)]


class Memory(bytearray):
    """Pinned memory, so that it can be seen to go."""


class Event:
    def __init__(self, stream: Stream) -> None:
        self.stream, self.position = stream, len(stream.work)

    @property
    def done(self) -> bool:
        return self.stream.finished >= self.position


class Stream:
    """Work in order, done when `run` is called; what waits for an event has the other stream run up to it."""

    current: Stream

    def __init__(self, non_blocking: bool = False) -> None:
        self.work: list = []
        self.finished = 0

    def __enter__(self) -> None:
        self.before, Stream.current = Stream.current, self

    def __exit__(self, *_: object) -> None:
        Stream.current = self.before

    def record(self) -> Event:
        return Event(self)

    def wait_event(self, event: Event) -> None:
        self.work.append(lambda: event.stream.run(event.position))

    def run(self, position: int | None = None) -> None:
        position = len(self.work) if position is None else position
        while self.finished < position:
            self.finished += 1
            self.work[self.finished - 1]()


class Array(np.ndarray):
    """Device memory: of the stream that was current when it was made."""

    def set(self, buffer: np.ndarray, stream: Stream) -> None:
        memory, size = weakref.ref(buffer.base), buffer.size

        def copy() -> None:
            assert memory() is not None, "pinned memory was given away before it was copied"
            self[:] = np.frombuffer(memory(), np.uint8, size)

        stream.work.append(copy)
        FakeCupy.copies.append((size, stream, self.home))


class FakeCupy(types.ModuleType):
    """As much of CuPy as a transfer needs."""

    __version__ = "fake"
    copies: list

    def __init__(self) -> None:
        super().__init__("cupy")
        self.default = Stream.current = Stream()
        FakeCupy.copies = []
        self.cuda = types.SimpleNamespace(
            Device=Device,
            Stream=Stream,
            alloc_pinned_memory=lambda size: Memory(b"\xff" * (size + 512)),  # CuPy gives more than asked for
            get_current_stream=lambda device=0: Stream.current,
            is_available=lambda: True,
        )

    @staticmethod
    def empty(size: int, dtype: type) -> Array:
        array = np.full(size, 0xFF, dtype).view(Array)
        array.home = Stream.current
        return array


class Device(contextlib.nullcontext):
    def __init__(self, number: int) -> None:
        super().__init__(self)
        self.id = number


@pytest.fixture
def cupy(monkeypatch):
    fake = FakeCupy()
    monkeypatch.setitem(sys.modules, "cupy", fake)
    monkeypatch.setattr(_transfer, "_held", type(_transfer._held)())
    return fake


@st.composite
def arrays(draw):
    """Offsets and a few arrays of all kinds: also empty, strided, read-only and with swapped bytes."""
    found = [np.arange(3)]
    for _ in range(draw(st.integers(0, 5))):
        dtype = np.dtype(draw(st.sampled_from(sorted(_transfer.DTYPES))))
        shape = draw(st.sampled_from([(0,), (1,), (7,), (300,), (4, 0), (4, 65)]))
        size = int(np.prod(shape)) * dtype.itemsize
        raw = np.random.default_rng(draw(st.integers(0, 9))).integers(
            0, 2 if dtype.kind == "b" else 100, size, np.uint8
        )
        array = raw.view(dtype).reshape(shape)
        array = draw(st.sampled_from([array, array[..., ::-1], array.astype(dtype.newbyteorder(">"))]))
        array.flags.writeable = False
        found.append(array)
    return found


@given(arrays())
def test_what_is_packed_comes_out(given_arrays):
    buffer, layout = _transfer.pack(given_arrays, lambda size: np.full(size, 0xFF, np.uint8))
    for array, part, found in zip(given_arrays, layout, _transfer.unpack(buffer, layout), strict=True):
        assert found.dtype == array.dtype.newbyteorder("=") and found.shape == array.shape
        assert found.tobytes() == array.astype(found.dtype).tobytes()
        assert part.start % _transfer.ALIGNMENT == 0 and (not found.size or np.shares_memory(found, buffer))
    for part, tensor in zip(layout, _transfer.unpack(torch.from_numpy(buffer), layout), strict=True):
        assert tensor.is_contiguous() and tensor.numpy().dtype == part.dtype and tuple(tensor.shape) == part.shape
        assert tensor.numpy().tobytes() == _transfer.unpack(buffer, [part])[0].tobytes()


@needs_cupy
def test_cupy_can_cut_a_buffer_apart():
    """The library itself, on memory of the host."""
    cupy = importlib.import_module("cupy")
    given_arrays = [np.arange(3), np.ones((4, 0), "f4"), np.ones((4, 5)), np.ones(3, bool), np.ones(0, "i1")]
    buffer, layout = _transfer.pack(given_arrays, lambda size: np.empty(size, np.uint8))
    memory = cupy.cuda.UnownedMemory(buffer.ctypes.data, buffer.nbytes, buffer, device_id=0)
    found = _transfer.unpack(cupy.ndarray(buffer.shape, np.uint8, cupy.cuda.MemoryPointer(memory, 0)), layout)
    for array, part, given_array in zip(found, layout, given_arrays, strict=True):
        assert (array.shape, array.dtype) == (part.shape, given_array.dtype) and array.flags.c_contiguous
        assert array.data.ptr == buffer.ctypes.data + part.start or not array.size


@pytest.mark.parametrize("start", ["numpy", "torch"])
@pytest.mark.parametrize("part", PARTS, ids=str)
def test_jets_move_in_one_copy_of_their_own_constituents(cupy, part, start):
    jets = make(counts=(20, 0, 400, 10), before=1000, after=1000).to(library=start)[part]
    expected = listed(jets)
    there = jets.to("cuda", library="cupy")
    ((size, stream, home),) = cupy.copies
    assert stream is home is cupy.default and size < 33 * there.offsets_host[-1] + 5000
    assert there.p4.shape[1] == there.offsets_host[-1] == sum(jets.counts) and there.offsets_host[0] == 0
    assert there.offsets[0] != 0, "somebody waited"
    cupy.default.run()
    assert np.array_equal(there.offsets, there.offsets_host) and listed(there) == expected
    for a, b in (("p4", "float64"), ("offsets", "int64")):
        assert getattr(there, a).dtype == b and getattr(there, a).flags.c_contiguous
    assert there.columns["kind"].dtype == np.int8


def test_pinned_memory_is_kept_until_it_is_copied(cupy):
    first = make().to("cuda")
    assert len(_transfer._held) == 1
    memory = weakref.ref(_transfer._held[0][1].base)
    second = make(counts=(3, 3)).to("cuda")
    assert len(_transfer._held) == 2 and memory() is not None
    cupy.default.run()
    assert listed(first) == listed(make()) and listed(second) == listed(make(counts=(3, 3)))
    make().to("cuda")
    assert len(_transfer._held) == 1 and memory() is None


def test_torch_is_called_the_same_way(monkeypatch):
    """With everything of torch.cuda on the CPU: order of calls, and the arrays."""
    calls = []

    class TorchStream:
        device = torch.device("cpu")

        def __init__(self, name="home"):
            self.name = name if isinstance(name, str) else "side"

        wait_stream = lambda self, other: calls.append((self.name, "waits for", other.name))
        wait_event = lambda self, event: calls.append((self.name, "waits for", event))
        record_event = lambda self: f"event of {self.name}"

    @contextlib.contextmanager
    def stream(it):
        calls.append((it.name, "is current"))
        yield

    current = {"stream": TorchStream("home")}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: current["stream"])
    monkeypatch.setattr(torch.cuda, "Stream", TorchStream)
    monkeypatch.setattr(torch.cuda, "stream", stream)
    monkeypatch.setattr(_transfer.Torch, "pinned", lambda self, size: torch.full((size,), 255, dtype=torch.uint8))
    jets = make()[1:]
    for aside, name in ((False, "home"), (True, "side")):
        calls.clear()
        receive = _transfer.send(_transfer.Torch("cuda", aside=aside), jets)
        assert calls == [("home", "is current"), (name, "waits for", "home"), (name, "is current")]
        current["stream"] = TorchStream("consumer's")
        there = receive()
        current["stream"] = TorchStream("home")
        assert calls[3:] == [(waiting, "waits for", f"event of {name}") for waiting in ("home", "consumer's")]
        assert there.library == "torch" and listed(there) == listed(jets)
    assert listed(jets.to("cuda", library="torch")) == listed(jets)


def test_what_cannot_be_packed():
    jets = make().to(library="torch")
    assert _transfer.fits(jets)
    assert not _transfer.fits(Jets(jets.p4.clone().requires_grad_(), jets.offsets))
    assert not _transfer.fits(jets.with_labels(half=torch.zeros(4, dtype=torch.bfloat16)))
    assert not _transfer.fits(make().with_labels(name=np.array(["a", "b", "c", "d"])))


@pytest.mark.parametrize("library", [pytest.param("cupy", marks=needs_cupy), "torch"])
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu(library):
    message = rf"^to: a GPU must be there that {library} \d+\.\S+ can use, got none; check that nvidia-smi"
    with pytest.raises(RuntimeError, match=message):
        make().to("cuda", library=library)
    with pytest.raises(RuntimeError, match=message):
        next(fasttag.iter_read(io.sample_path(), device="cuda", library=library))


def test_iter_read_refuses(monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", None)
    with pytest.raises(ImportError, match="cupy is needed here: install fasttag-hep with the extra cuda13 or cuda12"):
        next(fasttag.iter_read(io.sample_path(), device="cuda"))
    with pytest.raises(ValueError, match='library "numpy" has no device "cuda"'):
        next(fasttag.iter_read(io.sample_path(), device="cuda", library="numpy"))


@pytest.mark.parametrize("chunk", [700, 4000])
def test_chunks_are_copied_beside_the_stream_of_the_consumer(cupy, chunk):
    whole = fasttag.read(io.sample_path())
    a = 0
    for piece in fasttag.iter_read(io.sample_path(), chunk=chunk, device="cuda", columns=["kind"]):
        assert (piece.offsets[0] != 0) or cupy.default.finished, "somebody waited"
        cupy.default.run()
        expected = whole[a : a + chunk]
        assert len(piece) == len(expected) and listed(piece) == listed(expected)
        a += chunk
    assert a >= len(whole) and len(cupy.copies) == -(len(whole) // -chunk)
    assert all(stream is not home and home is cupy.default for _, stream, home in cupy.copies)


def test_a_copy_waits_for_what_its_memory_was_used_for(cupy):
    """CuPy's pool gives memory freed by the consumer to the next chunk, while kernels on it may still run."""
    link = _transfer.Cupy("cuda", aside=True)
    order = []
    cupy.default.work.append(lambda: order.append("kernel"))
    receive = _transfer.send(link, make())
    link.stream.work.append(lambda: order.append("copy"))
    receive()
    link.stream.run()
    assert order == ["kernel", "copy"]


def test_errors_of_the_reader_come_at_their_chunk(cupy):
    pieces = fasttag.iter_read(io.sample_path(), device="cuda", columns=["colour"])
    with pytest.raises(ValueError, match=r"iter_read: columns must be in .*, got colour"):
        next(pieces)

    def items():
        yield from "ab"
        raise fasttag.CorruptFileError("the third is damaged")

    pieces = _transfer.ahead(items(), lambda item: lambda: item)
    assert next(pieces) == "a" and next(pieces) == "b"
    with pytest.raises(fasttag.CorruptFileError, match="the third"):
        next(pieces)
    assert list(pieces) == [] and readers() == []


def readers():
    return [thread for thread in threading.enumerate() if thread.name.startswith("fasttag-ahead")]


class Reader:
    """Items 0, 1, ... of which it is known which have been made, started and received."""

    def __init__(self, items=10):
        self.made, self.started, self.received, self.closed = [], [], [], False
        self.next = threading.Semaphore(0)
        self.items = items

    def __iter__(self):
        try:
            for i in range(self.items):
                self.made.append(i)
                yield i
        finally:
            self.closed = True

    def start(self, i):
        assert threading.current_thread() is not threading.main_thread()
        self.started.append(i)
        self.next.release()
        return lambda: self.received.append(i) or i


def test_one_item_ahead_and_no_more():
    reader = Reader()
    for i in _transfer.ahead(iter(reader), reader.start):
        for _ in range(1 if i else 2 if i < 9 else 0):
            assert i == 9 or reader.next.acquire(timeout=60), "the next item is not read beside this one"
        assert reader.made == reader.started == list(range(min(i + 2, 10))) and reader.received == list(range(i + 1))
    assert reader.closed and readers() == []


@pytest.mark.parametrize("how", ["close", "forget", "raise"])
def test_leaving_early(how):
    """The thread ends, the file is closed, and the stream knows of the copy that nobody takes."""
    reader = Reader()
    items = iter(reader)
    pieces = _transfer.ahead(items, reader.start)
    assert next(pieces) == 0
    if how == "raise":
        with pytest.raises(KeyError):
            pieces.throw(KeyError("of the consumer"))
    elif how == "close":
        pieces.close()
    del pieces
    gc.collect()
    assert reader.closed and readers() == []
    assert reader.made == reader.started == reader.received == [0, 1]


def test_collected_in_the_middle_of_reading():
    """An iterator in a cycle that nobody closes, found by the garbage collector in the reader's own thread."""
    collect, received = threading.Event(), []

    def items():
        yield 0
        collect.wait()
        gc.collect()
        yield 1

    def use():
        cycle = [_transfer.ahead(items(), lambda i: lambda: received.append(i) or i)]
        cycle.append(cycle)
        assert next(cycle[0]) == 0

    gc.disable()
    try:
        use()
        collect.set()
        for thread in readers():
            thread.join(timeout=60)
    finally:
        gc.enable()
    assert readers() == [] and received == [0, 1], "the stream does not know of the copy that nobody takes"


def test_leaving_early_before_an_error():
    def items():
        yield "a"
        raise fasttag.CorruptFileError("nobody asked")

    pieces = _transfer.ahead(items(), lambda item: lambda: item)
    assert next(pieces) == "a"
    pieces.close()
    assert readers() == []


def test_nothing_is_held_after_leaving(cupy):
    pieces = fasttag.iter_read(io.sample_path(), chunk=1000, device="cuda")
    there = weakref.ref(next(pieces).p4.base)
    pieces.close()
    cupy.default.run()
    assert len(_transfer._held) == 2 and all(event.done for event, _ in _transfer._held)
    for stream in (cupy.default, *(event.stream for event, _ in _transfer._held)):
        stream.work.clear()
    cupy.copies.clear()
    gc.collect()
    assert there() is None


@pytest.mark.parametrize("library", ["numpy", "torch"])
@pytest.mark.parametrize("part", PARTS, ids=str)
def test_every_ragged_kernel_gets_offsets_in_numpy(monkeypatch, part, library):
    """On a GPU they are required; what needs a GPU to be seen missing is looked at here."""
    jets = make(counts=(3, 0, 5, 2)).to(library=library)[part]
    seen = []

    def call(op, *arguments, threads=None, offsets_host=None):
        offsets = dict(zip(_dispatch.TABLE[op]["arguments"], arguments)).get("offsets")
        if offsets is not None:
            assert isinstance(offsets_host, np.ndarray) and offsets_host.tolist() == offsets.tolist()
            seen.append(op)
        return original(op, *arguments, threads=threads, offsets_host=offsets_host)

    original = _dispatch.call
    monkeypatch.setattr(_dispatch, "call", call)
    fasttag.pixelate(jets, channels=("pt", "n_muon"))
    fasttag.knn(jets, 2)
    fasttag.pairwise_features(jets)
    fasttag.jet_p4(jets)
    jets.to_padded(5)
    features.grey_image(jets)
    features.energy_flow(jets)
    for name in ("pfn", "efn"):
        models.build(name)(jets)
    assert set(seen) == {"pixelate", "knn", "pairwise_features", "segment", "pad"}


@pytest.mark.parametrize("library", ["numpy", "torch"])
@pytest.mark.parametrize("counts", [(), (0,), (0, 3, 0, 0, 2, 0), (1, 1)])
def test_the_jet_of_each_constituent(library, counts):
    jets = make(counts).to(library=library).compact()
    for found in (features._jet(jets), features._jet_by_search(jets)):
        assert found.tolist() == np.repeat(np.arange(len(counts)), counts).tolist()


def test_jets_do_not_fetch_offsets_that_they_know(monkeypatch):
    """With NumPy in place of the GPU: nothing is converted to NumPy."""
    jets = make()
    convert = interop.convert

    def sending(array, library, device):
        assert isinstance(array, np.ndarray) and array is not jets.offsets, "offsets were fetched"
        return convert(array, library, device)

    monkeypatch.setattr(interop, "convert", sending)
    jets.with_columns(x=np.zeros(10)).with_labels(y=np.zeros(4))
    Jets.concatenate([jets[1:], jets])
    jets[[2, 0]].astype("float32").compact()


def assert_same_bits(found, expected):
    """After the way back, for jets that start anywhere."""
    found, expected = found.to("cpu", library="numpy").compact(), expected.to("cpu", library="numpy").compact()
    assert list(found.columns) == list(expected.columns) and list(found.labels) == list(expected.labels)
    for (name, a), (_, b) in zip(found._arrays(), expected._arrays(), strict=True):
        assert a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes(), name
    assert np.array_equal(found.offsets_host, expected.offsets_host)


def rich(dtype):
    jets = make(counts=(20, 0, 400, 10), before=100, after=100, dtype=dtype)
    n = jets.p4.shape[1]
    return jets.with_columns(weight=np.linspace(0, 1, n), real=np.arange(n) % 3 == 0).with_labels(
        mass=np.linspace(0, 1, 4, dtype=np.float32), big=np.arange(4, dtype=np.uint8)
    )


@pytest.mark.gpu
@both_libraries
@pytest.mark.parametrize("start", ["numpy", "torch"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("part", PARTS, ids=str)
def test_there_and_back(library, start, dtype, part):
    jets = rich(dtype).to(library=start)[part]
    there = jets.to("cuda", library=library)
    assert (there.library, there.device) == (library, "cuda:0") and there.offsets_host[0] == 0
    assert there.p4.shape[1] == sum(jets.counts)
    Jets(there.p4, there.offsets, there.columns, there.labels)
    assert_same_bits(there, jets)
    assert_same_bits(there[1:], jets[1:])
    assert_same_bits(there.to("cpu"), jets)


def waiting(library):
    """An event behind about a second of work on the current stream."""
    stream = torch.cuda.default_stream() if library == "cupy" else torch.cuda.current_stream()
    torch.cuda.synchronize()
    torch.cuda._sleep(2_000_000_000)
    event = torch.cuda.Event()
    event.record(stream)
    return event


@pytest.mark.gpu
@both_libraries
@pytest.mark.parametrize("start", ["numpy", "torch"])
def test_nobody_waits_for_the_copy(library, start):
    jets = rich("float32").to(library=start)
    for _ in range(3):  # at first memory is pinned, for which CUDA may wait
        before = waiting(library)
        there = jets.to("cuda", library=library)
        again = make((5, 6)).to("cuda", library=library)
        waited = before.query()
        torch.cuda.synchronize()
    assert not waited, "the call waited for the GPU"
    assert_same_bits(there, jets)
    assert_same_bits(again, make((5, 6)))


@pytest.mark.gpu
@both_libraries
def test_operations_on_jets_do_not_wait(library):
    jets = rich("float32").to("cuda", library=library)
    column, label = jets.columns["weight"], jets.labels["mass"]

    def work():
        more = jets.with_columns(x=column).with_labels(y=label)
        joined = Jets.concatenate([more[1:], more])
        return joined[[0, 4, 2]].compact(), joined.to_padded(400, order="E,px,py,pz"), features.energy_flow(joined)

    for _ in range(3):  # at first kernels are compiled and memory is pinned
        before = waiting(library)
        work()
        waited = before.query()
        torch.cuda.synchronize()
    assert not waited, "the calls waited for the GPU"


@pytest.mark.gpu
@both_libraries
@pytest.mark.parametrize("chunk", [300, 1500, 10_000])
def test_iter_read_equals_read(library, chunk):
    whole = fasttag.read(io.sample_path())
    kept, sums = [], []
    for jets in fasttag.iter_read(io.sample_path(), chunk=chunk, device="cuda", library=library):
        assert (jets.library, jets.device) == (library, "cuda:0")
        for _ in range(20):
            p4 = fasttag.jet_p4(jets)
        sums.append(p4)
        kept.append(jets)
    a = 0
    for jets, p4 in zip(kept, sums, strict=True):  # memory of a chunk that is kept is used for no other
        expected = whole[a : a + chunk]
        assert_same_bits(jets, expected)
        np.testing.assert_allclose(interop.convert(p4, "numpy", "cpu"), fasttag.jet_p4(expected), rtol=1e-6, atol=1e-3)
        a += chunk
    assert a >= len(whole)


@pytest.mark.gpu
@both_libraries
def test_iter_read_without_keeping(library):
    """Memory of chunks that are dropped is used again; every result must still be that of its chunk."""
    whole = fasttag.jet_p4(fasttag.read(io.sample_path()))
    for _ in range(3):
        found = [
            fasttag.jet_p4(jets)
            for jets in fasttag.iter_read(io.sample_path(), chunk=250, device="cuda", library=library)
        ]
        host = np.concatenate([interop.convert(p4, "numpy", "cpu") for p4 in found], 1)
        np.testing.assert_allclose(host, whole, rtol=1e-6, atol=1e-3)


@pytest.mark.gpu
@both_libraries
def test_iter_read_on_a_stream_of_ones_own(library):
    expected = fasttag.read(io.sample_path())
    if library == "torch":
        stream = current = torch.cuda.Stream()
        context = torch.cuda.stream(current)
    else:
        stream = context = interop.require("cupy").cuda.Stream(non_blocking=True)
    with context:
        pieces = list(fasttag.iter_read(io.sample_path(), chunk=700, device="cuda", library=library))
        stream.synchronize()
        assert_same_bits(Jets.concatenate(pieces), expected)


@pytest.mark.gpu
@both_libraries
def test_leaving_early_frees_memory(library):
    def used():
        torch.cuda.synchronize()
        if library == "torch":
            return torch.cuda.memory_allocated()
        return interop.require("cupy").get_default_memory_pool().used_bytes()

    gc.collect()
    before = used()
    pieces = fasttag.iter_read(io.sample_path(), chunk=500, device="cuda", library=library)
    next(pieces)
    pieces.close()
    gc.collect()
    assert used() == before and readers() == []


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["pfn", "efn"])
@pytest.mark.parametrize("start", ["numpy", "cupy", "torch"])
def test_scores_on_a_gpu_are_those_on_the_cpu(name, start):
    jets = fasttag.read(io.sample_path(), stop=500)
    torch.manual_seed(1)
    model = models.build(name)
    expected = models.score(model, jets)
    there = jets if start == "numpy" else jets.to("cuda", library=start)
    found = models.score(model.cuda(), there, batch_size=200)
    assert isinstance(found, np.ndarray) and found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=1e-4)


@pytest.mark.gpu
def test_gradients_find_the_way_back():
    """From a model on the GPU to four-vectors on the CPU."""
    jets = fasttag.read(io.sample_path(), stop=5).astype("float64").to(library="torch")
    model = models.build("pfn").double()
    gradients = []
    for device in ("cpu", "cuda"):
        p4 = jets.p4.clone().requires_grad_()
        model.to(device)(Jets(p4, jets.offsets)).square().sum().backward()
        assert p4.grad.device.type == "cpu"
        gradients.append(p4.grad)
    torch.testing.assert_close(*gradients, rtol=1e-6, atol=1e-9 * float(gradients[0].abs().max()))


@pytest.mark.gpu
@pytest.mark.parametrize("weighted", [False, True])
def test_disco_of_a_selection(weighted):
    rng = np.random.default_rng(1)
    score, mass = (torch.from_numpy(rng.uniform(size=500)) for _ in range(2))
    mask, weights = torch.arange(500) % 3 > 0, torch.from_numpy(rng.uniform(size=500)) if weighted else None
    found = []
    for device in ("cpu", "cuda"):
        on = [a if a is None else a.to(device) for a in (score, mass, mask, weights)]
        on[0].requires_grad_()
        loss = DisCo(3.0)(*on)
        found.append((loss.detach().cpu(), torch.autograd.grad(loss, on[0])[0].cpu()))
    for cpu, gpu in zip(*found, strict=True):
        torch.testing.assert_close(gpu, cpu, rtol=1e-9, atol=1e-12)
    nobody = DisCo(3.0)(on[0], on[1], torch.zeros_like(on[2]), on[3])
    assert nobody.item() == 0


@pytest.mark.gpu
@pytest.mark.parametrize("start", ["numpy", "torch"])
def test_gpu_round_trip(start):
    jets = make().to(library=start)
    there = jets.to("cuda")
    assert there.device == "cuda:0" and there.library == {"numpy": "cupy", "torch": "torch"}[start]
    assert listed(there) == listed(jets) and there.offsets_host.tolist() == [0, 2, 2, 6, 7]
    back = there.to("cpu")
    assert (back.library, back.device) == (start, "cpu") and listed(back) == listed(jets)
    for key in (slice(1, 3), [2, 0], [True, False, True, True], slice(None, None, -1)):
        check_on_device(there[key], jets[key])
    check_on_device(Jets.concatenate([there[2:], there]), Jets.concatenate([jets[2:], jets]))
    check_on_device(there.compact(), jets.compact())
    assert there.validate() is there


@pytest.mark.gpu
def test_cupy_and_torch_share_device_memory():
    jets = make().to("cuda")
    moved = jets.to(library="torch")
    assert moved.device == "cuda:0" and moved.p4.data_ptr() == jets.p4.data.ptr
    assert moved.to(library="cupy").p4.data.ptr == jets.p4.data.ptr


def check_on_device(found, expected):
    assert found.device == "cuda:0" and listed(found) == listed(expected)
    Jets(found.p4, found.offsets, found.columns, found.labels)
