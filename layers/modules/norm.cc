#include "layers/modules/norm.h"

#include <fmt/format.h>

#include <cstddef>
#include <cstdint>

#include "core/runtime/error.h"

namespace heddle {

const Choices<NormType>& norm_choices() {
  static const Choices<NormType> choices = {
      {"layer_norm", NormType::layer_norm}, {"group_norm", NormType::group_norm},
      {"rms_norm", NormType::rms_norm},     {"group_rms_norm", NormType::group_rms_norm},
      {"srms_norm", NormType::srms_norm},   {"group_srms_norm", NormType::group_srms_norm}};
  return choices;
}

std::string_view name(NormType type) { return norm_choices()[static_cast<size_t>(type)].first; }

bool has_groups(NormType type) {
  return type == NormType::group_norm || type == NormType::group_rms_norm || type == NormType::group_srms_norm;
}

void describe_norm_values(ConfigFields& fields, NormType type, NormOptions& options) {
  fields.field("eps", options.eps, Range::at_least(0));
  fields.field("scale", options.scale);
  if (has_groups(type)) {
    fields.required("groups", options.groups, Range::count());
  } else if (fields.reads() && fields.node().get<int64_t>("groups", 1) != 1) {
    const std::string grouped = type == NormType::layer_norm ? "group_norm" : fmt::format("group_{}", name(type));
    fields.refuse("groups", fmt::format("{} has one group, {} has several", name(type), grouped));
  }
}

void check_norm_dim(const ConfigNode& section, int64_t dim, const NormOptions& options) {
  if (const auto given = section.find<int64_t>("dim"); given && *given != dim) {
    section.fail("dim", fmt::format("found {}, expected {}: the last dimension of x", *given, dim));
  }
  if (dim % options.groups != 0) {
    section.fail("groups",
                 fmt::format("found {}, expected a divisor of {}: the last dimension of x", options.groups, dim));
  }
}

void describe_norm(ConfigFields& fields, const ModelSize& model, Norm::Options& options) {
  NormType type = options.type;
  fields.required_choice("type", type, norm_choices());
  if (fields.reads()) options = Norm::Options::of(type);
  describe_norm_values(fields, type, options.norm);
  if (fields.reads()) check_norm_dim(fields.node(), model.dim, options.norm);
  fields.field("weight", options.weight);
  fields.field("bias", options.bias);
}

Norm::Options Norm::Options::of(NormType type) {
  Options options;
  options.type = type;
  options.norm.center = type == NormType::layer_norm || type == NormType::group_norm;
  options.weight = type != NormType::srms_norm && type != NormType::group_srms_norm;
  options.bias = options.norm.center;
  return options;
}

Norm::Norm(const Options& options, const ModuleBuilder& builder, int64_t dim) : options_(options), dim_(dim) {
  if (options.weight) weight_ = builder.add("weight", {dim}, Initializer::constant(1.0));
  if (options.bias) bias_ = builder.add("bias", {dim}, Initializer::constant(0.0));
}

Normed Norm::forward(Tape& tape, const Variable& x, const Variable& residual, const Variable& gate) const {
  const std::string_view layer = heddle::name(options_.type);
  check(x.value.rank() == 0 || x.shape()[-1] == dim_, "[{}] x has shape {}, expected a last dimension of {}", layer,
        x.shape(), dim_);
  NormInputs inputs{residual, gate, {}, {}};
  if (weight_ != nullptr) inputs.weight = ParameterSet::on(tape, *weight_);
  if (bias_ != nullptr) inputs.bias = ParameterSet::on(tape, *bias_);
  return norm(tape, x, inputs, options_.norm, layer);
}

}  // namespace heddle
