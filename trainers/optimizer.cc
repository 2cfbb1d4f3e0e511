#include "trainers/optimizer.h"

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <string>

#include "core/config/config_fields.h"
#include "core/tensor/transfer.h"
#include "kernels/optimizer/optimizer.h"

namespace heddle {

using kernels::vector_view;

void describe(ConfigFields& fields, OptimizerConfig& optimizer) {
  fields.choice("type", optimizer.type, {{"adamw", OptimizerType::adamw}});
  fields.field("lr", optimizer.lr, Range::positive());
  std::vector<double> betas(optimizer.betas.begin(), optimizer.betas.end());
  fields.field("betas", betas, Range::from_below(0, 1));
  if (betas.size() != optimizer.betas.size()) {
    fields.fail("betas", "found a list of " + std::to_string(betas.size()) + ", expected two numbers");
  }
  optimizer.betas = {betas[0], betas[1]};
  fields.field("eps", optimizer.eps, Range::positive());
  fields.field("weight_decay", optimizer.weight_decay, Range::at_least(0));
  fields.field("clip_norm", optimizer.clip_norm, Range::at_least(0));
}

AdamW::AdamW(Context& context, ParameterSet& parameters, const OptimizerConfig& config)
    : context_(context),
      parameters_(parameters),
      config_(config),
      staged_(context, 2 * kernels::step_scalars * sizeof(double)) {
  const MemoryScope scope(context, MemoryCategory::optimizer);
  const Tensor& master = parameters.master();
  m_ = Tensor::zeros(context, master.shape(), master.dtype());
  v_ = Tensor::zeros(context, master.shape(), master.dtype());
  scalars_ = Tensor::zeros(context, {kernels::step_scalars}, master.dtype());
}

void AdamW::set_step(int64_t step, double learning_rate, double gradient_scale) {
  gradient_scale_ = gradient_scale;
  const DType dtype = scalars_.dtype();
  const auto put = [&](kernels::StepScalar scalar, double value) {
    write_number(staged_.as<char>() + scalar * size_of(dtype), dtype, value);
  };
  put(kernels::scalar_learning_rate, learning_rate);
  put(kernels::scalar_correction1, 1.0 - std::pow(config_.betas[0], static_cast<double>(step)));
  put(kernels::scalar_correction2, 1.0 - std::pow(config_.betas[1], static_cast<double>(step)));
  put(kernels::scalar_clip_norm, config_.clip_norm);
  put(kernels::scalar_gradient_scale, gradient_scale);
  put(kernels::scalar_gradient_norm, 0.0);
}

void AdamW::apply(const Tensor& losses) {
  const size_t bytes = kernels::step_scalars * size_of(scalars_.dtype());
  Backend& backend = context_.backend();
  backend.copy_from_host(scalars_.raw(), staged_.data(), bytes, context_.stream());
  {
    const MemoryScope scope(context_, MemoryCategory::workspace);
    const Tensor& gradient = parameters_.gradient();
    const Tensor partials =
        Tensor::empty(context_, {kernels::gradient_norm_partials(gradient.numel())}, gradient.dtype());
    kernels::gradient_norm(context_, {.gradient = vector_view(gradient),
                                      .scalars = vector_view(scalars_),
                                      .partials = vector_view(partials),
                                      .losses = vector_view(losses)});
  }
  const bool has_copy = parameters_.value().dtype() != parameters_.master().dtype();
  const auto update_part = [&](int64_t begin, int64_t end, double weight_decay) {
    if (begin == end) return;
    const auto part = [&](const Tensor& flat) { return vector_view(flat.slice(0, begin, end)); };
    kernels::adamw(context_, {.master = part(parameters_.master()),
                              .gradient = part(parameters_.gradient()),
                              .m = part(m_),
                              .v = part(v_),
                              .value = has_copy ? part(parameters_.value()) : kernels::VectorView{},
                              .scalars = vector_view(scalars_),
                              .beta1 = config_.betas[0],
                              .beta2 = config_.betas[1],
                              .eps = config_.eps,
                              .weight_decay = weight_decay});
  };
  const int64_t decay_end = parameters_.decay_end();
  update_part(0, decay_end, config_.weight_decay);
  update_part(decay_end, parameters_.master().numel(), 0.0);
  if (context_.is_meta()) return;
  backend.copy_to_host_async(staged_.as<char>() + bytes, scalars_.raw(), bytes, context_.stream());
}

double AdamW::gradient_norm() const {
  if (context_.is_meta()) return std::numeric_limits<double>::quiet_NaN();
  const size_t place = kernels::step_scalars + kernels::scalar_gradient_norm;
  const DType dtype = scalars_.dtype();
  return read_number(staged_.as<char>() + place * size_of(dtype), dtype) * gradient_scale_;
}

std::vector<NamedTensor> AdamW::state() const {
  std::vector<NamedTensor> tensors;
  size_t index = 0;
  for (const Parameter& parameter : parameters_.all()) {
    const int64_t begin = parameters_.offset(index++);
    const auto part = [&](const Tensor& flat) {
      return flat.slice(0, begin, begin + numel(parameter.shape)).reshape(parameter.shape);
    };
    tensors.push_back({parameter.name + ".m", part(m_)});
    tensors.push_back({parameter.name + ".v", part(v_)});
  }
  return tensors;
}

}  // namespace heddle
