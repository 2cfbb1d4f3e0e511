// Linear attention with a decay for each token, documents and heads that share keys: the operator, its recurrence token
// by token in double, and inputs for both.
#pragma once

#include <gtest/gtest.h>

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <iterator>
#include <limits>
#include <map>
#include <string>
#include <vector>

#include "core/tensor/random.h"
#include "core/tensor/transfer.h"
#include "layers/ops/linear_attention.h"
#include "tests/layers/numbers.h"
#include "tests/layers/on_devices.h"

namespace heddle::test {

using Tensors = std::map<std::string, std::vector<double>>;

struct LinearAttentionSizes {
  int64_t batch = 1, length = 1, heads = 1, key_heads = 1, dim = 1, value_dim = 1;
  double scale = 0.5;

  // The shapes of inputs and outputs; a gradient has that of its value.
  Shape shape(std::string name) const {
    if (name.starts_with("d_")) name = name.substr(2);
    if (name == "q") return {batch, length, heads, dim};
    if (name == "k") return {batch, length, key_heads, dim};
    if (name == "v") return {batch, length, key_heads, value_dim};
    if (name == "o") return {batch, length, heads, value_dim};
    if (name == "log_decay") return {batch, length, heads};
    if (name == "segments") return {batch, length};
    return {batch, heads, dim, value_dim};
  }
};

// From inputs and upstream gradients to outputs and gradients.
inline Tensors recurrence(const LinearAttentionSizes& sizes, const Tensors& x) {
  const int64_t batch = sizes.batch, length = sizes.length, heads = sizes.heads, key_heads = sizes.key_heads;
  const int64_t dim = sizes.dim, value_dim = sizes.value_dim;
  const double scale = sizes.scale;
  Tensors y;
  for (const std::string name : {"o", "final_state", "d_q", "d_k", "d_v", "d_log_decay", "d_initial_state"}) {
    y[name].assign(static_cast<size_t>(numel(sizes.shape(name))), 0.0);
  }
  y["final_state"] = x.at("initial_state");
  y["d_initial_state"] = x.at("d_final_state");
  const int64_t size = dim * value_dim;
  for (int64_t b = 0; b < batch; ++b) {
    for (int64_t h = 0; h < heads; ++h) {
      double* state = &y["final_state"][(b * heads + h) * size];
      double* d_state = &y["d_initial_state"][(b * heads + h) * size];
      std::vector<std::vector<double>> before;  // the states before each token
      const auto place = [&](int64_t t) { return (b * length + t) * heads + h; };
      const auto key_place = [&](int64_t t) { return (b * length + t) * key_heads + h / (heads / key_heads); };
      const auto lambda = [&](int64_t t) {
        const std::vector<double>& segments = x.at("segments");
        const bool starts = t > 0 && segments[b * length + t] != segments[b * length + t - 1];
        return starts ? 0.0 : std::exp(x.at("log_decay")[place(t)]);
      };
      for (int64_t t = 0; t < length; ++t) {
        before.emplace_back(state, state + size);
        for (int64_t i = 0; i < dim; ++i) {
          for (int64_t j = 0; j < value_dim; ++j) {
            double& s = state[i * value_dim + j];
            s = lambda(t) * s + x.at("k")[key_place(t) * dim + i] * x.at("v")[key_place(t) * value_dim + j];
            y["o"][place(t) * value_dim + j] += scale * x.at("q")[place(t) * dim + i] * s;
            y["d_q"][place(t) * dim + i] += scale * s * x.at("d_o")[place(t) * value_dim + j];
          }
        }
      }
      for (int64_t t = length - 1; t >= 0; --t) {
        for (int64_t i = 0; i < dim; ++i) {
          for (int64_t j = 0; j < value_dim; ++j) {
            double& d_s = d_state[i * value_dim + j];
            d_s += scale * x.at("q")[place(t) * dim + i] * x.at("d_o")[place(t) * value_dim + j];
            y["d_k"][key_place(t) * dim + i] += d_s * x.at("v")[key_place(t) * value_dim + j];
            y["d_v"][key_place(t) * value_dim + j] += d_s * x.at("k")[key_place(t) * dim + i];
            y["d_log_decay"][place(t)] += lambda(t) * d_s * before[static_cast<size_t>(t)][i * value_dim + j];
            d_s *= lambda(t);
          }
        }
      }
    }
  }
  return y;
}

enum class DecayGradient { wanted, unwanted };

class LinearAttentionNumbers : public OnDevices {
 protected:
  // The operator; `x` is rounded to `dtype` first and is so afterwards.
  Tensors run(const LinearAttentionSizes& sizes, Tensors& x, DType dtype, Decay decay = Decay::data,
              DecayGradient wanted = DecayGradient::wanted) {
    const DType wide = accumulate_type(dtype);
    const auto rounded = [&](const std::string& name) {
      const bool is_wide = name == "log_decay" || name == "initial_state" || name == "d_final_state";
      const DType type = name == "segments" ? DType::int32 : is_wide ? wide : dtype;
      const Shape shape = name == "log_decay" && decay != Decay::data ? Shape{sizes.heads} : sizes.shape(name);
      const Tensor tensor = Tensor::empty(context(), shape, type);
      write_values(context(), tensor, x.at(name));
      x[name] = read_values(context(), tensor);
      return tensor;
    };
    Tape tape(context());
    tape.allow_unused_leaves();
    std::map<std::string, Gradient> gradients;
    const auto leaf = [&](const std::string& name) { return tape.leaf(rounded(name), gradients[name], name); };
    const Variable q = leaf("q"), k = leaf("k"), v = leaf("v");
    const bool has_gradient = wanted == DecayGradient::wanted;
    const Variable log_decay = has_gradient ? leaf("log_decay") : tape.constant(rounded("log_decay"));
    LinearAttentionInputs inputs{log_decay, leaf("initial_state"), rounded("segments")};
    const LinearAttention found =
        linear_attention(tape, q, k, v, inputs, {.decay = decay, .scale = sizes.scale, .return_final_state = true});
    tape.backward({{found.o, rounded("d_o")}, {found.final_state, rounded("d_final_state")}});
    Tensors y{{"o", read_values(context(), found.o.value)},
              {"final_state", read_values(context(), found.final_state.value)}};
    for (const auto& [name, gradient] : gradients) {
      if (gradient.written) y["d_" + name] = read_values(context(), gradient.tensor);
    }
    return y;
  }

