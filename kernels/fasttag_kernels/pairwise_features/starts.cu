// Where the pairs of each jet begin: sums over chunks of jets, then within them. Sums of integers have no order.
__device__ int64 pairs_of(const int64* __restrict__ offsets, int64 jets, int full, int64 jet) {
  if (jet >= jets) return 0;
  const int64 n = offsets[jet + 1] - offsets[jet];
  return full ? n * n : n * (n + 1) / 2;
}

// A warp per chunk.
KERNEL pair_sums(const int64* __restrict__ offsets, int64 jets, int full, int64 chunk, int64 chunks, int64* __restrict__ sums) {
  const int64 warp = (int64)blockIdx.x * (blockDim.x / WARP) + threadIdx.x / WARP;
  if (warp >= chunks) return;
  int64 sum = 0;
  for (int64 i = threadIdx.x % WARP; i < chunk; i += WARP) sum += pairs_of(offsets, jets, full, warp * chunk + i);
  sum = warp_sum(sum);
  if (threadIdx.x % WARP == 0) sums[warp] = sum;
}

// A block per chunk, a thread per jet.
KERNEL pair_starts(const int64* __restrict__ offsets, int64 jets, int full, const int64* __restrict__ sums, int64* __restrict__ starts) {
  __shared__ int64 of_chunks[WARP], of_warps[WARP];
  const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
  const int64 jet = (int64)blockIdx.x * blockDim.x + threadIdx.x, pairs = pairs_of(offsets, jets, full, jet);
  int64 before = 0, start = pairs;
  for (int64 i = threadIdx.x; i < blockIdx.x; i += blockDim.x) before += sums[i];
  before = warp_sum(before);
  for (int distance = 1; distance < WARP; distance *= 2) {
    const int64 left = __shfl_up_sync(ALL, start, distance);
    if (lane >= distance) start += left;
  }
  if (lane == WARP - 1) of_chunks[warp] = before, of_warps[warp] = start;
  __syncthreads();
  for (int i = 0; i < blockDim.x / WARP; i++) start += of_chunks[i] + (i < warp ? of_warps[i] : 0);
  if (jet < jets) starts[jet] = start - pairs;
}
