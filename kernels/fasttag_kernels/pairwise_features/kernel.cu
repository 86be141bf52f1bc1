// Pairs of constituents. FEATURES has one bit for each feature that is wanted, REFERENCE says which m^2.
//
// Whatever belongs to one constituent is made once per block and kept in shared memory. Differences and products are
// float64, logarithms in the dtype. Clamps keep NaN, so a constituent that is not finite is NaN from the start.
enum { LN_KT, LN_Z, LN_DELTA, LN_M2, DOT, M2_DIFFERENCE, PSI_DOT, PSI_M2_DIFFERENCE, NAMES };
constexpr double EPS = 1e-8, E_MINUS_PZ = 1e-20, PI = 3.14159265358979323846;
constexpr REAL LN_EPS = (REAL)-18.420680743952367;

__device__ constexpr int has(int feature) { return FEATURES >> feature & 1; }
constexpr bool APART = has(LN_KT) || has(LN_DELTA), SHARED = has(LN_KT) || has(LN_Z), ANGLES = APART || SHARED;
constexpr bool WEAVERS = has(LN_M2) && REFERENCE, PRODUCTS = FEATURES >> DOT || (has(LN_M2) && !REFERENCE);

constexpr int T = 16;         // a tile of a warp is T x T pairs, two rows at a time
constexpr int ITEM = 64;      // constituents of a block, and its threads
constexpr int BESIDE = 32;    // constituents before these that are at hand at a time
constexpr int WARPS = ITEM / WARP;
constexpr int STAGE = 64 / sizeof(REAL);  // rows of a tile that are transposed at once: columns of 64 bytes

struct Vector {
  REAL x, y, z, e;
};
struct __align__(16) Angles {
  double y, phi;
  REAL pt, ln_pt;
};
struct __align__(16) Invariants {
  double x, y, z, p, d, m2, e;  // direction p / |p|, |p|, E - |p|, m^2, E
};

__device__ __forceinline__ float ln(float x) { return logf(x); }
__device__ __forceinline__ double ln(double x) { return log(x); }
__device__ __forceinline__ float ratio(float a, float b) { return __fdividef(a, b); }  // 2 ulp, a third of the instructions
__device__ __forceinline__ double ratio(double a, double b) { return a / b; }
__device__ __forceinline__ float psi(float x) { return copysignf(log1pf(fabsf(x)), x); }
__device__ __forceinline__ double psi(double x) { return copysign(log1p(fabs(x)), x); }
__device__ __forceinline__ float product(float a, float b) { return __fmul_rn(a, b); }  // never part of an FMA
__device__ __forceinline__ double product(double a, double b) { return __dmul_rn(a, b); }
template <class R> __device__ __forceinline__ R at_least(R x, double floor) { return x < (R)floor ? (R)floor : x; }

__device__ __forceinline__ Vector vector_of(const REAL* __restrict__ px, const REAL* __restrict__ py, const REAL* __restrict__ pz, const REAL* __restrict__ e, int64 k) {
  const Vector v = {px[k], py[k], pz[k], e[k]};
  if (isfinite(v.x) && isfinite(v.y) && isfinite(v.z) && isfinite(v.e)) return v;
  const REAL nothing = (REAL)NOT_A_NUMBER;
  return {nothing, nothing, nothing, nothing};
}

__device__ __forceinline__ Angles angles_of(const Vector& v) {
  const double x = v.x, y = v.y, z = v.z, minus = at_least(v.e - z, E_MINUS_PZ);
  const REAL pt = (REAL)sqrt(x * x + y * y);
  return {0.5 * log(at_least(minus + 2.0 * z, E_MINUS_PZ) / minus), atan2(y, x), pt, ln(pt)};
}

// m^2 with twice the digits of a float64 between.
__device__ __forceinline__ double mass2(double x, double y, double z, double e) {
  const double xx = product(x, x), yy = product(y, y), zz = product(z, z), ee = product(e, e);
  double low = (fma(e, e, -ee) - fma(z, z, -zz)) - (fma(x, x, -xx) + fma(y, y, -yy)), high = ee;
  const double squares[] = {zz, yy, xx};
#pragma unroll
  for (int q = 0; q < 3; q++) {
    const double next = high - squares[q], back = high - next;
    low += (high - (next + back)) - (squares[q] - back);
    high = next;
  }
  return high + low;
}

