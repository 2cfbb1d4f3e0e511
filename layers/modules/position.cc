#include "layers/modules/position.h"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <utility>

#include "core/runtime/checked.h"
#include "core/runtime/error.h"
#include "layers/modules/choices.h"
#include "layers/ops/lrpe.h"

namespace heddle {
namespace {

// Rotation has an angle for each pair of features; by cosine each of k axes has the k-th part of the features.
int64_t angles_of(const Lrpe::Options& options, int64_t head_dim) {
  if (options.type == LrpeType::rotate) return head_dim / 2;
  const int64_t axes = std::max(1, options.shape.rank());
  return (head_dim + axes - 1) / axes;
}

Shape theta_shape(const Lrpe::Options& options, int64_t heads, int64_t head_dim) {
  return {options.per_head ? heads : 1, angles_of(options, head_dim)};
}

std::vector<double> start_theta(const Lrpe::Options& options, const Shape& shape, int64_t head_dim) {
  const std::vector<double> row = theta_values(options.theta_init, options.base, shape[1], head_dim);
  std::vector<double> values;
  for (int64_t head = 0; head < shape[0]; ++head) values.insert(values.end(), row.begin(), row.end());
  return values;
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

bool Lrpe::Options::is_on(int64_t layer) const {
  return !layers || std::find(layers->begin(), layers->end(), layer) != layers->end();
}

Lrpe::Lrpe(const Options& options, const ModuleBuilder& builder, int64_t heads, int64_t head_dim) : options_(options) {
  check(options.type == LrpeType::cosine || head_dim % 2 == 0,
        "[lrpe_rotate] heads have {} features, expected an even number", head_dim);
  check(options.softmax != Softmax::sequence, "[lrpe] a softmax over the sequence looks ahead");
  check(options.base > 0.0 && std::isfinite(options.base), "[lrpe] base is {}, expected a number above 0",
        options.base);
  const Shape shape = theta_shape(options, heads, head_dim);
  std::vector<double> values = start_theta(options, shape, head_dim);
  if (options.learnable) {
    parameter_ = builder.add("theta", shape, Initializer::given(std::move(values)), false);
  } else {
    buffer_ = builder.add_buffer("theta", shape, std::move(values));
  }
}

std::optional<int64_t> Lrpe::Options::fixed_length() const {
  if (shape.rank() == 0) return std::nullopt;
  return numel(shape) + extra_tokens;
}

// Where the tokens behind `before` others lie, the extra tokens being the first of the text.
LrpeCosineOptions Lrpe::grid_at(const TokensBefore& before, int64_t length) const {
  const int64_t offset = before.count;
  const int64_t extra = options_.extra_tokens;
  LrpeCosineOptions grid;
  grid.act = options_.act;
  grid.softmax = options_.softmax;
  grid.shape = options_.shape;
  grid.tokens_before = before.on_device;
  if (grid.shape.rank() > 0) {
    check(offset == 0 && !before.on_device.defined(),
          "[lrpe_cosine] a text on the grid {} is read in one pass, found one that goes on", grid.shape);
    grid.extra_tokens = extra;
  } else if (before.on_device.defined()) {
    grid.extra_tokens = extra;
  } else {
    grid.extra_tokens = std::clamp<int64_t>(extra - offset, 0, length);
    grid.offset = std::max<int64_t>(offset - extra, 0);
  }
  return grid;
}

Variable Lrpe::forward(Tape& tape, const Variable& x, const TokensBefore& before) const {
  // A learned theta is read from its float32 master: rounded to bfloat16 it would turn far tokens anywhere.
  const Variable theta = parameter_ != nullptr ? tape.leaf(parameter_->master, parameter_->gradient, parameter_->name)
                                               : tape.constant(buffer_->value);
  if (options_.type == LrpeType::cosine) return lrpe_cosine(tape, x, theta, grid_at(before, x.shape()[1]));
  LrpeRotateOptions options;
  options.act = options_.act;
  options.softmax = options_.softmax;
  options.pairing = options_.pairing;
  if (before.on_device.defined()) {
    options.tokens_before = before.on_device;
  } else {
    options.offset = before.count;
  }
  return lrpe_rotate(tape, x, theta, options);
}

void Lrpe::check_segments(const Tensor& segments) const {
  check(!segments.defined() || !options_.counts_from_start(),
        "[lrpe_cosine] found packed documents beside lrpe.shape or lrpe.extra_tokens, expected one of them: their "
        "positions are those of a whole sequence (data.pack)");
}

std::optional<Lrpe> make_lrpe(const std::optional<Lrpe::Options>& options, const ModuleBuilder& builder,
                              const BlockPlace& place, int64_t heads) {
  if (!options || !options->is_on(place.layer)) return {};
  return Lrpe(*options, builder.child("lrpe"), heads, place.dim / heads);
}

void describe_lrpe_activation(ConfigFields& fields, Activation& act, Softmax& softmax) {
  constexpr int kSoftmax = -1;
  Choices<int> choices;
  for (const auto& [name, activation] : activation_choices()) choices.emplace_back(name, static_cast<int>(activation));
  choices.emplace_back("softmax", kSoftmax);
  int chosen = softmax == Softmax::none ? static_cast<int>(act) : kSoftmax;
  fields.choice("act", chosen, choices);
  if (chosen == kSoftmax) {
    if (softmax == Softmax::none) softmax = Softmax::feature;
    fields.choice("act_dim", softmax, {{"feature", Softmax::feature}, {"sequence", Softmax::sequence}});
    if (fields.reads()) act = Activation::none;
    return;
  }
  if (fields.reads()) {  // options that are written may be in use elsewhere
    act = static_cast<Activation>(chosen);
    softmax = Softmax::none;
  }
  fields.refuse("act_dim", "it belongs to act softmax, which is normalized over a dimension");
}

void describe_feature_map(ConfigFields& fields, Activation& act, Softmax& softmax) {
  describe_lrpe_activation(fields, act, softmax);
  if (softmax != Softmax::sequence) return;
  fields.fail("act_dim", "found 'sequence', expected 'feature': a mixer must not look ahead");
}

// The layers that have the encoding, each once.
void describe_layers(ConfigFields& fields, const ModelSize& model, std::optional<std::vector<int64_t>>& layers) {
  fields.optional("layers", layers, Range::between(0, static_cast<double>(model.layers - 1)));
  if (!fields.reads() || !layers) return;
  if (layers->empty()) fields.fail("layers", "found an empty list, expected a layer: lrpe: null is no encoding at all");
  for (auto layer = layers->begin(); layer != layers->end(); ++layer) {
    if (std::find(layers->begin(), layer, *layer) == layer) continue;
    fields.fail("layers", fmt::format("found layer {} twice, expected each at most once", *layer));
  }
}

void describe_pairing(ConfigFields& fields, Pairing& pairing) {
  fields.choice("pairing", pairing, {{"half", Pairing::half}, {"interleaved", Pairing::interleaved}});
}

void describe_grid(ConfigFields& fields, Shape& shape, int64_t& extra_tokens) {
  constexpr int kMostAxes = kernels::LrpeCosineOptions::kMostAxes;
  fields.field("extra_tokens", extra_tokens, Range::at_least(0));
  std::optional<std::vector<int64_t>> extents;
  if (shape.rank() > 0) extents.emplace(shape.begin(), shape.end());
  fields.optional("shape", extents, Range::at_least(1));
  if (!extents) return;
  if (extents->empty() || extents->size() > kMostAxes) {
    fields.fail("shape", fmt::format("found {} extents, expected 1 to {}", extents->size(), kMostAxes));
  }
  if (!checked_product(std::span<const int64_t>(*extents))) {
    fields.fail("shape", "found more places than an int64 counts");
  }
  shape = Shape(std::span<const int64_t>(*extents));
}

void describe_lrpe(ConfigFields& fields, const ModelSize& model, int64_t head_dim, Lrpe::Options& options) {
  fields.required_choice("type", options.type, {{"lrpe_rotate", LrpeType::rotate}, {"lrpe_cosine", LrpeType::cosine}});
  fields.choice("theta_init", options.theta_init,
                {{"rope", ThetaInit::rope}, {"low_half", ThetaInit::low_half}, {"high_half", ThetaInit::high_half}});
  fields.field("base", options.base, Range::positive());
  fields.field("learnable", options.learnable);
  fields.field("per_head", options.per_head);
  describe_feature_map(fields, options.act, options.softmax);
  if (options.type == LrpeType::rotate) {
    for (const char* key : {"shape", "extra_tokens"}) fields.refuse(key, "it belongs to type lrpe_cosine");
    describe_pairing(fields, options.pairing);
    if (fields.reads() && head_dim % 2 != 0) {
      fields.node().fail(fmt::format("heads have {} features, expected an even number", head_dim));
    }
  } else {
    fields.refuse("pairing", "it belongs to type lrpe_rotate");
    describe_grid(fields, options.shape, options.extra_tokens);
  }
  describe_layers(fields, model, options.layers);
}

}  // namespace heddle
