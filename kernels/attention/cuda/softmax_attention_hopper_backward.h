// Softmax attention on the tensor cores of sm_90a, backward of heads of DIM = 64 or 128 features.
//   dS = P .* (d_o v^T - D),  P = exp(scores - lse)
//   d_k (=|+=) scale dS^T q,  d_v (=|+=) P^T d_o,  sums of d_q (=) dS k in float
// A block takes tiles of 128 keys of one head of k. Each of two warpgroups owns 64 keys and goes over the queries that
// see one of them, from the last to the first, of all heads of q that use the head. Scores and dP are computed
// transposed, so that P^T and dS^T are made in the registers from which they enter their products; dS also goes
// through shared memory into dS k, of which each group computes a part of 64 by 64.
//
// The sums of d_q are in device memory. Tiles of keys add to them in ascending order, so that all runs give the same
// bits: a tile adds to a tile of queries when the tile of keys before has told, by its progress, that it has done so.
// Blocks take tiles in that order, so the tile that is waited for is always under way. The first one writes, and does
// not add.
//
// What is not finite is looked for where not all keys of a tile meet all queries. In q and d_o it is put to 0, since
// its weights are 0 or not finite themselves, and what d_o lost is added in the end to the keys that its query sees. In
// k it is put to 0, too, and from then on such a key has a weight of NaN in d_q of the queries that see it.
#pragma once

#include <cstdint>

#include "kernels/attention/cuda/softmax_attention_hopper_keys.h"

namespace heddle::kernels::cuda::softmax {

template <class T, int DIM>
struct HopperBackward : HopperKeys<T, DIM> {
  using Base = HopperKeys<T, DIM>;
  using Base::kGroups, Base::kKeys, Base::kQueries, Base::kStages;
  using Base::launch, Base::shared, Base::first_step, Base::advance, Base::wait_for_place;
  using typename Base::Place, typename Base::Step, typename Base::Sums;

  // --- What is not finite ---

  // Adds to the group's rows of d_v what is not finite in d_o, of steps that not all keys of the tile meet.
  __device__ __noinline__ static void add_outputs(const SoftmaxAttentionBackwardArgs& args, Place place, int first_row,
                                                  int warp) {
    const int end = min(place.first + first_row + 64, static_cast<int>(args.inputs.k.length));
    for (int key = place.first + first_row + warp; key < end; key += 4) {
      const Range queries = queries_of(args.inputs, place.batch, key);
      Step step = first_step(args, place);
      for (int left = place.steps; left > 0; --left, advance(step, place)) {
        if (place.whole_tiles.contains(step.tile)) continue;
        const int column = step.tile * kQueries;
        for (int query = max(column, queries.begin); query < min(column + kQueries, queries.end); ++query) {
          add_what_is_not_finite(head<T>(args.d_v.view, place.batch, key, place.head),
                                 head<const T>(args.d_o, place.batch, query, step.head), DIM, 1.0f);
        }
      }
    }
  }

  // Puts 0 in place of what is not finite in keys, by all groups, after all have computed their scores.
  __device__ __forceinline__ void drop_keys() const {
    const int thread = static_cast<int>(threadIdx.x);
    if (thread < kKeys) shared.dropped[thread] = false;
    barrier_sync(1, 128 * kGroups);
    find_not_finite<128 * kGroups, true>(shared.k, thread, [&](int row) { shared.dropped[row] = true; });
    fence_async_proxy();
    barrier_sync(1, 128 * kGroups);
  }

