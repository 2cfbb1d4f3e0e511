// Gradients of low precision against those of float64: what rounding may do to a gradient, and whether one is off by
// more.                                                                      docs/gradcheck.md#in-lower-precision
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "core/autograd/gradcheck.h"
#include "core/runtime/context.h"
#include "core/tensor/random.h"
#include "core/tensor/tensor.h"

namespace heddle {

using GradientValues = std::vector<double>;

// How a gradient of low precision is compared with that of float64: elements with the largest element, or all of it by
// norms, since through many layers single elements go astray.
enum class Measure { elements, norms };

// Does to numbers what storing them in a dtype does: moves them by up to one unit in the last place there and rounds
// them, to 0 those that are too small for it.
class Rounding {
 public:
  Rounding(Context& context, DType dtype, uint64_t seed);

  GradientValues moved(GradientValues numbers);
  // A tensor with the moved numbers, of the same dtype.
  Tensor moved(const Tensor& numbers);
  // Moves the numbers where they are; leaves tensors alone that are not float64. For Tape::disturb_numbers().
  void operator()(const Tensor& numbers);

 private:
  Context& context_;
  const DType dtype_;
  const double unit_;  // relative to a number
  Random random_;
};

// The gradients of some inputs in low precision and in float64, at the same rounded inputs.
struct GradientPair {
  std::vector<GradientValues> low, exact;
  std::vector<DType> dtypes;  // that the gradients of low precision are stored in
};

// How many times numbers are moved to see what rounding does between operators, and what it does inside them: by
// rounding errors, and then by more.
inline constexpr int kRoundingMoves = 6, kInsideMoves = 3, kNearbyMoves = 7;

// Moves the numbers of a case for what is seen inside of operators. Move 0 leaves them as they are, those up to
// kInsideMoves move them by rounding errors, and the kNearbyMoves after those to where rounding errors are about as
// large but other ones. The same for the same number of the move and order of calls.
class InsideMove {
 public:
  InsideMove(Context& context, DType dtype, int move);

  // Nearby: each number moved by up to a sixteenth of it.
  GradientValues inputs(GradientValues numbers);
  // Nearby: each number times 1/2 to 2 and with any sign. Gradients are linear in those of the outputs, so that
  // rounding errors stay as large; but those that cancel each other for one set of signs do not for another.
  GradientValues upstream(GradientValues numbers);

 private:
  const int move_;
  Rounding rounding_;
  Random random_;
};

// Gradients of low precision where an InsideMove moves the inputs and the upstream gradients.
using LowGradients = std::function<std::vector<GradientValues>(int move)>;

// What rounding was seen to change in each gradient, at most.
class RoundingSpread {
 public:
  RoundingSpread(const GradientPair& pair, Measure measure);

  // Between operators: `disturbed` are the gradients of float64 where inputs, values between operators and their
  // gradients were moved, `exact` are those where they were not.
  void add_between(const std::vector<GradientValues>& disturbed, const std::vector<GradientValues>& exact);
  // Inside operators: `low` computes the gradients of low precision on the CPU, in this thread alone. Arithmetic is
  // made to round up, down and to zero instead of to the nearest number, so that every rounding error is another one.
  // Where all have one direction they may cancel, as those of a sum and of its inverse do; nearby they do not.
  void measure_inside(const LowGradients& low);

  Measure measure() const { return measure_; }
  // The size of the largest change; infinity where values are beyond the dtype, and NaN is left of the gradient.
  double between(size_t input) const { return between_[input]; }
  double inside_size(size_t input) const { return inside_size_[input]; }  // nearby, too
  // The largest change of each element, not nearby.
  const GradientValues& inside(size_t input) const { return inside_[input]; }

 private:
  const Measure measure_;
  const std::vector<DType> dtypes_;
  std::vector<double> between_, inside_size_;
  std::vector<GradientValues> inside_;
};

// Compares low with exact for each of the named inputs, by the rules of docs/gradcheck.md. `tolerance` is relative to
// the size of a gradient. Where `low` is infinite, exact numbers that its dtype stores as infinity are right. Calls
// spread.measure_inside(low) where not all of them are right without.
std::vector<GradcheckInputReport> compare_gradients(const std::vector<std::string>& names, const GradientPair& pair,
                                                    RoundingSpread& spread, DType dtype, double tolerance,
                                                    const LowGradients& low);

}  // namespace heddle
