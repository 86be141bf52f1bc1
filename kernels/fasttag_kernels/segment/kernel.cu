// A warp per jet: `width` lanes side by side on channels, 32 / width rows at a time.
KERNEL segment_sum(const REAL* __restrict__ values, const int64* __restrict__ offsets, int64 jets, int64 channels, int width, int mean, REAL* __restrict__ out) {
  const int64 jet = (int64)blockIdx.x * (blockDim.x / WARP) + threadIdx.x / WARP;
  if (jet >= jets) return;
  const int lane = threadIdx.x % WARP, rows = WARP / width;
  const int64 stop = offsets[jet + 1], n = stop - offsets[jet];
  for (int64 first = 0; first < channels; first += width) {
    const int64 channel = first + lane % width;
    double total = 0.0;
    if (channel < channels)
      for (int64 i = offsets[jet] + lane / width; i < stop; i += rows) total += values[i * channels + channel];
    for (int distance = width; distance < WARP; distance *= 2) total += __shfl_xor_sync(ALL, total, distance);
    if (lane < width && channel < channels) out[jet * channels + channel] = (REAL)(mean && n ? total / n : total);
  }
}

// NaN is larger than all else.
__device__ __forceinline__ bool larger(REAL x, REAL y) { return x > y || (x != x && y == y); }

KERNEL segment_max(const REAL* __restrict__ values, const int64* __restrict__ offsets, int64 jets, int64 channels, int width, REAL* __restrict__ out) {
  const int64 jet = (int64)blockIdx.x * (blockDim.x / WARP) + threadIdx.x / WARP;
  if (jet >= jets) return;
  const int lane = threadIdx.x % WARP, rows = WARP / width;
  const int64 start = offsets[jet], stop = offsets[jet + 1];
  for (int64 first = 0; first < channels; first += width) {
    const int64 channel = first + lane % width;
    REAL largest = (REAL)-INFINITE;
    if (channel < channels)
      for (int64 i = start + lane / width; i < stop; i += rows) {
        const REAL x = values[i * channels + channel];
        if (larger(x, largest)) largest = x;
      }
    for (int distance = width; distance < WARP; distance *= 2) {
      const REAL other = __shfl_xor_sync(ALL, largest, distance);
      if (larger(other, largest)) largest = other;
    }
    if (lane < width && channel < channels) out[jet * channels + channel] = start < stop ? largest : (REAL)0;
  }
}

// The first and the last warp also clear the rows outside of all jets.
__device__ __forceinline__ void clear_outside(const int64* offsets, int64 jets, int64 n, int64 channels, int64 warp, REAL* grad_values) {
  const int lane = threadIdx.x % WARP;
  if (warp == 0)
    for (int64 at = lane; at < offsets[0] * channels; at += WARP) grad_values[at] = 0;
  if (warp == (jets ? jets - 1 : 0))
    for (int64 at = offsets[jets] * channels + lane; at < n * channels; at += WARP) grad_values[at] = 0;
}

KERNEL segment_spread(const REAL* __restrict__ gradient, const int64* __restrict__ offsets, int64 jets, int64 n, int64 channels, int width, int mean, REAL* __restrict__ grad_values) {
  const int64 warp = (int64)blockIdx.x * (blockDim.x / WARP) + threadIdx.x / WARP;
  const int lane = threadIdx.x % WARP;
  clear_outside(offsets, jets, n, channels, warp, grad_values);
  if (warp >= jets) return;
  const int64 stop = offsets[warp + 1], constituents = stop - offsets[warp];
  for (int64 channel = lane % width; channel < channels; channel += width) {
    const REAL given = gradient[warp * channels + channel];
    const REAL value = mean && constituents ? (REAL)((double)given / constituents) : given;
    for (int64 i = offsets[warp] + lane / width; i < stop; i += WARP / width) grad_values[i * channels + channel] = value;
  }
}

// All to the first row that has the largest value.
KERNEL segment_to_largest(const REAL* __restrict__ gradient, const REAL* __restrict__ values, const int64* __restrict__ offsets, int64 jets, int64 n, int64 channels, int width, REAL* __restrict__ grad_values) {
  const int64 warp = (int64)blockIdx.x * (blockDim.x / WARP) + threadIdx.x / WARP;
  const int lane = threadIdx.x % WARP, rows = WARP / width;
  clear_outside(offsets, jets, n, channels, warp, grad_values);
  if (warp >= jets) return;
  const int64 stop = offsets[warp + 1], start = offsets[warp] + lane / width;
  for (int64 first = 0; first < channels; first += width) {
    const int64 channel = first + lane % width;
    REAL largest = (REAL)-INFINITE;
    int64 row = start;
    if (channel < channels)
      for (int64 i = start; i < stop; i += rows) {
        const REAL x = values[i * channels + channel];
        if (larger(x, largest)) largest = x, row = i;
      }
    for (int distance = width; distance < WARP; distance *= 2) {
      const REAL other = __shfl_xor_sync(ALL, largest, distance);
      const int64 other_row = __shfl_xor_sync(ALL, row, distance);
      if (larger(other, largest) || (!larger(largest, other) && other_row < row)) largest = other, row = other_row;
    }
    if (channel < channels)
      for (int64 i = start; i < stop; i += rows)
        grad_values[i * channels + channel] = i == row ? gradient[warp * channels + channel] : (REAL)0;
  }
}
