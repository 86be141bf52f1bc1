// CUDA C on the host: blocks in turn, every thread of a block a fiber that runs until it has to wait for others.
//
// Shared memory is filled with 0xff (NaN, -1) before each block. Threads run in rising or falling order: a result that
// depends on it lacks a barrier. A barrier or shuffle that some thread never reaches, and a shuffle from a lane that does
// not take part, end the launch with a message.
#pragma once
#include <ucontext.h>

#include <algorithm>
#include <bit>
#include <climits>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <type_traits>
#include <utility>

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/common_interface_defs.h>
#endif

#define __global__
#define __device__
#define __forceinline__ inline
#define __restrict__
#define __launch_bounds__(...)
#define __shared__ static __attribute__((section("cuda_shared")))
#define __align__(n) alignas(n)
#define __builtin_assume(truth)

struct Dim {
  unsigned x, y, z;
};
struct alignas(8) int2 {
  int x, y;
};
struct alignas(16) int4 {
  int x, y, z, w;
};
inline int2 make_int2(int x, int y) { return {x, y}; }
inline int4 make_int4(int x, int y, int z, int w) { return {x, y, z, w}; }

static Dim threadIdx, blockIdx, blockDim, gridDim;

namespace host {
constexpr int MOST = 1024;             // threads per block
constexpr size_t STACK = 256 * 1024;  // bytes per fiber

struct Barrier {
  unsigned generation = 0;
  int arrived = 0;
  const char* what = nullptr;
};
struct Fiber {
  ucontext_t context;
  char* stack = nullptr;
  Dim index;
  bool done;
  void* fake = nullptr;
};
static Fiber fibers[MOST];
static ucontext_t scheduler;
static void* scheduler_fake = nullptr;
static const void* scheduler_bottom = nullptr;
static size_t scheduler_size = 0;
static int threads, current, alive;
static bool progress, falling;
static Barrier block_barrier, warp_barriers[MOST / 32];
static uint64_t slots[MOST];
static unsigned taking_part[MOST / 32];
static char message[256];
static void (*body)();

inline void start_switch([[maybe_unused]] void** fake, [[maybe_unused]] const void* bottom, [[maybe_unused]] size_t size) {
#ifdef __SANITIZE_ADDRESS__
  __sanitizer_start_switch_fiber(fake, bottom, size);
#endif
}
inline void finish_switch([[maybe_unused]] void* fake, [[maybe_unused]] const void** bottom, [[maybe_unused]] size_t* size) {
#ifdef __SANITIZE_ADDRESS__
  __sanitizer_finish_switch_fiber(fake, bottom, size);
#endif
}

[[noreturn]] inline void fail(const char* what) {  // for good: an abandoned fiber cannot be unwound
  std::snprintf(message, sizeof message, "%s, block %u, thread %u", what, blockIdx.x, threadIdx.x);
  std::fprintf(stderr, "cuda_on_host: %s\n", message);
  std::abort();
}

inline void yield() {
  Fiber& me = fibers[current];
  start_switch(&me.fake, scheduler_bottom, scheduler_size);
  swapcontext(&me.context, &scheduler);
  finish_switch(me.fake, nullptr, nullptr);
}

// Wait until `expected` threads have come; all of them must have come to the same kind of meeting.
inline void meet(Barrier& barrier, int expected, const char* what) {
  if (barrier.arrived == 0) barrier.what = what;
  if (std::strcmp(barrier.what, what) != 0) fail("threads wait at different barriers");
  const unsigned generation = barrier.generation;
  if (++barrier.arrived == expected) {
    barrier.arrived = 0;
    barrier.generation++;
    progress = true;
  } else {
    while (barrier.generation == generation) yield();
  }
}

inline int warp() { return current / 32; }
inline int lane() { return current % 32; }

inline void meet_warp(unsigned mask, const char* what) {
  const int lanes = std::min(32, threads - warp() * 32);
  const unsigned present = lanes == 32 ? 0xffffffffu : (1u << lanes) - 1;
  if (!(mask >> lane() & 1)) fail("a lane is not in its own mask");
  meet(warp_barriers[warp()], std::popcount(mask & present), what);
}

inline void entry() {
  finish_switch(nullptr, &scheduler_bottom, &scheduler_size);
  body();
  fibers[current].done = true;
  alive--;
  progress = true;
  start_switch(nullptr, scheduler_bottom, scheduler_size);
  swapcontext(&fibers[current].context, &scheduler);
}

inline void run_block() {
  alive = threads;
  block_barrier = {};
  for (auto& barrier : warp_barriers) barrier = {};
  for (int i = 0; i < threads; i++) {
    Fiber& fiber = fibers[i];
    if (!fiber.stack) fiber.stack = static_cast<char*>(std::malloc(STACK));
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack;
    fiber.context.uc_stack.ss_size = STACK;
    fiber.context.uc_link = nullptr;
    fiber.index = {unsigned(i), 0, 0};
    fiber.done = false;
    makecontext(&fiber.context, entry, 0);
  }
  while (alive) {
    progress = false;
    for (int i = 0; i < threads; i++) {
      current = falling ? threads - 1 - i : i;
      Fiber& fiber = fibers[current];
      if (fiber.done) continue;
      threadIdx = fiber.index;
      start_switch(&scheduler_fake, fiber.stack, STACK);
      swapcontext(&scheduler, &fiber.context);
      finish_switch(scheduler_fake, nullptr, nullptr);
    }
    if (!progress) fail("threads wait for others that never come");
  }
}

template <class T> T exchange(unsigned mask, T value, int from, const char* what) {
  static_assert(sizeof(T) <= 8);
  std::memcpy(&slots[current], &value, sizeof(T));
  meet_warp(mask, what);
  if (from >= 0 && from < 32 && !(mask >> from & 1)) fail("a shuffle from a lane outside of the mask");
  if (from >= 0 && from < 32) std::memcpy(&value, &slots[warp() * 32 + from], sizeof(T));
  meet_warp(mask, what);
  return value;
}
}  // namespace host

