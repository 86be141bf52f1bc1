// What the kernels share; `_cuda.source` puts it before each. The tests compile the same text for the host.

#define KERNEL extern "C" __global__ void
typedef long long int64;
typedef unsigned long long uint64;

// NVRTC has no headers
#define NOT_A_NUMBER __longlong_as_double(0x7ff8000000000000ll)
#define INFINITE __longlong_as_double(0x7ff0000000000000ll)

constexpr int WARP = 32;
constexpr unsigned ALL = 0xffffffffu;

// The sum over the warp, in the same order always, for every lane.
template <class T> __device__ __forceinline__ T warp_sum(T value) {
  for (int distance = WARP / 2; distance > 0; distance /= 2) value += __shfl_xor_sync(ALL, value, distance);
  return value;
}