__device__ __forceinline__ Invariants invariants_of(const Vector& v) {
  const double x = v.x, y = v.y, z = v.z, e = v.e, p = sqrt(x * x + y * y + z * z), per_p = 1.0 / (p > 0.0 ? p : 1.0);
  const double m2 = mass2(x, y, z, e);
  return {x * per_p, y * per_p, z * per_p, p, e > 0.0 ? m2 / (e + p) : e - p, m2, e};
}

// p_i . p_j without cancellation, as the docstring has it.
__device__ __forceinline__ double dot_of(const Invariants& a, const Invariants& b) {
  const double x = a.x - b.x, y = a.y - b.y, z = a.z - b.z;
  return 0.5 * a.p * b.p * (x * x + y * y + z * z) + (a.p * b.d + a.d * b.e);
}

__device__ __forceinline__ REAL weavers_m2(const Vector& a, const Vector& b) {
  const REAL e = a.e + b.e, x = a.x + b.x, y = a.y + b.y, z = a.z + b.z;
  return product(e, e) - ((product(x, x) + product(y, y)) + product(z, z));
}

__device__ __forceinline__ int64 place(int64 i, int64 j, int64 n, int full) { return (full ? i * n : i * (i + 1) / 2) + j; }

constexpr int WANTED = has(LN_KT) + has(LN_Z) + has(LN_DELTA) + has(LN_M2) + has(DOT) + has(M2_DIFFERENCE) + has(PSI_DOT) + has(PSI_M2_DIFFERENCE);

// Pointers from shared memory, of which the compiler does not know by itself that they lead to global memory.
template <int n> __device__ __forceinline__ void take(REAL* (&to)[n], REAL* const (&from)[n]) {
#pragma unroll
  for (int s = 0; s < n; s++) {
    to[s] = from[s];
    __builtin_assume(__isGlobal(to[s]));
  }
}

