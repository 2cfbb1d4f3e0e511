// The scan on the matrix instructions of warpgroups (sm_90a), for bfloat16 heads of up to 128 features of query and key.
// A block has one warpgroup that loads the chunks and computes their scores, the producer, and one or two consumers. A
// consumer holds the state of 64 value features, transposed, in registers, and computes with it
//   out^T = in (S^T query^T) + value^T scores^T;   S^T = whole S^T + (to value^T) key
// so that all it computes is operand A, in registers, and operands B lie in shared memory as they were loaded. in, to
// and whole are the weights of scan.h. State, scores and weighted values are sums of two bfloat16 numbers, see pieces.h.
// Consumers do not wait for each other: while one splits and scales numbers, the tensor cores work for the other.
#pragma once

#include <cuda_pipeline_primitives.h>

#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "core/runtime/host_device.h"
#include "kernels/attention/cuda/scan.h"
#include "kernels/attention/cuda/wgmma.h"
#include "kernels/common/cuda/async.h"
#include "kernels/common/cuda/pieces.h"
#include "kernels/common/cuda/vec.h"

namespace heddle::kernels::cuda {
namespace detail {

// KEYS: features of query and key, 64 or 128; GROUPS: consumers.
template <int KEYS, int GROUPS>
struct WarpgroupShape {
  static constexpr int kKeys = KEYS, kGroups = GROUPS, kValues = 64 * GROUPS, kRows = 64, kStages = 3;
  static constexpr int kThreads = 128 * (GROUPS + 1), kBlocks = GROUPS == 1 ? 2 : 1;
  // Of a thread. They sum up to what a multiprocessor has.
  static constexpr int kProducerRegisters = GROUPS == 1 ? 80 : 104, kConsumerRegisters = GROUPS == 1 ? 176 : 200;

  struct Rows {
    SwizzledMatrix<bf16, kRows, KEYS> query, key;
    SwizzledMatrix<bf16, kRows, kValues> value;  // and, once a consumer has read it, its part of out
  };
  struct Scores {
    SwizzledMatrix<bf16, kRows, kRows> pieces[2];  // (row of query, row of key)
  };
  struct Chunk {
    float2 sums[kRows];  // negated in a scan from the end
    float in[kRows], to[kRows];
    float whole;
    int rows;  // 0 after the last chunk
    int64_t begin;
    bool starts_anew, is_forgotten;  // the state after the chunk is not needed
  };
  struct Shared {
    Rows rows[kStages];
    Scores scores[2];
    Chunk chunks[kStages];
    SharedBarrier ready[kStages], free[kStages];  // the stage is written; it is read by all consumers
  };
};

// From the first row of a SwizzledMatrix of 64 rows to a column, a multiple of 16; and a descriptor of what lies `bytes`
// further on.
HEDDLE_HOST_DEVICE constexpr int col_bytes(int col) { return col / 64 * (64 * 128) + col % 64 * 2; }
__device__ __forceinline__ uint64_t further(uint64_t descriptor, int bytes) { return descriptor + bytes / 16; }

// Where the block stands: which head and features it computes.
template <class Shape>
struct WarpgroupPlace {
  int64_t head, batch, state_head, first_value;

  __device__ __forceinline__ explicit WarpgroupPlace(const ScanArgs<float>& args) {
    const auto tiles = static_cast<unsigned>(parts_of(args.value.dim, Shape::kValues));
    const unsigned row = blockIdx.x / tiles, heads = static_cast<unsigned>(args.query.heads);
    first_value = int64_t{blockIdx.x % tiles} * Shape::kValues;
    head = row % heads;
    batch = row / heads;
    state_head = args.state_head(batch, head);
  }
};

// Copies rows of one head into a matrix; rows beyond the chunk's and features beyond the view's become 0.
template <int COLS>
class SwizzledCopier {
 public:
  __device__ __forceinline__ SwizzledCopier(const HeadsView& view, int64_t batch, int64_t head_index, int64_t offset,
                                            bool from_end)
      : step_(view.length_stride) {
    const int col = threadIdx.x % kUnits * 8;
    row_ = threadIdx.x % 128u / kUnits;
    from_ = head<const bf16>(view, batch, 0, head_index) + offset + col;
    if (from_end) step_ = -step_;
    is_there_ = offset + col < view.dim;
    to_ = col / 64 * (64 * 128) + row_ * 128 + ((col % 64 / 8) ^ (row_ % 8)) * 16;
  }

