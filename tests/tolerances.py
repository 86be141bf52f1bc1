"""How far a kernel may be from its float64 oracle, each number with its reason.

An output passes where |kernel - oracle| <= rtol |oracle| + atol * scale; the scale comes with the op (tests/cases.py).
"""

EPS32, EPS64 = 2.0**-23, 2.0**-52

TOLERANCES = {
    # evaluated in float64 and rounded once: half an ulp, and 4 ulp of float64 of the scale the formula passes through
    ("kinematics", "float32"): (0.5 * EPS32, 8 * EPS64),
    ("kinematics", "float64"): (4 * EPS64, 8 * EPS64),
    # scale = n/2 sum |x|: the bound of n additions in float64, against exact sums; float32 is rounded once more
    ("segment", "float32"): (0.5 * EPS32, EPS64),
    ("segment", "float64"): (0.0, EPS64),
    # copies
    ("pad", "float32"): (0.0, 0.0),
    ("pad", "float64"): (0.0, 0.0),
    # scale = n/2 pixel: the bound of n additions in the dtype of the image. In float64 it comes three times, in the
    # kernel's pixel, its sum over the window and the oracle's pixel; division and product round four times, half an ulp
    ("pixelate", "float32"): (0.5 * EPS32, EPS32),
    ("pixelate", "float64"): (2 * EPS64, 3 * EPS64),
    # the oracle rounds in the same dtype and order, and the order of neighbours is total
    ("knn", "float32"): (0.0, 0.0),
    ("knn", "float64"): (0.0, 0.0),
    # scale = n/2 (S_xx / V_xx + S_yy / V_yy): V = S - 2 M + T, the latter two bounded by S, so 4 times n/2 additions,
    # and as many in the row means that M and T are made of; float32 is rounded once more
    ("distance_correlation", "float32"): (0.5 * EPS32, 8 * EPS64),
    ("distance_correlation", "float64"): (0.0, 8 * EPS64),
    # a logarithm of 1 ulp, or two for psi, and half an ulp each for a sum or product around it; scale =
    # reference.rounding_scale: roundings in the dtype before the logarithm and those in float64 before them
    ("pairwise_features", "float32"): (2 * EPS32, EPS32),
    ("pairwise_features", "float64"): (2 * EPS64, EPS64),
    # a difference and a product, half an ulp each, the first of them relative to |value| + |center|; limits are exact
    ("standardize", "float32"): (1.5 * EPS32, 0.5 * EPS32),
    ("standardize", "float64"): (1.5 * EPS64, 0.5 * EPS64),
    # arguments of the logarithms have the oracle's bits; a logarithm is good to 1 ulp
    ("pair_grid", "float32"): (EPS32, 0.0),
    ("pair_grid", "float64"): (EPS64, 0.0),
    # exponentials of 1.1 or 1.2 ulp in the row and in its jet's sum, roundings of quotient and result; half an ulp of
    # scale: the differences that go into the exponentials, and of float64 n additions
    ("segment_softmax", "float32"): (2.7 * EPS32, 0.5 * EPS32),
    ("segment_softmax", "float64"): (4 * EPS64, 0.5 * EPS64),
    # scale: the bounds of GELU through LayerNorm, and 2 ulp of the normalised number; then products and their sum. In
    # float64 the oracle is bounded no better, so twice
    ("linear", "float32"): (0.5 * EPS32, EPS32),
    ("linear", "float64"): (EPS64, 2 * EPS64),
    ("residual", "float32"): (0.5 * EPS32, EPS32),
    ("residual", "float64"): (EPS64, 2 * EPS64),
    # scale = reference.rounding_scale: half an eps of every number that is rounded, times the slopes it then meets
    ("pair_bias", "float32"): (0.0, EPS32),
    ("pair_bias", "float64"): (0.0, EPS64),
    # scale = reference.rounding_scale counts the roundings, in float64 once more for the oracle's; one of the result
    ("particle_attention", "float32"): (EPS32, EPS32),
    ("particle_attention", "float64"): (EPS64, 2 * EPS64),
    # scale = reference.rounding_scale: half of the roundings, each by half an ulp of all terms of all sums; the oracle
    # in float64 has as many
    ("edge_conv", "float32"): (0.5 * EPS32, EPS32),
    ("edge_conv", "float64"): (0.5 * EPS64, 2 * EPS64),
    # scale = reference.rounding_scale: what the output moves by when each step is changed by its own size, at random; a
    # step of at most 32 terms is off by about an ulp of the largest of its token, in float64 the oracle's as well
    ("particle_encoder", "float32"): (0.0, EPS32),
    ("particle_encoder", "float64"): (0.0, EPS64),
    # scale = reference.rounding_scale: what the output moves by when each step is changed at random by its own scale,
    # which bounds its rounding; in float64 there is the oracle's as well, far below
    ("particlenet_encoder", "float32"): (0.0, EPS32),
    ("particlenet_encoder", "float64"): (0.0, EPS64),
}
