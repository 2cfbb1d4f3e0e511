// The optimizers number by number, in double, as their papers and docs/model.md say it: what those of heddle are
// compared with.
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
#include "trainers/optimizer_config.h"

namespace heddle::testing {

// A dense matrix, row-major.
struct Matrix {
  int64_t rows = 0, cols = 0;
  std::vector<double> values;

  double& at(int64_t i, int64_t j) { return values[static_cast<size_t>(i * cols + j)]; }
  double at(int64_t i, int64_t j) const { return values[static_cast<size_t>(i * cols + j)]; }
};

inline Matrix product(const Matrix& a, const Matrix& b) {
  Matrix c{a.rows, b.cols, std::vector<double>(static_cast<size_t>(a.rows * b.cols))};
  for (int64_t i = 0; i < a.rows; ++i) {
    for (int64_t k = 0; k < a.cols; ++k) {
      for (int64_t j = 0; j < b.cols; ++j) c.at(i, j) += a.at(i, k) * b.at(k, j);
    }
  }
  return c;
}

inline Matrix transpose(const Matrix& a) {
  Matrix b{a.cols, a.rows, std::vector<double>(a.values.size())};
  for (int64_t i = 0; i < a.rows; ++i) {
    for (int64_t j = 0; j < a.cols; ++j) b.at(j, i) = a.at(i, j);
  }
  return b;
}

// torch.optim.Muon's _zeropower_via_newtonschulz, without its bfloat16.
inline Matrix newton_schulz(Matrix x, int64_t steps) {
  const bool is_tall = x.rows > x.cols;
  if (is_tall) x = transpose(x);
  double squares = 0.0;
  for (const double value : x.values) squares += value * value;
  for (double& value : x.values) value /= std::max(std::sqrt(squares), 1e-7);
  for (int64_t step = 0; step < steps; ++step) {
    const Matrix gram = product(x, transpose(x)), squared = product(gram, gram);
    Matrix update = gram;
    for (size_t i = 0; i < update.values.size(); ++i) {
      update.values[i] = -4.7750 * gram.values[i] + 2.0315 * squared.values[i];
    }
    const Matrix moved = product(update, x);
    for (size_t i = 0; i < x.values.size(); ++i) x.values[i] = 3.4445 * x.values[i] + moved.values[i];
  }
  return is_tall ? transpose(x) : x;
}

class ReferenceOptimizer {
 public:
  struct State {
    Shape shape;
    bool is_orthogonalized = false;
    double lr_scale = 1.0, weight_decay = 0.0;
    std::vector<double> start, master, m, v, average;
  };

  // Starts from the masters as they are now. Matrices decay, vectors and angles do not; Muon takes the matrices, but
  // for those of the embedding and the head. A test may change what `states` says about a parameter.
  ReferenceOptimizer(Context& context, const ParameterSet& parameters, const OptimizerConfig& config)
      : config_(config) {
    for (const Parameter& parameter : parameters.all()) {
      State& state = states[parameter.name];
      const bool is_matrix = parameter.shape.rank() > 1 && !parameter.name.ends_with("theta");
      state.shape = parameter.shape;
      state.is_orthogonalized = config.type == OptimizerType::muon && is_matrix &&
                                parameter.name != "embedding.weight" && parameter.name != "head.weight";
      state.weight_decay = is_matrix ? config.weight_decay : 0.0;
      state.start = state.master = state.average = read_values(context, parameter.master);
      state.m.assign(state.master.size(), 0.0);
      state.v.assign(state.master.size(), 0.0);
    }
  }

