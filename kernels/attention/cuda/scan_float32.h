// The scan on the matrix instructions of warpgroups (sm_90a), for float32 heads of up to 128 features of query and key.
// Every number enters products as the sum of three bfloat16 pieces, see pieces.h. A block has one or two warpgroups,
// each with the state of 64 value features in registers, transposed and in float; chunks have 64 tokens. In a chunk
//   scores = query key^T                       each warpgroup computes a part of the columns
//   out^T  = in (S^T query^T) + value^T scores^T
//   S^T    = whole S^T + (to value)^T key
// so that all that is computed from the state or from value is operand A and comes from registers, split while the
// products of the numbers before run; query, key and weighted scores lie in shared memory. in, to and whole are the
// weights of scan.h. Rows of query and key are copied asynchronously while the chunk before is computed; every thread
// splits the numbers that it has copied itself, and loads those of value that it needs. Of the products of pieces the
// small ones are added up first, and sums over the features or the tokens of a chunk are added to the others in float,
// since tensor cores cut what they add to a sum.
#pragma once

#include <cmath>
#include <cstdint>

#include "kernels/attention/cuda/scan.h"
#include "kernels/attention/cuda/scan_decays.h"
#include "kernels/attention/cuda/scan_float32_products.h"
#include "kernels/attention/cuda/scan_float32_shape.h"
#include "kernels/attention/cuda/wgmma.h"
#include "kernels/common/cuda/activation.h"
#include "kernels/common/cuda/pieces.h"

namespace heddle::kernels::cuda {
namespace detail {

// The work of one block. OUT: out is wanted, not the last state alone. ADDS: out (+=), else out (=).
template <class Shape, bool OUT, bool ADDS>
class Float32Scan {
 public:
  using Shared = typename Shape::Shared;

  // `aligned` as in Float32Rows.
  __device__ __forceinline__ Float32Scan(const ScanArgs<float>& args, bool aligned, Shared& shared)
      : args_(args),
        shared_(shared),
        aligned_(aligned),
        query_(args.query, batch(), head_index(), args.from_end, shared_address(shared.raw_query)),
        key_(args.key, batch(), head_index() / args.group, args.from_end, shared_address(shared.raw_key)),
        decays_(args, state_head()),
        value_(head<const float>(args.value, batch(), 0, head_index() / args.group) + feature()) {
    if constexpr (OUT) out_ = head<float>(args.out.view, batch(), 0, head_index()) + feature();
  }

  __device__ __forceinline__ void run() {
    if (threadIdx.x == 0) {
      shared_.walk.start(args_, state_head(), Shape::kRows);
      for (int i = 0; i < 2; ++i) shared_.chunks[i] = shared_.walk.get().next();
    }
    __syncthreads();
    fetch(shared_.chunks[0]);
    const int64_t state_head = this->state_head();
    if (const StateView<float> state_in = args_.span().state_in; state_in.data != nullptr) {
      for_each_number([&](int64_t d, int64_t c, float& s) { s = state_in.at(state_head, d, c); });
    }
    for (int i = 0; shared_.chunks[i].rows > 0;) {
      const int next = i == 2 ? 0 : i + 1, after = next == 2 ? 0 : next + 1;
      advance(shared_.chunks[i], shared_.chunks[next], shared_.chunks[after]);
      i = next;
    }
    __pipeline_wait_prior(0);
    const ScanSpan<float> span = args_.span();
    if (span.state_out.data == nullptr) return;
    for_each_number([&](int64_t d, int64_t c, float& s) { put_state(args_, span, state_head, d, c, s); });
  }

 private:
  static constexpr int kKeys = Shape::kKeys, kRows = Shape::kRows, kKeySteps = kKeys / 16, kRowSteps = kRows / 16;
  static constexpr int kStateTiles = kKeys / 8, kScoreTiles = 8 / Shape::kGroups;
  static constexpr int kOutTiles = 8 / kRowSteps;  // of a part of out
  static constexpr int kKeyBytes = sizeof(SwizzledMatrix<bf16, kRows, Shape::kPaddedKeys>);
  static constexpr int kScoreBytes = sizeof(SwizzledMatrix<bf16, kRows, kRows>);
  static constexpr cuda::Stored kByRows = cuda::Stored::by_rows, kByDepth = cuda::Stored::by_depth;

