#include "tools/operator_cases.h"

namespace heddle {
namespace {

using Cases = std::vector<OperatorCase>;

void add_norms(Cases& cases) {
  const Shape x{2, 3, 8};
  const std::vector<std::pair<std::string, Shape>> plain = {{"x", x}};
  const std::vector<std::pair<std::string, Shape>> full = {
      {"x", x}, {"residual", x}, {"gate", x}, {"weight", {8}}, {"bias", {8}}};
  for (const std::string type : {"layer_norm", "rms_norm", "srms_norm"}) {
    const std::string grouped = type == "layer_norm" ? "group_norm" : "group_" + type;
    cases.push_back({type, "{}", plain});
    cases.push_back({type, "{eps: 1.0e-3, scale: 0.5}", {{"x", {5, 7}}, {"weight", {7}}}});
    cases.push_back({type, "{gate: {act: sigmoid, position: post}}", full});
    cases.push_back({type, "{return_residual: false, gate: {act: silu, position: pre}}", full});
    cases.push_back({grouped, "{groups: 2}", plain});
    cases.push_back({grouped, "{groups: 2, gate: {act: relu, position: pre}}", full});
    cases.push_back({grouped, "{groups: 2, gate: {act: none, position: post}}", full});
  }
}

void add_dense(Cases& cases) {
  const std::pair<std::string, Shape> x = {"x", {2, 3, 5}};
  cases.push_back({"linear", "{}", {x, {"weight", {4, 5}}}});
  cases.push_back({"linear", "{}", {x, {"weight", {4, 5}}, {"bias", {4}}}});
  cases.push_back({"embedding", "{}", {{"tokens", {3, 7}}, {"weight", {6, 4}}}, {}, 6});
  for (const std::string act : {"relu", "sigmoid", "silu"}) {
    cases.push_back({"activation", "{act: " + act + "}", {x}});
    cases.push_back({"glu_product", "{act: " + act + "}", {{"a", {3, 5}}, {"b", {3, 5}}}});
  }
  cases.push_back({"glu", "{}", {x, {"w12", {8, 5}}, {"w3", {5, 4}}}});
  cases.push_back({"ffn", "{act: silu}", {x, {"w1", {8, 5}}, {"w2", {5, 8}}}});
  const std::vector<std::pair<std::string, Shape>> logits = {{"logits", {2, 3, 7}}, {"targets", {2, 3}}};
  cases.push_back({"cross_entropy", "{}", logits, {}, 7});
  cases.push_back({"cross_entropy", "{ignore_index: 2, label_smoothing: 0.1}", logits, {}, 7});
}

void add_linear_attention(Cases& cases) {
  const Shape qk{2, 6, 2, 3}, v{2, 6, 2, 4};
  cases.push_back({"linear_attention", "{}", {{"q", qk}, {"k", qk}, {"v", v}}});
  cases.push_back({"linear_attention",
                   "{decay: constant, scale: 0.5}",
                   {{"q", qk}, {"k", qk}, {"v", v}, {"log_decay", {2}}, {"initial_state", {2, 2, 3, 4}}},
                   {"log_decay"}});
  // Two chunks and a bit.
  const Shape many{1, 130, 1, 2};
  cases.push_back({"linear_attention",
                   "{return_final_state: false}",
                   {{"q", many}, {"k", many}, {"v", many}, {"log_decay", {1}}},
                   {"log_decay"}});
}

void add_lrpe_rotate(Cases& cases) {
  const std::vector<std::pair<std::string, Shape>> per_head = {{"x", {2, 5, 2, 6}}, {"theta", {2, 3}}};
  cases.push_back({"lrpe_rotate", "{}", per_head});
  cases.push_back({"lrpe_rotate", "{act: silu, pairing: interleaved, offset: 3}", per_head});
  cases.push_back({"lrpe_rotate", "{act: softmax, act_dim: feature}", per_head});
  cases.push_back({"lrpe_rotate", "{act: softmax, act_dim: sequence}", per_head});
  cases.push_back({"lrpe_rotate", "{act: sigmoid, layout: bhnd}", {{"x", {2, 2, 5, 6}}, {"theta", {1, 2}}}});
  cases.push_back({"lrpe_rotate", "{act: relu}", {{"x", {2, 5, 6}}, {"theta", {1, 3}}}});
}

void add_lrpe_cosine(Cases& cases) {
  const std::vector<std::pair<std::string, Shape>> per_head = {{"x", {2, 5, 2, 6}}, {"theta", {2, 6}}};
  cases.push_back({"lrpe_cosine", "{}", per_head});
  cases.push_back({"lrpe_cosine", "{act: silu, extra_tokens: 2, offset: 3}", per_head});
  cases.push_back({"lrpe_cosine", "{act: softmax, act_dim: feature}", per_head});
  cases.push_back({"lrpe_cosine", "{act: softmax, act_dim: sequence, extra_tokens: 1}", per_head});
  cases.push_back({"lrpe_cosine",
                   "{act: sigmoid, layout: bhnd, shape: [2, 3], extra_tokens: 1}",
                   {{"x", {2, 2, 7, 6}}, {"theta", {1, 4}}}});
  cases.push_back({"lrpe_cosine", "{act: relu, shape: [2, 1, 2]}", {{"x", {2, 4, 5}}, {"theta", {1, 2}}}});
}

}  // namespace

std::span<const OperatorCase> operator_cases() {
  static const Cases all = [] {
    Cases cases;
    add_norms(cases);
    add_dense(cases);
    add_linear_attention(cases);
    add_lrpe_rotate(cases);
    add_lrpe_cosine(cases);
    return cases;
  }();
  return all;
}

}  // namespace heddle
