"""Philox: the published known answers, by the kernels' helper and by the oracle."""

from __future__ import annotations

import numpy as np
import pytest

from fasttag_kernels import _random
from fasttag_kernels._numba import kernel
from fasttag_kernels.particle_attention import reference


@kernel
def _fill(counter, key, out):
    for i in range(out.shape[1]):
        a, b, c, d = counter[0, i], counter[1, i], counter[2, i], counter[3, i]
        out[0, i], out[1, i], out[2, i], out[3, i] = _random.philox(a, b, c, d, key[0], key[1])


def by_kernel(counter, key):
    out = np.zeros((4, len(counter[0])), np.uint32)
    _fill(np.array(counter, np.uint32), np.array(key, np.uint32), out)
    return out


KNOWN = [  # counter, key, result of ten rounds: kat_vectors of Random123, doi:10.1145/2063384.2063405
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
]


@pytest.mark.parametrize("words", KNOWN)
def test_known_answers(words):
    counter, key, expected = ([int(word, 16) for word in text.split()] for text in words)
    assert by_kernel([[word] * 37 for word in counter], key).T.tolist() == [expected] * 37
    assert reference.philox(counter, key).tolist() == expected


def test_lanes_are_independent():
    rng = np.random.default_rng(1)
    counter, key = rng.integers(0, 1 << 32, (4, 1001)), (0x89ABCDEF, 0x01234567)
    assert np.array_equal(by_kernel(counter, key), reference.philox(counter, key))
