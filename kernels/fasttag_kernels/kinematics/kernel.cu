// A thread per four-vector, in float64. The formulas are those of reference.py.
#define ALONG_BEAM 1e5

KERNEL kinematics(const REAL* __restrict__ px, const REAL* __restrict__ py, const REAL* __restrict__ pz, const REAL* __restrict__ e, int64 n, REAL* __restrict__ out) {
  const int64 i = (int64)blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= n) return;
  const double x = px[i], y = py[i], z = pz[i], energy = e[i], size = fabs(z);
  const double nothing = isfinite(x) && isfinite(y) && isfinite(z) && isfinite(energy) ? 0.0 : NOT_A_NUMBER;
  const double pt2 = x * x + y * y, pt = sqrt(pt2), sign = z < 0.0 ? -1.0 : 1.0;
  const double m2 = fmax((energy + z) * (energy - z) - pt2, 0.0);
  double rapidity = ALONG_BEAM + size, eta = ALONG_BEAM, phi = 0.0;
  if (pt > 0.0 || energy > size) rapidity = log((energy + size) / sqrt(pt2 + m2));
  if (pt > 0.0) eta = log((sqrt(pt2 + z * z) + size) / pt), phi = atan2(y, x);
  out[i] = (REAL)(pt + nothing);
  out[n + i] = (REAL)(sign * rapidity + nothing);
  out[2 * n + i] = (REAL)(sign * eta + nothing);
  out[3 * n + i] = (REAL)(phi + nothing);
  out[4 * n + i] = (REAL)(sqrt(m2) + nothing);
}

KERNEL kinematics_gradient(const REAL* __restrict__ gradient, const REAL* __restrict__ px, const REAL* __restrict__ py, const REAL* __restrict__ pz, const REAL* __restrict__ e, int64 n, REAL* __restrict__ grad_p4) {
  const int64 i = (int64)blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= n) return;
  const double x = px[i], y = py[i], z = pz[i], energy = e[i];
  const double g_pt = gradient[i], g_y = gradient[n + i], g_eta = gradient[2 * n + i], g_phi = gradient[3 * n + i], g_mass = gradient[4 * n + i];
  const double pt2 = x * x + y * y, pt = sqrt(pt2), p = sqrt(pt2 + z * z), mt2 = (energy + z) * (energy - z);
  double by_pt = g_pt - g_eta * z / (pt * p), by_pz = g_eta / p, by_e;
  if (mt2 > pt2) {
    const double by_mass = g_mass / sqrt(mt2 - pt2);
    by_pt -= by_mass * pt;
    by_pz += g_y * energy / mt2 - by_mass * z;
    by_e = by_mass * energy - g_y * z / mt2;
  } else {
    const double sign = z < 0.0 ? -1.0 : 1.0;
    by_pt -= g_y * sign / pt;
    by_pz += g_y / (energy + fabs(z));
    by_e = g_y * sign / (energy + fabs(z));
  }
  const bool moves = pt2 != 0.0;
  grad_p4[i] = moves ? (REAL)(by_pt * x / pt - g_phi * y / pt2) : (REAL)0;
  grad_p4[n + i] = moves ? (REAL)(by_pt * y / pt + g_phi * x / pt2) : (REAL)0;
  grad_p4[2 * n + i] = moves ? (REAL)by_pz : (REAL)0;
  grad_p4[3 * n + i] = moves ? (REAL)by_e : (REAL)0;
}
