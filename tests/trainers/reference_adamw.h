// AdamW number by number, in double, as docs/training.md says it: what the optimizer of heddle is compared with.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "core/autograd/parameter.h"
#include "core/tensor/transfer.h"
#include "trainers/optimizer.h"

namespace heddle::testing {

class ReferenceAdamW {
 public:
  struct State {
    bool decays = true;  // matrices do; vectors and angles do not
    std::vector<double> start, master, m, v;
  };

  // Starts from the masters as they are now.
  ReferenceAdamW(Context& context, const ParameterSet& parameters, const OptimizerConfig& config) : config_(config) {
    for (const Parameter& parameter : parameters.all()) {
      State& state = states[parameter.name];
      state.decays = parameter.shape.rank() > 1 && !parameter.name.ends_with("theta");
      state.start = state.master = read_values(context, parameter.master);
      state.m.assign(state.master.size(), 0.0);
      state.v.assign(state.master.size(), 0.0);
    }
  }

  // Takes step number `step` on the gradients that the parameters hold, times `scale`. Returns their norm.
  double step(Context& context, const ParameterSet& parameters, int64_t step, double learning_rate, double scale) {
    std::map<std::string, std::vector<double>> gradients;
    double squares = 0.0;
    for (const Parameter& parameter : parameters.all()) {
      std::vector<double>& gradient = gradients[parameter.name] = read_values(context, parameter.gradient.tensor);
      for (double& g : gradient) g *= scale, squares += g * g;
    }
    const double norm = std::sqrt(squares), clip = config_.clip_norm;
    const double factor = clip > 0.0 && norm > clip ? clip / norm : 1.0;
    const auto [beta1, beta2] = config_.betas;
    const double correction1 = 1.0 - std::pow(beta1, step), correction2 = 1.0 - std::pow(beta2, step);
    for (auto& [name, state] : states) {
      const double decay = state.decays ? config_.weight_decay : 0.0;
      for (size_t i = 0; i < state.master.size(); ++i) {
        const double g = factor * gradients[name][i];
        double &m = state.m[i], &v = state.v[i], &w = state.master[i];
        m = beta1 * m + (1.0 - beta1) * g;
        v = beta2 * v + (1.0 - beta2) * g * g;
        w -= learning_rate * (m / correction1 / (std::sqrt(v / correction2) + config_.eps) + decay * w);
      }
    }
    return norm;
  }

  std::map<std::string, State> states;  // by parameter

 private:
  OptimizerConfig config_;
};

}  // namespace heddle::testing
