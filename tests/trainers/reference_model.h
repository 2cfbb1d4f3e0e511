// A language model in plain loops over one sequence, in double, as docs/model.md says it: what the layers of heddle,
// fused and in pieces, are compared with.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <map>
#include <numeric>
#include <optional>
#include <string>
#include <vector>

#include "core/autograd/parameter.h"
#include "core/tensor/transfer.h"
#include "layers/modules/feed_forward.h"
#include "layers/modules/mixers/lightning.h"
#include "layers/modules/mixers/linear_attention.h"
#include "layers/modules/mixers/retention.h"
#include "layers/modules/mixers/softmax_attention.h"
#include "trainers/data/dataset.h"
#include "trainers/model/model_config.h"

namespace heddle::testing {

class ReferenceModel {
 public:
  using Row = std::vector<double>;
  using Rows = std::vector<Row>;  // one row a token

  // Takes the parameters as forward reads them.
  ReferenceModel(Context& context, const ModelConfig& config, const ParameterSet& parameters)
      : config_(config), feed_forward_(dynamic_cast<const FeedForwardConfig&>(*config.channel.options).options) {
    for (const Parameter& parameter : parameters.all()) {
      const bool is_theta = parameter.name.ends_with(".theta");
      weights[parameter.name] = read_values(context, is_theta ? parameter.master : parameter.value);
    }
  }

  // What each part gives, by the names that LanguageModel::Observer hears.
  std::map<std::string, Rows> parts(const std::vector<int32_t>& tokens) const {
    std::map<std::string, Rows> parts;
    Rows residual;
    const Row& table = weights.at("embedding.weight");
    for (const int32_t token : tokens) {
      residual.emplace_back(table.begin() + token * config_.dim, table.begin() + (token + 1) * config_.dim);
    }
    parts["embedding"] = residual;
    for (int64_t layer = 0; layer < config_.layers; ++layer) {
      const std::string block = "blocks." + std::to_string(layer);
      const Rows& mixed = parts[block + ".mixer_norm"] = norm(block + ".mixer_norm", residual);
      add(residual, parts[block + ".mixer"] = mixer(block + ".mixer.", layer, mixed));
      const Rows& fed = parts[block + ".channel_norm"] = norm(block + ".channel_norm", residual);
      add(residual, parts[block + ".channel"] = channel(block + ".channel.", fed));
    }
    parts["final_norm"] = norm("final_norm", residual);
    parts["head"] = product(config_.tie_embeddings ? "embedding.weight" : "head.weight", parts["final_norm"]);
    return parts;
  }
  Rows logits(const std::vector<int32_t>& tokens) const { return parts(tokens).at("head"); }

  struct Loss {
    double sum = 0.0;     // nats, over the targets that count
    int64_t targets = 0;  // that count
    int64_t right = 0;    // of which the logit is the largest
    double mean() const { return sum / static_cast<double>(targets); }
  };
  Loss loss(const Batch& batch) const {
    Loss loss;
    for (int64_t row = 0; row < batch.size; ++row) {
      const auto begin = batch.tokens.begin() + row * batch.length;
      const Rows all = logits({begin, begin + batch.length});
      for (int64_t n = 0; n < batch.length; ++n) {
        const int32_t target = batch.targets[row * batch.length + n];
        if (target == kIgnoredTarget) continue;
        double sum = 0.0, largest = all[n][0];
        for (const double logit : all[n]) sum += std::exp(logit), largest = std::max(largest, logit);
        loss.sum += std::log(sum) - all[n][target];
        loss.right += all[n][target] == largest ? 1 : 0;
        ++loss.targets;
      }
    }
    return loss;
  }

  std::map<std::string, Row> weights;  // by parameter, row-major

 private:
  static double apply(Activation act, double x) {
    switch (act) {
      case Activation::none:
        return x;
      case Activation::relu:
        return std::max(x, 0.0);
      case Activation::sigmoid:
        return 1.0 / (1.0 + std::exp(-x));
      case Activation::silu:
        return x / (1.0 + std::exp(-x));
      case Activation::elu1:
        return x > 0.0 ? x + 1.0 : std::exp(x);
      case Activation::relu2:
        return x > 0.0 ? x * x : 0.0;
      case Activation::tanh:
        return std::tanh(x);
      case Activation::gelu:
        return 0.5 * x * std::erfc(-x / std::sqrt(2.0));
      case Activation::gelu_tanh:
        return 0.5 * x * (1.0 + std::tanh(std::sqrt(2.0 / std::acos(-1.0)) * (x + 0.044715 * x * x * x)));
    }
    return NAN;
  }
  static void add(Rows& to, const Rows& x) {
    for (size_t n = 0; n < x.size(); ++n) {
      for (size_t i = 0; i < x[n].size(); ++i) to[n][i] += x[n][i];
    }
  }

