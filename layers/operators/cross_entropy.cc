#include "layers/ops/cross_entropy.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <string>
#include <vector>

#include "core/config/config_fields.h"
#include "layers/operators/operators.h"
#include "layers/operators/reference.h"
#include "layers/ops/linear_cross_entropy.h"

namespace heddle {
namespace {

using namespace reference;  // NOLINT(google-build-using-namespace): the words that references are written in

CrossEntropyOptions read_options(ConfigFields& fields) {
  CrossEntropyOptions options;
  fields.field("ignore_index", options.ignore_index);
  fields.field("label_smoothing", options.label_smoothing, Range::between(0.0, 1.0));
  fields.choice("reduction", options.reduction,
                {{"mean", Reduction::mean}, {"sum", Reduction::sum}, {"none", Reduction::none}});
  fields.field("z_loss", options.z_loss, Range::at_least(0.0));
  return options;
}

OperatorFunction make_cross_entropy(const ConfigNode& node) {
  ConfigFields fields(node);
  return [options = read_options(fields)](Tape& tape, const NamedVariables& inputs) {
    return NamedVariables{{"loss", cross_entropy(tape, inputs.at("logits"), inputs.at("targets").value, options)}};
  };
}

ReferenceTensors cross_entropy_reference(const ConfigNode& options, const ReferenceTensors& inputs, DType) {
  const ReferenceTensor &logits = inputs.at("logits"), &targets = inputs.at("targets");
  const auto ignored = options.get<int64_t>("ignore_index", -100);
  const double smoothing = options.get<double>("label_smoothing", 0.0), z_loss = options.get<double>("z_loss", 0.0);
  const std::string reduction = options.get<std::string>("reduction", "mean");
  const int64_t classes = logits.shape[-1];
  ReferenceTensor loss = host_zeros(reduction == "none" ? targets.shape : Shape{});
  int64_t count = 0;
  for (int64_t i = 0; i < numel(targets.shape); ++i) {
    const auto target = static_cast<int64_t>(targets[i]);
    if (target == ignored) continue;
    double sum = 0.0, mean = 0.0;
    for (int64_t j = 0; j < classes; ++j) {
      sum += std::exp(logits[i * classes + j]);
      mean += logits[i * classes + j] / static_cast<double>(classes);
    }
    const double log_sum = std::log(sum);
    loss[reduction == "none" ? i : 0] +=
        log_sum - (1.0 - smoothing) * logits[i * classes + target] - smoothing * mean + z_loss * log_sum * log_sum;
    ++count;
  }
  if (reduction == "mean") loss[0] /= static_cast<double>(std::max<int64_t>(count, 1));
  return {{"loss", loss}};
}

OperatorFunction make_linear_cross_entropy(const ConfigNode& node) {
  ConfigFields fields(node);
  LinearCrossEntropyOptions options{.loss = read_options(fields)};
  fields.field("chunk", options.chunk, Range::count());
  return [options](Tape& tape, const NamedVariables& inputs) {
    return NamedVariables{
        {"loss", linear_cross_entropy(tape, inputs.at("x"), inputs.at("weight"), inputs.at("targets").value, options)}};
  };
}

// The logits are stored, so they are rounded.
ReferenceTensors linear_cross_entropy_reference(const ConfigNode& options, const ReferenceTensors& inputs,
                                                DType dtype) {
  const ReferenceTensor logits = host_rounded(host_linear(inputs.at("x"), inputs.at("weight")), dtype);
  return cross_entropy_reference(options, {{"logits", logits}, {"targets", inputs.at("targets")}}, dtype);
}

std::vector<OperatorCase> linear_cross_entropy_cases() {
  std::vector<OperatorCase> cases;
  const auto add = [&](const Shape& rows, int64_t dim, int64_t classes, const std::string& options,
                       bool large = false) {
    Shape shape = rows;
    shape.append(dim);
    cases.push_back(make_case("linear_cross_entropy", options,
                              {{.name = "x", .shape = shape},
                               matrix_input("weight", classes, dim),
                               {.name = "targets", .shape = rows, .kind = CaseInputKind::tokens, .range = classes}},
                              linear_cross_entropy_reference, large));
    cases.back().roundings = 2;
  };
  add({2, 4}, 3, 5, "{}");
  add({2, 4}, 3, 5, "{chunk: 3, ignore_index: 1}");
  add({7}, 4, 6, "{chunk: 1, label_smoothing: 0.2, reduction: sum}");
  add({5, 1}, 3, 4, "{chunk: 5, z_loss: 0.1}");
  add({4}, 5, 4, "{chunk: 2, z_loss: 0.02, label_smoothing: 0.1, ignore_index: 0, reduction: sum}");
  add({3, 50}, 33, 301, "{chunk: 32}", true);
  add({130}, 65, 70, "{chunk: 64, z_loss: 0.01, reduction: sum}", true);
  add({11}, 8, 2051, "{chunk: 4, ignore_index: 3, label_smoothing: 0.1}", true);
  add({9}, 4, 2048, "{chunk: 8, z_loss: 0.01}", true);
  add({3}, 2, 70000, "{chunk: 2}", true);  // a row of float32 is longer than what a GPU's block holds
  return cases;
}

std::vector<OperatorCase> cross_entropy_cases() {
  std::vector<OperatorCase> cases;
  const auto add = [&](const Shape& rows, int64_t classes, const std::string& options, bool large = false,
                       double scale = 1.0) {
    Shape shape = rows;
    shape.append(classes);
    cases.push_back(make_case("cross_entropy", options,
                              {{.name = "logits", .shape = shape, .scale = scale},
                               {.name = "targets", .shape = rows, .kind = CaseInputKind::tokens, .range = classes}},
                              cross_entropy_reference, large));
  };
  for (const std::string options : {"{}", "{ignore_index: 2}", "{label_smoothing: 0.1}",
                                    "{ignore_index: 0, label_smoothing: 0.3}", "{label_smoothing: 1.0}"}) {
    add({2, 4}, 5, options);
    add({3, 7}, 41, options, true);
  }
  for (const std::string options :
       {"{reduction: sum}", "{reduction: none}", "{z_loss: 0.3}", "{reduction: sum, z_loss: 0.01, ignore_index: 1}",
        "{reduction: none, z_loss: 0.1, label_smoothing: 0.2, ignore_index: 2}"}) {
    add({2, 4}, 5, options);
    add({3, 7}, 41, options, true);
  }
  add({5}, 1, "{ignore_index: 0, reduction: none}");
  add({2}, 9001, "{z_loss: 0.05, reduction: none}", true);
  add({3}, 1, "{}");
  add({4}, 1, "{ignore_index: 0}");  // every row is ignored
  add({70}, 3001, "{label_smoothing: 0.1}", true, 4.0);
  add({7}, 9001, "{}", true, 4.0);  // more classes than a chunk of a kernel
  return cases;
}

}  // namespace

Operator cross_entropy_operator() {
  return {.name = "cross_entropy",
          .inputs = {{.name = "logits"}, {.name = "targets", .kind = InputKind::index}},
          .outputs = {"loss"},
          .make = make_cross_entropy,
          .cases = cross_entropy_cases};
}

Operator linear_cross_entropy_operator() {
  return {.name = "linear_cross_entropy",
          .inputs = {{.name = "x"}, {.name = "weight"}, {.name = "targets", .kind = InputKind::index}},
          .outputs = {"loss"},
          .make = make_linear_cross_entropy,
          .cases = linear_cross_entropy_cases};
}

}  // namespace heddle
