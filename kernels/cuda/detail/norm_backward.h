// Backward of the norm family.                                                        docs/layers.md#normalization
// With xhat = (p - mean) * inv_std and g = d_y * (act(gate) if after) * weight * scale, over one group:
//   d_p = inv_std * (g - xhat * mean(g * xhat) - (mean(g) if centred))
//   gate before: d_r = d_p * act(gate), d_gate = d_p * r * act'(gate);  after: d_gate = d_y * (y before the gate) *
//   act' d_x = d_residual = d_r (of the norm) + d_r (that arrived);  d_weight = sum of d_y * act(gate) * scale * xhat;
//   d_bias = sum of d_y * act(gate)
// Writes or adds (Destination) d_x, d_residual, d_gate, d_weight, d_bias.
// Bytes: every input, and every destination that is added to, is read once; every destination is written once. The grid
// stays while rows go by; the sums over rows stay in registers and leave as one row of `partials` a block, which a
// second kernel adds up in the order of the blocks.
// A translation unit a storage type instantiates launch_backward.
#pragma once

#include "kernels/cuda/detail/norm.h"
#include "kernels/cuda/detail/norm_streams.h"

namespace heddle::kernels::cuda {

enum class Sums { none, weight, weight_and_bias };  // as many as the number says

// What the sums over a unit leave for its elements: d = p - mean as it was rounded, whose own mean is `shift`.
//   xhat = (d - shift) inv_std
//   d_p = inv_std * (g - xhat * mean(g xhat) - (mean(g) if centred)) = of_g * (g / scale - (xhat * dot + less))
template <class A>
struct UnitFactors {
  A inv_std, less_xhat, of_g, dot, less;

  // sums: of g d, of g, of d, the first two without the scale.
  __device__ __forceinline__ UnitFactors(const A (&sums)[3], A inv_std, bool center, const NormNumbers<A>& numbers)
      : inv_std(inv_std), of_g(inv_std * numbers.scale) {
    const A shift = center ? sums[2] * numbers.per_extent : A(0);
    less_xhat = shift * inv_std;
    dot = (sums[0] - shift * sums[1]) * inv_std * numbers.per_extent;
    less = center ? sums[1] * numbers.per_extent : A(0);
  }
  __device__ __forceinline__ A xhat(A d) const { return d * inv_std - less_xhat; }
  __device__ __forceinline__ A d_p(A g, A xhat) const { return of_g * (g - (xhat * dot + less)); }
};

// Units that a team has under way at once: two where shared memory holds them.
constexpr int kMostStages = 2;

// Threads of a block of teams of `team` threads, at most.
__host__ __device__ constexpr int most_block_threads(int team) { return team <= 256 ? 256 : 512; }

template <class T, int WIDTH, int TEAM, int VECTORS, Sums SUMS, Gate GATE>
__global__ void __launch_bounds__(most_block_threads(TEAM))
    norm_backward_rows(const __grid_constant__ NormBackwardArgs args, const __grid_constant__ NormStreams streams,
                       const __grid_constant__ NormNumbers<accumulate_t<T>> numbers, int stages) {
  using A = accumulate_t<T>;
  constexpr bool kWeight = SUMS != Sums::none;
  constexpr bool kBias = SUMS == Sums::weight_and_bias;
  extern __shared__ uint4 staged[];
  __shared__ TeamSums<A, TEAM, most_block_threads(TEAM) / TEAM, 3> shared;
  const int teams = blockDim.x / TEAM;
  const int team = threadIdx.x / TEAM;
  const int lane = threadIdx.x % TEAM;
  const int64_t groups = numbers.groups;
  const int extent = static_cast<int>(numbers.extent);
  // With sums over rows a block stays with one group (its y index); without, units are taken as they lie in memory.
  const int64_t count = kWeight ? args.x.rows : numbers.units;
  const int64_t step = int64_t{gridDim.x} * teams;
  int turn = 0;

  const auto has = [&](int v) { return (lane + v * TEAM) * WIDTH < extent; };
  const auto row_of = [&](int64_t index) { return kWeight || groups == 1 ? index : index / groups; };
  // Of the thread's first vector; the others follow at TEAM * WIDTH.
  const auto column_of = [&](int64_t index) {
    const int64_t group = kWeight ? int64_t{blockIdx.y} : (groups == 1 ? 0 : index % groups);
    return group * extent + lane * WIDTH;
  };
  // Vector v of a thread lies v * TEAM behind its first one.
  const auto place = [&](int stage, int stream) {
    return &staged[((stage * streams.count + stream) * teams + team) * (VECTORS * TEAM) + lane];
  };
  const auto fetch = [&](int64_t index, int stage) {
    if (index < count) {
      const int64_t row_index = row_of(index), column = column_of(index);
      for (int stream = 0; stream < streams.count; ++stream) {
        const T* from = row<const T>(streams.views[stream], row_index) + column;
        uint4* to = place(stage, stream);
#pragma unroll
        for (int v = 0; v < VECTORS; ++v) {
          if (has(v)) __pipeline_memcpy_async(to + v * TEAM, from + v * TEAM * WIDTH, 16);
        }
      }
    }
    __pipeline_commit();
  };
  const auto vector_at = [&](const uint4* from, int v) {
    const uint4 words = from[v * TEAM];
    return *reinterpret_cast<const Vec<T, WIDTH>*>(&words);
  };

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
  }

