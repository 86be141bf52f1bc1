// README.md has the mathematics and the layout. Order 0 is that of (x, y), order 1 that of (y, x); of a point in an order
// `own` is the variable it is sorted by, `other` the other one.

constexpr int RUN = 256;      // points that a block sorts by counting
constexpr int THREADS = 128;  // of a block that works on tiles, which are multiples of it
constexpr int BATCH = 16;     // loads in flight down a column of the table

enum { POINT, SPARE, RANK, FIRST, END, PLACES };                          // rows of `places`; RANK is by point, the rest by rank
enum { P, OWN, OTHER, AT, MEAN, OTHER_MEAN, BELOW, THROUGH = BELOW + 3, SLOPE = THROUGH + 3, COLUMNS };  // rows of `rows`
enum { W, X, Y, SUM_W, SUM_X, SUM_Y, COUNT, ORIGIN };                     // of a run of points: see `distance_runs`
enum { S, S_OWN, S_OTHER, M, M_OWN, M_OTHER, TOTAL_OWN, TOTAL_OTHER, NONZERO, SUMS };  // of a tile: see `distance_sums`

struct __align__(16) Wide {
  uint64 own, other;
};
__device__ __forceinline__ bool operator<(Wide a, Wide b) { return a.own < b.own || (a.own == b.own && a.other < b.other); }

// Bits of a float as an integer of the same order; -0.0 is 0.0.
__device__ __forceinline__ unsigned ascending(float value) {
  const unsigned bits = value == 0.0f ? 0u : __float_as_uint(value);
  return bits ^ (bits >> 31 ? 0xffffffffu : 0x80000000u);
}
__device__ __forceinline__ uint64 ascending(double value) {
  const uint64 bits = value == 0.0 ? 0ull : (uint64)__double_as_longlong(value);
  return bits ^ (bits >> 63 ? 0xffffffffffffffffull : 0x8000000000000000ull);
}
__device__ __forceinline__ uint64 key(float own, float other) { return (uint64)ascending(own) << 32 | ascending(other); }
__device__ __forceinline__ Wide key(double own, double other) { return {ascending(own), ascending(other)}; }
__device__ __forceinline__ bool tied(uint64 a, uint64 b) { return a >> 32 == b >> 32; }
__device__ __forceinline__ bool tied(Wide a, Wide b) { return a.own == b.own; }
typedef decltype(key(REAL(), REAL())) Key;

// Sums over the block, for every thread.
template <int BLOCK, int N> __device__ __forceinline__ void block_sum(double (&values)[N]) {
  __shared__ double parts[N][BLOCK / WARP];
  const int warp = threadIdx.x / WARP;
  __syncthreads();
  for (int c = 0; c < N; c++) {
    const double part = warp_sum(values[c]);
    if (threadIdx.x % WARP == 0) parts[c][warp] = part;
  }
  __syncthreads();
  for (int c = 0; c < N; c++) {
    values[c] = 0.0;
    for (int other = 0; other < BLOCK / WARP; other++) values[c] += parts[c][other];
  }
}

// Sums over the threads up to this one.
template <int BLOCK, int N> __device__ __forceinline__ void block_scan(double (&values)[N]) {
  __shared__ double parts[N][BLOCK / WARP];
  const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
  __syncthreads();
  for (int c = 0; c < N; c++) {
    for (int distance = 1; distance < WARP; distance *= 2) {
      const double before = __shfl_up_sync(ALL, values[c], distance);
      if (lane >= distance) values[c] += before;
    }
    if (lane == WARP - 1) parts[c][warp] = values[c];
  }
  __syncthreads();
  for (int c = 0; c < N; c++) {
    double before = 0.0;
    for (int other = 0; other < BLOCK / WARP; other++) before += other < warp ? parts[c][other] : 0.0;
    values[c] += before;
  }
}

