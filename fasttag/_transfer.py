"""Jets to a GPU by one copy: packed into one pinned buffer, sent asynchronously, cut apart over there.

`pack`, `unpack`, `send` and `ahead` know no device. `Cupy` and `Torch` are all that does.
"""

from __future__ import annotations

import collections
import math
import threading
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import numpy as np

from fasttag_kernels._dispatch import dtype_of, library_of

from . import interop

if TYPE_CHECKING:
    from .jets import Jets

ALIGNMENT = 256  # bytes, that of CUDA's own allocations
DTYPES = {"bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "float16"}
DTYPES |= {"float32", "float64", "complex64", "complex128"}
T = TypeVar("T")


class Part(NamedTuple):
    """Where an array lies in a buffer of bytes."""

    start: int
    dtype: np.dtype
    shape: tuple[int, ...]


def pack(arrays: list[np.ndarray], empty: Callable[[int], Any]) -> tuple[Any, list[Part]]:
    """The arrays one behind the other in a buffer of bytes, made by `empty(size)`; and where each of them lies."""
    layout, size = [], 0
    for array in arrays:
        layout.append(Part(size, array.dtype.newbyteorder("="), array.shape))
        size += -(array.nbytes // -ALIGNMENT) * ALIGNMENT
    buffer = empty(size)
    for array, place in zip(arrays, unpack(np.asarray(buffer), layout)):
        place[...] = array
    return buffer, layout


def unpack(buffer: Any, layout: list[Part]) -> list[Any]:
    """The arrays in a buffer of any library; they share its memory."""
    found = []
    for start, dtype, shape in layout:
        kind = getattr(interop.require("torch"), dtype.name) if library_of(buffer) == "torch" else dtype
        found.append(buffer[start : start + dtype.itemsize * math.prod(shape)].view(kind).reshape(shape))
    return found


def fits(jets: Jets) -> bool:
    """Whether jets can be packed: numbers that NumPy knows too, none of which requires grad."""
    arrays = [array for _, array in jets._arrays()]
    return all(dtype_of(array) in DTYPES and not getattr(array, "requires_grad", False) for array in arrays)


def send(link: Any, jets: Jets) -> Callable[[], Jets]:
    """Start the copy of jets on the CPU through a `Cupy` or `Torch`.

    What comes back, called once, gives the Jets over there, which the stream then current waits for.
    """
    jets = jets.compact()
    buffer, layout = pack([interop.convert(array, "numpy", "cpu") for _, array in jets._arrays()], link.pinned)
    there, event = link.copy(buffer)
    columns, labels, make, offsets_host = list(jets.columns), list(jets.labels), jets._make, jets.offsets_host

    def receive() -> Jets:
        link.wait(event)
        p4, offsets, *rest = unpack(there, layout)
        return make(p4, offsets, dict(zip(columns, rest)), dict(zip(labels, rest[len(columns) :])), offsets_host)

    return receive


def ahead(items: Generator[T, None, None], start: Callable[[T], Callable[[], Any]]) -> Iterator[Any]:
    """`start(item)()` for each item. Items are made and started in a thread of their own, one ahead of who takes them.

    An error comes where its item would have come. Closing waits for the item in work, and closes `items`.
    """
    reader, abandoned = 0, False

    def step() -> Callable[[], Any] | None:
        nonlocal reader
        reader = threading.get_ident()
        item = next(items, None)
        receive = None if item is None else start(item)
        if abandoned:
            finish(receive)
        return receive

    def finish(receive: Callable[[], Any] | None) -> None:
        """What nobody takes is still being copied to: the stream must know before it uses that memory again."""
        if receive:
            receive()
        items.close()

    thread = ThreadPoolExecutor(1, "fasttag-ahead")
    coming = thread.submit(step)
    try:
        while (receive := coming.result()) is not None:
            coming = thread.submit(step)
            yield receive()
    finally:
        if threading.get_ident() == reader:  # garbage collection in the middle of `step`, which cannot wait for itself
            abandoned = True
            thread.shutdown(wait=False)
        else:
            thread.shutdown()
            finish(None if coming.exception() else coming.result())


class Cupy:
    """Copies to a GPU into CuPy's memory of the stream that is current now; `aside`: on a stream beside it."""

    def __init__(self, device: str, *, aside: bool = False) -> None:
        self.cupy = _with_gpu("cupy")
        self.device = self.cupy.cuda.Device(int(device.partition(":")[2] or 0))
        with self.device:
            self.home = self.cupy.cuda.get_current_stream()
            self.stream = self.cupy.cuda.Stream(non_blocking=True) if aside else self.home

    def pinned(self, size: int) -> np.ndarray:
        _release()
        with self.device:
            return np.frombuffer(self.cupy.cuda.alloc_pinned_memory(size), np.uint8, size)

    def copy(self, buffer: np.ndarray) -> tuple[Any, Any]:
        """The bytes over there, and the event after which they are; it may write only where `home` is done."""
        with self.device:
            with self.home:
                there = self.cupy.empty(buffer.size, np.uint8)
            self.stream.wait_event(self.home.record())
            there.set(buffer, self.stream)
            event = self.stream.record()
        _held.append((event, buffer))
        return there, event

    def wait(self, event: Any) -> None:
        """Later work on the current stream comes after the event, and on `home`, whose memory it is; nobody waits."""
        for stream in (self.home, self.cupy.cuda.get_current_stream(self.device.id)):
            stream.wait_event(event)


class Torch:
    """The same in torch, whose allocator keeps pinned memory until copies from it are done."""

    def __init__(self, device: str, *, aside: bool = False) -> None:
        self.torch = _with_gpu("torch")
        self.home = self.torch.cuda.current_stream(device)
        self.stream = self.torch.cuda.Stream(self.home.device) if aside else self.home

    def pinned(self, size: int) -> Any:
        return self.torch.empty(size, dtype=self.torch.uint8, pin_memory=True)

    def copy(self, buffer: Any) -> tuple[Any, Any]:
        with self.torch.cuda.stream(self.home):
            there = buffer.new_empty(buffer.shape, device=self.home.device)
        self.stream.wait_stream(self.home)
        with self.torch.cuda.stream(self.stream):
            there.copy_(buffer, non_blocking=True)
        return there, self.stream.record_event()

    def wait(self, event: Any) -> None:
        for stream in (self.home, self.torch.cuda.current_stream(self.home.device)):
            stream.wait_event(event)


LINKS: dict[str, Any] = {"cupy": Cupy, "torch": Torch}
_held: collections.deque[tuple[Any, Any]] = collections.deque()
_lock = threading.Lock()


def _release() -> None:
    """Let go of buffers that have been copied. CuPy gives pinned memory that nobody holds to the next who asks."""
    with _lock:
        while _held and _held[0][0].done:
            _held.popleft()


def _with_gpu(library: str) -> Any:
    module = interop.require(library)
    if not module.cuda.is_available():
        raise RuntimeError(
            f"to: a GPU must be there that {library} {module.__version__} can use, got none; "
            "check that nvidia-smi lists one, and that the library was built for CUDA"
        )
    return module
