#include "tools/check_gradients.h"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "core/config/config_load.h"
#include "core/runtime/error.h"
#include "core/tensor/random.h"
#include "core/tensor/transfer.h"
#include "layers/ops/cross_entropy.h"
#include "tools/run_operator.h"
#include "trainers/model/language_model.h"

namespace heddle {
namespace {

using Values = std::vector<double>;

// The inputs of a case in the dtypes that a run in `dtype` gives them.
std::vector<NamedTensor> make_inputs(Context& context, const OperatorCase& operator_case, DType dtype) {
  const ReferenceTensors numbers = draw_inputs(operator_case, dtype);
  std::vector<NamedTensor> inputs;
  for (const CaseInput& input : operator_case.inputs) {
    const Tensor tensor = Tensor::empty(context, input.shape, case_dtype(input, dtype));
    write_values(context, tensor, numbers.at(input.name).values);
    inputs.push_back({input.name, tensor});
  }
  return inputs;
}

GradcheckReport check_differences(Context& context, const LayerSpec& spec, const OperatorCase& operator_case) {
  const std::vector<NamedTensor> tensors = make_inputs(context, operator_case, DType::float64);
  std::vector<GradcheckInput> inputs;
  for (size_t i = 0; i < tensors.size(); ++i) {
    const auto& [name, tensor] = tensors[i];
    inputs.push_back({name, tensor, is_floating(tensor.dtype()) && operator_case.inputs[i].differentiate});
  }
  const GradcheckFunction function = [&](Tape& tape, const std::vector<Variable>& variables) {
    NamedVariables named;
    for (size_t i = 0; i < inputs.size(); ++i) named[inputs[i].name] = variables[i];
    const NamedVariables outputs = spec.function(tape, named);
    std::vector<Variable> result;
    for (const auto& [name, output] : outputs) result.push_back(output);
    return result;
  };
  return gradcheck(context, function, inputs);
}

// How a gradient of low precision is compared with that of float64: elements with the largest element, or all of it by
// norms, since through many layers single elements go astray.
enum class Measure { elements, norms };

// What rounding may do to a gradient.
struct Allowance {
  double tolerance = 0.0;  // relative to the gradient's size
  double spread = 0.0;     // what float64 gradients differ by when the inputs move by a rounding error
};

double size_of(const Values& values, Measure measure) {
  double largest = 0.0, squares = 0.0;
  for (double value : values) {
    largest = std::max(largest, std::abs(value));
    squares += value * value;
  }
  return measure == Measure::elements ? largest : std::sqrt(squares);
}

Values difference_of(const Values& a, const Values& b) {
  Values difference(a.size());
  for (size_t i = 0; i < a.size(); ++i) difference[i] = a[i] - b[i];
  return difference;
}

// Off by no more than the tolerance is ok, and so is off by no more than 8 times the spread, where that is at most a
// tenth of the gradient. Where it is more, off by up to 4 times as much is undecided. `error` is what is allowed.
GradcheckInputReport compare(const std::string& name, const Values& found, const Values& exact, Measure measure,
                             const Allowance& allowance) {
  GradcheckInputReport report{.name = name, .checked = static_cast<int64_t>(exact.size())};
  const double size = size_of(exact, measure);
  const double tolerated = allowance.tolerance * (size > 0.0 ? size : 1.0), spread = 8.0 * allowance.spread;
  report.error = std::max(tolerated, spread);
  const auto judge = [&](double off, int64_t elements) {
    const bool is_steady = spread <= 0.1 * size;  // else kinks are crossed now and then, which changes much at once
    if (off <= tolerated || (off <= spread && is_steady)) return;
    (off <= (is_steady ? spread : 4.0 * spread) ? report.undecided : report.wrong) += elements;  // NaN is wrong
  };
  const Values difference = difference_of(found, exact);
  double worst = -1.0;
  for (size_t i = 0; i < exact.size(); ++i) {
    const double off = std::abs(difference[i]);
    if (measure == Measure::elements) judge(off, 1);
    if (off <= worst || std::isnan(worst)) continue;
    worst = off;
    report.worst_element = static_cast<int64_t>(i);
    report.analytic = found[i];
    report.numeric = exact[i];
  }
  if (measure == Measure::norms) judge(size_of(difference, measure), report.checked);
  return report;
}

// Does to numbers of float64 what storing them in a dtype does: moves them by up to one unit in the last place there
// and rounds them, to 0 those that are too small for it.
class Rounding {
 public:
  Rounding(Context& context, DType dtype, uint64_t seed)
      : context_(context),
        dtype_(dtype),
        unit_(dtype == DType::bfloat16  ? 0x1p-8
              : dtype == DType::float16 ? 0x1p-11
                                        : 0x1p-24),
        random_(seed, RandomStream::test) {}