  // x W^T.
  Rows product(const std::string& name, const Rows& x) const {
    const Row& weight = weights.at(name);
    const size_t in = x[0].size(), out = weight.size() / in;
    Rows y(x.size(), Row(out, 0.0));
    for (size_t n = 0; n < x.size(); ++n) {
      for (size_t o = 0; o < out; ++o) {
        for (size_t i = 0; i < in; ++i) y[n][o] += weight[o * in + i] * x[n][i];
      }
    }
    return y;
  }

  // scale (x - mean) / sqrt(mean((x - mean)^2) + eps), the means of each of `groups` parts of a row.
  static void normalize(Row& row, int64_t groups, bool center, double eps, double scale) {
    const auto size = static_cast<std::ptrdiff_t>(row.size()) / groups;
    for (auto begin = row.begin(); begin != row.end(); begin += size) {
      const double count = static_cast<double>(size);
      const double mean = center ? std::accumulate(begin, begin + size, 0.0) / count : 0.0;
      double squares = 0.0;
      for (auto x = begin; x != begin + size; ++x) *x -= mean, squares += *x * *x;
      for (auto x = begin; x != begin + size; ++x) *x *= scale / std::sqrt(squares / count + eps);
    }
  }

  Rows norm(const std::string& path, Rows x) const {
    const NormType type = config_.norm.type;
    const bool center = type == NormType::layer_norm || type == NormType::group_norm;
    const auto weight = weights.find(path + ".weight"), bias = weights.find(path + ".bias");
    for (Row& row : x) {
      normalize(row, config_.norm.norm.groups, center, config_.norm.norm.eps, config_.norm.norm.scale);
      for (size_t i = 0; i < row.size(); ++i) {
        if (weight != weights.end()) row[i] *= weight->second[i];
        if (bias != weights.end()) row[i] += bias->second[i];
      }
    }
    return x;
  }

  // theta[k] of a head of `dim` features, from the parameter where it is learned.
  Row theta(const std::string& path, const Lrpe::Options& lrpe, int64_t head, int64_t dim) const {
    const int64_t axes = std::max<int64_t>(1, lrpe.shape.rank());
    const int64_t angles = lrpe.type == LrpeType::rotate ? dim / 2 : (dim + axes - 1) / axes;
    if (lrpe.learnable) {
      const Row& all = weights.at(path + "lrpe.theta");
      const auto begin = all.begin() + (lrpe.per_head ? head * angles : 0);
      return {begin, begin + angles};
    }
    Row row;
    for (int64_t k = 0; k < angles; ++k) {
      const bool is_zero = lrpe.theta_init == ThetaInit::low_half    ? k < angles / 2
                           : lrpe.theta_init == ThetaInit::high_half ? k >= angles / 2
                                                                     : false;
      row.push_back(is_zero ? 0.0 : std::pow(lrpe.base, -2.0 * static_cast<double>(k) / static_cast<double>(dim)));
    }
    return row;
  }

  // The place of token n on the grid, an axis after the other; of an extra token 0.
  static std::vector<int64_t> place(const Lrpe::Options& lrpe, int64_t n) {
    const int64_t rest = std::max<int64_t>(0, n - lrpe.extra_tokens);
    if (lrpe.type == LrpeType::rotate) return {n};
    if (lrpe.shape.rank() == 0) return {rest};
    std::vector<int64_t> places(static_cast<size_t>(lrpe.shape.rank()));
    for (int64_t axis = lrpe.shape.rank() - 1, left = rest; axis >= 0; --axis) {
      places[static_cast<size_t>(axis)] = left % lrpe.shape[static_cast<int>(axis)];
      left /= lrpe.shape[static_cast<int>(axis)];
    }
    return places;
  }

