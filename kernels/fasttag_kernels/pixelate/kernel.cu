// Eight lanes find the pixels of a jet, four jets side by side in a warp: a sum takes three shuffles, and a division or
// root serves four jets. Then the whole warp draws one image after the other. Coordinates are computed anew in each loop,
// from inputs that are in the cache by then, so that a jet may be of any length.
constexpr int LANES = 8, JETS = WARP / LANES, WARPS = 4;
constexpr int WINDOW = 128;  // constituents whose pixels are known at a time
constexpr unsigned OUTSIDE = 0xffffffffu;
constexpr double PI = 3.141592653589793;
enum { CENTROID, PIXEL, NONE };
constexpr int KINDS = 6, COUNT = 1 << KINDS;  // a channel has a bit for each kind, one for any other, one if it counts

struct Constituent {
  double pt, x, y;
};

// Over the lanes of a jet, in the same order always.
__device__ __forceinline__ double jet_sum(double value) {
  for (int distance = LANES / 2; distance > 0; distance /= 2) value += __shfl_xor_sync(ALL, value, distance);
  return value;
}

// By the whole warp, 16 bytes at a time between the first and the last address that are multiples of it.
__device__ __forceinline__ void fill(IMAGE* image, int64 size, IMAGE value) {
  constexpr int WIDTH = 16 / sizeof(IMAGE);
  struct __align__(16) Wide {
    IMAGE values[WIDTH];
  };
  Wide wide;
  for (int i = 0; i < WIDTH; i++) wide.values[i] = value;
  const int lane = threadIdx.x % WARP;
  const int64 head = min((int64)(-((uint64)image / sizeof(IMAGE)) % WIDTH), size), body = (size - head) / WIDTH;
  Wide* middle = (Wide*)(image + head);
  if (lane < head) image[lane] = value;
#pragma unroll 4
  for (int64 at = lane; at < body; at += WARP) middle[at] = wide;
  if (lane < size - head - body * WIDTH) image[size - 1 - lane] = value;
}

