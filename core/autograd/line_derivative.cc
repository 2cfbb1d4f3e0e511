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
  Ladder(const LineFunction& g, const LineScales& scales) : g_(g), scales_(scales), noise_(scales.noise) {}

  // Takes the next step; false when there is none.
  bool descend() {
    if (taken_ == kSteps) return false;
    const double step = scales_.step * std::pow(kShrink, -static_cast<double>(taken_++));
    const double above = g_(step), below = g_(-step);
    if (!std::isfinite(above) || !std::isfinite(below)) {
      count_ = 0;
      return true;
    }
    if (has_lost_the_function(step, above, below)) return false;
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
  double rounding(size_t i) const { return 2.0 * noise_ / rungs_[i].step; }
  Estimate estimate(size_t i) const { return {rungs_[i].best.slope, rungs_[i].best.error + rounding(i)}; }
  Estimate best() const {
    Estimate best;
    for (size_t i = 0; i < count_; ++i) best = estimate(i).error < best.error ? estimate(i) : best;
    return best;
  }

 private:
  // Whether the function itself, g + claimed t, has not changed at all, though it did at the step before: it is stored
  // in fewer digits than g is computed in. What it changed by then is its rounding error.
  bool has_lost_the_function(double step, double above, double below) {
    const double claimed = scales_.claimed * step;
    const double change = std::max(std::abs(above + claimed), std::abs(below - claimed));
    if (change > 0x1p-40 * std::abs(claimed) || claimed == 0.0 || last_change_ == 0.0) {
      last_change_ = change;
      return false;
    }
    noise_ = std::max(noise_, last_change_);
    return true;
  }

  const LineFunction& g_;
  const LineScales& scales_;
  double noise_;
  std::array<Rung, kSteps> rungs_{};
  size_t taken_ = 0, count_ = 0;  // steps taken, and those of them that are kept
  double last_change_ = 0.0;
};

}  // namespace

std::string to_string(Verdict verdict) {
  return verdict == Verdict::ok ? "ok" : verdict == Verdict::wrong ? "WRONG" : "undecided";
}

LineSlope check_flat(const LineFunction& g, const LineScales& scales) {
  const double allowed = kRelativeRounding * std::abs(scales.claimed) + kSizeRounding * scales.size;
  const auto is_zero = [&](double slope, double error) {
    return std::abs(slope) <= std::max(2.0 * error, allowed) && error <= kResolution * scales.size;
  };
  const auto answer = [](Verdict verdict, const Estimate& estimate) {
    return LineSlope{verdict, estimate.slope, estimate.error};
  };
  Ladder ladder(g, scales);
  while (ladder.descend()) {
    if (ladder.count() < 2) continue;
    const size_t last = ladder.count() - 1;
    const Estimate estimate = ladder.estimate(last);
    const double kink = std::abs(ladder[last].right_once - ladder[last].left_once);
    const bool is_smooth = kink <= kResolution * scales.size + 4.0 * ladder.rounding(last);
    if (is_smooth && is_zero(estimate.slope, estimate.error)) return answer(Verdict::ok, estimate);
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
      stays(ladder[finest].central) && stays(ladder[finest].right_once) && stays(ladder[finest].left_once)) {
    return answer(Verdict::wrong, best);
  }
  // A kink between the points of all larger steps: the slope is that of the side where there is none.
  for (size_t i = ladder.count(); i-- > 2;) {
    for (const auto side : {&Rung::right_once, &Rung::left_once}) {
      const double error = 2.0 * ladder.rounding(i), slope_there = ladder[i].*side;
      if (is_zero(slope_there, error) && is_zero(ladder[i - 1].*side, error)) return {Verdict::ok, slope_there, error};
    }
  }
  return answer(Verdict::undecided, best);
}

double rounding_noise(const LineFunction& g, double spacing) {
  constexpr size_t kPoints = 9, kMiddle = kPoints / 2;
  std::array<double, kPoints> differences{};
  for (size_t i = 0; i < kPoints; ++i) differences[i] = g(spacing * (static_cast<double>(i) - kMiddle));
  double noise = std::numeric_limits<double>::infinity(), factor = 1.0;  // (order!)^2 / (2 order)!
  for (size_t order = 1; order < kPoints - 2; ++order) {
    factor *= static_cast<double>(order) / (2.0 * (2.0 * static_cast<double>(order) - 1.0));
    double squares = 0.0;
    for (size_t i = 0; i + order < kPoints; ++i) {
      differences[i] = differences[i + 1] - differences[i];
      squares += differences[i] * differences[i];
    }
    // Low orders still hold the function itself.
    if (order >= 3) noise = std::min(noise, std::sqrt(factor * squares / static_cast<double>(kPoints - order)));
  }
  return std::isfinite(noise) ? noise : 0.0;
}

}  // namespace heddle
