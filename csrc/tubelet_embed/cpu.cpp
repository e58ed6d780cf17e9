// The pass over the pixels of tubelet_embed on the CPU: normalises the bytes of the wanted tubelets
// to pixels, and starts their rows with positions and bias. A thread owns chunks of tubelets. A row
// of a tubelet is 3 P bytes in one piece, so channels alternate in a vector; what lies between two
// rows is not read. Bound by memory: a read of a byte and a write of a pixel, once each.
#include "cpu/element_type.hpp"
#include "cpu/parallel.hpp"
#include "cpu/row_chunks.hpp"
#include "cpu/vec.hpp"
#include "cpu/vec_io.hpp"
#include "tubelet_embed/arguments.hpp"

namespace vimpac::VIMPAC_ISA {
namespace {

using Args = TubeletEmbed;

int64_t tubelets_of_a_clip(const Args& a) {
  return int64_t{a.grid[0]} * a.grid[1] * a.grid[2];
}

// The first byte of tubelet number `row` of all that are wanted.
const uint8_t* corner(const Args& a, int64_t row) {
  const int64_t tubelet = a.tubelets[row];
  const int64_t w = tubelet % a.grid[2], h = tubelet / a.grid[2] % a.grid[1];
  const int64_t frame = tubelet / a.grid[2] / a.grid[1] * a.t;
  return a.video + row / a.V * a.strides[0] + frame * a.strides[1] + h * a.P * a.strides[2] +
         w * a.P * 3;
}

// What belongs to the channels, for vectors that start with any of them.
struct Channels {
  float scales[kWidth + 2], shifts[kWidth + 2];

  explicit Channels(const Args& a) {
    for (int i = 0; i < kWidth + 2; ++i) {
      scales[i] = a.scales[i % 3];
      shifts[i] = a.shifts[i % 3];
    }
  }
};

template <class T>
void gather(const Args& a, const Channels& channels, int64_t row) {
  const int64_t line = 3 * int64_t{a.P}, K = a.pixels.columns;
  const uint8_t* const first = corner(a, row);
  T* to = static_cast<T*>(a.pixels.data) + row * K;
  uint8_t* copy = a.patches == nullptr ? nullptr : a.patches + row * K;
  const int64_t to_next = row + 1 < a.pixels.rows ? corner(a, row + 1) - first : 0;
  for (int frame = 0; frame < a.t; ++frame) {
    for (int y = 0; y < a.P; ++y) {
      const uint8_t* const from = first + frame * a.strides[1] + y * a.strides[2];
      prefetch(from + to_next); // of a row, which may lie in two cache lines
      prefetch(from + to_next + line - 1);
      for_each_vector(line, [&](int64_t i, int n) {
        const VecF scales = load(channels.scales + i % 3), shifts = load(channels.shifts + i % 3);
        store_n(to + i, fmadd(load_n(from + i, n), scales, shifts), n);
      });
      to += line;
      if (copy != nullptr) {
        memcpy(copy, from, line);
        copy += line;
      }
    }
  }
}

template <class T>
void start(const Args& a, int64_t row) {
  const int64_t D = a.rows.columns;
  const float* const position = a.positions + a.tubelets[row] * D;
  T* const to = static_cast<T*>(a.rows.data) + row * D;
  for_each_vector(D, [&](int64_t i, int n) {
    store_n(to + i, load_n(position + i, n) + load_n(a.bias + i, n), n);
  });
}

template <class T>
bool forward(const Args& a) {
  const Channels channels(a);
  const RowChunks chunks(a.pixels.rows);
  const int64_t work = a.pixels.rows * (2 * a.pixels.columns + a.rows.columns);
  parallel_for(chunks.count, work, a.num_threads, [&](int64_t chunk) {
    for (int64_t row = chunks.begin(chunk); row < chunks.end(chunk); ++row) {
      gather<T>(a, channels, row);
      if (a.rows.data != nullptr) {
        start<T>(a, row);
      }
    }
  });
  return true;
}

} // namespace

bool tubelet_embed_fwd(const TubeletEmbed& args) {
  const int64_t N = tubelets_of_a_clip(args);
  for (int64_t row = 0; row < args.pixels.rows; ++row) {
    if (args.tubelets[row] < 0 || args.tubelets[row] >= N) {
      *args.invalid = row;
      return true;
    }
  }
  return with_type(args.pixels.type, [&](auto zero) { return forward<decltype(zero)>(args); });
}

} // namespace vimpac::VIMPAC_ISA
