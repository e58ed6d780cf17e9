// The gradients of embed_tokens. Rows of dx are never stored: both kernels compute them again from
// dy and the tables, each in the order in which it adds them.
//
// By places: one to eight warps own a place and some of the clips. They add dx, and the gradients
// of weight and bias, in registers. The sums of a place over its clips are written to scratch
// memory, (parts, S, D), which a second kernel adds along the axes of the grid. The sums of weight
// and bias, one pair for each block, are added by column_sums.cuh.
//
// By ids: the tokens were sorted by id, and warps own runs of equal length of the sorted rows. A
// warp adds rows until the id changes. A sum that begins within the run is written to the gradient
// of the embedding. If an id continues from the previous run, its sum becomes the carry of this
// run, and a last kernel adds the carries of an id in order. So every sum has a fixed order,
// without atomics, however often an id occurs ([MASK] is every seventh token).
//
// Bound by memory: dy is read twice, by places and by ids.
#include "cuda/column_sums.cuh"
#include "cuda/element_type.cuh"
#include "embed_tokens/row_gradient.cuh"
#include "embed_tokens/rows.cuh"

#include <type_traits>

namespace vimpac {
namespace {

template <class E, class Y, int kChunks>
__global__ void __launch_bounds__(kEmbedThreads<kChunks>, kChunks == 2 ? kEmbedPlacesResident : 1)
    embed_tokens_places_kernel(const EmbedProblem a,
                               float* __restrict__ sums,    // (parts, S, D)
                               float* __restrict__ partial, // (blocks, 2, D): weight, bias
                               int warps_per_row) {
  SharedArena arena;
  const RowPlace place(warps_per_row);
  float* shared = arena.take<float>(blockDim.x / 32 * 2);
  float* columns = arena.take<float>(static_cast<size_t>(place.rows) * 2 * a.D); // (rows, 2, D)
  const int s = static_cast<int>(blockIdx.x) * place.rows + place.row, D = a.D;
  const int cell = s - a.has_cls, cells = a.S - a.has_cls;
  const bool live = s < a.S, is_token = live && cell >= 0;
  const uint64_t seed = a.threshold > 0 ? static_cast<uint64_t>(*a.seed) : 0;
  const auto base = common<kChunks>(place, live, D, [&a, cell](float (&x)[kChunk], int column) {
    load_place(x, a, cell, column);
  });
  const auto from_memory = [&a](float (&w)[kChunk], int column) {
    load_chunk(w, a.weight + column);
  };
  const Common<kChunks, false, decltype(from_memory)> weight(place, live, D, from_memory);
  float sum[kChunks][kChunk] = {}, dweight[kChunks][kChunk] = {}, dbias[kChunks][kChunk] = {};
  const int step = static_cast<int>(gridDim.y);
  int clip = static_cast<int>(blockIdx.y);
  int next = is_token && clip < a.B ? token_at(a, static_cast<int64_t>(clip) * cells + cell) : 0;
  for (; clip < a.B; clip += step) {
    const int64_t row = static_cast<int64_t>(clip) * a.S + s;
    const int token = next;
    if (is_token && clip + step < a.B) { // early, for the next row
      next = token_at(a, static_cast<int64_t>(clip + step) * cells + cell);
    }
    float x[kChunks][kChunk] = {}, dx[kChunks][kChunk] = {};
    if (a.weight != nullptr) {
#pragma unroll
      for (int c = 0; c < kChunks; ++c) {
        const int column = place.column + c * place.step;
        if (!live || column >= D) {
          continue;
        }
        if (is_token && token >= 0) {
          load_chunk(x[c],
                     static_cast<const E*>(a.embedding) + static_cast<int64_t>(token) * D + column);
        }
        float at[kChunk];
        base.read(at, c, column);
#pragma unroll
        for (int i = 0; i < kChunk; ++i) { // the mean is NaN for a token outside
          x[c][i] += at[i];
        }
      }
    }
    row_gradient<true, Y>(a, place, weight, seed, row, live, shared, x, dx, dweight, dbias);
#pragma unroll
    for (int c = 0; c < kChunks; ++c) {
#pragma unroll
      for (int i = 0; i < kChunk; ++i) {
        sum[c][i] += dx[c][i];
      }
    }
  }
#pragma unroll
  for (int c = 0; c < kChunks; ++c) {
    const int column = place.column + c * place.step;
    if (column >= D) {
      continue;
    }
    if (live) {
      store_chunk(sums + (static_cast<int64_t>(blockIdx.y) * a.S + s) * D + column, sum[c]);
    }
    float* const at = columns + static_cast<size_t>(place.row) * 2 * D + column;
    store_chunk_shared(at, dweight[c]);
    store_chunk_shared(at + D, dbias[c]);
  }
  if (a.weight == nullptr) {
    return;
  }
  __syncthreads();
  const int64_t block = static_cast<int64_t>(blockIdx.y) * gridDim.x + blockIdx.x;
  for (int j = static_cast<int>(threadIdx.x); j < 2 * D; j += static_cast<int>(blockDim.x)) {
    float total = 0.0f;
    for (int r = 0; r < place.rows; ++r) {
      total += columns[static_cast<size_t>(r) * 2 * D + j];
    }
    partial[block * 2 * D + j] = total;
  }
}

// Adds the sums of the places along the axes: each blockIdx.y makes a row of dvectors (time,
// height, width, cls). Each warp takes every kSumRows-th term; then the warps are added in order.
__global__ void __launch_bounds__(kSumColumns* kSumRows)
    embed_tokens_axes_kernel(const EmbedProblem a,
                             const float* __restrict__ sums, // (parts, S, D)
                             int parts) {
  SharedArena arena;
  float* shared = arena.take<float>(kSumColumns * kSumRows);
  const int lane = static_cast<int>(threadIdx.x) % kSumColumns;
  const int warp = static_cast<int>(threadIdx.x) / kSumColumns;
  const int column = static_cast<int>(blockIdx.x) * kSumColumns + lane;
  const int T = a.grid[0], H = a.grid[1], W = a.grid[2];
  const int vector = static_cast<int>(blockIdx.y);
  const bool is_time = vector < T, is_height = !is_time && vector < T + H;
  const bool is_cls = vector == T + H + W;
  const int terms = is_cls ? a.has_cls : is_time ? H * W : is_height ? T * W : T * H;
  const int at = vector - (is_time ? 0 : is_height ? T : T + H); // on its axis
  float sum = 0.0f;
  if (column < a.D) {
    for (int i = warp; i < parts * terms; i += kSumRows) {
      const int part = i / terms, j = i % terms;
      const int cell = is_time     ? at * H * W + j
                       : is_height ? (j / W * H + at) * W + j % W
                                   : j * W + at;
      const int s = is_cls ? 0 : a.has_cls + cell;
      sum += sums[(static_cast<int64_t>(part) * a.S + s) * a.D + column];
    }
  }
  shared[threadIdx.x] = sum;
  __syncthreads();
  if (warp != 0 || column >= a.D) {
    return;
  }
  sum = 0.0f;
  for (int i = 0; i < kSumRows; ++i) {
    sum += shared[i * kSumColumns + lane];
  }
  a.dvectors[static_cast<int64_t>(vector) * a.D + column] = sum;
}

template <class E, class Y, int kChunks>
__global__ void __launch_bounds__(kEmbedThreads<kChunks>, kChunks == 2 ? kEmbedIdsResident : 1)
    embed_tokens_ids_kernel(const EmbedProblem a,
                            float* __restrict__ carry, // (runs, D)
                            int run,                   // rows
                            int warps_per_row) {
  SharedArena arena;
  float* shared = arena.take<float>(blockDim.x / 32 * 2);
  const RowPlace place(warps_per_row);
  const int number = static_cast<int>(blockIdx.x) * place.rows + place.row, D = a.D;
  const int cells = a.S - a.has_cls;
  const int64_t tokens = static_cast<int64_t>(a.B) * cells;
  const int64_t first = static_cast<int64_t>(number) * run;
  const uint64_t seed = a.threshold > 0 ? static_cast<uint64_t>(*a.seed) : 0;
  const auto weight =
      common<kChunks>(place, a.weight != nullptr, D,
                      [&a](float (&w)[kChunk], int column) { load_chunk(w, a.weight + column); });
  float sum[kChunks][kChunk] = {};
  int id = -1; // of the rows in `sum`; an id outside the embedding stands for none
  float* to = carry + static_cast<int64_t>(number) * D;
  const auto write = [&] {
    if (id < 0 || id >= a.V) {
      return;
    }
#pragma unroll
    for (int c = 0; c < kChunks; ++c) {
      if (place.column + c * place.step < D) {
        store_chunk(to + place.column + c * place.step, sum[c]);
      }
    }
  };
  for (int i = 0; i < run; ++i) {
    const int64_t sorted = first + i;
    const bool here = sorted < tokens;
    const int now = here ? a.sorted_ids[sorted] : -1;
    if (here && now != id) {
      write();
      const bool carried = i == 0 && first > 0 && a.sorted_ids[first - 1] == now;
      to = carried ? carry + static_cast<int64_t>(number) * D
                   : a.dembedding + static_cast<int64_t>(now) * D;
      id = now;
#pragma unroll
      for (int c = 0; c < kChunks; ++c) {
#pragma unroll
        for (int k = 0; k < kChunk; ++k) {
          sum[c][k] = 0.0f;
        }
      }
    }
    const bool live = here && now >= 0 && now < a.V;
    const int64_t token = live ? a.order[sorted] : 0;
    const int cell = static_cast<int>(token % cells);
    const int64_t row = token / cells * a.S + a.has_cls + cell;
    float x[kChunks][kChunk] = {}, dx[kChunks][kChunk] = {};
    if (a.weight != nullptr) {
#pragma unroll
      for (int c = 0; c < kChunks; ++c) {
        const int column = place.column + c * place.step;
        if (!live || column >= D) {
          continue;
        }
        float at[kChunk];
        load_chunk(x[c],
                   static_cast<const E*>(a.embedding) + static_cast<int64_t>(now) * D + column);
        load_place(at, a, cell, column);
#pragma unroll
        for (int k = 0; k < kChunk; ++k) {
          x[c][k] += at[k];
        }
      }
    }
    row_gradient<false, Y>(a, place, weight, seed, row, live, shared, x, dx, nullptr, nullptr);
#pragma unroll
    for (int c = 0; c < kChunks; ++c) {
#pragma unroll
      for (int k = 0; k < kChunk; ++k) {
        sum[c][k] += dx[c][k];
      }
    }
  }
  write();
}

constexpr int kCarryColumns = 512; // of a block, 16 a lane

// Adds the carries of each id to its gradient. One block for each run that may be the first to
// carry its id. Each warp takes every kSumRows-th carry; then the warps are added in order.
__global__ void __launch_bounds__(32 * kSumRows)
    embed_tokens_carry_kernel(const EmbedProblem a,
                              const float* __restrict__ carry, // (runs, D)
                              int run,
                              int runs) {
  SharedArena arena;
  float* shared = arena.take<float>(kSumRows * kCarryColumns);
  const int first = static_cast<int>(blockIdx.x) + 1;
  const auto id_at = [&](int64_t sorted) { return a.sorted_ids[sorted]; };
  const int64_t begin = static_cast<int64_t>(first) * run;
  const int id = id_at(begin);
  const bool carries = id >= 0 && id < a.V && id_at(begin - 1) == id;
  if (!carries || (first > 1 && id_at(begin - run - 1) == id)) {
    return;
  }
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  const int left = static_cast<int>(blockIdx.y) * kCarryColumns;
  float sum[2][kChunk] = {};
  for (int r = first + warp; r < runs && id_at(static_cast<int64_t>(r) * run) == id;
       r += kSumRows) {
#pragma unroll
    for (int c = 0; c < 2; ++c) {
      const int column = left + (c * 32 + lane) * kChunk;
      if (column < a.D) {
        add_chunk(sum[c], carry + static_cast<int64_t>(r) * a.D + column);
      }
    }
  }
#pragma unroll
  for (int c = 0; c < 2; ++c) {
    store_chunk_shared(shared + warp * kCarryColumns + (c * 32 + lane) * kChunk, sum[c]);
  }
  __syncthreads();
  const int column = static_cast<int>(threadIdx.x);
  static_assert(kCarryColumns == 32 * kSumRows); // a thread for each column
  if (left + column >= a.D) {
    return;
  }
  float* const to = a.dembedding + static_cast<int64_t>(id) * a.D + left + column;
  float total = *to;
  for (int i = 0; i < kSumRows; ++i) {
    total += shared[i * kCarryColumns + column];
  }
  *to = total;
}

// How the work is split, which follows from the shape alone, and the offsets of the parts of the
// scratch memory.
struct Plan {
  RowSplit split;
  int parts, groups, run, runs;
  int64_t partial, carry, end; // elements of scratch memory before each

