// Softmax attention on the tensor cores of sm_90a, forward: o (=), lse (=), for heads of DIM = 64 or 128 features.
// A block has kGroups warpgroups of 64 queries each, and one more whose first warp copies tiles of q, k and v into
// shared memory, ahead of their use. A group starts the scores of the next keys, and o += P v of these, then computes P
// of the next keys while v is multiplied. The groups take turns, so that one computes exponentials while the other's
// products run. P is one number of T, relative to the largest score m of its row so far, and the sums are of
// the float it is rounded from. Source: Shah et al., "FlashAttention-3", arXiv:2407.08608.
//
// A key that some query of the tile does not see has P = 0 there, and what is not finite in its value would make that
// NaN. So the other warps of the last warpgroup put 0 in its place, and it is added in the end to the rows that see it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "kernels/attention/cuda/softmax_attention.h"
#include "kernels/attention/cuda/softmax_attention_hopper.h"
#include "kernels/common/cuda/scratch.h"

namespace heddle::kernels::cuda::softmax {

struct HopperForwardLaunch {
  CUtensorMap q, k, v;
  SoftmaxAttentionForwardArgs args;
  TileOrder order;
};

template <class T, int DIM, int GROUPS>
struct HopperForward {
  static constexpr int kGroups = GROUPS, kThreads = 128 * (kGroups + 1), kCheckers = 96;
  static constexpr int kQueries = 64 * kGroups, kKeys = 128, kStages = DIM == 64 ? 4 : 2;
  static constexpr int kGroupRegisters = kGroups == 3 ? 160 : 240, kOtherRegisters = kGroups == 3 ? 32 : 24;

  // float16 knows P finely enough with a second number, and nothing smaller than 2^-24, so there P is lifted by
  // 2^kLift.
  static constexpr bool kTwoNumbers = std::is_same_v<T, fp16>;
  static constexpr float kLift = kTwoNumbers ? 14.0f : 0.0f;

  struct Shared {
    SwizzledMatrix<T, kQueries, DIM> q;
    SwizzledMatrix<T, kKeys, DIM> k[kStages], v[kStages];
    // Full: copied. Free: read by all groups. Checked: v has been looked through.
    SharedBarrier q_full, q_free, k_full[kStages], k_free[kStages], v_full[kStages], v_free[kStages], checked[kStages];
    int tile;                  // the tile of q, -1 after the last
    TileColumns columns;       // of the tile
    int found[2];              // the tile's round + 1 where v holds what is not finite, by parity of the round
    RowRanges<kQueries> keys;  // that a query sees
  };

  using Tiles = QueryTiles<kQueries, kKeys>;
  using Place = typename Tiles::Place;

  const HopperForwardLaunch& launch;
  Shared& shared;

  __device__ __forceinline__ void init() const {
    if (threadIdx.x == 0) {
      shared.q_full.init(1);
      shared.q_free.init(4 * kGroups + 3);
      for (int s = 0; s < kStages; ++s) {
        shared.k_full[s].init(1);
        shared.v_full[s].init(1);
        shared.k_free[s].init(4 * kGroups);
        shared.v_free[s].init(4 * kGroups + 3);
        shared.checked[s].init(3);
      }
      shared.found[0] = shared.found[1] = 0;
      SharedBarrier::fence_init();
    }
    __syncthreads();
  }

  // --- Copies, by one thread ---

  __device__ __forceinline__ void copy() const {
    Ring<kStages> ring;
    int round = 0;
    for (int index = launch.order.take(0); index < launch.order.count(); ++round) {
      const int next = launch.order.take(round + 1);
      const Place place = Tiles::place_of(launch.args.inputs, launch.order.at(index));
      const TileColumns columns = Tiles::columns_of(launch.args.inputs, place);
      const int steps = Tiles::steps_of(columns);
      for (int step = 0; step < steps; ++step, ring.advance()) {
        const int column = Tiles::column_of(columns, steps, step);
        shared.k_free[ring.stage].wait(ring.parity ^ 1u);
        shared.k_full[ring.stage].arrive_and_expect(shared.k[0].kBytes);
        copy_tile(shared.k[ring.stage], launch.k, shared.k_full[ring.stage], place.batch, place.kv_head, column);
        if (step == 0) {
          shared.q_free.wait(round % 2 ^ 1);
          shared.tile = index;
          shared.columns = columns;
          shared.q_full.arrive_and_expect(shared.q.kBytes);
          copy_tile(shared.q, launch.q, shared.q_full, place.batch, place.head, place.first);
        }
        shared.v_free[ring.stage].wait(ring.parity ^ 1u);
        shared.v_full[ring.stage].arrive_and_expect(shared.v[0].kBytes);
        copy_tile(shared.v[ring.stage], launch.v, shared.v_full[ring.stage], place.batch, place.kv_head, column);
      }
      index = next;
    }
    shared.q_free.wait(round % 2 ^ 1);
    shared.tile = -1;
    shared.q_full.arrive();
  }

