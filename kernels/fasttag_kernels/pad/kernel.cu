// A warp per jet; neighbouring lanes write neighbouring numbers.
KERNEL pad(const REAL* __restrict__ values, const int64* __restrict__ offsets, int64 jets, int64 n, int64 features, int64 length, REAL* __restrict__ padded, bool* __restrict__ valid) {
  const int64 jet = (int64)blockIdx.x * (blockDim.x / WARP) + threadIdx.x / WARP;
  if (jet >= jets) return;
  const int64 start = offsets[jet], filled = min(offsets[jet + 1] - start, length);
  const int lane = threadIdx.x % WARP;
  const int64 numbers = length * features;
  features = max(features, 1ll);  // no division by 0 where nothing is to be written
  const int64 slots = WARP / features, rest = WARP % features;  // what 32 numbers further on means
  int64 slot = lane / features, feature = lane % features;
  for (int64 at = lane; at < numbers; at += WARP) {
    padded[jet * numbers + at] = slot < filled ? values[feature * n + start + slot] : (REAL)0;
    slot += slots;
    feature += rest;
    if (feature >= features) {
      feature -= features;
      slot++;
    }
  }
  for (int64 i = lane; i < length; i += WARP) valid[jet * length + i] = i < filled;
}
