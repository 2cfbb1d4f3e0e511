#include "layers/lrpe.h"

#include <algorithm>
#include <cmath>

#include "core/tensor/error.h"
#include "layers/gradient.h"

namespace heddle {
namespace {

using kernels::heads_view;
using kernels::HeadsView;
using kernels::rows_view;
using kernels::vector_view;

void check_lrpe_rotate(const Variable& x, const Variable& theta, Layout layout) {
  const char* expected = layout == Layout::bnhd ? "(B, N, H, D) or (B, N, D)" : "(B, H, N, D) or (B, N, D)";
  check(x.defined() && is_floating(x.dtype()) && (x.value.rank() == 3 || x.value.rank() == 4),
        "[lrpe_rotate] x has shape {}, expected real numbers {}", to_string(x.shape()), expected);
  const HeadsView view = heads_view(x.value, layout);
  check(view.dim > 0 && view.dim % 2 == 0, "[lrpe_rotate] x has shape {}, expected an even last dimension",
        to_string(x.shape()));
  check(theta.defined() && theta.value.rank() == 2, "[lrpe_rotate] theta has shape {}, expected (H, E) or (1, E)",
        to_string(theta.shape()));
  const int64_t heads = theta.shape()[0], angles = theta.shape()[1];
  check((heads == 1 || heads == view.heads) && angles >= 1 && angles <= view.dim / 2,
        "[lrpe_rotate] theta has shape {}, expected (1 or {}, at most {}): the heads and half the features of x {}",
        to_string(theta.shape()), view.heads, view.dim / 2, to_string(x.shape()));
  check(theta.dtype() == accumulate_type(x.dtype()), "[lrpe_rotate] theta is {}, expected {}: x is {}",
        name(theta.dtype()), name(accumulate_type(x.dtype())), name(x.dtype()));
}

struct LrpeRotateNode : Node {
  LrpeRotateOptions options;
  Slot x, theta, y;
  Tensor saved_x;  // undefined when backward does not need it
  Tensor saved_theta, maximum, sum;

  std::string_view name() const override { return "lrpe_rotate"; }