// Which of the `count` candidates, `stride` numbers apart, has the largest weight.
template <int BLOCK> __device__ __forceinline__ int heaviest(const double* weights, int stride, int count) {
  __shared__ double most[BLOCK];
  __shared__ int at[BLOCK];
  const int t = threadIdx.x;
  most[t] = -1.0;
  at[t] = 0;
  for (int i = t; i < count; i += BLOCK)
    if (weights[(int64)i * stride] > most[t]) {
      most[t] = weights[(int64)i * stride];
      at[t] = i;
    }
  for (int half = BLOCK / 2; half > 0; half /= 2) {
    __syncthreads();
    if (t < half && most[t + half] > most[t]) {
      most[t] = most[t + half];
      at[t] = at[t + half];
    }
  }
  __syncthreads();
  return at[0];
}

// Sorts 256 points by counting, ties by index; blocks of order 0 also find their point of largest weight, and sums of
// w, w x and w y with x, y and w relative to it.
KERNEL distance_runs(const REAL* __restrict__ x, const REAL* __restrict__ y, const REAL* __restrict__ weights, int n, Key* __restrict__ keys, int* __restrict__ places, double* __restrict__ origins) {
  __shared__ Key near[RUN];
  __shared__ double heavy[RUN];
  const int runs = gridDim.x / 2, order = blockIdx.x / runs, run = blockIdx.x % runs;
  const int t = threadIdx.x, start = run * RUN, size = min(RUN, n - start), i = start + t;
  REAL xi = 0, yi = 0, w = 0;
  if (t < size) {
    xi = x[i];
    yi = y[i];
    w = weights ? weights[i] : (REAL)1;
    near[t] = order ? key(yi, xi) : key(xi, yi);
  }
  heavy[t] = w;
  __syncthreads();
  if (t < size) {
    const Key mine = near[t];
    int rank = 0;
    for (int j = 0; j < t; j++) rank += !(mine < near[j]);
    for (int j = t + 1; j < size; j++) rank += near[j] < mine;
    keys[(int64)order * n + start + rank] = mine;
    places[((int64)order * PLACES + POINT) * n + start + rank] = i;
  }
  if (order) return;
  const int origin = start + heaviest<RUN>(heavy, 1, size);
  const double ow = heavy[origin - start], ox = x[origin], oy = y[origin];
  const double share = w / ow;
  double sums[4] = {};
  if (w != 0) {
    sums[0] = share;
    sums[1] = share * (xi - ox);
    sums[2] = share * (yi - oy);
    sums[3] = 1.0;
  }
  block_sum<RUN>(sums);
  if (t == 0) {
    double* found = origins + (int64)run * ORIGIN;
    found[W] = ow;
    found[X] = ox;
    found[Y] = oy;
    for (int c = 0; c < 4; c++) found[SUM_W + c] = sums[c];
  }
}

// How many of the sorted keys are less than `mine`, or with EQUAL not more; `step` is a power of two, more than half of size.
template <bool EQUAL> __device__ __forceinline__ int count_less(const Key* __restrict__ keys, int size, int step, Key mine) {
  int count = 0;
  for (; step > 0; step /= 2) {
    const Key other = keys[(unsigned)min(count + step, size) - 1];
    const bool less = EQUAL ? !(mine < other) : other < mine;
    count += less & (count + step <= size) ? step : 0;
  }
  return count;
}

// Merges up to `ways` sorted runs at once: the place of a point is its place in its run and, by bisection, the number of
// points before it in each of the others. Points go from row SPARE of `places` to row POINT, or the other way round. A warp has
// 32 points of one run and looks into every eighth run.
KERNEL distance_merge(int n, int length, int ways, int step, int spare, const Key* __restrict__ keys, Key* __restrict__ merged, int* __restrict__ places) {
  __shared__ int counts[RUN / WARP][WARP];
  const int blocks = gridDim.x / 2, order = blockIdx.x / blocks;
  const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, i = blockIdx.x % blocks * WARP + lane;
  const int mine = i / length, group = mine / ways * ways, stop = min((int64)group + ways, ((int64)n + length - 1) / length);
  keys += (int64)order * n;
  places += (int64)order * PLACES * n;
  int count = 0;
  if (i < n)
    for (int run = group + warp; run < stop; run += RUN / WARP) {
      const int start = run * length, size = min(length, n - start);
      if (run < mine) count += count_less<true>(keys + start, size, step, keys[i]);
      else if (run > mine) count += count_less<false>(keys + start, size, step, keys[i]);
      else count += i - start;
    }
  counts[warp][lane] = count;
  __syncthreads();
  if (warp || i >= n) return;
  int64 rank = (int64)group * length;
  for (int other = 0; other < RUN / WARP; other++) rank += counts[other][lane];
  const int point = places[(int64)(spare ? SPARE : POINT) * n + i];
  merged[(int64)order * n + rank] = keys[i];
  places[(int64)(spare ? POINT : SPARE) * n + rank] = point;
  places[(int64)RANK * n + point] = (int)rank;
}