  // Takes step number `step` on the gradients that the parameters hold, times `scale`; the average has this decay.
  // Returns their norm.
  double step(Context& context, const ParameterSet& parameters, int64_t step, double learning_rate, double scale,
              double average_decay = 0.0) {
    std::map<std::string, std::vector<double>> gradients;
    double squares = 0.0;
    for (const Parameter& parameter : parameters.all()) {
      std::vector<double>& gradient = gradients[parameter.name] = read_values(context, parameter.gradient.tensor);
      for (double& g : gradient) g *= scale, squares += g * g;
    }
    const double norm = std::sqrt(squares), clip = config_.clip_norm;
    const double factor = clip > 0.0 && norm > clip ? clip / norm : 1.0;
    for (auto& [name, state] : states) {
      std::vector<double>& gradient = gradients[name];
      for (double& g : gradient) g *= factor;
      const double lr = learning_rate * state.lr_scale;
      switch (config_.type) {
        case OptimizerType::adamw:
          adamw(state, gradient, step, lr);
          break;
        case OptimizerType::lion:
          lion(state, gradient, lr);
          break;
        case OptimizerType::sgd:
          sgd(state, gradient, lr);
          break;
        case OptimizerType::muon:
          if (state.is_orthogonalized) {
            muon(state, gradient, lr);
          } else {
            adamw(state, gradient, step, lr * config_.adamw_lr / config_.lr);
          }
      }
      for (size_t i = 0; i < state.master.size(); ++i) {
        state.average[i] = average_decay * state.average[i] + (1.0 - average_decay) * state.master[i];
      }
    }
    return norm;
  }

  std::map<std::string, State> states;  // by parameter

 private:
  using Values = std::vector<double>;

  void adamw(State& state, const Values& gradient, int64_t step, double lr) const {
    const auto [beta1, beta2] = config_.betas;
    const double correction1 = 1.0 - std::pow(beta1, step), correction2 = 1.0 - std::pow(beta2, step);
    for (size_t i = 0; i < state.master.size(); ++i) {
      double &m = state.m[i], &v = state.v[i], &w = state.master[i];
      m = beta1 * m + (1.0 - beta1) * gradient[i];
      v = beta2 * v + (1.0 - beta2) * gradient[i] * gradient[i];
      w -= lr * (m / correction1 / (std::sqrt(v / correction2) + config_.eps) + state.weight_decay * w);
    }
  }

  // Algorithm 2 of Chen et al.
  void lion(State& state, const Values& gradient, double lr) const {
    const auto [beta1, beta2] = config_.betas;
    for (size_t i = 0; i < state.master.size(); ++i) {
      double &m = state.m[i], &w = state.master[i];
      const double c = beta1 * m + (1.0 - beta1) * gradient[i];
      w -= lr * ((c > 0.0 ? 1.0 : c < 0.0 ? -1.0 : 0.0) + state.weight_decay * w);
      m = beta2 * m + (1.0 - beta2) * gradient[i];
    }
  }

  // torch.optim.SGD without dampening.
  void sgd(State& state, const Values& gradient, double lr) const {
    for (size_t i = 0; i < state.master.size(); ++i) {
      double &m = state.m[i], &w = state.master[i];
      const double g = gradient[i] + state.weight_decay * w;
      m = config_.momentum * m + g;
      w -= lr * (config_.momentum == 0.0 ? g : config_.nesterov ? g + config_.momentum * m : m);
    }
  }

  // torch.optim.Muon.
  void muon(State& state, const Values& gradient, double lr) const {
    const double momentum = config_.momentum;
    Matrix u{state.shape[0], state.shape[1], Values(gradient.size())};
    for (size_t i = 0; i < gradient.size(); ++i) {
      state.m[i] = momentum * state.m[i] + (1.0 - momentum) * gradient[i];
      u.values[i] = config_.nesterov ? momentum * state.m[i] + (1.0 - momentum) * gradient[i] : state.m[i];
    }
    const double rows = static_cast<double>(u.rows), cols = static_cast<double>(u.cols);
    const double scale = config_.scale == MuonScale::original ? std::sqrt(std::max(1.0, rows / cols))
                                                              : 0.2 * std::sqrt(std::max(rows, cols));
    const Matrix direction = newton_schulz(u, config_.newton_schulz_steps);
    for (size_t i = 0; i < state.master.size(); ++i) {
      double& w = state.master[i];
      w = (1.0 - lr * state.weight_decay) * w - lr * scale * direction.values[i];
    }
  }

  OptimizerConfig config_;
};

}  // namespace heddle::testing
