// Softmax attention on the tensor cores of sm_90a, backward of heads of DIM = 64 or 128 features: keys and values.
//   backward_keys_hopper  d_k (=|+=) scale dS^T q,  d_v (=|+=) P^T d_o
// A warpgroup owns 64 keys of one head of k and goes over the queries that see one of them, of all heads of q that use
// the head: scores and dP are computed transposed, so that P^T and dS^T are made in the registers from which they enter
// their products. A warp of its own copies q and d_o, another one lse and D, and the last two look for what is not
// finite in queries that not all keys of the tile meet: it is put to 0 there, since its weights are 0 or not finite
// themselves, and what d_o lost is added in the end to the keys that its query sees.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "kernels/attention/cuda/softmax_attention_hopper_backward.h"
#include "kernels/common/cuda/scratch.h"

namespace heddle::kernels::cuda::softmax {

template <class T, int DIM>
struct HopperKeys {
  static constexpr int kGroups = 2, kThreads = 128 * (kGroups + 1), kCheckers = 64;
  static constexpr int kKeys = 64 * kGroups, kQueries = 64, kStages = 4;

  struct Shared {
    SwizzledMatrix<T, kKeys, DIM> k, v;
    SwizzledMatrix<T, kQueries, DIM> q[kStages], d_o[kStages];
    float lse[kStages][kQueries], product[kStages][kQueries];
    // Full: copied. Free: read by all groups. Checked: q and d_o have been looked through. `rows`: k and v.
    SharedBarrier rows_full, rows_free, full[kStages], free[kStages], checked[kStages];
    SharedBarrier tile_full[2], tile_free[2];
    int tile[2];                         // the tile of k, by parity of the round; -1 after the last
    int found[kStages], large[kStages];  // as in HopperQueries; with a large lse
  };

  // One tile of keys.
  struct Place {
    int batch, head, first;  // the head of k; the first key
    TileColumns columns;     // of queries
    int steps;               // of one head of q
  };

  const HopperBackwardLaunch& launch;
  Shared& shared;

  __device__ __forceinline__ int group_size() const {
    return static_cast<int>(launch.args.inputs.q.heads) / static_cast<int>(launch.args.inputs.k.heads);
  }
  // Rows after the last key do as the last one does.
  __device__ __forceinline__ static Range queries_of_row(const SoftmaxAttentionInputs& inputs, int batch, int first,
                                                         int row) {
    return queries_of(inputs, batch, min(first + row, static_cast<int>(inputs.k.length) - 1));
  }
  __device__ __forceinline__ Place place_of(int index) const {
    const SoftmaxAttentionInputs& inputs = launch.args.inputs;
    const TileOrder::Tile tile = launch.order.at(index);
    const int heads = static_cast<int>(inputs.k.heads);
    Place place{tile.head / heads, tile.head % heads, tile.row_tile * kKeys, {}, 0};
    place.columns = columns_between(queries_of_row(inputs, place.batch, place.first, 0),
                                    queries_of_row(inputs, place.batch, place.first, kKeys - 1));
    place.steps = blocks_of(max(place.columns.all.end - place.columns.all.begin, 0), kQueries);
    return place;
  }
  // Of the steps of all heads of q, from the last queries to the first.
  __device__ __forceinline__ static int column_of(const Place& place, int step) {
    return place.columns.all.begin + (place.steps - 1 - step % place.steps) * kQueries;
  }
  __device__ __forceinline__ int query_head_of(const Place& place, int step) const {
    return place.head * group_size() + step / place.steps;
  }

  __device__ __forceinline__ void init() const {
    if (threadIdx.x == 0) {
      shared.rows_full.init(1);
      shared.rows_free.init(4 * kGroups);
      for (int i = 0; i < 2; ++i) {
        shared.tile_full[i].init(1);
        shared.tile_free[i].init(4 * kGroups + 3);
      }
      for (int s = 0; s < kStages; ++s) {
        shared.full[s].init(2);
        shared.free[s].init(4 * kGroups + 2);
        shared.checked[s].init(2);
        shared.found[s] = shared.large[s] = 0;
      }
      SharedBarrier::fence_init();
    }
    __syncthreads();
  }

