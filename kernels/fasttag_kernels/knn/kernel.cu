// A warp per 32 queries of one jet, a query per lane. A lane keeps its K nearest in registers, in order. Candidates come in
// batches, sorted by one network and merged in by another; neighbours beyond the first K come in further rounds.
constexpr int WARPS = 4, BATCH = 8, INDEX_BITS = 29;
constexpr int COLUMNS = 128 / sizeof(REAL), VECTOR = 16 / sizeof(REAL);  // staged together, read together

// d^2 and index, ordered by d^2 first.
template <class T> struct Key;

// The bits of d^2 and then those of the index; as a float64 positive, normal and finite. That compares in one instruction,
// integers of 64 bits take two.
template <> struct Key<float> {
  double value;
  __device__ bool operator>(Key other) const { return value > other.value; }
  __device__ int index() const { return (int)(__double_as_longlong(value) & ((1 << INDEX_BITS) - 1)); }
};

template <> struct Key<double> {
  double d2;
  int at;
  __device__ bool operator>(Key other) const { return (d2 > other.d2) | ((d2 == other.d2) & (at > other.at)); }
  __device__ int index() const { return at; }
};

__device__ __forceinline__ Key<float> key_of(float d2, int index) {
  return {__longlong_as_double(((int64)__float_as_int(d2) << INDEX_BITS) + (1ll << 52) + index)};
}
__device__ __forceinline__ Key<double> key_of(double d2, int index) { return {d2, index}; }

// Part by part: of structures the compiler would select addresses, and put them into memory.
__device__ __forceinline__ Key<float> chosen(bool a_is, Key<float> a, Key<float> b) { return {a_is ? a.value : b.value}; }
__device__ __forceinline__ Key<double> chosen(bool a_is, Key<double> a, Key<double> b) { return {a_is ? a.d2 : b.d2, a_is ? a.at : b.at}; }

__device__ __forceinline__ void smaller_first(Key<REAL>& a, Key<REAL>& b) {
  const bool after = a > b;
  const Key<REAL> smaller = chosen(after, b, a);
  b = chosen(after, a, b);
  a = smaller;
}

// Batcher's odd-even merge sort.
__device__ __forceinline__ void sort(Key<REAL> (&keys)[BATCH]) {
#pragma unroll
  for (int sorted = 1; sorted < BATCH; sorted *= 2)
#pragma unroll
    for (int step = sorted; step > 0; step /= 2)
#pragma unroll
      for (int i = step % sorted; i < BATCH - step; i++)
        if ((i - step % sorted) / step % 2 == 0 && i / (2 * sorted) == (i + step) / (2 * sorted)) smaller_first(keys[i], keys[i + step]);
}

// The smaller ones of what rises and what falls are bitonic: half-cleaners sort them.
__device__ __forceinline__ void merge(Key<REAL> (&best)[K], const Key<REAL> (&keys)[BATCH]) {
#pragma unroll
  for (int t = 0; t < BATCH; t++) best[K - 1 - t] = chosen(best[K - 1 - t] > keys[t], keys[t], best[K - 1 - t]);
#pragma unroll
  for (int step = K / 2; step > 0; step /= 2)
#pragma unroll
    for (int i = 0; i < K; i++)
      if (!(i & step)) smaller_first(best[i], best[i + step]);
}