// A block per item of the work list: the lower tiles of its rows, each written as it is and, for "full", transposed.
KERNEL __launch_bounds__(ITEM, 8) pair_features(const REAL* __restrict__ px, const REAL* __restrict__ py, const REAL* __restrict__ pz, const REAL* __restrict__ e, const int64* __restrict__ offsets, const int64* __restrict__ starts, const int2* __restrict__ items, int full, REAL* __restrict__ ln_kt, REAL* __restrict__ ln_z, REAL* __restrict__ ln_delta, REAL* __restrict__ ln_m2, REAL* __restrict__ dot, REAL* __restrict__ m2_difference, REAL* __restrict__ psi_dot, REAL* __restrict__ psi_m2_difference) {
  __shared__ Vector vectors[ITEM + BESIDE];
  __shared__ Angles angles[ITEM + BESIDE];
  __shared__ Invariants invariants[ITEM + BESIDE];
  __shared__ REAL stage[WARPS][WANTED][STAGE][T + 1];
  __shared__ REAL* heads[2][WANTED];  // of each feature, where row `first` and row `left` begin: offsets from there have 32 bits
  REAL* const out[NAMES] = {ln_kt, ln_z, ln_delta, ln_m2, dot, m2_difference, psi_dot, psi_m2_difference};
  const int2 item = items[blockIdx.x];
  const int64 start = offsets[item.x], base = starts[item.x];
  const int n = (int)(offsets[item.x + 1] - start), first = item.y * ITEM, across = (min(ITEM, n - first) + T - 1) / T;
  const int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;

  // columns from those of the item itself to the left, BESIDE at a time
  for (int left = first; left >= 0; left -= BESIDE) {
    const int slots = left == first ? 0 : ITEM;
    const int c = left + threadIdx.x;
    __syncthreads();
    if (threadIdx.x == 0)
#pragma unroll
      for (int f = 0, s = 0; f < NAMES; f++)
        if (has(f)) {
          heads[0][s] = out[f] + (base + place(first, 0, n, full));
          heads[1][s++] = out[f] + (base + place(left, 0, n, full));
        }
    if (c < n && (left == first || threadIdx.x < BESIDE)) {
      const Vector v = vector_of(px, py, pz, e, start + c);
      if (WEAVERS) vectors[slots + threadIdx.x] = v;
      if (ANGLES) angles[slots + threadIdx.x] = angles_of(v);
      if (PRODUCTS) invariants[slots + threadIdx.x] = invariants_of(v);
    }
    __syncthreads();
    const int tiles = left == first ? across * (across + 1) / 2 : across * (BESIDE / T);
    for (int tile = warp; tile < tiles; tile += WARPS) {
      int down = 0, over = tile;
      if (left == first)
        while (over > down) over -= ++down;
      else
        down = tile / (BESIDE / T), over = tile % (BESIDE / T);
      const int row = first + T * down, column = left + T * over;
      for (int staged = 0; staged < T && row + staged < n; staged += STAGE) {
        // on the diagonal in two halves, of which the right one has rows below it only
        const int width = row == column ? T / 2 : T, high = WARP / width;
        for (int half = 0; half < T; half += width) {
          const int c = half + lane % width, j = column + c, other = slots + T * over + c;
          const Vector v = vectors[other];
          const Angles angle = angles[other];
          const Invariants with = invariants[other];
          int r = max(half - staged, 0) + lane / width;
          const int a = T * down + staged + r;
          unsigned to = (full ? a * n : a * first + a * (a + 1) / 2) + j;
          REAL* head[WANTED];
          take(head, heads[0]);
          for (; r < STAGE; r += high) {
            const int i = row + staged + r, self = T * down + staged + r;
            if (j <= i && i < n) {
              REAL value[NAMES];
              if (APART) {
                const double dy = angles[self].y - angle.y, dphi = PI - fabs(PI - fabs(angles[self].phi - angle.phi));
                const REAL ln_angle = (REAL)0.5 * ln((REAL)(dy * dy + dphi * dphi));
                value[LN_KT] = at_least(min(angles[self].ln_pt, angle.ln_pt) + ln_angle, LN_EPS);
                value[LN_DELTA] = at_least(ln_angle, LN_EPS);
              }
              if (SHARED) {
                const REAL low = min(angles[self].pt, angle.pt), total = angles[self].pt + angle.pt;
                value[LN_Z] = ln(at_least(ratio(low, at_least(total, EPS)), EPS));
              }
              if (WEAVERS) value[LN_M2] = ln(at_least(weavers_m2(vectors[self], v), EPS));
              if (PRODUCTS) {
                const double product = dot_of(invariants[self], with), masses = invariants[self].m2 + with.m2;
                if (!WEAVERS) value[LN_M2] = ln(at_least((REAL)(masses + 2.0 * product), EPS));
                value[DOT] = (REAL)product;
                value[M2_DIFFERENCE] = (REAL)(masses - 2.0 * product);
                value[PSI_DOT] = psi(value[DOT]);
                value[PSI_M2_DIFFERENCE] = psi(value[M2_DIFFERENCE]);
              }
#pragma unroll
              for (int f = 0, s = 0; f < NAMES; f++)
                if (has(f)) {
                  head[s][to] = stage[warp][s][r][c] = value[f];
                  s++;
                }
            }
            to += full ? high * n : high * i + high * (high + 1) / 2;
          }
        }
        __syncwarp();
        const int below = row + staged + lane % STAGE;
        unsigned to = (T * over + lane / STAGE) * n + below;
        REAL* head[WANTED];
        take(head, heads[1]);
        for (int c = lane / STAGE; full && c < T; c += WARP / STAGE) {
          if (column + c < below && below < n)
#pragma unroll
            for (int s = 0; s < WANTED; s++) head[s][to] = stage[warp][s][lane % STAGE][c];
          to += WARP / STAGE * n;
        }
        __syncwarp();
      }
    }
  }
}