  // `token` is that of row 0.
  __device__ __forceinline__ void copy(int64_t token, int rows, SwizzledMatrix<bf16, 64, COLS>& matrix) const {
    const bf16* from = from_ + token * (step_ < 0 ? -step_ : step_) + row_ * step_;
    const uint32_t to = shared_address(matrix.data) + to_;
#pragma unroll
    for (int r = 0; r < 64; r += kRowsAtOnce, from += int64_t{kRowsAtOnce} * step_) {
      copy_async_if(is_there_ && row_ + r < rows, to + r * 128, from);
    }
  }

 private:
  static constexpr unsigned kUnits = COLS / 8, kRowsAtOnce = 128 / kUnits;
  static_assert(kRowsAtOnce % 8 == 0);

  const bf16* from_;
  int64_t step_;  // from a row to the next
  int row_, to_;
  bool is_there_;
};

// Four 8 x 8 matrices, each lane giving the address of one row.
__device__ __forceinline__ void load_transposed(uint32_t address, unsigned (&words)[4]) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3])
               : "r"(address)
               : "memory");
}
// 16 bytes from shared to global memory.
__device__ __forceinline__ void copy_unit(uint32_t from, void* to) {
  asm volatile(
      "{\n\t.reg .b32 a, b, c, d;\n\t"
      "ld.shared.v4.b32 {a, b, c, d}, [%0];\n\t"
      "st.global.v4.b32 [%1], {a, b, c, d};\n\t}" ::"r"(from),
      "l"(to)
      : "memory");
}
__device__ __forceinline__ void store_shared(uint32_t address, const uint4& words) {
  asm volatile("st.shared.v4.u32 [%0], {%1,%2,%3,%4};" ::"r"(address), "r"(words.x), "r"(words.y), "r"(words.z),
               "r"(words.w)
               : "memory");
}
template <bool TRANSPOSE>
__device__ __forceinline__ void store_matrices(uint32_t address, const unsigned (&words)[4]) {
  if constexpr (TRANSPOSE) {
    asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1,%2,%3,%4};" ::"r"(address), "r"(words[0]),
                 "r"(words[1]), "r"(words[2]), "r"(words[3])
                 : "memory");
  } else {
    asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1,%2,%3,%4};" ::"r"(address), "r"(words[0]),
                 "r"(words[1]), "r"(words[2]), "r"(words[3])
                 : "memory");
  }
}

// OUT: the scan computes out; else the state alone.
template <class Shape, bool OUT>
class ScanProducer {
 public:
  using Shared = typename Shape::Shared;

  __device__ __forceinline__ ScanProducer(const ScanArgs<float>& args, Shared& shared)
      : ScanProducer(args, shared, WarpgroupPlace<Shape>(args)) {}

  __device__ __forceinline__ void run() {
    ScanChunk chunk = walk_.next();
    load(chunk, 0);
    ScanChunk next = walk_.next();
    load(next, 1);
    fetch_decay(chunk, 0);
    int stage = 0;
    for (int t = 0;; ++t) {
      if (thread_ == 0) publish(chunk, next, stage);
      if (chunk.rows == 0) {
        shared_.ready[stage].arrive();
        return;
      }
      __pipeline_wait_prior(1);  // of the copies, those of the next chunk may still be under way
      put_decays(chunk, stage);
      fence_async_proxy();
      barrier_sync(1, 128);
      if constexpr (OUT) put_scores(stage, shared_.scores[t % 2]);
      fence_async_proxy();
      shared_.ready[stage].arrive();
      const int following = stage == 2 ? 0 : stage + 1, after_that = 3 - stage - following;
      fetch_decay(next, following);
      const ScanChunk later = walk_.next();
      if (t > 0) shared_.free[after_that].wait((t - 1) / Shape::kStages % 2);
      load(later, after_that);
      chunk = next;
      next = later;
      stage = following;
    }
  }

