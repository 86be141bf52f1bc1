// One item (jet, tile) for each tile of `tile` constituents of each jet: pieces of work of about one size. Items of a jet
// are neighbours; the jets come in any order, so kernels must write what each item owns.
KERNEL work_list(const int64* __restrict__ offsets, int64 jets, int64 tile, int2* __restrict__ items, uint64* __restrict__ used) {
  const int64 jet = (int64)blockIdx.x * blockDim.x + threadIdx.x;
  const int lane = threadIdx.x % WARP;
  const int tiles = jet < jets ? (int)((offsets[jet + 1] - offsets[jet] + tile - 1) / tile) : 0;
  int64 place = tiles;
  for (int distance = 1; distance < WARP; distance *= 2) {
    const int64 before = __shfl_up_sync(ALL, place, distance);
    if (lane >= distance) place += before;
  }
  uint64 first = 0;
  if (lane == WARP - 1) first = atomicAdd(used, (uint64)place);
  place += (int64)__shfl_sync(ALL, first, WARP - 1) - tiles;
  for (int t = 0; t < tiles; t++) items[place + t] = make_int2((int)jet, t);
}