struct __align__(16) Term {
  double p, own, other, at;  // p, p own, p other, rank in the other order
};

__device__ __forceinline__ double* row(double* rows, int n, int order, int column) {
  return rows + ((int64)order * COLUMNS + column) * n;
}

// The terms of THREADS points from `start` on, for the block; how many there are.
__device__ __forceinline__ int load(Term* near, double* rows, int n, int order, int start) {
  const int i = start + threadIdx.x;
  __syncthreads();
  if (i < n) {
    const double p = row(rows, n, order, P)[i];
    near[threadIdx.x] = {p, p * row(rows, n, order, OWN)[i], p * row(rows, n, order, OTHER)[i], row(rows, n, order, AT)[i]};
  }
  __syncthreads();
  return min(THREADS, n - start);
}

__device__ __forceinline__ void add_below(double (&sums)[3], const Term& term, double limit) {
  if (term.at < limit) {
    sums[0] += term.p;
    sums[1] += term.own;
    sums[2] += term.other;
  }
}

// A block per tile of order 0. The points, centred, in both orders; and of the tile the sums of p, p x and p y over points
// below each tile of order 1. Points of weight 0 stay, as p = x = y = 0, and so do all where only one point has weight.
KERNEL distance_table(const REAL* __restrict__ x, const REAL* __restrict__ y, const REAL* __restrict__ weights, int n, int tile, int runs, int spare, const double* __restrict__ origins, const int* __restrict__ places, double* rows, double* __restrict__ table) {
  __shared__ Term near[THREADS];
  const int tiles = gridDim.x, start = blockIdx.x * tile, stop = min(start + tile, n);
  const double* origin = origins + (int64)heaviest<THREADS>(origins, ORIGIN, runs) * ORIGIN;
  double sums[4] = {};
  for (int run = threadIdx.x; run < runs; run += THREADS) {
    const double* found = origins + (int64)run * ORIGIN;
    if (found[COUNT] == 0.0) continue;
    const double share = found[W] / origin[W];
    sums[0] += share * found[SUM_W];
    sums[1] += share * (found[SUM_X] + found[SUM_W] * (found[X] - origin[X]));
    sums[2] += share * (found[SUM_Y] + found[SUM_W] * (found[Y] - origin[Y]));
    sums[3] += found[COUNT];
  }
  block_sum<THREADS>(sums);
  for (int i = start + threadIdx.x; i < stop; i += THREADS) {
    const int point = places[(int64)(spare ? SPARE : POINT) * n + i], at = places[(int64)(PLACES + RANK) * n + point];
    const double w = weights ? weights[point] : 1.0;
    const bool used = w != 0.0 && sums[3] > 1.0;
    const double p = used ? w / origin[W] / sums[0] : 0.0;
    const double u = used ? x[point] - origin[X] - sums[1] / sums[0] : 0.0;
    const double v = used ? y[point] - origin[Y] - sums[2] / sums[0] : 0.0;
    row(rows, n, 0, P)[i] = row(rows, n, 1, P)[at] = p;
    row(rows, n, 0, OWN)[i] = row(rows, n, 1, OTHER)[at] = u;
    row(rows, n, 0, OTHER)[i] = row(rows, n, 1, OWN)[at] = v;
    row(rows, n, 0, AT)[i] = at;
    row(rows, n, 1, AT)[at] = i;
  }
  for (int first = 0; first <= tiles; first += THREADS) {
    const int column = first + threadIdx.x;
    double below[3] = {};
    for (int chunk = start; chunk < stop; chunk += THREADS) {
      const int size = load(near, rows, n, 0, chunk);
      for (int j = 0; j < size; j++) add_below(below, near[j], (double)column * tile);
    }
    if (column <= tiles)
      for (int c = 0; c < 3; c++) table[((int64)c * (tiles + 1) + blockIdx.x) * (tiles + 1) + column] = below[c];
  }
}