 private:
  __device__ __forceinline__ ScanProducer(const ScanArgs<float>& args, Shared& shared,
                                          const WarpgroupPlace<Shape>& place)
      : args_(args),
        shared_(shared),
        query_(args.query, place.batch, place.head, 0, args.from_end),
        key_(args.key, place.batch, place.head / args.group, 0, args.from_end),
        value_(args.value, place.batch, place.head / args.group, place.first_value, args.from_end),
        decay_(args, place.state_head),
        walk_(args, args.span(), place.state_head, Shape::kRows) {}

  __device__ __forceinline__ void load(const ScanChunk& chunk, int stage) {
    if (chunk.rows > 0) {
      const int64_t token = args_.token(chunk, 0);
      auto& rows = shared_.rows[stage];
      if constexpr (OUT) query_.copy(token, chunk.rows, rows.query);
      key_.copy(token, chunk.rows, rows.key);
      value_.copy(token, chunk.rows, rows.value);
    }
    __pipeline_commit();
  }

  __device__ __forceinline__ void publish(const ScanChunk& chunk, const ScanChunk& next, int stage) {
    auto& to = shared_.chunks[stage];
    to.begin = chunk.begin;
    to.rows = chunk.rows;
    to.starts_anew = chunk.starts_anew;
    // What comes before, in time, a token at which the state starts anew knows nothing of what comes after.
    to.is_forgotten = args_.from_end ? chunk.starts_anew : next.starts_anew;
  }

  // Whether the decays in shared memory are those of the chunk: with one decay for all tokens they depend on its length
  // alone.
  __device__ __forceinline__ bool has_decays(const ScanChunk& chunk, int stage) const {
    return decay_.sums == nullptr && chunk.rows == (decay_rows_ >> stage * 8 & 0xff);
  }
  // Loads what put_decays() needs.
  __device__ __forceinline__ void fetch_decay(const ScanChunk& chunk, int stage) {
    if (chunk.rows == 0 || has_decays(chunk, stage) || thread_ > Shape::kRows) return;
    row_decay_ = RowDecay<float>(decay_, chunk, thread_ < chunk.rows ? args_.token(chunk, thread_) : chunk.begin);
  }
  __device__ __forceinline__ void put_decays(const ScanChunk& chunk, int stage) {
    if (has_decays(chunk, stage)) return;
    decay_rows_ = (decay_rows_ & ~(0xff << stage * 8)) | chunk.rows << stage * 8;
    auto& to = shared_.chunks[stage];
    if (thread_ < Shape::kRows) {
      const bool is_there = thread_ < chunk.rows, from_end = args_.from_end;
      const float from_begin = is_there ? row_decay_.from_begin() : 0.0f;
      const float to_last = is_there ? row_decay_.to_last() : 0.0f;
      to.sums[thread_] = !is_there ? float2{0.0f, 0.0f} : from_end ? negated(row_decay_.own) : row_decay_.own;
      to.in[thread_] = from_end ? to_last : from_begin;
      to.to[thread_] = args_.inner * (from_end ? from_begin : to_last);
    } else if (thread_ == Shape::kRows) {
      to.whole = decay_power(difference(row_decay_.last, row_decay_.base));
    }
  }