  void backward(Tape& tape) override {
    Context& context = tape.context();
    const Tensor d_y = tape.take_gradient(y);
    kernels::LrpeRotateBackwardArgs args;
    args.x = heads_view(saved_x, options.layout);
    args.d_y = heads_view(d_y, options.layout);
    args.theta = rows_view(saved_theta);
    args.maximum = vector_view(maximum);
    args.sum = vector_view(sum);
    args.options = options;
    args.d_theta = rows_destination(tape.destination(theta));
    Tensor partials, dots;
    {
      const MemoryScope scope(context, MemoryCategory::workspace);
      if (args.d_theta) {
        const int64_t stretches = kernels::lrpe_theta_partials(args.d_y.length);
        partials = Tensor::empty(context, {stretches, saved_theta.numel()}, saved_theta.dtype());
        args.partials = rows_view(partials);
      }
      if (options.softmax == Softmax::sequence) {
        dots = Tensor::empty(context, maximum.shape(), maximum.dtype());
        args.dots = vector_view(dots);
      }
    }
    // d_theta needs d_y as it came.
    const bool in_place = !args.d_theta && d_y.is_unique() && tape.can_hand_on(x);
    args.d_x = in_place ? kernels::HeadsDestination{args.d_y} : heads_destination(tape.destination(x), options.layout);
    kernels::lrpe_rotate_backward(context, args);
    if (in_place) pass_gradient(tape, x, d_y);
  }
};

}  // namespace

Variable lrpe_rotate(Tape& tape, const Variable& x, const Variable& theta, const LrpeRotateOptions& options) {
  check_lrpe_rotate(x, theta, options.layout);
  Context& context = tape.context();
  const bool recorded = tape.records({&x, &theta});
  const HeadsView view = heads_view(x.value, options.layout);
  Variable y = tape.output(Tensor::empty(context, x.shape(), x.dtype()), recorded);
  Tensor maximum, sum;
  if (options.softmax == Softmax::sequence) {
    maximum = Tensor::empty(context, {view.batch, view.heads, view.dim}, theta.dtype());
    sum = Tensor::empty(context, maximum.shape(), theta.dtype());
  }
  kernels::lrpe_rotate_forward(context, {.x = view,
                                         .y = heads_view(y.value, options.layout),
                                         .theta = rows_view(theta.value),
                                         .maximum = vector_view(maximum),
                                         .sum = vector_view(sum),
                                         .options = options});
  if (!recorded) return y;

  auto node = std::make_unique<LrpeRotateNode>();
  node->options = options;
  node->x = x.slot;
  node->theta = theta.slot;
  node->y = y.slot;
  const bool has_act = options.act != Activation::none || options.softmax != Softmax::none;
  if (has_act || theta.requires_grad()) node->saved_x = x.value;
  node->saved_theta = theta.value;
  node->maximum = maximum;
  node->sum = sum;
  tape.record(std::move(node), {y.slot});
  return y;
}

namespace {

// The keys act, act_dim and pairing, which the operator and the section of a mixer have in common.
template <class Options>
void read_options(const ConfigNode& node, Options& options) {
  const std::string softmax = "softmax";
  std::vector<std::string> names;
  std::string otherwise;
  const Choices<Activation> activations = {{"none", Activation::none},
                                           {"relu", Activation::relu},
                                           {"sigmoid", Activation::sigmoid},
                                           {"silu", Activation::silu}};
  for (const auto& [name, act] : activations) {
    names.push_back(name);
    if (act == options.act) otherwise = name;
  }
  names.push_back(softmax);
  const std::string chosen = node.get_name("act", otherwise, names);
  for (const auto& [name, act] : activations) {
    if (name == chosen) options.act = act;
  }
  if (chosen == softmax) {
    options.act = Activation::none;
    options.softmax = node.get_choice<Softmax>("act_dim", Softmax::feature,
                                               {{"feature", Softmax::feature}, {"sequence", Softmax::sequence}});
  } else if (node.has("act_dim")) {
    node.fail("act_dim", "found a value, but act is " + chosen + ", expected no act_dim: it is for softmax alone");
  }
  options.pairing = node.get_choice<Pairing>("pairing", options.pairing,
                                             {{"half", Pairing::half}, {"interleaved", Pairing::interleaved}});
}

}  // namespace

NamedVariables apply_lrpe_rotate(Tape& tape, const ConfigNode& options, const NamedVariables& inputs) {
  LrpeRotateOptions rotate;
  read_options(options, rotate);
  rotate.layout = options.get_choice<Layout>("layout", Layout::bnhd, {{"bnhd", Layout::bnhd}, {"bhnd", Layout::bhnd}});
  rotate.offset = options.get<int64_t>("offset", 0);
  options.finish();
  return {{"y", lrpe_rotate(tape, input_or_none(inputs, "x"), input_or_none(inputs, "theta"), rotate)}};
}

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

namespace {

FixedValues start_theta(const Lrpe::Options& options, int64_t heads, int64_t head_dim) {
  const std::vector<double> row = theta_values(options.theta_init, options.base, head_dim / 2, head_dim);
  std::vector<double> values;
  const int64_t rows = options.per_head ? heads : 1;
  for (int64_t head = 0; head < rows; ++head) values.insert(values.end(), row.begin(), row.end());
  return {{rows, head_dim / 2}, values};
}

}  // namespace

Lrpe::Lrpe(const Options& options, const ModuleBuilder& builder, int64_t heads, int64_t head_dim)
    : options_(options), fixed_theta_(start_theta(options, heads, head_dim)) {
  check(head_dim > 0 && head_dim % 2 == 0, "[lrpe_rotate] heads have {} features, expected an even number", head_dim);
  check(options.softmax != Softmax::sequence, "[lrpe_rotate] a softmax over the sequence looks ahead");
  if (!options.learnable) return;
  parameter_ = builder.add("theta", fixed_theta_.shape(), Initializer::given(fixed_theta_.values()), false);
}

Variable Lrpe::forward(Tape& tape, const Variable& x, int64_t offset) const {
  LrpeRotateOptions options;
  options.act = options_.act;
  options.softmax = options_.softmax;
  options.pairing = options_.pairing;
  options.offset = offset;
  // A learned theta is read from its float32 master: rounded to bfloat16 it would turn far tokens anywhere.
  const Variable theta = parameter_ != nullptr ? tape.leaf(parameter_->master, parameter_->gradient, parameter_->name)
                                               : fixed_theta_.on(tape, accumulate_type(x.dtype()));
  return lrpe_rotate(tape, x, theta, options);
}

std::unique_ptr<Lrpe> make_lrpe(const ConfigNode& section, const ModuleBuilder& builder, const BlockPlace& place,
                                int64_t heads, int64_t head_dim, Activation act) {
  section.require_name("type", {"lrpe_rotate"});
  Lrpe::Options options;
  options.act = act;
  options.theta_init = section.get_choice<ThetaInit>(
      "theta_init", ThetaInit::rope,
      {{"rope", ThetaInit::rope}, {"low_half", ThetaInit::low_half}, {"high_half", ThetaInit::high_half}});
  options.base = section.get<double>("base", options.base, Range::positive());
  options.learnable = section.get<bool>("learnable", options.learnable);
  options.per_head = section.get<bool>("per_head", options.per_head);
  read_options(section, options);
  if (options.softmax == Softmax::sequence) {
    section.fail("act_dim", "found 'sequence', expected 'feature': a mixer must not look ahead");
  }
  const auto layers =
      section.find<std::vector<int64_t>>("layers", Range::between(0, static_cast<double>(place.layers - 1)));
  section.finish();
  if (head_dim % 2 != 0) section.fail(fmt::format("heads have {} features, expected an even number", head_dim));
  if (layers && std::find(layers->begin(), layers->end(), place.layer) == layers->end()) return nullptr;
  return std::make_unique<Lrpe>(options, builder, heads, head_dim);
}

}  // namespace heddle