  // Waits for the tile of a round; -1 after the last.
  __device__ __forceinline__ int tile_of(int round) const {
    shared.tile_full[round % 2].wait(round / 2 % 2);
    const int tile = shared.tile[round % 2];
    arrive_warp(shared.tile_free[round % 2]);
    return tile;
  }
  // Calls visit(place, step, ring) for all steps of the block's tiles.
  template <class Visit>
  __device__ __forceinline__ void for_steps(const Visit& visit) const {
    Ring<kStages> ring;
    int tile;
    for (int round = 0; (tile = tile_of(round)) >= 0; ++round) {
      const Place place = place_of(tile);
      for (int step = 0; step < group_size() * place.steps; ++step, ring.advance()) visit(place, step, ring);
    }
  }

  // Copies, by one thread. Those of k and v wait for the tile before, and those of the first queries do not.
  __device__ __forceinline__ void copy() const {
    Ring<kStages> ring;
    int index = launch.order.take(0);
    for (int round = 0;; ++round) {
      const bool exists = index < launch.order.count();
      shared.tile_free[round % 2].wait(round / 2 % 2 ^ 1);
      shared.tile[round % 2] = exists ? index : -1;
      shared.tile_full[round % 2].arrive();
      if (!exists) break;
      const int next = launch.order.take(round + 1);
      const Place place = place_of(index);
      const int steps = group_size() * place.steps;
      for (int step = 0; step < steps || step < 1; ++step) {
        if (steps > 0) {
          copy_queries(place, step, ring);
          ring.advance();
        }
        if (step == min(1, max(steps, 1) - 1)) copy_keys(place, round);
      }
      index = next;
    }
  }
  __device__ __forceinline__ void copy_keys(const Place& place, int round) const {
    shared.rows_free.wait(round % 2 ^ 1);
    shared.rows_full.arrive_and_expect(shared.k.kBytes + shared.v.kBytes);
    copy_tile(shared.k, launch.k, shared.rows_full, place.batch, place.head, place.first);
    copy_tile(shared.v, launch.v, shared.rows_full, place.batch, place.head, place.first);
  }
  __device__ __forceinline__ void copy_queries(const Place& place, int step, const Ring<kStages>& ring) const {
    const int column = column_of(place, step), query_head = query_head_of(place, step);
    SharedBarrier& full = shared.full[ring.stage];
    shared.free[ring.stage].wait(ring.parity ^ 1u);
    full.arrive_and_expect(shared.q[0].kBytes + shared.d_o[0].kBytes);
    copy_tile(shared.q[ring.stage], launch.q, full, place.batch, query_head, column);
    copy_tile(shared.d_o[ring.stage], launch.d_o, full, place.batch, query_head, column);
  }

  // Copies lse and D, by one warp.
  __device__ __forceinline__ void copy_numbers() const {
    const SoftmaxAttentionBackwardArgs& args = launch.args;
    const int lane = static_cast<int>(threadIdx.x) % 32;
    int count = 0;
    for_steps([&](const Place& place, int step, const Ring<kStages>& ring) {
      ++count;
      const int column = column_of(place, step);
      const int64_t index = row_index(args.inputs.q, place.batch, query_head_of(place, step), column);
      float lse[kQueries / 32], product[kQueries / 32];
#pragma unroll
      for (int i = 0; i < kQueries / 32; ++i) {
        const int query = i * 32 + lane;
        const bool exists = column + query < place.columns.all.end;
        lse[i] = exists ? vector<const float>(args.lse)[index + query] : 0.0f;
        product[i] = exists ? vector<const float>(args.row_products)[index + query] : 0.0f;
      }
      shared.free[ring.stage].wait(ring.parity ^ 1u);
#pragma unroll
      for (int i = 0; i < kQueries / 32; ++i) {
        shared.lse[ring.stage][i * 32 + lane] = lse[i];
        shared.product[ring.stage][i * 32 + lane] = product[i];
        if (is_large(lse[i])) shared.large[ring.stage] = count;
      }
      arrive_warp(shared.full[ring.stage]);
    });
  }

