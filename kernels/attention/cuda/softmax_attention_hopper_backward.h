// Softmax attention on the tensor cores of sm_90a, backward of heads of DIM = 64 or 128 features: row products and d_q.
//   row_products_hopper      row_products (=) D = d_o . o for each query and head
//   backward_queries_hopper  d_q (=|+=) scale dS k,   dS = P .* (d_o v^T - D),   P = exp(scores - lse)
// The latter is built as the forward pass is (softmax_attention_hopper_forward.h): warpgroups of 64 queries, copies by
// a warp of their own, keys from the last to the first. P and dS are one number of T where they enter a product.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/attention/cuda/softmax_attention.h"
#include "kernels/attention/cuda/softmax_attention_hopper.h"

namespace heddle::kernels::cuda::softmax {

// --- Row products ---

// `taken`: the counts of tiles of the two kernels that follow (=) 0. A group of DIM / 8 lanes a row; heads are the
// fastest index, as they mostly are in memory.
template <class T, int DIM>
__global__ void __launch_bounds__(256)
    row_products_hopper(const __grid_constant__ SoftmaxAttentionBackwardArgs args, unsigned* taken) {
  if (blockIdx.x == 0 && threadIdx.x < 2) taken[threadIdx.x] = 0;
  constexpr int kLanes = DIM / 8;
  const int64_t heads = args.o.heads, rows = args.o.batch * args.o.length * heads;
  const int64_t row = (int64_t{blockIdx.x} * blockDim.x + threadIdx.x) / kLanes;
  const int64_t last = row < rows ? row : rows - 1;  // the lanes of a warp reduce together
  const int64_t token = last / heads, head_index = last % heads;
  const int64_t batch = token / args.o.length, query = token % args.o.length;
  const int col = static_cast<int>(threadIdx.x) % kLanes * 8;
  const Vec<float, 8> o = load_wide<8>(head<const T>(args.o, batch, query, head_index) + col);
  const Vec<float, 8> d_o = load_wide<8>(head<const T>(args.d_o, batch, query, head_index) + col);
  float sum = 0.0f;
#pragma unroll
  for (int i = 0; i < 8; ++i) sum = fmaf(o[i], d_o[i], sum);
  sum = group_sum<kLanes>(sum);
  if (row < rows && col == 0) {
    vector<float>(args.row_products)[row_index(args.inputs.q, batch, head_index, query)] = sum;
  }
}

// --- d_q ---

struct HopperBackwardLaunch {
  CUtensorMap q, k, v, d_o;
  SoftmaxAttentionBackwardArgs args;
  TileOrder order;
};

template <class T, int DIM>
struct HopperQueries {
  static constexpr int kGroups = 2, kThreads = 128 * (kGroups + 1), kCheckers = 96;
  static constexpr int kQueries = 64 * kGroups, kKeys = 128, kStages = DIM == 64 ? 4 : 2;

  struct Shared {
    SwizzledMatrix<T, kQueries, DIM> q, d_o;
    SwizzledMatrix<T, kKeys, DIM> k[kStages], v[kStages];
    // Full: copied. Free: read by all groups. Checked: k has been looked through. `rows`: q and d_o.
    SharedBarrier rows_full, rows_free;
    SharedBarrier k_full[kStages], k_free[kStages], v_full[kStages], v_free[kStages], checked[kStages];
    int tile;             // the tile of q, -1 after the last
    TileColumns columns;  // of the tile
    int found[kStages];   // the number of the step + 1 where k holds what is not finite; steps count over all tiles
  };
  using Tiles = QueryTiles<kQueries, kKeys>;
  using Place = typename Tiles::Place;

  const HopperBackwardLaunch& launch;
  Shared& shared;

  __device__ __forceinline__ void init() const {
    if (threadIdx.x == 0) {
      shared.rows_full.init(1);
      shared.rows_free.init(4 * kGroups + 3);
      for (int s = 0; s < kStages; ++s) {
        shared.k_full[s].init(1);
        shared.v_full[s].init(1);
        shared.k_free[s].init(4 * kGroups + 3);
        shared.v_free[s].init(4 * kGroups);
        shared.checked[s].init(3);
        shared.found[s] = 0;
      }
      SharedBarrier::fence_init();
    }
    __syncthreads();
  }