// `codes` are those of `some` channels from number `channel` on; the launch with the first one clears the images.
KERNEL pixelate(const REAL* __restrict__ pt, const REAL* __restrict__ eta, const REAL* __restrict__ phi, const int64* __restrict__ offsets, const signed char* __restrict__ kinds, int64 jets, int npix, double half_width, int center, int rotate, int flip, int normalize, int wrap, uint64 codes, int some, int64 channel, int64 channels, IMAGE* __restrict__ images) {
  __shared__ unsigned cells_of_block[WARPS][JETS][WINDOW];
  __shared__ double weights_of_block[WARPS][WARP];
  const int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, seat = lane % LANES;
  const int64 first_jet = ((int64)blockIdx.x * WARPS + warp) * JETS, jet = first_jet + lane / LANES;
  if (first_jet >= jets) return;
  unsigned(*cells)[WINDOW] = cells_of_block[warp];
  double* weights = weights_of_block[warp];

  const int64 start = jet < jets ? offsets[jet] : 0;
  int n = jet < jets ? (int)(offsets[jet + 1] - start) : 0;
  const REAL *my_pt = pt + start, *my_eta = eta + start, *my_phi = phi + start;
  double eta0 = 0.0, phi0 = 0.0;
  if (n > 0 && center != NONE) {
    int lead = 0;
    while (lead + 1 < n && !(my_pt[lead] > 0)) lead++;
    eta0 = my_eta[lead], phi0 = my_phi[lead];
  }
  const double turn = wrap ? 2 * PI : 0.0;
  const auto constituent = [=](int i) {
    const double w = my_pt[i], x = my_eta[i] - eta0, y = my_phi[i] - phi0;
    return Constituent{w <= 0.0 ? 0.0 : w, x, y - turn * floor((y + PI) * (1 / (2 * PI)))};
  };

  double w = 0.0, x = 0.0, y = 0.0;
  for (int i = seat; i < n; i += LANES) {
    const Constituent at = constituent(i);
    w += at.pt, x += at.pt * at.x, y += at.pt * at.y;
  }
  w = jet_sum(w), x = jet_sum(x), y = jet_sum(y);
  const double blank = isfinite(w + x + y) ? 0.0 : NOT_A_NUMBER;
  if (!(blank == 0.0 && w > 0.0)) n = 0;
  x /= w, y /= w;
  const double scale = npix / (2.0 * half_width), x0 = center == CENTROID ? x : -eta0, y0 = center == CENTROID ? y : -phi0;
  const double left = ceil((eta0 + x) * scale - 0.5) - npix / 2, low = ceil((phi0 + y) * scale - 0.5) - npix / 2;

  double xx = 1.0, xy = 0.0, yx = 0.0, yy = 1.0;  // the matrix that rotates and flips
  if (rotate) {
    double along_x = 0.0, along_y = 0.0, mixed = 0.0;
#pragma unroll 1
    for (int i = seat; i < n; i += LANES) {
      const Constituent at = constituent(i);
      const double dx = at.x - x0, dy = at.y - y0;
      along_x += at.pt * dx * dx, along_y += at.pt * dy * dy, mixed += at.pt * dx * dy;
    }
    along_x = jet_sum(along_x), along_y = jet_sum(along_y), mixed = jet_sum(mixed);
    const double a = along_x - along_y, b = 2.0 * mixed, r = sqrt(a * a + b * b);
    if (r > 1e-10 * (along_x + along_y)) {
      // cos and sin of half the angle of (a, b); the larger one first, the other without cancellation
      const double larger = sqrt(0.5 * (1.0 + fabs(a) / r)), smaller = b / (2.0 * r * larger);
      yx = a >= 0.0 ? larger : fabs(smaller), yy = a >= 0.0 ? smaller : b < 0.0 ? -larger : larger;
      xx = yy, xy = -yx;
    }
  }
  if (flip) {
    double right_pt = 0.0, left_pt = 0.0, upper_pt = 0.0, lower_pt = 0.0;
#pragma unroll 1
    for (int i = seat; i < n; i += LANES) {
      const Constituent at = constituent(i);
      const double dx = at.x - x0, dy = at.y - y0, column = xx * dx + xy * dy, row = yx * dx + yy * dy;
      if (column > 0.0) right_pt += at.pt;
      if (column < 0.0) left_pt += at.pt;
      if (row > 0.0) upper_pt += at.pt;
      if (row < 0.0) lower_pt += at.pt;
    }
    right_pt = jet_sum(right_pt), left_pt = jet_sum(left_pt), upper_pt = jet_sum(upper_pt), lower_pt = jet_sum(lower_pt);
    if (left_pt > right_pt * (1.0 + 1e-12)) xx = -xx, xy = -xy;
    if (lower_pt > upper_pt * (1.0 + 1e-12)) yx = -yx, yy = -yy;
  }

  // Pixels of the constituents from number `first` on; gives the pt inside that this lane has seen.
  const auto find_cells = [=](int first) {
    double inside = 0.0;
#pragma unroll 1
    for (int i = seat; i < min(n - first, WINDOW); i += LANES) {
      const Constituent at = constituent(first + i);
      const double dx = at.x - x0, dy = at.y - y0;
      double column = (xx * dx + xy * dy + half_width) * scale, row = (yx * dx + yy * dy + half_width) * scale;
      if (center == PIXEL) column = ceil(dx * scale - 0.5) - left, row = ceil(dy * scale - 0.5) - low;
      const bool hit = column >= 0.0 && column < npix && row >= 0.0 && row < npix;
      cells[lane / LANES][i] = hit ? (unsigned)row * npix + (unsigned)column : OUTSIDE;
      inside += hit ? at.pt : 0.0;
    }
    return inside;
  };
  double inside = 0.0;
  for (int first = 0; first < n; first += WINDOW) inside += find_cells(first);
  inside = jet_sum(inside);
  const double unit = normalize && inside > 0.0 ? 1.0 / inside : 1.0;
  int longest = n;
  for (int distance = LANES; distance < WARP; distance *= 2) longest = max(longest, __shfl_xor_sync(ALL, longest, distance));

  const int64 pixels = (int64)npix * npix;
  const int side_by_side = (int)min((int64)JETS, jets - first_jet);
  for (int first = 0; first == 0 || first < longest; first += WINDOW) {
    if (longest > WINDOW) find_cells(first);
    __syncwarp();
    for (int j = 0; j < side_by_side; j++) {
      const int here = min(__shfl_sync(ALL, n, j * LANES) - first, WINDOW);
      const int64 from = __shfl_sync(ALL, start, j * LANES) + first;
      const double unit_here = __shfl_sync(ALL, unit, j * LANES), blank_here = __shfl_sync(ALL, blank, j * LANES);
      IMAGE* image = images + (first_jet + j) * channels * pixels;
      if (first == 0 && channel == 0) fill(image, channels * pixels, (IMAGE)blank_here);
      image += channel * pixels;
      for (int c = 0; c < some; c++, image += pixels) {
        const int code = codes >> c * (KINDS + 1) & (2 * COUNT - 1);
        for (int i = lane; i - lane < here; i += WARP) {
          const unsigned cell = i < here ? cells[j][i] : OUTSIDE;
          double weight = 0.0;
          if (cell != OUTSIDE) {
            const REAL one = pt[from + i];
            const int kind = kinds ? min((int)(unsigned char)kinds[from + i], KINDS - 1) : 0;
            if (one > 0 && code >> kind & 1) weight = code & COUNT ? 1.0 : (double)one;
          }
          weights[lane] = weight;
          const unsigned same = __match_any_sync(ALL, cell);
          __syncwarp();
          // the first lane in a pixel owns it; beyond the first 32 constituents a pixel may have been written before
          if (cell != OUTSIDE && lane == __ffs(same) - 1) {
            double total = 0.0;
            for (unsigned rest = same; rest; rest &= rest - 1) total += weights[__ffs(rest) - 1];
            if (!(code & COUNT)) total *= unit_here;
            image[cell] = (IMAGE)(first + i < WARP ? total : image[cell] + total);
          }
          __syncwarp();
        }
      }
    }
  }
}
