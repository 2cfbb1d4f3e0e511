#include "layers/ops/norm.h"

#include <algorithm>

#include "core/config/config_node.h"
#include "core/runtime/error.h"
#include "layers/ops/gradient.h"

namespace heddle {
namespace {

using kernels::rows_view;
using kernels::vector_view;

void check_same(std::string_view layer, const char* what, const Variable& found, const Variable& x) {
  if (!found.defined()) return;
  check(found.shape() == x.shape() && found.dtype() == x.dtype(), "[{}] {} is {} {}, expected {} {}: that of x", layer,
        what, name(found.dtype()), to_string(found.shape()), name(x.dtype()), to_string(x.shape()));
}

void check_vector(std::string_view layer, const char* what, const Variable& found, const Variable& x) {
  if (!found.defined()) return;
  const Shape expected{x.shape()[-1]};
  check(found.shape() == expected, "[{}] {} has shape {}, expected {}: the last dimension of x {}", layer, what,
        to_string(found.shape()), to_string(expected), to_string(x.shape()));
  check(found.dtype() == x.dtype(), "[{}] {} is {}, expected {}: the dtype of x", layer, what, name(found.dtype()),
        name(x.dtype()));
}

void check_norm(std::string_view layer, const Variable& x, const NormInputs& inputs, const NormOptions& options) {
  check(is_floating(x.dtype()) && x.value.rank() >= 1, "[{}] x is {} {}, expected real numbers (..., dim)", layer,
        name(x.dtype()), to_string(x.shape()));
  const int64_t dim = x.shape()[-1];
  check(options.groups >= 1 && dim % options.groups == 0 && dim > 0,
        "[{}] groups is {}, expected a divisor of the last dimension of x {}", layer, options.groups,
        to_string(x.shape()));
  check(options.eps >= 0.0, "[{}] eps is {}, expected a number >= 0", layer, options.eps);
  check_same(layer, "residual", inputs.residual, x);
  check_same(layer, "gate", inputs.gate, x);
  check_vector(layer, "weight", inputs.weight, x);
  check_vector(layer, "bias", inputs.bias, x);
}

struct NormNode : Node {
  std::string layer;
  kernels::NormOptions options;
  Slot x, residual, gate, weight, bias, y, r;
  Tensor saved_r;         // x + residual if it was stored, else x
  Tensor saved_residual;  // only when r was not stored
  Tensor saved_gate, saved_weight, saved_bias;
  Tensor mean, inv_std;

  std::string_view name() const override { return layer; }

