#include "layers/ops/lrpe.h"

#include "core/runtime/error.h"

namespace heddle {

kernels::HeadsView check_lrpe_x(std::string_view op, const Variable& x, Layout layout) {
  const char* expected = layout == Layout::bnhd ? "(B, N, H, D) or (B, N, D)" : "(B, H, N, D) or (B, N, D)";
  check(x.defined() && is_floating(x.dtype()) && (x.value.rank() == 3 || x.value.rank() == 4) && x.shape()[-1] > 0,
        "[{}] x has shape {}, expected real numbers {}", op, to_string(x.shape()), expected);
  return kernels::heads_view(x.value, layout);
}

void check_lrpe_theta(std::string_view op, const Variable& x, const Variable& theta) {
  check(theta.defined() && theta.value.rank() == 2, "[{}] theta has shape {}, expected (H, E) or (1, E)", op,
        to_string(theta.shape()));
  const DType wide = accumulate_type(x.dtype());
  const std::string same = wide == x.dtype() ? "" : fmt::format("{} or ", name(x.dtype()));
  check(theta.dtype() == wide || theta.dtype() == x.dtype(), "[{}] theta is {}, expected {}{}: x is {}", op,
        name(theta.dtype()), same, name(wide), name(x.dtype()));
}

void read_lrpe_activation(const ConfigNode& node, Activation& act, Softmax& softmax) {
  const std::string softmax_name = "softmax";
  std::vector<std::string> names;
  std::string otherwise;
  const Choices<Activation> activations = {{"none", Activation::none},
                                           {"relu", Activation::relu},
                                           {"sigmoid", Activation::sigmoid},
                                           {"silu", Activation::silu}};
  for (const auto& [name, choice] : activations) {
    names.push_back(name);
    if (choice == act) otherwise = name;
  }
  names.push_back(softmax_name);
  const std::string chosen = node.get_name("act", otherwise, names);
  for (const auto& [name, choice] : activations) {
    if (name == chosen) act = choice;
  }
  if (chosen == softmax_name) {
    act = Activation::none;
    softmax = node.get_choice<Softmax>("act_dim", Softmax::feature,
                                       {{"feature", Softmax::feature}, {"sequence", Softmax::sequence}});
  } else if (node.has("act_dim")) {
    node.fail("act_dim", "found a value, but act is " + chosen + ", expected no act_dim: it is for softmax alone");
  }
}

Layout read_lrpe_layout(const ConfigNode& node) {
  return node.get_choice<Layout>("layout", Layout::bnhd, {{"bnhd", Layout::bnhd}, {"bhnd", Layout::bhnd}});
}

}  // namespace heddle