  // inner exp(L_i - L_j) query_i . key_j for j <= i, and 0 for other j.
  __device__ __forceinline__ void put_scores(int stage, typename Shape::Scores& to) const {
    const auto& rows = shared_.rows[stage];
    FragmentC scores[8];
    const uint64_t query = rows.query.by_rows(0, 0), key = rows.key.by_rows(0, 0);
    wgmma_fence();
#pragma unroll
    for (int d = 0; d < Shape::kKeys; d += 16) {
      wgmma<bf16, cuda::Stored::by_rows, cuda::Stored::by_rows>(scores, further(query, col_bytes(d)),
                                                                further(key, col_bytes(d)), d > 0);
    }
    wgmma_commit();
    wgmma_wait<0>();
    hold(scores);
    const unsigned thread = threadIdx.x;
    const int lane = thread % 32, first_row = thread / 32 * 16, t2 = thread % 4 * 2;
    constexpr int kPiece = sizeof(to.pieces[0]);
    const uint32_t place = shared_address(to.pieces[0].data) + (first_row + lane % 16) * 128;
    const float2* const sums = shared_.chunks[stage].sums;
    const float2 own[2] = {sums[first_row + lane / 4], sums[first_row + lane / 4 + 8]};
    // Those of row tile n and the warp's rows; all rows SEE all columns, or each those up to itself.
    const auto put = [&](int n, [[maybe_unused]] auto sees_all) {
      unsigned words[2][4];  // of each piece, in the order of the matrices that are stored below
#pragma unroll
      for (int w = 0; w < 4; ++w) {
        const int col = w / 2 * 8 + t2, row = lane / 4 + w % 2 * 8;
        float* const score = scores[n + w / 2].values + w % 2 * 2;
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          const float2 exponent = difference(own[w % 2], sums[n * 8 + col + e]);
          const float weighted = score[e] * (args_.inner * fast_exp2(exponent.x + exponent.y));
          score[e] = decltype(sees_all)::value || row >= col + e ? weighted : 0.0f;
        }
        unsigned pair[2];
        split(score[0], score[1], pair);
        words[0][w] = pair[0];
        words[1][w] = pair[1];
      }
#pragma unroll
      for (int p = 0; p < 2; ++p) store_matrices<false>(place + p * kPiece + unit(n, lane), words[p]);
    };
#pragma unroll
    for (int n = 0; n < 8; n += 2) {
      if (n * 8 < first_row) {
        put(n, std::true_type{});
      } else if (n * 8 == first_row) {
        put(n, std::false_type{});
      } else {
        const unsigned zeros[4] = {};
#pragma unroll
        for (int p = 0; p < 2; ++p) store_matrices<false>(place + p * kPiece + unit(n, lane), zeros);
      }
    }
  }
  // From a row of scores that a lane gives the address of to its unit in the columns 8 n to 8 n + 15, in bytes.
  static __device__ __forceinline__ uint32_t unit(int n, int lane) {
    return (static_cast<unsigned>(n + lane / 16) ^ lane % 8) * 16;
  }

  const ScanArgs<float>& args_;
  Shared& shared_;
  SwizzledCopier<Shape::kKeys> query_, key_;
  SwizzledCopier<Shape::kValues> value_;
  HeadDecay<float> decay_;
  ChunkWalk<float> walk_;
  RowDecay<float> row_decay_;    // of the thread's row of the chunk that was fetched last
  unsigned decay_rows_ = ~0u;    // of the chunks whose decays are in shared memory, 8 bits each
  int thread_ = static_cast<int>(threadIdx.x);
};

// ADDS: out (+=), else out (=).
template <class Shape, bool OUT, bool ADDS>
class ScanConsumer {
 public:
  using Shared = typename Shape::Shared;
  using Rows = typename Shape::Rows;
  using Chunk = typename Shape::Chunk;

  __device__ __forceinline__ ScanConsumer(const ScanArgs<float>& args, Shared& shared)
      : args_(args), shared_(shared), place_(args) {
    const int64_t feature = place_.first_value + group_ * 64 + thread_ % 8 * 8;
    has_out_ = feature < args.value.dim;
    if constexpr (OUT) out_ = head<bf16>(args.out.view, place_.batch, 0, place_.head) + feature;
  }

  __device__ __forceinline__ void run() {
    if (const StateView<float> state_in = args_.span().state_in; state_in.data != nullptr) {
      for_each_number([&](int64_t key, int64_t value, float& s) { s = state_in.at(place_.state_head, key, value); });
    }
    shared_.ready[0].wait(0);
    if (shared_.chunks[0].starts_anew && !args_.from_end) clear_state();
    int stage = 0;
    unsigned parity = 0;
    for (int t = 0;; ++t) {
      shared_.ready[stage].wait(parity);
      const Chunk& chunk = shared_.chunks[stage];
      if (chunk.rows == 0) break;
      advance(chunk, shared_.rows[stage], shared_.scores[t % 2]);
      __syncwarp();
      if (lane_ == 0) shared_.free[stage].arrive();
      stage = stage == Shape::kStages - 1 ? 0 : stage + 1;
      if (stage == 0) parity ^= 1;
    }
    const ScanSpan<float> span = args_.span();
    if (span.state_out.data == nullptr) return;
    for_each_number([&](int64_t key, int64_t value, float& s) {
      put_state(args_, span, place_.state_head, key, value, s);
    });
  }