  // Whether the values of the keys from `column` on need no look, since all queries of the tile see them. With two
  // numbers they do: the second one may be 0 or below.
  __device__ __forceinline__ static bool is_whole(const TileColumns& columns, int column) {
    return !kTwoNumbers && columns.are_whole(column, kKeys);
  }
  __device__ __forceinline__ void check_values() const {
    const int thread = static_cast<int>(threadIdx.x) % 128 - 32;
    Ring<kStages> ring;
    for (int round = 0;; ++round) {
      shared.q_full.wait(round % 2);
      if (shared.tile < 0) break;
      const TileColumns columns = shared.columns;
      arrive_warp(shared.q_free);
      const int steps = Tiles::steps_of(columns);
      for (int step = 0; step < steps; ++step, ring.advance()) {
        shared.v_full[ring.stage].wait(ring.parity);  // also where nothing is looked for, to stay in step
        if (!is_whole(columns, Tiles::column_of(columns, steps, step))) {
          bool found = false;
          find_not_finite<kCheckers, true>(shared.v[ring.stage], thread, [&](int) { found = true; });
          if (found) {
            shared.found[round % 2] = round + 1;
            fence_async_proxy();
          }
        }
        arrive_warp(shared.checked[ring.stage]);
        arrive_warp(shared.v_free[ring.stage]);
      }
    }
  }

  // Adds to the group's rows of o the values that are not finite, of keys in steps that not all rows of the tile see.
  __device__ __noinline__ static void add_values(const SoftmaxAttentionForwardArgs& args, const Place& place,
                                                 int first_row, int warp) {
    Tiles::template for_pairs<!kTwoNumbers>(args.inputs, place, first_row, warp, [&](int query, int key) {
      add_what_is_not_finite(head<T>(args.o, place.batch, query, place.head),
                             head<const T>(args.inputs.v, place.batch, key, place.kv_head), DIM, 1.0f);
    });
  }

  // --- Products ---

  // Of the thread's two rows: the largest score so far, and the sum of the thread's columns.
  struct Rows {
    float largest[2] = {-infinity<float>(), -infinity<float>()};
    float sum[2] = {0.0f, 0.0f};
  };

