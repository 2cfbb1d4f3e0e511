#include "core/autograd/gradcheck.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <utility>

#include "core/runtime/error.h"
#include "core/runtime/unsigned_nan.h"
#include "core/tensor/random.h"
#include "core/tensor/transfer.h"

namespace heddle {
namespace {

using Values = std::vector<double>;

// The identity as an operator: what is computed from its output has an input that is no leaf.
struct IdentityNode {
  Slot x, y;

  void backward(Tape& tape) {
    const Tensor d_y = tape.take_gradient(y);
    copy(tape.context(), tape.destination(x).tensor, d_y);  // x is a leaf without a gradient: nothing to add to
  }
};

Variable identity(Tape& tape, const Variable& x) {
  const Variable y = tape.output(x.value, true);
  tape.record(IdentityNode{.x = x.slot, .y = y.slot}, {x}, {y});
  return y;
}

class Checker {
 public:
  Checker(Context& context, const GradcheckFunction& function, const std::vector<GradcheckInput>& inputs,
          const GradcheckOptions& options)
      : context_(context), function_(function), inputs_(inputs), options_(options) {
    for (const GradcheckInput& input : inputs) {
      check(input.value.dtype() == DType::float64 || !input.differentiate,
            "[gradcheck] input {} is {}, expected float64", input.name, name(input.value.dtype()));
    }
  }

  GradcheckReport run() {
    GradcheckReport report;
    const std::vector<Values> analytic = gradients(InputKind::leaf);
    report.deterministic = agree(analytic, gradients(InputKind::leaf), same_bits);
    report.accumulates = agree(analytic, gradients(InputKind::written_leaf, analytic),
                               [&](double once, double onto_itself) { return close(2.0 * once, onto_itself); });
    report.composes = agree(analytic, gradients(InputKind::output), [&](double a, double b) { return close(a, b); });
    report.passed = report.deterministic && report.accumulates && report.composes;
    for (size_t i = 0; i < inputs_.size(); ++i) {
      if (!inputs_[i].differentiate) continue;
      report.inputs.push_back(options_.projections > 0 ? check_projections(i, analytic[i])
                                                       : check_elements(i, analytic[i]));
      report.passed = report.passed && report.inputs.back().failures == 0;
    }
    return report;
  }

 private:
  // What the inputs of the function are: leaves, leaves whose gradients are `start` already, or outputs of another
  // node.
  enum class InputKind { leaf, written_leaf, output };

  // The gradients of all inputs, with leaves of their own; empty for inputs that are not differentiated.
  std::vector<Values> gradients(InputKind kind, const std::vector<Values>& start = {}) {
    Tape tape(context_);
    std::vector<Gradient> leaves(inputs_.size());
    std::vector<Variable> variables;
    for (size_t i = 0; i < inputs_.size(); ++i) {
      const GradcheckInput& input = inputs_[i];
      if (!input.differentiate || input.value.numel() == 0) {
        variables.push_back(tape.constant(input.value));
        continue;
      }
      leaves[i].tensor = Tensor::empty(context_, input.value.shape(), DType::float64);
      if (kind == InputKind::written_leaf) {
        write_values(context_, leaves[i].tensor, start[i]);
        leaves[i].written = true;
      } else {
        poison(context_, leaves[i].tensor);  // a read of what was not written gives NaN
      }
      variables.push_back(tape.leaf(input.value, leaves[i], input.name));
      if (kind == InputKind::output) variables.back() = identity(tape, variables.back());
    }
    std::vector<Tape::Root> roots;
    size_t index = 0;
    for (Variable& output : function_(tape, variables)) {
      Tensor upstream = Tensor::empty(context_, output.shape(), output.dtype());
      write_values(context_, upstream, upstream_values(index++, output.value.numel()));
      if (output.requires_grad()) roots.push_back({output, upstream});
    }
    // Upstream gradients that the caller gives away may be written over, those that it keeps may not: both are tried.
    if (kind == InputKind::output) {
      tape.backward(std::move(roots));
    } else {
      tape.backward(roots);
    }
    std::vector<Values> result;
    for (const Gradient& leaf : leaves) {
      result.push_back(leaf.tensor.defined() ? read_values(context_, leaf.tensor) : Values{});
    }
    return result;
  }

  Values upstream_values(size_t output, int64_t count) const {
    Random random(options_.seed, RandomStream::test, static_cast<uint32_t>(output));
    Values values(static_cast<size_t>(count));
    for (double& value : values) value = random.next_normal();
    return values;
  }

