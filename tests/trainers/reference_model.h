// The model of tiny_config() in plain loops over one sequence, in double: what the layers of heddle are compared with.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "core/autograd/parameter.h"
#include "core/tensor/transfer.h"
#include "trainers/data/dataset.h"

namespace heddle::testing {

class ReferenceModel {
 public:
  using Row = std::vector<double>;
  using Rows = std::vector<Row>;  // one row a token

  // Takes the parameters as forward reads them.
  ReferenceModel(Context& context, const ParameterSet& parameters) {
    for (const Parameter& parameter : parameters.all()) {
      weights[parameter.name] = read_values(context, parameter.value);
    }
  }

  Rows logits(const std::vector<int32_t>& tokens) const {
    Rows residual;
    const Row& table = weights.at("embedding.weight");
    for (const int32_t token : tokens)
      residual.emplace_back(table.begin() + token * kDim, table.begin() + (token + 1) * kDim);
    for (int layer = 0; layer < kLayers; ++layer) {
      add(residual, mixer(layer, normalized(residual, 1, 1e-6)));
      add(residual, channel(layer, normalized(residual, 1, 1e-6)));
    }
    return product("head.weight", normalized(residual, 1, 1e-6));
  }

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
  static constexpr int kDim = 16, kLayers = 2, kHeads = 2, kHeadDim = kDim / kHeads, kHidden = 16;

  static double sigmoid(double x) { return 1.0 / (1.0 + std::exp(-x)); }
  static double silu(double x) { return x * sigmoid(x); }
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

  // x / sqrt(mean(x^2) + eps), the mean taken over each of `groups` parts of a row.
  static Rows normalized(Rows x, size_t groups, double eps) {
    for (Row& row : x) {
      const size_t size = row.size() / groups;
      for (size_t group = 0; group < groups; ++group) {
        double squares = 0.0;
        for (size_t i = 0; i < size; ++i) squares += row[group * size + i] * row[group * size + i];
        const double factor = 1.0 / std::sqrt(squares / static_cast<double>(size) + eps);
        for (size_t i = 0; i < size; ++i) row[group * size + i] *= factor;
      }
    }
    return x;
  }

  // Rotates the feature pairs (k, k + D / 2) of each head of token n by the angle n 10000^(-2k / D).
  static void rotate(Rows& x) {
    constexpr int half = kHeadDim / 2;
    for (size_t n = 0; n < x.size(); ++n) {
      for (int head = 0; head < kHeads; ++head) {
        for (int k = 0; k < half; ++k) {
          const double angle = static_cast<double>(n) * std::pow(10000.0, -2.0 * k / kHeadDim);
          double& a = x[n][head * kHeadDim + k];
          double& b = x[n][head * kHeadDim + k + half];
          const double rotated = a * std::cos(angle) - b * std::sin(angle);
          b = a * std::sin(angle) + b * std::cos(angle);
          a = rotated;
        }
      }
    }
  }

  // o_n = D^(-1/2) q_n S_n, where S_n = lambda S_(n-1) + k_n v_n^T, for each head.
  static Rows attend(const Rows& q, const Rows& k, const Rows& v, int layer) {
    Rows o(q.size(), Row(kDim, 0.0));
    for (int head = 0; head < kHeads; ++head) {
      const double slope = std::exp2(-8.0 * (head + 1) / kHeads);
      const double depth = static_cast<double>(layer) / (kLayers - 1);
      const double lambda = std::exp(-slope * (1.0 - depth + 1e-5));
      Rows state(kHeadDim, Row(kHeadDim, 0.0));
      for (size_t n = 0; n < q.size(); ++n) {
        const int first = head * kHeadDim;
        for (int i = 0; i < kHeadDim; ++i) {
          for (int j = 0; j < kHeadDim; ++j) {
            state[i][j] = lambda * state[i][j] + k[n][first + i] * v[n][first + j];
            o[n][first + j] += q[n][first + i] * state[i][j] / std::sqrt(kHeadDim);
          }
        }
      }
    }
    return o;
  }

  Rows mixer(int layer, const Rows& x) const {
    const std::string path = "blocks." + std::to_string(layer) + ".mixer.";
    Rows q, k, v;
    for (Row& row : product(path + "qkv.weight", x)) {
      for (double& value : row) value = silu(value);
      q.emplace_back(row.begin(), row.begin() + kDim);
      k.emplace_back(row.begin() + kDim, row.begin() + 2 * kDim);
      v.emplace_back(row.begin() + 2 * kDim, row.end());
    }
    if (layer == 0) rotate(q), rotate(k);
    Rows o = normalized(attend(q, k, v, layer), kHeads, 1e-5);
    const Rows gate = product(path + "gate.up.weight", product(path + "gate.down.weight", x));
    for (size_t n = 0; n < o.size(); ++n) {
      for (int i = 0; i < kDim; ++i) o[n][i] *= sigmoid(gate[n][i]);
    }
    return product(path + "out.weight", o);
  }

  Rows channel(int layer, const Rows& x) const {
    const std::string path = "blocks." + std::to_string(layer) + ".channel.";
    Rows hidden;
    for (const Row& row : product(path + "w12.weight", x)) {
      Row& gated = hidden.emplace_back();
      for (int i = 0; i < kHidden; ++i) gated.push_back(silu(row[i]) * row[kHidden + i]);
    }
    return product(path + "w3.weight", hidden);
  }
};

}  // namespace heddle::testing
