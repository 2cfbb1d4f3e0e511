#include "core/autograd/gradcheck.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include "core/runtime/error.h"
#include "core/runtime/unsigned_nan.h"
#include "core/tensor/overlap.h"
#include "core/tensor/random.h"
#include "core/tensor/transfer.h"

namespace heddle {
namespace {

using Values = std::vector<double>;

double largest_of(const Values& values) {
  double largest = 0.0;
  for (double value : values) largest = std::max(largest, std::abs(value));
  return largest;
}

double norm_of(const Values& values) {
  double squares = 0.0;
  for (double value : values) squares += value * value;
  return std::sqrt(squares);
}

// The root of the mean square; 1 for zeros, from which a step must lead away.
double spread_of(const Values& values) {
  const double spread = norm_of(values) / std::sqrt(static_cast<double>(values.size()));
  return spread > 0.0 && std::isfinite(spread) ? spread : 1.0;
}

bool have_same_bits(double a, double b, double) { return std::bit_cast<uint64_t>(a) == std::bit_cast<uint64_t>(b); }

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
    check(std::any_of(inputs.begin(), inputs.end(), [](const auto& input) { return input.differentiate; }),
          "[gradcheck] none of the {} inputs is differentiated, expected at least one", inputs.size());
    for (const GradcheckInput& input : inputs) {
      check(input.value.dtype() == DType::float64 || !input.differentiate,
            "[gradcheck] input {} is {}, expected float64", input.name, name(input.value.dtype()));
    }
    // Each input is moved alone, so one that has numbers of another gets its own.
    for (size_t i = 1; i < inputs_.size(); ++i) {
      const bool overlaps = std::any_of(
          inputs_.begin(), inputs_.begin() + static_cast<std::ptrdiff_t>(i),
          [&](const auto& other) { return other.value.defined() && may_overlap(other.value, inputs_[i].value); });
      if (overlaps) inputs_[i].value = clone(context, inputs_[i].value);
    }
    for (const GradcheckInput& input : inputs_) {
      values_.push_back(input.value.defined() ? read_values(context, input.value) : Values{});
    }
  }

  GradcheckReport run() {
    GradcheckReport report;
    const std::vector<Values> analytic = gradients(InputKind::leaf);
    report.deterministic = agree(analytic, gradients(InputKind::leaf), have_same_bits);
    // Another order of additions is allowed, and a sum may be beyond the largest number. NaN stays NaN; whether it is
    // right is judged by the values.
    const auto times = [](double factor) {
      return [factor](double a, double b, double largest) {
        return std::abs(factor * a - b) <= 1e-9 * largest || (std::isfinite(a) && factor * a == b) ||
               (std::isnan(a) && std::isnan(b));
      };
    };
    report.accumulates = agree(analytic, gradients(InputKind::written_leaf, analytic), times(2.0));
    // Upstream gradients that the caller gives away may be written over, those that it keeps may not.
    report.composes = agree(analytic, gradients(InputKind::output), times(1.0)) &&
                      agree(analytic, gradients(InputKind::output_given_upstream), times(1.0));
    base_ = outputs(&upstream_);
    restore_inputs();
    for (size_t i = 0; i < inputs_.size(); ++i) {
      if (inputs_[i].differentiate) report.inputs.push_back(check_input(i, analytic[i]));
    }
    restore_inputs();
    report.keeps_inputs = keeps_inputs_;
    report.keeps_upstream = keeps_upstream_;
    return report;
  }