  __device__ __forceinline__ void check_queries() const {
    const int thread = static_cast<int>(threadIdx.x) % 128 - 64;
    int count = 0;
    for_steps([&](const Place& place, int step, const Ring<kStages>& ring) {
      ++count;
      shared.full[ring.stage].wait(ring.parity);  // also where nothing is looked for, to stay in step
      if (!place.columns.are_whole(column_of(place, step), kQueries)) {
        const bool in_q = find_not_finite<kCheckers, true>(shared.q[ring.stage], thread);
        const bool in_d_o = find_not_finite<kCheckers, true>(shared.d_o[ring.stage], thread);
        if (in_d_o) shared.found[ring.stage] = count;
        if (in_q || in_d_o) fence_async_proxy();
      }
      arrive_warp(shared.checked[ring.stage]);
      arrive_warp(shared.free[ring.stage]);
    });
  }

  // Adds to the group's rows of d_v what is not finite in d_o, of steps that not all keys of the tile meet.
  __device__ __noinline__ void add_outputs(const Place& place, int first_row, int warp) const {
    const SoftmaxAttentionBackwardArgs& args = launch.args;
    const int end = min(place.first + first_row + 64, static_cast<int>(args.inputs.k.length));
    for (int key = place.first + first_row + warp; key < end; key += 4) {
      const Range queries = queries_of(args.inputs, place.batch, key);
      for (int step = 0; step < group_size() * place.steps; ++step) {
        const int column = column_of(place, step);
        if (place.columns.are_whole(column, kQueries)) continue;
        for (int query = max(column, queries.begin); query < min(column + kQueries, queries.end); ++query) {
          add_what_is_not_finite(head<T>(args.d_v.view, place.batch, key, place.head),
                                 head<const T>(args.d_o, place.batch, query, query_head_of(place, step)), DIM, 1.0f);
        }
      }
    }
  }

  // From transposed scores to P^T.
  __device__ __forceinline__ void probabilities(FragmentC (&scores)[kQueries / 8], float scale, int stage,
                                                bool large) const {
    const auto exponentiate = [&](const auto& exponent) {
      for_each_column(scores, shared.lse[stage],
                      [&](float& score, float lse) { score = fast_exp2(exponent(score, scale, lse)); });
    };
    if (large) {
      exponentiate([](float score, float scale, float lse) { return exponent_of(score, scale, lse); });
    } else {
      exponentiate([](float score, float scale, float lse) { return small_exponent_of(score, scale, lse); });
    }
  }
  // Calls visit(value, number of its column).
  template <class Visit>
  __device__ __forceinline__ static void for_each_column(FragmentC (&values)[kQueries / 8], const float* numbers,
                                                         const Visit& visit) {
    const int t2 = static_cast<int>(threadIdx.x) % 4 * 2;
#pragma unroll
    for (int n = 0; n < kQueries / 8; ++n) {
      const float2 two = *reinterpret_cast<const float2*>(numbers + n * 8 + t2);
#pragma unroll
      for (int e = 0; e < 4; ++e) visit(values[n].values[e], e % 2 == 0 ? two.x : two.y);
    }
  }

