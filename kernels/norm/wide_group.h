// The norm of one group of features in double, for groups whose numbers are too large or too small for the arithmetic
// of the ordinary kernels (ordinary_range.h). Both devices compile it. double itself is scaled by powers of two. The
// formulas are in norm.h; infinity and NaN come out as they do from the unfused formula.
//
// A Team is what computes: the threads of a GPU that work on one segment, or one thread of the CPU. It gives
//   load(element), narrow<T>(number)          conversions from a stored element and to the storage type
//   activate(act, gate)                       value and derivative of an activation, in double
//   sum<N>(count, value)                      the sums of N numbers value(c) over c < count, the same in all threads
//   maximum(count, value)                     the largest value(c); NaN is ignored
//   for_each(count, visit)                    calls visit(c) once for each c, always by the same thread
//   inverse(count), inverse_root(number)      1 / count, 1 / sqrt(number)
//   is_leader()                               true in one thread
#pragma once

#include <cmath>
#include <cstdint>
#include <type_traits>

#include "kernels/common/types.h"
#include "kernels/norm/norm.h"

#if defined(__CUDACC__)
#define HEDDLE_TEAM_INLINE __device__ inline
#else
#define HEDDLE_TEAM_INLINE inline
#endif

namespace heddle::kernels {

template <int N>
struct Numbers {
  double values[N];
};

// A scale, 2^exponent. That of other types than double is 1: squares of products of two floats fit double.
template <class T>
struct WideScale {
  static constexpr bool kIsOne = !std::is_same_v<T, double>;
  int exponent = 0;
  double inverse = 1.0;  // 2^-exponent

  // The scale of numbers up to largest() in magnitude: divided by it they are at most about 1.
  template <class Largest>
  HEDDLE_TEAM_INLINE static WideScale of(const Largest& largest) {
    WideScale scale;
    if constexpr (!kIsOne) {
      const double value = largest();
      if (!(value > 0.0 && value <= 0x1.fffffffffffffp1023)) return scale;
      const int exponent = std::ilogb(value);
      scale.exponent = exponent < -1000 ? -1000 : exponent > 1000 ? 1000 : exponent;
      scale.inverse = std::ldexp(1.0, -scale.exponent);
    }
    return scale;
  }
  HEDDLE_TEAM_INLINE double divide(double value) const {
    if constexpr (kIsOne) return value;
    return value * inverse;
  }
  // value * this scale / other
  HEDDLE_TEAM_INLINE double multiply(double value, const WideScale& other = {}) const {
    if constexpr (kIsOne) return value;
    return std::ldexp(value, exponent - other.exponent);
  }
};

// Statistics of p / scale. The mean of what the rounded mean leaves is `shift`.
template <class T>
struct WideStatistics {
  WideScale<T> scale;
  double mean = 0.0, shift = 0.0, inv_std = 0.0;
  HEDDLE_TEAM_INLINE double normalized(double p) const { return ((scale.divide(p) - mean) - shift) * inv_std; }
};

// Which group of features is meant: those of row `row` from `first` on.
struct GroupPlace {
  int64_t row, first, extent;
  int64_t statistics;  // its index in mean and inv_std
};

// One element of r and what its gate makes of it: factors of 1 where there is none.
struct WideElement {
  double r, p;   // p = r * act(gate) if the gate is pre
  double outer;  // act(gate) if the gate is post
  double act, derivative;
};

// The elements of one group; c counts its features. T is the storage type of the rows, P that of weight and bias.
template <class T, class P, class Team, class Args>
struct WideGroup {
  const Args& args;
  const Team& team;
  GroupPlace place;

  HEDDLE_TEAM_INLINE double at(const RowsView& view, int64_t c) const {
    return team.load(row<const T>(view, place.row)[place.first + c]);
  }
  HEDDLE_TEAM_INLINE double at(const VectorView& view, int64_t c, double otherwise) const {
    return view ? team.load(vector<const P>(view)[place.first + c]) : otherwise;
  }
  HEDDLE_TEAM_INLINE double r(int64_t c) const {
    if (!args.residual) return at(args.x, c);
    return team.load(team.template narrow<T>(at(args.x, c) + at(args.residual, c)));
  }
  HEDDLE_TEAM_INLINE WideElement element(int64_t c) const {
    const double r_of_c = r(c);
    if (!args.gate) return {r_of_c, r_of_c, 1.0, 1.0, 0.0};
    const auto act = team.activate(args.options.gate_act, row<const T>(args.gate, place.row)[place.first + c]);
    const bool pre = args.options.gate_position == GatePosition::pre;
    return {r_of_c, pre ? r_of_c * act.value : r_of_c, pre ? 1.0 : act.value, act.value, act.derivative};
  }

