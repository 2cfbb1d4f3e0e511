#include "layers/ops/softmax_attention.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <string>
#include <vector>

#include "core/config/config_fields.h"
#include "layers/operators/operators.h"
#include "layers/operators/reference.h"

namespace heddle {
namespace {

using namespace reference;  // NOLINT(google-build-using-namespace): the words that references are written in

OperatorFunction make_softmax_attention(const ConfigNode& node) {
  SoftmaxAttentionOptions options;
  ConfigFields fields(node);
  fields.field("causal", options.causal);
  fields.field("window", options.window);
  fields.optional("scale", options.scale);
  return [options](Tape& tape, const NamedVariables& inputs) {
    return NamedVariables{{"o", softmax_attention(tape, inputs.at("q"), inputs.at("k"), inputs.at("v"),
                                                  input_or_none(inputs, "segments"), options)}};
  };
}

ReferenceTensors softmax_attention_reference(const ConfigNode& options, const ReferenceTensors& inputs, DType) {
  const ReferenceTensor q = host_input(inputs, "q"), k = host_input(inputs, "k"), v = host_input(inputs, "v");
  const ReferenceTensor segments = host_input(inputs, "segments");
  const int64_t batch = q.shape[0], length = q.shape[1], heads = q.shape[2], dim = q.shape[3];
  const int64_t keys = k.shape[1], kv_heads = k.shape[2], value_dim = v.shape[3];
  const bool causal = options.get<bool>("causal", true);
  const int64_t window = options.get<int64_t>("window", 0);
  const double scale = options.get<double>("scale", 1.0 / std::sqrt(static_cast<double>(dim)));

  ReferenceTensor o = host_zeros({batch, length, heads, value_dim});
  for (int64_t b = 0; b < batch; ++b) {
    for (int64_t n = 0; n < length; ++n) {
      const int64_t position = keys - length + n;
      const auto sees = [&](int64_t m) {
        return (!causal || m <= position) && (window == 0 || m > position - window) &&
               (!segments || segments[b * keys + m] == segments[b * keys + position]);
      };
      for (int64_t h = 0; h < heads; ++h) {
        const int64_t query = (b * length + n) * heads + h;
        const auto token = [&](int64_t m) { return (b * keys + m) * kv_heads + h / (heads / kv_heads); };
        std::vector<double> scores(static_cast<size_t>(keys));
        double largest = -std::numeric_limits<double>::infinity(), sum = 0.0;
        for (int64_t m = 0; m < keys; ++m) {
          for (int64_t i = 0; i < dim; ++i) scores[m] += scale * q[query * dim + i] * k[token(m) * dim + i];
          if (sees(m)) largest = std::max(largest, scores[m]);
        }
        for (int64_t m = 0; m < keys; ++m) sum += sees(m) ? std::exp(scores[m] - largest) : 0.0;
        for (int64_t m = 0; m < keys; ++m) {
          if (!sees(m)) continue;
          const double p = std::exp(scores[m] - largest) / sum;
          for (int64_t j = 0; j < value_dim; ++j) o[query * value_dim + j] += p * v[token(m) * value_dim + j];
        }
      }
    }
  }
  return {{"o", o}};
}

struct SoftmaxAttentionCase {
  int64_t batch, length, keys, heads, kv_heads, dim, value_dim;
  std::string options;
  bool segments = false, large = false;
};

OperatorCase softmax_attention_case(const SoftmaxAttentionCase& wanted) {
  const auto& [batch, length, keys, heads, kv_heads, dim, value_dim, options, segments, large] = wanted;
  std::vector<CaseInput> inputs = {{.name = "q", .shape = {batch, length, heads, dim}},
                                   {.name = "k", .shape = {batch, keys, kv_heads, dim}},
                                   {.name = "v", .shape = {batch, keys, kv_heads, value_dim}}};
  if (segments) {
    inputs.push_back({.name = "segments",
                      .shape = {batch, keys},
                      .kind = CaseInputKind::segments,
                      .range = std::max<int64_t>(2, keys / 8),
                      .differentiate = false});
  }
  OperatorCase result = make_case("softmax_attention", "{" + options + "}", inputs, softmax_attention_reference, large);
  const bool rounds = dim == value_dim && (dim == 64 || dim == 128);  // probabilities are one number of 16 bits
  result.gpu_error = rounds ? 4 * 0x1p-9 : 4 * 0x1p-16;
  return result;
}

std::vector<OperatorCase> softmax_attention_cases() {
  std::vector<OperatorCase> cases;
  const auto add = [&](const SoftmaxAttentionCase& wanted) { cases.push_back(softmax_attention_case(wanted)); };
  // Who sees whom: as many heads of k as of q, a group of two, one for all; whole sequences and the end of one.
  for (const std::string options : {"causal: true", "causal: false", "window: 2", "window: 3"}) {
    for (const bool segments : {false, true}) {
      for (const int64_t kv_heads : {4, 2, 1}) add({1, 6, 6, 4, kv_heads, 3, 2, options, segments});
      add({2, 3, 7, 2, 1, 2, 3, options, segments});
    }
  }
  add({1, 5, 3, 2, 2, 3, 2, "causal: false"});
  add({2, 5, 5, 2, 2, 3, 3, "scale: 0.3, causal: true"});
  add({2, 4, 4, 1, 1, 3, 2, "scale: -1.5, causal: false"});
  add({1, 1, 1, 1, 1, 1, 1, ""});
  add({1, 1, 5, 2, 1, 3, 2, ""});  // a step of generation
  // Several blocks, with little else.
  add({1, 66, 66, 1, 1, 2, 1, ""});
  add({1, 66, 130, 1, 1, 1, 2, "window: 65", true});
  // Around the length of a block, and dims around those of a vector register.
  for (const int64_t length : {63, 64, 65, 129}) {
    add({2, length, length, 4, 2, 17, 9, "", false, true});
    add({2, length, length, 2, 1, 9, 17, "window: 64", true, true});
    add({1, length, length + 70, 2, 2, 16, 16, "", true, true});
  }
  add({1, 200, 200, 4, 2, 64, 64, "", false, true});
  add({1, 200, 200, 2, 2, 64, 64, "causal: false", true, true});
  add({1, 300, 300, 2, 1, 64, 32, "window: 70", false, true});
  add({2, 150, 150, 2, 1, 128, 128, "", true, true});
  add({1, 130, 260, 2, 1, 128, 128, "window: 100", false, true});
  add({1, 70, 70, 1, 1, 257, 65, "", false, true});
  add({1, 1, 300, 4, 1, 64, 64, "", false, true});
  return cases;
}

}  // namespace

Operator softmax_attention_operator() {
  return {.name = "softmax_attention",
          .inputs = {{.name = "q"},
                     {.name = "k"},
                     {.name = "v"},
                     {.name = "segments", .kind = InputKind::segment, .optional = true}},
          .outputs = {"o"},
          .make = make_softmax_attention,
          .cases = softmax_attention_cases};
}

}  // namespace heddle
