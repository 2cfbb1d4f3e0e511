// The kernel of the norm backward for units that fit a team.                             docs/layers.md#normalization
// Bytes: every input, and every destination that is added to, is read once; every destination is written once. Where
// there are sums over rows the grid stays while rows go by; the sums stay in registers and leave as one row of
// `partials` a block.
#pragma once

#include "kernels/common/cuda/async.h"
#include "kernels/norm/cuda/norm_plan.h"
#include "kernels/norm/cuda/norm_streams.h"
#include "kernels/norm/cuda/norm_sums.h"

namespace heddle::kernels::cuda {

// What the sums over a unit leave for its elements: d = p - mean as it was rounded, whose own mean is `shift`.
//   xhat = (d - shift) inv_std
//   d_p = inv_std * (g - xhat * mean(g xhat) - (mean(g) if centred)) = of_g g - (of_d d + less)     g with the scale
template <class A>
struct UnitFactors {
  A inv_std, less_xhat, of_g, of_d, less;

  // sums: of g d, of g, of d, the first two without the scale.
  __device__ __forceinline__ UnitFactors(const A (&sums)[3], A inv_std, bool center, const NormNumbers<A>& numbers)
      : inv_std(inv_std), of_g(inv_std * numbers.scale) {
    const A shift = center ? sums[2] * numbers.per_extent : A(0);
    if (center && numbers.extent == 1) of_g = A(0);  // a constant has no gradient
    const A dot = (sums[0] - shift * sums[1]) * inv_std * numbers.per_extent;
    less_xhat = shift * inv_std;
    of_d = of_g * dot * inv_std;
    less = (center ? of_g * (sums[1] * numbers.per_extent) : A(0)) - of_d * shift;
  }
  __device__ __forceinline__ A xhat(A d) const { return d * inv_std - less_xhat; }
  __device__ __forceinline__ A d_p(A g, A d) const { return of_g * g - (of_d * d + less); }  // g without the scale
};

// Waits until the oldest of `stages` groups of copies has arrived.
__device__ __forceinline__ void wait_for_oldest(int stages) {
  static_assert(kMostStages == 3);
  if (stages == 2) {
    __pipeline_wait_prior(1);
  } else if (stages == 1) {
    __pipeline_wait_prior(0);
  } else {
    __pipeline_wait_prior(2);
  }
}

// Calls work(center, weighted) with the flags as types.
template <class Work>
__device__ __forceinline__ void with_flags(const Work& work, bool center, bool weighted) {
  if (center) {
    if (weighted) {
      work(std::true_type{}, std::true_type{});
    } else {
      work(std::true_type{}, std::false_type{});
    }
  } else {
    if (weighted) {
      work(std::false_type{}, std::true_type{});
    } else {
      work(std::false_type{}, std::false_type{});
    }
  }
}

template <class T, int TEAM, int VECTORS, Sums SUMS, Gate GATE, Center CENTER>
__global__ void __launch_bounds__(block_teams(TEAM, VECTORS, SUMS, GATE) * TEAM,
                                  backward_blocks(TEAM, VECTORS, SUMS, GATE))
    norm_backward_rows(const __grid_constant__ NormBackwardArgs args, const __grid_constant__ NormStreams streams,
                       const __grid_constant__ NormNumbers<accumulate_t<T>> numbers,
                       const __grid_constant__ RowsPlan plan) {
  using A = accumulate_t<T>;
  constexpr int WIDTH = vector_width<T>;
  constexpr bool kWeight = SUMS != Sums::none;
  constexpr int kSums = static_cast<int>(SUMS);
  constexpr bool kKeeps = keeps_elements(TEAM, VECTORS, SUMS, GATE);
  // At least what is costly of a gate's activation, where registers allow it.
  constexpr bool kKeepsCore = !kKeeps && GATE != Gate::none && SUMS != Sums::weight_and_bias && TEAM < 512;
  // One branch for the activation around all rows, where it is measured to be faster: jumps in each row cost 1 to 2 %.
  constexpr bool kKnowsAct = GATE == Gate::post && kKeeps && TEAM == 256;
  constexpr bool kIsAlone = is_alone(TEAM, VECTORS, SUMS, GATE, CENTER);
  constexpr bool kKeepsD = kIsAlone && VECTORS < 4;
  constexpr int kTeams = block_teams(TEAM, VECTORS, SUMS, GATE);
  // In shared memory: from one vector of a thread to its next, and what one stream of a stage takes.
  constexpr int kVectorBytes = TEAM * 16, kStreamBytes = kTeams * VECTORS * kVectorBytes;
  extern __shared__ uint4 staged[];
  __shared__ TeamSums<A, TEAM, kTeams, 3> shared;
  // Mean and inv_std of a unit, for each warp that works on it.
  constexpr int kReaders = TEAM < 32 ? TEAM : 32;
  __shared__ A statistics[kMostStages][kTeams * TEAM / kReaders][2];
  const int team = team_of_thread<TEAM, kTeams>();
  const int lane = threadIdx.x % TEAM;
  const int groups = static_cast<int>(numbers.groups);
  const int extent = static_cast<int>(numbers.extent);
  // With sums over rows a block stays with one group (its y index).
  const int begin = static_cast<int>(blockIdx.x) * plan.each;
  const int end = min(plan.count, begin + plan.span);
  int step = plan.step, stages = plan.stages;
  constexpr bool kHolds = kKeeps && GATE == Gate::none;  // in registers, which a gate does not leave: 3 % faster
  if constexpr (kHolds) {
    hide_from_compiler(step);
    hide_from_compiler(stages);
  }
  int ahead = stages * step;  // from a unit to the next in its place
  if constexpr (kHolds) hide_from_compiler(ahead);
  int turn = 0;
  if constexpr (kWeight) grid_dependency_trigger();

  const int own_extent = extent - lane * WIDTH;
  const auto has = [&](int v) { return v * TEAM * WIDTH < own_extent; };
  const auto row_of = [&](int index) { return kWeight || groups == 1 ? index : index / groups; };
  // Of the thread's first vector; the others follow at TEAM * WIDTH.
  const auto column_of = [&](int index) {
    const int group = kWeight ? static_cast<int>(blockIdx.y) : (groups == 1 ? 0 : index % groups);
    return group * extent + lane * WIDTH;
  };
  // The thread's part of a stream in a stage.
  const uint32_t stage_bytes = streams.count * kStreamBytes;
  const uint32_t weight_place = shared_address(staged) + lane * 16;
  uint32_t own_place = weight_place + static_cast<uint32_t>(weight_bytes<T>(TEAM, VECTORS, SUMS, GATE, extent)) +
                       team * VECTORS * kVectorBytes;
  constexpr bool kHoldsPlace = GATE == Gate::none;  // in a register, which a gate does not leave
  if constexpr (kHoldsPlace) hide_from_compiler(own_place);
  const bool center = CENTER == Center::ask ? args.options.center : CENTER == Center::yes;
  // Statistics are copied ahead with the unit where that is faster, by 3 to 4 %; else read late in its turn.
  const bool copies_statistics = center || (kKeeps && streams.count == 2);
  const auto unit_of = [&](int index) { return kWeight ? index * groups + static_cast<int>(blockIdx.y) : index; };
  const auto fetch_stream = [&](int stream, int index, uint32_t to) {
    const auto* from =
        reinterpret_cast<const T*>(streams.inputs[stream].at(row_of(index), column_of(index) * sizeof(T)));
    hide_from_compiler(from);  // the vectors are then at fixed distances from it
#pragma unroll
    for (int v = 0; v < VECTORS; ++v) {
      if (has(v)) copy_async(to + stream * kStreamBytes + v * kVectorBytes, from + v * TEAM * WIDTH, plan.read);
    }
  };
  const auto stage_place = [&](int stage) {
    uint32_t to = own_place + stage * stage_bytes;
    hide_from_compiler(
        to);  // a register of the thread: with one of the warp added, ptxas 13.0 makes copies that are illegal
    return to;
  };
  // What the first pass over a unit reads, and the rest.
  const auto fetch_early = [&](int index, int stage) {
    if (index >= end) return;
    if (copies_statistics && threadIdx.x % kReaders == 0) {
      const uint32_t to = shared_address(statistics[stage][threadIdx.x / kReaders]);
      if (center) copy_async_float(to, vector<const A>(args.mean) + unit_of(index));
      copy_async_float(to + sizeof(A), vector<const A>(args.inv_std) + unit_of(index));
    }
    const uint32_t to = stage_place(stage);
    fetch_stream(0, index, to);  // x and d_y
    fetch_stream(1, index, to);
    if (streams.late > 2) fetch_stream(2, index, to);
    if (streams.late > 3) fetch_stream(3, index, to);
  };
  const auto fetch_late = [&](int index, int stage) {
    if (index < end) {
      const uint32_t to = stage_place(stage);
#pragma unroll 1
      for (int stream = streams.late; stream < streams.count; ++stream) fetch_stream(stream, index, to);
    }
    __pipeline_commit();
  };

  // Asked for before the first rows, and awaited after they are.
  [[maybe_unused]] Vec<T, WIDTH> own_weight[VECTORS];
  if constexpr (kWeight) {
    const T one = narrow<T>(A(1));  // where there is no weight
    const T* from = vector<const T>(args.weight) + int64_t{blockIdx.y} * extent;
    if constexpr (kKeeps) {
#pragma unroll
      for (int v = 0; v < VECTORS; ++v) {
        own_weight[v] = load_if<WIDTH>(args.weight && has(v), from + (lane + v * TEAM) * WIDTH, one);
      }
    } else {
      auto* to = reinterpret_cast<T*>(staged);
      Vec<T, WIDTH> ones;
#pragma unroll
      for (int i = 0; i < WIDTH; ++i) ones[i] = one;
      for (int at = threadIdx.x * WIDTH; at < extent; at += kTeams * TEAM * WIDTH) {
        if (args.weight) {
          copy_async(shared_address(to + at), from + at);
        } else {
          store(to + at, ones);
        }
      }
    }
  }
  int index = begin + team;
  for (int stage = 0; stage < stages; ++stage) {
    fetch_early(index + stage * step, stage);
    fetch_late(index + stage * step, stage);
  }
  constexpr bool kIsWidened = kKeeps && GATE == Gate::none && VECTORS == 1;  // the weight; else it has fewer registers
  [[maybe_unused]] Vec<std::conditional_t<kIsWidened, A, T>, WIDTH> kept_weight[VECTORS];
  if constexpr (kKeeps) {
#pragma unroll
    for (int v = 0; v < VECTORS; ++v) {
      if constexpr (kIsWidened) {
        kept_weight[v] = widen_all(own_weight[v]);
      } else {
        kept_weight[v] = own_weight[v];
      }
    }
  }

  // For d_weight, for d_bias.
  A row_sums[kWeight ? kSums : 1][VECTORS][WIDTH] = {};
  if constexpr (kWeight && !kKeeps) {  // the weight came with the first rows
    wait_for_oldest(stages);
    __syncthreads();
  }

  // The teams of a block make the same number of turns: those that share a warp exchange by shuffles.
  int stage = 0;
  const bool is_early = kKeeps && plan.is_early;
  with_activation<kKnowsAct>(args.options.gate_act, [&](auto known_act) {
    for (; index - team < end; index += step) {
      const bool active = kTeams == 1 || index < end;
      const int row_index = row_of(index), column = column_of(index);
      A mean = A(0), inv_std = A(0);
      if (!copies_statistics && active) inv_std = vector<const A>(args.inv_std)[unit_of(index)];
      wait_for_oldest(stages);
      if (copies_statistics) {
        __syncwarp();  // what one thread of the warp brought, all may read
        const A* own = statistics[stage][threadIdx.x / kReaders];
        if (center) mean = own[0];
        inv_std = own[1];
        __syncwarp();  // before it is overwritten
      }
      uint32_t x_place = own_place + stage * stage_bytes;
      if constexpr (kHoldsPlace) hide_from_compiler(x_place);
      // Negative: not there.
      const auto place = [&](int stream) { return stream * kStreamBytes; };
      const int residual_place = place(streams.residual), gate_place = place(streams.gate);
      const auto vector_at = [&](int place, int v) { return load_shared<T>(x_place + place + v * kVectorBytes); };
      const auto r_of = [&](int v) {
        Vec<A, WIDTH> r = widen_all(vector_at(0, v));
        if (residual_place < 0) return r;
        const Vec<A, WIDTH> more = widen_all(vector_at(residual_place, v));
#pragma unroll
        for (int i = 0; i < WIDTH; ++i) r[i] += more[i];
        return widen_all(narrow_all<T>(r));
      };
      const auto weight_of = [&](int v) {
        if constexpr (kIsWidened) {
          return kept_weight[v];
        } else if constexpr (kKeeps) {
          hide_from_compiler(kept_weight[v]);
          return widen_all(kept_weight[v]);
        } else if constexpr (kWeight) {
          return widen_all(load_shared<T>(weight_place + v * kVectorBytes));
        } else {
          return load_wide<WIDTH>(vector<const T>(args.weight) + column + v * TEAM * WIDTH);
        }
      };

      // What both passes need of a vector.
      struct Elements {
        Vec<A, WIDTH> d, upstream, g;  // p - mean, d_y (times act, after), that times the weight
        Vec<A, WIDTH> act, d_gate;     // of a gate; d_gate without the factor that is known last
      };
      Elements kept[kKeeps ? VECTORS : 1];
      [[maybe_unused]] A kept_core[kKeepsCore ? VECTORS : 1][WIDTH];      // of the gate's activation
      [[maybe_unused]] Vec<A, WIDTH> kept_d[kKeepsD ? VECTORS : 1] = {};  // of the first pass
      const auto elements_of = [&](int v, auto center, auto has_weight, auto again) {
        Elements e;
        constexpr bool kHasD = kKeepsD && decltype(again)::value;
        if constexpr (kHasD) {
          e.d = kept_d[v];
        } else {
          e.d = r_of(v);
        }
        e.upstream = widen_all(vector_at(kStreamBytes, v));
        if constexpr (GATE != Gate::none) {
          const Vec<A, WIDTH> gate = widen_all(vector_at(gate_place, v));
          const auto gate_elements = [&](auto chosen) {
#pragma unroll
            for (int i = 0; i < WIDTH; ++i) {
              A core;
              if constexpr (kKeepsCore && decltype(again)::value) {
                core = kept_core[v][i];
              } else {
                core = activation_core<decltype(chosen)::value, T>(gate[i]);
                if constexpr (kKeepsCore) kept_core[v][i] = core;
              }
              const auto act = activated<decltype(chosen)::value>(gate[i], core);
              A& gated = (GATE == Gate::pre ? e.d : e.upstream)[i];
              e.act[i] = act.value;
              e.d_gate[i] = act.derivative * gated;
              gated *= act.value;
            }
          };
          if constexpr (kKnowsAct) {
            gate_elements(known_act);
          } else {
            visit_activation(args.options.gate_act, gate_elements);
          }
        }
        [[maybe_unused]] Vec<A, WIDTH> weight;
        if constexpr (decltype(has_weight)::value) weight = weight_of(v);
#pragma unroll
        for (int i = 0; i < WIDTH; ++i) {
          if constexpr (decltype(center)::value && !kHasD) e.d[i] -= mean;
          e.g[i] = e.upstream[i];
          if constexpr (decltype(has_weight)::value) e.g[i] = rounded_product(e.g[i], weight[i]);
        }
        return e;
      };

      // A mean that is small beside the deviation was rounded by too little to matter.
      const bool shifts = !kIsAlone || !(abs(mean) * inv_std <= A(1));
      A sums[3] = {A(0), A(0), A(0)};
      const auto add_up = [&](auto center, auto has_weight) {
#pragma unroll
        for (int v = 0; v < VECTORS; ++v) {
          if constexpr (kKeeps) kept[v] = {};
          if (!active || !has(v)) continue;
          const Elements e = elements_of(v, center, has_weight, std::false_type{});
#pragma unroll
          for (int i = 0; i < WIDTH; ++i) {
            if constexpr (decltype(center)::value) {
              sums[1] += e.g[i];
              if (shifts) sums[2] += e.d[i];
            }
            sums[0] += e.g[i] * e.d[i];
          }
          if constexpr (kKeeps) kept[v] = e;
          if constexpr (kKeepsD) kept_d[v] = e.d;
        }
      };
      const bool weighted = kWeight || args.weight;
      with_flags(add_up, center, weighted);
      const auto fetch_next = [&] {
        if (is_early) fetch_early(index + ahead, stage);
      };
      if (center) {
        team_sum(sums, shared, team, turn, fetch_next);
      } else {
        A sum[1] = {sums[0]};
        team_sum(sum, shared, team, turn, fetch_next);
        sums[0] = sum[0];
      }
      const UnitFactors<A> factors(sums, inv_std, center, numbers);

      const int d_r_place = place(streams.d_r), old_d_x_place = place(streams.old_d_x);
      const int old_d_residual_place = place(streams.old_d_residual), old_d_gate_place = place(streams.old_d_gate);
      const auto row_at = [&](const StridedRows& to) {
        return reinterpret_cast<T*>(to.at(row_index, column * sizeof(T)));
      };
      T *const d_x = row_at(streams.d_x), *const d_residual = row_at(streams.d_residual);
      T* const d_gate_row = GATE != Gate::none ? row_at(streams.d_gate) : nullptr;
      // Vectors that are kept are worked on together, so that what is asked for once waits once; those that are not
      // there too, and not written.
      constexpr int kTogether = kKeeps ? VECTORS : 1;
      const auto write_out = [&](auto center, auto has_weight) {
#pragma unroll
        for (int first = 0; first < VECTORS; first += kTogether) {
          if (!active || !has(first)) continue;
          Vec<A, WIDTH> d_r[kTogether];
          [[maybe_unused]] Vec<A, WIDTH> d_gate[kTogether];
#pragma unroll
          for (int u = 0; u < kTogether; ++u) {
            const int v = first + u;
            Elements e;
            if constexpr (kKeeps) {
              e = kept[v];
            } else {
              e = elements_of(v, center, has_weight, std::true_type{});
            }
            [[maybe_unused]] Vec<A, WIDTH> y, weight;  // before the gate
            if constexpr (GATE == Gate::post && decltype(has_weight)::value) weight = weight_of(v);
#pragma unroll
            for (int i = 0; i < WIDTH; ++i) {
              [[maybe_unused]] const A xhat = factors.xhat(e.d[i]);
              if constexpr (kSums > 0) row_sums[0][v][i] += e.upstream[i] * xhat;
              if constexpr (kSums > 1) row_sums[1][v][i] += e.upstream[i];
              d_r[u][i] = factors.d_p(e.g[i], e.d[i]);
              if constexpr (GATE == Gate::pre) {
                d_gate[u][i] = e.d_gate[i] * d_r[u][i];
                d_r[u][i] *= e.act[i];
              }
              if constexpr (GATE == Gate::post) {
                y[i] = numbers.scale * xhat;
                if constexpr (decltype(has_weight)::value) y[i] *= weight[i];
              }
            }
            if constexpr (GATE == Gate::post) {
              if (args.bias) {
                const auto bias = load_wide<WIDTH>(vector<const T>(args.bias) + column + v * TEAM * WIDTH);
#pragma unroll
                for (int i = 0; i < WIDTH; ++i) y[i] += bias[i];
              }
#pragma unroll
              for (int i = 0; i < WIDTH; ++i) d_gate[u][i] = e.d_gate[i] * y[i];
            }
          }
          const auto add = [&](Vec<A, WIDTH>(&to)[kTogether], int place) {
            if (place < 0) return;
#pragma unroll
            for (int u = 0; u < kTogether; ++u) {
              const Vec<A, WIDTH> more = widen_all(vector_at(place, first + u));
#pragma unroll
              for (int i = 0; i < WIDTH; ++i) to[u][i] += more[i];
            }
          };
          const auto write = [&](T* to, const Vec<A, WIDTH>(&values)[kTogether], int old) {
            Vec<A, WIDTH> sum[kTogether];
#pragma unroll
            for (int u = 0; u < kTogether; ++u) sum[u] = values[u];
            add(sum, old);
#pragma unroll
            for (int u = 0; u < kTogether; ++u) {
              if (has(first + u)) store_stream(to + (first + u) * TEAM * WIDTH, narrow_all<T>(sum[u]), plan.written);
            }
          };
          if constexpr (GATE != Gate::none) {
            if (streams.d_gate.data) write(d_gate_row, d_gate, old_d_gate_place);
          }
          add(d_r, d_r_place);
          if (streams.d_residual.data) write(d_residual, d_r, old_d_residual_place);
          if (streams.d_x.data) write(d_x, d_r, old_d_x_place);
        }
      };
      with_flags(write_out, center, weighted);
      if (!is_early) fetch_early(index + ahead, stage);
      fetch_late(index + ahead, stage);
      stage = stage + 1 == stages ? 0 : stage + 1;
    }
  });

  if constexpr (kWeight) {
    if constexpr (kTeams > 1) {  // they add up in their order
      constexpr int kValues = kSums * VECTORS * WIDTH;
      A* own = &row_sums[0][0][0];
      A* left = reinterpret_cast<A*>(staged) + lane;  // (kTeams - 1, kValues, TEAM)
      __pipeline_wait_prior(0);
      __syncthreads();
      if (team > 0) {
#pragma unroll
        for (int i = 0; i < kValues; ++i) left[((team - 1) * kValues + i) * TEAM] = own[i];
      }
      __syncthreads();
      if (team > 0) return;
      for (int other = 0; other < kTeams - 1; ++other) {
#pragma unroll
        for (int i = 0; i < kValues; ++i) own[i] += left[(other * kValues + i) * TEAM];
      }
    }
    A* partials = row<A>(args.partials, blockIdx.x) + int64_t{blockIdx.y} * extent;
#pragma unroll
    for (int i = 0; i < kSums; ++i) {
      write_sums<TEAM>(partials + i * args.x.cols, row_sums[i], i == 0 ? numbers.scale : A(1), lane, extent);
    }
  }
}

}  // namespace heddle::kernels::cuda
