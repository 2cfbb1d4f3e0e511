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
#include "trainers/data/dataset.h"
#include "trainers/model/model_config.h"

namespace heddle::testing {

class ReferenceModel {
 public:
  using Row = std::vector<double>;
  using Rows = std::vector<Row>;  // one row a token

  // Takes the parameters as forward reads them.
  ReferenceModel(Context& context, const ModelConfig& config, const ParameterSet& parameters)
      : config_(config),
        lightning_(dynamic_cast<const LightningConfig&>(*config.mixer.of_layer(0).options).options),
        feed_forward_(dynamic_cast<const FeedForwardConfig&>(*config.channel.options).options) {
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

  int64_t head_dim() const { return config_.dim / lightning_.heads; }

  // theta[k] of a head, from the parameter where it is learned.
  Row theta(const std::string& path, const Lrpe::Options& lrpe, int64_t head) const {
    const int64_t dim = head_dim(), axes = std::max<int64_t>(1, lrpe.shape.rank());
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

  // q or k of one head of token n.
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
    const Row angles = theta(path, lrpe, head);
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

  // o_n = E^(-1/2) q_n S_n, where S_n = lambda S_(n-1) + k_n v_n^T, of one head.
  Rows attend(const Rows& q, const Rows& k, const Rows& v, double lambda) const {
    Rows o(q.size(), Row(v[0].size(), 0.0)), state(q[0].size(), Row(v[0].size(), 0.0));
    for (size_t n = 0; n < q.size(); ++n) {
      for (size_t i = 0; i < state.size(); ++i) {
        for (size_t j = 0; j < state[i].size(); ++j) {
          state[i][j] = lambda * state[i][j] + k[n][i] * v[n][j];
          o[n][j] += q[n][i] * state[i][j] / std::sqrt(static_cast<double>(head_dim()));
        }
      }
    }
    return o;
  }

  double lambda(int64_t layer, int64_t head) const {
    const double depth =
        config_.layers == 1 ? 0.0 : static_cast<double>(layer) / static_cast<double>(config_.layers - 1);
    const double slope = std::exp2(-8.0 * static_cast<double>(head + 1) / static_cast<double>(lightning_.heads));
    return std::exp(-slope * (1.0 - depth + 1e-5));
  }

  Rows gate(const std::string& path, const Rows& x) const {
    if (!lightning_.gate) return {};
    Rows g = lightning_.gate->rank > 0 ? product(path + "gate.up.weight", product(path + "gate.down.weight", x))
                                       : product(path + "gate.weight", x);
    for (Row& row : g) {
      for (double& value : row) value = apply(lightning_.gate->act, value);
    }
    return g;
  }
  static void multiply(Rows& to, const Rows& x) {
    for (size_t n = 0; n < x.size(); ++n) {
      for (size_t i = 0; i < x[n].size(); ++i) to[n][i] *= x[n][i];
    }
  }

  Rows mixer(const std::string& path, int64_t layer, const Rows& x) const {
    Rows u = product(path + "qkv.weight", x);
    for (Row& row : u) {
      for (double& value : row) value = apply(lightning_.act, value);
    }
    const std::optional<Lrpe::Options>& lrpe = lightning_.lrpe;
    const bool encodes = lrpe && (!lrpe->layers || std::count(lrpe->layers->begin(), lrpe->layers->end(), layer) > 0);
    Rows o(x.size());
    for (int64_t head = 0; head < lightning_.heads; ++head) {
      Rows q, k, v;
      for (size_t n = 0; n < u.size(); ++n) {
        const auto part = [&](int64_t which) {
          const auto begin = u[n].begin() + which * config_.dim + head * head_dim();
          const Row features(begin, begin + head_dim());
          return encodes && which < 2 ? encode(path, *lrpe, head, static_cast<int64_t>(n), features) : features;
        };
        q.push_back(part(0)), k.push_back(part(1)), v.push_back(part(2));
      }
      const Rows attended = attend(q, k, v, lambda(layer, head));
      for (size_t n = 0; n < o.size(); ++n) o[n].insert(o[n].end(), attended[n].begin(), attended[n].end());
    }
    const Rows g = gate(path, x);
    const bool before = lightning_.gate && lightning_.gate->position == GatePosition::pre;
    if (before) multiply(o, g);
    for (Row& row : o) normalize(row, lightning_.heads, false, 1e-5, 1.0);
    if (!before) multiply(o, g);
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
  Lightning::Options lightning_;
  FeedForward::Options feed_forward_;
};

}  // namespace heddle::testing