  // Computes `chunk`, whose rows of query and key are under way, starts to copy those of `next`, and finds the chunk
  // after it.
  __device__ __forceinline__ void advance(const ScanChunk& chunk, const ScanChunk& next, ScanChunk& after_next) {
    float2 values[kRowSteps][4];  // those of the thread in operand A of value^T
    load_values(chunk, values);
    decays_.fetch(chunk);
    __pipeline_wait_prior(0);
    __syncthreads();  // the pieces and decays of the chunk before have been read
    if constexpr (OUT) query_.split(shared_.query);
    key_.split(shared_.key);
    decays_.put(chunk, shared_.decays);
    fence_async_proxy();
    __syncthreads();
    FragmentC out[8];
    unsigned lost_features = 0;  // a bit for each of the thread's features whose values are not all finite
    if constexpr (OUT) {
      start_products_with_state(next, out);
      lost_features = drop_not_finite(values);
      fence_async_proxy();
      __syncthreads();  // all scores are there
      FragmentC added[8];
      start_product<kByRows, kRowSteps, kScoreBytes>([&](int j, float2(&pairs)[4]) { copy_pairs(values[j], pairs); },
                                                     shared_.scores[0].by_rows(0, 0), added);
      hold(out);
      scale(chunk, out);
      wgmma_wait<0>();
      hold(added);
#pragma unroll
      for (int n = 0; n < 8; ++n) {
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          float& number = out[n].values[e];
          number = fmaf(added[n].values[e], args_.inner, number);
        }
      }
      if (__any_sync(0xffffffffu, lost_features != 0)) {
        add_not_finite(args_, chunk, shared_.scores, value_, feature(), t2_, out);
      }
    }
    if constexpr (!OUT) fetch(next);
    FragmentC sum[kStateTiles];
    float before[kOutTiles][4] = {};  // of a part of out, where it is added to
    start_product<kByDepth, kRowSteps, kKeyBytes>([&](int j, float2(&pairs)[4]) { weigh(j, values[j], pairs); },
                                                  shared_.key[0].by_depth(0, 0), sum,
                                                  [&](int j) { put_out(chunk, j, before, out); });
    if constexpr (ADDS) store_out(chunk, kRowSteps - 1, before, out);
    if (threadIdx.x == 0) after_next = shared_.walk.get().next();
    wgmma_wait<0>();
    hold(sum);
    move_state(chunk, lost_features, sum);
  }

  // --- Rows ---

  __device__ __forceinline__ void fetch(const ScanChunk& chunk) {
    if (chunk.rows > 0) {
      const int64_t token = args_.token(chunk, 0);
      if constexpr (OUT) query_.fetch(token, chunk.rows, aligned_);
      key_.fetch(token, chunk.rows, aligned_);
    }
    __pipeline_commit();
  }

