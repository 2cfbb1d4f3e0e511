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

#include "kernels/cuda/detail/norm.h"
#include "kernels/cuda/detail/norm_streams.h"

namespace heddle::kernels::cuda {
namespace {

enum class Sums { none, weight, weight_and_bias };

// What one element needs besides its own numbers.
template <class A>
struct UnitNumbers {
  A mean, inv_std, scale;
};

template <class A>
struct ElementForward {
  A r, xhat;
  Activated<A> gate;  // {1, 0} without a gate
  bool before, after;
};

// p, xhat and the gate of one element from what forward saw.
template <class T, class A>
__device__ __forceinline__ ElementForward<A> element_forward(A r, bool has_gate, A gate, const NormOptions& options,
                                                             const UnitNumbers<A>& unit) {
  ElementForward<A> e;
  e.r = r;
  e.before = has_gate && options.gate_position == GatePosition::pre;
  e.after = has_gate && options.gate_position == GatePosition::post;
  e.gate = has_gate ? activated_with_derivative<T>(options.gate_act, gate) : Activated<A>{A(1), A(0)};
  const A p = e.before ? r * e.gate.value : r;
  e.xhat = (p - unit.mean) * unit.inv_std;
  return e;
}

template <class A>
struct ElementGradients {
  A d_r, d_gate;
};

// The gradients of r and gate. dot: mean(g xhat); mean_g: mean(g) if centred, else 0.
template <class A>
__device__ __forceinline__ ElementGradients<A> element_backward(const ElementForward<A>& e, A d_y, A weight, A bias,
                                                                A dot, A mean_g, const UnitNumbers<A>& unit) {
  const A upstream = e.after ? d_y * e.gate.value : d_y;
  const A d_p = unit.inv_std * (upstream * weight * unit.scale - e.xhat * dot - mean_g);
  if (e.before) return {d_p * e.gate.value, d_p * e.r * e.gate.derivative};
  if (e.after) return {d_p, d_y * (unit.scale * e.xhat * weight + bias) * e.gate.derivative};
  return {d_p, A(0)};
}

// Rows that are under way at once: two where shared memory holds them.
constexpr int kMostStages = 2;

template <class T, int WIDTH, int TEAM, int VECTORS, int THREADS, Sums SUMS, bool GATE>
__global__ void __launch_bounds__(THREADS) norm_backward_rows(const __grid_constant__ NormBackwardArgs args,
                                                              const __grid_constant__ NormStreams streams, int stages) {
  using A = accumulate_t<T>;
  constexpr int kTeams = THREADS / TEAM;
  constexpr bool kWeight = SUMS != Sums::none;
  constexpr bool kBias = SUMS == Sums::weight_and_bias;
  extern __shared__ uint4 staged[];
  __shared__ TeamSums<A, TEAM, kTeams, 2> shared;
  const NormOptions& options = args.options;
  const int team = threadIdx.x / TEAM;
  const int lane = threadIdx.x % TEAM;
  const int64_t groups = options.groups;
  const int extent = static_cast<int>(args.x.cols / groups);
  // With sums over rows a block stays with one group (its y index); without, units are taken as they lie in memory.
  const int64_t count = kWeight ? args.x.rows : args.x.rows * groups;
  const int64_t step = int64_t{gridDim.x} * kTeams;
  int turn = 0;

  const auto has = [&](int v) { return (lane + v * TEAM) * WIDTH < extent; };
  const auto row_of = [&](int64_t index) { return kWeight || groups == 1 ? index : index / groups; };
  const auto column = [&](int64_t index, int v) {
    const int64_t group = kWeight ? int64_t{blockIdx.y} : (groups == 1 ? 0 : index % groups);
    return group * extent + (lane + v * TEAM) * WIDTH;
  };
  const auto place = [&](int stage, int stream, int v) {
    return &staged[((stage * streams.count + stream) * VECTORS + v) * THREADS + threadIdx.x];
  };
  const auto fetch = [&](int64_t index, int stage) {
    if (index < count) {
      const int64_t row_index = row_of(index);
      for (int stream = 0; stream < streams.count; ++stream) {
        const T* from = row<const T>(streams.views[stream], row_index);
#pragma unroll
        for (int v = 0; v < VECTORS; ++v) {
          if (has(v)) __pipeline_memcpy_async(place(stage, stream, v), from + column(index, v), 16);
        }
      }
    }
    __pipeline_commit();
  };
  const auto staged_vector = [&](int stage, int stream, int v) {
    const uint4 words = *place(stage, stream, v);
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
  int64_t index = int64_t{blockIdx.x} * kTeams + team;
  for (int stage = 0; stage < stages; ++stage) fetch(index + stage * step, stage);
  int stage = 0;
  for (; index - after_first < count; index += step) {
    if (stages == 1) {
      __pipeline_wait_prior(0);
    } else {
      __pipeline_wait_prior(kMostStages - 1);
    }
    const bool active = index < count;
    const int64_t row_index = row_of(index);
    const int64_t unit_index = kWeight ? row_index * groups + blockIdx.y : index;
    const UnitNumbers<A> unit{active && args.mean ? vector<const A>(args.mean)[unit_index] : A(0),
                              active ? vector<const A>(args.inv_std)[unit_index] : A(0), static_cast<A>(options.scale)};
    const auto forward_of = [&](int v, ElementForward<A>(&e)[WIDTH]) {
      Vec<T, WIDTH> x = staged_vector(stage, 0, v);
      if (streams.residual >= 0) {
        const Vec<T, WIDTH> residual = staged_vector(stage, streams.residual, v);
#pragma unroll
        for (int i = 0; i < WIDTH; ++i) x[i] = narrow<T>(widen(x[i]) + widen(residual[i]));
      }
      Vec<T, WIDTH> gate = x;
      if constexpr (GATE) gate = staged_vector(stage, streams.gate, v);
#pragma unroll
      for (int i = 0; i < WIDTH; ++i) {
        e[i] = element_forward<T>(widen(x[i]), GATE, widen(gate[i]), options, unit);
      }
    };

    A sums[2] = {A(0), A(0)};  // of g xhat, of g
#pragma unroll
    for (int v = 0; v < VECTORS; ++v) {
      if (!active || !has(v)) continue;
      ElementForward<A> e[WIDTH];
      forward_of(v, e);
      const Vec<T, WIDTH> d_y = staged_vector(stage, 1, v);
      Vec<T, WIDTH> w;
      if (args.weight) w = load<WIDTH>(vector<const T>(args.weight) + column(index, v));
#pragma unroll
      for (int i = 0; i < WIDTH; ++i) {
        const A upstream = e[i].after ? widen(d_y[i]) * e[i].gate.value : widen(d_y[i]);
        if constexpr (kWeight) sum_weight[v][i] += upstream * e[i].xhat;
        if constexpr (kBias) sum_bias[v][i] += upstream;
        const A g = args.weight ? upstream * widen(w[i]) : upstream;
        sums[0] += g * e[i].xhat;
        sums[1] += g;
      }
    }
    team_sum(sums, shared, team, turn);
    const A to_mean = unit.scale / static_cast<A>(extent);
    const A dot = sums[0] * to_mean;
    const A mean_g = options.center ? sums[1] * to_mean : A(0);

    // Not unrolled: it uses none of the sums, and a vector at a time needs few registers.
#pragma unroll 1
    for (int v = 0; v < VECTORS; ++v) {
      if (!active || !has(v)) continue;
      ElementForward<A> e[WIDTH];
      forward_of(v, e);
      const Vec<T, WIDTH> d_y = staged_vector(stage, 1, v);
      Vec<T, WIDTH> w, b;
      if (args.weight) w = load<WIDTH>(vector<const T>(args.weight) + column(index, v));
      if (args.bias) b = load<WIDTH>(vector<const T>(args.bias) + column(index, v));
      Vec<A, WIDTH> d_r, d_gate;
#pragma unroll
      for (int i = 0; i < WIDTH; ++i) {
        const ElementGradients<A> gradients = element_backward(e[i], widen(d_y[i]), args.weight ? widen(w[i]) : A(1),
                                                               args.bias ? widen(b[i]) : A(0), dot, mean_g, unit);
        d_r[i] = gradients.d_r;
        d_gate[i] = gradients.d_gate;
      }
      const auto add = [&](Vec<A, WIDTH>& to, int stream) {
        if (stream < 0) return;
        const Vec<T, WIDTH> more = staged_vector(stage, stream, v);
#pragma unroll
        for (int i = 0; i < WIDTH; ++i) to[i] += widen(more[i]);
      };
      add(d_r, streams.d_r);
      const auto write = [&](const RowsDestination& to, Vec<A, WIDTH> values, int old) {
        if (!to) return;
        add(values, old);
        store_narrow<Reuse::stream>(row<T>(to.view, row_index) + column(index, v), values);
      };
      write(args.d_x, d_r, streams.old_d_x);
      write(args.d_residual, d_r, streams.old_d_residual);
      write(args.d_gate, d_gate, streams.old_d_gate);
    }
    fetch(index + stages * step, stage);
    stage = stage + 1 == stages ? 0 : stage + 1;
  }

  if constexpr (kWeight) {
    // The teams of the block add up in their order, then the block's row of partials is written.
    __pipeline_wait_prior(0);
    A* totals = reinterpret_cast<A*>(staged);  // (2, extent)
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
    for (int c = threadIdx.x; c < extent; c += THREADS) {
      partials[c] = totals[c] * static_cast<A>(options.scale);
      if constexpr (kBias) partials[args.x.cols + c] = totals[extent + c];
    }
  }
}

// Any length, any alignment: one element at a time, the unit read twice. A block stays with its row of partials and
// adds to it in memory; a column belongs to the same thread in every row.
template <class T, int TEAM>
__global__ void __launch_bounds__(TEAM) norm_backward_any(const __grid_constant__ NormBackwardArgs args) {
  using A = accumulate_t<T>;
  __shared__ TeamSums<A, TEAM, 1, 2> shared;
  const NormOptions& options = args.options;
  const int64_t extent = args.x.cols / options.groups;
  const A scale = static_cast<A>(options.scale);
  int turn = 0;
  if (args.partials) {
    for (int64_t c = threadIdx.x; c < 2 * args.x.cols; c += TEAM) row<A>(args.partials, blockIdx.x)[c] = A(0);
    __syncthreads();
  }
  for (int64_t row_index = blockIdx.x; row_index < args.x.rows; row_index += gridDim.x) {
    for (int64_t group = 0; group < options.groups; ++group) {
      const int64_t first = group * extent;
      const int64_t unit_index = row_index * options.groups + group;
      const UnitNumbers<A> unit{args.mean ? vector<const A>(args.mean)[unit_index] : A(0),
                                vector<const A>(args.inv_std)[unit_index], scale};
      const auto at = [&](const RowsView& view, int64_t c) { return widen(row<const T>(view, row_index)[first + c]); };
      const auto forward_of = [&](int64_t c) {
        A r = at(args.x, c);
        if (args.residual) r = round_to<T>(r + at(args.residual, c));
        return element_forward<T>(r, static_cast<bool>(args.gate), args.gate ? at(args.gate, c) : A(0), options, unit);
      };
      const auto weight_of = [&](int64_t c) {
        return args.weight ? widen(vector<const T>(args.weight)[first + c]) : A(1);
      };
      A sums[2] = {A(0), A(0)};
      for (int64_t c = threadIdx.x; c < extent; c += TEAM) {
        const ElementForward<A> e = forward_of(c);
        const A upstream = e.after ? at(args.d_y, c) * e.gate.value : at(args.d_y, c);
        if (args.partials) {
          A* partials = row<A>(args.partials, blockIdx.x) + first + c;
          partials[0] += upstream * e.xhat * scale;
          partials[args.x.cols] += upstream;
        }
        const A g = upstream * weight_of(c) * scale;
        sums[0] += g * e.xhat;
        sums[1] += g;
      }
      team_sum(sums, shared, 0, turn);
      const A dot = sums[0] / static_cast<A>(extent);
      const A mean_g = options.center ? sums[1] / static_cast<A>(extent) : A(0);
      for (int64_t c = threadIdx.x; c < extent; c += TEAM) {
        ElementGradients<A> gradients =
            element_backward(forward_of(c), at(args.d_y, c), weight_of(c),
                             args.bias ? widen(vector<const T>(args.bias)[first + c]) : A(0), dot, mean_g, unit);
        if (args.d_r) gradients.d_r += at(args.d_r, c);
        const auto write = [&](const RowsDestination& to, A value) {
          if (!to) return;
          if (to.mode == Accumulate::add) value += at(to.view, c);
          row<T>(to.view, row_index)[first + c] = narrow<T>(value);
        };
        // d_x may be the memory of d_r; nothing of this element is read after it is written.
        const A d_r = gradients.d_r;
        write(args.d_x, d_r);
        write(args.d_residual, d_r);
        write(args.d_gate, gradients.d_gate);
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

// Launches the kernel that keeps units in shared memory; returns its rows of partials, 0 when the shape is not for it.
template <class T, Sums SUMS>
int launch_rows(Context& context, const NormBackwardArgs& args) {
  constexpr int kWidth = vector_width<T>;
  const int64_t extent = args.x.cols / args.options.groups;
  if (!groups_vectorize(args.x, args.options, kWidth) || args.options.groups > 65535 ||
      !can_vectorize_all(kWidth, args.x, args.residual, args.gate, args.weight, args.bias, args.d_y, args.d_r,
                         args.d_x.view, args.d_residual.view, args.d_gate.view)) {
    return 0;
  }
  const NormStreams streams(args);
  int grid = 0;
  choose_team<TeamShape<8, 1>, TeamShape<16, 1>, TeamShape<32, 1>, TeamShape<32, 2>, TeamShape<32, 4>, TeamShape<64, 4>,
              TeamShape<128, 4>, TeamShape<256, 4>, TeamShape<512, 4>>(extent / kWidth, [&](auto shape) {
    constexpr int kTeam = decltype(shape)::kTeam;
    constexpr int kVectors = decltype(shape)::kVectors;
    constexpr int kThreads = kTeam > 256 ? kTeam : 256;
    constexpr int kTeams = kThreads / kTeam;
    const auto kernel = args.gate ? norm_backward_rows<T, kWidth, kTeam, kVectors, kThreads, SUMS, true>
                                  : norm_backward_rows<T, kWidth, kTeam, kVectors, kThreads, SUMS, false>;
    const size_t stage_bytes = sizeof(uint4) * streams.count * kVectors * kThreads;
    const size_t room = context.properties().shared_bytes_per_block - 8 * 1024;
    if (stage_bytes > room) return;
    const int stages = kMostStages * stage_bytes <= room ? kMostStages : 1;
    const size_t totals_bytes = SUMS == Sums::none ? 0 : 2 * static_cast<size_t>(extent) * sizeof(accumulate_t<T>);
    const size_t shared_bytes = std::max(stages * stage_bytes, totals_bytes);
    const int64_t units = SUMS == Sums::none ? args.x.rows * args.options.groups : args.x.rows;
    const int64_t most = SUMS == Sums::none ? int64_t{context.properties().multiprocessors} * 4
                                            : std::min<int64_t>(norm_partials(args.x.rows), args.partials.rows);
    grid = static_cast<int>(std::min(ceil_div(units, kTeams), most));
    const dim3 blocks(static_cast<unsigned>(grid),
                      SUMS == Sums::none ? 1u : static_cast<unsigned>(args.options.groups));
    HEDDLE_LAUNCH(context, kernel, blocks, kThreads, shared_bytes, args, streams, stages);
  });
  return grid;
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
      const int64_t extent = args.x.cols / args.options.groups;
      const int64_t most = sums ? args.partials.rows : int64_t{context.properties().multiprocessors} * 16;
      partials = static_cast<int>(std::min(args.x.rows, most));
      if (extent <= 512) {
        HEDDLE_LAUNCH(context, (norm_backward_any<T, 32>), static_cast<unsigned>(partials), 32, 0, args);
      } else {
        HEDDLE_LAUNCH(context, (norm_backward_any<T, 256>), static_cast<unsigned>(partials), 256, 0, args);
      }
    }
  }
  finish<T>(context, args, 0, partials, args.d_weight);
  finish<T>(context, args, args.x.cols, partials, args.d_bias);
}

}  // namespace

void norm_backward(Context& context, const NormBackwardArgs& args) {
  visit_floating(args.x.dtype, [&](auto type) { launch_backward<decltype(type)>(context, args); });
}

}  // namespace heddle::kernels::cuda
