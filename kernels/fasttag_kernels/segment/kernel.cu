// A warp per jet: `width` lanes side by side on channels, 32 / width rows at a time.
KERNEL segment_sum(const REAL* __restrict__ values, const int64* __restrict__ offsets, int64 jets, int64 channels, int width, REAL* __restrict__ out) {
  const int64 jet = (int64)blockIdx.x * (blockDim.x / WARP) + threadIdx.x / WARP;
  if (jet >= jets) return;
  const int lane = threadIdx.x % WARP, rows = WARP / width;
  const int64 stop = offsets[jet + 1];
  for (int64 first = 0; first < channels; first += width) {
    const int64 channel = first + lane % width;
    double total = 0.0;
    if (channel < channels)
      for (int64 i = offsets[jet] + lane / width; i < stop; i += rows) total += values[i * channels + channel];
    for (int distance = width; distance < WARP; distance *= 2) total += __shfl_xor_sync(ALL, total, distance);
    if (lane < width && channel < channels) out[jet * channels + channel] = (REAL)total;
  }
}

// The first and the last warp also clear the rows outside of all jets.
KERNEL segment_spread(const REAL* __restrict__ gradient, const int64* __restrict__ offsets, int64 jets, int64 n, int64 channels, int width, REAL* __restrict__ grad_values) {
  const int64 warp = (int64)blockIdx.x * (blockDim.x / WARP) + threadIdx.x / WARP;
  const int lane = threadIdx.x % WARP;
  if (warp == 0)
    for (int64 at = lane; at < offsets[0] * channels; at += WARP) grad_values[at] = 0;
  if (warp == (jets ? jets - 1 : 0))
    for (int64 at = offsets[jets] * channels + lane; at < n * channels; at += WARP) grad_values[at] = 0;
  if (warp >= jets) return;
  const int64 stop = offsets[warp + 1];
  for (int64 channel = lane % width; channel < channels; channel += width) {
    const REAL value = gradient[warp * channels + channel];
    for (int64 i = offsets[warp] + lane / width; i < stop; i += WARP / width) grad_values[i * channels + channel] = value;
  }
}