 private:
  // What the inputs of the function are: leaves, leaves whose gradients are `start` already, or outputs of another
  // node; with the last one the upstream gradients are given away.
  enum class InputKind { leaf, written_leaf, output, output_given_upstream };

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
      leaves[i].tensor = Tensor::empty_in_order(context_, input.value.shape(), input.value.strides(), DType::float64);
      if (kind == InputKind::written_leaf) {
        write_values(context_, leaves[i].tensor, start[i]);
        leaves[i].written = true;
      } else {
        poison(context_, leaves[i].tensor);  // a read of what was not written gives NaN
      }
      variables.push_back(tape.leaf(input.value, leaves[i], input.name));
      if (kind >= InputKind::output) variables.back() = identity(tape, variables.back());
    }
    std::vector<Tape::Root> roots;
    std::vector<Values> upstream;
    size_t index = 0;
    for (Variable& output : function_(tape, variables)) {
      const Values numbers = upstream_values(index++, output.value.numel());
      if (!output.requires_grad()) continue;
      const Tensor tensor = Tensor::empty(context_, output.shape(), output.dtype());
      write_values(context_, tensor, numbers);
      upstream.push_back(read_values(context_, tensor));  // as they are stored
      roots.push_back({output, tensor});
    }
    if (kind == InputKind::output_given_upstream) {
      tape.backward(std::move(roots));
    } else {
      tape.backward(roots);
      std::vector<Values> now;
      for (const Tape::Root& root : roots) now.push_back(read_values(context_, root.upstream));
      keeps_upstream_ = keeps_upstream_ && agree(upstream, now, have_same_bits);
    }
    restore_inputs();
    std::vector<Values> result;
    for (const Gradient& leaf : leaves) {
      result.push_back(leaf.tensor.defined() ? read_values(context_, leaf.tensor) : Values{});
    }
    return result;
  }

  // What the function has written over its inputs, which it must not do.
  void restore_inputs() {
    for (size_t i = 0; i < inputs_.size(); ++i) {
      const Tensor& input = inputs_[i].value;
      if (!input.defined() || agree({values_[i]}, {read_values(context_, input)}, have_same_bits)) continue;
      keeps_inputs_ = false;
      write_values(context_, input, values_[i]);
    }
  }

  Values upstream_values(size_t output, int64_t count) const {
    Random random(options_.seed, RandomStream::test, static_cast<uint32_t>(output));
    Values values(static_cast<size_t>(count));
    for (double& value : values) value = random.next_normal();
    return values;
  }

  // The values of all outputs, one after the other, and likewise their upstream gradients where these are asked for.
  Values outputs(Values* upstream = nullptr) {
    Tape tape(context_, Tape::Mode::unrecorded);
    std::vector<Variable> variables;
    for (const GradcheckInput& input : inputs_) variables.push_back(tape.constant(input.value));
    Values all;
    size_t index = 0;
    for (const Variable& output : function_(tape, variables)) {
      const Values values = read_values(context_, output.value);
      all.insert(all.end(), values.begin(), values.end());
      if (!upstream) continue;
      const Values part = upstream_values(index++, output.value.numel());
      upstream->insert(upstream->end(), part.begin(), part.end());
    }
    return all;
  }

  // The values of all outputs where `input` has other values for once.
  Values outputs_at(const Tensor& input, const Values& values, const Values& moved) {
    write_values(context_, input, moved);
    Values found;
    try {
      found = outputs();
    } catch (...) {
      write_values(context_, input, values);
      throw;
    }
    write_values(context_, input, values);
    return found;
  }

  // f = sum over outputs of <upstream, output>. Gives f(values + t direction) - f(values) - <gradient, what was moved>;
  // the points are the numbers of float64 next to those on the line.
  double deviation(const Tensor& input, const Values& values, const Values& gradient, const Values& direction,
                   double t) {
    Values moved = values;
    long double change = 0.0L;
    for (size_t i = 0; i < moved.size(); ++i) {
      moved[i] += t * direction[i];
      if (moved[i] != values[i]) change -= static_cast<long double>(gradient[i]) * (moved[i] - values[i]);
    }
    const Values found = outputs_at(input, values, moved);
    for (size_t i = 0; i < found.size(); ++i) {
      // Infinity minus infinity is NaN, and a function of such values has no derivative.
      if (found[i] != base_[i] || !std::isfinite(found[i])) {
        change += static_cast<long double>(upstream_[i]) * (found[i] - base_[i]);
      }
    }
    return static_cast<double>(change);
  }

  GradcheckInputReport check_input(size_t index, const Values& analytic) {
    const GradcheckInput& input = inputs_[index];
    GradcheckInputReport report{.name = input.name};
    const Values& values = values_[index];
    if (values.empty()) return report;
    Values finite = analytic, direction(values.size());
    for (double& gradient : finite) gradient = std::isfinite(gradient) ? gradient : 0.0;
    const auto along = [&](double t) { return deviation(input.value, values, finite, direction, t); };
    Random random(options_.seed + 1, RandomStream::test, static_cast<uint32_t>(index));
    const double spread = spread_of(values);
    const auto draw_direction = [&] {
      for (double& move : direction) move = spread * random.next_normal();
    };

    draw_direction();
    LineScales scales;
    scales.moves_several = options_.projections > 0 && values.size() > 1;
    Values moved = values;  // the terms of f may all be 0 at x itself, as those of x^2 are at 0
    for (size_t i = 0; i < moved.size(); ++i) moved[i] += scales.step * direction[i];
    const double f_size = std::max(size_of_terms(base_), size_of_terms(outputs_at(input.value, values, moved)));
    scales.noise = std::max(4.0 * rounding_noise(along, 0x1p-40), 0x1p-56 * f_size);
    double worst_rank = -1.0;
    const auto check_along = [&](int64_t element, double unit, double size) {
      scales.size = std::max(size, 1e-6 * f_size);
      scales.claimed = 0.0;
      bool is_number = true;
      for (size_t i = 0; i < values.size(); ++i) {
        scales.claimed += finite[i] * direction[i];
        is_number = is_number && (std::isfinite(analytic[i]) || direction[i] == 0.0);
      }
      LineSlope slope = check_flat(along, scales);
      // A gradient that is no number is wrong where the function has a derivative.
      if (!is_number) slope.verdict = std::isfinite(slope.error) ? Verdict::wrong : Verdict::undecided;
      ++report.checked;
      if (options_.progress) options_.progress(++checked_, count_derivatives());
      report.wrong += slope.verdict == Verdict::wrong ? 1 : 0;
      report.undecided += slope.verdict == Verdict::undecided ? 1 : 0;
      // Within a verdict it is the worse the further off, and no number at all is the worst.
      const double off = std::abs(slope.slope) / scales.size;
      const double rank = (is_number ? static_cast<double>(slope.verdict) : 3.0) + off / (1.0 + off);
      if (report.worst_element >= 0 && !(rank > worst_rank)) return;
      worst_rank = rank;
      report.worst_element = element;
      report.numeric = (scales.claimed + slope.slope) / unit;
      report.analytic = is_number ? scales.claimed / unit : std::numeric_limits<double>::quiet_NaN();
      report.error = slope.error / unit;
    };

    if (options_.projections > 0) {
      for (int projection = 0; projection < options_.projections; ++projection) {
        if (projection > 0) draw_direction();
        check_along(projection, 1.0, spread * norm_of(finite));
      }
      return report;
    }
    const double largest = largest_of(finite);
    std::fill(direction.begin(), direction.end(), 0.0);
    for (size_t i = 0; i < values.size(); ++i) {
      direction[i] = std::max(std::abs(values[i]), spread);
      check_along(static_cast<int64_t>(i), direction[i], direction[i] * largest);
      direction[i] = 0.0;
    }
    return report;
  }

  // Of all inputs.
  int64_t count_derivatives() const {
    int64_t count = 0;
    for (size_t i = 0; i < inputs_.size(); ++i) {
      if (!inputs_[i].differentiate || values_[i].empty()) continue;
      count += options_.projections > 0 ? options_.projections : static_cast<int64_t>(values_[i].size());
    }
    return count;
  }

  // The sum of the magnitudes of the terms of f, where it has these outputs.
  double size_of_terms(const Values& outputs) const {
    double sum = 0.0;
    for (size_t i = 0; i < outputs.size(); ++i) {
      sum += std::isfinite(outputs[i]) ? std::abs(upstream_[i] * outputs[i]) : 0.0;
    }
    return sum;
  }

  // Whether is_same(a, b, largest magnitude of a) holds for all elements of all inputs.
  template <class Same>
  static bool agree(const std::vector<Values>& a, const std::vector<Values>& b, const Same& is_same) {
    return std::equal(a.begin(), a.end(), b.begin(), b.end(), [&](const Values& x, const Values& y) {
      const double largest = largest_of(x);
      return std::equal(x.begin(), x.end(), y.begin(), y.end(),
                        [&](double one, double other) { return is_same(one, other, largest); });
    });
  }

  Context& context_;
  const GradcheckFunction& function_;
  std::vector<GradcheckInput> inputs_;  // none of them shares a number with another
  std::vector<Values> values_;          // of the inputs
  const GradcheckOptions& options_;
  bool keeps_inputs_ = true, keeps_upstream_ = true;  // so far
  Values base_, upstream_;                            // of all outputs, one after the other
  int64_t checked_ = 0;                               // derivatives
};

}  // namespace