  void operator()(const Tensor& numbers) {
    if (numbers.dtype() != DType::float64) return;
    Values values = read_values(context_, numbers);
    for (double& value : values) {
      value = round_to(dtype_, value * (1.0 + unit_ * (2.0 * random_.next_uniform() - 1.0)));
    }
    write_values(context_, numbers, values);
  }

 private:
  Context& context_;
  const DType dtype_;
  const double unit_;
  Random random_;
};

constexpr int kMoves = 6;

// Random tokens, and what the loss of a model for them is.
class ModelLoss {
 public:
  static constexpr int64_t kBatch = 2;

  ModelLoss(Context& context, const TrainConfig& config, int64_t length)
      : model_(config.model),
        tokens_(Tensor::empty(context, {kBatch, length}, DType::int32)),
        targets_(Tensor::empty(context, {kBatch, length}, DType::int32)) {
    Random random(config.seed, RandomStream::test);
    for (const Tensor& tensor : {tokens_, targets_}) {
      Values values(static_cast<size_t>(tensor.numel()));
      for (double& value : values) value = static_cast<double>(random.next_below(config.model.vocab_size));
      write_values(context, tensor, values);
    }
  }

  // New parameters, moved off a little. Layers read some from their masters, so these hold the same rounded numbers.
  void materialize(Context& context, DType dtype, uint64_t seed) {
    parameters().materialize(context, dtype, seed);
    Random random(seed + 1, RandomStream::test);
    for (const Parameter& parameter : parameters().all()) {
      Values values = read_values(context, parameter.value);
      for (double& value : values) value = round_to(dtype, value + 0.01 * random.next_normal());
      write_values(context, parameter.master, values);
      write_values(context, parameter.value, values);
    }
  }

  ParameterSet& parameters() { return model_.parameters(); }
  Variable loss(Tape& tape) const { return cross_entropy(tape, model_.forward(tape, tokens_), targets_); }

  // The gradient of each parameter.
  std::vector<Values> gradients(Context& context, Tape::Disturbance disturbance = {}) {
    parameters().zero_grad();
    Tape tape(context);
    tape.disturb_numbers(std::move(disturbance));
    tape.backward(loss(tape));
    std::vector<Values> result;
    for (const Parameter& parameter : parameters().all()) {
      result.push_back(read_values(context, parameter.gradient.tensor));
    }
    return result;
  }

