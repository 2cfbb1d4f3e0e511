// Softmax attention on the tensor cores of sm_90a, backward: the walk over tiles of keys, and the warps that do not
// multiply (softmax_attention_hopper_backward.h). One copies by TMA, one lse and D, one looks for what is not finite,
// and one adds to the sums of d_q in their order.
#pragma once

#include <cstdint>

#include "kernels/attention/cuda/softmax_attention.h"
#include "kernels/attention/cuda/softmax_attention_hopper.h"

namespace heddle::kernels::cuda::softmax {

struct HopperBackwardLaunch {
  CUtensorMap q, k, v, d_o;
  SoftmaxAttentionBackwardArgs args;
  TileOrder order;  // of the keys
  int* progress;    // of each tile of keys, 0 at the start
};

// The part of the sums of d_q that one group computes, 64 queries by 64 features. The number `values[e]` of fragment n
// of thread t is at (n * 128 + t) * 4 + e, so that warps access 512 bytes at a time.
template <int DIM>
struct QuerySums {
  static constexpr int kQueries = DIM == 64 ? 128 : 64;  // of a tile
  static constexpr int kGroupNumbers = 64 * 64, kNumbers = kQueries * DIM;

  __device__ __forceinline__ static int first_query(int group) { return DIM == 64 ? group * 64 : 0; }
  __device__ __forceinline__ static int first_feature(int group) { return DIM == 64 ? 0 : group * 64; }
  // The sums of one tile; `head` counts over the batch, too.
  __device__ __forceinline__ static float* tile(const SoftmaxAttentionBackwardArgs& args, int64_t head, int tile) {
    const int64_t tiles = blocks_of(static_cast<int>(args.inputs.q.length), kQueries);
    return static_cast<float*>(args.query_sums.data) + (head * tiles + tile) * kNumbers;
  }
};

template <class T, int DIM>
struct HopperKeys {
  using Sums = QuerySums<DIM>;
  static constexpr int kGroups = 2, kThreads = 128 * (kGroups + 1), kGroupRegisters = 240, kOtherRegisters = 24;
  static constexpr int kKeys = 64 * kGroups, kQueries = Sums::kQueries, kStages = 2;

  // One tile of keys. Tiles of queries: from first_tile to end_tile, those that all its keys meet, and from new_tile on
  // those that have no sums before it.
  struct Place {
    int index;               // in the order of progress, -1 after the last tile
    int batch, head, first;  // the head of k; the first key
    int first_tile, end_tile, new_tile;
    Range whole_tiles;
    int steps;  // of all heads of q that use the head
  };
  struct Step {
    int tile, head;  // of queries; the head of q
  };

  struct Shared {
    SwizzledMatrix<T, kKeys, DIM> k, v;
    SwizzledMatrix<T, kQueries, DIM> q[kStages], d_o[kStages];
    SwizzledMatrix<T, kKeys, kQueries> d_s[2];  // transposed
    alignas(128) float d_q[Sums::kNumbers];
    // lse and D of the queries; exponents: lse by log 2, or 0 where an lse of the step is large.
    float exponents[kStages][kQueries], lse[kStages][kQueries], product[kStages][kQueries];
    RowRanges<kKeys> queries;  // that see a key
    bool dropped[kKeys];       // whether the key had what is not finite
    // Full: copied. Free: read by all groups. Checked: looked through. `rows`: k and v.
    SharedBarrier rows_full, rows_free, rows_checked, full[kStages], free[kStages], checked[kStages];
    SharedBarrier place_full[2], place_free[2], d_s_full[2], sums_full, sums_free;
    Place places[2];                     // by parity of the round
    int found_in_keys;                   // the round + 1 of a tile in which it was found
    int found[kStages], large[kStages];  // the number of the step + 1 where that was so; steps count over all tiles
  };

  const HopperBackwardLaunch& launch;
  Shared& shared;

