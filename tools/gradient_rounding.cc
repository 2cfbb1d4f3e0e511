#include "tools/gradient_rounding.h"

#include <algorithm>
#include <cfenv>
#include <cmath>
#include <limits>
#include <utility>

#include "core/tensor/transfer.h"
#include "layers/operator_case.h"

namespace heddle {
namespace {

double unit_of(DType dtype) { return dtype == DType::bfloat16 ? 0x1p-8 : dtype == DType::float16 ? 0x1p-11 : 0x1p-24; }

// The smallest number above 0.
double smallest_of(DType dtype) {
  return dtype == DType::bfloat16 ? 0x1p-133 : dtype == DType::float16 ? 0x1p-24 : 0x1p-149;
}

double size_of(const GradientValues& values, Measure measure) {
  double largest = 0.0, squares = 0.0;
  for (const double value : values) {
    largest = std::max(largest, std::abs(value));
    squares += value * value;
  }
  return measure == Measure::elements ? largest : std::sqrt(squares);
}

GradientValues difference_of(const GradientValues& a, const GradientValues& b) {
  GradientValues difference(a.size());
  for (size_t i = 0; i < a.size(); ++i) difference[i] = a[i] - b[i];
  return difference;
}

// Half a unit above the largest number: from here on numbers are rounded to infinity.
double overflow_of(DType dtype) {
  switch (dtype) {
    case DType::float16:
      return 65520.0;
    case DType::bfloat16:
      return 0x1.ffp127;
    case DType::float32:
      return 0x1.ffffffp127;
    default:
      return std::numeric_limits<double>::infinity();
  }
}

// The numbers, those that the dtype stores as infinity as the first of these: what is beyond it makes nothing large.
GradientValues within(DType dtype, GradientValues values) {
  const double beyond = overflow_of(dtype);
  for (double& value : values) value = std::clamp(value, -beyond, beyond);  // NaN stays
  return values;
}

// What `found` is off by. Infinity stands for all numbers that the dtype stores as infinity, so that it is off by the
// distance of the exact number from the nearest of these.
double error_of(double found, double exact, DType dtype) {
  if (!std::isinf(found)) return found - exact;
  const double beyond = std::copysign(overflow_of(dtype), found);
  return (found > 0.0 ? exact >= beyond : exact <= beyond) ? 0.0 : beyond - exact;
}

GradientValues errors_of(const GradientValues& found, const GradientValues& exact, DType dtype) {
  GradientValues errors(found.size());
  for (size_t i = 0; i < found.size(); ++i) errors[i] = error_of(found[i], exact[i], dtype);
  return errors;
}

// Whether NaN has taken the place of a number: a value on the way was rounded to infinity.
bool loses_numbers(const GradientValues& rounded, const GradientValues& exact) {
  for (size_t i = 0; i < exact.size(); ++i) {
    if (std::isnan(rounded[i]) && !std::isnan(exact[i])) return true;
  }
  return false;
}

// Sets the direction in which this thread's arithmetic rounds, for the time of its life.
class RoundingMode {
 public:
  explicit RoundingMode(int mode) : before_(std::fegetround()) { std::fesetround(mode); }
  ~RoundingMode() { std::fesetround(before_); }
  RoundingMode(const RoundingMode&) = delete;
  RoundingMode& operator=(const RoundingMode&) = delete;

