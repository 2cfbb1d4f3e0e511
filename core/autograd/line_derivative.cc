#include "core/autograd/line_derivative.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <limits>
#include <string>

namespace heddle {
namespace {

constexpr double kShrink = 4.0;  // a step over the next
constexpr size_t kSteps = 16;
constexpr double kResolution = 2e-5;        // the largest error, relative to the size, at which a slope is ok
constexpr double kRelativeRounding = 1e-6;  // of the claimed slope itself, and of
constexpr double kSizeRounding = 1e-9;      // one that is small beside the size

struct Estimate {
  double slope = 0.0;
  double error = std::numeric_limits<double>::infinity();
};

// What is known at one step, with the steps before it.
struct Rung {
  double step = 0.0, central = 0.0, right = 0.0, left = 0.0;  // differences
  double once = 0.0, right_once = 0.0, left_once = 0.0;       // extrapolated from the last two
  Estimate best;                                              // its error without that of rounding
};

// Differences at ever smaller steps. Those at which g is infinite or NaN are left out.
class Ladder {
 public:
  Ladder(const LineFunction& g, const LineScales& scales) : g_(g), scales_(scales) {}

  // Takes the next step; false when there is none.
  bool descend() {
    if (taken_ == kSteps) return false;
    const double step = scales_.step * std::pow(kShrink, -static_cast<double>(taken_++));
    const double above = g_(step), below = g_(-step);
    if (!std::isfinite(above) || !std::isfinite(below)) {
      count_ = 0;
      return true;
    }
    Rung& rung = rungs_[count_++];
    rung.step = step;
    rung.central = (above - below) / (2.0 * step);
    rung.right = above / step;
    rung.left = -below / step;
    if (count_ == 1) return true;
    const Rung& last = rungs_[count_ - 2];
    rung.once = rung.central + (rung.central - last.central) / (kShrink * kShrink - 1.0);
    rung.right_once = rung.right + (rung.right - last.right) / (kShrink - 1.0);
    rung.left_once = rung.left + (rung.left - last.left) / (kShrink - 1.0);
    rung.best = {rung.once, std::abs(rung.once - rung.central)};
    if (count_ == 2) return true;
    const double change = rung.once - last.once;
    const Estimate twice = {rung.once + change / (std::pow(kShrink, 4.0) - 1.0), std::abs(change) / 15.0};
    if (twice.error < rung.best.error) rung.best = twice;
    return true;
  }

  size_t count() const { return count_; }
  const Rung& operator[](size_t i) const { return rungs_[i]; }
  double rounding(size_t i) const { return 2.0 * scales_.noise / rungs_[i].step; }
  Estimate estimate(size_t i) const { return {rungs_[i].best.slope, rungs_[i].best.error + rounding(i)}; }
  Estimate best() const {
    Estimate best;
    for (size_t i = 0; i < count_; ++i) best = estimate(i).error < best.error ? estimate(i) : best;
    return best;
  }