  // Teams that share a warp stay together until the last of them is done: they exchange by shuffles.
  const int after_first = TEAM < 32 ? team % (32 / TEAM) : 0;
  int64_t index = int64_t{blockIdx.x} * teams + team;
  for (int stage = 0; stage < stages; ++stage) fetch(index + stage * step, stage);
  int stage = 0;
  for (; index - after_first < count; index += step) {
    const bool active = index < count;
    const int64_t row_index = row_of(index), column = column_of(index);
    const int64_t unit = kWeight ? row_index * groups + blockIdx.y : index;
    const A mean = active && args.mean ? vector<const A>(args.mean)[unit] : A(0);
    const A inv_std = active ? vector<const A>(args.inv_std)[unit] : A(0);
    if (stages == 1) {
      __pipeline_wait_prior(0);
    } else {
      __pipeline_wait_prior(kMostStages - 1);
    }
    const uint4* x_place = place(stage, 0);
    const uint4* d_y_place = place(stage, 1);
    const uint4* residual_place = streams.residual >= 0 ? place(stage, streams.residual) : nullptr;
    const uint4* gate_place = GATE != Gate::none ? place(stage, streams.gate) : nullptr;
    const auto r_of = [&](int v) {
      Vec<A, WIDTH> r = widen_all(vector_at(x_place, v));
      if (residual_place == nullptr) return r;
      const Vec<A, WIDTH> more = widen_all(vector_at(residual_place, v));
#pragma unroll
      for (int i = 0; i < WIDTH; ++i) r[i] += more[i];
      return widen_all(narrow_all<T>(r));
    };

    A sums[3] = {A(0), A(0), A(0)};
    const auto add_up = [&](auto center, auto has_weight) {
#pragma unroll
      for (int v = 0; v < VECTORS; ++v) {
        if (!active || !has(v)) continue;
        Vec<A, WIDTH> p = r_of(v), g = widen_all(vector_at(d_y_place, v));
        if constexpr (GATE != Gate::none) {
          const auto act = activated(args.options.gate_act, vector_at(gate_place, v));
#pragma unroll
          for (int i = 0; i < WIDTH; ++i) (GATE == Gate::pre ? p : g)[i] *= act[i];
        }
        if constexpr (decltype(has_weight)::value) {
          const auto weight = load_or<T, WIDTH>(args.weight, column + v * TEAM * WIDTH, A(1));
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
    const bool center = args.options.center;
    if (center) {
      add_up(std::true_type{}, std::true_type{});
      team_sum(sums, shared, team, turn);
    } else {
      if (kWeight || args.weight) {
        add_up(std::false_type{}, std::true_type{});
      } else {
        add_up(std::false_type{}, std::false_type{});
      }
      A sum[1] = {sums[0]};
      team_sum(sum, shared, team, turn);
      sums[0] = sum[0];
    }
    const UnitFactors<A> factors(sums, inv_std, center, numbers);

    const auto row_at = [&](const RowsDestination& to) { return to ? row<T>(to.view, row_index) + column : nullptr; };
    T *d_x = row_at(args.d_x), *d_residual = row_at(args.d_residual);
    T* d_gate_row = GATE != Gate::none ? row_at(args.d_gate) : nullptr;
    const auto write_out = [&](auto has_weight) {
#pragma unroll
      for (int v = 0; v < VECTORS; ++v) {
        if (!active || !has(v)) continue;
        const Vec<A, WIDTH> r = r_of(v), d_y = widen_all(vector_at(d_y_place, v));
        Vec<A, WIDTH> p = r, upstream = d_y, d_r;
        [[maybe_unused]] Vec<A, WIDTH> d_gate;
        [[maybe_unused]] ActivatedVec<T, WIDTH> act;
        if constexpr (GATE != Gate::none) {
          act = activated_with_derivative(args.options.gate_act, vector_at(gate_place, v));
#pragma unroll
          for (int i = 0; i < WIDTH; ++i) (GATE == Gate::pre ? p : upstream)[i] *= act.value[i];
        }
        Vec<A, WIDTH> g = upstream;
        [[maybe_unused]] Vec<A, WIDTH> weight, bias;
        if constexpr (decltype(has_weight)::value) {
          weight = load_or<T, WIDTH>(args.weight, column + v * TEAM * WIDTH, A(1));
#pragma unroll
          for (int i = 0; i < WIDTH; ++i) g[i] = rounded_product(g[i], weight[i]);
        }
        if constexpr (GATE == Gate::post) bias = load_or<T, WIDTH>(args.bias, column + v * TEAM * WIDTH, A(0));
#pragma unroll
        for (int i = 0; i < WIDTH; ++i) {
          const A xhat = factors.xhat(p[i] - mean);
          if constexpr (kWeight) sum_weight[v][i] += upstream[i] * xhat;
          if constexpr (kBias) sum_bias[v][i] += upstream[i];
          d_r[i] = factors.d_p(g[i], xhat);
          if constexpr (GATE == Gate::pre) {
            d_gate[i] = d_r[i] * r[i] * act.derivative[i];
            d_r[i] *= act.value[i];
          }
          if constexpr (GATE == Gate::post) {
            A normalized = numbers.scale * xhat;
            if constexpr (decltype(has_weight)::value) normalized *= weight[i];
            d_gate[i] = d_y[i] * (normalized + bias[i]) * act.derivative[i];
          }
        }
        const auto add = [&](Vec<A, WIDTH>& to, int stream) {
          if (stream < 0) return;
          const Vec<A, WIDTH> more = widen_all(vector_at(place(stage, stream), v));
#pragma unroll
          for (int i = 0; i < WIDTH; ++i) to[i] += more[i];
        };
        add(d_r, streams.d_r);
        const auto write = [&](T* to, Vec<A, WIDTH> values, int old) {
          if (to == nullptr) return;
          add(values, old);
          store_narrow<Reuse::stream>(to + v * TEAM * WIDTH, values);
        };
        write(d_x, d_r, streams.old_d_x);
        write(d_residual, d_r, streams.old_d_residual);
        if constexpr (GATE != Gate::none) write(d_gate_row, d_gate, streams.old_d_gate);
      }
    };
    if (kWeight || args.weight) {
      write_out(std::true_type{});
    } else {
      write_out(std::false_type{});
    }
    fetch(index + stages * step, stage);
    stage = stage + 1 == stages ? 0 : stage + 1;
  }

  if constexpr (kWeight) {
    // The teams of the block add up in their order, then the block's row of partials is written.
    __pipeline_wait_prior(0);
    A* totals = reinterpret_cast<A*>(staged);  // (1 or 2, extent)
    for (int turn_of = 0; turn_of < teams; ++turn_of) {
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
    for (int c = threadIdx.x; c < extent; c += blockDim.x) {
      partials[c] = totals[c] * numbers.scale;
      if constexpr (kBias) partials[args.x.cols + c] = totals[extent + c];
    }
  }
}

// Any length, any alignment: one element at a time, the unit read twice. A block stays with its row of partials and
// adds to it in memory; a column belongs to the same thread in every row.
template <class T, int TEAM>
__global__ void __launch_bounds__(TEAM)
    norm_backward_any(const __grid_constant__ NormBackwardArgs args,
                      const __grid_constant__ NormNumbers<accumulate_t<T>> numbers) {
  using A = accumulate_t<T>;
  __shared__ TeamSums<A, TEAM, 1, 3> shared;
  const NormOptions& options = args.options;
  const bool before = args.gate && options.gate_position == GatePosition::pre;
  const bool after = args.gate && options.gate_position == GatePosition::post;
  int turn = 0;
  if (args.partials) {
    for (int64_t c = threadIdx.x; c < 2 * args.x.cols; c += TEAM) row<A>(args.partials, blockIdx.x)[c] = A(0);
    __syncthreads();
  }
  for (int64_t row_index = blockIdx.x; row_index < args.x.rows; row_index += gridDim.x) {
    for (int64_t group = 0; group < numbers.groups; ++group) {
      const int64_t first = group * numbers.extent;
      const int64_t unit = row_index * numbers.groups + group;
      const A mean = args.mean ? vector<const A>(args.mean)[unit] : A(0);
      const A inv_std = vector<const A>(args.inv_std)[unit];
      const auto at = [&](const RowsView& view, int64_t c) { return widen(row<const T>(view, row_index)[first + c]); };
      const auto r_of = [&](int64_t c) {
        return args.residual ? round_to<T>(at(args.x, c) + at(args.residual, c)) : at(args.x, c);
      };
      const auto act_of = [&](int64_t c) {
        if (!args.gate) return Activated<A>{A(1), A(0)};
        const auto act =
            activated_with_derivative(options.gate_act, Vec<T, 1>{row<const T>(args.gate, row_index)[first + c]});
        return Activated<A>{act.value[0], act.derivative[0]};
      };
      const auto d_of = [&](A r, A act) { return (before ? r * act : r) - mean; };
      const auto weight_of = [&](int64_t c) {
        return args.weight ? widen(vector<const T>(args.weight)[first + c]) : A(1);
      };
      A sums[3] = {A(0), A(0), A(0)};
      for (int64_t c = threadIdx.x; c < numbers.extent; c += TEAM) {
        const A act = act_of(c).value;
        const A d = d_of(r_of(c), act);
        const A g = rounded_product(after ? at(args.d_y, c) * act : at(args.d_y, c), weight_of(c));
        sums[0] += g * d;
        sums[1] += g;
        sums[2] += d;
      }
      team_sum(sums, shared, 0, turn);
      const UnitFactors<A> factors(sums, inv_std, options.center, numbers);
      for (int64_t c = threadIdx.x; c < numbers.extent; c += TEAM) {
        const Activated<A> act = act_of(c);
        const A r = r_of(c), d_y = at(args.d_y, c), weight = weight_of(c);
        const A xhat = factors.xhat(d_of(r, act.value));
        const A upstream = after ? d_y * act.value : d_y;
        if (args.partials) {
          A* partials = row<A>(args.partials, blockIdx.x) + first + c;
          partials[0] += upstream * xhat * numbers.scale;
          partials[args.x.cols] += upstream;
        }
        const A d_p = factors.d_p(rounded_product(upstream, weight), xhat);
        const A bias = args.bias ? widen(vector<const T>(args.bias)[first + c]) : A(0);
        const A d_gate = (before ? d_p * r : d_y * (numbers.scale * xhat * weight + bias)) * act.derivative;
        A d_r = before ? d_p * act.value : d_p;
        if (args.d_r) d_r += at(args.d_r, c);
        // d_x may be the memory of d_r; nothing of this element is read after it is written.
        const auto write = [&](const RowsDestination& to, A value) {
          if (!to) return;
          if (to.mode == Accumulate::add) value += at(to.view, c);
          row<T>(to.view, row_index)[first + c] = narrow<T>(value);
        };
        write(args.d_x, d_r);
        write(args.d_residual, d_r);
        write(args.d_gate, d_gate);
      }
    }
  }
}

// destination (=|+=) sum over the rows of partials. A block owns 32 columns; its warps take rows in turn and add up in
// the order of the warps.
template <class O, class A>
__global__ void __launch_bounds__(256)
    norm_finish(const A* partials, int64_t stride, int rows, int64_t cols, O* destination, bool add) {
  __shared__ A sums[8][33];
  const int64_t column = int64_t{blockIdx.x} * 32 + threadIdx.x % 32;
  const int warp = threadIdx.x / 32;
  A sum = A(0);
  if (column < cols) {
    for (int r = warp; r < rows; r += 8) sum += partials[r * stride + column];
  }
  sums[warp][threadIdx.x % 32] = sum;
  __syncthreads();
  if (warp != 0 || column >= cols) return;
#pragma unroll
  for (int w = 1; w < 8; ++w) sum += sums[w][threadIdx.x % 32];
  if (add) sum += static_cast<A>(widen(destination[column]));
  destination[column] = narrow<O>(sum);
}

template <class T>
void finish(Context& context, const NormBackwardArgs& args, int64_t first_column, int rows,
            const VectorDestination& to) {
  if (!to) return;
  using A = accumulate_t<T>;
  visit_same_or_accumulate<T>(to.view.dtype, args.x.dtype, [&](auto type) {
    using O = decltype(type);
    HEDDLE_LAUNCH(context, (norm_finish<O, A>), static_cast<unsigned>(ceil_div(args.x.cols, 32)), 256, 0,
                  vector<const A>({args.partials.data, args.partials.dtype, 0}) + first_column,
                  args.partials.row_stride, rows, args.x.cols, vector<O>(to.view), to.mode == Accumulate::add);
  });
}

// Launches the kernel that keeps units in shared memory; returns its rows of partials, 0 when there is no room.
template <class T, Sums SUMS, Gate GATE, class Shape>
int launch_rows(Context& context, const NormBackwardArgs& args, Shape) {
  constexpr int kTeam = Shape::kTeam;
  const NormStreams streams(args);
  const NormNumbers<accumulate_t<T>> numbers(args.x, args.options);
  const auto kernel = norm_backward_rows<T, vector_width<T>, kTeam, Shape::kVectors, SUMS, GATE>;
  const size_t totals_bytes = static_cast<size_t>(SUMS) * numbers.extent * sizeof(accumulate_t<T>);
  const auto shared_bytes = [&](int threads, int stages) {
    return std::max(stages * streams.count * Shape::kVectors * threads * sizeof(uint4), totals_bytes);
  };
  const auto resident = [&](int threads, int stages) {
    return resident_blocks(context, kernel, threads, shared_bytes(threads, stages));
  };
  // Units of the next row are fetched ahead where enough threads find room then; 256 on a multiprocessor are enough.
  const int threads = std::max(kTeam, SUMS == Sums::none ? 128 : 256);
  int stages = kMostStages;
  int blocks = resident(threads, stages);
  if (blocks * threads < 256) {
    stages = 1;
    blocks = resident(threads, stages);
  }
  if (blocks == 0) return 0;
  const int64_t count = SUMS == Sums::none ? numbers.units : args.x.rows;
  int64_t most = int64_t{context.properties().multiprocessors} * blocks;
  if (SUMS != Sums::none) most = std::min({most, norm_partials(args.x.rows), args.partials.rows});
  const auto grid = static_cast<unsigned>(std::min(ceil_div(count, threads / kTeam), most));
  HEDDLE_LAUNCH(context, kernel, dim3(grid, SUMS == Sums::none ? 1u : static_cast<unsigned>(numbers.groups)), threads,
                shared_bytes(threads, stages), args, streams, numbers, stages);
  return static_cast<int>(grid);
}

template <class T, Sums SUMS, Gate GATE>
int launch_rows(Context& context, const NormBackwardArgs& args) {
  constexpr int kWidth = vector_width<T>;
  if (!groups_vectorize(args.x, args.options, kWidth) || args.options.groups > 65535 ||
      !can_vectorize_all(kWidth, args.x, args.residual, args.gate, args.weight, args.bias, args.d_y, args.d_r,
                         args.d_x.view, args.d_residual.view, args.d_gate.view)) {
    return 0;
  }
  int partials = 0;
  const auto launch = [&](auto shape) { partials = launch_rows<T, SUMS, GATE>(context, args, shape); };
  const int64_t vectors = args.x.cols / args.options.groups / kWidth;
  if constexpr (SUMS == Sums::none && GATE == Gate::none) {
    choose_team<TeamShape<8, 1>, TeamShape<16, 1>, TeamShape<32, 1>, TeamShape<32, 2>, TeamShape<32, 4>,
                TeamShape<32, 8>, TeamShape<64, 8>, TeamShape<128, 8>, TeamShape<256, 8>>(vectors, launch);
  } else if constexpr (SUMS != Sums::none && GATE != Gate::none) {  // few vectors, so that nothing spills
    choose_team<TeamShape<8, 1>, TeamShape<16, 1>, TeamShape<32, 1>, TeamShape<32, 2>, TeamShape<64, 2>,
                TeamShape<128, 2>, TeamShape<256, 2>, TeamShape<512, 2>>(vectors, launch);
  } else {  // the sums or the gate take registers
    choose_team<TeamShape<8, 1>, TeamShape<16, 1>, TeamShape<32, 1>, TeamShape<32, 2>, TeamShape<32, 4>,
                TeamShape<64, 4>, TeamShape<128, 4>, TeamShape<256, 4>, TeamShape<512, 4>>(vectors, launch);
  }
  return partials;
}

template <class T, Sums SUMS>
int launch_rows(Context& context, const NormBackwardArgs& args) {
  switch (gate_of(args.gate, args.options)) {
    case Gate::pre:
      return launch_rows<T, SUMS, Gate::pre>(context, args);
    case Gate::post:
      return launch_rows<T, SUMS, Gate::post>(context, args);
    default:
      return launch_rows<T, SUMS, Gate::none>(context, args);
  }
}

template <class T>
void launch_backward(Context& context, const NormBackwardArgs& args) {
  const bool sums = args.d_weight || args.d_bias;
  int partials = 0;
  if (args.x.rows > 0) {
    if constexpr (!std::is_same_v<T, double>) {
      if (!sums) {
        partials = launch_rows<T, Sums::none>(context, args);
      } else if (!args.d_bias) {
        partials = launch_rows<T, Sums::weight>(context, args);
      } else {
        partials = launch_rows<T, Sums::weight_and_bias>(context, args);
      }
    }
    if (partials == 0) {
      const NormNumbers<accumulate_t<T>> numbers(args.x, args.options);
      const int64_t most = sums ? args.partials.rows : int64_t{context.properties().multiprocessors} * 16;
      partials = static_cast<int>(std::min(args.x.rows, most));
      if (numbers.extent <= 512) {
        HEDDLE_LAUNCH(context, (norm_backward_any<T, 32>), static_cast<unsigned>(partials), 32, 0, args, numbers);
      } else {
        HEDDLE_LAUNCH(context, (norm_backward_any<T, 256>), static_cast<unsigned>(partials), 256, 0, args, numbers);
      }
    }
  }
  finish<T>(context, args, 0, partials, args.d_weight);
  finish<T>(context, args, args.x.cols, partials, args.d_bias);
}

}  // namespace heddle::kernels::cuda
