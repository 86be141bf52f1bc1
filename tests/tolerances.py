"""How far a kernel may be from its float64 oracle, each number with its reason.

An output passes where |kernel - oracle| <= rtol |oracle| + atol * scale; the scale comes with the case (tests/cases.py).
"""

EPS32, EPS64 = 2.0**-23, 2.0**-52

TOLERANCES = {
    # evaluated in float64 and rounded once: half an ulp, and 4 ulp of float64 of the scale the formula passes through
    ("kinematics", "float32"): (0.5 * EPS32, 8 * EPS64),
    ("kinematics", "float64"): (4 * EPS64, 8 * EPS64),
    # summed in float64 in another order than NumPy's pairwise sums: n/2 ulp of the sum of absolute values, n = 5000
    ("segment", "float32"): (0.5 * EPS32, 2500 * EPS64),
    ("segment", "float64"): (EPS64, 2500 * EPS64),
    # copies
    ("pad", "float32"): (0.0, 0.0),
    ("pad", "float64"): (0.0, 0.0),
    # pixels are summed in the dtype of the image: at most k/2 ulp for k constituents in a pixel, and k = 5000 in one case
    ("pixelate", "float32"): (2500 * EPS32, EPS32),
    ("pixelate", "float64"): (2500 * EPS64, 4 * EPS64),
}