  // Calls visit(address, half, n, e) for the thread's places of a chunk in a tensor with value features that are there:
  // token 8 n + t2 + e and the first (half = 0) or second of the thread's features. `place` is that of the first
  // feature at token 0, `first` and `last` bound n.
  template <class Number, class Visit>
  __device__ __forceinline__ void for_each_place(const ScanChunk& chunk, const HeadsView& view, Number* place,
                                                 int first, int last, const Visit& visit) const {
    const int64_t step = args_.from_end ? -view.length_stride : view.length_stride, features = view.dim - feature();
    Number* const token = place + args_.token(chunk, t2_) * view.length_stride;
    const int rows[2] = {features > 0 ? chunk.rows - t2_ : 0, features > 8 ? chunk.rows - t2_ : 0};
#pragma unroll
    for (int n = first; n < last; ++n) {
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        Number* const at = token + (n * 8 + e) * step;
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          if (n * 8 + e < rows[half]) visit(at + half * 8, half, n, e);
        }
      }
    }
  }

  // Loads the thread's values, those of rows and features that are not there as 0.
  __device__ __forceinline__ void load_values(const ScanChunk& chunk, float2 (&values)[kRowSteps][4]) const {
#pragma unroll
    for (int j = 0; j < kRowSteps; ++j) {
#pragma unroll
      for (int w = 0; w < 4; ++w) values[j][w] = {0.0f, 0.0f};
    }
    for_each_place(chunk, args_.value, value_, 0, 8, [&](const float* at, int half, int n, int e) {
      float2& pair = values[n / 2][n % 2 * 2 + half];
      (e == 0 ? pair.x : pair.y) = *at;
    });
  }
  // Puts 0 in place of values that are not finite. Returns a bit for each of the thread's features that has some.
  static __device__ __forceinline__ unsigned drop_not_finite(float2 (&values)[kRowSteps][4]) {
    float zeros[2] = {0.0f, 0.0f};  // NaN where a value is not finite
#pragma unroll
    for (int j = 0; j < kRowSteps; ++j) {
#pragma unroll
      for (int w = 0; w < 4; ++w) {
        zeros[w % 2] = fmaf(values[j][w].x, 0.0f, fmaf(values[j][w].y, 0.0f, zeros[w % 2]));
      }
    }
    unsigned lost = (zeros[0] != 0.0f ? 1u : 0u) | (zeros[1] != 0.0f ? 2u : 0u);
    if (!__any_sync(0xffffffffu, lost != 0)) return 0;
    stay_branch();
#pragma unroll
    for (int j = 0; j < kRowSteps; ++j) {
#pragma unroll
      for (int w = 0; w < 4; ++w) {
        float2& pair = values[j][w];
        pair = {isfinite(pair.x) ? pair.x : 0.0f, isfinite(pair.y) ? pair.y : 0.0f};
      }
    }
    // The four lanes that share the features have different tokens.
    lost |= __shfl_xor_sync(0xffffffffu, lost, 1);
    lost |= __shfl_xor_sync(0xffffffffu, lost, 2);
    return lost;
  }
  static __device__ __forceinline__ void copy_pairs(const float2 (&from)[4], float2 (&to)[4]) {
#pragma unroll
    for (int w = 0; w < 4; ++w) to[w] = from[w];
  }
  __device__ __forceinline__ void weigh(int j, const float2 (&values)[4], float2 (&pairs)[4]) const {
#pragma unroll
    for (int w = 0; w < 4; ++w) {
      const float2 to = pair_at(shared_.decays.to, j * 2 + w / 2);
      pairs[w] = {values[w].x * to.x, values[w].y * to.y};
    }
  }
  // The numbers of the thread's rows 8 n + t2 and the one after it.
  __device__ __forceinline__ float2 pair_at(const float (&numbers)[kRows], int n) const {
    return *reinterpret_cast<const float2*>(numbers + n * 8 + t2_);
  }

  // --- Out ---

  // Starts out^T = S^T query^T and computes the weighted scores; starts to copy the rows of `next`.
  __device__ __forceinline__ void start_products_with_state(const ScanChunk& next, FragmentC (&out)[8]) {
    FragmentC scores[kScoreTiles];
    start_product_of_rows<kKeySteps, kKeyBytes>(shared_.query[0].by_rows(0, 0),
                                                shared_.key[0].by_rows(first_key_row(), 0), scores);
    fetch(next);
    start_product<kByRows, kKeySteps, kKeyBytes>(
        [&](int d, float2(&pairs)[4]) {
#pragma unroll
          for (int w = 0; w < 4; ++w) {
            const float* const from = state_[2 * d + w / 2].values + w % 2 * 2;
            pairs[w] = {from[0], from[1]};
          }
        },
        shared_.query[0].by_rows(0, 0), out);
    hold(scores);
    weigh(scores);
    share(scores);
  }
  // The first row of key whose scores the warpgroup computes.
  __device__ __forceinline__ int first_key_row() const { return group_ * (kScoreTiles * 8); }

  // Multiplies scores by the decays between their tokens, but not by args.inner.
  __device__ __forceinline__ void weigh(FragmentC (&scores)[kScoreTiles]) const {
    const float2 upper = shared_.decays.sums[row_ + g_], lower = shared_.decays.sums[row_ + g_ + 8];
#pragma unroll
    for (int n = 0; n < kScoreTiles; ++n) {
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        const int depth = first_key_row() + n * 8 + t2_ + e;
        const float2 sum = shared_.decays.sums[depth];
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const float2 exponent = difference(half == 0 ? upper : lower, sum);
          float& score = scores[n].values[2 * half + e];
          score = row_ + g_ + half * 8 >= depth ? score * fast_exp2(exponent.x + exponent.y) : 0.0f;
        }
      }
    }
  }
  // Writes the pieces of scores to shared memory.
  __device__ __forceinline__ void share(const FragmentC (&scores)[kScoreTiles]) const {
    const unsigned lane = threadIdx.x % 32, eighth = lane % 8;
    const uint32_t row = shared_address(shared_.scores[0].data) + (row_ + eighth + lane / 8 % 2 * 8) * 128;
#pragma unroll
    for (int n = 0; n < kScoreTiles; n += 2) {
      const auto words = pieces_of<3, true>(scores[n], scores[n + 1]);
      const uint32_t at = row + ((first_key_row() / 8 + n + lane / 16) ^ eighth) * 16;
#pragma unroll
      for (int p = 0; p < 3; ++p) store_matrices(at + p * kScoreBytes, words.parts[p].words);
    }
  }

  // Multiplies what comes from the state by the decays since the chunk began.
  __device__ __forceinline__ void scale(const ScanChunk& chunk, FragmentC (&out)[8]) const {
#pragma unroll
    for (int n = 0; n < 8; ++n) {
      const float2 in = pair_at(shared_.decays.in, n);
#pragma unroll
      for (int e = 0; e < 4; ++e) out[n].values[e] *= e % 2 == 0 ? in.x : in.y;
    }
    if (!args_.from_end && chunk.starts_anew) {  // it is forgotten
      stay_branch();
#pragma unroll
      for (int n = 0; n < 8; ++n) out[n] = FragmentC{};
    }
  }

  // Out is written in parts, between the products for the state. What is added to is loaded a part before.
  __device__ __forceinline__ void put_out(const ScanChunk& chunk, int part, float (&before)[kOutTiles][4],
                                          const FragmentC (&out)[8]) const {
    if constexpr (!OUT) return;
    if (!ADDS || part > 0) store_out(chunk, ADDS ? part - 1 : part, before, out);
    if constexpr (ADDS) load_out(chunk, part, before);
  }
  __device__ __forceinline__ void load_out(const ScanChunk& chunk, int part, float (&before)[kOutTiles][4]) const {
    const int first = part * kOutTiles;
    for_each_place(chunk, args_.out.view, out_, first, first + kOutTiles,
                   [&](const float* at, int half, int n, int e) { before[n - first][2 * half + e] = *at; });
  }
  __device__ __forceinline__ void store_out(const ScanChunk& chunk, int part, const float (&before)[kOutTiles][4],
                                            const FragmentC (&out)[8]) const {
    const int first = part * kOutTiles;
    for_each_place(chunk, args_.out.view, out_, first, first + kOutTiles, [&](float* at, int half, int n, int e) {
      const float number = out[n].values[2 * half + e] * args_.outer;
      *at = ADDS ? before[n - first][2 * half + e] + number : number;
    });
  }

  // --- The state ---

  // Calls visit(key feature, value feature, number) for the thread's numbers that are no padding.
  template <class Visit>
  __device__ __forceinline__ void for_each_number(const Visit& visit) {
#pragma unroll
    for (int n = 0; n < kStateTiles; ++n) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const int64_t key = n * 8 + t2_ + e % 2, value = feature() + e / 2 * 8;
        if (key < args_.query.dim && value < args_.value.dim) visit(key, value, state_[n].values[e]);
      }
    }
  }
  __device__ __forceinline__ void clear_state() {
    stay_branch();
#pragma unroll
    for (int n = 0; n < kStateTiles; ++n) state_[n] = FragmentC{};
  }
  // S = whole S + sum.
  __device__ __forceinline__ void move_state(const ScanChunk& chunk, unsigned lost_features,
                                             const FragmentC (&sum)[kStateTiles]) {
    const float2 whole = shared_.decays.whole;
    if (chunk.starts_anew) clear_state();
#pragma unroll
    for (int n = 0; n < kStateTiles; ++n) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        float& s = state_[n].values[e];
        s = fmaf(s, whole.x, fmaf(s, whole.y, sum[n].values[e]));
      }
    }
    if (OUT && lost_features != 0) {
      stay_branch();
#pragma unroll
      for (int n = 0; n < kStateTiles; ++n) {
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          if ((lost_features >> (e / 2) & 1) != 0) state_[n].values[e] = NAN;
        }
      }
    }
    if (chunk.starts_anew && args_.from_end) clear_state();  // what comes before knows nothing of it
  }

  // --- Where the thread stands ---

  // The warpgroup, the same for all lanes of a warp, as the compiler can tell.
  static __device__ __forceinline__ int own_group() {
    return Shape::kGroups == 1 ? 0 : __shfl_sync(0xffffffffu, static_cast<int>(threadIdx.x) / 128, 0);
  }
  __device__ __forceinline__ int64_t batch() const { return blockIdx.x / static_cast<unsigned>(args_.query.heads); }
  __device__ __forceinline__ int64_t head_index() const {
    return blockIdx.x % static_cast<unsigned>(args_.query.heads);
  }
  __device__ __forceinline__ int64_t state_head() const { return args_.state_head(batch(), head_index()); }
  // The first of the thread's value features, a row of the transposed state and out; the second is 8 further on.
  __device__ __forceinline__ int64_t feature() const {
    return int64_t{blockIdx.y} * Shape::kValues + group_ * 64 + row_ + g_;
  }

  const ScanArgs<float>& args_;
  Shared& shared_;
  const bool aligned_;
  int group_ = own_group();
  int row_ = static_cast<int>(threadIdx.x) % 128 / 32 * 16;  // the warp's rows of scores, out^T and S^T
  int g_ = static_cast<int>(threadIdx.x) % 32 / 4, t2_ = static_cast<int>(threadIdx.x) % 4 * 2;
  Float32Rows<Shape::kThreads, kKeys> query_, key_;
  ScanDecays<kRows> decays_;
  const float* value_;  // the thread's first feature at token 0
  float* out_ = nullptr;
  FragmentC state_[kStateTiles];
};

}  // namespace detail
}  // namespace heddle::kernels::cuda