// Each column of the table becomes its sums over earlier tiles; its last row those over all.
KERNEL distance_columns(int tiles, double* __restrict__ table) {
  const int column = blockIdx.x * blockDim.x + threadIdx.x, width = tiles + 1;
  if (column >= 3 * width) return;
  double* at = table + (int64)(column / width) * width * width + column % width;
  double total = 0.0;
  for (int first = 0; first < tiles; first += BATCH) {
    double next[BATCH];
    for (int i = 0; i < BATCH; i++) next[i] = first + i < tiles ? at[(int64)(first + i) * width] : 0.0;
    for (int i = 0; i < BATCH; i++) {
      if (first + i < tiles) at[(int64)(first + i) * width] = total;
      total += next[i];
    }
  }
  at[(int64)tiles * width] = total;
}

// A block per THREADS points of an order. Sums over all points before each, and the row mean; sums over those also lower in
// the other order: order 0 has those in earlier tiles, from the table, and in the same tile, order 1 the rest, which is in
// the same tile of order 1 and an earlier tile of order 0.
KERNEL distance_quadrants(int n, int tile, int tiles, double* rows, const double* __restrict__ table) {
  __shared__ Term near[THREADS];
  const int blocks = gridDim.x / 2, order = blockIdx.x / blocks, chunk = blockIdx.x % blocks * THREADS;
  const int i = chunk + threadIdx.x, own_tile = chunk / tile, width = tiles + 1;
  const int at = i < n ? (int)row(rows, n, order, AT)[i] : 0, column = at / tile;
  const double limit = order ? column * tile : at;
  double below[3] = {}, before[3] = {}, through[3] = {};
  for (int start = own_tile * tile; start < chunk; start += THREADS) {
    load(near, rows, n, order, start);
    add_below(before, near[threadIdx.x], INFINITE);
    for (int j = 0; j < THREADS; j++) add_below(below, near[j], limit);
  }
  load(near, rows, n, order, chunk);
  for (int j = 0; j < threadIdx.x && i < n; j++) add_below(below, near[j], limit);
  if (i < n) add_below(through, near[threadIdx.x], INFINITE);
  block_sum<THREADS>(before);
  block_scan<THREADS>(through);
  if (i >= n) return;
  for (int c = 0; c < 3; c++) {
    const double* plane = table + (int64)(order && c ? 3 - c : c) * width * width;
    through[c] += before[c] + plane[order ? (int64)tiles * width + own_tile : (int64)own_tile * width + tiles];
    if (!order) below[c] += plane[(int64)own_tile * width + column];
    row(rows, n, order, BELOW + c)[i] = below[c];
    row(rows, n, order, THROUGH + c)[i] = through[c];
  }
  const double rest = table[(int64)(2 + order) * width * width - 1];  // of rounding, in the mean
  const double mean = row(rows, n, order, OWN)[i] * (2 * through[0] - 1) - 2 * through[1] + rest;
  row(rows, n, order, MEAN)[i] = row(rows, n, 1 - order, OTHER_MEAN)[at] = mean;
}

// Where the points stand that are tied with that at i; the rest is sorted.
__device__ __forceinline__ int first_of(const Key* __restrict__ keys, int i) {
  int low = 0, high = i;
  if (i && !tied(keys[i - 1], keys[i])) low = i;
  while (low < high) {
    const int middle = low + (high - low) / 2;
    if (tied(keys[middle], keys[i])) high = middle;
    else low = middle + 1;
  }
  return low;
}
__device__ __forceinline__ int end_of(const Key* __restrict__ keys, int n, int i) {
  int low = i + 1, high = n;
  if (low < n && !tied(keys[low], keys[i])) high = low;
  while (low < high) {
    const int middle = low + (high - low) / 2;
    if (tied(keys[middle], keys[i])) low = middle + 1;
    else high = middle;
  }
  return low;
}

