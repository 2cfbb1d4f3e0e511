// Compares the gradients of a function with central differences. Also compares the ways in which a gradient can be
// written with each other: it overwrites, it adds to an existing one, it is shared with other inputs, it takes the
// memory of the upstream gradient.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "core/autograd/tape.h"

namespace heddle {

// A float64 input of the function; gradients are checked for those with `differentiate`.
struct GradcheckInput {
  std::string name;
  Tensor value;
  bool differentiate = true;
};

struct GradcheckOptions {
  double step = 1e-6;                // scaled by max(1, |x|)
  double relative_tolerance = 1e-6;  // |analytic - numeric| <= absolute + relative * max(|analytic|, |numeric|)
  double absolute_tolerance = 1e-8;
  uint64_t seed = 1;  // of the upstream gradient and of the directions
  // 0: every element is moved (full mode). n > 0: n random directions per input (for large inputs).
  int projections = 0;
  // Elements for which this holds are not moved: non-differentiable points, as 0 of relu. Full mode only.
  std::function<bool(const std::string& input, double value)> skip;
};

// What was found for one input. In projection mode `worst_element` is the number of the direction.
struct GradcheckInputReport {
  std::string name;
  int64_t worst_element = -1;
  double analytic = 0.0;
  double numeric = 0.0;
  double relative_error = 0.0;  // |analytic - numeric| / max(|analytic|, |numeric|, absolute tolerance)
  int64_t failures = 0;
  int64_t checked = 0;
};

struct GradcheckReport {
  bool passed = true;         // all of the below
  bool deterministic = true;  // a second backward gave the same bits
  bool accumulates = true;    // a backward onto these gradients gave twice their values
  bool composes = true;       // the gradients are the same for inputs that are outputs of another operator, not leaves
  std::vector<GradcheckInputReport> inputs;

  // One line an input: name, worst element, analytic, numeric, relative error.
  std::string to_string() const;
};

// A function of the inputs, in order, that returns one or more outputs. It must give the same values at every call and
// depend on every input that is differentiated.
using GradcheckFunction = std::function<std::vector<Variable>(Tape&, const std::vector<Variable>&)>;

// The upstream gradients are random and different for every element of every output; the checked scalar is
// sum over outputs of <upstream, output>. Throws Error when an input is not float64.
GradcheckReport gradcheck(Context& context, const GradcheckFunction& function,
                          const std::vector<GradcheckInput>& inputs, const GradcheckOptions& options = {});

}  // namespace heddle