  HEDDLE_TEAM_INLINE WideStatistics<T> statistics() const {
    const NormOptions& options = args.options;
    WideStatistics<T> result;
    // The mean of equal numbers is that number; rounded otherwise it would miss it by far more than the root of a small
    // eps. Their scale is that of eps. All threads of a warp take part in all sums, also where numbers are equal.
    const double first = element(0).p;
    bool is_constant = false;
    if (options.center) {
      const double others = team.maximum(place.extent, [&](int64_t c) { return element(c).p == first ? 0.0 : 1.0; });
      is_constant = others == 0.0 && std::abs(first) <= 0x1.fffffffffffffp1023;
    }
    result.scale = WideScale<T>::of([&] {
      double largest = team.maximum(place.extent, [&](int64_t c) { return std::abs(element(c).p); });
      if (is_constant) largest *= 0x1p-1022;  // p / scale is still finite
      const double least = std::sqrt(options.eps);
      return largest < least ? least : largest;
    });
    const auto scaled_p = [&](int64_t c) { return result.scale.divide(element(c).p); };
    const double share = team.inverse(place.extent);
    if (options.center) {
      result.mean =
          share * team.template sum<1>(place.extent, [&](int64_t c) { return Numbers<1>{scaled_p(c)}; }).values[0];
      if (is_constant) result.mean = result.scale.divide(first);
    }
    const auto moments = team.template sum<2>(place.extent, [&](int64_t c) {
      const double q = scaled_p(c) - result.mean;
      return Numbers<2>{q, q * q};
    });
    if (options.center) result.shift = moments.values[0] * share;
    const double variance = moments.values[1] * share - result.shift * result.shift;
    const double eps = result.scale.divide(result.scale.divide(options.eps));
    result.inv_std = team.inverse_root((variance < 0.0 ? 0.0 : variance) + eps);
    return result;
  }
};

// Writes (=) y, r and the statistics of one group.
template <class T, class P, class Team>
HEDDLE_TEAM_INLINE void normalize_wide(const NormForwardArgs& args, const Team& team, const GroupPlace& place) {
  using A = accumulate_t<T>;
  const WideGroup<T, P, Team, NormForwardArgs> wide{args, team, place};
  const WideStatistics<T> statistics = wide.statistics();
  if (team.is_leader()) {
    const double mean = statistics.scale.multiply(statistics.mean + statistics.shift);
    const double inv_std = statistics.scale.divide(statistics.inv_std);
    if (args.mean) vector<A>(args.mean)[place.statistics] = static_cast<A>(mean);
    if (args.inv_std) vector<A>(args.inv_std)[place.statistics] = static_cast<A>(inv_std);
  }
  team.for_each(place.extent, [&](int64_t c) {
    const WideElement e = wide.element(c);
    double y = args.options.scale * statistics.normalized(e.p);
    y = (y * wide.at(args.weight, c, 1.0) + wide.at(args.bias, c, 0.0)) * e.outer;
    if (args.r) row<T>(args.r, place.row)[place.first + c] = team.template narrow<T>(e.r);
    row<T>(args.y, place.row)[place.first + c] = team.template narrow<T>(y);
  });
}

// Writes (=) or adds (+=) d_x, d_residual and d_gate of one group, and calls add_parameters(feature, d_weight, d_bias)
// with the terms of each feature. The statistics are computed again, since the saved ones may have left their range.
template <class T, class P, class Team, class AddParameters>
HEDDLE_TEAM_INLINE void differentiate_wide(const NormBackwardArgs& args, const Team& team, const GroupPlace& place,
                                           const AddParameters& add_parameters) {
  const WideGroup<T, P, Team, NormBackwardArgs> wide{args, team, place};
  const WideStatistics<T> statistics = wide.statistics();
  const NormOptions& options = args.options;
  const auto g = [&](int64_t c, double outer) { return wide.at(args.d_y, c) * outer * wide.at(args.weight, c, 1.0); };
  const auto scale = WideScale<T>::of(
      [&] { return team.maximum(place.extent, [&](int64_t c) { return std::abs(g(c, wide.element(c).outer)); }); });
  const auto sums = team.template sum<2>(place.extent, [&](int64_t c) {
    const WideElement e = wide.element(c);
    const double scaled = scale.divide(g(c, e.outer));
    return Numbers<2>{scaled * statistics.normalized(e.p), scaled};
  });
  const double share = team.inverse(place.extent);
  const double along = sums.values[0] * share, constant = options.center ? sums.values[1] * share : 0.0;
  const auto write = [&](const RowsDestination& to, int64_t c, double value) {
    if (!to) return;
    if (to.mode == GradientMode::accumulate) value += wide.at(to.view, c);
    row<T>(to.view, place.row)[place.first + c] = team.template narrow<T>(value);
  };
  team.for_each(place.extent, [&](int64_t c) {
    const WideElement e = wide.element(c);
    const double n = options.scale * statistics.normalized(e.p), upstream = wide.at(args.d_y, c) * e.outer;
    add_parameters(place.first + c, upstream * n, upstream);
    // d_p in units of scale / statistics.scale
    double d_p = statistics.inv_std * (options.scale * (scale.divide(g(c, e.outer)) - constant) - n * along);
    if (args.gate) {
      const bool pre = options.gate_position == GatePosition::pre;
      const double z = n * wide.at(args.weight, c, 1.0) + wide.at(args.bias, c, 0.0);
      const double d_act = pre ? scale.multiply(d_p * statistics.scale.divide(e.r)) : wide.at(args.d_y, c) * z;
      write(args.d_gate, c, chain_rule(options.gate_act, d_act, e.derivative));
      if (pre) d_p *= e.act;
    }
    double d_r = scale.multiply(d_p, statistics.scale);
    if (args.d_r) d_r += wide.at(args.d_r, c);
    write(args.d_x, c, d_r);
    write(args.d_residual, c, d_r);
  });
}

}  // namespace heddle::kernels
