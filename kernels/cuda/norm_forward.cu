// Forward of the norm family.   y = norm(x + residual) with gate, weight and bias; kernels/norm.h has the formula.
// Writes (=) y, r, mean and inv_std.
// Bytes: x, residual and gate are read once, y and r written once. A unit is kept in registers between the passes over
// it (mean, squares, output); units that are too long for that are read again, from L2 where they still are.

#include "kernels/cuda/detail/norm.h"

namespace heddle::kernels::cuda {
namespace {

// A unit stays in registers as it was stored, and is widened again for each pass: that is half of the registers, and
// the more units wait for memory at once. All loads are issued before the first use; what lies beyond the end of a unit
// is read from its last vector and left out of the sums, so that no load waits for a condition.
template <class T, int WIDTH, int TEAM, int VECTORS, Gate GATE, bool RESIDUAL>
__global__ void __launch_bounds__(norm_block_threads(TEAM))
    norm_forward_rows(const __grid_constant__ NormForwardArgs args,
                      const __grid_constant__ NormNumbers<accumulate_t<T>> numbers) {
  using A = accumulate_t<T>;
  constexpr int kTeams = norm_block_threads(TEAM) / TEAM;
  __shared__ TeamSums<A, TEAM, kTeams, 2> shared;
  const int team = threadIdx.x / TEAM;
  const int lane = threadIdx.x % TEAM;
  const int64_t own = int64_t{blockIdx.x} * kTeams + team;
  const bool active = own < numbers.units;
  const int64_t unit = active ? own : numbers.units - 1;
  const int64_t row_index = numbers.groups == 1 ? unit : unit / numbers.groups;
  const int vectors = static_cast<int>(numbers.extent) / WIDTH;
  const int64_t first = numbers.groups == 1 ? 0 : (unit - row_index * numbers.groups) * numbers.extent;
  int turn = 0;

  const auto has = [&](int v) { return lane + v * TEAM < vectors; };
  const auto offset = [&](int v) { return min(lane + v * TEAM, vectors - 1) * WIDTH; };
  const auto load_all = [&](const RowsView& view, Vec<T, WIDTH>(&to)[VECTORS]) {
    const T* from = row<const T>(view, row_index) + first;
#pragma unroll
    for (int v = 0; v < VECTORS; ++v) to[v] = load<WIDTH>(from + offset(v));
  };

  Vec<T, WIDTH> r[VECTORS], gate[GATE != Gate::none ? VECTORS : 1];
  load_all(args.x, r);
  if constexpr (GATE != Gate::none) load_all(args.gate, gate);
  if constexpr (RESIDUAL) {
    Vec<T, WIDTH> residual[VECTORS];
    load_all(args.residual, residual);
#pragma unroll
    for (int v = 0; v < VECTORS; ++v) {
      Vec<A, WIDTH> sum = widen_all(r[v]);
      const Vec<A, WIDTH> more = widen_all(residual[v]);
#pragma unroll
      for (int i = 0; i < WIDTH; ++i) sum[i] += more[i];
      r[v] = narrow_all<T>(sum);
      if (args.r && active && has(v)) store(row<T>(args.r, row_index) + first + offset(v), r[v]);
    }
  }
  Vec<A, WIDTH> gated[GATE == Gate::pre ? VECTORS : 1];
  if constexpr (GATE == Gate::pre) {
#pragma unroll
    for (int v = 0; v < VECTORS; ++v) {
      gated[v] = activate_all(args.options.gate_act, gate[v]);
      const Vec<A, WIDTH> wide = widen_all(r[v]);
#pragma unroll
      for (int i = 0; i < WIDTH; ++i) gated[v][i] *= wide[i];
    }
  }
  const auto forget_wide = [&] {
    if constexpr (VECTORS > 4) {  // there are registers for four
#pragma unroll
      for (int v = 0; v < VECTORS; ++v) forget(r[v]);
    }
  };
  const auto p_of = [&](int v) {
    if constexpr (GATE == Gate::pre) {
      return gated[v];
    } else {
      return widen_all(r[v]);
    }
  };

  // Of the deviations from the mean as it was rounded the mean is taken once more, as `shift`: what rounding left.
  A mean = A(0), shift = A(0), variance;
  if (args.options.center) {
    A sum[1] = {A(0)};
#pragma unroll
    for (int v = 0; v < VECTORS; ++v) {
      const Vec<A, WIDTH> p = p_of(v);
      A part = A(0);
#pragma unroll
      for (int i = 0; i < WIDTH; ++i) part += p[i];
      if (has(v)) sum[0] += part;
    }
    team_sum(sum, shared, team, turn);
    mean = sum[0] * numbers.per_extent;
    forget_wide();
    A moments[2] = {A(0), A(0)};
#pragma unroll
    for (int v = 0; v < VECTORS; ++v) {
      const Vec<A, WIDTH> p = p_of(v);
      A part = A(0), squares = A(0);
#pragma unroll
      for (int i = 0; i < WIDTH; ++i) {
        const A q = p[i] - mean;
        part += q;
        squares += q * q;
      }
      if (has(v)) {
        moments[0] += part;
        moments[1] += squares;
      }
    }
    team_sum(moments, shared, team, turn);
    shift = moments[0] * numbers.per_extent;
    variance = max(A(0), moments[1] * numbers.per_extent - shift * shift);
  } else {
    A squares[1] = {A(0)};
#pragma unroll
    for (int v = 0; v < VECTORS; ++v) {
      const Vec<A, WIDTH> p = p_of(v);
      A part = A(0);
#pragma unroll
      for (int i = 0; i < WIDTH; ++i) part += p[i] * p[i];
      if (has(v)) squares[0] += part;
    }
    team_sum(squares, shared, team, turn);
    variance = squares[0] * numbers.per_extent;
  }
  const A inv_std = inverse_root(variance + numbers.eps);
  forget_wide();
  if (!active) return;
  if (lane == 0) {
    if (args.inv_std) vector<A>(args.inv_std)[unit] = inv_std;
    if (args.mean) vector<A>(args.mean)[unit] = mean + shift;
  }

  const A factor = inv_std * numbers.scale;
  const auto write_y = [&](const auto& normalized) {
#pragma unroll
    for (int v = 0; v < VECTORS; ++v) {
      if (!has(v)) continue;
      Vec<A, WIDTH> y = p_of(v);
#pragma unroll
      for (int i = 0; i < WIDTH; ++i) y[i] = normalized(y[i]);
      const auto parameter = [&](const VectorView& view) {
        return load_wide<WIDTH>(vector<const T>(view) + first + offset(v));
      };
      if (args.weight && args.bias) {
        const Vec<A, WIDTH> factors = parameter(args.weight), more = parameter(args.bias);
#pragma unroll
        for (int i = 0; i < WIDTH; ++i) y[i] = y[i] * factors[i] + more[i];
      } else if (args.weight) {
        const Vec<A, WIDTH> factors = parameter(args.weight);
#pragma unroll
        for (int i = 0; i < WIDTH; ++i) y[i] *= factors[i];
      } else if (args.bias) {
        const Vec<A, WIDTH> more = parameter(args.bias);
#pragma unroll
        for (int i = 0; i < WIDTH; ++i) y[i] += more[i];
      }
      if constexpr (GATE == Gate::post) {
        const auto value = activate_all(args.options.gate_act, gate[v]);
#pragma unroll
        for (int i = 0; i < WIDTH; ++i) y[i] *= value[i];
      }
      store_narrow(row<T>(args.y, row_index) + first + offset(v), y);
    }
  };
  if (args.options.center) {
    write_y([&, less = shift * factor](A value) { return (value - mean) * factor - less; });
  } else {
    write_y([&](A value) { return value * factor; });
  }
}

// Any length, any alignment: one element at a time, the unit read once for each pass.
template <class T, int TEAM>
__global__ void __launch_bounds__(TEAM) norm_forward_any(const __grid_constant__ NormForwardArgs args,
                                                         const __grid_constant__ NormNumbers<accumulate_t<T>> numbers) {
  using A = accumulate_t<T>;
  __shared__ TeamSums<A, TEAM, 1, 2> shared;
  const NormOptions& options = args.options;
  const int64_t extent = numbers.extent;
  const bool gate_before = args.gate && options.gate_position == GatePosition::pre;
  const bool gate_after = args.gate && options.gate_position == GatePosition::post;
  int turn = 0;
  for (int64_t unit = blockIdx.x; unit < numbers.units; unit += gridDim.x) {
    const int64_t row_index = unit / numbers.groups;
    const int64_t first = (unit - row_index * numbers.groups) * extent;
    const auto input = [&](int64_t c) {
      A value = widen(row<const T>(args.x, row_index)[first + c]);
      if (args.residual) value = round_to<T>(value + widen(row<const T>(args.residual, row_index)[first + c]));
      return value;
    };
    const auto gate = [&](int64_t c) {
      return activate_all(options.gate_act, Vec<T, 1>{row<const T>(args.gate, row_index)[first + c]})[0];
    };
    const auto gated = [&](int64_t c) { return gate_before ? input(c) * gate(c) : input(c); };

    A mean = A(0);
    if (options.center) {
      A sum[1] = {A(0)};
      for (int64_t c = threadIdx.x; c < extent; c += TEAM) sum[0] += gated(c);
      team_sum(sum, shared, 0, turn);
      mean = sum[0] * numbers.per_extent;
    }
    A moments[2] = {A(0), A(0)};
    for (int64_t c = threadIdx.x; c < extent; c += TEAM) {
      const A q = gated(c) - mean;
      moments[0] += q;
      moments[1] += q * q;
    }
    team_sum(moments, shared, 0, turn);
    const A shift = options.center ? moments[0] * numbers.per_extent : A(0);
    const A variance = max(A(0), moments[1] * numbers.per_extent - shift * shift);
    const A inv_std = inverse_root(variance + numbers.eps);
    if (threadIdx.x == 0) {
      if (args.inv_std) vector<A>(args.inv_std)[unit] = inv_std;
      if (args.mean) vector<A>(args.mean)[unit] = mean + shift;
    }
    const A factor = inv_std * numbers.scale;
    const A less = shift * factor;
    for (int64_t c = threadIdx.x; c < extent; c += TEAM) {
      A y = (gated(c) - mean) * factor - less;
      if (args.weight) y *= widen(vector<const T>(args.weight)[first + c]);
      if (args.bias) y += widen(vector<const T>(args.bias)[first + c]);
      if (gate_after) y *= gate(c);
      if (args.r) row<T>(args.r, row_index)[first + c] = narrow<T>(input(c));
      row<T>(args.y, row_index)[first + c] = narrow<T>(y);
    }
  }
}

template <class T, Gate GATE, class Shape>
void launch_rows(Context& context, const NormForwardArgs& args, Shape) {
  constexpr int kThreads = norm_block_threads(Shape::kTeam);
  const NormNumbers<accumulate_t<T>> numbers(args.x, args.options);
  const auto kernel = args.residual ? norm_forward_rows<T, vector_width<T>, Shape::kTeam, Shape::kVectors, GATE, true>
                                    : norm_forward_rows<T, vector_width<T>, Shape::kTeam, Shape::kVectors, GATE, false>;
  HEDDLE_LAUNCH(context, kernel, static_cast<unsigned>(ceil_div(numbers.units, kThreads / Shape::kTeam)), kThreads, 0,
                args, numbers);
}

template <class T>
void launch_forward(Context& context, const NormForwardArgs& args) {
  using A = accumulate_t<T>;
  constexpr int kWidth = vector_width<T>;
  const NormNumbers<A> numbers(args.x, args.options);
  if constexpr (!std::is_same_v<T, double>) {
    const bool vectorized =
        groups_vectorize(args.x, args.options, kWidth) &&
        can_vectorize_all(kWidth, args.x, args.residual, args.gate, args.y, args.r, args.weight, args.bias);
    const int64_t vectors = vectorized ? numbers.extent / kWidth : INT64_MAX;
    // A gate takes as many registers as the unit.
    const auto launch_gated = [&](auto gate) {
      return choose_team<TeamShape<8, 1>, TeamShape<16, 1>, TeamShape<32, 1>, TeamShape<32, 2>, TeamShape<32, 4>,
                         TeamShape<64, 4>, TeamShape<128, 4>, TeamShape<256, 4>, TeamShape<512, 4>>(
          vectors, [&](auto shape) { launch_rows<T, decltype(gate)::value>(context, args, shape); });
    };
    bool done = false;
    switch (gate_of(args.gate, args.options)) {
      case Gate::none:
        done = choose_team<TeamShape<8, 1>, TeamShape<16, 1>, TeamShape<32, 1>, TeamShape<32, 2>, TeamShape<32, 4>,
                           TeamShape<64, 4>, TeamShape<128, 4>, TeamShape<256, 4>, TeamShape<256, 6>, TeamShape<256, 8>,
                           TeamShape<512, 8>>(vectors,
                                              [&](auto shape) { launch_rows<T, Gate::none>(context, args, shape); });
        break;
      case Gate::pre:
        done = launch_gated(std::integral_constant<Gate, Gate::pre>{});
        break;
      case Gate::post:
        done = launch_gated(std::integral_constant<Gate, Gate::post>{});
        break;
    }
    if (done) return;
  }
  if (numbers.extent <= 512) {
    HEDDLE_LAUNCH(context, (norm_forward_any<T, 32>), grid_for(context, numbers.units, 1, 64), 32, 0, args, numbers);
  } else {
    HEDDLE_LAUNCH(context, (norm_forward_any<T, 256>), grid_for(context, numbers.units, 1, 8), 256, 0, args, numbers);
  }
}

}  // namespace

void norm_forward(Context& context, const NormForwardArgs& args) {
  if (args.x.rows == 0) return;
  visit_floating(args.x.dtype, [&](auto type) { launch_forward<decltype(type)>(context, args); });
}

}  // namespace heddle::kernels::cuda