 private:
  const LineFunction& g_;
  const LineScales& scales_;
  std::array<Rung, kSteps> rungs_{};
  size_t taken_ = 0, count_ = 0;  // steps taken, and those of them that are kept
};

// check_flat() with the noise that it is given.
LineSlope judge(const LineFunction& g, const LineScales& scales) {
  const double allowed = kRelativeRounding * std::abs(scales.claimed) + kSizeRounding * scales.size;
  const auto is_zero = [&](double slope, double error) {
    return std::abs(slope) <= std::max(2.0 * error, allowed) && error <= kResolution * scales.size;
  };
  const auto answer = [](Verdict verdict, const Estimate& estimate) {
    return LineSlope{verdict, estimate.slope, estimate.error};
  };
  Ladder ladder(g, scales);
  const auto is_smooth_at = [&](size_t i) {
    const double kink = std::abs(ladder[i].right_once - ladder[i].left_once);
    return kink <= kResolution * scales.size + 4.0 * ladder.rounding(i);
  };
  Estimate zero;  // the best of those that are 0 within their error
  while (ladder.descend()) {
    if (ladder.count() < 2) continue;
    const size_t last = ladder.count() - 1;
    const Estimate estimate = ladder.estimate(last);
    if (!is_smooth_at(last) || !is_zero(estimate.slope, estimate.error)) continue;
    if (estimate.error < zero.error) zero = estimate;
    if (zero.error <= allowed) return answer(Verdict::ok, zero);
  }
  const Estimate best = ladder.best();
  const double slope = std::abs(best.slope);
  // At the smallest step at which rounding hides no more than 1/16 of the slope it must still be there, on both sides.
  size_t finest = ladder.count();
  while (finest-- > 1 && ladder.rounding(finest) > slope / 16.0) continue;
  const auto stays = [&](double other) {
    return std::abs(other) >= slope / 2.0 && (other > 0.0) == (best.slope > 0.0);
  };
  if (slope > std::max(8.0 * best.error, allowed) && finest > 0 && finest < ladder.count() &&
      stays(ladder[finest].central) && stays(ladder[finest].right_once) && stays(ladder[finest].left_once) &&
      (!scales.moves_several || is_smooth_at(finest))) {
    return answer(Verdict::wrong, best);
  }
  if (std::isfinite(zero.error)) return answer(Verdict::ok, zero);
  // A kink between the points of all larger steps: the slope is that of the side where there is none.
  for (size_t i = ladder.count(); i-- > 2;) {
    for (const auto side : {&Rung::right_once, &Rung::left_once}) {
      const double error = 2.0 * ladder.rounding(i), slope_there = ladder[i].*side;
      if (is_zero(slope_there, error) && is_zero(ladder[i - 1].*side, error)) return {Verdict::ok, slope_there, error};
    }
  }
  return answer(Verdict::undecided, best);
}

// Where rounding_noise() takes values, in spacings. At equal distances the rounding errors of a function that is nearly
// straight may lie on a straight line, too.
constexpr std::array<double, 9> kPlaces = {0.61, 1.97, 2.72, 4.18, 4.83, 6.29, 6.94, 8.27, 9.06};
using ValuesAtPlaces = std::array<double, kPlaces.size()>;

// The standard deviation of the errors of these values, from their divided differences of this order: sums of order + 1
// neighbours with weights of which polynomials of lower degree leave nothing.
double noise_of_order(const ValuesAtPlaces& values, size_t order) {
  double squares = 0.0;
  const size_t differences = kPlaces.size() - order;
  for (size_t first = 0; first < differences; ++first) {
    double difference = 0.0, weights = 0.0;
    for (size_t i = first; i <= first + order; ++i) {
      double weight = 1.0;
      for (size_t j = first; j <= first + order; ++j) weight /= i == j ? 1.0 : kPlaces[i] - kPlaces[j];
      difference += weight * values[i];
      weights += weight * weight;
    }
    squares += difference * difference / weights;
  }
  return std::sqrt(squares / static_cast<double>(differences));
}

ValuesAtPlaces values_at_places(const LineFunction& g, double spacing) {
  ValuesAtPlaces values{};
  std::transform(kPlaces.begin(), kPlaces.end(), values.begin(), [&](double place) { return g(spacing * place); });
  return values;
}

double noise_of(const ValuesAtPlaces& values) {
  double noise = std::numeric_limits<double>::infinity();
  // Lower orders still hold the function itself.
  for (size_t order = 3; order <= 6; ++order) noise = std::min(noise, noise_of_order(values, order));
  return std::isfinite(noise) ? noise : 0.0;
}

// Whether g jumps between two neighbours of these places. Halving the interval again and again where g changes most,
// what a smooth function or a kink changes by is halved as well, and what a jump changes it by stays.
bool jumps(const LineFunction& g, double spacing, const ValuesAtPlaces& values) {
  constexpr int kHalvings = 24;
  constexpr double kShare = 0x1p-12;  // of the change at first: there may be many jumps, of which one is found
  size_t widest = 0;
  const auto change = [&](size_t i) { return std::abs(values[i + 1] - values[i]); };
  for (size_t i = 1; i + 1 < values.size(); ++i) widest = change(i) > change(widest) ? i : widest;
  const double first = change(widest);
  double low = spacing * kPlaces[widest], high = spacing * kPlaces[widest + 1];
  double at_low = values[widest], at_high = values[widest + 1];
  for (int i = 0; i < kHalvings; ++i) {
    const double middle = 0.5 * (low + high), at_middle = g(middle);
    const bool is_lower = std::abs(at_middle - at_low) > std::abs(at_high - at_middle);
    (is_lower ? high : low) = middle;
    (is_lower ? at_high : at_low) = at_middle;
  }
  return std::abs(at_high - at_low) > kShare * first;
}

// The largest noise at any spacing, on either side, at which the function jumps from one storable number to
// the next.
double noise_of_jumps(const LineFunction& g, double known) {
  double largest = known;
  for (const double side : {1.0, -1.0}) {
    for (double spacing = 0x1p-40; spacing <= 0x1p-6; spacing *= 4.0) {
      const ValuesAtPlaces values = values_at_places(g, side * spacing);
      const double noise = noise_of(values);
      if (noise > largest && jumps(g, side * spacing, values)) largest = noise;
    }
  }
  return largest;
}

}  // namespace

std::string to_string(Verdict verdict) {
  return verdict == Verdict::ok ? "ok" : verdict == Verdict::wrong ? "WRONG" : "undecided";
}

LineSlope check_flat(const LineFunction& g, const LineScales& scales) {
  const LineSlope slope = judge(g, scales);
  if (slope.verdict != Verdict::wrong) return slope;
  LineScales measured = scales;
  measured.noise = 4.0 * noise_of_jumps(g, scales.noise / 4.0);
  return measured.noise > scales.noise ? judge(g, measured) : slope;
}

double rounding_noise(const LineFunction& g, double spacing) { return noise_of(values_at_places(g, spacing)); }

}  // namespace heddle
