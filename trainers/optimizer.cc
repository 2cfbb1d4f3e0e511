#include "trainers/optimizer.h"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <numeric>
#include <optional>
#include <utility>

#include "core/runtime/error.h"
#include "core/tensor/transfer.h"
#include "kernels/optimizer/muon.h"
#include "kernels/optimizer/optimizer.h"
#include "trainers/muon.h"

namespace heddle {

using kernels::vector_view;
using kernels::VectorView;

namespace {

kernels::UpdateRule update_rule(OptimizerType type) {
  switch (type) {
    case OptimizerType::adamw:
      return kernels::UpdateRule::adamw;
    case OptimizerType::lion:
      return kernels::UpdateRule::lion;
    case OptimizerType::sgd:
      return kernels::UpdateRule::sgd;
    case OptimizerType::muon:
      return kernels::UpdateRule::muon;
  }
  return {};
}

// Relative to the learning rate.
double matrix_scale(MuonScale scale, const Shape& shape) {
  const double rows = static_cast<double>(shape[0]), cols = static_cast<double>(shape[1]);
  return scale == MuonScale::original ? std::sqrt(std::max(1.0, rows / cols)) : 0.2 * std::sqrt(std::max(rows, cols));
}

// The indices of the parameters in the order of the flat buffers.
std::vector<size_t> flat_order(const ParameterSet& parameters) {
  std::vector<size_t> order(parameters.all().size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::stable_sort(order.begin(), order.end(),
                   [&](size_t a, size_t b) { return parameters.offset(a) < parameters.offset(b); });
  return order;
}

}  // namespace

Optimizer::Optimizer(Context& context, ParameterSet& parameters, const OptimizerConfig& config,
                     const WeightAverage* average, DataParallel* parallel)
    : context_(context),
      parameters_(parameters),
      config_(config),
      average_(average),
      parallel_(parallel),
      range_(updated_range(parallel, parameters)),
      staged_(context, 2 * kernels::step_scalars * sizeof(double)) {
  if (const auto unmatched = find_unmatched_group(parameters, config)) {
    fail("optimizer.groups.{}.pattern: {}", unmatched->index, unmatched->message);
  }
  const MemoryScope scope(context, MemoryCategory::optimizer);
  const DType dtype = parameters.master().dtype();
  if (has_m()) m_ = Tensor::zeros(context, {range_.size()}, dtype);
  make_parts();
  scalars_ = Tensor::zeros(context, {kernels::step_scalars}, dtype);
  if (parallel != nullptr && parallel->is_sharded()) norms_ = Tensor::zeros(context, {parallel->count()}, dtype);
}

// Neighbours in the updated range that are updated alike are one part. Second moments lie in v in the order of the
// parameters that have them. Of a parameter that begins or ends in another range there is only what lies in this one.
void Optimizer::make_parts() {
  const bool has_v = config_.type == OptimizerType::adamw || config_.type == OptimizerType::muon;
  const std::vector<size_t> order = flat_order(parameters_);
  const int64_t size = parameters_.master().numel();
  std::vector<double> table;
  std::optional<ParameterRule> previous;
  int64_t size_of_v = 0;
  offsets_of_v_.assign(order.size(), -1);
  for (size_t i = 0; i < order.size(); ++i) {
    const Parameter& parameter = parameters_.all()[order[i]];
    const int64_t next = i + 1 < order.size() ? parameters_.offset(order[i + 1]) : size;
    const FlatRange range = intersection({parameters_.offset(order[i]), next}, range_);
    if (range.size() == 0) continue;
    const ParameterRule rule = rule_of(parameter, config_);
    const bool is_with_v = has_v && !rule.is_orthogonalized;
    if (rule.is_orthogonalized) matrices_.push_back({&parameter, range.begin, rule});
    if (is_with_v) offsets_of_v_[order[i]] = size_of_v;
    if (rule != previous) {
      table.insert(table.end(),
                   {0.0, is_with_v ? static_cast<double>(size_of_v) : -1.0, rule.lr_scale, rule.weight_decay});
      previous = rule;
    }
    table[table.size() - kernels::part_columns + kernels::part_end] = static_cast<double>(range.end - range_.begin);
    if (is_with_v) size_of_v += range.size();
  }
  const DType dtype = parameters_.master().dtype();
  if (has_v) v_ = Tensor::zeros(context_, {size_of_v}, dtype);
  const auto parts = static_cast<int64_t>(table.size()) / kernels::part_columns;
  parts_ = Tensor::empty(context_, {parts, kernels::part_columns}, DType::float64);
  if (!context_.is_meta()) write_values(context_, parts_, table);
}

void Optimizer::set_step(int64_t step, double learning_rate, double gradient_scale) {
  check(step >= 1, "the optimizer was given step {}: steps count from 1", step);
  has_step_ = true;
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
  const double average_decay = average_ != nullptr ? average_->decay(step) : 0.0;
  put(kernels::scalar_average_decay, average_decay);
  put(kernels::scalar_average_rest, 1.0 - average_decay);
}

void Optimizer::apply(const Tensor& losses) {
  check(has_step_, "the optimizer was to update without set_step()");
  parameters_.zero_unwritten_gradients(context_);
  const size_t bytes = kernels::step_scalars * size_of(scalars_.dtype());
  Backend& backend = context_.backend();
  backend.copy_from_host(scalars_.raw(), staged_.data(), bytes, context_.stream());
  compute_gradient_norm(losses);
  if (range_.size() > 0) update_all();
  for (const Matrix& matrix : matrices_) update_matrix(matrix);
  if (parallel_ != nullptr) parallel_->gather_values();
  if (context_.is_meta()) return;
  backend.copy_to_host_async(staged_.as<char>() + bytes, scalars_.raw(), bytes, context_.stream());
}

// The norm of the gradient is the norm of the norms of its ranges.
void Optimizer::compute_gradient_norm(const Tensor& losses) {
  if (!norms_.defined()) return compute_norm_of(parameters_.gradient(), losses);
  if (range_.size() > 0) {
    compute_norm_of(updated(parameters_.gradient()), {});
    copy(context_, norms_.select(0, parallel_->rank()), scalars_.select(0, kernels::scalar_gradient_norm));
  }
  parallel_->gather_rows(norms_);
  compute_norm_of(norms_, losses);
}

// Writes scalars[scalar_gradient_norm].
void Optimizer::compute_norm_of(const Tensor& numbers, const Tensor& losses) {
  const MemoryScope scope(context_, MemoryCategory::workspace);
  const Tensor partials = Tensor::empty(context_, {kernels::gradient_norm_partials(numbers.numel())}, numbers.dtype());
  kernels::gradient_norm(context_, {.gradient = vector_view(numbers),
                                    .scalars = vector_view(scalars_),
                                    .partials = vector_view(partials),
                                    .losses = vector_view(losses)});
}

VectorView Optimizer::compute_copy(const FlatRange& range) const {
  const bool has_copy = parameters_.value().dtype() != parameters_.master().dtype();
  return has_copy ? vector_view(parameters_.value().slice(0, range.begin, range.end)) : VectorView{};
}

// All parameters in one pass, but for the matrices of Muon, of which it updates the momentum.
void Optimizer::update_all() {
  kernels::update_parameters(context_, {.rule = update_rule(config_.type),
                                        .master = vector_view(updated(parameters_.master())),
                                        .gradient = vector_view(updated(parameters_.gradient())),
                                        .m = vector_view(m_),
                                        .v = vector_view(v_),
                                        .value = compute_copy(range_),
                                        .average = average_ != nullptr ? vector_view(average_->flat()) : VectorView{},
                                        .scalars = vector_view(scalars_),
                                        .parts = kernels::rows_view(parts_),
                                        .beta1 = config_.betas[0],
                                        .beta2 = config_.betas[1],
                                        .eps = config_.eps,
                                        .momentum = config_.momentum,
                                        .nesterov = config_.nesterov});
}

VectorView Optimizer::part_of(const Tensor& updated, const Matrix& matrix) const {
  const int64_t begin = matrix.offset - range_.begin;
  return vector_view(updated.slice(0, begin, begin + numel(matrix.parameter->shape)));
}

// The products are taken in the compute dtype, with bfloat16 for float16: powers of small numbers need its range.
void Optimizer::update_matrix(const Matrix& matrix) {
  constexpr double kEps = 1e-7;
  const MemoryScope scope(context_, MemoryCategory::workspace);
  const Shape& shape = matrix.parameter->shape;
  const DType dtype = parameters_.value().dtype() == DType::float16 ? DType::bfloat16 : parameters_.value().dtype();
  Tensor direction = Tensor::empty(context_, shape, dtype);
  {
    const Tensor partials = Tensor::empty(context_, {kernels::gradient_norm_partials(direction.numel())}, m_.dtype());
    kernels::muon_direction(context_, {.gradient = part_of(updated(parameters_.gradient()), matrix),
                                       .m = part_of(m_, matrix),
                                       .scalars = vector_view(scalars_),
                                       .partials = vector_view(partials),
                                       .direction = vector_view(direction),
                                       .momentum = config_.momentum,
                                       .nesterov = config_.nesterov,
                                       .eps = kEps});
  }
  direction = orthogonalize(context_, std::move(direction), config_.newton_schulz_steps);
  kernels::muon_apply(context_, {.master = part_of(updated(parameters_.master()), matrix),
                                 .direction = vector_view(direction),
                                 .value = compute_copy({matrix.offset, matrix.offset + numel(shape)}),
                                 .average = average_ != nullptr ? part_of(average_->flat(), matrix) : VectorView{},
                                 .scalars = vector_view(scalars_),
                                 .lr_scale = matrix.rule.lr_scale,
                                 .weight_decay = matrix.rule.weight_decay,
                                 .direction_scale = matrix_scale(config_.scale, shape)});
}

double Optimizer::gradient_norm() const {
  if (context_.is_meta()) return std::numeric_limits<double>::quiet_NaN();
  const size_t place = kernels::step_scalars + kernels::scalar_gradient_norm;
  const DType dtype = scalars_.dtype();
  return read_number(staged_.as<char>() + place * size_of(dtype), dtype) * gradient_scale_;
}

std::vector<ShardedTensor> Optimizer::parts_of_state() const {
  std::vector<ShardedTensor> tensors;
  for (size_t index = 0; index < parameters_.all().size(); ++index) {
    const Parameter& parameter = parameters_.all()[index];
    const bool has_v = v_.defined() && !rule_of(parameter, config_).is_orthogonalized;
    const auto part = [&](const char* suffix, const Tensor& flat, int64_t begin) {
      tensors.push_back(part_of_parameter(parallel_, parameters_, index, parameter.name + suffix, flat, begin));
    };
    const int64_t begin = std::max(parameters_.offset(index), range_.begin) - range_.begin;
    if (m_.defined()) part(".m", m_, begin);
    if (has_v) part(".v", v_, offsets_of_v_[index]);
  }
  return tensors;
}

std::vector<NamedTensor> Optimizer::state() const { return whole_tensors(parts_of_state()); }

}  // namespace heddle
