// Compares the gradients of a function with differences of its values (line_derivative.h), and says ok, WRONG or
// undecided: a right gradient is never called wrong, nor a wrong one right.  docs/gradcheck.md. Also compares the ways
// in which a gradient can be written with each other: it overwrites, it adds to an existing one, it is shared with
// other inputs, it takes the memory of the upstream gradient. And the function may write over nothing that is not its
// own: inputs, upstream gradients that the caller holds.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "core/autograd/line_derivative.h"
#include "core/autograd/tape.h"

namespace heddle {

// A float64 input of the function; gradients are checked for those with `differentiate`.
struct GradcheckInput {
  std::string name;
  Tensor value;
  bool differentiate = true;
};

// Is told how many derivatives of how many are checked.
using GradcheckProgress = std::function<void(int64_t checked, int64_t all)>;

struct GradcheckOptions {
  uint64_t seed = 1;  // of the upstream gradient and of the directions
  // 0: every element is moved. n > 0: n random directions for each input (for large inputs).
  int projections = 0;
  GradcheckProgress progress = {};  // called after each derivative
};

// What was found for one input, and its worst element: a wrong one if there is any, else an undecided one, else the one
// that is furthest off. With projections it is the number of a direction, and the values are derivatives along it.
struct GradcheckInputReport {
  std::string name;
  int64_t worst_element = -1;
  double analytic = 0.0;
  double numeric = 0.0;
  double error = 0.0;  // estimated, of `numeric`
  int64_t wrong = 0, undecided = 0, checked = 0;

  Verdict verdict() const;
};

struct GradcheckReport {
  bool deterministic = true;   // a second backward gave the same bits
  bool accumulates = true;     // a backward onto these gradients gave twice their values
  bool composes = true;        // the gradients are the same for inputs that are outputs of another operator, not leaves
  bool keeps_inputs = true;    // no input was written over
  bool keeps_upstream = true;  // nor an upstream gradient that the caller still holds
  std::vector<GradcheckInputReport> inputs;

  // wrong if any of the above is false or any input is wrong, else undecided if any input is.
  Verdict verdict() const;
  bool passed() const { return verdict() == Verdict::ok; }
  // What is wrong with all inputs, a sentence a line; "" when nothing is.
  std::string faults() const;
  // faults(), and one line an input: name, verdict, worst element, analytic, numeric, estimated error.
  std::string to_string() const;
};

// A function of the inputs, in order, that returns one or more outputs. It must give the same values at every call and
// depend on every input that is differentiated.
using GradcheckFunction = std::function<std::vector<Variable>(Tape&, const std::vector<Variable>&)>;

// The upstream gradients are random and different for every element of every output; the checked scalar is
// sum over outputs of <upstream, output>. Throws Error when no input is differentiated, and when one that is is not
// float64.
GradcheckReport gradcheck(Context& context, const GradcheckFunction& function,
                          const std::vector<GradcheckInput>& inputs, const GradcheckOptions& options = {});

}  // namespace heddle

// For GoogleTest, which the caller includes: fails unless gradcheck(context, function, inputs[, options]) says ok, and
// shows the report. More can be streamed to it, as to EXPECT_TRUE.
#define EXPECT_GRADIENTS_MATCH(...)                                                                               \
  switch (0)                                                                                                      \
  case 0:                                                                                                         \
  default: /* an `else` that follows belongs to the caller's `if` */                                              \
    if (const ::heddle::GradcheckReport heddle_report = ::heddle::gradcheck(__VA_ARGS__); heddle_report.passed()) \
      ;                                                                                                           \
    else                                                                                                          \
      ADD_FAILURE() << heddle_report.to_string()