 private:
  static constexpr int kKeyTiles = Shape::kKeys / 16, kSixteenRows = 16 * 128;  // bytes in a matrix of 64 columns

  __device__ __forceinline__ void advance(const Chunk& chunk, Rows& rows, const typename Shape::Scores& scores) {
    FragmentC out[8];
    if constexpr (OUT) {
      apply_state<0, kKeyTiles / 2>(rows, out);
      apply_state<kKeyTiles / 2, kKeyTiles>(rows, out);
    }
    FragmentA values[4], weighted[2][4];
    const uint32_t own_values = shared_address(rows.value.data) + value_offset_;
    if constexpr (OUT) wgmma_wait<1>();
#pragma unroll
    for (int j = 0; j < 4; ++j) load_transposed(own_values + j * kSixteenRows, values[j].words);
#pragma unroll
    for (int j = 0; j < 4; ++j) weigh(chunk, values[j], j, weighted[0][j], weighted[1][j]);
    bool is_finite = true;
    if constexpr (OUT) {
      is_finite = drop_not_finite(values);
      wgmma_wait<0>();
      hold(out);
      scale(chunk, out);
      apply_scores(scores, values, out);
    }
    FragmentC added[8], added_too[8];
    add_keys(rows, weighted, 0, added);
    if constexpr (OUT) {
      const OutRows to(*this, chunk);
      const uint32_t staged = shared_address(rows.value.data) + out_offset_;
      uint4 before[kOutUnits];
      if constexpr (ADDS) to.each([&](int i, bf16* at) { before[i] = *reinterpret_cast<const uint4*>(at); });
      wgmma_wait<1>();
      hold(out);
      if (!is_finite) add_not_finite(rows, scores, out);
      if constexpr (ADDS) {
        barrier_sync(2 + group_, 128);  // all warps have read their values
        to.each([&](int i, bf16*) { store_shared(staged + i * kSixteenRows, before[i]); });
        barrier_sync(2 + group_, 128);
      }
      stage_out(own_values, out);
      barrier_sync(2 + group_, 128);
      to.each([&](int i, bf16* at) { copy_unit(staged + i * kSixteenRows, at); });
    }
    if constexpr (kKeyTiles == 8) {
      add_keys(rows, weighted, 64, added_too);
      wgmma_wait<1>();
      move_on<0>(chunk, added);
      wgmma_wait<0>();
      move_on<8>(chunk, added_too);
    } else {
      wgmma_wait<0>();
      move_on<0>(chunk, added);
    }
  }

