"""The one pool of threads. Kernels are serial and release the GIL; jets are shared out here, never inside a kernel."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

_default = 1
_pool: ThreadPoolExecutor | None = None
_pool_size = 0
_lock = threading.Lock()
_inside = threading.local()


def set_threads(n: int) -> None:
    """Set how many threads CPU operations use where their own `threads=` is not given (1 at start).

    Results are the same to the bit for any count. Raises ValueError unless n is a positive integer.
    """
    global _default
    _default = _checked("set_threads", n)


def get_threads() -> int:
    """The default set by `set_threads`."""
    return _default


def resolve(op: str, threads: int | None) -> int:
    """The number of threads to use, checked."""
    return _default if threads is None else _checked(op, threads)


def _checked(op: str, threads: int) -> int:
    if isinstance(threads, bool) or not hasattr(threads, "__index__") or threads < 1:
        raise ValueError(f"{op}: threads must be a positive integer, got {threads!r}; 1 is serial")
    return int(threads)


def over(count: int, threads: int, kernel: Callable[..., None], *arguments: object) -> None:
    """Call kernel(first, last, *arguments) on consecutive ranges that together are 0..count."""
    threads = min(threads, count)
    if threads <= 1 or getattr(_inside, "worker", False):
        kernel(0, count, *arguments)
        return
    bounds = [count * i // threads for i in range(threads + 1)]
    futures = [
        _executor(threads - 1).submit(_work, kernel, bounds[i], bounds[i + 1], arguments) for i in range(1, threads)
    ]
    kernel(bounds[0], bounds[1], *arguments)
    for future in futures:
        future.result()


def _work(kernel: Callable[..., None], first: int, last: int, arguments: tuple) -> None:
    _inside.worker = True
    kernel(first, last, *arguments)


def _executor(size: int) -> ThreadPoolExecutor:
    global _pool, _pool_size
    with _lock:
        if _pool is None or _pool_size < size:
            _pool = ThreadPoolExecutor(size, thread_name_prefix="fasttag")
            _pool_size = size
        return _pool


def _after_fork() -> None:
    """A forked child has the pool object but not its threads, and perhaps a held lock."""
    global _pool, _lock
    _pool, _lock = None, threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
