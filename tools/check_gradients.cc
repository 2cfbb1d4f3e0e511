#include "tools/check_gradients.h"

#include <algorithm>
#include <bit>
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
#include "tools/gradient_rounding.h"
#include "tools/run_operator.h"
#include "trainers/model/language_model.h"

namespace heddle {
namespace {

bool have_same_bits(const GradientValues& a, const GradientValues& b) {
  return std::equal(a.begin(), a.end(), b.begin(), b.end(), [](double first, double second) {
    return std::bit_cast<uint64_t>(first) == std::bit_cast<uint64_t>(second);
  });
}

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

GradcheckReport check_differences(Context& context, const LayerSpec& spec, const OperatorCase& operator_case,
                                  const GradcheckProgress& progress) {
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
  return gradcheck(context, function, inputs, {.progress = progress});
}

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
      GradientValues values(static_cast<size_t>(tensor.numel()));
      for (double& value : values) value = static_cast<double>(random.next_below(config.model.vocab_size));
      write_values(context, tensor, values);
    }
  }

  // New parameters, moved off a little. Layers read some from their masters, so these hold the same rounded numbers.
  void materialize(Context& context, DType dtype, uint64_t seed) {
    parameters().materialize(context, dtype, seed);
    Random random(seed + 1, RandomStream::test);
    for (const Parameter& parameter : parameters().all()) {
      GradientValues values = read_values(context, parameter.value);
      for (double& value : values) value = round_to(dtype, value + 0.01 * random.next_normal());
      write_values(context, parameter.master, values);
      write_values(context, parameter.value, values);
    }
  }

  ParameterSet& parameters() { return model_.parameters(); }
  Variable loss(Tape& tape) const { return cross_entropy(tape, model_.forward(tape, tokens_), targets_); }

  // The gradient of each parameter.
  std::vector<GradientValues> gradients(Context& context, Tape::Disturbance disturbance = {}) {
    parameters().zero_grad();
    Tape tape(context);
    tape.disturb_numbers(std::move(disturbance));
    tape.backward(loss(tape));
    std::vector<GradientValues> result;
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

GradcheckReport check_model_differences(Context& context, const TrainConfig& config,
                                        const GradcheckProgress& progress) {
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
  return gradcheck(context, function, inputs, {.projections = 3, .progress = progress});
}

void write_parameters(Context& context, ParameterSet& to, const std::vector<GradientValues>& values) {
  for (size_t i = 0; i < values.size(); ++i) {
    write_values(context, to.all()[i].master, values[i]);
    write_values(context, to.all()[i].value, values[i]);
  }
}

GradcheckReport check_model_precision(Context& context, const TrainConfig& config, DType dtype) {
  const int64_t length = checked_length(config);
  ModelLoss model(context, config, length), exact(context, config, length);
  model.materialize(context, dtype, config.seed);
  exact.parameters().materialize(context, DType::float64, config.seed);
  std::vector<GradientValues> parameters;
  for (const Parameter& parameter : model.parameters().all()) {
    parameters.push_back(read_values(context, parameter.value));
  }
  write_parameters(context, exact.parameters(), parameters);
  GradientPair found{model.gradients(context), exact.gradients(context), {}};
  for (const Parameter& parameter : model.parameters().all()) {
    found.dtypes.push_back(parameter.gradient.tensor.dtype());
  }
  const std::vector<GradientValues> again = model.gradients(context);
  GradcheckReport report;
  report.deterministic = std::equal(found.low.begin(), found.low.end(), again.begin(), have_same_bits);
  RoundingSpread spread(found, Measure::norms);
  Rounding rounding(context, dtype, config.seed + 2);
  for (int move = 0; move < kRoundingMoves; ++move) {
    spread.add_between(exact.gradients(context, std::ref(rounding)), found.exact);
  }
  std::vector<std::string> names;
  for (const Parameter& parameter : model.parameters().all()) names.push_back(parameter.name);
  report.inputs = compare_gradients(names, found, spread, dtype, model_tolerance(dtype), [&](int move) {
    Context cpu(Device{}, {.threads = 1});
    ModelLoss same(cpu, config, length);
    same.parameters().materialize(cpu, dtype, config.seed);
    InsideMove inside(cpu, dtype, move);
    std::vector<GradientValues> moved;
    for (const GradientValues& values : parameters) {
      moved.push_back(inside.inputs(values));
      for (double& value : moved.back()) value = round_to(dtype, value);
    }
    write_parameters(cpu, same.parameters(), moved);
    return same.gradients(cpu);
  });
  return report;
}

// Among the results of run_layer() and what it is given.
bool is_gradient(const std::string& name) { return name.starts_with("d_"); }

// The gradients among the results of run_layer().
std::vector<GradientValues> gradients_of(Context& context, const std::vector<NamedTensor>& results) {
  std::vector<GradientValues> gradients;
  for (const auto& [name, tensor] : results) {
    if (is_gradient(name)) gradients.push_back(read_values(context, tensor));
  }
  return gradients;
}

std::vector<NamedTensor> moved_by(Rounding& rounding, const std::vector<NamedTensor>& tensors) {
  std::vector<NamedTensor> moved = tensors;
  for (NamedTensor& input : moved) {
    if (is_floating(input.tensor.dtype())) input.tensor = rounding.moved(input.tensor);
  }
  return moved;
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
  const auto exact_gradients = [&](const std::vector<NamedTensor>& inputs, Tape::Disturbance disturbance = {}) {
    return gradients_of(context, run_layer(context, spec, inputs, DType::float64, std::move(disturbance)));
  };
  const std::vector<NamedTensor> results = run_layer(context, spec, given);
  const std::vector<NamedTensor> again = run_layer(context, spec, given);
  GradientPair found{gradients_of(context, results), exact_gradients(given), {}};
  for (const auto& [name, values] : results) {
    if (is_gradient(name)) found.dtypes.push_back(values.dtype());
  }
  RoundingSpread spread(found, Measure::elements);
  Rounding rounding(context, dtype, 3);
  for (int move = 0; move < kRoundingMoves; ++move) {
    spread.add_between(exact_gradients(moved_by(rounding, given), std::ref(rounding)), found.exact);
  }
  GradcheckReport report;
  std::vector<std::string> names;
  for (size_t i = 0; i < results.size(); ++i) {
    const auto& [name, values] = results[i];
    if (!have_same_bits(read_values(context, values), read_values(context, again[i].tensor))) {
      report.deterministic = false;
    }
    if (is_gradient(name)) names.push_back(name.substr(2));
  }
  report.inputs = compare_gradients(names, found, spread, dtype, gradient_tolerance(dtype), [&](int move) {
    Context cpu(Device{}, {.threads = 1});
    InsideMove inside(cpu, dtype, move);
    std::vector<NamedTensor> moved;
    for (const auto& [name, tensor] : given) {
      moved.push_back({name, Tensor::empty(cpu, tensor.shape(), tensor.dtype())});
      GradientValues values = read_values(context, tensor);
      if (is_gradient(name)) {
        values = inside.upstream(std::move(values));
      } else if (is_floating(tensor.dtype())) {
        values = inside.inputs(std::move(values));
      }
      write_values(cpu, moved.back().tensor, values);
    }
    return gradients_of(cpu, run_layer(cpu, spec, moved));
  });
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
                                         DType dtype, const GradcheckProgress& progress) {
  const LayerSpec spec{&op, bind_operator(op, parse_config(operator_case.options, operator_case.name))};
  return dtype == DType::float64 ? check_differences(context, spec, operator_case, progress)
                                 : check_precision(context, spec, operator_case, dtype);
}

GradcheckReport check_model_gradients(Context& context, const TrainConfig& config, DType dtype,
                                      const GradcheckProgress& progress) {
  return dtype == DType::float64 ? check_model_differences(context, config, progress)
                                 : check_model_precision(context, config, dtype);
}

}  // namespace heddle