GradcheckReport gradcheck(Context& context, const GradcheckFunction& function,
                          const std::vector<GradcheckInput>& inputs, const GradcheckOptions& options) {
  return Checker(context, function, inputs, options).run();
}

Verdict GradcheckInputReport::verdict() const {
  return wrong > 0 ? Verdict::wrong : undecided > 0 ? Verdict::undecided : Verdict::ok;
}

Verdict GradcheckReport::verdict() const {
  Verdict result = faults().empty() ? Verdict::ok : Verdict::wrong;
  for (const GradcheckInputReport& input : inputs) result = std::max(result, input.verdict());
  return result;
}

std::string GradcheckReport::faults() const {
  std::string text;
  if (!deterministic) text += "a second backward pass gave different bits\n";
  if (!accumulates) text += "a backward pass onto existing gradients did not add to them\n";
  if (!composes) text += "the gradients differ when the inputs are outputs of another operator instead of leaves\n";
  if (!keeps_inputs) text += "inputs were written over\n";
  if (!keeps_upstream) text += "upstream gradients that the caller still holds were written over\n";
  return text;
}

std::string GradcheckReport::to_string() const {
  std::string text = faults();
  for (const GradcheckInputReport& input : inputs) {
    text += fmt::format(
        "{}: {}, {} wrong and {} undecided of {}; worst at {}: analytic {:.10g}, numeric {:.10g} +- {:.1e}\n",
        input.name, heddle::to_string(input.verdict()), input.wrong, input.undecided, input.checked,
        input.worst_element, unsigned_nan(input.analytic), unsigned_nan(input.numeric), unsigned_nan(input.error));
  }
  return text;
}

}  // namespace heddle
