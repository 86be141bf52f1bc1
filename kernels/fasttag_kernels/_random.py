"""Counter-based random numbers: the same bits for any order of work, and on any device."""

from numba import uint32, uint64

from ._numba import helper


@helper
def philox(c0, c1, c2, c3, k0, k1):
    """Philox4x32-10: four uint32 of a counter of four and a key of two, all uint32.

    Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC11, doi:10.1145/2063384.2063405.
    Branch-free: LLVM packs a loop that calls it.
    """
    for _ in range(10):
        a, b = uint64(0xD2511F53) * uint64(c0), uint64(0xCD9E8D57) * uint64(c2)
        c0 = uint32(uint32(b >> uint64(32)) ^ uint32(c1 ^ k0))
        c2 = uint32(uint32(a >> uint64(32)) ^ uint32(c3 ^ k1))
        c1, c3 = uint32(b), uint32(a)
        k0, k1 = uint32(k0 + uint32(0x9E3779B9)), uint32(k1 + uint32(0xBB67AE85))
    return c0, c1, c2, c3