  // q or k of one head of token n with its position.
  Row encode(const std::string& path, const Lrpe::Options& lrpe, int64_t head, int64_t n, Row x) const {
    const auto dim = x.size();
    double sum = 0.0;
    for (double& value : x) {
      value = lrpe.softmax == Softmax::feature ? std::exp(value) : apply(lrpe.act, value);
      sum += value;
    }
    if (lrpe.softmax == Softmax::feature) {
      for (double& value : x) value /= sum;
    }
    const Row angles = theta(path, lrpe, head, static_cast<int64_t>(dim));
    const std::vector<int64_t> places = place(lrpe, n);
    if (lrpe.type == LrpeType::cosine) {
      Row y(2 * dim);
      for (size_t j = 0; j < dim; ++j) {
        const double phi = static_cast<double>(places[j / angles.size()]) * angles[j % angles.size()];
        y[j] = x[j] * std::cos(phi);
        y[j + dim] = x[j] * std::sin(phi);
      }
      return y;
    }
    for (size_t k = 0; k < dim / 2; ++k) {
      const bool half = lrpe.pairing == Pairing::half;
      double &a = x[half ? k : 2 * k], &b = x[half ? k + dim / 2 : 2 * k + 1];
      const double phi = static_cast<double>(places[0]) * angles[k];
      const double turned = a * std::cos(phi) - b * std::sin(phi);
      b = a * std::sin(phi) + b * std::cos(phi);
      a = turned;
    }
    return x;
  }

  // q or k of one head, encoded where the layer has an encoding.
  Rows encode(const std::string& path, const std::optional<Lrpe::Options>& lrpe, int64_t layer, int64_t head,
              Rows x) const {
    if (!lrpe || (lrpe->layers && std::count(lrpe->layers->begin(), lrpe->layers->end(), layer) == 0)) return x;
    for (size_t n = 0; n < x.size(); ++n) x[n] = encode(path, *lrpe, head, static_cast<int64_t>(n), x[n]);
    return x;
  }

  // Features [begin, begin + count) of every token.
  static Rows features(const Rows& x, int64_t begin, int64_t count) {
    Rows part;
    for (const Row& row : x) part.emplace_back(row.begin() + begin, row.begin() + begin + count);
    return part;
  }
  // The features of a head more, behind those of the heads before it.
  static void append(Rows& to, const Rows& x) {
    for (size_t n = 0; n < x.size(); ++n) to[n].insert(to[n].end(), x[n].begin(), x[n].end());
  }
  static Rows applied(Activation act, Rows x) {
    for (Row& row : x) {
      for (double& value : row) value = apply(act, value);
    }
    return x;
  }

  static Rows softmax_of(Rows x) {
    for (Row& row : x) {
      double sum = 0.0;
      for (double& value : row) sum += value = std::exp(value);
      for (double& value : row) value /= sum;
    }
    return x;
  }

  // o_n = E^(-1/2) q_n S_n, where S_n = lambda_n S_(n-1) + k_n v_n^T, of one head with E features of q.
  static Rows attend(const Rows& q, const Rows& k, const Rows& v, const Row& lambda, double key_dim) {
    Rows o(q.size(), Row(v[0].size(), 0.0)), state(q[0].size(), Row(v[0].size(), 0.0));
    for (size_t n = 0; n < q.size(); ++n) {
      for (size_t i = 0; i < state.size(); ++i) {
        for (size_t j = 0; j < state[i].size(); ++j) {
          state[i][j] = lambda[n] * state[i][j] + k[n][i] * v[n][j];
          o[n][j] += q[n][i] * state[i][j] / std::sqrt(key_dim);
        }
      }
    }
    return o;
  }

  // Token n sees the last `window` tokens up to itself, all of them when that is 0.
  static Rows attend_by_softmax(const Rows& q, const Rows& k, const Rows& v, int64_t window) {
    Rows o(q.size(), Row(v[0].size(), 0.0));
    for (size_t n = 0; n < q.size(); ++n) {
      const size_t seen = window > 0 ? std::min(n + 1, static_cast<size_t>(window)) : n + 1;
      double sum = 0.0;
      for (size_t m = n + 1 - seen; m <= n; ++m) {
        const double score = std::inner_product(q[n].begin(), q[n].end(), k[m].begin(), 0.0);
        const double weight = std::exp(score / std::sqrt(static_cast<double>(q[n].size())));
        for (size_t j = 0; j < v[m].size(); ++j) o[n][j] += weight * v[m][j];
        sum += weight;
      }
      for (double& value : o[n]) value /= sum;
    }
    return o;
  }