  // From scores q k^T to P; factor: what sums so far are to be multiplied with.
  __device__ __forceinline__ void exponentiate(FragmentC (&scores)[kKeys / 8], int column, Rows& rows,
                                               float (&factor)[2]) const {
    const int own = own_row(), first_row = own - static_cast<int>(threadIdx.x) % 32 / 4;
    if (!shared.keys.are_whole(first_row, column, kKeys)) {
      const Range keys[2] = {shared.keys.of(own), shared.keys.of(own + 8)};
      for_each_value(scores, [&](float& score, int half, int col) {
        if (!keys[half].contains(column + col)) score = -infinity<float>();
      });
    }
    const float scale = static_cast<float>(launch.args.inputs.scale) * kLog2E;
    float largest[2] = {rows.largest[0], rows.largest[1]}, shift[2], sum[2] = {0.0f, 0.0f};
    for_each_value(scores, [&](float& score, int half, int) { largest[half] = fmaxf(largest[half], score); });
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      largest[half] = group_max<4>(largest[half]);
      shift[half] = largest[half] == -infinity<float>() ? 0.0f : rounded_product(largest[half], scale);
      factor[half] = fast_exp2(rounded_product(rows.largest[half], scale) - shift[half]);
      rows.largest[half] = largest[half];
    }
    // A fused product is exact, and may differ from a large rounded one by more than exp2 can take.
    float scales[2] = {scale, scale};
    if (__any_sync(0xffffffffu, is_large(shift[0]) || is_large(shift[1]))) {
      for_each_value(scores, [&](float& score, int half, int) {
        if (is_large(shift[half])) score = rounded_product(score, scale) - shift[half];
      });
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        scales[half] = is_large(shift[half]) ? 1.0f : scale;
        shift[half] = is_large(shift[half]) ? 0.0f : shift[half];
      }
    }
    for_each_value(scores, [&](float& score, int half, int) {
      score = fast_exp2(fmaf(score, scales[half], kLift - shift[half]));
      sum[half] += score;
    });
#pragma unroll
    for (int half = 0; half < 2; ++half) rows.sum[half] = fmaf(rows.sum[half], factor[half], sum[half]);
  }

  __device__ __forceinline__ void wait_for_values(const Ring<kStages>& ring, bool whole) const {
    shared.v_full[ring.stage].wait(ring.parity);
    if (!whole) shared.checked[ring.stage].wait(ring.parity);
  }
  // The groups take turns at starting products.
  __device__ __forceinline__ static void take_turn(int group) { barrier_sync(1 + group, 256); }
  __device__ __forceinline__ static void end_turn(int group) { barrier_arrive(1 + (group + 1) % kGroups, 256); }

  // P as operand A.
  struct Weights {
    FragmentA parts[kTwoNumbers ? 2 : 1][kKeys / 16];
  };
  __device__ __forceinline__ static void round_weights(Weights& p, FragmentC (&weights)[kKeys / 8]) {
    softmax::round_weights<T>(p.parts[0], weights);
    if constexpr (kTwoNumbers) {
#pragma unroll
      for (int n = 0; n < kKeys / 8; ++n) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const float2 rounded = unpack<T>(p.parts[0][n / 2].words[n % 2 * 2 + half]);
          weights[n].values[half * 2] -= rounded.x;
          weights[n].values[half * 2 + 1] -= rounded.y;
        }
      }
      softmax::round_weights<T>(p.parts[1], weights);
    }
  }
  // Starts out (+=) P v.
  __device__ __forceinline__ static void add_values_of(FragmentC (&out)[DIM / 8], const Weights& p,
                                                       const SwizzledMatrix<T, kKeys, DIM>& v) {
#pragma unroll
    for (int part = 0; part < (kTwoNumbers ? 2 : 1); ++part) {
#pragma unroll
      for (int d = 0; d < kKeys / 16; ++d)
        wgmma<T, Stored::by_depth>(out, p.parts[part][d], v.by_depth(d * 16, 0), true);
    }
    wgmma_commit();
  }

  // The first of the thread's two rows in the tile.
  __device__ __forceinline__ static int own_row() {
    return static_cast<int>(threadIdx.x) / 32 * 16 + static_cast<int>(threadIdx.x) % 32 / 4;
  }

  __device__ __forceinline__ void compute(int group) const {
    if (group == kGroups - 1) end_turn(group);
    Ring<kStages> ring;  // of the keys
    for (int round = 0;; ++round) {
      shared.q_full.wait(round % 2);
      const int tile = shared.tile;
      if (tile < 0) break;
      const TileColumns columns = shared.columns;
      const int steps = Tiles::steps_of(columns);
      fill_ranges(shared.keys, static_cast<int>(threadIdx.x) / 32 * 16,
                  [&](int row) { return Tiles::keys_of_row(launch.args.inputs, place_of(tile), row); });

      Rows rows;
      FragmentC out[DIM / 8], scores[kKeys / 8];
      Weights p;
      float factor[2];
      int column = Tiles::column_of(columns, steps, 0);
      shared.k_full[ring.stage].wait(ring.parity);
      take_turn(group);
      wgmma_fence();
      start_scores(scores, shared.q, group * 64, shared.k[ring.stage]);
      end_turn(group);
      wgmma_wait<0>();
      hold(scores);
      arrive_warp(shared.k_free[ring.stage]);
      if (steps == 1) arrive_warp(shared.q_free);
      exponentiate(scores, column, rows, factor);
      round_weights(p, scores);
#pragma unroll 1
      for (; column > columns.all.begin; column -= kKeys) {
        const Ring<kStages> values = ring;
        ring.advance();
        shared.k_full[ring.stage].wait(ring.parity);
        take_turn(group);
        wgmma_fence();
        start_scores(scores, shared.q, group * 64, shared.k[ring.stage]);
        wait_for_values(values, is_whole(columns, column));
        hold(out);
        wgmma_fence();
        add_values_of(out, p, shared.v[values.stage]);
        end_turn(group);
        wgmma_wait<1>();
        hold(scores);
        arrive_warp(shared.k_free[ring.stage]);
        if (column == columns.all.begin + kKeys) arrive_warp(shared.q_free);
        exponentiate(scores, column - kKeys, rows, factor);
        wgmma_wait<0>();
        hold(out);
        arrive_warp(shared.v_free[values.stage]);
        for_each_value(out, [&](float& value, int half, int) { value *= factor[half]; });
        round_weights(p, scores);
      }
      wait_for_values(ring, is_whole(columns, column));
      hold(out);
      wgmma_fence();
      add_values_of(out, p, shared.v[ring.stage]);
      const bool found = shared.found[round % 2] == round + 1;
      wgmma_wait<0>();
      hold(out);
      arrive_warp(shared.v_free[ring.stage]);
      ring.advance();
      const Place place = place_of(tile);
      finish(out, rows, place, own_row());
      if (found) {
        barrier_sync(8 + group, 128);
        add_values(launch.args, place, group * 64, static_cast<int>(threadIdx.x) % 128 / 32);
      }
    }
  }
  __device__ __forceinline__ Place place_of(int tile) const {
    return Tiles::place_of(launch.args.inputs, launch.order.at(tile));
  }

  // What the last warpgroup does.
  __device__ __forceinline__ void assist(int warp) const {
    if (warp > 0) {
      check_values();
    } else if (threadIdx.x % 32 == 0) {
      copy();
    }
  }

  // Divides by the sums, and stores.
  __device__ __forceinline__ void finish(FragmentC (&out)[DIM / 8], const Rows& rows, const Place& place,
                                         int own) const {
    const SoftmaxAttentionForwardArgs& args = launch.args;
    const float scale = static_cast<float>(args.inputs.scale);
    float inverse[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float sum = group_sum<4>(rows.sum[half]);
      inverse[half] = 1.0f / sum;
      const int query = place.first + own + half * 8;
      if (args.lse && query < static_cast<int>(args.inputs.q.length) && threadIdx.x % 4 == 0) {
        vector<float>(args.lse)[row_index(args.inputs.q, place.batch, place.head, query)] =
            rounded_product(rows.largest[half], scale) + logf(sum * exp2f(-kLift));
      }
    }
    for_each_value(out, [&](float& value, int half, int) { value *= inverse[half]; });
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int query = place.first + own + half * 8;
      const bool stored = query < static_cast<int>(args.inputs.q.length);
      store_row(head<T>(args.o, place.batch, query, place.head), out, half, stored, false);
    }
  }
};

