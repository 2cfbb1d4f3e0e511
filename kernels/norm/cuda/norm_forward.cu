// Forward of the norm family.   y = norm(x + residual) with gate, weight and bias; kernels/norm.h has the formula.
// Writes (=) y, r, mean and inv_std.
// Bytes: x, residual and gate are read once, y and r written once. A unit is kept in registers between the passes over
// it (mean, squares, output); units that are too long for that are read again, from L2 where they still are.

#include "kernels/common/cuda/async.h"
#include "kernels/norm/cuda/norm.h"

namespace heddle::kernels::cuda {
namespace {

// Rows of a forward pass that 32 bits count.
struct ForwardRows {
  StridedRows x, residual, gate, y, r;

  explicit ForwardRows(const NormForwardArgs& args)
      : x(args.x), residual(args.residual), gate(args.gate), y(args.y), r(args.r) {}
  static bool fit(const NormForwardArgs& args) {
    return StridedRows::fit(args.options.groups, args.x, args.residual, args.gate, args.y, args.r);
  }
};

// A team of threads, how many vectors each of them holds, and the registers that leaves them: those of `kBlocks` blocks
// of kThreads on a multiprocessor.
template <int TEAM, int VECTORS, int BLOCKS, int THREADS = std::max(TEAM, 256)>
struct ForwardShape : TeamShape<TEAM, VECTORS> {
  static constexpr int kThreads = THREADS;
  static constexpr int kBlocks = BLOCKS;
};
// Whether weight and bias, where all units have the same, go through shared memory.
template <class Shape>
inline constexpr bool stages_parameters = Shape::kCapacity < 2048;

// A unit stays in registers as it was stored, and is widened again for each pass: that is half of the registers, and
// the more units wait for memory at once. All loads are issued before the first use; what lies beyond the end of a unit
// is read from its last vector and left out of the sums, so that no load waits for a condition. Weight and bias are
// copied into shared memory meanwhile, once for the teams of a block; those of the longest units are left to the
// first-level cache. FULL: units fill the team, and nothing asks for their end; layer_norm is 3 to 4 % faster so.
template <class T, class Shape, Gate GATE, bool RESIDUAL, bool FULL, Center CENTER>
__global__ void __launch_bounds__(Shape::kThreads, Shape::kBlocks)
    norm_forward_rows(const __grid_constant__ NormForwardArgs args, const __grid_constant__ ForwardRows rows,
                      const __grid_constant__ NormNumbers<accumulate_t<T>> numbers) {
  using A = accumulate_t<T>;
  constexpr int WIDTH = vector_width<T>, TEAM = Shape::kTeam, VECTORS = Shape::kVectors;
  constexpr int kTeams = Shape::kThreads / TEAM;
  const bool center = CENTER == Center::ask ? args.options.center : CENTER == Center::yes;
  extern __shared__ uint4 parameters[];  // weight, then bias
  __shared__ TeamSums<A, TEAM, kTeams, 2> shared;
  const int team = team_of_thread<TEAM, kTeams>();
  const int lane = threadIdx.x % TEAM;
  const int own = static_cast<int>(blockIdx.x) * kTeams + team, units = static_cast<int>(numbers.units);
  const bool active = own < units;
  const int unit = active ? own : units - 1;
  const int groups = static_cast<int>(numbers.groups);
  const int row_index = groups == 1 ? unit : unit / groups;
  const int extent = static_cast<int>(numbers.extent), vectors = extent / WIDTH;
  const int first = groups == 1 ? 0 : (unit - row_index * groups) * extent;
  int turn = 0;

  const auto has = [&](int v) { return FULL || lane + v * TEAM < vectors; };
  const auto offset = [&](int v) { return (FULL ? lane + v * TEAM : min(lane + v * TEAM, vectors - 1)) * WIDTH; };
  const auto unit_of = [&](const StridedRows& view) {
    return reinterpret_cast<T*>(view.at(row_index, first * static_cast<int>(sizeof(T))));
  };
  const auto load_all = [&](const StridedRows& view, Vec<T, WIDTH>(&to)[VECTORS]) {
    const T* from = unit_of(view);
#pragma unroll
    for (int v = 0; v < VECTORS; ++v) to[v] = load_stream<WIDTH>(from + offset(v));
  };

  Vec<T, WIDTH> r[VECTORS], gate[GATE != Gate::none ? VECTORS : 1], residual[RESIDUAL ? VECTORS : 1];
  load_all(rows.x, r);
  if constexpr (GATE != Gate::none) load_all(rows.gate, gate);
  if constexpr (RESIDUAL) load_all(rows.residual, residual);
  const bool is_staged = stages_parameters<Shape> && groups == 1 && (args.weight || args.bias);
  if (is_staged) {
    const auto stage = [&](const VectorView& view, uint32_t to) {
      if (!view) return;
      for (int at = threadIdx.x; at < vectors; at += Shape::kThreads) {
        copy_async(to + at * 16, vector<const T>(view) + at * WIDTH);
      }
    };
    stage(args.weight, shared_address(parameters));
    stage(args.bias, shared_address(parameters + vectors));
    __pipeline_commit();
  }
  if constexpr (RESIDUAL) {
    T* to = unit_of(rows.r);
#pragma unroll
    for (int v = 0; v < VECTORS; ++v) {
      Vec<A, WIDTH> sum = widen_all(r[v]);
      const Vec<A, WIDTH> more = widen_all(residual[v]);
#pragma unroll
      for (int i = 0; i < WIDTH; ++i) sum[i] += more[i];
      r[v] = narrow_all<T>(sum);
      if (rows.r.data && active && has(v)) store(to + offset(v), r[v]);
    }
  }
  Vec<A, WIDTH> act[GATE != Gate::none ? VECTORS : 1];  // of the gate; before: times r
  if constexpr (GATE != Gate::none) {
#pragma unroll
    for (int v = 0; v < VECTORS; ++v) {
      act[v] = activate_all(args.options.gate_act, gate[v]);
      if constexpr (GATE == Gate::pre) {
        const Vec<A, WIDTH> wide = widen_all(r[v]);
#pragma unroll
        for (int i = 0; i < WIDTH; ++i) act[v][i] *= wide[i];
      }
    }
  }
  const auto forget_wide = [&] {
#pragma unroll
    for (int v = 0; v < VECTORS; ++v) hide_from_compiler(r[v]);
  };
  const auto p_of = [&](int v) {
    if constexpr (GATE == Gate::pre) {
      return act[v];
    } else {
      return widen_all(r[v]);
    }
  };
  // Adds up kCount numbers of each element, as of(p, parts) adds them to its parts.
  const auto sum_over_unit = [&](auto& sums, const auto& of) {
    constexpr int kCount = sizeof(sums) / sizeof(A);
#pragma unroll
    for (int v = 0; v < VECTORS; ++v) {
      const Vec<A, WIDTH> p = p_of(v);
      A parts[kCount] = {};
#pragma unroll
      for (int i = 0; i < WIDTH; ++i) of(p[i], parts);
      if (has(v)) {
#pragma unroll
        for (int k = 0; k < kCount; ++k) sums[k] += parts[k];
      }
    }
    team_sum(sums, shared, team, turn);
#pragma unroll
    for (int k = 0; k < kCount; ++k) sums[k] *= numbers.per_extent;
    forget_wide();
  };

  // One pass is enough for the variance while the mean is not larger than the deviations. Else they are taken from the
  // mean as it was rounded, and their own mean as `shift`: what rounding left.
  A mean = A(0), shift = A(0), variance;
  if (center) {
    A moments[2] = {};
    sum_over_unit(moments, [](A p, A(&parts)[2]) {
      parts[0] += p;
      parts[1] += p * p;
    });
    mean = moments[0];
    variance = moments[1] - mean * mean;
    const bool again = !(mean * mean <= variance);  // the same for the whole team
    if (TEAM < 32 ? __any_sync(0xffffffffu, again) : again) {
      A deviations[2] = {};
      sum_over_unit(deviations, [mean](A p, A(&parts)[2]) {
        const A q = p - mean;
        parts[0] += q;
        parts[1] += q * q;
      });
      if (again) {
        shift = deviations[0];
        variance = max(A(0), deviations[1] - shift * shift);
      }
    }
  } else {
    A squares[1] = {};
    sum_over_unit(squares, [](A p, A(&parts)[1]) { parts[0] += p * p; });
    variance = squares[0];
  }
  if (is_staged) {
    __pipeline_wait_prior(0);
    __syncthreads();
  }
  const A inv_std = inverse_root(variance + numbers.eps);
  if (!active) return;
  if (lane == 0) {
    if (args.inv_std) vector<A>(args.inv_std)[unit] = inv_std;
    if (args.mean) vector<A>(args.mean)[unit] = mean + shift;
  }

  const A factor = inv_std * numbers.scale;
  T* const to = unit_of(rows.y);
  const auto write_y = [&](const auto& normalized) {
#pragma unroll
    for (int v = 0; v < VECTORS; ++v) {
      if (!has(v)) continue;
      Vec<A, WIDTH> y = p_of(v);
#pragma unroll
      for (int i = 0; i < WIDTH; ++i) y[i] = normalized(y[i]);
      const auto parameter = [&](const VectorView& view, const uint4* staged) {
        if (!is_staged) return load_wide<WIDTH>(vector<const T>(view) + first + offset(v));
        return widen_all(*reinterpret_cast<const Vec<T, WIDTH>*>(staged + lane + v * TEAM));
      };
      if (args.weight) {
        const Vec<A, WIDTH> factors = parameter(args.weight, parameters);
#pragma unroll
        for (int i = 0; i < WIDTH; ++i) y[i] *= factors[i];
      }
      if (args.bias) {
        const Vec<A, WIDTH> more = parameter(args.bias, parameters + vectors);
#pragma unroll
        for (int i = 0; i < WIDTH; ++i) y[i] += more[i];
      }
      if constexpr (GATE == Gate::post) {
#pragma unroll
        for (int i = 0; i < WIDTH; ++i) y[i] *= act[v][i];
      }
      store_narrow(to + offset(v), y);
    }
  };
  if (center) {
    write_y([&, less = shift * factor](A value) { return (value - mean) * factor - less; });
  } else {
    write_y([&](A value) { return value * factor; });
  }
}

// Any length, any alignment: one element at a time, the unit read once for each pass.
template <class T, int TEAM>
__global__ void __launch_bounds__(TEAM, 1)
    norm_forward_any(const __grid_constant__ NormForwardArgs args,
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

template <class T, Gate GATE, bool RESIDUAL, class Shape>
void launch_rows(Context& context, const NormForwardArgs& args, const NormNumbers<accumulate_t<T>>& numbers, Shape) {
  const int64_t blocks = ceil_div(numbers.units, int64_t{Shape::kThreads / Shape::kTeam});
  const bool is_staged = stages_parameters<Shape> && numbers.groups == 1 && (args.weight || args.bias);
  const int64_t shared_bytes = is_staged ? 2 * numbers.extent * static_cast<int64_t>(sizeof(T)) : 0;
  const auto start = [&](auto full, auto center) {
    HEDDLE_LAUNCH(context,
                  (norm_forward_rows<T, Shape, GATE, RESIDUAL, decltype(full)::value, decltype(center)::value>),
                  static_cast<unsigned>(blocks), Shape::kThreads, static_cast<size_t>(shared_bytes), args,
                  ForwardRows(args), numbers);
  };
  constexpr std::integral_constant<Center, Center::ask> kAsk{};
  if constexpr (Shape::kTeam >= 64) {  // below, units that do not fill their team are not worth kernels of their own
    if (numbers.extent == int64_t{Shape::kCapacity} * vector_width<T>) {
      if constexpr (GATE == Gate::none && !RESIDUAL) {
        if (args.options.center) return start(std::true_type{}, std::integral_constant<Center, Center::yes>{});
      }
      return start(std::true_type{}, kAsk);
    }
  }
  start(std::false_type{}, kAsk);
}

// Calls launch(shape), measured on an H200 from 2048 features of 16 bits on; false when the unit is too long for any.
template <Gate GATE, bool RESIDUAL, class Launch>
bool choose_forward_shape(int64_t vectors, const Launch& launch) {
  if constexpr (GATE == Gate::post) {  // the gate waits in registers, wide
    return choose_team<ForwardShape<8, 1, 4>, ForwardShape<16, 1, 4>, ForwardShape<32, 1, 4>, ForwardShape<32, 2, 4>,
                       ForwardShape<64, 2, 4>, ForwardShape<128, 2, 4>, ForwardShape<256, 2, 4>,
                       ForwardShape<256, 4, 2>, ForwardShape<512, 4, 1>>(vectors, launch);
  } else if constexpr (GATE == Gate::pre) {
    return choose_team<ForwardShape<8, 1, 4>, ForwardShape<16, 1, 4>, ForwardShape<32, 1, 4>, ForwardShape<32, 2, 4>,
                       ForwardShape<32, 4, 3>, ForwardShape<64, 4, 3>, ForwardShape<128, 4, 3>, ForwardShape<256, 4, 3>,
                       ForwardShape<512, 4, 1>>(vectors, launch);
  } else if constexpr (RESIDUAL) {
    return choose_team<ForwardShape<8, 1, 4>, ForwardShape<16, 1, 4>, ForwardShape<32, 1, 4>, ForwardShape<32, 2, 4>,
                       ForwardShape<64, 2, 4>, ForwardShape<128, 2, 4>, ForwardShape<256, 2, 4>,
                       ForwardShape<512, 2, 2>, ForwardShape<512, 3, 2>, ForwardShape<512, 4, 2>,
                       ForwardShape<512, 8, 1>>(vectors, launch);
  } else {
    return choose_team<ForwardShape<8, 1, 4>, ForwardShape<16, 1, 4>, ForwardShape<32, 1, 4>, ForwardShape<32, 2, 4>,
                       ForwardShape<32, 4, 4>, ForwardShape<64, 4, 4>, ForwardShape<128, 4, 4>, ForwardShape<256, 4, 4>,
                       ForwardShape<256, 6, 3>, ForwardShape<512, 4, 2>, ForwardShape<512, 8, 1>>(vectors, launch);
  }
}

template <class T, Gate GATE>
bool launch_rows(Context& context, const NormForwardArgs& args, const NormNumbers<accumulate_t<T>>& numbers) {
  const auto choose = [&](auto residual) {
    constexpr bool kResidual = decltype(residual)::value;
    return choose_forward_shape<GATE, kResidual>(numbers.extent / vector_width<T>, [&](auto shape) {
      launch_rows<T, GATE, kResidual>(context, args, numbers, shape);
    });
  };
  return args.residual ? choose(std::true_type{}) : choose(std::false_type{});
}

template <class T>
void launch_forward(Context& context, const NormForwardArgs& args) {
  const NormNumbers<accumulate_t<T>> numbers(args.x, args.options);
  if constexpr (!std::is_same_v<T, double>) {
    constexpr int kWidth = vector_width<T>;
    if (ForwardRows::fit(args) && groups_vectorize(args.x, args.options, kWidth) &&
        can_vectorize_all(kWidth, args.x, args.residual, args.gate, args.y, args.r, args.weight, args.bias)) {
      bool done = false;
      switch (gate_of(args.gate, args.options)) {
        case Gate::none:
          done = launch_rows<T, Gate::none>(context, args, numbers);
          break;
        case Gate::pre:
          done = launch_rows<T, Gate::pre>(context, args, numbers);
          break;
        case Gate::post:
          done = launch_rows<T, Gate::post>(context, args, numbers);
          break;
      }
      if (done) return;
    }
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