  void backward(Tape& tape) override {
    Context& context = tape.context();
    Tensor d_y = tape.take_gradient(y);
    const Tensor d_r = r.id == x.id ? Tensor{} : tape.take_gradient(r);
    if (!d_y.defined()) {  // only r was used
      pass_gradient(tape, x, d_r);
      pass_gradient(tape, residual, d_r);
      return;
    }
    kernels::NormBackwardArgs args;
    args.x = rows_view(saved_r);
    args.residual = rows_view(saved_residual);
    args.gate = rows_view(saved_gate);
    args.weight = vector_view(saved_weight);
    args.bias = vector_view(saved_bias);
    args.mean = vector_view(mean);
    args.inv_std = vector_view(inv_std);
    args.d_y = rows_view(d_y);
    args.options = options;
    args.d_gate = rows_destination(tape.destination(gate));
    args.d_weight = vector_destination(tape.destination(weight));
    args.d_bias = vector_destination(tape.destination(bias));
    Tensor partials;
    if (args.d_weight || args.d_bias) {
      const MemoryScope scope(context, MemoryCategory::workspace);
      partials = Tensor::empty(context, {kernels::norm_partials(args.x.rows), 2 * args.x.cols},
                               accumulate_type(saved_r.dtype()));
      args.partials = rows_view(partials);
    }
    if (tape.can_share_gradient(x) && tape.can_share_gradient(residual)) {
      // One buffer serves d_x and d_residual, and d_r as well when nobody else holds it.
      const bool in_place = d_r.defined() && d_r.is_unique();
      const Tensor shared = in_place ? d_r : Tensor::empty(context, saved_r.shape(), saved_r.dtype());
      if (in_place) {
        args.d_x = {rows_view(shared), GradientMode::accumulate};
      } else {
        args.d_r = rows_view(d_r);
        args.d_x = {rows_view(shared), GradientMode::overwrite};
      }
      kernels::norm_backward(context, args);
      pass_gradient(tape, x, shared);
      pass_gradient(tape, residual, shared);
      return;
    }
    args.d_r = rows_view(d_r);
    args.d_x = rows_destination(tape.destination(x));
    args.d_residual = rows_destination(tape.destination(residual));
    kernels::norm_backward(context, args);
  }
};

}  // namespace

Normed norm(Tape& tape, const Variable& x, const NormInputs& inputs, const NormOptions& options,
            std::string_view layer) {
  check_norm(layer, x, inputs, options);
  Context& context = tape.context();
  const bool recorded = tape.records({&x, &inputs.residual, &inputs.gate, &inputs.weight, &inputs.bias});
  const bool has_residual = inputs.residual.defined();
  const bool stores_r = has_residual && options.return_residual;
  const DType statistics = accumulate_type(x.dtype());
  const int64_t rows = x.value.numel() / x.shape()[-1];

  Normed result;
  result.y = tape.output(Tensor::empty(context, x.shape(), x.dtype()), recorded);
  if (stores_r) result.r = tape.output(Tensor::empty(context, x.shape(), x.dtype()), recorded);
  if (!has_residual) result.r = x;
  Tensor mean, inv_std;
  if (recorded) {
    inv_std = Tensor::empty(context, {rows, options.groups}, statistics);
    if (options.center) mean = Tensor::empty(context, {rows, options.groups}, statistics);
  }
  kernels::norm_forward(context, {.x = rows_view(x.value),
                                  .residual = rows_view(inputs.residual.value),
                                  .gate = rows_view(inputs.gate.value),
                                  .weight = vector_view(inputs.weight.value),
                                  .bias = vector_view(inputs.bias.value),
                                  .y = rows_view(result.y.value),
                                  .r = stores_r ? rows_view(result.r.value) : kernels::RowsView{},
                                  .mean = vector_view(mean),
                                  .inv_std = vector_view(inv_std),
                                  .options = options});
  if (!recorded) return result;

  auto node = std::make_unique<NormNode>();
  node->layer = layer;
  node->options = options;
  node->x = x.slot;
  node->residual = inputs.residual.slot;
  node->gate = inputs.gate.slot;
  node->weight = inputs.weight.slot;
  node->bias = inputs.bias.slot;
  node->y = result.y.slot;
  node->r = result.r.slot;
  node->saved_r = stores_r ? result.r.value : x.value;
  if (has_residual && !stores_r) node->saved_residual = inputs.residual.value;
  node->saved_gate = inputs.gate.value;
  node->saved_weight = inputs.weight.value;
  if (inputs.gate.requires_grad()) node->saved_bias = inputs.bias.value;
  node->mean = mean;
  node->inv_std = inv_std;
  tape.record(std::move(node), {result.y.slot, stores_r ? result.r.slot : Slot{}});
  return result;
}

const std::vector<std::string>& norm_names() {
  static const std::vector<std::string> names = {"layer_norm",     "group_norm", "rms_norm",
                                                 "group_rms_norm", "srms_norm",  "group_srms_norm"};
  return names;
}

std::string_view name(NormType type) { return norm_names()[static_cast<size_t>(type)]; }

namespace {

bool has_groups(NormType type) {
  return type == NormType::group_norm || type == NormType::group_rms_norm || type == NormType::group_srms_norm;
}

// The options that a section of a model and run-layer's options have in common.
void read_common(const ConfigNode& node, NormType type, int64_t dim, NormOptions& options) {
  if (const auto given = node.find<int64_t>("dim"); given && *given != dim) {
    node.fail("dim", fmt::format("found {}, expected {}: the last dimension of x", *given, dim));
  }
  options.eps = node.get<double>("eps", options.eps, Range::at_least(0));
  options.scale = node.get<double>("scale", options.scale);
  if (has_groups(type)) {
    options.groups = node.require<int64_t>("groups", Range::at_least(1));
  } else {
    options.groups = node.get<int64_t>("groups", 1, Range::between(1, 1));
  }
  if (dim % options.groups != 0) {
    node.fail("groups",
              fmt::format("found {}, expected a divisor of {}: the last dimension of x", options.groups, dim));
  }
}

// An option `key: true|false` says whether the input is there.
void check_presence(const ConfigNode& node, const std::string& key, const Variable& input) {
  const auto wanted = node.find<bool>(key);
  if (!wanted || *wanted == input.defined()) return;
  node.fail(key, *wanted ? "found true, but no such input was given" : "found false, but such an input was given");
}

void read_gate(const ConfigNode& node, const Variable& gate, NormOptions& options) {
  const auto section = node.find_section("gate");
  if (!section) return;
  if (!gate.defined()) node.fail("gate", "no input gate was given");
  options.gate_act = section->get_choice<Activation>("act", Activation::none,
                                                     {{"none", Activation::none},
                                                      {"relu", Activation::relu},
                                                      {"sigmoid", Activation::sigmoid},
                                                      {"silu", Activation::silu}});
  options.gate_position = section->get_choice<GatePosition>("position", GatePosition::post,
                                                            {{"pre", GatePosition::pre}, {"post", GatePosition::post}});
  section->finish();
}

}  // namespace

template <NormType type>
NamedVariables apply_norm(Tape& tape, const ConfigNode& options, const NamedVariables& inputs) {
  const Variable x = input_or_none(inputs, "x");
  const NormInputs others{input_or_none(inputs, "residual"), input_or_none(inputs, "gate"),
                          input_or_none(inputs, "weight"), input_or_none(inputs, "bias")};
  check(x.value.rank() >= 1 && x.shape()[-1] > 0, "[{}] x has shape {}, expected (..., dim)", name(type),
        to_string(x.shape()));
  NormOptions norm_options = Norm::Options::of(type).norm;
  read_common(options, type, x.shape()[-1], norm_options);
  check_presence(options, "weight", others.weight);
  check_presence(options, "bias", others.bias);
  check_presence(options, "residual", others.residual);
  norm_options.return_residual = options.get<bool>("return_residual", others.residual.defined());
  read_gate(options, others.gate, norm_options);
  options.finish();
  const Normed result = norm(tape, x, others, norm_options, name(type));
  NamedVariables outputs{{"y", result.y}};
  if (norm_options.return_residual) outputs["r"] = result.r;
  return outputs;
}

template NamedVariables apply_norm<NormType::layer_norm>(Tape&, const ConfigNode&, const NamedVariables&);
template NamedVariables apply_norm<NormType::group_norm>(Tape&, const ConfigNode&, const NamedVariables&);
template NamedVariables apply_norm<NormType::rms_norm>(Tape&, const ConfigNode&, const NamedVariables&);
template NamedVariables apply_norm<NormType::group_rms_norm>(Tape&, const ConfigNode&, const NamedVariables&);
template NamedVariables apply_norm<NormType::srms_norm>(Tape&, const ConfigNode&, const NamedVariables&);
template NamedVariables apply_norm<NormType::group_srms_norm>(Tape&, const ConfigNode&, const NamedVariables&);

Norm::Options Norm::Options::of(NormType type) {
  Options options;
  options.type = name(type);
  options.norm.center = type == NormType::layer_norm || type == NormType::group_norm;
  options.weight = type != NormType::srms_norm && type != NormType::group_srms_norm;
  options.bias = options.norm.center;
  return options;
}

Norm::Options Norm::Options::read(const ConfigNode& section, int64_t dim) {
  const std::string type_name = section.require_name("type", norm_names());
  const auto place = std::find(norm_names().begin(), norm_names().end(), type_name) - norm_names().begin();
  const auto type = static_cast<NormType>(place);
  Options options = of(type);
  read_common(section, type, dim, options.norm);
  options.weight = section.get<bool>("weight", options.weight);
  options.bias = section.get<bool>("bias", options.bias);
  options.norm.return_residual = section.get<bool>("return_residual", options.norm.return_residual);
  section.finish();
  return options;
}

Norm::Norm(const Options& options, const ModuleBuilder& builder, int64_t dim) : options_(options) {
  if (options.weight) weight_ = builder.add("weight", {dim}, Initializer::constant(1.0));
  if (options.bias) bias_ = builder.add("bias", {dim}, Initializer::constant(0.0));
}

Normed Norm::forward(Tape& tape, const Variable& x, const Variable& residual, const Variable& gate) const {
  NormInputs inputs{residual, gate, {}, {}};
  if (weight_ != nullptr) inputs.weight = ParameterSet::on(tape, *weight_);
  if (bias_ != nullptr) inputs.bias = ParameterSet::on(tape, *bias_);
  return norm(tape, x, inputs, options_.norm, options_.type);
}

}  // namespace heddle
