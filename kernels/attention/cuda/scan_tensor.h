// The scan on tensor cores, for heads of up to kLargestTensorDim features of any dtype but float64. Heads of other
// sizes than those of the kernels are padded with zeros. Of four warps, each computes out of 16 rows of the chunk and a
// part of the tile's features, and holds a part of the state's rows in registers, in float. The state and the weighted
// rows enter products as sums of pieces, see pieces.h.
#pragma once

#include <cuda_pipeline_primitives.h>

#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "kernels/attention/cuda/scan.h"
#include "kernels/common/cuda/async.h"
#include "kernels/common/cuda/pieces.h"
#include "kernels/common/cuda/reduce.h"
#include "kernels/common/cuda/vec.h"

namespace heddle::kernels::cuda {
namespace detail {

inline constexpr int kWarps = 4, kTensorThreads = 32 * kWarps;

// KEYS: key features; VALUES: value features of the block; ROWS: tokens of a chunk. The rows of 16-bit types are copied
// asynchronously while the chunk before is computed; floats are split into pieces when they are loaded.
template <class T, int KEYS, int VALUES, int ROWS>
struct TensorShape {
  static constexpr int kStages = sizeof(T) == 2 ? 2 : 1;
  static constexpr int kRowTiles = ROWS / 16, kColumnParts = kWarps / kRowTiles;
  static constexpr int kColumns = VALUES / kColumnParts;  // of out in one warp
  static constexpr int kStateTiles =
      KEYS / 16 > kWarps ? KEYS / 16 / kWarps : 1;  // tiles of 16 rows of the state in one