  // Of 8 elements in a SwizzledMatrix of 64 rows, in bytes.
  static __device__ __forceinline__ uint32_t offset(unsigned row, unsigned col) {
    return col / 64 * (64 * 128) + row * 128 + ((col % 64 / 8) ^ (row % 8)) * 16;
  }
  __device__ __forceinline__ void clear_state() {
#pragma unroll
    for (int n = 0; n < Shape::kKeys / 8; ++n) state_[n] = FragmentC{};
  }
  // Calls visit(key feature, value feature, number) for the thread's numbers of the state that are no padding.
  template <class Visit>
  __device__ __forceinline__ void for_each_number(const Visit& visit) {
#pragma unroll
    for (int n = 0; n < Shape::kKeys / 8; ++n) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const int64_t key = n * 8 + static_cast<int>(t2_) + e % 2, value = place_.first_value + column_ + g_ + e / 2 * 8;
        if (key < args_.query.dim && value < args_.value.dim) visit(key, value, state_[n].values[e]);
      }
    }
  }

  // out (= for the first, +=) S^T query^T for the key features 16 BEGIN to 16 END - 1, as a group of products.
  template <int BEGIN, int END>
  __device__ __forceinline__ void apply_state(const Rows& rows, FragmentC (&out)[8]) const {
    PiecesA<2> state[END - BEGIN];
#pragma unroll
    for (int d = BEGIN; d < END; ++d) state[d - BEGIN] = pieces_of<2, true>(state_[2 * d], state_[2 * d + 1]);
    const uint64_t query = rows.query.by_rows(0, 0);
    wgmma_fence();
#pragma unroll
    for (int d = BEGIN; d < END; ++d) {
#pragma unroll
      for (int p = 0; p < 2; ++p) {
        wgmma<bf16, cuda::Stored::by_rows>(out, state[d - BEGIN].parts[p], further(query, col_bytes(d * 16)),
                                           d > 0 || p > 0);
      }
    }
    wgmma_commit();
  }

  // out += value^T scores^T, as a group of products.
  __device__ __forceinline__ void apply_scores(const typename Shape::Scores& scores, const FragmentA (&values)[4],
                                               FragmentC (&out)[8]) const {
    const uint64_t pieces = scores.pieces[0].by_rows(0, 0);
    wgmma_fence();
#pragma unroll
    for (int j = 0; j < 4; ++j) {
#pragma unroll
      for (int p = 0; p < 2; ++p) {
        constexpr int kPiece = sizeof(scores.pieces[0]);
        wgmma<bf16, cuda::Stored::by_rows>(out, values[j], further(pieces, p * kPiece + col_bytes(j * 16)), true);
      }
    }
    wgmma_commit();
  }

  // to = (weighted values)^T key for 64 key features from first_key on, as a group of products.
  __device__ __forceinline__ void add_keys(const Rows& rows, const FragmentA (&weighted)[2][4], int first_key,
                                           FragmentC (&to)[8]) const {
    const uint64_t key = rows.key.by_depth(0, 0);
    wgmma_fence();
#pragma unroll
    for (int j = 0; j < 4; ++j) {
#pragma unroll
      for (int p = 0; p < 2; ++p) {
        wgmma<bf16, cuda::Stored::by_depth>(to, weighted[p][j], further(key, col_bytes(first_key) + j * kSixteenRows),
                                            j > 0 || p > 0);
      }
    }
    wgmma_commit();
  }
  // S^T = whole S^T + added, or 0 where it is forgotten, for the key features 8 FIRST to 8 FIRST + 63. Tensor cores would cut what they add here.
  template <int FIRST>
  __device__ __forceinline__ void move_on(const Chunk& chunk, FragmentC (&added)[8]) {
    hold(added);
    const float whole = chunk.whole;
#pragma unroll
    for (int n = 0; n < 8; ++n) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        float& s = state_[FIRST + n].values[e];
        s = fmaf(s, whole, added[n].values[e]);
      }
    }
    if (chunk.is_forgotten) {
      stay_branch();
#pragma unroll
      for (int n = 0; n < 8; ++n) state_[FIRST + n] = FragmentC{};
    }
  }
  // Keeps the compiler from computing what follows in a rarely taken branch in any case.
  static __device__ __forceinline__ void stay_branch() { asm volatile("" ::: "memory"); }

  // The pieces of the rows times their weights in the state.
  __device__ __forceinline__ void weigh(const Chunk& chunk, const FragmentA& values, int j, FragmentA& high,
                                        FragmentA& low) const {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float2 weight = *reinterpret_cast<const float2*>(chunk.to + j * 16 + t2_ + half * 8);
#pragma unroll
      for (int w = 2 * half; w < 2 * half + 2; ++w) {
        const float2 pair = unpack<bf16>(values.words[w]);
        unsigned words[2];
        split<2, true>(pair.x * weight.x, pair.y * weight.y, words);
        high.words[w] = words[0];
        low.words[w] = words[1];
      }
    }
  }

  // Puts 0 in place of values that are not finite, so that 0 times them is 0. Returns false where the warp had any.
  __device__ __forceinline__ bool drop_not_finite(FragmentA (&values)[4]) const {
    unsigned zeros = 0;
#pragma unroll
    for (int w = 0; w < 16; ++w) add_zero_times<bf16>(values[w / 4].words[w % 4], zeros);
    const bool is_finite = __all_sync(0xffffffffu, (zeros & 0x7fff7fffu) == 0);
    if (!is_finite) {
      stay_branch();
#pragma unroll
      for (int w = 0; w < 16; ++w) {
        unsigned& word = values[w / 4].words[w % 4];
        word &= ((word & 0x7f80u) == 0x7f80u ? 0u : 0xffffu) | ((word >> 16 & 0x7f80u) == 0x7f80u ? 0u : 0xffff0000u);
      }
    }
    return is_finite;
  }
  // What those values give in the rows of out that see them.
  __device__ __forceinline__ void add_not_finite(Rows& rows, const typename Shape::Scores& scores,
                                                 FragmentC (&out)[8]) const {
    const int g = opaque(static_cast<int>(g_)), t2 = opaque(static_cast<int>(t2_));  // so that no address is computed before it is known to be needed
#pragma unroll 1
    for (int j = 0; j < Shape::kRows; ++j) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int col = static_cast<int>(column_) + g + half * 8;
        const float value = widen(rows.value.unit(j, col / 8 * 8)[col % 8]);
        if (isfinite(value)) continue;
#pragma unroll
        for (int n = 0; n < 8; ++n) {
#pragma unroll
          for (int e = 0; e < 2; ++e) {
            const int row = n * 8 + t2 + e;
            if (row >= j) out[n].values[half * 2 + e] += score(scores, row, j) * value;
          }
        }
      }
    }
  }
  static __device__ __forceinline__ int opaque(int number) {
    asm volatile("" : "+r"(number));
    return number;
  }
  static __device__ __forceinline__ float score(const typename Shape::Scores& scores, int row, int col) {
    return widen(*element(scores.pieces[0], row, col)) + widen(*element(scores.pieces[1], row, col));
  }
  static __device__ __forceinline__ const bf16* element(const SwizzledMatrix<bf16, 64, 64>& matrix, int row, int col) {
    return matrix.data + row * 64 + ((col / 8) ^ (row % 8)) * 8 + col % 8;
  }

  __device__ __forceinline__ void scale(const Chunk& chunk, FragmentC (&out)[8]) const {
#pragma unroll
    for (int n = 0; n < 8; ++n) {
      const float2 in = *reinterpret_cast<const float2*>(chunk.in + n * 8 + t2_);
      out[n].values[0] *= in.x;
      out[n].values[1] *= in.y;
      out[n].values[2] *= in.x;
      out[n].values[3] *= in.y;
    }
  }

  // --- Out goes through shared memory, in place of the warp's values, so that whole rows are written ---

  static constexpr int kOutUnits = 4;  // of 8 features, of a thread

  // The thread's units of the consumer's part of out.
  class OutRows {
   public:
    __device__ __forceinline__ OutRows(const ScanConsumer& consumer, const Chunk& chunk)
        : rows_(consumer.rows_of(chunk)), step_(consumer.args_.out.view.length_stride) {
      const auto row = static_cast<int>(consumer.thread_ / 8);
      const bool from_end = consumer.args_.from_end;
      first_ = consumer.out_ + (from_end ? chunk.begin + chunk.rows - 1 - row : chunk.begin + row) * step_;
      step_ *= from_end ? -16 : 16;
    }
    // Calls visit(number of the unit, its address in global memory).
    template <class Visit>
    __device__ __forceinline__ void each(const Visit& visit) const {
      bf16* at = first_;
#pragma unroll
      for (int i = 0; i < kOutUnits; ++i, at += step_) {
        if (i * 16 < rows_) visit(i, at);
      }
    }

   private:
    int rows_;  // from the thread's first row on
    bf16* first_;
    int64_t step_;
  };
  __device__ __forceinline__ int rows_of(const Chunk& chunk) const {
    return has_out_ ? chunk.rows - static_cast<int>(thread_ / 8) : 0;
  }

  __device__ __forceinline__ void stage_out(uint32_t own_values, const FragmentC (&out)[8]) const {
    const float outer = args_.outer;
    __syncwarp();  // add_not_finite() has read the values
#pragma unroll
    for (int n = 0; n < 8; n += 2) {
      const uint32_t at = own_values + n / 2 * kSixteenRows;
      unsigned words[4] = {};
      if constexpr (ADDS) load_transposed(at, words);
#pragma unroll
      for (int w = 0; w < 4; ++w) {
        const float* const pair = out[n + w / 2].values + w % 2 * 2;
        const float2 before = unpack<bf16>(words[w]);
        words[w] = ADDS ? pack<bf16>(fmaf(pair[0], outer, before.x), fmaf(pair[1], outer, before.y))
                        : pack<bf16>(pair[0] * outer, pair[1] * outer);
      }
      store_matrices<true>(at, words);
    }
  }

  const ScanArgs<float>& args_;
  Shared& shared_;
  WarpgroupPlace<Shape> place_;
  unsigned thread_ = threadIdx.x % 128, group_ = threadIdx.x / 128 - 1;
  unsigned lane_ = threadIdx.x % 32, g_ = lane_ / 4, t2_ = lane_ % 4 * 2;
  unsigned column_ = group_ * 64 + thread_ / 32 * 16;  // the warp's first value feature of the tile
  // In the matrix of values: of the row that the lane gives to load_transposed(), and of the thread's first unit of out.
  uint32_t value_offset_ = offset(lane_ % 8 + lane_ / 16 * 8, column_ + lane_ / 8 % 2 * 8);
  uint32_t out_offset_ = offset(thread_ / 8, group_ * 64 + thread_ % 8 * 8);
  bf16* out_ = nullptr;  // the thread's unit of the first token
  bool has_out_;         // and whether its features are there
  FragmentC state_[Shape::kKeys / 8];
};