  // One document a sequence, without decay.
  Tensors draw(const LinearAttentionSizes& sizes) {
    Tensors x;
    for (const std::string name : {"q", "k", "v", "d_o", "initial_state", "d_final_state"}) {
      for (int64_t i = 0; i < numel(sizes.shape(name)); ++i) x[name].push_back(random_.next_normal());
    }
    x["log_decay"].assign(static_cast<size_t>(numel(sizes.shape("log_decay"))), 0.0);
    x["segments"].assign(static_cast<size_t>(sizes.batch * sizes.length), 0.0);
    return x;
  }
  // Log decays from 0 to -80 and -inf, and the tiny ones that rounding to 1 would lose.
  void draw_decays(Tensors& x) {
    const double scales[] = {0.0, 3e-10, 1e-3, 0.1, 1.0, 80.0, kInfinity};
    for (double& value : x["log_decay"]) {
      const double scale = scales[random_.next_below(std::size(scales))];
      value = scale == 0.0 || scale == kInfinity ? -scale : -scale * random_.next_uniform();
    }
  }
  void draw_segments(const LinearAttentionSizes& sizes, Tensors& x) {
    for (int64_t i = 0; i < sizes.batch * sizes.length; ++i) {
      x["segments"][i] = i % sizes.length == 0 ? 3.0 : x["segments"][i - 1] + (random_.next_below(20) == 0 ? 2.0 : 0.0);
    }
  }

  static void expect_near(const Tensors& found, const Tensors& wanted, double tolerance) {
    for (const auto& [name, numbers] : wanted) {
      ASSERT_EQ(found.at(name).size(), numbers.size()) << name;
      for (size_t i = 0; i < numbers.size(); ++i) {
        ASSERT_NEAR(found.at(name)[i], numbers[i], tolerance * (1.0 + std::abs(numbers[i]))) << name << " " << i;
      }
    }
  }

  Random random_{17, RandomStream::test};
};

}  // namespace heddle::test