  struct Decays {
    float2 sums[ROWS];  // negated in a scan from the end
    float in[ROWS], to[ROWS];
    float2 whole;  // as the sum of two floats: a long sequence multiplies many of them
  };
  struct Shared {
    StoredMatrix<T, ROWS, KEYS> query;
    StoredMatrix<T, ROWS, KEYS> key[kStages];
    StoredMatrix<T, ROWS, VALUES> value[kStages];
    ComputedMatrix<T, KEYS, VALUES> state;
    Decays decays[2];
  };
  // What the gradient of the log decays needs besides.
  struct DecayShared {
    StoredMatrix<T, ROWS, VALUES> partner;
    float pairs[ROWS][ROWS + 1];  // P
    float rows[kColumnParts][ROWS];
    float warps[kWarps];
  };
  static constexpr size_t kDecayOffset = (sizeof(Shared) + 15) / 16 * 16;
};

// Loads `width` features from `offset` on of the chunk's rows into a matrix; features beyond the view's and rows beyond
// the chunk's become 0. 16-bit types are copied asynchronously if `vectorized`, 16 bytes at a time.
template <class T, int ROWS, int COLS>
__device__ __forceinline__ void load_rows(const ScanArgs<float>& args, const HeadsView& view, int64_t batch,
                                          int64_t head_index, const ScanChunk& chunk, int64_t offset, bool vectorized,
                                          StoredMatrix<T, ROWS, COLS>& to) {
  constexpr int kWidth = sizeof(T) == 2 ? 8 : 4;
  const auto row = [&](int r) { return head<const T>(view, batch, args.token(chunk, r), head_index) + offset; };
  if (vectorized) {
    for (int e = threadIdx.x; e < ROWS * COLS / kWidth; e += kTensorThreads) {
      const int r = e / (COLS / kWidth), c = e % (COLS / kWidth) * kWidth;
      const bool is_there = r < chunk.rows && offset + c < view.dim;
      if constexpr (sizeof(T) == 2) {
        T* const place = to.row(r) + c;
        if (is_there) {
          __pipeline_memcpy_async(place, row(r) + c, 16);
        } else {
          *reinterpret_cast<uint4*>(place) = uint4{0, 0, 0, 0};
        }
      } else {
        const float4 four = is_there ? *reinterpret_cast<const float4*>(row(r) + c) : float4{0.0f, 0.0f, 0.0f, 0.0f};
        to.put_pair(r, c, four.x, four.y);
        to.put_pair(r, c + 2, four.z, four.w);
      }
    }
    return;
  }
  for (int e = threadIdx.x; e < ROWS * COLS / 2; e += kTensorThreads) {
    const int r = e / (COLS / 2), c = e % (COLS / 2) * 2;
    const auto number = [&](int col) {
      return r < chunk.rows && offset + col < view.dim ? row(r)[col] : narrow<T>(0.0f);
    };
    if constexpr (sizeof(T) == 2) {
      to.row(r)[c] = number(c);
      to.row(r)[c + 1] = number(c + 1);
    } else {
      to.put_pair(r, c, number(c), number(c + 1));
    }
  }
}

// What each thread of a block knows of its place. Fragments are laid out as mma.h says.
template <class Shape>
struct Place {
  int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  int g = lane / 4, t2 = lane % 4 * 2;
  int row_tile = warp % Shape::kRowTiles * 16;             // the warp's rows of the chunk
  int column = warp / Shape::kRowTiles * Shape::kColumns;  // and features of the tile
  int state_row = warp * 16 * Shape::kStateTiles;          // the warp's rows of the state, if there are any
};

// out = exp(..) query S for the warp's rows and columns. query(d) is the fragment of features d to d + 15.
template <class T, class Shape, int KEYS, int TILES, class Query>
__device__ __forceinline__ void apply_state(const typename Shape::Shared& shared, const typename Shape::Decays& decays,
                                            const Place<Shape>& place, const Query& query, FragmentC (&out)[TILES]) {
#pragma unroll
  for (int d = 0; d < KEYS; d += 16) {
    const auto q = pieces<T>(query(d));
#pragma unroll
    for (int n = 0; n < TILES / 2; ++n) multiply(out + 2 * n, q, load_b(shared.state, d, place.column + n * 16));
  }
  const float upper = decays.in[place.row_tile + place.g], lower = decays.in[place.row_tile + place.g + 8];
#pragma unroll
  for (int n = 0; n < TILES; ++n) {
    out[n].values[0] *= upper;
    out[n].values[1] *= upper;
    out[n].values[2] *= lower;
    out[n].values[3] *= lower;
  }
}

// The sums over the warp's columns of `numbers` times those of `partner`: for the thread's upper and lower row.
template <class Matrix, int TILES, class Shape>
__device__ __forceinline__ float2 products_with(const FragmentC (&numbers)[TILES], const Matrix& partner,
                                                const Place<Shape>& place) {
  float2 sums = {0.0f, 0.0f};
#pragma unroll
  for (int n = 0; n < TILES; ++n) {
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      const int column = place.column + n * 8 + place.t2 + e;
      sums.x += numbers[n].values[e] * partner.value(place.row_tile + place.g, column);
      sums.y += numbers[n].values[2 + e] * partner.value(place.row_tile + place.g + 8, column);
    }
  }
  return {group_sum<4>(sums.x), group_sum<4>(sums.y)};
}

template <class T, int KEYS, int VALUES, int ROWS>
__global__ void __launch_bounds__(kTensorThreads)
    scan_tensor(const __grid_constant__ ScanArgs<float> args, bool vectorized) {
  using Shape = TensorShape<T, KEYS, VALUES, ROWS>;
  using Shared = typename Shape::Shared;
  constexpr int kTiles = Shape::kColumns / 8;  // of out
  constexpr int kStateTiles = Shape::kStateTiles;
  constexpr bool kStaged = Shape::kStages == 2;
  extern __shared__ __align__(16) unsigned char raw[];
  Shared& shared = *reinterpret_cast<Shared*>(raw);
  auto& decay_shared = *reinterpret_cast<typename Shape::DecayShared*>(raw + Shape::kDecayOffset);
  const Place<Shape> place;
  const int64_t head_index = blockIdx.x % args.query.heads, batch = blockIdx.x / args.query.heads;
  const int64_t state_head = args.state_head(batch, head_index), shared_head = head_index / args.group;
  const int64_t first_value = int64_t{blockIdx.y} * VALUES;
  const bool from_end = args.from_end, wants_decay = args.token_gradients != nullptr;
  const int64_t chunks = parts_of(args.query.length, ROWS);

  ChunkWalk<float> walk(args, state_head, ROWS);
  RowDecay<float> row_decay;  // of row threadIdx.x of the next chunk
  const auto fetch = [&](const ScanChunk& chunk, int stage) {
    if (chunk.rows > 0) {
      load_rows<T>(args, args.query, batch, head_index, chunk, 0, vectorized, shared.query);
      load_rows<T>(args, args.key, batch, shared_head, chunk, 0, vectorized, shared.key[stage % Shape::kStages]);
      load_rows<T>(args, args.value, batch, shared_head, chunk, first_value, vectorized,
                   shared.value[stage % Shape::kStages]);
      if (threadIdx.x < chunk.rows) row_decay = RowDecay<float>(args, state_head, chunk, threadIdx.x);
    }
    __pipeline_commit();
  };
  // Needs what fetch() has loaded of the chunk.
  const auto put_decays = [&](const ScanChunk& chunk, typename Shape::Decays& to) {
    const int r = threadIdx.x;
    if (r >= ROWS) return;
    const bool is_there = r < chunk.rows;
    to.sums[r] = !is_there ? float2{0.0f, 0.0f} : from_end ? negated(row_decay.own) : row_decay.own;
    to.in[r] = !is_there ? 0.0f : from_end ? row_decay.to_last() : row_decay.from_begin();
    to.to[r] = !is_there ? 0.0f : args.inner * (from_end ? row_decay.from_begin() : row_decay.to_last());
    if (r == 0) {
      const double whole = row_decay.whole();
      const float high = static_cast<float>(whole);
      to.whole = {high, static_cast<float>(whole - static_cast<double>(high))};
    }
  };

  // The warp's rows of the state; the last warps of a narrow state have none.
  const bool owns_state = place.state_row < KEYS;
  FragmentC state[kStateTiles][VALUES / 8];
  const auto for_each_state = [&](const auto& visit) {  // visit(key feature, feature of the tile, two numbers)
#pragma unroll
    for (int m = 0; m < kStateTiles; ++m) {
#pragma unroll
      for (int n = 0; n < VALUES / 8; ++n) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          visit(place.state_row + m * 16 + place.g + half * 8, n * 8 + place.t2, state[m][n].values + 2 * half);
        }
      }
    }
  };
  // The same for each number that is no padding.
  const auto for_each_number = [&](const auto& visit) {
    for_each_state([&](int d, int c, float* numbers) {
      for (int e = 0; e < 2; ++e) {
        if (d < args.query.dim && first_value + c + e < args.value.dim) visit(d, first_value + c + e, numbers[e]);
      }
    });
  };
  const auto history = [&](const ScanChunk& chunk, int64_t d, int64_t c) -> float& {
    return args.history[((state_head * chunks + chunk.begin / ROWS) * args.query.dim + d) * args.value.dim + c];
  };
  const auto share_state = [&] {
    if (!owns_state) return;
    for_each_state([&](int d, int c, const float* s) { shared.state.put_pair(d, c, s[0], s[1]); });
  };

  ScanChunk chunk = walk.next();
  fetch(chunk, 0);
  put_decays(chunk, shared.decays[0]);
  if (owns_state && args.state_in.data != nullptr) {
    for_each_number([&](int64_t d, int64_t c, float& s) { s = args.state_in.at(state_head, d, c); });
  }
  share_state();

  for (int stage = 0; chunk.rows > 0; stage ^= 1) {
    const ScanChunk next = walk.next();
    __pipeline_wait_prior(0);
    __syncthreads();  // the chunk, its decays and the state are written
    const typename Shape::Decays& decays = shared.decays[stage];
    const auto& key = shared.key[stage % Shape::kStages];
    const auto& value = shared.value[stage % Shape::kStages];
    const bool is_forgotten = !from_end && chunk.starts_anew;  // the state from before
    const bool has_rows = place.row_tile < chunk.rows;
    // The warp's rows of query are kept in registers where they fit, so that those of the next chunk can be fetched.
    PiecesA<1> kept[kStaged ? KEYS / 16 : 1];
    if constexpr (kStaged) {
#pragma unroll
      for (int d = 0; d < KEYS / 16; ++d) kept[d] = load_a(shared.query, place.row_tile, d * 16);
    }
    const auto query = [&](int d) {
      if constexpr (kStaged) {
        return kept[d / 16];
      } else {
        return load_a(shared.query, place.row_tile, d);
      }
    };
    if (wants_decay) {
      load_rows<T>(args, args.partner, batch, head_index, chunk, first_value, false, decay_shared.partner);
      if (!from_end && !chunk.starts_anew && owns_state) {
        for_each_number([&](int64_t d, int64_t c, float& s) { history(chunk, d, c) = s; });
      }
    }
    if (kStaged || wants_decay) __syncthreads();  // the rows of query are read, those of partner written
    if (kStaged) fetch(next, stage ^ 1);

    FragmentC out[kTiles];
    if (has_rows && !is_forgotten) apply_state<T, Shape, KEYS>(shared, decays, place, query, out);
    if (wants_decay) {
      float2 sums = products_with(out, decay_shared.partner, place);
      if (is_forgotten) sums = {0.0f, 0.0f};
      if (place.t2 == 0) {
        float* const rows = decay_shared.rows[place.warp / Shape::kRowTiles];
        rows[place.row_tile + place.g] = sums.x * args.outer;
        rows[place.row_tile + place.g + 8] = sums.y * args.outer;
      }
    }
#pragma unroll 1
    for (int j = 0; j < ROWS; j += 16) {
      if (!has_rows || j > place.row_tile) break;
      FragmentC scores[2];
#pragma unroll
      for (int d = 0; d < KEYS; d += 16) {
        multiply_stored<T>(scores, query(d), load_b_transposed(key, j, d));
      }
      const auto sees = [&](int row, int depth) { return place.row_tile + row >= j + depth; };
#pragma unroll
      for (int part = 0; part < 2; ++part) {
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          const int row = place.g + e / 2 * 8, depth = part * 8 + place.t2 + e % 2;
          const float2 exponent = difference(decays.sums[place.row_tile + row], decays.sums[j + depth]);
          const float power = sizeof(T) == 2 ? fast_exp2(exponent.x + exponent.y) : decay_power(exponent);
          float& score = scores[part].values[e];
          score = sees(row, depth) ? score * (args.inner * power) : 0.0f;
        }
      }
      if (wants_decay && !from_end && place.column == 0) {
        FragmentC pairs[2];
#pragma unroll
        for (int c = 0; c < VALUES; c += 16) {
          multiply_stored<T>(pairs, load_a(decay_shared.partner, place.row_tile, c), load_b_transposed(value, j, c));
        }
#pragma unroll
        for (int e = 0; e < 8; ++e) {
          const int row = place.g + e % 4 / 2 * 8, depth = e / 4 * 8 + place.t2 + e % 2;
          decay_shared.pairs[place.row_tile + row][j + depth] =
              sees(row, depth) ? pairs[e / 4].values[e % 4] * scores[e / 4].values[e % 4] * args.outer : 0.0f;
        }
      }
      if (j < place.row_tile) {
        add_product<T>(out, scores, value, j, place.column);
      } else {
        add_masked_product<T>(out, scores, value, j, place.column, sees);
      }
    }
    if (args.out && has_rows) {
      const auto put = [&](auto* row, int c, float first, float second) {
        using Out = std::remove_pointer_t<decltype(row)>;
        Out* const to = row + c;
        const bool adds = args.out.mode == GradientMode::accumulate;
        if (vectorized) {  // both are there, and the address is a multiple of their size
          Vec<Out, 2> both;
          if (adds) both = load<2>(to);
          both[0] = narrow<Out>(adds ? first + widen(both[0]) : first);
          both[1] = narrow<Out>(adds ? second + widen(both[1]) : second);
          store(to, both);
        } else {
          to[0] = narrow<Out>(adds ? first + widen(to[0]) : first);
          if (first_value + c + 1 < args.value.dim) to[1] = narrow<Out>(adds ? second + widen(to[1]) : second);
        }
      };
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int r = place.row_tile + place.g + half * 8;
        if (r >= chunk.rows) continue;
        const int64_t token = args.token(chunk, r);
#pragma unroll
        for (int n = 0; n < kTiles; ++n) {
          const int c = place.column + n * 8 + place.t2;
          if (first_value + c >= args.value.dim) continue;
          const float first = out[n].values[2 * half] * args.outer, second = out[n].values[2 * half + 1] * args.outer;
          if (sizeof(T) == 4 || args.out.view.dtype == dtype_of<T>) {
            put(head<T>(args.out.view, batch, token, head_index) + first_value, c, first, second);
          } else {
            put(head<float>(args.out.view, batch, token, head_index) + first_value, c, first, second);
          }
        }
      }
    }

    float crossing = 0.0f;  // exp(L_last) <S, dS>
    if (wants_decay && from_end && !chunk.starts_anew && owns_state) {
      for_each_number([&](int64_t d, int64_t c, float& s) { crossing += history(chunk, d, c) * s; });
    }
    if (owns_state) {
      const bool is_cleared = from_end && chunk.starts_anew;
      const float2 whole = decays.whole;
#pragma unroll
      for (int m = 0; m < kStateTiles; ++m) {
        PiecesA<kComputedPieces<T>> k[ROWS / 16];  // key^T, weighted
#pragma unroll
        for (int j = 0; j < ROWS / 16; ++j) {
          const auto stored = load_a_transposed(key, j * 16, place.state_row + m * 16);
#pragma unroll
          for (int w = 0; w < 4; ++w) {
            const int depth = j * 16 + place.t2 + w / 2 * 8;
            float2 pair = {0.0f, 0.0f};
#pragma unroll
            for (int p = 0; p < Stored<T>::kPlanes; ++p) {
              const float2 part = unpack<typename Stored<T>::type>(stored.parts[p].words[w]);
              pair.x += part.x;
              pair.y += part.y;
            }
            unsigned words[kComputedPieces<T>];
            split(pair.x * decays.to[depth], pair.y * decays.to[depth + 1], words);
#pragma unroll
            for (int p = 0; p < kComputedPieces<T>; ++p) k[j].parts[p].words[w] = words[p];
          }
        }
#pragma unroll
        for (int n = 0; n < VALUES / 16; ++n) {
          FragmentC sum[2];
#pragma unroll
          for (int j = 0; j < ROWS / 16; ++j) multiply(sum, k[j], pieces<T>(load_b(value, j * 16, n * 16)));
#pragma unroll
          for (int e = 0; e < 8; ++e) {
            float& s = state[m][2 * n + e / 4].values[e % 4];
            const float added = sum[e / 4].values[e % 4];
            s = is_cleared ? 0.0f : chunk.starts_anew ? added : fmaf(s, whole.x, fmaf(s, whole.y, added));
          }
        }
      }
    }
    if (wants_decay && from_end) {
      const float sum = group_sum(crossing);
      if (place.lane == 0) decay_shared.warps[place.warp] = sum * decays.whole.x;
    }
    __syncthreads();  // all warps have read the chunk and the state from before
    if (wants_decay) {
      const int r = threadIdx.x;
      if (!from_end) {
        if (r < chunk.rows) {
          for (int j = 1; j < r; ++j) decay_shared.pairs[r][j] += decay_shared.pairs[r][j - 1];
        }
        __syncthreads();
      }
      if (r < chunk.rows) {
        float sum = 0.0f;
        const auto row = [&](int i) {
          float both = 0.0f;
          for (int part = 0; part < Shape::kColumnParts; ++part) both += decay_shared.rows[part][i];
          return both;
        };
        if (from_end) {
          for (int w = 0; w < kWarps; ++w) sum += chunk.starts_anew ? 0.0f : decay_shared.warps[w];
          for (int j = r + 1; j < chunk.rows; ++j) sum += row(j);
        } else {
          for (int i = r; i < chunk.rows; ++i) sum += row(i) + (r > 0 ? decay_shared.pairs[i][r - 1] : 0.0f);
        }
        float& to = args.token_gradients[(int64_t{blockIdx.y} * args.query.batch * args.heads + state_head) *
                                             args.query.length +
                                         args.token(chunk, r)];
        to = from_end ? to + sum : sum;
      }
    }
    share_state();
    if (!kStaged) fetch(next, stage ^ 1);
    put_decays(next, shared.decays[stage ^ 1]);
    chunk = next;
  }
  __pipeline_wait_prior(0);
  if (args.state_out.data == nullptr || !owns_state) return;
  for_each_number([&](int64_t d, int64_t c, float& s) { put_state(args, state_head, d, c, s); });
}