  // lambda of lightning, the same for every token.
  Row slope(int64_t layer, int64_t head, int64_t heads, size_t tokens) const {
    const double depth =
        config_.layers == 1 ? 0.0 : static_cast<double>(layer) / static_cast<double>(config_.layers - 1);
    const double slope = std::exp2(-8.0 * static_cast<double>(head + 1) / static_cast<double>(heads));
    return Row(tokens, std::exp(-slope * (1.0 - depth + 1e-5)));
  }

  Rows gate(const std::string& path, const LightningGate& gate, const Rows& x) const {
    return applied(gate.act, gate.rank > 0 ? product(path + "gate.up.weight", product(path + "gate.down.weight", x))
                                           : product(path + "gate.weight", x));
  }
  static void multiply(Rows& to, const Rows& x) {
    for (size_t n = 0; n < x.size(); ++n) {
      for (size_t i = 0; i < x[n].size(); ++i) to[n][i] *= x[n][i];
    }
  }

  Rows mixer(const std::string& path, int64_t layer, const Rows& x) const {
    const MixerPattern& mixers = config_.mixer;
    const std::string kind =
        mixers.pattern.empty() ? "" : mixers.pattern[static_cast<size_t>(layer) % mixers.pattern.size()];
    for (const auto& [name, section] : mixers.kinds) {
      if (name != kind) continue;
      const MixerOptions* const options = section.options.get();
      if (const auto* of = dynamic_cast<const LightningConfig*>(options)) {
        return lightning(of->options, path, layer, x);
      }
      if (const auto* of = dynamic_cast<const LinearAttentionMixerConfig*>(options)) {
        return linear_attention(of->options, path, layer, x);
      }
      if (const auto* of = dynamic_cast<const RetentionConfig*>(options)) return retention(of->options, path, layer, x);
      return softmax_attention(dynamic_cast<const SoftmaxAttentionMixerConfig&>(*options).options, path, layer, x);
    }
    return {};
  }

  Rows lightning(const Lightning::Options& options, const std::string& path, int64_t layer, const Rows& x) const {
    const Rows u = applied(options.act, product(path + "qkv.weight", x));
    const int64_t dim = config_.dim, size = dim / options.heads;
    Rows o(x.size());
    for (int64_t head = 0; head < options.heads; ++head) {
      const Rows q = encode(path, options.lrpe, layer, head, features(u, head * size, size));
      const Rows k = encode(path, options.lrpe, layer, head, features(u, dim + head * size, size));
      append(o, attend(q, k, features(u, 2 * dim + head * size, size), slope(layer, head, options.heads, x.size()),
                       static_cast<double>(size)));
    }
    const Rows g = options.gate ? gate(path, *options.gate, x) : Rows();
    const bool before = options.gate && options.gate->position == GatePosition::pre;
    if (before) multiply(o, g);
    for (Row& row : o) normalize(row, options.heads, false, 1e-5, 1.0);
    if (!before) multiply(o, g);
    return product(path + "out.weight", o);
  }

  Rows linear_attention(const LinearAttentionMixer::Options& options, const std::string& path, int64_t layer,
                        const Rows& x) const {
    const Rows u = product(path + "qkv.weight", x);
    const int64_t heads = options.heads, key_heads = options.kv_heads == 0 ? heads : options.kv_heads;
    const int64_t size = config_.dim / heads;
    const auto mapped = [&](int64_t begin) {
      const Rows part = features(u, begin, size);
      return options.softmax == Softmax::feature ? softmax_of(part) : applied(options.act, part);
    };
    Rows o(x.size());
    for (int64_t head = 0; head < heads; ++head) {
      const int64_t key_head = head * key_heads / heads;
      const Rows q = mapped(head * size), k = mapped((heads + key_head) * size);
      const Rows v = features(u, (heads + key_heads + key_head) * size, size);
      const Row lambda = options.decay ? slope(layer, head, heads, x.size()) : Row(x.size(), 1.0);
      const auto key_dim = static_cast<double>(size);
      Rows of_head = attend(encode(path, options.lrpe, layer, head, q), encode(path, options.lrpe, layer, key_head, k),
                            v, lambda, key_dim);
      const Rows sums = attend(q, k, Rows(x.size(), Row(1, 1.0)), lambda, key_dim);
      for (size_t n = 0; options.normalizer && n < x.size(); ++n) {
        for (double& value : of_head[n]) value /= std::max(sums[n][0], 1e-6);
      }
      append(o, of_head);
    }
    for (Row& row : o) {
      if (!options.normalizer) normalize(row, heads, false, 1e-5, 1.0);
    }
    return product(path + "out.weight", o);
  }

