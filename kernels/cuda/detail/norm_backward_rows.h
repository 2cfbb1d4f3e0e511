// The kernel of the norm backward for units that fit a team.                             docs/layers.md#normalization
// Bytes: every input, and every destination that is added to, is read once; every destination is written once. Where
// there are sums over rows the grid stays while rows go by; the sums stay in registers and leave as one row of
// `partials` a block.
#pragma once

#include "kernels/cuda/detail/async.h"
#include "kernels/cuda/detail/norm.h"
#include "kernels/cuda/detail/norm_streams.h"

namespace heddle::kernels::cuda {

enum class Sums { none, weight, weight_and_bias };  // as many as the number says
enum class Center { no, yes, ask };                 // known when compiling, or asked for at run time

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

// Units that a team has under way at once, at most.
constexpr int kMostStages = 3;

// Threads of a block.
__host__ __device__ constexpr int block_threads(int team) { return team <= 256 ? 256 : team; }

// Blocks that a multiprocessor holds by registers, at least.
__host__ __device__ constexpr int backward_blocks(int team, Sums sums) {
  return sums != Sums::none && team <= 256 ? 2 : 1;
}

// Bytes of shared memory that a block with sums keeps the weight in.
template <class T>
__host__ __device__ constexpr int64_t weight_bytes(Sums sums, int64_t extent) {
  return sums == Sums::none ? 0 : extent * static_cast<int64_t>(sizeof(T));
}

// Waits until the oldest of `stages` groups of copies has arrived.
__device__ __forceinline__ void wait_for_oldest(int stages) {
  static_assert(kMostStages == 3);
  if (stages == 1) {
    __pipeline_wait_prior(0);
  } else if (stages == 2) {
    __pipeline_wait_prior(1);
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
__global__ void __launch_bounds__(block_threads(TEAM), backward_blocks(TEAM, SUMS))
    norm_backward_rows(const __grid_constant__ NormBackwardArgs args, const __grid_constant__ NormStreams streams,
                       const __grid_constant__ NormNumbers<accumulate_t<T>> numbers, int count, int each, int stages) {
  using A = accumulate_t<T>;
  constexpr int WIDTH = vector_width<T>;
  constexpr bool kWeight = SUMS != Sums::none;
  constexpr bool kBias = SUMS == Sums::weight_and_bias;
  constexpr bool kKeepsCore = GATE != Gate::none && SUMS != Sums::weight_and_bias && TEAM < 512;  // else no registers
  constexpr bool kStream = !kWeight || GATE != Gate::none;  // measured: 1 to 2 % faster where it is, slower elsewhere
  constexpr int kTeams = block_threads(TEAM) / TEAM;
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
  // With sums over rows a block takes rows in turns with the others, and stays with one group (its y index); without,
  // it takes the next `each` units as they lie in memory.
  const int begin = static_cast<int>(blockIdx.x) * (kWeight ? kTeams : each);
  const int end = kWeight ? count : min(count, begin + each);
  const int step = kWeight ? static_cast<int>(gridDim.x) * kTeams : kTeams;
  int turn = 0;
  if constexpr (kWeight) let_next_start();

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
  const uint32_t own_place =
      weight_place + static_cast<uint32_t>(weight_bytes<T>(SUMS, extent)) + team * VECTORS * kVectorBytes;
  const bool center = CENTER == Center::ask ? args.options.center : CENTER == Center::yes;
  const auto unit_of = [&](int index) { return kWeight ? index * groups + static_cast<int>(blockIdx.y) : index; };
  const auto fetch = [&](int index, int stage) {
    if (index < end) {
      const int row_index = row_of(index), column = column_of(index);
      if (center && threadIdx.x % kReaders == 0) {
        const uint32_t to = shared_address(statistics[stage][threadIdx.x / kReaders]);
        copy_number_ahead(to, vector<const A>(args.mean) + unit_of(index));
        copy_number_ahead(to + sizeof(A), vector<const A>(args.inv_std) + unit_of(index));
      }
      uint32_t to = own_place + stage * stage_bytes;
#pragma unroll 1
      for (int stream = 0; stream < streams.count; ++stream) {
        const auto* from = reinterpret_cast<const T*>(streams.inputs[stream].at(row_index, column * sizeof(T)));
        forget(from);  // the vectors are then at fixed distances from it
#pragma unroll
        for (int v = 0; v < VECTORS; ++v) {
          if (has(v)) copy_ahead<kStream>(to + v * kVectorBytes, from + v * TEAM * WIDTH);
        }
        to += kStreamBytes;
      }
    }
    __pipeline_commit();
  };

  int index = begin + team;
  for (int stage = 0; stage < stages; ++stage) fetch(index + stage * step, stage);

  A sum_weight[kWeight ? VECTORS : 1][WIDTH];
  A sum_bias[kBias ? VECTORS : 1][WIDTH];
  if constexpr (kWeight) {
#pragma unroll
    for (int v = 0; v < VECTORS; ++v) {
#pragma unroll
      for (int i = 0; i < WIDTH; ++i) {
        sum_weight[v][i] = A(0);
        if constexpr (kBias) sum_bias[v][i] = A(0);
      }
    }
    // The weight, or ones, in shared memory: the teams of the block read it for every row.
    for (int at = threadIdx.x; at * WIDTH < extent; at += kTeams * TEAM) {
      Vec<T, WIDTH> weight;
#pragma unroll
      for (int i = 0; i < WIDTH; ++i) weight[i] = narrow<T>(A(1));
      if (args.weight) weight = load<WIDTH>(vector<const T>(args.weight) + int64_t{blockIdx.y} * extent + at * WIDTH);
      *reinterpret_cast<Vec<T, WIDTH>*>(staged + at) = weight;
    }
    __syncthreads();
  }

  // The teams of a block make the same number of turns: those that share a warp exchange by shuffles.
  int stage = 0;
  for (; index - team < end; index += step) {
    const bool active = kTeams == 1 || index < end;
    const int row_index = row_of(index), column = column_of(index);
    // Without a mean the statistics are needed late enough for a plain load: copied ahead they made large tensors 3 %
    // slower and small ones 4 % faster.
    A mean = A(0), inv_std = A(0);
    if (!center && active) inv_std = vector<const A>(args.inv_std)[unit_of(index)];
    wait_for_oldest(stages);
    if (center) {
      __syncwarp();  // what one thread of the warp brought, all may read
      const A* own = statistics[stage][threadIdx.x / kReaders];
      mean = own[0];
      inv_std = own[1];
      __syncwarp();  // before it is overwritten
    }
    const uint32_t x_place = own_place + stage * stage_bytes;
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
      if constexpr (kWeight) {
        return widen_all(load_shared<T>(weight_place + v * kVectorBytes));
      } else {
        return load_wide<WIDTH>(vector<const T>(args.weight) + column + v * TEAM * WIDTH);
      }
    };

    A sums[3] = {A(0), A(0), A(0)};
    A kept_core[kKeepsCore ? VECTORS : 1][WIDTH];  // of the gate's activation
    const auto add_up = [&](auto center, auto has_weight) {
#pragma unroll
      for (int v = 0; v < VECTORS; ++v) {
        if (!active || !has(v)) continue;
        Vec<A, WIDTH> p = r_of(v), g = widen_all(vector_at(kStreamBytes, v));
        if constexpr (GATE != Gate::none) {
          const Vec<A, WIDTH> gate = widen_all(vector_at(gate_place, v));
          visit_activation(args.options.gate_act, [&](auto act) {
#pragma unroll
            for (int i = 0; i < WIDTH; ++i) {
              const A core = activation_core<decltype(act)::value, T>(gate[i]);
              if constexpr (kKeepsCore) kept_core[v][i] = core;
              (GATE == Gate::pre ? p : g)[i] *= activated<decltype(act)::value>(gate[i], core).value;
            }
          });
        }
        if constexpr (decltype(has_weight)::value) {
          const Vec<A, WIDTH> weight = weight_of(v);
#pragma unroll
          for (int i = 0; i < WIDTH; ++i) g[i] = rounded_product(g[i], weight[i]);
        }
#pragma unroll
        for (int i = 0; i < WIDTH; ++i) {
          if constexpr (decltype(center)::value) {
            p[i] -= mean;
            sums[1] += g[i];
            sums[2] += p[i];
          }
          sums[0] += g[i] * p[i];
        }
      }
    };
    const bool weighted = kWeight || args.weight;
    with_flags(add_up, center, weighted);
    if (center) {
      team_sum(sums, shared, team, turn);
    } else {
      A sum[1] = {sums[0]};
      team_sum(sum, shared, team, turn);
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
    const auto write_out = [&](auto center, auto has_weight) {
#pragma unroll
      for (int v = 0; v < VECTORS; ++v) {
        if (!active || !has(v)) continue;
        const Vec<A, WIDTH> r = r_of(v);
        Vec<A, WIDTH> upstream = widen_all(vector_at(kStreamBytes, v)), d_r;
        [[maybe_unused]] Vec<A, WIDTH> act, d_gate, weight;  // d_gate begins as the derivative of act
        if constexpr (GATE != Gate::none) {
          const Vec<A, WIDTH> gate = widen_all(vector_at(gate_place, v));
          visit_activation(args.options.gate_act, [&](auto chosen) {
#pragma unroll
            for (int i = 0; i < WIDTH; ++i) {
              A core;
              if constexpr (kKeepsCore) {
                core = kept_core[v][i];
              } else {
                core = activation_core<decltype(chosen)::value, T>(gate[i]);
              }
              const auto both = activated<decltype(chosen)::value>(gate[i], core);
              act[i] = both.value;
              d_gate[i] = both.derivative * (GATE == Gate::pre ? r : upstream)[i];
              if constexpr (GATE == Gate::post) upstream[i] *= act[i];
            }
          });
        }
        if constexpr (decltype(has_weight)::value) weight = weight_of(v);
        [[maybe_unused]] Vec<A, WIDTH> y;  // before the gate
#pragma unroll
        for (int i = 0; i < WIDTH; ++i) {
          A d = GATE == Gate::pre ? r[i] * act[i] : r[i];
          if constexpr (decltype(center)::value) d -= mean;
          [[maybe_unused]] const A xhat = factors.xhat(d);
          if constexpr (kWeight) sum_weight[v][i] += upstream[i] * xhat;
          if constexpr (kBias) sum_bias[v][i] += upstream[i];
          A g = upstream[i];
          if constexpr (decltype(has_weight)::value) g = rounded_product(g, weight[i]);
          d_r[i] = factors.d_p(g, d);
          if constexpr (GATE == Gate::pre) {
            d_gate[i] *= d_r[i];
            d_r[i] *= act[i];
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
          for (int i = 0; i < WIDTH; ++i) d_gate[i] *= y[i];
        }
        const auto add = [&](Vec<A, WIDTH>& to, int place) {
          if (place < 0) return;
          const Vec<A, WIDTH> more = widen_all(vector_at(place, v));
#pragma unroll
          for (int i = 0; i < WIDTH; ++i) to[i] += more[i];
        };
        const auto write = [&](T* to, Vec<A, WIDTH> values, int old) {
          add(values, old);
          store_narrow(to + v * TEAM * WIDTH, values);
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
    fetch(index + stages * step, stage);
    stage = stage + 1 == stages ? 0 : stage + 1;
  }

  if constexpr (kWeight) {
    // The teams of the block add up in their order, then the block's row of partials is written.
    __pipeline_wait_prior(0);
    A* totals = reinterpret_cast<A*>(staged);  // (1 or 2, extent)
    for (int turn_of = 0; turn_of < kTeams; ++turn_of) {
      __syncthreads();
      if (team != turn_of) continue;
#pragma unroll
      for (int v = 0; v < VECTORS; ++v) {
        if (!has(v)) continue;
#pragma unroll
        for (int i = 0; i < WIDTH; ++i) {
          const int c = (lane + v * TEAM) * WIDTH + i;
          totals[c] = sum_weight[v][i] + (turn_of > 0 ? totals[c] : A(0));
          if constexpr (kBias) totals[extent + c] = sum_bias[v][i] + (turn_of > 0 ? totals[extent + c] : A(0));
        }
      }
    }
    __syncthreads();
    A* partials = row<A>(args.partials, blockIdx.x) + int64_t{blockIdx.y} * extent;
    for (int c = threadIdx.x; c < extent; c += kTeams * TEAM) {
      partials[c] = totals[c] * numbers.scale;
      if constexpr (kBias) partials[args.x.cols + c] = totals[extent + c];
    }
  }
}

}  // namespace heddle::kernels::cuda