  // sum over outputs of <upstream, output>.
  double evaluate() {
    Tape tape(context_, Tape::Mode::inference);
    std::vector<Variable> variables;
    for (const GradcheckInput& input : inputs_) variables.push_back(tape.constant(input.value));
    double sum = 0.0;
    size_t index = 0;
    for (const Variable& output : function_(tape, variables)) {
      const Values values = read_values(context_, output.value);
      const Values upstream = upstream_values(index++, output.value.numel());
      for (size_t i = 0; i < values.size(); ++i) sum += values[i] * upstream[i];
    }
    return sum;
  }

  // (f(x + step * direction) - f(x - step * direction)) / (2 step), and x as it was before.
  double difference(const Tensor& input, const Values& values, const Values& direction, double step) {
    Values moved = values;
    for (size_t i = 0; i < moved.size(); ++i) moved[i] = values[i] + step * direction[i];
    write_values(context_, input, moved);
    const double above = evaluate();
    for (size_t i = 0; i < moved.size(); ++i) moved[i] = values[i] - step * direction[i];
    write_values(context_, input, moved);
    const double below = evaluate();
    write_values(context_, input, values);
    return (above - below) / (2.0 * step);
  }

  GradcheckInputReport check_elements(size_t index, const Values& analytic) {
    const GradcheckInput& input = inputs_[index];
    GradcheckInputReport report{.name = input.name};
    const Values values = read_values(context_, input.value);
    Values direction(values.size(), 0.0);
    for (size_t i = 0; i < values.size(); ++i) {
      if (options_.skip && options_.skip(input.name, values[i])) continue;
      direction[i] = 1.0;
      const double step = options_.step * std::max(1.0, std::abs(values[i]));
      compare(report, static_cast<int64_t>(i), analytic[i], difference(input.value, values, direction, step));
      direction[i] = 0.0;
    }
    return report;
  }

  GradcheckInputReport check_projections(size_t index, const Values& analytic) {
    const GradcheckInput& input = inputs_[index];
    GradcheckInputReport report{.name = input.name};
    const Values values = read_values(context_, input.value);
    Random random(options_.seed + 1, RandomStream::test, static_cast<uint32_t>(index));
    Values direction(values.size());
    for (int projection = 0; projection < options_.projections; ++projection) {
      double expected = 0.0;
      for (size_t i = 0; i < values.size(); ++i) {
        direction[i] = random.next_normal();
        expected += analytic[i] * direction[i];
      }
      compare(report, projection, expected, difference(input.value, values, direction, options_.step));
    }
    return report;
  }

  void compare(GradcheckInputReport& report, int64_t element, double analytic, double numeric) const {
    const double error = std::abs(analytic - numeric);
    const double magnitude = std::max(std::abs(analytic), std::abs(numeric));
    const double relative = error / std::max(magnitude, options_.absolute_tolerance);
    ++report.checked;
    if (!close(analytic, numeric)) ++report.failures;
    if (report.worst_element < 0 || !(relative <= report.relative_error)) {
      report.worst_element = element;
      report.analytic = analytic;
      report.numeric = numeric;
      report.relative_error = relative;
    }
  }

  // False for NaN.
  bool close(double a, double b) const {
    const double magnitude = std::max(std::abs(a), std::abs(b));
    return std::abs(a - b) <= options_.absolute_tolerance + options_.relative_tolerance * magnitude;
  }

  static bool same_bits(double a, double b) { return std::bit_cast<uint64_t>(a) == std::bit_cast<uint64_t>(b); }

  template <class Same>
  static bool agree(const std::vector<Values>& a, const std::vector<Values>& b, const Same& same) {
    return std::equal(a.begin(), a.end(), b.begin(), b.end(), [&](const Values& x, const Values& y) {
      return std::equal(x.begin(), x.end(), y.begin(), y.end(), same);
    });
  }

  Context& context_;
  const GradcheckFunction& function_;
  const std::vector<GradcheckInput>& inputs_;
  const GradcheckOptions& options_;
};

}  // namespace

GradcheckReport gradcheck(Context& context, const GradcheckFunction& function,
                          const std::vector<GradcheckInput>& inputs, const GradcheckOptions& options) {
  return Checker(context, function, inputs, options).run();
}

std::string GradcheckReport::to_string() const {
  std::string text;
  if (!deterministic) text += "a second backward pass gave different bits\n";
  if (!accumulates) text += "a backward pass onto existing gradients did not add to them\n";
  if (!composes) text += "the gradients differ when the inputs are outputs of another operator instead of leaves\n";
  for (const GradcheckInputReport& input : inputs) {
    text += fmt::format("{}: {} of {} wrong; worst at {}: analytic {:.10g}, numeric {:.10g}, relative error {:.3g}\n",
                        input.name, input.failures, input.checked, input.worst_element, unsigned_nan(input.analytic),
                        unsigned_nan(input.numeric), unsigned_nan(input.relative_error));
  }
  return text;
}

}  // namespace heddle
