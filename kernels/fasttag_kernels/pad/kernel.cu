// A warp per jet; neighbouring lanes write neighbouring numbers.
KERNEL pad(const REAL* __restrict__ values, const int64* __restrict__ offsets, int64 jets, int64 n, int64 features, int64 length, REAL* __restrict__ padded, bool* __restrict__ valid) {
  const int64 jet = (int64)blockIdx.x * (blockDim.x / WARP) + threadIdx.x / WARP;
  if (jet >= jets) return;
  const int64 start = offsets[jet], filled = min(offsets[jet + 1] - start, length);
  const int lane = threadIdx.x % WARP;
  int64 slot = lane / features, feature = lane % features;
  for (int64 at = lane; at < length * features; at += WARP) {
    padded[jet * length * features + at] = slot < filled ? values[feature * n + start + slot] : (REAL)0;
    for (feature += WARP; feature >= features; feature -= features) slot++;
  }
  for (int64 i = lane; i < length; i += WARP) valid[jet * length + i] = i < filled;
}
