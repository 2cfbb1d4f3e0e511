#include "tools/check_gradients.h"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>

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
  GradcheckOptions options;
  options.step = 3e-6;  // between rounding, which grows below, and curvature, which grows above
  return gradcheck(context, function, inputs, options);
}

// `relative_error` is that of the worst element, relative to the largest.
GradcheckInputReport compare(const std::string& name, const Values& found, const Values& exact, double tolerance) {
  double largest = 0.0;
  for (double value : exact) largest = std::max(largest, std::abs(value));
  GradcheckInputReport report{.name = name};
  for (size_t i = 0; i < exact.size(); ++i) {
    const double error = std::abs(found[i] - exact[i]);
    const double relative = largest > 0.0 ? error / largest : error;
    ++report.checked;
    if (!(relative <= tolerance)) ++report.failures;
    if (report.worst_element < 0 || !(relative <= report.relative_error)) {
      report.worst_element = static_cast<int64_t>(i);
      report.analytic = found[i];
      report.numeric = exact[i];
      report.relative_error = relative;
    }
  }
  return report;
}

// The same, but `relative_error` is that of the whole gradient, and so is the verdict: through many layers single
// elements go astray.
GradcheckInputReport compare_norms(const std::string& name, const Values& found, const Values& exact,
                                   double tolerance) {
  GradcheckInputReport report = compare(name, found, exact, std::numeric_limits<double>::infinity());
  double difference = 0.0, size = 0.0;
  for (size_t i = 0; i < exact.size(); ++i) {
    difference += (found[i] - exact[i]) * (found[i] - exact[i]);
    size += exact[i] * exact[i];
  }
  report.relative_error = std::sqrt(difference / std::max(size, std::numeric_limits<double>::min()));
  report.failures = report.relative_error <= tolerance ? 0 : report.checked;
  return report;
}

// Random tokens, and what the loss of a model for them is.
class ModelLoss {
 public:
  static constexpr int64_t kBatch = 2;
  static constexpr int64_t kLength = 9;

  ModelLoss(Context& context, const TrainConfig& config)
      : model_(config.model),
        tokens_(Tensor::empty(context, {kBatch, kLength}, DType::int32)),
        targets_(Tensor::empty(context, {kBatch, kLength}, DType::int32)) {
    Random random(config.seed, RandomStream::test);
    for (const Tensor& tensor : {tokens_, targets_}) {
      Values values(static_cast<size_t>(tensor.numel()));
      for (double& value : values) value = static_cast<double>(random.next_below(config.model.vocab_size));
      write_values(context, tensor, values);
    }
  }

  ParameterSet& parameters() { return model_.parameters(); }
  Variable loss(Tape& tape) const { return cross_entropy(tape, model_.forward(tape, tokens_), targets_); }

  // The gradient of each parameter.
  std::vector<Values> gradients(Context& context) {
    parameters().zero_grad();
    Tape tape(context);
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

GradcheckReport check_model_differences(Context& context, const TrainConfig& config) {
  ModelLoss model(context, config);
  model.parameters().materialize(context, DType::float64, config.seed);
  std::vector<GradcheckInput> inputs;
  for (const Parameter& parameter : model.parameters().all()) inputs.push_back({parameter.name, parameter.value});
  const GradcheckFunction function = [&](Tape& tape, const std::vector<Variable>& variables) {
    size_t index = 0;
    for (const Parameter& parameter : model.parameters().all()) {
      tape.replace_leaf(parameter.gradient, variables[index++]);
    }
    return std::vector<Variable>{model.loss(tape)};
  };
  GradcheckOptions options;
  options.step = 3e-7;
  options.relative_tolerance = 1e-5;
  options.projections = 3;
  return gradcheck(context, function, inputs, options);
}

GradcheckReport check_model_precision(Context& context, const TrainConfig& config, DType dtype) {
  ModelLoss model(context, config), exact(context, config);
  model.parameters().materialize(context, dtype, config.seed);
  exact.parameters().materialize(context, DType::float64, config.seed);
  for (size_t i = 0; i < exact.parameters().all().size(); ++i) {
    write_values(context, exact.parameters().all()[i].value, read_values(context, model.parameters().all()[i].value));
  }
  const std::vector<Values> found = model.gradients(context), expected = exact.gradients(context);
  GradcheckReport report;
  report.deterministic = found == model.gradients(context);
  report.passed = report.deterministic;
  for (size_t i = 0; i < found.size(); ++i) {
    report.inputs.push_back(
        compare_norms(model.parameters().all()[i].name, found[i], expected[i], model_tolerance(dtype)));
    report.passed = report.passed && report.inputs.back().failures == 0;
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
  GradcheckReport report;
  for (size_t i = 0; i < found.size(); ++i) {
    const Values values = read_values(context, found[i].tensor);
    report.deterministic = report.deterministic && values == read_values(context, again[i].tensor);
    if (!found[i].name.starts_with("d_")) continue;
    report.inputs.push_back(
        compare(found[i].name.substr(2), values, read_values(context, exact[i].tensor), gradient_tolerance(dtype)));
    report.passed = report.passed && report.inputs.back().failures == 0;
  }
  report.passed = report.passed && report.deterministic;
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