  __device__ __forceinline__ static int group_size(const SoftmaxAttentionInputs& inputs) {
    return static_cast<int>(inputs.q.heads) / static_cast<int>(inputs.k.heads);
  }
  // The queries that the keys of a tile see; rows after the last key do as the last one does.
  __device__ __forceinline__ TileColumns columns_of(int batch, int first) const {
    const int last = static_cast<int>(launch.args.inputs.k.length) - 1;
    return columns_between(queries_of(launch.args.inputs, batch, min(first, last)),
                           queries_of(launch.args.inputs, batch, min(first + kKeys - 1, last)));
  }
  __device__ __forceinline__ static int end_tile_of(Range queries) {
    return queries.begin < queries.end ? blocks_of(queries.end, kQueries) : 0;
  }
  __device__ __forceinline__ Place place_of(int index) const {
    const TileOrder::Tile tile = launch.order.at(index);
    const int heads = static_cast<int>(launch.args.inputs.k.heads);
    Place place{};
    place.index = tile.head * launch.order.row_tiles + tile.row_tile;
    place.batch = tile.head / heads;
    place.head = tile.head % heads;
    place.first = tile.row_tile * kKeys;
    const TileColumns columns = columns_of(place.batch, place.first);
    place.end_tile = end_tile_of(columns.all);
    place.first_tile = min(columns.all.begin / kQueries, place.end_tile);
    place.steps = (place.end_tile - place.first_tile) * group_size(launch.args.inputs);
    place.whole_tiles = {blocks_of(columns.whole.begin, kQueries), columns.whole.end / kQueries};
    if (tile.row_tile > 0) place.new_tile = end_tile_of(columns_of(place.batch, place.first - kKeys).all);
    return place;
  }
  __device__ __forceinline__ static Step first_step(const SoftmaxAttentionBackwardArgs& args, const Place& place) {
    return {place.end_tile - 1, place.head * group_size(args.inputs)};
  }
  // From the last queries to the first, one head of q after the other.
  __device__ __forceinline__ static void advance(Step& step, const Place& place) {
    if (--step.tile < place.first_tile) step = {place.end_tile - 1, step.head + 1};
  }

  __device__ __forceinline__ void init() const {
    if (threadIdx.x == 0) {
      shared.rows_full.init(1);
      shared.rows_free.init(4 * kGroups + 1);
      shared.rows_checked.init(1);
      shared.sums_full.init(4 * kGroups);
      shared.sums_free.init(1);
      for (int i = 0; i < 2; ++i) {
        shared.place_full[i].init(1);
        shared.place_free[i].init(4 * kGroups + 3);
        shared.d_s_full[i].init(4 * kGroups);
      }
      for (int s = 0; s < kStages; ++s) {
        shared.full[s].init(2);
        shared.free[s].init(4 * kGroups + 1);
        shared.checked[s].init(1);
        shared.found[s] = shared.large[s] = 0;
      }
      shared.found_in_keys = 0;
      SharedBarrier::fence_init();
    }
    grid_dependency_wait();
    __syncthreads();
  }

  // Waits for the tile of a round.
  __device__ __forceinline__ const Place& wait_for_place(int round) const {
    shared.place_full[round % 2].wait(round / 2 % 2);
    return shared.places[round % 2];
  }
  // Calls begin(place, round), and then visit(place, step, ring) for all steps, for each of the block's tiles, by all
  // threads of a warp.
  template <class Begin, class Visit>
  __device__ __forceinline__ void for_steps(const Begin& begin, const Visit& visit) const {
    Ring<kStages> ring;
    for (int round = 0;; ++round) {
      const Place& place = wait_for_place(round);
      if (place.index < 0) break;
      begin(place, round);
      Step step = first_step(launch.args, place);
      for (int left = place.steps; left > 0; --left, ring.advance(), advance(step, place)) visit(place, step, ring);
      arrive_warp(shared.place_free[round % 2]);
    }
  }

  // --- Copies, by one thread; those of k and v wait for the tile before, and those of the first queries do not ---

  __device__ __forceinline__ void copy() const {
    Ring<kStages> ring;
    for (int round = 0;; ++round) {
      const int index = launch.order.take_in_order();
      const bool exists = index < launch.order.count();
      Place place{-1};
      if (exists) place = place_of(index);
      shared.place_free[round % 2].wait(round / 2 % 2 ^ 1);
      shared.places[round % 2] = place;
      shared.place_full[round % 2].arrive();
      if (!exists) break;
      Step step = first_step(launch.args, place);
      for (int i = 0; i < place.steps || i < 1; ++i) {
        if (place.steps > 0) {
          copy_queries(place, step, ring);
          ring.advance();
          advance(step, place);
        }
        if (i == 0) copy_keys(place, round);
      }
    }
  }
  __device__ __forceinline__ void copy_keys(const Place& place, int round) const {
    shared.rows_free.wait(round % 2 ^ 1);
    shared.rows_full.arrive_and_expect(shared.k.kBytes + shared.v.kBytes);
    copy_tile(shared.k, launch.k, shared.rows_full, place.batch, place.head, place.first);
    copy_tile(shared.v, launch.v, shared.rows_full, place.batch, place.head, place.first);
  }
  __device__ __forceinline__ void copy_queries(const Place& place, Step step, const Ring<kStages>& ring) const {
    SharedBarrier& full = shared.full[ring.stage];
    shared.free[ring.stage].wait(ring.parity ^ 1u);
    full.arrive_and_expect(shared.q[0].kBytes + shared.d_o[0].kBytes);
    copy_tile(shared.q[ring.stage], launch.q, full, place.batch, step.head, step.tile * kQueries);
    copy_tile(shared.d_o[ring.stage], launch.d_o, full, place.batch, step.head, step.tile * kQueries);
  }