  // Copies, by one thread.
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
          shared.rows_free.wait(round % 2 ^ 1);
          shared.tile = index;
          shared.columns = columns;
          shared.rows_full.arrive_and_expect(shared.q.kBytes + shared.d_o.kBytes);
          copy_tile(shared.q, launch.q, shared.rows_full, place.batch, place.head, place.first);
          copy_tile(shared.d_o, launch.d_o, shared.rows_full, place.batch, place.head, place.first);
        }
        shared.v_free[ring.stage].wait(ring.parity ^ 1u);
        shared.v_full[ring.stage].arrive_and_expect(shared.v[0].kBytes);
        copy_tile(shared.v[ring.stage], launch.v, shared.v_full[ring.stage], place.batch, place.kv_head, column);
      }
      index = next;
    }
    shared.rows_free.wait(round % 2 ^ 1);
    shared.tile = -1;
    shared.rows_full.arrive();
  }

  // Looks for what is not finite in keys that not all queries of the tile see.
  __device__ __forceinline__ void check_keys() const {
    const int thread = static_cast<int>(threadIdx.x) % 128 - 32;
    Ring<kStages> ring;
    int count = 0;  // steps of all tiles
    for (int round = 0;; ++round) {
      shared.rows_full.wait(round % 2);
      if (shared.tile < 0) break;
      const TileColumns columns = shared.columns;
      arrive_warp(shared.rows_free);
      const int steps = Tiles::steps_of(columns);
      for (int step = 0; step < steps; ++step, ring.advance()) {
        ++count;
        shared.k_full[ring.stage].wait(ring.parity);  // also where nothing is looked for, to stay in step
        if (!columns.are_whole(Tiles::column_of(columns, steps, step), kKeys) &&
            find_not_finite<kCheckers, false>(shared.k[ring.stage], thread)) {
          shared.found[ring.stage] = count;
        }
        arrive_warp(shared.checked[ring.stage]);
        arrive_warp(shared.k_free[ring.stage]);
      }
    }
  }

  // A key that is not finite has scores that are not, and dS that is NaN or 0, so d_q of a query that sees it is NaN.
  __device__ __noinline__ static void add_keys(const SoftmaxAttentionBackwardArgs& args, const Place& place,
                                               int first_row, int warp) {
    Tiles::for_pairs_not_whole(args.inputs, place, first_row, warp, [&](int query, int key) {
      add_what_is_not_finite(head<T>(args.d_q.view, place.batch, query, place.head),
                             head<const T>(args.inputs.k, place.batch, key, place.kv_head), DIM, 0.0f);
    });
  }

  // What the thread's two rows need.
  struct Rows {
    Range keys[2];
    Range whole;  // the keys that all rows of the warp see
    float lse[2], product[2];
    bool large;  // whether a row of the warp has a large lse
  };
  __device__ __forceinline__ Rows rows_of(const Place& place, int own) const {
    const SoftmaxAttentionBackwardArgs& args = launch.args;
    Rows rows;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      rows.keys[half] = Tiles::keys_of_row(args.inputs, place, own + half * 8);
      const int query = min(place.first + own + half * 8, static_cast<int>(args.inputs.q.length) - 1);
      const int64_t index = row_index(args.inputs.q, place.batch, place.head, query);
      rows.lse[half] = vector<const float>(args.lse)[index];
      rows.product[half] = vector<const float>(args.row_products)[index];
    }
    rows.whole = {__shfl_sync(0xffffffffu, rows.keys[1].begin, 31), __shfl_sync(0xffffffffu, rows.keys[0].end, 0)};
    rows.large = __any_sync(0xffffffffu, is_large(rows.lse[0]) || is_large(rows.lse[1]));
    return rows;
  }

  __device__ __forceinline__ void compute(int group) const {
    const SoftmaxAttentionInputs& inputs = launch.args.inputs;
    const int own = group * 64 + static_cast<int>(threadIdx.x) % 128 / 32 * 16 + static_cast<int>(threadIdx.x) % 32 / 4;
    const float scale = static_cast<float>(inputs.scale);
    Ring<kStages> ring;
    int count = 0;  // steps of all tiles
    for (int round = 0;; ++round) {
      shared.rows_full.wait(round % 2);
      if (shared.tile < 0) break;
      const Place place = Tiles::place_of(inputs, launch.order.at(shared.tile));
      const Rows rows = rows_of(place, own);
      const TileColumns columns = shared.columns;
      const int steps = Tiles::steps_of(columns);

      FragmentC d_q[DIM / 8], p[kKeys / 8], d_p[kKeys / 8];
      FragmentA d_s[kKeys / 16];
      bool found = false;
#pragma unroll 1
      for (int step = 0; step < steps; ++step) {
        const int column = Tiles::column_of(columns, steps, step);
        ++count;
        shared.k_full[ring.stage].wait(ring.parity);
        hold(p);
        hold(d_p);
        hold(d_q);
        wgmma_fence();
        start_scores(p, shared.q, group * 64, shared.k[ring.stage]);
        shared.v_full[ring.stage].wait(ring.parity);
        wgmma_wait<1>();  // the last step's d_q, whose weights leave their registers to d_p
        hold(d_q);
        if (step > 0) arrive_warp(shared.k_free[(ring.stage + kStages - 1) % kStages]);
        start_scores(d_p, shared.d_o, group * 64, shared.v[ring.stage]);
        wgmma_wait<1>();
        hold(p);
        const bool whole = rows.whole.begin <= column && rows.whole.end >= column + kKeys;
        if (!whole) {
          for_each_value(p, [&](float& score, int half, int col) {
            if (!rows.keys[half].contains(column + col)) score = -infinity<float>();
          });
        }
        if (rows.large) {
          for_each_value(p, [&](float& score, int half, int) { score = exponent_of(score, scale, rows.lse[half]); });
        } else {
          for_each_value(p,
                         [&](float& score, int half, int) { score = small_exponent_of(score, scale, rows.lse[half]); });
        }
        for_each_value(p, [&](float& score, int, int) { score = fast_exp2(score); });
        wgmma_wait<0>();
        hold(d_p);
        arrive_warp(shared.v_free[ring.stage]);
        if (step == steps - 1) arrive_warp(shared.rows_free);
        if (!whole) {
          for_each_value(d_p, [&](float& value, int half, int col) {
            if (!rows.keys[half].contains(column + col)) value = 0.0f;
          });
        }
        for_each_pair(
            p, d_p, [&](float weight, float& value, int half, int) { value = weight * (value - rows.product[half]); });
        round_weights<T>(d_s, d_p);
        if (!columns.are_whole(column, kKeys)) {
          shared.checked[ring.stage].wait(ring.parity);
          if (shared.found[ring.stage] == count) {
            found = true;
            drop_keys(ring.stage);
          }
        }
        hold(d_q);
        wgmma_fence();
        start_sum(d_q, d_s, shared.k[ring.stage], step > 0);
        ring.advance();
      }
      wgmma_wait<0>();
      hold(d_q);
      arrive_warp(shared.k_free[(ring.stage + kStages - 1) % kStages]);
      store(d_q, place, own);
      if (found) {
        barrier_sync(2 + group, 128);
        add_keys(launch.args, place, group * 64, static_cast<int>(threadIdx.x) % 128 / 32);
      }
    }
  }

  // Puts 0 in place of what is not finite in keys, by all groups, after all have computed their scores.
  __device__ __forceinline__ void drop_keys(int stage) const {
    barrier_sync(1, 128 * kGroups);
    find_not_finite<128 * kGroups, true>(shared.k[stage], static_cast<int>(threadIdx.x));
    fence_async_proxy();
    barrier_sync(1, 128 * kGroups);
  }

  __device__ __forceinline__ void store(FragmentC (&d_q)[DIM / 8], const Place& place, int own) const {
    const HeadsDestination& to = launch.args.d_q;
    const float scale = static_cast<float>(launch.args.inputs.scale);
    for_each_value(d_q, [&](float& value, int, int) { value *= scale; });
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int query = place.first + own + half * 8;
      store_row(head<T>(to.view, place.batch, query, place.head), d_q, half, query < static_cast<int>(to.view.length),
                to.mode == GradientMode::accumulate);
    }
  }
};

template <class T, int DIM>
__global__ void __launch_bounds__(HopperQueries<T, DIM>::kThreads, 1)
    backward_queries_hopper(const __grid_constant__ HopperBackwardLaunch launch) {
#ifdef HEDDLE_WGMMA
  using Queries = HopperQueries<T, DIM>;
  extern __shared__ __align__(1024) unsigned char raw[];
  const Queries queries{launch, *reinterpret_cast<typename Queries::Shared*>(raw)};
  queries.init();
  const int group = __shfl_sync(0xffffffffu, static_cast<int>(threadIdx.x) / 128, 0);
  if (group < Queries::kGroups) {
    take_registers<240>();
    queries.compute(group);
  } else {
    give_registers<24>();
    const int warp = __shfl_sync(0xffffffffu, static_cast<int>(threadIdx.x) % 128 / 32, 0);
    if (warp > 0) {
      queries.check_keys();
    } else if (threadIdx.x % 32 == 0) {
      queries.copy();
    }
  }
#endif
}

}  // namespace heddle::kernels::cuda::softmax