 private:
  const int before_;
};

}  // namespace

Rounding::Rounding(Context& context, DType dtype, uint64_t seed)
    : context_(context), dtype_(dtype), unit_(unit_of(dtype)), random_(seed, RandomStream::test) {}

GradientValues Rounding::moved(GradientValues numbers) {
  for (double& number : numbers) {
    number = round_to(dtype_, number * (1.0 + unit_ * (2.0 * random_.next_uniform() - 1.0)));
  }
  return numbers;
}

Tensor Rounding::moved(const Tensor& numbers) {
  const Tensor result = Tensor::empty(context_, numbers.shape(), numbers.dtype());
  write_values(context_, result, moved(read_values(context_, numbers)));
  return result;
}

void Rounding::operator()(const Tensor& numbers) {
  if (numbers.dtype() == DType::float64) write_values(context_, numbers, moved(read_values(context_, numbers)));
}

InsideMove::InsideMove(Context& context, DType dtype, int move)
    : move_(move),
      rounding_(context, dtype, static_cast<uint64_t>(move)),
      random_(static_cast<uint64_t>(move), RandomStream::test) {}

GradientValues InsideMove::inputs(GradientValues numbers) {
  if (move_ == 0) return numbers;
  if (move_ <= kInsideMoves) return rounding_.moved(std::move(numbers));
  for (double& number : numbers) number *= 1.0 + (2.0 * random_.next_uniform() - 1.0) / 16.0;
  return numbers;
}

GradientValues InsideMove::upstream(GradientValues numbers) {
  if (move_ <= kInsideMoves) return inputs(std::move(numbers));
  for (double& number : numbers) {
    number *= (0.5 + 1.5 * random_.next_uniform()) * (random_.next_below(2) == 0 ? -1.0 : 1.0);
  }
  return numbers;
}

RoundingSpread::RoundingSpread(const GradientPair& pair, Measure measure)
    : measure_(measure), dtypes_(pair.dtypes), between_(pair.exact.size(), 0.0), inside_size_(pair.exact.size(), 0.0) {
  for (const GradientValues& gradient : pair.exact) inside_.emplace_back(gradient.size(), 0.0);
}

void RoundingSpread::add_between(const std::vector<GradientValues>& disturbed,
                                 const std::vector<GradientValues>& exact) {
  for (size_t i = 0; i < between_.size(); ++i) {
    const GradientValues change = difference_of(within(dtypes_[i], disturbed[i]), within(dtypes_[i], exact[i]));
    between_[i] = loses_numbers(disturbed[i], exact[i]) ? std::numeric_limits<double>::infinity()
                                                        : std::max(between_[i], size_of(change, measure_));
  }
}

void RoundingSpread::measure_inside(const LowGradients& low) {
  for (int move = 0; move <= kInsideMoves + kNearbyMoves; ++move) {
    const std::vector<GradientValues> nearest = low(move);
    for (const int mode : {FE_UPWARD, FE_DOWNWARD, FE_TOWARDZERO}) {
      const RoundingMode rounding(mode);
      const std::vector<GradientValues> other = low(move);
      for (size_t i = 0; i < inside_.size(); ++i) {
        const GradientValues change = difference_of(within(dtypes_[i], other[i]), within(dtypes_[i], nearest[i]));
        inside_size_[i] = std::max(inside_size_[i], size_of(change, measure_));
        if (move > kInsideMoves) continue;
        for (size_t j = 0; j < change.size(); ++j) inside_[i][j] = std::max(inside_[i][j], std::abs(change[j]));
      }
    }
  }
}

namespace {

GradcheckInputReport compare(const std::string& name, const GradientPair& pair, size_t input,
                             const RoundingSpread& spread, DType dtype, double tolerance) {
  const Measure measure = spread.measure();
  const GradientValues &found = pair.low[input], &exact = pair.exact[input];
  GradcheckInputReport report{.name = name, .checked = static_cast<int64_t>(exact.size())};
  const double size = size_of(within(pair.dtypes[input], exact), measure);
  const double tolerated = tolerance * (size > 0.0 ? size : 1.0);
  const double between = 8.0 * spread.between(input);
  const bool is_steady = between <= 0.1 * size;  // else kinks are crossed now and then, which changes much at once
  const double allowed = is_steady ? std::max(tolerated, between) : tolerated;
  const double undecided =
      std::max({is_steady ? between : 4.0 * between, 8.0 * spread.inside_size(input), smallest_of(dtype)});
  // `inside` is what rounding inside an operator may do; where that is a tenth of the gradient, few digits are left.
  const auto judge = [&](double off, double inside, int64_t elements) {
    if (off <= allowed || (off <= inside && inside <= 0.1 * size)) return;
    // NaN is wrong, unless rounding may make it.
    (off <= undecided || std::isinf(undecided) ? report.undecided : report.wrong) += elements;
  };
  const GradientValues difference = errors_of(found, exact, pair.dtypes[input]);
  double worst = -1.0;
  for (size_t i = 0; i < exact.size(); ++i) {
    const double off = std::abs(difference[i]), inside = 8.0 * spread.inside(input)[i];
    if (measure == Measure::elements) judge(off, inside, 1);
    if (off <= worst || std::isnan(worst)) continue;
    worst = off;
    report.worst_element = static_cast<int64_t>(i);
    report.analytic = found[i];
    report.numeric = exact[i];
    report.error = std::max({tolerated, between, measure == Measure::elements ? inside : 0.0});
  }
  // Of few elements whose errors change the norm tells as little as of all: no more than that digits are missing.
  if (measure == Measure::norms) judge(size_of(difference, measure), 0.0, report.checked);
  return report;
}

}  // namespace

std::vector<GradcheckInputReport> compare_gradients(const std::vector<std::string>& names, const GradientPair& pair,
                                                    RoundingSpread& spread, DType dtype, double tolerance,
                                                    const LowGradients& low) {
  const auto compare_all = [&] {
    std::vector<GradcheckInputReport> reports;
    for (size_t i = 0; i < names.size(); ++i) reports.push_back(compare(names[i], pair, i, spread, dtype, tolerance));
    return reports;
  };
  std::vector<GradcheckInputReport> reports = compare_all();
  const auto is_ok = [](const GradcheckInputReport& report) { return report.verdict() == Verdict::ok; };
  if (std::all_of(reports.begin(), reports.end(), is_ok)) return reports;
  spread.measure_inside(low);
  return compare_all();
}

}  // namespace heddle