// A thread per constituent sums over its partners in their order. A feature that is not wanted has no gradient.
KERNEL __launch_bounds__(ITEM, 8) pair_gradient(const REAL* __restrict__ ln_kt, const REAL* __restrict__ ln_z, const REAL* __restrict__ ln_delta, const REAL* __restrict__ ln_m2, const REAL* __restrict__ dot, const REAL* __restrict__ m2_difference, const REAL* __restrict__ psi_dot, const REAL* __restrict__ psi_m2_difference, const REAL* __restrict__ px, const REAL* __restrict__ py, const REAL* __restrict__ pz, const REAL* __restrict__ e, const int64* __restrict__ offsets, const int64* __restrict__ starts, const int2* __restrict__ items, int full, int64 total, REAL* __restrict__ grad_p4) {
  __shared__ Vector vectors[ITEM];
  __shared__ Angles angles[ITEM];
  __shared__ Invariants invariants[ITEM];
  const REAL* const gradient[NAMES] = {ln_kt, ln_z, ln_delta, ln_m2, dot, m2_difference, psi_dot, psi_m2_difference};
  const int2 item = items[blockIdx.x];
  const int64 start = offsets[item.x], base = starts[item.x];
  const int n = (int)(offsets[item.x + 1] - start), k = item.y * ITEM + threadIdx.x;
  const Vector v = vector_of(px, py, pz, e, start + min(k, n - 1));
  const Angles at = angles_of(v);
  const Invariants with = invariants_of(v);
  bool finite = true;
  double by_y = 0.0, by_phi = 0.0, by_pt = 0.0, by_self = 0.0, by_px = 0.0, by_py = 0.0, by_pz = 0.0, by_e = 0.0;
  for (int first = 0; first < n; first += ITEM) {
    __syncthreads();
    if (first + threadIdx.x < n) {
      const Vector partner = vector_of(px, py, pz, e, start + first + threadIdx.x);
      vectors[threadIdx.x] = partner;
      angles[threadIdx.x] = angles_of(partner);
      invariants[threadIdx.x] = invariants_of(partner);
    }
    __syncthreads();
    const int partners = k < n ? min(ITEM, n - first) : 0;
    for (int s = 0; s < partners; s++) {
      const int j = first + s;
      const int64 here = base + (full || k > j ? place(k, j, n, full) : place(j, k, n, full)), there = base + place(j, k, n, full);
      double weight[NAMES];
#pragma unroll
      for (int f = 0; f < NAMES; f++) {
        weight[f] = 0.0;
        if (has(f)) weight[f] = (double)gradient[f][here] + (full || j == k ? gradient[f][there] : (REAL)0);
      }
      finite = finite && isfinite(vectors[s].e);
      if (ANGLES) {
        const double dy = at.y - angles[s].y, turn = at.phi - angles[s].phi;
        const double dphi = turn > PI ? turn - 2.0 * PI : turn < -PI ? turn + 2.0 * PI : turn;
        const double delta2 = dy * dy + dphi * dphi, low = min(at.pt, angles[s].pt), both = (double)at.pt + angles[s].pt;
        const double kt = low * low * delta2 > EPS * EPS ? weight[LN_KT] : 0.0;
        const double delta = delta2 > EPS * EPS ? weight[LN_DELTA] : 0.0;
        const double z = low > EPS * fmax(both, EPS) ? weight[LN_Z] : 0.0;
        const double share = at.pt < angles[s].pt ? 1.0 : at.pt == angles[s].pt ? 0.5 : 0.0;
        const double angle = (kt + delta) / (delta2 > 0.0 ? delta2 : 1.0);
        by_y += angle * dy;
        by_phi += angle * dphi;
        by_pt += (kt + z) * share / (low > 0.0 ? low : 1.0) - (both > EPS ? z / both : 0.0);
      }
      if (FEATURES >> LN_M2) {
        const double product = dot_of(with, invariants[s]), masses = with.m2 + invariants[s].m2;
        const double m2 = REFERENCE ? (double)weavers_m2(v, vectors[s]) : masses + 2.0 * product;
        const double difference = masses - 2.0 * product;
        const double by_sum = m2 > EPS && j != k ? 2.0 * weight[LN_M2] / m2 : 0.0;
        const double by_dot = weight[DOT] + weight[PSI_DOT] / (1.0 + fabs(product));
        const double by_difference = 2.0 * (weight[M2_DIFFERENCE] + weight[PSI_M2_DIFFERENCE] / (1.0 + fabs(difference)));
        const double by_other = by_dot + by_sum - by_difference;
        by_self += by_sum + by_difference;
        by_px += by_other * vectors[s].x;
        by_py += by_other * vectors[s].y;
        by_pz += by_other * vectors[s].z;
        by_e += by_other * vectors[s].e;
      }
    }
  }
  if (k >= n) return;
  const double x = v.x, y = v.y, z = v.z, energy = v.e, pt2 = x * x + y * y;
  const double along = pt2 > 0.0 ? by_pt / sqrt(pt2) : 0.0, around = pt2 > 0.0 ? by_phi / pt2 : 0.0;
  const bool free = energy - z > E_MINUS_PZ;
  const double minus = fmax(energy - z, E_MINUS_PZ), plus = minus + 2.0 * z;
  const double by_minus = free ? -1.0 / minus : 0.0, by_plus = plus > E_MINUS_PZ ? 1.0 / plus : 0.0;
  const double nothing = finite ? 0.0 : NOT_A_NUMBER;
  grad_p4 += start + k;
  grad_p4[0] = (REAL)(x * along - y * around - (by_px + by_self * x) + nothing);
  grad_p4[total] = (REAL)(y * along + x * around - (by_py + by_self * y) + nothing);
  grad_p4[2 * total] = (REAL)(0.5 * by_y * (by_plus * (free ? 1.0 : 2.0) - by_minus) - (by_pz + by_self * z) + nothing);
  grad_p4[3 * total] = (REAL)(0.5 * by_y * (by_plus * (free ? 1.0 : 0.0) + by_minus) + (by_e + by_self * energy) + nothing);
}