// A block per tile of order 1, then of order 0 where its gradient is needed. slope = sum_j p_j |other - other_j| sign(own -
// own_j), and the tile's part of all sums over points.
KERNEL distance_sums(int n, int tile, int tiles, const Key* __restrict__ keys, int* __restrict__ places, double* rows, double* __restrict__ sums) {
  const int order = 1 - blockIdx.x / tiles, start = blockIdx.x % tiles * tile, stop = min(start + tile, n);
  keys += (int64)order * n;
  places += (int64)order * PLACES * n;
  double parts[SUMS] = {};
  for (int i = start + threadIdx.x; i < stop; i += THREADS) {
    const int first = first_of(keys, i), end = end_of(keys, n, i), at = (int)row(rows, n, order, AT)[i];
    places[(int64)FIRST * n + i] = first;
    places[(int64)END * n + i] = end;
    const double *through = row(rows, n, order, THROUGH), *through_other = row(rows, n, order, THROUGH + 2);
    const double p = row(rows, n, order, P)[i], own = row(rows, n, order, OWN)[i], other = row(rows, n, order, OTHER)[i];
    const double mean = row(rows, n, order, MEAN)[i], other_mean = row(rows, n, order, OTHER_MEAN)[i];
    const double below = row(rows, n, 0, BELOW)[order ? at : i] + row(rows, n, 1, BELOW)[order ? i : at];
    const double below_other = row(rows, n, order, BELOW + 2)[i] + row(rows, n, 1 - order, BELOW + 1)[at];
    const double left = 2 * (other * below - below_other) + (i ? through_other[i - 1] - other * through[i - 1] : 0.0);
    const double ties = through[end - 1] - (first ? through[first - 1] : 0.0);
    const double ties_other = through_other[end - 1] - (first ? through_other[first - 1] : 0.0);
    const double slope = 2 * left - other_mean - (other * ties - ties_other);
    row(rows, n, order, SLOPE)[i] = slope;
    parts[S] += 2 * p * own * slope;
    parts[S_OWN] += 2 * p * own * own;
    parts[S_OTHER] += 2 * p * other * other;
    parts[M] += p * mean * other_mean;
    parts[M_OWN] += p * mean * mean;
    parts[M_OTHER] += p * other_mean * other_mean;
    parts[TOTAL_OWN] += p * mean;
    parts[TOTAL_OTHER] += p * other_mean;
    parts[NONZERO] += p != 0.0;
  }
  block_sum<THREADS>(parts);
  if (threadIdx.x == 0)
    for (int c = 0; c < SUMS; c++) sums[(int64)blockIdx.x * SUMS + c] = parts[c];
}

// The sum of p z over points before `stop` in an order.
__device__ __forceinline__ double sum_before(double* rows, const double* sums, int n, int tile, int order, double a, double b, int stop) {
  double part[1] = {};
  for (int t = threadIdx.x; t < stop / tile; t += THREADS)
    part[0] += a * sums[(int64)t * SUMS + TOTAL_OTHER] - b * sums[(int64)t * SUMS + TOTAL_OWN];
  for (int i = stop / tile * tile + threadIdx.x; i < stop; i += THREADS)
    part[0] += row(rows, n, order, P)[i] * (a * row(rows, n, order, OTHER_MEAN)[i] - b * row(rows, n, order, MEAN)[i]);
  block_sum<THREADS>(part);
  return part[0];
}