 private:
  LanguageModel model_;
  Tensor tokens_, targets_;
};

// The length of the sequences that a model is checked with.
int64_t checked_length(const TrainConfig& config) {
  constexpr int64_t kShort = 9;
  Context meta(Device{DeviceType::meta});
  try {
    ModelLoss model(meta, config, kShort);
    model.parameters().materialize(meta, DType::float64, config.seed);
    Tape tape(meta, Tape::Mode::inference);
    model.loss(tape);
  } catch (const Error&) {  // a layer that reads its tokens as a grid takes as many as that has
    return config.trainer.sequence_length;
  }
  return kShort;
}

GradcheckReport check_model_differences(Context& context, const TrainConfig& config) {
  ModelLoss model(context, config, checked_length(config));
  model.materialize(context, DType::float64, config.seed);
  std::vector<GradcheckInput> inputs;
  for (const Parameter& parameter : model.parameters().all()) inputs.push_back({parameter.name, parameter.value});
  const GradcheckFunction function = [&](Tape& tape, const std::vector<Variable>& variables) {
    size_t index = 0;
    for (const Parameter& parameter : model.parameters().all()) {
      tape.replace_leaf(parameter.gradient, variables[index++]);
    }
    return std::vector<Variable>{model.loss(tape)};
  };
  return gradcheck(context, function, inputs, {.projections = 3});
}

GradcheckReport check_model_precision(Context& context, const TrainConfig& config, DType dtype) {
  const int64_t length = checked_length(config);
  ModelLoss model(context, config, length), exact(context, config, length);
  model.materialize(context, dtype, config.seed);
  exact.parameters().materialize(context, DType::float64, config.seed);
  for (size_t i = 0; i < exact.parameters().all().size(); ++i) {
    write_values(context, exact.parameters().all()[i].value, read_values(context, model.parameters().all()[i].value));
  }
  const std::vector<Values> found = model.gradients(context), expected = exact.gradients(context);
  GradcheckReport report;
  report.deterministic = found == model.gradients(context);
  std::vector<double> spreads(found.size(), 0.0);
  Rounding rounding(context, dtype, config.seed + 2);
  for (int move = 0; move < kMoves; ++move) {
    const std::vector<Values> moved = exact.gradients(context, std::ref(rounding));
    for (size_t i = 0; i < found.size(); ++i) {
      spreads[i] = std::max(spreads[i], size_of(difference_of(moved[i], expected[i]), Measure::norms));
    }
  }
  for (size_t i = 0; i < found.size(); ++i) {
    report.inputs.push_back(compare(model.parameters().all()[i].name, found[i], expected[i], Measure::norms,
                                    {model_tolerance(dtype), spreads[i]}));
  }
  return report;
}

GradcheckReport check_precision(Context& context, const LayerSpec& spec, const OperatorCase& operator_case,
                                DType dtype) {
  std::vector<NamedTensor> given = make_inputs(context, operator_case, dtype);
  Random random(2, RandomStream::test);
  for (const auto& [name, output] : run_layer(context, spec, given)) {
    const Tensor upstream = Tensor::empty(context, output.shape(), output.dtype());
    fill_normal(context, upstream, random, 0.0, 1.0);
    given.push_back({"d_" + name, upstream});
  }
  const std::vector<NamedTensor> found = run_layer(context, spec, given);
  const std::vector<NamedTensor> again = run_layer(context, spec, given);
  const std::vector<NamedTensor> exact = run_layer(context, spec, given, DType::float64);
  std::vector<double> spreads(found.size(), 0.0);
  Rounding rounding(context, dtype, 3);
  for (int move = 0; move < kMoves; ++move) {
    std::vector<NamedTensor> moved = given;
    for (NamedTensor& input : moved) {
      if (!is_floating(input.tensor.dtype())) continue;
      const Values values = read_values(context, input.tensor);
      input.tensor = Tensor::empty(context, input.tensor.shape(), DType::float64);
      write_values(context, input.tensor, values);
      rounding(input.tensor);
    }
    const std::vector<NamedTensor> results = run_layer(context, spec, moved, DType::float64, std::ref(rounding));
    for (size_t i = 0; i < results.size(); ++i) {
      const Values change =
          difference_of(read_values(context, results[i].tensor), read_values(context, exact[i].tensor));
      spreads[i] = std::max(spreads[i], size_of(change, Measure::elements));
    }
  }
  GradcheckReport report;
  for (size_t i = 0; i < found.size(); ++i) {
    const Values values = read_values(context, found[i].tensor);
    report.deterministic = report.deterministic && values == read_values(context, again[i].tensor);
    if (!found[i].name.starts_with("d_")) continue;
    report.inputs.push_back(compare(found[i].name.substr(2), values, read_values(context, exact[i].tensor),
                                    Measure::elements, {gradient_tolerance(dtype), spreads[i]}));
  }
  return report;
}

}  // namespace

double gradient_tolerance(DType dtype) {
  switch (dtype) {
    case DType::float32:
      return 1e-5;
    case DType::float16:
      return 1e-2;
    case DType::bfloat16:
      return 5e-2;
    default:
      fail("gradients of {} are not compared with those of float64", name(dtype));
  }
}

double model_tolerance(DType dtype) { return 4.0 * gradient_tolerance(dtype); }

GradcheckReport check_operator_gradients(Context& context, const Operator& op, const OperatorCase& operator_case,
                                         DType dtype) {
  const LayerSpec spec{&op, bind_operator(op, parse_config(operator_case.options, operator_case.name))};
  return dtype == DType::float64 ? check_differences(context, spec, operator_case)
                                 : check_precision(context, spec, operator_case, dtype);
}

GradcheckReport check_model_gradients(Context& context, const TrainConfig& config, DType dtype) {
  return dtype == DType::float64 ? check_model_differences(context, config)
                                 : check_model_precision(context, config, dtype);
}

}  // namespace heddle
