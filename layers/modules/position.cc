#include "layers/modules/position.h"

#include <algorithm>
#include <cmath>

#include "core/runtime/error.h"
#include "layers/ops/lrpe.h"

namespace heddle {
namespace {

// Rotation has an angle for each pair of features; by cosine each of k axes has the k-th part of the features.
int64_t angles_of(const Lrpe::Options& options, int64_t head_dim) {
  if (options.type == LrpeType::rotate) return head_dim / 2;
  const int64_t axes = std::max(1, options.shape.rank());
  return (head_dim + axes - 1) / axes;
}

FixedValues start_theta(const Lrpe::Options& options, int64_t heads, int64_t head_dim) {
  const int64_t angles = angles_of(options, head_dim), rows = options.per_head ? heads : 1;
  const std::vector<double> row = theta_values(options.theta_init, options.base, angles, head_dim);
  std::vector<double> values;
  for (int64_t head = 0; head < rows; ++head) values.insert(values.end(), row.begin(), row.end());
  return {{rows, angles}, values};
}

}  // namespace

std::vector<double> theta_values(ThetaInit init, double base, int64_t angles, int64_t dim) {
  std::vector<double> values(static_cast<size_t>(angles));
  for (int64_t k = 0; k < angles; ++k) {
    const bool is_high = k < angles / 2;
    const bool is_kept = init == ThetaInit::rope || is_high == (init == ThetaInit::high_half);
    values[static_cast<size_t>(k)] =
        is_kept ? std::pow(base, -2.0 * static_cast<double>(k) / static_cast<double>(dim)) : 0.0;
  }
  return values;
}

Lrpe::Lrpe(const Options& options, const ModuleBuilder& builder, int64_t heads, int64_t head_dim)
    : options_(options), fixed_theta_(start_theta(options, heads, head_dim)) {
  check(options.type == LrpeType::cosine || head_dim % 2 == 0,
        "[lrpe_rotate] heads have {} features, expected an even number", head_dim);
  check(options.softmax != Softmax::sequence, "[lrpe] a softmax over the sequence looks ahead");
  if (!options.learnable) return;
  parameter_ = builder.add("theta", fixed_theta_.shape(), Initializer::given(fixed_theta_.values()), false);
}

// Where the tokens from `offset` on lie, the extra tokens being the first of the text.
LrpeCosineOptions Lrpe::grid_at(int64_t offset, int64_t length) const {
  const int64_t extra = options_.extra_tokens;
  LrpeCosineOptions grid;
  grid.act = options_.act;
  grid.softmax = options_.softmax;
  grid.shape = options_.shape;
  if (grid.shape.rank() > 0) {
    check(offset == 0, "[lrpe_cosine] a text on the grid {} is read in one pass, found one that goes on at token {}",
          to_string(grid.shape), offset);
    grid.extra_tokens = extra;
  } else {
    grid.extra_tokens = std::clamp<int64_t>(extra - offset, 0, length);
    grid.offset = std::max<int64_t>(offset - extra, 0);
  }
  return grid;
}

Variable Lrpe::forward(Tape& tape, const Variable& x, int64_t offset) const {
  // A learned theta is read from its float32 master: rounded to bfloat16 it would turn far tokens anywhere.
  const Variable theta = parameter_ != nullptr ? tape.leaf(parameter_->master, parameter_->gradient, parameter_->name)
                                               : fixed_theta_.on(tape, accumulate_type(x.dtype()));
  if (options_.type == LrpeType::cosine) return lrpe_cosine(tape, x, theta, grid_at(offset, x.shape()[1]));
  LrpeRotateOptions options;
  options.act = options_.act;
  options.softmax = options_.softmax;
  options.pairing = options_.pairing;
  options.offset = offset;
  return lrpe_rotate(tape, x, theta, options);
}

std::unique_ptr<Lrpe> make_lrpe(const ConfigNode& section, const ModuleBuilder& builder, const BlockPlace& place,
                                int64_t heads, int64_t head_dim, Activation act) {
  Lrpe::Options options;
  options.type =
      section.require_choice<LrpeType>("type", {{"lrpe_rotate", LrpeType::rotate}, {"lrpe_cosine", LrpeType::cosine}});
  options.act = act;
  options.theta_init = section.get_choice<ThetaInit>(
      "theta_init", ThetaInit::rope,
      {{"rope", ThetaInit::rope}, {"low_half", ThetaInit::low_half}, {"high_half", ThetaInit::high_half}});
  options.base = section.get<double>("base", options.base, Range::positive());
  options.learnable = section.get<bool>("learnable", options.learnable);
  options.per_head = section.get<bool>("per_head", options.per_head);
  read_lrpe_activation(section, options.act, options.softmax);
  if (options.softmax == Softmax::sequence) {
    section.fail("act_dim", "found 'sequence', expected 'feature': a mixer must not look ahead");
  }
  if (options.type == LrpeType::rotate) {
    options.pairing = read_pairing(section);
    if (head_dim % 2 != 0) section.fail(fmt::format("heads have {} features, expected an even number", head_dim));
  } else {
    read_grid(section, options.shape, options.extra_tokens);
  }
  const auto layers =
      section.find<std::vector<int64_t>>("layers", Range::between(0, static_cast<double>(place.layers - 1)));
  section.finish();
  if (layers && std::find(layers->begin(), layers->end(), place.layer) == layers->end()) return nullptr;
  return std::make_unique<Lrpe>(options, builder, heads, head_dim);
}

}  // namespace heddle