template <class T, int DIM, int GROUPS>
__global__ void __launch_bounds__(HopperForward<T, DIM, GROUPS>::kThreads, 1)
    forward_hopper(const __grid_constant__ HopperForwardLaunch launch) {
#ifdef HEDDLE_WGMMA
  using Forward = HopperForward<T, DIM, GROUPS>;
  extern __shared__ __align__(1024) unsigned char raw[];
  run_groups(Forward{launch, *reinterpret_cast<typename Forward::Shared*>(raw)});
#endif
}

template <class T, int DIM, int GROUPS>
void launch_hopper_forward(Context& context, const SoftmaxAttentionForwardArgs& args) {
  using Forward = HopperForward<T, DIM, GROUPS>;
  const SoftmaxAttentionInputs& inputs = args.inputs;
  HopperForwardLaunch launch{tensor_map(inputs.q, Forward::kQueries),
                             tensor_map(inputs.k, Forward::kKeys),
                             tensor_map(inputs.v, Forward::kKeys),
                             args,
                             {}};
  launch.order = tile_order(context, inputs.q, Forward::kQueries, inputs.k.length * DIM * 4, inputs.causal, nullptr);
  const unsigned blocks = blocks_for(context, launch.order);
  if (launch.order.heads * int64_t{launch.order.row_tiles} > 4 * int64_t{blocks}) {  // else the fixed order is as good
    launch.order.taken = static_cast<unsigned*>(scratch(context));
    HEDDLE_CUDA_CHECK(cudaMemsetAsync(launch.order.taken, 0, sizeof(unsigned), context.stream()));
  }
  HEDDLE_LAUNCH(context, (forward_hopper<T, DIM, GROUPS>), blocks, Forward::kThreads, sizeof(typename Forward::Shared),
                launch);
}

template <class T>
void launch_hopper_forward_64(Context& context, const SoftmaxAttentionForwardArgs& args) {
  if constexpr (!HopperForward<T, 64, 2>::kTwoNumbers) {  // these take more registers than three groups have
    const HeadsView& q = args.inputs.q;
    const int64_t large_tiles = q.batch * q.heads * ceil_div(q.length, 192);
    if (large_tiles > 4 * int64_t{context.properties().multiprocessors}) {  // else small ones are shared out better
      return launch_hopper_forward<T, 64, 3>(context, args);
    }
  }
  launch_hopper_forward<T, 64, 2>(context, args);
}

// Returns false where there is no kernel for these sizes.
template <class T>
bool forward_on_hopper(Context& context, const SoftmaxAttentionForwardArgs& args) {
  const SoftmaxAttentionInputs& inputs = args.inputs;
  const int64_t tiles = inputs.q.batch * inputs.q.heads * ceil_div(inputs.q.length, 64);
  if (!can_use_hopper(context) || inputs.q.dim != inputs.v.dim || !(inputs.scale > 0) || tiles > int64_t{1} << 30 ||
      !can_map(inputs.q) || !can_map(inputs.k) || !can_map(inputs.v) || !can_vectorize(args.o, 8)) {
    return false;
  }
  if (inputs.q.dim == 64) launch_hopper_forward_64<T>(context, args);
  if (inputs.q.dim == 128) launch_hopper_forward<T, 128, 2>(context, args);
  return inputs.q.dim == 64 || inputs.q.dim == 128;
}

}  // namespace heddle::kernels::cuda::softmax