template <class Shape, bool OUT, bool ADDS>
__global__ void __launch_bounds__(Shape::kThreads, Shape::kBlocks)
    scan_warpgroup(const __grid_constant__ ScanArgs<float> args) {
#ifdef HEDDLE_WGMMA
  extern __shared__ __align__(1024) unsigned char aligned_raw[];
  auto& shared = *reinterpret_cast<typename Shape::Shared*>(aligned_raw);
  if (threadIdx.x == 0) {
    for (int stage = 0; stage < Shape::kStages; ++stage) {
      shared.ready[stage].init(128);
      shared.free[stage].init(4 * Shape::kGroups);
    }
    SharedBarrier::fence_init();
  }
  __syncthreads();
  if (threadIdx.x < 128) {
    give_registers<Shape::kProducerRegisters>();
    ScanProducer<Shape, OUT>(args, shared).run();
  } else {
    take_registers<Shape::kConsumerRegisters>();
    ScanConsumer<Shape, OUT, ADDS>(args, shared).run();
  }
#else
  __trap();
#endif
}

template <int KEYS, int GROUPS>
int64_t launch_warpgroups(Context& context, const ScanArgs<float>& args) {
  using Shape = WarpgroupShape<KEYS, GROUPS>;
  constexpr size_t kBytes = sizeof(typename Shape::Shared);
  const int64_t tiles = parts_of(args.value.dim, Shape::kValues);
  const dim3 grid(static_cast<unsigned>(args.query.batch * args.query.heads * tiles), 1, span_blocks(args));
  if (args.is_for_span_states || !args.out) {
    HEDDLE_LAUNCH(context, (scan_warpgroup<Shape, false, false>), grid, Shape::kThreads, kBytes, args);
  } else if (args.out.mode == GradientMode::accumulate) {
    HEDDLE_LAUNCH(context, (scan_warpgroup<Shape, true, true>), grid, Shape::kThreads, kBytes, args);
  } else {
    HEDDLE_LAUNCH(context, (scan_warpgroup<Shape, true, false>), grid, Shape::kThreads, kBytes, args);
  }
  return tiles;
}

extern template int64_t launch_warpgroups<64, 1>(Context&, const ScanArgs<float>&);
extern template int64_t launch_warpgroups<64, 2>(Context&, const ScanArgs<float>&);
extern template int64_t launch_warpgroups<128, 2>(Context&, const ScanArgs<float>&);

}  // namespace detail

}  // namespace heddle::kernels::cuda
