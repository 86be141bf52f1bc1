"""Features of all pairs of constituents in each jet."""

from typing import Any

from .. import _dispatch

FEATURES = ("ln_kt", "ln_z", "ln_delta", "ln_m2", "dot", "m2_difference", "psi_dot", "psi_m2_difference")


def pairwise_features(
    p4: Any,
    offsets: Any,
    *,
    features: tuple[str, ...] = FEATURES[:4],
    triangle: str = "full",
    m2: str = "stable",
    pairs: int | None = None,
    threads: int | None = None,
    offsets_host: Any = None,
) -> Any:
    """What attention biases, graph networks and Lorentz-equivariant networks see of two constituents i and j.

    With y = 1/2 ln(1 + 2 pz / max(E - pz, 1e-20)) and Delta^2 = (y_i - y_j)^2 + dphi^2, dphi in [-pi, pi],
    and with the metric (+, -, -, -):

    ln_kt = ln max(min(pt_i, pt_j) Delta, eps)           dot = p_i . p_j
    ln_z = ln max(min(pt_i, pt_j) / max(pt_i + pt_j, eps), eps)     m2_difference = (p_i - p_j)^2
    ln_delta = ln max(Delta, eps)                        psi_dot = psi(p_i . p_j)
    ln_m2 = ln max((p_i + p_j)^2, eps)                   psi_m2_difference = psi((p_i - p_j)^2)

    eps = 1e-8 and psi(x) = sign(x) ln(1 + |x|). The first four are those of the Particle Transformer (arXiv:2202.03772,
    section 4) with the clamps and the rapidity of weaver-core; the others those of LorentzNet (arXiv:2201.08187) and
    PELICAN (arXiv:2211.00454). All are symmetric in i and j and computed once.

    Parameters
    ----------
    p4 : (4, N) float32 or float64, rows px, py, pz, E in GeV. Rows that are not contiguous are copied once.
    offsets : (J+1,) int64; may start above zero.
    features : F of the names above, in the order wanted.
    triangle : "full", all n^2 pairs of each jet, row-major; or "lower", the n (n + 1) / 2 pairs i >= j, row-major.
    m2 : "stable": (p_i + p_j)^2 = m_i^2 + m_j^2 + 2 p_i . p_j without cancellation, where
        p_i . p_j = |p_i| |p_j| |n_i - n_j|^2 / 2 + |p_i| d_j + d_i E_j, n = p / |p|, d = E - |p| = m^2 / (E + |p|),
        in float64 whatever the input; also what dot and m2_difference are made of.
        "reference": weaver's order of operations in the dtype of `p4`, each operation rounded, none fused:
        e = E_i + E_j, x, y, z likewise; e e - ((x x + y y) + z z). Its bits are those of weaver on a CPU; in float32 it
        gives rounding noise on the diagonal and for collinear pairs.
    pairs : M where it is known, so that nobody looks at the values of `offsets` for it.
    threads : CPU threads, default `set_threads`.
    offsets_host : `offsets` in NumPy, needed on a GPU, where nobody waits to look at them; `Jets` brings it.

    Returns
    -------
    (F, M) in the dtype of `p4`, M = sum n^2 or sum n (n + 1) / 2 over the jets; jet j comes after all pairs of the jets
    before it. Within 1e-6 max(1, |ln|) of the exact value in float32 (an absolute bound near ln = 0: the logarithm of
    x (1 + 1e-6) is off by 1e-6, however small it is itself), within 1e-6 E_i E_j for dot and m2_difference where
    these exceed the masses.

    Degenerate input: pt = 0 gives phi = 0 and the lower clamp for ln_kt and ln_z. Where E <= pz the clamp 1e-20 gives
    y about 25; where E <= -pz, where weaver gives -inf or NaN, the same clamp on E + pz gives the opposite.
    Where E^2 leaves the range of the dtype (float32: E above 1e18 GeV) so do m^2 and its logarithm.
    Identical constituents, and a constituent with itself, have ln_delta = ln_kt = ln 1e-8. A constituent with NaN or
    inf in it gives NaN in every feature of its pairs, and its jet a gradient of NaN.

    Raises
    ------
    TypeError: no arrays, mixed libraries or devices, wrong dtype. ValueError: wrong shapes, bad offsets, unknown names,
    or `pairs` that is not M.

    Differentiable in `p4` (torch): exact derivatives, summed in float64; 0 where a value is clamped, for ln_m2 of a
    constituent with itself, and by pt and phi at pt = 0; half to each where two pt are equal.

    >>> import numpy as np
    >>> p4 = np.array([[3.0, 0.0], [0.0, 4.0], [0.0, 0.0], [5.0, 4.0]])
    >>> pairwise_features(p4, np.array([0, 2]), features=("dot",))
    array([[16., 20., 20.,  0.]])
    """
    op = "pairwise_features"
    library = _dispatch.check_arrays(op, p4=p4, offsets=offsets)
    _dispatch.check_floats(op, p4=p4)
    _dispatch.check_offsets(op, offsets)
    if p4.ndim != 2 or p4.shape[0] != 4:
        raise ValueError(f"{op}: p4 must have shape (4, N), rows px, py, pz, E, got {tuple(p4.shape)}; transpose it")
    known = isinstance(features, (tuple, list)) and all(name in FEATURES for name in features)
    if not known or not features or len(set(features)) < len(features):
        raise ValueError(
            f"{op}: features must be some of {', '.join(FEATURES)}, each once, got {features!r}; rename them"
        )
    for name, value, choices in (("triangle", triangle, ("full", "lower")), ("m2", m2, ("stable", "reference"))):
        if value not in choices:
            raise ValueError(f'{op}: {name} must be "{choices[0]}" or "{choices[1]}", got {value!r}; choose one')
    pairs = pairs_of(op, pairs, library, offsets, offsets_host, triangle)
    return _dispatch.call(
        op, p4, offsets, pairs, list(features), triangle, m2, threads=threads, offsets_host=offsets_host
    )


def pairs_of(op: str, pairs: Any, library: str, offsets: Any, offsets_host: Any, triangle: str) -> Any:
    """`pairs` where it is given, else counted: for the outputs' shapes, which torch.compile wants to know."""
    if isinstance(pairs, (bool, float)):  # not check_integer: torch.compile traces `pairs` as a symbol
        raise TypeError(f"{op}: pairs must be an integer, got {pairs!r}; leave it out to have it counted")
    device = _dispatch.device_of(offsets)
    _dispatch.backend_for(op, library, device)  # raises where the offsets could not be looked at
    if pairs is not None:
        return pairs
    known = offsets if device == "cpu" else offsets_host
    return 0 if known is None else count_pairs(known, triangle)  # None raises in `call`


def count_pairs(offsets: Any, triangle: str) -> int:
    """M of these jets, sum n^2 or sum n (n + 1) / 2."""
    counts = offsets[1:] - offsets[:-1]
    return int((counts * counts if triangle == "full" else counts * (counts + 1) // 2).sum())


def check_values(p4: Any, offsets: Any, pairs: int, features: list, triangle: str, m2: str) -> None:
    _dispatch.check_offset_values("pairwise_features", offsets, p4.shape[1])
    expected = count_pairs(offsets, triangle)
    if pairs != expected:
        raise ValueError(
            f"pairwise_features: pairs must be {expected} here, got {pairs}; leave it out to have it counted"
        )


def outputs(p4: Any, offsets: Any, pairs: int, features: list, triangle: str, m2: str) -> tuple:
    return (((len(features), pairs), _dispatch.dtype_of(p4)),)