inline void __syncthreads() { host::meet(host::block_barrier, host::alive, "__syncthreads"); }
inline void __syncwarp(unsigned mask = 0xffffffffu) { host::meet_warp(mask, "__syncwarp"); }

template <class T> T __shfl_sync(unsigned mask, T value, int from, int width = 32) {
  const int base = host::lane() / width * width;
  return host::exchange(mask, value, base + (from & (width - 1)), "__shfl_sync");
}
template <class T> T __shfl_xor_sync(unsigned mask, T value, int bits, int width = 32) {
  const int from = host::lane() ^ bits;
  return host::exchange(mask, value, from / width == host::lane() / width ? from : -1, "__shfl_xor_sync");
}
template <class T> T __shfl_up_sync(unsigned mask, T value, unsigned distance, int width = 32) {
  const int from = host::lane() - int(distance);
  return host::exchange(mask, value, from >= host::lane() / width * width ? from : -1, "__shfl_up_sync");
}
template <class T> unsigned __match_any_sync(unsigned mask, T value) {
  unsigned same = 0;
  for (int i = 0; i < 32; i++)
    if (mask >> i & 1 && host::warp() * 32 + i < host::threads)
      same |= unsigned(host::exchange(mask, value, i, "__match_any_sync") == value) << i;
  return same;
}

template <class T, class V> T atomicAdd(T* at, V value) {
  const T before = *at;
  *at = before + T(value);
  return before;
}

inline int __ffs(int x) { return x ? std::countr_zero(unsigned(x)) + 1 : 0; }
inline unsigned __float_as_uint(float x) { return std::bit_cast<unsigned>(x); }
inline int __float_as_int(float x) { return std::bit_cast<int>(x); }
inline long long __double_as_longlong(double x) { return std::bit_cast<long long>(x); }
inline double __longlong_as_double(long long x) { return std::bit_cast<double>(x); }
// as wrong as CUDA allows, 2 ulp, up or down
inline float __fdividef(float a, float b) {
  const float exact = a / b;
  if (!std::isfinite(exact) || exact == 0.0f) return exact;
  const int bits = std::bit_cast<int>(exact);
  return std::bit_cast<float>(bits + (bits & 1 ? 2 : -2));
}
inline float __fmul_rn(float a, float b) { return a * b; }
inline double __dmul_rn(double a, double b) { return a * b; }
// CUDA's: of a number and a NaN the number
template <class A, class B> auto min(A a, B b) {
  using T = std::common_type_t<A, B>;
  if constexpr (std::is_floating_point_v<T>) return std::fmin(T(a), T(b));
  else return T(a) < T(b) ? T(a) : T(b);
}
template <class A, class B> auto max(A a, B b) {
  using T = std::common_type_t<A, B>;
  if constexpr (std::is_floating_point_v<T>) return std::fmax(T(a), T(b));
  else return T(a) < T(b) ? T(b) : T(a);
}
using std::isfinite;

// Filled from outside: the section is that of the shared library this is compiled into.
extern "C" char __start_cuda_shared[] __attribute__((weak, visibility("hidden")));
extern "C" char __stop_cuda_shared[] __attribute__((weak, visibility("hidden")));
__attribute__((no_sanitize("address", "undefined"), noinline)) inline void poison_shared() {
  for (volatile char* at = __start_cuda_shared; at < __stop_cuda_shared; at++) *at = char(0xff);
}

// What `f` takes, for the caller to check: one letter each, p: pointer, i: integer, f: floating; and the size in bytes (of
// what a pointer points to).
template <class T> void describe(char* text) {
  using U = std::remove_pointer_t<T>;
  const char letter = std::is_pointer_v<T> ? 'p' : std::is_floating_point_v<T> ? 'f' : 'i';
  const char of = std::is_floating_point_v<U> ? 'f' : std::is_integral_v<U> ? 'i' : 'v';
  std::sprintf(text + std::strlen(text), "%c%c%zu ", letter, of, sizeof(U));
}
template <class... A> void signature(void (*)(A...), char* text) {
  *text = 0;
  (describe<A>(text), ...);
}
template <class... A, size_t... I> void call(void (*f)(A...), void** arguments, std::index_sequence<I...>) {
  f(*static_cast<A*>(arguments[I])...);
}

template <auto F, class... A> void launch_as(void (*)(A...), unsigned blocks, unsigned threads, bool falling, void** arguments) {
  static void** given;
  given = arguments;
  host::threads = int(threads);
  host::falling = falling;
  host::body = [] { call(F, given, std::index_sequence_for<A...>{}); };
  gridDim = {blocks, 1, 1};
  blockDim = {threads, 1, 1};
  for (unsigned b = 0; b < blocks; b++) {
    blockIdx = {falling ? blocks - 1 - b : b, 0, 0};
    poison_shared();
    host::run_block();
  }
}
template <auto F> void launch(unsigned blocks, unsigned threads, bool falling, void** arguments) {
  launch_as<F>(F, blocks, threads, falling, arguments);
}
