// Forward of the norm family.   y = norm(x + residual) with gate, weight and bias; kernels/norm.h has the formula.
// Writes (=) y, r, mean and inv_std.
// Bytes: x, residual and gate are read once, y and r written once. A unit is kept in registers between the passes over
// it (mean, squares, output); units that are too long for that are read again, from L2 where they still are.

#include "kernels/cuda/detail/norm.h"

namespace heddle::kernels::cuda {
namespace {

template <class T, int WIDTH, int TEAM, int VECTORS, int THREADS>
__global__ void __launch_bounds__(THREADS) norm_forward_in_registers(const __grid_constant__ NormForwardArgs args) {
  using A = accumulate_t<T>;
  constexpr int kTeams = THREADS / TEAM;
  __shared__ TeamSums<A, TEAM, kTeams, 1> shared;
  const NormOptions& options = args.options;
  const int team = threadIdx.x / TEAM;
  const int lane = threadIdx.x % TEAM;
  const int64_t groups = options.groups;
  const int64_t unit = int64_t{blockIdx.x} * kTeams + team;
  const bool active = unit < args.x.rows * groups;
  const int64_t row_index = groups == 1 ? unit : unit / groups;
  const int extent = static_cast<int>(args.x.cols / groups);
  const int64_t first = groups == 1 ? 0 : (unit - row_index * groups) * extent;
  int turn = 0;

  A p[VECTORS][WIDTH];
  const auto has = [&](int v) { return active && (lane + v * TEAM) * WIDTH < extent; };
  const auto column = [&](int v) { return first + (lane + v * TEAM) * WIDTH; };
  {
    Vec<T, WIDTH> loaded[VECTORS];
#pragma unroll
    for (int v = 0; v < VECTORS; ++v) {
      if (has(v)) loaded[v] = load<WIDTH, Reuse::stream>(row<const T>(args.x, row_index) + column(v));
    }
#pragma unroll
    for (int v = 0; v < VECTORS; ++v) {
#pragma unroll
      for (int i = 0; i < WIDTH; ++i) p[v][i] = has(v) ? widen(loaded[v][i]) : A(0);
    }
  }
  if (args.residual) {
    Vec<T, WIDTH> loaded[VECTORS];
#pragma unroll
    for (int v = 0; v < VECTORS; ++v) {
      if (has(v)) loaded[v] = load<WIDTH, Reuse::stream>(row<const T>(args.residual, row_index) + column(v));
    }
#pragma unroll
    for (int v = 0; v < VECTORS; ++v) {
      if (!has(v)) continue;
      Vec<T, WIDTH> r;
#pragma unroll
      for (int i = 0; i < WIDTH; ++i) {
        r[i] = narrow<T>(p[v][i] + widen(loaded[v][i]));
        p[v][i] = widen(r[i]);
      }
      if (args.r) store(row<T>(args.r, row_index) + column(v), r);
    }
  }
  const bool gate_before = args.gate && options.gate_position == GatePosition::pre;
  const bool gate_after = args.gate && options.gate_position == GatePosition::post;
  Vec<T, WIDTH> gate[VECTORS];
  if (args.gate) {
#pragma unroll
    for (int v = 0; v < VECTORS; ++v) {
      if (has(v)) gate[v] = load<WIDTH, Reuse::stream>(row<const T>(args.gate, row_index) + column(v));
    }
  }
  if (gate_before) {
#pragma unroll
    for (int v = 0; v < VECTORS; ++v) {
      if (!has(v)) continue;
#pragma unroll
      for (int i = 0; i < WIDTH; ++i) p[v][i] *= activated<T>(options.gate_act, widen(gate[v][i]));
    }
  }

  A mean = A(0);
  if (options.center) {
    A sum[1] = {A(0)};
#pragma unroll
    for (int v = 0; v < VECTORS; ++v) {
#pragma unroll
      for (int i = 0; i < WIDTH; ++i) sum[0] += p[v][i];
    }
    team_sum(sum, shared, team, turn);
    mean = sum[0] / static_cast<A>(extent);
  }
  A squares[1] = {A(0)};
#pragma unroll
  for (int v = 0; v < VECTORS; ++v) {
    if (!has(v)) continue;
#pragma unroll
    for (int i = 0; i < WIDTH; ++i) {
      p[v][i] -= mean;
      squares[0] += p[v][i] * p[v][i];
    }
  }
  team_sum(squares, shared, team, turn);
  const A inv_std = inverse_root(squares[0] / static_cast<A>(extent), options.eps);
  if (active && lane == 0) {
    if (args.inv_std) vector<A>(args.inv_std)[unit] = inv_std;
    if (args.mean) vector<A>(args.mean)[unit] = mean;
  }

  const A factor = inv_std * static_cast<A>(options.scale);
#pragma unroll
  for (int v = 0; v < VECTORS; ++v) {
    if (!has(v)) continue;
    Vec<A, WIDTH> y;
#pragma unroll
    for (int i = 0; i < WIDTH; ++i) y[i] = p[v][i] * factor;
    if (args.weight) {
      const auto weight = load_wide<WIDTH>(vector<const T>(args.weight) + column(v));
#pragma unroll
      for (int i = 0; i < WIDTH; ++i) y[i] *= weight[i];
    }
    if (args.bias) {
      const auto bias = load_wide<WIDTH>(vector<const T>(args.bias) + column(v));
#pragma unroll
      for (int i = 0; i < WIDTH; ++i) y[i] += bias[i];
    }
    if (gate_after) {
#pragma unroll
      for (int i = 0; i < WIDTH; ++i) y[i] *= activated<T>(options.gate_act, widen(gate[v][i]));
    }
    store_narrow(row<T>(args.y, row_index) + column(v), y);
  }
}

// Any length, any alignment: one element at a time, the unit read once for each pass.
template <class T, int TEAM>
__global__ void __launch_bounds__(TEAM) norm_forward_any(const __grid_constant__ NormForwardArgs args) {
  using A = accumulate_t<T>;
  __shared__ TeamSums<A, TEAM, 1, 1> shared;
  const NormOptions& options = args.options;
  const int64_t extent = args.x.cols / options.groups;
  const int64_t units = args.x.rows * options.groups;
  const bool gate_before = args.gate && options.gate_position == GatePosition::pre;
  const bool gate_after = args.gate && options.gate_position == GatePosition::post;
  int turn = 0;
  for (int64_t unit = blockIdx.x; unit < units; unit += gridDim.x) {
    const int64_t row_index = unit / options.groups;
    const int64_t first = (unit - row_index * options.groups) * extent;
    const auto input = [&](int64_t c) {
      A value = widen(row<const T>(args.x, row_index)[first + c]);
      if (args.residual) value = round_to<T>(value + widen(row<const T>(args.residual, row_index)[first + c]));
      return value;
    };
    const auto gate = [&](int64_t c) {
      return activated<T>(options.gate_act, widen(row<const T>(args.gate, row_index)[first + c]));
    };
    const auto gated = [&](int64_t c) { return gate_before ? input(c) * gate(c) : input(c); };

    A mean = A(0);
    if (options.center) {
      A sum[1] = {A(0)};
      for (int64_t c = threadIdx.x; c < extent; c += TEAM) sum[0] += gated(c);
      team_sum(sum, shared, 0, turn);
      mean = sum[0] / static_cast<A>(extent);
    }
    A squares[1] = {A(0)};
    for (int64_t c = threadIdx.x; c < extent; c += TEAM) {
      const A q = gated(c) - mean;
      squares[0] += q * q;
    }
    team_sum(squares, shared, 0, turn);
    const A inv_std = inverse_root(squares[0] / static_cast<A>(extent), options.eps);
    if (threadIdx.x == 0) {
      if (args.inv_std) vector<A>(args.inv_std)[unit] = inv_std;
      if (args.mean) vector<A>(args.mean)[unit] = mean;
    }
    const A factor = inv_std * static_cast<A>(options.scale);
    for (int64_t c = threadIdx.x; c < extent; c += TEAM) {
      A y = (gated(c) - mean) * factor;
      if (args.weight) y *= widen(vector<const T>(args.weight)[first + c]);
      if (args.bias) y += widen(vector<const T>(args.bias)[first + c]);
      if (gate_after) y *= gate(c);
      if (args.r) row<T>(args.r, row_index)[first + c] = narrow<T>(input(c));
      row<T>(args.y, row_index)[first + c] = narrow<T>(y);
    }
  }
}

template <class T>
void launch_forward(Context& context, const NormForwardArgs& args) {
  constexpr int kWidth = vector_width<T>;
  const int64_t extent = args.x.cols / args.options.groups;
  const int64_t units = args.x.rows * args.options.groups;
  const bool vectorized =
      groups_vectorize(args.x, args.options, kWidth) &&
      can_vectorize_all(kWidth, args.x, args.residual, args.gate, args.y, args.r, args.weight, args.bias);
  bool done = false;
  if constexpr (!std::is_same_v<T, double>) {
    if (vectorized) {
      done = choose_team<TeamShape<8, 1>, TeamShape<16, 1>, TeamShape<32, 1>, TeamShape<32, 2>, TeamShape<32, 4>,
                         TeamShape<32, 8>, TeamShape<128, 4>, TeamShape<256, 4>, TeamShape<256, 8>, TeamShape<512, 8>>(
          extent / kWidth, [&](auto shape) {
            constexpr int kTeam = decltype(shape)::kTeam;
            constexpr int kThreads = kTeam > 128 ? kTeam : 128;
            HEDDLE_LAUNCH(context, (norm_forward_in_registers<T, kWidth, kTeam, decltype(shape)::kVectors, kThreads>),
                          static_cast<unsigned>(ceil_div(units, kThreads / kTeam)), kThreads, 0, args);
          });
    }
  }
  if (done) return;
  if (extent <= 512) {
    HEDDLE_LAUNCH(context, (norm_forward_any<T, 32>), grid_for(context, units, 1, 64), 32, 0, args);
  } else {
    HEDDLE_LAUNCH(context, (norm_forward_any<T, 256>), grid_for(context, units, 1, 8), 256, 0, args);
  }
}

}  // namespace

void norm_forward(Context& context, const NormForwardArgs& args) {
  if (args.x.rows == 0) return;
  visit_floating(args.x.dtype, [&](auto type) { launch_forward<decltype(type)>(context, args); });
}

}  // namespace heddle::kernels::cuda