  Rows retention(const Retention::Options& options, const std::string& path, int64_t layer, const Rows& x) const {
    const bool by_data = options.kind == Retention::Kind::simple_gla;
    const Rows all_q = product(path + "q_proj.weight", x), all_k = product(path + "k_proj.weight", x);
    const Rows all_v = product(path + "v_proj.weight", x), g = product(path + "g_proj.weight", x);
    const Rows scores = by_data ? product(path + "gk_proj.weight", x) : Rows();
    const int64_t key_dim = static_cast<int64_t>(all_q[0].size()) / options.heads;
    const int64_t value_dim = static_cast<int64_t>(all_v[0].size()) / options.heads;
    std::optional<Lrpe::Options> rotation;
    if (!by_data) rotation = Lrpe::Options{.base = options.base};
    const Row& weight = weights.at(path + "g_norm_swish_gate.weight");
    Rows y(x.size());
    for (int64_t head = 0; head < options.heads; ++head) {
      Row lambda(x.size(), 1.0 - std::exp2(-5.0 - static_cast<double>(head)));
      for (size_t n = 0; by_data && n < x.size(); ++n) {
        const double score = scores[n][head] + weights.at(path + "gk_proj.bias")[head];
        lambda[n] = std::pow(apply(Activation::sigmoid, score), 1.0 / options.divisor);
      }
      Rows o = attend(encode(path, rotation, layer, head, features(all_q, head * key_dim, key_dim)),
                      encode(path, rotation, layer, head, features(all_k, head * key_dim, key_dim)),
                      features(all_v, head * value_dim, value_dim), lambda, static_cast<double>(key_dim));
      for (Row& row : o) {
        normalize(row, 1, false, options.eps, 1.0);
        for (size_t j = 0; j < row.size(); ++j) row[j] *= weight[j];
      }
      append(y, o);
    }
    multiply(y, applied(Activation::silu, g));
    return product(path + "o_proj.weight", y);
  }

  Rows softmax_attention(const SoftmaxAttentionMixer::Options& options, const std::string& path, int64_t layer,
                         const Rows& x) const {
    const Rows u = product(path + "qkv.weight", x);
    const int64_t heads = options.heads, key_heads = options.kv_heads == 0 ? heads : options.kv_heads;
    const int64_t size = config_.dim / heads;
    const std::optional<Lrpe::Options> rotation = Lrpe::Options{.base = options.base};
    Rows o(x.size());
    for (int64_t head = 0; head < heads; ++head) {
      const int64_t key_head = head * key_heads / heads;
      append(o, attend_by_softmax(encode(path, rotation, layer, head, features(u, head * size, size)),
                                  encode(path, rotation, layer, key_head, features(u, (heads + key_head) * size, size)),
                                  features(u, (heads + key_heads + key_head) * size, size), options.window));
    }
    return product(path + "out.weight", o);
  }

  Rows channel(const std::string& path, const Rows& x) const {
    const bool is_glu = feed_forward_.type == FeedForwardType::glu;
    Rows hidden = product(path + (is_glu ? "w12.weight" : "w1.weight"), x);
    const auto size = static_cast<size_t>(feed_forward_.hidden);
    for (Row& row : hidden) {
      for (size_t i = 0; i < size; ++i) row[i] = apply(feed_forward_.act, row[i]) * (is_glu ? row[size + i] : 1.0);
      row.resize(size);
    }
    return product(path + (is_glu ? "w3.weight" : "w2.weight"), hidden);
  }

  ModelConfig config_;
  FeedForward::Options feed_forward_;
};

}  // namespace heddle::testing