// A block per tile as in `distance_sums`: the value, a factor for the gradient of V_xy and one for that of V_own, and with
// z = a other_mean - b mean the gradient.
KERNEL distance_gradients(int n, int tile, int tiles, int spare, int unbiased, int covariance, const int* __restrict__ places, double* rows, const double* __restrict__ sums, REAL* __restrict__ out, REAL* __restrict__ dx, REAL* __restrict__ dy) {
  __shared__ double through[THREADS];
  const int order = 1 - blockIdx.x / tiles, start = blockIdx.x % tiles * tile, stop = min(start + tile, n);
  double all[SUMS] = {};
  for (int t = threadIdx.x; t < tiles; t += THREADS)
    for (int c = 0; c < SUMS; c++) all[c] += sums[(int64)t * SUMS + c];
  block_sum<THREADS>(all);
  const double m = n, c0 = unbiased ? m / (m - 3) : 1.0, c1 = unbiased ? m / (m - 2) : 1.0;
  const double c2 = unbiased ? m * m / ((m - 1) * (m - 2)) : 1.0;
  const double total_x = all[TOTAL_OTHER], total_y = all[TOTAL_OWN], noise = all[NONZERO] * 0x1p-52;
  const double v_xy = c0 * (all[S] - 2 * c1 * all[M] + c2 * total_x * total_y);
  const double v_xx = c0 * (all[S_OTHER] - 2 * c1 * all[M_OTHER] + c2 * total_x * total_x);
  const double v_yy = c0 * (all[S_OWN] - 2 * c1 * all[M_OWN] + c2 * total_y * total_y);
  double value = 0.0, a = 0.0, b = 0.0;
  if (!(all[S_OWN] + all[S_OTHER] < INFINITE)) {
    value = a = NOT_A_NUMBER;
  } else if (covariance) {
    const bool varies = all[S_OWN] != 0.0 && all[S_OTHER] != 0.0;
    value = varies ? v_xy : 0.0;
    a = varies ? 2 * c0 : 0.0;
  } else if (v_xx > noise * all[S_OTHER] && v_yy > noise * all[S_OWN]) {
    const double norm = sqrt(v_xx) * sqrt(v_yy);
    value = v_xy / norm;
    a = 2 * c0 / norm;
    b = 2 * c0 * value / (order ? v_yy : v_xx);
  }
  if (blockIdx.x == 0 && threadIdx.x == 0) *out = (REAL)value;
  REAL* gradient = order ? dy : dx;
  if (!gradient) return;
  sums += (int64)(1 - order) * tiles * SUMS;
  places += (int64)order * PLACES * n;
  const int *firsts = places + (int64)FIRST * n, *ends = places + (int64)END * n;
  const double total = order ? a * total_x - b * total_y : a * total_y - b * total_x;
  const double* cumulative = row(rows, n, order, THROUGH);
  double before = sum_before(rows, sums, n, tile, order, a, b, start);
  for (int chunk = start; chunk < stop; chunk += THREADS) {
    const int i = chunk + threadIdx.x, past = min(chunk + THREADS, n), low = firsts[chunk], high = ends[past - 1];
    const double before_low = low < chunk ? sum_before(rows, sums, n, tile, order, a, b, low) : before;
    const double before_high = high > past ? sum_before(rows, sums, n, tile, order, a, b, high) : 0.0;
    double p = 0.0, z = 0.0;
    if (i < n) {
      p = row(rows, n, order, P)[i];
      z = a * row(rows, n, order, OTHER_MEAN)[i] - b * row(rows, n, order, MEAN)[i];
    }
    double sum[1] = {p * z};
    block_scan<THREADS>(sum);
    through[threadIdx.x] = before + sum[0];
    __syncthreads();
    if (i < n) {
      const int first = firsts[i], end = ends[i];
      const double sigma = cumulative[end - 1] + (first ? cumulative[first - 1] : 0.0) - 1.0;
      const double tau = (first > chunk ? through[first - chunk - 1] : before_low) + (end > past ? before_high : through[end - chunk - 1]) - total;
      const double inner = a * row(rows, n, order, SLOPE)[i] - b * row(rows, n, order, OWN)[i] - c1 * (z * sigma + tau) + c2 * total * sigma;
      gradient[places[(int64)(spare ? SPARE : POINT) * n + i]] = (REAL)(p * inner);
    }
    before = through[past - chunk - 1];
    __syncthreads();
  }
}

// Derivatives times the gradient in the value; NaN for those that the forward call was not asked for.
KERNEL distance_scale(const REAL* __restrict__ factor, int n, const REAL* __restrict__ dx, const REAL* __restrict__ dy, REAL* __restrict__ grad_x, REAL* __restrict__ grad_y) {
  const int64 i = (int64)blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= n) return;
  if (dx) grad_x[i] = *factor * dx[i];
  if (dy) grad_y[i] = *factor * dy[i];
}