KERNEL __launch_bounds__(WARPS * WARP, 4) knn(const REAL* __restrict__ x, const int64* __restrict__ offsets, const int2* __restrict__ items, int64 warps, int64 rows, int columns, int k, double period, int* __restrict__ out) {
  alignas(16) __shared__ REAL points_of[WARPS][WARP][2];
  __shared__ REAL queries_of[WARPS][COLUMNS][WARP + 1];
  alignas(16) __shared__ REAL candidates_of[WARPS][BATCH][COLUMNS];
  __shared__ int nearest_of[WARPS][WARP][K + 1];
  const int64 warp = (int64)blockIdx.x * WARPS + threadIdx.x / WARP;
  if (warp >= warps) return;
  auto& points = points_of[threadIdx.x / WARP];
  auto& queries = queries_of[threadIdx.x / WARP];
  auto& candidates = candidates_of[threadIdx.x / WARP];
  auto& nearest = nearest_of[threadIdx.x / WARP];

  int64 start = 0;
  int n = (int)rows, first = (int)warp * WARP;
  if (items) {
    const int2 item = items[warp];
    start = offsets[item.x];
    n = (int)(offsets[item.x + 1] - start);
    first = item.y * WARP;
  }
  x += start * columns;
  out += (start + first) * k;
  const int lane = threadIdx.x % WARP, query = first + lane, queries_here = min(WARP, n - first);
  const REAL infinite = (REAL)INFINITE, turn = (REAL)period;
  auto second_column = [&](int64 i) {
    const REAL y = columns > 1 ? x[i * columns + 1] : (REAL)0;
    return turn < infinite ? y - (REAL)floor((y + turn / 2) / turn) * turn : y;
  };
  const int64 own = min(query, n - 1);
  const REAL x0 = x[own * columns], x1 = second_column(own);
  const Key<REAL> none = key_of(infinite, (1 << INDEX_BITS) - 1);
  Key<REAL> last = key_of((REAL)0, -1);  // of the round before, at first less than any
  for (int done = 0; done < k; done += K) {
    Key<REAL> best[K];
#pragma unroll
    for (int t = 0; t < K; t++) best[t] = none;
    for (int chunk = 0; chunk < n; chunk += WARP) {
      const int64 staged = min(chunk + lane, n - 1);
      __syncwarp();
      points[lane][0] = chunk + lane < n ? x[staged * columns] : (REAL)NOT_A_NUMBER;  // at infinity, after all others
      points[lane][1] = second_column(staged);
      __syncwarp();
      for (int batch = 0; batch < min(WARP, n - chunk); batch += BATCH) {
        const int j = chunk + batch;
        REAL d2[BATCH];
#pragma unroll
        for (int t = 0; t < BATCH; t++) {
          const REAL dx = x0 - points[batch + t][0], gap = fabs(x1 - points[batch + t][1]), dy = min(gap, turn - gap);
          d2[t] = dx * dx + dy * dy;
        }
        for (int c = 2; c < columns; c += COLUMNS) {
          const int row = lane / COLUMNS, column = lane % COLUMNS, step = WARP / COLUMNS;
          const bool real = c + column < columns;
          const REAL* from = x + (int64)(first + row) * columns + c + column;
          __syncwarp();
#pragma unroll 4
          for (int i = row; i < queries_here; i += step, from += step * columns) queries[column][i] = real ? *from : (REAL)0;
          from = x + (int64)(j + row) * columns + c + column;
#pragma unroll 1
          for (int i = row; i < min(BATCH, n - j); i += step, from += step * columns) candidates[i][column] = real ? *from : (REAL)0;
          __syncwarp();
#pragma unroll 1
          for (int at = 0; at < min(COLUMNS, columns - c); at += VECTOR)
#pragma unroll
            for (int v = 0; v < VECTOR; v++)
#pragma unroll
              for (int t = 0; t < BATCH; t++) {
                const REAL d = queries[at + v][lane] - candidates[t][at + v];
                d2[t] += d * d;
              }
        }
        Key<REAL> keys[BATCH];
#pragma unroll
        for (int t = 0; t < BATCH; t++) {
          const Key<REAL> key = key_of(min(d2[t], infinite), j + t);
          keys[t] = chosen((j + t != query) & (key > last), key, none);
        }
        sort(keys);
        if (j > 0) merge(best, keys);
        else
#pragma unroll
          for (int t = 0; t < BATCH; t++) best[t] = keys[t];
      }
    }
    last = best[K - 1];
#pragma unroll
    for (int t = 0; t < K; t++) nearest[lane][t] = best[t].index() < n ? best[t].index() : -1;
    __syncwarp();
#pragma unroll 1
    for (int row = lane / K; row < queries_here; row += WARP / K)
      if (done + lane % K < k) out[(int64)row * k + done + lane % K] = nearest[row][lane % K];
  }
}
