// Whether a function of one number is flat at 0, decided from its values alone: what gradcheck asks of the difference
// between a function along a line and what a claimed gradient says of it.                            docs/gradcheck.md
#pragma once

#include <functional>
#include <string>

namespace heddle {

// From good to bad. wrong: the slope is not 0, however small the steps. undecided: the values do not tell, since they
// have too few digits left or there is a kink.
enum class Verdict { ok, undecided, wrong };

std::string to_string(Verdict verdict);  // "ok", "WRONG", "undecided"

// g(t), with g(0) = 0 exactly.
using LineFunction = std::function<double(double t)>;

struct LineScales {
  double step = 0x1p-7;  // of the first difference; up to it the function should be near a polynomial
  double noise = 0.0;    // the rounding error of g
  double size = 1.0;     // of a usual slope
  double claimed = 0.0;  // the slope that g is the difference to
  // Whether the line moves several numbers at once. Each of them may have a kink at 0, and the derivative of either of
  // its sides is right; their sum along the line need not lie near that of one side of the line. So a kink at 0 then
  // makes nothing wrong.
  bool moves_several = false;
};

// The slope of g at 0 and its estimated error.
struct LineSlope {
  Verdict verdict = Verdict::undecided;
  double slope = 0.0;
  double error = 0.0;
};

// Takes central differences with steps 4 times shorter each, extrapolates them to a step of 0 (Richardson; Ridders,
// "Accurate computation of F'(x) and F'(x)F''(x)", Advances in Engineering Software 4, 1982), and estimates the error
// from rounding (noise / step) and from what the last extrapolation changed. The steps end early where the slope is 0
// within an error of 1e-6 of the claimed one and 1e-9 of the size. The verdict is
//   ok         where the slope is 0 within its error, and the error at most 2e-5 of the size, unless smaller steps show
//              that it is wrong; and where there is a kink at 0 and the slope of one side is 0
//   wrong      where the slope is beyond 8 times its error and stays so at smaller steps, on both sides of 0; not at a
//              kink of a line that moves several numbers
//   undecided  otherwise
// A function that is stored in few digits does not change at all over short distances, so that its rounding error does
// not show there. So before it says wrong it looks for jumps over longer distances, from one number that can be stored
// to the next, and measures the error there: where it is larger than `noise`, the verdict is that with the larger one.
LineSlope check_flat(const LineFunction& g, const LineScales& scales);

// The standard deviation of the rounding errors of g near 0, from the differences of high order of nine values that lie
// about `spacing` apart, on the side of its sign (Moré and Wild, "Estimating computational noise", SIAM J. Sci. Comput.
// 33, 2011).
double rounding_noise(const LineFunction& g, double spacing);

}  // namespace heddle