  // --- Products ---

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
  // From transposed scores to P^T. In a tile whose keys were dropped those of such a key are -infinity, or lse is NaN.
  __device__ __forceinline__ void probabilities(FragmentC (&p)[kQueries / 8], int stage, int count, bool dropped,
                                                int own) const {
    const float scale = static_cast<float>(launch.args.inputs.scale);
    float factor = scale * kLog2E;
    if (shared.large[stage] == count) {
      for_each_column(p, shared.lse[stage],
                      [&](float& score, float lse) { score = (rounded_product(score, scale) - lse) * kLog2E; });
      factor = 1.0f;
    }
    for_each_column(p, shared.exponents[stage],
                    [&](float& score, float exponent) { score = fast_exp2(fmaf(score, factor, -exponent)); });
    if (dropped) {
      const float nan = infinity<float>() * 0.0f;
      const bool rows[2] = {shared.dropped[own], shared.dropped[own + 8]};
      int e = 0;
      for_each_column(p, shared.lse[stage], [&](float& value, float lse) {
        if (rows[e++ % 4 / 2]) value = fabsf(lse) < infinity<float>() ? 0.0f : nan;
      });
    }
  }
  // Writes (=) the warp's rows of dS^T. DROPPED: what enters d_q of a query that sees a key that was dropped is NaN.
  template <bool DROPPED>
  __device__ __forceinline__ void put(const FragmentA (&d_s)[kQueries / 16], int buffer, int column,
                                      int first_row) const {
    const int lane = static_cast<int>(threadIdx.x) % 32, own = first_row + lane / 4;
#pragma unroll
    for (int d = 0; d < kQueries / 16; ++d) {
      FragmentA a = d_s[d];
#pragma unroll
      for (int w = 0; DROPPED && w < 4; ++w) {
        const int row = own + w % 2 * 8, query = column + d * 16 + w / 2 * 8 + lane % 4 * 2;
        if (!shared.dropped[row]) continue;
        if (shared.queries.of(row).contains(query)) a.words[w] |= 0x7fffu;  // NaN in both types
        if (shared.queries.of(row).contains(query + 1)) a.words[w] |= 0x7fff0000u;
      }
      store_matrices(shared_address(shared.d_s[buffer].unit(first_row + lane % 16, d * 16 + lane / 16 * 8)), a.words);
    }
  }
  // Starts the group's part of d_q (=) dS k.
  __device__ __forceinline__ void start_queries(FragmentC (&d_q)[8], int buffer, int group) const {
    const auto& d_s = shared.d_s[buffer];
    constexpr Stored kDepth = Stored::by_depth;
    wgmma_fence();
    wgmma<T, kDepth, kDepth>(d_q, d_s.by_depth(0, Sums::first_query(group)),
                             shared.k.by_depth(0, Sums::first_feature(group)));
#pragma unroll
    for (int d = 16; d < kKeys; d += 16) {
      wgmma<T, kDepth, kDepth>(d_q, d_s.by_depth(d, Sums::first_query(group)),
                               shared.k.by_depth(d, Sums::first_feature(group)), true);
    }
    wgmma_commit();
  }
  // Waits for the queries of a step, and looked through where that is needed.
  __device__ __forceinline__ void wait_for_queries(const Place& place, Step step, const Ring<kStages>& ring) const {
    shared.full[ring.stage].wait(ring.parity);
    if (!place.whole_tiles.contains(step.tile)) shared.checked[ring.stage].wait(ring.parity);
  }
  // From scores and dP under way, first those, to P^T and dS^T, of which the latter also goes to shared memory.
  __device__ __forceinline__ void make_weights(FragmentA (&weights)[kQueries / 16], FragmentA (&d_s)[kQueries / 16],
                                               FragmentC (&p)[kQueries / 8], FragmentC (&d_p)[kQueries / 8],
                                               const Place& place, Step step, int round, int stage, int count,
                                               bool& dropped, int first_row) const {
    const int column = step.tile * kQueries, own = first_row + static_cast<int>(threadIdx.x) % 32 / 4;
    wgmma_wait<1>();
    hold(p);
    probabilities(p, stage, count, dropped, own);
    wgmma_wait<0>();
    hold(d_p);
    for_each_column(d_p, shared.product[stage], [](float& value, float product) { value -= product; });
    for_each_pair(p, d_p, [](float weight, float& value, int, int) { value *= weight; });
    if (!shared.queries.are_whole(first_row, column, kQueries)) {
      const Range queries[2] = {shared.queries.of(own), shared.queries.of(own + 8)};
      for_each_pair(p, d_p, [&](float& weight, float& value, int half, int col) {
        if (!queries[half].contains(column + col)) weight = value = 0.0f;
      });
    }
    if (!place.whole_tiles.contains(step.tile)) {
      shared.rows_checked.wait(round % 2);
      if (shared.found_in_keys == round + 1 && !dropped) {
        dropped = true;
        drop_keys();
      }
    }
    round_weights<T>(weights, p);
    round_weights<T>(d_s, d_p);
    if (dropped) {
      put<true>(d_s, count % 2, column, first_row);
    } else {
      put<false>(d_s, count % 2, column, first_row);
    }
    fence_async_proxy();
    arrive_warp(shared.d_s_full[count % 2]);
  }
  // Gives the group's part of d_q of a step to the warp that adds it to the sums.
  __device__ __forceinline__ void put_sums(const FragmentC (&d_q)[8], int group, int count) const {
    shared.sums_free.wait(count % 2);
    float4* const to = reinterpret_cast<float4*>(shared.d_q + group * Sums::kGroupNumbers) + threadIdx.x % 128;
#pragma unroll
    for (int n = 0; n < 8; ++n) {
      to[n * 128] = make_float4(d_q[n].values[0], d_q[n].values[1], d_q[n].values[2], d_q[n].values[3]);
    }
    fence_async_proxy();
    arrive_warp(shared.sums_full);
  }
  // Starts the sums of the group's keys, and then its part of d_q (=) dS k.
  __device__ __forceinline__ void start_sums(FragmentC (&d_k)[DIM / 8], FragmentC (&d_v)[DIM / 8], FragmentC (&d_q)[8],
                                             const FragmentA (&weights)[kQueries / 16],
                                             const FragmentA (&d_s)[kQueries / 16], int stage, int count,
                                             int group) const {
    const int buffer = count % 2;
    hold(d_k);
    hold(d_v);
    wgmma_fence();
    start_sum<T, DIM / 8, kQueries / 16>(d_v, weights, shared.d_o[stage]);
    start_sum<T, DIM / 8, kQueries / 16>(d_k, d_s, shared.q[stage]);
    shared.d_s_full[buffer].wait((count - 1) / 2 % 2);
    start_queries(d_q, buffer, group);
  }