  __device__ __forceinline__ void compute(int group) const {
    const SoftmaxAttentionInputs& inputs = launch.args.inputs;
    const int own = group * 64 + static_cast<int>(threadIdx.x) % 128 / 32 * 16 + static_cast<int>(threadIdx.x) % 32 / 4;
    const float scale = static_cast<float>(inputs.scale);
    Ring<kStages> ring;
    int count = 0;  // steps of all tiles
    int tile;
    for (int round = 0; (tile = tile_of(round)) >= 0; ++round) {
      const Place place = place_of(tile);
      const Range queries[2] = {queries_of_row(inputs, place.batch, place.first, own),
                                queries_of_row(inputs, place.batch, place.first, own + 8)};
      const Range all_rows = {__shfl_sync(0xffffffffu, queries[1].begin, 31),
                              __shfl_sync(0xffffffffu, queries[0].end, 0)};
      const int steps = group_size() * place.steps;
      shared.rows_full.wait(round % 2);

      FragmentC d_k[DIM / 8], d_v[DIM / 8], p[kQueries / 8], d_p[kQueries / 8];
      FragmentA weights[kQueries / 16], d_s[kQueries / 16];
      bool found = false;
#pragma unroll 1
      for (int step = 0; step < steps; ++step) {
        const int column = column_of(place, step);
        ++count;
        shared.full[ring.stage].wait(ring.parity);
        if (!place.columns.are_whole(column, kQueries)) {
          shared.checked[ring.stage].wait(ring.parity);
          found = found || shared.found[ring.stage] == count;
        }
        hold(p);
        hold(d_p);
        wgmma_fence();
        start_scores(p, shared.k, group * 64, shared.q[ring.stage]);
        wgmma_wait<1>();  // the last step's two sums, whose weights leave their registers to d_p
        hold(d_k);
        hold(d_v);
        if (step > 0) arrive_warp(shared.free[(ring.stage + kStages - 1) % kStages]);
        start_scores(d_p, shared.v, group * 64, shared.d_o[ring.stage]);
        wgmma_wait<1>();
        hold(p);
        const bool whole = all_rows.begin <= column && all_rows.end >= column + kQueries;
        probabilities(p, scale, ring.stage, shared.large[ring.stage] == count);
        if (!whole) {
          for_each_value(p, [&](float& value, int half, int col) {
            if (!queries[half].contains(column + col)) value = 0.0f;
          });
        }
        wgmma_wait<0>();
        hold(d_p);
        for_each_column(d_p, shared.product[ring.stage], [](float& value, float product) { value -= product; });
        for_each_pair(p, d_p, [](float weight, float& value, int, int) { value *= weight; });
        if (!whole) {
          for_each_value(d_p, [&](float& value, int half, int col) {
            if (!queries[half].contains(column + col)) value = 0.0f;
          });
        }
        round_weights<T>(weights, p);
        round_weights<T>(d_s, d_p);
        hold(d_k);
        hold(d_v);
        wgmma_fence();
        start_sum<T, DIM / 8, kQueries / 16>(d_v, weights, shared.d_o[ring.stage], step > 0);
        start_sum<T, DIM / 8, kQueries / 16>(d_k, d_s, shared.q[ring.stage], step > 0);
        ring.advance();
      }
      wgmma_wait<0>();
      hold(d_k);
      hold(d_v);
      arrive_warp(shared.rows_free);
      if (steps > 0) arrive_warp(shared.free[(ring.stage + kStages - 1) % kStages]);
      for_each_value(d_k, [&](float& value, int, int) { value = steps > 0 ? value * scale : 0.0f; });
      for_each_value(d_v, [&](float& value, int, int) { value = steps > 0 ? value : 0.0f; });
      store(launch.args.d_k, d_k, place, own);
      store(launch.args.d_v, d_v, place, own);
      if (found) {
        barrier_sync(2 + group, 128);
        add_outputs(place, group * 64, static_cast<int>(threadIdx.x) % 128 / 32);
      }
    }
  }

  __device__ __forceinline__ static void store(const HeadsDestination& to, const FragmentC (&values)[DIM / 8],
                                               const Place& place, int own) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int key = place.first + own + half * 8;
      store_row(head<T>(to.view, place.batch, key, place.head), values, half, key < static_cast<int>(to.view.length),
                to.mode == GradientMode::accumulate);
    }
  }
};