  // --- lse and D, by one warp ---

  __device__ __forceinline__ void copy_numbers() const {
    const SoftmaxAttentionBackwardArgs& args = launch.args;
    const int lane = static_cast<int>(threadIdx.x) % 32;
    int count = 0;
    for_steps([](const Place&, int) {},
              [&](const Place& place, Step step, const Ring<kStages>& ring) {
                ++count;
                const int left = static_cast<int>(args.inputs.q.length) - step.tile * kQueries;
                const int64_t index = row_index(args.inputs.q, place.batch, step.head, step.tile * kQueries);
                float lse[kQueries / 32], product[kQueries / 32];
                bool large = false;
#pragma unroll
                for (int i = 0; i < kQueries / 32; ++i) {
                  const int query = i * 32 + lane;
                  lse[i] = query < left ? vector<const float>(args.lse)[index + query] : 0.0f;
                  product[i] = query < left ? vector<const float>(args.row_products)[index + query] : 0.0f;
                  large = large || is_large(lse[i]);
                }
                large = __any_sync(0xffffffffu, large);
                shared.free[ring.stage].wait(ring.parity ^ 1u);
#pragma unroll
                for (int i = 0; i < kQueries / 32; ++i) {
                  shared.exponents[ring.stage][i * 32 + lane] = large ? 0.0f : lse[i] * kLog2E;
                  shared.lse[ring.stage][i * 32 + lane] = lse[i];
                  shared.product[ring.stage][i * 32 + lane] = product[i];
                }
                if (large) shared.large[ring.stage] = count;
                arrive_warp(shared.full[ring.stage]);
              });
  }

  // --- What is not finite, by one warp ---

  __device__ __forceinline__ void check() const {
    const int lane = static_cast<int>(threadIdx.x) % 32;
    int count = 0;
    const auto check_keys = [&](const Place&, int round) {
      shared.rows_full.wait(round % 2);
      find_not_finite<32, false>(shared.k, lane, [&](int) { shared.found_in_keys = round + 1; });
      arrive_warp(shared.rows_checked);
      arrive_warp(shared.rows_free);
    };
    for_steps(check_keys, [&](const Place& place, Step step, const Ring<kStages>& ring) {
      ++count;
      shared.full[ring.stage].wait(ring.parity);  // also where nothing is looked for, to stay in step
      if (!place.whole_tiles.contains(step.tile)) {
        bool dropped = false;
        find_not_finite<32, true>(shared.q[ring.stage], lane, [&](int) { dropped = true; });
        find_not_finite<32, true>(shared.d_o[ring.stage], lane, [&](int) {
          dropped = true;
          shared.found[ring.stage] = count;
        });
        if (dropped) fence_async_proxy();
      }
      arrive_warp(shared.checked[ring.stage]);
      arrive_warp(shared.free[ring.stage]);
    });
  }

  // --- Sums of d_q, by one thread ---

  // The progress of a tile of keys is how many tiles of queries, of all heads of q that use the head, it will not add
  // to any more.
  __device__ __forceinline__ void add_sums() const {
    const SoftmaxAttentionInputs& inputs = launch.args.inputs;
    const int tiles = blocks_of(static_cast<int>(inputs.q.length), kQueries);
    unsigned parity = 0;
    for (int round = 0;; ++round) {
      const Place& place = wait_for_place(round);
      if (place.index < 0) break;
      int* const progress = launch.progress + place.index;
      Step step = first_step(launch.args, place);
      int before = 0;  // the progress of the tile of keys before this one, as last seen
      for (int left = launch.args.d_q ? place.steps : 0; left > 0; --left, advance(step, place), parity ^= 1u) {
        const int own = (step.head - place.head * group_size(inputs) + 1) * tiles - step.tile;
        float* const to = Sums::tile(launch.args, place.batch * inputs.q.heads + step.head, step.tile);
        shared.sums_full.wait(parity);
        if (step.tile >= place.new_tile) {
          copy_to_memory(to, shared.d_q, sizeof(shared.d_q));
        } else {
          while (before < own) before = load_acquire(progress - 1);
          fence_async_memory();
          add_to_memory(to, shared.d_q, sizeof(shared.d_q));
        }
        wait_for_reads();
        shared.sums_free.arrive();
        wait_for_writes();
        if (left > 1) store_release(progress, own);
      }
      store_release(progress, tiles * group_size(inputs));
      shared.place_free[round % 2].arrive();
    }
  }

  // What the third warpgroup does.
  __device__ __forceinline__ void assist(int warp) const {
    if (warp == 0) {
      if (threadIdx.x % 32 == 0) copy();
    } else if (warp == 1) {
      copy_numbers();
    } else if (warp == 2) {
      check();
    } else if (threadIdx.x % 32 == 0) {
      add_sums();
    }
  }
};

}  // namespace heddle::kernels::cuda::softmax
