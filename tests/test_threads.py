"""The pool of threads: the same bits for any count, from many Python threads, and after fork."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import fasttag
from cases import CASES, OPS
from children import python
from fasttag_kernels import _threads

every_op = pytest.mark.parametrize("op", OPS)


@pytest.fixture
def default_threads():
    """Give the default back afterwards."""
    yield
    fasttag.set_threads(1)


def runner(op):
    """A function of `threads=` that gives the bytes of the op's outputs on a ragged case."""
    arguments = OPS[op].arguments(*CASES["mixed"]())

    def run(**threads):
        result = OPS[op].run(*arguments, **threads)
        return b"".join(np.asarray(x).tobytes() for x in (result if isinstance(result, tuple) else [result]))

    return run


@every_op
@pytest.mark.parametrize("threads", [2, 3, 7, 1000])
def test_the_same_bits_for_any_count(op, threads, default_threads):
    run = runner(op)
    expected = run(threads=1)
    assert run(threads=threads) == expected
    fasttag.set_threads(threads)
    assert run() == expected


def test_default(default_threads, monkeypatch):
    assert fasttag.get_threads() == 1
    fasttag.set_threads(3)
    assert fasttag.get_threads() == 3
    asked = []
    monkeypatch.setattr(_threads, "over", lambda count, threads, *rest: asked.append(threads))
    fasttag.segment(np.ones(4), np.array([0, 2, 4]))
    fasttag.segment(np.ones(4), np.array([0, 2, 4]), threads=2)
    assert asked == [3, 2]


@pytest.mark.parametrize("bad", [0, -1, 1.0, True, "2", None])
def test_set_threads_refuses(bad, default_threads):
    with pytest.raises(ValueError, match=r"^set_threads: threads must be a positive integer, got .*; 1 is serial"):
        fasttag.set_threads(bad)
    assert fasttag.get_threads() == 1


@given(st.integers(0, 40), st.integers(1, 12))
def test_ranges_cover_all_jets_once(count, threads):
    ranges = []
    _threads.over(count, threads, lambda first, last: ranges.append((first, last)))
    ranges.sort()
    assert len(ranges) == min(threads, max(count, 1))
    assert [first for first, _ in ranges] == [0, *(last for _, last in ranges[:-1])] and ranges[-1][1] == count
    sizes = [last - first for first, last in ranges]
    assert max(sizes) - min(sizes) <= 1


def test_never_nested():
    """A kernel that asks for threads inside a worker runs there whole: the pool cannot wait for itself."""
    inner = []

    def outer(first, last):
        if first:
            _threads.over(100, 2, lambda first, last: inner.append((first, last)))

    _threads.over(2, 2, outer)
    assert inner == [(0, 100)]


def test_an_error_in_a_worker_arrives():
    def fail(first, last):
        if first:
            raise ValueError(f"from {first} to {last}")

    with pytest.raises(ValueError, match="from 5 to 10"):
        _threads.over(10, 2, fail)


@every_op
def test_many_python_threads_at_once(op):
    run = runner(op)
    expected = run(threads=1)
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda i: run(threads=1 + i % 4), range(64)))
    assert set(found) == {expected}


FORK = """
import contextlib, os, threading, warnings
import numpy as np
import fasttag
from fasttag_kernels import _threads
warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 warns of every fork with threads about
values, offsets = np.random.default_rng(0).normal(size=(1000, 5)), np.arange(0, 1001, 10)
run = lambda: fasttag.segment(values, offsets, threads=2).tobytes()
expected = run()
for context in (contextlib.nullcontext(), _threads._lock):
    with context:
        child = os.fork()
        if child == 0:
            os._exit(0 if run() == expected and threading.active_count() == 2 else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert run() == expected
"""


def test_after_fork():
    """A child has the pool object without its threads, and perhaps its lock, held by a thread that is gone."""
    python(FORK)


def load(start, times=1):
    """The images of tests/loader_child.py through a DataLoader with two workers, started in this way."""
    script = Path(__file__).with_name("loader_child.py")
    command = [sys.executable, "-W", "error", script, start, str(times)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60 + 5 * times, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [start, str(times)]


@pytest.mark.parametrize("start", ["fork", "spawn", "forkserver"])
def test_data_loader_workers(start):
    load(start)


@pytest.mark.soak
def test_forked_data_loader_workers_a_hundred_times():
    load("fork", 100)