template <class T, int DIM>
__global__ void __launch_bounds__(HopperKeys<T, DIM>::kThreads, 1)
    backward_keys_hopper(const __grid_constant__ HopperBackwardLaunch launch) {
#ifdef HEDDLE_WGMMA
  using Keys = HopperKeys<T, DIM>;
  extern __shared__ __align__(1024) unsigned char raw[];
  const Keys keys{launch, *reinterpret_cast<typename Keys::Shared*>(raw)};
  keys.init();
  const int group = __shfl_sync(0xffffffffu, static_cast<int>(threadIdx.x) / 128, 0);
  if (group < Keys::kGroups) {
    take_registers<240>();
    keys.compute(group);
  } else {
    give_registers<24>();
    const int warp = __shfl_sync(0xffffffffu, static_cast<int>(threadIdx.x) % 128 / 32, 0);
    if (warp == 0) {
      if (threadIdx.x % 32 == 0) keys.copy();
    } else if (warp == 1) {
      keys.copy_numbers();
    } else {
      keys.check_queries();
    }
  }
#endif
}

// --- Launches ---

template <class T, int DIM>
void launch_hopper_backward(Context& context, const SoftmaxAttentionBackwardArgs& args) {
  using Queries = HopperQueries<T, DIM>;
  using Keys = HopperKeys<T, DIM>;
  const SoftmaxAttentionInputs& inputs = args.inputs;
  const int64_t rows = inputs.q.batch * inputs.q.heads * inputs.q.length;
  auto* const taken = static_cast<unsigned*>(scratch(context));
  HEDDLE_LAUNCH(context, (row_products_hopper<T, DIM>), static_cast<unsigned>(ceil_div(rows * (DIM / 8), 256)), 256, 0,
                args, taken);
  const auto maps = [&](int query_rows, int key_rows) {
    return HopperBackwardLaunch{tensor_map(inputs.q, query_rows),
                                tensor_map(inputs.k, key_rows),
                                tensor_map(inputs.v, key_rows),
                                tensor_map(args.d_o, query_rows),
                                args,
                                {}};
  };
  if (args.d_q) {
    HopperBackwardLaunch launch = maps(Queries::kQueries, Queries::kKeys);
    launch.order = tile_order(context, inputs.q, Queries::kQueries, inputs.k.length * DIM * 4, inputs.causal, taken);
    HEDDLE_LAUNCH(context, (backward_queries_hopper<T, DIM>), blocks_for(context, launch.order), Queries::kThreads,
                  sizeof(typename Queries::Shared), launch);
  }
  HopperBackwardLaunch launch = maps(Keys::kQueries, Keys::kKeys);
  const int64_t bytes = inputs.q.length * DIM * 4 * (inputs.q.heads / inputs.k.heads);
  launch.order = tile_order(context, inputs.k, Keys::kKeys, bytes, false, taken + 1);
  HEDDLE_LAUNCH(context, (backward_keys_hopper<T, DIM>), blocks_for(context, launch.order), Keys::kThreads,
                sizeof(typename Keys::Shared), launch);
}

// Returns false where there is no kernel for these sizes.
template <class T>
bool backward_on_hopper(Context& context, const SoftmaxAttentionBackwardArgs& args) {
  const SoftmaxAttentionInputs& inputs = args.inputs;
  const int64_t tiles = inputs.q.batch * inputs.q.heads * ceil_div(std::max(inputs.q.length, inputs.k.length), 64);
  if (!can_use_hopper(context) || inputs.q.dim != inputs.v.dim || !(inputs.scale > 0) || tiles > int64_t{1} << 30 ||
      !can_map(inputs.q) || !can_map(inputs.k) || !can_map(inputs.v) || !can_map(args.d_o) || !args.d_k || !args.d_v ||
      !can_vectorize_all(8, args.o, args.d_q.view, args.d_k.view, args.d_v.view)) {
    return false;
  }
  if (inputs.q.dim == 64) launch_hopper_backward<T, 64>(context, args);
  if (inputs.q.dim == 128) launch_hopper_backward<T, 128>(context, args);
  return inputs.q.dim == 64 || inputs.q.dim == 128;
}

}  // namespace heddle::kernels::cuda::softmax