// Returns the number of tiles; 0, with nothing launched, where the GPU has too little shared memory.
template <class T, int KEYS, int VALUES, int ROWS>
int64_t launch_tensor(Context& context, const ScanArgs<float>& args) {
  using Shape = TensorShape<T, KEYS, VALUES, ROWS>;
  const size_t bytes =
      Shape::kDecayOffset + (args.token_gradients != nullptr ? sizeof(typename Shape::DecayShared) : 0);
  if (bytes > context.properties().shared_bytes_per_block) return 0;
  const bool vectorized =
      can_vectorize_all(sizeof(T) == 2 ? 8 : 4, args.query, args.key, args.value) && can_vectorize(args.out.view, 2);
  const int64_t tiles = parts_of(args.value.dim, VALUES);
  const dim3 grid(static_cast<unsigned>(args.query.batch * args.query.heads), static_cast<unsigned>(tiles));
  HEDDLE_LAUNCH(context, (scan_tensor<T, KEYS, VALUES, ROWS>), grid, kTensorThreads, bytes, args, vectorized);
  return tiles;
}

}  // namespace detail

template <class T>
int64_t scan_on_tensor_cores(Context& context, const ScanArgs<accumulate_t<T>>& args) {
  constexpr int kRows = sizeof(T) == 2 ? 64 : 32;
  const int64_t keys = args.query.dim;
  if (keys <= 32) return detail::launch_tensor<T, 32, 32, 64>(context, args);
  if (keys <= 64) return detail::launch_tensor<T, 64, 64, 64>(context, args);
  if (keys <= 128) return detail::launch_tensor<T, 128, 64, kRows>(context, args);
  if (keys <= kLargestTensorDim) return detail::launch_tensor<T, 256, 32, kRows>(context, args);
  return 0;
}
}  // namespace heddle::kernels::cuda