  __device__ __forceinline__ void compute(int group) const {
    const int warp = static_cast<int>(threadIdx.x) % 128 / 32, lane = static_cast<int>(threadIdx.x) % 32;
    const int first_row = group * 64 + warp * 16;
    const bool adds = static_cast<bool>(launch.args.d_q);
    Ring<kStages> ring;
    int count = 0;  // steps of all tiles
    for (int round = 0;; ++round) {
      const Place& place = wait_for_place(round);
      if (place.index < 0) break;
      fill_ranges(shared.queries, first_row, [&](int row) {
        const int key = place.first + row;
        const bool exists = key < static_cast<int>(launch.args.inputs.k.length);  // else no query sees it
        return exists ? queries_of(launch.args.inputs, place.batch, key) : Range{INT32_MAX, 0};
      });
      shared.rows_full.wait(round % 2);

      FragmentC d_k[DIM / 8], d_v[DIM / 8], d_q[8];
      bool found = false, dropped = false;
      int left = place.steps;
      if (left > 0) {
        FragmentA weights[kQueries / 16], d_s[kQueries / 16];
        Step step = first_step(launch.args, place);
        {
          FragmentC p[kQueries / 8], d_p[kQueries / 8];
          wait_for_queries(place, step, ring);
          wgmma_fence();
          start_scores(p, shared.k, group * 64, shared.q[ring.stage]);
          start_scores(d_p, shared.v, group * 64, shared.d_o[ring.stage]);
          make_weights(weights, d_s, p, d_p, place, step, round, ring.stage, ++count, dropped, first_row);
        }
#pragma unroll 1
        while (--left > 0) {
          start_sums(d_k, d_v, d_q, weights, d_s, ring.stage, count, group);
          found = found || shared.found[ring.stage] == count;
          wgmma_wait<1>();
          hold(d_k);
          hold(d_v);
          arrive_warp(shared.free[ring.stage]);
          ring.advance();
          advance(step, place);
          FragmentC p[kQueries / 8], d_p[kQueries / 8];
          wait_for_queries(place, step, ring);
          wgmma_fence();
          start_scores(p, shared.k, group * 64, shared.q[ring.stage]);
          wgmma_wait<1>();
          hold(d_q);
          if (adds) put_sums(d_q, group, count);
          wgmma_fence();
          start_scores(d_p, shared.v, group * 64, shared.d_o[ring.stage]);
          make_weights(weights, d_s, p, d_p, place, step, round, ring.stage, ++count, dropped, first_row);
        }
        start_sums(d_k, d_v, d_q, weights, d_s, ring.stage, count, group);
        found = found || shared.found[ring.stage] == count;
        wgmma_wait<0>();
        hold(d_k);
        hold(d_v);
        hold(d_q);
        arrive_warp(shared.free[ring.stage]);
        ring.advance();
        if (adds) put_sums(d_q, group, count);
      }
      arrive_warp(shared.rows_free);
      const float scale = static_cast<float>(launch.args.inputs.scale);
      for_each_value(d_k, [&](float& value, int, int) { value *= scale; });
      store(launch.args.d_k, d_k, place, first_row + lane / 4);
      store(launch.args.d_v, d_v, place, first_row + lane / 4);
      if (found) {
        barrier_sync(2 + group, 128);
        add_outputs(launch.args, place, group * 64, warp);
      }
      arrive_warp(shared.place_free[round % 2]);
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

}  // namespace heddle::kernels::cuda::softmax