  explicit Plan(const EmbedProblem& a) : split(embed_split(a.D)) {
    parts = embed_parts(a.B, kEmbedPlacesClips);
    groups = (a.S + split.rows() - 1) / split.rows();
    const int64_t tokens = static_cast<int64_t>(a.B) * (a.S - a.has_cls);
    const int64_t fair = (tokens + kEmbedRuns - 1) / kEmbedRuns;
    run = static_cast<int>(fair < kEmbedShortestRun  ? kEmbedShortestRun
                           : fair < kEmbedLongestRun ? fair
                                                     : kEmbedLongestRun);
    runs = static_cast<int>((tokens + run - 1) / run);
    partial = a.dvectors == nullptr ? 0 : static_cast<int64_t>(parts) * a.S * a.D;
    carry = a.dvectors == nullptr ? 0 : partial + static_cast<int64_t>(parts) * groups * 2 * a.D;
    end = carry + (a.dembedding == nullptr ? 0 : static_cast<int64_t>(runs) * a.D);
  }
};

template <class E, class Y, int kChunks>
void launch_bwd(const EmbedProblem& a, float* scratch, Stream stream) {
  const Plan plan(a);
  const RowSplit& split = plan.split;
  const size_t sums = (static_cast<size_t>(split.warps) * 2 + 3) / 4 * 4 * sizeof(float);
  if (a.dvectors != nullptr) {
    const size_t columns = static_cast<size_t>(split.rows()) * 2 * a.D * sizeof(float);
    launch(embed_tokens_places_kernel<E, Y, kChunks>,
           dim3(static_cast<unsigned>(plan.groups), static_cast<unsigned>(plan.parts)),
           split.threads(), sums + columns, stream, a, scratch, scratch + plan.partial,
           split.warps_per_row);
    const int vectors = a.grid[0] + a.grid[1] + a.grid[2] + 1;
    const unsigned tiles = static_cast<unsigned>((a.D + kSumColumns - 1) / kSumColumns);
    launch(embed_tokens_axes_kernel, dim3(tiles, static_cast<unsigned>(vectors)),
           dim3(kSumColumns * kSumRows), kSumColumns * kSumRows * sizeof(float), stream, a, scratch,
           plan.parts);
    float* const dweight = a.dvectors + static_cast<int64_t>(vectors) * a.D;
    if (a.weight != nullptr) {
      add_blocks<false>(scratch + plan.partial, {dweight, dweight + a.D}, plan.parts * plan.groups,
                        2 * a.D, a.D, stream);
    }
  }
  if (a.dembedding == nullptr) {
    return;
  }
  clear(a.dembedding, static_cast<size_t>(a.V) * a.D * sizeof(float), stream);
  const unsigned blocks = static_cast<unsigned>((plan.runs + split.rows() - 1) / split.rows());
  launch(embed_tokens_ids_kernel<E, Y, kChunks>, dim3(blocks), split.threads(), sums, stream, a,
         scratch + plan.carry, plan.run, split.warps_per_row);
  const unsigned tiles = static_cast<unsigned>((a.D + kCarryColumns - 1) / kCarryColumns);
  if (plan.runs > 1) {
    launch(embed_tokens_carry_kernel, dim3(static_cast<unsigned>(plan.runs - 1), tiles),
           dim3(32 * kSumRows), kSumRows * kCarryColumns * sizeof(float), stream, a,
           scratch + plan.carry, plan.run, plan.runs);
  }
}

} // namespace

int64_t embed_tokens_bwd_workspace(const EmbedTokens& args) {
  return Plan(EmbedProblem(args)).end;
}

void embed_tokens_bwd(const EmbedTokens& args) {
  const EmbedProblem a(args);
  const auto stream = static_cast<Stream>(args.stream);
  with_type(args.dy.type, [&](auto y) {
    const auto run = [&](auto e) {
      using E = decltype(e);
      using Y = decltype(y);
      embed_split(a.D).chunks == 2 ? launch_bwd<E, Y, 2>(a, args.workspace, stream)
                                   : launch_bwd<E, Y, 4>(a, args.workspace, stream);
    };
    args.embedding.type == ElementType::kFloat32 ? run(float{}) : run(y);
  });
}

} // namespace vimpac
